"""Standard input as something to copy from, and a descriptor that is written in order.

Both wait by poll, a tenth of a second at a time, and move bytes only when that does not block: whoever
is on the other side of a pipe may take for ever, and an interrupt must not.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import select
import stat
import sys
import threading
from collections.abc import AsyncIterator
from typing import ClassVar, Final

from fastsync.backend import READ_BUFFER, Buffer, Entry, Limits, Page, Progress, ScanOptions
from fastsync.errors import Changed, Unsupported, UsageError, from_os_error
from fastsync.location import STREAM, Location

_POLL_MS: Final = 100
# The most that one call moves: often enough for progress, seldom enough to cost nothing.
_SLICE: Final = 8 << 20
# What one write to a terminal or a socket may take, which could block.
_SMALL_SLICE: Final = 64 << 10
# Linux's default limit for users, 16 times what a pipe has at first (pipe(7)).
_PIPE: Final = 1 << 20
# "Not between these two": an append-only file, a terminal, a file system that cannot.
_NOT_HERE: Final = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ESPIPE, errno.EBADF)


def _widen(fd: int) -> None:
    """Have a pipe take more at once. Nothing depends on it."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        try:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE)
        except OSError:
            pass  # no pipe, or more than we are allowed


class StandardInput:
    """A source with one file that has neither a length nor a second reading."""

    limits: ClassVar[Limits] = Limits(seekable_reads=False)

    def __init__(self, fd: int = 0) -> None:
        self.location = Location(STREAM, "")
        self._fd = fd
        self._stopped = threading.Event()
        self._is_read = False

    @property
    def entry(self) -> Entry:
        """The one file."""
        return Entry("", "file", None, None)

    def address(self) -> str:
        return STREAM

    async def scan(self, options: ScanOptions) -> AsyncIterator[Page]:
        raise Unsupported("standard input cannot be listed", where=STREAM)
        yield Page([])  # a generator, as the contract has it

    async def stat(self, path: str, *, follow: bool = False) -> Entry:
        return self.entry

    async def read(self, entry: Entry, start: int, stop: int | None) -> AsyncIterator[Buffer]:
        if self._is_read or start:
            raise Unsupported("standard input can be read only once", where=STREAM)
        self._is_read = True
        _widen(self._fd)
        buffer = memoryview(bytearray(READ_BUFFER))
        loop = asyncio.get_running_loop()
        try:
            is_more = True
            while is_more:
                filled = await loop.run_in_executor(None, self._fill, buffer)
                is_more = filled == len(buffer)
                if filled:
                    yield buffer[:filled]
        except OSError as error:
            raise from_os_error(error, "standard input") from error
        finally:
            self._stopped.set()

    def _fill(self, buffer: memoryview) -> int:
        """Read until the buffer is full or the input ends."""
        waiter = select.poll()
        waiter.register(self._fd, select.POLLIN)
        filled = 0
        while filled < len(buffer) and not self._stopped.is_set():
            if waiter.poll(_POLL_MS):
                try:
                    count = os.readv(self._fd, [buffer[filled:]])
                except BlockingIOError:
                    continue  # somebody else was quicker
                if not count:
                    break
                filled += count
        return filled

    async def aclose(self) -> None:
        self._stopped.set()


class Output:
    """A descriptor that takes the bytes of files, from kernel to kernel where it can.

    What goes to a pipe are the pages of the file themselves, so the file must not be written to
    afterwards. BrokenPipeError and other errors of the descriptor come out as they are.
    Raises UsageError for the standard output of a process that was started without.
    """

    def __init__(self, fd: int) -> None:
        if fd == 1 and sys.__stdout__ is None:
            raise UsageError("standard output is closed", where=STREAM)
        self._fd = fd
        self._stopped = threading.Event()
        self._waiter = select.poll()
        self._waiter.register(fd, select.POLLOUT)
        status = os.fstat(fd)
        self._is_pipe = stat.S_ISFIFO(status.st_mode)
        self._blocks = stat.S_ISSOCK(status.st_mode) or os.isatty(fd)
        if self._is_pipe:
            _widen(fd)
        # The ways to go, best first; one that turns out not to be there is dropped.
        self._ways = [self._copy]
        if sys.platform == "linux":
            self._ways = [self._splice, self._copy] if self._is_pipe else [self._send, self._copy]

    async def take(self, fd: int, start: int, stop: int, progress: Progress) -> None:
        """Write the bytes [start, stop) of the file `fd`. Raises Changed when it is shorter."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._take, fd, start, stop, progress)

    @property
    def takes_pages(self) -> bool:
        """True for a pipe: pages of files are handed to it. Others are better served from memory."""
        return self._is_pipe

    async def put(self, data: memoryview, progress: Progress) -> None:
        """Write what is in memory."""
        await asyncio.get_running_loop().run_in_executor(None, self._put, data, progress)

    def _put(self, data: memoryview, progress: Progress) -> None:
        while data and not self._stopped.is_set():
            try:
                moved = os.write(self._fd, data[: self._bite(min(_SLICE, len(data)))])
            except BlockingIOError:
                self._waiter.poll(_POLL_MS)
                continue
            data = data[moved:]
            progress(moved)

    def stop(self) -> None:
        """Let a `take` or `put` that is under way end before its time."""
        self._stopped.set()

    def _take(self, fd: int, start: int, stop: int, progress: Progress) -> None:
        while start < stop and not self._stopped.is_set():
            try:
                moved = self._ways[0](fd, start, min(_SLICE, stop - start))
            except BlockingIOError:
                self._waiter.poll(_POLL_MS)
                continue
            except OSError as error:
                if error.errno in _NOT_HERE and len(self._ways) > 1:
                    del self._ways[0]
                    continue
                raise
            if not moved:
                raise Changed("the file became shorter while it was read")
            start += moved
            progress(moved)

    def _splice(self, fd: int, start: int, count: int) -> int:
        return os.splice(fd, self._fd, count, offset_src=start, flags=os.SPLICE_F_NONBLOCK)

    def _send(self, fd: int, start: int, count: int) -> int:
        return os.sendfile(self._fd, fd, start, self._bite(count))

    def _copy(self, fd: int, start: int, count: int) -> int:
        data = os.pread(fd, min(self._bite(count), READ_BUFFER), start)
        return os.write(self._fd, data) if data else 0

    def _bite(self, count: int) -> int:
        """How much to move at once; waits for what may block. Raises BlockingIOError if it would."""
        if not (self._blocks or self._is_pipe):
            return count
        if not self._waiter.poll(_POLL_MS):
            raise BlockingIOError
        return min(count, _SMALL_SLICE)
