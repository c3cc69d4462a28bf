"""Budgets: never above the limit, in order, and nothing lost to a cancellation."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsync.budget import Budget


async def settle() -> None:
    """Let every task that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


class Crowd:
    """Tasks that each hold some units until they are let go, and who holds what."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.tasks: list[asyncio.Task[None]] = []
        self.doors: list[asyncio.Event] = []
        self.wants: list[int] = []
        self.began: list[int] = []
        self.inside: dict[int, int] = {}
        self.most = 0

    def enter(self, units: int) -> int:
        number = len(self.tasks)
        self.wants.append(min(units, self.budget.limit))
        self.doors.append(asyncio.Event())
        self.tasks.append(asyncio.create_task(self._hold(number, units)))
        return number

    async def _hold(self, number: int, units: int) -> None:
        async with self.budget.spend(units):
            self.began.append(number)
            self.inside[number] = self.wants[number]
            self.most = max(self.most, sum(self.inside.values()))
            try:
                await self.doors[number].wait()
            finally:
                del self.inside[number]

    async def end(self) -> None:
        for door in self.doors:
            door.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def whole(budget: Budget) -> bool:
    """Whether all of the budget can be had at once, so that none of it is lost."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.5), budget.spend(budget.limit):
            return True
    return False


async def test_first_come_first_served() -> None:
    crowd = Crowd(Budget(4))
    for units in (3, 4, 1, 1):
        crowd.enter(units)
    await settle()
    # The small requests would fit, but do not overtake the large one.
    assert crowd.began == [0]
    crowd.doors[0].set()
    await settle()
    assert crowd.began == [0, 1]
    crowd.doors[1].set()
    await settle()
    assert crowd.began == [0, 1, 2, 3]
    await crowd.end()
    assert crowd.most == crowd.budget.peak == 4


async def test_nobody_overtakes_while_somebody_waits() -> None:
    crowd = Crowd(Budget(2))
    crowd.enter(1)
    crowd.enter(2)
    await settle()
    crowd.enter(1)
    await settle()
    assert crowd.began == [0]
    await crowd.end()
    assert crowd.began == [0, 1, 2]


async def test_more_than_there_is_goes_alone() -> None:
    crowd = Crowd(Budget(4))
    crowd.enter(1)
    crowd.enter(1000)
    crowd.enter(1)
    await settle()
    assert crowd.began == [0]
    crowd.doors[0].set()
    await settle()
    assert crowd.began == [0, 1]
    crowd.doors[1].set()
    await settle()
    assert crowd.began == [0, 1, 2]
    await crowd.end()
    assert await whole(crowd.budget)


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_budget_has_at_least_one_unit(limit: int) -> None:
    budget = Budget(limit)
    async with budget.spend(1):
        assert budget.peak == 1


async def test_units_come_back_from_a_block_that_fails() -> None:
    budget = Budget(3)
    with pytest.raises(ZeroDivisionError):
        async with budget.spend(3):
            raise ZeroDivisionError
    assert await whole(budget)


async def test_cancelled_while_waiting() -> None:
    crowd = Crowd(Budget(2))
    for units in (2, 2, 1):
        crowd.enter(units)
    await settle()
    crowd.tasks[1].cancel()
    await settle()
    assert crowd.began == [0]
    crowd.doors[0].set()
    await settle()
    assert crowd.began == [0, 2]
    await crowd.end()
    assert crowd.tasks[1].cancelled()
    assert await whole(crowd.budget)


async def test_a_large_request_that_gives_up_lets_small_ones_pass() -> None:
    crowd = Crowd(Budget(4))
    for units in (2, 4, 1, 1):
        crowd.enter(units)
    await settle()
    crowd.tasks[1].cancel()
    await settle()
    assert crowd.began == [0, 2, 3]
    await crowd.end()


async def test_cancelled_in_the_instant_of_being_granted() -> None:
    crowd = Crowd(Budget(1))
    for _ in range(3):
        crowd.enter(1)
    await settle()
    crowd.doors[0].set()
    await asyncio.sleep(0)  # the first has left and let the second in, which does not know yet
    crowd.tasks[1].cancel()
    await settle()
    assert crowd.began == [0, 2]
    await crowd.end()
    assert crowd.tasks[1].cancelled()
    assert await whole(crowd.budget)


async def test_all_cancelled_at_once() -> None:
    """The first gives its units back while the others, cancelled too, have not noticed yet."""
    crowd = Crowd(Budget(2))
    for units in (2, 1, 2, 1):
        crowd.enter(units)
    await settle()
    for task in crowd.tasks:
        task.cancel()
    ends = await asyncio.gather(*crowd.tasks, return_exceptions=True)
    assert [type(end) for end in ends] == [asyncio.CancelledError] * 4
    assert await whole(crowd.budget)


# What happens to a crowd: somebody comes for so many units, somebody leaves or is cancelled, time passes.
MOVES = st.lists(
    st.tuples(st.just("enter"), st.integers(1, 7))
    | st.tuples(st.sampled_from(["leave", "cancel", "storm"]), st.integers(0, 1000))
    | st.tuples(st.sampled_from(["wait", "settle"]), st.integers(1, 3)),
    max_size=40,
)


async def in_order(crowd: Crowd, cancelled: set[int]) -> None:
    """When nothing moves any more, the first in the queue does not fit and nobody has overtaken it."""
    await settle()
    queue = [n for n in range(len(crowd.tasks)) if n not in {*crowd.began, *cancelled}]
    if queue:
        assert crowd.wants[queue[0]] > crowd.budget.limit - sum(crowd.inside.values())
        assert queue[0] > max(crowd.began)


@given(limit=st.integers(1, 5), moves=MOVES)
def test_any_crowd(limit: int, moves: list[tuple[str, int]]) -> None:
    async def play() -> None:
        crowd = Crowd(Budget(limit))
        cancelled: set[int] = set()
        for move, number in moves:
            if move == "enter":
                crowd.enter(number)
            elif move == "settle":
                await in_order(crowd, cancelled)
            elif move == "wait":
                for _ in range(number):
                    await asyncio.sleep(0)
            elif crowd.tasks:
                number %= len(crowd.tasks)
                if move == "leave":
                    crowd.doors[number].set()
                    continue
                for one in range(number, len(crowd.tasks) if move == "storm" else number + 1):
                    if crowd.tasks[one].cancel():
                        cancelled.add(one)
        await in_order(crowd, cancelled)
        await crowd.end()
        for number, task in enumerate(crowd.tasks):
            assert task.cancelled() == (number in cancelled)
            assert task.cancelled() or task.exception() is None
        assert crowd.most <= crowd.budget.peak <= limit
        assert await whole(crowd.budget)

    asyncio.run(play())
