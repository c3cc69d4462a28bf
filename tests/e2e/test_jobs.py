"""`fastsync jobs list PLACE` and `jobs clean PLACE`: temporary files on a disk that nobody will finish."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hostile_s3 import HostileS3, refuse

if TYPE_CHECKING:
    from tests.conftest import Fastsync

Start = Callable[..., "subprocess.Popen[bytes]"]
Wait = Callable[[Callable[[], object]], None]

# Makes a temporary file in each directory, the first of which is to be gone on with; their names.
MAKE = """
import os, sys
from fastsync_local.temporary import KEPT_MODE, Names
names = Names()
for number, place in enumerate(sys.argv[1:]):
    path = os.path.join(place, names.new())
    open(path, "w").write("left")
    if not number:
        os.chmod(path, KEPT_MODE)
    print(path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def maker(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A process that is at it, and its files."""
    places = [tmp_path / "to/kept", tmp_path / "to", tmp_path / "to/deep/er", tmp_path / "beside"]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", MAKE, *places],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    made = [process.stdout.readline().rstrip("\n") for _ in places]
    yield process, made
    process.kill()
    process.communicate()


def listed(fastsync: Fastsync, *arguments: str) -> dict[str, str]:
    done = fastsync("jobs", "list", "--json", *arguments)
    assert (done.code, done.stderr) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["destination"]: line["state"] for line in lines}


def test_temporary_files(
    fastsync: Fastsync,
    tmp_path: Path,
    maker: tuple[subprocess.Popen[str], list[str]],
    debris: Callable[[Path], list[Path]],
) -> None:
    process, made = maker
    kept, above, deep, beside = (os.path.relpath(path, tmp_path) for path in made)
    (tmp_path / "to/link").symlink_to(tmp_path / "beside")
    (tmp_path / "to/.fs-0123456789abcdef.part.txt").write_text("no name of ours")
    left = len(debris(tmp_path))
    assert listed(fastsync, "to") == {kept: "elsewhere", above: "running", deep: "running"}
    assert fastsync("jobs", "clean", "to") == (0, "", "")
    assert len(debris(tmp_path)) == left, "somebody is at them"
    process.kill()
    process.wait()
    assert listed(fastsync, "to") == {kept: "elsewhere", above: "gone", deep: "gone"}
    assert listed(fastsync) == {}
    assert f"pid {process.pid}" in fastsync("jobs", "list", "to").stdout
    assert fastsync("jobs", "clean", "-n", "to").code == 0
    assert len(debris(tmp_path)) == left
    done = fastsync("jobs", "clean", "--json", "to")
    places = [json.loads(line).get("destination") for line in done.stdout.splitlines()]
    assert sorted(filter(None, places)) == sorted([above, deep])
    assert [(tmp_path / path).exists() for path in (kept, above, deep, beside)] == [
        True,
        False,
        False,
        True,
    ]
    assert fastsync("jobs", "clean", "--all", "to") == (0, "", "")
    assert not (tmp_path / kept).exists()
    assert (tmp_path / "to/.fs-0123456789abcdef.part.txt").exists()


def test_a_place_that_does_not_exist(fastsync: Fastsync) -> None:
    for verb in ("list", "clean"):
        done = fastsync("jobs", verb, "nowhere")
        assert (done.code, "nowhere" in done.stderr) == (3, True)
    assert fastsync("jobs", "list", "http://127.0.0.1/x").code == 2


def test_uploads_that_no_journal_knows(
    fastsync: Fastsync, hostile_s3: HostileS3, started: Start, eventually: Wait, tmp_path: Path
) -> None:
    """A lost journal leaves no upload behind for ever: the store is asked. Whose they are is not known."""
    fastsync.environ |= hostile_s3.environ | {"XDG_STATE_HOME": str(tmp_path / "state")}
    hostile_s3.put("bucket", "there", b"x")
    (tmp_path / "big").write_bytes(os.urandom(12 << 20))
    process = started("cp", "-c", "5M", "--bwlimit", "1M", "big", "s3://bucket/deep/big")
    eventually(lambda: bool(hostile_s3.open_uploads))
    process.kill()
    process.wait(10)
    shutil.rmtree(tmp_path / "state")
    assert listed(fastsync) == {}
    assert listed(fastsync, "s3://bucket/other") == {}
    known = {"s3://bucket/deep/big": "elsewhere"}
    for place in ("s3://bucket", "s3://bucket/deep", "s3://bucket/deep/big"):
        assert listed(fastsync, place) == known
    assert fastsync("jobs", "clean", "s3://bucket").code == 0
    assert fastsync("jobs", "clean", "--all", "-n", "s3://bucket").code == 0
    assert hostile_s3.open_uploads == ["deep/big"]
    done = fastsync("jobs", "clean", "--all", "-v", "s3://bucket/deep")
    assert done.code == 0
    assert "dropped s3://bucket/deep/big (unfinished upload)" in done.stderr
    assert hostile_s3.open_uploads == []


def test_a_bucket_that_tells_of_no_uploads(fastsync: Fastsync, hostile_s3: HostileS3) -> None:
    fastsync.environ |= hostile_s3.environ
    hostile_s3.put("bucket", "there", b"x")
    hostile_s3.on("ListMultipartUploads", refuse(403, "AccessDenied"), times=None)
    done = fastsync("jobs", "list", "s3://bucket")
    assert (done.code, done.stdout) == (0, "")
    assert "it cannot be told which uploads are unfinished there" in done.stderr
