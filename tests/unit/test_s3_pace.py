from __future__ import annotations

import asyncio

from fastsync_s3.plane import Pace


def test_it_is_halved_once_a_second_and_comes_back_step_by_step() -> None:
    now = 0.0
    pace = Pace(16, clock=lambda: now)
    pace.throttled()
    pace.throttled()  # of the same burst
    assert pace.width() == 8
    now = 2.0
    pace.throttled()
    assert pace.width() == 4
    for expected in (5, 6, 7):
        pace.went_well(pace.width())
        assert pace.width() in (expected - 1, expected)
    pace.went_well(1000)
    assert pace.width() == 16
    for second in range(3, 20):
        now = float(second)
        pace.throttled()
    assert pace.width() == 1


def test_only_answers_without_trouble_bring_it_back() -> None:
    now = 0.0
    pace = Pace(16, clock=lambda: now)
    for second, (status, width) in enumerate([(503, 8), (429, 4), (500, 4), (404, 4), (200, 4)]):
        now = float(2 * second)
        pace.answered(status)
        assert pace.width() == width
    for status, widths in ((500, (4,)), (200, (8, 9))):
        for _ in range(30):
            pace.answered(status)
        assert pace.width() in widths


async def test_whoever_comes_waits_for_a_place() -> None:
    pace = Pace(4)
    pace.throttled()
    peak = under_way = 0

    async def one() -> None:
        nonlocal peak, under_way
        await pace.enter()
        under_way += 1
        peak = max(peak, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        pace.leave()

    await asyncio.gather(*(one() for _ in range(20)))
    assert (peak, under_way) == (2, 0)


async def test_a_place_is_not_lost_with_who_waited_for_it() -> None:
    pace = Pace(1)
    await pace.enter()
    first, second = (asyncio.create_task(pace.enter()) for _ in range(2))
    await asyncio.sleep(0)
    pace.leave()
    first.cancel()
    await asyncio.wait_for(second, 1)
    assert first.cancelled()
