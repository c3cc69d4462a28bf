"""Servers that take or send a little now and then: not for ever, and what is slow for our own sake is not
theirs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest
from scripted import Script, Scripted
from web import Tls, make_tls

from fastsync import nearness
from fastsync.errors import FastsyncError, Stalled, Transient
from fastsync.wire import Headers, Memory, Origin, Outgoing, Reply, Wire, WireOptions

GET = Outgoing(b"GET /file HTTP/1.1\r\nHost: h\r\n\r\n")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SIZE = 4_000_000
PUT = b"PUT /file HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="no kernel else tells what arrived")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_tls(tmp_path_factory.mktemp("tls"))


@contextlib.asynccontextmanager
async def wired(
    script: Script, *, tls: Tls | None = None, receive_buffer: int | None = None, **options: object
) -> AsyncIterator[Wire]:
    async with Scripted(script, tls=tls, receive_buffer=receive_buffer) as server:
        if tls is not None:
            options["ca_file"] = str(tls.authority)
        defaults = {"connections": 2, "request_timeout_s": 5.0, "stall_timeout_s": 0.3}
        scheme = "http" if tls is None else "https"
        made = WireOptions(**{**defaults, **options})  # type: ignore[arg-type]
        wire = Wire(Origin(scheme, "127.0.0.1", server.port), made)
        try:
            yield wire
        finally:
            await wire.aclose()


def accept(_status: int, _headers: Headers) -> None:
    """Any answer will do."""


def ignore(_count: int) -> None:
    """Nobody looks."""


def refused(_reply: Reply) -> FastsyncError:
    return Transient("no success")


async def send(wire: Wire, how: str, size: int, folder: Path) -> Reply:
    """A body of so many bytes, by one of the ways there are."""
    head = PUT % size
    if how == "from a file":
        path = folder / "body"
        path.write_bytes(bytes(size))
        with path.open("rb") as file:
            return await wire.send_from_file(
                Outgoing(head, repeatable=False), file.fileno(), 0, size, ignore
            )
    request = Outgoing(head, bytes(size), repeatable=False)
    if how == "small":
        return await wire.ask(request)
    room = memoryview(bytearray(2))
    return await wire.receive_into_file(
        request, Memory(0, room), 0, 2, check=accept, progress=ignore
    )


WAYS = ["from a file", "from memory", "small"]


def taking(some: int, pause_s: float, size: int = SIZE) -> Script:
    """Takes so much of the body at a time, and answers when it has all of it."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        left = size
        while left:
            left -= len(await reader.read(some))
            await asyncio.sleep(pause_s)
        writer.write(OK)
        await writer.drain()

    return script


class Relay:
    """A script that stands before another server, of TLS perhaps, and passes on `some` bytes of what it is
    sent, after a pause. What the server says after `down_after` bytes comes by drops."""

    def __init__(
        self, port: int, *, some: int = 65536, pause_s: float = 0, down_after: int = SIZE
    ) -> None:
        self._port, self._some, self._pause_s, self._down_after = port, some, pause_s, down_after

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)

        async def up() -> None:
            while data := await reader.read(self._some):
                back.write(data)
                await asyncio.sleep(self._pause_s)

        passing = asyncio.create_task(up())
        passed = 0
        try:
            while data := await there.read(max(1, self._down_after - passed)):
                passed += len(data)
                writer.write(data)
                await writer.drain()
                if passed >= self._down_after:
                    await asyncio.sleep(0.02)
        finally:
            passing.cancel()
            back.close()


@on_linux
@pytest.mark.parametrize("how", WAYS)
async def test_a_server_that_takes_a_little(tmp_path: Path, how: str) -> None:
    """There is room for more of it again and again, but it would take for ever."""
    async with wired(
        taking(1024, 0.02), receive_buffer=4096, send_buffer=16 << 10, min_rate=1_000_000
    ) as wire:
        with pytest.raises(Stalled, match="takes less than 1e"):
            await send(wire, how, SIZE, tmp_path)


@on_linux
@pytest.mark.parametrize("how", WAYS)
async def test_a_secure_server_that_takes_a_little(tmp_path: Path, tls: Tls, how: str) -> None:
    relay = partial(Relay, some=1024, pause_s=0.02)
    async with (
        Scripted(taking(65536, 0), tls=tls) as server,
        Scripted(relay(server.port), receive_buffer=4096) as before,
    ):
        options = WireOptions(
            send_buffer=16 << 10, min_rate=1_000_000, stall_timeout_s=0.3,
            ca_file=str(tls.authority), by_record=how == "from memory",
        )  # fmt: skip
        wire = Wire(Origin("https", "127.0.0.1", before.port), options)
        with pytest.raises(Stalled, match="takes less than 1e"):
            await send(wire, how, SIZE, tmp_path)
        await wire.aclose()


@on_linux
@pytest.mark.parametrize("how", WAYS)
async def test_a_server_that_takes_no_more(tmp_path: Path, how: str) -> None:
    """With no least rate at all, too; by the kernel's word or by ours, whichever comes first."""
    async with wired(taking(1024, 600), receive_buffer=4096, min_rate=0) as wire:
        with pytest.raises(Transient):
            await send(wire, how, SIZE, tmp_path)


@on_linux
@pytest.mark.parametrize("how", WAYS)
async def test_what_is_still_leaving_is_no_silence(tmp_path: Path, how: str) -> None:
    """All of it found room at once, and takes longer than an answer may; then the answer comes."""
    size = 200_000
    async with wired(
        taking(8192, 0.05, size), receive_buffer=8192, send_buffer=4 << 20,
        request_timeout_s=0.8, stall_timeout_s=0.8, min_rate=1000,
    ) as wire:  # fmt: skip
        begun = time.monotonic()
        assert (await send(wire, how, size, tmp_path)).status == 200
        assert time.monotonic() - begun > 1.2


@on_linux
async def test_what_a_limit_of_ours_holds_back_is_not_slow(tmp_path: Path) -> None:
    async with wired(
        taking(8192, 0.05), receive_buffer=8192, send_buffer=16 << 10, min_rate=1_000_000,
        send_rate=lambda: 20_000, stall_timeout_s=0.8,
    ) as wire:  # fmt: skip
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(send(wire, "from a file", SIZE, tmp_path), 2.5)


@pytest.mark.parametrize("coding", ["Transfer-Encoding: chunked", "Connection: close"])
async def test_our_own_reader_may_pause(coding: str) -> None:
    """What it does not take for a while is not what the server does not send."""
    goes_on = asyncio.Event()
    some, pieces = b"x" * 256, 6

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 200 OK\r\n{coding}\r\n\r\n".encode())
        for number in range(pieces):
            if number == 3:  # as far ahead as it is read
                await goes_on.wait()
            writer.write(b"100\r\n" + some + b"\r\n" if "chunked" in coding else some)
            await writer.drain()
            await asyncio.sleep(0.005)
        if "chunked" in coding:
            writer.write(b"0\r\n\r\n")
        await writer.drain()

    got = 0
    async with wired(script, stall_timeout_s=0.5, min_rate=4000) as wire:
        async for piece in wire.receive(GET, check=accept, refused=refused):
            got += len(piece)
            if not goes_on.is_set():
                await asyncio.sleep(0.8)
                goes_on.set()
    assert got == pieces * len(some)


async def fetch(wire: Wire, how: str) -> object:
    if how == "small":
        return await wire.ask(GET)
    if how == "in order":
        return [len(piece) async for piece in wire.receive(GET, check=accept, refused=refused)]
    room = memoryview(bytearray(SIZE))
    return await wire.receive_into_file(
        GET, Memory(0, room), 0, SIZE, check=accept, progress=ignore
    )


def saying(begin: bytes, again: bytes) -> Script:
    """Says something, and then something more every moment for ever."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(begin)
        while True:
            writer.write(again)
            await writer.drain()
            await asyncio.sleep(0.02)

    return script


@pytest.mark.parametrize(
    ("how", "is_secure"), [("small", False), ("in order", False), ("into memory", True)]
)
@pytest.mark.parametrize(
    ("begin", "again"),
    [
        (b"", b"H"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"),
    ],
    ids=["drops", "go on", "hints", "header lines"],
)
async def test_an_answer_that_does_not_begin(
    tls: Tls, how: str, is_secure: bool, begin: bytes, again: bytes
) -> None:
    """However much is said before the end of its head."""
    async with wired(
        saying(begin, again), tls=tls if is_secure else None, request_timeout_s=0.3
    ) as wire:
        begun = time.monotonic()
        with pytest.raises(Stalled):
            await fetch(wire, how)
        assert time.monotonic() - begun < 15


@pytest.mark.parametrize("by_record", [False, True])
@pytest.mark.parametrize(("after", "text"), [(100, "no connection within"), (30_000, "sends less")])
async def test_tls_by_drops(tls: Tls, after: int, text: str, by_record: bool) -> None:
    """In the handshake and within a record, of which nothing can be read before its end."""
    body = bytes(300_000)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE + body

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await asyncio.sleep(600)

    async with (
        Scripted(script, tls=tls) as server,
        Scripted(Relay(server.port, down_after=after)) as between,
    ):
        options = WireOptions(
            connect_timeout_s=0.3, stall_timeout_s=0.3, request_timeout_s=2,
            min_rate=1000, ca_file=str(tls.authority), by_record=by_record,
        )  # fmt: skip
        wire = Wire(Origin("https", "127.0.0.1", between.port), options)
        begun = time.monotonic()
        with pytest.raises(Stalled, match=text):
            await fetch(wire, "into memory")
        assert time.monotonic() - begun < 15
        await wire.aclose()


@on_linux
async def test_what_has_arrived() -> None:
    """Of a connection over which a known number of bytes went, and of what is none."""
    heard: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def script(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        heard.set_result(len(await reader.readexactly(10_000)))

    async with Scripted(script) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        sock = writer.get_extra_info("socket")
        before = nearness.sent(sock)
        assert before is not None
        writer.write(bytes(10_000))
        await heard
        await until(lambda: nearness.sent(sock) == (before.arrived + 10_000, False))
        writer.close()
    with socket.socket(socket.AF_UNIX) as no_tcp:
        assert nearness.sent(no_tcp) is None


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.01)
