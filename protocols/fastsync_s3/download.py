"""One version of an object being read in parts, and checked as a whole."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Final

from fastsync.backend import READ_BUFFER, Buffer, Entry, Progress, closing
from fastsync.errors import FastsyncError, IntegrityError, from_os_error
from fastsync.wire import Headers, Memory
from fastsync_s3.checksums import (
    Expected,
    Hasher,
    PartsHasher,
    part_size_candidates,
)
from fastsync_s3.objects import check_part, pinned

if TYPE_CHECKING:
    from fastsync_s3.store import S3Store


# Parts whose lengths are asked for one by one, where those of a guess were not the right ones.
MOST_ASKED: Final = 1000


class S3Download:
    """See `Download`. `expected` says what the whole object must add up to, None if nothing does; then its
    ETag may be one of `parts` parts (`checksums.hashed_parts`)."""

    def __init__(
        self, store: S3Store, entry: Entry, expected: Expected | None, parts: int | None = None
    ) -> None:
        self.entry = entry
        self._store = store
        self._key = store.key_of(entry.path)
        self._expected = expected
        self._combines = expected is not None and expected.is_combinable
        self._seen: dict[int, tuple[int, Hasher]] = {}
        self._chase = _Chase(store)
        self._parts = None if expected is not None else parts
        self._is_asked = False

    @property
    def validator(self) -> str | None:
        """See `Validated.validator`."""
        return self.entry.version

    def _hasher(self, start: int, stop: int) -> Hasher | None:
        """A digest of a part as it arrives, if that will be of use."""
        expected = self._expected
        if expected is None or not (self._combines or stop - start == self.entry.size):
            return None
        return expected.hasher()

    async def read_into_file(self, start: int, stop: int, fd: int, progress: Progress) -> None:
        """See `Download.read_into_file`."""
        if await self._read_into(start, stop, fd, progress):
            return
        if self._expected is not None or self._parts is not None:
            self._chase.covers(start, stop, fd)
            if not self._is_asked:
                await self._begin_chase()

    async def read_into_memory(
        self, start: int, stop: int, memory: memoryview, progress: Progress
    ) -> None:
        """See `ReadsIntoMemory.read_into_memory`."""
        await self._read_into(start, stop, Memory(start, memory), progress)

    async def _read_into(
        self, start: int, stop: int, target: int | Memory, progress: Progress
    ) -> bool:
        """True when it is known what the part adds up to."""
        store, where = self._store, self._store.where(self.entry.path)
        hasher = self._hasher(start, stop)

        def check(status: int, headers: Headers) -> None:
            check_part(self.entry, start, stop, status, headers, where)

        call = pinned(
            self._key, self.entry, "GET", store.version_id, range=f"bytes={start}-{stop - 1}"
        )
        try:
            await store.plane.receive_into_file(
                call, target, start, stop - start, check, progress, hasher
            )
        except FastsyncError as error:
            raise await store.read_error(error, self.entry) from error
        if hasher is None:
            return False
        self._seen[start] = (stop - start, hasher)
        return True

    async def _begin_chase(self) -> None:
        self._is_asked = True
        if self._expected is not None:
            self._chase.hasher = self._expected.hasher()
            return
        assert self._parts is not None
        told = await self._store.part_lengths(self.entry, 1)
        guess = part_size_candidates(self.entry.size or 0, self._parts)
        part_size = told[0] if told else guess[0] if guess else 1 << 62
        self._chase.hasher = PartsHasher("MD5", repeat(part_size))

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
        elif self._seen and (fd is None or self._seen_bytes() == size):
            found = self._joined(expected, size)
        elif fd is not None:  # what an earlier process fetched is in the file alone
            found = await self._chased(fd, size)
        else:
            return False
        if found != expected.value:
            where = self._store.where(self.entry.path)
            raise not_its_bytes(where, expected.algorithm, found or "", expected.value)
        return True

    async def _verify_by_parts(self, fd: int, size: int) -> bool:
        """Against the ETag of a multipart upload, which is one of its parts' MD5s."""
        if self._parts is None:
            return False
        if await self._chased(fd, size) == self.entry.version:
            return True
        return await verify_parts(self._store, self.entry, self._parts, fd)

    async def _chased(self, fd: int, size: int) -> str:
        if not self._is_asked:
            await self._begin_chase()
        try:
            return await self._chase.value(fd, size)
        except OSError as error:
            raise from_os_error(error, self._store.where(self.entry.path)) from error

    def _seen_bytes(self) -> int:
        return sum(length for length, _ in self._seen.values())

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


def not_its_bytes(where: str, algorithm: str, found: str, expected: str) -> IntegrityError:
    return IntegrityError(
        f"the bytes that came are not the object's: {algorithm} {found}, not {expected}",
        where=where,
    )


async def verify_parts(store: S3Store, entry: Entry, count: int, data: memoryview | int) -> bool:
    """Whether bytes in memory, or of a file, are those of `count` parts that the ETag is of; False where
    nobody tells how long the parts were. Raises IntegrityError, OSError as ours."""
    size, where = entry.size or 0, store.where(entry.path)

    def digest(lengths: Sequence[int]) -> str:
        hasher = PartsHasher("MD5", lengths)
        if isinstance(data, int):
            return _digest(hasher, data, size)
        hasher(data)
        return hasher.value()

    if not isinstance(data, int):  # of files it was tried already
        guess = part_size_candidates(size, count)[:1]
        if guess and await store.in_thread(lambda: digest(guess * count)) == entry.version:
            return True
    lengths: list[int] | None = [size]
    if count > 1:
        lengths = await store.part_lengths(entry, count) if count <= MOST_ASKED else None
    if lengths is None or sum(lengths) != size:
        return False
    try:
        found = await store.in_thread(lambda: digest(lengths))
    except OSError as error:
        raise from_os_error(error, where) from error
    if found != entry.version:
        raise not_its_bytes(where, "ETag", found, entry.version or "")
    return True


def _digest(hasher: Hasher, fd: int, size: int) -> str:
    """What a file adds up to, read in order. Blocks."""
    block = memoryview(bytearray(max(1, min(READ_BUFFER, size))))
    position = 0
    while position < size:
        count = os.preadv(fd, [block[: size - position]], position)
        if not count:
            break
        hasher(block[:count])
        position += count
    return hasher.value()


class _Chase:
    """A digest that takes all bytes in order, of a file whose parts come in any: it follows what is there
    in a thread, so that little is left to be read when the last part has come."""

    def __init__(self, store: S3Store) -> None:
        self.hasher: Hasher | None = None  # until it is set, parts are only noted
        self._store = store
        self._ends: dict[int, int] = {}
        self._there = 0
        self._hashed = 0
        self._work: asyncio.Task[None] | None = None

    def covers(self, start: int, stop: int, fd: int) -> None:
        """The bytes [start, stop) are in the file, and stay as they are."""
        self._ends[start] = stop
        while (end := self._ends.pop(self._there, None)) is not None:
            self._there = end
        is_idle = self._work is None or self._work.done()
        if self.hasher is not None and is_idle and self._there > self._hashed:
            self._work = asyncio.create_task(self._follow(os.dup(fd)))

    async def value(self, fd: int, size: int) -> str:
        """What the whole file of `size` bytes adds up to. Raises OSError."""
        if self._work is not None:
            await self._work
        self._there = size
        await self._follow(os.dup(fd))
        assert self.hasher is not None
        return self.hasher.value()

    async def _follow(self, fd: int) -> None:
        await self._store.in_thread(lambda: self._hash(fd))

    def _hash(self, fd: int) -> None:
        """Catch up. Blocks, and closes `fd`: whoever else has the file may have left by then."""
        hasher = self.hasher
        assert hasher is not None
        try:
            block = memoryview(bytearray(max(1, min(READ_BUFFER, self._there - self._hashed))))
            while self._hashed < self._there:
                count = os.preadv(fd, [block[: self._there - self._hashed]], self._hashed)
                if not count:
                    return  # somebody has cut the file; the value will tell
                hasher(block[:count])
                self._hashed += count
        finally:
            os.close(fd)
