"""Listing a bucket in parallel: every key once and in order, few requests, little memory, no trust."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import itertools
import random
import uuid
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastsync.errors import AccessRefused, ListingError, Transient
from fastsync.patience import up_to
from fastsync_s3.listing import Listing, list_keys
from fastsync_s3.pages import Query, RawPage, Row, has_keys, list_level

Fetch = Callable[[Query], Awaitable[RawPage]]


def row(key: str) -> Row:
    return (key, 1, 0, "etag", "STANDARD")


def as_bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


class Bucket:
    """Keys behind ListObjectsV2, and what was asked of it."""

    def __init__(self, keys: list[str]) -> None:
        self.keys = sorted(set(keys), key=as_bytes)
        self.ordered = [as_bytes(key) for key in self.keys]
        self.queries: list[Query] = []

    def below(self, prefix: str) -> list[str]:
        return [key for key in self.keys if key.startswith(prefix)]

    async def fetch(self, query: Query) -> RawPage:
        self.queries.append(query)
        await asyncio.sleep(0)
        return self.answer(query)

    def answer(self, query: Query) -> RawPage:
        keys = self.keys
        if query.token is not None:
            index = int(query.token)
        else:
            index = max(
                bisect_right(self.ordered, as_bytes(query.start_after)),
                bisect_left(self.ordered, as_bytes(query.prefix)),
            )
        stop = bisect_left(self.ordered, as_bytes(query.prefix) + b"\xff" * 1100)
        if not query.delimiter:
            end = min(stop, index + query.max_keys)
            page = [row(key) for key in keys[index:end]]
            return RawPage(page, [], str(end) if end < stop else None)
        page = []
        prefixes: list[str] = []
        while index < stop and len(page) + len(prefixes) < query.max_keys:
            key = keys[index]
            end = key.find(query.delimiter, len(query.prefix)) + 1
            if not end:
                page.append(row(key))
                index += 1
                continue
            if key[:end] > query.start_after or query.token is not None:
                prefixes.append(key[:end])
            index = bisect_left(self.ordered, as_bytes(key[: end - 1]) + b"0")
        return RawPage(page, prefixes, str(index) if index < stop else None)


class Clock:
    """A fetch in which every request takes one round, and what the consumer got in it."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.rounds = 0
        self.most = 0
        self._waiting: list[tuple[asyncio.Future[RawPage], Query]] = []

    async def fetch(self, query: Query) -> RawPage:
        future: asyncio.Future[RawPage] = asyncio.get_running_loop().create_future()
        self._waiting.append((future, query))
        return await future

    async def run(self, listing: Listing) -> list[str]:
        keys: list[str] = []

        async def consume() -> None:
            async for page in listing.pages():
                keys.extend(key for key, *_ in page)

        task = asyncio.create_task(consume())
        while True:
            for _ in range(6):
                await asyncio.sleep(0)
            if task.done():
                break
            waiting, self._waiting = self._waiting, []
            self.rounds += 1
            self.most = max(self.most, len(waiting))
            for future, query in waiting:
                future.set_result(self.bucket.answer(query))
        await task
        return keys


def listing_of(
    fetch: Fetch, prefix: str = "", *, width: int = 16, page_size: int = 1000
) -> Listing:
    return Listing(fetch, prefix, width=width, may_retry=up_to(0), page_size=page_size)


async def keys_of(
    fetch: Fetch, prefix: str = "", *, width: int = 8, page_size: int = 10
) -> list[str]:
    keys: list[str] = []
    async for page in list_keys(
        fetch, prefix, width=width, page_size=page_size, may_retry=up_to(2)
    ):
        assert page
        keys.extend(key for key, *_ in page)
    return keys


async def until_error(fetch: Fetch, prefix: str = "", *, width: int = 8) -> tuple[list[str], str]:
    """What came before the listing was refused, and why it was."""
    keys: list[str] = []
    try:
        async for page in list_keys(fetch, prefix, width=width, page_size=10, may_retry=up_to(2)):
            keys.extend(key for key, *_ in page)
    except ListingError as error:
        return keys, str(error)
    pytest.fail("a listing that cannot be trusted came to its end")


def padded(count: int) -> list[str]:
    return [f"{number:09d}" for number in range(1, count + 1)]


# Complete and in order, whatever the keys are.

CHARACTERS = st.sampled_from("ab/0129.-~zäﬀ\ue000\U0001f600\U0010ffff\udc80\udcff")
KEYS = st.lists(st.text(CHARACTERS, min_size=1, max_size=6), max_size=150)
PREFIXES = st.sampled_from(["", "a", "a/", "ab/0", "z", "ä"])


@settings(max_examples=300, deadline=None)
@given(KEYS, PREFIXES, st.integers(1, 9), st.integers(1, 12))
@example([], "", 4, 3)
async def test_every_key_comes_once_and_in_order(
    keys: list[str], prefix: str, width: int, page_size: int
) -> None:
    bucket = Bucket(keys)
    assert await keys_of(bucket.fetch, prefix, width=width, page_size=page_size) == bucket.below(
        prefix
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 3000), max_size=400),
    st.sampled_from(["{}", "{:06d}", "d/{:04x}/x", "{:05d}/f", "a/b/{:03d}.jpg", "é{:o}"]),
    st.integers(1, 9),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
async def test_the_order_of_the_answers_does_not_matter(
    numbers: list[int], shape: str, width: int, page_size: int, chance: random.Random
) -> None:
    bucket = Bucket([shape.format(number) for number in numbers])

    async def fetch(query: Query) -> RawPage:
        for _ in range(chance.randrange(12)):
            await asyncio.sleep(0)
        page = bucket.answer(query)
        if page.keys and chance.random() < 0.2 and page.next_token is None and len(page.keys) > 1:
            return page._replace(
                keys=page.keys[:1], next_token=str(bucket.keys.index(page.keys[1][0]))
            )
        return page

    assert await keys_of(fetch, width=width, page_size=page_size) == bucket.keys


# Requests, speed and memory.


def shapes() -> dict[str, list[str]]:
    chance = random.Random(7)
    start = datetime.date(2023, 1, 1)
    days = [(start + datetime.timedelta(day)).isoformat() for day in range(700)]
    hexes = [uuid.UUID(int=chance.getrandbits(128)) for _ in range(200_000)]
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(chance.choices(letters, k=chance.randint(3, 9))) for _ in range(70)]
    return {
        "numbers": padded(200_000),
        "numbers without zeros": [f"file{number}.dat" for number in range(200_000)],
        "uuids": [str(value) for value in hexes],
        "hashed folders": [f"{v.hex[:2]}/{v.hex[2:4]}/{v.hex}" for v in hexes],
        "1000 prefixes": [f"p{a:04d}/f{b:03d}.txt" for a in range(1000) for b in range(200)],
        "dates": [
            f"logs/{d}/{h:02d}/{n:03d}.gz" for d in days for h in range(24) for n in range(12)
        ],
        "one deep prefix": [
            *(f"a/{number}" for number in range(1000)),
            *(f"data/v1/x/y/part-{number:08d}.bin" for number in range(198_000)),
            *(f"z/{number}" for number in range(1000)),
        ],
        "folders of any name": [f"{w}/img{n:05d}.jpg" for w in words for n in range(3000)],
    }


SHAPES = shapes()
# Of `width`: how much faster than one page after the other.
SPEED_UP = dict.fromkeys(SHAPES, 0.6) | {"folders of any name": 0.5}


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_long_listing_is_parallel_in_flat_memory_and_with_few_requests(shape: str) -> None:
    width = 16
    bucket = Bucket(SHAPES[shape])
    clock = Clock(bucket)
    listing = listing_of(clock.fetch, width=width)
    assert await clock.run(listing) == bucket.keys
    pages = -(-len(bucket.keys) // 1000)
    assert pages / clock.rounds >= SPEED_UP[shape] * width
    assert listing.requests <= 1.25 * pages + 6 * width
    assert listing.peak <= 3 * width + 1
    assert clock.most <= width + 1  # and one question about what lies ahead


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text("abcxyz019/-_", min_size=1, max_size=12), min_size=300, max_size=900),
    st.integers(1, 8),
)
async def test_guesses_that_do_not_pay_are_bounded(keys: list[str], width: int) -> None:
    bucket = Bucket(keys)
    listing = listing_of(bucket.fetch, width=width, page_size=5)
    async for _ in listing.pages():
        pass
    assert listing.requests <= 1.25 * -(-len(bucket.keys) // 5) + 8 * width + 8
    assert listing.requests == len(bucket.queries)


async def test_one_page_is_one_request() -> None:
    bucket = Bucket(padded(1000))
    listing = listing_of(bucket.fetch)
    assert [len(page) async for page in listing.pages()] == [1000]
    assert bucket.queries == [Query("", "", None, "", 1000)]


async def test_nothing_is_one_request_and_no_page() -> None:
    bucket = Bucket(["a"])
    assert await keys_of(bucket.fetch, "b/") == []
    assert len(bucket.queries) == 1


async def test_the_first_page_does_not_wait_for_the_second() -> None:
    bucket = Bucket(padded(100))

    async def fetch(query: Query) -> RawPage:
        if bucket.queries:
            await asyncio.Event().wait()
        return await bucket.fetch(query)

    pages = list_keys(fetch, "", page_size=10)
    async with contextlib.aclosing(pages):
        page = await anext(pages)
    assert [key for key, *_ in page] == bucket.keys[:10]


async def test_a_width_of_one_goes_from_token_to_token() -> None:
    bucket = Bucket(padded(95))
    await keys_of(bucket.fetch, width=1)
    assert [query.token for query in bucket.queries] == [None, *map(str, range(10, 100, 10))]


async def test_the_width_may_change_on_the_way() -> None:
    bucket = Bucket(padded(3000))
    got = busy = 0
    most = [0, 0, 0]  # at once, in each third of the listing

    async def fetch(query: Query) -> RawPage:
        nonlocal busy
        busy += 1
        most[got // 1000] = max(most[got // 1000], busy)
        page = await bucket.fetch(query)
        busy -= 1
        return page

    def width() -> int:
        return 8 if got < 1000 else 2

    async for page in list_keys(fetch, "", width=width, page_size=10):
        got += len(page)
    assert got == 3000
    assert most[0] in (8, 9)
    assert most[2] in (2, 3)


async def test_a_slow_consumer_is_not_run_over() -> None:
    bucket = Bucket(padded(5000))
    taken = 0
    async for _ in list_keys(bucket.fetch, "", width=4, page_size=10):
        taken += 1
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(bucket.queries) <= taken + 3 * 4 + 1 + taken // 4 + 16


async def test_the_places_asked_for_are_valid_keys() -> None:
    strange = [chr(code) + "x" for code in range(0xD000, 0xF000) if not 0xD800 <= code < 0xE000]
    longest = ["é" * 510 + "".join(name) for name in itertools.product("xyz", repeat=4)]
    for keys in (strange, longest):
        bucket = Bucket(keys)
        assert await keys_of(bucket.fetch) == bucket.keys
        places = [query.start_after for query in bucket.queries if query.token is None]
        assert len(places) > 2
        assert all(len(place.encode()) <= 1024 for place in places)


# Servers that are wrong, or lie.


def lying(bucket: Bucket, lie: Callable[[Query, RawPage], RawPage], *, number: int = 3) -> Fetch:
    """The bucket, but from its `number`-th answer about keys on the page is what `lie` makes of it."""
    told = 0

    async def fetch(query: Query) -> RawPage:
        nonlocal told
        page = await bucket.fetch(query)
        if query.delimiter:
            return page
        told += 1
        return lie(query, page) if told >= number else page

    return fetch


@pytest.mark.parametrize("width", [1, 8])
@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (lambda q, p: p._replace(keys=p.keys[::-1]), "ascending"),
        (lambda q, p: p._replace(keys=[p.keys[0], *p.keys]), "ascending"),
        (lambda q, p: p._replace(keys=[*p.keys, row("x")]), "begin with the prefix"),
        (lambda q, p: p._replace(prefixes=["p/q/"]), "common prefixes"),
    ],
)
async def test_a_page_that_makes_no_sense_ends_the_listing(
    width: int, lie: Callable[[Query, RawPage], RawPage], reason: str
) -> None:
    bucket = Bucket([f"p/{key}" for key in padded(500)])
    keys, text = await until_error(lying(bucket, lie), "p/", width=width)
    assert reason in text
    assert keys == bucket.keys[: len(keys)]
    assert len(keys) < 500


async def test_a_server_that_never_gets_on_is_refused() -> None:
    bucket = Bucket(padded(500))

    def same(query: Query, page: RawPage) -> RawPage:
        return bucket.answer(Query("", "", None, "", 10))._replace(next_token="x")

    keys, text = await until_error(lying(bucket, same, number=2))
    assert "came again" in text
    assert keys == bucket.keys[: len(keys)]


async def test_a_repeated_token_is_refused() -> None:
    bucket = Bucket(padded(500))

    def stuck(query: Query, page: RawPage) -> RawPage:
        return page._replace(next_token=query.token) if query.token else page

    _, text = await until_error(lying(bucket, stuck))
    assert "token was repeated" in text


@pytest.mark.parametrize(("count", "is_fine"), [(20, True), (10_000, False)])
async def test_empty_pages_are_borne_for_a_while(count: int, is_fine: bool) -> None:
    async def fetch(query: Query) -> RawPage:
        number = int(query.token or 0)
        if number < count:
            return RawPage([], [], str(number + 1))
        return RawPage([row("a")], [], None)

    if is_fine:
        assert await keys_of(fetch) == ["a"]
        assert await has_keys(fetch, "")
        return
    for listing in (list_keys(fetch, ""), list_level(fetch, "")):
        with pytest.raises(ListingError, match="empty pages in a row"):
            async for _ in listing:
                pass
    with pytest.raises(ListingError, match="empty pages in a row"):
        await has_keys(fetch, "")


@pytest.mark.parametrize("ignores_from", [0, 10, 25])
async def test_a_server_without_start_after_is_listed_in_sequence(ignores_from: int) -> None:
    bucket = Bucket(padded(2000))

    async def fetch(query: Query) -> RawPage:
        if len(bucket.queries) >= ignores_from and query.token is None:
            query = query._replace(start_after="")
        return await bucket.fetch(query)

    assert await keys_of(fetch) == bucket.keys
    assert len(bucket.queries) <= 2 * 200 + 30


async def test_a_late_sign_of_no_start_after_begins_the_listing_again() -> None:
    bucket = Bucket(padded(2000))
    is_caught = False

    async def fetch(query: Query) -> RawPage:
        nonlocal is_caught
        if query.start_after and query.token is None and not query.delimiter and not is_caught:
            is_caught = True
            for _ in range(500):  # until all before it has been yielded
                await asyncio.sleep(0)
            query = query._replace(start_after="")
        return await bucket.fetch(query)

    assert await keys_of(fetch) == bucket.keys
    assert is_caught
    assert [query.start_after for query in bucket.queries].count("") == 3


async def test_a_server_without_delimiter_is_no_worse() -> None:
    bucket = Bucket(SHAPES["folders of any name"])

    async def fetch(query: Query) -> RawPage:
        return await bucket.fetch(query._replace(delimiter=""))

    assert await keys_of(fetch, page_size=1000) == bucket.keys
    assert len(bucket.queries) <= 1.25 * 210 + 8 * 8


async def test_questions_that_are_refused_do_not_matter() -> None:
    bucket = Bucket(SHAPES["folders of any name"])
    asked = 0

    async def fetch(query: Query) -> RawPage:
        nonlocal asked
        if query.delimiter:
            asked += 1
            raise AccessRefused("no delimiters here")
        return await bucket.fetch(query)

    assert await keys_of(fetch, page_size=1000) == bucket.keys
    assert asked == 1


# Errors and endings.


async def test_a_passing_error_costs_one_page_and_not_the_listing() -> None:
    bucket = Bucket(padded(1000))
    failed: set[Query] = set()

    async def fetch(query: Query) -> RawPage:
        if query not in failed:
            failed.add(query)
            raise Transient("cut off")
        return await bucket.fetch(query)

    assert await keys_of(fetch) == bucket.keys
    assert len(bucket.queries) == len(set(bucket.queries))


async def test_patience_ends_with_the_error_itself() -> None:
    error = Transient("busy")
    attempts = 0

    async def fetch(query: Query) -> RawPage:
        nonlocal attempts
        attempts += 1
        raise error

    with pytest.raises(Transient) as caught:
        await keys_of(fetch)
    assert caught.value is error
    assert attempts == 3


async def test_other_errors_pass_unchanged_at_once() -> None:
    bucket = Bucket(padded(1000))
    error = AccessRefused("the key expired")

    async def fetch(query: Query) -> RawPage:
        if len(bucket.queries) > 20:
            raise error
        return await bucket.fetch(query)

    with pytest.raises(AccessRefused) as caught:
        await keys_of(fetch)
    assert caught.value is error
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("pages", [1, 7])
async def test_closing_ends_every_request(pages: int) -> None:
    bucket = Bucket(padded(5000))
    busy = 0

    async def fetch(query: Query) -> RawPage:
        nonlocal busy
        busy += 1
        try:
            return await bucket.fetch(query)
        finally:
            busy -= 1

    listing = list_keys(fetch, "", width=8, page_size=10)
    for _ in range(pages):
        await anext(listing)
    await listing.aclose()
    assert busy == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_cancelling_ends_every_request() -> None:
    bucket = Bucket(padded(5000))

    async def fetch(query: Query) -> RawPage:
        if len(bucket.queries) > 30:
            await asyncio.Event().wait()
        return await bucket.fetch(query)

    task = asyncio.create_task(keys_of(fetch))
    for _ in range(200):
        await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) > 3
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == {asyncio.current_task()}


# One level, and whether there is anything.


async def names_of(fetch: Fetch, prefix: str, page_size: int = 10) -> list[str]:
    return [
        item if isinstance(item, str) else f"={item[0]}"
        async for page in list_level(fetch, prefix, page_size=page_size)
        for item in page
    ]


async def test_a_level_merges_keys_and_prefixes() -> None:
    bucket = Bucket(["d/", "d/a", "d/a.b", "d/a/1", "d/a/2", "d/a0", "d/b/c/d", "e"])
    expected = ["=d/", "=d/a", "=d/a.b", "d/a/", "=d/a0", "d/b/"]
    assert await names_of(bucket.fetch, "d/") == expected
    assert await names_of(bucket.fetch, "d/", page_size=2) == expected


@settings(max_examples=100, deadline=None)
@given(KEYS, PREFIXES, st.integers(1, 12), st.booleans())
async def test_a_level_has_each_name_once(
    keys: list[str], prefix: str, page_size: int, has_delimiter: bool
) -> None:
    bucket = Bucket(keys)
    expected: dict[str, None] = {}
    for key in bucket.below(prefix):
        end = key.find("/", len(prefix)) + 1
        expected[key[:end] if end else f"={key}"] = None

    async def fetch(query: Query) -> RawPage:
        return await bucket.fetch(query if has_delimiter else query._replace(delimiter=""))

    assert await names_of(fetch, prefix, page_size) == list(expected)


async def test_a_prefix_that_goes_on_on_the_next_page_comes_once() -> None:
    answers = [
        RawPage([row("a")], ["b/"], "1"),
        RawPage([], ["b/"], "2"),
        RawPage([row("c")], ["b/"], None),
    ]

    async def fetch(query: Query) -> RawPage:
        return answers[int(query.token or 0)]

    assert await names_of(fetch, "") == ["=a", "b/", "=c"]


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (RawPage([row("d/b"), row("d/a")], [], None), "ascending"),
        (RawPage([], ["d/b/", "d/a/"], None), "ascending"),
        (RawPage([row("x")], [], None), "begin with the prefix"),
        (RawPage([], ["d/x"], None), "end in the delimiter"),
        (RawPage([row("d/a")], [], "1"), "came again"),
    ],
)
async def test_a_level_that_makes_no_sense_is_refused(page: RawPage, reason: str) -> None:
    async def fetch(query: Query) -> RawPage:
        return page

    with pytest.raises(ListingError, match=reason):
        await names_of(fetch, "d/")


async def test_whether_there_are_keys_takes_one_request_for_one_key() -> None:
    bucket = Bucket(["a/1", "a/2"])
    assert await has_keys(bucket.fetch, "a/")
    assert not await has_keys(bucket.fetch, "b/")
    assert [query.max_keys for query in bucket.queries] == [1, 1]
