"""``fastsync mv``: move files and directories."""

from __future__ import annotations

from typing import Any

import click

from fastsync.cli.options import TRANSFER, RuledCommand, with_options
from fastsync.cli.places import PLACE, Sources
from fastsync.cli.transfer import run_transfer

_NOT_HERE = (
    "manifest",
    "recursive",
    "ignore_times",
    "delete",
    "delete_excluded",
    "max_delete",
    "allow_empty_source",
)

_EXAMPLES = """\b
Examples:
  fastsync mv report.pdf archive/        into the directory archive
  fastsync mv photos /mnt/disk/          all of it, to /mnt/disk/photos
  fastsync mv photos/ album              the contents of photos
  fastsync mv --include '*.log' logs/ old/
  fastsync mv 's3://bucket/in/*.csv' s3://bucket/done/
"""


@click.command(cls=RuledCommand, epilog=_EXAMPLES)
@click.argument("sources", cls=Sources, type=PLACE, nargs=-1, required=True, metavar="SRC...")
@click.argument("destination", type=PLACE, metavar="DST")
@with_options([name for name in TRANSFER if name not in _NOT_HERE])
@click.pass_context
def mv(context: click.Context, /, sources: tuple[str, ...], destination: str, **values: Any) -> int:
    """Move files and directories: copies them, and removes each source when its copy is complete.

    What stands at the destination is replaced. A source stays if its copy failed, if an option had it
    skipped, or if it changed meanwhile.
    """

    def start(request: Any) -> Any:
        from fastsync.moving import run_mv

        return run_mv(sources, destination, request)

    return run_transfer(context, values, start, places=(sources, destination))
