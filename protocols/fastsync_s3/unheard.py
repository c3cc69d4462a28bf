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

from fastsync.dates import http_time
from fastsync.errors import Conflict, NotFound
from fastsync_s3.documents import OpenUpload, parse_parts, parse_uploads
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


async def _open_uploads(
    plane: Plane, told: Ticket, taken: Collection[str]
) -> AsyncIterator[OpenUpload]:
    after: tuple[tuple[str, str], ...] = ()
    while True:
        pairs = (*after, ("encoding-type", "url"), ("prefix", told.key), ("uploads", ""))
        reply = await plane.ask(Call("GET", "", pairs))
        server_ns = http_time(reply.headers.get("date"))
        ahead_ns = 0 if server_ns is None else server_ns - time.time_ns()
        first = told.since_ns + ahead_ns - _SLACK_NS
        page = parse_uploads(reply.body, bucket=plane.bucket)
        for upload in page.uploads:
            is_in_time = first <= upload.initiated_ns <= first + _WITHIN_NS
            if upload.key == told.key and is_in_time and upload.upload_id not in taken:
                yield upload
        # Longer keys come after ours.
        is_over = not page.is_truncated or any(one.key > told.key for one in page.uploads)
        marker: tuple[tuple[str, str], ...] = (("key-marker", page.next_key_marker or ""),)
        if page.next_upload_id_marker:
            marker += (("upload-id-marker", page.next_upload_id_marker),)
        if is_over or marker == after:
            return
        after = marker


async def _has_parts(plane: Plane, upload: OpenUpload) -> bool:
    query = (("max-parts", "1"), ("uploadId", upload.upload_id))
    try:
        reply = await plane.ask(Call("GET", upload.key, query))
    except NotFound:
        return False
    return bool(parse_parts(reply.body, bucket=plane.bucket).parts)
