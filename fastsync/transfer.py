"""One file from one store to another: choose a route, move the bytes, check them, commit.

Routes, fastest first (`choose_route`):

    within   the sink copies by itself: in the kernel, or on the server (`CopiesWithin`)
    whole    small: one read, one write
    parts    ranges in parallel, written at their offsets
    stream   read one after the other, for there is no length or there are no ranges

Parts move without passing through Python objects where one end is a local file and the other knows how.
A part that fails for a passing reason is tried again by itself.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import IO, Final, Literal, NamedTuple, TypeAlias

from fastsync import log
from fastsync.backend import (
    READ_BUFFER,
    Buffer,
    CopiesWithin,
    Download,
    Downloads,
    Entry,
    Grid,
    Limits,
    LocalFiles,
    LocalUpload,
    PinnedFile,
    Progress,
    ReadsBack,
    ReadsIntoFile,
    Rechecks,
    Sink,
    Source,
    Upload,
    Validated,
    WriteOptions,
    WritesFromFile,
    closing,
    offers,
    reads_ranges,
)
from fastsync.budget import Budget
from fastsync.errors import (
    Changed,
    Conflict,
    FastsyncError,
    IntegrityError,
    Unsupported,
    from_os_error,
)
from fastsync.pace import Pace
from fastsync.patience import persistently
from fastsync.rereading import RangeDigest, Seen, compare_ends
from fastsync.resuming import Once, Trace, UploadLog, Writing, begin, gaps, lasting, version_of
from fastsync.widening import Widening, few
from fastsync.workers import run_all

Route: TypeAlias = Literal["within", "whole", "parts", "stream"]

# How much larger and smaller than wanted parts may be that go to a file.
TAPER: Final = 4
# A stream's parts share the memory with parts on their way out; so many keep the way full.
STREAM_PARTS: Final = 8


def _never(_attempt: int) -> bool:
    return False


class Lanes(NamedTuple):
    """What one run shares among its transfers: streams in flight, bytes in memory, a part's size, how
    often a part may be tried again, where uploads are written down, who hears of bytes that are there from
    an earlier process, and how fast bytes may move."""

    streams: Budget
    memory: Budget
    chunk_size: int
    may_retry: Callable[[int], bool] = _never
    log: UploadLog | None = None
    resumed: Callable[[int], None] = lambda _nbytes: None
    pace: Pace | None = None


def copies_within(source: Source, sink: Sink) -> bool:
    """True when the sink moves the bytes by itself, whatever the file."""
    return offers(sink, CopiesWithin) and sink.can_copy_from(source)


def choose_route(entry: Entry, source: Source, sink: Sink, chunk_size: int) -> Route:
    """How `entry` should travel."""
    if copies_within(source, sink):
        return "within"
    if entry.size is None or not source.limits.seekable_reads:
        return "stream"
    return "whole" if entry.size <= chunk_size else "parts"


def part_size_for(size: int | None, chunk_size: int, limits: Limits) -> int:
    """The part size to use: `chunk_size`, as far as the store's limits on size and number allow.

    Raises Unsupported when a file of that size does not fit the store at all.
    """
    part = max(chunk_size, limits.min_part)
    if size is not None and size > part * limits.max_parts:
        part = -(-size // limits.max_parts)
    if part > limits.max_part:
        part = limits.max_part
        if size is not None and size > part * limits.max_parts:
            largest = part * limits.max_parts
            raise Unsupported(f"{size} bytes are more than the store's largest file ({largest})")
    return part


def parts(size: int, part_size: int) -> Iterator[tuple[int, int]]:
    """The ranges [start, stop) that cover a file exactly once, in order; none for an empty file."""
    for start in range(0, size, part_size):
        yield start, min(start + part_size, size)


def tapering(start: int, stop: int, part_size: int, streams: int) -> Iterator[tuple[int, int]]:
    """Ranges [start, stop) around that size: large ones first, for fewer pauses between requests, and small
    ones last, so that all streams have work to the end."""
    least = -(-part_size // TAPER)
    while start < stop:
        length = max(least, min((stop - start) // (2 * streams), part_size * TAPER))
        yield start, min(start + length, stop)
        start += length


class Landed(NamedTuple):
    """What a sink made of a file, and whether a digest of all its bytes, or they themselves, were compared:
    with what the source says they add up to, with what the store got, or with what was read back."""

    entry: Entry
    is_verified: bool


async def transfer(
    source: Source,
    sink: Sink,
    entry: Entry,
    path: str,
    options: WriteOptions,
    lanes: Lanes,
    progress: Progress,
    old: Entry | None = None,
) -> Landed:
    """Copy one file by any route but "within" and return what the sink made of it.

    `old` is what was listed at `path`. Raises Changed when the source is no longer `entry`,
    IntegrityError when lengths or digests disagree; then nothing is visible at `path` and nothing is left
    behind, except what a later process can go on with (`options.resumable`), and a file that only showed
    to be wrong when it was read back (`options.reread`) in a store that shows none before.
    """
    route = choose_route(entry, source, sink, lanes.chunk_size)
    chunk = lanes.chunk_size
    in_one = route == "parts" and not await persistently(
        lambda: reads_ranges(source, entry), lanes.may_retry
    )
    if in_one:
        route = "stream"
    if route == "stream":
        chunk = min(chunk, max(READ_BUFFER, lanes.memory.limit // STREAM_PARTS))
    part_size = part_size_for(entry.size, chunk, sink.limits)
    if log.level <= log.TRACE:
        ways = {"path": path, "size": entry.size, "part_size": part_size}
        log.tell(log.TRACE, "route", route=route, **ways)
    download: Download | None = None
    if (route != "stream" or in_one) and offers(source, Downloads):
        download = await persistently(lambda: source.open_download(entry), lanes.may_retry)
        entry = download.entry
    if entry.mtime_ns is None and entry.stored_ns is not None:
        entry = entry._replace(mtime_ns=entry.stored_ns)  # the best there is to say of its age
    version = None
    if options.resumable:
        version = version_of(source, sink, entry, download) if route == "parts" else None
        options = dataclasses.replace(
            options, resumable=version is not None and lanes.log is not None
        )
    if not offers(source, LocalFiles) or lanes.pace is not None:
        options = dataclasses.replace(options, from_memory=True)
    how = Writing(sink, path, entry, options, part_size, old)
    place = source.location if lanes.log is None else lasting(source).child(entry.path)
    trace = await persistently(
        lambda: begin(sink, path, how, place, version, lanes.log), lanes.may_retry
    )
    upload = trace.upload
    if offers(upload, Rechecks):
        part_size = upload.part_size  # that of an earlier run, whatever this one would take
    async with trace.ending():
        lanes.resumed(sum(stop - start for start, stop in trace.done))
        seen = Seen() if options.reread else None
        move = _Move(source, sink, download, trace, upload, entry, lanes, progress, seen)
        move.sparse = options.sparse
        await move.look_back()
        is_verified = sink.limits.checks_writes
        if in_one and entry.size is not None and offers(upload, LocalUpload):
            size = entry.size
            is_verified |= await move.parts(size)  # a single one, which moves as parts do
        elif route == "stream" or entry.size is None:
            grid = Grid(part_size, entry.size is None, sink.limits.max_part)
            size = await move.stream(grid)
        else:
            size = entry.size
            is_verified |= await move.parts(part_size)
        is_reread = options.reread and await move.reread(size)
        made = await persistently(lambda: upload.commit(size), lanes.may_retry)
    if made.size != size:
        raise IntegrityError(f"{size} bytes were sent, the store has {made.size}", where=path)
    if options.reread and not is_reread:
        await move.reread_made(path, size)
    return Landed(made, is_verified or options.reread)


@dataclass(slots=True, eq=False, repr=False)
class _Move:
    """The bytes of one file on their way."""

    source: Source
    sink: Sink
    download: Download | None
    trace: Trace
    upload: Upload
    entry: Entry
    lanes: Lanes
    progress: Progress
    seen: Seen | None = None
    file: PinnedFile | None = None
    sparse: bool = False
    widening: Widening | None = None  # of the streams of one download

    # -- parts ---------------------------------------------------------------------------------------

    async def parts(self, part_size: int) -> bool:
        """All parts in parallel, and the file checked as a whole; whether there was a digest to check."""
        source, upload = self.source, self.upload
        size = self.entry.size or 0
        try:
            if (
                self.lanes.pace is None
                and offers(source, LocalFiles)
                and offers(upload, WritesFromFile)
            ):
                self.file = await source.open_file(self.entry)
            # One after the other: a size is what somebody says, and may stand for more parts than fit.
            ranges = self._ranges(size, part_size)
            first = list(islice(ranges, max(2, self.lanes.streams.limit)))
            if len(first) == 1:
                await self._part(*first[0])
            elif first:
                width = min(self.lanes.streams.limit, len(first))
                self.widening = Widening(width, few(source.limits.first_streams))
                async with self.widening.watched():
                    await run_all(width, (self._part(*one) for one in chain(first, ranges)))
            if self.file is not None:
                self.file.verify()
            if self.download is not None:
                fd = upload.fileno() if offers(upload, LocalUpload) else None
                return await self.download.verify(fd)
        finally:
            if self.file is not None:
                self.file.close()
        return False

    def _ranges(self, size: int, part_size: int) -> Iterator[tuple[int, int]]:
        """What is still to be moved, never all at once: a size that is a lie makes more parts than there is
        memory for. Where a part that breaks off goes on, and none is held in memory, they need not be of
        one size."""
        missing = gaps(size, self.trace.done)
        streams = self.lanes.streams.limit
        is_long = self.lanes.pace is None and size >= TAPER * part_size * streams
        is_free = offers(self.download, Validated) and self.download.validator is not None
        is_tapered = is_long and is_free and offers(self.upload, LocalUpload)
        for start, stop in missing:
            if is_tapered:
                yield from tapering(start, stop, part_size, streams)
                continue
            for low, high in parts(stop - start, part_size):
                yield start + low, start + high

    async def _part(self, start: int, stop: int) -> None:
        once = Once(self.progress, self.trace, start)

        async def move() -> None:
            once.restart()
            await self._try_part(start, stop, once)

        await persistently(move, self.lanes.may_retry)
        self.lanes.resumed(once.rest(stop))

    async def _try_part(self, start: int, stop: int, progress: Progress) -> None:
        source, upload, lanes = self.source, self.upload, self.lanes
        is_looked_at = (
            lanes.pace is not None or self.sparse or (self.seen and not offers(source, LocalFiles))
        )
        if is_looked_at and offers(upload, LocalUpload):
            await self._by_buffers(start, stop, progress)
        elif self.file is not None and offers(upload, WritesFromFile):
            async with lanes.streams.spend(1):
                await upload.write_from_file(start, stop, self.file.fileno(), progress)
        elif self.download is not None and offers(upload, LocalUpload):
            await self._download(self.download, upload, start, stop, progress)
        elif offers(source, ReadsIntoFile) and offers(upload, LocalUpload):
            async with lanes.streams.spend(1):
                await source.read_into_file(self.entry, start, stop, upload.fileno(), progress)
                upload.covers(start, stop)
        elif self._fits(stop - start):
            await self._by_memory(start, stop, progress)
        else:
            await self._by_disk(start, stop, progress)

    async def _download(
        self, download: Download, upload: LocalUpload, start: int, stop: int, progress: Progress
    ) -> None:
        widening = self.widening or Widening(1)

        def moved(nbytes: int, /) -> None:
            widening.moved(nbytes)
            progress(nbytes)

        async with widening.streams.spend(1), self.lanes.streams.spend(1):
            await download.read_into_file(start, stop, upload.fileno(), moved)
            upload.covers(start, stop)

    def _fits(self, length: int) -> bool:
        return length + min(length, READ_BUFFER) <= self.lanes.memory.limit

    def _read(self, start: int, stop: int) -> AsyncIterator[Buffer]:
        if self.download is not None:
            buffers = self.download.read(start, stop)
        else:
            buffers = self.source.read(self.entry, start, stop)
        return buffers

    def _read_slowly(self, start: int, stop: int, sink: Source | None) -> AsyncIterator[Buffer]:
        """The same at the pace of the run, if it has one."""
        buffers = self._read(start, stop)
        return buffers if self.lanes.pace is None else self._paced(buffers, stop - start, sink)

    async def _paced(
        self, buffers: AsyncIterator[Buffer], length: int | None, sink: Source | None
    ) -> AsyncIterator[Buffer]:
        """The same buffers, each when its turn has come. A short part is asked for when it may have come,
        for the server sends what it has."""
        pace = self.lanes.pace
        assert pace is not None
        is_short = length is not None and length <= (pace.step() or length)
        if is_short and length is not None:
            await pace.take(length, self.source, sink)
        async with closing(buffers) as fast:
            async for buffer in fast:
                if not is_short:
                    await pace.take(len(buffer), self.source, sink)
                yield buffer

    async def _by_buffers(self, start: int, stop: int, progress: Progress) -> None:
        """To a local file as the bytes come, so that they can come slowly."""
        lanes, position = self.lanes, start
        digest = None if self.seen is None else RangeDigest()
        async with lanes.streams.spend(1), lanes.memory.spend(READ_BUFFER):
            async with closing(self._read_slowly(start, stop, self.sink)) as buffers:
                async for buffer in buffers:
                    self._refuse_excess(position + len(buffer) - start, stop - start)
                    if digest is not None:
                        await digest.add(buffer)
                    await self.upload.write(position, buffer)
                    position += len(buffer)
                    progress(len(buffer))
            self._refuse_gap(position - start, stop - start, start)
        if self.seen is not None and digest is not None:
            self.seen.note(start, stop, digest)

    async def _by_memory(self, start: int, stop: int, progress: Progress) -> None:
        lanes, length = self.lanes, stop - start
        async with lanes.streams.spend(1), lanes.memory.spend(length + min(length, READ_BUFFER)):
            part = bytearray(length)
            filled = 0
            async with closing(self._in_time(start, stop)) as buffers:
                async for buffer in buffers:
                    end = filled + len(buffer)
                    self._refuse_excess(end, length)
                    part[filled:end] = buffer
                    filled = end
            self._refuse_gap(filled, length, start)
            await self._see(start, part)
            if offers(self.upload, Rechecks) and await self.upload.has(start, part):
                return
            if lanes.pace is not None:
                await lanes.pace.send(length, self.sink)
            await self.upload.write(start, part)
        progress(length)

    def _in_time(self, start: int, stop: int) -> AsyncIterator[Buffer]:
        """What is to be sent on, and paid for there: what comes from this machine comes as fast as it can."""
        goes_up = not offers(self.sink, LocalFiles)
        if goes_up and offers(self.source, LocalFiles):
            return self._read(start, stop)
        return self._read_slowly(start, stop, None if goes_up else self.sink)

    async def _by_disk(self, start: int, stop: int, progress: Progress) -> None:
        """A part that must be larger than the memory granted: through a file without a name."""
        lanes = self.lanes
        async with lanes.streams.spend(1), lanes.memory.spend(READ_BUFFER):
            with _staging_file() as file:
                filled = 0
                async with closing(self._in_time(start, stop)) as buffers:
                    async for buffer in buffers:
                        self._refuse_excess(filled + len(buffer), stop - start)
                        await _stage(file, start + filled, buffer)
                        filled += len(buffer)
                self._refuse_gap(filled, stop - start, start)
                if lanes.pace is not None:
                    await lanes.pace.send(stop - start, self.sink)
                await self._write_staged(start, stop, file, progress)

    def _refuse_excess(self, arrived: int, length: int) -> None:
        if arrived > length:
            raise IntegrityError("more bytes arrived than were asked for", where=self.entry.path)

    def _refuse_gap(self, arrived: int, length: int, start: int) -> None:
        if arrived != length:
            raise Changed(
                f"{arrived} of {length} bytes arrived from offset {start}", where=self.entry.path
            )

    async def _write_staged(
        self, start: int, stop: int, file: IO[bytes], progress: Progress
    ) -> None:
        upload = self.upload
        if not offers(upload, WritesFromFile):
            raise Unsupported(
                f"the store takes parts of {stop - start} bytes, more than may be held in memory",
                where=self.entry.path,
                hint="raise buffer_size",
            )
        await upload.write_from_file(start, stop, file.fileno(), progress)

    # -- once more -----------------------------------------------------------------------------------

    async def _see(self, start: int, part: Buffer) -> None:
        if self.seen is not None:
            digest = RangeDigest()
            await digest.add(part)
            self.seen.note(start, start + len(part), digest)

    async def look_back(self) -> None:
        """Raises Changed where what an earlier process has written elsewhere is no longer there. What it
        wrote to a disk here is compared by the download, after all else."""
        done, upload, lanes = self.trace.done, self.upload, self.lanes
        if not done or not offers(upload, ReadsBack) or offers(upload, LocalUpload):
            return
        where = self.entry.path

        async def compare() -> None:
            async with lanes.streams.spend(1), lanes.memory.spend(READ_BUFFER):
                await compare_ends(done, self._read, upload.read_back, where)

        await persistently(compare, lanes.may_retry)

    async def reread(self, size: int) -> bool:
        """Compare what is written with what was read; False where the store shows nothing before the file
        is committed."""
        upload = self.upload
        if not offers(upload, ReadsBack):
            return False
        await self._compare(size, upload.read_back)
        return True

    async def reread_made(self, path: str, size: int) -> None:
        """The same for the file that the store has made of it."""
        made = await persistently(lambda: self.sink.stat(path), self.lanes.may_retry)
        if made.size != size:
            raise IntegrityError(f"{size} bytes were sent, the store has {made.size}", where=path)
        try:
            await self._compare(size, partial(self.sink.read, made))
        except Changed as error:
            raise Conflict(
                "somebody else wrote there before it was read back", where=path
            ) from error

    async def _compare(
        self, size: int, written: Callable[[int, int], AsyncIterator[Buffer]]
    ) -> None:
        seen, lanes = self.seen, self.lanes
        assert seen is not None

        async def compare() -> None:
            async with lanes.streams.spend(1), lanes.memory.spend(READ_BUFFER):
                await seen.compare(size, self._read, written, self.entry.path)

        await persistently(compare, lanes.may_retry)

    # -- streams -------------------------------------------------------------------------------------

    async def stream(self, grid: Grid) -> int:
        """All bytes, read in order and written as parts, several at once; the number of bytes."""
        entry, lanes = self.entry, self.lanes
        first = grid.length(0) if entry.size is None else min(grid.length(0), entry.size)
        position = number = 0
        async with lanes.streams.spend(1), lanes.memory.spend(first + READ_BUFFER):
            writes = _Writes(lanes, first if self._fits(first) else 0)
            try:
                read = self.source.read(entry, 0, None)
                if lanes.pace is not None:
                    read = self._paced(read, None, self.sink)
                async with closing(read) as buffers:
                    feed = _Feed(buffers)
                    while await feed.more():
                        length = grid.length(number)
                        if entry.size is not None:
                            length = min(length, entry.size - position)
                            if not length:
                                raise Changed("it became longer", where=entry.path)
                        if await writes.has_room(length):
                            taken = await self._stream_part(feed, position, length, writes)
                        else:
                            taken = await self._stage_part(feed, position, length)
                        position += taken
                        number += 1
                    await writes.finish()
            finally:
                await writes.cancel()
        if entry.size is not None and position != entry.size:
            raise Changed(f"{position} bytes arrived, {entry.size} were listed", where=entry.path)
        return position

    async def _stream_part(self, feed: _Feed, start: int, length: int, writes: _Writes) -> int:
        """One part read into memory, for which there is room, and its write begun."""
        part = bytearray()
        while len(part) < length and await feed.more():
            part += feed.take(length - len(part))
        await self._see(start, part)

        async def write() -> None:
            await persistently(lambda: self.upload.write(start, part), self.lanes.may_retry)
            self.progress(len(part))

        writes.begin(write)
        return len(part)

    async def _stage_part(self, feed: _Feed, start: int, length: int) -> int:
        """One part that is too large for the memory granted."""
        digest = RangeDigest() if self.seen is not None else None
        with _staging_file() as file:
            taken = 0
            while taken < length and await feed.more():
                piece = feed.take(length - taken)
                if digest is not None:
                    await digest.add(piece)
                await _stage(file, start + taken, piece)
                taken += len(piece)
            once = Once(self.progress, self.trace, start)

            async def write() -> None:
                once.restart()
                await self._write_staged(start, start + taken, file, once)

            await persistently(write, self.lanes.may_retry)
        if self.seen is not None and digest is not None:
            self.seen.note(start, start + taken, digest)
        return taken


class _Feed:
    """Buffers of a read, cut as parts need them."""

    def __init__(self, buffers: AsyncIterator[Buffer]) -> None:
        self._buffers = buffers
        self._rest = memoryview(b"")

    async def more(self) -> bool:
        """True while there are bytes; waits for them."""
        while not self._rest:
            try:
                self._rest = memoryview(await anext(self._buffers))
            except StopAsyncIteration:
                return False
        return True

    def take(self, most: int) -> memoryview:
        """Up to `most` of the bytes at hand, valid until `more` is asked again."""
        taken, self._rest = self._rest[:most], self._rest[most:]
        return taken


class _Writes:
    """Writes of a stream's parts, a few at once; the first error ends the stream.

    Memory for one part of `own` bytes is granted for the whole time, and a stream, so that no two wait for
    each other; what more there is to have is taken, but never waited for.
    """

    def __init__(self, lanes: Lanes, own: int) -> None:
        self._memory = lanes.memory
        self._streams = lanes.streams
        self._own = own
        self._own_is_free = True
        self._next: int | None = None  # memory taken for the next part, 0 for the own
        self._tasks: set[asyncio.Task[None]] = set()
        self._error: FastsyncError | None = None

    async def has_room(self, length: int) -> bool:
        """True when a part of that length may be read into memory; False when there is not enough for
        one at all. Raises the error of an earlier write."""
        while True:
            if self._error is not None:
                raise self._error
            if self._own_is_free and length <= self._own:
                self._own_is_free = False
                self._next = 0
                return True
            if len(self._tasks) < STREAM_PARTS and self._streams.try_take(1):
                if self._memory.try_take(length):
                    self._next = length
                    return True
                self._streams.give_back(1)
            if not self._tasks:
                return False
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    def begin(self, write: Callable[[], Awaitable[None]]) -> None:
        """Start a write with the memory that `has_room` found."""
        taken, self._next = self._next, None

        async def run() -> None:
            try:
                await write()
            except FastsyncError as error:
                self._error = self._error or error

        def done(task: asyncio.Task[None]) -> None:
            # Not in `run`: a task that is cancelled before it began never gets there.
            self._tasks.discard(task)
            self._release(taken)

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(done)

    def _release(self, taken: int | None) -> None:
        if taken == 0:
            self._own_is_free = True
        elif taken is not None:
            self._memory.give_back(taken)
            self._streams.give_back(1)

    async def finish(self) -> None:
        """Wait for all of them. Raises the first error."""
        if self._tasks:
            await asyncio.gather(*self._tasks)
        if self._error is not None:
            raise self._error

    async def cancel(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._release(self._next)
        self._next = None


def _staging_file() -> IO[bytes]:
    import tempfile  # what few runs need

    try:
        return tempfile.TemporaryFile(buffering=0)
    except OSError as error:
        raise from_os_error(error, tempfile.gettempdir()) from error


async def _stage(file: IO[bytes], position: int, data: Buffer) -> None:
    """Write at the offset that the bytes have in the file, where `write_from_file` looks for them."""

    def write() -> None:
        file.seek(position)
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]

    try:
        await asyncio.get_running_loop().run_in_executor(None, write)
    except OSError as error:
        raise from_os_error(error, "a temporary file") from error
