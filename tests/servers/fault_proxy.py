"""A TCP proxy that does to connections what networks do: cut, stall, slow down, chop up, lose the answer.

It knows no protocol, so it stands in front of any server, TLS or not. ``proxy.next(Trouble(cut_after=1000))``
is for the next connection that is made; connections without a script are honest. It runs in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Self

_PIECE = 64 << 10


@dataclass(frozen=True)
class Trouble:
    """What happens to one connection; offsets count the bytes that the server sent on it, with `upwards`
    those that the client did.

    `cut_after`: the end, by FIN or, with `reset`, by RST. `stall_after`: not a byte more, and no end.
    `half_close_after`: the client hears nothing more, but may go on. `rate`: bytes per second. `slice`: so
    many bytes at a time. `lose_reply_after`: so many bytes go up, the server's answer is cut away. `refuse`:
    it ends as soon as it was made.
    """

    cut_after: int | None = None
    stall_after: int | None = None
    half_close_after: int | None = None
    lose_reply_after: int | None = None
    reset: bool = False
    upwards: bool = False
    rate: int | None = None
    slice: int | None = None
    refuse: bool = False


@dataclass
class _Thread:
    loop: asyncio.AbstractEventLoop
    ended: asyncio.Event
    port: int


@dataclass
class _Link:
    """One connection through the proxy: both ends, and what has passed."""

    trouble: Trouble
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    passed: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})

    def cut(self, *, reset: bool) -> None:
        for writer in (self.client, self.server):
            if reset:
                # SO_LINGER of 0 s: close(2) sends RST and drops what is unsent (socket(7)).
                linger = struct.pack("ii", 1, 0)
                raw = writer.get_extra_info("socket")
                with contextlib.suppress(OSError):
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
            else:
                writer.close()


class FaultProxy:
    """In front of a port of this machine, from entering the block to leaving it."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._script: deque[Trouble] = deque()
        self._always: Trouble | None = None
        self._started: _Thread | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0
        self.troubled = 0
        self.passed = 0  # bytes, either way
        # What the first connection since `record` has passed on, upwards and down.
        self.recorded: dict[bool, bytearray] | None = None
        self._recorder: _Link | None = None

    @property
    def port(self) -> int:
        assert self._started is not None
        return self._started.port

    def next(self, *troubles: Trouble) -> None:
        """For the next connections, one each."""
        self._script.extend(troubles)

    def always(self, trouble: Trouble | None) -> None:
        """For every connection that has no script of its own."""
        self._always = trouble

    def forget(self) -> None:
        """Drop all scripts: connections that are made from now on are honest."""
        self._script.clear()
        self._always = None

    def record(self) -> None:
        """Keep what the next connection passes on."""
        self.recorded, self._recorder = {True: bytearray(), False: bytearray()}, None

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._started is not None
        self._started.loop.call_soon_threadsafe(self._started.ended.set)
        self._thread.join(10)

    # -- its thread ----------------------------------------------------------------------------------

    async def _serve(self, ready: threading.Event) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_PIECE)
        port = server.sockets[0].getsockname()[1]
        self._started = _Thread(asyncio.get_running_loop(), asyncio.Event(), port)
        ready.set()
        await self._started.ended.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        trouble = self._script.popleft() if self._script else self._always
        self.troubled += trouble is not None
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self._relay(trouble or Trouble(), reader, writer)

    async def _relay(
        self, trouble: Trouble, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target, limit=_PIECE)
        link = _Link(trouble, writer, back)
        try:
            if trouble.refuse:
                link.cut(reset=trouble.reset)
                return
            await asyncio.gather(
                self._pass(link, reader, back, up=True), self._pass(link, there, writer, up=False)
            )
        finally:
            for end in (writer, back):
                end.close()

    async def _pass(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool
    ) -> None:
        trouble = link.trouble
        is_mine = trouble.upwards == up
        while data := await reader.read(trouble.slice or _PIECE):
            if not up and _is_reached(trouble.lose_reply_after, link.passed[True]):
                link.cut(reset=trouble.reset)
                return
            if is_mine:
                for limit in (trouble.cut_after, trouble.stall_after, trouble.half_close_after):
                    if limit is not None:
                        data = data[: max(0, limit - link.passed[up])]
            link.passed[up] += len(data)
            if self.recorded is not None:
                self._recorder = self._recorder or link
                if self._recorder is link:
                    self.recorded[up] += data
            self.passed += len(data)
            writer.write(data)
            await writer.drain()
            if trouble.slice is not None:
                await asyncio.sleep(0)
            if is_mine and trouble.rate is not None:
                await asyncio.sleep(len(data) / trouble.rate)
            if is_mine and _is_reached(trouble.cut_after, link.passed[up]):
                link.cut(reset=trouble.reset)
                return
            if is_mine and _is_reached(trouble.stall_after, link.passed[up]):
                await asyncio.sleep(3600)
            if is_mine and _is_reached(trouble.half_close_after, link.passed[up]):
                writer.write_eof()
                return
        with contextlib.suppress(OSError):
            writer.write_eof()


def _is_reached(limit: int | None, passed: int) -> bool:
    return limit is not None and passed >= limit
