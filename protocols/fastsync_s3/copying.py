"""Copies that the service makes by itself: CopyObject, and UploadPartCopy for what is larger than that
takes. Metadata, tags, storage class and encryption go along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from fastsync.backend import CopyJob, Entry, Progress, WriteOptions
from fastsync.errors import FastsyncError, IntegrityError, NotFound, Unsupported
from fastsync.wire import Headers, Reply
from fastsync_s3.attributes import Known
from fastsync_s3.checksums import expected_of
from fastsync_s3.documents import parse_copy, parse_initiate, parse_tagging
from fastsync_s3.guards import guard
from fastsync_s3.metadata import Lookup
from fastsync_s3.objects import as_read_error, attribute_headers, completed, entry_of, known_of
from fastsync_s3.plane import Call, is_in_doubt, values
from fastsync_s3.signing import encode_path, encode_query
from fastsync_s3.upload import S3Upload, SentPart, Wanted

if TYPE_CHECKING:
    from fastsync_s3.store import S3Store

# CopyObject takes 5 GiB; a part of 512 MiB is one request and many can be under way.
LARGEST_COPY: Final = 5 << 30
COPY_PART: Final = 512 << 20

# What a HEAD tells that has to be sent again when an object is made anew.
_METADATA: Final = (
    "content-type",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "expires",
    "x-amz-website-redirect-location",
)
_KEPT: Final = (
    "x-amz-storage-class",
    "x-amz-server-side-encryption",
    "x-amz-server-side-encryption-aws-kms-key-id",
    "x-amz-server-side-encryption-bucket-key-enabled",
)
_META: Final = "x-amz-meta-"


def part_size_of(size: int | None) -> int | None:
    """How large the parts of a copy are; None for what goes in one call."""
    return None if (size or 0) <= LARGEST_COPY else max(COPY_PART, -(-(size or 0) // 10_000))


class PartsCopy(S3Upload):
    """See `CopiesRanges`. What is made with other headers, or in other parts, is another upload."""

    def __init__(
        self,
        source: S3Store,
        sink: S3Store,
        job: CopyJob,
        made_with: tuple[Entry, dict[str, str]],
        options: WriteOptions,
        part_size: int,
    ) -> None:
        like, headers = made_with
        super().__init__(sink, job.path, like, options, part_size, job.old)
        self._source = source
        self._job = job
        self._headers = headers

    async def _create(self) -> None:
        # A checksum of the parts would be one that the service itself has made of them.
        call = Call("POST", self._key, (("uploads", ""),), self._headers, repeatable=False)
        self._upload_id = parse_initiate((await self._plane.ask(call)).body)
        self._wanted = Wanted(crc=False, sha256=False, md5=False)

    async def copy_range(self, start: int, stop: int, progress: Progress) -> None:
        """See `CopiesRanges.copy_range`."""
        number, entry = self._grid.number(start), self._job.entry
        there = self._there.get(number)
        if there is not None and there.size == stop - start:
            etag = there.etag  # nobody else knows of the upload, and it is of one version
        else:
            headers = ServiceCopy.source_headers(self._source, self._job)
            headers["x-amz-copy-source-range"] = f"bytes={start}-{stop - 1}"
            query = (("partNumber", str(number + 1)), ("uploadId", self._upload_id or ""))
            try:
                reply = await self._plane.ask(Call("PUT", self._key, query, headers))
            except FastsyncError as error:
                raise as_read_error(error, self._source.where(entry.path)) from error
            if not (etag := parse_copy(reply.body).etag):
                raise IntegrityError("the server copied a part without an ETag", where=self._where)
        self._parts[number] = SentPart(etag, stop - start, None)
        progress(stop - start)

    async def commit(self, size: int) -> Entry:
        """See `Upload.commit`. How long the object is, is asked: no byte of it passed here."""
        await super().commit(size)
        return await self._store.stat(self._path)


class ServiceCopy:
    """Copies from one store into another of the same service."""

    def __init__(self, source: S3Store, sink: S3Store, options: WriteOptions) -> None:
        self._source = source
        self._sink = sink
        self._options = options

    async def copy(self, jobs: Sequence[CopyJob], progress: Progress) -> list[FastsyncError | None]:
        """Copy a batch; the answer has one item per job."""
        answers: list[FastsyncError | None] = [None] * len(jobs)
        heads = await self._source.heads([job.entry for job in jobs])
        small: list[tuple[int, Call]] = []
        writes = [(self._sink.prefix + job.path, job.old) for job in jobs]
        guarded = await guard(self._sink.plane, self._sink.prefix, writes, self._options)
        for index, (job, head, conditions) in enumerate(zip(jobs, heads, guarded, strict=True)):
            if isinstance(head, FastsyncError):
                answers[index] = head
                continue
            try:
                if isinstance(conditions, FastsyncError):
                    raise conditions
                small.append((index, self._copy_call(job, head, conditions)))
            except FastsyncError as error:
                answers[index] = error
        replies = await self._sink.plane.ask_all([call for _, call in small])
        known = []
        for (index, _), reply in zip(small, replies, strict=True):
            job, head = jobs[index], heads[index]
            if isinstance(reply, FastsyncError):
                assert not isinstance(head, FastsyncError)
                if await self._is_made(job, head, reply):
                    progress(job.entry.size or 0)
                else:
                    answers[index] = as_read_error(reply, self._source.where(job.entry.path))
                continue
            progress(job.entry.size or 0)
            assert not isinstance(head, FastsyncError)
            known.append(self._known(job, head, reply))
        await self._sink.attributes.remember(row for row in known if row is not None)
        return answers

    async def set_attributes(self, jobs: Sequence[CopyJob]) -> list[FastsyncError | None]:
        """Copy each object onto itself with other metadata."""
        sink = self._sink
        there: list[Entry | FastsyncError] = []
        for job in jobs:
            there.append(Entry(job.path, "file", None, None))
        heads = await sink.heads([entry for entry in there if isinstance(entry, Entry)])
        answers: list[FastsyncError | None] = [None] * len(jobs)
        calls: list[tuple[int, CopyJob, Call]] = []
        for index, (job, head) in enumerate(zip(jobs, heads, strict=True)):
            if isinstance(head, FastsyncError):
                answers[index] = (
                    NotFound("no such object", where=sink.where(job.path))
                    if head.exit_code == 8
                    else head
                )
                continue
            try:
                entry = entry_of(job.path, head)
                if (entry.size or 0) > LARGEST_COPY:
                    raise Unsupported(
                        "the metadata of an object over 5 GiB can only be changed by writing it anew",
                        where=sink.where(job.path),
                    )
                headers = self._replaced(head, job.entry)
                source = CopyJob(entry, job.path)
                headers |= self.source_headers(sink, source)
                calls.append((index, source, Call("PUT", sink.key_of(job.path), (), headers)))
            except FastsyncError as error:
                answers[index] = error
        replies = await sink.plane.ask_all([call for *_, call in calls])
        known = []
        for (index, source, call), reply in zip(calls, replies, strict=True):
            if isinstance(reply, FastsyncError):
                answers[index] = reply
            else:
                # Some servers (versitygw) leave LastModified as it was: what is remembered would hold.
                known.append(self._known(source, call.headers, reply))
        await sink.attributes.remember(row for row in known if row is not None)
        return answers

    # -- one call ------------------------------------------------------------------------------------

    def _copy_call(self, job: CopyJob, head: Headers, conditions: Mapping[str, str]) -> Call:
        options = self._sink.plane.options
        headers = self.source_headers(self._source, job)
        headers |= conditions
        if options.replaces_metadata:
            headers |= {**_metadata(head), **options.write_headers}
            if options.content_type:
                headers["content-type"] = options.content_type
            headers["x-amz-metadata-directive"] = "REPLACE"
        else:
            headers |= {**values(head, _KEPT), **options.write_headers}
        return Call("PUT", self._sink.new_key(job.path), (), headers, repeatable=False)

    @staticmethod
    def source_headers(store: S3Store, job: CopyJob) -> dict[str, str]:
        place = encode_path(f"/{store.plane.bucket}/{store.key_of(job.entry.path)}")
        if store.version_id is not None:
            place += "?" + encode_query([("versionId", store.version_id)])
        headers = {"x-amz-copy-source": place}
        if job.entry.version is not None:
            headers["x-amz-copy-source-if-match"] = f'"{job.entry.version}"'
        return headers

    def _replaced(self, head: Headers, like: Entry) -> dict[str, str]:
        headers = {**_metadata(head), **values(head, _KEPT)}
        headers |= attribute_headers(like, self._options)
        headers["x-amz-metadata-directive"] = "REPLACE"
        return headers

    def _known(self, job: CopyJob, head: Lookup, reply: Reply) -> Known | None:
        result = parse_copy(reply.body)
        entry = completed(job.entry._replace(path=job.path, version=result.etag or None), head)
        entry = entry._replace(stored_ns=result.last_modified_ns)
        return known_of(self._sink.key_of(job.path), entry)

    async def _is_made(self, job: CopyJob, head: Headers, error: FastsyncError) -> bool:
        """True when only the answer got lost, and the copy is there: no second version of it."""
        if not is_in_doubt(error):
            return False
        (there,) = await self._sink.heads([Entry(job.path, "file", job.entry.size, None)])
        if isinstance(there, FastsyncError):
            return False
        made, ours, theirs = entry_of(job.path, there), expected_of(head), expected_of(there)
        same_sum = ours is not None and theirs is not None and ours == theirs
        same_bytes = made.size == job.entry.size and (same_sum or made.version == job.entry.version)
        options = self._sink.plane.options
        wanted = _metadata(head)
        if options.replaces_metadata:
            wanted |= options.write_headers
        return same_bytes and all(there.get(name) == value for name, value in wanted.items())

    # -- many calls ----------------------------------------------------------------------------------

    async def part_headers(self, job: CopyJob) -> tuple[Entry, dict[str, str]]:
        """What a copy in parts is made with, for nothing goes along by itself: the entry, completed, and the
        headers. Raises Changed, Vanished."""
        options = self._sink.plane.options
        (head,) = await self._source.heads([job.entry])
        if isinstance(head, FastsyncError):
            raise head
        headers = {**_metadata(head), **values(head, _KEPT)}
        if (tags := await self._tags(job.entry, head)) is not None:
            headers["x-amz-tagging"] = tags
        headers |= options.write_headers
        if options.content_type:
            headers["content-type"] = options.content_type
        return completed(job.entry, head), headers

    async def _tags(self, entry: Entry, head: Headers) -> str | None:
        if not head.get("x-amz-tagging-count"):
            return None
        query: tuple[tuple[str, str], ...] = (("tagging", ""),)
        if self._source.version_id is not None:
            query += (("versionId", self._source.version_id),)
        reply = await self._source.plane.ask(Call("GET", self._source.key_of(entry.path), query))
        return encode_query(parse_tagging(reply.body))


def _metadata(head: Headers) -> dict[str, str]:
    """What of an object's headers is its user's: to be sent again."""
    headers = values(head, _METADATA)
    headers.update({name: value for name, value in head.items() if name.startswith(_META)})
    return headers
