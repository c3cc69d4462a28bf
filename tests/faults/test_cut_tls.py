"""TLS that ends without saying so, in whole transfers by the command: whoever cuts the line could have the
beginning of a file taken for all of it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hostile_s3 as faults
import pytest
from fault_proxy import FaultProxy, Trouble
from hostile_s3 import HostileS3
from scripted import Scripted
from web import Tls, make_tls

from fastsync.testing.vocabulary import noise

if TYPE_CHECKING:
    from tests.conftest import Fastsync

CONTENT = noise(300_000)
# A handshake brings a few thousand bytes: in the body's first record, in its middle, before its last one.
PLACES = [8_000, 150_000, 300_000]
HEADS = {
    "length": b"Content-Length: %d\r\n" % len(CONTENT),
    "chunked": b"Transfer-Encoding: chunked\r\n",
    "to the end": b"Connection: close\r\n",
}
QUICK = ("--retry-count", "3", "--stall-timeout", "5", "--request-timeout", "5")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def s3(tls: Tls) -> Iterator[HostileS3]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    with HostileS3(context) as server:
        server.make_bucket("bucket")
        yield server


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, how: str) -> None:
    """The file, to each who asks; ranges are ignored."""
    while True:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n" + HEADS[how] + b"\r\n")
        if how == "chunked":
            writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(CONTENT), CONTENT))
        else:
            writer.write(CONTENT)
        await writer.drain()
        if how == "to the end":
            return


@pytest.mark.parametrize("how", HEADS)
@pytest.mark.parametrize("is_always", [False, True], ids=["once", "always"])
async def test_http(
    fastsync: Fastsync, tls: Tls, tmp_path: Path, debris: Callable[[Path], list[Path]], how: str,
    is_always: bool,
) -> None:  # fmt: skip
    environ = {"SSL_CERT_FILE": str(tls.authority)}

    async def cp(proxy: FaultProxy, name: str) -> int:
        url = f"https://127.0.0.1:{proxy.port}/file"
        done = await asyncio.to_thread(fastsync, "cp", *QUICK, url, name, env=environ)
        return done.code

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer(reader, writer, how)

    async with Scripted(script, tls=tls) as server:
        for at in PLACES if not is_always else PLACES[1:2]:
            with FaultProxy(server.port) as proxy:
                # What is asked first is not yet the file.
                trouble = Trouble(cut_after=at)
                if is_always:
                    proxy.always(trouble)
                else:
                    proxy.next(trouble, trouble)
                code = await cp(proxy, f"copy{at}")
                assert proxy.connections < 20
                assert proxy.troubled
            if is_always:
                assert code not in (0, -9)
                assert not (tmp_path / f"copy{at}").exists()
            else:
                assert code == 0
                assert (tmp_path / f"copy{at}").read_bytes() == CONTENT
    assert debris(tmp_path) == []


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
def test_s3(
    fastsync: Fastsync, s3: HostileS3, tls: Tls, tmp_path: Path,
    debris: Callable[[Path], list[Path]], is_chunked: bool,
) -> None:  # fmt: skip
    s3.put("bucket", "file", CONTENT)
    if is_chunked:
        s3.on("GetObject", faults.chunked(), times=None)
    for at in PLACES:
        with FaultProxy(int(s3.endpoint.rpartition(":")[2])) as proxy:
            environ = {
                **s3.environ,
                "AWS_CA_BUNDLE": str(tls.authority),
                "AWS_ENDPOINT_URL_S3": f"https://127.0.0.1:{proxy.port}",
            }
            proxy.next(Trouble(cut_after=at), Trouble(cut_after=at))
            done = fastsync("cp", *QUICK, "s3://bucket/file", f"copy{at}", env=environ)
            assert (done.code, proxy.troubled) == (0, 2)
            assert (tmp_path / f"copy{at}").read_bytes() == CONTENT
            if at != PLACES[1]:
                continue
            proxy.always(Trouble(cut_after=at))
            done = fastsync("cp", *QUICK, "s3://bucket/file", "never", env=environ)
            assert done.code == 1
            assert not (tmp_path / "never").exists()
    assert debris(tmp_path) == []
