"""What tests of the real command share: running it, planting trees, taking their picture."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import pytest

pytest_plugins = ["s3_fixtures"]

# A moment long ago, with nanoseconds that a float would not carry.
THEN: int = 1_600_000_000_123_456_789
# Of one run of the command.
LIMIT_S = 60


class Done(NamedTuple):
    """How a command ended. Bytes that are not UTF-8 are surrogate escapes."""

    code: int
    stdout: str
    stderr: str


class Fastsync:
    """Runs the command in a process of its own, in an environment without anybody's configuration."""

    def __init__(self, home: Path, cwd: Path) -> None:
        self.cwd = cwd
        self.environ = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / "config"),
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            "PYTHONFAULTHANDLER": "1",  # on SIGABRT each thread says where it stands
        }

    def command(self, *arguments: str | bytes | Path) -> list[str | bytes | Path]:
        return [sys.executable, "-m", "fastsync", *arguments]

    def __call__(
        self,
        *arguments: str | bytes | Path,
        under: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        umask: int = -1,
    ) -> Done:
        """Run to the end; `under` is a command that runs ours (setpriv, a shell with limits)."""
        with self.start(*arguments, under=under, env=env, cwd=cwd, umask=umask) as process:
            try:
                stdout, stderr = process.communicate(timeout=LIMIT_S)
            except subprocess.TimeoutExpired:
                pytest.fail(
                    f"it had not ended after {LIMIT_S} s, and stood here:\n{_stop(process)}"
                )
        return Done(process.returncode, _text(stdout), _text(stderr))

    def start(
        self,
        *arguments: str | bytes | Path,
        under: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        umask: int = -1,
    ) -> subprocess.Popen[bytes]:
        """Start it and come back at once; in a process group of its own, as under a shell."""
        return subprocess.Popen(
            [*under, *self.command(*arguments)],
            env={**self.environ, **(env or {})},
            cwd=cwd or self.cwd,
            umask=umask,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )


def _text(output: bytes) -> str:
    return output.decode("utf-8", "surrogateescape")


def _stop(process: subprocess.Popen[bytes]) -> str:
    """End it and whatever it started in its group; what it still said."""
    process.send_signal(signal.SIGABRT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        return _text(process.communicate(timeout=10)[1])
    except subprocess.TimeoutExpired:
        return "(what it started still holds its output)"


@pytest.fixture
def fastsync(tmp_path: Path) -> Fastsync:
    return Fastsync(tmp_path / "home", tmp_path)


@pytest.fixture
def started(fastsync: Fastsync) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """`Fastsync.start`, with whatever is left over killed at the end."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str | Path, under: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        processes.append(fastsync.start(*arguments, under=under))
        return processes[-1]

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        # Not for what it started elsewhere, which may hold its output.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=10)


@pytest.fixture
def unprivileged() -> list[str]:
    """What to run the command under, so that permissions bind it although the tests may be root's."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("we are root, and there is no setpriv to become less")
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]


def limited(limit: str) -> list[str]:
    """What to run a command under: a shell that sets a limit first, as in ``ulimit -n 64``."""
    return ["sh", "-c", f'ulimit {limit} && exec "$@"', "sh"]


@pytest.fixture
def under_limit() -> Callable[[str], list[str]]:
    return limited


# -- trees -------------------------------------------------------------------------------------------

# Name to content. A name that ends in "/" is a directory, a `Path` is a link to that text.
Spec: TypeAlias = Mapping[str, str | bytes | Path]
Plant: TypeAlias = Callable[[Path, Spec], Path]


class Shot(NamedTuple):
    """An entry as a picture shows it; `content` is a link's target, or a digest if it is long."""

    kind: str
    mode: int
    mtime_ns: int
    content: bytes = b""


Picture: TypeAlias = dict[str, Shot]


@pytest.fixture
def plant() -> Plant:
    """Make a tree, each entry with a time of its own, long ago."""

    def plant(root: Path, spec: Spec) -> Path:
        root.mkdir(parents=True, exist_ok=True)
        made = [root]
        for name, content in spec.items():
            path = root / name
            if name.endswith("/"):
                path.mkdir(parents=True, exist_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, Path):
                    path.symlink_to(content)
                else:
                    path.write_bytes(content if isinstance(content, bytes) else content.encode())
            made.append(path)
            made.extend(above for above in path.parents if root in above.parents)
        for index, path in enumerate(sorted(set(made), reverse=True)):
            when = THEN + index * 1_000_000_007
            os.utime(path, ns=(when, when), follow_symlinks=False)
        return root

    return plant


def picture(root: Path, *, directory_times: bool = False) -> Picture:
    """Everything below `root`. The times of directories change whenever something in them does, so
    they are in it on request only."""
    shots: Picture = {}
    for directory, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = Path(directory, name)
            shot = shoot(path)
            if shot.kind == "dir" and not directory_times:
                shot = shot._replace(mtime_ns=0)
            shots[str(path.relative_to(root))] = shot
    return shots


def shoot(path: Path) -> Shot:
    status = path.lstat()
    mode = stat.S_IMODE(status.st_mode)
    if path.is_symlink():
        return Shot("link", 0, status.st_mtime_ns, os.fsencode(os.readlink(path)))
    if path.is_dir():
        return Shot("dir", mode, status.st_mtime_ns)
    if not path.is_file():
        return Shot("special", mode, status.st_mtime_ns)
    content = path.read_bytes()
    if len(content) > 1000:
        content = hashlib.blake2b(content).digest()
    return Shot("file", mode, status.st_mtime_ns, content)


@pytest.fixture(name="picture")
def _picture() -> Callable[..., Picture]:
    return picture


def states(root: Path) -> dict[str, tuple[int, int]]:
    """Inode and change time of everything, `root` included: equal when nobody touched anything."""
    found = {}
    for directory, directories, files in os.walk(root):
        for name in (".", *directories, *files):
            path = Path(directory, name)
            status = path.lstat()
            found[str(path)] = (status.st_ino, status.st_ctime_ns)
    return found


@pytest.fixture(name="states")
def _states() -> Callable[[Path], dict[str, tuple[int, int]]]:
    return states


@pytest.fixture
def debris() -> Callable[[Path], list[Path]]:
    """The temporary files below a place, which should be none once the command has ended."""
    return lambda root: sorted(root.rglob(".fs-*"))


@pytest.fixture
def remove_at_end() -> Iterator[Callable[[Path], Path]]:
    """For trees too deep, or too closed, for pytest's own way of removing them."""
    places: list[Path] = []

    def register(place: Path) -> Path:
        places.append(place)
        return place

    yield register
    for place in places:
        subprocess.run(["chmod", "-R", "u+rwx", place], check=False, capture_output=True)
        subprocess.run(["rm", "-rf", place], check=True)


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Wait until something holds, for 20 seconds at the most."""

    def wait(holds: Callable[[], object]) -> None:
        end = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < end, "it did not come about in 20 s"
            time.sleep(0.002)

    return wait
