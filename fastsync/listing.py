"""Looking without touching: what is at a place, below it, and how much of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import NamedTuple

from fastsync.backend import (
    Describes,
    Entry,
    Fault,
    KeepsVersions,
    ListedVersion,
    Page,
    ScanOptions,
    Source,
    closing,
    offers,
)
from fastsync.errors import (
    Conflict,
    FastsyncError,
    ListingError,
    NotFound,
    UsageError,
    caused,
)
from fastsync.location import Location
from fastsync.session import Place, Request, Session, located, missing, untrusted, whole
from fastsync.wildcards import Wildcard, find, something


def wildcard(location: Location, request: Request) -> Wildcard | None:
    """The wildcards of a place, unless they are to be taken for what they are."""
    if location.is_stream:
        raise UsageError("standard input and output are no places to look at", where="-")
    return None if request.settings.raw else find(location)


async def _standing(store: Source, path: str, *, follow: bool) -> Entry:
    try:
        return await store.stat(path, follow=follow)
    except (NotFound, Conflict) as error:
        where = str(store.location.child(path))
        raise missing(error, where) from error


async def _top(store: Source) -> Entry:
    """What is to be listed."""
    try:
        return await _standing(store, "", follow=True)
    except FastsyncError as error:
        found = untrusted(error, store)
        raise found from caused(found, error)


def _scan_options(request: Request, *, recursive: bool, owner: bool = False) -> ScanOptions:
    chosen = request.filter()
    return ScanOptions(
        recursive=recursive,
        links="follow" if request.settings.links == "follow" else "keep",
        owner=owner,
        prune=None if chosen.is_empty else chosen.prune,
    )


def _listed(store: Source, wild: Wildcard | None, options: ScanOptions) -> AsyncIterator[Page]:
    if wild is None:
        return whole(store.scan(options), store)
    return something(whole(wild.scan(store, options), store), f"{wild.base}{wild.pattern}")


async def run_ls(
    place: Place, request: Request, *, recursive: bool = False, directory: bool = False
) -> AsyncIterator[Page]:
    """What is in a place, pages as they come, faults included. A file lists as itself, and with
    `directory` a directory does. Raises ListingError for a place that does not exist."""
    location = located(place)
    wild = wildcard(location, request)
    chosen = request.filter()
    async with Session(request, light=True) as session:
        top = location if wild is None else wild.base
        store = await session.open(top, follow=request.settings.links == "follow")
        if wild is None:
            standing = await _top(store)
            if standing.kind != "dir" or directory:
                yield Page([standing._replace(path=location.name or location.path)])
                return
        options = _scan_options(request, recursive=recursive and not directory, owner=True)
        async with closing(_listed(store, wild, options)) as pages:
            async for entries, faults in pages:
                yield Page(entries if chosen.is_empty else chosen.select(entries), faults)


async def run_versions(
    place: Place, request: Request, *, recursive: bool = False
) -> AsyncIterator[list[ListedVersion]]:
    """Every version of everything in a place. Raises UsageError where old ones are not kept."""
    location = located(place)
    wild = wildcard(location, request)
    chosen = request.filter()
    async with Session(request, light=True) as session:
        store = await session.open(location if wild is None else wild.base)
        if not offers(store, KeepsVersions):
            raise UsageError("there are no versions but the one", where=str(location))
        options = _scan_options(request, recursive=recursive or wild is not None)
        is_empty = True
        async with closing(store.scan_versions(options)) as pages:
            async for page in pages:
                if wild is not None:
                    page = [each for each in page if wild.means(each.entry.path, recursive)]
                if not chosen.is_empty:
                    page = [each for each in page if chosen.keep(each.entry)]
                is_empty = is_empty and not page
                if page:
                    yield page
        if is_empty:
            raise ListingError("nothing is there, and nothing was", where=str(location))


class Details(NamedTuple):
    """A place and all that is known of it: its entry, and what else its store tells."""

    place: Location
    entry: Entry
    more: Mapping[str, str]


async def run_stat(place: Place, request: Request) -> AsyncIterator[Details]:
    """All about a place, or about each that its wildcards mean; links are not followed.

    Raises ListingError for a place that does not exist.
    """
    location = located(place)
    wild = wildcard(location, request)
    async with Session(request, light=True) as session:
        if wild is None:
            store, path = await session.reach(location)
            entry = await _standing(store, path, follow=request.settings.links == "follow")
            yield Details(location, entry, await _described(store, entry))
            return
        store = await session.open(wild.base)
        options = _scan_options(request, recursive=False, owner=True)
        chosen = request.filter()
        async with closing(_listed(store, wild, options)) as pages:
            async for entries, faults in pages:
                for entry in chosen.select(entries):
                    if (
                        entry.kind == "file" and entry.mtime_ns is None
                    ):  # some listings tell no times
                        entry = await _standing(store, entry.path, follow=False)
                    yield Details(
                        store.location.child(entry.path), entry, await _described(store, entry)
                    )
                for fault in faults:
                    raise fault.error


async def _described(store: Source, entry: Entry) -> Mapping[str, str]:
    return await store.describe(entry) if offers(store, Describes) else {}


class Usage(NamedTuple):
    """How much there is below `path` ("" is the place itself): files, and bytes in them."""

    path: str
    files: int
    size: int


async def run_du(place: Place, request: Request, levels: int = 0) -> AsyncIterator[Usage | Fault]:
    """How much there is in a place: each directory down to `levels` below it, after what is in it, and at
    the end the place. A fault is something that could not be counted."""
    location = located(place)
    wild = wildcard(location, request)
    chosen = request.filter()
    async with Session(request, light=True) as session:
        top = location if wild is None else wild.base
        store = await session.open(top, follow=request.settings.links == "follow")
        if wild is None:
            standing = await _top(store)
            if standing.kind != "dir":
                yield Usage("", 1, standing.size or 0)
                return
        count = _Count(levels)
        options = _scan_options(request, recursive=True)
        async with closing(_listed(store, wild, options)) as pages:
            async for entries, faults in pages:
                for fault in faults:
                    yield fault
                for entry in entries if chosen.is_empty else chosen.select(entries):
                    for usage in count.add(entry):
                        yield usage
        for usage in count.finish():
            yield usage


class _Count:
    """Sums over a listing in order; holds no more than the directories that lead to where it is."""

    def __init__(self, levels: int) -> None:
        self._levels = levels
        self._names: list[str] = []
        self._sums = [[0, 0]]  # files and bytes, of the place and of each directory in `_names`

    def add(self, entry: Entry) -> list[Usage]:
        """Count an entry; the directories that are finished by that."""
        above = entry.path.split("/")
        if entry.kind != "dir":
            above.pop()
        del above[self._levels :]
        done = []
        while self._names != above[: len(self._names)]:
            done.append(self._leave())
        for name in above[len(self._names) :]:
            self._names.append(name)
            self._sums.append([0, 0])
        if entry.kind == "file":
            self._sums[-1][0] += 1
            self._sums[-1][1] += entry.size or 0
        return done

    def _leave(self) -> Usage:
        files, size = self._sums.pop()
        self._sums[-1][0] += files
        self._sums[-1][1] += size
        path = "/".join(self._names)
        self._names.pop()
        return Usage(path, files, size)

    def finish(self) -> list[Usage]:
        """What is left, the place last."""
        done = []
        while self._names:
            done.append(self._leave())
        files, size = self._sums[0]
        return [*done, Usage("", files, size)]
