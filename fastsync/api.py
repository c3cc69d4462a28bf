"""The library: a function for each verb of the command, and the same as coroutines.

    import fastsync

    summary = fastsync.sync("photos", "/backup/photos", delete=True)
    print(summary.totals.files_copied, summary.exit_code)

Item failures are in the summary; what keeps a run from being carried out at all is raised, as one of
`fastsync.errors`. The library reads no configuration file and no environment: what counts is what is
passed. Every option is a setting of docs/CONFIGURATION.md, by the same name.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastsync.backend import (
    CreatesPlaces,
    Entry,
    Fault,
    KeepsDirectories,
    SignsLinks,
    Sink,
    WriteOptions,
    closing,
    offers,
)
from fastsync.config import Resolved, resolve_options
from fastsync.copying import run_cp, run_sync
from fastsync.errors import Conflict, FastsyncError, UsageError
from fastsync.events import Observer, Silent
from fastsync.filters import Rule
from fastsync.listing import Usage, run_du, run_ls, run_stat, run_versions
from fastsync.location import Location
from fastsync.moving import run_mv
from fastsync.ordered import CAT_DEFAULTS, cat_settings, run_cat
from fastsync.piping import run_pipe
from fastsync.removal import run_rm
from fastsync.session import Place, Request, Session, all_located, located
from fastsync.tally import Summary

__all__ = [
    "Request",
    "cat",
    "cp",
    "du",
    "ls",
    "mkdir",
    "mv",
    "pipe",
    "presign",
    "rm",
    "run_cat",
    "run_cp",
    "run_du",
    "run_ls",
    "run_mkdir",
    "run_mv",
    "run_pipe",
    "run_presign",
    "run_rm",
    "run_stat",
    "run_sync",
    "run_versions",
    "stat",
    "sync",
]

# How long a signed link works, in seconds, unless somebody says otherwise.
PRESIGN_S: Final = 3 * 3600.0


def _refuse_stream(location: Location) -> None:
    if location.is_stream:
        raise UsageError("standard input and output are not meant here", where="-")


# -- as coroutines -----------------------------------------------------------------------------------


async def run_mkdir(places: Place | Sequence[Place], request: Request) -> None:
    """See `mkdir`."""
    async with Session(request) as session:
        for location in all_located(places):
            _refuse_stream(location)
            store = await session.open_sink(location)
            if isinstance(store, CreatesPlaces) and not location.path.strip("/"):
                await _create(store)
            elif offers(store, KeepsDirectories):
                entry = Entry("", "dir", None, None)
                for error in await store.make_directories([entry], WriteOptions()):
                    if error is not None:
                        raise error.at(str(location))
            else:
                raise UsageError(
                    "directories exist there only with something in them",
                    where=str(location),
                    hint="copy a file there",
                )


async def _create(store: Sink) -> None:
    """A place that is ours already is fine, as any directory that is there."""
    assert isinstance(store, CreatesPlaces)
    try:
        await store.create_place()
    except Conflict:
        try:
            await store.stat("")
        except FastsyncError:
            pass  # somebody else's
        else:
            return
        raise


async def run_presign(
    place: Place, request: Request, *, expires_in: float = PRESIGN_S, method: str = "GET"
) -> str:
    """See `presign`."""
    location = located(place)
    _refuse_stream(location)
    async with Session(request) as session:
        store, path = await session.reach(location)
        if not offers(store, SignsLinks):
            raise UsageError(f"{location.scheme}:// has no signed links", where=str(location))
        if not path:
            raise UsageError("name a file", where=str(location))
        return await store.presign(path, round(expires_in), method)


# -- as functions ------------------------------------------------------------------------------------


def _request(
    options: Mapping[str, Any], rules: Sequence[Rule] = (), observer: Observer | None = None
) -> Request:
    return _asked(resolve_options(options), rules, observer)


def _asked(found: Resolved, rules: Sequence[Rule], observer: Observer | None) -> Request:
    settings, given = found.settings, found.given_places
    return Request(settings, rules, observer or Silent(), found.place_settings, given)


def cp(
    sources: Place | Sequence[Place],
    destination: Place,
    *,
    rules: Sequence[Rule] = (),
    observer: Observer | None = None,
    **options: Any,
) -> Summary:
    """Copy files, and directories with ``recursive=True``; a `destination` that ends in "/", or is a
    directory, is copied into.

    `rules` are ordered include and exclude rules; `options` are settings by name. Raises UsageError
    before anything is touched, ListingError when a listing cannot be trusted.
    """
    return asyncio.run(run_cp(sources, destination, _request(options, rules, observer)))


def sync(
    source: Place,
    destination: Place,
    *,
    rules: Sequence[Rule] = (),
    observer: Observer | None = None,
    **options: Any,
) -> Summary:
    """Make `destination` like `source`: contents into contents. Deletes only with ``delete=True``,
    and then only when every listing and every copy went well.

    Raises UsageError before anything is touched, ListingError when the source does not exist or a
    listing cannot be trusted.
    """
    return asyncio.run(run_sync(source, destination, _request(options, rules, observer)))


def mv(
    sources: Place | Sequence[Place],
    destination: Place,
    *,
    rules: Sequence[Rule] = (),
    observer: Observer | None = None,
    **options: Any,
) -> Summary:
    """Move files and directories: a source goes when its copy is verified and committed, and stays if it
    changed meanwhile. Arguments and errors as for `cp`."""
    return asyncio.run(run_mv(sources, destination, _request(options, rules, observer)))


def rm(
    places: Place | Sequence[Place],
    *,
    rules: Sequence[Rule] = (),
    observer: Observer | None = None,
    **options: Any,
) -> Summary:
    """Remove files, and directories with ``recursive=True``; links, not what they lead to.

    Raises UsageError before anything is touched.
    """
    return asyncio.run(run_rm(places, _request(options, rules, observer)))


def ls(
    place: Place,
    *,
    rules: Sequence[Rule] = (),
    **options: Any,
) -> list[Entry]:
    """The entries below `place`, all levels with ``recursive=True``, in byte order of their paths.

    Raises ListingError when `place` does not exist, and the first fault of an incomplete listing.
    """
    request = _request(options, rules)

    async def collect() -> list[Entry]:
        entries: list[Entry] = []
        async for page in run_ls(place, request, recursive=request.settings.recursive):
            for fault in page.faults:
                raise fault.error
            entries.extend(page.entries)
        return entries

    return asyncio.run(collect())


def du(place: Place, *, rules: Sequence[Rule] = (), **options: Any) -> Usage:
    """How many files there are at and below `place`, and how many bytes in them.

    Raises ListingError when `place` does not exist, and the first fault of an incomplete listing.
    """
    request = _request(options, rules)

    async def count() -> Usage:
        total = Usage("", 0, 0)
        async for found in run_du(place, request):
            if isinstance(found, Fault):
                raise found.error
            total = found
        return total

    return asyncio.run(count())


def stat(place: Place, **options: Any) -> Entry:
    """The entry of `place` itself; a link is not followed. Raises ListingError for nothing."""
    request = _request({"raw": True, **options})

    async def look() -> Entry:
        async with closing(run_stat(place, request)) as found:
            return (await anext(found)).entry

    return asyncio.run(look())


def mkdir(places: Place | Sequence[Place], **options: Any) -> None:
    """Make directories, with those above them, or what else a place needs (a bucket). One that is there
    is fine. Raises Conflict where something else stands, UsageError where there are no directories."""
    asyncio.run(run_mkdir(places, _request(options)))


def cat(
    places: Place | Sequence[Place],
    output: int,
    *,
    offset: int = 0,
    count: int | None = None,
    observer: Observer | None = None,
    **options: Any,
) -> Summary:
    """Write the files at `places`, one after the other, to the file descriptor `output`; of each only
    `count` bytes from `offset` on, if asked. Ranges are fetched ``parallel_streams`` at a time.

    Raises what is wrong with the first file that cannot be read; bytes before it may be written.
    """
    found = resolve_options(options, CAT_DEFAULTS)
    request = dataclasses.replace(_asked(found, (), observer), settings=cat_settings(found))
    return asyncio.run(run_cat(places, request, output, offset=offset, count=count))


def pipe(
    place: Place, *, source: int = 0, observer: Observer | None = None, **options: Any
) -> Summary:
    """Write what the file descriptor `source` gives, to its end, to the file `place`: whole or not at
    all. Raises UsageError for a directory."""
    request = _request(options, (), observer)
    return asyncio.run(run_pipe(place, request, fd=source))


def presign(
    place: Place, *, expires_in: float = PRESIGN_S, method: str = "GET", **options: Any
) -> str:
    """A URL that lets anybody do `method` on the file at `place`, for `expires_in` seconds. It is a
    secret. Raises UsageError where there is no such thing."""
    return asyncio.run(run_presign(place, _request(options), expires_in=expires_in, method=method))
