"""Names from outside: kept inside their root, ordered, and shown without doing harm.

A name from a server, a bucket, a disk or a file passes `safe_parts` or is refused; text from outside
passes `printable` before a terminal or a log sees it.
"""

from __future__ import annotations

import os
import re

from fastsync.errors import NameRefused


def safe_parts(relative: str) -> tuple[str, ...]:
    """The components of a name from outside, or NameRefused: the one gate of every destination.

    Refused: absolute names, empty, "." and ".." segments, NUL, and surrogates that stand for no byte.
    ``..x`` and ``a..b`` are ordinary names. The result, joined below a root without following links,
    cannot leave that root.
    """
    if not relative.isascii():
        try:
            os.fsencode(relative)
        except UnicodeEncodeError as error:  # half a surrogate pair, which stands for no byte
            raise NameRefused("the name cannot be written as bytes", where=relative) from error
    parts = tuple(relative.split("/"))
    for part in parts:
        if part in ("", ".", "..") or "\0" in part:
            raise NameRefused(_why_refused(part, relative), where=relative)
    return parts


def _why_refused(part: str, relative: str) -> str:
    if "\0" in part:
        return "the name contains a NUL character"
    if part == "":
        return "the name is empty" if not relative else "the name has an empty segment"
    return f"the name has a {part!r} segment and could leave the destination"


def path_key(path: str) -> bytes:
    """The order of listings: bytes of the full path (directories are given as "name/")."""
    return os.fsencode(path)


# Everything a terminal could act on: C0, DEL and C1 controls, line separators, bidirectional and
# invisible formatting, and the lone surrogates that stand for bytes that are not UTF-8.
# Compiled when they are first needed.
_UNSAFE = (
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
# An escape, and ordinary text that reads like one.
_ESCAPED = _UNSAFE + r"|\\[\\nrtxuU]"
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str) -> str:
    """`text` with every character that could move a cursor or hide a name shown as an escape.

    A byte that is not UTF-8 shows as ``\\xNN``. Backslashes are doubled only in text that needed an
    escape or reads like one, so ordinary names print as they are and no two texts print alike.
    """
    # All that is unsafe is unprintable to Unicode, too.
    if text.isprintable() and "\\" not in text:
        return text
    if re.search(_ESCAPED, text) is None:
        return text
    return re.sub(_UNSAFE, _escape, text.replace("\\", "\\\\"))


def _escape(match: re.Match[str]) -> str:
    char = match[0]
    code = ord(char)
    if char in _NAMED:
        return _NAMED[char]
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
