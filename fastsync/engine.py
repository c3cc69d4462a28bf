"""The engine: takes actions from plans, runs them within budgets, deletes last.

Decisions are synchronous, waiting happens elsewhere. A failure is gathered, told to the observer and
never stops the rest, save for what no further item could survive: a full disk, refused access.

Order of a run: for each plan directories, links and copies as the listings come; when all copies of
all plans are done, deletes (if rule D allows), then what waited for them, then directories' attributes.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from fastsync.backend import (
    READ_BUFFER,
    CompletesEntries,
    CopiesWithin,
    CopyJob,
    Entry,
    KeepsDirectories,
    KeepsLinks,
    KeepsXattrs,
    LocalFiles,
    MakesHardLinks,
    ReadsWhole,
    SetsAttributes,
    Sink,
    Source,
    TellsHardLinks,
    WholeJob,
    WriteOptions,
    WritesWhole,
    closing,
    offers,
)
from fastsync.backing import save
from fastsync.budget import Budget
from fastsync.comparing import common_algorithm, reread, same_bytes, same_digest, same_small
from fastsync.errors import (
    AccessRefused,
    Changed,
    Conflict,
    DestinationFull,
    FastsyncError,
    NotFound,
    Overtaken,
    Throttled,
    Vanished,
)
from fastsync.events import Observer, Operation
from fastsync.location import Location
from fastsync.pace import Pace
from fastsync.patience import Call, Patience, patiently
from fastsync.plan import Action, DeleteGate, PlanPage, Step, forbid_deletes
from fastsync.resuming import UploadLog
from fastsync.spool import Spool
from fastsync.tally import Summary, Tally
from fastsync.transfer import Lanes, copies_within, transfer
from fastsync.workers import WorkerPool, run_all

# Files that the sink copies by itself travel in batches of so many files or bytes.
BATCH_FILES: Final = 512
BATCH_BYTES: Final = 16 << 20
# A file of this size has a batch of its own.
ALONE_FROM: Final = 8 << 20
# Small files that pass through memory: enough at once to fill many connections, and few enough that
# several batches are under way, so that no connection waits for the last file of one.
WHOLE_FILES: Final = 128
WHOLE_BYTES: Final = 4 << 20
# Entries that a store is asked about at once.
SETTLE_FILES: Final = 512
TICK_S: Final = 0.125
# So many files in a row that failed for passing reasons, each with all its tries, and the run is over: it
# would only ask a server that is down again and again.
HOPELESS: Final = 20
# What is told of a file that was compared, by why it was.
_SAME: Final = {
    "checksum": "same checksum",
    "time differs": "same content",
    "just written": "unchanged",
}

Job: TypeAlias = Callable[[], Coroutine[Any, Any, None]]
Item = TypeVar("Item", "Action", "Entry")

# One answer per action, or per entry that is to be deleted.
Vet: TypeAlias = Callable[["Sequence[Action | Entry]"], Awaitable[Sequence[FastsyncError | None]]]


class Record(Protocol):
    """Writes down what a dry run would do, in the order of doing it. `entry` is the source's, None for a
    deletion; `late` marks what waits until deletions are done."""

    def __call__(
        self,
        work: Work,
        operation: Operation,
        path: str,
        entry: Entry | None,
        old: Entry | None,
        reason: str,
        *,
        late: bool,
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Budgets:
    """What a run may use: streams in flight, files at once, bytes per part and in memory, retries; files
    up to `small` bytes travel whole, and all of them at the `pace`. Streams and memory may be `shared` with
    other runs."""

    streams: int = 8
    jobs: int = 8
    chunk_size: int = 16 << 20
    memory: int = 64 << 20
    retries: int = 5
    small: int = 1 << 20
    pace: Pace | None = None
    shared: tuple[Budget, Budget] | None = None


@dataclass(slots=True)
class Work:
    """One plan to carry out, between two open stores.

    `rename` gives the destination path of a source path where they differ (a single file under a new
    name). `root` is the source directory itself, given when its attributes go along. `protects` says
    that filters hide entries of the destination, which may keep their directories alive. `differ` tells
    whether attributes have to be set (the entry, what stands there, whether times count); `decide` what a
    file needs once both sides have told all they know of it. `yields` means that a file that somebody
    else wrote meanwhile is one to skip. A work that is `last` in its place waits for the works before it,
    so that what it brings stays. `reads_content` compares by reading, whatever the stores can tell.
    What would be overwritten or deleted is copied to `backup` first, if there is one. `xattrs` keeps
    extended attributes, `hard_links` names of one file together, both of stores that know of them.

    `vet` is asked, right before anything is done, about each action and each entry to be deleted, and
    answers with what speaks against it. With `vet` a work is a plan made earlier: what changed since is
    a failure and gets no fresh look, and what waits for the end comes in the order in which it is to run.
    """

    source: Source
    sink: Sink
    pages: AsyncIterator[PlanPage]
    write: WriteOptions
    gate: DeleteGate | None = None
    rename: Callable[[str], str] | None = None
    root: Entry | None = None
    directory_times: bool = False
    protects: bool = False
    differ: Callable[[Entry, Entry, bool], bool] = lambda _entry, _old, _times: True
    decide: Callable[[Entry, Entry], tuple[Step, str]] = lambda _entry, _old: ("copy", "unsettled")
    yields: bool = False
    last: bool = False
    vet: Vet | None = None
    reads_content: bool = False
    backup: Sink | None = None
    xattrs: bool = False
    hard_links: bool = False

    def target(self, path: str) -> str:
        """The path at the destination of a source's path."""
        return self.rename(path) if self.rename is not None else path

    def aimed(self, actions: Sequence[Action]) -> Sequence[Action]:
        """The same actions with what stands at the destination by its name there."""
        if self.rename is None:
            return actions
        return [
            action
            if action.old is None
            else action._replace(old=action.old._replace(path=self.rename(action.path)))
            for action in actions
        ]

    def jobs(self, actions: Sequence[Action]) -> list[CopyJob]:
        return [CopyJob(action.entry, self.target(action.path), action.old) for action in actions]

    def places(self, action: Action) -> tuple[Location, Location]:
        """Where an action reads and writes."""
        source = self.source.location.child(action.entry.path)
        return source, self.sink.location.child(self.target(action.path))


@dataclass(slots=True)
class _Batch:
    actions: list[Action] = field(default_factory=list)
    size: int = 0

    def take(self) -> list[Action]:
        """What is in it; it is empty then."""
        actions, self.actions, self.size = self.actions, [], 0
        return actions


@dataclass(slots=True)
class _Run:
    """One work in progress: what it leaves for the end, and what decides on its deletes."""

    work: Work
    deletes: Spool[Entry] = field(default_factory=Spool)
    later: Spool[Action] = field(default_factory=Spool)
    finish: Spool[Action] = field(default_factory=Spool)
    doomed_files: int = 0
    source_entries: int = 0
    destination_files: int = 0
    faults: list[FastsyncError] = field(default_factory=list)
    copy_errors: list[FastsyncError] = field(default_factory=list)
    keeps_everything: bool = False
    refused: tuple[str, ...] = ()  # "path/" of directories that could not be made
    # A directory that we may not read there must not become one that we may not read here.
    unlisted: set[str] = field(default_factory=set)
    within: bool = False  # the sink copies by itself
    unpaced: bool = True  # no limit of the rate, or the bytes do not pass through this machine
    whole: int = -1  # files up to this size travel whole, in batches
    rereads: bool = False  # what the sink copies by itself, this process compares
    compares_whole: bool = False  # small files are compared by reading both, in batches
    small: int = 0
    copies: _Batch = field(default_factory=_Batch)
    verifies: _Batch = field(default_factory=_Batch)
    extras: Spool[Action] = field(default_factory=Spool)  # whose extended attributes are looked at
    # The first name of each file with several, at the destination, and the copies that become links.
    leaders: dict[str, str] = field(default_factory=dict)
    names: Spool[tuple[str, Action]] = field(default_factory=Spool)
    unsettled: _Batch = field(default_factory=_Batch)

    def __post_init__(self) -> None:
        source, sink = self.work.source, self.work.sink
        self.within = copies_within(source, sink)
        # A store that copies by itself has to read a file for its digest, too.
        knows_digests = common_algorithm(source, sink) is not None and not self.within
        reads_whole = offers(source, ReadsWhole) and offers(sink, ReadsWhole)
        is_slow = source.limits.slow_digests or sink.limits.slow_digests
        self.compares_whole = reads_whole and (is_slow or not knows_digests)

    def close(self) -> None:
        self.deletes.close()
        self.later.close()
        self.finish.close()
        self.extras.close()
        self.names.close()


class Engine:
    """Runs works. One per run; not reusable."""

    def __init__(
        self,
        budgets: Budgets,
        observer: Observer,
        *,
        dry_run: bool = False,
        log: UploadLog | None = None,
        record: Record | None = None,
    ) -> None:
        self._record = record
        self._is_late = False
        self._budgets = budgets
        # What may move at once.
        step = budgets.pace.step() if budgets.pace is not None else None
        self._step = 1 << 62 if step is None else step
        self._dry_run = dry_run
        self._tally = Tally(observer)
        self._pool = WorkerPool(budgets.jobs)
        self._lanes = Lanes(
            streams=budgets.shared[0] if budgets.shared else Budget(budgets.streams),
            memory=budgets.shared[1] if budgets.shared else Budget(budgets.memory),
            # A part and the read that fills it must fit into the memory together.
            chunk_size=max(1, min(budgets.chunk_size, budgets.memory // 2, self._step)),
            may_retry=self._may_retry,
            log=log,
            resumed=self._tally.resumed,
            pace=budgets.pace,
        )
        self._fatal: FastsyncError | None = None
        self._unlucky = 0  # files in a row that failed for passing reasons

    @property
    def memory_peak(self) -> int:
        """The most file data, in bytes, that the run allowed itself to hold at once."""
        return self._lanes.memory.peak

    def unusable(self, location: Location, error: FastsyncError) -> None:
        """A source that cannot be copied: an item that failed."""
        self._tally.failed("scan", location.name, location, None, error)

    def renamed(self, entry: Entry, source: Location, destination: Location) -> None:
        """What needs no copy, having got another name."""
        path = source.name + "/" * (entry.kind == "dir")
        self._tally.done("copy", path, (source, destination), entry.size, "renamed")

    async def run(self, works: AsyncIterator[Work]) -> Summary:
        """Carry out everything. Raises only what no item can be blamed for (a listing that failed);
        item failures are in the summary."""
        started = time.monotonic()
        runs: list[_Run] = []
        ticker = asyncio.create_task(self._tick())
        try:
            async for work in works:
                run = _Run(work)
                if work.write.reread:
                    run.rereads = run.within and not work.sink.limits.rereads
                elif offers(work.source, ReadsWhole) and offers(work.sink, WritesWhole):
                    run.whole = min(self._budgets.small, self._lanes.chunk_size)
                if self._budgets.pace is not None:
                    local = offers(work.source, LocalFiles) and offers(work.sink, LocalFiles)
                    run.unpaced = run.within and not local
                run.small = min(self._budgets.small, self._lanes.chunk_size)
                runs.append(run)
                if work.last:
                    await self._pool.drain()
                await self._plan(run)
            self._tally.totals.scanning = False
            await self._pool.drain()
            for run in runs:
                await self._link_names(run)
            for run in runs:
                await self._delete(run)
            for run in runs:
                await self._later(run)
            await self._pool.drain()
            for run in runs:
                await self._keep_xattrs(run)
            for run in runs:
                await self._finish(run)
        finally:
            for run in runs:
                run.close()
            ticker.cancel()
            await self._pool.stop()
            await asyncio.wait([ticker])
        if self._fatal is not None:
            self._tally.note(f"stopped early: {self._fatal}")
        self._tally.tell()
        return self._tally.summary(time.monotonic() - started)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._tally.tell()

    # -- the phases ----------------------------------------------------------------------------------

    async def _plan(self, run: _Run) -> None:
        work, totals = run.work, self._tally.totals
        async with closing(work.pages) as pages:
            async for page in pages:
                if self._fatal is not None:
                    break
                totals.scanned += page.scanned
                totals.files_skipped += page.skipped_files
                totals.bytes_skipped += page.skipped_bytes
                totals.specials_skipped += page.specials
                run.source_entries += page.scanned
                run.destination_files += page.destination_files
                run.doomed_files += sum(1 for entry in page.deletes if entry.kind != "dir")
                for fault in page.faults:
                    run.faults.append(fault.error)
                    run.unlisted.add(fault.path)
                    place = work.source.location.child(fault.path)
                    self._tally.failed("scan", fault.path, place, None, fault.error)
                for action in page.skips:
                    self._tally.skipped(action.path, *work.places(action), action.reason)
                run.deletes.extend(page.deletes)
                run.later.extend(page.later)
                run.finish.extend(page.finish)
                if work.xattrs:
                    seen = (*page.now, *page.later, *page.skips)
                    run.extras.extend([each for each in seen if each.entry.kind in ("file", "dir")])
                if work.hard_links:
                    page.now = await self._lead(run, page.now, page.skips)
                await self._start(run, page.now)
        await self._flush(run)

    async def _start(self, run: _Run, actions: Sequence[Action]) -> None:
        """Do what is quick, in order, and hand copies to the pool, waiting while it is behind."""
        actions = await _vetted(run.work, run.work.aimed(actions), partial(self._failed, run))
        quick: dict[Step, list[Action]] = {"mkdir": [], "link": [], "attributes": []}
        copies: list[Action] = []
        for action in actions:
            quick.get(action.step, copies).append(action)
        for step, some in quick.items():
            if some:
                await self._quick(run, step, some)
        for action in copies:
            if action.step == "settle":
                run.unsettled.actions.append(action)
                if len(run.unsettled.actions) >= SETTLE_FILES:
                    await self._pool.submit(partial(self._settle, run, run.unsettled.take()))
            else:
                self._tally.planned(action.entry.size)
                for job in self._copying(run, action):
                    await self._pool.submit(job)

    def _copying(self, run: _Run, action: Action) -> Iterator[Job]:
        """What is to be done now that `action` is to be copied: it, its batch, or nothing yet."""
        size = action.entry.size
        is_whole = size is not None and size <= run.whole
        is_within = run.within and (run.unpaced or (size or 0) <= self._step)
        if action.step == "verify" and run.compares_whole and (size or 0) <= run.small:
            batch = run.verifies
            batch.actions.append(action)
            batch.size += size or 0
            files, most = self._whole_batch
            if len(batch.actions) >= files or 2 * batch.size >= most:
                yield partial(self._verify_small, run, batch.take())
        elif action.step == "verify" or not (is_within or is_whole):
            yield partial(self._copy_one, run, action)
        elif self._dry_run:
            self._done(run, action)
        elif is_within and (size or 0) >= ALONE_FROM:
            yield partial(self._copy_batch, run, [action])
        else:
            files, most = (BATCH_FILES, BATCH_BYTES) if run.within else self._whole_batch
            if not run.unpaced:
                most = min(most, self._step)
            batch = run.copies
            exact = not (run.within and run.unpaced)
            if batch.actions and exact and batch.size + (size or 0) > most:
                yield partial(self._copy_batch, run, batch.take())
            batch.actions.append(action)
            batch.size += size or 0
            if len(batch.actions) >= files or batch.size >= most:
                yield partial(self._copy_batch, run, batch.take())

    @property
    def _whole_batch(self) -> tuple[int, int]:
        """The most files and bytes in a batch that passes through memory, of which several must fit."""
        return WHOLE_FILES, max(1, min(WHOLE_BYTES, self._lanes.memory.limit // 4))

    async def _flush(self, run: _Run) -> None:
        """Hand over what waits for its batch to be full."""
        if run.unsettled.actions:
            await self._pool.submit(partial(self._settle, run, run.unsettled.take()))
        if run.verifies.actions:
            await self._pool.submit(partial(self._verify_small, run, run.verifies.take()))
        if run.copies.actions:
            await self._pool.submit(partial(self._copy_batch, run, run.copies.take()))

    async def _settle(self, run: _Run, actions: Sequence[Action]) -> None:
        """Ask the stores for what their listings left out, then do what that decides."""
        work = run.work
        actions = await self._complete(run, actions, work.source, is_source=True)
        actions = await self._complete(run, actions, work.sink, is_source=False)
        quick: list[Action] = []
        jobs: list[Job] = []
        for action in actions:
            assert action.old is not None
            step, reason = work.decide(action.entry, action.old)
            action = action._replace(step=step, reason=reason)
            if step == "skip":
                self._tally.unchanged(action.entry.size)
                self._tally.skipped(action.path, *work.places(action), reason)
            elif step == "attributes":
                quick.append(action)
            else:
                self._tally.planned(action.entry.size)
                jobs += self._copying(run, action)
        if quick:
            await self._quick(run, "attributes", quick)
        await self._do_here(run, jobs)

    async def _complete(
        self, run: _Run, actions: Sequence[Action], store: Source, *, is_source: bool
    ) -> list[Action]:
        """The actions with what `store` knows of their entries; failures are told."""
        if not offers(store, CompletesEntries):
            return list(actions)
        answers: dict[str, Entry] = {}
        gone: list[Action] = []

        def entry_of(action: Action) -> Entry:
            return action.entry if is_source else action.old or action.entry

        async def complete(some: Sequence[Action]) -> list[FastsyncError | None]:
            made = await store.complete([entry_of(action) for action in some])
            errors: list[FastsyncError | None] = []
            for action, answer in zip(some, made, strict=True):
                if isinstance(answer, FastsyncError):
                    errors.append(answer)
                else:
                    answers[action.path] = answer
                    errors.append(None)
            return errors

        def failed(action: Action, error: FastsyncError) -> None:
            # What changed at the destination is as good as anything that differs.
            if isinstance(error, Changed) and not is_source:
                answers[action.path] = entry_of(action)
            elif isinstance(error, Changed):
                gone.append(action)
            else:
                self._failed(run, action, error)

        wanted = [action for action in actions if entry_of(action).mtime_ns is None]
        await patiently(
            complete, wanted, done=lambda _some: None, failed=failed, may_retry=self._may_retry
        )
        for action in gone:
            fresh = await self._relist(run, action)
            if fresh is not None:
                answers[action.path] = fresh.entry
        asked = {action.path for action in wanted}
        settled: list[Action] = []
        for action in actions:
            if action.path not in asked:
                settled.append(action)
            elif (answer := answers.get(action.path)) is not None:
                settled.append(
                    action._replace(entry=answer) if is_source else action._replace(old=answer)
                )
        return settled

    async def _delete(self, run: _Run) -> None:
        work = run.work
        if work.gate is None or not (run.deletes or self._fatal):
            return
        forbidden = self._fatal or forbid_deletes(
            work.gate,
            doomed_files=run.doomed_files,
            destination_files=run.destination_files,
            source_entries=run.source_entries,
            faults=run.faults,
            copy_errors=run.copy_errors,
        )
        if forbidden is not None:
            # What an item's failure has said already is not said twice by the exit code.
            said = self._fatal or run.faults or any(e.exit_code != 8 for e in run.copy_errors)
            self._tally.keep(forbidden, is_stop=not said)
            run.keeps_everything = True
            return
        # Backwards: children before the directory that holds them.
        is_planned = work.vet is not None
        for page in run.deletes.pages() if is_planned else run.deletes.pages_backwards():
            for start in range(0, len(page), work.sink.limits.delete_batch):
                await self._delete_some(run, page[start : start + work.sink.limits.delete_batch])

    async def _delete_some(self, run: _Run, entries: Sequence[Entry]) -> None:
        sink = run.work.sink

        def done(gone: Sequence[Entry]) -> None:
            for entry in gone:
                place = sink.location.child(entry.path)
                if self._record is not None:
                    reason = "not in the source"
                    self._record(run.work, "delete", entry.path, None, entry, reason, late=False)
                if entry.kind == "dir":
                    self._tally.removed_directory(entry.path, place)
                else:
                    self._tally.done(
                        "delete", entry.path, (None, place), entry.size, "not in the source"
                    )

        def failed(entry: Entry, error: FastsyncError) -> None:
            if entry.kind == "dir" and run.work.protects and isinstance(error, Conflict):
                return
            self._tally.failed("delete", entry.path, None, sink.location.child(entry.path), error)

        entries = await _vetted(run.work, entries, failed)
        backup = run.work.backup
        if backup is not None and not self._dry_run:
            answers = await save(sink, backup, entries, run.work.write, self._lanes)
            for entry, error in zip(entries, answers, strict=True):
                if error is not None:
                    failed(entry, _not_saved(error))
            pairs = zip(entries, answers, strict=True)
            entries = [entry for entry, error in pairs if error is None]
        if self._dry_run:
            done(entries)
        else:
            await patiently(
                sink.delete, entries, done=done, failed=failed, may_retry=self._may_retry
            )

    async def _later(self, run: _Run) -> None:
        self._is_late = True
        for page in run.later.pages():
            if not run.keeps_everything:
                await self._start(run, page)
                continue
            for action in page:
                self._failed(run, action, Conflict("what stands in its way was not deleted"))
        await self._flush(run)

    async def _lead(
        self, run: _Run, actions: Sequence[Action], skips: Sequence[Action]
    ) -> list[Action]:
        """The actions but for copies of further names of a file, which become links to the first."""
        source = run.work.source
        if not offers(source, TellsHardLinks) or not offers(run.work.sink, MakesHardLinks):
            return list(actions)
        files = [each for each in (*skips, *actions) if each.entry.kind == "file"]
        identities = await source.link_identities([action.entry for action in files])
        followers = set()
        for action, identity in zip(files, identities, strict=True):
            if identity is None:
                continue
            path = run.work.target(action.path)
            leader = run.leaders.setdefault(identity, path)
            if leader != path and action.step in ("copy", "verify", "settle"):
                followers.add(action.path)
                run.names.extend([(leader, action)])
        return [action for action in actions if action.path not in followers]

    async def _link_names(self, run: _Run) -> None:
        """Make further names of files whose first name is there by now."""
        work, sink = run.work, run.work.sink
        for page in run.names.pages():
            actions = [action._replace(step="copy") for _, action in page]
            for _ in actions:
                self._tally.planned(0)
            if self._dry_run or self._fatal is not None or not offers(sink, MakesHardLinks):
                errors: Sequence[FastsyncError | None] = [self._fatal] * len(page)
            else:
                safe = {each.path for each in await self._backed_up(run, actions)}
                page = [pair for pair in page if pair[1].path in safe]
                actions = [action for action in actions if action.path in safe]
                pairs = [(leader, work.target(action.path)) for leader, action in page]
                errors = await sink.make_hard_links(pairs)
            for action, error in zip(actions, errors, strict=True):
                if error is None:
                    self._done(run, action._replace(entry=action.entry._replace(size=0)))
                elif self._fatal is None:
                    await self._copy_one(run, action)  # the first name may have failed
                else:
                    self._failed(run, action, error)

    async def _keep_xattrs(self, run: _Run) -> None:
        """Give what was copied, or is there already, the extended attributes of its source."""
        source, sink = run.work.source, run.work.sink
        if self._dry_run or not (offers(source, KeepsXattrs) and offers(sink, KeepsXattrs)):
            return
        target = run.work.target
        for page in run.extras.pages():
            for start in range(0, len(page), BATCH_FILES):
                some = page[start : start + BATCH_FILES]
                found = await source.read_xattrs([action.entry for action in some])
                jobs: list[tuple[str, Mapping[str, bytes]]] = []
                whose: list[Action] = []
                for action, one in zip(some, found, strict=True):
                    if not isinstance(one, FastsyncError):
                        jobs.append((target(action.path), one))
                        whose.append(action)
                    elif not isinstance(one, NotFound):
                        self._failed(run, action._replace(step="attributes"), one)
                answers = await sink.write_xattrs(jobs)
                for action, answer in zip(whose, answers, strict=True):
                    # What is not there has failed already.
                    if answer is not None and not isinstance(answer, NotFound):
                        self._failed(run, action._replace(step="attributes"), answer)

    async def _finish(self, run: _Run) -> None:
        write = dataclasses.replace(run.work.write, mtime=run.work.directory_times)
        # Backwards: a directory that ends without write permission must not lock out its children.
        is_planned = run.work.vet is not None
        for page in run.finish.pages() if is_planned else run.finish.pages_backwards():
            if run.refused:
                page = [each for each in page if not (each.path + "/").startswith(run.refused)]
            if run.unlisted:
                page = [each for each in page if each.path not in run.unlisted]
            await self._quick(run, "attributes", page, write)
        await self._finish_root(run, write)

    async def _finish_root(self, run: _Run, write: WriteOptions) -> None:
        root, sink = run.work.root, run.work.sink
        if root is None or self._fatal is not None or "" in run.unlisted:
            return
        if self._dry_run and self._record is None:
            return
        now: Entry | None = None
        with contextlib.suppress(FastsyncError):  # why it is not there has been said
            now = await sink.stat("")
        if now is not None and not run.work.differ(root, now, run.work.directory_times):
            return
        if self._record is not None:
            self._record(run.work, "attributes", "", root, None, "the root", late=True)
        elif now is not None:
            action = Action("attributes", "", root, now, "the root")
            await self._quick(run, "attributes", [action], write)

    # -- items ---------------------------------------------------------------------------------------

    async def _quick(
        self,
        run: _Run,
        step: Step,
        actions: Sequence[Action],
        write: WriteOptions | None = None,
    ) -> None:
        """Directories, links or attributes: one call for all of them."""

        def done(some: Sequence[Action]) -> None:
            for action in some:
                if action.path:
                    self._done(run, action)

        if step == "link":
            actions = await self._backed_up(run, actions)
        call = None if self._dry_run else _quick_call(run.work, step, write or run.work.write)
        if call is None:
            done(actions)
            return
        failed = partial(self._failed, run)
        await patiently(call, actions, done=done, failed=failed, may_retry=self._may_retry)

    async def _copy_batch(self, run: _Run, actions: Sequence[Action]) -> None:
        """Copies that the sink does by itself, or small ones through memory; what has changed meanwhile
        gets one fresh look."""
        work = run.work
        alone = actions[0] if len(actions) == 1 else None
        changed: list[Action] = []
        verified: set[str] = set()
        started = time.monotonic()
        copied = unlucky = 0
        last: FastsyncError | None = None

        async def copy(some: Sequence[Action]) -> Sequence[FastsyncError | None]:
            nonlocal started
            if not run.within:
                started = time.monotonic()
                return await self._copy_whole(work, some, verified)
            sink = work.sink
            assert offers(work.sink, CopiesWithin)
            async with self._lanes.streams.spend(1), self._lanes.memory.spend(READ_BUFFER):
                started = time.monotonic()
                with self._current(alone):
                    if not run.unpaced:
                        await self._wait_for_turn(work, some)
                    jobs = work.jobs(some)
                    answers: Sequence[FastsyncError | None] = await work.sink.copy_from(
                        work.source, jobs, work.write, self._tally.moved
                    )
            if run.rereads:
                answers = await reread(work.source, sink, jobs, answers, self._lanes)
            if work.write.reread:
                pairs = zip(some, answers, strict=True)
                verified.update(action.path for action, answer in pairs if answer is None)
            return answers

        def done(some: Sequence[Action]) -> None:
            nonlocal copied
            copied += len(some)
            if alone is None and not self._tally.wants_items:
                checked = sum(action.path in verified for action in some) if verified else 0
                size = sum(action.entry.size or 0 for action in some)
                self._tally.copied(len(some), size, checked)
                return
            for action in some:
                duration_s = time.monotonic() - started if alone else 0.0
                self._done(run, action, duration_s, is_verified=action.path in verified)

        def failed(action: Action, error: FastsyncError) -> None:
            nonlocal last, unlucky
            if isinstance(error, Changed) and not is_fresh and work.vet is None:
                changed.append(action)
            else:
                self._failed(run, action, error)
                last = error
                unlucky = max(unlucky + error.transient, _bad_luck(error))

        is_fresh = False
        actions = await self._backed_up(run, actions)
        while actions and self._fatal is None:
            await patiently(copy, actions, done=done, failed=failed, may_retry=self._may_retry)
            looks = [await self._relist(run, action) for action in changed]
            actions = [action for action in looks if action is not None]
            changed.clear()
            is_fresh = True
        self._learn(copied, unlucky, last)

    async def _backed_up(self, run: _Run, actions: Sequence[Action]) -> Sequence[Action]:
        """The actions of which the old state is safe; the others have failed."""
        backup, target = run.work.backup, run.work.target
        replaced = [action for action in actions if action.old is not None]
        if backup is None or not replaced or self._dry_run:
            return actions
        olds = [a.old._replace(path=target(a.path)) for a in replaced if a.old is not None]
        answers = await save(run.work.sink, backup, olds, run.work.write, self._lanes)
        unsafe = set()
        for action, error in zip(replaced, answers, strict=True):
            if error is not None:
                unsafe.add(action.path)
                self._failed(run, action, _not_saved(error))
        return [action for action in actions if action.path not in unsafe]

    async def _wait_for_turn(self, work: Work, actions: Sequence[Action]) -> None:
        """Until the rate lets all their bytes move."""
        if self._lanes.pace is not None:
            size = sum(action.entry.size or 0 for action in actions)
            await self._lanes.pace.take(size, work.source, work.sink)

    async def _copy_whole(
        self, work: Work, actions: Sequence[Action], verified: set[str]
    ) -> list[FastsyncError | None]:
        """Small files, read and written in two calls; the answer has one item per action. Those of which a
        digest was compared are added to `verified`."""
        source, sink = work.source, work.sink
        checks_writes = sink.limits.checks_writes
        assert offers(source, ReadsWhole)
        assert offers(sink, WritesWhole)
        answers: list[FastsyncError | None] = []
        jobs: list[WholeJob] = []
        size = sum(action.entry.size or 0 for action in actions)
        async with self._lanes.memory.spend(size):
            await self._wait_for_turn(work, actions)
            loads = await source.read_whole([action.entry for action in actions])
            for action, load in zip(actions, loads, strict=True):
                if isinstance(load, FastsyncError):
                    answers.append(load)
                elif len(load.data) != action.entry.size:
                    answers.append(
                        Changed(f"{len(load.data)} bytes arrived, {action.entry.size} were listed")
                    )
                else:
                    entry = load.entry
                    if entry.mtime_ns is None:
                        entry = entry._replace(mtime_ns=entry.stored_ns)
                    jobs.append(WholeJob(entry, work.target(action.path), load.data, action.old))
                    answers.append(None)
                    if load.is_verified or checks_writes:
                        verified.add(action.path)
            writes = iter(await sink.write_whole(jobs, work.write) if jobs else ())
        moved = 0
        for index, (action, answer) in enumerate(zip(actions, answers, strict=True)):
            if answer is None:
                answers[index] = answer = next(writes)
                if answer is None:
                    moved += action.entry.size or 0
        self._tally.moved(moved)
        return answers

    async def _copy_one(self, run: _Run, action: Action) -> None:
        """One file by itself, with its retries: a fresh look after a change, patience for the rest."""
        relisted = False
        patience = Patience(self._may_retry)
        while self._fatal is None:
            try:
                with self._current(action):
                    await self._try_copy(run, action)
                return
            except Changed as error:
                if relisted or run.work.vet is not None:
                    self._failed(run, action, error)
                    return
                relisted = True
                fresh = await self._relist(run, action)
                if fresh is None:
                    return
                action = fresh
            except FastsyncError as error:
                is_over = not error.transient or error.is_final
                pause = None if is_over else patience.pause([error])
                if pause is None:
                    self._failed(run, action, error)
                    self._learn(0, _bad_luck(error), error)
                    return
                await asyncio.sleep(pause)

    def _learn(self, copied: int, unlucky: int, error: FastsyncError | None) -> None:
        """What a call came to: when there has been nothing but bad luck for long, enough is enough."""
        self._unlucky = 0 if copied else self._unlucky + unlucky
        if self._unlucky >= HOPELESS and self._fatal is None and error is not None:
            self._fatal = FastsyncError(
                f"{self._unlucky} files in a row failed for passing reasons, at last: {error.message}",
                hint="run the same command again later; it goes on where it stopped",
            )

    async def _try_copy(self, run: _Run, action: Action) -> None:
        work = run.work
        started = time.monotonic()
        if action.step == "verify" and await self._same_content(work, action):
            await self._same(run, [action])
        elif self._dry_run:
            self._done(run, action)
        elif run.within and (run.unpaced or (action.entry.size or 0) <= self._step):
            await self._copy_batch(run, [action._replace(step="copy")])
        elif await self._backed_up(run, [action]):
            path = work.target(action.path)
            entry, old, moved = action.entry, action.old, self._tally.moved
            landed = await transfer(
                work.source, work.sink, entry, path, work.write, self._lanes, moved, old
            )
            self._learn(1, 0, None)
            duration_s = time.monotonic() - started
            self._done(run, action, duration_s, is_verified=landed.is_verified)

    async def _relist(self, run: _Run, action: Action) -> Action | None:
        """The action with the entry as it is now; None after telling that it cannot be copied."""
        source, entry = run.work.source, action.entry
        where = str(source.location.child(entry.path))
        try:
            now = await source.stat(entry.path, follow=True)
            if now.kind != "file":
                raise Changed("it is no longer a file", where=where)
        except NotFound:
            gone = Vanished("the file is gone since it was listed", where=where)
            self._failed(run, action, gone)
            return None
        except FastsyncError as error:
            self._failed(run, action, error)
            return None
        return action._replace(entry=now._replace(owner=entry.owner and now.owner))

    async def _same_content(self, work: Work, action: Action) -> bool:
        source, sink, entry, old = work.source, work.sink, action.entry, action.old
        if old is None:
            return False
        same = None
        if not work.reads_content:
            same = await same_digest(source, entry, sink, old, self._lanes)
        if same is None and action.reason != "time differs":
            # Reading both is dear, but asked for; where only the time differs, a copy is as cheap.
            same = await same_bytes(source, entry, sink, old, self._lanes)
        return same is True

    async def _verify_small(self, run: _Run, actions: Sequence[Action]) -> None:
        """Compare small files, many at once; what differs is copied like anything new."""
        work = run.work
        source, sink = work.source, work.sink
        assert offers(source, ReadsWhole)
        assert offers(sink, ReadsWhole)
        answers = await same_small(source, sink, work.jobs(actions), self._lanes)
        jobs: list[Job] = []
        same: list[Action] = []
        for action, answer in zip(actions, answers, strict=True):
            if answer is True:
                same.append(action)
            elif answer is False:
                jobs += self._copying(run, action._replace(step="copy"))
            else:  # an error: patience, or a fresh look, is for one file at a time
                jobs.append(partial(self._copy_one, run, action))
        await self._same(run, same)
        await self._do_here(run, jobs)

    async def _same(self, run: _Run, actions: Sequence[Action]) -> None:
        """Files that turned out to have the same content; what else differs is set."""
        work = run.work
        changes: list[Action] = []
        for action in actions:
            self._tally.same(action.entry.size)
            if self._tally.wants_skips:
                self._tally.skipped(action.path, *work.places(action), _SAME[action.reason])
            if action.old is not None and work.differ(action.entry, action.old, True):
                changes.append(action._replace(step="attributes", reason="same content"))
        if changes:
            await self._quick(run, "attributes", changes)

    async def _do_here(self, run: _Run, jobs: list[Job]) -> None:
        """Not through the pool, which waits for us: what was decided here is done here."""
        if run.verifies.actions:
            jobs.append(partial(self._verify_small, run, run.verifies.take()))
        if run.copies.actions:
            jobs.append(partial(self._copy_batch, run, run.copies.take()))
        if jobs:
            await run_all(min(self._budgets.jobs, len(jobs)), (job() for job in jobs))

    def _may_retry(self, attempt: int) -> bool:
        if self._fatal is not None or attempt >= self._budgets.retries:
            return False
        self._tally.totals.retries += 1
        return True

    # -- telling -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _current(self, action: Action | None) -> Iterator[None]:
        """Show a file as being copied, unless it is one of a batch."""
        current = self._tally.totals.current
        if action is not None:
            current[action.path] = action.entry.size or 0
        try:
            yield
        finally:
            if action is not None:
                current.pop(action.path, None)

    def _done(
        self, run: _Run, action: Action, duration_s: float = 0.0, *, is_verified: bool = False
    ) -> None:
        # The places are made only for somebody who looks: they cost as much as a small file.
        places = run.work.places(action) if self._tally.wants_items else None
        size, reason = action.entry.size, action.reason
        if self._record is not None:
            entry, old, late = action.entry, action.old, self._is_late
            self._record(run.work, _operation(action), action.path, entry, old, reason, late=late)
        operation = _operation(action)
        self._tally.done(
            operation, action.path, places, size, reason, duration_s, is_verified=is_verified
        )

    def _failed(self, run: _Run, action: Action, error: FastsyncError) -> None:
        if run.work.yields and isinstance(error, Overtaken):
            self._tally.same(action.entry.size)
            self._tally.skipped(action.path, *run.work.places(action), "exists")
            return
        if run.work.vet is not None and isinstance(error, Overtaken):
            changed = Changed("the destination changed since it was planned")
            changed.__cause__ = error
            error = changed
        run.copy_errors.append(error)
        path = action.path + "/"
        if action.step == "mkdir" and not path.startswith(run.refused):
            run.refused += (path,)
        self._tally.failed(_operation(action), action.path, *run.work.places(action), error)
        if isinstance(error, (DestinationFull, AccessRefused)):
            # Every further item would fail the same way; what is under way may still end well.
            self._fatal = self._fatal or error


async def _vetted(
    work: Work, items: Sequence[Item], failed: Callable[[Item, FastsyncError], None]
) -> Sequence[Item]:
    """Those of the items that nothing speaks against; of the others, `failed` hears."""
    if work.vet is None:
        return items
    answers = await work.vet(items)
    for item, error in zip(items, answers, strict=True):
        if error is not None:
            failed(item, error)
    return [item for item, error in zip(items, answers, strict=True) if error is None]


def _bad_luck(error: FastsyncError) -> int:
    """How much a failure says of the ones to come: much, if a server has asked for patience all the time."""
    return HOPELESS // 4 if isinstance(error, Throttled) else int(error.transient)


def _not_saved(error: FastsyncError) -> FastsyncError:
    """What stays as it is because its copy failed."""
    if isinstance(error, (DestinationFull, AccessRefused)):
        return error
    found = Conflict(f"it stays, for it could not be backed up: {error.message}")
    found.__cause__ = error
    return found


def _operation(action: Action) -> Operation:
    if action.step == "verify" or action.step == "settle":
        return "copy"
    return action.step


def _quick_call(work: Work, step: Step, write: WriteOptions) -> Call[Action] | None:
    """What does a quick step for many actions; None where the sink knows no such thing."""
    sink = work.sink
    if step == "mkdir" and offers(sink, KeepsDirectories):
        return lambda some: sink.make_directories(
            [action.entry._replace(path=work.target(action.path)) for action in some], write
        )
    if step == "link" and offers(sink, KeepsLinks):
        return lambda some: sink.make_links(work.jobs(some), write)
    if step == "attributes" and offers(sink, SetsAttributes):
        return lambda some: sink.set_attributes(work.jobs(some), write)
    return None
