"""List a bucket in ascending byte order with many requests in flight, complete or ListingError.

S3 lists a prefix one page after the other, each page naming where the next begins, but it also begins
anywhere when asked to (``StartAfter``). So the key space is cut into a chain of intervals, those nearest
to the consumer are listed at the same time, and the pages come out in order. Where to cut is a guess:
from the keys of a page follows how far in the key space a page reaches, and a few pages further on the
next interval begins. A guess can only cost a request, never a key: every interval lists exactly what lies
in it, whatever the keys are, and when guesses do not pay, no more are made.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncGenerator, Callable
from functools import partial
from operator import itemgetter
from typing import Final

from fastsync.errors import FastsyncError
from fastsync.patience import MayRetry, persistently
from fastsync_s3.forecast import SAMPLE, KeyMap, Scout, Span, middle
from fastsync_s3.pages import (
    DELIMITER,
    ONCE,
    PAGE,
    Fetch,
    Query,
    RawPage,
    Row,
    Turns,
    as_is,
    check_keys,
    comparable,
    distrust,
    is_text,
    is_valid_key,
)

# Pages an interval is meant to have. Fewer waste requests where two intervals meet (half a page each),
# more need more memory, for all but the first interval wait in memory for their turn.
_PAGES_PER_INTERVAL: Final = 3

# Of what was listed: the requests that guesses may waste. The free ones are per slot.
_WASTE_SHARE: Final = 0.15
_FREE_WASTE: Final = 4

_key_of: Final = itemgetter(0)


class _Interval:
    """The keys in (after, stop] that are not listed yet, and before them the pages that are.

    `after` moves on with every page. `stop` None is the end of the prefix.
    """

    __slots__ = (
        "after",
        "busy",
        "done",
        "is_whole",
        "overdue",
        "pages",
        "span",
        "started",
        "stop",
        "turns",
    )

    def __init__(self, after: str, stop: str | None) -> None:
        self.after = after
        self.stop = stop
        self.turns = Turns()
        self.pages: deque[list[Row]] = deque()
        self.span: Span | None = None
        # Pages since it was cut last: many mean that it is longer than it was thought to be.
        self.overdue = 0
        self.started = False
        self.busy = False
        self.done = False
        # There is no point in cutting it further, for what is known.
        self.is_whole = False


class Listing:
    """One listing of all keys that begin with a prefix; `list_keys` runs it.

    `requests` counts the pages asked for. `peak` is the largest number of pages in memory or on their
    way at one time.
    """

    def __init__(
        self,
        fetch: Fetch,
        prefix: str,
        *,
        width: int | Callable[[], int],
        may_retry: MayRetry,
        page_size: int,
    ) -> None:
        self.requests = 0
        self.peak = 0
        self._fetch = fetch
        self._prefix = prefix
        self._width = width if callable(width) else lambda: width
        self._may_retry = may_retry
        self._page_size = page_size
        self._chain = [_Interval("", None)]
        self._map = KeyMap(prefix)
        self._scout = Scout(prefix)
        self._tasks: set[asyncio.Task[RawPage]] = set()
        self._scouting: asyncio.Task[RawPage] | None = None
        self._owner: dict[asyncio.Task[RawPage], _Interval] = {}
        self._arrived: deque[asyncio.Task[RawPage]] = deque()
        self._wake = asyncio.Event()
        self._buffered = 0
        self._useful = 0.0
        self._full = 1
        self._yielded = ""
        self._is_sequential = False

    async def pages(self) -> AsyncGenerator[list[Row], None]:
        """The pages in order. Closing the generator ends all requests."""
        try:
            while self._chain:
                self._begin()
                front = self._chain[0]
                if front.pages:
                    rows = front.pages.popleft()
                    self._buffered -= 1
                    self._yielded = rows[-1][0]
                    yield rows
                elif front.done:
                    del self._chain[0]
                else:
                    self._wake.clear()
                    if not self._arrived:
                        await self._wake.wait()
                while self._arrived:
                    self._take(self._arrived.popleft())
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    # What to ask for. Nothing here awaits.

    def _begin(self) -> None:
        """Use the idle slots, for what is needed first."""
        width = max(1, self._width())
        room = _PAGES_PER_INTERVAL * width
        span = None
        index = 0
        while index < len(self._chain) and len(self._owner) < width:
            interval = self._chain[index]
            span = interval.span or span
            if not interval.done:
                if not interval.busy:
                    # The first is always served: it makes room for the others.
                    if index and self._buffered + len(self._owner) >= room:
                        return
                    self._ask(interval)
                if span is not None and not interval.is_whole and len(self._owner) < width:
                    self._cut(index, span, width)
            index += 1

    def _ask(self, interval: _Interval) -> None:
        interval.busy = interval.started = True
        query = Query(self._prefix, interval.after, interval.turns.token, "", self._page_size)
        task = asyncio.ensure_future(persistently(partial(self._fetch, query), self._may_retry))
        self._owner[task] = interval
        self._follow(task)
        self.peak = max(self.peak, self._buffered + len(self._owner))

    def _follow(self, task: asyncio.Task[RawPage]) -> None:
        self.requests += 1
        self._tasks.add(task)
        task.add_done_callback(self._on_arrival)

    def _on_arrival(self, task: asyncio.Task[RawPage]) -> None:
        self._arrived.append(task)
        self._wake.set()

    def _may_waste(self, width: int) -> bool:
        """Whether another guess may be made. Each place where two intervals meet will cost half a page."""
        waste = self.requests - len(self._owner) - self._useful + len(self._chain) / 2
        return waste < _WASTE_SHARE * self._useful + _FREE_WASTE * width

    def _cut(self, index: int, span: Span, width: int) -> None:
        """End an interval where it has a few pages and let a new one begin there, if that can be told."""
        interval = self._chain[index]
        if self._is_sequential or not self._may_waste(width):
            return
        interval.is_whole = True
        if not is_text(interval.after):
            return  # a place is text, and the two would not compare
        after, stop = interval.after, interval.stop
        # A little less than whole pages, so that the last one tells that it is the last.
        rows = (_PAGES_PER_INTERVAL * 30 - 3) * self._full // 30
        place = self._map.ahead(after, stop, span, rows, self._full)
        known = self._scout.ahead(after, stop, span, rows)
        if known is not None and (place is None or known[1] or known[0] < place):
            place = known[0]
        if stop is None:
            if place is None:
                self._ask_scout(after, span)
        elif interval.overdue > _PAGES_PER_INTERVAL + 1:
            if place is None or place == stop:
                place = middle(after, stop)
        elif place is None and not self._scout.is_next(after, stop):
            if DELIMITER in after[len(self._prefix) :] and self._ask_scout(after, span):
                return
            place = middle(after, stop)
        if place is None or place == stop or not is_valid_key(place):
            return
        interval.stop = place
        interval.overdue = 0
        self._chain.insert(index + 1, _Interval(place, stop))

    def _ask_scout(self, after: str, span: Span) -> bool:
        """Ask for places behind `after`; whether they are to be waited for."""
        query = self._scout.question(after, span)
        if query is not None and is_valid_key(query.start_after):
            self._scout.busy = True
            # Not with patience: nothing depends on it.
            self._scouting = asyncio.ensure_future(persistently(partial(self._fetch, query), ONCE))
            self._follow(self._scouting)
        return self._scout.busy

    # What came. Nothing here awaits.

    def _take(self, task: asyncio.Task[RawPage]) -> None:
        self._tasks.discard(task)
        if task is self._scouting:
            self._take_hint(task)
            return
        interval = self._owner.pop(task, None)
        if interval is None:
            return  # dropped when the listing became sequential
        interval.busy = interval.is_whole = False
        page = task.result()
        if page.prefixes:
            raise distrust("common prefixes where none were asked for", self._prefix)
        if not page.keys:
            interval.turns.turn(page, self._prefix)
            interval.done = page.next_token is None
            return
        keys = list(map(_key_of, page.keys))
        form = comparable(keys, interval.after, self._yielded)
        forms = keys if form is as_is else list(map(form, keys))
        check_keys(forms, form(self._prefix))
        if forms[0] <= form(interval.after):
            self._on_repetition(interval)
            return
        interval.turns.turn(page, self._prefix)
        self._keep(interval, page.keys, keys, forms, form)
        if interval.turns.token is None and not interval.done:
            interval.done = True
            following = self._chain.index(interval) + 1
            while following < len(self._chain) and not self._chain[following].started:
                del self._chain[following]

    def _take_hint(self, task: asyncio.Task[RawPage]) -> None:
        self._scouting = None
        self._scout.busy = False
        try:
            page = task.result()
        except FastsyncError:
            # A policy may forbid the delimiter. Should there be real trouble, the pages meet it, too.
            self._scout.given_up = True
            return
        for interval in self._chain:
            interval.is_whole = False
        if places := self._scout.answer(page):
            self._map.notice([*places[:: max(1, len(places) // SAMPLE)], places[-1]])

    def _keep(
        self,
        interval: _Interval,
        rows: list[Row],
        keys: list[str],
        forms: list[str],
        form: Callable[[str], str],
    ) -> None:
        """Put a page into its interval, cut where the interval ends."""
        last = forms[-1]
        self._full = max(self._full, len(rows))
        if len(keys) > 1:
            interval.span = self._map.learn(keys, interval.after, interval.span is not None)
        interval.after = keys[-1]
        # A page that reaches into intervals nobody has asked for yet swallows them.
        following = self._chain.index(interval) + 1
        while (
            interval.stop is not None
            and last > form(interval.stop)
            and following < len(self._chain)
            and not self._chain[following].started
        ):
            interval.stop = self._chain.pop(following).stop
        if interval.stop is not None and last >= (stop := form(interval.stop)):
            interval.done = True
            rows = rows[: bisect_right(forms, stop)]
        if forms[0] <= (yielded := form(self._yielded)):  # a listing that began again
            rows = rows[bisect_right(forms, yielded) :]
        if rows:
            self._useful += len(rows) / self._full
            self._buffered += 1
            interval.overdue += 1
            interval.pages.append(rows)

    def _on_repetition(self, interval: _Interval) -> None:
        """A page that begins before its place: a server without StartAfter, or one not to be trusted.

        Such a server is listed in sequence: on from the token of the first interval if it has one,
        else from the start once more, without what was yielded already.
        """
        if self._is_sequential or interval.turns.token is not None:
            raise distrust("keys that were listed already came again", self._prefix)
        self._is_sequential = True
        front = self._chain[0]
        if front.done or front.turns.token is None:
            front = _Interval("", None)
        for task, owner in [*self._owner.items()]:
            if owner is not front:
                del self._owner[task]
                task.cancel()
        front.stop = None
        self._chain = [front]
        self._buffered = len(front.pages)


async def list_keys(
    fetch: Fetch,
    prefix: str,
    *,
    width: int | Callable[[], int] = 16,
    may_retry: MayRetry = ONCE,
    page_size: int = PAGE,
) -> AsyncGenerator[list[Row], None]:
    """Yield all keys that begin with `prefix` in ascending byte order, in pages of at least one row.

    Up to `width` pages are asked for at the same time (a callable is asked again before every request),
    and no more than 3 x `width` + 1 are in memory or on their way, however slow the consumer is; beside
    them one request at a time asks what lies ahead. What fits into one page is one request; instead of n
    pages in sequence, at most about 1.25 n + 8 x `width` are fetched. A request that fails for a passing
    reason is made again while `may_retry` says so.

    Raises ListingError when the answers do not make sense, after which nothing is yielded; other errors
    are those of `fetch`. Close the generator (contextlib.aclosing) when leaving early.
    """
    listing = Listing(fetch, prefix, width=width, may_retry=may_retry, page_size=page_size)
    pages = listing.pages()
    try:
        async for rows in pages:
            yield rows
    finally:
        await pages.aclose()
