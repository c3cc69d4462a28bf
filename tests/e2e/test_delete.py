"""What `sync --delete` deletes, and above all what it does not."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Fastsync, Picture, Plant


def deleted(stdout: str) -> int:
    found = re.search(r"^Deleted: (\d+) files$", stdout, re.MULTILINE)
    assert found
    return int(found[1])


def files(count: int, prefix: str = "f") -> dict[str, str | bytes | Path]:
    return {f"{prefix}{index:03}": str(index) for index in range(count)}


def test_what_the_source_does_not_have_goes(
    fastsync: Fastsync, plant: Plant, picture: Callable[..., Picture], tmp_path: Path
) -> None:
    plant(tmp_path / "src", {"a": "a", "dir/b": "b"})
    plant(
        tmp_path / "dest",
        {
            "a": "old",
            "extra": "e",
            "dir/extra": "e",
            "gone/deep/deeper/file": "f",
            "gone/empty/": "",
            "link": Path("../outside"),
            "new\nline": "n",
            os.fsdecode(b"bad\xff"): "b",
        },
    )
    plant(tmp_path / "outside", {"precious": "p"})
    done = fastsync("sync", "--delete", "--summarize", "-v", "src", "dest")
    assert done.code == 0
    assert picture(tmp_path / "dest") == picture(tmp_path / "src")
    assert (tmp_path / "outside/precious").read_text() == "p"
    assert deleted(done.stdout) == 6
    assert "deleted dest/gone/deep/deeper/file\n" in done.stderr
    assert "deleted dest/new\\nline\n" in done.stderr


def test_nothing_goes_unasked(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path, {"src/a": "a", "dest/extra": "e"})
    for options in (
        (),
        ("--delete-excluded",),
        ("--max-delete", "100%"),
        ("--allow-empty-source",),
    ):
        fastsync("sync", *options, "src", "dest")
        assert (tmp_path / "dest/extra").exists()


def test_dry_run_tells_and_does_nothing(
    fastsync: Fastsync,
    plant: Plant,
    states: Callable[[Path], dict[str, tuple[int, int]]],
    tmp_path: Path,
) -> None:
    plant(tmp_path, {"src/a": "a", "src/x": "x", "dest/a": "b", "dest/gone/b": "b", "dest/x/y": ""})
    before = states(tmp_path)
    done = fastsync("sync", "--delete", "-n", "--summarize", "src", "dest")
    assert (done.code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:6] == [
        "would copy src/a -> dest/a (time differs, 1 B)",
        "would delete dest/x/y (not in the source)",
        "would delete dest/x (makes way for a file)",
        "would delete dest/gone/b (not in the source)",
        "would delete dest/gone (not in the source)",
        "would copy src/x -> dest/x (replaces a directory, 1 B)",
    ]
    assert deleted(done.stdout) == 2
    assert states(tmp_path) == before


# -- what is excluded is protected -------------------------------------------------------------------


@pytest.mark.parametrize("deletes", [(), ("--delete",)])
def test_ignore_existing_leaves_alone_what_is_of_another_kind(
    fastsync: Fastsync,
    plant: Plant,
    states: Callable[[Path], dict[str, tuple[int, int]]],
    tmp_path: Path,
    deletes: tuple[str, ...],
) -> None:
    plant(tmp_path / "src", {"a": "file", "d/x": "x", "d/e/y": "y"})
    dest = plant(tmp_path / "dest", {"a/deep/b": "old", "a/c": "old", "d": "old"})
    before = states(dest)
    assert fastsync("sync", *deletes, "--ignore-existing", "src", "dest") == (0, "", "")
    assert states(dest) == before


def test_existing_replaces_what_is_of_another_kind(
    fastsync: Fastsync, plant: Plant, picture: Callable[..., Picture], tmp_path: Path
) -> None:
    """As rsync does: a name that is there is existing, whatever it is the name of."""
    plant(tmp_path / "src", {"a": "file", "d/x": "x", "new": ""})
    dest = plant(tmp_path / "dest", {"a/deep/b": "old", "d": "old", "z": "old"})
    assert fastsync("sync", "--delete", "--existing", "src", "dest") == (0, "", "")
    assert {path.name for path in dest.rglob("*")} == {"a", "d"}
    assert (dest / "a").read_text() == "file"
    assert (dest / "d").is_dir()


def test_what_is_excluded_stays(
    fastsync: Fastsync, plant: Plant, picture: Callable[..., Picture], tmp_path: Path
) -> None:
    plant(
        tmp_path,
        {"src/a": "a", "src/a.tmp": "", "dest/b": "", "dest/b.tmp": "", "dest/c/d.tmp": ""},
    )
    done = fastsync("sync", "--delete", "--exclude", "*.tmp", "src", "dest")
    assert done == (0, "", "")
    assert set(picture(tmp_path / "dest")) == {"a", "b.tmp", "c", "c/d.tmp"}
    done = fastsync("sync", "--delete", "--delete-excluded", "--exclude", "*.tmp", "src", "dest")
    assert done == (0, "", "")
    assert set(picture(tmp_path / "dest")) == {"a"}


def test_an_excluded_directory_stays_with_all_in_it(
    fastsync: Fastsync, plant: Plant, picture: Callable[..., Picture], tmp_path: Path
) -> None:
    plant(
        tmp_path, {"src/a": "a", "dest/cache/x/y": "", "dest/cache/z": "", "dest/old/cache/w": ""}
    )
    fastsync("sync", "--delete", "--exclude", "cache/", "src", "dest")
    assert set(picture(tmp_path / "dest")) == {
        "a",
        "cache",
        "cache/x",
        "cache/x/y",
        "cache/z",
        "old",
        "old/cache",
        "old/cache/w",
    }


@pytest.mark.parametrize(
    "bound",
    [("--max-size", "3"), ("--min-size", "5"), ("--min-age", "1d"), ("--max-age", "1d")],
)
def test_files_out_of_bounds_stay(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, bound: tuple[str, str]
) -> None:
    plant(tmp_path, {"src/a": "four", "src/b": "b", "dest/big": "four", "dest/big-new": "four"})
    os.utime(tmp_path / "dest/big-new")
    os.utime(tmp_path / "src/a")
    fastsync("sync", "--delete", "--allow-empty-source", *bound, "src", "dest")
    left = {"--max-size": {"big", "big-new"}, "--min-size": {"big", "big-new"}}
    ages = {"--min-age": {"big-new"}, "--max-age": {"big"}}
    assert set(os.listdir(tmp_path / "dest")) & {"big", "big-new"} == {**left, **ages}[bound[0]]


def test_what_lies_deeper_than_max_depth_stays(
    fastsync: Fastsync, plant: Plant, picture: Callable[..., Picture], tmp_path: Path
) -> None:
    plant(tmp_path, {"src/a": "a", "dest/b": "", "dest/c/d/e": ""})
    done = fastsync("sync", "--delete", "--max-depth", "1", "src", "dest")
    assert done == (0, "", "")
    assert set(picture(tmp_path / "dest")) == {"a", "c", "c/d", "c/d/e"}


# -- the gate ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "goes"),
    [("3", False), ("4", True), ("0", False), ("39%", False), ("40%", True), ("100%", True)],
)
def test_max_delete(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, limit: str, goes: bool
) -> None:
    plant(tmp_path, {"src/new": "new"} | {f"src/{name}": "" for name in files(6)})
    plant(tmp_path / "dest", {**files(6), **files(4, "gone")})
    for dry in (("-n",), ()):
        done = fastsync("sync", "--delete", *dry, "--max-delete", limit, "src", "dest")
        assert done.code == (0 if goes else 6)
        if not goes:
            allowed = limit.replace("%", " %")
            assert re.fullmatch(
                rf"fastsync: not deleting: 4 of 10 files \(40 %\) would be deleted, "
                rf"--max-delete allows {allowed}\n",
                done.stderr,
            )
    left = [name for name in os.listdir(tmp_path / "dest") if name.startswith("gone")]
    assert len(left) == (0 if goes else 4)
    assert (tmp_path / "dest/new").exists()  # the copies are made all the same


@pytest.mark.parametrize(
    ("kept", "gone", "goes"),
    [
        (0, 100, True),  # most, but not many
        (99, 101, False),
        (101, 101, True),  # many, but not most
        (1, 5, True),
    ],
)
def test_by_default_many_and_most_are_refused(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, kept: int, gone: int, goes: bool
) -> None:
    plant(tmp_path / "src", {**files(kept), "new": ""})
    plant(tmp_path / "dest", {**files(kept), **files(gone, "gone")})
    done = fastsync("sync", "--delete", "src", "dest")
    assert done.code == (0 if goes else 6)
    assert ("not deleting: " in done.stderr) != goes
    assert len(os.listdir(tmp_path / "dest")) == kept + 1 + (0 if goes else gone)
    if not goes:
        assert "--max-delete 100% allows it" in done.stderr
        done = fastsync("sync", "--delete", "--max-delete", "100%", "--summarize", "src", "dest")
        assert (done.code, deleted(done.stdout)) == (0, gone)


def test_what_stands_in_the_way_counts_too(
    fastsync: Fastsync, plant: Plant, picture: Callable[..., Picture], tmp_path: Path
) -> None:
    plant(tmp_path, {"src/x": "now a file", "src/y/z": "now a directory"})
    plant(tmp_path / "dest", {"x/1": "", "x/2": "", "x/3": "", "y": "was a file"})
    before = picture(tmp_path / "dest")
    done = fastsync("sync", "--delete", "--max-delete", "3", "src", "dest")
    assert done.code == 6
    assert picture(tmp_path / "dest") == before
    assert done.stderr.count("what stands in its way was not deleted") >= 2


# -- an empty, missing or closed source --------------------------------------------------------------


def test_an_empty_source(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path, {"src/": "", "dest/a": "a", "new/": ""})
    done = fastsync("sync", "--delete", "src", "dest")
    assert done == (
        6,
        "",
        "fastsync: not deleting: the source is empty (--allow-empty-source if that is right)\n",
    )
    assert os.listdir(tmp_path / "dest") == ["a"]
    # With nothing to delete, it is no trouble.
    assert fastsync("sync", "--delete", "src", "new") == (0, "", "")
    assert fastsync("sync", "--delete", "--allow-empty-source", "src", "dest") == (0, "", "")
    assert os.listdir(tmp_path / "dest") == []


def test_a_source_that_filters_leave_empty(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    plant(tmp_path, {"src/a.txt": "a", "dest/b": "b"})
    done = fastsync("sync", "--delete", "--exclude", "*.txt", "src", "dest")
    assert done.code == 6
    assert os.listdir(tmp_path / "dest") == ["b"]


def test_allow_empty_source_does_not_lift_the_gate(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    (tmp_path / "src").mkdir()
    plant(tmp_path / "dest", files(101))
    done = fastsync("sync", "--delete", "--allow-empty-source", "src", "dest")
    assert done.code == 6
    assert len(os.listdir(tmp_path / "dest")) == 101


@pytest.mark.parametrize("option", [(), ("--delete-missing-args",), ("--allow-empty-source",)])
def test_a_missing_source(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, option: tuple[str, ...]
) -> None:
    plant(tmp_path, {"dest/a": "a"})
    done = fastsync("sync", "--delete", *option, "src", "dest")
    assert done.code == 3
    assert "src: the source does not exist" in done.stderr
    assert os.listdir(tmp_path / "dest") == ["a"]
    done = fastsync("sync", "--delete", "--ignore-missing-args", *option, "src", "dest")
    assert done.code == 0
    assert os.listdir(tmp_path / "dest") == ["a"]


@pytest.mark.parametrize("closed", ["dir", "file", "dest/dir"])
def test_what_cannot_be_read(
    fastsync: Fastsync,
    plant: Plant,
    unprivileged: list[str],
    remove_at_end: Callable[[Path], Path],
    tmp_path: Path,
    closed: str,
) -> None:
    """The others are copied, nothing is deleted, and it is said why."""
    remove_at_end(tmp_path)
    src = plant(tmp_path / "src", {"a": "a", "dir/b": "b", "file": "f", "z": "z"})
    dest = plant(tmp_path / "dest", {"dir/b": "old", "dir/extra": "e", "extra": "e"})
    place = tmp_path / closed if "/" in closed else src / closed
    place.chmod(0)
    done = fastsync("sync", "--delete", "--summarize", "src", "dest", under=unprivileged)
    place.chmod(0o700)
    assert done.code == (1 if closed == "file" else 3)
    assert f"{place.relative_to(tmp_path)}: permission denied" in done.stderr
    assert done.stderr.count("not deleting: ") == 1
    assert deleted(done.stdout) == 0
    assert stat.S_IMODE((dest / "dir").stat().st_mode) & 0o700 == 0o700
    assert (dest / "extra").exists()
    assert (dest / "dir/extra").exists()
    assert (dest / "a").exists()
    assert (dest / "z").exists()
    # Once it can be read again, all is well again.
    assert fastsync("sync", "--delete", "src", "dest") == (0, "", "")
    assert sorted(os.listdir(dest)) == ["a", "dir", "file", "z"]


def test_a_source_that_cannot_be_read_at_all(
    fastsync: Fastsync, plant: Plant, unprivileged: list[str], tmp_path: Path
) -> None:
    plant(tmp_path, {"src/a": "a", "dest/b": "b"})
    (tmp_path / "src").chmod(0)
    done = fastsync("sync", "--delete", "src", "dest", under=unprivileged)
    (tmp_path / "src").chmod(0o700)
    assert done.code in (1, 3)
    assert "src: permission denied" in done.stderr
    assert os.listdir(tmp_path / "dest") == ["b"]


def test_what_cannot_be_written(
    fastsync: Fastsync,
    plant: Plant,
    unprivileged: list[str],
    remove_at_end: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    """A copy that failed forbids the deletes, too."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a directory that is not ours")
    remove_at_end(tmp_path)
    plant(tmp_path / "src", {"a": "a", "locked/b": "newer"})
    dest = plant(tmp_path / "dest", {"locked/b": "old", "extra": "e"})
    os.chown(dest / "locked", 12345, 12345)
    done = fastsync("sync", "--delete", "src", "dest", under=unprivileged)
    assert done.code == 1
    assert re.fullmatch(
        r"fastsync: error: dest/locked/b: permission denied\n"
        r"fastsync: not deleting: a copy failed \(dest/locked/b: permission denied\)\n",
        done.stderr,
    )
    assert (dest / "extra").exists()
    assert (dest / "a").exists()
    assert (dest / "locked/b").read_text() == "old"


def test_what_cannot_be_deleted(
    fastsync: Fastsync,
    plant: Plant,
    unprivileged: list[str],
    remove_at_end: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a directory that is not ours")
    remove_at_end(tmp_path)
    plant(tmp_path / "src", {"a": "a"})
    dest = plant(tmp_path / "dest", {"locked/b": "b", "extra": "e"})
    os.chown(dest / "locked", 12345, 12345)
    done = fastsync("sync", "--delete", "--summarize", "src", "dest", under=unprivileged)
    assert done.code == 1
    assert "dest/locked/b: permission denied" in done.stderr
    assert sorted(os.listdir(dest)) == ["a", "locked"]
    assert deleted(done.stdout) == 1


# -- places that overlap -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("src", "src"),
        ("src", "src/"),
        ("src", "link"),
        ("link", "src"),
        ("src", "src/dir"),
        ("src", "src/new/deep"),
        ("src", "link/dir"),
        ("src/dir", "src"),
        ("link/dir", "src"),
        (".", "src"),
        ("src", "."),
        ("src", "src/../src"),
        ("src", "/"),
        ("/", "src"),
    ],
)
def test_places_that_overlap(
    fastsync: Fastsync,
    plant: Plant,
    picture: Callable[..., Picture],
    tmp_path: Path,
    source: str,
    target: str,
) -> None:
    plant(tmp_path, {"src/a": "a", "src/dir/b": "b", "link": Path("src")})
    before = picture(tmp_path)
    done = fastsync("sync", "--delete", source, target)
    assert (done.code, done.stderr.count("\n")) == (2, 1)
    assert re.search("the same place|is inside the", done.stderr)
    assert picture(tmp_path) == before


@pytest.mark.parametrize(("source", "target"), [("a", "b"), ("a/sub", "b"), ("a", "b/sub")])
def test_places_that_overlap_through_a_mount(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, source: str, target: str
) -> None:
    plant(tmp_path, {"a/sub/file": "precious", "a/other": "precious", "b/": ""})
    mounted = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    bind = "mount --bind a b || exit 77; "
    try:
        tried = subprocess.run([*mounted, bind], cwd=tmp_path, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare(1)")
    if tried.returncode:
        pytest.skip("nothing can be mounted here")
    command = shlex.join(map(str, fastsync.command("sync", "--delete", source, target)))
    done = subprocess.run(
        [*mounted, bind + command],
        cwd=tmp_path,
        env=fastsync.environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert "by another name" in done.stderr
    assert (tmp_path / "a/sub/file").exists()
    assert (tmp_path / "a/other").exists()


def test_places_that_only_look_as_if_they_overlapped(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    plant(tmp_path, {"src/a": "a", "src-copy/b": "b"})
    assert fastsync("sync", "--delete", "src", "src-copy") == (0, "", "")
    assert os.listdir(tmp_path / "src-copy") == ["a"]


def test_a_file_where_the_directory_should_go(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    plant(tmp_path, {"src/a": "a", "file": "precious", "link": Path("file")})
    for target in ("file", "link"):
        done = fastsync("sync", "--delete", "src", target)
        assert (done.code, done.stderr.count("\n")) == (2, 1)
        assert "a file stands where the directory should go" in done.stderr
    assert (tmp_path / "file").read_text() == "precious"
    done = fastsync("sync", "--delete", "src", "file/below")
    assert (done.code, done.stderr.count("\n")) == (2, 1)


def test_a_file_into_a_directory_deletes_nothing(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    plant(tmp_path, {"a": "a", "dest/b": "b"})
    assert fastsync("sync", "--delete", "a", "dest").code == 0
    assert sorted(os.listdir(tmp_path / "dest")) == ["a", "b"]
