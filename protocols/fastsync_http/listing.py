"""Index pages as a listing: a walk in byte order that fetches ahead, and HEADs where pages are not exact."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, TypeAlias

from fastsync.backend import Entry, Fault, Page, ScanOptions
from fastsync.errors import FastsyncError, ListingError
from fastsync.names import path_key
from fastsync_http.pages import Index

# The page of a directory by its path; "" is the top.
Fetch: TypeAlias = Callable[[str], Awaitable[Index]]
# Files of which a page does not tell the size: what they are, or why that is not known.
Complete: TypeAlias = Callable[[Sequence[Entry]], Awaitable[Sequence[Entry | Fault]]]

PAGE: Final = 1000
# Directories that are fetched, or wait to be entered, at once.
AHEAD: Final = 16
# Names per round of HEADs.
HEADS: Final = 512
# A directory that leads back to itself nests for ever.
MAX_DEPTH: Final = 128
# So many take milliseconds to put in order, and a thread does it.
_MANY_ROWS: Final = 2000


class _Directory:
    """What is in one directory, in order. Files without a size are completed in rounds, one ahead."""

    def __init__(self, path: str, index: Index, complete: Complete) -> None:
        above = f"{path}/" if path else ""
        entries = [Entry(above + row.name, row.kind, row.size, row.mtime_ns) for row in index.rows]
        entries.sort(key=lambda entry: path_key(entry.path + "/" * (entry.kind == "dir")))
        self.items: list[Entry | Fault] = [*entries]
        self.faults = [Fault(above + name, error) for name, error in index.faults]
        self.directories = [entry.path for entry in entries if entry.kind == "dir"]
        self._complete = complete
        self._open = [
            number
            for number, entry in enumerate(entries)
            if entry.kind == "file" and entry.size is None
        ]
        self._answered = 0
        self._round: asyncio.Task[Sequence[Entry | Fault]] | None = None

    @property
    def settled(self) -> int:
        """Items before this one are complete."""
        return self._open[self._answered] if self._answered < len(self._open) else len(self.items)

    async def settle(self) -> None:
        """Complete a round of items, and begin with the next."""
        await self.settle_first()
        self._begin()

    async def settle_first(self) -> None:
        self._begin()
        if self._round is None:
            return
        answers = await self._round
        self._round = None
        for answer in answers:
            self.items[self._open[self._answered]] = answer
            self._answered += 1

    def _begin(self) -> None:
        numbers = self._open[self._answered : self._answered + HEADS]
        if self._round is None and numbers:
            asked = [item for number in numbers if isinstance(item := self.items[number], Entry)]
            self._round = asyncio.ensure_future(self._complete(asked))

    async def close(self) -> None:
        if self._round is not None:
            self._round.cancel()
            await asyncio.wait([self._round])


class Walk:
    """Everything below a directory.

    Directories are fetched ahead in the order in which they will be entered, which is that of their paths.
    One that is needed now is fetched at once, however many are ahead of it.
    """

    def __init__(self, fetch: Fetch, complete: Complete, options: ScanOptions) -> None:
        self._fetch = fetch
        self._complete = complete
        self._options = options
        self._tasks: dict[str, asyncio.Task[_Directory]] = {}
        self._order: list[tuple[bytes, str]] = []  # a heap
        self._waiting: set[str] = set()

    async def pages(self) -> AsyncIterator[Page]:
        """Raises what the top raises; what is wrong below is a fault."""
        entries: list[Entry] = []
        faults: list[Fault] = []
        stack: list[tuple[_Directory, int]] = []
        try:
            directory, number = await self._get(""), 0
            faults += directory.faults
            while True:
                while number == len(directory.items):
                    if not stack:
                        if entries or faults:
                            yield Page(entries, faults)
                        return
                    directory, number = stack.pop()
                must_wait = number >= directory.settled
                if len(entries) >= PAGE or (must_wait and entries):
                    yield Page(entries, faults)
                    entries, faults = [], []
                if must_wait:
                    await directory.settle()
                item = directory.items[number]
                number += 1
                if isinstance(item, Fault):
                    faults.append(item)
                    continue
                entries.append(item)
                if item.kind != "dir" or not self._enters(item.path):
                    continue
                if not self._is_ready(item.path):
                    yield Page(entries, faults)
                    entries, faults = [], []
                try:
                    inner = await self._get(item.path)
                except FastsyncError as error:
                    faults.append(Fault(item.path, _unlisted(error)))
                    continue
                stack.append((directory, number))
                directory, number = inner, 0
                faults += directory.faults
        finally:
            for place, _ in stack:
                await place.close()
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            for done in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(done, _Directory):
                    await done.close()

    def _enters(self, path: str) -> bool:
        options = self._options
        if not options.recursive:
            return False
        return options.prune is None or not options.prune(path)

    def _is_ready(self, path: str) -> bool:
        task = self._tasks.get(path)
        return task is not None and task.done()

    async def _get(self, path: str) -> _Directory:
        task = self._tasks.get(path) or self._begin(path)
        try:
            return await task
        finally:
            if task.done():
                self._tasks.pop(path, None)
                self._fetch_ahead()

    def _begin(self, path: str) -> asyncio.Task[_Directory]:
        self._waiting.discard(path)
        task = self._tasks[path] = asyncio.create_task(self._load(path))
        return task

    async def _load(self, path: str) -> _Directory:
        if path.count("/") >= MAX_DEPTH:
            raise ListingError("the directories are nested too deep")
        index = await self._fetch(path)
        if len(index.rows) < _MANY_ROWS:
            directory = _Directory(path, index, self._complete)
        else:
            directory = await asyncio.to_thread(_Directory, path, index, self._complete)
        for inner in directory.directories:
            if self._enters(inner):
                self._waiting.add(inner)
                heapq.heappush(self._order, (path_key(inner + "/"), inner))
        self._fetch_ahead()
        await directory.settle_first()
        return directory

    def _fetch_ahead(self) -> None:
        while self._order and len(self._tasks) < AHEAD:
            _, path = heapq.heappop(self._order)
            if path in self._waiting:
                self._begin(path)


def _unlisted(error: FastsyncError) -> ListingError:
    """A directory that is not listed is a gap, whatever the reason."""
    if isinstance(error, ListingError):
        return error
    return ListingError(
        f"the directory is not listed: {error.message}", where=error.where, hint=error.hint
    )
