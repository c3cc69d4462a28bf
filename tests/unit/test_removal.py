"""`rm` and `mv`: what goes, what stays, and that nothing goes without its copy."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import fastsync
from fastsync import Rule, moving
from fastsync.backend import Entry, StoreOptions
from fastsync.errors import (
    FastsyncError,
    IntegrityError,
    PermissionRefused,
    Transient,
    UsageError,
)
from fastsync.events import Item, Totals
from fastsync.location import parse
from fastsync.testing import BareMemoryBackend, Box, MemoryBackend

pytestmark = pytest.mark.usefixtures("memory_stores")

NAMES = ("t/a", "t/d/b", "t/d/e/c", "t/z", "other")


@pytest.fixture(params=["mem", "bucket"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def box_of(scheme: str, name: str = "b") -> Box:
    return (MemoryBackend if scheme == "mem" else BareMemoryBackend).box(name)


def filled(scheme: str, names: Sequence[str] = NAMES) -> Box:
    box = box_of(scheme)
    for name in names:
        box.put(name, name.encode())
    return box


class Watcher:
    wants_items = True
    wants_skips = False

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.notes: list[str] = []
        self.after: Callable[[int], None] = lambda _count: None

    def item(self, item: Item) -> None:
        self.items.append(item)
        self.after(len(self.items))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, totals: Totals) -> None:
        """Ignore."""


# -- rm ----------------------------------------------------------------------------------------------


def test_files(scheme: str) -> None:
    box = filled(scheme)
    watcher = Watcher()
    summary = fastsync.rm([f"{scheme}://b/t/a", f"{scheme}://b/t/d/b"], observer=watcher)
    assert (summary.exit_code, summary.totals.deleted) == (0, 2)
    assert sorted(box.files()) == ["other", "t/d/e/c", "t/z"]
    assert [item.destination for item in watcher.items] == [
        f"{scheme}://b/t/a",
        f"{scheme}://b/t/d/b",
    ]


def test_files_of_one_directory_go_in_one_call(scheme: str) -> None:
    box = filled(scheme)
    calls: list[int] = []
    store = type(box_store(scheme))
    delete = store.delete

    async def counted(self: Any, entries: Sequence[Entry]) -> list[FastsyncError | None]:
        calls.append(len(entries))
        answers: list[FastsyncError | None] = await delete(self, entries)
        return answers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "delete", counted)
        fastsync.rm([f"{scheme}://b/t/a", f"{scheme}://b/t/z"])
    assert calls == [2]
    assert sorted(box.files()) == ["other", "t/d/b", "t/d/e/c"]


def box_store(scheme: str) -> Any:
    import asyncio

    backend = MemoryBackend() if scheme == "mem" else BareMemoryBackend()
    return asyncio.run(backend.connect(parse(f"{scheme}://b/"), StoreOptions()))


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_tree(scheme: str, slash: str) -> None:
    box = filled(scheme)
    summary = fastsync.rm(f"{scheme}://b/t{slash}", recursive=True)
    assert (summary.exit_code, summary.totals.deleted) == (0, 4)
    assert list(box.files()) == ["other"]
    assert list(box.root.children) == ["other"]  # no directory is left


def test_more_than_a_batch_in_a_tree_of_directories() -> None:
    box = box_of("mem")
    for number in range(3000):
        box.put(f"t/{number % 7}/{number}", b"")
    assert fastsync.rm("mem://b/t", recursive=True).totals.deleted == 3000
    assert not box.root.children


@pytest.mark.parametrize(
    ("verb", "options", "code"),
    [
        ("rm", {}, 1),
        ("rm", {"recursive": True}, 3),
        ("cp", {}, 1),
        ("cp", {"recursive": True}, 3),
        ("mv", {}, 3),
    ],
)
def test_many_places_at_a_server_that_is_down(
    verb: str, options: dict[str, Any], code: int, tmp_path: Path
) -> None:
    """Each would take all its tries, and the timeout of each, one after the other."""
    names = [f"{number}" for number in range(100)]
    box = filled("bucket", names)
    box.faults.always("stat", Transient("no route"))
    watcher = Watcher()
    to = () if verb == "rm" else (f"{tmp_path}/",)
    places = [f"bucket://b/{name}" for name in names]
    summary = getattr(fastsync, verb)(places, *to, retry_count=0, observer=watcher, **options)
    assert (summary.exit_code, box.faults.calls["stat"], len(box.files())) == (code, 20, 100)
    assert any("stopped early" in note for note in watcher.notes)


def test_a_directory_needs_recursion(scheme: str) -> None:
    box = filled(scheme)
    with pytest.raises(UsageError, match="-R"):
        fastsync.rm([f"{scheme}://b/other", f"{scheme}://b/t"])
    assert len(box.files()) == len(NAMES)


def test_what_a_filter_hides_stays_with_its_directories(scheme: str) -> None:
    box = filled(scheme)
    summary = fastsync.rm(f"{scheme}://b/t", recursive=True, rules=[Rule(False, "c")])
    assert (summary.exit_code, summary.totals.deleted) == (0, 3)
    assert sorted(box.files()) == ["other", "t/d/e/c"]


def test_dry_run(scheme: str) -> None:
    box = filled(scheme)
    watcher = Watcher()
    summary = fastsync.rm(f"{scheme}://b/t", recursive=True, dry_run=True, observer=watcher)
    assert summary.totals.deleted == 4
    assert len(box.files()) == len(NAMES)
    assert box.faults.calls["delete"] == 0


def test_a_missing_one_does_not_keep_the_others(scheme: str) -> None:
    box = filled(scheme)
    assert fastsync.rm([f"{scheme}://b/nope", f"{scheme}://b/t/a"]).exit_code == 3
    assert "t/a" not in box.files()
    assert fastsync.rm(f"{scheme}://b/nope", ignore_missing_args=True).exit_code == 0


def test_failures_are_counted_and_passing_ones_tried_again(scheme: str) -> None:
    box = filled(scheme)
    box.faults.then("delete", PermissionRefused("no"), path="a")
    box.faults.then("delete", Transient("busy"), path="z")
    summary = fastsync.rm(f"{scheme}://b/t", recursive=True)
    assert (summary.exit_code, summary.totals.failed >= 1) == (1, True)
    assert sorted(box.files()) == ["other", "t/a"]


def test_wildcards(scheme: str) -> None:
    box = filled(scheme)
    assert fastsync.rm(f"{scheme}://b/t/?").exit_code == 1  # t/d is a directory
    assert sorted(box.files()) == ["other", "t/d/b", "t/d/e/c"]
    assert fastsync.rm(f"{scheme}://b/t/?", recursive=True).exit_code == 0
    assert list(box.files()) == ["other"]
    assert fastsync.rm(f"{scheme}://b/nope*").exit_code == 3


def test_all_of_a_bucket_but_never_a_whole_disk(tmp_path: Path) -> None:
    box = filled("bucket")
    with pytest.raises(UsageError, match="-R"):
        fastsync.rm("bucket://b/")
    assert fastsync.rm("bucket://b", recursive=True).exit_code == 0
    assert not box.files()
    (tmp_path / "root").symlink_to("/")
    for place in ("/", "/tmp/..", f"{tmp_path}/root/", "mem://b/", "mem://b/*", "bucket://"):
        with pytest.raises(UsageError, match=r"root|name"):
            fastsync.rm(place, recursive=True, dry_run=True)
    for place in (".", "..", f"{tmp_path}/.", "-", ""):
        with pytest.raises(UsageError):
            fastsync.rm(place, recursive=True, dry_run=True)


def test_links_go_and_not_what_they_lead_to(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t/f").write_bytes(b"content")
    (tmp_path / "l").symlink_to("t")
    with pytest.raises(UsageError, match="link"):
        fastsync.rm(f"{tmp_path}/l/", recursive=True)
    fastsync.rm(f"{tmp_path}/l", recursive=True)
    assert sorted(os.listdir(tmp_path)) == ["t"]
    assert (tmp_path / "t/f").exists()


# -- mv ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["mem", "bucket"])
def test_a_tree_moves(scheme: str, to: str) -> None:
    box, other = filled(scheme), box_of(to, "to")
    summary = fastsync.mv(f"{scheme}://b/t", f"{to}://to/new")
    assert (summary.exit_code, summary.totals.files_copied, summary.totals.deleted) == (0, 4, 4)
    assert list(box.files()) == ["other"]
    assert list(box.root.children) == ["other"]
    assert other.files() == {
        "new/a": b"t/a",
        "new/d/b": b"t/d/b",
        "new/d/e/c": b"t/d/e/c",
        "new/z": b"t/z",
    }


def test_the_contents_of_a_directory_move() -> None:
    box = filled("mem")
    fastsync.mv("mem://b/t/", "mem://to/")
    assert sorted(box_of("mem", "to").files()) == ["a", "d/b", "d/e/c", "z"]
    assert list(box.root.children["t"].children) == []


def test_files_move_on_a_disk(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    (tmp_path / "l").symlink_to("a")
    (tmp_path / "d").mkdir()
    places = [f"{tmp_path}/{name}" for name in ("a", "b")]
    assert fastsync.mv(places, f"{tmp_path}/d").exit_code == 0
    assert sorted(os.listdir(tmp_path)) == ["d", "l"]
    assert fastsync.mv(f"{tmp_path}/d/a", f"{tmp_path}/a2").exit_code == 0
    assert sorted(os.listdir(tmp_path)) == ["a2", "d", "l"]


def test_a_move_replaces_what_looks_the_same() -> None:
    filled("mem", ["f"])
    to = box_of("mem", "to")
    to.put("f", b"g")  # of the same size and time
    assert fastsync.mv("mem://b/f", "mem://to/").exit_code == 0
    assert (box_of("mem").files(), to.files()) == ({}, {"f": b"f"})


@pytest.mark.parametrize(
    "options", [{"ignore_existing": True}, {"update": True}, {"existing": True}]
)
def test_what_is_skipped_stays(options: dict[str, Any]) -> None:
    box = filled("mem", ["f", "g"])
    box_of("mem", "to").put("f", b"there before", mtime_ns=10**18)
    summary = fastsync.mv(["mem://b/f", "mem://b/g"], "mem://to/", **options)
    assert summary.exit_code == 0
    stays = "g" if "existing" in options else "f"
    gone = {"f", "g"} - {stays}
    if "existing" in options:
        assert "f" not in box.files()
    assert stays in box.files()
    assert not gone & set(box.files())


def test_what_is_the_same_by_checksum_is_moved_without_a_copy() -> None:
    box = filled("mem", ["f"])
    box_of("mem", "to").put("f", b"f", mtime_ns=5)
    summary = fastsync.mv("mem://b/f", "mem://to/", checksum=True)
    assert (summary.exit_code, summary.totals.files_copied) == (0, 0)
    assert not box.files()


def test_a_failed_copy_keeps_its_source(scheme: str) -> None:
    box = filled(scheme)
    for method in ("write", "write_whole"):
        box_of("bucket", "to").faults.always(method, IntegrityError("wrong"), path="a")
    summary = fastsync.mv(f"{scheme}://b/t", "bucket://to/")
    assert summary.exit_code == 4
    assert sorted(box.files()) == ["other", "t/a"]


@pytest.mark.parametrize("named", [False, True])
def test_a_source_that_changed_after_its_copy_stays(scheme: str, named: bool) -> None:
    box = filled(scheme)
    to = box_of("bucket", "to")

    def change() -> None:
        if "a" in to.files() or "t/a" in to.files():
            box.put("t/a", b"new content")

    # The second listing, or the second look, comes after the copies.
    box.faults.always("stat" if named else "scan", change)
    summary = fastsync.mv(f"{scheme}://b/t{'/a' if named else ''}", "bucket://to/")
    assert summary.exit_code == 8
    assert "changed after it was copied" in str(summary.failures[0].error)
    assert box.files()["t/a"] == b"new content"
    assert to.files()["a" if named else "t/a"] == b"t/a"
    assert named or sorted(box.files()) == ["other", "t/a"]


def test_more_than_is_looked_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "_AHEAD", 50)
    monkeypatch.setattr("fastsync.spool.PAGE", 20)
    box = box_of("mem")
    for number in range(3000):
        box.put(f"t/{number % 7}/{number}", b"")
    # One ends long after those that follow it.
    box_of("bucket", "to").faults.then("write_whole", Transient("busy"), path="t/0/0")
    summary = fastsync.mv("mem://b/t", "bucket://to/")
    assert (summary.exit_code, summary.totals.deleted) == (0, 3000)
    assert not box.root.children


def test_a_dry_run_moves_nothing(scheme: str) -> None:
    box = filled(scheme)
    summary = fastsync.mv(f"{scheme}://b/t", "bucket://to/", dry_run=True)
    assert summary.totals.files_copied == 4
    assert len(box.files()) == len(NAMES)


def test_a_file_is_never_moved_onto_itself(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("content")
    os.link(tmp_path / "a", tmp_path / "b")
    with pytest.raises(UsageError, match="same file"):
        fastsync.mv(f"{tmp_path}/a", f"{tmp_path}/a")
    # Two names of one file are what a disk that ignores case, or one mounted twice, looks like.
    summary = fastsync.mv(f"{tmp_path}/a", f"{tmp_path}/b", size_only=True)
    assert summary.exit_code == 1
    assert "same file" in str(summary.failures[0].error)
    assert (tmp_path / "a").exists()


def test_what_cannot_be_removed_cannot_be_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    filled("bucket", ["f"])
    monkeypatch.delattr("fastsync.testing.memory.BareMemoryStore.delete")
    with pytest.raises(UsageError, match="only be read"):
        fastsync.mv("bucket://b/f", "mem://to/")
    assert not box_of("mem", "to").files()


def test_links_move_as_links(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t/f").write_text("content")
    (tmp_path / "t/l").symlink_to("nowhere")
    assert fastsync.mv(f"{tmp_path}/t", f"{tmp_path}/u").exit_code == 0
    assert sorted(os.listdir(tmp_path)) == ["u"]
    assert os.readlink(tmp_path / "u/l") == "nowhere"


def test_wildcards_move(scheme: str) -> None:
    box = filled(scheme)
    summary = fastsync.mv(f"{scheme}://b/t/[az]", "mem://to/")
    assert summary.exit_code == 0
    assert sorted(box.files()) == ["other", "t/d/b", "t/d/e/c"]
    assert sorted(box_of("mem", "to").files()) == ["a", "z"]


def test_what_counts_as_unchanged() -> None:
    listed = Entry("f", "file", 5, None, version="v1", stored_ns=7)
    assert moving._is_same(listed, listed._replace(mtime_ns=3))
    assert not moving._is_same(listed, listed._replace(version="v2"))
    assert not moving._is_same(listed, listed._replace(stored_ns=8))
    assert not moving._is_same(listed, listed._replace(size=6))
    assert not moving._is_same(listed, listed._replace(kind="link"))
    timed = Entry("f", "file", 5, 10)
    assert not moving._is_same(timed, timed._replace(mtime_ns=11))


@pytest.mark.parametrize("method", ["stat", "make_directories"])
@pytest.mark.parametrize("box", ["b", "to"])
def test_what_is_looked_at_first_gets_patience_too(box: str, method: str) -> None:
    filled("mem")
    box_of("mem", box).faults.then(method, Transient("hung up"))
    summary = fastsync.sync("mem://b/t", "mem://to/new")
    assert summary.exit_code == 0
    assert "new/a" in box_of("mem", "to").files()


# -- a store that is down ------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["rm", "mv"])
def test_a_store_that_is_down_is_left_alone(scheme: str, verb: str) -> None:
    """After enough files in a row the rest is not tried: what is asked of it has an end, however many
    files there are."""
    names = [f"t/{number:04}" for number in range(3500)]
    box, watcher = filled(scheme, names), Watcher()
    options: dict[str, Any] = {"recursive": True, "retry_count": 1, "observer": watcher, "jobs": 2}

    def goes_down(copied: int) -> None:
        if copied == len(names):
            box.faults.always("delete", Transient("it is down"))

    if verb == "rm":
        goes_down(len(names))
        summary = fastsync.rm(f"{scheme}://b/t", **options)
    else:
        watcher.after = goes_down
        summary = fastsync.mv(f"{scheme}://b/t", f"{scheme}://other/", **options)
    assert summary.exit_code == 1
    assert len(box.files()) == len(names)
    assert any("in a row" in note for note in watcher.notes)
    assert 0 < box.faults.calls["delete"] < 5000
