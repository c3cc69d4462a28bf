"""The long runs: random changes, syncs and faults for some minutes, then kill -9 again and again.

    scripts/torture                          ten minutes, and 300 kills
    scripts/torture --minutes 60 --seed 12
    scripts/torture --sizes                  10 GB and a million files in little memory, instead
    scripts/torture --kills 0 --pair "S3 to local" --seed 7

What fails says with which seed it does; the same seed does the same again, save for the moments of kills.
Exit code: 0 nothing was lost and everything converged, 1 not so.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent / "servers"))

import hypothesis
from hostile_s3 import HostileS3
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from model import backends, files, run_in_trouble, scripts, verbs
from pairs import Pair
from rigs import PAIRS, Rig, rigs
from sizes import many_files, one_large_file
from sshd import running_sshd

LIMIT_S = 90.0
FASTSYNC = [sys.executable, "-m", "fastsync"]
CLEAN = [*FASTSYNC, "jobs", "clean"]
# How often the helper processes of a run are killed, and not the run.
HELPERS = 0.2


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--only", choices=[*PLACES], help="kills at this place alone")
    parser.add_argument("--pair", choices=PAIRS, help="changes and syncs between these alone")
    parser.add_argument("--sizes", action="store_true", help="10 GB and a million files, no more")
    options = parser.parse_args()
    if options.sizes:
        sizes()
        return 0
    say(f"seed {options.seed}, hypothesis {hypothesis.__version__}")
    if options.minutes > 0:
        pairs = (options.pair,) if options.pair else PAIRS
        machines(options.seed, time.monotonic() + 60 * options.minutes, pairs)
        if not (options.pair or options.only):
            bursts()
    chance = random.Random(options.seed)
    places = [options.only] if options.only else [*PLACES]
    return int(not kills(chance, options.kills // len(places), places))


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def sizes() -> None:
    """A file of 10 GB and a directory of a million files, in 400 MB of addresses. Takes 12 GB of the disk and
    some minutes; raises AssertionError."""
    with tempfile.TemporaryDirectory(prefix="fastsync-sizes-", dir="/var/tmp") as folder:
        environ = {**os.environ, "HOME": folder, "XDG_STATE_HOME": f"{folder}/state"}
        for figures in one_large_file(Path(folder), environ, 10_000_000_000):
            say(str(figures))
        for figures in many_files(Path(folder), environ, 1_000_000):
            say(str(figures))


# -- machines --------------------------------------------------------------------------------------------


def machines(first: int, end: float, pairs: Sequence[str]) -> None:
    """Run the machines with one seed after the other until the time is over. Raises what they find."""
    long = settings(
        max_examples=20, stateful_step_count=30, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), print_blob=True,
    )  # fmt: skip
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fastsync-rigs-"))
        rig = stack.enter_context(rigs(Path(folder)))
        for now in itertools.count(first):
            # In another order each time: there may not be the time for all of them.
            for pair in random.Random(now).sample(pairs, len(pairs)):
                say(f"{pair}, seed {now}")
                run_pair(rig(pair), now, long)
                if time.monotonic() >= end:
                    return
            say(f"stores in trouble, seed {now}")

            @seed(now)
            @settings(long, max_examples=1500)
            @given(
                verb=verbs, source=backends, dest=backends, ours=files, theirs=files, script=scripts
            )
            def stores(**case: object) -> None:
                asyncio.run(run_in_trouble(**case))  # type: ignore[arg-type]

            stores()


def bursts() -> None:
    """Have a third of all requests refused for 20 seconds, where the suite does for one."""
    say("bursts of refusals")
    tests = Path(__file__).with_name("faults") / "test_bursts.py"
    command = [sys.executable, "-m", "pytest", "-q", str(tests)]
    subprocess.run(command, check=True, env={**os.environ, "FASTSYNC_BURST_S": "20"})


def run_pair(rig: Rig, number: int, how: settings) -> None:
    @seed(number)
    def machine() -> Pair:
        return Pair(rig)

    run_state_machine_as_test(machine, settings=how)  # type: ignore[arg-type]


# -- kills -----------------------------------------------------------------------------------------------


@dataclass
class Target:
    """What a killed run does, and what is to come of it: `there` has what arrived, `debris` what should not
    be there when all is over."""

    command: list[str]
    wanted: Mapping[str, bytes]
    there: Callable[[], dict[str, bytes]]
    debris: Callable[[], list[str]]
    clear: Callable[[], None]


@dataclass
class Scene:
    """Where kills take place: scratch space, the environment of the runs, and a tree to copy."""

    scratch: Path
    environ: dict[str, str]
    source: Path
    tree: Mapping[str, bytes]


def kills(chance: random.Random, runs: int, names: list[str]) -> bool:
    """Kill runs at random moments, run them again, and compare. True when all of them converged."""
    good = True
    for name in names:
        with ExitStack() as stack:
            scratch = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="fastsync-torture-"))
            )
            tree = {f"{number % 9}/{number}": chance.randbytes(4000) for number in range(600)}
            tree |= {"large": chance.randbytes(24 << 20), "middle": chance.randbytes(700_000)}
            write(scratch / "source", tree)
            environ = {**os.environ, "HOME": str(scratch), "XDG_STATE_HOME": str(scratch / "state")}
            scene = Scene(scratch, environ, scratch / "source", tree)
            target = stack.enter_context(PLACES[name](scene))
            killed = helpers = right = after_run = after_clean = 0
            target.clear()
            takes_s = duration(target, environ)
            for _ in range(runs):
                target.clear()
                was_killed, is_right = kill_once(target, environ, chance, takes_s)
                killed += was_killed == "run"
                helpers += was_killed == "helper"
                takes_s *= 1.02 if was_killed else 0.9  # the machine may be busier, or less
                right += is_right
                after_run += bool(target.debris())
                subprocess.run(
                    CLEAN, env=environ, check=False, capture_output=True, timeout=LIMIT_S
                )
                after_clean += bool(target.debris())
            say(
                f"kill -9, {name}: {right} of {runs} converged; {killed} were killed in the middle,"
            )
            say(f"  {helpers} lost their helper processes, {after_run} left something after the")
            say(f"  second run, {after_clean} after `jobs clean`")
            good = good and right == runs and after_clean == 0
    return good


def duration(target: Target, environ: Mapping[str, str]) -> float:
    """Seconds that a run takes which nobody kills."""
    began = time.monotonic()
    subprocess.run(target.command, env=environ, check=True, timeout=LIMIT_S)
    return time.monotonic() - began


def kill_once(
    target: Target, environ: Mapping[str, str], chance: random.Random, takes_s: float
) -> tuple[Literal["run", "helper", ""], bool]:
    """What of the first run was killed in the middle, and whether all was right, then and after a second."""
    process = subprocess.Popen(
        target.command, env=environ, start_new_session=True, stderr=subprocess.PIPE
    )
    is_helper, is_hurt = chance.random() < HELPERS, False
    try:
        process.wait(chance.uniform(0.2, 1.0) * takes_s)
    except subprocess.TimeoutExpired:
        if is_helper:
            is_hurt = kill_helpers(process)
        else:
            os.killpg(process.pid, signal.SIGKILL)
    try:
        _, errors = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        say(f"a run without its helpers had no end: {process.communicate()[1].decode()[-500:]}")
        return "helper", False
    was_killed: Literal["run", "helper", ""] = "helper" if is_hurt else ""
    if process.returncode == -signal.SIGKILL:
        was_killed = "run"
    half = {name for name, data in target.there().items() if target.wanted.get(name) != data}
    # Without its helpers a run may fail, but says so.
    is_ended = process.returncode == 0 or (is_hurt and process.returncode == 1 and errors)
    if half or not (was_killed == "run" or is_ended):
        say(f"exit {process.returncode}, half files {sorted(half)[:5]}: {errors.decode()[-500:]}")
        return was_killed, False
    try:
        again = subprocess.run(
            target.command, env=environ, check=False, capture_output=True, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired as error:
        say(f"the second run had no end: {(error.stderr or b'').decode()[-500:]}")
        return was_killed, False
    is_right = again.returncode == 0 and target.there() == target.wanted
    if not is_right:
        say(f"the second run: exit {again.returncode}: {again.stderr.decode()[-500:]}")
    return was_killed, is_right


def kill_helpers(process: subprocess.Popen[bytes]) -> bool:
    """Kill the processes that a run has started; whether there were any."""
    found = False
    with suppress(OSError):
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                with suppress(OSError):
                    os.kill(int(child), signal.SIGKILL)
                    found = True
    return found


def write(root: Path, content: Mapping[str, bytes]) -> None:
    for name, data in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def read(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.name.startswith(".fs-")
    }


# -- places ----------------------------------------------------------------------------------------------


def on_disk(
    root: Path, arguments: list[str], wanted: Mapping[str, bytes], *, is_made: bool = False
) -> Target:
    """A run that writes below `root`; `is_made` if there has to be a directory."""

    def clear() -> None:
        shutil.rmtree(root, ignore_errors=True)
        if is_made:
            root.mkdir()

    return Target(
        [*FASTSYNC, *arguments],
        wanted,
        lambda: read(root),
        lambda: [path.name for path in root.rglob(".fs-*")],
        clear,
    )


def in_bucket(
    s3: HostileS3, program: list[str], arguments: list[str], prefix: str, scene: Scene
) -> Target:
    """A run that writes below a prefix of the bucket."""

    def clear() -> None:
        for key in s3.keys("bucket"):
            if key.startswith(prefix):
                s3.objects.buckets["bucket"].remove(key)
        s3.objects.uploads.clear()

    def there() -> dict[str, bytes]:
        keys = [key for key in s3.keys("bucket") if key.startswith(prefix)]
        return {key.removeprefix(prefix): s3.data("bucket", key) for key in keys}

    return Target(
        [*program, *arguments, f"s3://bucket/{prefix}"], scene.tree, there,
        lambda: s3.open_uploads, clear,
    )  # fmt: skip


@contextmanager
def filled_bucket(scene: Scene) -> Iterator[HostileS3]:
    with HostileS3() as s3:
        scene.environ |= s3.environ
        for name, data in scene.tree.items():
            s3.put("bucket", f"from/{name}", data)
        yield s3


@contextmanager
def local(scene: Scene) -> Iterator[Target]:
    dest = scene.scratch / "dest"
    yield on_disk(dest, ["sync", "--delete", f"{scene.source}/", str(dest)], scene.tree)


@contextmanager
def to_s3(scene: Scene) -> Iterator[Target]:
    with HostileS3() as s3:
        scene.environ |= s3.environ
        s3.make_bucket("bucket")
        arguments = ["sync", "--delete", "--chunk-size", "5M", f"{scene.source}/"]
        yield in_bucket(s3, FASTSYNC, arguments, "", scene)


@contextmanager
def from_s3(scene: Scene) -> Iterator[Target]:
    dest = scene.scratch / "dest"
    with filled_bucket(scene):
        arguments = ["sync", "--delete", "--chunk-size", "5M", "s3://bucket/from/", str(dest)]
        yield on_disk(dest, arguments, scene.tree)


@contextmanager
def inside_s3(scene: Scene) -> Iterator[Target]:
    """Copies in parts, which are for objects of other sizes, else."""
    smaller = "copying.LARGEST_COPY = 1 << 20; copying.COPY_PART = 5 << 20"
    imports = "from fastsync_s3 import copying; from fastsync.cli.main import main"
    program = [sys.executable, "-c", f"{imports}; {smaller}; main()"]
    with filled_bucket(scene) as s3:
        yield in_bucket(s3, program, ["sync", "--delete", "s3://bucket/from/"], "to/", scene)


@contextmanager
def from_web(scene: Scene) -> Iterator[Target]:
    """Files, each by its address."""
    dest = scene.scratch / "dest"
    names = ["large", "middle", *(f"{number % 9}/{number}" for number in range(60))]
    wanted = {name.rpartition("/")[2]: scene.tree[name] for name in names}
    with filled_bucket(scene) as s3:
        urls = [f"{s3.endpoint}/bucket/from/{name}" for name in names]
        arguments = ["cp", "--chunk-size", "5M", *urls, f"{dest}/"]
        yield on_disk(dest, arguments, wanted, is_made=True)


@contextmanager
def sftp(scene: Scene, *, is_upload: bool) -> Iterator[Target]:
    folder, dest = scene.scratch / "sshd", scene.scratch / "dest"
    folder.mkdir()
    with running_sshd(folder) as sshd:
        options = [f"--{key.replace('_', '-')}={value}" for key, value in sshd.place.items()]
        places = [f"{scene.source}/", sshd.url(dest)]
        if not is_upload:
            places = [sshd.url(scene.source), str(dest)]
        yield on_disk(dest, ["sync", "--delete", *options, *places], scene.tree)


PLACES: dict[str, Callable[[Scene], AbstractContextManager[Target]]] = {
    "local": local,
    "S3": to_s3,
    "SFTP": partial(sftp, is_upload=True),
    "from-S3": from_s3,
    "inside-S3": inside_s3,
    "HTTP": from_web,
    "from-SFTP": partial(sftp, is_upload=False),
}


if __name__ == "__main__":
    sys.exit(main())
