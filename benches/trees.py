"""Trees of files for the benches, and an independent check that two of them are the same.

The same arguments always make the same tree. Nothing is kept in memory per file, so that the bench
itself stays small (measure.py says why that matters).
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

_FILES_PER_DIRECTORY = 100
_DIRECTORIES_PER_TOP = 20
_MODES = (0o644, 0o644, 0o644, 0o600, 0o755, 0o640, 0o444)
_DIRECTORY_MODES = (0o755, 0o755, 0o750, 0o700)
_NAMES = ("{}.py", "{}.txt", "note {}", "IMG_{}.jpeg", "{}~", "tëst-{}.md", "{}.tar.gz")
_FIRST_MTIME_NS = 1_500_000_000_000_000_000
_MTIME_STEP_NS = 1_234_567_891  # a bit more than a second, so that nanoseconds vary too
_BLOCK = 1 << 20
_DIFFERENCES_TOLD = 5


@dataclass(frozen=True, slots=True)
class Keeps:
    """What a tool promises to keep besides the contents and times of files."""

    modes: bool
    directory_times: bool


EVERYTHING = Keeps(modes=True, directory_times=True)


def make_small_files(root: Path, files: int) -> int:
    """Files of 0.2 to 30 kB of random bytes, most of them small. Returns bytes, 11 kB per file."""
    random = Random(files)
    total = 0

    def fill(descriptor: int, _index: int) -> None:
        nonlocal total
        data = random.randbytes(200 + int(29_801 * random.random() ** 1.75))
        total += os.write(descriptor, data)

    _make_tree(root, files, fill)
    return total


def make_hollow_files(root: Path, files: int) -> None:
    """Files of up to 100 kB that are all hole: quick to make, and they take no room."""
    _make_tree(
        root, files, lambda descriptor, index: os.ftruncate(descriptor, index * 7919 % 100_000)
    )


def make_big_file(path: Path, size: int) -> None:
    """One file of random bytes, without holes."""
    random = Random(size)
    with path.open("xb") as file:
        for start in range(0, size, _BLOCK):
            file.write(random.randbytes(min(_BLOCK, size - start)))
    os.utime(path, ns=(_FIRST_MTIME_NS, _FIRST_MTIME_NS + 123_456_789))


def differences(left: Path, right: Path, keeps: Keeps = EVERYTHING) -> list[str]:
    """The first few differences of two trees in names, kinds, contents, times and modes.

    The modes and times of the two roots themselves may differ.
    """
    return list(
        islice(_differences(os.fspath(left), os.fspath(right), "", keeps), _DIFFERENCES_TOLD)
    )


def fingerprint(root: Path) -> str:
    """Changes whenever a file below `root` is written, replaced, touched, added or removed."""
    digest = hashlib.sha256()
    pending = [os.fspath(root)]
    while pending:
        directory = pending.pop()
        for name, entry in _listing(directory).items():
            path = f"{directory}/{name}"
            if entry.is_dir(follow_symlinks=False):
                pending.append(path)
            else:
                info = entry.stat(follow_symlinks=False)
                facts = (path, info.st_ino, info.st_mode, info.st_size, info.st_mtime_ns)
                digest.update(repr((*facts, info.st_ctime_ns)).encode(errors="surrogateescape"))
    return digest.hexdigest()


def _make_tree(root: Path, files: int, fill: Callable[[int, int], None]) -> None:
    for number, first in enumerate(range(0, files, _FILES_PER_DIRECTORY)):
        path = root / f"part-{number // _DIRECTORIES_PER_TOP:03d}" / f"{number:05d}"
        path.mkdir(parents=True)
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for index in range(first, min(first + _FILES_PER_DIRECTORY, files)):
                _make_file(directory, index, fill)
            _dress(directory, number)
        finally:
            os.close(directory)
    for number, path in enumerate(sorted(root.iterdir())):
        _dress(path, number)


def _make_file(directory: int, index: int, fill: Callable[[int, int], None]) -> None:
    name = _NAMES[index % len(_NAMES)].format(index)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    descriptor = os.open(name, flags, _MODES[index % len(_MODES)], dir_fd=directory)
    try:
        fill(descriptor, index)
        mtime_ns = _mtime_ns(index)
        os.utime(descriptor, ns=(mtime_ns, mtime_ns))
    finally:
        os.close(descriptor)


def _dress(directory: int | Path, number: int) -> None:
    os.chmod(directory, _DIRECTORY_MODES[number % len(_DIRECTORY_MODES)])
    os.utime(directory, ns=(_mtime_ns(number), _mtime_ns(number)))


def _mtime_ns(number: int) -> int:
    return _FIRST_MTIME_NS + number * _MTIME_STEP_NS


def _differences(left: str, right: str, below: str, keeps: Keeps) -> Iterator[str]:
    ours, theirs = _listing(left), _listing(right)
    for name in sorted(ours.keys() | theirs.keys()):
        path = f"{below}{name}"
        if name not in theirs:
            yield f"{path!r} is missing"
        elif name not in ours:
            yield f"{path!r} is too many"
        else:
            a = ours[name].stat(follow_symlinks=False)
            b = theirs[name].stat(follow_symlinks=False)
            is_directory = stat.S_ISDIR(a.st_mode)
            if stat.S_IFMT(a.st_mode) != stat.S_IFMT(b.st_mode):
                yield f"{path!r} is of another kind"
                continue
            if keeps.modes and a.st_mode != b.st_mode:
                yield f"{path!r} has mode {b.st_mode & 0o7777:o}, not {a.st_mode & 0o7777:o}"
            if a.st_mtime_ns != b.st_mtime_ns and (keeps.directory_times or not is_directory):
                yield f"{path!r} has mtime {b.st_mtime_ns} ns, not {a.st_mtime_ns}"
            if is_directory:
                yield from _differences(f"{left}/{name}", f"{right}/{name}", f"{path}/", keeps)
            elif a.st_size != b.st_size:
                yield f"{path!r} has {b.st_size} bytes, not {a.st_size}"
            elif not _same_contents(f"{left}/{name}", f"{right}/{name}"):
                yield f"{path!r} has other contents"


def _same_contents(left: str, right: str) -> bool:
    with open(left, "rb", buffering=0) as a, open(right, "rb", buffering=0) as b:
        while True:
            ours = a.read(_BLOCK)
            if ours != b.read(_BLOCK):
                return False
            if not ours:
                return True


def _listing(directory: str) -> dict[str, os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        return {entry.name: entry for entry in sorted(entries, key=lambda entry: entry.name)}
