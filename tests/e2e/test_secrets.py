"""Secrets: planted as password, key, token, header and query, they come out nowhere.

Every verb runs with all there is to be told, against servers that answer, refuse, quote what they were sent,
or are not there; then everything that was written is searched.
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from hostile_s3 import HostileS3, no_answer, refuse
from http_exchange import Request, Response
from s3_objects import error
from sshd import free_port

if TYPE_CHECKING:
    from tests.conftest import Fastsync, Plant

PASSWORD = "CANARY-pass/word+1"
KEY = "CANARY-secret-access-key"
TOKEN = "CANARY-session-token"
BEARER = "CANARY-bearer-token"
HEADER = "CANARY-header-value"
QUERY = "CANARY-query-signature"
PLACED = "CANARY-key-of-a-place"
NETRC = "CANARY-netrc-password"
TELL_ALL = ("-vv", "--json", "--log-file", "log", "--log-level", "debug")


class Searched:
    """Runs the command and searches what it leaves."""

    def __init__(self, fastsync: Fastsync) -> None:
        self._fastsync = fastsync
        self.codes: dict[str, int] = {}

    def __call__(self, *arguments: str | Path, may_print: str = "", **env: str) -> str:
        done = self._fastsync(*arguments, env={"FASTSYNC_TRACEBACK": "1", **env})
        self.codes[str(arguments[0])] = done.code
        shown = "\n".join(done[1:])
        self.search(shown.replace(may_print, "") if may_print else shown)
        log = self._fastsync.cwd / "log"
        if log.exists():
            self.search(log.read_text(errors="surrogateescape"))
            log.unlink()
        return shown

    def search(self, text: str) -> None:
        assert "CANARY" not in text
        assert quote(PASSWORD, safe="") not in text
        for secret in (f"me:{PASSWORD}", PASSWORD, KEY, TOKEN, BEARER, NETRC):
            assert base64.b64encode(secret.encode()).decode()[:-4] not in text

    def state(self, *places: Path) -> None:
        """What runs keep: journal, records of servers, whatever there is."""
        for place in places:
            for path in place.rglob("*"):
                if path.is_file() and path.name not in ("config.toml", "headers", ".netrc"):
                    self.search(path.read_bytes().decode("latin-1"))


@pytest.fixture
def searched(fastsync: Fastsync, tmp_path: Path) -> Iterator[Searched]:
    fastsync.environ |= {
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": KEY,
        "AWS_SESSION_TOKEN": TOKEN,
        "AWS_DEFAULT_REGION": "us-east-1",
        "FASTSYNC_RETRY_COUNT": "0",
        "XDG_STATE_HOME": str(tmp_path / "home/state"),
    }
    search = Searched(fastsync)
    yield search
    search.state(tmp_path)


def quoting(request: Request, _honest: object) -> Response:
    """Refuse, and say what was asked with: as some servers do, to be of help."""
    told = " ".join(f"{name}: {value}" for name, value in request.headers.items())
    return error(400, "InvalidRequest", f"this will not do: {told} {request.path}?{request.query}")


def every_s3_verb(run: Searched, url: str) -> None:
    options = ("--no-progress", *TELL_ALL)
    run("cp", *options, "file", f"{url}/copied")
    run("cp", *options, "-R", "tree", f"{url}/tree/")
    run("sync", *options, "--delete", "tree", f"{url}/tree/")
    run("sync", *options, "--delete", f"{url}/tree/", "down")
    run("mv", *options, f"{url}/copied", f"{url}/moved")
    run("ls", "-R", "--json", f"{url}/")
    run("stat", "--json", f"{url}/moved")
    run("du", "--json", f"{url}/")
    run("cat", f"{url}/moved")
    run("pipe", f"{url}/piped")
    run("mkdir", "s3://another-bucket")
    run("rm", "-vv", "--json", f"{url}/moved")
    run("jobs", "list", "--json")
    run("jobs", "clean", "-vv", "--json")


@pytest.fixture
def s3(
    hostile_s3: HostileS3, fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> Callable[[], str]:
    plant(tmp_path, {"file": "content", "tree/a": "a", "tree/b": b"b" * 9_000_000})
    hostile_s3.make_bucket("bucket")
    fastsync.environ["AWS_ENDPOINT_URL_S3"] = hostile_s3.endpoint
    return lambda: "s3://bucket"


def test_s3_that_works(searched: Searched, s3: Callable[[], str]) -> None:
    every_s3_verb(searched, s3())
    assert not any(searched.codes.values()), [v for v in searched.codes.items() if v[1]]


@pytest.mark.parametrize("fault", [quoting, refuse(403, "AccessDenied", "no")])
def test_s3_that_refuses(
    searched: Searched, s3: Callable[[], str], hostile_s3: HostileS3, fault: object
) -> None:
    hostile_s3.on("*", fault, times=None)  # type: ignore[arg-type]
    url = s3()
    for verb in (
        ("cp", *TELL_ALL, "file", f"{url}/copied"),
        ("sync", *TELL_ALL, "--delete", f"{url}/tree/", "down"),
        ("ls", "--json", f"{url}/"),
        ("presign", f"{url}/x"),
    ):
        told = searched(*verb, may_print=TOKEN if verb[0] == "presign" else "")
        assert told or verb[0] == "presign"
    assert {searched.codes[verb] for verb in ("cp", "sync", "ls")}.isdisjoint({0})


def test_the_secret_of_a_place(
    searched: Searched, s3: Callable[[], str], tmp_path: Path, hostile_s3: HostileS3
) -> None:
    """In the configuration, which is shown without it and never written down elsewhere."""
    config = tmp_path / "home/config/fastsync/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(
        '[places."s3://bucket/"]\naccess_key_id = "AKIAIOSFODNN7PLACED1"\n'
        f'secret_access_key = "{PLACED}"\nsession_token = "{TOKEN}"\n'
    )
    config.chmod(0o600)
    searched("config", "show")
    searched("cp", *TELL_ALL, "-p", "2", "tree/b", f"{s3()}/b")
    hostile_s3.on("*", quoting, times=None)
    searched("cp", *TELL_ALL, "file", f"{s3()}/b")
    assert searched.codes["cp"] == 1
    config.chmod(0o666)
    searched("cp", *TELL_ALL, "file", f"{s3()}/b")
    assert searched.codes["cp"] == 2, "others can write it"


def test_http(
    searched: Searched, hostile_s3: HostileS3, fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    """In the address, the environment, a file of headers and netrc; served, refused, and quoted."""
    plant(tmp_path, {"headers": f"X-Secret: {HEADER}\n"})
    (tmp_path / "headers").chmod(0o600)
    netrc = tmp_path / "home/.netrc"
    netrc.parent.mkdir(exist_ok=True)
    netrc.write_text(f"machine 127.0.0.1 login me password {NETRC}\n")
    netrc.chmod(0o600)
    hostile_s3.put("bucket", "file", b"content")
    host = hostile_s3.endpoint.removeprefix("http://")
    userinfo = f"me:{quote(PASSWORD, safe='')}"
    nobody = f"127.0.0.1:{free_port()}"
    for server in (host, nobody):
        few = ("--request-timeout", "2", *TELL_ALL)
        urls = [
            f"http://{userinfo}@{server}/bucket/file",
            f"http://{server}/bucket/file?sig={QUERY}",
        ]
        for fault in (None, quoting, refuse(403, "AccessDenied", "no")):
            hostile_s3.behave()
            if fault is not None:
                hostile_s3.on("*", fault, times=None)
            for url in urls:
                searched("cp", *few, "--header-file", "headers", url, "down")
                searched("cp", *few, url, "down", FASTSYNC_BEARER_TOKEN=BEARER)
            searched("cat", urls[0], FASTSYNC_HEADER=f"X-Secret: {HEADER}")
            searched("ls", "--json", urls[1])
            searched("stat", "--json", urls[0])
            if server == nobody:
                break


def test_sftp(searched: Searched, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path, {"file": "content"})
    url = f"sftp://me:{quote(PASSWORD, safe='')}@127.0.0.1:{free_port()}/x"
    few = ("--request-timeout", "2", *TELL_ALL)
    for transport in ("asyncssh", "openssh", "auto"):
        searched("cp", *few, "--ssh-transport", transport, "file", url)
        assert searched.codes["cp"] != 0
    searched("ls", "--json", url)


CRASH = """
import sys
from fastsync.cli.main import main
from fastsync.session import Session

async def open_(self, location, **options):
    import os
    raise RuntimeError(f"{location.password} {location.query} {os.environ['AWS_SESSION_TOKEN']!r}")

Session.open = open_
from fastsync.redaction import conceal
sys.exit(main(sys.argv[1:]))
"""


def test_a_bug(searched: Searched, fastsync: Fastsync, tmp_path: Path) -> None:
    """A traceback quotes what it likes; what is known to be a secret is not in it."""
    for url in (f"sftp://me:{quote(PASSWORD, safe='')}@host/x", f"http://host/x?sig={QUERY}"):
        done = subprocess.run(
            [sys.executable, "-c", CRASH, "cp", *TELL_ALL, url, "down"],
            env={**fastsync.environ, "FASTSYNC_TRACEBACK": "1", "AWS_SESSION_TOKEN": "a-word"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "RuntimeError: " in done.stderr
        searched.search(done.stdout + done.stderr)


def test_the_command_lines_of_processes(
    searched: Searched,
    s3: Callable[[], str],
    started: Callable[..., subprocess.Popen[bytes]],
    hostile_s3: HostileS3,
    eventually: Callable[[Callable[[], object]], None],
    fastsync: Fastsync,
    plant: Plant,
    tmp_path: Path,
) -> None:
    """Ours and those of all we start, while they run."""
    plant(tmp_path / "many", {str(index): "x" for index in range(600)})
    hostile_s3.on("PutObject", no_answer(), times=None)
    process = started("cp", "-R", "many", f"{s3()}/many/")
    eventually(lambda: any(seen.operation == "PutObject" for seen in hostile_s3.requests))
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.stat().st_uid == os.geteuid():
                lines.append(path.read_bytes().decode("latin-1"))
        except OSError:
            pass
    assert any("many" in line for line in lines)
    searched.search("\n".join(lines))
    process.terminate()
    process.wait()
