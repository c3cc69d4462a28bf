"""``fastsync presign``: print a link that lets others in for a while."""

from __future__ import annotations

from typing import Any

import click

from fastsync.cli.options import LOG, PLACES, GroupedCommand, request_for, resolved, with_options
from fastsync.cli.places import PLACE

_EXAMPLES = """\b
Examples:
  fastsync presign s3://bucket/report.pdf
  fastsync presign --expires-in 7d s3://bucket/report.pdf
  fastsync presign --method PUT s3://bucket/inbox/upload.bin
"""


@click.command(cls=GroupedCommand, epilog=_EXAMPLES)
@click.argument("place", type=PLACE, metavar="PLACE")
@click.option("--expires-in", metavar="TIME", default="3h", show_default=True, help="how long")
@click.option(
    "--method",
    type=click.Choice(["GET", "HEAD", "PUT", "DELETE"], case_sensitive=False),
    default="GET",
    help="what the link allows, GET by default",
)
@with_options(("json", *LOG, *PLACES), rules=False)
def presign(place: str, expires_in: str, method: str, **values: Any) -> int:
    """Print a link that works without credentials until it expires. Whoever has it can use it."""
    settled = resolved(values)

    from fastsync.api import run_presign
    from fastsync.cli.render import json_line
    from fastsync.cli.run import run_to_exit
    from fastsync.errors import UsageError
    from fastsync.values import parse_duration

    seconds = parse_duration(expires_in)
    if seconds < 1:
        raise UsageError("a link must work for a second at least", where="--expires-in")

    async def sign() -> int:
        request = request_for(settled)
        link = await run_presign(place, request, expires_in=seconds, method=method)
        if settled.settings.json:
            told = {"source": place, "url": link, "method": method}
            expires_in = f"{seconds:.3f}s"
            link = json_line(operation="presign", success=True, **told, expires_in=expires_in)
        click.echo(link)
        return 0

    return run_to_exit(sign(), settled.settings)
