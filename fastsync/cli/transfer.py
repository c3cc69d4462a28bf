"""What verbs that change something have in common: from parameters to a request, a run and an exit code."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from fastsync.cli.options import request_for, resolved, rules_of
from fastsync.errors import SafetyStop

if TYPE_CHECKING:
    from fastsync.config import Resolved
    from fastsync.events import Item
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
    if settings.interactive and not settings.dry_run and not _confirmed(settled, rules, start):
        return SafetyStop.exit_code
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
    from fastsync.redaction import redacted

    path, as_json = settled.settings.explain or "", settled.settings.json
    try:
        told = run(run_explain(path, *places, request_for(settled, rules), start), lambda: None)
    except Interrupted as interrupted:
        return interrupted.exit_code
    success = told.decision != "would fail"
    fields = {
        "operation": "explain",
        "success": success,
        **told._asdict(),
        "reason": redacted(told.reason),
    }
    write_text((json_line(**fields) if as_json else printable(redacted(str(told)))) + "\n")
    return told.exit_code


def _confirmed(
    settled: Resolved,
    rules: Sequence[Rule],
    start: Callable[[Request], Coroutine[Any, Any, Summary]],
) -> bool:
    """What the person at the terminal says of a run that has done nothing yet. Raises UsageError where
    there is nobody to ask."""
    from fastsync.cli.render import Console, intentions, write_error
    from fastsync.cli.run import Interrupted, run
    from fastsync.errors import UsageError

    if sys.stdin is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            "--interactive needs a terminal to ask at", hint="-n shows what would be done"
        )
    settings = dataclasses.replace(settled.settings, dry_run=True, progress=False, json=False)

    class Listener(Console):
        """What there is to do; told if somebody wants to know."""

        found = 0

        def item(self, item: Item) -> None:
            self.found += item.error is None and item.operation != "skip"
            if settings.verbose or item.error is not None:
                super().item(item)

    listener = Listener(settings)
    listener.wants_items = True
    asked = request_for(settled, rules, listener)
    try:
        summary = run(start(dataclasses.replace(asked, settings=settings)), lambda: None)
    except Interrupted:
        return False
    if not listener.found:
        return True  # nothing to ask about
    # What is not counted are directories that go.
    write_error(intentions(summary) or f"This would delete {listener.found:,} directories.")
    sys.stderr.write("Do it? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
