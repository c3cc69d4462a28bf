"""What speaks against a copy, a move or a removal, whatever stands at its places: found without touching any
of them, so that a batch is refused before its first line runs.

What hangs on what stands there is looked at only where the addresses make it likely that one place is inside
the other.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final

from fastsync.backend import LocalFiles, offers
from fastsync.errors import FastsyncError, UsageError
from fastsync.events import Silent
from fastsync.location import LOCAL_SCHEME, Location
from fastsync.session import Request, Session, Shared, as_sink
from fastsync.settings import Side
from fastsync.wildcards import find
from fastsync.works import (
    Works,
    backup_for,
    into,
    is_directory,
    refuse_overlap,
    write_options,
)

# Each place is a store, which costs some memory.
_MOST_PLACES: Final = 1000


class Foresight:
    """Looks at lines of a batch, all with the connections of the run itself."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._stack = AsyncExitStack()
        self._sessions: dict[int, Session] = {}
        self._addresses: dict[tuple[int, Location, bool], str] = {}
        self._apart: dict[tuple[int, Location, Location], bool] = {}
        self._tops: dict[tuple[int, Location, Location], bool] = {}
        self._flat: dict[tuple[int, str, str, str, str], bool] = {}

    async def __aenter__(self) -> Foresight:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    async def tops(
        self, request: Request, here: Location, there: Location
    ) -> tuple[Location, Location] | None:
        """The places above two directories of which all that is below is reached in the same way, names with
        slashes and all: buckets, say. None where directories count."""
        if _judges_paths(request):
            return None
        key = (id(request), here.scheme, here.host, there.scheme, there.host)
        is_flat = self._flat.get(key)
        if is_flat is None:
            is_flat = self._flat[key] = await self._is_flat(request, here, there)
        if not is_flat:
            return None
        above = dataclasses.replace(here, path="/"), dataclasses.replace(there, path="/")
        known = self._tops.get((id(request), here, there))
        if known is None:
            asked = request.place_settings
            known = self._tops[id(request), here, there] = dict(asked(here, "source")) == dict(
                asked(above[0], "source")
            ) and dict(asked(there, "destination")) == dict(asked(above[1], "destination"))
        return above if known else None

    async def above(
        self, request: Request, source: Location, there: Location
    ) -> tuple[Location, Location, str] | None:
        """Of a file on a disk that goes to such a place: a directory far above it, the top of the place, and
        the file's path below the first. None where the file's directory counts, or that of the place."""
        names = [name for name in source.path.split("/") if name not in ("", ".")]
        if source.scheme != LOCAL_SCHEME or ".." in names or _judges_paths(request):
            return None
        key = (id(request), "", "", there.scheme, there.host)
        is_flat = self._flat.get(key)
        if is_flat is None:
            is_flat = self._flat[key] = await self._is_flat_sink(request, there)
        top = dataclasses.replace(there, path="/")
        asked = request.place_settings
        if not is_flat or dict(asked(there, "destination")) != dict(asked(top, "destination")):
            return None
        if dict(asked(source.parent(), "source")):
            return None
        root = "/" if source.path.startswith("/") else "."
        return dataclasses.replace(source, path=root), top, "/".join(names)

    async def _is_flat_sink(self, request: Request, there: Location) -> bool:
        try:
            sink = await (await self._session(request)).open_sink(there)
        except FastsyncError:
            return False
        return sink.limits.raw_names

    async def _is_flat(self, request: Request, here: Location, there: Location) -> bool:
        try:
            session = await self._session(request)
            source, sink = await session.open(here), await session.open_sink(there)
            write_options(request.settings, sink)
        except FastsyncError:
            return False  # the look at the line says why
        return source.limits.raw_names and sink.limits.raw_names

    async def parts(self, request: Request, here: Location, there: Location) -> bool:
        """True when no copy of a single file from a directory to another can be wrong."""
        key = (id(request), here, there)
        known = self._apart.get(key)
        if known is None:
            known = self._apart[key] = await self._parts(request, here, there)
        return known

    async def _parts(self, request: Request, here: Location, there: Location) -> bool:
        if request.settings.recursive:
            return False
        try:
            session = await self._session(request)
            ours = await self._address(session, here, is_written=False)
            theirs = await self._address(session, there, is_written=True)
            # A name of one may be a link to the other.
            may_link = offers(await session.open_sink(there), LocalFiles)
        except UsageError:
            return False
        except FastsyncError:
            return True
        if here.scheme != there.scheme:
            return True
        return not may_link and not (ours + "/").startswith(theirs + "/")

    async def refuse(
        self, verb: str, sources: Sequence[Location], target: Location | None, request: Request
    ) -> None:
        """Raises UsageError for what cannot be asked. A place that is out of reach is no reason: what comes
        of that is for the line itself to tell."""
        try:
            session = await self._session(request)
            if verb in ("mv", "rm"):
                for source in sources:
                    as_sink(await session.open(source.parent()))
            if target is None:
                return
            if len(sources) > 1:
                await Works(session, target).begin(sources)
            for source in sources:
                await self._refuse_pair(session, verb, source, target)
        except UsageError:
            raise
        except FastsyncError:
            return

    async def _refuse_pair(
        self, session: Session, verb: str, source: Location, target: Location
    ) -> None:
        settings = session.request.settings
        if settings.backup_dir is not None:
            store, sink = await session.open(source), await session.open_sink(target)
            await backup_for(session, store, sink, target)
        if not settings.raw and (wild := find(source)) is not None:
            base, sink = await session.open(wild.base), await session.open_sink(target)
            refuse_overlap(base, sink, wild)
            return
        ours = await self._place(session, source)
        theirs = await self._place(session, target, is_written=True)
        is_same = ours == theirs
        landing = theirs
        if theirs == ours.rpartition("/")[0]:
            # A file goes into the directory that holds it; a tree is for below.
            is_same = (
                is_same or verb != "sync" or not await is_directory(session, source, side="source")
            )
        elif verb != "sync" and target.is_directory_like and into(target, source) != target:
            landing = f"{theirs}/{source.name}"
            is_same = is_same or landing == ours
        if is_same:
            raise UsageError("source and destination are the same place", where=str(target))
        is_tree = verb in ("sync", "mv") or settings.recursive
        if is_tree and (_inside(landing, ours) or _inside(ours, landing)):
            # In a bucket a file may go there: it has directories and files of one name.
            if await is_directory(session, source, side="source"):
                place = target if landing == theirs else into(target, source)
                refuse_overlap(await session.open(source), await session.open_sink(place))

    async def _place(
        self, session: Session, location: Location, *, is_written: bool = False
    ) -> str:
        """The address of a place. Of many files in one directory only that is opened."""
        if location.is_directory_like or location.stands_alone or not location.name:
            return await self._address(session, location, is_written=is_written)
        above = await self._address(session, location.parent(), is_written=is_written)
        address = f"{above}/{location.name}"
        if location.scheme == LOCAL_SCHEME and not _leads_elsewhere(location):
            return address
        if offers(await session.open(location.parent()), LocalFiles):
            # A link to a directory is that directory; one to a file is replaced.
            whole = (await session.open(location)).address().rstrip("/")
            side: Side = "destination" if is_written else "source"
            if whole != address and await is_directory(session, location, side=side):
                return whole
        return address

    async def _address(self, session: Session, location: Location, *, is_written: bool) -> str:
        key = (id(session), location, is_written)
        known = self._addresses.get(key)
        if known is None:
            if is_written:
                sink = await session.open_sink(location)
                write_options(session.request.settings, sink)
                known = sink.address().rstrip("/")
            else:
                known = (await session.open(location)).address().rstrip("/")
            self._addresses[key] = known
        return known

    async def _session(self, request: Request) -> Session:
        if len(self._addresses) > _MOST_PLACES:
            await self._stack.aclose()
            self._sessions.clear()
            self._addresses.clear()
        session = self._sessions.get(id(request))
        if session is None:
            request.filter()  # a pattern that is wrong
            quiet = dataclasses.replace(request, observer=Silent(), shared=self._shared)
            session = await self._stack.enter_async_context(Session(quiet))
            self._sessions[id(request)] = session
        return session


def _judges_paths(request: Request) -> bool:
    """True where it matters from which directory on a path is seen."""
    settings = request.settings
    return bool(request.rules) or settings.max_depth is not None or settings.gitignore


def _leads_elsewhere(location: Location) -> bool:
    """Whether a name on this disk may stand for another place. Opening that for each name of thousands would
    cost more than copying small files."""
    return location.name in (".", "..") or os.path.islink(location.path)


def _inside(inner: str, outer: str) -> bool:
    return inner.startswith(outer + "/")
