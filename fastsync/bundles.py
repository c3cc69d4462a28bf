"""Single files that are copied between the same two directories, each under a name of its own: looked for in
one listing of each side, and copied together, as a tree is.

What turns out to be anything but a file in the place of a file, or of nothing, is handed back.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from typing import Final

from fastsync.backend import Entry, ScanOptions, Source, closing
from fastsync.errors import FastsyncError, NotFound
from fastsync.location import Location
from fastsync.session import Request, Session
from fastsync.tally import Summary
from fastsync.wildcards import find
from fastsync.work import Work
from fastsync.works import engine_for, files

# Fewer names are looked at one by one.
LISTED_FROM: Final = 16
# A listing is given up that has more to it than what is looked for.
_MOST_LISTED: Final = 1000
_MOST_FOR_EACH: Final = 4


@dataclass(slots=True, eq=False, repr=False)
class Bundle:
    """Two directories, and what goes from one to the other: the name there by the name here."""

    request: Request
    source: Location
    target: Location
    names: dict[str, str] = field(default_factory=dict)


def directories_of(
    request: Request, source: Location, target: Location
) -> tuple[Location, Location] | None:
    """Between which directories a copy of `source` to `target` goes, if files are all that stands there;
    None for what cannot be one of a bundle."""
    settings = request.settings
    if settings.files_from is not None or settings.backup_dir is not None or settings.manifest:
        return None
    for place in (source, target):
        if place.stands_alone or place.name in ("", ".", ".."):
            return None
    if not settings.raw and find(source) is not None:
        return None
    return source.parent(), target.parent()


async def run_bundle(bundle: Bundle, request: Request) -> tuple[Summary, list[str]]:
    """Copy what is a file; what was done, and the names of what has to be looked at by itself. Raises what
    opening the places raises."""
    settings = request.settings
    async with Session(request) as session:
        source = await session.open(bundle.source, follow=True)
        sink = await session.open_sink(bundle.target)
        # Between buckets, which have no directories of their own, names have slashes in them.
        is_deep = any("/" in name for name in (*bundle.names, *bundle.names.values()))
        options = ScanOptions(
            recursive=is_deep,
            owner=settings.owner,
            missing_ok=True,
            details=not settings.ignore_times,
            raw=is_deep,
        )
        links = dataclasses.replace(
            options, links="follow" if settings.links == "follow" else "keep"
        )
        width = settings.jobs
        ours, theirs = await asyncio.gather(
            _found(source, bundle.names, links, width),
            _found(sink, set(bundle.names.values()), options, width),
        )
        pairs: list[tuple[Entry, Entry | None]] = []
        alone: list[str] = []
        for name, to in bundle.names.items():
            entry = ours.get(name)
            standing = theirs.get(to)
            is_known = to in theirs and (standing is None or standing.kind == "file")
            if entry is not None and entry.kind == "file" and is_known:
                pairs.append((entry, standing))
            else:
                alone.append(name)
        renamed = any(name != to for name, to in bundle.names.items())
        work = files(request, source, sink, pairs, bundle.names.__getitem__ if renamed else None)
        return await engine_for(session).run(_one(work)), alone


async def _one(work: Work) -> AsyncIterator[Work]:
    yield work


async def _found(
    store: Source, names: Collection[str], options: ScanOptions, width: int
) -> dict[str, Entry | None]:
    """What stands at these names, None for nothing; those that cannot be told are not in the answer."""
    # Not all that is on a disk; of what has no directories, a listing knows where to begin.
    if len(names) >= LISTED_FROM and (store.limits.raw_names or not options.recursive):
        listed = await _listed(store, names, options)
        if listed is not None:
            return listed
    found: dict[str, Entry | None] = {}

    async def look(name: str) -> None:
        try:
            found[name] = await store.stat(name)
        except NotFound:
            found[name] = None
        except FastsyncError:
            pass  # who looks again hears of it

    waiting = iter(names)

    async def worker() -> None:
        for name in waiting:
            await look(name)

    await asyncio.gather(*(worker() for _ in range(min(width, len(names)))))
    return found


async def _listed(
    store: Source, names: Collection[str], options: ScanOptions
) -> dict[str, Entry | None] | None:
    """See `_found`; None for a listing that is too long, or cannot be had."""
    found: dict[str, Entry | None] = dict.fromkeys(names)
    start = os.path.commonprefix(list(names))  # noqa: RUF071 - of names, no paths
    left = _MOST_LISTED + _MOST_FOR_EACH * len(found)
    options = dataclasses.replace(options, starting_with=start)
    try:
        async with closing(store.scan(options)) as pages:
            async for page in pages:
                left -= len(page.entries)
                if page.faults or left < 0:
                    return None
                for entry in page.entries:
                    # A store may have a file and a directory of one name; the file goes first.
                    path, kind, *_ = entry
                    if path in found and (found[path] is None or kind == "file"):
                        found[path] = entry
                    while options.recursive and (path := path.rpartition("/")[0]):
                        if path in found and found[path] is None:
                            found[path] = Entry(path, "dir", None, None)
    except FastsyncError:
        return None
    return found
