"""The words in which the conformance tests are written."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Coroutine
from typing import NoReturn

import pytest

from fastsync.backend import (
    READ_BUFFER,
    Buffer,
    CompletesEntries,
    CopyJob,
    Entry,
    Fault,
    Limits,
    ScanOptions,
    Sink,
    Source,
    Upload,
    WriteOptions,
)
from fastsync.names import path_key

MTIME = 1_700_000_000_987_654_321
LATER = MTIME + 60_000_000_000

# Where byte order, string order, UTF-16 order and the order of a naive walk all differ; BYTES are not UTF-8.
ORDER = (
    "B", "a b", "a-b", "a.txt", "a/0", "a/a/deep", "a0", "ab/c", "e\u0301", "z/\u00e9", "\u00e9",
    "\uffee", "\U0001f600",
)  # fmt: skip
BYTES = ("\udc80", "\udcff", "\udcff-/x")
# Ordinary names that a URL or a shell would mistake for something else: every store keeps them.
PLAIN = (
    "with space", "a+b", "100%", "%2F", "a#b", "a?b=c&d", "*[x]", "'quoted\"", "~", "-n", "a:b",
)  # fmt: skip
# Names that a store may refuse with NameRefused, but must not change.
ODD = (
    "new\nline", " leading", "trailing ", "trailing.", "back\\slash", "\x1b[31mred", "..x", "a..b",
    "...", "n" * 255, "\u00e9" * 127, "not-utf8-\udcff\udc80", "m" * 256,
)  # fmt: skip
# Names that leave the root, or have no meaning in it.
REFUSED = (
    "", "/", "/absolute", ".", "./a", "a/.", "a/./b", "..", "../victim", "a/../b", "a/../../victim",
    "a/..", "a//b", "a/", "nul\0", "a/nul\0/b", "half-a-character-\ud800",
)  # fmt: skip

# Sizes around the border of a part, as (parts, bytes more or less).
SIZES = ((0, 0), (0, 1), (1, -1), (1, 0), (1, 1), (3, 7))


def refused_name(sink: Sink) -> str:
    """A name that the store takes for nothing: one that leaves it, or that stands for no bytes."""
    return "half-a-character-\ud800" if sink.limits.raw_names else "../outside"


def lacks(store: object, ability: type) -> NoReturn:
    """Skip a test of an ability that a store does not claim."""
    pytest.skip(f"{type(store).__name__} does not have the ability {ability.__name__}")


def noise(size: int, *, seed: int = 0) -> bytes:
    """Bytes in which a displaced block shows."""
    return random.Random(seed).randbytes(size)


def part_size(source: Source) -> int:
    """A size of parts that the store takes."""
    return min(max(source.limits.min_part, 64 << 10), source.limits.max_part)


def ignore(_: int) -> None:
    """A progress that nobody looks at."""


async def listing(source: Source, options: ScanOptions | None = None) -> list[Entry]:
    """Every entry, of a listing that missed nothing, with all that the store knows of it."""
    entries, faults = await listing_and_faults(source, options)
    assert faults == []
    if not isinstance(source, CompletesEntries):
        return entries
    completed: list[Entry] = []
    for entry, answer in zip(entries, await source.complete(entries), strict=True):
        assert isinstance(answer, Entry), f"{entry.path}: {answer}"
        completed.append(answer)
    return completed


async def listing_and_faults(
    source: Source, options: ScanOptions | None = None
) -> tuple[list[Entry], list[Fault]]:
    entries: list[Entry] = []
    faults: list[Fault] = []
    async for page in source.scan(options or ScanOptions()):
        entries += page.entries
        faults += page.faults
    return entries, faults


async def files(source: Source) -> list[str]:
    """The paths of all files, nothing for a place that does not exist."""
    return paths(await listing(source, ScanOptions(missing_ok=True)), "file")


def paths(entries: list[Entry], kind: str) -> list[str]:
    return [entry.path for entry in entries if entry.kind == kind]


def order_key(entry: Entry) -> bytes:
    return path_key(entry.path + "/" if entry.kind == "dir" else entry.path)


async def collect(reading: AsyncIterator[Buffer]) -> bytes:
    """All bytes of a read; each buffer is copied before the next one is asked for."""
    content = bytearray()
    async for block in reading:
        assert 0 < len(block) <= READ_BUFFER
        content += block
    return bytes(content)


async def read(source: Source, path: str) -> bytes:
    return await collect(source.read(await source.stat(path), 0, None))


async def close(iterator: AsyncIterator[object]) -> None:
    """Leave an iterator in the middle, as a generator is left."""
    aclose = getattr(iterator, "aclose", None)
    if aclose is not None:
        await aclose()


async def cancelled(work: Coroutine[None, None, object], steps: int) -> bool:
    """Cancel `work` after `steps` turns of the event loop; whether it was cut short."""
    task = asyncio.create_task(work)
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return task.cancelled()


def agree(one: Entry, other: Entry) -> None:
    """Two entries of the same state are equal, as far as both know."""
    for name, a, b in zip(Entry._fields, one, other, strict=True):
        assert a == b or a is None or b is None, f"{name}: {a!r} is not {b!r}"


def like(path: str, *, mtime_ns: int | None = MTIME, mode: int | None = 0o644) -> Entry:
    """The entry of a source's file."""
    return Entry(path, "file", None, mtime_ns, mode)


async def begin(sink: Sink, path: str) -> Upload:
    return await sink.upload(path, like(path), WriteOptions(), part_size(sink))


async def write(
    sink: Sink,
    path: str,
    content: bytes,
    *,
    like: Entry | None = None,
    options: WriteOptions | None = None,
) -> Entry:
    """Upload a whole file, in parts, as the engine does."""
    part = part_size(sink)
    entry = like or Entry(path, "file", len(content), MTIME, 0o644)
    upload = await sink.upload(path, entry, options or WriteOptions(), part)
    try:
        for start in range(0, len(content), part):
            await upload.write(start, content[start : start + part])
        return await upload.commit(len(content))
    finally:
        await upload.abort()


async def expect(source: Source, wanted: dict[str, bytes]) -> None:
    """The store has exactly these files."""
    assert await files(source) == list(wanted)
    for path, content in wanted.items():
        assert await read(source, path) == content


def kept_mode(limits: Limits) -> int:
    if not limits.mode_mask:
        pytest.skip("the store keeps no modes")
    return limits.mode_mask


def directory(path: str, mode: int = 0o755) -> Entry:
    return Entry(path, "dir", None, MTIME, mode)


def link(path: str, target: str) -> CopyJob:
    return CopyJob(Entry("the/link", "link", None, MTIME, 0o777, target), path)
