"""Every kind of system call that a local copy makes, failing in the real command by strace's hand.

Whatever fails: a name shows the whole old file or the whole new one, the exit code says so, what was to be
deleted is there unless all is well, and the same command brings everything to its end and leaves nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from injected import Nursery, nursery

if TYPE_CHECKING:
    from tests.conftest import Plant, Spec

OLD: Spec = {"a": "old", "large": b"old large", "dir/small": "old small", "extra": "x"}
NEW: Spec = {
    "a": "new a",
    "dir/small": "new small",
    "large": bytes(range(256)) * 2000,
    "link": Path("a"),
    "new/deep": "deep",
    "z": "z",
}
# As where the kernel cannot copy between these two files.
NO_RANGE = ("copy_file_range:error=EXDEV",)
BY_HAND = (*NO_RANGE, "sendfile:error=EINVAL")
HARD = ("--hard-links",)


class Case(NamedTuple):
    """`codes` are the exit codes that are right; with 0 only, nobody notices that anything failed."""

    faults: tuple[str, ...]
    codes: tuple[int, ...]
    options: tuple[str, ...] = ()


# A count ("when") is of each thread of the process, hence of different calls; the threads are few.
CASES = {
    "fsync EIO": Case(("fsync:error=EIO:when=2",), (1,), ("--durable",)),
    "fsync ENOSPC": Case(("fsync:error=ENOSPC:when=3",), (7,), ("--durable",)),
    "fdatasync EIO": Case(("fdatasync:error=EIO",), (1,), ("--durable", "--verify", "reread")),
    "close EIO 3": Case(("close:error=EIO:when=3",), (0, 1)),
    "close EIO 4": Case(("close:error=EIO:when=4",), (0, 1)),
    "close EDQUOT 7": Case(("close:error=EDQUOT:when=7",), (0, 1, 7)),
    "write and close ENOSPC": Case(("write:error=ENOSPC:when=1", "close:error=ENOSPC"), (1, 7)),
    "rename EIO": Case(("renameat:error=EIO:when=2",), (1,)),
    "rename ENOSPC": Case(("renameat:error=ENOSPC:when=1",), (7,)),
    "copy_file_range EXDEV": Case(NO_RANGE, (0,)),
    "copy_file_range EINVAL": Case(("copy_file_range:error=EINVAL",), (0,)),
    "copy_file_range ENOSYS": Case(("copy_file_range:error=ENOSYS",), (0,)),
    "copy_file_range nothing": Case(("copy_file_range:retval=0",), (0,)),
    "copy_file_range EIO": Case(("copy_file_range:error=EIO",), (1,)),
    "sendfile EINVAL": Case(BY_HAND, (0,)),
    "sendfile nothing": Case((*NO_RANGE, "sendfile:retval=0"), (0,)),
    "sendfile EIO": Case((*NO_RANGE, "sendfile:error=EIO"), (1,)),
    "stat EIO 8": Case(("newfstatat:error=EIO:when=8",), (0, 1, 3)),
    "stat EIO 20": Case(("newfstatat:error=EIO:when=20",), (0, 1, 3)),
    "stat EIO 30": Case(("newfstatat:error=EIO:when=30",), (0, 1, 3)),
    "open EMFILE 2": Case(("openat:error=EMFILE:when=2..3",), (0,)),
    "open ENFILE 4": Case(("openat:error=ENFILE:when=4..6",), (0,)),
    "open EMFILE 12": Case(("openat:error=EMFILE:when=12",), (0,)),
    "open EACCES": Case(("openat:error=EACCES:when=5",), (0, 1, 3)),
    "getdents EIO": Case(("getdents64:error=EIO:when=2",), (3,)),
    "read EIO, small": Case(("readv:error=EIO:when=1",), (1,)),
    "read EIO, large": Case((*BY_HAND, "preadv2:error=EIO"), (1,)),
    "write EIO, small": Case(("write:error=EIO:when=2",), (1,)),
    "write EDQUOT, large": Case((*BY_HAND, "pwrite64:error=EDQUOT:when=2"), (7,)),
    "mmap ENOMEM": Case(("mmap:error=ENOMEM:when=1",), (0, 1)),
    "no thread": Case(("clone3:error=EAGAIN:when=1",), (0, 1)),
    "utimensat EIO": Case(("utimensat:error=EIO:when=2",), (1,)),
    "fchmod EIO": Case(("fchmod:error=EIO:when=2",), (1,)),
    "linkat EIO": Case(("linkat:error=EIO",), (0,), HARD),
    "linkat EMLINK": Case(("linkat:error=EMLINK",), (0,), HARD),
    "symlinkat EIO": Case(("symlinkat:error=EIO",), (1,)),
    "mkdirat EIO": Case(("mkdirat:error=EIO",), (1,)),
    "readlinkat EIO": Case(("readlinkat:error=EIO",), (3,)),
    "unlinkat EIO": Case(("unlinkat:error=EIO",), (1,)),
    "setxattr ENOSPC": Case(("setxattr:error=ENOSPC",), (7,), ("-X",)),
    "listxattr EIO": Case(("listxattr:error=EIO",), (1,), ("-X",)),
    "lseek EIO": Case(("lseek:error=EIO",), (1,), ("--sparse",)),
    "ftruncate EIO": Case(("ftruncate:error=EIO:when=1",), (1,), ("--sparse",)),
}


ONE_EACH = {
    "fsync EIO",
    "rename EIO",
    "read EIO, small",
    "utimensat EIO",
    "fchmod EIO",
    "symlinkat EIO",
}


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with nursery(tmp_path_factory.mktemp("nursery")) as process:
        yield process


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): os.readlink(path).encode()
        if path.is_symlink()
        else path.read_bytes()
        for path in root.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


@pytest.mark.parametrize("name", CASES)
def test_a_call_that_fails(
    warm: Nursery, plant: Plant, tmp_path: Path, debris: Callable[[Path], list[Path]], name: str
) -> None:
    faults, codes, options = CASES[name]
    src = plant(tmp_path / "src", NEW)
    dest = plant(tmp_path / "dest", OLD)
    if options == HARD:
        os.link(src / "z", src / "z2")
    if options == ("-X",):
        try:
            os.setxattr(src / "z", "user.key", b"value")
        except OSError:
            pytest.skip("this file system keeps no extended attributes")
    old, new = contents(dest), contents(src)
    sync = ["sync", "--delete", "-j", "1", *options, str(src), str(dest)]
    done = warm.run(faults, *sync)
    if not done.hits and "copy_file_range" in faults[0]:
        pytest.skip("this file system shares blocks, and copies none")
    assert done.hits, "nothing was made to fail"
    assert (done.code in codes, "Traceback" in done.stderr, "bug" in done.stderr) == (
        True,
        False,
        False,
    ), done
    there = contents(dest)
    if done.code == 0:
        assert there == new
    else:
        assert done.stderr
        assert all(there.get(key) in (old.get(key), new[key]) for key in new), there.keys()
        # A directory that cannot be closed after all is deleted is nothing to undo it for.
        assert "extra" in there or name.startswith("close")
    # One call that failed is one file, of each of the few threads.
    if name in ONE_EACH:
        assert sum(there.get(key) == new[key] for key in new) >= len(new) - 2
    assert debris(dest) == []
    assert warm.run((), *sync) == (0, 0, "")
    assert contents(dest) == new
    assert debris(tmp_path) == []
