"""From places and a request to works for the engine: what is compared how, what is refused, what goes where.

Everything that can be wrong with what was asked for is found here, before anything is touched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from fastsync.backend import (
    CompletesEntries,
    Entry,
    Fault,
    FoldsNames,
    KeepsDirectories,
    KeepsLinks,
    KeepsXattrs,
    LocalFiles,
    MakesHardLinks,
    Page,
    ScanOptions,
    SetsAttributes,
    Sink,
    Source,
    TellsAncestry,
    TellsHardLinks,
    WriteOptions,
    closing,
    offers,
)
from fastsync.comparing import common_algorithm, find_hashes
from fastsync.engine import Engine
from fastsync.errors import (
    Conflict,
    FastsyncError,
    NotFound,
    PermissionRefused,
    UsageError,
    caused,
)
from fastsync.filters import Chooser, Filter
from fastsync.location import Location
from fastsync.names import path_key
from fastsync.patience import Luck, bad_luck, patiently, persistently, up_to
from fastsync.plan import Comparison, DeleteGate, PlanPage, Rules, Step, plan
from fastsync.session import Request, Session, located, named, passes_over, untrusted, whole
from fastsync.settings import Settings, Side
from fastsync.wildcards import Wildcard, find, something
from fastsync.work import Budgets, Record, Work

# A file can be written to twice in a moment that its time cannot tell apart.
RECENT_NS: Final = 2_000_000_000

# What a file needs where another stands.
Decide: TypeAlias = Callable[[Entry, Entry], tuple[Step, str]]

# -- what is asked for -------------------------------------------------------------------------------


def rules_for(request: Request, chosen: Filter, source: Source, sink: Sink) -> Rules:
    """How to compare and what to keep, between these two stores."""
    settings = request.settings
    steps = [store.limits.mtime_step_ns for store in (source, sink)]
    precision = max((step for step in steps if step is not None), default=1)
    window_ns = precision - 1
    if settings.modify_window is not None:
        window_ns = max(window_ns, round(settings.modify_window * 1e9))
    special = 0o7777 if settings.preserve_special else 0o777
    versions = source.limits.content_versions
    comparison = comparison_for(settings, source, sink)
    now = time.time_ns()
    return Rules(
        filter=chosen,
        comparison=comparison,
        window_ns=window_ns,
        mode_mask=source.limits.mode_mask & sink.limits.mode_mask & special,
        owner=settings.owner,
        directories=isinstance(sink, KeepsDirectories),
        directory_times=settings.dir_times and isinstance(sink, KeepsDirectories),
        links=settings.links == "keep" and isinstance(sink, KeepsLinks),
        update=settings.update,
        ignore_times=settings.ignore_times,
        ignore_existing=settings.ignore_existing,
        existing=settings.existing,
        delete=settings.delete,
        delete_excluded=settings.delete_excluded,
        show_skips=request.observer.wants_skips
        or settings.manifest is not None
        or settings.xattrs
        or settings.hard_links,
        completes=(offers(source, CompletesEntries), offers(sink, CompletesEntries)),
        same_versions=versions is not None and versions == sink.limits.content_versions,
        flat=source.limits.raw_names and isinstance(sink, KeepsDirectories),
        digests=common_algorithm(source, sink) is not None and offers(sink, SetsAttributes),
        recent_ns=(now - RECENT_NS, now + RECENT_NS) if comparison == "mtime" else None,
    )


def comparison_for(settings: Settings, source: Source, sink: Sink) -> Comparison:
    """Size and time where both sides keep times; else digests, else size and "newer than the copy"."""
    if settings.checksum:
        return "checksum"
    if settings.size_only:
        return "size"
    if source.limits.mtime_step_ns is not None and sink.limits.mtime_step_ns is not None:
        return "mtime"
    return "newer" if common_algorithm(source, sink) is None else "checksum"


async def chosen_for(session: Session, source: Source) -> Filter:
    """What of a source takes part. Raises UsageError, ListingError for a .gitignore out of reach."""
    choosers: list[Chooser] = [] if session.files is None else [session.files]
    settings = session.request.settings
    if settings.gitignore:
        from fastsync.chosen import ignores_of  # only for those who ask for it

        options = ScanOptions(links="follow" if settings.links == "follow" else "keep")
        prune = session.request.filter(choosers).prune
        choosers.append(await ignores_of(source, options, prune))
    return session.request.filter(choosers)


def refuse_list(session: Session, location: Location) -> None:
    """Raises UsageError for a list of files in what is no directory, or in several."""
    if session.files is not None:
        raise UsageError(
            "--files-from lists what is in one directory",
            where=str(location),
            hint="name only that",
        )


def write_options(settings: Settings, sink: Sink, source: Source | None = None) -> WriteOptions:
    """How `sink` writes what comes from `source`. Raises UsageError for a promise that it cannot keep."""
    guards = sink.limits.conditional_writes
    # Whoever wants content to count, and has both sides at hand, wants that of the copy to count, too.
    is_local = source is not None and offers(source, LocalFiles) and offers(sink, LocalFiles)
    if settings.fail_on_conflict and not guards:
        raise UsageError(
            f"--fail-on-conflict: {sink.location.scheme}:// cannot tell when others write there",
            where=str(sink.location),
        )
    return WriteOptions(
        owner=settings.owner,
        special=settings.preserve_special,
        inplace=settings.inplace,
        durable=settings.durable,
        sparse=settings.sparse,
        guarded=settings.fail_on_conflict or (settings.ignore_existing and guards),
        resumable=settings.resume,
        reread=settings.verify == "reread" or (settings.checksum and is_local),
    )


def _gate(settings: Settings) -> DeleteGate | None:
    if not settings.delete:
        return None
    limit = settings.max_delete
    return DeleteGate(
        files=limit.files if limit else None,
        percent=limit.percent if limit else None,
        allow_empty_source=settings.allow_empty_source,
    )


def _scan_options(
    request: Request, chosen: Filter, rules: Rules, source: Source, sink: Sink
) -> tuple[ScanOptions, ScanOptions]:
    """How to list the source and the destination."""
    settings = request.settings
    prune = None if chosen.is_empty else chosen.prune
    ours = ScanOptions(
        links="follow" if settings.links == "follow" else "keep",
        owner=settings.owner,
        prune=prune,
        details=rules.comparison in ("mtime", "newer") and not rules.ignore_times,
        raw=source.limits.raw_names and sink.limits.raw_names,
    )
    theirs = dataclasses.replace(
        ours,
        links="keep",
        missing_ok=True,
        prune=prune if prune is None or not settings.delete_excluded else chosen.prune_scope,
        sweep=not settings.dry_run,
    )
    return ours, theirs


def engine_for(session: Session, record: Record | None = None) -> Engine:
    """The engine of a run; `record` writes down what a dry run would do."""
    request, settings = session.request, session.request.settings
    return Engine(
        Budgets(
            streams=settings.parallel_streams,
            jobs=settings.jobs,
            chunk_size=settings.chunk_size,
            memory=settings.buffer_size,
            retries=settings.retry_count,
            small=settings.small_file_threshold,
            pace=session.pace,
            shared=(request.shared.streams, request.shared.memory) if request.shared else None,
        ),
        request.observer,
        dry_run=settings.dry_run,
        log=session.uploads,
        record=record,
    )


# -- what stands where -------------------------------------------------------------------------------


async def standing_at(session: Session, store: Source) -> Entry | None:
    """What is at a destination, None for nothing. Raises UsageError where nothing can be."""
    try:
        return await persistently(lambda: store.stat("", follow=True), session.may_retry)
    except NotFound:
        return None
    except Conflict as error:
        raise _in_the_way(store.location) from error


def _in_the_way(location: Location, what: str = "a file") -> UsageError:
    return UsageError(
        f"{what} stands where the directory should go",
        where=str(location),
        hint="name another destination, or move the file away",
    )


async def is_directory(session: Session, location: Location, *, side: Side = "destination") -> bool:
    """True when a directory stands at a place. Raises UsageError where nothing can be."""
    store = await session.open(location, side=side)
    try:
        standing = await standing_at(session, store)
    except PermissionRefused:
        if not _takes_blindly(store):
            raise
        return False
    return standing is not None and standing.kind == "dir"


def _takes_blindly(sink: Source) -> bool:
    """Whether somebody may write there who may not look: a bucket to which logs are delivered."""
    return not offers(sink, KeepsDirectories)


def refuse_overlap(source: Source, sink: Source, wild: Wildcard | None = None) -> None:
    """Raises UsageError for places of which one is, or holds, the other."""
    ours, theirs = source.address().rstrip("/"), sink.address().rstrip("/")
    if ours == theirs:
        raise UsageError("source and destination are the same place", where=str(sink.location))
    inside = theirs.startswith(ours + "/")
    if not inside and not ours.startswith(theirs + "/"):
        if wild is None:
            _refuse_kin(source, sink)
        return
    outer, inner = (ours, theirs) if inside else (theirs, ours)
    # "logs/*.gz" goes to "logs/old" without being met there again.
    if wild is None or wild.reaches(inner[len(outer) + 1 :]):
        what = ("destination", "source") if inside else ("source", "destination")
        raise UsageError(f"the {what[0]} is inside the {what[1]}", where=str(sink.location))


def _refuse_kin(source: Source, sink: Source) -> None:
    """The same for what has another address in each: the names of a bind mount, say."""
    where = str(sink.location)
    if not (offers(source, TellsAncestry) and offers(sink, TellsAncestry)):
        return
    ours, theirs = source.ancestry(), sink.ancestry()
    for mine, others, what in (
        (ours[0], theirs, "the destination is the source, or inside it, by another name"),
        (theirs[0], ours, "the source is inside the destination, by another name"),
    ):
        if mine is not None and mine in others:
            raise UsageError(what, where=where)


async def backup_for(session: Session, source: Source, sink: Sink, target: Location) -> Sink | None:
    """Where the old state of what is below `sink` goes, by its path below `target`. Raises UsageError
    for a place that the run itself reads or changes."""
    name = session.request.settings.backup_dir
    if name is None:
        return None
    place = located(name)
    if place.is_stream:
        raise UsageError("standard input and output keep no backup", where="--backup-dir")
    top = await session.open_sink(place)
    for store, what in ((source, "source"), (sink, "destination")):
        ours, theirs = store.address().rstrip("/") + "/", top.address().rstrip("/") + "/"
        if ours.startswith(theirs) or theirs.startswith(ours):
            raise UsageError(
                f"the backup overlaps with the {what}",
                where=str(place),
                hint="name a place beside it",
            )
    below = sink.location.path.rstrip("/").removeprefix(target.path.rstrip("/")).strip("/")
    return await session.open_sink(place.child(below)) if below else top


async def standing_for_file(
    sink: Sink, to: str, source: tuple[str, str] | None, settings: Settings
) -> Entry | None:
    """What stands where a file should go, `source` being the address of its directory and its name.

    Raises UsageError if it cannot go there. Where it may be written and not looked at, nothing is known to
    stand there: PermissionRefused if `settings` want something of it.
    """
    where = str(sink.location.child(to))
    if source == (sink.address().rstrip("/"), to):
        raise UsageError("source and destination are the same file", where=where)
    try:
        standing = await persistently(lambda: sink.stat(to), up_to(settings.retry_count))
    except NotFound:
        return None
    except Conflict as error:
        raise _in_the_way(sink.location) from error
    except PermissionRefused:
        wanted = settings.update or settings.existing or settings.backup_dir is not None
        if wanted or not _takes_blindly(sink):
            raise
        return None
    leads_to = standing.kind
    if standing.kind == "link":
        with contextlib.suppress(FastsyncError):
            leads_to = (await sink.stat(to, follow=True)).kind
    if leads_to == "special":
        # Somebody means /dev/null, /dev/stdout or a disk; a file in its place would help nobody.
        raise UsageError(
            "a device, a pipe or a socket stands there",
            where=where,
            hint="name another destination, or remove it first",
        )
    return standing


async def _check_tree(
    session: Session, source: Source, sink: Source, wild: Wildcard | None = None
) -> Entry | None:
    """What stands where a tree should go. Raises UsageError if it cannot go there."""
    refuse_overlap(source, sink, wild)
    try:
        standing = await standing_at(session, sink)
    except FastsyncError as error:
        found = untrusted(error, sink)
        raise found from caused(found, error)
    if standing is not None and standing.kind != "dir":
        raise _in_the_way(sink.location)
    return standing


def into(directory: Location, location: Location) -> Location:
    """Where `location` lands when it is copied into `directory`: the contents alone for ``dir/``."""
    name = location.name
    return directory if name in ("", ".", "..") else directory.child(name)


# -- trees and files ---------------------------------------------------------------------------------


def _raise(_entry: Entry, error: FastsyncError) -> None:
    raise error


async def tree(
    session: Session,
    source: Source,
    target: Location,
    *,
    is_sync: bool,
    wild: Wildcard | None = None,
    root: Entry | None = None,
    top: Location | None = None,
) -> Work:
    """Everything below one place, or what a wildcard means of it, to another. `root` is what stands at
    the place, if the caller has looked already; `top` is the destination of the whole run."""
    request = session.request
    settings = request.settings
    sink = await session.open_sink(target)
    write = write_options(settings, sink, source)
    standing = await _check_tree(session, source, sink, wild)
    backup = await backup_for(session, source, sink, top or target)
    if settings.checksum:
        await find_hashes(source, sink)
    chosen = await chosen_for(session, source)
    rules = rules_for(request, chosen, source, sink)
    read_options, sink_options = _scan_options(request, chosen, rules, source, sink)
    if wild is None:
        ours, theirs = source.scan(read_options), sink.scan(sink_options)
    else:
        takes_all = settings.recursive or is_sync
        read_options = dataclasses.replace(read_options, recursive=takes_all)
        ours = wild.scan(source, read_options, needs_recursion=True)
        ours = something(ours, f"{source.location}{wild.pattern}")
        theirs = wild.scan(sink, dataclasses.replace(sink_options, recursive=takes_all))
    if session.files is not None:
        missing = request.observer.note if settings.ignore_missing_args else None
        ours = session.files.met(ours, source, missing)
    if is_sync:
        ours, theirs = whole(ours, source), whole(theirs, sink)
    else:
        rules = dataclasses.replace(rules, delete=False, conflict_hint=None)
        ours = _or_fault(ours, source)
    if root is None and wild is None:
        root = await persistently(lambda: source.stat("", follow=True), session.may_retry)
    is_new = root is not None and standing is None and isinstance(sink, KeepsDirectories)
    if root and is_new and isinstance(sink, KeepsDirectories) and not settings.dry_run:
        # So that an empty source, too, gives what was asked for.
        await patiently(
            lambda some: sink.make_directories(some, write),
            [root],
            done=lambda _some: None,
            failed=_raise,
            may_retry=session.may_retry,
        )
    folds = offers(sink, FoldsNames) and await persistently(sink.folds_names, session.may_retry)
    if folds:
        from fastsync.spelling import told_apart  # for disks that few have

        ours = told_apart(ours, sink, chosen.keep)
    return Work(
        source,
        sink,
        plan(ours, theirs, rules),
        write,
        gate=_gate(settings) if is_sync else None,
        root=root if is_new or rules.directory_times else None,
        directory_times=rules.directory_times,
        protects=wild is not None or not chosen.is_empty,
        differ=rules.attributes_differ,
        decide=_settled(rules),
        yields=settings.ignore_existing,
        backup=backup,
        xattrs=kept(request, settings.xattrs, KeepsXattrs, source, sink),
        wants_links=settings.links == "keep",
        hard_links=kept(request, settings.hard_links, TellsHardLinks, source)
        and kept(request, settings.hard_links, MakesHardLinks, sink),
    )


def kept(request: Request, is_asked: bool, ability: type, *stores: Source) -> bool:
    """Whether all of the stores know what is asked for; that one does not is worth a note."""
    if not is_asked:
        return False
    lacking = next((store for store in stores if not isinstance(store, ability)), None)
    if lacking is not None:
        what = "keeps no extended attributes" if ability is KeepsXattrs else "tells no hard links"
        what = "makes no hard links" if ability is MakesHardLinks else what
        request.observer.note(f"{lacking.location.scheme}:// {what}")
    return lacking is None


def _settled(rules: Rules) -> Decide:
    return lambda entry, old: rules.decide(entry, old, is_settled=True)


async def _or_fault(pages: AsyncIterator[Page], store: Source) -> AsyncIterator[Page]:
    """A listing of which a failure is no more than an entry that is missing: others may do better."""
    try:
        async for page in whole(pages, store):
            yield page
    except FastsyncError as error:
        yield Page([], [Fault("", error)])


def files(
    request: Request,
    source: Source,
    sink: Sink,
    pairs: Sequence[tuple[Entry, Entry | None]],
    rename: Callable[[str], str] | None = None,
) -> Work:
    """Files of one directory, which the user named, each with what stands in its place; `rename` gives
    them other names."""
    chosen = request.filter()
    rules = rules_for(request, chosen, source, sink)
    rules = dataclasses.replace(rules, delete=False, conflict_hint=None)
    entries = [entry for entry, _ in pairs]
    if not request.settings.owner:
        entries = [entry._replace(owner=None) for entry in entries]
    standing = [old._replace(path=entry.path) for entry, old in pairs if old is not None]
    for listing in (entries, standing):
        listing.sort(key=lambda entry: path_key(entry.path + "/" * (entry.kind == "dir")))
    pages = plan(_one_page(entries), _one_page(standing), rules)
    return Work(
        source,
        sink,
        _as_itself(pages) if source.location.stands_alone else pages,
        write_options(request.settings, sink, source),
        rename=rename,
        differ=rules.attributes_differ,
        decide=_settled(rules),
        yields=request.settings.ignore_existing,
        xattrs=kept(request, request.settings.xattrs, KeepsXattrs, source, sink),
    )


async def file(session: Session, store: Source, target: Location) -> Work:
    """One file, which the user named, to exactly `target`."""
    return await file_at(session, store, await session.open_sink(target.parent()), target.name)


async def file_at(session: Session, store: Source, sink: Sink, to: str) -> Work:
    """The same, to the path `to` of a sink."""
    source, name = await _directory(session, store), store.location.name
    address = source.address().rstrip("/")
    standing = await standing_for_file(sink, to, (address, name), session.request.settings)
    entry = await persistently(lambda: store.stat("", follow=True), session.may_retry)
    entry = entry._replace(path=name)
    if session.request.settings.checksum:
        await find_hashes(source, sink)
    work = files(session.request, source, sink, [(entry, standing)], lambda _name: to)
    if standing is not None:
        work.backup = await backup_for(session, sink, sink, sink.location)
    return work


async def _directory(session: Session, store: Source) -> Source:
    """The store that reads the file at `store`: its directory's, where that knows it."""
    location = store.location
    if location.stands_alone:
        return store
    return await session.open(location.parent(), follow=True)


async def _as_itself(pages: AsyncIterator[PlanPage]) -> AsyncIterator[PlanPage]:
    """Actions on a file of which the store is the file: it goes by a name, and is read without one."""
    async with closing(pages) as planned:
        async for page in planned:
            for actions in (page.now, page.later, page.skips):
                actions[:] = [
                    action._replace(entry=action.entry._replace(path="")) for action in actions
                ]
            yield page


async def _one_page(entries: list[Entry]) -> AsyncGenerator[Page, None]:
    if entries:
        yield Page(entries)


@dataclass(slots=True, eq=False, repr=False)
class Part:
    """A directory, what a wildcard means of it, or files of it with what stands in their places, on the
    way to a sink. `root` is what stands at a directory's place."""

    source: Source
    sink: Sink
    root: Entry | None = None
    files: list[tuple[Entry, Entry | None]] | None = None
    wild: Wildcard | None = None


class Works:
    """What `cp` was asked for: everything is checked before the first work is made."""

    def __init__(self, session: Session, target: Location) -> None:
        self._session = session
        self._request = session.request
        self._target = target
        self._into = False
        self._parts: list[Part] = []
        # Files that the user named travel together, as long as no directory is merged with them.
        self._files: dict[Location, Part] = {}
        self._claims: dict[str, tuple[str, bool]] = {}
        self._merges = False
        # Directories that were named, with what they are called in the directory above.
        self.directories: list[Location] = []
        self.comparison = ""

    async def begin(self, locations: Sequence[Location]) -> None:
        """Look at the destination of these sources. Raises UsageError."""
        if len(locations) > 1:
            refuse_list(self._session, locations[1])
        target = self._target
        self._into = target.is_directory_like or await is_directory(self._session, target)
        if not self._into and (len(locations) > 1 or any(map(self._wild, locations))):
            raise UsageError(
                "several sources need a directory as destination",
                where=str(target),
                hint="end it with a / to have it made",
            )

    async def add_all(
        self, locations: Sequence[Location], unusable: Callable[[Location, FastsyncError], None]
    ) -> None:
        """Begin, and add each of them; of one that cannot be, `unusable` hears, unless it may be missing.
        Where many in a row could not be looked at, it ends with a note. Raises UsageError."""
        await self.begin(locations)
        luck = Luck()
        for location in locations:
            try:
                await self.add(location)
            except UsageError:
                raise
            except FastsyncError as error:
                if not passes_over(self._request, location, error):
                    unusable(location, error)
                luck.learn(0, bad_luck(error), error)
                if luck.over is not None:
                    self._request.observer.note(f"stopped early: {luck.over}")
                    break
            else:
                luck.learn(1, 0, None)

    @property
    def parts(self) -> list[Part]:
        """What becomes a work each; what is done already may be taken out before the first is made. None
        for sources that are merged, which have to come one after the other."""
        return [] if self._merges and len(self._parts) > 1 else self._parts

    def name_at(self, part: Part, entry: Entry) -> str:
        """What a file of a part is called below the part's sink."""
        assert part.files is not None
        return entry.path if self._into else self._target.name

    @property
    def sources(self) -> list[Source]:
        """The stores that are read, one per work."""
        return [part.source for part in self._parts]

    def list_again(self, number: int) -> AsyncIterator[Page] | None:
        """The source of a work, listed as it was; None for files that were named one by one."""
        part = self._parts[number]
        if part.files is not None:
            return None
        settings, chosen = self._request.settings, self._request.filter()
        options = ScanOptions(
            links="follow" if settings.links == "follow" else "keep",
            prune=None if chosen.is_empty else chosen.prune,
            missing_ok=True,
        )
        pages = part.source.scan(options)
        if part.wild is not None:
            pages = part.wild.scan(part.source, options)
        return whole(pages, part.source)

    def _wild(self, location: Location) -> Wildcard | None:
        return None if self._request.settings.raw else find(location)

    async def add(self, location: Location) -> None:
        """One more source. Raises UsageError for what cannot be asked, else why it cannot be copied."""
        session, settings = self._session, self._request.settings
        wild = self._wild(location)
        if wild is not None:
            await self._add_wild(wild)
            return
        store = await session.open(location, follow=settings.links == "follow")
        try:
            entry = await named(session, store)
        except FastsyncError as error:
            found = untrusted(error, store) if settings.recursive else error
            raise found from caused(found, error)
        place = into(self._target, location) if self._into else self._target
        if entry.kind != "dir":
            refuse_list(session, location)
            await self._add_file(store, entry, place)
            return
        if not settings.recursive:
            raise UsageError("it is a directory", where=str(location), hint="-R copies directories")
        sink = await session.open_sink(place)
        if self._into and place != self._target:
            above = await session.open_sink(self._target)
            with contextlib.suppress(NotFound, Conflict):
                if (await above.stat(place.name)).kind == "link":
                    raise _in_the_way(place, "a link")
        await _check_tree(session, store, sink)
        if place == self._target:
            self._merge()
        elif not self._claim(store, place, is_directory=True):
            return
        self.directories.append(location)
        self._append(Part(store, sink, entry))

    async def _add_wild(self, wild: Wildcard) -> None:
        session = self._session
        store = await session.open(wild.base, follow=self._request.settings.links == "follow")
        sink = await session.open_sink(self._target)
        await _check_tree(session, store, sink, wild)
        self._merge()
        self._append(Part(store, sink, wild=wild))

    def _merge(self) -> None:
        self._merges = True
        self._files.clear()

    def _append(self, part: Part) -> None:
        write_options(self._request.settings, part.sink)  # refused now rather than half way
        self._parts.append(part)
        if not self.comparison:
            self.comparison = comparison_for(self._request.settings, part.source, part.sink)

    async def _add_file(self, store: Source, entry: Entry, place: Location) -> None:
        if not self._claim(store, place, is_directory=False):
            return
        source, name = await _directory(self._session, store), store.location.name
        if (part := self._files.get(source.location)) is None:
            sink = await self._session.open_sink(place.parent())
            part = self._files[source.location] = Part(source, sink, files=[])
            self._append(part)
        address = part.source.address().rstrip("/")
        settings = self._request.settings
        standing = await standing_for_file(part.sink, place.name, (address, name), settings)
        assert part.files is not None
        part.files.append((entry._replace(path=name), standing))

    def _claim(self, store: Source, place: Location, *, is_directory: bool) -> bool:
        """False for a source that was named before. Directories of one name are merged, files of one
        name would lose all but one."""
        ours = (store.address(), is_directory)
        other = self._claims.setdefault(str(place), ours)
        if other is ours:
            return True
        if other == ours:
            return False
        if not (is_directory and other[1]):
            raise UsageError("two of the sources would have the same name", where=str(place))
        self._merges = True
        return True

    def _renamed(self, _name: str) -> str:
        return self._target.name

    async def made(self) -> AsyncIterator[Work]:
        """The works, each made when the one before it is planned."""
        for index, part in enumerate(self._parts):
            if part.files is None:
                place = part.sink.location
                work = await tree(
                    self._session,
                    part.source,
                    place,
                    is_sync=False,
                    wild=part.wild,
                    root=part.root,
                    top=self._target if self._into else None,
                )
            else:
                if self._request.settings.checksum:
                    await find_hashes(part.source, part.sink)
                rename = None if self._into else self._renamed
                work = files(self._request, part.source, part.sink, part.files, rename)
                top = self._target if self._into else part.sink.location
                work.backup = await backup_for(self._session, part.sink, part.sink, top)
            work.last = self._merges and index > 0
            yield work
