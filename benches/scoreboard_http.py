"""Faults of web servers, for the scoreboard: bodies, ranges, redirects and index pages that go wrong."""

from __future__ import annotations

import gzip
import ssl
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Literal

import hostile_s3 as faults
from fault_proxy import FaultProxy, Trouble
from hostile_web import Fault, HostileWeb, led_to, whole_or_cut
from http_exchange import Response
from scoreboard_run import LARGE, OLD_S, SECRET, SMALL, Case, Files, Scene, noise, plant
from web import make_tls

TOOLS = ("fastsync", "rclone", "curl", "wget", "aria2c")
SAYS = {
    "fastsync": "a file: `fastsync cp URL FILE`; a tree: `fastsync sync [--delete]`",
    "rclone": "a file: `rclone copyurl URL FILE`; a tree: `rclone copy` or `rclone sync` from `:http:`",
    "curl": "a file: `curl -fsSL -o FILE URL`; no trees",
    "wget": "a file: `wget -N -P FOLDER URL`; a tree: `wget -r -N -np -nH -R 'index.html*'`, no deleting",
    "aria2c": "a file: `aria2c -x4 --allow-overwrite=true -d FOLDER URL`; no trees",
}
Script = Callable[[HostileWeb, HostileWeb], object]


@dataclass(frozen=True)
class HttpCase(Case):
    """The file "file", or with `tree` all that the index pages list. `script` makes the server hostile; its
    second server is another host, or with `tls` the same one without TLS. `secret` goes to the first as a
    password, or as a header of one's own."""

    tree: bool = False
    tls: bool = False
    script: Script | None = None
    secret: Literal["password", "header"] | None = None

    def scene(self, root: Path) -> Scene:
        return _Web(self, root)


class _Web(Scene):
    def __init__(self, case: HttpCase, root: Path) -> None:
        super().__init__(root)
        self._case = case
        self._authority: Path | None = None

    def open(self) -> None:
        case = self._case
        plant(self.dest, case.old, OLD_S)
        context = None
        if case.tls:
            made = make_tls(self.root)
            self._authority = made.authority
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(made.certificate, made.key)
        files = {name: body for name, body in case.source.items() if name not in case.refused}
        self._server = self.stack.enter_context(HostileWeb(files, context))
        self._trap = self.stack.enter_context(HostileWeb(dict(case.source)))
        if case.script is not None:
            case.script(self._server, self._trap)
        self._url = self._server.url()
        self._proxy = FaultProxy(self._server.port)
        if case.kills:
            self.stack.enter_context(self._proxy)
            self._proxy.always(Trouble(rate=8 << 20))
            self._url = f"http://127.0.0.1:{self._proxy.port}"
        self._configure()

    def _configure(self) -> None:
        """What is told to the tools in files of theirs, so that it is in no command line."""
        netrc = self.home / ".netrc"
        wget, aria2 = [], []
        if self._authority is not None:
            wget.append(f"ca_certificate = {self._authority}")
            aria2.append(f"ca-certificate={self._authority}")
        if self._case.secret == "password":
            netrc.write_text(f"machine 127.0.0.1 login somebody password {SECRET}\n")
            netrc.chmod(0o600)
        if self._case.secret == "header":
            (self.home / "header").write_text(f"X-Api-Key: {SECRET}\n")
            (self.home / "header").chmod(0o600)
            wget.append(f"header = X-Api-Key: {SECRET}")
            aria2.append(f"header=X-Api-Key: {SECRET}")
        (self.home / ".wgetrc").write_text("\n".join([*wget, ""]))
        (self.home / ".aria2").mkdir()
        (self.home / ".aria2/aria2.conf").write_text("\n".join([*aria2, ""]))

    @property
    def environ(self) -> dict[str, str]:
        more = {}
        if self._authority is not None:
            more["SSL_CERT_FILE"] = str(self._authority)
        if self._case.secret == "header":
            more["RCLONE_HEADER"] = f"X-Api-Key: {SECRET}"
        return super().environ | more

    def command(self, tool: str, path: str) -> list[str] | None:
        return self._tree(tool, path) if self._case.tree else self._file(tool, path)

    def _file(self, tool: str, path: str) -> list[str]:
        url, file, secret = f"{self._url}/file", str(self.dest / "file"), self._case.secret
        if tool == "fastsync":
            header = ["--header-file", str(self.home / "header")] if secret == "header" else []
            return [path, "cp", *header, url, file]
        if tool == "rclone":
            if secret == "password":  # it reads no netrc
                url = url.replace("//", f"//somebody:{SECRET}@")
            return [path, "copyurl", url, file]
        if tool == "curl":
            header = ["-H", f"@{self.home / 'header'}"] if secret == "header" else []
            return [path, "-fsSL", *header, *(["-n"] * (secret == "password")), "-o", file, url]
        if tool == "wget":
            return [path, "-N", "-P", str(self.dest), url]
        start = [path, "-x4", "--allow-overwrite=true", "--auto-file-renaming=false"]
        return [*start, "-d", str(self.dest), url]

    def _tree(self, tool: str, path: str) -> list[str] | None:
        url, dest, delete = f"{self._url}/", f"{self.dest}/", self._case.delete
        if tool == "fastsync":
            return [path, "sync", *(["--delete"] * delete), url, dest]
        if tool == "rclone":
            return [path, "sync" if delete else "copy", "--http-url", url, ":http:", dest]
        if tool == "wget":
            return [path, "-r", "-N", "-np", "-nH", "-R", "index.html*", "-P", dest, url]
        return None

    def heal(self) -> None:
        self._server.behave()

    def has_begun(self) -> bool:
        return self._proxy.passed > 64 << 10

    @property
    def requests(self) -> int:
        return len(self._server.requests) + len(self._trap.requests)

    def carried_away(self) -> bool:
        encoded = b64encode(f"somebody:{SECRET}".encode()).decode()
        values = [value for each in self._trap.requests for value in each.headers.values()]
        return any(SECRET in value or encoded in value for value in values)


def cases(seed: int) -> list[HttpCase]:
    return [*_bodies(seed), *_away(seed), *_trees(seed)]


def _bodies(seed: int) -> list[HttpCase]:
    few, large = {"file": noise(SMALL, seed)}, {"file": noise(LARGE, seed)}
    old = {"file": b"the old one"}
    other = noise(LARGE, seed + 2)

    def body(
        name: str, about: str, codes: tuple[int, ...], fault: Fault, source: Files | None = None,
        *, skip: int = 0, times: int | None = None, tls: bool = False,
    ) -> HttpCase:  # fmt: skip
        script: Script = lambda server, _: server.on("/file", fault, skip=skip, times=times)  # noqa: E731
        return HttpCase(name, about, source or few, old, codes, tls=tls, script=script)

    def changing(server: HostileWeb, _trap: HostileWeb) -> None:
        swap = faults.first(lambda: server.files.update(file=other))
        server.on("/file", swap, skip=1, times=1)

    def digest(of: bytes) -> str:
        return f"sha-256=:{b64encode(sha256(of).digest()).decode()}:"

    def flipped(body: bytes) -> bytes:
        return body[:-1] + bytes([body[-1] ^ 1])

    zeros = bytes(200 << 20)
    bomb = {"file": gzip.compress(zeros, mtime=0)}
    return [
        body("cut-once", "the connection ends in the middle, once", (0,), faults.cut(5000), times=1),
        body("cut-always", "it always does", (1,), faults.cut(5000)),
        body("reset-always", "reset in the middle, always", (1,), faults.cut(5000, reset=True)),
        body("chunks-cut", "no length, and the connection ends before the last chunk", (1,),
             lambda request, honest: replace(honest(request), chunked=True, cut_at=5000)),
        body("tls-cut", "no length, and TLS ends in the middle without saying so", (1,),
             whole_or_cut(100_000), tls=True),
        body("stall", "no byte for an hour, in the middle, once", (0,), faults.stall(5000), times=1),
        body("long", "more bytes than the length that it says", (0, 1, 4, 8),
             lambda request, honest: _overlong(honest(request))),
        body("digest", "one bit, and the digest of the right bytes", (4,),
             lambda request, honest:
                 faults.body(flipped)(request, honest).having(repr_digest=digest(few["file"]))),
        body("no-ranges", "ranges are ignored", (0, 1, 4, 8), faults.ignore_range, large),
        body("other-range", "another range than was asked for, and its name", (0, 1, 4, 8),
             lambda request, honest: _shifted(honest(request)), large, skip=1),
        HttpCase("changed", "another file after the first range", large, old, (0, 8),
                 script=changing, also={"file": [other]}),
        HttpCase("bomb", "200 KB that would unpack to 200 MB", bomb, old, also={"file": [zeros]},
                 script=lambda server, _: server.on("/file", faults.header(content_encoding="gzip"))),
        body("busy", "503 and Retry-After, three times", (0,),
             lambda *_: Response(503, {"retry-after": "1"}, b"busy"), times=3),
        body("busy-always", "503, always", (1,), lambda *_: Response(503, {}, b"busy")),
        HttpCase("killed", "kill -9 in the middle", {"file": noise(12 << 20, seed)}, old, kills=True),
    ]  # fmt: skip


def _overlong(answer: Response) -> Response:
    told = answer.having(content_length=str(len(answer.body)))
    return replace(told, body=answer.body + b"+" * 1000)


def _shifted(answer: Response) -> Response:
    """The bytes that were asked for less 1000, and a header that says so."""
    told = answer.headers.get("content-range", "")
    if answer.status != 206 or told.startswith("bytes 0-"):
        return answer
    first, _, rest = told.removeprefix("bytes ").partition("-")
    last, _, size = rest.partition("/")
    moved = f"bytes {int(first) - 1000}-{int(last) - 1000}/{size}"
    return replace(
        answer.having(content_range=moved), body=answer.body[:1000] + answer.body[:-1000]
    )


def _away(seed: int) -> list[HttpCase]:
    few, old = {"file": noise(SMALL, seed)}, {"file": b"the old one"}

    def leading(
        name: str, about: str, secret: Literal["password", "header"], *, tls: bool
    ) -> HttpCase:
        def script(server: HostileWeb, trap: HostileWeb) -> None:
            server.on("/file", led_to(trap.url("127.0.0.1" if tls else "localhost")))

        codes = (1, 5) if tls else (0,)
        return HttpCase(name, about, few, old, codes, tls=tls, script=script, secret=secret)

    return [
        leading("away-password", "a redirect to another host, of one who has a password here",
                "password", tls=False),
        leading("away-header", "the same, of one who has a header of their own (X-Api-Key)",
                "header", tls=False),
        leading("plain-password", "a redirect from https to http, of one who has a password",
                "password", tls=True),
        leading("plain-header", "the same, of one who has a header of their own", "header", tls=True),
        HttpCase("round", "a redirect to itself", few, old, (1, 5),
                 script=lambda server, _: server.on("/file", led_to(server.url()))),
    ]  # fmt: skip


def _trees(seed: int) -> list[HttpCase]:
    few = {"file": noise(SMALL, seed), "dir/other": noise(300, seed + 1), "more/last": b"last"}
    old = {"file": b"the old one", "dir/extra": b"only here", "extra": b"only here"}
    below = {name: body for name, body in old.items() if name != "extra"}

    def listing(name: str, about: str, path: str, fault: Fault, there: Files = old) -> HttpCase:
        script: Script = lambda server, _: server.on(path, fault)  # noqa: E731
        return HttpCase(name, about, few, there, (3,), tree=True, delete=True, script=script)

    def listed(*links: str) -> Script:
        return lambda server, _: server.more.update({"": list(links)})

    def naming(server: HostileWeb, trap: HostileWeb) -> None:
        server.files["../outside"] = b"escaped"
        server.more[""] = [
            "../outside", "%2e%2e%2foutside", "..%2foutside", "dir/../../outside", "%2e%2e/outside",
            f"{trap.url()}/file",
        ]  # fmt: skip

    def nesting(server: HostileWeb, _trap: HostileWeb) -> None:
        server.more[""] = ["again/"]
        page = Response(200, {"content-type": "text/html"}, _AGAIN)
        server.on("/again/*", lambda *_: page)

    return [
        listing("list-cut", "an index page that ends in the middle, and the connection with it", "/",
                lambda request, honest: replace(honest(request), cut_at=len(honest(request).body) // 2)),
        listing("list-half", "half of an index page, and a length that agrees", "/",
                faults.truncated_xml(0.6)),
        listing("list-login", "a page for people in place of an index", "/", faults.html),
        listing("list-500", "the page of one directory fails", "/dir/",
                lambda *_: Response(500, {}, b"sorry"), below),
        HttpCase("list-in-itself", "a directory that is in itself, for ever", few, below, (3,),
                 tree=True, delete=True, script=nesting),
        HttpCase("gone", "404 for what was listed", few, old, (8,), tree=True,
                 script=lambda server, _: server.on("/file", lambda *_: Response(404, {}, b""))),
        # A name with an escaped slash in it, as wget writes it, is a name.
        HttpCase("names", "links that lead out of the destination", few | {"..%2Foutside": b"escaped"},
                 old, (1,), refused=("..%2Foutside",), tree=True, script=naming),
        HttpCase("escapes", "a name with commands for the terminal, which cannot be read", few, old, (1, 3),
                 tree=True, script=listed("%1B%5D0;title%07")),
    ]  # fmt: skip


_AGAIN = (
    b'<html><head><title>Index of /again/</title></head><body><h1>Index of /again/</h1><hr><pre>'
    b'<a href="../">../</a>\r\n<a href="again/">again/</a>  14-Nov-2023 22:13  -\r\n</pre></body></html>'
)  # fmt: skip
