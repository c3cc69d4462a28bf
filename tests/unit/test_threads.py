"""Blocking work on threads: what it holds is let go of before anybody goes on."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from fastsync.threads import in_thread


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


async def test_what_comes_of_the_work_comes_back(threads: ThreadPoolExecutor) -> None:
    assert await in_thread(threads, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await in_thread(threads, lambda: 1 // 0)


@pytest.mark.parametrize("fails", [False, True])
async def test_however_often_cancelled_it_waits_for_the_thread(
    threads: ThreadPoolExecutor, fails: bool
) -> None:
    begun, let_go = threading.Event(), threading.Event()
    told: list[str] = []

    def work() -> str:
        begun.set()
        assert let_go.wait(30)
        if fails:
            raise OSError("it was in a hurry")
        return "a descriptor"

    task = asyncio.create_task(in_thread(threads, work, lambda: told.append("hurry"), told.append))
    await _until(begun.is_set)
    for _ in range(3):
        task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not task.done()
    let_go.set()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert told == (["hurry"] if fails else ["hurry", "a descriptor"])


async def _until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        await asyncio.sleep(0.001)
