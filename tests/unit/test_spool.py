"""Spools: everything comes back in order, forwards and backwards, on either side of memory's edge."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsync import spool as spool_module
from fastsync.backend import Entry, Owner
from fastsync.plan import Action
from fastsync.spool import PAGE, Spool


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def flat(pages: object) -> list[int]:
    return [item for page in pages for item in page]  # type: ignore[attr-defined]


@given(chunks=st.lists(st.lists(st.integers(), max_size=9), max_size=12), page=st.integers(1, 12))
def test_what_went_in_comes_out(chunks: list[list[int]], page: int) -> None:
    everything = [item for chunk in chunks for item in chunk]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool_module, "PAGE", page)
        spool: Spool[int] = Spool()
        for chunk in chunks:
            spool.extend(chunk)
        assert len(spool) == len(everything)
        for _ in range(2):
            assert flat(spool.pages()) == everything
            assert flat(spool.pages_backwards()) == everything[::-1]
        assert all(spool.pages())
        spool.close()


@pytest.mark.parametrize("count", [0, 1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE, 3 * PAGE + 5])
def test_the_edge_of_memory(count: int) -> None:
    """A file is opened only for what is worth it, holds the full pages, and is gone with `close`."""
    before = descriptors()
    spool: Spool[int] = Spool()
    for number in range(count):
        spool.extend([number])
    assert descriptors() - before == (count >= PAGE)
    assert len(spool) == count
    assert flat(spool.pages()) == list(range(count))
    assert flat(spool.pages_backwards()) == list(reversed(range(count)))
    spool.close()
    assert descriptors() == before


def test_more_after_reading() -> None:
    spool: Spool[int] = Spool()
    spool.extend(list(range(PAGE)))
    assert flat(spool.pages()) == list(range(PAGE))
    spool.extend(list(range(PAGE, 2 * PAGE + 1)))
    spool.extend([2 * PAGE + 1])
    assert flat(spool.pages()) == list(range(2 * PAGE + 2))
    assert flat(spool.pages_backwards()) == list(reversed(range(2 * PAGE + 2)))
    spool.close()


def test_a_page_given_away_is_not_shared() -> None:
    spool: Spool[int] = Spool()
    spool.extend([1, 2])
    (page,) = spool.pages()
    page.clear()
    assert flat(spool.pages()) == [1, 2]


def test_close() -> None:
    spool: Spool[int] = Spool()
    spool.extend(list(range(PAGE)))
    spool.extend([1])
    for _ in range(2):
        spool.close()
        assert len(spool) == 0
        assert flat(spool.pages()) == flat(spool.pages_backwards()) == []


def test_what_a_run_keeps_survives_the_file() -> None:
    """Entries and actions are the same after the way through the file, surrogate escapes included."""
    entry = Entry("d/\udcff\n", "link", None, -1, 0o777, "\udc80", "v", Owner(0, 1))
    action = Action("copy", entry.path, entry, None, "new")
    spool: Spool[Action] = Spool()
    spool.extend([action] * PAGE)
    (page,) = spool.pages()
    assert set(page) == {action}
    assert isinstance(page[0].entry.owner, Owner)
    spool.close()


def test_the_file_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else can put something into what is unpickled."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    spool: Spool[int] = Spool()
    spool.extend(list(range(PAGE)))
    assert os.listdir(tmp_path) == []
    spool.close()


def test_memory_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written to the file is no longer held."""
    monkeypatch.setattr(spool_module, "PAGE", 100)

    class Thing:
        alive = 0

        def __init__(self) -> None:
            Thing.alive += 1

        def __del__(self) -> None:
            Thing.alive -= 1

        def __reduce__(self) -> tuple[type, tuple[()]]:
            return object, ()

    spool: Spool[object] = Spool()
    most = 0
    for _ in range(1000):
        spool.extend([Thing()])
        most = max(most, Thing.alive)
    assert most <= 100
    spool.close()
