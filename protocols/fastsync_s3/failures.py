"""What the errors of S3 services, and those of botocore, mean: the map to ours."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from fastsync.dates import SECOND_NS, http_time
from fastsync.errors import (
    AccessRefused,
    Changed,
    ConfigError,
    Conflict,
    DestinationFull,
    FastsyncError,
    IntegrityError,
    ListingError,
    NameRefused,
    NotFound,
    Overtaken,
    PermissionRefused,
    Stalled,
    Throttled,
    Transient,
    Unsupported,
    UsageError,
)
from fastsync.wire import Headers
from fastsync_s3.documents import parse_error

_MAX_TEXT: Final = 300
_REGION: Final = re.compile(r"[a-z0-9-]{1,63}")
_SECURITY_HINT: Final = "name a profile with --aws-profile or AWS_PROFILE, or log in again"
NO_CREDENTIALS: Final = "there are no credentials for S3"
NO_CREDENTIALS_HINT: Final = (
    "name a profile with --aws-profile or AWS_PROFILE, set AWS_ACCESS_KEY_ID and"
    " AWS_SECRET_ACCESS_KEY, or use --no-sign-request for public buckets"
)


class _Meaning(NamedTuple):
    kind: type[FastsyncError]
    text: str
    hint: str | None = None


_NO_BUCKET: Final = _Meaning(NotFound, "the bucket does not exist")
_NO_OBJECT: Final = _Meaning(NotFound, "no such object")
_CHANGED: Final = _Meaning(Overtaken, "the object is not the one that was listed")
_BUSY: Final = _Meaning(Throttled, "the server asks for patience")
_FAILED: Final = _Meaning(Transient, "the server failed")
_DAMAGED: Final = _Meaning(IntegrityError, "the bytes did not arrive as they were sent")
_UNABLE: Final = _Meaning(Unsupported, "the server cannot do this")
_FULL: Final = _Meaning(DestinationFull, "there is no space left", "free some or raise the quota")
_TOO_LARGE: Final = _Meaning(Unsupported, "the object is larger than the server takes")
_FORBIDDEN: Final = _Meaning(
    PermissionRefused, "access denied", "the policies of user and bucket decide about that"
)
_EXPIRED: Final = _Meaning(AccessRefused, "the credentials have expired", _SECURITY_HINT)
_BAD_KEY: Final = _Meaning(AccessRefused, "the server does not know the access key", _SECURITY_HINT)
_BAD_TOKEN: Final = _Meaning(AccessRefused, "the session token is not valid", _SECURITY_HINT)
_BAD_SECRET: Final = _Meaning(
    AccessRefused,
    "the server does not accept the signature",
    "is the secret access key the one of this access key, and the endpoint right?",
)
_CLOSED: Final = _Meaning(AccessRefused, "the account has no access", "see the AWS console")
_ARCHIVED: Final = _Meaning(
    Unsupported, "the object is archived", "restore it first: `aws s3api restore-object`"
)
_TAKEN: Final = _Meaning(Conflict, "the bucket exists")
_BAD_PART: Final = _Meaning(IntegrityError, "the server does not have the parts it was sent")
_NO_KEY: Final = _Meaning(
    PermissionRefused, "the encryption key cannot be used", "see --sse-kms-key-id"
)
_OTHER_REGION: Final = _Meaning(
    AccessRefused, "the server wants another region", "name it with --region"
)

# Codes of "Error responses" in the Amazon S3 API Reference, and some that other servers made up.
_CODES: Final[Mapping[str, _Meaning]] = {
    "NoSuchKey": _NO_OBJECT,
    "NoSuchVersion": _Meaning(NotFound, "no such version of the object"),
    "NoSuchBucket": _NO_BUCKET,
    "NoSuchUpload": _Meaning(NotFound, "no such upload"),
    "AccessDenied": _FORBIDDEN,
    "AllAccessDisabled": _CLOSED,
    "AccountProblem": _CLOSED,
    "NotSignedUp": _CLOSED,
    "InvalidAccessKeyId": _BAD_KEY,
    "InvalidClientTokenId": _BAD_KEY,
    "UnrecognizedClientException": _BAD_KEY,
    "XAdminUserNotFound": _BAD_KEY,  # versitygw, with status 404
    "SignatureDoesNotMatch": _BAD_SECRET,
    "AuthFailure": _BAD_SECRET,
    "InvalidToken": _BAD_TOKEN,
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "AuthorizationHeaderMalformed": _OTHER_REGION,
    "IllegalLocationConstraintException": _OTHER_REGION,
    "PreconditionFailed": _CHANGED,
    "ConditionalRequestConflict": _Meaning(Transient, "somebody else wrote at the same time"),
    "ErrDirectoryNotEmpty": _Meaning(Conflict, "the directory is not empty"),  # versitygw
    "OperationAborted": _Meaning(Transient, "somebody else changes the bucket"),
    "BucketAlreadyExists": _Meaning(Conflict, "the bucket exists, and may be somebody else's"),
    "BucketAlreadyOwnedByYou": _TAKEN,
    "SlowDown": _BUSY,
    "SlowDownRead": _BUSY,
    "SlowDownWrite": _BUSY,
    "ServiceUnavailable": _BUSY,
    "RequestLimitExceeded": _BUSY,
    "ThrottlingException": _BUSY,
    "TooManyRequests": _BUSY,
    "InternalError": _FAILED,
    "RequestTimeout": _Meaning(Transient, "the server waited too long for our bytes"),
    "IncompleteBody": _Meaning(Transient, "the body was cut on its way"),
    "BadDigest": _DAMAGED,
    "InvalidDigest": _DAMAGED,
    "ChecksumMismatch": _DAMAGED,
    "XAmzContentChecksumMismatch": _DAMAGED,
    "XAmzContentSHA256Mismatch": _DAMAGED,
    "InvalidPart": _BAD_PART,
    "InvalidPartOrder": _BAD_PART,
    "EntityTooLarge": _TOO_LARGE,
    "EntityTooSmall": _Meaning(
        Unsupported, "a part is smaller than the server takes", "raise --chunk-size"
    ),
    "InvalidRange": _Meaning(Changed, "the object is shorter than it was listed"),
    "InvalidObjectState": _ARCHIVED,
    "ObjectNotInActiveTierError": _ARCHIVED,
    "NotImplemented": _UNABLE,
    "XNotImplemented": _UNABLE,
    "MethodNotAllowed": _UNABLE,
    "QuotaExceeded": _FULL,
    "XMinioStorageFull": _FULL,
    "XMinioAdminBucketQuotaExceeded": _FULL,
    "InsufficientStorage": _FULL,
    "KeyTooLongError": _Meaning(NameRefused, "the key is too long", "1024 bytes at most"),
    "InvalidBucketName": _Meaning(UsageError, "not the name of a bucket"),
    "InvalidStorageClass": _Meaning(
        Unsupported, "no such storage class there", "see --storage-class"
    ),
    "InvalidEncryptionAlgorithmError": _Meaning(
        Unsupported, "no such encryption there", "see --sse"
    ),
    "AccessControlListNotSupported": _Meaning(
        Unsupported, "the bucket takes no access control lists", "leave out --acl"
    ),
    "MetadataTooLarge": _Meaning(
        Unsupported, "more metadata than the server takes", "2 KB at most"
    ),
    "KMS.DisabledException": _NO_KEY,
    "KMS.InvalidStateException": _NO_KEY,
    "KMS.KMSInvalidStateException": _NO_KEY,
    "KMS.NotFoundException": _NO_KEY,
}
# For answers without a code: those to HEAD have no body.
_STATUSES: Final[Mapping[int, _Meaning]] = {
    401: _Meaning(AccessRefused, "the server wants other credentials", _SECURITY_HINT),
    403: _FORBIDDEN,
    404: _NO_OBJECT,
    405: _UNABLE,
    408: _FAILED,
    409: _Meaning(Conflict, "something stands in the way"),
    412: _CHANGED,
    413: _TOO_LARGE,
    416: _Meaning(Changed, "the object is shorter than it was listed"),
    429: _BUSY,
    501: _UNABLE,
    503: _BUSY,
    507: _FULL,
}
_SKEWED: Final = ("RequestTimeTooSkewed", "RequestExpired")


def map_error(
    status: int,
    code: str,
    message: str,
    headers: Headers | Mapping[str, str],
    where: str,
    action: str,
) -> FastsyncError:
    """The error of ours for one of the server's.

    `code` and `message` are those of its document, "" without one; `action` is what was asked, such as
    "read the object". Codes count more than statuses, which servers do not agree about. What a caller may
    know better: 412 is Overtaken, also where an object that was read changed.
    """
    if code in _SKEWED:
        return AccessRefused(_skew(headers), where=where, hint="set the clock of this computer")
    meaning = _CODES.get(code)
    if status == 405 and headers.get("x-amz-delete-marker") == "true":
        meaning = _NO_OBJECT
    if meaning is None and 300 <= status < 400 and status != 304:
        return redirect(headers, where)
    if meaning is None:
        meaning = _STATUSES.get(status) or (_FAILED if status >= 500 else None)
    if meaning is _NO_OBJECT and action.endswith("bucket"):
        meaning = _NO_BUCKET
    if meaning is None:
        said = f"{code}: {message}" if message else code or f"status {status}, without a reason"
        hint = None if code else "are credentials, region and endpoint right?"
        return FastsyncError(_cut(f"could not {action}: {said}"), where=where, hint=hint)
    kind, text, hint = meaning
    if meaning is _OTHER_REGION and (region := region_from_error(headers, b"")):
        hint = f"--region {region}"
    elif kind is not NotFound and (message or code not in _CODES):
        said = message or str(status)
        more = "" if _letters(said) == _letters(text) else f": {said}"
        text = _cut(f"could not {action}: {text}{more}")
    if issubclass(kind, Transient):
        return kind(
            text, where=where, hint=hint, retry_after_s=_retry_after(headers.get("retry-after"))
        )
    return kind(text, where=where, hint=hint)


def _letters(text: str) -> str:
    return "".join(filter(str.isalpha, text)).lower()


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "..."


def redirect(headers: Headers | Mapping[str, str], where: str | None) -> FastsyncError:
    """A redirect is not followed: only a region's name may lead elsewhere."""
    region = region_from_error(headers, b"")
    if region is not None:
        return AccessRefused(
            "the bucket is in another region", where=where, hint=f"--region {region}"
        )
    from urllib.parse import urlsplit

    try:
        host = urlsplit(headers.get("location") or "").hostname or "another place"
    except ValueError:
        host = "another place"
    return AccessRefused(
        f"a redirect to {_cut(host)!a} was refused",
        where=where,
        hint="check --endpoint-url and --region",
    )


def _skew(headers: Headers | Mapping[str, str]) -> str:
    there_ns = http_time(headers.get("date"))
    if there_ns is None:
        return "the server's clock differs from ours by too much"
    return (
        f"the server's clock differs from ours by {round(there_ns / SECOND_NS - time.time()):+d} s"
    )


def _retry_after(text: str | None) -> float | None:
    """Seconds to wait, of either form of the header (RFC 9110 10.2.3)."""
    if not text:
        return None
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    then_ns = http_time(text)
    return None if then_ns is None else max(0.0, then_ns / SECOND_NS - time.time())


def from_botocore(error: Exception, where: str, action: str) -> FastsyncError | None:
    """The error of ours for one of botocore's; None for what is none of its."""
    from botocore import exceptions as its  # type: ignore[import-untyped]
    from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]

    if isinstance(error, its.ClientError):
        return _from_client_error(error, where, action)
    if isinstance(error, ResponseParserError):
        return ListingError("the server's answer is not understood", where=where)
    if not isinstance(error, its.BotoCoreError):
        return None
    # Not what they say: files are quoted with their secrets.
    if isinstance(error, its.ConfigParseError):
        return ConfigError("not a valid AWS configuration file", where=error.kwargs.get("path"))
    said = _cut(str(error))
    if isinstance(error, its.ProfileNotFound | its.InvalidConfigError | its.ConfigNotFound):
        return ConfigError(said, where=where)
    if isinstance(error, its.NoCredentialsError):
        return AccessRefused(NO_CREDENTIALS, where=where, hint=NO_CREDENTIALS_HINT)
    if isinstance(error, its.SSLError):
        return AccessRefused(said, where=where, hint="AWS_CA_BUNDLE names certificates to trust")
    if isinstance(error, its.ConnectTimeoutError | its.ReadTimeoutError):
        return Stalled(said, where=where)
    if isinstance(error, its.HTTPClientError | its.ConnectionError):
        return Transient(said, where=where)
    if isinstance(error, its.ParamValidationError | its.ValidationError):
        return UsageError(said, where=where)
    if isinstance(error, its.NoRegionError | its.InvalidRegionError | its.EndpointProviderError):
        return UsageError(said, where=where, hint="name a region with --region")
    if isinstance(error, its.PaginationError):
        return ListingError(said, where=where)
    # What is left is about credentials: none, half of them, a login that has ended.
    return AccessRefused(said, where=where, hint=_SECURITY_HINT)


def _from_client_error(error: Any, where: str, action: str) -> FastsyncError:
    told, about = error.response.get("Error", {}), error.response.get("ResponseMetadata", {})
    code = str(told.get("Code", ""))
    mapped = map_error(
        int(about.get("HTTPStatusCode", 0)),
        "" if code.isdecimal() else code,
        str(told.get("Message", "")),
        {name.lower(): value for name, value in about.get("HTTPHeaders", {}).items()},
        where,
        action,
    )
    if action == "find credentials" and not mapped.transient:
        return AccessRefused(mapped.message, where=where, hint=_SECURITY_HINT)
    return mapped


def region_from_error(headers: Headers | Mapping[str, str], body: bytes) -> str | None:
    """The region that a refusal names, if it looks like one: nothing else of it leads anywhere."""
    told = headers.get("x-amz-bucket-region")
    if told is None and body:
        told = parse_error(body).region
    return told if told is not None and _REGION.fullmatch(told) else None
