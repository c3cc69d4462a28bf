"""``fastsync rm``: remove files and directories."""

from __future__ import annotations

from typing import Any

import click

from fastsync.cli.options import (
    MORE_NAMES,
    OUTPUT,
    PLACES,
    WIRE,
    RuledCommand,
    with_options,
)
from fastsync.cli.places import PLACE
from fastsync.cli.transfer import run_transfer

_OPTIONS = (
    "jobs",
    *WIRE,
    "raw",
    "min_size",
    "max_size",
    "min_age",
    "max_age",
    "max_depth",
    "ignore_missing_args",
    "recursive",
    "interactive",
    *OUTPUT,
    *PLACES,
)
_NAMES = {**MORE_NAMES, "recursive": ("-R", "-r"), "ignore_missing_args": ("-f", "--force")}

_EXAMPLES = """\b
Examples:
  fastsync rm old.txt                      a file, or a link itself
  fastsync rm -R cache                     a directory with all in it
  fastsync rm -R -n --include '*.tmp' src  what that would remove
  fastsync rm 's3://bucket/logs/2023-*'    what wildcards mean
  fastsync rm -R s3://bucket/logs/         everything with that prefix
  fastsync rm --version-id ID s3://bucket/report.pdf
"""


@click.command(cls=RuledCommand, epilog=_EXAMPLES)
@click.argument("places", type=PLACE, nargs=-1, required=True, metavar="PLACE...")
@with_options(_OPTIONS, more=_NAMES)
@click.pass_context
def rm(context: click.Context, /, places: tuple[str, ...], **values: Any) -> int:
    """Remove files, and directories with -R. There is no way back, and no question.

    Every place is looked at before the first file goes; a missing one is an error, and the rest is
    removed. With filters, directories stay that have something left in them.
    """

    def start(request: Any) -> Any:
        from fastsync.removal import run_rm

        return run_rm(places, request)

    return run_transfer(context, values, start, shows_progress=False)
