"""Patience: what fails for a passing reason is tried again, after a while, and not for ever."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias, TypeVar

from fastsync import log
from fastsync.errors import FastsyncError, ListingError, Throttled, Transient

T = TypeVar("T")
R = TypeVar("R")

# Of the number of the failed attempt, from 0: whether there may be another.
MayRetry: TypeAlias = Callable[[int], bool]
# One call for many items; the answer has one item per item.
Call: TypeAlias = Callable[[Sequence[T]], Awaitable[Sequence[FastsyncError | None]]]

FIRST_BACKOFF_S: Final = 0.1
LONGEST_BACKOFF_S: Final = 30.0
# How long, and how often, a server may ask for patience in a row before that counts as any other failure.
THROTTLED_S: Final = 60.0
THROTTLED_TRIES: Final = 20
LONGEST_THROTTLED_S: Final = 5.0


# So many files in a row that failed for passing reasons, each with all its tries, and the run is over: it
# would only ask a server that is down again and again.
HOPELESS: Final = 20


class Luck:
    """How it goes with one file after the other: when there has been nothing but bad luck for long, enough is
    enough, and `over` is why."""

    def __init__(self) -> None:
        self.over: FastsyncError | None = None
        self._unlucky = 0

    def learn(self, went_well: int, unlucky: int, error: FastsyncError | None) -> None:
        """What one call came to, for so many files; `error` is the last of what failed."""
        self._unlucky = 0 if went_well else self._unlucky + unlucky
        if self._unlucky >= HOPELESS and self.over is None and error is not None:
            self.over = FastsyncError(
                f"{self._unlucky} files in a row failed for passing reasons, at last: {error.message}",
                hint="run the same command again later; it goes on where it stopped",
            )


def bad_luck(error: FastsyncError) -> int:
    """How much a failure says of the ones to come: much, if a server has asked for patience all the time."""
    if isinstance(error, ListingError) and isinstance(error.__cause__, FastsyncError):
        error = error.__cause__
    return HOPELESS // 4 if isinstance(error, Throttled) else int(error.transient)


class Patience:
    """How often one thing is tried again, and after which pause.

    `may_retry`, asked with the number of the attempt, from 0, decides. A server that asks for patience gets
    it for longer: THROTTLED_S since it last did something for us, or so many tries, and none of them counts.
    """

    def __init__(self, may_retry: MayRetry) -> None:
        self._may_retry = may_retry
        self._attempt = 0
        self._tries = 0
        self._asked_for = 0
        self._until: float | None = None
        log.now_attempt(1)

    def went_well(self) -> None:
        """A part of it did."""
        self._until = None
        self._asked_for = self._tries = 0

    def pause(self, errors: Sequence[FastsyncError]) -> float | None:
        """Seconds to wait before the next try after these passing errors; None for no more."""
        if all(isinstance(error, Throttled) for error in errors):
            now = time.monotonic()
            if self._until is None:
                self._until = now + THROTTLED_S
            is_free = now < self._until and self._asked_for < THROTTLED_TRIES
            self._asked_for += 1
        else:
            is_free = False
        if not self._may_retry(0 if is_free else self._attempt):
            self._tell("gave up", errors)
            return None
        self._attempt += not is_free
        pause = max(backoff(self._tries, error) for error in errors)
        self._tries += 1
        self._tell("retry", errors, round(pause, 3))
        log.now_attempt(self._tries + 1)
        return pause

    def _tell(
        self, what: str, errors: Sequence[FastsyncError], pause_s: float | None = None
    ) -> None:
        if log.level <= log.DEBUG:
            log.tell(
                log.DEBUG,
                what,
                reason=str(errors[0]),
                kind=type(errors[0]).__name__,
                items=len(errors),
                attempt=self._tries if pause_s is not None else self._tries + 1,
                pause_s=pause_s,
            )


async def patiently(
    call: Call[T],
    items: Sequence[T],
    *,
    done: Callable[[Sequence[T]], None],
    failed: Callable[[T, FastsyncError], None],
    may_retry: MayRetry,
    luck: Luck | None = None,
) -> None:
    """Make the call, and again for items that failed for a passing reason, while `Patience` lasts. `done` and
    `failed` hear of each item once.

    A call that fails as a whole fails for each of its items. A server that asks for patience for all of them
    is asked for fewer, so that a storm of requests does not follow upon each pause.
    """
    patience = Patience(may_retry)
    waiting: Sequence[T] = items
    width = len(items)
    is_down = True  # as far as these items tell
    while waiting:
        some, rest = waiting[:width], waiting[width:]
        try:
            answers = await call(some)
        except FastsyncError as error:
            answers = [copy.copy(error) for _ in some]  # each gets a place of its own
        good = [item for item, answer in zip(some, answers, strict=True) if answer is None]
        done(good)
        again: list[tuple[T, FastsyncError]] = []
        for item, answer in zip(some, answers, strict=True):
            if answer is not None and answer.transient and not answer.is_final:
                again.append((item, answer))
            elif answer is not None:
                failed(item, answer)
        if good:
            is_down = False
            patience.went_well()
            if luck is not None:
                luck.learn(len(good), 0, None)
        if not again:
            waiting, width = rest, len(rest)
            continue
        errors = [error for _, error in again]
        pause = patience.pause(errors)
        if pause is None:
            if luck is not None and is_down:
                count = max(len(again) + len(rest), bad_luck(errors[-1]))
                luck.learn(0, count, errors[-1])
            for item, last in again:
                failed(item, last)
            for item in rest:
                failed(item, copy.copy(errors[-1]))
            return
        waiting = [*(item for item, _ in again), *rest]
        is_busy = not good and all(isinstance(error, Throttled) for error in errors)
        width = max(1, len(some) // 4) if is_busy else len(waiting)
        await asyncio.sleep(pause)


async def persistently(call: Callable[[], Awaitable[R]], may_retry: MayRetry) -> R:
    """Make one call until it ends in anything but a passing error, or `Patience` is over; then the error is
    final."""
    patience = Patience(may_retry)
    while True:
        try:
            return await call()
        except FastsyncError as error:
            if not error.transient or error.is_final:
                raise
            pause = patience.pause([error])
            if pause is None:
                error.is_final = True
                raise
        await asyncio.sleep(pause)


def up_to(retries: int) -> MayRetry:
    """That many more attempts after the first."""
    return retries.__gt__


def backoff(attempt: int, error: FastsyncError) -> float:
    """Seconds to wait before the next try: doubling with jitter, or what the server asked for."""
    if isinstance(error, Transient) and error.retry_after_s is not None:
        return min(error.retry_after_s, 60.0)
    import random  # 1 ms, for what seldom happens

    limit = LONGEST_THROTTLED_S if isinstance(error, Throttled) else LONGEST_BACKOFF_S
    longest: float = min(FIRST_BACKOFF_S * 2.0**attempt, limit)
    return random.uniform(0.5, 1.0) * longest
