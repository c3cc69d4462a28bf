"""Web servers keep the contract of a source: nginx, plain and with JSON pages and with TLS, Python's and
rclone's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import ClassVar

import pytest
from web import WebServer, make_tls, running_nginx, running_python, running_rclone

from fastsync.backend import Backend, Source
from fastsync.errors import NameRefused
from fastsync.location import Location, parse
from fastsync.testing import SourceConformance
from fastsync.testing.vocabulary import MTIME
from fastsync_http.backend import HttpBackend

_numbers = count()


class _OnDisk(SourceConformance):
    """A server over a folder, in which every test gets one of its own."""

    refused: ClassVar[tuple[str, ...]] = ()
    server: WebServer

    async def make_root(self, tmp_path: Path) -> tuple[Backend, Location]:
        name = f"place-{next(_numbers)}"
        (self.server.root / name).mkdir()
        return HttpBackend(), parse(f"{self.server.url}/{name}/")

    def _path(self, source: Source, path: str) -> Path:
        return self.server.root / source.location.path.strip("/") / path

    async def put(
        self,
        source: Source,
        path: str,
        content: bytes = b"",
        *,
        mtime_ns: int = MTIME,
        mode: int = 0o644,
    ) -> None:
        if any(self._refuses(part) for part in path.split("/")):
            raise NameRefused("the server cannot list such a name", where=path)
        target = self._path(source, path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            fresh = target.with_name(".fresh") if len(target.name) < 200 else target
            fresh.write_bytes(content)
        except OSError as error:
            raise NameRefused("the disk does not take it", where=path) from error
        os.utime(fresh, ns=(mtime_ns, mtime_ns))
        if fresh != target:
            fresh.rename(target)

    def _refuses(self, name: str) -> bool:
        return name.startswith(".") and name not in ("..x", "...")

    async def remove(self, source: Source, path: str) -> None:
        self._path(source, path).unlink()


class TestNginx(_OnDisk):
    """Sizes on its pages, times to the minute. Names that begin with a dot it does not list."""

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        with running_nginx(tmp_path_factory.mktemp("nginx")) as cls.server:
            yield

    def _refuses(self, name: str) -> bool:
        return name.startswith(".")


class TestNginxJson(_OnDisk):
    many = 200

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        directives = "autoindex on; autoindex_format json;"
        folder = tmp_path_factory.mktemp("nginx")
        with running_nginx(folder, directives=directives) as cls.server:
            yield

    def _refuses(self, name: str) -> bool:
        return name.startswith(".")


class TestNginxTls(_OnDisk):
    many = 200

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        folder = tmp_path_factory.mktemp("nginx")
        tls = make_tls(folder)
        with (
            _environment("SSL_CERT_FILE", str(tls.authority)),
            running_nginx(folder, tls=tls) as cls.server,
        ):
            yield

    def _refuses(self, name: str) -> bool:
        return name.startswith(".")


class TestPython(_OnDisk):
    """HTTP/1.0: a connection for each request. Its links to names that are not UTF-8 lead nowhere."""

    many = 100

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        with running_python(tmp_path_factory.mktemp("python")) as cls.server:
            yield

    def _refuses(self, name: str) -> bool:
        return super()._refuses(name) or (not name.isascii() and "\udc80" <= max(name) <= "\udcff")


class TestRclone(_OnDisk):
    """It shows control characters as symbols, and serves the names of the symbols."""

    many = 200

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        with running_rclone(tmp_path_factory.mktemp("rclone")) as cls.server:
            yield

    def _refuses(self, name: str) -> bool:
        return super()._refuses(name) or (not name.isprintable() and name.isascii())


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, value)
        yield
