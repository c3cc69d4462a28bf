"""Power cuts: what `--durable` promises, checked on every state that a disk may be left in.

The real command runs under strace; its calls are replayed into a model of a disk that keeps only what it was
told to keep (as ALICE and CrashMonkey do). A call that changed a directory may have reached the disk or not
until that directory was synced, whatever came after it; a file's bytes are anything at all until the file
was synced. Of every moment of the run, the model yields all the states that are left then.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Fastsync, Picture, Plant, Spec

CALLS = (
    "openat,mkdir,mkdirat,write,pwrite64,writev,copy_file_range,sendfile,ioctl,ftruncate,"
    "fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,rmdir,symlinkat,linkat,"
    "setxattr,removexattr,chmod,fchmod,fchmodat,utimensat"
)
MOST_OPEN = 10  # of so many unsynced changes all combinations are tried, of more a sample


class Change(NamedTuple):
    """A name in a directory that means something else from now on; None is nothing."""

    path: str
    inode: int | None
    is_synced: bool = False


class Disk:
    """What is known to be on the disk, and what may be."""

    def __init__(self, root: Path) -> None:
        self.numbers = itertools.count(1)
        self.live: dict[str, int] = {}
        self.directories: set[int] = set()
        self.whole: set[int] = set()
        self.loose: set[int] = (
            set()
        )  # whose mode, time or attributes were set since they were synced
        self.changes: list[Change] = []
        for path in [root, *sorted(root.rglob("*"))]:
            inode = self.live[str(path)] = next(self.numbers)
            self.whole.add(inode)
            if path.is_dir():
                self.directories.add(inode)
        self.first = dict(self.live)

    def make(self, path: str, *, directory: bool) -> None:
        inode = next(self.numbers)
        self.whole.add(inode)
        if directory:
            self.directories.add(inode)
        self._change(path, inode)

    def _change(self, path: str, inode: int | None) -> None:
        if inode is None:
            self.live.pop(path, None)
        else:
            self.live[path] = inode
        self.changes.append(Change(path, inode))

    def rename(self, old: str, new: str) -> None:
        inode = self.live[old]
        if self.live.get(new) == inode:
            return  # two names of one file, of which rename(2) says that nothing is done
        self._change(new, inode)
        self._change(old, None)

    def remove(self, path: str) -> None:
        self._change(path, None)

    def write(self, path: str) -> None:
        if path in self.live:
            self.whole.discard(self.live[path])

    def link(self, old: str, new: str) -> None:
        self._change(new, self.live[old])

    def set(self, path: str) -> None:
        if path in self.live:
            self.loose.add(self.live[path])

    def sync(self, path: str) -> None:
        inode = self.live.get(path)
        if inode is None:
            return
        self.loose.discard(inode)
        if inode not in self.directories:
            self.whole.add(inode)
            return
        self.changes = [
            change._replace(is_synced=True) if os.path.dirname(change.path) == path else change
            for change in self.changes
        ]

    def states(self) -> Iterator[dict[str, int]]:
        """What a power cut may leave: a tree, by path; what hangs from nothing is not in it."""
        open_ = [index for index, change in enumerate(self.changes) if not change.is_synced]
        lost: Iterable[tuple[bool, ...]] = itertools.product((False, True), repeat=len(open_))
        if len(open_) > MOST_OPEN:
            chance = random.Random(len(self.changes))
            lost = [tuple(chance.random() < 0.5 for _ in open_) for _ in range(300)]
        for choice in lost:
            gone = {index for index, is_lost in zip(open_, choice, strict=True) if is_lost}
            names: dict[str, int | None] = dict(self.first)
            for index, change in enumerate(self.changes):
                if index not in gone:
                    names[change.path] = change.inode
            yield {
                path: inode
                for path, inode in names.items()
                if inode is not None and self._hangs(path, names)
            }

    def _hangs(self, path: str, names: dict[str, int | None]) -> bool:
        top = min(self.first, key=len)
        while path != top:
            path = os.path.dirname(path)
            if names.get(path) is None:
                return False
        return True


_CALL = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)\)\s+= (?P<result>-?\d+)")
_NAME = re.compile(r'(?:(?:AT_FDCWD|\d+)<(?P<at>[^>]*)>, )?"(?P<name>(?:[^"\\]|\\.)*)"')
_SELF = re.compile(r'"/proc/self/fd/(\d+)"')
_DESCRIPTOR = re.compile(r"\d+<(?P<path>/[^>]*)>")


def calls(trace: str) -> Iterator[tuple[str, str, int]]:
    """Name, arguments and result of each call, in the order in which they ended."""
    begun: dict[str, str] = {}
    for line in trace.splitlines():
        pid, _, text = line.partition(" ")
        text = text.strip()
        if text.endswith("<unfinished ...>"):
            begun[pid] = text.removesuffix("<unfinished ...>").rstrip()
            continue
        if text.startswith("<..."):
            text = begun.pop(pid, "") + text.partition("resumed>")[2]
        if match := _CALL.match(text):
            yield match["name"], match["arguments"], int(match["result"])


def names_in(arguments: str, cwd: str) -> list[str]:
    return [
        os.path.normpath(os.path.join(match["at"] or cwd, match["name"]))
        for match in _NAME.finditer(arguments)
    ]


def replay(trace: str, disk: Disk, cwd: str) -> Iterator[None]:
    """Bring the disk to where it was after each call that changed it."""
    opened: dict[str, str] = {}
    for name, arguments, result in calls(trace):
        if result < 0:
            continue
        arguments = _SELF.sub(lambda match: f'"{opened.get(match[1], "/nowhere")}"', arguments)
        held = _DESCRIPTOR.findall(arguments)
        named = names_in(arguments, cwd)
        if name == "openat":
            opened[str(result)] = named[0]
            if "O_CREAT" not in arguments or named[0] in disk.live:
                continue
            disk.make(named[0], directory=False)
        elif name in ("mkdir", "mkdirat"):
            disk.make(named[0], directory=True)
        elif name == "symlinkat":
            disk.make(names_in(arguments.partition('", ')[2], cwd)[0], directory=False)
        elif name == "linkat":
            disk.link(named[0], named[1])
        elif name in ("setxattr", "removexattr", "chmod", "fchmod", "fchmodat", "utimensat"):
            disk.set(named[0] if named else held[0])
        elif name.startswith("rename"):
            disk.rename(named[0], named[1])
        elif name in ("unlink", "unlinkat", "rmdir"):
            disk.remove(named[0])
        elif name in ("fsync", "fdatasync"):
            disk.sync(held[0])
        elif name == "copy_file_range":
            disk.write(held[1])
        elif held and (name != "ioctl" or "FICLONE" in arguments):
            disk.write(held[0])
        else:
            continue
        yield


@pytest.fixture
def traced(fastsync: Fastsync, tmp_path: Path) -> str:
    if shutil.which("strace") is None:
        pytest.skip("there is no strace")
    if subprocess.run(["strace", "-o/dev/null", "true"], check=False).returncode:
        pytest.skip("strace may not trace here")
    return str(tmp_path / "trace")


SOURCE: Spec = {
    "large": b"n" * 9_000_000,
    "middle": b"n" * 300_000,
    "small": "new small",
    "new/deep/file": "a new one",
    "new/other": "another",
    "old/kept": "changed",
    "link": Path("small"),
}


EVERYTHING = (
    *("sync", "--durable", "-a", "-X", "--hard-links", "--delete"),
    *("--backup-dir", "top/backup", "src", "top/dest"),
)


@pytest.mark.parametrize(
    "arguments",
    [
        ("sync", "--durable", "src", "top/dest"),
        ("cp", "-R", "--durable", "src/", "top/dest"),
        ("cp", "--durable", "src/small", "top/a/b/small"),
        ("cp", "--durable", "-", "top/a/b/small"),
        EVERYTHING,
    ],
)
@pytest.mark.parametrize("is_there", [False, True], ids=["fresh", "over old files"])
def test_durable_is_durable(
    fastsync: Fastsync,
    plant: Plant,
    traced: str,
    tmp_path: Path,
    arguments: tuple[str, ...],
    is_there: bool,
) -> None:
    src = plant(tmp_path / "src", SOURCE)
    old = {"large": "old", "middle": "old", "old/kept": "old"} if is_there else {}
    if arguments == EVERYTHING:
        os.link(src / "small", src / "zz")
        with contextlib.suppress(OSError):  # where none are kept, the rest is as well worth a look
            os.setxattr(src / "small", "user.key", b"value")
            os.setxattr(src / "new", "user.key", b"value")
        old |= {"extra": "x", "gone/deep": "x"} if is_there else {}
    plant(tmp_path / "top", {f"dest/{name}": content for name, content in old.items()})
    disk = Disk(tmp_path / "top")
    under = ["strace", "-f", "-y", "-s", "300", "-e", f"trace={CALLS}", "-o", traced]
    done = fastsync(*arguments, under=under)
    assert done.code == 0, done
    before = dict(disk.first)
    finals: dict[str, set[int]] = {}
    moments = states = 0
    top = str(tmp_path / "top")
    for _ in replay(_of(Path(traced), top), disk, str(tmp_path)):
        moments += 1
        for state in disk.states():
            states += 1
            for path, inode in state.items():
                if inode in disk.directories or ".fs-" in path:
                    continue
                # Not a byte that may not be there, in whatever stands under its final name.
                assert inode in disk.whole, (path, "is there before its bytes are")
                finals.setdefault(path, set()).add(inode)
        for path, inode in before.items():
            if inode not in disk.directories and not ("--delete" in arguments and "/dest/" in path):
                assert all(path in state for state in disk.states()), (path, "was lost")
    assert moments > 3
    assert states > moments
    # It was said to be done: then it is there, in whatever state the disk is left.
    for state in disk.states():
        for made in (tmp_path / "top").rglob("*"):
            assert state.get(str(made)) == disk.live[str(made)], (made, "may be lost")
        assert state == disk.live, "what was deleted may be back"
    # There is no way to sync a link but with its directory.
    links = {disk.live[path] for path in disk.live if os.path.islink(path)}
    loose = [path for path, inode in disk.live.items() if inode in disk.loose - links]
    assert loose == [], "their attributes may be lost"
    assert all(len(inodes) <= 2 for inodes in finals.values())


def test_a_move_is_durable(fastsync: Fastsync, plant: Plant, traced: str, tmp_path: Path) -> None:
    """Not one file of the source goes before its copy is there to stay."""
    names: Spec = {"a": "a", "dir/b": "b", "large": b"n" * 900_000}
    plant(tmp_path / "top", {f"src/{name}": content for name, content in names.items()})
    disk = Disk(tmp_path / "top")
    under = ["strace", "-f", "-y", "-s", "300", "-e", f"trace={CALLS}", "-o", traced]
    done = fastsync("mv", "--durable", "top/src", "top/dest", under=under)
    assert done.code == 0, done
    for _ in replay(_of(Path(traced), str(tmp_path / "top")), disk, str(tmp_path)):
        for state in disk.states():
            for name in names:
                both = [state.get(str(tmp_path / "top" / side / name)) for side in ("src", "dest")]
                assert any(inode in disk.whole for inode in both), (name, "was lost")
    assert not (tmp_path / "top/src").exists()
    assert all(state == disk.live for state in disk.states())


def test_a_run_after_a_cut_without_it(
    fastsync: Fastsync, plant: Plant, picture: Callable[..., Picture], tmp_path: Path
) -> None:
    """File systems write a length with the bytes: names and times without them are empty or short files,
    which sizes tell. Where the length alone came through, only content does."""
    src = plant(tmp_path / "src", {**SOURCE, "lost": "lost", "zeros": b"n" * 5000})
    dest = tmp_path / "dest"
    assert fastsync("sync", "src", "dest").code == 0
    for name, length in {"large": 4096, "middle": 0, "old/kept": 0}.items():
        os.truncate(dest / name, length)
        shutil.copystat(src / name, dest / name)
    (dest / "lost").unlink()
    (dest / "zeros").write_bytes(bytes(5000))
    shutil.copystat(src / "zeros", dest / "zeros")
    assert fastsync("sync", "src", "dest") == (0, "", "")
    unlike = [name for name, shot in picture(src).items() if picture(dest)[name] != shot]
    assert unlike == ["zeros"]
    assert fastsync("sync", "--checksum", "src", "dest") == (0, "", "")
    assert picture(dest) == picture(src)


def _of(trace: Path, top: str) -> str:
    """The lines that are about the destination, and all of calls that were interrupted in the trace."""
    kept = []
    for line in trace.read_text(errors="surrogateescape").splitlines():
        if any(part in line for part in (top, "top/", "/proc/self/fd/", "resumed", "unfinished")):
            kept.append(line)
    return "\n".join(kept)


def test_the_check_sees_what_is_not_durable(
    fastsync: Fastsync, plant: Plant, traced: str, tmp_path: Path
) -> None:
    """Without --durable a power cut right after the run may lose it all, and the model says so."""
    plant(tmp_path / "src", {"a": "a"})
    plant(tmp_path / "top", {})
    disk = Disk(tmp_path / "top")
    under = ["strace", "-f", "-y", "-s", "300", "-e", f"trace={CALLS}", "-o", traced]
    assert fastsync("sync", "src", "top/dest", under=under).code == 0
    for _ in replay(_of(Path(traced), str(tmp_path / "top")), disk, str(tmp_path)):
        pass
    final = str(tmp_path / "top/dest/a")
    assert any(final not in state for state in disk.states())
    assert any(state.get(final) not in (None, *disk.whole) for state in disk.states())
