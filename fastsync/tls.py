"""TLS over a socket by way of memory: as few system calls as plain TCP has.

`ssl.SSLSocket` reads each record by two system calls, one of them for its five bytes of header. Servers that
write 4 KiB at a time (much of what is written in Go) make that half a million calls for a GiB.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any, Final

_RAW: Final = 128 << 10
_SENT_AT_ONCE: Final = 256 << 10
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
        inner: Any = getattr(self._tls, "_sslobj", self._tls)
        self._read: Callable[[int, memoryview], int] = inner.read
        self.fetched = 0  # bytes that came, of whatever is in them
        self._raw: memoryview | None = None
        self._unsent = memoryview(b"")
        self._blocks = True
        self._is_over = False  # the server has said that nothing follows

    def do_handshake(self) -> None:
        """Blocks, for each message as long as the socket's timeout. Raises OSError."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self.flush()
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
        if not self.has_more and not self._is_over:
            self._fetch(flags, len(block))  # what is encrypted is longer
        while True:
            with _DECRYPTING, contextlib.suppress(BlockingIOError):
                return self._fill(block, socket.MSG_DONTWAIT)
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
                raise ConnectionResetError("TLS ended without saying so") from error
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
        """How many bytes were taken; `flush` sends what the socket has no room for. Raises OSError."""
        self.flush()
        view, taken = memoryview(data)[:_SENT_AT_ONCE], 0
        while taken < len(view):
            taken += self._tls.write(view[taken:])
        try:
            self.flush()
        except BlockingIOError:
            if self._blocks:
                raise
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
        self._blocks = flag
        self._sock.setblocking(flag)

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        self._sock.setsockopt(level, option, value)

    def shutdown(self, how: int) -> None:
        """Of the connection, not of TLS: wakes a thread that waits for it."""
        self._sock.shutdown(how)

    def close(self) -> None:
        self._sock.close()
