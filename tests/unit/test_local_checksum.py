"""--checksum between local disks: what was written is compared with what was read, however it got there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fastsync as library
from fastsync_local import copying, crew, parallel

SIZE = 300_000


def flip(target: int) -> None:
    """One bit of what is on the disk."""
    (byte,) = os.pread(target, 1, 77)
    os.pwrite(target, bytes([byte ^ 1]), 77)


def clone(_ladder: copying.Ladder, source: int, target: int, *_: Any) -> bool:
    os.pwrite(target, os.pread(source, SIZE, 0), 0)
    flip(target)
    return True


def wrongly(honest: Callable[..., int]) -> Callable[..., int]:
    def copy(ladder: copying.Ladder, source: int, target: int, start: int, stop: int) -> int:
        reached = honest(ladder, source, target, start, stop)
        flip(target)
        return reached

    return copy


def nowhere(_ladder: copying.Ladder, _source: int, _target: int, start: int, _stop: int) -> int:
    return start


@pytest.mark.parametrize("options", [{}, {"durable": True}, {"sparse": True}], ids=str)
@pytest.mark.parametrize(
    "way", ["clone", "copy_file_range", "sendfile", "buffer", "threads", "small"]
)
def test_a_wrong_bit_is_found(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    debris: Callable[[Path], list[Path]],
    way: str,
    options: dict[str, Any],
) -> None:
    if options == {"sparse": True} and way in ("threads", "small"):
        pytest.skip("files with holes do not go that way")
    content = os.urandom(SIZE if way != "small" else 1000)
    (tmp_path / "src").mkdir()
    (tmp_path / "src/file").write_bytes(content)
    (tmp_path / "dest").mkdir()
    (tmp_path / "dest/file").write_bytes(b"the old one")
    ladder = copying.Ladder
    used: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(ladder, "clone", clone if way == "clone" else lambda *_: False)
        for rung in ("copy_file_range", "sendfile"):
            honest = getattr(ladder, f"_by_{rung}")
            patched.setattr(ladder, f"_by_{rung}", wrongly(honest) if way == rung else nowhere)
        if way in ("buffer", "threads"):
            slow = ladder.copy_by_buffer

            def by_buffer(self: copying.Ladder, source: int, target: int, *area: int) -> None:
                slow(self, source, target, *area)
                used.append(1)
                flip(target) if area[0] == 0 else None

            patched.setattr(ladder, "copy_by_buffer", by_buffer)
        if way == "threads":
            patched.setattr(copying, "PARALLEL_FROM", 1)
            patched.setattr(parallel, "SEGMENT", 64 << 10)
            patched.setattr(copying, "copies_plainly", lambda _device: True)
            patched.setattr(crew, "idle_processors", lambda _processors: 2)
            patched.setattr(crew, "processors", lambda: 2)
        if way == "small":
            really = os.readv

            def readv(fd: int, buffers: list[bytearray]) -> int:
                count = really(fd, buffers)
                buffers[0][3] ^= 1
                return count

            patched.setattr(os, "readv", readv)
        summary = library.sync(tmp_path / "src", tmp_path / "dest", checksum=True, **options)
    assert summary.exit_code == 4
    assert len(used) > 2 or way != "threads"
    assert "is not what was read" in str(summary.failures[0].error)
    assert (tmp_path / "dest/file").read_bytes() == b"the old one"
    assert debris(tmp_path) == []
    summary = library.sync(tmp_path / "src", tmp_path / "dest", checksum=True, **options)
    assert (summary.exit_code, summary.totals.files_verified) == (0, 1)
    assert (tmp_path / "dest/file").read_bytes() == content
