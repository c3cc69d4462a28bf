"""A place on a web server as a store: see `fastsync.backend` for what each method promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Final

from fastsync.backend import Buffer, Entry, Fault, Limits, Loaded, Page, ScanOptions, closing
from fastsync.dates import SECOND_NS
from fastsync.errors import (
    Changed,
    Conflict,
    FastsyncError,
    IntegrityError,
    ListingError,
    NotFound,
    Transient,
    UsageError,
    Vanished,
)
from fastsync.location import Location
from fastsync.names import safe_parts
from fastsync.wire import Reply
from fastsync_http.answers import describe, entry_of, error_of, require_same
from fastsync_http.client import Client, Found
from fastsync_http.digests import Expected
from fastsync_http.download import HttpDownload
from fastsync_http.targets import REDIRECTS, Target

if TYPE_CHECKING:
    from fastsync_http.pages import Index

# Addresses that were looked into lately.
_KEPT: Final = 1024
# Addresses that are looked into at once, where HEAD does not tell.
_PROBES: Final = 8
# A page that takes milliseconds to read is read in a thread.
_LONG_PAGE: Final = 64 << 10
_PAGES: Final = ("text/html", "application/xhtml+xml", "application/json")


class HttpStore:
    """What is below an address, or the one file there (see `stat` of "")."""

    limits: Final = Limits(mtime_step_ns=SECOND_NS, first_streams=1)

    def __init__(
        self, client: Client, location: Location, target: Target, checksum: Expected | None
    ) -> None:
        self.client = client
        self.checksum = checksum
        self._location = location
        self._target = target
        self._top = target.as_directory()
        self._found: dict[str, Found] = {}
        self._in_one: set[str] = set()
        self._finding = asyncio.Lock()
        self._probing = asyncio.Semaphore(_PROBES)

    @property
    def location(self) -> Location:
        return self._location

    def address(self) -> str:
        """See `Source.address`."""
        return f"{self._target.origin}{self._top.path}"

    def where(self, path: str) -> str:
        return str(self._location.child(path))

    async def aclose(self) -> None:
        """See `Source.aclose`; connections belong to the backend."""

    # -- addresses -----------------------------------------------------------------------------------------

    def _target_of(self, path: str) -> Target:
        """Where a path is asked for first. Raises NameRefused."""
        if not path:
            return self._target
        safe_parts(path)
        return self._top.below(path)

    def target_for(self, path: str, found: Found | None) -> Target:
        """Where the bytes of a path are."""
        return self._target_of(path) if found is None else found.target

    def is_elsewhere(self, path: str, found: Found | None) -> bool:
        """True when redirects led there."""
        return found is not None and found.target != self._target_of(path)

    async def find(self, path: str, *, fresh: bool = False) -> Found:
        """Look into an address, unless that was done lately. Raises FastsyncError."""
        if not fresh and path in self._found:
            return self._found[path]
        target, where = self._target_of(path), self.where(path)
        found = await self.client.persistently(lambda: self.client.probe(target, where))
        if len(self._found) >= _KEPT:
            del self._found[next(iter(self._found))]
        self._found[path] = found
        return found

    async def find_again(self, path: str, stale: Found | None) -> Found:
        """Follow the redirects once more, for all parts of a file that need it. Raises FastsyncError."""
        async with self._finding:
            known = self._found.get(path)
            if known is not None and known is not stale:
                return known
            try:
                return await self.find(path, fresh=True)
            except NotFound as error:
                raise Vanished("it is gone since it was listed", where=self.where(path)) from error

    def read_in_one(self, path: str) -> None:
        """Parts did not agree: from now on, the file at `path` is read in one piece."""
        if len(self._in_one) < _KEPT:
            self._in_one.add(path)

    def is_read_in_one(self, path: str) -> bool:
        return path in self._in_one

    # -- one entry -------------------------------------------------------------------------------------------

    async def stat(self, path: str, *, follow: bool = False) -> Entry:
        """See `Source.stat`."""
        try:
            found = await self.find(path, fresh=True)
        except NotFound:
            # Some servers know a directory only by its slash.
            if not await self._is_directory(path):
                raise
            return Entry(path, "dir", None, None)
        if self._is_page(found):
            return Entry(path, "dir", None, None)
        return entry_of(path, found.what)

    async def _is_directory(self, path: str) -> bool:
        target = self._target_of(path)
        if target.path.endswith("/") or target.query:
            return False
        where = self.where(path)
        try:
            call = self.client.probe(target.as_directory(), where)
            return self._is_page(await call)
        except Transient:
            raise
        except FastsyncError:
            return False

    @staticmethod
    def _is_page(found: Found) -> bool:
        """True for the address of a directory: with a slash at its end, and a page there."""
        kind = found.media_type.partition(";")[0].strip().lower()
        return found.target.path.endswith("/") and not found.target.query and kind in _PAGES

    # -- listing ---------------------------------------------------------------------------------------------

    async def scan(self, options: ScanOptions) -> AsyncIterator[Page]:
        """See `Source.scan`."""
        if self.checksum is not None:
            raise UsageError("--checksum-of is about one file", where=str(self._location))
        if self._target.query:
            raise Conflict("an address with a query is a file", where=str(self._location))
        try:
            from fastsync_http.listing import Walk  # and with it parsers that a file does without

            async with closing(Walk(self._fetch, self._filled, options).pages()) as pages:
                async for page in pages:
                    yield page
        except NotFound:
            if not options.missing_ok:
                raise

    async def _fetch(self, path: str) -> Index:
        """The page of a directory, read. Raises FastsyncError."""
        target = self._top if not path else self._top.below(path).as_directory()
        where = self.where(path)
        reply = await self.client.persistently(lambda: self._get_page(target, where))
        if reply.status in REDIRECTS and not path:
            # Where the top is, all the rest is: a mirror, or the same with TLS.
            found = await self.client.persistently(lambda: self.client.probe(target, where))
            if not self._is_page(found):
                raise ListingError("it leads to no directory", where=where)
            target = self._top = found.target
            reply = await self.client.persistently(lambda: self._get_page(target, where))
        if reply.status != 200:
            error = error_of(reply.status, reply.headers, where)
            if path or not isinstance(error, NotFound):
                error = _listing_error(error)
            raise error
        if reply.headers.get("content-encoding", "identity") != "identity":
            raise ListingError("the server encodes the page, unasked", where=where)
        from fastsync_http.pages import parse

        media_type = reply.headers.get("content-type") or ""
        if len(reply.body) < _LONG_PAGE:
            return parse(reply.body, media_type, target)
        return await asyncio.to_thread(parse, reply.body, media_type, target)

    async def _get_page(self, target: Target, where: str) -> Reply:
        from fastsync_http.pages import MAX_PAGE

        try:
            reply = await self.client.ask("GET", target, most=MAX_PAGE)
        except IntegrityError as error:
            raise ListingError(f"the page is not usable: {error.message}", where=where) from error
        except FastsyncError as error:
            error.where = where
            raise
        refusal = error_of(reply.status, reply.headers, where)
        if reply.status != 200 and isinstance(refusal, Transient):
            raise refusal
        return reply

    async def _filled(self, entries: Sequence[Entry]) -> list[Entry | Fault]:
        """Files of which a page does not tell the size."""
        answers: list[Entry | Fault] = []
        for entry, answer in zip(entries, await self._look(entries), strict=True):
            if isinstance(answer, FastsyncError):
                where = self.where(entry.path)
                error = ListingError(
                    f"it is listed, and cannot be looked at: {answer.message}", where=where
                )
                answers.append(Fault(entry.path, error))
            else:
                answers.append(answer)
        return answers

    async def complete(self, entries: Sequence[Entry]) -> list[Entry | FastsyncError]:
        """See `CompletesEntries`."""
        completed: list[Entry | FastsyncError] = [*entries]
        files = [number for number, entry in enumerate(entries) if entry.kind == "file"]
        looks = await self._look([entries[number] for number in files])
        for number, answer in zip(files, looks, strict=True):
            listed = entries[number]
            if isinstance(answer, NotFound):
                answer = Vanished("it is gone since it was listed", where=answer.where)
            elif isinstance(answer, Entry) and listed.size not in (None, answer.size):
                answer = Changed(
                    f"it has {answer.size} bytes, {listed.size} were listed",
                    where=self.where(listed.path),
                )
            completed[number] = answer
        return completed

    async def _look(self, entries: Sequence[Entry]) -> list[Entry | FastsyncError]:
        """What HEAD says of files, many at once; where it is refused, what a look by GET says."""
        targets = [self._target_of(entry.path) for entry in entries]
        answers = await self._heads(targets)
        again = [number for number, answer in enumerate(answers) if isinstance(answer, Transient)]
        if again:
            # A crowd of requests may be what the server could not bear.
            await asyncio.sleep(max(_pause_s(answers[number]) for number in again))
            for number, answer in zip(
                again, await self._heads([targets[number] for number in again]), strict=True
            ):
                answers[number] = answer
        slow = [
            number
            for number, answer in enumerate(answers)
            if not isinstance(answer, FastsyncError) and not _tells(answer)
        ]
        looks = await asyncio.gather(*(self._look_by_get(entries[number]) for number in slow))
        by_get = dict(zip(slow, looks, strict=True))
        made: list[Entry | FastsyncError] = []
        for number, (entry, answer) in enumerate(zip(entries, answers, strict=True)):
            if number in by_get:
                made.append(by_get[number])
            elif isinstance(answer, FastsyncError):
                made.append(answer)
            elif answer.status == 200:
                try:
                    made.append(entry_of(entry.path, describe(200, answer.headers)))
                except FastsyncError as error:
                    made.append(error.at(self.where(entry.path)))
            else:
                made.append(error_of(answer.status, answer.headers, self.where(entry.path)))
        return made

    async def _heads(self, targets: Sequence[Target]) -> list[Reply | FastsyncError]:
        requests = [self.client.outgoing("HEAD", target) for target in targets]
        answers = await self.client.ask_all(targets[0].origin, requests) if targets else []
        passing: list[Reply | FastsyncError] = []
        for answer, target in zip(answers, targets, strict=True):
            if not isinstance(answer, FastsyncError) and answer.status >= 400:
                error = error_of(answer.status, answer.headers, str(target))
                passing.append(error if isinstance(error, Transient) else answer)
            else:
                passing.append(answer)
        return passing

    async def _look_by_get(self, entry: Entry) -> Entry | FastsyncError:
        async with self._probing:
            try:
                found = await self.find(entry.path, fresh=True)
            except FastsyncError as error:
                return error
        return entry_of(entry.path, found.what)

    # -- reading ---------------------------------------------------------------------------------------------

    def read(self, entry: Entry, start: int, stop: int | None) -> AsyncIterator[Buffer]:
        """See `Source.read`."""
        return self._read(entry, start, stop)

    async def _read(self, entry: Entry, start: int, stop: int | None) -> AsyncIterator[Buffer]:
        if entry.size is not None and (stop or 0) > entry.size:
            raise Changed(
                f"{stop} bytes are wanted, {entry.size} were listed", where=self.where(entry.path)
            )
        download = HttpDownload(self, entry, self._known(entry))
        async with closing(download.read(start, stop)) as buffers:
            async for buffer in buffers:
                yield buffer

    def _known(self, entry: Entry) -> Found | None:
        """What was found at an entry's address, if that is the entry still."""
        found = self._found.get(entry.path)
        if found is None:
            return None
        try:
            require_same(entry, found.what, "")
        except Changed:
            return None
        return found

    async def is_seekable(self, entry: Entry) -> bool:
        """See `SeeksSome.is_seekable`."""
        if self.is_read_in_one(entry.path):
            return False
        found = self._known(entry)
        if found is None:
            try:
                found = await self.find(entry.path, fresh=True)
            except NotFound as error:
                raise Vanished(
                    "it is gone since it was listed", where=self.where(entry.path)
                ) from error
        return found.what.is_seekable

    def renew(self) -> None:
        """See `Reconnects.renew`."""
        self.client.renew()

    async def open_download(self, entry: Entry) -> HttpDownload:
        """See `Downloads.open_download`."""
        found = self._known(entry)
        if found is not None:
            entry = entry._replace(mtime_ns=found.what.mtime_ns, version=found.what.etag)
        elif entry.mtime_ns is None:
            (answer,) = await self.complete([entry])
            if isinstance(answer, FastsyncError):
                raise answer
            entry = answer
        return HttpDownload(self, entry, found)

    async def read_whole(self, entries: Sequence[Entry]) -> list[Loaded | FastsyncError]:
        """See `ReadsWhole.read_whole`."""
        targets = [self._target_of(entry.path) for entry in entries]
        requests = [self.client.outgoing("GET", target) for target in targets]
        most = max((entry.size or 0 for entry in entries), default=0)
        # All are below one directory, or the place itself.
        answers = await self.client.ask_all(targets[0].origin, requests, most) if targets else []
        loaded: list[Loaded | FastsyncError] = []
        for entry, answer in zip(entries, answers, strict=True):
            if isinstance(answer, IntegrityError):
                loaded.append(await self._longer(entry, answer))
            elif isinstance(answer, FastsyncError):
                loaded.append(_told_of(answer, self.where(entry.path)))
            elif answer.status in REDIRECTS:
                loaded.append(await self._load_elsewhere(entry))
            else:
                loaded.append(self._loaded(entry, answer))
        return loaded

    def _loaded(self, entry: Entry, reply: Reply) -> Loaded | FastsyncError:
        try:
            if reply.status != 200:
                raise error_of(reply.status, reply.headers, "")
            what = describe(200, reply.headers)
            require_same(entry, what, "")
            if len(reply.body) != entry.size:
                raise Changed(f"{len(reply.body)} bytes came, {entry.size} were listed")
            expected = self.checksum or what.expected
            if expected is not None:
                hasher = expected.hasher()
                hasher.update(memoryview(reply.body))
                expected.check(hasher.hexdigest(), "")
        except NotFound:
            where = self.where(entry.path)  # which takes longer than all the rest
            return Vanished("it is gone since it was listed", where=where)
        except FastsyncError as error:
            return _told_of(error, self.where(entry.path))
        entry = entry._replace(mtime_ns=what.mtime_ns, version=what.etag)
        return Loaded(entry, reply.body, expected is not None)

    async def _longer(self, entry: Entry, error: IntegrityError) -> FastsyncError:
        """An answer that cannot be right for a file of that size: another look tells whether it changed."""
        now = await self._look_by_get(entry)
        if isinstance(now, FastsyncError):
            return now
        where = self.where(entry.path)
        if now.size != entry.size:
            return Changed(f"it has {now.size} bytes, {entry.size} were listed", where=where)
        return _told_of(error, where)

    async def _load_elsewhere(self, entry: Entry) -> Loaded | FastsyncError:
        """A small file that its server sends us elsewhere for."""
        try:
            found = await self.find(entry.path, fresh=True)
            require_same(entry, found.what, self.where(entry.path))
            reply = await self.client.ask("GET", found.target, most=entry.size or 0)
            return self._loaded(entry, reply)
        except NotFound:
            return Vanished("it is gone since it was listed", where=self.where(entry.path))
        except FastsyncError as error:
            return _told_of(error, self.where(entry.path))


def _tells(reply: Reply) -> bool:
    """False when a HEAD leaves open what a GET may tell: refused, redirected, or without a length."""
    if reply.status == 200:
        return "content-length" in reply.headers or "content-encoding" in reply.headers
    return reply.status in (401, 404, 410)


def _pause_s(answer: Reply | FastsyncError) -> float:
    told = answer.retry_after_s if isinstance(answer, Transient) else None
    return 1.0 if told is None else min(told, 60.0)


def _told_of(error: FastsyncError, where: str) -> FastsyncError:
    """A failure of a small exchange, told of the file."""
    error.where = where
    return error


def _listing_error(error: FastsyncError) -> FastsyncError:
    """A directory that cannot be listed; who may not ask at all is told so."""
    if error.exit_code == 5 or isinstance(error, Transient):
        return error
    return ListingError(
        f"the server does not list this directory: {error.message}",
        where=error.where,
        hint=error.hint,
    )
