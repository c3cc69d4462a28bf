"""What every source promises: one test per promise, for any store that has a way to get files in.

The tests run under pytest with pytest-asyncio. A store that may refuse something, or lacks an ability,
skips the test and says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import pytest_asyncio

from fastsync.backend import (
    Backend,
    Describes,
    Downloads,
    FindsHashes,
    Hashes,
    KeepsDirectories,
    LocalFiles,
    ProvesContent,
    ReadsIntoFile,
    ReadsIntoMemory,
    ScanOptions,
    SeeksSome,
    Source,
    StoreOptions,
    Validated,
    reads_ranges,
)
from fastsync.errors import (
    Changed,
    Conflict,
    FastsyncError,
    NameRefused,
    NotFound,
    Unsupported,
    Vanished,
)
from fastsync.location import Location
from fastsync.testing.vocabulary import (
    BYTES,
    LATER,
    MTIME,
    ODD,
    ORDER,
    PLAIN,
    SIZES,
    agree,
    cancelled,
    close,
    collect,
    files,
    ignore,
    lacks,
    listing,
    noise,
    order_key,
    part_size,
    paths,
    read,
)


class SourceConformance(ABC):
    """Subclass it as ``class TestMine(SourceConformance)`` and say where files are and how they get there.

    `make_root`, `put` and `remove` are called on a new instance for every test. A store that is also a
    `Sink` is better served by `StoreConformance`, which has `put` and `remove` and tests the writing.
    """

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

    # -- one entry -----------------------------------------------------------------------------------

    async def test_stat(self, source: Source) -> None:
        """`stat` tells the same of a file as a listing, as far as both tell it."""
        await self.put(source, "d/file", b"content")
        (listed,) = [entry for entry in await listing(source) if entry.kind == "file"]
        agree(await source.stat("d/file"), listed)
        agree(await source.stat("d/file", follow=True), listed)

    async def test_stat_of_a_directory(self, source: Source) -> None:
        """The place itself and the directories below it are directories."""
        await self.put(source, "d/file")
        for path in ("", "d"):
            entry = await source.stat(path)
            assert (entry.path, entry.kind) == (path, "dir")

    async def test_stat_of_nothing(self, source: Source, root: tuple[Backend, Location]) -> None:
        """What is not there is NotFound: an entry, the place itself, something below a file."""
        await self.put(source, "file")
        with pytest.raises(NotFound):
            await source.stat("missing")
        with pytest.raises((NotFound, Conflict)):
            await source.stat("file/below")
        missing = await root[0].connect(root[1].child("missing"), StoreOptions())
        with pytest.raises(NotFound):
            await missing.stat("")
        await missing.aclose()

    # -- reading -------------------------------------------------------------------------------------

    @pytest.mark.parametrize(("parts", "more"), SIZES)
    async def test_read_whole(self, source: Source, parts: int, more: int) -> None:
        """A file is read whole, whatever its size."""
        content = noise(parts * part_size(source) + more)
        await self.put(source, "file", content)
        entry = await source.stat("file")
        assert entry.size in (len(content), None)
        assert await collect(source.read(entry, 0, None)) == content

    async def test_read_ranges(self, source: Source) -> None:
        """[start, stop) is exactly these bytes, to the end for None, and ranges may be read at once."""
        if not source.limits.seekable_reads:
            pytest.skip("the store has no ranges")
        size = 2 * part_size(source) + 5
        content = noise(size)
        await self.put(source, "file", content)
        entry = await source.stat("file")
        ranges: list[tuple[int, int | None]] = [
            (0, None), (1, None), (size - 1, None), (0, 1), (0, size), (size - 1, size),
            (size // 2, size // 2 + 100), (10, 10), (size, size),
        ]  # fmt: skip
        read = await asyncio.gather(*(collect(source.read(entry, *each)) for each in ranges))
        assert read == [content[start:stop] for start, stop in ranges]

    async def test_fewer_bytes_never_pass_silently(self, source: Source) -> None:
        """Asking for more than there is is an error, whether of the range or of the entry."""
        await self.put(source, "file", b"content")
        entry = await source.stat("file")
        with pytest.raises(FastsyncError):
            await collect(source.read(entry, 0, 8))
        if entry.size is not None:
            with pytest.raises(Changed):
                await collect(source.read(entry._replace(size=8), 0, 8))

    @pytest.mark.parametrize("content", [b"longer content", b"short", b"CONTENT", b""])
    async def test_read_of_a_changed_file(self, source: Source, content: bytes) -> None:
        """A read is of the version that was listed, or Changed."""
        await self.put(source, "file", b"content")
        entry = await source.stat("file")
        await self.put(source, "file", content, mtime_ns=LATER)
        for start, stop in ((0, None), (0, 7), (1, 3)):
            with pytest.raises(Changed):
                await collect(source.read(entry, start, stop))

    async def test_read_of_a_vanished_file(self, source: Source) -> None:
        """A file that is gone since it was listed is Vanished."""
        await self.put(source, "file", b"content")
        entry = await source.stat("file")
        await self.remove(source, "file")
        with pytest.raises(Vanished):
            await collect(source.read(entry, 0, None))

    @pytest.mark.parametrize("goes", [False, True])
    async def test_change_while_reading(self, source: Source, goes: bool) -> None:
        """When a file is replaced or removed in mid-read, the read gives the old version or Changed."""
        old, new = noise(8 << 20, seed=1), noise(8 << 20, seed=2)
        await self.put(source, "file", old)
        reading = source.read(await source.stat("file"), 0, None)
        got = bytearray(await anext(reading))
        if goes:
            await self.remove(source, "file")
        else:
            await self.put(source, "file", new, mtime_ns=LATER)
        try:
            got += await collect(reading)
        except Changed:
            return
        assert got == old

    async def test_read_left_early(self, source: Source) -> None:
        """A read that is left, or cancelled, leaves a store that works."""
        content = noise(4 << 20)
        await self.put(source, "file", content)
        entry = await source.stat("file")
        left = source.read(entry, 0, None)
        await anext(left)
        await close(left)
        for steps in range(4):
            await cancelled(collect(source.read(entry, 0, None)), steps)
        assert await collect(source.read(entry, 0, None)) == content

    # -- abilities of sources ------------------------------------------------------------------------

    async def test_digest(self, source: Source) -> None:
        """Hashes: every algorithm's digest is hashlib's, of exactly the version that was listed."""
        if not isinstance(source, Hashes):
            lacks(source, Hashes)
        content = noise(100_000)
        await self.put(source, "file", content)
        entry = await source.stat("file")
        if isinstance(source, FindsHashes):
            await source.find_hashes()
            if not source.algorithms:
                lacks(source, Hashes)
        assert source.algorithms
        for algorithm in source.algorithms:
            digest = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
            assert await source.digest(entry, algorithm) == digest
        with pytest.raises(Unsupported):
            await source.digest(entry, "no-such-algorithm")
        await self.put(source, "file", b"other", mtime_ns=LATER)
        with pytest.raises(Changed):
            await source.digest(entry, source.algorithms[0])

    async def test_read_into_file(self, source: Source, scratch: int) -> None:
        """ReadsIntoFile: ranges land at their own offsets, and progress counts every byte once."""
        if not isinstance(source, ReadsIntoFile):
            lacks(source, ReadsIntoFile)
        content = noise(3_000_001)
        await self.put(source, "file", content)
        entry = await source.stat("file")
        moved: list[int] = []
        borders = (0, 1, 1_500_000, 1_500_000, len(content))
        await asyncio.gather(
            *(
                source.read_into_file(entry, start, stop, scratch, moved.append)
                for start, stop in itertools.pairwise(borders)
            )
        )
        assert os.pread(scratch, len(content) + 1, 0) == content
        assert sum(moved) == len(content)

    async def test_read_into_file_of_a_changed_file(self, source: Source, scratch: int) -> None:
        """ReadsIntoFile: Changed, Vanished, and never fewer bytes in silence, as with `read`."""
        if not isinstance(source, ReadsIntoFile):
            lacks(source, ReadsIntoFile)
        await self.put(source, "file", b"content")
        entry = await source.stat("file")
        with pytest.raises(FastsyncError):
            await source.read_into_file(entry, 0, 8, scratch, ignore)
        await self.put(source, "file", b"CONTENT", mtime_ns=LATER)
        with pytest.raises(Changed):
            await source.read_into_file(entry, 0, 7, scratch, ignore)
        await self.remove(source, "file")
        with pytest.raises(Vanished):
            await source.read_into_file(entry, 0, 7, scratch, ignore)

    async def test_open_file(self, source: Source) -> None:
        """LocalFiles: a pinned file is the one that was listed, and tells when it was written to."""
        if not isinstance(source, LocalFiles):
            lacks(source, LocalFiles)
        await self.put(source, "file", b"content")
        entry = await source.stat("file")
        pinned = await source.open_file(entry)
        try:
            assert os.pread(pinned.fileno(), 100, 0) == b"content"
            pinned.verify()
        finally:
            pinned.close()
        await self.put(source, "file", b"CONTENT", mtime_ns=LATER)
        with pytest.raises(Changed):
            await source.open_file(entry)
        await self.remove(source, "file")
        with pytest.raises(Vanished):
            await source.open_file(entry)

    # -- what some sources know ----------------------------------------------------------------------

    async def test_ranges_of_a_file(self, source: Source) -> None:
        """A source that says of each file whether it has ranges means it."""
        if not isinstance(source, SeeksSome):
            lacks(source, SeeksSome)
        content = noise(70_000)
        await self.put(source, "a", content)
        entry = await source.stat("a")
        if await source.is_seekable(entry):
            assert await collect(source.read(entry, 1000, 2000)) == content[1000:2000]
        await self.remove(source, "a")
        with pytest.raises((Changed, NotFound)):
            await collect(source.read(entry, 1000, 2000))

    async def test_download_into_memory(self, source: Source) -> None:
        """Every byte is where it is wanted, and reported."""
        if not isinstance(source, Downloads):
            lacks(source, Downloads)
        content = noise(300_000)
        await self.put(source, "a", content)
        entry = await source.stat("a")
        if not await reads_ranges(source, entry):
            pytest.skip("the server sends no ranges")
        download = await source.open_download(entry)
        if not isinstance(download, ReadsIntoMemory):
            lacks(download, ReadsIntoMemory)
        memory, told = bytearray(200_000), list[int]()
        await download.read_into_memory(50_000, 250_000, memoryview(memory), told.append)
        assert memory == content[50_000:250_000]
        assert sum(told) == len(memory)

    async def test_validators(self, source: Source) -> None:
        """The same for the same bytes, another one for others; text without secrets."""
        if not isinstance(source, Downloads):
            lacks(source, Downloads)
        found: list[str | None] = []
        for content in (b"one", b"one", b"two"):
            if not found or content == b"two":
                await self.put(source, "a", content, mtime_ns=MTIME if not found else LATER)
            download = await source.open_download(await source.stat("a"))
            if not isinstance(download, Validated):
                lacks(download, Validated)
            found.append(download.validator)
        first, again, other = found
        if first is None:
            pytest.skip("nothing here tells versions apart")
        assert first == again
        assert first != other
        assert first.isprintable()

    async def test_describe(self, source: Source) -> None:
        """Text by names, and never of a file that is gone."""
        if not isinstance(source, Describes):
            lacks(source, Describes)
        await self.put(source, "a", b"content")
        entry = await source.stat("a")
        told = await source.describe(entry)
        assert all(isinstance(text, str) for pair in told.items() for text in pair)
        await self.remove(source, "a")
        with pytest.raises((Changed, NotFound)):
            await source.describe(entry)

    async def test_proof(self, source: Source) -> None:
        """What proves the content of a file proves no other."""
        if not isinstance(source, ProvesContent):
            lacks(source, ProvesContent)
        content = noise(70_000)
        await self.put(source, "a", content)
        proof = await source.proof(await source.stat("a"))
        if proof is None:
            pytest.skip("nothing here tells what bytes add up to")
        for data, is_it in ((content, True), (content[1:], False)):
            hashing = proof.hasher()
            for start in range(0, len(data), 30_000):
                hashing(memoryview(data)[start : start + 30_000])
            assert (hashing.value() == proof.value) is is_it
