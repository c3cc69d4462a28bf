"""One connection, and the small exchange on it: a state machine that the event loop drives."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fastsync.errors import (
    FastsyncError,
    IntegrityError,
    Stalled,
    Transient,
)
from fastsync.wire.body import MAX_REFUSAL
from fastsync.wire.messages import (
    MAX_HEAD,
    SMALL,
    Chunks,
    Head,
    Outgoing,
    Reply,
    WireOptions,
    parse_head,
)
from fastsync.wire.rates import Going
from fastsync.wire.sockets import NO_RATE, SO_MAX_PACING_RATE, Dead, Socket, has_come

if TYPE_CHECKING:
    from fastsync.wire.client import Wire


class Connection:
    """One socket to the server, and the small exchange on it."""

    def __init__(self, wire: Wire, sock: Socket) -> None:
        self._wire = wire
        self._loop = asyncio.get_running_loop()
        self.sock = sock
        self.fd = sock.fileno()
        wire.made += 1
        self.number = wire.made  # for people
        self.used = False
        self.idle_since = 0.0
        self._tls = None if isinstance(sock, socket.socket) else sock
        self._request: Outgoing | None = None
        self._done: Callable[[Connection, Reply | Exception], None] | None = None
        self._most = 0
        self._out: memoryview = memoryview(b"")
        self._data = bytearray()
        self._head: Head | None = None
        self._chunks: Chunks | None = None
        self._body = bytearray()
        self._interim = 0  # bytes of heads that were not the answer's
        self._active = 0.0
        self._left = 0.0  # when the last of the request was seen to leave
        self._going: Going | None = None  # most exchanges are over before anybody looks
        self._received = 0
        # What had come of the answer when its rate was looked at last, None before it begins.
        self._looked: tuple[float, int] | None = None
        self._reads = False
        self._writes = False
        self._rate = NO_RATE

    def start(
        self,
        request: Outgoing,
        most: int,
        done: Callable[[Connection, Reply | Exception], None],
    ) -> None:
        """Begin a small exchange; `done` is told how it ended, from the event loop."""
        self._request, self._most, self._done = request, most, done
        self._head = self._chunks = self._looked = None
        self._interim = self._received = 0
        self._active = self._left = time.monotonic()
        self._going = None
        self._wire.active.add(self)
        self.hold_back()
        if not self._reads:
            self._reads = True
            self._loop.add_reader(self.fd, self._on_readable)
        body = request.body
        if not body:
            self._out = memoryview(request.head)
        elif len(body) <= SMALL:
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
        wanted = NO_RATE if rate is None else max(1, min(round(rate), NO_RATE))
        if wanted != self._rate:
            with contextlib.suppress(OSError):  # the parts' turns hold without it, on average
                self.sock.setsockopt(
                    socket.SOL_SOCKET, SO_MAX_PACING_RATE, struct.pack("I", wanted)
                )
            self._rate = wanted

    def _on_writable(self) -> None:
        out, is_sent = self._out, True
        try:
            while out:
                out = out[self.sock.send(out) :]
                self._left = time.monotonic()
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
            data = self.sock.recv(SMALL)
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
                data = self.sock.recv(SMALL)
                self._received += len(data)
                self._take(data)
        except BlockingIOError:
            return
        except (FastsyncError, OSError, Dead) as error:
            self._end(error)

    def _pending(self) -> bool:
        """True when TLS holds bytes of this exchange that the loop cannot see."""
        if self._request is None:
            return False
        return self._tls is not None and self._tls.has_more

    def _on_end(self) -> None:
        head = self._head
        if head is None:
            raise Dead if not self._data else Transient("the server cut its answer off")
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
            told = parse_head(data[:end], request.is_head)
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
                self._chunks = Chunks()
        self._collect(head, data)

    def _collect(self, head: Head, data: bytes) -> None:
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

    def _finish(self, head: Head, body: bytes, *, keeps: bool) -> None:
        keeps = keeps and head.keeps and not self._out and not self._writes
        self._over(Reply(head.status, head.reason, head.headers, body), keeps=keeps)

    def _end(self, error: Exception) -> None:
        if isinstance(error, OSError) and self._head is None and not self._data:
            error = Dead(error)
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
        if self._going is None:
            self._going = Going(self.sock, options)
        if self._going.look(now):
            self._left = now
        if self._head is None:
            # Until the whole head is there: a byte of it now and then is no answer.
            since, what = self._left, "has not answered"
            patience = options.stall_timeout_s if self._out else options.request_timeout_s
        else:
            since, what = max(self._active, self._left), "was silent"
            patience = options.stall_timeout_s
        if self._going.error is not None:
            self._over(self._going.error, keeps=False)
        elif now - since > patience:
            self._over(Stalled(f"the server {what} for {patience:g} s"), keeps=False)
        elif self._looked is None:
            if self._head is not None:
                self._looked = now, self._received
        elif now - self._looked[0] >= options.stall_timeout_s:
            if self._received - self._looked[1] < options.min_rate * options.stall_timeout_s:
                text = f"the server sends less than {options.min_rate} bytes/s"
                self._over(Stalled(text), keeps=False)
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
            self._over(Dead(), keeps=False)

    @property
    def is_open(self) -> bool:
        return self.fd >= 0

    def is_fresh(self) -> bool:
        """False when the server has closed it, or sent what nobody asked for."""
        sock = self.sock
        if not isinstance(sock, socket.socket):  # TLS cannot be peeked into
            return not sock.has_more and not has_come(sock)
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
