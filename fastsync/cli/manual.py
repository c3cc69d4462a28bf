"""The man page, made from what ``--help`` is made from: ``python -m fastsync.cli.manual > fastsync.1``."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Final

import click

from fastsync import __version__
from fastsync.cli.group import VERBS, fastsync

# From docs/CLI.md.
EXIT_CODES: Final = {
    0: "all done",
    1: "some items failed; the rest is done",
    2: "the request or the configuration is wrong; nothing was touched",
    3: "a source or a listing is missing or cannot be trusted; nothing was deleted",
    4: "bytes were not what they should have been",
    5: "authentication, host key or TLS refused",
    6: "a safety stop: the delete gate, an empty source",
    7: "the destination is full or read-only",
    8: "only sources that vanished or kept changing",
    130: "ended by SIGINT (143 by SIGTERM, 129 by SIGHUP)",
}


def _text(text: str) -> str:
    """Words of a man page: nothing in them is taken for a command."""
    text = (
        text.replace("\\", "\\e")
        .replace("-", "\\-")
        .replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    )
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def _verb(name: str, command: click.Command, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent)
    yield ".SS " + _text(context.command_path.partition(" ")[2])
    usage = " ".join(command.collect_usage_pieces(context))
    yield f".B {_text(context.command_path)}\n{_text(usage)}\n.PP"
    yield _text(re.sub(r"\s*\n\s*", " ", (command.help or "").replace("\b", "")).strip())
    if isinstance(command, click.Group):
        for verb in command.list_commands(context):
            below = command.get_command(context, verb)
            if below is not None:
                yield from _verb(verb, below, context)
        return
    for param in command.get_params(context):
        record = param.get_help_record(context)
        if record is not None and isinstance(param, click.Option):
            yield f".TP\n.B {_text(record[0])}\n{_text(record[1]) or '.br'}"
    if command.epilog:
        yield ".PP\nExamples:\n.PP\n.nf"
        yield _text(re.sub(r"\A\s*Examples:\n", "", command.epilog.replace("\b", "")).strip("\n"))
        yield ".fi"


def manual() -> str:
    """The page, in roff."""
    # With its settings: click keeps the first help option that a command was asked for.
    root = click.Context(fastsync, info_name="fastsync", **fastsync.context_settings)
    parts = [
        f'.TH FASTSYNC 1 "" "fastsync {__version__}" "User Commands"',
        f".SH NAME\nfastsync \\- {_text('copy and sync files between places, fast and safely')}",
        ".SH SYNOPSIS\n.B fastsync\n.I VERB\n.RI [ OPTIONS ]\n.RI [ PLACES ]",
        ".SH DESCRIPTION\n"
        + _text(
            "A place is a path, or s3://bucket/key, sftp://host/path, https://host/path. "
            "fastsync VERB --help tells about one verb."
        ),
        ".SH VERBS",
    ]
    for name in VERBS:
        command = fastsync.get_command(root, name)
        assert command is not None
        parts.extend(_verb(name, command, root))
    parts.append(".SH EXIT STATUS")
    parts += [f".TP\n.B {code}\n{_text(told)}" for code, told in EXIT_CODES.items()]
    parts.append(
        ".SH FILES\n.TP\n.I ~/.config/fastsync/config.toml\n"
        + _text("the configuration; fastsync config init writes one to start with")
    )
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.stdout.write(manual())
