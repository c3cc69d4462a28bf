"""The worker pool: as wide as it may be, no further ahead than its queue, and nothing left when it stops."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from fastsync.workers import QUEUED, WorkerPool


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def others() -> set[asyncio.Task[object]]:
    """Every task but the test's own."""
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


class Jobs:
    """Jobs that wait at a door, and how many are at it at once."""

    def __init__(self) -> None:
        self.door = asyncio.Event()
        self.now = 0
        self.most = 0
        self.done: list[int] = []

    def new(self, number: int = 0) -> Callable[[], Awaitable[None]]:
        async def job() -> None:
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                await self.door.wait()
                self.done.append(number)
            finally:
                self.now -= 1

        return job


@pytest.mark.parametrize("width", [1, 2, 5])
async def test_width(width: int) -> None:
    pool, jobs = WorkerPool(width), Jobs()
    for number in range(2 * width):
        await pool.submit(jobs.new(number))
    await settle()
    assert jobs.now == width
    jobs.door.set()
    await pool.drain()
    assert jobs.most == width
    assert sorted(jobs.done) == list(range(2 * width))
    await pool.stop()
    assert others() == set()


@pytest.mark.parametrize("pause", [True, False])
async def test_every_worker_is_used(pause: bool) -> None:
    """A job starts at once while fewer than `width` run, however slowly the jobs come."""
    pool, jobs = WorkerPool(3), Jobs()
    for number in range(3):
        await pool.submit(jobs.new(number))
        if pause:
            await settle()
            assert jobs.now == number + 1
    await settle()
    assert jobs.now == 3
    await pool.stop()


async def test_no_more_workers_than_needed() -> None:
    """Jobs that come one after the other share a worker."""
    pool, jobs = WorkerPool(8), Jobs()
    jobs.door.set()
    for number in range(20):
        await pool.submit(jobs.new(number))
        await settle()
    assert len(others()) == 1
    await pool.stop()


async def test_back_pressure() -> None:
    """Who submits waits while the queue is full, and goes on when there is room again."""
    pool, jobs = WorkerPool(2), Jobs()
    submitted = 0

    async def submit() -> None:
        nonlocal submitted
        for number in range(3 * QUEUED):
            await pool.submit(jobs.new(number))
            submitted += 1

    task = asyncio.create_task(submit())
    await settle()
    assert jobs.now == 2
    assert submitted <= QUEUED + 2
    jobs.door.set()
    await task
    await pool.drain()
    assert sorted(jobs.done) == list(range(3 * QUEUED))
    await pool.stop()


async def test_drain_of_nothing() -> None:
    pool = WorkerPool(2)
    await pool.drain()
    await pool.stop()
    assert others() == set()


async def test_a_pool_has_at_least_one_worker() -> None:
    pool, jobs = WorkerPool(0), Jobs()
    jobs.door.set()
    await pool.submit(jobs.new(7))
    await pool.drain()
    assert jobs.done == [7]
    await pool.stop()


async def broken() -> None:
    raise ZeroDivisionError


async def cancels_itself() -> None:
    raise asyncio.CancelledError


async def test_a_bug_surfaces_when_draining() -> None:
    pool = WorkerPool(2)
    await pool.submit(broken)
    with pytest.raises(ZeroDivisionError):
        await pool.drain()
    await pool.stop()
    assert others() == set()


async def test_a_bug_surfaces_when_submitting() -> None:
    """And ends the work: what waits is not begun."""
    pool, jobs = WorkerPool(1), Jobs()
    jobs.door.set()
    await pool.submit(broken)
    await pool.submit(jobs.new())
    await settle()
    with pytest.raises(ZeroDivisionError):
        await pool.submit(jobs.new())
    assert jobs.done == []
    await pool.stop()


async def test_a_bug_wakes_who_submits() -> None:
    pool = WorkerPool(1)

    async def submit() -> None:
        for _ in range(3 * QUEUED):
            await pool.submit(broken)

    with pytest.raises(ZeroDivisionError):
        await submit()
    await pool.stop()


async def test_a_job_that_was_cancelled_by_itself() -> None:
    """Nobody stopped the pool, so that is a bug like any other, and nobody waits forever."""
    pool, jobs = WorkerPool(1), Jobs()
    await pool.submit(cancels_itself)
    await pool.submit(jobs.new())
    with pytest.raises(RuntimeError, match="not by the pool"):
        async with asyncio.timeout(1):
            await pool.drain()
    await pool.stop()
    assert others() == set()


async def test_stop_cancels_what_runs_and_forgets_what_waits() -> None:
    pool, jobs = WorkerPool(2), Jobs()
    for number in range(5):
        await pool.submit(jobs.new(number))
    await settle()
    await pool.stop()
    assert others() == set()
    jobs.door.set()
    await settle()
    assert (jobs.done, jobs.now, jobs.most) == ([], 0, 2)


async def test_stop_waits_for_what_cleans_up() -> None:
    pool = WorkerPool(1)
    steps: list[str] = []

    async def careful() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            steps.append("cleaned up")

    await pool.submit(careful)
    await settle()
    await pool.stop()
    assert steps == ["cleaned up"]
    assert others() == set()


async def test_stop_ends_a_worker_whose_job_swallows_the_cancellation() -> None:
    """As a task group does when one of its tasks fails in the same instant (before Python 3.13)."""
    pool, jobs = WorkerPool(1), Jobs()

    async def deaf() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return

    await pool.submit(deaf)
    await pool.submit(jobs.new())
    await settle()
    async with asyncio.timeout(1):
        await pool.stop()
    assert jobs.most == 0
    assert others() == set()


async def test_stop_twice() -> None:
    pool, jobs = WorkerPool(2), Jobs()
    await pool.submit(jobs.new())
    await pool.stop()
    await pool.stop()
    assert others() == set()
