"""What verbs that change something have in common: from parameters to a request, a run and an exit code."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from fastsync.cli.options import request_for, resolved, rules_of

if TYPE_CHECKING:
    from fastsync.config import Resolved
    from fastsync.filters import Rule
    from fastsync.session import Request
    from fastsync.tally import Summary


def run_transfer(
    context: click.Context,
    values: Mapping[str, Any],
    start: Callable[[Request], Coroutine[Any, Any, Summary]],
    *,
    shows_progress: bool = True,
    places: tuple[Sequence[str], str] | None = None,
) -> int:
    """Run what `start` makes of the request; the exit code. `places` are the sources and the
    destination, of verbs that can explain themselves."""
    settled = resolved(values)
    rules = rules_of(context, values)

    from fastsync.cli.logs import observer_for
    from fastsync.cli.render import Console
    from fastsync.cli.run import Interrupted, run

    settings = settled.settings
    if not shows_progress:
        settings = dataclasses.replace(settings, progress=False)
    if settings.explain is not None and places is not None:
        return _explain(settled, rules, start, places)
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


def _explain(
    settled: Resolved,
    rules: Sequence[Rule],
    start: Callable[[Request], Coroutine[Any, Any, Summary]],
    places: tuple[Sequence[str], str],
) -> int:
    from fastsync.cli.render import json_line, write_text
    from fastsync.cli.run import Interrupted, run
    from fastsync.explaining import run_explain
    from fastsync.names import printable

    path, as_json = settled.settings.explain or "", settled.settings.json
    try:
        told = run(run_explain(path, *places, request_for(settled, rules), start), lambda: None)
    except Interrupted as interrupted:
        return interrupted.exit_code
    fields = {"operation": "explain", **told._asdict()}
    write_text((json_line(**fields) if as_json else printable(str(told))) + "\n")
    return told.exit_code
