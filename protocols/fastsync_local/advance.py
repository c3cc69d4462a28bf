"""How far a copy got, told now and then: after so many bytes, and after a moment on a slow disk."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

# Bytes that a thread moves before it tells.
TELL_EVERY: Final = 8 << 20
_TELL_AFTER_S: Final = 0.25


class Advance:
    """Adds up what was moved on one thread; `tell` hears of it when it is time to."""

    def __init__(self, tell: Callable[[int], object]) -> None:
        self._tell = tell
        self._untold = 0
        self._told_at = time.monotonic()

    def moved(self, count: int) -> None:
        self._untold += count
        if self._untold >= TELL_EVERY or time.monotonic() - self._told_at >= _TELL_AFTER_S:
            self._tell(self.take())

    def take(self) -> int:
        """What nobody was told yet."""
        untold, self._untold = self._untold, 0
        self._told_at = time.monotonic()
        return untold


class Onwards:
    """Passes progress on, save for what is done again after a helper process ended in the middle."""

    def __init__(self, progress: Callable[[int], object]) -> None:
        self._progress = progress
        self._told = 0
        self._reached = 0

    def __call__(self, count: int) -> None:
        self._reached += count
        if self._reached > self._told:
            self._progress(self._reached - self._told)
            self._told = self._reached

    def again(self) -> None:
        """From the beginning."""
        self._reached = 0
