"""What a test does to a store and asks of it: a script of trouble, and gauges of what is in the air."""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias


class After(NamedTuple):
    """The call does its work, and then fails: the answer got lost. For a `FaultyBackend`."""

    error: BaseException


class Short(NamedTuple):
    """What a read yields ends after so many bytes, what a listing yields after so many pages: with an error,
    or, as no store should, without. For a `FaultyBackend`."""

    after: int
    error: BaseException | None = None


Trouble: TypeAlias = (
    BaseException | float | Callable[[], Awaitable[None] | None] | After | Short | None
)


class Faults:
    """What the next calls of a store's methods meet, in order; a call without a script just works.

    An exception is raised, a number is slept in seconds, a function is called (and awaited, if it gives
    something to await), None lets the call pass. A script may be for one path alone: it goes first.
    `calls` counts every call met, whether or not trouble waited for it.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._scripts: dict[tuple[str, str | None], deque[Trouble]] = {}
        self._always: dict[tuple[str, str | None], Trouble] = {}

    def then(self, method: str, *trouble: Trouble, path: str | None = None) -> None:
        """Let the next calls of `method` meet `trouble`, one each, after what is scripted already."""
        self._scripts.setdefault((method, path), deque()).extend(trouble)

    def always(self, method: str, trouble: Trouble, *, path: str | None = None) -> None:
        """Let every call of `method` that has no script meet `trouble`."""
        self._always[method, path] = trouble

    def forget(self) -> None:
        """Drop all scripts; counts stay."""
        self._scripts.clear()
        self._always.clear()

    async def meet(self, method: str, path: str) -> None:
        """Count a call and go through what waits for it."""
        await self.bear(self.take(method, path))

    def take(self, method: str, path: str) -> Trouble:
        """Count a call, and say what waits for it."""
        self.calls[method] += 1
        for key in ((method, path), (method, None)):
            if script := self._scripts.get(key):
                return script.popleft()
        return self._always.get((method, path)) or self._always.get((method, None))

    @staticmethod
    async def bear(trouble: Trouble) -> None:
        """Go through it. What comes `After` a call, or cuts it `Short`, comes at once."""
        if isinstance(trouble, After | Short):
            trouble = trouble.error
        if isinstance(trouble, BaseException):
            raise trouble
        if isinstance(trouble, int | float):
            await asyncio.sleep(trouble)
        elif trouble is not None:
            answer = trouble()
            if inspect.isawaitable(answer):
                await answer


class Gauge:
    """An amount that goes up and down, and the highest it has been."""

    def __init__(self) -> None:
        self.now = 0
        self.peak = 0

    def take(self, amount: int) -> None:
        self.now += amount
        self.peak = max(self.peak, self.now)

    def give(self, amount: int) -> None:
        self.now -= amount

    @contextmanager
    def holding(self, amount: int) -> Iterator[None]:
        """`amount` for as long as the block lasts."""
        self.take(amount)
        try:
            yield
        finally:
            self.give(amount)
