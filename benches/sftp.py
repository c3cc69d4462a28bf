"""fastsync beside rsync, scp, rclone and lftp over SSH: one big file, many small ones, nothing to do.

Starts an sshd of its own, on the loopback or, with --linkem, at the far end of an emulated link (needs
root). Tools take turns; the median is shown, connecting included. The server's CPU seconds are its own
and those of the sessions it has ended. Exit code: 0 all went well, 1 not so.
"""

from __future__ import annotations

import argparse
import getpass
import math
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from measure import Command, RunFailed, Sample, run
from peers import default_fastsync, default_rclone, quiet_environment

TOOLS = (
    "fastsync",
    "asyncssh",
    "openssh",
    "rsync",
    "scp",
    "scp-gcm",
    "rclone",
    "rclone-tuned",
    "lftp",
)
WORKS = ("up", "down", "small-up", "small-down", "noop", "memory-up", "memory-down")
_BIG = 1 << 30
_SMALL = 4096
_OLD_S = 1_500_000_000
_FILES = {"small-up": 10_000, "small-down": 10_000, "noop": 50_000}
_DEFAULT = "fastsync,rsync,scp,scp-gcm,rclone,rclone-tuned,lftp"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_SFTP_SERVER = "internal-sftp"  # no login shell, whose start-up files would be measured as well


def main() -> int:
    options = _options()
    if options.linkem and "LINKEM_FAR" not in os.environ:
        link = [*shlex.split(options.linkem), "--", sys.executable, *sys.argv]
        return subprocess.run(link, check=False).returncode
    base = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="fastsync-bench-", dir=base) as scratch:
        bench = _Bench(Path(scratch), options)
        bench.start()
        try:
            return bench.measure()
        finally:
            bench.stop()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--works",
        nargs="+",
        choices=WORKS,
        default=list(WORKS),
        metavar="WORK",
        help="of %(choices)s",
    )
    parser.add_argument("--tools", default=_DEFAULT, help=f"of {', '.join(TOOLS)}; {_DEFAULT}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="of 1 GiB, 10 000 small files, 50 000 with nothing to do",
    )
    parser.add_argument("--fastsync", default=default_fastsync(), help="the command to measure")
    parser.add_argument("--options", default="", help="more options of fastsync")
    parser.add_argument("--timeout", type=float, default=600.0)
    parser.add_argument(
        "--linkem", help="run over a link: its command, like 'linkem --rate 1gbit --rtt 100ms'"
    )
    return parser.parse_args()


class _Bench:
    """Trees, a server, and the commands of every tool for every work."""

    def __init__(self, scratch: Path, options: argparse.Namespace) -> None:
        self._scratch = scratch
        self._options = options
        self._host = os.environ.get("LINKEM_FAR", "127.0.0.1")
        self._port = 22022
        self._sshd: subprocess.Popen[bytes] | None = None
        self._environment = quiet_environment(scratch)

    # -- the server ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start sshd, on the far side of the link if there is one."""
        at = self._scratch
        for name in ("host", "id"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(at / name)]
            subprocess.run(command, check=True)
        (at / "authorized").write_text((at / "id.pub").read_text())
        (at / "known").write_text(f"[{self._host}]:{self._port} {(at / 'host.pub').read_text()}")
        (at / "ssh_config").write_text(
            f"Host bench\n HostName {self._host}\n Port {self._port}\n User {getpass.getuser()}\n"
            f" IdentityFile {at / 'id'}\n IdentitiesOnly yes\n UserKnownHostsFile {at / 'known'}\n"
        )
        (at / "sshd_config").write_text(
            f"Port {self._port}\nListenAddress {self._host}\nHostKey {at / 'host'}\n"
            f"AuthorizedKeysFile {at / 'authorized'}\nPidFile {at / 'pid'}\nStrictModes no\n"
            f"UsePAM no\nPermitRootLogin yes\nSubsystem sftp {_SFTP_SERVER}\n"
        )
        sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
        if sshd is None:
            raise SystemExit("no sshd is installed")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        far = shlex.split(os.environ.get("LINKEM_FAR_EXEC", ""))
        command = [*far, sshd, "-D", "-e", "-f", str(at / "sshd_config")]
        with (at / "log").open("wb") as log:
            self._sshd = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 10
        while not (at / "pid").exists():
            if time.monotonic() > deadline:
                raise SystemExit(f"sshd did not start: {(at / 'log').read_text()}")
            time.sleep(0.05)

    def stop(self) -> None:
        if self._sshd is not None:
            self._sshd.terminate()
            self._sshd.wait()

    # -- works ---------------------------------------------------------------------------------------

    def measure(self) -> int:
        failures = 0
        tools = self._present(self._options.tools.split(","))
        print(_HEAD, flush=True)
        for work in self._options.works:
            source, target, size = self._trees(work)
            racing = [tool for tool in tools if self._command(tool, work, source, target)]
            runs: dict[str, list[_Run]] = {tool: [] for tool in racing}
            for turn in range(self._options.rounds):
                shift = turn % max(1, len(racing))
                for tool in racing[shift:] + racing[:shift]:
                    if work != "noop":
                        shutil.rmtree(target, ignore_errors=True)
                        target.mkdir()
                    try:
                        runs[tool].append(self._run(tool, work, source, target))
                    except RunFailed as exc:
                        failures += 1
                        print(f"{work}, {tool}: {exc}", file=sys.stderr)
            fastest = median(run.sample.seconds for run in runs.get("fastsync") or [_NONE])
            for tool, some in runs.items():
                if some:
                    _show(work, tool, some, size, fastest)
            shutil.rmtree(self._scratch / "trees")
        return 1 if failures else 0

    def _present(self, tools: list[str]) -> list[str]:
        """The tools that are installed; a line for each that is not."""
        present = []
        for tool in tools:
            command = {
                "scp-gcm": "scp",
                "rclone": default_rclone(),
                "rclone-tuned": default_rclone(),
            }
            fastsync = tool in ("fastsync", "asyncssh", "openssh")
            name = self._options.fastsync if fastsync else command.get(tool, tool)
            if shutil.which(name) is None:
                print(f"{tool} is left out: no {name} is installed", file=sys.stderr)
            else:
                present.append(tool)
        return present

    def _run(self, tool: str, work: str, source: Path, target: Path) -> _Run:
        argv = self._command(tool, work, source, target)
        assert argv is not None
        before = self._server_s()
        command = Command(tool, tuple(argv), self._environment)
        sample = run(command, timeout_s=self._options.timeout)
        server_s = self._server_s() - before
        self._check(work, source, target)
        return _Run(sample, server_s)

    def _server_s(self) -> float:
        """CPU seconds of sshd and of all sessions it has ended; those that are ending are waited for."""
        server = Path(f"/proc/{(self._scratch / 'pid').read_text().strip()}")
        deadline = time.monotonic() + 5
        while (server / f"task/{server.name}/children").read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        fields = (server / "stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / _TICKS_PER_S  # utime, stime, cutime, cstime: proc(5)

    def _trees(self, work: str) -> tuple[Path, Path, int]:
        source, target = self._scratch / "trees/source", self._scratch / "trees/target"
        source.mkdir(parents=True)
        target.mkdir()
        scale = self._options.scale
        if work not in _FILES:
            size = max(1, round(_BIG * scale / (1 << 20))) << 20
            with (source / "big").open("wb") as file:
                for _ in range(size >> 20):
                    file.write(os.urandom(1 << 20))
            return source, target, size
        files = max(1, round(_FILES[work] * scale))
        noise = os.urandom(1 << 20)
        for number in range(files):
            folder = source / f"{number // 200:04}"
            folder.mkdir(exist_ok=True)
            start = number * 7919 % (len(noise) - _SMALL)
            made = folder / f"{number:06}"
            made.write_bytes(noise[start : start + _SMALL])
            # What was written within two seconds of a listing is compared by content.
            os.utime(made, (_OLD_S, _OLD_S))
        if work == "noop":
            subprocess.run(["cp", "-a", f"{source}/.", target], check=True)
        return source, target, files * _SMALL

    def _check(self, work: str, source: Path, target: Path) -> None:
        done = subprocess.run(["diff", "-rq", source, target], check=False, capture_output=True)
        if done.returncode:
            raise RunFailed(f"the copy is not like the source: {done.stdout[:200]!r}")

    # -- commands ------------------------------------------------------------------------------------

    def _command(self, tool: str, work: str, source: Path, target: Path) -> Sequence[str] | None:
        makers: Mapping[str, Callable[..., Sequence[str] | None]] = {
            "rsync": self._rsync,
            "scp": self._scp,
            "scp-gcm": self._scp,
            "rclone": self._rclone,
            "rclone-tuned": self._rclone,
            "lftp": self._lftp,
        }
        if work.startswith("memory") and tool in makers:
            return None  # the goal is our own
        argv = makers.get(tool, self._fastsync)(tool, work, source, target)
        if argv is None:
            return None
        return [shutil.which(argv[0]) or argv[0], *argv[1:]]

    def _fastsync(self, tool: str, work: str, source: Path, target: Path) -> Sequence[str]:
        at = self._scratch
        url = f"sftp://{getpass.getuser()}@{self._host}:{self._port}"
        transport = "auto" if tool == "fastsync" else tool
        one = work not in _FILES
        argv = [self._options.fastsync, "cp" if one else "sync"]
        argv += ["--identity", str(at / "id"), "--known-hosts", str(at / "known")]
        argv += ["--ssh-transport", transport, *shlex.split(self._options.options)]
        if work.startswith("memory"):
            argv += ["--profile", "low_memory"]
        if one:
            source = source / "big"
        if work.endswith("down"):
            return [*argv, f"{url}{source}", f"{target}/"]
        return [*argv, str(source), f"{url}{target}/"]

    def _rsync(self, _tool: str, work: str, source: Path, target: Path) -> Sequence[str]:
        argv = ["rsync", "-a", "-W", "-e", f"ssh -F {self._scratch / 'ssh_config'}"]
        if work.endswith("down"):
            return [*argv, f"bench:{source}/", f"{target}/"]
        return [*argv, f"{source}/", f"bench:{target}/"]

    def _scp(self, tool: str, work: str, source: Path, target: Path) -> Sequence[str] | None:
        if work == "noop":
            return None
        argv = ["scp", "-q", "-p", "-r", "-F", str(self._scratch / "ssh_config")]
        if tool == "scp-gcm":
            argv += ["-c", "aes128-gcm@openssh.com"]
        if work.endswith("down"):
            return [*argv, f"bench:{source}/.", f"{target}/"]
        return [*argv, f"{source}/.", f"bench:{target}/"]

    def _rclone(self, tool: str, work: str, source: Path, target: Path) -> Sequence[str]:
        at = self._scratch
        remote = (
            f":sftp,host={self._host},port={self._port},user={getpass.getuser()},"
            f"key_file={at / 'id'},shell_type=unix:"
        )
        argv = [default_rclone(), "sync", "-q"]
        if tool == "rclone-tuned":
            argv += ["--sftp-chunk-size", "255k", "--sftp-concurrency", "256", "--transfers", "16"]
            argv += ["--checkers", "16", "--multi-thread-streams", "8"]
            # A command at the server for each file that was copied takes most of its time.
            argv += ["--sftp-disable-hashcheck"]
        if work.endswith("down"):
            return [*argv, f"{remote}{source}", str(target)]
        return [*argv, str(source), f"{remote}{target}"]

    def _lftp(self, _tool: str, work: str, source: Path, target: Path) -> Sequence[str] | None:
        if work != "down":
            return None
        script = (
            f"set sftp:connect-program 'ssh -a -x -F {self._scratch / 'ssh_config'}'; "
            f"open sftp://bench; pget -n 16 {source}/big -o {target}/big"
        )
        return ["lftp", "-c", script]


class _Run(NamedTuple):
    """One run of a tool, and what it cost the server."""

    sample: Sample
    server_s: float


_NONE = _Run(Sample(math.nan, 0, 0, None), 0)
_HEAD = (
    "| work | tool | seconds | lowest | highest | x fastsync | CPU s | server's | MiB/s | Mbit/s | MiB |\n"
    f"|{' --- |' * 11}"
)


def _show(work: str, tool: str, runs: list[_Run], size: int, fastsync_s: float) -> None:
    seconds = [each.sample.seconds for each in runs]
    middle = median(seconds)
    cpu = median(each.sample.user_s + each.sample.system_s for each in runs)
    server = median(each.server_s for each in runs)
    peak = max((each.sample.peak_rss or 0 for each in runs), default=0)
    rates = (
        "| | "
        if work == "noop"
        else f"| {size / middle / (1 << 20):.1f} | {size * 8e-6 / middle:.0f} "
    )
    print(
        f"| {work} | {tool} | {middle:.2f} | {min(seconds):.2f} | {max(seconds):.2f} "
        f"| {middle / fastsync_s:.2f} | {cpu:.2f} | {server:.2f} {rates}| {peak >> 20 or ''} |",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
