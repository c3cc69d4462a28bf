"""What a sink promises with each ability it has; a test of an ability it lacks is skipped."""

from __future__ import annotations

import os

import pytest

from fastsync.backend import (
    Backend,
    CopiesWithin,
    CopyJob,
    KeepsDirectories,
    KeepsLinks,
    LocalUpload,
    ScanOptions,
    SetsAttributes,
    Sink,
    StoreOptions,
    WriteOptions,
    WritesFromFile,
)
from fastsync.errors import (
    Changed,
    Conflict,
    FastsyncError,
    IntegrityError,
    NameRefused,
    NotFound,
    Vanished,
)
from fastsync.location import Location
from fastsync.testing.keeping import KeepingConformance
from fastsync.testing.vocabulary import (
    LATER,
    begin,
    cancelled,
    collect,
    directory,
    expect,
    files,
    ignore,
    kept_mode,
    lacks,
    like,
    link,
    listing,
    listing_and_faults,
    noise,
    part_size,
    read,
    refused_name,
    write,
)


class StoreConformance(KeepingConformance):
    """Everything a store can promise.

    Subclass it as ``class TestMine(StoreConformance)`` and say in `make_root` where an empty place is.
    """

    # -- CopiesWithin --------------------------------------------------------------------------------

    async def test_copy_within(self, sink: Sink) -> None:
        """Copies of any size are whole, carry the metadata, and every byte is reported once."""
        if not isinstance(sink, CopiesWithin):
            lacks(sink, CopiesWithin)
        assert sink.can_copy_from(sink)
        contents = {f"from/{size}": noise(size) for size in (0, 1, 70_000, 3_000_001)}
        for path, content in contents.items():
            await write(sink, path, content, like=like(path, mode=0o640))
        await write(sink, "to/1", b"an old file in the way")
        entries = [entry for entry in await listing(sink) if entry.kind == "file"]
        jobs = [
            CopyJob(entry, entry.path.replace("from", "to"))
            for entry in entries
            if entry.path in contents
        ]
        moved: list[int] = []
        assert await sink.copy_from(sink, jobs, WriteOptions(), moved.append) == [None] * len(jobs)
        assert sum(moved) == sum(map(len, contents.values()))
        for entry, path, _ in jobs:
            assert await read(sink, path) == contents[entry.path]
            copy = await sink.stat(path)
            assert (copy.size, copy.mtime_ns, copy.mode) == entry[2:5]

    async def test_copy_within_from_another_place(
        self, sink: Sink, root: tuple[Backend, Location]
    ) -> None:
        """Paths of a job are relative to the store they belong to; a missing place is made."""
        if not isinstance(sink, CopiesWithin):
            lacks(sink, CopiesWithin)
        await write(sink, "a/b", b"content")
        backend, location = root
        other = await backend.connect(location.child("other/place"), StoreOptions())
        assert isinstance(other, CopiesWithin)
        assert other.can_copy_from(sink)
        job = CopyJob(await sink.stat("a/b"), "c/d")
        assert await other.copy_from(sink, [job], WriteOptions(), ignore) == [None]
        await expect(sink, {"a/b": b"content", "other/place/c/d": b"content"})
        await other.aclose()

    async def test_copy_within_goes_on_after_a_failure(self, sink: Sink) -> None:
        """Every job has its own answer, with the errors of read and upload; old files stay."""
        if not isinstance(sink, CopiesWithin):
            lacks(sink, CopiesWithin)
        for path in ("changed", "good", "gone", "old"):
            await write(sink, path, b"content")
        entries = {entry.path: entry for entry in await listing(sink)}
        await write(sink, "changed", b"CONTENT", like=like("changed", mtime_ns=LATER))
        await sink.delete([entries["gone"]])
        jobs = [
            CopyJob(entries["changed"], "old"),
            CopyJob(entries["gone"], "new"),
            CopyJob(entries["good"], refused_name(sink)),
            CopyJob(entries["good"], "copy"),
        ]
        answers = await sink.copy_from(sink, jobs, WriteOptions(), ignore)
        kinds: tuple[type, ...] = (Changed, Vanished, NameRefused, type(None))
        for answer, kind in zip(answers, kinds, strict=True):
            assert isinstance(answer, kind)
        whole = b"content"
        await expect(sink, {"changed": b"CONTENT", "copy": whole, "good": whole, "old": whole})
        assert sorted(await self.traces(sink)) == ["changed", "copy", "good", "old"]

    @pytest.mark.parametrize("steps", [1, 4, 12])
    async def test_copy_within_that_is_cancelled(self, sink: Sink, steps: int) -> None:
        """Each file is there whole, or as it was (a server may still be at it), and nothing else is."""
        if not isinstance(sink, CopiesWithin):
            lacks(sink, CopiesWithin)
        contents = {f"from/{number}": noise(100_000, seed=number) for number in range(3)}
        for path, content in contents.items():
            await write(sink, path, content)
        await write(sink, "to/1", b"old")
        entries = [await sink.stat(path) for path in contents]
        jobs = [CopyJob(entry, entry.path.replace("from", "to")) for entry in entries]
        await cancelled(sink.copy_from(sink, jobs, WriteOptions(), ignore), steps)
        there = await files(sink)
        for path in there:
            found = await read(sink, path)
            whole = found == contents[path.replace("to/", "from/")]
            assert whole or (path, found) == ("to/1", b"old")
        assert {*contents, "to/1"} <= set(there)
        assert set(await self.traces(sink)) <= {*contents, *(job.path for job in jobs)}

    # -- KeepsDirectories ----------------------------------------------------------------------------

    async def test_make_directories(self, sink: Sink) -> None:
        """Directories are made, parents first, and listed; one that stands already is fine."""
        if not isinstance(sink, KeepsDirectories):
            lacks(sink, KeepsDirectories)
        wanted = [directory("a"), directory("a/b"), directory("a/b/c"), directory("d")]
        for _ in range(2):
            assert await sink.make_directories(wanted, WriteOptions()) == [None] * 4
        entries = await listing(sink)
        assert [(entry.path, entry.kind) for entry in entries] == [(e.path, "dir") for e in wanted]

    async def test_make_the_place_itself(self, sink: Sink, root: tuple[Backend, Location]) -> None:
        """The path "" is the location itself: it is made, with what is above it, and gets attributes."""
        if not isinstance(sink, KeepsDirectories):
            lacks(sink, KeepsDirectories)
        backend, location = root
        missing = await backend.connect(location.child("not/yet"), StoreOptions())
        assert isinstance(missing, KeepsDirectories)
        for _ in range(2):
            assert await missing.make_directories([directory("")], WriteOptions()) == [None]
        assert await listing(missing) == []
        if isinstance(missing, SetsAttributes):
            job = CopyJob(directory("")._replace(mtime_ns=LATER), "")
            assert await missing.set_attributes([job], WriteOptions()) == [None]
            step = missing.limits.mtime_step_ns
            assert step is None or (await missing.stat("")).mtime_ns == LATER - LATER % step
        await missing.aclose()

    async def test_directories_stay_writable(self, sink: Sink) -> None:
        """A directory whose mode forbids writing can be filled until the run gives it its mode."""
        if not isinstance(sink, KeepsDirectories):
            lacks(sink, KeepsDirectories)
        mode = 0o555
        assert await sink.make_directories([directory("d", mode)], WriteOptions()) == [None]
        await write(sink, "d/file", b"content")
        await expect(sink, {"d/file": b"content"})

    async def test_directories_in_the_way(self, sink: Sink) -> None:
        """A file in the way is Conflict, a name that leaves the root is refused, others are made."""
        if not isinstance(sink, KeepsDirectories):
            lacks(sink, KeepsDirectories)
        await write(sink, "file", b"content")
        wanted = [directory("file"), directory("../outside"), directory("fine")]
        conflict, refused, fine = await sink.make_directories(wanted, WriteOptions())
        assert isinstance(conflict, Conflict)
        assert isinstance(refused, NameRefused)
        assert fine is None
        assert [entry.path for entry in await listing(sink)] == ["file", "fine"]

    async def test_an_empty_directory_exists(
        self, sink: Sink, root: tuple[Backend, Location]
    ) -> None:
        """An empty directory is a place that exists and lists as empty."""
        if not isinstance(sink, KeepsDirectories):
            lacks(sink, KeepsDirectories)
        await sink.make_directories([directory("empty")], WriteOptions())
        empty = await root[0].connect(root[1].child("empty"), StoreOptions())
        assert await listing(empty) == []
        await empty.aclose()

    # -- KeepsLinks ----------------------------------------------------------------------------------

    @pytest.mark.parametrize("target", ["file", "../x/../y", "/etc/passwd", "no such", "tab\there"])
    async def test_make_links(self, sink: Sink, target: str) -> None:
        """A link's target is text: kept to the letter, wherever it points, and never followed."""
        if not isinstance(sink, KeepsLinks):
            lacks(sink, KeepsLinks)
        assert await sink.make_links([link("link", target)], WriteOptions()) == [None]
        (entry,) = await listing(sink)
        assert (entry.path, entry.kind, entry.target) == ("link", "link", target)
        agree_on = await sink.stat("link")
        assert (agree_on.kind, agree_on.target) == ("link", target)

    async def test_links_replace(self, sink: Sink) -> None:
        """A link replaces a file or a link; a directory in the way is Conflict."""
        if not isinstance(sink, KeepsLinks):
            lacks(sink, KeepsLinks)
        for path in ("d/file", "file"):
            await write(sink, path, b"content")
        await sink.make_links([link("link", "file")], WriteOptions())
        jobs = [link("link", "d/file"), link("file", "new"), link("d", "x"), link("../out", "x")]
        one, two, conflict, refused = await sink.make_links(jobs, WriteOptions())
        assert (one, two) == (None, None)
        assert isinstance(conflict, Conflict)
        assert isinstance(refused, NameRefused)
        targets = {entry.path: entry.target for entry in await listing(sink)}
        assert targets == {"d": None, "d/file": None, "file": "new", "link": "d/file"}

    async def test_scan_of_links(self, sink: Sink, root: tuple[Backend, Location]) -> None:
        """A link is itself, what it points to, or nothing, as the options say."""
        if not isinstance(sink, KeepsLinks):
            lacks(sink, KeepsLinks)
        await write(sink, "d/file", b"content")
        jobs = [link("to-dir", "d"), link("to-file", "d/file")]
        assert await sink.make_links(jobs, WriteOptions()) == [None, None]
        kept = {entry.path: entry.kind for entry in await listing(sink, ScanOptions(links="keep"))}
        assert kept == {"d": "dir", "d/file": "file", "to-dir": "link", "to-file": "link"}
        skipped = await listing(sink, ScanOptions(links="skip"))
        assert [entry.path for entry in skipped] == ["d", "d/file"]
        following = await root[0].connect(root[1], StoreOptions(follow_links=True))
        followed = await listing(following, ScanOptions(links="follow"))
        assert [(entry.path, entry.kind) for entry in followed] == [
            ("d", "dir"), ("d/file", "file"), ("to-dir", "dir"), ("to-dir/file", "file"),
            ("to-file", "file"),
        ]  # fmt: skip
        for entry in followed:
            if entry.kind == "file":
                assert (entry.size, entry.target) == (7, None)
                assert await collect(following.read(entry, 0, None)) == b"content"
        assert (await sink.stat("to-file", follow=True)).kind == "file"
        assert (await sink.stat("to-dir", follow=True)).kind == "dir"
        await following.aclose()

    async def test_reading_a_link(self, sink: Sink) -> None:
        """A file that became a link since it was listed is not read through it, unless links are."""
        if not isinstance(sink, KeepsLinks):
            lacks(sink, KeepsLinks)
        await write(sink, "d/file", b"content")
        await write(sink, "secret/file", b"content")
        entries = {entry.path: entry for entry in await listing(sink)}
        await sink.delete([entries["d/file"], entries["d"]])
        await sink.make_links([link("d", "secret")], WriteOptions())
        with pytest.raises(FastsyncError):
            await collect(sink.read(entries["d/file"], 0, None))

    async def test_links_that_cannot_be_followed(self, sink: Sink) -> None:
        """Under "follow", a link to nothing or in a circle is a fault, and the listing goes on and ends."""
        if not isinstance(sink, KeepsLinks):
            lacks(sink, KeepsLinks)
        await write(sink, "d/file", b"content")
        jobs = [link("d/up", ".."), link("lost", "nowhere"), link("self", "self")]
        assert await sink.make_links(jobs, WriteOptions()) == [None] * 3
        entries, faults = await listing_and_faults(sink, ScanOptions(links="follow"))
        assert [entry.path for entry in entries if entry.kind == "file"] == ["d/file"]
        assert {"lost", "self"} <= {fault.path for fault in faults}
        assert any(fault.path.startswith("d/up") for fault in faults)

    async def test_writing_through_a_link(self, sink: Sink, root: tuple[Backend, Location]) -> None:
        """A link below the root is never followed by what writes or deletes: nothing outside changes."""
        if not isinstance(sink, KeepsLinks):
            lacks(sink, KeepsLinks)
        await write(sink, "outside/victim", b"content")
        backend, location = root
        inner = await backend.connect(location.child("root"), StoreOptions())
        assert isinstance(inner, Sink)
        assert isinstance(inner, KeepsLinks)
        await write(inner, "file", b"content")
        await inner.make_links([link("door", "../outside")], WriteOptions())
        for path in ("door/intruder", "door/victim", "door/a/b"):
            with pytest.raises((NameRefused, Conflict)):
                await write(inner, path, b"intruder")
        await inner.delete([like("door/victim")])
        wanted: list[object] = []
        if isinstance(inner, KeepsDirectories):
            wanted += await inner.make_directories([directory("door/new")], WriteOptions())
        if isinstance(inner, SetsAttributes):
            job = CopyJob(like("door/victim", mode=0o600), "door/victim")
            wanted += await inner.set_attributes([job], WriteOptions())
        wanted += await inner.make_links([link("door/link", "x")], WriteOptions())
        assert all(isinstance(answer, FastsyncError) for answer in wanted)
        await expect(sink, {"outside/victim": b"content", "root/file": b"content"})
        traces = ["outside/victim", "root/door", "root/file"]
        assert sorted(await self.traces(sink)) == traces
        await inner.aclose()

    async def test_a_link_in_the_way(self, sink: Sink) -> None:
        """A file that goes where a link stands replaces the link; deleting a link leaves its target."""
        if not isinstance(sink, KeepsLinks):
            lacks(sink, KeepsLinks)
        await write(sink, "target", b"content")
        await sink.make_links([link("a", "target"), link("b", "target")], WriteOptions())
        await write(sink, "a", b"new")
        assert await sink.delete([await sink.stat("b")]) == [None]
        await expect(sink, {"a": b"new", "target": b"content"})

    # -- SetsAttributes ------------------------------------------------------------------------------

    async def test_set_attributes(self, sink: Sink) -> None:
        """Time and mode change, of files and directories; content does not."""
        if not isinstance(sink, SetsAttributes):
            lacks(sink, SetsAttributes)
        await write(sink, "d/file", b"content")
        wanted = [
            CopyJob(entry._replace(mtime_ns=LATER, mode=0o750), entry.path)
            for entry in await listing(sink)
        ]
        assert await sink.set_attributes(wanted, WriteOptions()) == [None] * len(wanted)
        for _, path, _ in wanted:
            entry = await sink.stat(path)
            if (step := sink.limits.mtime_step_ns) is not None:
                assert entry.mtime_ns == LATER - LATER % step
            if sink.limits.mode_mask:
                assert entry.mode == 0o750 & sink.limits.mode_mask
        await expect(sink, {"d/file": b"content"})

    async def test_set_only_what_is_asked(self, sink: Sink) -> None:
        """Attributes that the options do not keep stay as they are, special bits among them."""
        if not isinstance(sink, SetsAttributes):
            lacks(sink, SetsAttributes)
        mask = kept_mode(sink.limits)
        await write(sink, "file", b"content")
        job = CopyJob(like("file", mtime_ns=LATER, mode=0o4700), "file")
        before = await sink.stat("file")
        await sink.set_attributes([job], WriteOptions(mtime=False))
        after = await sink.stat("file")
        assert (after.mtime_ns, after.mode) == (before.mtime_ns, 0o700 & mask)
        await sink.set_attributes([job], WriteOptions(mode=False))
        assert (await sink.stat("file")).mode == after.mode
        await sink.set_attributes([job], WriteOptions(special=True))
        assert (await sink.stat("file")).mode == 0o4700 & mask

    async def test_set_attributes_of_nothing(self, sink: Sink) -> None:
        """What is not there is NotFound, what leaves the root is refused, and the others are done."""
        if not isinstance(sink, SetsAttributes):
            lacks(sink, SetsAttributes)
        await write(sink, "file", b"content")
        jobs = [
            CopyJob(like(path, mtime_ns=LATER), path)
            for path in ("gone", refused_name(sink), "file")
        ]
        gone, refused, done = await sink.set_attributes(jobs, WriteOptions())
        assert isinstance(gone, NotFound)
        assert isinstance(refused, NameRefused)
        assert done is None

    # -- abilities of uploads ------------------------------------------------------------------------

    async def test_write_from_file(self, sink: Sink, scratch: int) -> None:
        """WritesFromFile: ranges are taken from their own offsets, and every byte is reported once."""
        upload = await begin(sink, "file")
        if not isinstance(upload, WritesFromFile):
            await upload.abort()
            lacks(upload, WritesFromFile)
        part = part_size(sink)
        content = noise(3 * part + 5)
        os.pwrite(scratch, content, 0)
        moved: list[int] = []
        for start in (2 * part, 0, 3 * part, part):
            stop = min(start + part, len(content))
            await upload.write_from_file(start, stop, scratch, moved.append)
        await upload.commit(len(content))
        assert sum(moved) == len(content)
        await expect(sink, {"file": content})

    async def test_write_from_a_file_that_ends(self, sink: Sink, scratch: int) -> None:
        """WritesFromFile: a file that ends too soon is Changed."""
        upload = await begin(sink, "file")
        if not isinstance(upload, WritesFromFile):
            await upload.abort()
            lacks(upload, WritesFromFile)
        os.pwrite(scratch, b"content", 0)
        with pytest.raises(Changed):
            await upload.write_from_file(0, 8, scratch, ignore)
        await upload.abort()
        assert await files(sink) == []
        assert list(await self.traces(sink)) == []

    async def test_write_by_descriptor(self, sink: Sink) -> None:
        """LocalUpload: what is written to the descriptor, and told, is the file once it is committed."""
        upload = await begin(sink, "file")
        if not isinstance(upload, LocalUpload):
            await upload.abort()
            lacks(upload, LocalUpload)
        content = noise(100_000)
        for start, stop in ((50_000, 100_000), (0, 50_000)):
            os.pwrite(upload.fileno(), content[start:stop], start)
            upload.covers(start, stop)
        assert await files(sink) == []
        await upload.commit(len(content))
        await expect(sink, {"file": content})

    async def test_a_gap_by_descriptor(self, sink: Sink) -> None:
        """LocalUpload: what was not told was not written."""
        upload = await begin(sink, "file")
        if not isinstance(upload, LocalUpload):
            await upload.abort()
            lacks(upload, LocalUpload)
        os.pwrite(upload.fileno(), b"content", 0)
        upload.covers(0, 3)
        upload.covers(4, 7)
        with pytest.raises(IntegrityError):
            await upload.commit(7)
        assert list(await self.traces(sink)) == []
