"""Small files that are written without a thread, and when that ends."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fastsync.backend import Entry, StoreOptions, WholeJob, WriteOptions
from fastsync.location import Location
from fastsync_local import small
from fastsync_local import store as store_module
from fastsync_local.backend import LocalBackend


@pytest.mark.parametrize("seconds", [0.0, 1.0], ids=["a page cache", "a slow disk"])
async def test_a_slow_disk_gets_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    writers: list[bool] = []
    now = 0.0
    write = small.write_files

    def writing(held: Any, jobs: Sequence[WholeJob], *more: Any) -> list[Any]:
        nonlocal now
        now += seconds
        writers.extend([threading.current_thread() is threading.main_thread()] * len(jobs))
        return list(write(held, jobs, *more))

    monkeypatch.setattr(small, "write_files", writing)
    monkeypatch.setattr(store_module, "write_files", writing)
    monkeypatch.setattr(small, "monotonic", lambda: now)
    jobs = [
        WholeJob(Entry(f"{number:03}", "file", 3, 0), f"{number:03}", b"abc", None)
        for number in range(200)
    ]
    backend = LocalBackend()
    store = await backend.connect(Location("file", str(tmp_path)), StoreOptions())
    try:
        assert await store.write_whole(jobs, WriteOptions()) == [None] * len(jobs)
    finally:
        await store.aclose()
        await backend.aclose()
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"abc"}
    assert len(list(tmp_path.iterdir())) == len(writers) == len(jobs)
    assert all(writers) == (seconds == 0)
    assert any(writers)
