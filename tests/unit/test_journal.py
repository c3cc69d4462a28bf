"""The journal: what is written down outlives the process, and is dropped when nobody will finish it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest

from fastsync.backend import StoreOptions
from fastsync.errors import (
    ConfigError,
    FastsyncError,
    NotFound,
    TicketRefused,
    Transient,
    UsageError,
)
from fastsync.events import Silent
from fastsync.journal import FILE, Journal, Process
from fastsync.leftovers import Left, leftovers, run_clean
from fastsync.location import Location, parse
from fastsync.registry import Registry
from fastsync.session import Request, Session
from fastsync.settings import Settings
from fastsync.testing import BareMemoryBackend
from fastsync.testing.memory import BareMemoryStore

# What a process does that is killed in the middle of an upload.
_DIE = """
import os, signal, sys
from fastsync.journal import Journal
journal = Journal(sys.argv[1])
journal.forget(journal.note("dropping://b/", {}, "done", "ticket 0"))
journal.note("dropping://b/dir/", {"endpoint_url": "http://x"}, "a\\udcff\\n", "ticket 1")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "fastsync"


@pytest.fixture
def cut_off(folder: Path) -> Path:
    """A journal with the record of a process that was killed."""
    done = subprocess.run([sys.executable, "-c", _DIE, folder], check=False)
    assert done.returncode < 0
    return folder


def test_a_record_outlives_its_process(cut_off: Path) -> None:
    journal = Journal(str(cut_off))
    (record,) = journal.records()
    assert (record.place, record.path, record.ticket) == (
        "dropping://b/dir/",
        "a\udcff\n",
        "ticket 1",
    )
    assert record.settings == {"endpoint_url": "http://x"}
    assert record.process.state() == "gone"
    assert abs(record.noted_ns - time.time_ns()) < 60e9
    journal.close()


def test_nobody_else_can_read_it(folder: Path) -> None:
    before = os.umask(0)
    try:
        journal = Journal(str(folder))
        journal.note("x://y/", {}, "p", "t")
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert set(modes.values()) == {0o600}
        assert FILE in modes
        journal.close()
    finally:
        os.umask(before)


def test_looking_makes_nothing(folder: Path) -> None:
    assert Journal(str(folder)).records() == []
    assert not folder.exists()


def test_two_processes_at_once(folder: Path) -> None:
    code = """
import sys
import threading
from fastsync.journal import Journal
journal = Journal(sys.argv[1])
for number in range(200):
    noted = journal.note("x://y/", {}, str(number), sys.argv[2])
    if number % 2:
        journal.forget(noted)
"""
    runs = [
        subprocess.Popen([sys.executable, "-c", code, str(folder), name]) for name in ("a", "b")
    ]
    assert [run.wait(60) for run in runs] == [0, 0]
    journal = Journal(str(folder))
    records = journal.records()
    journal.close()
    assert len({record.id for record in records}) == 200
    assert [record.path for record in records if record.ticket == "a"] == [
        str(number) for number in range(0, 200, 2)
    ]


_LOOK = """
import sys
import threading
from fastsync.journal import Journal
journal = Journal(sys.argv[1])
print(*(record.path for record in journal.records()))
journal.close()
"""


def test_another_process_that_is_making_it(folder: Path) -> None:
    """At the very first moment SQLite does not wait for a lock by itself."""
    folder.mkdir(mode=0o700, parents=True)
    with contextlib.closing(
        sqlite3.connect(folder / FILE, isolation_level=None, check_same_thread=False)
    ) as other:
        (folder / FILE).chmod(0o600)
        other.execute("BEGIN IMMEDIATE")
        other.execute("CREATE TABLE their (own)")
        done = threading.Timer(0.2, other.execute, ("COMMIT",))
        done.start()
        with contextlib.closing(Journal(str(folder))) as journal:
            assert journal.records() == []
        done.join()


def test_two_journals_of_one_process_and_another(folder: Path) -> None:
    """Runs of one process, as in a batch, hold their locks together: opening one takes none from another."""

    def seen() -> list[str]:
        look = [sys.executable, "-c", _LOOK, str(folder)]
        return subprocess.run(look, check=True, capture_output=True, text=True).stdout.split()

    one, two = Journal(str(folder)), Journal(str(folder))
    one.note("x://y/", {}, "a", "t")
    two.note("x://y/", {}, "b", "t")
    assert seen() == ["a", "b"]
    one.note("x://y/", {}, "c", "t")
    two.note("x://y/", {}, "d", "t")
    assert seen() == ["a", "b", "c", "d"]
    one.close()
    two.close()


@pytest.mark.parametrize("harm", ["shared", "foreign", "linked", "theirs", "a link", "two names"])
def test_a_journal_that_others_may_have_written(folder: Path, harm: str) -> None:
    """It is neither read nor written."""
    journal = Journal(str(folder))
    journal.note("x://y/", {}, "p", "t")
    journal.close()
    file, beside = folder / FILE, folder.with_name("beside")
    if harm in ("foreign", "theirs", "linked") and os.geteuid() != 0:
        pytest.skip("only root can give files away")
    if harm == "shared":
        folder.chmod(0o770)
    elif harm == "foreign":
        os.chown(folder, 65534, -1)
    elif harm == "linked":
        folder.rename(beside)
        folder.symlink_to(beside)
        os.chown(folder, 65534, -1, follow_symlinks=False)
    elif harm == "theirs":
        os.chown(file, 65534, -1)
    elif harm == "a link":
        file.rename(beside)
        file.symlink_to(beside)
    else:
        os.link(file, beside)
    before = file.read_bytes()
    damaged = Journal(str(folder))
    with pytest.raises(UsageError, match=r"another user|others can write|yours alone"):
        damaged.note("x://y/", {}, "q", "t")
    with pytest.raises(UsageError):
        damaged.records()
    assert file.read_bytes() == before


def test_a_journal_that_others_may_read_is_closed_to_them(folder: Path) -> None:
    journal = Journal(str(folder))
    journal.note("x://y/", {}, "p", "t")
    journal.close()
    (folder / FILE).chmod(0o644)
    journal = Journal(str(folder))
    assert len(journal.records()) == 1
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    journal.close()


def test_a_link_of_ours_to_a_folder_of_ours(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.parent.mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    journal = Journal(str(folder))
    journal.note("x://y/", {}, "p", "t")
    assert len(journal.records()) == 1
    journal.close()


def test_whose_process_it_is() -> None:
    mine = Process.current()
    assert mine.state() == "running"
    assert mine._replace(started="1").state() == "gone"  # the number was given away again
    assert mine._replace(boot="another").state() == "gone"
    assert mine._replace(pid=2**22 + 1).state() == "gone"
    assert mine._replace(host="another").state() == "elsewhere"


def test_a_process_in_another_container_of_the_same_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not show in ours, so nothing says that it is gone."""
    mine = Process.current()
    monkeypatch.setattr("fastsync.journal.pid_container", lambda: "pid:[1]")
    assert Process.current().state() == "running"
    assert mine.state() == "elsewhere"


def test_a_file_that_is_no_journal(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / FILE).write_bytes(b"no database at all" * 100)
    with pytest.raises(FastsyncError, match="the journal was damaged"):
        Journal(str(folder)).records()
    assert Journal(str(folder)).records() == []
    assert (folder / f"{FILE}.damaged").exists()
    journal = Journal(str(folder))
    journal.note("x://y/", {}, "p", "t")
    assert [record.ticket for record in journal.records()] == ["t"]
    journal.close()


def test_pages_that_are_damaged(folder: Path) -> None:
    """Whatever the damage: an error of ours or an answer, and in the end a journal that works."""
    for position in range(0, 12_000, 1500):
        journal = Journal(str(folder))
        journal.note("x://y/", {}, "p", "t" * 3000)
        journal._open().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        journal.close()
        with open(folder / FILE, "r+b") as file:
            file.seek(position)
            file.write(os.urandom(600))
        for _ in range(3):
            damaged = Journal(str(folder))
            try:
                damaged.records()
                damaged.forget(damaged.note("x://y/", {}, "p", "t"))
            except FastsyncError:
                continue
            finally:
                damaged.close()
        for left in folder.iterdir():
            left.unlink()


def test_a_later_version_is_left_alone(folder: Path) -> None:
    journal = Journal(str(folder))
    journal.note("x://y/", {}, "p", "t")
    journal._open().execute("PRAGMA user_version = 99")
    journal.close()
    before = (folder / FILE).read_bytes()
    with pytest.raises(FastsyncError, match="later fastsync"):
        Journal(str(folder)).records()
    assert (folder / FILE).read_bytes() == before


def test_rows_that_nobody_noted(folder: Path) -> None:
    journal = Journal(str(folder))
    for ticket in ("spoilt", "good"):
        journal.note("x://y/", {}, "p", ticket)
    journal._open().execute("UPDATE uploads SET settings = '{' WHERE ticket = 'spoilt'")
    assert [record.ticket for record in journal.records()] == ["good"]
    journal.close()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FastsyncError):
        Journal(f"{tmp_path}/file/folder").note("x://y/", {}, "p", "t")


# -- with stores -------------------------------------------------------------------------------------


class DroppingStore(BareMemoryStore):
    """Remembers what it was asked to drop, and how it was opened."""

    dropped: ClassVar[list[tuple[str, str, dict[str, str]]]] = []
    trouble: ClassVar[FastsyncError | None] = None
    place: dict[str, str]

    async def drop_upload(self, ticket: str) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.dropped.append((str(self.location), ticket, self.place))


class DroppingBackend(BareMemoryBackend):
    _store = DroppingStore

    async def connect(self, location: Location, options: StoreOptions) -> BareMemoryStore:
        store = await super().connect(location, options)
        assert isinstance(store, DroppingStore)
        store.place = dict(options.place)
        return store


@pytest.fixture(autouse=True)
def _dropping(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry([])
    monkeypatch.setattr(registry, "load", lambda _scheme: DroppingBackend)
    monkeypatch.setattr(Registry, "from_entry_points", lambda: registry)
    monkeypatch.setattr(DroppingStore, "dropped", [])


def request(folder: Path, **options: object) -> Request:
    return Request(
        Settings(**options),  # type: ignore[arg-type]
        place_settings=lambda _location, _side: {"secret": "of today", "region": "x"},
        state_folder=str(folder),
    )


async def found(asked: Request) -> list[Left]:
    return [left async for left in leftovers(asked)]


async def test_cleaning_drops_what_is_cut_off(cut_off: Path) -> None:
    asked = request(cut_off)
    assert len(await found(asked)) == 1
    summary = await run_clean(asked)
    assert (summary.exit_code, summary.totals.deleted) == (0, 1)
    place = {"secret": "of today", "region": "x", "endpoint_url": "http://x"}
    assert DroppingStore.dropped == [("dropping://b/dir/", "ticket 1", place)]
    assert await found(asked) == []


async def test_a_dry_run_drops_nothing(cut_off: Path) -> None:
    assert (await run_clean(request(cut_off, dry_run=True))).totals.deleted == 1
    assert DroppingStore.dropped == []
    assert len(await found(request(cut_off))) == 1


@pytest.mark.parametrize(
    ("trouble", "code", "left"), [(Transient("no way"), 1, 1), (NotFound("no bucket"), 0, 0)]
)
async def test_what_cannot_be_dropped_stays_written_down(
    cut_off: Path,
    monkeypatch: pytest.MonkeyPatch,
    trouble: FastsyncError,
    code: int,
    left: int,
) -> None:
    monkeypatch.setattr(DroppingStore, "trouble", trouble)
    assert (await run_clean(request(cut_off))).exit_code == code
    assert len(await found(request(cut_off))) == left


async def test_what_is_not_understood_can_be_forgotten(
    cut_off: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    observer = Silent()
    monkeypatch.setattr(observer, "note", notes.append)
    asked = dataclasses.replace(request(cut_off), observer=observer)
    monkeypatch.setattr(DroppingStore, "trouble", ConfigError("no such profile"))
    assert (await run_clean(asked, everything=True)).exit_code == 2
    assert (len(await found(asked)), notes) == (1, [])
    monkeypatch.setattr(DroppingStore, "trouble", TicketRefused("no ticket"))
    summary = await run_clean(asked)
    assert summary.exit_code == 2
    assert "jobs clean --all" in str(summary.failures[0].error)
    assert len(await found(asked)) == 1
    summary = await run_clean(asked, everything=True)
    assert (summary.exit_code, summary.totals.deleted, await found(asked)) == (0, 0, [])
    (note,) = notes
    assert "no ticket" in note


async def test_what_is_under_way_stays(folder: Path) -> None:
    journal = Journal(str(folder))
    journal.note("dropping://b/", {}, "mine", "t1")
    elsewhere = journal.note("dropping://b/", {}, "theirs", "t2")
    journal._open().execute("UPDATE uploads SET host = 'another' WHERE id = ?", (elsewhere,))
    assert (await run_clean(request(folder))).totals.deleted == 0
    assert (await run_clean(request(folder), everything=True)).totals.deleted == 1
    assert [record.path for record in journal.records()] == ["mine"]
    journal.close()


async def test_a_session_writes_uploads_down_without_secrets(folder: Path) -> None:
    async with Session(request(folder)) as session:
        sink = await session.open_sink(parse("dropping://me:pass@b/dir/"))
        assert session.uploads is not None
        source = parse("https://us3r:w0rd@h/f?sig=s1gned")
        noted = session.uploads.note(sink, "f", "ticket", None, source)
        (left,) = await found(request(folder))
        record = left.record
        assert record is not None
        assert (record.place, dict(record.settings)) == ("dropping://me@b/dir/", {"region": "x"})
        content = b"".join(path.read_bytes() for path in folder.iterdir())
        for secret in (b"of today", b"pass", b"us3r", b"w0rd", b"s1gned"):
            assert secret not in content
        assert record.origin is not None
        assert (record.origin.source, record.origin.is_whole) == ("https://***@h/f?***", False)
        session.uploads.forget(noted)
        assert await found(request(folder)) == []


async def test_a_journal_that_cannot_be_written_stops_no_upload(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    async with Session(request(tmp_path / "file")) as session:
        sink = await session.open_sink(parse("dropping://b/"))
        assert session.uploads is not None
        assert session.uploads.note(sink, "f", "ticket") == 0
        session.uploads.forget(0)


async def test_without_a_state_folder_there_is_no_journal() -> None:
    async with Session(Request()) as session:
        assert session.uploads is None
    with pytest.raises(UsageError):
        await found(Request())


def test_a_record_is_cheap(folder: Path) -> None:
    journal = Journal(str(folder))
    journal.forget(journal.note("x://y/", {}, "p", "t"))
    started = time.perf_counter()
    for _ in range(200):
        journal.forget(journal.note("x://y/", {}, "p", "t"))
    journal.close()
    assert (time.perf_counter() - started) / 200 < 0.005
