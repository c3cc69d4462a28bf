"""``fastsync du``: add up files and bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fastsync.cli.options import (
    LOG,
    PLACES,
    WIRE,
    RuledCommand,
    request_for,
    resolved,
    rules_of,
    with_options,
)
from fastsync.cli.places import PLACE

if TYPE_CHECKING:
    from fastsync.listing import Usage
    from fastsync.session import Request

_EXAMPLES = """\b
Examples:
  fastsync du -H photos                 one line: bytes, files, place
  fastsync du -H --max-depth 1 photos   a line for each directory in it, too
  fastsync du 's3://bucket/logs/*.gz'   what wildcards mean
"""


@click.command(cls=RuledCommand, epilog=_EXAMPLES)
@click.argument("places", type=PLACE, nargs=-1, metavar="[PLACE...]")
@with_options(
    (
        *("raw", "min_size", "max_size", "min_age", "max_age", "json", "human_readable"),
        *(*WIRE, *LOG, *PLACES),
    )
)
@click.option(
    "--max-depth",
    "levels",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="directories so many levels down, each with all that is in it; 0 is the place alone",
)
@click.option("-L", "--copy-links", "links", flag_value="follow", help="what links lead to, too")
@click.pass_context
def du(context: click.Context, /, places: tuple[str, ...], levels: int, **values: Any) -> int:
    """Add up the files at and below places, and their bytes (not the blocks they take)."""
    settled = resolved(values)
    rules = rules_of(context, values)

    from dataclasses import replace

    from fastsync.cli.render import open_output
    from fastsync.cli.run import run_to_exit

    request = request_for(settled, rules)
    # The depth of the listing would leave files out of the sums.
    request = replace(request, settings=replace(request.settings, max_depth=None))
    open_output()
    return run_to_exit(_print_all(places or (".",), request, levels), settled.settings)


async def _print_all(places: tuple[str, ...], request: Request, levels: int) -> int:
    from fastsync.backend import Fault
    from fastsync.cli.render import tell, write_text
    from fastsync.errors import FastsyncError, worst_exit
    from fastsync.listing import run_du
    from fastsync.location import as_shown

    exit_codes: set[int] = set()
    for place in places:
        try:
            async for found in run_du(place, request, levels):
                if isinstance(found, Fault):
                    exit_codes.add(tell(found.error, as_json=request.settings.json))
                else:
                    write_text(_line(as_shown(place), found, request))
        except FastsyncError as error:
            exit_codes.add(tell(error, as_json=request.settings.json))
    return worst_exit(exit_codes)


def _line(place: str, usage: Usage, request: Request) -> str:
    from fastsync.cli.render import human_size, json_line
    from fastsync.names import printable

    settings = request.settings
    if settings.json:
        fields = usage._asdict()
        return json_line(operation="du", success=True, source=place, **fields) + "\n"
    size = human_size(usage.size) if settings.human_readable else str(usage.size)
    slash = "" if not usage.path or place.endswith("/") else "/"
    return f"{size:>14} {usage.files:>10} files  {printable(place + slash + usage.path)}\n"
