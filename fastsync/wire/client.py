"""The way to one server: its connections, small exchanges, and bodies."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

from fastsync import log, nearness
from fastsync.backend import Progress
from fastsync.errors import (
    AccessRefused,
    Changed,
    FastsyncError,
    IntegrityError,
    Stalled,
    Transient,
    UsageError,
    caused,
    from_os_error,
)
from fastsync.threads import in_thread
from fastsync.wire.batch import Batch
from fastsync.wire.body import Body, Disk, Send, write_at
from fastsync.wire.connection import Connection
from fastsync.wire.messages import (
    BLOCK,
    MAX_BODY,
    Headers,
    Memory,
    Origin,
    Outgoing,
    Reply,
    WireOptions,
)
from fastsync.wire.rates import Going
from fastsync.wire.sockets import (
    NEAR_S,
    Dead,
    Opening,
    Socket,
    has_come,
    parse_proxy,
    set_timeouts,
    shut,
    tunnel,
)
from fastsync.wire.tls import RecordSocket, TlsSocket

T = TypeVar("T")

# Records of less are better taken together, and after how many bytes that is known.
_SMALL_RECORD: Final = 8 << 10
_ENOUGH_TO_TELL: Final = 4 << 20
# Progress is told when so much has moved and so long has passed: each time wakes the event loop.
_TELL_EVERY: Final = 1 << 20
_TELL_EVERY_S: Final = 0.02
# Looks at exchanges: so often, and so often in the shorter of the times that are granted.
_TICK_S: Final = 1.0
_TICKS: Final = 5


class Wire:
    """Connections to one server: at most so many, kept for `idle_s`, the last used first."""

    def __init__(self, origin: Origin, options: WireOptions) -> None:
        self.origin = origin
        self.options = options
        self.active: set[Connection] = set()
        self._going: set[Going] = set()  # of threads
        self._crowd = [0]  # connections with small exchanges, where how many may be changes
        self._idle: list[Connection] = []
        self.count = 0
        self.made = 0  # connections, ever
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

    def closed(self, connection: Connection) -> None:
        """A connection is gone: there is room for another."""
        self.count -= 1
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)
        self._admit()

    def _admit(self) -> None:
        while self._waiting and (self._idle or self.count < self.options.connections):
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def pooled(self) -> Connection | None:
        now = time.monotonic()
        while self._idle:
            connection = self._idle.pop()
            if now - connection.idle_since <= self.options.idle_s and connection.is_fresh():
                return connection
            connection.close()
        return None

    async def acquire(self, *, fresh: bool = False) -> Connection:
        while True:
            if not fresh and (pooled := self.pooled()) is not None:
                return pooled
            if self.count < self.options.connections:
                self.count += 1
                try:
                    return await self._connect()
                except BaseException:
                    self.count -= 1
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

    def release(self, connection: Connection) -> None:
        if not connection.is_open:
            return
        if self._closed:
            connection.close()
            return
        connection.idle_since = time.monotonic()
        self._idle.append(connection)
        self.tick_later()
        self._admit()

    def tick_later(self) -> None:
        if self._ticker is None and not self._closed:
            patience_s = min(self.options.stall_timeout_s, self.options.request_timeout_s)
            pause_s = min(_TICK_S, patience_s / _TICKS)
            self._ticker = asyncio.get_running_loop().call_later(pause_s, self._tick)

    def _tick(self) -> None:
        self._ticker = None
        now = time.monotonic()
        for connection in list(self.active):
            connection.check(now, self.options)
        for going in self._going:
            going.look_and_end(now)
        for connection in list(self._idle):
            if now - connection.idle_since > self.options.idle_s:
                connection.close()
        if self.active or self._idle or self._going:
            self.tick_later()

    async def _connect(self) -> Connection:
        began = time.monotonic()
        sock: Socket | None = None
        if self._known is not None:
            sock = await self._connect_again()
        if sock is None:
            opening = Opening()
            sock = await self._in_thread(
                lambda: self._open_socket(opening), opening.give_up, lambda made: made.close()
            )
        if self._closed:
            sock.close()
            raise Transient("the connection was closed", where=str(self.origin))
        connection = Connection(self, sock)
        if log.level <= log.DEBUG:
            from fastsync.wire.telling import tell_connection

            tell_connection(self, connection, began)
        return connection

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

    def _open_socket(self, opening: Opening) -> Socket:
        """A connected socket, non-blocking. Blocks until `opening` is given up; raises FastsyncError."""
        options, origin = self.options, self.origin
        where = str(origin)
        proxy = parse_proxy(options.proxy) if options.proxy else None
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
                    tunnel(plain, origin, proxy)
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
        is_near = (
            self.options.by_record and not self._is_cut_small and nearness.of_socket(sock) < NEAR_S
        )
        return (RecordSocket if is_near else TlsSocket)(sock, context, self.origin.host)

    async def _in_thread(
        self,
        work: Callable[[], T],
        on_cancel: Callable[[], object] | None = None,
        undo: Callable[[T], object] | None = None,
    ) -> T:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.options.connections + 2, "fastsync-wire")
        return await in_thread(self._threads, work, on_cancel, undo)

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

    def error(self, error: Exception) -> FastsyncError:
        """What ended an exchange, with its place."""
        where = str(self.origin)
        if isinstance(error, FastsyncError):
            return error.at(where)
        if isinstance(error, Dead):
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
        answered: Callable[[int], None] = lambda _status: None,
    ) -> list[Reply | FastsyncError]:
        """Exchanges, up to `width` at once; the answers in the order of the requests. A `width` that changes
        is for all that are under way together.

        Requests are taken as connections get free. An error is one item's answer. `answered` is told of the
        status of each answer as it comes, so that it can make `width` less, and more again.
        """
        if self._is_proxied:
            requests = map(self._through_proxy, requests)
        if callable(width):
            batch = Batch(self, iter(requests), width, most, answered, self._crowd)
        else:
            batch = Batch(self, iter(requests), lambda: width, most, answered, [0])
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

        def take(body: Body) -> Reply:
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
                    write_at(target, piece, position)
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

        def send(going: Going, head: bytes, tell: Callable[[int], None]) -> None:
            sock = going.sock
            if not isinstance(sock, socket.socket):
                self._send_by_buffer(going, head, fd, start, stop, tell)
                return
            going.send_all(memoryview(head), socket.MSG_MORE if stop > start else 0)
            position = start
            while position < stop:
                most = min(stop - position, 8 << 20)
                count = going.send(partial(os.sendfile, sock.fileno(), fd, position, most))
                if not count:
                    raise Changed("the file ends before the part that was to be sent")
                position += count
                tell(count)

        return await self._by_thread(request, Body.reply, progress, send)

    def _send_by_buffer(
        self,
        going: Going,
        head: bytes,
        fd: int,
        start: int,
        stop: int,
        tell: Callable[[int], None],
    ) -> None:
        going.send_all(memoryview(head))
        with self._buffer() as block:
            position = start
            while position < stop:
                count = os.preadv(fd, [block[: stop - position]], position)
                if not count:
                    raise Changed("the file ends before the part that was to be sent")
                going.send_all(block[:count])
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

        def take(body: Body) -> Reply:
            head = body.head
            if not 200 <= head.status < 300:
                raise refused(body.refusal())
            check(head.status, head.headers)
            for piece in body.pieces(own=True):
                room.acquire()
                if left.is_set():
                    raise Dead
                if log.level <= log.TRACE:
                    body.tell(len(piece))
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
        proxy = parse_proxy(self.options.proxy or "")
        line, _, rest = request.head.partition(b"\r\n")
        method, _, target = line.partition(b" ")
        head = f"{method.decode()} {self.origin}".encode() + target + b"\r\n"
        return request._replace(head=head + proxy.authorization.encode() + rest)

    async def _by_thread(
        self,
        request: Outgoing,
        take: Callable[[Body], Reply],
        progress: Progress,
        send: Send | None = None,
    ) -> Reply:
        """A whole exchange by a thread over a blocking socket."""
        if self._is_proxied:
            request = self._through_proxy(request)
        fresh = False
        while True:
            connection = await self.acquire(fresh=fresh)
            try:
                return await self._exchange(connection, request, take, progress, send)
            except Dead as error:
                if not connection.used or fresh or not request.repeatable:
                    raise self.error(error) from error
                fresh = True
            except Disk as error:
                cause = error.__cause__
                assert isinstance(cause, OSError)
                raise from_os_error(cause) from cause  # the place is the caller's to name
            except (FastsyncError, OSError) as error:
                ours = self.error(error)
                raise ours from caused(ours, error)

    async def _exchange(
        self,
        connection: Connection,
        request: Outgoing,
        take: Callable[[Body], Reply],
        progress: Progress,
        send: Send | None,
    ) -> Reply:
        connection.detach()
        connection.hold_back()
        sock = connection.sock
        going = Going(sock, self.options)
        loop = asyncio.get_running_loop()
        untold, told_at = 0, time.monotonic()
        began, moved = told_at, 0

        def tell(count: int) -> None:
            nonlocal untold, told_at, moved
            untold += count
            moved += count
            if untold >= _TELL_EVERY and (now := time.monotonic()) - told_at >= _TELL_EVERY_S:
                loop.call_soon_threadsafe(progress, untold)
                untold, told_at = 0, now

        def work() -> tuple[Reply, bool]:
            sock.setblocking(True)
            set_timeouts(sock, self.options.stall_timeout_s)
            refused: OSError | None = None
            try:
                if send is None:
                    going.send_all(memoryview(request.head))
                    if request.body:
                        going.send_all(memoryview(request.body))
                else:
                    send(going, request.head, tell)
            except (BrokenPipeError, ConnectionResetError) as error:
                refused = error  # perhaps it has said why
            except BlockingIOError as error:
                if not has_come(sock):
                    raise Stalled("the server takes no more bytes") from error
                refused = error
            with self._buffer() as block:
                body = Body(self, sock, request.is_head, block, tell, refused)
                reply = take(body)
                body.drain()
            return reply, body.keeps and refused is None

        def told(outcome: Reply | BaseException) -> None:
            if log.level <= log.TRACE:
                from fastsync.wire.telling import tell_exchange

                ways = {"received": moved} if send is None else {"sent": moved}
                tell_exchange(self, request, connection, outcome, began, **ways)

        self._going.add(going)
        self.tick_later()
        try:
            reply, keeps = await self._in_thread(work, lambda: shut(sock))
        except BaseException as error:
            connection.close()
            told(error)
            if going.error is not None and isinstance(error, FastsyncError | OSError | Dead):
                raise going.error from error
            raise
        finally:
            self._going.discard(going)
        told(reply)
        if untold:
            progress(untold)
        connection.used = True
        if isinstance(sock, RecordSocket) and sock.received > _ENOUGH_TO_TELL:
            self._is_cut_small = sock.received < _SMALL_RECORD * sock.records
            keeps = keeps and not self._is_cut_small
        if keeps:
            sock.setblocking(False)
            self.release(connection)
        else:
            connection.close()
        return reply

    @contextlib.contextmanager
    def _buffer(self) -> Iterator[memoryview]:
        """A buffer for one thread's use; they are kept, as pages cost more than copies."""
        block = self._buffers.pop() if self._buffers else bytearray(BLOCK)
        view = memoryview(block)
        try:
            yield view
        finally:
            view.release()
            self._buffers.append(block)
