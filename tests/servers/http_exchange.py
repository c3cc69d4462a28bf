"""HTTP/1.1 as a test's server speaks it: requests read whole, answers sent honestly or not.

What a `Response` says beside status, headers and body is how it goes wrong on its way.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from http import HTTPStatus
from typing import Self
from urllib.parse import parse_qsl, unquote_to_bytes
from weakref import WeakSet

_BLOCK = 256 << 10
# What a reader may buffer: a whole head, and as much of a body as is worth a wakeup.
STREAM_LIMIT = 256 << 10
# By then all that was written has left, and nothing of it is lost when the connection is cut.
_FLUSHED_S = 0.3


class Malformed(Exception):
    """What came is no request that this server understands."""


@dataclass(frozen=True)
class Request:
    """`path` is as it was sent, `query` and the rest are decoded; names of headers are in lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)

    def without(self, *names: str) -> Request:
        """The same without some headers."""
        return replace(self, headers={k: v for k, v in self.headers.items() if k not in names})

    def asking(self, **query: str | None) -> Request:
        """The same with other parameters, "_" for "-"; None takes one away."""
        new = {key.replace("_", "-"): value for key, value in query.items()}
        merged = {**self.query, **new}
        return replace(self, query={k: v for k, v in merged.items() if v is not None})

    @property
    def key_bytes(self) -> bytes:
        """What comes after the bucket in a path-style address."""
        return unquote_to_bytes(self.path.lstrip("/").partition("/")[2])

    @property
    def bucket(self) -> str:
        return self.path.lstrip("/").partition("/")[0]


@dataclass(frozen=True)
class Response:
    """What to answer, and how it is to fail; offsets are bytes of the body.

    `cut_at` ends the connection there, by a reset if `reset`; `stall_at` sends nothing for `stall_s` from
    there on; `chunked` sends the body without saying its length; `framed` false does so, too, and the end of
    the connection is its own, which TLS does not announce after a cut; `drop` sends nothing at all, for
    `stall_s`, and closes.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_at: int | None = None
    stall_at: int | None = None
    stall_s: float = 0.0
    chunked: bool = False
    reset: bool = False
    drop: bool = False
    framed: bool = True

    def having(self, **headers: str | None) -> Response:
        """The same with other headers, "_" for "-"; None takes one away."""
        new = {name.replace("_", "-").lower(): text for name, text in headers.items()}
        merged = {**self.headers, **new}
        return replace(self, headers={k: v for k, v in merged.items() if v is not None})


async def read_head(reader: asyncio.StreamReader) -> Request | None:
    """The next request without its body, None if the client has closed."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as exc:
        if exc.partial:
            raise Malformed("half a request") from exc
        return None
    except asyncio.LimitOverrunError as exc:
        raise Malformed("an endless head") from exc
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    try:
        method, target, _version = first.split(" ")
        headers = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon:
                raise Malformed(f"a header without a colon: {line!r}")
            headers[name.lower()] = value.strip()
    except ValueError as exc:
        raise Malformed(f"not a request line: {first!r}") from exc
    path, _, query = target.partition("?")
    return Request(
        method, path, dict(parse_qsl(query, keep_blank_values=True, errors="strict")), headers
    )


async def read_body(
    request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> Request:
    """The same with its body, freed of chunks of HTTP and of those that AWS signs."""
    if request.headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    trailers: dict[str, str] = {}
    try:
        if request.headers.get("transfer-encoding", "").lower() == "chunked":
            body = await _read_chunks(reader, trailers)
        else:
            body = await reader.readexactly(int(request.headers.get("content-length", "0")))
    except (asyncio.IncompleteReadError, ValueError) as exc:
        raise Malformed("half a body") from exc
    if request.headers.get("x-amz-content-sha256", "").startswith("STREAMING-"):
        inner = asyncio.StreamReader(limit=len(body) + 1)
        inner.feed_data(body)
        inner.feed_eof()
        body = await _read_chunks(inner, trailers)
        if len(body) != int(request.headers.get("x-amz-decoded-content-length", len(body))):
            raise Malformed("the decoded length is another")
    return replace(request, body=body, trailers=trailers)


async def _read_chunks(reader: asyncio.StreamReader, trailers: dict[str, str]) -> bytes:
    parts = []
    while size := int((await reader.readline()).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        if await reader.readexactly(2) != b"\r\n":
            raise Malformed("a chunk longer than it says")
    while line := (await reader.readline()).strip():
        name, _, value = line.decode("latin-1").partition(":")
        trailers[name.lower()] = value.strip()
    return b"".join(parts)


async def send(request: Request, response: Response, writer: asyncio.StreamWriter) -> bool:
    """Send it, well or badly; whether the connection is good for another request."""
    if response.drop:
        await asyncio.sleep(response.stall_s)
        if response.reset:
            _reset(writer)
        return False
    body = response.body
    headers = {
        "date": formatdate(usegmt=True),
        "server": "hostile",
        "x-amz-request-id": "0123456789ABCDEF",
    } | response.headers
    bodiless = request.method == "HEAD" or response.status in (204, 304)
    if response.chunked:
        headers["transfer-encoding"] = "chunked"
        headers.pop("content-length", None)
    elif response.framed and response.status not in (204, 304):
        headers.setdefault("content-length", str(len(body)))
    try:
        reason = HTTPStatus(response.status).phrase
    except ValueError:
        reason = "Unknown"
    lines = [f"HTTP/1.1 {response.status} {reason}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1", "replace"))
    if bodiless:
        body = b""
    end = len(body) if response.cut_at is None else min(response.cut_at, len(body))
    stall_at = None if response.stall_at is None else min(response.stall_at, end)
    await _send_body(body[: end if stall_at is None else stall_at], writer, response.chunked)
    if stall_at is not None:
        await asyncio.sleep(response.stall_s)
        await _send_body(body[stall_at:end], writer, response.chunked)
    if response.cut_at is not None:
        await writer.drain()
        if response.reset:
            _reset(writer)
        elif not response.framed:
            await asyncio.sleep(_FLUSHED_S)
            writer.transport.abort()
        return False
    if response.chunked and not bodiless:
        writer.write(b"0\r\n\r\n")
    await writer.drain()
    asked = request.headers.get("connection", "").lower()
    # A length that is a lie leaves the two ends at different places in the stream.
    lied = not bodiless and not response.chunked and headers.get("content-length") != str(len(body))
    return (
        response.framed and asked != "close" and headers.get("connection") != "close" and not lied
    )


async def _send_body(body: bytes, writer: asyncio.StreamWriter, chunked: bool) -> None:
    for start in range(0, len(body), _BLOCK):
        piece = body[start : start + _BLOCK]
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Have the connection end by RST: a close with no time to linger (socket(7))."""
    with contextlib.suppress(OSError):
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class ThreadedServer:
    """A server on a port of the loopback, in a thread of its own, from entering the block to leaving it."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self.connections = 0
        self.port = 0
        self._tls = tls
        self._conversations: set[asyncio.Task[None]] = set()
        self._transports: WeakSet[asyncio.WriteTransport] = WeakSet()

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        """Serve connection `number`, of those that were ever made."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        assert ready.wait(10), "the server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(10)
        assert not self._thread.is_alive(), "the server did not end"

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(
            self._accept, "127.0.0.1", 0, ssl=self._tls, limit=STREAM_LIMIT, backlog=1024
        )
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._ended.wait()
        server.close()
        # Some are in the middle of a stall.
        for conversation in self._conversations:
            conversation.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)
        # Closed long ago, and still with something to send that nobody takes.
        for transport in self._transports:
            transport.abort()
        await asyncio.sleep(0)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._transports.add(writer.transport)
        conversation = asyncio.create_task(self._converse(reader, writer, self.connections))
        self._conversations.add(conversation)
        conversation.add_done_callback(self._conversations.discard)
