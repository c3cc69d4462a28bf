"""Nothing is left open by transfers that fail: descriptors, threads, tasks, processes, temporary files."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hostile_s3 import HostileS3, cut, hang_up
from sshd import running_sshd

import fastsync

FILES = 100
LARGE = b"l" * 3_000_000
# Small ones and a few that move in parts; every second fails, as many in a row would end the run.
NAMES = [*(f"small-{number:03}" for number in range(FILES)), *(f"large-{n}" for n in range(6))]
FAILING = NAMES[::2]


class Held(NamedTuple):
    """What this process has open."""

    descriptors: int
    threads: int
    children: int


def held() -> Held:
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return Held(len(os.listdir("/proc/self/fd")), threading.active_count(), len(children))


def failing(run: Callable[[], Coroutine[Any, Any, fastsync.Summary]]) -> None:
    """Run it to see what is kept for good, and once more: a hundred failures, and nothing more is open."""

    async def whole() -> None:
        summary = await run()
        assert summary.totals.failed == len(FAILING)
        # Not one task of ours, nor a closing connection, outlives the call.
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(whole())
    before = held()
    asyncio.run(whole())
    assert held() == before


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(LARGE if name.startswith("large") else b"small")
    return folder


@pytest.fixture
def bucket(hostile_s3: HostileS3, monkeypatch: pytest.MonkeyPatch) -> HostileS3:
    for name, value in hostile_s3.environ.items():
        monkeypatch.setenv(name, value)
    for name in NAMES:
        hostile_s3.put("bucket", name, LARGE if name.startswith("large") else b"small")
    for name in FAILING:
        hostile_s3.on("GetObject", cut(1), key=name, times=None)
        for operation in ("PutObject", "UploadPart"):
            hostile_s3.on(operation, hang_up(reset=True), key=name, times=None)
    return hostile_s3


def blocked(folder: Path) -> Path:
    """A directory in which files of the names that are to fail cannot be written."""
    for name in FAILING:
        (folder / name / "in the way").mkdir(parents=True)
    return folder


def none_temporary(*folders: Path) -> None:
    assert not [path for folder in folders for path in folder.rglob(".fs-*")]


FEW: dict[str, Any] = {"retry_count": 0, "chunk_size": "1M", "ignore_times": True}


def test_downloads_from_s3(bucket: HostileS3, tmp_path: Path) -> None:
    failing(lambda: fastsync.async_sync("s3://bucket", tmp_path / "to", **FEW))
    none_temporary(tmp_path)


def test_uploads_to_s3(bucket: HostileS3, tree: Path) -> None:
    failing(lambda: fastsync.async_sync(tree, "s3://bucket", **{**FEW, "chunk_size": "5M"}))


def test_downloads_from_the_web(bucket: HostileS3, tmp_path: Path) -> None:
    urls = [f"{bucket.endpoint}/bucket/{name}" for name in NAMES]
    failing(lambda: fastsync.async_cp(urls, f"{tmp_path}/to/", **FEW))
    none_temporary(tmp_path)


def test_sftp(tree: Path, tmp_path: Path) -> None:
    there, here = blocked(tmp_path / "there"), blocked(tmp_path / "here")
    with running_sshd(tmp_path) as server:
        options = {**FEW, **server.place, "parallel_streams": 2}
        up = {**options, "ssh_transport": "openssh"}
        failing(lambda: fastsync.async_sync(tree, server.url(there), **up))
        down = {**options, "ssh_transport": "asyncssh"}
        failing(lambda: fastsync.async_sync(server.url(tree), here, **down))
    none_temporary(there, here)
