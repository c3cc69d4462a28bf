"""List a tree in ascending byte order of the full path, with held descriptors and flat memory.

The walk runs in plain rows (tuples of the fields of `Entry`) so that a helper process can run it and
send its pages through a pipe; it can start after any key it has yielded before.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat

from fastsync_local.held import MAX_HELD, OPEN_DIRECTORY, Patience, let_go, parent_of
from fastsync_local.temporary import TEMPORARY, remove_abandoned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Final, TypeAlias

    from fastsync.backend import Kind, LinkPolicy

    # The fields of Entry, in its order.
    Row: TypeAlias = tuple[
        str, Kind, int | None, int | None, int, str | None, None, tuple[int, int] | None, None
    ]
    # Path, errno, text.
    RowFault: TypeAlias = tuple[str, int, str]
    # Rows, faults, and the key to start after, should somebody else go on from here.
    RowPage: TypeAlias = tuple[list[Row], list[RowFault], str]

FIRST_PAGE: Final = 256
PAGE: Final = 2048

# scandir's objects take about 300 bytes each; above this many in one directory only names are kept.
_MANY: Final = 1 << 15


class _Level:
    """One directory on the way down: its sorted keys ("name" or "name/") and how far we are."""

    __slots__ = ("fd", "gone", "identity", "index", "items", "keys", "name", "prefix")

    def __init__(self, fd: int, name: str, prefix: str, identity: tuple[int, int]) -> None:
        self.fd: int | None = fd
        self.name = name
        self.prefix = prefix
        self.identity = identity
        self.index = 0
        self.keys: list[str] = []
        self.items: list[os.DirEntry[str]] | None = None
        self.gone: list[str] = []  # names that were listed and then not there

    def close(self) -> None:
        if self.fd is not None:
            let_go(self.fd)
            self.fd = None

    def let_go(self) -> None:
        """Close the descriptor for now. The root's stays: it has no name to be opened by again."""
        if self.name:
            self.items = None  # scandir's objects would go on using the number
            self.close()


def sorted_as_bytes(keys: list[str]) -> list[str]:
    """Sort by the bytes of the names.

    UTF-8 keeps the order of code points, so plain string order is right unless a name has lone
    surrogates, the stand-ins for bytes that are not UTF-8 (PEP 383).
    """
    try:
        "".join(keys).encode()
    except UnicodeEncodeError:
        keys.sort(key=os.fsencode)
    else:
        keys.sort()
    return keys


def _leads_to_directory(item: os.DirEntry[str]) -> bool:
    """False, too, for a link that leads round in circles: looking at it will say what is wrong."""
    try:
        return item.is_dir()
    except OSError:
        return False


def _refuse_removed(fd: int) -> None:
    """Tell a directory that was removed while it was open from an empty one, as readdir(3) does not.

    Raises FileNotFoundError. Some file systems count no links of any directory; so the kernel is asked
    for the name, too (proc_pid_fd(5)).
    """
    if os.fstat(fd).st_nlink == 0 and os.readlink(f"/proc/self/fd/{fd}").endswith(" (deleted)"):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


class Walk:
    """An iterator of pages over the tree below `root_fd`, which it owns.

    `after` is the `last` of a page of an earlier walk that `is_sure`: the new one goes on behind it. An
    entry that is gone by the time it is looked at is left out: it vanished, nothing was missed; if its
    directory lists it all the same, that is a fault, as is anything else that cannot be looked at.
    Temporary files are left out, and with `sweep` those that nobody will
    finish are removed. Raises OSError only if the root cannot be read.
    """

    def __init__(
        self,
        root_fd: int,
        *,
        recursive: bool = True,
        links: LinkPolicy = "keep",
        owner: bool = False,
        prune: Callable[[str], bool] | None = None,
        sweep: bool = False,
        after: str = "",
    ) -> None:
        self._recursive = recursive
        self._links = links
        self._follow = links == "follow"
        self._owner = owner
        self._prune = prune
        self._sweep = sweep
        self._rows: list[Row] = []
        self._faults: list[RowFault] = []
        self._stack: list[_Level] = []
        self._after = after
        self._reached = after
        self._patience = Patience()
        status = os.fstat(root_fd)
        root = _Level(root_fd, "", "", (status.st_dev, status.st_ino))
        try:
            self._list(root)
        except BaseException:
            root.close()
            raise
        self._stack.append(root)

    def close(self) -> None:
        """Close every descriptor. Idempotent."""
        for level in self._stack:
            level.close()
        self._stack.clear()

    def __iter__(self) -> Iterator[RowPage]:
        want = FIRST_PAGE
        try:
            while self._stack:
                self._step(want)
                if len(self._rows) >= want or not self._stack:
                    rows, faults = self._rows, self._faults
                    self._rows, self._faults = [], []
                    if rows or faults:
                        yield rows, faults, self._reached
                    want = PAGE
        finally:
            self.close()

    def _step(self, want: int) -> None:
        """Advance by a run of non-directories, or into or out of one directory."""
        level = self._stack[-1]
        keys, index = level.keys, level.index
        if index >= len(keys):
            self._leave()
            return
        key = keys[index]
        if self._after and self._skip(level, key):
            return
        if key[-1] == "/":
            level.index += 1
            self._reached = level.prefix + key
            self._directory(level, key[:-1], index)
            return
        # At least one row, so that every step moves; at most to the next directory or the page's end.
        stop = min(len(keys), index + max(1, want - len(self._rows)))
        end = index + 1
        while end < stop and keys[end][-1] != "/":
            end += 1
        level.index = end
        self._reached = level.prefix + keys[end - 1]
        self._files(level, index, end)

    @property
    def is_sure(self) -> bool:
        """False while a directory has yet to be asked again whether what was not there is gone."""
        return not any(level.gone for level in self._stack)

    def _leave(self) -> None:
        """Go up, and get hold of the directory there again if the tree was too deep to keep it open."""
        if self._stack[-1].gone:
            self._look_again(self._stack[-1])
        level = self._stack.pop()
        if self._stack and level.fd is not None and self._stack[-1].fd is None:
            above = self._stack[-1]
            above.fd = parent_of(level.fd, above.identity)
        level.close()

    def _skip(self, level: _Level, key: str) -> bool:
        """Pass over what the walk that we continue has yielded; true when `key` was dealt with."""
        here = level.prefix + key
        if key[-1] == "/" and self._after.startswith(here):
            # Its row was yielded, its inside may not have been.
            if self._after == here:
                self._after = ""
            level.index += 1
            self._enter(level, key[:-1], here[:-1])
            return True
        if os.fsencode(here) <= os.fsencode(self._after):
            level.index += 1
            return True
        self._after = ""
        return False

    def _descriptor(self, level: _Level) -> int:
        """The descriptor of `level`, the last one, opened again from above if it was closed on the way
        into a deep tree."""
        if level.fd is not None:
            return level.fd
        stack = self._stack
        top = held = len(stack) - 1
        while stack[held].fd is None:
            held -= 1
        # The levels next above are kept, for that is where the walk goes from here.
        for index in range(held + 1, top + 1):
            above, below = stack[index - 1], stack[index]
            assert above.fd is not None
            below.fd = self._open(below.name, OPEN_DIRECTORY, above.fd)
            status = os.fstat(below.fd)
            if (status.st_dev, status.st_ino) != below.identity:
                below.close()
                raise OSError(errno.ESTALE, "the directory was replaced during the walk")
            if index <= top - MAX_HELD + 1:
                above.let_go()
        assert level.fd is not None
        return level.fd

    def _open(self, name: str, flags: int, above: int) -> int:
        return self._patience.spend(lambda: os.open(name, flags, dir_fd=above))

    # -- one directory -------------------------------------------------------------------------------

    def _list(self, level: _Level) -> None:
        assert level.fd is not None
        keys: list[str] = []
        by_key: dict[str, os.DirEntry[str]] = {}
        temporary = TEMPORARY.fullmatch
        follow = self._follow
        unfinished: list[str] = []
        with self._patience.spend(lambda: os.scandir(level.fd)) as found:
            while some := list(itertools.islice(found, _MANY + 1)):
                for item in some:
                    name = item.name
                    if name[0] == "." and temporary(name):
                        unfinished.append(name)
                        continue
                    is_dir = (
                        _leads_to_directory(item) if follow else item.is_dir(follow_symlinks=False)
                    )
                    by_key[name + "/" if is_dir else name] = item
                if len(some) > _MANY:
                    keys += by_key
                    some.clear()
                    by_key.clear()
        is_large = bool(keys)
        keys += by_key
        if not keys:
            _refuse_removed(level.fd)
        if self._sweep:
            for name in unfinished:
                remove_abandoned(level.fd, name)
        level.keys = sorted_as_bytes(keys)
        if is_large:
            # A directory that changes while it is read may say a name twice.
            level.keys = [key for key, _ in itertools.groupby(level.keys)]
        else:
            level.items = [by_key[key] for key in level.keys]

    def _directory(self, level: _Level, name: str, index: int) -> None:
        path = level.prefix + name
        try:
            status = self._lookup(level, name, index)
        except OSError as error:
            self._fault(level, name, error)
            return
        if not stat.S_ISDIR(status.st_mode):
            # Its place in the order is another one now; the next run will see it there.
            self._fault(level, name, OSError(errno.ESTALE, "was replaced during the walk"))
            return
        owner = (status.st_uid, status.st_gid) if self._owner else None
        mode = status.st_mode & 0o7777
        self._rows.append((path, "dir", None, status.st_mtime_ns, mode, None, None, owner, None))
        self._enter(level, name, path)

    def _enter(self, level: _Level, name: str, path: str) -> None:
        prune = self._prune
        if not self._recursive or (prune is not None and prune(path)):
            return
        fd = -1
        try:
            flags = OPEN_DIRECTORY & ~os.O_NOFOLLOW if self._follow else OPEN_DIRECTORY
            fd = self._open(name, flags, self._descriptor(level))
            status = os.fstat(fd)
            identity = (status.st_dev, status.st_ino)
            if self._follow and any(identity == above.identity for above in self._stack):
                raise OSError(errno.ELOOP, "a symbolic link leads back to a directory above it")
            inner = _Level(fd, name, path + "/", identity)
            self._list(inner)
        except OSError as error:
            if fd >= 0:
                let_go(fd)
            self._fault(level, name, error)
            return
        self._stack.append(inner)
        # Links may not be reopened by name, so under -L a very deep tree keeps its descriptors.
        if len(self._stack) > MAX_HELD and not self._follow:
            self._stack[-MAX_HELD].let_go()

    def _look_again(self, level: _Level) -> None:
        """Once more through a directory that listed what was not there. "No such file" alone is no proof:
        networked disks say it of what they have lost track of."""
        gone, level.gone = set(level.gone), []
        try:
            with os.scandir(self._descriptor(level)) as found:
                listed = sorted_as_bytes([item.name for item in found if item.name in gone])
            if not listed:
                _refuse_removed(self._descriptor(level))
        except FileNotFoundError:
            # It is gone itself, if the one above agrees. The root has none above: nothing in it counts.
            if level.name:
                self._stack[-2].gone.append(level.name)
            else:
                self._faults.append(("", errno.ESTALE, "the directory is gone since it was opened"))
        except OSError as error:
            text = error.strerror or str(error)
            self._faults.append((level.prefix[:-1], error.errno or 0, text))
        else:
            text = "it is listed, and yet not there"
            self._faults += [(level.prefix + name, errno.ESTALE, text) for name in listed]

    # -- rows ----------------------------------------------------------------------------------------

    def _lookup(self, level: _Level, name: str, index: int) -> os.stat_result:
        if level.items is not None:
            return level.items[index].stat(follow_symlinks=self._follow)
        return os.stat(name, dir_fd=self._descriptor(level), follow_symlinks=self._follow)

    def _files(self, level: _Level, start: int, end: int) -> None:
        names: Sequence[str] = level.keys[start:end]
        prefix = level.prefix
        if not self._follow and not self._owner:
            try:
                if level.items is not None:
                    states = [item.stat(follow_symlinks=False) for item in level.items[start:end]]
                else:
                    fd = self._descriptor(level)
                    states = [os.stat(name, dir_fd=fd, follow_symlinks=False) for name in names]
            except OSError:
                pass  # one of them is gone or unreadable: take them one by one
            else:
                # One expression, for this is where a walk spends its time.
                rows: list[Row | None] = [
                    (
                        prefix + name,
                        "file",
                        status.st_size,
                        status.st_mtime_ns,
                        status.st_mode & 0o7777,
                        None,
                        None,
                        None,
                        None,
                    )
                    if status.st_mode & 0o170000 == 0o100000
                    else self._row(level, name, status)
                    for name, status in zip(names, states, strict=True)
                ]
                self._rows.extend(filter(None, rows))
                return
        for index in range(start, end):
            name = level.keys[index]
            try:
                status = self._lookup(level, name, index)
            except OSError as error:
                self._fault(level, name, error)
            else:
                self._rows.extend(filter(None, [self._row(level, name, status)]))

    def _row(self, level: _Level, name: str, status: os.stat_result) -> Row | None:
        path = level.prefix + name
        mode = status.st_mode
        target: str | None = None
        kind: Kind = "special"
        size: int | None = None
        if stat.S_ISREG(mode):
            kind, size = "file", status.st_size
        elif stat.S_ISLNK(mode):
            if self._links == "skip":
                return None
            kind = "link"
            try:
                target = os.readlink(name, dir_fd=self._descriptor(level))
            except OSError as error:
                self._fault(level, name, error)
                return None
        elif stat.S_ISDIR(mode):
            # A file was replaced by a directory since it was read; the next run will see it.
            self._fault(level, name, OSError(errno.ESTALE, "became a directory during the walk"))
            return None
        owner = (status.st_uid, status.st_gid) if self._owner else None
        return path, kind, size, status.st_mtime_ns, mode & 0o7777, target, None, owner, None

    def _fault(self, level: _Level, name: str, error: OSError) -> None:
        # Under -L "no such file" is what a dangling link says, and that one is there.
        if error.errno == errno.ENOENT and not self._follow:
            level.gone.append(name)
        else:
            text = error.strerror or str(error)
            self._faults.append((level.prefix + name, error.errno or 0, text))
