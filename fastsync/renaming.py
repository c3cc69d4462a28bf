"""Moving within one store: another name, where that is all it takes."""

from __future__ import annotations

from fastsync.backend import CopyJob, MovesWithin, Sink, Source, offers
from fastsync.engine import Engine
from fastsync.errors import FastsyncError, NotFound
from fastsync.session import Session
from fastsync.works import Part, Works


async def rename(session: Session, works: Works, engine: Engine) -> None:
    """Rename what can be, and take it out of `works`. A directory goes as a whole, where nothing has its
    name at the destination. What a store does not want to rename is left to be copied. A dry run takes
    it that a store wants to."""
    settings = session.request.settings
    is_plain = not (
        settings.ignore_existing
        or settings.existing
        or settings.update
        or settings.checksum
        or settings.size_only
        or settings.backup_dir
        or settings.manifest
        or settings.durable
        or settings.links != "keep"
        or session.files is not None
        or not session.request.filter().is_empty
    )
    if not is_plain:
        return
    for part in list(works.parts):
        if part.files is not None:
            await _rename_files(part, works, engine, settings.dry_run)
            if part.files:
                continue
        elif part.wild is not None or not await _rename_tree(session, part, engine):
            continue
        works.parts.remove(part)


async def _rename_files(part: Part, works: Works, engine: Engine, dry_run: bool) -> None:
    source, sink = part.source, part.sink
    mover = _mover(sink, source)
    if part.files is None or mover is None:
        return
    jobs = [
        CopyJob(entry, works.name_at(part, entry), standing)
        for entry, standing in part.files
        if standing is None or standing.kind == "file"
    ]
    answers = [None] * len(jobs) if dry_run else await mover.move_from(source, jobs)
    moved = {job.entry.path for job, error in zip(jobs, answers, strict=True) if error is None}
    for job in jobs:
        if job.entry.path in moved:
            places = source.location.child(job.entry.path), sink.location.child(job.path)
            engine.renamed(job.entry, *places)
    part.files[:] = [pair for pair in part.files if pair[0].path not in moved]


async def _rename_tree(session: Session, part: Part, engine: Engine) -> bool:
    """True when it is done."""
    ours, theirs = part.source.location, part.sink.location
    if ours.is_directory_like or not ours.name or not theirs.name:
        return False  # the contents alone, or what has no name
    source = await session.open(ours.parent())
    sink = await session.open_sink(theirs.parent())
    mover = _mover(sink, source)
    if mover is None:
        return False
    try:
        entry = await source.stat(ours.name)
        if entry.kind != "dir" or await _stands(sink, theirs.name):
            return False
    except FastsyncError:
        return False  # whoever copies it will say what is wrong
    if not session.request.settings.dry_run:
        (error,) = await mover.move_from(source, [CopyJob(entry, theirs.name)])
        if error is not None:
            return False
    engine.renamed(entry, ours, theirs)
    return True


async def _stands(sink: Sink, name: str) -> bool:
    try:
        await sink.stat(name)
    except NotFound:
        return False
    return True


def _mover(sink: Sink, source: Source) -> MovesWithin | None:
    return sink if offers(sink, MovesWithin) and sink.can_move_from(source) else None
