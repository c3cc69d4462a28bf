"""Blocking work on threads, awaited: whoever is cancelled goes on only when the thread has let go."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

T = TypeVar("T")


async def in_thread(
    threads: Executor,
    work: Callable[[], T],
    on_cancel: Callable[[], object] | None = None,
    undo: Callable[[T], object] | None = None,
) -> T:
    """What `work` returns or raises. When cancelled, return only after the thread is done: `on_cancel` asks
    it to hurry, `undo` takes what it brought all the same."""
    future = asyncio.get_running_loop().run_in_executor(threads, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if on_cancel is not None:
            on_cancel()
        # However often we are cancelled: what it works with must not be closed under its hands.
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        # If it failed, being asked to stop is why; that no longer matters.
        if not future.cancelled() and future.exception() is None and undo is not None:
            undo(future.result())
        raise
