"""What few copies ask for: extended attributes, ACLs among them, and hard links."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Mapping
from typing import Final

from fastsync.errors import Unsupported
from fastsync_local.copying import split
from fastsync_local.held import HeldDirectories, insist, let_go

# ACLs are attributes of these names (acl(5)); "security." and "trusted." belong to the machine.
_KINDS: Final = ("user.", "system.posix_acl_access", "system.posix_acl_default")
_NONE: Final = (errno.ENOTSUP, errno.EOPNOTSUPP)


def _open(held: HeldDirectories, path: str) -> int:
    if not path:
        return os.dup(held.get(""))
    directory, name = split(path)
    # O_PATH opens what we may not read, and O_NOFOLLOW never somebody else's file.
    return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=held.get(directory))


def _attributes(where: str) -> dict[str, bytes]:
    try:
        names = os.listxattr(where)
    except OSError as error:
        if error.errno in _NONE:
            return {}
        raise
    return {name: os.getxattr(where, name) for name in names if name.startswith(_KINDS)}


def read_xattrs(held: HeldDirectories, path: str) -> dict[str, bytes]:
    """The attributes of a file or directory that a copy may keep. Raises OSError."""
    fd = _open(held, path)
    try:
        return _attributes(f"/proc/self/fd/{fd}")
    finally:
        let_go(fd)


def sync_by_path(fd: int) -> None:
    """fsync(2) for a descriptor opened with O_PATH. Raises OSError."""
    try:
        opened = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        os.sync()  # what we may not open gets to the disk with all the rest
        return
    try:
        os.fsync(opened)
    finally:
        let_go(opened)


def write_xattrs(
    held: HeldDirectories, path: str, wanted: Mapping[str, bytes], *, durable: bool = False
) -> None:
    """Give a file or directory exactly these. Raises OSError, Unsupported where there are none."""
    fd = _open(held, path)
    try:
        where = f"/proc/self/fd/{fd}"
        there = _attributes(where)
        if there == wanted:
            return
        status = os.fstat(fd)
        mode = stat.S_IMODE(status.st_mode)
        # Who may not write to it may not set its attributes, although it is ours.
        opened = not mode & 0o200 and status.st_uid == os.geteuid()
        if opened:
            os.chmod(where, mode | 0o200)
        try:
            for name in there.keys() - wanted.keys():
                os.removexattr(where, name)
            for name, value in wanted.items():
                if there.get(name) != value:
                    os.setxattr(where, name, value)
        except OSError as error:
            if error.errno in _NONE:
                raise Unsupported("this file system keeps no extended attributes") from error
            raise
        finally:
            if opened:
                os.chmod(where, mode)
        if durable:
            sync_by_path(fd)
    finally:
        let_go(fd)


def link_identity(held: HeldDirectories, path: str) -> str | None:
    """What the names of a file have in common, None for a file with one name. Raises OSError."""
    directory, name = split(path)
    status = os.stat(name, dir_fd=held.get(directory), follow_symlinks=False)
    if status.st_nlink < 2 or not stat.S_ISREG(status.st_mode):
        return None
    return f"{status.st_dev}:{status.st_ino}"


def file_id(held: HeldDirectories, path: str) -> str | None:
    """The inode number of a file or a link. Not the device's: that may be another one after a restart. Raises
    OSError."""
    directory, name = split(path)
    status = os.stat(name, dir_fd=held.get(directory), follow_symlinks=False)
    if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
        return f"inode:{status.st_ino}"
    return None


def hard_link(held: HeldDirectories, existing: str, path: str, temporary: str) -> None:
    """Make `path` another name of `existing`, in the place of what stands there. Raises OSError."""
    directory, name = split(path)
    above, leader = split(existing)
    with contextlib.ExitStack() as opened:
        # Going to the one directory may close the other.
        target = os.dup(held.get(directory, create=True))
        opened.callback(let_go, target)
        source = os.dup(held.get(above))
        opened.callback(let_go, source)

        def link() -> None:
            os.link(leader, temporary, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
            try:
                os.rename(temporary, name, src_dir_fd=target, dst_dir_fd=target)
            finally:
                # A rename onto another name of the same file does nothing, and leaves both.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=target)

        insist(target, link)
