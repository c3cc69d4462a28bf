"""--bwlimit: bytes wait for their turn, first come, first served, so that streams share a rate fairly."""

from __future__ import annotations

import asyncio
import datetime
import time

from fastsync import log
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

    def pay(self, nbytes: int, rate: float) -> tuple[float, float]:
        """When `nbytes` may begin to move at `rate` bytes per second, and when they must be through, in
        seconds from now."""
        now = time.monotonic()
        since = now if self._paid_until is None else max(self._paid_until, now - _CREDIT_S)
        self._paid_until = since + nbytes / rate
        return since - now, self._paid_until - now

    def owed_s(self) -> float:
        """In how many seconds all that was paid for is through."""
        return 0.0 if self._paid_until is None else self._paid_until - time.monotonic()

    async def take(self, nbytes: int, rate: float) -> None:
        """Wait until `nbytes` may have moved at `rate` bytes per second."""
        _, until = self.pay(nbytes, rate)
        await asyncio.sleep(max(0.0, until))  # even if it is late: others want their turn


class Pace:
    """The rates of a run: up is what leaves this machine, or is copied within it; down is what comes in."""

    def __init__(self, timetable: Timetable) -> None:
        self._timetable = timetable
        self._up, self._down = Bucket(), Bucket()
        self._turn = asyncio.Lock()  # is given in the order of asking
        self._told: tuple[float | None, float | None] | None = None

    def rates(self) -> tuple[float | None, float | None]:
        """Bytes per second up and down at this moment, None without a limit."""
        now = datetime.datetime.now()
        rates = self._timetable.at(now.weekday() * 1440 + now.hour * 60 + now.minute)
        if log.level <= log.DEBUG and rates != self._told:
            self._told = rates
            up, down = ("unlimited" if rate is None else round(rate) for rate in rates)
            log.tell(log.DEBUG, "pace", up_bytes_per_s=up, down_bytes_per_s=down)
        return rates

    def step(self) -> int | None:
        """A number of bytes that takes a quarter of a second: what moves at once should be no more."""
        lowest = min((rate for rate in self.rates() if rate is not None), default=None)
        return None if lowest is None else max(16 << 10, round(lowest * 0.25))

    def up_rate(self) -> float | None:
        """What may leave this machine at this moment, in bytes per second; None without a limit."""
        return self.rates()[0]

    async def send(self, nbytes: int, sink: Source) -> None:
        """Wait for the turn of `nbytes` that go to a store that is elsewhere. Few of them are paid for before
        they leave; many begin at once, for the store holds them back (`StoreOptions.send_rate`)."""
        if self.up_rate() is None or offers(sink, LocalFiles):
            return
        async with self._turn:
            # Paid for when it is its turn, at the rate of that time: it may be another by then.
            while (owed_s := self._up.owed_s()) > 0 and self.up_rate() is not None:  # noqa: ASYNC110
                await asyncio.sleep(min(owed_s, _LOOK_S))
            rate, step = self.up_rate(), self.step()
            if rate is None:
                return
            begin, end = self._up.pay(nbytes, rate)
        is_short = step is None or nbytes <= step
        await asyncio.sleep(max(0.0, end if is_short else begin))

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
