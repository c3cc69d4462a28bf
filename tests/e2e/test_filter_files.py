"""Which files take part, by lists, rule files, .gitignore and depth, and what --delete makes of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from s3_servers import S3Server

if TYPE_CHECKING:
    from tests.conftest import Fastsync, Plant

TREE = {
    ".gitignore": "*.o\n/build/\n",
    "a.c": "a",
    "a.o": "a",
    "build/x": "x",
    "lib/.gitignore": "!keep.o\n",
    "lib/b.c": "b",
    "lib/keep.o": "k",
    "lib/deep/c.c": "c",
}


def files(root: Path) -> list[str]:
    return sorted(
        os.path.relpath(os.path.join(above, name), root)
        for above, _, names in os.walk(root)
        for name in names
    )


@pytest.fixture
def tree(plant: Plant, tmp_path: Path) -> Path:
    return plant(tmp_path / "src", TREE)


@pytest.fixture(params=["local", "s3"])
def remote(request: pytest.FixtureRequest, tree: Path, fastsync: Fastsync) -> Iterator[str]:
    """The source as a store sees it: a disk, and a listing without directories."""
    if request.param == "local":
        yield "src"
        return
    server: S3Server = request.getfixturevalue("moto")
    fastsync.environ.update(server.environ)
    bucket = server.new_bucket()
    assert fastsync("sync", "src", f"s3://{bucket}/src").code == 0
    yield f"s3://{bucket}/src"


def test_gitignore(tree: Path, remote: str, fastsync: Fastsync, tmp_path: Path) -> None:
    plant = tmp_path / "dest" / "build"
    plant.mkdir(parents=True)
    (plant / "kept").touch()
    (tmp_path / "dest" / "old.c").touch()
    assert fastsync("sync", "--gitignore", "--delete", remote, "dest") == (0, "", "")
    wanted = [".gitignore", "a.c", "build/kept", "lib/.gitignore", "lib/b.c", "lib/deep/c.c"]
    assert files(tmp_path / "dest") == [*wanted, "lib/keep.o"]
    done = fastsync("sync", "--gitignore", "--delete", "--delete-excluded", remote, "dest")
    assert done == (0, "", "")
    assert "build/kept" not in files(tmp_path / "dest")


def test_files_from(tree: Path, remote: str, fastsync: Fastsync, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("# mine\na.c\n./lib/\n")
    (tmp_path / "dest/lib").mkdir(parents=True)
    for name in ("sibling", "lib/old"):
        (tmp_path / "dest" / name).touch()
    done = fastsync("sync", "--files-from", "list", "--delete", remote, "dest")
    assert done == (0, "", "")
    # What the list does not name is no business of --delete.
    wanted = ["a.c", "lib/.gitignore", "lib/b.c", "lib/deep/c.c", "lib/keep.o", "sibling"]
    assert files(tmp_path / "dest") == wanted
    (tmp_path / "list").write_bytes(b"lib/b.c\0")
    assert fastsync("cp", "-R", "-0", "--files-from", "list", remote + "/", "one").code == 0
    assert files(tmp_path / "one") == ["lib/b.c"]


def test_a_listed_file_that_is_missing_deletes_nothing(
    tree: Path, remote: str, fastsync: Fastsync, tmp_path: Path
) -> None:
    (tmp_path / "list").write_text("a.c\nlib\ngone.c\n")
    (tmp_path / "dest/lib").mkdir(parents=True)
    for name in ("gone.c", "lib/old"):
        (tmp_path / "dest" / name).touch()
    done = fastsync("sync", "--files-from", "list", "--delete", remote, "dest")
    assert done.code == 3
    assert "gone.c: list names it, and it is not there" in done.stderr
    assert "not deleting" in done.stderr
    assert {"a.c", "gone.c", "lib/b.c", "lib/old"} <= set(files(tmp_path / "dest"))
    options = ("--ignore-missing-args", "--files-from", "list", "--delete")
    done = fastsync("sync", *options, remote, "dest")
    assert done.code == 0
    assert "skipped, it does not exist" in done.stderr
    assert "gone.c" in files(tmp_path / "dest")
    assert "lib/old" not in files(tmp_path / "dest")


def test_depth_protects_what_lies_deeper(tree: Path, fastsync: Fastsync, tmp_path: Path) -> None:
    (tmp_path / "dest/lib/deep").mkdir(parents=True)
    (tmp_path / "dest/only").mkdir()
    for name in ("old", "lib/old", "lib/deep/old", "only/deeper"):
        (tmp_path / "dest" / name).touch()
    options = ("--max-depth", "1", "--delete", "--delete-excluded")
    assert fastsync("sync", *options, "src", "dest") == (0, "", "")
    wanted = [".gitignore", "a.c", "a.o", "lib/deep/old", "lib/old", "only/deeper"]
    assert files(tmp_path / "dest") == wanted


def test_rules_keep_their_order_across_files(
    tree: Path, fastsync: Fastsync, tmp_path: Path
) -> None:
    (tmp_path / "rules").write_text("; a comment\n+ /a.c\n- *.c\n")
    (tmp_path / "more").write_text("deep/\n")
    done = fastsync(
        *("sync", "--filter", "+ b.c", "--filter-from", "rules", "--exclude-from", "more"),
        *("--include-from", "more", "--exclude", "*.o", "src", "dest"),
    )
    assert done == (0, "", "")
    assert files(tmp_path / "dest") == [
        ".gitignore",
        "a.c",
        "build/x",
        "lib/.gitignore",
        "lib/b.c",
    ]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--filter-from", "missing"], "missing: it cannot be read"),
        (["--exclude-from", "bad"], "bad:2: the pattern"),
        (["--filter", "a"], "'a' is no filter rule"),
        (["--files-from", "missing"], "missing: it cannot be read"),
        (["--files-from", "outside"], "leads out of the source"),
        (["--files-from", "bad", "src/a.c"], "lists what is in one directory"),
    ],
)
def test_mistakes_touch_nothing(
    tree: Path, fastsync: Fastsync, tmp_path: Path, options: list[str], told: str
) -> None:
    (tmp_path / "bad").write_text("fine\na[\n")
    (tmp_path / "outside").write_text("../x\n")
    places = ["dest"] if options[-1] == "src/a.c" else ["src", "dest"]
    done = fastsync("sync", *options, *places)
    assert done.code == 2, done
    assert told in done.stderr
    assert not (tmp_path / "dest").exists()
