"""Connections to one server: opened when there is work for them, and given up when they fail.

Work begins on the first one. More come while work waits: far away all that are allowed at once, for each
is limited by its window and not by the way; nearby one by one, as long as each makes it faster. Nearby the
processor is the limit, so they are made by the system's ssh if there is one, which has its own; if the first
one is in this process, it then keeps to small requests.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

from fastsync import log
from fastsync.errors import (
    AccessRefused,
    FastsyncError,
    Stalled,
    Throttled,
    Transient,
    UsageError,
)
from fastsync_sftp.bulk import OrderedReading, RemoteFile, Spreader, Transfer
from fastsync_sftp.disk import Disk
from fastsync_sftp.hashes import RemoteHashes, Shell
from fastsync_sftp.packets import Request
from fastsync_sftp.place import Place
from fastsync_sftp.scripts import Dispatcher, Written, run
from fastsync_sftp.session import Known, Server, Session

T = TypeVar("T")

# sshd begins to turn away connections when 10 are being opened (MaxStartups 10:30:100), by anybody.
MOST: Final = 16
_DIALS_AT_ONCE: Final = 8
_DIALS: Final = 5
_FAR_S: Final = 0.008
_LARGE: Final = 8 << 20
# Reading a configuration and finding an address takes some of that, too.
_FAR_REACH_S: Final = 0.015
# How long throughput is watched before the next connection, and by how much it must have grown.
_WATCH_S: Final = 0.3
_WORTHWHILE: Final = 1.2


class Dialer(Protocol):
    """Makes connections."""

    name: str

    async def dial(
        self, session: Session, known: Known, reached: Callable[[float], None]
    ) -> None: ...

    async def hang_up(self, session: Session) -> None: ...

    async def shell(self) -> Shell:
        """A ``sh`` at the server, for whoever closes it. Raises Unsupported, Transient."""
        ...

    async def aclose(self) -> None: ...


class Pool:
    """All connections to one place."""

    def __init__(
        self,
        place: Place,
        first: Dialer,
        further: Dialer,
        nearby: Dialer | None,
        stall_timeout_s: float,
        min_rate: int,
        note: Callable[[str], None],
    ) -> None:
        self.place = place
        self.sessions: list[Session] = []
        self.disk = Disk()
        self.spreader = Spreader(self.sessions, stall_timeout_s)
        self.dispatcher = Dispatcher(self.sessions)
        self.spreader.on_hunger = self.dispatcher.on_hunger = self._hunger
        self._first = first
        self._further = further
        self._dialers = {first, further, *([nearby] if nearby is not None else [])}
        self._nearby = nearby
        self._dialer_of: dict[Session, Dialer] = {}
        self._most = 1
        self._note = note
        self._noted: set[str] = set()
        self._stall_timeout_s, self._min_rate = stall_timeout_s, min_rate
        self._dialing: asyncio.Task[Session] | None = None
        self._growing: asyncio.Task[None] | None = None
        self._is_hungry = False
        self._is_settled = False  # more connections brought nothing
        self._is_crowded = False  # no more are to be had
        self._closing: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self.extensions: Mapping[bytes, bytes] = {}
        self._beginning: set[Session] = set()
        self._made = 0  # connections, ever
        self.foreseen: Sequence[Request] = ()  # see `Session.foresee`
        self.hashes = RemoteHashes(self._shell, stall_timeout_s, self.lacks)

    async def _shell(self) -> Shell:
        return await self._dialer_of[await self.session()].shell()

    def allow(self, streams: int) -> None:
        """A store more that may use so many streams."""
        self._most = max(self._most, min(streams, MOST))

    def lacks(self, what: str) -> None:
        """Tell the user what the server lacks, once."""
        if what not in self._noted:
            self._noted.add(what)
            self._note(f"{self.place}: {what}")

    # -- work ----------------------------------------------------------------------------------------

    async def session(self) -> Session:
        """The session that has least to do; the first one is opened. Raises as dialing does."""
        while not self.sessions:
            if self._dialing is None:
                self._dialing = asyncio.create_task(self._dial(self._first))
                self._dialing.add_done_callback(self._dialed)
            await asyncio.shield(self._dialing)
        best = min(self.sessions, key=self._load)
        if best.handles.is_full and await self._has_another():
            best = min(self.sessions, key=self._load)
        return best

    async def _has_another(self) -> bool:
        """Where every connection has as many files open as it may, one more is had, if it can be: who needs
        it may be whom the others wait for."""
        count = len(self.sessions)
        if self._growing is None:
            if count >= self._most or self._is_crowded or self._is_closed:
                return False
            self._grow_by(self._add(1))
        if self._growing is not None:
            await asyncio.wait([self._growing])
        self._is_crowded = len(self.sessions) <= count
        return bool(self.sessions)

    def _load(self, session: Session) -> tuple[bool, int]:
        load = session.outstanding + (self.dispatcher.load(session) << 16)
        return session.handles.is_full, load

    def _dialed(self, task: asyncio.Task[Session]) -> None:
        self._dialing = None
        if task.cancelled() or task.exception() is not None:  # whoever waits has seen it
            if self._growing is not None:
                self._growing.cancel()

    async def run(self, script: Written[T]) -> T:
        """Run one script. Raises the error that is its result."""
        return await run(await self.session(), script)

    async def results(self, scripts: Sequence[Written[T]]) -> list[T | FastsyncError]:
        """Run many; the results in order."""
        await self.session()
        return await self.dispatcher.results(scripts)

    async def carry(self, transfer: Transfer) -> None:
        """Move a range. Raises its error."""
        await self.session()
        await self.spreader.carry(transfer)

    # -- connections ---------------------------------------------------------------------------------

    async def read_in_order(
        self, file: RemoteFile, start: int, stop: int, window: int
    ) -> AsyncIterator[bytes]:
        """The bytes [start, stop) of a file that is open somewhere, with `window` bytes on their way."""
        block = (await self.session()).limits.read
        reading = OrderedReading(file, start, stop, block, window)
        carrying = asyncio.ensure_future(self.carry(reading))
        try:
            while (data := await reading.next()) is not None:
                yield data
            await carrying
        finally:
            carrying.cancel()
            reading.fail(FastsyncError("the reader went away"))
            await asyncio.wait([carrying])

    async def _dial(self, dialer: Dialer) -> Session:
        """One connection, tried again when the server turns it away for the moment, or it is cut on the way
        in: nobody else could try that again."""
        attempt = 0
        while True:
            session = Session(self._stall_timeout_s, self._min_rate)
            self._made += 1
            session.number = self._made
            began = time.monotonic()
            session.foresee(self.foreseen)
            self._beginning.add(session)
            try:
                await dialer.dial(session, self._known, self._reached)
                if session.error is not None:
                    raise Throttled(session.error.message, where=str(self.place))
                break
            except Throttled as error:
                attempt += 1
                log.tell(log.DEBUG, "retry", reason=error.message, attempt=attempt, items=1)
                is_first = self._dialing is asyncio.current_task()
                if attempt >= _DIALS or self._is_closed or not (self.sessions or is_first):
                    raise  # further ones do not press on where even the first is not let in
                await asyncio.sleep(random.uniform(0.5, 1.0) * 0.2 * 2**attempt)
            except (AccessRefused, UsageError, Transient) as error:
                is_late = isinstance(error, Stalled) or isinstance(error.__cause__, TimeoutError)
                if dialer is not self._nearby or dialer is self._further or is_late:
                    raise
                # It takes a password, or a setting that only asyncssh knows; or asyncssh tells more.
                self._nearby = None
                self._first = dialer = self._further
            finally:
                self._beginning.discard(session)
        log.tell(
            log.DEBUG,
            "connect",
            protocol="sftp",
            place=str(self.place),
            by=type(dialer).__name__,
            duration_s=log.since(began),
            rtt_s=round(session.rtt_s, 6),
            connection=session.number,
            open=len(self.sessions) + 1,
        )
        session.on_loss = self._lost
        session.lacks = self.lacks
        if session.handles.are_few:
            session.lacks(session.few_handles())
        self.foreseen = ()
        self._dialer_of[session] = dialer
        self.extensions = session.extensions
        self.sessions.append(session)
        for each in self._beginning:
            each.learn(session.server)
        self._spare()
        # What one measures above the others is the server's work to begin a session.
        nearest = min(each.rtt_s for each in self.sessions)
        for each in self.sessions:
            each.rtt_s = nearest
        self.spreader.pump()
        self.dispatcher.pump()
        return session

    def _spare(self) -> None:
        """Keep blocks away from this process's own connections while there are others."""
        others = self._nearby in self._dialer_of.values()
        for session in self.sessions:
            session.is_spare = others and self._dialer_of[session] is not self._nearby

    def _lost(self, session: Session) -> None:
        if session in self.sessions:
            self.sessions.remove(session)
        dialer = self._dialer_of.pop(session, None)
        if session.error is not None and not self._is_closed:
            reason = session.error.message
            log.tell(log.DEBUG, "lost", protocol="sftp", connection=session.number, reason=reason)
        self._spare()
        self.spreader.lost(session)
        self.dispatcher.lost(session)
        self._is_settled = self._is_crowded = False
        if dialer is not None:
            task = asyncio.get_running_loop().create_task(dialer.hang_up(session))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        if not self.sessions:
            error = session.error
            self.dispatcher.fail(lambda: _copy(error))
            self.spreader.fail(lambda: _copy(error))
            return
        # What waited for that one, or kept away from those that are left, goes on with them.
        loop = asyncio.get_running_loop()
        loop.call_soon(self.spreader.pump)
        loop.call_soon(self.dispatcher.pump)

    def _known(self) -> Server | None:
        return self.sessions[0].server if self.sessions else None

    def _reached(self, seconds: float) -> None:
        """The first connection got through. Far away, the others are begun at once: they take as long as
        all else that comes before the first byte."""
        more = min(_DIALS_AT_ONCE, self._most) - 1
        if more and not self.sessions and self._growing is None and seconds >= _FAR_REACH_S:
            self._grow_by(self._add(more))

    def _grow_by(self, dialing: Coroutine[None, None, None]) -> None:
        self._growing = asyncio.get_running_loop().create_task(dialing)
        self._growing.add_done_callback(self._grown)

    def expect(self, size: int | None) -> None:
        """A file of that size is about to move: more connections, if they take long to come."""
        if (size or 0) >= _LARGE and self.sessions and self.sessions[0].rtt_s >= _FAR_S:
            self._hunger()

    def _hunger(self) -> None:
        """Work waits for a connection."""
        self._is_hungry = self._growing is not None
        if self._growing is None and not self._is_settled and not self._is_closed:
            if 0 < len(self.sessions) < self._most:
                self._grow_by(self._grow())

    def _grown(self, task: asyncio.Task[None]) -> None:
        self._growing = None
        if not task.cancelled():
            task.exception()
        if self._is_hungry:
            self._hunger()

    async def _grow(self) -> None:
        if self.sessions[0].rtt_s >= _FAR_S:
            await self._add(self._most - len(self.sessions))
            self._is_settled = True
            return
        loop = asyncio.get_running_loop()
        before = 0.0
        most = self._most
        if self._nearby is not None:
            # Each has a processor busy while it moves anything, and one for a tenth of a second to log in.
            own = sum(dialer is not self._nearby for dialer in self._dialer_of.values())
            most = min(most, own + max(2, os.cpu_count() or 1))
            await self._add(min(1, most - len(self.sessions)))
        while self.sessions and len(self.sessions) < most:
            moved, started = self.spreader.moved, loop.time()
            await asyncio.sleep(_WATCH_S)
            if not (self.spreader.busy or self.dispatcher.busy):
                return
            rate = (self.spreader.moved - moved) / (loop.time() - started)
            if before and rate < before * _WORTHWHILE:
                break
            before = rate
            await self._add(1)
        self._is_settled = True

    async def _add(self, count: int) -> None:
        """So many connections more, or fewer, if the server does not want them."""
        turns = asyncio.Semaphore(_DIALS_AT_ONCE)

        async def add(delay_s: float) -> None:
            await asyncio.sleep(delay_s)
            async with turns:
                is_near = self.sessions and self.sessions[0].rtt_s < _FAR_S
                await self._dial(self._nearby if self._nearby and is_near else self._further)

        dials = [add(index * random.uniform(0.002, 0.006)) for index in range(count)]
        await asyncio.gather(*dials, return_exceptions=True)

    async def aclose(self) -> None:
        """Hang up everywhere. Idempotent."""
        self._is_closed = True
        await self.hashes.aclose()
        tasks: list[asyncio.Task[Any]] = [
            task for task in (self._dialing, self._growing) if task is not None
        ]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for session in list(self.sessions):
            session.close()
        await asyncio.gather(*self._closing, return_exceptions=True)
        for dialer in self._dialers:
            await dialer.aclose()
        self.disk.close()


def _copy(error: FastsyncError | None) -> FastsyncError:
    if error is None:
        return Transient("the connection was cut")
    return type(error)(error.message, where=error.where, hint=error.hint)
