"""``fastsync run``: carry out a plan."""

from __future__ import annotations

from typing import Any

import click

from fastsync.cli.options import OUTPUT, WIRE, GroupedCommand, with_options
from fastsync.cli.transfer import run_transfer
from fastsync.settings import SETTINGS

_OPTIONS = (
    "parallel_streams",
    "jobs",
    "chunk_size",
    "bwlimit",
    *WIRE,
    "archive",
    "preserve_special",
    "sparse",
    "inplace",
    "resume",
    "durable",
    "progress",
    "color",
    *OUTPUT,
    *(name for name, setting in SETTINGS.items() if setting.place == name),
)

_EXAMPLES = """\b
Examples:
  fastsync run plan.jsonl              carry out what `fastsync plan` wrote
  fastsync run -n plan.jsonl           show what that does, for people
  fastsync run --shard 1/2 plan.jsonl  every second line
"""


@click.command(cls=GroupedCommand, epilog=_EXAMPLES)
@click.argument("file", metavar="FILE|-")
@click.option("--shard", metavar="I/N", help="only part I of N of a plan")
@with_options(_OPTIONS, rules=False)
@click.pass_context
def run(context: click.Context, /, file: str, shard: str | None, **values: Any) -> int:
    """Carry out the plan in FILE, or on standard input, line by line.

    All of it is checked before anything is touched. A line is refused, and the rest goes on, if its
    source or destination changed since the plan was made (exit 8).
    """

    def start(request: Any) -> Any:
        from fastsync.api import run_file

        return run_file(file, request, shard=shard)

    return run_transfer(context, values, start)
