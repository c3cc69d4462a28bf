"""Lean HTTP/1.1 for bodies and small objects: raw sockets, no object per chunk, no task per request.

Three ways to move bytes, by what is measured to be cheapest (benches/wire.py):

- small exchanges (`Wire.ask`, `Wire.ask_all`) are a state machine per connection, driven by callbacks of
  the event loop: nothing is awaited per item;
- bodies to and from files run in threads over blocking sockets, a large buffer or ``sendfile`` at a time,
  with the interpreter's lock released;
- a body in order (`Wire.receive`) is read by such a thread, one buffer ahead of its reader.

What comes from a server is bounded and checked: lengths that contradict each other, heads that go on and
bytes that nobody asked for end the connection.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import math
import os
import re
import select
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from fastsync.backend import READ_BUFFER, Buffer, Progress
from fastsync.errors import (
    AccessRefused,
    Changed,
    FastsyncError,
    IntegrityError,
    Stalled,
    Transient,
    UsageError,
    from_os_error,
)
from fastsync.redaction import conceal
from fastsync.splicing import CAN_SPLICE, Splice
from fastsync.tls import RecordSocket, TlsSocket

T = TypeVar("T")

MAX_HEAD: Final = 64 << 10
MAX_LINES: Final = 200
MAX_BODY: Final = 16 << 20
# What is collected of an answer that is no success, to tell why.
MAX_REFUSAL: Final = 1 << 20
_BLOCK: Final = READ_BUFFER  # less costs calls and turns of the interpreter, more brings nothing
_SMALL: Final = 64 << 10
# How much of a body the kernel gathers before it wakes a thread, and for how long it does at the most.
_GATHERED: Final = 256 << 10
_GATHERING_S: Final = 0.2
# Less at once than this comes more slowly than it is taken, and is worth waiting for.
_WORTH_A_CALL: Final = 64 << 10
# Records of less are better taken together, and after how many bytes that is known.
_SMALL_RECORD: Final = 8 << 10
_ENOUGH_TO_TELL: Final = 4 << 20
# A round trip to a server with which the kernel may move bytes one call after the other.
_NEAR_S: Final = 0.002
# Where struct tcp_info of Linux (include/uapi/linux/tcp.h) has tcpi_min_rtt, in microseconds.
_MIN_RTT_AT: Final = 148
# Progress is told when so much has moved and so long has passed: each time wakes the event loop.
_TELL_EVERY: Final = 1 << 20
_TELL_EVERY_S: Final = 0.02
_TICK_S: Final = 1.0
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?")


# socket(7), <asm-generic/socket.h>; Python has no name for it. All bits set: no limit.
_SO_MAX_PACING_RATE: Final = 47
_NO_RATE: Final = 0xFFFFFFFF


class Origin(NamedTuple):
    """A server: `scheme` is "http" or "https"."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """The Host header: the port only if it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = 443 if self.scheme == "https" else 80
        return host if self.port == usual else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class WireOptions:
    """How to reach a server, and how patiently. Times in seconds, sizes in bytes.

    `request_timeout_s` bounds the silence before an answer begins, `stall_timeout_s` that within a body;
    `min_rate` is the least of a body, in bytes per second over a stall timeout. `proxy` is a URL. `send_rate`
    tells how many bytes per second a connection may send at this moment, None without a limit; it is kept
    to by the kernel, where it can (SO_MAX_PACING_RATE of socket(7)). `by_record` is for reading: records of
    TLS from nearby are taken from the socket one by one, as long as they are large.
    """

    connections: int = 8
    connect_timeout_s: float = 30.0
    request_timeout_s: float = 60.0
    stall_timeout_s: float = 60.0
    min_rate: int = 64
    idle_s: float = 30.0
    send_buffer: int | None = None
    recv_buffer: int | None = None
    send_rate: Callable[[], float | None] | None = None
    congestion_control: str | None = None
    by_record: bool = False
    verify: bool = True
    ca_file: str | None = None
    proxy: str | None = None


class Headers:
    """Header lines of an answer, found by lower-case name. Repeated ones are joined by ", "."""

    __slots__ = ("_lines",)

    def __init__(self, lines: dict[str, str]) -> None:
        self._lines = lines

    def get(self, name: str, default: str | None = None) -> str | None:
        return self._lines.get(name, default)

    def __getitem__(self, name: str) -> str:
        return self._lines[name]

    def __contains__(self, name: object) -> bool:
        return name in self._lines

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def keys(self) -> Iterable[str]:
        return self._lines.keys()

    def items(self) -> Iterable[tuple[str, str]]:
        return self._lines.items()


class Memory(NamedTuple):
    """Memory to receive into; its first byte is the one at `start` of the file."""

    start: int
    view: memoryview


class Outgoing(NamedTuple):
    """A request: `head` from the request line to the empty line, complete, and the body.

    What is `repeatable` is sent again, once, when a connection that was used before turns out to be dead.
    `is_head`: the answer has no body, whatever it says. `is_look`: only its head is wanted; a body that
    is longer than may be costs its connection, and is no error.
    """

    head: bytes
    body: Buffer = b""
    repeatable: bool = True
    is_head: bool = False
    is_look: bool = False


class Reply(NamedTuple):
    """An answer. `body` is empty where it went elsewhere."""

    status: int
    reason: str
    headers: Headers
    body: bytes


Socket: TypeAlias = socket.socket | TlsSocket | RecordSocket
# Sends a request with this head, and tells of the bytes of its body.
_Send: TypeAlias = Callable[[Socket, bytes, Callable[[int], None]], None]


class _Dead(Exception):
    """A connection ended before an answer began; never leaves this module."""


class _Disk(Exception):
    """Our own file could not be written, by the OSError that is its cause; never leaves this module."""


class _Head(NamedTuple):
    status: int
    reason: str
    headers: Headers
    length: int | None  # of the body, None to its end
    chunked: bool
    keeps: bool  # the connection may be used again


def _split_line(line: str) -> tuple[str, str]:
    """The lower-case name and the value of a header line. Raises IntegrityError."""
    name, colon, value = line.partition(":")
    if not colon or not _TOKEN.fullmatch(name) or "\n" in line or "\0" in line:
        raise IntegrityError("the server's answer has a header line that is none")
    return name.lower(), value.strip(" \t")


# Of a thousand small files, most lines say what the one before said.
_split_known_line: Final = lru_cache(256)(_split_line)


def _parse_head(data: bytes, is_head: bool) -> _Head:
    """A response head, without the empty line. Raises IntegrityError."""
    text = data.decode("latin-1")
    lines = text.split("\r\n")
    status_line = lines[0]
    is_http = status_line.startswith("HTTP/1.") and text.count("\r") == len(lines) - 1
    if len(lines) > MAX_LINES or not is_http:
        raise IntegrityError("the server's answer is not HTTP/1.1")
    code = status_line[9:12]
    if not code.isdecimal() or len(code) != 3 or status_line[12:13] not in ("", " "):
        raise IntegrityError("the server's answer has no status")
    found: dict[str, str] = {}
    for line in lines[1:]:
        name, value = _split_known_line(line) if len(line) < 128 else _split_line(line)
        if name in found:
            if name == "content-length" and found[name] != value:
                raise IntegrityError("the server's answer has two lengths")
            if name != "content-length":
                found[name] += ", " + value
        else:
            found[name] = value
    status = int(code)
    length: int | None = None
    told = found.get("content-length")
    if told is not None:
        if not told.isdecimal() or len(told) > 18:
            raise IntegrityError("the server's answer has a length that is none")
        length = int(told)
    chunked = False
    if (coding := found.get("transfer-encoding")) is not None:
        if coding.lower() != "chunked" or length is not None:
            raise IntegrityError("the server's answer says in two ways where it ends")
        chunked = True
    connection = found.get("connection", "").lower()
    keeps = "close" not in connection and (status_line[7] == "1" or "keep-alive" in connection)
    if is_head or status in (204, 304) or status < 200:
        length, chunked = 0, False
    elif length is None and not chunked:
        keeps = False
    return _Head(status, status_line[13:], Headers(found), length, chunked, keeps)


class _Chunks:
    """Takes the chunked coding off what is fed to it."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._left = 0
        self._trailer = 0
        self._state = "size"
        self.done = False
        self.excess = b""

    def feed(self, data: memoryview) -> Iterator[memoryview]:
        """The body's bytes in `data`. Raises IntegrityError."""
        while data and not self.done:
            if self._state == "data":
                taken = data[: self._left]
                data = data[len(taken) :]
                self._left -= len(taken)
                if not self._left:
                    self._state = "end"
                yield taken
                continue
            end = bytes(data[:MAX_HEAD]).find(b"\n")
            self._line += data[: end + 1 if end >= 0 else len(data)]
            if len(self._line) > MAX_HEAD:
                raise IntegrityError("the server's answer has a line without end")
            if end < 0:
                return
            data = data[end + 1 :]
            line = bytes(self._line)
            self._line.clear()
            if not line.endswith(b"\r\n"):
                raise IntegrityError("the server's answer is not in chunks as it says")
            self._take_line(line[:-2])
        self.excess = bytes(data)

    def _take_line(self, line: bytes) -> None:
        if self._state == "size":
            match = _SIZE_LINE.fullmatch(line)
            if match is None:
                raise IntegrityError("the server's answer has a chunk without a size")
            self._left = int(match[1], 16)
            self._state = "data" if self._left else "trailer"
        elif self._state == "end":
            if line:
                raise IntegrityError("the server's answer has a chunk that is too long")
            self._state = "size"
        elif line:
            self._trailer += len(line)
            if self._trailer > MAX_HEAD:
                raise IntegrityError("the server's answer has a trailer without end")
        else:
            self.done = True


class _Connection:
    """One socket to the server, and the small exchange on it."""

    def __init__(self, wire: Wire, sock: Socket) -> None:
        self._wire = wire
        self._loop = asyncio.get_running_loop()
        self.sock = sock
        self.fd = sock.fileno()
        self.used = False
        self.idle_since = 0.0
        self._tls = None if isinstance(sock, socket.socket) else sock
        self._request: Outgoing | None = None
        self._done: Callable[[_Connection, Reply | Exception], None] | None = None
        self._most = 0
        self._out: memoryview = memoryview(b"")
        self._data = bytearray()
        self._head: _Head | None = None
        self._chunks: _Chunks | None = None
        self._body = bytearray()
        self._interim = 0  # bytes of heads that were not the answer's
        self._active = 0.0
        self._received = 0
        # What had come of the answer when its rate was looked at last, None before it begins.
        self._looked: tuple[float, int] | None = None
        self._reads = False
        self._writes = False
        self._rate = _NO_RATE

    def start(
        self,
        request: Outgoing,
        most: int,
        done: Callable[[_Connection, Reply | Exception], None],
    ) -> None:
        """Begin a small exchange; `done` is told how it ended, from the event loop."""
        self._request, self._most, self._done = request, most, done
        self._head = self._chunks = self._looked = None
        self._interim = self._received = 0
        self._active = time.monotonic()
        self._wire.active.add(self)
        self.hold_back()
        if not self._reads:
            self._reads = True
            self._loop.add_reader(self.fd, self._on_readable)
        body = request.body
        if not body:
            self._out = memoryview(request.head)
        elif len(body) <= _SMALL:
            self._out = memoryview(b"".join((request.head, body)))
        else:
            self._out = memoryview(bytearray(request.head) + body)
        self._on_writable()

    def hold_back(self) -> None:
        """Have the kernel send no faster than may be now."""
        asked = self._wire.options.send_rate
        if asked is None or sys.platform != "linux":
            return
        rate = asked()
        wanted = _NO_RATE if rate is None else max(1, min(round(rate), _NO_RATE))
        if wanted != self._rate:
            with contextlib.suppress(OSError):  # the parts' turns hold without it, on average
                self.sock.setsockopt(
                    socket.SOL_SOCKET, _SO_MAX_PACING_RATE, struct.pack("I", wanted)
                )
            self._rate = wanted

    def _on_writable(self) -> None:
        out, is_sent = self._out, True
        try:
            while out:
                out = out[self.sock.send(out) :]
                self._active = time.monotonic()
            if self._tls is not None:
                self._tls.flush()
        except BlockingIOError:
            is_sent = False
            if not self._writes:
                self._writes = True
                self._loop.add_writer(self.fd, self._on_writable)
        except OSError as error:
            # Perhaps the server has said why it will hear no more.
            out = memoryview(b"")
            if not isinstance(error, BrokenPipeError | ConnectionResetError):
                self._end(error)
                return
        self._out = out
        if is_sent and self._writes:
            self._writes = False
            self._loop.remove_writer(self.fd)

    def _on_readable(self) -> None:
        try:
            data = self.sock.recv(_SMALL)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error)
            return
        if self._request is None:  # an end, or bytes that nobody asked for
            self.close()
            return
        self._active = time.monotonic()
        self._received += len(data)
        try:
            if not data:
                self._on_end()
                return
            self._take(data)
            while self._pending():
                data = self.sock.recv(_SMALL)
                self._received += len(data)
                self._take(data)
        except BlockingIOError:
            return
        except (FastsyncError, OSError, _Dead) as error:
            self._end(error)

    def _pending(self) -> bool:
        """True when TLS holds bytes of this exchange that the loop cannot see."""
        if self._request is None:
            return False
        return self._tls is not None and self._tls.has_more

    def _on_end(self) -> None:
        head = self._head
        if head is None:
            raise _Dead if not self._data else Transient("the server cut its answer off")
        if head.length is None and not head.chunked:
            self._finish(head, bytes(self._body), keeps=False)
            return
        raise Transient("the server cut its answer off")

    def _take(self, data: bytes) -> None:
        head = self._head
        while head is None:
            if self._data:
                self._data += data
                data = bytes(self._data)
            end = data.find(b"\r\n\r\n")
            if (len(data) if end < 0 else end) > MAX_HEAD:
                raise IntegrityError("the head of the server's answer is too long")
            if end < 0:
                self._data = bytearray(data)
                return
            self._data = bytearray()
            request = self._request
            assert request is not None
            told = _parse_head(data[:end], request.is_head)
            data = data[end + 4 :]
            if told.status < 200:
                self._interim += end
                if self._interim > MAX_HEAD:
                    raise IntegrityError("the server goes on without an answer")
                continue
            head = told
            length = head.length
            if not 200 <= head.status < 300 and not request.is_look:
                # How long a page about a failure is says nothing of what was asked for.
                self._most = max(self._most, MAX_REFUSAL)
            if request.is_look and (length is None or length > self._most):
                self._finish(head, b"", keeps=False)
                return
            if length is not None and not head.chunked:
                if length > self._most:
                    raise IntegrityError(f"an answer of {length} bytes is more than was asked for")
                if len(data) >= length:  # all of it at once, as small ones come
                    self._finish(head, data[:length], keeps=len(data) == length)
                    return
            self._head = head
            self._body = bytearray()
            if head.chunked:
                self._chunks = _Chunks()
        self._collect(head, data)

    def _collect(self, head: _Head, data: bytes) -> None:
        if self._chunks is not None:
            for piece in self._chunks.feed(memoryview(data)):
                self._body += piece
        else:
            self._body += data
        if len(self._body) > self._most:
            raise IntegrityError(f"an answer of over {self._most} bytes is more than was asked for")
        if self._chunks is not None:
            if self._chunks.done:
                self._finish(head, bytes(self._body), keeps=not self._chunks.excess)
        elif head.length is not None and len(self._body) >= head.length:
            exact = len(self._body) == head.length
            self._finish(head, bytes(self._body[: head.length]), keeps=exact)

    def _finish(self, head: _Head, body: bytes, *, keeps: bool) -> None:
        keeps = keeps and head.keeps and not self._out and not self._writes
        self._over(Reply(head.status, head.reason, head.headers, body), keeps=keeps)

    def _end(self, error: Exception) -> None:
        if isinstance(error, OSError) and self._head is None and not self._data:
            error = _Dead(error)
        self._over(error, keeps=False)

    def _over(self, outcome: Reply | Exception, *, keeps: bool) -> None:
        done, self._done, self._request = self._done, None, None
        self._wire.active.discard(self)
        self._head = self._chunks = None
        self.used = True
        if not keeps:
            self.close()
        if done is not None:
            done(self, outcome)

    def check(self, now: float, options: WireOptions) -> None:
        """End an exchange that stands still."""
        begun = self._head is not None or bool(self._data)
        patience = options.stall_timeout_s if begun or self._out else options.request_timeout_s
        if now - self._active > patience:
            self._over(Stalled(f"the server was silent for {patience:g} s"), keeps=False)
        elif self._looked is None:
            if self._received:
                self._looked = now, self._received
        elif now - self._looked[0] >= options.stall_timeout_s:
            if self._received - self._looked[1] < options.min_rate * options.stall_timeout_s:
                self._over(_too_slow(options), keeps=False)
            else:
                self._looked = now, self._received

    def detach(self) -> None:
        """Hand the socket to a thread."""
        if self._reads:
            self._reads = False
            self._loop.remove_reader(self.fd)
        if self._writes:
            self._writes = False
            self._loop.remove_writer(self.fd)

    def fail(self, error: FastsyncError) -> None:
        """End the exchange."""
        self._over(error, keeps=False)

    def abandon(self) -> None:
        """Nobody waits for the exchange any more."""
        self._done = None
        if self._request is not None:
            self._over(_Dead(), keeps=False)

    @property
    def is_open(self) -> bool:
        return self.fd >= 0

    def is_fresh(self) -> bool:
        """False when the server has closed it, or sent what nobody asked for."""
        sock = self.sock
        if not isinstance(sock, socket.socket):  # TLS cannot be peeked into
            return not sock.has_more and not _has_come(sock)
        try:
            sock.setblocking(False)
            sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def close(self) -> None:
        if self.fd >= 0:
            self.detach()
            self.fd = -1
            self.sock.close()
            self._wire.closed(self)


class Wire:
    """Connections to one server: at most so many, kept for `idle_s`, the last used first."""

    def __init__(self, origin: Origin, options: WireOptions) -> None:
        self.origin = origin
        self.options = options
        self.active: set[_Connection] = set()
        self._idle: list[_Connection] = []
        self._count = 0
        self._waiting: collections.deque[asyncio.Future[None]] = collections.deque()
        self._threads: ThreadPoolExecutor | None = None
        self._context: ssl.SSLContext | None = None
        self._is_cut_small = False  # into records that are not worth two system calls each
        # When a plain connection was made last, and where it led (`socket.getaddrinfo`).
        self._known: tuple[float, tuple[Any, Any, int, str, Any]] | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._buffers: list[bytearray] = []
        self._closed = False

    # -- connections ---------------------------------------------------------------------------------

    def closed(self, connection: _Connection) -> None:
        """A connection is gone: there is room for another."""
        self._count -= 1
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)
        self._admit()

    def _admit(self) -> None:
        while self._waiting and (self._idle or self._count < self.options.connections):
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def _pooled(self) -> _Connection | None:
        now = time.monotonic()
        while self._idle:
            connection = self._idle.pop()
            if now - connection.idle_since <= self.options.idle_s and connection.is_fresh():
                return connection
            connection.close()
        return None

    async def _acquire(self, *, fresh: bool = False) -> _Connection:
        while True:
            if not fresh and (pooled := self._pooled()) is not None:
                return pooled
            if self._count < self.options.connections:
                self._count += 1
                try:
                    return await self._connect()
                except BaseException:
                    self._count -= 1
                    self._admit()
                    raise
            if fresh and self._idle:
                self._idle.pop(0).close()
                continue
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                self._admit()
                raise

    def _release(self, connection: _Connection) -> None:
        if not connection.is_open:
            return
        if self._closed:
            connection.close()
            return
        connection.idle_since = time.monotonic()
        self._idle.append(connection)
        self._tick_later()
        self._admit()

    def _tick_later(self) -> None:
        if self._ticker is None and not self._closed:
            self._ticker = asyncio.get_running_loop().call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticker = None
        now = time.monotonic()
        for connection in list(self.active):
            connection.check(now, self.options)
        for connection in list(self._idle):
            if now - connection.idle_since > self.options.idle_s:
                connection.close()
        if self.active or self._idle:
            self._tick_later()

    async def _connect(self) -> _Connection:
        sock: Socket | None = None
        if self._known is not None:
            sock = await self._connect_again()
        if sock is None:
            opening = _Opening()
            sock = await self._in_thread(
                lambda: self._open_socket(opening), opening.give_up, lambda made: made.close()
            )
        if self._closed:
            sock.close()
            raise Transient("the connection was closed", where=str(self.origin))
        return _Connection(self, sock)

    async def _connect_again(self) -> socket.socket | None:
        """A socket to where the last one led, without a thread; None where that does not work, or not
        any more."""
        assert self._known is not None
        found_at, (family, kind, protocol, _, address) = self._known
        if time.monotonic() - found_at > self.options.idle_s:
            self._known = None
            return None
        sock = socket.socket(family, kind, protocol)
        try:
            self._tune(sock)
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await asyncio.wait_for(loop.sock_connect(sock, address), self.options.connect_timeout_s)
        except (OSError, TimeoutError):
            sock.close()
            self._known = None
            return None
        except BaseException:
            sock.close()
            raise
        return sock

    def _open_socket(self, opening: _Opening) -> Socket:
        """A connected socket, non-blocking. Blocks until `opening` is given up; raises FastsyncError."""
        options, origin = self.options, self.origin
        where = str(origin)
        proxy = _parse_proxy(options.proxy) if options.proxy else None
        host, port = (origin.host, origin.port) if proxy is None else (proxy.host, proxy.port)
        try:
            # As bytes: text is encoded by a module that takes longer to import than all of this.
            name = host.encode() if host.isascii() else host
            found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN:
                raise Transient(f"the name {host} cannot be looked up now", where=where) from error
            raise AccessRefused(
                f"there is no host {host}", where=where, hint="check the name"
            ) from error
        failure: OSError | None = None
        for place in found:
            family, kind, protocol, _, address = place
            plain = socket.socket(family, kind, protocol)
            sock: Socket = plain
            try:
                opening.now(plain)
                self._tune(plain)
                plain.settimeout(options.connect_timeout_s)
                plain.connect(address)
                if proxy is not None and origin.scheme == "https":
                    _tunnel(plain, origin, proxy)
                if origin.scheme == "https":
                    sock = secured = self._secure(plain)
                    opening.now(secured)
                    secured.do_handshake()
                    secured.setblocking(False)
                    return secured
                if proxy is None:
                    self._known = time.monotonic(), place
                sock.setblocking(False)
                return sock
            except ssl.SSLCertVerificationError as error:
                sock.close()
                raise AccessRefused(
                    f"the server's certificate is not trusted: {error.verify_message}",
                    where=where,
                    hint="SSL_CERT_FILE names certificates to trust",
                ) from error
            except OSError as error:
                sock.close()
                failure = error
            except BaseException:
                sock.close()
                raise
        if isinstance(failure, TimeoutError):
            raise Stalled(
                f"no connection within {options.connect_timeout_s:g} s", where=where
            ) from failure
        if isinstance(failure, ssl.SSLError):
            raise AccessRefused(f"no TLS: {failure.reason}", where=where) from failure
        raise from_os_error(failure or OSError("no address"), where) from failure

    def _tune(self, sock: socket.socket) -> None:
        options = self.options
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            patience = int(options.stall_timeout_s * 1000)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience)
        if options.send_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, options.send_buffer)
        if options.recv_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, options.recv_buffer)
        if options.congestion_control is not None and hasattr(socket, "TCP_CONGESTION"):
            with contextlib.suppress(OSError):  # the kernel has not got it
                name = options.congestion_control.encode()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name)

    def _secure(self, sock: socket.socket) -> TlsSocket | RecordSocket:
        """TLS over a socket, but for the handshake."""
        context = self._context
        if context is None:
            try:
                context = ssl.create_default_context(cafile=self.options.ca_file)
            except OSError as error:
                raise UsageError(
                    "the file of trusted certificates cannot be used", where=self.options.ca_file
                ) from error
            context.set_alpn_protocols(["http/1.1"])
            if not self.options.verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            self._context = context
        is_near = self.options.by_record and not self._is_cut_small and _rtt_s(sock) < _NEAR_S
        return (RecordSocket if is_near else TlsSocket)(sock, context, self.origin.host)

    async def _in_thread(
        self,
        work: Callable[[], T],
        on_cancel: Callable[[], object] | None = None,
        undo: Callable[[T], object] | None = None,
    ) -> T:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.options.connections + 2, "fastsync-wire")
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if on_cancel is not None:
                on_cancel()
            # However often we are cancelled: what it works with must not be closed under its hands.
            while not future.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([future])
            if not future.cancelled() and future.exception() is None and undo is not None:
                undo(future.result())
            raise

    def renew(self) -> None:
        """Close what is idle: the next exchanges have connections of their own."""
        for connection in [*self._idle]:
            connection.close()

    async def aclose(self) -> None:
        """Close every connection. Idempotent."""
        self._closed = True
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        for connection in [*self.active]:
            connection.fail(Transient("the connection was closed", where=str(self.origin)))
        for connection in [*self._idle]:
            connection.close()
        threads, self._threads = self._threads, None
        if threads is not None:
            await asyncio.get_running_loop().run_in_executor(None, threads.shutdown)

    def _error(self, error: Exception) -> FastsyncError:
        """What ended an exchange, with its place."""
        where = str(self.origin)
        if isinstance(error, FastsyncError):
            return error.at(where)
        if isinstance(error, _Dead):
            ours = Transient("the server closed the connection without an answer", where=where)
        elif isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
            ours = from_os_error(error, where)  # type: ignore[assignment]
        else:
            ours = Transient(f"the connection broke: {type(error).__name__}", where=where)
        ours.__cause__ = error
        return ours

    # -- small exchanges -----------------------------------------------------------------------------

    async def ask(self, request: Outgoing, *, most: int = MAX_BODY) -> Reply:
        """One exchange, its body in memory. Raises FastsyncError."""
        (answer,) = await self.ask_all([request], width=1, most=most)
        if isinstance(answer, FastsyncError):
            raise answer
        return answer

    async def ask_all(
        self,
        requests: Iterable[Outgoing],
        *,
        width: int | Callable[[], int],
        most: int = MAX_BODY,
        busy: Callable[[], None] = lambda: None,
    ) -> list[Reply | FastsyncError]:
        """Exchanges, up to `width` at once; the answers in the order of the requests.

        Requests are taken as connections get free. An error is one item's answer. `busy` is called for each
        503 as it comes, so that it can make `width` less.
        """
        if self._is_proxied:
            requests = map(self._through_proxy, requests)
        most_at_once = width if callable(width) else lambda: width
        batch = _Batch(self, iter(requests), most_at_once, most, busy)
        try:
            return await batch.run()
        except BaseException:
            batch.abandon()
            raise

    # -- bodies --------------------------------------------------------------------------------------

    async def receive_into_file(
        self,
        request: Outgoing,
        target: int | Memory,
        offset: int,
        length: int,
        *,
        check: Callable[[int, Headers], None],
        progress: Progress,
        digest: Callable[[memoryview], object] | None = None,
        digests: Callable[[], bool] = lambda: True,
        took: Callable[[int], object] = lambda _count: None,
    ) -> Reply:
        """The body of the answer, exactly `length` bytes, to `offset` of `target`, a descriptor or memory;
        `check` is called with status and headers before a byte is written, in a thread, as is `digest` with
        what comes, unless `digests` says, after `check`, that there is nothing to add up; the kernel moves
        the bytes by itself then, where it can. `took` is told how much was taken each time, there too.

        An answer that is no success is returned with its body, and nothing is written. Raises Transient
        when the body is cut off, IntegrityError when its length is not as announced.
        """

        def take(body: _Body) -> Reply:
            head = body.head
            if not 200 <= head.status < 300:
                return body.refusal()
            check(head.status, head.headers)
            if head.length is not None and not head.chunked and head.length != length:
                raise IntegrityError(f"{head.length} bytes are announced, {length} were asked for")
            position, stop = offset, offset + length
            memory = None if isinstance(target, int) else target.view[offset - target.start :]
            sees = digest if digests() else None
            if isinstance(target, int) and sees is None and body.is_spliced:
                for count in body.splice(target, position):
                    took(count)
                    body.tell(count)
                return Reply(head.status, head.reason, head.headers, b"")
            # A body without chunks is received where it is to be.
            place = None if memory is None or head.length is None else memory[:length]
            for piece in body.pieces(into=place):
                if position + len(piece) > stop:
                    raise IntegrityError("more bytes came than were asked for")
                if sees is not None:
                    sees(piece)
                count = len(piece)
                if isinstance(target, int):
                    _write_at(target, piece, position)
                elif memory is not None and place is None:
                    memory[position - offset : position - offset + count] = piece
                position += count
                took(count)
                body.tell(count)
            if position != stop:
                raise IntegrityError(f"{position - offset} of {length} bytes came")
            return Reply(head.status, head.reason, head.headers, b"")

        return await self._by_thread(request, take, progress)

    async def send_from_file(
        self, request: Outgoing, fd: int, start: int, stop: int, progress: Progress
    ) -> Reply:
        """Send the head and the bytes [start, stop) of `fd`. Raises Changed when the file ends early.

        A server that answers before it has heard all of it is listened to.
        """

        def send(sock: Socket, head: bytes, tell: Callable[[int], None]) -> None:
            if not isinstance(sock, socket.socket):
                self._send_by_buffer(sock, head, fd, start, stop, tell)
                return
            _send_all(sock, memoryview(head), socket.MSG_MORE if stop > start else 0)
            position = start
            while position < stop:
                count = os.sendfile(sock.fileno(), fd, position, min(stop - position, 8 << 20))
                if not count:
                    raise Changed("the file ends before the part that was to be sent")
                position += count
                tell(count)

        return await self._by_thread(request, _Body.reply, progress, send)

    def _send_by_buffer(
        self,
        sock: TlsSocket | RecordSocket,
        head: bytes,
        fd: int,
        start: int,
        stop: int,
        tell: Callable[[int], None],
    ) -> None:
        _send_all(sock, memoryview(head))
        with self._buffer() as block:
            position = start
            while position < stop:
                count = os.preadv(fd, [block[: stop - position]], position)
                if not count:
                    raise Changed("the file ends before the part that was to be sent")
                _send_all(sock, block[:count])
                position += count
                tell(count)

    async def receive(
        self,
        request: Outgoing,
        *,
        check: Callable[[int, Headers], None],
        refused: Callable[[Reply], FastsyncError],
    ) -> AsyncIterator[memoryview]:
        """The body of the answer in order, as buffers of at most READ_BUFFER bytes, each valid until the
        next is asked for. `check` is called first, in a thread, and may raise.

        Of an answer that is no success nothing is yielded: what `refused` makes of it is raised. Leaving
        early drops the connection.
        """
        loop = asyncio.get_running_loop()
        ready: asyncio.Queue[memoryview | Exception | None] = asyncio.Queue()
        room = threading.Semaphore(2)
        left = threading.Event()

        def put(item: memoryview | Exception | None) -> None:
            loop.call_soon_threadsafe(ready.put_nowait, item)

        def take(body: _Body) -> Reply:
            head = body.head
            if not 200 <= head.status < 300:
                raise refused(body.refusal())
            check(head.status, head.headers)
            for piece in body.pieces(own=True):
                room.acquire()
                if left.is_set():
                    raise _Dead
                put(piece)
            return Reply(head.status, head.reason, head.headers, b"")

        async def run() -> None:
            try:
                await self._by_thread(request, take, lambda _count: None)
            except FastsyncError as error:
                ready.put_nowait(error)
            else:
                ready.put_nowait(None)

        task = asyncio.create_task(run())
        try:
            while (item := await ready.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
                room.release()
        finally:
            left.set()
            room.release()
            room.release()
            task.cancel()
            await asyncio.wait([task])

    @property
    def _is_proxied(self) -> bool:
        """True when a proxy is told of each request where it goes, rather than of the connection."""
        return self.options.proxy is not None and self.origin.scheme == "http"

    def _through_proxy(self, request: Outgoing) -> Outgoing:
        """The request as a proxy takes it: with the whole URL (RFC 9112, 3.2.2)."""
        proxy = _parse_proxy(self.options.proxy or "")
        line, _, rest = request.head.partition(b"\r\n")
        method, _, target = line.partition(b" ")
        head = f"{method.decode()} {self.origin}".encode() + target + b"\r\n"
        return request._replace(head=head + proxy.authorization.encode() + rest)

    async def _by_thread(
        self,
        request: Outgoing,
        take: Callable[[_Body], Reply],
        progress: Progress,
        send: _Send | None = None,
    ) -> Reply:
        """A whole exchange by a thread over a blocking socket."""
        if self._is_proxied:
            request = self._through_proxy(request)
        fresh = False
        while True:
            connection = await self._acquire(fresh=fresh)
            try:
                return await self._exchange(connection, request, take, progress, send)
            except _Dead as error:
                if not connection.used or fresh or not request.repeatable:
                    raise self._error(error) from error
                fresh = True
            except _Disk as error:
                cause = error.__cause__
                assert isinstance(cause, OSError)
                raise from_os_error(cause) from cause  # the place is the caller's to name
            except (FastsyncError, OSError) as error:
                raise self._error(error) from error

    async def _exchange(
        self,
        connection: _Connection,
        request: Outgoing,
        take: Callable[[_Body], Reply],
        progress: Progress,
        send: _Send | None,
    ) -> Reply:
        connection.detach()
        connection.hold_back()
        sock = connection.sock
        loop = asyncio.get_running_loop()
        untold, told_at = 0, time.monotonic()

        def tell(count: int) -> None:
            nonlocal untold, told_at
            untold += count
            if untold >= _TELL_EVERY and (now := time.monotonic()) - told_at >= _TELL_EVERY_S:
                loop.call_soon_threadsafe(progress, untold)
                untold, told_at = 0, now

        def work() -> tuple[Reply, bool]:
            sock.setblocking(True)
            _set_timeouts(sock, self.options.stall_timeout_s)
            refused: OSError | None = None
            try:
                if send is None:
                    _send_all(sock, memoryview(request.head))
                    if request.body:
                        _send_all(sock, memoryview(request.body))
                else:
                    send(sock, request.head, tell)
            except (BrokenPipeError, ConnectionResetError) as error:
                refused = error  # perhaps it has said why
            except BlockingIOError as error:
                if not _has_come(sock):
                    raise Stalled("the server takes no more bytes") from error
                refused = error
            _set_timeouts(sock, self.options.request_timeout_s)
            with self._buffer() as block:
                body = _Body(self, sock, request.is_head, block, tell, refused)
                reply = take(body)
                body.drain()
            return reply, body.keeps and refused is None

        try:
            reply, keeps = await self._in_thread(work, lambda: _shut(sock))
        except BaseException:
            connection.close()
            raise
        if untold:
            progress(untold)
        connection.used = True
        if isinstance(sock, RecordSocket) and sock.received > _ENOUGH_TO_TELL:
            self._is_cut_small = sock.received < _SMALL_RECORD * sock.records
            keeps = keeps and not self._is_cut_small
        if keeps:
            sock.setblocking(False)
            self._release(connection)
        else:
            connection.close()
        return reply

    @contextlib.contextmanager
    def _buffer(self) -> Iterator[memoryview]:
        """A buffer for one thread's use; they are kept, as pages cost more than copies."""
        block = self._buffers.pop() if self._buffers else bytearray(_BLOCK)
        view = memoryview(block)
        try:
            yield view
        finally:
            view.release()
            self._buffers.append(block)


class _Body:
    """An answer being read by a thread over a blocking socket."""

    def __init__(
        self,
        wire: Wire,
        sock: Socket,
        is_head: bool,
        block: memoryview,
        tell: Callable[[int], None],
        refused: OSError | None,
    ) -> None:
        self._options = wire.options
        self._sock = sock
        self._block = block
        self.tell = tell
        self.keeps = False
        self._over = False
        data, interim = bytearray(), 0
        deadline = time.monotonic() + self._options.request_timeout_s
        while True:
            end = data.find(b"\r\n\r\n")
            if end >= 0:
                self.head = _parse_head(bytes(data[:end]), is_head)
                del data[: end + 4]
                if self.head.status >= 200:
                    break
                interim += end
                if interim > MAX_HEAD:
                    raise IntegrityError("the server goes on without an answer")
                continue
            if len(data) > MAX_HEAD:
                raise IntegrityError("the head of the server's answer is too long")
            if data and time.monotonic() > deadline:
                raise _too_slow(self._options)
            try:
                count = self._receive(block)
            except OSError as error:
                if data:
                    raise Transient("the connection broke within the answer") from error
                raise _Dead from (refused or error)
            if not count:
                if data:
                    raise Transient("the server cut its answer off")
                raise _Dead from refused
            data += block[:count]
        self._rest = bytes(data)
        self._heard = time.monotonic()
        # What there is to gather is known of a body of known length alone.
        self._gathers = self.head.length is not None and not self.head.chunked
        patience = self._options.stall_timeout_s
        _set_timeouts(sock, min(_GATHERING_S, patience) if self._gathers else patience)

    def _receive(self, block: memoryview) -> int:
        """What has come, as much as fits; 0 at the end."""
        try:
            return self._sock.recv_into(block)
        except BlockingIOError as error:
            raise Stalled("the server fell silent") from error

    def _gather(self, block: memoryview) -> int:
        """As much as fits, or what comes within a moment; 0 at the end. Over a link, each turn of a thread
        would else be for a few packets."""
        return self._patiently(lambda: self._sock.recv_into(block, 0, socket.MSG_WAITALL))

    def _patiently(self, receive: Callable[[], int]) -> int:
        """What it brings, again and again while that is nothing for a moment. Raises Stalled."""
        sock = self._sock
        fetched = 0 if isinstance(sock, socket.socket) else sock.fetched
        while True:
            try:
                count = receive()
            except BlockingIOError as error:
                if not isinstance(sock, socket.socket) and sock.fetched != fetched:
                    # A part of a record is no silence.
                    fetched, self._heard = sock.fetched, time.monotonic()
                if time.monotonic() - self._heard >= self._options.stall_timeout_s:
                    raise Stalled("the server fell silent") from error
                continue
            self._heard = time.monotonic()
            return count

    def pieces(self, *, own: bool = False, into: memoryview | None = None) -> Iterator[memoryview]:
        """The body as it comes. Each piece is valid until the next, or `own` by itself, or a piece of `into`,
        which takes a body without chunks as a whole."""
        head = self.head
        left = head.length
        chunks = _Chunks() if head.chunked else None
        rate = _Rate(self._options)
        while left is None or left > 0:
            if self._rest:
                data = memoryview(self._rest)
                self._rest = b""
                if into is not None and left is not None and len(data) <= left:
                    into[: len(data)] = data
                    into = into[len(data) :]
            else:
                block = memoryview(bytearray(_BLOCK)) if own else self._block
                if into is not None:
                    block = into[:_BLOCK]
                try:
                    if self._gathers and left is not None:
                        count = self._gather(block[: min(left, _GATHERED)])
                    else:
                        count = self._receive(block)
                except ConnectionError as error:
                    raise Transient("the connection broke within the body") from error
                if not count:
                    if left is None and chunks is None:
                        break
                    raise Transient("the server cut its answer off")
                data = block[:count]
                if into is not None:
                    into = into[count:]
            rate.add(len(data))
            if chunks is not None:
                yield from chunks.feed(data)
                if chunks.done:
                    self._over = not chunks.excess
                    return
                continue
            if left is not None:
                if len(data) > left:  # what came with the head
                    yield data[:left]
                    return
                left -= len(data)
            yield data
        self._over = head.length is not None and not self._rest

    @property
    def is_spliced(self) -> bool:
        """True where the kernel moves a body best by itself: in plain text, of known length, from nearby.
        From afar it comes in a few packets at a time."""
        sock = self._sock
        return (
            CAN_SPLICE
            and self._gathers
            and isinstance(sock, socket.socket)
            and _rtt_s(sock) < _NEAR_S
        )

    def splice(self, fd: int, position: int) -> Iterator[int]:
        """The body to `position` of a file: how much came, each time. Raises _Disk."""
        left = self.head.length or 0
        begun, self._rest = self._rest[:left], self._rest[left:]
        if begun:
            _write_at(fd, memoryview(begun), position)
            yield len(begun)
        position, left = position + len(begun), left - len(begun)
        rate = _Rate(self._options)
        with Splice() as splice:
            is_fast = True
            while left:
                try:
                    if is_fast:
                        count = self._patiently(partial(splice.take, self._sock.fileno(), left))
                    else:
                        count = self._gather(self._block[: min(left, _GATHERED)])
                except ConnectionError as error:
                    raise Transient("the connection broke within the body") from error
                if not count:
                    raise Transient("the server cut its answer off")
                if is_fast:
                    try:
                        splice.give(fd, position, count)
                    except OSError as error:
                        raise _Disk from error
                else:
                    _write_at(fd, self._block[:count], position)
                rate.add(count)
                yield count
                is_fast = not is_fast or count >= min(left, _WORTH_A_CALL)
                position, left = position + count, left - count
        self._over = not self._rest

    def reply(self) -> Reply:
        """The answer with its body in memory."""
        head = self.head
        collected = bytearray()
        for piece in self.pieces():
            collected += piece
            if len(collected) > MAX_BODY:
                raise IntegrityError(f"an answer of over {MAX_BODY} bytes")
        return Reply(head.status, head.reason, head.headers, bytes(collected))

    def refusal(self) -> Reply:
        """An answer that is no success, with as much of its body as it takes to tell why."""
        head = self.head
        collected = bytearray()
        for piece in self.pieces():
            collected += piece
            if len(collected) > MAX_REFUSAL:
                break
        return Reply(head.status, head.reason, head.headers, bytes(collected[:MAX_REFUSAL]))

    def drain(self) -> None:
        """Note whether the connection may be used again: nothing of the answer is left."""
        self.keeps = self.head.keeps and self._over


class _Batch:
    """Small exchanges over several connections: each connection takes the next request when it is done."""

    def __init__(
        self,
        wire: Wire,
        requests: Iterator[Outgoing],
        width: Callable[[], int],
        most: int,
        busy: Callable[[], None],
    ) -> None:
        self._wire = wire
        self._requests = requests
        self._width = width
        self._busy = busy
        self._most = most
        self._answers: list[Any] = []
        self._open = 0  # requests under way
        self._lanes: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._again: collections.deque[tuple[int, Outgoing]] = collections.deque()
        self._exhausted = False
        self._opening = 0
        self._bug: BaseException | None = None

    async def run(self) -> list[Reply | FastsyncError]:
        self._widen()
        self._settle()
        await self._done
        return self._answers

    def _next(self) -> tuple[int, Outgoing] | None:
        if self._again:
            return self._again.popleft()
        if self._exhausted:
            return None
        while True:
            try:
                request = next(self._requests)
            except StopIteration:
                self._exhausted = True
                return None
            except FastsyncError as error:  # one that cannot be made
                self._answers.append(error)
                continue
            self._answers.append(None)
            return len(self._answers) - 1, request

    def _widen(self) -> None:
        """Put more connections to work, as far as there is work and they may."""
        wire = self._wire
        while len(self._lanes) + self._opening < max(1, self._width()):
            item = self._next()
            if item is None:
                return
            self._open += 1
            connection = wire._pooled()
            if connection is not None:
                self._begin(connection, *item)
                continue
            may = wire._count < wire.options.connections
            if not may and (self._lanes or self._opening):
                # Others have them all: those we have will do.
                self._open -= 1
                self._again.append(item)
                return
            self._opening += 1
            task = asyncio.create_task(self._open_and_begin(*item, fresh=False))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _open_and_begin(self, index: int, request: Outgoing, *, fresh: bool) -> None:
        try:
            connection = await self._wire._acquire(fresh=fresh)
        except FastsyncError as error:
            self._opening -= 1
            self._open -= 1
            self._answers[index] = error
            self._fail_rest(error)
            self._settle()
            return
        except BaseException as bug:
            self._opening -= 1
            self._bug = bug
            if not self._done.done():
                self._done.set_exception(bug)
            raise
        self._opening -= 1
        if self._done.done():
            self._wire._release(connection)
            return
        self._begin(connection, index, request)

    def _fail_rest(self, error: FastsyncError) -> None:
        """No connection is to be had: as long as there is none, nothing will go better."""
        if self._lanes or self._opening:
            return
        while (item := self._next()) is not None:
            self._answers[item[0]] = error

    def _begin(self, connection: _Connection, index: int, request: Outgoing) -> None:
        self._lanes.add(connection)

        def done(connection: _Connection, outcome: Reply | Exception) -> None:
            if isinstance(outcome, Reply):
                self._answers[index] = outcome
                if outcome.status == 503:
                    self._busy()
            elif isinstance(outcome, _Dead) and was_used and request.repeatable:
                self._lanes.discard(connection)
                self._opening += 1
                task = asyncio.create_task(self._open_and_begin(index, request, fresh=True))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                return
            else:
                self._answers[index] = self._wire._error(outcome)
            self._open -= 1
            if connection.is_open:
                item = self._next() if len(self._lanes) <= max(1, self._width()) else None
                if item is not None:
                    self._open += 1
                    self._begin(connection, *item)
                    return
                self._lanes.discard(connection)
                self._wire._release(connection)
            else:
                self._lanes.discard(connection)
            self._widen()
            self._settle()

        was_used = connection.used
        connection.start(request, self._most, done)
        self._wire._tick_later()

    def _settle(self) -> None:
        if not self._open and not self._again and self._exhausted and not self._done.done():
            self._done.set_result(None)

    def abandon(self) -> None:
        if not self._done.done():
            self._done.cancel()
        for task in list(self._tasks):
            task.cancel()
        for connection in list(self._lanes):
            connection.abandon()


def _too_slow(options: WireOptions) -> Stalled:
    return Stalled(f"the server sends less than {options.min_rate} bytes/s")


class _Rate:
    """Looks whether a body comes fast enough to be waited for."""

    def __init__(self, options: WireOptions) -> None:
        self._options = options
        self._ends = time.monotonic() + options.stall_timeout_s
        self._came = 0

    def add(self, count: int) -> None:
        """Raises Stalled."""
        self._came += count
        if (now := time.monotonic()) >= self._ends:
            options = self._options
            if self._came < options.min_rate * options.stall_timeout_s:
                raise _too_slow(options)
            self._ends, self._came = now + options.stall_timeout_s, 0


def _rtt_s(sock: socket.socket) -> float:
    """The least that a round trip took, as TCP measured it; infinite where nobody knows."""
    if sys.platform != "linux":
        return math.inf
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _MIN_RTT_AT + 4)
    except OSError:
        return math.inf
    if len(info) < _MIN_RTT_AT + 4:
        return math.inf  # before Linux 4.6
    (microseconds,) = struct.unpack_from("=I", info, _MIN_RTT_AT)
    return math.inf if microseconds == 0xFFFFFFFF else float(microseconds / 1e6)


def _send_all(sock: Socket, data: memoryview, flags: int = 0) -> None:
    while data:
        data = data[sock.send(data, flags) :]


def _write_at(fd: int, data: memoryview, position: int) -> None:
    """Raises _Disk."""
    try:
        while data:
            written = os.pwrite(fd, data, position)
            position += written
            data = data[written:]
    except OSError as error:
        raise _Disk from error


def _has_come(sock: Socket) -> bool:
    """True when there are bytes to be read."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _set_timeouts(sock: Socket, seconds: float) -> None:
    """Bound every call on a blocking socket in the kernel: no poll ahead of each."""
    if isinstance(sock, RecordSocket):
        sock.settimeout(seconds)
        return
    value = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)


def _shut(sock: Socket) -> None:
    """Wake a thread that waits on the socket."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


class _Opening:
    """A connection that a thread is about to make, and that another may lose interest in."""

    def __init__(self) -> None:
        self._sock: Socket | None = None
        self._given_up = False

    def now(self, sock: Socket) -> None:
        """This is the socket that is waited for. Raises Transient if nobody wants it any more."""
        self._sock = sock
        if self._given_up:
            raise Transient("the connection is not wanted any more")

    def give_up(self) -> None:
        self._given_up = True
        if self._sock is not None:
            _shut(self._sock)


class _Proxy(NamedTuple):
    host: str
    port: int
    authorization: str  # a header line, or ""


def _parse_proxy(url: str) -> _Proxy:
    """The proxy of ``http://[user:password@]host:port``. Raises UsageError, without showing it."""
    import base64
    from urllib.parse import unquote, urlsplit

    try:
        parts = urlsplit(url if "://" in url else "http://" + url)
        port = parts.port or 80
    except ValueError as error:
        raise UsageError("the proxy's address is not understood") from error
    if parts.scheme != "http" or not parts.hostname:
        raise UsageError("the proxy's address is not understood", hint="write http://host:port")
    authorization = ""
    if parts.username is not None:
        conceal(parts.password, unquote(parts.password or ""))
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        token = base64.b64encode(pair.encode()).decode()
        authorization = f"Proxy-Authorization: Basic {token}\r\n"
    return _Proxy(parts.hostname, port, authorization)


def _tunnel(sock: socket.socket, origin: Origin, proxy: _Proxy) -> None:
    """Ask a proxy to connect us through. Raises OSError, AccessRefused."""
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    target = f"{host}:{origin.port}"
    sock.sendall(
        f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{proxy.authorization}\r\n".encode()
    )
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        # One byte at a time: what follows is TLS, and not ours to read.
        byte = sock.recv(1)
        if not byte or len(data) > MAX_HEAD:
            raise AccessRefused("the proxy does not let us through", where=str(origin))
        data += byte
    head = _parse_head(data[:-4], is_head=False)
    if not 200 <= head.status < 300:
        raise AccessRefused(f"the proxy does not let us through: {head.status}", where=str(origin))
