"""Items of a run: each copy, link and attribute, with its retries, fresh looks and what is told of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeAlias

from fastsync import log
from fastsync.backend import (
    READ_BUFFER,
    CopiesWithin,
    Entry,
    KeepsDirectories,
    KeepsLinks,
    ReadsWhole,
    Reconnects,
    SetsAttributes,
    WholeJob,
    WriteOptions,
    WritesWhole,
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
    IntegrityError,
    NotFound,
    Overtaken,
    Vanished,
)
from fastsync.events import Operation
from fastsync.patience import Call, Luck, Patience, bad_luck, patiently
from fastsync.plan import Action, Step
from fastsync.resuming import UploadLog
from fastsync.spool import Spool
from fastsync.stitching import copies_in_parts, copy_in_parts
from fastsync.tally import Tally
from fastsync.transfer import Lanes, copies_within, transfer
from fastsync.work import Budgets, Record, Work
from fastsync.workers import run_all

# Files that the sink copies by itself travel in batches of so many files or bytes.
BATCH_FILES: Final = 512
BATCH_BYTES: Final = 16 << 20
# A file of this size has a batch of its own.
ALONE_FROM: Final = 8 << 20
# Small files that pass through memory: enough at once to fill many connections, and few enough that
# several batches are under way, so that no connection waits for the last file of one.
WHOLE_FILES: Final = 128
WHOLE_BYTES: Final = 4 << 20
# What is told of a file that was compared, by why it was.
_SAME: Final = {
    "checksum": "same checksum",
    "time differs": "same content",
    "just written": "unchanged",
}

Job: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


@dataclass(slots=True, eq=False, repr=False)
class Batch:
    actions: list[Action] = field(default_factory=list)
    size: int = 0

    def take(self) -> list[Action]:
        """What is in it; it is empty then."""
        actions, self.actions, self.size = self.actions, [], 0
        return actions


@dataclass(slots=True, eq=False, repr=False)
class Run:
    """One work in progress: what it leaves for the end, and what decides on its deletes."""

    work: Work
    deletes: Spool[Entry] = field(default_factory=Spool)
    reasons: dict[str, str] = field(default_factory=dict)  # of deletions, where there is another
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
    copies: Batch = field(default_factory=Batch)
    verifies: Batch = field(default_factory=Batch)
    extras: Spool[Action] = field(default_factory=Spool)  # whose extended attributes are looked at
    # The first name of each file with several, at the destination, and the copies that become links.
    leaders: dict[str, str] = field(default_factory=dict)
    names: Spool[tuple[str, Action]] = field(default_factory=Spool)
    unsettled: Batch = field(default_factory=Batch)

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


class Items:
    """Carries out single actions, many at once; what comes of each is told. One per run."""

    def __init__(
        self,
        budgets: Budgets,
        tally: Tally,
        *,
        dry_run: bool = False,
        log: UploadLog | None = None,
        record: Record | None = None,
    ) -> None:
        self._record = record
        self.is_late = False  # deletions are done
        self._budgets = budgets
        # What may move at once.
        step = budgets.pace.step() if budgets.pace is not None else None
        self._step = 1 << 62 if step is None else step
        self._dry_run = dry_run
        self._tally = tally
        self.lanes = Lanes(
            streams=budgets.shared[0] if budgets.shared else Budget(budgets.streams),
            memory=budgets.shared[1] if budgets.shared else Budget(budgets.memory),
            # A part and the read that fills it must fit into the memory together.
            chunk_size=max(1, min(budgets.chunk_size, budgets.memory // 2, self._step)),
            may_retry=self.may_retry,
            log=log,
            resumed=tally.resumed,
            pace=budgets.pace,
        )
        self.fatal: FastsyncError | None = None
        # Files up to this size go together.
        self.small = min(budgets.small, self.lanes.chunk_size)
        self.luck = Luck()

    def copying(self, run: Run, actions: Iterable[Action]) -> Iterator[Job]:
        """What is to be done now that `actions` are to be copied: single ones, and batches that are full."""
        files, most = (BATCH_FILES, BATCH_BYTES) if run.within else self._whole_batch
        if not run.unpaced:
            most = min(most, self._step)
        exact = not (run.within and run.unpaced)
        batch = run.copies
        for action in actions:
            size = action.entry.size or 0
            is_whole = size <= run.whole and action.entry.size is not None
            is_within = run.within and (run.unpaced or size <= self._step)
            if action.step == "verify" and run.compares_whole and size <= run.small:
                yield from self._comparing(run, action, size)
            elif action.step == "verify" or not (is_within or is_whole):
                yield partial(self.copy_one, run, action)
            elif self._dry_run:
                self.done(run, action)
            elif is_within and size >= ALONE_FROM:
                yield partial(self._copy_batch, run, [action])
            else:
                if exact and batch.actions and batch.size + size > most:
                    yield partial(self._copy_batch, run, batch.take())
                batch.actions.append(action)
                batch.size += size
                if len(batch.actions) >= files or batch.size >= most:
                    yield partial(self._copy_batch, run, batch.take())

    def _comparing(self, run: Run, action: Action, size: int) -> Iterator[Job]:
        batch = run.verifies
        batch.actions.append(action)
        batch.size += size
        files, most = self._whole_batch
        if len(batch.actions) >= files or 2 * batch.size >= most:
            yield partial(self._verify_small, run, batch.take())

    @property
    def _whole_batch(self) -> tuple[int, int]:
        """The most files and bytes in a batch that passes through memory, of which several must fit."""
        return WHOLE_FILES, max(1, min(WHOLE_BYTES, self.lanes.memory.limit // 4))

    def waiting(self, run: Run) -> list[Job]:
        """What waits for its batch to be full."""
        jobs: list[Job] = []
        if run.verifies.actions:
            jobs.append(partial(self._verify_small, run, run.verifies.take()))
        if run.copies.actions:
            jobs.append(partial(self._copy_batch, run, run.copies.take()))
        return jobs

    async def quick(
        self,
        run: Run,
        step: Step,
        actions: Sequence[Action],
        write: WriteOptions | None = None,
    ) -> None:
        """Directories, links or attributes: one call for all of them."""

        def done(some: Sequence[Action]) -> None:
            for action in some:
                if action.path:
                    self.done(run, action)

        if step == "link":
            actions = await self.backed_up(run, actions)
        call = None if self._dry_run else _quick_call(run.work, step, write or run.work.write)
        if call is None:
            done(actions)
            return
        failed = partial(self.failed, run)
        await patiently(
            call, actions, done=done, failed=failed, may_retry=self.may_retry, luck=self.luck
        )
        self.heed()

    async def _copy_batch(self, run: Run, actions: Sequence[Action]) -> None:
        """Copies that the sink does by itself, or small ones through memory; what has changed meanwhile,
        or came wrong, gets one fresh look."""
        work = run.work
        alone = actions[0] if len(actions) == 1 else None
        again: list[tuple[Action, FastsyncError]] = []
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
            jobs = work.jobs(some)
            answers: Sequence[FastsyncError | None]
            if alone is not None and copies_in_parts(work.source, sink, alone.entry):
                started = time.monotonic()
                with self._current(alone):
                    moved = self._tally.moved
                    await copy_in_parts(work.source, sink, jobs[0], work.write, self.lanes, moved)
                answers = [None]
            else:
                assert offers(work.sink, CopiesWithin)
                async with self.lanes.streams.spend(1), self.lanes.memory.spend(READ_BUFFER):
                    started = time.monotonic()
                    with self._current(alone):
                        if not run.unpaced:
                            await self._wait_for_turn(work, some)
                        answers = await work.sink.copy_from(
                            work.source, jobs, work.write, self._tally.moved
                        )
            if run.rereads:
                answers = await reread(work.source, sink, jobs, answers, self.lanes)
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
                self.done(run, action, duration_s, is_verified=action.path in verified)

        def failed(action: Action, error: FastsyncError) -> None:
            nonlocal last, unlucky
            if _is_worth_another(work, error) and not is_fresh:
                again.append((action, error))
            else:
                self.failed(run, action, error)
                last = error
                unlucky = max(unlucky + error.transient, bad_luck(error))

        is_fresh = False
        actions = await self.backed_up(run, actions)
        while actions and self.fatal is None:
            await patiently(copy, actions, done=done, failed=failed, may_retry=self.may_retry)
            looks = [await self._fresh(run, action, error) for action, error in again]
            actions = [action for action in looks if action is not None]
            again.clear()
            is_fresh = True
        self._learn(copied, unlucky, last)

    async def backed_up(self, run: Run, actions: Sequence[Action]) -> Sequence[Action]:
        """The actions of which the old state is safe; the others have failed."""
        backup, target = run.work.backup, run.work.target
        replaced = [action for action in actions if action.old is not None]
        if backup is None or not replaced or self._dry_run:
            return actions
        olds = [a.old._replace(path=target(a.path)) for a in replaced if a.old is not None]
        answers = await save(run.work.sink, backup, olds, run.work.write, self.lanes)
        unsafe = set()
        for action, error in zip(replaced, answers, strict=True):
            if error is not None:
                unsafe.add(action.path)
                self.failed(run, action, not_saved(error))
        return [action for action in actions if action.path not in unsafe]

    async def _wait_for_turn(self, work: Work, actions: Sequence[Action]) -> None:
        """Until the rate lets all their bytes move."""
        if self.lanes.pace is not None:
            size = sum(action.entry.size or 0 for action in actions)
            await self.lanes.pace.take(size, work.source, work.sink)

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
        async with self.lanes.memory.spend(size):
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

    async def copy_one(self, run: Run, action: Action) -> None:
        """One file by itself, with its retries: a fresh look after a change, and after wrong bytes, patience
        for the rest."""
        relisted = False
        patience = Patience(self.may_retry)
        while self.fatal is None:
            try:
                with self._current(action):
                    await self._try_copy(run, action)
                return
            except (Changed, IntegrityError) as error:
                if relisted or not _is_worth_another(run.work, error):
                    self.failed(run, action, error)
                    return
                relisted = True
                log.tell(log.DEBUG, "again", path=action.path, reason=str(error))
                fresh = await self._fresh(run, action, error)
                if fresh is None:
                    return
                action = fresh
            except FastsyncError as error:
                is_over = not error.transient or error.is_final
                pause = None if is_over else patience.pause([error])
                if pause is None:
                    self.failed(run, action, error)
                    self._learn(0, bad_luck(error), error)
                    return
                await asyncio.sleep(pause)

    def _learn(self, copied: int, unlucky: int, error: FastsyncError | None) -> None:
        self.luck.learn(copied, unlucky, error)
        self.heed()

    def heed(self) -> None:
        """Stop, where luck has run out."""
        self.fatal = self.fatal or self.luck.over

    async def _try_copy(self, run: Run, action: Action) -> None:
        work = run.work
        started = time.monotonic()
        if action.step == "verify" and await self._same_content(work, action):
            await self._same(run, [action])
        elif self._dry_run:
            self.done(run, action)
        elif run.within and (run.unpaced or (action.entry.size or 0) <= self._step):
            await self._copy_batch(run, [action._replace(step="copy")])
        elif await self.backed_up(run, [action]):
            path = work.target(action.path)
            entry, old, moved = action.entry, action.old, self._tally.moved
            landed = await transfer(
                work.source, work.sink, entry, path, work.write, self.lanes, moved, old
            )
            self._learn(1, 0, None)
            duration_s = time.monotonic() - started
            self.done(run, action, duration_s, is_verified=landed.is_verified)

    async def _fresh(self, run: Run, action: Action, error: FastsyncError) -> Action | None:
        """The action for its second try; None after telling that there is none."""
        if isinstance(error, IntegrityError):
            self._tally.totals.retries += 1
            if offers(run.work.source, Reconnects):
                run.work.source.renew()
            if run.work.vet is not None:
                return action  # of the version that was planned
        return await self.relist(run, action)

    async def relist(self, run: Run, action: Action) -> Action | None:
        """The action with the entry as it is now; None after telling that it cannot be copied."""
        source, entry = run.work.source, action.entry
        where = str(source.location.child(entry.path))
        try:
            now = await source.stat(entry.path, follow=True)
            if now.kind != "file":
                raise Changed("it is no longer a file", where=where)
        except NotFound:
            gone = Vanished("the file is gone since it was listed", where=where)
            self.failed(run, action, gone)
            return None
        except FastsyncError as error:
            self.failed(run, action, error)
            return None
        return action._replace(entry=now._replace(owner=entry.owner and now.owner))

    async def _same_content(self, work: Work, action: Action) -> bool:
        source, sink, entry, old = work.source, work.sink, action.entry, action.old
        if old is None:
            return False
        same = None
        if not work.reads_content:
            same = await same_digest(source, entry, sink, old, self.lanes)
        if same is None and action.reason != "time differs":
            # Reading both is dear, but asked for; where only the time differs, a copy is as cheap.
            same = await same_bytes(source, entry, sink, old, self.lanes)
        return same is True

    async def _verify_small(self, run: Run, actions: Sequence[Action]) -> None:
        """Compare small files, many at once; what differs is copied like anything new."""
        work = run.work
        source, sink = work.source, work.sink
        assert offers(source, ReadsWhole)
        assert offers(sink, ReadsWhole)
        answers = await same_small(source, sink, work.jobs(actions), self.lanes)
        jobs: list[Job] = []
        same: list[Action] = []
        for action, answer in zip(actions, answers, strict=True):
            if answer is True:
                same.append(action)
            elif answer is False:
                jobs += self.copying(run, [action._replace(step="copy")])
            else:  # an error: patience, or a fresh look, is for one file at a time
                jobs.append(partial(self.copy_one, run, action))
        await self._same(run, same)
        await self.do_here(run, jobs)

    async def _same(self, run: Run, actions: Sequence[Action]) -> None:
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
            await self.quick(run, "attributes", changes)

    async def do_here(self, run: Run, jobs: list[Job]) -> None:
        """Not through the pool, which waits for us: what was decided here is done here."""
        jobs += self.waiting(run)
        if jobs:
            await run_all(min(self._budgets.jobs, len(jobs)), (job() for job in jobs))

    def may_retry(self, attempt: int) -> bool:
        if self.fatal is not None or attempt >= self._budgets.retries:
            return False
        self._tally.totals.retries += 1
        return True

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

    def done(
        self, run: Run, action: Action, duration_s: float = 0.0, *, is_verified: bool = False
    ) -> None:
        # The places are made only for somebody who looks: they cost as much as a small file.
        places = run.work.places(action) if self._tally.wants_items else None
        size, reason = action.entry.size, action.reason
        if self._record is not None:
            entry, old, late = action.entry, action.old, self.is_late
            self._record(run.work, _operation(action), action.path, entry, old, reason, late=late)
        operation = _operation(action)
        self._tally.done(
            operation, action.path, places, size, reason, duration_s, is_verified=is_verified
        )

    def failed(self, run: Run, action: Action, error: FastsyncError) -> None:
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
            self.fatal = self.fatal or error


def _is_worth_another(work: Work, error: FastsyncError) -> bool:
    """Whether a fresh look may help: a file that changed may stand still now, bytes that came wrong may come
    right."""
    return isinstance(error, IntegrityError) or (isinstance(error, Changed) and work.vet is None)


def not_saved(error: FastsyncError) -> FastsyncError:
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
