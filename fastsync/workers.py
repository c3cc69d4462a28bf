"""A pool of tasks that take jobs from a short queue, so that planning waits while copying is behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, Final

from fastsync.errors import FastsyncError

QUEUED: Final = 64


class WorkerPool:
    """Up to `width` jobs at once. A job reports its own failures; an exception from one is a bug, ends
    the work and is raised by `submit` or `drain`."""

    def __init__(self, width: int) -> None:
        self._width = max(1, width)
        # Long enough for totals to be known early, short enough to hold little.
        self._jobs: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue(
            max(QUEUED, 2 * self._width)
        )
        self._workers: list[asyncio.Task[None]] = []
        self._busy = 0
        self._stopped = False
        self._bug: Exception | None = None

    async def submit(self, job: Callable[[], Awaitable[None]]) -> None:
        """Queue a job; waits while the queue is full."""
        self._raise_bug()
        if len(self._workers) < min(self._width, self._busy + self._jobs.qsize() + 1):
            self._workers.append(asyncio.create_task(self._work()))
        await self._jobs.put(job)

    async def drain(self) -> None:
        """Wait until every job is done."""
        await self._jobs.join()
        self._raise_bug()

    async def stop(self) -> None:
        """Cancel what runs, forget what waits, and return when nothing of either is left. For good."""
        self._stopped = True
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self._workers.clear()

    async def _work(self) -> None:
        # A job may swallow its cancellation, as a task group does when one of its tasks fails in the
        # same instant (until Python 3.13); the worker ends all the same.
        while not self._stopped:
            job = await self._jobs.get()
            self._busy += 1
            try:
                if self._bug is None:
                    await job()
            except asyncio.CancelledError as error:
                if self._stopped:
                    raise
                self._bug = RuntimeError("a job was cancelled, but not by the pool")
                self._bug.__cause__ = error
            except Exception as bug:
                self._bug = bug
            finally:
                self._busy -= 1
                self._jobs.task_done()

    def _raise_bug(self) -> None:
        if self._bug is not None:
            raise self._bug


async def run_all(width: int, work: Iterator[Coroutine[Any, Any, None]]) -> None:
    """Run everything, at most `width` at once; the first error cancels the rest and is raised alone.

    No task group: until Python 3.13 one forgets a cancellation that comes together with an error.
    """

    async def worker() -> None:
        for one in work:
            await one

    workers = [asyncio.create_task(worker()) for _ in range(width)]
    try:
        await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in workers:
            task.cancel()
        ends = await asyncio.gather(*workers, return_exceptions=True)
    errors = [end for end in ends if isinstance(end, Exception)]
    if errors:
        raise min(errors, key=_concern)


def _concern(error: Exception) -> int:
    """What matters most comes first: an error of ours that is not worth another try."""
    return int(error.transient) if isinstance(error, FastsyncError) else 2
