"""How many streams of a file are used."""

import asyncio

import pytest

from fastsync.widening import FAR_S, FEW_STREAMS, FULL_STREAM, LOOK_S, Widening, few

FEW = 2


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def rounds(widening: Widening, clock: Clock, rate_of: int, count: int = 10) -> int:
    """The streams in use after some looks, while each brings `rate_of` bytes per second."""
    widening.moved(1)
    for _ in range(count):
        clock.now += LOOK_S
        widening.moved(int(widening.streams.limit * rate_of * LOOK_S))
        widening.look()
    return widening.streams.limit


async def started(most: int) -> tuple[Widening, Clock]:
    clock = Clock()
    widening = Widening(most, FEW, clock=clock)
    await widening.streams.take(1)
    return widening, clock


async def test_streams_as_fast_as_processors_allow_stay_few() -> None:
    assert rounds(*await started(16), FULL_STREAM + (8 << 20)) == FEW


async def test_a_service_that_paces_each_connection_gets_all_of_them() -> None:
    assert rounds(*await started(16), 85 * 10**6) == 16


async def test_more_streams_that_brought_nothing_are_not_made_still_more_at_once() -> None:
    widening, clock = await started(16)
    widening.moved(1)
    widths = []
    for _ in range(100):
        clock.now += LOOK_S
        widening.moved(int(FULL_STREAM * LOOK_S))  # however many there are
        widening.look()
        widths.append(widening.streams.limit)
    assert widths[:20] == [FEW, *[2 * FEW] * 19]
    assert widths[-1] == 4 * FEW  # after a while it is tried again


async def test_streams_never_pass_what_was_asked_for() -> None:
    assert rounds(*await started(3), 10) == 3


async def test_a_far_place_gets_all_before_the_first_byte() -> None:
    widening, clock = await started(16)
    clock.now += FAR_S
    widening.look()
    assert widening.streams.limit == 16


async def test_time_before_the_first_request_says_nothing() -> None:
    clock = Clock()
    widening = Widening(16, FEW, clock=clock)
    clock.now += 10
    widening.look()
    assert widening.streams.limit == FEW


async def test_whoever_waits_for_a_stream_gets_one_that_is_added() -> None:
    widening, clock = await started(FEW + 1)
    for _ in range(FEW - 1):
        await widening.streams.take(1)
    waiting = asyncio.create_task(widening.streams.take(1))
    await asyncio.sleep(0)
    assert not waiting.done()
    clock.now += FAR_S
    widening.look()
    assert await waiting == 1


def test_a_store_says_how_many_to_begin_with_where_processors_are_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert few(1) == 1
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert few(1) == FEW_STREAMS
