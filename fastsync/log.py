"""What a run does, told as it does it, to whoever debugs it: requests, retries, changes of pace, decisions.

Nobody listens by default, and nothing is built for nobody: who has something to tell compares `level` first,
which costs 30 ns. Facts are as they are; who listens takes out secrets and escapes what is left.
"""

from __future__ import annotations

import time
from contextvars import ContextVar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, TypeAlias

    # None is left out.
    Fact: TypeAlias = str | int | float | None
    Sink: TypeAlias = Callable[[int, str, dict[str, Fact]], None]

# As `logging` has them, which knows no TRACE.
ERROR: Final = 40
WARNING: Final = 30
INFO: Final = 20
DEBUG: Final = 10
TRACE: Final = 5
_NOBODY: Final = 100

# The least that somebody wants to hear of.
level = _NOBODY
_sink: Sink | None = None
_attempt: Final[ContextVar[int]] = ContextVar("attempt", default=1)


def listen(least: int, sink: Sink) -> None:
    """From now on `sink` gets what is told at level `least` or above, on any thread: the level, the kind of
    event, and its facts."""
    global level, _sink
    level, _sink = least, sink


def hush() -> None:
    """Nobody listens any more."""
    global level, _sink
    level, _sink = _NOBODY, None


def tell(at: int, what: str, /, **facts: Fact) -> None:
    """Tell of one event. Whoever calls it often asks for `level` first."""
    if at >= level and _sink is not None:
        _sink(at, what, facts)


def attempt() -> int:
    """Which try this is, from 1, of what is being tried again and again, as far as the task knows."""
    return _attempt.get()


def now_attempt(number: int) -> None:
    """What this task does from now on is try `number`."""
    if level <= TRACE:
        _attempt.set(number)


def since(began: float) -> float:
    """Seconds since a moment of `time.monotonic`, to the microsecond."""
    return round(time.monotonic() - began, 6)
