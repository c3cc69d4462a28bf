"""Batches: many small runs, several at once, with one set of connections and one budget.

What each of them is, and that all of them can be understood, is for the caller to find out before the
first one starts. They are not in any order.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from fastsync.budget import Budget
from fastsync.errors import FastsyncError, worst_exit
from fastsync.events import Item, Observer, Totals
from fastsync.session import Request, Shared
from fastsync.tally import KEPT_FAILURES, Summary
from fastsync.workers import run_all

# A line of one small file waits for answers most of the time; what moves is bounded by the budget.
_AT_ONCE: Final = 4


@dataclass(slots=True)
class Task:
    """A line of a batch: its number, from 1, its text, what was asked for in it, and what runs it."""

    number: int
    text: str
    verb: str
    request: Request
    start: Callable[[Request], Awaitable[Summary]]


class _Watch:
    """The observer of one line: tells the batch's, with the number of the line."""

    def __init__(self, observer: Observer, name: str, number: int) -> None:
        self._observer = observer
        self._name = name
        self._number = number
        self.wants_items = observer.wants_items
        self.wants_skips = observer.wants_skips

    def item(self, item: Item) -> None:
        if item.error is not None:
            item.error.where = f"{self._name}:{self._number}: {item.error.where or item.path}"
        self._observer.item(item._replace(line=self._number))

    def note(self, text: str) -> None:
        self._observer.note(f"{self._name}:{self._number}: {text}")

    def progress(self, totals: Totals) -> None:
        """Ignore: the batch tells of all lines together."""


async def run_batch(
    tasks: Sequence[Task], name: str, request: Request
) -> tuple[Summary, list[Task]]:
    """Run the lines of the batch called `name`; what all did together, and those that failed. The exit code
    is 1 if some lines went well, and some did not. `request` has the budgets and the observer."""
    started = time.monotonic()
    settings, observer = request.settings, request.observer
    shared = Shared(Budget(settings.parallel_streams), Budget(settings.buffer_size))
    totals, failures, failed = Totals(), list[Item](), list[Task]()
    codes: list[int] = []

    async def one(task: Task) -> None:
        watch = _Watch(observer, name, task.number)
        try:
            done = await task.start(
                dataclasses.replace(task.request, observer=watch, shared=shared)
            )
        except FastsyncError as error:
            item = Item("scan", task.verb, "", "", None, "", error=error)
            watch.item(item)
            done = Summary(Totals(failed=1), exit_code=error.exit_code, failures=[item])
        _add(totals, done.totals)
        failures.extend(done.failures[: KEPT_FAILURES - len(failures)])
        codes.append(done.exit_code)
        if done.exit_code:
            failed.append(task)
        observer.progress(totals)

    try:
        await run_all(min(len(tasks), _AT_ONCE * settings.jobs), (one(task) for task in tasks))
    finally:
        await shared.aclose()
    totals.scanning = False
    observer.progress(totals)
    failed.sort(key=lambda task: task.number)
    code = 1 if 0 < len(failed) < len(tasks) else worst_exit(codes)
    return Summary(totals, time.monotonic() - started, code, failures), failed


def _add(totals: Totals, more: Totals) -> None:
    for each in dataclasses.fields(Totals):
        if each.name not in ("scanning", "current"):
            setattr(totals, each.name, getattr(totals, each.name) + getattr(more, each.name))
