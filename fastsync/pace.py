"""--bwlimit: bytes wait for their turn, first come, first served, so that streams share a rate fairly."""

from __future__ import annotations

import asyncio
import datetime
import time

from fastsync.backend import LocalFiles, Source, offers
from fastsync.values import Timetable

# A turn that came late, because the loop was busy, is made up for, up to this much.
_CREDIT_S = 0.1
# Nobody sleeps longer without a look at the timetable.
_LOOK_S = 0.5


class Bucket:
    """One direction. Bytes are paid for before they move: so many take as long as the rate says."""

    def __init__(self) -> None:
        self._paid_until: float | None = None

    async def take(self, nbytes: int, rate: float) -> None:
        """Wait until `nbytes` may move at `rate` bytes per second."""
        now = time.monotonic()
        since = now if self._paid_until is None else max(self._paid_until, now - _CREDIT_S)
        until = self._paid_until = since + nbytes / rate
        await asyncio.sleep(max(0.0, until - now))  # even if it is late: others want their turn


class Pace:
    """The rates of a run: up is what leaves this machine, or is copied within it; down is what comes in."""

    def __init__(self, timetable: Timetable) -> None:
        self._timetable = timetable
        self._up, self._down = Bucket(), Bucket()

    def rates(self) -> tuple[float | None, float | None]:
        """Bytes per second up and down at this moment, None without a limit."""
        now = datetime.datetime.now()
        return self._timetable.at(now.weekday() * 1440 + now.hour * 60 + now.minute)

    def step(self) -> int | None:
        """A number of bytes that takes a quarter of a second: what moves at once should be no more."""
        lowest = min((rate for rate in self.rates() if rate is not None), default=None)
        return None if lowest is None else max(16 << 10, round(lowest * 0.25))

    async def take(self, nbytes: int, source: Source, sink: Source | None = None) -> None:
        """Wait until `nbytes` may move from one store to the other (None is here)."""
        goes_up = sink is not None and not offers(sink, LocalFiles)
        comes_down = not offers(source, LocalFiles)
        while nbytes > 0:
            up, down = self.rates()
            ways = []
            if up is not None and (goes_up or not comes_down):
                ways.append((self._up, up))
            if down is not None and comes_down:
                ways.append((self._down, down))
            if not ways:
                return
            some = min([nbytes, *(max(1, round(rate * _LOOK_S)) for _, rate in ways)])
            for bucket, rate in ways:
                await bucket.take(some, rate)
            nbytes -= some
