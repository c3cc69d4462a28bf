"""``fastsync mkdir``: make directories or buckets."""

from __future__ import annotations

from typing import Any

import click

from fastsync.cli.options import LOG, WIRE, GroupedCommand, request_for, resolved, with_options
from fastsync.cli.places import PLACE
from fastsync.settings import SETTINGS

_OPTIONS = (
    "json",
    *WIRE,
    *LOG,
    *(name for name, each in SETTINGS.items() if each.place == name and each.side is None),
)

_EXAMPLES = """\b
Examples:
  fastsync mkdir backup/2024/may
  fastsync mkdir s3://new-bucket --region eu-central-1
"""


@click.command(cls=GroupedCommand, epilog=_EXAMPLES)
@click.argument("places", type=PLACE, nargs=-1, required=True, metavar="PLACE...")
@click.option("-p", "--parents", is_flag=True, help="make those above, too (always so)")
@with_options(_OPTIONS, rules=False)
def mkdir(places: tuple[str, ...], parents: bool, **values: Any) -> int:
    """Make directories, with those above them, or buckets. One that is there already is fine."""
    settled = resolved(values)

    from fastsync.api import run_mkdir
    from fastsync.cli.render import item_json, write_text
    from fastsync.cli.run import run_to_exit
    from fastsync.events import Item
    from fastsync.location import parse

    async def make() -> int:
        for place in places:
            await run_mkdir(place, request_for(settled))
            if settled.settings.json:
                made = Item("mkdir", "", "", str(parse(place)), None, "asked for")
                write_text(item_json(made) + "\n")
        return 0

    return run_to_exit(make(), settled.settings)
