"""``fastsync completion``: the script that teaches a shell our verbs and options."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class

from fastsync.cli.main import COMPLETE_VARIABLE, PROGRAM


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    To enable it, add this to
      ~/.bashrc   eval "$(fastsync completion bash)"
      ~/.zshrc    eval "$(fastsync completion zsh)"
    or write it to a file for fish
      fastsync completion fish > ~/.config/fish/completions/fastsync.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None  # click knows all three
    script = kind(context.find_root().command, {}, PROGRAM, COMPLETE_VARIABLE)
    # The base class's `source`: bash's own starts a bash to look at its version, and a script may well
    # be printed where there is none.
    click.echo(ShellComplete.source(script))
