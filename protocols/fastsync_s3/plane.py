"""Requests to one bucket: addressed, signed, paced, and their failures mapped to our errors.

What libraries do in half a millisecond per request (validation, endpoint rules, hooks, parsing into
models) is done once here, at `Plane.open`; a request is then a head of text and the bytes of its body.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from hashlib import sha256
from typing import Final, NamedTuple

from fastsync import log
from fastsync.backend import Buffer, Progress, StoreOptions, closing
from fastsync.dates import http_time
from fastsync.errors import FastsyncError, IntegrityError, Throttled, Transient, UsageError
from fastsync.patience import MayRetry, persistently
from fastsync.wire import MAX_BODY, Headers, Memory, Outgoing, Reply, Wire, WireOptions
from fastsync_s3.control import Control
from fastsync_s3.documents import ErrorReply, is_error, parse_error
from fastsync_s3.endpoints import Endpoint
from fastsync_s3.failures import map_error, region_from_error
from fastsync_s3.options import S3Options
from fastsync_s3.signing import (
    EMPTY_PAYLOAD,
    UNSIGNED_PAYLOAD,
    Credentials,
    Signer,
    encode_path,
    encode_query,
)

# Of the number of a failed attempt, from 0, and its error.

IDLE_S: Final = 30.0
# The least between two halvings: answers to what was sent before the first say nothing new.
_HALVING_S: Final = 1.0
# Statuses by which a server asks for patience.
_BUSY: Final = (429, 503)
_SKEW: Final = ("RequestTimeTooSkewed", "RequestExpired")
_EXPIRED: Final = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired")


# Answers to what was signed for another region, at a wrong time or with what has expired.
_SENT_WRONGLY: Final = (301, 307, 400, 403)
_WORDLESS: Final = (400, 403)
# What was asked, in words that tell more than HTTP's.
_OF_BUCKETS: Final = {
    "GET": "list the bucket",
    "HEAD": "look at the bucket",
    "PUT": "make the bucket",
    "POST": "delete objects in the bucket",
}
_OF_OBJECTS: Final = {
    "GET": "read the object",
    "HEAD": "look at the object",
    "PUT": "write the object",
    "POST": "write the object in parts",
    "DELETE": "delete the object",
}


class Call(NamedTuple):
    """One request: `key` is "" for the bucket itself, `body` is what is sent. `payload` is the SHA-256 of
    a body that is sent from a file. What must not be sent twice is not `repeatable`."""

    method: str
    key: str = ""
    query: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str] = {}
    body: Buffer = b""
    payload: str | None = None
    repeatable: bool = True


class Pace:
    """How many requests may be under way: halved when the server asks for patience, then one more for
    every round of answers without complaint."""

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = float(most)
        self._now = float(most)
        self._clock = clock
        self._halved = -_HALVING_S
        self._under_way = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def width(self) -> int:
        return int(self._now)

    def allow(self, most: int) -> None:
        """Another store of the run may use so many."""
        if most > self._most:
            self._now += most - self._most
            self._most = float(most)

    def throttled(self) -> None:
        now = self._clock()
        if now - self._halved >= _HALVING_S:
            self._halved = now
            self._set(max(1.0, self._now / 2))

    def went_well(self, answers: int) -> None:
        if self._now < self._most:
            self._set(min(self._most, self._now + answers / self._now))

    def _set(self, width: float) -> None:
        before, self._now = self.width(), width
        if log.level <= log.DEBUG and self.width() != before:
            requests = self.width()
            log.tell(log.DEBUG, "pace", protocol="s3", requests=requests, before=before)

    def answered(self, status: int) -> None:
        """An answer of this status came."""
        if status in _BUSY:
            self.throttled()
        elif status < 500:
            self.went_well(1)

    async def enter(self) -> None:
        """Wait until one more may be under way."""
        while self._under_way >= self.width():
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                self._wake()  # it may have been ours
                raise
        self._under_way += 1

    def leave(self) -> None:
        """One is over."""
        self._under_way -= 1
        self._wake()

    def _wake(self) -> None:
        free = self.width() - self._under_way
        while self._waiting and free > 0:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                free -= 1


class Plane:
    """The way to one bucket, with "" to the service itself. `open` first; shared by the stores of a run that
    lead there."""

    def __init__(self, control: Control, bucket: str, options: S3Options) -> None:
        self.control = control
        self.bucket = bucket
        self.options = options
        self.pace = Pace(1)
        self.streams = 1
        self._endpoint: Endpoint | None = None
        self._wire: Wire | None = None
        self._signer: Signer | None = None
        self._base = ""
        self._signs_payload = False
        # What the server was found to understand: CRC64NVME (None: not known yet), version 2 of
        # listings, conditions of writes, and deleting many objects in one request.
        self.has_crc: bool | None = None
        self.lists_v1 = False
        self.guards: bool | None = None
        self.probing = asyncio.Lock()
        self.deletes_many = True

    async def open(self, options: StoreOptions) -> None:
        """Find the endpoint. Raises AccessRefused, UsageError, Transient."""
        self.streams = max(self.streams, options.streams)
        self.pace.allow(options.streams)
        if self._wire is None:
            self._use(await self.control.endpoint(self.bucket), options)

    def _use(self, endpoint: Endpoint, options: StoreOptions) -> None:
        origin = endpoint.origin
        self._store_options = options
        self._endpoint = endpoint
        self._wire = Wire(
            origin,
            WireOptions(
                connections=self.streams,
                connect_timeout_s=options.request_timeout_s,
                request_timeout_s=options.request_timeout_s,
                stall_timeout_s=options.stall_timeout_s,
                min_rate=options.min_rate,
                idle_s=IDLE_S,
                send_buffer=options.tcp_send_buffer,
                recv_buffer=options.tcp_recv_buffer,
                congestion_control=options.congestion_control,
                send_rate=options.send_rate,
                verify=not self.options.no_verify_ssl,
                ca_file=self.control.ca_file,
                proxy=self.control.proxy_for(origin),
                protocol="s3",
                tells_query=True,
            ),
        )
        self._signer = Signer(endpoint.authority, endpoint.region)
        self._base = endpoint.path.rstrip("/")
        # Over TLS nobody can change the body on its way; without it, the signature has to cover it.
        self._signs_payload = origin.scheme == "http" and self.options.payload_signing is not False
        if self.options.payload_signing:
            self._signs_payload = True

    @property
    def endpoint(self) -> Endpoint:
        assert self._endpoint is not None
        return self._endpoint

    @property
    def wire(self) -> Wire:
        assert self._wire is not None
        return self._wire

    @property
    def signer(self) -> Signer:
        assert self._signer is not None
        return self._signer

    @property
    def signs_payload(self) -> bool:
        """True when a request's body is signed by its SHA-256, which the server checks."""
        return self._signs_payload

    async def aclose(self) -> None:
        if self._wire is not None:
            await self._wire.aclose()

    def same_service(self, other: Plane) -> bool:
        """True when the other bucket's objects can be copied from by the service itself."""
        return (
            self.endpoint.origin == other.endpoint.origin
            or (self.endpoint.is_aws and other.endpoint.is_aws)
        ) and self.control.identity == other.control.identity

    # -- requests ------------------------------------------------------------------------------------

    def _outgoing(self, call: Call, credentials: Credentials | None) -> Outgoing:
        body = call.body
        if not self._signs_payload:
            payload = UNSIGNED_PAYLOAD
        elif call.payload is not None:
            payload = call.payload
        else:
            payload = sha256(body).hexdigest() if body else EMPTY_PAYLOAD
        headers = call.headers
        if self.options.request_payer:
            headers = {**headers, "x-amz-request-payer": self.options.request_payer}
        if (body or call.method in ("PUT", "POST")) and "content-length" not in headers:
            headers = {**headers, "content-length": str(len(body))}
        head = self.signer.head(
            credentials,
            call.method,
            f"{self._base}/{encode_path(call.key)}" if call.key else self._base or "/",
            encode_query(call.query) if call.query else "",
            headers,
            payload,
        )
        return Outgoing(head, body, call.repeatable, call.method == "HEAD")

    async def ask(self, call: Call, *, may_retry: MayRetry | None = None) -> Reply:
        """One small exchange; the answer is a success, and no error in disguise. Raises as
        `failures.map_error` maps. `may_retry` is for requests that nobody else would make again."""
        if may_retry is None:
            return await self._corrected(call, self.wire.ask)
        return await persistently(lambda: self._corrected(call, self.wire.ask), may_retry)

    async def receive_into_file(
        self,
        call: Call,
        target: int | Memory,
        offset: int,
        length: int,
        check: Callable[[int, Headers], None],
        progress: Progress,
        digest: Callable[[memoryview], object] | None,
    ) -> Reply:
        """The body of the answer, `length` bytes, to `offset` of `target`, a descriptor or memory."""
        return await self._corrected(
            call,
            lambda outgoing: self.wire.receive_into_file(
                outgoing, target, offset, length, check=check, progress=progress, digest=digest
            ),
        )

    async def send_from_file(
        self, call: Call, fd: int, start: int, stop: int, progress: Progress
    ) -> Reply:
        """The bytes [start, stop) of `fd` as the body."""
        headers = {**call.headers, "content-length": str(stop - start)}
        return await self._corrected(
            call._replace(headers=headers),
            lambda outgoing: self.wire.send_from_file(outgoing, fd, start, stop, progress),
        )

    async def receive(
        self, call: Call, check: Callable[[int, Headers], None]
    ) -> AsyncIterator[memoryview]:
        """The body of the answer, in order; see `Wire.receive`."""
        outgoing = self._outgoing(call, await self.control.credentials())

        def refused(reply: Reply) -> FastsyncError:
            return self.error_of(reply, call) or IntegrityError("an answer without a body")

        async with closing(self.wire.receive(outgoing, check=check, refused=refused)) as buffers:
            async for buffer in buffers:
                yield buffer

    async def presign(self, key: str, expires_s: int, method: str) -> str:
        """A URL that does `method` on `key` until it expires. Raises UsageError without credentials."""
        credentials = await self.control.credentials()
        if credentials is None:
            raise UsageError("a link is signed, and there is nothing to sign it with")
        query = [] if self.options.version_id is None else [("versionId", self.options.version_id)]
        path = f"{self._base}/{encode_path(key)}"
        signed = self.signer.presign(credentials, method, path, query, expires_s=expires_s)
        return f"{self.endpoint.origin.scheme}://{self.endpoint.authority}{path}?{signed}"

    async def _corrected(
        self, call: Call, exchange: Callable[[Outgoing], Awaitable[Reply]]
    ) -> Reply:
        """Once more when the server told what it should have been sent: its region, its time, or with
        fresh credentials."""
        corrected = False
        while True:
            credentials = await self.control.credentials()
            await self.pace.enter()
            try:
                reply = await exchange(self._outgoing(call, credentials))
            finally:
                self.pace.leave()
            error = self.error_of(reply, call)
            if error is None:
                self.pace.went_well(1)
                return reply
            if call.method == "HEAD" and reply.status in _WORDLESS:
                asked = _asking_why(call)
                reply = await self.wire.ask(self._outgoing(asked, credentials))
                error = self.error_of(reply, asked, call) or error
            if corrected or not await self._correct(reply):
                raise error
            corrected = True

    async def ask_all(
        self, calls: Sequence[Call], *, most: int = MAX_BODY
    ) -> list[Reply | FastsyncError]:
        """Many small exchanges at once; the answer has one item per call."""
        credentials = await self.control.credentials()
        answers = await self._ask_all(calls, credentials, most)
        if again := await self._sent_wrongly(calls, answers, credentials):
            credentials = await self.control.credentials()
            others = await self._ask_all([calls[index] for index in again], credentials, most)
            for index, answer in zip(again, others, strict=True):
                answers[index] = answer
        mapped: list[Reply | FastsyncError] = []
        for call, answer in zip(calls, answers, strict=True):
            if isinstance(answer, FastsyncError):
                mapped.append(answer)
                continue
            is_plain = answer.status < 300 and not (answer.body and call.method != "GET")
            error = None if is_plain else self._meaning_of(answer, call)
            # Those that say so by their status were heard as they came: that burst may be long over.
            if isinstance(error, Throttled) and answer.status not in _BUSY:
                self.pace.throttled()
            mapped.append(error or answer)
        return mapped

    async def _sent_wrongly(
        self,
        calls: Sequence[Call],
        answers: Sequence[Reply | FastsyncError],
        credentials: Credentials | None,
    ) -> list[int]:
        """Which to ask again: the server told what they should have been sent. Credentials may expire at
        any of them."""
        groups: dict[tuple[bool, int, str], list[int]] = {}
        for index, (call, answer) in enumerate(zip(calls, answers, strict=True)):
            if isinstance(answer, Reply) and answer.status in _SENT_WRONGLY:
                code = parse_error(answer.body).code if answer.body else ""
                groups.setdefault((call.method == "HEAD", answer.status, code), []).append(index)
        for (is_head, status, _), group in groups.items():
            told = answers[group[0]]
            if is_head and status in _WORDLESS:
                with contextlib.suppress(FastsyncError):
                    told = await self.wire.ask(
                        self._outgoing(_asking_why(calls[group[0]]), credentials)
                    )
            if isinstance(told, Reply) and await self._correct(told):
                return group
        return []

    async def _ask_all(
        self, calls: Sequence[Call], credentials: Credentials | None, most: int
    ) -> list[Reply | FastsyncError]:
        def requests() -> Iterator[Outgoing]:
            for call in calls:
                yield self._outgoing(call, credentials)

        pace = self.pace
        return await self.wire.ask_all(
            requests(), width=pace.width, most=most, answered=pace.answered
        )

    async def _correct(self, reply: Reply) -> bool:
        """True when a second try makes sense."""
        code = parse_error(reply.body).code if reply.body else ""
        clock_ns = http_time(reply.headers.get("date"))
        if code in _SKEW and clock_ns is not None:
            self.signer.offset_s = clock_ns / 1e9 - time.time()
            return True
        if code in _EXPIRED:
            return await self.control.refresh()
        region = region_from_error(reply.headers, reply.body)
        if region is not None and region != self.endpoint.region and self.endpoint.is_aws:
            wire = self.wire
            self._use(await self.control.endpoint(self.bucket, region=region), self._store_options)
            await wire.aclose()
            return True
        return False

    # -- failures ------------------------------------------------------------------------------------

    def where(self, key: str) -> str:
        """A key as a person would write it."""
        return f"s3://{self.bucket}/{key}" if self.bucket else "s3://"

    def _action(self, call: Call) -> str:
        """What was asked, for messages."""
        if not self.bucket:
            return "list the buckets"
        if not call.key:
            return _OF_BUCKETS.get(call.method, f"{call.method} the bucket")
        if call.method in ("GET", "DELETE") and any(name == "uploadId" for name, _ in call.query):
            return "find the upload" if call.method == "GET" else "abort the upload"
        return _OF_OBJECTS.get(call.method, f"{call.method} the object")

    def error_of(self, reply: Reply, call: Call, meant: Call | None = None) -> FastsyncError | None:
        """Why an answer is no success: its status, or an error in the body of a 200. `meant` is the call
        in whose place this one was made."""
        error = self._meaning_of(reply, meant or call, call.method)
        if isinstance(error, Throttled):
            self.pace.throttled()
        return error

    def _meaning_of(
        self, reply: Reply, call: Call, method: str | None = None
    ) -> FastsyncError | None:
        """`method` is the one that was answered, where it is another than the call's."""
        if 200 <= reply.status < 300:
            if (method or call.method) == "GET" or not is_error(reply.body):
                return None
            told = parse_error(reply.body)
            status = (
                500 if told.code in ("InternalError", "") else 503 if "Slow" in told.code else 400
            )
        else:
            told = parse_error(reply.body)
            status = reply.status
        return map_error(
            status,
            told.code,
            self.control.masked(told.message),
            reply.headers,
            self.where(call.key),
            self._action(call),
        )

    def told_error(self, told: ErrorReply, key: str, action: str) -> FastsyncError | None:
        """Why one of many objects was not dealt with; None for one that was gone already."""
        if told.code in ("NoSuchKey", "NoSuchVersion"):
            return None
        status = {"SlowDown": 503, "InternalError": 500, "AccessDenied": 403}.get(told.code, 400)
        said = self.control.masked(told.message)
        return map_error(status, told.code, said, {}, self.where(key), action)


def _asking_why(call: Call) -> Call:
    """A GET in the place of a HEAD, whose answers have no body: it is refused for the same reason."""
    return call._replace(method="GET", headers={**call.headers, "range": "bytes=0-0"})


def is_in_doubt(error: FastsyncError) -> bool:
    """True when the server may have done what it was asked, and only its answer got lost."""
    return isinstance(error, Transient | IntegrityError) and not isinstance(error, Throttled)


def values(headers: Headers, names: Iterable[str]) -> dict[str, str]:
    """Those of the named headers that are there."""
    found = {}
    for name in names:
        value = headers.get(name)
        if value is not None:
            found[name] = value
    return found
