"""Random changes on both ends of a sync, between any two protocols, and syncs with random options that are
killed, cancelled, cut off, and run again: machines for hypothesis. The suite runs them shortly,
``scripts/torture`` for as long as one likes.

The model of an end is a dict of what is there. After every run, however it ended: the source is as it was
left; a name at the destination has what it had or what the source has, never a mix; nothing is deleted that
was not to be, and nothing at all unless every copy is done (rule D); what is replaced or deleted is in the
backup, if one was asked for; nothing lies around. Success means that all is as the options say, and that the
same run once more finds nothing to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from expected import Expected, Options
from fault_proxy import Trouble
from hostile_s3 import error_body, hang_up, lost_reply, refuse, slow_down
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from rigs import Rig
from sides import Disk, Objects, Picture, Side

from fastsync.config import resolve_options
from fastsync.copying import run_sync
from fastsync.errors import FastsyncError
from fastsync.events import Totals
from fastsync.filters import parse_rule
from fastsync.leftovers import run_clean
from fastsync.location import Location
from fastsync.session import Request
from fastsync.tally import Summary

Content: TypeAlias = tuple[bytes, int]

KILLED = -signal.SIGKILL
CANCELLED = -1
LIMIT_S = 120.0

NAMES = ("a", "b", "a-", "a.b", "\u00e9", "e\u0301", "d", "a b", "a+b", "%2F", "a#?", "n" * 255)
RAW_NAMES = ("\udcff", "new\nline", " x", "x ", "-n")  # where both ends are disks
paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)
# A few bytes, and how often: what fails should be short to read.
contents = st.one_of(
    st.tuples(st.binary(max_size=20), st.just(1)),
    st.tuples(st.sampled_from([b"x", b"y"]), st.sampled_from([200_000, 3_000_000])),
    st.just((b"large", 2_200_000)),
)
times = st.integers(10**9, 2**31 * 10**9)
sides = st.sampled_from(["source", "dest"])
links = st.sampled_from(["a", "../outside", "nowhere", "/etc"])

# What may be asked for beside --delete; of each list a run has at most one.
CHOICES: tuple[tuple[tuple[str, object], ...], ...] = (
    (("checksum", True), ("size_only", True), ("ignore_times", True)),
    (("update", True), ("ignore_existing", True), ("existing", True)),
    (("archive", True),),
    (("inplace", True), ("durable", True), ("sparse", True)),
    (("resume", False),),
    (("chunk_size", 64 << 10), ("chunk_size", 5 << 20), ("chunk_size", 1 << 20)),
    (("small_file_threshold", 0), ("small_file_threshold", 64 << 20)),
    (("verify", "reread"),),
    (("parallel_streams", 1), ("parallel_streams", 32)),
    (("jobs", 1),),
    (("max_size", 100), ("min_size", 10), ("max_depth", 1), ("max_depth", 2)),
    (("hard_links", True), ("xattrs", True)),
    (("exclude", "b"), ("exclude", "d/"), ("exclude", "/a")),
    (("backup_dir", True),),
    (("max_delete", 1), ("max_delete", 0)),
    (("allow_empty_source", True),),
    (("delete_excluded", True),),
)
several = st.lists(st.sampled_from(range(len(CHOICES))), max_size=4, unique=True).flatmap(
    lambda numbers: st.tuples(*(st.sampled_from(CHOICES[number]) for number in numbers))
)
options = st.tuples(st.booleans(), several).map(
    lambda drawn: {**({"delete": True} if drawn[0] else {}), **dict(drawn[1])}
)
troubles = st.one_of(
    st.builds(
        Trouble,
        cut_after=st.integers(0, 400_000),
        reset=st.booleans(),
        upwards=st.booleans(),
    ),
    st.builds(Trouble, lose_reply_after=st.integers(1, 200_000), reset=st.booleans()),
    st.builds(Trouble, slice=st.sampled_from([700, 5000])),
    st.just(Trouble(refuse=True)),
)
refusals = st.tuples(
    st.sampled_from(
        ["*", "List*", "GetObject", "HeadObject", "PutObject", "UploadPart", "CompleteMultipart*",
         "CreateMultipart*", "CopyObject", "DeleteObject*"]
    ),
    st.sampled_from(
        [slow_down(), refuse(500, "InternalError"), refuse(403, "AccessDenied"), hang_up(),
         hang_up(reset=True), lost_reply(), error_body(), error_body(done=True)]
    ),
    st.integers(0, 5),
    st.integers(1, 3),
)  # fmt: skip


def children() -> set[str]:
    """The numbers of this process's own ones, where the kernel tells (CONFIG_PROC_CHILDREN)."""
    found: set[str] = set()
    for task in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            found.update(task.read_text().split())
    return found


class Pair(RuleBasedStateMachine):
    """Two ends, changed at random and synced with random options."""

    def __init__(self, rig: Rig) -> None:
        super().__init__()
        self.rig = rig
        self.numbers = itertools.count()
        self.root = Path(tempfile.mkdtemp(prefix="fastsync-model-"))
        self.source, self.dest = rig.make(self.root)
        self.state = self.root / "state"
        self.home = self.root / "home"
        self.home.mkdir()
        (self.root / "outside").write_bytes(b"outside")
        self.is_interrupted = False
        self.is_open = False  # since it converged something has happened

    def teardown(self) -> None:
        self.rig.behave()
        shutil.rmtree(self.root)

    # -- changes -------------------------------------------------------------------------------------

    def _side(self, side: str) -> Side:
        return self.source if side == "source" else self.dest

    @initialize(
        files=st.lists(st.tuples(sides, paths, contents, times), min_size=4, max_size=12),
        count=st.integers(0, 20),
    )
    def begin(self, files: list[tuple[str, str, Content, int]], count: int) -> None:
        for side, path, content, when in files:
            self.write(side, path, content, when)
        self.plant("source", count, 3000, 10**18)

    @rule(side=sides, path=paths, content=contents, when=times)
    def write(self, side: str, path: str, content: Content, when: int) -> None:
        self._side(side).write(path, content[0] * content[1], when)

    @rule(
        side=sides, count=st.integers(5, 40), size=st.sampled_from([10, 3000, 150_000]), when=times
    )
    def plant(self, side: str, count: int, size: int, when: int) -> None:
        """Many files, so that there is something to be in the middle of."""
        for number in range(count):
            path = f"many/{number % 3}/{number}"
            self._side(side).write(path, bytes([number]) * size, when)

    @rule(path=paths, content=contents, when=times, later=st.integers(-(10**10), 10**10))
    def write_both(self, path: str, content: Content, when: int, later: int) -> None:
        data = content[0] * content[1]
        self.source.write(path, data, when)
        self.dest.write(path, data[::-1], when + later)

    @rule(side=sides, path=paths, content=contents)
    def write_now(self, side: str, path: str, content: Content) -> None:
        """By a tool that keeps no times, where it is a bucket."""
        self._side(side).write(path, content[0] * content[1], None)

    @rule(side=sides, path=paths)
    def make_directory(self, side: str, path: str) -> None:
        self._side(side).make_directory(path)

    @rule(side=sides, path=paths, text=links)
    def make_link(self, side: str, path: str, text: str) -> None:
        if self._side(side).has_links:
            self._side(side).make_link(path, text)

    @rule(side=sides, name=st.sampled_from(RAW_NAMES), content=contents, when=times)
    def write_odd(self, side: str, name: str, content: Content, when: int) -> None:
        if isinstance(self.source, Disk) and isinstance(self.dest, Disk) and self.source.has_links:
            self._side(side).write(name, content[0] * content[1], when)

    @rule(number=st.integers(0, 100), name=st.sampled_from(NAMES), content=contents, when=times)
    def write_under(self, number: int, name: str, content: Content, when: int) -> None:
        """An object whose name makes a directory of another one."""
        path = self._there("source", number)
        if path is not None and isinstance(self.source, Objects):
            self.source.write_under(f"{path}/{name}", content[0] * content[1], when)

    def _there(self, side: str, number: int) -> str | None:
        there = sorted(self._side(side).picture())
        return there[number % len(there)] if there else None

    @rule(side=sides, number=st.integers(0, 100))
    def delete(self, side: str, number: int) -> None:
        if (path := self._there(side, number)) is not None:
            self._side(side).delete(path)

    @rule(side=sides, number=st.integers(0, 100), new=paths)
    def rename(self, side: str, number: int, new: str) -> None:
        path = self._there(side, number)
        if path is not None and not f"{new}/".startswith(f"{path}/"):
            self._side(side).rename(path, new)

    @rule(side=sides, number=st.integers(0, 100), when=times)
    def touch(self, side: str, number: int, when: int) -> None:
        if (path := self._there(side, number)) is not None:
            self._side(side).touch(path, when)

    @rule(
        side=sides, number=st.integers(0, 100), mode=st.sampled_from([0o600, 0o755, 0o444, 0o777])
    )
    def chmod(self, side: str, number: int, mode: int) -> None:
        if (path := self._there(side, number)) is not None:
            self._side(side).chmod(path, mode)

    # -- runs ----------------------------------------------------------------------------------------

    @rule(told=options)
    def sync(self, told: Options) -> None:
        """An undisturbed run; and once more the same, which finds nothing to do."""
        expected, backup = self._prepare(told)
        summary = self._run(told, backup)
        now = self._judge(expected, summary.exit_code, backup, note=str(summary.failures[:3]))
        if summary.exit_code == 0 and not told.get("ignore_times"):
            again = self._run(told, backup)
            done = again.totals
            changed = (done.files_copied, done.directories_made, done.links_made, done.deleted)
            assert (again.exit_code, *changed) == (0, 0, 0, 0, 0), f"{told} again: {again}"
            # Where contents are compared, a directory may be given its time again.
            assert not done.attributes_set or told.get("archive"), f"{told} again: {again}"
            assert self.dest.picture() == now

    @rule(told=options, at=st.integers(1, 99), by=st.sampled_from(["step", "step", "bytes", "ms"]))
    def kill(self, told: Options, at: int, by: str) -> None:
        """The real command, ended by kill -9 in the middle."""
        expected, backup = self._prepare(told)
        code, said = self._command(told, backup, at, by)
        self.is_interrupted |= code == KILLED
        assert code == KILLED or code in range(9), said
        self._judge(expected, code, backup, is_troubled=True, note=said)

    @rule(told=options, at=st.integers(1, 99), by=st.sampled_from(["turns", "bytes", "ms"]))
    def cancel(self, told: Options, at: int, by: str) -> None:
        """The library, cancelled in the middle."""
        expected, backup = self._prepare(told)
        summary = self._run(told, backup, cut=(at, by))
        self.is_interrupted |= summary.exit_code == CANCELLED
        self._judge(expected, summary.exit_code, backup, is_troubled=True, note=str(summary))

    @precondition(lambda self: bool(self.rig.proxies))
    @rule(told=options, script=st.lists(troubles, min_size=1, max_size=4))
    def cut(self, told: Options, script: list[Trouble]) -> None:
        """A network in trouble."""
        expected, backup = self._prepare(told)
        for number, trouble in enumerate(script):
            self.rig.proxies[number % len(self.rig.proxies)].next(trouble)
        summary = self._run(told, backup)
        self.rig.behave()
        self.is_interrupted |= summary.exit_code != 0
        self._judge(expected, summary.exit_code, backup, is_troubled=True, note=str(summary))

    @precondition(lambda self: bool(self.rig.servers))
    @rule(told=options, script=st.lists(refusals, min_size=1, max_size=4))
    def refuse(self, told: Options, script: list[tuple[str, Any, int, int]]) -> None:
        """A server of objects that refuses, fails and hangs up."""
        expected, backup = self._prepare(told)
        for number, (operation, fault, skip, times_) in enumerate(script):
            server = self.rig.servers[number % len(self.rig.servers)]
            server.on(operation, fault, skip=skip, times=times_)
        summary = self._run(told, backup)
        self.rig.behave()
        self.is_interrupted |= summary.exit_code != 0
        self._judge(expected, summary.exit_code, backup, is_troubled=True, note=str(summary))

    @precondition(lambda self: self.is_open)
    @rule()
    def converge(self) -> None:
        told: Options = {"delete": True, "checksum": True, "allow_empty_source": True}
        expected, backup = self._prepare(told | {"max_delete": "100%"})
        summary = self._run(expected.options, backup)
        self._judge(expected, summary.exit_code, backup, note=str(summary.failures[:3]))
        if expected.torn:
            return  # as far as there is one place for both
        assert summary.exit_code == 0, summary
        cannot_be_there = expected.source.keys() - expected.selected.keys()
        now = {
            path: shot[:2]
            for path, shot in self.dest.picture().items()
            if path not in cannot_be_there
        }
        wanted = {path: shot[:2] for path, shot in expected.selected.items()}
        for above in expected.implied if self.dest.has_directories else ():
            wanted[above] = ("dir", b"")
        assert now == wanted
        cleaned = asyncio.run(run_clean(self._request({})))
        assert cleaned.exit_code == 0, cleaned
        assert not self.dest.debris()
        self.is_interrupted = self.is_open = False

    @invariant()
    def nothing_is_outside(self) -> None:
        assert (self.root / "outside").read_bytes() == b"outside"
        known = {"dest", "outside", "source", "state", "home"}
        assert {n for n in os.listdir(self.root) if not n.startswith("backup")} <= known

    # -- how -----------------------------------------------------------------------------------------

    def _prepare(self, told: Options) -> tuple[Expected, Side | None]:
        self.is_open = True
        if not told.get("delete"):
            told.pop("delete_excluded", None)
        if told.get("ignore_times"):
            told.pop("update", None)
        expected = Expected(told, self.source.picture(), self.dest.picture(), self.rig, self.dest)
        backup = self.dest.beside(f"backup-{next(self.numbers)}") if "backup_dir" in told else None
        return expected, backup

    def _request(self, told: Options, backup: Side | None = None) -> Request:
        passed = {**told, "retry_count": 3, "stall_timeout": 30.0, "request_timeout": 30.0}
        if backup is not None:
            passed["backup_dir"] = backup.url
        pattern = passed.pop("exclude", None)
        rules = [] if pattern is None else [parse_rule(f"- {pattern}")]
        found = resolve_options(passed)

        def settings(location: Location, side: str) -> Mapping[str, str]:
            return self.source.place if side == "source" else self.dest.place

        return Request(found.settings, rules, place_settings=settings, state_folder=str(self.state))

    def _run(
        self, told: Options, backup: Side | None, cut: tuple[int, str] | None = None
    ) -> Summary:
        """In this process; what is raised is a summary, too. No process of its own outlives it."""
        before = children()
        try:
            return self._run_here(told, backup, cut)
        finally:
            assert children() <= before

    def _run_here(self, told: Options, backup: Side | None, cut: tuple[int, str] | None) -> Summary:
        request, passed = self._request(told, backup), self.rig.passed()

        async def run() -> Summary:
            task = asyncio.create_task(run_sync(self.source.url, self.dest.url, request))
            if cut is None:
                return await asyncio.wait_for(task, LIMIT_S)
            at, by = cut
            if by == "bytes":
                while not task.done() and self.rig.passed() - passed < at * at * 1000:
                    await asyncio.sleep(0)
            elif by == "turns":
                for _ in range(at * 10):
                    await asyncio.sleep(0)
            else:
                await asyncio.wait([task], timeout=at / 200)
            task.cancel()
            return await task

        try:
            return asyncio.run(run())
        except FastsyncError as error:
            return Summary(Totals(), exit_code=error.exit_code, kept=str(error))
        except asyncio.CancelledError:
            return Summary(Totals(), exit_code=CANCELLED)

    def _command(self, told: Options, backup: Side | None, at: int, by: str) -> tuple[int, str]:
        flags = [] if backup is None else ["--backup-dir", backup.url]
        for name, value in told.items():
            if name == "backup_dir":
                continue
            flag = "--" + name.replace("_", "-")
            if name == "resume":
                flags.append("--no-resume")
            elif name == "parallel_streams":
                flags += ["--parallel", str(value)]
            elif value is True:
                flags.append(flag)
            elif name != "small_file_threshold":  # which has no flag
                flags += [flag, f"{value}B" if name == "chunk_size" else str(value)]
        config = self.home / "config.toml"
        tables = {}
        for side in (self.source, self.dest, backup):
            if side is not None and side.place:
                tables[side.url.rstrip("/") + "/"] = side.place
        config.write_text(
            "".join(
                f"[places.{json.dumps(url)}]\n"
                + "".join(f"{key} = {json.dumps(value)}\n" for key, value in place.items())
                for url, place in tables.items()
            )
        )
        config.chmod(0o600)
        environ = {
            "PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.home), "LC_ALL": "C.UTF-8",
            "FASTSYNC_CONFIG": str(config), "FASTSYNC_STATE": str(self.state),
            "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip
        script = [str(Path(__file__).with_name("killed.py")), str(at if by == "step" else 0)]
        command = [sys.executable, *script, "sync", *flags, self.source.url, self.dest.url]
        began, passed = time.monotonic(), self.rig.passed()
        with tempfile.TemporaryFile() as heard:
            process = subprocess.Popen(
                command,
                env=environ,
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=heard,
            )
            while process.poll() is None:
                is_over = by == "ms" and time.monotonic() - began > 0.15 + at / 100
                is_over |= by == "bytes" and self.rig.passed() - passed > at * at * 1000
                if is_over or time.monotonic() - began > LIMIT_S:
                    break
                time.sleep(0.001)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            assert time.monotonic() - began < LIMIT_S
            heard.seek(0)
            return code, heard.read().decode(errors="replace")

    def _judge(
        self,
        expected: Expected,
        code: int,
        backup: Side | None,
        *,
        is_troubled: bool = False,
        note: str = "",
    ) -> Picture:
        now = self.dest.picture()
        expected.about = note
        assert self.source.picture() == expected.source, f"the source is read, no more: {note}"
        expected.check(now, code, is_troubled=is_troubled)
        if backup is not None:
            expected.check_backup(now, backup.picture())
        if not is_troubled and not self.is_interrupted:
            assert not self.dest.debris(), expected.about
        return now
