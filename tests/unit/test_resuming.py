"""Uploads that are left for a later process: what is written down of them, and who may take them up."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import pytest

from fastsync.backend import Entry, StoreOptions, WriteOptions
from fastsync.errors import TicketRefused
from fastsync.journal import FILE, Journal, Record
from fastsync.location import parse
from fastsync.resuming import Version, gaps, merged
from fastsync_local.backend import LocalBackend
from fastsync_local.store import LocalStore

VERSION = Version("https://h/f", '"tag"', 100)
RESUMABLE = WriteOptions(resumable=True)


def test_ranges() -> None:
    assert merged([(5, 7), (0, 2), (2, 3), (9, 9), (6, 8)]) == [(0, 3), (5, 8)]
    assert gaps(10, [(5, 7), (0, 2)]) == [(2, 5), (7, 10)]
    assert gaps(10, [(0, 10)]) == []
    assert gaps(10, []) == [(0, 10)]


# -- what is written down ----------------------------------------------------------------------------


def noted(folder: Path, version: Version | None = VERSION) -> Record:
    journal = Journal(str(folder))
    number = journal.note("/place", {}, "f", "ticket", version)
    journal.reached(number, [(0, 10), (20, 30)])
    (record,) = journal.records()
    journal.close()
    return record


def test_how_far_it_came(tmp_path: Path) -> None:
    record = noted(tmp_path)
    assert (record.version, record.ranges) == (VERSION, [(0, 10), (20, 30)])
    journal = Journal(str(tmp_path))
    assert journal.unfinished("/place", "f") == [record]
    assert journal.unfinished("/place", "g") == journal.unfinished("/other", "f") == []
    journal.close()


def test_what_cannot_be_gone_on_with(tmp_path: Path) -> None:
    record = noted(tmp_path, None)
    assert record.version is None
    journal = Journal(str(tmp_path))
    assert journal.unfinished("/place", "f") == [record], "it can be dropped"
    journal.close()


def test_what_was_foreseen_gets_its_name(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    number = journal.note("/place", {}, "f", "foreseen")
    (record,) = journal.records()
    assert journal.others(record) == []
    journal.note("/place", {}, "f", "other")
    journal.note("/place", {}, "g", "elsewhere")
    assert journal.others(record) == ["other"]
    gone = "UPDATE uploads SET started = '1' WHERE ticket = 'other'"
    journal._open().execute(gone)
    assert journal.others(record) == [], "nobody is at work on it"
    journal.name(number, "ticket", VERSION)
    assert journal.records()[0][:5] == (number, "/place", {}, "f", "ticket")
    assert journal.records()[0].version == VERSION
    journal.close()


def test_one_takes_it_up(tmp_path: Path) -> None:
    record = noted(tmp_path)
    gone = record._replace(process=record.process._replace(started="1"))
    journal = Journal(str(tmp_path))
    assert journal.can_take(record), "our own"
    assert journal.can_take(gone)
    assert not journal.can_take(gone._replace(process=gone.process._replace(host="another")))
    assert journal.claim(record)
    assert not journal.claim(gone), "another was faster"
    journal.close()


def test_another_boot_may_have_lost_it(tmp_path: Path) -> None:
    record = noted(tmp_path)
    journal = Journal(str(tmp_path))
    assert journal.is_sound(record)
    for boot in ("", "another"):
        assert not journal.is_sound(record._replace(process=record.process._replace(boot=boot)))
    for ranges in ([(0, 101)], [(5, 5)], [(20, 30), (0, 10)], [(-1, 3)]):
        assert not journal.is_sound(record._replace(ranges=ranges))
    journal.close()


@pytest.mark.parametrize("version", [1, 2])
def test_a_journal_of_a_version_before(tmp_path: Path, version: int) -> None:
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute(
        "CREATE TABLE uploads (id INTEGER PRIMARY KEY, place BLOB NOT NULL, settings TEXT NOT NULL,"
        " path BLOB NOT NULL, ticket TEXT NOT NULL, host TEXT NOT NULL, boot TEXT NOT NULL,"
        " pid INTEGER NOT NULL, started TEXT NOT NULL, noted_ns INTEGER NOT NULL) STRICT"
    )
    connection.execute(
        "INSERT INTO uploads VALUES (1, x'78', '{}', x'79', 't', 'h', 'b', 1, '2', 3)"
    )
    if version == 2:
        for column in ("source BLOB", "validator TEXT", "size INTEGER", "ranges TEXT"):
            connection.execute(f"ALTER TABLE uploads ADD COLUMN {column}")
    connection.execute(f"PRAGMA user_version = {version}")
    connection.commit()
    connection.close()
    journal = Journal(str(tmp_path))
    (old,) = journal.records()
    assert (old.place, old.path, old.version, old.ranges, old.origin) == ("x", "y", None, [], None)
    journal.note("/place", {}, "f", "ticket", VERSION)
    assert [record.version for record in journal.records()] == [None, VERSION]
    journal.close()


# -- files on a disk -----------------------------------------------------------------------------------


async def left_behind(store: LocalStore) -> str:
    """A ticket for a file of which 6 bytes are written."""
    upload = await store.upload("a/f", Entry("f", "file", 10, None), RESUMABLE, 4)
    await upload.write(0, b"0123")
    await upload.write(8, b"89")
    assert upload.ticket is not None
    await upload.leave()
    return upload.ticket


async def opened(tmp_path: Path) -> LocalStore:
    store = await LocalBackend().connect(parse(f"{tmp_path}/root"), StoreOptions())
    assert isinstance(store, LocalStore)
    return store


async def test_a_file_is_gone_on_with(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    ticket = await left_behind(store)
    entry = Entry("f", "file", 10, None)
    upload = await store.resume_upload(ticket, "a/f", entry, RESUMABLE, [(0, 4), (8, 10)])
    assert upload is not None
    await upload.write(4, b"4567")
    assert (await upload.commit(10)).size == 10
    assert upload.ticket is None
    assert (tmp_path / "root/a/f").read_bytes() == b"0123456789"
    assert os.listdir(tmp_path / "root/a") == ["f"]
    await store.aclose()


def linked(path: Path) -> None:
    os.link(path, path.with_name("another"))


def exchanged(path: Path) -> None:
    path.rename(path.with_name("old"))
    path.write_bytes(b"0123456789")
    path.chmod(0o600)


def pointing(path: Path) -> None:
    path.rename(path.with_name("old"))
    path.symlink_to("old")


def shorter(path: Path) -> None:
    os.truncate(path, 5)


def shared(path: Path) -> None:
    path.chmod(0o666)


@pytest.mark.parametrize("harm", [linked, exchanged, pointing, shorter, shared, Path.unlink])
async def test_only_if_it_is_as_it_was_left(tmp_path: Path, harm: object) -> None:
    store = await opened(tmp_path)
    ticket = await left_behind(store)
    assert callable(harm)
    harm(tmp_path / "root/a" / json.loads(ticket)[1])
    entry = Entry("f", "file", 10, None)
    assert await store.resume_upload(ticket, "a/f", entry, RESUMABLE, [(0, 4), (8, 10)]) is None
    await store.aclose()


async def test_a_file_is_dropped(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    ticket = await left_behind(store)
    await store.drop_upload(ticket)
    await store.drop_upload(ticket)
    assert os.listdir(tmp_path / "root/a") == []
    await store.aclose()


@pytest.mark.parametrize(
    "ticket",
    [
        "",
        "{}",
        "[1]",
        '["", "f", 1, 2]',
        '["..", "../f", 1, 2]',
        '["..", ".fs-0123456789abcdef.part", 1, 2]',
        '[3, ".fs-0123456789abcdef.part", 1, 2]',
    ],
)
async def test_tickets_of_others(tmp_path: Path, ticket: str) -> None:
    store = await opened(tmp_path)
    with pytest.raises(TicketRefused):
        await store.drop_upload(ticket)
    await store.aclose()


async def test_nothing_to_leave_unless_asked(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    entry = Entry("f", "file", 10, None)
    for options in (WriteOptions(), WriteOptions(resumable=True, inplace=True)):
        upload = await store.upload("f", entry, options, 4)
        assert upload.ticket is None
        await upload.abort()
    await store.aclose()
