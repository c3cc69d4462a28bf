"""SFTP messages are cut right however they arrive, and what is no SFTP ends the session."""

from __future__ import annotations

import asyncio
import struct
import time
from typing import Any

import pytest

from fastsync.backend import Buffer
from fastsync.errors import FastsyncError, Stalled, Transient
from fastsync_sftp import packets
from fastsync_sftp.packets import ATTRS, DATA, EXTENDED_REPLY, LOST, NAME, STATUS, BrokenProtocol
from fastsync_sftp.session import MAX_PACKET, Server, ServerLimits, Session


class Wire:
    """A byte stream that keeps what is sent."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.is_open = True
        self.unsent = 0
        self.arrived: int | None = None

    def write(self, data: list[Buffer]) -> None:
        for part in data:
            self.sent += part

    def close(self) -> None:
        self.is_open = False


def message(kind: int, number: int, body: bytes = b"") -> bytes:
    return struct.pack(">IBI", len(body) + 5, kind, number) + body


def begun(stall_timeout_s: float = 60.0, min_rate: int = 0) -> tuple[Session, Wire]:
    session, wire = Session(stall_timeout_s, min_rate), Wire()
    session.begin_with(wire, Server(ServerLimits(), {}, 0.0))
    session.feed(message(2, 3))
    return session, wire


def asked(session: Session, count: int) -> list[tuple[int, Any]]:
    """Ask so often; the list gets the answers."""
    got: list[tuple[int, Any]] = []

    def answered(kind: int, body: Any) -> None:
        got.append((kind, b"".join(body) if isinstance(body, list) else body))

    for _ in range(count):
        session.submit(packets.on_path(packets.STAT, b"/"), answered)
    return got


@pytest.mark.parametrize("step", [1, 2, 3, 5, 9, 13, 1000])
async def test_answers_in_pieces_of_any_size(step: int) -> None:
    session, _ = begun()
    got = asked(session, 3)
    block = bytes(range(200))
    stream = message(DATA, 1, struct.pack(">I", len(block)) + block)
    stream += message(STATUS, 0, struct.pack(">I", 0)) + message(ATTRS, 2, struct.pack(">I", 0))
    for start in range(0, len(stream), step):
        session.feed(stream[start : start + step])
    assert [kind for kind, _ in got] == [DATA, STATUS, ATTRS]
    assert got[0][1] == block
    session.close()


async def test_requests_leave_together() -> None:
    session, wire = begun()
    await asyncio.sleep(0)
    greeting = len(wire.sent)
    assert greeting
    asked(session, 3)
    assert len(wire.sent) == greeting
    await asyncio.sleep(0)
    one = message(packets.STAT, 0, packets.string(b"/"))
    assert len(wire.sent) == greeting + 3 * len(one)
    assert bytes(wire.sent[greeting:]).startswith(one)
    session.close()


@pytest.mark.parametrize(
    "answer",
    [
        message(STATUS, 7, struct.pack(">I", 0)),  # nobody asked
        struct.pack(">I", MAX_PACKET + 1) + bytes(5),
        struct.pack(">I", 4) + bytes(5),
        b"Welcome to this server!\r\n",
        message(DATA, 0, struct.pack(">I", 3) + b"four"),
        message(DATA, 0, b"12"),
    ],
    ids=("stranger", "long", "short", "greeting", "another-length", "no-length"),
)
async def test_what_is_no_sftp_ends_the_session(answer: bytes) -> None:
    session, wire = begun()
    got = asked(session, 1)
    session.feed(answer)
    assert not session.alive
    assert not wire.is_open
    assert [kind for kind, _ in got] == [LOST]
    assert isinstance(got[0][1], BrokenProtocol)


async def _foreseen(kind: int = ATTRS) -> tuple[Session, Wire]:
    """A session that has asked for a look at "/" with its greeting."""
    session, wire = Session(60.0), Wire()
    session.foresee([packets.on_path(packets.STAT, b"/")])
    beginning = asyncio.create_task(session.begin(wire))
    await asyncio.sleep(0.001)
    assert wire.sent.endswith(message(packets.STAT, 1, packets.string(b"/")))
    session.feed(message(2, 3) + message(STATUS, 0, bytes(4)) + message(kind, 1, b"early"))
    await beginning
    return session, wire


async def test_a_look_that_was_foreseen_is_asked_for_once() -> None:
    session, wire = await _foreseen()
    got = asked(session, 2)
    await asyncio.sleep(0.001)
    assert got == [(ATTRS, b"early")]
    assert wire.sent.endswith(message(packets.STAT, 3, packets.string(b"/")))
    session.feed(message(STATUS, 3, b"late"))
    assert got[1:] == [(STATUS, b"late")]


async def test_what_was_not_there_is_asked_for_again() -> None:
    session, wire = await _foreseen(STATUS)
    got = asked(session, 1)
    await asyncio.sleep(0.001)
    assert got == []
    assert wire.sent.endswith(message(packets.STAT, 3, packets.string(b"/")))
    session.close()


async def test_what_was_foreseen_is_forgotten_with_the_first_change() -> None:
    session, _ = await _foreseen()
    session.submit(packets.on_path(packets.RMDIR, b"/"), lambda _kind, _body: None)
    got = asked(session, 1)
    await asyncio.sleep(0.001)
    assert got == []
    session.close()
    assert [kind for kind, _ in got] == [LOST]


@pytest.mark.parametrize("is_in", [True, False])
async def test_who_is_in_need_not_ask_what_others_have_learnt(is_in: bool) -> None:
    """Who may not be let in yet has to wait for the server's own word."""
    session = Session(60.0)
    beginning = asyncio.create_task(session.begin(Wire(), is_in=is_in))
    session.learn(Server(ServerLimits(read=1), {}, 0.5))
    await asyncio.wait([beginning], timeout=0.01)
    assert beginning.done() == is_in
    session.feed(message(2, 3) + message(STATUS, 0, bytes(4)))
    await beginning
    assert (session.limits.read == 1) == is_in
    session.close()


async def test_everybody_hears_of_a_loss_once() -> None:
    session, _ = begun()
    got = asked(session, 3)
    session.lose(Transient("cut"))
    session.lose(Transient("cut again"))
    got_late = asked(session, 1)
    await asyncio.sleep(0)
    assert [kind for kind, _ in got + got_late] == [LOST] * 4
    errors = [error for _, error in got]
    assert len({id(error) for error in errors}) == 3
    assert {error.message for error in errors} == {"cut"}


@pytest.mark.parametrize(
    ("said", "block"), [(0, 32 << 10), (1, 4 << 10), (9000, 9000), (2**63, 255 << 10)]
)
async def test_limits_that_make_no_sense(said: int, block: int) -> None:
    session, wire = Session(60.0), Wire()
    beginning = asyncio.create_task(session.begin(wire))
    await asyncio.sleep(0)
    session.feed(message(2, 3) + message(EXTENDED_REPLY, 0, struct.pack(">QQQQ", *[said] * 4)))
    await beginning
    assert session.limits == ServerLimits(block, block, said or None)
    session.close()


async def test_silence_is_a_stall_only_where_an_answer_is_due() -> None:
    session, _ = begun(0.08)
    await asyncio.sleep(0.2)
    assert session.alive
    got = asked(session, 1)
    await asyncio.sleep(0.3)
    assert [kind for kind, _ in got] == [LOST]
    assert isinstance(got[0][1], Stalled)


async def test_a_login_that_takes_long_is_no_stall() -> None:
    """It has a time of its own."""
    session = Session(0.08, 1000)
    beginning = asyncio.create_task(session.begin(Wire()))
    await asyncio.sleep(0.3)
    assert session.alive
    session.feed(message(2, 3) + message(STATUS, 0, struct.pack(">III", 8, 0, 0)))
    await asyncio.wait_for(beginning, 10)
    session.close()


async def test_bytes_that_leave_are_no_stall() -> None:
    session, wire = begun(0.08)
    wire.unsent = 20
    asked(session, 3)
    for unsent in range(20, 0, -1):
        wire.unsent = unsent
        await asyncio.sleep(0.02)
    assert session.alive
    session.close()


def writing(session: Session, count: int, length: int = 100_000) -> list[tuple[int, Any]]:
    """Send so many blocks of a large file; the list gets the answers."""
    got: list[tuple[int, Any]] = []
    for _ in range(count):
        request = packets.write_block(b"handle", 0, bytes(length))
        session.submit_block(request, length, lambda kind, body: got.append((kind, body)))
    return got


async def test_an_answer_by_drops_is_a_stall() -> None:
    session, _ = begun(0.2, 2000)
    got = asked(session, 1)
    for byte in message(ATTRS, 0, bytes(1000))[:200]:
        session.feed(bytes([byte]))
        await asyncio.sleep(0.01)
        if got:
            break
    assert isinstance(got[0][1], Stalled)
    assert "less than 2000 bytes/s" in got[0][1].message


async def test_what_is_taken_by_drops_is_a_stall() -> None:
    """A window of one byte at a time: SSH makes a packet of each, and all of TCP moves."""
    session, wire = begun(0.2, 4000)
    wire.arrived = 5000
    got = writing(session, 1)
    wire.unsent = 100_000
    for _ in range(200):
        await asyncio.sleep(0.01)
        wire.unsent -= 1
        wire.arrived += 64
        if got:
            break
    assert isinstance(got[0][1], Stalled)


async def test_what_ssh_has_taken_may_leave_slowly() -> None:
    """Until it has, there is no answer, and nothing that waits here."""
    session, wire = begun(0.2, 4000)
    wire.arrived = 5000
    await asyncio.sleep(0.05)
    writing(session, 1)
    for _ in range(60):
        await asyncio.sleep(0.01)
        wire.arrived += 1000
    assert session.alive
    session.close()


async def test_a_server_that_takes_its_time_for_each_block() -> None:
    """All of them are there, and it writes one after the other."""
    session, wire = begun(0.4, 100_000)
    wire.arrived = 0
    got = writing(session, 12)
    await asyncio.sleep(0)
    wire.arrived = 2_000_000
    for number in range(12):
        await asyncio.sleep(0.1)
        session.feed(message(STATUS, number, struct.pack(">III", 0, 0, 0)))
    assert [kind for kind, _ in got] == [STATUS] * 12
    session.close()


async def test_small_answers_may_be_few() -> None:
    session, _ = begun(0.4, 1_000_000)
    got = asked(session, 12)
    for number in range(12):
        await asyncio.sleep(0.1)
        session.feed(message(STATUS, number, struct.pack(">III", 0, 0, 0)))
    assert [kind for kind, _ in got] == [STATUS] * 12
    session.close()


def test_attributes_come_back_as_they_went() -> None:
    raw = packets.attributes(size=5, owner=(1, 2), mode=0o644, mtime_ns=1_700_000_000_999_999_999)
    attrs, end = packets.read_attributes(raw)
    assert end == len(raw)
    assert attrs[:5] == (5, 1, 2, 0o644, 1_700_000_000)
    assert attrs.atime is not None
    assert abs(attrs.atime - time.time()) < 3600
    some, _ = packets.read_attributes(packets.attributes(mode=0o600))
    assert some == packets.Attributes(mode=0o600)


@pytest.mark.parametrize(("mtime_ns", "seconds"), [(-1, 0), (1 << 70, 0xFFFFFFFF), (999, 0)])
def test_times_that_do_not_fit(mtime_ns: int, seconds: int) -> None:
    assert packets.seconds_of(mtime_ns) == seconds


@pytest.mark.parametrize("cut", range(1, 30))
def test_names_that_end_in_the_middle(cut: int) -> None:
    body = struct.pack(">I", 1) + packets.string(b"name") + packets.string(b"long")
    body += packets.attributes(size=1, mode=0o644)
    assert packets.read_names(body)[0][0] == b"name"
    if cut < len(body):
        with pytest.raises(BrokenProtocol):
            packets.read_names(body[:-cut])


@pytest.mark.parametrize(
    "reply",
    [
        (STATUS, b""),
        (NAME, b""),
        (STATUS, struct.pack(">I", 0)),
        (STATUS, struct.pack(">II", 4, 99)),
    ],
)
def test_no_answer_that_is_wrong_passes(reply: tuple[int, bytes]) -> None:
    with pytest.raises(FastsyncError):
        packets.must_be_attributes(reply)


@pytest.mark.parametrize("more", [{}, {"mode": 0o644, "mtime_ns": 1, "owner": (1, 2)}])
@pytest.mark.parametrize(
    ("size", "told"), [(2**63 - 1, 2**63 - 1), (2**63, None), (2**64 - 1, None)]
)
def test_a_size_that_no_file_can_have_is_none(
    size: int, told: int | None, more: dict[str, Any]
) -> None:
    attributes, _ = packets.read_attributes(packets.attributes(size=size, **more))
    assert attributes.size == told
