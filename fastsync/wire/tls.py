"""TLS over a socket, in two ways that are used alike.

`ssl.SSLSocket` reads each record by two system calls, one of them for its five bytes of header. Servers that
write 4 KiB at a time (much of what is written in Go) make that half a million calls for a GiB. By way of
memory (`TlsSocket`) there are as few as plain TCP has, but each byte is copied twice more: with records of
16 KiB from nearby, that is the dearer way (`RecordSocket`).
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, Final

_RAW: Final = 128 << 10
_CUT: Final = "TLS ended without saying so"
_SENT_AT_ONCE: Final = 256 << 10
_RECORD: Final = 16 << 10
MAX_RECORD: Final = _RECORD + 2048  # TLSCiphertext.length of RFC 5246, 6.2.3; RFC 8446 allows less
# Where struct tcp_info of Linux (include/uapi/linux/tcp.h) has tcpi_bytes_received.
_RECEIVED_AT: Final = 128
# Every record takes the interpreter's lock: on two processors, two threads at it were slower than one.
_DECRYPTING: Final = threading.BoundedSemaphore(max(1, min(4, (os.cpu_count() or 1) // 2)))


class TlsSocket:
    """A connected socket with TLS on it; what it has of `socket.socket` means the same.

    For one thread at a time, but for `shutdown`. Takes the socket over. Where nothing is there without
    blocking, or within the socket's own timeout, BlockingIOError is raised, never ssl.SSLWantReadError.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str) -> None:
        self._sock = sock
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=host)
        # Without the call in between, where there is one: a GiB has a quarter of a million records.
        self._read = _reader(self._tls)
        self.fetched = 0  # bytes that came, of whatever is in them
        self._raw: memoryview | None = None
        self._unsent = memoryview(b"")
        self._is_over = False  # the server has said that nothing follows
        self.waits_s = math.inf  # for all of a record, in a read by a thread

    def do_handshake(self) -> None:
        """Blocks, as long as the socket's timeout in all. Raises OSError."""
        timeout_s = self._sock.gettimeout()
        ends = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self.flush()
                if timeout_s is not None:
                    # A byte now and then would make it last for ever.
                    self._sock.settimeout(max(0.001, ends - time.monotonic()))
                self._fetch(0)
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self.flush()  # the alert that tells the server why
                raise
            else:
                self.flush()
                return

    # -- reading -------------------------------------------------------------------------------------

    @property
    def has_more(self) -> bool:
        """True when something has been taken from the socket that was not read yet."""
        return self._tls.pending() > 0 or self._in.pending > 0

    def recv(self, size: int) -> bytes:
        """At most `size` bytes, none at the end. Raises OSError."""
        block = bytearray(size)
        return bytes(block[: self._fill(memoryview(block))])

    def recv_into(self, block: memoryview, _size: int = 0, flags: int = 0) -> int:
        """As much as has come and fits; 0 at the end. For threads: waits for its turn to decrypt.

        With MSG_WAITALL, which is for when so much is still to come, it waits for more to have come, up to
        the socket's timeout.
        """
        ends = time.monotonic() + self.waits_s
        if not self.has_more and not self._is_over:
            self._fetch(flags, len(block))  # what is encrypted is longer
        while True:
            with _DECRYPTING, contextlib.suppress(BlockingIOError):
                return self._fill(block, socket.MSG_DONTWAIT)
            if time.monotonic() >= ends:
                raise BlockingIOError
            self._fetch(0)

    def _fill(self, block: memoryview, flags: int = 0) -> int:
        filled, size, read = 0, len(block), self._read
        while True:
            try:
                while filled < size:
                    count = read(size - filled, block[filled:])
                    if not count:
                        self._is_over = True
                        return filled
                    filled += count
                return filled
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLEOFError as error:
                if filled:
                    return filled
                # Whoever cuts the connection could have the beginning taken for the whole.
                raise ConnectionResetError(errno.ECONNRESET, _CUT) from error
            try:
                if self._out.pending:  # such as new keys that the server asked for
                    self.flush()
                self._fetch(flags or (socket.MSG_DONTWAIT if filled else 0))
            except OSError:
                if filled:
                    return filled
                raise

    def _fetch(self, flags: int, most: int = _RAW) -> None:
        raw = self._raw
        if raw is None:
            raw = self._raw = memoryview(bytearray(_RAW))
        count = self._sock.recv_into(raw[:most], 0, flags)
        self.fetched += count
        if count:
            self._in.write(raw[:count])
        else:
            self._in.write_eof()

    # -- writing -------------------------------------------------------------------------------------

    def send(self, data: memoryview | bytes, _flags: int = 0) -> int:
        """How many bytes were taken; `flush` sends what the socket has no room for. Raises OSError, and
        has taken nothing then."""
        self.flush()
        view, taken = memoryview(data)[:_SENT_AT_ONCE], 0
        while taken < len(view):
            taken += self._tls.write(view[taken:])
        with contextlib.suppress(BlockingIOError):
            self.flush()
        return taken

    def flush(self) -> None:
        """Send what was taken. Raises OSError."""
        if self._out.pending:
            self._unsent = memoryview(bytes(self._unsent) + self._out.read())
        while self._unsent:
            self._unsent = self._unsent[self._sock.send(self._unsent) :]

    # -- the socket ----------------------------------------------------------------------------------

    def fileno(self) -> int:
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        self._sock.setblocking(flag)

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        self._sock.setsockopt(level, option, value)

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        return self._sock.getsockopt(level, option, size)

    def shutdown(self, how: int) -> None:
        """Of the connection, not of TLS: wakes a thread that waits for it."""
        self._sock.shutdown(how)

    def close(self) -> None:
        self._sock.close()


class RecordSocket:
    """The same by OpenSSL's own reads of the socket, a record at a time. Linux alone."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str) -> None:
        """Takes the socket over. Raises OSError."""
        self._sock = context.wrap_socket(
            sock,
            server_hostname=host,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )
        try:
            self._read = _reader(self._sock)
        except OSError:
            self._sock.close()
            raise
        self._waits_s: float | None = None
        self.records = 0
        self.received = 0  # bytes of them

    def do_handshake(self) -> None:
        """Blocks, for each message as long as the socket's timeout. Raises OSError."""
        self._sock.do_handshake()

    @property
    def fetched(self) -> int:
        """Bytes that came, of whatever is in them."""
        info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED_AT + 8)
        (count,) = struct.unpack_from("=Q", info, _RECEIVED_AT)
        return int(count)

    @property
    def has_more(self) -> bool:
        """True when something has been taken from the socket that was not read yet."""
        return self._sock.pending() > 0

    def recv(self, size: int) -> bytes:
        """At most `size` bytes, none at the end. Raises OSError."""
        block = bytearray(size)
        return bytes(block[: self.recv_into(memoryview(block))])

    def recv_into(self, block: memoryview, _size: int = 0, flags: int = 0) -> int:
        """A record, as much as fits; 0 at the end. With MSG_WAITALL, the only flag, as many as fit, or come
        within the socket's timeout."""
        filled, size, read, clock = 0, len(block), self._read, time.monotonic
        waits_s = (self._waits_s or 1e9) if flags else 0.0  # a number: once for each record
        ends = clock() + waits_s
        records = 0
        try:
            while filled < size:
                count = read(size - filled, block[filled:])
                records += 1
                filled += count
                if not count or clock() >= ends:
                    break
        except (ssl.SSLWantReadError, TimeoutError) as error:
            if not filled:
                raise BlockingIOError from error
        except OSError as error:
            if not filled:
                if isinstance(error, ssl.SSLEOFError):
                    raise ConnectionResetError(errno.ECONNRESET, _CUT) from error
                raise
        self.received += filled
        self.records += records
        return filled

    def send(self, data: memoryview | bytes, _flags: int = 0) -> int:
        """How many bytes were taken. Raises OSError."""
        try:
            return self._sock.send(memoryview(data)[:_RECORD])
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError, TimeoutError) as error:
            raise BlockingIOError from error

    def flush(self) -> None:
        """Nothing is kept back."""

    def fileno(self) -> int:
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        self.settimeout(None if flag else 0.0)

    def settimeout(self, seconds: float | None) -> None:
        """How long each wait for the server may take: for OpenSSL, the kernel's own limits do not hold."""
        self._waits_s = seconds
        self._sock.settimeout(seconds)

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        self._sock.setsockopt(level, option, value)

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        return self._sock.getsockopt(level, option, size)

    def shutdown(self, how: int) -> None:
        """Of the connection, not of TLS: wakes a thread that waits for it."""
        socket.socket.shutdown(self._sock, how)

    def close(self) -> None:
        self._sock.close()


def _reader(tls: ssl.SSLSocket | ssl.SSLObject) -> Callable[[int, memoryview], int]:
    """Its read into memory, without the call in between: a GiB has up to a quarter of a million records.
    Raises ConnectionResetError for a socket whose connection was gone already: ssl puts no TLS on it, and
    does not say so."""
    inner: Any = getattr(tls, "_sslobj", tls)
    if inner is None:
        raise ConnectionResetError(errno.ECONNRESET, "the connection ended before TLS began")
    read: Callable[[int, memoryview], int] = inner.read
    return read
