"""fastsync beside rsync, scp, rclone and lftp over SSH: one big file, many small ones, nothing to do.

Starts an sshd of its own, on the loopback or, with --linkem, at the far end of an emulated link (needs
root). Tools take turns; the median is shown, connecting included. Exit code: 0 all went well, 1 not so.
"""

from __future__ import annotations

import argparse
import getpass
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
WORKS = ("up", "down", "small-up", "small-down", "noop")
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
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"of {', '.join(WORKS)}; all")
    parser.add_argument(
        "--tools", default="fastsync,rsync,scp,rclone", help=f"of {', '.join(TOOLS)}"
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--size", type=int, default=1 << 30, help="bytes of the big file")
    parser.add_argument("--files", type=int, default=10_000, help="small files, of 4 KiB")
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
        wanted = self._options.works or list(WORKS)
        tools = self._options.tools.split(",")
        failures = 0
        print(
            f"| work | tool | seconds | lowest | highest | CPU s | MiB/s | peak MiB |\n|{' --- |' * 8}"
        )
        for work in wanted:
            source, target, size = self._trees(work)
            samples: dict[str, list[Sample]] = {tool: [] for tool in tools}
            for turn in range(self._options.runs):
                shift = turn % len(tools)
                for tool in tools[shift:] + tools[:shift]:
                    argv = self._command(tool, work, source, target)
                    if argv is None:
                        continue
                    if work != "noop":
                        shutil.rmtree(target, ignore_errors=True)
                        target.mkdir()
                    try:
                        command = Command(tool, tuple(argv), self._environment)
                        samples[tool].append(run(command, timeout_s=self._options.timeout))
                        self._check(work, source, target)
                    except RunFailed as exc:
                        failures += 1
                        print(f"{work}, {tool}: {exc}", file=sys.stderr)
            for tool, some in samples.items():
                if some:
                    _show(work, tool, some, size)
            shutil.rmtree(self._scratch / "trees")
        return 1 if failures else 0

    def _trees(self, work: str) -> tuple[Path, Path, int]:
        source, target = self._scratch / "trees/source", self._scratch / "trees/target"
        source.mkdir(parents=True)
        target.mkdir()
        options = self._options
        if work in ("up", "down"):
            with (source / "big").open("wb") as file:
                for _ in range(options.size >> 20):
                    file.write(os.urandom(1 << 20))
            return source, target, options.size
        files = options.files * (5 if work == "noop" else 1)
        noise = os.urandom(1 << 20)
        for number in range(files):
            folder = source / f"{number // 200:04}"
            folder.mkdir(exist_ok=True)
            start = number % (len(noise) - 4096)
            (folder / f"{number:06}").write_bytes(noise[start : start + 4096])
        if work == "noop":
            subprocess.run(["cp", "-a", f"{source}/.", target], check=True)
        return source, target, files * 4096

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
        argv = makers.get(tool, self._fastsync)(tool, work, source, target)
        if argv is None:
            return None
        path = shutil.which(argv[0])
        return None if path is None else [path, *argv[1:]]

    def _fastsync(self, tool: str, work: str, source: Path, target: Path) -> Sequence[str]:
        at = self._scratch
        url = f"sftp://{getpass.getuser()}@{self._host}:{self._port}"
        transport = "auto" if tool == "fastsync" else tool
        argv = [default_fastsync(), "cp" if work in ("up", "down") else "sync"]
        argv += ["--identity", str(at / "id"), "--known-hosts", str(at / "known")]
        argv += ["--ssh-transport", transport, *shlex.split(self._options.options)]
        if work in ("up", "down"):
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


def _show(work: str, tool: str, samples: list[Sample], size: int) -> None:
    seconds = [sample.seconds for sample in samples]
    middle = median(seconds)
    cpu = median(sample.user_s + sample.system_s for sample in samples)
    peak = max((sample.peak_rss or 0 for sample in samples), default=0)
    rate = "" if work == "noop" else f"{size / middle / (1 << 20):.1f}"
    print(
        f"| {work} | {tool} | {middle:.2f} | {min(seconds):.2f} | {max(seconds):.2f} | {cpu:.2f} "
        f"| {rate} | {peak >> 20 or ''} |",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
