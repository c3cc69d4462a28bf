"""Whether a file that says who we are, or what to do, can only have been written by us."""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
OTHERS_USE: Final = 0o077


def mistrust(path: str, fd: int, forbidden: int = OTHERS_WRITE) -> tuple[str, str] | None:
    """What is wrong with a file that was opened by this name, and what to do; None for nothing.

    It must be ours or root's, without the bits of `forbidden` in its mode, and so must a link that stands
    there: whoever made it chose the file. Pipes and devices are whose the program is that made them.
    """
    status = os.fstat(fd)
    ours = (os.geteuid(), 0)
    try:
        link = os.lstat(path)
    except OSError:  # it is gone since
        link = status
    if stat.S_ISLNK(link.st_mode) and link.st_uid not in ours:
        return "a link of another user leads there", "name the file itself"
    if not stat.S_ISREG(status.st_mode):
        return None
    if status.st_uid not in ours:
        return "it belongs to another user", f"to make it yours: chown {os.geteuid()} {path}"
    if status.st_mode & forbidden & OTHERS_WRITE:
        return "others can write it", f"to stop that: chmod go-w {path}"
    if status.st_mode & forbidden:
        return "others can read it", f"to stop that: chmod 600 {path}"
    return None
