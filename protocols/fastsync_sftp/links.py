"""Symbolic links, and the two orders of the arguments that make them."""

from __future__ import annotations

import asyncio

from fastsync.backend import Entry, WriteOptions
from fastsync.errors import FastsyncError, Unsupported
from fastsync_sftp import packets
from fastsync_sftp.packets import LSTAT, OK, REMOVE, SYMLINK, Request
from fastsync_sftp.placing import replace
from fastsync_sftp.pool import Pool
from fastsync_sftp.scripts import Script, Stopped
from fastsync_sftp.session import Session
from fastsync_sftp.temporary import temporary_name

_LSETSTAT = b"lsetstat@openssh.com"
_HARDLINK = b"hardlink@openssh.com"


class SymlinkOrder:
    """Whether a server wants the target first, as OpenSSH does, or the link, as the draft says.

    A link made the wrong way round would stand where its target points, anywhere. So one is made between
    two names of ours, and looked for, before the first real one.
    """

    def __init__(self) -> None:
        self._target_first: bool | None = None
        self._turn = asyncio.Lock()

    async def find_out(self, pool: Pool, root: bytes) -> None:
        """Try, once. Raises Unsupported where there are no links."""
        async with self._turn:
            if self._target_first is None:
                self._target_first = await pool.run(lambda _: self._try(root))

    def _try(self, root: bytes) -> Script[bool]:
        one, two = (root.rstrip(b"/") + b"/" + temporary_name() for _ in range(2))
        replies = yield [
            packets.on_path(SYMLINK, one, packets.string(two)),
            packets.on_path(LSTAT, one),
            packets.on_path(LSTAT, two),
            packets.on_path(REMOVE, one),
            packets.on_path(REMOVE, two),
        ]
        if packets.status_of(replies[0]) != OK:
            error = packets.error_of(replies[0])
            if error.transient:
                raise error
            raise Unsupported(f"no symbolic link can be made there: {error.message}") from error
        return replies[2][0] == packets.ATTRS

    def request(self, link: bytes, target: bytes) -> Request:
        if self._target_first:
            return packets.on_path(SYMLINK, target, packets.string(link))
        return packets.on_path(SYMLINK, link, packets.string(target))


def make_link(
    session: Session, order: SymlinkOrder, at: bytes, entry: Entry, options: WriteOptions
) -> Script[None]:
    """Make or replace one link."""
    temporary = at.rpartition(b"/")[0] + b"/" + temporary_name()
    requests = [order.request(temporary, packets.path_bytes(entry.target or ""))]
    if options.mtime and entry.mtime_ns is not None and session.has(_LSETSTAT):
        wanted = packets.attributes(mtime_ns=entry.mtime_ns)
        requests.append(packets.extended(_LSETSTAT, packets.string(temporary), wanted))
    replies = yield requests
    packets.must_be_ok(replies[0])
    try:
        yield from replace(session, temporary, at)
    except (FastsyncError, Stopped):
        yield [packets.on_path(REMOVE, temporary)]
        raise


def make_hard_link(session: Session, existing: bytes, at: bytes) -> Script[None]:
    """Make `at` another name of `existing`. Raises Unsupported where the server knows of no such thing."""
    if not session.has(_HARDLINK):
        raise Unsupported("the server makes no hard links")
    temporary = at.rpartition(b"/")[0] + b"/" + temporary_name()
    linked = packets.extended(_HARDLINK, packets.string(existing), packets.string(temporary))
    packets.must_be_ok((yield [linked])[0])
    try:
        yield from replace(session, temporary, at)
    except (FastsyncError, Stopped):
        yield [packets.on_path(REMOVE, temporary)]
        raise
    # A rename onto another name of the same file does nothing, and leaves both.
    yield [packets.on_path(REMOVE, temporary)]
