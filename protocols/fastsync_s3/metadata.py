"""Times and modes of files in the metadata of objects: ours, and those of other tools.

S3 keeps no time but that of the upload, so every tool has a convention. All are read; what is written is
what rclone and s3fs both understand. Values come from strangers: what makes no sense is ignored.

- rclone, s3fs: ``mtime``, decimal Unix seconds (github.com/ncw/swift meta.go; s3fs-fuse metaheader.cpp);
  s3fs: ``mode``, st_mode as a decimal number. rclone: ``mode`` in octal (rclone.org/metadata).
- mc: ``mc-attrs``, s3cmd: ``s3cmd-attrs``: ``name:value`` pairs separated by "/".
- gsutil: ``goog-reserved-file-mtime``, whole seconds, and ``goog-reserved-posix-mode``, octal.
- azcopy: ``modtime``, nanoseconds, and ``permissions``, decimal.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol, TypeAlias

_Reader: TypeAlias = Callable[[str], int | None]

MTIME_HEADER: Final = "x-amz-meta-mtime"
MODE_HEADER: Final = "x-amz-meta-mode"
UID_HEADER: Final = "x-amz-meta-uid"
GID_HEADER: Final = "x-amz-meta-gid"

_SECOND: Final = 1_000_000_000  # ns
_MAX_NS: Final = (1 << 63) - 1  # what `os.utime` and file systems can hold
_SECONDS: Final = re.compile(r"(-?)([0-9]{1,11})(?:[.#]([0-9]{1,18}))?")
_INTEGER: Final = re.compile(r"-?[0-9]{1,19}")
_DECIMAL: Final = re.compile(r"[1-9][0-9]{0,4}")
_OCTAL: Final = re.compile(r"(?:0o)?([0-7]{1,7})")
_MAX_MODE: Final = 0o177777
_PLAIN_TYPES: Final = (0, stat.S_IFREG, stat.S_IFDIR)


class Lookup(Protocol):
    """Headers of a response, by lower-case name."""

    def get(self, name: str, /) -> str | None: ...


class Attributes(NamedTuple):
    """Modification time in Unix nanoseconds, permission bits, and the numbers of user and group, each None
    where unknown."""

    mtime_ns: int | None
    mode: int | None
    uid: int | None = None
    gid: int | None = None


def read_attributes(headers: Lookup) -> Attributes:
    """What the metadata among the headers of a response says about the file."""
    return Attributes(
        _first(headers, _TIMES),
        _first(headers, _MODES),
        _first(headers, _USERS),
        _first(headers, _GROUPS),
    )


def format_mtime(mtime_ns: int) -> str:
    """A time as metadata: whole seconds, or exactly nine decimals.

    rclone reads any number of decimals, s3fs takes those there are for nanoseconds: nine or none mean
    the same to both.
    """
    seconds, rest = divmod(abs(mtime_ns), _SECOND)
    sign = "-" if mtime_ns < 0 else ""
    return f"{sign}{seconds}.{rest:09d}" if rest else f"{sign}{seconds}"


def format_mode(mode: int) -> str:
    """The permission bits of a file as metadata: st_mode of a regular file in decimal, as s3fs has it."""
    return str(stat.S_IFREG | stat.S_IMODE(mode))


def _first(headers: Lookup, readers: tuple[tuple[str, _Reader], ...]) -> int | None:
    for name, read in readers:
        value = headers.get(name)
        if value is not None and (found := read(value)) is not None:
            return found
    return None


def _seconds(text: str) -> int | None:
    """``-12.5`` or ``12#500000000`` (mc: whole nanoseconds behind the "#")."""
    match = _SECONDS.fullmatch(text)
    if match is None:
        return None
    sign, whole, fraction = match.groups(default="")
    if "#" in text:
        rest = int(fraction)
        if rest >= _SECOND:
            return None
    else:
        rest = int(fraction[:9].ljust(9, "0"))
    return _bounded((int(whole) * _SECOND + rest) * (-1 if sign else 1))


def _nanoseconds(text: str) -> int | None:
    return _bounded(int(text)) if _INTEGER.fullmatch(text) else None


def _google_seconds(text: str) -> int | None:
    """-1 is gsutil's word for no time."""
    return None if text == "-1" else _seconds(text)


def _bounded(mtime_ns: int) -> int | None:
    return mtime_ns if abs(mtime_ns) <= _MAX_NS else None


def _mode(text: str) -> int | None:
    """In decimal as s3fs has it; in octal if it begins with 0, or is more than a mode can be in decimal,
    as with the ``100644`` of rclone."""
    if _DECIMAL.fullmatch(text) and int(text) <= _MAX_MODE:
        return _permissions(int(text))
    return _octal(text)


def _octal(text: str) -> int | None:
    match = _OCTAL.fullmatch(text)
    return None if match is None else _permissions(int(match[1], 8))


def _permissions(mode: int) -> int | None:
    """The permission bits, if they are those of a file or directory: a link's say nothing."""
    return stat.S_IMODE(mode) if mode <= _MAX_MODE and stat.S_IFMT(mode) in _PLAIN_TYPES else None


def _number(text: str) -> int | None:
    """A user or group; -1, and what does not fit, would mean something else to chown."""
    return int(text) if re.fullmatch(r"[0-9]{1,10}", text) and int(text) < (1 << 32) - 1 else None


def _field(name: str, read: _Reader) -> _Reader:
    """Reads one of ``name:value`` pairs with "/" between them."""
    prefix = f"{name}:"

    def read_field(text: str) -> int | None:
        for pair in text.split("/"):
            if pair.startswith(prefix):
                return read(pair.removeprefix(prefix))
        return None

    return read_field


# In this order: an object may have been through more than one tool.
_TIMES: Final = (
    (MTIME_HEADER, _seconds),
    ("x-amz-meta-mc-attrs", _field("mtime", _seconds)),
    ("x-amz-meta-s3cmd-attrs", _field("mtime", _seconds)),
    ("x-amz-meta-goog-reserved-file-mtime", _google_seconds),
    ("x-amz-meta-modtime", _nanoseconds),
)
_MODES: Final = (
    (MODE_HEADER, _mode),
    ("x-amz-meta-mc-attrs", _field("mode", _mode)),
    ("x-amz-meta-s3cmd-attrs", _field("mode", _mode)),
    ("x-amz-meta-goog-reserved-posix-mode", _octal),
    ("x-amz-meta-permissions", _mode),
)
# s3fs: ``uid`` and ``gid`` in decimal; mc and s3cmd among their attributes.
_USERS: Final = (
    (UID_HEADER, _number),
    ("x-amz-meta-mc-attrs", _field("uid", _number)),
    ("x-amz-meta-s3cmd-attrs", _field("uid", _number)),
)
_GROUPS: Final = (
    (GID_HEADER, _number),
    ("x-amz-meta-mc-attrs", _field("gid", _number)),
    ("x-amz-meta-s3cmd-attrs", _field("gid", _number)),
)
