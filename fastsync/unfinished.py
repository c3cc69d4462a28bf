"""`jobs resume`: each file whose upload was cut off is asked for again, as it was then.

What was asked for is in the journal, but for secrets: those are of today, from the environment and the
configuration. A file goes on from where it was if it is still the same, and else begins anew.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator, Mapping

from fastsync.backend import Entry, closing
from fastsync.budget import Budget
from fastsync.errors import Changed, FastsyncError, Missing, Unsupported, UsageError, worst_exit
from fastsync.events import Item, Observer, Totals
from fastsync.journal import Origin, Record
from fastsync.leftovers import Left, drop_left, is_written_down, leftovers
from fastsync.location import Location, parse
from fastsync.plan import PlanPage, Step
from fastsync.session import ASKED_AGAIN, Request, Session, Shared, named
from fastsync.settings import SETTINGS, Settings, Side
from fastsync.tally import KEPT_FAILURES, Summary, Tally
from fastsync.work import Work
from fastsync.works import comparison_for, engine_for, file_at


class _Together:
    """The observer of runs one after the other: what they count goes on from where the last one ended."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.ended = Totals()
        self.wants_items = observer.wants_items
        self.wants_skips = observer.wants_skips

    def item(self, item: Item) -> None:
        self._observer.item(item)

    def note(self, text: str) -> None:
        self._observer.note(text)

    def progress(self, totals: Totals) -> None:
        sum_ = dataclasses.replace(self.ended, current=dict(totals.current), scanning=True)
        sum_.add(totals)
        self._observer.progress(sum_)


async def run_resume(request: Request, place: str | None = None) -> Summary:
    """Go on with what processes that are gone have left, with a `place` below it alone. What cannot be gone
    on with fails, and stays as it is. Raises UsageError, ListingError as `leftovers` does."""
    started = time.monotonic()
    settings = request.settings
    together = _Together(request.observer)
    shared = Shared(Budget(settings.parallel_streams), Budget(settings.buffer_size))
    asked = dataclasses.replace(request, observer=together, shared=shared)
    made = Summary(Totals())
    codes = []
    try:
        for left, record in await _cut_off(request, place):
            done = await _go_on(asked, left, record)
            together.ended.add(done.totals)
            codes.append(done.exit_code)
            made.failures.extend(done.failures[: KEPT_FAILURES - len(made.failures)])
            made.comparison = done.comparison or made.comparison
    finally:
        await shared.aclose()
    made.totals = together.ended
    made.totals.scanning = False
    made.exit_code = worst_exit(codes)
    made.duration_s = time.monotonic() - started
    request.observer.progress(made.totals)
    return made


async def _cut_off(request: Request, place: str | None) -> list[tuple[Left, Record]]:
    """The last upload of each file that nobody works on; a look at the file finds those before it."""
    found: dict[tuple[str, str], tuple[Left, Record]] = {}
    elsewhere = 0
    async with closing(leftovers(request, place, searches=False)) as lefts:
        async for left in lefts:
            record = left.record
            elsewhere += record is not None and left.state == "elsewhere"
            if record is not None and left.state == "gone":
                found[record.place, record.path] = left, record
    if elsewhere:
        request.observer.note(f"left to the machines that began them: {elsewhere:,} uploads")
    return list(found.values())


async def _go_on(request: Request, left: Left, record: Record) -> Summary:
    started = time.monotonic()
    try:
        done = await _run(request, left, _origin(record), record)
        is_over = not done.exit_code and not request.settings.dry_run
        if is_over and is_written_down(request, record):
            await drop_left(request, left, None)  # the file was there already
        return done
    except FastsyncError as error:
        tally = Tally(request.observer)
        origin = record.origin
        source = None if origin is None else parse(origin.source)
        tally.failed("copy", left.place.name, source, left.place, error)
        return tally.summary(time.monotonic() - started)


def _origin(record: Record) -> Origin:
    """Raises Unsupported where the journal does not say enough."""
    origin = record.origin
    again = "run the same command again, or drop it with fastsync jobs clean"
    if origin is None:
        raise Unsupported("it is not known what it is a copy of", hint=again)
    if parse(origin.source).is_stream:
        raise Unsupported("standard input cannot be read again", hint=again)
    if not origin.is_whole:
        raise Unsupported("secrets and backups of the run are not written down", hint=again)
    return origin


def _settings(request: Request, origin: Origin) -> Settings:
    """What was asked for then, the rest as it is today. Raises Unsupported."""
    options: dict[str, object] = {"resume": True}
    try:
        for name in ASKED_AGAIN:
            setting = SETTINGS[name]
            value = origin.options.get(name, setting.default)
            options[name] = setting.kind.from_caller(value)
        return dataclasses.replace(request.settings, **options)  # type: ignore[arg-type]
    except UsageError as error:
        raise Unsupported(f"the journal has an option that is none: {error.message}") from error


async def _run(request: Request, left: Left, origin: Origin, record: Record) -> Summary:
    settings_of = request.place_settings

    def place_settings(location: Location, side: Side) -> Mapping[str, str]:
        then = record.settings if side == "destination" else origin.settings
        return {**settings_of(location, side), **then}

    settings = _settings(request, origin)
    asked = dataclasses.replace(request, settings=settings, place_settings=place_settings)
    async with Session(asked) as session:
        source = parse(origin.source)
        store = await session.open(source, follow=True)
        entry = await named(session, store)
        if entry.kind == "dir":
            raise Missing("a directory stands where the file was", where=str(source))
        sink = await session.open_sink(parse(record.place))
        work = await file_at(session, store, sink, record.path)
        _spare_newer(work, record)
        done = await engine_for(session).run(_one(work))
        done.comparison = comparison_for(settings, store, sink)
        return done


def _spare_newer(work: Work, record: Record) -> None:
    """Have the run raise Changed where a file would be replaced that was written after the upload had begun:
    who named it then knew nothing of that one. Nor is one whose content might yet turn out to be the same,
    unless its time is the source's: who names the file again has that looked into."""
    pages, decide = work.pages, work.decide

    def check(step: Step, reason: str, old: Entry | None) -> None:
        is_open = step == "verify" and reason != "just written"
        if old is None or not (is_open or step == "copy"):
            return
        if max(old.mtime_ns or 0, old.stored_ns or 0) > record.noted_ns:
            raise Changed(
                "something newer stands there",
                where=str(parse(record.place).child(record.path)),
                hint="to replace it run the same command again, to keep it fastsync jobs clean",
            )

    async def checked() -> AsyncIterator[PlanPage]:
        async with closing(pages):
            async for page in pages:
                for action in page.now:
                    check(action.step, action.reason, action.old)
                yield page

    def decided(entry: Entry, old: Entry) -> tuple[Step, str]:
        step, reason = decide(entry, old)
        check(step, reason, old)
        return step, reason

    work.pages, work.decide = checked(), decided


async def _one(work: Work) -> AsyncIterator[Work]:
    yield work
