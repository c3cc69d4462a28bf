"""An S3 server of our own that does what it is told: honest at first, then as hostile as a script says.

`HostileS3` runs in a thread and keeps its buckets in memory (s3_objects.py). ``server.on("GetObject",
flip(100), key="a", times=2)`` scripts a fault for the next two reads of one key; without a fault all answers
are honest. Every request is in `HostileS3.requests`, headers and all, so that a second server makes a trap
for what a redirect should not carry away.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from http_exchange import (
    Malformed,
    Request,
    Response,
    ThreadedServer,
    read_body,
    read_head,
    send,
)
from s3_objects import Bucket, Objects, error, operation_of
from s3_servers import S3Server

Honest = Callable[[Request], Response]
# What answers in the place of S3; it may ask the honest server, with the request or another.
Fault = Callable[[Request, Honest], Response]


@dataclass
class Seen:
    """A request as it came, `time_s` by the monotonic clock. `status` is 0 until it is answered, and for
    ever if it never is. `connection` counts the connections of the server."""

    operation: str
    method: str
    path: str
    bucket: str
    key: str
    query: dict[str, str]
    headers: dict[str, str]
    time_s: float
    connection: int
    body: bytes = b""
    status: int = 0


@dataclass
class Rule:
    """A fault and when it happens; `hits` counts how often it did."""

    operation: str
    fault: Fault
    key: str | None
    skip: int
    times: int | None
    at_head: bool
    hits: int = 0

    def applies(self, operation: str, key: str) -> bool:
        """Whether to this one; counts down."""
        if not fnmatchcase(operation, self.operation) or self.key not in (None, key):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times is not None and self.hits >= self.times:
            return False
        self.hits += 1
        return True


class HostileS3(ThreadedServer):
    """See `ThreadedServer`."""

    def __init__(self, tls: ssl.SSLContext | None = None, *, min_part_size: int = 5 << 20) -> None:
        super().__init__(tls)
        self.objects = Objects(min_part_size)
        self.requests: list[Seen] = []
        self.peak_in_flight = 0
        self._rules: list[Rule] = []
        self._lock = threading.RLock()
        self.in_flight = 0

    # -- for the test ------------------------------------------------------------------------------------

    def on(
        self,
        operation: str,
        fault: Fault,
        *,
        key: str | None = None,
        skip: int = 0,
        times: int | None = 1,
        at_head: bool = False,
    ) -> Rule:
        """Script a fault for calls of an operation of S3, which may be a pattern such as ``*Object``.

        The first `skip` calls are spared; it happens `times` times, for ever if None. Of several rules that
        fit, the one made first counts. `at_head` answers before the body is read, and then closes.
        """
        rule = Rule(operation, fault, key, skip, times, at_head)
        with self._lock:
            self._rules.append(rule)
        return rule

    def behave(self) -> None:
        """Drop the script; buckets and requests stay."""
        with self._lock:
            self._rules.clear()

    def put(
        self, bucket: str, key: str, data: bytes = b"", headers: dict[str, str] | None = None
    ) -> str:
        """Put an object there, and the bucket if need be; its ETag."""
        with self._lock:
            return self.objects.put(bucket, key, data, headers)

    def make_bucket(self, bucket: str) -> str:
        with self._lock:
            self.objects.buckets.setdefault(bucket, Bucket())
        return bucket

    def data(self, bucket: str, key: str) -> bytes:
        """The content of an object; KeyError if there is none."""
        with self._lock:
            return self.objects.buckets[bucket][key].data

    def headers(self, bucket: str, key: str) -> dict[str, str]:
        """What was stored with an object: metadata, type, class."""
        with self._lock:
            return dict(self.objects.buckets[bucket][key].headers)

    def keys(self, bucket: str) -> list[str]:
        with self._lock:
            return list(self.objects.buckets[bucket].keys)

    def count(self, operation: str = "*", key: str | None = None) -> int:
        """How many requests of an operation came, or of all that a pattern fits."""
        return len(self.seen(operation, key))

    def seen(self, operation: str = "*", key: str | None = None) -> list[Seen]:
        with self._lock:
            return [
                request
                for request in self.requests
                if fnmatchcase(request.operation, operation) and key in (None, request.key)
            ]

    def counts(self) -> Counter[str]:
        with self._lock:
            return Counter(request.operation for request in self.requests)

    @property
    def open_uploads(self) -> list[str]:
        """The keys of multipart uploads that were neither completed nor aborted."""
        with self._lock:
            return sorted(upload.key for upload in self.objects.uploads.values())

    @property
    def endpoint(self) -> str:
        assert self.port, "not started"
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://127.0.0.1:{self.port}"

    @property
    def server(self) -> S3Server:
        """The same as the real ones are seen: environment, client, credentials."""
        return S3Server(self.endpoint, os.getpid())

    @property
    def environ(self) -> dict[str, str]:
        return self.server.environ

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        try:
            while (head := await read_head(reader)) is not None:
                if not await self._exchange(head, reader, writer, number):
                    break
        except Malformed as exc:
            with contextlib.suppress(OSError):
                await send(Request("GET", "/", {}, {}), error(400, "BadRequest", str(exc)), writer)
        except OSError:
            pass  # the client has gone, which is a test's right
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _exchange(
        self,
        head: Request,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        connection: int,
    ) -> bool:
        operation = operation_of(head)
        key = head.key_bytes.decode(errors="surrogateescape")
        seen = Seen(
            operation,
            head.method,
            head.path,
            head.bucket,
            key,
            head.query,
            head.headers,
            time.monotonic(),
            connection,
        )
        with self._lock:
            self.requests.append(seen)
            self.in_flight += 1
            self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
            rule = next((rule for rule in self._rules if rule.applies(operation, key)), None)
        try:
            request = head
            if rule is None or not rule.at_head:
                request = await read_body(head, reader, writer)
                seen.body = request.body
            with self._lock:
                honest = self.objects.answer
                response = honest(request) if rule is None else rule.fault(request, honest)
            seen.status = 0 if response.drop else response.status
            good = await send(request, response, writer)
            return good and (rule is None or not rule.at_head)
        finally:
            self.in_flight -= 1


# -- faults: refusals -------------------------------------------------------------------------------------


def refuse(status: int, code: str, message: str = "", **headers: str) -> Fault:
    """An error of S3, and nothing is done; 501 NotImplemented is what a server says that lacks a call."""
    return lambda _request, _honest: error(status, code, message, **headers)


def slow_down(retry_after: str | None = None) -> Fault:
    """503 SlowDown, with a Retry-After in seconds or as a date."""
    headers = {} if retry_after is None else {"retry_after": retry_after}
    return refuse(503, "SlowDown", "Please reduce your request rate.", **headers)


def redirect(url: str, status: int = 307) -> Fault:
    """To the same path at another endpoint."""

    def fault(request: Request, _honest: Honest) -> Response:
        answer = error(status, "TemporaryRedirect")
        return answer.having(location=url.rstrip("/") + request.path)

    return fault


def error_body(code: str = "InternalError", *, done: bool = False) -> Fault:
    """200 with an <Error>, as copies and completions may answer; `done` does it all the same."""

    def fault(request: Request, honest: Honest) -> Response:
        if done:
            honest(request)
        return error(200, code)

    return fault


def lost_reply(*, reset: bool = False) -> Fault:
    """Do it, and close the connection without a word."""

    def fault(request: Request, honest: Honest) -> Response:
        return replace(honest(request), drop=True, reset=reset)

    return fault


def hang_up(*, reset: bool = False) -> Fault:
    """Do nothing, and close the connection without a word."""
    return lambda _request, _honest: Response(drop=True, reset=reset)


def no_answer(seconds: float = 3600.0) -> Fault:
    """Do it, say that it went well, and stop before the body."""

    def fault(request: Request, honest: Honest) -> Response:
        return replace(honest(request), stall_at=0, stall_s=seconds)

    return fault


def silence(seconds: float = 3600.0) -> Fault:
    """Do it, and say nothing."""
    return lambda request, honest: replace(honest(request), drop=True, stall_s=seconds)


# -- faults: less than was asked --------------------------------------------------------------------------


def ignoring(*headers: str) -> Fault:
    """As servers that do not know a header: ``ignoring("if-none-match", "if-match")``."""
    return lambda request, honest: honest(request.without(*headers))


def ignore_range(request: Request, honest: Honest) -> Response:
    """200 and the whole object, whatever range was asked for."""
    return honest(request.without("range"))


def answer_v1(request: Request, honest: Honest) -> Response:
    """ListObjectsV2 answered as if its parameters were unknown, so always from the start."""
    return honest(
        request.asking(list_type=None, continuation_token=None, start_after=None, fetch_owner=None)
    )


def first(action: Callable[[], object]) -> Fault:
    """Answer honestly, after something has happened: an object changes between two ranges."""

    def fault(request: Request, honest: Honest) -> Response:
        action()
        return honest(request)

    return fault


# -- faults: bodies ---------------------------------------------------------------------------------------


def cut(at: int, *, reset: bool = False) -> Fault:
    """End the connection after `at` bytes of the body, by FIN, or by RST."""
    return lambda request, honest: replace(honest(request), cut_at=at, reset=reset)


def stall(at: int, seconds: float = 3600.0) -> Fault:
    """Send no byte for some time, after `at` bytes of the body."""
    return lambda request, honest: replace(honest(request), stall_at=at, stall_s=seconds)


def body(change: Callable[[bytes], bytes]) -> Fault:
    """Another body under the same headers, but for its own length."""

    def fault(request: Request, honest: Honest) -> Response:
        answer = honest(request)
        return replace(answer.having(content_length=None), body=change(answer.body))

    return fault


def flip(at: int) -> Fault:
    """One bit of the body is another."""
    return body(lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def shorter(by: int = 1) -> Fault:
    """A body that lacks its last bytes, and a Content-Length that agrees."""
    return body(lambda data: data[:-by])


def longer(by: int = 1) -> Fault:
    """A body with more bytes than the object has, and a Content-Length that agrees."""
    return body(lambda data: data + b"+" * by)


def chunked(by: int = 0) -> Fault:
    """A body without a length that ends well, `by` bytes too early."""

    def fault(request: Request, honest: Honest) -> Response:
        answer = honest(request)
        return replace(answer, body=answer.body[: len(answer.body) - by], chunked=True)

    return fault


def header(**headers: str | None) -> Fault:
    """The honest answer with other headers; None takes one away: ``header(content_range="bytes 0-0/1")``."""
    return lambda request, honest: honest(request).having(**headers)


# -- faults: listings -------------------------------------------------------------------------------------


def html(request: Request, _honest: Honest) -> Response:
    """200 and a page for people, as captive portals and wrong proxies send it."""
    text = b"<!DOCTYPE html><html><body><h1>Welcome</h1><p>Please log in.</p></body></html>"
    return Response(200, {"content-type": "text/html"}, b"" if request.method == "HEAD" else text)


def truncated_xml(keep: float = 0.5) -> Fault:
    """The start of the document alone, well framed; `keep` is a share."""
    return body(lambda data: data[: int(len(data) * keep)])


def edited(pattern: str, replacement: str) -> Fault:
    """The document with every place changed that a regular expression finds; "." is any character."""
    found = re.compile(pattern.encode(), re.DOTALL)
    return body(lambda data: found.sub(replacement.encode(), data))


def wrong_bucket(name: str = "another-bucket") -> Fault:
    """A well-formed listing of something else."""
    return edited("<Name>.*?</Name>", f"<Name>{name}</Name>")


def missing_token() -> Fault:
    """IsTruncated without a token to go on by."""
    return edited("<NextContinuationToken>.*?</NextContinuationToken>", "")


def same_page(request: Request, honest: Honest) -> Response:
    """The first page for ever, always with the same token."""
    answer = honest(request.asking(continuation_token=None))
    return edited(
        "<NextContinuationToken>.*?</NextContinuationToken>",
        "<NextContinuationToken>again</NextContinuationToken>",
    )(request, lambda _request: answer)


def unsorted(request: Request, honest: Honest) -> Response:
    """Keys in falling order."""

    def reverse(data: bytes) -> bytes:
        rows = re.findall(rb"<Contents>.*?</Contents>", data, re.DOTALL)
        turned = iter(reversed(rows))
        return re.sub(rb"<Contents>.*?</Contents>", lambda _: next(turned), data, flags=re.DOTALL)

    return body(reverse)(request, honest)
