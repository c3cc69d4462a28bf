"""What verbs that change something have in common: from parameters to a request, a run and an exit code."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

import click

from fastsync.cli.options import request_for, resolved, rules_of

if TYPE_CHECKING:
    from fastsync.session import Request
    from fastsync.tally import Summary


def run_transfer(
    context: click.Context,
    values: Mapping[str, Any],
    start: Callable[[Request], Coroutine[Any, Any, Summary]],
    *,
    shows_progress: bool = True,
) -> int:
    """Run what `start` makes of the request; the exit code."""
    settled = resolved(values)
    rules = rules_of(context, values)

    from fastsync.cli.logs import observer_for
    from fastsync.cli.render import Console
    from fastsync.cli.run import Interrupted, run

    settings = settled.settings
    if not shows_progress:
        settings = dataclasses.replace(settings, progress=False)
    console = Console(settings)
    for note in settled.notes:
        console.note(note)
    with observer_for(settings, console) as observer:
        request = request_for(settled, rules, observer)
        try:
            summary = run(start(request), console.interrupted)
        except Interrupted as interrupted:
            return interrupted.exit_code
        except BaseException:
            console.close()
            raise
        console.finish(summary)
    return summary.exit_code
