"""Runs a coroutine of the library as a process does: with signals, and an exit code at the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

from fastsync.cli.logs import libraries_filtered, logging_to

if TYPE_CHECKING:
    from fastsync.settings import Settings

T = TypeVar("T")

# After this long, a clean-up that hangs on a dead disk is given up.
PATIENCE_S: Final = 4.5
# SIGHUP is what a terminal says that is closed.
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """The run was ended by a signal, and everything it had begun is cleaned up."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def run_to_exit(work: Coroutine[Any, Any, int], settings: Settings) -> int:
    """Run a verb that leaves nothing to clean up; its exit code, or that of the signal that ended it."""
    try:
        with contextlib.closing(work), logging_to(settings):
            return run(work, lambda: None)
    except Interrupted as interrupted:
        return interrupted.exit_code


def run(work: Coroutine[Any, Any, T], on_interrupt: Callable[[], None]) -> T:
    """Run to the end. The first SIGINT, SIGTERM or SIGHUP cancels and cleans up, the second ends at once;
    one that we were started to ignore (nohup, a shell's background) stays ignored.

    Raises Interrupted, and whatever `work` raises.
    """
    received: list[int] = []

    async def main() -> T:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def interrupt(number: int) -> None:
            on_interrupt()
            task.cancel()

        def at_once(number: int, _frame: object) -> None:
            if received:
                os._exit(128 + number)
            received.append(number)
            watchdog = threading.Timer(PATIENCE_S, os._exit, (128 + number,))
            watchdog.daemon = True
            watchdog.start()

        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, interrupt, number)
                # The loop hears of it, but when it is its turn: a call that blocks may have it for ever.
                signal.signal(number, at_once)
        return await work

    try:
        with libraries_filtered(), asyncio.Runner() as runner:
            result = runner.run(main())
    except KeyboardInterrupt:
        raise Interrupted(signal.SIGINT) from None
    except BaseException:
        # Whatever else went wrong on the way out, this is why.
        if received:
            raise Interrupted(received[0]) from None
        raise
    if received:
        raise Interrupted(received[0])
    return result
