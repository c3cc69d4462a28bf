"""The ``file`` scheme: directories of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import os
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, TypeVar

from fastsync.backend import (
    READ_BUFFER,
    Buffer,
    CopyJob,
    Entry,
    Fault,
    Kind,
    Limits,
    Owner,
    Page,
    PinnedFile,
    Progress,
    ScanOptions,
    Source,
    StoreOptions,
    WriteOptions,
)
from fastsync.errors import (
    Changed,
    Conflict,
    FastsyncError,
    IntegrityError,
    NameRefused,
    NotFound,
    Transient,
    UsageError,
    Vanished,
    from_os_error,
)
from fastsync.location import Location
from fastsync_local.copying import (
    Copier,
    Names,
    Rules,
    SourceChanged,
    SourceVanished,
    Target,
    final_mode,
    open_source,
    same_state,
    split,
    umask,
    write_all,
)
from fastsync_local.held import HeldDirectories, open_root
from fastsync_local.lanes import Lane, LaneFailed, processors
from fastsync_local.walk import Walk

if TYPE_CHECKING:
    from fastsync_local.copying import Job, Problem
    from fastsync_local.walk import Row, RowPage

T = TypeVar("T")

# Below this many files, starting helper processes costs more than they bring.
LANES_FROM: Final = 512
# Pages that one walk yields before it may go on in a helper process.
HANDOVER_AFTER: Final = 2
# Bytes that a thread moves before it tells.
_TELL_EVERY: Final = 8 << 20

_new_entry: Callable[[Row], Entry] = functools.partial(tuple.__new__, Entry)


class LocalBackend:
    """Owns the threads and helper processes that the stores of one run share."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None
        self._idle_lanes: list[Lane] = []
        self._lanes: list[Lane] = []
        self._free: asyncio.Semaphore | None = None
        self._limit = 0
        self._files_seen = 0
        self._walks = 0
        self._jobs = 1

    async def connect(self, location: Location, options: StoreOptions) -> LocalStore:
        """Nothing is opened yet: a destination may still have to be made. Raises UsageError."""
        if not location.path:
            raise UsageError("an empty path")
        self._jobs = max(self._jobs, options.jobs)
        return LocalStore(self, location, follow=options.follow_links)

    async def aclose(self) -> None:
        """End threads and helper processes, the files in hand finished or dropped."""
        lanes, self._lanes = self._lanes, []
        self._idle_lanes.clear()
        threads, self._threads = self._threads, None
        if threads is None:
            return
        for lane in lanes:
            lane.terminate()
        with contextlib.ExitStack() as stack:
            stack.callback(threads.shutdown)
            for lane in lanes:
                stack.callback(lane.close)

    async def in_thread(
        self, work: Callable[[], T], on_cancel: Callable[[], object] | None = None
    ) -> T:
        """Run blocking work. When cancelled, return only after the thread has let go of its files;
        `on_cancel` asks it to hurry."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._jobs + 4, "fastsync-local")
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if on_cancel is not None:
                on_cancel()
            await asyncio.wait([future])
            if not future.cancelled():
                future.exception()  # it was asked to stop; how it ended no longer matters
            raise

    # -- walks ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def walking(self) -> Iterator[None]:
        """Counts the walks that run in this process."""
        self._walks += 1
        try:
            yield
        finally:
            self._walks -= 1

    @property
    def walks_compete(self) -> bool:
        """True when a second walk in this process waits for the interpreter."""
        return self._walks > 1 and processors() > 1

    async def start_lane(self) -> Lane | None:
        """A new helper process, or None where there can be none."""
        try:
            lane = await self.in_thread(Lane)
        except LaneFailed:
            return None
        self._lanes.append(lane)
        return lane

    async def end_lane(self, lane: Lane) -> None:
        if lane in self._lanes:
            self._lanes.remove(lane)
            await self.in_thread(lane.close)

    # -- copies --------------------------------------------------------------------------------------

    async def copy(
        self,
        source: LocalStore,
        target: LocalStore,
        jobs: list[Job],
        rules: Rules,
        progress: Progress,
    ) -> list[Problem | None]:
        """Copy a batch on a lane of its own: a helper process once there are enough files, else a thread.

        As many lanes as processors, and more, up to the jobs allowed, while they mostly wait for a disk.
        """
        if self._free is None:
            self._limit = min(processors(), self._jobs)
            self._free = asyncio.Semaphore(self._limit)
        self._files_seen += len(jobs)
        async with self._free:
            if self._files_seen > LANES_FROM:
                lane = self._idle_lanes.pop() if self._idle_lanes else await self.start_lane()
                if lane is not None:
                    with contextlib.suppress(LaneFailed):
                        return await self._copy_on_lane(lane, source, target, jobs, rules, progress)
            return await self.copy_in_thread(source, target, jobs, rules, progress)

    async def _copy_on_lane(
        self,
        lane: Lane,
        source: LocalStore,
        target: LocalStore,
        jobs: list[Job],
        rules: Rules,
        progress: Progress,
    ) -> list[Problem | None]:
        request = ("copy", source.identity(), target.identity(), rules.as_dict(), jobs)

        def exchange() -> tuple[list[Problem | None], float, float]:
            lane.send(request)
            _, results, wall, cpu = lane.receive()
            return results, wall, cpu

        try:
            results, wall, cpu = await self.in_thread(exchange, lane.terminate)
        except LaneFailed:
            await self.end_lane(lane)
            raise
        self._idle_lanes.append(lane)
        progress(sum(job[2] for job, result in zip(jobs, results, strict=True) if result is None))
        if cpu < wall / 2 and self._limit < self._jobs and self._free is not None:
            self._limit += 1
            self._free.release()
        return results

    async def copy_in_thread(
        self,
        source: LocalStore,
        target: LocalStore,
        jobs: list[Job],
        rules: Rules,
        progress: Progress,
    ) -> list[Problem | None]:
        stop = threading.Event()
        loop = asyncio.get_running_loop()
        untold = 0

        def moved(count: int) -> None:
            nonlocal untold
            untold += count
            if untold >= _TELL_EVERY:
                loop.call_soon_threadsafe(progress, untold)
                untold = 0

        def work() -> list[Problem | None]:
            copier = Copier(
                source.root_descriptor(),
                target.root_descriptor(create=True),
                rules,
                stopped=stop.is_set,
                moved=moved,
            )
            try:
                return copier.run(jobs)
            finally:
                copier.close()

        results = await self.in_thread(work, stop.set)
        progress(untold)
        return results


class LocalStore:
    """A directory, which need not exist before the first write.

    Everything below it is reached through held descriptors, never through links.
    """

    limits: Final = Limits(mtime_step_ns=1, mode_mask=0o7777)
    algorithms: Final = ("blake2b", "sha256", "md5", "sha1")

    def __init__(self, backend: LocalBackend, location: Location, *, follow: bool) -> None:
        self._backend = backend
        self._location = location
        self._path = os.path.abspath(location.path)
        self._root = -1
        self._identity: tuple[int, int] | None = None
        self._follow = follow
        self._lock = threading.Lock()

    @property
    def location(self) -> Location:
        return self._location

    def address(self) -> str:
        """See `Source.address`."""
        return "file://" + os.path.realpath(self._path)

    async def aclose(self) -> None:
        root, self._root = self._root, -1
        if root >= 0:
            os.close(root)

    # -- the root ------------------------------------------------------------------------------------

    def root_descriptor(self, *, create: bool = False) -> int:
        """A new descriptor of the root, for the caller to close; the root is opened once per run."""
        with self._lock:
            if self._root < 0:
                try:
                    self._root = open_root(self._path)
                except FileNotFoundError:
                    if not create:
                        raise
                    os.makedirs(self._path, exist_ok=True)
                    self._root = open_root(self._path)
                status = os.fstat(self._root)
                self._identity = (status.st_dev, status.st_ino)
            return os.dup(self._root)

    def identity(self) -> tuple[str, tuple[int, int]]:
        """Path and (device, inode) of the root, for a helper process to open the same one."""
        if self._identity is None:
            os.close(self.root_descriptor(create=True))
        assert self._identity is not None
        return self._path, self._identity

    def where(self, path: str) -> str:
        return str(self._location.child(path))

    # -- reading -------------------------------------------------------------------------------------

    async def scan(self, options: ScanOptions) -> AsyncIterator[Page]:
        """See `Source.scan`. A second large walk of a run goes on in a helper process."""
        run = self._backend.in_thread
        self._follow = self._follow or options.links == "follow"
        walk_options: dict[str, Any] = {
            "recursive": options.recursive,
            "links": options.links,
            "owner": options.owner,
        }

        def begin() -> Walk:
            return Walk(self.root_descriptor(), prune=options.prune, **walk_options)

        try:
            walk = await run(begin)
        except FileNotFoundError as error:
            if options.missing_ok:
                return
            raise NotFound("no such directory", where=str(self._location)) from error
        except OSError as error:
            raise from_os_error(error, str(self._location)) from error
        lane: Lane | None = None
        reached = ""
        with self._backend.walking():
            pages = iter(walk)
            seen = 0
            try:
                while (page := await run(lambda: next(pages, None))) is not None:
                    yield self._page(page)
                    seen += 1
                    if (
                        seen == HANDOVER_AFTER
                        and options.prune is None
                        and self._backend.walks_compete
                    ):
                        reached = page[2]
                        lane = await self._backend.start_lane()
                        if lane is not None:
                            break
            finally:
                walk.close()
        if lane is not None:
            async for rows in self._scan_on_lane(lane, walk_options, reached):
                yield self._page(rows)

    async def _scan_on_lane(
        self, lane: Lane, options: dict[str, Any], after: str
    ) -> AsyncIterator[RowPage]:
        run = self._backend.in_thread
        try:
            request = ("walk", self.identity(), options, after)
            await run(lambda: lane.send(request))
            while (reply := await run(lane.receive, lane.terminate))[0] == "page":
                _, rows, faults, last = reply
                after = last
                yield rows, faults, last
        except LaneFailed:
            # Go on here, from where it got to.
            reached = after
            walk = await run(lambda: Walk(self.root_descriptor(), after=reached, **options))
            pages = iter(walk)
            try:
                while (page := await run(lambda: next(pages, None))) is not None:
                    yield page
            finally:
                walk.close()
        except OSError as error:
            raise from_os_error(error, str(self._location)) from error
        finally:
            lane.terminate()
            await self._backend.end_lane(lane)

    def _page(self, page: RowPage) -> Page:
        rows, faults, _ = page
        entries = list(map(_new_entry, rows))
        if entries and entries[0].owner is not None:
            entries = [
                entry._replace(owner=Owner(*entry.owner)) if entry.owner else entry
                for entry in entries
            ]
        return Page(
            entries,
            [
                Fault(path, from_os_error(OSError(number, text), self.where(path)))
                for path, number, text in faults
            ],
        )

    async def stat(self, path: str, *, follow: bool = False) -> Entry:
        """See `Source.stat`."""
        return await self._backend.in_thread(lambda: self._stat(path, follow))

    def _stat(self, path: str, follow: bool) -> Entry:
        target: str | None = None
        try:
            if not path:
                status = os.stat(self._path)
            else:
                with self._parent(path) as (directory, name):
                    status = os.stat(name, dir_fd=directory, follow_symlinks=follow)
                    if stat.S_ISLNK(status.st_mode):
                        target = os.readlink(name, dir_fd=directory)
        except FileNotFoundError as error:
            raise NotFound("no such file or directory", where=self.where(path)) from error
        except OSError as error:
            raise from_os_error(error, self.where(path)) from error
        mode = status.st_mode
        kind: Kind = "special"
        if stat.S_ISREG(mode):
            kind = "file"
        elif stat.S_ISDIR(mode):
            kind = "dir"
        elif stat.S_ISLNK(mode):
            kind = "link"
        size = status.st_size if kind == "file" else None
        owner = Owner(status.st_uid, status.st_gid)
        return Entry(path, kind, size, status.st_mtime_ns, mode & 0o7777, target, None, owner)

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        directory, name = split(path)
        held = HeldDirectories(self.root_descriptor(), follow=self._follow)
        try:
            yield held.get(directory), name
        finally:
            held.close()

    async def open_file(self, entry: Entry) -> LocalFile:
        """See `LocalFiles.open_file`."""
        return await self._backend.in_thread(lambda: self._open_file(entry))

    def _open_file(self, entry: Entry) -> LocalFile:
        where = self.where(entry.path)
        try:
            with self._parent(entry.path) as (directory, name):
                fd, status = open_source(
                    directory, name, entry.size or 0, entry.mtime_ns or 0, follow=self._follow
                )
        except SourceChanged as error:
            raise Changed(str(error), where=where) from error
        except (SourceVanished, FileNotFoundError) as error:
            raise Vanished("the file is gone since it was listed", where=where) from error
        except OSError as error:
            raise from_os_error(error, where) from error
        return LocalFile(fd, status, where)

    async def read(self, entry: Entry, start: int, stop: int | None) -> AsyncIterator[Buffer]:
        """See `Source.read`."""
        run = self._backend.in_thread
        file = await run(lambda: self._open_file(entry))
        try:
            end = (entry.size or 0) if stop is None else stop
            buffer = memoryview(bytearray(max(1, min(READ_BUFFER, end - start))))

            def fill() -> int:
                return os.preadv(file.fileno(), [buffer[: end - start]], start)

            while start < end:
                try:
                    count = await run(fill)
                except OSError as error:
                    raise from_os_error(error, f"{file.where}, offset {start}") from error
                if not count:
                    raise Changed("the file became shorter while it was read", where=file.where)
                start += count
                if start >= end:
                    # Checked before the last bytes leave: who has all of them has that version.
                    file.verify()
                yield buffer[:count]
            file.verify()
        finally:
            file.close()

    async def digest(self, entry: Entry, algorithm: str) -> str:
        """See `Hashes.digest`."""
        stop = threading.Event()
        file = await self._backend.in_thread(lambda: self._open_file(entry))
        try:
            return await self._backend.in_thread(
                lambda: _digest(file, algorithm, stop.is_set), stop.set
            )
        finally:
            file.close()

    # -- writing -------------------------------------------------------------------------------------

    async def upload(
        self, path: str, like: Entry, options: WriteOptions, part_size: int
    ) -> LocalUpload:
        """See `Sink.upload`."""
        return await self._backend.in_thread(lambda: self._upload(path, like, options))

    def _upload(self, path: str, like: Entry, options: WriteOptions) -> LocalUpload:
        directory, name = split(path)
        with self._held_target(path) as held:
            fd = held.get(directory, create=True)
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISDIR(os.lstat(name, dir_fd=fd).st_mode):
                    raise Conflict("a directory stands there", where=self.where(path))
            own = os.dup(fd)
            try:
                rules = _rules(options)
                rules.mode = options.mode and like.mode is not None
                rules.mtime = options.mtime and like.mtime_ns is not None
                target = Target(own, name, Names(), rules)
            except BaseException:
                os.close(own)
                raise
        return LocalUpload(self._backend, own, target, path, like, self.where(path), options)

    def can_copy_from(self, source: Source) -> bool:
        return isinstance(source, LocalStore)

    async def copy_from(
        self,
        source: Source,
        jobs: Sequence[CopyJob],
        options: WriteOptions,
        progress: Progress,
    ) -> list[FastsyncError | None]:
        """See `CopiesWithin.copy_from`."""
        assert isinstance(source, LocalStore)
        rows: list[Job] = [
            (
                entry.path,
                path,
                entry.size or 0,
                entry.mtime_ns or 0,
                entry.mode or 0,
                tuple(entry.owner) if entry.owner else None,  # type: ignore[misc]
            )
            for entry, path in jobs
        ]
        rules = _rules(options, follow=source._follow)
        try:
            if max((row[2] for row in rows), default=0) > _TELL_EVERY:
                problems = await self._backend.copy_in_thread(source, self, rows, rules, progress)
            else:
                problems = await self._backend.copy(source, self, rows, rules, progress)
        except OSError as error:  # one of the roots
            raise from_os_error(error, str(self._location)) from error
        return [
            None if problem is None else self._error(problem, source, job)
            for problem, job in zip(problems, rows, strict=True)
        ]

    def _error(self, problem: Problem, source: LocalStore, job: Job) -> FastsyncError:
        kind, number, text = problem
        if kind == "changed":
            return Changed(text, where=source.where(job[0]))
        if kind == "vanished":
            return Vanished(text, where=source.where(job[0]))
        if kind == "name":
            return NameRefused(text, where=self.where(job[1]))
        if kind == "stopped":
            return Transient("stopped", where=self.where(job[1]))
        where = source.where(job[0]) if kind == "read" else self.where(job[1])
        return from_os_error(OSError(number, text), where)

    async def delete(self, entries: Sequence[Entry]) -> list[FastsyncError | None]:
        """See `Sink.delete`."""

        def one(held: HeldDirectories, entry: Entry) -> None:
            directory, name = split(entry.path)
            with contextlib.suppress(FileNotFoundError):
                fd = held.get(directory)
                (os.rmdir if entry.kind == "dir" else os.unlink)(name, dir_fd=fd)

        return await self._each(entries, lambda entry: entry.path, one)

    async def make_directories(
        self, entries: Sequence[Entry], options: WriteOptions
    ) -> list[FastsyncError | None]:
        """See `KeepsDirectories.make_directories`."""

        def one(held: HeldDirectories, entry: Entry) -> None:
            if not entry.path:  # the root was made on the way here
                if options.mode and entry.mode is not None:
                    os.fchmod(held.get(""), (entry.mode & 0o777) | 0o700)
                return
            directory, name = split(entry.path)
            parent = held.get(directory, create=True)
            mode = 0o777 if entry.mode is None or not options.mode else entry.mode | 0o700
            mode &= 0o7777 if options.special else 0o777
            try:
                os.mkdir(name, mode, dir_fd=parent)
            except FileExistsError:
                held.get(entry.path)  # Conflict unless it is a directory
                return
            if options.durable:
                os.fsync(parent)
            if options.mode and (mode & umask() or mode & 0o7000):
                os.fchmod(held.get(entry.path), mode)

        return await self._each(entries, lambda entry: entry.path, one, create=True)

    async def make_links(
        self, jobs: Sequence[CopyJob], options: WriteOptions
    ) -> list[FastsyncError | None]:
        """See `KeepsLinks.make_links`."""
        names = Names()

        def one(held: HeldDirectories, job: CopyJob) -> None:
            directory, name = split(job.path)
            fd = held.get(directory, create=True)
            temporary = names.new()
            os.symlink(job.entry.target or "", temporary, dir_fd=fd)
            try:
                if options.owner and job.entry.owner:
                    with contextlib.suppress(PermissionError):
                        os.chown(temporary, *job.entry.owner, dir_fd=fd, follow_symlinks=False)
                if options.mtime and job.entry.mtime_ns is not None:
                    times = (job.entry.mtime_ns, job.entry.mtime_ns)
                    os.utime(temporary, ns=times, dir_fd=fd, follow_symlinks=False)
                os.rename(temporary, name, src_dir_fd=fd, dst_dir_fd=fd)
            except BaseException:
                os.unlink(temporary, dir_fd=fd)
                raise
            if options.durable:
                os.fsync(fd)

        return await self._each(jobs, lambda job: job.path, one, create=True)

    async def set_attributes(
        self, jobs: Sequence[CopyJob], options: WriteOptions
    ) -> list[FastsyncError | None]:
        """See `SetsAttributes.set_attributes`."""
        rules = _rules(options)

        def one(held: HeldDirectories, job: CopyJob) -> None:
            if not job.path:
                fd = held.get("")
                _set_attributes(fd, job.entry, rules)
                return
            directory, name = split(job.path)
            # O_PATH opens what we may not read, and O_NOFOLLOW never somebody else's file.
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=held.get(directory))
            try:
                _set_attributes(fd, job.entry, rules)
            finally:
                os.close(fd)

        return await self._each(jobs, lambda job: job.path, one)

    async def _each(
        self,
        items: Sequence[T],
        path_of: Callable[[T], str],
        one: Callable[[HeldDirectories, T], None],
        *,
        create: bool = False,
    ) -> list[FastsyncError | None]:
        """Do `one` for every item on a thread, below held directories; errors become answers."""
        stop = threading.Event()

        def work() -> list[FastsyncError | None]:
            answers: list[FastsyncError | None] = []
            with self._held_target("", create=create) as held:
                for item in items:
                    if stop.is_set():
                        break
                    try:
                        one(held, item)
                    except FastsyncError as error:
                        answers.append(error.at(self.where(path_of(item))))
                    except OSError as error:
                        answers.append(from_os_error(error, self.where(path_of(item))))
                    else:
                        answers.append(None)
            return answers

        return await self._backend.in_thread(work, stop.set)

    @contextlib.contextmanager
    def _held_target(self, path: str, *, create: bool = True) -> Iterator[HeldDirectories]:
        held: HeldDirectories | None = None
        try:
            held = HeldDirectories(self.root_descriptor(create=create))
            yield held
        except OSError as error:
            raise from_os_error(error, self.where(path)) from error
        finally:
            if held is not None:
                held.close()


class LocalFile:
    """See `PinnedFile`."""

    def __init__(self, fd: int, status: os.stat_result, where: str) -> None:
        self._fd = fd
        self._status = status
        self.where = where

    def fileno(self) -> int:
        return self._fd

    def verify(self) -> None:
        if not same_state(self._status, os.fstat(self._fd)):
            raise Changed("the file was written to while it was read", where=self.where)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class LocalUpload:
    """See `Upload`. Keeps account of the ranges written: a hole nobody wrote is never committed."""

    def __init__(
        self,
        backend: LocalBackend,
        directory: int,
        target: Target,
        path: str,
        like: Entry,
        where: str,
        options: WriteOptions,
    ) -> None:
        self._backend = backend
        self._directory = directory
        self._target = target
        self._path = path
        self._like = like
        self._where = where
        self._options = options
        self._covered: list[tuple[int, int]] = []
        self._open = True

    def fileno(self) -> int:
        return self._target.fd

    def covers(self, start: int, stop: int) -> None:
        """Note that [start, stop) was written through the descriptor."""
        merged = []
        for low, high in self._covered:
            if high < start or low > stop:
                merged.append((low, high))
            else:
                start, stop = min(start, low), max(stop, high)
        merged.append((start, stop))
        self._covered = sorted(merged)

    async def write(self, start: int, data: Buffer) -> None:
        view = memoryview(data)
        try:
            await self._backend.in_thread(lambda: write_all(self._target.fd, view, start))
        except OSError as error:
            raise from_os_error(error, self._where) from error
        self.covers(start, start + len(view))

    async def commit(self, size: int) -> Entry:
        if self._covered != ([(0, size)] if size else []):
            await self.abort()
            raise IntegrityError(
                f"{sum(high - low for low, high in self._covered)} of {size} bytes were written",
                where=self._where,
            )
        try:
            await self._backend.in_thread(lambda: self._commit(size))
        except OSError as error:
            raise from_os_error(error, self._where) from error
        finally:
            await self.abort()
        mtime_ns = self._like.mtime_ns if self._options.mtime else None
        return Entry(self._path, "file", size, mtime_ns, self._like.mode)

    def _commit(self, size: int) -> None:
        like = self._like
        self._target.finish(size, like.mtime_ns or 0, like.mode or 0, like.owner)
        if self._options.durable:
            os.fsync(self._directory)

    async def abort(self) -> None:
        if self._open:
            self._open = False
            await self._backend.in_thread(self._drop)

    def _drop(self) -> None:
        self._target.drop()
        os.close(self._directory)


def _rules(options: WriteOptions, *, follow: bool = False) -> Rules:
    return Rules(
        follow=follow,
        mtime=options.mtime,
        mode=options.mode,
        owner=options.owner,
        special=options.special,
        inplace=options.inplace,
        durable=options.durable,
        sparse=options.sparse,
    )


def _set_attributes(fd: int, entry: Entry, rules: Rules) -> None:
    """Through /proc, because fchmod and futimens refuse descriptors opened with O_PATH."""
    name = f"/proc/self/fd/{fd}"
    is_link = entry.kind == "link"
    if rules.owner and entry.owner is not None and not is_link:
        try:
            os.chown(name, *entry.owner)
        except PermissionError:
            with contextlib.suppress(PermissionError):
                os.chown(name, -1, entry.owner.gid)
    if rules.mode and entry.mode is not None and not is_link:
        os.chmod(name, final_mode(entry.mode, rules))
    if rules.mtime and entry.mtime_ns is not None and not is_link:
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns))


def _digest(file: PinnedFile, algorithm: str, stopped: Callable[[], bool]) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    buffer = memoryview(bytearray(READ_BUFFER))
    position = 0
    while not stopped():
        count = os.preadv(file.fileno(), [buffer], position)
        if not count:
            break
        digest.update(buffer[:count])
        position += count
    file.verify()
    return digest.hexdigest()
