"""The smaller verbs through the real command: what they print, and what they end with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Fastsync, Plant, Spec

TREE: Spec = {
    "a": "a" * 2000,
    "d/b": "b",
    "d/e/c": "cc",
    "link": Path("d/b"),
    "empty/": "",
}


@pytest.fixture
def tree(plant: Plant, tmp_path: Path) -> Path:
    return plant(tmp_path / "t", TREE)


# -- rm ----------------------------------------------------------------------------------------------


def test_rm(fastsync: Fastsync, tree: Path) -> None:
    assert fastsync("rm", "t/a", "t/link") == (0, "", "")
    assert sorted(os.listdir(tree)) == ["d", "empty"]
    assert fastsync("rm", "-v", "-R", "t") == (
        0,
        "",
        "deleted t/d/b\ndeleted t/d/e/c\ndeleted t/empty\ndeleted t/d/e\ndeleted t/d\ndeleted ./t\n",
    )
    assert not tree.exists()


def test_rm_says_what_it_would_do(fastsync: Fastsync, tree: Path) -> None:
    done = fastsync("rm", "-rn", "--exclude", "e", "t")
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout == "".join(
        f"would delete t/{name} (asked for)\n" for name in ("a", "d/b", "link")
    )
    assert len(list(tree.rglob("*"))) == 7


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["t"], 2),
        (["nope"], 3),
        (["-f", "nope"], 0),
        (["-R", "/"], 2),
        (["-R", "t/.."], 2),
        (["-R", "."], 2),
        ([], 2),
    ],
)
def test_rm_refuses(fastsync: Fastsync, tree: Path, arguments: list[str], code: int) -> None:
    done = fastsync("rm", *arguments)
    assert (done.code, done.stdout) == (code, "")
    assert len(list(tree.rglob("*"))) == 7


def test_rm_as_json(fastsync: Fastsync, tree: Path) -> None:
    done = fastsync("rm", "--json", "t/a", "t/link", "t/nope")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.code == 3
    assert [(line["operation"], line["success"]) for line in lines] == [
        ("scan", False),
        ("delete", True),
        ("delete", True),
        ("summary", False),
    ]
    assert lines[-1]["deleted"] == 2


# -- mv ----------------------------------------------------------------------------------------------


def test_mv(fastsync: Fastsync, tree: Path, tmp_path: Path) -> None:
    """By copies, where a rule may leave something behind."""
    before = (tree / "d/e/c").read_bytes(), (tree / "d/e/c").stat().st_mtime_ns
    assert fastsync("mv", "--size-only", "t", "u") == (0, "", "")
    assert not tree.exists()
    moved = tmp_path / "u/d/e/c"
    assert (moved.read_bytes(), moved.stat().st_mtime_ns) == before
    assert os.readlink(tmp_path / "u/link") == "d/b"
    assert (tmp_path / "u/empty").is_dir()


def test_mv_on_one_disk_is_another_name(
    fastsync: Fastsync, tree: Path, tmp_path: Path, plant: Plant
) -> None:
    plant(tmp_path, {"x": "x", "old": "old", "into/t/there": "there"})
    os.link(tmp_path / "x", tmp_path / "linked")
    tops = {name: (tmp_path / name).stat().st_ino for name in ("t", "x")}
    assert fastsync("mv", "-n", "t", "new/u").stdout == "would rename t -> new/u\n"
    assert fastsync("mv", "t", "new/u") == (0, "", "")
    assert (tmp_path / "new/u").stat().st_ino == tops["t"]
    assert fastsync("mv", "x", "old") == (0, "", "")
    assert (tmp_path / "old").stat().st_ino == tops["x"]
    # What is there already is merged with, and another name of the file is no place to move it to.
    (tmp_path / "new/u").rename(tree)
    assert fastsync("mv", "t", "into/") == (0, "", "")
    assert (tmp_path / "into/t/there").exists()
    assert (tmp_path / "into/t").stat().st_ino != tops["t"]
    fastsync("mv", "old", "linked")
    assert (tmp_path / "linked").read_text() == "x"


def test_mv_to_another_disk_copies(fastsync: Fastsync, tree: Path, tmp_path: Path) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is only one disk")
    with tempfile.TemporaryDirectory(dir=shm) as other:
        assert "would copy" in fastsync("mv", "-n", "t", f"{other}/u").stdout
        assert fastsync("mv", "t", f"{other}/u") == (0, "", "")
        assert (Path(other) / "u/d/e/c").exists()
    assert not tree.exists()


def test_mv_keeps_what_a_filter_hides(fastsync: Fastsync, tree: Path, tmp_path: Path) -> None:
    assert fastsync("mv", "--exclude", "c", "t", "u").code == 0
    assert sorted(str(path.relative_to(tree)) for path in tree.rglob("*")) == ["d", "d/e", "d/e/c"]
    assert (tmp_path / "u/d/b").exists()


def test_mv_keeps_what_it_could_not_read(
    fastsync: Fastsync, tree: Path, tmp_path: Path, unprivileged: list[str]
) -> None:
    (tree / "d/b").chmod(0)
    done = fastsync("mv", "--size-only", "t", "u", under=unprivileged)
    assert done.code == 1
    assert [str(path.relative_to(tree)) for path in tree.rglob("*")] == ["d", "d/b"]
    assert not (tmp_path / "u/d/b").exists()


# -- du, stat, mkdir, presign, jobs ------------------------------------------------------------------


def test_du(fastsync: Fastsync, tree: Path) -> None:
    assert fastsync("du", "t").stdout.split() == ["2003", "3", "files", "t"]
    lines = [line.split() for line in fastsync("du", "--max-depth", "1", "t/").stdout.splitlines()]
    assert lines == [
        ["3", "2", "files", "t/d"],
        ["0", "0", "files", "t/empty"],
        ["2003", "3", "files", "t/"],
    ]
    assert fastsync("du", "-H", "t").stdout.split()[:2] == ["1.96", "KiB"]
    done = fastsync("du", "--json", "t/d", "nope")
    assert done.code == 3
    told, failure = map(json.loads, done.stdout.splitlines())
    assert (failure["operation"], failure["exit_code"]) == ("error", 3)
    assert told == {
        "operation": "du",
        "success": True,
        "source": "t/d",
        "path": "",
        "files": 2,
        "size": 3,
    }


def test_du_is_not_cut_short_by_the_configuration(fastsync: Fastsync, tree: Path) -> None:
    assert fastsync("du", "t", env={"FASTSYNC_MAX_DEPTH": "1"}).stdout.split()[0] == "2003"


def test_stat(fastsync: Fastsync, tree: Path) -> None:
    done = fastsync("stat", "t/a", "t/link")
    assert done.code == 0
    assert re.search(r"^t/a\n  kind: file\n  size: 2000 \(1\.95 KiB\)\n", done.stdout)
    assert "\n  target: d/b\n" in done.stdout
    told = json.loads(fastsync("stat", "--json", "-L", "t/link").stdout)
    assert (told["operation"], told["kind"], told["size"]) == ("stat", "file", 1)
    assert fastsync("stat", "nope", "t/a").code == 3


def test_mkdir(fastsync: Fastsync, tree: Path, tmp_path: Path) -> None:
    assert fastsync("mkdir", "-p", "x/y/z", "t/d") == (0, "", "")
    assert (tmp_path / "x/y/z").is_dir()
    assert fastsync("mkdir", "t/a").code == 1


def test_presign_is_not_for_disks(fastsync: Fastsync, tree: Path) -> None:
    done = fastsync("presign", "t/a")
    assert (done.code, done.stdout) == (2, "")
    assert "no signed links" in done.stderr


def test_jobs(fastsync: Fastsync, tmp_path: Path) -> None:
    assert fastsync("jobs") == fastsync("jobs", "list") == (0, "", "")
    assert fastsync("jobs", "clean") == (0, "", "")
    assert not (tmp_path / "home").exists()  # looking leaves nothing
    state = tmp_path / "state"
    code = (
        "import sys; from fastsync.journal import Journal;"
        f"Journal({str(state)!r}).note('s3://bucket/dir/', {{}}, 'a\\x1bb', 'ticket')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    listed = fastsync("jobs", env={"FASTSYNC_STATE": str(state)})
    assert (listed.code, listed.stderr) == (0, "")
    assert re.fullmatch(r"\S+ \S+  cut off +pid \d+ +s3://bucket/dir/a\\x1bb\n", listed.stdout)
    line = json.loads(fastsync("jobs", "list", "--json", env={"FASTSYNC_STATE": str(state)}).stdout)
    assert (line["operation"], line["state"]) == ("job", "gone")
    would = fastsync("jobs", "clean", "-n", env={"FASTSYNC_STATE": str(state)})
    assert would.stdout == "would drop s3://bucket/dir/a\\x1bb (unfinished upload)\n"


def test_jobs_clean_says_what_it_drops(fastsync: Fastsync, tmp_path: Path) -> None:
    """Not "deleted FILE": the file of that name stays."""
    state, place = tmp_path / "state", tmp_path.resolve()
    (tmp_path / "file").write_text("stays")
    half = tmp_path / ".fs-0123456789abcdef.part"
    half.write_text("half")
    half.chmod(0o700)  # those of others are let be
    ticket = json.dumps(["", half.name, half.stat().st_dev, half.stat().st_ino])
    code = (
        "import sys; from fastsync.journal import Journal;"
        f"Journal({str(state)!r}).note({f'file://{place}'!r}, {{}}, 'file', {ticket!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    done = fastsync("jobs", "clean", "-v", env={"FASTSYNC_STATE": str(state)})
    assert (done.code, done.stderr) == (0, f"dropped {place}/file (unfinished download)\n")
    assert ((tmp_path / "file").read_text(), half.exists()) == ("stays", False)


# -- ls ----------------------------------------------------------------------------------------------


def test_ls_with_etags_and_versions(fastsync: Fastsync, tree: Path) -> None:
    assert fastsync("ls", "--etag", "t/a").stdout.split() == ["-", "a"]
    done = fastsync("ls", "--all-versions", "t")
    assert (done.code, done.stdout) == (2, "")
    assert "versions" in done.stderr


def test_brackets_in_a_local_name_are_no_wildcards(fastsync: Fastsync, tmp_path: Path) -> None:
    (tmp_path / "[x]*").write_text("content")
    assert fastsync("ls", "[x]*").stdout == "[x]*\n"
    assert fastsync("cp", "[x]*", "y").code == 0
    assert fastsync("rm", "[x]*").code == 0
    assert os.listdir(tmp_path) == ["y"]


# -- options -----------------------------------------------------------------------------------------


def test_an_option_without_effect_is_noted(fastsync: Fastsync, tree: Path) -> None:
    assert fastsync("cp", "--acl", "private", "t/a", "b").stderr == ""
    done = fastsync("cp", "-v", "--acl", "private", "--metadata", "a=1", "t/a", "c")
    assert done.stderr.endswith("fastsync: without effect on these places: --acl, --metadata\n")


def test_repeated_metadata_is_checked(fastsync: Fastsync, tree: Path) -> None:
    done = fastsync("cp", "--metadata", "a=1", "--metadata", "wrong", "t/a", "b")
    assert (done.code, "key=value" in done.stderr) == (2, True)


def test_conflicts_cannot_be_seen_on_a_disk(fastsync: Fastsync, tree: Path, tmp_path: Path) -> None:
    done = fastsync("cp", "--fail-on-conflict", "t/a", "b")
    assert (done.code, "fail-on-conflict" in done.stderr) == (2, True)
    assert not (tmp_path / "b").exists()
