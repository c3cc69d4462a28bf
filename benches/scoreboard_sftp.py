"""Faults survived over SFTP: fastsync beside rsync, scp and rclone, on connections that go wrong.

Each tool runs each fault once with its defaults, through a TCP proxy in front of an sshd; then the line is
honest and the same command runs again. The destination holds older copies. Prints a table in Markdown, as
scoreboard.py does. Exit code: 0 when fastsync has no silent wrong and no lost file; 1 otherwise; 2 usage.
"""

import argparse
import datetime
import random
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/servers"))

from fault_proxy import FaultProxy, Trouble
from peers import default_fastsync, default_rclone, identify
from scoreboard import Outcome, details, environment, found, plant, run, score
from scoreboard_cases import Case, Files
from sshd import Sshd, running_sshd

TOOLS = ("fastsync", "rsync", "scp", "rclone")
AFTER = 2 << 20


@dataclass(frozen=True)
class Line:
    """A fault of the line: of the next connection, or of every one; or a kill in the middle."""

    name: str
    about: str
    trouble: Trouble | None = None
    always: bool = False
    down: bool = False
    kill: bool = False


LINES = [
    Line("up-cut", "the connection ends in the middle, once", Trouble(cut_after=AFTER, upwards=True)),
    Line("up-reset", "reset in the middle, once", Trouble(cut_after=AFTER, upwards=True, reset=True)),
    Line("up-stall", "nothing more is taken, once", Trouble(stall_after=AFTER, upwards=True)),
    Line("up-lost-reply", "the answers are lost, once", Trouble(lose_reply_after=AFTER)),
    Line("up-always", "reset in the middle, always",
         Trouble(cut_after=AFTER, upwards=True, reset=True), always=True),
    Line("up-refused", "the first connection is refused", Trouble(refuse=True, reset=True)),
    Line("up-killed", "kill -9 in the middle", Trouble(rate=8 << 20, upwards=True), always=True, kill=True),
    Line("down-cut", "the connection ends in the middle, once", Trouble(cut_after=AFTER), down=True),
    Line("down-reset", "reset in the middle, once", Trouble(cut_after=AFTER, reset=True), down=True),
    Line("down-stall", "no byte for an hour, once", Trouble(stall_after=AFTER), down=True),
    Line("down-half", "closed to the client alone, once", Trouble(half_close_after=AFTER), down=True),
    Line("down-always", "reset in the middle, always",
         Trouble(cut_after=AFTER, reset=True), always=True, down=True),
    Line("down-sliced", "a few bytes at a time", Trouble(slice=700), always=True, down=True),
    Line("down-killed", "kill -9 in the middle", Trouble(rate=8 << 20), always=True, down=True, kill=True),
]  # fmt: skip


@dataclass
class Ends:
    """Where things are, for one run."""

    here: Path
    there: Path
    sshd: Sshd
    port: int
    known_hosts: Path
    files: Files = field(default_factory=dict)


def command(tool: str, path: str, line: Line, ends: Ends) -> list[str]:
    sshd, port = ends.sshd, str(ends.port)
    ssh = [
        *("-F", str(sshd.config), "-i", str(sshd.identity)),
        *("-o", f"UserKnownHostsFile={ends.known_hosts}", "-o", "BatchMode=yes"),
    ]
    host = f"{sshd.user}@127.0.0.1"
    if tool == "fastsync":
        remote = f"sftp://{host}:{port}{ends.there}/"
        more = ["--identity", str(sshd.identity), "--known-hosts", str(ends.known_hosts)]
        start = [path, "sync", *more, "--ssh-config", str(sshd.config)]
    elif tool == "rsync":
        remote = f"{host}:{ends.there}/"
        start = [path, "-a", "-e", " ".join(["ssh", "-p", port, *ssh])]
    elif tool == "scp":
        remote = f"{host}:{ends.there}/."
        start = [path, "-rpq", "-P", port, *ssh]
    else:
        told = {
            "host": "127.0.0.1",
            "port": port,
            "user": sshd.user,
            "key_file": sshd.identity,
            "known_hosts_file": ends.known_hosts,
        }
        remote = ":sftp," + ",".join(f"{key}={value}" for key, value in told.items())
        remote += f":{ends.there}"
        start = [path, "copy"]
    local = str(ends.here) + ("/." if tool == "scp" else "/")
    return [*start, remote, local] if line.down else [*start, local, remote]


def judge(line: Line, tool: str, path: str, scratch: Path, seed: int, limit_s: float) -> Outcome:
    """Run one tool over one bad line, and again over a good one."""
    chance = random.Random(f"{seed} {line.name}")
    new = {f"d/{number}": chance.randbytes(3000) for number in range(20)}
    new |= {"large": chance.randbytes(6 << 20), "middle": chance.randbytes(2 << 20)}
    old = {name: chance.randbytes(1000) for name in ("large", "d/3", "keep")}
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=scratch, prefix="run-")))
        sshd = stack.enter_context(running_sshd(root))
        proxy = stack.enter_context(FaultProxy(sshd.port))
        key = (root / "host_key.pub").read_text()
        known_hosts = root / "proxied_hosts"
        known_hosts.write_text(f"[127.0.0.1]:{proxy.port} {key}")
        ends = Ends(root / "here", root / "there", sshd, proxy.port, known_hosts)
        source, dest = (ends.there, ends.here) if line.down else (ends.here, ends.there)
        plant(source, new)
        plant(dest, old)
        home = root / "home"
        home.mkdir()
        environ = environment(None, home)
        if line.trouble is not None and line.always:
            proxy.always(line.trouble)
        elif line.trouble is not None:
            proxy.next(line.trouble)
        arguments = command(tool, path, line, ends)

        def is_due() -> bool:
            return line.kill and proxy.passed > AFTER

        ended = run(arguments, environ, root, limit_s, is_due)
        outcome = Outcome(line.name, tool, ended.code, ended.seconds, proxy.connections)
        outcome.rss_mib, outcome.hung = ended.rss_mib, ended.code is None
        outcome.told = ended.told[-2000:]
        there = found(dest)
        outcome.lost = [name for name in old if there.get(name) not in (old[name], new.get(name))]
        if ended.code == 0:
            outcome.silent = [name for name in new if there.get(name) != new[name]]
        proxy.always(None)
        again = run(arguments, environ, root, limit_s)
        there = found(dest)
        outcome.converged = again.code == 0 and all(there.get(name) == new[name] for name in new)
        outcome.leftovers = sorted(set(there) - {*new, *old})
        return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--limit", type=float, default=125, help="seconds until it counts as hung")
    parser.add_argument("--only", action="append", help="a fault by its name; may be repeated")
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("--jobs", type=int, default=4, help="runs at once")
    options = parser.parse_args()
    paths = {"fastsync": default_fastsync(), "rclone": default_rclone()}
    tools = [each for each in options.tools.split(",") if shutil.which(paths.get(each, each))]
    lines = [line for line in LINES if not options.only or line.name in options.only]
    with tempfile.TemporaryDirectory(prefix="fastsync-scoreboard-") as folder:
        scratch = Path(folder)

        def one(job: tuple[Line, str]) -> Outcome:
            line, tool = job
            path = paths.get(tool, tool)
            made = judge(line, tool, path, scratch, options.seed, options.limit)
            print(
                f"{line.name:14} {tool:9} exit {made.exit_code} {made.seconds:.0f} s",
                file=sys.stderr,
            )
            return made

        with ThreadPoolExecutor(options.jobs) as pool:
            outcomes = list(pool.map(one, [(line, tool) for line in lines for tool in tools]))
        empty = environment(None, scratch)
        versions = [identify(tool, paths.get(tool, tool), empty) for tool in tools]
    cases = [Case(line.name, line.about, {}) for line in lines]
    print(*(f"- {tool.name}: {tool.version}" for tool in versions), sep="\n")
    print(f"- seed {options.seed}, {len(lines)} faults, {datetime.date.today()}\n")
    print(*score(outcomes, tools), "", *details(cases, outcomes, tools), sep="\n")
    ours = [each for each in outcomes if each.tool == "fastsync"]
    return int(any(each.silent or each.lost for each in ours))


if __name__ == "__main__":
    sys.exit(main())
