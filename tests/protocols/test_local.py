"""Directories of this machine keep the contract, and what only a disk can do to a reader is noticed."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Collection
from pathlib import Path

import pytest
import pytest_asyncio

from fastsync.backend import (
    Backend,
    LocalFiles,
    ScanOptions,
    Sink,
    Source,
    StoreOptions,
    WriteOptions,
)
from fastsync.errors import Changed, Conflict, UsageError
from fastsync.location import Location, parse
from fastsync.testing import StoreConformance
from fastsync.testing.vocabulary import begin, collect, expect, listing, noise, write
from fastsync_local.backend import LocalBackend


class TestLocal(StoreConformance):
    async def make_root(self, tmp_path: Path) -> tuple[Backend, Location]:
        root = tmp_path / "root"
        root.mkdir()
        return LocalBackend(), parse(str(root))

    async def traces(self, sink: Sink) -> Collection[str]:
        """What the disk has, temporary files included, which a listing would hide."""
        top = Path(sink.location.path)
        return [
            str(path.relative_to(top))
            for path in sorted(top.rglob("*"))
            if path.is_symlink() or not path.is_dir()
        ]


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[Sink]:
    backend = LocalBackend()
    store = await backend.connect(parse(str(tmp_path)), StoreOptions())
    yield store
    await store.aclose()
    await backend.aclose()


async def overtaken(store: Source, path: Path, change: bytes, at: int) -> bytes:
    """Read a file of which `change` is written to offset `at` once the first bytes have arrived."""
    entry = await store.stat(path.name)
    reading = store.read(entry, 0, None)
    content = bytes(await anext(reading))
    with path.open("r+b") as file:
        file.seek(at)
        file.write(change)
        if not change:
            file.truncate()
    return content + await collect(reading)


@pytest.mark.parametrize("at", [0, 7 << 20])
async def test_writing_to_a_file_while_it_is_read(store: Sink, tmp_path: Path, at: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(noise(8 << 20))
    with pytest.raises(Changed):
        await overtaken(store, path, b"CHANGED", at)


async def test_cutting_a_file_while_it_is_read(store: Sink, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(noise(8 << 20))
    with pytest.raises(Changed):
        await overtaken(store, path, b"", 3 << 20)


async def test_a_pinned_file_notices_a_write(store: Sink, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    os.utime(path, ns=(0, 0))
    assert isinstance(store, LocalFiles)
    pinned = await store.open_file(await store.stat("file"))
    try:
        pinned.verify()
        path.write_bytes(b"CONTENT")
        with pytest.raises(Changed):
            pinned.verify()
    finally:
        pinned.close()


async def test_a_temporary_file_is_not_listed(store: Sink, tmp_path: Path) -> None:
    upload = await begin(store, "file")
    await upload.write(0, b"content")
    assert os.listdir(tmp_path) != []
    assert await listing(store) == []
    await upload.abort()
    assert os.listdir(tmp_path) == []


async def test_special_files_are_listed_as_such(store: Sink, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (entry,) = await listing(store)
    assert (entry.path, entry.kind, entry.size) == ("fifo", "special", None)
    (answer,) = await store.delete([entry])
    assert answer is None


async def test_the_root_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "door").symlink_to("real")
    backend = LocalBackend()
    store = await backend.connect(parse(str(tmp_path / "door")), StoreOptions())
    await write(store, "d/file", b"content")
    await expect(store, {"d/file": b"content"})
    assert (tmp_path / "real/d/file").read_bytes() == b"content"
    real = await backend.connect(parse(str(tmp_path / "real")), StoreOptions())
    assert real.address() == store.address()
    await backend.aclose()


async def test_a_file_is_no_place_to_list_or_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    backend = LocalBackend()
    store = await backend.connect(parse(str(tmp_path / "file")), StoreOptions())
    with pytest.raises(Conflict):
        await listing(store, ScanOptions(missing_ok=True))
    with pytest.raises(Conflict):
        await write(store, "below", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"
    await backend.aclose()


async def test_an_old_file_keeps_its_hard_links_only_in_place(store: Sink, tmp_path: Path) -> None:
    for options, other in ((WriteOptions(), b"old"), (WriteOptions(inplace=True), b"new")):
        for path in (tmp_path / "file", tmp_path / "other"):
            path.unlink(missing_ok=True)
        (tmp_path / "file").write_bytes(b"old")
        os.link(tmp_path / "file", tmp_path / "other")
        await write(store, "file", b"new", options=options)
        assert (tmp_path / "file").read_bytes() == b"new"
        assert (tmp_path / "other").read_bytes() == other


async def test_an_empty_path_is_no_place() -> None:
    with pytest.raises(UsageError):
        await LocalBackend().connect(Location("file", ""), StoreOptions())
