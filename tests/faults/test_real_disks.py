"""Filesystems of the kernel's own that fail for real: over a quota, out of blocks late, read-only suddenly.

See `test_local_faults` for disks that are just full, and `test_fuse_faults` for errors made to order.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from disks import btrfs_with_quota, ext4, tmpfs

if TYPE_CHECKING:
    from tests.conftest import Fastsync, Picture, Plant, Spec

Debris = Callable[[Path], list[Path]]
SMALL: Spec = {"a": "a", "dir/b": "b", "z": "z"}


@pytest.mark.parametrize("options", [(), ("--durable",), ("--checksum",)])
def test_over_quota(
    fastsync: Fastsync, plant: Plant, debris: Debris, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """The disk has room and our share of it has not."""
    src = plant(tmp_path / "src", {**SMALL, "large": os.urandom(9 << 20)})
    with btrfs_with_quota(tmp_path / "disk", quota=6 << 20, image=tmp_path / "image") as disk:
        dest = plant(disk.root / "dest", {"large": "the old one", "extra": "x"})
        done = fastsync("sync", "--delete", *options, "src", dest)
        assert (done.code, "not deleting: " in done.stderr) == (7, True), done
        assert "dest/large: disk quota exceeded (raise the quota or free" in done.stderr
        assert disk.free() > 16 << 20
        assert (dest / "large").read_text() == "the old one"
        assert (dest / "extra").exists()
        assert debris(dest) == []
        os.truncate(src / "large", 2 << 20)
        assert fastsync("sync", "--delete", *options, "src", dest) == (0, "", "")
        assert (dest / "large").read_bytes() == (src / "large").read_bytes()
        assert sorted(os.listdir(dest)) == ["a", "dir", "large", "z"]


@pytest.mark.parametrize("at_byte", [1, 131_073, 5_000_001])
def test_full_at_a_byte(
    fastsync: Fastsync, plant: Plant, debris: Debris, tmp_path: Path, at_byte: int
) -> None:
    """Wherever in the file the room ends, and by whichever call it is written."""
    src = plant(tmp_path / "src", {"large": os.urandom(at_byte + 300_000)})
    with ext4(tmp_path / "disk", nbytes=12 << 20, image=tmp_path / "image") as disk:
        dest = plant(disk.root / "dest", {"large": "the old one"})
        (disk.root / "filler").write_bytes(b"x" * (disk.free() - at_byte - 8192))
        for option in ("--durable", "--sparse"):
            done = fastsync("sync", option, "src", dest)
            assert done.code == 7, done
            assert "no space left on device: need " in done.stderr
            assert (dest / "large").read_text() == "the old one"
            assert debris(disk.root) == []
        (disk.root / "filler").unlink()
        assert fastsync("sync", "src", dest) == (0, "", "")
        assert (dest / "large").read_bytes() == (src / "large").read_bytes()


def test_out_of_blocks_at_last(
    fastsync: Fastsync, plant: Plant, debris: Debris, tmp_path: Path
) -> None:
    """A disk that promised more than there is below it tells so when the bytes have to be there: at fsync."""
    src = plant(tmp_path / "src", {**SMALL, "large": os.urandom(9 << 20)})
    below = tmpfs(tmp_path / "below", nbytes=6 << 20)
    with below as real, ext4(tmp_path / "disk", nbytes=64 << 20, image=real.root / "image") as disk:
        dest = plant(disk.root / "dest", {"large": "the old one", "a": "old"})
        os.sync()
        done = fastsync("sync", "--durable", "src", dest)
        assert done.code in (1, 7), done
        assert "dest/large: " in done.stderr
        assert disk.free() > 32 << 20
        assert (dest / "large").read_text() == "the old one"
        assert (dest / "a").read_text() in ("a", "old")
        assert debris(disk.root) == []
        subprocess.run(["mount", "-o", f"remount,size={24 << 20}", real.root], check=True)
        assert fastsync("sync", "--durable", "src", dest) == (0, "", "")
        disk.mount_again()
        assert (dest / "large").read_bytes() == (src / "large").read_bytes()


def test_read_only_in_the_middle(
    fastsync: Fastsync,
    plant: Plant,
    picture: Callable[..., Picture],
    debris: Debris,
    tmp_path: Path,
    eventually: Callable[[Callable[[], object]], None],
) -> None:
    """The kernel gives a broken disk up while we write: nothing is begun any more, and nothing is spoilt."""
    spec = {f"{index:03}": os.urandom(40_000) for index in range(100)}
    spec["020"] = os.urandom(6 << 20)
    src = plant(tmp_path / "src", spec)
    options = "loop,errors=remount-ro"
    with ext4(
        tmp_path / "disk", nbytes=64 << 20, image=tmp_path / "image", options=options
    ) as disk:
        dest = plant(disk.root / "dest", {"020": "the old one", "099": "the old one", "extra": "x"})
        process = fastsync.start("sync", "--delete", "--bwlimit", "6M", "--summarize", src, dest)
        eventually(lambda: len(os.listdir(dest)) > 10 and debris(dest))
        disk.meet_an_error()
        stdout, stderr = (text.decode() for text in process.communicate(timeout=60))
        assert process.returncode == 7, stderr
        assert "read-only file system" in stderr
        assert "fastsync: stopped early: " in stderr
        failed = re.search(r"Failed: (\d+) files", stdout)
        assert failed
        assert 1 <= int(failed[1]) < 80, "all the rest was tried in vain"
        left = debris(disk.root)
        there = set(os.listdir(dest)) - {path.name for path in left} - {"extra"}
        assert all((dest / name).read_bytes() in (spec[name], b"the old one") for name in there)
        assert (dest / "extra").exists()
        # What could not be removed is named, and gone after the next run.
        assert all(path.name in stderr for path in left)
        disk.mount_again()
        assert fastsync("sync", "--delete", src, dest) == (0, "", "")
        assert picture(dest) == picture(src)
        assert debris(disk.root) == []


def test_made_read_only_in_the_middle(
    fastsync: Fastsync, plant: Plant, debris: Debris, tmp_path: Path
) -> None:
    """By its owner, between two files: with one open for writing the kernel refuses."""
    spec = {f"{index:03}": os.urandom(4_000) for index in range(400)}
    plant(tmp_path / "src", spec)
    with ext4(tmp_path / "disk", nbytes=32 << 20, image=tmp_path / "image", inodes=1000) as disk:
        dest = plant(disk.root / "dest", {"399": "the old one"})
        process = fastsync.start("sync", "--bwlimit", "1M", "-j", "1", "src", dest)
        end = time.monotonic() + 20
        while len(os.listdir(dest)) < 10:
            assert time.monotonic() < end
        process.send_signal(signal.SIGSTOP)
        try:
            while True:
                try:
                    disk.make_read_only()
                    break
                except subprocess.CalledProcessError:
                    process.send_signal(signal.SIGCONT)
                    time.sleep(0.002)
                    process.send_signal(signal.SIGSTOP)
                    assert time.monotonic() < end
        finally:
            process.send_signal(signal.SIGCONT)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 7, stderr
        assert b"read-only file system" in stderr
        for name in set(os.listdir(dest)):
            assert (dest / name).read_bytes() in (spec[name], b"the old one")
        assert debris(dest) == []
