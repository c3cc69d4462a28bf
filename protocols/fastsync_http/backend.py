"""The protocols `http` and `https`: web servers, to be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastsync.backend import Source, StoreOptions
from fastsync.location import Location

if TYPE_CHECKING:
    from fastsync_http.client import Client
    from fastsync_http.identity import Identity
    from fastsync_http.targets import Target


class HttpBackend:
    """See `Backend`. Places at one server, in one name, share connections."""

    def __init__(self) -> None:
        self._clients: dict[tuple[object, ...], Client] = {}

    async def connect(self, location: Location, options: StoreOptions) -> Source:
        """See `Backend.connect`."""
        from fastsync_http.digests import wanted
        from fastsync_http.identity import identify
        from fastsync_http.store import HttpStore
        from fastsync_http.targets import target_of

        target = target_of(location)
        told = options.place.get("checksum_of")
        checksum = None if told is None else wanted(told)
        client = self._client(target, identify(location, options.place), options)
        return HttpStore(client, location, target, checksum)

    def _client(self, target: Target, identity: Identity, options: StoreOptions) -> Client:
        from fastsync_http.client import Client

        key = (target.origin, identity.headers)
        client = self._clients.get(key)
        if client is None:
            client = self._clients[key] = Client(identity, options)
        return client

    async def aclose(self) -> None:
        """See `Backend.aclose`."""
        for client in self._clients.values():
            await client.aclose()
