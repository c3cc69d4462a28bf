"""Local disks in trouble: full, read-only, changing under our hands, shared with others.

What happens from outside runs the real command. What has to happen at one exact moment runs in this
process, with one function of the copier wrapped so that it meddles with the file it is about.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from disks import Disk, ext4, tmpfs
from sshd import running_sshd

import fastsync as library
from fastsync_local import copying

if TYPE_CHECKING:
    from tests.conftest import Fastsync, Picture, Plant

Debris: TypeAlias = Callable[[Path], list[Path]]
NO_SPACE = (
    r"no space left on device: need 12\.0 MiB, free \d\.\d MiB"
    r" \(free some space and run the same command again\)"
)


# -- disks that are full or read-only ----------------------------------------------------------------


@pytest.fixture(params=["ext4", "tmpfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """A disk of 8 MB and 400 inodes."""
    if request.param == "ext4":
        making = ext4(tmp_path / "disk", nbytes=8 << 20, image=tmp_path / "image")
    else:
        making = tmpfs(tmp_path / "disk", nbytes=8 << 20)
    with making as disk:
        yield disk


@pytest.mark.parametrize("options", [(), ("--durable",), ("--sparse",)])
def test_a_full_disk_keeps_the_old_file(
    fastsync: Fastsync,
    plant: Plant,
    debris: Debris,
    disk: Disk,
    tmp_path: Path,
    options: tuple[str, ...],
) -> None:
    plant(tmp_path / "src", {"a": "new", "large": os.urandom(12 << 20)})
    plant(disk.root / "dest", {"large": "the old one", "extra": "x"})
    free = disk.free()
    done = fastsync("sync", "--delete", "--summarize", *options, "src", disk.root / "dest")
    assert done.code == 7
    assert re.search(rf"^fastsync: error: \S+/dest/large: {NO_SPACE}$", done.stderr, re.MULTILINE)
    # The small one, too, if it comes while the large one has filled the disk.
    assert re.search("Failed: [12] files", done.stdout)
    assert "not deleting: " in done.stderr
    assert (disk.root / "dest/large").read_text() == "the old one"
    assert (disk.root / "dest/extra").exists()
    assert debris(disk.root) == []
    assert free - disk.free() < 1 << 20
    # Once there is room, the same command does the rest.
    os.truncate(tmp_path / "src/large", 1 << 20)
    assert fastsync("sync", "--delete", *options, "src", disk.root / "dest") == (0, "", "")
    assert (disk.root / "dest/large").stat().st_size == 1 << 20
    assert sorted(os.listdir(disk.root / "dest")) == ["a", "large"]


def test_a_full_disk_and_a_stream(
    plant: Plant, debris: Debris, disk: Disk, fastsync: Fastsync, tmp_path: Path
) -> None:
    """Nobody knows how much it would have needed."""
    dest = plant(disk.root / "dest", {"file": "the old one"})
    with open(tmp_path / "zeros", "wb") as file:
        file.truncate(12 << 20)
    done = subprocess.run(
        ["sh", "-c", f'cat zeros | "$@" - {dest}/file', "sh", *fastsync.command("cp")],
        cwd=tmp_path,
        env=fastsync.environ,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 7, done
    assert b"no space left on device (free some space" in done.stderr
    assert (dest / "file").read_text() == "the old one"
    assert debris(disk.root) == []


def test_a_full_disk_stops_the_rest(
    fastsync: Fastsync, plant: Plant, debris: Debris, disk: Disk, tmp_path: Path
) -> None:
    """Nothing further is tried; what was copied before is whole."""
    content = os.urandom(100_000)
    plant(tmp_path / "src", {f"{index:03}": content for index in range(300)})
    done = fastsync("cp", "-R", "--summarize", "src", disk.root / "dest")
    assert done.code == 7
    assert "fastsync: stopped early: " in done.stderr
    failed = re.search(r"Failed: (\d+) files", done.stdout)
    assert failed
    assert 1 <= int(failed[1]) < 250
    assert debris(disk.root) == []
    copied = list((disk.root / "dest").iterdir())
    assert f"Copied: {len(copied)} files" in done.stdout
    assert len(copied) > 20
    assert all(path.read_bytes() == content for path in copied)


def test_a_disk_without_inodes(
    fastsync: Fastsync, plant: Plant, debris: Debris, disk: Disk, tmp_path: Path
) -> None:
    """Files, then directories, then links, of which there can be no more."""
    plant(tmp_path / "files", {f"{index:04}": "x" for index in range(1500)})
    plant(tmp_path / "dirs", {f"{index:04}/": "" for index in range(500)})
    plant(tmp_path / "links", {f"{index:04}": Path("x") for index in range(500)})
    for name in ("files", "dirs", "links"):
        done = fastsync("cp", "-R", name, disk.root / name)
        assert done.code == 7, name
        assert "no space left on device" in done.stderr
        assert "no inode is free" in done.stderr or name != "files"
        assert "fastsync: stopped early: " in done.stderr
        assert debris(disk.root) == []
        shutil.rmtree(disk.root / name)


def test_a_read_only_disk(
    fastsync: Fastsync,
    plant: Plant,
    picture: Callable[..., Picture],
    disk: Disk,
    tmp_path: Path,
) -> None:
    src = plant(tmp_path / "src", {"a": "a", "b": "b", "dir/c": "c"})
    assert fastsync("sync", "src", disk.root / "dest").code == 0
    disk.make_read_only()
    before = picture(disk.root)
    # Nothing to do needs no writing.
    assert fastsync("sync", "--delete", "src", disk.root / "dest") == (0, "", "")
    (src / "a").write_text("changed")
    (src / "dir/new").mkdir()
    for command in (
        ("sync", "src", disk.root / "dest"),
        ("sync", "--inplace", "src", disk.root / "dest"),
        ("cp", src / "a", disk.root / "dest"),
        ("cp", "-R", src, disk.root / "new"),
        ("cp", src / "a", disk.root / "new/deep/"),
    ):
        done = fastsync(*command)
        assert done.code == 7, command
        assert "read-only file system" in done.stderr
    (src / "b").unlink()
    (src / "a").write_text("a")
    shutil.rmtree(src / "dir/new")
    shutil.copystat(disk.root / "dest/a", src / "a")
    done = fastsync("sync", "--delete", "src", disk.root / "dest")
    assert done.code == 7
    assert "dest/b: read-only file system" in done.stderr
    assert picture(disk.root) == before


def test_a_disk_of_a_server(
    fastsync: Fastsync, plant: Plant, debris: Debris, disk: Disk, tmp_path: Path
) -> None:
    """SFTP says "failure" of a full disk and of a read-only one; we say which it is."""
    plant(tmp_path / "src", {"dir/a": "a", "large": os.urandom(12 << 20)})
    plant(disk.root / "dest", {"large": "the old one", "extra": "x"})
    (tmp_path / "sshd").mkdir()
    with running_sshd(tmp_path / "sshd") as sshd:
        options = [f"--{key.replace('_', '-')}={value}" for key, value in sshd.place.items()]
        sync = ["sync", "--delete", *options, "src", sshd.url(disk.root / "dest")]
        done = fastsync(*sync)
        assert (done.code, "no space left on the server" in done.stderr) == (7, True), done
        assert (disk.root / "dest/large").read_text() == "the old one"
        assert debris(disk.root) == []
        shutil.rmtree(disk.root / "dest/dir")
        disk.make_read_only()
        for change in ("small", "directory"):
            if change == "small":
                (tmp_path / "src/large").write_text("new")
            else:
                (tmp_path / "src/large").unlink()
                (tmp_path / "src/another").mkdir()
            done = fastsync(*sync)
            assert (done.code, "read-only" in done.stderr) == (7, True), done
        assert (disk.root / "dest/extra").exists()


@pytest.mark.parametrize("size", [200_000, 20_000_000])
def test_a_limit_on_the_size_of_files(
    fastsync: Fastsync,
    plant: Plant,
    debris: Debris,
    under_limit: Callable[[str], list[str]],
    tmp_path: Path,
    size: int,
) -> None:
    plant(tmp_path, {"src/large": b"x" * size, "src/small": "s", "dest/large": "the old one"})
    done = fastsync("sync", "src", "dest", under=under_limit("-f 100"))
    assert done.code == 7
    assert "dest/large: file too large" in done.stderr
    assert (tmp_path / "dest/large").read_text() == "the old one"
    assert debris(tmp_path) == []


# -- sources that change at an exact moment ----------------------------------------------------------

Meddle: TypeAlias = Callable[[], object]


class Moment:
    """Meddles with a file each time it is about to be opened, or was just read to its end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def before_open(self, name: str, meddle: Meddle, *, times: int = 1) -> None:
        self._wrap("open_source", name, meddle, times, after=False)

    def after_open(self, name: str, meddle: Meddle, *, times: int = 1) -> None:
        """Between the look at the open file and the first byte."""
        self._wrap("open_source", name, meddle, times, after=True)

    def _wrap(self, function: str, name: str, meddle: Meddle, times: int, *, after: bool) -> None:
        original = getattr(copying, function)
        left = times

        def wrapped(directory: int, opened: str, *arguments: Any, **options: Any) -> Any:
            nonlocal left
            is_it = opened == name and left > 0
            if is_it and not after:
                left -= 1
                meddle()
            result = original(directory, opened, *arguments, **options)
            if is_it and after:
                left -= 1
                meddle()
            return result

        self._monkeypatch.setattr(copying, function, wrapped)


@pytest.fixture
def moment(monkeypatch: pytest.MonkeyPatch) -> Moment:
    return Moment(monkeypatch)


SIZES = [10, 100_000, 1_000_000]  # one read; just below and well above the buffer of small files
ALWAYS = 1000


@pytest.fixture(params=SIZES)
def pair(request: pytest.FixtureRequest, plant: Plant, tmp_path: Path) -> Path:
    """A source with a file that will change, among others; a destination with an older one."""
    plant(tmp_path / "src", {"a": "a", "file": b"1" * request.param, "z": "z"})
    plant(tmp_path / "dest", {"file": "the old one", "extra": "x"})
    return tmp_path


def append(path: Path) -> Meddle:
    def meddle() -> None:
        with open(path, "ab") as file:
            file.write(b"more")

    return meddle


def shorten(path: Path) -> Meddle:
    return lambda: os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> Meddle:
    """The same size, and the time set back: the change time alone tells."""

    def meddle() -> None:
        status = path.stat()
        with open(path, "r+b") as file:
            file.write(b"2")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    return meddle


def replace(path: Path) -> Meddle:
    def meddle() -> None:
        other = path.with_name("other")
        other.write_bytes(b"another file altogether")
        other.rename(path)

    return meddle


CHANGES = [append, shorten, overwrite, replace]


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_once_is_copied_as_it_is_then(
    moment: Moment, debris: Debris, pair: Path, change: Callable[[Path], Meddle]
) -> None:
    source = pair / "src/file"
    moment.after_open("file", change(source))
    summary = library.sync(pair / "src", pair / "dest", delete=True)
    assert (summary.exit_code, summary.failures) == (0, [])
    assert (pair / "dest/file").read_bytes() == source.read_bytes()
    assert (pair / "dest/file").stat().st_mtime_ns == source.stat().st_mtime_ns
    assert sorted(os.listdir(pair / "dest")) == sorted(os.listdir(pair / "src"))
    assert debris(pair) == []


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_keeps_changing_is_left_as_it_was(
    moment: Moment, debris: Debris, pair: Path, change: Callable[[Path], Meddle]
) -> None:
    """The others are copied, and what the source no longer has is deleted: no error hid it."""
    moment.after_open("file", change(pair / "src/file"), times=ALWAYS)
    summary = library.sync(pair / "src", pair / "dest", delete=True)
    assert summary.exit_code == 8
    assert (summary.totals.failed, summary.totals.deleted) == (1, 1)
    assert re.search("src/file: the file", str(summary.failures[0].error))
    assert (pair / "dest/file").read_text() == "the old one"
    assert sorted(os.listdir(pair / "dest")) == ["a", "file", "z"]
    assert debris(pair) == []


@pytest.mark.parametrize("after", [False, True], ids=["before open", "after open"])
def test_a_file_that_vanishes(moment: Moment, debris: Debris, pair: Path, after: bool) -> None:
    vanish = (pair / "src/file").unlink
    (moment.after_open if after else moment.before_open)("file", vanish)
    summary = library.sync(pair / "src", pair / "dest", delete=True)
    assert summary.exit_code == 8
    assert "the file is gone since it was listed" in str(summary.failures[0].error)
    assert (pair / "dest/file").read_text() == "the old one"
    assert sorted(os.listdir(pair / "dest")) == ["a", "file", "z"]
    assert debris(pair) == []


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_a_file_that_becomes_something_else(
    moment: Moment, debris: Debris, pair: Path, kind: str
) -> None:
    source, secret = pair / "src/file", pair / "secret"
    secret.write_text("nothing of this may be copied")

    def meddle() -> None:
        source.unlink()
        if kind == "link":
            source.symlink_to(secret)
        elif kind == "pipe":
            os.mkfifo(source)
        else:
            source.mkdir()

    moment.before_open("file", meddle)
    summary = library.sync(pair / "src", pair / "dest")
    assert summary.exit_code == 8
    assert (pair / "dest/file").read_text() == "the old one"
    assert (pair / "dest/z").read_text() == "z"
    assert debris(pair) == []


def test_a_directory_of_the_source_that_becomes_a_link(
    moment: Moment, debris: Debris, plant: Plant, tmp_path: Path
) -> None:
    src = plant(tmp_path / "src", {"dir/file": "mine!", "first": "f"})
    plant(tmp_path / "secret", {"file": "yours"})

    def meddle() -> None:
        (src / "dir").rename(src / "moved")
        (src / "dir").symlink_to(tmp_path / "secret")

    # Before anything of the directory was opened.
    original = copying.Copier.run

    def run(self: copying.Copier, jobs: Any) -> Any:
        if (src / "dir").is_dir() and not (src / "dir").is_symlink():
            meddle()
        return original(self, jobs)

    copying.Copier.run = run  # type: ignore[method-assign]
    try:
        summary = library.sync(src, tmp_path / "dest")
    finally:
        copying.Copier.run = original  # type: ignore[method-assign]
    assert summary.exit_code in (1, 8)
    assert not (tmp_path / "dest/dir/file").exists()
    assert (tmp_path / "dest/first").read_text() == "f"
    assert debris(tmp_path) == []


def test_a_directory_of_the_destination_that_becomes_a_link(
    moment: Moment, debris: Debris, plant: Plant, tmp_path: Path
) -> None:
    """Who can write there cannot make us write elsewhere."""
    src = plant(tmp_path / "src", {"dir/file": "ours", "dir/other": "ours"})
    dest = plant(tmp_path / "dest", {"dir/": ""})
    outside = plant(tmp_path / "outside", {"file": "theirs"})

    def meddle() -> None:
        (dest / "dir").rename(dest / "moved")
        (dest / "dir").symlink_to(outside)

    moment.before_open("file", meddle)
    summary = library.sync(src, dest)
    assert os.listdir(outside) == ["file"]
    assert (outside / "file").read_text() == "theirs"
    assert summary.exit_code in (0, 1)
    assert debris(tmp_path) == []


def test_a_directory_that_vanishes_during_the_listing(
    monkeypatch: pytest.MonkeyPatch, plant: Plant, tmp_path: Path
) -> None:
    """It is gone, so it goes there, too; the others are copied."""
    from fastsync_local import walk

    src = plant(tmp_path / "src", {"a": "a", "dir/b": "b", "z": "z"})
    plant(tmp_path / "dest", {"dir/b": "b"})
    original = walk.Walk._enter

    def enter(self: walk.Walk, level: Any, name: str, path: str) -> None:
        if (src / "dir").exists():
            shutil.rmtree(src / "dir")
        original(self, level, name, path)

    monkeypatch.setattr(walk.Walk, "_enter", enter)
    summary = library.sync(src, tmp_path / "dest")
    assert summary.exit_code == 0
    assert (tmp_path / "dest/a").read_text() == "a"
    assert (tmp_path / "dest/z").read_text() == "z"
    assert library.sync(src, tmp_path / "dest", delete=True).exit_code == 0
    assert sorted(os.listdir(tmp_path / "dest")) == ["a", "z"]


# -- calls that fail ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "number", "code"),
    [
        ("readv", errno.EIO, 1),
        ("write", errno.EIO, 1),
        ("write", errno.EDQUOT, 7),
        ("fchmod", errno.EPERM, 1),
        ("rename", errno.EIO, 1),
        ("rename", errno.ENOSPC, 7),
        ("fsync", errno.EIO, 1),
        ("fsync", errno.ENOSPC, 7),
        ("utime", errno.EIO, 1),
    ],
)
def test_a_call_that_fails(
    monkeypatch: pytest.MonkeyPatch,
    plant: Plant,
    debris: Debris,
    tmp_path: Path,
    call: str,
    number: int,
    code: int,
) -> None:
    """Whatever fails, and wherever: the old file stays, nothing else does, and nothing is deleted."""
    plant(tmp_path / "src", {"file": "new one"})
    plant(tmp_path / "dest", {"file": "the old one", "extra": "x"})

    def fails(*_arguments: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fails)
        summary = library.sync(tmp_path / "src", tmp_path / "dest", durable=True, delete=True)
    assert summary.exit_code == code
    assert summary.totals.failed >= 1
    assert summary.kept is not None
    assert (tmp_path / "dest/file").read_text() == "the old one" or call == "fsync"
    assert (tmp_path / "dest/extra").exists()
    assert debris(tmp_path) == []
    assert library.sync(tmp_path / "src", tmp_path / "dest", delete=True).exit_code == 0
    assert (tmp_path / "dest/file").read_text() == "new one"


@pytest.mark.parametrize("missing", [(), ("copy_file_range",), ("copy_file_range", "sendfile")])
@pytest.mark.parametrize("number", [errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP])
def test_every_way_of_copying_gives_the_same(
    monkeypatch: pytest.MonkeyPatch,
    plant: Plant,
    tmp_path: Path,
    missing: tuple[str, ...],
    number: int,
) -> None:
    content = os.urandom(700_001)
    plant(tmp_path / "src", {"file": content})

    def refused(*_arguments: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    for call in missing:
        monkeypatch.setattr(os, call, refused)
    assert library.cp(tmp_path / "src/file", tmp_path / "copy").exit_code == 0
    assert (tmp_path / "copy").read_bytes() == content


@pytest.mark.parametrize("call", ["copy_file_range", "sendfile", "preadv"])
def test_every_way_of_copying_notices_an_end_that_came_early(
    monkeypatch: pytest.MonkeyPatch,
    moment: Moment,
    plant: Plant,
    debris: Debris,
    tmp_path: Path,
    call: str,
) -> None:
    """The kernel's ways say nothing but 0 past the end of a file that became shorter."""
    plant(tmp_path / "src", {"file": os.urandom(700_001)})

    def refused(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSYS, "not here")

    for other in {"copy_file_range": (), "sendfile": ("copy_file_range",)}.get(
        call, ("copy_file_range", "sendfile")
    ):
        monkeypatch.setattr(os, other, refused)
    moment.after_open("file", shorten(tmp_path / "src/file"), times=ALWAYS)
    assert library.cp(tmp_path / "src/file", tmp_path / "copy").exit_code == 8
    assert not (tmp_path / "copy").exists()
    assert debris(tmp_path) == []


# -- with others at the same time --------------------------------------------------------------------

WRITER = """
import os, sys
path, how = sys.argv[1:]
size = 3_000_000
for number in range(10**9):
    content = bytes([65 + number % 26]) * size
    if how == "rename":
        with open(path + ".new", "wb") as file:
            file.write(content)
        os.rename(path + ".new", path)
    else:
        with open(path, "r+b") as file:
            file.write(content)
"""


@pytest.mark.parametrize("how", ["rename", "in place"])
def test_a_writer_at_work(fastsync: Fastsync, debris: Debris, tmp_path: Path, how: str) -> None:
    """Whatever the moment: the old file or a whole one, and an exit code that tells which."""
    (tmp_path / "src").mkdir()
    source, copy = tmp_path / "src/file", tmp_path / "dest/file"
    source.write_bytes(b"-" * 3_000_000)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, source, how])
    try:
        codes = set()
        for _ in range(12):
            before = copy.stat().st_mtime_ns if copy.exists() else None
            done = fastsync("cp", source, "dest/")
            codes.add(done.code)
            assert done.code in (0, 8), done
            assert debris(tmp_path) == []
            if done.code == 8:
                assert (copy.stat().st_mtime_ns if copy.exists() else None) == before
                continue
            content = copy.read_bytes()
            assert len(content) == 3_000_000
            if how == "rename":
                assert content == content[:1] * len(content)
        assert 0 in codes or how == "in place"
    finally:
        writer.kill()
        writer.wait()


def test_two_runs_into_one_place(
    fastsync: Fastsync,
    plant: Plant,
    picture: Callable[..., Picture],
    debris: Debris,
    tmp_path: Path,
) -> None:
    spec = {f"{index % 20}/{index}": str(index) * 1000 for index in range(1500)}
    plant(tmp_path / "src", spec)
    runs = [
        subprocess.Popen(
            fastsync.command("sync", "--delete", "src", "dest"),
            cwd=tmp_path,
            env=fastsync.environ,
            stderr=subprocess.PIPE,
        )
        for _ in range(3)
    ]
    for run in runs:
        _, errors = run.communicate(timeout=60)
        assert (run.returncode, errors) == (0, b"")
    assert picture(tmp_path / "dest") == picture(tmp_path / "src")
    assert debris(tmp_path) == []


def test_killed_and_run_again(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, eventually: Callable[[Meddle], None]
) -> None:
    """No half file passes for a whole one, not even of a run that could not clean up."""
    src = plant(tmp_path / "src", {f"{index:03}": os.urandom(200_000) for index in range(200)})
    for _ in range(4):
        process = fastsync.start("sync", "src", "dest")
        eventually(lambda: (tmp_path / "dest").exists() and len(os.listdir(tmp_path / "dest")) > 20)
        time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for path in (tmp_path / "dest").iterdir():
            if not path.name.startswith(".fs-"):
                assert path.read_bytes() == (src / path.name).read_bytes()
                path.unlink()
    assert fastsync("sync", "src", "dest") == (0, "", "")
    for path in src.iterdir():
        assert (tmp_path / "dest" / path.name).read_bytes() == path.read_bytes()


LEAVE = """
import os, sys
from fastsync_local.temporary import Names
names = Names()
for directory in sys.argv[1:]:
    with open(os.path.join(directory, names.new()), "w") as file:
        file.write("half")
"""


@pytest.fixture
def abandon(fastsync: Fastsync) -> Callable[..., None]:
    """Leave a temporary file in each of some directories, as a process does that is killed."""

    def abandon(*directories: Path) -> None:
        subprocess.run([sys.executable, "-c", LEAVE, *directories], check=True)

    return abandon


@pytest.mark.parametrize(
    "arguments", [("sync", "src", "dest"), ("cp", "-R", "src/", "dest"), ("cp", "src/a", "dest/")]
)
def test_what_a_killed_run_left_is_removed(
    fastsync: Fastsync,
    plant: Plant,
    debris: Debris,
    abandon: Callable[..., None],
    tmp_path: Path,
    arguments: tuple[str, ...],
) -> None:
    """Where it is written to, and nowhere else; not by a dry run."""
    src = plant(tmp_path / "src", {"a": "a", "dir/b": "b"})
    dest = plant(tmp_path / "dest", {"dir/": ""})
    abandon(src, dest, *([dest / "dir"] if "src/a" not in arguments else []))
    before = debris(tmp_path)
    assert fastsync(*arguments, "-n").code == 0
    assert debris(tmp_path) == before
    assert fastsync(*arguments) == (0, "", "")
    assert [path.parent for path in debris(tmp_path)] == [src]
    assert (dest / "a").read_text() == "a"


def test_a_directory_to_delete_that_holds_what_a_killed_run_left(
    fastsync: Fastsync, plant: Plant, abandon: Callable[..., None], tmp_path: Path
) -> None:
    """Also where the listing could not see it: below a directory that was made meanwhile."""
    plant(tmp_path / "src", {"a": "a"})
    dest = plant(tmp_path / "dest", {"a": "a", "dir/b": "b", "dir/deep/c": "c"})
    abandon(dest / "dir", dest / "dir/deep")
    assert fastsync("sync", "--delete", "src", "dest") == (0, "", "")
    assert os.listdir(dest) == ["a"]
    (dest / "dir").mkdir()
    abandon(dest / "dir")
    assert fastsync("rm", "-R", dest / "dir") == (0, "", "")
    assert os.listdir(dest) == ["a"]


def test_little_memory_and_few_threads(
    fastsync: Fastsync,
    plant: Plant,
    picture: Callable[..., Picture],
    debris: Debris,
    under_limit: Callable[[str], list[str]],
    tmp_path: Path,
) -> None:
    """As much as is there is made do with; too little is said in one line, and leaves nothing behind."""
    src = plant(tmp_path / "src", {str(index): os.urandom(3_000_000) for index in range(12)})
    codes = []
    for megabytes in (30, 60, 100, 160, 240, 400):
        dest = tmp_path / f"dest{megabytes}"
        done = fastsync("sync", "src", dest, under=under_limit(f"-v {megabytes << 10}"))
        codes.append(done.code)
        assert "this is a bug" not in done.stderr
        assert debris(tmp_path) == []
        if done.code == 0:
            assert picture(dest) == picture(src)
    assert codes[-1] == 0


@pytest.mark.parametrize("files", [40, 2000])
def test_few_descriptors(
    fastsync: Fastsync,
    plant: Plant,
    picture: Callable[..., Picture],
    under_limit: Callable[[str], list[str]],
    tmp_path: Path,
    files: int,
) -> None:
    src = plant(tmp_path / "src", {f"{index % 10}/{index}": str(index) for index in range(files)})
    done = fastsync("sync", "-p", "64", "-j", "64", "src", "dest", under=under_limit("-n 32"))
    assert done == (0, "", "")
    assert picture(tmp_path / "dest") == picture(src)


FLIP = """
import ctypes, os, sys, time
one, other = map(os.fsencode, sys.argv[1:])
exchange = ctypes.CDLL(None, use_errno=True).renameat2
print("ready", flush=True)
flips = 0
while True:
    # AT_FDCWD, RENAME_EXCHANGE
    if exchange(-100, one, -100, other, 2) == 0:
        flips += 1
    if flips % 100 == 0:
        print(flips, flush=True)
    time.sleep(0.00005)
"""


@pytest.fixture
def flip() -> Iterator[Callable[[Path, Path], subprocess.Popen[bytes]]]:
    """Exchange two names in the background, thousands of times a second."""
    running: list[subprocess.Popen[bytes]] = []

    def start(one: Path, other: Path) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", FLIP, one, other], stdout=subprocess.PIPE)
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_a_directory_that_is_exchanged_for_a_link_all_the_time(
    fastsync: Fastsync,
    plant: Plant,
    picture: Callable[..., Picture],
    flip: Callable[[Path, Path], subprocess.Popen[bytes]],
    tmp_path: Path,
) -> None:
    """Whoever owns the destination cannot make us write, change or delete anything outside of it."""
    spec = {f"dir/{index % 5}/{index}": f"ours {index}" for index in range(5000)}
    plant(tmp_path / "src", spec)
    dest = plant(tmp_path / "dest", {"dir/0/extra": "x"})
    outside = plant(tmp_path / "outside", {f"{index % 5}/{index}": "theirs" for index in range(50)})
    before = picture(outside, directory_times=True)
    (dest / "aside").symlink_to(outside)
    process = flip(dest / "dir", dest / "aside")
    seen = set()
    for options in ((), ("--delete", "--checksum")):
        done = fastsync("sync", *options, "src", "dest")
        seen.add(done.code)
        assert done.code in (0, 1, 3, 6, 8), done
        assert picture(outside, directory_times=True) == before
    process.kill()
    assert seen != {0}, "nobody was in anybody's way"


def test_a_directory_of_the_source_that_is_exchanged_for_a_link_all_the_time(
    fastsync: Fastsync,
    plant: Plant,
    flip: Callable[[Path, Path], subprocess.Popen[bytes]],
    tmp_path: Path,
) -> None:
    """What was not listed is not read: not a byte from outside arrives."""
    src = plant(tmp_path / "src", {f"dir/{index}": "ours" for index in range(1500)})
    outside = plant(tmp_path / "outside", {f"{index}": "not!" for index in range(1500)})
    for index in range(1500):  # the same size and time: only the way there tells
        shutil.copystat(src / f"dir/{index}", outside / f"{index}")
    (src / "aside").symlink_to(outside)
    flip(src / "dir", src / "aside")
    for number in range(2):
        done = fastsync("sync", "--skip-links", "src", f"dest{number}")
        assert done.code in (0, 1, 3, 8), done
        for path in (tmp_path / f"dest{number}").rglob("*"):
            assert path.is_dir() or path.read_text() == "ours", path
