"""What survives a crash: uploads that a killed process leaves behind at a store, written down beforehand.

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
from collections.abc import Iterator, Mapping
from typing import Final, Literal, NamedTuple, TypeAlias

from fastsync.errors import FastsyncError, from_os_error

FILE: Final = "uploads.sqlite"
_VERSION: Final = 1
_BUSY_S: Final = 5.0
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
    noted_ns INTEGER NOT NULL
) STRICT
"""

Owner: TypeAlias = Literal["running", "gone", "elsewhere"]


class Process(NamedTuple):
    """A process as nothing else will ever be: host, boot, number and start (proc_pid_stat(5), field 22)."""

    host: str
    boot: str
    pid: int
    started: str

    @classmethod
    def current(cls) -> Process:
        pid = os.getpid()
        return cls(os.uname().nodename, _boot(), pid, _started(pid) or "")

    def state(self) -> Owner:
        """What has become of it, as far as can be told from here."""
        if self.host != os.uname().nodename:
            return "elsewhere"
        started = _started(self.pid) if self.boot == _boot() else None
        return "running" if started is not None and started == self.started else "gone"


def _boot() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""  # no Linux


def _started(pid: int) -> str | None:
    """When a process began, None when there is none; "" where that cannot be known."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in parentheses, may hold anything.
            return file.read().rpartition(b")")[2].split()[19].decode("ascii")
    except OSError:
        pass
    if os.path.isdir("/proc/self"):
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass  # somebody else's
    return ""


class Record(NamedTuple):
    """An upload that is written down, and the process that began it."""

    id: int
    place: str
    settings: Mapping[str, str]
    path: str
    ticket: str
    process: Process
    noted_ns: int


class Journal:
    """The records in `folder`, which is made when the first is. Not for several threads.

    Raises FastsyncError when the file cannot be used.
    """

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, FILE)
        self._connection: sqlite3.Connection | None = None
        self._process: Process | None = None

    def note(self, place: str, settings: Mapping[str, str], path: str, ticket: str) -> int:
        """Write an upload down, of this process; the record's number."""
        if self._process is None or self._process.pid != os.getpid():
            self._process = Process.current()
        kept = json.dumps(dict(settings))
        row = (os.fsencode(place), kept, os.fsencode(path), ticket, *self._process, time.time_ns())
        with self._mapped():
            cursor = self._open().execute(
                "INSERT INTO uploads (place, settings, path, ticket, host, boot, pid, started, noted_ns)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            return cursor.lastrowid or 0

    def forget(self, number: int) -> None:
        """Drop a record; one that is gone is fine."""
        with self._mapped():
            self._open().execute("DELETE FROM uploads WHERE id = ?", (number,))

    def records(self) -> list[Record]:
        """All that is written down, the oldest first. Makes nothing where there is nothing."""
        if self._connection is None and not os.path.exists(self._path):
            return []
        with self._mapped():
            rows = self._open().execute(
                "SELECT id, place, settings, path, ticket, host, boot, pid, started, noted_ns"
                " FROM uploads ORDER BY id"
            )
            return [_record(row) for row in rows]

    def close(self) -> None:
        """Idempotent."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
            # SQLite gives its further files the mode of this one.
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            connection = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                # Of a log, NORMAL writes each record, and leaves it to the system when the disk has it.
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.execute(_SCHEMA)
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                if version > _VERSION:
                    raise sqlite3.DatabaseError("it was written by a later fastsync")
                if version < _VERSION:
                    connection.execute(f"PRAGMA user_version = {_VERSION}")
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise FastsyncError(
                f"the journal cannot be used: {error}",
                where=self._path,
                hint="move it away to begin a new one",
            ) from error
        except OSError as error:
            raise from_os_error(error, self._path) from error


def _record(row: tuple[int, bytes, str, bytes, str, str, str, int, str, int]) -> Record:
    number, place, settings, path, ticket, host, boot, pid, started, noted_ns = row
    process = Process(host, boot, pid, started)
    return Record(
        number,
        os.fsdecode(place),
        json.loads(settings),
        os.fsdecode(path),
        ticket,
        process,
        noted_ns,
    )
