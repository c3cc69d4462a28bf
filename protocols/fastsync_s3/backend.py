"""The protocol `s3`: buckets, and the prefixes and objects in them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from fastsync.backend import Source, StoreOptions
from fastsync.errors import UsageError
from fastsync.location import Location
from fastsync.patience import up_to

if TYPE_CHECKING:
    from fastsync_s3.attributes import Attributes
    from fastsync_s3.control import Control
    from fastsync_s3.plane import Plane


class S3Backend:
    """See `Backend`. Places with the same settings share credentials, those in one bucket connections."""

    def __init__(self) -> None:
        self._controls: dict[frozenset[tuple[str, str]], Control] = {}
        self._planes: dict[tuple[frozenset[tuple[str, str]], str], Plane] = {}
        self._attributes: dict[str, Attributes] = {}
        self._threads: ThreadPoolExecutor | None = None

    async def connect(self, location: Location, options: StoreOptions) -> Source:
        """See `Backend.connect`."""
        from fastsync_s3.buckets import BucketList
        from fastsync_s3.control import Control
        from fastsync_s3.options import S3Options
        from fastsync_s3.store import S3Store

        if location.user is not None or location.port is not None:
            raise UsageError(
                "an s3:// place is a bucket and a key",
                where=str(location),
                hint="another server is named by --endpoint-url or a [places] table",
            )
        if not location.host and location.path.strip("/"):
            raise UsageError(
                "the name of the bucket is missing",
                where=str(location),
                hint="write s3://BUCKET/KEY, with two slashes in front of the bucket",
            )
        chosen = S3Options.of(options.place)
        settings = frozenset(options.place.items())
        control = self._controls.get(settings)
        if control is None:
            control = self._controls[settings] = Control(chosen, options)
        plane = self._planes.get((settings, location.host))
        if plane is None:
            plane = self._plane(control, location.host)
            self._planes[settings, location.host] = plane
        await plane.open(options)
        if not location.host:
            return BucketList(plane, location, up_to(options.retries))
        place = f"{plane.endpoint.origin.authority}/{location.host}"
        attributes = self._attributes.get(place)
        if attributes is None:
            attributes = self._attributes[place] = self._cache(options.state_folder, place)
        if self._threads is None:
            # Digests run without the interpreter's lock: as many as there are processors.
            width = max(2, len(os.sched_getaffinity(0)))
            self._threads = ThreadPoolExecutor(width, "fastsync-s3")
        return S3Store(plane, attributes, self._threads, location, up_to(options.retries))

    @staticmethod
    def _plane(control: Control, bucket: str) -> Plane:
        from fastsync_s3.plane import Plane

        return Plane(control, bucket, control.options)

    @staticmethod
    def _cache(folder: str | None, place: str) -> Attributes:
        from fastsync_s3.attributes import Attributes

        return Attributes(folder, place)

    async def aclose(self) -> None:
        """See `Backend.aclose`."""
        for attributes in self._attributes.values():
            await attributes.aclose()
        for plane in self._planes.values():
            await plane.aclose()
        if self._threads is not None:
            self._threads.shutdown()
