"""Web servers for tests, each on a free port of the loopback and ended by its process: nginx, Apache,
lighttpd, Python's http.server and rclone; and one in this process that answers what a script says, right
or wrong."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import NamedTuple
from weakref import WeakSet

import pytest

_START_S = 20.0
_SBIN = "/usr/sbin:/usr/local/sbin:/sbin"


@dataclass(frozen=True)
class WebServer:
    """Where a server is, and the folder that it serves."""

    url: str
    root: Path
    pid: int


class Tls(NamedTuple):
    """Files in PEM: a certificate for 127.0.0.1 and localhost, its key, and who vouches for it."""

    certificate: Path
    key: Path
    authority: Path


def make_tls(folder: Path) -> Tls:
    import trustme

    made = Tls(folder / "cert.pem", folder / "key.pem", folder / "authority.pem")
    authority = trustme.CA()
    cert = authority.issue_cert("127.0.0.1", "localhost")
    cert.private_key_pem.write_to_path(str(made.key))
    cert.cert_chain_pems[0].write_to_path(str(made.certificate))
    authority.cert_pem.write_to_path(str(made.authority))
    return made


def find(program: str) -> str:
    """A program of this environment, of PATH or of the system's own folders; skips without it."""
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:{_SBIN}"
    found = shutil.which(program, path=path)
    if found is None:
        pytest.skip(f"no {program} is installed")
    return found


@contextlib.contextmanager
def running_nginx(
    folder: Path,
    *,
    tls: Tls | None = None,
    directives: str = "autoindex on;",
    of_all: str = "",
    workers: str = "",
) -> Iterator[WebServer]:
    """nginx over `folder`/root, with `directives` for its one server, and such `of_all` servers. In one
    process, unless `workers` tells how many there are to be."""
    program = find("nginx")
    root, port = _place(folder)
    run = folder / "run"
    run.mkdir()
    of_process = f"worker_processes {workers};" if workers else "master_process off;"
    # Workers of a server that root starts are somebody else.
    user = "user root;" if os.geteuid() == 0 else ""
    listen = f"listen 127.0.0.1:{port}" + (" ssl;" if tls else ";")
    if tls is not None:
        listen += f" ssl_certificate {tls.certificate}; ssl_certificate_key {tls.key};"
    paths = "".join(
        f"{name}_temp_path {run}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = run / "nginx.conf"
    config.write_text(
        f"""daemon off; {of_process} pid {run}/pid; error_log {run}/error.log; {user}
        events {{ worker_connections 512; }}
        http {{ access_log off; sendfile on; keepalive_requests 100000; {paths}
          types {{ text/plain txt; }} default_type application/octet-stream;
          {of_all}
          server {{ {listen} root {root}; {directives} }} }}"""
    )
    scheme = "http" if tls is None else "https"
    with _running(
        [program, "-c", str(config), "-e", f"{run}/error.log"], run, root, port, scheme
    ) as server:
        yield server


@contextlib.contextmanager
def running_python(folder: Path) -> Iterator[WebServer]:
    """Python's http.server: HTTP/1.0, no ranges, no ETags, pages without sizes."""
    root, port = _place(folder)
    argv = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "-d", str(root)]
    with _running(argv, folder, root, port) as server:
        yield server


@contextlib.contextmanager
def running_apache(folder: Path) -> Iterator[WebServer]:
    """Apache httpd with the pages that it makes when nobody asks for more: names alone, in a list."""
    program = find("apache2")
    modules = Path("/usr/lib/apache2/modules")
    root, port = _place(folder)
    loaded = "".join(
        f"LoadModule {name}_module {modules}/mod_{name}.so\n"
        for name in ("mpm_event", "authz_core", "dir", "autoindex")
    )
    config = folder / "apache.conf"
    config.write_text(
        f"""ServerRoot {folder}\nServerName localhost\nListen 127.0.0.1:{port}\n{loaded}
        PidFile {folder}/apache.pid\nErrorLog {folder}/error.log\nDocumentRoot {root}
        <Directory {root}>\nOptions Indexes\nRequire all granted\n</Directory>\n"""
    )
    with _running([program, "-X", "-f", str(config)], folder, root, port) as server:
        yield server


@contextlib.contextmanager
def running_lighttpd(folder: Path) -> Iterator[WebServer]:
    """lighttpd: rounded sizes, and times without a zone."""
    program = find("lighttpd")
    root, port = _place(folder)
    config = folder / "lighttpd.conf"
    config.write_text(
        f"""server.document-root = "{root}"\nserver.bind = "127.0.0.1"\nserver.port = {port}
        server.modules = ("mod_dirlisting")\ndir-listing.activate = "enable"
        mimetype.assign = ("" => "application/octet-stream")\n"""
    )
    with _running([program, "-D", "-f", str(config)], folder, root, port) as server:
        yield server


@contextlib.contextmanager
def running_rclone(folder: Path) -> Iterator[WebServer]:
    """rclone serve http: no ETags, sizes and times on its pages."""
    program = find("rclone")
    root, port = _place(folder)
    argv = [program, "serve", "http", "--addr", f"127.0.0.1:{port}", "--config", "/dev/null"]
    # Nothing is kept in mind: what a test changes is seen at once.
    argv += ["--dir-cache-time", "0s", "--vfs-cache-mode", "off", str(root)]
    with _running(argv, folder, root, port) as server:
        yield server


@contextlib.contextmanager
def _running(
    argv: list[str], folder: Path, root: Path, port: int, scheme: str = "http"
) -> Iterator[WebServer]:
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + _START_S
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((folder / "server.log").read_text())
                time.sleep(0.02)
            yield WebServer(f"{scheme}://127.0.0.1:{port}", root, process.pid)
        finally:
            process.terminate()
            process.wait(10)


def _place(folder: Path) -> tuple[Path, int]:
    """Where a server finds its files, and where it may listen."""
    root = folder / "root"
    root.mkdir(exist_ok=True)
    return root, free_port()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# -- a server that does as it is told ----------------------------------------------------------------------


class Asked(NamedTuple):
    """A request: `path` with its query, headers by lower-case name."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Answer:
    """What to send. A length is added, unless the headers have one or `framed` is false; `pieces` come
    after each other with `pause_s` between; then the connection is cut if it `cuts`."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    pieces: list[bytes] = field(default_factory=list)
    pause_s: float = 0.0
    framed: bool = True
    cuts: bool = False


Script = Callable[[Asked], Answer | Awaitable[Answer]]


class ScriptedServer:
    """Answers by a script, and keeps what it was asked."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[Asked] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._transports: WeakSet[asyncio.WriteTransport] = WeakSet()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> ScriptedServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_error: object) -> None:
        assert self._server is not None
        self._server.close()
        # Those, too, that are closed and still have something to send that nobody takes.
        for transport in self._transports:
            transport.abort()
        await self._server.wait_closed()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._transports.add(writer.transport)
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        lines = (line.partition(":") for line in head[1:] if line)
        asked = Asked(method, path, {name.lower(): value.strip() for name, _, value in lines})
        self.asked.append(asked)
        made = self.script(asked)
        answer = made if isinstance(made, Answer) else await made
        headers = {"Date": formatdate(usegmt=True), **answer.headers}
        if answer.framed and not any(name.lower() == "content-length" for name in headers):
            length = len(answer.body) + sum(map(len, answer.pieces))
            headers["Content-Length"] = str(length)
        text = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"HTTP/1.1 {answer.status} Said\r\n{text}\r\n".encode("latin-1"))
        if method != "HEAD":
            for piece in (answer.body, *answer.pieces):
                writer.write(piece)
                await writer.drain()
                if answer.pause_s:
                    await asyncio.sleep(answer.pause_s)
        await writer.drain()
        return answer.framed and not answer.cuts


def serve_bytes(content: bytes, headers: dict[str, str] | None = None) -> Callable[[Asked], Answer]:
    """A script that answers GET and HEAD of any path with `content`, and ranges of it as they should."""
    always = {"ETag": '"one"', "Last-Modified": "Tue, 14 Nov 2023 22:13:20 GMT", **(headers or {})}

    def script(asked: Asked) -> Answer:
        wanted = asked.headers.get("range", "")
        condition = asked.headers.get("if-range", always.get("ETag"))
        if wanted.startswith("bytes=") and condition in always.values():
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), int(last or len(content) - 1) + 1
            stop = min(stop, len(content))
            if start >= len(content):
                return Answer(416, {**always, "Content-Range": f"bytes */{len(content)}"})
            told = {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
            return Answer(206, {**always, **told}, content[start:stop])
        return Answer(200, dict(always), content)

    return script
