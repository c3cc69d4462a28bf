"""``fastsync cp``: copy files and directories."""

from __future__ import annotations

from typing import Any

import click

from fastsync.cli.options import TRANSFER, RuledCommand, with_options
from fastsync.cli.places import PLACE, Sources
from fastsync.cli.transfer import run_transfer
from fastsync.location import STREAM

_NOT_HERE = ("delete", "delete_excluded", "max_delete", "allow_empty_source")

_EXAMPLES = """\b
Examples:
  fastsync cp report.pdf backup/             into the directory backup
  fastsync cp report.pdf copy.pdf            under a new name
  fastsync cp -R photos backup/              makes backup/photos
  fastsync cp -R photos/ backup              the contents of photos
  fastsync cp -p 16 big.iso /mnt/disk/       16 streams
  fastsync cp -R --exclude '*.tmp' src dst/  without some files
  fastsync cp -R photos s3://bucket/         makes s3://bucket/photos
  fastsync cp 's3://bucket/logs/*.gz' logs/  what wildcards mean
  tar c photos | fastsync cp - photos.tar    standard input
"""


@click.command(cls=RuledCommand, epilog=_EXAMPLES)
@click.argument("sources", cls=Sources, type=PLACE, nargs=-1, required=True, metavar="SRC...")
@click.argument("destination", type=PLACE, metavar="DST")
@with_options([name for name in TRANSFER if name not in _NOT_HERE])
@click.pass_context
def cp(context: click.Context, /, sources: tuple[str, ...], destination: str, **values: Any) -> int:
    """Copy files, and directories with -R, from one or more places to another.

    A destination that ends in "/", or is a directory, is copied into. Files that are the same already
    (size and time) are skipped; -I copies them anyway.
    """

    if destination == STREAM:
        from fastsync.cli.cat import write_out

        return write_out(sources, values)

    def start(request: Any) -> Any:
        from fastsync.copying import run_cp

        return run_cp(sources, destination, request)

    return run_transfer(context, values, start, places=(sources, destination))
