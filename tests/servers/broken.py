"""Methods of a store that break a promise, each called with the whole one first, for mutants.py."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import posixpath
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from fastsync.backend import Buffer, Entry, Fault, Limits, Owner, Page, ScanOptions, WriteOptions
from fastsync.errors import Conflict, FastsyncError, NotFound, PermissionRefused, UsageError

numbers = itertools.count()

# What a broken method is: the whole one first, then its arguments.
Broken = Callable[..., Any]


# -- broken listings ----------------------------------------------------------------------------------


def each_entry(change: Callable[[Entry], Entry | None]) -> Broken:
    async def scan(whole: Broken, options: ScanOptions) -> AsyncIterator[Page]:
        async for page in whole(options):
            entries = [made for entry in page.entries if (made := change(entry)) is not None]
            if entries or page.faults:
                yield Page(entries, page.faults)

    return scan


def scan_with(**changes: object) -> Broken:
    def scan(whole: Broken, options: ScanOptions) -> Any:
        return whole(dataclasses.replace(options, **changes))  # type: ignore[arg-type]

    return scan


def each_page(change: Callable[[list[Entry], ScanOptions], list[Entry]]) -> Broken:
    async def scan(whole: Broken, options: ScanOptions) -> AsyncIterator[Page]:
        async for page in whole(options):
            yield Page(change(page.entries, options), page.faults)

    return scan


async def first_page(whole: Broken, options: ScanOptions) -> AsyncIterator[Page]:
    async for page in whole(options):
        yield page
        return


async def an_empty_page(whole: Broken, options: ScanOptions) -> AsyncIterator[Page]:
    async for page in whole(options):
        yield page
    yield Page([])


async def empty_is_missing(whole: Broken, options: ScanOptions) -> AsyncIterator[Page]:
    pages = [page async for page in whole(options)]
    if not pages:
        raise NotFound("nothing there")
    for page in pages:
        yield page


async def missing_is_empty(whole: Broken, options: ScanOptions) -> AsyncIterator[Page]:
    try:
        async for page in whole(options):
            yield page
    except (NotFound, Conflict):
        return


async def without_faults(whole: Broken, options: ScanOptions) -> AsyncIterator[Page]:
    async for page in whole(options):
        if page.entries:
            yield Page(page.entries)


async def raises_faults(whole: Broken, options: ScanOptions) -> AsyncIterator[Page]:
    async for page in whole(options):
        for fault in page.faults:
            assert isinstance(fault, Fault)
            raise fault.error
        yield page


async def one_at_a_time(whole: Broken, options: ScanOptions) -> AsyncIterator[Page]:
    store = whole.__self__  # type: ignore[attr-defined]
    busy = vars(store).setdefault("busy", [])
    if busy:
        return
    busy.append(1)
    await asyncio.sleep(0)
    async for page in whole(options):
        yield page
    busy.pop()


async def remembered(whole: Broken, options: ScanOptions) -> AsyncIterator[Page]:
    store = whole.__self__  # type: ignore[attr-defined]
    if "kept" not in vars(store):
        store.kept = [page async for page in whole(options)]
    for page in store.kept:
        yield page


def renamed(change: Callable[[str], str]) -> Broken:
    return each_entry(lambda entry: entry._replace(path=change(entry.path)))


def a_clock(entry: Entry) -> Entry:
    return entry._replace(mtime_ns=next(numbers))


# -- broken reads -------------------------------------------------------------------------------------


def each_block(change: Callable[[bytes], bytes]) -> Broken:
    async def read(whole: Broken, *args: Any) -> AsyncIterator[Buffer]:
        async for block in whole(*args):
            yield change(bytes(block))

    return read


async def of_now(
    whole: Broken, entry: Entry, start: int, stop: int | None
) -> AsyncIterator[Buffer]:
    now = await whole.__self__.stat(entry.path)  # type: ignore[attr-defined]
    stop = None if stop is None else min(stop, now.size)
    async for block in whole(now, min(start, now.size), stop):
        yield block


async def by_halves(
    whole: Broken, entry: Entry, start: int, stop: int | None
) -> AsyncIterator[Buffer]:
    assert entry.size is not None
    half = min(256 << 10, entry.size)
    for first, last in ((0, half), (half, entry.size)):
        now = await whole.__self__.stat(entry.path)  # type: ignore[attr-defined]
        async for block in whole(now, first, last):
            yield block


async def nothing_if_gone(
    whole: Broken, entry: Entry, start: int, stop: Any
) -> AsyncIterator[Buffer]:
    try:
        await whole.__self__.stat(entry.path)  # type: ignore[attr-defined]
    except NotFound:
        return
    async for block in whole(entry, start, stop):
        yield block


async def not_found_if_gone(whole: Broken, entry: Entry, *args: Any) -> AsyncIterator[Buffer]:
    await whole.__self__.stat(entry.path)  # type: ignore[attr-defined]
    async for block in whole(entry, *args):
        yield block


async def as_far_as_it_goes(
    whole: Broken, entry: Entry, start: int, stop: int | None
) -> AsyncIterator[Buffer]:
    now = await whole.__self__.stat(entry.path)  # type: ignore[attr-defined]
    async for block in whole(now, start, None if stop is None else min(stop, now.size)):
        yield block


async def from_the_start(
    whole: Broken, entry: Entry, _start: int, stop: int | None
) -> AsyncIterator[Buffer]:
    async for block in whole(entry, 0, stop):
        yield block


async def stays_open(whole: Broken, *args: Any) -> AsyncIterator[Buffer]:
    store = whole.__self__  # type: ignore[attr-defined]
    lock = vars(store).setdefault("lock", asyncio.Lock())
    if lock.locked():
        raise Conflict("somebody reads")
    await lock.acquire()
    async for block in whole(*args):
        yield block
    lock.release()


async def through_links(whole: Broken, *args: Any) -> AsyncIterator[Buffer]:
    store = whole.__self__  # type: ignore[attr-defined]
    store._follow = True
    node = store._find(args[0].path, follow=True)
    async for block in whole(store._entry(args[0].path, node), *args[1:]):
        yield block


# -- broken calls -------------------------------------------------------------------------------------


def answering(change: Callable[[Any], Any]) -> Broken:
    """A call that is made, and of which another answer is given."""

    async def call(whole: Broken, *args: Any, **named: Any) -> Any:
        return change(await whole(*args, **named))

    return call


def asking(change: Callable[..., tuple[Any, ...]]) -> Broken:
    """A call with other arguments than were given."""

    async def call(whole: Broken, *args: Any, **_named: Any) -> Any:
        return await whole(*change(*args))

    return call


async def all_went_well(_whole: Broken, items: Sequence[Any], *_args: Any) -> list[None]:
    """An answer for each item, and nothing is done."""
    return [None] * len(items)


async def or_raise(whole: Broken, *args: Any) -> Any:
    """The first error of a batch ends it."""
    for answer in await whole(*args):
        if isinstance(answer, FastsyncError):
            raise answer
    return None


def told(options: WriteOptions, **changes: bool) -> WriteOptions:
    return dataclasses.replace(options, **changes)


def upload_with(**changes: bool) -> Broken:
    return asking(
        lambda p, like, options, size, old=None: (p, like, told(options, **changes), size, old)
    )


def upload_like(change: Callable[[Entry], Entry]) -> Broken:
    return asking(lambda p, like, *rest: (p, change(like), *rest))


async def refuses_unknown(whole: Broken, path: str, like: Entry, *args: Any) -> Any:
    if like.mtime_ns is None and like.size is None:
        raise UsageError("no size")
    return await whole(path, like, *args)


async def needs_parents(whole: Broken, path: str, *args: Any) -> Any:
    above = path.rpartition("/")[0]
    await whole.__self__.stat(above)  # type: ignore[attr-defined]
    return await whole(path, *args)


async def minds_modes(whole: Broken, path: str, *args: Any) -> Any:
    above = await whole.__self__.stat(path.rpartition("/")[0])  # type: ignore[attr-defined]
    if not (above.mode or 0) & 0o200:
        raise PermissionRefused("the directory is not writable")
    return await whole(path, *args)


async def visible_at_once(whole: Broken, *args: Any) -> Any:
    await (await whole(*args)).commit(0)
    return await whole(*args)


async def clears_the_way(whole: Broken, path: str, *args: Any) -> Any:
    whole.__self__._box.root.children.pop(path.split("/")[0], None)  # type: ignore[attr-defined]
    return await whole(path, *args)


async def tidies_names(whole: Broken, path: str, *args: Any) -> Any:
    return await whole(posixpath.normpath(path).lstrip("./") or "x", *args)


async def goes_through_links(whole: Broken, path: str, *args: Any) -> Any:
    store = whole.__self__  # type: ignore[attr-defined]
    top, slash, rest = path.partition("/")
    node = store._find(top, follow=False)
    if slash and node is not None and node.kind == "link":
        target = store._find(top, follow=True)
        if target is not None:
            target.children[rest] = store._node(args[0], args[1])
    return await whole(path, *args)


async def writes_to_the_target(whole: Broken, path: str, *args: Any) -> Any:
    node = whole.__self__._find(path, follow=False)  # type: ignore[attr-defined]
    return await whole(node.target if node is not None and node.target else path, *args)


async def deletes_all(whole: Broken, entries: Sequence[Entry]) -> Any:
    for entry in entries:
        whole.__self__._box.root.children.pop(entry.path.split("/")[0], None)  # type: ignore[attr-defined]
    return await whole(entries)


async def deletes_trees(whole: Broken, entries: Sequence[Entry]) -> Any:
    for entry in entries:
        node = whole.__self__._find(entry.path, follow=False)  # type: ignore[attr-defined]
        if node is not None:
            node.children.clear()
    return await whole(entries)


async def minds_what_is_gone(whole: Broken, entries: Sequence[Entry]) -> Any:
    for entry in entries:
        await whole.__self__.stat(entry.path)  # type: ignore[attr-defined]
    return await whole(entries)


async def whatever_it_is(whole: Broken, entries: Sequence[Entry]) -> Any:
    kinds = [(await whole.__self__.stat(entry.path)).kind for entry in entries]  # type: ignore[attr-defined]
    return await whole([e._replace(kind=kind) for e, kind in zip(entries, kinds, strict=True)])


async def closes_once(whole: Broken) -> None:
    store = whole.__self__  # type: ignore[attr-defined]
    if getattr(store, "is_closed", False):
        raise UsageError("closed already")
    store.is_closed = True
    await whole()


async def always_something(whole: Broken, path: str, *, follow: bool = False) -> Entry:
    try:
        return await whole(path, follow=follow)  # type: ignore[no-any-return]
    except NotFound:
        return Entry(path, "file", 0, None)


async def files_alone(whole: Broken, path: str, *, follow: bool = False) -> Entry:
    found: Entry = await whole(path, follow=follow)
    if found.kind == "dir":
        raise NotFound("no such file")
    return found


async def digest_of_now(whole: Broken, entry: Entry, algorithm: str) -> Any:
    return await whole(await whole.__self__.stat(entry.path), algorithm)  # type: ignore[attr-defined]


async def into_the_wrong_place(
    whole: Broken, entry: Entry, start: int, stop: int, fd: int, progress: Any
) -> None:
    data = b"".join([bytes(b) async for b in whole.__self__.read(entry, start, stop)])  # type: ignore[attr-defined]
    os.pwrite(fd, data, 0)
    progress(len(data))


async def into_file_of_now(whole: Broken, entry: Entry, start: int, stop: int, *args: Any) -> None:
    now = await whole.__self__.stat(entry.path)  # type: ignore[attr-defined]
    await whole(now, start, min(stop, now.size), *args)


# -- broken uploads -----------------------------------------------------------------------------------


async def appends(whole: Broken, _start: int, data: Buffer) -> None:
    upload = whole.__self__  # type: ignore[attr-defined]
    position = vars(upload).setdefault("position", 0)
    upload.position += len(data)
    await whole(position, data)


async def keeps_the_buffer(whole: Broken, start: int, data: Buffer) -> None:
    vars(whole.__self__).setdefault("late", []).append((whole, start, data))  # type: ignore[attr-defined]


async def then_writes(whole: Broken, size: int) -> Any:
    for write, start, data in vars(whole.__self__).pop("late", []):  # type: ignore[attr-defined]
        await write(start, data)
    return await whole(size)


async def first_counts(whole: Broken, start: int, data: Buffer) -> None:
    seen = vars(whole.__self__).setdefault("seen", set())  # type: ignore[attr-defined]
    if start not in seen:
        seen.add(start)
        await whole(start, data)


async def no_zeros(whole: Broken, start: int, data: Buffer) -> None:
    if any(data):
        await whole(start, data)


SHARED: dict[str, Buffer] = {}


async def shares_a_buffer(whole: Broken, start: int, data: Buffer) -> None:
    SHARED["data"] = bytes(data)
    await asyncio.sleep(0)
    await whole(start, SHARED["data"])


async def commits_what_there_is(whole: Broken) -> None:
    upload = whole.__self__  # type: ignore[attr-defined]
    if upload._open:
        await upload.commit(len(upload._content))


async def undoes_a_commit(whole: Broken) -> None:
    upload = whole.__self__  # type: ignore[attr-defined]
    if not upload._open:
        await upload._store.delete([upload._like._replace(path=upload.path)])
    await whole()


async def fills_gaps(whole: Broken, size: int) -> Any:
    upload = whole.__self__  # type: ignore[attr-defined]
    upload._ranges = {0: size}
    upload._content.extend(bytes(max(0, size - len(upload._content))))
    return await whole(size)


async def commits_everything(whole: Broken, size: int) -> Any:
    return await whole(max(size, len(whole.__self__._content)))  # type: ignore[attr-defined]


async def is_late(whole: Broken, size: int) -> Any:
    """Whoever commits second is not seen."""
    upload = whole.__self__  # type: ignore[attr-defined]
    node = upload._store._find(upload.path, follow=False)
    made = await whole(size)
    if node is not None:
        upload._store._store(upload.path, node)
    return made


async def removes_first(whole: Broken, size: int) -> Any:
    upload = whole.__self__  # type: ignore[attr-defined]
    upload._box.root.children.clear()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return await whole(size)


async def leaves_a_trace(whole: Broken, *args: Any) -> Any:
    box = whole.__self__._box  # type: ignore[attr-defined]
    box.put("trace", b"")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del box.root.children["trace"]
    return await whole(*args)


async def pads(whole: Broken, start: int, stop: int, fd: int, progress: Any) -> None:
    data = os.pread(fd, stop - start, start).ljust(stop - start, b"\0")
    await whole.__self__.write(start, data)  # type: ignore[attr-defined]
    progress(len(data))


async def says_nothing(whole: Broken, *args: Any) -> Any:
    """Progress is not reported."""
    return await whole(*args[:-1], lambda _: None)


async def zeros(_whole: Broken, start: int, stop: int) -> AsyncIterator[Buffer]:
    yield bytes(stop - start)


# -- broken batches -----------------------------------------------------------------------------------


async def halves(whole: Broken, jobs: Sequence[Any], *args: Any) -> Any:
    store = whole.__self__  # type: ignore[attr-defined]
    for job in jobs:
        store._box.put("/".join((*store._root, job.path)), b"half")
        await asyncio.sleep(0)
    return await whole(jobs, *args)


async def halves_from(whole: Broken, source: Any, jobs: Sequence[Any], *args: Any) -> Any:
    store = whole.__self__  # type: ignore[attr-defined]
    for job in jobs:
        store._box.put("/".join((*store._root, job.path)), b"half")
        await asyncio.sleep(0)
    return await whole(source, jobs, *args)


async def entries_of_now(whole: Broken, entries: Sequence[Entry], *args: Any) -> Any:
    now = []
    for entry in entries:
        try:
            now.append(await whole.__self__.stat(entry.path))  # type: ignore[attr-defined]
        except NotFound:
            now.append(entry)
    return await whole(now, *args)


async def opens_what_is_there(whole: Broken, entry: Entry) -> Any:
    return await whole(await whole.__self__.stat(entry.path))  # type: ignore[attr-defined]


async def writes_a_probe(whole: Broken) -> bool:
    Path(whole.__self__.location.path, "probe").write_bytes(b"")  # type: ignore[attr-defined]
    return bool(await whole())


async def somebody_elses(whole: Broken) -> AsyncIterator[Any]:
    async for page in whole():
        yield [leftover._replace(state="gone") for leftover in page]


async def links_are_copies(whole: Broken, pairs: Sequence[tuple[str, str]]) -> Any:
    return [None] * len(pairs)


NOBODY = Owner(1, 1)
NARROW = Limits(min_part=10, max_part=5)


def without(**fields: object) -> Callable[[Entry], Entry]:
    return lambda entry: entry._replace(**fields)  # type: ignore[arg-type]


def by_name(entries: list[Entry], _options: ScanOptions) -> list[Entry]:
    return sorted(entries, key=lambda entry: entry.path)


def backwards(entries: list[Entry], _options: ScanOptions) -> list[Entry]:
    return entries[::-1]


def less_than_hinted(entries: list[Entry], options: ScanOptions) -> list[Entry]:
    return [e for e in entries if not options.starting_with or e.path == options.starting_with]


def a_second_later(like: Entry) -> Entry:
    return like._replace(mtime_ns=None if like.mtime_ns is None else like.mtime_ns + 10**9)
