"""Copy files inside the kernel's reach: small ones in a tight loop, large ones down a ladder of calls.

The ladder: share the blocks (FICLONE), ``copy_file_range``, ``sendfile``, ``preadv``/``pwrite``. Each rung
falls through on the errnos that mean "not here". Every rung but the last returns 0 past the end of a
source that shrank, and says nothing; so bytes are counted, and only the last rung decides.

A file appears by rename with mode and time already set. The source is held open and its state compared
before and after; mmap is not used, for a source that shrinks under a map kills the process (SIGBUS).

Imports are few on purpose: a helper process runs this module and should start in 20 ms.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
import stat
import threading

from fastsync.errors import FastsyncError
from fastsync.names import safe_parts
from fastsync_local.held import HeldDirectories, insist, let_go
from fastsync_local.parallel import PARALLEL_FROM, copies_plainly, in_parallel
from fastsync_local.spelling import folds, refuse_other_spelling
from fastsync_local.temporary import Names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Final, TypeAlias

    # Source path, destination path, size, mtime_ns, mode, owner.
    Job: TypeAlias = tuple[str, str, int, int, int, tuple[int, int] | None]
    # What went wrong: kind ("read", "write", "changed", "vanished", "differs", "name", "stopped"), errno,
    # text.
    Problem: TypeAlias = tuple[str, int, str]

# One buffer per lane; a file that fits is one read and one write, which costs a microsecond more than
# copy_file_range and notices a file that grew. A larger buffer gains next to nothing (benches/ladder.py).
BUFFER: Final = 128 << 10
# How much one call may move: cancellation and progress wait for it.
STEP: Final = 32 << 20

FICLONE: Final = 0x40049409  # ioctl_ficlone(2); in the fcntl module only from Python 3.12 on

# "This pair of files cannot do it this way", as opposed to "it went wrong".
_NOT_HERE: Final = frozenset(
    {
        errno.EXDEV,
        errno.EINVAL,
        errno.ENOSYS,
        errno.EOPNOTSUPP,
        errno.ENOTTY,
        errno.EPERM,
        errno.EBADF,
        errno.ETXTBSY,
    }
)
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_INPLACE: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class SourceChanged(Exception):
    """The source is not, or no longer, the file that was listed."""


class SourceVanished(Exception):
    """The source is gone."""


class Differs(Exception):
    """What was written is not what was read."""


class Stopped(Exception):
    """The run was cancelled; the file in hand is dropped."""


class Rules:
    """What a copy keeps and how it lands: the fields of `WriteOptions`, and whether links are followed."""

    __slots__ = (
        "durable",
        "follow",
        "inplace",
        "mode",
        "mtime",
        "owner",
        "reread",
        "sparse",
        "special",
    )

    def __init__(
        self,
        *,
        follow: bool = False,
        mtime: bool = True,
        mode: bool = True,
        owner: bool = False,
        special: bool = False,
        inplace: bool = False,
        durable: bool = False,
        sparse: bool = False,
        reread: bool = False,
    ) -> None:
        self.follow = follow
        self.mtime = mtime
        self.mode = mode
        self.owner = owner
        self.special = special
        self.inplace = inplace
        self.durable = durable
        self.sparse = sparse
        self.reread = reread

    def as_dict(self) -> dict[str, bool]:
        """The keyword arguments that make an equal one, for the way to a helper process."""
        return {name: getattr(self, name) for name in self.__slots__}


def split(path: str) -> tuple[str, str]:
    """Directory and last component; the component is checked here, the directory when it is entered."""
    directory, slash, name = path.rpartition("/")
    if name in ("", ".", "..") or "\0" in path or (slash and not directory) or not path.isascii():
        safe_parts(path)  # says what is wrong, if anything is
    return directory, name


class Ladder:
    """Copies ranges between open files, and remembers per pair of devices which rungs work there."""

    def __init__(self, stopped: Callable[[], bool], moved: Callable[[int], object]) -> None:
        self._stopped = stopped
        self._moved = moved
        self._refused: set[tuple[str, int, int]] = set()
        self._buffer: memoryview | None = None

    def copy(
        self,
        source: int,
        target: int,
        start: int,
        stop: int,
        devices: tuple[int, int],
        *,
        alone: bool,
    ) -> None:
        """Move the bytes [start, stop) to the same offsets of `target`.

        `alone` says that nobody else uses the descriptors' positions, which sendfile needs. Raises
        SourceChanged when the source ends before `stop`, Stopped, OSError.
        """
        position = start
        for name, rung in (
            ("copy_file_range", self._by_copy_file_range),
            ("sendfile", self._by_sendfile),
        ):
            if position == stop or (name == "sendfile" and not alone):
                continue
            if (name, *devices) in self._refused:
                continue
            try:
                position = rung(source, target, position, stop)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                # These rungs move nothing in a call that fails; what earlier calls moved is redone.
                self._refused.add((name, *devices))
        if position < stop:
            self.copy_by_buffer(source, target, position, stop)

    def clone(self, source: int, target: int, devices: tuple[int, int]) -> bool:
        """Share all blocks of the source with an empty target, where the filesystem can."""
        if devices[0] != devices[1] or ("clone", *devices) in self._refused:
            return False
        import fcntl

        try:
            fcntl.ioctl(target, FICLONE, source)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            self._refused.add(("clone", *devices))
            return False
        return True

    def _step(self, position: int, stop: int) -> int:
        if self._stopped():
            raise Stopped
        return min(STEP, stop - position)

    def _by_copy_file_range(self, source: int, target: int, position: int, stop: int) -> int:
        while position < stop:
            count = self._step(position, stop)
            done = os.copy_file_range(source, target, count, position, position)
            if done == 0:
                break
            position += done
            self._moved(done)
        return position

    def _by_sendfile(self, source: int, target: int, position: int, stop: int) -> int:
        os.lseek(target, position, os.SEEK_SET)
        while position < stop:
            done = os.sendfile(target, source, position, self._step(position, stop))
            if done == 0:
                break
            position += done
            self._moved(done)
        return position

    def copy_by_buffer(self, source: int, target: int, position: int, stop: int) -> None:
        """The last rung: read and write. Raises as `copy` does."""
        if self._buffer is None:
            self._buffer = memoryview(bytearray(BUFFER))
        buffer = self._buffer
        while position < stop:
            self._step(position, stop)
            count = os.preadv(source, [buffer[: stop - position]], position)
            if count == 0:
                raise SourceChanged("the file became shorter while it was copied")
            write_all(target, buffer[:count], position)
            position += count
            self._moved(count)


def write_all(fd: int, data: memoryview, position: int) -> None:
    """pwrite until everything is written. Raises OSError."""
    while data:
        done = os.pwrite(fd, data, position)
        data = data[done:]
        position += done


def drop_cache(fd: int) -> None:
    """Let what is read next come from the disk. Blocks until everything is there; raises OSError.

    Clean pages are dropped on this advice (posix_fadvise(2)); where there is none, memory answers.
    """
    os.fdatasync(fd)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def data_ranges(fd: int, size: int, *, sparse: bool) -> Iterator[tuple[int, int]]:
    """The ranges of a file that hold data; all of it as one range unless `sparse` asks for the holes."""
    if not sparse:
        if size:
            yield 0, size
        return
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # only a hole is left
            raise
        stop = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        if start < stop:
            yield start, stop
        position = max(stop, start + 1)


def same_state(before: os.stat_result, after: os.stat_result) -> bool:
    """True when nothing was written to a file between two looks at its descriptor."""
    return (
        before.st_size == after.st_size
        and before.st_mtime_ns == after.st_mtime_ns
        and before.st_ctime_ns == after.st_ctime_ns
    )


def open_source(
    directory: int, name: str, size: int, mtime_ns: int, *, follow: bool
) -> tuple[int, os.stat_result]:
    """Open a listed file and make sure it is still the one that was listed.

    O_NONBLOCK keeps a FIFO that took the file's place from blocking the open. Raises SourceChanged,
    SourceVanished, OSError.
    """
    try:
        fd = os.open(name, _READ & ~os.O_NOFOLLOW if follow else _READ, dir_fd=directory)
    except FileNotFoundError:
        raise SourceVanished from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise SourceChanged("the file was replaced since it was listed") from None
        raise
    try:
        status = os.fstat(fd)
        if (
            status.st_size != size
            or status.st_mtime_ns != mtime_ns
            or not stat.S_ISREG(status.st_mode)
        ):
            raise SourceChanged("the file was written to since it was listed")
    except BaseException:
        let_go(fd)
        raise
    return fd, status


class Target:
    """A file being written in a held directory, under a temporary name until `finish` renames it."""

    __slots__ = ("_directory", "_name", "_names", "_rules", "_temporary", "fd")

    def __init__(
        self, directory: int, name: str, names: Names, rules: Rules, left: str | None = None
    ) -> None:
        """Begin a file, or go on with the one that was `left` under that temporary name. Raises OSError."""
        self._directory = directory
        self._name = name
        self._names = names
        self._rules = rules
        if left is not None:
            self._temporary = left
            self.fd = os.open(left, _INPLACE & ~os.O_CREAT, dir_fd=directory)
            names.folds = folds(directory, left)
            return
        if rules.inplace:
            refuse_other_spelling(directory, name)
        self._temporary = name if rules.inplace else names.new()
        while True:
            try:
                self.fd = self._open()
                break
            except FileExistsError:
                self._temporary = names.new()
            except PermissionError:
                self.fd = insist(directory, self._open)
                break
        if names.folds is None and not rules.inplace:
            names.folds = folds(directory, self._temporary)
        if rules.inplace and not stat.S_ISREG(os.fstat(self.fd).st_mode):
            let_go(self.fd)
            raise OSError(errno.EEXIST, "something that is no regular file stands there")

    def _open(self) -> int:
        flags = _INPLACE if self._rules.inplace else _CREATE
        return os.open(self._temporary, flags, 0o600, dir_fd=self._directory)

    def _rename(self) -> None:
        at = self._directory
        if self._names.folds or not self._name.isascii():
            refuse_other_spelling(at, self._name)
        os.rename(self._temporary, self._name, src_dir_fd=at, dst_dir_fd=at)

    def finish(self, size: int, mtime_ns: int, mode: int, owner: tuple[int, int] | None) -> None:
        """Set length (in place only), owner, mode and time, then let the file appear. Raises OSError."""
        rules, fd = self._rules, self.fd
        if rules.inplace or rules.sparse:
            os.ftruncate(fd, size)
        if rules.owner and owner is not None:
            set_owner(fd, owner)
        os.fchmod(fd, final_mode(mode, rules))
        if rules.mtime:
            os.utime(fd, ns=(mtime_ns, mtime_ns))
        if rules.durable:
            os.fsync(fd)
        self.fd = -1
        os.close(fd)
        if not rules.inplace:
            insist(self._directory, self._rename)
            self._temporary = ""

    @property
    def temporary(self) -> str:
        """The name until `finish`."""
        return self._temporary

    def leave(self) -> None:
        """Let go of it as it is, under its temporary name. Idempotent."""
        if self.fd >= 0:
            let_go(self.fd)
            self.fd = -1
        self._temporary = ""

    def drop(self, reason: BaseException | None = None) -> None:
        """Leave nothing behind. Idempotent; an in-place target stays, as its user accepted. What cannot be
        removed, as on a disk that became read-only, is told with the `reason`."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            let_go(fd)
        if self._temporary and not self._rules.inplace:
            try:
                insist(self._directory, lambda: os.unlink(self._temporary, dir_fd=self._directory))
            except OSError:
                if isinstance(reason, OSError):
                    reason.strerror = (
                        f"{reason.strerror}; {self._temporary} is left for a later run"
                    )
            self._temporary = ""


@functools.cache
def umask() -> int:
    """The process's umask, from /proc: asking the system call means changing it for other threads."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("Umask:"):
                    return int(line.split()[1], 8)
    except OSError:
        pass
    return 0o022


def final_mode(mode: int, rules: Rules) -> int:
    """The permission bits a file ends with: the source's, or a new file's when modes are not kept."""
    if not rules.mode:
        return 0o666 & ~umask()
    return mode & 0o7777 if rules.special else mode & 0o777


def set_owner(fd: int, owner: tuple[int, int]) -> None:
    """Owner and group as far as we may: without privileges the group alone, or neither."""
    try:
        os.fchown(fd, *owner)
    except PermissionError:
        try:
            os.fchown(fd, -1, owner[1])
        except PermissionError:
            pass


class Copier:
    """Copies batches of files between two held roots, one after the other, a large one by `threads`.

    Owns both root descriptors. `stopped` is asked between files and between large steps; `moved` hears
    of bytes.
    """

    def __init__(
        self,
        source_root: int,
        target_root: int,
        rules: Rules,
        *,
        stopped: Callable[[], bool],
        moved: Callable[[int], object],
        threads: int = 1,
    ) -> None:
        self._threads = threads
        self._sources = HeldDirectories(source_root, follow=rules.follow)
        self._targets = HeldDirectories(target_root, durable=rules.durable)
        self._rules = rules
        self._stopped = stopped
        self._moved = moved
        self._names = Names()
        self._ladder = Ladder(stopped, moved)
        self._buffer = bytearray(BUFFER)
        self._other = bytearray(BUFFER) if rules.reread else b""
        self._reading = False  # which side an OSError is about

    def close(self) -> None:
        self._sources.close()
        self._targets.close()

    def run(self, jobs: Sequence[Job]) -> list[Problem | None]:
        """Copy each job; a problem with one does not stop the next, being stopped does."""
        if not self._rules.durable:
            return self._run(jobs)
        results: list[Problem | None] = []
        for directory, some in itertools.groupby(jobs, lambda job: job[1].rpartition("/")[0]):
            results += self._run_durably(directory, list(some))
        return results

    def _run_durably(self, directory: str, jobs: Sequence[Job]) -> list[Problem | None]:
        """Jobs into one directory, whose renames count once the directory itself is on the disk."""
        results = self._run(jobs)
        if None in results:
            try:
                os.fsync(self._targets.get(directory))
            except OSError as error:
                problem = ("write", error.errno or 0, error.strerror or str(error))
                results = [result or problem for result in results]
        return results

    def _run(self, jobs: Sequence[Job]) -> list[Problem | None]:
        results: list[Problem | None] = []
        for job in jobs:
            if self._stopped():
                results.append(("stopped", 0, ""))
                continue
            try:
                self._copy(job)
            except Stopped:
                results.append(("stopped", 0, ""))
            except SourceVanished:
                results.append(("vanished", 0, "the file is gone since it was listed"))
            except SourceChanged as error:
                results.append(("changed", 0, str(error)))
            except Differs as error:
                results.append(("differs", 0, str(error)))
            except FastsyncError as error:
                results.append(("name", 0, error.message))
            except OSError as error:
                side = "read" if self._reading else "write"
                results.append((side, error.errno or 0, error.strerror or str(error)))
            else:
                results.append(None)
        return results

    def _copy(self, job: Job) -> None:
        path, to, size, mtime_ns, mode, owner = job
        rules = self._rules
        directory, name = split(path)
        to_directory, to_name = (directory, name) if to == path else split(to)
        self._reading = True
        source, before = open_source(
            self._source_directory(directory), name, size, mtime_ns, follow=rules.follow
        )
        self._reading = False
        try:
            target = Target(
                self._targets.get(to_directory, create=True), to_name, self._names, rules
            )
            try:
                if size < BUFFER and not rules.sparse:
                    # One byte more than the file has, so that one that grew is noticed here.
                    self._reading = True
                    if os.readv(source, [self._buffer]) != size:
                        raise SourceChanged("the file changed while it was copied")
                    self._reading = False
                    if size:
                        view = memoryview(self._buffer)[:size]
                        done = os.write(target.fd, view)
                        if done != size:
                            write_all(target.fd, view[done:], done)
                        self._moved(size)
                else:
                    self._copy_large(source, before, target, size)
                if rules.reread:
                    self._reread(source, before, target.fd, size)
                if not same_state(before, os.fstat(source)):
                    raise SourceChanged("the file changed while it was copied")
                target.finish(size, mtime_ns, mode, owner)
            except BaseException as error:
                target.drop(error)
                raise
        finally:
            let_go(source)

    def _reread(self, source: int, before: os.stat_result, target: int, size: int) -> None:
        """Compare what was written with the source. Raises Differs, Stopped, OSError; a source that changes
        meanwhile differs, too, and is told by its state."""
        if self._rules.durable:
            drop_cache(target)
        ours, theirs = memoryview(self._buffer), memoryview(self._other)
        position = 0
        while position < size:
            if self._stopped():
                raise Stopped
            length = min(BUFFER, size - position)
            self._reading = True
            count = os.preadv(source, [ours[:length]], position)
            self._reading = False
            found = os.preadv(target, [theirs[:count]], position) if count else 0
            # Of two memoryviews every byte would be made an object: 40 times as slow.
            if not found or not self._buffer.startswith(theirs[:found]):
                if not count or not same_state(before, os.fstat(source)):
                    raise SourceChanged("the file changed while it was copied")
                raise Differs(f"what was written is not what was read, after byte {position}")
            position += found

    def _copy_large(self, source: int, before: os.stat_result, target: Target, size: int) -> None:
        devices = (before.st_dev, os.fstat(target.fd).st_dev)
        if not self._rules.inplace and self._ladder.clone(source, target.fd, devices):
            self._moved(size)
            return
        if self._is_for_threads(size, devices):
            self._copy_by_threads(source, target.fd, size)
            return
        if self._rules.inplace and self._rules.sparse:
            os.ftruncate(target.fd, 0)  # what is not written over must be a hole
        for start, stop in data_ranges(source, size, sparse=self._rules.sparse):
            self._ladder.copy(source, target.fd, start, stop, devices, alone=True)

    def _is_for_threads(self, size: int, devices: tuple[int, int]) -> bool:
        return (
            self._threads > 1
            and size >= PARALLEL_FROM
            and not self._rules.sparse
            and all(map(copies_plainly, devices))
        )

    def _copy_by_threads(self, source: int, target: int, size: int) -> None:
        telling = threading.Lock()
        own = threading.local()

        def moved(count: int) -> None:
            with telling:
                self._moved(count)

        def copy(start: int, stop: int) -> None:
            if not hasattr(own, "ladder"):
                own.ladder = Ladder(self._stopped, moved)
            own.ladder.copy_by_buffer(source, target, start, stop)

        in_parallel(size, self._threads, copy)

    def _source_directory(self, path: str) -> int:
        try:
            return self._sources.get(path)
        except FileNotFoundError:
            raise SourceVanished from None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR) and not self._rules.follow:
                raise SourceChanged("a directory above the file was replaced") from None
            raise
