"""`du`, `stat` and the versions of `ls`: sums and details, from stores of every kind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import ClassVar

import pytest

import fastsync
from fastsync import Rule, Usage
from fastsync.backend import Entry, Fault, ListedVersion, ScanOptions
from fastsync.errors import ListingError, UsageError
from fastsync.listing import Details, run_du, run_stat, run_versions
from fastsync.session import Request
from fastsync.testing import BareMemoryBackend, MemoryBackend
from fastsync.testing.memory import BareMemoryStore

pytestmark = pytest.mark.usefixtures("memory_stores")


def usages(place: str, levels: int = 0) -> list[Usage]:
    async def collect() -> list[Usage]:
        found = []
        async for usage in run_du(place, Request(), levels):
            assert not isinstance(usage, Fault)
            found.append(usage)
        return found

    return asyncio.run(collect())


@pytest.mark.parametrize("scheme", ["mem", "bucket"])
def test_sums(scheme: str) -> None:
    box = (MemoryBackend if scheme == "mem" else BareMemoryBackend).box("b")
    for name, size in {"t/a": 1, "t/d/b": 10, "t/d/e/c": 100, "t/d-x": 1000, "t/e/f/g": 7}.items():
        box.put(name, bytes(size))
    place = f"{scheme}://b/t"
    assert fastsync.du(place) == Usage("", 5, 1118)
    assert usages(place) == [Usage("", 5, 1118)]
    assert usages(place, 1) == [Usage("d", 2, 110), Usage("e", 1, 7), Usage("", 5, 1118)]
    assert usages(place, 9) == [
        Usage("d/e", 1, 100),
        Usage("d", 2, 110),
        Usage("e/f", 1, 7),
        Usage("e", 1, 7),
        Usage("", 5, 1118),
    ]
    assert fastsync.du(f"{place}/d/b") == Usage("", 1, 10)
    assert fastsync.du(f"{place}/d*") == Usage("", 3, 1110)
    assert fastsync.du(place, rules=[Rule(False, "d")]) == Usage("", 3, 1008)
    with pytest.raises(ListingError):
        fastsync.du(f"{scheme}://b/nope")


def test_an_empty_directory_counts_nothing() -> None:
    fastsync.mkdir("mem://b/t/empty")
    assert usages("mem://b/t", 1) == [Usage("empty", 0, 0), Usage("", 0, 0)]


class DescribingStore(BareMemoryStore):
    history: ClassVar[list[ListedVersion]] = []

    async def describe(self, entry: Entry) -> Mapping[str, str]:
        return {"content type": "text/plain"}

    async def scan_versions(self, options: ScanOptions) -> AsyncIterator[list[ListedVersion]]:
        yield self.history


@pytest.fixture
def describing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BareMemoryBackend, "_store", DescribingStore)


async def details(place: str) -> list[Details]:
    return [each async for each in run_stat(place, Request())]


@pytest.mark.usefixtures("describing")
async def test_details() -> None:
    BareMemoryBackend.box("b").put("d/f", b"content")
    BareMemoryBackend.box("b").put("d/g", b"content")
    (found,) = await details("bucket://b/d/f")
    assert (found.entry.path, found.entry.size) == ("f", 7)
    assert found.more == {"content type": "text/plain"}
    assert [str(each.place) for each in await details("bucket://b/d/*")] == [
        "bucket://b/d/f",
        "bucket://b/d/g",
    ]
    (root,) = await details("bucket://b/")
    assert root.entry.kind == "dir"
    with pytest.raises(ListingError):
        await details("bucket://b/nope")


@pytest.mark.usefixtures("describing")
async def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        ListedVersion(Entry("a", "file", 1, None), "2", True, False),
        ListedVersion(Entry("a", "file", 2, None), "1", False, False),
        ListedVersion(Entry("b.tmp", "file", None, None), "9", True, True),
        ListedVersion(Entry("d/c", "file", 4, None), "5", True, False),
    ]
    monkeypatch.setattr(DescribingStore, "history", entries)

    async def listed(place: str, request: Request) -> list[str]:
        pages = [page async for page in run_versions(place, request)]
        return [each.version_id for page in pages for each in page]

    assert await listed("bucket://b/", Request()) == ["2", "1", "9", "5"]
    assert await listed("bucket://b/*", Request()) == ["2", "1", "9"]
    assert await listed("bucket://b/", Request(rules=[Rule(False, "*.tmp")])) == ["2", "1", "5"]
    with pytest.raises(ListingError):
        await listed("bucket://b/x*", Request())


async def test_where_there_are_no_versions() -> None:
    with pytest.raises(UsageError, match="versions"):
        [page async for page in run_versions("mem://b/", Request())]
