"""Copying: `cp` and `sync`, from what was asked for to the end of the run."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

from fastsync.errors import (
    IntegrityError,
    Missing,
    PermissionRefused,
    Transient,
    UsageError,
)
from fastsync.events import Totals
from fastsync.location import Location
from fastsync.session import (
    Place,
    Request,
    Session,
    all_located,
    located,
    named,
    passes_over,
    untrusted,
)
from fastsync.settings import Settings
from fastsync.tally import Summary
from fastsync.wildcards import find
from fastsync.work import Record, Work
from fastsync.works import (
    Works,
    comparison_for,
    engine_for,
    file,
    into,
    is_directory,
    refuse_list,
    tree,
)

if TYPE_CHECKING:
    from fastsync.manifest import Manifest


async def run_sync(
    source: Place,
    destination: Place,
    request: Request,
    *,
    reads_content: bool = False,
    record: Record | None = None,
    watch: Callable[[Work], Work] = lambda work: work,
) -> Summary:
    """Make `destination` like `source`. `reads_content` compares contents by reading both sides, whatever
    digests they could tell; `record` writes down what a dry run would do, `watch` sees the work before.
    Raises UsageError before anything is touched, ListingError when the source does not exist or a listing
    cannot be trusted."""
    location, target = located(source), located(destination)
    if location.is_stream or target.is_stream:
        raise UsageError("standard input and output are no trees", hint="name a directory")
    settings = request.settings
    follow = settings.links == "follow"
    wild = None if settings.raw else find(location)
    async with Session(request) as session:
        if wild is not None:
            store = await session.open(wild.base, follow=follow)
            work = await tree(session, store, target, is_sync=True, wild=wild)
        else:
            store = await session.open(location, follow=follow)
            try:
                entry = await named(session, store)
            except (Transient, IntegrityError, PermissionRefused) as error:
                raise untrusted(error, store) from error
            except Missing as error:
                if passes_over(request, location, error):
                    return Summary(Totals())
                raise Missing(
                    "the source does not exist", where=str(location), hint="nothing was deleted"
                ) from error
            if entry.kind == "dir":
                work = await tree(session, store, target, is_sync=True, root=entry)
            else:
                refuse_list(session, location)
                if target.is_directory_like or await is_directory(session, target):
                    target = into(target, location)
                work = await file(session, store, target)
        work.reads_content = reads_content
        async with _manifest(settings, target) as manifest:
            if manifest is not None:
                manifest.watch(work)
            summary = await engine_for(session, record).run(_several([watch(work)]))
            if manifest is not None:
                await manifest.write()
        summary.comparison = comparison_for(settings, store, work.sink)
        return summary


async def run_cp(
    sources: Place | Sequence[Place],
    destination: Place,
    request: Request,
) -> Summary:
    """Copy files, and directories with ``recursive``. Raises UsageError before anything is touched."""
    locations, target = all_located(sources), located(destination)
    if not locations:
        raise UsageError("no source given")
    if target.is_stream:
        from fastsync.ordered import run_cat  # what few copies need

        return await run_cat(locations, request, 1)
    if any(location.is_stream for location in locations):
        if len(locations) > 1:
            raise UsageError("standard input cannot be one of several sources")
        from fastsync.piping import run_pipe

        return await run_pipe(target, request)
    async with Session(request) as session:
        engine = engine_for(session)
        works = Works(session, target)
        await works.add_all(locations, engine.unusable)
        async with _manifest(request.settings, target) as manifest:
            made = works.made()
            if manifest is not None:
                made = _each(made, manifest.watch)
            summary = await engine.run(made)
            if manifest is not None:
                await manifest.write()
        summary.comparison = works.comparison
        return summary


@contextlib.asynccontextmanager
async def _manifest(settings: Settings, target: Location) -> AsyncIterator[Manifest | None]:
    """What the run is to write down, if anything. Raises UsageError."""
    if settings.manifest is None or settings.dry_run:
        yield None
        return
    from fastsync.manifest import Manifest  # for those who ask for it

    manifest = Manifest(settings.manifest, target)
    try:
        yield manifest
    finally:
        manifest.close()


async def _each(works: AsyncIterator[Work], seen: Callable[[Work], Work]) -> AsyncIterator[Work]:
    async for work in works:
        yield seen(work)


async def _several(works: Sequence[Work]) -> AsyncIterator[Work]:
    for work in works:
        yield work
