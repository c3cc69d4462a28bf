"""What takes several requests, written as a generator: many run at once, without a task or a future each.

A script yields a list of requests and is resumed with the list of their answers. What it returns is its
result, and so is an error of ours that it raises. One that yields no request is resumed after what else
there is to do. When the caller goes away, the next thing it yields is
not sent; `Stopped` is raised there instead, and it cleans up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Sequence
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

from fastsync.errors import FastsyncError
from fastsync_sftp.packets import Reply, Request
from fastsync_sftp.session import Session

T = TypeVar("T")

Script: TypeAlias = Generator[Sequence[Request], list[Reply], T]
Written: TypeAlias = Callable[[Session], Script[T]]

# Scripts at once on one session, where the server's limit of open files allows it.
MOST_AT_ONCE: Final = 256
# Open files of a server that does not say how many it allows; OpenSSH has about 1000.
_USUAL_HANDLES: Final = 512


class Stopped(BaseException):
    """The caller is no longer interested. A BaseException: no handler of errors may swallow it."""


class _Running:
    """A script on its way through one session."""

    __slots__ = ("_done", "_missing", "_replies", "_script", "_session", "stopping")

    def __init__(self, session: Session, script: Script[Any], done: Callable[[Any], None]) -> None:
        self._session = session
        self._script = script
        self._replies: list[Reply] = []
        self._missing = 0
        self._done = done
        self.stopping = False

    def begin(self) -> None:
        self._go(partial(next, self._script))

    def _go(self, step: Callable[[], Sequence[Request]]) -> None:
        try:
            requests = step()
        except StopIteration as end:
            self._done(end.value)
            return
        except (FastsyncError, Stopped) as error:
            self._done(error)
            return
        if self.stopping:
            # Here, where it has seen all answers and knows what there is to clean up.
            self.stopping = False
            self._go(partial(self._script.throw, Stopped()))
            return
        if not requests:
            resume = partial(self._script.send, [])
            asyncio.get_running_loop().call_soon(self._go, resume)
            return
        self._missing = len(requests)
        self._replies = [(0, b"")] * len(requests)
        submit = self._session.submit
        for index, request in enumerate(requests):
            submit(request, partial(self._answered, index))

    def _answered(self, index: int, kind: int, body: Any) -> None:
        self._replies[index] = (kind, body)
        self._missing -= 1
        if not self._missing:
            self._go(partial(self._script.send, self._replies))


async def run(
    session: Session, script: Written[T], undo: Callable[[T], Awaitable[object]] | None = None
) -> T:
    """Run one script on this session. Raises the error that is its result. When cancelled, it cleans up
    first; `undo` takes back what it brought all the same."""
    end: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    running = _Running(session, script(session), end.set_result)
    running.begin()
    try:
        result = await asyncio.shield(end)
    except asyncio.CancelledError:
        running.stopping = True
        if not end.done():
            await asyncio.wait([end])
        if undo is not None and not isinstance(end.result(), BaseException):
            await asyncio.shield(undo(end.result()))
        raise
    if isinstance(result, BaseException):
        raise result
    return result  # type: ignore[no-any-return]


class _Batch:
    """Scripts whose results are wanted together."""

    def __init__(self, scripts: Sequence[Written[Any]]) -> None:
        self.scripts = scripts
        self.results: list[Any] = [None] * len(scripts)
        self.left = len(scripts)
        self.running: set[_Running] = set()
        self.stopping = False
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(self) -> None:
        if not self.end.done() and not self.running and (self.stopping or not self.left):
            self.end.set_result(None)


class Dispatcher:
    """Hands the scripts of all batches to the sessions that have least to do."""

    def __init__(self, sessions: Sequence[Session]) -> None:
        self._sessions = sessions  # the pool's own list, which changes
        self._waiting: deque[tuple[_Batch, int]] = deque()
        self._load: dict[Session, int] = {}
        self.on_hunger: Callable[[], None] = lambda: None

    @property
    def busy(self) -> bool:
        """True while scripts wait for a session."""
        return bool(self._waiting)

    def load(self, session: Session) -> int:
        """How many scripts run there."""
        return self._load.get(session, 0)

    async def results(self, scripts: Sequence[Written[T]]) -> list[T | FastsyncError]:
        """Run all of them, over all sessions; the results in order. When cancelled, what runs cleans
        up first."""
        if not scripts:
            return []
        batch = _Batch(scripts)
        self._waiting.extend((batch, index) for index in range(len(scripts)))
        self.pump()
        try:
            await asyncio.shield(batch.end)
        except asyncio.CancelledError:
            batch.stopping = True
            for running in batch.running:
                running.stopping = True
            batch.settle()
            if not batch.end.done():
                await asyncio.wait([batch.end])
            raise
        for result in batch.results:
            if isinstance(result, BaseException) and not isinstance(result, FastsyncError):
                raise result
        return batch.results

    def fail(self, error: Callable[[], FastsyncError]) -> None:
        """There is no session any more: what waits fails."""
        while self._waiting:
            batch, index = self._waiting.popleft()
            batch.results[index] = error()
            batch.left -= 1
            batch.settle()

    def lost(self, session: Session) -> None:
        """Forget a session that is gone; scripts that ran there fail by themselves."""
        self._load.pop(session, None)

    def pump(self) -> None:
        """Start scripts while there is room for them."""
        while self._waiting:
            batch, index = self._waiting[0]
            if batch.stopping:
                self._waiting.popleft()
                continue
            session = self._roomiest()
            if session is None:
                self.on_hunger()
                return
            self._waiting.popleft()
            self._begin(session, batch, index)
        if any(load > 1 for load in self._load.values()):
            self.on_hunger()

    def _roomiest(self) -> Session | None:
        best: Session | None = None
        least = 0
        for session in self._sessions:
            load = self._load.get(session, 0)
            if load < width(session) and (best is None or load < least):
                best, least = session, load
        return best

    def _begin(self, session: Session, batch: _Batch, index: int) -> None:
        self._load[session] = self._load.get(session, 0) + 1

        def done(result: Any) -> None:
            batch.running.discard(running)
            batch.results[index] = result
            batch.left -= 1
            if session in self._load:
                self._load[session] -= 1
            batch.settle()
            if self._waiting:
                # Not at once: scripts that need no answer would go as deep as there are scripts.
                asyncio.get_running_loop().call_soon(self.pump)

        running = _Running(session, batch.scripts[index](session), done)
        batch.running.add(running)
        running.begin()


def width(session: Session) -> int:
    """How many scripts may run at once on a session: each has a file open, and others need some too."""
    handles = session.limits.handles or _USUAL_HANDLES
    return max(1, min(MOST_AT_ONCE, handles // 2))
