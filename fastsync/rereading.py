"""--verify reread: what a copy has written is read back and compared with what was read.

Ranges that pass through this process's memory leave a digest here on their way. Those that did not (moved
by the kernel, or by an earlier process) are read once more from the source, which is pinned to its version.
Of an upload that is gone on with, the ends of what is there are compared in any case.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, Final, TypeAlias

from fastsync.backend import Buffer, closing
from fastsync.errors import Changed, IntegrityError

if TYPE_CHECKING:
    from hashlib import blake2b

Read: TypeAlias = Callable[[int, int], AsyncIterator[Buffer]]

# Less than this is digested where it is: handing it to a thread takes as long.
_AT_ONCE: Final = 64 << 10
# What is read back at either end of a range that was written long ago.
_END: Final = 64 << 10


class RangeDigest:
    """What a range adds up to, in the making."""

    def __init__(self) -> None:
        import hashlib  # a millisecond that most runs need not spend

        self._state: blake2b = hashlib.blake2b(digest_size=32)

    async def add(self, data: Buffer) -> None:
        """The next bytes; they are the caller's again afterwards."""
        if len(data) <= _AT_ONCE:
            self._state.update(data)
        else:
            await asyncio.to_thread(self._state.update, data)

    def value(self) -> bytes:
        return self._state.digest()


class Seen:
    """Digests of the ranges of one file, as they were read."""

    def __init__(self) -> None:
        self._ranges: dict[int, tuple[int, bytes]] = {}

    def note(self, start: int, stop: int, digest: RangeDigest) -> None:
        """The bytes [start, stop) were read and handed on. A range that is tried again replaces itself."""
        self._ranges[start] = stop, digest.value()

    async def compare(self, size: int, source: Read, written: Read, where: str) -> None:
        """Read back all of a file of `size` bytes. Raises IntegrityError, and what the reads raise."""
        position = 0
        for start, (stop, digest) in sorted(self._ranges.items()):
            if position < start:
                await _compare(
                    position, start, await _digest(source, position, start), written, where
                )
            await _compare(start, stop, digest, written, where)
            position = stop
        if position < size:
            await _compare(position, size, await _digest(source, position, size), written, where)


async def compare_ends(
    ranges: Iterable[tuple[int, int]], source: Read, written: Read, where: str
) -> None:
    """Read back both ends of ranges that an earlier process has written. Raises Changed where they are not
    what the source has, and what the reads raise."""
    for start, stop in ranges:
        middle = min(start + _END, stop)
        for low, high in {(start, middle), (max(middle, stop - _END), stop)}:
            if await _digest(source, low, high) != await _digest(written, low, high):
                raise Changed("what an earlier run has written is not there any more", where=where)


async def _digest(read: Read, start: int, stop: int) -> bytes:
    digest = RangeDigest()
    async with closing(read(start, stop)) as buffers:
        async for buffer in buffers:
            await digest.add(buffer)
    return digest.value()


async def _compare(start: int, stop: int, wanted: bytes, written: Read, where: str) -> None:
    if await _digest(written, start, stop) != wanted:
        raise IntegrityError(
            f"what was written is not what was read, between bytes {start} and {stop}",
            where=where,
            hint="the disk, the memory or the way there is not to be trusted",
        )
