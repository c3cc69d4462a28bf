"""``fastsync stat``: tell all about a place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from fastsync.cli.options import (
    LOG,
    PLACES,
    WIRE,
    GroupedCommand,
    request_for,
    resolved,
    with_options,
)
from fastsync.cli.places import PLACE

if TYPE_CHECKING:
    from fastsync.listing import Details
    from fastsync.session import Request

_EXAMPLES = """\b
Examples:
  fastsync stat photos/beach.jpg
  fastsync stat --json s3://bucket/report.pdf     metadata, class, digests too
  fastsync stat --version-id ID s3://bucket/report.pdf
"""


@click.command(cls=GroupedCommand, epilog=_EXAMPLES)
@click.argument("places", type=PLACE, nargs=-1, required=True, metavar="PLACE...")
@with_options(("raw", "json", *WIRE, *LOG, *PLACES), rules=False)
@click.option("-L", "--copy-links", "links", flag_value="follow", help="what a link leads to")
def stat(places: tuple[str, ...], **values: Any) -> int:
    """Tell all that is known about places: kind, size, times, and what else their store keeps."""
    settled = resolved(values)

    from fastsync.cli.render import open_output
    from fastsync.cli.run import run_to_exit

    open_output()
    return run_to_exit(_print_all(places, request_for(settled)), settled.settings)


async def _print_all(places: tuple[str, ...], request: Request) -> int:
    from fastsync.cli.render import tell, write_text
    from fastsync.errors import FastsyncError, worst_exit
    from fastsync.listing import run_stat

    exit_codes: set[int] = set()
    for place in places:
        try:
            async for details in run_stat(place, request):
                as_json = request.settings.json
                write_text(_json(details) if as_json else "".join(_lines(details)))
        except FastsyncError as error:
            exit_codes.add(tell(error, as_json=request.settings.json))
    return worst_exit(exit_codes)


def _json(details: Details) -> str:
    from fastsync.cli.render import json_line, rfc3339

    entry = details.entry
    line = json_line(
        operation="stat",
        success=True,
        source=str(details.place),
        kind=entry.kind,
        size=entry.size,
        mtime=None if entry.mtime_ns is None else rfc3339(entry.mtime_ns),
        stored=None if entry.stored_ns is None else rfc3339(entry.stored_ns),
        mode=None if entry.mode is None else f"{entry.mode:04o}",
        target=entry.target,
        etag=entry.version,
        uid=None if entry.owner is None else entry.owner.uid,
        gid=None if entry.owner is None else entry.owner.gid,
        more=dict(details.more) or None,
    )
    return line + "\n"


def _lines(details: Details) -> Iterator[str]:
    from fastsync.cli.render import human_size, rfc3339
    from fastsync.names import printable

    entry = details.entry
    yield f"{printable(str(details.place))}\n"
    told: dict[str, str | None] = {
        "kind": entry.kind,
        "size": None if entry.size is None else f"{entry.size} ({human_size(entry.size)})",
        "modified": None if entry.mtime_ns is None else rfc3339(entry.mtime_ns),
        "stored": None if entry.stored_ns is None else rfc3339(entry.stored_ns),
        "mode": None if entry.mode is None else f"{entry.mode:04o}",
        "owner": None if entry.owner is None else f"{entry.owner.uid}:{entry.owner.gid}",
        "target": entry.target,
        "etag": entry.version,
        **details.more,
    }
    for name, value in told.items():
        if value is not None:
            yield f"  {printable(name)}: {printable(value)}\n"
