"""Uploads that the server began, and of which nobody heard: the process was killed, or the answer got lost.

Nothing that the API tells of an upload says who began it for what (ListMultipartUploads has the key, the time
and the account). So only that counts as ours which has exactly our key, began within two minutes after we
wrote down that we would begin one, by the server's clock, is not in the hands of another run of ours, and has
no part: we send none before we have written down its id. One that has none costs nothing but its line in a
listing, and another program that began one in the same minute for the same key, and has sent nothing since,
would be told that it is gone, and begin again.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Final

from fastsync.backend import closing
from fastsync.dates import http_time
from fastsync.errors import Conflict, NotFound
from fastsync_s3.documents import OpenUpload, UploadPage, parse_parts, parse_uploads
from fastsync_s3.plane import Call, Plane
from fastsync_s3.upload import Ticket

# How long after it was written down a server may have begun it: a request may wait for a connection.
_WITHIN_NS: Final = 120_000_000_000
# Servers tell whole seconds, and clocks are not read at the same moment.
_SLACK_NS: Final = 2_500_000_000


async def find_foreseen(plane: Plane, told: Ticket, taken: Sequence[Ticket]) -> list[Ticket]:
    """What `told` came to, less what others have `taken`. Raises Conflict while one of them is to begin."""
    if any(not other.upload_id for other in taken):
        raise Conflict(
            "another run is about to write the same object",
            where=plane.where(told.key),
            hint="try again when it is done",
        )
    ids = {other.upload_id for other in taken}
    found = [upload async for upload in _open_uploads(plane, told, ids)]
    return [
        Ticket(told.key, upload.upload_id)
        for upload in found
        if not await _has_parts(plane, upload)
    ]


async def find_unfinished(
    plane: Plane, prefix: str, known: Sequence[Ticket]
) -> AsyncIterator[list[OpenUpload]]:
    """Uploads of keys that begin with `prefix`, whoever began them, but for the `known` ones."""
    ids = {ticket.upload_id for ticket in known}
    foreseen = {ticket.key for ticket in known if not ticket.upload_id}
    async with closing(_pages(plane, prefix)) as pages:
        async for page, _ in pages:
            yield [
                upload
                for upload in page.uploads
                if upload.key.startswith(prefix)
                and upload.upload_id not in ids
                and upload.key not in foreseen
            ]


async def _open_uploads(
    plane: Plane, told: Ticket, taken: Collection[str]
) -> AsyncIterator[OpenUpload]:
    async with closing(_pages(plane, told.key)) as pages:
        async for page, ahead_ns in pages:
            first = told.since_ns + ahead_ns - _SLACK_NS
            for upload in page.uploads:
                is_in_time = first <= upload.initiated_ns <= first + _WITHIN_NS
                if upload.key == told.key and is_in_time and upload.upload_id not in taken:
                    yield upload
            # Longer keys come after ours.
            if any(one.key > told.key for one in page.uploads):
                return


async def _pages(plane: Plane, prefix: str) -> AsyncIterator[tuple[UploadPage, int]]:
    """Pages of what begins with `prefix`, and by how much the server's clock is ahead of ours, in ns."""
    after: tuple[tuple[str, str], ...] = ()
    while True:
        pairs = (*after, ("encoding-type", "url"), ("prefix", prefix), ("uploads", ""))
        reply = await plane.ask(Call("GET", "", pairs))
        server_ns = http_time(reply.headers.get("date"))
        page = parse_uploads(reply.body, bucket=plane.bucket)
        yield page, 0 if server_ns is None else server_ns - time.time_ns()
        marker: tuple[tuple[str, str], ...] = (("key-marker", page.next_key_marker or ""),)
        if page.next_upload_id_marker:
            marker += (("upload-id-marker", page.next_upload_id_marker),)
        if not page.is_truncated or marker == after:
            return
        after = marker


async def _has_parts(plane: Plane, upload: OpenUpload) -> bool:
    query = (("max-parts", "1"), ("uploadId", upload.upload_id))
    try:
        reply = await plane.ask(Call("GET", upload.key, query))
    except NotFound:
        return False
    return bool(parse_parts(reply.body, bucket=plane.bucket).parts)
