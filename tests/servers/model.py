"""Stores whose calls meet random trouble, held against what was in them: a property for hypothesis, run
shortly by the suite and for long by ``scripts/torture``.

Whatever a finite script of errors, delays, lost answers and cut reads does to a run over any backend: the
source is as it was, or at the destination if it is moved; a destination's file is what it was or what the
source had; success means that all is done; nothing lies around; and once the trouble is over, the same run
converges. It asks a bounded number of times.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeAlias
from unittest import mock

from hypothesis import strategies as st

from fastsync import patience
from fastsync.backend import Backend
from fastsync.copying import run_sync
from fastsync.errors import (
    AccessRefused,
    Changed,
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
from fastsync.moving import run_mv
from fastsync.registry import Claim, Registry
from fastsync.session import Request
from fastsync.settings import Settings
from fastsync.tally import Summary
from fastsync.testing import (
    After,
    BareMemoryBackend,
    Faults,
    FaultyBackend,
    MemoryBackend,
    ObjectMemoryBackend,
    Short,
)
from fastsync.testing.trouble import Trouble
from fastsync.values import MaxDelete
from fastsync_local.backend import LocalBackend

# Of a store, an upload, a download; `abort` and `aclose` never raise for a clean-up.
METHODS = (
    "connect", "scan", "stat", "read", "upload", "delete", "copy_from", "move_from", "make_directories",
    "make_links", "set_attributes", "digest", "proof", "read_whole", "write_whole", "complete",
    "open_download", "read_into_file", "open_file", "file_ids", "find_leftovers", "folds_names",
    "write", "commit", "write_from_file", "read_back", "leave", "verify",
)  # fmt: skip
ERRORS: tuple[type[FastsyncError], ...] = (
    Transient, Throttled, Stalled, IntegrityError, ListingError, Vanished, Changed, PermissionRefused,
    DestinationFull, AccessRefused,
)  # fmt: skip
RETRIES = 2


class Kind(NamedTuple):
    """A kind of trouble: what befalls a call. Cancelled is the whole run, wherever it is."""

    name: str
    error: type[FastsyncError] = Transient
    after: int = 0

    def trouble(self, cancel: Callable[[], None]) -> Trouble:
        if self.name == "delay":
            return 0.0001
        if self.name == "cancel":
            return cancel
        error = self.error("scripted")
        if self.name == "after":
            return After(error)
        return Short(self.after, error) if self.name == "short" else error


errors = st.sampled_from(ERRORS)
kinds = st.one_of(
    st.builds(Kind, st.just("error"), errors),
    st.builds(Kind, st.just("after"), errors),
    st.builds(Kind, st.just("short"), errors, st.integers(0, 9000)),
    st.just(Kind("delay")),
    st.just(Kind("cancel")),
)
scripts = st.lists(
    st.tuples(
        st.sampled_from(["source", "dest"]), st.sampled_from(METHODS), kinds, st.integers(1, 4)
    ),
    max_size=6,
)
files = st.dictionaries(
    st.sampled_from(["a", "b", "c/d", "c/e", "f/g/h"]), st.binary(max_size=9000), max_size=5
)
Script: TypeAlias = list[tuple[str, str, Kind, int]]


class Faulty(FaultyBackend):
    """What the registry finds: a new one of a kind, over scripts that the test has at hand."""

    made: ClassVar[Callable[[], Backend]]
    scripted: ClassVar[Faults]

    def __init__(self) -> None:
        super().__init__(type(self).made(), type(self).scripted)


class FaultySource(Faulty):
    """The scheme ``source``."""


class FaultyDest(Faulty):
    """The scheme ``dest``."""


class FaultyDisk(Faulty):
    """The scheme ``file``, of both ends if need be."""


class End:
    """One side of a run: a fresh place of some backend, with files, and trouble before it."""

    numbers = itertools.count()

    def __init__(self, side: str, made: type, content: dict[str, bytes], top: Path) -> None:
        self.root = top / side
        self.is_disk = made is LocalBackend
        self.faulty: type[Faulty] = FaultySource if side == "source" else FaultyDest
        if self.is_disk:
            self.faulty = FaultyDisk
            self.scheme, self.url = "file", f"{self.root}/"
            self.root.mkdir()
            for path, data in content.items():
                (self.root / path).parent.mkdir(parents=True, exist_ok=True)
                (self.root / path).write_bytes(data)
        else:
            self.scheme, name = side, f"trouble{next(self.numbers)}"
            self.url = f"{side}://{name}/"
            self.box = made.box(name)  # type: ignore[attr-defined]
            for path, data in content.items():
                self.box.put(path, data)
        self.faulty.made = made
        self.faults = self.faulty.scripted = Faults()

    def files(self) -> dict[str, bytes]:
        if not self.is_disk:
            found: dict[str, bytes] = self.box.files()
            return found
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in self.root.rglob("*")
            if path.is_file() and not path.name.startswith(".fs-")
        }

    def debris(self) -> int:
        if self.is_disk:
            return len(list(self.root.rglob(".fs-*")))
        now: int = self.box.uploads.now
        return now


BACKENDS: tuple[type, ...] = (
    MemoryBackend, BareMemoryBackend, ObjectMemoryBackend, LocalBackend,
)  # fmt: skip
backends = st.sampled_from(BACKENDS)
verbs = st.sampled_from(["sync", "sync", "mv"])


async def run_in_trouble(
    verb: str,
    source: type,
    dest: type,
    ours: dict[str, bytes],
    theirs: dict[str, bytes],
    script: Script,
) -> None:
    """Sync two places with deletion, or move one to the other, while their calls meet a script of trouble;
    then once more without."""
    with tempfile.TemporaryDirectory(prefix="fastsync-trouble-") as top:
        ends = {
            "dest": End("dest", dest, theirs, Path(top)),
            "source": End("source", source, ours, Path(top)),
        }
        running: list[asyncio.Task[Summary]] = []

        def cancel() -> None:
            running[-1].cancel()

        for side, method, kind, times in script:
            ends[side].faults.then(method, *[kind.trouble(cancel) for _ in range(times)])
        claims = {
            end.scheme: Claim(end.scheme, f"model:{end.faulty.__name__}") for end in ends.values()
        }
        settings = Settings(
            delete=verb == "sync", ignore_times=True, max_delete=MaxDelete(percent=100),
            allow_empty_source=True, chunk_size=1024, retry_count=RETRIES, small_file_threshold=2000,
        )  # fmt: skip
        with (
            mock.patch.object(
                Registry, "from_entry_points", return_value=Registry(claims.values())
            ),
            mock.patch.object(patience, "FIRST_BACKOFF_S", 1e-5),
        ):
            for is_again in (False, True):
                await _run_once(verb, ends, settings, running, is_again=is_again)


async def _run_once(
    verb: str,
    ends: dict[str, End],
    settings: Settings,
    running: list[asyncio.Task[Summary]],
    *,
    is_again: bool,
) -> None:
    source, dest = ends["source"], ends["dest"]
    ours, before = source.files(), dest.files()
    work = run_sync if verb == "sync" else run_mv
    try:
        running.append(asyncio.create_task(work(source.url, dest.url, Request(settings))))
        code = (await running[-1]).exit_code
    except FastsyncError as error:
        code = error.exit_code
    except asyncio.CancelledError:
        code = -1
    now, left = dest.files(), source.files()
    for name, data in now.items():
        assert data in (before.get(name), ours.get(name)), name
    lost = {name for name in before if name not in now}
    if verb == "sync":
        assert left == ours
        assert not lost & ours.keys()
        # Rule D: nothing is deleted unless every copy is done, or its source said to be gone or changing.
        assert not lost or code == Changed.exit_code or {**now, **ours} == now, lost
        assert code != 0 or now == ours
    else:
        assert not lost
        for name, data in ours.items():
            assert data in (left.get(name), now.get(name)), f"{name} is nowhere"
        assert left.items() <= ours.items()
        assert code != 0 or (not left and now == {**before, **ours})
    assert code == 0 or not is_again
    for end in ends.values():
        assert end.debris() == 0
        # An item of so few parts takes so many calls, at most so often.
        parts = sum(2 + len(data) // 1024 for data in (*ours.values(), *before.values()))
        assert end.faults.calls.total() <= 60 + 12 * parts * (RETRIES + 2), end.faults.calls
        end.faults.calls.clear()
        end.faults.forget()
