"""The long runs: random changes, syncs and faults for some minutes, then kill -9 again and again.

    scripts/torture                          ten minutes, and 300 kills
    scripts/torture --minutes 60 --seed 12
    scripts/torture --kills 0 --pair "S3 to local" --seed 7

What fails says with which seed it does; the same seed does the same again, save for the moments of kills.
Exit code: 0 nothing was lost and everything converged, 1 not so.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "servers"))

import hypothesis
from hostile_s3 import HostileS3
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from model import backends, files, scripts, sync_in_trouble
from pairs import Pair
from rigs import PAIRS, Rig, rigs
from sshd import running_sshd

LIMIT_S = 90.0
PLACES = ["local", "S3", "SFTP"]
CLEAN = [sys.executable, "-m", "fastsync", "jobs", "clean"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--only", choices=PLACES, help="kills at this place alone")
    parser.add_argument("--pair", choices=PAIRS, help="changes and syncs between these alone")
    options = parser.parse_args()
    say(f"seed {options.seed}, hypothesis {hypothesis.__version__}")
    if options.minutes > 0:
        pairs = (options.pair,) if options.pair else PAIRS
        machines(options.seed, time.monotonic() + 60 * options.minutes, pairs)
    chance = random.Random(options.seed)
    places = [options.only] if options.only else PLACES
    return int(not kills(chance, options.kills // len(places), places))


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


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
        number = 0
        while number == 0 or time.monotonic() < end:
            now = first + number
            for pair in pairs:
                say(f"{pair}, seed {now}")
                run_pair(rig(pair), now, long)
            say(f"stores in trouble, seed {now}")

            @seed(now)
            @settings(long, max_examples=1500)
            @given(source=backends, dest=backends, ours=files, theirs=files, script=scripts)
            def stores(**case: object) -> None:
                asyncio.run(sync_in_trouble(**case))  # type: ignore[arg-type]

            stores()
            number += 1


def run_pair(rig: Rig, number: int, how: settings) -> None:
    @seed(number)
    def machine() -> Pair:
        return Pair(rig)

    run_state_machine_as_test(machine, settings=how)  # type: ignore[arg-type]


# -- kills -----------------------------------------------------------------------------------------------


@dataclass
class Target:
    """Where a killed run copies to. `there` has what arrived, `debris` what should not be there."""

    url: str
    options: list[str]
    there: Callable[[], dict[str, bytes]]
    debris: Callable[[], list[str]]
    clear: Callable[[], None]


def kills(chance: random.Random, runs: int, names: list[str]) -> bool:
    """Kill runs at random moments, run them again, and compare. True when all of them converged."""
    good = True
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastsync-torture-")))
        source = scratch / "source"
        wanted = {f"{number % 9}/{number}": chance.randbytes(4000) for number in range(300)}
        wanted |= {"large": chance.randbytes(24 << 20), "middle": chance.randbytes(700_000)}
        write(source, wanted)
        environ = {**os.environ, "HOME": str(scratch), "XDG_STATE_HOME": str(scratch / "state")}
        places = {"local": local, "S3": bucket, "SFTP": server}
        for name in names:
            place = places[name]
            target = stack.enter_context(place(scratch, environ))
            killed = right = after_run = after_clean = 0
            target.clear()
            takes_s = duration(source, target, environ)
            for _ in range(runs):
                target.clear()
                was_killed, is_right = kill_once(source, target, wanted, environ, chance, takes_s)
                killed += was_killed
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
            say(
                f"  {after_run} left something after the second run, {after_clean} after `jobs clean`"
            )
            good = good and right == runs and after_clean == 0
    return good


def sync(source: Path, target: Target) -> list[str]:
    command = [sys.executable, "-m", "fastsync", "sync", "--delete", *target.options]
    return [*command, f"{source}/", target.url]


def duration(source: Path, target: Target, environ: Mapping[str, str]) -> float:
    """Seconds that a run takes which nobody kills."""
    began = time.monotonic()
    subprocess.run(sync(source, target), env=environ, check=True, timeout=LIMIT_S)
    return time.monotonic() - began


def kill_once(
    source: Path,
    target: Target,
    wanted: Mapping[str, bytes],
    environ: Mapping[str, str],
    chance: random.Random,
    takes_s: float,
) -> tuple[bool, bool]:
    """Whether the first run was killed in the middle, and whether all was right, then and after a second."""
    command = sync(source, target)
    process = subprocess.Popen(command, env=environ, start_new_session=True, stderr=subprocess.PIPE)
    try:
        process.wait(chance.uniform(0.2, 1.0) * takes_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    _, errors = process.communicate()
    was_killed = process.returncode == -signal.SIGKILL
    half = {name for name, data in target.there().items() if wanted.get(name) != data}
    if half or not (was_killed or process.returncode == 0):
        say(f"exit {process.returncode}, half files {sorted(half)[:5]}: {errors.decode()[-500:]}")
        return was_killed, False
    try:
        again = subprocess.run(
            command, env=environ, check=False, capture_output=True, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired as error:
        say(f"the second run had no end: {(error.stderr or b'').decode()[-500:]}")
        return was_killed, False
    is_right = again.returncode == 0 and target.there() == wanted
    if not is_right:
        say(f"the second run: exit {again.returncode}: {again.stderr.decode()[-500:]}")
    return was_killed, is_right


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


def on_disk(root: Path, url: str, options: list[str]) -> Target:
    return Target(
        url,
        options,
        lambda: read(root),
        lambda: [path.name for path in root.rglob(".fs-*")],
        lambda: shutil.rmtree(root, ignore_errors=True),
    )


@contextmanager
def local(scratch: Path, _environ: dict[str, str]) -> Iterator[Target]:
    yield on_disk(scratch / "dest", str(scratch / "dest"), [])


@contextmanager
def bucket(_scratch: Path, environ: dict[str, str]) -> Iterator[Target]:
    with HostileS3() as s3:
        environ |= s3.environ

        def clear() -> None:
            s3.objects.buckets.clear()
            s3.make_bucket("bucket")

        yield Target(
            "s3://bucket/", ["--chunk-size", "5M"],
            lambda: {key: s3.data("bucket", key) for key in s3.keys("bucket")},
            lambda: s3.open_uploads, clear,
        )  # fmt: skip


@contextmanager
def server(scratch: Path, _environ: dict[str, str]) -> Iterator[Target]:
    folder = scratch / "sshd"
    folder.mkdir()
    with running_sshd(folder) as sshd:
        options = [f"--{key.replace('_', '-')}={value}" for key, value in sshd.place.items()]
        yield on_disk(scratch / "remote", sshd.url(scratch / "remote"), options)


if __name__ == "__main__":
    sys.exit(main())
