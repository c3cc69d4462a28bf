"""Where in the key space a listing may be cut: guesses from keys seen, and questions about the rest.

A guess can only cost a request, never a key; see `listing`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import zip_longest
from operator import contains
from typing import Final, NamedTuple

from fastsync_s3.pages import DELIMITER, PAGE, Query, RawPage

_AFTER_DELIMITER: Final = "0"  # the next character: what begins so is behind all of the folder

# Sorts after every key in use below the same prefix; whoever owns a key beyond it loses a guess.
_LAST: Final = "\U0010fffd"

SAMPLE: Final = 40
_ASCII_END: Final = 0x7B  # behind "z"
_UNICODE_END: Final = 0x110000
_MAX_ASKED: Final = 1000


def common_length(one: str, other: str) -> int:
    """How many characters two strings begin with alike."""
    for length, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return length
    return min(len(one), len(other))


class Span(NamedTuple):
    """How far a page of `rows` keys reached: its first and last key, and some of those between."""

    first: str
    last: str
    sample: list[str]
    rows: int


class KeyMap:
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

    def learn(self, keys: list[str], before: str, is_key: bool) -> Span:
        """Take in a page of keys and what it was asked to begin behind, the last key or only a guess."""
        first, last = keys[0], keys[-1]
        sample = keys[:: max(1, len(keys) // SAMPLE)]
        start = len(self._prefix)
        self.notice([first, last, *sample[::8]])
        for position in range(common_length(first, last) + 1, min(len(first), len(last))):
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
        return Span(first, last, sample, len(keys))

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

    def _digits(self, after: str, span: Span, base: int, turn: int, end: int) -> list[list[str]]:
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

    def ahead(self, after: str, stop: str | None, span: Span, rows: int, least: int) -> str | None:
        """The place `rows` keys behind `after` if they go on like `span`, or `stop` if fewer than
        `least` would be left before it; None if nobody can tell."""
        turn = common_length(span.first, span.last)
        start = len(self._prefix)
        folder = span.last.rfind(DELIMITER, start, turn) + 1
        if folder and (after[folder - 1 : folder] != DELIMITER or len(after) == folder):
            return None  # another folder: positions do not compare, or nothing is known of it yet
        # A few positions to carry into, and a few for precision.
        base = max(start, min(turn, common_length(span.last, after)) - 8)
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


def middle(after: str, stop: str) -> str | None:
    """A place between two others by their code points alone, if there is a short one."""
    position = common_length(after, stop)
    high = ord(stop[position])
    while position < len(after):
        low = ord(after[position])
        middle = (low + high) // 2
        if low < middle and not 0xD800 <= middle < 0xE000:
            return after[:position] + chr(middle)
        position += 1
        high = _ASCII_END if after[position : position + 1] < chr(_ASCII_END) else _UNICODE_END
    return None


class Scout:
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

    def question(self, after: str, span: Span) -> Query | None:
        """What to ask next about what comes behind `after`, if there is a question left."""
        if self.busy or self.given_up:
            return None
        start = len(self._prefix)
        turn = min(common_length(span.first, span.last), common_length(span.last, after))
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

    def ahead(self, after: str, stop: str | None, span: Span, rows: int) -> tuple[str, bool] | None:
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
