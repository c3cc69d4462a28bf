"""What a store promises that moves small files in batches, completes its listings, checks whole
downloads or guards its writes; a test of what a store does not claim is skipped."""

from __future__ import annotations

import os

import pytest

from fastsync.backend import (
    CompletesEntries,
    Downloads,
    Entry,
    KeepsDirectories,
    LeavesTraces,
    Loaded,
    ReadsWhole,
    Sink,
    Source,
    WholeJob,
    WriteOptions,
    WritesWhole,
)
from fastsync.errors import Changed, FastsyncError, NameRefused, Overtaken, Vanished
from fastsync.testing.vocabulary import (
    LATER,
    MTIME,
    cancelled,
    collect,
    expect,
    files,
    ignore,
    lacks,
    like,
    listing,
    noise,
    part_size,
    read,
    refused_name,
    write,
)
from fastsync.testing.writing import SinkConformance

_SIZES = (0, 1, 4096, 70_000)
_GUARDED = WriteOptions(guarded=True)


def _job(path: str, data: bytes, old: Entry | None = None) -> WholeJob:
    return WholeJob(Entry(path, "file", len(data), MTIME, 0o640), path, data, old)


async def _listed(source: Source) -> dict[str, Entry]:
    return {entry.path: entry for entry in await listing(source) if entry.kind == "file"}


class BatchConformance(SinkConformance):
    # -- ReadsWhole ----------------------------------------------------------------------------------

    async def test_read_a_batch(self, sink: Sink) -> None:
        """Every file is whole, in the order asked for, and says what the store keeps of it."""
        if not isinstance(sink, ReadsWhole):
            lacks(sink, ReadsWhole)
        contents = {f"d{size % 3}/{size}": noise(size) for size in _SIZES}
        for path, content in contents.items():
            await write(sink, path, content)
        entries = sorted((await _listed(sink)).values(), reverse=True)
        loads = await sink.read_whole(entries)
        assert [type(load) for load in loads] == [Loaded] * len(entries)
        for entry, load in zip(entries, loads, strict=True):
            assert isinstance(load, Loaded)
            assert bytes(load.data) == contents[entry.path]
            assert (load.entry.path, load.entry.size) == (entry.path, entry.size)
            if (step := sink.limits.mtime_step_ns) is not None:
                assert load.entry.mtime_ns == MTIME - MTIME % step
        assert await sink.read_whole([]) == []

    async def test_read_a_batch_of_which_some_changed(self, sink: Sink) -> None:
        if not isinstance(sink, ReadsWhole):
            lacks(sink, ReadsWhole)
        for path in ("changed", "gone", "good"):
            await write(sink, path, b"first")
        entries = await _listed(sink)
        await write(sink, "changed", b"second, longer")
        await sink.delete([entries["gone"]])
        changed, gone, good = await sink.read_whole(
            [entries["changed"], entries["gone"], entries["good"]]
        )
        assert isinstance(changed, Changed)
        assert isinstance(gone, Vanished)
        assert isinstance(good, Loaded)
        assert bytes(good.data) == b"first"

    # -- WritesWhole ---------------------------------------------------------------------------------

    async def test_write_a_batch(self, sink: Sink) -> None:
        """Files of any size appear with their metadata, over what stands there; parents are made."""
        if not isinstance(sink, WritesWhole):
            lacks(sink, WritesWhole)
        contents = {f"new/d{size % 3}/{size}": noise(size) for size in _SIZES}
        await write(sink, "new/d1/1", b"an old file")
        jobs = [_job(path, content) for path, content in contents.items()]
        assert await sink.write_whole(jobs, WriteOptions()) == [None] * len(jobs)
        await expect(sink, dict(sorted(contents.items())))
        for path in contents:
            entry = await sink.stat(path)
            if (step := sink.limits.mtime_step_ns) is not None:
                assert entry.mtime_ns == MTIME - MTIME % step
            if sink.limits.mode_mask:
                assert entry.mode == 0o640 & sink.limits.mode_mask
        assert await sink.write_whole([], WriteOptions()) == []

    async def test_write_a_batch_without_metadata(self, sink: Sink) -> None:
        if not isinstance(sink, WritesWhole):
            lacks(sink, WritesWhole)
        job = WholeJob(like("file", mtime_ns=None, mode=None), "file", b"content")
        assert await sink.write_whole([job], WriteOptions()) == [None]
        assert await read(sink, "file") == b"content"

    async def test_write_a_batch_goes_on_after_a_failure(self, sink: Sink) -> None:
        if not isinstance(sink, WritesWhole):
            lacks(sink, WritesWhole)
        jobs = [_job(path, b"content") for path in ("one", refused_name(sink), "two")]
        one, outside, two = await sink.write_whole(jobs, WriteOptions())
        assert (one, two) == (None, None)
        assert isinstance(outside, NameRefused)
        assert await files(sink) == ["one", "two"]

    async def test_write_a_batch_over_directories(self, sink: Sink) -> None:
        if not isinstance(sink, WritesWhole):
            lacks(sink, WritesWhole)
        if not isinstance(sink, KeepsDirectories):
            lacks(sink, KeepsDirectories)
        await write(sink, "d/file", b"content")
        (error,) = await sink.write_whole([_job("d", b"content")], WriteOptions())
        assert isinstance(error, FastsyncError)
        assert await read(sink, "d/file") == b"content"

    @pytest.mark.parametrize("steps", [1, 4, 12])
    async def test_write_a_batch_that_is_cancelled(self, sink: Sink, steps: int) -> None:
        """Each file is there whole, or not at all (a server may still be at it), and nothing else is."""
        if not isinstance(sink, WritesWhole):
            lacks(sink, WritesWhole)
        contents = {f"d/{number}": noise(70_000, seed=number) for number in range(4)}
        jobs = [_job(path, content) for path, content in contents.items()]
        await cancelled(sink.write_whole(jobs, WriteOptions()), steps)
        for path in await files(sink):
            assert await read(sink, path) == contents[path]
        assert set(await self.traces(sink)) <= contents.keys()

    # -- CompletesEntries ----------------------------------------------------------------------------

    async def test_complete(self, sink: Sink) -> None:
        """What is left out of a listing is told on demand, of exactly the version that was listed."""
        if not isinstance(sink, CompletesEntries):
            lacks(sink, CompletesEntries)
        for path in ("changed", "gone", "good"):
            await write(sink, path, b"first", like=like(path, mode=0o640))
        entries = await _listed(sink)
        await write(sink, "changed", b"second, longer")
        await sink.delete([entries["gone"]])
        changed, gone, good = await sink.complete(
            [entries["changed"], entries["gone"], entries["good"]]
        )
        assert isinstance(changed, Changed)
        assert isinstance(gone, Vanished)
        assert isinstance(good, Entry)
        step = sink.limits.mtime_step_ns or 1
        assert (good.path, good.size) == ("good", 5)
        assert good.mtime_ns == MTIME - MTIME % step
        assert good.mode == 0o640 & sink.limits.mode_mask
        assert await sink.complete([]) == []

    # -- Downloads -----------------------------------------------------------------------------------

    async def test_download(self, sink: Sink, scratch: int) -> None:
        """Parts in any order, into a file or through memory, add up to what is promised."""
        if not isinstance(sink, Downloads):
            lacks(sink, Downloads)
        content = noise(300_001)
        await write(sink, "file", content)
        entry = (await _listed(sink))["file"]
        for fd in (scratch, None):
            download = await sink.open_download(entry)
            assert download.entry.size == len(content)
            if (step := sink.limits.mtime_step_ns) is not None:
                assert download.entry.mtime_ns == MTIME - MTIME % step
            moved: list[int] = []
            for start, stop in ((200_000, 300_001), (0, 100_000), (100_000, 200_000)):
                if fd is None:
                    got = await collect(download.read(start, stop))
                    assert got == content[start:stop]
                else:
                    await download.read_into_file(start, stop, fd, moved.append)
            if fd is not None:
                assert os.pread(fd, len(content) + 1, 0) == content
                assert sum(moved) == len(content)
            assert await download.verify(fd) in (True, False)

    async def test_download_of_a_changed_file(self, sink: Sink, scratch: int) -> None:
        if not isinstance(sink, Downloads):
            lacks(sink, Downloads)
        await write(sink, "file", b"first")
        entry = (await _listed(sink))["file"]
        download = await sink.open_download(entry)
        await write(sink, "file", b"another")
        with pytest.raises(Changed):
            await download.read_into_file(0, 5, scratch, ignore)

        async def begin_late() -> None:
            late = await sink.open_download(entry)
            await late.read_into_file(0, 5, scratch, ignore)

        with pytest.raises(Changed):
            await begin_late()

    # -- guarded writes ------------------------------------------------------------------------------

    async def test_a_guarded_write_of_something_new(self, sink: Sink) -> None:
        """It appears where nothing was, and never over what came meanwhile."""
        self._needs_guards(sink)
        await write(sink, "there", b"theirs")
        for path in ("there", "new"):
            upload = await sink.upload(path, like(path), _GUARDED, part_size(sink))
            try:
                await upload.write(0, b"ours")
                if path == "there":
                    with pytest.raises(Overtaken):
                        await upload.commit(4)
                else:
                    await upload.commit(4)
            finally:
                await upload.abort()
        await expect(sink, {"new": b"ours", "there": b"theirs"})

    async def test_a_guarded_write_over_what_was_listed(self, sink: Sink) -> None:
        self._needs_guards(sink)
        for path in ("same", "other"):
            await write(sink, path, b"first")
        listed = await _listed(sink)
        await write(sink, "other", b"theirs", like=like("other", mtime_ns=LATER))
        for path, entry in listed.items():
            upload = await sink.upload(path, like(path), _GUARDED, part_size(sink), entry)
            try:
                await upload.write(0, b"ours")
                if path == "other":
                    with pytest.raises(Overtaken):
                        await upload.commit(4)
                else:
                    await upload.commit(4)
            finally:
                await upload.abort()
        await expect(sink, {"other": b"theirs", "same": b"ours"})

    async def test_a_guarded_batch(self, sink: Sink) -> None:
        self._needs_guards(sink)
        if not isinstance(sink, WritesWhole):
            lacks(sink, WritesWhole)
        for path in ("same", "other"):
            await write(sink, path, b"first")
        listed = await _listed(sink)
        await write(sink, "other", b"theirs")
        jobs = [
            _job("same", b"ours", listed["same"]),
            _job("other", b"ours", listed["other"]),
            _job("new", b"ours"),
        ]
        same, other, new = await sink.write_whole(jobs, _GUARDED)
        assert (same, new) == (None, None)
        assert isinstance(other, Overtaken)
        await expect(sink, {"new": b"ours", "other": b"theirs", "same": b"ours"})

    @staticmethod
    def _needs_guards(sink: Sink) -> None:
        if not sink.limits.conditional_writes:
            pytest.skip("the store does not guard its writes")

    # -- LeavesTraces --------------------------------------------------------------------------------

    async def test_tickets(self, sink: Sink) -> None:
        """An upload that would stay behind says how to find it; text without secrets."""
        upload = await sink.upload("file", like("file"), WriteOptions(), part_size(sink))
        try:
            if not isinstance(upload, LeavesTraces):
                lacks(upload, LeavesTraces)
            assert upload.ticket is None or upload.ticket.isprintable()
            await upload.write(0, b"content")
            await upload.commit(7)
            assert upload.ticket is None
        finally:
            await upload.abort()
