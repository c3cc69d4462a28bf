"""What cp and sync have in common: from parameters to a request, a run and an exit code."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

import click

from fastsync.cli.options import resolved, rules_of

if TYPE_CHECKING:
    from fastsync.api import Request
    from fastsync.tally import Summary


def run_transfer(
    context: click.Context,
    values: Mapping[str, Any],
    start: Callable[[Request], Coroutine[Any, Any, Summary]],
) -> int:
    """Run what `start` makes of the request; the exit code."""
    settled = resolved(values)
    rules = rules_of(context, values)

    from fastsync.api import Request
    from fastsync.cli.logs import observer_for
    from fastsync.cli.render import Console
    from fastsync.cli.run import Interrupted, run

    settings = settled.settings
    console = Console(settings)
    for note in settled.notes:
        console.note(note)
    with observer_for(settings, console) as observer:
        request = Request(settings, rules, observer, settled.place_for)
        try:
            summary = run(start(request), console.interrupted)
        except Interrupted as interrupted:
            return interrupted.exit_code
        except BaseException:
            console.close()
            raise
        console.finish(summary)
    return summary.exit_code
