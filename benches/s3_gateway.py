"""The S3 servers of the bench: started on a folder of ours, reached with keys of ours, and watched.

versitygw, else rclone serve s3. Both keep an object as a file, so that a bucket is filled and looked at
without a client.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ACCESS_KEY = "AKIAFASTSYNCBENCH"
SECRET_KEY = "a-secret-of-the-bench-alone"
REGION = "us-east-1"
BUCKET = "bench"
_TICKS = os.sysconf("SC_CLK_TCK")
_START_S = 20
_DAY_S = 86_400


class NoGateway(Exception):
    """A server cannot be had; the text says why."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """A server that runs. `environment` leads every tool to it, rclone by the name ``place:``."""

    name: str
    endpoint: str
    pid: int
    bucket: Path
    environment: Mapping[str, str]
    authority: Path | None

    @property
    def tls(self) -> bool:
        return self.authority is not None

    def cpu_s(self) -> float:
        """CPU seconds that it has taken so far (proc_pid_stat(5))."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def adopt(self, root: Path) -> None:
        """Have every file below a folder of the bucket be an object as if our own tool had sent it.

        What the file system alone tells lacks an ETag and the time of the source; versitygw keeps both in
        attributes. rclone serve makes the ETag itself and takes the file's time.
        """
        if self.name != "versitygw":
            return
        for directory, _directories, files in os.walk(root):
            for name in files:
                path = os.path.join(directory, name)
                status = os.stat(path)
                seconds, nanoseconds = divmod(status.st_mtime_ns, 1_000_000_000)
                mtime = f"{seconds}.{nanoseconds:09}" if nanoseconds else str(seconds)
                os.setxattr(path, "user.etag", f'"{_md5(path, status.st_size)}"'.encode())
                os.setxattr(path, "user.metadata", json.dumps({"mtime": mtime}).encode())
                # An object is younger than its source, or s5cmd sends it once more.
                os.utime(path, (seconds + _DAY_S, seconds + _DAY_S))


@contextlib.contextmanager
def gateway(name: str, program: str, folder: Path, *, tls: bool) -> Iterator[Gateway]:
    """Start a server with one empty bucket. Raises `NoGateway` if it does not start."""
    buckets = folder / "buckets"
    (buckets / BUCKET).mkdir(parents=True, exist_ok=True)
    files = _certificate(folder) if tls else None
    if name == "versitygw":
        command = [program, "--port", "127.0.0.1:0", "--region", REGION, "--keep-alive", "--quiet"]
        command += ["--access", ACCESS_KEY, "--secret", SECRET_KEY]
    else:
        command = [program, "serve", "s3", "--addr", "127.0.0.1:0", "--config", ""]
        command += ["--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--disable-multipart-streaming"]
        command += ["--dir-cache-time", "1ms"]  # files come and go without it; with 0 it hangs
    if files is not None:
        command += ["--cert", str(files[0]), "--key", str(files[1])]
    command += ["posix", str(buckets)] if name == "versitygw" else [str(buckets)]
    scheme = "https" if tls else "http"
    with _running(command, folder / "gateway.log") as (pid, port):
        endpoint = f"{scheme}://127.0.0.1:{port}"
        authority = files[0] if files is not None else None
        environment = _environment(endpoint, authority)
        yield Gateway(name, endpoint, pid, buckets / BUCKET, environment, authority)


def _environment(endpoint: str, authority: Path | None) -> dict[str, str]:
    environment = {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "S3_ENDPOINT_URL": endpoint,
        "RCLONE_CONFIG_PLACE_TYPE": "s3",
        "RCLONE_CONFIG_PLACE_PROVIDER": "Other",
        "RCLONE_CONFIG_PLACE_ENDPOINT": endpoint,
        "RCLONE_CONFIG_PLACE_REGION": REGION,
        "RCLONE_CONFIG_PLACE_ENV_AUTH": "true",
    }
    if authority is not None:
        environment |= dict.fromkeys(("AWS_CA_BUNDLE", "SSL_CERT_FILE"), str(authority))
    return environment


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate that vouches for itself, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        raise NoGateway("there is no openssl to make a certificate with")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    names = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    files = ("-keyout", str(key), "-out", str(certificate))
    command = [openssl, "req", "-x509", *kind, *names, *files]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


@contextlib.contextmanager
def _running(command: list[str], log: Path) -> Iterator[tuple[int, int]]:
    """Its process and port, which is the system's choice and which /proc tells."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        port = _awaited(lambda: _listens_on(process.pid), lambda: process.poll() is not None)
        if port is None:
            said = log.read_text(errors="backslashreplace")[-500:]
            raise NoGateway(f"{command[0]} did not start: {said}")
        yield process.pid, port
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _awaited(find: Callable[[], int | None], ended: Callable[[], bool]) -> int | None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and not ended():
        if (found := find()) is not None:
            return found
        time.sleep(0.02)
    return None


def _listens_on(pid: int) -> int | None:
    """The TCP port of a process (proc_pid_net(5)); None while it has none."""
    held = set()
    for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            held.update(re.findall(r"^socket:\[(\d+)\]$", os.readlink(descriptor)))
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        columns = line.split()
        if columns[3] == "0A" and columns[9] in held:
            return int(columns[1].rpartition(":")[2], 16)
    return None


def _md5(path: str, size: int) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    if size:
        with open(path, "rb") as file:
            while data := file.read(1 << 20):
                digest.update(data)
    return digest.hexdigest()
