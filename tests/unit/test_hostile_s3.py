"""The server that faults are tested with is honest until told otherwise: botocore and s5cmd say so."""

from __future__ import annotations

import http.client
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import hostile_s3 as faults
import pytest
from botocore.exceptions import (  # type: ignore[import-untyped]
    ClientError,
    ConnectionClosedError,
)
from hostile_s3 import HostileS3
from s3_objects import checksum
from s3_servers import find

BODY = bytes(range(256)) * 40
KEYS = ("a", "dir/", "dir/b c+d%e", "dir/ü", "dir/z", "dir0", "x\x01y", "//lead", "~")


@pytest.fixture
def server() -> Iterator[HostileS3]:
    with HostileS3(min_part_size=100) as server:
        server.make_bucket("b")
        yield server


@pytest.fixture
def client(server: HostileS3) -> Iterator[Any]:
    with closing(server.server.client) as client:
        yield client


def code(caught: pytest.ExceptionInfo[ClientError]) -> str:
    return str(caught.value.response["Error"]["Code"])


# -- honest -----------------------------------------------------------------------------------------------


def test_objects_come_back_with_what_was_stored_beside_them(client: Any) -> None:
    put = client.put_object(
        Bucket="b", Key="k/ü", Body=BODY, ContentType="text/x", Metadata={"mtime": "1.5"}
    )
    got = client.get_object(Bucket="b", Key="k/ü", ChecksumMode="ENABLED")
    assert got["Body"].read() == BODY
    assert (got["ETag"], got["ContentType"], got["Metadata"]["mtime"]) == (
        put["ETag"],
        "text/x",
        "1.5",
    )
    assert got["ChecksumCRC32"] == put["ChecksumCRC32"] == checksum("crc32", BODY)
    head = client.head_object(Bucket="b", Key="k/ü")
    assert head["ContentLength"] == len(BODY)
    part = client.get_object(Bucket="b", Key="k/ü", Range="bytes=10-19", IfMatch=put["ETag"])
    assert part["ContentRange"] == f"bytes 10-19/{len(BODY)}"
    assert part["Body"].read() == BODY[10:20]
    with pytest.raises(ClientError) as caught:
        client.get_object(Bucket="b", Key="k/ü", Range="bytes=20000-")
    assert code(caught) == "InvalidRange"


@pytest.mark.parametrize("version", ["list_objects", "list_objects_v2"])
@pytest.mark.parametrize("delimiter", ["", "/"])
def test_listings_page_in_the_order_of_bytes(
    server: HostileS3, client: Any, version: str, delimiter: str
) -> None:
    for key in KEYS:
        server.put("b", key)
    seen, prefixes = [], []
    paging = {"PageSize": 2}
    for page in client.get_paginator(version).paginate(
        Bucket="b", Delimiter=delimiter, PaginationConfig=paging
    ):
        seen += [row["Key"] for row in page.get("Contents", [])]
        prefixes += [row["Prefix"] for row in page.get("CommonPrefixes", [])]
        assert page["Name"] == "b"
        assert len(page.get("Contents", [])) + len(page.get("CommonPrefixes", [])) <= 2
    ordered = sorted(KEYS, key=str.encode)
    assert seen == [key for key in ordered if not delimiter or "/" not in key]
    assert prefixes == ([] if not delimiter else ["/", "dir/"])


def test_conditions_hold(client: Any) -> None:
    etag = client.put_object(Bucket="b", Key="k", Body=b"1")["ETag"]
    with pytest.raises(ClientError) as caught:
        client.put_object(Bucket="b", Key="k", Body=b"2", IfNoneMatch="*")
    assert code(caught) == "PreconditionFailed"
    client.put_object(Bucket="b", Key="k", Body=b"3", IfMatch=etag)
    with pytest.raises(ClientError) as caught:
        client.put_object(Bucket="b", Key="k", Body=b"4", IfMatch=etag)
    assert code(caught) == "PreconditionFailed"
    with pytest.raises(ClientError) as caught:
        client.get_object(Bucket="b", Key="k", IfMatch=etag)
    assert code(caught) == "PreconditionFailed"
    assert client.get_object(Bucket="b", Key="k")["Body"].read() == b"3"


@pytest.mark.parametrize("name", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
def test_checksums_are_verified(client: Any, name: str) -> None:
    right = {f"Checksum{name}": checksum(name.lower(), BODY)}
    client.put_object(Bucket="b", Key="k", Body=BODY, **right)
    with pytest.raises(ClientError) as caught:
        client.put_object(Bucket="b", Key="k", Body=BODY + b"!", **right)
    assert code(caught) == "BadDigest"


@pytest.mark.parametrize("kind", ["FULL_OBJECT", "COMPOSITE"])
def test_multipart_uploads(server: HostileS3, client: Any, kind: str) -> None:
    upload = client.create_multipart_upload(
        Bucket="b", Key="k", ChecksumAlgorithm="CRC32", ChecksumType=kind, Metadata={"a": "b"}
    )
    place = {"Bucket": "b", "Key": "k", "UploadId": upload["UploadId"]}
    server.put("b", "source", BODY)
    first = client.upload_part(**place, PartNumber=1, Body=BODY[:500])
    copied = client.upload_part_copy(
        **place, PartNumber=2, CopySource="b/source", CopySourceRange="bytes=500-10239"
    )["CopyPartResult"]
    parts = [
        {"PartNumber": number, "ETag": part["ETag"], "ChecksumCRC32": part["ChecksumCRC32"]}
        for number, part in ((1, first), (2, copied))
    ]
    assert [part["Size"] for part in client.list_parts(**place)["Parts"]] == [500, 9740]
    assert server.open_uploads == ["k"]
    with pytest.raises(ClientError) as caught:
        client.complete_multipart_upload(**place, MultipartUpload={"Parts": parts[::-1]})
    assert code(caught) == "InvalidPartOrder"
    done = client.complete_multipart_upload(**place, MultipartUpload={"Parts": parts})
    whole = checksum("crc32", BODY)
    assert (done["ChecksumCRC32"] == whole) == (kind == "FULL_OBJECT")
    assert done["ETag"].endswith('-2"')
    assert server.data("b", "k") == BODY
    head = client.head_object(Bucket="b", Key="k", PartNumber=1)
    assert (head["ContentLength"], head["PartsCount"]) == (500, 2)
    assert server.open_uploads == []


def test_copies_and_deletes(server: HostileS3, client: Any) -> None:
    etag = server.put("b", "a ü", BODY, {"x-amz-meta-m": "1"})
    client.copy_object(Bucket="b", Key="c", CopySource={"Bucket": "b", "Key": "a ü"})
    assert server.headers("b", "c") == {"x-amz-meta-m": "1"}
    with pytest.raises(ClientError) as caught:
        client.copy_object(Bucket="b", Key="d", CopySource="b/c", CopySourceIfNoneMatch=etag)
    assert code(caught) == "PreconditionFailed"
    deleted = client.delete_objects(
        Bucket="b", Delete={"Objects": [{"Key": "a ü"}, {"Key": "never"}]}
    )
    assert sorted(row["Key"] for row in deleted["Deleted"]) == ["a ü", "never"]
    client.delete_object(Bucket="b", Key="c")
    assert server.keys("b") == []


def test_s5cmd_copies_there_and_back(server: HostileS3, tmp_path: Path) -> None:
    s5cmd = find("s5cmd") or pytest.skip("s5cmd is not installed")
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "sub").mkdir(parents=True)
    (source / "small").write_bytes(BODY)
    (source / "sub" / "parts").write_bytes(BODY * 1024)

    def run(*arguments: str) -> None:
        environ = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", **server.environ}
        subprocess.run([s5cmd, *arguments], check=True, env=environ, timeout=60)

    run("cp", "--part-size", "5", f"{source}/", "s3://b/x/")
    assert server.count("UploadPart") == 2
    run("cp", "--part-size", "5", "s3://b/x/*", f"{target}/")
    assert (target / "small").read_bytes() == BODY
    assert (target / "sub" / "parts").read_bytes() == BODY * 1024
    assert all("authorization" in request.headers for request in server.requests)
    run("rm", "s3://b/x/*")
    assert server.keys("b") == []


# -- hostile ----------------------------------------------------------------------------------------------


def raw_get(server: HostileS3, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server.port, timeout=10)
    with closing(connection):
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()


def test_a_fault_happens_when_and_as_often_as_scripted(server: HostileS3, client: Any) -> None:
    for key in ("k", "other"):
        server.put("b", key, b"1")
    rule = server.on("GetObject", faults.slow_down("7"), key="k", skip=1, times=2)
    told = []
    for key in ("k", "other", "k", "k", "k"):
        status, headers, _body = raw_get(server, f"/b/{key}")
        told.append((status, headers.get("retry-after")))
    assert told == [(200, None), (200, None), (503, "7"), (503, "7"), (200, None)]
    assert (rule.hits, server.count("GetObject"), server.count("*", "k")) == (2, 5, 4)
    server.on("*", faults.refuse(501, "NotImplemented"), times=None)
    with pytest.raises(ClientError) as caught:
        client.list_objects_v2(Bucket="b")
    assert code(caught) == "NotImplemented"
    server.behave()
    assert client.list_objects_v2(Bucket="b")["KeyCount"] == 2


def test_lies_about_bodies(server: HostileS3) -> None:
    server.put("b", "k", BODY)
    scripts: list[tuple[faults.Fault, bytes]] = [
        (faults.flip(5), BODY[:5] + bytes([BODY[5] ^ 1]) + BODY[6:]),
        (faults.shorter(3), BODY[:-3]),
        (faults.longer(3), BODY + b"+++"),
        (faults.chunked(3), BODY[:-3]),
    ]
    for fault, expected in scripts:
        server.on("GetObject", fault)
        assert raw_get(server, "/b/k")[2] == expected
    server.on("GetObject", faults.ignore_range)
    assert raw_get(server, "/b/k", Range="bytes=0-9")[0] == 200
    server.on("GetObject", faults.header(content_range="bytes 5-14/99"))
    status, headers, _body = raw_get(server, "/b/k", Range="bytes=0-9")
    assert (status, headers["content-range"]) == (206, "bytes 5-14/99")
    server.on("GetObject", faults.first(lambda: server.put("b", "k", b"new")))
    assert raw_get(server, "/b/k")[2] == b"new"


def test_connections_that_end_or_stop(server: HostileS3, client: Any) -> None:
    server.put("b", "k", BODY)
    server.on("GetObject", faults.cut(100))
    with pytest.raises(http.client.IncompleteRead) as caught:
        raw_get(server, "/b/k")
    assert len(caught.value.partial) == 100
    server.on("GetObject", faults.cut(0, reset=True))
    with pytest.raises(ConnectionResetError):
        raw_get(server, "/b/k")
    server.on("PutObject", faults.lost_reply())
    with pytest.raises(ConnectionClosedError):
        client.put_object(Bucket="b", Key="there", Body=b"1")
    assert server.data("b", "there") == b"1"
    server.on("GetObject", faults.stall(10))
    with socket.create_connection(("127.0.0.1", server.server.port)) as raw:
        raw.sendall(b"GET /b/k HTTP/1.1\r\nHost: h\r\n\r\n")
        received = b""
        while not received.endswith(BODY[:10]):
            received += raw.recv(65536)
        raw.settimeout(0.05)
        with pytest.raises(TimeoutError):
            raw.recv(1)


def test_lies_about_listings(server: HostileS3, client: Any) -> None:
    for index in range(4):
        server.put("b", f"k{index}")

    def pages(fault: faults.Fault) -> dict[str, Any]:
        server.on("ListObjectsV2", fault)
        answer: dict[str, Any] = client.list_objects_v2(Bucket="b", MaxKeys=2)
        return answer

    assert pages(faults.wrong_bucket("else"))["Name"] == "else"
    assert "Name" not in pages(faults.html)
    assert [row["Key"] for row in pages(faults.unsorted)["Contents"]] == ["k1", "k0"]
    listed = pages(faults.missing_token())
    assert listed["IsTruncated"]
    assert "NextContinuationToken" not in listed
    server.on("ListObjectsV2", faults.same_page, times=None)
    again = client.list_objects_v2(Bucket="b", MaxKeys=2, ContinuationToken="again")
    assert [row["Key"] for row in again["Contents"]] == ["k0", "k1"]
    assert again["NextContinuationToken"] == "again"
    server.behave()
    server.on("ListObjectsV2", faults.answer_v1)
    assert "KeyCount" not in client.list_objects_v2(Bucket="b")


def test_a_trap_shows_what_a_redirect_carried_off(server: HostileS3) -> None:
    server.put("b", "k")
    with HostileS3() as trap:
        server.on("GetObject", faults.redirect(trap.endpoint))
        status, headers, _body = raw_get(server, "/b/k")
        assert (status, headers["location"]) == (307, f"{trap.endpoint}/b/k")
        raw_get(trap, "/b/k", X_Amz_Security_Token="secret")
        assert [request.headers["x_amz_security_token"] for request in trap.requests] == ["secret"]


def test_an_error_at_the_head_does_not_wait_for_the_body(server: HostileS3) -> None:
    server.on("PutObject", faults.refuse(403, "AccessDenied"), at_head=True)
    with socket.create_connection(("127.0.0.1", server.server.port)) as raw:
        raw.settimeout(10)
        raw.sendall(b"PUT /b/k HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n")
        assert raw.recv(65536).startswith(b"HTTP/1.1 403 ")
