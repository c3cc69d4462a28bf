"""The worst servers there are: whatever they say, or do not, each command ends, and asks a bounded number of
times. What the network can do besides is in test_proxy_faults.py."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import nasty_sftp
import pytest
from scripted import Scripted

from fastsync.api import async_check, async_cp, async_ls, async_rm, async_sync
from fastsync.errors import FastsyncError

STALL_S = 0.4
RETRIES = 1
QUICK: dict[str, Any] = {
    "retry_count": RETRIES,
    "stall_timeout": STALL_S,
    "request_timeout": STALL_S,
    "min_rate": 1000,
    "parallel_streams": 2,
    "small_file_threshold": 0,
}
# What is asked one after the other until something comes of it, each with all its tries: generous, for the
# machine may be busy. Without an end is more.
LONGEST_S = 45
MOST_CONNECTIONS = 30
MOST_QUESTIONS = 100

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Command = Callable[[], Awaitable[object]]


async def outcome(command: Command) -> str:
    """How it ended: it must, and not by a bug."""
    begun = time.monotonic()
    try:
        async with asyncio.timeout(LONGEST_S):
            result = await command()
    except TimeoutError:
        return "no end"
    except FastsyncError as error:
        return f"exit {error.exit_code} after {time.monotonic() - begun:.1f} s"
    return f"exit {getattr(result, 'exit_code', 0)} after {time.monotonic() - begun:.1f} s"


class Counting:
    """A server whose scripts' questions are counted."""

    def __init__(self, script: Script) -> None:
        self.questions = 0
        self._script = script

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ask = reader.readuntil

        async def readuntil(separator: bytes) -> bytes:
            head = await ask(separator)
            self.questions += 1
            return head

        reader.readuntil = readuntil  # type: ignore[method-assign, assignment]
        await self._script(reader, writer)


class End(NamedTuple):
    name: str
    how: str
    connections: int
    questions: int = 0

    @property
    def is_bad(self) -> bool:
        many = self.connections > MOST_CONNECTIONS or self.questions > MOST_QUESTIONS
        return many or self.how == "no end"


# -- HTTP and S3 ---------------------------------------------------------------------------------------


def for_ever(begin: bytes, again: bytes = b"", pause_s: float = 0.01) -> Script:
    """Answers whatever is asked with a beginning, and then with more and more of the same."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(begin)
        while True:
            writer.write(again)
            await writer.drain()
            await asyncio.sleep(pause_s if again else 3600)

    return script


async def deaf(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


async def in_circles(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """To another path of its own each time."""
    while True:
        await reader.readuntil(b"\r\n\r\n")
        place = b"/%d" % time.monotonic_ns()
        writer.write(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + place + b"\r\n\r\n")


def always(answer: bytes) -> Script:
    """The same at once, to every question."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()

    return script


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
EMPTY = b"Content-Length: 0\r\n\r\n"
WEB = {
    "takes it and is silent": deaf,
    "a beginning, and silence": for_ever(OK),
    "an answer by drops": for_ever(b"", b"H", 0.05),
    "goes on and on": for_ever(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.05),
    "hints as fast as it can": for_ever(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100),
    "headers without end": for_ever(OK, b"A: b\r\n" * 5000),
    "one header without end": for_ever(OK + b"A: ", b"b" * 30_000),
    "in circles": in_circles,
    "a body by drops": for_ever(OK + b"Content-Length: 100000\r\n\r\n", b"x", 0.05),
    "a body that stops": for_ever(OK + b"Content-Length: 100000\r\n\r\nx"),
    "chunks by drops": for_ever(CHUNKED, b"1\r\nx\r\n", 0.1),
    "the size of a chunk without end": for_ever(CHUNKED, b"0" * 30_000),
    "trailers without end": for_ever(CHUNKED + b"1\r\nx\r\n0\r\n", b"A: b\r\n" * 5000),
    "no end of the last body": for_ever(OK + b"Connection: close\r\n\r\n", b"x", 0.05),
    "not now": always(b"HTTP/1.1 503 No\r\nRetry-After: 0\r\n" + EMPTY),
    "too many": always(b"HTTP/1.1 429 No\r\nRetry-After: 0\r\n" + EMPTY),
    "a failure": always(b"HTTP/1.1 500 No\r\n" + EMPTY),
    "another coding": always(OK + b"Content-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx"),
    "nothing, quickly": always(OK + EMPTY),
}


@pytest.mark.parametrize("verb", ["cp", "ls", "sync"])
async def test_http(tmp_path: Path, verb: str) -> None:
    async def of(name: str, script: Script) -> End:
        to = tmp_path / name
        counting = Counting(script)
        async with Scripted(counting) as server:
            url = f"http://127.0.0.1:{server.port}/d/"
            commands: dict[str, Command] = {
                "cp": lambda: async_cp(url + "file", to, **QUICK),
                "ls": lambda: async_ls(url, **QUICK),
                "sync": lambda: async_sync(url, to, delete=True, **QUICK),
            }
            how = await outcome(commands[verb])
            return End(name, how, server.connections, counting.questions)

    ends = await asyncio.gather(*(of(*item) for item in WEB.items()))
    assert [end for end in ends if end.is_bad] == []


@pytest.mark.parametrize("verb", ["down", "up", "rm", "sync", "check"])
async def test_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "a")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/file").write_bytes(bytes(300_000))

    async def of(name: str, script: Script) -> End:
        counting = Counting(script)
        async with Scripted(counting) as server:
            more = {**QUICK, "endpoint_url": f"http://127.0.0.1:{server.port}"}
            to, place = tmp_path / name, "s3://bucket/"
            commands: dict[str, Command] = {
                "down": lambda: async_cp(place + "file", to, **more),
                "up": lambda: async_cp(tmp_path / "dir/file", place + "file", **more),
                "rm": lambda: async_rm(place + "x/", recursive=True, **more),
                "sync": lambda: async_sync(tmp_path / "dir", place, delete=True, **more),
                "check": lambda: async_check(tmp_path / "dir", place, **more),
            }
            how = await outcome(commands[verb])
            return End(name, how, server.connections, counting.questions)

    ends = await asyncio.gather(*(of(*item) for item in WEB.items()))
    assert [end for end in ends if end.is_bad] == []


# -- SFTP ----------------------------------------------------------------------------------------------

NASTY = [
    "deaf",
    "banner",
    "drops",
    "greeting",
    "status-for-nobody",
    "answer-without-end",
    "no-names",
    "no-page",
    "nothing-read",
    "byte-read",
    "read-by-drops",
    "no-block",
]


async def test_sftp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the system's ssh, of which there is another here: it is the server itself."""
    ssh = tmp_path / "bin/ssh"
    ssh.parent.mkdir()
    ssh.write_text(f'#!/bin/sh\nexec {sys.executable} -S {nasty_sftp.__file__} {tmp_path} "$@"\n')
    ssh.chmod(0o700)
    monkeypatch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")
    more = {**QUICK, "ssh_transport": "openssh", "request_timeout": 3.0, "recursive": True}

    async def of(name: str) -> End:
        place = f"sftp://{name}@host.invalid/file"
        how = await outcome(lambda: async_cp(place, tmp_path / f"to-{name}", **more))
        return End(name, how, len((tmp_path / f"calls-{name}").read_text()))

    ends = await asyncio.gather(*(of(name) for name in NASTY))
    assert [end for end in ends if end.is_bad] == []


def before(text: bytes, again: bytes = b"", pause_s: float = 0.01) -> Script:
    """Says something before it is asked, and then something more for ever."""

    async def script(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(text)
        while True:
            writer.write(again)
            await writer.drain()
            await asyncio.sleep(pause_s if again else 3600)

    return script


VERSION = b"SSH-2.0-nasty\r\n"
SHELLS = {
    "deaf": deaf,
    "a banner without end": before(b"", b"Welcome!\r\n" * 100),
    "one line without end": before(b"", b"Welcome!" * 100),
    "a banner by drops": before(b"", b"W", 0.05),
    "its version by drops": before(b"SSH-2.0-", b"n", 0.05),
    "its version alone": before(VERSION),
    "no packets": before(VERSION, b"\0" * 100),
    "a packet by drops": before(VERSION + b"\0\0\x80\0", b"x", 0.05),
}


async def test_ssh(tmp_path: Path) -> None:
    """What asyncssh is told before there is a session."""
    (tmp_path / "none").write_text("")
    more = {
        **QUICK,
        "ssh_transport": "asyncssh",
        "known_hosts": str(tmp_path / "none"),
        "ssh_config": str(tmp_path / "none"),
        "request_timeout": 1.5,
    }

    async def of(name: str, script: Script) -> End:
        async with Scripted(script) as server:
            place = f"sftp://somebody@127.0.0.1:{server.port}/file"
            how = await outcome(lambda: async_cp(place, tmp_path / f"to-{name}", **more))
            return End(name, how, server.connections)

    ends = await asyncio.gather(*(of(*item) for item in SHELLS.items()))
    assert [end for end in ends if not end.how.startswith("exit 1 ")] == []
    assert [end for end in ends if end.is_bad] == []
