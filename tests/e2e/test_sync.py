"""`fastsync sync`: like the source, again and again, whatever stood there before."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Fastsync, Picture, Plant, Spec

TREE: Spec = {
    "a": "a",
    "empty": "",
    "dir/b": "b",
    "dir/sub/large": b"large" * 100_000,
    "dir-beside/c": "c",
    "dir.txt": "sorts between dir and what is in it",
    "link": Path("dir/b"),
    "link-to-dir": Path("dir"),
    "none/": "",
}


@pytest.mark.parametrize("source", ["src", "src/", "./src/.", "src/../src"])
@pytest.mark.parametrize("target", ["dest", "dest/"])
def test_contents_into_contents(
    fastsync: Fastsync,
    plant: Plant,
    picture: Callable[..., Picture],
    tmp_path: Path,
    source: str,
    target: str,
) -> None:
    plant(tmp_path / "src", TREE)
    for _ in range(2):  # into nothing, and into what stands there
        assert fastsync("sync", source, target) == (0, "", "")
        assert picture(tmp_path / "dest") == picture(tmp_path / "src")


def test_from_and_to_here(
    fastsync: Fastsync, plant: Plant, picture: Callable[..., Picture], tmp_path: Path
) -> None:
    plant(tmp_path / "src", TREE)
    assert fastsync("sync", ".", "../dest", cwd=tmp_path / "src").code == 0
    (tmp_path / "other").mkdir()
    assert fastsync("sync", "../src", ".", cwd=tmp_path / "other").code == 0
    assert picture(tmp_path / "dest") == picture(tmp_path / "src") == picture(tmp_path / "other")


def test_what_is_there_already_stays(
    fastsync: Fastsync, plant: Plant, picture: Callable[..., Picture], tmp_path: Path
) -> None:
    plant(tmp_path / "src", TREE)
    plant(tmp_path / "dest", {"more": "m", "dir/more": "m", "more-dirs/x": "x"})
    assert fastsync("sync", "src", "dest").code == 0
    assert set(picture(tmp_path / "dest")) - set(picture(tmp_path / "src")) == {
        "more",
        "dir/more",
        "more-dirs",
        "more-dirs/x",
    }


@pytest.mark.parametrize("options", [(), ("-a",), ("--delete",), ("--checksum",), ("-a", "-S")])
def test_again_is_nothing_to_do(
    fastsync: Fastsync,
    plant: Plant,
    states: Callable[[Path], dict[str, tuple[int, int]]],
    tmp_path: Path,
    options: tuple[str, ...],
) -> None:
    """Not a file, a link or a directory of the destination is touched."""
    plant(tmp_path / "src", TREE)
    (tmp_path / "src/a").chmod(0o4711)  # the special bit is not kept, so it is no difference
    (tmp_path / "src/dir").chmod(0o2755)
    assert fastsync("sync", *options, "src", "dest").code == 0
    before = states(tmp_path / "dest")
    done = fastsync("sync", *options, "--json", "src", "dest")
    assert done.code == 0
    assert done.stdout.count("\n") == 1
    for nothing in ("copied", "deleted", "failed", "attributes", "directories", "links", "size"):
        assert f'"{nothing}": 0' in done.stdout
    assert states(tmp_path / "dest") == before


@pytest.mark.parametrize("options", [(), ("-a",), ("--inplace",)])
def test_changes_arrive(
    fastsync: Fastsync,
    plant: Plant,
    picture: Callable[..., Picture],
    tmp_path: Path,
    options: tuple[str, ...],
) -> None:
    src = plant(tmp_path / "src", TREE)
    assert fastsync("sync", *options, "src", "dest").code == 0
    (src / "a").write_text("another")
    (src / "dir/sub/large").write_bytes(b"small")
    (src / "dir/sub/new").write_text("new")
    (src / "dir/b").chmod(0o600)
    (src / "dir-beside").chmod(0o700)
    (src / "link").unlink()
    (src / "link").symlink_to("a")
    (src / "none").rmdir()
    (src / "dir/sub/deep/deeper").mkdir(parents=True)
    assert fastsync("sync", "--delete", *options, "src", "dest") == (0, "", "")
    times = "-a" in options
    assert picture(tmp_path / "dest", directory_times=times) == picture(src, directory_times=times)


def test_a_single_file(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path, {"a": "a", "dir/": ""})
    assert fastsync("sync", "a", "b") == (0, "", "")
    assert fastsync("sync", "a", "dir") == (0, "", "")
    assert fastsync("sync", "a", "new/") == (0, "", "")
    assert [(tmp_path / at).read_text() for at in ("b", "dir/a", "new/a")] == ["a", "a", "a"]
    done = fastsync("sync", "--delete", "a", "dir")
    assert (done.code, os.listdir(tmp_path / "dir")) == (0, ["a"])


# -- something of another kind stands there ----------------------------------------------------------

KINDS: dict[str, Spec] = {
    "file": {"x": "a file"},
    "dir": {"x/inner": "inner", "x/sub/deep": "deep", "x/zero/": ""},
    "empty dir": {"x/": ""},
    "link to a dir": {"x": Path("../outside")},
    "link to a file": {"x": Path("../outside/inner")},
    "dangling link": {"x": Path("no/such")},
}
# Names that sort before, between and after "x" and "x/".
AROUND: Spec = {
    "w": "w",
    "x ": "x ",
    "x-": "x-",
    "x-dir/y": "y",
    "x.d": "x.d",
    "x0": "x0",
    "y": "y",
}
DIRECTORIES = ("dir", "empty dir")


PAIRS = list(permutations(KINDS, 2))


def every_pair(side: int) -> dict[str, str | bytes | Path]:
    """One side of a tree in which everything stands where something of another kind should go."""
    spec: dict[str, str | bytes | Path] = {}
    for number, pair in enumerate(PAIRS):
        for name, content in KINDS[pair[side]].items():
            spec[f"x{number:02}{name[1:]}"] = content
        for name, content in AROUND.items():
            spec[f"x{number:02}{name[1:]}" if name[0] == "x" else name] = content
    return spec


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_another_kind_with_delete(
    fastsync: Fastsync,
    plant: Plant,
    picture: Callable[..., Picture],
    states: Callable[[Path], dict[str, tuple[int, int]]],
    tmp_path: Path,
    ours: str,
    theirs: str,
) -> None:
    plant(tmp_path / "outside", {"inner": "precious"})
    plant(tmp_path / "src", {**KINDS[ours], "always": "there"})
    plant(tmp_path / "dest", KINDS[theirs])
    outside = states(tmp_path / "outside")
    assert fastsync("sync", "--delete", "src", "dest") == (0, "", "")
    assert picture(tmp_path / "dest") == picture(tmp_path / "src")
    assert states(tmp_path / "outside") == outside


def test_every_other_kind_with_delete(
    fastsync: Fastsync,
    plant: Plant,
    picture: Callable[..., Picture],
    states: Callable[[Path], dict[str, tuple[int, int]]],
    tmp_path: Path,
) -> None:
    plant(tmp_path / "outside", {"inner": "precious"})
    plant(tmp_path / "src", every_pair(0))
    plant(tmp_path / "dest", every_pair(1))
    outside = states(tmp_path / "outside")
    assert fastsync("sync", "--delete", "src", "dest") == (0, "", "")
    assert picture(tmp_path / "dest") == picture(tmp_path / "src")
    assert states(tmp_path / "outside") == outside


def test_every_other_kind_without_delete(
    fastsync: Fastsync,
    plant: Plant,
    picture: Callable[..., Picture],
    states: Callable[[Path], dict[str, tuple[int, int]]],
    tmp_path: Path,
) -> None:
    """A file and a link may take each other's place; a directory neither gives way nor takes it."""
    plant(tmp_path / "outside", {"inner": "precious"})
    plant(tmp_path / "src", {**every_pair(0), "new": "n"})
    plant(tmp_path / "dest", every_pair(1))
    outside = states(tmp_path / "outside")
    before = picture(tmp_path / "dest")
    done = fastsync("sync", "src", "dest")
    after = picture(tmp_path / "dest")
    wanted = picture(tmp_path / "src")
    told = re.findall(
        r"^fastsync: error: \S*/(x\d\d): a (?:file|directory) stands where the (?:file|directory)"
        r" should go \(--delete lets it be replaced\)$",
        done.stderr,
        re.MULTILINE,
    )
    refused = {
        f"x{number:02}"
        for number, (ours, theirs) in enumerate(PAIRS)
        if (ours in DIRECTORIES) != (theirs in DIRECTORIES)
    }
    assert done.code == 1
    assert set(told) == refused
    assert len(told) == len(done.stderr.splitlines())
    for path in before.keys() | wanted.keys():
        if path.split("/")[0] in refused:
            assert after.get(path) == before.get(path), path
        elif path in wanted:
            assert after[path] == wanted[path], path
    assert states(tmp_path / "outside") == outside


def test_a_directory_in_the_place_of_many(
    fastsync: Fastsync, plant: Plant, picture: Callable[..., Picture], tmp_path: Path
) -> None:
    """More than a page of entries on both sides of what changed its kind."""
    files = {f"f{index:04}": str(index) for index in range(600)}
    plant(tmp_path / "src", {**files, "f0300": "", "f0300x/inner": "i"} | {"f0299": Path("f0300")})
    plant(tmp_path / "dest", {**files, "f0300x": "a file"})
    (tmp_path / "dest/f0300").unlink()
    plant(tmp_path / "dest", {f"f0300/{index}/{index}": "" for index in range(300)})
    assert fastsync("sync", "--delete", "--max-delete", "100%", "src", "dest") == (0, "", "")
    assert picture(tmp_path / "dest") == picture(tmp_path / "src")
