"""Pages of a listing: what is asked for, what comes, and whether it can be believed; one level, page by page.

Keys are compared as strings of code points, which is the order of their UTF-8 bytes, S3's own. Only where
a server has names that are not UTF-8 (surrogate escapes, PEP 383), it is not, and they are compared as
bytes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from itertools import islice
from operator import lt
from typing import Final, NamedTuple, TypeAlias

from fastsync.errors import ListingError
from fastsync.patience import MayRetry, persistently, up_to

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


Fetch: TypeAlias = Callable[[Query], Awaitable[RawPage]]

ONCE: Final = up_to(0)
PAGE: Final = 1000
DELIMITER: Final = "/"

# Some servers answer with empty pages that are not the last, while they skip deleted keys.
_MAX_EMPTY_PAGES: Final = 32
_MAX_KEY: Final = 1024  # bytes


def is_valid_key(key: str) -> bool:
    """Whether S3 would take it as a key: UTF-8, up to 1024 bytes."""
    try:
        return len(key.encode()) <= _MAX_KEY
    except UnicodeEncodeError:
        return False


def is_text(text: str) -> bool:
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


def as_is(key: str) -> str:
    return key


def comparable(keys: list[str], *others: str) -> Callable[[str], str]:
    """What to put each of these strings through before they are compared."""
    return as_is if is_text("".join([*keys, *others])) else _as_bytes


def distrust(what: str, prefix: str) -> ListingError:
    return ListingError(
        f"the server's listing cannot be trusted: {what}",
        where=prefix or None,
        hint="check that the endpoint is an S3 server and not something in front of it",
    )


def check_keys(keys: list[str], prefix: str) -> None:
    """Refuse keys, in their comparable form, that do not ascend or do not begin with the prefix.

    What begins with one prefix is one run in byte order, so looking at both ends is enough.
    """
    if not all(map(lt, keys, islice(keys, 1, None))):
        raise distrust("keys are not in ascending order", prefix)
    if keys and not (keys[0].startswith(prefix) and keys[-1].startswith(prefix)):
        raise distrust("a key does not begin with the prefix that was asked for", prefix)


class Turns:
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
                raise distrust(f"{self._empty} empty pages in a row, none of them the last", prefix)
        if page.next_token in self._seen:
            raise distrust("a continuation token was repeated", prefix)
        self._seen.add(page.next_token)
        self.token = page.next_token


async def list_level(
    fetch: Fetch, prefix: str, *, may_retry: MayRetry = ONCE, page_size: int = PAGE
) -> AsyncGenerator[list[Row | str], None]:
    """Yield what is directly below `prefix`: rows, and common prefixes (which end in "/"), merged in
    ascending byte order, in pages of at least one item. One request after the other.

    Prefixes are made here if the server ignores the delimiter. Raises like `list_keys`.
    """
    turns = Turns()
    start = len(prefix)
    after = ""  # of what the server sent
    folder = ""  # the last common prefix that was yielded
    while True:
        query = Query(prefix, after, turns.token, DELIMITER, page_size)
        page = await persistently(partial(fetch, query), may_retry)
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
                    raise distrust("a common prefix does not end in the delimiter", prefix)
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
    keys = [row[0] for row in page.keys]
    form = comparable(keys, *page.prefixes, after)
    items: list[Row | str] = [*page.keys, *page.prefixes]
    items.sort(key=lambda item: form(_name_of(item)))
    for names in (keys, page.prefixes, list(map(_name_of, items))):
        forms = list(map(form, names))
        check_keys(forms, form(prefix))
        if forms and forms[0] <= form(after):
            raise distrust("keys that were listed already came again", prefix)
    return items


def _name_of(item: Row | str) -> str:
    return item if isinstance(item, str) else item[0]


async def has_keys(fetch: Fetch, prefix: str, *, may_retry: MayRetry = ONCE) -> bool:
    """Whether any key begins with `prefix`. Raises like `list_keys`."""
    turns = Turns()
    while True:
        query = Query(prefix, "", turns.token, "", 1)
        page = await persistently(partial(fetch, query), may_retry)
        if page.keys:
            check_keys([row[0] for row in page.keys], prefix)
            return True
        turns.turn(page, prefix)
        if turns.token is None:
            return False
