"""Servers reached through SSH keep the contract: a real sshd, by both transports, and lesser servers."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import AsyncIterator, Collection, Iterator
from pathlib import Path

import asyncssh
import pytest
import pytest_asyncio
from sshd import OurServer, Sshd, no_extensions, running_sshd

from fastsync.backend import Backend, Sink, StoreOptions
from fastsync.location import Location, parse
from fastsync.testing import StoreConformance
from fastsync_sftp.backend import SftpBackend
from fastsync_sftp.store import SftpStore


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


class Placed(SftpBackend):
    """A backend whose locations come with the settings of the test's server."""

    def __init__(self, place: dict[str, str]) -> None:
        super().__init__()
        self._place = place

    async def connect(self, location: Location, options: StoreOptions) -> SftpStore:
        return await super().connect(location, dataclasses.replace(options, place=self._place))


def traces(sink: Sink) -> list[str]:
    """What the disk has, temporary files included, which a listing would hide."""
    top = Path(sink.location.path)
    return [
        str(path.relative_to(top))
        for path in sorted(top.rglob("*"))
        if path.is_symlink() or not path.is_dir()
    ]


class RefusingToReplace(asyncssh.SFTPServer):
    """Renames as version 3 says: only to a name that is free."""

    def rename(self, oldpath: bytes, newpath: bytes) -> None:
        if os.path.lexists(newpath):
            raise asyncssh.SFTPFailure("it exists")
        os.rename(oldpath, newpath)


class _OnSshd(StoreConformance):
    transport = ""

    @pytest.fixture(autouse=True)
    def _server(self, sshd: Sshd) -> None:
        self.sshd = sshd

    async def make_root(self, tmp_path: Path) -> tuple[Backend, Location]:
        root = tmp_path / "root"
        root.mkdir()
        place = self.sshd.place | {"ssh_transport": self.transport}
        return Placed(place), parse(self.sshd.url(root))

    async def traces(self, sink: Sink) -> Collection[str]:
        return traces(sink)


class TestOnALesserServer(StoreConformance):
    """Plain version 3: a rename that does not replace, symbolic links the other way round, small blocks,
    nothing copied on the server."""

    many = 200

    @pytest_asyncio.fixture(autouse=True)
    async def _server(self, tmp_path: Path) -> AsyncIterator[None]:
        with no_extensions():
            self.server = OurServer(tmp_path / "server", RefusingToReplace)
            await self.server.start()
            yield
            await self.server.stop()

    async def make_root(self, tmp_path: Path) -> tuple[Backend, Location]:
        root = tmp_path / "root"
        root.mkdir()
        return Placed(self.server.place), parse(self.server.url(root))

    async def traces(self, sink: Sink) -> Collection[str]:
        return traces(sink)


class TestByAsyncssh(_OnSshd):
    transport = "asyncssh"


class TestByOpenssh(_OnSshd):
    transport = "openssh"
