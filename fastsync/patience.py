"""Patience: what fails for a passing reason is tried again, after a while, and not for ever."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias, TypeVar

from fastsync.errors import FastsyncError, Transient

T = TypeVar("T")
R = TypeVar("R")

# One call for many items; the answer has one item per item.
Call: TypeAlias = Callable[[Sequence[T]], Awaitable[Sequence[FastsyncError | None]]]

FIRST_BACKOFF_S: Final = 0.1
LONGEST_BACKOFF_S: Final = 30.0


async def patiently(
    call: Call[T],
    items: Sequence[T],
    *,
    done: Callable[[Sequence[T]], None],
    failed: Callable[[T, FastsyncError], None],
    may_retry: Callable[[int], bool],
) -> None:
    """Make the call, and again for items that failed for a passing reason, while `may_retry` of the
    number of the attempt, from 0, says so. `done` and `failed` hear of each item once.

    A call that fails as a whole fails for each of its items.
    """
    attempt = 0
    while True:
        try:
            answers = await call(items)
        except FastsyncError as error:
            answers = [copy.copy(error) for _ in items]  # each gets a place of its own
        passing = [answer for answer in answers if answer is not None and answer.transient]
        is_again = bool(passing) and may_retry(attempt)
        again: list[T] = []
        done([item for item, answer in zip(items, answers, strict=True) if answer is None])
        for item, answer in zip(items, answers, strict=True):
            if answer is not None:
                if is_again and answer.transient:
                    again.append(item)
                else:
                    failed(item, answer)
        if not again:
            return
        items = again
        await asyncio.sleep(max(backoff(attempt, answer) for answer in passing))
        attempt += 1


async def persistently(call: Callable[[], Awaitable[R]], may_retry: Callable[[int], bool]) -> R:
    """Make one call until it ends in anything but a passing error, or `may_retry` says no; then the
    error is final."""
    attempt = 0
    while True:
        try:
            return await call()
        except FastsyncError as error:
            if not error.transient or error.is_final:
                raise
            if not may_retry(attempt):
                error.is_final = True
                raise
            pause = backoff(attempt, error)
        await asyncio.sleep(pause)
        attempt += 1


def backoff(attempt: int, error: FastsyncError) -> float:
    """Seconds to wait before the next try: doubling with jitter, or what the server asked for."""
    if isinstance(error, Transient) and error.retry_after_s is not None:
        return min(error.retry_after_s, 60.0)
    import random  # 1 ms, for what seldom happens

    longest: float = min(FIRST_BACKOFF_S * 2.0**attempt, LONGEST_BACKOFF_S)
    return random.uniform(0.5, 1.0) * longest
