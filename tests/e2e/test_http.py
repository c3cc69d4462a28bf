"""Web servers through the real command: nginx, plain and with TLS, Python's http.server and rclone's."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from web import (
    Answer,
    Asked,
    ScriptedServer,
    Tls,
    WebServer,
    make_tls,
    running_apache,
    running_lighttpd,
    running_nginx,
    running_python,
    running_rclone,
    serve_bytes,
)

from fastsync.testing.vocabulary import noise

if TYPE_CHECKING:
    from tests.conftest import Fastsync

THEN = 1_600_000_000
BIG = noise(3_000_001)
TREE = {
    "a b%.txt": b"a",
    "big.bin": BIG,
    "empty": b"",
    "sub/caf\u00e9 #1?.txt": b"one",
    "sub/deep/x.txt": b"x" * 1000,
}

# Every location is the same tree, served in another way.
_NGINX = """
    autoindex on;
    location /json/ { alias ROOT/; autoindex_format json; }
    location /gzip/ { alias ROOT/; gzip on; gzip_types *; gzip_min_length 1; gzip_proxied any; }
    location /auth/ { alias ROOT/; auth_basic "who"; auth_basic_user_file RUN/users; }
    location /token/ { alias ROOT/; if ($http_authorization != "Bearer hunter2") { return 401; } }
    location /header/ { alias ROOT/; if ($http_x_token != "hunter2") { return 403; } }
    location /inexact/ { alias ROOT/; autoindex_exact_size off; }
    location = /inexact/big.bin { return 403; }
    location /busy/ { alias ROOT/; limit_req zone=few; limit_req_status 429; }
    location /slow/ { alias ROOT/; limit_rate 4m; }
"""


def plant(root: Path) -> None:
    for name, content in TREE.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (THEN, THEN))


class Web(NamedTuple):
    """Servers of one tree, by their kind."""

    urls: dict[str, str]
    log: Path
    tls: Tls

    def environ(self) -> dict[str, str]:
        return {"SSL_CERT_FILE": str(self.tls.authority)}

    def ranges(self) -> int:
        """How many answers of nginx were of a part."""
        return len(re.findall(r'HTTP/1.1" 206 ', self.log.read_text()))


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    folder = tmp_path_factory.mktemp("web")
    tls = make_tls(folder)
    with contextlib.ExitStack() as stack:

        def serve(name: str) -> Path:
            place = folder / name
            plant(place / "root")
            return place

        plain = serve("plain")
        digest = base64.b64encode(hashlib.sha1(b"pass word").digest()).decode()
        users = plain / "users"
        users.write_text(f"me:{{SHA}}{digest}\n")
        directives = _NGINX.replace("ROOT", str(plain / "root")).replace("RUN", str(plain))
        log = plain / "access.log"
        servers: dict[str, WebServer] = {
            "nginx": stack.enter_context(
                running_nginx(
                    plain,
                    directives=f"access_log {log}; {directives}",
                    of_all="limit_req_zone $server_port zone=few:1m rate=30r/s;",
                )
            ),
            "tls": stack.enter_context(running_nginx(serve("tls"), tls=tls)),
            "python": stack.enter_context(running_python(serve("python"))),
        }
        for name, running in (
            ("apache", running_apache),
            ("lighttpd", running_lighttpd),
            ("rclone", running_rclone),
        ):
            with contextlib.suppress(pytest.skip.Exception):
                servers[name] = stack.enter_context(running(serve(name)))
        urls = {name: f"{server.url}/" for name, server in servers.items()}
        for name in re.findall(r"location /(\w+)/", _NGINX):
            urls[name] = f"{urls['nginx']}{name}/"
        yield Web(urls, log, tls)


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


# -- trees -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    ["nginx", "json", "gzip", "tls", "apache", "lighttpd", "python", "rclone", "busy"],
)
def test_a_mirror(fastsync: Fastsync, web: Web, tmp_path: Path, kind: str) -> None:
    if kind not in web.urls:
        pytest.skip(f"no {kind} is installed")
    url, mirror = web.urls[kind], tmp_path / "mirror"
    done = fastsync("sync", url, "mirror", env=web.environ())
    assert (done.code, done.stderr) == (0, "")
    assert contents(mirror) == TREE
    assert {int(path.stat().st_mtime) for path in mirror.rglob("*") if path.is_file()} == {THEN}
    assert kind != "busy" or '" 429 ' in web.log.read_text(), "it was not that busy"
    # Nothing to do, but for what is not there.
    (mirror / "extra").write_bytes(b"")
    (mirror / "empty").unlink()
    done = fastsync("sync", "--delete", "--summarize", url, "mirror", env=web.environ())
    assert done.code == 0
    assert "Copied: 1 files, 0 bytes\n" in done.stdout
    assert "Deleted: 1 files\n" in done.stdout
    assert contents(mirror) == TREE


@pytest.mark.parametrize("is_there", [False, True])
def test_a_plan_knows_versions(fastsync: Fastsync, tmp_path: Path, is_there: bool) -> None:
    """An index page tells no more than a size, and another file may have the same."""
    root = tmp_path / "run" / "root"
    for name in ("a", "b"):
        (root / "d").mkdir(parents=True, exist_ok=True)
        (root / "d" / name).write_text("1234")
        os.utime(root / "d" / name, (THEN, THEN))
    if is_there:
        (tmp_path / "here").mkdir()
        (tmp_path / "here" / "a").write_text("an older a")
    with running_nginx(tmp_path / "run", directives="autoindex on;") as server:
        assert fastsync("plan", f"{server.url}/d/", "here", "-o", "plan").code == 0
        (root / "d" / "a").write_text("abcd")
        done = fastsync("run", "plan")
    assert done.code == 8
    assert "d/a" in done.stderr
    assert (tmp_path / "here" / "b").read_text() == "1234"


def test_looking(fastsync: Fastsync, web: Web) -> None:
    url = web.urls["nginx"]
    assert fastsync("ls", "-R", url).stdout.splitlines() == [
        "a b%.txt",
        "big.bin",
        "empty",
        "sub/",
        "sub/caf\u00e9 #1?.txt",
        "sub/deep/",
        "sub/deep/x.txt",
    ]
    assert fastsync("ls", f"{url}sub/d*/*.txt").stdout.splitlines() == ["deep/x.txt"]
    assert "3000001" in fastsync("ls", "-l", f"{url}big.bin").stdout
    assert fastsync("du", url).stdout.split()[0] == str(sum(map(len, TREE.values())))


def test_wildcards(fastsync: Fastsync, web: Web, tmp_path: Path) -> None:
    assert fastsync("cp", f"{web.urls['json']}**.txt", "to/").code == 0
    assert contents(tmp_path / "to") == {k: v for k, v in TREE.items() if k.endswith(".txt")}


def test_a_head_that_fails_deletes_nothing(fastsync: Fastsync, web: Web, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "extra").write_bytes(b"")
    (mirror / "big.bin").write_bytes(b"of old")
    done = fastsync("sync", "--delete", web.urls["inexact"], "mirror")
    assert done.code == 3
    assert "big.bin" in done.stderr
    assert "not deleting" in done.stderr
    assert contents(mirror) == {**TREE, "big.bin": b"of old", "extra": b""}


# -- one file ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nginx", "tls", "gzip", "slow", "python", "rclone"])
def test_one_file(fastsync: Fastsync, web: Web, tmp_path: Path, kind: str) -> None:
    if kind not in web.urls:
        pytest.skip(f"no {kind} is installed")
    url = f"{web.urls[kind]}big.bin"
    before = web.ranges()
    done = fastsync("cp", "-p", "16", "--chunk-size", "512K", url, ".", env=web.environ())
    assert (done.code, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "big.bin").read_bytes() == BIG
    assert int((tmp_path / "big.bin").stat().st_mtime) == THEN
    if kind in ("nginx", "gzip", "slow"):
        assert web.ranges() - before == 1 + 6, "a look, and six parts"
    again = fastsync("cp", "--summarize", url, ".", env=web.environ())
    assert "Skipped: 1 files" in again.stdout


def test_a_query(fastsync: Fastsync, web: Web, tmp_path: Path) -> None:
    url = f"{web.urls['nginx']}a%20b%25.txt?sig=hunter2/x&v=1"
    done = fastsync("cp", "-v", url, ".")
    assert done.code == 0
    assert "hunter2" not in done.stdout + done.stderr
    assert (tmp_path / "a b%.txt").read_bytes() == b"a"
    assert "/a%20b%25.txt?sig=hunter2/x&v=1 HTTP/1.1" in web.log.read_text()
    done = fastsync("cp", f"{web.urls['nginx']}nope?sig=hunter2", ".")
    assert done.code == 3
    assert done.stderr.endswith("/nope?***: there is no such file: 404 Not Found\n")


@pytest.mark.parametrize("is_right", [True, False])
def test_a_digest_that_is_known(
    fastsync: Fastsync, web: Web, tmp_path: Path, is_right: bool
) -> None:
    digest = hashlib.sha256(BIG if is_right else b"").hexdigest()
    told = ["--checksum-of", f"sha256:{digest}", "--chunk-size", "512K"]
    done = fastsync("cp", *told, f"{web.urls['nginx']}big.bin", ".")
    assert done.code == (0 if is_right else 4)
    assert (tmp_path / "big.bin").exists() == is_right
    assert not list(tmp_path.glob(".fs-*"))


@pytest.mark.parametrize(
    "line",
    [
        "cp a URL",
        "cp - URLa",
        "pipe URLa",
        "sync . URL",
        "sync --delete . URL",
        "mv a URL",
        "rm URLempty",
        "mkdir URLnew",
        "mv URLempty here",
    ],
)
def test_nothing_is_written_to_the_web(
    fastsync: Fastsync, web: Web, tmp_path: Path, line: str
) -> None:
    (tmp_path / "a").write_bytes(b"a")
    done = fastsync(*line.replace("URL", web.urls["nginx"]).split())
    assert (done.code, done.stdout) == (2, "")
    assert "http:// can only be read" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["a"]


# -- who asks ----------------------------------------------------------------------------------------


def with_user(url: str, user: str) -> str:
    return url.replace("://", f"://{user}@")


def test_nobody_is_refused(fastsync: Fastsync, web: Web) -> None:
    for kind, code in (("auth", 5), ("token", 5), ("header", 1)):
        assert fastsync("cp", f"{web.urls[kind]}big.bin", ".").code == code, kind
    done = fastsync("cp", f"{with_user(web.urls['auth'], 'me:hunter2')}big.bin", ".")
    assert done.code == 5
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize("way", ["url", "netrc", "netrc of home", "netrc with a user"])
def test_a_password(fastsync: Fastsync, web: Web, tmp_path: Path, way: str) -> None:
    url, env = f"{web.urls['auth']}big.bin", {}
    if way == "url":
        url = with_user(url, "me:pass%20word")
    else:
        at = tmp_path / "home/.netrc" if way == "netrc of home" else tmp_path / "secrets"
        at.parent.mkdir(exist_ok=True)
        at.write_text('machine 127.0.0.1 login me password "pass word"\n')
        at.chmod(0o600)
        env = {} if way == "netrc of home" else {"NETRC": str(at)}
        url = with_user(url, "me") if way == "netrc with a user" else url
    done = fastsync("cp", "--chunk-size", "512K", url, ".", env=env)
    assert (done.code, done.stderr) == (0, "")
    assert (tmp_path / "big.bin").read_bytes() == BIG


def test_headers_and_tokens(fastsync: Fastsync, web: Web, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.write_text("# mine\nX-Token: hunter2\n")
    secrets.chmod(0o644)
    url = f"{web.urls['header']}big.bin"
    done = fastsync("cat", "--header-file", "secrets", url)
    assert (done.code, done.stdout) == (2, "")
    # Where the secret is kept is none: nobody could put it right without.
    assert (
        "secrets: the header file: others can read it (to stop that: chmod 600 secrets)"
        in done.stderr
    )
    secrets.chmod(0o600)
    assert fastsync("cp", "--header-file", "secrets", url, "1").code == 0
    assert fastsync("cp", url, "2", env={"FASTSYNC_HEADER": "X-Token: hunter2"}).code == 0
    bearer = {"FASTSYNC_BEARER_TOKEN": "hunter2"}
    assert fastsync("cp", f"{web.urls['token']}big.bin", "3", env=bearer).code == 0
    assert all((tmp_path / name).read_bytes() == BIG for name in "123")


async def test_secrets_stop_at_another_origin(fastsync: Fastsync, tmp_path: Path) -> None:
    async with ScriptedServer(serve_bytes(BIG)) as there:

        def send_on(asked: Asked) -> Answer:
            return Answer(302, {"Location": f"{there.url}/file"})

        async with ScriptedServer(send_on) as here:
            url = f"{here.url.replace('://', '://me:hunter2@')}/file"
            env = {"FASTSYNC_HEADER": "Cookie: a=b\nReferer: x"}
            arguments = ("cp", "--chunk-size", "512K", url, ".")
            done = await asyncio.to_thread(fastsync, *arguments, env=env)
            assert (done.code, done.stderr) == (0, "")
    secret = {"authorization", "cookie", "referer"}
    assert all(secret <= asked.headers.keys() for asked in here.asked)
    assert not any(secret & asked.headers.keys() for asked in there.asked)
    assert (tmp_path / "file").read_bytes() == BIG


# -- proxies -----------------------------------------------------------------------------------------


async def test_a_proxy(fastsync: Fastsync, tmp_path: Path) -> None:
    async with ScriptedServer(serve_bytes(BIG)) as proxy:
        env = {"http_proxy": proxy.url.replace("://", "://me:hunter2@")}
        arguments = ("cp", "--chunk-size", "512K", "http://far.example:81/file?x=1", ".")
        done = await asyncio.to_thread(fastsync, *arguments, env=env)
        assert (done.code, done.stderr) == (0, "")
    assert (tmp_path / "file").read_bytes() == BIG
    assert {asked.path for asked in proxy.asked} == {"http://far.example:81/file?x=1"}
    token = "Basic " + base64.b64encode(b"me:hunter2").decode()
    assert {asked.headers["proxy-authorization"] for asked in proxy.asked} == {token}
    assert {asked.headers["host"] for asked in proxy.asked} == {"far.example:81"}


async def test_a_tunnel_that_is_refused(fastsync: Fastsync) -> None:
    async with ScriptedServer(lambda _asked: Answer(407)) as proxy:
        env = {"HTTPS_PROXY": proxy.url}
        done = await asyncio.to_thread(fastsync, "ls", "https://far.example/", env=env)
    assert done.code == 5
    assert [(asked.method, asked.path) for asked in proxy.asked] == [("CONNECT", "far.example:443")]


async def test_no_proxy(fastsync: Fastsync) -> None:
    def refuse(asked: Asked) -> Answer:
        return Answer(502)

    async with ScriptedServer(refuse) as proxy, ScriptedServer(serve_bytes(b"x")) as server:
        env = {"http_proxy": proxy.url, "no_proxy": "127.0.0.1"}
        done = await asyncio.to_thread(fastsync, "cat", f"{server.url}/f", env=env)
    assert (done.code, done.stdout) == (0, "x")
    assert proxy.asked == []


def test_a_certificate_that_nobody_vouches_for(fastsync: Fastsync, web: Web) -> None:
    done = fastsync("cp", f"{web.urls['tls']}big.bin", ".")
    assert done.code == 5
    assert "not trusted" in done.stderr
