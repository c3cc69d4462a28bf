"""One version of a file being read, also by a process after the one that began: what that one wrote is
looked at again before the whole counts as done.

SFTP tells no digest and times in whole seconds, so that size and time are the same says little of bytes that
were read long ago. The ends of what was there already are read once more.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from fastsync.backend import Buffer, Entry, Progress
from fastsync.errors import Changed, from_os_error

if TYPE_CHECKING:
    from fastsync_sftp.store import SftpStore

# What is read again at either end of a range that an earlier process wrote.
_SAMPLE: Final = 64 << 10
# A file with a younger time may be written to again within the same second, by either clock.
_SETTLED_NS: Final = 3_000_000_000


class SftpDownload:
    """See `Download` and `Validated`."""

    def __init__(self, store: SftpStore, entry: Entry) -> None:
        self._store = store
        self._entry = entry
        self._read: list[tuple[int, int]] = []

    @property
    def entry(self) -> Entry:
        return self._entry

    @property
    def validator(self) -> str | None:
        """See `Validated.validator`."""
        mtime_ns = self._entry.mtime_ns
        if mtime_ns is None or time.time_ns() - mtime_ns < _SETTLED_NS:
            return None
        return f"mtime {mtime_ns}"

    async def read_into_file(self, start: int, stop: int, fd: int, progress: Progress) -> None:
        """See `Download.read_into_file`."""
        await self._store.read_into_file(self._entry, start, stop, fd, progress)
        self._read.append((start, stop))

    async def read(self, start: int, stop: int) -> AsyncIterator[Buffer]:
        """See `Download.read`."""
        async for buffer in self._store.read(self._entry, start, stop):
            yield buffer
        self._read.append((start, stop))

    async def verify(self, fd: int | None) -> bool:
        """See `Download.verify`: samples of what was not read by us must be what the server has. Raises
        Changed."""
        if fd is None:
            return False
        for start, stop in self._not_read():
            middle = min(start + _SAMPLE, stop)
            await self._compare(start, middle, fd)
            await self._compare(max(middle, stop - _SAMPLE), stop, fd)
        return False

    def _not_read(self) -> list[tuple[int, int]]:
        gaps = []
        position = 0
        for start, stop in [*sorted(self._read), (self._entry.size or 0,) * 2]:
            if position < start:
                gaps.append((position, start))
            position = max(position, stop)
        return gaps

    async def _compare(self, start: int, stop: int, fd: int) -> None:
        theirs = b"".join(
            [bytes(buffer) async for buffer in self._store.read(self._entry, start, stop)]
        )
        where = self._store.where(self._entry.path)
        try:
            ours = await asyncio.to_thread(os.pread, fd, stop - start, start)
        except OSError as error:
            raise from_os_error(error, where) from error
        if ours != theirs:
            raise Changed("it is not what an earlier run has read", where=where)
