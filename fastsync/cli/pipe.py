"""``fastsync pipe``: write standard input to a file."""

from __future__ import annotations

from typing import Any

import click

from fastsync.cli.options import OUTPUT, WIRE, RuledCommand, with_options
from fastsync.cli.places import PLACE
from fastsync.cli.transfer import run_transfer
from fastsync.settings import SETTINGS

_OPTIONS = (
    "parallel_streams",
    "chunk_size",
    "bwlimit",
    *WIRE,
    "ignore_existing",
    "durable",
    "verify",
    "fail_on_conflict",
    "progress",
    *OUTPUT,
    *(name for name, each in SETTINGS.items() if each.place == name and each.side != "source"),
)

_EXAMPLES = """\b
Examples:
  tar c photos | fastsync pipe backup/photos.tar
  pg_dump shop | zstd | fastsync pipe s3://bucket/shop.sql.zst
"""


@click.command(cls=RuledCommand, epilog=_EXAMPLES)
@click.argument("place", type=PLACE, metavar="PLACE")
@with_options(_OPTIONS, rules=False)
@click.pass_context
def pipe(context: click.Context, /, place: str, **values: Any) -> int:
    """Write standard input, to its end, to the file PLACE: whole or not at all.

    The length need not be known. Nothing appears there if the input breaks off with an error; what cannot
    be told from its end is the death of the program that writes it (`set -o pipefail` tells).
    """

    def start(request: Any) -> Any:
        from fastsync.piping import run_pipe

        return run_pipe(place, request)

    return run_transfer(context, values, start)
