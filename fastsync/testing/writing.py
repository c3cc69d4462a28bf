"""What every sink promises beyond being a source: one test per promise."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest
import pytest_asyncio

from fastsync.backend import (
    Backend,
    Entry,
    KeepsDirectories,
    ReadsBack,
    Sink,
    Source,
    StoreOptions,
    Upload,
    WriteOptions,
)
from fastsync.errors import Conflict, IntegrityError, NameRefused, NotFound
from fastsync.location import Location
from fastsync.testing.reading import SourceConformance
from fastsync.testing.vocabulary import (
    MTIME,
    REFUSED,
    SIZES,
    agree,
    begin,
    cancelled,
    expect,
    files,
    kept_mode,
    like,
    listing,
    noise,
    part_size,
    read,
    write,
)


class SinkConformance(SourceConformance):
    """The tests of a source, with content put there by the store's own uploads, and those of a sink."""

    async def put(
        self,
        source: Source,
        path: str,
        content: bytes = b"",
        *,
        mtime_ns: int = MTIME,
        mode: int = 0o644,
    ) -> None:
        assert isinstance(source, Sink)
        await write(source, path, content, like=like(path, mtime_ns=mtime_ns, mode=mode))

    async def remove(self, source: Source, path: str) -> None:
        assert isinstance(source, Sink)
        assert await source.delete([await source.stat(path)]) == [None]

    async def traces(self, sink: Sink) -> Collection[str]:
        """Everything but directories that the store keeps, for tests that nothing is left behind.

        Override it where a listing hides something: temporary files, unfinished multipart uploads.
        """
        return [entry.path for entry in await listing(sink) if entry.kind != "dir"]

    @pytest_asyncio.fixture
    async def sink(self, source: Source) -> Sink:
        assert isinstance(source, Sink), f"{type(source).__name__} cannot be written"
        return source

    # -- what is written -----------------------------------------------------------------------------

    @pytest.mark.parametrize(("parts", "more"), SIZES)
    async def test_write(self, sink: Sink, parts: int, more: int) -> None:
        """A file of any size is what was written, and commit returns its entry."""
        content = noise(parts * part_size(sink) + more)
        entry = await write(sink, "file", content)
        assert (entry.path, entry.kind, entry.size) == ("file", "file", len(content))
        agree(entry, await sink.stat("file"))
        assert await read(sink, "file") == content

    async def test_parts_in_any_order_and_at_once(self, sink: Sink) -> None:
        """Parts may be written backwards or concurrently, from any kind of buffer."""
        part = part_size(sink)
        content = noise(4 * part + 9)
        starts = list(range(0, len(content), part))
        upload = await begin(sink, "backwards")
        for start in reversed(starts):
            await upload.write(start, memoryview(content)[start : start + part])
        await upload.commit(len(content))
        upload = await begin(sink, "at-once")
        await asyncio.gather(
            *(upload.write(start, bytearray(content[start : start + part])) for start in starts)
        )
        await upload.commit(len(content))
        assert await read(sink, "backwards") == await read(sink, "at-once") == content

    async def test_a_buffer_is_ours_again_after_write(self, sink: Sink) -> None:
        """When `write` returns the store is done with the buffer, which may then be filled anew."""
        part = part_size(sink)
        content = noise(3 * part)
        upload = await begin(sink, "file")
        buffer = bytearray(part)
        for start in range(0, len(content), part):
            buffer[:] = content[start : start + part]
            await upload.write(start, buffer)
            buffer[:] = bytes(part)
        await upload.commit(len(content))
        assert await read(sink, "file") == content

    async def test_reading_back(self, sink: Sink) -> None:
        """Where an upload can be read back, it shows what was written, before anybody else sees it."""
        part = part_size(sink)
        content = noise(3 * part + 9)
        upload = await begin(sink, "file")
        if not isinstance(upload, ReadsBack):
            await upload.abort()
            pytest.skip("what is written shows after the commit alone")
        for start in range(0, len(content), part):
            await upload.write(start, content[start : start + part])
        for start, stop in ((0, len(content)), (part - 1, 2 * part + 1), (5, 5)):
            found = b"".join([bytes(buffer) async for buffer in upload.read_back(start, stop)])
            assert found == content[start:stop]
        with pytest.raises(IntegrityError):
            async for _ in upload.read_back(0, len(content) + 1):
                pass
        assert await files(sink) == []
        await upload.commit(len(content))
        assert await read(sink, "file") == content

    async def test_a_part_written_again(self, sink: Sink) -> None:
        """Writing a range again replaces it: that is what a retry does."""
        part = part_size(sink)
        content = noise(2 * part)
        upload = await begin(sink, "file")
        await upload.write(0, noise(part, seed=1))
        await upload.write(part, content[part:])
        await upload.write(0, content[:part])
        await upload.commit(len(content))
        assert await read(sink, "file") == content

    @pytest.mark.parametrize(
        "options",
        [
            WriteOptions(inplace=True),
            WriteOptions(durable=True),
            WriteOptions(sparse=True),
            WriteOptions(reread=True, from_memory=True, resumable=True),
            WriteOptions(mtime=False, mode=False),
        ],
        ids=("inplace", "durable", "sparse", "reread", "bare"),
    )
    async def test_write_options(self, sink: Sink, options: WriteOptions) -> None:
        """However a file is written, over nothing, a longer or a shorter one, it is what was written."""
        part = part_size(sink)
        for content in (bytes(3 * part), noise(part) + bytes(part) + b"end", noise(10), b""):
            await write(sink, "file", content, options=options)
            assert await read(sink, "file") == content
            assert await files(sink) == ["file"]

    async def test_parents_are_made(self, sink: Sink, root: tuple[Backend, Location]) -> None:
        """Missing directories above a file are made, and so is the place itself."""
        await write(sink, "a/b/c/file", b"content")
        backend, location = root
        missing = await backend.connect(location.child("not/there/yet"), StoreOptions())
        assert isinstance(missing, Sink)
        await write(missing, "d/file", b"content")
        assert await files(missing) == ["d/file"]
        assert await files(sink) == ["a/b/c/file", "not/there/yet/d/file"]
        await missing.aclose()

    # -- when it appears -----------------------------------------------------------------------------

    @pytest.mark.parametrize("old", [None, b"the old content"])
    async def test_invisible_until_commit(
        self, sink: Sink, root: tuple[Backend, Location], old: bytes | None
    ) -> None:
        """Until commit there is the old file or none, for this store and for any other."""
        if old is not None:
            await write(sink, "d/file", old)
        backend, location = root
        other = await backend.connect(location, StoreOptions())
        content = noise(part_size(sink))
        upload = await begin(sink, "d/file")
        await upload.write(0, content)
        for store in (sink, other):
            await expect(store, {} if old is None else {"d/file": old})
        await upload.commit(len(content))
        for store in (sink, other):
            await expect(store, {"d/file": content})
        await other.aclose()

    async def test_abort(self, sink: Sink) -> None:
        """After abort nothing of the write is left and the old file stands; it may be called again."""
        await write(sink, "old", b"old")
        for path in ("old", "new"):
            upload = await begin(sink, path)
            await upload.write(0, noise(part_size(sink)))
            await upload.abort()
            await upload.abort()
        await expect(sink, {"old": b"old"})
        assert list(await self.traces(sink)) == ["old"]

    async def test_abort_after_commit(self, sink: Sink) -> None:
        """Abort after a commit does nothing."""
        upload = await begin(sink, "file")
        await upload.write(0, b"content")
        await upload.commit(7)
        await upload.abort()
        await expect(sink, {"file": b"content"})

    @pytest.mark.parametrize("path", ["old", "new"])
    @pytest.mark.parametrize("missing", [0, 1, 2], ids=("first", "middle", "last"))
    async def test_commit_with_a_gap(self, sink: Sink, path: str, missing: int) -> None:
        """A commit of more than was written is IntegrityError, changes nothing and leaves nothing."""
        await write(sink, "old", b"old")
        part = part_size(sink)
        content = noise(3 * part)
        upload = await begin(sink, path)
        for number in range(3):
            if number != missing:
                await upload.write(number * part, content[number * part : (number + 1) * part])
        with pytest.raises(IntegrityError):
            await upload.commit(len(content))
        await expect(sink, {"old": b"old"})
        assert list(await self.traces(sink)) == ["old"]
        await upload.abort()

    async def test_commit_of_fewer_bytes(self, sink: Sink) -> None:
        """A file that is shorter than what was written is cut to size or refused, never longer."""
        upload = await begin(sink, "file")
        await upload.write(0, b"content")
        try:
            await upload.commit(3)
        except IntegrityError:
            await expect(sink, {})
        else:
            await expect(sink, {"file": b"con"})

    async def test_two_uploads_of_one_file(self, sink: Sink) -> None:
        """Of two writes at once the one that commits last is there, whole."""
        first, second = await begin(sink, "file"), await begin(sink, "file")
        await asyncio.gather(first.write(0, b"first"), second.write(0, b"the second"))
        await second.commit(10)
        await expect(sink, {"file": b"the second"})
        await first.commit(5)
        await expect(sink, {"file": b"first"})
        assert list(await self.traces(sink)) == ["file"]

    async def test_many_files_at_once(self, sink: Sink) -> None:
        """Files that are written all at once are all there, in directories that none of them found."""
        wanted = {f"d{number % 3}/e/{number:02}": b"%d" % number for number in range(20)}
        await asyncio.gather(*(write(sink, path, content) for path, content in wanted.items()))
        await expect(sink, dict(sorted(wanted.items())))

    # -- cancellation --------------------------------------------------------------------------------

    @pytest.mark.parametrize("steps", range(6))
    async def test_cancelled_upload(self, sink: Sink, steps: int) -> None:
        """Cancelled while it begins, an upload leaves nothing: nobody could abort it."""
        begun: list[Upload] = []

        async def start() -> None:
            begun.append(await begin(sink, "file"))

        await cancelled(start(), steps)
        for upload in begun:
            await upload.abort()
        assert list(await self.traces(sink)) == []

    @pytest.mark.parametrize("steps", range(6))
    async def test_cancelled_write(self, sink: Sink, steps: int) -> None:
        """Cancelled while it writes, and aborted, an upload leaves the old file and nothing else."""
        await write(sink, "file", b"old")
        upload = await begin(sink, "file")
        part = part_size(sink)
        await upload.write(0, noise(part))
        await cancelled(upload.write(part, noise(part)), steps)
        await upload.abort()
        await expect(sink, {"file": b"old"})
        assert list(await self.traces(sink)) == ["file"]

    @pytest.mark.parametrize("steps", range(8))
    async def test_cancelled_commit(self, sink: Sink, steps: int) -> None:
        """Cancelled while it commits, and aborted, an upload leaves the old file or the new one."""
        await write(sink, "file", b"old")
        content = noise(part_size(sink))
        upload = await begin(sink, "file")
        await upload.write(0, content)
        cut = await cancelled(upload.commit(len(content)), steps)
        await upload.abort()
        found = await read(sink, "file")
        assert found == content or (cut and found == b"old")
        assert list(await self.traces(sink)) == ["file"]

    # -- metadata ------------------------------------------------------------------------------------

    @pytest.mark.parametrize("mtime_ns", [MTIME, 0, 999_999_999, 4_102_444_800_999_999_999])
    async def test_mtime(self, sink: Sink, mtime_ns: int) -> None:
        """The time of modification is kept as precisely as the limits say: truncated, never rounded."""
        step = sink.limits.mtime_step_ns
        if step is None:
            pytest.skip("the store keeps no modification times")
        entry = await write(sink, "file", b"content", like=like("file", mtime_ns=mtime_ns))
        assert entry.mtime_ns == mtime_ns - mtime_ns % step
        assert (await sink.stat("file")).mtime_ns == entry.mtime_ns

    async def test_mtime_not_kept(self, sink: Sink) -> None:
        """Without `mtime`, or when the source has none, the time is that of the write."""
        if sink.limits.mtime_step_ns is None:
            pytest.skip("the store keeps no modification times")
        await write(sink, "a", b"", options=WriteOptions(mtime=False))
        await write(sink, "b", b"", like=like("b")._replace(mtime_ns=None))
        for entry in await listing(sink):
            assert entry.mtime_ns is None or entry.mtime_ns > MTIME

    @pytest.mark.parametrize("mode", [0o644, 0o600, 0o755, 0o444])
    async def test_mode(self, sink: Sink, mode: int) -> None:
        """The permission bits of `mode_mask` are kept, of a new file and of one that is replaced."""
        mask = kept_mode(sink.limits)
        for content in (b"new", b"replaced"):
            await write(sink, "file", content, like=like("file", mode=mode))
            assert (await sink.stat("file")).mode == mode & mask
            assert await read(sink, "file") == content

    @pytest.mark.parametrize("bit", [0o4000, 0o2000, 0o1000], ids=("setuid", "setgid", "sticky"))
    async def test_special_bits(self, sink: Sink, bit: int) -> None:
        """Setuid, setgid and sticky bits are kept only when they are asked for."""
        mask = kept_mode(sink.limits)
        entry = like("file", mode=0o755 | bit)
        await write(sink, "file", b"content", like=entry)
        assert (await sink.stat("file")).mode == 0o755 & mask
        await write(sink, "file", b"content", like=entry, options=WriteOptions(special=True))
        assert (await sink.stat("file")).mode == (0o755 | bit) & mask

    async def test_nothing_known_of_the_source(self, sink: Sink) -> None:
        """A source that knows neither size, time nor mode can be written all the same."""
        await write(sink, "file", b"content", like=Entry("file", "file", None, None))
        await expect(sink, {"file": b"content"})

    # -- names ---------------------------------------------------------------------------------------

    @pytest.mark.parametrize("path", REFUSED, ids=lambda path: ascii(path)[1:-1] or "empty")
    async def test_refused_names(
        self, sink: Sink, root: tuple[Backend, Location], path: str
    ) -> None:
        """A name that could leave the root is refused for writing and deleting, and nothing happens."""
        if sink.limits.raw_names and path and "\ud800" not in path:
            pytest.skip("to this store it is a name like any other")
        await write(sink, "victim", b"outside")
        await write(sink, "root/b", b"inside")
        backend, location = root
        inner = await backend.connect(location.child("root"), StoreOptions())
        assert isinstance(inner, Sink)
        with pytest.raises(NameRefused):
            await write(inner, path, b"intruder")
        (answer,) = await inner.delete([like(path)])
        assert isinstance(answer, NameRefused)
        await expect(sink, {"root/b": b"inside", "victim": b"outside"})
        assert sorted(await self.traces(sink)) == ["root/b", "victim"]
        await inner.aclose()

    async def test_something_else_in_the_way(self, sink: Sink) -> None:
        """Where directories exist by themselves, neither kind replaces the other: Conflict."""
        if not isinstance(sink, KeepsDirectories):
            pytest.skip("the store has no directories of their own")
        await write(sink, "d/file", b"content")
        for path in ("d", "d/file/below"):
            with pytest.raises(Conflict):
                await write(sink, path, b"intruder")
        await expect(sink, {"d/file": b"content"})
        assert list(await self.traces(sink)) == ["d/file"]

    # -- deleting ------------------------------------------------------------------------------------

    async def test_delete(self, sink: Sink) -> None:
        """What is deleted is gone, and nothing else."""
        for path in ("a", "d/b", "d/c", "e"):
            await write(sink, path, b"content")
        entries = {entry.path: entry for entry in await listing(sink)}
        assert await sink.delete([entries["a"], entries["d/b"]]) == [None, None]
        assert await files(sink) == ["d/c", "e"]
        with pytest.raises(NotFound):
            await sink.stat("a")

    async def test_delete_nothing(self, sink: Sink) -> None:
        """Deleting no entries, and entries that are gone already, is success."""
        assert await sink.delete([]) == []
        gone = [like("gone"), like("gone/too"), like("dir")._replace(kind="dir")]
        assert await sink.delete(gone) == [None] * len(gone)

    async def test_delete_directories(self, sink: Sink) -> None:
        """A directory goes only when it is empty, else its item is Conflict and the others go on."""
        if not isinstance(sink, KeepsDirectories):
            pytest.skip("the store has no directories of their own")
        for path in ("full/file", "empty/file", "last"):
            await write(sink, path, b"content")
        entries = {entry.path: entry for entry in await listing(sink)}
        wanted = ("full", "empty/file", "empty", "last")
        first, *rest = await sink.delete([entries[path] for path in wanted])
        assert isinstance(first, Conflict)
        assert rest == [None, None, None]
        assert [entry.path for entry in await listing(sink)] == ["full", "full/file"]

    async def test_delete_of_another_kind(self, sink: Sink) -> None:
        """A directory is not deleted as a file: Conflict."""
        if not isinstance(sink, KeepsDirectories):
            pytest.skip("the store has no directories of their own")
        await sink.make_directories([like("d")._replace(kind="dir")], WriteOptions())
        (answer,) = await sink.delete([like("d")])
        assert isinstance(answer, Conflict)
        assert (await sink.stat("d")).kind == "dir"
