"""Rates: how they are written, when they hold, and that bytes keep to them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastsync
from fastsync.errors import UsageError
from fastsync.pace import Bucket, Pace
from fastsync.registry import Claim, Registry
from fastsync.testing import MemoryBackend
from fastsync.values import parse_bwlimit

DAY = 24 * 60


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    claims = [
        Claim("file", "fastsync_local.backend:LocalBackend"),
        Claim("mem", "fastsync.testing:MemoryBackend"),
    ]
    monkeypatch.setattr(Registry, "from_entry_points", lambda: Registry(claims))
    yield
    MemoryBackend.reset()


@pytest.mark.parametrize(
    ("text", "minute", "rates"),
    [
        ("10M", 0, (10 << 20, 10 << 20)),
        ("10MB/s", 0, (10_000_000, 10_000_000)),
        ("10M:512k", 7 * DAY - 1, (10 << 20, 512 << 10)),
        ("off:1M", 0, (None, 1 << 20)),
        ("off", 0, (None, None)),
        ("08:00,512k 19:00,off", 8 * 60 - 1, (None, None)),
        ("08:00,512k 19:00,off", 8 * 60, (512 << 10, 512 << 10)),
        ("08:00,512k 19:00,off", 3 * DAY + 19 * 60, (None, None)),
        ("19:00,off 8:00,1M:off", DAY + 8 * 60, (1 << 20, None)),
        ("Mon-00:00,1M Saturday-12:00,off", 5 * DAY + 12 * 60 - 1, (1 << 20, 1 << 20)),
        ("Mon-00:00,1M Saturday-12:00,off", 7 * DAY - 1, (None, None)),
        ("Tue-00:00,1M", 0, (1 << 20, 1 << 20)),
    ],
)
def test_rates(text: str, minute: int, rates: tuple[float | None, float | None]) -> None:
    table = parse_bwlimit(text)
    assert table.at(minute) == rates
    assert str(table) == text


@pytest.mark.parametrize(
    "text",
    ["", "fast", "8Q", "-1M", "0", "100", "25:00,1M", "08:00", "08:00,1M 9,2M", "Foo-1:00,1M"],
)
def test_bad_rates(text: str) -> None:
    with pytest.raises(UsageError):
        parse_bwlimit(text)


async def test_streams_share_fairly() -> None:
    bucket, moved = Bucket(), [0] * 4
    until = time.monotonic() + 0.6

    async def stream(number: int) -> None:
        while time.monotonic() < until:
            await bucket.take(1000, 1e6)
            moved[number] += 1000

    await asyncio.gather(*map(stream, range(4)))
    assert sum(moved) == pytest.approx(600_000, rel=0.2)
    assert max(moved) - min(moved) <= 10_000


@pytest.mark.parametrize("way", ["disk to disk", "up", "down", "small files"])
def test_as_long_as_the_rate_says(tmp_path: Path, way: str) -> None:
    ours = tmp_path / "ours"
    ours.mkdir()
    if way == "small files":
        for number in range(200):
            (ours / str(number)).write_bytes(bytes(10_000))
    else:
        (ours / "a").write_bytes(bytes(1_500_000))
        (ours / "b").write_bytes(bytes(500_000))
    source, destination = str(ours), str(tmp_path / "theirs")
    if way == "up":
        destination = "mem://box/x"
    elif way == "down":
        fastsync.sync(source, "mem://box/x")
        source = "mem://box/x"
    summary = fastsync.sync(source, destination, bwlimit="2MB" if way != "down" else "off:2MB")
    assert summary.exit_code == 0
    assert summary.totals.bytes_done == 2_000_000
    assert 0.9 <= summary.duration_s < 1.5


def test_holes_stay_holes_at_a_pace(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.write(b"begin")
        file.seek(3_000_000)
        file.write(b"end")
    held = (tmp_path / "a").stat().st_blocks
    if held * 512 > 100_000:
        pytest.skip("this file system keeps no holes")
    summary = fastsync.cp(str(tmp_path / "a"), str(tmp_path / "b"), bwlimit="20MB", sparse=True)
    assert summary.exit_code == 0
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    assert (tmp_path / "b").stat().st_blocks == held
    fastsync.cp(str(tmp_path / "a"), "mem://box/a")
    for limit in ("off", "20MB"):
        target = tmp_path / limit
        options = {"sparse": True, "small_file_threshold": "1K", "bwlimit": limit}
        fastsync.cp("mem://box/a", str(target), **options)  # type: ignore[arg-type]
        assert target.read_bytes() == (tmp_path / "a").read_bytes()
        assert target.stat().st_blocks == held


async def test_long_parts_begin_one_after_the_other() -> None:
    """The store holds each of them back to the rate, so that one ends when the next begins."""
    pace, sink = Pace(parse_bwlimit("1MB")), object()
    begun: list[float] = []
    start = time.monotonic()

    async def part(length: int) -> None:
        await pace.send(length, sink)  # type: ignore[arg-type]
        begun.append(time.monotonic() - start)

    await asyncio.gather(part(400_000), part(400_000), part(100_000))
    assert begun == [pytest.approx(at, abs=0.15) for at in (0.0, 0.4, 0.9)]


async def test_long_parts_that_wait_hear_of_another_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only those that begin to wait later on."""
    pace, sink = Pace(parse_bwlimit("1MB")), object()
    rates: list[float | None] = [100_000.0]
    monkeypatch.setattr(pace, "rates", lambda: (rates[0], rates[0]))
    sends = [asyncio.create_task(pace.send(10_000_000, sink)) for _ in range(4)]  # type: ignore[arg-type]
    _, waiting = await asyncio.wait(sends, return_when=asyncio.FIRST_COMPLETED)
    assert len(waiting) == 3  # the last of them for five minutes
    rates[0] = None
    await asyncio.wait_for(asyncio.gather(*sends), timeout=20)


def test_the_other_direction_is_free(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(1_000_000))
    summary = fastsync.cp(str(tmp_path / "a"), "mem://box/x", bwlimit="off:10k")
    assert summary.duration_s < 0.5
