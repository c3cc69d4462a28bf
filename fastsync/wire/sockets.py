"""Sockets: opened, tunnelled through a proxy, and spoken to by threads."""

from __future__ import annotations

import contextlib
import math
import select
import socket
import struct
import time
from typing import Final, NamedTuple, TypeAlias

from fastsync import nearness
from fastsync.errors import (
    AccessRefused,
    Transient,
    UsageError,
)
from fastsync.redaction import conceal
from fastsync.wire.messages import MAX_HEAD, Origin, parse_head
from fastsync.wire.tls import RecordSocket, TlsSocket

# A round trip to a server with which the kernel may move bytes one call after the other.
NEAR_S: Final = 0.002
# socket(7), <asm-generic/socket.h>; Python has no name for it. All bits set: no limit.
SO_MAX_PACING_RATE: Final = 47
NO_RATE: Final = 0xFFFFFFFF
Socket: TypeAlias = socket.socket | TlsSocket | RecordSocket


class Dead(Exception):
    """A connection ended before an answer began; never leaves this package."""


def has_come(sock: Socket) -> bool:
    """True when there are bytes to be read."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def is_leaving(sock: Socket) -> bool:
    """True while something that was sent is known not to have arrived."""
    sent = nearness.sent(sock)
    return sent is not None and sent.is_waiting


def set_timeouts(sock: Socket, seconds: float) -> None:
    """Bound every call on a blocking socket in the kernel: no poll ahead of each."""
    if isinstance(sock, RecordSocket):
        sock.settimeout(seconds)
        return
    if isinstance(sock, TlsSocket):
        sock.waits_s = seconds
    value = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)


def shut(sock: Socket) -> None:
    """Wake a thread that waits on the socket."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


class Opening:
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
            shut(self._sock)


class _Proxy(NamedTuple):
    host: str
    port: int
    authorization: str  # a header line, or ""


def parse_proxy(url: str) -> _Proxy:
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


def tunnel(sock: socket.socket, origin: Origin, proxy: _Proxy) -> None:
    """Ask a proxy to connect us through, within the socket's timeout. Raises OSError, AccessRefused."""
    timeout_s = sock.gettimeout()
    ends = time.monotonic() + timeout_s if timeout_s is not None else math.inf
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    target = f"{host}:{origin.port}"
    sock.sendall(
        f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{proxy.authorization}\r\n".encode()
    )
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        # One byte at a time: what follows is TLS, and not ours to read.
        byte = sock.recv(1)
        if time.monotonic() >= ends:
            raise TimeoutError
        if not byte or len(data) > MAX_HEAD:
            raise AccessRefused("the proxy does not let us through", where=str(origin))
        data += byte
    head = parse_head(data[:-4], is_head=False)
    if not 200 <= head.status < 300:
        raise AccessRefused(f"the proxy does not let us through: {head.status}", where=str(origin))
