"""Removing: what `rm` was asked for, and the sources of `mv`.

Everything that can be wrong with what was asked for is found before the first file goes. Files go in
batches while the listing is still coming, directories at the end, children before parents.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from fastsync.backend import Entry, KeepsDirectories, ScanOptions, Sink, closing, offers
from fastsync.errors import Conflict, FastsyncError, NotFound, UsageError, caused
from fastsync.events import Item
from fastsync.location import Location
from fastsync.patience import Luck, bad_luck, patiently
from fastsync.session import (
    Place,
    Request,
    Session,
    all_located,
    as_sink,
    missing,
    passes_over,
    untrusted,
    whole,
)
from fastsync.spool import Spool
from fastsync.tally import Summary, Tally
from fastsync.wildcards import Wildcard, find, something
from fastsync.workers import WorkerPool

REASON = "asked for"


class Remover:
    """Deletes entries of open stores, several batches at once, and tells of each."""

    def __init__(self, request: Request, tally: Tally) -> None:
        self.tally = tally
        self._request = request
        self._pool = WorkerPool(request.settings.jobs)
        self.luck = Luck()

    async def __aenter__(self) -> Remover:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._pool.stop()
        if self.luck.over is not None:
            self._request.observer.note(f"stopped early: {self.luck.over}")

    async def submit(self, sink: Sink, entries: Sequence[Entry]) -> None:
        """Begin to delete files, in batches; waits while too many are under way."""
        step = sink.limits.delete_batch
        for start in range(0, len(entries), step):
            await self._pool.submit(partial(self.delete, sink, entries[start : start + step]))

    async def drain(self) -> None:
        """Wait until what was begun is done."""
        await self._pool.drain()

    async def delete(self, sink: Sink, entries: Sequence[Entry], *, may_stay: bool = False) -> None:
        """Delete a batch now, unless luck has run out. With `may_stay` a directory with something left in it
        is no failure."""

        def done(gone: Sequence[Entry]) -> None:
            for entry in gone:
                self._tell(sink, entry)

        def failed(entry: Entry, error: FastsyncError) -> None:
            if not (may_stay and entry.kind == "dir" and isinstance(error, Conflict)):
                self.tally.failed("delete", entry.path, None, _place(sink, entry), error)

        if self.luck.over is not None:
            return
        if self._request.settings.dry_run:
            # Whether a directory would be empty by then cannot be told.
            done([entry for entry in entries if not (may_stay and entry.kind == "dir")])
        else:
            await patiently(
                sink.delete, entries, done=done, failed=failed, may_retry=self.may_retry,
                luck=self.luck,
            )  # fmt: skip

    def may_retry(self, attempt: int) -> bool:
        """Whether there is another try after attempt number `attempt`, from 0; counts it."""
        if attempt >= self._request.settings.retry_count:
            return False
        self.tally.totals.retries += 1
        return True

    def _tell(self, sink: Sink, entry: Entry) -> None:
        if entry.kind != "dir":
            place = _place(sink, entry)
            self.tally.done("delete", entry.path, (None, place), entry.size, REASON)
        elif self.tally.wants_items:  # what is counted is files
            place, path = _place(sink, entry), entry.path + "/"
            self._request.observer.item(Item("delete", path, "", str(place), None, REASON))

    async def directories(self, sink: Sink, spool: Spool[Entry], *, may_stay: bool = False) -> None:
        """Delete the directories in `spool`, which were listed in order, the last one first."""
        step = sink.limits.delete_batch
        for page in spool.pages_backwards():
            for start in range(0, len(page), step):
                await self.delete(sink, page[start : start + step], may_stay=may_stay)


def _place(sink: Sink, entry: Entry) -> Location:
    return sink.location.child(entry.path)


@dataclass(slots=True, eq=False, repr=False)
class _Target:
    """What one of the places means: entries of a store, all in it, or what a wildcard means of it. `root`
    is the directory itself, an entry of the store `above`."""

    sink: Sink
    entries: list[Entry] = field(default_factory=list)
    is_tree: bool = False
    wild: Wildcard | None = None
    above: Sink | None = None
    root: Entry | None = None


async def run_rm(places: Place | Sequence[Place], request: Request) -> Summary:
    """Remove files, with ``recursive`` directories too, or what wildcards mean; links themselves, not
    what they lead to. Raises UsageError before anything is touched."""
    locations = all_located(places)
    if not locations:
        raise UsageError("no place given")
    started = time.monotonic()
    tally = Tally(request.observer)
    async with (
        Session(request, light=True) as session,
        Remover(request, tally) as remover,
    ):
        targets: dict[Location, _Target] = {}
        for location in locations:
            try:
                target = await _target(session, location)
            except UsageError:
                raise
            except FastsyncError as error:
                if not passes_over(request, location, error):
                    tally.failed("scan", location.name, location, None, error)
                remover.luck.learn(0, bad_luck(error), error)
                if remover.luck.over is not None:
                    break
                continue
            remover.luck.learn(1, 0, None)
            # Files of one directory go together.
            known = targets.setdefault(target.sink.location if target.entries else location, target)
            if known is not target:
                known.entries += target.entries
        for target in targets.values():
            if remover.luck.over is not None:
                break
            await _remove(target, request, remover)
        await remover.drain()
    return tally.summary(time.monotonic() - started)


async def _target(session: Session, location: Location) -> _Target:
    """What a place means. Raises UsageError for what must not or cannot be removed like this,
    Missing for what is not there."""
    request = session.request
    where = str(location)
    if location.is_stream:
        raise UsageError("standard input and output cannot be removed", where=where)
    wild = None if request.settings.raw else find(location)
    if wild is not None:
        store = as_sink(await session.open(wild.base))
        if request.settings.recursive and set(wild.pattern) <= {"*"}:
            _refuse_root(store)
        return _Target(store, is_tree=True, wild=wild)
    tail = location.path.rstrip("/").rpartition("/")[2]
    if tail in (".", ".."):
        raise UsageError("write the directory's name to remove it", where=where)
    store = as_sink(await session.open(location))
    _refuse_root(store)
    if not tail:  # all of a bucket
        return _tree(request, _Target(store, is_tree=True))
    plain = dataclasses.replace(location, path=location.path.rstrip("/"))
    above = as_sink(await session.open(plain.parent()))
    if request.settings.version_id is not None:
        # Taken at its word: it may be the mark of a deletion, at which nobody can look.
        return _Target(above, [Entry(tail, "file", None, None)])
    try:
        entry = await above.stat(tail)
    except (NotFound, Conflict) as error:
        raise missing(error, where) from error
    except FastsyncError as error:
        found = untrusted(error, above) if request.settings.recursive else error
        raise found from caused(found, error)
    if location.is_directory_like and entry.kind == "link":
        raise UsageError("it is a link", where=where, hint="leave out the slash to remove it")
    if entry.kind == "dir" or location.is_directory_like:
        root = entry if entry.kind == "dir" else None
        return _tree(request, _Target(store, is_tree=True, above=above, root=root))
    return _Target(above, [entry])


def _tree(request: Request, target: _Target) -> _Target:
    if not request.settings.recursive:
        where = str(target.sink.location)
        raise UsageError("it is a directory", where=where, hint="-R removes directories")
    return target


def _refuse_root(store: Sink) -> None:
    """A whole file system, or all buckets of somebody, is never what was meant."""
    rest = store.address().partition("://")[2].strip("/")
    if not rest or ("/" not in rest and offers(store, KeepsDirectories)):
        raise UsageError("this is the root of everything there", where=str(store.location))


async def _remove(target: _Target, request: Request, remover: Remover) -> None:
    sink = target.sink
    await remover.submit(sink, target.entries)
    if not target.is_tree:
        return
    chosen = request.filter()
    options = ScanOptions(
        recursive=request.settings.recursive or target.wild is None,
        # Objects go by their exact names, such as stand for directories among them.
        raw=sink.limits.raw_names and target.wild is None,
        prune=None if chosen.is_empty else chosen.prune,
        missing_ok=target.wild is None,  # somebody else was faster
    )
    pages = whole(sink.scan(options), sink)
    if target.wild is not None:
        pages = whole(target.wild.scan(sink, options, needs_recursion=True), sink)
        if not request.settings.ignore_missing_args:
            pages = something(pages, f"{sink.location}{target.wild.pattern}")
    directories: Spool[Entry] = Spool()
    may_stay = not chosen.is_empty
    try:
        async with closing(pages) as listed:
            async for entries, faults in listed:
                for fault in faults:
                    may_stay = True
                    place = sink.location.child(fault.path)
                    remover.tally.failed("scan", fault.path, place, None, fault.error)
                if not chosen.is_empty:
                    entries = chosen.select(entries)
                files = [entry for entry in entries if entry.kind != "dir"]
                directories.extend([entry for entry in entries if entry.kind == "dir"])
                await remover.submit(sink, files)
        await remover.drain()
        await remover.directories(sink, directories, may_stay=may_stay)
        if target.root is not None and target.above is not None:
            await remover.delete(target.above, [target.root], may_stay=may_stay)
    except FastsyncError as error:
        remover.tally.failed("scan", "", sink.location, None, error)
    finally:
        directories.close()
