"""Many small exchanges at once, over as many connections as are worth it."""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from fastsync import log
from fastsync.errors import (
    FastsyncError,
)
from fastsync.wire.connection import Connection
from fastsync.wire.messages import Outgoing, Reply
from fastsync.wire.sockets import Dead

if TYPE_CHECKING:
    from fastsync.wire.client import Wire


class Batch:
    """Small exchanges over several connections: each connection takes the next request when it is done.

    What `width` says is for all batches together that count their connections in the same `crowd`.
    """

    def __init__(
        self,
        wire: Wire,
        requests: Iterator[Outgoing],
        width: Callable[[], int],
        most: int,
        answered: Callable[[int], None],
        crowd: list[int],
    ) -> None:
        self._wire = wire
        self._requests = requests
        self._width = width
        self._answered = answered
        self._crowd = crowd  # connections of all batches with that width
        self._most = most
        self._answers: list[Any] = []
        self._open = 0  # requests under way
        self._lanes: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._again: collections.deque[tuple[int, Outgoing]] = collections.deque()
        self._exhausted = False
        self._opening = 0
        self._bug: BaseException | None = None
        self._attempt = log.attempt()

    async def run(self) -> list[Reply | FastsyncError]:
        self._widen()
        self._settle()
        await self._done
        return self._answers

    def _next(self) -> tuple[int, Outgoing] | None:
        if self._again:
            return self._again.popleft()
        if self._exhausted:
            return None
        while True:
            try:
                request = next(self._requests)
            except StopIteration:
                self._exhausted = True
                return None
            except FastsyncError as error:  # one that cannot be made
                self._answers.append(error)
                continue
            self._answers.append(None)
            return len(self._answers) - 1, request

    def _has_room(self) -> bool:
        """Each batch may have one connection, whatever others have."""
        mine = len(self._lanes) + self._opening
        return not mine or max(self._crowd[0], mine) < self._width()

    def _leave(self, connection: Connection) -> None:
        if connection in self._lanes:
            self._lanes.remove(connection)
            self._crowd[0] -= 1

    def _widen(self) -> None:
        """Put more connections to work, as far as there is work and they may."""
        wire = self._wire
        while self._has_room():
            item = self._next()
            if item is None:
                return
            self._open += 1
            connection = wire.pooled()
            if connection is not None:
                self._begin(connection, *item)
                continue
            may = wire.count < wire.options.connections
            if not may and (self._lanes or self._opening):
                # Others have them all: those we have will do.
                self._open -= 1
                self._again.append(item)
                return
            self._opening += 1
            task = asyncio.create_task(self._open_and_begin(*item, fresh=False))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _open_and_begin(self, index: int, request: Outgoing, *, fresh: bool) -> None:
        try:
            connection = await self._wire.acquire(fresh=fresh)
        except FastsyncError as error:
            self._opening -= 1
            self._open -= 1
            self._answers[index] = error
            self._fail_rest(error)
            self._settle()
            return
        except BaseException as bug:
            self._opening -= 1
            self._bug = bug
            if not self._done.done():
                self._done.set_exception(bug)
            raise
        self._opening -= 1
        if self._done.done():
            self._wire.release(connection)
            return
        self._begin(connection, index, request)

    def _fail_rest(self, error: FastsyncError) -> None:
        """No connection is to be had: as long as there is none, nothing will go better."""
        if self._lanes or self._opening:
            return
        while (item := self._next()) is not None:
            self._answers[item[0]] = error

    def _begin(self, connection: Connection, index: int, request: Outgoing) -> None:
        if connection not in self._lanes:
            self._lanes.add(connection)
            self._crowd[0] += 1

        def done(connection: Connection, outcome: Reply | Exception) -> None:
            if began:
                from fastsync.wire.telling import tell_exchange

                tell_exchange(
                    self._wire, request, connection, outcome, began, attempt=self._attempt
                )
            if isinstance(outcome, Reply):
                self._answers[index] = outcome
                self._answered(outcome.status)
            elif isinstance(outcome, Dead) and was_used and request.repeatable:
                self._leave(connection)
                self._opening += 1
                task = asyncio.create_task(self._open_and_begin(index, request, fresh=True))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                return
            else:
                self._answers[index] = self._wire.error(outcome)
            self._open -= 1
            if connection.is_open:
                width = self._width()
                is_one_too_many = len(self._lanes) > 1 and self._crowd[0] > width
                item = None if is_one_too_many else self._next()
                if item is not None:
                    self._open += 1
                    self._begin(connection, *item)
                    if self._crowd[0] < width:
                        self._widen()  # what had become less is more again
                    return
                self._leave(connection)
                self._wire.release(connection)
            else:
                self._leave(connection)
            self._widen()
            self._settle()

        was_used = connection.used
        began = time.monotonic() if log.level <= log.TRACE else 0.0
        connection.start(request, self._most, done)
        self._wire.tick_later()

    def _settle(self) -> None:
        if not self._open and not self._again and self._exhausted and not self._done.done():
            self._done.set_result(None)

    def abandon(self) -> None:
        if not self._done.done():
            self._done.cancel()
        for task in list(self._tasks):
            task.cancel()
        for connection in list(self._lanes):
            self._leave(connection)
            connection.abandon()
