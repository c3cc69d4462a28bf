"""Moving: a copy, and when that is verified and committed, the end of its source.

A source goes only if a copy of exactly what was listed is there: not after a failure, not if it was
skipped for a difference, not if it changed meanwhile, and not if both turn out to be the same file.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from fastsync.backend import Entry, LocalFiles, Page, ScanOptions, Sink, Source, closing, offers
from fastsync.errors import (
    Changed,
    Conflict,
    FastsyncError,
    NotFound,
    UsageError,
    worst_exit,
)
from fastsync.events import Item, Observer, Totals
from fastsync.location import Location
from fastsync.patience import Luck, bad_luck
from fastsync.plan import PlanPage
from fastsync.removal import Remover
from fastsync.renaming import rename
from fastsync.session import Place, Request, Session, all_located, as_sink, located
from fastsync.spool import Spool
from fastsync.tally import Summary, Tally
from fastsync.work import Work
from fastsync.works import Works, engine_for

# Why a file is skipped that is there already; for any other reason the source stays.
_SAME = ("unchanged", "same checksum", "same content", "same target")
# Entries that are looked for in a listing at once: copies end in another order than they begin.
_AHEAD: Final = 65536


@dataclass(slots=True, eq=False, repr=False)
class _Moved:
    """A work, and those of its sources that have a copy by now."""

    source: Source
    sink: Sink
    work: Work
    pending: dict[str, Entry] = field(default_factory=dict)
    copied: Spool[Entry] = field(default_factory=Spool)


class _Watch:
    """The run's observer, and a record of what it was told about."""

    wants_items = True
    wants_skips = True

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._moved: dict[str, _Moved] = {}

    def item(self, item: Item) -> None:
        skipped = item.operation == "skip"
        moved = self._moved.pop(item.source, None)
        if moved is not None:
            entry = moved.pending.pop(item.source)
            if item.error is None and (not skipped or item.reason in _SAME):
                moved.copied.extend([entry])
        wanted = self._observer.wants_skips if skipped else self._observer.wants_items
        if wanted or item.error is not None:
            self._observer.item(item)

    def note(self, text: str) -> None:
        self._observer.note(text)

    def progress(self, totals: Totals) -> None:
        self._observer.progress(totals)

    async def watched(
        self, moved: _Moved, pages: AsyncIterator[PlanPage]
    ) -> AsyncIterator[PlanPage]:
        """The same pages, each with its entries remembered until their end is told."""
        location = moved.source.location
        async with closing(pages) as planned:
            async for page in planned:
                for action in (*page.now, *page.later, *page.skips):
                    if action.entry.kind in ("file", "link"):
                        place = str(location.child(action.entry.path))
                        moved.pending[place] = action.entry
                        self._moved[place] = moved
                yield page


async def run_mv(
    sources: Place | Sequence[Place],
    destination: Place,
    request: Request,
) -> Summary:
    """Move files and directories; what cannot be moved stays where it is and is in the summary.
    Raises UsageError before anything is touched."""
    locations, target = all_located(sources), located(destination)
    if not locations:
        raise UsageError("no source given")
    if any(location.is_stream for location in (*locations, target)):
        raise UsageError("standard input and output cannot be moved")
    started = time.monotonic()
    settings = request.settings
    watch = _Watch(request.observer)
    settings = dataclasses.replace(
        settings,
        recursive=True,
        # A move replaces: that something of the same size and time stands there proves little.
        ignore_times=not (settings.checksum or settings.size_only),
    )
    request = dataclasses.replace(request, settings=settings, observer=watch)
    async with Session(request) as session:
        engine = engine_for(session)
        works = Works(session, target)
        await works.add_all(locations, engine.unusable)
        for source in works.sources:
            as_sink(source)  # what cannot be removed cannot be moved
        await rename(session, works, engine)
        done: list[_Moved] = []

        async def made() -> AsyncIterator[Work]:
            async for work in works.made():
                moved = _Moved(work.source, work.sink, work)
                done.append(moved)
                work.pages = watch.watched(moved, work.pages)
                yield work

        try:
            summary = await engine.run(made())
            summary.comparison = works.comparison
            if settings.dry_run:
                return summary
            return await _remove_sources(session, summary, done, works, started)
        finally:
            for moved in done:
                moved.copied.close()


async def _remove_sources(
    session: Session,
    summary: Summary,
    done: Sequence[_Moved],
    works: Works,
    started: float,
) -> Summary:
    request = session.request
    tally = Tally(request.observer)
    tally.totals = summary.totals
    async with Remover(request, tally) as remover:
        for number, moved in enumerate(done):
            sink = as_sink(moved.source)
            look = _Look(moved, request, tally, remover.luck)
            try:
                async with closing(look.unchanged(works.list_again(number))) as batches:
                    async for batch in batches:
                        await remover.submit(sink, batch)
            except FastsyncError as error:
                tally.failed("scan", "", moved.source.location, None, error)
        await remover.drain()
        for location in works.directories:
            await _remove_directories(session, location, remover)
    tally.tell()
    ended = tally.summary(time.monotonic() - started)
    summary.duration_s = ended.duration_s
    summary.exit_code = worst_exit([summary.exit_code, ended.exit_code])
    summary.failures += ended.failures
    return summary


class _Look:
    """A last look at sources before they go: they still are what was copied, and not the copies."""

    def __init__(self, moved: _Moved, request: Request, tally: Tally, luck: Luck) -> None:
        self._luck = luck
        self._moved = moved
        self._tally = tally
        self._slots = asyncio.Semaphore(request.settings.jobs)
        self._directories: dict[str, FastsyncError | None] = {}

    async def unchanged(self, pages: AsyncIterator[Page] | None) -> AsyncIterator[list[Entry]]:
        """Those that may go. `pages` lists them all, in about the order in which they were copied; what
        is not met there, or all without it, is asked for one by one."""
        known: dict[str, Entry] = {}
        copied = self._moved.copied.pages()
        if pages is not None:
            async with closing(pages) as listed:
                async for entries, _ in listed:
                    known.update((entry.path, entry) for entry in next(copied, []))
                    while len(known) < _AHEAD and (page := next(copied, None)) is not None:
                        known.update((entry.path, entry) for entry in page)
                    pairs = [(known.pop(now.path, None), now) for now in entries]
                    met = [(entry, now) for entry, now in pairs if entry is not None]
                    yield [entry for entry, now in met if await self._may_go(entry, now)]
        yield await self._asked(list(known.values()))
        for page in copied:
            yield await self._asked(page)

    async def _asked(self, entries: Sequence[Entry]) -> list[Entry]:
        async def ask(entry: Entry) -> bool:
            source = self._moved.source
            if self._luck.over is not None:
                return False
            try:
                async with self._slots:
                    now = await source.stat(entry.path, follow=entry.kind == "file")
            except NotFound:
                return False  # somebody else has removed it
            except FastsyncError as error:
                self._luck.learn(0, bad_luck(error), error)
                return self._stays(entry, error)
            self._luck.learn(1, 0, None)
            return await self._may_go(entry, now)

        answers = await asyncio.gather(*map(ask, entries))
        return [entry for entry, may_go in zip(entries, answers, strict=True) if may_go]

    async def _may_go(self, entry: Entry, now: Entry) -> bool:
        if not _is_same(entry, now):
            return self._stays(entry, Changed("it changed after it was copied, and stays"))
        directory = entry.path.rpartition("/")[0]
        if entry.kind == "file" and directory not in self._directories:
            if len(self._directories) > _AHEAD:
                self._directories.clear()
            self._directories[directory] = await _identity(self._moved, entry)
        wrong = self._directories.get(directory)
        return wrong is None or self._stays(entry, copy.copy(wrong))

    def _stays(self, entry: Entry, error: FastsyncError) -> bool:
        place = self._moved.source.location.child(entry.path)
        self._tally.failed("delete", entry.path, None, place, error)
        return False


def _is_same(entry: Entry, now: Entry) -> bool:
    if (entry.kind, entry.target) != (now.kind, now.target):
        return False
    if entry.kind != "file":
        return True
    if entry.size != now.size or entry.version != now.version:
        return False
    times = ((entry.mtime_ns, now.mtime_ns), (entry.stored_ns, now.stored_ns))
    return all(then is None or later is None or then == later for then, later in times)


async def _identity(moved: _Moved, entry: Entry) -> FastsyncError | None:
    """Why a file, and its neighbours with it, must not go: a disk may have two paths to one directory (a
    mount, a name in other letters), and then the copy is the source."""
    source, sink = moved.source, moved.sink
    if not (offers(source, LocalFiles) and offers(sink, LocalFiles)):
        return None
    try:
        copied = await moved.sink.stat(moved.work.target(entry.path), follow=True)
        with contextlib.ExitStack() as opened:
            identities = set()
            for store, one in ((source, entry), (sink, copied)):
                file = await store.open_file(one)
                opened.callback(file.close)
                status = os.fstat(file.fileno())
                identities.add((status.st_dev, status.st_ino))
    except FastsyncError as error:
        return error
    if len(identities) == 1:
        return Conflict("source and destination are the same file, which stays")
    return None


async def _remove_directories(session: Session, location: Location, remover: Remover) -> None:
    """The directories that are empty by now, and with them the one that was named."""
    spool: Spool[Entry] = Spool()
    store = as_sink(await session.open(location))
    is_empty = True
    try:
        async with closing(store.scan(ScanOptions())) as pages:
            async for entries, faults in pages:
                directories = [entry for entry in entries if entry.kind == "dir"]
                # Not every store refuses to remove a directory that has something in it.
                is_empty = is_empty and not faults and len(directories) == len(entries)
                spool.extend(directories)
        await remover.directories(store, spool, may_stay=True)
        if is_empty and not location.is_directory_like:
            above = as_sink(await session.open(location.parent()))
            entry = await above.stat(location.name)
            if entry.kind == "dir":
                await remover.delete(above, [entry], may_stay=True)
    except NotFound:
        pass  # it went with what was in it
    except FastsyncError as error:
        remover.tally.failed("scan", "", location, None, error)
    finally:
        spool.close()
