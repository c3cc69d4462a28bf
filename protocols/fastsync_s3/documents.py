"""The documents of S3: listings, answers and errors that come in, requests that go out.

A listing that is not entirely understood raises ListingError and is never taken for a short one. Keys in
it are decoded; bytes that are not UTF-8 come as surrogate escapes, so that no two keys are confused.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations_Amazon_Simple_Storage_Service.html
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias
from urllib.parse import unquote_plus

from fastsync.errors import ListingError, NameRefused, Transient
from fastsync.names import path_key
from fastsync_s3.elements import (
    Element,
    Malformed,
    boolean,
    natural,
    naturals,
    parse,
    time_ns,
    times_ns,
    unquoted,
)
from fastsync_s3.keys import is_xml_safe
from fastsync_s3.rows import Columns, read_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DEFAULT_CLASS: Final = "STANDARD"

_NAMESPACE: Final = "http://s3.amazonaws.com/doc/2006-03-01/"
_HINT: Final = "check that the endpoint is an S3 server and not something in front of it"
_MAX_TEXT: Final = 1000  # characters of what a server says about an error

# Key, size in bytes, LastModified in Unix nanoseconds, ETag without quotes, storage class.
Row: TypeAlias = tuple[str, int, int, str, str]


# -- Listings -------------------------------------------------------------------------------------------


class ListPage(NamedTuple):
    """A page of ListObjectsV2, or of version 1.

    If it is not the last (`is_truncated`), the next begins at `next_token`, a ContinuationToken, or for a
    server that only knows version 1 at `next_marker`.
    """

    rows: list[Row]
    prefixes: list[str]
    is_truncated: bool
    next_token: str | None = None
    next_marker: str | None = None


def parse_list(body: bytes, *, bucket: str, version: Literal[1, 2] = 2) -> ListPage:
    """A page of ListObjectsV2, or of version 1, which some servers answer even when asked for 2.

    Ascending order and tokens that repeat are the caller's to check. Raises ListingError for anything
    but a complete page of this bucket. 1.1 ms per 1000 keys.
    """
    try:
        root, columns = read_rows(body)
        _check(root, "ListBucketResult", bucket=bucket)
        is_encoded = _is_encoded(root)
        rows = _rows(columns, is_encoded)
        prefixes = _prefixes(root, is_encoded)
        if not boolean(root.need("IsTruncated")):
            return ListPage(rows, prefixes, is_truncated=False)
        if token := root.get("NextContinuationToken"):
            return ListPage(rows, prefixes, True, next_token=token)
        if version == 2 and root.get("Marker") is None and root.get("NextMarker") is None:
            raise Malformed("it is not the last page, and has no NextContinuationToken")
        marker = _decoded(root.get("NextMarker") or "", is_encoded)
        if not marker:  # without a delimiter, version 1 leaves it out: it is the last key
            last = [*(row[0] for row in rows[-1:]), *prefixes[-1:]]
            marker = max(last, key=path_key, default="")
        if not marker:
            raise Malformed("it is not the last page, and is empty")
        return ListPage(rows, prefixes, True, next_marker=marker)
    except Malformed as error:
        raise _distrust(bucket, error) from error


def _rows(columns: Columns, is_encoded: bool) -> list[Row]:
    keys = columns["Key"]
    blank = [""] * len(keys)
    classes = columns.get("StorageClass", blank)
    return list(
        zip(
            _decoded_all(keys) if is_encoded else keys,
            naturals(columns["Size"]),
            times_ns(columns["LastModified"]),
            columns.get("ETag", blank),
            [name or DEFAULT_CLASS for name in classes],
            strict=True,
        )
    )


class ObjectVersion(NamedTuple):
    """A version of an object; a delete marker has size 0 and no ETag."""

    key: str
    version_id: str
    is_latest: bool
    is_delete_marker: bool
    size: int
    mtime_ns: int
    etag: str
    storage_class: str


class VersionPage(NamedTuple):
    """A page of ListObjectVersions, the newest version of a key first."""

    versions: list[ObjectVersion]
    prefixes: list[str]
    is_truncated: bool
    next_key_marker: str | None = None
    next_version_id_marker: str | None = None


def parse_versions(body: bytes, *, bucket: str) -> VersionPage:
    """A page of ListObjectVersions. Raises ListingError as `parse_list` does."""
    try:
        root = parse(body)
        _check(root, "ListVersionsResult", bucket=bucket)
        is_encoded = _is_encoded(root)
        versions = [
            _version(child, is_encoded)
            for child in root.children
            if child.name in ("Version", "DeleteMarker")
        ]
        prefixes = _prefixes(root, is_encoded)
        if not boolean(root.need("IsTruncated")):
            return VersionPage(versions, prefixes, is_truncated=False)
        marker = _decoded(root.need("NextKeyMarker"), is_encoded)
        return VersionPage(versions, prefixes, True, marker, root.get("NextVersionIdMarker"))
    except Malformed as error:
        raise _distrust(bucket, error) from error


def _version(element: Element, is_encoded: bool) -> ObjectVersion:
    is_marker = element.name == "DeleteMarker"
    return ObjectVersion(
        _decoded(element.need("Key"), is_encoded),
        element.need("VersionId"),
        boolean(element.need("IsLatest")),
        is_marker,
        0 if is_marker else natural(element.need("Size")),
        time_ns(element.need("LastModified")),
        unquoted(element.get("ETag") or ""),
        element.get("StorageClass") or DEFAULT_CLASS,
    )


class BucketPage(NamedTuple):
    """A page of ListBuckets: names, and when each was made, in Unix nanoseconds; where the next begins."""

    buckets: list[tuple[str, int | None]]
    next_token: str | None = None


def parse_buckets(body: bytes) -> BucketPage:
    """A page of ListBuckets. Raises ListingError."""
    try:
        root = parse(body)
        if root.name != "ListAllMyBucketsResult":
            raise Malformed(f"it is a {root.name}")
        (listed,) = root.all("Buckets")
        buckets: list[tuple[str, int | None]] = []
        for element in listed.all("Bucket"):
            made = element.get("CreationDate")
            buckets.append((element.need("Name"), time_ns(made) if made else None))
        return BucketPage(buckets, root.get("ContinuationToken"))
    except (Malformed, ValueError) as error:
        text = "the server's answer is no list of buckets"
        raise ListingError(f"{text}: {error}", where="s3://", hint=_HINT) from error


class OpenUpload(NamedTuple):
    """A multipart upload that was begun and neither completed nor aborted."""

    key: str
    upload_id: str
    initiated_ns: int


class UploadPage(NamedTuple):
    """A page of ListMultipartUploads."""

    uploads: list[OpenUpload]
    is_truncated: bool
    next_key_marker: str | None = None
    next_upload_id_marker: str | None = None


def parse_uploads(body: bytes, *, bucket: str) -> UploadPage:
    """A page of ListMultipartUploads. Raises ListingError."""
    try:
        root = parse(body)
        _check(root, "ListMultipartUploadsResult", bucket=bucket, name="Bucket")
        is_encoded = _is_encoded(root)
        uploads = [
            OpenUpload(
                _decoded(element.need("Key"), is_encoded),
                element.need("UploadId"),
                time_ns(element.need("Initiated")),
            )
            for element in root.all("Upload")
        ]
        if not boolean(root.get("IsTruncated") or "false"):  # rclone leaves it out
            return UploadPage(uploads, is_truncated=False)
        marker = _decoded(root.need("NextKeyMarker"), is_encoded)
        return UploadPage(uploads, True, marker, root.get("NextUploadIdMarker"))
    except Malformed as error:
        raise _distrust(bucket, error) from error


class Part(NamedTuple):
    """A part of an upload as listed; `checksums` are base64 by algorithm (``CRC64NVME``)."""

    number: int
    etag: str
    size: int
    checksums: Mapping[str, str]


class PartPage(NamedTuple):
    """A page of ListParts."""

    parts: list[Part]
    is_truncated: bool
    next_marker: str | None = None


def parse_parts(body: bytes, *, bucket: str) -> PartPage:
    """A page of ListParts. Raises ListingError."""
    try:
        root = parse(body)
        # The second is moto's.
        _check(root, "ListPartsResult", "ListPartsResponse", bucket=bucket, name="Bucket")
        parts = [
            Part(
                natural(element.need("PartNumber")),
                unquoted(element.need("ETag")),
                natural(element.need("Size")),
                _checksums(element),
            )
            for element in root.all("Part")
        ]
        if not boolean(root.get("IsTruncated") or "false"):
            return PartPage(parts, is_truncated=False)
        return PartPage(parts, True, root.need("NextPartNumberMarker"))
    except Malformed as error:
        raise _distrust(bucket, error) from error


def _check(root: Element, *kinds: str, bucket: str, name: str = "Name") -> None:
    if root.name == "Error":
        told = _error(root)
        raise Malformed(f"it is an error, {told.code}: {told.message}")
    if root.name not in kinds:
        raise Malformed(f"it is a {root.name[:40]!r} and not a {kinds[0]}")
    found = root.get(name)
    if found != bucket:
        of_what = "no bucket" if found is None else f"the bucket {found[:63]!r}"
        raise Malformed(f"it is of {of_what}")


def _is_encoded(root: Element) -> bool:
    return root.get("EncodingType") == "url"


def _decoded(text: str, is_encoded: bool) -> str:
    """`text` without the encoding that ``encoding-type=url`` asks for, in which "+" is a space."""
    return unquote_plus(text, errors="surrogateescape") if is_encoded else text


def _decoded_all(keys: list[str]) -> list[str]:
    text = "\n".join(keys)
    if "%" not in text and "+" not in text:
        return keys
    decoded = _decoded(text, True).split("\n")
    # All at once, unless a key has a line feed itself.
    return decoded if len(decoded) == len(keys) else [_decoded(key, True) for key in keys]


def _prefixes(root: Element, is_encoded: bool) -> list[str]:
    found = [group.need("Prefix") for group in root.all("CommonPrefixes")]
    return _decoded_all(found) if is_encoded else found


def _distrust(bucket: str, error: Malformed) -> ListingError:
    return ListingError(
        f"the server's listing cannot be trusted: {error}", where=f"s3://{bucket}", hint=_HINT
    )


# -- Errors ---------------------------------------------------------------------------------------------


class ErrorReply(NamedTuple):
    """What an ``<Error>`` says; "" or None where it does not. `region` has the looks of one, no more."""

    code: str
    message: str
    region: str | None = None
    request_id: str | None = None
    endpoint: str | None = None
    server_time_ns: int | None = None


_REGION: Final = re.compile(r"[a-z0-9-]{1,63}")
# In front of it may be any number of blanks, with which a server keeps a connection open.
_ERROR_ROOT: Final = re.compile(rb"\s*(?:<\?[^>]*\?>)?\s*<(?:[A-Za-z0-9_]+:)?Error[\s/>]")


def is_error(body: bytes) -> bool:
    """Whether the body is an ``<Error>``, as it may be with a 200 of CopyObject, UploadPartCopy and
    CompleteMultipartUpload, which answer before they begin."""
    return _ERROR_ROOT.match(body) is not None


def parse_error(body: bytes) -> ErrorReply:
    """What the body of an error says. Never raises: what is no ``<Error>`` has no code."""
    try:
        root = parse(body)
    except Malformed:
        return ErrorReply("", "")
    if root.name != "Error":  # some servers put it into another element
        root = next(root.all("Error"), Element("Error"))
    return _error(root)


def _error(element: Element) -> ErrorReply:
    said = {child.name: child.text[:_MAX_TEXT] for child in reversed(element.children)}
    region = said.get("Region")
    try:
        server_time_ns = time_ns(said.get("ServerTime", ""))
    except Malformed:
        server_time_ns = None
    return ErrorReply(
        said.get("Code", ""),
        said.get("Message", ""),
        region if region is not None and _REGION.fullmatch(region) else None,
        said.get("RequestId"),
        said.get("Endpoint"),
        server_time_ns,
    )


# -- Answers --------------------------------------------------------------------------------------------


class Written(NamedTuple):
    """What a copy or a completed upload left: an ETag without quotes, LastModified in Unix nanoseconds,
    checksums in base64 by algorithm (``CRC64NVME``), and FULL_OBJECT or COMPOSITE."""

    etag: str
    last_modified_ns: int | None
    checksums: Mapping[str, str]
    checksum_type: str | None


def parse_copy(body: bytes) -> Written:
    """The answer to CopyObject or UploadPartCopy. Raises Transient, as `parse_complete` does. Without an
    ETag ("") is what rclone says of an object copied onto itself."""
    return _written(body, "CopyObjectResult", "CopyPartResult", needs_etag=False)


def parse_complete(body: bytes) -> Written:
    """The answer to CompleteMultipartUpload. Raises Transient when it is anything else, an ``<Error>``
    (`is_error`) included: whether it was done then has to be asked."""
    return _written(body, "CompleteMultipartUploadResult")


def _written(body: bytes, *roots: str, needs_etag: bool = True) -> Written:
    try:
        root = _answer(body, *roots)
        modified = root.get("LastModified")
        return Written(
            unquoted(root.need("ETag") if needs_etag else root.get("ETag") or ""),
            None if modified is None else time_ns(modified),
            _checksums(root),
            root.get("ChecksumType"),
        )
    except Malformed as error:
        raise _unreadable(error) from error


def parse_initiate(body: bytes) -> str:
    """The UploadId that CreateMultipartUpload answers. Raises Transient."""
    try:
        # The second is rclone's.
        root = _answer(body, "InitiateMultipartUploadResult", "InitiateMultipartUpload")
        upload_id = root.need("UploadId")
        if not upload_id:
            raise Malformed("the UploadId is empty")
    except Malformed as error:
        raise _unreadable(error) from error
    return upload_id


class Deleted(NamedTuple):
    """What became of the keys of one DeleteObjects: each is in one of the two, unless it was quiet."""

    keys: set[str]
    errors: dict[str, ErrorReply]


def parse_delete(body: bytes) -> Deleted:
    """The answer to DeleteObjects. Raises Transient."""
    try:
        root = _answer(body, "DeleteResult")
        return Deleted(
            {element.need("Key") for element in root.all("Deleted")},
            {element.need("Key"): _error(element) for element in root.all("Error")},
        )
    except Malformed as error:
        raise _unreadable(error) from error


def parse_tagging(body: bytes) -> list[tuple[str, str]]:
    """The tags that GetObjectTagging answers. Raises Transient."""
    try:
        root = _answer(body, "Tagging")
        return [
            (tag.need("Key"), tag.need("Value"))
            for tags in root.all("TagSet")
            for tag in tags.all("Tag")
        ]
    except Malformed as error:
        raise _unreadable(error) from error


def _answer(body: bytes, *roots: str) -> Element:
    root = parse(body)
    if root.name not in roots:
        what = f"error {_error(root).code}" if root.name == "Error" else repr(root.name[:40])
        raise Malformed(f"it is {what} and not {roots[0]}")
    return root


def _unreadable(error: Malformed) -> Transient:
    return Transient(f"the server's answer cannot be used: {error}", hint=_HINT)


def _checksums(element: Element) -> dict[str, str]:
    return {
        child.name.removeprefix("Checksum"): child.text
        for child in element.children
        if child.name.startswith("Checksum")
        and child.name not in ("ChecksumType", "ChecksumAlgorithm")
    }


# -- Requests -------------------------------------------------------------------------------------------

# The documentation of keys asks for the two line ends as well; a bare one would be normalized away.
_ESCAPES: Final = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\r": "&#13;", "\n": "&#10;"}
)


def build_delete(keys: Iterable[str], *, quiet: bool = False) -> bytes:
    """The body of DeleteObjects, for up to 1000 keys. Quiet ones are answered with errors only.

    Raises NameRefused for a key that XML cannot carry (`is_xml_safe`): delete it by itself.
    """
    lines = []
    for key in keys:
        if not is_xml_safe(key):
            raise NameRefused("the key has characters that XML cannot carry", where=key)
        lines.append(f"<Object><Key>{key.translate(_ESCAPES)}</Key></Object>")
    flag = "<Quiet>true</Quiet>" if quiet else ""
    return f'<Delete xmlns="{_NAMESPACE}">{"".join(lines)}{flag}</Delete>'.encode()


def build_create(region: str) -> bytes:
    """The body of CreateBucket, for a bucket in that region."""
    name = "CreateBucketConfiguration"
    place = f"<LocationConstraint>{region.translate(_ESCAPES)}</LocationConstraint>"
    return f'<{name} xmlns="{_NAMESPACE}">{place}</{name}>'.encode()


def build_complete(parts: Iterable[tuple[int, str, tuple[str, str] | None]]) -> bytes:
    """The body of CompleteMultipartUpload: number, ETag without quotes, and the algorithm
    (``CRC64NVME``) and base64 value of a checksum or None, of each part in ascending order."""
    lines = []
    for number, etag, checksum in parts:
        element = ""
        if checksum is not None:
            element = f"<Checksum{checksum[0]}>{checksum[1]}</Checksum{checksum[0]}>"
        lines.append(
            f"<Part><ETag>&quot;{etag.translate(_ESCAPES)}&quot;</ETag>{element}"
            f"<PartNumber>{number}</PartNumber></Part>"
        )
    name = "CompleteMultipartUpload"
    return f'<{name} xmlns="{_NAMESPACE}">{"".join(lines)}</{name}>'.encode()
