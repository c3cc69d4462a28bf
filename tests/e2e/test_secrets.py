"""Secrets: planted as password, key, token, header and query, they come out nowhere.

Every verb runs with all there is to be told, against servers that answer, refuse, quote what they were sent,
or are not there; then everything that was written is searched.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import asyncssh
import pytest
from hostile_s3 import HostileS3, no_answer, refuse
from http_exchange import Request, Response
from s3_objects import error
from sshd import OurServer, free_port

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
PROXY = "CANARY-proxy-password"
LOG = ("--log-level", "trace", "--log-file", "log")
TELL_ALL = ("-vv", "--json", *LOG)


class Searched:
    """Runs the command and searches what it leaves."""

    def __init__(self, fastsync: Fastsync) -> None:
        self._fastsync = fastsync
        self._count = itertools.count()
        self.codes: dict[str, int] = {}

    def __call__(self, *arguments: str | Path, may_print: str = "", **env: str) -> str:
        name = f"log-{next(self._count)}"
        given = [name if each == "log" else each for each in arguments]
        done = self._fastsync(*given, env={"FASTSYNC_TRACEBACK": "1", **env})
        self.codes[str(arguments[0])] = done.code
        shown = "\n".join(done[1:])
        self.search(shown.replace(may_print, "") if may_print else shown)
        log = self._fastsync.cwd / name
        if log.exists():
            self.search(log.read_text(errors="surrogateescape"))
            log.unlink()
        return shown

    def together(self, *commands: Sequence[str | Path]) -> None:
        """Commands that do not mind each other."""
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda command: self(*command), commands))

    def search(self, text: str) -> None:
        assert "CANARY" not in text
        assert quote(PASSWORD, safe="") not in text
        for secret in (f"me:{PASSWORD}", PASSWORD, KEY, TOKEN, BEARER, NETRC, f"me:{PROXY}"):
            assert base64.b64encode(secret.encode()).decode()[:-4] not in text

    def state(self, *places: Path) -> None:
        """What runs keep: journal, records of servers, whatever there is."""
        for place in places:
            for path in place.rglob("*"):
                self.search(path.name)
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
    run.together(
        ("cp", *options, "file", f"{url}/copied"),
        ("cp", *options, "-R", "tree", f"{url}/tree/"),
        ("plan", *LOG, "-vv", "tree", f"{url}/planned/", "-o", "plan"),
        ("pipe", *TELL_ALL, f"{url}/piped"),
        ("mkdir", *LOG, "s3://another-bucket"),
        ("completion", "bash"),
    )
    run.together(
        ("run", *TELL_ALL, "plan"),
        ("sync", *options, "--delete", f"{url}/tree/", "down"),
        ("mv", *options, f"{url}/copied", f"{url}/moved"),
        ("ls", *LOG, "-R", "--json", f"{url}/"),
        ("du", *LOG, "--json", f"{url}/"),
        ("check", *TELL_ALL, "--checksum", "tree", f"{url}/tree/tree/"),
    )
    run.together(
        ("stat", *LOG, "--json", f"{url}/moved"),
        ("cat", *LOG, "-vv", f"{url}/moved"),
        ("jobs", "list", *LOG, "--json"),
        ("jobs", "clean", *TELL_ALL),
        ("config", "show", "--json"),
        ("rm", *TELL_ALL, f"{url}/piped"),
    )


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
        ("ls", *LOG, "--json", f"{url}/"),
        ("presign", *LOG, f"{url}/x"),
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
        for fault in (None, quoting):
            hostile_s3.behave()
            if fault is not None:
                hostile_s3.on("*", fault, times=None)
            for url in urls:
                searched("cp", *few, url, "down", FASTSYNC_BEARER_TOKEN=BEARER)
            searched("cat", *LOG, urls[0], FASTSYNC_HEADER=f"X-Secret: {HEADER}")
            searched.together(
                ("cp", *few, "--header-file", "headers", urls[0], "down-a"),
                ("cp", *few, "--header-file", "headers", urls[1], "down-b"),
                ("ls", *LOG, "--json", urls[1]),
                ("stat", *LOG, "--json", urls[0]),
            )
            if server == nobody:
                break


def test_sftp(searched: Searched, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path, {"file": "content"})
    url = f"sftp://me:{quote(PASSWORD, safe='')}@127.0.0.1:{free_port()}/x"
    few = ("--request-timeout", "2", *TELL_ALL)
    for transport in ("asyncssh", "openssh", "auto"):
        searched("cp", *few, "--ssh-transport", transport, "file", url)
        assert searched.codes["cp"] != 0
    searched("ls", *LOG, "--json", url)


def test_a_proxy(
    searched: Searched, hostile_s3: HostileS3, s3: Callable[[], str], fastsync: Fastsync
) -> None:
    """One that answers, quotes what it was sent, or is not there."""
    hostile_s3.put("bucket", "file", b"content")
    for server in (hostile_s3.endpoint.removeprefix("http://"), f"127.0.0.1:{free_port()}"):
        proxy = f"http://me:{PROXY}@{server}"
        fastsync.environ |= {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "NO_PROXY": ""}
        fastsync.environ |= {"http_proxy": proxy, "https_proxy": proxy}
        hostile_s3.on("*", quoting, times=None)
        searched.together(
            ("cp", *TELL_ALL, "http://example.invalid/bucket/file", "down"),
            ("cp", *TELL_ALL, "https://example.invalid/bucket/file", "down"),
            ("cp", *TELL_ALL, f"{s3()}/file", "down"),
            ("ls", *LOG, f"{s3()}/"),
        )
        assert searched.codes["cp"] != 0


class Login(asyncssh.SSHServer):
    """Takes one password."""

    def begin_auth(self, username: str) -> bool:
        return True

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return password == PASSWORD


def test_a_login_by_password(searched: Searched, plant: Plant, tmp_path: Path) -> None:
    """That is taken, and one that is not, with all that asyncssh says meanwhile."""
    plant(tmp_path, {"file": "content"})
    server = OurServer(tmp_path / "server", login=Login)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result()
        where = f"127.0.0.1:{server.port}{tmp_path}"
        known = ("--known-hosts", tmp_path / "server/known_hosts")
        good = f"sftp://me:{quote(PASSWORD, safe='')}@{where}"
        told = searched("cp", *TELL_ALL, *known, "file", f"{good}/there")
        assert searched.codes["cp"] == 0, told
        assert (tmp_path / "there").read_text() == "content"
        searched.together(
            ("sync", *TELL_ALL, *known, "--delete", f"{good}/server/", "down"),
            ("ls", *LOG, "--json", *known, f"{good}/"),
            ("cat", *LOG, "-vv", *known, f"{good}/nothing"),
            ("cp", *TELL_ALL, *known, "file", f"sftp://me:CANARY-wrong@{where}/there"),
        )
        assert searched.codes["cp"] == 5
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_files_that_are_not_understood(searched: Searched, tmp_path: Path) -> None:
    """What is said of them names the line, and not what stands in it."""
    folder = tmp_path / "home/config/fastsync"
    folder.mkdir(parents=True)
    config, aws, netrc = folder / "config.toml", tmp_path / "aws", tmp_path / "home/.netrc"
    for text in (
        f'[places."s3://b/"]\nsecret_access_key = {KEY}\n',
        f'[places."s3://b/"]\nsecret_access_key = ["{KEY}"]\n',
        f'[places."s3://b/"]\nsecret_acces_key = "{KEY}"\n',
        f'[global]\nendpoint_url = "https://me:{KEY}@host"\n',
        f'[places."http://me:{KEY}@host/"]\nheader_file = 5\n',
        f'[places."http://me:{KEY}@host/"]\nregion = "{KEY[:3]}"\n',
        f"{KEY}\n",
    ):
        config.write_text(text)
        config.chmod(0o600)
        searched("config", "show")
    searched("cp", *TELL_ALL, "s3://b/x", "http://host/x")
    config.unlink()
    for text in (f"[default]\n{KEY}\n", f"[default\naws_secret_access_key = {KEY}\n"):
        aws.write_text(text)
        for_aws = {"AWS_SHARED_CREDENTIALS_FILE": str(aws), "AWS_ACCESS_KEY_ID": ""}
        searched("cp", *TELL_ALL, "s3://b/x", "x", **for_aws)
    netrc.write_text(f"machine 127.0.0.1 login me pasword {NETRC}\n{KEY}\n")
    netrc.chmod(0o600)
    searched("cp", *TELL_ALL, "http://127.0.0.1/x", "x")
    (tmp_path / "headers").write_text(f"X: {HEADER}\n{HEADER}\n")
    (tmp_path / "headers").chmod(0o600)
    searched("cp", *TELL_ALL, "--header-file", "headers", "http://127.0.0.1/x", "x")
    (tmp_path / "batch").write_text(f"cp http://me:{KEY}@h/x 'y\ncp --tokn {KEY} a b\n")
    searched("run", *TELL_ALL, "batch")
    for path in (tmp_path / "aws", tmp_path / "headers", tmp_path / "batch"):
        path.unlink()


CHAINS = """
import sys
import fastsync
from fastsync.errors import FastsyncError

class Watcher:
    wants_items = wants_skips = True
    def note(self, text): print(text)
    def progress(self, totals): pass
    def item(self, item): tell(item.error)

def tell(error):
    seen = []
    while error is not None:
        assert error not in seen, 'a circle of causes'
        seen.append(error)
        print(repr(error), error, error.args, getattr(error, '__notes__', ''))
        error = error.__cause__ or error.__context__

for source in sys.argv[1:]:
    try:
        fastsync.cp(source, 'down', observer=Watcher(), retry_count=0)
    except FastsyncError as error:
        tell(error)
"""


def test_what_errors_of_the_library_come_from(
    searched: Searched, hostile_s3: HostileS3, s3: Callable[[], str], fastsync: Fastsync
) -> None:
    """Whoever logs an error logs its causes, too, without our filter."""
    hostile_s3.on("*", quoting, times=None)
    host = hostile_s3.endpoint.removeprefix("http://")
    userinfo = f"me:{quote(PASSWORD, safe='')}"
    places = [f"{s3()}/file", f"http://{userinfo}@{host}/x?sig={QUERY}"]
    places += [f"http://{userinfo}@127.0.0.1:{free_port()}/x?sig={QUERY}"]
    places += [f"sftp://{userinfo}@127.0.0.1:{free_port()}/x"]
    places += [f"http://{userinfo}@host:no/x?sig={QUERY}", f"sftp://{userinfo}@/x"]
    done = subprocess.run(
        [sys.executable, "-c", CHAINS, *places],
        env=fastsync.environ,
        cwd=fastsync.cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("Error") >= len(places)
    searched.search(done.stdout + done.stderr)


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
    url, signed = f"sftp://me:{quote(PASSWORD, safe='')}@host/x", f"http://host/x?sig={QUERY}"
    (tmp_path / "batch").write_text("cp a b\n")

    def crash(command: Sequence[str]) -> None:
        verb, *given = command
        done = subprocess.run(
            [sys.executable, "-c", CRASH, verb, *given],
            env={**fastsync.environ, "FASTSYNC_TRACEBACK": "1", "AWS_SESSION_TOKEN": "a-word"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        assert "RuntimeError: " in done.stderr
        searched.search(done.stdout + done.stderr)

    with ThreadPoolExecutor(3) as pool:
        one = [
            ["cp", *TELL_ALL, url, "down"],
            ["cp", *TELL_ALL, signed, "down"],
            ["sync", *TELL_ALL, url, "down"],
            ["mv", *TELL_ALL, "down", url],
            ["ls", *LOG, "--json", signed],
            ["cat", *LOG, signed],
            ["pipe", *TELL_ALL, url],
            ["rm", *TELL_ALL, url],
            ["mkdir", *LOG, url],
            ["stat", *LOG, signed],
            ["du", *LOG, url],
            ["check", *TELL_ALL, url, signed],
            ["plan", *LOG, url, "down"],
            ["run", *TELL_ALL, "batch"],
        ]
        list(pool.map(crash, one))
    searched.search((tmp_path / "log").read_text())
    for path in (tmp_path / "log", tmp_path / "batch"):
        path.unlink()


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
    process.communicate(timeout=20)


def test_what_ssh_gets(
    searched: Searched,
    started: Callable[..., subprocess.Popen[bytes]],
    fastsync: Fastsync,
    plant: Plant,
    tmp_path: Path,
) -> None:
    """Nothing that is ours, as an argument or in its environment: it may send that on (SendEnv)."""
    plant(tmp_path, {"file": "content"})
    fastsync.environ |= {"FASTSYNC_BEARER_TOKEN": BEARER, "FASTSYNC_HEADER": f"X: {HEADER}"}
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        process = started(
            *("cp", "--ssh-transport", "openssh", "file", f"sftp://me@127.0.0.1:{port}/x")
        )
        silent.settimeout(30)
        with silent.accept()[0]:  # ssh is there, and waits for a greeting
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            given = "".join(
                Path(f"/proc/{pid}/{what}").read_text()
                for pid in children.split()
                for what in ("cmdline", "environ")
            )
            process.kill()
            process.wait()
    assert "127.0.0.1" in given
    assert BEARER not in given
    assert HEADER not in given
