"""One file being written, in parts, over as many connections as there are."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, NamedTuple

from fastsync.backend import READ_BUFFER, Buffer, Entry, Progress, WriteOptions, closing
from fastsync.errors import (
    Changed,
    Conflict,
    FastsyncError,
    IntegrityError,
    NameRefused,
    NotFound,
    TicketRefused,
    caused,
)
from fastsync.names import safe_parts
from fastsync_sftp import packets
from fastsync_sftp.bulk import RemoteFile, Writing, from_file, from_memory
from fastsync_sftp.packets import CLOSE, CREATE, FOR_READING, FOR_WRITING, FSTAT, LSTAT, REMOVE
from fastsync_sftp.placing import Finish, explain, mode_for, replace
from fastsync_sftp.pool import Pool
from fastsync_sftp.scripts import Script, Stopped, run
from fastsync_sftp.session import Session
from fastsync_sftp.small import open_new
from fastsync_sftp.temporary import TEMPORARY

# Bytes on their way, while what was written is read back.
_BACK_AHEAD: Final = READ_BUFFER


class Left(NamedTuple):
    """A file that an upload left behind: its directory below the root, and its temporary name."""

    directory: str
    name: str

    @classmethod
    def read(cls, ticket: str) -> Left:
        """What a ticket says. Raises TicketRefused for one that is not ours."""
        try:
            left = cls(*json.loads(ticket))
            if TEMPORARY.fullmatch(left.name.encode()) is None:
                raise ValueError(left.name)
            if left.directory:
                safe_parts(left.directory)
        except (ValueError, TypeError, AttributeError, NameRefused) as error:
            raise TicketRefused("not the ticket of a file at an SFTP server") from error
        return left


# A hole that is shorter is sent: a request less, and a piece less to keep account of.
_HOLE: Final = 64 << 10
_PIECES: Final = 64


def data_in(fd: int, start: int, stop: int) -> list[tuple[int, int]]:
    """What of a range is no hole. Its last byte counts as data, so that the file at the server is never
    shorter than what was written of it, whatever that makes of attributes."""
    pieces: list[tuple[int, int]] = []
    position = start
    try:
        if os.fstat(fd).st_size < stop:
            return [(start, stop)]  # it became shorter, which is noticed when it is read
        while position < stop:
            try:
                low = min(os.lseek(fd, position, os.SEEK_DATA), stop - 1)
            except OSError as error:
                if error.errno != errno.ENXIO:  # no data to the end of the file
                    raise
                low = stop - 1
            high = min(os.lseek(fd, low, os.SEEK_HOLE), stop)
            high = max(high, low + 1)
            if pieces and low - pieces[-1][1] < _HOLE:
                low = pieces.pop()[0]
            elif not pieces and low - start < _HOLE:
                low = start
            pieces.append((low, high))
            position = high
    except OSError:
        return [(start, stop)]  # a file system that does not tell
    if pieces[-1][1] < stop:
        pieces.append((stop - 1, stop))
    return pieces if len(pieces) <= _PIECES else [(start, stop)]


class SftpUpload:
    """See `Upload`. The file has a temporary name in the same directory until `commit`; one that is
    written in place is there from the beginning."""

    def __init__(
        self,
        pool: Pool,
        temporary: bytes,
        target: bytes,
        path: str,
        like: Entry,
        options: WriteOptions,
        where: str,
    ) -> None:
        self._pool = pool
        self.temporary = temporary
        self.target = target
        self._path = path
        self._like = like
        self._options = options
        self._where = where
        self.file = RemoteFile(temporary, FOR_WRITING, where)
        self._covered: list[tuple[int, int]] = []
        self._is_over = False
        self._may_be_placed = False
        self._left: Left | None = None
        if options.resumable and not options.inplace:
            name = temporary.rpartition(b"/")[2].decode()
            self._left = Left(path.rpartition("/")[0], name)

    @property
    def ticket(self) -> str | None:
        """See `LeavesTraces.ticket`."""
        return None if self._left is None else json.dumps(self._left)

    def resume(self, covered: Sequence[tuple[int, int]]) -> None:
        """These ranges were written by an earlier process."""
        for start, stop in covered:
            self._cover(start, stop)

    def write_in_place(self) -> None:
        """There is no other name: whoever looks sees the file change."""
        self.temporary = self.target
        self.file = RemoteFile(self.target, FOR_WRITING, self._where)

    # -- bytes ---------------------------------------------------------------------------------------

    async def write(self, start: int, data: Buffer) -> None:
        """See `Upload.write`."""
        await self._carry(start, start + len(data), from_memory(start, data), lambda _: None)

    async def write_from_file(self, start: int, stop: int, fd: int, progress: Progress) -> None:
        """See `WritesFromFile.write_from_file`."""
        fetch = from_file(self._pool.disk, fd)
        pieces = [(start, stop)]
        if self._options.sparse and not self._options.inplace:
            pieces = await asyncio.to_thread(data_in, fd, start, stop)
        if pieces == [(start, stop)]:
            await self._carry(start, stop, fetch, progress)
            return
        carrying = (self._carry(*piece, fetch, lambda _: None) for piece in pieces)
        # To the end of all, whatever becomes of one: they read from the descriptor.
        for error in await asyncio.gather(*carrying, return_exceptions=True):
            if error is not None:
                raise error
        self._cover(start, stop)
        progress(stop - start)

    async def _carry(
        self,
        start: int,
        stop: int,
        fetch: Callable[[int, int, Callable[[Any], None]], None],
        progress: Progress,
    ) -> None:
        block = (await self._pool.session()).limits.write
        try:
            await self._pool.carry(Writing(self.file, start, stop, block, fetch, progress))
        except FastsyncError as error:
            said = error
            better = await self._pool.run(lambda session: explain(session, said, self.target))
            raise better.at(self._where) from caused(better, error)
        self._cover(start, stop)

    async def read_back(self, start: int, stop: int) -> AsyncIterator[Buffer]:
        """See `ReadsBack.read_back`."""
        if start >= stop:
            return

        def open_it(_: Session) -> Script[bytes]:
            (reply,) = yield [packets.open_file(self.temporary, FOR_READING)]
            return packets.must_be_handle(reply)

        file = RemoteFile(self.temporary, FOR_READING, self._where)
        session = await self._pool.session()
        try:
            file.adopt(session, await run(session, open_it))
            async with closing(self._pool.read_in_order(file, start, stop, _BACK_AHEAD)) as buffers:
                async for data in buffers:
                    yield data
        except FastsyncError as error:
            error.at(self._where)
            if isinstance(error, Changed):
                raise IntegrityError(
                    "the file that was written is shorter", where=self._where
                ) from error
            raise
        finally:
            file.close()

    def _cover(self, start: int, stop: int) -> None:
        merged = []
        for low, high in self._covered:
            if high < start or low > stop:
                merged.append((low, high))
            else:
                start, stop = min(start, low), max(stop, high)
        if start < stop:
            merged.append((start, stop))
        self._covered = sorted(merged)

    # -- the end -------------------------------------------------------------------------------------

    async def commit(self, size: int) -> Entry:
        """See `Upload.commit`."""
        if self._covered != ([(0, size)] if size else []):
            written = sum(high - low for low, high in self._covered)
            await self.abort()
            raise IntegrityError(f"{written} of {size} bytes were written", where=self._where)
        try:
            await self._pool.run(lambda session: self._finish(session, size))
        except FastsyncError as error:
            if not error.transient:
                await self.abort()
            error.at(self._where)
            raise
        self._is_over = True
        self._left = None
        self.file.close()
        like, options = self._like, self._options
        mtime_ns = like.mtime_ns if options.mtime else None
        if mtime_ns is not None:
            mtime_ns = packets.seconds_of(mtime_ns) * 1_000_000_000
        return Entry(self._path, "file", size, mtime_ns, mode_for(like, options))

    def _finish(self, session: Session, size: int) -> Script[None]:
        handle = self.file.handles.pop(session, None)
        # Whatever else is open is closed now, so that nothing of it can come after the time is set.
        self.file.close(but=session)
        if handle is None:
            (reply,) = yield [packets.open_file(self.temporary, FOR_WRITING)]
            try:
                handle = packets.must_be_handle(reply)
            except NotFound:
                if self._may_be_placed and (yield from self._is_placed(size)):
                    return
                raise
        finish = Finish(
            session, handle, self._like, self._options, size if self._options.inplace else None
        )
        try:
            replies = yield [
                *finish.requests,
                packets.request(FSTAT, handle),
                packets.request(CLOSE, handle),
            ]
            finish.check(replies[:-2])
            now = packets.must_be_attributes(replies[-2])
            if now.size is not None and now.size != size:
                raise IntegrityError(f"{size} bytes were written, the server has {now.size}")
            packets.must_be_ok(replies[-1])
            if self.temporary != self.target:
                self._may_be_placed = True
                yield from replace(session, self.temporary, self.target)
        except FastsyncError as error:
            raise (yield from explain(session, error, self.target)) from error

    def _is_placed(self, size: int) -> Script[bool]:
        """True when it was the answer to the rename that was lost, and not the rename."""
        (reply,) = yield [packets.on_path(LSTAT, self.target)]
        if reply[0] != packets.ATTRS:
            return False
        now = packets.must_be_attributes(reply)
        mtime_ns = self._like.mtime_ns if self._options.mtime else None
        return now.size == size and (mtime_ns is None or now.mtime == packets.seconds_of(mtime_ns))

    async def abort(self) -> None:
        """See `Upload.abort`."""
        if self._is_over:
            return
        self._is_over = True
        self.file.close()
        if self.temporary == self.target:
            return
        try:
            await self._pool.run(self._remove)
        except FastsyncError:
            return  # the server is out of reach; the name says whose it is, the ticket where it is
        self._left = None

    async def leave(self) -> None:
        """See `Leavable.leave`."""
        self._is_over = True
        self.file.close()

    def _remove(self, session: Session) -> Script[None]:
        yield [packets.on_path(REMOVE, self.temporary)]


def go_on(session: Session, upload: SftpUpload, end: int) -> Script[bool]:
    """Open the file that an upload of an earlier process has left; False if it is not there as it was,
    with `end` bytes or more and nobody else allowed to write to it."""
    look, reply = yield [
        packets.on_path(LSTAT, upload.temporary),
        packets.open_file(upload.temporary, FOR_WRITING),
    ]
    try:
        handle = packets.must_be_handle(reply)
    except FastsyncError as error:
        if error.transient:
            raise
        return False  # it is not there, or not to be gone on with
    try:
        now = packets.must_be_attributes(look)
        is_ours = now.kind == "file" and not (now.mode or 0) & 0o022
        if is_ours and now.size is not None and now.size >= end:
            upload.file.adopt(session, handle)
            return True
    except FastsyncError:
        pass
    yield [packets.request(CLOSE, handle)]
    return False


def begin(session: Session, upload: SftpUpload, like: Entry, options: WriteOptions) -> Script[None]:
    """Open the file that an upload writes to."""
    target, temporary = upload.target, upload.temporary
    if options.inplace:
        (look,) = yield [packets.on_path(LSTAT, target)]
        if look[0] == packets.ATTRS and packets.must_be_attributes(look).kind != "file":
            raise Conflict("something that is no regular file stands there")
        upload.write_in_place()
        (reply,) = yield [packets.open_file(target, FOR_WRITING | CREATE)]
    else:
        look, reply = yield [packets.on_path(LSTAT, target), open_new(temporary, like, options)]
    try:
        handle = packets.must_be_handle(reply)
    except FastsyncError as error:
        raise (yield from explain(session, error, target)) from error
    try:
        if look[0] == packets.ATTRS and packets.must_be_attributes(look).kind == "dir":
            raise Conflict("a directory stands there")
    except (FastsyncError, Stopped):
        yield [packets.request(CLOSE, handle), packets.on_path(REMOVE, temporary)]
        raise
    upload.file.adopt(session, handle)
