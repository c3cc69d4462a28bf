"""How many streams a file is worth: few, until they turn out to be slow one by one."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from fastsync import log
from fastsync.budget import Budget

FEW_STREAMS: Final = 2
# With fewer, they are what a server nearby and we share.
_SPARE_PROCESSORS: Final = 4
# What a stream brings, in bytes per second, where processors are the limit: a further one would only take
# turns with it. Far places, and services that pace each connection (S3: 85 to 90 MB/s), bring less.
FULL_STREAM: Final = 96 << 20
LOOK_S: Final = 0.03
# So many slow looks in a row say more than that somebody else had the processors.
_SLOW_LOOKS: Final = 2
# Where that many more brought at least so much more, it is worth more still; else only after a while, in
# which whatever else was slow at first has come to speed.
_GAIN: Final = 1.25
_PATIENCE_S: Final = 2.0
# Where nothing has come for so long, it is the way that takes the time.
FAR_S: Final = 0.09


def few(first_streams: int) -> int:
    """How many to begin with, of a store that does best with so many where processors are few."""
    return first_streams if (os.cpu_count() or 1) < _SPARE_PROCESSORS else FEW_STREAMS


class Widening:
    """Streams to take and give back: `few` at first, twice as many while those there are bring less than
    `FULL_STREAM` each, `most` in the end. `moved` is told of bytes as they come, in the event loop."""

    def __init__(
        self, most: int, few: int = FEW_STREAMS, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.streams = Budget(min(most, few))
        self._most = most
        self._clock = clock
        self._since = clock()
        self._bytes = 0
        self._slow_looks = 0
        self._rate = 0.0  # when they were made more, and when that was
        self._widened = 0.0
        self._has_begun = False

    def moved(self, nbytes: int, /) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._since = self._clock()
        self._bytes += nbytes

    def look(self) -> None:
        """Decide, from what has come since the last time."""
        now = self._clock()
        if not self.streams.peak:  # nothing is asked for yet
            self._since = now
        elapsed = now - self._since
        if elapsed < (LOOK_S if self._has_begun else FAR_S):
            return
        width, brought = self.streams.limit, self._bytes
        self._since, self._bytes = now, 0
        if not self._has_begun:
            self.streams.widen(self._most)
            return
        rate = brought / elapsed
        self._slow_looks = self._slow_looks + 1 if rate < FULL_STREAM * width else 0
        helps = rate >= _GAIN * self._rate or now - self._widened >= _PATIENCE_S
        if self._slow_looks >= _SLOW_LOOKS and helps:
            self._slow_looks, self._rate, self._widened = 0, rate, now
            wider = min(self._most, 2 * width)
            self.streams.widen(wider)
            log.tell(log.DEBUG, "pace", streams=wider, before=width, bytes_per_s=round(rate))

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Look now and then, inside the block."""
        watcher = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watcher.cancel()
            await asyncio.wait([watcher])

    async def _watch(self) -> None:
        while self.streams.limit < self._most:
            await asyncio.sleep(LOOK_S)
            self.look()
