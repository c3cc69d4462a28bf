"""The engine with stores in memory: budgets, patience, rule D, and nothing left whatever happens."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest

from fastsync import items as items_module
from fastsync import patience
from fastsync.backend import (
    Buffer,
    Entry,
    Fault,
    KeepsDirectories,
    Page,
    ScanOptions,
    Sink,
    StoreOptions,
    WriteOptions,
)
from fastsync.engine import Engine
from fastsync.errors import (
    AccessRefused,
    Changed,
    Conflict,
    DestinationFull,
    FastsyncError,
    IntegrityError,
    ListingError,
    PermissionRefused,
    Stalled,
    Throttled,
    Transient,
    Vanished,
)
from fastsync.events import Item, Totals
from fastsync.filters import Filter, Rule
from fastsync.location import parse
from fastsync.patience import backoff
from fastsync.plan import Comparison, DeleteGate, PlanPage, Rules, plan
from fastsync.tally import Summary
from fastsync.testing import BareMemoryBackend, Box, MemoryBackend
from fastsync.testing.box import Node, directory
from fastsync.work import Budgets, Work

KIB = 1 << 10
MIB = 1 << 20
PART = 64 * KIB
THEN = 10**18
SMALL = Budgets(streams=4, jobs=4, chunk_size=PART, memory=8 * MIB, retries=3)
ANY = DeleteGate(percent=100)


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture(autouse=True)
def _forget_boxes() -> Iterator[None]:
    yield
    MemoryBackend.reset()
    BareMemoryBackend.reset()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_BACKOFF_S", 1e-5)


@pytest.fixture(autouse=True)
async def _leaves_no_task() -> AsyncIterator[None]:
    yield
    assert asyncio.all_tasks() == {asyncio.current_task()}


class Watcher:
    """An observer that remembers."""

    def __init__(self, *, items: bool = True) -> None:
        self.wants_items = items
        self.wants_skips = items
        self.items: list[Item] = []
        self.notes: list[str] = []
        self.bytes_done: list[int] = []

    def item(self, item: Item) -> None:
        self.items.append(item)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, totals: Totals) -> None:
        self.bytes_done.append(totals.bytes_done)

    def told(self, operation: str) -> list[str]:
        return [item.path for item in self.items if item.operation == operation and not item.error]

    def errors(self) -> dict[str, FastsyncError]:
        return {item.path: item.error for item in self.items if item.error is not None}


class World:
    """A source and a destination in memory, and runs from one to the other.

    `within` says whether the destination copies by itself, like a disk, or has to be written to, like a
    bucket.
    """

    def __init__(self, *, within: bool = False) -> None:
        self.within = within
        self.sink_backend = MemoryBackend if within else BareMemoryBackend
        self.ours: Box = MemoryBackend.box("ours")
        self.theirs: Box = self.sink_backend.box("theirs")
        if not within:
            self.theirs.limits = dataclasses.replace(self.theirs.limits, mtime_step_ns=1)
        self.watcher = Watcher()
        self.budgets = SMALL
        self.write = WriteOptions()
        self.engine: Engine | None = None

    def have(self, files: dict[str, bytes], box: Box | None = None) -> None:
        for path, content in files.items():
            (box or self.ours).put(path, content, mtime_ns=THEN)

    def old(self, files: dict[str, bytes]) -> None:
        """What stands at the destination, of an older time."""
        for path, content in files.items():
            self.theirs.put(path, content, mtime_ns=THEN - 1)

    def trouble(self, method: str, *what: Any, path: str | None = None) -> None:
        """What the next calls meet: on the source's side what reads, else on the destination's."""
        box = self.ours if method in ("read", "stat", "scan") else self.theirs
        box.faults.then(method, *what, path=path)

    def copying(self) -> str:
        """The call in which a copy can fail."""
        return "copy_from" if self.within else "upload"

    def slow(self, seconds: float = 0.0) -> None:
        """Let every call give way, so that things happen at once."""
        for box in (self.ours, self.theirs):
            for method in ("read", "stat", "upload", "write", "commit", "abort", "copy_from",
                           "delete", "make_directories", "set_attributes"):  # fmt: skip
                box.faults.always(method, seconds)

    async def open(self) -> tuple[Sink, Sink]:
        source = await MemoryBackend().connect(parse("mem://ours"), StoreOptions())
        sink = await self.sink_backend().connect(parse("mem://theirs"), StoreOptions())
        assert isinstance(source, Sink)
        assert isinstance(sink, Sink)
        return source, sink

    async def work(
        self,
        *,
        delete: bool = False,
        gate: DeleteGate = ANY,
        chosen: Filter | None = None,
        comparison: Comparison = "mtime",
        directory_times: bool = False,
        **more: Any,
    ) -> Work:
        source, sink = await self.open()
        rules = Rules(
            filter=chosen or Filter(),
            comparison=comparison,
            mode_mask=source.limits.mode_mask & sink.limits.mode_mask,
            directories=isinstance(sink, KeepsDirectories),
            directory_times=directory_times,
            links=self.within,
            delete=delete,
        )
        options = ScanOptions(missing_ok=True)
        return Work(
            source,
            sink,
            plan(source.scan(options), sink.scan(options), rules),
            self.write,
            gate=gate if delete else None,
            directory_times=directory_times,
            protects=chosen is not None,
            differ=rules.attributes_differ,
            **more,
        )

    async def run(self, *, dry_run: bool = False, **more: Any) -> Summary:
        return await self.carry_out([await self.work(**more)], dry_run=dry_run)

    async def carry_out(self, works: Sequence[Work], *, dry_run: bool = False) -> Summary:
        async def each() -> AsyncIterator[Work]:
            for work in works:
                yield work

        self.engine = Engine(self.budgets, self.watcher, dry_run=dry_run)
        return await self.engine.run(each())

    def at_rest(self) -> bool:
        gauges = (
            gauge
            for box in (self.ours, self.theirs)
            for gauge in (box.uploads, box.streams, box.held)
        )
        return all(gauge.now == 0 for gauge in gauges)


@pytest.fixture(params=[False, True], ids=["bucket", "disk"])
def world(request: pytest.FixtureRequest) -> World:
    return World(within=request.param)


@pytest.fixture
def bucket() -> World:
    return World(within=False)


@pytest.fixture
def disk() -> World:
    return World(within=True)


FILES = {
    "a": b"", "b": b"content", "d/c": noise(PART), "d/e/f": noise(5 * PART + 3), "g": noise(PART + 1),
}  # fmt: skip


# -- when all goes well -------------------------------------------------------------------------------


async def test_copies(world: World) -> None:
    world.have(FILES)
    world.old({"b": b"CONTENT", "g": b"old", "other": b"kept"})
    summary = await world.run()
    assert world.theirs.files() == {**FILES, "other": b"kept"}
    totals = summary.totals
    assert (summary.exit_code, totals.failed, summary.failures) == (0, 0, [])
    assert (totals.files_copied, totals.bytes_copied) == (5, sum(map(len, FILES.values())))
    assert totals.bytes_done == totals.bytes_copied == totals.planned_bytes
    assert totals.planned_files == 5
    assert not totals.scanning
    assert not totals.current
    assert sorted(world.watcher.told("copy")) == sorted(FILES)
    assert world.at_rest()


async def test_a_second_run_does_nothing(world: World) -> None:
    world.have(FILES)
    await world.run()
    summary = await world.run(delete=True)
    totals = summary.totals
    assert (totals.files_copied, totals.deleted, totals.directories_made) == (0, 0, 0)
    assert (totals.files_skipped, totals.bytes_skipped) == (5, sum(map(len, FILES.values())))


async def test_deletes(world: World) -> None:
    world.have(FILES)
    world.old({"gone": b"x", "d/gone": b"y", "old/deep/gone": b"z"})
    if world.within:
        world.theirs.root.children["link"] = Node("link", 0, 0o777, target="x")
    summary = await world.run(delete=True)
    assert world.theirs.files() == FILES
    assert "old" not in world.theirs.root.children
    assert "link" not in world.theirs.root.children
    assert summary.totals.deleted == (4 if world.within else 3)
    assert summary.exit_code == 0
    assert summary.kept is None


async def test_deletes_come_after_all_copies(world: World) -> None:
    """Not one delete before the last copy is done, however long it takes."""
    world.have(FILES)
    world.old({"gone": b"x"})
    box = world.theirs
    order: list[str] = []
    for method in ("commit", "copy_from", "delete"):
        box.faults.always(method, partial(order.append, method))
    box.faults.always("upload", 0.001)
    await world.run(delete=True)
    copies = "copy_from" if world.within else "commit"
    assert order == [copies] * len(FILES) + ["delete"]


async def test_metadata(disk: World) -> None:
    """Directories get their modes and times at the end, when nothing changes in them any more."""
    disk.have(FILES)
    for path, mode in (("d", 0o555), ("d/e", 0o700)):
        node = disk.ours.find(path.split("/"), follow=False)
        assert node is not None
        node.mode, node.mtime_ns = mode, THEN + len(path)
    disk.ours.root.children["empty"] = dataclasses.replace(directory(), mtime_ns=THEN)
    disk.ours.root.children["link"] = Node("link", THEN, 0o777, target="no/where")
    await disk.run(directory_times=True)
    for path, mode in (("d", 0o555), ("d/e", 0o700), ("empty", 0o755)):
        node = disk.theirs.find(path.split("/"), follow=False)
        theirs = disk.ours.find(path.split("/"), follow=False)
        assert node is not None
        assert theirs is not None
        assert (node.kind, node.mode, node.mtime_ns) == ("dir", mode, theirs.mtime_ns)
    assert disk.theirs.root.children["link"].target == "no/where"
    again = await disk.run(directory_times=True)
    assert (again.totals.attributes_set, again.totals.directories_made) == (0, 0)


async def test_several_works(world: World) -> None:
    """One after the other, one count for all."""
    world.have({"a": b"1", "b": b"22"})
    works = [await world.work() for _ in range(2)]
    summary = await world.carry_out(works)
    assert world.theirs.files() == {"a": b"1", "b": b"22"}
    assert summary.totals.scanned == 4
    assert summary.exit_code == 0


async def test_another_name(world: World) -> None:
    world.have({"a": b"content"})
    source, sink = await world.open()
    entry = await source.stat("a")

    async def page() -> AsyncIterator[Page]:
        yield Page([entry])

    async def nothing() -> AsyncIterator[Page]:
        return
        yield

    pages = plan(page(), nothing(), Rules(filter=Filter()))
    work = Work(source, sink, pages, WriteOptions(), rename=lambda path: f"new {path}")
    summary = await world.carry_out([work])
    assert world.theirs.files() == {"new a": b"content"}
    (item,) = world.watcher.items
    assert (item.source, item.destination) == ("mem://ours/a", "mem://theirs/new a")
    assert summary.totals.files_copied == 1


async def test_an_observer_without_items(world: World) -> None:
    """Counts are the same for who does not look at every item; failures are told all the same."""
    world.watcher = Watcher(items=False)
    world.have({f"{number:03}": b"x" * number for number in range(300)})
    world.trouble(world.copying(), PermissionRefused("no"), path="007")
    summary = await world.run()
    totals = summary.totals
    assert (totals.files_copied, totals.bytes_copied) == (299, sum(range(300)) - 7)
    assert [item.path for item in world.watcher.items] == ["007"]
    assert summary.exit_code == 1


async def test_progress_is_told_at_the_end(world: World) -> None:
    world.have(FILES)
    await world.run()
    assert world.watcher.bytes_done[-1] == sum(map(len, FILES.values()))
    assert world.watcher.bytes_done == sorted(world.watcher.bytes_done)


# -- checksums ----------------------------------------------------------------------------------------


async def test_by_checksum(disk: World) -> None:
    """Equal content is not copied, only its time is set; other content is."""
    disk.have({"same": b"content", "other": b"content", "new": b"x"})
    disk.old({"same": b"content", "other": b"CONTENT"})
    summary = await disk.run(comparison="checksum")
    assert disk.theirs.files() == {"same": b"content", "other": b"content", "new": b"x"}
    totals = summary.totals
    assert (totals.files_copied, totals.files_skipped, totals.attributes_set) == (2, 1, 1)
    assert (totals.planned_files, totals.planned_bytes) == (2, 8)
    assert (await disk.run(comparison="checksum")).totals.attributes_set == 0


async def test_no_digest_in_common(bucket: World) -> None:
    """Then both are read."""
    bucket.have({"a": b"content", "b": b"same"})
    bucket.old({"a": b"CONTENT", "b": b"same"})
    summary = await bucket.run(comparison="checksum")
    assert summary.exit_code == 0
    assert (summary.totals.files_copied, summary.totals.files_skipped) == (1, 1)
    assert bucket.theirs.files() == {"a": b"content", "b": b"same"}


async def test_a_digest_that_fails(disk: World) -> None:
    """The one on the other side is not left running."""
    disk.have({"a": b"content"})
    disk.old({"a": b"CONTENT"})
    disk.theirs.faults.then("digest", PermissionRefused("no"))
    disk.ours.faults.then("digest", 0.05)
    summary = await disk.run(comparison="checksum")
    assert summary.exit_code == 1
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_digest_of_a_file_that_changed(disk: World) -> None:
    disk.have({"a": b"content"})
    disk.old({"a": b"CONTENT"})
    disk.ours.faults.then("digest", lambda: disk.have({"a": b"CHANGED"}))
    summary = await disk.run(comparison="checksum")
    assert summary.exit_code == 0
    assert disk.theirs.files() == {"a": b"CHANGED"}


# -- budgets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("streams", "jobs", "chunk", "memory"),
    [
        (1, 1, PART, 2 * MIB), (8, 1, PART, 2 * MIB), (1, 8, PART, 2 * MIB), (3, 5, MIB, 2 * MIB),
        (16, 16, 16 * MIB, 2 * MIB), (4, 4, 300 * KIB, 3 * MIB), (8, 8, 2 * MIB, 5 * MIB),
    ],
)  # fmt: skip
@pytest.mark.parametrize("seekable", [True, False])
async def test_budgets(
    bucket: World, streams: int, jobs: int, chunk: int, memory: int, seekable: bool
) -> None:
    """File data in memory, streams and files at once: never more than was granted."""
    sizes = [0, 1, PART, PART + 1, 3 * PART, MIB, MIB + 1, 3 * MIB + 5, 1, 2, 3, 4, 5]
    files = {f"{number:02}": noise(size, number) for number, size in enumerate(sizes)}
    bucket.ours.limits = dataclasses.replace(bucket.ours.limits, seekable_reads=seekable)
    bucket.have(files)
    bucket.slow()
    bucket.budgets = Budgets(streams=streams, jobs=jobs, chunk_size=chunk, memory=memory)
    held = 0

    def gauge() -> None:
        nonlocal held
        held = max(held, bucket.ours.held.now + bucket.theirs.held.now)

    async def pause() -> None:
        gauge()
        await asyncio.sleep(0)

    bucket.theirs.faults.always("write", pause)
    bucket.ours.faults.always("read", pause)
    summary = await bucket.run()
    assert summary.exit_code == 0
    assert bucket.theirs.files() == files
    assert 0 < held <= memory
    assert bucket.engine is not None
    assert 0 < bucket.engine.memory_peak <= memory
    assert bucket.theirs.uploads.peak <= jobs
    assert bucket.ours.streams.peak <= streams
    assert bucket.theirs.streams.peak <= streams
    assert bucket.at_rest()


async def test_files_and_streams_are_really_used(bucket: World) -> None:
    bucket.have({f"{number}": noise(4 * PART, number) for number in range(8)})
    bucket.slow(0.001)
    bucket.budgets = Budgets(streams=6, jobs=3, chunk_size=PART, memory=8 * MIB)
    await bucket.run()
    assert bucket.theirs.uploads.peak == 3
    assert bucket.ours.streams.peak == 6


async def test_batches_do_not_hold_up_each_other(disk: World) -> None:
    """Small files travel in batches, large ones alone, and several of either at once."""
    count = 3 * items_module.BATCH_FILES
    disk.have({f"{number:04}": b"x" for number in range(count)})
    disk.have({f"large{number}": bytes(items_module.ALONE_FROM) for number in range(2)})
    going = most = 0

    class Busy:
        async def __call__(self) -> None:
            nonlocal going, most
            going += 1
            most = max(most, going)
            await asyncio.sleep(0)
            going -= 1

    disk.theirs.faults.always("copy_from", Busy())
    disk.budgets = dataclasses.replace(SMALL, streams=3)
    summary = await disk.run()
    assert summary.totals.files_copied == count + 2
    assert most == 3


# -- patience -----------------------------------------------------------------------------------------


def test_backoff() -> None:
    """Doubling, with jitter, up to a limit; or what the server asked for, within reason."""
    cut = Transient("cut")
    for attempt in range(40):
        longest = min(patience.FIRST_BACKOFF_S * 2.0**attempt, patience.LONGEST_BACKOFF_S)
        waits = [backoff(attempt, cut) for _ in range(50)]
        assert all(longest / 2 <= wait <= longest for wait in waits)
        assert len(set(waits)) > 1
    assert backoff(9, Throttled("later", retry_after_s=7.5)) == 7.5
    assert backoff(0, Throttled("later", retry_after_s=0.0)) == 0.0
    assert backoff(0, Throttled("later", retry_after_s=10**6)) == 60.0


STEPS = ["upload", "read", "write", "commit", "copy_from"]


@pytest.mark.parametrize("error", [Transient("cut"), Stalled("still"), Throttled("later")])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("times", [1, 3])
async def test_passing_errors_are_passed_over(step: str, error: FastsyncError, times: int) -> None:
    world = World(within=step == "copy_from")
    world.have(FILES)
    world.trouble(step, *[error] * times, path="d/e/f")
    summary = await world.run(delete=True)
    assert world.theirs.files() == FILES
    assert (summary.exit_code, summary.totals.failed) == (0, 0)
    # Parts travel at once, and so do their errors.
    least = 1 if step in ("read", "write") else times
    assert least <= summary.totals.retries <= times
    assert summary.totals.files_copied == len(FILES)
    assert world.at_rest()


@pytest.mark.parametrize("retries", [0, 1, 4])
async def test_patience_has_an_end(world: World, retries: int) -> None:
    world.have(FILES)
    world.old({"b": b"old"})
    world.budgets = dataclasses.replace(SMALL, retries=retries)
    method = world.copying()
    world.theirs.faults.always(method, Transient("cut"), path="b")
    summary = await world.run()
    assert summary.exit_code == 1
    assert list(world.watcher.errors()) == ["b"]
    assert summary.totals.retries == retries
    assert world.theirs.files() == {**FILES, "b": b"old"}


@pytest.mark.parametrize("retry_after_s", [0.0, 0.02])
async def test_what_the_server_asks_for(
    world: World, monkeypatch: pytest.MonkeyPatch, retry_after_s: float
) -> None:
    """It is waited for, once per attempt, and attempts have an end however short the wait."""
    waits: list[float] = []

    def noted(attempt: int, error: FastsyncError) -> float:
        waits.append(backoff(attempt, error))
        return waits[-1]

    monkeypatch.setattr(patience, "backoff", noted)
    monkeypatch.setattr(patience, "THROTTLED_TRIES", 6)
    world.have({"a": b"content"})
    method = world.copying()
    world.theirs.faults.always(method, Throttled("later", retry_after_s=retry_after_s))
    started = time.monotonic()
    async with asyncio.timeout(20):
        summary = await world.run()
    assert time.monotonic() - started >= 9 * retry_after_s
    # Six that do not count, and three that are like any other failure.
    assert waits == [retry_after_s] * 9
    assert world.theirs.faults.calls[method] == 10
    assert summary.exit_code == 1


@pytest.mark.parametrize(("retries", "tries", "code"), [(1, 15, 0), (1, 30, 1), (0, 1, 1)])
async def test_a_server_that_asks_for_patience_gets_it(
    world: World, monkeypatch: pytest.MonkeyPatch, retries: int, tries: int, code: int
) -> None:
    """More often than there are tries for failures, unless nothing may be tried again."""
    monkeypatch.setattr(patience, "LONGEST_THROTTLED_S", 0.05)
    world.have({"a": b"content"})
    world.budgets = dataclasses.replace(SMALL, retries=retries)
    world.theirs.faults.then(world.copying(), *[Throttled("later")] * tries)
    summary = await world.run()
    assert (summary.exit_code, summary.totals.failed) == (code, code)


async def test_a_server_that_stays_silent_is_given_up_by_the_clock(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "THROTTLED_S", 0.0)
    world.have({"a": b"content"})
    method = world.copying()
    world.theirs.faults.always(method, Throttled("later"))
    assert (await world.run()).exit_code == 1
    assert world.theirs.faults.calls[method] == 1 + SMALL.retries


async def test_a_busy_server_is_asked_for_less() -> None:
    """Of many items at once only a few are tried again, until one goes well."""
    sizes: list[int] = []

    async def call(some: Sequence[int]) -> list[FastsyncError | None]:
        sizes.append(len(some))
        is_busy = len(sizes) <= 4
        return [Throttled("later") if is_busy else None for _ in some]

    done: list[int] = []
    await patience.patiently(
        call,
        list(range(100)),
        done=done.extend,
        failed=lambda _item, error: pytest.fail(str(error)),
        may_retry=lambda attempt: attempt < 1,
    )
    assert sizes == [100, 25, 6, 1, 1, 99]
    assert sorted(done) == list(range(100))


@pytest.mark.parametrize("step", ["make_directories", "make_links", "set_attributes", "delete"])
async def test_quick_steps_have_patience_too(disk: World, step: str) -> None:
    disk.have({"d/a": b"content"})
    disk.ours.root.children["d"].mtime_ns = THEN
    disk.ours.root.children["link"] = Node("link", THEN, 0o777, target="x")
    disk.old({"gone": b"x"})
    disk.trouble(step, Transient("cut"), Throttled("later", retry_after_s=0.0))
    summary = await disk.run(delete=True, directory_times=True)
    assert disk.watcher.errors() == {}
    assert summary.exit_code == 0
    assert disk.theirs.files() == {"d/a": b"content"}
    assert disk.theirs.root.children["d"].mtime_ns == THEN
    assert summary.totals.retries == 2


@pytest.mark.parametrize("step", ["make_directories", "make_links", "set_attributes", "delete"])
async def test_quick_steps_give_up_in_the_end(disk: World, step: str) -> None:
    disk.have({"d/a": b"content"})
    disk.ours.root.children["link"] = Node("link", THEN, 0o777, target="x")
    disk.old({"gone": b"x"})
    disk.theirs.faults.always(step, Transient("cut"))
    summary = await disk.run(delete=True, directory_times=True)
    assert summary.exit_code == 1
    assert set(disk.watcher.errors()) <= {"d", "link", "gone"}
    assert len(disk.watcher.errors()) == summary.totals.failed == 1


# -- sources that change ------------------------------------------------------------------------------


async def test_changed_once(world: World) -> None:
    """One fresh look, and what is there now is copied."""
    world.have({"a": b"content", "b": b"other"})
    world.trouble(world.copying(), lambda: world.have({"a": b"new content"}), path="a")
    summary = await world.run()
    assert world.theirs.files() == {"a": b"new content", "b": b"other"}
    assert summary.exit_code == 0
    assert world.ours.faults.calls["stat"] == 1
    assert world.at_rest()


async def test_changed_twice(world: World) -> None:
    """Then it is an error, which does not forbid deletes: what changes is there."""
    world.have({"a": b"content", "b": b"other"})
    world.old({"a": b"old", "gone": b"x"})
    step = "copy_from" if world.within else "read"
    world.trouble(step, Changed("once"), Changed("twice"), path="a")
    summary = await world.run(delete=True)
    assert world.theirs.files() == {"a": b"old", "b": b"other"}
    assert summary.exit_code == 8
    assert str(world.watcher.errors()["a"]).endswith("twice")
    assert summary.totals.deleted == 1
    assert world.at_rest()


async def test_vanished(world: World) -> None:
    """Gone since it was listed: said, exit code 8, and no reason not to delete."""
    world.have({"a": b"content", "b": b"other"})
    world.old({"gone": b"x"})
    world.trouble(world.copying(), partial(world.ours.root.children.__delitem__, "a"), path="a")
    summary = await world.run(delete=True)
    assert world.theirs.files() == {"b": b"other"}
    assert summary.exit_code == 8
    assert isinstance(world.watcher.errors()["a"], Vanished)
    assert summary.totals.deleted == 1
    assert summary.kept is None
    assert world.at_rest()


async def test_no_longer_a_file(world: World) -> None:
    world.have({"a": b"content"})

    def replace() -> None:
        world.ours.root.children["a"] = directory()

    world.trouble(world.copying(), replace, path="a")
    summary = await world.run()
    assert summary.exit_code == 8
    assert world.theirs.files() == {}


async def test_a_fresh_look_that_fails(world: World) -> None:
    world.have({"a": b"content"})
    world.trouble("copy_from" if world.within else "read", Changed("changed"), path="a")
    world.trouble("stat", PermissionRefused("no"), path="a")
    summary = await world.run()
    assert summary.exit_code == 1
    assert isinstance(world.watcher.errors()["a"], PermissionRefused)


async def test_changes_and_passing_errors_together(world: World) -> None:
    world.have({"a": b"content"})
    step = "copy_from" if world.within else "read"
    world.trouble(step, Transient("cut"), Changed("changed"), Transient("cut"), path="a")
    summary = await world.run()
    assert world.theirs.files() == {"a": b"content"}
    assert (summary.exit_code, summary.totals.retries) == (0, 2)


# -- failures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("passes", [True, False])
@pytest.mark.parametrize("step", STEPS)
async def test_integrity(step: str, *, passes: bool) -> None:
    """Tried again once, then not visible, and exit code 4."""
    world = World(within=step == "copy_from")
    world.have(FILES)
    world.old({"d/e/f": b"old"})
    faults = (world.ours if step == "read" else world.theirs).faults
    script = faults.then if passes else faults.always
    script(step, IntegrityError("wrong bytes"), path="d/e/f")
    summary = await world.run()
    assert summary.totals.retries == 1
    if passes:
        assert summary.exit_code == 0
        assert world.theirs.files() == FILES
    else:
        assert summary.exit_code == 4
        assert list(world.watcher.errors()) == ["d/e/f"]
        assert world.theirs.files() == {**FILES, "d/e/f": b"old"}
    assert world.at_rest()


@pytest.mark.parametrize("error", [PermissionRefused("no"), Conflict("no"), IntegrityError("no")])
async def test_a_failure_stops_nothing_but_deletes(world: World, error: FastsyncError) -> None:
    world.have(FILES)
    world.old({"gone": b"x"})
    world.trouble(world.copying(), error, error, path="b")
    summary = await world.run(delete=True)
    left = {path: content for path, content in FILES.items() if path != "b"}
    assert world.theirs.files() == {**left, "gone": b"x"}
    assert summary.exit_code == error.exit_code
    assert summary.kept is not None
    assert summary.kept.startswith("not deleting")
    assert world.watcher.notes == [summary.kept]
    (item,) = summary.failures
    assert (item.operation, item.path, item.error) == ("copy", "b", error)
    assert (item.source, item.destination) == ("mem://ours/b", "mem://theirs/b")
    assert error.where == "mem://theirs/b"


async def test_a_failed_call_fails_all_of_its_items(disk: World) -> None:
    """A store that cannot even begin with a batch is no bug of ours: each item is told."""
    disk.have({"a": b"1", "d/b": b"2"})
    disk.ours.root.children["link"] = Node("link", THEN, 0o777, target="x")
    disk.old({"gone": b"x"})
    work = await disk.work(delete=True)
    for name in ("copy_from", "make_directories", "make_links", "delete"):

        async def fail(*_arguments: Any) -> list[FastsyncError | None]:
            raise PermissionRefused("the root is locked")

        setattr(work.sink, name, fail)
    summary = await disk.carry_out([work])
    assert set(disk.watcher.errors()) == {"a", "d/b", "d", "link"}
    places = {item.path: str(item.error) for item in disk.watcher.items}
    assert places["a"].startswith("mem://theirs/a:")
    assert places["d/b"].startswith("mem://theirs/d/b:")
    assert summary.exit_code == 1
    assert disk.theirs.files() == {"gone": b"x"}


async def test_a_passing_failure_of_a_whole_call(disk: World) -> None:
    disk.have({"a": b"1", "b": b"2"})
    work = await disk.work()
    really: Callable[..., Any] = work.sink.copy_from  # type: ignore[attr-defined]
    attempts = 0

    async def first_fail(*arguments: Any) -> Any:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise Transient("the connection was cut")
        return await really(*arguments)

    work.sink.copy_from = first_fail  # type: ignore[attr-defined]
    summary = await disk.carry_out([work])
    assert disk.theirs.files() == {"a": b"1", "b": b"2"}
    assert summary.exit_code == 0


async def test_a_full_destination(world: World) -> None:
    """Stops new work, ends what is under way, deletes nothing: exit code 7."""
    world.have({f"{number:04}": b"x" for number in range(2000)})
    world.old({"gone": b"x"})
    world.budgets = dataclasses.replace(SMALL, jobs=2, streams=2)
    world.theirs.faults.then(world.copying(), *[None] * 10)
    world.theirs.faults.always(world.copying(), DestinationFull("no space left"))
    summary = await world.run(delete=True)
    assert summary.exit_code == 7
    written = world.theirs.files()
    assert written.pop("gone") == b"x"
    assert len(written) == 10
    assert summary.totals.deleted == 0
    assert summary.kept is not None
    assert "no space left" in summary.kept
    assert any("stopped early" in note for note in world.watcher.notes)
    if not world.within:
        assert world.theirs.faults.calls["upload"] <= 10 + 2
    assert world.at_rest()


async def test_what_is_under_way_ends_well_on_a_full_destination(bucket: World) -> None:
    bucket.have({"a": noise(10 * PART), "b": b"x", "c": b"y"})
    bucket.theirs.faults.always("write", 0.001, path="a")
    bucket.trouble("upload", DestinationFull("full"), path="b")
    bucket.budgets = dataclasses.replace(SMALL, jobs=2)
    summary = await bucket.run()
    assert bucket.theirs.files()["a"] == noise(10 * PART)
    assert summary.exit_code == 7


async def test_refused_access_stops_the_run(world: World) -> None:
    world.have({f"{number:03}": b"x" for number in range(500)})
    world.theirs.faults.always(world.copying(), AccessRefused("who are you?"))
    summary = await world.run()
    assert summary.exit_code == 5
    assert world.theirs.files() == {}
    assert any("stopped early" in note for note in world.watcher.notes)


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ([PermissionRefused("no"), Vanished("gone")], 1),
        ([IntegrityError("no"), PermissionRefused("no")], 4),
        ([IntegrityError("no"), Changed("no"), Changed("no")], 4),
        ([Vanished("gone")], 8),
    ],
)
async def test_the_worst_counts(world: World, errors: list[FastsyncError], code: int) -> None:
    world.have({str(number): b"x" for number in range(len(errors))})
    for number, error in enumerate(errors):
        world.trouble(world.copying(), error, error, path=str(number))
    assert (await world.run()).exit_code == code


async def test_a_bug_is_raised(world: World) -> None:
    world.have(FILES)
    world.trouble(world.copying(), ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await world.run()
    assert world.at_rest()


async def test_a_directory_that_cannot_be_made(disk: World) -> None:
    """Its own attributes are not missed on top of it."""
    disk.have({"d/a": b"1", "b": b"2"})
    disk.trouble("make_directories", PermissionRefused("no"), path="d")
    disk.trouble("copy_from", PermissionRefused("no"), path="d/a")
    summary = await disk.run(directory_times=True)
    assert set(disk.watcher.errors()) == {"d", "d/a"}
    assert summary.totals.failed == 2
    assert disk.theirs.files() == {"b": b"2"}


# -- rule D -------------------------------------------------------------------------------------------


async def test_a_listing_with_a_fault_deletes_nothing(world: World) -> None:
    """The rest is copied, and the exit code is that of what was hidden."""
    world.have({"a": b"content"})
    world.old({"gone": b"x"})
    work = await world.work(delete=True)
    work.pages = with_fault(work.pages, PermissionRefused("no", where="hidden"))
    summary = await world.carry_out([work])
    assert world.theirs.files() == {"a": b"content", "gone": b"x"}
    assert summary.exit_code == 1
    assert summary.kept is not None
    assert "a listing is incomplete" in summary.kept


async def with_fault(
    pages: AsyncIterator[PlanPage], error: FastsyncError
) -> AsyncIterator[PlanPage]:
    yield PlanPage(faults=[Fault("hidden", error)])
    async for page in pages:
        yield page


@pytest.mark.parametrize("side", ["ours", "theirs"])
async def test_a_listing_that_fails(world: World, side: str) -> None:
    """Ends the run, and nothing is deleted or left half done."""
    world.have({f"{number:04}": b"x" for number in range(2500)})
    world.old({f"{number:04}-": b"y" for number in range(2500)})
    box: Box = getattr(world, side)
    box.faults.then("scan", None, None, ListingError("the server went away"))
    with pytest.raises(ListingError):
        await world.run(delete=True)
    assert sum(1 for content in world.theirs.files().values() if content == b"y") == 2500
    assert world.at_rest()


async def test_an_empty_source_deletes_nothing(world: World) -> None:
    world.old({"a": b"x", "b": b"y"})
    summary = await world.run(delete=True)
    assert world.theirs.files() == {"a": b"x", "b": b"y"}
    assert summary.exit_code == 6
    summary = await world.run(delete=True, gate=DeleteGate(allow_empty_source=True))
    assert world.theirs.files() == {}
    assert (summary.exit_code, summary.totals.deleted) == (0, 2)


async def test_the_gate(world: World) -> None:
    world.have({"a": b"x"})
    world.old({"a": b"x", **{f"gone{number}": b"y" for number in range(3)}})
    summary = await world.run(delete=True, gate=DeleteGate(files=2))
    assert len(world.theirs.files()) == 4
    assert summary.exit_code == 6
    assert summary.kept is not None
    assert "3 of 4 files" in summary.kept
    summary = await world.run(delete=True, gate=DeleteGate(files=3))
    assert world.theirs.files() == {"a": b"x"}
    assert summary.exit_code == 0


async def test_the_gate_beside_a_vanished_file(world: World) -> None:
    """What is no reason to keep everything does not hide the reason."""
    world.have({"a": b"x", "b": b"y"})
    world.old({f"gone{number}": b"y" for number in range(3)})
    world.trouble(world.copying(), Vanished("gone"), Vanished("gone"), path="a")
    summary = await world.run(delete=True, gate=DeleteGate(files=2))
    assert summary.exit_code == 6
    assert len(world.theirs.files()) == 4


async def test_a_delete_that_fails(world: World) -> None:
    world.have({"a": b"x"})
    world.old({"b": b"1", "c": b"2", "d": b"3"})
    world.trouble("delete", PermissionRefused("no"), path="c")
    summary = await world.run(delete=True)
    assert world.theirs.files() == {"a": b"x", "c": b"2"}
    assert (summary.exit_code, summary.totals.deleted, summary.totals.failed) == (1, 2, 1)


async def test_directories_that_protect_something_stay(disk: World) -> None:
    disk.have({"a": b"x"})
    disk.old({"old/keep.me": b"1", "old/gone": b"2", "empty/gone": b"3"})
    chosen = Filter([Rule(False, "*.me")])
    summary = await disk.run(delete=True, chosen=chosen)
    assert disk.theirs.files() == {"a": b"x", "old/keep.me": b"1"}
    assert "empty" not in disk.theirs.root.children
    assert (summary.exit_code, summary.totals.failed) == (0, 0)


async def test_one_kind_in_the_place_of_another(disk: World) -> None:
    """First the delete, then what comes in its place."""
    disk.have({"a": b"file", "b/c/d": b"in a directory"})
    disk.old({"a/x/y": b"old", "b": b"old file"})
    summary = await disk.run(delete=True, directory_times=True)
    assert disk.theirs.files() == {"a": b"file", "b/c/d": b"in a directory"}
    assert (summary.exit_code, summary.totals.deleted) == (0, 2)
    again = await disk.run(delete=True, directory_times=True)
    assert (again.totals.files_copied, again.totals.attributes_set) == (0, 0)


async def test_one_kind_in_the_place_of_another_and_no_deletes(disk: World) -> None:
    """What may not be deleted stays as it is, its attributes included."""
    disk.have({"a": b"file", "b/c/d": b"in a directory", "e": b"x"})
    disk.old({"a/x/y": b"old", "b": b"old file"})
    disk.trouble("copy_from", PermissionRefused("no"), path="e")
    before = dataclasses.replace(disk.theirs.root.children["b"])
    summary = await disk.run(delete=True, directory_times=True)
    assert disk.theirs.files() == {"a/x/y": b"old", "b": b"old file"}
    assert disk.theirs.root.children["b"] == before
    assert set(disk.watcher.errors()) == {"a", "b", "b/c", "b/c/d", "e"}
    assert summary.exit_code == 1


async def test_one_kind_in_the_place_of_another_and_the_delete_fails(disk: World) -> None:
    disk.have({"b/c/d": b"in a directory", "e": b"x"})
    disk.old({"b": b"old file"})
    disk.trouble("delete", PermissionRefused("no"), path="b")
    before = dataclasses.replace(disk.theirs.root.children["b"])
    summary = await disk.run(delete=True, directory_times=True)
    assert disk.theirs.files() == {"b": b"old file", "e": b"x"}
    assert disk.theirs.root.children["b"] == before
    assert summary.exit_code == 1


# -- a dry run ----------------------------------------------------------------------------------------


async def test_a_dry_run_changes_nothing(world: World) -> None:
    """And says what a real run then does."""
    world.have(FILES)
    world.old(
        {"a/x": b"1", "g": b"2", "gone/deep": b"3"} if world.within else {"g": b"2", "x": b"3"}
    )
    before = world.theirs.files()
    options: dict[str, Any] = {"delete": True, "directory_times": world.within}
    intended = await world.run(dry_run=True, **options)
    assert world.theirs.files() == before
    calls = world.theirs.faults.calls
    assert set(calls) <= {"connect", "scan", "stat", "digest"}
    said = sorted((item.operation, item.path) for item in world.watcher.items)
    world.watcher = Watcher()
    real = await world.run(**options)
    assert sorted((item.operation, item.path) for item in world.watcher.items) == said
    assert real.exit_code == intended.exit_code == 0
    names = ("files_copied", "bytes_copied", "deleted", "directories_made", "attributes_set")
    for name in names:
        assert getattr(real.totals, name) == getattr(intended.totals, name), name


async def test_a_dry_run_by_checksum(disk: World) -> None:
    disk.have({"same": b"content", "other": b"content"})
    disk.old({"same": b"content", "other": b"CONTENT"})
    summary = await disk.run(dry_run=True, comparison="checksum")
    assert disk.theirs.files() == {"same": b"content", "other": b"CONTENT"}
    assert disk.theirs.root.children["same"].mtime_ns == THEN - 1
    assert (summary.totals.files_copied, summary.totals.files_skipped) == (1, 1)


# -- trouble of every kind ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
async def test_any_trouble(seed: int) -> None:
    """Whatever fails whenever: each file is copied right or told as failed, old or new, never between;
    and nothing is deleted unless all went well."""
    chance = random.Random(seed)
    world = World(within=chance.random() < 0.5)
    files = {
        f"{number:02}": noise(chance.choice([0, 9, PART, 4 * PART]), number) for number in range(15)
    }
    world.have(files)
    old = dict.fromkeys(chance.sample(sorted(files), 5), b"old")
    world.old({**old, "gone": b"x"})
    world.slow()
    world.budgets = dataclasses.replace(
        SMALL, streams=chance.choice([1, 3]), jobs=chance.choice([1, 4])
    )
    kinds: list[Callable[[], Any]] = [
        lambda: None, lambda: 0.0, lambda: Transient("cut"), lambda: Changed("changed"),
        lambda: PermissionRefused("no"), lambda: IntegrityError("wrong"), lambda: Vanished("gone"),
        lambda: Throttled("later", retry_after_s=0.0),
    ]  # fmt: skip
    if seed % 7 == 0:
        kinds.append(lambda: DestinationFull("full"))
    for _ in range(chance.choice([1, 3, 12])):
        step = chance.choice(["stat", *STEPS])
        path = chance.choice([*files, None])
        world.trouble(step, *(chance.choice(kinds)() for _ in range(3)), path=path)
    summary = await world.run(delete=True)
    written = world.theirs.files()
    failed = {path: error for path, error in world.watcher.errors().items() if path in files}
    full = summary.exit_code == 7
    for path, content in files.items():
        if path in failed:
            assert written.get(path) == old.get(path)
        elif full:
            assert written.get(path) in (content, old.get(path))
        else:
            assert written[path] == content
    grave = [error for error in failed.values() if error.exit_code != 8]
    assert ("gone" in written) == bool(grave)
    assert (summary.exit_code == 0) == (not failed)
    assert world.at_rest()


# -- cancellation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [*range(60), *range(60, 130, 5), 200])
async def test_cancelled(world: World, turns: int) -> None:
    """At any await: no task, no upload, no stream left; every file the old one or the whole new one."""
    files = {**FILES, **{f"n{number}": noise(3 * PART, number) for number in range(6)}}
    world.have(files)
    old = {"b": b"old", "gone": b"x", "n3": b"old"}
    world.old(old)
    world.slow()
    world.trouble("write", 0.0, Transient("cut"), Transient("cut"))
    task = asyncio.create_task(world.run(delete=True))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    (end,) = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(end, asyncio.CancelledError | Summary)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert world.at_rest()
    written = world.theirs.files()
    for path, content in written.items():
        assert content in (files.get(path), old.get(path))
    if "gone" not in written:
        assert all(written.get(path) == content for path, content in files.items())


async def test_cancelled_while_waiting_to_try_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "FIRST_BACKOFF_S", 60.0)
    world.have({"a": b"content"})
    world.theirs.faults.always(world.copying(), Transient("cut"))
    task = asyncio.create_task(world.run())
    for _ in range(30):
        await asyncio.sleep(0)
    assert world.theirs.faults.calls[world.copying()] == 1
    started = time.monotonic()
    task.cancel()
    (end,) = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(end, asyncio.CancelledError)
    assert time.monotonic() - started < 1


async def test_listings_are_closed(world: World) -> None:
    """A run that ends early does not leave a listing open behind it."""
    world.have({f"{number:04}": b"x" for number in range(3000)})
    work = await world.work()
    closed: list[str] = []

    async def watched(pages: AsyncIterator[PlanPage]) -> AsyncIterator[PlanPage]:
        try:
            async for page in pages:
                yield page
        finally:
            closed.append("closed")

    work.pages = watched(work.pages)
    world.theirs.faults.always(world.copying(), DestinationFull("full"))
    summary = await world.carry_out([work])
    assert summary.exit_code == 7
    assert closed == ["closed"]


# -- what the engine asks of a store ------------------------------------------------------------------


async def test_delete_batches(world: World) -> None:
    """No call carries more than the store wants at once."""
    world.theirs.limits = dataclasses.replace(world.theirs.limits, delete_batch=7)
    world.have({"a": b"x"})
    world.old({f"gone{number:02}": b"y" for number in range(20)})
    work = await world.work(delete=True)
    sizes: list[int] = []
    really = work.sink.delete

    async def counted(entries: Sequence[Entry]) -> list[FastsyncError | None]:
        sizes.append(len(entries))
        return await really(entries)

    work.sink.delete = counted  # type: ignore[method-assign]
    summary = await world.carry_out([work])
    assert sizes == [7, 7, 6]
    assert summary.totals.deleted == 20


async def test_reads_are_closed(bucket: World) -> None:
    """A read that is left in the middle is closed at once, not when somebody collects garbage."""
    bucket.ours.limits = dataclasses.replace(bucket.ours.limits, seekable_reads=False)
    bucket.have({"a": noise(2 * MIB)})
    bucket.trouble("write", PermissionRefused("no"))
    work = await bucket.work()
    really = work.source.read
    closed: list[str] = []

    async def watched(entry: Entry, start: int, stop: int | None) -> AsyncIterator[Buffer]:
        try:
            async for block in really(entry, start, stop):
                yield block
        finally:
            closed.append(entry.path)

    work.source.read = watched  # type: ignore[method-assign]
    aborted: list[list[str]] = []
    bucket.theirs.faults.always("abort", lambda: aborted.append(list(closed)))
    await bucket.carry_out([work])
    assert closed == ["a"]
    assert aborted[0] == ["a"], "before the upload is given up"


async def test_a_store_that_is_down_is_left_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After enough files in a row the rest is not tried, nothing is deleted, and the number of calls has an
    end, however many files there are."""
    monkeypatch.setattr(patience, "LONGEST_THROTTLED_S", 0.05)
    world.have({f"{number:04}": noise(100) for number in range(3000)})
    world.old({"gone": b"x"})
    method = "copy_from" if world.within else "upload"
    world.theirs.faults.always(method, Throttled("slow down"))
    summary = await world.run(delete=True)
    assert summary.exit_code == 1
    assert any("in a row" in note for note in world.watcher.notes)
    assert summary.kept is not None
    assert "gone" in world.theirs.files()
    assert world.theirs.faults.calls[method] < 9000  # of files in batches, each with all its tries
    if not world.within:
        assert summary.totals.failed < 100
        assert world.theirs.faults.calls[method] < 600


@pytest.mark.parametrize("what", ["delete", "mkdir"])
async def test_a_store_that_is_down_for_what_is_quick(world: World, what: str) -> None:
    """Deletions and directories, too: what is asked has an end, however many there are."""
    count = 3000
    if what == "mkdir" and not world.within:
        pytest.skip("a bucket has no directories")
    if what == "delete":
        world.have({"new": b"new"})
        world.old({f"{number:04}": b"x" for number in range(count)})
    else:
        world.have({f"{number:04}/file": b"x" for number in range(count)})
    method = {"delete": "delete", "mkdir": "make_directories"}[what]
    world.theirs.faults.always(method, Transient("it is down"))
    summary = await world.run(delete=True)
    assert summary.exit_code == 1
    assert any("in a row" in note for note in world.watcher.notes)
    assert 0 < world.theirs.faults.calls[method] < 2 * count


async def test_bad_luck_among_what_is_deleted_stops_nothing(world: World) -> None:
    """Some of each batch, whatever is tried, and the others go."""
    world.have({"new": b"new"})
    world.old({f"{number:04}": b"x" for number in range(3000)})
    for number in range(0, 3000, 20):
        world.theirs.faults.always("delete", Transient("not now"), path=f"{number:04}")
    summary = await world.run(delete=True)
    assert (summary.totals.deleted, summary.totals.failed) == (2850, 150)
    assert not any("in a row" in note for note in world.watcher.notes)


async def test_bad_luck_now_and_then_stops_nothing(world: World) -> None:
    world.have({f"{number:03}": noise(100) for number in range(200)})
    method = "copy_from" if world.within else "upload"
    for number in range(0, 200, 3):
        world.theirs.faults.always(method, Transient("cut"), path=f"{number:03}")
    summary = await world.run()
    assert summary.totals.failed == 67
    assert summary.totals.files_copied == 133
    assert not any("in a row" in note for note in world.watcher.notes)
