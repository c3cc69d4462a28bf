"""One file from store to store: every route, its budgets, what is checked, and what is left of a failure."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsync import transfer as transfer_module
from fastsync.backend import (
    READ_BUFFER,
    Buffer,
    Entry,
    Limits,
    Sink,
    StoreOptions,
    Upload,
    WriteOptions,
)
from fastsync.budget import Budget
from fastsync.errors import (
    Changed,
    DestinationFull,
    FastsyncError,
    IntegrityError,
    Transient,
    Unsupported,
    Vanished,
)
from fastsync.location import parse
from fastsync.testing import BareMemoryBackend, Box, MemoryBackend
from fastsync.transfer import Lanes, choose_route, part_size_for, parts, tapering, transfer
from fastsync_local.backend import LocalBackend

KIB, MIB, GIB, TIB = (1 << shift for shift in (10, 20, 30, 40))
S3 = Limits(min_part=5 * MIB, max_part=5 * GIB, max_parts=10_000)


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


# -- parts --------------------------------------------------------------------------------------------


@given(size=st.integers(0, 10_000), part_size=st.integers(1, 12_000))
def test_parts_cover_exactly_once(size: int, part_size: int) -> None:
    ranges = list(parts(size, part_size))
    assert [byte for start, stop in ranges for byte in (start, stop)] == sorted(
        byte for one in ranges for byte in one
    )
    assert ranges[:1] == ([(0, min(size, part_size))] if size else [])
    assert all(one[1] == other[0] for one, other in itertools.pairwise(ranges))
    assert all(stop - start == part_size for start, stop in ranges[:-1])
    assert sum(stop - start for start, stop in ranges) == size
    assert all(start < stop for start, stop in ranges)


def fits(size: int, part: int, limits: Limits) -> bool:
    return limits.min_part <= part <= limits.max_part and -(-size // part) <= limits.max_parts


@given(size=st.integers(0, 5 * TIB), chunk=st.integers(4 * KIB, 5 * GIB))
def test_part_size_for_a_bucket(size: int, chunk: int) -> None:
    """Any size up to 5 TiB fits; the chunk size is kept unless the limits say otherwise."""
    part = part_size_for(size, chunk, S3)
    assert fits(size, part, S3)
    assert part == chunk or chunk < S3.min_part or not fits(size, chunk, S3)


LIMITS = st.builds(
    lambda least, more, count: Limits(min_part=least, max_part=least + more, max_parts=count),
    st.integers(1, 100),
    st.integers(0, 1000),
    st.integers(1, 100),
)


@given(size=st.none() | st.integers(0, 200_000), chunk=st.integers(1, 3000), limits=LIMITS)
def test_part_size_for_any_limits(size: int | None, chunk: int, limits: Limits) -> None:
    """Within the limits, or Unsupported where no size of parts would be."""
    try:
        part = part_size_for(size, chunk, limits)
    except Unsupported:
        assert size is not None
        assert size > limits.max_part * limits.max_parts
    else:
        assert fits(size or 0, part, limits)


def test_a_file_too_large_for_the_store() -> None:
    with pytest.raises(Unsupported, match="largest file"):
        part_size_for(10_000 * 5 * GIB + 1, MIB, S3)
    assert part_size_for(10_000 * 5 * GIB, MIB, S3) == 5 * GIB


# -- routes -------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _forget_boxes() -> Iterator[None]:
    yield
    MemoryBackend.reset()
    BareMemoryBackend.reset()


def lanes(*, streams: int = 4, memory: int = 8 * MIB, chunk: int = 256 * KIB) -> Lanes:
    return Lanes(Budget(streams), Budget(memory), chunk)


async def open_bare(place: str) -> Sink:
    store = await BareMemoryBackend().connect(parse(place), StoreOptions())
    assert isinstance(store, Sink)
    return store


async def open_full(place: str) -> Sink:
    store = await MemoryBackend().connect(parse(place), StoreOptions())
    assert isinstance(store, Sink)
    return store


class Pair:
    """Files in one place of a bucket and an empty place beside it: both sides share the gauges."""

    def __init__(self, **limits: Any) -> None:
        self.box = BareMemoryBackend.box("bucket")
        self.box.limits = dataclasses.replace(self.box.limits, **limits)
        self.progress: list[int] = []

    async def open(self) -> Pair:
        self.source = await open_bare("mem://bucket/from")
        self.sink = await open_bare("mem://bucket/to")
        return self

    async def copy(self, content: bytes, shared: Lanes, path: str = "file") -> Entry:
        self.box.put(f"from/{path}", content)
        return await self.again(shared, path)

    async def again(self, shared: Lanes, path: str = "file") -> Entry:
        entry = await self.source.stat(path)
        note = self.progress.append
        landed = await transfer(self.source, self.sink, entry, path, WriteOptions(), shared, note)
        return landed.entry

    def written(self) -> dict[str, bytes]:
        return {
            path.removeprefix("to/"): content
            for path, content in self.box.files().items()
            if path.startswith("to/")
        }

    def at_rest(self) -> bool:
        """Nothing is under way any more."""
        return self.box.uploads.now == self.box.streams.now == self.box.held.now == 0


async def pair(**limits: Any) -> Pair:
    return await Pair(**limits).open()


def file(size: int | None) -> Entry:
    return Entry("file", "file", size, 0)


async def test_choose_route() -> None:
    bare, full = await open_bare("mem://a"), await open_full("mem://b")
    assert choose_route(file(1), bare, full, 100) == "within"
    assert choose_route(file(None), bare, full, 100) == "within"
    for size, route in ((0, "whole"), (100, "whole"), (101, "parts"), (None, "stream")):
        assert choose_route(file(size), full, bare, 100) == route
    BareMemoryBackend.box("slow").limits = Limits(seekable_reads=False)
    slow = await open_bare("mem://slow")
    for size in (0, 100, 101, None):
        assert choose_route(file(size), slow, bare, 100) == "stream"


PART = 64 * KIB
SIZES = [0, 1, PART - 1, PART, PART + 1, 5 * PART, 5 * PART + 3]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seekable", [True, False])
async def test_in_memory(size: int, seekable: bool) -> None:
    """Whole, in parts or as a stream: the same bytes, each told once, and no more writes than parts."""
    stores = await pair(seekable_reads=seekable)
    made = await stores.copy(noise(size), lanes(chunk=PART))
    assert stores.written() == {"file": noise(size)}
    assert (made.path, made.size) == ("file", size)
    assert sum(stores.progress) == size
    assert stores.box.faults.calls["write"] == len(list(parts(size, PART)))
    assert stores.at_rest()


@pytest.mark.parametrize("size", SIZES)
async def test_to_a_disk(tmp_path: Path, size: int) -> None:
    """From a store that can write into an open file."""
    box = MemoryBackend.box("box")
    box.put("file", noise(size), mtime_ns=10**18, mode=0o640)
    source = await open_full("mem://box")
    backend = LocalBackend()
    sink = await backend.connect(parse(str(tmp_path)), StoreOptions())
    entry = await source.stat("file")
    moved: list[int] = []
    shared = lanes(chunk=PART)
    await transfer(source, sink, entry, "d/copy", WriteOptions(), shared, moved.append)
    assert (tmp_path / "d/copy").read_bytes() == noise(size)
    assert (tmp_path / "d/copy").stat().st_mtime_ns == 10**18
    assert sum(moved) == size
    assert box.faults.calls["read"] == 0
    assert box.faults.calls["read_into_file"] == len(list(parts(size, PART)))
    assert shared.memory.peak == 0
    assert box.streams.now == 0
    await sink.aclose()
    await backend.aclose()


@pytest.mark.parametrize("size", SIZES)
async def test_from_a_disk(tmp_path: Path, size: int) -> None:
    """To a store that can take its bytes from an open file."""
    (tmp_path / "file").write_bytes(noise(size))
    box = MemoryBackend.box("box")
    sink = await open_full("mem://box")
    backend = LocalBackend()
    source = await backend.connect(parse(str(tmp_path)), StoreOptions())
    entry = await source.stat("file")
    moved: list[int] = []
    shared = lanes(chunk=PART)
    await transfer(source, sink, entry, "d/copy", WriteOptions(), shared, moved.append)
    assert box.files() == {"d/copy": noise(size)}
    assert sum(moved) == size
    assert box.faults.calls["write"] == 0
    assert box.faults.calls["write_from_file"] == len(list(parts(size, PART)))
    assert shared.memory.peak == 0
    assert box.uploads.now == 0
    await source.aclose()
    await backend.aclose()


async def test_a_disk_file_that_is_written_to_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(noise(4 * PART))
    box = MemoryBackend.box("box")
    box.put("file", b"old")
    sink = await open_full("mem://box")
    backend = LocalBackend()
    source = await backend.connect(parse(str(tmp_path)), StoreOptions())
    entry = await source.stat("file")

    def meddle() -> None:
        with path.open("r+b") as file:
            file.write(b"CHANGED")

    box.faults.then("write_from_file", None, meddle)
    with pytest.raises(Changed):
        await transfer(source, sink, entry, "file", WriteOptions(), lanes(chunk=PART), ignore)
    assert box.files() == {"file": b"old"}
    assert box.uploads.now == 0
    await source.aclose()
    await backend.aclose()


def ignore(_: int) -> None:
    """A progress that nobody looks at."""


async def test_whole_parts_only() -> None:
    """A store with limits gets parts that fit them."""
    stores = await pair(min_part=PART, max_parts=4)
    for size in (*SIZES, 40 * PART + 1):
        await stores.copy(noise(size), lanes(chunk=KIB))
        assert stores.written() == {"file": noise(size)}


async def test_too_large_for_the_store() -> None:
    stores = await pair(max_part=KIB, max_parts=4)
    with pytest.raises(Unsupported):
        await stores.copy(noise(4 * KIB + 1), lanes())
    assert stores.written() == {}
    assert stores.box.faults.calls["upload"] == 0


# -- budgets ------------------------------------------------------------------------------------------


class Counted(bytearray):
    """Buffers of parts, and how many bytes of them are alive."""

    alive = 0
    peak = 0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.counted = len(self)
        Counted.alive += self.counted
        Counted.peak = max(Counted.peak, Counted.alive)

    def __del__(self) -> None:
        Counted.alive -= self.counted


@pytest.mark.parametrize("seekable", [True, False])
@pytest.mark.parametrize("streams", [1, 3, 16])
@pytest.mark.parametrize(
    ("chunk", "memory"),
    [
        (64 * KIB, 2 * MIB), (300 * KIB, 2 * MIB), (MIB, 2 * MIB), (2 * MIB, 4 * MIB),
        (MIB, 3 * MIB + 1), (64 * KIB, 64 * MIB),
    ],
)  # fmt: skip
async def test_the_memory_promise(
    monkeypatch: pytest.MonkeyPatch, chunk: int, memory: int, streams: int, seekable: bool
) -> None:
    """However many files travel at once, what is read and not yet written fits into the budget, and no
    more streams are in use than there are."""
    stores = await pair(seekable_reads=seekable)
    for method in ("read", "write", "upload", "commit"):
        stores.box.faults.always(method, 0.0)  # lets the others go on
    shared = lanes(streams=streams, memory=memory, chunk=chunk)
    sizes = [0, 1, chunk - 1, chunk, chunk + 1, 3 * chunk + 5, MIB, 2 * MIB + 7, 5 * chunk]
    for number, size in enumerate(sizes):
        stores.box.put(f"from/{number}", noise(size, number))
    if seekable:
        monkeypatch.setattr(transfer_module, "bytearray", Counted, raising=False)
        Counted.alive = Counted.peak = 0
    await asyncio.gather(*(stores.again(shared, str(number)) for number in range(len(sizes))))
    assert stores.written() == {
        str(number): noise(size, number) for number, size in enumerate(sizes)
    }
    assert shared.memory.peak <= memory
    assert 0 < stores.box.held.peak <= memory
    # A stream is a read and, while that waits, the write of what it brought.
    assert stores.box.streams.peak <= 2 * streams
    assert shared.streams.peak <= streams
    if seekable:
        # A part being written is counted by both.
        assert Counted.peak <= memory
        assert stores.box.streams.peak <= streams
        assert Counted.alive == 0
    assert stores.at_rest()


async def test_parts_really_travel_at_once() -> None:
    stores = await pair()
    stores.box.faults.always("read", 0.001)
    await stores.copy(noise(16 * PART), lanes(streams=4, chunk=PART))
    assert stores.box.streams.peak == 4


# -- failures -----------------------------------------------------------------------------------------

STEPS = ["upload", "read", "write", "commit"]


@pytest.mark.parametrize("error", [Transient("cut"), DestinationFull("full"), Changed("changed")])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("seekable", [True, False])
@pytest.mark.parametrize("nth", [0, 1])
async def test_any_step_that_fails(
    step: str, error: FastsyncError, seekable: bool, nth: int
) -> None:
    """The error comes out as it is, the old file stays, and nothing is left behind."""
    stores = await pair(seekable_reads=seekable)
    stores.box.put("to/file", b"old")
    stores.box.faults.then(step, *[None] * (nth if step in ("read", "write") else 0), error)
    with pytest.raises(type(error)) as met:
        await stores.copy(noise(8 * PART), lanes(chunk=PART))
    assert met.value is error
    assert stores.written() == {"file": b"old"}
    assert stores.at_rest()
    # Without the fault it works, so nothing of the first attempt is in the way.
    assert (await stores.again(lanes(chunk=PART))).size == 8 * PART


async def test_the_error_that_matters_most() -> None:
    """Of several that come at once, one that is not worth another try."""
    stores = await pair()
    gate = asyncio.Event()

    async def together(error: FastsyncError) -> None:
        await gate.wait()
        raise error

    async def last() -> None:
        gate.set()
        await together(Transient("cut"))

    full = DestinationFull("full")
    troubles: list[Callable[[], Any]] = [
        lambda: together(Transient("cut")), lambda: together(full), last
    ]  # fmt: skip
    stores.box.faults.then("write", *troubles)
    with pytest.raises(DestinationFull) as met:
        await stores.copy(noise(3 * PART), lanes(chunk=PART))
    assert met.value is full
    assert stores.at_rest()


async def test_a_bug_is_not_hidden() -> None:
    stores = await pair()
    stores.box.faults.then("write", ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await stores.copy(noise(3 * PART), lanes(chunk=PART))
    assert stores.at_rest()


@pytest.mark.parametrize("seekable", [True, False])
@pytest.mark.parametrize("content", [b"", b"short", noise(9 * PART)])
async def test_a_source_that_changes_meanwhile(seekable: bool, content: bytes) -> None:
    stores = await pair(seekable_reads=seekable)
    change: list[Callable[[], None] | None] = [None] * 3
    change.append(lambda: stores.box.put("from/file", content))
    stores.box.faults.then("write", *change)
    with pytest.raises(Changed):
        await stores.copy(noise(20 * PART), lanes(chunk=PART, streams=2))
    assert stores.written() == {}
    assert stores.at_rest()


@pytest.mark.parametrize("seekable", [True, False])
async def test_a_source_that_vanishes_meanwhile(seekable: bool) -> None:
    stores = await pair(seekable_reads=seekable)
    stores.box.put("from/file", b"")
    stores.box.faults.then("write", None, stores.box.root.children["from"].children.clear)
    with pytest.raises(Vanished):
        await stores.copy(noise(20 * PART), lanes(chunk=PART, streams=2))
    assert stores.written() == {}
    assert stores.at_rest()


class Liar:
    """A source that delivers other than what it listed, as no store should."""

    limits = Limits()

    def __init__(self, blocks: list[bytes], *, seekable: bool = True) -> None:
        self.location = parse("mem://liar")
        self.limits = Limits(seekable_reads=seekable)
        self._blocks = blocks

    async def read(self, entry: Entry, start: int, stop: int | None) -> AsyncIterator[Buffer]:
        for block in self._blocks:
            yield block


async def test_a_size_beyond_all_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs nothing to say, and must cost no memory to hear."""
    taken = 0

    def counted(size: int, part_size: int) -> Iterator[tuple[int, int]]:
        nonlocal taken
        for one in parts(size, part_size):
            taken += 1
            yield one

    monkeypatch.setattr(transfer_module, "parts", counted)
    source: Any = Liar([b"few"])
    sink = await open_bare("mem://bucket")
    with pytest.raises((Changed, IntegrityError)):
        await transfer(source, sink, file(TIB), "file", WriteOptions(), lanes(), ignore)
    assert taken < 100


@pytest.mark.parametrize("seekable", [True, False])
@pytest.mark.parametrize("blocks", [[], [b"123"], [b"123", b"456", b"7"], [b"12345678"]])
async def test_sizes_are_not_trusted(seekable: bool, blocks: list[bytes]) -> None:
    """Fewer or more bytes than were listed are an error before anything is visible."""
    source: Any = Liar(blocks, seekable=seekable)
    sink = await open_bare("mem://bucket")
    with pytest.raises((Changed, IntegrityError)):
        await transfer(source, sink, file(6), "file", WriteOptions(), lanes(), ignore)
    box = BareMemoryBackend.box("bucket")
    assert box.files() == {}
    assert box.uploads.now == 0


@pytest.mark.parametrize("blocks", [[], [b"123"], [b"1"] * 100, [noise(PART), noise(7)]])
async def test_a_size_that_nobody_knows(blocks: list[bytes]) -> None:
    source: Any = Liar(blocks)
    sink = await open_bare("mem://bucket")
    moved: list[int] = []
    shared = lanes(chunk=64)
    made, _ = await transfer(source, sink, file(None), "file", WriteOptions(), shared, moved.append)
    content = b"".join(blocks)
    assert made.size == sum(moved) == len(content)
    assert BareMemoryBackend.box("bucket").files() == {"file": content}


class Shrinker:
    """A sink whose store keeps less than it was given."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.limits = sink.limits
        self.aborted = 0

    async def upload(self, *arguments: Any) -> Upload:
        upload = await self._sink.upload(*arguments)
        commit = upload.commit

        async def short(size: int) -> Entry:
            return (await commit(size))._replace(size=size - 1)

        upload.commit = short  # type: ignore[method-assign]
        return upload


async def test_a_store_that_keeps_less() -> None:
    stores = await pair()
    stores.box.put("from/file", b"content")
    entry = await stores.source.stat("file")
    sink: Any = Shrinker(stores.sink)
    with pytest.raises(IntegrityError, match="the store has 6"):
        await transfer(stores.source, sink, entry, "file", WriteOptions(), lanes(), ignore)


# -- cancellation -------------------------------------------------------------------------------------


def slow(box: Box) -> None:
    """Let every call give way once, so that there is something to cancel."""
    for method in ("upload", "read", "write", "commit", "abort"):
        box.faults.always(method, 0.0)


@pytest.mark.parametrize("seekable", [True, False])
@pytest.mark.parametrize("turns", [*range(16), 20, 25, 31, 40, 60])
async def test_cancelled(turns: int, seekable: bool) -> None:
    """At any await: the old file or the whole new one, no upload, no read, no task left."""
    stores = await pair(seekable_reads=seekable)
    slow(stores.box)
    stores.box.put("to/file", b"old")
    content = noise(6 * PART)
    shared = lanes(streams=2, chunk=PART)
    task = asyncio.create_task(stores.copy(content, shared))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with_error = (await asyncio.gather(task, return_exceptions=True))[0]
    assert isinstance(with_error, asyncio.CancelledError | Entry)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert stores.at_rest()
    assert stores.written()["file"] in (
        (content,) if task.done() and not task.cancelled() else (content, b"old")
    )
    # Nothing of the budgets is lost.
    async with asyncio.timeout(1), shared.streams.spend(2), shared.memory.spend(8 * MIB):
        pass


@pytest.mark.parametrize("turns", range(30))
async def test_cancelled_in_the_moment_of_a_failure(turns: int) -> None:
    """A cancellation is not lost behind an error that comes at the same time."""
    stores = await pair()
    slow(stores.box)
    stores.box.faults.then("write", 0.0, Transient("cut"), Transient("cut"))
    finished = False

    async def copy() -> None:
        nonlocal finished
        try:
            await stores.copy(noise(6 * PART), lanes(streams=2, chunk=PART))
        except Transient:
            finished = True
            await asyncio.sleep(60)  # as the engine does before it tries again

    task = asyncio.create_task(copy())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(1):
        await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert stores.at_rest()


async def test_cancelled_twice() -> None:
    """Who is impatient does not keep the upload from being forgotten."""
    stores = await pair()
    slow(stores.box)
    stores.box.faults.always("abort", 0.01)
    task = asyncio.create_task(stores.copy(noise(6 * PART), lanes(chunk=PART)))
    for _ in range(6):
        await asyncio.sleep(0)
    assert stores.box.uploads.now == 1
    for _ in range(2):
        task.cancel()
        for _ in range(4):
            await asyncio.sleep(0)
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(0.03)
    assert stores.box.uploads.now == 0
    assert stores.written() == {}


def test_reads_fit_into_the_least_budget() -> None:
    """What `test_the_memory_promise` begins with is the least that the settings allow."""
    from fastsync.settings import SETTINGS

    assert SETTINGS["buffer_size"].kind.least >= 2 * READ_BUFFER


@pytest.mark.parametrize("streams", [1, 4, 16])
@pytest.mark.parametrize(("start", "stop"), [(0, 1000), (7, 8), (100, 10_000), (5, 5)])
def test_tapering_parts(start: int, stop: int, streams: int) -> None:
    ranges = list(tapering(start, stop, 64, streams))
    lengths = [high - low for low, high in ranges]
    assert [low for low, _ in ranges] == [start, *(high for _, high in ranges)][: len(ranges)]
    assert sum(lengths) == stop - start
    assert all(16 <= length <= 256 for length in lengths[:-1])
    assert lengths[:-1] == sorted(lengths[:-1], reverse=True)
