"""What S3 servers do to bytes on their way: whatever it is, a whole file or none, and nothing left behind."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hostile_s3 as faults
import pytest
from hostile_s3 import Fault, Honest, HostileS3
from http_exchange import Request, Response
from s3_objects import Stored, Upload, checksum, error

import fastsync
from fastsync.errors import FastsyncError
from fastsync.tally import Summary
from fastsync.testing.vocabulary import noise

if TYPE_CHECKING:
    from tests.conftest import Fastsync

KIB, MIB = 1 << 10, 1 << 20
PART = 64 * KIB
CONTENT = noise(5 * PART + 7)
OTHER = noise(5 * PART + 8)[1:]
QUICK: dict[str, Any] = {
    "chunk_size": PART,
    "small_file_threshold": 0,
    "retry_count": 2,
    "stall_timeout": 1.0,
    "request_timeout": 1.0,
}


@pytest.fixture
def server(hostile_s3: HostileS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HostileS3:
    for name, value in {**hostile_s3.environ, "HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(name, value)
    hostile_s3.make_bucket("bucket")
    return hostile_s3


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    disk = tmp_path / "disk"
    disk.mkdir()
    return disk


def failure(summary: Summary) -> FastsyncError:
    (failed,) = summary.failures
    assert failed.error is not None
    return failed.error


# -- downloads -------------------------------------------------------------------------------------------


def download(server: HostileS3, disk: Path, *, old: bool = True, **settings: Any) -> Summary:
    """Of the object, over an old file; whatever happens, there is one or the other, and nothing else."""
    if old:
        (disk / "file").write_bytes(b"old")
    wanted = server.data("bucket", "key")
    summary = fastsync.cp("s3://bucket/key", disk / "file", **{**QUICK, **settings})
    content = (disk / "file").read_bytes()
    assert content == (server.data("bucket", "key") if summary.exit_code == 0 else b"old")
    assert [path.name for path in disk.iterdir()] == ["file"]
    assert summary.exit_code != 0 or summary.totals.bytes_done >= len(wanted)
    return summary


# What may come instead of a range, once or for ever.
BAD_RANGES: dict[str, tuple[Fault, int]] = {
    "the whole": (faults.ignore_range, 4),
    "another place": (faults.header(content_range=f"bytes 0-{PART - 1}/{len(CONTENT)}"), 4),
    "no place": (faults.header(content_range=None), 4),
    "a place that is none": (faults.header(content_range="bytes 1-x/y"), 4),
    "another total": (faults.header(content_range=f"bytes {PART}-{2 * PART - 1}/9999999"), 8),
    "an unknown total": (faults.header(content_range=f"bytes {PART}-{2 * PART - 1}/*"), 4),
    "shorter": (faults.shorter(), 4),
    "longer": (faults.longer(), 4),
    "empty": (faults.shorter(PART), 4),
    "no ETag": (faults.header(etag=None), 8),
    "another ETag": (faults.header(etag='"0123"'), 8),
    "a page": (faults.html, 8),
    "nothing": (lambda _request, _honest: Response(204), 8),
    "shorter than it said it would be": (faults.chunked(9), 4),
}


@pytest.mark.parametrize("name", BAD_RANGES)
def test_a_range_that_is_another_is_refused(server: HostileS3, disk: Path, name: str) -> None:
    server.put("bucket", "key", CONTENT)
    fault, code = BAD_RANGES[name]
    server.on("GetObject", fault, skip=1, times=None)
    assert download(server, disk).exit_code == code
    assert server.count() < 20


PASSING: dict[str, Fault] = {
    "cut": faults.cut(1000),
    "reset": faults.cut(1000, reset=True),
    "cut at once": faults.cut(0),
    "hung up": faults.hang_up(),
    "hung up by a reset": faults.hang_up(reset=True),
    "stalled": faults.stall(1000),
    "silent": faults.silence(),
    "silent after the head": faults.no_answer(),
    "failed": faults.refuse(500, "InternalError"),
    "busy": faults.slow_down("0"),
}


@pytest.mark.parametrize(
    ("name", "times"),
    [(name, 2) for name in PASSING]
    + [(name, None) for name in ("cut", "hung up", "failed", "silent")],
)
def test_what_passes_is_tried_again(
    server: HostileS3, disk: Path, name: str, times: int | None
) -> None:
    """And no part but the one that failed."""
    server.put("bucket", "key", CONTENT)
    server.on("GetObject", PASSING[name], skip=2, times=times)
    summary = download(server, disk, parallel_streams=1)
    assert summary.exit_code == (1 if times is None else 0)
    # A connection that was open, and turns out to be closed, costs no try.
    stale = name.startswith("hung up") and times is None
    assert server.count("GetObject") == (6 + 2 if times else 2 + 3) + stale


def changed(server: HostileS3, content: bytes = OTHER) -> Fault:
    return faults.first(lambda: server.put("bucket", "key", content))


def test_an_object_that_changes_is_begun_again(server: HostileS3, disk: Path) -> None:
    server.put("bucket", "key", CONTENT)
    server.on("GetObject", changed(server), skip=3)
    assert download(server, disk).exit_code == 0
    assert (disk / "file").read_bytes() == OTHER


def test_an_object_that_keeps_changing_is_not(server: HostileS3, disk: Path) -> None:
    server.put("bucket", "key", CONTENT)
    versions = iter(range(1000))

    def change(request: Request, honest: Honest) -> Response:
        server.put("bucket", "key", noise(len(CONTENT) - next(versions)))
        return honest(request)

    server.on("GetObject", change, times=None)
    assert download(server, disk).exit_code == 8
    assert server.count("GetObject") < 20


def test_an_object_that_is_deleted_has_vanished(server: HostileS3, disk: Path) -> None:
    server.put("bucket", "key", CONTENT)
    bucket = server.objects.buckets["bucket"]
    gone = faults.refuse(404, "NoSuchKey")
    server.on("GetObject", gone, skip=2, times=None)
    server.on("HeadObject", gone, skip=2, times=None)
    assert download(server, disk).exit_code == 8
    assert bucket.get("key") is not None


def with_checksum(name: str, value: str) -> Fault:
    return faults.header(**{f"x_amz_checksum_{name}": value, "x_amz_checksum_type": "FULL_OBJECT"})


@pytest.mark.parametrize("size", [1000, PART, len(CONTENT)])
@pytest.mark.parametrize("proof", ["md5", "crc64nvme", "crc32", "crc32c", "sha256", "parts"])
@pytest.mark.parametrize("is_bad", [False, True])
def test_one_bit_that_flipped_is_found(
    server: HostileS3, disk: Path, size: int, proof: str, *, is_bad: bool
) -> None:
    """By an MD5 in the ETag, a checksum of the whole, or the ETags of the parts; in batches and in parts."""
    data = CONTENT[:size]
    server.put("bucket", "key", data)
    stored = server.objects.buckets["bucket"]["key"]
    if proof == "parts":
        lengths = [min(100_000, size - at) for at in range(0, size, 100_000)]
        stored = in_parts(data, tuple(lengths))
    elif proof != "md5":
        stored = Stored(data, "not-a-digest", checksums={proof: checksum(proof, data)})
    server.objects.buckets["bucket"].put("key", stored)
    if is_bad:
        server.on("GetObject", faults.flip(5), times=None)
    for threshold in (0, MIB):
        summary = download(server, disk, small_file_threshold=threshold)
        assert summary.exit_code == (4 if is_bad else 0)


@pytest.mark.parametrize("threshold", [0, MIB], ids=["parts", "in a batch"])
@pytest.mark.parametrize("fault", [faults.flip(5), faults.shorter(), faults.longer(), faults.html])
def test_wrong_bytes_are_fetched_once_more_over_another_connection(
    server: HostileS3, disk: Path, threshold: int, fault: Fault
) -> None:
    server.put("bucket", "key", CONTENT)
    server.on("GetObject", fault)
    summary = download(server, disk, small_file_threshold=threshold, parallel_streams=1)
    assert summary.exit_code == 0
    bad, *_, good = server.seen("GetObject")
    assert bad.connection != good.connection
    server.on("GetObject", fault, times=None)
    assert download(server, disk, small_file_threshold=threshold).exit_code in (4, 8)


def in_parts(data: bytes, lengths: tuple[int, ...]) -> Stored:
    """An object of parts of these lengths."""
    ends = [sum(lengths[: count + 1]) for count in range(len(lengths))]
    pieces = [data[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    digests = b"".join(hashlib.md5(piece).digest() for piece in pieces)
    etag = f"{hashlib.md5(digests).hexdigest()}-{len(pieces)}"
    return Stored(data, etag, part_sizes=lengths)


@pytest.mark.parametrize("is_bad", [False, True])
@pytest.mark.parametrize("threshold", [0, MIB])
def test_parts_of_any_lengths_prove_the_bytes(
    server: HostileS3, disk: Path, threshold: int, *, is_bad: bool
) -> None:
    """As many as if they were all as long as the first one, which they are not."""
    server.put("bucket", "key", CONTENT)
    stored = in_parts(CONTENT, (110_000, 120_000, len(CONTENT) - 230_000))
    server.objects.buckets["bucket"].put("key", stored)
    if is_bad:
        server.on("GetObject", faults.flip(5), times=None)
    summary = download(server, disk, small_file_threshold=threshold)
    assert summary.exit_code == (4 if is_bad else 0)


@pytest.mark.parametrize("threshold", [0, MIB])
@pytest.mark.parametrize(
    "headers",
    [
        {"x-amz-server-side-encryption": "aws:kms"},
        {"x-amz-server-side-encryption-customer-algorithm": "AES256"},
    ],
)
@pytest.mark.parametrize("etag", ["0" * 32, f"{'0' * 32}-1", f"{'0' * 32}-3"])
def test_an_encrypted_objects_etag_is_no_digest(
    server: HostileS3, disk: Path, threshold: int, headers: dict[str, str], etag: str
) -> None:
    server.put("bucket", "key", CONTENT)
    stored = Stored(CONTENT, etag, headers, part_sizes=(110_000, 110_000, len(CONTENT) - 220_000))
    server.objects.buckets["bucket"].put("key", stored)
    assert download(server, disk, small_file_threshold=threshold).exit_code == 0


@pytest.mark.parametrize("threshold", [0, MIB])
@pytest.mark.parametrize("etag", [f"{'0' * 32}-9999", f"{'0' * 32}-2", "", "x" * 2000, "W/x"])
def test_an_etag_that_means_nothing_proves_nothing(
    server: HostileS3, disk: Path, threshold: int, etag: str
) -> None:
    server.put("bucket", "key", CONTENT)
    server.objects.buckets["bucket"].put("key", Stored(CONTENT, etag))
    server.on("HeadObject", faults.ignoring("x"), times=1)  # the look
    server.on("HeadObject", faults.ignoring("x"), times=1)  # what it must add up to
    server.on("HeadObject", faults.refuse(501, "NotImplemented"), times=None)
    assert download(server, disk, small_file_threshold=threshold).exit_code == 0


def test_patience_that_is_asked_for_is_shown(server: HostileS3, disk: Path) -> None:
    server.put("bucket", "key", CONTENT)
    server.on("GetObject", faults.slow_down("2"), skip=1)
    started = time.monotonic()
    assert download(server, disk, parallel_streams=1).exit_code == 0
    assert 2 <= time.monotonic() - started < 5
    times = [seen.time_s for seen in server.seen("GetObject")]
    assert max(b - a for a, b in itertools.pairwise(times)) >= 2


# -- uploads ---------------------------------------------------------------------------------------------

LARGE = noise(MIB) * 11 + b"and a bit"
UP: dict[str, Any] = {"chunk_size": 5 * MIB, "retry_count": 2, "stall_timeout": 3.0}


def upload(server: HostileS3, disk: Path, data: bytes, **settings: Any) -> Summary:
    """Over an old object; whatever happens, there is one or the other, and no upload left open."""
    (disk / "file").write_bytes(data)
    if "key" not in server.keys("bucket"):
        server.put("bucket", "key", b"old")
    server.requests.clear()
    summary = fastsync.cp(disk / "file", "s3://bucket/key", **{**QUICK, **UP, **settings})
    assert server.data("bucket", "key") == (data if summary.exit_code == 0 else b"old")
    assert server.open_uploads == []
    return summary


# Faults of a PUT: what comes of it, and how many PUTs it takes. Two would be two versions.
PUTS: dict[str, tuple[Fault, int, int]] = {
    "lost reply": (faults.lost_reply(), 0, 1),
    "lost by a reset": (faults.lost_reply(reset=True), 0, 1),
    "silent": (faults.silence(), 0, 1),
    "error after all": (faults.error_body(done=True), 0, 1),
    "error in a body": (faults.error_body(), 0, 2),
    "hung up": (faults.hang_up(), 0, 2),
    "failed": (faults.refuse(500, "InternalError"), 0, 2),
    "busy": (faults.slow_down("0"), 0, 2),
    "refused": (faults.refuse(403, "AccessDenied"), 1, 1),
    "no room": (faults.refuse(507, "InsufficientStorage"), 7, 1),
    "no ETag": (faults.header(etag=None), 0, 1),
}


@pytest.mark.parametrize("name", PUTS)
@pytest.mark.parametrize("threshold", [0, MIB], ids=["alone", "in a batch"])
@pytest.mark.parametrize("size", [1000, 3 * MIB])
def test_a_put_is_settled_and_not_repeated(
    server: HostileS3, disk: Path, name: str, threshold: int, size: int
) -> None:
    fault, code, puts = PUTS[name]
    server.on("PutObject", fault)
    assert upload(server, disk, LARGE[:size], small_file_threshold=threshold).exit_code == code
    assert server.count("PutObject") == puts


# Faults of the end of an upload in parts, and how often it is asked for.
ENDS: dict[str, tuple[Fault, int, int]] = {
    "error in a body": (faults.error_body(), 0, 2),
    "busy in a body": (faults.error_body("SlowDown"), 0, 2),
    "refused in a body": (faults.error_body("AccessDenied"), 1, 1),
    "error after all": (faults.error_body(done=True), 0, 1),
    "lost reply": (faults.lost_reply(), 0, 1),
    "lost by a reset": (faults.lost_reply(reset=True), 0, 1),
    "silent": (faults.silence(), 0, 1),
    "cut reply": (faults.cut(30), 0, 1),
    "a page": (faults.html, 0, 2),
    "hung up": (faults.hang_up(), 0, 2),
    "failed": (faults.refuse(500, "InternalError"), 0, 2),
    "refused": (faults.refuse(403, "AccessDenied"), 1, 1),
    "a part is missing": (faults.refuse(400, "InvalidPart"), 0, 2),
    "the sum is another": (faults.refuse(400, "BadDigest"), 0, 2),
}
# After these the whole file is sent once more.
ANEW = ("a part is missing", "the sum is another")


@pytest.mark.parametrize("name", ENDS)
def test_the_end_of_an_upload_is_settled_and_not_repeated(
    server: HostileS3, disk: Path, name: str
) -> None:
    fault, code, ends = ENDS[name]
    server.on("CompleteMultipartUpload", fault)
    assert upload(server, disk, LARGE).exit_code == code
    assert server.count("CompleteMultipartUpload") == ends
    assert server.count("CreateMultipartUpload") == 1 + (name in ANEW)


def test_what_keeps_not_adding_up_is_not_sent_a_third_time(server: HostileS3, disk: Path) -> None:
    server.on("CompleteMultipartUpload", faults.refuse(400, "BadDigest"), times=None)
    assert upload(server, disk, LARGE).exit_code == 4
    assert server.count("CreateMultipartUpload") == 2


@pytest.mark.parametrize("name", sorted(PUTS.keys() - {"no ETag"}))
def test_a_part_that_fails_is_sent_again(server: HostileS3, disk: Path, name: str) -> None:
    fault, code, _ = PUTS[name]
    server.on("UploadPart", fault, skip=1)
    assert upload(server, disk, LARGE).exit_code == code
    assert server.count("UploadPart") <= 4
    assert server.count("CreateMultipartUpload") == 1


@pytest.mark.parametrize("operation", ["UploadPart", "CompleteMultipartUpload"])
def test_what_keeps_failing_is_aborted(server: HostileS3, disk: Path, operation: str) -> None:
    """Even when the first try to do so fails."""
    server.on(operation, faults.refuse(500, "InternalError"), times=None)
    server.on("AbortMultipartUpload", faults.refuse(503, "SlowDown"))
    assert upload(server, disk, LARGE, resume=False).exit_code == 1
    assert server.count(operation) <= 9


def test_bytes_that_change_on_their_way_up_are_found(server: HostileS3, disk: Path) -> None:
    """By the server, which is told what they add up to."""

    def damage(request: Request, honest: Honest) -> Response:
        return honest(replace(request, body=b"x" + request.body[1:]))

    for size in (1000, len(LARGE)):
        server.on("PutObject", damage, times=None)
        server.on("UploadPart", damage, times=None)
        assert upload(server, disk, LARGE[:size]).exit_code in (4, 8)


# -- copies inside the service ---------------------------------------------------------------------------


def copy_within(server: HostileS3, data: bytes = b"newer") -> Summary:
    server.put("bucket", "from", data)
    server.put("bucket", "key", b"old")
    summary = fastsync.cp("s3://bucket/from", "s3://bucket/key", **QUICK)
    assert server.data("bucket", "key") == (data if summary.exit_code == 0 else b"old")
    assert server.open_uploads == []
    assert server.count("GetObject") == 0
    return summary


COPIES: dict[str, tuple[Fault, int]] = {
    "error in a body": (faults.error_body(), 0),
    "busy in a body": (faults.error_body("SlowDown"), 0),
    "refused in a body": (faults.error_body("AccessDenied"), 1),
    "error after all": (faults.error_body(done=True), 0),
    "lost reply": (faults.lost_reply(), 0),
    "failed": (faults.refuse(500, "InternalError"), 0),
    "hung up": (faults.hang_up(), 0),
    "a page": (faults.html, 0),
    "cut reply": (faults.cut(30), 0),
    "changed": (faults.refuse(412, "PreconditionFailed"), 8),
}


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("parts", [False, True])
def test_copies_are_made_or_not(
    server: HostileS3, monkeypatch: pytest.MonkeyPatch, name: str, *, parts: bool
) -> None:
    fault, code = COPIES[name]
    if parts:
        monkeypatch.setattr("fastsync_s3.copying.LARGEST_COPY", MIB)
        monkeypatch.setattr("fastsync_s3.copying.COPY_PART", 5 * MIB)
    server.on("UploadPartCopy" if parts else "CopyObject", fault, times=99 if code == 8 else 1)
    assert copy_within(server, LARGE if parts else b"newer").exit_code == code


@pytest.mark.parametrize("name", sorted(ENDS.keys() - {"lost reply"}))
def test_copies_of_parts_are_ended_or_dropped(
    server: HostileS3, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fault, code, _ = ENDS[name]
    monkeypatch.setattr("fastsync_s3.copying.LARGEST_COPY", MIB)
    monkeypatch.setattr("fastsync_s3.copying.COPY_PART", 5 * MIB)
    server.on("CompleteMultipartUpload", fault)
    assert copy_within(server, LARGE).exit_code == code


# -- redirects and secrets -------------------------------------------------------------------------------

TOKEN = "the-session-token-of-the-tests"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize(
    "call",
    [
        lambda disk: fastsync.cp("s3://bucket/key", disk / "file", **QUICK),
        lambda disk: fastsync.cp("s3://bucket/", disk, recursive=True, **QUICK),
        lambda disk: fastsync.cp("s3://bucket/key", disk / "file", **{**QUICK, "chunk_size": MIB}),
        lambda disk: fastsync.cp(disk / "large", "s3://bucket/new", **{**QUICK, **UP}),
        lambda disk: fastsync.cp(disk, "s3://bucket/new/", recursive=True, **QUICK),
        lambda disk: fastsync.cp("s3://bucket/key", "s3://bucket/new", **QUICK),
        lambda disk: fastsync.sync("s3://bucket/", disk, delete=True, **QUICK),
        lambda _disk: fastsync.rm("s3://bucket/key", **QUICK),
        lambda _disk: list(fastsync.ls("s3://bucket/")),
        lambda _disk: list(fastsync.ls("s3://")),
        lambda _disk: fastsync.mkdir("s3://made"),
    ],
    ids="range batch whole parts put copy sync rm ls buckets mkdir".split(),  # noqa: SIM905
)
@pytest.mark.parametrize("head", ["looks honestly", "sends away"])
def test_nobody_is_sent_to_another_host(
    server: HostileS3,
    trap: HostileS3,
    disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: Callable[[Path], Any],
    status: int,
    head: str,
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    (disk / "large").write_bytes(LARGE)
    server.put("bucket", "key", CONTENT)
    for operation in ("Get*", "Put*", "Copy*", "Create*", "Upload*", "Delete*", "ListBuckets"):
        server.on(operation, faults.redirect(trap.endpoint, status), times=None)
    if head == "sends away":
        server.on("*", faults.redirect(trap.endpoint, status), times=None)
    try:
        code = getattr(call(disk), "exit_code", 0)
    except FastsyncError as error:
        code = error.exit_code
    assert trap.requests == []
    expected = {5, 3} if head == "sends away" else {0, 3, 5}
    assert code in expected
    assert server.keys("bucket") == ["key"]
    assert [path.name for path in disk.iterdir()] == ["large"]


SECRETS = ("a-secret-of-the-tests-alone", TOKEN)


@pytest.mark.parametrize(
    "arguments",
    [
        ("cp", "s3://bucket/key", "there"),
        ("cp", "here", "s3://bucket/new"),
        ("cp", "-c", "5M", "large", "s3://bucket/new"),
        ("cp", "s3://bucket/key", "s3://bucket/new"),
        ("sync", "--delete", "s3://bucket/", "there/"),
        ("ls", "s3://bucket/"),
        ("ls", "s3://"),
        ("mkdir", "s3://made"),
        ("rm", "s3://bucket/key"),
        ("stat", "s3://bucket/key"),
        ("cat", "s3://bucket/key"),
    ],
    ids=" ".join,
)
def test_no_failure_tells_a_secret(
    server: HostileS3, fastsync: Fastsync, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """Not even a server that says back what it was sent, with everything on that is said at all."""

    def echo(request: Request, _honest: Honest) -> Response:
        said = " ".join(f"{name}: {value}" for name, value in request.headers.items())
        return error(400, "InvalidArgument", said)

    server.put("bucket", "key", CONTENT)
    server.on("*", echo, times=None)
    (tmp_path / "here").write_bytes(CONTENT)
    (tmp_path / "large").write_bytes(LARGE)
    fastsync.environ |= {**server.environ, "AWS_SESSION_TOKEN": TOKEN}
    log = tmp_path / "log"
    said: list[str] = []
    if arguments[0] in ("cp", "sync", "rm"):
        said = ["--json", "-vv", "--log-file", str(log), "--log-level", "debug"]
    done = fastsync(*arguments, *said)
    assert done.code not in (0, 2), done
    told = done.stdout + done.stderr + (log.read_text() if log.exists() else "")
    for secret in SECRETS:
        assert secret not in told


# -- whatever ends a run ---------------------------------------------------------------------------------


@pytest.fixture
def command(server: HostileS3, fastsync: Fastsync, tmp_path: Path) -> Fastsync:
    fastsync.environ |= server.environ
    return fastsync


def jobs(command: Fastsync) -> list[dict[str, Any]]:
    done = command("jobs", "list", "--json")
    assert (done.code, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


Start = Callable[..., "subprocess.Popen[bytes]"]
Eventually = Callable[[Callable[[], object]], None]
BIG = noise(MIB) * 16 + b"the end"


@pytest.mark.parametrize(
    ("number", "crc"),
    [
        (signal.SIGKILL, False),
        (signal.SIGKILL, True),
        (signal.SIGINT, False),
        (signal.SIGTERM, True),
    ],
)
def test_an_upload_goes_on_where_it_was_cut_off(
    server: HostileS3,
    command: Fastsync,
    started: Start,
    eventually: Eventually,
    tmp_path: Path,
    number: signal.Signals,
    *,
    crc: bool,
) -> None:
    """By what the server says of its parts: a CRC, or an MD5."""
    (tmp_path / "big").write_bytes(BIG)
    if crc:
        knows = faults.header(x_amz_checksum_algorithm="CRC64NVME")
        server.on("CreateMultipartUpload", knows, times=None)
    server.on("UploadPart", faults.silence(), skip=2, times=None)
    arguments = ("cp", "-c", "5M", "--stall-timeout", "30", "big", "s3://bucket/big")
    process = started(*arguments)
    eventually(lambda: server.count("UploadPart") == 4)
    time.sleep(0.7)  # what is written down every half second
    process.send_signal(number)
    assert process.wait(10) in (-9, 128 + number)
    (job,) = jobs(command)
    assert (job["destination"], job["state"]) == ("s3://bucket/big", "gone")
    assert server.open_uploads == ["big"]
    # The fault was in the answers: all parts but those are known to the server.
    (upload,) = server.objects.uploads.values()
    missing = [number for number in range(1, 5) if number not in upload.parts]
    missing.append(upload.parts.popitem()[0])
    server.behave()
    server.requests.clear()
    assert command(*arguments) == (0, "", "")
    assert server.data("bucket", "big") == BIG
    sent = sorted(int(seen.query["partNumber"]) for seen in server.seen("UploadPart"))
    assert sent == sorted(missing)
    assert server.count("CreateMultipartUpload") == 0
    assert (server.open_uploads, jobs(command)) == ([], [])


@pytest.mark.parametrize("how", ["run again", "run again as it is not", "clean"])
def test_an_upload_that_nobody_heard_of_is_found(
    server: HostileS3,
    command: Fastsync,
    started: Start,
    eventually: Eventually,
    tmp_path: Path,
    how: str,
) -> None:
    """The server began it, and the process was killed before the answer came. What others began stays."""
    (tmp_path / "big").write_bytes(BIG)
    theirs = [
        Upload("bucket", "big", {}, None, "COMPOSITE", begun_s=time.time() - 3600),
        Upload("bucket", "big", {}, None, "COMPOSITE", {1: Stored(b"x", "e")}),
        Upload("bucket", "big/2", {}, None, "COMPOSITE"),
    ]
    server.objects.uploads.update((f"theirs-{n}", one) for n, one in enumerate(theirs))
    server.on("CreateMultipartUpload", faults.silence())
    arguments = ["cp", "-c", "5M", "big", "s3://bucket/big"]
    process = started(*arguments)
    eventually(lambda: len(server.objects.uploads) == len(theirs) + 1)
    process.kill()
    process.wait(10)
    (job,) = jobs(command)
    assert (job["destination"], job["state"]) == ("s3://bucket/big", "gone")
    if how == "clean":
        assert command("jobs", "clean").code == 0
    else:
        more = ["--no-resume"] if how == "run again as it is not" else []
        assert command(*arguments, *more) == (0, "", "")
        assert server.data("bucket", "big") == BIG
    assert jobs(command) == []
    assert list(server.objects.uploads.values()) == theirs


def test_an_upload_whose_beginning_is_not_answered_is_dropped(
    server: HostileS3, command: Fastsync, tmp_path: Path
) -> None:
    (tmp_path / "big").write_bytes(BIG)
    server.on("CreateMultipartUpload", faults.lost_reply(), times=2)
    assert command("cp", "-c", "5M", "big", "s3://bucket/big") == (0, "", "")
    assert (server.data("bucket", "big"), server.open_uploads, jobs(command)) == (BIG, [], [])
    server.on("CreateMultipartUpload", faults.refuse(403, "AccessDenied"), times=None)
    assert command("cp", "-c", "5M", "big", "s3://bucket/other").code == 1
    assert jobs(command) == [], "what was refused has not begun"


@pytest.mark.parametrize("change", ["content", "time", "header", "no resume", "gone"])
def test_an_upload_of_something_else_is_begun_anew(
    server: HostileS3,
    command: Fastsync,
    started: Start,
    eventually: Eventually,
    tmp_path: Path,
    change: str,
) -> None:
    """And the old one is dropped; parts whose bytes are others are sent again."""
    file = tmp_path / "big"
    file.write_bytes(BIG)
    os.utime(file, (10**9, 10**9))
    rule = server.on("UploadPart", faults.silence(), skip=2, times=None)
    arguments = ["cp", "-c", "5M", "--stall-timeout", "30", "big", "s3://bucket/big"]
    process = started(*arguments)
    eventually(lambda: rule.hits == 2)
    time.sleep(0.7)
    process.kill()
    process.wait()
    server.behave()
    server.requests.clear()
    content = BIG
    if change == "content":
        content = b"x" + BIG[1:]
        file.write_bytes(content)
        os.utime(file, (10**9, 10**9))
    elif change == "time":
        os.utime(file, (10**9, 10**9 + 1))
    elif change == "header":
        arguments[1:1] = ["--content-type", "text/plain"]
    elif change == "no resume":
        arguments[1:1] = ["--no-resume"]
    else:
        server.objects.uploads.clear()
    assert command(*arguments) == (0, "", "")
    assert server.data("bucket", "big") == content
    assert (server.open_uploads, jobs(command)) == ([], [])


@pytest.mark.parametrize(
    "again",
    [["cp"], ["cp", "-c", "8M"], ["jobs", "resume"], ["cp", "--bwlimit", "30MiB"]],
    ids=" ".join,
)
def test_an_upload_goes_on_in_the_parts_that_it_was_begun_with(
    server: HostileS3,
    command: Fastsync,
    started: Start,
    eventually: Eventually,
    tmp_path: Path,
    again: list[str],
) -> None:
    """Also where this run would take others, because its limit is another one."""
    (tmp_path / "big").write_bytes(BIG)
    server.on("UploadPart", faults.silence(), skip=2, times=None)
    places = ["big", "s3://bucket/big"]
    process = started("cp", "--bwlimit", "20MiB", "--stall-timeout", "30", *places)
    eventually(lambda: any(len(one.parts) == 4 for one in server.objects.uploads.values()))
    time.sleep(0.7)
    process.kill()
    process.wait()
    (upload,) = server.objects.uploads.values()
    missing = len(upload.parts.popitem()[1].data)
    server.behave()
    server.requests.clear()
    done = command(*again, "--json", *([] if "resume" in again else places))
    assert (done.code, json.loads(done.stdout.splitlines()[-1])["bytes_sent"]) == (0, missing)
    assert server.data("bucket", "big") == BIG
    assert (server.count("CreateMultipartUpload"), server.count("UploadPart")) == (0, 1)
    assert (server.open_uploads, jobs(command)) == ([], [])


def test_a_download_goes_on_where_it_was_cut_off(
    server: HostileS3, command: Fastsync, started: Start, eventually: Eventually, tmp_path: Path
) -> None:
    server.put("bucket", "big", BIG)
    server.on("GetObject", faults.stall(MIB), skip=2, times=None)
    arguments = ("cp", "-c", "5M", "--stall-timeout", "30", "s3://bucket/big", "big")
    process = started(*arguments)
    eventually(lambda: server.count("GetObject") == 4)
    time.sleep(1.2)
    process.kill()
    process.wait()
    assert not (tmp_path / "big").exists()
    server.behave()
    server.requests.clear()
    assert command(*arguments) == (0, "", "")
    assert (tmp_path / "big").read_bytes() == BIG
    ranges = [seen.headers["range"][6:].split("-") for seen in server.seen("GetObject")]
    fetched = sum(int(stop) + 1 - int(start) for start, stop in ranges)
    assert fetched <= len(BIG) - 10 * MIB
    assert jobs(command) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_end_that_is_being_heard_out(
    server: HostileS3,
    command: Fastsync,
    started: Start,
    eventually: Eventually,
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    """Whoever interrupts while the parts are put together gets the whole object, or none, and no upload
    that nobody knows of."""
    (tmp_path / "big").write_bytes(LARGE)
    server.on("CompleteMultipartUpload", faults.no_answer())
    process = started("cp", "-c", "5M", "big", "s3://bucket/big")
    eventually(lambda: server.count("CompleteMultipartUpload"))
    process.send_signal(number)
    assert process.wait(10) == 128 + number
    assert server.data("bucket", "big") == LARGE
    assert command("jobs", "clean") == (0, "", "")
    assert (server.open_uploads, jobs(command)) == ([], [])


# -- patience --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("many", [False, True], ids=["parts", "files"])
def test_a_burst_of_refusals_is_answered_by_fewer_requests(
    server: HostileS3, disk: Path, *, many: bool
) -> None:
    """Half as many at a time, and all of it arrives."""
    content = noise(64 * PART)
    for number in range(64):
        server.put("bucket", f"many/{number}", content[:PART])
    server.put("bucket", "one", content)

    def answer(request: Request, honest: Honest) -> Response:
        return replace(honest(request), stall_at=10, stall_s=0.05)

    server.on("GetObject", faults.slow_down("1"), times=16)
    server.on("GetObject", answer, times=None)
    place = "s3://bucket/many/" if many else "s3://bucket/one"
    quick = {**QUICK, "parallel_streams": 16, "recursive": True}
    threshold = MIB if many else 0
    summary = fastsync.cp(place, disk / "to", **{**quick, "small_file_threshold": threshold})
    assert summary.exit_code == 0
    refused = [seen for seen in server.seen("GetObject") if seen.status == 503]
    later = [seen for seen in server.seen("GetObject") if seen.status != 503]
    assert len(refused) == 16
    begun = sorted(seen.time_s for seen in later)
    # Those that begin within the time that one takes, a while after the burst.
    crowd = [sum(at <= other < at + 0.04 for other in begun) for at in begun[:16]]
    assert max(crowd) <= 12


@pytest.mark.parametrize("operation", ["GetObject", "PutObject"])
@pytest.mark.parametrize("skip", [0, 10])
def test_credentials_that_expire_on_the_way_are_renewed(
    server: HostileS3, command: Fastsync, tmp_path: Path, operation: str, skip: int
) -> None:
    """Those of a process, with hours to live by their own account: the server knows better."""
    for number in range(40):
        server.put("bucket", f"{number:02}", bytes([number]) * PART)
    calls, program = tmp_path / "calls", tmp_path / "credentials"
    told = '{"Version": 1, "AccessKeyId": "AKIA%s", "SecretAccessKey": "s3cr3ts3cr3t",'
    told += ' "SessionToken": "t0k3nt0k3n", "Expiration": "2099-01-01T00:00:00Z"}'
    program.write_text(f"#!/bin/sh\necho >> {calls}\nprintf '{told}' \"$(grep -c '' {calls})\"\n")
    program.chmod(0o700)
    (tmp_path / "aws").write_text(f"[default]\ncredential_process = {program}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del command.environ[name]
    command.environ["AWS_CONFIG_FILE"] = str(tmp_path / "aws")

    def judge(request: Request, honest: Honest) -> Response:
        if "AKIA1/" in request.headers["authorization"]:
            return error(400, "ExpiredToken", "The provided token has expired.")
        return honest(request)

    server.on(operation, judge, skip=skip, times=None)
    for source, to in (("s3://bucket/", "to"), ("to/", "s3://bucket/up")):
        calls.unlink(missing_ok=True)
        done = command("cp", "-R", "-p", "4", source, to)
        assert (done.code, done.stderr) == (0, "")
        expired = (operation == "GetObject") == (to == "to")
        assert calls.read_text().count("\n") == 1 + expired
    assert len(list((tmp_path / "to").iterdir())) == 40
    assert len(server.keys("bucket")) == 80
    # What went well is not sent again.
    assert server.count(operation) <= 80 - skip


def told_by(offset_s: float) -> Fault:
    """A server whose clock differs, and which answers nobody whose clock is another."""

    def judge(request: Request, honest: Honest) -> Response:
        now = datetime.now(UTC) + timedelta(seconds=offset_s)
        at = datetime.strptime(request.headers["x-amz-date"], "%Y%m%dT%H%M%S%z")
        is_late = abs(now - at) > timedelta(minutes=15)
        answer = error(403, "RequestTimeTooSkewed", "too late") if is_late else honest(request)
        return answer.having(date=format_datetime(now, usegmt=True))

    return judge


@pytest.mark.parametrize("offset_s", [-1200, 86400])
@pytest.mark.parametrize("threshold", [0, MIB], ids=["parts", "in a batch"])
def test_a_clock_that_differs_is_followed(
    server: HostileS3, disk: Path, offset_s: float, threshold: int
) -> None:
    """Each request is signed at the server's time, once it has told it."""
    server.on("*", told_by(offset_s), times=None)
    assert upload(server, disk, CONTENT, small_file_threshold=threshold).exit_code == 0
    assert download(server, disk, small_file_threshold=threshold).exit_code == 0
    assert 1 <= sum(seen.status == 403 for seen in server.requests) < 6


@pytest.mark.parametrize("code", ["RequestTimeTooSkewed", "ExpiredToken"])
def test_who_is_not_let_in_any_more_stops(server: HostileS3, disk: Path, code: str) -> None:
    """Nothing can be renewed: what was done stays, nothing more is begun, and nothing is deleted."""
    for number in range(200):
        server.put("bucket", f"{number:03}", CONTENT)
    (disk / "mine").write_text("mine")
    server.on("GetObject", faults.refuse(403, code), skip=20, times=None)
    summary = fastsync.sync("s3://bucket", disk, delete=True, **{**QUICK, "chunk_size": MIB})
    assert summary.exit_code == 5
    assert (summary.kept is not None, (disk / "mine").exists()) == (True, True)
    whole = [path for path in disk.iterdir() if path.name != "mine"]
    assert len(whole) > 5
    assert all(path.read_bytes() == CONTENT for path in whole)
    assert server.count("GetObject") < 100


@pytest.fixture
def drop_box(server: HostileS3) -> HostileS3:
    """A bucket of which the credentials allow to write objects, and nothing else."""
    for operation in ("Get*", "Head*", "List*"):
        server.on(operation, faults.refuse(403, "AccessDenied"), times=None)
    return server


def test_who_may_only_write_writes(drop_box: HostileS3, disk: Path) -> None:
    (disk / "a").write_bytes(CONTENT)
    for parts in ({}, QUICK):
        assert fastsync.cp(str(disk / "a"), "s3://bucket/b", **parts).exit_code == 0
        assert drop_box.data("bucket", "b") == CONTENT
    assert fastsync.cp(str(disk / "a"), "s3://bucket/").exit_code == 0
    (disk / "a").write_bytes(OTHER)
    skipped = fastsync.cp(str(disk / "a"), "s3://bucket/a", ignore_existing=True)
    assert (skipped.exit_code, skipped.totals.files_skipped) == (0, 1)
    assert drop_box.data("bucket", "a") == CONTENT


@pytest.mark.parametrize("option", [{"update": True}, {"existing": True}, {"backup_dir": "gone"}])
def test_what_needs_a_look_is_refused_to_who_may_only_write(
    drop_box: HostileS3, disk: Path, option: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(disk)
    (disk / "a").write_bytes(CONTENT)
    drop_box.put("bucket", "a", OTHER)
    error = failure(fastsync.cp(str(disk / "a"), "s3://bucket/a", **option))
    assert "access denied" in str(error)
    assert drop_box.data("bucket", "a") == OTHER


def test_what_is_refused_is_said_in_words_and_of_each_object(server: HostileS3) -> None:
    for key in "ab":
        server.put("bucket", f"d/{key}", CONTENT)
    server.on("Delete*", faults.refuse(403, "AccessDenied", "Access Denied."), times=None)
    summary = fastsync.rm(["s3://bucket/d/a", "s3://bucket/d/b"])
    assert [str(one.error).partition(" (")[0] for one in summary.failures] == [
        f"s3://bucket/d/{key}: could not delete objects in the bucket: access denied"
        for key in "ab"
    ]
