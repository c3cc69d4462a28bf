"""From one place of a server to another without passing through us: copies (copy-data), and new names."""

from __future__ import annotations

from typing import Final

from fastsync.backend import Entry, Progress, WriteOptions
from fastsync.errors import Changed, FastsyncError, NotFound, Vanished
from fastsync_sftp import packets
from fastsync_sftp.bulk import is_version
from fastsync_sftp.packets import (
    CLOSE,
    FOR_READING,
    FSTAT,
    LOST,
    LSTAT,
    NO_SUCH_FILE,
    REMOVE,
    RENAME,
    STAT,
)
from fastsync_sftp.placing import Finish, explain, replace
from fastsync_sftp.scripts import Script, Stopped
from fastsync_sftp.session import Session
from fastsync_sftp.small import must_be_version, open_new
from fastsync_sftp.temporary import temporary_name

# So much at once: a server that copies is silent meanwhile, and silence is how we notice a dead one.
_STEP: Final = 64 << 20


def copy_file(
    session: Session,
    source: bytes,
    target: bytes,
    entry: Entry,
    options: WriteOptions,
    progress: Progress,
    debris: list[bytes],
    error: FastsyncError | None,
    follow: bool,
) -> Script[None]:
    """Copy one file; `error` is what is wrong with the directory it is in."""
    if isinstance(error, NotFound):
        raise Vanished("the file is gone since it was listed") from error
    if error is not None:
        raise error
    temporary = target.rpartition(b"/")[0] + b"/" + temporary_name()
    look, *opened = yield [
        packets.on_path(STAT if follow else LSTAT, source),
        packets.open_file(source, FOR_READING),
        open_new(temporary, entry, options),
    ]
    handles = []
    problem: FastsyncError | None = None
    for reply in opened:
        try:
            handles.append(packets.must_be_handle(reply))
        except NotFound:
            problem = Vanished("the file is gone since it was listed")
        except FastsyncError as failed:
            problem = problem or failed
    closing = [packets.request(CLOSE, handle) for handle in handles]
    try:
        if problem is not None:
            raise problem
        reading, writing = handles
        must_be_version(entry, look)
        size = entry.size or 0
        for start in range(0, size, _STEP):
            length = min(_STEP, size - start)
            (reply,) = yield [packets.copy_data(reading, writing, start, length)]
            packets.must_be_ok(reply)
        finish = Finish(session, writing, entry, options, None)
        replies = yield [
            packets.request(FSTAT, reading),
            packets.request(FSTAT, writing),
            *finish.requests,
            *closing,
        ]
        closing = []
        must_be_version(entry, replies[0])
        if packets.must_be_attributes(replies[1]).size != size:
            raise Changed("the file became shorter while it was copied")
        finish.check(replies[2 : 2 + len(finish.requests)])
        packets.must_be_ok(replies[-1])
        yield from replace(session, temporary, target)
    except (FastsyncError, Stopped) as failed:
        if isinstance(failed, FastsyncError):
            failed = yield from explain(session, failed, target)
        *_, reply = yield [*closing, packets.on_path(REMOVE, temporary)]
        if reply[0] == LOST:
            debris.append(temporary)
        raise failed
    if entry.size:
        progress(entry.size)


def move(
    session: Session, source: bytes, target: bytes, entry: Entry, error: FastsyncError | None
) -> Script[None]:
    """Give a file or a directory another name; `error` is what is wrong with the directory it is in."""
    if error is not None:
        raise error
    (look,) = yield [packets.on_path(LSTAT, source)]
    if entry.kind == "file":
        must_be_version(entry, look)
        yield from replace(session, source, target)
        return
    if packets.must_be_attributes(look).kind != "dir" or entry.kind != "dir":
        raise Changed("something of another kind stands there")
    # Version 3's own rename, which does not replace.
    (reply,) = yield [packets.on_path(RENAME, source, packets.string(target))]
    packets.must_be_ok(reply)


def has_moved(source: bytes, target: bytes, entry: Entry) -> Script[bool]:
    """True when it is there, and no longer here."""
    ours, theirs = yield [packets.on_path(LSTAT, source), packets.on_path(LSTAT, target)]
    if packets.status_of(ours) != NO_SUCH_FILE or theirs[0] != packets.ATTRS:
        return False
    now = packets.must_be_attributes(theirs)
    return now.kind == entry.kind and (entry.kind == "dir" or is_version(entry, now))
