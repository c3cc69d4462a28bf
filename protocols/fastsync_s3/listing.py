"""List a bucket in ascending byte order with many requests in flight, complete or ListingError.

S3 lists a prefix one page after the other, each page naming where the next begins, but it also begins
anywhere when asked to (``StartAfter``). So the key space is cut into a chain of intervals, those nearest
to the consumer are listed at the same time, and the pages come out in order. Where to cut is a guess:
from the keys of a page follows how far in the key space a page reaches, and a few pages further on the
next interval begins. A guess can only cost a request, never a key: every interval lists exactly what lies
in it, whatever the keys are, and when guesses do not pay, no more are made.

Keys are compared as strings of code points, which is the order of their UTF-8 bytes, S3's own. Only where
a server has names that are not UTF-8 (surrogate escapes, PEP 383), it is not, and they are compared as
bytes.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections import deque
from itertools import islice, zip_longest
from operator import contains, itemgetter, lt
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from fastsync.errors import FastsyncError, ListingError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

# Key, size in bytes, LastModified in Unix nanoseconds, ETag, storage class.
Row: TypeAlias = tuple[str, int, int, str, str]


class Query(NamedTuple):
    """One request: what begins with `prefix` and comes after `start_after`, at most `max_keys` items.

    `token` goes on where an earlier page of the same prefix and delimiter ended and overrules
    `start_after`, which then is the last key of that page. A server of version 1 takes it as its marker.
    """

    prefix: str
    start_after: str = ""
    token: str | None = None
    delimiter: str = ""
    max_keys: int = 1000


class RawPage(NamedTuple):
    """One answer as the server gave it. `next_token` is None on the last page only."""

    keys: list[Row]
    prefixes: list[str]
    next_token: str | None


if TYPE_CHECKING:
    Fetch: TypeAlias = Callable[[Query], Awaitable[RawPage]]
    # Of the number of the failed attempt, from 0, and its error: seconds to wait, None to give up.
    Retry: TypeAlias = Callable[[int, FastsyncError], float | None]

PAGE: Final = 1000
DELIMITER: Final = "/"
_AFTER_DELIMITER: Final = "0"  # the next character: what begins so is behind all of the folder

# Pages an interval is meant to have. Fewer waste requests where two intervals meet (half a page each),
# more need more memory, for all but the first interval wait in memory for their turn.
_PAGES_PER_INTERVAL: Final = 3

# Some servers answer with empty pages that are not the last, while they skip deleted keys.
_MAX_EMPTY_PAGES: Final = 32

# Of what was listed: the requests that guesses may waste. The free ones are per slot.
_WASTE_SHARE: Final = 0.15
_FREE_WASTE: Final = 4

# Sorts after every key in use below the same prefix; whoever owns a key beyond it loses a guess.
_LAST: Final = "\U0010fffd"

_SAMPLE: Final = 40
_ASCII_END: Final = 0x7B  # behind "z"
_UNICODE_END: Final = 0x110000
_MAX_ASKED: Final = 1000
_MAX_KEY: Final = 1024  # bytes

_key_of: Final = itemgetter(0)


def _head(one: str, other: str) -> int:
    """How many characters two strings begin with alike."""
    for length, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return length
    return min(len(one), len(other))


def _never(attempt: int, error: FastsyncError) -> float | None:
    return None


async def _patiently(fetch: Fetch, query: Query, retry: Retry) -> RawPage:
    attempt = 0
    while True:
        try:
            return await fetch(query)
        except FastsyncError as error:
            if not error.transient or (delay := retry(attempt, error)) is None:
                raise
        await asyncio.sleep(delay)
        attempt += 1


def _is_valid(key: str) -> bool:
    """Whether S3 would take it as a key: UTF-8, up to 1024 bytes."""
    try:
        return len(key.encode()) <= _MAX_KEY
    except UnicodeEncodeError:
        return False


def _is_text(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_bytes(key: str) -> str:
    """One character for each byte of `key`, so that strings compare like bytes."""
    return key.encode("utf-8", "surrogateescape").decode("latin-1")


def _as_is(key: str) -> str:
    return key


def _comparable(keys: list[str], *others: str) -> Callable[[str], str]:
    """What to put each of these strings through before they are compared."""
    return _as_is if _is_text("".join([*keys, *others])) else _as_bytes


def _distrust(what: str, prefix: str) -> ListingError:
    return ListingError(
        f"the server's listing cannot be trusted: {what}",
        where=prefix or None,
        hint="check that the endpoint is an S3 server and not something in front of it",
    )


def _check(keys: list[str], prefix: str) -> None:
    """Refuse keys, in their comparable form, that do not ascend or do not begin with the prefix.

    What begins with one prefix is one run in byte order, so looking at both ends is enough.
    """
    if not all(map(lt, keys, islice(keys, 1, None))):
        raise _distrust("keys are not in ascending order", prefix)
    if keys and not (keys[0].startswith(prefix) and keys[-1].startswith(prefix)):
        raise _distrust("a key does not begin with the prefix that was asked for", prefix)


class _Turns:
    """Pages of one sequence: tokens differ, and truncated pages are not empty for ever."""

    __slots__ = ("_empty", "_seen", "token")

    def __init__(self) -> None:
        self.token: str | None = None
        self._empty = 0
        self._seen: set[str] = set()

    def turn(self, page: RawPage, prefix: str) -> None:
        """Take the token of `page`.

        A token from before the last page with something in it need not be remembered: it would lead
        to keys that were there already, and those are refused.
        """
        if page.next_token is None:
            self.token = None
            return
        if page.keys or page.prefixes:
            self._empty = 0
            self._seen.clear()
            if self.token is not None:
                self._seen.add(self.token)
        else:
            self._empty += 1
            if self._empty > _MAX_EMPTY_PAGES:
                raise _distrust(
                    f"{self._empty} empty pages in a row, none of them the last", prefix
                )
        if page.next_token in self._seen:
            raise _distrust("a continuation token was repeated", prefix)
        self._seen.add(page.next_token)
        self.token = page.next_token


class _Span(NamedTuple):
    """How far a page of `rows` keys reached: its first and last key, and some of those between."""

    first: str
    last: str
    sample: list[str]
    rows: int


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
        self.turns = _Turns()
        self.pages: deque[list[Row]] = deque()
        self.span: _Span | None = None
        # Pages since it was cut last: many mean that it is longer than it was thought to be.
        self.overdue = 0
        self.started = False
        self.busy = False
        self.done = False
        # There is no point in cutting it further, for what is known.
        self.is_whole = False


class _Map:
    """What the keys look like, so as to say where in the key space a number of pages ends.

    Keys are read as numbers whose digits at each position are the characters seen there. That is exact
    for counters, dates, UUIDs and the like; for anything else it is a guess like any other.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        # By position after the prefix: the characters seen.
        self._seen: list[set[str]] = []
        # Positions that were seen to begin again from a lower character: all they have is known.
        self._cycled: set[int] = set()
        # The last name in the last folder that came to its end; folders are often alike.
        self._last_name: str | None = None

    def learn(self, keys: list[str], before: str, is_key: bool) -> _Span:
        """Take in a page of keys and what it was asked to begin behind, the last key or only a guess."""
        first, last = keys[0], keys[-1]
        sample = keys[:: max(1, len(keys) // _SAMPLE)]
        start = len(self._prefix)
        self.notice([first, last, *sample[::8]])
        for position in range(_head(first, last) + 1, min(len(first), len(last))):
            if first[position] > last[position]:
                self._cycled.add(position - start)
        end = before.rfind(DELIMITER, start) + 1
        if end and not first.startswith(before[:end]):
            name = before[end:]
            if is_key or self._last_name is None or name < self._last_name:
                self._last_name = name
        if (end := first.rfind(DELIMITER, start) + 1) and not last.startswith(first[:end]):
            index = bisect_left(keys, first[: end - 1] + _AFTER_DELIMITER)
            self._last_name = keys[index - 1][end:]
        return _Span(first, last, sample, len(keys))

    def notice(self, keys: list[str]) -> None:
        """Take in keys that are no page."""
        start = len(self._prefix)
        columns = [*zip_longest(*(key[start:] for key in keys), fillvalue="")]
        while len(self._seen) < len(columns):
            self._seen.append(set())
        for position, (seen, column) in enumerate(zip(self._seen, columns, strict=False)):
            if not seen.issuperset(column):
                seen.update(column)
                self._cycled.discard(position)

    def _digits(self, after: str, span: _Span, base: int, turn: int, end: int) -> list[list[str]]:
        """The characters in order at positions [base, end); at `turn` the page's keys begin to differ.

        Right of `turn` the page has seen them all. From `turn` leftwards it has not, and
        1. what other pages saw there counts, if it is of the same kind and is known to be all;
        2. else a character from the set that the position to the right has promises the same set;
        3. else only what was seen is known.
        """
        columns = [
            set(column)
            for column in zip_longest(*(key[base:end] for key in span.sample), fillvalue="")
        ]
        columns += [{""} for _ in range(end - base - len(columns))]
        start = len(self._prefix)
        for position in range(turn, base - 1, -1):
            here = columns[position - base] | {*after[position : position + 1]}
            right = columns[position - base + 1] - {""}
            seen = self._seen[position - start] if position - start < len(self._seen) else here
            if position - start in self._cycled and here <= seen <= right:
                here = seen
            elif here <= right:
                here = right
            else:
                here |= seen
            columns[position - base] = here - {""} or {""}
        return [sorted(column) for column in columns]

    def ahead(self, after: str, stop: str | None, span: _Span, rows: int, least: int) -> str | None:
        """The place `rows` keys behind `after` if they go on like `span`, or `stop` if fewer than
        `least` would be left before it; None if nobody can tell."""
        turn = _head(span.first, span.last)
        start = len(self._prefix)
        folder = span.last.rfind(DELIMITER, start, turn) + 1
        if folder and (after[folder - 1 : folder] != DELIMITER or len(after) == folder):
            return None  # another folder: positions do not compare, or nothing is known of it yet
        # A few positions to carry into, and a few for precision.
        base = max(start, min(turn, _head(span.last, after)) - 8)
        end = turn + 4
        digits = self._digits(after, span, base, turn, end)
        here = _number(after, base, digits)
        reach = _number(span.last, base, digits) - _number(span.first, base, digits)
        there = here + reach * rows // span.rows
        if stop is not None and stop[:base] == after[:base]:
            is_known = all(map(contains, digits[: turn - base], stop[base:turn]))
            if is_known and there + reach * least // span.rows > _number(stop, base, digits):
                return stop
        text = _text(there, digits)
        if text is None:
            return None
        place = after[:base] + text
        if stop is not None and place >= stop:
            return stop
        name = self._last_name
        if folder and name is not None and after[folder:] <= name < place[folder:]:
            return None  # probably beyond the end of the folder
        return place if place > after else None


def _number(key: str, base: int, digits: list[list[str]]) -> int:
    """`key` from position `base` on as a number; monotonous for all keys with the same head."""
    number = 0
    fill = None  # what the rest of the digits are: 0 lowest, 1 highest
    for position, characters in enumerate(digits, base):
        radix = len(characters)
        if fill is None:
            character = key[position : position + 1]
            digit = bisect_left(characters, character)
            if digit == radix:
                digit, fill = radix - 1, 1
            elif characters[digit] != character:
                fill = 0
        else:
            digit = fill * (radix - 1)
        number = number * radix + digit
    return number


def _text(number: int, digits: list[list[str]]) -> str | None:
    """The inverse of `_number`; None if there are not enough digits."""
    characters: list[str] = []
    for alphabet in reversed(digits):
        number, digit = divmod(number, len(alphabet))
        character = alphabet[digit]
        if not character:
            characters.clear()  # the key ends here
        else:
            characters.append(character)
    return None if number else "".join(reversed(characters))


def _middle(after: str, stop: str) -> str | None:
    """A place between two others by their code points alone, if there is a short one."""
    position = _head(after, stop)
    high = ord(stop[position])
    while position < len(after):
        low = ord(after[position])
        middle = (low + high) // 2
        if low < middle and not 0xD800 <= middle < 0xE000:
            return after[:position] + chr(middle)
        position += 1
        high = _ASCII_END if after[position : position + 1] < chr(_ASCII_END) else _UNICODE_END
    return None


class _Scout:
    """Real keys and prefixes further on, for where counting does not lead.

    One request with the delimiter says how a folder goes on behind the subfolder that is being listed;
    if it does not, its parent is asked. Without folders one request for a single key says what comes
    behind all that begins like this key, with ever fewer of its characters.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.places: list[str] = []
        self.busy = False
        self.given_up = False
        self._asked: set[Query] = set()

    def question(self, after: str, span: _Span) -> Query | None:
        """What to ask next about what comes behind `after`, if there is a question left."""
        if self.busy or self.given_up:
            return None
        start = len(self._prefix)
        turn = min(_head(span.first, span.last), _head(span.last, after))
        if DELIMITER in after[start:]:
            # Folders from the one all of the page is in up to the prefix, and the child in each.
            folder = max(start, after.rfind(DELIMITER, start, turn) + 1)
            while True:
                child = after.find(DELIMITER, folder)
                behind = after[: child + 1] + _LAST
                query = Query(after[:folder], behind, None, DELIMITER, PAGE)
                # What comes behind a file in its own folder, the pages will tell as soon.
                if child >= 0 and self._is_new(query):
                    return query
                if folder <= start:
                    return None
                folder = max(start, after.rfind(DELIMITER, start, folder - 1) + 1)
        step = 1
        while (position := max(start, turn - step)) >= start:
            query = Query(self._prefix, after[: position + 1] + _LAST, None, "", 1)
            if self._is_new(query):
                return query
            if position == start:
                return None
            step *= 2
        return None

    def _is_new(self, query: Query) -> bool:
        if query in self._asked:
            return False
        if len(self._asked) > _MAX_ASKED:
            self._asked.clear()
        self._asked.add(query)
        return True

    def answer(self, page: RawPage) -> list[str]:
        """Take in the answer, and return the new places in order. It is only a hint and needs no trust:
        any string below the prefix is a place to cut at."""
        places = {row[0] for row in page.keys}
        places.update(page.prefixes)
        found = sorted(place for place in places if place.startswith(self._prefix))
        if found:
            self.places = found
        return found

    def ahead(
        self, after: str, stop: str | None, span: _Span, rows: int
    ) -> tuple[str, bool] | None:
        """A place ahead, and whether it is `rows` keys away rather than merely the next that is known."""
        index = bisect_right(self.places, after)
        passed = bisect_right(self.places, span.last) - bisect_right(self.places, span.first)
        is_counted = passed >= 2
        if is_counted:
            index += passed * rows // span.rows
        if index >= len(self.places) or (stop is not None and self.places[index] >= stop):
            return None
        return self.places[index], is_counted

    def is_next(self, after: str, stop: str) -> bool:
        """Whether nothing is known to lie between two places, though what is around them is."""
        index = bisect_right(self.places, after)
        return 0 < index < len(self.places) and stop <= self.places[index]


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
        retry: Retry,
        page_size: int,
    ) -> None:
        self.requests = 0
        self.peak = 0
        self._fetch = fetch
        self._prefix = prefix
        self._width = width if callable(width) else lambda: width
        self._retry = retry
        self._page_size = page_size
        self._chain = [_Interval("", None)]
        self._map = _Map(prefix)
        self._scout = _Scout(prefix)
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
        task = asyncio.ensure_future(_patiently(self._fetch, query, self._retry))
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

    def _cut(self, index: int, span: _Span, width: int) -> None:
        """End an interval where it has a few pages and let a new one begin there, if that can be told."""
        interval = self._chain[index]
        if self._is_sequential or not self._may_waste(width):
            return
        interval.is_whole = True
        if not _is_text(interval.after):
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
                place = _middle(after, stop)
        elif place is None and not self._scout.is_next(after, stop):
            if DELIMITER in after[len(self._prefix) :] and self._ask_scout(after, span):
                return
            place = _middle(after, stop)
        if place is None or place == stop or not _is_valid(place):
            return
        interval.stop = place
        interval.overdue = 0
        self._chain.insert(index + 1, _Interval(place, stop))

    def _ask_scout(self, after: str, span: _Span) -> bool:
        """Ask for places behind `after`; whether they are to be waited for."""
        query = self._scout.question(after, span)
        if query is not None and _is_valid(query.start_after):
            self._scout.busy = True
            # Not with patience: nothing depends on it.
            self._scouting = asyncio.ensure_future(_patiently(self._fetch, query, _never))
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
            raise _distrust("common prefixes where none were asked for", self._prefix)
        if not page.keys:
            interval.turns.turn(page, self._prefix)
            interval.done = page.next_token is None
            return
        keys = list(map(_key_of, page.keys))
        form = _comparable(keys, interval.after, self._yielded)
        forms = keys if form is _as_is else list(map(form, keys))
        _check(forms, form(self._prefix))
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
            self._map.notice([*places[:: max(1, len(places) // _SAMPLE)], places[-1]])

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
            raise _distrust("keys that were listed already came again", self._prefix)
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
    retry: Retry = _never,
    page_size: int = PAGE,
) -> AsyncGenerator[list[Row], None]:
    """Yield all keys that begin with `prefix` in ascending byte order, in pages of at least one row.

    Up to `width` pages are asked for at the same time (a callable is asked again before every request),
    and no more than 3 x `width` + 1 are in memory or on their way, however slow the consumer is; beside
    them one request at a time asks what lies ahead. What fits into one page is one request; instead of n
    pages in sequence, at most about 1.25 n + 8 x `width` are fetched. A request that fails for a passing
    reason is made again after the delay that `retry` gives.

    Raises ListingError when the answers do not make sense, after which nothing is yielded; other errors
    are those of `fetch`. Close the generator (contextlib.aclosing) when leaving early.
    """
    listing = Listing(fetch, prefix, width=width, retry=retry, page_size=page_size)
    pages = listing.pages()
    try:
        async for rows in pages:
            yield rows
    finally:
        await pages.aclose()


async def list_level(
    fetch: Fetch, prefix: str, *, retry: Retry = _never, page_size: int = PAGE
) -> AsyncGenerator[list[Row | str], None]:
    """Yield what is directly below `prefix`: rows, and common prefixes (which end in "/"), merged in
    ascending byte order, in pages of at least one item. One request after the other.

    Prefixes are made here if the server ignores the delimiter. Raises like `list_keys`.
    """
    turns = _Turns()
    start = len(prefix)
    after = ""  # of what the server sent
    folder = ""  # the last common prefix that was yielded
    while True:
        query = Query(prefix, after, turns.token, DELIMITER, page_size)
        page = await _patiently(fetch, query, retry)
        if page.prefixes and page.prefixes[0] == after == folder:
            # Some servers repeat a common prefix that goes on on the next page.
            page = page._replace(prefixes=page.prefixes[1:])
        items = _merged(page, prefix, after)
        if items:
            after = _name_of(items[-1])
        turns.turn(page, prefix)
        level: list[Row | str] = []
        for item in items:
            name = _name_of(item)
            end = name.find(DELIMITER, start)
            if end < 0:
                if isinstance(item, str):
                    raise _distrust("a common prefix does not end in the delimiter", prefix)
                level.append(item)
            elif (child := name[: end + 1]) != folder:
                folder = child
                level.append(child)
        if level:
            yield level
        if turns.token is None:
            return


def _merged(page: RawPage, prefix: str, after: str) -> list[Row | str]:
    """The keys and prefixes of a page in one order, all of them behind `after`."""
    keys = list(map(_key_of, page.keys))
    form = _comparable(keys, *page.prefixes, after)
    items: list[Row | str] = [*page.keys, *page.prefixes]
    items.sort(key=lambda item: form(_name_of(item)))
    for names in (keys, page.prefixes, list(map(_name_of, items))):
        forms = list(map(form, names))
        _check(forms, form(prefix))
        if forms and forms[0] <= form(after):
            raise _distrust("keys that were listed already came again", prefix)
    return items


def _name_of(item: Row | str) -> str:
    return item if isinstance(item, str) else item[0]


async def has_keys(fetch: Fetch, prefix: str, *, retry: Retry = _never) -> bool:
    """Whether any key begins with `prefix`. Raises like `list_keys`."""
    turns = _Turns()
    while True:
        page = await _patiently(fetch, Query(prefix, "", turns.token, "", 1), retry)
        if page.keys:
            _check([row[0] for row in page.keys], prefix)
            return True
        turns.turn(page, prefix)
        if turns.token is None:
            return False
