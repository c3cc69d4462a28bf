from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from fastsync_local import parallel
from fastsync_local.copying import Copier, Rules
from fastsync_local.held import open_root
from fastsync_local.parallel import SEGMENT, copies_plainly, idle_processors, in_parallel


@pytest.mark.parametrize("size", [0, 1, SEGMENT - 1, SEGMENT, 5 * SEGMENT + 3])
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_every_byte_is_copied_once(size: int, threads: int) -> None:
    ranges: list[tuple[int, int]] = []
    in_parallel(size, threads, lambda start, stop: ranges.append((start, stop)))
    ranges.sort()
    assert sum(stop - start for start, stop in ranges) == size
    borders = [0, *(stop for _, stop in ranges)]
    assert [start for start, _ in ranges] == borders[:-1]


def test_the_first_error_is_raised_when_every_thread_is_done() -> None:
    def copy(start: int, _stop: int) -> None:
        if start == 2 * SEGMENT:
            raise OSError(5, "input/output error")

    before = threading.active_count()
    with pytest.raises(OSError, match="input/output"):
        in_parallel(100 * SEGMENT, 3, copy)
    assert threading.active_count() == before


def test_an_unknown_device_has_no_plain_filesystem() -> None:
    assert not copies_plainly(os.makedev(4000, 4000))


def test_at_least_our_own_processor_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= idle_processors(2) <= 2
    assert idle_processors(1) == 1


def test_a_large_file_by_two_threads_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastsync_local.copying.PARALLEL_FROM", 1)
    monkeypatch.setattr("fastsync_local.copying.copies_plainly", lambda _device: True)
    monkeypatch.setattr(parallel, "SEGMENT", 100_000)
    content = os.urandom(3_000_001)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a/big").write_bytes(content)
    status = (tmp_path / "a/big").stat()
    moved: list[int] = []
    copier = Copier(
        open_root(str(tmp_path / "a")),
        open_root(str(tmp_path / "b")),
        Rules(),
        stopped=lambda: False,
        moved=moved.append,
        threads=2,
    )
    try:
        job = ("big", "big", status.st_size, status.st_mtime_ns, 0o640, None)
        assert copier.run([job]) == [None]
    finally:
        copier.close()
    assert (tmp_path / "b/big").read_bytes() == content
    assert (tmp_path / "b/big").stat().st_mtime_ns == status.st_mtime_ns
    assert sum(moved) == len(content)
    assert os.listdir(tmp_path / "b") == ["big"]


def test_a_source_that_shrinks_under_two_threads_is_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastsync_local.copying.PARALLEL_FROM", 1)
    monkeypatch.setattr("fastsync_local.copying.copies_plainly", lambda _device: True)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    source = tmp_path / "a/big"
    source.write_bytes(bytes(40 << 20))
    status = source.stat()
    copier = Copier(
        open_root(str(tmp_path / "a")),
        open_root(str(tmp_path / "b")),
        Rules(),
        stopped=lambda: False,
        moved=lambda _count: os.truncate(source, 1000),
        threads=2,
    )
    try:
        job = ("big", "big", status.st_size, status.st_mtime_ns, 0o640, None)
        (problem,) = copier.run([job])
    finally:
        copier.close()
    assert problem is not None
    assert problem[0] == "changed"
    assert os.listdir(tmp_path / "b") == []
