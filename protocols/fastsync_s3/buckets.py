"""All buckets of an account: what ``s3://`` lists."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from fastsync.backend import Buffer, Entry, Limits, Page, ScanOptions
from fastsync.errors import NotFound, UsageError
from fastsync.location import Location

if TYPE_CHECKING:
    from fastsync_s3.control import Control


class BucketList:
    """A source whose directories are buckets. What is in them is for a store of its own."""

    limits: Final = Limits(mtime_step_ns=1)

    def __init__(self, control: Control, location: Location) -> None:
        self._control = control
        self._location = location

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
        buckets = sorted(await self._control.list_buckets(), key=lambda one: one[0].encode())
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
