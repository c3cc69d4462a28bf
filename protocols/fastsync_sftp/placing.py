"""The end of every write: metadata, then one name instead of another, old file or new and never neither."""

from __future__ import annotations

from typing import Final

from fastsync.backend import Entry, WriteOptions
from fastsync.errors import Conflict, DestinationFull, FastsyncError, NameRefused, Unsupported
from fastsync_sftp import packets
from fastsync_sftp.packets import (
    FSETSTAT,
    LSTAT,
    OK,
    REMOVE,
    RENAME,
    Reply,
    Request,
)
from fastsync_sftp.scripts import Script, Stopped
from fastsync_sftp.session import Session
from fastsync_sftp.temporary import ASIDE, temporary_name

_POSIX_RENAME = b"posix-rename@openssh.com"
_FSYNC = b"fsync@openssh.com"
_STATVFS = b"statvfs@openssh.com"
# What servers say that do not know SETSTAT, or are told not to do it (sftp-server -P).
_NEVER: Final = (packets.UNSUPPORTED, packets.PERMISSION_DENIED)
# ESPIPE, as rclone says it where it has no cache, and whoever else stands before a stream.
_SEEK: Final = "illegal seek"
# SSH2_FXE_STATVFS_ST_RDONLY
_READ_ONLY = 1
# Disks keep some bytes for themselves, and a block of ours may not fit into what is left.
_FULL = 1 << 20
# The most bytes in a name on nearly all file systems.
_USUAL_NAME = 255


def mode_for(like: Entry, options: WriteOptions) -> int | None:
    """The mode a file gets; None for what the server gives new files."""
    if like.mode is None or not options.mode:
        return None
    return like.mode & (0o7777 if options.special else 0o777)


class Finish:
    """Requests that give an open file its owner, mode and time, and make it durable; `owner` may be
    refused, as the system lets only root do it everywhere."""

    def __init__(
        self, session: Session, handle: bytes, like: Entry, options: WriteOptions, size: int | None
    ) -> None:
        self.requests: list[Request] = []
        self._session = session
        self._may_fail = 0
        self._attributes = -1
        if options.owner and like.owner is not None:
            # First, for it takes setuid and setgid away.
            owner = packets.attributes(owner=(like.owner.uid, like.owner.gid))
            self.requests.append(packets.request(FSETSTAT, handle, owner))
            self._may_fail = 1
        mode = mode_for(like, options)
        mtime_ns = like.mtime_ns if options.mtime else None
        if mode is not None or mtime_ns is not None or size is not None:
            wanted = packets.attributes(size=size, mode=mode, mtime_ns=mtime_ns)
            self._attributes = len(self.requests)
            self.requests.append(packets.request(FSETSTAT, handle, wanted))
        if options.durable:
            if session.has(_FSYNC):
                self.requests.append(packets.extended(_FSYNC, handle))
            else:
                session.lacks("the server does not say when a file is safely on its disk")

    def check(self, replies: list[Reply]) -> None:
        """Raises the error of what must not fail. A server that sets no attributes at all, not even those
        of a file that we have just made, keeps what it can: the bytes."""
        for index, reply in enumerate(replies):
            if index == self._attributes and packets.status_of(reply) in _NEVER:
                self._session.lacks(
                    "the server sets no times and modes; compare with --size-only or --update"
                )
            elif index >= self._may_fail:
                packets.must_be_ok(reply)


def replace(session: Session, temporary: bytes, target: bytes) -> Script[None]:
    """Give the finished file its name; whatever happens, the old file or the new one has it.

    Raises Conflict when a directory stands there.
    """
    if session.has(_POSIX_RENAME):
        (reply,) = yield [
            packets.extended(_POSIX_RENAME, packets.string(temporary), packets.string(target))
        ]
        if packets.status_of(reply) == OK:
            return
        error = packets.error_of(reply)
        if not error.transient:
            yield from _refuse_directory(target)
        raise error
    rename = packets.on_path(RENAME, temporary, packets.string(target))
    (reply,) = yield [rename]
    if packets.status_of(reply) == OK:
        return
    # Version 3 does not replace. The old file steps aside, and comes back if the new one cannot come.
    error = packets.error_of(reply)
    if error.transient or not (yield from _refuse_directory(target)):
        raise error
    session.lacks("the server cannot replace a file in one step: for a moment neither is there")
    aside = target.rpartition(b"/")[0] + b"/" + temporary_name(ASIDE)
    (reply,) = yield [packets.on_path(RENAME, target, packets.string(aside))]
    packets.must_be_ok(reply)
    (reply,) = yield from unstoppable([rename])
    if packets.status_of(reply) == OK:
        yield from unstoppable([packets.on_path(REMOVE, aside)])
        return
    yield from unstoppable([packets.on_path(RENAME, aside, packets.string(target))])
    raise packets.error_of(reply)


def unstoppable(requests: list[Request]) -> Script[list[Reply]]:
    """Requests that are sent even though the caller has gone away."""
    try:
        return (yield requests)
    except Stopped:
        return (yield requests)


def _refuse_directory(target: bytes) -> Script[bool]:
    """True when something stands there that can be replaced. Raises Conflict for a directory."""
    (reply,) = yield [packets.on_path(LSTAT, target)]
    if reply[0] != packets.ATTRS:
        return False
    if packets.must_be_attributes(reply).kind == "dir":
        raise Conflict("a directory stands there")
    return True


def explain(session: Session, error: FastsyncError, path: bytes) -> Script[FastsyncError]:
    """A better error for a write that failed without a reason: is the name too long, the disk
    full, or not to be written at all?"""
    if type(error) is not FastsyncError:
        return error
    if len(path.rpartition(b"/")[2]) > _USUAL_NAME:
        return NameRefused(f"the server does not take it: {error.message}", hint="a shorter name")
    if _SEEK in error.message:
        return Unsupported(
            "the server takes a file only from its beginning to its end",
            hint="an rclone there needs --vfs-cache-mode writes",
        )
    if not session.has(_STATVFS):
        return error
    directory = path.rpartition(b"/")[0] or b"/"
    (reply,) = yield [packets.extended(_STATVFS, packets.string(directory))]
    kind, body = reply
    # f_bsize, f_frsize, f_blocks, f_bfree, f_bavail, f_files, f_ffree, f_favail, f_fsid, f_flag,
    # f_namemax (PROTOCOL, 4.4)
    if kind == packets.EXTENDED_REPLY and isinstance(body, (bytes, memoryview)) and len(body) >= 88:
        if int.from_bytes(body[72:80], "big") & _READ_ONLY:
            return DestinationFull("the server's disk is read-only")
        free = int.from_bytes(body[32:40], "big") * int.from_bytes(body[8:16], "big")
        files, free_files = int.from_bytes(body[40:48], "big"), int.from_bytes(body[56:64], "big")
        if free < _FULL or (files and free_files == 0):
            return DestinationFull(
                "no space left on the server",
                hint="free some space and run the same command again",
            )
    return error
