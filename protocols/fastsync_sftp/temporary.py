"""Temporary files at the server: names that say whose they are, and which of them nobody will finish.

A name is ``.fs-`` and 16 hex digits and ``.part``, as on a disk. The digits say on which start of which
machine it was made (this one, not the server), by which process, when that began, and what for; so what a
killed run left behind is known by its name, at no cost for files that are finished.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import time
import zlib
from typing import Final

from fastsync.errors import FastsyncError
from fastsync.processes import pid_space, started
from fastsync_sftp import packets
from fastsync_sftp.packets import CLOSE, NAME, OPENDIR, READDIR, REMOVE, Attributes
from fastsync_sftp.scripts import Script

# Never listed, and 25 bytes whatever the target is called.
TEMPORARY: Final = re.compile(rb"\.fs-[0-9a-f]{16}\.part")

# How the 64 bits are shared out, from the top: 18 for the machine, 22 for the process (Linux has no numbers
# above 2**22), 8 for its start, 2 for the purpose, 14 to tell its files apart, of which thousands may be
# under way at once.
_MACHINE_BITS: Final = 18
_PID_BITS: Final = 22
_START_BITS: Final = 8
_PURPOSE_BITS: Final = 2
_COUNT_BITS: Final = 14
# What a file is for: to be renamed soon, to be taken up again by a later process, or the old version of a
# file for as long as its name is free for the new one (never removed unseen: it may be all there is).
SOON: Final = 0
KEPT: Final = 1
ASIDE: Final = 2
# Names that are read at once, in a directory that nobody lists anyway: a look, and no more.
_READS: Final = 8
# Of what comes from elsewhere, or from before a start of this machine, only the age tells.
FOREIGN_AGE_S: Final = 24 * 3600

_count = itertools.count(int.from_bytes(os.urandom(2), "big"))


def temporary_name(purpose: int = SOON) -> bytes:
    """A new name, which no other process takes, nor this one again before 16384 others."""
    pid = os.getpid()
    bits = _machine() << _PID_BITS | pid & _ones(_PID_BITS)
    bits = bits << _START_BITS | _start_of(pid) & _ones(_START_BITS)
    bits = bits << _PURPOSE_BITS | purpose
    return b".fs-%016x.part" % (bits << _COUNT_BITS | next(_count) & _ones(_COUNT_BITS))


@functools.cache
def _start_of(pid: int) -> int:
    """When this process began (one that was forked is another one); 0 where that cannot be known."""
    return started(pid) or 0


@functools.cache
def _machine() -> int:
    """The bits for this machine. Other ones than a disk's files get here: who finds those of both in one
    directory must not take the one layout for the other."""
    return zlib.crc32(b"sftp" + os.fsencode(pid_space())) >> (32 - _MACHINE_BITS)


def _ones(bits: int) -> int:
    return (1 << bits) - 1


def is_abandoned(name: bytes, attrs: Attributes) -> bool:
    """True for a temporary file, by its name, that no process will finish."""
    bits = int(name[4:20], 16) >> _COUNT_BITS
    purpose = bits & _ones(_PURPOSE_BITS)
    bits >>= _PURPOSE_BITS
    start = bits & _ones(_START_BITS)
    bits >>= _START_BITS
    if purpose == ASIDE:
        return False
    if bits >> _PID_BITS == _machine():
        began = started(bits & _ones(_PID_BITS))
        if began is not None and began & _ones(_START_BITS) == start:
            return False
        # An empty one was not even written down; the others are for who does the same again.
        if purpose == SOON or attrs.size == 0:
            return True
    touched = attrs.touched
    return touched is not None and time.time() - touched > FOREIGN_AGE_S


def sweep(directory: bytes) -> Script[None]:
    """Remove what nobody will finish in a directory, as far as one look shows it."""
    (reply,) = yield [packets.on_path(OPENDIR, directory)]
    try:
        handle = packets.must_be_handle(reply)
    except FastsyncError:
        return  # it is not there, or not for us to read
    *replies, _ = yield [
        *[packets.request(READDIR, handle)] * _READS,
        packets.request(CLOSE, handle),
    ]
    found = [
        name
        for reply in replies
        if reply[0] == NAME
        for name, attrs in packets.read_names(reply[1])
        if TEMPORARY.fullmatch(name) and is_abandoned(name, attrs)
    ]
    if found:
        yield [packets.on_path(REMOVE, directory.rstrip(b"/") + b"/" + name) for name in found]
