"""Another name on the same disk, where that is all it takes to move something."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from fastsync.backend import CopyJob
from fastsync.errors import Changed, Conflict
from fastsync_local.copying import split
from fastsync_local.held import HeldDirectories, insist, let_go
from fastsync_local.spelling import refuse_other_spelling


def device_of(path: str) -> int | None:
    """The disk of a place, or of the first directory above it that is there."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            try:
                return os.stat(path).st_dev
            except NotADirectoryError:
                return None
        above = os.path.dirname(path)
        if above == path:
            return None
        path = above


def move(theirs: HeldDirectories, ours: HeldDirectories, job: CopyJob) -> None:
    """Rename a file, in the place of what stands there, or a directory, to a name that is free. Raises
    OSError (EXDEV between two disks), Changed for what is not what was listed, Conflict for what has to be
    copied."""
    (above, old), (directory, new) = split(job.entry.path), split(job.path)
    with contextlib.ExitStack() as opened:
        # Going to the one directory may close the other.
        target = os.dup(ours.get(directory, create=True))
        opened.callback(let_go, target)
        source = os.dup(theirs.get(above))
        opened.callback(let_go, source)
        now = os.stat(old, dir_fd=source, follow_symlinks=False)
        is_directory = stat.S_ISDIR(now.st_mode)
        if is_directory != (job.entry.kind == "dir") or not (
            is_directory or stat.S_ISREG(now.st_mode)
        ):
            raise Changed("something of another kind stands there")
        if not is_directory and (now.st_size, now.st_mtime_ns) != job.entry[2:4]:
            raise Changed("the file was written to since it was listed")
        if now.st_dev != os.fstat(target).st_dev:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        refuse_other_spelling(target, new)
        with contextlib.suppress(FileNotFoundError):
            standing = os.stat(new, dir_fd=target, follow_symlinks=False)
            if is_directory or not stat.S_ISREG(standing.st_mode):
                raise Conflict("something stands there")
            if standing.st_ino == now.st_ino:
                # A rename would do nothing, and say nothing.
                raise Conflict("two names of one file")

        def rename() -> None:
            insist(target, lambda: os.rename(old, new, src_dir_fd=source, dst_dir_fd=target))

        insist(source, rename)
