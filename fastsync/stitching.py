"""One large file that the sink copies by itself, in parts: written down and gone on with, as uploads are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from fastsync.backend import (
    CopiesParts,
    CopiesRanges,
    CopyJob,
    Entry,
    Progress,
    Sink,
    Source,
    Upload,
    WriteOptions,
    offers,
)
from fastsync.errors import IntegrityError
from fastsync.patience import persistently
from fastsync.resuming import Once, Unfinished, Version, begin, lasting
from fastsync.transfer import Lanes, parts
from fastsync.workers import run_all


def copies_in_parts(source: Source, sink: Sink, entry: Entry) -> bool:
    """True for what the sink copies by itself, but not in one call."""
    return offers(sink, CopiesParts) and sink.copy_part_size(source, entry) is not None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _Copying:
    """See `resuming.Beginning`."""

    sink: CopiesParts
    source: Source
    job: CopyJob
    options: WriteOptions
    part_size: int

    def foresee(self) -> str | None:
        return self.sink.foresee_upload(self.job.path, self.job.entry, self.options, self.part_size)

    async def upload(self) -> Upload:
        return await self.sink.upload_copy(self.source, self.job, self.options, self.part_size)

    async def resume(self, left: Unfinished) -> Upload | None:
        return await self.sink.resume_copy(
            left.ticket, self.source, self.job, self.options, self.part_size
        )


async def copy_in_parts(
    source: Source,
    sink: Sink,
    job: CopyJob,
    options: WriteOptions,
    lanes: Lanes,
    progress: Progress,
) -> None:
    """Copy a file for which `copies_in_parts` holds. Raises as `transfer` does, and leaves as little."""
    entry, size = job.entry, job.entry.size
    copier: Source = sink
    assert offers(copier, CopiesParts)
    part_size = copier.copy_part_size(source, entry)
    assert part_size is not None
    assert size is not None
    place, version = lasting(source).child(entry.path), None
    if options.resumable and entry.version is not None:
        version = Version(str(place), entry.version, size)
    options = dataclasses.replace(options, resumable=version is not None and lanes.log is not None)
    how = _Copying(copier, source, job, options, part_size)
    trace = await persistently(
        lambda: begin(sink, job.path, how, place, version, lanes.log), lanes.may_retry
    )
    upload = trace.upload
    assert offers(upload, CopiesRanges)

    async def part(start: int, stop: int) -> None:
        once = Once(progress, trace, start)

        async def copy() -> None:
            once.restart()
            async with lanes.streams.spend(1):
                await upload.copy_range(start, stop, once)

        await persistently(copy, lanes.may_retry)

    async with trace.ending():
        await run_all(lanes.streams.limit, (part(*one) for one in parts(size, part_size)))
        made = await persistently(lambda: upload.commit(size), lanes.may_retry)
    if made.size != size:
        raise IntegrityError(f"{size} bytes were copied, the store has {made.size}", where=job.path)
