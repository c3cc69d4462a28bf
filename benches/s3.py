"""fastsync beside s5cmd, rclone and aws on a bucket: speed, CPU seconds and memory.

Starts an S3 server of its own on this machine, versitygw or else rclone serve s3, plain and with TLS, runs
all tools in turn, checks every copy and prints Markdown tables, which say where the server was the limit.
Exit code: 0 all went well and every required goal is met, 1 not so, 2 usage, 130 and 143 interrupted.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from arguments import end_in_order, names, positive
from peers import Tool, default_fastsync, default_rclone, identify, quiet_environment
from places import NoPlace, Place, place
from report import Report, Result, markdown_table, say
from s3_gateway import Gateway, NoGateway, gateway
from s3_works import Bench, S3Result, Sizes, batch, big, listing, memory, noop, small

WORKS: dict[str, Callable[[Bench, Gateway, Place], Iterator[Result]]] = {
    "small": small,
    "big": big,
    "ls": listing,
    "noop": noop,
    "batch": batch,
    "memory": memory,
}
USUAL_WORKS = ("small", "big", "ls", "noop", "batch")
# What TLS makes dearer; for the others it would only repeat the figures.
WORKS_WITH_TLS = ("big",)
TOOLS = ("fastsync", "s5cmd", "rclone", "aws", "curl")
GATEWAYS = ("versitygw", "rclone")
_PERSONAL = ("AWS_", "S3_")


def main() -> int:
    if sys.platform != "linux":
        say("this bench runs on Linux only: it needs /proc and pidfds")
        return 2
    options = _parser().parse_args()
    end_in_order()
    os.umask(0o022)  # the same for our trees and for every tool
    try:
        with tempfile.TemporaryDirectory(prefix="fastsync-bench-") as scratch:
            report, raced = _measure(options, _environment(Path(scratch)))
    except KeyboardInterrupt:
        say("interrupted; everything made so far is removed")
        return 130
    except (NoGateway, NoPlace) as exc:
        say(str(exc))
        return 2
    print(report.markdown(), _shares(raced), sep="\n")
    if options.json is not None:
        report.write_json(options.json)
        _add_servers(options.json, raced)
    return 1 if report.failures or (report.missed and options.scale == 1) else 0


def _measure(
    options: argparse.Namespace, environment: Mapping[str, str]
) -> tuple[Report, list[S3Result]]:
    tools, missing = _find_tools(options, environment)
    server, program = find_gateway(options.gateway)
    bench = Bench(
        tools=tools,
        environment=environment,
        options=tuple(shlex.split(options.options)),
        sizes=Sizes().scaled(options.scale),
        rounds=options.rounds,
        timeout_s=options.timeout,
    )
    settings = {
        "runs": options.rounds,
        "scale": f"{options.scale:g}",
        "server": server,
        "options of fastsync": options.options or "none",
    }
    report = Report("fastsync on a bucket", settings, list(tools.values()), TOOLS[1:])
    report.notes += missing
    if options.scale != 1:
        report.notes.append("The works are scaled; the goals are meant for the full size.")
    if report.machine["load at the start"] > 0.5:
        report.notes.append("The machine was busy with something else at the start.")
    where = ("tmpfs", Path()) if options.place is None else ("disk", options.place)
    with place(*where) as at:
        for tls in (False, True):
            chosen = [work for work in options.works if not tls or work in WORKS_WITH_TLS]
            if not chosen:
                continue
            folder = at.root / ("tls" if tls else "plain")
            folder.mkdir()
            with gateway(server, program, folder, tls=tls) as running:
                for work in chosen:
                    try:
                        report.results += WORKS[work](bench, running, at)
                    except NoPlace as exc:
                        report.notes.append(f"{work} is skipped: {exc}.")
    return report, bench.results


def _shares(raced: list[S3Result]) -> str:
    """Where the CPU seconds went, and whether the server left anything to win."""
    rows = []
    for one in raced:
        result = one.result
        for m in result.measurements:
            if not m.complete:
                continue
            server = one.server_s(m)
            rows.append(
                [
                    result.place,
                    result.work,
                    m.name,
                    _over(1000 * m.cpu_s, result.files),
                    _over(m.cpu_s, result.size / (1 << 30)),
                    "-" if server is None else f"{server:.2f}",
                    "-" if server is None else f"{server / m.seconds:.2f}",
                    "server" if one.server_is_the_limit(m) else "",
                ]
            )
    heading = ["place", "work", "command", "CPU ms/object", "CPU s/GiB"]
    heading += ["server CPU s", "server cores", "limit"]
    return markdown_table(heading, rows, names=3) + "\n"


def _over(amount: float, by: float) -> str:
    return f"{amount / by:.3f}" if by else "-"


def _add_servers(path: Path, raced: list[S3Result]) -> None:
    """Put the server's CPU seconds beside the figures of each work."""
    data: dict[str, Any] = json.loads(path.read_text())
    for one in raced:
        for result in data["results"]:
            if (result["work"], result["place"]) == (one.result.work, one.result.place):
                result["server_cpu_s"] = one.server_cpu_s
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def _environment(scratch: Path) -> dict[str, str]:
    quiet = quiet_environment(scratch)
    kept = {name: text for name, text in quiet.items() if not name.startswith(_PERSONAL)}
    return kept | {"HOME": str(scratch)}


def _find_tools(
    options: argparse.Namespace, environment: Mapping[str, str]
) -> tuple[dict[str, Tool], list[str]]:
    paths = {
        "fastsync": options.fastsync or default_fastsync(),
        "s5cmd": _beside("s5cmd"),
        "rclone": default_rclone(),
        "aws": _beside("aws"),
        "curl": "curl",
    }
    tools, missing = {}, []
    for name in options.tools:
        path = shutil.which(paths[name])
        if path is None:
            missing.append(f"{name} is not found and left out; benches/README.md tells how")
            say(missing[-1])
        else:
            tools[name] = _identified(name, os.path.abspath(path), environment)
    if not tools:
        raise SystemExit(2)
    return tools, missing


def _identified(name: str, path: str, environment: Mapping[str, str]) -> Tool:
    if name != "s5cmd":
        return identify(name, path, environment)
    done = subprocess.run([path, "version"], check=False, capture_output=True, text=True)
    return Tool(name, path, f"s5cmd {done.stdout.strip() or 'unknown'}")


def find_gateway(asked: str | None) -> tuple[str, str]:
    go = Path(os.environ.get("GOPATH") or Path.home() / "go") / "bin"
    programs = {
        "versitygw": shutil.which("versitygw")
        or shutil.which("versitygw", path=f"{Path(default_fastsync()).parent}:{go}"),
        "rclone": shutil.which(default_rclone()),
    }
    for name in GATEWAYS if asked is None else (asked,):
        if (program := programs[name]) is not None:
            return name, program
    raise NoGateway("no S3 server is installed: scripts/install-test-servers makes versitygw")


def _beside(name: str) -> str:
    """The one beside this interpreter, else the one in PATH."""
    found = Path(sys.executable).parent / name
    return str(found) if os.access(found, os.X_OK) else name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--rounds", type=positive, default=5, metavar="N", help="timed runs (default: 5)")
    add("--scale", type=float, default=1.0, metavar="F", help="works F times as big (default: 1)")
    add(
        "--works",
        type=lambda text: names(text, tuple(WORKS)),
        default=USUAL_WORKS,
        metavar="WORK,...",
        help=f"of {', '.join(WORKS)} (default: all but memory)",
    )
    add(
        "--tools",
        type=lambda text: names(text, TOOLS),
        default=TOOLS,
        metavar="TOOL,...",
        help=f"of {', '.join(TOOLS)} (default: all that are installed)",
    )
    add("--gateway", choices=GATEWAYS, help="the server (default: versitygw, else rclone)")
    add("--place", type=Path, metavar="DIR", help="where trees and buckets are (default: tmpfs)")
    add("--fastsync", metavar="PATH", help="default: .venv/bin/fastsync here, else from PATH")
    add("--options", default="", metavar="TEXT", help="more options for fastsync, as in '-p 16'")
    add("--timeout", type=float, default=600, metavar="S", help="for one run (default: 600)")
    add("--json", type=Path, metavar="FILE", help="write all figures there too")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
