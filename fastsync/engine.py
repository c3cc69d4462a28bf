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
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Final

from fastsync import log
from fastsync.backend import (
    CompletesEntries,
    Entry,
    KeepsXattrs,
    LocalFiles,
    MakesHardLinks,
    ReadsWhole,
    Source,
    TellsHardLinks,
    WriteOptions,
    WritesWhole,
    closing,
    offers,
)
from fastsync.backing import save
from fastsync.errors import Changed, Conflict, FastsyncError, NotFound
from fastsync.events import RENAMED, Observer
from fastsync.items import BATCH_FILES, Items, Run, not_saved
from fastsync.location import Location
from fastsync.patience import patiently
from fastsync.plan import NOT_IN_SOURCE, Action, Step, forbid_deletes
from fastsync.resuming import UploadLog
from fastsync.spool import Spool
from fastsync.tally import Summary, Tally
from fastsync.work import Budgets, Record, Work, vetted
from fastsync.workers import WorkerPool

# Entries that a store is asked about at once.
SETTLE_FILES: Final = 512
TICK_S: Final = 0.125


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
        self._budgets = budgets
        self._dry_run = dry_run
        self._record = record
        self._tally = Tally(observer)
        self._pool = WorkerPool(budgets.jobs)
        self._items = Items(budgets, self._tally, dry_run=dry_run, log=log, record=record)

    @property
    def memory_peak(self) -> int:
        """The most file data, in bytes, that the run allowed itself to hold at once."""
        return self._items.lanes.memory.peak

    def unusable(self, location: Location, error: FastsyncError) -> None:
        """A source that cannot be copied: an item that failed."""
        self._tally.failed("scan", location.name, location, None, error)

    def renamed(self, entry: Entry, source: Location, destination: Location) -> None:
        """What needs no copy, having got another name."""
        path = source.name + "/" * (entry.kind == "dir")
        self._tally.done("copy", path, (source, destination), entry.size, RENAMED)

    async def run(self, works: AsyncIterator[Work]) -> Summary:
        """Carry out everything. Raises only what no item can be blamed for (a listing that failed);
        item failures are in the summary."""
        started = time.monotonic()
        runs: list[Run] = []
        ticker = asyncio.create_task(self._tick())
        try:
            async for work in works:
                run = Run(work)
                if work.write.reread:
                    run.rereads = run.within and not work.sink.limits.rereads
                elif offers(work.source, ReadsWhole) and offers(work.sink, WritesWhole):
                    run.whole = self._items.small
                if self._budgets.pace is not None:
                    local = offers(work.source, LocalFiles) and offers(work.sink, LocalFiles)
                    run.unpaced = run.within and not local
                run.small = self._items.small
                runs.append(run)
                if work.last:
                    await self._pool.drain()
                await self._plan(run)
            self._tally.totals.scanning = False
            await self._pool.drain()
            for run in runs:
                await self._link_names(run)
            # What fails here is to keep deletes away, too.
            for run in runs:
                await self._keep_xattrs(run, run.extras)
            for run in runs:
                await self._delete(run)
            for run in runs:
                await self._later(run)
            await self._pool.drain()
            for run in runs:
                if not run.keeps_everything:
                    await self._keep_xattrs(run, run.later)
            for run in runs:
                await self._finish(run)
        finally:
            for run in runs:
                run.close()
            ticker.cancel()
            await self._pool.stop()
            await asyncio.wait([ticker])
        if self._items.fatal is not None:
            self._tally.note(f"stopped early: {self._items.fatal}")
        self._tally.tell()
        return self._tally.summary(time.monotonic() - started)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._tally.tell()

    # -- the phases ----------------------------------------------------------------------------------

    async def _plan(self, run: Run) -> None:
        work, totals = run.work, self._tally.totals
        links = 0
        async with closing(work.pages) as pages:
            async for page in pages:
                if self._items.fatal is not None:
                    break
                totals.scanned += page.scanned
                totals.files_skipped += page.skipped_files
                totals.bytes_skipped += page.skipped_bytes
                totals.specials_skipped += page.specials
                links += page.links_left_out
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
                run.reasons.update(page.reasons)
                run.later.extend(page.later)
                run.finish.extend(page.finish)
                if work.xattrs:
                    seen = (*page.now, *page.skips)
                    run.extras.extend([each for each in seen if each.entry.kind in ("file", "dir")])
                if work.hard_links:
                    page.now = await self._lead(run, page.now, page.skips)
                await self._start(run, page.now)
        if links and work.wants_links:
            scheme = work.sink.location.scheme
            self._tally.note(
                f"{links:,} links left out: {scheme}:// keeps none (-L copies what they lead to)"
            )
        await self._flush(run)

    async def _start(self, run: Run, actions: Sequence[Action]) -> None:
        """Do what is quick, in order, and hand copies to the pool, waiting while it is behind."""
        actions = await vetted(run.work, run.work.aimed(actions), partial(self._items.failed, run))
        quick: dict[Step, list[Action]] = {"mkdir": [], "link": [], "attributes": []}
        unsettled: list[Action] = []
        copies: list[Action] = []
        others = {**quick, "settle": unsettled}
        is_traced = log.level <= log.TRACE
        for action in actions:
            if is_traced:
                size, old = action.entry.size, action.old
                told = {"path": action.path, "reason": action.reason, "size": size}
                log.tell(log.TRACE, "plan", step=action.step, **told, old=old and old.size)
            others.get(action.step, copies).append(action)
        for step, some in quick.items():
            if some:
                await self._items.quick(run, step, some)
        for action in unsettled:
            run.unsettled.actions.append(action)
            if len(run.unsettled.actions) >= SETTLE_FILES:
                await self._pool.submit(partial(self._settle, run, run.unsettled.take()))
        self._tally.planned(len(copies), sum(action.entry.size or 0 for action in copies))
        for job in self._items.copying(run, copies):
            await self._pool.submit(job)

    async def _flush(self, run: Run) -> None:
        """Hand over what waits for its batch to be full."""
        if run.unsettled.actions:
            await self._pool.submit(partial(self._settle, run, run.unsettled.take()))
        for job in self._items.waiting(run):
            await self._pool.submit(job)

    async def _settle(self, run: Run, actions: Sequence[Action]) -> None:
        """Ask the stores for what their listings left out, then do what that decides."""
        work = run.work
        actions = await self._complete(run, actions, work.source, is_source=True)
        actions = await self._complete(run, actions, work.sink, is_source=False)
        quick: list[Action] = []
        copies: list[Action] = []
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
                copies.append(action)
        if quick:
            await self._items.quick(run, "attributes", quick)
        self._tally.planned(len(copies), sum(action.entry.size or 0 for action in copies))
        await self._items.do_here(run, list(self._items.copying(run, copies)))

    async def _complete(
        self, run: Run, actions: Sequence[Action], store: Source, *, is_source: bool
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
                self._items.failed(run, action, error)

        wanted = [action for action in actions if entry_of(action).mtime_ns is None]
        await patiently(
            complete,
            wanted,
            done=lambda _some: None,
            failed=failed,
            may_retry=self._items.may_retry,
        )
        for action in gone:
            fresh = await self._items.relist(run, action)
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

    async def _delete(self, run: Run) -> None:
        work = run.work
        if work.gate is None or not (run.deletes or self._items.fatal):
            return
        forbidden = self._items.fatal or forbid_deletes(
            work.gate,
            doomed_files=run.doomed_files,
            destination_files=run.destination_files,
            source_entries=run.source_entries,
            faults=run.faults,
            copy_errors=run.copy_errors,
        )
        if forbidden is not None:
            # What an item's failure has said already is not said twice by the exit code.
            said = self._items.fatal or run.faults or any(e.exit_code != 8 for e in run.copy_errors)
            self._tally.keep(forbidden, is_stop=not said)
            run.keeps_everything = True
            return
        # Backwards: children before the directory that holds them.
        is_planned = work.vet is not None
        for page in run.deletes.pages() if is_planned else run.deletes.pages_backwards():
            for start in range(0, len(page), work.sink.limits.delete_batch):
                if self._items.fatal is not None:
                    return
                await self._delete_some(run, page[start : start + work.sink.limits.delete_batch])
                await asyncio.sleep(0)  # a dry run waits for nothing else

    async def _delete_some(self, run: Run, entries: Sequence[Entry]) -> None:
        sink = run.work.sink

        def done(gone: Sequence[Entry]) -> None:
            for entry in gone:
                place = sink.location.child(entry.path)
                reason = run.reasons.get(entry.path) or NOT_IN_SOURCE
                if self._dry_run and run.work.protects and entry.kind == "dir":
                    reason += ", unless something in it stays"
                if self._record is not None:
                    self._record(run.work, "delete", entry.path, None, entry, reason, late=False)
                if entry.kind == "dir":
                    self._tally.removed_directory(entry.path, place, reason)
                else:
                    self._tally.done("delete", entry.path, (None, place), entry.size, reason)

        def failed(entry: Entry, error: FastsyncError) -> None:
            if entry.kind == "dir" and run.work.protects and isinstance(error, Conflict):
                return
            self._tally.failed("delete", entry.path, None, sink.location.child(entry.path), error)

        entries = await vetted(run.work, entries, failed)
        backup = run.work.backup
        if backup is not None and not self._dry_run:
            answers = await save(sink, backup, entries, run.work.write, self._items.lanes)
            for entry, error in zip(entries, answers, strict=True):
                if error is not None:
                    failed(entry, not_saved(error))
            pairs = zip(entries, answers, strict=True)
            entries = [entry for entry, error in pairs if error is None]
        if self._dry_run:
            done(entries)
        else:
            items = self._items
            await patiently(
                sink.delete, entries, done=done, failed=failed, may_retry=items.may_retry,
                luck=items.luck,
            )  # fmt: skip
            items.heed()

    async def _later(self, run: Run) -> None:
        self._items.is_late = True
        for page in run.later.pages():
            if not run.keeps_everything:
                await self._start(run, page)
                continue
            for action in page:
                self._items.failed(run, action, Conflict("what stands in its way was not deleted"))
        await self._flush(run)

    async def _lead(
        self, run: Run, actions: Sequence[Action], skips: Sequence[Action]
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

    async def _link_names(self, run: Run) -> None:
        """Make further names of files whose first name is there by now."""
        work, sink = run.work, run.work.sink
        for page in run.names.pages():
            actions = [action._replace(step="copy") for _, action in page]
            self._tally.planned(len(actions), 0)
            if self._dry_run or self._items.fatal is not None or not offers(sink, MakesHardLinks):
                errors: Sequence[FastsyncError | None] = [self._items.fatal] * len(page)
            else:
                safe = {each.path for each in await self._items.backed_up(run, actions)}
                page = [pair for pair in page if pair[1].path in safe]
                actions = [action for action in actions if action.path in safe]
                pairs = [(leader, work.target(action.path)) for leader, action in page]
                errors = await sink.make_hard_links(pairs)
            for action, error in zip(actions, errors, strict=True):
                if error is None:
                    self._items.done(run, action._replace(entry=action.entry._replace(size=0)))
                elif self._items.fatal is None:
                    await self._items.copy_one(run, action)  # the first name may have failed
                else:
                    self._items.failed(run, action, error)

    async def _keep_xattrs(self, run: Run, actions: Spool[Action]) -> None:
        """Give what was copied, or is there already, the extended attributes of its source."""
        source, sink = run.work.source, run.work.sink
        if (
            self._dry_run
            or not run.work.xattrs
            or not (offers(source, KeepsXattrs) and offers(sink, KeepsXattrs))
        ):
            return
        target = run.work.target
        for page in actions.pages():
            page = [action for action in page if action.entry.kind in ("file", "dir")]
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
                        self._items.failed(run, action._replace(step="attributes"), one)
                answers = await sink.write_xattrs(jobs)
                for action, answer in zip(whose, answers, strict=True):
                    # What is not there has failed already.
                    if answer is not None and not isinstance(answer, NotFound):
                        self._items.failed(run, action._replace(step="attributes"), answer)

    async def _finish(self, run: Run) -> None:
        write = dataclasses.replace(run.work.write, mtime=run.work.directory_times)
        # Backwards: a directory that ends without write permission must not lock out its children.
        is_planned = run.work.vet is not None
        for page in run.finish.pages() if is_planned else run.finish.pages_backwards():
            if self._items.luck.over is not None:
                return
            if run.refused:
                page = [each for each in page if not (each.path + "/").startswith(run.refused)]
            if run.unlisted:
                page = [each for each in page if each.path not in run.unlisted]
            await self._items.quick(run, "attributes", page, write)
        await self._finish_root(run, write)

    async def _finish_root(self, run: Run, write: WriteOptions) -> None:
        root, sink = run.work.root, run.work.sink
        if root is None or self._items.fatal is not None or "" in run.unlisted:
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
            await self._items.quick(run, "attributes", [action], write)
