"""The engine between stores like buckets: batches through memory, times told on demand, guards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from fastsync import items as items_module
from fastsync import patience
from fastsync.backend import ScanOptions, StoreOptions, WriteOptions
from fastsync.engine import Engine
from fastsync.errors import (
    IntegrityError,
    PermissionRefused,
    Throttled,
    Transient,
)
from fastsync.events import Item, Totals
from fastsync.filters import Filter
from fastsync.location import parse
from fastsync.plan import Rules, plan
from fastsync.tally import Summary
from fastsync.testing import Box, ObjectMemoryBackend
from fastsync.testing.memory import ObjectMemoryStore
from fastsync.work import Budgets, Work

KIB = 1 << 10
THEN = 10**18
BUDGETS = Budgets(streams=4, jobs=3, chunk_size=64 * KIB, memory=4 << 20, retries=2, small=32 * KIB)


@pytest.fixture(autouse=True)
def _forget_boxes() -> Iterator[None]:
    yield
    ObjectMemoryBackend.reset()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_BACKOFF_S", 1e-5)


@pytest.fixture(autouse=True)
async def _leaves_no_task() -> AsyncIterator[None]:
    yield
    assert asyncio.all_tasks() == {asyncio.current_task()}


class Watcher:
    wants_items = True
    wants_skips = True

    def __init__(self) -> None:
        self.items: list[Item] = []

    def item(self, item: Item) -> None:
        self.items.append(item)

    def note(self, text: str) -> None:
        """Nothing is noted here."""

    def progress(self, totals: Totals) -> None:
        """Nobody looks."""

    def told(self, operation: str) -> dict[str, str]:
        return {
            item.path: item.reason
            for item in self.items
            if item.operation == operation and not item.error
        }

    def errors(self) -> dict[str, str]:
        return {item.path: item.error.message for item in self.items if item.error is not None}


class Buckets:
    def __init__(self) -> None:
        self.ours: Box = ObjectMemoryBackend.box("ours")
        self.theirs: Box = ObjectMemoryBackend.box("theirs")
        self.ours.put("d/marker", b"")
        self.theirs.put("d/marker", b"")
        self.watcher = Watcher()

    def contents(self) -> dict[str, bytes]:
        def walk(prefix: str, node: object) -> Iterator[tuple[str, bytes]]:
            for name, child in sorted(node.children.items()):  # type: ignore[attr-defined]
                if child.kind == "dir":
                    yield from walk(f"{prefix}{name}/", child)
                else:
                    yield prefix + name, child.content

        place = dict(walk("", self.theirs.root.children["d"]))
        del place["marker"]
        return place

    async def sync(
        self, *, yields: bool = False, ignore_existing: bool = False, update: bool = False
    ) -> Summary:
        backend = ObjectMemoryBackend()
        source = await backend.connect(parse("obj://ours/d/"), StoreOptions())
        sink = await backend.connect(parse("obj://theirs/d/"), StoreOptions())
        assert isinstance(source, ObjectMemoryStore)
        assert isinstance(sink, ObjectMemoryStore)
        rules = Rules(
            Filter(),
            mode_mask=0o777,
            completes=(True, True),
            ignore_existing=ignore_existing,
            update=update,
        )
        pages = plan(source.scan(ScanOptions()), sink.scan(ScanOptions(missing_ok=True)), rules)
        work = Work(
            source,
            sink,
            pages,
            WriteOptions(guarded=yields),
            decide=lambda entry, old: rules.decide(entry, old, is_settled=True),
            yields=yields,
        )

        async def works() -> AsyncIterator[Work]:
            yield work

        return await Engine(BUDGETS, self.watcher).run(works())


@pytest.fixture
def buckets() -> Buckets:
    return Buckets()


async def test_small_files_travel_in_batches(
    buckets: Buckets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file arrives, by few calls; larger ones and those of a batch mix."""
    monkeypatch.setattr(items_module, "WHOLE_FILES", 10)
    wanted = {f"{number:03}": bytes([number]) * number for number in range(95)}
    wanted["large"] = b"x" * (200 * KIB)
    for name, content in wanted.items():
        buckets.ours.put(f"d/{name}", content, mtime_ns=THEN)
    summary = await buckets.sync()
    assert summary.exit_code == 0
    assert buckets.contents() == wanted
    totals = summary.totals
    assert (totals.files_copied, totals.planned_files) == (96, 96)
    assert totals.bytes_done == totals.bytes_copied == sum(map(len, wanted.values()))
    assert len(buckets.watcher.told("copy")) == 96


async def test_a_batch_in_which_some_fail(buckets: Buckets) -> None:
    for name in ("a", "b", "c", "d", "e"):
        buckets.ours.put(f"d/{name}", name.encode(), mtime_ns=THEN)
    buckets.ours.faults.then("read_whole", PermissionRefused("no"), path="b")
    buckets.ours.faults.then("read_whole", Transient("cut"), path="c")
    buckets.theirs.faults.then("write_whole", Throttled("slow down"), path="d")
    buckets.theirs.faults.always("write_whole", Transient("down"), path="e")
    summary = await buckets.sync()
    assert buckets.contents() == {"a": b"a", "c": b"c", "d": b"d"}
    assert buckets.watcher.errors() == {"b": "no", "e": "down"}
    assert summary.totals.bytes_done == 3


async def test_a_file_of_a_batch_that_changes_gets_a_fresh_look(buckets: Buckets) -> None:
    buckets.ours.put("d/a", b"first", mtime_ns=THEN)
    buckets.ours.faults.then(
        "read_whole", lambda: buckets.ours.put("d/a", b"second one", mtime_ns=THEN), path="a"
    )
    summary = await buckets.sync()
    assert summary.exit_code == 0
    assert buckets.contents() == {"a": b"second one"}


async def test_what_listings_leave_out_is_asked_for(buckets: Buckets) -> None:
    """Equal times are no work, another mode is set, another time or size is a copy."""
    for name, (mtime_ns, mode) in {
        "same": (THEN, 0o644),
        "older": (THEN - 5, 0o644),
        "larger": (THEN, 0o644),
    }.items():
        buckets.ours.put(f"d/{name}", b"content", mtime_ns=THEN)
        content = b"longer content" if name == "larger" else b"conTent"
        buckets.theirs.put(f"d/{name}", content, mtime_ns=mtime_ns, mode=mode)
    summary = await buckets.sync()
    assert summary.exit_code == 0
    assert buckets.watcher.told("copy") == {"older": "time differs", "larger": "size differs"}
    assert buckets.watcher.told("skip")["same"] == "unchanged"
    assert buckets.contents() == {"larger": b"content", "older": b"content", "same": b"conTent"}
    totals = summary.totals
    assert (totals.planned_files, totals.files_copied, totals.files_skipped) == (2, 2, 2)


async def test_update_asks_for_times_whatever_the_size(buckets: Buckets) -> None:
    buckets.ours.put("d/newer", b"content", mtime_ns=THEN)
    buckets.theirs.put("d/newer", b"theirs, longer", mtime_ns=THEN + 10)
    buckets.ours.put("d/older", b"content", mtime_ns=THEN)
    buckets.theirs.put("d/older", b"theirs, longer", mtime_ns=THEN - 10)
    await buckets.sync(update=True)
    assert buckets.contents() == {"newer": b"theirs, longer", "older": b"content"}


async def test_what_vanishes_before_the_closer_look(buckets: Buckets) -> None:
    for name in ("gone", "good"):
        buckets.ours.put(f"d/{name}", b"content", mtime_ns=THEN)
        buckets.theirs.put(f"d/{name}", b"content", mtime_ns=THEN)

    def remove() -> None:
        buckets.ours.root.children["d"].children.pop("gone", None)

    buckets.ours.faults.then("complete", remove, path="gone")
    summary = await buckets.sync()
    assert summary.exit_code == 8
    assert list(buckets.watcher.errors()) == ["gone"]
    assert "good" in buckets.watcher.told("skip")


async def test_an_error_of_the_closer_look_is_one_of_its_item(buckets: Buckets) -> None:
    for name in ("shut", "good"):
        buckets.ours.put(f"d/{name}", b"content", mtime_ns=THEN)
        buckets.theirs.put(f"d/{name}", b"content", mtime_ns=THEN - 1)
    buckets.theirs.faults.always("complete", PermissionRefused("no"), path="shut")
    summary = await buckets.sync()
    assert summary.exit_code == 1
    assert buckets.watcher.errors() == {"shut": "no"}
    assert buckets.watcher.told("copy") == {"good": "time differs"}


@pytest.mark.parametrize("size", [10, 200 * KIB])
async def test_what_others_wrote_meanwhile_is_skipped_where_asked(
    buckets: Buckets, size: int
) -> None:
    buckets.ours.put("d/a", b"o" * size, mtime_ns=THEN)
    method = "write_whole" if size < 100 else "commit"
    buckets.theirs.faults.then(method, lambda: buckets.theirs.put("d/a", b"theirs"), path="a")
    summary = await buckets.sync(yields=True, ignore_existing=True)
    assert summary.exit_code == 0
    assert buckets.contents() == {"a": b"theirs"}
    assert buckets.watcher.told("skip")["a"] == "exists"
    assert (summary.totals.files_copied, summary.totals.files_skipped) == (0, 2)


async def test_a_download_that_does_not_add_up_never_appears(buckets: Buckets) -> None:
    buckets.ours.put("d/large", b"x" * (200 * KIB), mtime_ns=THEN)
    buckets.ours.faults.always("verify", IntegrityError("checksum mismatch"), path="large")
    summary = await buckets.sync()
    assert summary.exit_code == 4
    assert buckets.contents() == {}
    assert buckets.theirs.uploads.now == 0


async def test_a_part_is_tried_again_by_itself(buckets: Buckets) -> None:
    """Not the whole file; and when patience ends, it ends once."""
    buckets.ours.put("d/large", b"x" * (200 * KIB), mtime_ns=THEN)
    buckets.ours.faults.then("read", Transient("cut"), path="large")
    summary = await buckets.sync()
    assert summary.exit_code == 0
    assert summary.totals.bytes_done == 200 * KIB
    assert summary.totals.retries == 1

    buckets.ours.put("d/other", b"y" * (200 * KIB), mtime_ns=THEN)
    buckets.ours.faults.always("read", Transient("cut"), path="other")
    summary = await buckets.sync()
    assert summary.exit_code == 1
    # Four parts, of which up to four at once give up after two more tries each.
    assert 2 <= summary.totals.retries <= 4 * BUDGETS.retries
