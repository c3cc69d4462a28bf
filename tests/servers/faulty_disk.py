"""A filesystem with faults: a directory seen through FUSE, where calls fail, stop short or take their time.

    python faulty_disk.py ROOT MOUNT '{"write": {"errno": 5, "after": 65536}}'

Names of faults are those of FUSE's operations. `errno` is what the call fails with, `ending` the end of the
names that it is about (the new one, of a rename), `after` the offset from which on reads and writes fail,
`times` how often; `short` cuts writes to so many bytes, `flips` changes a bit of each, `delay_s` makes the
call wait first, and `runs` is a command that runs first. With ``"folds": true`` case and Unicode forms of
names make no difference, as on the disks of other systems; with
``"slow_s": 0.05`` makes every call wait.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest

LIMIT_S = 20.0


class Fault:
    def __init__(self, told: dict[str, Any]) -> None:
        self.errno: int = told.get("errno", 0)
        self.ending: str = told.get("ending", "")
        self.after: int = told.get("after", 0)
        self.times: int = told.get("times", 1 << 30)
        self.short: int = told.get("short", 0)
        self.flips: bool = told.get("flips", False)
        self.delay_s: float = told.get("delay_s", 0.0)
        self.runs: list[str] = told.get("runs", [])

    def meet(self, path: str, end: int) -> None:
        """Raises OSError if it is about this call."""
        if not path.endswith(self.ending) or end < self.after or self.times <= 0:
            return
        self.times -= 1
        time.sleep(self.delay_s)
        if self.runs:
            subprocess.run(self.runs, check=True)
        if self.errno:
            raise OSError(self.errno, os.strerror(self.errno))


def serve(root: str, mount: str, told: dict[str, Any]) -> None:
    """Mount it, and serve until it is unmounted."""
    import mfusepy  # type: ignore[import-untyped]

    folds = told.pop("folds", False)
    slow_s = told.pop("slow_s", 0.0)
    faults = {name: Fault(fault) for name, fault in told.items()}
    lock = threading.Lock()

    def met(name: str, path: str, end: int = 0) -> Fault | None:
        fault = faults.get(name)
        if fault is not None:
            with lock:
                fault.meet(path, end)
        return fault

    def real(path: str) -> str:
        if not folds:
            return root + path
        found = root
        for name in path.strip("/").split("/"):
            wanted = normalize("NFC", name).casefold()
            with contextlib.suppress(OSError):
                there = os.listdir(found)
                names = (each for each in there if normalize("NFC", each).casefold() == wanted)
                name = next(names, name)
            found = os.path.join(found, name)
        return found

    class Disk(mfusepy.Operations):  # type: ignore[misc]
        use_ns = True

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            met("getattr", path)
            status = os.lstat(real(path)) if fh is None else os.fstat(fh)
            keys = ("mode", "size", "uid", "gid", "nlink")
            found = {f"st_{key}": getattr(status, f"st_{key}") for key in keys}
            return found | {
                "st_mtime": status.st_mtime_ns,
                "st_atime": status.st_atime_ns,
                "st_ctime": status.st_ctime_ns,
                "st_ino": status.st_ino,
            }

        def readdir(self, path: str, _fh: int) -> list[tuple[str, dict[str, int], int]]:
            met("readdir", path)
            found = []
            for name in (".", "..", *os.listdir(real(path))):
                status = os.lstat(f"{real(path)}/{name}")
                found.append((name, {"st_ino": status.st_ino, "st_mode": status.st_mode}, 0))
            return found

        def open(self, path: str, flags: int) -> int:
            met("open", path)
            return os.open(real(path), flags & ~(os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW))

        def create(self, path: str, mode: int, _fi: object = None) -> int:
            met("create", path)
            return os.open(real(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            met("read", path, offset + size)
            return os.pread(fh, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            fault = met("write", path, offset + len(data))
            if fault is not None and fault.short:
                data = data[: fault.short]
            if fault is not None and fault.flips:
                data = data[:-1] + bytes([data[-1] ^ 1])
            return os.pwrite(fh, data, offset)

        def truncate(self, path: str, length: int, _fh: int | None = None) -> int:
            os.truncate(real(path), length)
            return 0

        def rename(self, old: str, new: str) -> int:
            met("rename", new)
            os.rename(real(old), real(new))
            return 0

        def unlink(self, path: str) -> int:
            met("unlink", path)
            os.unlink(real(path))
            return 0

        def mkdir(self, path: str, mode: int) -> int:
            met("mkdir", path)
            os.mkdir(real(path), mode)
            return 0

        def rmdir(self, path: str) -> int:
            os.rmdir(real(path))
            return 0

        def chmod(self, path: str, mode: int) -> int:
            met("chmod", path)
            os.chmod(real(path), mode)
            return 0

        def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
            met("utimens", path)
            assert times is not None
            os.utime(real(path), ns=times)
            return 0

        def fsync(self, path: str, _datasync: int, fh: int) -> int:
            met("fsync", path)
            os.fsync(fh)
            return 0

        def flush(self, path: str, _fh: int) -> int:
            met("flush", path)
            return 0

        def release(self, _path: str, fh: int) -> int:
            os.close(fh)
            return 0

        def statfs(self, path: str) -> dict[str, int]:
            status = os.statvfs(real(path))
            keys = ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail")
            return {f"f_{key}": getattr(status, f"f_{key}") for key in keys}

    # With the inodes of the files, not of the paths: two names of one file are that.
    options: dict[str, Any] = {"direct_io": True, "use_ino": True, "allow_other": True}
    if any(fault.runs for fault in faults.values()):
        options["attr_timeout"] = 0  # what changes behind the kernel's back is to be seen at once

    class Slow(mfusepy.FUSE):  # type: ignore[misc]
        def _wrapper(self, *call: Any, **options: Any) -> Any:
            time.sleep(slow_s)
            return super()._wrapper(*call, **options)

    (Slow if slow_s else mfusepy.FUSE)(Disk(), mount, foreground=True, **options)


# What libfuse and mount(2) say where a container or a kernel does not let them.
_NOT_HERE = (
    "libfuse",
    "not permitted",
    "denied",
    "device not found",
    "No such device",
    "fusermount",
)


@contextlib.contextmanager
def mounted(root: Path, mount: Path, **faults: Any) -> Iterator[Path]:
    """`root` seen at `mount` through these faults. Skips the test where there is no FUSE."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("there is no /dev/fuse, or we may not mount it")
    root.mkdir(exist_ok=True)
    mount.mkdir()
    command = [sys.executable, __file__, str(root), str(mount), json.dumps(faults)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + LIMIT_S
        while not os.path.ismount(mount):
            if process.poll() is not None:
                said = (process.stderr.read() if process.stderr else "").strip()
                if any(reason in said for reason in _NOT_HERE):
                    pytest.skip(f"FUSE does not work here: {said.splitlines()[-1]}")
                pytest.fail(f"the filesystem ended: {said}")
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield mount
    finally:
        if os.path.ismount(mount):
            subprocess.run([shutil.which("umount") or "umount", "-l", mount], check=True)
        process.terminate()
        try:
            process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
