"""What starting costs: ``python benches/startup.py [--help]``.

The command is held against the interpreter and against the imports it cannot do without; the look-up
of protocols by fastsync/registry.py against the one of importlib.metadata, on which rests that there
is a registry of our own; and the imports of `fastsync cp` tell where the next millisecond is.

Everything runs in a fresh interpreter, in turn. The first round warms up: it leaves the byte code of
what it imports. Figures are the least of all rounds, for nothing makes a start faster than it is.
"""

import argparse
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from measure import Command, Contender, Measurement, RunFailed, WrongResult, interleave, stderr_of
from peers import default_fastsync, quiet_environment
from report import say

TIMEOUT_S = 60
# Both find what a copy imports in any case imported already, and say how many microseconds they took.
LOOK_UP = """
import asyncio, sys, time, click
from fastsync.registry import GROUP, Registry
started = time.perf_counter_ns()
{}
print((time.perf_counter_ns() - started) // 1000, file=sys.stderr)
"""
LOOK_UPS = {
    "fastsync.registry": "Registry.from_entry_points().schemes()",
    "importlib.metadata": "from importlib.metadata import entry_points; entry_points(group=GROUP)",
}
IMPORT_LINE = re.compile(r"^import time: +(\d+) \| +(\d+) \| +(\S+)$", re.MULTILINE)
RUN_MAIN = "import sys; from fastsync.cli.main import main; sys.exit(main())"


def starts(fastsync: str, here: Path, environment: Mapping[str, str], runs: int) -> None:
    source, target = here / "source", here / "target"
    source.write_text("tiny")

    def check_copy() -> None:
        if target.read_text() != "tiny":
            raise WrongResult("the copy differs")

    def contender(name: str, *argv: str) -> Contender:
        command = Command(name, argv, environment)
        if "cp" in argv:
            return Contender(command, lambda: target.unlink(missing_ok=True), check_copy)
        return Contender(command, lambda: None, lambda: None)

    contenders = [
        contender("python -c pass", sys.executable, "-c", "pass"),
        contender("import asyncio", sys.executable, "-c", "import asyncio"),
        contender("import click", sys.executable, "-c", "import click"),
        contender("fastsync --version", fastsync, "--version"),
        contender("fastsync --help", fastsync, "--help"),
        contender("fastsync cp", fastsync, "cp", str(source), str(target)),
    ]
    results = interleave(
        contenders, runs=runs, timeout_s=TIMEOUT_S, settle=lambda: None, say=lambda _: None
    )
    print("| start | wall ms | CPU ms | more than Python, ms |\n| --- | --: | --: | --: |")
    bare = results[0].fastest
    for result in results:
        if result.complete:
            print(
                f"| {result.name} | {1000 * result.fastest:.1f} | {1000 * least_cpu(result):.1f} "
                f"| {1000 * (result.fastest - bare):.1f} |"
            )
        else:
            print(f"| {result.name} | failed: {result.failure} | | |")


def least_cpu(result: Measurement) -> float:
    return min(sample.user_s + sample.system_s for sample in result.samples)


def look_ups(environment: Mapping[str, str], runs: int) -> None:
    least = dict.fromkeys(LOOK_UPS, sys.maxsize)
    for number in range(runs + 1):
        for name, code in LOOK_UPS.items():
            argv = (sys.executable, "-c", LOOK_UP.format(code))
            spent = int(stderr_of(Command(name, argv, environment), timeout_s=TIMEOUT_S))
            if number > 0:
                least[name] = min(least[name], spent)
    print("\n| look-up of the protocols | ms |\n| --- | --: |")
    for name, spent in least.items():
        print(f"| {name} | {spent / 1000:.1f} |")


def imports(here: Path, environment: Mapping[str, str], runs: int, shown: int) -> None:
    """What each import of a copy takes, without and with the ones it makes itself."""
    source, target = here / "source", here / "target"
    argv = (sys.executable, "-X", "importtime", "-c", RUN_MAIN, "cp", str(source), str(target))
    least: dict[str, tuple[int, int]] = {}
    for _ in range(runs):
        target.unlink(missing_ok=True)
        told = stderr_of(Command("imports", argv, environment), timeout_s=TIMEOUT_S)
        for own, total, name in IMPORT_LINE.findall(told):
            before = least.get(name, (sys.maxsize, sys.maxsize))
            least[name] = min(int(own), before[0]), min(int(total), before[1])
    print(f"\n| import of fastsync cp, {len(least)} in all | own ms | with its own imports, ms |")
    print("| --- | --: | --: |")
    for name, (own_us, total_us) in sorted(least.items(), key=lambda item: -item[1][0])[:shown]:
        print(f"| {name} | {own_us / 1000:.1f} | {total_us / 1000:.1f} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--runs", type=int, default=20, metavar="N", help="rounds (default: %(default)s)")
    add("--imports", type=int, default=12, metavar="N", help="how many to show (default: 12)")
    add("--fastsync", metavar="PATH", default=default_fastsync(), help="default: %(default)s")
    options = parser.parse_args()
    fastsync = shutil.which(options.fastsync)
    if fastsync is None:
        parser.error(f"--fastsync: {options.fastsync} is no program")
    say(f"{options.runs} rounds with {sys.executable}")
    with tempfile.TemporaryDirectory(prefix="fastsync-bench-") as scratch:
        here = Path(scratch)
        environment = quiet_environment(here)
        try:
            starts(fastsync, here, environment, options.runs)
            look_ups(environment, options.runs)
            imports(here, environment, max(3, options.runs // 4), options.imports)
        except RunFailed as exc:
            say(str(exc))
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
