"""Buckets in memory with the calls of S3 that a transfer needs, answered as AWS documents them.

Path style only; no versions, no permissions, and signatures are taken as they come: for those there are
real servers. Checksums, conditions, ranges and the rules of multipart uploads are kept and checked.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import time
import zlib
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from email.utils import formatdate, parsedate_to_datetime
from itertools import count, islice
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from http_exchange import Request, Response

XMLNS = "http://s3.amazonaws.com/doc/2006-03-01/"
_KEPT = (
    *("content-type", "cache-control", "content-disposition", "content-language", "expires"),
    *("x-amz-storage-class", "x-amz-server-side-encryption"),
)
_MAX_KEYS = 1000


class Refused(Exception):
    """An error of S3, to be sent as it is."""

    def __init__(self, status: int, code: str, message: str = "", **headers: str) -> None:
        super().__init__(code)
        self.response = error(status, code, message, **headers)


def error(status: int, code: str, message: str = "", **headers: str) -> Response:
    """An answer with the body that S3 gives to errors."""
    body = f"<Error><Code>{code}</Code><Message>{escape(message or code)}</Message></Error>"
    return document(body, status).having(**headers)


def document(body: str, status: int = 200) -> Response:
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n{body}'
    return Response(status, {"content-type": "application/xml"}, text.encode())


@dataclass
class Stored:
    """An object. `checksums` are by algorithm, in lower case, in base64."""

    data: bytes
    etag: str
    headers: dict[str, str] = field(default_factory=dict)
    checksums: dict[str, str] = field(default_factory=dict)
    checksum_type: str = "FULL_OBJECT"
    part_sizes: tuple[int, ...] = ()
    modified_s: float = field(default_factory=time.time)

    @property
    def modified(self) -> str:
        """As listings have it."""
        return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(self.modified_s))


class Bucket:
    """Objects by key. `keys` are in the order of their UTF-8, which is that of their code points."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self._objects: dict[str, Stored] = {}

    def __getitem__(self, key: str) -> Stored:
        return self._objects[key]

    def get(self, key: str) -> Stored | None:
        return self._objects.get(key)

    def put(self, key: str, stored: Stored) -> None:
        if key not in self._objects:
            insort(self.keys, key)
        self._objects[key] = stored

    def remove(self, key: str) -> None:
        if self._objects.pop(key, None) is not None:
            del self.keys[bisect_left(self.keys, key)]


@dataclass
class Upload:
    """A multipart upload that is neither complete nor aborted."""

    bucket: str
    key: str
    headers: dict[str, str]
    algorithm: str | None
    checksum_type: str
    parts: dict[int, Stored] = field(default_factory=dict)
    begun_s: float = field(default_factory=time.time)

    @property
    def begun(self) -> str:
        """As listings have it."""
        return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(self.begun_s))


class Objects:
    """The state of a server, and `answer`, which takes a request to what S3 would say."""

    def __init__(self, min_part_size: int = 5 << 20) -> None:
        self.min_part_size = min_part_size
        self.buckets: dict[str, Bucket] = {}
        self.uploads: dict[str, Upload] = {}
        self._numbers = count(1)

    def put(self, bucket: str, key: str, data: bytes, headers: dict[str, str] | None = None) -> str:
        """Put an object there by hand, its bucket too; its ETag."""
        stored = Stored(data, _etag(data), headers or {})
        self.buckets.setdefault(bucket, Bucket()).put(key, stored)
        return stored.etag

    def answer(self, request: Request) -> Response:
        """Never raises for what a client may send."""
        try:
            return getattr(self, _method_of(operation_of(request)))(request)  # type: ignore[no-any-return]
        except Refused as refused:
            return refused.response

    # -- buckets -----------------------------------------------------------------------------------------

    def _list_buckets(self, _request: Request) -> Response:
        names = "".join(
            f"<Bucket><Name>{name}</Name><CreationDate>2020-01-01T00:00:00.000Z</CreationDate></Bucket>"
            for name in sorted(self.buckets)
        )
        return document(
            f'<ListAllMyBucketsResult xmlns="{XMLNS}"><Buckets>{names}</Buckets></ListAllMyBucketsResult>'
        )

    def _create_bucket(self, request: Request) -> Response:
        if request.bucket in self.buckets:
            raise Refused(409, "BucketAlreadyOwnedByYou")
        self.buckets[request.bucket] = Bucket()
        return Response(headers={"location": f"/{request.bucket}"})

    def _head_bucket(self, request: Request) -> Response:
        self._bucket(request)
        return Response(headers={"x-amz-bucket-region": "us-east-1"})

    def _delete_bucket(self, request: Request) -> Response:
        if self._bucket(request).keys:
            raise Refused(409, "BucketNotEmpty")
        del self.buckets[request.bucket]
        return Response(204)

    def _get_bucket_location(self, request: Request) -> Response:
        self._bucket(request)
        return document(f'<LocationConstraint xmlns="{XMLNS}"/>')

    def _get_bucket_versioning(self, request: Request) -> Response:
        self._bucket(request)
        return document(f'<VersioningConfiguration xmlns="{XMLNS}"/>')

    def _not_implemented(self, _request: Request) -> Response:
        raise Refused(501, "NotImplemented", "A header or query you provided is not implemented")

    def _list_objects(self, request: Request) -> Response:
        """ListObjects, the first version."""
        query = request.query
        after = query.get("marker", "")
        page, prefixes, last = self._page(request, after)
        body = _tag("Marker", _shown(query, after))
        if last is not None and query.get("delimiter"):
            body += _tag("NextMarker", _shown(query, last))
        return self._listed(request, body, page, prefixes, last is not None)

    def _list_objects_v2(self, request: Request) -> Response:
        query = request.query
        after = query.get("start-after", "")
        body = _tag("StartAfter", _shown(query, after)) if after else ""
        token = query.get("continuation-token")
        if token is not None:
            try:
                after = base64.urlsafe_b64decode(token.encode()).decode()
            except ValueError as exc:
                raise Refused(400, "InvalidArgument", "no such continuation token") from exc
            body += _tag("ContinuationToken", token)
        page, prefixes, last = self._page(request, after)
        body += _tag("KeyCount", str(len(page) + len(prefixes)))
        if last is not None:
            next_token = base64.urlsafe_b64encode(last.encode()).decode()
            body += _tag("NextContinuationToken", next_token)
        return self._listed(request, body, page, prefixes, last is not None)

    def _page(self, request: Request, after: str) -> tuple[list[str], list[str], str | None]:
        """Keys and common prefixes of one page, and where the next one begins, None at the end."""
        bucket = self._bucket(request)
        query = request.query
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        limit = min(int(query.get("max-keys", _MAX_KEYS)), _MAX_KEYS)
        keys: list[str] = []
        prefixes: list[str] = []
        last = after
        # `after` may be a common prefix that the page before ended with; all of it is done.
        first = max(bisect_right(bucket.keys, after), bisect_left(bucket.keys, prefix))
        for key in islice(bucket.keys, first, None):
            if not key.startswith(prefix):
                break
            cut = key.find(delimiter, len(prefix)) if delimiter else -1
            common = key[: cut + len(delimiter)] if cut >= 0 else None
            if common is not None and common == last:
                continue
            if len(keys) + len(prefixes) >= limit:
                return keys, prefixes, last if limit else None
            if common is None:
                keys.append(key)
                last = key
            else:
                prefixes.append(common)
                last = common
        return keys, prefixes, None

    def _listed(
        self, request: Request, body: str, keys: list[str], prefixes: list[str], more: bool
    ) -> Response:
        query, bucket = request.query, self.buckets[request.bucket]
        rows = [
            f"<Contents><Key>{_shown(query, key)}</Key><LastModified>{stored.modified}</LastModified>"
            f"<ETag>&quot;{stored.etag}&quot;</ETag><Size>{len(stored.data)}</Size>"
            f"<StorageClass>{stored.headers.get('x-amz-storage-class', 'STANDARD')}</StorageClass></Contents>"
            for key, stored in ((key, bucket[key]) for key in keys)
        ]
        rows += [
            f"<CommonPrefixes><Prefix>{_shown(query, prefix)}</Prefix></CommonPrefixes>"
            for prefix in prefixes
        ]
        head = _tag("Name", request.bucket) + _tag("Prefix", _shown(query, query.get("prefix", "")))
        head += _tag("MaxKeys", query.get("max-keys", str(_MAX_KEYS)))
        if query.get("delimiter"):
            head += _tag("Delimiter", _shown(query, query["delimiter"]))
        if "encoding-type" in query:
            head += _tag("EncodingType", query["encoding-type"])
        head += _tag("IsTruncated", "true" if more else "false")
        return document(
            f'<ListBucketResult xmlns="{XMLNS}">{head}{body}{"".join(rows)}</ListBucketResult>'
        )

    def _delete_objects(self, request: Request) -> Response:
        bucket = self._bucket(request)
        stated = {"content-md5", *(f"x-amz-checksum-{name}" for name in _ALGORITHMS)}
        if not stated & {*request.headers, *request.trailers}:
            raise Refused(400, "InvalidRequest", "Missing required header: Content-MD5")
        _check_body(request)
        root = _parsed(request)
        quiet = _text(root, "Quiet") == "true"
        found = list(_children(root, "Object"))
        if len(found) > 1000:
            raise Refused(400, "MalformedXML")
        rows = []
        for item in found:
            key = _text(item, "Key") or ""
            bucket.remove(key)
            if not quiet:
                rows.append(f"<Deleted>{_tag('Key', _escaped(key))}</Deleted>")
        return document(f'<DeleteResult xmlns="{XMLNS}">{"".join(rows)}</DeleteResult>')

    # -- objects -----------------------------------------------------------------------------------------

    def _head_object(self, request: Request) -> Response:
        response = self._get_object(request)
        length = response.headers.get("content-length", str(len(response.body)))
        if response.status >= 400:
            return Response(response.status, response.headers)
        return Response(response.status, {**response.headers, "content-length": length})

    def _get_object(self, request: Request) -> Response:
        stored = self._stored(request)
        _check_reading(request.headers, stored)
        headers = {
            "accept-ranges": "bytes",
            "content-type": "binary/octet-stream",
            "etag": f'"{stored.etag}"',
            "last-modified": formatdate(stored.modified_s, usegmt=True),
            **stored.headers,
        }
        size = len(stored.data)
        start, end, status = 0, size, 200
        if "partNumber" in request.query:
            number = int(request.query["partNumber"])
            sizes = stored.part_sizes or (size,)
            if not 1 <= number <= len(sizes):
                raise Refused(416, "InvalidPartNumber")
            start = sum(sizes[: number - 1])
            end, status = start + sizes[number - 1], 206
            if stored.part_sizes:
                headers["x-amz-mp-parts-count"] = str(len(sizes))
        elif (asked := _range(request.headers.get("range"), size)) is not None:
            (start, end), status = asked, 206
        if status == 206 and size:
            headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
        # AWS states checksums of the whole object with the whole object only.
        whole = (start, end) == (0, size)
        if request.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED" and whole:
            headers |= _checksum_headers(stored)
        return Response(status, headers, stored.data[start:end])

    def _put_object(self, request: Request) -> Response:
        bucket = self._bucket(request)
        checksums = _check_body(request)
        _check_writing(request.headers, bucket.get(_key(request)))
        stored = Stored(request.body, _etag(request.body), _kept(request.headers), checksums)
        bucket.put(_key(request), stored)
        return Response(headers={"etag": f'"{stored.etag}"', **_checksum_headers(stored)})

    def _delete_object(self, request: Request) -> Response:
        bucket = self._bucket(request)
        if "if-match" in request.headers:
            _check_writing(request.headers, bucket.get(_key(request)))
        bucket.remove(_key(request))
        return Response(204)

    def _copy_object(self, request: Request) -> Response:
        bucket = self._bucket(request)
        source = self._copied(request)
        _check_writing(request.headers, bucket.get(_key(request)))
        replaced = request.headers.get("x-amz-metadata-directive", "COPY").upper() == "REPLACE"
        headers = _kept(request.headers) if replaced else dict(source.headers)
        for name in ("x-amz-storage-class", "x-amz-server-side-encryption"):
            headers.pop(name, None)
            if name in request.headers:
                headers[name] = request.headers[name]
        checksums = source.checksums if source.checksum_type == "FULL_OBJECT" else {}
        stored = Stored(source.data, _etag(source.data), headers, dict(checksums))
        bucket.put(_key(request), stored)
        return document(
            f'<CopyObjectResult xmlns="{XMLNS}"><ETag>&quot;{stored.etag}&quot;</ETag>'
            f"<LastModified>{stored.modified}</LastModified>{_checksum_tags(stored)}</CopyObjectResult>"
        )

    def _get_object_tagging(self, request: Request) -> Response:
        self._stored(request)
        return document(f'<Tagging xmlns="{XMLNS}"><TagSet/></Tagging>')

    # -- multipart uploads -------------------------------------------------------------------------------

    def _create_multipart_upload(self, request: Request) -> Response:
        self._bucket(request)
        algorithm = request.headers.get("x-amz-checksum-algorithm", "").lower() or None
        usual = "FULL_OBJECT" if algorithm == "crc64nvme" else "COMPOSITE"
        kind = request.headers.get("x-amz-checksum-type", usual)
        if algorithm in ("sha1", "sha256") and kind == "FULL_OBJECT":
            raise Refused(400, "InvalidRequest", "FULL_OBJECT is not for this algorithm")
        name = f"upload-{next(self._numbers)}"
        self.uploads[name] = Upload(
            request.bucket, _key(request), _kept(request.headers), algorithm, kind
        )
        return document(
            f'<InitiateMultipartUploadResult xmlns="{XMLNS}">{_tag("Bucket", request.bucket)}'
            f"{_tag('Key', _escaped(_key(request)))}{_tag('UploadId', name)}"
            "</InitiateMultipartUploadResult>"
        )

    def _upload_part(self, request: Request) -> Response:
        upload = self._upload(request)
        checksums = _check_body(request)
        part = Stored(request.body, _etag(request.body), checksums=checksums)
        upload.parts[_part_number(request)] = part
        stated = {f"x-amz-checksum-{name}": value for name, value in checksums.items()}
        return Response(headers={"etag": f'"{part.etag}"', **stated})

    def _upload_part_copy(self, request: Request) -> Response:
        upload = self._upload(request)
        data = self._copied(request).data
        asked = request.headers.get("x-amz-copy-source-range")
        if asked is not None:
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
            if found is None or not int(found[1]) <= int(found[2]) < len(data):
                raise Refused(400, "InvalidArgument", "The x-amz-copy-source-range is not valid")
            data = data[int(found[1]) : int(found[2]) + 1]
        checksums = {}
        if upload.algorithm is not None:
            checksums[upload.algorithm] = checksum(upload.algorithm, data)
        part = Stored(data, _etag(data), checksums=checksums)
        upload.parts[_part_number(request)] = part
        return document(
            f'<CopyPartResult xmlns="{XMLNS}"><ETag>&quot;{part.etag}&quot;</ETag>'
            f"<LastModified>{part.modified}</LastModified>{_checksum_tags(part, kind=False)}"
            "</CopyPartResult>"
        )

    def _complete_multipart_upload(self, request: Request) -> Response:
        upload = self._upload(request)
        bucket = self._bucket(request)
        _check_writing(request.headers, bucket.get(upload.key))
        parts: list[Stored] = []
        before = 0
        for item in _children(_parsed(request), "Part"):
            number = int(_text(item, "PartNumber") or "0")
            if number <= before:
                raise Refused(400, "InvalidPartOrder")
            part = upload.parts.get(number)
            if part is None or (_text(item, "ETag") or "").strip('"') != part.etag:
                raise Refused(400, "InvalidPart", f"part {number} is not what was uploaded")
            for name, value in part.checksums.items():
                if (stated := _text(item, _ALGORITHMS[name])) is not None and stated != value:
                    raise Refused(400, "InvalidPart", f"checksum of part {number}")
            parts.append(part)
            before = number
        if not parts:
            raise Refused(400, "MalformedXML")
        if any(len(part.data) < self.min_part_size for part in parts[:-1]):
            raise Refused(400, "EntityTooSmall")
        stored = _assembled(upload, parts)
        stated_size = request.headers.get("x-amz-mp-object-size")
        if stated_size is not None and int(stated_size) != len(stored.data):
            raise Refused(400, "InvalidRequest", "The object's size is another")
        for name, value in _stated_checksums(request).items():
            ours = stored.checksums.get(name) or checksum(name, stored.data)
            if value.partition("-")[0] != ours.partition("-")[0]:
                raise Refused(400, "BadDigest", f"The {name} you specified did not match")
        bucket.put(upload.key, stored)
        del self.uploads[request.query["uploadId"]]
        return document(
            f'<CompleteMultipartUploadResult xmlns="{XMLNS}">{_tag("Bucket", upload.bucket)}'
            f"{_tag('Key', _escaped(upload.key))}<ETag>&quot;{stored.etag}&quot;</ETag>"
            f"{_checksum_tags(stored)}</CompleteMultipartUploadResult>"
        )

    def _abort_multipart_upload(self, request: Request) -> Response:
        self._upload(request)
        del self.uploads[request.query["uploadId"]]
        return Response(204)

    def _list_parts(self, request: Request) -> Response:
        upload = self._upload(request)
        rows = "".join(
            f"<Part>{_tag('PartNumber', str(number))}<ETag>&quot;{part.etag}&quot;</ETag>"
            f"{_tag('Size', str(len(part.data)))}{_tag('LastModified', part.modified)}"
            f"{_checksum_tags(part, kind=False)}</Part>"
            for number, part in sorted(upload.parts.items())
        )
        return document(
            f'<ListPartsResult xmlns="{XMLNS}">{_tag("Bucket", upload.bucket)}'
            f"{_tag('Key', _escaped(upload.key))}{_tag('UploadId', request.query['uploadId'])}"
            f"{_tag('IsTruncated', 'false')}{rows}</ListPartsResult>"
        )

    def _list_multipart_uploads(self, request: Request) -> Response:
        self._bucket(request)
        prefix = request.query.get("prefix", "")
        rows = "".join(
            f"<Upload>{_tag('Key', _shown(request.query, upload.key))}{_tag('UploadId', name)}"
            f"{_tag('Initiated', upload.begun)}</Upload>"
            for name, upload in sorted(self.uploads.items(), key=lambda item: item[1].key)
            if upload.bucket == request.bucket and upload.key.startswith(prefix)
        )
        return document(
            f'<ListMultipartUploadsResult xmlns="{XMLNS}">{_tag("Bucket", request.bucket)}'
            f"{_tag('IsTruncated', 'false')}{rows}</ListMultipartUploadsResult>"
        )

    # -- what a request is about -------------------------------------------------------------------------

    def _bucket(self, request: Request) -> Bucket:
        try:
            return self.buckets[request.bucket]
        except KeyError:
            raise Refused(404, "NoSuchBucket") from None

    def _stored(self, request: Request) -> Stored:
        stored = self._bucket(request).get(_key(request))
        if stored is None:
            raise Refused(404, "NoSuchKey", "The specified key does not exist.")
        return stored

    def _upload(self, request: Request) -> Upload:
        upload = self.uploads.get(request.query["uploadId"])
        if upload is None or (upload.bucket, upload.key) != (request.bucket, _key(request)):
            raise Refused(404, "NoSuchUpload")
        return upload

    def _copied(self, request: Request) -> Stored:
        """The source of a copy, if its conditions hold."""
        path = request.headers["x-amz-copy-source"].partition("?versionId=")[0]
        source = Request("GET", "/" + path.lstrip("/"), {}, {})
        try:
            stored = self._stored(source)
            prefix = "x-amz-copy-source-"
            conditions = {
                name.removeprefix(prefix): value
                for name, value in request.headers.items()
                if name.startswith(prefix)
            }
            _check_reading(conditions, stored)
        except Refused as refused:
            if refused.response.status == 304:
                raise Refused(412, "PreconditionFailed") from refused
            raise
        return stored


# -- operations -------------------------------------------------------------------------------------------


def operation_of(request: Request) -> str:
    """The name that the API reference of S3 has for it, "NotImplemented" for what this server has not."""
    method, query = request.method, request.query
    if not request.bucket:
        return "ListBuckets" if method == "GET" else "NotImplemented"
    if not request.key_bytes:
        return _bucket_operation(method, query)
    return _object_operation(method, query, "x-amz-copy-source" in request.headers)


def _bucket_operation(method: str, query: dict[str, str]) -> str:
    if method == "GET":
        for name, operation in _BUCKET_QUERIES.items():
            if name in query:
                return operation
        return "ListObjectsV2" if query.get("list-type") == "2" else "ListObjects"
    if method == "POST":
        return "DeleteObjects" if "delete" in query else "NotImplemented"
    known = {"PUT": "CreateBucket", "HEAD": "HeadBucket", "DELETE": "DeleteBucket"}
    return "NotImplemented" if query.keys() & _SUBRESOURCES else known.get(method, "NotImplemented")


def _object_operation(method: str, query: dict[str, str], copies: bool) -> str:
    if "uploadId" in query:
        known = {
            "PUT": "UploadPartCopy" if copies else "UploadPart",
            "POST": "CompleteMultipartUpload",
            "DELETE": "AbortMultipartUpload",
            "GET": "ListParts",
        }
    elif "uploads" in query:
        known = {"POST": "CreateMultipartUpload"}
    elif "tagging" in query:
        known = {"GET": "GetObjectTagging"}
    elif query.keys() & _SUBRESOURCES:
        known = {}
    else:
        known = {
            "GET": "GetObject",
            "HEAD": "HeadObject",
            "PUT": "CopyObject" if copies else "PutObject",
            "DELETE": "DeleteObject",
        }
    return known.get(method, "NotImplemented")


_BUCKET_QUERIES = {
    "location": "GetBucketLocation",
    "versioning": "GetBucketVersioning",
    "uploads": "ListMultipartUploads",
    "versions": "NotImplemented",
    "acl": "NotImplemented",
    "policy": "NotImplemented",
    "object-lock": "NotImplemented",
}
_SUBRESOURCES = {"acl", "policy", "tagging", "versioning", "retention", "legal-hold", "attributes"}


def _method_of(operation: str) -> str:
    return "_" + re.sub(r"(?<!^)(?=[A-Z])", "_", operation).lower()


# -- what headers ask -------------------------------------------------------------------------------------


def _key(request: Request) -> str:
    try:
        key = request.key_bytes.decode()
    except UnicodeDecodeError as exc:
        raise Refused(400, "InvalidURI") from exc
    if len(request.key_bytes) > 1024:
        raise Refused(400, "KeyTooLongError")
    return key


def _part_number(request: Request) -> int:
    number = int(request.query.get("partNumber", "0"))
    if not 1 <= number <= 10_000:
        raise Refused(400, "InvalidArgument", "Part number must be an integer between 1 and 10000")
    return number


def _kept(headers: dict[str, str]) -> dict[str, str]:
    kept = {
        name: value
        for name, value in headers.items()
        if name in _KEPT or name.startswith("x-amz-meta-")
    }
    codings = [c.strip() for c in headers.get("content-encoding", "").split(",")]
    codings = [coding for coding in codings if coding not in ("", "aws-chunked")]
    return kept | ({"content-encoding": ",".join(codings)} if codings else {})


def _etags(header: str) -> set[str]:
    return {etag.strip().strip('"') for etag in header.split(",")}


def _check_reading(headers: dict[str, str], stored: Stored) -> None:
    """RFC 9110, 13.2.2."""
    if "if-match" in headers:
        if not {"*", stored.etag} & _etags(headers["if-match"]):
            raise Refused(412, "PreconditionFailed")
    elif (since := headers.get("if-unmodified-since")) is not None:
        if int(stored.modified_s) > parsedate_to_datetime(since).timestamp():
            raise Refused(412, "PreconditionFailed")
    if "if-none-match" in headers:
        if {"*", stored.etag} & _etags(headers["if-none-match"]):
            raise Refused(304, "NotModified", etag=f'"{stored.etag}"')
    elif (since := headers.get("if-modified-since")) is not None:
        if int(stored.modified_s) <= parsedate_to_datetime(since).timestamp():
            raise Refused(304, "NotModified", etag=f'"{stored.etag}"')


def _check_writing(headers: dict[str, str], there: Stored | None) -> None:
    if "if-none-match" in headers and there is not None:
        raise Refused(412, "PreconditionFailed")
    if "if-match" in headers:
        if there is None:
            raise Refused(404, "NoSuchKey")
        if there.etag not in _etags(headers["if-match"]):
            raise Refused(412, "PreconditionFailed")


def _range(asked: str | None, size: int) -> tuple[int, int] | None:
    """Start and end of what a Range header asks for; None for what S3 ignores."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", asked or "")
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        start, end = max(0, size - int(found[2])), size
    else:
        start = int(found[1])
        end = min(size, int(found[2]) + 1) if found[2] else size
    if start >= size or start >= end:
        raise Refused(416, "InvalidRange", content_range=f"bytes */{size}")
    return start, end


# -- digests ----------------------------------------------------------------------------------------------

_ALGORITHMS = {
    "crc32": "ChecksumCRC32",
    "crc32c": "ChecksumCRC32C",
    "crc64nvme": "ChecksumCRC64NVME",
    "sha1": "ChecksumSHA1",
    "sha256": "ChecksumSHA256",
}


def checksum(algorithm: str, data: bytes) -> str:
    """In base64, as the headers have it."""
    return base64.b64encode(_digests()[algorithm](data)).decode()


def _digests() -> dict[str, Callable[[bytes], bytes]]:
    from awscrt import checksums  # type: ignore[import-untyped]

    return {
        "crc32": lambda data: zlib.crc32(data).to_bytes(4, "big"),
        "crc32c": lambda data: checksums.crc32c(data).to_bytes(4, "big"),
        "crc64nvme": lambda data: checksums.crc64nvme(data).to_bytes(8, "big"),
        "sha1": lambda data: hashlib.sha1(data, usedforsecurity=False).digest(),
        "sha256": lambda data: hashlib.sha256(data).digest(),
    }


def _etag(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _stated_checksums(request: Request) -> dict[str, str]:
    stated = {**request.headers, **request.trailers}
    return {name: v for name in _ALGORITHMS if (v := stated.get(f"x-amz-checksum-{name}"))}


def _check_body(request: Request) -> dict[str, str]:
    """The checksums that came with a body, all of them right."""
    body = request.body
    sha256 = request.headers.get("x-amz-content-sha256", "")
    if re.fullmatch(r"[0-9a-f]{64}", sha256) and hashlib.sha256(body).hexdigest() != sha256:
        raise Refused(400, "XAmzContentSHA256Mismatch")
    if (md5 := request.headers.get("content-md5")) is not None:
        try:
            right = base64.b64decode(md5).hex() == _etag(body)
        except binascii.Error as exc:
            raise Refused(400, "InvalidDigest") from exc
        if not right:
            raise Refused(400, "BadDigest")
    stated = _stated_checksums(request)
    for name, value in stated.items():
        if checksum(name, body) != value:
            raise Refused(400, "BadDigest", f"The {name} you specified did not match")
    return stated


def _assembled(upload: Upload, parts: list[Stored]) -> Stored:
    data = b"".join(part.data for part in parts)
    digests = b"".join(bytes.fromhex(part.etag) for part in parts)
    etag = f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"
    checksums = {}
    if upload.algorithm is not None:
        name = upload.algorithm
        if upload.checksum_type == "FULL_OBJECT":
            checksums[name] = checksum(name, data)
        else:
            of_parts = b"".join(base64.b64decode(checksum(name, part.data)) for part in parts)
            checksums[name] = f"{checksum(name, of_parts)}-{len(parts)}"
    sizes = tuple(len(part.data) for part in parts)
    return Stored(data, etag, upload.headers, checksums, upload.checksum_type, sizes)


def _checksum_headers(stored: Stored) -> dict[str, str]:
    headers = {f"x-amz-checksum-{name}": value for name, value in stored.checksums.items()}
    return headers | ({"x-amz-checksum-type": stored.checksum_type} if headers else {})


def _checksum_tags(stored: Stored, *, kind: bool = True) -> str:
    tags = "".join(_tag(_ALGORITHMS[name], value) for name, value in stored.checksums.items())
    return tags + (_tag("ChecksumType", stored.checksum_type) if tags and kind else "")


# -- XML --------------------------------------------------------------------------------------------------


def _tag(name: str, text: str) -> str:
    return f"<{name}>{text}</{name}>"


def _escaped(text: str) -> str:
    # A bare CR would be read as LF (XML 1.0, 2.11).
    return escape(text, {"\r": "&#13;"})


def _shown(query: dict[str, str], text: str) -> str:
    if query.get("encoding-type") == "url":
        return quote(text, safe="/*-._~")
    return _escaped(text)


def _parsed(request: Request) -> Any:
    try:
        return ElementTree.fromstring(request.body)
    except ElementTree.ParseError as exc:
        raise Refused(400, "MalformedXML") from exc


def _children(element: Any, name: str) -> Iterable[Any]:
    return (child for child in element if child.tag.rpartition("}")[2] == name)


def _text(element: Any, name: str) -> str | None:
    return next((child.text or "" for child in _children(element, name)), None)
