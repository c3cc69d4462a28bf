"""Requests and answers: what is sent, and heads and chunks as they are understood."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from fastsync.backend import READ_BUFFER, Buffer
from fastsync.errors import (
    IntegrityError,
)

if TYPE_CHECKING:
    pass

MAX_HEAD: Final = 64 << 10
MAX_LINES: Final = 200
MAX_BODY: Final = 16 << 20
BLOCK: Final = READ_BUFFER  # less costs calls and turns of the interpreter, more brings nothing
SMALL: Final = 64 << 10
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?")


class Origin(NamedTuple):
    """A server: `scheme` is "http" or "https"."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """The Host header: the port only if it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = 443 if self.scheme == "https" else 80
        return host if self.port == usual else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class WireOptions:
    """How to reach a server, and how patiently. Times in seconds, sizes in bytes.

    `request_timeout_s` bounds the silence before an answer begins, `stall_timeout_s` that within a body;
    `min_rate` is the least of a body, in bytes per second over a stall timeout. `proxy` is a URL. `send_rate`
    tells how many bytes per second a connection may send at this moment, None without a limit; it is kept
    to by the kernel, where it can (SO_MAX_PACING_RATE of socket(7)). `by_record` is for reading: records of
    TLS from nearby are taken from the socket one by one, as long as they are large. `protocol` is whose
    requests they are, for `fastsync.log`; `tells_query`: what stands in a URL after "?" may be shown.
    """

    connections: int = 8
    connect_timeout_s: float = 30.0
    request_timeout_s: float = 60.0
    stall_timeout_s: float = 60.0
    min_rate: int = 64
    idle_s: float = 30.0
    send_buffer: int | None = None
    recv_buffer: int | None = None
    send_rate: Callable[[], float | None] | None = None
    congestion_control: str | None = None
    by_record: bool = False
    verify: bool = True
    ca_file: str | None = None
    proxy: str | None = None
    protocol: str = "http"
    tells_query: bool = False


class Headers:
    """Header lines of an answer, found by lower-case name. Repeated ones are joined by ", "."""

    __slots__ = ("_lines",)

    def __init__(self, lines: dict[str, str]) -> None:
        self._lines = lines

    def get(self, name: str, default: str | None = None) -> str | None:
        return self._lines.get(name, default)

    def __getitem__(self, name: str) -> str:
        return self._lines[name]

    def __contains__(self, name: object) -> bool:
        return name in self._lines

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def keys(self) -> Iterable[str]:
        return self._lines.keys()

    def items(self) -> Iterable[tuple[str, str]]:
        return self._lines.items()


class Memory(NamedTuple):
    """Memory to receive into; its first byte is the one at `start` of the file."""

    start: int
    view: memoryview


class Outgoing(NamedTuple):
    """A request: `head` from the request line to the empty line, complete, and the body.

    What is `repeatable` is sent again, once, when a connection that was used before turns out to be dead.
    `is_head`: the answer has no body, whatever it says. `is_look`: only its head is wanted; a body that
    is longer than may be costs its connection, and is no error.
    """

    head: bytes
    body: Buffer = b""
    repeatable: bool = True
    is_head: bool = False
    is_look: bool = False


class Reply(NamedTuple):
    """An answer. `body` is empty where it went elsewhere."""

    status: int
    reason: str
    headers: Headers
    body: bytes


class Head(NamedTuple):
    status: int
    reason: str
    headers: Headers
    length: int | None  # of the body, None to its end
    chunked: bool
    keeps: bool  # the connection may be used again


def _split_line(line: str) -> tuple[str, str]:
    """The lower-case name and the value of a header line. Raises IntegrityError."""
    name, colon, value = line.partition(":")
    if not colon or not _TOKEN.fullmatch(name) or "\n" in line or "\0" in line:
        raise IntegrityError("the server's answer has a header line that is none")
    return name.lower(), value.strip(" \t")


# Of a thousand small files, most lines say what the one before said.
_split_known_line: Final = lru_cache(256)(_split_line)


def parse_head(data: bytes, is_head: bool) -> Head:
    """A response head, without the empty line. Raises IntegrityError."""
    text = data.decode("latin-1")
    lines = text.split("\r\n")
    status_line = lines[0]
    is_http = status_line.startswith("HTTP/1.") and text.count("\r") == len(lines) - 1
    if len(lines) > MAX_LINES or not is_http:
        raise IntegrityError("the server's answer is not HTTP/1.1")
    code = status_line[9:12]
    if not code.isdecimal() or len(code) != 3 or status_line[12:13] not in ("", " "):
        raise IntegrityError("the server's answer has no status")
    found: dict[str, str] = {}
    for line in lines[1:]:
        name, value = _split_known_line(line) if len(line) < 128 else _split_line(line)
        if name in found:
            if name == "content-length" and found[name] != value:
                raise IntegrityError("the server's answer has two lengths")
            if name != "content-length":
                found[name] += ", " + value
        else:
            found[name] = value
    status = int(code)
    length: int | None = None
    told = found.get("content-length")
    if told is not None:
        if not told.isdecimal() or len(told) > 18:
            raise IntegrityError("the server's answer has a length that is none")
        length = int(told)
    chunked = False
    if (coding := found.get("transfer-encoding")) is not None:
        if coding.lower() != "chunked" or length is not None:
            raise IntegrityError("the server's answer says in two ways where it ends")
        chunked = True
    connection = found.get("connection", "").lower()
    keeps = "close" not in connection and (status_line[7] == "1" or "keep-alive" in connection)
    if is_head or status in (204, 304) or status < 200:
        length, chunked = 0, False
    elif length is None and not chunked:
        keeps = False
    return Head(status, status_line[13:], Headers(found), length, chunked, keeps)


class Chunks:
    """Takes the chunked coding off what is fed to it."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._left = 0
        self._trailer = 0
        self._state = "size"
        self.done = False
        self.excess = b""

    def feed(self, data: memoryview) -> Iterator[memoryview]:
        """The body's bytes in `data`. Raises IntegrityError."""
        while data and not self.done:
            if self._state == "data":
                taken = data[: self._left]
                data = data[len(taken) :]
                self._left -= len(taken)
                if not self._left:
                    self._state = "end"
                yield taken
                continue
            end = bytes(data[:MAX_HEAD]).find(b"\n")
            self._line += data[: end + 1 if end >= 0 else len(data)]
            if len(self._line) > MAX_HEAD:
                raise IntegrityError("the server's answer has a line without end")
            if end < 0:
                return
            data = data[end + 1 :]
            line = bytes(self._line)
            self._line.clear()
            if not line.endswith(b"\r\n"):
                raise IntegrityError("the server's answer is not in chunks as it says")
            self._take_line(line[:-2])
        self.excess = bytes(data)

    def _take_line(self, line: bytes) -> None:
        if self._state == "size":
            match = _SIZE_LINE.fullmatch(line)
            if match is None:
                raise IntegrityError("the server's answer has a chunk without a size")
            self._left = int(match[1], 16)
            self._state = "data" if self._left else "trailer"
        elif self._state == "end":
            if line:
                raise IntegrityError("the server's answer has a chunk that is too long")
            self._state = "size"
        elif line:
            self._trailer += len(line)
            if self._trailer > MAX_HEAD:
                raise IntegrityError("the server's answer has a trailer without end")
        else:
            self.done = True
