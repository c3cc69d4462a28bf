"""Where the benches put their trees: directories on tmpfs and on disk, removed at the end."""

import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SHARED_MEMORY = Path("/dev/shm")
_SPARE = 256 << 20


class NoPlace(Exception):
    """A place cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Place:
    """A directory of our own. `name` is what was asked for, `file_system` what is there."""

    name: str
    root: Path
    file_system: str

    @property
    def title(self) -> str:
        return self.name if self.name == self.file_system else f"{self.name} ({self.file_system})"

    def settle(self) -> None:
        """Wait until what was written so far is on the disk."""
        if self.file_system != "tmpfs":
            os.sync()

    def require(self, size: int, files: int) -> None:
        """Raises `NoPlace` unless there is room for as many bytes and files."""
        room = os.statvfs(self.root)
        free = room.f_bavail * room.f_frsize
        if self.file_system == "tmpfs":
            free = min(free, _free_memory())
        free -= _SPARE
        if free < size:
            raise NoPlace(f"{self.root} has {free >> 20} MiB to spare, {size >> 20} are needed")
        if room.f_files and room.f_favail < files:  # some file systems do not count them
            raise NoPlace(f"{self.root} has {room.f_favail} inodes free, {files} are needed")

    @contextmanager
    def directory(self, name: str) -> Iterator[Path]:
        """A directory that is removed, with all it holds, when the block is left."""
        path = self.root / name
        path.mkdir()
        try:
            yield path
        finally:
            remove(path)


@contextmanager
def place(name: str, disk_directory: Path) -> Iterator[Place]:
    """`tmpfs` or `disk`. Raises `NoPlace` where there is none."""
    parent = _SHARED_MEMORY if name == "tmpfs" else disk_directory
    if not os.access(parent, os.W_OK):
        raise NoPlace(f"{parent} is not there or cannot be written to")
    kind = file_system_of(parent)
    if name == "tmpfs" and kind != "tmpfs":
        raise NoPlace(f"{parent} is no tmpfs but {kind}")
    root = Path(tempfile.mkdtemp(prefix="fastsync-bench-", dir=parent))
    try:
        yield Place(name, root, kind)
    finally:
        remove(root)


def file_system_of(path: Path) -> str:
    """The type of the file system that holds `path`, as proc_pid_mountinfo(5) names it."""
    real = Path(os.path.realpath(path))
    best, best_point = "unknown", Path("/")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        point = Path(_unescaped(before.split()[4]))
        # A later line with the same point is mounted over the earlier one.
        if real.is_relative_to(point) and point.is_relative_to(best_point):
            best, best_point = after.split()[0], point
    return best


def remove(path: Path) -> None:
    """Remove a tree, if it is there; signals to stop wait until that is done."""
    stops = (signal.SIGINT, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    try:
        shutil.rmtree(path, ignore_errors=True)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)


def _free_memory() -> int:
    found = re.search(
        r"^MemAvailable:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE
    )
    return int(found[1]) * 1024 if found else 0


def _unescaped(point: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), point)
