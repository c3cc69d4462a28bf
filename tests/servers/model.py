"""What any sequence of changes, syncs, kills and faults may come to: machines for hypothesis, run shortly by
the suite and for long by ``scripts/torture``.

`LocalTrees` works on two directories and the real command; `sync_in_trouble` on stores in memory whose calls
meet random trouble. After every step: the source is as it was left, a destination's file is what it was or
what the source has, nothing lies around; success means equal; and once the trouble is over, the same sync
converges.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TypeAlias
from unittest import mock

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import fastsync
from fastsync import patience
from fastsync.copying import run_sync
from fastsync.errors import (
    AccessRefused,
    Changed,
    DestinationFull,
    FastsyncError,
    IntegrityError,
    ListingError,
    PermissionRefused,
    Throttled,
    Transient,
    Vanished,
)
from fastsync.registry import Claim, Registry
from fastsync.session import Request
from fastsync.settings import Settings
from fastsync.testing import BareMemoryBackend, MemoryBackend, ObjectMemoryBackend
from fastsync.values import MaxDelete

# Kind, content or target, permission bits, time; a directory has no time here.
Shot: TypeAlias = tuple[str, bytes, int, int]
Picture: TypeAlias = dict[str, Shot]

EVERYTHING = MaxDelete(percent=100)
NAMES = ("a", "b", "a-", "a.b", "é", "d")
paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)
contents = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([b"x" * 200_000, b"y" * 200_000, b"z" * 3_000_000]),
)
times = st.integers(0, 2**31 * 10**9)
sides = st.sampled_from(["source", "dest"])


def picture(root: Path) -> Picture:
    shots: Picture = {}
    for directory, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = Path(directory, name)
            status = path.lstat()
            at = str(path.relative_to(root))
            mode = status.st_mode & 0o777
            if path.is_symlink():
                shots[at] = ("link", os.fsencode(os.readlink(path)), 0, 0)
            elif path.is_dir():
                shots[at] = ("dir", b"", mode, 0)
            else:
                shots[at] = ("file", path.read_bytes(), mode, status.st_mtime_ns)
    return shots


class LocalTrees(RuleBasedStateMachine):
    """Two trees of one disk, changed at random on both sides and synced with random options."""

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="fastsync-model-"))
        self.source, self.dest = self.root / "source", self.root / "dest"
        self.source.mkdir()
        self.dest.mkdir()
        (self.root / "outside").write_bytes(b"outside")

    def teardown(self) -> None:
        if hasattr(self, "root"):
            shutil.rmtree(self.root)

    # -- changes -------------------------------------------------------------------------------------

    def _place(self, side: str, path: str) -> Path | None:
        """Room for a new entry: whatever is in the way goes; None where a link leads elsewhere."""
        root = self.source if side == "source" else self.dest
        place = root / path
        for above in reversed(place.relative_to(root).parents):
            there = root / above
            if there.is_symlink() or (there.exists() and not there.is_dir()):
                there.unlink()
            there.mkdir(exist_ok=True)
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        elif place.is_symlink() or place.exists():
            place.unlink()
        return place

    @rule(side=sides, path=paths, content=contents, when=times)
    def write(self, side: str, path: str, content: bytes, when: int) -> None:
        place = self._place(side, path)
        assert place is not None
        place.write_bytes(content)
        os.utime(place, ns=(when, when))

    @rule(side=sides, path=paths)
    def make_directory(self, side: str, path: str) -> None:
        place = self._place(side, path)
        assert place is not None
        place.mkdir()

    @rule(side=sides, path=paths, text=st.sampled_from(["a", "../outside", "nowhere", "/etc"]))
    def make_link(self, side: str, path: str, text: str) -> None:
        place = self._place(side, path)
        assert place is not None
        place.symlink_to(text)

    def _there(self, side: str, number: int) -> Path | None:
        root = self.source if side == "source" else self.dest
        there = sorted(picture(root))
        return root / there[number % len(there)] if there else None

    @rule(side=sides, number=st.integers(0, 100))
    def delete(self, side: str, number: int) -> None:
        place = self._there(side, number)
        if place is not None and place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        elif place is not None:
            place.unlink()

    @rule(side=sides, number=st.integers(0, 100), path=paths)
    def rename(self, side: str, number: int, path: str) -> None:
        place = self._there(side, number)
        root = self.source if side == "source" else self.dest
        if place is None or f"{root / path}/".startswith(f"{place}/"):
            return
        aside = self.root / "aside"
        place.rename(aside)
        there = self._place(side, path)
        assert there is not None
        aside.rename(there)

    @rule(side=sides, number=st.integers(0, 100), when=times)
    def touch(self, side: str, number: int, when: int) -> None:
        place = self._there(side, number)
        if place is not None:
            os.utime(place, ns=(when, when), follow_symlinks=False)

    @rule(
        side=sides, number=st.integers(0, 100), mode=st.sampled_from([0o600, 0o755, 0o444, 0o777])
    )
    def chmod(self, side: str, number: int, mode: int) -> None:
        place = self._there(side, number)
        if place is not None and not place.is_symlink():
            place.chmod(mode | (0o700 if place.is_dir() else 0))

    # -- syncs ---------------------------------------------------------------------------------------

    @rule(
        delete=st.booleans(),
        checksum=st.booleans(),
        durable=st.booleans(),
        chunk=st.sampled_from([64 << 10, 1 << 20]),
    )
    def sync(self, *, delete: bool, checksum: bool, durable: bool, chunk: int) -> None:
        before, source = picture(self.dest), picture(self.source)
        summary = fastsync.sync(
            self.source, self.dest, delete=delete, checksum=checksum, durable=durable,
            chunk_size=chunk, max_delete=EVERYTHING, allow_empty_source=True,
        )  # fmt: skip
        self._judge(before, source, delete=delete, code=summary.exit_code)

    @rule(delete=st.booleans(), after_ms=st.integers(60, 260))
    def sync_and_kill(self, *, delete: bool, after_ms: int) -> None:
        before, source = picture(self.dest), picture(self.source)
        options = ["--delete", "--max-delete", "100%", "--allow-empty-source"] if delete else []
        process = subprocess.Popen(
            [sys.executable, "-m", "fastsync", "sync", *options, self.source, self.dest],
            start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(after_ms / 1000)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        for place in self.dest.rglob(".fs-*.part"):
            place.unlink()  # that they go by themselves has tests of its own
        self._judge(before, source, delete=delete, code=code)

    def _judge(self, before: Picture, source: Picture, *, delete: bool, code: int) -> None:
        now = picture(self.dest)
        assert picture(self.source) == source, "the source is read, and nothing else"
        for path, shot in now.items():
            ours, theirs = before.get(path), source.get(path)
            assert shot[:2] in [known[:2] for known in (ours, theirs) if known], path
        if not delete:
            gone = before.keys() - now.keys()
            assert not gone, gone
        if code == 0:
            for path, shot in source.items():
                assert now[path][:2] == shot[:2], path
                assert now[path][2:] == shot[2:], path
            if delete:
                assert now.keys() == source.keys()

    @invariant()
    def nothing_is_outside(self) -> None:
        if hasattr(self, "root"):
            assert (self.root / "outside").read_bytes() == b"outside"
            assert sorted(os.listdir(self.root)) == ["dest", "outside", "source"]
            assert not list(self.dest.rglob(".fs-*"))

    @rule()
    def converge(self) -> None:
        fastsync.sync(
            self.source, self.dest, delete=True, checksum=True, max_delete=EVERYTHING,
            allow_empty_source=True,
        )  # fmt: skip
        assert picture(self.dest) == picture(self.source)


# -- stores whose calls meet trouble -------------------------------------------------------------------

METHODS = (
    "scan", "stat", "read", "upload", "write", "commit", "abort", "delete", "copy_from", "connect",
    "make_directories", "set_attributes", "digest", "read_whole", "write_whole", "complete",
    "open_download", "verify",
)  # fmt: skip
TROUBLES: tuple[type[FastsyncError], ...] = (
    Transient, Throttled, IntegrityError, ListingError, Vanished, Changed, PermissionRefused,
    DestinationFull, AccessRefused,
)  # fmt: skip
NO_ABORT = ("abort",)  # which never raises for a clean-up
scripts = st.lists(
    st.tuples(
        st.sampled_from(["source", "dest"]),
        st.sampled_from([method for method in METHODS if method not in NO_ABORT]),
        st.sampled_from(TROUBLES),
        st.integers(1, 4),
    ),
    max_size=6,
)
files = st.dictionaries(
    st.sampled_from(["a", "b", "c/d", "c/e", "f/g/h"]), st.binary(max_size=9000), max_size=5
)
backends = st.sampled_from([MemoryBackend, BareMemoryBackend, ObjectMemoryBackend])
Script: TypeAlias = list[tuple[str, str, type[FastsyncError], int]]


async def sync_in_trouble(
    source: type[MemoryBackend],
    dest: type[MemoryBackend],
    ours: dict[str, bytes],
    theirs: dict[str, bytes],
    script: Script,
) -> None:
    """Sync two stores with deletion while their calls meet a script of trouble; then once more without."""
    boxes = {}
    for side, backend, content in (("source", source, ours), ("dest", dest, theirs)):
        backend._boxes.pop(side, None)
        box = boxes[side] = backend.box(side)
        for name, data in content.items():
            box.put(name, data)
    for side, method, error, times_ in script:
        boxes[side].faults.then(method, *[error("scripted") for _ in range(times_)])
    there = Registry(
        [
            Claim(side, f"fastsync.testing:{backend.__name__}")
            for side, backend in (("source", source), ("dest", dest))
        ]
    )
    settings = Settings(
        delete=True, ignore_times=True, max_delete=MaxDelete(percent=100), allow_empty_source=True,
        chunk_size=1024, retry_count=2, small_file_threshold=2000,
    )  # fmt: skip
    with (
        mock.patch.object(Registry, "from_entry_points", return_value=there),
        mock.patch.object(patience, "FIRST_BACKOFF_S", 1e-5),
    ):
        for is_again in (False, True):
            before = boxes["dest"].files()
            try:
                code = (
                    await run_sync("source://source/", "dest://dest/", Request(settings))
                ).exit_code
            except FastsyncError as error:
                code = error.exit_code
            now = boxes["dest"].files()
            assert boxes["source"].files() == ours
            for name, data in now.items():
                assert data in (before.get(name), ours.get(name)), name
            assert not {name for name in before if name not in now} & ours.keys()
            if code == 0:
                assert now == ours
            assert code == 0 or not is_again
            for box in boxes.values():
                assert box.uploads.now == 0
                box.faults.forget()
