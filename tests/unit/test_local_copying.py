"""Copies on a disk: every rung of the ladder, every way down from it, and nothing half done visible."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import random
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsync.errors import NameRefused
from fastsync_local import copying
from fastsync_local.copying import (
    BUFFER,
    Copier,
    Ladder,
    Rules,
    SourceChanged,
    Stopped,
    Target,
    data_ranges,
    final_mode,
    same_state,
    set_owner,
    split,
    umask,
    write_all,
)
from fastsync_local.held import open_root
from fastsync_local.temporary import TEMPORARY, Names
from fastsync_local.walk import Walk

if TYPE_CHECKING:
    from fastsync_local.copying import Job, Problem

THEN = 1_600_000_000_123_456_789
NOT_HERE = [errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP]
WRONG = [errno.EIO, errno.ENOSPC, errno.EDQUOT]
RUNGS = ["copy_file_range", "sendfile"]


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture(autouse=True)
def _closes_all() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


class Patient:
    """Functions of `os`, as a test wants them: refusing, slow, or counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: dict[str, int] = {}
        self._patch = monkeypatch

    def count(self, name: str) -> None:
        self.replace(name, lambda really, *arguments: really(*arguments))

    def refuse(self, name: str, number: int, after: int = 0) -> None:
        """Fail with this errno, once it has worked so many times."""

        def fail(really: Callable[..., Any], *arguments: Any) -> Any:
            if self.calls[name] > after:
                raise OSError(number, os.strerror(number))
            return really(*arguments)

        self.replace(name, fail)

    def replace(self, name: str, act: Callable[..., Any]) -> None:
        really = getattr(os, name)
        self.calls[name] = 0

        def replaced(*arguments: Any, **options: Any) -> Any:
            self.calls[name] += 1
            if options:
                return act(lambda *others: really(*others, **options), *arguments)
            return act(really, *arguments)

        self._patch.setattr(os, name, replaced)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> Patient:
    return Patient(monkeypatch)


# -- the ladder ---------------------------------------------------------------------------------------


class Pair:
    """A source with content and an empty target, both open."""

    def __init__(self, directory: Path, content: bytes) -> None:
        self.path = directory / "source"
        self.path.write_bytes(content)
        self.source = os.open(self.path, os.O_RDONLY)
        self.target = os.open(directory / "target", os.O_RDWR | os.O_CREAT)
        device = os.fstat(self.source).st_dev
        self.devices = (device, device)
        self.moved: list[int] = []
        self.ladder = Ladder(lambda: False, self.moved.append)

    def copy(self, start: int, stop: int, *, alone: bool = True) -> None:
        self.ladder.copy(self.source, self.target, start, stop, self.devices, alone=alone)

    def written(self) -> bytes:
        return os.pread(self.target, 1 << 30, 0)


CONTENT = noise(3 * BUFFER + 11)
SIZE = len(CONTENT)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(tmp_path, CONTENT)
    yield pair
    os.close(pair.source)
    os.close(pair.target)


def test_the_first_rung_is_enough(pair: Pair, patient: Patient) -> None:
    for name in ("copy_file_range", "sendfile", "preadv"):
        patient.count(name)
    pair.copy(0, SIZE)
    assert pair.written() == CONTENT
    assert sum(pair.moved) == SIZE
    assert (patient.calls["sendfile"], patient.calls["preadv"]) == (0, 0)


@pytest.mark.parametrize("number", NOT_HERE)
@pytest.mark.parametrize("refused", [RUNGS[:1], RUNGS])
def test_falling_through(pair: Pair, patient: Patient, refused: list[str], number: int) -> None:
    """A rung that is not there for these files is passed, and not tried a second time."""
    for name in refused:
        patient.refuse(name, number)
    pair.copy(0, BUFFER)
    pair.copy(BUFFER, SIZE)
    assert pair.written() == CONTENT
    assert sum(pair.moved) == SIZE
    assert [patient.calls[name] for name in refused] == [1] * len(refused)


@pytest.mark.parametrize("number", NOT_HERE)
@pytest.mark.parametrize("refused", RUNGS)
def test_falling_through_in_the_middle(
    pair: Pair, patient: Patient, monkeypatch: pytest.MonkeyPatch, refused: str, number: int
) -> None:
    monkeypatch.setattr(copying, "STEP", 70_000)
    if refused == "sendfile":
        patient.refuse("copy_file_range", errno.EXDEV)
    patient.refuse(refused, number, after=2)
    pair.copy(0, SIZE)
    assert pair.written() == CONTENT


def test_other_devices_are_other_pairs(pair: Pair, patient: Patient) -> None:
    patient.refuse("copy_file_range", errno.EXDEV)
    pair.copy(0, SIZE)
    pair.devices = (pair.devices[0], pair.devices[1] + 1)
    pair.copy(0, SIZE)
    assert patient.calls["copy_file_range"] == 2


@pytest.mark.parametrize("number", WRONG)
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_what_goes_wrong_is_said(pair: Pair, patient: Patient, depth: int, number: int) -> None:
    """An error of the disk is no reason to try another way."""
    for name in RUNGS[:depth]:
        patient.refuse(name, errno.EXDEV)
    patient.refuse([*RUNGS, "preadv", "pwrite"][depth], number)
    for name in RUNGS[depth + 1 :]:
        patient.count(name)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))) as met:
        pair.copy(0, SIZE)
    assert met.value.errno == number
    assert all(patient.calls[name] == 0 for name in RUNGS[depth + 1 :])


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("left", [0, 1, BUFFER, SIZE - 1])
def test_a_source_that_shrank(pair: Pair, patient: Patient, depth: int, left: int) -> None:
    """Every rung but the last says nothing and moves nothing past the end; bytes are counted."""
    for name in RUNGS[:depth]:
        patient.refuse(name, errno.EXDEV)
    os.truncate(pair.path, left)
    with pytest.raises(SourceChanged):
        pair.copy(0, SIZE)
    assert sum(pair.moved) == left


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_short_counts(pair: Pair, patient: Patient, depth: int) -> None:
    """A call that moves less than it was asked to is not the end."""
    for name in RUNGS[:depth]:
        patient.refuse(name, errno.EXDEV)
    name = [*RUNGS, "preadv"][depth]
    if name == "copy_file_range":
        patient.replace(name, lambda really, a, b, n, *at: really(a, b, min(n, 7000), *at))
    elif name == "sendfile":
        patient.replace(name, lambda really, a, b, at, n: really(a, b, at, min(n, 7000)))
    else:
        patient.replace(name, lambda really, fd, into, at: really(fd, [into[0][:7000]], at))
        patient.replace("pwrite", lambda really, fd, data, at: really(fd, data[:999], at))
    pair.copy(0, SIZE)
    assert pair.written() == CONTENT
    assert sum(pair.moved) == SIZE
    assert patient.calls[name] == -(-SIZE // 7000)


def test_sharing_a_descriptor(pair: Pair, patient: Patient) -> None:
    """sendfile moves the target's position, so it is not for ranges in parallel."""
    patient.refuse("copy_file_range", errno.EXDEV)
    patient.count("sendfile")
    pair.copy(BUFFER, SIZE, alone=False)
    pair.copy(0, BUFFER, alone=False)
    assert pair.written() == CONTENT
    assert patient.calls["sendfile"] == 0


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_ranges_land_at_their_offsets(pair: Pair, patient: Patient, depth: int) -> None:
    for name in RUNGS[:depth]:
        patient.refuse(name, errno.EXDEV)
    edges = [0, 1, 4096, BUFFER, 2 * BUFFER + 1, SIZE]
    for start, stop in reversed(list(itertools.pairwise(edges))):
        pair.copy(start, stop)
    pair.copy(5, 5)
    assert pair.written() == CONTENT


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_being_stopped(
    pair: Pair, patient: Patient, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    """Between two steps somebody asks whether to go on."""
    monkeypatch.setattr(copying, "STEP", BUFFER)
    for name in RUNGS[:depth]:
        patient.refuse(name, errno.EXDEV)
    pair.ladder = Ladder(lambda: len(pair.moved) == 2, pair.moved.append)
    with pytest.raises(Stopped):
        pair.copy(0, SIZE)
    assert sum(pair.moved) == 2 * BUFFER


# -- cloning ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [*NOT_HERE, errno.ENOTTY])
def test_no_clone_here(pair: Pair, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    calls: list[tuple[int, int, int]] = []

    def refuse(*arguments: int) -> None:
        calls.append(arguments)  # type: ignore[arg-type]
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    for _ in range(2):
        assert not pair.ladder.clone(pair.source, pair.target, pair.devices)
    assert calls == [(pair.target, copying.FICLONE, pair.source)]


def test_cloning(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "ioctl", lambda *_arguments: 0)
    assert pair.ladder.clone(pair.source, pair.target, pair.devices)
    assert not pair.ladder.clone(pair.source, pair.target, (1, 2)), "blocks of another disk"


@pytest.mark.parametrize("number", WRONG)
def test_a_clone_that_goes_wrong(pair: Pair, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_arguments: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        pair.ladder.clone(pair.source, pair.target, pair.devices)


# -- small parts --------------------------------------------------------------------------------------


def test_write_all(tmp_path: Path, patient: Patient) -> None:
    patient.replace("pwrite", lambda really, fd, data, at: really(fd, data[:3], at))
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    write_all(fd, memoryview(b"content"), 2)
    assert os.pread(fd, 100, 0) == b"\0\0content"
    os.close(fd)


@given(st.lists(st.booleans(), max_size=12), st.integers(0, 5000))
def test_data_ranges(blocks: list[bool], tail: int) -> None:
    """What is outside of the ranges is a hole: a copy of the ranges alone is the whole file."""
    fd = os.memfd_create("sparse")
    try:
        size = len(blocks) * 65536 + tail
        os.ftruncate(fd, size)
        for number, full in enumerate(blocks):
            if full:
                os.pwrite(fd, noise(65536, number), number * 65536)
        content = os.pread(fd, size, 0)
        ranges = list(data_ranges(fd, size, sparse=True))
        assert sorted(ranges) == ranges
        copy = bytearray(size)
        for start, stop in ranges:
            assert 0 <= start < stop <= size
            copy[start:stop] = content[start:stop]
        assert copy == content
        assert sum(stop - start for start, stop in ranges) <= 65536 * sum(blocks) + 65536
        assert list(data_ranges(fd, size, sparse=False)) == ([(0, size)] if size else [])
    finally:
        os.close(fd)


def test_a_sparse_file_that_shrinks() -> None:
    """The end of the listed file is as far as it goes, wherever the real end is now."""
    fd = os.memfd_create("sparse")
    os.pwrite(fd, b"x" * 10_000, 0)
    assert list(data_ranges(fd, 5_000, sparse=True)) == [(0, 5_000)]
    ranges = list(data_ranges(fd, 50_000, sparse=True))
    assert ranges[0][0] == 0
    assert ranges[-1][1] <= 50_000
    os.close(fd)


def test_names() -> None:
    names, others = Names(), Names()
    made = [names.new() for _ in range(1000)] + [others.new() for _ in range(1000)]
    assert len(set(made)) == 2000
    assert all(TEMPORARY.fullmatch(name) and len(name) <= 32 for name in made)


@pytest.mark.parametrize(
    ("path", "parts"),
    [("a", ("", "a")), ("a/b", ("a", "b")), ("a/b/c", ("a/b", "c")), ("\udcff", ("", "\udcff"))],
)
def test_split(path: str, parts: tuple[str, str]) -> None:
    assert split(path) == parts


@pytest.mark.parametrize("path", ["", ".", "..", "a/..", "a/.", "a/", "/a", "a\0", "\ud800"])
def test_split_refuses(path: str) -> None:
    with pytest.raises(NameRefused):
        split(path)


@pytest.mark.parametrize(
    ("rules", "mode", "expected"),
    [
        ({}, 0o644, 0o644),
        ({}, 0o7755, 0o755),
        ({}, 0o104755, 0o755),
        ({"special": True}, 0o7755, 0o7755),
        ({"special": True}, 0o104755, 0o4755),
        ({}, 0, 0),
    ],
)
def test_final_mode(rules: dict[str, bool], mode: int, expected: int) -> None:
    assert final_mode(mode, Rules(**rules)) == expected


def test_the_mode_of_a_new_file() -> None:
    """Where modes are not kept, what a plain `open` would give."""
    now = os.umask(0)
    os.umask(now)
    assert umask() == now
    assert final_mode(0o777, Rules(mode=False)) == 0o666 & ~now


@pytest.mark.parametrize(
    ("forbidden", "asked"),
    [
        ([], [(1, 2)]),
        ([(1, 2)], [(1, 2), (-1, 2)]),
        ([(1, 2), (-1, 2)], [(1, 2), (-1, 2)]),
    ],
)
def test_set_owner(
    monkeypatch: pytest.MonkeyPatch, forbidden: list[tuple[int, int]], asked: list[tuple[int, int]]
) -> None:
    """As far as we may: both, the group alone, or neither."""
    tried: list[tuple[int, int]] = []

    def fchown(_fd: int, uid: int, gid: int) -> None:
        tried.append((uid, gid))
        if (uid, gid) in forbidden:
            raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(os, "fchown", fchown)
    set_owner(0, (1, 2))
    assert tried == asked


def test_rules_travel() -> None:
    rules = Rules(follow=True, sparse=True, mtime=False)
    assert Rules(**rules.as_dict()).as_dict() == rules.as_dict()


def test_same_state(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    os.utime(path, ns=(0, 0))
    before = path.stat()
    assert same_state(before, path.stat())
    path.write_bytes(b"CONTENT")
    os.utime(path, ns=(0, 0))  # size and time as before: the inode's own time tells
    assert not same_state(before, path.stat()) or before.st_ctime_ns == path.stat().st_ctime_ns


# -- targets ------------------------------------------------------------------------------------------


def test_a_temporary_name_that_is_taken(tmp_path: Path) -> None:
    names = Names()
    first = names.new()
    taken = f".fs-{(int(first[4:20], 16) & ~4095) | (int(first[4:20], 16) + 1 & 4095):016x}.part"
    (tmp_path / taken).write_bytes(b"somebody else's")
    directory = open_root(str(tmp_path))
    target = Target(directory, "file", names, Rules())
    os.write(target.fd, b"content")
    target.finish(7, THEN, 0o640, None)
    os.close(directory)
    assert (tmp_path / "file").read_bytes() == b"content"
    assert (tmp_path / taken).read_bytes() == b"somebody else's"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_target_is_private_until_it_is_finished(tmp_path: Path) -> None:
    directory = open_root(str(tmp_path))
    target = Target(directory, "file", Names(), Rules())
    (temporary,) = tmp_path.iterdir()
    assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
    target.drop()
    target.drop()
    assert list(tmp_path.iterdir()) == []
    os.close(directory)


# -- copies -------------------------------------------------------------------------------------------


class Place:
    """Two directories, and copies from one to the other."""

    def __init__(self, top: Path) -> None:
        self.source = top / "source"
        self.target = top / "target"
        self.source.mkdir()
        self.target.mkdir()
        self.moved: list[int] = []
        self.stopped = False

    def file(self, path: str, content: bytes, mode: int = 0o644) -> Job:
        """A file, and the job to copy it to the same path."""
        full = self.source / path
        full.parent.mkdir(parents=True, exist_ok=True)
        full.write_bytes(content)
        os.chmod(full, mode)
        os.utime(full, ns=(THEN, THEN))
        return path, path, len(content), THEN, mode, None

    def copy(self, *jobs: Job, **rules: bool) -> list[Problem | None]:
        copier = Copier(
            open_root(str(self.source)),
            open_root(str(self.target)),
            Rules(**rules),
            stopped=lambda: self.stopped,
            moved=self.moved.append,
        )
        try:
            return copier.run(jobs)
        finally:
            copier.close()

    def kinds(self, *jobs: Job, **rules: bool) -> list[str | None]:
        return [problem and problem[0] for problem in self.copy(*jobs, **rules)]

    def written(self) -> dict[str, bytes]:
        """Every file of the target, temporary ones included."""
        return {
            str(path.relative_to(self.target)): path.read_bytes()
            for path in sorted(self.target.rglob("*"))
            if not path.is_dir()
        }


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


SIZES = [0, 1, BUFFER - 1, BUFFER, BUFFER + 1, 3 * BUFFER + 7]
ALL_RULES: list[dict[str, bool]] = [
    {},
    {"inplace": True},
    {"sparse": True},
    {"durable": True},
    {"inplace": True, "sparse": True},
    {"follow": True},
]


@pytest.mark.parametrize("rules", ALL_RULES, ids=lambda rules: "+".join(rules) or "plain")
def test_copies_of_any_size(place: Place, rules: dict[str, bool]) -> None:
    """Over nothing, a shorter and a longer file: whole, with mode and time, each byte told once."""
    jobs = [place.file(f"d/{size}", noise(size), 0o640) for size in SIZES]
    for old in (None, b"old", noise(5 * BUFFER)):
        if old is not None:
            for size in SIZES:
                (place.target / f"d/{size}").write_bytes(old)
        place.moved.clear()
        assert place.copy(*jobs, **rules) == [None] * len(SIZES)
        assert place.written() == {f"d/{size}": noise(size) for size in sorted(SIZES, key=str)}
        assert sum(place.moved) == sum(SIZES)
        for size in SIZES:
            status = (place.target / f"d/{size}").stat()
            assert (status.st_mtime_ns, stat.S_IMODE(status.st_mode)) == (THEN, 0o640)


def test_time_and_mode_not_kept(place: Place) -> None:
    job = place.file("file", b"content", 0o755)
    assert place.copy(job, mtime=False, mode=False) == [None]
    status = (place.target / "file").stat()
    assert status.st_mtime_ns > THEN
    assert stat.S_IMODE(status.st_mode) == 0o666 & ~umask()


@pytest.mark.parametrize("special", [True, False])
def test_special_bits(place: Place, special: bool) -> None:
    assert place.copy(place.file("file", b"", 0o6755), special=special) == [None]
    mode = stat.S_IMODE((place.target / "file").stat().st_mode)
    assert mode == (0o6755 if special else 0o755)


@pytest.mark.parametrize("inplace", [True, False])
def test_holes(place: Place, inplace: bool) -> None:
    """A hole stays one, and over an old file it reads as zeros."""
    path = place.source / "file"
    with path.open("wb") as file:
        for start in (0, 4 * BUFFER):
            file.seek(start)
            file.write(b"x" * 4096)
        file.truncate(8 * BUFFER)
    os.utime(path, ns=(THEN, THEN))
    (place.target / "file").write_bytes(noise(9 * BUFFER))
    content = path.read_bytes()
    assert place.copy(
        ("file", "file", len(content), THEN, 0o644, None), sparse=True, inplace=inplace
    ) == [None]
    assert place.written() == {"file": content}
    assert (place.target / "file").stat().st_blocks <= path.stat().st_blocks + 16


def test_a_new_name(place: Place) -> None:
    job = place.file("a/b", b"content")
    assert place.copy((job[0], "c/d/e", *job[2:])) == [None]
    assert place.written() == {"c/d/e": b"content"}


# What becomes of a file between its listing and its copy.
def gone(path: Path) -> None:
    path.unlink()


def grown(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")
    os.utime(path, ns=(THEN, THEN))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)
    os.utime(path, ns=(THEN, THEN))


def touched(path: Path) -> None:
    os.utime(path, ns=(THEN + 1, THEN + 1))


def link(path: Path) -> None:
    os.rename(path, path.with_name("moved"))
    path.symlink_to("moved")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def no_parent(path: Path) -> None:
    os.rename(path.parent, path.parent.with_name("gone"))


def parent_is_a_link(path: Path) -> None:
    os.rename(path.parent, path.parent.with_name("moved"))
    path.parent.symlink_to("moved")


@pytest.mark.parametrize("size", [100, 2 * BUFFER])
@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (gone, "vanished"),
        (grown, "changed"),
        (cut, "changed"),
        (touched, "changed"),
        (link, "changed"),
        (pipe, "changed"),
        (folder, "changed"),
        (no_parent, "vanished"),
        (parent_is_a_link, "changed"),
    ],
)
def test_not_the_file_that_was_listed(
    place: Place, change: Callable[[Path], None], kind: str, size: int
) -> None:
    """It is not copied, the old file stays, and the others are copied all the same."""
    jobs = [place.file(path, noise(size)) for path in ("a", "d/b", "e")]
    (place.target / "d").mkdir()
    (place.target / "d/b").write_bytes(b"old")
    change(place.source / "d/b")
    assert place.kinds(*jobs) == [None, kind, None]
    assert place.written() == {"a": noise(size), "d/b": b"old", "e": noise(size)}


def test_links_of_the_source_are_followed_when_asked_for(place: Place) -> None:
    job = place.file("d/file", b"content")
    (place.source / "door").symlink_to("d")
    (place.source / "link").symlink_to("d/file")
    jobs: list[Job] = [(path, path, *job[2:]) for path in ("door/file", "link")]
    assert place.kinds(*jobs) == ["changed", "changed"]
    assert place.kinds(*jobs, follow=True) == [None, None]
    assert place.written() == {"door/file": b"content", "link": b"content"}


@pytest.mark.parametrize("size", [100, 2 * BUFFER])
@pytest.mark.parametrize("sparse", [True, False])
def test_written_to_while_it_is_copied(
    place: Place, patient: Patient, size: int, sparse: bool
) -> None:
    """Of the same size, in the midst of it: noticed before it is visible."""
    job = place.file("file", noise(size))
    (place.target / "file").write_bytes(b"old")

    def meddle(really: Callable[..., Any], *arguments: Any) -> Any:
        moved = really(*arguments)
        with (place.source / "file").open("r+b") as file:
            file.write(b"CHANGED")
        return moved

    patient.replace("copy_file_range" if size > BUFFER or sparse else "readv", meddle)
    assert place.kinds(job, sparse=sparse) == ["changed"]
    assert place.written() == {"file": b"old"}


@pytest.mark.parametrize("size", [100, 2 * BUFFER])
@pytest.mark.parametrize("by", [-50, 50])
def test_resized_while_it_is_copied(place: Place, patient: Patient, size: int, by: int) -> None:
    """After the look that found it to be the listed one."""
    job = place.file("file", noise(size))
    looks = 0

    def look(really: Callable[..., Any], fd: int) -> Any:
        nonlocal looks
        status = really(fd)
        if os.readlink(f"/proc/self/fd/{fd}") == str(place.source / "file"):
            looks += 1
            if looks == 1:
                os.truncate(place.source / "file", size + by)
        return status

    patient.replace("fstat", look)
    assert place.kinds(job) == ["changed"]
    assert place.written() == {}
    assert looks >= 1


@pytest.mark.parametrize("path", ["..", "../x", "a/../b", "", "/x", "d/.."])
def test_names_that_leave(place: Place, path: str) -> None:
    job = place.file("file", b"content")
    assert place.kinds((job[0], path, *job[2:]), (path, "x", *job[2:]), job) == [
        "name",
        "name",
        None,
    ]
    assert place.written() == {"file": b"content"}
    assert sorted(path.name for path in place.target.parent.iterdir()) == ["source", "target"]


def test_a_link_in_the_way_of_a_target(place: Place, tmp_path: Path) -> None:
    """A link where the file goes is replaced; one where a directory goes is refused."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/victim").write_bytes(b"old")
    (place.target / "file").symlink_to("../outside/victim")
    (place.target / "d").symlink_to("../outside")
    jobs = [place.file(path, b"content") for path in ("d/file", "d/victim", "file")]
    first, second, third = place.copy(*jobs)
    assert third is None
    for problem in (first, second):
        assert problem is not None
        assert problem[0] == "write"
        assert problem[1] in (errno.ELOOP, errno.ENOTDIR)
    assert (place.target / "file").read_bytes() == b"content"
    assert not (place.target / "file").is_symlink()
    assert [path.read_bytes() for path in (tmp_path / "outside").iterdir()] == [b"old"]


def test_in_place_does_not_follow_links(place: Place, tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"old")
    (place.target / "file").symlink_to("../victim")
    (problem,) = place.copy(place.file("file", b"content"), inplace=True)
    assert problem is not None
    assert problem[:2] == ("write", errno.ELOOP)
    assert (tmp_path / "victim").read_bytes() == b"old"


def test_in_place_onto_a_pipe(place: Place) -> None:
    """Neither waits for a reader nor feeds one."""
    os.mkfifo(place.target / "file")
    job = place.file("file", b"content")
    assert place.kinds(job, inplace=True) == ["write"]
    reader = os.open(place.target / "file", os.O_RDONLY | os.O_NONBLOCK)
    assert place.kinds(job, inplace=True) == ["write"]
    assert os.read(reader, 100) == b""
    os.close(reader)


def test_a_directory_in_the_way(place: Place) -> None:
    (place.target / "file/inside").mkdir(parents=True)
    (problem,) = place.copy(place.file("file", b"content"))
    assert problem is not None
    assert (problem[0], problem[1]) == ("write", errno.EISDIR)
    assert place.written() == {}


@pytest.mark.parametrize("size", [100, 2 * BUFFER])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_fails(place: Place, patient: Patient, size: int, number: int) -> None:
    """The old file stays, nothing else is left, and the error is about the writing side."""
    jobs = [place.file(path, noise(size)) for path in ("a", "b")]
    (place.target / "a").write_bytes(b"old")
    patient.refuse("copy_file_range" if size > BUFFER else "write", number)
    problems = place.copy(*jobs)
    assert [problem and problem[:2] for problem in problems] == [("write", number)] * 2
    assert place.written() == {"a": b"old"}


@pytest.mark.parametrize("name", ["fchmod", "utime", "rename", "fsync", "ftruncate"])
def test_a_last_step_that_fails(place: Place, patient: Patient, name: str) -> None:
    """Until the rename nothing is visible, whatever fails before it."""
    (place.target / "file").write_bytes(b"old")
    job = place.file("file", b"content")

    def fail(really: Callable[..., Any], at: Any, *arguments: Any) -> Any:
        if isinstance(at, int) and stat.S_ISDIR(os.fstat(at).st_mode):
            return really(at, *arguments)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    patient.replace(name, fail)
    (problem,) = place.copy(job, durable=True, sparse=True)
    assert problem is not None
    assert problem[:2] == ("write", errno.EIO)
    assert place.written() == {"file": b"old"}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE])
def test_a_source_that_cannot_be_opened(place: Place, patient: Patient, number: int) -> None:
    jobs = [place.file(path, b"content") for path in ("a", "b", "c")]

    def fail(really: Callable[..., Any], path: Any, *arguments: Any) -> Any:
        if path == "b":
            raise OSError(number, os.strerror(number))
        return really(path, *arguments)

    patient.replace("open", fail)
    first, second, third = place.copy(*jobs)
    assert (first, third) == (None, None)
    assert second is not None
    assert second[:2] == ("read", number)
    assert place.written() == {"a": b"content", "c": b"content"}


def test_a_source_that_cannot_be_read(place: Place, patient: Patient) -> None:
    """The error is about the reading side."""
    job = place.file("file", b"content")
    patient.refuse("readv", errno.EIO)
    (problem,) = place.copy(job)
    assert problem is not None
    assert problem[:2] == ("read", errno.EIO)
    assert place.written() == {}


def test_stopping_between_files(place: Place) -> None:
    jobs = [place.file(path, b"content") for path in ("a", "b", "c")]

    class Moved(list[int]):
        def append(self, count: int) -> None:
            super().append(count)
            place.stopped = True

    place.moved = Moved()
    assert place.kinds(*jobs) == [None, "stopped", "stopped"]
    assert place.written() == {"a": b"content"}


def test_stopping_in_a_file(
    place: Place, patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "STEP", BUFFER)
    jobs = [place.file(path, noise(4 * BUFFER)) for path in ("a", "b")]

    class Moved(list[int]):
        def append(self, count: int) -> None:
            super().append(count)
            place.stopped = len(self) == 2

    place.moved = Moved()
    monkeypatch.setattr(fcntl, "ioctl", _no_clone)
    assert place.kinds(*jobs) == ["stopped", "stopped"]
    assert place.written() == {}


def _no_clone(*_arguments: int) -> None:
    raise OSError(errno.EOPNOTSUPP, "no")


def test_durable(place: Place, patient: Patient) -> None:
    """Every file is synced before its rename, every directory after the last rename in it."""
    jobs = [place.file(path, b"content") for path in ("a/1", "a/2", "b/1", "c")]
    events: list[str] = []

    def sync(really: Callable[..., Any], fd: int) -> None:
        shown = os.readlink(f"/proc/self/fd/{fd}")
        events.append("directory " + os.path.basename(shown) if os.path.isdir(shown) else "file")
        really(fd)

    def rename(really: Callable[..., Any], *arguments: Any) -> None:
        events.append("rename")
        really(*arguments)

    patient.replace("fsync", sync)
    patient.replace("rename", rename)
    assert place.copy(*jobs, durable=True) == [None] * 4
    assert [event for event in events if event in ("file", "rename")] == ["file", "rename"] * 4
    for directory, renames in (("a", 2), ("b", 3), ("target", 4)):
        position = len(events) - events[::-1].index(f"directory {directory}")
        assert events[:position].count("rename") >= renames
    assert events[-1] == "directory target"


def test_a_directory_that_cannot_be_synced(place: Place, patient: Patient) -> None:
    """Then nobody knows what would survive a power cut, and nothing counts as done."""
    jobs = [place.file(path, b"content") for path in ("a", "b")]

    def fail(really: Callable[..., Any], fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        really(fd)

    patient.replace("fsync", fail)
    assert place.copy(*jobs, durable=True) == [("write", errno.EIO, os.strerror(errno.EIO))] * 2


def test_a_close_that_fails_is_not_done_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By then the number may be another thread's; and of what was only read a disk says nothing of use."""
    for number in range(6):
        path = tmp_path / "src" / str(number) / "deep" / "file"
        path.parent.mkdir(parents=True)
        path.write_text(str(number))
    really = os.close
    failed: list[int] = []

    def close(fd: int) -> None:
        written = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE  # EBADF for what is closed already
        really(fd)
        if written == os.O_RDONLY:
            failed.append(fd)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "dest").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(os, "close", close)
        ((rows, faults, _),) = list(Walk(open_root(str(tmp_path / "src"))))
        jobs = [(row[0], row[0], row[2], row[3], row[4], None) for row in rows if row[1] == "file"]
        src, dest = (open_root(str(tmp_path / name)) for name in ("src", "dest"))
        copier = Copier(src, dest, Rules(), stopped=lambda: False, moved=lambda _count: None)
        assert copier.run(jobs) == [None] * 6  # type: ignore[arg-type]
        copier.close()
        copier.close()
    assert faults == []
    assert len(failed) > 30
