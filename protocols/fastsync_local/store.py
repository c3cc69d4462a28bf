"""A directory as a store: see `fastsync.backend` for what each method promises."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from fastsync import log
from fastsync.backend import (
    READ_BUFFER,
    Buffer,
    CopyJob,
    Entry,
    Fault,
    Kind,
    Leftover,
    Limits,
    Loaded,
    Owner,
    Page,
    Progress,
    ScanOptions,
    Source,
    WholeJob,
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
    Unsupported,
    Vanished,
    from_os_error,
)
from fastsync.location import Location
from fastsync_local import extras
from fastsync_local.advance import TELL_EVERY
from fastsync_local.copying import (
    Rules,
    SourceChanged,
    SourceVanished,
    Target,
    final_mode,
    open_source,
    split,
    umask,
)
from fastsync_local.crew import Crew
from fastsync_local.files import (
    Left,
    LocalFile,
    LocalUpload,
    digest,
    rules_for,
    write_error,
)
from fastsync_local.held import OPEN_DIRECTORY, HeldDirectories, Root, insist, let_go
from fastsync_local.lanes import Lane, LaneFailed
from fastsync_local.moving import device_of, move
from fastsync_local.small import PageCache, read_files, write_files
from fastsync_local.spelling import folds_below
from fastsync_local.telling import tell_files
from fastsync_local.temporary import GLANCE, Names, found_in, state_of, sweep
from fastsync_local.walk import Walk

if TYPE_CHECKING:
    from fastsync_local.copying import Job, Problem
    from fastsync_local.walk import Row, RowPage

T = TypeVar("T")

# Pages that one walk yields before it may go on in a helper process.
HANDOVER_AFTER: Final = 2
# Directories that one thread looks into before others have a turn.
_LOOKED_INTO: Final = 64

_new_entry: Callable[[Row], Entry] = functools.partial(tuple.__new__, Entry)


class LocalStore:
    """A directory, which need not exist before the first write.

    Everything below it is reached through held descriptors, never through links.
    """

    limits: Final = Limits(mtime_step_ns=1, mode_mask=0o7777, rereads=True)
    algorithms: Final = ("blake2b", "sha256", "md5", "sha1")

    def __init__(self, crew: Crew, location: Location, *, follow: bool, durable: bool) -> None:
        self._crew = crew
        self._location = location
        self.root = Root(location.path)
        self._follow = follow
        self._durable = durable
        self._is_swept = False  # by a listing
        self._glanced: set[tuple[int, int]] = set()
        self._page_cache = PageCache()

    @property
    def location(self) -> Location:
        return self._location

    def address(self) -> str:
        """See `Source.address`."""
        return "file://" + os.path.realpath(self.root.path)

    def ancestry(self) -> list[tuple[int, int] | None]:
        """See `TellsAncestry.ancestry`."""
        path = os.path.realpath(self.root.path)
        above = [path]
        while (parent := os.path.dirname(above[-1])) != above[-1]:
            above.append(parent)
        return [_identity(one) for one in above]

    async def aclose(self) -> None:
        self.root.close()

    def where(self, path: str) -> str:
        return str(self._location.child(path))

    # -- reading -------------------------------------------------------------------------------------

    async def scan(self, options: ScanOptions) -> AsyncIterator[Page]:
        """See `Source.scan`. A second large walk of a run goes on in a helper process."""
        run = self._crew.in_thread
        self._follow = self._follow or options.links == "follow"
        self._is_swept = self._is_swept or (options.sweep and options.recursive)
        walk_options: dict[str, Any] = {
            "recursive": options.recursive,
            "links": options.links,
            "owner": options.owner,
            "sweep": options.sweep,
        }

        def begin() -> Walk:
            return Walk(self.root.descriptor(), prune=options.prune, **walk_options)

        try:
            walk = await run(begin, undo=Walk.close)
        except FileNotFoundError as error:
            if options.missing_ok:
                return
            raise NotFound("no such directory", where=str(self._location)) from error
        except OSError as error:
            raise from_os_error(error, str(self._location)) from error
        lane: Lane | None = None
        reached = ""
        with self._crew.walking():
            pages = iter(walk)
            seen = 0
            try:
                while (page := await run(lambda: next(pages, None))) is not None:
                    if log.level <= log.TRACE:
                        where, entries = str(self._location), len(page[0])
                        log.tell(log.TRACE, "list", protocol="local", place=where, entries=entries)
                    yield self._page(page)
                    seen += 1
                    if (
                        seen == HANDOVER_AFTER
                        and walk.is_sure
                        and options.prune is None
                        and self._crew.walks_compete
                    ):
                        reached = page[2]
                        lane = await self._crew.start_lane()
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
        run = self._crew.in_thread
        try:
            request = ("walk", self.root.identity(), options, after)
            await run(lambda: lane.send(request))
            while (reply := await run(lane.receive, lane.terminate))[0] == "page":
                _, rows, faults, last = reply
                after = last
                yield rows, faults, last
        except LaneFailed:
            # Go on here, from where it got to.
            reached = after
            walk = await run(
                lambda: Walk(self.root.descriptor(), after=reached, **options), undo=Walk.close
            )
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
            await self._crew.end_lane(lane)

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
        return await self._crew.in_thread(lambda: self._stat(path, follow))

    async def folds_names(self) -> bool:
        """See `FoldsNames.folds_names`."""
        return await self._crew.in_thread(lambda: folds_below(self.root.path))

    def _stat(self, path: str, follow: bool) -> Entry:
        target: str | None = None
        try:
            if not path:
                # A slash at the end asks for a directory.
                slash = "/" if self._location.path.endswith("/") else ""
                status = os.stat(self.root.path + slash)
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
        held = HeldDirectories(self.root.descriptor(), follow=self._follow)
        try:
            yield held.get(directory), name
        finally:
            held.close()

    async def open_file(self, entry: Entry) -> LocalFile:
        """See `LocalFiles.open_file`."""
        began = time.monotonic()
        file = await self._crew.in_thread(lambda: self._open_file(entry), undo=LocalFile.close)
        if log.level <= log.TRACE:
            tell_files("open", self.where, [(entry.path, entry.size)], [None], began)
        return file

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
        run = self._crew.in_thread
        file = await run(lambda: self._open_file(entry), undo=LocalFile.close)
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

    async def read_whole(self, entries: Sequence[Entry]) -> list[Loaded | FastsyncError]:
        """See `ReadsWhole.read_whole`."""
        stop = threading.Event()

        def work() -> list[Loaded | FastsyncError]:
            held = HeldDirectories(self.root.descriptor(), follow=self._follow)
            try:
                return read_files(held, entries, self.where, stop.is_set, follow=self._follow)
            finally:
                held.close()

        began = time.monotonic()
        try:
            answers = await self._crew.in_thread(work, stop.set)
        except OSError as error:
            raise from_os_error(error, str(self._location)) from error
        if log.level <= log.TRACE:
            files = [(entry.path, entry.size) for entry in entries]
            tell_files("read", self.where, files, answers, began)
        return answers

    async def digest(self, entry: Entry, algorithm: str) -> str:
        """See `Hashes.digest`."""
        if algorithm not in self.algorithms:
            raise Unsupported(f"no digest {algorithm!r}", where=self.where(entry.path))
        stop = threading.Event()
        file = await self._crew.in_thread(lambda: self._open_file(entry), undo=LocalFile.close)
        try:
            return await self._crew.in_thread(
                lambda: digest(file, algorithm, stop.is_set), stop.set
            )
        finally:
            file.close()

    # -- writing -------------------------------------------------------------------------------------

    async def upload(
        self,
        path: str,
        like: Entry,
        options: WriteOptions,
        part_size: int,
        old: Entry | None = None,
    ) -> LocalUpload:
        """See `Sink.upload`."""
        return await self._crew.in_thread(
            lambda: self._upload(path, like, options), undo=LocalUpload.drop
        )

    def _upload(
        self, path: str, like: Entry, options: WriteOptions, left: Left | None = None
    ) -> LocalUpload:
        directory, name = split(path)
        with self._held_target(path, durable=options.durable) as held:
            fd = held.get(directory, create=True)
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISDIR(os.lstat(name, dir_fd=fd).st_mode):
                    raise Conflict("a directory stands there", where=self.where(path))
            self._glance(fd)
            own = os.dup(fd)
            try:
                rules = rules_for(options)
                rules.mode = options.mode and like.mode is not None
                rules.mtime = options.mtime and like.mtime_ns is not None
                target = Target(own, name, Names(), rules, None if left is None else left.name)
                if left is not None and not left.is_at(os.fstat(target.fd)):
                    target.leave()
                    raise Changed("it is not as it was left", where=self.where(path))
            except BaseException:
                let_go(own)
                raise
        return LocalUpload(self._crew, own, target, path, like, self.where(path), options)

    async def resume_upload(
        self,
        ticket: str,
        path: str,
        like: Entry,
        options: WriteOptions,
        covered: Sequence[tuple[int, int]],
    ) -> LocalUpload | None:
        """See `ResumesUploads.resume_upload`."""
        left = Left.read(ticket)

        def work() -> LocalUpload | None:
            try:
                upload = self._upload(path, like, options, left)
            except FastsyncError:  # gone, or nothing that a new upload would not tell better
                return None
            end = max((stop for _, stop in covered), default=0)
            if os.fstat(upload.fileno()).st_size < end:
                upload.let_go()
                return None
            for start, stop in covered:
                upload.covers(start, stop)
            return upload

        def undo(upload: LocalUpload | None) -> None:
            if upload is not None:
                upload.let_go()

        return await self._crew.in_thread(work, undo=undo)

    async def find_leftovers(self) -> AsyncIterator[list[Leftover]]:
        """See `FindsLeftovers.find_leftovers`."""
        run = self._crew.in_thread
        try:
            held = await run(
                lambda: HeldDirectories(self.root.descriptor()), undo=HeldDirectories.close
            )
        except FileNotFoundError as error:
            raise NotFound("no such directory", where=str(self._location)) from error
        except OSError as error:
            raise from_os_error(error, str(self._location)) from error
        try:
            waiting = [""]
            while waiting:
                some = waiting[-_LOOKED_INTO:]
                del waiting[-_LOOKED_INTO:]
                found, below = await run(functools.partial(_look_into, held, some))
                waiting += below
                if found:
                    yield found
        finally:
            held.close()

    async def drop_upload(self, ticket: str) -> None:
        """See `DropsUploads.drop_upload`."""
        left = Left.read(ticket)

        def work() -> None:
            with self._held_target("", create=False) as held:
                directory = held.get(left.directory)
                if left.is_at(os.lstat(left.name, dir_fd=directory)):
                    insist(directory, lambda: os.unlink(left.name, dir_fd=directory))

        with contextlib.suppress(NotFound):
            await self._crew.in_thread(work)

    async def write_whole(
        self, jobs: Sequence[WholeJob], options: WriteOptions
    ) -> list[FastsyncError | None]:
        """See `WritesWhole.write_whole`."""
        began = time.monotonic()
        answers = await self._write_whole(jobs, options)
        if log.level <= log.TRACE:
            files = [(job.path, len(job.data)) for job in jobs]
            tell_files("write", self.where, files, answers, began)
        return answers

    async def _write_whole(
        self, jobs: Sequence[WholeJob], options: WriteOptions
    ) -> list[FastsyncError | None]:
        cache, stop = self._page_cache, threading.Event()
        answers: list[FastsyncError | None] = []
        if cache.is_quick() and not options.durable:
            with self._held_target("", durable=False) as held:
                while cache.is_quick() and len(answers) < len(jobs):
                    answers += cache.write(held, jobs[len(answers) :], options, self.where)
                    await asyncio.sleep(0)  # what has come meanwhile is taken in between
        left = jobs[len(answers) :]
        if not left:
            return answers

        def work() -> list[FastsyncError | None]:
            with self._held_target("", durable=options.durable) as held:
                return write_files(held, left, options, self.where, stop.is_set)

        return answers + await self._crew.in_thread(work, stop.set)

    def _glance(self, directory: int) -> None:
        """Remove what killed processes left in a directory that no listing has swept, once."""
        status = os.fstat(directory)
        identity = (status.st_dev, status.st_ino)
        if not self._is_swept and identity not in self._glanced:
            self._glanced.add(identity)
            sweep(directory, GLANCE)

    def _make_root_durable(self) -> None:
        let_go(self.root.descriptor(create=True, durable=True))

    def _glance_above(self, path: str) -> None:
        with contextlib.suppress(OSError, FastsyncError), self._parent(path) as (directory, _):
            self._glance(directory)

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
            for entry, path, _ in jobs
        ]
        rules = rules_for(options, follow=source._follow)
        began = time.monotonic()
        if len(rows) == 1 and not self._is_swept:
            await self._crew.in_thread(lambda: self._glance_above(rows[0][1]))
        try:
            if options.durable:
                await self._crew.in_thread(self._make_root_durable)
            if max((row[2] for row in rows), default=0) > TELL_EVERY:
                problems = await self._crew.copy_in_thread(
                    source.root, self.root, rows, rules, progress
                )
            else:
                problems = await self._crew.copy(source.root, self.root, rows, rules, progress)
        except OSError as error:  # one of the roots
            raise from_os_error(error, str(self._location)) from error
        answers = [
            None if problem is None else self._error(problem, source, job)
            for problem, job in zip(problems, rows, strict=True)
        ]
        if log.level <= log.TRACE:
            tell_files("copy", self.where, [(row[1], row[2]) for row in rows], answers, began)
        return answers

    def _error(self, problem: Problem, source: LocalStore, job: Job) -> FastsyncError:
        kind, number, text = problem
        if kind == "changed":
            return Changed(text, where=source.where(job[0]))
        if kind == "vanished":
            return Vanished(text, where=source.where(job[0]))
        if kind == "differs":
            return IntegrityError(text, where=self.where(job[1]))
        if kind == "name":
            return NameRefused(text, where=self.where(job[1]))
        if kind == "stopped":
            return Transient("stopped", where=self.where(job[1]))
        if kind == "read":
            return from_os_error(OSError(number, text), source.where(job[0]))
        return write_error(OSError(number, text), self.where(job[1]), self.root.path, job[2])

    def can_move_from(self, source: Source) -> bool:
        """See `MovesWithin.can_move_from`."""
        if not isinstance(source, LocalStore):
            return False
        ours, theirs = (device_of(os.path.abspath(each.root.path)) for each in (self, source))
        return ours is not None and ours == theirs

    async def move_from(
        self, source: Source, jobs: Sequence[CopyJob]
    ) -> list[FastsyncError | None]:
        """See `MovesWithin.move_from`."""
        assert isinstance(source, LocalStore)

        def one(held: HeldDirectories, job: CopyJob) -> None:
            with source._held_target(job.entry.path, create=False) as theirs:
                move(theirs, held, job)

        return await self._each(jobs, lambda job: job.path, one, create=True, method="rename")

    async def delete(self, entries: Sequence[Entry]) -> list[FastsyncError | None]:
        """See `Sink.delete`."""

        def one(held: HeldDirectories, entry: Entry) -> None:
            directory, name = split(entry.path)
            with contextlib.suppress(FileNotFoundError):
                fd = held.get(directory)
                if entry.kind == "dir":
                    insist(fd, lambda: _remove_directory(fd, name))
                else:
                    insist(fd, lambda: os.unlink(name, dir_fd=fd))

        return await self._each(
            entries, lambda entry: entry.path, one, method="delete", changes=True
        )

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
                insist(parent, lambda: os.mkdir(name, mode, dir_fd=parent))
            except FileExistsError:
                held.get(entry.path, create=True)  # Conflict unless it is a directory, of that name
                if options.durable:
                    os.fsync(parent)
                return
            if options.durable:
                os.fsync(parent)
            if options.mode and (mode & umask() or mode & 0o7000):
                os.fchmod(held.get(entry.path), mode)

        durable = options.durable
        return await self._each(
            entries, lambda entry: entry.path, one, create=True, durable=durable, method="mkdir"
        )

    async def make_links(
        self, jobs: Sequence[CopyJob], options: WriteOptions
    ) -> list[FastsyncError | None]:
        """See `KeepsLinks.make_links`."""
        names = Names()

        def one(held: HeldDirectories, job: CopyJob) -> None:
            directory, name = split(job.path)
            fd = held.get(directory, create=True)
            insist(fd, lambda: _make_link(fd, name, job.entry, names.new(), options))
            if options.durable:
                os.fsync(fd)

        durable = options.durable
        return await self._each(
            jobs, lambda job: job.path, one, create=True, durable=durable, method="symlink"
        )

    async def set_attributes(
        self, jobs: Sequence[CopyJob], options: WriteOptions
    ) -> list[FastsyncError | None]:
        """See `SetsAttributes.set_attributes`."""
        rules = rules_for(options)

        def one(held: HeldDirectories, job: CopyJob) -> None:
            if not job.path:
                fd = held.get("")
                _set_attributes(fd, job.entry, rules)
                if options.durable:
                    os.fsync(fd)
                return
            directory, name = split(job.path)
            # O_PATH opens what we may not read, and O_NOFOLLOW never somebody else's file.
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=held.get(directory))
            try:
                _set_attributes(fd, job.entry, rules)
                if options.durable and job.entry.kind != "link":
                    extras.sync_by_path(fd)
            finally:
                let_go(fd)

        return await self._each(jobs, lambda job: job.path, one, method="attributes")

    # -- what few copies ask for ---------------------------------------------------------------------

    async def read_xattrs(
        self, entries: Sequence[Entry]
    ) -> list[Mapping[str, bytes] | FastsyncError]:
        """See `KeepsXattrs.read_xattrs`."""
        found: dict[str, Mapping[str, bytes]] = {}

        def one(held: HeldDirectories, entry: Entry) -> None:
            found[entry.path] = extras.read_xattrs(held, entry.path)

        errors = await self._each(entries, lambda entry: entry.path, one, method="getxattr")
        return [
            found[entry.path] if error is None else error
            for entry, error in zip(entries, errors, strict=True)
        ]

    async def write_xattrs(
        self, jobs: Sequence[tuple[str, Mapping[str, bytes]]]
    ) -> list[FastsyncError | None]:
        """See `KeepsXattrs.write_xattrs`."""

        def one(held: HeldDirectories, job: tuple[str, Mapping[str, bytes]]) -> None:
            extras.write_xattrs(held, *job, durable=self._durable)

        return await self._each(jobs, lambda job: job[0], one, method="setxattr")

    async def link_identities(self, entries: Sequence[Entry]) -> list[str | None]:
        """See `TellsHardLinks.link_identities`."""
        return await self._told(entries, extras.link_identity)

    async def file_ids(self, entries: Sequence[Entry]) -> list[str | None]:
        """See `TellsFileIds.file_ids`."""
        return await self._told(entries, extras.file_id)

    async def _told(
        self, entries: Sequence[Entry], tell: Callable[[HeldDirectories, str], str | None]
    ) -> list[str | None]:
        found: dict[str, str | None] = {}

        def one(held: HeldDirectories, entry: Entry) -> None:
            found[entry.path] = tell(held, entry.path)

        await self._each(entries, lambda entry: entry.path, one, method="stat")
        return [found.get(entry.path) for entry in entries]

    async def make_hard_links(self, pairs: Sequence[tuple[str, str]]) -> list[FastsyncError | None]:
        """See `MakesHardLinks.make_hard_links`."""
        names = Names()

        def one(held: HeldDirectories, pair: tuple[str, str]) -> None:
            extras.hard_link(held, *pair, names.new())

        return await self._each(pairs, lambda pair: pair[1], one, method="link", changes=True)

    async def _each(
        self,
        items: Sequence[T],
        path_of: Callable[[T], str],
        one: Callable[[HeldDirectories, T], None],
        *,
        create: bool = False,
        durable: bool = False,
        method: str,
        changes: bool = False,
    ) -> list[FastsyncError | None]:
        """Do `one` for every item on a thread, below held directories; errors become answers. With
        `changes` it changes names, which in a durable store count once their directories are on the disk."""
        stop = threading.Event()

        def work() -> list[FastsyncError | None]:
            answers: list[FastsyncError | None] = []
            with self._held_target("", create=create, durable=durable) as held:
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
                if changes and self._durable:
                    paths = [path_of(item) for item in items[: len(answers)]]
                    self._sync_above(held, paths, answers)
            return answers

        began = time.monotonic()
        answers = await self._crew.in_thread(work, stop.set)
        if log.level <= log.TRACE:
            files = [(path_of(item), None) for item in items]
            tell_files(method, self.where, files, answers, began)
        return answers

    def _sync_above(
        self, held: HeldDirectories, paths: Sequence[str], answers: list[FastsyncError | None]
    ) -> None:
        """Bring the directories of all that was done to the disk; what they refuse was not done."""
        changed: dict[str, list[int]] = {}
        for index, path in enumerate(paths):
            if answers[index] is None:
                changed.setdefault(path.rpartition("/")[0], []).append(index)
        for directory, indices in changed.items():
            try:
                os.fsync(held.get(directory))
            except FileNotFoundError:
                continue  # deleted itself, which is for the one above to keep
            except OSError as error:
                for index in indices:
                    answers[index] = from_os_error(error, self.where(paths[index]))

    @contextlib.contextmanager
    def _held_target(
        self, path: str, *, create: bool = True, durable: bool = False
    ) -> Iterator[HeldDirectories]:
        held: HeldDirectories | None = None
        try:
            root = self.root.descriptor(create=create, durable=durable, target=True)
            held = HeldDirectories(root, durable=durable)
            yield held
        except OSError as error:
            raise from_os_error(error, self.where(path)) from error
        finally:
            if held is not None:
                held.close()


def _identity(directory: str) -> tuple[int, int] | None:
    """None where there is none, or the file system has no numbers."""
    try:
        state = os.stat(directory)
    except OSError:
        return None
    return (state.st_dev, state.st_ino) if state.st_ino else None


def _look_into(held: HeldDirectories, paths: list[str]) -> tuple[list[Leftover], list[str]]:
    """The temporary files in these directories, and the directories in them."""
    found: list[Leftover] = []
    below: list[str] = []
    for path in paths:
        above = f"{path}/" if path else ""
        with contextlib.suppress(OSError):
            files, directories = found_in(held.get(path))
            below += [above + name for name in directories]
            for name, status in files:
                if (state := state_of(name, status)) is not None:
                    made_ns = status.st_ctime_ns
                    found.append(Leftover(above + name, status.st_size, made_ns, *state))
    return found, below


def _remove_directory(parent: int, name: str) -> None:
    """Remove an empty directory; what a killed process left in it is nothing. Raises OSError."""
    try:
        os.rmdir(name, dir_fd=parent)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        inner = os.open(name, OPEN_DIRECTORY, dir_fd=parent)
        try:
            sweep(inner)
        finally:
            let_go(inner)
        os.rmdir(name, dir_fd=parent)


def _make_link(
    directory: int, name: str, entry: Entry, temporary: str, options: WriteOptions
) -> None:
    """Make a link under a temporary name and rename it. Raises OSError."""
    os.symlink(entry.target or "", temporary, dir_fd=directory)
    try:
        if options.owner and entry.owner:
            with contextlib.suppress(PermissionError):
                os.chown(temporary, *entry.owner, dir_fd=directory, follow_symlinks=False)
        if options.mtime and entry.mtime_ns is not None:
            times = (entry.mtime_ns, entry.mtime_ns)
            os.utime(temporary, ns=times, dir_fd=directory, follow_symlinks=False)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        os.unlink(temporary, dir_fd=directory)
        raise


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
