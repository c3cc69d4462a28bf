"""`fastsync check`: every kind of difference, by every kind of comparison, and manifests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from s3_servers import S3Server

if TYPE_CHECKING:
    from hostile_s3 import HostileS3

    from tests.conftest import Fastsync, Plant, Spec

TREE: Spec = {"a": "aaa", "d/b": "bbb", "d/new\nline\\": "odd", "big": b"x" * 3_000_000}


@pytest.fixture
def pair(plant: Plant, fastsync: Fastsync, tmp_path: Path) -> Path:
    plant(tmp_path / "a", TREE)
    assert fastsync("sync", "--manifest", "sums", "a", "b").code == 0
    return tmp_path / "b"


def spoil(path: Path, content: bytes) -> None:
    """Other content under the same size and time."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_another_kind_is_one_difference(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path / "a", {"file": "", "tree/x": ""})
    plant(tmp_path / "b", {"file/x": "", "tree": ""})
    done = fastsync("check", "a", "b")
    assert done.code == 1
    assert sorted(done.stdout.splitlines()) == [
        "* file (replaces a directory)",
        "* tree (replaces a file)",
        "+ tree/x (only in the source)",
        "- file/x (only in the destination)",
    ]


def test_what_differs(pair: Path, fastsync: Fastsync, tmp_path: Path) -> None:
    assert fastsync("check", "a", "b") == (0, "", "")
    (pair / "a").write_bytes(b"aa")
    (pair / "extra").touch()
    shutil.rmtree(pair / "d")
    before = sorted(tmp_path.rglob("*"))
    done = fastsync("check", "--summarize", "--combined", "report", "a", "b")
    assert done.code == 1
    lines = done.stdout.splitlines()
    assert set(lines[:5]) == {
        "* a (size differs)",
        "- extra (only in the destination)",
        "+ d/ (only in the source)",
        "+ d/b (only in the source)",
        r"+ d/new\nline\\ (only in the source)",
    }
    assert lines[5] == "Same: 1 files"
    assert lines[-1] == "Compared by: mtime"
    report = (tmp_path / "report").read_text().splitlines()
    assert "= big" in report
    assert r"+ d/new\nline\\" in report
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "report"])


def test_a_manifest_has_what_failed(fastsync: Fastsync, hostile_s3: HostileS3) -> None:
    name = "b" * 300  # longer than a disk takes
    hostile_s3.put("bucket", "d/good", b"good")
    hostile_s3.put("bucket", f"d/{name}", b"bad")
    fastsync.environ |= hostile_s3.environ
    assert fastsync("sync", "--manifest", "sums", "s3://bucket/d", "b").code == 1
    told = fastsync("check", "--manifest", "sums", "b").stdout
    assert told == f"+ {name} (only in the manifest)\n"


@pytest.mark.parametrize("how", ["--checksum", "--download"])
@pytest.mark.parametrize("name", ["a", "big"])
def test_content(pair: Path, fastsync: Fastsync, how: str, name: str) -> None:
    for side in ("a", "b"):
        os.utime(pair.parent / side / name, (1, 1))
    spoil(pair / name, (pair / name).read_bytes()[:-1] + b"!")
    assert fastsync("check", "a", "b").code == 0
    done = fastsync("check", how, "--json", "a", "b")
    assert done.code == 1
    *items, summary = map(json.loads, done.stdout.splitlines())
    different = {"operation": "check", "success": False, "mark": "*", "path": name}
    assert different | {"reason": "content differs"} in items
    assert (summary["same"], summary["different"], summary["exit_code"]) == (3, 1, 1)


def test_a_bucket(pair: Path, fastsync: Fastsync, moto: S3Server) -> None:
    fastsync.environ.update(moto.environ)
    place = f"s3://{moto.new_bucket()}/b"
    (pair.parent / "a/d/new\nline\\").unlink()
    assert fastsync("sync", "--manifest", "far", "a", place).code == 0
    assert fastsync("check", "--checksum", "a", place) == (0, "", "")
    assert fastsync("check", "--manifest", "far", place) == (0, "", "")
    spoil(pair.parent / "a/a", b"AAA")
    done = fastsync("check", "--download", "a", place)
    assert (done.code, done.stdout) == (1, "* a (content differs)\n")


def test_manifest(pair: Path, fastsync: Fastsync) -> None:
    """The source is gone; sha256sum reads it as well."""
    shutil.rmtree(pair.parent / "a")
    assert fastsync("check", "--manifest", "sums", "b") == (0, "", "")
    subprocess.run(["sha256sum", "--strict", "-c", "../sums"], cwd=pair, check=True)
    spoil(pair / "a", b"AAA")
    done = fastsync("check", "--manifest", "sums", "b")
    assert (done.code, done.stdout) == (4, "* a (content differs)\n")
    (pair / "a").rename(pair / "c")
    done = fastsync("check", "--manifest", "sums", "b")
    assert done.code == 1
    assert sorted(done.stdout.splitlines()) == [
        "+ a (only in the manifest)",
        "- c (not in the manifest)",
    ]


def test_a_manifest_of_cp(pair: Path, fastsync: Fastsync) -> None:
    assert fastsync("cp", "-R", "--manifest", "two", "a", "b/d", "c/").code == 0
    text = (pair.parent / "two").read_text()
    assert "  a/d/b\n" in text
    assert "  d/b\n" in text
    assert fastsync("check", "--manifest", "two", "c") == (0, "", "")
    assert fastsync("cp", "--manifest", "one", "a/big", "renamed").code == 0
    assert fastsync("check", "--manifest", "one", "renamed") == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["a"], 2, "two places"),
        (["--manifest", "sums", "a", "b"], 2, "one place"),
        (["--manifest", "missing", "b"], 2, "missing: it cannot be read"),
        (["--manifest", "bad", "b"], 2, "bad:2: it is no line of a manifest"),
        (["nowhere", "b"], 3, "does not exist"),
        (["--manifest", "sums", "nowhere"], 3, "no such file"),
        (["--combined", "no/where", "a", "b"], 2, "cannot be written"),
    ],
)
def test_mistakes(
    pair: Path, fastsync: Fastsync, arguments: list[str], code: int, told: str
) -> None:
    (pair.parent / "bad").write_text(f"{'0' * 64}  fine\nwhat\n")
    done = fastsync("check", *arguments)
    assert done.code == code, done
    assert told in done.stderr


@pytest.mark.parametrize("how", [(), ("--checksum",), ("--download",)])
@pytest.mark.parametrize("size", [10, 3_000_000])
def test_two_files(fastsync: Fastsync, tmp_path: Path, how: tuple[str, ...], size: int) -> None:
    """The one with the other, and not with a third that has the first one's name beside the second."""
    (tmp_path / "d").mkdir()
    for name, content, when in (("a", b"1", 1), ("d/b", b"1", 2), ("d/a", b"2", 1)):
        (tmp_path / name).write_bytes(content * size)
        os.utime(tmp_path / name, (1_000_000_000 + when,) * 2)
    done = fastsync("check", *how, "a", "d/b")
    assert done.code == 1, done
    assert "only the time differs" in done.stdout
    assert fastsync("sync", "a", "d/b").code == 0
    assert (tmp_path / "d/b").stat().st_mtime == 1_000_000_001
    (tmp_path / "d/b").write_bytes(b"3" * size)
    os.utime(tmp_path / "d/b", (1_000_000_002,) * 2)
    assert "content differs" in fastsync("check", "--checksum", "a", "d/b").stdout
