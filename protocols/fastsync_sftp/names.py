"""Paths at the server: names from outside checked, temporary names, parts of paths."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final

from fastsync.errors import NameRefused
from fastsync.names import safe_parts

# What a killed run leaves behind; never listed, and 25 bytes whatever the target is called.
TEMPORARY: Final = re.compile(rb"\.fs-[0-9a-f]{16}\.part")


def temporary_name() -> bytes:
    """A new name for a file that is not finished."""
    return b".fs-%016x.part" % int.from_bytes(os.urandom(8), "big")


def split(path: str) -> tuple[str, str]:
    """Directory and last component of a path below the root. Raises NameRefused."""
    *_, name = safe_parts(path)
    return path.rpartition("/")[0], name


def check_name(name: bytes) -> str:
    """A name from a server's listing. Raises NameRefused for what is no single component."""
    text = os.fsdecode(name)
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise NameRefused("the server sent a name that could leave the directory", where=text)
    return text


def above(directory: str) -> Iterator[str]:
    """The directory and all above it below the root, from the top: "a", "a/b", "a/b/c"; none for ""."""
    at = 0
    while directory and at >= 0:
        at = directory.find("/", at)
        if at < 0:
            yield directory
            return
        yield directory[:at]
        at += 1


def join(root: bytes, path: str) -> bytes:
    """The server's path of one below the root."""
    if not path:
        return root
    return (root if root.endswith(b"/") else root + b"/") + os.fsencode(path)
