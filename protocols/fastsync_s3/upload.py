"""One object being written: a single PUT, or a multipart upload, invisible until `commit`.

Every byte that is sent is checked by the server before the object appears: by a CRC64NVME where it is
known to be understood, else by the signed SHA-256 of the body, or by Content-MD5 over TLS. The digest is
taken from the file in a pass of its own, ahead of the one that sends it; a file that changes in between
is refused by the server.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from fastsync.backend import READ_BUFFER, Buffer, Entry, Grid, Progress, WriteOptions
from fastsync.dates import http_time
from fastsync.errors import (
    Changed,
    FastsyncError,
    IntegrityError,
    NotFound,
    Overtaken,
    TicketRefused,
    Transient,
    Unsupported,
    from_os_error,
)
from fastsync.wire import Reply
from fastsync_s3.checksums import combine_crc64nvme, crc64nvme, multipart_etag, wire_crc64nvme
from fastsync_s3.documents import (
    Part,
    build_complete,
    parse_complete,
    parse_initiate,
    parse_parts,
)
from fastsync_s3.guards import guard
from fastsync_s3.objects import entry_of, etag_of, known_of, write_headers, written
from fastsync_s3.plane import Call, Plane, is_in_doubt

if TYPE_CHECKING:
    from fastsync_s3.store import S3Store

CRC_HEADER: Final = "x-amz-checksum-crc64nvme"
# What of a single PUT is kept in memory until `commit`; more goes by a multipart upload.
HELD: Final = READ_BUFFER
# How long a cancelled upload waits to hear whether it was completed.
LAST_WORD_S: Final = 2.0


@dataclass(slots=True)
class Digests:
    """What the bytes of one request add up to, as far as anybody wants to know."""

    size: int
    crc: int | None = None
    sha256: str | None = None
    md5: bytes | None = None

    def headers(self) -> dict[str, str]:
        headers = {"content-length": str(self.size)}
        if self.crc is not None:
            headers[CRC_HEADER] = wire_crc64nvme(self.crc)
        if self.md5 is not None:
            headers["content-md5"] = base64.b64encode(self.md5).decode()
        return headers


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which digests protect a request: see the module."""

    crc: bool
    sha256: bool
    md5: bool

    @classmethod
    def by(cls, plane: Plane, *, crc: bool) -> Wanted:
        signs = plane.signs_payload
        return cls(crc, signs, not crc and not signs)

    def of(self, buffers: Callable[[], Buffer | None], size: int) -> Digests:
        """Digest what `buffers` gives until it gives None or nothing. Blocks."""
        crc, sha, md5 = 0, hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        seen = 0
        while data := buffers():
            seen += len(data)
            if self.crc:
                crc = crc64nvme(data, crc)
            if self.sha256:
                sha.update(data)
            if self.md5:
                md5.update(data)
        if seen != size:
            raise Changed(f"the file ends after {seen} of {size} bytes")
        return Digests(
            size,
            crc if self.crc else None,
            sha.hexdigest() if self.sha256 else None,
            md5.digest() if self.md5 else None,
        )

    def of_buffer(self, data: Buffer) -> Digests:
        """Digest what is in memory."""
        rest: list[Buffer] = [data] if len(data) else []
        return self.of(lambda: rest.pop() if rest else None, len(data))

    def of_file(self, fd: int, start: int, stop: int) -> Digests:
        """Digest a range of a file. Blocks; raises Changed, OSError."""
        block = memoryview(bytearray(min(READ_BUFFER, stop - start)))
        position = start

        def read() -> Buffer | None:
            nonlocal position
            if position >= stop:
                return None
            count = os.preadv(fd, [block[: stop - position]], position)
            position += count
            return block[:count]

        return self.of(read, stop - start)


class Ticket(NamedTuple):
    """What is written down of an upload in parts: `headers` stands for what the object is made with.

    One that is only foreseen has no `upload_id`, but the moment (Unix ns) from which on it may begin.
    """

    key: str
    upload_id: str
    part_size: int = 0
    crc: bool = False
    headers: str = ""
    since_ns: int = 0

    @classmethod
    def foreseen(cls, key: str) -> Ticket:
        return cls(key, "", since_ns=time.time_ns())

    def __str__(self) -> str:
        return json.dumps(self._asdict())

    @classmethod
    def read(cls, text: str) -> Ticket:
        """Raises TicketRefused."""
        try:
            told = cls(**json.loads(text))
            return told._replace(
                key=str(told.key),
                upload_id=str(told.upload_id),
                part_size=int(told.part_size),
                since_ns=int(told.since_ns),
            )
        except (ValueError, TypeError) as error:
            raise TicketRefused("not the ticket of an upload to S3") from error


def is_single(like: Entry, options: WriteOptions, part_size: int) -> bool:
    """Whether one PUT will do: what comes from memory has to be held there until `commit`."""
    most = min(part_size, HELD) if options.from_memory else part_size
    return like.size is not None and like.size <= most


@dataclass(slots=True)
class SentPart:
    """A part that the server has."""

    etag: str
    size: int
    crc: int | None


@dataclass(slots=True)
class _Held:
    """The one part of a single PUT, until it is sent: in memory, or a descriptor of ours."""

    digests: Digests
    data: Buffer = b""
    fd: int = -1
    start: int = 0
    progress: Progress = field(default=lambda _nbytes: None)


class S3Upload:
    """See `Upload`. Made by `begin`."""

    def __init__(
        self,
        store: S3Store,
        path: str,
        like: Entry,
        options: WriteOptions,
        part_size: int,
        old: Entry | None,
    ) -> None:
        self._store = store
        self._plane = store.plane
        self._path = path
        self._key = store.new_key(path)
        self._like = like
        self._options = options
        self._old = old
        self._grid = Grid(part_size, like.size is None, store.limits.max_part)
        self._is_single = is_single(like, options, part_size)
        self._headers = write_headers(self._key, like, self._plane.options, options)
        self._wanted = Wanted.by(self._plane, crc=store.sends_crc)
        self._held: _Held | None = None
        self._parts: dict[int, SentPart] = {}
        self._there: dict[int, Part] = {}  # of an earlier process, by number from 0
        self._upload_id: str | None = None
        self._is_in_doubt = False
        self._entry: Entry | None = None

    @property
    def ticket(self) -> str | None:
        """See `LeavesTraces.ticket`."""
        if self._upload_id is None:
            return None
        crc = self._wanted.crc
        return str(Ticket(self._key, self._upload_id, self.part_size, crc, self._made_with))

    @property
    def part_size(self) -> int:
        """See `Rechecks.part_size`."""
        return self._grid.part_size

    @property
    def _made_with(self) -> str:
        return hashlib.sha256(repr(sorted(self._headers.items())).encode()).hexdigest()

    @property
    def _where(self) -> str:
        return self._plane.where(self._key)

    async def begin(self) -> None:
        """Ask for an upload of several parts, if it is to be one."""
        if not self._is_single:
            await self._create()

    async def _create(self) -> None:
        headers = dict(self._headers)
        asks_for_crc = self._store.may_send_crc
        if asks_for_crc:
            headers["x-amz-checksum-algorithm"] = "CRC64NVME"
            headers["x-amz-checksum-type"] = "FULL_OBJECT"
        call = Call("POST", self._key, (("uploads", ""),), headers, repeatable=False)
        reply = await self._plane.ask(call)
        self._upload_id = parse_initiate(reply.body)
        # A server that says nothing of the algorithm has not understood it.
        has_crc = (reply.headers.get("x-amz-checksum-algorithm") or "").upper() == "CRC64NVME"
        self._store.learn_crc(has_crc if asks_for_crc else False)
        self._wanted = Wanted.by(self._plane, crc=asks_for_crc and has_crc)

    async def take_up(self, ticket: Ticket) -> bool:
        """Go on with an upload of an earlier process; False if it is of something else, or gone."""
        if (ticket.key, ticket.headers) != (self._key, self._made_with) or self._is_single:
            return False
        after: tuple[tuple[str, str], ...] = ()
        while True:
            query = (*after, ("uploadId", ticket.upload_id))
            try:
                reply = await self._plane.ask(Call("GET", self._key, query))
            except (NotFound, Unsupported):
                return False
            page = parse_parts(reply.body, bucket=self._plane.bucket)
            self._there.update((part.number - 1, part) for part in page.parts)
            marker = (("part-number-marker", page.next_marker or ""),)
            if not page.is_truncated or marker == after:
                break
            after = marker
        self._upload_id = ticket.upload_id
        self._wanted = Wanted.by(self._plane, crc=ticket.crc)
        return True

    async def leave(self) -> None:
        """See `Leavable.leave`."""
        self._let_go()

    def _has(self, start: int, digests: Digests) -> bool:
        """Whether the server has this part already, from an earlier process; then it is one of ours."""
        number = self._grid.number(start)
        part = self._there.get(number)
        if part is None or part.size != digests.size:
            return False
        if digests.crc is not None:
            is_same = part.checksums.get("CRC64NVME") == wire_crc64nvme(digests.crc)
        else:
            is_same = digests.md5 is not None and part.etag == digests.md5.hex()
        if is_same:
            self._parts[number] = SentPart(part.etag, digests.size, digests.crc)
        return is_same

    # -- writing -------------------------------------------------------------------------------------

    async def write(self, start: int, data: Buffer) -> None:
        """See `Upload.write`."""
        if self._is_single and len(data) <= HELD:
            digests = self._wanted.of_buffer(data)
            self._hold(_Held(digests, bytes(data)))
            return
        if self._upload_id is None:
            self._is_single = False
            await self._create()
        view = memoryview(data)
        digests = await self._store.in_thread(lambda: self._wanted.of_buffer(view))
        call = self._part_call(start, digests)._replace(body=view)
        await self._put_part(start, digests, call)

    async def has(self, start: int, data: Buffer) -> bool:
        """See `Rechecks.has`."""
        if self._grid.number(start) not in self._there:
            return False
        view, wanted = memoryview(data), self._wanted_at(start)
        return self._has(start, await self._store.in_thread(lambda: wanted.of_buffer(view)))

    def _wanted_at(self, start: int) -> Wanted:
        """What to compute of a part; also what tells whether it is there, if one is."""
        if self._grid.number(start) not in self._there or self._wanted.crc:
            return self._wanted
        return replace(self._wanted, md5=True)

    async def write_from_file(self, start: int, stop: int, fd: int, progress: Progress) -> None:
        """See `WritesFromFile.write_from_file`."""
        wanted = self._wanted_at(start)
        try:
            digests = await self._store.in_thread(lambda: wanted.of_file(fd, start, stop))
        except OSError as error:
            raise from_os_error(error) from error
        if self._is_single:
            self._hold(_Held(digests, b"", os.dup(fd), start, progress))
            return
        if self._has(start, digests):
            return
        call = self._part_call(start, digests)
        try:
            reply = await self._plane.send_from_file(call, fd, start, stop, progress)
        except IntegrityError as error:
            raise Changed("the file was written to while it was sent") from error
        number = self._grid.number(start)
        self._parts[number] = SentPart(self._etag(reply.headers), stop - start, digests.crc)

    def _part_call(self, start: int, digests: Digests) -> Call:
        number = self._grid.number(start)
        query = (("partNumber", str(number + 1)), ("uploadId", self._upload_id or ""))
        return Call("PUT", self._key, query, digests.headers(), payload=digests.sha256)

    async def _put_part(self, start: int, digests: Digests, call: Call) -> None:
        reply = await self._plane.ask(call)
        number = self._grid.number(start)
        self._parts[number] = SentPart(self._etag(reply.headers), digests.size, digests.crc)

    def _etag(self, headers: object) -> str:
        etag = etag_of(headers)  # type: ignore[arg-type]
        if etag is None:
            raise IntegrityError("the server took a part without an ETag", where=self._where)
        return etag

    def _hold(self, held: _Held) -> None:
        self._let_go()
        self._held = held

    def _let_go(self) -> None:
        held, self._held = self._held, None
        if held is not None and held.fd >= 0:
            os.close(held.fd)

    # -- the end -------------------------------------------------------------------------------------

    async def commit(self, size: int) -> Entry:
        """See `Upload.commit`."""
        if self._entry is not None:
            return self._entry
        if self._is_in_doubt and (made := await self._find(size)) is not None:
            return await self._finish(made)
        try:
            if self._upload_id is not None and (size or self._parts):
                made = await self._complete(size)
            else:
                made = await self._put(size)
        except Overtaken:
            # Ours may be what stands in the way: a first try of which the answer was lost.
            if not self._is_in_doubt or (found := await self._find(size)) is None:
                raise
            made = found
        except FastsyncError as error:
            self._is_in_doubt = self._is_in_doubt or is_in_doubt(error)
            raise
        return await self._finish(made)

    async def _finish(self, entry: Entry) -> Entry:
        self._let_go()
        if entry.size == 0 and not self._parts:
            await self.abort()  # of an upload that turned out to need no parts
        self._upload_id = None
        if (known := known_of(self._key, entry, is_exact=False)) is not None:
            await self._store.attributes.remember([known])
        # What the server's clock said is not what a listing will say.
        self._entry = entry._replace(stored_ns=None)
        return self._entry

    async def _conditions(self) -> Mapping[str, str]:
        """See `guards`. Raises Overtaken."""
        store = self._store
        writes = [(self._key, self._old)]
        (answer,) = await guard(self._plane, store.prefix, writes, self._options)
        if isinstance(answer, FastsyncError):
            raise answer
        return answer

    async def _put(self, size: int) -> Entry:
        held = self._held
        if held is None and size:
            raise IntegrityError(f"0 of {size} bytes were written", where=self._where)
        if held is None:
            held = _Held(self._wanted.of_buffer(b""))
        digests = held.digests
        if digests.size != size:
            raise IntegrityError(f"{digests.size} of {size} bytes were written", where=self._where)
        headers = {**self._headers, **await self._conditions(), **digests.headers()}
        # Whether it was done, should the answer get lost, is asked: see `commit`.
        call = Call("PUT", self._key, (), headers, held.data, digests.sha256, repeatable=False)
        if held.fd >= 0:
            stop = held.start + size
            try:
                reply = await self._plane.send_from_file(
                    call, held.fd, held.start, stop, held.progress
                )
            except IntegrityError as error:
                raise Changed("the file was written to while it was sent") from error
        else:
            reply = await self._plane.ask(call)
        return self._made(size, etag_of(reply.headers), http_time(reply.headers.get("date")))

    async def _complete(self, size: int) -> Entry:
        parts = [self._parts[number] for number in sorted(self._parts)]
        covered = sum(part.size for part in parts)
        if covered != size or sorted(self._parts) != list(range(len(parts))):
            raise IntegrityError(f"{covered} of {size} bytes were written", where=self._where)
        headers = dict(await self._conditions())
        if (crc := self._full_crc()) is not None:
            headers[CRC_HEADER] = wire_crc64nvme(crc)
            headers["x-amz-checksum-type"] = "FULL_OBJECT"
        body = build_complete(
            [
                (
                    number + 1,
                    part.etag,
                    None if part.crc is None else ("CRC64NVME", wire_crc64nvme(part.crc)),
                )
                for number, part in enumerate(parts)
            ]
        )
        query = (("uploadId", self._upload_id or ""),)
        call = Call("POST", self._key, query, headers, body, repeatable=False)
        try:
            reply = await self._ask_to_the_end(call)
        except NotFound as error:
            # Done already, if an earlier answer was lost; else somebody has dropped it.
            found = await self._find(size)
            if found is not None:
                return found
            raise Transient("the upload is gone at the server", where=self._where) from error
        etag = parse_complete(reply.body).etag
        return self._made(size, etag, http_time(reply.headers.get("date")))

    async def _ask_to_the_end(self, call: Call) -> Reply:
        """An exchange that a cancellation waits for, within reason: then it is known how it ended."""
        asking = asyncio.ensure_future(self._plane.ask(call))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            await asyncio.wait([asking], timeout=LAST_WORD_S)
            asking.cancel()
            await asyncio.wait([asking])
            raise

    def _full_crc(self) -> int | None:
        crc = 0
        for number in sorted(self._parts):
            part = self._parts[number]
            if part.crc is None:
                return None
            crc = combine_crc64nvme(crc, part.crc, part.size)
        return crc

    def _made(self, size: int, etag: str | None, stored_ns: int | None) -> Entry:
        return written(self._like._replace(path=self._path), size, etag, stored_ns, self._options)

    async def _find(self, size: int) -> Entry | None:
        """The object, if it is what we meant to write: the answer to an end whose reply was lost."""
        call = Call("HEAD", self._key, (), {"x-amz-checksum-mode": "ENABLED"})
        try:
            headers = (await self._plane.ask(call)).headers
        except NotFound:
            return None
        entry = entry_of(self._path, headers)
        if entry.size != size:
            return None
        held = self._held
        crc = held.digests.crc if held is not None else self._full_crc()
        there = headers.get(CRC_HEADER)
        if crc is not None and there is not None:
            return entry if there == wire_crc64nvme(crc) else None
        return entry if entry.version == await self._expected_etag() else None

    async def _expected_etag(self) -> str:
        held = self._held
        if held is None:
            return multipart_etag([self._parts[number].etag for number in sorted(self._parts)])
        if held.fd >= 0:
            start, stop, fd = held.start, held.start + held.digests.size, held.fd
            wanted = Wanted(crc=False, sha256=False, md5=True)
            digests = await self._store.in_thread(lambda: wanted.of_file(fd, start, stop))
            return (digests.md5 or b"").hex()
        return hashlib.md5(held.data, usedforsecurity=False).hexdigest()

    async def abort(self) -> None:
        """See `Upload.abort`."""
        self._let_go()
        if self._upload_id is not None and await abort_upload(
            self._plane, self._key, self._upload_id
        ):
            self._upload_id = None  # else the ticket stays, for a later process


async def abort_upload(plane: Plane, key: str, upload_id: str) -> bool:
    """Forget a multipart upload; a few tries, for parts are paid for. False if it did not work."""
    for attempt in range(3):
        try:
            await plane.ask(Call("DELETE", key, (("uploadId", upload_id),)))
        except NotFound:
            return True
        except FastsyncError as error:
            if not error.transient:
                return False
            await asyncio.sleep(0.2 * 2**attempt)
        else:
            return True
    return False
