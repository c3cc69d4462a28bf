"""Arguments of the benches, and how a bench that is told to end takes its servers with it."""

from __future__ import annotations

import argparse
import signal
from types import FrameType
from typing import NoReturn


def positive(text: str) -> int:
    """A number of times. Raises ArgumentTypeError."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def names(text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Names with commas between them. Raises ArgumentTypeError for one that is not `known`."""
    found = tuple(text.split(","))
    for name in found:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
    return found


def end_in_order() -> None:
    """Let SIGTERM unwind the stack, as an interrupt does."""
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(143)
