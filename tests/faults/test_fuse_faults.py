"""Disks that fail: what a call is answered with is what a real filesystem under FUSE says.

Whatever fails, the old file is whole, the other files are done, the exit code says which kind it was, and
the same command brings everything to its end once the disk is well again.
"""

from __future__ import annotations

import errno
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from faulty_disk import mounted
from sshd import running_sshd

import fastsync as library
from fastsync.events import Silent, Totals

if TYPE_CHECKING:
    from tests.conftest import Fastsync, Plant, Spec

LARGE = bytes(range(256)) * 4096
TREE: Spec = {"bad": LARGE, "good": "good", "dir/other": "other"}
Debris = Callable[[Path], list[Path]]

# What fails while "bad" is written, with which options it does, and the exit code.
WRITES: dict[str, tuple[dict[str, Any], tuple[str, ...], int]] = {
    "write EIO": ({"write": {"errno": errno.EIO, "after": 300_000}}, (), 1),
    "write EDQUOT": ({"write": {"errno": errno.EDQUOT, "after": 300_000}}, (), 7),
    "write ENOSPC": ({"write": {"errno": errno.ENOSPC, "after": 300_000}}, (), 7),
    "create EROFS": ({"create": {"errno": errno.EROFS}}, (), 7),
    "fsync EIO": ({"fsync": {"errno": errno.EIO, "times": 1}}, ("--durable", "-j", "1"), 1),
    "rename EIO": ({"rename": {"errno": errno.EIO, "ending": "/bad"}}, (), 1),
    # Flush is what close(2) waits for; networked disks say there what became of the bytes.
    "close EIO": ({"flush": {"errno": errno.EIO, "times": 1}}, ("-j", "1"), 1),
    "close ENOSPC": ({"flush": {"errno": errno.ENOSPC, "times": 1}}, ("-j", "1"), 7),
    "close EDQUOT": ({"flush": {"errno": errno.EDQUOT}}, (), 7),
    "chmod EIO": ({"chmod": {"errno": errno.EIO, "times": 1}}, ("-j", "1"), 1),
    "utimens EIO": ({"utimens": {"errno": errno.EIO, "times": 1}}, ("-j", "1"), 1),
}


def contents(root: Path) -> dict[str, bytes]:
    paths = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("name", WRITES)
def test_a_write_that_fails(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, debris: Debris, name: str
) -> None:
    faults, options, code = WRITES[name]
    src = plant(tmp_path / "src", TREE)
    disk = plant(tmp_path / "disk", {"bad": "old", "keep": "keep"})
    with mounted(disk, tmp_path / "mnt", **faults):
        done = fastsync("sync", "--delete", *options, "src", "mnt")
    assert (done.code, "not deleting: " in done.stderr) == (code, True), done
    there = contents(disk)
    assert there["keep"] == b"keep"
    wanted = contents(src)
    assert [key for key in there if key != "keep" and there[key] not in (wanted[key], b"old")] == []
    if code == 1:
        assert sum(there.get(key) == wanted[key] for key in wanted) == len(wanted) - 1
    assert debris(disk) == []
    with mounted(disk, tmp_path / "again"):
        assert fastsync("sync", "--delete", "src", "again") == (0, "", "")
    assert contents(disk) == wanted
    assert debris(disk) == []


@pytest.mark.parametrize("operation", ["read", "open"])
def test_a_source_that_fails(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, debris: Debris, operation: str
) -> None:
    """In the middle of a file, or at its beginning."""
    disk = plant(tmp_path / "disk", TREE)
    dest = plant(tmp_path / "dest", {"bad": "old", "keep": "keep"})
    fault = {"errno": errno.EIO, "ending": "/bad", "after": 500_000 * (operation == "read")}
    with mounted(disk, tmp_path / "mnt", **{operation: fault}):
        done = fastsync("sync", "--delete", "mnt", "dest")
    assert (done.code, "not deleting: " in done.stderr) == (1, True), done
    assert contents(dest) == {**contents(disk), "bad": b"old", "keep": b"keep"}
    assert debris(dest) == []


@pytest.mark.parametrize("fault", ["readdir EIO", "getattr ENOENT"])
def test_a_listing_that_fails(fastsync: Fastsync, plant: Plant, tmp_path: Path, fault: str) -> None:
    """Of one directory: what is not seen there is not gone, even where the disk says "no such file" of a
    name that it lists."""
    disk = plant(tmp_path / "disk", TREE)
    dest = plant(tmp_path / "dest", {"dir/keep": "keep"})
    call, _, name = fault.partition(" ")
    faults = {call: {"errno": getattr(errno, name), "ending": "/dir"}}
    with mounted(disk, tmp_path / "mnt", **faults):
        done = fastsync("sync", "--delete", "mnt", "dest")
    assert (done.code, "not deleting: " in done.stderr) == (3, True), done
    assert contents(dest) == {"bad": LARGE, "good": b"good", "dir/keep": b"keep"}


def test_short_writes_and_slow_calls(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    """Are no errors: the rest is written, and a second is a second."""
    src = plant(tmp_path / "src", TREE)
    faults = {"write": {"short": 5000}, "rename": {"delay_s": 1.0}}
    with mounted(tmp_path / "disk", tmp_path / "mnt", **faults):
        assert fastsync("sync", "src", "mnt") == (0, "", "")
        assert fastsync("cp", "src/bad", "mnt/again", "--verify", "reread") == (0, "", "")
    assert contents(tmp_path / "disk") == {**contents(src), "again": LARGE}


class Watcher(Silent):
    """Keeps what a progress display would show."""

    def __init__(self) -> None:
        self.shown: list[tuple[float, int, int]] = []

    def progress(self, totals: Totals) -> None:
        self.shown.append((time.monotonic(), totals.files_copied, totals.bytes_done))


def test_a_disk_that_takes_its_time_for_every_call(plant: Plant, tmp_path: Path) -> None:
    """Nothing is given up for it, whatever servers are given, and what is shown moves all the time."""
    src = plant(tmp_path / "src", {**TREE, **{str(number): "x" for number in range(6)}})
    watcher = Watcher()
    with mounted(tmp_path / "disk", tmp_path / "mnt", slow_s=0.02):
        summary = library.sync(
            src, tmp_path / "mnt", observer=watcher, stall_timeout=0.01, request_timeout=0.01
        )
        assert (summary.exit_code, summary.failures, summary.totals.retries) == (0, [], 0)
    assert contents(tmp_path / "disk") == contents(src)
    times = [when for when, *_ in watcher.shown]
    counts = [count for _, *count in watcher.shown]
    assert counts == sorted(counts)
    assert len({tuple(count) for count in counts}) > 3
    longest = max(after - before for before, after in itertools.pairwise(times))
    assert longest < max(1.0, (times[-1] - times[0]) / 2)


def test_a_disk_that_keeps_other_bytes(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, debris: Debris
) -> None:
    """With --checksum every copy is read back before it appears, however it was made."""
    src = plant(tmp_path / "src", TREE)
    disk = plant(tmp_path / "disk", {"bad": "old", "keep": "keep"})
    with mounted(disk, tmp_path / "mnt", write={"flips": True}):
        for options in ((), ("--durable",)):
            done = fastsync("sync", "--checksum", "--delete", *options, "src", "mnt")
            assert (done.code, done.stderr.count("is not what was read")) == (4, 4), done
            assert contents(disk) == {"bad": b"old", "keep": b"keep"}
            assert debris(disk) == []
    with mounted(disk, tmp_path / "again"):
        assert fastsync("sync", "--checksum", "--delete", "src", "again") == (0, "", "")
    assert contents(disk) == contents(src)


def test_a_disk_that_takes_two_names_for_one(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, debris: Debris
) -> None:
    """In letters, or in Unicode forms: the first is written, the second refused, and nothing deleted."""
    plant(
        tmp_path / "src",
        {"A": "first", "a": "second", "d/u\N{COMBINING DIAERESIS}": "1", "d/\xfc": "2", "z": "z"},
    )
    disk = plant(tmp_path / "disk", {"keep": "keep"})
    with mounted(disk, tmp_path / "mnt", folds=True):
        for more in (["--dry-run"], [], []):
            done = fastsync("sync", "--delete", "src", "mnt", *more)
            assert (done.code, done.stderr.count("error: ")) == (1, 2), done
            assert "takes it for" in done.stderr
            assert "not deleting: " in done.stderr
            assert len(contents(disk)) == (1 if more else 4)
    there = contents(disk)
    assert there.pop("A") == b"first"
    assert there.pop("d/u\N{COMBINING DIAERESIS}") == b"1"
    assert there == {"keep": b"keep", "z": b"z"}
    assert debris(disk) == []


def test_a_server_that_takes_two_names_for_one(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    """SFTP says nothing of it, but that a directory is there in another spelling."""
    plant(tmp_path / "src", {"A": "first", "a": "second", "Dir/x": "1", "dir/y": "2", "z": "z"})
    (tmp_path / "disk").mkdir()
    (tmp_path / "sshd").mkdir()
    folding = mounted(tmp_path / "disk", tmp_path / "mnt", folds=True)
    with folding, running_sshd(tmp_path / "sshd") as sshd:
        url = sshd.url(tmp_path / "mnt/Dest")
        options = [f"--{key.replace('_', '-')}={value}" for key, value in sshd.place.items()]
        for _ in range(2):
            done = fastsync("sync", "--delete", *options, "src", url)
            assert (done.code, done.stderr.count("error: ")) == (1, 2), done
            assert contents(tmp_path / "disk") == {
                "Dest/A": b"first",
                "Dest/Dir/x": b"1",
                "Dest/z": b"z",
            }


@pytest.mark.parametrize("limit", ["-n 24", "-v 400000"])
def test_limits_of_the_process(
    fastsync: Fastsync,
    plant: Plant,
    tmp_path: Path,
    under_limit: Callable[[str], list[str]],
    limit: str,
) -> None:
    """Few descriptors, little address space: all is done, or it is said, and then a second run does it."""
    many = {f"{number % 7}/{number}": str(number) for number in range(300)}
    src = plant(tmp_path / "src", {**many, **TREE})
    done = fastsync("sync", "src", "dest", under=under_limit(limit))
    assert done.code in (0, 1), done
    assert "Traceback" not in done.stderr
    there, wanted = contents(tmp_path / "dest"), contents(src)
    assert there.items() <= wanted.items()
    assert (there == wanted) == (done.code == 0)
    assert fastsync("sync", "src", "dest").code == 0
    assert contents(tmp_path / "dest") == wanted
