"""The ``file`` scheme: directories of this machine."""

from __future__ import annotations

from fastsync.backend import StoreOptions
from fastsync.errors import UsageError
from fastsync.location import Location
from fastsync_local.crew import Crew
from fastsync_local.store import LocalStore


class LocalBackend:
    """Owns the threads and helper processes that the stores of one run share."""

    def __init__(self) -> None:
        self._crew = Crew()

    async def connect(self, location: Location, options: StoreOptions) -> LocalStore:
        """Nothing is opened yet: a destination may still have to be made. Raises UsageError, also for one
        that others may have led elsewhere."""
        if not location.path:
            raise UsageError("an empty path")
        self._crew.allow(options.jobs, options.streams)
        store = LocalStore(
            self._crew, location, follow=options.follow_links, durable=options.durable
        )
        if options.writes:
            await self._crew.in_thread(store.root.vet)
        return store

    async def aclose(self) -> None:
        """End threads and helper processes, the files in hand finished or dropped."""
        await self._crew.aclose()
