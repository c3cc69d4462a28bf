"""A web server of our own that does what it is told: honest at first, then as hostile as a script says.

`HostileWeb` runs in a thread, serves files from memory, with ranges, validators and index pages as nginx
makes them, and keeps what it was asked. Faults are those of hostile_s3.py, and the few at the end here.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import html
import re
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from email.utils import formatdate
from fnmatch import fnmatchcase
from urllib.parse import quote, unquote

from http_exchange import Malformed, Request, Response, ThreadedServer, read_head, send

Honest = Callable[[Request], Response]
Fault = Callable[[Request, Honest], Response]
_DATED = 1_700_000_000


@dataclass
class _Rule:
    path: str
    fault: Fault
    skip: int
    times: int | None

    def applies(self, path: str) -> bool:
        """Whether to this one; counts down."""
        if not fnmatchcase(path, self.path) or self.times == 0:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True


class HostileWeb(ThreadedServer):
    """`files` are what it serves, by paths without a slash in front; `more` are names that a directory lists
    beside its own, as they stand in the page, by the directory's path with a slash behind. Its directories
    are those of its files.
    """

    def __init__(self, files: dict[str, bytes], tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls)
        self.files = files
        self.more: dict[str, list[str]] = {}
        self.requests: list[Request] = []
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()

    def on(self, path: str, fault: Fault, *, skip: int = 0, times: int | None = None) -> None:
        """Script a fault for GETs of paths that fit a pattern: `times` of them, after the first `skip`."""
        with self._lock:
            self._rules.append(_Rule(path, fault, skip, times))

    def behave(self) -> None:
        """Drop the script."""
        with self._lock:
            self._rules.clear()
            self.more.clear()

    def url(self, host: str = "127.0.0.1") -> str:
        return f"http{'s' * (self._tls is not None)}://{host}:{self.port}"

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        try:
            while (request := await read_head(reader)) is not None:
                if not await send(request, self._answer(request), writer):
                    break
        except (Malformed, OSError):
            pass  # the client has gone, which is its right
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    # -- what it says ----------------------------------------------------------------------------------

    def _answer(self, request: Request) -> Response:
        path = unquote(request.path, errors="surrogateescape")
        with self._lock:
            self.requests.append(request)
            is_get = request.method == "GET"
            rule = next((each for each in self._rules if is_get and each.applies(path)), None)
        return self._honest(request) if rule is None else rule.fault(request, self._honest)

    def _honest(self, request: Request) -> Response:
        path = unquote(request.path, errors="surrogateescape").lstrip("/")
        if path == "" or path.endswith("/"):
            return self._index(path)
        content = self.files.get(path)
        if content is None:
            return Response(404, {"content-type": "text/plain"}, b"not found")
        etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        headers = {
            "content-type": "application/octet-stream",
            "last-modified": formatdate(_DATED, usegmt=True),
            "etag": etag,
            "accept-ranges": "bytes",
        }
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if asked and request.headers.get("if-range", etag) in (etag, headers["last-modified"]):
            first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
            if first > last:
                headers["content-range"] = f"bytes */{len(content)}"
                return Response(416, headers)
            headers["content-range"] = f"bytes {first}-{last}/{len(content)}"
            return Response(206, headers, content[first : last + 1])
        return Response(200, headers, content)

    def _index(self, above: str) -> Response:
        """A page as nginx's autoindex makes it."""
        below = {name.removeprefix(above) for name in self.files if name.startswith(above)}
        names = sorted({re.sub("/.*", "/", name, flags=re.DOTALL) for name in below})
        if not names and above and above not in self.more:
            return Response(404, {"content-type": "text/plain"}, b"not found")
        title = html.escape(f"Index of /{above}")
        links = [quote(name) for name in names] + self.more.get(above, [])
        rows = [
            f'<a href="{html.escape(link)}">{html.escape(unquote(link))}</a>'
            f"  14-Nov-2023 22:13  {self._size(above, link)}"
            for link in links
        ]
        page = (
            f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<h1>{title}</h1><hr>"
            f'<pre><a href="../">../</a>\r\n' + "".join(f"{row}\r\n" for row in rows)
        ) + "</pre><hr></body>\r\n</html>\r\n"
        body = page.encode("utf-8", "surrogateescape")
        return Response(200, {"content-type": "text/html; charset=utf-8"}, body)

    def _size(self, above: str, link: str) -> str:
        content = self.files.get(above + unquote(link))
        return "-" if content is None else str(len(content))


# -- faults ------------------------------------------------------------------------------------------------


def whole_or_cut(at: int) -> Fault:
    """A body without a length, whose end is that of the connection, which is cut `at` there: by TLS that
    does not say so."""

    def fault(request: Request, honest: Honest) -> Response:
        answer = honest(request.without("range"))
        return replace(answer, cut_at=at, framed=False)

    return fault


def led_to(url: str) -> Fault:
    """302 to the same path elsewhere."""
    return lambda request, _honest: Response(302, {"location": url + request.path})
