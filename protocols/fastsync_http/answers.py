"""What answers say of a file: its version, size and time, and whether it can be read in ranges."""

from __future__ import annotations

import re
from typing import Final, NamedTuple, Protocol

from fastsync.backend import Entry
from fastsync.dates import SECOND_NS, http_time
from fastsync.errors import (
    AccessRefused,
    Changed,
    FastsyncError,
    IntegrityError,
    NotFound,
    PermissionRefused,
    Throttled,
    Transient,
    Unsupported,
)
from fastsync_http.digests import Expected, announced

_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")
# Answers that may be another tomorrow (RFC 9110, 15).
_PASSING: Final = (408, 425, 500, 502, 504)


class HeaderLines(Protocol):
    """Header lines by lower-case name, as `fastsync.wire` has them."""

    def get(self, name: str, /) -> str | None: ...


class Representation(NamedTuple):
    """One version of a file, as an answer describes it.

    `etag` is as it was sent, quotes and all. `dated` is the Last-Modified line where it can tell versions
    apart. `has_ranges`: the server was seen to send the range it was asked for.
    """

    size: int | None = None
    mtime_ns: int | None = None
    etag: str | None = None
    dated: str | None = None
    has_ranges: bool = False
    expected: Expected | None = None

    @property
    def strong(self) -> str | None:
        """What authorises putting ranges together: a strong ETag, or else a date (RFC 9110, 13.1.5)."""
        if self.etag is not None:
            return self.etag if is_strong(self.etag) else None
        return self.dated

    @property
    def is_seekable(self) -> bool:
        return self.has_ranges and self.size is not None and self.strong is not None


def is_strong(etag: str) -> bool:
    return len(etag) >= 2 and etag[0] == etag[-1] == '"'


def describe(status: int, headers: HeaderLines) -> Representation:
    """What a success (200 or 206) says of the file. Raises IntegrityError for what makes no sense."""
    size: int | None = None
    has_ranges = False
    is_plain = (headers.get("content-encoding") or "identity").strip().lower() in ("", "identity")
    if status == 206:
        _, _, size = content_range(headers)
        has_ranges = is_plain
    else:
        told = headers.get("content-length")
        if told is not None and headers.get("transfer-encoding") is None:
            if not told.isdecimal() or len(told) > 18:
                raise IntegrityError("the server's answer has a length that is none")
            size = int(told)
    modified = headers.get("last-modified")
    mtime_ns = http_time(modified)
    dated: str | None = None
    if modified is not None and mtime_ns is not None:
        # A file that changes twice in a second has one date for two versions: RFC 9110, 8.8.2.2.
        now_ns = http_time(headers.get("date"))
        if now_ns is not None and now_ns - mtime_ns >= SECOND_NS:
            dated = modified
    return Representation(
        size if is_plain else None,
        mtime_ns,
        headers.get("etag") or None,
        dated,
        has_ranges,
        announced(headers, is_whole=status == 200),
    )


def content_range(headers: HeaderLines) -> tuple[int, int, int | None]:
    """First byte, the one after the last, and the whole size, of a 206. Raises IntegrityError."""
    match = _CONTENT_RANGE.fullmatch((headers.get("content-range") or "").strip())
    if match is None:
        raise IntegrityError("the server sends a range and does not say which")
    first, last = int(match[1]), int(match[2])
    total = None if match[3] == "*" else int(match[3])
    if first > last or (total is not None and last >= total):
        raise IntegrityError("the server sends a range that is none")
    return first, last + 1, total


def entry_of(path: str, found: Representation) -> Entry:
    return Entry(path, "file", found.size, found.mtime_ns, version=found.etag)


def require_same(entry: Entry, found: Representation, where: str) -> None:
    """Raises Changed when an answer is about another version than `entry`, as far as both tell."""
    if entry.version is not None and found.etag is not None and entry.version != found.etag:
        raise Changed("it changed since it was listed: its ETag is another", where=where)
    if entry.size is not None and found.size is not None and entry.size != found.size:
        raise Changed(f"it has {found.size} bytes, {entry.size} were listed", where=where)
    if entry.mtime_ns is not None and found.mtime_ns is not None:
        if entry.mtime_ns != found.mtime_ns:
            raise Changed("it changed since it was listed: its time is another", where=where)


def require_range(
    first: Representation, start: int, stop: int, headers: HeaderLines, where: str
) -> None:
    """Raises unless a 206 is exactly these bytes of that version: IntegrityError, Changed."""
    begin, end, total = content_range(headers)
    now = describe(206, headers)
    if first.strong is not None and now.etag != first.etag:
        raise Changed(
            "a range came with another ETag: the file changed, or mirrors differ", where=where
        )
    if first.etag is None and now.mtime_ns != first.mtime_ns:
        raise Changed("a range came with another time: the file changed", where=where)
    if total is not None and first.size is not None and total != first.size:
        raise Changed(f"it has {total} bytes, {first.size} were listed", where=where)
    if (begin, end) != (start, stop):
        raise IntegrityError(
            f"bytes {begin} to {end - 1} came, {start} to {stop - 1} were asked for", where=where
        )
    if (headers.get("content-encoding") or "identity").strip().lower() not in ("", "identity"):
        raise IntegrityError("a range came encoded, which it was not asked to be", where=where)


def error_of(status: int, headers: HeaderLines, where: str) -> FastsyncError:
    """Why an answer is no success."""
    from http import HTTPStatus

    try:
        said = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        said = str(status)
    if status in (401, 407):
        return AccessRefused(
            f"the server wants to know who asks: {said}",
            where=where,
            hint="netrc, --header-file and FASTSYNC_BEARER_TOKEN are asked",
        )
    if status in (404, 410):
        return NotFound(f"there is no such file: {said}", where=where)
    if status in (412, 416):
        return Changed(f"it is no longer what was listed: {said}", where=where)
    if status in (429, 503):
        return Throttled(
            f"the server asks for patience: {said}",
            where=where,
            retry_after_s=patience_s(headers),
        )
    if status in _PASSING:
        return Transient(f"the server failed: {said}", where=where)
    if status in (405, 501, 505):
        return Unsupported(f"the server cannot do that: {said}", where=where)
    if 400 <= status < 500:
        return PermissionRefused(f"the server refuses it: {said}", where=where)
    return IntegrityError(f"the server's answer makes no sense: {said}", where=where)


def patience_s(headers: HeaderLines) -> float | None:
    """Seconds to wait, as a number or a date (RFC 9110, 10.2.3)."""
    told = headers.get("retry-after") or ""
    if told.isdecimal() and len(told) < 7:
        return float(told)
    until_ns, now_ns = http_time(told), http_time(headers.get("date"))
    if until_ns is None or now_ns is None:
        return None
    return max(0.0, (until_ns - now_ns) / SECOND_NS)
