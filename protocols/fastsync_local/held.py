"""Directories held open below a root, reached one component at a time and never through a link.

``O_NOFOLLOW`` on the last component is not enough: whoever can rename a directory in the middle could
send a write elsewhere. So every directory below the root is opened relative to its held parent, and all
later calls are relative to the descriptor (the lesson of rsync 3.5.0, SECURITY.md).
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time

from fastsync.errors import NameRefused, UsageError
from fastsync.names import safe_parts
from fastsync.trust import Way, foreign_link
from fastsync_local.spelling import refuse_other_spelling

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, TypeVar

    T = TypeVar("T")

OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


# A deep tree must not use up the process's descriptors: levels this far above the current one are
# closed. On the way back they are reached by "..", which counts only if it leads where we came from.
MAX_HELD: Final = 4
# Another lane may close a directory again in the moment that we have opened it for.
_TRIES: Final = 16
_PAUSES_S: Final = (0.5, 0.25, 0.12, 0.06, 0.03, 0.01)  # the last first


class Patience:
    """Waits where no descriptor is free, ours or the system's, until somebody has closed one.

    A second at the most, unless that helps: then again as long. Blocks, so it is for threads.
    """

    def __init__(self) -> None:
        self._pauses = list(_PAUSES_S)

    def spend(self, work: Callable[[], T]) -> T:
        """What `work` returns, or raises, once it no longer says EMFILE or ENFILE. Raises OSError."""
        while True:
            try:
                result = work()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._pauses:
                    raise
                time.sleep(self._pauses.pop())
            else:
                if len(self._pauses) < len(_PAUSES_S):
                    self._pauses = list(_PAUSES_S)
                return result


def open_root(path: str) -> int:
    """The root itself may be reached through links: it is the user's own word.

    Raises OSError.
    """
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def insist(directory: int, work: Callable[[], T]) -> T:
    """Do `work` in a directory; where its mode keeps its owner, us, from writing, that is lifted for
    the moment. So a copy of a tree with directories of mode 0555 can be brought up to date.

    Raises OSError.
    """
    try:
        return work()
    except PermissionError as error:
        refusal = error
    if refusal.errno != errno.EACCES or os.fstat(directory).st_uid != os.geteuid():
        raise refusal
    for _ in range(_TRIES):
        mode = stat.S_IMODE(os.fstat(directory).st_mode)
        is_closed = mode & 0o300 != 0o300
        if is_closed:
            os.fchmod(directory, mode | 0o300)
        try:
            return work()
        except PermissionError as error:
            refusal = error
        finally:
            if is_closed:
                os.fchmod(directory, mode)
    raise refusal


def let_go(fd: int) -> None:
    """Close a descriptor that nothing was written through, or of what is given up anyway.

    It is closed whatever the disk answers (close(2)), and closing it again might close another's.
    """
    try:
        os.close(fd)
    except OSError:
        pass


def parent_of(fd: int, identity: tuple[int, int]) -> int | None:
    """A descriptor of the directory above, if it is the one with this (device, inode)."""
    try:
        above = os.open("..", OPEN_DIRECTORY, dir_fd=fd)
    except OSError:
        return None
    status = os.fstat(above)
    if (status.st_dev, status.st_ino) == identity:
        return above
    let_go(above)
    return None


class HeldDirectories:
    """The chain of descriptors from a root to the directory used last.

    Made for walks in listing order: neighbours share most of their path. Not thread-safe; every lane
    of work has its own. Owns `root_fd`. `follow` is for sources whose links the user asked to follow;
    with `durable` a directory that is made is on the disk before anything is put into it.
    """

    def __init__(self, root_fd: int, *, follow: bool = False, durable: bool = False) -> None:
        self._root_fd = root_fd
        self._durable = durable
        self._flags = OPEN_DIRECTORY & ~os.O_NOFOLLOW if follow else OPEN_DIRECTORY
        self._names: list[str] = []
        self._fds: list[int | None] = []
        self._identities: list[tuple[int, int]] = []
        self._chain = ""  # the names, as a path
        self._path = ""
        self._fd = root_fd

    def get(self, path: str, *, create: bool = False) -> int:
        """A descriptor of the directory at `path` below the root, valid until the next call.

        With `create`, missing directories are made. Raises OSError (ELOOP or ENOTDIR when a component
        is no directory of ours) and NameRefused.
        """
        if path == self._path:
            return self._fd
        names = self._go_up(path)
        level = len(self._fds)
        while level and self._fds[level - 1] is None:
            level -= 1
        fd: int | None = self._fds[level - 1] if level else self._root_fd
        assert fd is not None
        for index in range(level, len(names)):
            fd = self._enter(fd, names[index], create=create)
            status = os.fstat(fd)
            identity = (status.st_dev, status.st_ino)
            if index < len(self._fds):
                self._fds[index], self._identities[index] = fd, identity
            else:
                self._names.append(names[index])
                self._fds.append(fd)
                self._identities.append(identity)
                self._chain += f"/{names[index]}" if index else names[index]
            self._drop(index - MAX_HELD)
        self._path, self._fd = path, fd
        return fd

    def _enter(self, parent: int, name: str, *, create: bool) -> int:
        try:
            fd = os.open(name, self._flags, dir_fd=parent)
        except FileNotFoundError:
            if not create:
                raise
        else:
            if create:
                try:
                    refuse_other_spelling(parent, name)
                except BaseException:
                    let_go(fd)
                    raise
            return fd
        try:
            insist(parent, lambda: os.mkdir(name, dir_fd=parent))
        except FileExistsError:
            pass  # another lane made it meanwhile
        if self._durable:  # also what that lane has not yet made so
            os.fsync(parent)
        return os.open(name, self._flags, dir_fd=parent)

    def _go_up(self, path: str) -> list[str]:
        """Let go of what is not on the way to `path`, holding on to the last directory that is; the
        names on the whole way. Looks only at what is new of a path: it may be thousands of names long."""
        above, common = self._chain, len(self._names)
        while above and path != above and not path.startswith(above + "/"):
            above = above.rpartition("/")[0]
            common -= 1
        rest = path[len(above) + 1 :] if above else path
        try:
            names = [*self._names[:common], *(safe_parts(rest) if path != above else ())]
        except NameRefused as error:
            raise NameRefused(error.message, where=path) from error
        # The state stays true if opening the rest fails: this is where the chain ends now.
        self._path, self._fd, self._chain = "\0", -1, above
        while len(self._fds) > common:
            index = len(self._fds) - 1
            below = self._fds[index]
            if index and below is not None and self._fds[index - 1] is None:
                self._fds[index - 1] = parent_of(below, self._identities[index - 1])
            self._drop(index)
            del self._fds[index], self._names[index], self._identities[index]
        return names

    def _drop(self, index: int) -> None:
        if index >= 0 and (fd := self._fds[index]) is not None:
            let_go(fd)
            self._fds[index] = None

    def close(self) -> None:
        """Close everything, the root too. Idempotent."""
        for index in range(len(self._fds)):
            self._drop(index)
        self._fds.clear()
        self._names.clear()
        self._identities.clear()
        if self._root_fd >= 0:
            let_go(self._root_fd)
        self._root_fd = -1


def _above_missing(path: str) -> list[str]:
    """The parents of each directory on the way to `path` that is not there, the lowest first."""
    above: list[str] = []
    while not os.path.isdir(path):
        path, below = os.path.dirname(path), path
        if path == below:
            break
        above.append(path)
    return above


def _sync_directory(path: str) -> None:
    fd = open_root(path)
    try:
        os.fsync(fd)
    finally:
        let_go(fd)


class Root:
    """The directory a store is opened at, held open from its first use on, so that renaming it or
    putting a link in its place does not send later work elsewhere."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self._fd = -1
        self._identity: tuple[int, int] | None = None
        self._lock = threading.Lock()
        self._patience = Patience()
        self._is_vetted = False
        self._unsynced: list[str] = []  # directories that got one of those that lead here

    def descriptor(
        self, *, create: bool = False, durable: bool = False, target: bool = False
    ) -> int:
        """A new descriptor of the root, for the caller to close; with `durable` what had to be made to
        get there is on the disk. With `create` or `target` it is written to. Raises OSError, and UsageError
        as `vet` does."""
        with self._lock:
            return self._patience.spend(lambda: self._descriptor(create, durable, create or target))

    def _descriptor(self, create: bool, durable: bool, target: bool) -> int:
        leads_to = None if self._is_vetted or not target else self.vet()
        if self._fd < 0:
            if create:
                self._unsynced += _above_missing(self.path)  # of an earlier try, too
                os.makedirs(self.path, exist_ok=True)
            self._fd = open_root(self.path)
            status = os.fstat(self._fd)
            self._identity = (status.st_dev, status.st_ino)
        if leads_to is not None:
            status = os.lstat(leads_to)
            if (status.st_dev, status.st_ino) != self._identity:
                raise UsageError("the destination was replaced just now", where=self.path)
            self._is_vetted = True
        while durable and self._unsynced:
            _sync_directory(self._unsynced[-1])
            self._unsynced.pop()
        # Not dup(2): that would share the position of a listing under way.
        return os.open(".", OPEN_DIRECTORY, dir_fd=self._fd)

    def vet(self) -> str:
        """The path that ours leads to. Raises UsageError if others may have laid a link on the way: it
        could lead into what is ours alone. (Sources may be anywhere.)"""
        way = Way(self.path)
        if (link := foreign_link(way)) is not None:
            raise UsageError(
                "a link of another user leads to the destination",
                where=link,
                hint=f"if it is right, name where it leads: {os.path.realpath(self.path)}",
            )
        return way.reached

    def identity(self, *, target: bool = False) -> tuple[str, tuple[int, int]]:
        """Path and (device, inode), for a helper process to open the same one. A `target` is made if it is
        not there. Raises what `descriptor` raises."""
        if self._identity is None or target:
            let_go(self.descriptor(create=target))
        assert self._identity is not None
        return self.path, self._identity

    def close(self) -> None:
        """Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            let_go(fd)
