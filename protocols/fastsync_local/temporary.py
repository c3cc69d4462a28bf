"""Temporary files: names that say whose they are, and the end of those that nobody will finish.

A name is ``.fs-`` and 16 hex digits and ``.part``: 25 bytes whatever the target is called. The digits say
on which start of which machine it was made, by which process, and when that process began; so a file that a
killed process left behind is known by its name alone, at no cost for those that are finished.

Imports are few on purpose: see `fastsync_local.copying`.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
import time
import zlib

from fastsync.processes import pid_space, started

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Literal, TypeAlias

    State: TypeAlias = Literal["running", "gone", "elsewhere"]

TEMPORARY: Final = re.compile(r"\.fs-[0-9a-f]{16}\.part")

# How the 64 bits are shared out, from the top: 20 for the machine, 22 for the process (Linux has no
# numbers above 2**22), 10 for its start, 12 to tell its files apart.
_PID_BITS: Final = 22
_START_BITS: Final = 10
_COUNT_BITS: Final = 12
# Of another machine, or from before a start of this one, nothing is known but its age.
FOREIGN_AGE_S: Final = 24 * 3600
# The mode of one that a later process may take up again (a finished file gets its own): let be as long.
KEPT_MODE: Final = 0o700
# A look for left-overs in a directory that is not listed anyway ends after so many names.
GLANCE: Final = 10_000


class _Own:
    """What all names of this process begin with, made when the first is asked for."""

    beginning = ""
    counter = itertools.count()


# A process that was forked is another one.
os.register_at_fork(after_in_child=lambda: setattr(_Own, "beginning", ""))


class Names:
    """Names that no other process takes, nor this one twice before 4096 others.

    `folds` is what was found out about the place they were used in: whether case makes no difference
    there; None before anybody asked.
    """

    def __init__(self) -> None:
        self.folds: bool | None = None

    def new(self) -> str:
        beginning = _Own.beginning
        if not beginning:
            pid = os.getpid()
            start = (started(pid) or 0) & ((1 << _START_BITS) - 1)
            bits = (_machine() << _PID_BITS | pid & ((1 << _PID_BITS) - 1)) << _START_BITS | start
            beginning = _Own.beginning = f".fs-{bits:013x}"
            _Own.counter = itertools.count(int.from_bytes(os.urandom(2), "big"))
        # One is made per small file: the rest of a name is three digits, and no large number.
        return f"{beginning}{next(_Own.counter) & ((1 << _COUNT_BITS) - 1):03x}.part"


def _machine() -> int:
    """Twenty bits for what gives a process number its meaning."""
    return zlib.crc32(os.fsencode(pid_space())) >> 12


def state_of(name: str, status: os.stat_result) -> tuple[State, int] | None:
    """What is known of a temporary file's process, and its number; None for what is not ours."""
    if status.st_uid != os.geteuid() or not (
        stat.S_ISLNK(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_nlink == 1)
    ):
        return None
    bits = int(name[4:20], 16) >> _COUNT_BITS
    start = bits & ((1 << _START_BITS) - 1)
    bits >>= _START_BITS
    pid = bits & ((1 << _PID_BITS) - 1)
    # It gets its mode before the journal knows of it, and its first byte after that.
    is_kept = stat.S_IMODE(status.st_mode) == KEPT_MODE and status.st_size > 0
    if bits >> _PID_BITS != _machine() or is_kept:
        # The change time: the other one may be the source's already.
        is_old = time.time() - status.st_ctime > FOREIGN_AGE_S
        return ("gone" if is_old else "elsewhere"), pid
    began = started(pid)
    is_over = began is None or began & ((1 << _START_BITS) - 1) != start
    return ("gone" if is_over else "running"), pid


def is_abandoned(directory: int, name: str) -> bool:
    """True for a temporary file of ours that no process will finish. Raises OSError."""
    state = state_of(name, os.lstat(name, dir_fd=directory))
    return state is not None and state[0] == "gone"


def found_in(directory: int) -> tuple[list[tuple[str, os.stat_result]], list[str]]:
    """The temporary files in a directory, and the names of the directories in it. Raises OSError."""
    files: list[tuple[str, os.stat_result]] = []
    directories: list[str] = []
    with os.scandir(directory) as found:
        for item in found:
            if item.is_dir(follow_symlinks=False):
                directories.append(item.name)
            elif item.name[0] == "." and TEMPORARY.fullmatch(item.name):
                try:
                    files.append((item.name, os.lstat(item.name, dir_fd=directory)))
                except FileNotFoundError:
                    continue  # it was finished this moment
    return files, directories


def remove_abandoned(directory: int, name: str) -> bool:
    """Remove a temporary file if nobody will finish it; true when it is gone."""
    try:
        if is_abandoned(directory, name):
            os.unlink(name, dir_fd=directory)
            return True
    except FileNotFoundError:
        return True
    except OSError:
        pass  # it does no harm; who can write here next may have more luck
    return False


def sweep(directory: int, most: int | None = None) -> None:
    """Remove the temporary files in a directory that nobody will finish, of its first `most` names."""
    try:
        with os.scandir(directory) as found:
            names = [
                item.name
                for item in itertools.islice(found, most)
                if item.name[0] == "." and TEMPORARY.fullmatch(item.name)
            ]
    except OSError:
        return
    for name in names:
        remove_abandoned(directory, name)
