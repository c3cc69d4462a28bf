"""Whether a server ignores case, as far as looking at names tells that are there already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fastsync.errors import FastsyncError
from fastsync_sftp import packets
from fastsync_sftp.packets import Reply

# So many directories above the location are looked at, for the lower ones may not exist yet.
_MOST: Final = 4


def spellings(path: bytes) -> list[tuple[bytes, bytes]]:
    """Directories on the way to `path` and itself, each with another spelling; the lowest first."""
    pairs: list[tuple[bytes, bytes]] = []
    while len(pairs) < _MOST and path.strip(b"/"):
        above, _, name = path.rpartition(b"/")
        other = name.swapcase()
        if other != name:
            pairs.append((path, above + b"/" + other))
        path = above
    return pairs


def are_one(replies: Sequence[Reply]) -> bool:
    """Whether the lowest pair of which something is there is one thing, going by its attributes."""
    for one, other in zip(replies[::2], replies[1::2], strict=True):
        try:
            first = packets.must_be_attributes(one)
        except FastsyncError:
            continue
        try:
            return packets.must_be_attributes(other)._replace(atime=first.atime) == first
        except FastsyncError:
            return False
    return False
