"""The click group `fastsync`: it lists its verbs without importing them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

import click

from fastsync import __version__

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# The module has a click command of the verb's name.
VERBS: Final = {
    "cp": ("fastsync.cli.cp", "Copy files, and directories with -R."),
    "sync": ("fastsync.cli.sync", "Make a destination like a source."),
    "mv": ("fastsync.cli.mv", "Move files and directories."),
    "rm": ("fastsync.cli.rm", "Remove files, and directories with -R."),
    "check": ("fastsync.cli.check", "Compare places, or a place and a manifest."),
    "ls": ("fastsync.cli.ls", "List places."),
    "du": ("fastsync.cli.du", "Add up files and bytes."),
    "stat": ("fastsync.cli.stat", "Tell all about a place."),
    "cat": ("fastsync.cli.cat", "Write files to standard output."),
    "pipe": ("fastsync.cli.pipe", "Write standard input to a file."),
    "mkdir": ("fastsync.cli.mkdir", "Make directories or buckets."),
    "presign": ("fastsync.cli.presign", "Print a signed link."),
    "plan": ("fastsync.cli.plan", "Write down what sync would do."),
    "run": ("fastsync.cli.execute", "Carry out a plan or a batch."),
    "jobs": ("fastsync.cli.jobs", "List, resume or drop what was cut off."),
    "config": ("fastsync.cli.config", "Show and start the configuration."),
    "completion": ("fastsync.cli.completion", "Print a shell's completion script."),
}


class Verbs(click.Group):
    """A group whose commands are the `VERBS`, each imported when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _ = VERBS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in VERBS and not name.startswith("-") and not ctx.resilient_parsing:
            import difflib  # only for what went wrong

            near = difflib.get_close_matches(name, VERBS, n=1)
            advice = f"did you mean {near[0]}?" if near else f"there is {', '.join(VERBS)}"
            raise click.UsageError(f"there is no verb '{name}'; {advice}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, summary) for verb, (_, summary) in VERBS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        verbs = [
            CompletionItem(verb, help=summary)
            for verb, (_, summary) in VERBS.items()
            if verb.startswith(incomplete)
        ]
        return verbs + click.Command.shell_complete(self, ctx, incomplete)


_EXAMPLES = """\b
Examples:
  fastsync cp -R photos backup/
  fastsync sync --delete photos s3://bucket/photos
  fastsync ls -lH sftp://host/~/photos

`fastsync VERB --help` tells more about a verb.
"""


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    subcommand_metavar="VERB ...",
    epilog=_EXAMPLES,
)
@click.version_option(__version__, prog_name="fastsync", message="%(prog)s %(version)s")
def fastsync() -> None:
    """Copy and sync files between places, fast and safely."""
