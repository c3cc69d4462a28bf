"""The S3 store keeps the contract, on servers that differ: moto, rclone, versitygw, plain and TLS."""

from __future__ import annotations

import asyncio
import itertools
import os
from pathlib import Path
from typing import Any

import pytest
from s3_servers import S3Server

from fastsync.backend import (
    Backend,
    Entry,
    Loaded,
    LocalUpload,
    ScanOptions,
    Sink,
    Source,
    StoreOptions,
    WriteOptions,
)
from fastsync.errors import Conflict, NotFound, UsageError
from fastsync.location import Location, parse
from fastsync.testing import StoreConformance
from fastsync_s3.backend import S3Backend
from fastsync_s3.checksums import Expected
from fastsync_s3.download import S3Download
from fastsync_s3.store import S3Store

MIB = 1 << 20
MTIME = 1_700_000_000_987_654_321


def settings(server: S3Server, **more: str) -> dict[str, str]:
    """What a configuration file would say of the server's places."""
    return {
        "endpoint_url": server.endpoint,
        "access_key_id": server.access_key,
        "secret_access_key": server.secret_key,
        "region": "us-east-1",
        **more,
    }


class Placed(S3Backend):
    """The protocol with the settings of one server, whatever the caller's options say."""

    def __init__(self, server: S3Server, **more: str) -> None:
        super().__init__()
        self._place = settings(server, **more)

    async def connect(self, location: Location, options: StoreOptions) -> Source:
        import dataclasses

        options = dataclasses.replace(options, place={**self._place, **options.place})
        return await super().connect(location, options)


class S3Conformance(StoreConformance):
    server: S3Server

    async def make_root(self, tmp_path: Path) -> tuple[Backend, Location]:
        bucket = await asyncio.to_thread(self.server.new_bucket)
        return Placed(self.server), parse(f"s3://{bucket}/")


def _name_of(request: pytest.FixtureRequest) -> str:
    """The name that a test of the suite is about, if it is about one."""
    name = request.node.callspec.params.get("name") if hasattr(request.node, "callspec") else ""
    return name if isinstance(name, str) else ""


class TestMoto(S3Conformance):
    @pytest.fixture(autouse=True)
    def _server(self, moto: S3Server, request: pytest.FixtureRequest) -> None:
        self.server = moto
        if {"\n", "\x1b"} & set(_name_of(request)):
            pytest.skip("moto answers control characters with XML that is none, or loses them")

    async def test_a_guarded_write_over_what_was_listed(self, sink: Sink) -> None:
        pytest.skip("moto does not check If-Match when an upload is completed")

    async def test_foreseen_uploads(self, sink: Sink) -> None:
        pytest.skip("moto says of every upload that it was begun in 2010")


class OnVersitygw(S3Conformance):
    @pytest.fixture(autouse=True)
    def _skip(self, request: pytest.FixtureRequest) -> None:
        name = _name_of(request)
        if len(name) > 255 or "\x1b" in name:
            pytest.skip("versitygw keeps objects as files, and lists control characters as others")


class TestVersitygw(OnVersitygw):
    @pytest.fixture(autouse=True)
    def _server(self, versitygw: S3Server) -> None:
        self.server = versitygw


class TestVersitygwTls(OnVersitygw):
    @pytest.fixture(autouse=True)
    def _server(self, versitygw_tls: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = versitygw_tls
        monkeypatch.setenv("AWS_CA_BUNDLE", str(versitygw_tls.authority))


# -- what the contract does not say -----------------------------------------------------------------


_places = itertools.count()


@pytest.fixture
async def store(versitygw: S3Server) -> Any:
    backend = Placed(versitygw)
    bucket = await asyncio.to_thread(versitygw.new_bucket)
    opened = await backend.connect(parse(f"s3://{bucket}/"), StoreOptions())
    yield opened
    await opened.aclose()
    await backend.aclose()


async def put(store: S3Store, path: str, content: bytes, **more: Any) -> Entry:
    """One object, as the engine writes it."""
    like = Entry(path, "file", len(content), MTIME, 0o640)
    part = max(store.limits.min_part, 5 * MIB)
    upload = await store.upload(path, like, WriteOptions(**more), part)
    try:
        for start in range(0, len(content), part):
            await upload.write(start, content[start : start + part])
        return await upload.commit(len(content))
    finally:
        await upload.abort()


async def listed(store: Source, **options: Any) -> list[Entry]:
    return [entry async for page in store.scan(ScanOptions(**options)) for entry in page.entries]


async def test_metadata_that_others_read(store: S3Store, versitygw: S3Server) -> None:
    """Time and mode are where rclone and s3fs look for them; the type goes by the name."""
    await put(store, "page.html", b"<p>")
    head = await asyncio.to_thread(
        versitygw.client.head_object, Bucket=store.plane.bucket, Key="page.html"
    )
    assert head["Metadata"] == {"mtime": "1700000000.987654321", "mode": "33184"}
    assert head["ContentType"] == "text/html"


async def test_a_multipart_upload_is_protected_by_a_checksum_of_the_whole(
    store: S3Store, versitygw: S3Server
) -> None:
    content = os.urandom(11 * MIB)
    await put(store, "large", content)
    head = await asyncio.to_thread(
        versitygw.client.head_object,
        Bucket=store.plane.bucket,
        Key="large",
        ChecksumMode="ENABLED",
    )
    assert head["ChecksumType"] == "FULL_OBJECT"
    assert head["ContentLength"] == len(content)
    entry = (await listed(store))[0]
    (load,) = await store.read_whole([entry])
    assert isinstance(load, Loaded)
    assert load.data == content


@pytest.mark.parametrize("size", [3, 11 * MIB])
async def test_nothing_is_left_of_an_upload_that_was_dropped(store: S3Store, size: int) -> None:
    """An abort leaves no parts behind, and a ticket leads a later process to what a kill left."""
    like = Entry("large", "file", size, MTIME)
    for ends in ("abort", "drop"):
        upload = await store.upload("large", like, WriteOptions(), 5 * MIB)
        await upload.write(0, b"x" * min(size, 5 * MIB))
        if ends == "abort" or upload.ticket is None:
            await upload.abort()
        else:
            await store.drop_upload(upload.ticket)
            await store.drop_upload(upload.ticket)  # gone already is fine
    client = store.plane
    from fastsync_s3.plane import Call

    reply = await client.ask(Call("GET", "", (("uploads", ""),)))
    assert b"<UploadId>" not in reply.body


async def test_what_comes_from_memory_is_written_down_before_it_comes(store: S3Store) -> None:
    """A part that has to be held until the end, and is too long for that, makes an upload of parts."""
    like, options = Entry("a", "file", 3 * MIB, MTIME), WriteOptions(from_memory=True)
    assert store.foresee_upload("a", like, WriteOptions(), 5 * MIB) is None
    foreseen = store.foresee_upload("a", like, options, 5 * MIB)
    assert foreseen is not None
    upload = await store.upload("a", like, options, 5 * MIB)
    assert upload.ticket is not None
    (found,) = await store.find_foreseen(foreseen, [])
    assert await store.find_foreseen(upload.ticket, []) == [upload.ticket]
    assert await store.find_foreseen(foreseen, [upload.ticket]) == [], "somebody else's"
    with pytest.raises(Conflict):
        await store.find_foreseen(foreseen, [foreseen])
    with pytest.raises(UsageError):
        await store.drop_upload(foreseen)
    await store.drop_upload(found)
    assert await store.find_foreseen(foreseen, []) == []


async def test_a_prefix_an_object_and_both(store: S3Store) -> None:
    """An object goes before a prefix of its name; a marker is a directory."""
    await put(store, "dir/file", b"content")
    await put(store, "both.txt", b"content")
    assert (await store.stat("dir")).kind == "dir"
    assert (await store.stat("both.txt")).kind == "file"
    with pytest.raises(NotFound):
        await store.stat("di")
    with pytest.raises(NotFound):
        await store.stat("nothing")


async def test_a_bucket_that_is_not_there(versitygw: S3Server) -> None:
    backend = Placed(versitygw)
    try:
        store = await backend.connect(parse("s3://no-such-bucket-here/"), StoreOptions())
        with pytest.raises(NotFound):
            await store.stat("")
    finally:
        await backend.aclose()


async def test_making_buckets(versitygw: S3Server) -> None:
    backend = Placed(versitygw)
    try:
        store = await backend.connect(parse(f"s3://made-{next(_places)}-here"), StoreOptions())
        assert isinstance(store, S3Store)
        await store.create_place()
        assert (await store.stat("")).kind == "dir"
        assert await listed(store) == []
        with pytest.raises(Conflict):
            await store.create_place()
        inner = await backend.connect(store.location.child("prefix"), StoreOptions())
        assert isinstance(inner, S3Store)
        with pytest.raises(UsageError):
            await inner.create_place()
        buckets = await backend.connect(parse("s3://"), StoreOptions())
        names = [entry.path for entry in await listed(buckets, recursive=False)]
        assert store.location.host in names
    finally:
        await backend.aclose()


async def test_versions(versitygw: S3Server) -> None:
    """Every version is listed, the newest first, and each can be read and deleted by itself."""
    bucket = await asyncio.to_thread(versitygw.new_bucket)
    await asyncio.to_thread(
        versitygw.client.put_bucket_versioning,
        Bucket=bucket,
        VersioningConfiguration={"Status": "Enabled"},
    )
    backend = Placed(versitygw)
    try:
        store = await backend.connect(parse(f"s3://{bucket}/"), StoreOptions())
        assert isinstance(store, S3Store)
        for content in (b"first", b"second"):
            await put(store, "file", content)
        await store.delete([await store.stat("file")])
        pages = [page async for page in store.scan_versions(ScanOptions())]
        versions = [version for page in pages for version in page]
        assert [version.is_delete_marker for version in versions] == [True, False, False]
        assert [version.is_latest for version in versions] == [True, False, False]
        oldest = versions[-1]
        pinned = Placed(versitygw, version_id=oldest.version_id)
        old = await pinned.connect(parse(f"s3://{bucket}/"), StoreOptions())
        assert isinstance(old, Sink)
        entry = await old.stat("file")
        content = b"".join([bytes(block) async for block in old.read(entry, 0, None)])
        assert content == b"first"
        assert await old.delete([entry]) == [None]
        with pytest.raises(NotFound):
            await old.stat("file")
        await pinned.aclose()
    finally:
        await backend.aclose()


@pytest.mark.parametrize(
    "key", ["a+b % c#d?e", "n\u00e9e", "ne\u0301e", "x" * 200, "a&b<c>'\"d", "tab\there", "~(1)!*"]
)
async def test_keys_between_buckets(store: S3Store, versitygw: S3Server, key: str) -> None:
    """Byte for byte, by the service itself, with time and mode."""
    from fastsync.backend import CopyJob

    await put(store, key, b"content")
    bucket = await asyncio.to_thread(versitygw.new_bucket)
    backend = Placed(versitygw)
    try:
        other = await backend.connect(parse(f"s3://{bucket}/copy/"), StoreOptions())
        assert isinstance(other, S3Store)
        assert other.can_copy_from(store)
        entries = await listed(store)
        jobs = [CopyJob(entry, entry.path) for entry in entries]
        moved: list[int] = []
        assert await other.copy_from(store, jobs, WriteOptions(), moved.append) == [None]
        (copy,) = await listed(other)
        assert copy.path == key
        assert (await other.stat(key)).mtime_ns == MTIME
        assert moved == [7]
    finally:
        await backend.aclose()


async def test_markers_are_directories_or_names(store: S3Store) -> None:
    from fastsync_s3.plane import Call

    await put(store, "dir/file", b"content")
    await store.plane.ask(Call("PUT", "empty/", (), {}))
    plain = {(entry.path, entry.kind) for entry in await listed(store)}
    assert ("empty", "dir") in plain
    raw = {(entry.path, entry.kind) for entry in await listed(store, raw=True)}
    assert ("empty/", "file") in raw


async def test_what_was_written_is_not_asked_for(versitygw: S3Server, tmp_path: Path) -> None:
    """Times of our own uploads fill later listings; a change by others makes them unknown again."""
    bucket = await asyncio.to_thread(versitygw.new_bucket)
    options = StoreOptions(state_folder=str(tmp_path / "state"))
    backend = Placed(versitygw)
    store = await backend.connect(parse(f"s3://{bucket}/"), options)
    assert isinstance(store, S3Store)
    for path in ("ours", "theirs"):
        await put(store, path, b"content")
    await backend.aclose()
    await asyncio.to_thread(
        versitygw.client.put_object, Bucket=bucket, Key="theirs", Body=b"CONTENT"
    )
    backend = Placed(versitygw)
    try:
        store = await backend.connect(parse(f"s3://{bucket}/"), options)
        times = {entry.path: entry.mtime_ns for entry in await listed(store, details=True)}
        assert times == {"ours": MTIME, "theirs": None}
        times = {entry.path: entry.mtime_ns for entry in await listed(store)}
        assert times == {"ours": None, "theirs": None}
        folder = tmp_path / "state"
        assert folder.stat().st_mode & 0o777 == 0o700
        assert all(file.stat().st_mode & 0o077 == 0 for file in folder.iterdir())
    finally:
        await backend.aclose()


async def test_a_damaged_cache_costs_only_time(versitygw: S3Server, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / "s3-attributes.sqlite").write_bytes(b"not a database at all" * 100)
    bucket = await asyncio.to_thread(versitygw.new_bucket)
    backend = Placed(versitygw)
    try:
        options = StoreOptions(state_folder=str(folder))
        store = await backend.connect(parse(f"s3://{bucket}/"), options)
        assert isinstance(store, S3Store)
        await put(store, "file", b"content")
        (entry,) = await listed(store, details=True)
        (told,) = await store.complete([entry])
        assert isinstance(told, Entry)
        assert told.mtime_ns == MTIME
    finally:
        await backend.aclose()


async def test_a_large_download_is_checked_by_what_landed(
    versitygw: S3Server, tmp_path: Path
) -> None:
    """An object that only has an MD5 is read again from the file, in order, before it appears."""
    import hashlib

    from fastsync.backend import Download, Progress
    from fastsync.errors import IntegrityError
    from fastsync_local.backend import LocalBackend

    content = os.urandom(3 * MIB)
    bucket = await asyncio.to_thread(versitygw.new_bucket)
    await asyncio.to_thread(versitygw.client.put_object, Bucket=bucket, Key="large", Body=content)
    backend, local = Placed(versitygw), LocalBackend()
    try:
        store = await backend.connect(parse(f"s3://{bucket}/"), StoreOptions())
        sink = await local.connect(parse(str(tmp_path)), StoreOptions())
        assert isinstance(store, S3Store)
        assert isinstance(sink, Sink)
        (entry,) = await listed(store)

        def ignore(_count: int) -> None:
            """Nobody looks."""

        progress: Progress = ignore
        for wanted, passes in ((content, True), (b"other", False)):
            expected = Expected("MD5", hashlib.md5(wanted, usedforsecurity=False).hexdigest())
            download: Download = S3Download(store, entry, expected)
            upload = await sink.upload("large", entry, WriteOptions(), MIB)
            assert isinstance(upload, LocalUpload)
            for start in range(0, 3 * MIB, MIB):
                await download.read_into_file(start, start + MIB, upload.fileno(), progress)
            if passes:
                assert await download.verify(upload.fileno())
            else:
                with pytest.raises(IntegrityError):
                    await download.verify(upload.fileno())
            await upload.abort()
    finally:
        await backend.aclose()
        await local.aclose()
