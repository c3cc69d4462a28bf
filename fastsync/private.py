"""Whether what runs keep for later ones can have been written by nobody else.

Whoever can write there could have a later run drop, or send, what its user never asked for.
"""

from __future__ import annotations

import contextlib
import os
import stat

from fastsync.errors import UsageError
from fastsync.trust import OTHERS_USE, OTHERS_WRITE


def refuse_shared_folder(path: str) -> None:
    """Raises UsageError for a folder, or a link to one, that others own or can write. One that is not there
    is fine: whoever makes it makes it ours."""
    try:
        found = {os.lstat(path).st_uid, (status := os.stat(path)).st_uid}
    except OSError:
        return  # using it will say what is wrong, if anything is
    if found != {os.geteuid()}:
        raise UsageError(
            "the state folder belongs to another user",
            where=path,
            hint="FASTSYNC_STATE can name one of your own",
        )
    if status.st_mode & OTHERS_WRITE:
        raise UsageError(
            "others can write the state folder", where=path, hint=f"to stop that: chmod go-w {path}"
        )


def is_shared_folder(path: str) -> bool:
    """Whether `refuse_shared_folder` has something to say."""
    try:
        refuse_shared_folder(path)
    except UsageError:
        return True
    return False


def make_file(path: str) -> None:
    """Make a file that others can neither read nor write; one that is there stays. Raises OSError.

    What is there is not opened: when any descriptor of a file is closed, the process loses all locks on it
    (fcntl_locking(2)), those of a database among them.
    """
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, flags, 0o600))


def refuse_foreign_file(path: str) -> None:
    """Raises UsageError for a file of somebody else, or under another name too. One of ours that others may
    open is closed to them; none is fine."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    is_ours = status.st_uid == os.geteuid() and status.st_nlink <= 1
    if not (stat.S_ISREG(status.st_mode) and is_ours):
        raise UsageError("it is no file of yours alone", where=path, hint="move it away")
    if status.st_mode & OTHERS_USE:
        os.chmod(path, 0o600)
