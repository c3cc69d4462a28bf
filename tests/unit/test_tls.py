"""TLS by way of memory, and by a record at a time: both ways, and ends that are none."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

import pytest
from web import Tls, make_tls

from fastsync.wire.tls import RecordSocket, TlsSocket

Serve = Callable[[ssl.SSLSocket], None]
Client = TlsSocket | RecordSocket


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=[TlsSocket, RecordSocket])
def connect(authority: Tls, request: pytest.FixtureRequest) -> Iterator[Callable[[Serve], Client]]:
    """Makes a client of ours whose other end runs a function."""
    ended: list[Callable[[], None]] = []

    def connect(serve: Serve) -> Client:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(authority.certificate, authority.key)
        ours, theirs = socket.socketpair()

        def run() -> None:
            with context.wrap_socket(theirs, server_side=True) as secured:
                serve(secured)

        thread = threading.Thread(target=run)
        thread.start()
        trusting = ssl.create_default_context(cafile=str(authority.authority))
        client: Client = request.param(ours, trusting, "localhost")
        ended.append(client.close)
        ended.append(thread.join)
        client.do_handshake()
        return client

    yield connect
    for end in ended:
        end()


@pytest.mark.parametrize("record", [1, 1_000, 4_096, 16_384])
def test_records_of_any_size_fill_a_block(connect: Callable[[Serve], Client], record: int) -> None:
    content = bytes(range(256)) * 16 * 8

    def serve(sock: ssl.SSLSocket) -> None:
        for start in range(0, len(content), record):
            sock.sendall(content[start : start + record])
        with contextlib.suppress(OSError):  # nobody answers the goodbye
            sock.unwrap()

    client = connect(serve)
    block, got = memoryview(bytearray(10_000)), b""
    while count := client.recv_into(block):
        got += block[:count]
    assert got == content
    assert client.recv(10) == b""


def test_an_end_that_nobody_announced_is_none(connect: Callable[[Serve], Client]) -> None:
    def serve(sock: ssl.SSLSocket) -> None:
        sock.sendall(b"the beginning")

    client = connect(serve)
    assert client.recv(100) == b"the beginning"
    with pytest.raises(ConnectionResetError):
        client.recv(100)


@pytest.mark.parametrize("connect", [TlsSocket], indirect=True)
def test_what_the_socket_has_no_room_for_is_sent_later(
    connect: Callable[[Serve], Client],
) -> None:
    content, got = bytes(4_000_000), bytearray()
    begin = threading.Event()

    def serve(sock: ssl.SSLSocket) -> None:
        begin.wait(10)
        while len(got) < len(content):
            got.extend(sock.recv(1 << 20))

    client = connect(serve)
    client.setblocking(False)
    sent = client.send(content)  # more than the socket has room for
    with pytest.raises(BlockingIOError):
        client.send(memoryview(content)[sent:])
    begin.set()
    client.setblocking(True)
    while sent < len(content):
        sent += client.send(memoryview(content)[sent:])
    client.flush()


def test_nothing_there_is_said_as_by_a_socket(connect: Callable[[Serve], Client]) -> None:
    done = threading.Event()

    def serve(sock: ssl.SSLSocket) -> None:
        done.wait(10)

    client = connect(serve)
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.recv(10)
    with pytest.raises(BlockingIOError):
        client.recv_into(memoryview(bytearray(10)))
    done.set()


def test_a_connection_that_is_gone_before_tls_begins() -> None:
    """By the server, or by whoever has lost interest in it; nothing stays open."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        ours.shutdown(socket.SHUT_RDWR)
        listener.accept()[0].close()
        with pytest.raises(ConnectionResetError, match="before TLS began"):
            RecordSocket(ours, ssl.create_default_context(), "localhost")


def test_a_full_block_is_waited_for_only_so_long(authority: Tls) -> None:
    """What came is given within the time that the socket has, however little comes at a time."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.certificate, authority.key)
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def serve() -> None:
        accepted, _ = listener.accept()
        with context.wrap_socket(accepted, server_side=True) as secured:
            while not over.wait(0.02):
                secured.sendall(b"x" * 100)

    thread = threading.Thread(target=serve)
    thread.start()
    trusting = ssl.create_default_context(cafile=str(authority.authority))
    client = RecordSocket(socket.create_connection(listener.getsockname()), trusting, "localhost")
    try:
        client.do_handshake()
        client.settimeout(0.2)
        before = client.fetched
        count = client.recv_into(memoryview(bytearray(1 << 20)), 0, socket.MSG_WAITALL)
        assert count > 0
        assert count % 100 == 0
        assert client.fetched - before >= count  # what is around them counts too
    finally:
        over.set()
        thread.join()
        client.close()
        listener.close()
