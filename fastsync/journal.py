"""What survives a crash: uploads that a killed process leaves behind at a store, written down beforehand,
and how far they came, where a later process can go on with them.

One SQLite file in the state folder, readable by its owner alone, shared by all runs on it (write-ahead
log: a reader and a writer do not wait for each other). A record is committed before `note` returns, so
that it outlives the process; a power cut may cost the last ones, and with them the means to find these
uploads again, nothing more. No secrets are kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from fastsync.errors import FastsyncError, from_os_error
from fastsync.private import make_file, refuse_foreign_file, refuse_shared_folder
from fastsync.processes import boot_id, pid_container, started
from fastsync.resuming import Range, Version

FILE: Final = "uploads.sqlite"
_VERSION: Final = 3
# Others hold it for milliseconds; one that is stuck is not waited for.
_BUSY_S: Final = 2.0
# SQLITE_CORRUPT and SQLITE_NOTADB (sqlite.org/rescode.html): nothing in it can be relied on.
_DAMAGED: Final = (11, 26)
_ASIDE: Final = ".damaged"
_SIBLINGS: Final = ("-wal", "-shm")
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS uploads (
    id INTEGER PRIMARY KEY,
    place BLOB NOT NULL,     -- the store's location, as bytes
    settings TEXT NOT NULL,  -- what it was opened with, JSON
    path BLOB NOT NULL,      -- below that location, as bytes
    ticket TEXT NOT NULL,    -- see DropsUploads
    host TEXT NOT NULL,      -- these four name the process that has it in hand
    boot TEXT NOT NULL,
    pid INTEGER NOT NULL,
    started TEXT NOT NULL,
    noted_ns INTEGER NOT NULL,
    source BLOB,             -- these three name the version of the file, NULL if it cannot be gone on with
    validator TEXT,
    size INTEGER,
    ranges TEXT,             -- what is written of it, JSON
    origin TEXT              -- see Origin, JSON; NULL if it is not known
) STRICT
"""
# What versions 2 and 3 have more than version 1.
_ADDED: Final = ("source BLOB", "validator TEXT", "size INTEGER", "ranges TEXT", "origin TEXT")
_COLUMNS: Final = (
    "id, place, settings, path, ticket, host, boot, pid, started, noted_ns,"
    " source, validator, size, ranges, origin"
)

Owner: TypeAlias = Literal["running", "gone", "elsewhere"]


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Have the journal keep a log. SQLite does not wait itself where another process is making it, too."""
    ends = time.monotonic() + _BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= ends:
                raise
        time.sleep(0.01)


def _boot() -> str:
    """This start of this machine, and the container; "" where starts are not numbered."""
    boot = boot_id()
    return boot and boot + pid_container()


class Process(NamedTuple):
    """A process as nothing else will ever be: host, boot with the container, number and start
    (proc_pid_stat(5), field 22)."""

    host: str
    boot: str
    pid: int
    started: str

    @classmethod
    def current(cls) -> Process:
        pid = os.getpid()
        return cls(os.uname().nodename, _boot(), pid, str(started(pid) or ""))

    def state(self) -> Owner:
        """What has become of it, as far as can be told from here."""
        if self.host != os.uname().nodename:
            return "elsewhere"
        if self.boot != _boot() and (boot := boot_id()) and self.boot.startswith(boot):
            return "elsewhere"  # a container of the same name: its processes do not show here
        began = started(self.pid) if self.boot == _boot() else None
        return "running" if began is not None and str(began or "") == self.started else "gone"


class Origin(NamedTuple):
    """Where the bytes of an upload come from: the place as it is printed, whether that is enough to ask for
    the same again, with what it was opened, and the settings of the run that differ from the usual."""

    source: str
    is_whole: bool
    settings: Mapping[str, str]
    options: Mapping[str, object]


class Record(NamedTuple):
    """An upload that is written down, and the process that began it."""

    id: int
    place: str
    settings: Mapping[str, str]
    path: str
    ticket: str
    process: Process
    noted_ns: int
    version: Version | None = None
    ranges: Sequence[Range] = ()
    origin: Origin | None = None


class Journal:
    """The records in `folder`, which is made when the first is. Not for several threads.

    Raises FastsyncError when the file cannot be used.
    """

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, FILE)
        self._connection: sqlite3.Connection | None = None
        self._process: Process | None = None

    @property
    def process(self) -> Process:
        """This one."""
        if self._process is None or self._process.pid != os.getpid():
            self._process = Process.current()
        return self._process

    def note(
        self,
        place: str,
        settings: Mapping[str, str],
        path: str,
        ticket: str,
        version: Version | None = None,
        origin: Origin | None = None,
    ) -> int:
        """Write an upload down, of this process; the record's number."""
        kept = json.dumps(dict(settings))
        row = (os.fsencode(place), kept, os.fsencode(path), ticket, *self.process, time.time_ns())
        named: tuple[bytes | None, str | None, int | None] = (None, None, None)
        if version is not None:
            named = (os.fsencode(version.source), version.validator, version.size)
        with self._mapped():
            cursor = self._open().execute(
                "INSERT INTO uploads (place, settings, path, ticket, host, boot, pid, started, noted_ns,"
                " source, validator, size, origin) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*row, *named, None if origin is None else json.dumps(origin)),
            )
            return cursor.lastrowid or 0

    def name(self, number: int, ticket: str, version: Version | None) -> None:
        """Write down what a foreseen upload turned out to be."""
        named: tuple[bytes | None, str | None, int | None] = (None, None, None)
        if version is not None:
            named = (os.fsencode(version.source), version.validator, version.size)
        with self._mapped():
            self._open().execute(
                "UPDATE uploads SET ticket = ?, source = ?, validator = ?, size = ? WHERE id = ?",
                (ticket, *named, number),
            )

    def reached(self, number: int, ranges: Sequence[Range]) -> None:
        """Write down what there is of an upload."""
        with self._mapped():
            self._open().execute(
                "UPDATE uploads SET ranges = ? WHERE id = ?", (json.dumps(ranges), number)
            )

    def unfinished(self, place: str, path: str) -> list[Record]:
        """The uploads to that path, whoever has them in hand."""
        return self._records(
            "WHERE place = ? AND path = ?", (os.fsencode(place), os.fsencode(path))
        )

    def others(self, record: Record) -> list[str]:
        """The tickets of uploads to the same path that somebody may be at work on."""
        return [
            other.ticket
            for other in self.unfinished(record.place, record.path)
            if other.id != record.id and other.process.state() != "gone"
        ]

    def can_take(self, record: Record) -> bool:
        """True when nobody works on that upload: its process, on this machine, is gone, or is ours."""
        return record.process == self.process or record.process.state() == "gone"

    def is_sound(self, record: Record) -> bool:
        """True when what the record says was written must be there: nothing was asked to reach the disk,
        so another boot of the machine may have lost it."""
        version = record.version
        position = 0
        for start, stop in record.ranges:
            if not position <= start < stop <= (version.size if version else 0):
                return False
            position = stop
        return bool(record.process.boot) and record.process.boot == self.process.boot

    def claim(self, record: Record) -> bool:
        """Make the upload of a process that is gone ours; False when another was faster."""
        old, new = record.process, self.process
        with self._mapped():
            cursor = self._open().execute(
                "UPDATE uploads SET host = ?, boot = ?, pid = ?, started = ?"
                " WHERE id = ? AND host = ? AND boot = ? AND pid = ? AND started = ?",
                (*new, record.id, *old),
            )
            return cursor.rowcount == 1

    def forget(self, number: int) -> None:
        """Drop a record; one that is gone is fine."""
        with self._mapped():
            self._open().execute("DELETE FROM uploads WHERE id = ?", (number,))

    def records(self) -> list[Record]:
        """All that is written down, the oldest first. Makes nothing where there is nothing."""
        return self._records("", ())

    def _records(self, where: str, values: tuple[bytes, ...]) -> list[Record]:
        if self._connection is None and not os.path.exists(self._path):
            return []
        with self._mapped():
            rows = self._open().execute(
                f"SELECT {_COLUMNS} FROM uploads {where} ORDER BY id", values
            )
            return [record for row in rows if (record := _record(row)) is not None]

    def close(self) -> None:
        """Idempotent."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            folder = os.path.dirname(self._path)
            os.makedirs(folder, mode=0o700, exist_ok=True)
            refuse_shared_folder(folder)
            make_file(self._path)  # SQLite gives its further files the mode of this one
            for more in ("", *_SIBLINGS):
                refuse_foreign_file(self._path + more)
            connection = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
            try:
                _write_ahead(connection)
                # Of a log, NORMAL writes each record, and leaves it to the system when the disk has it.
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.execute(_SCHEMA)
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                if version > _VERSION:
                    raise sqlite3.DatabaseError("it was written by a later fastsync")
                if version < _VERSION:
                    self._bring_up(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    @staticmethod
    def _bring_up(connection: sqlite3.Connection) -> None:
        """Give a file of an earlier version what it lacks; two processes may come to this at once."""
        connection.execute("BEGIN IMMEDIATE")
        known = {row[1] for row in connection.execute("PRAGMA table_info(uploads)")}
        for column in _ADDED:
            if column.partition(" ")[0] not in known:
                connection.execute(f"ALTER TABLE uploads ADD COLUMN {column}")
        connection.execute(f"PRAGMA user_version = {_VERSION}")
        connection.execute("COMMIT")

    def _set_aside(self) -> None:
        """Let a new file begin; what was in this one costs no more than time."""
        self.close()
        with contextlib.suppress(OSError):
            os.replace(self._path, self._path + _ASIDE)
        for more in _SIBLINGS:  # they belong to it, and would spoil the next one
            with contextlib.suppress(OSError):
                os.unlink(self._path + more)

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) in _DAMAGED:
                self._set_aside()
                raise FastsyncError(
                    f"the journal was damaged: {error}",
                    where=self._path,
                    hint=f"it is set aside as {FILE}{_ASIDE}, and a new one begins",
                ) from error
            raise FastsyncError(
                f"the journal cannot be used: {error}",
                where=self._path,
                hint="move it away to begin a new one",
            ) from error
        except OSError as error:
            raise from_os_error(error, self._path) from error


def _record(row: tuple[Any, ...]) -> Record | None:
    """A row as it was noted; None for one that nobody can have noted."""
    try:
        return _as_record(row)
    except (TypeError, ValueError):
        return None


def _as_record(row: tuple[Any, ...]) -> Record:
    number, place, settings, path, ticket, host, boot, pid, started, noted_ns, *more = row
    process = Process(host, boot, pid, started)
    source, validator, size, ranges, origin = more
    version = None if source is None else Version(os.fsdecode(source), validator, size)
    return Record(
        number,
        os.fsdecode(place),
        json.loads(settings),
        os.fsdecode(path),
        ticket,
        process,
        noted_ns,
        version,
        [(start, stop) for start, stop in json.loads(ranges or "[]")],
        None if origin is None else _origin(*json.loads(origin)),
    )


def _origin(source: str, is_whole: object, settings: Any, options: Any) -> Origin:
    return Origin(str(source), is_whole is True, dict(settings), dict(options))
