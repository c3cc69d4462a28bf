"""Stores in this process's memory, with every ability or with none, and trouble on demand.

`MemoryBackend` is like a disk: directories, links, attributes, digests, copies within. `BareMemoryBackend`
is like a bucket: files and nothing else, no times, no modes. Both keep the whole contract.

What a store holds belongs to its `Box`, found by the location's host and shared by all who connect to it,
so a test can look inside, script faults and read gauges while a run is on.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import ClassVar, TypeVar

from fastsync.backend import (
    Buffer,
    CopyJob,
    Entry,
    Fault,
    Grid,
    Limits,
    Loaded,
    Page,
    Progress,
    ScanOptions,
    Source,
    StoreOptions,
    WholeJob,
    WriteOptions,
)
from fastsync.errors import (
    Changed,
    Conflict,
    FastsyncError,
    IntegrityError,
    NameRefused,
    NotFound,
    Overtaken,
    Unsupported,
    UsageError,
    Vanished,
    from_os_error,
)
from fastsync.location import Location
from fastsync.names import path_key, safe_parts
from fastsync.testing.box import Box, Node, directory

_PAGE = 1000
_BLOCK = 256 << 10
_PERMISSIONS = 0o777

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


class BareMemoryStore:
    """Files by name: a directory is there as long as something is in it."""

    _keeps_directories = False

    def __init__(self, location: Location, box: Box, options: StoreOptions) -> None:
        self.location = location
        self.limits = box.limits
        self._box = box
        self._follow = options.follow_links
        self._root = tuple(part for part in location.path.split("/") if part)

    def address(self) -> str:
        names = "".join(f"/{name}" for name in self._root)
        return f"{self.location.scheme}://{self.location.host}{names}"

    async def aclose(self) -> None:
        """Nothing to release."""

    async def scan(self, options: ScanOptions) -> AsyncIterator[Page]:
        await self._box.faults.meet("scan", "")
        root = self._box.find(self._root, follow=True)
        if root is None:
            if options.missing_ok:
                return
            raise NotFound("no such directory", where=self._told(""))
        if root.kind != "dir":
            raise Conflict("not a directory", where=self._told(""))
        page = Page([], [])
        for item in self._walk(root, "", options, (id(root),)):
            if isinstance(item, Fault):
                page = Page(page.entries, [*page.faults, item])
            else:
                page.entries.append(item)
            if len(page.entries) >= _PAGE:
                yield page
                page = Page([], [])
                await self._box.faults.meet("scan", "")
        if page.entries or page.faults:
            yield page

    def _walk(
        self, parent: Node, prefix: str, options: ScanOptions, above: tuple[int, ...]
    ) -> Iterator[Entry | Fault]:
        children: list[tuple[bytes, str, Node]] = []
        for name, child in parent.children.items():
            path = prefix + name
            node: Node | None = child
            if child.kind == "link" and options.links == "skip":
                continue
            if child.kind == "link" and options.links == "follow":
                try:
                    node = self._find(path, follow=True)
                except NameRefused as error:
                    yield Fault(path, error.at(self._told(path)))
                    continue
            if node is None:
                yield Fault(path, NotFound("the link leads nowhere", where=self._told(path)))
                continue
            children.append((path_key(name + "/" if node.kind == "dir" else name), path, node))
        for _, path, node in sorted(children, key=itemgetter(0)):
            if node.kind != "dir":
                yield self._entry(path, node, owner=options.owner)
                continue
            shut = not options.recursive or (options.prune is not None and options.prune(path))
            if shut or self._keeps_directories:
                yield self._entry(path, node, owner=options.owner)
            if id(node) in above:
                circle = NameRefused("a link leads back to a directory above it")
                yield Fault(path, circle.at(self._told(path)))
            elif not shut:
                yield from self._walk(node, path + "/", options, (*above, id(node)))

    async def stat(self, path: str, *, follow: bool = False) -> Entry:
        await self._box.faults.meet("stat", path)
        node = self._find(path, follow=follow)
        if node is None:
            raise NotFound("no such file or directory", where=self._told(path))
        return self._entry(path, node)

    async def read(self, entry: Entry, start: int, stop: int | None) -> AsyncIterator[Buffer]:
        node = self._pinned(entry, stop)
        content = memoryview(node.content)[start:stop]
        with self._box.streams.holding(1):
            for offset in range(0, len(content), _BLOCK):
                await self._box.faults.meet("read", entry.path)
                if self._pinned(entry, stop) is not node:
                    raise self._changed(entry)
                block = content[offset : offset + _BLOCK]
                with self._box.held.holding(len(block)):
                    yield block

    async def upload(
        self,
        path: str,
        like: Entry,
        options: WriteOptions,
        part_size: int,
        old: Entry | None = None,
    ) -> BareMemoryUpload:
        return await self._begin(BareMemoryUpload(self, path, like, options, part_size, old))

    async def delete(self, entries: Sequence[Entry]) -> list[FastsyncError | None]:
        return await self._each("delete", entries, lambda entry: entry.path, self._delete)

    # -- how it is kept ------------------------------------------------------------------------------

    def _told(self, path: str) -> str:
        return str(self.location.child(path))

    def _find(self, path: str, *, follow: bool) -> Node | None:
        """What stands at `path`, "" for the root, which may itself be reached through links."""
        return self._box.find((*self._root, *path.split("/")), follow=follow or not path)

    def _entry(self, path: str, node: Node, *, owner: bool = False) -> Entry:
        return Entry(
            path,
            node.kind,
            len(node.content) if node.kind == "file" else None,
            None if self.limits.mtime_step_ns is None else node.mtime_ns,
            (node.mode & self.limits.mode_mask) if self.limits.mode_mask else None,
            node.target,
            str(node.version) if node.kind == "file" else None,
            node.owner if owner else None,
        )

    def _pinned(self, entry: Entry, stop: int | None = None) -> Node:
        """The file that was listed as `entry`, reaching to `stop`, or Changed or Vanished."""
        node = self._find(entry.path, follow=self._follow)
        if node is None:
            raise Vanished("gone since it was listed", where=self._told(entry.path))
        now = self._entry(entry.path, node)
        if (now.kind, now.size, now.version) != (entry.kind, entry.size, entry.version):
            raise self._changed(entry)
        if stop is not None and stop > len(node.content):
            raise self._changed(entry)
        return node

    def _changed(self, entry: Entry) -> Changed:
        return Changed("no longer the file that was listed", where=self._told(entry.path))

    async def _each(
        self,
        method: str,
        items: Sequence[_Item],
        path_of: Callable[[_Item], str],
        act: Callable[[_Item], None],
    ) -> list[FastsyncError | None]:
        """`act` on every item; what goes wrong with one is its answer and does not stop the others."""
        answers: list[FastsyncError | None] = []
        for item in items:
            try:
                await self._box.faults.meet(method, path_of(item))
                act(item)
            except FastsyncError as error:
                answers.append(error.at(self._told(path_of(item))))
            else:
                answers.append(None)
        return answers

    async def _begin(self, upload: _AnyUpload) -> _AnyUpload:
        await self._box.faults.meet("upload", upload.path)
        self._slot(upload.path, make=False)
        if not self.limits.min_part <= upload.part_size <= self.limits.max_part:
            raise UsageError(f"parts of {upload.part_size} bytes", where=self._told(upload.path))
        self._box.uploads.take(1)
        return upload

    def _names(self, path: str) -> tuple[str, ...]:
        return (*self._root, *safe_parts(path))

    def _slot(self, path: str, *, make: bool) -> tuple[Node, str]:
        """The directory that `path` goes into, through no link, and its name in there.

        Without `make`, nothing is made, and the directory may be a stand-in for one that will be.
        Raises NameRefused and Conflict.
        """
        *above, name = self._names(path)
        parent = self._box.root
        for part in above:
            child = parent.children.get(part)
            if child is None:
                child = directory()
                if make:
                    parent.children[part] = child
            if child.kind != "dir":
                raise Conflict(f"{part} is not a directory", where=self._told(path))
            parent = child
        standing = parent.children.get(name)
        if standing is not None and standing.kind == "dir":
            raise Conflict("a directory stands there", where=self._told(path))
        return parent, name

    def _guard(self, path: str, old: Entry | None, options: WriteOptions) -> None:
        """Raises Overtaken when a guarded write finds anything but `old`."""
        if not options.guarded:
            return
        node = self._find(path, follow=False)
        if (node and str(node.version)) != (old and old.version):
            raise Overtaken("somebody else wrote there", where=self._told(path))

    def _store(self, path: str, node: Node) -> Entry:
        """Put `node` at `path`: the one moment at which a write becomes visible."""
        parent, name = self._slot(path, make=True)
        parent.children[name] = node
        parent.mtime_ns = time.time_ns()
        return self._entry(path, node)

    def _node(self, like: Entry, options: WriteOptions, content: bytes = b"") -> Node:
        node = Node(like.kind, time.time_ns(), 0o644, content, like.target)
        self._dress(node, like, options)
        return node

    def _dress(self, node: Node, like: Entry, options: WriteOptions) -> None:
        """Give `node` the attributes of `like` that `options` keep, as precisely as this store can."""
        if options.mtime and like.mtime_ns is not None:
            node.mtime_ns = like.mtime_ns
        if options.mode and like.mode is not None:
            node.mode = like.mode if options.special else like.mode & _PERMISSIONS
        if options.owner and like.owner is not None:
            node.owner = like.owner
        node.mtime_ns -= node.mtime_ns % (self.limits.mtime_step_ns or 1)

    def _delete(self, entry: Entry) -> None:
        names = self._names(entry.path)
        chain = [self._box.find(names[:depth], follow=False) for depth in range(len(names) + 1)]
        node, parent = chain[-1], chain[-2]
        if node is None or parent is None:
            return
        if (node.kind == "dir") != (entry.kind == "dir"):
            raise Conflict(f"it is a {node.kind}, not a {entry.kind}")
        if node.children:
            raise Conflict("the directory is not empty")
        del parent.children[names[-1]]
        parent.mtime_ns = time.time_ns()
        if not self._keeps_directories:
            for depth in range(len(names) - 1, 0, -1):
                inner, outer = chain[depth], chain[depth - 1]
                if inner is not None and outer is not None and not inner.children:
                    del outer.children[names[depth - 1]]


class BareMemoryUpload:
    """A file on its way. A store with a least part size takes whole parts only, as its kind does."""

    def __init__(
        self,
        store: BareMemoryStore,
        path: str,
        like: Entry,
        options: WriteOptions,
        part_size: int,
        old: Entry | None,
    ) -> None:
        self.path = path
        self._grid = Grid(part_size, like.size is None, store.limits.max_part)
        self._old = old
        self.part_size = part_size
        self._store = store
        self._box = store._box
        self._like = like._replace(kind="file", target=None)
        self._options = options
        self._content = bytearray()
        self._ranges: dict[int, int] = {}
        self._open = True

    async def write(self, start: int, data: Buffer) -> None:
        with self._box.streams.holding(1), self._box.held.holding(len(data)):
            await self._box.faults.meet("write", self.path)
            self._take(start, data)

    def _take(self, start: int, data: Buffer) -> None:
        if not self._open:
            raise UsageError("the upload is over", where=self._told())
        stop = start + len(data)
        if self._box.limits.min_part > 1 and not self._is_in_part(start, stop):
            raise UsageError(f"[{start}, {stop}) is not a part", where=self._told())
        if len(self._content) < stop:
            self._content.extend(bytes(stop - len(self._content)))
        self._content[start:stop] = data
        self._ranges[start] = max(stop, self._ranges.get(start, stop))

    def _is_in_part(self, start: int, stop: int) -> bool:
        try:
            number = self._grid.number(start)
        except ValueError:
            return False
        return stop - start <= self._grid.length(number)

    async def commit(self, size: int) -> Entry:
        try:
            await self._box.faults.meet("commit", self.path)
            self._check(size)
            self._store._guard(self.path, self._old, self._options)
            node = self._store._node(self._like, self._options, bytes(self._content))
            made = self._store._store(self.path, node)
        except FastsyncError as error:
            if not error.transient:
                self._close()
            raise
        self._close()
        return made

    def _check(self, size: int) -> None:
        if not self._open:
            raise UsageError("the upload is over", where=self._told())
        reached = 0
        for start, stop in sorted(self._ranges.items()):
            if start > reached:
                break
            part = (
                self._grid.length(self._grid.number(start)) if self._box.limits.min_part > 1 else 0
            )
            if stop < size and stop - start < part:
                raise UsageError(f"[{start}, {stop}) is not a whole part", where=self._told())
            reached = max(reached, stop)
        if reached != size or len(self._content) != size:
            raise IntegrityError(
                f"{reached} of {size} bytes were written without a gap", where=self._told()
            )
        if len(self._ranges) > self._box.limits.max_parts:
            raise Unsupported("too many parts", where=self._told())

    async def abort(self) -> None:
        await self._box.faults.meet("abort", self.path)
        self._close()

    def _close(self) -> None:
        if self._open:
            self._open = False
            self._content = bytearray()
            self._box.uploads.give(1)

    def _told(self) -> str:
        return self._store._told(self.path)


_AnyUpload = TypeVar("_AnyUpload", bound=BareMemoryUpload)


class ObjectMemoryStore(BareMemoryStore):
    """A bucket of objects: times and modes that only a closer look tells, small files in batches, and
    writes that mind what stands there."""

    def _listed(self, path: str, node: Node) -> Entry:
        entry = self._entry(path, node)
        return entry._replace(mtime_ns=None, mode=None, stored_ns=node.stored_ns)

    async def scan(self, options: ScanOptions) -> AsyncIterator[Page]:
        async for page in super().scan(options):
            entries = [
                self._listed(entry.path, node)
                if entry.kind == "file" and (node := self._find(entry.path, follow=False))
                else entry
                for entry in page.entries
            ]
            yield Page(entries, page.faults)

    async def complete(self, entries: Sequence[Entry]) -> list[Entry | FastsyncError]:
        def look(entry: Entry) -> Entry:
            return self._entry(entry.path, self._pinned(entry))

        return await self._answer("complete", entries, lambda entry: entry.path, look)

    async def read_whole(self, entries: Sequence[Entry]) -> list[Loaded | FastsyncError]:
        def load(entry: Entry) -> Loaded:
            node = self._pinned(entry)
            return Loaded(self._entry(entry.path, node), node.content)

        return await self._answer("read_whole", entries, lambda entry: entry.path, load)

    async def write_whole(
        self, jobs: Sequence[WholeJob], options: WriteOptions
    ) -> list[FastsyncError | None]:
        def write(job: WholeJob) -> None:
            self._guard(job.path, job.old, options)
            self._store(job.path, self._node(job.entry, options, bytes(job.data)))

        return await self._each("write_whole", jobs, lambda job: job.path, write)

    async def open_download(self, entry: Entry) -> MemoryDownload:
        await self._box.faults.meet("open_download", entry.path)
        return MemoryDownload(self, self._entry(entry.path, self._pinned(entry)))

    async def _answer(
        self,
        method: str,
        items: Sequence[_Item],
        path_of: Callable[[_Item], str],
        act: Callable[[_Item], _Made],
    ) -> list[_Made | FastsyncError]:
        made: list[_Made | FastsyncError] = []

        def collect(item: _Item) -> None:
            made.append(act(item))

        for item in items:
            (error,) = await self._each(method, [item], path_of, collect)
            if error is not None:
                made.append(error)
        return made


class MemoryDownload:
    """A file being read in parts, each of which counts once."""

    def __init__(self, store: ObjectMemoryStore, entry: Entry) -> None:
        self.entry = entry
        self._store = store
        self._node = store._pinned(entry)
        self._seen: dict[int, bytes] = {}

    async def read_into_file(self, start: int, stop: int, fd: int, progress: Progress) -> None:
        position = start
        async for block in self.read(start, stop):
            try:
                os.pwrite(fd, block, position)
            except OSError as error:
                raise from_os_error(error) from error
            position += len(block)
            progress(len(block))

    async def read(self, start: int, stop: int) -> AsyncIterator[Buffer]:
        part = bytearray()
        async for block in self._store.read(self.entry, start, stop):
            part += block
            yield block
        self._seen[start] = bytes(part)

    async def verify(self, fd: int | None) -> bool:
        await self._store._box.faults.meet("verify", self.entry.path)
        if b"".join(self._seen[start] for start in sorted(self._seen)) != self._node.content:
            raise IntegrityError("the parts do not add up", where=self.entry.path)
        return True


class MemoryStore(BareMemoryStore):
    """A tree with everything: the abilities of the contract that need no disk."""

    _keeps_directories = True
    algorithms = ("sha256", "md5")

    async def upload(
        self,
        path: str,
        like: Entry,
        options: WriteOptions,
        part_size: int,
        old: Entry | None = None,
    ) -> MemoryUpload:
        return await self._begin(MemoryUpload(self, path, like, options, part_size, old))

    def can_copy_from(self, source: Source) -> bool:
        return isinstance(source, BareMemoryStore)

    async def copy_from(
        self, source: Source, jobs: Sequence[CopyJob], options: WriteOptions, progress: Progress
    ) -> list[FastsyncError | None]:
        def copy(job: CopyJob) -> None:
            assert isinstance(source, BareMemoryStore)
            node = source._pinned(job.entry)
            self._store(job.path, self._node(job.entry, options, node.content))
            progress(len(node.content))

        return await self._each("copy_from", jobs, lambda job: job.path, copy)

    async def make_directories(
        self, entries: Sequence[Entry], options: WriteOptions
    ) -> list[FastsyncError | None]:
        def make(entry: Entry) -> None:
            standing = self._find_safely(entry.path)
            if standing is None and entry.path:
                self._store(entry.path, self._node(entry, options))
            elif standing is None:
                top = BareMemoryStore(replace(self.location, path=""), self._box, StoreOptions())
                top._store("/".join(self._root), self._node(entry, options))
            elif standing.kind != "dir":
                raise Conflict(f"a {standing.kind} stands there")

        return await self._each("make_directories", entries, lambda entry: entry.path, make)

    async def make_links(
        self, jobs: Sequence[CopyJob], options: WriteOptions
    ) -> list[FastsyncError | None]:
        def make(job: CopyJob) -> None:
            self._store(job.path, self._node(job.entry, options))

        return await self._each("make_links", jobs, lambda job: job.path, make)

    async def set_attributes(
        self, jobs: Sequence[CopyJob], options: WriteOptions
    ) -> list[FastsyncError | None]:
        def dress(job: CopyJob) -> None:
            node = self._find_safely(job.path)
            if node is None:
                raise NotFound("no such file or directory")
            self._dress(node, job.entry, options)

        return await self._each("set_attributes", jobs, lambda job: job.path, dress)

    def _find_safely(self, path: str) -> Node | None:
        return self._find("/".join(safe_parts(path)) if path else "", follow=False)

    async def digest(self, entry: Entry, algorithm: str) -> str:
        await self._box.faults.meet("digest", entry.path)
        if algorithm not in self.algorithms:
            raise Unsupported(f"no {algorithm} digests here", where=self._told(entry.path))
        content = self._pinned(entry).content
        return hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()

    async def read_into_file(
        self, entry: Entry, start: int, stop: int, fd: int, progress: Progress
    ) -> None:
        node = self._pinned(entry, stop)
        with self._box.streams.holding(1):
            while start < stop:
                await self._box.faults.meet("read_into_file", entry.path)
                if self._pinned(entry, stop) is not node:
                    raise self._changed(entry)
                block = node.content[start : min(start + _BLOCK, stop)]
                try:
                    written = os.pwrite(fd, block, start)
                except OSError as error:
                    raise from_os_error(error) from error
                start += written
                progress(written)


class MemoryUpload(BareMemoryUpload):
    """An upload that can also take its bytes from an open file."""

    async def write_from_file(self, start: int, stop: int, fd: int, progress: Progress) -> None:
        with self._box.streams.holding(1):
            while start < stop:
                await self._box.faults.meet("write_from_file", self.path)
                try:
                    block = os.pread(fd, min(_BLOCK, stop - start), start)
                except OSError as error:
                    raise from_os_error(error) from error
                if not block:
                    raise Changed(f"the file ends before byte {stop}")
                self._take(start, block)
                start += len(block)
                progress(len(block))


class MemoryBackend:
    """Serves `MemoryStore`: like a disk, to the nanosecond and the last mode bit."""

    limits: ClassVar[Limits] = Limits(mtime_step_ns=1, mode_mask=0o7777)
    _boxes: ClassVar[dict[str, Box]] = {}
    _store: ClassVar[type[BareMemoryStore]] = MemoryStore

    @classmethod
    def box(cls, name: str) -> Box:
        """What `name` holds; empty at first."""
        if name not in cls._boxes:
            cls._boxes[name] = Box(replace(cls.limits))
        return cls._boxes[name]

    @classmethod
    def reset(cls) -> None:
        """Forget every box. Stores that are open keep what they have."""
        cls._boxes.clear()

    async def connect(self, location: Location, options: StoreOptions) -> BareMemoryStore:
        box = self.box(location.host)
        await box.faults.meet("connect", "")
        return self._store(location, box, options)

    async def aclose(self) -> None:
        """Nothing to release."""


class BareMemoryBackend(MemoryBackend):
    """Serves `BareMemoryStore`: like a bucket, without times, modes or directories."""

    limits = Limits()
    _boxes: ClassVar[dict[str, Box]] = {}
    _store = BareMemoryStore


class ObjectMemoryBackend(MemoryBackend):
    """Serves `ObjectMemoryStore`: like a bucket whose objects keep times and modes as metadata."""

    limits = Limits(mtime_step_ns=1, mode_mask=0o777, conditional_writes=True)
    _boxes: ClassVar[dict[str, Box]] = {}
    _store = ObjectMemoryStore
