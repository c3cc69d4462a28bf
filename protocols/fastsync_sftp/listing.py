"""Listing a tree in byte order, with many directories being read ahead of the one that is told of."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import AsyncIterator, Callable
from itertools import islice
from typing import Final, NamedTuple

from fastsync.backend import Entry, Fault, Kind, Owner, Page, ScanOptions
from fastsync.errors import (
    Conflict,
    FastsyncError,
    ListingError,
    NameRefused,
    NotFound,
    Transient,
)
from fastsync.names import path_key
from fastsync_sftp import packets
from fastsync_sftp.directories import Directories
from fastsync_sftp.names import check_name, join
from fastsync_sftp.packets import (
    CLOSE,
    EOF,
    HANDLE,
    LSTAT,
    NAME,
    OPENDIR,
    READDIR,
    READLINK,
    REALPATH,
    REMOVE,
    STAT,
    Attributes,
)
from fastsync_sftp.pool import Pool
from fastsync_sftp.scripts import Script
from fastsync_sftp.session import Session
from fastsync_sftp.temporary import TEMPORARY, is_abandoned

_FIRST_PAGE: Final = 256
_PAGE: Final = 2048
# Directories read ahead, and entries that wait for their turn; then reading ahead pauses.
_AHEAD: Final = 64
_ENTRIES_AHEAD: Final = 50_000
# Requests for a directory's next names that are sent at once: OpenSSH has up to 100 names in an answer.
_FIRST_READS: Final = 3
_MOST_READS: Final = 16
# What no server has: names in one directory, answers without a new name, bytes in a path. Without end there
# is nothing to sort.
_MOST_NAMES: Final = 10_000_000
_MOST_REPEATS: Final = 1000
_LONGEST_PATH: Final = 16 << 10
# Names after which it is seen to how many of them are different.
_MANY_NAMES: Final = 100_000
# Links, or files without attributes, that are looked at in one go.
_LOOKS: Final = 128
_TRIES: Final = 4
# Names that are sorted in one go.
_SORTED: Final = 1 << 14


class _Found(NamedTuple):
    """What is in a directory, sorted by key ("name", or "name/" of what is entered as a directory)."""

    entries: list[tuple[str, Entry]]
    faults: list[Fault]


class _Directory:
    """One that is known, and read sooner or later. `real` is where it really is, followed links and
    all, asked for only where links are followed."""

    __slots__ = ("children", "parent", "path", "real", "task")

    def __init__(self, path: str, parent: _Directory | None) -> None:
        self.path = path
        self.parent = parent
        self.real: bytes | None = None
        self.task: asyncio.Task[_Found] | None = None
        self.children: deque[_Directory] = deque()


class Listing:
    """One scan."""

    def __init__(
        self,
        pool: Pool,
        root: bytes,
        directories: Directories,
        options: ScanOptions,
        where: Callable[[str], str],
    ) -> None:
        self._pool = pool
        self._root = root
        self._directories = directories
        self._options = options
        self._where = where
        self._follow = options.links == "follow"
        self._entries_ahead = 0
        self._reading = 0

    async def pages(self) -> AsyncIterator[Page]:
        """All of it. Raises NotFound, Conflict, and what makes the listing incomplete."""
        root = _Directory("", None)
        try:
            found = await self._read(root)
        except NotFound:
            if self._options.missing_ok:
                return
            raise NotFound("no such directory", where=self._where("")) from None
        entries: list[Entry] = []
        faults: list[Fault] = list(found.faults)
        size = _FIRST_PAGE
        stack = [(found.entries, {child.path: child for child in root.children}, 0)]
        tops = [root]
        try:
            while stack:
                rows, children, index = stack.pop()
                directory = tops.pop()
                while index < len(rows):
                    key, entry = rows[index]
                    index += 1
                    entries.append(entry)
                    if len(entries) >= size:
                        yield Page(entries, faults)
                        entries, faults, size = [], [], _PAGE
                    child = children.pop(entry.path, None) if key.endswith("/") else None
                    if child is None:
                        continue
                    directory.children.popleft()
                    stack.append((rows, children, index))
                    tops.append(directory)
                    self._read_ahead(child, tops)
                    assert child.task is not None
                    if not child.task.done() and len(entries) + len(faults) >= _FIRST_PAGE:
                        yield Page(entries, faults)
                        entries, faults, size = [], [], _PAGE
                    inner = await self._result(child, faults)
                    self._entries_ahead -= len(inner.entries)
                    rows, index = inner.entries, 0
                    faults += inner.faults
                    children = {each.path: each for each in child.children}
                    directory = child
        finally:
            await self._stop(root)
        if entries or faults:
            yield Page(entries, faults)

    async def _result(self, child: _Directory, faults: list[Fault]) -> _Found:
        assert child.task is not None
        try:
            return await child.task
        except NotFound as error:
            # Gone since its parent was read: that is how it looks to the next listing, too.
            if self._follow:
                faults.append(Fault(child.path, error))
        except (Transient, ListingError):
            raise
        except FastsyncError as error:
            faults.append(Fault(child.path, error))
        return _Found([], [])

    # -- reading ahead -------------------------------------------------------------------------------

    def _read_ahead(self, first: _Directory, tops: list[_Directory]) -> None:
        """Begin to read `first`, and what will be told of after it."""
        if first.task is None:
            self._begin(first)
        if self._entries_ahead >= _ENTRIES_AHEAD or self._reading >= _AHEAD:
            return
        waiting: list[_Directory] = []
        for directory in (*tops, first):
            waiting += reversed(list(islice(directory.children, 2 * _AHEAD)))
        seen = 0
        while waiting and self._reading < _AHEAD and seen < 4 * _AHEAD:
            directory = waiting.pop()
            seen += 1
            if directory.task is None:
                self._begin(directory)
            else:
                waiting += reversed(list(islice(directory.children, 2 * _AHEAD)))

    def _begin(self, directory: _Directory) -> None:
        self._reading += 1
        directory.task = asyncio.create_task(self._read_child(directory))

    async def _read_child(self, directory: _Directory) -> _Found:
        try:
            found = await self._read(directory)
            self._entries_ahead += len(found.entries)
        finally:
            self._reading -= 1
        return found

    async def _stop(self, root: _Directory) -> None:
        tasks = []
        waiting = [root]
        while waiting:
            directory = waiting.pop()
            waiting.extend(directory.children)
            if directory.task is not None:
                directory.task.cancel()
                tasks.append(directory.task)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, directory: _Directory) -> _Found:
        """Read one; a cut connection is met with another one."""
        attempt = 0
        while True:
            try:
                return await self._pool.run(lambda session: self._script(session, directory))
            except packets.BrokenProtocol as error:
                where = error.where or self._where(directory.path)
                raise ListingError(error.message, where=where) from error
            except Transient:
                attempt += 1
                if attempt >= _TRIES:
                    raise
                await asyncio.sleep(0.1 * 2**attempt)

    # -- one directory -------------------------------------------------------------------------------

    def _script(self, session: Session, directory: _Directory) -> Script[_Found]:
        path = join(self._root, directory.path)
        where = self._where(directory.path)
        first = [packets.on_path(OPENDIR, path)]
        if not directory.path:
            first.append(packets.on_path(STAT, path))
        if self._follow:
            first.append(packets.on_path(REALPATH, path))
        replies = yield first
        handle: bytes | None = None
        try:
            if replies[0][0] == HANDLE:
                handle = packets.must_be_handle(replies[0])
            if not directory.path and packets.must_be_attributes(replies[1]).kind != "dir":
                raise Conflict("not a directory")
            if handle is None:
                raise packets.error_of(replies[0])
            if self._follow:
                directory.real = packets.must_be_name(replies[-1])
                self._refuse_circle(directory)
            names = yield from self._names(handle)
        except FastsyncError as error:
            error.at(where)
            if directory.path and isinstance(error, NotFound):
                yield from self._must_be_gone(path, error)
            raise
        finally:
            if handle is not None:
                session.submit(packets.request(CLOSE, handle), lambda _kind, _body: None)
        return (yield from self._entries(directory, names))

    def _must_be_gone(self, path: bytes, error: NotFound) -> Script[None]:
        """What only cannot be read is missing from the listing, and not from the server."""
        (reply,) = yield [packets.on_path(LSTAT, path)]
        try:
            packets.must_be_attributes(reply)
        except NotFound:
            return
        raise FastsyncError("the directory is there, but not to be read", where=error.where)

    def _names(self, handle: bytes) -> Script[list[tuple[bytes, Attributes]]]:
        found: list[tuple[bytes, Attributes]] = []
        reads, repeats, many = _FIRST_READS, 0, _MANY_NAMES
        while True:
            replies = yield [packets.request(READDIR, handle)] * reads
            for reply in replies:
                if reply[0] == NAME:
                    names = packets.read_names(reply[1])
                    if not names:
                        raise ListingError("the server sent an empty part of a listing")
                    new = [each for each in names if each[0] not in (b".", b"..")]
                    repeats += not new
                    found += new
                elif packets.status_of(reply) == EOF:
                    return found
                else:
                    raise packets.error_of(reply)
            if len(found) >= many:
                many = 2 * len(found)
                different: set[bytes] = set()
                for start in range(0, len(found), _PAGE):
                    different.update(name for name, _ in found[start : start + _PAGE])
                    yield []
                repeats += len(found) - len(different)
            if repeats > _MOST_REPEATS or len(found) > _MOST_NAMES:
                raise ListingError("the server's listing has no end")
            reads = min(2 * reads, _MOST_READS)

    def _refuse_circle(self, directory: _Directory) -> None:
        above = directory.parent
        while above is not None:
            if above.real == directory.real:
                raise NameRefused("a symbolic link leads back to a directory above it")
            above = above.parent

    def _entries(
        self, directory: _Directory, names: list[tuple[bytes, Attributes]]
    ) -> Script[_Found]:
        prefix = directory.path + "/" if directory.path else ""
        if len(prefix) > _LONGEST_PATH:
            raise ListingError("directories without end", where=self._where(""))
        faults: list[Fault] = []
        found: dict[str, Entry] = {}
        vague: list[tuple[str, Attributes]] = []
        debris: list[bytes] = []
        owner = self._options.owner
        # A directory of a million names must keep nobody waiting, not even to be forgotten: what is done with
        # is let go at once.
        names.reverse()
        while names:
            raw, attrs = names.pop()
            if not len(names) % _PAGE:
                yield []
            if TEMPORARY.fullmatch(raw):
                if self._options.sweep and is_abandoned(raw, attrs):
                    debris.append(raw)
                continue
            try:
                name = check_name(raw)
            except NameRefused as error:
                faults.append(Fault(prefix + error.where if error.where else prefix, error))
                continue
            if name in found:
                faults.append(Fault(prefix + name, ListingError("the server listed it twice")))
                continue
            found[name] = entry = entry_of(prefix + name, attrs, owner)
            if attrs.mode is None or (entry.kind == "link" and self._options.links != "skip"):
                vague.append((name, attrs))
        if debris:
            at = join(self._root, directory.path).rstrip(b"/") + b"/"
            yield [packets.on_path(REMOVE, at + raw) for raw in debris]
        for start in range(0, len(vague), _LOOKS):
            yield from self._look(prefix, vague[start : start + _LOOKS], found, faults)
        keys: dict[str, Entry] = {}
        while found:
            name, entry = found.popitem()
            if not len(found) % _PAGE:
                yield []
            if entry.kind != "link" or self._options.links == "keep":
                keys[name + "/" if entry.kind == "dir" else name] = entry
        ordered = yield from in_order(list(keys))
        rows: list[tuple[str, Entry]] = []
        children: list[_Directory] = []
        for start in range(0, len(ordered), _PAGE):
            page = [(key, keys.pop(key)) for key in ordered[start : start + _PAGE]]
            rows += page
            children += [
                _Directory(entry.path, directory) for key, entry in page if self._enters(key, entry)
            ]
            yield []
        if not self._follow:
            self._directories.seen(directory.path)
        directory.children = deque(children)
        return _Found(rows, faults)

    def _enters(self, key: str, entry: Entry) -> bool:
        """Whether this is a directory that is to be read, too."""
        options = self._options
        if not (options.recursive and key.endswith("/")):
            return False
        if options.prune is not None and options.prune(entry.path):
            return False
        start, inside = options.starting_with, entry.path + "/"
        return inside.startswith(start) or start.startswith(inside)

    def _look(
        self,
        prefix: str,
        vague: list[tuple[str, Attributes]],
        found: dict[str, Entry],
        faults: list[Fault],
    ) -> Script[None]:
        """Complete entries of which a listing does not tell enough."""
        untold = [name for name, attrs in vague if attrs.mode is None]
        if untold:
            replies = yield [
                packets.on_path(LSTAT, join(self._root, prefix + name)) for name in untold
            ]
            for name, reply in zip(untold, replies, strict=True):
                try:
                    attrs = packets.must_be_attributes(reply)
                    found[name] = entry_of(prefix + name, attrs, self._options.owner)
                except FastsyncError as error:
                    del found[name]
                    if not isinstance(error, NotFound):
                        faults.append(Fault(prefix + name, error.at(self._where(prefix + name))))
        links = [name for name, _ in vague if name in found and found[name].kind == "link"]
        if not links or self._options.links == "skip":
            return
        replies = yield [
            packets.on_path(STAT if self._follow else READLINK, join(self._root, prefix + name))
            for name in links
        ]
        for name, reply in zip(links, replies, strict=True):
            path = prefix + name
            try:
                if self._follow:
                    attrs = packets.must_be_attributes(reply)
                    found[name] = entry_of(path, attrs, self._options.owner)
                else:
                    target = packets.must_be_name(reply).decode("utf-8", "surrogateescape")
                    found[name] = found[name]._replace(target=target)
            except FastsyncError as error:
                del found[name]
                # Where links are followed, "no such file" is what one that leads nowhere says.
                if self._follow or not isinstance(error, NotFound):
                    faults.append(Fault(path, error.at(self._where(path))))


def in_order(names: list[str]) -> Script[list[str]]:
    """Names, each of them once, in the order of listings. Sorting a million takes a second, in which nothing
    else could run, not even beside a thread: parts are sorted, and then what belongs together of each."""
    parts: list[list[str]] = []
    # Byte order is mostly the order of the strings.
    is_plain = True
    for start in range(0, len(names), _SORTED):
        part = names[start : start + _SORTED]
        is_plain = is_plain and all(map(str.isascii, part))
        parts.append(part)
        yield []
    key = None if is_plain else path_key
    for part in parts:
        part.sort(key=key)
        yield []
    if len(parts) < 2:
        return parts[0] if parts else []
    # Evenly from each part, so that what lies between two of them is about as long as a part.
    seen = sorted((name for part in parts for name in part[:: _SORTED // 64]), key=key)
    bounds = seen[64::64]
    starts = [0] * len(parts)
    ordered: list[str] = []
    for bound in [*bounds, None]:
        together: list[str] = []
        for number, part in enumerate(parts):
            stop = len(part)
            if bound is not None:
                at = bound if key is None else key(bound)
                stop = bisect_left(part, at, starts[number], key=key)  # type: ignore[arg-type]
            together += part[starts[number] : stop]
            starts[number] = stop
        together.sort(key=key)  # a merge, as each piece is in order
        ordered += together
        yield []
    return ordered


_KINDS: Final[dict[int, Kind]] = {0o100000: "file", 0o040000: "dir", 0o120000: "link"}


def entry_of(path: str, attrs: Attributes, with_owner: bool) -> Entry:
    mode = attrs.mode
    if mode is None:
        kind: Kind = "file"
    else:
        kind = _KINDS.get(mode & 0o170000) or packets.kind_of(mode)
    return Entry(
        path,
        kind,
        attrs.size if kind == "file" else None,
        None if attrs.mtime is None else attrs.mtime * 1_000_000_000,
        None if mode is None else mode & 0o7777,
        None,
        None,
        Owner(attrs.uid, attrs.gid)
        if with_owner and attrs.uid is not None and attrs.gid is not None
        else None,
    )
