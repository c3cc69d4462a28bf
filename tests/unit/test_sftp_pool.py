"""How many connections are opened, and what the user hears of a server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fastsync.backend import StoreOptions
from fastsync.errors import (
    AccessRefused,
    FastsyncError,
    Stalled,
    Transient,
    Unsupported,
    UsageError,
)
from fastsync.location import parse
from fastsync_sftp import by_asyncssh
from fastsync_sftp.bulk import RemoteFile, Spreader, Writing, from_memory
from fastsync_sftp.by_openssh import OpensshDialer
from fastsync_sftp.hashes import RemoteHashes, Shell
from fastsync_sftp.place import place_of
from fastsync_sftp.pool import Pool
from fastsync_sftp.session import Known, Session

PLACE = place_of(parse("sftp://somebody@host/"), StoreOptions())


class FarAway:
    """Connections to a server that is far away, as long as it takes to reach it."""

    name = "far"

    def __init__(self) -> None:
        self.dialed = 0

    async def dial(self, session: Session, known: Known, reached: Callable[[float], None]) -> None:
        self.dialed += 1
        session.rtt_s = 0.1
        reached(0.1)
        await asyncio.sleep(0.01)

    async def shell(self) -> Shell:
        raise Unsupported("there is none")

    async def hang_up(self, session: Session) -> None:
        """Nothing is held."""

    async def aclose(self) -> None:
        """Nothing is held."""


@pytest.mark.parametrize(("streams", "dialed"), [(1, 1), (4, 4), (64, 8)])
async def test_far_away_connections_are_made_at_once(streams: int, dialed: int) -> None:
    """As many as may be, and one where that is all that is wanted."""
    dialer = FarAway()
    pool = Pool(PLACE, dialer, dialer, None, 60.0, 0, lambda _text: None)
    pool.allow(streams)
    await pool.session()
    await asyncio.sleep(0.1)
    assert dialer.dialed == dialed
    await pool.aclose()


class Nearby(FarAway):
    """Connections to a server that is here."""

    async def dial(self, session: Session, known: Known, reached: Callable[[float], None]) -> None:
        self.dialed += 1
        if self.dialed > 1:
            raise Transient("one was enough")


async def test_the_last_connection_takes_blocks_whatever_it_was_kept_for() -> None:
    """The others are gone, and no new one can be had: the rest of a file waited for ever."""
    own = Nearby()
    pool = Pool(PLACE, own, own, Nearby(), 60.0, 0, lambda _text: None)
    pool.allow(2)
    first = await pool.session()
    pool.spreader.on_hunger()
    while len(pool.sessions) < 2:
        await asyncio.sleep(0)
    assert first.is_spare
    pool.sessions[1].lose(Transient("cut"))
    assert not first.is_spare
    await pool.aclose()


class Refused(FarAway):
    """Connections that nobody is let in by."""

    def __init__(self, error: FastsyncError) -> None:
        super().__init__()
        self.error = error

    async def dial(self, session: Session, known: Known, reached: Callable[[float], None]) -> None:
        self.dialed += 1
        raise self.error


@pytest.mark.parametrize("error", [AccessRefused("no"), UsageError("what?"), Transient("cut")])
async def test_who_is_refused_first_is_followed_by_the_other(error: FastsyncError) -> None:
    """Once: all further connections are the other's, too."""
    ssh, other = Refused(error), FarAway()
    pool = Pool(PLACE, ssh, other, ssh, 60.0, 0, lambda _text: None)
    pool.allow(4)
    assert not (await pool.session()).is_spare
    await asyncio.sleep(0.1)
    assert (ssh.dialed, other.dialed) == (1, 4)
    await pool.aclose()


async def test_a_server_that_is_silent_is_waited_for_once() -> None:
    ssh, other = Refused(Stalled("no answer")), Nearby()
    pool = Pool(PLACE, ssh, other, ssh, 60.0, 0, lambda _text: None)
    with pytest.raises(Stalled):
        await pool.session()
    assert other.dialed == 0
    await pool.aclose()


async def test_each_lack_is_told_once() -> None:
    told: list[str] = []
    pool = Pool(PLACE, FarAway(), FarAway(), None, 60.0, 0, told.append)
    for _ in range(2):
        pool.lacks("the server cannot do this")
    assert told == ["sftp://somebody@host: the server cannot do this"]
    await pool.aclose()


async def test_a_file_that_is_open_where_no_blocks_go_is_opened_elsewhere() -> None:
    """The rest of a file is short, and waits for no connection that is kept free."""
    spare, other = Session(60.0), Session(60.0)
    sessions = [spare, other]
    asked: list[Session] = []
    for session in sessions:
        session.submit = lambda _request, _answered, session=session: asked.append(session)  # type: ignore[method-assign, misc]
    file = RemoteFile(b"/file", 0, "sftp://host/file")
    file.adopt(spare, b"handle")
    spare.is_spare = True
    spreader = Spreader(sessions, 60.0)
    carrying = asyncio.create_task(
        spreader.carry(Writing(file, 0, 11, 32768, from_memory(0, bytes(11)), lambda _count: None))
    )
    await asyncio.sleep(0)
    assert asked == [other]
    carrying.cancel()
    await asyncio.gather(carrying, return_exceptions=True)


async def test_a_file_that_no_connection_takes_does_not_wait_for_ever() -> None:
    spare = Session(60.0)
    file = RemoteFile(b"/file", 0, "sftp://host/file")
    file.adopt(spare, b"handle")
    spare.is_spare = True
    writing = Writing(file, 0, 11, 32768, from_memory(0, bytes(11)), lambda _count: None)
    with pytest.raises(Stalled, match="no connection takes the rest"):
        await Spreader([spare], 0.01).carry(writing)


@pytest.mark.parametrize(
    "script",
    ['trap "" TERM; exec sleep 20', "sleep 20 & exec sleep 20", "yes; sleep 20"],
    ids=["does not listen", "another holds its output", "its output is read by nobody"],
)
async def test_a_shell_at_the_server_that_does_not_go(tmp_path: Path, script: str) -> None:
    """Is not waited for without end."""
    ssh = tmp_path / "ssh"
    ssh.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/pid\n{script}\n")
    ssh.chmod(0o755)
    dialer = OpensshDialer(PLACE, str(ssh), 10)
    await dialer.shell()
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    began = time.monotonic()
    await dialer.aclose()
    assert time.monotonic() - began < 5
    with contextlib.suppress(ProcessLookupError):
        os.killpg(int((tmp_path / "pid").read_text()), signal.SIGKILL)


class Mute:
    """A shell that tells what there is, and then nothing."""

    def __init__(self) -> None:
        self.asked = 0
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.asked += 1

    async def readline(self) -> bytes:
        if self.asked == 1:
            return b"fastsync sha256sum .\n"
        await asyncio.sleep(60)
        return b""

    def close(self) -> None:
        self.is_closed = True


async def test_a_shell_at_the_server_that_answers_no_more() -> None:
    """Is given up after the stall timeout, and not asked about the next file."""
    shells: list[Mute] = []
    notes: list[str] = []

    async def opened() -> Mute:
        shells.append(Mute())
        return shells[-1]

    hashes = RemoteHashes(opened, 0.05, notes.append)
    await hashes.find()
    assert list(hashes.algorithms) == ["sha256"]
    with pytest.raises(Unsupported, match="no digest within"):
        await hashes.digest(b"/file", 1000, "sha256")
    assert list(hashes.algorithms) == []
    assert shells[0].is_closed
    assert len(shells) == 1
    assert "answers no more" in notes[0]
    await hashes.aclose()


async def test_files_that_wait_for_a_shell_that_answers_no_more() -> None:
    """Are not asked about one after the other, each for as long."""
    shells: list[Mute] = []

    async def opened() -> Mute:
        shells.append(Mute())
        shells[-1].asked = len(shells) > 1  # what there is, only the first is asked
        return shells[-1]

    hashes = RemoteHashes(opened, 0.05, lambda _text: None)
    await hashes.find()
    asking = [hashes.digest(b"/file", 1000, "sha256") for _ in range(50)]
    told = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(each, Unsupported) for each in told)
    assert len(shells) == 4
    await hashes.aclose()


async def test_a_server_that_neither_gives_nor_refuses_a_shell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Connection:
        async def create_process(self, *_: object, **__: object) -> object:
            await asyncio.sleep(60)
            return None

    monkeypatch.setattr(by_asyncssh, "_SHELL_S", 0.05)
    dialer = by_asyncssh.AsyncsshDialer(PLACE, StoreOptions())
    monkeypatch.setattr(dialer, "_connections", {Session(60.0, 0): Connection()})
    with pytest.raises(Unsupported, match="no shell"):
        await dialer.shell()
