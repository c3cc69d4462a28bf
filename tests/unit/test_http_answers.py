"""What answers say: sizes, versions, ranges, times, digests and refusals."""

from __future__ import annotations

import base64
import hashlib

import pytest

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
    UsageError,
)
from fastsync_http.answers import describe, error_of, require_range
from fastsync_http.digests import announced, wanted

MD5 = base64.b64encode(hashlib.md5(b"x", usedforsecurity=False).digest()).decode()
SHA256 = base64.b64encode(hashlib.sha256(b"x").digest()).decode()


def test_a_date_that_may_be_of_two_versions_tells_nothing_apart() -> None:
    now = "Tue, 14 Nov 2023 22:13:20 GMT"
    before = "Tue, 14 Nov 2023 22:13:19 GMT"
    assert describe(200, {"last-modified": now, "date": now}).strong is None
    assert describe(200, {"last-modified": before, "date": now}).strong == before
    assert describe(200, {"last-modified": before}).strong is None
    assert describe(200, {"last-modified": before, "date": now, "etag": 'W/"x"'}).strong is None
    assert describe(200, {"last-modified": before, "date": now, "etag": '"x"'}).strong == '"x"'


@pytest.mark.parametrize(
    ("status", "headers", "size"),
    [
        (200, {"content-length": "5"}, 5),
        (200, {}, None),
        (200, {"content-length": "5", "content-encoding": "gzip"}, None),
        (200, {"content-length": "5", "content-encoding": "identity"}, 5),
        (206, {"content-range": "bytes 0-0/7", "content-length": "1"}, 7),
        (206, {"content-range": "bytes 0-0/*"}, None),
    ],
)
def test_sizes(status: int, headers: dict[str, str], size: int | None) -> None:
    assert describe(status, headers).size == size


@pytest.mark.parametrize("told", ["-5", "5, 5", "5x", "9" * 30, ""])
def test_a_size_that_is_none(told: str) -> None:
    with pytest.raises(IntegrityError):
        describe(200, {"content-length": told})


def test_a_range_of_the_right_version() -> None:
    first = describe(206, {"content-range": "bytes 0-0/100", "etag": '"x"'})
    assert first.is_seekable
    require_range(first, 5, 10, {"content-range": "bytes 5-9/100", "etag": '"x"'}, "")
    for headers, kind in (
        ({"content-range": "bytes 5-9/100", "etag": '"y"'}, Changed),
        ({"content-range": "bytes 5-9/100"}, Changed),
        ({"content-range": "bytes 5-9/101", "etag": '"x"'}, Changed),
        ({"content-range": "bytes 4-9/100", "etag": '"x"'}, IntegrityError),
        (
            {"content-range": "bytes 5-9/100", "etag": '"x"', "content-encoding": "br"},
            IntegrityError,
        ),
    ):
        with pytest.raises(kind):
            require_range(first, 5, 10, headers, "")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (301, IntegrityError), (401, AccessRefused), (403, PermissionRefused), (404, NotFound),
        (405, Unsupported), (408, Transient), (410, NotFound), (412, Changed), (416, Changed),
        (429, Throttled), (451, PermissionRefused), (500, Transient), (501, Unsupported),
        (503, Throttled), (600, IntegrityError), (999, IntegrityError),
    ],
)  # fmt: skip
def test_refusals(status: int, kind: type[FastsyncError]) -> None:
    error = error_of(status, {}, "place")
    assert type(error) is kind
    assert error.where == "place"


@pytest.mark.parametrize(
    ("told", "seconds"),
    [("7", 7.0), ("Tue, 14 Nov 2023 22:13:30 GMT", 10.0), ("later", None), ("9" * 99, None)],
)
def test_patience(told: str, seconds: float | None) -> None:
    headers = {"retry-after": told, "date": "Tue, 14 Nov 2023 22:13:20 GMT"}
    error = error_of(503, headers, "")
    assert isinstance(error, Throttled)
    assert error.retry_after_s == seconds


@pytest.mark.parametrize(
    ("headers", "algorithm"),
    [
        ({"repr-digest": f"sha-256=:{SHA256}:"}, "sha256"),
        ({"repr-digest": f"md5=:{MD5}:, sha-256=:{SHA256}:"}, "sha256"),
        ({"digest": f"md5={MD5},SHA-256={SHA256}"}, "sha256"),
        ({"digest": f"md5={MD5}"}, "md5"),
        ({"content-md5": MD5}, "md5"),
        ({"repr-digest": f"sha-256=:{MD5}:"}, None),  # of another length
        ({"repr-digest": "sha-256=:???:"}, None),
        ({"repr-digest": "unixsum=:AAAA:"}, None),
        ({"content-md5": "nonsense"}, None),
        ({}, None),
    ],
)
def test_announced_digests(headers: dict[str, str], algorithm: str | None) -> None:
    found = announced(headers, is_whole=True)
    assert (found and found.algorithm) == algorithm
    if found is not None:
        found.check(hashlib.new(found.algorithm, b"x").hexdigest(), "")
        with pytest.raises(IntegrityError):
            found.check(hashlib.new(found.algorithm, b"y").hexdigest(), "")


def test_a_digest_of_a_body_says_nothing_of_a_part() -> None:
    assert announced({"content-md5": MD5}, is_whole=False) is None


@pytest.mark.parametrize("algorithm", ["sha256", "SHA-256", "sha512", "md5", "sha1", "blake2b"])
def test_digests_that_a_user_writes(algorithm: str) -> None:
    name = algorithm.lower().replace("-", "")
    value = hashlib.new(name, b"x").hexdigest()
    found = wanted(f"{algorithm}:{value.upper()}")
    assert (found.algorithm, found.value) == (name, value)


@pytest.mark.parametrize(
    "text",
    ["", "sha256", "sha256:", "sha256:abcd", "nonsense:00", "sha256:" + "x" * 64, "shake_128:"],
)
def test_digests_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        wanted(text)
