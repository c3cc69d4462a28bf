"""``fastsync jobs``: uploads that were cut off, as the journal has them."""

from __future__ import annotations

from typing import Any

import click

from fastsync.cli.options import (
    PLACES,
    WIRE,
    GroupedCommand,
    request_for,
    resolved,
    with_options,
)
from fastsync.cli.places import PLACE
from fastsync.cli.transfer import run_transfer

_STATES = {"running": "running", "gone": "cut off", "elsewhere": "another machine"}

_EXAMPLES = """\b
Examples:
  fastsync jobs list        what is unfinished, and whose it is
  fastsync jobs clean -n    what would be dropped
  fastsync jobs clean       drop what nobody will finish
  fastsync jobs clean /mnt  the same there, temporary files too
"""


@click.group(invoke_without_command=True, epilog=_EXAMPLES)
@click.pass_context
def jobs(context: click.Context) -> int | None:
    """List and clean up uploads that were cut off, so that nobody pays for their parts.

    Without a word after it, lists them.
    """
    if context.invoked_subcommand is None:
        status: int = context.invoke(list_jobs, place=None)
        return status
    return None


@jobs.command("list", cls=GroupedCommand, epilog=_EXAMPLES)
@click.argument("place", type=PLACE, required=False)
@with_options(("json", *WIRE, *PLACES), rules=False)
def list_jobs(place: str | None, **values: Any) -> int:
    """Print each upload that is not finished: since when, whether its process lives, and where.

    With PLACE those below it alone, and the temporary files that are found there.
    """
    settled = resolved(values)

    from fastsync.backend import closing
    from fastsync.cli.render import json_line, local_time, open_output, rfc3339, tell, write_text
    from fastsync.cli.run import run_to_exit
    from fastsync.errors import ListingError
    from fastsync.leftovers import leftovers
    from fastsync.names import printable

    open_output()

    async def show() -> int:
        async with closing(leftovers(request_for(settled), place)) as found:
            async for left in found:
                where = str(left.place)
                if settled.settings.json:
                    since = rfc3339(left.since_ns)
                    fields = {"destination": where, "state": left.state, "pid": left.pid}
                    line = json_line(operation="job", success=True, **fields, since=since)
                    write_text(line + "\n")
                else:
                    state, when = _STATES[left.state], local_time(left.since_ns)
                    write_text(f"{when}  {state:<15}  pid {left.pid:<8} {printable(where)}\n")
        return 0

    async def main() -> int:
        try:
            return await show()
        except ListingError as error:
            return tell(error)

    return run_to_exit(main())


@jobs.command(cls=GroupedCommand, epilog=_EXAMPLES)
@click.argument("place", type=PLACE, required=False)
@click.option("--all", "everything", is_flag=True, help="those of other machines, too")
@with_options(("dry_run", "verbose", "quiet", "json", *WIRE, *PLACES), rules=False)
@click.pass_context
def clean(context: click.Context, /, place: str | None, everything: bool, **values: Any) -> int:
    """Drop unfinished uploads whose process is gone. Those that are under way stay.

    With PLACE those below it alone, and the temporary files that are found there.
    """

    def start(request: Any) -> Any:
        from fastsync.leftovers import run_clean

        return run_clean(request, place, everything=everything)

    return run_transfer(context, values, start, shows_progress=False)
