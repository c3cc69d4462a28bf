"""Servers that allow few open files at a time, and say so or not: all works, and one line says it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh
import asyncssh.sftp
import pytest
import pytest_asyncio
from sshd import OurServer

from fastsync.backend import StoreOptions
from fastsync.errors import NotFound
from fastsync.location import parse
from fastsync.testing.vocabulary import listing
from fastsync_sftp.backend import SftpBackend

if TYPE_CHECKING:
    from tests.conftest import Fastsync, Picture, Plant

# The server of these tests, asyncssh's, leaves files open when its connections are cut.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[OurServer]:
    one = OurServer(tmp_path / "server")
    await one.start()
    yield one
    await one.stop()


@pytest.fixture(params=[(1, False), (3, False), (2, True)], ids=["one", "three", "two, told"])
def most(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many handles each connection has from now on; counted, as by OpenSSH, when a new file has been
    made already."""
    count, is_told = request.param
    handler: Any = asyncssh.sftp.SFTPServerHandler
    new = handler._get_next_handle

    def next_handle(self: Any) -> bytes:
        if len(self._file_handles) + len(self._dir_handles) >= count:
            raise asyncssh.SFTPFailure("")
        return bytes(new(self))

    async def limits(self: Any, packet: Any) -> object:
        return asyncssh.sftp.SFTPLimits(256 << 10, 32 << 10, 32 << 10, count)

    # Neither are copies made by the server, which would take two.
    said = [b"limits@openssh.com"] * is_told
    kept = [each for each in handler._extensions if each[0] in said]
    handlers = {
        key: limits if key == b"limits@openssh.com" else each
        for key, each in handler._packet_handlers.items()
        if isinstance(key, int) or key in said
    }
    monkeypatch.setattr(handler, "_get_next_handle", next_handle)
    monkeypatch.setattr(handler, "_extensions", kept)
    monkeypatch.setattr(handler, "_packet_handlers", handlers)
    return int(count)


async def test_few_open_files(
    fastsync: Fastsync,
    plant: Plant,
    picture: Callable[..., Picture],
    server: OurServer,
    most: int,
    tmp_path: Path,
) -> None:
    spec: dict[str, str | bytes | Path] = {f"a/{number:02}": f"{number}" for number in range(40)}
    spec |= {f"d{number}/e/file": "x" for number in range(20)}
    spec |= {"large": os.urandom(3_000_000), "another": os.urandom(2_500_000)}
    plant(tmp_path / "src", spec)
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in server.place.items()]
    flags += ["--chunk-size=1M", "--stall-timeout=20"]
    url = server.url(tmp_path / "there")

    def contents(root: Path) -> dict[str, bytes]:
        return {name: shot.content for name, shot in picture(root).items()}

    done = await asyncio.to_thread(fastsync, "sync", *flags, "src", url)
    assert done.code == 0, done
    note = f"allows {most} open file{'s' * (most > 1)} at a time"
    assert done.stderr.count("\n") == done.stderr.count(note) == 1, done.stderr
    assert contents(tmp_path / "there") == contents(tmp_path / "src")
    done = await asyncio.to_thread(fastsync, "sync", *flags, url, "back")
    assert done.code == 0, done
    assert contents(tmp_path / "back") == contents(tmp_path / "src")
    done = await asyncio.to_thread(
        fastsync, "cp", "--jobs=1", *flags, f"{url}/large", f"{url}/copy"
    )
    assert done.code == 0, done
    assert (tmp_path / "there/copy").read_bytes() == spec["large"]


@pytest.mark.parametrize("most", [(1, True)], indirect=True)
async def test_a_listing_that_fails_gives_its_handle_back(
    server: OurServer, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a directory that can be opened, but not looked at."""

    def refuse(*_: object) -> asyncssh.SFTPAttrs:
        raise asyncssh.SFTPNoSuchFile("")

    backend = SftpBackend()
    options = StoreOptions(streams=1, stall_timeout_s=2, place=server.place)
    store = await backend.connect(parse(server.url(tmp_path)), options)
    with monkeypatch.context() as patched:
        patched.setattr(asyncssh.SFTPServer, "stat", refuse)
        with pytest.raises(NotFound):
            await listing(store)
    assert "server" in [entry.path for entry in await listing(store)]
    await store.aclose()
    await backend.aclose()
