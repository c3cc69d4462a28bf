"""Ranges of large files in blocks, spread over every connection there is.

A block goes to the connection that has least on its way, so a slow one gets less and none runs dry while
there is work. A file is opened on a connection when the first block goes there. Nothing waits per block.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from fastsync.backend import Buffer, Entry, Progress
from fastsync.errors import Changed, FastsyncError, NotFound, Stalled, Vanished, from_os_error
from fastsync_sftp import packets
from fastsync_sftp.disk import Disk
from fastsync_sftp.packets import DATA, EOF, HANDLE, LOST, NO_SUCH_FILE, Attributes
from fastsync_sftp.session import Session

# The most bytes of blocks on their way over one connection: twice the window of a session of OpenSSH
# (2 MiB), so that there is always more to send.
LANE_BYTES: Final = 4 << 20
# A block is overdue after so many round trips and seconds.
_OVERDUE: Final = 3
_OVERDUE_S: Final = 0.1
# A server may send less than it was asked for, but not so little all the time.
_DROP: Final = 512
_MOST_DROPS: Final = 1000
# Blocks begin at multiples of this, for the sake of the disks on both sides.
_ALIGNED: Final = 4 << 10


class RemoteFile:
    """A file at the server and its handles, one for each connection that moves some of it.

    With `entry`, every handle is checked to be of exactly that version before its first block counts, and
    `look` is how the file is looked at by its name: through links or not.
    """

    def __init__(
        self,
        path: bytes,
        flags: int,
        where: str,
        entry: Entry | None = None,
        look: int = packets.LSTAT,
    ) -> None:
        self.look = look
        self.path = path
        self.where = where
        self.entry = entry
        self.handles: dict[Session, bytes] = {}
        self._flags = flags
        self._opening: set[Session] = set()
        self._refused: set[Session] = set()
        self._closed = False

    def adopt(self, session: Session, handle: bytes) -> None:
        """Use a handle that somebody else has opened."""
        self.handles[session] = handle

    def knows(self, session: Session) -> bool:
        """True when it is open there, will be, or cannot be."""
        return session in self.handles or session in self._opening or session in self._refused

    def refuse(self, session: Session) -> bool:
        """Do without that connection, where it could not be opened. False if there is no other."""
        self._refused.add(session)
        return self.is_opened

    @property
    def is_opened(self) -> bool:
        """True when it is open where blocks may go, or will be somewhere."""
        if self._opening:
            return True
        return any(session.alive and not session.is_spare for session in self.handles)

    def open_on(self, session: Session, then: Callable[[FastsyncError | None], None]) -> None:
        """Open it on one more connection; `then` hears how that went."""

        def answered(kind: int, body: Any) -> None:
            self._opening.discard(session)
            if kind == HANDLE:
                handle = packets.must_be_handle((kind, body))
                if self._closed:
                    session.submit(packets.request(packets.CLOSE, handle), _ignore)
                else:
                    self.handles[session] = handle
                then(None)
                return
            error = packets.error_of((kind, body))
            if self.entry is not None and packets.status_of((kind, body)) == NO_SUCH_FILE:
                error = Vanished("the file is gone since it was listed")
            then(error.at(self.where))

        self._opening.add(session)
        session.submit(packets.open_file(self.path, self._flags), answered)

    def forget(self, session: Session) -> None:
        """The connection is gone."""
        self.handles.pop(session, None)
        self._opening.discard(session)
        self._refused.discard(session)

    def check(self, now: Attributes) -> FastsyncError | None:
        """Changed, if the file is not the one that was listed."""
        entry = self.entry
        if entry is None or is_version(entry, now):
            return None
        return Changed("the file was written to since it was listed", where=self.where)

    def close(self, but: Session | None = None) -> list[asyncio.Future[packets.Reply]]:
        """Close all handles, save one; the answers, for who waits for them. Idempotent."""
        if but is None:
            self._closed = True
        answers = []
        for session in [session for session in self.handles if session is not but]:
            handle = self.handles.pop(session)
            if session.alive:
                answers.append(session.call(packets.request(packets.CLOSE, handle)))
        return answers


def is_version(entry: Entry, now: Attributes) -> bool:
    """True when a file is still the one that was listed, as far as a server tells."""
    if now.kind != "file" or (now.size is not None and now.size != entry.size):
        return False
    if now.mtime is None or entry.mtime_ns is None:
        return True
    return packets.seconds_of(entry.mtime_ns) == now.mtime


def _ignore(_kind: int, _body: Any) -> None:
    """For an answer nobody needs."""


class Transfer:
    """One range of a file on its way. `done` is set when the last block has arrived where it goes, or at
    the first error, once nothing of it touches buffers or descriptors any more."""

    def __init__(self, file: RemoteFile, start: int, stop: int, block: int) -> None:
        self.file = file
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._next = start
        self._stop = stop
        self._block = even_block(stop - start, block)
        self._again: list[tuple[int, int]] = []  # the rest of blocks that came back short
        self._busy = 0
        self._error: FastsyncError | None = None
        self._pump: Callable[[], None] = lambda: None

    def attach(self, pump: Callable[[], None]) -> None:
        self._pump = pump

    @property
    def has_blocks(self) -> bool:
        """True while there is something to ask for."""
        return self._error is None and (bool(self._again) or self._next < self._stop)

    @property
    def is_long(self) -> bool:
        """True when what is left is worth a handle on one more connection."""
        return self._stop - self._next > 2 * self._block

    def issue(self, session: Session) -> int:
        """Send the next block's request over a connection that has the file open; its length."""
        if self._again:
            start, stop = self._again.pop()
        else:
            start = self._next
            stop = self._next = min(start + self._block, self._stop)
        self._busy += 1
        session.outstanding += stop - start
        self._send(session, start, stop)
        return stop - start

    def _send(self, session: Session, start: int, stop: int) -> None:
        raise NotImplementedError

    def repeat(self, session: Session) -> bool:
        """Have an idle session do once more what another one is slow to do. Nothing by default: a block
        that is written twice would still have to be waited for."""
        return False

    def fail(self, error: FastsyncError) -> None:
        """Ask for no more; done once what is on its way has come back."""
        if self._error is None:
            self._error = error
        self._settle()

    def _leave(self, session: Session, length: int, took_s: float = 0.0) -> None:
        """A block has ended, this way or that."""
        self._busy -= 1
        session.outstanding -= length
        session.pace(length, took_s, LANE_BYTES)
        self._settle()
        self._pump()

    def _settle(self) -> None:
        if self._busy or self.done.done():
            return
        if self._error is not None:
            self.done.set_exception(self._error)
            self.done.exception()  # whoever waits will see it; if nobody does any more, all is well
        elif not self._again and self._next >= self._stop:
            self.done.set_result(None)


def even_block(length: int, block: int) -> int:
    """The block size, at most `block`, that cuts a range into pieces of nearly equal length."""
    if length <= block:
        return max(length, 1)
    pieces = -(-length // block)
    even = -(-length // pieces)
    return min(block, -(-even // _ALIGNED) * _ALIGNED)


class Arrivals(Protocol):
    """Where the bytes of a read go; `then` is called once they are there, with an error or None."""

    def __call__(
        self, start: int, pieces: list[memoryview], then: Callable[[FastsyncError | None], None]
    ) -> None: ...


class Reading(Transfer):
    """A range being read. The file is looked at by its name and, on each connection and after the last
    block has been asked for, by its handle: one that is replaced or written to is noticed.

    A block that does not come while other connections have nothing to do is asked for once more.
    """

    def __init__(
        self, file: RemoteFile, start: int, stop: int, block: int, arrivals: Arrivals
    ) -> None:
        super().__init__(file, start, stop, block)
        self._arrivals = arrivals
        self._drops = 0
        self._checked: set[Session] = set()
        self._now = asyncio.get_running_loop().time
        # Blocks on their way by where they begin: where they end, where and when they were asked for.
        self._flying: dict[int, tuple[int, Session, float]] = {}

    def repeat(self, session: Session) -> bool:
        """Ask an idle session for the block that others keep waiting for longest, if it is overdue."""
        if self._error is not None or session not in self.file.handles:
            return False
        for start, (stop, other, asked) in self._flying.items():
            late_s = _OVERDUE * session.rtt_s + _OVERDUE_S
            if other is not session and self._now() - asked > late_s:
                # The other answer will be one that nobody waits for.
                session.outstanding += stop - start
                self._send(session, start, stop)
                return True
        return False

    def _send(self, session: Session, start: int, stop: int) -> None:
        length = stop - start
        asked = self._now()

        def answered(kind: int, body: Any) -> None:
            took_s = self._now() - asked
            if self._flying.get(start, (0, None, 0.0))[1] is not session:
                session.outstanding -= length
                self._pump()
                return
            del self._flying[start]
            if kind != DATA:
                self._leave_with(session, length, _read_error(self.file, kind, body))
                return
            got = sum(map(len, body))
            if not 0 < got <= length:
                error = FastsyncError(f"the server sent {got} bytes where {length} were asked for")
                self._leave_with(session, length, error.at(self.file.where))
                return
            if got < length:
                self._again.append((start + got, stop))
                self._drops += got < _DROP
                if self._drops > _MOST_DROPS:
                    error = FastsyncError("the server sends next to nothing at a time")
                    self._leave_with(session, length, error.at(self.file.where))
                    return

            def arrived(error: FastsyncError | None) -> None:
                self._leave_with(session, length, error, took_s)

            self._arrivals(start, body, arrived)

        handle = self.file.handles[session]
        self._flying[start] = (stop, session, asked)
        session.submit_block(packets.read_block(handle, start, length), 0, answered)
        if not self._checked:
            self._check(session, packets.on_path(self.file.look, self.file.path))
        if session not in self._checked or not self.has_blocks:
            self._checked.add(session)
            self._check(session, packets.request(packets.FSTAT, handle))

    def _check(self, session: Session, look: packets.Request) -> None:
        def answered(kind: int, body: Any) -> None:
            error: FastsyncError | None
            try:
                error = self.file.check(packets.must_be_attributes((kind, body)))
            except NotFound:
                error = Vanished("the file is gone since it was listed", where=self.file.where)
            except FastsyncError as failed:
                error = failed.at(self.file.where)
            self._leave_with(session, 0, error)

        self._busy += 1
        session.submit(look, answered)

    def _leave_with(
        self, session: Session, length: int, error: FastsyncError | None, took_s: float = 0.0
    ) -> None:
        if error is not None and self._error is None:
            self._error = error
        self._leave(session, length, took_s)


class OrderedReading(Reading):
    """A range that is consumed in order, with at most `window` bytes asked for ahead of the consumer.

    What has arrived and waits takes nothing from other transfers: a slow consumer holds up only itself.
    """

    def __init__(self, file: RemoteFile, start: int, stop: int, block: int, window: int) -> None:
        super().__init__(file, start, stop, block, self._arrive)
        self._window = max(window, self._block)
        self._position = start
        self._arrived: dict[int, list[memoryview]] = {}
        self._ready = asyncio.Event()
        self.done.add_done_callback(lambda _: self._ready.set())

    @property
    def has_blocks(self) -> bool:
        return super().has_blocks and (
            bool(self._again) or self._next - self._position < self._window
        )

    def _arrive(
        self, start: int, pieces: list[memoryview], then: Callable[[FastsyncError | None], None]
    ) -> None:
        self._arrived[start] = pieces
        self._ready.set()
        then(None)

    async def next(self) -> bytes | None:
        """The next bytes, None after the last. Raises the error of the read."""
        while (pieces := self._arrived.pop(self._position, None)) is None:
            if self.done.done():
                self.done.result()
                return None
            self._ready.clear()
            await self._ready.wait()
        data = b"".join(pieces)
        self._position += len(data)
        self._pump()
        return data


def _read_error(file: RemoteFile, kind: int, body: Any) -> FastsyncError:
    if kind != LOST and packets.status_of((kind, body)) == EOF:
        return Changed("the file became shorter while it was read", where=file.where)
    return packets.error_of((kind, body)).at(file.where)


class _Gapless:
    """Blocks end in any order; progress is told of what is there without a gap."""

    def __init__(self, start: int, progress: Progress) -> None:
        self._progress = progress
        self._reached = start
        self._beyond: dict[int, int] = {}  # blocks after a gap, by where they begin: where they end

    def __call__(self, start: int, stop: int) -> None:
        self._beyond[start] = stop
        before = self._reached
        while (reached := self._beyond.pop(self._reached, None)) is not None:
            self._reached = reached
        if self._reached > before:
            self._progress(self._reached - before)


class Writing(Transfer):
    """A range being written, from memory or, by way of `Disk`, from a local file."""

    def __init__(
        self,
        file: RemoteFile,
        start: int,
        stop: int,
        block: int,
        fetch: Callable[[int, int, Callable[[Any], None]], None],
        progress: Progress,
    ) -> None:
        super().__init__(file, start, stop, block)
        self._fetch = fetch
        self._written = _Gapless(start, progress)

    def _send(self, session: Session, start: int, stop: int) -> None:
        length = stop - start

        def answered(kind: int, body: Any) -> None:
            if kind == LOST or packets.status_of((kind, body)) != packets.OK:
                if self._error is None:
                    self._error = packets.error_of((kind, body)).at(self.file.where)
            else:
                self._written(start, stop)
            self._leave(session, length)

        def fetched(data: Any) -> None:
            handle = self.file.handles.get(session)
            if self._error is None:
                if isinstance(data, OSError):
                    self._error = from_os_error(data, f"offset {start}")
                elif len(data) < length:
                    self._error = Changed("the file became shorter while it was read")
                elif handle is None:
                    self._error = session.error or FastsyncError("the file was closed")
            if self._error is not None or handle is None:
                self._leave(session, length)
                return
            session.submit_block(packets.write_block(handle, start, data), length, answered)

        self._fetch(start, stop, fetched)


def from_memory(base: int, data: Buffer) -> Callable[[int, int, Callable[[Any], None]], None]:
    """Blocks of a buffer that stands for the range from `base` on."""
    view = memoryview(data)

    def fetch(start: int, stop: int, then: Callable[[Any], None]) -> None:
        then(view[start - base : stop - base])

    return fetch


def from_file(disk: Disk, fd: int) -> Callable[[int, int, Callable[[Any], None]], None]:
    """Blocks of a local file."""

    def fetch(start: int, stop: int, then: Callable[[Any], None]) -> None:
        disk.read(fd, start, stop - start, then)

    return fetch


def into_file(disk: Disk, fd: int, where: str, begin: int, progress: Progress) -> Arrivals:
    """Blocks of a range that begins at `begin`, to the same offsets of a local file."""
    arrived = _Gapless(begin, progress)

    def arrive(
        start: int, pieces: list[memoryview], then: Callable[[FastsyncError | None], None]
    ) -> None:
        length = sum(map(len, pieces))

        def written(result: Any) -> None:
            if result is not None:
                then(from_os_error(result, where))
                return
            arrived(start, start + length)
            then(None)

        disk.write(fd, start, pieces, written)

    return arrive


class Spreader:
    """Hands blocks of all transfers under way to the sessions that have room."""

    def __init__(self, sessions: Sequence[Session], stall_timeout_s: float) -> None:
        self._sessions = sessions  # the pool's own list, which changes
        self._stall_timeout_s = stall_timeout_s
        self._transfers: list[Transfer] = []
        self.moved = 0
        self.on_hunger: Callable[[], None] = lambda: None

    @property
    def busy(self) -> bool:
        """True while there are blocks that no connection had room for."""
        return any(transfer.has_blocks for transfer in self._transfers)

    async def carry(self, transfer: Transfer) -> None:
        """Move a range to its end. Raises its error; Stalled if no connection takes what is left. When
        cancelled, returns only after the last block has let go of buffers and descriptors."""
        transfer.attach(self.pump)
        self._transfers.append(transfer)
        self.pump()
        transfer._settle()  # an empty range is done already
        try:
            while not transfer.done.done():
                moved = self.moved
                await asyncio.wait([transfer.done], timeout=self._stall_timeout_s)
                # An answer that does not come is its session's business; this is a question not asked.
                is_idle = moved == self.moved and not any(
                    each.outstanding for each in self._sessions
                )
                if is_idle and transfer.has_blocks:
                    transfer.fail(
                        Stalled("no connection takes the rest", where=transfer.file.where)
                    )
            transfer.done.result()
        except asyncio.CancelledError:
            transfer.fail(FastsyncError("cancelled"))
            if not transfer.done.done():
                await asyncio.wait([transfer.done])
            raise
        finally:
            if transfer in self._transfers:
                self._transfers.remove(transfer)

    def fail(self, error: Callable[[], FastsyncError]) -> None:
        """There is no session any more: what is under way fails."""
        for transfer in list(self._transfers):
            transfer.fail(error())

    def lost(self, session: Session) -> None:
        """Forget a session that is gone; blocks it had fail by themselves."""
        for transfer in self._transfers:
            transfer.file.forget(session)

    def pump(self) -> None:
        """Give blocks to sessions while there are both. The oldest transfer comes first: in turns all
        would end in the same moment, with nothing left to send until the next ones begin."""
        for transfer in list(self._transfers):
            while transfer.has_blocks:
                if not self._give(transfer):
                    break
        for session in self._sessions:
            if not session.outstanding and not session.is_spare:
                any(transfer.repeat(session) for transfer in self._transfers)

    def _give(self, transfer: Transfer) -> bool:
        """One block of `transfer` to the session with room that has least to do. False if there is none."""
        file = transfer.file
        best: Session | None = None
        least = LANE_BYTES
        stranger: Session | None = None
        for session in self._sessions:
            if not session.is_spare and session.outstanding < min(least, session.window):
                if session in file.handles:
                    best, least = session, session.outstanding
                elif not file.knows(session):
                    stranger = session
        is_worthwhile = stranger is not None and transfer.is_long and not stranger.handles.are_few
        if stranger is not None and (is_worthwhile or not file.is_opened):
            # That one takes blocks once the file is open there.
            self._open(transfer, stranger)
        if best is not None:
            self.moved += transfer.issue(best)
            return True
        self.on_hunger()
        return False

    def _open(self, transfer: Transfer, session: Session) -> None:
        def opened(error: FastsyncError | None) -> None:
            if error is not None and not transfer.done.done() and not transfer.file.refuse(session):
                transfer.fail(error)
            self.pump()

        transfer.file.open_on(session, opened)
