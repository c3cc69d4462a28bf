"""One SFTP conversation: requests go out as fast as they come, answers find who asked.

Nothing here waits. A request costs one entry in a dictionary; what is sent in one turn of the event loop
leaves in one piece. Answers of many kilobytes are handed on in the pieces they arrived in.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from fastsync import log
from fastsync.backend import Buffer
from fastsync.errors import FastsyncError, Stalled, Transient
from fastsync_sftp import packets
from fastsync_sftp.handles import Handles
from fastsync_sftp.packets import (
    CLOSE,
    DATA,
    LOST,
    LSTAT,
    OPEN,
    OPENDIR,
    REALPATH,
    STAT,
    STATUS,
    VERSION,
    BrokenProtocol,
    Reply,
    Request,
)

Answered: TypeAlias = Callable[[int, Any], None]

_header = struct.Struct(">IBI")  # length, type, id
_u32 = struct.Struct(">I")
_HEADER: Final = _header.size
# No answer is larger: a block of data, or a page of names. A shell that greets its user makes its first
# letters the length of a message, which is how it is noticed.
MAX_PACKET: Final = (1 << 20) + 1024
# Without limits@openssh.com, what every server takes (draft-ietf-secsh-filexfer-02, section 3).
SAFE_BLOCK: Final = 32 << 10
MAX_BLOCK: Final = 255 << 10
# Less than that for one read or write is no limit, but a way to have us ask without end.
_LEAST_BLOCK: Final = 4 << 10
# Bytes that may be on their way over one connection, to begin with and at least. A block is answered when
# all of it is there, which takes TCP six round trips from the start; until then it should not run dry. And
# where packets are lost, answers are late although the way is empty. That 2 MiB are faster than 1 MiB was
# not shown: side by side on a busy machine the two could not be told apart (docs/PERFORMANCE.md).
_LEAST_WINDOW: Final = 8 * MAX_BLOCK
# An answer that takes longer than this (times the round trip, and seconds more) has waited in a queue on
# the way: no more requests than there are, and from the second pair on fewer.
_UNHURRIED: Final = (1.25, 0.02)
_LATE: Final = (1.5, 0.04)
# How long the answer to a look that was foreseen may be used.
_FRESH_S: Final = 1.0
# Looks for a stall in each stall timeout.
_LOOKS: Final = 8


class ByteStream(Protocol):
    """What carries a conversation: an SSH channel, or the pipe of a process that speaks SSH."""

    def write(self, data: list[Buffer]) -> None:
        """Send all of it, later if need be; the buffers are not changed until then."""
        ...

    @property
    def unsent(self) -> int:
        """How many bytes have not left yet."""
        ...

    @property
    def arrived(self) -> int | None:
        """How many bytes have arrived at the server, of whatever SSH made of them; None where that is not
        known."""
        ...

    def close(self) -> None:
        """Hang up, now. Idempotent."""
        ...


class ServerLimits(NamedTuple):
    """What a server takes, as it says itself (limits@openssh.com), or what is safe."""

    read: int = SAFE_BLOCK
    write: int = SAFE_BLOCK
    handles: int | None = None


class Server(NamedTuple):
    """What one session has learnt of a server, for further ones."""

    limits: ServerLimits
    extensions: Mapping[bytes, bytes]
    rtt_s: float


# What is known of the server by now.
Known: TypeAlias = Callable[[], Server | None]


class Session:
    """A conversation. `feed` and `lose` are called by the stream; the rest is for who asks.

    `outstanding` counts the bytes of blocks on their way, `window` how many may be, for who spreads them
    over sessions.
    """

    def __init__(self, stall_timeout_s: float, min_rate: int = 0) -> None:
        self.stream: ByteStream | None = None
        self.extensions: Mapping[bytes, bytes] = {}
        self.limits = ServerLimits()
        self.number = 0  # for people
        self.opened: dict[bytes, str] = {}  # handles and their paths, for them, too
        self.outstanding = 0
        self.window = _LEAST_WINDOW
        self.is_spare = False  # blocks had better go elsewhere
        self.rtt_s = 0.0
        self.error: FastsyncError | None = None
        self.on_loss: Callable[[Session], None] | None = None
        self.lacks: Callable[[str], None] = lambda _what: None  # hears what the server cannot do
        self.handles = Handles(self._send, self._are_few)
        self._loop = asyncio.get_running_loop()
        self._answered: dict[int, Answered] = {}
        self._next_id = 0
        self._out: list[Buffer] = []
        self._head = b""
        self._pieces: list[memoryview] = []
        self._missing = 0
        self._kind = 0
        self._id = 0
        self._greeting: asyncio.Future[bytes] | None = None
        self._is_beginning = False
        self._learnt: asyncio.Future[Server] = self._loop.create_future()
        self._foreseen: Sequence[Request] = ()
        self._early: dict[Request, asyncio.Future[Reply]] = {}
        self._received = 0
        self._answers = 0
        self._blocks = 0  # on their way
        # Bytes that were given to the stream, that have arrived, and that SSH added to them; and those of
        # blocks of which the server said that it has written them.
        self._written = self._arrived = self._added = self._kept = 0
        self._seen = 0
        self._idle_looks = 0
        # Where the rate was looked at last: what had moved, how many answers there were, looks since then.
        self._mark: tuple[int, int, int] | None = None
        self._stall_timeout_s = stall_timeout_s
        self._min_rate = min_rate
        self._watch: asyncio.TimerHandle | None = None

    # -- beginning and end ---------------------------------------------------------------------------

    def foresee(self, requests: Sequence[Request]) -> None:
        """Looks that somebody will soon ask for: they go with the greeting. The first who asks within
        `_FRESH_S` gets the answer."""
        self._foreseen = requests

    async def begin(self, stream: ByteStream, *, is_in: bool = False) -> None:
        """Agree on the version, and ask for limits in the same breath. One that has logged in for sure may
        `learn` meanwhile what it asks for. Raises Transient, BrokenProtocol.

        How long that may take is for the caller to say: ssh may still have to log in.
        """
        self._is_beginning = True
        greeted = self._greet(stream)
        limits = self.call(packets.extended(b"limits@openssh.com"))
        early = {request: self.call(request) for request in self._foreseen}
        started = self._loop.time()
        both = asyncio.gather(greeted, limits)
        both.add_done_callback(_notice)
        ends: list[asyncio.Future[Any]] = [both, self._learnt] if is_in else [both]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        self._is_beginning = False
        if not both.done():
            self._know(self._learnt.result())
            return
        greeting, (kind, body) = both.result()
        self.rtt_s = self._loop.time() - started
        self.extensions = packets.read_extensions(greeting)
        if kind == packets.EXTENDED_REPLY and len(body) >= 32:
            _, read, write, handles = struct.unpack_from(">QQQQ", body)
            self.limits = ServerLimits(
                _block(read),
                _block(write),
                handles or None,
            )
            self.handles.most = self.limits.handles
        elif kind == LOST:
            raise body
        self._measure()
        if early:
            self._early = early
            self._loop.call_later(_FRESH_S, early.clear)

    def _measure(self) -> None:
        """See how long a round trip is; the greeting told how long the server takes to begin as well."""
        started = self._loop.time()

        def answered(_kind: int, _body: Any) -> None:
            self.rtt_s = min(self.rtt_s, self._loop.time() - started)

        self.submit(packets.on_path(REALPATH, b"."), answered)

    def begin_with(self, stream: ByteStream, server: Server) -> None:
        """Begin with a server that is known, without waiting for its greeting: requests may follow."""
        self._know(server)
        self._greet(stream)

    def learn(self, server: Server) -> None:
        """Take what another session has learnt. Idempotent."""
        if not self._learnt.done():
            self._learnt.set_result(server)

    def _know(self, server: Server) -> None:
        self.limits, self.extensions, self.rtt_s = server
        self.handles.most = self.limits.handles

    def _greet(self, stream: ByteStream) -> asyncio.Future[bytes]:
        self.stream = stream
        self._greeting = self._loop.create_future()
        self._greeting.add_done_callback(_notice)
        self._look()
        # With what is asked in this turn: a second small packet might wait until the first has arrived.
        self._out += [_u32.pack(5), bytes([packets.INIT]), _u32.pack(3)]
        self._loop.call_soon(self._flush)
        return self._greeting

    @property
    def server(self) -> Server:
        """What further sessions need not ask for again."""
        return Server(self.limits, self.extensions, self.rtt_s)

    @property
    def alive(self) -> bool:
        return self.error is None

    def has(self, extension: bytes) -> bool:
        """True when the server offers the extension."""
        return extension in self.extensions

    def close(self) -> None:
        """Hang up. What was asked and not answered fails."""
        self.lose(Transient("the connection was closed"))

    def lose(self, error: FastsyncError) -> None:
        """The connection is gone: everybody who waits for an answer is told. Idempotent."""
        if self.error is not None:
            return
        self.error = error
        if self._watch is not None:
            self._watch.cancel()
        if self.stream is not None:
            self.stream.close()
        if self._greeting is not None and not self._greeting.done():
            self._greeting.set_exception(_again(error))
        waiting, self._answered = self._answered, {}
        for answered in waiting.values():
            answered(LOST, _again(error))
        self._out.clear()
        self.handles.fail(lambda: _again(error))
        if self.on_loss is not None:
            self.on_loss(self)

    def _are_few(self, most: int) -> None:
        self.limits = self.limits._replace(handles=most)
        self.lacks(self.few_handles())

    def few_handles(self) -> str:
        """What to tell the user where there are few."""
        most = self.handles.most
        return f"the server allows {most} open file{'' if most == 1 else 's'} at a time"

    def pace(self, length: int, took_s: float, most: int) -> None:
        """A block was delivered. The window grows with what is delivered, by a quarter in a round trip: what
        is given to a new connection too early waits there while others run dry, and at the pace of TCP's
        slow start the queue in front of a link overflows before the first late answer is seen.

        What is read is answered late when the way is full; more requests would only make queues overflow,
        and every connection slow down at once. What is written (`took_s` 0) is held back by SSH itself.
        """
        if took_s > _LATE[0] * self.rtt_s + _LATE[1]:
            self.window = max(self.window - length // 4, _LEAST_WINDOW)
        elif took_s <= _UNHURRIED[0] * self.rtt_s + _UNHURRIED[1]:
            self.window = min(self.window + length // 4, most)

    # -- asking --------------------------------------------------------------------------------------

    def submit(self, request: Request, answered: Answered) -> None:
        """Send a request; `answered` gets the type and the body of the answer, or LOST and an error."""
        kind = request[0]
        if self._early and (early := self._foreseen_answer(request)) is not None:
            early.add_done_callback(partial(self._take, request, answered))
        elif kind in (OPEN, OPENDIR):
            self.handles.open(request, answered)
        elif kind == CLOSE:
            self.handles.close(request, answered)
        else:
            self._send(request, answered)

    def submit_block(self, request: Request, length: int, answered: Answered) -> None:
        """The same for one of the blocks that a large file is moved in; `length` is how much of it goes to
        the server."""

        def over(kind: int, body: Any) -> None:
            self._blocks -= 1
            self._kept += length
            answered(kind, body)

        self._blocks += 1
        self.submit(request, over)

    def _foreseen_answer(self, request: Request) -> asyncio.Future[Reply] | None:
        if request[0] in (LSTAT, REALPATH, STAT):
            return self._early.pop(request, None)
        self._early.clear()  # from here on things may change
        return None

    def _take(self, request: Request, answered: Answered, early: asyncio.Future[Reply]) -> None:
        kind, body = early.result()
        if kind == STATUS:  # what was not there may have been made since
            self._send(request, answered)
        else:
            answered(kind, body)

    def _send(self, request: Request, answered: Answered) -> None:
        if self.error is not None:
            self._loop.call_soon(answered, LOST, _again(self.error))
            return
        if log.level <= log.TRACE:
            from fastsync_sftp.telling import telling

            answered = telling(self, request, answered)
        kind, parts = request
        number = self._next_id
        self._next_id = (number + 1) & 0xFFFFFFFF
        self._answered[number] = answered
        out = self._out
        if not out:
            self._loop.call_soon(self._flush)
        length = 5
        for part in parts:
            length += len(part)
        self._written += length + 4
        out.append(_header.pack(length, kind, number))
        out.extend(parts)

    def call(self, request: Request) -> asyncio.Future[Reply]:
        """Send a request; the answer comes as a future, which never fails."""
        future: asyncio.Future[Reply] = self._loop.create_future()

        def answered(kind: int, body: Any) -> None:
            if not future.done():
                future.set_result((kind, body))

        self.submit(request, answered)
        return future

    def _flush(self) -> None:
        out, self._out = self._out, []
        if out and self.stream is not None and self.error is None:
            self.stream.write(out)

    # -- answers -------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Bytes have arrived."""
        self._received += len(data)
        try:
            self._parse(data)
        except BrokenProtocol as error:
            self.lose(error)

    def _parse(self, data: bytes) -> None:
        view = memoryview(data)
        position, end = 0, len(view)
        while position < end:
            if self._missing:
                piece = view[position : position + self._missing]
                position += len(piece)
                self._missing -= len(piece)
                self._pieces.append(piece)
                if not self._missing:
                    pieces, self._pieces = self._pieces, []
                    self._deliver(self._kind, self._id, pieces)
                continue
            if self._head or end - position < _HEADER:
                wanted = _HEADER - len(self._head)
                self._head += view[position : position + wanted]
                position += wanted
                if len(self._head) < _HEADER:
                    return
                length, kind, number = _header.unpack(self._head)
                self._head = b""
            else:
                length, kind, number = _header.unpack_from(view, position)
                position += _HEADER
            if not 5 <= length <= MAX_PACKET:
                raise BrokenProtocol("a message of impossible length")
            body = length - 5
            if end - position >= body:
                self._deliver(kind, number, [view[position : position + body]])
                position += body
            else:
                self._kind, self._id, self._missing = kind, number, body

    def _deliver(self, kind: int, number: int, pieces: list[memoryview]) -> None:
        if kind == VERSION and self._greeting is not None and not self._greeting.done():
            if number < 3:
                raise BrokenProtocol(f"the server speaks version {number}, we need 3")
            self._greeting.set_result(b"".join(pieces))
            return
        answered = self._answered.pop(number, None)
        if answered is None:
            raise BrokenProtocol("an answer that nobody asked for")
        self._answers += 1
        try:
            if kind == DATA:
                answered(kind, _content(pieces))
            elif len(pieces) == 1:
                answered(kind, pieces[0])
            else:
                answered(kind, b"".join(pieces))
        except BrokenProtocol as error:
            answered(LOST, error)
            raise

    # -- stalls --------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Notice a server that owes answers and moves nothing in either direction, or next to nothing."""
        is_owed = bool(self._answered) or (self._greeting is not None and not self._greeting.done())
        is_owed = is_owed and not self._is_beginning
        # What is held open here, and used elsewhere or not at all, must not be waited for without end.
        is_waited_for = is_owed or self.handles.is_waiting
        moved = self._seen
        if is_waited_for:
            moved = self._received + self._kept + self._count_arrived()
        is_late = is_waited_for and moved == self._seen
        self._idle_looks = self._idle_looks + 1 if is_late else 0
        self._seen = moved
        if is_owed and self._idle_looks >= _LOOKS:
            self.lose(Stalled(f"no answer for {self._stall_timeout_s:g} seconds"))
            return
        if self._is_slow(moved, is_owed=is_owed):
            self.lose(Stalled(f"less than {self._min_rate} bytes/s move"))
            return
        if not is_owed and self._idle_looks >= _LOOKS // 4:
            self.handles.fail(_too_few_open)
        self._watch = self._loop.call_later(self._stall_timeout_s / _LOOKS, self._look)

    def _count_arrived(self) -> int:
        """How much of what was asked has arrived at the server, as far as that is known.

        What SSH took from us may wait behind a slow link for minutes, so it is TCP that tells; but TCP counts
        what SSH added as well, and a server that takes a byte at a time has far more of that. Both are right
        when the less is taken: the bytes that are too many for what there was to send are what was added.
        """
        assert self.stream is not None
        taken = self._written - self.stream.unsent
        arrived = self.stream.arrived
        if arrived is not None:
            self._added = max(self._added, arrived - taken)
            taken = arrived - self._added
        self._arrived = max(self._arrived, taken)
        return self._arrived

    def _is_slow(self, moved: int, *, is_owed: bool) -> bool:
        """Whether less than the least rate moved, over a stall timeout: while a large file is moved, or while
        there was not one answer."""
        if not is_owed:
            self._mark = None
            return False
        before, answers, looks = self._mark or (moved, self._answers, 0)
        is_slow = False
        if not self._blocks and self._answers != answers:
            before, looks = moved, 0
        elif looks >= _LOOKS:
            is_slow = moved - before < self._min_rate * self._stall_timeout_s
            before, looks = moved, 0
        self._mark = before, self._answers, looks + 1
        return is_slow


def _block(limit: int) -> int:
    return max(_LEAST_BLOCK, min(limit or SAFE_BLOCK, MAX_BLOCK))


def _too_few_open() -> FastsyncError:
    return Stalled("the server allows no more open files, and none was closed", hint="try --jobs 1")


def _content(pieces: list[memoryview]) -> list[memoryview]:
    """The bytes of a DATA answer, whose length stands in front once more."""
    if pieces and len(pieces[0]) < 4:
        pieces = [memoryview(b"".join(pieces))]
    if not pieces or len(pieces[0]) < 4:
        raise BrokenProtocol("data without a length")
    (length,) = _u32.unpack_from(pieces[0], 0)
    if length != sum(map(len, pieces)) - 4:
        raise BrokenProtocol("data of another length than its message")
    pieces[0] = pieces[0][4:]
    return pieces


def _notice(greeting: asyncio.Future[Any]) -> None:
    """See an exception that nobody waits for."""
    if not greeting.cancelled():
        greeting.exception()


def _again(error: FastsyncError) -> FastsyncError:
    """The same error for one more who waits: each gets a place of its own."""
    copy = type(error)(error.message, hint=error.hint)
    copy.__cause__ = error
    return copy
