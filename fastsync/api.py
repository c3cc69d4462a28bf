"""The library: `cp`, `sync` and `ls`, and the same as coroutines.

    import fastsync

    summary = fastsync.sync("photos", "/backup/photos", delete=True)
    print(summary.totals.files_copied, summary.exit_code)

Item failures are in the summary; what keeps a run from being carried out at all is raised, as one of
`fastsync.errors`. The library reads no configuration file and no environment: what counts is what is
passed. Every option is a setting of docs/CONFIGURATION.md, by the same name.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from fastsync.backend import (
    Backend,
    Entry,
    Hashes,
    KeepsDirectories,
    KeepsLinks,
    Page,
    ScanOptions,
    Sink,
    Source,
    StoreOptions,
    WriteOptions,
)
from fastsync.config import from_options
from fastsync.engine import Budgets, Engine, Work
from fastsync.errors import ListingError, NotFound, UsageError
from fastsync.events import Observer, Silent, Totals
from fastsync.filters import Filter, Rule
from fastsync.location import Location, parse
from fastsync.plan import Comparison, DeleteGate, Rules, plan
from fastsync.registry import Registry
from fastsync.settings import Settings
from fastsync.tally import Summary

Place: TypeAlias = str | os.PathLike[str]
PlaceSettings: TypeAlias = Callable[[Location], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Request:
    """What a run is asked for, besides its places: settings, filter rules, and who watches.

    `place_settings` gives the settings of one place (endpoint, region ...).
    """

    settings: Settings = dataclasses.field(default_factory=Settings)
    rules: Sequence[Rule] = ()
    observer: Observer = dataclasses.field(default_factory=Silent)
    place_settings: PlaceSettings = lambda _location: {}

    def filter(self) -> Filter:
        """The compiled rules; ages count from now. Raises UsageError for a bad pattern."""
        settings = self.settings
        now = time.time_ns()

        def ago(seconds: float | None) -> int | None:
            return None if seconds is None else now - round(seconds * 1e9)

        return Filter(
            self.rules,
            min_size=settings.min_size,
            max_size=settings.max_size,
            newer_than_ns=ago(settings.max_age),
            older_than_ns=ago(settings.min_age),
            max_depth=settings.max_depth,
        )


class Session:
    """The protocols and stores that one run has opened; closing it closes them all."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._registry = Registry.from_entry_points()
        self._backends: dict[type[Backend], Backend] = {}
        self._stores: list[Source] = []

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *_error: object) -> None:
        for store in self._stores:
            await store.aclose()
        for backend in self._backends.values():
            await backend.aclose()

    async def open(self, location: Location, *, follow: bool = False) -> Source:
        """A store at `location`. Raises UsageError for an unknown scheme, AccessRefused."""
        found = self._registry.load(location.scheme)
        backend = self._backends.get(found)
        if backend is None:
            # Two schemes of one protocol (http and https) share what it owns.
            backend = self._backends[found] = found()
        settings = self._request.settings
        store = await backend.connect(
            location,
            StoreOptions(
                streams=settings.parallel_streams,
                jobs=settings.jobs,
                chunk_size=settings.chunk_size,
                buffer_size=settings.buffer_size,
                stall_timeout_s=settings.stall_timeout,
                request_timeout_s=settings.request_timeout,
                follow_links=follow,
                place=self._request.place_settings(location),
            ),
        )
        self._stores.append(store)
        return store

    async def open_sink(self, location: Location) -> Sink:
        """A store that can be written. Raises UsageError for one that cannot."""
        store = await self.open(location)
        if not isinstance(store, Sink):
            raise UsageError(f"{location.scheme}:// can only be read", where=str(location))
        return store


# -- what is asked for -------------------------------------------------------------------------------


def _rules(request: Request, chosen: Filter, source: Source, sink: Sink) -> Rules:
    settings = request.settings
    steps = [store.limits.mtime_step_ns for store in (source, sink)]
    precision = max((step for step in steps if step is not None), default=1)
    window_ns = precision - 1
    if settings.modify_window is not None:
        window_ns = max(window_ns, round(settings.modify_window * 1e9))
    special = 0o7777 if settings.preserve_special else 0o777
    return Rules(
        filter=chosen,
        comparison=_comparison(settings, source, sink),
        window_ns=window_ns,
        mode_mask=source.limits.mode_mask & sink.limits.mode_mask & special,
        owner=settings.owner,
        directories=isinstance(sink, KeepsDirectories),
        directory_times=settings.dir_times and isinstance(sink, KeepsDirectories),
        links=settings.links == "keep" and isinstance(sink, KeepsLinks),
        update=settings.update,
        ignore_times=settings.ignore_times,
        ignore_existing=settings.ignore_existing,
        existing=settings.existing,
        delete=settings.delete,
        delete_excluded=settings.delete_excluded,
        show_skips=request.observer.wants_skips,
    )


def _comparison(settings: Settings, source: Source, sink: Sink) -> Comparison:
    """Size and time where both sides keep times; else digests, else size and "newer than the copy"."""
    if settings.checksum:
        return "checksum"
    if settings.size_only:
        return "size"
    if source.limits.mtime_step_ns is not None and sink.limits.mtime_step_ns is not None:
        return "mtime"
    if isinstance(source, Hashes) and isinstance(sink, Hashes):
        if set(source.algorithms) & set(sink.algorithms):
            return "checksum"
    return "newer"


def _write_options(settings: Settings) -> WriteOptions:
    return WriteOptions(
        owner=settings.owner,
        special=settings.preserve_special,
        inplace=settings.inplace,
        durable=settings.durable,
        sparse=settings.sparse,
    )


def _gate(settings: Settings) -> DeleteGate | None:
    if not settings.delete:
        return None
    limit = settings.max_delete
    return DeleteGate(
        files=limit.files if limit else None,
        percent=limit.percent if limit else None,
        allow_empty_source=settings.allow_empty_source,
    )


def _scan_options(request: Request, chosen: Filter, *, is_source: bool) -> ScanOptions:
    settings = request.settings
    sees_everything = chosen.is_empty or (not is_source and settings.delete_excluded)
    return ScanOptions(
        links="follow" if is_source and settings.links == "follow" else "keep",
        owner=settings.owner,
        missing_ok=not is_source,
        prune=None if sees_everything else chosen.prune,
    )


def _engine(request: Request) -> Engine:
    settings = request.settings
    return Engine(
        Budgets(
            streams=settings.parallel_streams,
            jobs=settings.jobs,
            chunk_size=settings.chunk_size,
            memory=settings.buffer_size,
            retries=settings.retry_count,
        ),
        request.observer,
        dry_run=settings.dry_run,
    )


# -- trees and files ---------------------------------------------------------------------------------


async def _kind(store: Source) -> Entry | None:
    try:
        return await store.stat("", follow=True)
    except NotFound:
        return None


def _refuse_overlap(source: Source, sink: Source) -> None:
    ours, theirs = source.address().rstrip("/"), sink.address().rstrip("/")
    if ours == theirs:
        raise UsageError("source and destination are the same place", where=str(sink.location))
    if theirs.startswith(ours + "/") or ours.startswith(theirs + "/"):
        inner, outer = (
            ("destination", "source") if len(theirs) > len(ours) else ("source", "destination")
        )
        raise UsageError(f"the {inner} is inside the {outer}", where=str(sink.location))


async def _tree(
    session: Session, request: Request, source: Source, target: Location, *, gate: bool
) -> Work:
    """Everything below one place to another."""
    settings = request.settings
    sink = await session.open_sink(target)
    _refuse_overlap(source, sink)
    standing = await _kind(sink)
    if standing is not None and standing.kind != "dir":
        raise UsageError(
            "a file stands where the directory should go",
            where=str(target),
            hint="name another destination, or move the file away",
        )
    chosen = request.filter()
    rules = _rules(request, chosen, source, sink)
    pages = plan(
        source.scan(_scan_options(request, chosen, is_source=True)),
        sink.scan(_scan_options(request, chosen, is_source=False)),
        rules if gate else dataclasses.replace(rules, delete=False),
    )
    if standing is None and not settings.dry_run and isinstance(sink, KeepsDirectories):
        # So that an empty source, too, gives what was asked for.
        root = (await source.stat(""))._replace(path="")
        await sink.make_directories([root], _write_options(settings))
    return Work(
        source,
        sink,
        pages,
        _write_options(settings),
        gate=_gate(settings) if gate else None,
        root=await source.stat("") if rules.directory_times else None,
        directory_times=rules.directory_times,
        protects=not chosen.is_empty,
    )


async def _file(session: Session, request: Request, location: Location, target: Location) -> Work:
    """One file, which the user named, to exactly `target`."""
    source = await session.open(location.parent(), follow=True)
    sink = await session.open_sink(target.parent())
    name = location.name
    for one, other in ((source, sink), (sink, source)):
        if (
            one.address().rstrip("/") + "/" + name
            == other.address().rstrip("/") + "/" + target.name
        ):
            raise UsageError("source and destination are the same file", where=str(target))
    entry = await source.stat(name, follow=True)
    chosen = request.filter()
    rules = dataclasses.replace(_rules(request, chosen, source, sink), delete=False)
    standing: list[Entry] = []
    with contextlib.suppress(NotFound):
        standing = [(await sink.stat(target.name))._replace(path=name)]
    if not request.settings.owner:
        entry = entry._replace(owner=None)
    pages = plan(_one_page([entry]), _one_page(standing), rules)
    return Work(
        source,
        sink,
        pages,
        _write_options(request.settings),
        rename=lambda _path: target.name,
    )


async def _one_page(entries: list[Entry]) -> AsyncGenerator[Page, None]:
    if entries:
        yield Page(entries)


def _into(directory: Location, location: Location) -> Location:
    """Where `location` lands when it is copied into `directory`: the contents alone for ``dir/``."""
    name = location.name
    return directory if name in ("", ".", "..") else directory.child(name)


def _refuse_streams(*locations: Location) -> None:
    if any(location.is_stream for location in locations):
        raise UsageError(
            "standard input and output are not supported yet", hint="name a file instead of -"
        )


# -- the verbs ---------------------------------------------------------------------------------------


async def run_sync(source: Place, destination: Place, request: Request) -> Summary:
    """See `sync`."""
    location, target = parse(os.fspath(source)), parse(os.fspath(destination))
    _refuse_streams(location, target)
    settings = request.settings
    async with Session(request) as session:
        store = await session.open(location, follow=settings.links == "follow")
        standing = await _kind(store)
        if standing is None:
            if settings.ignore_missing_args:
                request.observer.note(f"skipped, it does not exist: {location}")
                return Summary(Totals())
            raise ListingError(
                "the source does not exist", where=str(location), hint="nothing was deleted"
            )
        if standing.kind == "dir":
            work = await _tree(session, request, store, target, gate=True)
        else:
            if await _is_directory(session, target):
                target = _into(target, location)
            work = await _file(session, request, location, target)
        summary = await _engine(request).run(_several([work]))
        sink = work.sink
        summary.comparison = _comparison(settings, store, sink)
        return summary


async def run_cp(sources: Sequence[Place], destination: Place, request: Request) -> Summary:
    """See `cp`."""
    locations = [parse(os.fspath(source)) for source in sources]
    target = parse(os.fspath(destination))
    _refuse_streams(*locations, target)
    if not locations:
        raise UsageError("no source given")
    settings = request.settings
    async with Session(request) as session:
        into = target.is_directory_like or await _is_directory(session, target)
        if len(locations) > 1 and not into:
            raise UsageError(
                "several sources need a directory as destination",
                where=str(target),
                hint="end it with a / to have it made",
            )
        engine = _engine(request)
        found: list[tuple[Location, Source, Entry]] = []
        for location in locations:
            store = await session.open(location, follow=settings.links == "follow")
            standing = await _kind(store)
            if standing is None:
                if settings.ignore_missing_args:
                    request.observer.note(f"skipped, it does not exist: {location}")
                else:
                    engine.missing(location)
                continue
            if standing.kind == "dir" and not settings.recursive:
                raise UsageError(
                    "it is a directory", where=str(location), hint="-R copies directories"
                )
            found.append((location, store, standing))

        async def works() -> AsyncIterator[Work]:
            for location, store, standing in found:
                place = _into(target, location) if into else target
                if standing.kind == "dir":
                    yield await _tree(session, request, store, place, gate=False)
                else:
                    yield await _file(session, request, location, place)

        summary = await engine.run(works())
        if found:
            sink = await session.open(target)
            summary.comparison = (
                _comparison(settings, found[0][1], sink) if isinstance(sink, Sink) else ""
            )
        return summary


async def _is_directory(session: Session, target: Location) -> bool:
    standing = await _kind(await session.open(target))
    return standing is not None and standing.kind == "dir"


async def _several(works: Sequence[Work]) -> AsyncIterator[Work]:
    for work in works:
        yield work


async def run_ls(
    place: Place, request: Request, *, recursive: bool = False, directory: bool = False
) -> AsyncIterator[Page]:
    """See `ls`; pages as they come, faults included. A file lists as itself."""
    location = parse(os.fspath(place))
    _refuse_streams(location)
    chosen = request.filter()
    settings = request.settings
    async with Session(request) as session:
        store = await session.open(location, follow=settings.links == "follow")
        standing = await _kind(store)
        if standing is None:
            raise ListingError("no such file or directory", where=str(location))
        if standing.kind != "dir" or directory:
            yield Page([standing._replace(path=location.name or location.path)])
            return
        options = ScanOptions(
            recursive=recursive,
            links="follow" if settings.links == "follow" else "keep",
            owner=True,
            prune=None if chosen.is_empty else chosen.prune,
        )
        async for entries, faults in store.scan(options):
            yield Page(entries if chosen.is_empty else chosen.select(entries), faults)


def _request(
    options: Mapping[str, Any], rules: Sequence[Rule], observer: Observer | None
) -> Request:
    return Request(from_options(options), rules, observer or Silent())


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
    several = [sources] if isinstance(sources, (str, os.PathLike)) else sources
    return asyncio.run(run_cp(several, destination, _request(options, rules, observer)))


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


def ls(
    place: Place,
    *,
    rules: Sequence[Rule] = (),
    **options: Any,
) -> list[Entry]:
    """The entries below `place`, all levels with ``recursive=True``, in byte order of their paths.

    Raises ListingError when `place` does not exist, and the first fault of an incomplete listing.
    """
    request = _request(options, rules, None)

    async def collect() -> list[Entry]:
        entries: list[Entry] = []
        async for page in run_ls(place, request, recursive=request.settings.recursive):
            for fault in page.faults:
                raise fault.error
            entries.extend(page.entries)
        return entries

    return asyncio.run(collect())
