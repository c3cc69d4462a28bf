"""A clock that is set while a run is under way, by minutes and years, forwards and back: no one notices."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import fastsync as library
from fastsync.events import Silent, Totals

if TYPE_CHECKING:
    from tests.conftest import Picture, Plant

YEAR_S = 365 * 86400


@pytest.fixture(params=["back", "forwards", "to and fro"])
def clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each time it is read, the clock of the wall is elsewhere."""
    really = time.time_ns
    steps = itertools.count()
    chance = random.Random(7)

    def time_ns() -> int:
        by_s = {
            "back": -next(steps) * 3600,
            "forwards": next(steps) * 3600,
            "to and fro": chance.choice((-YEAR_S, -600, 0, 600, YEAR_S)),
        }[request.param]
        return really() + by_s * 1_000_000_000

    monkeypatch.setattr(time, "time_ns", time_ns)
    monkeypatch.setattr(time, "time", lambda: time_ns() / 1e9)
    return str(request.param)


class Watcher(Silent):
    def __init__(self) -> None:
        self.bytes_done: list[int] = []

    def progress(self, totals: Totals) -> None:
        self.bytes_done.append(totals.bytes_done)


def test_copies_and_what_is_found_unchanged(
    clock: str,
    plant: Plant,
    picture: Callable[..., Picture],
    debris: Callable[[Path], list[Path]],
    tmp_path: Path,
) -> None:
    """Old files, new ones, and some of years to come; copied once, then left alone until they change."""
    src = plant(tmp_path / "src", {f"{number % 5}/{number}": str(number) for number in range(60)})
    (src / "now").write_text("now")
    (src / "large").write_bytes(bytes(3_000_000))
    os.utime(src / "0/5", (4e9, 4e9))
    watcher = Watcher()
    began = time.monotonic()
    summary = library.sync(
        src, tmp_path / "dest", observer=watcher, stall_timeout=1, request_timeout=1, bwlimit="20M"
    )
    assert (summary.exit_code, summary.failures, summary.totals.retries) == (0, [], 0), clock
    assert 0 < summary.duration_s <= time.monotonic() - began
    assert watcher.bytes_done == sorted(watcher.bytes_done)
    assert picture(tmp_path / "dest") == picture(src)
    again = library.sync(src, tmp_path / "dest", delete=True)
    assert (again.exit_code, again.totals.files_copied, again.totals.deleted) == (0, 0, 0)
    os.utime(src / "0/10", (3e9, 3e9))
    (src / "0/10").write_text("!!")
    third = library.sync(src, tmp_path / "dest")
    assert (third.exit_code, third.totals.files_copied) == (0, 1)
    assert (tmp_path / "dest/0/10").read_text() == "!!"
    assert debris(tmp_path) == []
