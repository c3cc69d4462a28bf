"""Our signatures against botocore's, for whatever may be signed."""

from __future__ import annotations

import datetime
import re
from typing import Any
from unittest.mock import patch
from urllib.parse import quote, urlencode

import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth  # type: ignore[import-untyped]
from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped]
from botocore.credentials import Credentials as BotocoreCredentials  # type: ignore[import-untyped]
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastsync.errors import NameRefused, UsageError
from fastsync_s3.signing import (
    EMPTY_PAYLOAD,
    MAX_PRESIGNED_S,
    UNSIGNED_PAYLOAD,
    Credentials,
    Signer,
    encode_path,
    encode_query,
)

NOW = datetime.datetime(2026, 3, 9, 7, 5, 1, tzinfo=datetime.UTC)
PLAIN = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")

PIECES = st.sampled_from([*"a/.+%#?=& ~é日\U0001f600\x01\n\x7f'(*!;:@\\\"<", "//", "..", "%2F"])
TEXTS = (
    st.lists(PIECES | st.text(max_size=3), max_size=8)
    .map("".join)
    .filter(lambda text: not re.search("[\ud800-\udfff]", text))
)
PAIRS = st.lists(st.tuples(TEXTS.filter(bool), TEXTS), max_size=4)
VALUES = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=12)
HEADERS = st.dictionaries(
    st.sampled_from(
        ["range", "if-match", "content-type", "content-md5", "x-amz-meta-a", "x-amz-acl"]
    ),
    VALUES,
)
AUTHORITIES = st.sampled_from(
    ["b.s3.amazonaws.com", "localhost:9000", "10.0.0.1", "[::1]:8080", "b.example:8443"]
)
CREDENTIALS = st.builds(
    Credentials,
    st.text("ABCDEFGH0123456789", min_size=1),
    st.text(min_size=1).filter(lambda text: not re.search("[\ud800-\udfff]", text)),
    st.none() | st.text("AZaz09+/=", min_size=1),
)


def signer(authority: str = "b.s3.amazonaws.com", region: str = "eu-central-1") -> Signer:
    return Signer(authority, region, clock=NOW.timestamp)


def parsed(head: bytes) -> tuple[str, dict[str, str]]:
    text = head.decode()
    assert text.endswith("\r\n\r\n")
    line, *lines = text[:-4].split("\r\n")
    return line, dict(header.split(": ", 1) for header in lines)


def oracle(request: AWSRequest, credentials: Credentials, auth: type, **options: Any) -> None:
    known = BotocoreCredentials(*credentials)
    with patch("botocore.auth.get_current_datetime", return_value=NOW.replace(tzinfo=None)):
        auth(known, "s3", "eu-central-1", **options).add_auth(request)


@settings(max_examples=150, deadline=None)
@given(
    CREDENTIALS,
    AUTHORITIES,
    st.sampled_from(["GET", "PUT", "POST"]),
    TEXTS,
    PAIRS,
    HEADERS,
    st.booleans(),
)
@example(
    PLAIN, "localhost", "GET", "a/../b//c", [("uploads", ""), ("a", "2"), ("a", "1")], {}, False
)
@example(PLAIN, "localhost", "PUT", "k", [], {"x-amz-meta-a": "  two   words "}, True)
def test_signs_as_botocore(
    credentials: Credentials,
    authority: str,
    method: str,
    key: str,
    pairs: list[tuple[str, str]],
    headers: dict[str, str],
    is_hashed: bool,
) -> None:
    path = encode_path("/" + key)
    payload = EMPTY_PAYLOAD if is_hashed else UNSIGNED_PAYLOAD
    head = signer(authority).head(credentials, method, path, pairs, headers, payload)
    line, sent = parsed(head)
    query = line.split(" ")[1].partition("?")[2]

    # The query as anybody else would write it: in its own order, not the canonical one.
    written = "&".join(f"{quote(n, safe='')}={quote(v, safe='')}" for n, v in pairs)
    request = AWSRequest(method, f"http://{authority}{path}?{written}", headers=dict(headers))
    request.context["client_config"] = None
    with patch.object(S3SigV4Auth, "payload", return_value=payload):
        oracle(request, credentials, S3SigV4Auth)
    assert sent["authorization"] == request.headers["Authorization"]
    assert sent["x-amz-date"] == request.headers["X-Amz-Date"]
    assert sent.get("x-amz-security-token") == request.headers.get("X-Amz-Security-Token")
    assert sent["x-amz-content-sha256"] == payload
    assert sent["host"] == authority
    assert {name: sent[name] for name in headers} == headers
    assert sorted(query.split("&")) == sorted(written.split("&"))
    assert line.startswith(f"{method} {path}")
    assert line.endswith(" HTTP/1.1")


@settings(max_examples=100, deadline=None)
@given(CREDENTIALS, AUTHORITIES, TEXTS, st.dictionaries(TEXTS.filter(bool), TEXTS, max_size=3))
def test_presigns_as_botocore(
    credentials: Credentials, authority: str, key: str, query: dict[str, str]
) -> None:
    path = encode_path("/" + key)
    ours = signer(authority).presign(credentials, "GET", path, query.items(), expires_s=3600)
    request = AWSRequest("GET", f"https://{authority}{path}?{urlencode(query, quote_via=quote)}")
    oracle(request, credentials, S3SigV4QueryAuth, expires=3600)
    theirs = request.url.partition("?")[2]
    assert sorted(ours.split("&")) == sorted(theirs.split("&"))
    assert ours.rpartition("&")[2].startswith("X-Amz-Signature=")


@pytest.mark.parametrize("expires_s", [0, -1, MAX_PRESIGNED_S + 1])
def test_links_live_up_to_a_week(expires_s: int) -> None:
    with pytest.raises(UsageError, match="expire"):
        signer().presign(PLAIN, "GET", "/k", expires_s=expires_s)


def test_the_key_and_the_time_follow_the_clock_and_the_credentials() -> None:
    now = NOW.timestamp()
    one = Signer("b.example", "eu-central-1", clock=lambda: now)
    others = [
        PLAIN,
        PLAIN._replace(secret_key="another"),
        PLAIN._replace(access_key="AKID2"),
        PLAIN,
    ]
    for offset_s in (0.0, 86400.0, -86400.0, 0.5):
        one.offset_s = offset_s
        for credentials in others:
            fresh = Signer("b.example", "eu-central-1", clock=lambda: now)
            fresh.offset_s = offset_s
            assert one.head(credentials, "GET", "/k") == fresh.head(credentials, "GET", "/k")
    one.offset_s = 61.0
    assert b"x-amz-date: 20260309T070602Z" in one.head(PLAIN, "GET", "/")


def test_hop_by_hop_and_length_are_sent_unsigned() -> None:
    headers = {"content-length": "3", "user-agent": "fastsync", "accept-encoding": "identity"}
    _, sent = parsed(signer().head(PLAIN, "PUT", "/k", "", headers))
    assert {name: sent[name] for name in headers} == headers
    assert "SignedHeaders=host;x-amz-content-sha256;x-amz-date," in sent["authorization"]


def test_anonymous_requests_say_nothing_about_anybody() -> None:
    head = signer().head(None, "GET", "/k", "versionId=1", {"range": "bytes=0-1"})
    assert head == (
        b"GET /k?versionId=1 HTTP/1.1\r\nhost: b.s3.amazonaws.com\r\nrange: bytes=0-1\r\n\r\n"
    )


@pytest.mark.parametrize("credentials", [None, PLAIN])
@pytest.mark.parametrize(
    ("path", "query", "headers"),
    [
        ("/k", "", {"x-amz-meta-a": "1\r\nx-amz-acl: public-read"}),
        ("/k", "", {"x-amz-meta-a": "1\nb"}),
        ("/k", "", {"x-amz-meta-a": "1\0"}),
        ("/k", "", {"x-amz-meta-a: b\r\nc": "1"}),
        ("/k", "", {"X-Amz-Acl": "private"}),
        ("/k", "", {"": "1"}),
        ("/k HTTP/1.1\r\nhost: evil\r\n\r\n", "", {}),
        ("/a key", "", {}),
        ("/k", "a=b c", {}),
        ("/k", "a=b\r\nx: y", {}),
    ],
)
def test_nothing_breaks_out_of_its_line(
    credentials: Credentials | None, path: str, query: str, headers: dict[str, str]
) -> None:
    with pytest.raises(UsageError):
        signer().head(credentials, "GET", path, query, headers)


@pytest.mark.parametrize("authority", ["", "a b", "a\r\nb", "user@host", "a/b"])
def test_odd_hosts_are_refused(authority: str) -> None:
    with pytest.raises(UsageError):
        Signer(authority, "us-east-1")


@pytest.mark.parametrize("region", ["", "us east", "a/b", "a\n"])
def test_odd_regions_are_refused(region: str) -> None:
    with pytest.raises(UsageError):
        Signer("b.example", region)


def test_encoding_is_single_and_keeps_what_is_there() -> None:
    assert encode_path("/a+b %2F#?/../é~") == "/a%2Bb%20%252F%23%3F/../%C3%A9~"
    assert encode_query([("prefix", "a/b c"), ("delimiter", ""), ("prefix", "a+")]) == (
        "delimiter=&prefix=a%2B&prefix=a%2Fb%20c"
    )
    with pytest.raises(NameRefused, match="UTF-8"):
        encode_path("/\udcff")


def test_secrets_stay_out_of_reprs() -> None:
    credentials = Credentials("AKID", "the-secret", "the-token")
    assert "the-" not in f"{credentials!r} {credentials} {[credentials]}"
