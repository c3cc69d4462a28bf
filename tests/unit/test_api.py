"""The library: what places mean, between stores of every kind, and what is refused at once."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import random
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastsync
from fastsync import Rule, api
from fastsync.backend import Entry, Limits, StoreOptions
from fastsync.errors import (
    AccessRefused,
    Conflict,
    ListingError,
    NotFound,
    PermissionRefused,
    UsageError,
)
from fastsync.events import Item, Totals
from fastsync.location import parse
from fastsync.registry import Claim, Registry
from fastsync.testing import BareMemoryBackend, Box, MemoryBackend

THEN = 1_600_000_000_000_000_000
CONTENT = b"content"


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Beside the disk: a store in memory with every ability, and one that is like a bucket."""
    claims = [
        Claim("file", "fastsync_local.backend:LocalBackend"),
        Claim("mem", "fastsync.testing:MemoryBackend"),
        Claim("bucket", "fastsync.testing:BareMemoryBackend"),
    ]
    monkeypatch.setattr(Registry, "from_entry_points", lambda: Registry(claims))
    yield
    MemoryBackend.reset()
    BareMemoryBackend.reset()


class Disk:
    def __init__(self, top: Path) -> None:
        self.top = top
        top.mkdir()

    def place(self, path: str = "") -> str:
        return f"{self.top}/{path}".rstrip("/") if not path.endswith("/") else f"{self.top}/{path}"

    def put(self, path: str, content: bytes = CONTENT, mtime_ns: int = THEN) -> None:
        full = self.top / path
        full.parent.mkdir(parents=True, exist_ok=True)
        full.write_bytes(content)
        os.utime(full, ns=(mtime_ns, mtime_ns))

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.top)): path.read_bytes()
            for path in sorted(self.top.rglob("*"))
            if path.is_file()
        }


class Memory:
    def __init__(self, scheme: str, name: str) -> None:
        self.scheme = scheme
        self.name = name
        self.box: Box = (MemoryBackend if scheme == "mem" else BareMemoryBackend).box(name)

    def place(self, path: str = "") -> str:
        return f"{self.scheme}://{self.name}/{path}"

    def put(self, path: str, content: bytes = CONTENT, mtime_ns: int = THEN) -> None:
        self.box.put(path, content, mtime_ns=mtime_ns)

    def files(self) -> dict[str, bytes]:
        return dict(sorted(self.box.files().items()))


Side = Disk | Memory
KINDS = ["disk", "mem", "bucket"]


def side(kind: str, name: str, tmp_path: Path) -> Side:
    return Disk(tmp_path / name) if kind == "disk" else Memory(kind, name)


@pytest.fixture(params=list(itertools.product(KINDS, KINDS)), ids="-to-".join)
def sides(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Side, Side]:
    """A source and a destination, each of any kind."""
    one, other = request.param
    return side(one, "ours", tmp_path), side(other, "theirs", tmp_path)


class Watcher:
    wants_items = True
    wants_skips = True

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.notes: list[str] = []

    def item(self, item: Item) -> None:
        self.items.append(item)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, totals: Totals) -> None:
        """Not of interest."""


# -- places, between any two kinds of stores ----------------------------------------------------------

TREE = {"d/a": b"1", "d/deep/b": b"22", "d/deep/c": b""}


def planted(ours: Side, *, beside: bool = True) -> None:
    for path, content in TREE.items():
        ours.put(path, content)
    if beside:
        ours.put("beside")


@pytest.mark.parametrize("slash", ["", "/"])
def test_sync_is_contents_to_contents(sides: tuple[Side, Side], slash: str) -> None:
    ours, theirs = sides
    planted(ours)
    summary = fastsync.sync(ours.place("d" + slash), theirs.place("x/y" + slash))
    assert theirs.files() == {"x/y/a": b"1", "x/y/deep/b": b"22", "x/y/deep/c": b""}
    assert (summary.exit_code, summary.totals.files_copied) == (0, 3)
    again = fastsync.sync(ours.place("d"), theirs.place("x/y"), delete=True, size_only=True)
    assert (again.exit_code, again.totals.files_copied, again.totals.deleted) == (0, 0, 0)
    assert theirs.files() == {"x/y/a": b"1", "x/y/deep/b": b"22", "x/y/deep/c": b""}


def test_sync_with_delete(sides: tuple[Side, Side]) -> None:
    """Also where one side has directories of their own and the other has none."""
    ours, theirs = sides
    planted(ours, beside=False)
    old = ["d/a", "d/gone", "d/old/gone", "beside"]
    if not isinstance(theirs, Memory) or theirs.scheme == "mem":
        old += ["d/deep/b/file-now"]  # a directory where a file should go
    for path in old:
        theirs.put(path, b"old", THEN - 1)
    summary = fastsync.sync(ours.place("d"), theirs.place("d"), delete=True, max_delete="100%")
    assert summary.failures == []
    assert summary.exit_code == 0
    assert theirs.files() == {"beside": b"old", **TREE}
    assert summary.totals.deleted == len(old) - 2


@pytest.mark.parametrize(
    ("source", "destination", "lands"),
    [
        ("beside", "copy", "copy"),
        ("beside", "copy/", "copy/beside"),
        ("beside", "stands", "stands/beside"),
        ("beside", "stands/", "stands/beside"),
        ("beside", "new/deep/copy", "new/deep/copy"),
        ("d/deep/b", "copy", "copy"),
    ],
)
@pytest.mark.parametrize("verb", ["cp", "sync"])
def test_one_file(
    sides: tuple[Side, Side], verb: str, source: str, destination: str, lands: str
) -> None:
    ours, theirs = sides
    planted(ours)
    theirs.put("stands/x")
    call = fastsync.cp if verb == "cp" else fastsync.sync
    summary = call(ours.place(source), theirs.place(destination))
    content = TREE.get(source, CONTENT)
    assert theirs.files() == {"stands/x": CONTENT, lands: content}
    assert (summary.exit_code, summary.totals.files_copied) == (0, 1)
    again = call(ours.place(source), theirs.place(destination), size_only=True)
    assert again.totals.files_copied == 0


@pytest.mark.parametrize(
    ("source", "destination", "below"),
    [
        ("d", "copy", "copy/"),
        ("d", "copy/", "copy/d/"),
        ("d", "stands", "stands/d/"),
        ("d/", "copy", "copy/"),
        ("d/", "copy/", "copy/"),
        ("d/", "stands", "stands/"),
    ],
)
def test_cp_of_a_directory(
    sides: tuple[Side, Side], source: str, destination: str, below: str
) -> None:
    ours, theirs = sides
    planted(ours)
    theirs.put("stands/x")
    summary = fastsync.cp(ours.place(source), theirs.place(destination), recursive=True)
    copies = {path.replace("d/", below, 1): content for path, content in TREE.items()}
    assert theirs.files() == dict(sorted({"stands/x": CONTENT, **copies}.items()))
    assert summary.exit_code == 0


def test_cp_of_several(sides: tuple[Side, Side]) -> None:
    ours, theirs = sides
    planted(ours)
    ours.put("e/f")
    summary = fastsync.cp(
        [ours.place("d"), ours.place("beside"), ours.place("e/")],
        theirs.place("to/"),
        recursive=True,
    )
    assert theirs.files() == {
        "to/beside": CONTENT, "to/d/a": b"1", "to/d/deep/b": b"22", "to/d/deep/c": b"", "to/f": CONTENT,
    }  # fmt: skip
    assert (summary.exit_code, summary.totals.files_copied) == (0, 5)


def test_dry_run(sides: tuple[Side, Side]) -> None:
    """Nothing changes, not even the place itself is made."""
    ours, theirs = sides
    planted(ours)
    theirs.put("to/gone")
    before = theirs.files()
    summary = fastsync.sync(ours.place("d"), theirs.place("to"), delete=True, dry_run=True)
    assert theirs.files() == before
    assert (summary.totals.files_copied, summary.totals.deleted) == (3, 1)
    fastsync.cp(ours.place("d"), theirs.place("new"), recursive=True, dry_run=True)
    assert theirs.files() == before
    if isinstance(theirs, Disk):
        assert not (theirs.top / "new").exists()


def test_an_empty_directory(sides: tuple[Side, Side]) -> None:
    """Is made at the destination, where there are such things."""
    ours, theirs = sides
    if isinstance(ours, Disk):
        (ours.top / "empty").mkdir()
    elif ours.scheme == "mem":
        ours.put("empty/x")
        ours.box.root.children["empty"].children.clear()
    else:
        pytest.skip("a bucket has no empty directories")
    assert fastsync.sync(ours.place("empty"), theirs.place("made")).exit_code == 0
    if isinstance(theirs, Disk):
        assert os.listdir(theirs.top / "made") == []
    elif theirs.scheme == "mem":
        assert theirs.box.root.children["made"].kind == "dir"


def test_filters(sides: tuple[Side, Side]) -> None:
    ours, theirs = sides
    planted(ours)
    theirs.put("to/deep/c", b"protected")
    theirs.put("to/gone", b"x")
    summary = fastsync.sync(
        ours.place("d"),
        theirs.place("to"),
        rules=[Rule(False, "c")],
        delete=True,
        max_delete="100%",
    )
    assert theirs.files() == {"to/a": b"1", "to/deep/b": b"22", "to/deep/c": b"protected"}
    assert (summary.exit_code, summary.totals.deleted) == (0, 1)


# -- what cannot be -----------------------------------------------------------------------------------


@pytest.fixture(params=KINDS)
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Side:
    """One store for both ends."""
    return side(request.param, "box", tmp_path)


@pytest.mark.parametrize(
    ("source", "destination"),
    [("d", "d"), ("d", "d/"), ("d/", "d"), ("d", "d/inside"), ("d", "d/in/deep"), ("d/deep", "d"),
     ("d/../d", "d/new"), ("", "new")],
)  # fmt: skip
def test_sync_refuses_overlap(both: Side, source: str, destination: str) -> None:
    planted(both)
    before = both.files()
    if isinstance(both, Memory) and ".." in source:
        pytest.skip("a bucket does not know ..")
    with pytest.raises(UsageError, match=r"inside|same place"):
        fastsync.sync(both.place(source), both.place(destination), delete=True)
    assert both.files() == before


@pytest.mark.parametrize(
    ("source", "destination"), [("d", "d/"), ("d/", "d/deep"), ("d", "d/new"), ("d/deep", "d/deep")]
)
def test_cp_refuses_overlap(both: Side, source: str, destination: str) -> None:
    """And before any other source was copied."""
    planted(both)
    both.put("e/f")
    before = both.files()
    with pytest.raises(UsageError):
        fastsync.cp([both.place("e"), both.place(source)], both.place(destination), recursive=True)
    assert both.files() == before


@pytest.mark.parametrize(
    ("source", "destination"),
    [("beside", "beside"), ("beside", "./beside"), ("d/a", "d"), ("d/a", "d/")],
)
@pytest.mark.parametrize("verb", ["cp", "sync"])
def test_a_file_onto_itself(both: Side, verb: str, source: str, destination: str) -> None:
    planted(both)
    if isinstance(both, Memory) and destination.startswith("."):
        pytest.skip("a bucket does not know .")
    call = fastsync.cp if verb == "cp" else fastsync.sync
    with pytest.raises(UsageError, match="same file"):
        call(both.place(source), both.place(destination))
    assert both.files()[source] == TREE.get(source, CONTENT)


def test_neighbours_do_not_overlap(both: Side) -> None:
    """A name that begins with another is not inside of it."""
    both.put("d/a")
    assert fastsync.sync(both.place("d"), both.place("d2")).exit_code == 0
    assert both.files() == {"d/a": CONTENT, "d2/a": CONTENT}


def test_a_link_does_not_hide_an_overlap(tmp_path: Path) -> None:
    (tmp_path / "d/deep").mkdir(parents=True)
    (tmp_path / "door").symlink_to("d/deep")
    for source, destination in (
        ("d", "door"),
        ("d", "door/new"),
        ("door", "d"),
        ("door", "d/deep"),
    ):
        with pytest.raises(UsageError, match=r"inside|same place"):
            fastsync.sync(tmp_path / source, tmp_path / destination)


@pytest.mark.parametrize("verb", ["cp", "sync"])
def test_a_file_where_the_directory_should_go(sides: tuple[Side, Side], verb: str) -> None:
    ours, theirs = sides
    planted(ours)
    theirs.put("file", b"old")
    before = theirs.files()
    call = fastsync.cp if verb == "cp" else fastsync.sync
    options: dict[str, Any] = {"recursive": True} if verb == "cp" else {"delete": True}
    with pytest.raises(UsageError, match="stands where the directory should go"):
        call(ours.place("d"), theirs.place("file"), **options)
    assert theirs.files() == before


@pytest.mark.parametrize("path", ["missing", "missing/deep", "beside/below"])
def test_a_missing_source(sides: tuple[Side, Side], path: str) -> None:
    """Is an error and deletes nothing; cp goes on with the others."""
    ours, theirs = sides
    planted(ours)
    theirs.put("to/x", b"old")
    with pytest.raises(ListingError, match="does not exist"):
        fastsync.sync(ours.place(path), theirs.place("to"), delete=True)
    assert theirs.files() == {"to/x": b"old"}
    summary = fastsync.cp([ours.place(path), ours.place("beside")], theirs.place("to/"))
    assert theirs.files() == {"to/beside": CONTENT, "to/x": b"old"}
    assert summary.exit_code == 3
    assert summary.totals.failed == 1


def test_a_missing_source_may_be_skipped(sides: tuple[Side, Side]) -> None:
    ours, theirs = sides
    planted(ours)
    theirs.put("to/x", b"old")
    watcher = Watcher()
    options: dict[str, Any] = {"ignore_missing_args": True, "observer": watcher}
    summary = fastsync.sync(ours.place("missing"), theirs.place("to"), delete=True, **options)
    assert (summary.exit_code, summary.totals.deleted) == (0, 0)
    summary = fastsync.cp(
        [ours.place("missing"), ours.place("beside")], theirs.place("to/"), **options
    )
    assert summary.exit_code == 0
    assert theirs.files() == {"to/beside": CONTENT, "to/x": b"old"}
    assert len(watcher.notes) == 2
    assert all("missing" in note for note in watcher.notes)


def test_a_directory_needs_recursion(sides: tuple[Side, Side]) -> None:
    ours, theirs = sides
    planted(ours)
    with pytest.raises(UsageError, match="it is a directory"):
        fastsync.cp([ours.place("beside"), ours.place("d")], theirs.place("to/"))
    assert theirs.files() == {}


def test_several_need_a_directory(sides: tuple[Side, Side]) -> None:
    ours, theirs = sides
    planted(ours)
    with pytest.raises(UsageError, match="need a directory"):
        fastsync.cp([ours.place("beside"), ours.place("d/a")], theirs.place("to"))
    assert theirs.files() == {}


@pytest.mark.parametrize(
    ("sources", "destination"),
    [
        ([], "to"),
        ([""], "to"),
        (["a"], ""),
        (["-", "a"], "to/"),
        (["gopher://x/y"], "to"),
        (["a"], "gopher://x/y"),
        (["a\0b"], "to"),
    ],
)
def test_wrong_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: list[str], destination: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a").write_bytes(CONTENT)
    with pytest.raises(UsageError):
        fastsync.cp(sources, destination)
    if sources:
        with pytest.raises(UsageError):
            fastsync.sync(sources[0], destination)
    assert os.listdir() == ["a"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dlete": True}, "did you mean delete"),
        ({"no_such_thing": 1}, "no_such_thing"),
        ({"jobs": 0}, "jobs"),
        ({"chunk_size": "big"}, "big"),
        ({"checksum": True, "size_only": True}, "size"),
        ({"min_size": 2, "max_size": 1}, "size"),
        ({"delete": "perhaps"}, "perhaps"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    """Are refused before anything is touched."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a/f").write_bytes(CONTENT)
    with pytest.raises(UsageError, match=told):
        fastsync.sync(tmp_path / "a", tmp_path / "b", **options)
    with pytest.raises(UsageError, match=told):
        fastsync.cp(tmp_path / "a", tmp_path / "b", recursive=True, **options)
    with pytest.raises(UsageError, match=told):
        fastsync.ls(tmp_path, **options)
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_with_a_slash(sides: tuple[Side, Side]) -> None:
    """``file/`` means a directory, and that is not one."""
    ours, theirs = sides
    planted(ours)
    with pytest.raises(ListingError):
        fastsync.sync(ours.place("beside/"), theirs.place("to/"))
    summary = fastsync.cp(ours.place("beside/"), theirs.place("to/"))
    assert summary.exit_code == 3
    assert theirs.files() == {}


def test_a_destination_that_cannot_be_made(tmp_path: Path) -> None:
    """Is told, even if there is nothing to put into it."""
    ours = Memory("mem", "ours")
    ours.put("empty/x")
    ours.box.root.children["empty"].children.clear()
    theirs = Memory("mem", "theirs")
    theirs.box.faults.then("make_directories", PermissionRefused("no"))
    with pytest.raises(PermissionRefused):
        fastsync.sync(ours.place("empty"), theirs.place("new"))


def test_a_store_that_refuses_us() -> None:
    ours = Memory("mem", "ours")
    ours.box.faults.then("connect", AccessRefused("who are you?"))
    with pytest.raises(AccessRefused):
        fastsync.sync(ours.place("d"), "mem://theirs/x")


# -- how entries are compared --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "destination", "options", "comparison"),
    [
        ("mem", "mem", {}, "mtime"),
        ("mem", "disk", {}, "mtime"),
        ("disk", "disk", {}, "mtime"),
        ("mem", "bucket", {}, "newer"),
        ("bucket", "mem", {}, "newer"),
        ("bucket", "bucket", {}, "newer"),
        ("mem", "mem", {"checksum": True}, "checksum"),
        ("mem", "bucket", {"checksum": True}, "checksum"),
        ("mem", "mem", {"size_only": True}, "size"),
        ("bucket", "bucket", {"size_only": True}, "size"),
    ],
)
def test_the_comparison_in_force(
    tmp_path: Path, source: str, destination: str, options: dict[str, Any], comparison: str
) -> None:
    """Size and time where both sides keep times, else what is next best; the summary names it."""
    ours, theirs = side(source, "ours", tmp_path), side(destination, "theirs", tmp_path)
    ours.put("d/a")
    assert fastsync.sync(ours.place("d"), theirs.place("to"), **options).comparison == comparison
    assert fastsync.cp(ours.place("d/a"), theirs.place("new"), **options).comparison == comparison


def test_digests_where_times_are_not_kept(tmp_path: Path) -> None:
    """Two stores that know digests need no times."""
    boxes = [MemoryBackend.box(name) for name in ("ours", "theirs")]
    for box in boxes:
        box.limits = Limits(mode_mask=0o7777)
        box.put("d/same", b"content")
        box.put("d/other", b"content" if box is boxes[0] else b"CONTENT")
    summary = fastsync.sync("mem://ours/d", "mem://theirs/d")
    assert summary.comparison == "checksum"
    assert (summary.totals.files_copied, summary.totals.files_skipped) == (1, 1)
    assert boxes[1].files() == {"d/same": b"content", "d/other": b"content"}


@pytest.mark.parametrize(
    ("age_ns", "options", "copied"),
    [
        (0, {}, 0),
        (1, {}, 1),
        (999_999_999, {"modify_window": "1s"}, 0),
        (1_000_000_000, {"modify_window": "1s"}, 0),
        (1_000_000_001, {"modify_window": "1s"}, 1),
        (1, {"size_only": True}, 0),
        (0, {"ignore_times": True}, 1),
        (5, {"update": True}, 1),
        (-5, {"update": True}, 0),
        (5, {"ignore_existing": True}, 0),
        (5, {"checksum": True}, 1),
    ],
)
def test_which_copies_are_made(
    tmp_path: Path, age_ns: int, options: dict[str, Any], copied: int
) -> None:
    """The destination is so much older, of the same size, but another content."""
    ours, theirs = Disk(tmp_path / "ours"), Disk(tmp_path / "theirs")
    ours.put("a", CONTENT, THEN)
    theirs.put("a", CONTENT[::-1], THEN - age_ns)
    summary = fastsync.sync(ours.place(), theirs.place(), **options)
    assert summary.totals.files_copied == copied


@pytest.mark.parametrize("size", [0, 7, 3_000_000])
@pytest.mark.parametrize("kind", ["disk", "mem"])
def test_the_same_content_gets_the_time_alone(tmp_path: Path, kind: str, size: int) -> None:
    """Whether both are read (two disks), or both stores know a digest."""
    content = random.Random(size).randbytes(size)
    ours = Disk(tmp_path / "ours")
    theirs: Side = Disk(tmp_path / "theirs") if kind == "disk" else Memory("mem", "theirs")
    ours.put("a", content, THEN)
    fastsync.sync(ours.place(), theirs.place())
    ours.put("a", content, THEN + 10_000_000_000)
    totals = fastsync.sync(ours.place(), theirs.place()).totals
    assert (totals.files_copied, totals.files_skipped, totals.attributes_set) == (0, 1, 1)
    assert totals.bytes_done == 0
    totals = fastsync.sync(ours.place(), theirs.place()).totals
    assert (totals.files_copied, totals.attributes_set) == (0, 0)


@pytest.mark.parametrize("size", [7, 3_000_000])
@pytest.mark.parametrize(("age_s", "copied"), [(0.0, 1), (1.0, 1), (10.0, 0), (-3600.0, 0)])
@pytest.mark.parametrize("kind", ["disk", "mem"])
def test_a_file_written_twice_within_a_moment(
    tmp_path: Path, kind: str, age_s: float, copied: int, size: int
) -> None:
    """Its size and time are those of the copy, but it was written to once more."""
    now = time.time_ns() - round(age_s * 1e9)
    content = random.Random(size).randbytes(size)
    ours = Disk(tmp_path / "ours")
    theirs: Side = Disk(tmp_path / "theirs") if kind == "disk" else Memory(kind, "theirs")
    ours.put("a", content, now)
    ours.put("b", b"as it was", now)
    fastsync.sync(ours.place(), theirs.place())
    ours.put("a", content[::-1], now)
    totals = fastsync.sync(ours.place(), theirs.place()).totals
    assert (totals.files_copied, totals.files_skipped) == (copied, 2 - copied)


@pytest.mark.parametrize(("step_ns", "copied"), [(1, 1), (1_000, 1), (1_000_000_000, 0)])
def test_times_are_compared_as_precisely_as_both_sides_keep_them(
    tmp_path: Path, step_ns: int, copied: int
) -> None:
    ours, theirs = Disk(tmp_path / "ours"), Memory("mem", "theirs")
    theirs.box.limits = dataclasses.replace(theirs.box.limits, mtime_step_ns=step_ns)
    ours.put("a", CONTENT, THEN + 123_456_789)
    fastsync.sync(ours.place(), theirs.place("x"))
    assert fastsync.sync(ours.place(), theirs.place("x")).totals.files_copied == 0
    ours.put("a", CONTENT[::-1], THEN + 123_987_654)
    assert fastsync.sync(ours.place(), theirs.place("x")).totals.files_copied == copied


def test_a_bucket_that_keeps_no_times(tmp_path: Path) -> None:
    """Its time is when it was written to: what is older at the source is up to date."""
    ours, theirs = Disk(tmp_path / "ours"), Memory("bucket", "theirs")
    ours.put("a")
    first = fastsync.sync(ours.place(), theirs.place())
    # Without any time at all there is no telling, so it is copied again.
    again = fastsync.sync(ours.place(), theirs.place())
    assert (first.totals.files_copied, again.totals.files_copied) == (1, 1)


# -- listings -----------------------------------------------------------------------------------------


def test_ls(both: Side) -> None:
    planted(both)
    entries = fastsync.ls(both.place("d"), recursive=True)
    shown = [(entry.path, entry.kind, entry.size) for entry in entries]
    directories = [("deep", "dir", None)] if not str(both.place()).startswith("bucket") else []
    assert shown == [
        ("a", "file", 1), *directories, ("deep/b", "file", 2), ("deep/c", "file", 0),
    ]  # fmt: skip
    top = [(entry.path, entry.kind) for entry in fastsync.ls(both.place("d"))]
    assert top == [("a", "file"), ("deep", "dir")]
    assert all(isinstance(entry, Entry) for entry in entries)


def test_ls_of_a_file(both: Side) -> None:
    planted(both)
    (entry,) = fastsync.ls(both.place("d/deep/b"))
    assert (entry.path, entry.kind, entry.size) == ("b", "file", 2)


def test_ls_with_rules(both: Side) -> None:
    planted(both)
    found = fastsync.ls(both.place("d"), recursive=True, rules=[Rule(False, "deep/")])
    assert [entry.path for entry in found] == ["a"]
    found = fastsync.ls(both.place("d"), recursive=True, min_size=2)
    assert [entry.path for entry in found if entry.kind == "file"] == ["deep/b"]


@pytest.mark.parametrize("path", ["missing", "beside/below"])
def test_ls_of_nothing(both: Side, path: str) -> None:
    planted(both)
    with pytest.raises(ListingError):
        fastsync.ls(both.place(path))


def test_ls_says_what_it_missed(tmp_path: Path) -> None:
    (tmp_path / "lost").symlink_to("nowhere")
    assert [entry.kind for entry in fastsync.ls(tmp_path)] == ["link"]
    with pytest.raises(NotFound):
        fastsync.ls(tmp_path, links="follow")


# -- the session --------------------------------------------------------------------------------------


def test_everything_is_closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stores first, then what they share; whether it went well or not. No descriptor or thread stays."""
    closed: list[str] = []

    async def close_store(_self: object) -> None:
        closed.append("store")

    async def close_backend(_self: object) -> None:
        closed.append("backend")

    from fastsync.testing import memory

    monkeypatch.setattr(memory.BareMemoryStore, "aclose", close_store)
    monkeypatch.setattr(MemoryBackend, "aclose", close_backend)
    ours = Memory("mem", "ours")
    ours.put("d/a")
    descriptors = len(os.listdir("/proc/self/fd"))
    fastsync.sync("mem://ours/d", "mem://theirs/d")
    assert closed.count("backend") == 1
    assert closed[-1] == "backend"
    assert closed.count("store") >= 2
    closed.clear()
    ours.box.faults.then("scan", ListingError("no"))
    with pytest.raises(ListingError):
        fastsync.sync("mem://ours/d", "mem://theirs/d")
    assert closed[-1:] == ["backend"]
    fastsync.sync("mem://ours/d", tmp_path / "to")
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_many_failures_leave_nothing_open(tmp_path: Path) -> None:
    """Neither descriptors nor threads, however many files cannot be written."""
    for number in range(200):
        (tmp_path / "from").mkdir(exist_ok=True)
        (tmp_path / f"from/{number}").write_bytes(CONTENT)
        (tmp_path / f"to/{number}/in the way").mkdir(parents=True)
    fastsync.sync(tmp_path / "from", tmp_path / "other")  # what is kept for good is there by now
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(2):
        summary = fastsync.sync(tmp_path / "from", tmp_path / "to")
        assert summary.totals.failed == 200
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert threading.active_count() == threads
    assert not list(tmp_path.rglob(".fs-*"))


def test_what_a_store_is_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    granted: list[StoreOptions] = []
    really = MemoryBackend.connect

    async def connect(self: MemoryBackend, location: Any, options: StoreOptions) -> Any:
        granted.append(options)
        return await really(self, location, options)

    monkeypatch.setattr(MemoryBackend, "connect", connect)
    Memory("mem", "ours").put("d/a")
    fastsync.sync(
        "mem://ours/d", "mem://theirs/d", jobs=3, parallel_streams=5, chunk_size="1M",
        buffer_size="9M", stall_timeout=7, links="follow",
    )  # fmt: skip
    assert {options.follow_links for options in granted} == {True, False}
    for options in granted:
        assert (options.jobs, options.streams) == (3, 5)
        assert (options.chunk_size, options.buffer_size) == (1 << 20, 9 << 20)
        assert options.stall_timeout_s == 7.0


def test_paths_may_be_paths(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    assert fastsync.cp(tmp_path / "a", tmp_path / "b").exit_code == 0
    assert fastsync.cp([tmp_path / "a", tmp_path / "b"], f"{tmp_path}/c/").exit_code == 0
    assert sorted(os.listdir(tmp_path / "c")) == ["a", "b"]
    assert len(fastsync.ls(tmp_path / "c")) == 2


async def test_as_coroutines(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/f").write_bytes(CONTENT)
    watcher = Watcher()
    request = api.Request(observer=watcher)
    one, other = await asyncio.gather(
        api.run_sync(tmp_path / "a", tmp_path / "b", request),
        api.run_cp([tmp_path / "a/f"], tmp_path / "c", api.Request()),
    )
    assert (one.exit_code, other.exit_code) == (0, 0)
    assert [item.path for item in watcher.items if item.operation == "copy"] == ["f"]
    pages = [page async for page in api.run_ls(tmp_path / "b", api.Request())]
    assert [entry.path for page in pages for entry in page.entries] == ["f"]


def test_public_names() -> None:
    for name in fastsync.__all__:
        assert getattr(fastsync, name) is not None
    assert set(fastsync.__all__) <= set(dir(fastsync))
    with pytest.raises(AttributeError, match="no attribute 'cq'"):
        fastsync.cq  # type: ignore[attr-defined]  # noqa: B018
    assert issubclass(Conflict, fastsync.FastsyncError)
    assert parse("x").path == "x"


# -- the whole way, on a disk -------------------------------------------------------------------------

NAMES = ["a", "a-b", "a.txt", "a0", "b", "\u00e9", "\udc80", " ", "\n", "..x", "-n", "c" * 255]


def grow(top: Path, chance: random.Random, entries: int) -> None:
    """A random tree of directories, files, links and pipes, with times and modes of their own."""
    directories = [top]
    for _ in range(entries):
        path = chance.choice(directories) / chance.choice(NAMES)
        if path.is_symlink() or path.exists():
            continue
        kind = chance.random()
        if kind < 0.3:
            path.mkdir()
            directories.append(path)
        elif kind < 0.4:
            path.symlink_to(chance.choice(["a", "../b", "/nowhere", "x\n"]))
        elif kind < 0.43:
            os.mkfifo(path)
        else:
            version = chance.randrange(4)
            path.write_bytes([b"", b"1", b"2", b"33"][version])
            os.chmod(path, chance.choice([0o644, 0o600, 0o755]))
            os.utime(path, ns=(THEN, THEN + version))  # of one size and time is one content
    for path in reversed(directories[1:]):
        os.chmod(path, chance.choice([0o755, 0o700, 0o555]))
        os.utime(path, ns=(THEN, THEN + chance.randrange(3)))


def picture(top: Path) -> dict[str, object]:
    """Everything below `top` that a copy keeps."""
    seen: dict[str, object] = {}
    for directory, names, others in os.walk(top):
        for name in [*names, *others]:
            full = os.path.join(directory, name)
            status = os.lstat(full)
            path = os.path.relpath(full, top)
            if stat.S_ISLNK(status.st_mode):
                seen[path] = ("link", os.readlink(full))
            elif stat.S_ISREG(status.st_mode):
                content = Path(full).read_bytes()
                seen[path] = ("file", content, stat.S_IMODE(status.st_mode), status.st_mtime_ns)
            elif stat.S_ISDIR(status.st_mode):
                seen[path] = ("dir", stat.S_IMODE(status.st_mode), status.st_mtime_ns)
            else:
                seen[path] = ("special",)
    return seen


def loosened(top: Path) -> None:
    """Let whoever cleans up after the test do so."""
    for directory, _, _ in os.walk(top):
        os.chmod(directory, 0o755)


@pytest.mark.parametrize("seed", range(25))
def test_any_two_trees(tmp_path: Path, seed: int) -> None:
    """The destination becomes the source to the last bit, and then there is nothing left to do."""
    chance = random.Random(seed)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for top in (ours, theirs):
        top.mkdir()
        grow(top, chance, 25)
    (ours / "never-empty").write_bytes(b"")
    wanted = {path: what for path, what in picture(ours).items() if what != ("special",)}
    pipes = {path for path, what in picture(ours).items() if what == ("special",)}
    options: dict[str, Any] = {"delete": True, "archive": True, "max_delete": "100%"}
    summary = fastsync.sync(ours, theirs, **options)
    assert summary.failures == []
    left = picture(theirs)
    for path in pipes & left.keys():
        assert left.pop(path) is not None  # what stands in a pipe's place is nobody's business
    assert left == wanted
    again = fastsync.sync(ours, theirs, **options)
    totals = again.totals
    done = (totals.files_copied, totals.links_made, totals.directories_made, totals.deleted)
    assert (done, totals.attributes_set, again.exit_code) == ((0, 0, 0, 0), 0, 0)
    assert picture(ours).keys() - pipes == wanted.keys()
    loosened(tmp_path)
