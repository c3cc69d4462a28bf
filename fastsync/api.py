"""The library: a function for each verb of the command, and the same as coroutines.

    import fastsync

    summary = fastsync.sync("photos", "/backup/photos", delete=True)
    print(summary.totals.files_copied, summary.exit_code)

Item failures are in the summary; what keeps a run from being carried out at all is raised, as one of
`fastsync.errors`. Each function has a twin that is a coroutine, `async_sync` for `sync`, for programs that
have a loop of their own. The library reads no configuration file and no environment: what counts is what is
passed. Every option is a setting of docs/CONFIGURATION.md, by the same name.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, TypeAlias, TypeVar

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
from fastsync.checking import Checked, Finding, run_check
from fastsync.config import Resolved, resolve_options
from fastsync.copying import run_cp, run_sync
from fastsync.errors import Conflict, FastsyncError, UsageError
from fastsync.events import Item, Observer, Silent
from fastsync.filters import Rule
from fastsync.listing import Usage, run_du, run_ls, run_stat, run_versions
from fastsync.location import Location
from fastsync.moving import run_mv
from fastsync.ordered import CAT_DEFAULTS, cat_settings, run_cat
from fastsync.piping import run_pipe
from fastsync.planfile import Shard, held, run_plan
from fastsync.removal import run_rm
from fastsync.replaying import run_planned
from fastsync.session import Place, Request, Session, all_located, located
from fastsync.tally import Summary

__all__ = [
    "OnEvent",
    "Request",
    "async_cat",
    "async_check",
    "async_cp",
    "async_du",
    "async_ls",
    "async_make_plan",
    "async_mkdir",
    "async_mv",
    "async_pipe",
    "async_presign",
    "async_rm",
    "async_run",
    "async_stat",
    "async_sync",
    "cat",
    "check",
    "cp",
    "du",
    "ls",
    "make_plan",
    "mkdir",
    "mv",
    "pipe",
    "presign",
    "rm",
    "run",
    "run_cat",
    "run_check",
    "run_cp",
    "run_du",
    "run_file",
    "run_ls",
    "run_mkdir",
    "run_mv",
    "run_pipe",
    "run_plan",
    "run_presign",
    "run_rm",
    "run_stat",
    "run_sync",
    "run_versions",
    "stat",
    "sync",
]

T = TypeVar("T")

# How long a signed link works, in seconds, unless somebody says otherwise.
PRESIGN_S: Final = 3 * 3600.0


def _refuse_stream(location: Location) -> None:
    if location.is_stream:
        raise UsageError("standard input and output are not meant here", where="-")


# -- what a verb does that no other module has --------------------------------------------------------


async def run_mkdir(places: Place | Sequence[Place], request: Request) -> None:
    """See `mkdir`."""
    async with Session(request, light=True) as session:
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


# -- as coroutines ----------------------------------------------------------------------------------

# Hears of each item as it ends.
OnEvent: TypeAlias = Callable[[Item], None]


class _Events(Silent):
    """An observer that hands on items."""

    wants_items = True

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event

    def item(self, item: Item) -> None:
        self._on_event(item)


def _request(
    options: Mapping[str, Any],
    rules: Sequence[Rule] = (),
    observer: Observer | None = None,
    on_event: OnEvent | None = None,
) -> Request:
    return _asked(resolve_options(options), rules, observer, on_event)


def _asked(
    found: Resolved,
    rules: Sequence[Rule],
    observer: Observer | None,
    on_event: OnEvent | None = None,
) -> Request:
    if observer is not None and on_event is not None:
        raise UsageError("observer and on_event are two ways to hear of the same: pass one")
    if on_event is not None:
        observer = _Events(on_event)
    settings, given = found.settings, found.given_places
    return Request(settings, rules, observer or Silent(), found.place_settings, given)


async def async_cp(
    sources: Place | Sequence[Place],
    destination: Place,
    *,
    rules: Sequence[Rule] = (),
    observer: Observer | None = None,
    on_event: OnEvent | None = None,
    **options: Any,
) -> Summary:
    """See `cp`."""
    return await run_cp(sources, destination, _request(options, rules, observer, on_event))


async def async_sync(
    source: Place,
    destination: Place,
    *,
    rules: Sequence[Rule] = (),
    observer: Observer | None = None,
    on_event: OnEvent | None = None,
    **options: Any,
) -> Summary:
    """See `sync`."""
    return await run_sync(source, destination, _request(options, rules, observer, on_event))


async def async_make_plan(
    source: Place,
    destination: Place,
    output: str | os.PathLike[str],
    *,
    rules: Sequence[Rule] = (),
    observer: Observer | None = None,
    on_event: OnEvent | None = None,
    **options: Any,
) -> Summary:
    """See `make_plan`."""
    request = _request(options, rules, observer, on_event)
    return await run_plan(source, destination, request, output)


async def async_run(
    file: str | os.PathLike[str],
    *,
    shard: str | None = None,
    observer: Observer | None = None,
    on_event: OnEvent | None = None,
    **options: Any,
) -> Summary:
    """See `run`."""
    return await run_file(file, _request(options, (), observer, on_event), shard=shard)


async def async_mv(
    sources: Place | Sequence[Place],
    destination: Place,
    *,
    rules: Sequence[Rule] = (),
    observer: Observer | None = None,
    on_event: OnEvent | None = None,
    **options: Any,
) -> Summary:
    """See `mv`."""
    return await run_mv(sources, destination, _request(options, rules, observer, on_event))


async def async_rm(
    places: Place | Sequence[Place],
    *,
    rules: Sequence[Rule] = (),
    observer: Observer | None = None,
    on_event: OnEvent | None = None,
    **options: Any,
) -> Summary:
    """See `rm`."""
    return await run_rm(places, _request(options, rules, observer, on_event))


async def async_check(
    source: Place,
    destination: Place,
    *,
    rules: Sequence[Rule] = (),
    on_finding: Callable[[Finding], None] = lambda _finding: None,
    download: bool = False,
    **options: Any,
) -> Checked:
    """See `check`."""
    request = _request(options, rules)
    return await run_check(source, destination, request, on_finding, download=download)


async def async_ls(place: Place, *, rules: Sequence[Rule] = (), **options: Any) -> list[Entry]:
    """See `ls`."""
    request = _request(options, rules)
    entries: list[Entry] = []
    async for page in run_ls(place, request, recursive=request.settings.recursive):
        for fault in page.faults:
            raise fault.error
        entries.extend(page.entries)
    return entries


async def async_du(place: Place, *, rules: Sequence[Rule] = (), **options: Any) -> Usage:
    """See `du`."""
    total = Usage("", 0, 0)
    async for found in run_du(place, _request(options, rules)):
        if isinstance(found, Fault):
            raise found.error
        total = found
    return total


async def async_stat(place: Place, **options: Any) -> Entry:
    """See `stat`."""
    async with closing(run_stat(place, _request({"raw": True, **options}))) as found:
        return (await anext(found)).entry


async def async_mkdir(places: Place | Sequence[Place], **options: Any) -> None:
    """See `mkdir`."""
    await run_mkdir(places, _request(options))


async def async_cat(
    places: Place | Sequence[Place],
    output: int,
    *,
    offset: int = 0,
    count: int | None = None,
    observer: Observer | None = None,
    **options: Any,
) -> Summary:
    """See `cat`."""
    found = resolve_options(options, CAT_DEFAULTS)
    request = dataclasses.replace(_asked(found, (), observer), settings=cat_settings(found))
    return await run_cat(places, request, output, offset=offset, count=count)


async def async_pipe(
    place: Place, *, source: int = 0, observer: Observer | None = None, **options: Any
) -> Summary:
    """See `pipe`."""
    return await run_pipe(place, _request(options, (), observer), fd=source)


async def async_presign(
    place: Place, *, expires_in: float = PRESIGN_S, method: str = "GET", **options: Any
) -> str:
    """See `presign`."""
    return await run_presign(place, _request(options), expires_in=expires_in, method=method)


async def run_file(
    file: str | os.PathLike[str], request: Request, *, shard: str | None = None
) -> Summary:
    """See `run`; "-" is standard input."""
    part = None if shard is None else Shard.parse(shard)
    with held(file) as (opened, name):
        return await run_planned(opened, name, request, part)


# -- as functions ------------------------------------------------------------------------------------


def _alone(work: Coroutine[Any, Any, T]) -> T:
    """Run it in a loop of its own. Raises UsageError where the thread has one already (Jupyter has)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    name = getattr(work, "__name__", "async_...")
    work.close()
    raise UsageError(
        "an event loop is running in this thread", hint=f"await fastsync.{name}() there"
    )


def cp(
    sources: Place | Sequence[Place],
    destination: Place,
    *,
    rules: Sequence[Rule] = (),
    observer: Observer | None = None,
    on_event: OnEvent | None = None,
    **options: Any,
) -> Summary:
    """Copy files, and directories with ``recursive=True``; a `destination` that ends in "/", or is a
    directory, is copied into.

    `rules` are ordered include and exclude rules; `options` are settings by name; `on_event` hears of
    each item, an `observer` of more. Raises UsageError before anything is touched, ListingError when a
    listing cannot be trusted.
    """
    about: dict[str, Any] = {"rules": rules, "observer": observer, "on_event": on_event}
    return _alone(async_cp(sources, destination, **about, **options))


def sync(
    source: Place,
    destination: Place,
    *,
    rules: Sequence[Rule] = (),
    observer: Observer | None = None,
    on_event: OnEvent | None = None,
    **options: Any,
) -> Summary:
    """Make `destination` like `source`: contents into contents. Deletes only with ``delete=True``,
    and then only when every listing and every copy went well.

    Raises UsageError before anything is touched, ListingError when the source does not exist or a
    listing cannot be trusted.
    """
    about: dict[str, Any] = {"rules": rules, "observer": observer, "on_event": on_event}
    return _alone(async_sync(source, destination, **about, **options))


def make_plan(
    source: Place,
    destination: Place,
    output: str | os.PathLike[str],
    *,
    rules: Sequence[Rule] = (),
    observer: Observer | None = None,
    on_event: OnEvent | None = None,
    **options: Any,
) -> Summary:
    """Write what `sync` would do to the file `output`, for `run`; docs/PLANS.md describes the lines.
    Nothing else is changed. Arguments and errors as for `sync`."""
    about: dict[str, Any] = {"rules": rules, "observer": observer, "on_event": on_event}
    return _alone(async_make_plan(source, destination, output, **about, **options))


def run(
    file: str | os.PathLike[str],
    *,
    shard: str | None = None,
    observer: Observer | None = None,
    on_event: OnEvent | None = None,
    **options: Any,
) -> Summary:
    """Carry out the plan in `file`; with `shard` ("2/4") only a part of it. A line of which the source or
    the destination changed since is a failure, and the rest goes on.

    Raises UsageError before anything is touched.
    """
    about: dict[str, Any] = {"observer": observer, "on_event": on_event}
    return _alone(async_run(file, shard=shard, **about, **options))


def mv(
    sources: Place | Sequence[Place],
    destination: Place,
    *,
    rules: Sequence[Rule] = (),
    observer: Observer | None = None,
    on_event: OnEvent | None = None,
    **options: Any,
) -> Summary:
    """Move files and directories: a source goes when its copy is verified and committed, and stays if it
    changed meanwhile. Arguments and errors as for `cp`."""
    about: dict[str, Any] = {"rules": rules, "observer": observer, "on_event": on_event}
    return _alone(async_mv(sources, destination, **about, **options))


def rm(
    places: Place | Sequence[Place],
    *,
    rules: Sequence[Rule] = (),
    observer: Observer | None = None,
    on_event: OnEvent | None = None,
    **options: Any,
) -> Summary:
    """Remove files, and directories with ``recursive=True``; links, not what they lead to.

    Raises UsageError before anything is touched.
    """
    about: dict[str, Any] = {"rules": rules, "observer": observer, "on_event": on_event}
    return _alone(async_rm(places, **about, **options))


def check(
    source: Place,
    destination: Place,
    *,
    rules: Sequence[Rule] = (),
    on_finding: Callable[[Finding], None] = lambda _finding: None,
    download: bool = False,
    **options: Any,
) -> Checked:
    """Compare two places as `sync` would, by content with ``checksum=True``, by reading both with
    `download`; `on_finding` hears of each path that differs. Nothing is changed.

    Raises UsageError, ListingError when the source does not exist or a listing cannot be trusted.
    """
    about: dict[str, Any] = {"rules": rules, "on_finding": on_finding, "download": download}
    return _alone(async_check(source, destination, **about, **options))


def ls(place: Place, *, rules: Sequence[Rule] = (), **options: Any) -> list[Entry]:
    """The entries below `place`, all levels with ``recursive=True``, in byte order of their paths.

    Raises ListingError when `place` does not exist, and the first fault of an incomplete listing.
    """
    return _alone(async_ls(place, rules=rules, **options))


def du(place: Place, *, rules: Sequence[Rule] = (), **options: Any) -> Usage:
    """How many files there are at and below `place`, and how many bytes in them.

    Raises ListingError when `place` does not exist, and the first fault of an incomplete listing.
    """
    return _alone(async_du(place, rules=rules, **options))


def stat(place: Place, **options: Any) -> Entry:
    """The entry of `place` itself; a link is not followed. Raises ListingError for nothing."""
    return _alone(async_stat(place, **options))


def mkdir(places: Place | Sequence[Place], **options: Any) -> None:
    """Make directories, with those above them, or what else a place needs (a bucket). One that is there
    is fine. Raises Conflict where something else stands, UsageError where there are no directories."""
    _alone(async_mkdir(places, **options))


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
    part: dict[str, Any] = {"offset": offset, "count": count, "observer": observer}
    return _alone(async_cat(places, output, **part, **options))


def pipe(
    place: Place, *, source: int = 0, observer: Observer | None = None, **options: Any
) -> Summary:
    """Write what the file descriptor `source` gives, to its end, to the file `place`: whole or not at
    all. Raises UsageError for a directory."""
    return _alone(async_pipe(place, source=source, observer=observer, **options))


def presign(
    place: Place, *, expires_in: float = PRESIGN_S, method: str = "GET", **options: Any
) -> str:
    """A URL that lets anybody do `method` on the file at `place`, for `expires_in` seconds. It is a
    secret. Raises UsageError where there is no such thing."""
    link = async_presign(place, expires_in=expires_in, method=method, **options)
    return _alone(link)
