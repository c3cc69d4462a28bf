"""Requests to web servers: who is asked in whose name, redirects under our rules, and failures.

All of it goes by `fastsync.wire`: a look at an address leaves a connection behind that the bytes then come
by, and a library of its own for it took longer to import than small files take to fetch.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, TypeGuard, TypeVar

from fastsync.backend import StoreOptions
from fastsync.errors import FastsyncError, IntegrityError, PermissionRefused
from fastsync.patience import persistently, up_to
from fastsync.wire import MAX_BODY, Origin, Outgoing, Reply, Wire, WireOptions
from fastsync_http.answers import Representation, content_range, describe, error_of, patience_s
from fastsync_http.identity import Identity
from fastsync_http.targets import MAX_REDIRECTS, REDIRECTS, Target, is_public, redirected

T = TypeVar("T")

_IDLE_S: Final = 30.0
_BUSY_PAUSE_S: Final = 0.05
# Rounds in a row in which a busy server let nothing pass.
_IDLE_ROUNDS: Final = 3
# Servers that connections are kept to; redirects may lead to many.
_MAX_WIRES: Final = 32
# The rest of an answer that is read so that its connection can be used again.
_MAX_REST: Final = 64 << 10
# A range is refused like this by servers that do not know ranges, or files that have no byte 0.
_WITHOUT_RANGE: Final = (400, 405, 406, 416, 501)


class Found(NamedTuple):
    """Where an address led, and what is there."""

    target: Target
    media_type: str
    what: Representation


class _Way:
    """A wire and how many use it now."""

    __slots__ = ("users", "wire")

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.users = 0


class Client:
    """The way to the servers of one place, in one name."""

    def __init__(self, identity: Identity, options: StoreOptions) -> None:
        self._identity = identity
        self._options = options
        self._streams = options.streams
        self._ways: dict[Origin, _Way] = {}
        self._public: dict[str, bool | None] = {}
        self._lines: dict[tuple[Origin, bool], str] = {}
        self._proxies: dict[Origin, str | None] = {}
        self._crowded = asyncio.Lock()

    @property
    def streams(self) -> int:
        return self._streams

    @property
    def retries(self) -> int:
        return self._options.retries

    # -- requests ------------------------------------------------------------------------------------

    def outgoing(
        self, method: str, target: Target, headers: Mapping[str, str] | None = None
    ) -> Outgoing:
        """A request without a body."""
        key = (target.origin, target.own)
        lines = self._lines.get(key)
        if lines is None:
            if len(self._lines) > _MAX_WIRES:
                self._lines.clear()
            lines = self._lines[key] = "".join(
                f"{name}: {value}\r\n" for name, value in self._headers(target)
            )
        more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        head = f"{method} {target.request} HTTP/1.1\r\n{lines}{more}\r\n"
        return Outgoing(head.encode("utf-8", "surrogateescape"), is_head=method == "HEAD")

    def _headers(self, target: Target) -> list[tuple[str, str]]:
        """The lines of every request there. Only the user's own origin hears what is the user's."""
        lines = [
            ("Host", target.origin.authority),
            ("User-Agent", "fastsync"),
            ("Accept", "*/*"),
            ("Accept-Encoding", "identity"),
        ]
        if target.own:
            given = {name.lower() for name, _ in self._identity.headers}
            lines = [line for line in lines if line[0].lower() not in given]
            lines += self._identity.headers
        return lines

    def _proxy(self, origin: Origin) -> str | None:
        if origin not in self._proxies:
            if len(self._proxies) > 1024:
                self._proxies.clear()
            self._proxies[origin] = _proxy_for(origin)
        return self._proxies[origin]

    @contextlib.contextmanager
    def wire(self, origin: Origin) -> Iterator[Wire]:
        """Connections to a server, for the length of the block."""
        way = self._ways.get(origin)
        if way is None:
            options = self._options
            way = self._ways[origin] = _Way(
                Wire(
                    origin,
                    WireOptions(
                        connections=self._streams,
                        connect_timeout_s=options.request_timeout_s,
                        request_timeout_s=options.request_timeout_s,
                        stall_timeout_s=options.stall_timeout_s,
                        min_rate=options.min_rate,
                        idle_s=_IDLE_S,
                        by_record=True,
                        send_buffer=options.tcp_send_buffer,
                        recv_buffer=options.tcp_recv_buffer,
                        congestion_control=options.congestion_control,
                        proxy=self._proxy(origin),
                    ),
                )
            )
        way.users += 1
        try:
            yield way.wire
        finally:
            way.users -= 1

    def renew(self) -> None:
        """What is asked for from now on comes over other connections."""
        for way in self._ways.values():
            way.wire.renew()

    async def trim(self) -> None:
        """Let go of servers that nobody uses, if there are many."""
        if len(self._ways) > _MAX_WIRES:
            for origin in [origin for origin, way in self._ways.items() if not way.users]:
                await self._ways.pop(origin).wire.aclose()

    async def ask(
        self,
        method: str,
        target: Target,
        headers: Mapping[str, str] | None = None,
        most: int = MAX_BODY,
    ) -> Reply:
        """One small exchange; redirects and failures are answers too. Raises FastsyncError."""
        with self.wire(target.origin) as wire:
            return await wire.ask(self.outgoing(method, target, headers), most=most)

    async def ask_all(
        self, origin: Origin, requests: Sequence[Outgoing], most: int = MAX_BODY
    ) -> list[Reply | FastsyncError]:
        """Many small exchanges with one server at once; the answer has one item per request."""
        with self.wire(origin) as wire:
            answers = await wire.ask_all(requests, width=self._streams, most=most)
            busy = [number for number, answer in enumerate(answers) if _is_busy(answer)]
            if busy:
                async with self._crowded:
                    await self._ask_fewer(wire, requests, most, answers, busy)
        return answers

    async def _ask_fewer(
        self,
        wire: Wire,
        requests: Sequence[Outgoing],
        most: int,
        answers: list[Reply | FastsyncError],
        busy: list[int],
    ) -> None:
        """Ask again what was one too many, as many at once as get through: a limit of requests in a second
        makes it slow, and nothing fails, as long as there is some progress."""
        width = max(1, len(requests) - len(busy))
        idle = 0
        refused: list[int] = busy
        while busy and idle <= min(self._options.retries, _IDLE_ROUNDS):
            if refused:
                told = [
                    patience_s(answer.headers)
                    for answer in (answers[number] for number in refused)
                    if _is_busy(answer)
                ]
                longest = max((one for one in told if one is not None), default=None)
                pause = _jittered(_BUSY_PAUSE_S * 2.0**idle) if longest is None else longest
                await asyncio.sleep(min(pause, 60.0))
            asked, busy = busy[:width], busy[width:]
            again = await wire.ask_all(
                [requests[number] for number in asked], width=self._streams, most=most
            )
            for number, answer in zip(asked, again, strict=True):
                answers[number] = answer
            refused = [number for number in asked if _is_busy(answers[number])]
            passed = len(asked) - len(refused)
            idle = 0 if passed else idle + 1
            width = max(1, passed) if refused else 2 * width
            busy += refused  # behind the others: one may be refused for ever

    async def persistently(self, call: Callable[[], Awaitable[T]]) -> T:
        """What nobody else would try again."""
        return await persistently(call, up_to(self._options.retries))

    async def aclose(self) -> None:
        """Close every connection. Idempotent."""
        ways, self._ways = self._ways, {}
        for way in ways.values():
            await way.wire.aclose()

    # -- looking ---------------------------------------------------------------------------------------

    async def probe(self, target: Target, where: str) -> Found:
        """Follow redirects to a file and ask for its first byte, which tells more, and more reliably,
        than HEAD: the whole size, and whether there are ranges. Raises FastsyncError."""
        ranged = True
        hops = 0
        while True:
            try:
                reply = await self._look(target, ranged=ranged)
            except FastsyncError as error:
                if not hops:  # behind a redirect it is the server's name that helps
                    error.where = where
                raise
            status, headers = reply.status, reply.headers
            if status in REDIRECTS:
                hops += 1
                if hops > MAX_REDIRECTS:
                    raise PermissionRefused(
                        f"more than {MAX_REDIRECTS} redirects, one after the other", where=where
                    )
                following = redirected(target, headers.get("location"))
                await self._check_hop(target.origin, following.origin, where)
                target, ranged = following, True
                continue
            if status in _WITHOUT_RANGE and ranged:
                ranged = False
                continue
            if status not in (200, 206):
                raise error_of(status, headers, where)
            try:
                what = describe(status, headers)
                if status == 206 and content_range(headers)[:2] != (0, 1):
                    what = what._replace(has_ranges=False)
            except IntegrityError as error:
                if not ranged:
                    raise error.at(where) from None
                ranged = False  # what it says of ranges makes no sense: without, then
                continue
            await self.trim()
            return Found(target, headers.get("content-type") or "", what)

    async def _look(self, target: Target, *, ranged: bool) -> Reply:
        """The head of what a GET is answered. Raises FastsyncError."""
        asked = self.outgoing("GET", target, {"Range": "bytes=0-0"} if ranged else None)
        with self.wire(target.origin) as wire:
            return await wire.ask(asked._replace(is_look=True), most=_MAX_REST)

    async def _check_hop(self, start: Origin, to: Origin, where: str) -> None:
        """A server on the Internet has no business in our own network: it would have us fetch what only
        we can reach. Raises PermissionRefused."""
        if start.host == to.host:
            return
        if await self._is_public(start.host) and await self._is_public(to.host) is False:
            raise PermissionRefused(
                f"a redirect from the Internet to the private address {to.host}",
                where=where,
                hint="if that is meant, name it yourself",
            )

    async def _is_public(self, host: str) -> bool | None:
        """Whether all addresses of a host are public; None where they cannot be looked up."""
        if host not in self._public:
            if len(self._public) > 1024:
                self._public.clear()
            try:
                loop = asyncio.get_running_loop()
                found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
                self._public[host] = all(is_public(str(each[4][0])) for each in found)
            except (OSError, UnicodeError, ValueError):
                return None
        return self._public[host]


def _jittered(pause_s: float) -> float:
    import random  # with what it needs 2 ms, for what seldom happens

    return pause_s * random.uniform(0.5, 1.0)


def _is_busy(answer: Reply | FastsyncError) -> TypeGuard[Reply]:
    """Refused for being one of too many: nginx says 503 to them, unless it is told otherwise."""
    return not isinstance(answer, FastsyncError) and answer.status in (429, 503)


def _proxy_for(origin: Origin) -> str | None:
    """The proxy that the environment (or the system, where it has such a setting) names."""
    if sys.platform not in ("darwin", "win32") and not any(
        name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in os.environ
    ):
        return None
    from urllib.request import getproxies, proxy_bypass

    if proxy_bypass(origin.authority):
        return None
    found = getproxies()
    proxy = found.get(origin.scheme) or found.get("all")
    if not proxy or "://" in proxy:
        return proxy or None
    return "http://" + proxy.removeprefix("//")
