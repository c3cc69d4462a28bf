"""The messages of SFTP version 3, as bytes, and what its status codes mean to us.

The protocol is draft-ietf-secsh-filexfer-02; extensions are those of OpenSSH (its file PROTOCOL).
Everything that comes from a server is checked here before anybody computes with it.
"""

from __future__ import annotations

import os
import stat
import struct
import time
from typing import Any, Final, NamedTuple, TypeAlias

from fastsync.backend import Buffer, Kind
from fastsync.errors import (
    Conflict,
    DestinationFull,
    FastsyncError,
    NameRefused,
    NotFound,
    PermissionRefused,
    Transient,
    Unsupported,
)

# Requests
INIT: Final = 1
OPEN: Final = 3
CLOSE: Final = 4
READ: Final = 5
WRITE: Final = 6
LSTAT: Final = 7
FSTAT: Final = 8
SETSTAT: Final = 9
FSETSTAT: Final = 10
OPENDIR: Final = 11
READDIR: Final = 12
REMOVE: Final = 13
MKDIR: Final = 14
RMDIR: Final = 15
REALPATH: Final = 16
STAT: Final = 17
RENAME: Final = 18
READLINK: Final = 19
SYMLINK: Final = 20
EXTENDED: Final = 200
# Answers; LOST is ours, for an answer that will not come.
VERSION: Final = 2
STATUS: Final = 101
HANDLE: Final = 102
DATA: Final = 103
NAME: Final = 104
ATTRS: Final = 105
EXTENDED_REPLY: Final = 201
LOST: Final = -1

# Flags of OPEN
FOR_READING: Final = 1
FOR_WRITING: Final = 2
CREATE: Final = 8
TRUNCATE: Final = 16
EXCLUSIVE: Final = 32

# Status codes; above 8 those of later versions, which some servers send all the same.
OK: Final = 0
EOF: Final = 1
NO_SUCH_FILE: Final = 2
PERMISSION_DENIED: Final = 3
FAILURE: Final = 4
BAD_MESSAGE: Final = 5
UNSUPPORTED: Final = 8
ALREADY_EXISTS: Final = 11
_KINDS: Final[dict[int, type[FastsyncError]]] = {
    NO_SUCH_FILE: NotFound,
    PERMISSION_DENIED: PermissionRefused,
    BAD_MESSAGE: NameRefused,  # OpenSSH's word for ENAMETOOLONG and EINVAL
    6: Transient,  # no connection
    7: Transient,  # connection lost
    UNSUPPORTED: Unsupported,
    ALREADY_EXISTS: Conflict,
    12: DestinationFull,  # write protected
    14: DestinationFull,  # no space on filesystem
    15: DestinationFull,  # quota exceeded
    18: Conflict,  # directory not empty
    19: Conflict,  # not a directory
}
# How strerror(3) names what version 3 has no code for: servers other than OpenSSH's tell it beside FAILURE.
_FULL: Final = ("no space left on device", "disk quota exceeded", "read-only file system")
_SAID: Final = {
    NO_SUCH_FILE: "no such file or directory",
    PERMISSION_DENIED: "permission denied",
    BAD_MESSAGE: "the server does not take the name",
    FAILURE: "the server failed to do it, and does not say why",
    UNSUPPORTED: "the server cannot do that",
    14: "no space left on device",
    15: "disk quota exceeded",
}

_HAS_SIZE: Final = 1
_HAS_OWNER: Final = 2
_HAS_MODE: Final = 4
_HAS_TIMES: Final = 8
_HAS_MORE: Final = 1 << 31
_USUAL: Final = _HAS_SIZE | _HAS_OWNER | _HAS_MODE | _HAS_TIMES
_usual = struct.Struct(">IQIIIII")  # flags, size, uid, gid, mode, atime, mtime
_u32 = struct.Struct(">I")
_u64 = struct.Struct(">Q")
_two = struct.Struct(">II")

# Seconds since 1970 are 32 bits without a sign in version 3.
LATEST_TIME: Final = 0xFFFFFFFF

# An answer: its type and what follows the id, as bytes or a view of them; a list of views, the pieces it
# arrived in, for DATA; an error for LOST.
Reply: TypeAlias = tuple[int, Any]


class BrokenProtocol(FastsyncError):
    """A server sent what is no SFTP."""


class Attributes(NamedTuple):
    """What a server says of a file; None for what it leaves out. `mode` has the type bits too."""

    size: int | None = None
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None
    mtime: int | None = None
    atime: int | None = None

    @property
    def kind(self) -> Kind:
        return kind_of(self.mode)

    @property
    def touched(self) -> int | None:
        """When it was written to or given its attributes, whichever was later."""
        return max((each for each in (self.mtime, self.atime) if each is not None), default=None)


def kind_of(mode: int | None) -> Kind:
    """The kind of an entry. A server that tells no mode has nothing but files as far as we can know."""
    if mode is None:
        return "file"
    form = stat.S_IFMT(mode)
    if form == stat.S_IFREG or form == 0:
        return "file"
    if form == stat.S_IFDIR:
        return "dir"
    return "link" if form == stat.S_IFLNK else "special"


# -- writing -------------------------------------------------------------------------------------------


def string(data: Buffer) -> bytes:
    """A string, with its length in front."""
    return _u32.pack(len(data)) + data


def path_bytes(path: str) -> bytes:
    """A path as the server has it: bytes that are not UTF-8 pass through."""
    return os.fsencode(path)


def attributes(
    *,
    size: int | None = None,
    owner: tuple[int, int] | None = None,
    mode: int | None = None,
    mtime_ns: int | None = None,
) -> bytes:
    """Attributes to set. Times before 1970 and after 2106 do not fit, and become the nearest that does.
    The time of the last access goes with the other one: it is now (see `temporary.is_abandoned`)."""
    flags = 0
    parts = []
    if size is not None:
        flags |= _HAS_SIZE
        parts.append(_u64.pack(size))
    if owner is not None:
        flags |= _HAS_OWNER
        parts.append(_two.pack(*owner))
    if mode is not None:
        flags |= _HAS_MODE
        parts.append(_u32.pack(mode))
    if mtime_ns is not None:
        flags |= _HAS_TIMES
        seconds = seconds_of(mtime_ns)
        parts.append(_two.pack(min(int(time.time()), LATEST_TIME), seconds))
    return _u32.pack(flags) + b"".join(parts)


def seconds_of(mtime_ns: int) -> int:
    """The time as version 3 keeps it: whole seconds, truncated, within 1970 and 2106."""
    return min(max(mtime_ns // 1_000_000_000, 0), LATEST_TIME)


# -- reading -------------------------------------------------------------------------------------------


def read_string(body: bytes | memoryview, position: int) -> tuple[bytes, int]:
    """The string at `position`, and where it ends. Raises BrokenProtocol."""
    if len(body) < position + 4:
        raise BrokenProtocol("a message ends in the middle")
    start = position + 4
    end = start + int(_u32.unpack_from(body, position)[0])
    if end > len(body):
        raise BrokenProtocol("a string is longer than its message")
    return bytes(body[start:end]), end


def read_attributes(body: bytes | memoryview, position: int = 0) -> tuple[Attributes, int]:
    """The attributes at `position`, and where they end. A size that no file can have is as good as none.
    Raises BrokenProtocol."""
    try:
        (flags,) = _u32.unpack_from(body, position)
        if flags == _USUAL:
            _, size, uid, gid, mode, atime, mtime = _usual.unpack_from(body, position)
            told = None if size >> 63 else size
            return Attributes(told, uid, gid, mode, mtime, atime), position + _usual.size
        position += 4
        size = uid = gid = mode = mtime = atime = None
        if flags & _HAS_SIZE:
            (told,) = _u64.unpack_from(body, position)
            size = None if told >> 63 else told
            position += 8
        if flags & _HAS_OWNER:
            uid, gid = _two.unpack_from(body, position)
            position += 8
        if flags & _HAS_MODE:
            (mode,) = _u32.unpack_from(body, position)
            position += 4
        if flags & _HAS_TIMES:
            atime, mtime = _two.unpack_from(body, position)
            position += 8
        if flags & _HAS_MORE:
            (count,) = _u32.unpack_from(body, position)
            position += 4
            for _ in range(2 * count):
                _, position = read_string(body, position)
    except struct.error as error:
        raise BrokenProtocol("a message ends in the middle") from error
    return Attributes(size, uid, gid, mode, mtime, atime), position


def read_names(body: bytes | memoryview) -> list[tuple[bytes, Attributes]]:
    """The names of a NAME answer, unchecked, with their attributes. Raises BrokenProtocol."""
    body = bytes(body)
    found: list[tuple[bytes, Attributes]] = []
    if len(body) < 4:
        raise BrokenProtocol("a message ends in the middle")
    (count,) = _u32.unpack_from(body, 0)
    position, end = 4, len(body)
    try:
        for _ in range(count):
            start = position + 4
            position = start + _u32.unpack_from(body, position)[0]
            name = body[start:position]
            # The long name is for people to look at.
            position += 4 + _u32.unpack_from(body, position)[0]
            if position > end:
                raise BrokenProtocol("a string is longer than its message")
            attrs, position = read_attributes(body, position)
            found.append((name, attrs))
    except struct.error as error:
        raise BrokenProtocol("a message ends in the middle") from error
    return found


def read_extensions(body: bytes | memoryview) -> dict[bytes, bytes]:
    """The extensions in a VERSION answer, by name. Raises BrokenProtocol."""
    found = {}
    position = 0
    while position < len(body):
        name, position = read_string(body, position)
        found[name], position = read_string(body, position)
    return found


# -- answers -------------------------------------------------------------------------------------------


def status_of(reply: Reply) -> int | None:
    """The code of a STATUS answer, None for any other."""
    kind, body = reply
    if kind != STATUS:
        return None
    if len(body) < 4:
        raise BrokenProtocol("a status without a code")
    return int(_u32.unpack_from(body, 0)[0])


def error_of(reply: Reply) -> FastsyncError:
    """The error of ours for an answer that is not the one that was hoped for."""
    kind, body = reply
    if isinstance(body, FastsyncError):
        return body
    code = status_of(reply)
    if code is None or code in (OK, EOF):
        return BrokenProtocol(f"an answer of type {kind} where another was due")
    text = _SAID.get(code, "")
    if len(body) > 8 and code not in (NO_SUCH_FILE, PERMISSION_DENIED):
        try:
            said = read_string(body, 4)[0].decode("utf-8", "replace").strip()
        except BrokenProtocol:
            said = ""
        # "Failure" is the name of the code: what OpenSSH says for all it has no other code for.
        if said and code != BAD_MESSAGE and said.lower() != "failure":
            text = said[:200].lower() if said.isascii() else said[:200]
    if code == FAILURE and any(words in text for words in _FULL):
        return DestinationFull(text)
    return _KINDS.get(code, FastsyncError)(text or f"the server said {code}")


def must_be_ok(reply: Reply) -> None:
    """Raises the error of an answer other than OK."""
    if status_of(reply) != OK:
        raise error_of(reply)


def must_be_handle(reply: Reply) -> bytes:
    """The handle, as it goes into requests. Raises the error of any other answer."""
    kind, body = reply
    if kind != HANDLE:
        raise error_of(reply)
    return string(read_string(body, 0)[0])


def must_be_attributes(reply: Reply) -> Attributes:
    """The attributes. Raises the error of any other answer."""
    kind, body = reply
    if kind != ATTRS:
        raise error_of(reply)
    return read_attributes(body)[0]


def must_be_name(reply: Reply) -> bytes:
    """The one name. Raises the error of any other answer."""
    kind, body = reply
    if kind != NAME:
        raise error_of(reply)
    names = read_names(body)
    if len(names) != 1:
        raise BrokenProtocol(f"{len(names)} names where one was due")
    return names[0][0]


# -- requests ------------------------------------------------------------------------------------------

# A request: its type, and what follows the id. The last part may be large and is not copied.
Request: TypeAlias = tuple[int, tuple[Buffer, ...]]


def request(kind: int, *parts: Buffer) -> Request:
    return kind, parts


def on_path(kind: int, path: bytes, *more: Buffer) -> Request:
    """A request that begins with a path."""
    return kind, (string(path), *more)


def open_file(path: bytes, flags: int, mode: int | None = None) -> Request:
    return OPEN, (string(path), _u32.pack(flags), attributes(mode=mode))


def read_block(handle: bytes, offset: int, length: int) -> Request:
    return READ, (handle, _u64.pack(offset), _u32.pack(length))


def write_block(handle: bytes, offset: int, data: Buffer) -> Request:
    return WRITE, (handle, _u64.pack(offset), _u32.pack(len(data)), data)


def extended(name: bytes, *parts: Buffer) -> Request:
    return EXTENDED, (string(name), *parts)


def copy_data(source: bytes, target: bytes, start: int, length: int) -> Request:
    """The extension copy-data (draft-ietf-secsh-filexfer-extensions-00, section 7)."""
    where, count = _u64.pack(start), _u64.pack(length)
    return extended(b"copy-data", source, where, count, target, where)
