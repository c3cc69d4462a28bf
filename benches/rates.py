"""How well --bwlimit holds, for every protocol: what passes a relay between fastsync and a server of this
machine (versitygw for S3 and, by signed links, for HTTP; sshd), second by second.

Exit code: 0 every rate is within 5 % over the time from the first byte to the last, 1 not so, 2 usage.
"""

import argparse
import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from peers import default_fastsync, quiet_environment
from report import say
from s3 import find_gateway
from s3_gateway import BUCKET, NoGateway, gateway

_OFF = 0.05  # what a rate may be off by


class Relay:
    """Passes bytes on to a port of this machine, and remembers when they came."""

    def __init__(self, port: int) -> None:
        self.up: list[tuple[float, int]] = []
        self.down: list[tuple[float, int]] = []
        self._onward = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            here, _ = self._listener.accept()
            there = socket.create_connection(("127.0.0.1", self._onward))
            for one, other, log in ((here, there, self.up), (there, here, self.down)):
                threading.Thread(target=self._pump, args=(one, other, log), daemon=True).start()

    def _pump(
        self, here: socket.socket, there: socket.socket, log: list[tuple[float, int]]
    ) -> None:
        with suppress(OSError):
            while data := here.recv(1 << 16):
                log.append((time.monotonic(), len(data)))
                there.sendall(data)
            there.shutdown(socket.SHUT_WR)


class Rates:
    """One file and twenty, at one rate."""

    def __init__(self, options: Namespace, scratch: Path, environment: dict[str, str]) -> None:
        self.environment = environment
        self.scratch = scratch
        self.failed = False
        self._options = options
        size = int(options.rate * options.seconds)
        (scratch / "one").mkdir()
        (scratch / "one/file").write_bytes(os.urandom(size))
        (scratch / "many").mkdir()
        for number in range(20):
            (scratch / f"many/{number:02}").write_bytes(os.urandom(size // 20))

    def measure(self, name: str, arguments: list[str], log: list[tuple[float, int]]) -> None:
        """Copy, and tell how fast the bytes of the copy came."""
        log.clear()
        limit = f"{int(self._options.rate)}B"
        command = [self._options.fastsync, "cp", "-q", "-R", "--bwlimit", limit, *arguments]
        done = subprocess.run(command, env=self.environment, check=False, timeout=600)
        came = sorted(log)
        first = next(at for at, length in came if length > 4096)
        seconds = [0] * (int(came[-1][0] - first) + 1)
        for at, length in came:
            if at >= first:
                seconds[int(at - first)] += length
        whole = seconds[1 : int(self._options.seconds) - 1]
        rate = sum(whole) / len(whole) / self._options.rate
        self.failed = self.failed or done.returncode != 0 or abs(rate - 1) > _OFF
        shown = " ".join(f"{each / self._options.rate:.2f}" for each in seconds)
        print(f"| {name} | {rate:.3f} | {shown} |", flush=True)


@contextmanager
def _sshd(at: Path) -> Iterator[Relay]:
    """A server, and the relay that its clients find by the name ``bench`` in ``ssh_config``."""
    for name in ("host", "id"):
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(at / name)]
        subprocess.run(keygen, check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (at / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {at / 'host'}\nStrictModes no\nUsePAM no\n"
        f"AuthorizedKeysFile {at / 'id.pub'}\nPidFile {at / 'pid'}\nPermitRootLogin yes\n"
        "Subsystem sftp internal-sftp\n"
    )
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if sshd is None:
        raise NoGateway("no sshd is installed")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with (at / "log").open("wb") as log:
        server = subprocess.Popen(
            [sshd, "-D", "-e", "-f", at / "sshd_config"], stdout=log, stderr=log
        )
    try:
        while not (at / "pid").exists():
            if server.poll() is not None:
                raise NoGateway(f"sshd did not start: {(at / 'log').read_text()}")
            time.sleep(0.05)
        relay = Relay(port)
        (at / "known").write_text(f"[127.0.0.1]:{relay.port} {(at / 'host.pub').read_text()}")
        (at / "ssh_config").write_text(
            f"Host bench\n HostName 127.0.0.1\n Port {relay.port}\n User {getpass.getuser()}\n"
            f" IdentityFile {at / 'id'}\n IdentitiesOnly yes\n UserKnownHostsFile {at / 'known'}\n"
        )
        yield relay
    finally:
        server.terminate()
        server.wait()


def _s3(rates: Rates) -> None:
    folder = rates.scratch / "gateway"
    folder.mkdir()
    with gateway(*find_gateway("versitygw"), folder, tls=False) as running:
        relay = Relay(int(running.endpoint.rpartition(":")[2]))
        address = f"http://127.0.0.1:{relay.port}"
        rates.environment |= {**running.environment, "AWS_ENDPOINT_URL_S3": address}
        for what in ("one", "many"):
            place, here = f"s3://{BUCKET}/{what}/", f"{rates.scratch / what}/"
            rates.measure(f"S3 up, {what}", [here, place], relay.up)
            rates.measure(f"S3 down, {what}", [place, f"{rates.scratch}/s3-{what}"], relay.down)
        signing = [default_fastsync(), "presign", f"s3://{BUCKET}/one/file"]
        link = subprocess.run(
            signing, env=rates.environment, check=True, capture_output=True, text=True
        ).stdout.strip()
        rates.measure("HTTP, one", [link, f"{rates.scratch}/http"], relay.down)


def _sftp(rates: Rates) -> None:
    folder = rates.scratch / "sshd"
    folder.mkdir()
    with _sshd(folder) as relay:
        options = ["--ssh-config", str(folder / "ssh_config")]
        for what in ("one", "many"):
            place, here = f"sftp://bench{folder}/{what}", f"{rates.scratch / what}/"
            rates.measure(f"SFTP up, {what}", [*options, here, place], relay.up)
            target = f"{rates.scratch}/sftp-{what}"
            rates.measure(f"SFTP down, {what}", [*options, f"{place}/", target], relay.down)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rate", type=float, default=2e6, help="bytes per second (default: 2 MB)")
    parser.add_argument("--seconds", type=float, default=12, help="of each copy (default: 12)")
    parser.add_argument("--fastsync", default=default_fastsync(), metavar="PATH")
    options = parser.parse_args()
    base = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="fastsync-bench-", dir=base) as scratch:
        rates = Rates(options, Path(scratch), {**quiet_environment(Path(scratch)), "HOME": scratch})
        print("| copy | of the rate asked for | each second |\n| --- | --- | --- |")
        try:
            _s3(rates)
            _sftp(rates)
        except NoGateway as exc:
            say(str(exc))
            return 2
    return int(rates.failed)


if __name__ == "__main__":
    sys.exit(main())
