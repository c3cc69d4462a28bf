"""`--explain PATH`: the reason for each fate, and nothing done."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Fastsync, Plant


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("new", "would be copied: new"),
        ("./changed", "would be copied: size differs"),
        ("same", "skipped: unchanged (compared by mtime)"),
        ("old", "would be deleted: not in the source"),
        ("old.tmp", "protected: excluded by --exclude '*.tmp'"),
        ("new.tmp", "left out: excluded by --exclude '*.tmp'"),
        ("cache/x", "left out: excluded: cache/ is excluded by --exclude cache/"),
        ("dir", "nothing to do: it is there already"),
        ("file", "would be copied: replaces a directory"),
        ("tree", "would be made: replaces a file"),
        (
            "nowhere",
            "is not there: neither the source nor the destination has it below what was named",
        ),
    ],
)
def test_why(fastsync: Fastsync, plant: Plant, tmp_path: Path, path: str, told: str) -> None:
    source = {"new": "n", "changed": "changed", "same": "s", "new.tmp": "", "cache/x": ""}
    plant(tmp_path / "a", {**source, "dir/x": "", "file": "", "tree/x": ""})
    other = {"old": "", "old.tmp": "", "file/x": "", "tree": ""}
    plant(tmp_path / "b", {"changed": "c", "same": "s", "dir/x": "", **other})
    for name in ("a/same", "b/same"):
        os.utime(tmp_path / name, (1, 1))
    options = ("--delete", "--exclude", "*.tmp", "--exclude", "cache/", "--explain", path)
    done = fastsync("sync", *options, "a", "b")
    assert done == (0, f"{path.removeprefix('./')}: {told}\n", "")
    assert (tmp_path / "b/old").exists()
    assert not (tmp_path / "b/new").exists()


def test_the_line_of_a_file_of_rules(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(
        tmp_path, {"a/x.tmp": "", "a/y": "", "rules": "# what stays\n\n- *.tmp\n", "only": "*.c\n"}
    )
    done = fastsync("sync", "--filter-from", "rules", "--explain", "x.tmp", "a", "b")
    assert done.stdout == "x.tmp: left out: excluded by '- *.tmp' (rules:3)\n"
    done = fastsync("sync", "--exclude-from", "only", "--explain", "y", "a", "b")
    assert done.stdout == "y: would be copied: new\n"


@pytest.mark.parametrize("path", [".", "./", "/"])
def test_a_tree_is_not_explained(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, path: str
) -> None:
    plant(tmp_path / "a", {"x": ""})
    done = fastsync("sync", "--explain", path, "a", "b")
    assert done.code == 2
    assert "one path below the source" in done.stderr


def test_what_is_not_deleted(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path / "a", {"d/": ""})
    plant(tmp_path / "b", {f"d/{number}": "" for number in range(101)})
    done = fastsync("sync", "--explain", "d/7", "a", "b")
    assert "stays: the source does not have it, and --delete is not given" in done.stdout
    done = fastsync("cp", "-R", "--explain", "d/7", "a/", "b")
    assert "stays: " in done.stdout
    done = fastsync("sync", "--delete", "--json", "--explain", "d/7", "a", "b")
    assert done.code == 6
    assert "101 of 101 files (100 %) would be deleted" in done.stdout
