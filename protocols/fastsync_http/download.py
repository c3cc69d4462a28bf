"""One version of a file on its way: whole or in ranges, and what its bytes must add up to."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Final, TypeAlias

from fastsync.backend import READ_BUFFER, Buffer, Entry, Progress, closing
from fastsync.errors import Changed, FastsyncError, IntegrityError, NotFound, Transient, Vanished
from fastsync.wire import Headers, Memory, Reply
from fastsync_http.answers import Representation, describe, error_of, require_range, require_same
from fastsync_http.client import Found
from fastsync_http.digests import Expected, Hasher
from fastsync_http.targets import REDIRECTS

if TYPE_CHECKING:
    from fastsync_http.store import HttpStore

_Check: TypeAlias = Callable[[int, Headers], None]

# A part that came so far before it broke off goes on at once, and has not used up a try.
_WORTHWHILE: Final = 1 << 20
# How a server says that an address which it redirected to, and signed, is good no more.
_EXPIRED: Final = (401, 403, 404, 410)


class HttpDownload:
    """See `Download`. The first answer, or the look before it, says what all the others must agree with."""

    def __init__(self, store: HttpStore, entry: Entry, found: Found | None) -> None:
        self.entry = entry
        self._store = store
        self._where = store.where(entry.path)
        self._found = found
        self._what = None if found is None else found.what
        # What came in order from the beginning is added up on its way.
        self._hasher: Hasher | None = None
        self._hashed = 0
        self._is_shown_in_order = False
        # How far parts came that broke off, by where they begin.
        self._reached: dict[int, int] = {}
        self._goes_on = True

    @property
    def validator(self) -> str | None:
        """See `Validated.validator`. Of an address with a query, which is not written down, a date would
        say too little."""
        if self._what is None or (self._what.etag is None and self._store.location.query):
            return None
        return self._what.strong

    # -- requests and answers ----------------------------------------------------------------------------

    def _is_whole(self, start: int, stop: int | None) -> bool:
        return start == 0 and stop in (None, self.entry.size)

    def _conditions(self, start: int, stop: int | None) -> dict[str, str]:
        """The headers that ask for these bytes of this version."""
        if self._is_whole(start, stop):
            return {}
        headers = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"}
        if self._what is not None and self._what.strong is not None:
            headers["If-Range"] = self._what.strong
        return headers

    def _take_head(self, start: int, stop: int | None, status: int, headers: Headers) -> bool:
        """Look at the head of a success: it must be of the version that is read. False when it is the
        whole file, though a range was asked for. Raises Changed, IntegrityError."""
        where = self._where
        is_whole = self._is_whole(start, stop)
        if status == 206:
            if is_whole:
                raise IntegrityError("the server sends a range that nobody asked for", where=where)
            end = self.entry.size if stop is None else stop
            assert end is not None
            require_range(self._what or _as_listed(self.entry), start, end, headers, where)
            return True
        now = describe(status, headers)
        entry = self.entry
        if is_whole and self._store.is_read_in_one(entry.path):
            # Mirrors with ETags of their own agree in size and date; one whole answer agrees with itself.
            entry, self._what = entry._replace(version=None), None
        require_same(entry, now, where)
        if self.entry.size is not None and now.size is None and "content-encoding" in headers:
            raise Changed("the server has begun to encode it", where=where)
        if self._what is None:
            self._what = now
        elif self._what.etag is not None and now.etag != self._what.etag:
            raise Changed(
                "it came with another ETag: the file changed, or mirrors differ", where=where
            )
        return is_whole

    async def _resolve(self, reply: Reply, found: Found | None) -> bool:
        """Find the way again that was `found`: a redirect that was not met yet, or one to an address that
        has expired. Raises Changed if it leads to another version."""
        store = self._store
        if found is not self._found:  # another part has been faster
            return True
        is_expired = reply.status in _EXPIRED and store.is_elsewhere(self.entry.path, found)
        if reply.status not in REDIRECTS and not is_expired:
            return False
        fresh = await store.find_again(self.entry.path, found)
        require_same(self.entry, fresh.what, self._where)
        if self._what is not None and self._what.etag != fresh.what.etag:
            raise Changed("its ETag is another now", where=self._where)
        self._found, self._what = fresh, self._what or fresh.what
        return True

    # -- into a file -------------------------------------------------------------------------------------

    async def read_into_file(self, start: int, stop: int, fd: int, progress: Progress) -> None:
        """See `Download.read_into_file`."""
        await self._read_into(start, stop, fd, progress)

    async def read_into_memory(
        self, start: int, stop: int, memory: memoryview, progress: Progress
    ) -> None:
        """See `ReadsIntoMemory.read_into_memory`."""
        await self._read_into(start, stop, Memory(start, memory), progress)

    async def _read_into(
        self, start: int, stop: int, target: int | Memory, progress: Progress
    ) -> None:
        """A part that broke off goes on where it was, where versions can be told apart."""
        position = self._reached.pop(start, start)
        if position > start:
            progress(position - start)
        if position >= stop:
            return
        if position < self._hashed and not self._is_shown_in_order:
            self._hashed = -1  # bytes come again that are added up already
        held = seen = position

        def check(status: int, headers: Headers) -> None:
            if self._take_head(position, stop, status, headers):
                return
            if self._is_whole(start, stop):
                self._goes_on = False
                raise Transient("the server cannot go on where it broke off")
            raise Changed("the server ignores the range that was asked for")

        def see(piece: memoryview) -> None:
            nonlocal seen
            self._add_up(seen, piece)
            seen += len(piece)

        def took(count: int) -> None:
            nonlocal held
            held += count

        try:
            while True:
                try:
                    await self._receive(position, stop, target, check, progress, see, took)
                    return
                except Transient:
                    if not self._can_go_on:
                        raise
                    has_tries = self._store.client.retries > 0
                    if not has_tries or held == stop or held - position < _WORTHWHILE:
                        self._reached[start] = held
                        raise
                    position = seen = held  # some servers end every connection after a while
        except Changed:
            # Mirrors that differ agree with themselves: the next look reads it in one piece.
            self._store.read_in_one(self.entry.path)
            raise

    @property
    def _can_go_on(self) -> bool:
        return self._goes_on and self._what is not None and self._what.strong is not None

    async def _receive(
        self,
        start: int,
        stop: int,
        into: int | Memory,
        check: _Check,
        progress: Progress,
        see: Callable[[memoryview], None],
        took: Callable[[int], None],
    ) -> None:
        store, length = self._store, stop - start
        is_again = False
        while True:
            found = self._found
            target = store.target_for(self.entry.path, found)
            request = store.client.outgoing("GET", target, self._conditions(start, stop))
            try:
                with store.client.wire(target.origin) as wire:
                    reply = await wire.receive_into_file(
                        request,
                        into,
                        start,
                        length,
                        check=check,
                        progress=progress,
                        digest=see,
                        digests=self._is_added_up,
                        took=took,
                    )
            except FastsyncError as error:
                error.where = self._where  # the wire knows only the server
                raise
            if reply.status in (200, 206):
                return
            if is_again or not await self._resolve(reply, found):
                raise _refused(reply, self._where)
            is_again = True

    # -- in order ----------------------------------------------------------------------------------------

    async def read(self, start: int, stop: int | None) -> AsyncIterator[Buffer]:
        """See `Download.read`. None reads to the end; all of a file is checked there."""
        if stop is not None and start >= stop:
            return
        is_all = self._is_whole(start, stop)
        if self._found is None and not is_all:
            self._found = await self._store.find(self.entry.path)
            require_same(self.entry, self._found.what, self._where)
            self._what = self._found.what
        # Without ranges, or a way to tell versions apart: from the beginning, dropping what comes first.
        in_one = is_all or (self._what is not None and not self._what.is_seekable)
        is_again = False
        while True:
            found = self._found
            try:
                async with closing(self._read(start, stop, in_one=in_one)) as buffers:
                    async for buffer in buffers:
                        yield buffer
            except _Refusal as refusal:
                if is_again or not await self._resolve(refusal.reply, found):
                    raise _refused(refusal.reply, self._where) from None
                is_again = True
                continue
            except FastsyncError as error:
                if isinstance(error, Changed):
                    self._store.read_in_one(self.entry.path)
                error.where = self._where  # the wire knows only the server
                raise
            break
        if is_all and (expected := self._expected) is not None:
            expected.check((self._hasher or expected.hasher()).hexdigest(), self._where)

    async def _read(self, start: int, stop: int | None, *, in_one: bool) -> AsyncIterator[Buffer]:
        store, size = self._store, self.entry.size
        first, last = (0, None) if in_one else (start, stop)
        position = first

        def check(status: int, headers: Headers) -> None:
            nonlocal position
            if not self._take_head(first, last, status, headers):
                position = 0

        self._hasher, self._hashed = None, 0
        target = store.target_for(self.entry.path, self._found)
        request = store.client.outgoing("GET", target, self._conditions(first, last))
        with store.client.wire(target.origin) as wire:
            received = wire.receive(request, check=check, refused=_Refusal)
            async with closing(received) as buffers:
                async for buffer in buffers:
                    self._add_up(position, buffer)
                    begin, position = position, position + len(buffer)
                    if size is not None and position > size:
                        raise Changed(f"more than the {size} bytes that were listed came")
                    end = position if stop is None else min(position, stop)
                    if max(begin, start) < end:
                        yield buffer[max(begin, start) - begin : end - begin]
                    if stop is not None and position >= stop and stop != size:
                        return
        wanted = size if stop is None else stop
        if wanted is not None and position < wanted:
            raise Changed(f"{position} bytes came, {wanted} were listed")

    # -- digests -----------------------------------------------------------------------------------------

    @property
    def _expected(self) -> Expected | None:
        """What the user knows counts more than what the server says."""
        if self._store.checksum is not None:
            return self._store.checksum
        return None if self._what is None else self._what.expected

    def _is_added_up(self) -> bool:
        """Whether what comes is of any use to `_add_up`."""
        return not self._is_shown_in_order and self._expected is not None

    def _add_up(self, position: int, piece: memoryview) -> None:
        """Called in threads, but for one `position` by one alone."""
        if self._is_shown_in_order or position != self._hashed:
            return
        if (expected := self._expected) is None:
            return
        if self._hasher is None:
            if position:
                return  # what came before was not added up
            self._hasher = expected.hasher()
        self._hasher.update(piece)
        self._hashed += len(piece)

    def begin_in_order(self) -> bool:
        """See `ChecksInOrder.begin_in_order`."""
        expected = self._expected
        if expected is None:
            return False
        self._is_shown_in_order, self._hasher, self._hashed = True, expected.hasher(), 0
        return True

    def add_next(self, piece: memoryview) -> None:
        """See `ChecksInOrder.add_next`."""
        assert self._hasher is not None
        self._hasher.update(piece)
        self._hashed += len(piece)

    async def verify(self, fd: int | None) -> bool:
        """See `Download.verify`."""
        expected, size = self._expected, self.entry.size or 0
        if expected is None:
            return False
        if not size:
            found = expected.hasher().hexdigest()
        elif self._hasher is not None and self._hashed == size:
            found = self._hasher.hexdigest()
        elif fd is not None:
            found = await asyncio.get_running_loop().run_in_executor(
                None, _digest, expected.hasher(), fd, size
            )
        elif self._store.checksum is None:
            return False
        else:
            raise IntegrityError(
                "parts that arrive side by side cannot be checked on their way to this place",
                where=self._where,
                hint="with --parallel 1 they come in order",
            )
        expected.check(found, self._where)
        return True


class _Refusal(FastsyncError):
    """An answer that is no success; never leaves this module."""

    def __init__(self, reply: Reply) -> None:
        super().__init__("refused")
        self.reply = reply


def _as_listed(entry: Entry) -> Representation:
    return Representation(entry.size, entry.mtime_ns, entry.version)


def _refused(reply: Reply, where: str) -> FastsyncError:
    error = error_of(reply.status, reply.headers, where)
    if isinstance(error, NotFound):
        return Vanished("it is gone since it was listed", where=where)
    return error


def _digest(hasher: Hasher, fd: int, size: int) -> str:
    """What a file adds up to, read again in order. Blocks."""
    block = memoryview(bytearray(min(READ_BUFFER, size)))
    position = 0
    while position < size:
        count = os.preadv(fd, [block[: size - position]], position)
        if not count:
            break
        hasher.update(block[:count])
        position += count
    return hasher.hexdigest()
