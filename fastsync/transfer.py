"""One file from one store to another: choose a route, move the bytes, check them, commit.

Routes, fastest first (`choose_route`):

    within   the sink copies by itself: in the kernel, or on the server (`CopiesWithin`)
    whole    small: one read, one write
    parts    ranges in parallel, written at their offsets
    stream   one after the other: no length, or no ranges

Parts move without passing through Python objects where one end is a local file and the other knows how.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fastsync.backend import (
    READ_BUFFER,
    CopiesWithin,
    Entry,
    Limits,
    LocalFiles,
    LocalUpload,
    PinnedFile,
    Progress,
    ReadsIntoFile,
    Sink,
    Source,
    Upload,
    WriteOptions,
    WritesFromFile,
    closing,
    offers,
)
from fastsync.budget import Budget
from fastsync.errors import Changed, IntegrityError, Unsupported
from fastsync.workers import run_all

Route: TypeAlias = Literal["within", "whole", "parts", "stream"]


@dataclass(frozen=True, slots=True)
class Lanes:
    """What one run shares among its transfers: streams in flight, bytes in memory, and a part's size."""

    streams: Budget
    memory: Budget
    chunk_size: int


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


async def transfer(
    source: Source,
    sink: Sink,
    entry: Entry,
    path: str,
    options: WriteOptions,
    lanes: Lanes,
    progress: Progress,
) -> Entry:
    """Copy one file by any route but "within" and return what the sink made of it.

    Raises Changed when the source is no longer `entry`, IntegrityError when lengths disagree; then
    nothing is visible at `path` and nothing is left behind.
    """
    part_size = part_size_for(entry.size, lanes.chunk_size, sink.limits)
    upload = await sink.upload(path, entry, options, part_size)
    try:
        if choose_route(entry, source, sink, lanes.chunk_size) == "stream" or entry.size is None:
            size = await _stream(source, upload, entry, part_size, lanes, progress)
        else:
            size = entry.size
            await _parts(source, upload, entry, size, part_size, lanes, progress)
        made = await upload.commit(size)
    except BaseException:
        # Not even a second cancellation may leave a half file or an orphan upload.
        await asyncio.shield(upload.abort())
        raise
    if made.size != size:
        raise IntegrityError(f"{size} bytes were sent, the store has {made.size}", where=path)
    return made


async def _stream(
    source: Source, upload: Upload, entry: Entry, part_size: int, lanes: Lanes, progress: Progress
) -> int:
    """All bytes in order, in writes of a part each; the number of bytes."""
    position = 0
    async with lanes.streams.spend(1), lanes.memory.spend(part_size + READ_BUFFER):
        part = bytearray()
        async with closing(source.read(entry, 0, None)) as buffers:
            async for buffer in buffers:
                rest = memoryview(buffer)
                while rest:
                    taken = min(len(rest), part_size - len(part))
                    part += rest[:taken]
                    rest = rest[taken:]
                    if len(part) == part_size:
                        await upload.write(position, part)
                        position += part_size
                        progress(part_size)
                        part = bytearray()
        if part:
            await upload.write(position, part)
            position += len(part)
            progress(len(part))
    if entry.size is not None and position != entry.size:
        raise Changed(f"{position} bytes arrived, {entry.size} were listed", where=entry.path)
    return position


async def _parts(
    source: Source,
    upload: Upload,
    entry: Entry,
    size: int,
    part_size: int,
    lanes: Lanes,
    progress: Progress,
) -> None:
    file: PinnedFile | None = None
    try:
        if offers(source, LocalFiles) and offers(upload, WritesFromFile):
            file = await source.open_file(entry)

        async def move(start: int, stop: int) -> None:
            if file is not None and offers(upload, WritesFromFile):
                async with lanes.streams.spend(1):
                    await upload.write_from_file(start, stop, file.fileno(), progress)
            elif offers(source, ReadsIntoFile) and offers(upload, LocalUpload):
                async with lanes.streams.spend(1):
                    await source.read_into_file(entry, start, stop, upload.fileno(), progress)
                    upload.covers(start, stop)
            else:
                await _move_in_memory(source, upload, entry, start, stop, lanes, progress)

        ranges = list(parts(size, part_size))
        if len(ranges) == 1:
            await move(*ranges[0])
        elif ranges:
            await run_all(lanes.streams.limit, (move(*one) for one in ranges))
        if file is not None:
            file.verify()
    finally:
        if file is not None:
            file.close()


async def _move_in_memory(
    source: Source,
    upload: Upload,
    entry: Entry,
    start: int,
    stop: int,
    lanes: Lanes,
    progress: Progress,
) -> None:
    length = stop - start
    async with lanes.streams.spend(1), lanes.memory.spend(length + min(length, READ_BUFFER)):
        part = bytearray(length)
        filled = 0
        async with closing(source.read(entry, start, stop)) as buffers:
            async for buffer in buffers:
                end = filled + len(buffer)
                if end > length:
                    raise IntegrityError("more bytes arrived than were asked for", where=entry.path)
                part[filled:end] = buffer
                filled = end
        if filled != length:
            raise Changed(
                f"{filled} of {length} bytes arrived from offset {start}", where=entry.path
            )
        await upload.write(start, part)
    progress(length)
