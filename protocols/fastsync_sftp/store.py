"""A directory at a server as a store: see `fastsync.backend` for what each method promises."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Final, TypeVar

from fastsync.backend import (
    READ_BUFFER,
    Buffer,
    CopyJob,
    Entry,
    Limits,
    Loaded,
    Page,
    Progress,
    ScanOptions,
    Source,
    StoreOptions,
    WholeJob,
    WriteOptions,
    closing,
)
from fastsync.errors import Conflict, FastsyncError, NotFound, Transient, Vanished
from fastsync.location import Location
from fastsync.names import safe_parts
from fastsync_sftp import packets
from fastsync_sftp.bulk import Reading, RemoteFile, into_file
from fastsync_sftp.copying import copy_file, has_moved, move
from fastsync_sftp.directories import Directories
from fastsync_sftp.download import SftpDownload
from fastsync_sftp.links import SymlinkOrder, make_hard_link, make_link
from fastsync_sftp.listing import Listing, entry_of
from fastsync_sftp.names import join, split
from fastsync_sftp.packets import (
    CLOSE,
    FOR_READING,
    LSTAT,
    NO_SUCH_FILE,
    OK,
    READLINK,
    REMOVE,
    RMDIR,
    SETSTAT,
    STAT,
)
from fastsync_sftp.placing import mode_for
from fastsync_sftp.pool import Pool
from fastsync_sftp.scripts import Script, run
from fastsync_sftp.session import Session
from fastsync_sftp.small import must_be_version, read_file, write_file
from fastsync_sftp.spelling import are_one, spellings
from fastsync_sftp.temporary import KEPT, SOON, sweep, temporary_name
from fastsync_sftp.upload import Left, SftpUpload, begin, go_on

T = TypeVar("T")
J = TypeVar("J", WholeJob, CopyJob)

# A file stays open for so long after a part of it was read, for the next part.
_LINGER_S: Final = 0.5
# Bytes that one read has on their way to it, besides the buffer that its reader holds.
_READ_AHEAD: Final = 4 << 20
# Deletes, attributes and the like that are sent in one go.
_AT_ONCE: Final = 500
# Times that a move is asked for again whose answer was lost.
_MOVES: Final = 3
# Directories that are looked into for what a killed run left there, where no listing does it.
_GLANCES: Final = 64


class _Open:
    """A file that parts are read of, and who reads them."""

    def __init__(self, file: RemoteFile) -> None:
        self.file = file
        self.readers = 0
        self.closing: asyncio.TimerHandle | None = None


class SftpStore:
    """A directory at a server, which need not exist before the first write."""

    limits: Final = Limits(mtime_step_ns=1_000_000_000, mode_mask=0o7777, slow_digests=True)

    def __init__(
        self, pool: Pool, location: Location, options: StoreOptions, root: bytes, real: bytes
    ) -> None:
        self.pool = pool
        self.root = root
        self._real = real
        self._location = location
        self._follow = options.follow_links
        self._read_ahead = max(
            READ_BUFFER, min(_READ_AHEAD, options.buffer_size // max(1, options.streams))
        )
        self._directories = Directories(pool, root, self.where)
        self._open: dict[Entry, asyncio.Future[_Open]] = {}
        self._symlinks = SymlinkOrder()
        self._glances: dict[str, asyncio.Task[None]] = {}
        self._is_swept = False
        self._folds: bool | None = None

    @property
    def location(self) -> Location:
        return self._location

    def address(self) -> str:
        """See `Source.address`."""
        place = self.pool.place
        host = f"[{place.host}]" if ":" in place.host else place.host
        return f"sftp://{host}:{place.port or 22}{self._real.decode('utf-8', 'surrogateescape')}"

    def where(self, path: str) -> str:
        return str(self._location.child(path))

    async def aclose(self) -> None:
        """See `Source.aclose`."""
        glances, self._glances = self._glances, {}
        await asyncio.gather(*glances.values())
        opened, self._open = self._open, {}
        for future in opened.values():
            if future.done() and not future.cancelled() and future.exception() is None:
                one = future.result()
                if one.closing is not None:
                    one.closing.cancel()
                one.file.close()

    # -- looking -------------------------------------------------------------------------------------

    async def scan(self, options: ScanOptions) -> AsyncIterator[Page]:
        """See `Source.scan`."""
        self._is_swept = self._is_swept or (options.sweep and options.recursive)
        listing = Listing(self.pool, self.root, self._directories, options, self.where)
        async for page in listing.pages():
            yield page

    async def stat(self, path: str, *, follow: bool = False) -> Entry:
        """See `Source.stat`."""
        at = join(self.root, path)

        def look(_: Session) -> Script[Entry]:
            # The location itself may be a link to where everything is.
            looks = [packets.on_path(STAT if follow or not path else LSTAT, at)]
            if not path:  # in the same round trip
                others = [other for pair in spellings(at) for other in pair]
                looks += [packets.on_path(LSTAT, other) for other in others]
            reply, *twins = yield looks
            if not path and reply[0] == packets.ATTRS:
                self._folds = are_one(twins)
            entry = entry_of(path, packets.must_be_attributes(reply), True)
            if entry.kind == "link":
                (reply,) = yield [packets.on_path(READLINK, at)]
                target = packets.must_be_name(reply).decode("utf-8", "surrogateescape")
                entry = entry._replace(target=target)
            return entry

        try:
            return await self.pool.run(look)
        except FastsyncError as error:
            error.at(self.where(path))
            raise

    async def folds_names(self) -> bool:
        """See `FoldsNames.folds_names`."""
        if self._folds is None:
            with contextlib.suppress(NotFound):
                await self.stat("")
        return bool(self._folds)

    async def _refuse_links(self, directories: Sequence[str]) -> dict[str, FastsyncError]:
        """The directories that may not be read through."""
        if self._follow:
            return {}
        return await self._directories.check(directories, create=False)

    # -- reading -------------------------------------------------------------------------------------

    async def read(self, entry: Entry, start: int, stop: int | None) -> AsyncIterator[Buffer]:
        """See `Source.read`."""
        end = (entry.size or 0) if stop is None else stop
        opened = await self._opened(entry)
        try:
            if start >= end:
                return
            buffers = self.pool.read_in_order(opened.file, start, end, self._read_ahead)
            async with closing(buffers):
                async for data in buffers:
                    yield data
        except FastsyncError as error:
            error.at(self.where(entry.path))
            raise
        finally:
            self._release(opened)

    async def open_download(self, entry: Entry) -> SftpDownload:
        """See `Downloads.open_download`. What is wrong with the file is told when it is read."""
        return SftpDownload(self, entry)

    async def read_into_file(
        self, entry: Entry, start: int, stop: int, fd: int, progress: Progress
    ) -> None:
        """See `ReadsIntoFile.read_into_file`."""
        where = self.where(entry.path)
        opened = await self._opened(entry)
        try:
            if start < stop:
                block = (await self.pool.session()).limits.read
                arrivals = into_file(self.pool.disk, fd, where, start, progress)
                await self.pool.carry(Reading(opened.file, start, stop, block, arrivals))
        except FastsyncError as error:
            error.at(where)
            raise
        finally:
            self._release(opened)

    async def _opened(self, entry: Entry) -> _Open:
        """The file, open, and checked to be the version that was listed. Raises Changed, Vanished."""
        while True:
            future = self._open.get(entry)
            if future is None:
                future = self._open[entry] = asyncio.ensure_future(self._open_file(entry))
                future.add_done_callback(partial(self._forget_failed, entry))
            try:
                opened = await asyncio.shield(future)
            except asyncio.CancelledError:
                if future.done() and not future.cancelled() and future.exception() is None:
                    self._hold(future.result())
                    self._release(future.result())
                raise
            except FastsyncError as error:
                error.at(self.where(entry.path))
                raise
            if self._open.get(entry) is future:
                self._hold(opened)
                return opened

    def _forget_failed(self, entry: Entry, future: asyncio.Future[_Open]) -> None:
        if future.cancelled() or future.exception() is not None:
            self._open.pop(entry, None)

    async def _open_file(self, entry: Entry) -> _Open:
        self.pool.expect(entry.size)
        if not self._follow:
            directory, _ = split(entry.path) if entry.path else ("", "")
            bad = await self._refuse_links([directory])
            if directory in bad:
                error = bad[directory]
                if isinstance(error, NotFound):
                    raise Vanished("the file is gone since it was listed") from error
                raise error
        session = await self.pool.session()
        path = join(self.root, entry.path)
        follow = self._follow or not entry.path
        handle = await run(session, lambda _: _open_version(path, entry, follow))
        file = RemoteFile(
            path, FOR_READING, self.where(entry.path), entry, STAT if follow else LSTAT
        )
        file.adopt(session, handle)
        opened = _Open(file)
        self._linger(entry, opened)
        return opened

    def _hold(self, opened: _Open) -> None:
        opened.readers += 1
        if opened.closing is not None:
            opened.closing.cancel()
            opened.closing = None

    def _release(self, opened: _Open) -> None:
        opened.readers -= 1
        if not opened.readers:
            assert opened.file.entry is not None
            self._linger(opened.file.entry, opened)

    def _linger(self, entry: Entry, opened: _Open) -> None:
        def close() -> None:
            self._open.pop(entry, None)
            opened.file.close()

        opened.closing = asyncio.get_running_loop().call_later(_LINGER_S, close)

    async def read_whole(self, entries: Sequence[Entry]) -> list[Loaded | FastsyncError]:
        """See `ReadsWhole.read_whole`."""
        bad = await self._refuse_links([entry.path.rpartition("/")[0] for entry in entries])
        answers: list[Loaded | FastsyncError | None] = []
        scripts = []
        for entry in entries:
            error = bad.get(entry.path.rpartition("/")[0])
            if isinstance(error, NotFound):
                error = Vanished("the file is gone since it was listed")
            answers.append(error)
            if error is None:
                path = join(self.root, entry.path)
                scripts.append(partial(read_file, path=path, entry=entry, follow=self._follow))
        results = iter(await self.pool.results(scripts))
        return [
            self._placed(next(results) if answer is None else answer, entry.path)
            for answer, entry in zip(answers, entries, strict=True)
        ]

    def _placed(self, answer: T, path: str) -> T:
        if isinstance(answer, FastsyncError):
            answer.at(self.where(path))
        return answer

    # -- digests -------------------------------------------------------------------------------------

    @property
    def algorithms(self) -> tuple[str, ...]:
        """See `Hashes.algorithms`."""
        return self.pool.hashes.algorithms

    async def find_hashes(self) -> None:
        """See `FindsHashes.find_hashes`."""
        await self.pool.hashes.find()

    async def digest(self, entry: Entry, algorithm: str) -> str:
        """See `Hashes.digest`."""
        opened = await self._opened(entry)  # which proves that it is the file that was listed
        path = join(self.root, entry.path)
        look = packets.on_path(opened.file.look, path)
        try:
            try:
                return await self.pool.hashes.digest(path, entry.size or 0, algorithm)
            finally:
                must_be_version(entry, await (await self.pool.session()).call(look))
        except FastsyncError as error:
            error.at(self.where(entry.path))
            raise
        finally:
            self._release(opened)

    # -- writing -------------------------------------------------------------------------------------

    async def upload(
        self,
        path: str,
        like: Entry,
        options: WriteOptions,
        part_size: int,
        old: Entry | None = None,
    ) -> SftpUpload:
        """See `Sink.upload`."""
        directory, _ = split(path)
        self.pool.expect(like.size)
        bad = await self._directories.check([directory], create=True)
        if directory in bad:
            raise bad[directory]
        self._glance(directory)
        target = join(self.root, path)
        purpose = KEPT if options.resumable and not options.inplace else SOON
        temporary = target.rpartition(b"/")[0] + b"/" + temporary_name(purpose)
        upload = SftpUpload(self.pool, temporary, target, path, like, options, self.where(path))
        session = await self.pool.session()

        async def undo(_: None) -> None:
            await upload.abort()

        try:
            await run(session, lambda s: begin(s, upload, like, options), undo)
        except FastsyncError as error:
            if error.transient:
                await upload.abort()  # perhaps it was made, and only the answer got lost
            error.at(self.where(path))
            raise
        return upload

    async def resume_upload(
        self,
        ticket: str,
        path: str,
        like: Entry,
        options: WriteOptions,
        covered: Sequence[tuple[int, int]],
    ) -> SftpUpload | None:
        """See `ResumesUploads.resume_upload`."""
        left = Left.read(ticket)
        directory, _ = split(path)
        if left.directory != directory or options.inplace:
            return None
        if await self._directories.check([directory], create=False):
            return None
        temporary = join(join(self.root, directory), left.name)
        target = join(self.root, path)
        upload = SftpUpload(self.pool, temporary, target, path, like, options, self.where(path))
        upload.resume(covered)
        end = max((stop for _, stop in covered), default=0)

        async def undo(_: bool) -> None:
            await upload.leave()

        is_there = await run(await self.pool.session(), lambda s: go_on(s, upload, end), undo)
        return upload if is_there else None

    async def drop_upload(self, ticket: str) -> None:
        """See `DropsUploads.drop_upload`."""
        left = Left.read(ticket)
        if await self._directories.check([left.directory], create=False):
            return  # the directory is gone, or is no longer the one we wrote into
        path = join(join(self.root, left.directory), left.name)

        def remove(_: Session) -> Script[None]:
            (reply,) = yield [packets.on_path(REMOVE, path)]
            if packets.status_of(reply) != NO_SUCH_FILE:
                packets.must_be_ok(reply)

        await self.pool.run(remove)

    async def write_whole(
        self, jobs: Sequence[WholeJob], options: WriteOptions
    ) -> list[FastsyncError | None]:
        """See `WritesWhole.write_whole`."""
        debris: list[bytes] = []

        def script(job: WholeJob) -> Callable[[Session], Script[None]]:
            target = join(self.root, job.path)
            return lambda session: write_file(session, target, job, options, debris)

        try:
            return await self._each(jobs, script)
        finally:
            if debris:
                await self._sweep(debris)

    async def _sweep(self, debris: list[bytes]) -> None:
        """Remove what a cut connection has left behind, if there is another one to be had."""

        def remove(_: Session) -> Script[None]:
            yield [packets.on_path(REMOVE, path) for path in debris]

        try:
            await self.pool.run(remove)
        except FastsyncError:
            return  # the server is out of reach; the names say whose they are

    def _glance(self, directory: str) -> None:
        """Remove what a killed run left in a directory that is written to and was not listed, meanwhile."""
        if self._is_swept or directory in self._glances or len(self._glances) >= _GLANCES:
            return

        async def look() -> None:
            with contextlib.suppress(FastsyncError):
                await self.pool.run(lambda _: sweep(join(self.root, directory)))

        self._glances[directory] = asyncio.create_task(look())

    async def _each(
        self,
        jobs: Sequence[J],
        script: Callable[[J], Callable[[Session], Script[None]]],
    ) -> list[FastsyncError | None]:
        """Run a script for each job whose path can be written to, parents made."""
        answers: list[FastsyncError | None] = []
        for job in jobs:
            try:
                split(job.path)
                answers.append(None)
            except FastsyncError as error:
                answers.append(error)
        parents = [job.path.rpartition("/")[0] for job in jobs]
        good = [parent for parent, answer in zip(parents, answers, strict=True) if answer is None]
        bad = await self._directories.check(good, create=True)
        for directory in dict.fromkeys(good):
            if directory not in bad:
                self._glance(directory)
        scripts = []
        for index, job in enumerate(jobs):
            answers[index] = answers[index] or bad.get(parents[index])
            if answers[index] is None:
                scripts.append(script(job))
        results = iter(await self.pool.results(scripts))
        return [
            self._placed(next(results) if answer is None else answer, job.path)
            for answer, job in zip(answers, jobs, strict=True)
        ]

    def can_move_from(self, source: Source) -> bool:
        """See `MovesWithin.can_move_from`."""
        return isinstance(source, SftpStore) and source.pool is self.pool

    async def move_from(
        self, source: Source, jobs: Sequence[CopyJob]
    ) -> list[FastsyncError | None]:
        """See `MovesWithin.move_from`."""
        assert isinstance(source, SftpStore)
        theirs = source._directories
        bad = await theirs.check([job.entry.path.rpartition("/")[0] for job in jobs], create=False)

        def script(job: CopyJob) -> Callable[[Session], Script[None]]:
            error = bad.get(job.entry.path.rpartition("/")[0])
            for directories, path in ((theirs, job.entry.path), (self._directories, job.path)):
                directories.forget(path)
            start, target = join(source.root, job.entry.path), join(self.root, job.path)
            return lambda session: move(session, start, target, job.entry, error)

        answers = await self._each(jobs, script)
        for _ in range(_MOVES):
            lost = [index for index, error in enumerate(answers) if isinstance(error, Transient)]
            if not lost:
                break
            # Of a request whose answer is lost nobody knows whether it was carried out, or will be yet. The
            # same once more settles it: of two, one is too late.
            with contextlib.suppress(Transient):
                again = await self._each([jobs[index] for index in lost], script)
                for index, error in zip(lost, again, strict=True):
                    is_late = error is not None and not error.transient
                    is_there = is_late and await self._has_moved(source, jobs[index])
                    answers[index] = None if is_there else error
        return answers

    async def _has_moved(self, source: SftpStore, job: CopyJob) -> bool:
        start, target = join(source.root, job.entry.path), join(self.root, job.path)
        return await self.pool.run(lambda _: has_moved(start, target, job.entry))

    async def delete(self, entries: Sequence[Entry]) -> list[FastsyncError | None]:
        """See `Sink.delete`."""
        answers: list[FastsyncError | None] = []
        for entry in entries:
            try:
                safe_parts(entry.path)
                answers.append(None)
            except FastsyncError as error:
                answers.append(error)
        good = [entry for entry, error in zip(entries, answers, strict=True) if error is None]
        bad = await self._directories.check(
            [entry.path.rpartition("/")[0] for entry in good], create=False, anew=True
        )
        wanted: list[int] = []
        for index, entry in enumerate(entries):
            if answers[index] is not None:
                continue
            refused = bad.get(entry.path.rpartition("/")[0])
            if refused is None:
                wanted.append(index)
            elif not isinstance(refused, NotFound):  # else it is gone, with what was around it
                answers[index] = refused
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            # One session, which does them in order: a directory comes after what was in it.
            results = await self.pool.run(partial(self._delete, [entries[each] for each in some]))
            for index, result in zip(some, results, strict=True):
                answers[index] = self._placed(result, entries[index].path)
        return answers

    def _delete(self, entries: list[Entry], session: Session) -> Script[list[FastsyncError | None]]:
        replies = yield [
            packets.on_path(RMDIR if entry.kind == "dir" else REMOVE, join(self.root, entry.path))
            for entry in entries
        ]
        answers: list[FastsyncError | None] = []
        for entry, reply in zip(entries, replies, strict=True):
            if entry.kind == "dir":
                self._directories.forget(entry.path)
            status = packets.status_of(reply)
            if status in (OK, NO_SUCH_FILE):
                answers.append(None)
                continue
            error = packets.error_of(reply)
            if not error.transient:
                at = join(self.root, entry.path)
                if entry.kind == "dir":
                    # What a killed run left in it is nothing.
                    yield from sweep(at)
                    again, look = yield [packets.on_path(RMDIR, at), packets.on_path(LSTAT, at)]
                    if packets.status_of(again) in (OK, NO_SUCH_FILE):
                        answers.append(None)
                        continue
                else:
                    (look,) = yield [packets.on_path(LSTAT, at)]
                if look[0] == packets.ATTRS:
                    is_dir = packets.must_be_attributes(look).kind == "dir"
                    if is_dir and entry.kind == "dir" and type(error) is FastsyncError:
                        error = Conflict("the directory is not empty")
                    elif is_dir != (entry.kind == "dir"):
                        error = Conflict("something of another kind stands there")
            answers.append(error)
        return answers

    # -- directories, links, attributes --------------------------------------------------------------

    async def make_directories(
        self, entries: Sequence[Entry], options: WriteOptions
    ) -> list[FastsyncError | None]:
        """See `KeepsDirectories.make_directories`."""
        answers: list[FastsyncError | None] = []
        for entry in entries:
            try:
                if entry.path:
                    safe_parts(entry.path)
                answers.append(None)
            except FastsyncError as error:
                answers.append(error)
        good = [entry for entry, error in zip(entries, answers, strict=True) if error is None]
        modes = {entry.path: mode_for(entry, options) for entry in good}
        bad = await self._directories.check(modes, create=True, modes=modes)
        return [
            answer or bad.get(entry.path) for answer, entry in zip(answers, entries, strict=True)
        ]

    async def make_links(
        self, jobs: Sequence[CopyJob], options: WriteOptions
    ) -> list[FastsyncError | None]:
        """See `KeepsLinks.make_links`."""
        if jobs:
            await self._directories.check([""], create=True)
            await self._symlinks.find_out(self.pool, self.root)

        def script(job: CopyJob) -> Callable[[Session], Script[None]]:
            self._directories.forget(job.path)
            at = join(self.root, job.path)
            return lambda session: make_link(session, self._symlinks, at, job.entry, options)

        return await self._each(jobs, script)

    async def make_hard_links(self, pairs: Sequence[tuple[str, str]]) -> list[FastsyncError | None]:
        """See `MakesHardLinks.make_hard_links`."""
        jobs = [CopyJob(Entry(existing, "file", None, None), path) for existing, path in pairs]

        def script(job: CopyJob) -> Callable[[Session], Script[None]]:
            safe_parts(job.entry.path)
            existing, at = join(self.root, job.entry.path), join(self.root, job.path)
            return lambda session: make_hard_link(session, existing, at)

        return await self._each(jobs, script)

    async def set_attributes(
        self, jobs: Sequence[CopyJob], options: WriteOptions
    ) -> list[FastsyncError | None]:
        """See `SetsAttributes.set_attributes`."""
        answers: list[FastsyncError | None] = []
        for job in jobs:
            try:
                if job.path:
                    safe_parts(job.path)
                answers.append(None)
            except FastsyncError as error:
                answers.append(error)
        good = [job for job, error in zip(jobs, answers, strict=True) if error is None]
        parents = {job.path: job.path.rpartition("/")[0] for job in good if job.path}
        bad = await self._directories.check(parents.values(), create=False)
        wanted: list[int] = []
        for index, job in enumerate(jobs):
            answers[index] = answers[index] or bad.get(parents.get(job.path, ""))
            if answers[index] is None:
                wanted.append(index)
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            results = await self.pool.run(
                partial(self._set_attributes, [jobs[each] for each in some], options)
            )
            for index, result in zip(some, results, strict=True):
                answers[index] = self._placed(result, jobs[index].path)
        return answers

    def _set_attributes(
        self, jobs: list[CopyJob], options: WriteOptions, session: Session
    ) -> Script[list[FastsyncError | None]]:
        """Look at all, then change what is no link: SETSTAT would follow it."""
        looks = yield [
            packets.on_path(LSTAT if job.path else STAT, join(self.root, job.path)) for job in jobs
        ]
        answers: list[FastsyncError | None] = []
        requests: list[packets.Request] = []
        owners: list[int] = []
        whose: list[int] = []
        for index, (job, look) in enumerate(zip(jobs, looks, strict=True)):
            try:
                is_link = packets.must_be_attributes(look).kind == "link"
                answers.append(None)
            except FastsyncError as error:
                answers.append(error)
                continue
            entry, at = job.entry, join(self.root, job.path)
            if is_link:
                if options.mtime and session.has(_LSETSTAT):
                    wanted = packets.attributes(mtime_ns=entry.mtime_ns)
                    requests.append(packets.extended(_LSETSTAT, packets.string(at), wanted))
                    whose.append(-1)
                continue
            if options.owner and entry.owner is not None:
                owner = packets.attributes(owner=(entry.owner.uid, entry.owner.gid))
                owners.append(len(requests))
                requests.append(packets.on_path(SETSTAT, at, owner))
                whose.append(-1)
            mtime_ns = entry.mtime_ns if options.mtime else None
            mode = mode_for(entry, options)
            if mtime_ns is not None or mode is not None:
                wanted = packets.attributes(mode=mode, mtime_ns=mtime_ns)
                requests.append(packets.on_path(SETSTAT, at, wanted))
                whose.append(index)
        if requests:
            replies = yield requests
            for index, reply in zip(whose, replies, strict=True):
                if index >= 0 and packets.status_of(reply) != OK:
                    answers[index] = packets.error_of(reply)
        return answers


class CopyingSftpStore(SftpStore):
    """A store whose server copies by itself (the extension copy-data)."""

    def can_copy_from(self, source: Source) -> bool:
        """See `CopiesWithin.can_copy_from`. It takes two open files on one connection."""
        if not isinstance(source, SftpStore) or source.pool is not self.pool:
            return False
        return all(session.handles.most != 1 for session in self.pool.sessions)

    async def copy_from(
        self,
        source: Source,
        jobs: Sequence[CopyJob],
        options: WriteOptions,
        progress: Progress,
    ) -> list[FastsyncError | None]:
        """See `CopiesWithin.copy_from`."""
        assert isinstance(source, SftpStore)
        bad = await source._refuse_links([job.entry.path.rpartition("/")[0] for job in jobs])
        debris: list[bytes] = []

        def script(job: CopyJob) -> Callable[[Session], Script[None]]:
            error = bad.get(job.entry.path.rpartition("/")[0])
            start = join(source.root, job.entry.path)
            target = join(self.root, job.path)
            return lambda session: copy_file(
                session, start, target, job.entry, options, progress, debris, error, source._follow
            )

        try:
            return await self._each(jobs, script)
        finally:
            if debris:
                await self._sweep(debris)


_LSETSTAT: Final = b"lsetstat@openssh.com"


def _open_version(path: bytes, entry: Entry, follow: bool) -> Script[bytes]:
    """Open for reading, once it is sure that it is the file that was listed, and no link to another."""
    opening = packets.open_file(path, FOR_READING)
    look, reply = yield [packets.on_path(STAT if follow else LSTAT, path), opening]
    try:
        handle = packets.must_be_handle(reply)
    except NotFound as error:
        raise Vanished("the file is gone since it was listed") from error
    try:
        must_be_version(entry, look)
    except FastsyncError:
        yield [packets.request(CLOSE, handle)]
        raise
    return handle
