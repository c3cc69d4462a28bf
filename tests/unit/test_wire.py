"""The lean HTTP client against a server that says what a test wants, byte for byte."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from scripted import Script, Scripted
from web import make_tls

from fastsync.errors import (
    AccessRefused,
    Changed,
    FastsyncError,
    IntegrityError,
    Stalled,
    Transient,
)
from fastsync.wire import Headers, Memory, Origin, Outgoing, Reply, Wire, WireOptions

GET = Outgoing(b"GET /file HTTP/1.1\r\nHost: h\r\n\r\n")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


async def request(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def answering(*answers: bytes, closes: bool = False) -> Script:
    """Each request of a connection gets the next answer, the last one for ever."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = 0
        while True:
            await request(reader)
            writer.write(answers[min(number, len(answers) - 1)])
            await writer.drain()
            number += 1
            if closes:
                return

    return script


@contextlib.asynccontextmanager
async def wired(script: Script, **options: object) -> AsyncIterator[tuple[Wire, Scripted]]:
    """A client and its server; at the end, neither sockets nor threads are left."""
    before = len(os.listdir("/proc/self/fd"))
    async with Scripted(script) as server:
        defaults = {"connections": 4, "request_timeout_s": 2.0, "stall_timeout_s": 2.0}
        settings = WireOptions(**{**defaults, **options})  # type: ignore[arg-type]
        wire = Wire(Origin("http", "127.0.0.1", server.port), settings)
        try:
            yield wire, server
        finally:
            await wire.aclose()
    for _ in range(100):
        if len(os.listdir("/proc/self/fd")) <= before:
            break
        await asyncio.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) <= before
    assert not [one for one in threading.enumerate() if one.name.startswith("fastsync-wire")]


def accept(_status: int, _headers: Headers) -> None:
    """Any answer will do."""


def ignore(_count: int) -> None:
    """Nobody looks."""


def refused(reply: Reply) -> FastsyncError:
    return AccessRefused(f"{reply.status} {reply.body.decode()}")


async def test_a_connection_is_used_again() -> None:
    async with wired(answering(OK)) as (wire, server):
        for _ in range(3):
            reply = await wire.ask(GET)
            assert (reply.status, reply.body) == (200, b"hello")
        assert server.connections == 1


@pytest.mark.parametrize("repeatable", [True, False])
async def test_a_pooled_connection_that_died(repeatable: bool) -> None:
    """What may be sent again is, once, on a fresh connection."""
    async with wired(answering(OK, closes=True)) as (wire, server):
        await wire.ask(GET)
        await asyncio.sleep(0.05)
        reply = await wire.ask(GET._replace(repeatable=repeatable))
        assert reply.body == b"hello"
        assert server.connections == 2


async def test_many_at_once_come_in_order_and_fail_alone() -> None:
    seen = 0
    peak = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen, peak
        while True:
            head = await request(reader)
            seen += 1
            peak = max(peak, seen)
            number = int(head.split()[1][1:])
            await asyncio.sleep(0.001 * (number % 3))
            seen -= 1
            if number == 7:
                return
            body = b"%d" % number
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            await writer.drain()

    requests = [
        Outgoing(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % one, b"", False) for one in range(50)
    ]
    async with wired(script) as (wire, server):
        answers = await wire.ask_all(iter(requests), width=3)
        failed = [index for index, one in enumerate(answers) if isinstance(one, FastsyncError)]
        assert failed == [7]
        for number, answer in enumerate(answers):
            if isinstance(answer, Reply):
                assert answer.body == b"%d" % number
        assert peak <= 3
        assert server.connections <= 4


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n"),
            b"hello",
        ),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"hello"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\ncontent-length:5\r\nX: 1\r\nx: 2\r\n\r\nhello", b"hello"),
    ],
)  # fmt: skip
async def test_ways_to_send_a_body(answer: bytes, body: bytes) -> None:
    async with wired(answering(answer)) as (wire, server):
        for _ in range(2):
            assert (await wire.ask(GET)).body == body
        assert server.connections == 1


async def test_a_body_to_the_end_of_the_connection() -> None:
    async with wired(answering(b"HTTP/1.1 200 OK\r\n\r\nhello", closes=True)) as (wire, _):
        assert (await wire.ask(GET)).body == b"hello"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nX: 1\r\n folded\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: 1\nY: 2\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"SSH-2.0-nothing\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: %s\r\n" % (b"y" * 70_000) + b"\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 300 + b"\r\n",
    ],
)
async def test_answers_that_two_would_read_differently(answer: bytes) -> None:
    async with wired(answering(answer)) as (wire, _):
        with pytest.raises(IntegrityError):
            await wire.ask(GET)


@pytest.mark.parametrize("keep", range(0, len(OK), 7))
async def test_an_answer_that_is_cut_off(keep: int) -> None:
    async with wired(answering(OK[:keep], closes=True)) as (wire, _):
        with pytest.raises(Transient):
            await wire.ask(GET)


async def test_an_answer_that_is_too_large() -> None:
    async with wired(answering(OK)) as (wire, _):
        with pytest.raises(IntegrityError):
            await wire.ask(GET, most=4)


async def test_bytes_that_nobody_asked_for_end_the_connection() -> None:
    async with wired(answering(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")) as (
        wire,
        server,
    ):
        for _ in range(2):
            assert (await wire.ask(GET)).body == b"hello"
        assert server.connections == 2


async def test_silence() -> None:
    async with wired(answering(b""), request_timeout_s=0.2) as (wire, _):
        with pytest.raises(Stalled):
            await wire.ask(GET)


async def test_silence_within_a_body(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello"
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        async with wired(answering(answer), stall_timeout_s=0.2) as (wire, _):
            with pytest.raises(Stalled):
                await wire.receive_into_file(GET, fd, 0, 50, check=accept, progress=ignore)
    finally:
        os.close(fd)


async def test_a_body_into_a_file(tmp_path: Path) -> None:
    body = os.urandom(3_000_000)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    moved: list[int] = []
    digested = bytearray()
    try:
        async with wired(answering(answer)) as (wire, server):
            for _ in range(2):
                await wire.receive_into_file(
                    GET,
                    fd,
                    10,
                    len(body),
                    check=accept,
                    progress=moved.append,
                    digest=digested.extend,
                )
            assert server.connections == 1
        assert os.pread(fd, len(body) + 20, 10) == body
        assert bytes(digested) == body * 2
        assert sum(moved) == 2 * len(body)
    finally:
        os.close(fd)


@pytest.mark.parametrize("pause_s", [0, 0.01], ids=["at once", "in pieces"])
async def test_a_body_that_nobody_looks_at(tmp_path: Path, pause_s: float) -> None:
    """The kernel moves it; it is as long as it should be, and its connection is used again."""
    body = os.urandom(300_000)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request(reader)
            answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
            for start in range(0, len(answer), 100_000):
                writer.write(answer[start : start + 100_000])
                await writer.drain()
                await asyncio.sleep(pause_s)

    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    moved: list[int] = []
    taken: list[int] = []
    try:
        async with wired(script) as (wire, server):
            for offset in (10, 10 + len(body)):
                await wire.receive_into_file(
                    GET,
                    fd,
                    offset,
                    len(body),
                    check=accept,
                    progress=moved.append,
                    digest=lambda _piece: pytest.fail("it is not to be seen"),
                    digests=lambda: False,
                    took=taken.append,
                )
            assert server.connections == 1
        assert os.pread(fd, 2 * len(body) + 20, 10) == body * 2
        assert sum(moved) == sum(taken) == 2 * len(body)
    finally:
        os.close(fd)


async def test_a_body_for_the_kernel_that_is_cut_off(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello"
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        for closes, expected in ((True, "cut"), (False, "silent")):
            async with wired(answering(answer, closes=closes), stall_timeout_s=0.2) as (wire, _):
                with pytest.raises(Transient, match=expected):
                    await wire.receive_into_file(GET, fd, 0, 50, check=accept, progress=ignore)
    finally:
        os.close(fd)


@pytest.mark.parametrize("length", [4, 6])
async def test_a_body_of_another_length_than_asked_for(tmp_path: Path, length: int) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        async with wired(answering(OK)) as (wire, _):
            with pytest.raises(IntegrityError):
                await wire.receive_into_file(GET, fd, 0, length, check=accept, progress=ignore)
        assert os.pread(fd, 10, 0) == b""
    finally:
        os.close(fd)


async def test_a_refusal_is_no_body(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        async with wired(answering(answer)) as (wire, _):
            reply = await wire.receive_into_file(GET, fd, 0, 5, check=accept, progress=ignore)
            assert (reply.status, reply.body) == (403, b"no")
            with pytest.raises(AccessRefused, match="403 no"):
                await anext(wire.receive(GET, check=accept, refused=refused))
        assert os.pread(fd, 10, 0) == b""
    finally:
        os.close(fd)


async def test_a_body_in_order_and_left_early() -> None:
    body = os.urandom(5_000_000)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    async with wired(answering(answer)) as (wire, _):
        got = bytearray()
        async for piece in wire.receive(GET, check=accept, refused=refused):
            got += piece
        assert bytes(got) == body
        reading = wire.receive(GET, check=accept, refused=refused)
        assert len(await anext(reading)) > 0
        await reading.aclose()  # type: ignore[attr-defined]
        assert (await wire.ask(GET)).body == body


async def test_a_file_as_the_body(tmp_path: Path) -> None:
    content = os.urandom(2_000_000)
    (tmp_path / "file").write_bytes(content)
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    got = bytearray()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        got.extend(await reader.readexactly(1_500_000))
        writer.write(OK)
        await writer.drain()

    put = Outgoing(b"PUT /f HTTP/1.1\r\nHost: h\r\nContent-Length: 1500000\r\n\r\n")
    try:
        async with wired(script) as (wire, _):
            reply = await wire.send_from_file(put, fd, 500_000, 2_000_000, ignore)
            assert reply.body == b"hello"
        assert bytes(got) == content[500_000:]
        async with wired(script) as (wire, _):
            with pytest.raises(Changed):
                await wire.send_from_file(put, fd, 500_000, 2_000_001, ignore)
    finally:
        os.close(fd)


async def test_a_server_that_has_heard_enough(tmp_path: Path) -> None:
    """Its answer counts, not the broken pipe."""
    (tmp_path / "file").write_bytes(bytes(30_000_000))
    fd = os.open(tmp_path / "file", os.O_RDONLY)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
        await writer.drain()
        await reader.read(1_000_000)
        await asyncio.sleep(0.2)

    put = Outgoing(b"PUT /f HTTP/1.1\r\nHost: h\r\nContent-Length: 30000000\r\n\r\n")
    try:
        async with wired(script) as (wire, _):
            try:
                reply = await wire.send_from_file(put, fd, 0, 30_000_000, ignore)
            except Transient:
                return  # a reset can take the answer with it
            assert (reply.status, reply.body) == (403, b"no")
    finally:
        os.close(fd)


@pytest.mark.parametrize("steps", range(1, 12, 2))
async def test_cancellation_leaves_nothing(tmp_path: Path, steps: int) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5000000\r\n\r\n" + bytes(100_000)
    try:
        async with wired(answering(answer)) as (wire, _):
            work = asyncio.gather(
                wire.ask(GET),
                wire.receive_into_file(GET, fd, 0, 5_000_000, check=accept, progress=ignore),
            )
            await asyncio.sleep(0.01 * steps)
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
    finally:
        os.close(fd)


async def test_a_port_where_nobody_listens() -> None:
    async with Scripted(answering(OK)) as server:
        port = server.port
    wire = Wire(Origin("http", "127.0.0.1", port), WireOptions(connections=1))
    try:
        with pytest.raises(Transient):
            await wire.ask(GET)
    finally:
        await wire.aclose()


@pytest.mark.parametrize("code", [200, 407])
async def test_a_proxy(code: int) -> None:
    """Connects through for TLS, or says that it does not; the password is in no error."""
    heads: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await request(reader))
        writer.write(b"HTTP/1.1 %d x\r\n\r\n" % code)
        await writer.drain()

    async with Scripted(script) as server:
        proxy = f"http://user:secret@127.0.0.1:{server.port}"
        wire = Wire(Origin("https", "far.example", 443), WireOptions(proxy=proxy))
        try:
            with pytest.raises(FastsyncError) as caught:
                await wire.ask(GET)
            assert "secret" not in str(caught.value)
            assert heads[0].startswith(b"CONNECT far.example:443 HTTP/1.1\r\n")
            assert b"Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n" in heads[0]
        finally:
            await wire.aclose()


async def test_a_failure_may_be_longer_than_what_was_asked_for() -> None:
    page = b"HTTP/1.1 429 Busy\r\nContent-Length: 200\r\n\r\n" + bytes(200)
    async with wired(answering(page, OK)) as (wire, _):
        reply = await wire.ask(GET, most=0)
        assert (reply.status, len(reply.body)) == (429, 200)


@pytest.mark.parametrize(
    ("answer", "body", "connections"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"abc", 1),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\nabc", b"", 2),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"", 2),
        (b"HTTP/1.0 200 OK\r\n\r\n", b"", 2),
    ],
    ids=["short", "long", "chunked", "to its end"],
)
async def test_a_look_takes_no_long_body(answer: bytes, body: bytes, connections: int) -> None:
    async with wired(answering(answer)) as (wire, server):
        for _ in range(2):
            reply = await wire.ask(GET._replace(is_look=True), most=10)
            assert (reply.status, reply.body) == (200, body)
        assert server.connections == connections


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 206 Part\r\nContent-Length: 5\r\n\r\nabcde",
        b"HTTP/1.1 206 Part\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n",
        b"HTTP/1.0 206 Part\r\n\r\nabcde",
    ],
    ids=["length", "chunks", "to its end"],
)
@pytest.mark.parametrize("cut_at", [None, 3], ids=["at once", "in two"])
async def test_into_memory(answer: bytes, cut_at: int | None) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        end = len(answer) if cut_at is None else answer.index(b"\r\n\r\n") + 4 + cut_at
        writer.write(answer[:end])
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(answer[end:])

    async with wired(script) as (wire, _):
        room, heard = bytearray(b"." * 9), bytearray()
        target = Memory(100, memoryview(room))
        await wire.receive_into_file(
            GET, target, 102, 5, check=accept, progress=ignore, digest=heard.extend
        )
        assert (bytes(room), bytes(heard)) == (b"..abcde..", b"abcde")


async def test_more_than_there_is_memory_for() -> None:
    async with wired(answering(b"HTTP/1.0 200 OK\r\n\r\nabcdef", closes=True)) as (wire, _):
        room = bytearray(5)
        with pytest.raises(IntegrityError, match="more bytes"):
            await wire.receive_into_file(
                GET, Memory(0, memoryview(room)), 0, 5, check=accept, progress=ignore
            )
        assert room == bytes(5)


async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Never silent for long, and never done."""
    await request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("how", ["looked at", "into a file", "into memory", "in order"])
async def test_a_body_by_drops(tmp_path: Path, how: str) -> None:
    """A byte now and then is no silence, but would take for ever."""
    begun = time.monotonic()

    async def fetch(wire: Wire, fd: int) -> None:
        if how == "looked at":
            await wire.ask(GET)
        elif how == "in order":
            async for _piece in wire.receive(GET, check=accept, refused=refused):
                pass
        else:
            into = fd if how == "into a file" else Memory(0, memoryview(bytearray(100_000)))
            await wire.receive_into_file(GET, into, 0, 100_000, check=accept, progress=ignore)

    async with wired(trickle, stall_timeout_s=0.4, min_rate=1000) as (wire, _):
        file = (tmp_path / "file").open("wb")
        with file, pytest.raises(Stalled, match="sends less than"):
            await fetch(wire, file.fileno())
    assert time.monotonic() - begun < 3


async def test_a_server_that_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name leads elsewhere now: what was known of it is looked up again."""
    script = answering(OK, closes=True)
    async with Scripted(script) as other, wired(script) as (wire, server):
        assert (await wire.ask(GET)).body == b"hello"
        server._server.close()
        look_up = socket.getaddrinfo

        def moved(host: str, _port: int, **options: Any) -> Any:
            return look_up(host, other.port, **options)

        monkeypatch.setattr(socket, "getaddrinfo", moved)
        assert (await wire.ask(GET)).body == b"hello"
        assert (server.connections, other.connections) == (1, 1)


async def test_what_comes_slowly_is_told_as_it_comes() -> None:
    """A body that takes longer than patience lasts, but is never silent for so long."""
    pieces, told = 6, asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % pieces)
        for _ in range(pieces):
            await asyncio.sleep(0.4)
            told.clear()
            writer.write(b"x")
            await writer.drain()
            await told.wait()  # it was handed on before the next is sent

    def heard(_piece: memoryview) -> None:
        loop.call_soon_threadsafe(told.set)

    loop = asyncio.get_running_loop()
    async with wired(script, min_rate=0) as (wire, _):
        room = bytearray(pieces)
        await wire.receive_into_file(
            GET,
            Memory(0, memoryview(room)),
            0,
            pieces,
            check=accept,
            progress=ignore,
            digest=heard,
        )
        assert room == b"x" * pieces


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_INFO tells who is near")
@pytest.mark.parametrize(("record", "connections"), [(4096, 2), (16384, 1)])
async def test_small_records_from_nearby_are_taken_by_way_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: int, connections: int
) -> None:
    monkeypatch.setattr("fastsync.nearness.of_socket", lambda _sock: 0.0)
    body = bytes(6 << 20)
    made = make_tls(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    accepted: list[socket.socket] = []

    def answer(connection: ssl.SSLSocket) -> None:
        while connection.recv(4096):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
            for start in range(0, len(body), record):
                connection.sendall(body[start : start + record])

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                accepted.append(sock)
                secured = context.wrap_socket(sock, server_side=True)
                with contextlib.suppress(OSError), secured:
                    answer(secured)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        origin = Origin("https", "127.0.0.1", listener.getsockname()[1])
        wire = Wire(origin, WireOptions(by_record=True, ca_file=str(made.authority)))
        room = bytearray(len(body))
        try:
            for _ in range(3):
                await wire.receive_into_file(
                    GET, Memory(0, memoryview(room)), 0, len(body), check=accept, progress=ignore
                )
        finally:
            await wire.aclose()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
    assert len(accepted) == connections
