"""Runs at the same time, with one set of connections and one exit code."""

from __future__ import annotations

import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from fastsync.backend import Source, StoreOptions
from fastsync.batch import Task, _Batch, _units, run_batch
from fastsync.budget import Budget
from fastsync.copying import run_cp
from fastsync.errors import NotFound
from fastsync.events import Silent, Totals
from fastsync.location import Location
from fastsync.session import Request, Session, Shared, located
from fastsync.tally import Summary
from fastsync_local.backend import LocalBackend
from fastsync_local.store import LocalStore


async def test_lines_share_protocols_until_the_last_is_done(tmp_path: Path) -> None:
    backends: set[int] = set()
    stores: list[Source] = []

    async def start(request: Request) -> Summary:
        assert request.shared is not None
        async with Session(request) as session:
            stores.append(await session.open(located(tmp_path)))
        backends.update(map(id, request.shared.backends.values()))
        return Summary(Totals(files_copied=1))

    places = [located(tmp_path / "a")]
    tasks = [Task(number, "rm", "rm", Request(), places, None, start) for number in range(1, 6)]
    summary, failed = await run_batch(tasks, "batch", Request())
    assert (len(backends), len(stores), failed) == (1, 5, [])
    assert (summary.exit_code, summary.totals.files_copied) == (0, 5)


@pytest.mark.parametrize(("fail", "code"), [((), 0), ((2,), 1), ((1, 2, 3), 8)])
async def test_some_that_fail_are_one_and_all_are_the_worst(
    fail: tuple[int, ...], code: int
) -> None:
    def task(number: int) -> Task:
        async def start(_request: Request) -> Summary:
            if number == 2 and fail == (2,):
                raise NotFound("gone")
            return Summary(Totals(), exit_code=8 if number in fail else 0)

        return Task(number, "rm", "rm", Request(), [located("a")], None, start)

    summary, failed = await run_batch([task(number) for number in (3, 1, 2)], "batch", Request())
    assert summary.exit_code == code
    assert [each.number for each in failed] == list(fail)


def copies(request: Request, lines: list[tuple[str, str]]) -> list[Task]:
    return [
        Task(number, "cp", "cp", request, [ours], theirs, partial(run_cp, ours, theirs))
        for number, (here, there) in enumerate(lines, 1)
        for ours, theirs in [(located(here), located(there))]
    ]


async def test_many_lines_open_few_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = 0
    connect = LocalBackend.connect

    async def counted(self: LocalBackend, place: Location, options: StoreOptions) -> LocalStore:
        nonlocal opened
        opened += 1
        return await connect(self, place, options)

    monkeypatch.setattr(LocalBackend, "connect", counted)
    monkeypatch.chdir(tmp_path)
    Path("from").mkdir()
    for number in range(100):
        Path(f"from/{number}").touch()
    request = Request()
    lines = [(f"from/{number}", f"to/{number}") for number in range(100)]
    summary, _ = await run_batch(copies(request, lines), "batch", request)
    assert summary.totals.files_copied == 100
    assert opened < 10


def test_one_source_for_many_places() -> None:
    """What a line costs does not grow with their number."""
    request = Request()
    batch = _Batch("batch", request, Shared(Budget(1), Budget(1)))

    def took_s(count: int) -> float:
        tasks = copies(request, [("from/a", f"to/{number}") for number in range(count)])
        for task in tasks:
            task.between = located("from"), located("to")
        began = time.thread_time()
        assert len(list(_units(batch, tasks))) == count
        return time.thread_time() - began

    assert took_s(16_000) < 100 * took_s(500)


async def test_counts_of_all_lines_never_run_backwards(tmp_path: Path) -> None:
    """What is to be done is known once all lines have been looked at."""
    for number in range(30):
        (tmp_path / str(number)).write_bytes(bytes(1000))
    seen: list[Totals] = []

    class Watch(Silent):
        def progress(self, totals: Totals) -> None:
            seen.append(totals)

    watch = Request(observer=Watch())
    tasks = []
    for number in range(30):
        places = [located(tmp_path / str(number))], located(tmp_path / f"to/{number}")
        start = partial(run_cp, *places)
        tasks.append(Task(number + 1, "cp", "cp", watch, *places, start))
    places = [located(tmp_path / "gone")], located(tmp_path / "to/gone")
    tasks.append(Task(31, "cp", "cp", watch, *places, partial(run_cp, *places)))
    summary, failed = await run_batch(tasks, "batch", watch)
    assert [task.number for task in failed] == [31]
    assert (summary.totals.files_copied, summary.totals.bytes_done) == (30, 30_000)
    assert (summary.totals.failed, summary.totals.planned_files) == (1, 30)
    assert not summary.totals.scanning
    for before, after in pairwise(seen):
        assert before.files_copied <= after.files_copied
        assert before.planned_bytes <= after.planned_bytes
