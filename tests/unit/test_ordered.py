"""`cat`: many ranges at once, written in order, in bounded memory; and `pipe`, the way back."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

import fastsync
from fastsync import ordered
from fastsync.backend import Buffer, Download, Entry, Limits, Progress
from fastsync.errors import (
    Changed,
    FastsyncError,
    IntegrityError,
    ListingError,
    Transient,
    UsageError,
)
from fastsync.location import parse
from fastsync.registry import Claim, Registry
from fastsync.session import Request
from fastsync.settings import Settings
from fastsync.testing import BareMemoryBackend, MemoryBackend
from fastsync.testing.memory import BareMemoryStore
from tests.unit.conftest import CLAIMS

pytestmark = pytest.mark.usefixtures("memory_stores")

CHUNK = 4096
CONTENT = random.Random(7).randbytes(40 * CHUNK + 123)


class Reader:
    """The other end of a pipe; reads all of it in a thread, after a while."""

    def __init__(self, hold: threading.Event | None = None) -> None:
        self._read, self.write = os.pipe()
        self._hold = hold
        self._parts: list[bytes] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        if self._hold is not None:
            self._hold.wait(20)
        with open(self._read, "rb") as file:
            self._parts.append(file.read())

    def everything(self) -> bytes:
        os.close(self.write)
        self._thread.join()
        return self._parts[0]


def cat(places: str | Sequence[str], **options: object) -> bytes:
    """What `cat` gives of places that are all right."""
    reader = Reader()
    try:
        options = {"chunk_size": CHUNK, **options}
        fastsync.cat(places, reader.write, **options)  # type: ignore[arg-type]
    finally:
        content = reader.everything()
    return content


@pytest.mark.parametrize("place", ["mem://m/f", "bucket://b/f"])
@pytest.mark.parametrize("streams", [1, 3, 64])
def test_the_bytes_in_order(place: str, streams: int) -> None:
    MemoryBackend.box("m").put("f", CONTENT)
    BareMemoryBackend.box("b").put("f", CONTENT)
    assert cat(place, parallel_streams=streams) == CONTENT


@pytest.mark.parametrize("method", ["read", "read_into_file"])
def test_late_pieces_wait_for_early_ones(method: str) -> None:
    box = MemoryBackend.box("m") if method == "read_into_file" else BareMemoryBackend.box("b")
    box.put("f", CONTENT)
    box.faults.then(method, 0.2)  # the first piece is slow
    box.faults.always(method, 0.01)
    place = "mem://m/f" if method == "read_into_file" else "bucket://b/f"
    started = time.monotonic()
    assert cat(place, parallel_streams=4) == CONTENT
    assert box.streams.peak == 4
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("offset", "count"),
    [
        (0, 0),
        (0, 1),
        (CHUNK - 1, 2),
        (5, None),
        (3 * CHUNK, CHUNK),
        (len(CONTENT) - 1, 99),
        (len(CONTENT), None),
        (10**12, 5),
    ],
)
@pytest.mark.parametrize("kind", ["ranges", "stream", "disk"])
def test_a_part_of_it(tmp_path: Path, kind: str, offset: int, count: int | None) -> None:
    if kind == "disk":
        (tmp_path / "f").write_bytes(CONTENT)
        place = f"{tmp_path}/f"
    else:
        box = BareMemoryBackend.box("b")
        box.limits = Limits(seekable_reads=kind == "ranges")
        box.put("f", CONTENT)
        place = "bucket://b/f"
    stop = None if count is None else offset + count
    assert cat(place, offset=offset, count=count) == CONTENT[offset:stop]


def test_several_places_and_wildcards(tmp_path: Path) -> None:
    box = BareMemoryBackend.box("b")
    (tmp_path / "disk").write_bytes(b"disk,")
    for name in ("logs/1", "logs/2", "logs/x"):
        box.put(name, name.encode() + b",")
    box.put("empty", b"")
    places = ["bucket://b/logs/x", f"{tmp_path}/disk", "bucket://b/empty", "bucket://b/logs/[12]"]
    assert cat(places) == b"logs/x,disk,logs/1,logs/2,"


def test_many_small_files_hold_few_descriptors(tmp_path: Path) -> None:
    box = BareMemoryBackend.box("b")
    for number in range(500):
        box.put(f"f{number:03}", b"%03d" % number)
    before = len(os.listdir("/proc/self/fd"))
    assert cat("bucket://b/*") == b"".join(b"%03d" % number for number in range(500))
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_slow_reader_holds_the_fetching_back() -> None:
    box = BareMemoryBackend.box("b")
    content = bytes(16 << 20)
    box.put("f", content)
    hold = threading.Event()
    reader = Reader(hold)
    request = Request(Settings(parallel_streams=4, chunk_size=256 << 10, buffer_size=2 << 20))

    async def run() -> int:
        task = asyncio.create_task(ordered.run_cat("bucket://b/f", request, reader.write))
        read = -1
        while read != (read := box.faults.calls["read"]):
            await asyncio.sleep(0.2)
        assert not task.done()
        hold.set()
        await task
        return read

    # What the pipe holds and what the buffer holds, each block being of 256 KiB.
    assert asyncio.run(run()) <= 4 + 8
    assert reader.everything() == content
    assert box.held.peak <= 2 << 20


def test_nobody_waits_for_memory_that_a_later_piece_has() -> None:
    BareMemoryBackend.box("b").put("f", CONTENT)
    buffer = 2 * CHUNK + 1  # not two pieces with the reads that fill them
    assert cat("bucket://b/f", parallel_streams=64, buffer_size=2 << 20) == CONTENT
    reader = Reader()
    request = Request(Settings(parallel_streams=64, chunk_size=CHUNK, buffer_size=buffer))
    asyncio.run(ordered.run_cat("bucket://b/f", request, reader.write))
    assert reader.everything() == CONTENT


# -- trouble -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["mem://m/f", "bucket://b/f"])
def test_passing_errors_are_tried_again(place: str) -> None:
    for box, method in (
        (MemoryBackend.box("m"), "read_into_file"),
        (BareMemoryBackend.box("b"), "read"),
    ):
        box.put("f", CONTENT)
        box.faults.then(method, Transient("cut"), None, Transient("cut"), Transient("cut"))
    assert cat(place, parallel_streams=2) == CONTENT


def test_tries_come_to_an_end() -> None:
    box = BareMemoryBackend.box("b")
    box.put("f", CONTENT)
    box.faults.always("read", Transient("cut"))
    reader = Reader()
    with pytest.raises(Transient, match="cut"):
        fastsync.cat("bucket://b/f", reader.write, retry_count=2)
    assert reader.everything() == b""
    assert box.faults.calls["read"] == 3


def test_errors_behind_the_first_are_no_news(caplog: pytest.LogCaptureFixture) -> None:
    box = BareMemoryBackend.box("b")
    box.put("f", CONTENT)
    box.faults.always("read", IntegrityError("wrong"))
    reader = Reader()
    with pytest.raises(IntegrityError):
        fastsync.cat("bucket://b/f", reader.write, chunk_size=CHUNK, parallel_streams=8)
    assert reader.everything() == b""
    gc.collect()
    assert not caplog.records


def test_a_range_goes_on_where_it_broke_off() -> None:
    box = BareMemoryBackend.box("b")
    content = random.Random(1).randbytes(1 << 20)
    box.put("f", content)
    # Blocks are of 256 KiB; the third of the one range breaks off.
    box.faults.then("read", None, None, Transient("cut"))
    assert cat("bucket://b/f", parallel_streams=1, chunk_size="1M") == content
    assert box.faults.calls["read"] == 5  # not all four again


def test_what_came_before_an_error_is_written() -> None:
    box = BareMemoryBackend.box("b")
    box.put("a", b"first")
    box.put("b", CONTENT)
    box.faults.always("read", Changed("it changed"), path="b")
    reader = Reader()
    with pytest.raises(Changed, match="bucket://b/b"):
        fastsync.cat(["bucket://b/a", "bucket://b/b"], reader.write)
    assert reader.everything() == b"first"


def test_all_places_are_looked_at_first() -> None:
    BareMemoryBackend.box("b").put("dir/a", b"first")
    for wrong, error in (("bucket://b/nope", ListingError), ("bucket://b/dir", UsageError)):
        reader = Reader()
        with pytest.raises(error):
            fastsync.cat(["bucket://b/dir/a", wrong], reader.write)
        assert reader.everything() == b""


@pytest.mark.parametrize("place", ["mem://m/f", "bucket://b/f", "disk"])
def test_a_closed_pipe(tmp_path: Path, place: str) -> None:
    MemoryBackend.box("m").put("f", CONTENT)
    BareMemoryBackend.box("b").put("f", CONTENT)
    (tmp_path / "f").write_bytes(CONTENT)
    read, write = os.pipe()
    os.close(read)
    with pytest.raises(BrokenPipeError):
        fastsync.cat(f"{tmp_path}/f" if place == "disk" else place, write, chunk_size=CHUNK)
    os.close(write)
    assert BareMemoryBackend.box("b").held.now == 0


async def test_cancellation_leaves_nothing_even_if_nobody_reads() -> None:
    box = BareMemoryBackend.box("b")
    box.put("f", bytes(8 << 20))
    read, write = os.pipe()
    before = len(os.listdir("/proc/self/fd"))
    request = Request(Settings(chunk_size=1 << 20))
    task = asyncio.create_task(ordered.run_cat("bucket://b/f", request, write))
    await asyncio.sleep(0.2)
    started = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - started < 1
    assert len(os.listdir("/proc/self/fd")) == before
    assert (box.held.now, box.streams.now) == (0, 0)
    os.close(read)
    os.close(write)


# -- stores of other kinds ----------------------------------------------------------------------------


class _Checked:
    """A download that says at its end whether it was right."""

    def __init__(self, store: BareMemoryStore, entry: Entry, verdict: FastsyncError | None) -> None:
        self.entry = entry
        self._store = store
        self._verdict = verdict
        self.seen: list[int | None] = []

    async def read_into_file(self, start: int, stop: int, fd: int, progress: Progress) -> None:
        async for buffer in self._store.read(self.entry, start, stop):
            start += os.pwrite(fd, buffer, start)

    def read(self, start: int, stop: int) -> AsyncIterator[Buffer]:
        return self._store.read(self.entry, start, stop)

    async def verify(self, fd: int | None) -> bool:
        if self._verdict is not None:
            raise self._verdict
        return True


class CheckedStore(BareMemoryStore):
    verdict: FastsyncError | None = None

    async def open_download(self, entry: Entry) -> Download:
        return _Checked(self, entry, self.verdict)


class CheckedBackend(BareMemoryBackend):
    _store = CheckedStore


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Callable[[FastsyncError | None], None]:
    claims = [*CLAIMS, Claim("checked", f"{__name__}:CheckedBackend")]
    registry = Registry(claims)
    load = registry.load
    monkeypatch.setattr(
        registry, "load", lambda name: CheckedBackend if name == "checked" else load(name)
    )
    monkeypatch.setattr(Registry, "from_entry_points", lambda: registry)
    CheckedBackend.box("b").put("f", CONTENT)

    def judge(verdict: FastsyncError | None) -> None:
        monkeypatch.setattr(CheckedStore, "verdict", verdict)

    return judge


def test_digests_are_checked_before_the_last_bytes(
    checked: Callable[[FastsyncError | None], None],
) -> None:
    checked(None)
    assert cat("checked://b/f") == CONTENT
    checked(IntegrityError("wrong bytes"))
    reader = Reader()
    with pytest.raises(IntegrityError, match="wrong bytes"):
        fastsync.cat("checked://b/f", reader.write, chunk_size=CHUNK)
    written = reader.everything()
    assert len(written) < len(CONTENT)
    assert CONTENT.startswith(written)


def test_a_stream_is_never_spliced_from_two_versions() -> None:
    box = BareMemoryBackend.box("b")
    box.limits = Limits(seekable_reads=False)
    content = random.Random(2).randbytes(1 << 20)
    box.put("f", content)
    box.faults.then("read", None, None, Transient("cut"))
    assert cat("bucket://b/f") == content  # the version is pinned, so it may be read again
    box.faults.then("read", None, lambda: box.put("f", bytes(1 << 20)), Transient("cut"))
    reader = Reader()
    with pytest.raises(Changed):
        fastsync.cat("bucket://b/f", reader.write)
    assert content.startswith(reader.everything())


# -- the way back ------------------------------------------------------------------------------------


def feed(content: bytes) -> int:
    """A descriptor that gives `content` bit by bit."""
    read, write = os.pipe()

    def run() -> None:
        with open(write, "wb", buffering=0) as file:
            file.writelines(content[at : at + 10_000] for at in range(0, len(content), 10_000))

    threading.Thread(target=run).start()
    return read


@pytest.mark.parametrize("size", [0, 1, len(CONTENT), (3 << 20) + 17])
@pytest.mark.parametrize("scheme", ["mem", "bucket", "disk"])
def test_piped_and_back(tmp_path: Path, scheme: str, size: int) -> None:
    content = random.Random(size).randbytes(size)
    place = f"{tmp_path}/a/f" if scheme == "disk" else f"{scheme}://b/a/f"
    fd = feed(content)
    summary = fastsync.pipe(place, source=fd, chunk_size="1M", buffer_size="4M")
    os.close(fd)
    assert (summary.exit_code, summary.totals.bytes_copied) == (0, size)
    assert cat(place) == content


def test_a_piped_file_has_the_time_it_was_written(tmp_path: Path) -> None:
    fd = feed(b"content")
    fastsync.pipe(f"{tmp_path}/f", source=fd)
    os.close(fd)
    status = (tmp_path / "f").stat()
    assert abs(status.st_mtime - time.time()) < 60
    mask = os.umask(0)
    os.umask(mask)
    assert status.st_mode & 0o777 == 0o666 & ~mask


def test_a_failed_pipe_leaves_what_was_there() -> None:
    box = BareMemoryBackend.box("b")
    box.put("f", b"old")
    box.faults.then("write", IntegrityError("wrong"))
    fd = feed(CONTENT)
    summary = fastsync.pipe("bucket://b/f", source=fd)
    os.close(fd)
    assert summary.exit_code == 4
    assert box.files() == {"f": b"old"}
    assert box.uploads.now == 0


def test_passing_errors_do_not_lose_what_was_read() -> None:
    box = BareMemoryBackend.box("b")
    box.faults.then("write", Transient("cut"), Transient("cut"))
    fd = feed(CONTENT)
    assert fastsync.pipe("bucket://b/f", source=fd, retry_count=3).exit_code == 0
    os.close(fd)
    assert box.files() == {"f": CONTENT}


def test_where_a_pipe_cannot_end(tmp_path: Path) -> None:
    for place in (f"{tmp_path}", f"{tmp_path}/new/", "-"):
        with pytest.raises(UsageError):
            fastsync.pipe(place, source=0)
    assert parse("-").is_stream


def test_an_existing_file_may_stay() -> None:
    box = BareMemoryBackend.box("b")
    box.put("f", b"old")
    summary = fastsync.pipe("bucket://b/f", source=0, ignore_existing=True)
    assert (summary.exit_code, summary.totals.files_skipped) == (0, 1)
    assert box.files() == {"f": b"old"}
