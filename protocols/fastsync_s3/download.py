"""One version of an object being read in parts, and checked as a whole."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from fastsync.backend import READ_BUFFER, Buffer, Entry, Progress, closing
from fastsync.errors import FastsyncError, IntegrityError
from fastsync.wire import Headers
from fastsync_s3.checksums import (
    Expected,
    Hasher,
    PartsHasher,
    part_count,
    part_size_candidates,
)
from fastsync_s3.objects import check_part, pinned

if TYPE_CHECKING:
    from fastsync_s3.store import S3Store


class S3Download:
    """See `Download`. `expected` says what the whole object must add up to, None if nothing does."""

    def __init__(self, store: S3Store, entry: Entry, expected: Expected | None) -> None:
        self.entry = entry
        self._store = store
        self._key = store.key_of(entry.path)
        self._expected = expected
        self._combines = expected is not None and expected.is_combinable
        self._seen: dict[int, tuple[int, Hasher]] = {}

    def _hasher(self, start: int, stop: int) -> Hasher | None:
        """A digest of a part as it arrives, if that will be of use."""
        expected = self._expected
        if expected is None or not (self._combines or stop - start == self.entry.size):
            return None
        return expected.hasher()

    async def read_into_file(self, start: int, stop: int, fd: int, progress: Progress) -> None:
        """See `Download.read_into_file`."""
        store, where = self._store, self._store.where(self.entry.path)
        hasher = self._hasher(start, stop)

        def check(status: int, headers: Headers) -> None:
            check_part(self.entry, start, stop, status, headers, where)

        call = pinned(
            self._key, self.entry, "GET", store.version_id, range=f"bytes={start}-{stop - 1}"
        )
        try:
            await store.plane.receive_into_file(
                call, fd, start, stop - start, check, progress, hasher
            )
        except FastsyncError as error:
            raise await store.read_error(error, self.entry) from error
        if hasher is not None:
            self._seen[start] = (stop - start, hasher)

    async def read(self, start: int, stop: int) -> AsyncIterator[Buffer]:
        """See `Download.read`."""
        hasher = self._hasher(start, stop)
        async with closing(self._store.read(self.entry, start, stop)) as buffers:
            async for buffer in buffers:
                if hasher is not None:
                    hasher(memoryview(buffer))
                yield buffer
        if hasher is not None:
            self._seen[start] = (stop - start, hasher)

    async def verify(self, fd: int | None) -> bool:
        """See `Download.verify`."""
        expected, size = self._expected, self.entry.size or 0
        if expected is None:
            return fd is not None and await self._verify_by_parts(fd, size)
        if not size:
            found: str | None = expected.hasher().value()
        elif self._seen:
            found = self._joined(expected, size)
        elif fd is not None:
            found = await self._store.in_thread(lambda: _digest(expected.hasher(), fd, size))
        else:
            return False
        if found != expected.value:
            raise IntegrityError(
                f"the bytes that came are not the object's: {expected.algorithm} {found}, "
                f"not {expected.value}",
                where=self._store.where(self.entry.path),
            )
        return True

    async def _verify_by_parts(self, fd: int, size: int) -> bool:
        """Against the ETag of a multipart upload, which is one of its parts' MD5s: if the size of the
        parts can be found, and they were all of one size."""
        etag = self.entry.version or ""
        count = part_count(etag)
        if count is None:
            return False
        told = await self._store.part_size(self.entry)
        part_size = told or part_size_candidates(size, count)[0]
        found = await self._store.in_thread(
            lambda: _digest(PartsHasher("MD5", part_size), fd, size)
        )
        if found == etag:
            return True
        if told is None or -(-size // told) != count:
            return False  # a guess that was wrong proves nothing
        raise IntegrityError(
            f"the bytes that came are not the object's: ETag {found}, not {etag}",
            where=self._store.where(self.entry.path),
        )

    def _joined(self, expected: Expected, size: int) -> str:
        position, parts = 0, []
        for start in sorted(self._seen):
            length, hasher = self._seen[start]
            if start != position:
                break
            parts.append((hasher, length))
            position += length
        if position != size:
            raise IntegrityError(
                f"{position} of {size} bytes were read", where=self._store.where(self.entry.path)
            )
        return expected.join(parts)


def _digest(hasher: Hasher, fd: int, size: int) -> str:
    """What a file adds up to, read again in order. Blocks."""
    block = memoryview(bytearray(max(1, min(READ_BUFFER, size))))
    position = 0
    while position < size:
        count = os.preadv(fd, [block[: size - position]], position)
        if not count:
            break
        hasher(block[:count])
        position += count
    return hasher.value()
