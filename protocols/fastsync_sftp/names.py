"""Paths at the server: names from outside checked, parts of paths."""

from __future__ import annotations

import os
from collections.abc import Iterator

from fastsync.errors import NameRefused
from fastsync.names import safe_parts


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
