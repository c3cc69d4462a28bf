"""One object as a file: the requests that read it at exactly one version, and what their answers say."""

from __future__ import annotations

import functools
import re
from typing import Final

from fastsync.backend import Entry, Owner, WriteOptions
from fastsync.dates import http_time
from fastsync.errors import Changed, FastsyncError, IntegrityError, NotFound, Overtaken, Vanished
from fastsync.wire import Headers
from fastsync_s3.attributes import Known
from fastsync_s3.elements import MAX_DIGITS
from fastsync_s3.metadata import (
    GID_HEADER,
    MODE_HEADER,
    MTIME_HEADER,
    UID_HEADER,
    Attributes,
    Lookup,
    format_mode,
    format_mtime,
    read_attributes,
)
from fastsync_s3.options import S3Options
from fastsync_s3.plane import Call

CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]+)-([0-9]+)/([0-9]+)")
DEFAULT_TYPE: Final = "binary/octet-stream"


def pinned(key: str, entry: Entry, method: str, version_id: str | None, **headers: str) -> Call:
    """A request for exactly the version that was listed as `entry`."""
    query: tuple[tuple[str, str], ...] = ()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if version_id is not None:
        query = (("versionId", version_id),)
    elif entry.version is not None:
        named["if-match"] = f'"{entry.version}"'
    return Call(method, key, query, named)


def check_part(
    entry: Entry, start: int, stop: int, status: int, headers: Headers, where: str
) -> None:
    """Refuse an answer that is not these bytes of that version. Raises Changed, IntegrityError."""
    etag = etag_of(headers)
    if entry.version is not None and etag != entry.version:
        raise Changed("the object changed since it was listed", where=where)
    told = headers.get("content-range")
    if told is None and status == 200 and start == 0 and stop == entry.size:
        return
    # Some servers say 200 where 206 would be right, but answer the range.
    match = CONTENT_RANGE.fullmatch(told or "")
    if status not in (200, 206) or match is None:
        raise IntegrityError("the server ignored the range that was asked for", where=where)
    first, last, total = map(int, match.groups())
    if entry.size is not None and total != entry.size:
        raise Changed(f"the object has {total} bytes, {entry.size} were listed", where=where)
    if (first, last + 1) != (start, stop):
        raise IntegrityError(
            f"bytes {first} to {last} came, {start} to {stop - 1} were asked for", where=where
        )


def as_read_error(error: FastsyncError, where: str) -> FastsyncError:
    """What a failed request for a listed version means."""
    if isinstance(error, NotFound):
        return Vanished("the object is gone since it was listed", where=where)
    if isinstance(error, Overtaken):
        return Changed("the object changed since it was listed", where=where)
    return error


def etag_of(headers: Headers) -> str | None:
    etag = headers.get("etag")
    return None if etag is None else etag.removeprefix("W/").strip('"')


def completed(entry: Entry, headers: Lookup) -> Entry:
    """The entry with what the headers of a GET or HEAD say of the file."""
    known = read_attributes(headers)
    return entry._replace(mtime_ns=known.mtime_ns, mode=known.mode, owner=_owner(known))


def entry_of(path: str, headers: Headers) -> Entry:
    """The entry of an object that a HEAD told about. Raises IntegrityError without a length."""
    length = headers.get("content-length")
    if length is None or not length.isdecimal() or len(length) > MAX_DIGITS:
        raise IntegrityError("the server does not say how long the object is", where=path)
    known = read_attributes(headers)
    return Entry(
        path,
        "file",
        int(length),
        known.mtime_ns,
        known.mode,
        None,
        etag_of(headers),
        _owner(known),
        http_time(headers.get("last-modified")),
    )


def _owner(known: Attributes) -> Owner | None:
    if known.uid is None or known.gid is None:
        return None
    return Owner(known.uid, known.gid)


def known_of(key: str, entry: Entry, *, is_exact: bool = True) -> Known | None:
    """What the cache should keep of a completed entry; None when it could not tell versions apart."""
    if entry.version is None or entry.size is None or entry.stored_ns is None:
        return None
    return Known(
        key, entry.version, entry.size, entry.stored_ns, is_exact, entry.mtime_ns, entry.mode
    )


@functools.cache
def _types() -> dict[str, str]:
    import mimetypes

    # Python's own table: the same answer on every machine.
    return mimetypes.MimeTypes().types_map[True]


def content_type(key: str) -> str:
    """The media type that a name's extension stands for."""
    extension = key[key.rfind("/") + 1 :].rpartition(".")
    if not extension[1] or not extension[0]:
        return DEFAULT_TYPE
    return _types().get("." + extension[2].lower(), DEFAULT_TYPE)


def write_headers(key: str, like: Entry, options: S3Options, write: WriteOptions) -> dict[str, str]:
    """The headers with which an object is made: its metadata, and what the user asked for."""
    headers = {"content-type": options.content_type or content_type(key)}
    headers.update(attribute_headers(like, write))
    headers.update(options.write_headers)
    return headers


def attribute_headers(like: Entry, write: WriteOptions) -> dict[str, str]:
    """The metadata that keep a file's time, mode and owner, as far as `write` asks for them."""
    headers: dict[str, str] = {}
    if write.mtime and like.mtime_ns is not None:
        headers[MTIME_HEADER] = format_mtime(like.mtime_ns)
    if write.mode and like.mode is not None:
        headers[MODE_HEADER] = format_mode(kept_mode(like.mode, write))
    if write.owner and like.owner is not None:
        headers[UID_HEADER], headers[GID_HEADER] = map(str, like.owner)
    return headers


def kept_mode(mode: int, write: WriteOptions) -> int:
    return mode & 0o7777 if write.special else mode & 0o777


def written(
    like: Entry, size: int, etag: str | None, stored_ns: int | None, options: WriteOptions
) -> Entry:
    """The entry of what was just written with the metadata of `like`."""
    return Entry(
        like.path,
        "file",
        size,
        like.mtime_ns if options.mtime else None,
        kept_mode(like.mode, options) if options.mode and like.mode is not None else None,
        None,
        etag,
        None,
        stored_ns,
    )
