"""Objects below a prefix as a store: see `fastsync.backend` for what each method promises."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from fastsync.backend import (
    Buffer,
    CopyJob,
    Entry,
    Fault,
    FoundUpload,
    Limits,
    ListedVersion,
    Loaded,
    Page,
    Progress,
    ScanOptions,
    Source,
    WholeJob,
    WriteOptions,
    closing,
)
from fastsync.dates import http_time
from fastsync.errors import (
    Changed,
    Conflict,
    FastsyncError,
    IntegrityError,
    ListingError,
    NameRefused,
    NotFound,
    Overtaken,
    PermissionRefused,
    TicketRefused,
    Transient,
    Unsupported,
    UsageError,
)
from fastsync.location import Location
from fastsync.patience import MayRetry
from fastsync.wire import MAX_BODY, Headers, Reply
from fastsync_s3.attributes import Attributes, Known
from fastsync_s3.buckets import create_bucket
from fastsync_s3.checksums import (
    Expected,
    ExpectedParts,
    expected_of,
    hashed_parts,
    remembered_md5,
)
from fastsync_s3.copying import PartsCopy, ServiceCopy, part_size_of
from fastsync_s3.documents import (
    build_delete,
    parse_delete,
    parse_list,
    parse_versions,
)
from fastsync_s3.download import MOST_ASKED, S3Download, not_its_bytes, verify_parts
from fastsync_s3.guards import guard
from fastsync_s3.keys import check_key, is_xml_safe
from fastsync_s3.listing import list_keys
from fastsync_s3.objects import (
    as_read_error,
    check_part,
    completed,
    entry_of,
    etag_of,
    known_of,
    pinned,
    write_headers,
    written,
)
from fastsync_s3.pages import Query, RawPage, Row, has_keys, list_level
from fastsync_s3.plane import Call, Plane, is_in_doubt
from fastsync_s3.unheard import find_foreseen, find_unfinished
from fastsync_s3.upload import S3Upload, Ticket, Wanted, abort_upload, is_single

T = TypeVar("T")

MIB: Final = 1 << 20
# Pages of one listing that are asked for at the same time.
MAX_LISTINGS: Final = 16
_PRESIGNED: Final = ("GET", "PUT", "HEAD", "DELETE")
_CHECKSUMS: Final = {"x_amz_checksum_mode": "ENABLED"}


class S3Store:
    """What is below a prefix of a bucket, or one object (see `stat` of "")."""

    limits: Final = Limits(
        min_part=5 * MIB,
        max_part=5 << 30,
        max_parts=10_000,
        mtime_step_ns=1,
        mode_mask=0o7777,
        delete_batch=1000,
        conditional_writes=True,
        content_versions="s3-etag",
        raw_names=True,
        rechecks=True,
        checks_writes=True,
    )

    def __init__(
        self,
        plane: Plane,
        attributes: Attributes,
        threads: ThreadPoolExecutor,
        location: Location,
        may_retry: MayRetry,
    ) -> None:
        self.plane = plane
        self.attributes = attributes
        self._threads = threads
        self._location = location
        self._may_retry = may_retry
        self._name = location.path.removeprefix("/")  # the object, if it is one
        self._prefix = (
            self._name if self._name.endswith("/") or not self._name else self._name + "/"
        )

    @property
    def location(self) -> Location:
        return self._location

    @property
    def prefix(self) -> str:
        """What the keys of everything here begin with."""
        return self._prefix

    @property
    def version_id(self) -> str | None:
        return self.plane.options.version_id

    def address(self) -> str:
        """See `Source.address`."""
        return f"s3://{self.plane.endpoint.origin.authority}/{self.plane.bucket}/{self._prefix}"

    async def aclose(self) -> None:
        """See `Source.aclose`; what stores share belongs to the backend."""

    def key_of(self, path: str) -> str:
        """The key of a path; "" is the location itself. Raises NameRefused."""
        return check_key(self._prefix + path) if path else self._name

    def new_key(self, path: str) -> str:
        """The key of a path that is to be written. Raises NameRefused."""
        if not path:
            raise NameRefused("an object needs a name", where=str(self._location))
        return check_key(self._prefix + path)

    def where(self, path: str) -> str:
        return str(self._location.child(path))

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run what would block the loop for long: digests."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    # -- what the server understands -----------------------------------------------------------------

    @property
    def sends_crc(self) -> bool:
        """True when the server is known to check CRC64NVME checksums."""
        return self.plane.endpoint.is_aws or self.plane.has_crc is True

    @property
    def may_send_crc(self) -> bool:
        """True unless the server is known not to."""
        return self.plane.has_crc is not False

    def learn_crc(self, has_crc: bool) -> None:
        self.plane.has_crc = has_crc

    # -- listing -------------------------------------------------------------------------------------

    async def _fetch(self, query: Query) -> RawPage:
        plane = self.plane
        pairs: list[tuple[str, str]] = [
            ("encoding-type", "url"),
            ("max-keys", str(query.max_keys)),
            ("prefix", query.prefix),
        ]
        if query.delimiter:
            pairs.append(("delimiter", query.delimiter))
        after = query.token or query.start_after
        if plane.lists_v1:
            if after:
                pairs.append(("marker", after))
        else:
            pairs.append(("list-type", "2"))
            if query.token is not None:
                pairs.append(("continuation-token", query.token))
            elif after:
                pairs.append(("start-after", after))
        try:
            reply = await plane.ask(Call("GET", "", tuple(pairs)))
        except Unsupported:
            if plane.lists_v1:
                raise
            plane.lists_v1 = True
            return await self._fetch(query._replace(token=None))
        except NotFound as error:
            raise ListingError("the bucket does not exist", where=self.where("")) from error
        except IntegrityError as error:
            raise ListingError(error.message, where=self.where("")) from error
        page = parse_list(reply.body, bucket=plane.bucket, version=1 if plane.lists_v1 else 2)
        token: str | None = None
        if page.is_truncated:
            if page.next_token is None:
                plane.lists_v1 = True  # the server ignored what it was asked for
            token = page.next_token or page.next_marker
        return RawPage(page.rows, page.prefixes, token)

    async def scan(self, options: ScanOptions) -> AsyncIterator[Page]:
        """See `Source.scan`."""
        if self.version_id is not None:
            raise UsageError("--version-id is about one object", where=str(self._location))
        seen = False
        pruning = None if options.prune is None else _Pruning(options.prune)
        prefix = self._prefix + options.starting_with
        try:
            async for rows in self._rows(prefix, options):
                # What is written over or removed need not have a name of its own.
                faults = () if seen or options.missing_ok else self._nameless(rows[0])
                seen = True
                entries = self._entries(rows, pruning, raw=options.raw)
                if options.details and entries:
                    entries = await self._filled(entries)
                if entries or faults:
                    yield Page(entries, faults)
        except ListingError as error:
            error.at(self.where(""))
            raise
        if not seen and not options.missing_ok and not options.starting_with:
            await self._insist(options)

    def _nameless(self, row: Row | str) -> tuple[Fault, ...]:
        """The fault that an object is whose key is the location's prefix: without content it stands for
        the location, with content it is a file that has no name below it. It can only be the first."""
        if isinstance(row, str) or row[0] != self._prefix or not row[1]:
            return ()
        where = f"{self.where('').rstrip('/')}/"
        text = "this object has content, and no name below its own prefix"
        return (
            Fault(
                "", NameRefused(text, where=where, hint="between buckets, copy what is above it")
            ),
        )

    async def _insist(self, options: ScanOptions) -> None:
        """An empty listing is right for an empty bucket; a prefix without keys is not there."""
        if not self._prefix:
            return
        try:
            await self.stat("")
        except NotFound as error:
            raise NotFound("no object begins with this prefix", where=self.where("")) from error
        raise Conflict("it is an object, not a prefix", where=self.where(""))

    async def _rows(self, prefix: str, options: ScanOptions) -> AsyncIterator[list[Row | str]]:
        seen = 0

        def width() -> int:
            # Guessing where later pages begin costs the server work: no more than was found to pay.
            return max(1, min(MAX_LISTINGS, self.plane.pace.width(), seen))

        if options.recursive:
            pages: Any = list_keys(self._fetch, prefix, width=width, may_retry=self._may_retry)
        else:
            pages = list_level(self._fetch, prefix, may_retry=self._may_retry)
        try:
            async for rows in pages:
                seen += 1
                yield rows
        finally:
            await pages.aclose()

    def _entries(
        self, rows: Sequence[Row | str], pruning: _Pruning | None, *, raw: bool
    ) -> list[Entry]:
        start = len(self._prefix)
        new = tuple.__new__
        entries: list[Entry] = []
        for row in rows:
            if isinstance(row, str):
                path = row[start:-1]
                entries.append(Entry(path, "dir", None, None))
                continue
            key, size, stored_ns, etag, _ = row
            path = key[start:]
            if pruning is not None and pruning.leaves_out(path):
                if (directory := pruning.news()) is not None:
                    entries.append(Entry(directory, "dir", None, None))
                continue
            if path.endswith("/") or not path:
                if not path:
                    continue  # stands for the location itself
                if size == 0 and not raw:
                    entries.append(Entry(path[:-1], "dir", None, None))
                    continue
            entries.append(
                new(Entry, (path, "file", size, None, None, None, etag, None, stored_ns))
            )
        return entries

    async def _filled(self, entries: list[Entry]) -> list[Entry]:
        """The entries with what is known of them without asking."""
        prefix = self._prefix
        first, last = prefix + entries[0].path, prefix + entries[-1].path + "/"
        known = await self.attributes.between(first, last)
        if not known:
            return entries
        filled: list[Entry] = []
        exact: list[Known] = []
        new = tuple.__new__
        for entry in entries:
            path, kind, size, _, _, _, etag, _, stored_ns = entry
            row = known.get(prefix + path)
            if row is None or kind != "file" or not row.holds(etag, size, stored_ns):
                filled.append(entry)
                continue
            if not row.is_exact and stored_ns is not None:
                exact.append(row._replace(stored_ns=stored_ns, is_exact=True))
            filled.append(
                new(
                    Entry,
                    (path, kind, size, row.mtime_ns, row.mode, None, etag, None, stored_ns),
                )
            )
        await self.attributes.remember(exact)
        return filled

    async def scan_versions(self, options: ScanOptions) -> AsyncIterator[list[ListedVersion]]:
        """See `KeepsVersions.scan_versions`."""
        is_object = bool(self._name) and not self._name.endswith("/") and await self._is_object()
        prefix = self._name if is_object else self._prefix + options.starting_with
        start = len(self._prefix)
        markers: tuple[tuple[str, str], ...] = ()
        while True:
            pairs: tuple[tuple[str, str], ...] = (
                ("encoding-type", "url"),
                ("prefix", prefix),
                ("versions", ""),
                *markers,
            )
            if not options.recursive and not is_object:
                pairs += (("delimiter", "/"),)
            reply = await self.plane.ask(Call("GET", "", pairs))
            page = parse_versions(reply.body, bucket=self.plane.bucket)
            listed: list[ListedVersion] = []
            for one in page.versions:
                if is_object and one.key != self._name:
                    continue
                path = self._location.name if is_object else one.key[start:]
                entry = Entry(
                    path, "file", one.size, None, None, None, one.etag, None, one.mtime_ns
                )
                listed.append(
                    ListedVersion(entry, one.version_id, one.is_latest, one.is_delete_marker)
                )
            if listed:
                yield listed
            if not page.is_truncated:
                return
            after: tuple[tuple[str, str], ...] = (("key-marker", page.next_key_marker or ""),)
            if page.next_version_id_marker:
                after += (("version-id-marker", page.next_version_id_marker),)
            if after == markers:
                raise ListingError("the listing does not go on", where=self.where(""))
            markers = after

    async def _is_object(self) -> bool:
        query = (
            ("prefix", self._name),
            ("versions", ""),
            ("encoding-type", "url"),
            ("max-keys", "1"),
        )
        reply = await self.plane.ask(Call("GET", "", query))
        page = parse_versions(reply.body, bucket=self.plane.bucket)
        return any(one.key == self._name for one in page.versions)

    # -- one object ----------------------------------------------------------------------------------

    async def stat(self, path: str, *, follow: bool = False) -> Entry:
        """See `Source.stat`. An object goes before a prefix of the same name."""
        key = self.key_of(path)
        if key and not (key.endswith("/") and not path):
            query = () if self.version_id is None else (("versionId", self.version_id),)
            try:
                reply = await self.plane.ask(Call("HEAD", key, query), may_retry=self._may_retry)
            except NotFound:
                pass
            else:
                entry = entry_of(path, reply.headers)
                await self._learn([entry])
                return entry
        return await self._stat_directory(path, key)

    async def _stat_directory(self, path: str, key: str) -> Entry:
        prefix = key if not key or key.endswith("/") else key + "/"
        try:
            if await has_keys(self._fetch, prefix, may_retry=self._may_retry) or not prefix:
                return Entry(path, "dir", None, None)
        except ListingError as error:
            if isinstance(error.__cause__, NotFound):
                raise NotFound("the bucket does not exist", where=self.where("")) from error
            raise
        raise NotFound("no such object or prefix", where=self.where(path))

    async def _learn(self, entries: Sequence[Entry]) -> None:
        known = [known_of(self.key_of(entry.path), entry) for entry in entries]
        await self.attributes.remember(row for row in known if row is not None)

    async def heads(self, entries: Sequence[Entry]) -> list[Headers | FastsyncError]:
        """The headers of exactly these versions, checksums included."""
        answers = await self._ask_each(entries, "HEAD")
        return [each if isinstance(each, FastsyncError) else each.headers for each in answers]

    async def _ask_each(
        self, entries: Sequence[Entry], method: str, *, most: int = MAX_BODY
    ) -> list[Reply | FastsyncError]:
        """One pinned request per entry; names that no key can have are answers, too."""
        answers: list[Reply | FastsyncError | None] = []
        calls: list[Call] = []
        for entry in entries:
            try:
                key = self.key_of(entry.path)
                calls.append(pinned(key, entry, method, self.version_id, **_CHECKSUMS))
                answers.append(None)
            except FastsyncError as error:
                answers.append(error)
        replies = iter(await self.plane.ask_all(calls, most=most))
        settled: list[Reply | FastsyncError] = []
        for entry, answer in zip(entries, answers, strict=True):
            if answer is None:
                answer = next(replies)
                if isinstance(answer, FastsyncError):
                    answer = await self.read_error(answer, entry)
                elif entry.version is not None and etag_of(answer.headers) != entry.version:
                    answer = Changed(
                        "the object changed since it was listed", where=self.where(entry.path)
                    )
            settled.append(answer)
        return settled

    async def read_error(self, error: FastsyncError, entry: Entry) -> FastsyncError:
        """What a failed request for a listed version means."""
        where = self.where(entry.path)
        if isinstance(error, Overtaken):
            # Some servers find that nothing is no match.
            try:
                await self.plane.ask(
                    Call("HEAD", self.key_of(entry.path)), may_retry=self._may_retry
                )
            except NotFound as gone:
                return as_read_error(gone, where)
            except FastsyncError:
                pass  # that it changed is enough to know
        return as_read_error(error, where)

    async def part_lengths(self, entry: Entry, count: int) -> list[int] | None:
        """How long the first `count` parts of an object's upload were; None where the server does not
        say."""
        call = pinned(self.key_of(entry.path), entry, "HEAD", self.version_id)
        calls = [
            call._replace(query=(("partNumber", str(number)), *call.query))
            for number in range(1, count + 1)
        ]
        lengths: list[int] = []
        for reply in await self.plane.ask_all(calls):
            if isinstance(reply, FastsyncError):
                return None
            length = reply.headers.get("content-length") or ""
            if reply.status != 206 and reply.headers.get("x-amz-mp-parts-count") is None:
                return None
            if not length.isdecimal() or not int(length):
                return None
            lengths.append(int(length))
        return lengths

    async def proof(self, entry: Entry) -> Expected | ExpectedParts | None:
        """See `ProvesContent.proof`: a checksum of the whole, an MD5, or the ETag of parts whose lengths
        the server tells."""
        (head,) = await self.heads([entry])
        if isinstance(head, FastsyncError):
            raise head
        whole = expected_of(head) or remembered_md5(head)
        count = hashed_parts(head)
        if whole is not None or count is None or count > MOST_ASKED:
            return whole
        size = entry.size or 0
        lengths = [size] if count == 1 else await self.part_lengths(entry, count)
        if lengths is None or sum(lengths) != size:
            return None
        return ExpectedParts(tuple(lengths), etag_of(head) or "")

    async def complete(self, entries: Sequence[Entry]) -> list[Entry | FastsyncError]:
        """See `CompletesEntries.complete`."""
        wanted = [entry for entry in entries if entry.kind == "file"]
        made: dict[str, Entry | FastsyncError] = {}
        fresh: list[Entry] = []
        for entry, head in zip(wanted, await self.heads(wanted), strict=True):
            if isinstance(head, FastsyncError):
                made[entry.path] = head
            else:
                made[entry.path] = entry = completed(entry, head)
                fresh.append(entry)
        await self._learn(fresh)
        return [made.get(entry.path, entry) for entry in entries]

    async def describe(self, entry: Entry) -> dict[str, str]:
        """See `Describes.describe`."""
        if entry.kind != "file":
            return {}
        (head,) = await self.heads([entry])
        if isinstance(head, FastsyncError):
            raise head
        hidden = ("date", "server", "connection", "accept-ranges", "x-amz-request-id", "x-amz-id-2")
        return {
            name: value
            for name, value in head.items()
            if name not in hidden and not name.startswith("access-control-")
        }

    # -- reading -------------------------------------------------------------------------------------

    async def read(self, entry: Entry, start: int, stop: int | None) -> AsyncIterator[Buffer]:
        """See `Source.read`."""
        end = entry.size if stop is None else stop
        where = self.where(entry.path)
        if end is None:
            raise IntegrityError("the length of the object is not known", where=where)
        if end <= start:
            if entry.version is not None:
                (head,) = await self.heads([entry])
                if isinstance(head, FastsyncError):
                    raise head
            return

        def check(status: int, headers: Headers) -> None:
            check_part(entry, start, end, status, headers, where)

        key = self.key_of(entry.path)
        call = pinned(key, entry, "GET", self.version_id, range=f"bytes={start}-{end - 1}")
        try:
            async for buffer in self.plane.receive(call, check):
                yield buffer
        except FastsyncError as error:
            raise await self.read_error(error, entry) from error

    async def open_download(self, entry: Entry) -> S3Download:
        """See `Downloads.open_download`."""
        (head,) = await self.heads([entry])
        if isinstance(head, FastsyncError):
            raise head
        entry = completed(entry, head)
        await self._learn([entry])
        return S3Download(self, entry, expected_of(head), hashed_parts(head))

    async def read_whole(self, entries: Sequence[Entry]) -> list[Loaded | FastsyncError]:
        """See `ReadsWhole.read_whole`."""
        largest = max((entry.size or 0 for entry in entries), default=0)
        replies = await self._ask_each(entries, "GET", most=largest + MIB)
        loads: list[Loaded | FastsyncError] = []
        for entry, reply in zip(entries, replies, strict=True):
            if isinstance(reply, FastsyncError):
                loads.append(reply)
            else:
                loads.append(await self._loaded(entry, reply))
        await self._learn([load.entry for load in loads if isinstance(load, Loaded)])
        return loads

    async def _loaded(self, entry: Entry, reply: Reply) -> Loaded | FastsyncError:
        headers, data = reply.headers, reply.body
        where = self.where(entry.path)
        if len(data) != entry.size:
            return IntegrityError(f"{len(data)} bytes came, {entry.size} were listed", where=where)
        expected = expected_of(headers)
        is_verified = expected is not None
        if expected is not None:
            hasher = expected.hasher()
            hasher(memoryview(data))
            if hasher.value() != expected.value:
                return not_its_bytes(where, expected.algorithm, hasher.value(), expected.value)
        elif (count := hashed_parts(headers)) is not None:
            try:
                is_verified = await verify_parts(self, entry, count, memoryview(data))
            except FastsyncError as error:
                return error
        return Loaded(completed(entry, headers), data, is_verified)

    async def presign(self, path: str, expires_s: int, method: str = "GET") -> str:
        """See `SignsLinks.presign`."""
        if method not in _PRESIGNED:
            raise UsageError(f"a link cannot be for {method}")
        return await self.plane.presign(self.key_of(path), expires_s, method)

    def renew(self) -> None:
        """See `Reconnects.renew`."""
        self.plane.wire.renew()

    # -- writing -------------------------------------------------------------------------------------

    async def upload(
        self,
        path: str,
        like: Entry,
        options: WriteOptions,
        part_size: int,
        old: Entry | None = None,
    ) -> S3Upload:
        """See `Sink.upload`."""
        upload = S3Upload(self, path, like, options, part_size, old)
        await upload.begin()
        return upload

    def foresee_upload(
        self, path: str, like: Entry, options: WriteOptions, part_size: int
    ) -> str | None:
        """See `ForeseesUploads.foresee_upload`."""
        if is_single(like, options, part_size):
            return None
        return str(Ticket.foreseen(self.new_key(path)))

    async def find_foreseen(self, ticket: str, others: Sequence[str]) -> list[str]:
        """See `ForeseesUploads.find_foreseen`."""
        told = Ticket.read(ticket)
        if told.upload_id:
            return [ticket]
        try:
            taken = [Ticket.read(other) for other in others]
        except TicketRefused as error:
            raise Unsupported(
                "what it came to may be another's, whose ticket is not ours"
            ) from error
        return [str(found) for found in await find_foreseen(self.plane, told, taken)]

    async def find_uploads(self, known: Sequence[str]) -> AsyncIterator[list[FoundUpload]]:
        """See `FindsUploads.find_uploads`."""
        tickets = []
        for one in known:
            with contextlib.suppress(TicketRefused):  # then it stands for nothing here
                tickets.append(Ticket.read(one))
        async with closing(find_unfinished(self.plane, self._name, tickets)) as pages:
            async for page in pages:
                yield [
                    FoundUpload(
                        upload.key[len(self._prefix) :],
                        str(Ticket(upload.key, upload.upload_id)),
                        upload.initiated_ns,
                    )
                    for upload in page
                    if upload.key == self._name or upload.key.startswith(self._prefix)
                ]

    async def drop_upload(self, ticket: str) -> None:
        """See `DropsUploads.drop_upload`."""
        told = Ticket.read(ticket)
        if not told.upload_id:
            raise UsageError("it is not known yet which upload that is")
        if not await abort_upload(self.plane, told.key, told.upload_id):
            where = self.plane.where(told.key)
            raise FastsyncError("the upload could not be aborted", where=where, hint="try again")

    async def resume_upload(
        self,
        ticket: str,
        path: str,
        like: Entry,
        options: WriteOptions,
        covered: Sequence[tuple[int, int]],
    ) -> S3Upload | None:
        """See `ResumesUploads.resume_upload`; the server says what it has, and what that adds up to."""
        told = Ticket.read(ticket)
        if options.guarded or not self.limits.allow(like.size or 0, told.part_size):
            return None
        upload = S3Upload(self, path, like, options, told.part_size, None)
        return upload if await upload.take_up(told) else None

    async def write_whole(
        self, jobs: Sequence[WholeJob], options: WriteOptions
    ) -> list[FastsyncError | None]:
        """See `WritesWhole.write_whole`."""
        answers: list[FastsyncError | None] = [None] * len(jobs)
        wanted = Wanted.by(self.plane, crc=self.sends_crc)
        calls: list[Call] = []
        sent: list[int] = []
        writes = [(self._prefix + job.path, job.old) for job in jobs]
        guarded = await guard(self.plane, self._prefix, writes, options)
        for index, (job, conditions) in enumerate(zip(jobs, guarded, strict=True)):
            try:
                if isinstance(conditions, FastsyncError):
                    raise conditions
                key = self.new_key(job.path)
                headers = write_headers(key, job.entry, self.plane.options, options)
                digests = wanted.of_buffer(job.data)
                headers |= {**digests.headers(), **conditions}
                calls.append(
                    Call("PUT", key, (), headers, job.data, digests.sha256, repeatable=False)
                )
                sent.append(index)
            except FastsyncError as error:
                answers[index] = error.at(self.where(job.path))
        known: list[Known] = []
        replies = await self.plane.ask_all(calls)
        for index, reply in zip(sent, replies, strict=True):
            if isinstance(reply, FastsyncError):
                answers[index] = await self._settled(jobs[index], reply)
                continue
            job, etag = jobs[index], etag_of(reply.headers)
            stored_ns = http_time(reply.headers.get("date"))
            if etag is not None:
                like = job.entry._replace(path=job.path)
                entry = written(like, len(job.data), etag, stored_ns, options)
                row = known_of(self.key_of(job.path), entry, is_exact=False)
                if row is not None:
                    known.append(row)
        await self.attributes.remember(known)
        return answers

    async def _settled(self, job: WholeJob, error: FastsyncError) -> FastsyncError | None:
        """None when only the answer got lost, and the object is there: no second version of it."""
        if not is_in_doubt(error):
            return error
        try:
            head = await self.plane.ask(Call("HEAD", self.key_of(job.path)))
            entry = entry_of(job.path, head.headers)
        except FastsyncError:
            return error
        digest = hashlib.md5(job.data, usedforsecurity=False).hexdigest()
        same_time = job.entry.mtime_ns is None or entry.mtime_ns == job.entry.mtime_ns
        if (entry.size, entry.version) == (len(job.data), digest) and same_time:
            return None
        return error

    def can_copy_from(self, source: Source) -> bool:
        return isinstance(source, S3Store) and self.plane.same_service(source.plane)

    async def copy_from(
        self,
        source: Source,
        jobs: Sequence[CopyJob],
        options: WriteOptions,
        progress: Progress,
    ) -> list[FastsyncError | None]:
        """See `CopiesWithin.copy_from`."""
        assert isinstance(source, S3Store)
        return await ServiceCopy(source, self, options).copy(jobs, progress)

    def copy_part_size(self, source: Source, entry: Entry) -> int | None:
        """See `CopiesParts.copy_part_size`."""
        return part_size_of(entry.size) if self.can_copy_from(source) else None

    async def upload_copy(
        self, source: Source, job: CopyJob, options: WriteOptions, part_size: int
    ) -> PartsCopy:
        """See `CopiesParts.upload_copy`."""
        upload = await self._parts_copy(source, job, options, part_size)
        await upload.begin()
        return upload

    async def resume_copy(
        self, ticket: str, source: Source, job: CopyJob, options: WriteOptions, part_size: int
    ) -> PartsCopy | None:
        """See `CopiesParts.resume_copy`."""
        told = Ticket.read(ticket)
        if options.guarded or told.part_size != part_size:
            return None
        upload = await self._parts_copy(source, job, options, part_size)
        return upload if await upload.take_up(told) else None

    async def _parts_copy(
        self, source: Source, job: CopyJob, options: WriteOptions, part_size: int
    ) -> PartsCopy:
        assert isinstance(source, S3Store)
        made_with = await ServiceCopy(source, self, options).part_headers(job)
        return PartsCopy(source, self, job, made_with, options, part_size)

    async def set_attributes(
        self, jobs: Sequence[CopyJob], options: WriteOptions
    ) -> list[FastsyncError | None]:
        """See `SetsAttributes.set_attributes`. A prefix has none."""
        files = [job for job in jobs if job.entry.kind == "file" and job.path]
        answers = dict(
            zip(
                (job.path for job in files),
                await ServiceCopy(self, self, options).set_attributes(files),
                strict=True,
            )
        )
        return [answers.get(job.path) for job in jobs]

    async def delete(self, entries: Sequence[Entry]) -> list[FastsyncError | None]:
        """See `Sink.delete`."""
        answers: dict[str, FastsyncError | None] = {}
        keys: list[str] = []
        for entry in entries:
            try:
                key = self.new_key(entry.path)
                if entry.kind == "dir" and not key.endswith("/"):
                    key += "/"
                keys.append(key)
            except FastsyncError as error:
                answers[entry.path] = error
                keys.append("")
        together = [key for key in keys if key and is_xml_safe(key)]
        alone = [key for key in keys if key and not is_xml_safe(key)]
        if self.version_id is not None or not self.plane.deletes_many or len(together) == 1:
            alone, together = [key for key in keys if key], []
        errors: dict[str, FastsyncError] = {}
        if together:
            errors.update(await self._delete_many(together))
        if alone:
            errors.update(await self._delete_each(alone))
        return [
            answers.get(entry.path) if not key else errors.get(key)
            for entry, key in zip(entries, keys, strict=True)
        ]

    async def _delete_many(self, keys: Sequence[str]) -> dict[str, FastsyncError]:
        body = build_delete(keys)
        digest = hashlib.md5(body, usedforsecurity=False).digest()
        headers = {"content-md5": base64.b64encode(digest).decode(), "content-type": "text/xml"}
        try:
            reply = await self.plane.ask(Call("POST", "", (("delete", ""),), headers, body))
        except Unsupported:
            self.plane.deletes_many = False
            return await self._delete_each(keys)
        except PermissionRefused as refused:
            text, hint = refused.message, refused.hint
            return {
                key: PermissionRefused(text, where=self.plane.where(key), hint=hint) for key in keys
            }
        told = parse_delete(reply.body)
        errors: dict[str, FastsyncError] = {}
        for key in keys:
            if key in told.errors:
                error = self.plane.told_error(told.errors[key], key, "delete the object")
                if error is not None:
                    errors[key] = error
            elif key not in told.keys:
                errors[key] = Transient(
                    "the server does not say whether the object was deleted",
                    where=self.plane.where(key),
                )
        return errors

    async def _delete_each(self, keys: Sequence[str]) -> dict[str, FastsyncError]:
        query = () if self.version_id is None else (("versionId", self.version_id),)
        replies = await self.plane.ask_all([Call("DELETE", key, query) for key in keys])
        return {
            key: reply
            for key, reply in zip(keys, replies, strict=True)
            if isinstance(reply, FastsyncError) and not isinstance(reply, NotFound)
        }

    async def create_place(self) -> None:
        """See `CreatesPlaces.create_place`."""
        if self._prefix:
            raise UsageError("a prefix is there as soon as an object is", where=str(self._location))
        await create_bucket(self.plane)


class _Pruning:
    """Leaves out what is below pruned directories, of which the first key is news."""

    def __init__(self, prune: Callable[[str], bool]) -> None:
        self._prune = prune
        self._parent = ""
        self._pruned: str | None = None
        self._told: str | None = None

    def leaves_out(self, path: str) -> bool:
        """Whether `path`, the next one in order, is below a pruned directory."""
        parent = path.rpartition("/")[0]
        if parent != self._parent:
            self._parent, self._pruned = parent, self._find(parent)
        return self._pruned is not None

    def news(self) -> str | None:
        """The directory that was pruned, once."""
        if self._pruned == self._told:
            return None
        self._told = self._pruned
        return self._pruned

    def _find(self, directory: str) -> str | None:
        end = directory.find("/")
        while end >= 0:
            if self._prune(directory[:end]):
                return directory[:end]
            end = directory.find("/", end + 1)
        return directory if directory and self._prune(directory) else None
