"""``fastsync jobs``: uploads that were cut off, as the journal has them."""

from __future__ import annotations

from typing import Any

import click

from fastsync.cli.options import WIRE, GroupedCommand, request_for, resolved, with_options
from fastsync.cli.transfer import run_transfer

_STATES = {"running": "running", "gone": "cut off", "elsewhere": "another machine"}

_EXAMPLES = """\b
Examples:
  fastsync jobs list        what is unfinished, and whose it is
  fastsync jobs clean -n    what would be dropped
  fastsync jobs clean       drop what nobody will finish
"""


@click.group(invoke_without_command=True, epilog=_EXAMPLES)
@click.pass_context
def jobs(context: click.Context) -> int | None:
    """List and clean up uploads that were cut off, so that nobody pays for their parts.

    Without a word after it, lists them.
    """
    if context.invoked_subcommand is None:
        status: int = context.invoke(list_jobs)
        return status
    return None


@jobs.command("list", cls=GroupedCommand, epilog=_EXAMPLES)
@with_options(("json",), rules=False)
def list_jobs(**values: Any) -> int:
    """Print each upload that is not finished: since when, whether its process lives, and where."""
    settled = resolved(values)

    from fastsync.cli.render import json_line, local_time, open_output, rfc3339, write_text
    from fastsync.leftovers import leftovers
    from fastsync.location import parse
    from fastsync.names import printable

    open_output()
    for record in leftovers(request_for(settled)):
        place = str(parse(record.place).child(record.path))
        state, pid = record.process.state(), record.process.pid
        if settled.settings.json:
            since = rfc3339(record.noted_ns)
            fields = {"destination": place, "state": state, "pid": pid, "since": since}
            write_text(json_line(operation="job", success=True, **fields) + "\n")
        else:
            when = local_time(record.noted_ns)
            write_text(f"{when}  {_STATES[state]:<15}  pid {pid:<8} {printable(place)}\n")
    return 0


@jobs.command(cls=GroupedCommand, epilog=_EXAMPLES)
@click.option("--all", "everything", is_flag=True, help="those of other machines, too")
@with_options(("dry_run", "verbose", "quiet", "json", *WIRE), rules=False)
@click.pass_context
def clean(context: click.Context, /, everything: bool, **values: Any) -> int:
    """Drop unfinished uploads whose process is gone. Those that are under way stay."""

    def start(request: Any) -> Any:
        from fastsync.leftovers import run_clean

        return run_clean(request, everything=everything)

    return run_transfer(context, values, start, shows_progress=False)
