"""What closer looks at objects have told, kept in the state folder: no object is asked twice.

A listing says size, ETag and LastModified, not what time or mode the file had: that is metadata, and takes
a HEAD per object. What a HEAD told holds for as long as size, ETag and LastModified stay as they were, for
every write gives an object another LastModified.

What we write ourselves is known without asking, except for LastModified: a reply has the server's clock
(Date) instead. Such a row holds if LastModified is within two seconds of it, and ETag and size agree; what
somebody else could write in that time and with that ETag has the same content.

The file may be deleted at any time. One that cannot be read or written is done without.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple, TypeVar

_T = TypeVar("_T")

FILE: Final = "s3-attributes.sqlite"
_VERSION: Final = 1
_SLACK_NS: Final = 2_000_000_000
_KEPT: Final = 1000  # rows that wait to be written together
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS objects (
    place TEXT, key TEXT, etag TEXT, size INTEGER, stored_ns INTEGER, is_exact INTEGER,
    mtime_ns INTEGER, mode INTEGER, PRIMARY KEY (place, key)
) WITHOUT ROWID
"""


class Known(NamedTuple):
    """What is known of one version of an object: None for what its metadata do not have.

    `stored_ns` is its LastModified, or, unless `is_exact`, what the server's clock said at the write.
    """

    key: str
    etag: str
    size: int
    stored_ns: int
    is_exact: bool
    mtime_ns: int | None
    mode: int | None

    def holds(self, etag: str | None, size: int | None, stored_ns: int | None) -> bool:
        """True when this is about the version with this ETag, size and LastModified."""
        if etag != self.etag or size != self.size or stored_ns is None:
            return False
        if self.is_exact:
            return stored_ns == self.stored_ns
        return abs(stored_ns - self.stored_ns) <= _SLACK_NS


class Attributes:
    """The rows of one bucket. Use by one event loop; the file may be shared by processes."""

    def __init__(self, folder: str | None, place: str) -> None:
        self._folder = folder
        self._place = place
        self._thread: ThreadPoolExecutor | None = None
        self._file: sqlite3.Connection | None = None
        self._waiting: list[Known] = []

    async def between(self, first: str, last: str) -> dict[str, Known]:
        """What is known of the keys from `first` to `last`."""
        if self._folder is None:
            return {}
        if self._waiting:
            await self._write()

        def read() -> dict[str, Known]:
            rows = self._open().execute(
                "SELECT key, etag, size, stored_ns, is_exact, mtime_ns, mode FROM objects"
                " WHERE place = ? AND key >= ? AND key <= ?",
                (self._place, first, last),
            )
            return {row[0]: Known(*row) for row in rows}

        return await self._in_thread(read, {})

    async def remember(self, rows: Iterable[Known]) -> None:
        """Keep what was learnt; written down now and then, and by `aclose`."""
        if self._folder is None:
            return
        self._waiting += rows
        if len(self._waiting) >= _KEPT:
            await self._write()

    async def aclose(self) -> None:
        if self._waiting:
            await self._write()
        thread, self._thread = self._thread, None
        if thread is not None:
            file, self._file = self._file, None
            if file is not None:
                await asyncio.get_running_loop().run_in_executor(thread, file.close)
            thread.shutdown()

    async def _write(self) -> None:
        rows, self._waiting = self._waiting, []

        def write() -> None:
            file = self._open()
            with file:
                file.executemany(
                    "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    _parameters(self._place, rows),
                )

        await self._in_thread(write, None)

    async def _in_thread(self, work: Callable[[], _T], otherwise: _T) -> _T:
        def try_it() -> _T:
            try:
                return work()
            except (sqlite3.Error, OSError, UnicodeError):
                # Full, damaged, read-only, of another version, a key that is no text: what it would have
                # told can be asked for again.
                return otherwise

        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "fastsync-s3-attributes")
        return await asyncio.get_running_loop().run_in_executor(self._thread, try_it)

    def _open(self) -> sqlite3.Connection:
        if self._file is not None:
            return self._file
        assert self._folder is not None
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        path = os.path.join(self._folder, FILE)
        # What is there is not opened: closing it would end all locks of this process on it
        # (fcntl_locking(2)), those of the cache of another place among them.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            self._file = _connect(path)
        except sqlite3.DatabaseError:
            os.unlink(path)  # damaged, and worth nothing but time
            self._file = _connect(path)
        return self._file


def _connect(path: str) -> sqlite3.Connection:
    file = sqlite3.connect(path, timeout=5.0, check_same_thread=False)
    try:
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("PRAGMA synchronous = OFF")  # losing it costs no more than time
        (version,) = file.execute("PRAGMA user_version").fetchone()
        if version != _VERSION:
            file.execute("DROP TABLE IF EXISTS objects")
            file.execute(_SCHEMA)
            file.execute(f"PRAGMA user_version = {_VERSION}")
            file.commit()
    except BaseException:
        file.close()
        raise
    return file


def _parameters(place: str, rows: Sequence[Known]) -> Iterable[tuple[object, ...]]:
    for row in rows:
        try:
            row.key.encode()
        except UnicodeEncodeError:
            continue  # not text, so sqlite cannot keep it
        yield (
            place,
            row.key,
            row.etag,
            row.size,
            row.stored_ns,
            int(row.is_exact),
            row.mtime_ns,
            row.mode,
        )
