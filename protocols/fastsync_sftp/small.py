"""Small files: hundreds at once, each in as few round trips as is safe.

Written: open | write, metadata, close | rename. The rename waits for the answers, else a full disk would
leave a short file under the final name. Read: look, open | read, look again, close.
"""

from __future__ import annotations

from typing import Final

from fastsync.backend import Entry, Loaded, WholeJob, WriteOptions
from fastsync.errors import Changed, FastsyncError, NotFound, Vanished
from fastsync_sftp import packets
from fastsync_sftp.bulk import is_version
from fastsync_sftp.packets import (
    CLOSE,
    CREATE,
    DATA,
    EOF,
    EXCLUSIVE,
    FOR_READING,
    FOR_WRITING,
    FSTAT,
    LOST,
    LSTAT,
    REMOVE,
    Request,
)
from fastsync_sftp.placing import Finish, explain, mode_for, replace
from fastsync_sftp.scripts import Script, Stopped
from fastsync_sftp.session import Session
from fastsync_sftp.temporary import temporary_name

# Times that a file is opened again for what is still missing of it.
_MOST_TRIES: Final = 1000


def write_file(
    session: Session, target: bytes, job: WholeJob, options: WriteOptions, debris: list[bytes]
) -> Script[None]:
    """Let one file appear, whole or not at all. `debris` gets the temporary name of one that was, or may
    have been, cut off from the server, for another connection to remove."""
    directory = target.rpartition(b"/")[0]
    temporary = directory + b"/" + temporary_name()
    opening = open_new(temporary, job.entry, options)
    (reply,) = yield [opening]
    try:
        handle = packets.must_be_handle(reply)
    except FastsyncError as error:
        if reply[0] == LOST:
            debris.append(temporary)
        raise (yield from explain(session, error, target)) from error
    requests = blocks(session, handle, job)
    count = len(requests)
    finish = Finish(session, handle, job.entry, options, None)
    requests += finish.requests
    requests.append(packets.request(CLOSE, handle))
    is_open = True
    try:
        replies = yield requests
        is_open = False
        for reply in replies[:count]:
            packets.must_be_ok(reply)
        finish.check(replies[count:])
        yield from replace(session, temporary, target)
    except (FastsyncError, Stopped) as error:
        if is_open:
            yield [packets.request(CLOSE, handle)]
        if isinstance(error, FastsyncError):
            error = yield from explain(session, error, target)
        (reply,) = yield [packets.on_path(REMOVE, temporary)]
        if reply[0] == LOST:
            debris.append(temporary)
        raise error


def open_new(temporary: bytes, like: Entry, options: WriteOptions) -> Request:
    """Open a new file. Nobody else may read it before it has its mode."""
    mode = 0o600 if mode_for(like, options) is not None else None
    return packets.open_file(temporary, FOR_WRITING | CREATE | EXCLUSIVE, mode)


def blocks(session: Session, handle: bytes, job: WholeJob) -> list[Request]:
    data, block = memoryview(job.data), session.limits.write
    return [
        packets.write_block(handle, start, data[start : start + block])
        for start in range(0, len(data), block)
    ]


def read_file(session: Session, path: bytes, entry: Entry, *, follow: bool) -> Script[Loaded]:
    """One file of exactly the version that was listed."""
    opening = packets.open_file(path, FOR_READING)
    if follow:
        replies = yield [opening]
    else:
        replies = yield [packets.on_path(LSTAT, path), opening]
    try:
        handle = packets.must_be_handle(replies[-1])
    except NotFound as error:
        raise Vanished("the file is gone since it was listed") from error
    size, block = entry.size or 0, session.limits.read
    # One byte more than the file has, so that one that grew is noticed.
    starts = range(0, size + 1, block)
    requests = [packets.read_block(handle, start, min(block, size + 1 - start)) for start in starts]
    requests.append(packets.request(FSTAT, handle))
    is_open = True
    try:
        if not follow:
            must_be_version(entry, replies[0])
        requests.append(packets.request(CLOSE, handle))
        replies = yield requests
        is_open = False
        must_be_version(entry, replies[-2])
        data = bytearray()
        for start, reply in zip(starts, replies, strict=False):
            if start != len(data):
                break  # the block before came back short, as it may
            data += _data_of(reply)
        tries = 0
        while len(data) < size:
            tries += 1
            if tries > _MOST_TRIES:
                raise FastsyncError("the server sends next to nothing at a time")
            (reply,) = yield [opening]
            handle = packets.must_be_handle(reply)
            is_open = True
            (reply,) = yield [packets.read_block(handle, len(data), min(block, size - len(data)))]
            if not (more := _data_of(reply)):
                raise Changed(f"{len(data)} bytes arrived, {size} were listed")
            data += more
            replies = yield [packets.request(FSTAT, handle), packets.request(CLOSE, handle)]
            is_open = False
            must_be_version(entry, replies[0])
        if len(data) != size:
            raise Changed(f"{len(data)} bytes arrived, {size} were listed")
        return Loaded(entry, data)
    except (FastsyncError, Stopped):
        if is_open:
            yield [packets.request(CLOSE, handle)]
        raise


def _data_of(reply: packets.Reply) -> bytes:
    """The bytes of an answer to a read, none at the end of the file. Raises the error of any other."""
    if reply[0] == DATA:
        return b"".join(reply[1])
    if packets.status_of(reply) == EOF:
        return b""
    raise packets.error_of(reply)


def must_be_version(entry: Entry, reply: packets.Reply) -> None:
    """Raises Changed for a file that is not the one that was listed."""
    try:
        now = packets.must_be_attributes(reply)
    except NotFound as error:
        raise Vanished("the file is gone since it was listed") from error
    if not is_version(entry, now):
        raise Changed("the file was written to since it was listed")
