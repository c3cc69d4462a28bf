"""Whether bytes move fast enough to be waited for: `WireOptions.min_rate`, over a stall timeout.

Only time in which the other side is waited for counts. What comes is looked at by the thread that waits for
it, which knows for how long it did; what is sent is looked at from outside, for the call that sends may take
long: by what TCP says has arrived, which is neither what found room in a buffer of ours, nor what a disk has
not yet brought.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from fastsync import nearness
from fastsync.errors import Stalled
from fastsync.wire.messages import WireOptions
from fastsync.wire.sockets import Socket, has_come, shut
from fastsync.wire.tls import MAX_RECORD

T = TypeVar("T")

# A limit of our own is kept to by the kernel, on average.
_OF_LIMIT: Final = 0.25


class Coming:
    """A body as it comes."""

    def __init__(self, sock: Socket, options: WireOptions) -> None:
        self._sock = None if isinstance(sock, socket.socket) else sock
        self._options = options
        self._came = 0
        self._waited_s = self._silent_s = 0.0
        self._before = 0  # what had come when it was last judged
        self._fetched = self._whole = 0 if self._sock is None else self._sock.fetched

    def add(self, count: int, waited_s: float) -> None:
        """So much came, after so long. Raises Stalled."""
        self._came += count
        self._silent_s = 0.0
        if self._sock is not None:
            self._fetched = self._whole = self._sock.fetched
        self._judge(waited_s)

    def wait(self, waited_s: float) -> None:
        """For so long, nothing that could be used came. Raises Stalled."""
        self._silent_s += waited_s
        if self._sock is not None and (fetched := self._sock.fetched) != self._fetched:
            self._fetched, self._silent_s = fetched, 0.0
        if self._silent_s >= self._options.stall_timeout_s:
            raise Stalled("the server fell silent")
        self._judge(waited_s)

    def _judge(self, waited_s: float) -> None:
        self._waited_s += waited_s
        patience_s = self._options.stall_timeout_s
        if self._waited_s < patience_s:
            return
        # A part of a record is on its way to being something, but only as much as there is in one.
        moved = self._came + min(self._fetched - self._whole, MAX_RECORD)
        if moved - self._before < self._options.min_rate * patience_s:
            raise Stalled(f"the server sends less than {self._options.min_rate} bytes/s")
        self._waited_s, self._before = 0.0, moved


class Going:
    """What leaves by a socket: sent by one thread, and looked at from another, about once a second."""

    def __init__(self, sock: Socket, options: WireOptions) -> None:
        self.sock = sock
        self.error: Stalled | None = None
        self._options = options
        self._since: tuple[float, int] | None = None
        self._arrived = -1

    # -- the thread that sends -------------------------------------------------------------------------

    def send_all(self, data: memoryview, flags: int = 0) -> None:
        """Raises OSError; BlockingIOError when there is no use in sending on."""
        sock = self.sock
        while data:
            data = data[self.send(partial(sock.send, data, flags)) :]
        if not isinstance(sock, socket.socket):
            self.send(sock.flush)

    def send(self, some: Callable[[], T]) -> T:
        """Do what sends some, which blocks for a stall timeout at the most. Where a lot was sent ahead, that
        finds no room for longer although the other side takes what it can. Raises as it does."""
        while True:
            try:
                return some()
            except BlockingIOError:
                if has_come(self.sock) or not self._has_moved():
                    raise

    def _has_moved(self) -> bool:
        sent = nearness.sent(self.sock)
        if sent is None or sent.arrived == self._arrived:
            return False
        self._arrived = sent.arrived
        return True

    # -- who looks -------------------------------------------------------------------------------------

    def look(self, now: float) -> bool:
        """Whether something is known to be on its way; `error` is set once it was too slow."""
        sent = nearness.sent(self.sock)
        if sent is None or not sent.is_waiting:
            self._since = None
            return False
        if self._since is None:
            self._since = now, sent.arrived
        elif now - self._since[0] >= self._options.stall_timeout_s:
            least = self._least()
            moved = sent.arrived - self._since[1]
            if not moved or moved < least * self._options.stall_timeout_s:
                told = f"less than {least:g} bytes/s" if moved else "no more bytes"
                self.error = Stalled(f"the server takes {told}")
            self._since = now, sent.arrived
        return True

    def look_and_end(self, now: float) -> None:
        """Look, and wake the thread that sends if that is of no use any more."""
        self.look(now)
        if self.error is not None:
            shut(self.sock)

    def _least(self) -> float:
        ours = self._options.send_rate and self._options.send_rate()
        least = self._options.min_rate
        return least if ours is None else min(least, ours * _OF_LIMIT)
