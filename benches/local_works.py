"""The works of the local bench: what is run on which trees, and the goals for each.

A work takes a bench and a place, makes its own trees there, and yields its results. It raises
`NoPlace` if it has no room.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import Command, Contender, Measurement, RunFailed, WrongResult, interleave, stderr_of
from peers import Tool
from places import Place, remove
from report import Goal, Result, say
from trees import (
    EVERYTHING,
    Keeps,
    differences,
    fingerprint,
    make_big_file,
    make_hollow_files,
    make_small_files,
)

SLOW_IMPORTS = ("asyncssh", "aiobotocore", "aiohttp", "httpx", "pydantic")
# What each tool keeps with the options given here; fastsync and rclone need an option for the rest.
KEEPS = {
    "fastsync": Keeps(modes=True, directory_times=False),
    "cp": EVERYTHING,
    "rsync": EVERYTHING,
    "rclone": Keeps(modes=False, directory_times=False),
}
_INODE = 1500  # bytes of memory that a file on tmpfs takes beside its data
_STARTS_PER_RUN = 4
_FLAT = 1.25  # how much more memory ten times the files may take and still count as flat


@dataclass(frozen=True, slots=True)
class Sizes:
    """How big the works are."""

    small_files: int = 20_000
    big_size: int = 2 << 30
    noop_files: int = 100_000
    million_files: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Bench:
    """What all works share."""

    tools: Mapping[str, Tool]
    environment: Mapping[str, str]
    options: tuple[str, ...]
    sizes: Sizes
    runs: int
    timeout_s: float

    def command(self, name: str, *arguments: str | Path) -> Command:
        argv = (self.tools[name].path, *map(str, arguments))
        return Command(name, argv, self.environment)

    def sync_tree(self, name: str, source: Path, target: Path) -> Command:
        """What a user of the tool would type to make `target` like the tree `source`."""
        if name == "fastsync":
            return self.command(name, "sync", "-q", *self.options, source, target)
        if name == "rsync":
            return self.command(name, "-a", f"{source}/", f"{target}/")
        if name == "rclone":
            return self.command(name, "sync", source, target)
        return self.command(name, "-a", f"{source}/.", f"{target}/")

    def copy_tree(self, name: str, source: Path, target: Path) -> Command:
        if name == "rclone":
            return self.command(name, "copy", source, target)
        return self.sync_tree(name, source, target)

    def copy_file(self, name: str, source: Path, target: Path) -> Command:
        if name == "fastsync":
            return self.command(name, "cp", "-q", *self.options, source, f"{target}/")
        if name == "rclone":
            return self.command(name, "copy", source, target)
        return self.command(name, "-a", source, f"{target}/")

    def race(self, work: str, at: Place, contenders: Sequence[Contender], runs: int) -> Result:
        """Run them; the caller fills in how much they did and the goals."""
        measurements = interleave(
            contenders,
            runs=runs,
            timeout_s=self.timeout_s,
            settle=at.settle,
            say=lambda text: say(f"{work} on {at.name}: {text}"),
        )
        return Result(work, at.title, 0, 0, measurements, [])


def small(bench: Bench, at: Place) -> Iterator[Result]:
    """Many small files into an empty directory."""
    files = bench.sizes.small_files
    at.require(2 * files * (16_000 + _INODE), 3 * files)
    with at.directory("small") as here:
        source, target = here / "source", here / "target"
        say(f"small on {at.name}: making {files} files")
        source.mkdir()
        size = make_small_files(source, files)
        contenders = [
            _copying(name, bench.copy_tree(name, source, target), source, target)
            for name in bench.tools
        ]
        result = bench.race("small", at, contenders, bench.runs)
    result.files, result.size = files, size
    result.goals = [
        _time_goal(result, "rsync", 0.8, 0.5),
        _time_goal(result, "rclone", 0.4, None),
        _time_goal(result, "cp", None, 1.0),
    ]
    yield result


def big(bench: Bench, at: Place) -> Iterator[Result]:
    """One big file into an empty directory."""
    size = bench.sizes.big_size
    at.require(2 * size, 100)
    with at.directory("big") as here:
        source, target = here / "source", here / "target"
        say(f"big on {at.name}: making a file of {size >> 20} MiB")
        source.mkdir()
        make_big_file(source / "big.bin", size)
        contenders = [
            _copying(name, bench.copy_file(name, source / "big.bin", target), source, target)
            for name in bench.tools
        ]
        result = bench.race("big", at, contenders, bench.runs)
    result.files, result.size = 1, size
    result.goals = [_time_goal(result, "cp", 1.1, 1.0)]
    yield result


def noop(bench: Bench, at: Place) -> Iterator[Result]:
    """Sync with nothing to do."""
    result = _sync_again("noop", bench, at, bench.sizes.noop_files, bench.runs)
    result.goals = [
        _time_goal(result, "rsync", 1.6, 1.0),
        _time_goal(result, "rclone", 0.9, None),
    ]
    yield result


def million(bench: Bench, at: Place) -> Iterator[Result]:
    """Memory of sync with nothing to do, with a tenth of the files and with all; one run each."""
    files = bench.sizes.million_files
    few = _sync_again("million/10", bench, at, files // 10, 1)
    yield few
    many = _sync_again("million", bench, at, files, 1)
    low, high = (result.measurement("fastsync") for result in (few, many))
    low_rss, high_rss = low and low.tree_rss, high and high.tree_rss
    growth = high_rss / low_rss if high_rss and low_rss else None
    many.goals = [
        Goal("peak RSS, whole tree", "MB", 250, 120, high_rss / 1e6 if high_rss else None),
        Goal("peak RSS, ten times the files", "x", _FLAT, None, growth),
    ]
    yield many


def startup(bench: Bench, at: Place) -> Iterator[Result]:
    """Starting up, and what is imported for it and for a local copy."""
    arguments = ("--version", "--help")
    contenders = []
    for argument in arguments:
        argv = bench.command("fastsync", argument).argv
        command = Command(f"fastsync {argument}", argv, bench.environment)
        contenders.append(Contender(command, prepare=_nothing, check=_nothing))
    bare = Command("bare Python", (sys.executable, "-I", "-c", "pass"), bench.environment)
    contenders.append(Contender(bare, prepare=_nothing, check=_nothing))
    result = bench.race("startup", at, contenders, bench.runs * _STARTS_PER_RUN)
    for argument in arguments:
        measured = result.measurement(f"fastsync {argument}")
        milliseconds = measured.seconds * 1000 if measured else None
        result.goals.append(Goal(f"fastsync {argument}", "ms", 150, 80, milliseconds))
    with at.directory("startup") as here:
        (here / "source").mkdir()
        make_small_files(here / "source", 250)
        one_file = next(path for path in (here / "source").rglob("*") if path.is_file())
        trials: list[tuple[str | Path, ...]] = [
            *((argument,) for argument in arguments),
            ("sync", "-q", *bench.options, here / "source", here / "target"),
            ("cp", "-q", *bench.options, one_file, here / "copy"),
        ]
        for trial in trials:
            subject, count = f"slow imports of {trial[0]}", None
            try:
                slow = _slow_imports(bench.command("fastsync", *trial))
            except (RunFailed, WrongResult) as exc:
                result.measurements.append(Measurement(subject, failure=_plain(str(exc))))
            else:
                count = len(slow)
                subject = ": ".join([subject, *slow])
            result.goals.append(Goal(subject, "", 0, None, count))
    yield result


class _Twin:
    """A target that is the same as the source already; made anew once a run has touched it."""

    def __init__(self, root: Path, files: int) -> None:
        self._root = root
        self._files = files
        self._before = ""
        self._intact = False

    def prepare(self) -> None:
        if not self._intact:
            remove(self._root)
            self._root.mkdir()
            make_hollow_files(self._root, self._files)
            self._before = fingerprint(self._root)
        self._intact = False

    def check(self) -> None:
        self._intact = fingerprint(self._root) == self._before
        if not self._intact:
            raise WrongResult("files were touched though there was nothing to do")


def _sync_again(work: str, bench: Bench, at: Place, files: int, runs: int) -> Result:
    at.require(2 * files * _INODE, 3 * files)
    with at.directory(work.replace("/", "-")) as here:
        source, target = here / "source", here / "target"
        say(f"{work} on {at.name}: making {files} files, twice")
        source.mkdir()
        make_hollow_files(source, files)
        twin = _Twin(target, files)
        contenders = [
            Contender(bench.sync_tree(name, source, target), twin.prepare, twin.check)
            for name in bench.tools
            if name != "cp"  # it has no such mode
        ]
        result = bench.race(work, at, contenders, runs)
    result.files = files
    return result


def _copying(name: str, command: Command, source: Path, target: Path) -> Contender:
    def prepare() -> None:
        remove(target)
        target.mkdir()

    def check() -> None:
        if found := differences(source, target, KEEPS[name]):
            raise WrongResult(f"the copy is not the same: {'; '.join(found)}")

    return Contender(command, prepare, check)


def _slow_imports(command: Command) -> list[str]:
    """Which of SLOW_IMPORTS a run loads, itself or in another process that it starts."""
    # The same as python -X importtime, and it reaches the interpreter behind any start script.
    environment = {**command.environment, "PYTHONPROFILEIMPORTTIME": "1"}
    log = stderr_of(Command(command.name, command.argv, environment), timeout_s=60)
    loaded = {
        name.partition(".")[0]
        for name in re.findall(r"^import time: +\d+ \| +\d+ \| *(\S+)$", log, re.MULTILINE)
    }
    if not loaded:
        raise WrongResult("it tells no imports: is it a Python program?")
    return [name for name in SLOW_IMPORTS if name in loaded]


def _plain(failure: str) -> str:
    """What is left of a message when the lines about imports are taken out."""
    return re.sub(r": .*import time: [^/]*/ ", ": ", failure)


def _time_goal(result: Result, peer: str, must: float | None, aim: float | None) -> Goal:
    return Goal(f"time / {peer}'s", "x", must, aim, result.ratio("fastsync", peer))


def _nothing() -> None:
    pass
