"""Servers that lack a call, what goes along with copies, hostile keys, and the manners of connections."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hostile_s3 as faults
import pytest
from hostile_s3 import Fault, HostileS3

import fastsync
from fastsync.backend import ScanOptions, StoreOptions
from fastsync.errors import FastsyncError
from fastsync.location import parse
from fastsync.testing.vocabulary import noise
from fastsync_s3.backend import S3Backend

if TYPE_CHECKING:
    from tests.conftest import Fastsync

MIB = 1 << 20
QUICK: dict[str, Any] = {"retry_count": 1, "stall_timeout": 1.0, "request_timeout": 1.0}
MISSING: Fault = faults.refuse(501, "NotImplemented")


@pytest.fixture
def server(hostile_s3: HostileS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HostileS3:
    for name, value in {**hostile_s3.environ, "HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(name, value)
    hostile_s3.make_bucket("bucket")
    return hostile_s3


# -- what a server lacks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [MISSING, faults.answer_v1], ids=["refuses", "does not know"])
def test_listings_of_version_1(server: HostileS3, tmp_path: Path, way: Fault) -> None:
    """A server that only has the first version of listings is found out, once, and listed to its end."""
    names = [f"d{number % 3}/{number:04}" for number in range(2500)]
    for name in names:
        server.put("bucket", name)
    server.on("ListObjectsV2", way, times=None)
    entries = list(fastsync.ls("s3://bucket/", recursive=True))
    assert sorted(entry.path for entry in entries if entry.kind == "file") == sorted(names)
    assert server.count("ListObjectsV2") <= 3
    (tmp_path / "d0").mkdir()
    (tmp_path / "d0/0000").touch()
    summary = fastsync.sync(
        tmp_path, "s3://bucket/", delete=True, max_delete="100%", size_only=True, **QUICK
    )
    assert (summary.totals.deleted, summary.exit_code) == (2499, 0)
    assert server.keys("bucket") == ["d0/0000"]


@pytest.mark.parametrize("operation", ["PutObject", "DeleteObject"])
@pytest.mark.parametrize("fault", [faults.lost_reply(), faults.hang_up()], ids=["done", "not done"])
def test_a_probe_for_conditions_leaves_nothing(
    server: HostileS3, tmp_path: Path, operation: str, fault: Fault
) -> None:
    """Whichever of its answers gets lost."""
    (tmp_path / "a").write_bytes(b"content")
    server.on(operation, fault, times=2)
    options: dict[str, Any] = {"fail_on_conflict": True, "retry_count": 5}
    copies = (fastsync.cp(str(tmp_path / "a"), "s3://bucket/a", **options) for _ in range(3))
    assert any(copy.exit_code == 0 for copy in copies)
    assert server.keys("bucket") == ["a"]


def test_deletes_one_by_one(server: HostileS3) -> None:
    for number in range(150):
        server.put("bucket", f"{number}")
    server.on("DeleteObjects", MISSING, times=None)
    assert fastsync.rm("s3://bucket/", recursive=True, **QUICK).totals.deleted == 150
    assert (server.count("DeleteObjects"), server.count("DeleteObject")) == (1, 150)
    assert server.keys("bucket") == []


def test_deletes_that_fail_in_part(server: HostileS3) -> None:
    """200, and for some keys an error: each is told, and tried again if it may pass."""
    for name in "abcd":
        server.put("bucket", name)
    text = "<DeleteResult><Deleted><Key>a</Key></Deleted>"
    text += "<Error><Key>b</Key><Code>AccessDenied</Code><Message>no</Message></Error>"
    text += "<Error><Key>c</Key><Code>InternalError</Code><Message>later</Message></Error>"
    server.on("DeleteObjects", faults.body(lambda _data: f"{text}</DeleteResult>".encode()))
    summary = fastsync.rm("s3://bucket/", recursive=True, **QUICK)
    assert (summary.totals.deleted, summary.totals.failed, summary.exit_code) == (3, 1, 1)
    (failed,) = summary.failures
    assert failed.path == "b"


# -- what goes along -------------------------------------------------------------------------------------

OPTIONS: dict[str, Any] = {
    "sse": "aws:kms",
    "sse_kms_key_id": "arn:aws:kms:key/1",
    "storage_class": "STANDARD_IA",
    "request_payer": "requester",
}
SENT = {
    "x-amz-server-side-encryption": "aws:kms",
    "x-amz-server-side-encryption-aws-kms-key-id": "arn:aws:kms:key/1",
    "x-amz-storage-class": "STANDARD_IA",
}


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("asked", [False, True])
def test_class_encryption_and_payer_go_along_with_copies(
    server: HostileS3, monkeypatch: pytest.MonkeyPatch, *, parts: bool, asked: bool
) -> None:
    """Those that were asked for, else those of the source; whoever pays, pays for each request."""
    if parts:
        monkeypatch.setattr("fastsync_s3.copying.LARGEST_COPY", MIB)
        monkeypatch.setattr("fastsync_s3.copying.COPY_PART", 5 * MIB)
    data = noise(MIB) * 6
    server.put("bucket", "from", data, {} if asked else SENT)
    options = OPTIONS if asked else {"request_payer": "requester"}
    assert fastsync.cp("s3://bucket/from", "s3://bucket/to", **QUICK, **options).exit_code == 0
    assert server.data("bucket", "to") == data
    (made,) = server.seen("CreateMultipartUpload" if parts else "CopyObject")
    assert made.headers.items() >= SENT.items()
    assert {seen.headers.get("x-amz-request-payer") for seen in server.seen()} == {"requester"}
    assert server.count("GetObject") == 0


LOST = {
    "lost reply": (faults.lost_reply(), 1),
    "lost by a reset": (faults.lost_reply(reset=True), 1),
    "silent": (faults.silence(), 1),
    "hung up": (faults.hang_up(), 2),
}


@pytest.mark.parametrize("name", LOST)
@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("guarded", [False, True])
def test_a_copy_is_settled_and_not_repeated(
    server: HostileS3, monkeypatch: pytest.MonkeyPatch, name: str, *, parts: bool, guarded: bool
) -> None:
    """When the answer to its end gets lost: the second one would be a second version, or refused."""
    fault, times = LOST[name]
    if parts:
        monkeypatch.setattr("fastsync_s3.copying.LARGEST_COPY", MIB)
        monkeypatch.setattr("fastsync_s3.copying.COPY_PART", 5 * MIB)
    end = "CompleteMultipartUpload" if parts else "CopyObject"
    data = noise(MIB) * 6
    server.put("bucket", "from", data, {"x-amz-meta-colour": "green"})
    server.on(end, fault)
    copied = fastsync.cp("s3://bucket/from", "s3://bucket/to", **QUICK, fail_on_conflict=guarded)
    assert copied.exit_code == 0
    assert server.data("bucket", "to") == data
    assert server.headers("bucket", "to")["x-amz-meta-colour"] == "green"
    assert server.count(end) == times
    assert server.open_uploads == []


def test_a_copy_that_did_not_happen_is_not_taken_for_one(server: HostileS3) -> None:
    """The same bytes stood there, with other metadata."""
    server.put("bucket", "from", b"data", {"x-amz-meta-colour": "green"})
    server.put("bucket", "to", b"data", {"x-amz-meta-colour": "red"})
    server.on("CopyObject", faults.hang_up())
    options = {**QUICK, "ignore_times": True}
    assert fastsync.cp("s3://bucket/from", "s3://bucket/to", **options).exit_code == 0
    assert server.headers("bucket", "to")["x-amz-meta-colour"] == "green"
    assert server.count("CopyObject") == 2


@pytest.mark.parametrize("buckets", [("bucket", "bucket"), ("bucket", "second")])
def test_mv_moves_at_the_server(server: HostileS3, buckets: tuple[str, str]) -> None:
    """Within a bucket and to another one: no byte passes here, and nothing goes before its copy is there."""
    one, two = buckets
    server.make_bucket(two)
    for name in ("a", "d/b", "d/c"):
        server.put(one, f"from/{name}", name.encode())
    server.on("CopyObject", faults.refuse(403, "AccessDenied"), key="to/d/b", times=None)
    summary = fastsync.mv(f"s3://{one}/from/", f"s3://{two}/to/", **QUICK)
    assert (summary.totals.files_copied, summary.totals.failed) == (2, 1)
    assert server.count("GetObject") == server.count("PutObject") == 0
    left = {key for key in server.keys(one) if key.startswith("from/")}
    assert left == {"from/d/b"}
    assert {key for key in server.keys(two) if key.startswith("to/")} == {"to/a", "to/d/c"}


# -- keys ------------------------------------------------------------------------------------------------

# With what of them lands on a disk, if anything.
KEYS: dict[str, str | None] = {
    "p/../../escape": None,
    "p/..": None,
    "p/./here": None,
    "p//etc/passwd": None,
    "p/a//b": None,
    "p/nul\x00byte": None,
    "p/" + "x" * 300: None,
    "p/new\nline": "new\nline",
    "p/\x1b[31mred": "\x1b[31mred",
    "p/\N{RIGHT-TO-LEFT OVERRIDE}txt.exe": "\N{RIGHT-TO-LEFT OVERRIDE}txt.exe",
    "p/..\\up": "..\\up",
    "p/good": "good",
}


@pytest.mark.parametrize("verb", ["cp", "sync"])
def test_keys_that_no_disk_takes_are_refused_one_by_one(
    server: HostileS3, fastsync: Fastsync, tmp_path: Path, verb: str
) -> None:
    for key in KEYS:
        server.put("bucket", key, b"hostile")
    fastsync.environ |= server.environ
    root = tmp_path / "deep/down/to"
    root.mkdir(parents=True)
    (root / "mine").touch()
    options = ("-R",) if verb == "cp" else ("--delete", "--max-delete", "100%")
    done = fastsync(verb, *options, "--summarize", "s3://bucket/p/", str(root))
    refused = sum(name is None for name in KEYS.values())
    assert done.code == 1
    assert f"Failed: {refused} files" in done.stdout
    landed = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert landed == {"mine", *filter(None, KEYS.values())}
    outside = {
        path.name for path in tmp_path.rglob("*") if path.is_file() and root not in path.parents
    }
    assert not outside & {"escape", "passwd", "b", "here"}
    assert "\x1b" not in done.stderr + done.stdout
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in done.stderr + done.stdout


def test_wildcards_stop_at_slashes_and_two_stars_do_not(server: HostileS3) -> None:
    for key in ("logs/a.gz", "logs/b/c.gz", "logs/b/d/e.gz", "logs/b.txt"):
        server.put("bucket", key)

    def meant(pattern: str) -> int:
        return fastsync.rm(f"s3://bucket/{pattern}", dry_run=True, **QUICK).totals.deleted

    assert meant("logs/*.gz") == 1
    assert meant("logs/*/*.gz") == 1
    assert meant("logs/**.gz") == 3
    assert meant("logs/**/*.gz") == 3


# -- connections -----------------------------------------------------------------------------------------


async def test_connections_notice_a_dead_peer_and_do_not_outlive_their_use(
    server: HostileS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = S3Backend()
    store: Any = await backend.connect(parse("s3://bucket/"), StoreOptions(stall_timeout_s=7))
    assert [page async for page in store.scan(ScanOptions())] == []
    (idle,) = store.plane.wire._idle
    assert idle.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert idle.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000
    assert store.plane.wire.options.idle_s <= 30
    # An old one is not used again.
    idle.idle_since -= 31
    assert [page async for page in store.scan(ScanOptions())] == []
    assert len({seen.connection for seen in server.seen()}) == 2
    await backend.aclose()


async def test_what_asks_for_credentials_has_the_same_manners(
    server: HostileS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One try of its own, sockets that notice a dead peer, and connections that are soon closed."""
    from fastsync_s3 import control

    options: list[tuple[int, int]] = []
    plain = control._socket

    def noted(timeout_s: float, address: tuple[Any, ...]) -> socket.socket:
        made = plain(timeout_s, address)
        keepalive = made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        options.append((keepalive, made.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)))
        return made

    monkeypatch.setattr(control, "_socket", noted)
    (tmp_path / "token").write_text("web-identity")
    (tmp_path / "aws").write_text(
        "[default]\nregion = us-east-1\nrole_arn = arn:aws:iam::1:role/x\n"
        f"web_identity_token_file = {tmp_path / 'token'}\n"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", server.endpoint)
    backend = S3Backend()
    store: Any = await backend.connect(parse("s3://bucket/"), StoreOptions(request_timeout_s=9))
    with pytest.raises(FastsyncError):
        await store.stat("x")
    await backend.aclose()
    assert options == [(1, 9000)]
    assert server.connections == 1
    await asyncio.sleep(0)
