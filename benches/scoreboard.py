"""Faults survived: fastsync beside its peers, on disks, servers and connections that go wrong.

Each tool runs each fault once with its defaults, in a place of its own; then the fault is taken away and the
same command runs again. Prints tables in Markdown; `--json FILE` has all that was seen. Exit code: 0 when
fastsync has no silent wrong file, lost file, write outside or leaked secret, and ended each time as
docs/CLI.md says; 1 otherwise; 2 usage.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/servers"))

from arguments import end_in_order, names, positive
from peers import Tool, default_fastsync, identify
from scoreboard_run import CannotRun, Case, Outcome, Rules, judge, quiet
from scoreboard_table import cell, details, score

PLACES = {
    "local": "Local disks",
    "s3": "S3",
    "sftp": "SFTP",
    "http": "HTTP",
}
TOOLS = ("fastsync", "rclone", "rsync", "cp", "s5cmd", "aws", "scp", "curl", "wget", "aria2c")


@dataclass(frozen=True)
class Part:
    """The faults of one kind of place, and the tools that are there for them."""

    place: str
    module: ModuleType
    cases: Sequence[Case]
    tools: Sequence[str]


def find(tool: str) -> str | None:
    """The checkout's own fastsync; others beside this interpreter, where pip puts them, else in PATH."""
    if tool == "fastsync":
        return shutil.which(default_fastsync())
    beside = shutil.which(tool, path=str(Path(sys.executable).parent))
    return beside or shutil.which(tool)


def parts(options: argparse.Namespace, paths: dict[str, str]) -> Iterator[Part]:
    for place in options.places:
        try:
            module = importlib.import_module(f"scoreboard_{place}")
        except ModuleNotFoundError as exc:
            print(f"{place} is left out: {exc}; pip install -e '.[dev]'", file=sys.stderr)
            continue
        only = options.only
        cases = [each for each in module.cases(options.seed) if not only or each.name in only]
        if cases:
            yield Part(place, module, cases, [tool for tool in module.TOOLS if tool in paths])


def play(chosen: Sequence[Part], paths: dict[str, str], rules: Rules, jobs: int) -> list[Outcome]:
    """All runs, several at once. Says on stderr what becomes of each."""
    cannot: set[str] = set()

    def one(job: tuple[Part, Case, str]) -> Outcome | None:
        part, case, tool = job
        name = f"{part.place:6} {case.name:16} {tool:9}"
        try:
            outcome = judge(part.place, case, tool, paths[tool], rules)
        except CannotRun as exc:
            if case.name not in cannot:
                print(f"{name} cannot be tried here: {exc}", file=sys.stderr, flush=True)
            cannot.add(case.name)
            return None
        if outcome is not None:
            print(f"{name} {cell(outcome)}", file=sys.stderr, flush=True)
        return outcome

    wanted = [(part, case, tool) for part in chosen for case in part.cases for tool in part.tools]
    with ThreadPoolExecutor(jobs) as pool:
        return [outcome for outcome in pool.map(one, wanted) if outcome is not None]


def amiss(chosen: Sequence[Part], outcomes: Sequence[Outcome]) -> Iterator[str]:
    """What fastsync should not have done."""
    codes = {(part.place, case.name): case.codes for part in chosen for case in part.cases}
    for each in outcomes:
        if each.tool != "fastsync":
            continue
        if not each.survived:
            yield f"{each.place} {each.case}: {cell(each)}"
        right = codes[each.place, each.case]
        if each.kills is None and each.exit_code not in right:
            yield f"{each.place} {each.case}: exit {each.exit_code}, docs/CLI.md says {right}"


def tables(chosen: Sequence[Part], outcomes: Sequence[Outcome]) -> Iterator[str]:
    for part in chosen:
        of_part = [each for each in outcomes if each.place == part.place]
        tried = {each.case for each in of_part}
        cases = [case for case in part.cases if case.name in tried]
        yield from ("", f"### {PLACES[part.place]}", "")
        yield from score(of_part, part.tools)
        yield ""
        yield from details(cases, of_part, part.tools)
        yield from ("", *(f"- {tool}: {part.module.SAYS[tool]}" for tool in part.tools))


def record(
    rules: Rules, versions: Sequence[Tool], chosen: Sequence[Part], outcomes: Sequence[Outcome]
) -> dict[str, object]:
    """All that was seen, for JSON."""
    return {
        "date": str(datetime.date.today()),
        "seed": rules.seed,
        "limit_s": rules.limit_s,
        "kills": rules.kills,
        "tools": [asdict(tool) for tool in versions],
        "commands": {
            part.place: {tool: part.module.SAYS[tool] for tool in part.tools} for part in chosen
        },
        "faults": [
            {"place": part.place, "name": case.name, "about": case.about, "exit_codes": case.codes}
            for part in chosen
            for case in part.cases
        ],
        "runs": [asdict(outcome) | {"survived": outcome.survived} for outcome in outcomes],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--limit", type=float, default=125, help="seconds until it counts as hung")
    parser.add_argument("--kills", type=positive, default=10, help="kills of each tool and place")
    parser.add_argument("--only", action="append", help="a fault by its name; may be repeated")
    parser.add_argument("--places", default=",".join(PLACES))
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("--jobs", type=positive, default=4, help="runs at once")
    parser.add_argument("--path", action="append", default=[], metavar="TOOL=PATH")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    end_in_order()
    # Servers and proxies of ours meet ends that are closed all the time.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    try:
        options.places = names(options.places, tuple(PLACES))
        tools = names(options.tools, TOOLS)
    except argparse.ArgumentTypeError as exc:
        parser.error(str(exc))
    given = dict(each.partition("=")[::2] for each in options.path)
    found = {tool: given.get(tool) or find(tool) for tool in tools}
    paths = {tool: path for tool, path in found.items() if path is not None}
    for tool in set(tools) - set(paths):
        print(f"{tool} is not installed, and left out; see benches/README.md", file=sys.stderr)
    chosen = list(parts(options, paths))
    if not chosen or not paths:
        parser.error("no such fault" if paths else "no tool is installed")
    with tempfile.TemporaryDirectory(prefix="fastsync-scoreboard-") as folder:
        rules = Rules(Path(folder), options.limit, options.kills, options.seed)
        outcomes = play(chosen, paths, rules, options.jobs)
        used = [tool for tool in tools if any(each.tool == tool for each in outcomes)]
        versions = [_version(tool, paths[tool], Path(folder)) for tool in used]
    tried = len({(each.place, each.case) for each in outcomes})
    print("### All of them\n", *score(outcomes, used), "", sep="\n")
    print(*(f"- {tool.name}: {tool.version}" for tool in versions), sep="\n")
    print(f"- seed {options.seed}, {tried} faults, {datetime.date.today()}")
    print(*tables(chosen, outcomes), sep="\n")
    if options.json is not None:
        options.json.write_text(
            json.dumps(record(rules, versions, chosen, outcomes), indent=1) + "\n"
        )
    wrong = list(amiss(chosen, outcomes))
    for each in wrong:
        print(f"fastsync: {each}", file=sys.stderr)
    return int(bool(wrong))


def _version(tool: str, path: str, home: Path) -> Tool:
    if tool == "scp":  # has no option that tells, and ssh tells it on stderr
        told = subprocess.run(["ssh", "-V"], check=False, capture_output=True, text=True)
        return Tool(tool, path, told.stderr.strip())
    known = identify(tool, path, quiet(home))
    if tool in ("aws", "curl"):  # the rest is about the machine, and the libraries in use
        return replace(known, version=" ".join(known.version.split()[:2]))
    return known


if __name__ == "__main__":
    sys.exit(main())
