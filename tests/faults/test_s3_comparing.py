"""`--checksum` with S3 on one side or both: what can be compared without the bytes, and what cannot."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import hostile_s3 as faults
import pytest
from hostile_s3 import HostileS3
from s3_objects import Stored, checksum

import fastsync
from fastsync.testing.vocabulary import noise

CONTENT = noise(300_000)
MD5 = hashlib.md5(CONTENT).digest()
LENGTHS = (110_000, 120_000, 70_000)
ONE: dict[str, Any] = {"checksum": True, "small_file_threshold": 0, "retry_count": 0}


@pytest.fixture
def server(hostile_s3: HostileS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HostileS3:
    for name, value in {**hostile_s3.environ, "HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(name, value)
    hostile_s3.make_bucket("bucket")
    return hostile_s3


def multipart_etag(data: bytes) -> str:
    ends = [sum(LENGTHS[: count + 1]) for count in range(len(LENGTHS))]
    pieces = [data[end - length : end] for end, length in zip(ends, LENGTHS, strict=True)]
    digests = b"".join(hashlib.md5(piece).digest() for piece in pieces)
    return f"{hashlib.md5(digests).hexdigest()}-{len(pieces)}"


# What an object may tell of its bytes.
OBJECTS: dict[str, Stored] = {
    "md5": Stored(CONTENT, MD5.hex()),
    "parts": Stored(CONTENT, multipart_etag(CONTENT), part_sizes=LENGTHS),
    "one part": Stored(CONTENT, f"{hashlib.md5(MD5).hexdigest()}-1", part_sizes=(len(CONTENT),)),
    "crc": Stored(
        CONTENT, f"{'0' * 32}-3", checksums={"crc64nvme": checksum("crc64nvme", CONTENT)}
    ),
    "rclone": Stored(
        CONTENT, f"{'0' * 32}-3", {"x-amz-meta-md5chksum": base64.b64encode(MD5).decode()}
    ),
    "nothing": Stored(CONTENT, "opaque", {"x-amz-server-side-encryption": "aws:kms"}),
}


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("same", [True, False])
def test_a_disk_and_a_bucket(
    server: HostileS3, tmp_path: Path, name: str, way: str, *, same: bool
) -> None:
    """Only an object that tells nothing is read; whatever it is, the answer is right."""
    disk = tmp_path / "disk"
    disk.mkdir()
    (disk / "file").write_bytes(CONTENT if same else b"x" + CONTENT[1:])
    server.objects.buckets["bucket"].put("file", OBJECTS[name])
    server.on("PutObject", faults.refuse(403, "AccessDenied"), times=None)
    ends: tuple[Any, Any] = (disk, "s3://bucket/")
    summary = fastsync.sync(*(ends if way == "up" else reversed(ends)), **ONE)
    if same:
        assert (summary.totals.files_skipped, summary.exit_code) == (1, 0)
        assert server.count("GetObject") == (name == "nothing")
        assert server.count("PutObject") == 0
    else:
        assert summary.totals.files_skipped == 0
        assert server.count("PutObject") == (way == "up")
        assert (summary.totals.files_copied == 1) == (way == "down")


@pytest.mark.parametrize("other", [False, True])
def test_two_buckets(server: HostileS3, *, other: bool) -> None:
    """By what both tell, else by their bytes."""
    content = b"x" + CONTENT[1:] if other else CONTENT
    server.make_bucket("copy")
    for name, stored in OBJECTS.items():
        server.objects.buckets["bucket"].put(name, stored)
        server.objects.buckets["copy"].put(name, Stored(content, hashlib.md5(content).hexdigest()))
    summary = fastsync.sync("s3://bucket/", "s3://copy/", dry_run=True, **ONE)
    assert summary.totals.files_skipped == (0 if other else len(OBJECTS))
    read = {seen.key for seen in server.seen("GetObject")}
    assert read == OBJECTS.keys() - {"md5", "rclone"}


def test_a_time_alone_is_set_where_it_differs(server: HostileS3, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    server.objects.buckets["bucket"].put("file", OBJECTS["parts"])
    summary = fastsync.cp(tmp_path / "file", "s3://bucket/", **ONE)
    assert (summary.totals.files_skipped, summary.totals.attributes_set) == (1, 1)
    assert server.headers("bucket", "file")["x-amz-meta-mtime"]
    assert server.data("bucket", "file") == CONTENT


@pytest.mark.parametrize("threshold", [0, 1 << 20])
@pytest.mark.parametrize("way", ["up", "down"])
def test_times_that_no_listing_tells_are_the_same_all_the_same(
    server: HostileS3, tmp_path: Path, way: str, threshold: int
) -> None:
    """Nothing is set where content and time are: no copy of an object onto itself, no news of it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    (disk / "file").write_bytes(CONTENT)
    assert fastsync.sync(disk, "s3://bucket/", **ONE).totals.files_copied == 1
    ends: tuple[Any, Any] = (disk, "s3://bucket/")
    settings = {**ONE, "small_file_threshold": threshold}
    summary = fastsync.sync(*(ends if way == "up" else reversed(ends)), **settings)
    assert (summary.totals.files_skipped, summary.totals.attributes_set) == (1, 0)
    assert server.count("CopyObject") == 0
