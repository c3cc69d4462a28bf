"""fastsync beside cp, rsync and rclone on local trees: speed, CPU seconds and memory.

Makes its own trees on tmpfs and on disk, runs all tools in turn, checks every copy and prints
Markdown tables; benches/README.md tells more. Exit code: 0 all went well and every required goal is
met, 1 not so, 2 usage, 130 and 143 interrupted.
"""

import argparse
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from arguments import end_in_order, names, positive
from local_works import Bench, Sizes, big, million, noop, small, startup
from peers import (
    HOW_TO_INSTALL,
    Tool,
    default_fastsync,
    default_rclone,
    identify,
    quiet_environment,
)
from places import NoPlace, place
from report import Report, say

WORKS = {"small": small, "big": big, "noop": noop, "startup": startup, "million": million}
USUAL_WORKS = ("small", "big", "noop", "startup")
PLACES = ("tmpfs", "disk")
TOOLS = ("fastsync", "cp", "rsync", "rclone")
QUICK = Sizes(small_files=500, big_size=64 << 20, noop_files=2_000, million_files=20_000)


def main() -> int:
    if sys.platform != "linux":
        say("this bench runs on Linux only: it needs /proc and pidfds")
        return 2
    options = _options()
    end_in_order()
    os.umask(0o022)  # the same for our trees and for every tool
    try:
        with tempfile.TemporaryDirectory(prefix="fastsync-bench-") as scratch:
            report = _measure(options, quiet_environment(Path(scratch)))
    except KeyboardInterrupt:
        say("interrupted; everything made so far is removed")
        return 130
    print(report.markdown(), end="")
    if options.json is not None:
        report.write_json(options.json)
    full_size = _sizes(options) == Sizes()
    return 1 if report.failures or (report.missed and full_size) else 0


def _measure(options: argparse.Namespace, environment: Mapping[str, str]) -> Report:
    sizes, runs = _sizes(options), _runs(options)
    tools, missing = _find_tools(options, environment)
    bench = Bench(
        tools=tools,
        environment=environment,
        options=tuple(shlex.split(options.options)),
        sizes=sizes,
        runs=runs,
        timeout_s=options.timeout,
    )
    settings = {"runs": runs, "options of fastsync": options.options or "none"}
    report = Report("fastsync on local trees", settings, list(tools.values()), TOOLS[1:])
    report.notes += missing
    if sizes != Sizes():
        report.notes.append("The works are scaled; the goals are meant for the full size.")
    if report.machine["load at the start"] > 0.5:
        report.notes.append("The machine was busy with something else at the start.")
    works = [name for name in WORKS if name in options.only]
    for place_name in options.places:
        try:
            with place(place_name, options.disk_dir) as at:
                for name in works:
                    try:
                        report.results += WORKS[name](bench, at)
                    except NoPlace as exc:
                        report.notes.append(f"{name} on {place_name} is skipped: {exc}.")
                # Starting up is the same everywhere.
                works = [name for name in works if name != "startup"]
        except NoPlace as exc:
            report.notes.append(f"{place_name} is skipped: {exc}.")
    return report


def _find_tools(
    options: argparse.Namespace, environment: Mapping[str, str]
) -> tuple[dict[str, Tool], list[str]]:
    paths = {
        "fastsync": options.fastsync or default_fastsync(),
        "cp": "cp",
        "rsync": "rsync",
        "rclone": options.rclone or default_rclone(),
    }
    tools, missing = {}, []
    for name in TOOLS:
        path = shutil.which(paths[name])
        if path is None:
            missing.append(f"{name} is not found and left out; to have it: {HOW_TO_INSTALL[name]}")
            say(missing[-1])
        else:
            tools[name] = identify(name, os.path.abspath(path), environment)
    if "fastsync" not in tools:
        raise SystemExit(2)
    return tools, missing


def _sizes(options: argparse.Namespace) -> Sizes:
    sizes = QUICK if options.quick else Sizes()
    if options.files is not None:
        files = options.files
        sizes = replace(sizes, small_files=files, noop_files=files, million_files=10 * files)
    if options.big_size is not None:
        sizes = replace(sizes, big_size=options.big_size << 20)
    return sizes


def _runs(options: argparse.Namespace) -> int:
    return options.runs or (2 if options.quick else 5)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--runs", type=positive, metavar="N", help="timed runs of each command (default: 5)")
    add(
        "--only",
        type=lambda text: names(text, tuple(WORKS)),
        default=USUAL_WORKS,
        metavar="WORK,...",
        help=f"of {', '.join(WORKS)} (default: all but million)",
    )
    add(
        "--places",
        type=lambda text: names(text, PLACES),
        default=PLACES,
        metavar="PLACE,...",
        help="of tmpfs (/dev/shm), disk (default: both)",
    )
    add(
        "--disk-dir",
        type=Path,
        default=Path(tempfile.gettempdir()),
        metavar="DIR",
        help="where `disk` is (default: %(default)s)",
    )
    add("--quick", action="store_true", help="small trees and 2 runs: does it work at all?")
    add(
        "--files",
        type=positive,
        metavar="N",
        help="files in small and in noop (default: 20000 and 100000); million takes 10 times N",
    )
    add("--big-size", type=positive, metavar="MIB", help="size of the big file (default: 2048)")
    add("--fastsync", metavar="PATH", help="default: .venv/bin/fastsync here, else from PATH")
    add("--rclone", metavar="PATH", help="default: beside this Python, else from PATH")
    add(
        "--options",
        default="",
        metavar="TEXT",
        help="more options for fastsync cp and sync, as in --options='-a -j 4'",
    )
    add("--timeout", type=float, default=600, metavar="S", help="for one run (default: 600)")
    add("--json", type=Path, metavar="FILE", help="write all figures there too")
    return parser


def _options() -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args()
    for name in ("fastsync", "rclone"):
        path = getattr(options, name)
        if path is not None and shutil.which(path) is None:
            parser.error(f"--{name}: {path} is no program")
    if options.json is not None and not options.json.parent.is_dir():
        parser.error(f"--json: {options.json.parent} is no directory")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
