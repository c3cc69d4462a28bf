"""A journal that is lost, damaged or of another version costs time, and no byte: whatever the protocol, the
next run ends what a killed one began, and `jobs clean` finds what it left."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hostile_s3 import Honest, HostileS3
from http_exchange import Request, Response
from sshd import running_sshd

from fastsync.testing.vocabulary import noise

if TYPE_CHECKING:
    from tests.conftest import Fastsync

MIB = 1 << 20
CONTENT = noise(MIB) * 16 + b"the end"
Start = Callable[..., "subprocess.Popen[bytes]"]
Wait = Callable[[Callable[[], object]], None]


def lost(journal: Path) -> None:
    shutil.rmtree(journal.parent)


def garbage(journal: Path) -> None:
    journal.write_bytes(noise(8192))


def later(journal: Path) -> None:
    with sqlite3.connect(journal) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


def other_ranges(journal: Path) -> None:
    """As if all of it had been written."""
    with sqlite3.connect(journal) as connection:
        connection.execute(f"UPDATE uploads SET ranges = '[[0, {len(CONTENT)}]]'")
    connection.close()


def other_ticket(journal: Path) -> None:
    """As another fastsync might write it."""
    with sqlite3.connect(journal) as connection:
        connection.execute("UPDATE uploads SET ticket = '[\"of another version\"]'")
    connection.close()


def locked(journal: Path) -> None:
    journal.unlink()
    journal.mkdir()


# What is wrong with the file is found in one place for all ways; what it says, in each, and first: a copy of
# what was left is not the file that the record is of.
HARMS = {
    "into a bucket": (other_ranges, other_ticket, lost, garbage, later, locked),
    "from a bucket": (other_ranges, lost),
    "from the web": (other_ranges, other_ticket, lost),
    "from a server of files": (other_ranges, other_ticket, lost),
}


@pytest.fixture
def places(
    fastsync: Fastsync, hostile_s3: HostileS3, tmp_path: Path
) -> Iterator[dict[str, tuple[list[str], Callable[[], bytes]]]]:
    """What to copy, and what has come of it."""
    fastsync.environ |= hostile_s3.environ | {"XDG_STATE_HOME": str(tmp_path / "state")}
    (tmp_path / "big").write_bytes(CONTENT)
    os.utime(tmp_path / "big", (10**9, 10**9))  # one of today could be written to again unseen
    (tmp_path / "to").mkdir()
    hostile_s3.put("bucket", "there", CONTENT)
    url = f"{hostile_s3.endpoint}/bucket/there"

    def down() -> bytes:
        return (tmp_path / "to/big").read_bytes()

    with ExitStack() as stack:
        (tmp_path / "sshd").mkdir()
        sshd = stack.enter_context(running_sshd(tmp_path / "sshd"))
        options = [f"--{key.replace('_', '-')}={value}" for key, value in sshd.place.items()]
        yield {
            "into a bucket": (["big", "s3://bucket/big"], lambda: hostile_s3.data("bucket", "big")),
            "from a bucket": (["s3://bucket/there", "to/big"], down),
            "from the web": ([url, "to/big"], down),
            "from a server of files": ([*options, sshd.url(tmp_path / "big"), "to/big"], down),
        }


@pytest.mark.parametrize("way", HARMS)
def test_it_costs_time_alone(
    fastsync: Fastsync,
    places: dict[str, tuple[list[str], Callable[[], bytes]]],
    hostile_s3: HostileS3,
    started: Start,
    eventually: Wait,
    tmp_path: Path,
    way: str,
) -> None:
    arguments, content = places[way]
    journal, to = tmp_path / "state/fastsync/uploads.sqlite", tmp_path / "to"

    def has_come_far() -> bool:
        try:
            connection = sqlite3.connect(f"file:{journal}?mode=ro", uri=True)
            found = connection.execute("SELECT ranges FROM uploads").fetchall()
            connection.close()
        except sqlite3.Error:
            return False  # it is just being made
        return any(ranges is not None for (ranges,) in found)

    process = started("cp", "-c", "5M", "--bwlimit", "4M", *arguments)
    eventually(has_come_far)
    process.kill()
    process.wait(10)
    for kept in (journal.parent, to):
        shutil.copytree(kept, tmp_path / "kept" / kept.name)
    uploads = dict(hostile_s3.objects.uploads)
    for harm in HARMS[way]:
        harm(journal)
        done = fastsync("cp", "-c", "5M", *arguments)
        assert (done.code, content() == CONTENT) == (0, True), (harm, done)
        if harm != other_ranges:  # what could have been gone on with stays for a day, else
            codes = {locked: (2,), other_ticket: (0,)}.get(harm, (0, 1))
            assert fastsync("jobs", "clean", "--all", "to").code in codes
        assert [path.name for path in to.iterdir()] in ([], ["big"]), harm
        if harm == other_ranges:
            assert hostile_s3.open_uploads == []
        for kept in (journal.parent, to):
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(tmp_path / "kept" / kept.name, kept)
        hostile_s3.objects.uploads = dict(uploads)
        hostile_s3.objects.buckets["bucket"].remove("big")


def deleted(journal: Path) -> Iterator[None]:
    shutil.rmtree(journal.parent)
    yield


def overwritten(journal: Path) -> Iterator[None]:
    for path in journal.parent.iterdir():
        with open(path, "r+b") as file:
            file.write(noise(2000))
    yield


def kept_locked(journal: Path) -> Iterator[None]:
    """By a process that is stuck."""
    with contextlib.closing(sqlite3.connect(journal, check_same_thread=False)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield


@pytest.mark.parametrize("harm", [deleted, overwritten, kept_locked])
def test_whatever_becomes_of_it_on_the_way(
    fastsync: Fastsync,
    hostile_s3: HostileS3,
    tmp_path: Path,
    harm: Callable[[Path], Iterator[None]],
) -> None:
    """The run that has it open ends well, says so once if at all, and leaves nothing behind."""
    fastsync.environ |= hostile_s3.environ
    hostile_s3.make_bucket("bucket")
    (tmp_path / "from").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "from" / name).write_bytes(CONTENT[: 11 * MIB])
    state = tmp_path / "home/.local/state/fastsync/uploads.sqlite"
    harming = harm(state)

    def strike(request: Request, honest: Honest) -> Response:
        next(harming)
        return honest(request)

    hostile_s3.on("UploadPart", strike, skip=1, times=1)
    done = fastsync("cp", "-R", "-c", "5M", "-p", "2", "from/", "s3://bucket/to/")
    assert done.code == 0, done
    assert len(done.stderr.splitlines()) <= 1
    assert "Traceback" not in done.stderr
    for name in ("a", "b", "c"):
        assert hostile_s3.data("bucket", f"to/{name}") == CONTENT[: 11 * MIB]
    assert hostile_s3.open_uploads == []
    harming.close()  # type: ignore[attr-defined]
    assert fastsync("jobs", "clean").code in (0, 1)  # it may say that it was damaged
    assert fastsync("jobs", "list") == (0, "", "")


@pytest.mark.parametrize("how", ["no room", "shared"])
def test_a_journal_that_cannot_be_kept(
    fastsync: Fastsync,
    hostile_s3: HostileS3,
    under_limit: Callable[[str], list[str]],
    tmp_path: Path,
    how: str,
) -> None:
    """Costs nothing but a word, one for all files and lines."""
    fastsync.environ |= hostile_s3.environ
    hostile_s3.make_bucket("bucket")
    state = tmp_path / "home/.local/state/fastsync"
    if how == "shared":
        state.mkdir(parents=True)
        (state / "uploads.sqlite").touch()
        state.chmod(0o777)
    lines = []
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(CONTENT[: 6 * MIB])
        lines.append(f"cp -c 5M {name} s3://bucket/{name}/{name}\n")
    (tmp_path / "batch").write_text("".join(lines))
    under = under_limit("-f 0") if how == "no room" else []
    for arguments in (["cp", "-c", "5M", "a", "b", "c", "s3://bucket/to/"], ["run", "batch"]):
        done = fastsync(*arguments, under=under)
        assert done.code == 0, done
        (said,) = done.stderr.splitlines()
        assert "uploads that are cut off will not be found again" in said
    assert hostile_s3.keys("bucket") == ["a/a", "b/b", "c/c", "to/a", "to/b", "to/c"]
    assert hostile_s3.open_uploads == []
    if how != "shared":
        return
    refused = fastsync("jobs", "list")
    assert (refused.code, "chmod go-w" in refused.stderr) == (2, True)
