"""Faults survived: fastsync beside rclone, rsync, s5cmd and aws, on servers and disks that go wrong.

Each tool runs each fault once with its defaults, in a place of its own; then the fault is taken away and the
same command runs again. Prints a table in Markdown; `--json FILE` has all that was seen. Exit code: 0 when
fastsync has no silent wrong file, lost file, write outside or leaked secret; 1 otherwise; 2 usage.
"""

import argparse
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/servers"))

from hostile_s3 import HostileS3
from peers import default_fastsync, default_rclone, identify
from scoreboard_cases import BUCKET, Case, Files, Places, every

SECRET = "CANARY-secret-access-key-0123456789abcd"
TOKEN = "CANARY-session-token"
TOOLS = ("fastsync", "rclone", "rsync", "s5cmd", "aws")


@dataclass
class Outcome:
    """What one tool made of one fault. `silent` has names that are wrong although the exit code is 0."""

    case: str
    tool: str
    exit_code: int | None = None
    seconds: float = 0.0
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
    told: str = ""

    @property
    def survived(self) -> bool:
        bad = self.silent or self.lost or self.outside or self.leaked or self.leftovers
        return not (bad or self.hung or self.raw_controls) and self.converged


# -- the tools -------------------------------------------------------------------------------------------


def command(
    tool: str, path: str, case: Case, places: Places, *, is_local: bool
) -> list[str] | None:
    """What copies the source to the destination; None where a tool cannot."""
    there = f"s3://{BUCKET}"
    local_source, dest = f"{places.source}/", f"{places.dest}/"
    if tool == "fastsync":
        source = local_source if is_local or case.upload else f"{there}/"
        target = f"{there}/" if case.upload else dest
        return [path, "sync", *(["--delete"] if case.delete else []), source, target]
    if tool == "rclone":
        source = local_source if is_local or case.upload else f"place:{BUCKET}"
        target = f"place:{BUCKET}" if case.upload else dest
        return [path, "sync" if case.delete else "copy", source, target]
    if tool == "rsync":
        if not is_local:
            return None
        return [path, "-a", *(["--delete"] if case.delete else []), local_source, dest]
    if is_local:
        return None
    if tool == "s5cmd":
        source, target = (local_source, f"{there}/") if case.upload else (f"{there}/*", dest)
        return [path, "sync", *(["--delete"] if case.delete else []), source, target]
    source, target = (local_source, f"{there}/") if case.upload else (f"{there}/", dest)
    return [path, "s3", "sync", *(["--delete"] if case.delete else []), source, target]


def environment(server: HostileS3 | None, home: Path) -> dict[str, str]:
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "RCLONE_CONFIG": "",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    if server is not None:
        environ |= server.environ
        environ |= {
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_SESSION_TOKEN": TOKEN,
            "RCLONE_CONFIG_PLACE_SECRET_ACCESS_KEY": SECRET,
            "RCLONE_CONFIG_PLACE_SESSION_TOKEN": TOKEN,
        }
    return environ


# -- one run ---------------------------------------------------------------------------------------------


def plant(root: Path, files: Files) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (1_600_000_000, 1_600_000_000))


def found(root: Path) -> Files:
    """All files below a place; links are not followed."""
    files: Files = {}
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory, name)
            if path.is_file() and not path.is_symlink():
                files[str(path.relative_to(root))] = path.read_bytes()
    return files


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
    environ: dict[str, str],
    cwd: Path,
    limit_s: float,
    kill_when: Callable[[], bool] = lambda: False,
) -> Ended:
    """Run a command to its end, or until it is killed."""
    peak = 0.0
    hung = False
    with tempfile.TemporaryFile() as said:
        begun = time.monotonic()
        process = subprocess.Popen(
            arguments, env=environ, cwd=cwd, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            start_new_session=True,
        )  # fmt: skip
        while process.poll() is None:
            peak = max(peak, _peak_mib(process.pid))
            hung = time.monotonic() - begun > limit_s
            if hung or kill_when():
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            time.sleep(0.01)
        seconds = time.monotonic() - begun
        said.seek(0)
        told = said.read().decode("utf-8", "surrogateescape")
    return Ended(None if hung else process.returncode, seconds, peak, told)


def _peak_mib(pid: int) -> float:
    """What /proc says: what wait4 tells may be our own mark, which a process keeps when it begins another."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


def judge(case: Case, tool: str, path: str, scratch: Path, limit_s: float) -> Outcome | None:
    """Run one tool through one fault, and again without it."""
    is_local = (case.script is None and case.meddle is not None) or case.kill_at_files is not None
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=scratch, prefix="run-")))
        places = Places(root / "place")
        plant(places.source, case.source if is_local or case.upload else {})
        places.dest.mkdir(parents=True)
        home = root / "home"
        home.mkdir()
        server = trap = None
        if not is_local:
            server, trap = (stack.enter_context(HostileS3()) for _ in range(2))
            server.make_bucket(BUCKET)
            trap.make_bucket(BUCKET)
            if not case.upload:
                for name, content in case.source.items():
                    server.put(BUCKET, name, content)
            if case.script is not None:
                case.script(server, trap)
        arguments = command(tool, path, case, places, is_local=is_local)
        if arguments is None:
            return None
        outcome = Outcome(case.name, tool)
        try:
            if case.meddle is not None and case.name == "full":
                case.meddle(places)  # what is mounted comes before what is in it
            plant(places.dest, {} if case.upload else case.old)
            if case.meddle is not None and case.name != "full":
                case.meddle(places)
            around = found(places.root)
            environ = environment(server, home)
            files = case.kill_at_files

            def is_due() -> bool:
                return files is not None and len(os.listdir(places.dest)) >= files

            ended = run([*case.under, *arguments], environ, root, limit_s, is_due)
            outcome.exit_code, outcome.seconds = ended.code, ended.seconds
            outcome.rss_mib, outcome.hung = ended.rss_mib, ended.code is None
            outcome.told = ended.told[-2000:]
            _look(outcome, case, places, around, server, is_local=is_local)
            _search(outcome, ended.told, trap)
            if server is not None:
                outcome.requests = len(server.requests)
                server.behave()
        finally:
            if case.undo is not None:
                if case.name == "full":
                    kept = found(places.dest)
                    case.undo(places)
                    plant(places.dest, kept)
                else:
                    case.undo(places)
        again = run(arguments, environ, root, limit_s)
        _look_again(outcome, case, places, server, again.code)
        return outcome


def _wanted(case: Case) -> Files:
    return {name: body for name, body in case.source.items() if name not in case.refused}


def _there(case: Case, places: Places, server: HostileS3 | None) -> Files:
    if not case.upload:
        return found(places.dest)
    assert server is not None
    return {name: server.data(BUCKET, name) for name in server.keys(BUCKET)}


def _look(outcome: Outcome, case: Case, places: Places, around: Files,
          server: HostileS3 | None, *, is_local: bool) -> None:  # fmt: skip
    there, wanted = _there(case, places, server), _wanted(case)
    for name, body in case.old.items():
        known = (body, case.source.get(name), case.also.get(name))
        right = [content for content in known if content is not None]
        is_gone_rightly = case.delete and not case.keeps and name not in wanted
        if there.get(name) not in right and not is_gone_rightly:
            outcome.lost.append(name)
    if outcome.exit_code == 0:
        for name, body in wanted.items():
            if there.get(name) not in (body, case.also.get(name)) or name not in there:
                outcome.silent.append(name)
    own = ("dest/",) if not is_local and not case.upload else ("dest/", "source/", "moved/")
    for name, content in {**around, **found(places.root)}.items():
        if not name.startswith(own) and around.get(name) != found_one(places.root / name, content):
            outcome.outside.append(name)


def found_one(path: Path, content: bytes) -> bytes | None:
    return path.read_bytes() if path.is_file() else (None if not path.exists() else content)


def _search(outcome: Outcome, told: str, trap: HostileS3 | None) -> None:
    if "CANARY" in told:
        outcome.leaked.append("in its output")
    if outcome.case == "escapes":
        outcome.raw_controls = "\x1b]" in told or "\x07" in told
    for request in trap.requests if trap is not None else ():
        if any("CANARY" in value for value in request.headers.values()):
            outcome.leaked.append("to another host")
            break


def _look_again(
    outcome: Outcome, case: Case, places: Places, server: HostileS3 | None, code: int | None
) -> None:
    there, wanted = _there(case, places, server), _wanted(case)
    outcome.converged = code is not None and all(
        there.get(name) in (body, *filter(None, [case.also.get(name)]))
        for name, body in wanted.items()
    )
    known = {*case.source, *case.old, *case.also}
    outcome.leftovers = sorted(name for name in there if name not in known)
    if case.upload and server is not None and server.open_uploads:
        outcome.leftovers += [f"unfinished upload of {key}" for key in server.open_uploads]


# -- the table -------------------------------------------------------------------------------------------


def score(outcomes: Sequence[Outcome], tools: Sequence[str]) -> Iterator[str]:
    """The figures of each tool, one row per figure."""
    by_tool = {tool: [each for each in outcomes if each.tool == tool] for tool in tools}

    def row(name: str, figure: object) -> str:
        assert callable(figure)
        return f"| {name} | " + " | ".join(str(figure(by_tool[tool])) for tool in tools) + " |"

    yield "| | " + " | ".join(tools) + " |"
    yield "| --- |" + " ---: |" * len(tools)
    yield row("faults tried", len)
    yield row("survived", lambda some: sum(each.survived for each in some))
    yield row("silent wrong files", lambda some: sum(len(each.silent) for each in some))
    yield row("files lost", lambda some: sum(len(each.lost) for each in some))
    yield row("writes outside the destination", lambda some: sum(len(o.outside) for o in some))
    yield row("secrets leaked", lambda some: sum(len(each.leaked) for each in some))
    yield row("raw control characters shown", lambda some: sum(o.raw_controls for o in some))
    yield row("hangs", lambda some: sum(each.hung for each in some))
    yield row("not right after a second run", lambda some: sum(not o.converged for o in some))
    yield row("left-overs after a second run", lambda some: sum(len(o.leftovers) for o in some))
    yield row("longest run, s", lambda some: f"{max(each.seconds for each in some):.0f}")
    yield row("requests in the worst storm", lambda some: max(each.requests for each in some))
    yield row("peak memory, MiB", lambda some: f"{max(each.rss_mib for each in some):.0f}")


def details(
    cases: Sequence[Case], outcomes: Sequence[Outcome], tools: Sequence[str]
) -> Iterator[str]:
    """What became of each fault: the exit code, and what was wrong."""
    yield "| fault | what goes wrong | " + " | ".join(tools) + " |"
    yield "| --- | --- |" + " --- |" * len(tools)
    made = {(each.case, each.tool): each for each in outcomes}
    for case in cases:
        cells = [_cell(made.get((case.name, tool))) for tool in tools]
        yield f"| {case.name} | {case.about} | " + " | ".join(cells) + " |"


def _cell(outcome: Outcome | None) -> str:
    if outcome is None:
        return "-"
    exit_code = "no end" if outcome.exit_code is None else f"{outcome.exit_code}"
    wrong = [
        f"{len(names)} {word}"
        for names, word in (
            (outcome.silent, "silently wrong"),
            (outcome.lost, "lost"),
            (outcome.outside, "outside"),
            (outcome.leaked, "leaked"),
            (outcome.leftovers, "left over"),
        )
        if names
    ]
    wrong += ["raw controls"] * outcome.raw_controls + ["stays wrong"] * (not outcome.converged)
    return f"exit {exit_code}" + (f", **{', '.join(wrong)}**" if wrong else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--limit", type=float, default=150, help="seconds until it counts as hung")
    parser.add_argument("--only", action="append", help="a fault by its name; may be repeated")
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("--jobs", type=int, default=3, help="runs at once")
    parser.add_argument("--json", type=Path)
    for tool in TOOLS:
        parser.add_argument(f"--{tool}", default=None, help="its path")
    options = parser.parse_args()
    paths = {
        "fastsync": options.fastsync or default_fastsync(),
        "rclone": options.rclone or default_rclone(),
        "rsync": options.rsync or "rsync",
        "s5cmd": options.s5cmd or str(Path(sys.executable).parent / "s5cmd"),
        "aws": options.aws or "aws",
    }
    tools = [tool for tool in options.tools.split(",") if shutil.which(paths[tool])]
    cases = [case for case in every(options.seed) if not options.only or case.name in options.only]
    if os.geteuid() != 0:
        cases = [case for case in cases if case.name != "full"]
    with tempfile.TemporaryDirectory(prefix="fastsync-scoreboard-") as folder:
        scratch = Path(folder)
        with ThreadPoolExecutor(options.jobs) as pool:
            jobs = [(case, tool) for case in cases for tool in tools]
            outcomes = [
                outcome
                for outcome in pool.map(
                    lambda job: _told(judge(job[0], job[1], paths[job[1]], scratch, options.limit)),
                    jobs,
                )
                if outcome is not None
            ]
        empty = environment(None, scratch)
        versions = [identify(tool, paths[tool], empty) for tool in tools]
    print(*(f"- {tool.name}: {tool.version}" for tool in versions), sep="\n")
    print(f"- seed {options.seed}, {len(cases)} faults, {datetime.date.today()}\n")
    print(*score(outcomes, tools), "", *details(cases, outcomes, tools), sep="\n")
    if options.json is not None:
        rows = [asdict(outcome) | {"survived": outcome.survived} for outcome in outcomes]
        seen = {"seed": options.seed, "tools": [asdict(tool) for tool in versions], "runs": rows}
        options.json.write_text(json.dumps(seen, indent=1) + "\n")
    ours = [each for each in outcomes if each.tool == "fastsync"]
    return int(any(each.silent or each.lost or each.outside or each.leaked for each in ours))


def _told(outcome: Outcome | None) -> Outcome | None:
    if outcome is not None:
        print(f"{outcome.case:18} {outcome.tool:9} {_cell(outcome)}", file=sys.stderr, flush=True)
    return outcome


if __name__ == "__main__":
    sys.exit(main())
