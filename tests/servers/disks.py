"""Small filesystems of their own, mounted for one test: full soon, over their quota, failing on demand.

Each skips its test, and says why, where we may not mount, or where the kernel or the system lacks what it
takes (on Debian: e2fsprogs and btrfs-progs).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class Disk:
    """A mounted filesystem; what the tests use of it is below `root`."""

    def __init__(self, mount: Path, root: Path) -> None:
        self.mount = mount
        self.root = root

    def free(self) -> int:
        status = os.statvfs(self.root)
        return status.f_bavail * status.f_frsize

    def make_read_only(self) -> None:
        """As its owner does it: refused while a file is open for writing."""
        subprocess.run(["mount", "-o", "remount,ro", self.mount], check=True)

    def meet_an_error(self) -> None:
        """Make an ext4 that was mounted with errors=remount-ro read-only at once, whatever is open there,
        as a disk does that lost a block (ext4(5), ``trigger_fs_error``)."""
        device = subprocess.check_output(["findmnt", "-no", "SOURCE", self.mount], text=True)
        Path("/sys/fs/ext4", Path(device.strip()).name, "trigger_fs_error").write_text("a test")

    def mount_again(self) -> None:
        """What is said to be on the disk has to be there."""
        device = subprocess.check_output(
            ["findmnt", "-no", "SOURCE", self.mount], text=True
        ).strip()
        back = subprocess.check_output(["losetup", "-nO", "BACK-FILE", device], text=True).strip()
        subprocess.run(["umount", self.mount], check=True)
        subprocess.run(["mount", "-o", "loop", back, self.mount], check=True)


@contextlib.contextmanager
def tmpfs(at: Path, *, nbytes: int, inodes: int = 400) -> Iterator[Disk]:
    yield from _mounted(at, ["-t", "tmpfs", "-o", f"size={nbytes},nr_inodes={inodes}", "tmpfs"])


@contextlib.contextmanager
def ext4(
    at: Path, *, nbytes: int, image: Path, inodes: int = 400, options: str = "loop"
) -> Iterator[Disk]:
    """Without a journal, and nothing kept back for root. The image is sparse."""
    _make(
        image, nbytes, "mkfs.ext4", "-q", "-F", "-N", str(inodes), "-m", "0", "-O", "^has_journal"
    )
    yield from _mounted(at, ["-o", options, str(image)])


@contextlib.contextmanager
def btrfs_with_quota(at: Path, *, quota: int, image: Path) -> Iterator[Disk]:
    """A disk with room, and a subvolume on it that may hold `quota` bytes."""
    _make(image, 128 << 20, "mkfs.btrfs", "-q")
    mounting = _mounted(at, ["-o", "loop", str(image)])
    for disk in mounting:
        for command in (
            ("quota", "enable", at),
            ("subvolume", "create", at / "limited"),
            ("qgroup", "limit", str(quota), at / "limited"),
        ):
            subprocess.run(["btrfs", *command], check=True, capture_output=True)
        yield Disk(disk.mount, at / "limited")


def _make(image: Path, nbytes: int, program: str, *arguments: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a filesystem")
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program}")
    with open(image, "wb") as file:
        file.truncate(nbytes)
    subprocess.run([program, *arguments, image], check=True, capture_output=True)


def _mounted(at: Path, arguments: list[str]) -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a filesystem")
    at.mkdir()
    mounted = subprocess.run(["mount", *arguments, at], check=False, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mount is not allowed here: {mounted.stderr.strip()}")
    try:
        yield Disk(at, at)
    finally:
        subprocess.run(["umount", at], check=True)
