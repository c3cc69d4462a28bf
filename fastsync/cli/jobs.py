"""``fastsync jobs``: uploads that were cut off, as the journal has them."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from fastsync.cli.options import (
    LOG,
    OUTPUT,
    PLACES,
    WIRE,
    GroupedCommand,
    request_for,
    resolved,
    with_options,
)
from fastsync.cli.places import PLACE
from fastsync.cli.transfer import run_transfer

# How fast it goes is no part of what was asked for then.
_ENGINE = ("parallel_streams", "jobs", "bwlimit", "progress")
_STATES = {"running": "running", "gone": "cut off", "elsewhere": "another machine"}

_EXAMPLES = """\b
Examples:
  fastsync jobs list        what is unfinished, and whose it is
  fastsync jobs resume      go on with what was cut off
  fastsync jobs clean -n    what would be dropped
  fastsync jobs clean       drop what nobody will finish
  fastsync jobs clean /mnt  the same there, temporary files too
"""


@click.group(invoke_without_command=True, epilog=_EXAMPLES)
@click.pass_context
def jobs(context: click.Context) -> int | None:
    """List what was cut off, go on with it, or clean it up, so that nobody pays for its parts.

    Without a word after it, lists them.
    """
    if context.invoked_subcommand is None:
        status: int = context.invoke(list_jobs, place=None)
        return status
    return None


@jobs.command("list", cls=GroupedCommand, epilog=_EXAMPLES)
@click.argument("place", type=PLACE, required=False)
@with_options(("json", *WIRE, *LOG, *PLACES), rules=False)
def list_jobs(place: str | None, **values: Any) -> int:
    """Print each upload and download that is not finished.

    Since when, whether its process lives, how much is there, of what, and where. With PLACE those below
    it alone, and the temporary files and unfinished uploads that are found there.
    """
    settled = resolved(values)

    from fastsync.backend import closing
    from fastsync.cli.render import (
        Console,
        human_size,
        json_line,
        local_time,
        open_output,
        rfc3339,
        tell,
        write_text,
    )
    from fastsync.cli.run import run_to_exit
    from fastsync.errors import ListingError
    from fastsync.leftovers import leftovers
    from fastsync.names import printable

    open_output()

    async def show() -> int:
        console = Console(dataclasses.replace(settled.settings, progress=False))
        request = request_for(settled, observer=console)
        async with closing(leftovers(request, place)) as found:
            async for left in found:
                where = str(left.place)
                if settled.settings.json:
                    fields: dict[str, object] = {"source": left.source, "destination": where}
                    fields |= {"state": left.state, "pid": left.pid or None, "done": left.done}
                    fields |= {"size": left.size, "since": rfc3339(left.since_ns)}
                    told = {name: value for name, value in fields.items() if value is not None}
                    write_text(json_line(operation="job", success=True, **told) + "\n")
                else:
                    state, when = _STATES[left.state], local_time(left.since_ns)
                    pid = f"pid {left.pid}" if left.pid else ""
                    text = f"{when}  {state:<15}  {pid:<12} "
                    if left.done is not None and left.size is not None:
                        text += f"{human_size(left.done)} of {human_size(left.size)}  "
                    text += "" if left.source is None else f"{printable(left.source)} -> "
                    write_text(f"{text}{printable(where)}\n")
        return 0

    async def main() -> int:
        try:
            return await show()
        except ListingError as error:
            return tell(error)

    return run_to_exit(main(), settled.settings)


@jobs.command(cls=GroupedCommand, epilog=_EXAMPLES)
@click.argument("place", type=PLACE, required=False)
@with_options((*_ENGINE, *OUTPUT, *WIRE, *PLACES), rules=False)
@click.pass_context
def resume(context: click.Context, /, place: str | None, **values: Any) -> int:
    """Go on with files that were cut off, from where they were, as they were asked for.

    With PLACE those below it alone. Passwords and keys are those of today. What else the run would have
    copied or deleted, the same command does when it is run again.
    """

    def start(request: Any) -> Any:
        from fastsync.unfinished import run_resume

        return run_resume(request, place)

    return run_transfer(context, values, start)


@jobs.command(cls=GroupedCommand, epilog=_EXAMPLES)
@click.argument("place", type=PLACE, required=False)
@click.option("--all", "everything", is_flag=True, help="those of other machines, too")
@with_options(("dry_run", "verbose", "quiet", "json", *WIRE, *LOG, *PLACES), rules=False)
@click.pass_context
def clean(context: click.Context, /, place: str | None, everything: bool, **values: Any) -> int:
    """Drop unfinished uploads and downloads whose process is gone. What is under way stays.

    With PLACE those below it alone, and the temporary files that are found there.
    """

    def start(request: Any) -> Any:
        from fastsync.leftovers import run_clean

        return run_clean(request, place, everything=everything)

    return run_transfer(context, values, start, shows_progress=False)
