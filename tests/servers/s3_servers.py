"""Real S3 servers as processes of their own, each on a port of the loopback that the system picks.

`running_moto` has conditional writes, versions and UploadPartCopy; `running_rclone` and `running_versitygw`
check signatures, and keep a bucket as a folder of `S3Server.root`. All end with the block they are used in.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ACCESS_KEY = "AKIAFASTSYNCTEST"
SECRET_KEY = "a-secret-of-the-tests-alone"
REGION = "us-east-1"
_START_S = 20.0


class Certificate(NamedTuple):
    """Files in PEM: a certificate for 127.0.0.1 and localhost, its key, and who vouches for it."""

    certificate: Path
    key: Path
    authority: Path


@dataclass(frozen=True)
class S3Server:
    """Where a server is, and what opens it. `root` is the folder of its buckets, if it has one."""

    endpoint: str
    pid: int | None = None
    root: Path | None = None
    authority: Path | None = None
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY
    _names: Iterator[int] = field(default_factory=lambda: count(1), repr=False)

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])

    @property
    def environ(self) -> dict[str, str]:
        """What leads a command here: ours, aws and s5cmd, and rclone by the name ``place:``.

        It names no other source of credentials; a HOME without ~/.aws is the caller's to give.
        """
        environ = {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
            "S3_ENDPOINT_URL": self.endpoint,
            "RCLONE_CONFIG": "",
            "RCLONE_CONFIG_PLACE_TYPE": "s3",
            "RCLONE_CONFIG_PLACE_PROVIDER": "Other",
            "RCLONE_CONFIG_PLACE_ENDPOINT": self.endpoint,
            "RCLONE_CONFIG_PLACE_REGION": REGION,
            "RCLONE_CONFIG_PLACE_ACCESS_KEY_ID": self.access_key,
            "RCLONE_CONFIG_PLACE_SECRET_ACCESS_KEY": self.secret_key,
        }
        if self.authority is not None:
            environ |= dict.fromkeys(("AWS_CA_BUNDLE", "SSL_CERT_FILE"), str(self.authority))
        return environ

    @cached_property
    def client(self) -> Any:
        """A client of botocore's, the independent witness; calls are tried once."""
        import botocore.config  # type: ignore[import-untyped]
        import botocore.session  # type: ignore[import-untyped]

        session = botocore.session.Session()
        session.set_config_variable("config_file", os.devnull)
        return session.create_client(
            "s3",
            region_name=REGION,
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            verify=None if self.authority is None else str(self.authority),
            config=botocore.config.Config(
                retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}
            ),
        )

    def new_bucket(self) -> str:
        """Make an empty bucket that nobody else has, and return its name."""
        name = f"bucket-{next(self._names)}"
        self.client.create_bucket(Bucket=name)
        return name

    def keys(self, bucket: str) -> list[str]:
        """All keys of a bucket, in the server's order."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [row["Key"] for page in pages for row in page.get("Contents", [])]


def find(program: str) -> str | None:
    """A program of this environment, of PATH or of Go, in this order."""
    go = Path(os.environ.get("GOPATH") or Path.home() / "go") / "bin"
    folders = (Path(sys.executable).parent, *os.get_exec_path(), go)
    return shutil.which(program, path=os.pathsep.join(map(str, folders)))


def certificate(folder: Path) -> Certificate:
    """Make a certificate authority for the tests, and a certificate by it."""
    import trustme

    made = Certificate(folder / "cert.pem", folder / "key.pem", folder / "authority.pem")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    issued.private_key_pem.write_to_path(str(made.key))
    for index, pem in enumerate(issued.cert_chain_pems):
        pem.write_to_path(str(made.certificate), append=index > 0)
    authority.cert_pem.write_to_path(str(made.authority))
    return made


@contextlib.contextmanager
def running_moto(folder: Path) -> Iterator[S3Server]:
    """moto's server, empty; it takes any signature. `reset_moto` empties it again."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    printed = _printed(r"Running on http://127\.0\.0\.1:(\d+)")
    with _running(command, folder / "moto.log", printed) as (pid, port):
        yield S3Server(f"http://127.0.0.1:{port}", pid)


def reset_moto(server: S3Server) -> None:
    """Have no buckets, as at the start."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    with contextlib.closing(connection):
        connection.request("POST", "/moto-api/reset", headers={"Content-Length": "0"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.reason


@contextlib.contextmanager
def running_rclone(folder: Path, tls: Certificate | None = None) -> Iterator[S3Server]:
    """``rclone serve s3`` on a folder."""
    root = folder / "rclone"
    root.mkdir()
    command = [
        find("rclone") or pytest.skip("rclone is not installed"),
        *("serve", "s3", "--addr", "127.0.0.1:0", "--config", ""),
        *("--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--disable-multipart-streaming"),
        # What is written to a folder by hand shows at once; with none at all, parallel uploads hang.
        *("--dir-cache-time", "1ms"),
    ]
    if tls is not None:
        command += ["--cert", str(tls.certificate), "--key", str(tls.key)]
    printed = _printed(r"Starting s3 server on \[https?://127\.0\.0\.1:(\d+)/\]")
    with _running([*command, str(root)], folder / "rclone.log", printed) as (pid, port):
        yield _at(port, pid, root, tls)


@contextlib.contextmanager
def running_versitygw(
    folder: Path, tls: Certificate | None = None, *, versions: bool = False
) -> Iterator[S3Server]:
    """``versitygw posix`` on a folder; with `versions`, buckets can be given versioning."""
    program = find("versitygw")
    if program is None:
        pytest.skip("versitygw is not installed: scripts/install-test-servers does it")
    if not sys.platform.startswith("linux"):
        pytest.skip("which port versitygw got is told by /proc alone")
    root = folder / "versitygw"
    root.mkdir()
    options = ["--port", "127.0.0.1:0", "--region", REGION, "--keep-alive", "--quiet"]
    options += ["--access", ACCESS_KEY, "--secret", SECRET_KEY]
    if tls is not None:
        options += ["--cert", str(tls.certificate), "--key", str(tls.key)]
    backend = ["posix"]
    if versions:
        (folder / "versions").mkdir()
        backend += ["--versioning-dir", str(folder / "versions")]
    if not _has_attributes(root):
        (folder / "attributes").mkdir()
        backend += ["--sidecar", str(folder / "attributes")]
    command = [program, *options, *backend, str(root)]
    with _running(command, folder / "versitygw.log", _listened_to) as (pid, port):
        yield _at(port, pid, root, tls)


def _at(port: int, pid: int, root: Path, tls: Certificate | None) -> S3Server:
    if tls is None:
        return S3Server(f"http://127.0.0.1:{port}", pid, root)
    return S3Server(f"https://127.0.0.1:{port}", pid, root, tls.authority)


@contextlib.contextmanager
def _running(
    command: Sequence[str], log: Path, port_of: Callable[[int, Path], int | None]
) -> Iterator[tuple[int, int]]:
    """Its process and port, once it says which."""
    # Its settings are the command line's alone.
    personal = ("AWS_", "RCLONE_", "VGW_", "MOTO_", "PYTHON")
    environ = {name: text for name, text in os.environ.items() if not name.startswith(personal)}
    # A test run that is killed has no time to end its servers.
    setpriv = shutil.which("setpriv")
    within = [] if setpriv is None else [setpriv, "--pdeathsig", "TERM", "--"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*within, *command],
            env={**environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + _START_S
        while (port := port_of(process.pid, log)) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace")
                raise RuntimeError(f"{Path(command[0]).name} did not start: {said}")
            time.sleep(0.01)
        yield process.pid, port
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _printed(pattern: str) -> Callable[[int, Path], int | None]:
    def port_of(_pid: int, log: Path) -> int | None:
        found = re.search(pattern, log.read_text(errors="replace"))
        return int(found[1]) if found else None

    return port_of


def _listened_to(pid: int, _log: Path) -> int | None:
    """The TCP port that a process listens on (proc_pid_net(5)); for a server that does not tell."""
    held = set()
    for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):  # closed meanwhile
            held.add(os.readlink(descriptor))
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        columns = line.split()
        if columns[3] == "0A" and f"socket:[{columns[9]}]" in held:
            return int(columns[1].rpartition(":")[2], 16)
    return None


def _has_attributes(folder: Path) -> bool:
    try:
        os.setxattr(folder, "user.fastsync", b"1")
        os.removexattr(folder, "user.fastsync")
    except OSError:
        return False
    return True
