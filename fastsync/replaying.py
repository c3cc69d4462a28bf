"""Carrying out a plan that was written to a file: each line of which the source or the destination is not as
planned is refused, and the rest is done.

Shards of a plan know nothing of each other. What has to wait for copies is all in the last one, which looks
first whether the lines of the others are done.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Final

from fastsync.backend import (
    Entry,
    Fault,
    KeepsDirectories,
    KeepsXattrs,
    ScanOptions,
    Sink,
    Source,
    closing,
    offers,
)
from fastsync.errors import (
    Changed,
    Conflict,
    FastsyncError,
    NameRefused,
    NotFound,
    SafetyStop,
    UsageError,
    Vanished,
)
from fastsync.location import parse
from fastsync.names import safe_parts
from fastsync.plan import NOT_IN_SOURCE, Action, DeleteGate, PlanPage, Step
from fastsync.planfile import (
    Line,
    Shard,
    Wrong,
    identities,
    read_lines,
    refuse_secrets,
    waits_for_copies,
)
from fastsync.session import Request, Session
from fastsync.settings import Settings
from fastsync.tally import Summary
from fastsync.work import Work
from fastsync.workers import run_all
from fastsync.works import backup_for, engine_for, kept, refuse_overlap, write_options

# Pairs of places in one file; each costs a pass over it.
MOST_PAIRS: Final = 100
# Files that go by another name; they stay in memory.
MOST_RENAMES: Final = 100_000
_PAGE: Final = 1000
_SECOND_NS: Final = 1_000_000_000
# A listing that has more to it, for each entry that is looked for, costs more than looks.
_MOST_FOR_EACH: Final = 4
_LISTED_FROM: Final = 16
_STEPS: Final[dict[str, Step]] = {
    "copy": "copy",
    "mkdir": "mkdir",
    "link": "link",
    "attributes": "attributes",
}


@dataclass(slots=True)
class _Pair:
    """Two places that lines of a plan are about."""

    source: Source
    sink: Sink
    renames: dict[str, str] = field(default_factory=dict)
    tree: int = (
        0  # the first line that is not about a single file, whose directories may be anywhere
    )
    root: Entry | None = None

    def check(self, line: Line) -> None:
        """Raises Wrong for a name that cannot be used between these stores."""
        if self.source.limits.raw_names and self.sink.limits.raw_names:
            return
        if not (line.path or line.read_from) and line.operation == "attributes" and line.to is None:
            if line.entry is not None and line.entry.kind == "dir":
                return  # the root
        try:
            for path in (line.path, line.read_from or line.path, line.to or line.path):
                safe_parts(path)
        except NameRefused as error:
            raise Wrong(error.message) from error

    def refuse_same(self, line: Line) -> None:
        """Raises Wrong for a file that would be copied onto itself."""
        ours, theirs = (store.address().rstrip("/") for store in (self.source, self.sink))
        if f"{ours}/{line.read_from}".rstrip("/") == f"{theirs}/{line.to}":
            raise Wrong("source and destination are the same file")


async def run_planned(
    file: IO[bytes], name: str, request: Request, shard: Shard | None = None
) -> Summary:
    """Carry out the plan in `file`, which can be read twice and is called `name`. Raises UsageError before
    anything is touched. What changed since it was planned is a failure of the kind Changed."""
    async with Session(request) as session:
        pairs: dict[tuple[str, str], _Pair] = {}
        renames = 0
        for number, line in read_lines(file, name):
            if not number % _PAGE:
                await asyncio.sleep(0)  # an interrupt is heard meanwhile
            key = (line.source, line.destination)
            try:
                if key not in pairs:
                    if len(pairs) >= MOST_PAIRS:
                        raise Wrong(f"more than {MOST_PAIRS} pairs of places in one file")
                    pairs[key] = await _opened(session, *key)
                pair = pairs[key]
                pair.check(line)
                if line.to is not None:
                    pair.refuse_same(line)
                    renames += 1
                    if pair.renames.setdefault(line.path, line.to) != line.to:
                        raise Wrong("the file has got two names in this plan")
                    if renames > MOST_RENAMES:
                        raise Wrong(f"more than {MOST_RENAMES} files with new names in one file")
                else:
                    pair.tree = pair.tree or number
                    if line.operation == "attributes" and not line.path:
                        pair.root = line.entry
            except Wrong as error:
                raise UsageError(
                    str(error), where=f"{name}:{number}", hint="nothing was done"
                ) from error
            except UsageError as error:
                raise _in_line(error, f"{name}:{number}") from error
        for pair in pairs.values():
            if pair.tree:
                try:
                    refuse_overlap(pair.source, pair.sink)
                except UsageError as error:
                    raise _in_line(error, f"{name}:{pair.tree}") from error
        return await engine_for(session).run(_works(session, file, name, pairs, shard))


def _in_line(error: UsageError, line: str) -> UsageError:
    told = f"{error.where}: {error.message}" if error.where else error.message
    return UsageError(told, where=line, hint=error.hint)


async def _opened(session: Session, source: str, destination: str) -> _Pair:
    locations = parse(source), parse(destination)
    for location in locations:
        if location.is_stream:
            raise Wrong("standard input and output have no place in a plan")
        refuse_secrets(location)
    sink = await session.open_sink(locations[1])
    write_options(session.request.settings, sink)  # refused now rather than half way
    # Followed: a link that somebody named is a file in a plan; the validators say which.
    return _Pair(await session.open(locations[0], follow=True), sink)


async def _works(
    session: Session,
    file: IO[bytes],
    name: str,
    pairs: dict[tuple[str, str], _Pair],
    shard: Shard | None,
) -> AsyncIterator[Work]:
    settings = session.request.settings
    for key, pair in pairs.items():
        write = write_options(settings, pair.sink, pair.source)
        if pair.sink.limits.conditional_writes:
            write = dataclasses.replace(write, guarded=True)
        if (
            pair.root is not None
            and not settings.dry_run
            and isinstance(pair.sink, KeepsDirectories)
        ):
            for error in await pair.sink.make_directories([pair.root], write):
                if error is not None:
                    raise error
        yield Work(
            pair.source,
            pair.sink,
            _pages(partial(read_lines, file, name), key, pair, shard, settings),
            write,
            gate=DeleteGate(percent=100.0, allow_empty_source=True),
            rename=partial(_renamed, pair.renames) if pair.renames else None,
            root=pair.root,
            directory_times=settings.dir_times,
            protects=True,  # lines may have been taken out
            vet=_Vet(pair, settings.jobs, is_dry=settings.dry_run),
            backup=await _backup(session, pair),
            xattrs=kept(session.request, settings.xattrs, KeepsXattrs, pair.source, pair.sink),
        )


async def _backup(session: Session, pair: _Pair) -> Sink | None:
    # A single file is read from anywhere.
    read = pair.source if pair.tree else pair.sink
    return await backup_for(session, read, pair.sink, pair.sink.location)


async def _pages(
    lines: Callable[[], Iterator[tuple[int, Line]]],
    key: tuple[str, str],
    pair: _Pair,
    shard: Shard | None,
    settings: Settings,
) -> AsyncIterator[PlanPage]:
    page, count = PlanPage(), 0
    waits = False
    for number, line in lines():
        if (line.source, line.destination) != key:
            continue
        if shard is not None and not shard.has(number, line):
            continue
        waits = waits or waits_for_copies(line)
        if line.operation == "delete":
            assert line.old is not None
            page.deletes.append(line.old)
            if settings.dry_run and not line.reason.startswith(NOT_IN_SOURCE):
                page.reasons[line.path] = line.reason
        elif line.path:  # the root is the work's
            assert line.entry is not None
            action = Action(_STEPS[line.operation], line.path, line.entry, line.old, line.reason)
            if line.operation == "attributes" and line.entry.kind == "dir":
                page.finish.append(action)
            elif line.late:
                page.later.append(action)
            else:
                page.now.append(action)
        count += 1
        if count % _PAGE == 0:
            page.scanned = _PAGE
            yield page
            page = PlanPage()
    page.scanned = count % _PAGE
    if shard is not None and shard.count > 1 and waits and not settings.dry_run:
        others = (
            line
            for number, line in lines()
            if (line.source, line.destination) == key and not shard.has(number, line)
        )
        fault = await _missing(pair, others, settings.jobs)
        page.faults += [] if fault is None else [fault]
    yield page


async def _missing(pair: _Pair, lines: Iterator[Line], width: int) -> Fault | None:
    """Why what waits for the lines of other shards has to wait longer, None when they are all done."""
    undone: list[str] = []

    async def look(line: Line) -> None:
        if not await _is_done(pair.sink, line):
            undone.append(line.path if line.to is None else line.to)

    await run_all(width, (look(line) for line in lines))
    if not undone:
        return None
    told = "a line is" if len(undone) == 1 else f"{len(undone)} lines are"
    return Fault(
        min(undone),
        SafetyStop(f"{told} not done that other shards have", hint="run the last shard after them"),
    )


async def _is_done(sink: Sink, line: Line) -> bool:
    """Whether what a line wants stands at the destination, as far as a look can tell. Attributes may wait."""
    entry, old = line.entry, line.old
    if entry is None or line.operation == "attributes":
        return True
    try:
        now = await sink.stat(line.path if line.to is None else line.to)
    except FastsyncError:
        return False
    if now.kind != entry.kind or (entry.kind == "link" and now.target != entry.target):
        return False
    if entry.kind != "file":
        return True
    if entry.size is not None and entry.size != now.size:
        return False
    step = sink.limits.mtime_step_ns
    if step is not None and entry.mtime_ns is not None and now.mtime_ns is not None:
        # What the destination does not tell apart is the same.
        return abs(entry.mtime_ns - now.mtime_ns) < max(step, _SECOND_NS)
    return old is None or not same(old, now)


def _renamed(renames: dict[str, str], path: str) -> str:
    return renames.get(path, path)


class _Vet:
    """Says whether what a line is about is still what it was; see `Work.vet`."""

    def __init__(self, pair: _Pair, jobs: int, *, is_dry: bool) -> None:
        self._pair = pair
        self._jobs = jobs
        self._is_dry = is_dry

    async def __call__(self, items: Sequence[Action | Entry]) -> list[FastsyncError | None]:
        answers: list[FastsyncError | None] = [None] * len(items)
        for index in await self._replaced(items):
            answers[index] = Changed("another file stands there than was planned")
        listed = await self._listed([item for item in items if isinstance(item, Entry)])

        async def look(index: int) -> None:
            try:
                await self._look(items[index], listed)
            except FastsyncError as error:
                answers[index] = error

        await run_all(self._jobs, (look(index) for index in range(len(items))))
        return answers

    async def _replaced(self, items: Sequence[Action | Entry]) -> list[int]:
        """Which of them are about files that others took the place of, where a store tells."""
        pair = self._pair
        sources, targets = list[tuple[int, Entry]](), list[tuple[int, Entry]]()
        for index, item in enumerate(items):
            if isinstance(item, Entry):
                targets.append((index, item))
                continue
            sources.append((index, item.entry))
            if item.old is not None:
                targets.append((index, item.old))
        replaced = []
        for store, looked in ((pair.source, sources), (pair.sink, targets)):
            known = [(index, entry) for index, entry in looked if entry.version is not None]
            ids = await identities(store, [entry for _, entry in known])
            for (index, entry), now in zip(known, ids, strict=True):
                if now is not None and now != entry.version:
                    replaced.append(index)
        return replaced

    async def _listed(self, entries: Sequence[Entry]) -> dict[str, Entry]:
        """Entries of the destination, if a listing tells of many at once; {} where it does not."""
        sink = self._pair.sink
        if len(entries) < _LISTED_FROM or offers(sink, KeepsDirectories):
            return {}
        wanted = {entry.path for entry in entries}
        left = _PAGE + _MOST_FOR_EACH * len(wanted)
        found: dict[str, Entry] = {}
        start = os.path.commonprefix(list(wanted))  # noqa: RUF071 - a prefix is all that counts
        options = ScanOptions(missing_ok=True, starting_with=start, raw=sink.limits.raw_names)
        try:
            async with closing(sink.scan(options)) as pages:
                async for page in pages:
                    found |= {entry.path: entry for entry in page.entries if entry.path in wanted}
                    left -= len(page.entries)
                    if left < 0:
                        break
        except FastsyncError:
            return {}
        return found

    async def _look(self, item: Action | Entry, listed: Mapping[str, Entry]) -> None:
        if isinstance(item, Entry):
            now = listed.get(item.path)
            if now is None or not same(item, now):
                await self._destination(item.path, item, may_be_gone=True)
            return
        entry, old = item.entry, item.old
        is_copy = item.step == "copy" and not self._is_dry
        if not is_copy:
            # A read is bound to the version that is planned, by the store itself.
            await self._source(entry)
        if is_copy and self._pair.sink.limits.conditional_writes:
            if old is None or (old.kind == "file" and old.version is not None):
                return  # so is a write
        to = self._pair.renames.get(item.path, item.path)
        if old is not None:
            # What was of another kind is deleted by now.
            await self._destination(to, old, may_be_gone=old.kind != entry.kind)
            return
        try:
            now = await self._pair.sink.stat(to)
        except (NotFound, Conflict):
            return
        if item.step != "mkdir" or now.kind != "dir":
            raise Changed(
                "there is something now, and there was nothing when it was planned",
                where=str(self._pair.sink.location.child(to)),
            )

    async def _source(self, entry: Entry) -> None:
        store = self._pair.source
        where = str(store.location.child(entry.path))
        try:
            now = await store.stat(entry.path, follow=entry.kind != "link")
        except NotFound as error:
            raise Vanished("the source is gone since it was planned", where=where) from error
        if not same(entry, now):
            raise Changed("the source changed since it was planned", where=where)

    async def _destination(self, path: str, old: Entry, *, may_be_gone: bool) -> None:
        store = self._pair.sink
        where = str(store.location.child(path))
        try:
            now = await store.stat(path)
        except NotFound as error:
            if may_be_gone:
                return
            raise Changed("the destination is gone since it was planned", where=where) from error
        if not same(old, now):
            raise Changed("the destination changed since it was planned", where=where)


def same(planned: Entry, now: Entry) -> bool:
    """True when an entry is, as far as both looks at it can tell, what it was."""
    if planned.kind != now.kind:
        return False
    if planned.kind == "dir":
        return True
    if planned.kind == "link":
        return planned.target == now.target
    if planned.version is not None and now.version is not None:
        return planned.version == now.version
    return all(
        ours is None or theirs is None or ours == theirs
        for ours, theirs in ((planned.size, now.size), (planned.mtime_ns, now.mtime_ns))
    )
