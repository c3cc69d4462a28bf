"""How every source is opened and listed: the beginning of the suite, and what a test of a store has to say.

The tests run under pytest with pytest-asyncio. A store that may refuse something, or lacks an ability,
skips the test and says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import pytest_asyncio

from fastsync.backend import (
    Backend,
    KeepsDirectories,
    ScanOptions,
    Source,
    StoreOptions,
)
from fastsync.errors import (
    Conflict,
    NameRefused,
    NotFound,
)
from fastsync.location import Location
from fastsync.testing.vocabulary import (
    BYTES,
    LATER,
    MTIME,
    ODD,
    ORDER,
    PLAIN,
    cancelled,
    close,
    files,
    listing,
    order_key,
    paths,
    read,
)


class ListingConformance(ABC):
    """What a test of a store has to say, and the tests of opening and listing it; see `SourceConformance`."""

    many: ClassVar[int] = 1100
    """How many files make a listing that takes more than one page."""

    @abstractmethod
    async def make_root(self, tmp_path: Path) -> tuple[Backend, Location]:
        """A new backend, and a place that exists, is empty and that no other test uses."""

    @abstractmethod
    async def put(
        self,
        source: Source,
        path: str,
        content: bytes = b"",
        *,
        mtime_ns: int = MTIME,
        mode: int = 0o644,
    ) -> None:
        """Have a file at `path`, in place of the one that is there; NameRefused if that cannot be."""

    @abstractmethod
    async def remove(self, source: Source, path: str) -> None:
        """Have no file at `path` any more."""

    # -- the store under test ------------------------------------------------------------------------

    @pytest_asyncio.fixture
    async def root(self, tmp_path: Path) -> AsyncIterator[tuple[Backend, Location]]:
        backend, location = await self.make_root(tmp_path)
        yield backend, location
        await backend.aclose()

    @pytest_asyncio.fixture
    async def source(self, root: tuple[Backend, Location]) -> AsyncIterator[Source]:
        backend, location = root
        source = await backend.connect(location, StoreOptions())
        yield source
        await source.aclose()

    @pytest.fixture
    def scratch(self, tmp_path: Path) -> Iterator[int]:
        """A descriptor of a local file, empty and open for reading and writing."""
        fd = os.open(tmp_path / "scratch-file", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        yield fd
        os.close(fd)

    # -- opening -------------------------------------------------------------------------------------

    async def test_facts(self, source: Source, root: tuple[Backend, Location]) -> None:
        """A store knows its place, and its limits make sense."""
        assert source.location == root[1]
        limits = source.limits
        assert 1 <= limits.min_part <= limits.max_part
        assert limits.max_parts >= 1
        assert limits.mtime_step_ns is None or limits.mtime_step_ns >= 1
        assert limits.mode_mask & ~0o7777 == 0
        assert limits.delete_batch >= 1

    async def test_closing_twice(self, source: Source, root: tuple[Backend, Location]) -> None:
        """Closing a store, then its backend, is idempotent."""
        for closed in (source, source, root[0], root[0]):
            await closed.aclose()

    async def test_two_stores_see_the_same(
        self, source: Source, root: tuple[Backend, Location]
    ) -> None:
        """What was there when a store was opened and what came later are listed alike."""
        other = await root[0].connect(root[1], StoreOptions())
        assert await files(other) == await files(source) == []
        await self.put(source, "a.txt", b"content")
        assert await files(other) == await files(source) == ["a.txt"]
        await other.aclose()

    async def test_address(self, source: Source, root: tuple[Backend, Location]) -> None:
        """An address is the same for the same place, however it is written, and begins with its parent's."""
        backend, location = root
        places = [location, location.child("a"), location.child("a/"), location.child("ab")]
        stores = [await backend.connect(place, StoreOptions()) for place in places]
        own, inner, inner_again, neighbour = (store.address().rstrip("/") for store in stores)
        assert own == source.address().rstrip("/")
        assert inner == inner_again == f"{own}/a"
        assert neighbour == f"{own}/ab"
        for store in stores:
            await store.aclose()

    # -- listing -------------------------------------------------------------------------------------

    async def test_an_empty_place_lists_nothing(self, source: Source) -> None:
        """A place that is there and empty lists as empty."""
        assert await listing(source) == []

    async def test_a_missing_place(self, root: tuple[Backend, Location]) -> None:
        """A place need not exist to be opened; it lists as NotFound, or as empty if that is asked."""
        backend, location = root
        missing = await backend.connect(location.child("missing"), StoreOptions())
        with pytest.raises(NotFound):
            await listing(missing)
        assert await listing(missing, ScanOptions(missing_ok=True)) == []
        await missing.aclose()

    async def test_a_place_that_is_a_file(
        self, source: Source, root: tuple[Backend, Location]
    ) -> None:
        """A place that is a file says so; it cannot be listed: Conflict, or NotFound in a bucket."""
        await self.put(source, "file", b"content")
        file = await root[0].connect(root[1].child("file"), StoreOptions())
        entry = await file.stat("")
        assert (entry.path, entry.kind) == ("", "file")
        with pytest.raises((Conflict, NotFound)):
            await listing(file)
        await file.aclose()

    async def test_listing_order(self, source: Source) -> None:
        """Entries come in ascending byte order of the full path, directories compared as "name/"."""
        wanted = list(ORDER)
        for path in ORDER:
            await self.put(source, path)
        with contextlib.suppress(NameRefused):
            for path in BYTES:
                await self.put(source, path)
                wanted.append(path)
        entries = await listing(source)
        keys = [order_key(entry) for entry in entries]
        assert keys == sorted(set(keys))
        assert sorted(paths(entries, "file")) == sorted(wanted)

    async def test_directories_are_listed_all_or_not_at_all(self, source: Source) -> None:
        """Where directories exist by themselves each one is listed; elsewhere they need not be."""
        await self.put(source, "a/b/c/file")
        await self.put(source, "d/file")
        found = paths(await listing(source), "dir")
        wanted = ["a", "a/b", "a/b/c", "d"]
        assert found == wanted or (found == [] and not isinstance(source, KeepsDirectories))

    async def test_pages(self, source: Source) -> None:
        """A listing is complete and in order across pages; no page is empty."""
        wanted = [f"{number:05}" for number in range(self.many)]
        for path in wanted:
            await self.put(source, path)
        pages = [page async for page in source.scan(ScanOptions())]
        assert all(page.entries or page.faults for page in pages)
        assert [entry.path for page in pages for entry in page.entries] == wanted

    async def test_entries(self, source: Source) -> None:
        """A file's entry has its size, and what else is known has the right shape."""
        await self.put(source, "dir/file", b"content")
        (file,) = [entry for entry in await listing(source) if entry.kind == "file"]
        assert (file.path, file.target) == ("dir/file", None)
        assert file.size in (7, None)
        assert file.mode is None or file.mode & ~source.limits.mode_mask == 0
        step = source.limits.mtime_step_ns
        assert step is None or file.mtime_ns == MTIME - MTIME % step
        assert file.owner is None

    async def test_the_same_state_lists_the_same(self, source: Source) -> None:
        """Unchanged files have equal entries, whoever lists them; owners are told when asked for."""
        for path in ("a", "b/c"):
            await self.put(source, path, b"content")
        first = await listing(source)
        assert await listing(source) == first
        owned = await listing(source, ScanOptions(owner=True))
        assert [entry._replace(owner=None) for entry in owned] == first

    async def test_listing_one_level(self, source: Source) -> None:
        """Without `recursive`, directories are listed and not entered."""
        for path in ("a.txt", "d/x", "d/e/y"):
            await self.put(source, path)
        entries = await listing(source, ScanOptions(recursive=False))
        assert [(entry.path, entry.kind) for entry in entries] == [("a.txt", "file"), ("d", "dir")]

    async def test_prune(self, source: Source) -> None:
        """A pruned directory is listed and not entered; its neighbours are."""
        for path in ("d/keep/x", "d/skip/x", "d/skip/deep/y", "skip.txt"):
            await self.put(source, path)
        entries = await listing(source, ScanOptions(prune=lambda path: path == "d/skip"))
        assert paths(entries, "file") == ["d/keep/x", "skip.txt"]
        assert "d/skip" in paths(entries, "dir")

    async def test_listings_at_once_and_left_early(self, source: Source) -> None:
        """Several listings may run at once, and one that is left early disturbs no other."""
        await self.put(source, "a/b")
        await self.put(source, "c")
        left = source.scan(ScanOptions())
        await anext(left)
        together = await asyncio.gather(*(files(source) for _ in range(4)))
        await close(left)
        assert [*together, await files(source)] == [["a/b", "c"]] * 5

    @pytest.mark.parametrize("name", PLAIN)
    async def test_plain_names(self, source: Source, name: str) -> None:
        """An ordinary name is kept to the letter, as a file and as a directory."""
        await self.put(source, name, b"content")
        await self.put(source, f"in/{name} too/{name}", b"more")
        assert sorted(await files(source)) == sorted([name, f"in/{name} too/{name}"])
        assert await read(source, name) == b"content"
        assert await read(source, f"in/{name} too/{name}") == b"more"

    @pytest.mark.parametrize("name", ODD, ids=lambda name: ascii(name)[1:16])
    async def test_odd_names(self, source: Source, name: str) -> None:
        """Any other name is kept to the letter too, or refused and leaves nothing."""
        try:
            await self.put(source, name, b"content")
        except NameRefused:
            assert await files(source) == []
            pytest.skip("the store refuses this name, as it may")
        assert await files(source) == [name]
        assert await read(source, name) == b"content"

    @pytest.mark.parametrize("steps", range(4))
    async def test_cancelled_listing(self, source: Source, steps: int) -> None:
        """A listing that is cancelled leaves a store that works."""
        await self.put(source, "a/b")
        await self.put(source, "c")
        await cancelled(files(source), steps)
        assert await files(source) == ["a/b", "c"]

    async def test_a_hint_where_to_look(self, source: Source) -> None:
        """With `starting_with`, nothing is left out that begins so, whatever else is."""
        for path in ("a/1", "ab/2", "b/3", "b/4"):
            await self.put(source, path)
        for hint in ("a", "b/", "b/4", "c"):
            found = paths(await listing(source, ScanOptions(starting_with=hint)), "file")
            assert found == sorted(found)
            assert [path for path in found if path.startswith(hint)] == [
                path for path in ("a/1", "ab/2", "b/3", "b/4") if path.startswith(hint)
            ]

    async def test_a_version_is_of_one_content(self, source: Source) -> None:
        """Where versions are told, they stay with what they are of, and another content has another one."""
        await self.put(source, "file", b"one")
        (first,) = [entry for entry in await listing(source) if entry.kind == "file"]
        (again,) = [entry for entry in await listing(source) if entry.kind == "file"]
        assert again.version == first.version
        await self.put(source, "file", b"two", mtime_ns=LATER)
        (other,) = [entry for entry in await listing(source) if entry.kind == "file"]
        assert other.version is None or other.version != first.version
        assert other != first
