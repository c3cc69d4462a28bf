"""The stores in memory keep the contract: the full one, the bare one, and one as strict as a bucket."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from fastsync.backend import (
    Backend,
    CopiesWithin,
    Entry,
    Hashes,
    KeepsDirectories,
    KeepsLinks,
    Limits,
    ReadsIntoFile,
    ScanOptions,
    SetsAttributes,
    Sink,
    StoreOptions,
    WriteOptions,
    WritesFromFile,
)
from fastsync.errors import Transient, UsageError
from fastsync.location import Location, parse
from fastsync.testing import (
    BareMemoryBackend,
    Faults,
    Gauge,
    MemoryBackend,
    ObjectMemoryBackend,
    StoreConformance,
)

_names = itertools.count()


class TestMemory(StoreConformance):
    async def make_root(self, tmp_path: Path) -> tuple[Backend, Location]:
        return MemoryBackend(), parse(f"mem://box{next(_names)}")


class TestBare(StoreConformance):
    async def make_root(self, tmp_path: Path) -> tuple[Backend, Location]:
        return BareMemoryBackend(), parse(f"mem://box{next(_names)}/")


class TestBucket(StoreConformance):
    """Whole parts of a least size, times in seconds, a place below the top."""

    async def make_root(self, tmp_path: Path) -> tuple[Backend, Location]:
        name = f"bucket{next(_names)}"
        box = BareMemoryBackend.box(name)
        box.limits = Limits(min_part=100_000, mtime_step_ns=1_000_000_000, mode_mask=0o777)
        box.put("neighbour", b"content")
        box.put("place/marker", b"")
        del box.root.children["place"].children["marker"]
        return BareMemoryBackend(), parse(f"mem://{name}/place/")


class TestObjects(StoreConformance):
    """Times that only a closer look tells, batches, guarded writes."""

    async def make_root(self, tmp_path: Path) -> tuple[Backend, Location]:
        return ObjectMemoryBackend(), parse(f"mem://box{next(_names)}/")


@pytest.fixture(autouse=True)
def _forget_boxes() -> None:
    MemoryBackend.reset()
    BareMemoryBackend.reset()
    ObjectMemoryBackend.reset()


async def connect(backend: MemoryBackend, place: str = "mem://box/") -> Sink:
    store = await backend.connect(parse(place), StoreOptions())
    assert isinstance(store, Sink)
    return store


async def test_abilities() -> None:
    abilities = (
        CopiesWithin, Hashes, KeepsDirectories, KeepsLinks, ReadsIntoFile, SetsAttributes,
    )  # fmt: skip
    like = Entry("file", "file", None, None)
    for backend, has in ((MemoryBackend(), True), (BareMemoryBackend(), False)):
        store = await connect(backend)
        assert [isinstance(store, ability) for ability in abilities] == [has] * len(abilities)
        upload = await store.upload("file", like, WriteOptions(), 1)
        assert isinstance(upload, WritesFromFile) == has


async def test_stores_share_a_box_by_name() -> None:
    box = MemoryBackend.box("box")
    box.put("a/b", b"content", mtime_ns=5, mode=0o600)
    for place, path in (("mem://box/", "a/b"), ("mem://box/a", "b"), ("mem://box/a/", "b")):
        store = await connect(MemoryBackend(), place)
        entry = await store.stat(path)
        assert entry[:5] == (path, "file", 7, 5, 0o600)
    assert box.files() == {"a/b": b"content"}
    MemoryBackend.reset()
    assert MemoryBackend.box("box").files() == {}


async def test_a_bare_directory_goes_with_its_last_file() -> None:
    store = await connect(BareMemoryBackend())
    BareMemoryBackend.box("box").put("a/b/c", b"")
    assert (await store.stat("a/b")).kind == "dir"
    await store.delete([await store.stat("a/b/c")])
    assert [page async for page in store.scan(ScanOptions(recursive=False))] == []


async def test_a_bucket_takes_whole_parts_only() -> None:
    BareMemoryBackend.box("box").limits = Limits(min_part=10, max_parts=3)
    store = await connect(BareMemoryBackend())
    like = Entry("file", "file", None, None)
    with pytest.raises(UsageError, match="parts of 9 bytes"):
        await store.upload("file", like, WriteOptions(), 9)
    upload = await store.upload("file", like, WriteOptions(), 10)
    with pytest.raises(UsageError, match="not a part"):
        await upload.write(5, bytes(10))
    await upload.write(0, bytes(9))
    await upload.write(10, bytes(10))
    await upload.write(0, bytes(10))
    assert (await upload.commit(20)).size == 20
    assert BareMemoryBackend.box("box").uploads.now == 0


async def test_faults_come_in_order_and_once() -> None:
    box = MemoryBackend.box("box")
    box.put("a", b"content")
    box.put("b", b"content")
    store = await connect(MemoryBackend())
    met: list[str] = []
    box.faults.then("stat", Transient("cut"), None, 0.001, lambda: met.append("called"))
    with pytest.raises(Transient):
        await store.stat("a")
    for _ in range(4):
        await store.stat("a")
    assert met == ["called"]
    assert box.faults.calls["stat"] == 5


async def test_faults_of_one_path_and_for_good() -> None:
    faults = Faults()
    faults.then("read", Transient("first"), path="a")
    faults.always("read", Transient("always"), path="a")
    await faults.meet("read", "b")
    for message in ("first", "always", "always"):
        with pytest.raises(Transient, match=message):
            await faults.meet("read", "a")

    async def later() -> None:
        await asyncio.sleep(0)
        met.append("awaited")

    met: list[str] = []
    faults.then("write", later)
    await faults.meet("write", "a")
    assert met == ["awaited"]


async def test_the_gauges_of_a_box() -> None:
    box = BareMemoryBackend.box("box")
    box.put("a", bytes(1_000_000))
    store = await connect(BareMemoryBackend())
    reading = store.read(await store.stat("a"), 0, None)
    block = await anext(reading)
    assert (box.held.now, box.streams.now) == (len(block), 1)
    async for _ in reading:
        pass
    assert (box.held.now, box.streams.now) == (0, 0)
    assert 0 < box.held.peak < 1_000_000

    box.faults.then("write", 0.01)
    upload = await store.upload("b", Entry("b", "file", None, None), WriteOptions(), 100)
    writing = asyncio.create_task(upload.write(0, bytes(500_000)))
    await asyncio.sleep(0)
    assert (box.held.now, box.uploads.now) == (500_000, 1)
    await writing
    await upload.abort()
    assert (box.held.now, box.uploads.now, box.uploads.peak) == (0, 0, 1)


def test_a_gauge_remembers_its_peak() -> None:
    gauge = Gauge()
    with gauge.holding(3):
        with gauge.holding(4):
            pass
        gauge.take(1)
    assert (gauge.now, gauge.peak) == (1, 7)
