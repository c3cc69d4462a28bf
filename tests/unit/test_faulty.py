"""A backend with trouble before it: the same abilities, and each kind of trouble as it is told."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fastsync.backend import (
    CopiesWithin,
    CopyJob,
    Downloads,
    Entry,
    KeepsLinks,
    LocalFiles,
    LocalUpload,
    ReadsWhole,
    ScanOptions,
    Sink,
    StoreOptions,
    WriteOptions,
    WritesFromFile,
)
from fastsync.errors import Changed, Stalled, Throttled, Transient
from fastsync.location import parse
from fastsync.testing import (
    After,
    BareMemoryBackend,
    FaultyBackend,
    MemoryBackend,
    ObjectMemoryBackend,
    Short,
)
from fastsync.testing.vocabulary import collect, files, read, write
from fastsync_local.backend import LocalBackend


async def faulty(backend: type, place: str = "mem://faulty") -> tuple[FaultyBackend, Sink]:
    made = FaultyBackend(backend())
    store = await made.connect(parse(place), StoreOptions())
    assert isinstance(store, Sink)
    return made, store


@pytest.fixture(autouse=True)
def _forget_boxes() -> None:
    for backend in (MemoryBackend, BareMemoryBackend, ObjectMemoryBackend):
        backend._boxes.pop("faulty", None)


@pytest.mark.parametrize("backend", [MemoryBackend, BareMemoryBackend, ObjectMemoryBackend])
async def test_the_same_abilities(backend: type) -> None:
    _, store = await faulty(backend)
    plain = await backend().connect(parse("mem://faulty"), StoreOptions())
    for ability in (CopiesWithin, KeepsLinks, ReadsWhole, Downloads, LocalFiles):
        assert isinstance(store, ability) == isinstance(plain, ability)
    like = Entry("a", "file", None, None)
    upload = await store.upload("a", like, WriteOptions(), 10)
    assert isinstance(upload, WritesFromFile) == (backend is MemoryBackend)
    await upload.abort()


async def test_a_disk_is_one_as_well(tmp_path: Path) -> None:
    made, store = await faulty(LocalBackend, str(tmp_path))
    assert isinstance(store, LocalFiles)
    assert isinstance(store, CopiesWithin)
    assert store.can_copy_from(store)  # another one of its kind, whatever is between them
    await write(store, "a", b"content")
    job = CopyJob(await store.stat("a"), "b")
    assert await store.copy_from(store, [job], WriteOptions(), lambda _: None) == [None]
    upload = await store.upload("c", job.entry, WriteOptions(), 10)
    assert isinstance(upload, LocalUpload)
    await upload.abort()
    assert await files(store) == ["a", "b"]
    await store.aclose()
    await made.aclose()


async def test_errors_and_delays() -> None:
    made, store = await faulty(MemoryBackend)
    made.faults.then("upload", Throttled("busy"), None)
    made.faults.then("stat", 0.05, path="a")
    with pytest.raises(Throttled):
        await write(store, "a", b"content")
    await write(store, "a", b"content")
    began = time.monotonic()
    await store.stat("a")
    assert time.monotonic() - began >= 0.05
    made.faults.then("connect", Stalled("silent"))
    with pytest.raises(Stalled):
        await made.connect(parse("mem://faulty"), StoreOptions())


async def test_a_lost_answer() -> None:
    made, store = await faulty(MemoryBackend)
    upload = await store.upload("a", Entry("a", "file", None, None), WriteOptions(), 10)
    made.faults.then("commit", After(Transient("cut")))
    await upload.write(0, b"content")
    with pytest.raises(Transient):
        await upload.commit(7)
    assert await read(store, "a") == b"content"
    # Of an upload that was begun nobody heard, so nothing is left of it.
    made.faults.then("upload", After(Transient("cut")))
    with pytest.raises(Transient):
        await write(store, "b", b"content")
    assert MemoryBackend.box("faulty").uploads.now == 0


async def test_reads_that_end_too_soon() -> None:
    made, store = await faulty(MemoryBackend)
    await write(store, "a", b"content")
    entry = await store.stat("a")
    made.faults.then("read", Short(3), Short(4, Changed("another")), Short(0))
    assert await collect(store.read(entry, 0, None)) == b"con"
    reading = store.read(entry, 0, None)
    assert await anext(reading) == b"cont"
    with pytest.raises(Changed):
        await anext(reading)
    assert await collect(store.read(entry, 0, None)) == b""
    assert await collect(store.read(entry, 0, None)) == b"content"
    made.faults.then("scan", Short(0, Transient("cut")))
    with pytest.raises(Transient):
        [page async for page in store.scan(ScanOptions())]


async def test_items_of_a_batch_fail_by_themselves() -> None:
    made, store = await faulty(MemoryBackend)
    for path in ("a", "b", "c"):
        await write(store, path, b"content")
    entries = [await store.stat(path) for path in ("a", "b", "c")]
    made.faults.then("delete", Transient("cut"), path="b")
    made.faults.then("delete", After(Stalled("silent")), path="c")
    first, second, third = await store.delete(entries)
    assert first is None
    assert type(second) is Transient
    assert type(third) is Stalled
    assert await files(store) == ["b"]
    assert made.faults.calls["delete"] == 3
