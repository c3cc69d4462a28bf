"""How many files and directories a server lets us have open at a time, over one connection.

Some servers say so (limits@openssh.com), some allow one and fail without a reason at the next. What would
be too many waits here until something is closed; nobody who opens a file has to know.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias

from fastsync.backend import Buffer
from fastsync.errors import FastsyncError
from fastsync_sftp import packets
from fastsync_sftp.packets import EXCLUSIVE, HANDLE, LOST, OPEN, REMOVE, STATUS, Request

Answered: TypeAlias = Callable[[int, Any], None]

# Below this, a file is opened on one connection only.
_FEW: Final = 16
# Failures that turned out to have other reasons; then nothing is suspected any more.
_MISTAKES: Final = 3


class _Opening(NamedTuple):
    request: Request
    answered: Answered
    code: Any = None  # of the failure that may mean that too much was open


class Handles:
    """What is open on one session. `send` sends a request; `told` hears of a limit that was found out."""

    def __init__(
        self, send: Callable[[Request, Answered], None], told: Callable[[int], None]
    ) -> None:
        self.most: int | None = None
        self._send = send
        self._told = told
        self._held = 0
        self._flying = 0
        self._waiting: deque[_Opening] = deque()
        self._doubtful: deque[_Opening] = deque()
        self._bound = 1  # how many were open when it failed
        self._mistakes = 0

    @property
    def is_full(self) -> bool:
        """True when the next one would have to wait."""
        if self._waiting or self._doubtful:
            return True
        return self.most is not None and self._held + self._flying >= self.most

    @property
    def are_few(self) -> bool:
        """True when they are too few for one file to have several."""
        return self.most is not None and self.most < _FEW

    @property
    def is_waiting(self) -> bool:
        return bool(self._waiting or self._doubtful)

    def open(self, request: Request, answered: Answered) -> None:
        """Send a request that brings a handle, now or when there is room for one."""
        self._waiting.append(_Opening(request, answered))
        self._pump()

    def close(self, request: Request, answered: Answered) -> None:
        """Send the request that gives one back."""

        def closed(kind: int, body: Any) -> None:
            self._held = max(0, self._held - 1)
            answered(kind, body)
            self._pump()

        self._send(request, closed)

    def fail(self, error: Callable[[], FastsyncError]) -> None:
        """Nothing that waits will be opened any more."""
        if self._doubtful:
            self._learn(self._bound)
        waiting = list(self._waiting)
        self._waiting.clear()
        for opening in waiting:
            opening.answered(LOST, error())

    def _pump(self) -> None:
        while True:
            if self._doubtful:
                # Alone, so that it is certain what a success means.
                if self._flying or self._held >= self._bound:
                    return
                self._try(self._doubtful.popleft())
            elif self._waiting and not (
                self.most is not None and self._held + self._flying >= self.most
            ):
                self._try(self._waiting.popleft())
            else:
                return

    def _try(self, opening: _Opening) -> None:
        def answered(kind: int, body: Any) -> None:
            self._flying -= 1
            if kind == HANDLE:
                self._held += 1
                if opening.code is not None:
                    self._learn(self._bound)
            elif self._is_doubtful(kind, body):
                self._doubtful.append(opening._replace(code=body))
                self._bound = max(1, self._held)
                self._pump()
                return
            elif opening.code is not None:
                self._mistakes += 1
                if self._mistakes >= _MISTAKES:
                    self._give_up()
            opening.answered(kind, body)
            self._pump()

        self._flying += 1
        kind, parts = opening.request
        if opening.code is not None and kind == OPEN and _flags(parts) & EXCLUSIVE:
            # A server that counts too late has made the new file, and would now say that it is there.
            self._send((REMOVE, parts[:1]), lambda _kind, _body: None)
        self._send(opening.request, answered)

    def _is_doubtful(self, kind: int, body: Any) -> bool:
        """True for a failure without a reason while others are open, or are being opened."""
        if kind != STATUS or self._mistakes >= _MISTAKES or not self._held + self._flying:
            return False
        return packets.status_of((kind, body)) == packets.FAILURE

    def _learn(self, most: int) -> None:
        if self.most is None or most < self.most:
            self.most = most
            self._told(most)
        self._waiting.extendleft(reversed(self._doubtful))
        self._doubtful.clear()

    def _give_up(self) -> None:
        doubtful, self._doubtful = self._doubtful, deque()
        for opening in doubtful:
            opening.answered(STATUS, opening.code)


def _flags(parts: tuple[Buffer, ...]) -> int:
    return int.from_bytes(parts[1], "big")
