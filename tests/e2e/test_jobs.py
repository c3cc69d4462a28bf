"""`fastsync jobs list PLACE` and `jobs clean PLACE`: temporary files on a disk that nobody will finish."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Fastsync

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
