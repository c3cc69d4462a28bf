"""A run's request, and the stores it opens: each place once, with the settings that are meant for it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from fastsync.backend import Backend, Entry, Fault, Page, Sink, Source, StoreOptions, closing
from fastsync.budget import Budget
from fastsync.errors import (
    Conflict,
    FastsyncError,
    IntegrityError,
    ListingError,
    Missing,
    NameRefused,
    NotFound,
    PermissionRefused,
    Transient,
    Unsupported,
    UsageError,
    caused,
)
from fastsync.events import Observer, Silent
from fastsync.filters import Chooser, Filter, Rule
from fastsync.location import Location, parse
from fastsync.pace import Pace
from fastsync.patience import persistently, up_to
from fastsync.private import is_shared_folder
from fastsync.redaction import conceal
from fastsync.registry import Registry
from fastsync.resuming import Range, Unfinished, Version, lasting
from fastsync.settings import SETTINGS, Settings, Side, is_secret

if TYPE_CHECKING:
    from fastsync.chosen import FileList
    from fastsync.journal import Journal, Origin

# What of the settings decides how one file is written, and has to be the same when it is gone on with.
ASKED_AGAIN: Final = (
    "chunk_size",
    "checksum",
    "ignore_existing",
    "archive",
    "preserve_special",
    "xattrs",
    "sparse",
    "durable",
    "verify",
    "fail_on_conflict",
)
# A place as a caller may write it.
Place: TypeAlias = str | os.PathLike[str] | Location
# The settings of a place that is read from, or written to.
PlaceSettings: TypeAlias = Callable[[Location, Side], Mapping[str, str]]


def missing(error: NotFound | Conflict, where: str) -> Missing:
    """What there is to say of a place where nothing is, which some stores know more about."""
    said = error.message if isinstance(error, NotFound) else "no such file or directory"
    return Missing(said, where=where, hint=error.hint)


def passes_over(request: Request, location: Location, error: FastsyncError) -> bool:
    """Whether a place that is not there is one to pass over, which is told."""
    passes = isinstance(error, Missing) and request.settings.ignore_missing_args
    if passes:
        request.observer.note(f"skipped, it does not exist: {location}")
    return passes


async def named(session: Session, store: Source) -> Entry:
    """What is at a source. Raises ListingError for nothing, Unsupported for what cannot be copied."""
    where = str(store.location)
    try:
        entry = await persistently(lambda: store.stat("", follow=True), session.may_retry)
    except (NotFound, Conflict) as error:
        raise missing(error, where) from error
    if entry.kind != "dir" and store.location.is_directory_like:
        raise ListingError("it is not a directory", where=where, hint="leave out the slash")
    if entry.kind == "special":
        raise Unsupported(
            "it is a device, a pipe or a socket, and those are not copied", where=where
        )
    return entry


def untrusted(error: FastsyncError, store: Source) -> FastsyncError:
    """What the failure of a look at a place means for whoever has to know all of it."""
    # An error without a kind is one of the system's: EIO, say.
    is_failure = isinstance(error, (Transient, IntegrityError, PermissionRefused, NotFound))
    if not is_failure and type(error) is not FastsyncError:
        return error
    found = ListingError(
        f"{error.message}, so its listing is incomplete",
        where=error.where or str(store.location),
        hint=error.hint,
    )
    found.__cause__ = error
    return found


def _hiding(fault: Fault, store: Source) -> Fault:
    # A link that leads nowhere hides nothing but itself.
    is_item = isinstance(fault.error, NotFound)
    return fault if is_item else Fault(fault.path, untrusted(fault.error, store))


async def whole(pages: AsyncIterator[Page], store: Source) -> AsyncIterator[Page]:
    """A listing that is worth nothing unless it comes to its end. Raises ListingError for one that does not,
    or of which nothing could be read, whatever the protocol calls that; a fault is one for what it hides."""
    try:
        async with closing(pages) as listed:
            async for page in listed:
                if page.faults:
                    page = Page(page.entries, [_hiding(fault, store) for fault in page.faults])
                    path, error = page.faults[0]
                    # One that has no name below the place hides nothing but itself, too.
                    if path == "" and not isinstance(error, NameRefused):
                        raise error
                yield page
                # What is done with a page may wait for nothing, and what reads it ahead neither.
                await asyncio.sleep(0)
    except FastsyncError as error:
        found = untrusted(error, store)
        raise found from caused(found, error)


async def _close(opened: Iterable[Source | Backend]) -> None:
    """Close all of them, one after the other, though one fails. A cancellation waits for it: of what is
    let go of half way (a process, a connection) nobody else knows. A second one does not."""

    async def close() -> None:
        async with contextlib.AsyncExitStack() as stack:
            for each in reversed([*opened]):
                stack.push_async_callback(each.aclose)

    ending = asyncio.create_task(close())
    try:
        await asyncio.shield(ending)
    except asyncio.CancelledError:
        await ending
        raise


def located(place: Place) -> Location:
    """The place that is meant. Raises UsageError for what is none."""
    return place if isinstance(place, Location) else parse(os.fspath(place))


def all_located(places: Place | Sequence[Place]) -> list[Location]:
    """One place or several. Raises UsageError."""
    if isinstance(places, str | os.PathLike | Location):
        return [located(places)]
    return [located(place) for place in places]


@dataclass(slots=True, eq=False, repr=False)
class Shared:
    """What runs at the same time have together: protocols with their connections, budgets, and rates."""

    streams: Budget
    memory: Budget
    backends: dict[type[Backend], Backend] = dataclasses.field(default_factory=dict)
    paces: dict[str, Pace] = dataclasses.field(default_factory=dict)  # by what was asked for
    is_unjournalled: bool = False  # the journal cannot be used, which was said

    async def aclose(self) -> None:
        """Close the protocols, after the last run."""
        await _close(self.backends.values())


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Request:
    """What a run is asked for, besides its places: settings, filter rules, and who watches.

    `place_settings` gives the settings of one place (endpoint, region ...); `given` has the names of
    those that were asked for in so many words, so that one which no place understands is not silently
    without effect. `state_folder` is where stores and the journal may keep things, None for
    nowhere; `shared` is what it has together with other runs.
    """

    settings: Settings = dataclasses.field(default_factory=Settings)
    rules: Sequence[Rule] = ()
    observer: Observer = dataclasses.field(default_factory=Silent)
    place_settings: PlaceSettings = lambda _location, _side: {}
    given: frozenset[str] = frozenset()
    state_folder: str | None = None
    shared: Shared | None = None

    def filter(self, choosers: Sequence[Chooser] = ()) -> Filter:
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
            choosers=choosers,
        )


class _Watched(Mapping[str, str]):
    """The settings of a place, with a memory of what was looked at."""

    def __init__(self, values: Mapping[str, str], seen: set[str]) -> None:
        self._values = values
        self._seen = seen

    def __getitem__(self, key: str) -> str:
        self._seen.add(key)
        value = self._values[key]
        if is_secret(key):
            conceal(value)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<settings {', '.join(sorted(self._values))}>"  # values may be secrets


class Uploads:
    """Writes down uploads of open stores (see `fastsync.resuming.UploadLog`). A journal that cannot be
    written is worth a note, and no reason not to copy."""

    def __init__(self, request: Request, folder: str) -> None:
        self._request = request
        self._folder = folder
        self._journal: Journal | None = None
        shared = request.shared
        self._is_broken = shared is not None and shared.is_unjournalled
        self._in_hand: set[int] = set()

    def note(
        self,
        sink: Sink,
        path: str,
        ticket: str,
        version: Version | None = None,
        source: Location | None = None,
    ) -> int:
        """A number for the others; 0 when it could not be written down."""
        if self._is_broken:
            return 0
        kept = self._place_settings(sink.location, "destination")
        origin = None if source is None else self._origin(source)
        try:
            place = str(lasting(sink))
            noted = self._open().note(place, kept, path, ticket, version, origin)
        except FastsyncError as error:
            self._give_up(error)
            return 0
        self._in_hand.add(noted)
        return noted

    def _origin(self, source: Location) -> Origin:
        from fastsync.journal import Origin

        settings = self._request.settings
        options = {
            name: getattr(settings, name)
            for name in ASKED_AGAIN
            if getattr(settings, name) != SETTINGS[name].default
        }
        # What is kept before it is replaced, or read from a pipe, takes the run that was asked for.
        is_whole = not (source.hides or source.is_stream or settings.backup_dir)
        return Origin(str(source), is_whole, self._place_settings(source, "source"), options)

    def _place_settings(self, location: Location, side: Side) -> dict[str, str]:
        settings = self._request.place_settings(location, side)
        return {key: value for key, value in settings.items() if not is_secret(key)}

    def name(self, noted: int, ticket: str, version: Version | None = None) -> None:
        """See `UploadLog.name`."""
        if noted and not self._is_broken:
            try:
                self._open().name(noted, ticket, version)
            except FastsyncError as error:
                self._give_up(error)

    def reached(self, noted: int, ranges: Sequence[Range]) -> None:
        """See `UploadLog.reached`."""
        if noted and not self._is_broken:
            try:
                self._open().reached(noted, ranges)
            except FastsyncError as error:
                self._give_up(error)

    def take_up(self, sink: Sink, path: str, version: Version | None) -> list[Unfinished]:
        """See `UploadLog.take_up`; one that fits comes first."""
        if self._is_broken:
            return []
        try:
            journal = self._open()
            taken = []
            for record in journal.unfinished(str(lasting(sink)), path):
                if record.id in self._in_hand or not journal.can_take(record):
                    continue
                if journal.claim(record):
                    self._in_hand.add(record.id)
                    is_it = version is not None and record.version == version
                    ranges = list(record.ranges) if is_it and journal.is_sound(record) else None
                    others = journal.others(record)
                    taken.append(Unfinished(record.id, record.ticket, ranges, others))
        except FastsyncError as error:
            self._give_up(error)
            return []
        return sorted(taken, key=lambda one: one.ranges is None)

    def let_go(self, noted: int) -> None:
        """See `UploadLog.let_go`."""
        self._in_hand.discard(noted)

    def forget(self, noted: int) -> None:
        """See `UploadLog.forget`."""
        self._in_hand.discard(noted)
        if self._journal is not None and noted and not self._is_broken:
            try:
                self._journal.forget(noted)
            except FastsyncError:
                self._is_broken = True  # the record does no harm

    def _open(self) -> Journal:
        from fastsync.journal import Journal  # 10 ms, for uploads that can stay behind

        if self._journal is None:
            self._journal = Journal(self._folder)
        return self._journal

    def _give_up(self, error: FastsyncError) -> None:
        self._is_broken = True
        if (shared := self._request.shared) is not None:
            if shared.is_unjournalled:
                return
            shared.is_unjournalled = True
        self._request.observer.note(f"uploads that are cut off will not be found again: {error}")

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()


class Session:
    """The protocols and stores that one run has opened; closing it closes them all. A `light` one moves no
    content."""

    def __init__(self, request: Request, *, light: bool = False) -> None:
        self.request = request
        self.may_retry = up_to(request.settings.retry_count)
        self._light = light
        self._registry = Registry.from_entry_points()
        shared = request.shared
        self._backends: dict[type[Backend], Backend] = {} if shared is None else shared.backends
        self._stores: dict[tuple[Location, bool, Side], Source] = {}
        self._seen: set[str] = set()
        folder = request.state_folder
        self.uploads = Uploads(request, folder) if folder is not None else None
        self._stores_folder = None if folder is None or is_shared_folder(folder) else folder
        self.files: FileList | None = None
        settings = request.settings
        self.pace = self._pace()
        if settings.files_from is not None:
            from fastsync.chosen import FileList

            self.files = FileList.read(settings.files_from, null=settings.from0)

    def _pace(self) -> Pace | None:
        """The limit of the rate, None without one; runs that share connections share it, too."""
        limit, shared = self.request.settings.bwlimit, self.request.shared
        if limit is None:
            return None
        if shared is None:
            return Pace(limit)
        return shared.paces.setdefault(str(limit), Pace(limit))

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, kind: object, *_error: object) -> None:
        if kind is None:
            self._tell_unread()
        backends = self._backends.values() if self.request.shared is None else ()
        try:
            await _close([*self._stores.values(), *backends])
        finally:
            if self.uploads is not None:
                self.uploads.close()

    async def open(
        self, location: Location, *, follow: bool = False, side: Side = "source"
    ) -> Source:
        """The store at `location`, one per run and side. Raises UsageError for an unknown scheme,
        AccessRefused."""
        known = self._stores.get((location, follow, side))
        if known is not None:
            return known
        found = self._registry.load(location.scheme)
        backend = self._backends.get(found)
        if backend is None:
            # Two schemes of one protocol (http and https) share what it owns.
            backend = self._backends[found] = found()
        request, settings = self.request, self.request.settings
        store = await backend.connect(
            location,
            StoreOptions(
                streams=settings.parallel_streams,
                jobs=settings.jobs,
                chunk_size=settings.chunk_size,
                buffer_size=settings.buffer_size,
                stall_timeout_s=settings.stall_timeout,
                min_rate=settings.min_rate,
                request_timeout_s=settings.request_timeout,
                retries=settings.retry_count,
                follow_links=follow,
                durable=settings.durable,
                writes=side == "destination",
                light=self._light,
                note=request.observer.note,
                place=_Watched(request.place_settings(location, side), self._seen),
                state_folder=self._stores_folder,
                tcp_send_buffer=settings.tcp_send_buffer,
                tcp_recv_buffer=settings.tcp_recv_buffer,
                congestion_control=settings.congestion_control,
                send_rate=None if self.pace is None else self.pace.up_rate,
            ),
        )
        self._stores[location, follow, side] = store
        return store

    async def reach(self, location: Location) -> tuple[Source, str]:
        """The store of the directory that holds a place, and the name in it: where a link is a link.
        A place that is a root, written as a directory, or on the web, is its own store and has no name."""
        if location.is_directory_like or location.stands_alone:
            return await self.open(location), ""
        return await self.open(location.parent()), location.name

    async def open_sink(self, location: Location) -> Sink:
        """A store that can be written. Raises UsageError for one that cannot."""
        store = await self.open(location, side="destination")
        return as_sink(store)

    def _tell_unread(self) -> None:
        unread = sorted(self.request.given - self._seen)
        if unread and self.request.settings.verbose:
            told = ", ".join(f"--{key.replace('_', '-')}" for key in unread)
            self.request.observer.note(f"without effect on these places: {told}")


def as_sink(store: Source) -> Sink:
    """`store`, if it can be written. Raises UsageError for one that cannot."""
    if not isinstance(store, Sink):
        scheme = store.location.scheme
        raise UsageError(f"{scheme}:// can only be read", where=str(store.location))
    return store
