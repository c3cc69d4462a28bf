"""Run commands side by side and measure them: time, CPU seconds and memory.

Commands take turns (A B C, B C A, C A B, ...), so that a busy minute of the machine hits all of
them. A run's time spans from before the process is started until it has exited; CPU seconds
include the children it waited for. Memory is taken in one more run of its own, so that looking at
/proc disturbs no timing. Everything is for Linux: /proc, pidfds.
"""

import os
import re
import select
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import IO

_LOOKS_PER_S = 20
_FIRST_LOOKS_S = 0.002
_KEPT_OF_STDERR = 2000
_CLOSE_TO_FLOOR = 1 << 20  # the kernel's counters of resident pages are this loose


class RunFailed(Exception):
    """A command could not be started, exited with an error or took too long."""


class WrongResult(Exception):
    """A command exited well and left something else than it should."""


@dataclass(frozen=True, slots=True)
class Command:
    """What to run; `argv[0]` is a path, `environment` replaces ours."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Sample:
    """One run. `peak_rss` is the largest single process in bytes, None if the kernel hid it."""

    seconds: float
    user_s: float
    system_s: float
    peak_rss: int | None


@dataclass(frozen=True, slots=True)
class Contender:
    """A command with what goes around each of its runs, outside the timed part.

    `check` raises `WrongResult` if the run did not do its work.
    """

    command: Command
    prepare: Callable[[], None]
    check: Callable[[], None]


@dataclass(slots=True)
class Measurement:
    """All runs of one command; `failure` says why it was taken out of the race."""

    name: str
    samples: list[Sample] = field(default_factory=list)
    process_rss: int | None = None
    tree_rss: int | None = None
    failure: str | None = None

    @property
    def complete(self) -> bool:
        return bool(self.samples) and self.failure is None

    @property
    def seconds(self) -> float:
        return median(sample.seconds for sample in self.samples)

    @property
    def fastest(self) -> float:
        return min(sample.seconds for sample in self.samples)

    @property
    def slowest(self) -> float:
        return max(sample.seconds for sample in self.samples)

    @property
    def user_s(self) -> float:
        return median(sample.user_s for sample in self.samples)

    @property
    def system_s(self) -> float:
        return median(sample.system_s for sample in self.samples)

    @property
    def cpu_s(self) -> float:
        return median(sample.user_s + sample.system_s for sample in self.samples)


@dataclass(slots=True)
class MemoryWatch:
    """Peak memory of a session of processes, looked at again and again, in bytes.

    `largest` is the highest mark of any single process. `tree` is the highest sum of what all of
    them held at one moment; it counts a page that two processes share twice.
    """

    largest: int = 0
    tree: int = 0

    def look(self, session: int) -> None:
        total = 0
        for name in os.listdir("/proc"):
            if name.isdecimal():
                with suppress(OSError):  # it may be gone, or not ours to look at
                    if os.getsid(int(name)) == session:
                        status = Path(f"/proc/{name}/status").read_text()
                        total += _status_bytes(status, "VmRSS")
                        self.largest = max(self.largest, _status_bytes(status, "VmHWM"))
        self.tree = max(self.tree, total)


def run(command: Command, *, timeout_s: float, watch: MemoryWatch | None = None) -> Sample:
    """Run once, to its end. Raises `RunFailed` with the end of its stderr."""
    with tempfile.TemporaryFile() as errors:
        return _run(command, errors, timeout_s, watch)


def stderr_of(command: Command, *, timeout_s: float) -> str:
    """Run once, to its end, and return its stderr. Raises `RunFailed`."""
    with tempfile.TemporaryFile() as errors:
        _run(command, errors, timeout_s, None)
        errors.seek(0)
        return errors.read().decode(errors="backslashreplace")


def interleave(
    contenders: Sequence[Contender],
    *,
    runs: int,
    timeout_s: float,
    settle: Callable[[], None],
    say: Callable[[str], None],
) -> list[Measurement]:
    """One warm-up round, `runs` timed rounds, one round for memory; each round starts one later.

    `settle` is called before each run, once it is prepared. A contender that fails once runs no
    more; the others go on.
    """
    measurements = [Measurement(contender.command.name) for contender in contenders]
    for number in range(runs + 2):
        if number == 0:
            say("warm-up")
        elif number <= runs:
            say(f"round {number} of {runs}")
        else:
            say("memory")
        for turn in range(len(contenders)):
            place = (number + turn) % len(contenders)
            contender, measurement = contenders[place], measurements[place]
            if measurement.failure is not None:
                continue
            watch = MemoryWatch() if number > runs else None
            try:
                contender.prepare()
                settle()
                sample = run(contender.command, timeout_s=timeout_s, watch=watch)
                contender.check()
            except (RunFailed, WrongResult) as exc:
                measurement.failure = str(exc)
                say(f"{measurement.name}: {exc}")
                continue
            if watch is not None:
                _take_memory(measurement, watch, sample)
            elif number > 0:
                measurement.samples.append(sample)
    return measurements


def _take_memory(measurement: Measurement, watch: MemoryWatch, last: Sample) -> None:
    marks = [sample.peak_rss for sample in (*measurement.samples, last)]
    largest = max([watch.largest, *(mark for mark in marks if mark is not None)])
    # A process that ends between two looks leaves no mark at all.
    measurement.process_rss = largest or None
    measurement.tree_rss = max(watch.tree, largest) or None


def _run(
    command: Command, errors: IO[bytes], timeout_s: float, watch: MemoryWatch | None
) -> Sample:
    floor = _own_peak_rss() + _CLOSE_TO_FLOOR
    started = time.perf_counter()
    session = _start(command, errors)
    try:
        _await_exit(session, started, timeout_s, watch)
        seconds = time.perf_counter() - started
    except BaseException as exc:
        # It is not reaped yet, so the number is still its own.
        os.killpg(session, signal.SIGKILL)
        os.wait4(session, 0)
        if isinstance(exc, TimeoutError):
            raise RunFailed(f"not done after {timeout_s:g} s") from exc
        raise
    _, status, usage = os.wait4(session, 0)
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        raise RunFailed(f"{_exit_name(code)}{_tail(errors)}")
    # exec keeps the memory mark of the process it replaces, here ours: below that it says nothing.
    peak = usage.ru_maxrss * 1024
    return Sample(seconds, usage.ru_utime, usage.ru_stime, peak if peak > floor else None)


def _start(command: Command, errors: IO[bytes]) -> int:
    """Start in a session of its own; returns its number, which is the process's too."""
    try:
        return os.posix_spawn(
            command.argv[0],
            command.argv,
            command.environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, errors.fileno(), 2),
            ],
            setsid=True,
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # Python ignores these two
        )
    except OSError as exc:
        raise RunFailed(f"cannot start {command.argv[0]}: {exc.strerror}") from exc


def _await_exit(session: int, started: float, timeout_s: float, watch: MemoryWatch | None) -> None:
    descriptor = os.pidfd_open(session)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while (age := time.perf_counter() - started) < timeout_s:
            left = timeout_s - age
            if watch is not None:
                watch.look(session)
                # Often at first, so that a short run is not missed.
                left = min(left, max(_FIRST_LOOKS_S, age / _LOOKS_PER_S), 1 / _LOOKS_PER_S)
            if poll.poll(1000 * left):
                return
        raise TimeoutError
    finally:
        os.close(descriptor)


def _own_peak_rss() -> int:
    return _status_bytes(Path("/proc/self/status").read_text(), "VmHWM")


def _status_bytes(status: str, key: str) -> int:
    """A size of /proc/PID/status (proc_pid_status(5)); 0 once the process is a zombie."""
    found = re.search(rf"^{key}:\s*(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _exit_name(code: int) -> str:
    return f"exit {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def _tail(errors: IO[bytes]) -> str:
    end = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, end - _KEPT_OF_STDERR))
    lines = errors.read().decode(errors="backslashreplace").split("\n")
    text = " / ".join(line.strip() for line in lines if line.strip())
    # What a command says about names may hold codes that a terminal obeys.
    return (
        ": " + "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text) if text else ""
    )
