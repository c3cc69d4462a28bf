"""fastsync beside curl, wget, aria2c and rclone on a web server: one big file, many small ones, a stream.

Starts nginx, plain and with TLS, on the loopback or, with --linkem, at the far end of an emulated link
(needs root). Tools take turns; medians are shown, process start included. Exit code: 0 all went well and
every required goal is met, 1 not so, 2 usage.

The name is not http.py, which would hide the standard library's module from every bench.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from arguments import end_in_order
from measure import Command, Contender, Measurement, RunFailed, WrongResult, interleave
from peers import Tool, default_fastsync, default_rclone, identify, quiet_environment
from places import NoPlace, Place, place
from report import Goal, Report, Result, say

TOOLS = ("fastsync", "curl", "wget", "aria2c", "rclone")
WORKS = ("big", "cat", "small", "memory")
PLACES = ("plain", "tls")
_GIB = 1 << 30
_SMALL = 10_000
_MANY = ("--transfers", "32", "--checkers", "32")
# A reader so slow that a `cat` of 2 GiB is bounded by it for as long as it is looked at.
_SLOW_S = 6.0
_THEN = 1_600_000_000


def main() -> int:
    options = _options()
    if options.linkem and "LINKEM_FAR" not in os.environ:
        link = [*shlex.split(options.linkem), "--", sys.executable, *sys.argv]
        return subprocess.run(link, check=False).returncode
    end_in_order()
    os.umask(0o022)
    try:
        with tempfile.TemporaryDirectory(prefix="fastsync-bench-") as scratch:
            environment = quiet_environment(Path(scratch)) | {"HOME": scratch}
            with place("tmpfs", Path()) as at:
                report = _Bench(options, environment, at).measure()
    except KeyboardInterrupt:
        say("interrupted; everything made so far is removed")
        return 130
    except NoPlace as exc:
        say(str(exc))
        return 2
    print(report.markdown())
    if options.json is not None:
        report.write_json(options.json)
    return 1 if report.failures or (report.missed and options.scale == 1) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--works", default="big,cat,small,memory", help=f"of {', '.join(WORKS)} (default: all)")
    add("--places", default="plain,tls", help="of plain, tls (default: both)")
    add("--tools", default=",".join(TOOLS), help="default: all that are installed")
    add("--rounds", type=int, default=5, metavar="N", help="timed runs (default: 5)")
    add("--scale", type=float, default=1.0, metavar="F", help="works F times as big (default: 1)")
    add("--options", default="-p 16", metavar="TEXT", help="of fastsync (default: -p 16)")
    add("--timeout", type=float, default=600, metavar="S", help="for one run (default: 600)")
    add("--json", type=Path, metavar="FILE", help="write all figures there too")
    add("--linkem", help="run over a link: its command, like 'linkem --rate 1gbit --rtt 100ms'")
    parsed = parser.parse_args()
    for given, known in ((parsed.works, WORKS), (parsed.places, PLACES), (parsed.tools, TOOLS)):
        for name in given.split(","):
            if name not in known:
                parser.error(f"{name!r} is none of {', '.join(known)}")
    return parsed


class _Bench:
    """The server, its trees, and what every tool runs for every work."""

    def __init__(
        self, options: argparse.Namespace, environment: Mapping[str, str], at: Place
    ) -> None:
        self._options = options
        self._at = at
        self._environment = dict(environment)
        self._host = os.environ.get("LINKEM_FAR", "127.0.0.1")
        self._far = shlex.split(os.environ.get("LINKEM_FAR_EXEC", ""))
        self._root = at.root / "root"
        self._target = at.root / "target"
        self._authority = at.root / "cert.pem"
        self._big = max(1 << 20, int(_GIB * options.scale))
        self._files = max(1, int(5000 * options.scale))
        settings = {
            "runs": options.rounds,
            "scale": f"{options.scale:g}",
            "options of fastsync": options.options,
            "link": options.linkem or "loopback",
        }
        self._tools, missing = _find_tools(options.tools.split(","), environment)
        self._report = Report(
            "fastsync on the web", settings, list(self._tools.values()), TOOLS[1:]
        )
        self._report.notes += missing

    def measure(self) -> Report:
        works = self._options.works.split(",")
        self._root.mkdir()
        if {"big", "cat", "memory"} & {*works}:
            self._at.require(2 * self._big, 0)
            with (self._root / "big").open("wb") as file:
                for _ in range(self._big >> 20):
                    file.write(random.randbytes(1 << 20))
            os.utime(self._root / "big", (_THEN, _THEN))
        if "small" in works:
            self._make_small()
        with self._nginx() as urls:
            for name in self._options.places.split(","):
                for work in works:
                    if work in ("small", "memory") and name == "tls":
                        continue  # what TLS makes dearer are bytes
                    result = getattr(self, f"_{work}_work")(name, urls[name])
                    self._report.results.append(result)
        return self._report

    def _make_small(self) -> None:
        noise = random.randbytes(1 << 20)
        (self._root / "small").mkdir()
        for number in range(self._files):
            start = number % (len(noise) - _SMALL)
            path = self._root / f"small/{number:06}.bin"
            path.write_bytes(noise[start : start + _SMALL])
            os.utime(path, (_THEN, _THEN))

    # -- the server ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _nginx(self) -> Iterator[dict[str, str]]:
        """nginx on two free ports, with a worker per processor; the URLs by their place."""
        program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
        if program is None:
            raise NoPlace("nginx is not found; apt-get install nginx")
        run, ports = self._at.root / "run", (_free_port(), _free_port())
        run.mkdir()
        key = self._at.root / "key.pem"
        _make_certificate(self._host, self._authority, key)
        self._environment["SSL_CERT_FILE"] = str(self._authority)
        temporary = "".join(
            f"{name}_temp_path {run}/{name};"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        user = "user root;" if os.geteuid() == 0 else ""
        (run / "conf").write_text(
            f"""daemon off; worker_processes auto; pid {run}/pid; {user}
            events {{ worker_connections 512; }}
            http {{ access_log off; sendfile on; tcp_nopush on; {temporary}
              keepalive_requests 100000; default_type application/octet-stream; autoindex on;
              ssl_certificate {self._authority}; ssl_certificate_key {key}; root {self._root};
              server {{ listen {self._host}:{ports[0]}; }}
              server {{ listen {self._host}:{ports[1]} ssl; }} }}"""
        )
        argv = [*self._far, program, "-c", str(run / "conf"), "-e", str(run / "log")]
        server = subprocess.Popen(argv)
        try:
            deadline = time.monotonic() + 20
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection((self._host, ports[1]), 1).close()
                    break
                if server.poll() is not None or time.monotonic() > deadline:
                    raise NoPlace(f"nginx does not start: {(run / 'log').read_text()}")
                time.sleep(0.05)
            yield {
                "plain": f"http://{self._host}:{ports[0]}",
                "tls": f"https://{self._host}:{ports[1]}",
            }
        finally:
            server.terminate()
            server.wait()

    # -- works -----------------------------------------------------------------------------------------

    def _race(
        self, commands: Mapping[str, Sequence[str] | None], check: Callable[[], None]
    ) -> list[Measurement]:
        def prepare() -> None:
            shutil.rmtree(self._target, ignore_errors=True)
            self._target.mkdir()

        contenders = [
            Contender(
                Command(name, (self._tools[name].path, *argv), self._environment), prepare, check
            )
            for name, argv in commands.items()
            if argv is not None and name in self._tools
        ]
        try:
            return interleave(
                contenders,
                runs=self._options.rounds,
                timeout_s=self._options.timeout,
                settle=self._at.settle,
                say=say,
            )
        finally:
            shutil.rmtree(self._target, ignore_errors=True)

    def _big_work(self, name: str, url: str) -> Result:
        say(f"big, {name}")
        source, target, trust = f"{url}/big", f"{self._target}/big", str(self._authority)
        more = shlex.split(self._options.options)

        def check() -> None:
            if not _same(self._root / "big", self._target / "big"):
                raise WrongResult("the copy is not like the source")

        found = self._race(
            {
                "fastsync": ["cp", "-q", *more, source, target],
                "curl": ["-sSf", "--cacert", trust, "-o", target, source],
                "wget": ["-q", f"--ca-certificate={trust}", "-O", target, source],
                "aria2c": [
                    *("-q", "-x16", "-s16", "-k1M", "--file-allocation=none"),
                    *(f"--ca-certificate={trust}", "-d", str(self._target), "-o", "big", source),
                ],
                "rclone": ["copyurl", source, target],
            },
            check,
        )
        result = Result("big", name, 1, self._big, found, [])
        best = _least(result, ("curl", "aria2c"))
        if self._far:
            ours = result.measurement("fastsync")
            rate = None if ours is None else self._big * 8 / ours.seconds / 1e6
            result.goals += [
                Goal(
                    "fastsync",
                    "x the time of aria2c",
                    1.0,
                    None,
                    result.ratio("fastsync", "aria2c"),
                ),
                Goal(
                    "fastsync",
                    "s per Gbit",
                    1 / 0.9,
                    1 / 0.95,
                    None if rate is None else 1000 / rate,
                ),
            ]
            return result
        aim = 1 / 1.5 if name == "plain" else None
        result.goals.append(
            Goal("fastsync", "x the better of curl and aria2c", 1 / 0.95, aim, _over(result, best))
        )
        ours, curl = result.measurement("fastsync"), result.measurement("curl")
        if ours and curl:
            goal = Goal("fastsync", "x the CPU of curl", None, 1.0, ours.cpu_s / curl.cpu_s)
            result.goals.append(goal)
        return result

    def _cat_work(self, name: str, url: str) -> Result:
        say(f"cat, {name}")
        source, trust = f"{url}/big", str(self._authority)
        found = self._race(
            {
                "fastsync": ["cat", "-q", "-c", "16", source],
                "curl": ["-sSf", "--cacert", trust, source],
                "wget": ["-q", f"--ca-certificate={trust}", "-O", "-", source],
                "rclone": ["copyurl", "--stdout", source],
            },
            lambda: None,
        )
        result = Result("cat", name, 1, self._big, found, [])
        ratio = result.ratio("fastsync", "curl")
        result.goals.append(Goal("fastsync", "x the time of curl", 1.0, 1 / 1.5, ratio))
        return result

    def _small_work(self, name: str, url: str) -> Result:
        say(f"small, {name}")
        more = shlex.split(self._options.options)
        quiet = ["-q", "-r", "-np", "-nH", "--cut-dirs=1", "-R", "index.html*", "-P"]

        def check() -> None:
            for path in (self._root / "small").iterdir():
                if not _same(path, self._target / path.name):
                    raise WrongResult(f"{path.name} is not like the source")

        found = self._race(
            {
                "fastsync": ["sync", "-q", *more, f"{url}/small/", str(self._target)],
                "wget": [*quiet, str(self._target), f"{url}/small/"],
                "rclone": [
                    *("copy", "--http-url", f"{url}/small/", *_MANY),
                    *(":http:", str(self._target)),
                ],
            },
            check,
        )
        result = Result("small", name, self._files, self._files * _SMALL, found, [])
        for peer, must in (("wget", 1 / 2), ("rclone", 1 / 1.5)):
            unit = f"x the time of {peer}"
            aim = 1 / 4 if peer == "wget" else None
            result.goals.append(Goal("fastsync", unit, must, aim, result.ratio("fastsync", peer)))
        return result

    def _memory_work(self, name: str, url: str) -> Result:
        """The most memory of a `cat` that is read a MiB at a time, with pauses."""
        say(f"memory, {name}")
        result = Result("memory", name, 1, self._big, [], [])
        if "fastsync" not in self._tools:
            return result
        argv = [self._tools["fastsync"].path, "cat", "-c", "4", "--chunk-size", "1M"]
        argv += [f"{url}/big", f"{url}/big"]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, env=self._environment)
        assert process.stdout is not None
        stop = threading.Timer(_SLOW_S, process.terminate)
        stop.start()
        peak = 0
        try:
            while process.stdout.read(1 << 20):
                time.sleep(0.005)
                peak = max(peak, _peak_rss(process.pid))
        finally:
            stop.cancel()
            process.kill()
            process.wait()
        result.goals.append(Goal("fastsync", "peak RSS MB", 80.0, 60.0, peak / 1e6 or None))
        return result


def _find_tools(
    names: Sequence[str], environment: Mapping[str, str]
) -> tuple[dict[str, Tool], list[str]]:
    """The tools that there are, and what to say of the others."""
    tools, missing = {}, []
    for name in names:
        path = {"fastsync": default_fastsync(), "rclone": default_rclone()}.get(name, name)
        found = shutil.which(path)
        if found is None:
            missing.append(f"{name} is not found and left out; benches/README.md tells how")
            say(missing[-1])
        else:
            tools[name] = identify(name, os.path.abspath(found), environment)
    return tools, missing


def _least(result: Result, peers: Sequence[str]) -> float | None:
    times = [m.seconds for peer in peers if (m := result.measurement(peer)) is not None]
    return min(times, default=None)


def _over(result: Result, best: float | None) -> float | None:
    ours = result.measurement("fastsync")
    return None if ours is None or best is None else ours.seconds / best


def _same(one: Path, other: Path) -> bool:
    """Compare two files, a block at a time."""
    try:
        with one.open("rb") as first, other.open("rb") as second:
            while block := first.read(1 << 20):
                if second.read(len(block)) != block:
                    return False
            return not second.read(1)
    except OSError:
        return False


def _peak_rss(pid: int) -> int:
    """In bytes; 0 once the process is a zombie."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _make_certificate(host: str, certificate: Path, key: Path) -> None:
    """One that vouches for itself, by openssl. Raises RunFailed."""
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    argv += ["-nodes", "-days", "2", "-subj", f"/CN={host}", "-addext"]
    argv += [f"subjectAltName=IP:{host}", "-keyout", str(key), "-out", str(certificate)]
    try:
        done = subprocess.run(argv, check=False, capture_output=True, text=True)
    except OSError as exc:
        raise RunFailed("openssl is not found") from exc
    if done.returncode:
        raise RunFailed(f"openssl makes no certificate: {done.stderr}")


if __name__ == "__main__":
    sys.exit(main())
