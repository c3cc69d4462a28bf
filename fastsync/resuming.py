"""Going on where an earlier process ended: which upload it left behind, and which ranges of it are there.

An upload is written down before its first byte moves (where a store may begin one without our hearing of
it, before it is asked to), with the version of the file that it is of and, as parts arrive, with how far they
came. Whoever wants to write the same version to the same place takes it up.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, TypeAlias

from fastsync.backend import (
    Download,
    DropsUploads,
    Entry,
    ForeseesUploads,
    Leavable,
    LeavesTraces,
    LocalFiles,
    Progress,
    Rechecks,
    ResumesUploads,
    Sink,
    Source,
    Upload,
    Validated,
    WriteOptions,
    offers,
)
from fastsync.errors import (
    Changed,
    DestinationFull,
    FastsyncError,
    IntegrityError,
    TicketRefused,
)
from fastsync.location import LOCAL_SCHEME, Location

Range: TypeAlias = tuple[int, int]

# A killed process loses what it did in that time, and what a part has not reported yet.
_WRITE_DOWN_AFTER_S: Final = 0.5
_SETTLED_NS: Final = 2_000_000_000
# After these, what was written is wrong, or in the way.
_POINTLESS: Final = (Changed, IntegrityError, DestinationFull)


class Version(NamedTuple):
    """One version of one file: its place, without secrets, what tells the version, and its size."""

    source: str
    validator: str
    size: int


class Unfinished(NamedTuple):
    """An upload of an earlier process that is ours to end; `ranges` are of the wanted version, None if it
    is of another and can only be dropped. `others` are as in `ForeseesUploads.find_foreseen`."""

    noted: int
    ticket: str
    ranges: list[Range] | None
    others: Sequence[str] = ()


class Beginning(Protocol):
    """How the upload of one file is begun."""

    def foresee(self) -> str | None:
        """See `ForeseesUploads.foresee_upload`; None of a store that does not."""
        ...

    async def upload(self) -> Upload:
        """A new one."""
        ...

    async def resume(self, left: Unfinished) -> Upload | None:
        """What an earlier process left of it; None where that cannot be gone on with."""
        ...


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Writing:
    """An upload whose bytes come from here."""

    sink: Sink
    path: str
    entry: Entry
    options: WriteOptions
    part_size: int
    old: Entry | None

    def foresee(self) -> str | None:
        sink = self.sink
        if not offers(sink, ForeseesUploads):
            return None
        return sink.foresee_upload(self.path, self.entry, self.options, self.part_size)

    async def upload(self) -> Upload:
        return await self.sink.upload(self.path, self.entry, self.options, self.part_size, self.old)

    async def resume(self, left: Unfinished) -> Upload | None:
        sink = self.sink
        # How far it came does not matter to who finds out by itself.
        is_begun = left.ranges or sink.limits.rechecks
        if not is_begun or not offers(sink, ResumesUploads):
            return None
        ranges = left.ranges or ()
        return await sink.resume_upload(left.ticket, self.path, self.entry, self.options, ranges)


class UploadLog(Protocol):
    """Where uploads that a killed process would leave behind are written down."""

    def note(
        self,
        sink: Sink,
        path: str,
        ticket: str,
        version: Version | None = None,
        source: Location | None = None,
    ) -> int:
        """Write one down, before its first byte moves; what the others need. `source` is where its bytes
        come from."""
        ...

    def name(self, noted: int, ticket: str, version: Version | None = None) -> None:
        """What was foreseen has begun, under this ticket."""
        ...

    def reached(self, noted: int, ranges: Sequence[Range]) -> None:
        """These ranges of it are written."""
        ...

    def take_up(self, sink: Sink, path: str, version: Version | None) -> list[Unfinished]:
        """Uploads to that path that nobody works on any more. They are ours now; without a version, all
        of them are to be dropped."""
        ...

    def forget(self, noted: int) -> None:
        """It was finished or dropped."""
        ...

    def let_go(self, noted: int) -> None:
        """It was left as it is, to be taken up again."""
        ...


def lasting(store: Source) -> Location:
    """The store's place as a later process finds it, whatever directory that one runs in; without its
    password."""
    location = store.location
    if location.scheme == LOCAL_SCHEME:
        return Location(LOCAL_SCHEME, store.address().removeprefix(f"{LOCAL_SCHEME}://"))
    return dataclasses.replace(location, password=None)


def merged(ranges: Iterable[Range]) -> list[Range]:
    """The same ranges in order, those that meet put together."""
    whole: list[Range] = []
    for start, stop in sorted(ranges):
        if whole and start <= whole[-1][1]:
            whole[-1] = whole[-1][0], max(stop, whole[-1][1])
        elif start < stop:
            whole.append((start, stop))
    return whole


def gaps(size: int, ranges: Iterable[Range]) -> list[Range]:
    """What of [0, size) is in none of the ranges."""
    missing: list[Range] = []
    position = 0
    for start, stop in merged(ranges):
        if position < start:
            missing.append((position, start))
        position = stop
    if position < size:
        missing.append((position, size))
    return missing


def version_of(
    source: Source, sink: Sink, entry: Entry, download: Download | None
) -> Version | None:
    """The version that is read, None where a later process could not tell it from another."""
    validator: str | None = None
    rechecks = sink.limits.rechecks
    if download is None:
        if (
            offers(source, LocalFiles)
            and offers(sink, ResumesUploads)
            and entry.mtime_ns is not None
        ):
            age_ns = time.time_ns() - entry.mtime_ns
            # A file that was written to just now may be written to again within the same tick.
            is_telling = age_ns > _SETTLED_NS or rechecks
            validator = f"mtime {entry.mtime_ns}" if is_telling else None
    elif offers(download, Validated):
        validator = download.validator
    if validator is None or entry.size is None:
        return None
    return Version(str(lasting(source).child(entry.path)), validator, entry.size)


class Trace:
    """An upload, written down for as long as it could be left behind, and the ranges written so far."""

    def __init__(
        self,
        upload: Upload,
        log: UploadLog | None = None,
        noted: int = 0,
        *,
        done: Sequence[Range] = (),
        resumable: bool = False,
    ) -> None:
        self.upload = upload
        self.done: Final = tuple(done)
        self._log = log
        self._noted = noted
        self._resumable = resumable
        self._reached: dict[int, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def reached(self, start: int, stop: int) -> None:
        """The bytes [start, stop) are written. Cheap."""
        if not self._resumable:
            return
        self._reached[start] = stop
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_WRITE_DOWN_AFTER_S, self._write_down)

    def _write_down(self) -> None:
        self._stop_timer()
        if self._log is not None:
            self._log.reached(self._noted, merged([*self.done, *self._reached.items()]))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def give_up(self, error: BaseException) -> None:
        """The transfer ends with that error: leave what is worth going on with, and else nothing."""
        is_worth = bool(self.done or self._reached) and not isinstance(error, _POINTLESS)
        if self._resumable and is_worth and await self._leave(self.upload):
            return
        await self.upload.abort()
        self.end()

    async def _leave(self, upload: object) -> bool:
        """Leave it as it is; False when it is gone, or committed already."""
        if self._log is None or not offers(upload, Leavable) or upload.ticket is None:
            return False
        self._write_down()
        await upload.leave()
        self._log.let_go(self._noted)
        return True

    @contextlib.asynccontextmanager
    async def ending(self) -> AsyncIterator[None]:
        """End with what is done within, given up if that fails."""
        try:
            yield
        except BaseException as error:
            # Not even a second cancellation may leave a half file or an orphan upload.
            await asyncio.shield(self.give_up(error))
            raise
        self.end()

    def end(self) -> None:
        """It is finished or dropped. One that could not be dropped is left to a later process."""
        self._stop_timer()
        if self._log is not None and self._noted and _ticket_of(self.upload) is None:
            self._log.forget(self._noted)


class Once:
    """Tells of a part's bytes once, however often the part is tried."""

    def __init__(self, progress: Progress, trace: Trace, start: int) -> None:
        self._progress = progress
        self._trace = trace
        self._start = start
        self._told = 0
        self._now = 0

    def restart(self) -> None:
        self._now = 0

    def rest(self, stop: int) -> int:
        """The part, up to `stop`, is done: so many bytes of it were there already."""
        rest = max(0, stop - self._start - self._told)
        self._trace.reached(self._start, stop)
        return rest

    def __call__(self, nbytes: int, /) -> None:
        self._now += nbytes
        if self._now > self._told:
            self._progress(self._now - self._told)
            self._told = self._now
            self._trace.reached(self._start, self._start + self._told)


async def begin(
    sink: Sink,
    path: str,
    how: Beginning,
    source: Location,
    version: Version | None,
    log: UploadLog | None,
) -> Trace:
    """The upload of the file at `source`: of the wanted version, from where an earlier process left it, else
    a new one. Raises what `Sink.upload` does."""
    foreseen = None if log is None else how.foresee()
    if log is not None and (version is not None or foreseen is not None):
        for left in log.take_up(sink, path, version):
            resumed = None if left.ranges is None else await _resumed(how, left)
            if resumed is not None:
                done = () if offers(resumed, Rechecks) else left.ranges or ()
                return Trace(resumed, log, left.noted, done=done, resumable=True)
            await _drop(sink, left, log)
    noted = 0
    if log is not None and foreseen is not None:
        noted = log.note(sink, path, foreseen, version, source)
    try:
        upload = await how.upload()
    except BaseException as error:
        if log is not None and noted:
            is_certain = isinstance(error, FastsyncError) and not error.transient
            # Perhaps it has begun all the same: the next try, or the next run, will look.
            (log.forget if is_certain else log.let_go)(noted)
        raise
    ticket = _ticket_of(upload)
    if log is None or ticket is None:
        if log is not None and noted:
            log.forget(noted)
        return Trace(upload)
    try:
        if noted:
            log.name(noted, ticket, version)
        else:
            noted = log.note(sink, path, ticket, version, source)
        return Trace(upload, log, noted, resumable=version is not None and noted != 0)
    except BaseException:
        await asyncio.shield(upload.abort())
        raise


async def _resumed(how: Beginning, left: Unfinished) -> Upload | None:
    """None for a ticket that is not understood, too: a journal that is damaged, or of another fastsync, costs
    no more than time."""
    try:
        return await how.resume(left)
    except TicketRefused:
        return None


def _ticket_of(upload: Upload) -> str | None:
    return upload.ticket if offers(upload, LeavesTraces) else None


async def _drop(sink: Sink, left: Unfinished, log: UploadLog) -> None:
    try:
        if offers(sink, DropsUploads):
            await drop(sink, left.ticket, left.others)
    except FastsyncError:
        log.let_go(left.noted)  # `jobs clean` will say why
    else:
        log.forget(left.noted)


async def drop(sink: DropsUploads, ticket: str, others: Sequence[str]) -> None:
    """Drop the upload of a ticket, or what a foreseen one came to. Raises what these do."""
    tickets = [ticket]
    if offers(sink, ForeseesUploads):
        tickets = await sink.find_foreseen(ticket, others)
    for one in tickets:
        await sink.drop_upload(one)
