"""Files to standard output: fetched by many ranged reads at once, written in order.

A piece is a range of a file on its way. It gets its memory in the order of the output, so the one that
is needed next always has its own, and a slow reader of the output holds back the fetching: every further
piece waits for the memory of one that is written. Pieces wait in files without a name, in memory
(memfd_create(2)), from which the kernel hands their pages to a pipe without copying them; what does not go
to a pipe waits in memory of our own, which is used again and again: new pages cost as much as a copy.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from fastsync.backend import (
    READ_BUFFER,
    ChecksInOrder,
    Download,
    Downloads,
    Entry,
    LocalFiles,
    PinnedFile,
    ReadsIntoFile,
    ReadsIntoMemory,
    ScanOptions,
    Source,
    closing,
    offers,
    reads_ranges,
)
from fastsync.budget import Budget
from fastsync.config import BUILT_IN, Resolved
from fastsync.errors import (
    Changed,
    FastsyncError,
    IntegrityError,
    UsageError,
    from_os_error,
)
from fastsync.events import Totals
from fastsync.location import Location
from fastsync.patience import Patience
from fastsync.session import Place, Request, Session, all_located, named
from fastsync.settings import Settings
from fastsync.streams import Output, StandardInput
from fastsync.tally import Summary
from fastsync.widening import Widening
from fastsync.wildcards import Wildcard, find, something

R = TypeVar("R")

LONGEST_BACKOFF_S: Final = 5.0
# What is built in for this verb.
CAT_DEFAULTS: Final = {"chunk_size": 8 << 20, "retry_count": 3}
TICK_S: Final = 0.125


def cat_settings(found: Resolved) -> Settings:
    """The settings that were found; where nobody said how much to hold in memory, it is what is fetched
    at once, and as much again that waits for its turn."""
    settings = found.settings
    if not found.origins["buffer_size"].startswith(BUILT_IN):
        return settings
    pieces = 2 * settings.parallel_streams
    return dataclasses.replace(settings, buffer_size=pieces * settings.chunk_size)


class _File(NamedTuple):
    source: Source
    entry: Entry

    @property
    def where(self) -> str:
        return str(self.source.location.child(self.entry.path))


@dataclass(slots=True, eq=False, repr=False)
class _Piece:
    """A range of an open file, or of `memory`, to be written, once it is `fetched`; `end` is called when it
    is."""

    where: str
    fd: int
    start: int
    stop: int
    end: Callable[[], None]
    memory: memoryview | None = None
    fetched: asyncio.Task[None] | None = None
    shown: Callable[[memoryview], None] | None = None  # is to see the bytes first
    check: Callable[[], Awaitable[None]] | None = None  # before it is written
    check_after: Callable[[], None] | None = None


async def run_cat(
    places: Place | Sequence[Place],
    request: Request,
    output: int,
    *,
    offset: int = 0,
    count: int | None = None,
) -> Summary:
    """Write the files at `places`, or the bytes from `offset` on of each (`count` of them at the most),
    to the descriptor `output`. Raises what is wrong with the first that is; what came before it is
    written by then, and none of it where that can be known before."""
    locations = all_located(places)
    if not locations:
        raise UsageError("no place given")
    if request.settings.checksum_of is not None and (offset or count is not None):
        raise UsageError(
            "--checksum-of is about whole files", hint="leave out --offset and --count, or this"
        )
    async with Session(request) as session:
        run = _Cat(session, Output(output), offset, count)
        started = time.monotonic()
        ticker = asyncio.create_task(run.tick())
        try:
            async with run.widening.watched():
                await run.write_all(locations)
        finally:
            ticker.cancel()
            await asyncio.wait([ticker])
        request.observer.progress(run.totals)
        return Summary(run.totals, duration_s=time.monotonic() - started)


class _Cat:
    def __init__(self, session: Session, output: Output, offset: int, count: int | None) -> None:
        self._session = session
        self._output = output
        self._offset = offset
        self._count = count
        settings = session.request.settings
        self._retries = settings.retry_count
        self._memory = Budget(settings.buffer_size)
        self.widening = Widening(settings.parallel_streams)
        self._streams = self.widening.streams
        # A piece and the read that fills it must fit into the memory together.
        self._pace = session.pace
        step = None if self._pace is None else self._pace.step()
        self._chunk = max(1, min(settings.chunk_size, settings.buffer_size // 2, step or 1 << 62))
        # Small files take little memory, but a descriptor each.
        self._queue: asyncio.Queue[_Piece | None] = asyncio.Queue(
            max(64, 2 * settings.parallel_streams)
        )
        self._tasks: set[asyncio.Task[None]] = set()
        # Memory of whole pieces that are written, for the next.
        self._spare: list[bytearray] = []
        self.totals = Totals()

    async def tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._session.request.observer.progress(self.totals)

    async def write_all(self, places: Sequence[Location]) -> None:
        producer = asyncio.create_task(self._produce(places))
        try:
            while (piece := await self._queue.get()) is not None:
                await self._write(piece)
            await producer
        finally:
            self._output.stop()
            tasks = [producer, *self._tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            while not self._queue.empty():
                if (left := self._queue.get_nowait()) is not None:
                    left.end()

    async def _write(self, piece: _Piece) -> None:
        try:
            if piece.fetched is not None:
                await piece.fetched
            if piece.shown is not None:
                await asyncio.get_running_loop().run_in_executor(None, _show, piece, piece.shown)
            if piece.check is not None:
                await piece.check()
            if piece.memory is not None:
                await self._output.put(piece.memory, self._wrote)
            else:
                await self._output.take(piece.fd, piece.start, piece.stop, self._wrote)
            if piece.check_after is not None:
                piece.check_after()
        except FastsyncError as error:
            error.at(piece.where)
            raise
        finally:
            piece.end()

    def _wrote(self, nbytes: int, /) -> None:
        self.totals.bytes_done += nbytes
        self.totals.bytes_copied += nbytes

    # -- which files ---------------------------------------------------------------------------------

    async def _produce(self, places: Sequence[Location]) -> None:
        """Begin with the pieces of all files, in order, as far as there is memory for them."""
        try:
            # All are looked at before the first is begun: a list with a slip of the pen gives nothing.
            found = [await self._find(place) for place in places]
            self._count_bytes([file for file in found if isinstance(file, _File)])
            self.totals.scanning = any(isinstance(file, Wildcard) for file in found)
            for file in found:
                if isinstance(file, _File):
                    await self._begin(file)
                    continue
                async for match in self._matches(file):
                    self._count_bytes([match])
                    await self._begin(match)
            self.totals.scanning = False
        except Exception:
            await self._queue.put(None)  # what was begun is written before the error is told
            raise
        await self._queue.put(None)

    async def _find(self, place: Location) -> _File | Wildcard:
        session = self._session
        if place.is_stream:
            stdin = StandardInput()
            return _File(stdin, stdin.entry)
        wild = None if session.request.settings.raw else find(place)
        if wild is not None:
            return wild
        store = await session.open(place, follow=True)
        entry = await named(session, store)
        if entry.kind != "file":
            raise UsageError("it is a directory", where=str(place))
        if place.stands_alone:
            return _File(store, entry)
        return _File(
            await session.open(place.parent(), follow=True), entry._replace(path=place.name)
        )

    async def _matches(self, wild: Wildcard) -> AsyncIterator[_File]:
        source = await self._session.open(wild.base, follow=True)
        chosen = self._session.request.filter()
        options = ScanOptions(recursive=False, links="follow")
        pages = something(wild.scan(source, options), f"{wild.base}{wild.pattern}")
        async with closing(pages) as listed:
            async for entries, faults in listed:
                for fault in faults:
                    raise fault.error
                for entry in chosen.select(entries):
                    if entry.kind == "file":
                        yield _File(source, entry)

    def _count_bytes(self, files: Sequence[_File]) -> None:
        self.totals.planned_files += len(files)
        for file in files:
            start, stop = self._range(file.entry.size or 0)
            self.totals.planned_bytes += stop - start

    def _range(self, size: int) -> tuple[int, int]:
        start = min(self._offset, size)
        return start, size if self._count is None else min(size, start + self._count)

    # -- the pieces of a file ------------------------------------------------------------------------

    async def _begin(self, file: _File) -> None:
        source, entry = file.source, file.entry
        self.totals.current = {file.where: entry.size or 0}
        if offers(source, LocalFiles) and entry.size is not None:
            await self._begin_local(await source.open_file(entry), file)
        elif entry.size is None or not await self._reads_ranges(file):
            await self._stream(file)
        else:
            await self._begin_ranges(file, *self._range(entry.size))
        await self._queue.put(_Piece(file.where, -1, 0, 0, self._ended))

    async def _reads_ranges(self, file: _File) -> bool:
        async def ask(_attempt: int) -> bool:
            return await reads_ranges(file.source, file.entry)

        return await self._patiently(ask)

    def _ended(self) -> None:
        self.totals.files_copied += 1

    async def _begin_local(self, opened: PinnedFile, file: _File) -> None:
        """The kernel reads it when it writes it: there is nothing to fetch."""
        start, stop = self._range(file.entry.size or 0)
        piece = _Piece(file.where, opened.fileno(), start, stop, opened.close)
        piece.check_after = opened.verify
        try:
            await self._queue.put(piece)
        except BaseException:
            opened.close()
            raise

    async def _begin_ranges(self, file: _File, start: int, stop: int) -> None:
        download: Download | None = None
        source, entry = file.source, file.entry
        is_whole = (start, stop) == (0, entry.size)
        if is_whole and stop and offers(source, Downloads):

            async def open_download(_attempt: int) -> Download:
                return await source.open_download(entry)

            download = await self._patiently(open_download)
        in_memory = (
            download is not None
            and offers(download, ReadsIntoMemory)
            and not self._output.takes_pages
        )
        new_piece = self._new_memory if in_memory else self._new_piece
        shown: Callable[[memoryview], None] | None = None
        if offers(download, ChecksInOrder) and download.begin_in_order():
            shown = download.add_next
        for at in range(start, stop, self._chunk):
            end = min(at + self._chunk, stop)
            await self._streams.take(1)
            try:
                piece = await new_piece(file, at, end)
            except BaseException:
                self._streams.give_back(1)
                raise
            piece.shown = shown
            piece.fetched = asyncio.create_task(self._fetch(file, download, piece))
            self._tasks.add(piece.fetched)
            piece.fetched.add_done_callback(self._fetched)
            if download is not None and end == stop:
                # The last piece waits until the file is known to be right.
                piece.check = _checking(download, piece.fd if at == 0 and piece.fd >= 0 else None)
            await self._put(piece)

    def _fetched(self, task: asyncio.Task[None]) -> None:
        # Not at the end of the task: one that is cancelled before it began never gets there.
        self._streams.give_back(1)
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # one that nobody will come to, after an earlier one, is no news

    async def _new_piece(self, file: _File, start: int, stop: int) -> _Piece:
        held = await self._memory.take(stop - start + min(stop - start, READ_BUFFER))
        fd = -1

        def end() -> None:
            self._memory.give_back(held)
            if fd >= 0:
                os.close(fd)

        try:
            fd = _unnamed_file()
        except OSError as error:
            end()
            raise from_os_error(error) from error
        return _Piece(file.where, fd, start, stop, end)

    async def _new_memory(self, file: _File, start: int, stop: int) -> _Piece:
        held = await self._memory.take(stop - start)
        is_whole = stop - start == self._chunk
        kept = self._spare.pop() if is_whole and self._spare else bytearray(stop - start)

        def end() -> None:
            self._memory.give_back(held)
            if is_whole and len(self._spare) < self._streams.limit:
                self._spare.append(kept)

        return _Piece(file.where, -1, start, stop, end, memoryview(kept))

    async def _put(self, piece: _Piece) -> None:
        try:
            await self._queue.put(piece)
        except BaseException:
            if piece.fetched is not None:
                piece.fetched.cancel()
                await asyncio.wait([piece.fetched])
            piece.end()
            raise

    async def _fetch(self, file: _File, download: Download | None, piece: _Piece) -> None:
        source, entry, fd, moved = file.source, file.entry, piece.fd, self.widening.moved
        position = piece.start
        if self._pace is not None:
            await self._pace.take(piece.stop - piece.start, source)

        async def fetch(_attempt: int) -> None:
            nonlocal position
            if piece.memory is not None:
                assert offers(download, ReadsIntoMemory)
                await download.read_into_memory(piece.start, piece.stop, piece.memory, moved)
                return
            if download is not None:
                await download.read_into_file(piece.start, piece.stop, fd, moved)
                return
            if offers(source, ReadsIntoFile):
                await source.read_into_file(entry, piece.start, piece.stop, fd, moved)
                return
            # A further try goes on where the one before it came to.
            async with closing(source.read(entry, position, piece.stop)) as buffers:
                async for buffer in buffers:
                    if position + len(buffer) > piece.stop:
                        raise IntegrityError("more bytes arrived than were asked for")
                    position += _write_all(fd, memoryview(buffer), position)
                    moved(len(buffer))
            if position != piece.stop:
                raise Changed(f"it ended at byte {position}, {entry.size} were listed")

        await self._patiently(fetch)

    async def _stream(self, file: _File) -> None:
        """No ranges or no length: read from the beginning, and drop what is not wanted."""
        low = self._offset
        high = None if self._count is None else low + self._count
        done = 0

        async def stream(attempt: int) -> None:
            nonlocal done
            if attempt and done and file.entry.version is None:
                raise Changed("it broke off, and nothing tells whether it is still the same")
            position = 0
            async with closing(file.source.read(file.entry, 0, None)) as buffers:
                async for buffer in buffers:
                    if self._pace is not None:
                        await self._pace.take(len(buffer), file.source)
                    first, position = position, position + len(buffer)
                    start = max(first, low, done)
                    stop = position if high is None else min(position, high)
                    if start < stop:
                        view = memoryview(buffer)[start - first : stop - first]
                        await self._put_bytes(file, view)
                        done = stop
                    if high is not None and position >= high:
                        return
            size = file.entry.size
            if size is not None and position != size:
                raise Changed(f"{position} bytes arrived, {size} were listed")

        try:
            await self._patiently(stream)
        except FastsyncError as error:
            error.at(file.where)
            raise

    async def _put_bytes(self, file: _File, data: memoryview) -> None:
        piece = await self._new_piece(file, 0, len(data))
        try:
            _write_all(piece.fd, data, 0)
        except BaseException:
            piece.end()
            raise
        await self._put(piece)

    async def _patiently(self, call: Callable[[int], Awaitable[R]]) -> R:
        """`call`, given the number of the attempt, until it ends in anything but a passing error."""
        attempt = 0
        patience = Patience(self._may_retry)
        while True:
            try:
                return await call(attempt)
            except FastsyncError as error:
                is_over = not error.transient or error.is_final
                pause = None if is_over else patience.pause([error])
                if pause is None:
                    raise
            await asyncio.sleep(min(pause, LONGEST_BACKOFF_S))
            attempt += 1

    def _may_retry(self, attempt: int) -> bool:
        self.totals.retries += attempt < self._retries
        return attempt < self._retries


def _checking(download: Download, fd: int | None) -> Callable[[], Awaitable[None]]:
    async def check() -> None:
        await download.verify(fd)

    return check


def _show(piece: _Piece, shown: Callable[[memoryview], None]) -> None:
    """Blocks."""
    if piece.memory is not None:
        shown(piece.memory)
        return
    block = memoryview(bytearray(min(READ_BUFFER, piece.stop - piece.start)))
    position = piece.start
    while position < piece.stop:
        count = os.preadv(piece.fd, [block[: piece.stop - position]], position)
        if not count:
            break  # `verify` misses the rest
        shown(block[:count])
        position += count


def _unnamed_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fastsync")
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _write_all(fd: int, view: memoryview, offset: int) -> int:
    """Write all of it at `offset` of a file in memory; how much that was."""
    length = len(view)
    try:
        while view:
            written = os.pwrite(fd, view, offset)
            view, offset = view[written:], offset + written
    except OSError as error:
        raise from_os_error(error) from error
    return length
