"""What servers and networks do to an SFTP transfer: cut, stall, lie, send names that lead elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import IO, ClassVar, cast

import asyncssh
import pytest
import pytest_asyncio
from fault_proxy import FaultProxy, Trouble
from sshd import OurServer, free_port, no_extensions

from fastsync.backend import (
    CopyJob,
    Entry,
    Loaded,
    ScanOptions,
    StoreOptions,
    WholeJob,
    WriteOptions,
)
from fastsync.errors import (
    AccessRefused,
    Changed,
    DestinationFull,
    FastsyncError,
    ListingError,
    NameRefused,
    NotFound,
    Stalled,
    Transient,
)
from fastsync.location import parse
from fastsync.patience import persistently
from fastsync.testing.vocabulary import MTIME, begin, collect, link, listing, noise, read, write
from fastsync_sftp.backend import SftpBackend
from fastsync_sftp.by_openssh import _Said
from fastsync_sftp.store import SftpStore

# The server of these tests, asyncssh's, leaves files open when its connections are cut.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

BLOCK = 32 << 10


class Fickle(asyncssh.SFTPServer):
    """Does as a test tells it."""

    stalls = False
    short = 0  # bytes more than this are not sent in one answer
    size_lie = 0
    names: tuple[bytes, ...] = ()
    full_after = -1
    refuses_new = False
    opened: ClassVar[list[IO[bytes]]] = []

    def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> object:
        file = super().open(path, pflags, attrs)
        Fickle.opened.append(cast("IO[bytes]", file))
        return file

    async def read(self, file_obj: object, offset: int, size: int) -> bytes:
        while Fickle.stalls:
            await asyncio.sleep(0.05)
        data = super().read(file_obj, offset, size)
        assert isinstance(data, bytes)
        return data[: Fickle.short or None]

    def write(self, file_obj: object, offset: int, data: bytes) -> int:
        if 0 <= Fickle.full_after < offset + len(data):
            raise asyncssh.SFTPFailure("No space left on device")
        count = super().write(file_obj, offset, data)
        assert isinstance(count, int)
        return count

    def lstat(self, path: bytes) -> asyncssh.SFTPAttrs:
        return self._lie(super().lstat(path))

    def fstat(self, file_obj: object) -> asyncssh.SFTPAttrs:
        return self._lie(super().fstat(file_obj))

    def _lie(self, found: object) -> asyncssh.SFTPAttrs:
        assert isinstance(found, os.stat_result)
        attrs = asyncssh.SFTPAttrs.from_local(found)
        if attrs.size and attrs.type == 1:
            attrs.size += Fickle.size_lie
        return attrs

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        async for name in super().scandir(path):
            yield name
        for extra in Fickle.names:
            attrs = asyncssh.SFTPAttrs(size=4, permissions=0o100644, atime=1, mtime=1)
            yield asyncssh.SFTPName(extra, b"", attrs)

    def rename(self, oldpath: bytes, newpath: bytes) -> None:
        is_new = Path(os.fsdecode(oldpath)).read_bytes() == b"new"
        if os.path.lexists(newpath) or (Fickle.refuses_new and is_new):
            raise asyncssh.SFTPFailure("no")
        os.rename(oldpath, newpath)


@pytest.fixture(autouse=True)
def _as_usual() -> Iterator[None]:
    yield
    # asyncssh leaves them open when a connection is cut.
    for file in Fickle.opened:
        file.close()
    Fickle.opened.clear()
    Fickle.stalls = Fickle.refuses_new = False
    Fickle.short = Fickle.size_lie = 0
    Fickle.names = ()
    Fickle.full_after = -1


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[OurServer]:
    one = OurServer(tmp_path / "server", Fickle)
    await one.start()
    yield one
    await one.stop()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    place = tmp_path / "root"
    place.mkdir()
    return place


@contextlib.asynccontextmanager
async def connected(server: OurServer, path: Path, **options: float) -> AsyncIterator[SftpStore]:
    backend = SftpBackend()
    try:
        settings = StoreOptions(place=server.place, **options)  # type: ignore[arg-type]
        store = await backend.connect(parse(server.url(path)), settings)
        yield store
        await store.aclose()
    finally:
        await backend.aclose()


def left_in(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def beyond(proxy: FaultProxy, server: OurServer, folder: Path) -> dict[str, str]:
    """The settings of a place that is reached through a proxy."""
    known = folder / "known_beyond"
    host_key = (folder / "server/host_key.pub").read_text()
    known.write_text(f"[127.0.0.1]:{proxy.port} {host_key}")
    return server.place | {"known_hosts": str(known)}


def _thrice(attempt: int) -> bool:
    return attempt < 3


# -- the network ---------------------------------------------------------------------------------------


async def test_a_cut_connection_is_transient_and_the_next_call_has_another(
    server: OurServer, root: Path
) -> None:
    (root / "file").write_bytes(content := noise(200_000))
    async with connected(server, root) as store:
        entry = await store.stat("file")
        Fickle.stalls = True
        reading = asyncio.create_task(collect(store.read(entry, 0, None)))
        await asyncio.sleep(0.1)
        server.cut()
        with pytest.raises(Transient):
            await reading
        Fickle.stalls = False
        assert await collect(store.read(entry, 0, None)) == content


async def test_a_silent_server_is_stalled(server: OurServer, root: Path) -> None:
    (root / "file").write_bytes(noise(100_000))
    async with connected(server, root, stall_timeout_s=0.4) as store:
        entry = await store.stat("file")
        Fickle.stalls = True
        with pytest.raises(Stalled):
            await asyncio.wait_for(collect(store.read(entry, 0, None)), 10)
        Fickle.stalls = False
        assert len(await read(store, "file")) == 100_000


@pytest.mark.parametrize("transport", ["asyncssh", "openssh"])
async def test_a_server_that_takes_a_little(
    server: OurServer, root: Path, tmp_path: Path, transport: str
) -> None:
    """There is room for more again and again, but it would take for ever."""
    if transport == "openssh" and shutil.which("ssh") is None:
        pytest.skip("no ssh is installed")
    with FaultProxy(server.port) as proxy:
        place = beyond(proxy, server, tmp_path) | {"ssh_transport": transport}
        proxy.always(Trouble(upwards=True, slice=8192, rate=100_000))
        backend = SftpBackend()
        location = parse(f"sftp://somebody@127.0.0.1:{proxy.port}{root}")
        options = StoreOptions(place=place, stall_timeout_s=0.5, min_rate=1_000_000)
        store = await backend.connect(location, options)
        upload = await begin(store, "file")
        with pytest.raises(Transient, match=r"less than 1000000 bytes/s|no answer for"):
            await asyncio.wait_for(upload.write(0, bytes(16 << 20)), 60)
        await backend.aclose()


async def test_a_write_goes_on_over_another_connection(server: OurServer, root: Path) -> None:
    content = noise(3 * BLOCK)
    async with connected(server, root) as store:
        upload = await begin(store, "file")
        await upload.write(0, content[:BLOCK])
        server.cut()
        await persistently(lambda: upload.write(BLOCK, content[BLOCK:]), _thrice)
        server.cut()
        await persistently(lambda: upload.commit(len(content)), _thrice)
    assert left_in(root) == {"file": content}


@pytest.mark.parametrize("small", [False, True])
async def test_a_file_that_was_made_when_the_connection_was_cut_goes(
    server: OurServer, root: Path, monkeypatch: pytest.MonkeyPatch, *, small: bool
) -> None:
    """Nobody heard of it, and the next try has another name."""
    made = 0

    def open_and_cut(self: Fickle, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> object:
        nonlocal made
        file = asyncssh.SFTPServer.open(self, path, pflags, attrs)
        Fickle.opened.append(cast("IO[bytes]", file))
        made += 1
        if made == 1:
            server.cut()
        return file

    async with connected(server, root) as store:
        await store.stat("")
        monkeypatch.setattr(Fickle, "open", open_and_cut)
        if small:
            job = WholeJob(Entry("f", "file", 5, MTIME, 0o644), "f", b"small")
            (answer,) = await store.write_whole([job], WriteOptions())
            assert isinstance(answer, Transient)
        else:
            with pytest.raises(Transient):
                await begin(store, "f")
    assert made == 1
    assert left_in(root) == {}


async def test_a_batch_that_is_cut_leaves_nothing_half(server: OurServer, root: Path) -> None:
    jobs = [
        WholeJob(Entry(f"f{number}", "file", 1000, MTIME, 0o644), f"f{number}", noise(1000))
        for number in range(300)
    ]
    async with connected(server, root) as store:
        writing = asyncio.create_task(store.write_whole(jobs, WriteOptions()))
        while len(list(root.iterdir())) < 20:
            await asyncio.sleep(0.001)
        server.cut()
        answers = await writing
        assert any(isinstance(answer, Transient) for answer in answers)
        assert not list(root.glob(".fs-*"))
        again = [job for job, answer in zip(jobs, answers, strict=True) if answer is not None]
        assert await store.write_whole(again, WriteOptions()) == [None] * len(again)
    assert left_in(root) == {f"f{number}": noise(1000) for number in range(300)}


@pytest.mark.parametrize("kind", ["file", "dir"])
@pytest.mark.parametrize("when", ["before", "after", "never"])
async def test_the_answer_to_a_move_is_lost(
    server: OurServer, root: Path, monkeypatch: pytest.MonkeyPatch, kind: str, when: str
) -> None:
    """It is moved once, and said to be, whether the server had done it, does it later or not at all."""
    cuts = 1

    def move(_: asyncssh.SFTPServer, old: bytes, new: bytes) -> None:
        nonlocal cuts
        if not cuts:
            os.rename(old, new)
            return
        cuts -= 1
        loop = asyncio.get_running_loop()
        if when == "before":
            os.rename(old, new)
        server.cut()
        if when == "after":

            def late() -> None:
                with contextlib.suppress(OSError):
                    os.rename(old, new)

            loop.call_later(0.005, late)

    monkeypatch.setattr(Fickle, "rename", move)
    monkeypatch.setattr(Fickle, "posix_rename", move)
    (root / "old").mkdir()
    (root / "old/file").write_bytes(b"content")
    async with connected(server, root) as store:
        path, target = ("old/file", "new") if kind == "file" else ("old", "new")
        entry = await store.stat(path)
        assert await store.move_from(store, [CopyJob(entry, target)]) == [None]
        with pytest.raises(NotFound):
            await store.stat(path)
    assert cuts == 0
    assert left_in(root) == {"new" if kind == "file" else "new/file": b"content"}


async def test_nobody_listens(tmp_path: Path) -> None:
    backend = SftpBackend()
    place = {"ssh_transport": "asyncssh", "known_hosts": str(tmp_path / "none")}
    location = parse(f"sftp://somebody@127.0.0.1:{free_port()}/")
    with pytest.raises(Transient):
        await backend.connect(location, StoreOptions(place=place))
    await backend.aclose()


async def test_a_server_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        backend = SftpBackend()
        location = parse(f"sftp://somebody@127.0.0.1:{listener.getsockname()[1]}/")
        options = StoreOptions(request_timeout_s=0.1, place={"ssh_transport": "asyncssh"})
        with pytest.raises(Transient, match="seconds"):
            await backend.connect(location, options)
        await backend.aclose()


@pytest.mark.parametrize("transport", ["asyncssh", "openssh"])
@pytest.mark.parametrize("at", [0, 500, 1500, 2000, 2600, 3000])
async def test_a_cut_on_the_way_in(
    server: OurServer, root: Path, tmp_path: Path, transport: str, at: int
) -> None:
    """Wherever in the handshake, the login or the first question it comes, there is another try."""
    if transport == "openssh" and shutil.which("ssh") is None:
        pytest.skip("no ssh is installed")
    with FaultProxy(server.port) as proxy:
        known = tmp_path / "known"
        host_key = (tmp_path / "server/host_key.pub").read_text()
        known.write_text(f"[127.0.0.1]:{proxy.port} {host_key}")
        place = server.place | {"known_hosts": str(known), "ssh_transport": transport}
        proxy.next(Trouble(cut_after=at), Trouble(cut_after=at, reset=True))
        backend = SftpBackend()
        location = parse(f"sftp://somebody@127.0.0.1:{proxy.port}{root}")
        store = await backend.connect(location, StoreOptions(place=place))
        assert (await store.stat("")).kind == "dir"
        await backend.aclose()
        assert proxy.troubled == 2 or at > 2000


async def test_a_cut_at_the_first_question(
    server: OurServer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def realpath(_: asyncssh.SFTPServer, path: bytes) -> bytes:
        nonlocal asked
        asked += 1
        if asked == 1:
            server.cut()
        return path

    monkeypatch.setattr(Fickle, "realpath", realpath)
    async with connected(server, root) as store:
        assert (await store.stat("")).kind == "dir"
    assert asked > 1


@pytest.mark.parametrize("at", [500, 2000])
async def test_cuts_without_end(server: OurServer, root: Path, tmp_path: Path, at: int) -> None:
    """It is tried some times, and not for ever."""
    with FaultProxy(server.port) as proxy:
        known = tmp_path / "known"
        host_key = (tmp_path / "server/host_key.pub").read_text()
        known.write_text(f"[127.0.0.1]:{proxy.port} {host_key}")
        proxy.always(Trouble(cut_after=at))
        backend = SftpBackend()
        location = parse(f"sftp://somebody@127.0.0.1:{proxy.port}{root}")
        place = server.place | {"known_hosts": str(known)}
        with pytest.raises(Transient, match="hung up"):
            await backend.connect(location, StoreOptions(place=place))
        await backend.aclose()
        assert 2 < proxy.connections < 20


# -- lies ----------------------------------------------------------------------------------------------


async def test_short_answers_are_completed(server: OurServer, root: Path) -> None:
    (root / "file").write_bytes(content := noise(100_000))
    Fickle.short = 1000
    async with connected(server, root) as store:
        assert await read(store, "file") == content
        (loaded,) = await store.read_whole([await store.stat("file")])
        assert isinstance(loaded, Loaded)
        assert loaded.data == content


@pytest.mark.parametrize("length", [0, 40_000])
async def test_answers_of_another_length(
    server: OurServer, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """More than was asked for, or nothing at all: not a byte of it is taken for the file's."""
    (root / "file").write_bytes(noise(100_000))

    async def answer(*_: object) -> bytes:
        return bytes(length)

    monkeypatch.setattr(Fickle, "read", answer)
    async with connected(server, root) as store:
        entry = await store.stat("file")
        with (
            (tmp_path / "target").open("w+b") as file,
            pytest.raises(FastsyncError, match=f"sent {length} bytes|became shorter"),
        ):
            await store.read_into_file(entry, 0, 1000, file.fileno(), lambda _: None)
        assert (tmp_path / "target").read_bytes() == b""
        (loaded,) = await store.read_whole([entry])
        assert isinstance(loaded, FastsyncError)


async def test_a_file_larger_than_it_is(server: OurServer, root: Path, tmp_path: Path) -> None:
    """A size that is a lie ends in an error, by every way there is to read."""
    (root / "file").write_bytes(noise(1000))
    Fickle.size_lie = 500
    async with connected(server, root) as store:
        (entry,) = [each for each in await listing(store) if each.path == "file"]
        entry = entry._replace(size=1500)
        with pytest.raises(Changed):
            await collect(store.read(entry, 0, None))
        (answer,) = await store.read_whole([entry])
        assert isinstance(answer, Changed)
        with (tmp_path / "target").open("wb") as file, pytest.raises(Changed):
            await store.read_into_file(entry, 0, 1500, file.fileno(), lambda _: None)


async def test_a_server_that_keeps_fewer_bytes(server: OurServer, root: Path) -> None:
    """What was written is measured before it gets its name."""
    (root / "file").write_bytes(b"old")
    async with connected(server, root) as store:
        upload = await begin(store, "file")
        await upload.write(0, noise(1000))
        Fickle.size_lie = -1
        with pytest.raises(FastsyncError):
            await upload.commit(1000)
    assert left_in(root) == {"file": b"old"}


@pytest.mark.parametrize("name", [b"../x", b"/etc/x", b"a/b", b"..", b"", b"nul\0"])
async def test_names_that_lead_elsewhere(server: OurServer, root: Path, name: bytes) -> None:
    """They are told, and never listed; all else is."""
    (root / "good").write_bytes(b"good")
    Fickle.names = (name,)
    async with connected(server, root) as store:
        pages = [page async for page in store.scan(ScanOptions())]
    assert [entry.path for page in pages for entry in page.entries] == ["good"]
    faults = [fault for page in pages for fault in page.faults]
    assert len(faults) == (name != b"..")
    assert all(isinstance(fault.error, NameRefused) for fault in faults)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("is_gone", [True, False])
async def test_a_directory_that_is_said_to_be_gone(
    server: OurServer, root: Path, monkeypatch: pytest.MonkeyPatch, *, is_gone: bool, when: str
) -> None:
    """If it is, nothing was missed; if it is not, or not all of it, that is no reason to delete anything."""
    for name in ("a", "dir/b", "z"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    honest = Fickle.scandir

    async def scandir(self: Fickle, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        is_it = path.endswith(b"/dir")
        if not is_it or when == "after":
            async for name in honest(self, path):
                yield name
        if is_it:
            if is_gone:
                shutil.rmtree(path)
            raise asyncssh.SFTPNoSuchFile("gone")

    monkeypatch.setattr(Fickle, "scandir", scandir)
    async with connected(server, root) as store:
        pages = [page async for page in store.scan(ScanOptions())]
    assert [entry.path for page in pages for entry in page.entries] == ["a", "dir", "z"]
    faults = [fault for page in pages for fault in page.faults]
    assert [fault.path for fault in faults] == ([] if is_gone else ["dir"])
    assert all("the directory is there" in str(fault.error) for fault in faults)


async def test_a_name_listed_twice(server: OurServer, root: Path) -> None:
    (root / "good").write_bytes(b"good")
    Fickle.names = (b"good",)
    async with connected(server, root) as store:
        pages = [page async for page in store.scan(ScanOptions())]
    assert [entry.path for page in pages for entry in page.entries] == ["good"]
    assert [fault.path for page in pages for fault in page.faults] == ["good"]


@pytest.mark.parametrize("name", [b".", b"same"])
async def test_a_listing_without_end(
    server: OurServer, root: Path, monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    """Names that were there already, or that are none, over and over."""

    async def scandir(_: asyncssh.SFTPServer, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        while True:
            yield asyncssh.SFTPName(name, b"", asyncssh.SFTPAttrs(permissions=0o100644))

    monkeypatch.setattr(Fickle, "scandir", scandir)
    async with connected(server, root) as store:
        with pytest.raises(ListingError, match="no end"):
            await listing(store)


async def test_directories_without_end(
    server: OurServer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scandir(_: asyncssh.SFTPServer, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        attrs = asyncssh.SFTPAttrs(permissions=0o040755, size=0, atime=1, mtime=1)
        yield asyncssh.SFTPName(b"d" * 250, b"", attrs)

    monkeypatch.setattr(Fickle, "scandir", scandir)
    async with connected(server, root) as store:
        with pytest.raises(ListingError, match="without end"):
            await listing(store)


async def test_a_file_by_drops(server: OurServer, root: Path, tmp_path: Path) -> None:
    """A byte at a time is an answer, but would take for ever."""
    (root / "file").write_bytes(noise(100_000))
    Fickle.short = 1
    async with connected(server, root) as store:
        entry = await store.stat("file")
        with (
            (tmp_path / "target").open("wb") as file,
            pytest.raises(FastsyncError, match="next to nothing"),
        ):
            await store.read_into_file(entry, 0, 100_000, file.fileno(), lambda _: None)
        (answer,) = await store.read_whole([entry])
        assert isinstance(answer, FastsyncError)
        assert "next to nothing" in answer.message


# -- refusals ------------------------------------------------------------------------------------------


async def test_a_full_disk(server: OurServer, root: Path) -> None:
    (root / "file").write_bytes(b"old")
    Fickle.full_after = 10_000
    async with connected(server, root) as store:
        with pytest.raises(DestinationFull):
            await write(store, "file", noise(100_000))
        job = WholeJob(Entry("file", "file", 50_000, MTIME, 0o644), "file", noise(50_000))
        (answer,) = await store.write_whole([job], WriteOptions())
        assert isinstance(answer, DestinationFull)
    assert left_in(root) == {"file": b"old"}


async def test_the_old_file_comes_back_when_the_new_one_cannot_come(
    server: OurServer, root: Path
) -> None:
    (root / "file").write_bytes(b"old")
    with no_extensions():
        async with connected(server, root) as store:
            Fickle.refuses_new = True
            with pytest.raises(FastsyncError):
                await write(store, "file", b"new")
            assert left_in(root) == {"file": b"old"}
            Fickle.refuses_new = False
            await write(store, "file", b"newer")
    assert left_in(root) == {"file": b"newer"}


async def test_links_where_the_arguments_are_the_other_way_round(
    server: OurServer, root: Path, tmp_path: Path
) -> None:
    """A link made the wrong way round would stand where it points, outside of the root."""
    async with connected(server, root) as store:
        outside = tmp_path / "outside"
        assert await store.make_links([link("link", str(outside))], WriteOptions()) == [None]
    assert (root / "link").readlink() == outside
    assert not outside.is_symlink()
    assert sorted(os.listdir(root)) == ["link"]


# -- host keys -----------------------------------------------------------------------------------------


async def test_an_unknown_host_key(server: OurServer, root: Path, tmp_path: Path) -> None:
    """It is refused with its fingerprint and the way to accept it; then it is accepted, and known."""
    known = tmp_path / "elsewhere" / "known_hosts"
    place = server.place | {"known_hosts": str(known)}
    key = asyncssh.read_public_key(tmp_path / "server" / "host_key.pub")
    location = parse(server.url(root))
    backend = SftpBackend()
    with pytest.raises(AccessRefused) as refused:
        await backend.connect(location, StoreOptions(place=place))
    assert key.get_fingerprint() in str(refused.value)
    assert "--accept-new-host-key" in str(refused.value)
    assert not known.exists()
    await backend.connect(location, StoreOptions(place=place | {"accept_new_host_key": "true"}))
    await backend.aclose()
    assert len(known.read_text().splitlines()) == 1
    backend = SftpBackend()
    await backend.connect(location, StoreOptions(place=place))
    await backend.aclose()


@pytest.mark.parametrize("accept", ["true", "false"])
async def test_a_changed_host_key(
    server: OurServer, root: Path, tmp_path: Path, accept: str
) -> None:
    """It is always refused, and the file of known hosts stays as it is."""
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    known = tmp_path / "known"
    known.write_text(text := f"[127.0.0.1]:{server.port} {other}")
    place = server.place | {"known_hosts": str(known), "accept_new_host_key": accept}
    backend = SftpBackend()
    with pytest.raises(AccessRefused, match="changed"):
        await backend.connect(parse(server.url(root)), StoreOptions(place=place))
    await backend.aclose()
    assert known.read_text() == text


async def test_a_key_that_is_not_let_in(server: OurServer, root: Path, tmp_path: Path) -> None:
    key = tmp_path / "another"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(key)
    key.chmod(0o600)
    backend = SftpBackend()
    place = server.place | {"identity": str(key)}
    with pytest.raises(AccessRefused, match="let nobody in"):
        await backend.connect(parse(server.url(root)), StoreOptions(place=place))
    await backend.aclose()


async def test_a_flood_on_stderr() -> None:
    """What ssh hands on of the server's chatter is kept in part, the reason for the end with it."""
    said = _Said()
    writing = asyncio.create_task(
        asyncio.to_thread(os.write, said.write_end, b"first\n" + b"x" * 5_000_000 + b"\nlast\n")
    )
    await writing
    said.begun()
    text = said.text()
    said.close()
    assert text.startswith("first\n")
    assert text.endswith("\nlast\n")
    assert len(text) < 100_000
