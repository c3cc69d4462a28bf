"""Whether a file that says who we are, or what to do, can only have been written by us, and whether the way
to a place can only have been laid by somebody we trust."""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
OTHERS_USE: Final = 0o077
# Links that a system follows on one way (Linux; others have less).
_MOST_LINKS: Final = 40


def mistrust(path: str, fd: int, forbidden: int = OTHERS_WRITE) -> tuple[str, str] | None:
    """What is wrong with a file that was opened by this name, and what to do; None for nothing.

    It must be ours or root's, without the bits of `forbidden` in its mode, and so must a link that stands
    there: whoever made it chose the file. Nor may others write, or own, a directory on the way there: they
    could put another file in its place. Pipes and devices are whose the program is that made them.
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
    return _mistrust_way(path)


def _mistrust_way(path: str) -> tuple[str, str] | None:
    """What is wrong with the directories and links that lead to a file, as sshd's StrictModes has it: up to
    the home directory, what is above that is for the system to keep."""
    ours = (os.geteuid(), 0, os.stat("/").st_uid)  # root has another number in a user namespace
    home = Way(os.path.expanduser("~"))
    above_home = {at for at, status in home if not stat.S_ISLNK(status.st_mode)} - {home.reached}
    for at, status in Way(path):
        if stat.S_ISLNK(status.st_mode):
            if status.st_uid not in ours:
                return f"a link of another user leads there: {at}", "name the file itself"
        elif at != "/" and at not in above_home:
            if status.st_uid not in ours:
                return f"its directory {at} belongs to another user", "keep it in one of yours"
            is_open = others_can_write(status) and not status.st_mode & stat.S_ISVTX
            if is_open and not _is_read_only(at):
                return f"others can write its directory {at}", f"to stop that: chmod go-w {at}"
    return None


def _is_read_only(directory: str) -> bool:
    """As ConfigMaps of Kubernetes are mounted, with mode 0777."""
    return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)


def others_can_write(status: os.stat_result) -> bool:
    """By its mode; a group that has nobody in it but the owner (umask 002) is nobody else."""
    if status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and not _is_private(status.st_gid, status.st_uid)


def _is_private(gid: int, uid: int) -> bool:
    """Whether a group is named like this user, whose own it is, and has no other members: how private groups
    are told everywhere (pam_umask(8), usergroups)."""
    import grp  # seldom needed
    import pwd

    try:
        user, group = pwd.getpwuid(uid), grp.getgrgid(gid)
    except KeyError:
        return False
    is_named_so = (user.pw_gid, user.pw_name) == (gid, group.gr_name)
    return is_named_so and set(group.gr_mem) <= {user.pw_name}


def foreign_link(way: Way) -> str | None:
    """A symbolic link on the way to a place that somebody else may have laid for us, None if there is none.

    We, root and the owner of the directory that it is in may lay links, and so may everybody in a directory
    that nobody else can write: one of them put it there. That is Linux's fs.protected_symlinks, and more:
    it keeps for directories that a group can write, and on other systems.
    """
    trusted = (os.geteuid(), 0)
    for at, status in way:
        if stat.S_ISLNK(status.st_mode):
            above = way.above
            if status.st_uid not in (*trusted, above.st_uid) and others_can_write(above):
                return at
    return None


class Way:
    """The directories and links that are passed on the way to a path, each with its lstat(2).

    `above` is the directory that was passed last. At the end `reached` is where the way leads, without a link
    in it; what is not there is taken for a name.
    """

    def __init__(self, path: str) -> None:
        # The current directory may be gone, and need not be known for an absolute path.
        whole = path if os.path.isabs(path) else os.path.join(os.getcwd(), path)
        self._names = whole.split("/")[::-1]
        self.reached = "/"
        self.above = os.stat("/")

    def __iter__(self) -> Iterator[tuple[str, os.stat_result]]:
        yield "/", self.above
        links = 0
        while self._names:
            name = self._names.pop()
            if name in ("", "."):
                continue
            if name == "..":
                self.reached = os.path.dirname(self.reached)
                self.above = os.stat(self.reached)
                continue
            at = os.path.join(self.reached, name)
            try:
                status = os.lstat(at)
                target = os.readlink(at) if stat.S_ISLNK(status.st_mode) else None
            except OSError:  # using it will say what is wrong, if anything is
                self.reached = os.path.join(at, *self._names[::-1])
                return
            if target is None:
                self.reached = at
                if stat.S_ISDIR(status.st_mode):
                    self.above = status
                    yield at, status
                continue
            yield at, status
            links += 1
            if links > _MOST_LINKS:
                return
            if target.startswith("/"):
                self.reached, self.above = "/", os.stat("/")
            self._names += target.split("/")[::-1]
