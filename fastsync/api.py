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
    Fault,
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
from fastsync.errors import (
    Conflict,
    FastsyncError,
    ListingError,
    NotFound,
    Unsupported,
    UsageError,
)
from fastsync.events import Observer, Silent, Totals
from fastsync.filters import Filter, Rule
from fastsync.location import Location, parse
from fastsync.names import path_key
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
        self._stores: dict[tuple[Location, bool], Source] = {}

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *_error: object) -> None:
        for store in self._stores.values():
            await store.aclose()
        for backend in self._backends.values():
            await backend.aclose()

    async def open(self, location: Location, *, follow: bool = False) -> Source:
        """The store at `location`, one per run. Raises UsageError for an unknown scheme, AccessRefused."""
        known = self._stores.get((location, follow))
        if known is not None:
            return known
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
        self._stores[location, follow] = store
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


async def _standing(store: Source) -> Entry | None:
    """What is at a destination, None for nothing. Raises UsageError where nothing can be."""
    try:
        return await store.stat("", follow=True)
    except NotFound:
        return None
    except Conflict as error:
        raise _in_the_way(store.location) from error


def _in_the_way(location: Location, what: str = "a file") -> UsageError:
    return UsageError(
        f"{what} stands where the directory should go",
        where=str(location),
        hint="name another destination, or move the file away",
    )


async def _named(store: Source) -> Entry:
    """What is at a source. Raises ListingError for nothing, Unsupported for what cannot be copied."""
    where = str(store.location)
    try:
        entry = await store.stat("", follow=True)
    except (NotFound, Conflict) as error:
        raise ListingError("no such file or directory", where=where) from error
    if entry.kind != "dir" and store.location.is_directory_like:
        raise ListingError("it is not a directory", where=where, hint="leave out the slash")
    if entry.kind == "special":
        raise Unsupported(
            "it is a device, a pipe or a socket, and those are not copied", where=where
        )
    return entry


def _refuse_overlap(source: Source, sink: Source) -> None:
    ours, theirs = source.address().rstrip("/"), sink.address().rstrip("/")
    if ours == theirs:
        raise UsageError("source and destination are the same place", where=str(sink.location))
    if theirs.startswith(ours + "/") or ours.startswith(theirs + "/"):
        inner, outer = (
            ("destination", "source") if len(theirs) > len(ours) else ("source", "destination")
        )
        raise UsageError(f"the {inner} is inside the {outer}", where=str(sink.location))


async def _check_file(source: Source, sink: Sink, name: str, to: str) -> Entry | None:
    """What stands where a file should go. Raises UsageError if it cannot go there."""
    where = str(sink.location.child(to))
    if (source.address().rstrip("/"), name) == (sink.address().rstrip("/"), to):
        raise UsageError("source and destination are the same file", where=where)
    try:
        standing = await sink.stat(to)
    except NotFound:
        return None
    except Conflict as error:
        raise _in_the_way(sink.location) from error
    leads_to = standing.kind
    if standing.kind == "link":
        with contextlib.suppress(FastsyncError):
            leads_to = (await sink.stat(to, follow=True)).kind
    if leads_to == "special":
        # Somebody means /dev/null, /dev/stdout or a disk; a file in its place would help nobody.
        raise UsageError(
            "a device, a pipe or a socket stands there",
            where=where,
            hint="name another destination, or remove it first",
        )
    return standing


async def _check_tree(source: Source, sink: Source) -> Entry | None:
    """What stands where a tree should go. Raises UsageError if it cannot go there."""
    _refuse_overlap(source, sink)
    standing = await _standing(sink)
    if standing is not None and standing.kind != "dir":
        raise _in_the_way(sink.location)
    return standing


async def _tree(
    session: Session, request: Request, source: Source, target: Location, *, is_sync: bool
) -> Work:
    """Everything below one place to another."""
    settings = request.settings
    sink = await session.open_sink(target)
    standing = await _check_tree(source, sink)
    chosen = request.filter()
    rules = _rules(request, chosen, source, sink)
    ours = source.scan(_scan_options(request, chosen, is_source=True))
    if not is_sync:
        rules = dataclasses.replace(rules, delete=False, conflict_hint=None)
        ours = _or_fault(ours)
    pages = plan(ours, sink.scan(_scan_options(request, chosen, is_source=False)), rules)
    root = await source.stat("", follow=True)
    is_new = standing is None and isinstance(sink, KeepsDirectories)
    if is_new and isinstance(sink, KeepsDirectories) and not settings.dry_run:
        # So that an empty source, too, gives what was asked for.
        for error in await sink.make_directories([root], _write_options(settings)):
            if error is not None:
                raise error
    return Work(
        source,
        sink,
        pages,
        _write_options(settings),
        gate=_gate(settings) if is_sync else None,
        root=root if is_new or rules.directory_times else None,
        directory_times=rules.directory_times,
        protects=not chosen.is_empty,
        differ=rules.attributes_differ,
    )


async def _or_fault(pages: AsyncIterator[Page]) -> AsyncIterator[Page]:
    """A listing of which a failure is no more than an entry that is missing: others may do better."""
    try:
        async for page in pages:
            yield page
    except FastsyncError as error:
        yield Page([], [Fault("", error)])


def _files(
    request: Request,
    source: Source,
    sink: Sink,
    pairs: Sequence[tuple[Entry, Entry | None]],
    name: str | None = None,
) -> Work:
    """Files of one directory, which the user named, each with what stands in its place; a single one
    may get another `name`."""
    chosen = request.filter()
    rules = _rules(request, chosen, source, sink)
    rules = dataclasses.replace(rules, delete=False, conflict_hint=None)
    entries = [entry for entry, _ in pairs]
    if not request.settings.owner:
        entries = [entry._replace(owner=None) for entry in entries]
    standing = [old._replace(path=entry.path) for entry, old in pairs if old is not None]
    for listing in (entries, standing):
        listing.sort(key=lambda entry: path_key(entry.path + "/" * (entry.kind == "dir")))
    return Work(
        source,
        sink,
        plan(_one_page(entries), _one_page(standing), rules),
        _write_options(request.settings),
        rename=None if name is None else lambda _path: name,
        differ=rules.attributes_differ,
    )


async def _file(session: Session, request: Request, store: Source, target: Location) -> Work:
    """One file, which the user named, to exactly `target`."""
    name, to = store.location.name, target.name
    source = await session.open(store.location.parent(), follow=True)
    sink = await session.open_sink(target.parent())
    standing = await _check_file(source, sink, name, to)
    entry = (await store.stat("", follow=True))._replace(path=name)
    return _files(request, source, sink, [(entry, standing)], to)


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
        try:
            named = await _named(store)
        except ListingError as error:
            if settings.ignore_missing_args:
                request.observer.note(f"skipped, it does not exist: {location}")
                return Summary(Totals())
            raise ListingError(
                "the source does not exist", where=str(location), hint="nothing was deleted"
            ) from error
        if named.kind == "dir":
            work = await _tree(session, request, store, target, is_sync=True)
        else:
            if target.is_directory_like or await _is_directory(session, target):
                target = _into(target, location)
            work = await _file(session, request, store, target)
        summary = await _engine(request).run(_several([work]))
        summary.comparison = _comparison(settings, store, work.sink)
        return summary


async def run_cp(sources: Sequence[Place], destination: Place, request: Request) -> Summary:
    """See `cp`."""
    locations = [parse(os.fspath(source)) for source in sources]
    target = parse(os.fspath(destination))
    _refuse_streams(*locations, target)
    if not locations:
        raise UsageError("no source given")
    async with Session(request) as session:
        engine = _engine(request)
        works = _Works(session, request, target)
        await works.begin(several=len(locations) > 1)
        for location in locations:
            try:
                await works.add(location)
            except UsageError:
                raise
            except FastsyncError as error:
                if isinstance(error, ListingError) and request.settings.ignore_missing_args:
                    request.observer.note(f"skipped, it does not exist: {location}")
                else:
                    engine.unusable(location, error)
        summary = await engine.run(works.made())
        summary.comparison = works.comparison
        return summary


@dataclass(slots=True)
class _Part:
    """A directory, or files of one directory with what stands in their places, on the way to a sink."""

    source: Source
    sink: Sink
    files: list[tuple[Entry, Entry | None]] | None = None


class _Works:
    """What `cp` was asked for: everything is checked before the first work is made."""

    def __init__(self, session: Session, request: Request, target: Location) -> None:
        self._session = session
        self._request = request
        self._target = target
        self._into = False
        self._parts: list[_Part] = []
        # Files that the user named travel together, as long as no directory is merged with them.
        self._files: dict[Location, _Part] = {}
        self._claims: dict[str, tuple[str, bool]] = {}
        self._merges = False
        self.comparison = ""

    async def begin(self, *, several: bool) -> None:
        """Look at the destination. Raises UsageError."""
        target = self._target
        self._into = target.is_directory_like or await _is_directory(self._session, target)
        if several and not self._into:
            raise UsageError(
                "several sources need a directory as destination",
                where=str(target),
                hint="end it with a / to have it made",
            )

    async def add(self, location: Location) -> None:
        """One more source. Raises UsageError for what cannot be asked, else why it cannot be copied."""
        session, settings = self._session, self._request.settings
        store = await session.open(location, follow=settings.links == "follow")
        named = await _named(store)
        place = _into(self._target, location) if self._into else self._target
        if named.kind != "dir":
            await self._add_file(store, named, place)
            return
        if not settings.recursive:
            raise UsageError("it is a directory", where=str(location), hint="-R copies directories")
        sink = await session.open_sink(place)
        if self._into and place != self._target:
            above = await session.open_sink(self._target)
            with contextlib.suppress(NotFound, Conflict):
                if (await above.stat(place.name)).kind == "link":
                    raise _in_the_way(place, "a link")
        await _check_tree(store, sink)
        if place == self._target:
            self._merges = True
            self._files.clear()
        elif not self._claim(store, place, is_directory=True):
            return
        self._parts.append(_Part(store, sink))
        self.comparison = self.comparison or _comparison(settings, store, sink)

    async def _add_file(self, store: Source, named: Entry, place: Location) -> None:
        session, parent, name = self._session, store.location.parent(), store.location.name
        if not self._claim(store, place, is_directory=False):
            return
        if (part := self._files.get(parent)) is None:
            source = await session.open(parent, follow=True)
            sink = await session.open_sink(place.parent())
            part = self._files[parent] = _Part(source, sink, [])
            self._parts.append(part)
            self.comparison = self.comparison or _comparison(self._request.settings, source, sink)
        standing = await _check_file(part.source, part.sink, name, place.name)
        assert part.files is not None
        part.files.append((named._replace(path=name), standing))

    def _claim(self, store: Source, place: Location, *, is_directory: bool) -> bool:
        """False for a source that was named before. Directories of one name are merged, files of one
        name would lose all but one."""
        ours = (store.address(), is_directory)
        other = self._claims.setdefault(str(place), ours)
        if other is ours:
            return True
        if other == ours:
            return False
        if not (is_directory and other[1]):
            raise UsageError("two of the sources would have the same name", where=str(place))
        self._merges = True
        return True

    async def made(self) -> AsyncIterator[Work]:
        """The works, each made when the one before it is planned."""
        for index, part in enumerate(self._parts):
            if part.files is None:
                place = part.sink.location
                work = await _tree(self._session, self._request, part.source, place, is_sync=False)
            else:
                name = None if self._into else self._target.name
                work = _files(self._request, part.source, part.sink, part.files, name)
            work.last = self._merges and index > 0
            yield work


async def _is_directory(session: Session, target: Location) -> bool:
    standing = await _standing(await session.open(target))
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
        try:
            standing = await store.stat("", follow=True)
        except (NotFound, Conflict) as error:
            raise ListingError("no such file or directory", where=str(location)) from error
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
