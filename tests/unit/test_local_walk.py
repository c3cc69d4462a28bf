"""The walk, held against `sorted` on real trees: order, pages, links, and what changes under its feet."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import socket
import stat
import subprocess
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsync.backend import ScanOptions, StoreOptions
from fastsync.location import parse
from fastsync_local import held
from fastsync_local import walk as walk_module
from fastsync_local.backend import LocalBackend
from fastsync_local.held import MAX_HELD, open_root
from fastsync_local.walk import Walk, sorted_as_bytes

if TYPE_CHECKING:
    from fastsync_local.walk import Row, RowFault, RowPage

    Rows: TypeAlias = list[Row]

DEEP = 3 * MAX_HELD + 7


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def _closes_all() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


def walk(root: Path, **options: Any) -> Walk:
    return Walk(open_root(str(root)), **options)


def pages_of(root: Path, **options: Any) -> list[RowPage]:
    return list(walk(root, **options))


def listed(root: Path, **options: Any) -> tuple[Rows, list[RowFault]]:
    pages = pages_of(root, **options)
    return [row for page in pages for row in page[0]], [
        fault for page in pages for fault in page[1]
    ]


def paths(root: Path, **options: Any) -> list[str]:
    rows, faults = listed(root, **options)
    assert faults == []
    return [row[0] + "/" if row[1] == "dir" else row[0] for row in rows]


@contextlib.contextmanager
def tuned(*, page: int = 2048, many: int = 1 << 15, held: int = MAX_HELD) -> Iterator[None]:
    """Small pages, and the limits past which a walk holds less in memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(walk_module, "FIRST_PAGE", max(1, page // 2))
        patch.setattr(walk_module, "PAGE", page)
        patch.setattr(walk_module, "_MANY", many)
        patch.setattr(walk_module, "MAX_HELD", held)
        yield


def oracle(top: Path) -> Rows:
    """What `os.walk` and `sorted` say."""
    rows: list[tuple[bytes, Row]] = []
    for directory, names, others in os.walk(top):
        for name in [*names, *others]:
            full = os.path.join(directory, name)
            status = os.lstat(full)
            path = os.path.relpath(full, top)
            mode = stat.S_IMODE(status.st_mode)
            common = (status.st_mtime_ns, mode)
            if stat.S_ISDIR(status.st_mode):
                rows.append(
                    (os.fsencode(path + "/"), (path, "dir", None, *common, None, None, None, None))
                )
            elif stat.S_ISLNK(status.st_mode):
                target = os.readlink(full)
                rows.append(
                    (os.fsencode(path), (path, "link", None, *common, target, None, None, None))
                )
            else:
                size = status.st_size
                rows.append(
                    (os.fsencode(path), (path, "file", size, *common, None, None, None, None))
                )
    return [row for _, row in sorted(rows)]


# Names around "/" in byte order, and where string order and byte order differ.
NAMES = [
    "a", "a ", "a-b", "a.txt", "a0", "ab", "b", "e\u0301", "\u00e9", "\uffee", "\U0001f600", "\udc80",
    "\udcff-", "a\udcff", "\n", "..a", ".fs-1.part",
]  # fmt: skip


def plant(top: Path, seed: int, entries: int = 25) -> None:
    """A random tree: files, links (dangling, to files, to directories) and directories."""
    choose = random.Random(seed)
    directories = [top]
    for _ in range(entries):
        path = choose.choice(directories) / choose.choice(NAMES)
        if path.is_symlink() or path.exists():
            continue
        kind = choose.random()
        if kind < 0.35:
            path.mkdir()
            directories.append(path)
        elif kind < 0.5:
            path.symlink_to(choose.choice(["a", "..", "nowhere", "b/a"]))
        else:
            path.write_bytes(bytes(choose.randrange(3)))


TUNING = st.fixed_dictionaries(
    {"page": st.integers(1, 12), "many": st.sampled_from([0, 1, 100]), "held": st.integers(2, 4)}
)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), tuning=TUNING)
def test_any_tree(seed: int, tuning: dict[str, int]) -> None:
    """Rows are those of the oracle in its order, and each page can be gone on from."""
    with tempfile.TemporaryDirectory() as directory, tuned(**tuning):
        top = Path(directory)
        plant(top, seed)
        wanted = oracle(top)
        pages = pages_of(top)
        assert [row for page in pages for row in page[0]] == wanted
        assert all(page[1] == [] and page[0] for page in pages)
        seen = 0
        for rows, _, last in pages:
            seen += len(rows)
            assert listed(top, after=last) == (wanted[seen:], [])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    tuning=TUNING,
    recursive=st.booleans(),
    owner=st.booleans(),
    links=st.sampled_from(["keep", "follow", "skip"]),
    pruned=st.sets(st.sampled_from(NAMES)),
)
def test_going_on_with_any_options(
    seed: int, tuning: dict[str, int], recursive: bool, owner: bool, links: str, pruned: set[str]
) -> None:
    """A walk that continues another yields what that one would have yielded, whatever was asked for."""
    options = {
        "recursive": recursive,
        "owner": owner,
        "links": links,
        "prune": lambda path: os.path.basename(path) in pruned,
    }
    with tempfile.TemporaryDirectory() as directory, tuned(**tuning):
        top = Path(directory, "top")  # a link to ".." finds little there
        top.mkdir()
        plant(top, seed, 14)
        pages = pages_of(top, **options)
        everything = [row for page in pages for row in page[0]]
        keys = [os.fsencode(row[0] + "/" * (row[1] == "dir")) for row in everything]
        assert keys == sorted(set(keys))
        seen = 0
        for rows, _, last in pages:
            seen += len(rows)
            assert listed(top, after=last, **options)[0] == everything[seen:]


@given(st.lists(st.binary(min_size=1, max_size=4).map(os.fsdecode), unique=True))
def test_sorting(names: list[str]) -> None:
    assert sorted_as_bytes(list(names)) == sorted(names, key=os.fsencode)


# -- pages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 2303, 2304, 2305])
def test_page_sizes(tmp_path: Path, count: int) -> None:
    """A small first page, so that work begins soon, then large ones; never an empty one."""
    names = [f"{number:05}" for number in range(count)]
    for name in names:
        (tmp_path / name).touch()
    pages = pages_of(tmp_path)
    sizes = [len(rows) for rows, _, _ in pages]
    assert sum(sizes) == count
    assert all(sizes)
    assert sizes[:1] == ([min(count, 256)] if count else [])
    assert all(size <= 2048 for size in sizes)
    assert [last for _, _, last in pages] == [rows[-1][0] for rows, _, _ in pages]


def test_nothing_comes_after_the_last_page(tmp_path: Path) -> None:
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "d/e/f").touch()
    ((_, _, last),) = pages_of(tmp_path)
    assert last == "d/e/f"
    assert pages_of(tmp_path, after=last) == []


def test_going_on_after_something_that_is_gone(tmp_path: Path) -> None:
    for path in ("a", "b/x", "b/y", "c"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    assert paths(tmp_path, after="aa") == ["b/", "b/x", "b/y", "c"]
    assert paths(tmp_path, after="b/") == ["b/x", "b/y", "c"]
    assert paths(tmp_path, after="b/w") == ["b/x", "b/y", "c"]
    assert paths(tmp_path, after="b/x/gone") == ["b/y", "c"]
    assert paths(tmp_path, after="b/z") == ["c"]
    assert paths(tmp_path, after="d") == []


def test_temporary_files_are_not_listed(tmp_path: Path) -> None:
    hidden = [".fs-0123456789abcdef.part"]
    shown = [".fs-0123456789abcde.part", ".fs-0123456789ABCDEF.part", "x.fs-0123456789abcdef.part"]
    for name in hidden + shown:
        (tmp_path / name).touch()
    assert paths(tmp_path) == sorted(shown)


# -- what is listed -----------------------------------------------------------------------------------


def test_kinds(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir(mode=0o750)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("no/where")
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(tmp_path):
        server.bind("socket")
    os.chmod(tmp_path / "file", 0o4711)
    rows, faults = listed(tmp_path)
    assert faults == []
    assert [(row[0], row[1], row[2], row[5]) for row in rows] == [
        ("dir", "dir", None, None),
        ("fifo", "special", None, None),
        ("file", "file", 7, None),
        ("link", "link", None, "no/where"),
        ("socket", "special", None, None),
    ]
    assert rows[2][4] == 0o4711
    for row in rows:
        status = os.lstat(tmp_path / row[0])
        assert row[3:5] == (status.st_mtime_ns, stat.S_IMODE(status.st_mode))
        assert row[6:] == (None, None, None)


@pytest.mark.parametrize("many", [0, 100])
def test_owners(tmp_path: Path, many: int) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    with tuned(many=many):
        rows, _ = listed(tmp_path, owner=True)
    assert [row[7] for row in rows] == [(os.geteuid(), os.getegid())] * 3


def test_prune(tmp_path: Path) -> None:
    """A pruned directory is listed, but not entered; nobody is asked about what is below it."""
    for path in ("a/b/c", "b/b", "c"):
        (tmp_path / path).mkdir(parents=True)
    asked: list[str] = []

    def prune(path: str) -> bool:
        asked.append(path)
        return path in ("a/b", "b")

    assert paths(tmp_path, prune=prune) == ["a/", "a/b/", "b/", "c/"]
    assert asked == ["a", "a/b", "b", "c"]


def test_of_many_in_a_directory_only_the_names_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said twice, a name is listed once, all the same."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    class Item:
        def __init__(self, name: str) -> None:
            nonlocal most
            self.name = name
            alive.add(self)
            most = max(most, len(alive))

        def is_dir(self, *, follow_symlinks: bool = True) -> bool:
            return False

    for number in range(300):
        (tmp_path / f"{number:03}").touch()
    names = [f"{number % 300:03}" for number in range(600)]
    monkeypatch.setattr(os, "scandir", lambda _fd: contextlib.nullcontext(map(Item, names)))
    with tuned(many=20):
        rows, faults = listed(tmp_path)
    assert [row[0] for row in rows] == sorted(set(names))
    assert faults == []
    assert most <= 25


def test_one_level(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a-b").touch()
    assert paths(tmp_path, recursive=False) == ["a-b", "a/"]


# -- links --------------------------------------------------------------------------------------------


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """Links to a file and to directories, inside and outside, and to nothing."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    for directory in (root / "d", outside):
        directory.mkdir(parents=True)
        (directory / "f").write_bytes(b"content")
    for name, target in (
        ("lost", "nowhere"),
        ("d/file", "f"),
        ("d/out", "../../outside"),
        ("to-d", "d"),
        ("via-file", "d/f/x"),
    ):
        (root / name).symlink_to(target)
    return root


def test_links_are_kept(linked: Path) -> None:
    rows, faults = listed(linked)
    assert faults == []
    assert [(row[0], row[5]) for row in rows if row[1] == "link"] == [
        ("d/file", "f"), ("d/out", "../../outside"), ("lost", "nowhere"), ("to-d", "d"),
        ("via-file", "d/f/x"),
    ]  # fmt: skip


def test_links_are_skipped(linked: Path) -> None:
    assert paths(linked, links="skip") == ["d/", "d/f"]


@pytest.mark.parametrize("many", [0, 100])
def test_links_are_followed(linked: Path, many: int) -> None:
    """A link is what it leads to; one that leads nowhere hides something, and is a fault."""
    with tuned(many=many):
        rows, faults = listed(linked, links="follow")
    assert [(row[0], row[1], row[2]) for row in rows] == [
        ("d", "dir", None), ("d/f", "file", 7), ("d/file", "file", 7), ("d/out", "dir", None),
        ("d/out/f", "file", 7), ("to-d", "dir", None), ("to-d/f", "file", 7),
        ("to-d/file", "file", 7), ("to-d/out", "dir", None), ("to-d/out/f", "file", 7),
    ]  # fmt: skip
    assert [(fault[0], fault[1]) for fault in faults] == [
        ("lost", errno.ENOENT), ("via-file", errno.ENOTDIR),
    ]  # fmt: skip


def test_loops(tmp_path: Path) -> None:
    """Under "follow" a way that leads back to where it came from is a fault, and the walk ends."""
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/f").touch()
    for name, target in (
        ("self", "self"), ("here", "."), ("a/b/up", "../.."), ("a/b/side", ".."), ("ping", "pong"),
        ("pong", "ping"),
    ):  # fmt: skip
        (tmp_path / name).symlink_to(target)
    rows, faults = listed(tmp_path, links="follow")
    assert [row[0] for row in rows if row[1] == "file"] == ["a/f"]
    loops = {path for path, number, _ in faults if number == errno.ELOOP}
    assert loops == {"self", "here", "a/b/up", "a/b/side", "ping", "pong"}


def test_links_are_not_followed_by_chance(tmp_path: Path) -> None:
    """A directory that becomes a link while we walk does not lead us out."""
    (tmp_path / "root/d").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").touch()
    walking = walk(tmp_path / "root")
    os.rmdir(tmp_path / "root/d")
    (tmp_path / "root/d").symlink_to("../outside")
    ((rows, faults, _),) = list(walking)
    assert rows == []
    assert [fault[0] for fault in faults] == ["d"]


def test_a_link_planted_in_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "root/d").mkdir(parents=True)
    (tmp_path / "outside/secret").mkdir(parents=True)
    walking = walk(tmp_path / "root")
    really = os.open

    def planting(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == "d":
            os.rename(tmp_path / "root/d", tmp_path / "moved")
            (tmp_path / "root/d").symlink_to("../outside")
        return really(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", planting)
    ((rows, faults, _),) = list(walking)
    assert [row[0] for row in rows] == ["d"]
    assert [fault[0] for fault in faults] == ["d"]
    assert faults[0][1] in (errno.ELOOP, errno.ENOTDIR)


# -- changes under its feet ---------------------------------------------------------------------------


@pytest.mark.parametrize("links", ["keep", "skip"])
@pytest.mark.parametrize("many", [0, 100])
def test_what_vanishes_is_left_out(tmp_path: Path, many: int, links: str) -> None:
    """Gone is gone: nothing was missed, so there is no fault."""
    for name in ("a", "b", "c", "d", "e"):
        (tmp_path / name).touch()
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to("a")
    with tuned(many=many):
        walking = walk(tmp_path, links=links)
        for name in ("b", "e", "link"):
            os.unlink(tmp_path / name)
        os.rmdir(tmp_path / "dir")
        ((rows, faults, _),) = list(walking)
    assert [row[0] for row in rows] == ["a", "c", "d"]
    assert faults == []


@pytest.mark.parametrize("victim", ["a", "b", "b/c", "link"])
def test_what_is_listed_and_said_to_be_missing_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    """Files, directories and links, of which the disk knows the name alone."""
    (tmp_path / "b/c").mkdir(parents=True)
    (tmp_path / "a").touch()
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "z").touch()
    call = {"a": "stat", "link": "readlink"}.get(victim, "open")
    with tuned(many=0):
        failed = failing(monkeypatch, call, os.path.basename(victim), errno.ENOENT)
        rows, faults = listed(tmp_path)
    assert failed()
    there = {"a", "b", "b/c", "link", "z"}
    hidden = {"b": {"b/c"}, "b/c": set()}.get(victim, {victim})
    assert {row[0] for row in rows} == there - hidden
    assert [fault[:2] for fault in faults] == [(victim, errno.ESTALE)]


@pytest.mark.parametrize("is_made_anew", [False, True])
def test_a_directory_that_is_removed_while_it_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_made_anew: bool
) -> None:
    """It reads as an empty one, which it was not; what stands there now was not looked at."""
    (tmp_path / "a/b").mkdir(parents=True)
    really = os.scandir

    def removing(fd: int) -> Any:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("/a"):
            (tmp_path / "a/b").rmdir()
            (tmp_path / "a").rmdir()
            if is_made_anew:
                (tmp_path / "a/b").mkdir(parents=True)
        return really(fd)

    monkeypatch.setattr(os, "scandir", removing)
    rows, faults = listed(tmp_path)
    assert [row[0] for row in rows] == ["a"]
    assert [fault[:2] for fault in faults] == ([("a", errno.ESTALE)] if is_made_anew else [])


@pytest.mark.parametrize("is_made_anew", [False, True])
def test_a_root_that_vanishes(tmp_path: Path, is_made_anew: bool) -> None:
    """Whoever removes the source does not mean that the copies are to go."""
    for name in ("root/a", "root/b/c", "root/d"):
        (tmp_path / name).mkdir(parents=True)
    walking = walk(tmp_path / "root")
    shutil.rmtree(tmp_path / "root")
    if is_made_anew:
        (tmp_path / "root").mkdir()
    ((_, faults, _),) = list(walking)
    assert [fault[:2] for fault in faults] == [("", errno.ESTALE)]


@pytest.mark.parametrize("many", [0, 100])
def test_what_changes_its_kind_is_a_fault(tmp_path: Path, many: int) -> None:
    """Its place in the order is another one now."""
    (tmp_path / "a").touch()
    (tmp_path / "b").mkdir()
    (tmp_path / "b-").touch()
    with tuned(many=many):
        walking = walk(tmp_path)
        os.unlink(tmp_path / "a")
        (tmp_path / "a").mkdir()
        os.rmdir(tmp_path / "b")
        (tmp_path / "b").touch()
        ((rows, faults, _),) = list(walking)
    assert [row[0] for row in rows] == ["b-"]
    assert [(path, number) for path, number, _ in faults] == [
        ("a", errno.ESTALE), ("b", errno.ESTALE),
    ]  # fmt: skip


def failing(
    monkeypatch: pytest.MonkeyPatch, name: str, victim: str, number: int
) -> Callable[[], int]:
    """Let a function of `os` fail for one name; returns how often it did."""
    really = getattr(os, name)
    count = 0

    def fail(path: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal count
        shown = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else path
        if os.path.basename(shown) == victim:
            count += 1
            raise OSError(number, os.strerror(number))
        return really(path, *arguments, **options)

    monkeypatch.setattr(os, name, fail)
    return lambda: count


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE])
@pytest.mark.parametrize("name", ["open", "scandir"])
def test_a_directory_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    """It is listed, its inside is a fault, and the walk goes on."""
    for path in ("a", "b/hidden", "c/d"):
        (tmp_path / path).mkdir(parents=True)
    monkeypatch.setattr(held, "_PAUSES_S", (0.001,))
    failed = failing(monkeypatch, name, "b", number)
    rows, faults = listed(tmp_path)
    assert [row[0] for row in rows] == ["a", "b", "c", "c/d"]
    assert [fault[:2] for fault in faults] == [("b", number)]
    assert failed() == (2 if number == errno.EMFILE else 1)  # that may pass, and is waited for


def test_a_link_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").symlink_to("x")
    (tmp_path / "b").symlink_to("y")
    failing(monkeypatch, "readlink", "a", errno.EIO)
    rows, faults = listed(tmp_path)
    assert [row[0] for row in rows] == ["b"]
    assert [fault[:2] for fault in faults] == [("a", errno.EIO)]


def test_a_file_that_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        (tmp_path / name).touch()
    failing(monkeypatch, "stat", "b", errno.EIO)
    with tuned(many=0):
        rows, faults = listed(tmp_path)
    assert [row[0] for row in rows] == ["a", "c"]
    assert [fault[:2] for fault in faults] == [("b", errno.EIO)]


def test_a_root_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "scandir", tmp_path.name, errno.EACCES)
    with pytest.raises(PermissionError):
        walk(tmp_path)


def test_going_on_from_a_directory_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    failing(monkeypatch, "scandir", "a", errno.EACCES)
    rows, faults = listed(tmp_path, after="a/")
    assert rows == []
    assert [fault[0] for fault in faults] == ["a"]


# -- depth and descriptors ----------------------------------------------------------------------------


def dig(top: Path, depth: int, *beside: str) -> None:
    """Directories called "m", one in the other, each with files around the next one in order."""
    fd = open_root(str(top))
    for _ in range(depth):
        for name in beside:
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.mkdir("m", dir_fd=fd)
        inner = os.open("m", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)


@pytest.mark.parametrize("many", [0, 1 << 15])
def test_deep(tmp_path: Path, many: int) -> None:
    """Few descriptors are held however deep it goes, and what comes after the way back is listed."""
    dig(tmp_path, DEEP, "a", "z")
    before = descriptors()
    with tuned(page=3, many=many):
        found: list[str] = []
        for rows, faults, _ in walk(tmp_path):
            assert faults == []
            assert descriptors() - before <= MAX_HELD + 3
            found += [row[0] for row in rows]
    prefixes = ["m/" * depth for depth in range(DEEP)]
    down = [path for prefix in prefixes for path in (f"{prefix}a", f"{prefix}m")]
    assert found == down + [f"{prefix}z" for prefix in reversed(prefixes)]


def test_deep_and_wide(tmp_path: Path) -> None:
    """Down and up again and again, below the levels that were let go."""
    for number in range(4):
        side = tmp_path / f"side{number}"
        side.mkdir()
        dig(side, DEEP, "a", "z")
    with tuned(held=3):
        assert listed(tmp_path) == (oracle(tmp_path), [])


def test_going_on_in_the_deep(tmp_path: Path) -> None:
    dig(tmp_path, DEEP, "a", "z")
    with tuned(page=7):
        wanted = oracle(tmp_path)
        seen = 0
        for rows, _, last in pages_of(tmp_path):
            seen += len(rows)
            assert listed(tmp_path, after=last) == (wanted[seen:], [])


def test_deeper_than_recursion_and_paths_allow(tmp_path: Path) -> None:
    depth = 2500
    assert 2 * depth > os.pathconf(tmp_path, "PC_PATH_MAX")
    try:
        dig(tmp_path, depth)
        assert len(paths(tmp_path)) == depth
    finally:  # Python's own way to remove a tree is recursive
        subprocess.run(["rm", "-r", tmp_path / "m"], check=True)


@pytest.mark.parametrize("swap", ["link", "directory"])
def test_replaced_while_we_are_below(tmp_path: Path, swap: str) -> None:
    """A level that was let go is not taken for another one of that name: nothing foreign is listed."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    for top, name in ((root, "z"), (outside, "zz")):
        top.mkdir()
        dig(top, DEEP, "a", name)
    with tuned(page=1):
        pages = iter(walk(root))
        while next(pages)[0][-1][0].count("m") < DEEP:
            pass
        os.rename(root / "m/m", tmp_path / "moved")
        if swap == "link":
            (root / "m/m").symlink_to(outside)
        else:
            os.rename(outside, root / "m/m")
        rest = [row[0] for rows, _, _ in pages for row in rows]
    assert not any(path.endswith("zz") for path in rest)
    assert rest[-2:] == ["m/z", "z"]


def test_stopping_in_the_middle(tmp_path: Path) -> None:
    dig(tmp_path, 5, "a", "z")
    with tuned(page=2):
        walking = walk(tmp_path)
        pages = iter(walking)
        next(pages)
        walking.close()
        walking.close()
        assert list(pages) == []
        other = iter(walk(tmp_path))
        next(other)
        del other


# -- two walks at once --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 256, 257, 2304, 2305, 5000])
async def test_two_walks_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """The second one goes on in a helper process, which takes over wherever the first pages ended."""
    monkeypatch.setattr("fastsync_local.crew.processors", lambda: 2)
    for number in range(count):
        (tmp_path / f"{number:06}").touch()
    backend = LocalBackend()
    store = await backend.connect(parse(str(tmp_path)), StoreOptions())
    one, other = store.scan(ScanOptions()), store.scan(ScanOptions(owner=True))
    found: tuple[list[str], list[str]] = ([], [])
    going = [(one, found[0]), (other, found[1])]
    while going:
        for scan, names in list(going):
            page = await anext(scan, None)
            if page is None:
                going.remove((scan, names))
            else:
                assert not page.faults
                names.extend(entry.path for entry in page.entries)
    await store.aclose()
    await backend.aclose()
    wanted = [f"{number:06}" for number in range(count)]
    assert found[0] == wanted
    assert found[1] == wanted
