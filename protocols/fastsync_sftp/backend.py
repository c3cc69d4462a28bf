"""The ``sftp`` and ``ssh`` schemes: directories of servers reached through SSH."""

from __future__ import annotations

import asyncio
import os
from typing import Final

from fastsync.backend import StoreOptions
from fastsync.errors import FastsyncError, NotFound, Transient, UsageError
from fastsync.location import Location
from fastsync_sftp import packets
from fastsync_sftp.agreeing import agree
from fastsync_sftp.by_asyncssh import AsyncsshDialer, notice
from fastsync_sftp.by_openssh import OpensshDialer, find_ssh
from fastsync_sftp.packets import REALPATH, STAT, Request
from fastsync_sftp.place import Place, place_of
from fastsync_sftp.pool import Dialer, Pool
from fastsync_sftp.scripts import Script, run
from fastsync_sftp.session import Session
from fastsync_sftp.store import CopyingSftpStore, SftpStore

# Connections that may be cut in the moment they are made.
_TRIES: Final = 4


class SftpBackend:
    """Owns the connections; stores at the same server with the same settings share them."""

    def __init__(self) -> None:
        self._pools: dict[Place, Pool] = {}

    async def connect(self, location: Location, options: StoreOptions) -> SftpStore:
        """Log in, once per server. Raises AccessRefused, UsageError, Transient."""
        place = place_of(location, options)
        pool = self._pools.get(place)
        if pool is None:
            pool = Pool(
                place,
                *_dialers(place, options),
                options.stall_timeout_s,
                options.min_rate,
                options.note,
            )
            pool.foreseen = _first_looks(location.path)
            self._pools[place] = pool
        # To look and to delete, one connection has all there is to ask for on its way at once.
        pool.allow(1 if options.light else options.streams)
        try:
            root, real = await _resolved(pool, location.path)
        except FastsyncError as error:
            error.at(str(location))
            raise
        kind = CopyingSftpStore if b"copy-data" in pool.extensions else SftpStore
        return kind(pool, location, options, root, real)

    async def aclose(self) -> None:
        """Hang up everywhere."""
        pools, self._pools = self._pools, {}
        await asyncio.gather(*(pool.aclose() for pool in pools.values()))


def _dialers(place: Place, options: StoreOptions) -> tuple[Dialer, Dialer, Dialer | None]:
    """What makes the first connection, further ones, and further ones to a server nearby."""
    ssh = find_ssh() if place.transport != "asyncssh" else None
    if place.transport == "openssh":
        if ssh is None:
            raise UsageError("no ssh is found", where=str(place), hint="--ssh-transport asyncssh")
        only = OpensshDialer(place, ssh, options.request_timeout_s)
        return only, only, None
    if ssh is not None and agree(place, options):
        login = asyncio.get_running_loop().create_future()
        login.add_done_callback(notice)
        nearby = OpensshDialer(place, ssh, options.request_timeout_s, login)
        return nearby, AsyncsshDialer(place, options, login), nearby
    first = AsyncsshDialer(place, options)
    if ssh is None or place.password is not None:
        return first, first, None
    return first, first, OpensshDialer(place, ssh, options.request_timeout_s)


def _first_looks(path: str) -> list[Request]:
    """What will be asked of a location and of the directory that holds it."""
    root = os.fsencode(path)
    if not root.startswith(b"/") or root.startswith(b"/~") or b"\0" in root:
        return []
    looks = [packets.on_path(REALPATH, root), packets.on_path(STAT, root)]
    if not root.endswith(b"/"):
        looks.append(packets.on_path(REALPATH, root[: root.rindex(b"/") + 1]))
    return looks


async def _resolved(pool: Pool, path: str) -> tuple[bytes, bytes]:
    """See `_resolve`; a connection that is cut at once is met with another one."""
    attempt = 0
    while True:
        session = await pool.session()
        try:
            return await run(session, lambda session: _resolve(session, path))
        except Transient:
            attempt += 1
            if session.alive or attempt >= _TRIES:
                raise


def _resolve(session: Session, path: str) -> Script[tuple[bytes, bytes]]:
    """The server's path of a location, and where that really is.

    "/~/x" and "" are relative to where we are after login, "/~user/x" to that user's home; all else is
    from the top. Nothing is percent-decoded: a path is what a shell or a listing shows.
    """
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise UsageError("a path cannot contain a NUL character")
    if raw.startswith(b"/~"):
        user, _, rest = raw[1:].partition(b"/")
        if user == b"~":
            request = packets.on_path(REALPATH, b".")
        elif session.has(b"expand-path@openssh.com"):
            request = packets.extended(b"expand-path@openssh.com", packets.string(user))
        else:
            raise UsageError("the server does not tell where a user's home is")
        (reply,) = yield [request]
        try:
            home = packets.must_be_name(reply)
        except NotFound as error:
            name = os.fsdecode(user)
            raise UsageError(f"the server knows no home of {name[1:] or 'ours'}") from error
    elif not raw.startswith(b"/"):
        (reply,) = yield [packets.on_path(REALPATH, b".")]
        home, rest = packets.must_be_name(reply), raw
    else:
        home, rest = b"/", raw.lstrip(b"/")
    root = home.rstrip(b"/") + b"/" + rest if rest else home
    (reply,) = yield [packets.on_path(REALPATH, root)]
    try:
        real = packets.must_be_name(reply)
    except (NotFound, FastsyncError) as error:
        if error.transient:
            raise
        real = os.path.normpath(root)  # what does not exist yet has no real name on some servers
    return root, real
