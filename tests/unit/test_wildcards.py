"""Wildcards: what they match, what they keep, and what happens where they match a directory."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

import fastsync
from fastsync.backend import Page, ScanOptions, StoreOptions
from fastsync.errors import ListingError, UsageError
from fastsync.filters import Glob
from fastsync.location import parse
from fastsync.testing import BareMemoryBackend, MemoryBackend
from fastsync.wildcards import find

pytestmark = pytest.mark.usefixtures("memory_stores")


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("*", "a", True),
        ("*", "a/b", False),
        ("a*/b?/c", "ax/by/c", True),
        ("a*/b?/c", "ax/b/c", False),
        ("**", "a/b/c", True),
        ("**/x", "x", True),
        ("**/x", "a/b/x", True),
        ("**/x", "a/bx", False),
        ("a/**/x", "a/x", True),
        ("a/**/x", "a/b/c/x", True),
        ("log**", "logs/2024/may", True),
        ("[!a-c]x", "dx", True),
        ("[!a-c]x", "ax", False),
        ("a{b,c}*", "a{b,c}d", True),
        ("a{b,c}*", "abd", False),
        (r"a\*b*", "a*bc", True),
        (r"a\*b*", "axbc", False),
        ("*a*a*a*a*a*a*a*a*b", "a" * 250, False),  # in no time, too
        ("é*", "éa\udcff\n", True),
    ],
)
def test_what_a_glob_matches(pattern: str, path: str, matches: bool) -> None:
    assert Glob(pattern).matches(path) is matches


@pytest.mark.parametrize(
    ("pattern", "directory", "leads"),
    [
        ("*", "a", False),
        ("a*/b", "ax", True),
        ("a*/b", "bx", False),
        ("a*/b", "ax/b", False),
        ("a/**", "a", True),
        ("a/**", "a/b/c", True),
        ("a/**", "b", False),
        ("x**", "xy/z", True),
    ],
)
def test_which_directories_lead_to_a_match(pattern: str, directory: str, leads: bool) -> None:
    assert Glob(pattern).leads(directory) is leads


def test_where_a_place_is_parted() -> None:
    wild = find(parse("bucket://b/logs/2024-*/x?.gz"))
    assert wild is not None
    assert (str(wild.base), wild.pattern, wild.prefix) == (
        "bucket://b/logs/",
        "2024-*/x?.gz",
        "2024-",
    )
    escaped = find(parse(r"bucket://b/a\*/b\[*"))
    assert escaped is not None
    assert (str(escaped.base), escaped.prefix) == ("bucket://b/a*/", "b[")
    assert find(parse("bucket://b/plain")) is None
    assert find(parse(r"bucket://b/a\*b")) is None
    assert find(parse("local/*.gz")) is None  # the shell's business


@pytest.mark.parametrize("place", ["bucket://b/a[", "bucket://b/*//x", "bucket://b/*/../x"])
def test_what_is_no_pattern(place: str) -> None:
    with pytest.raises(UsageError):
        find(parse(place))


@pytest.mark.parametrize("scheme", ["bucket", "mem"])
@pytest.mark.parametrize(
    ("pattern", "recursive", "listed"),
    [
        ("*.gz", False, ["a.gz", "b.gz"]),
        ("l*", False, ["logs/", "logsX/"]),
        ("*/*.gz", False, ["logs/c.gz"]),
        ("**.gz", False, ["a.gz", "b.gz", "logs/2024/d.gz", "logs/c.gz"]),
        ("logs/*", True, ["2024/d.gz", "c.gz"]),
        ("[ab].gz", False, ["a.gz", "b.gz"]),
    ],
)
def test_what_is_listed(scheme: str, pattern: str, recursive: bool, listed: list[str]) -> None:
    box = (MemoryBackend if scheme == "mem" else BareMemoryBackend).box("b")
    for name in ("a.gz", "b.gz", "c.txt", "logs/2024/d.gz", "logs/c.gz", "logsX/e.txt"):
        box.put("top/" + name, b"content")
    found = fastsync.ls(f"{scheme}://b/top/{pattern}", recursive=recursive)
    names = [entry.path + "/" * (entry.kind == "dir") for entry in found]
    if recursive and scheme == "mem":
        names.remove("2024/")  # has directories of their own
    assert names == listed


async def test_the_store_hears_of_the_prefix_and_of_what_need_not_be_entered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    box = BareMemoryBackend.box("b")
    for name in ("x1/a", "x1/deep/b", "y/c"):
        box.put(name, b"")
    location = parse("bucket://b/x*/a")
    wild = find(location)
    assert wild is not None
    store = await BareMemoryBackend().connect(wild.base, StoreOptions())
    asked: list[ScanOptions] = []
    scan = store.scan

    def asking(options: ScanOptions) -> AsyncIterator[Page]:
        asked.append(options)
        return scan(options)

    monkeypatch.setattr(store, "scan", asking)
    pages = [page async for page in wild.scan(store, ScanOptions())]
    assert [entry.path for page in pages for entry in page.entries] == ["x1/a"]
    (options,) = asked
    assert options.starting_with == "x"
    assert options.prune is not None
    assert [options.prune(path) for path in ("x1", "x1/deep", "y")] == [False, True, True]


# -- in the verbs ------------------------------------------------------------------------------------


def test_copies_keep_the_structure_below_the_first_wildcard() -> None:
    box = BareMemoryBackend.box("b")
    for name in ("in/x/1.csv", "in/y/2.csv", "in/y/3.txt", "in/4.csv"):
        box.put(name, name.encode())
    summary = fastsync.cp("bucket://b/in/*/*.csv", "mem://m/to/")
    assert summary.exit_code == 0
    assert MemoryBackend.box("m").files() == {
        "to/x/1.csv": b"in/x/1.csv",
        "to/y/2.csv": b"in/y/2.csv",
    }


def test_a_directory_that_matches_needs_recursion() -> None:
    box = BareMemoryBackend.box("b")
    box.put("in/a", b"a")
    box.put("in/dir/b", b"b")
    summary = fastsync.cp("bucket://b/in/*", "mem://m/to/")
    assert summary.exit_code == 1
    assert "-R" in str(summary.failures[0].error)
    assert list(MemoryBackend.box("m").files()) == ["to/a"]
    assert fastsync.cp("bucket://b/in/*", "mem://m/to/", recursive=True).exit_code == 0
    assert list(MemoryBackend.box("m").files()) == ["to/a", "to/dir/b"]


@pytest.mark.parametrize("scheme", ["bucket", "mem"])
@pytest.mark.parametrize("pattern", ["in/**", "in/d**"])
def test_two_stars_at_the_end_need_no_recursion(scheme: str, pattern: str) -> None:
    """They cross "/": all below a directory that matches is a match itself."""
    box = (MemoryBackend if scheme == "mem" else BareMemoryBackend).box("b")
    for name in ("in/dir/b", "in/dir/deep/c", "out/d"):
        box.put(name, name.encode())
    assert fastsync.cp(f"{scheme}://b/{pattern}", "mem://m/to/").exit_code == 0
    assert list(MemoryBackend.box("m").files()) == ["to/dir/b", "to/dir/deep/c"]
    assert fastsync.rm(f"{scheme}://b/{pattern}").exit_code == 0
    assert list(box.files()) == ["out/d"]


@pytest.mark.parametrize("pattern", ["in/**/dir", r"in/d\**"])
def test_other_stars_do(pattern: str) -> None:
    box = BareMemoryBackend.box("b")
    box.put("in/dir/b", b"b")
    box.put("in/d*r/b", b"b")
    assert fastsync.rm(f"bucket://b/{pattern}").exit_code == 1
    assert len(box.files()) == 2


def test_nothing_matches() -> None:
    BareMemoryBackend.box("b").put("in/a", b"a")
    assert fastsync.cp("bucket://b/in/*.x", "mem://m/to/").exit_code == 3
    with pytest.raises(ListingError, match="nothing matches"):
        fastsync.ls("bucket://b/in/*.x")
    with pytest.raises(ListingError, match="nothing matches"):
        fastsync.sync("bucket://b/in/*.x", "mem://m/to/", delete=True)


def test_several_things_need_a_directory() -> None:
    BareMemoryBackend.box("b").put("in/a", b"a")
    with pytest.raises(UsageError, match="directory"):
        fastsync.cp("bucket://b/in/*", "mem://m/to")


def test_raw_takes_them_for_what_they_are() -> None:
    box = BareMemoryBackend.box("b")
    box.put("in/[1]*", b"odd")
    box.put("in/1x", b"plain")
    fastsync.cp("bucket://b/in/[1]*", "mem://m/to/")
    fastsync.cp("bucket://b/in/[1]*", "mem://m/raw/", raw=True)
    assert MemoryBackend.box("m").files() == {"to/1x": b"plain", "raw/[1]*": b"odd"}


def test_a_place_inside_is_refused_only_if_it_is_meant() -> None:
    box = BareMemoryBackend.box("b")
    box.put("in/a.csv", b"a")
    assert fastsync.cp("bucket://b/in/*.csv", "bucket://b/in/done/").exit_code == 0
    assert sorted(box.files()) == ["in/a.csv", "in/done/a.csv"]
    with pytest.raises(UsageError, match="inside"):
        fastsync.cp("bucket://b/in/*", "bucket://b/in/done/", recursive=True)
    with pytest.raises(UsageError, match="same place"):
        fastsync.cp("bucket://b/in/*.csv", "bucket://b/in/")


def test_sync_with_wildcards_deletes_only_what_they_mean() -> None:
    box, to = BareMemoryBackend.box("b"), MemoryBackend.box("m")
    box.put("in/a.csv", b"a")
    for name in ("to/a.csv", "to/old.csv", "to/old.txt", "to/sub/old.csv"):
        to.put(name, b"old")
    summary = fastsync.sync("bucket://b/in/*.csv", "mem://m/to", delete=True)
    assert (summary.exit_code, summary.totals.deleted) == (0, 1)
    assert to.files() == {"to/a.csv": b"a", "to/old.txt": b"old", "to/sub/old.csv": b"old"}
