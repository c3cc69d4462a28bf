"""``fastsync sync``: make a destination like a source."""

from __future__ import annotations

from typing import Any

import click

from fastsync.cli.options import TRANSFER, RuledCommand, with_options
from fastsync.cli.places import PLACE
from fastsync.cli.transfer import run_transfer

_EXAMPLES = """\b
Examples:
  fastsync sync docs /backup/docs            new and changed files
  fastsync sync --delete docs /backup/docs   and delete what is only there
  fastsync sync -n --delete docs /backup     what that would do
  fastsync sync -a /home /mnt/home           owners and directory times too
  fastsync sync --checksum a b               compare content
  fastsync sync --include '*.jpg' photos b   only some files
  fastsync sync --delete site s3://bucket/   a bucket like a directory
"""


@click.command(cls=RuledCommand, epilog=_EXAMPLES)
@click.argument("source", type=PLACE, metavar="SRC")
@click.argument("destination", type=PLACE, metavar="DST")
@with_options([name for name in TRANSFER if name != "recursive"])
@click.pass_context
def sync(context: click.Context, /, source: str, destination: str, **values: Any) -> int:
    """Make DST like SRC: contents into contents, whatever the trailing slashes.

    Deletes nothing without --delete, and with it only after every listing and every copy went well.
    """

    def start(request: Any) -> Any:
        from fastsync.copying import run_sync

        return run_sync(source, destination, request)

    return run_transfer(context, values, start, places=([source], destination))
