"""The answer to one request as a thread reads it from a blocking socket."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

from fastsync import nearness
from fastsync.errors import (
    IntegrityError,
    Stalled,
    Transient,
)
from fastsync.wire.messages import BLOCK, MAX_BODY, MAX_HEAD, Chunks, Reply, parse_head
from fastsync.wire.rates import Coming, Going
from fastsync.wire.sockets import NEAR_S, Dead, Socket, is_leaving, set_timeouts
from fastsync.wire.splicing import CAN_SPLICE, Splice

if TYPE_CHECKING:
    from fastsync.wire.client import Wire

# What is collected of an answer that is no success, to tell why.
MAX_REFUSAL: Final = 1 << 20
# How much of a body the kernel gathers before it wakes a thread, and for how long it does at the most.
_GATHERED: Final = 256 << 10
_GATHERING_S: Final = 0.2
# How often it is seen, within the time for an answer, whether the question is still on its way.
_LOOKS: Final = 4
# Less at once than this comes more slowly than it is taken, and is worth waiting for.
_WORTH_A_CALL: Final = 64 << 10
# Sends a request with this head, and tells of the bytes of its body.
Send: TypeAlias = Callable[[Going, bytes, Callable[[int], None]], None]


class Disk(Exception):
    """Our own file could not be written, by the OSError that is its cause; never leaves this module."""


class Body:
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
        patience = self._options.request_timeout_s
        deadline = time.monotonic() + patience
        set_timeouts(sock, patience / _LOOKS)
        while True:
            end = data.find(b"\r\n\r\n")
            if end >= 0:
                self.head = parse_head(bytes(data[:end]), is_head)
                del data[: end + 4]
                if self.head.status >= 200:
                    break
                interim += end
                if interim > MAX_HEAD:
                    raise IntegrityError("the server goes on without an answer")
                continue
            if len(data) > MAX_HEAD:
                raise IntegrityError("the head of the server's answer is too long")
            if refused is None and not data and is_leaving(sock):
                # It has not heard all of the question yet.
                deadline = time.monotonic() + patience
            elif (data or interim) and time.monotonic() >= deadline:
                raise Stalled(f"no whole answer within {patience:g} s")
            try:
                count = sock.recv_into(block)
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise Stalled(f"no answer within {patience:g} s") from error
                continue
            except OSError as error:
                if data:
                    raise Transient("the connection broke within the answer") from error
                raise Dead from (refused or error)
            if not count:
                if data:
                    raise Transient("the server cut its answer off")
                raise Dead from refused
            data += block[:count]
        self._rest = bytes(data)
        self._rate = Coming(sock, self._options)
        # What there is to gather is known of a body of known length alone.
        self._gathers = self.head.length is not None and not self.head.chunked
        patience = self._options.stall_timeout_s
        set_timeouts(sock, min(_GATHERING_S, patience) if self._gathers else patience)

    def _gather(self, block: memoryview) -> int:
        """As much as fits, or what comes within a moment; 0 at the end. Over a link, each turn of a thread
        would else be for a few packets."""
        return self._patiently(lambda: self._sock.recv_into(block, 0, socket.MSG_WAITALL))

    def _patiently(self, receive: Callable[[], int]) -> int:
        """What it brings, again and again while that is nothing for a moment. Raises Stalled."""
        while True:
            asked = time.monotonic()
            try:
                count = receive()
            except BlockingIOError:
                self._rate.wait(time.monotonic() - asked)
                continue
            self._rate.add(count, time.monotonic() - asked)
            return count

    def pieces(self, *, own: bool = False, into: memoryview | None = None) -> Iterator[memoryview]:
        """The body as it comes. Each piece is valid until the next, or `own` by itself, or a piece of `into`,
        which takes a body without chunks as a whole."""
        head = self.head
        left = head.length
        chunks = Chunks() if head.chunked else None
        while left is None or left > 0:
            if self._rest:
                data = memoryview(self._rest)
                self._rest = b""
                if into is not None and left is not None and len(data) <= left:
                    into[: len(data)] = data
                    into = into[len(data) :]
            else:
                block = memoryview(bytearray(BLOCK)) if own else self._block
                if into is not None:
                    block = into[:BLOCK]
                try:
                    if self._gathers and left is not None:
                        count = self._gather(block[: min(left, _GATHERED)])
                    else:
                        count = self._patiently(partial(self._sock.recv_into, block))
                except ConnectionError as error:
                    raise Transient("the connection broke within the body") from error
                if not count:
                    if left is None and chunks is None:
                        break
                    raise Transient("the server cut its answer off")
                data = block[:count]
                if into is not None:
                    into = into[count:]
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
            and nearness.of_socket(sock) < NEAR_S
        )

    def splice(self, fd: int, position: int) -> Iterator[int]:
        """The body to `position` of a file: how much came, each time. Raises Disk."""
        left = self.head.length or 0
        begun, self._rest = self._rest[:left], self._rest[left:]
        if begun:
            write_at(fd, memoryview(begun), position)
            yield len(begun)
        position, left = position + len(begun), left - len(begun)
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
                        raise Disk from error
                else:
                    write_at(fd, self._block[:count], position)
                yield count
                is_fast = not is_fast or count >= min(left, _WORTH_A_CALL)
                position, left = position + count, left - count
        self._over = not self._rest

    def reply(self) -> Reply:
        """The answer with its body in memory."""
        head, collected = self.head, self._collect(MAX_BODY)
        if len(collected) > MAX_BODY:
            raise IntegrityError(f"an answer of over {MAX_BODY} bytes")
        return Reply(head.status, head.reason, head.headers, collected)

    def refusal(self) -> Reply:
        """An answer that is no success, with as much of its body as it takes to tell why."""
        head, collected = self.head, self._collect(MAX_REFUSAL)
        return Reply(head.status, head.reason, head.headers, collected[:MAX_REFUSAL])

    def _collect(self, most: int) -> bytes:
        """The body, or a little more than `most` bytes of it."""
        collected = bytearray()
        for piece in self.pieces():
            collected += piece
            if len(collected) > most:
                break
        return bytes(collected)

    def drain(self) -> None:
        """Note whether the connection may be used again: nothing of the answer is left."""
        self.keeps = self.head.keeps and self._over


def write_at(fd: int, data: memoryview, position: int) -> None:
    """Raises Disk."""
    try:
        while data:
            written = os.pwrite(fd, data, position)
            position += written
            data = data[written:]
    except OSError as error:
        raise Disk from error
