"""Buckets: listing those of an account, which is what ``s3://`` is, and making one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from fastsync.backend import Buffer, Entry, Limits, Page, ScanOptions
from fastsync.errors import (
    AccessRefused,
    Conflict,
    ListingError,
    NotFound,
    PermissionRefused,
    UsageError,
)
from fastsync.location import Location
from fastsync.patience import MayRetry
from fastsync_s3.control import DEFAULT_REGION, is_bucket_name
from fastsync_s3.documents import build_create, parse_buckets
from fastsync_s3.plane import Call, Plane

# Requests without pages are for accounts of less than 10 000 buckets ("ListBuckets").
_PAGE: Final = ("max-buckets", "1000")


async def list_buckets(
    plane: Plane, may_retry: MayRetry | None = None
) -> list[tuple[str, int | None]]:
    """The names of all buckets of the account, and when each was made, in Unix nanoseconds. `plane` is one
    to the service. Raises ListingError for an answer that is no list of buckets."""
    found: list[tuple[str, int | None]] = []
    query: tuple[tuple[str, str], ...] = (_PAGE,) if plane.endpoint.is_aws else ()
    tokens: set[str] = set()
    while True:
        reply = await plane.ask(Call("GET", "", query), may_retry=may_retry)
        page = parse_buckets(reply.body)
        for name, _ in page.buckets:
            if not is_bucket_name(name):
                raise ListingError("the server's list of buckets cannot be trusted", where="s3://")
        found += page.buckets
        token = page.next_token
        if not token:
            return found
        if token in tokens:
            raise ListingError("the list of buckets does not go on", where="s3://")
        tokens.add(token)
        query = (("continuation-token", token), _PAGE)


async def create_bucket(plane: Plane) -> None:
    """Make a bucket, in the region that is configured. Raises Conflict when it exists."""
    # In us-east-1, making one's own bucket again is a success ("CreateBucket").
    try:
        await plane.ask(Call("HEAD"))
    except (NotFound, PermissionRefused, AccessRefused):
        region = plane.control.region
        body = build_create(region) if region != DEFAULT_REGION else b""
        await plane.ask(Call("PUT", "", (), {}, body, repeatable=False))
    else:
        raise Conflict("the bucket exists", where=plane.where("").rstrip("/"))


class BucketList:
    """A source whose directories are buckets. What is in them is for a store of its own."""

    limits: Final = Limits(mtime_step_ns=1)

    def __init__(self, plane: Plane, location: Location, may_retry: MayRetry) -> None:
        self._plane = plane
        self._location = location
        self._may_retry = may_retry

    @property
    def location(self) -> Location:
        return self._location

    def address(self) -> str:
        """See `Source.address`."""
        return "s3://"

    async def aclose(self) -> None:
        """See `Source.aclose`."""

    async def scan(self, options: ScanOptions) -> AsyncIterator[Page]:
        """The buckets, and not what is in them."""
        if options.recursive:
            raise UsageError("s3:// lists buckets only", hint="name a bucket: s3://bucket/")
        buckets = await list_buckets(self._plane, self._may_retry)
        buckets.sort(key=lambda one: one[0].encode())
        if buckets:
            yield Page(
                [
                    Entry(name, "dir", None, None, stored_ns=created_ns)
                    for name, created_ns in buckets
                ]
            )

    async def stat(self, path: str, *, follow: bool = False) -> Entry:
        """See `Source.stat`."""
        if path:
            raise NotFound("name a bucket: s3://bucket/", where=str(self._location))
        return Entry("", "dir", None, None)

    async def read(self, entry: Entry, start: int, stop: int | None) -> AsyncIterator[Buffer]:
        """There are no files here."""
        raise NotFound("a bucket is not a file", where=str(self._location.child(entry.path)))
        yield b""
