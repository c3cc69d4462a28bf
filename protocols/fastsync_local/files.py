"""Files of a local store: one being read, one being written."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import AsyncIterator, Callable
from typing import Final, NamedTuple

from fastsync import log
from fastsync.backend import READ_BUFFER, Buffer, Entry, PinnedFile, WriteOptions
from fastsync.errors import (
    Changed,
    FastsyncError,
    IntegrityError,
    NameRefused,
    TicketRefused,
    from_os_error,
)
from fastsync.names import safe_parts
from fastsync_local.copying import Rules, Target, drop_cache, same_state, write_all
from fastsync_local.crew import Crew
from fastsync_local.held import let_go
from fastsync_local.telling import tell_files
from fastsync_local.temporary import KEPT_MODE, TEMPORARY


def write_error(
    error: OSError, where: str, place: int | str, need: int | None, held: int = 0
) -> FastsyncError:
    """The error of ours for a write that failed. Of a full disk it says how much would have been needed
    and how much is free at `place` (a path or a descriptor), `held` bytes more being given back."""
    made = from_os_error(error, where)
    if error.errno != errno.ENOSPC:
        return made
    try:
        status = os.statvfs(place)
    except OSError:
        return made
    free = status.f_bavail * status.f_frsize + held
    if status.f_files and not status.f_favail:
        made.message += ": no inode is free"
    elif need is not None and need > free:
        made.message += f": need {_in_words(need)}, free {_in_words(free)}"
    return made


def _in_words(size: int) -> str:
    if size < 1024:
        return f"{size} bytes"
    amount, units = size / 1024, iter(("KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while amount >= 1024 and unit != "TiB":
        amount, unit = amount / 1024, next(units)
    return f"{amount:.1f} {unit}"


class LocalFile:
    """See `PinnedFile`."""

    def __init__(self, fd: int, status: os.stat_result, where: str) -> None:
        self._fd = fd
        self._status = status
        self.where = where

    def fileno(self) -> int:
        return self._fd

    def verify(self) -> None:
        if not same_state(self._status, os.fstat(self._fd)):
            raise Changed("the file was written to while it was read", where=self.where)

    def close(self) -> None:
        if self._fd >= 0:
            let_go(self._fd)
            self._fd = -1


class Left(NamedTuple):
    """A file that an upload left behind: its directory below the root, its temporary name, and which
    file that was."""

    directory: str
    name: str
    device: int
    inode: int

    @classmethod
    def read(cls, ticket: str) -> Left:
        """What a ticket says. Raises TicketRefused for one that is not ours."""
        import json  # as below: only uploads that may be gone on with need it

        try:
            left = cls(*json.loads(ticket))
            if TEMPORARY.fullmatch(left.name) is None:
                raise ValueError(left.name)
            if left.directory:
                safe_parts(left.directory)
        except (ValueError, TypeError, AttributeError, NameRefused) as error:
            raise TicketRefused("not the ticket of a file on a disk") from error
        return left

    def is_at(self, status: os.stat_result) -> bool:
        """True for the file itself, untouched by others: in a shared directory anybody may move files."""
        return (
            stat.S_ISREG(status.st_mode)
            and (status.st_dev, status.st_ino) == (self.device, self.inode)
            and (status.st_uid, status.st_nlink) == (os.geteuid(), 1)
            and not status.st_mode & 0o077
        )


# What file systems keep holes by.
_BLOCK: Final = 4096
_ZEROS: Final = bytes(_BLOCK)


class LocalUpload:
    """See `Upload`. Keeps account of the ranges written: a hole nobody wrote is never committed."""

    def __init__(
        self,
        crew: Crew,
        directory: int,
        target: Target,
        path: str,
        like: Entry,
        where: str,
        options: WriteOptions,
    ) -> None:
        self._crew = crew
        self._directory = directory
        self._target = target
        self._path = path
        self._like = like
        self._where = where
        self._options = options
        self._covered: list[tuple[int, int]] = []
        self._open = True
        self._is_on_disk = False
        self._left: Left | None = None
        if options.resumable and not options.inplace:
            status = os.fstat(target.fd)
            os.fchmod(target.fd, KEPT_MODE)
            folder = path.rpartition("/")[0]
            self._left = Left(folder, target.temporary, status.st_dev, status.st_ino)

    @property
    def ticket(self) -> str | None:
        """See `LeavesTraces.ticket`."""
        if self._left is None:
            return None
        import json

        return json.dumps(self._left)

    def fileno(self) -> int:
        return self._target.fd

    def covers(self, start: int, stop: int) -> None:
        """Note that [start, stop) was written through the descriptor."""
        merged = []
        for low, high in self._covered:
            if high < start or low > stop:
                merged.append((low, high))
            else:
                start, stop = min(start, low), max(stop, high)
        merged.append((start, stop))
        self._covered = sorted(merged)

    async def write(self, start: int, data: Buffer) -> None:
        view = memoryview(data)
        # The file is new, and what is not written to is a hole; a file that is written over has old bytes.
        holes = self._options.sparse and not self._options.inplace
        write = write_data if holes else write_all
        try:
            await self._crew.in_thread(lambda: write(self._target.fd, view, start))
        except OSError as error:
            raise self._failed(error) from error
        self.covers(start, start + len(view))

    async def read_back(self, start: int, stop: int) -> AsyncIterator[Buffer]:
        """See `ReadsBack.read_back`. From the disk if the file is to be durable, else maybe from memory."""
        run, fd = self._crew.in_thread, self._target.fd
        block = memoryview(bytearray(max(1, min(READ_BUFFER, stop - start))))

        def fill() -> int:
            return os.preadv(fd, [block[: stop - start]], start)

        try:
            if self._options.durable and not self._is_on_disk:
                self._is_on_disk = True
                await run(lambda: drop_cache(fd))
            while start < stop:
                count = await run(fill)
                if not count:
                    raise IntegrityError(
                        f"the file that was written ends at byte {start}", where=self._where
                    )
                start += count
                yield block[:count]
        except OSError as error:
            raise from_os_error(error, self._where) from error

    def _failed(self, error: OSError) -> FastsyncError:
        held = os.fstat(self._target.fd).st_blocks * 512 if self._target.fd >= 0 else 0
        made = write_error(error, self._where, self._directory, self._like.size, held)
        if error.errno == errno.EROFS and not self._options.inplace and self._target.temporary:
            # `abort` cannot remove it there, and has nobody to tell.
            made.message += f"; {self._target.temporary} is left for a later run"
        return made

    async def commit(self, size: int) -> Entry:
        if self._covered != ([(0, size)] if size else []):
            await self.abort()
            raise IntegrityError(
                f"{sum(high - low for low, high in self._covered)} of {size} bytes were written",
                where=self._where,
            )
        began = time.monotonic()
        try:
            await self._crew.in_thread(lambda: self._commit(size))
            if log.level <= log.TRACE:
                tell_files("commit", lambda _path: self._where, [("", size)], [None], began)
        except OSError as error:
            raise self._failed(error) from error
        finally:
            await self.abort()
        mtime_ns = self._like.mtime_ns if self._options.mtime else None
        return Entry(self._path, "file", size, mtime_ns, self._like.mode)

    def _commit(self, size: int) -> None:
        like = self._like
        self._target.finish(size, like.mtime_ns or 0, like.mode or 0, like.owner)
        if self._options.durable:
            os.fsync(self._directory)

    async def abort(self) -> None:
        await self._crew.in_thread(self.drop)

    def drop(self) -> None:
        """What `abort` does, for a caller on a thread."""
        if self._open:
            self._open = False
            self._left = None
            self._target.drop()
            let_go(self._directory)

    async def leave(self) -> None:
        """See `Leavable.leave`."""
        self.let_go()

    def let_go(self) -> None:
        """What `leave` does, for a caller on a thread."""
        if self._open:
            self._open = False
            self._target.leave()
            let_go(self._directory)


def write_data(fd: int, data: memoryview, position: int) -> None:
    """Write what is not blocks of zeros. Raises OSError."""
    begun = 0
    for low in range(0, len(data), _BLOCK):
        block = data[low : low + _BLOCK]
        if block == _ZEROS[: len(block)]:
            if begun < low:
                write_all(fd, data[begun:low], position + begun)
            begun = low + len(block)
    if begun < len(data):
        write_all(fd, data[begun:], position + begun)


def rules_for(options: WriteOptions, *, follow: bool = False) -> Rules:
    """The rules of a copy that these options ask for."""
    return Rules(
        follow=follow,
        mtime=options.mtime,
        mode=options.mode,
        owner=options.owner,
        special=options.special,
        inplace=options.inplace,
        durable=options.durable,
        sparse=options.sparse,
        reread=options.reread,
    )


def digest(file: PinnedFile, algorithm: str, stopped: Callable[[], bool]) -> str:
    """Hex digest of an open file, verified to be of one version."""
    import hashlib  # OpenSSL is a millisecond that most runs need not spend

    state = hashlib.new(algorithm, usedforsecurity=False)
    buffer = memoryview(bytearray(READ_BUFFER))
    position = 0
    while not stopped():
        count = os.preadv(file.fileno(), [buffer], position)
        if not count:
            break
        state.update(buffer[:count])
        position += count
    file.verify()
    return state.hexdigest()
