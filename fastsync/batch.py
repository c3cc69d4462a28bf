"""Batches: many small runs, several at once, with one set of connections and one budget.

What each of them is, and that all of them can be understood, is for the caller to find out before the
first one starts. They are not in any order.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from fastsync.budget import Budget
from fastsync.bundles import LISTED_FROM, Bundle, directories_of, run_bundle
from fastsync.engine import TICK_S
from fastsync.errors import FastsyncError, UsageError, worst_exit
from fastsync.events import Item, Totals
from fastsync.foresight import Foresight
from fastsync.location import Location
from fastsync.session import Request, Shared
from fastsync.tally import KEPT_FAILURES, Summary
from fastsync.workers import run_all

# A line of one small file waits for answers most of the time; what moves is bounded by the budget.
_AT_ONCE: Final = 4


@dataclass(slots=True, eq=False, repr=False)
class Task:
    """A line of a batch: its number, from 1, its text, what was asked for in it, between which places (a
    removal has no `target`), and what runs it by itself. `between` has the directories of what may be one of
    a bundle, `above` others that more lines have in common (see `Foresight.above`)."""

    number: int
    text: str
    verb: str
    request: Request
    sources: Sequence[Location]
    target: Location | None
    start: Callable[[Request], Awaitable[Summary]]
    between: tuple[Location, Location] | None = None
    above: tuple[Location, Location, str] | None = None


class _Watch:
    """The observer of one line, or of several: tells the batch's, with the number of the line."""

    def __init__(self, batch: _Batch, tasks: Mapping[str, Task], number: int = 0) -> None:
        observer = batch.request.observer
        self._batch = batch
        self._tasks = tasks
        self._number = number
        self.told: dict[str, FastsyncError | None] = {}
        self._is_planned = False
        # One line is done when its run is; of several each is told of.
        self.wants_items = observer.wants_items or bool(tasks)
        self.wants_skips = observer.wants_skips or bool(tasks)

    def item(self, item: Item) -> None:
        observer, number = self._batch.request.observer, self._number
        if self._tasks:
            number = self._tasks[item.path].number
            self.told[item.path] = item.error
        if item.error is not None:
            item.error.where = f"{self._batch.name}:{number}: {item.error.where or item.path}"
        wanted = observer.wants_skips if item.operation == "skip" else observer.wants_items
        if wanted or item.error is not None:
            observer.item(item._replace(line=number))

    def note(self, text: str) -> None:
        line = f"{self._batch.name}:{self._number}: " if self._number else ""
        self._batch.request.observer.note(line + text)

    def progress(self, totals: Totals) -> None:
        self._batch.running[id(self)] = totals
        if not totals.scanning:
            self.planned()
        self._batch.tell()

    def planned(self) -> None:
        """What is to be done is known."""
        self._batch.unplanned -= not self._is_planned
        self._is_planned = True


class _Batch:
    """What the lines of a batch come to together."""

    def __init__(self, name: str, request: Request, shared: Shared) -> None:
        self.name = name
        self.request = request
        self.shared = shared
        # Of the runs that are under way.
        self.running: dict[int, Totals] = {}
        self.unplanned = 0  # runs of which it is not known yet what is to be done
        self.failures: list[Item] = []
        self.failed: list[Task] = []
        self.codes: list[int] = []
        self._ended = Totals()
        self._told_s = 0.0

    def tell(self) -> None:
        """Let the observer show the counts, if it is time: each of many runs asks for it."""
        if time.monotonic() - self._told_s >= TICK_S:
            self.request.observer.progress(self.totals())
            self._told_s = time.monotonic()

    def totals(self) -> Totals:
        """What has ended and what is under way."""
        totals = dataclasses.replace(self._ended, current={})
        for each in self.running.values():
            totals.add(each)
            totals.current.update(each.current)
        totals.scanning = self.unplanned > 0
        return totals

    async def run_alone(self, task: Task) -> None:
        """Run one line."""
        watch = _Watch(self, {}, task.number)
        try:
            done = await task.start(self._request(task.request, watch))
        except FastsyncError as error:
            item = Item("scan", task.verb, "", "", None, "", error=error)
            watch.item(item)
            done = Summary(Totals(failed=1), exit_code=error.exit_code, failures=[item])
        self._end(watch, done)
        self.codes.append(done.exit_code)
        if done.exit_code:
            self.failed.append(task)

    async def run_together(self, bundle: Bundle, tasks: Mapping[str, Task]) -> None:
        """Run lines of single files, `tasks` by the names of their sources."""
        watch = _Watch(self, tasks)
        try:
            done, alone = await run_bundle(bundle, self._request(bundle.request, watch))
        except FastsyncError:
            alone = list(tasks)  # each of them is to say so
            watch.planned()
        else:
            self._end(watch, done)
            lost = set(tasks).difference(alone, watch.told)
            if lost and done.failures and (error := done.failures[-1].error) is not None:
                # The run ended early, for a reason that would have met them as well.
                for name in lost:
                    self._lose(tasks[name], name, error)
        for name, error in watch.told.items():
            self.codes.append(0 if error is None else error.exit_code)
            if error is not None:
                self.failed.append(tasks[name])
        if alone:
            self.unplanned += len(alone)
            width = min(len(alone), _AT_ONCE * self.request.settings.jobs)
            await run_all(width, (self.run_alone(tasks[name]) for name in alone))

    def _lose(self, task: Task, name: str, error: FastsyncError) -> None:
        watch = _Watch(self, {}, task.number)
        self.unplanned += 1
        lost = type(error)(error.message, hint=error.hint)
        item = Item("copy", name, "", "", None, "", error=lost)
        watch.item(item)
        self._end(watch, Summary(Totals(failed=1), failures=[item]))
        self.codes.append(lost.exit_code)
        self.failed.append(task)

    def _request(self, request: Request, watch: _Watch) -> Request:
        return dataclasses.replace(request, observer=watch, shared=self.shared)

    def _end(self, watch: _Watch, done: Summary) -> None:
        self.running.pop(id(watch), None)
        watch.planned()
        self._ended.add(done.totals)
        self.failures.extend(done.failures[: KEPT_FAILURES - len(self.failures)])
        self.tell()


async def run_batch(
    tasks: Sequence[Task], name: str, request: Request
) -> tuple[Summary, list[Task]]:
    """Run the lines of the batch called `name`; what all did together, and those that failed. The exit code
    is 1 if some lines went well, and some did not. `request` has the budgets and the observer. Raises
    UsageError for a line that cannot be carried out, before the first one is."""
    started = time.monotonic()
    settings = request.settings
    shared = Shared(Budget(settings.parallel_streams), Budget(settings.buffer_size))
    batch = _Batch(name, request, shared)
    try:
        async with Foresight(shared) as foresight:
            for task in tasks:
                try:
                    await _foresee(foresight, task)
                except UsageError as error:
                    told = f"{error.where}: {error.message}" if error.where else error.message
                    where = f"{name}:{task.number}"
                    raise UsageError(told, where=where, hint=error.hint) from error
        units = list(_units(batch, tasks))
        batch.unplanned = len(units)
        await run_all(min(len(units), _AT_ONCE * settings.jobs), (unit() for unit in units))
    finally:
        await shared.aclose()
    totals = batch.totals()
    request.observer.progress(totals)
    batch.failed.sort(key=lambda task: task.number)
    is_mixed = 0 < len(batch.failed) < len(tasks)
    code = 1 if is_mixed else worst_exit(batch.codes)
    return Summary(totals, time.monotonic() - started, code, batch.failures), batch.failed


async def _foresee(foresight: Foresight, task: Task) -> None:
    """Find out between which directories a line copies, if it may be one of a bundle. Raises UsageError for
    what cannot be carried out."""
    request, target = task.request, task.target
    if task.verb == "cp" and len(task.sources) == 1 and target is not None:
        source = task.sources[0]
        task.between = directories_of(request, source, target)
        if task.between is not None:
            above = await foresight.tops(request, *task.between)
            if above is not None:
                task.between = above
                # Not the same, and not in the directory that holds it.
                apart = not source.path.startswith(target.path.rstrip("/"))
                if apart or source.host != target.host:
                    return
            elif await foresight.parts(request, *task.between):
                task.above = await foresight.above(request, source, task.between[1])
                return
    await foresight.refuse(task.verb, task.sources, target, request)


def _units(
    batch: _Batch, tasks: Sequence[Task]
) -> Iterator[Callable[[], Coroutine[Any, Any, None]]]:
    """What is run at once: copies of files between the same directories, and lines by themselves."""
    found: dict[tuple[int, Location, Location], list[tuple[Bundle, dict[str, Task]]]] = {}
    times: Counter[tuple[int, Location, Location, str]] = Counter()
    many = Counter((id(task.request), task.between) for task in tasks)
    for task in tasks:
        source, target = task.sources[0], task.target
        if task.between is None or target is None:
            yield partial(batch.run_alone, task)
            continue
        here, there = task.between
        names = source.name, target.name
        if task.above is not None and many[id(task.request), task.between] < LISTED_FROM:
            # Few have these two directories in common.
            here, there, path = task.above
            names = path, target.path.removeprefix("/")
        elif (here, there) != (source.parent(), target.parent()):
            names = source.path.removeprefix("/"), target.path.removeprefix("/")
        key = id(task.request), here, there
        same = found.setdefault(key, [])
        # A name that goes to two places goes twice: for the n-th time with the n-th bundle.
        turn = times[*key, names[0]]
        times[*key, names[0]] += 1
        if turn == len(same):
            same.append((Bundle(task.request, here, there), {}))
        into = same[turn]
        into[0].names[names[0]] = names[1]
        into[1][names[0]] = task
    for same in found.values():
        for bundle, members in same:
            yield partial(batch.run_together, bundle, members)
