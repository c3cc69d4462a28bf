"""Budgets: how much of something a run may use at once, handed out first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Budget:
    """A number of units, of which `spend` takes some for a while.

    The decision who may go is synchronous and in order: a large request is not starved by small ones.
    A request for more than there is gets everything, alone. `peak` is the most that was out at once.
    """

    def __init__(self, limit: int) -> None:
        self.limit = max(1, limit)
        self.peak = 0
        self._out = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def spend(self, units: int) -> AsyncIterator[None]:
        """Hold `units` (at most the limit) inside the block."""
        units = await self.take(units)
        try:
            yield
        finally:
            self.give_back(units)

    def give_back(self, units: int) -> None:
        """End what `take` began."""
        self._out -= units
        self._admit()

    def widen(self, limit: int) -> None:
        """Have `limit` units from now on, where that is more."""
        self.limit = max(self.limit, limit)
        self._admit()

    def try_take(self, units: int) -> bool:
        """Hold `units` if that needs no waiting, and nobody else waits."""
        if self._waiting or self._out + units > self.limit:
            return False
        self._grant(units)
        return True

    async def take(self, units: int) -> int:
        """Hold `units` (at most the limit) until they are given back; how many that are."""
        units = min(units, self.limit)
        await self._wait(units)
        return units

    async def _wait(self, units: int) -> None:
        if not self._waiting and self._out + units <= self.limit:
            self._grant(units)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((units, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._out -= units  # it was granted in the same instant
            elif (
                units,
                turn,
            ) in self._waiting:  # else somebody has met it there, and passed it over
                self._waiting.remove((units, turn))
            self._admit()
            raise

    def _grant(self, units: int) -> None:
        self._out += units
        self.peak = max(self.peak, self._out)

    def _admit(self) -> None:
        while self._waiting and self._out + self._waiting[0][0] <= self.limit:
            units, turn = self._waiting.popleft()
            if turn.cancelled():
                continue
            self._grant(units)
            turn.set_result(None)
