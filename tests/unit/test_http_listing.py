"""The walk over index pages: its order, what it fetches ahead, and what it does about gaps."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from fastsync.backend import Entry, Fault, ScanOptions
from fastsync.errors import ListingError, NotFound
from fastsync.names import path_key
from fastsync_http.listing import AHEAD, HEADS, PAGE, Walk
from fastsync_http.pages import Index, Row


class Site:
    """Directories as a dict from path to names, "/" at the end of directories' names."""

    def __init__(self, pages: dict[str, list[str]], *, size: int | None = 1) -> None:
        self.pages = pages
        self.size = size
        self.now = self.most = 0
        self.fetched: list[str] = []
        self.rounds: list[int] = []

    async def fetch(self, path: str) -> Index:
        self.fetched.append(path)
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.001)
        self.now -= 1
        if path not in self.pages:
            raise NotFound("no such page", where=path)
        rows = [
            Row(name[:-1], "dir") if name.endswith("/") else Row(name, "file", self.size)
            for name in self.pages[path]
        ]
        return Index(rows, [])

    async def complete(self, entries: Sequence[Entry]) -> list[Entry | Fault]:
        self.rounds.append(len(entries))
        await asyncio.sleep(0)
        return [
            Fault(entry.path, ListingError("no"))
            if entry.path.endswith("bad")
            else entry._replace(size=7)
            for entry in entries
        ]

    async def walk(self, **options: object) -> tuple[list[Entry], list[Fault], list[int]]:
        entries: list[Entry] = []
        faults: list[Fault] = []
        lengths = []
        walk = Walk(self.fetch, self.complete, ScanOptions(**options))  # type: ignore[arg-type]
        async for page in walk.pages():
            assert page.entries or page.faults
            lengths.append(len(page.entries))
            entries += page.entries
            faults += page.faults
        return entries, faults, lengths


async def test_order() -> None:
    """Byte order of full paths, directories as "name/", whatever the pages' order."""
    site = Site(
        {
            "": ["z", "a/", "a0", "a-b/", "a.txt", "\u00e9/"],
            "a": ["x/", "0"],
            "a/x": ["deep"],
            "a-b": ["y"],
            "\u00e9": [],
        }
    )
    entries, faults, _ = await site.walk()
    keys = [path_key(entry.path + "/" * (entry.kind == "dir")) for entry in entries]
    assert keys == sorted(keys)
    assert len(entries) == 10
    assert faults == []


async def test_directories_are_fetched_ahead_and_not_all_at_once() -> None:
    site = Site(
        {"": [f"{n:03}/" for n in range(100)], **{f"{n:03}": ["f", "sub/"] for n in range(100)}}
        | {f"{n:03}/sub": ["g"] for n in range(100)}
    )
    entries, faults, _ = await site.walk()
    assert len(entries) == 400
    assert faults == []
    assert sorted(site.fetched) == sorted(site.pages)  # each once
    assert 4 < site.most <= AHEAD + 1


async def test_a_long_directory_comes_in_pages() -> None:
    _, _, lengths = await Site({"": [f"{n:05}" for n in range(2500)]}).walk()
    assert max(lengths) <= PAGE
    assert sum(lengths) == 2500


async def test_sizes_are_asked_for_in_rounds() -> None:
    site = Site({"": [f"{n:05}" for n in range(2 * HEADS + 3)]}, size=None)
    entries, _, _ = await site.walk()
    assert {entry.size for entry in entries} == {7}
    assert site.rounds == [HEADS, HEADS, 3]


async def test_gaps_are_faults() -> None:
    site = Site({"": ["a", "bad", "gone/", "z"]}, size=None)
    entries, faults, _ = await site.walk()
    assert [entry.path for entry in entries] == ["a", "gone", "z"]
    assert [(fault.path, type(fault.error)) for fault in faults] == [
        ("bad", ListingError),
        ("gone", ListingError),
    ]


async def test_no_top() -> None:
    with pytest.raises(NotFound):
        await Site({}).walk()


async def test_what_is_not_entered_is_not_fetched() -> None:
    site = Site({"": ["a/", "b/"], "b": ["x"]})
    entries, _, _ = await site.walk(prune=lambda path: path == "a")
    assert [entry.path for entry in entries] == ["a", "b", "b/x"]
    assert site.fetched == ["", "b"]
    await site.walk(recursive=False)
    assert site.fetched == ["", "b", ""]


async def test_a_walk_that_is_left_leaves_no_task() -> None:
    site = Site({"": [f"{n:03}/" for n in range(50)], **{f"{n:03}": ["f"] for n in range(50)}})
    before = asyncio.all_tasks()
    pages = Walk(site.fetch, site.complete, ScanOptions()).pages()
    await anext(pages)
    await pages.aclose()  # type: ignore[attr-defined]
    assert asyncio.all_tasks() == before
