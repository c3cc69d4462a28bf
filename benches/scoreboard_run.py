"""One tool through one fault: what is planted, what comes of it, and whether a second run puts it right."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

Files = dict[str, bytes]
NEW_S, OLD_S = (
    1_600_000_000,
    1_500_000_000,
)  # times of what is to be copied, and of what is there before
SECRET = "CANARY-0123456789abcdefghijklmnopqrstuvw"
SMALL = 200_000
LARGE = 56 << 20  # more than one part by the defaults of every tool that fetches parts
_KILL_TRIES = 4


class CannotRun(Exception):
    """This machine lacks what a fault needs; says what."""


@dataclass(frozen=True)
class Case:
    """One fault. A place with `source` goes to a destination that holds `old`.

    `codes` are the exit codes that docs/CLI.md has for it. `delete` runs the tool's sync with deletion;
    `keeps` says that what the source lacks must stay all the same, for nobody can know that it lacks it.
    `also` has contents that are as right as the source's. `refused` are names in the source that no tool
    should write. With `kills` every run is killed at a moment of its own; `twice` runs it beside itself.
    """

    name: str
    about: str
    source: Files
    old: Files = field(default_factory=dict)
    codes: tuple[int, ...] = (0,)
    also: Mapping[str, Sequence[bytes]] = field(default_factory=dict)
    delete: bool = False
    keeps: bool = True
    refused: tuple[str, ...] = ()
    kills: bool = False
    twice: bool = False

    def scene(self, root: Path) -> Scene:
        raise NotImplementedError

    @property
    def wanted(self) -> Files:
        return {name: body for name, body in self.source.items() if name not in self.refused}

    def is_right(self, name: str, found: bytes | None) -> bool:
        return found is not None and found in (self.source.get(name), *self.also.get(name, ()))


class Scene(ABC):
    """Where one run happens, from entering the block to leaving it: `place` with the destination `dest` and
    what lies around it, servers, a home."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.place = root / "place"
        self.source, self.dest = self.place / "source", self.place / "dest"
        self.home = root / "home"
        for folder in (self.dest, self.home):
            folder.mkdir(parents=True)
        self.stack = ExitStack()

    def __enter__(self) -> Self:
        with self.stack:
            self.open()
            self.stack = self.stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    @abstractmethod
    def open(self) -> None:
        """Plant, and start what it needs. Raises CannotRun."""

    @abstractmethod
    def command(self, tool: str, path: str) -> list[str] | None:
        """What copies the source to the destination; None where a tool cannot."""

    @abstractmethod
    def heal(self) -> None:
        """Take the fault away."""

    def meanwhile(self) -> AbstractContextManager[object]:
        """What goes on while the tool runs."""
        return nullcontext()

    def there(self) -> Files:
        """What the destination holds."""
        return found(self.dest)

    def has_begun(self) -> bool:
        """Whether data moves."""
        return any(each.name.startswith((".", "new")) for each in os.scandir(self.dest))

    @property
    def environ(self) -> dict[str, str]:
        return quiet(self.home)

    @property
    def requests(self) -> int:
        return 0

    def carried_away(self) -> bool:
        """Whether a secret came to somebody it is not for."""
        return False

    def unfinished(self) -> list[str]:
        """What is left over beside files."""
        return []


@dataclass
class Outcome:
    """What one tool made of one fault. `silent` has names that are wrong although the exit code is 0;
    `recovery_s` is the time of the second run, if all was right after it."""

    place: str
    case: str
    tool: str
    exit_code: int | None = None
    seconds: float = 0.0
    recovery_s: float | None = None
    requests: int = 0
    rss_mib: float = 0.0
    silent: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    raw_controls: bool = False
    hung: bool = False
    converged: bool = True
    leftovers: list[str] = field(default_factory=list)
    kills: int | None = None
    kills_converged: int = 0
    told: str = ""

    @property
    def survived(self) -> bool:
        bad = self.silent or self.lost or self.outside or self.leaked or self.leftovers
        return not (bad or self.hung or self.raw_controls) and self.converged


# -- files -----------------------------------------------------------------------------------------------


def noise(size: int, seed: int | str) -> bytes:
    return random.Random(seed).randbytes(size)


def plant(root: Path, files: Files, time_s: int = NEW_S) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (time_s, time_s))


def found(root: Path, *, but: Sequence[str] = ()) -> Files:
    """All files below a place, without some of its directories; links are not followed."""
    files: Files = {}
    for directory, folders, names in os.walk(root):
        if Path(directory) == root:
            folders[:] = [name for name in folders if name not in but]
        for name in names:
            path = Path(directory, name)
            if path.is_file() and not path.is_symlink():
                files[str(path.relative_to(root))] = path.read_bytes()
    return files


def quiet(home: Path) -> dict[str, str]:
    """An environment in which nobody has configured anything."""
    path = os.environ.get("PATH", os.defpath)
    return {"PATH": path, "HOME": str(home), "LC_ALL": "C.UTF-8", "RCLONE_CONFIG": ""}


# -- a run -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How a run ended: exit code (None: stopped at the limit), seconds, peak memory of its first process, and
    all that it said."""

    code: int | None
    seconds: float
    rss_mib: float
    told: str


def run(
    arguments: Sequence[str],
    scene: Scene,
    limit_s: float,
    kill_when: Callable[[], bool] | None = None,
    beside: int = 0,
) -> Ended:
    """Run a command to its end, or until it is killed; so many more of it at the same time."""
    peak = 0.0
    hung = False
    with tempfile.TemporaryFile() as said:
        begun = time.monotonic()
        first, *others = (
            subprocess.Popen(
                arguments, env=scene.environ, cwd=scene.root, stdin=subprocess.DEVNULL, stdout=said,
                stderr=said, start_new_session=True,
            )
            for _ in range(1 + beside)
        )  # fmt: skip
        while first.poll() is None:
            peak = max(peak, _peak_mib(first.pid))
            hung = time.monotonic() - begun > limit_s
            if hung or (kill_when is not None and kill_when()):
                _end(first)
            time.sleep(0.01 if kill_when is None else 0.002)
        seconds = time.monotonic() - begun
        for other in others:
            try:
                other.wait(limit_s)
            except subprocess.TimeoutExpired:
                hung = True
                _end(other)
        said.seek(0)
        told = said.read().decode("utf-8", "surrogateescape")
    return Ended(None if hung else first.returncode, seconds, peak, told)


def _end(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _peak_mib(pid: int) -> float:
    """What /proc says: what wait4 tells may be our own mark, which a process keeps when it begins another."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


@dataclass(frozen=True)
class Rules:
    """How the board is played: how long until a run counts as hung, how many kills, which ones."""

    scratch: Path
    limit_s: float
    kills: int
    seed: int


def judge(place: str, case: Case, tool: str, path: str, rules: Rules) -> Outcome | None:
    """Run one tool through one fault, and again without it; None where it cannot. Raises CannotRun."""
    if case.kills:
        return _judge_kills(place, case, tool, path, rules)
    return _judge_once(place, case, tool, path, rules)


class _Moment:
    """When to kill: a time after data began to move."""

    def __init__(self, scene: Scene, after_s: float) -> None:
        self._scene = scene
        self._after_s = after_s
        self.begun: float | None = None

    def __call__(self) -> bool:
        if self.begun is None and self._scene.has_begun():
            self.begun = time.monotonic()
        return self.begun is not None and time.monotonic() - self.begun >= self._after_s


def _judge_kills(place: str, case: Case, tool: str, path: str, rules: Rules) -> Outcome | None:
    """Kill it at moments between the first byte and the end, as long as an honest run takes for them."""
    with (
        tempfile.TemporaryDirectory(dir=rules.scratch, prefix="run-") as root,
        case.scene(Path(root)) as scene,
    ):
        arguments = scene.command(tool, path)
        if arguments is None:
            return None
        moment = _Moment(scene, rules.limit_s)
        begun = time.monotonic()
        ended = run(arguments, scene, rules.limit_s, moment)
        span_s = begun + ended.seconds - (moment.begun or begun)
    total = Outcome(place, case.name, tool, seconds=ended.seconds, recovery_s=0.0, kills=0)
    for number in range(rules.kills):
        share = random.Random(f"{rules.seed} {place} {case.name} {number}").uniform(0.02, 0.9)
        for _ in range(_KILL_TRIES):
            made = _judge_once(place, case, tool, path, rules, kill_after_s=share * span_s)
            assert made is not None
            if made.exit_code == -signal.SIGKILL:
                break
            share /= 3  # it was done before; earlier, then
        else:
            continue
        right = made.converged and not (made.lost or made.leftovers or made.outside)
        total.kills = (total.kills or 0) + 1
        total.kills_converged += right
        total.exit_code = made.exit_code
        total.converged = total.converged and made.converged
        total.recovery_s = max(total.recovery_s or 0.0, made.recovery_s or 0.0)
        for name in ("requests", "rss_mib"):
            setattr(total, name, max(getattr(total, name), getattr(made, name)))
        for name in ("lost", "outside", "leaked", "leftovers"):
            getattr(total, name).extend(getattr(made, name))
        total.told = made.told
    return total


def _judge_once(
    place: str, case: Case, tool: str, path: str, rules: Rules, kill_after_s: float | None = None
) -> Outcome | None:
    root = Path(tempfile.mkdtemp(dir=rules.scratch, prefix="run-"))
    try:
        with case.scene(root) as scene:
            arguments = scene.command(tool, path)
            if arguments is None:
                return None
            outcome = Outcome(place, case.name, tool)
            own = ("source", "dest")
            around = found(scene.place, but=own)
            moment = None if kill_after_s is None else _Moment(scene, kill_after_s)
            with scene.meanwhile():
                ended = run(arguments, scene, rules.limit_s, moment, beside=int(case.twice))
            outcome.exit_code, outcome.seconds = ended.code, ended.seconds
            outcome.rss_mib, outcome.hung = ended.rss_mib, ended.code is None
            outcome.told = ended.told[-2000:]
            outcome.requests = scene.requests
            _look(outcome, case, scene.there())
            now = found(scene.place, but=own)
            outcome.outside = [
                name for name in {**around, **now} if around.get(name) != now.get(name)
            ]
            if "CANARY" in ended.told:
                outcome.leaked.append("in its output")
            if scene.carried_away():
                outcome.leaked.append("to another")
            outcome.raw_controls = "\x1b]" in ended.told or "\x07" in ended.told
            scene.heal()
            again = run(arguments, scene, rules.limit_s)
            _look_again(outcome, case, scene, again)
            return outcome
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _look(outcome: Outcome, case: Case, there: Files) -> None:
    for name, body in case.old.items():
        is_gone_rightly = case.delete and not case.keeps and name not in case.wanted
        kept = there.get(name) == body or case.is_right(name, there.get(name))
        if not kept and not is_gone_rightly:
            outcome.lost.append(name)
    if outcome.exit_code == 0:
        outcome.silent = [n for n in case.wanted if not case.is_right(n, there.get(n))]


def _look_again(outcome: Outcome, case: Case, scene: Scene, again: Ended) -> None:
    there = scene.there()
    right = all(case.is_right(name, there.get(name)) for name in case.wanted)
    outcome.converged = again.code is not None and right
    outcome.recovery_s = again.seconds if outcome.converged else None
    known = {*case.source, *case.old}
    outcome.leftovers = sorted(name for name in there if name not in known) + scene.unfinished()
    if not outcome.converged:
        outcome.told += f"\n-- second run: exit {again.code}\n{again.told[-2000:]}"
