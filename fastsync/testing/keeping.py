"""What a store promises that keeps more than contents, times and modes: owners, extended attributes, several
names of one file, uploads for later, versions, places that have to be made."""

from __future__ import annotations

import os

from fastsync.backend import (
    CopyJob,
    CreatesPlaces,
    FindsLeftovers,
    FindsUploads,
    FoldsNames,
    ForeseesUploads,
    KeepsVersions,
    KeepsXattrs,
    Leavable,
    MakesHardLinks,
    MovesWithin,
    Owner,
    Rechecks,
    ResumesUploads,
    ScanOptions,
    SetsAttributes,
    SignsLinks,
    Sink,
    TellsAncestry,
    TellsFileIds,
    TellsHardLinks,
    WriteOptions,
)
from fastsync.errors import (
    Conflict,
    FastsyncError,
    NotFound,
    TicketRefused,
    Unsupported,
    UsageError,
)
from fastsync.testing.batches import BatchConformance
from fastsync.testing.vocabulary import (
    LATER,
    begin,
    expect,
    files,
    lacks,
    like,
    listing,
    noise,
    part_size,
    read,
    write,
)

_RESUMABLE = WriteOptions(resumable=True)


class KeepingConformance(BatchConformance):
    # -- owners --------------------------------------------------------------------------------------

    async def test_owners(self, sink: Sink) -> None:
        """They are listed and kept when that is asked for, and only then; ours can be given to anything."""
        await write(sink, "a", b"content")
        (entry,) = await listing(sink, ScanOptions(owner=True))
        if entry.owner is None:
            lacks(sink, Owner)
        assert (await listing(sink))[0].owner is None
        if not isinstance(sink, SetsAttributes):
            lacks(sink, SetsAttributes)
        job = CopyJob(entry, entry.path)
        assert await sink.set_attributes([job], WriteOptions(owner=True)) == [None]
        (again,) = await listing(sink, ScanOptions(owner=True))
        assert again.owner == entry.owner

    # -- KeepsXattrs ---------------------------------------------------------------------------------

    async def test_xattrs(self, sink: Sink) -> None:
        """A path has exactly those that were written last, and each has its own answer."""
        if not isinstance(sink, KeepsXattrs):
            lacks(sink, KeepsXattrs)
        await write(sink, "a", b"content")
        await write(sink, "d/b", b"content")
        wanted = {"user.one": b"1", "user.two": bytes(range(256))}
        first, gone = await sink.write_xattrs([("a", wanted), ("gone", wanted)])
        if isinstance(first, Unsupported):
            lacks(sink, KeepsXattrs)
        assert first is None
        assert isinstance(gone, NotFound)
        assert await sink.write_xattrs([("a", {"user.one": b""}), ("d", wanted)]) == [None, None]
        entries = {entry.path: entry for entry in await listing(sink)}
        found = await sink.read_xattrs([entries["a"], entries["d"], entries["d/b"]])
        assert [dict(one) for one in found if not isinstance(one, FastsyncError)] == [
            {"user.one": b""},
            wanted,
            {},
        ]
        assert await read(sink, "a") == b"content"
        await sink.delete([entries["a"]])
        assert isinstance((await sink.read_xattrs([entries["a"]]))[0], FastsyncError)

    # -- MakesHardLinks, TellsHardLinks ----------------------------------------------------------------

    async def test_hard_links(self, sink: Sink) -> None:
        """A second name shows the first one's content, whatever stood there; each pair has its answer."""
        if not isinstance(sink, MakesHardLinks):
            lacks(sink, MakesHardLinks)
        await write(sink, "a", b"content")
        await write(sink, "old", b"in the way")
        answers = await sink.make_hard_links(
            [("a", "b"), ("gone", "c"), ("a", "d/e"), ("a", "old"), ("a", "b")]
        )
        if isinstance(answers[0], Unsupported):
            lacks(sink, MakesHardLinks)
        assert [answer is None for answer in answers] == [True, False, True, True, True]
        content = b"content"
        await expect(sink, {"a": content, "b": content, "d/e": content, "old": content})
        await write(sink, "b", b"another")
        assert await read(sink, "a") == content

    async def test_identities_of_hard_links(self, sink: Sink) -> None:
        """The names of one file have one identity, which no other file has; a single name needs none."""
        if not isinstance(sink, MakesHardLinks):
            lacks(sink, MakesHardLinks)
        if not isinstance(sink, TellsHardLinks):
            lacks(sink, TellsHardLinks)
        for path in ("a", "b", "single"):
            await write(sink, path, b"content")
        assert await sink.make_hard_links([("a", "a2"), ("b", "b2")]) == [None, None]
        entries = await listing(sink)
        told = dict(
            zip([e.path for e in entries], await sink.link_identities(entries), strict=True)
        )
        assert told["a"] == told["a2"] is not None
        assert told["b"] == told["b2"] != told["a"]
        assert told["single"] is None

    # -- MovesWithin -----------------------------------------------------------------------------------

    async def test_move_within(self, sink: Sink) -> None:
        """A file replaces what stands there, a directory takes all along; what changed stays where it is."""
        if not isinstance(sink, MovesWithin):
            lacks(sink, MovesWithin)
        assert sink.can_move_from(sink)
        for path in ("a", "changed", "d/b", "gone", "old"):
            await write(sink, path, path.encode())
        entries = {entry.path: entry for entry in await listing(sink)}
        await write(sink, "changed", b"by somebody", like=like("changed", mtime_ns=LATER))
        await sink.delete([entries["gone"]])
        jobs = [
            CopyJob(entries["a"], "old", entries["old"]),
            CopyJob(entries["changed"], "new"),
            CopyJob(entries["gone"], "new"),
            CopyJob(entries["d"], "e"),
        ]
        answers = await sink.move_from(sink, jobs)
        assert [answer is None for answer in answers] == [True, False, False, True]
        await expect(sink, {"changed": b"by somebody", "e/b": b"d/b", "old": b"a"})
        assert (await sink.stat("old")).mtime_ns == entries["a"].mtime_ns

    # -- TellsAncestry ---------------------------------------------------------------------------------

    async def test_ancestry(self, sink: Sink) -> None:
        """The place first, what is above it behind, and everything once."""
        if not isinstance(sink, TellsAncestry):
            lacks(sink, TellsAncestry)
        await write(sink, "a", b"content")
        found = sink.ancestry()
        assert len(found) > 1
        assert None not in found
        assert len(set(found)) == len(found)
        assert sink.ancestry() == found

    # -- TellsFileIds ----------------------------------------------------------------------------------

    async def test_file_ids(self, sink: Sink) -> None:
        """The same as long as the file is, and another for one that took its place; none for nothing."""
        if not isinstance(sink, TellsFileIds):
            lacks(sink, TellsFileIds)
        for path in ("a", "b"):
            await write(sink, path, b"content")
        entries = [entry for entry in await listing(sink) if entry.kind == "file"]
        first, second = await sink.file_ids(entries)
        assert None not in (first, second)
        assert first != second
        assert await sink.file_ids(entries) == [first, second]
        await write(sink, "a", b"CONTENT")
        await sink.delete(entries[1:])
        other, gone = await sink.file_ids(entries)
        assert other not in (None, first)
        assert gone is None

    # -- Leavable, ResumesUploads ----------------------------------------------------------------------

    async def test_an_upload_goes_on(self, sink: Sink) -> None:
        """What was left is invisible, and complete with what it lacks."""
        if not isinstance(sink, ResumesUploads):
            lacks(sink, ResumesUploads)
        part = part_size(sink)
        content = noise(2 * part + 1)
        entry = like("a")._replace(size=len(content))
        upload = await sink.upload("a", entry, _RESUMABLE, part)
        assert isinstance(upload, Leavable)
        await upload.write(0, content[:part])
        ticket = upload.ticket
        assert ticket is not None
        await upload.leave()
        await upload.leave()
        assert await files(sink) == []
        again = await sink.resume_upload(ticket, "a", entry, _RESUMABLE, [(0, part)])
        assert again is not None
        if isinstance(again, Rechecks):
            assert again.part_size == part
            assert not await again.has(0, bytes(part))
            if not await again.has(0, content[:part]):  # some servers tell of no digest
                await again.write(0, content[:part])
            assert not await again.has(part, content[part : 2 * part])
        await again.write(part, content[part : 2 * part])
        await again.write(2 * part, content[2 * part :])
        assert (await again.commit(len(content))).size == len(content)
        await expect(sink, {"a": content})
        assert await sink.resume_upload(ticket, "a", entry, _RESUMABLE, [(0, part)]) is None

    async def test_an_upload_that_is_dropped(self, sink: Sink) -> None:
        """Nothing is left of it, which can be asked for twice; somebody else's ticket is refused."""
        if not isinstance(sink, ResumesUploads):
            lacks(sink, ResumesUploads)
        part = part_size(sink)
        entry = like("a")._replace(size=2 * part)
        upload = await sink.upload("a", entry, _RESUMABLE, part)
        assert isinstance(upload, Leavable)
        await upload.write(0, noise(part))
        ticket = upload.ticket
        assert ticket is not None
        await upload.leave()
        await sink.drop_upload(ticket)
        await sink.drop_upload(ticket)
        assert await sink.resume_upload(ticket, "a", entry, _RESUMABLE, [(0, part)]) is None
        assert await self.traces(sink) == []
        try:
            await sink.drop_upload("not a ticket")
        except TicketRefused:
            return
        raise AssertionError("a ticket of another store was taken")

    # -- what only some places have --------------------------------------------------------------------

    async def test_a_place_that_exists_is_not_made(self, sink: Sink) -> None:
        """Nor is one that nobody can make by itself."""
        if not isinstance(sink, CreatesPlaces):
            lacks(sink, CreatesPlaces)
        await write(sink, "a", b"content")
        try:
            await sink.create_place()
        except (Conflict, UsageError):
            await expect(sink, {"a": b"content"})
            return
        raise AssertionError("it was made twice")

    async def test_versions(self, sink: Sink) -> None:
        """Of each file one is the current one, the newest first; whether there are older ones is the
        place's matter."""
        if not isinstance(sink, KeepsVersions):
            lacks(sink, KeepsVersions)
        for path, content in (("a", b"1"), ("a", b"22"), ("d/b", b"333")):
            await write(sink, path, content)
        listed = []
        try:
            async for page in sink.scan_versions(ScanOptions()):
                listed += page
        except Unsupported:
            lacks(sink, KeepsVersions)
        latest = [(one.entry.path, one.entry.size) for one in listed if one.is_latest]
        assert latest == [("a", 2), ("d/b", 3)]
        assert [one.entry.path for one in listed] == sorted(one.entry.path for one in listed)

    async def test_a_signed_link(self, sink: Sink) -> None:
        """It names the file, and for how long is part of what is signed."""
        if not isinstance(sink, SignsLinks):
            lacks(sink, SignsLinks)
        await write(sink, "a b", b"content")
        short, long = await sink.presign("a b", 60), await sink.presign("a b", 3600)
        assert short.startswith(("http://", "https://"))
        assert "a%20b?" in short
        assert short != long

    # -- FoldsNames ------------------------------------------------------------------------------------

    async def test_names_that_are_one(self, sink: Sink) -> None:
        """Whether case counts is known without writing anything."""
        if not isinstance(sink, FoldsNames):
            lacks(sink, FoldsNames)
        folds = await sink.folds_names()
        assert await self.traces(sink) == []
        await write(sink, "a", b"content")
        await write(sink, "A", b"another")
        assert not folds or len(await files(sink)) == 1

    # -- FindsLeftovers --------------------------------------------------------------------------------

    async def test_leftovers(self, sink: Sink) -> None:
        """What an upload under way has there is ours, and after its end there is nothing."""
        if not isinstance(sink, FindsLeftovers):
            lacks(sink, FindsLeftovers)
        upload = await begin(sink, "d/file")
        await upload.write(0, noise(part_size(sink)))
        found = [leftover async for page in sink.find_leftovers() for leftover in page]
        assert {(leftover.state, leftover.pid) for leftover in found} <= {("running", os.getpid())}
        await upload.abort()
        assert [leftover async for page in sink.find_leftovers() for leftover in page] == []

    # -- ForeseesUploads -------------------------------------------------------------------------------

    async def test_foreseen_uploads(self, sink: Sink) -> None:
        """What an upload came to is found by what was foreseen of it, unless somebody is at work on it."""
        if not isinstance(sink, ForeseesUploads):
            lacks(sink, ForeseesUploads)
        part = part_size(sink)
        entry = like("a")._replace(size=2 * part)
        foreseen = sink.foresee_upload("a", entry, _RESUMABLE, part)
        if foreseen is None:
            lacks(sink, ForeseesUploads)
        assert foreseen.isprintable()
        upload = await sink.upload("a", entry, _RESUMABLE, part)
        assert isinstance(upload, Leavable)
        ticket = upload.ticket
        assert ticket is not None
        assert await sink.find_foreseen(foreseen, [ticket]) == []
        assert await sink.find_foreseen(ticket, []) == [ticket]
        (found,) = await sink.find_foreseen(foreseen, [])
        await sink.drop_upload(found)
        assert await sink.find_foreseen(foreseen, []) == []
        await upload.abort()

    # -- FindsUploads ----------------------------------------------------------------------------------

    async def test_unfinished_uploads(self, sink: Sink) -> None:
        """All that were begun are found, but for those that are known."""
        if not isinstance(sink, FindsUploads):
            lacks(sink, FindsUploads)
        part = part_size(sink)
        tickets = {}
        for path in ("a", "deep/b"):
            upload = await sink.upload(path, like(path)._replace(size=2 * part), _RESUMABLE, part)
            assert isinstance(upload, Leavable)
            assert upload.ticket is not None
            tickets[path] = upload.ticket
            await upload.leave()
        pages = [page async for page in sink.find_uploads([tickets["a"]])]
        assert [found.path for page in pages for found in page] == ["deep/b"]
        pages = [page async for page in sink.find_uploads([])]
        found = {upload.path: upload.ticket for page in pages for upload in page}
        assert found.keys() == tickets.keys()
        for ticket in found.values():
            await sink.drop_upload(ticket)
        assert [found async for page in sink.find_uploads([]) for found in page] == []
