"""What earlier runs left behind: uploads that are written down, temporary files that are found by their
names, and the end of both."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from fastsync.backend import DropsUploads, Entry, FindsLeftovers, FindsUploads, closing
from fastsync.errors import (
    FastsyncError,
    ListingError,
    NotFound,
    PermissionRefused,
    TicketRefused,
    Unsupported,
    UsageError,
)
from fastsync.events import UNFINISHED_DOWNLOAD, UNFINISHED_UPLOAD
from fastsync.journal import Journal, Owner, Record
from fastsync.location import LOCAL_SCHEME, Location, parse
from fastsync.resuming import drop
from fastsync.session import Request, Session, as_sink, missing
from fastsync.settings import Side
from fastsync.tally import Summary, Tally

if TYPE_CHECKING:
    from fastsync.backend import Sink


class Left(NamedTuple):
    """Something unfinished: where it was to go, or is. `record` is what the journal has of it, `entry` the
    file, `ticket` the upload that was found without one."""

    place: Location
    state: Owner
    pid: int
    since_ns: int
    record: Record | None = None
    entry: Entry | None = None
    ticket: str | None = None

    @property
    def source(self) -> str | None:
        """What it is a copy of, as it is printed; None where that is not known."""
        if self.record is None or self.record.origin is None:
            return None
        return self.record.origin.source

    @property
    def size(self) -> int | None:
        """How long the whole file is."""
        version = None if self.record is None else self.record.version
        return None if version is None else version.size

    @property
    def done(self) -> int | None:
        """How many bytes of it are there, as far as it is written down."""
        if self.record is None:
            return None if self.entry is None else self.entry.size
        return sum(stop - start for start, stop in self.record.ranges)


async def leftovers(
    request: Request, place: str | None = None, *, searches: bool = True
) -> AsyncIterator[Left]:
    """What is written down and, with a `place`, only what is below it, with the temporary files and uploads
    that nobody wrote down if it `searches` for them; what is in hand among them. Raises ListingError for a
    place to search that does not exist."""
    records = _records(request)
    if place is None:
        for record in records:
            yield _written_down(record)
        return
    async with Session(request, light=True) as session:
        store = as_sink(await session.open(parse(place), side="destination"))
        below = _comparable(store.location, store) + "/"
        known = []
        for record in records:
            target = parse(record.place).child(record.path)
            if (_comparable(target) + "/").startswith(below):
                known.append(record.ticket)
                yield _written_down(record)
        if searches and isinstance(store, FindsLeftovers):
            async for left in _found(store, records):
                yield left
        if searches and isinstance(store, FindsUploads):
            try:
                async for left in _begun(store, known):
                    yield left
            except (PermissionRefused, Unsupported) as error:
                request.observer.note(
                    f"it cannot be told which uploads are unfinished there: {error}"
                )


def _comparable(location: Location, store: Sink | None = None) -> str:
    # Of a path on a disk the journal has the real one.
    if location.scheme == LOCAL_SCHEME:
        path = location.path if store is None else store.address().removeprefix("file://")
        return f"file://{path}".rstrip("/")
    return str(dataclasses.replace(location, password=None)).rstrip("/")


async def _found(store: Sink, records: list[Record]) -> AsyncIterator[Left]:
    assert isinstance(store, FindsLeftovers)
    try:
        async with closing(store.find_leftovers()) as pages:
            async for page in pages:
                for path, size, made_ns, state, pid in page:
                    # A name is of 64 bits, and in no ticket but its own.
                    name = path.rpartition("/")[2]
                    if not any(name in record.ticket for record in records):
                        entry = Entry(path, "file", size, None)
                        yield Left(store.location.child(path), state, pid, made_ns, entry=entry)
    except NotFound as error:
        raise missing(error, str(store.location)) from error


async def _begun(store: Sink, known: list[str]) -> AsyncIterator[Left]:
    assert isinstance(store, FindsUploads)
    location = store.location
    try:
        async with closing(store.find_uploads(known)) as pages:
            async for page in pages:
                for path, ticket, began_ns in page:
                    place = location.child(path) if path else location
                    yield Left(place, "elsewhere", 0, began_ns, ticket=ticket)
    except NotFound as error:
        raise missing(error, str(location)) from error


def _written_down(record: Record) -> Left:
    place, process = parse(record.place).child(record.path), record.process
    return Left(place, process.state(), process.pid, record.noted_ns, record)


def _reason(left: Left) -> str:
    if left.ticket is not None:
        return UNFINISHED_UPLOAD
    if left.record is None:
        return "temporary file"
    is_download = left.place.scheme == LOCAL_SCHEME
    return UNFINISHED_DOWNLOAD if is_download else UNFINISHED_UPLOAD


def _folder(request: Request) -> str:
    if request.state_folder is None:
        raise UsageError("there is no journal without a state folder")
    return request.state_folder


def _records(request: Request) -> list[Record]:
    with contextlib.closing(Journal(_folder(request))) as journal:
        return journal.records()


async def run_clean(
    request: Request, place: str | None = None, *, everything: bool = False
) -> Summary:
    """Drop what processes that are gone have left, with `everything` those that cannot be told from here,
    too; what is in hand here stays. What cannot be dropped is in the summary, and stays as it is; but with
    `everything` what is not understood is forgotten, with a note."""
    started = time.monotonic()
    tally = Tally(request.observer)
    try:
        async with closing(leftovers(request, place)) as found:
            async for left in found:
                if left.state == "running" or (left.state == "elsewhere" and not everything):
                    continue
                path = left.place.name
                reason = _reason(left)
                size = None if left.entry is None else left.entry.size
                try:
                    if not request.settings.dry_run:
                        await drop_left(request, left, place)
                    tally.done("delete", path, (None, left.place), size, reason)
                except TicketRefused as error:
                    if left.record is None or not everything:
                        tally.failed("delete", path, None, left.place, error)
                        continue
                    _forget(request, left.record)
                    request.observer.note(
                        f"forgotten, what there is of it stays: {left.place}: {error.message}"
                    )
                except FastsyncError as error:
                    tally.failed("delete", path, None, left.place, error)
    except ListingError as error:
        tally.failed("scan", "", parse(place or ""), None, error)
    return tally.summary(time.monotonic() - started)


def is_written_down(request: Request, record: Record) -> bool:
    """Whether the journal still has it, and nobody works on it."""
    with contextlib.closing(Journal(_folder(request))) as journal:
        return any(one.id == record.id and journal.can_take(one) for one in journal.records())


async def drop_left(request: Request, left: Left, place: str | None) -> None:
    """Drop it, and what is written down of it; what has no record is at or below `place`."""
    if left.record is not None:
        with contextlib.closing(Journal(_folder(request))) as journal:
            others = journal.others(left.record)
        await _drop_upload(request, left.record, others)
        _forget(request, left.record)
    elif left.ticket is not None and place is not None:
        async with Session(request, light=True) as session:
            await _uploads_of(await session.open_sink(parse(place))).drop_upload(left.ticket)
    elif left.entry is not None and place is not None:
        async with Session(request, light=True) as session:
            store = await session.open_sink(parse(place))
            (answer,) = await store.delete([left.entry])
            if answer is not None:
                raise answer


def _forget(request: Request, record: Record) -> None:
    with contextlib.closing(Journal(_folder(request))) as journal:
        journal.forget(record.id)


async def _drop_upload(request: Request, record: Record, others: list[str]) -> None:
    """Open the store as it was opened then, with the secrets of today."""
    settings_of = request.place_settings

    def place_settings(location: Location, side: Side) -> Mapping[str, str]:
        return {**settings_of(location, side), **record.settings}

    place = parse(record.place)
    asked = dataclasses.replace(request, place_settings=place_settings, state_folder=None)
    async with Session(asked) as session:
        store = _uploads_of(await session.open_sink(place))
        try:
            await drop(store, record.ticket, others)
        except NotFound:
            pass  # nothing is left in a place that is gone
        except TicketRefused as error:
            hint = "fastsync jobs clean --all forgets it"
            raise TicketRefused(error.message, hint=hint) from error


def _uploads_of(store: Sink) -> DropsUploads:
    """Raises Unsupported."""
    if not isinstance(store, DropsUploads):
        where = str(store.location)
        raise Unsupported("unfinished uploads cannot be dropped there", where=where)
    return store
