"""What every source promises: one test per promise, for any store that has a way to get files in."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os

import pytest

from fastsync.backend import (
    Backend,
    ChecksInOrder,
    Describes,
    Downloads,
    FindsHashes,
    Hashes,
    LocalFiles,
    ProvesContent,
    ReadsIntoFile,
    ReadsIntoMemory,
    Reconnects,
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
    IntegrityError,
    NotFound,
    Unsupported,
    Vanished,
)
from fastsync.location import Location
from fastsync.testing.listing import ListingConformance
from fastsync.testing.vocabulary import (
    LATER,
    MTIME,
    SIZES,
    agree,
    cancelled,
    close,
    collect,
    ignore,
    lacks,
    listing,
    noise,
    part_size,
    read,
)


class SourceConformance(ListingConformance):
    """Subclass it as ``class TestMine(SourceConformance)`` and say where files are and how they get there.

    `make_root`, `put` and `remove` are called on a new instance for every test. A store that is also a
    `Sink` is better served by `StoreConformance`, which has `put` and `remove` and tests the writing.
    """

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

    async def test_bytes_in_order(self, source: Source) -> None:
        """A download that checks bytes which stay in no file finds them right, and others wrong."""
        if not isinstance(source, Downloads):
            lacks(source, Downloads)
        content = noise(70_000)
        await self.put(source, "a", content)
        entry = await source.stat("a")
        for shown, is_it in ((content, True), (content[1:] + content[:1], False)):
            download = await source.open_download(entry)
            if not isinstance(download, ChecksInOrder):
                lacks(download, ChecksInOrder)
            if not download.begin_in_order():
                pytest.skip("nothing here tells what bytes add up to")
            await collect(download.read(0, len(content)))
            for start in range(0, len(shown), 30_000):
                download.add_next(memoryview(shown)[start : start + 30_000])
            if is_it:
                assert await download.verify(None)
            else:
                with pytest.raises(IntegrityError):
                    await download.verify(None)

    async def test_other_connections(self, source: Source) -> None:
        """A source that is told that wrong bytes came reads on."""
        if not isinstance(source, Reconnects):
            lacks(source, Reconnects)
        await self.put(source, "a", b"content")
        assert await read(source, "a") == b"content"
        source.renew()
        assert await read(source, "a") == b"content"
