"""The contract between the core and a protocol: what a store promises, and nothing about how.

A protocol is a class named by an entry point in the group ``fastsync.protocols``; one instance serves one
run and owns what its stores share (connections, helper processes). `Backend.connect` opens a store at a
location; from then on every path is relative to that location and "/"-separated.

What a store *is* comes as data (`Limits`). What it can do beyond the minimum comes as small abilities,
runtime-checkable protocols that are asked for with ``isinstance`` once per run. Nothing here has a default
that lies: a store that cannot do something does not have the method.

The promises, each stated as a test in `fastsync.testing`:

1. A scan yields entries in ascending byte order of the full path, directories compared as "name/", is
   complete, or says what it missed (`Fault`), or raises.
2. A read delivers exactly the version that was listed, or raises `Changed`.
3. A write is invisible until `Upload.commit`; after `abort`, or a commit that raised, nothing of it is left.
4. Only errors from `fastsync.errors` come out.
5. Cancellation at any await leaves nothing half done that later calls could see.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import (
    Final,
    Literal,
    NamedTuple,
    Protocol,
    TypeAlias,
    TypeGuard,
    TypeVar,
    runtime_checkable,
)

from fastsync.errors import FastsyncError
from fastsync.location import Location

Kind: TypeAlias = Literal["file", "dir", "link", "special"]
Buffer: TypeAlias = bytes | bytearray | memoryview

# What one read, or one batch of `CopiesWithin`, may hold in memory by itself.
READ_BUFFER: Final = 1 << 20


class Owner(NamedTuple):
    """Who owns an entry, as numbers of the system it was listed on."""

    uid: int
    gid: int


class Entry(NamedTuple):
    """One line of a listing.

    A tuple, and the same tuple for the same state: two pages of unchanged entries compare equal without
    the interpreter, which is what makes a sync with nothing to do cheap (see `fastsync.plan`).

    `path` is relative to the store's location; bytes that are not UTF-8 are surrogate escapes
    (PEP 383). `size` is in bytes, None when the store cannot tell before the end. `mtime_ns` is Unix
    nanoseconds, truncated to what the store keeps, None when unknown. `mode` has permission bits only,
    special bits (setuid, setgid, sticky) included, None when the store has none. `target` is a
    link's text. `version` is an opaque validator (an ETag); None where size and mtime are the best there
    is. `owner` is filled when `ScanOptions.owner` asks for it. `stored_ns` is when the store wrote it,
    in stores where that says nothing about the file's own time (an object's LastModified).
    """

    path: str
    kind: Kind
    size: int | None
    mtime_ns: int | None
    mode: int | None = None
    target: str | None = None
    version: str | None = None
    owner: Owner | None = None
    stored_ns: int | None = None


class Fault(NamedTuple):
    """Something a scan had to leave out. Any fault forbids deletes in this run (rule D)."""

    path: str
    error: FastsyncError


class Page(NamedTuple):
    """A run of consecutive entries, at least one entry or fault."""

    entries: list[Entry]
    faults: Sequence[Fault] = ()


LinkPolicy: TypeAlias = Literal["keep", "follow", "skip"]


@dataclass(frozen=True, slots=True, eq=False)
class ScanOptions:
    """How to list: `prune(path)` true means the directory at `path` is listed, but not entered.

    `starting_with` is a hint: nobody will look at entries whose path does not begin with it, so a store
    that can leave them out cheaply may. `details` asks for times and modes that are not in the listing
    itself, as far as they are known without another request. `raw` wants names as they are between two
    stores with `Limits.raw_names`: an object "dir/" is a file of that name, and no directory. `sweep` says
    that the place is about to be written: temporary files that a killed process left there may go.

    `links` says what a symbolic link is: an entry of kind "link", what it points to, or nothing.
    `missing_ok`: a location that does not exist lists as empty (a destination before the first copy).
    """

    recursive: bool = True
    links: LinkPolicy = "keep"
    owner: bool = False
    missing_ok: bool = False
    prune: Callable[[str], bool] | None = None
    starting_with: str = ""
    details: bool = False
    raw: bool = False
    sweep: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class WriteOptions:
    """What a write keeps of the source's entry, and how carefully it lands.

    `inplace` writes over the old file instead of renaming a finished one; `durable` makes file and name
    survive a power cut before the write counts as done; `special` keeps setuid, setgid and sticky bits.
    `reread`: what a store copies by itself is read back and compared before it appears (`Limits.rereads`).
    `guarded` lets a write appear only where there still is what was listed (nothing, if nothing was),
    else it raises Overtaken; stores with `Limits.conditional_writes` know how. `resumable`: the upload may
    be left unfinished for a later process (`ResumesUploads`). `from_memory`: the bytes will come by
    `Upload.write` alone.
    """

    mtime: bool = True
    mode: bool = True
    owner: bool = False
    special: bool = False
    inplace: bool = False
    durable: bool = False
    sparse: bool = False
    guarded: bool = False
    resumable: bool = False
    reread: bool = False
    from_memory: bool = False


def _say_nothing(_text: str) -> None:
    """For a run that nobody watches."""


@dataclass(frozen=True, slots=True, eq=False)
class StoreOptions:
    """What a run grants a store: streams it may use at once, bytes per part and held in memory, patience.

    `retries` is for what nobody else can try again: a page of a listing, a look at a place. `min_rate` is
    the least that a stream has to move, in bytes per second over `stall_timeout_s`, while it is the other
    side that is waited for; 0 for no such bound.

    `follow_links` reads through symbolic links below the location, where there are any. `durable`: what a
    method without `WriteOptions` has done (deletes, hard links, attributes) survives a power cut, too,
    where the store can see to it. `writes`: the location is a destination. `place` holds the settings of
    this one place (endpoint, region, key file ...) by their option names, without the dashes in front,
    inner dashes as "_"; switches are "true" or "false". `light` says that no content will move, so that
    what is opened for speed alone need not be. `note` tells the user, in one line, what a place lacks.
    `state_folder` is where a store may keep what it would otherwise have to ask for again; None for
    nowhere. The socket settings are None for the system's choice. `send_rate` tells how many bytes per
    second may leave at this moment, None for no limit: a store that sends parts longer than a quarter of
    that holds each of them back to it.
    """

    streams: int = 8
    jobs: int = 8
    chunk_size: int = 16 << 20
    buffer_size: int = 64 << 20
    stall_timeout_s: float = 60.0
    min_rate: int = 64
    request_timeout_s: float = 60.0
    retries: int = 5
    follow_links: bool = False
    durable: bool = False
    writes: bool = False
    light: bool = False
    note: Callable[[str], None] = _say_nothing
    place: Mapping[str, str] = field(default_factory=dict)
    state_folder: str | None = None
    tcp_send_buffer: int | None = None
    tcp_recv_buffer: int | None = None
    congestion_control: str | None = None
    send_rate: Callable[[], float | None] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Limits:
    """Facts about a store.

    `mtime_step_ns` is the precision of stored modification times, None where they are not kept.
    `mode_mask` has the permission bits that survive. `seekable_reads`: ranges can be read in parallel.
    `delete_batch`: how many entries one `delete` call should carry. `conditional_writes`: a guarded write
    is checked by the store itself (`WriteOptions.guarded`). `content_versions` names the kind of
    `Entry.version` where equal versions of that kind mean equal content, in any store that has the kind.
    `raw_names`: every name can be written, also such as no disk takes ("a//b", "dir/"). `rechecks`: uploads
    that are taken up again are `Rechecks`. `checks_writes`: every byte goes with a digest, which the store
    compares before a file appears. `rereads`: see `WriteOptions.reread`. `slow_digests`: small files are
    sooner read than digested. `first_streams`: how many streams of a large file are worth beginning with
    where processors are few; one, where a stream leaves nearly all of the work to the kernel.
    """

    min_part: int = 1
    max_part: int = 1 << 62
    max_parts: int = 1 << 62
    mtime_step_ns: int | None = None
    mode_mask: int = 0
    seekable_reads: bool = True
    delete_batch: int = 1000
    conditional_writes: bool = False
    content_versions: str | None = None
    raw_names: bool = False
    rechecks: bool = False
    checks_writes: bool = False
    rereads: bool = False
    slow_digests: bool = False
    first_streams: int = 2

    def allow(self, size: int, part_size: int) -> bool:
        """Whether a file of that size may be written in parts of that one."""
        is_between = self.min_part <= part_size <= self.max_part
        return is_between and size <= part_size * self.max_parts


# Parts of one length, in a `Grid` that grows.
_ROW: Final = 1000


class Grid(NamedTuple):
    """Where the parts of a file begin and end, numbered from 0.

    Of a file of unknown size (`grows`) the parts double every 1000, so that 10 000 of them, the most that
    S3 takes, are enough for any file, and a short file is not one large part.
    """

    part_size: int
    grows: bool = False
    max_part: int = 1 << 62

    def length(self, number: int) -> int:
        """How long part `number` is (the last one may be shorter)."""
        if not self.grows:
            return self.part_size
        return min(self.part_size << (number // _ROW), self.max_part)

    def number(self, start: int) -> int:
        """The number of the part that begins at `start`. Raises ValueError if none does."""
        if not self.grows:
            number, rest = divmod(start, self.part_size)
        else:
            number = 0
            rest = start
            while rest >= (row := self.length(number) * _ROW):
                rest -= row
                number += _ROW
            steps, rest = divmod(rest, self.length(number))
            number += steps
        if rest:
            raise ValueError(f"no part begins at {start}")
        return number


class Progress(Protocol):
    """Where a transfer reports bytes that have safely moved, at most once per large buffer."""

    def __call__(self, nbytes: int, /) -> None: ...


@runtime_checkable
class Source(Protocol):
    """A store that can be read."""

    @property
    def location(self) -> Location: ...

    @property
    def limits(self) -> Limits: ...

    def address(self) -> str:
        """Where the store really is, as a URL-like string without secrets: links resolved, names made
        canonical. Two places overlap when one's address is the other's, or a parent of it."""
        ...

    def scan(self, options: ScanOptions) -> AsyncIterator[Page]:
        """List everything below the location; the location itself is not an entry.

        Raises NotFound when the location does not exist and ``options.missing_ok`` is false, Conflict
        when it is not a directory, ListingError when the listing cannot be trusted.
        """
        ...

    async def stat(self, path: str, *, follow: bool = False) -> Entry:
        """The entry at `path` ("" is the location itself). Raises NotFound."""
        ...

    def read(self, entry: Entry, start: int, stop: int | None) -> AsyncIterator[Buffer]:
        """The bytes [start, stop) of exactly this version of `entry`; None reads to the end.

        A buffer is valid until the next one is asked for, and no larger than `READ_BUFFER`, so that the
        engine can account for it. Raises Changed when the file is no longer the one that was listed,
        Vanished when it is gone; fewer bytes than asked for never pass silently.
        """
        ...

    async def aclose(self) -> None:
        """Release what this store alone holds. Idempotent."""
        ...


@runtime_checkable
class Upload(Protocol):
    """One file being written, invisible until `commit`.

    Every write is one part of the `Grid` of the upload's part size, which grows if the size is unknown.
    """

    async def write(self, start: int, data: Buffer) -> None:
        """Put `data` at offset `start`. In any order and concurrently; the store is done with `data`
        when this returns. Writing a part again replaces it."""
        ...

    async def commit(self, size: int) -> Entry:
        """Make the file, `size` bytes long, appear whole with its metadata, and return its entry.

        Raises IntegrityError when the bytes written do not cover `size`; then nothing appears. After a
        transient error it may be called again.
        """
        ...

    async def abort(self) -> None:
        """Forget the write and leave nothing behind. Idempotent, and never raises for a clean-up."""
        ...


@runtime_checkable
class Sink(Source, Protocol):
    """A store that can be written."""

    async def upload(
        self,
        path: str,
        like: Entry,
        options: WriteOptions,
        part_size: int,
        old: Entry | None = None,
    ) -> Upload:
        """Begin to write `path` with the metadata of `like`; missing parents are made.

        `part_size` is how large the writes will be (the last one may be shorter; see `Grid` for
        ``like.size is None``). `old` is what was listed there, for ``options.guarded``. Raises
        NameRefused for a path that cannot be used, Conflict when a directory stands there.
        """
        ...

    async def delete(self, entries: Sequence[Entry]) -> list[FastsyncError | None]:
        """Delete; the answer has one item per entry. What is gone already counts as deleted.

        A directory goes only when it is empty, else its item is Conflict.
        """
        ...


class CopyJob(NamedTuple):
    """Copy `entry` of the source to `path` of the destination, where `old` was listed."""

    entry: Entry
    path: str
    old: Entry | None = None


@runtime_checkable
class CopiesWithin(Protocol):
    """A sink that moves bytes from certain sources by itself: in the kernel, or on the server."""

    def can_copy_from(self, source: Source) -> bool: ...

    async def copy_from(
        self,
        source: Source,
        jobs: Sequence[CopyJob],
        options: WriteOptions,
        progress: Progress,
    ) -> list[FastsyncError | None]:
        """Copy a batch; the answer has one item per job. Same promises as read, write and commit.

        On cancellation the file in hand is dropped and the ones before it stay.
        """
        ...


@runtime_checkable
class MovesWithin(Protocol):
    """A sink that can give what certain sources have another name, in one step and as it is."""

    def can_move_from(self, source: Source) -> bool: ...

    async def move_from(
        self, source: Source, jobs: Sequence[CopyJob]
    ) -> list[FastsyncError | None]:
        """Rename files, in the place of what stands there, and directories with all that is in them, to
        names that are free; the answer has one item per job. An item that is not what was listed, or that
        cannot be renamed, stays where it is, and may be copied instead."""
        ...


class Download(Protocol):
    """One version of a file being read in parts, with what its bytes must add up to."""

    @property
    def entry(self) -> Entry:
        """The entry, completed by what opening it told (mtime, mode)."""
        ...

    async def read_into_file(self, start: int, stop: int, fd: int, progress: Progress) -> None:
        """Put the bytes [start, stop) at the same offsets of `fd`. Raises as `Source.read` does."""
        ...

    def read(self, start: int, stop: int) -> AsyncIterator[Buffer]:
        """The bytes [start, stop); see `Source.read`."""
        ...

    async def verify(self, fd: int | None) -> bool:
        """Check all that was read, exactly once and without gaps, against the digests the store
        offers; `fd` has the file's bytes, where they are in a local file. False: it offers none that can
        be checked like this. Raises IntegrityError."""
        ...


@runtime_checkable
class Downloads(Protocol):
    """A source that can say what the bytes of a whole file must add up to."""

    async def open_download(self, entry: Entry) -> Download:
        """Begin to read exactly this version. Raises Changed, Vanished."""
        ...


@runtime_checkable
class Reconnects(Protocol):
    """A source behind a network, whose connections carry nothing of their own that tells wrong bytes."""

    def renew(self) -> None:
        """Wrong bytes came: what is read from now on comes over other connections."""
        ...


@runtime_checkable
class SeeksSome(Protocol):
    """A source of which some files can only be read from the beginning, whatever its limits say."""

    async def is_seekable(self, entry: Entry) -> bool:
        """True when ranges of exactly this version can be read, in any order. Raises Changed, Vanished."""
        ...


class Loaded(NamedTuple):
    """A small file in memory: its entry, completed by what reading it told (mtime, mode), and its bytes,
    checked against every digest that came with them; `is_verified` if there was one."""

    entry: Entry
    data: Buffer
    is_verified: bool = False


@runtime_checkable
class ReadsWhole(Protocol):
    """A source that reads many small files in one call, faster than one by one."""

    async def read_whole(self, entries: Sequence[Entry]) -> list[Loaded | FastsyncError]:
        """Read a batch; the answer has one item per entry. Same promises as `Source.read`."""
        ...


class WholeJob(NamedTuple):
    """Write `data` to `path` with the metadata of `entry`, where `old` was listed."""

    entry: Entry
    path: str
    data: Buffer
    old: Entry | None = None


@runtime_checkable
class WritesWhole(Protocol):
    """A sink that writes many small files in one call, faster than one by one."""

    async def write_whole(
        self, jobs: Sequence[WholeJob], options: WriteOptions
    ) -> list[FastsyncError | None]:
        """Write a batch; the answer has one item per job. Same promises as upload, write and commit.

        On cancellation files are there whole, or not at all.
        """
        ...


@runtime_checkable
class CompletesEntries(Protocol):
    """A store whose listings leave out times and modes that it does keep (an object's metadata)."""

    async def complete(self, entries: Sequence[Entry]) -> list[Entry | FastsyncError]:
        """The entries of exactly these versions with all that the store knows of them; what is None in
        the answer, it does not keep. Raises nothing for a single entry: Changed and the like are items."""
        ...


@runtime_checkable
class KeepsDirectories(Protocol):
    """A sink in which directories exist by themselves."""

    async def make_directories(
        self, entries: Sequence[Entry], options: WriteOptions
    ) -> list[FastsyncError | None]:
        """Make each directory, parents first, with its mode; writable by us until the run ends.
        One that stands already is fine. "" is the location itself."""
        ...


@runtime_checkable
class FoldsNames(Protocol):
    """A sink that may take two names for one."""

    async def folds_names(self) -> bool:
        """True when it is known, without writing anything, to ignore case."""
        ...


@runtime_checkable
class KeepsLinks(Protocol):
    """A sink that stores symbolic links."""

    async def make_links(
        self, jobs: Sequence[CopyJob], options: WriteOptions
    ) -> list[FastsyncError | None]:
        """Make or replace links verbatim; the target is text and is never followed."""
        ...


@runtime_checkable
class SetsAttributes(Protocol):
    """A sink that can change metadata without touching content."""

    async def set_attributes(
        self, jobs: Sequence[CopyJob], options: WriteOptions
    ) -> list[FastsyncError | None]:
        """Give each path the mtime, mode and owner of its entry, as far as `options` keeps them.
        "" is the location itself."""
        ...


@runtime_checkable
class KeepsXattrs(Protocol):
    """A store in which files and directories have extended attributes; ACLs may be among them."""

    async def read_xattrs(
        self, entries: Sequence[Entry]
    ) -> list[Mapping[str, bytes] | FastsyncError]:
        """Those that a copy may keep; the answer has one item per entry."""
        ...

    async def write_xattrs(
        self, jobs: Sequence[tuple[str, Mapping[str, bytes]]]
    ) -> list[FastsyncError | None]:
        """Give each path exactly these; the answer has one item per job. "" is the location itself."""
        ...


@runtime_checkable
class TellsHardLinks(Protocol):
    """A source that knows which names are of one file."""

    async def link_identities(self, entries: Sequence[Entry]) -> list[str | None]:
        """What the names of a file have in common; None for a file with one name, and where it cannot
        be told."""
        ...


@runtime_checkable
class TellsFileIds(Protocol):
    """A store without versions that can tell a file from another that took its place, of the same size and
    time though it may be."""

    async def file_ids(self, entries: Sequence[Entry]) -> list[str | None]:
        """What stays the same as long as the name is of the same file or link (an inode number, say); None
        for other kinds, and where it cannot be told."""
        ...


@runtime_checkable
class TellsAncestry(Protocol):
    """A store in which one directory may have several addresses (bind mounts, names in upper and lower
    case), and can be recognized all the same."""

    def ancestry(self) -> list[tuple[int, int] | None]:
        """What identifies the place itself (None if it is not there), then each directory above it."""
        ...


@runtime_checkable
class MakesHardLinks(Protocol):
    """A sink in which a file may have several names."""

    async def make_hard_links(self, pairs: Sequence[tuple[str, str]]) -> list[FastsyncError | None]:
        """Make each second path another name of the first, in the place of what stands there; the answer
        has one item per pair."""
        ...


@runtime_checkable
class Hashes(Protocol):
    """A store that can tell a file's digest cheaper than sending its bytes."""

    @property
    def algorithms(self) -> tuple[str, ...]:
        """Names as in `hashlib`, the preferred first."""
        ...

    async def digest(self, entry: Entry, algorithm: str) -> str:
        """Lower-case hex digest of exactly this version. Raises Changed, Unsupported."""
        ...


@runtime_checkable
class FindsHashes(Hashes, Protocol):
    """A store that has to find out whether it can tell digests, which costs something: before it is asked
    to, it has no `algorithms`."""

    async def find_hashes(self) -> None:
        """Find out, once. Raises nothing but what any use of the store would."""
        ...


class Hashing(Protocol):
    """A digest in the making, called with one buffer after the other, in order."""

    def __call__(self, data: memoryview, /) -> None: ...

    def value(self) -> str: ...


class Proof(Protocol):
    """What the bytes of a file add up to: they are its bytes if, and only if, `hasher` comes to `value`.
    Two of the same `algorithm` can be compared as they are."""

    @property
    def algorithm(self) -> str: ...

    @property
    def value(self) -> str: ...

    def hasher(self) -> Hashing: ...


@runtime_checkable
class ProvesContent(Protocol):
    """A store that knows what the bytes of some files add up to, each in a way of its own."""

    async def proof(self, entry: Entry) -> Proof | None:
        """Of exactly this version; None where it does not know. Raises Changed, Vanished."""
        ...


@runtime_checkable
class ReadsIntoFile(Protocol):
    """A source that can move a range into an open local file without Python objects per chunk."""

    async def read_into_file(
        self, entry: Entry, start: int, stop: int, fd: int, progress: Progress
    ) -> None:
        """Put the bytes [start, stop) of `entry` at the same offsets of `fd` (by pwrite or better)."""
        ...


@runtime_checkable
class WritesFromFile(Protocol):
    """An upload that can take a range from an open local file without Python objects per chunk."""

    async def write_from_file(self, start: int, stop: int, fd: int, progress: Progress) -> None:
        """Take the bytes [start, stop) of `fd`. Raises Changed when the file ends before `stop`."""
        ...


@runtime_checkable
class LocalUpload(Protocol):
    """An upload whose bytes land in a local file."""

    def fileno(self) -> int:
        """A descriptor to read and write at any offset until commit or abort."""
        ...

    def covers(self, start: int, stop: int) -> None:
        """Note that [start, stop) was written through the descriptor."""
        ...


@runtime_checkable
class ReadsBack(Protocol):
    """An upload that can show what of it is at the store, before it is committed."""

    def read_back(self, start: int, stop: int) -> AsyncIterator[Buffer]:
        """The bytes [start, stop) as they are there; all of them, or it raises."""
        ...


@runtime_checkable
class LeavesTraces(Protocol):
    """An upload that stays behind at the store, invisible but paid for, when the process is killed."""

    @property
    def ticket(self) -> str | None:
        """What `DropsUploads.drop_upload` needs to find it again, without secrets; None while there is
        nothing to find, and after a clean end. Written down before the first byte moves."""
        ...


@runtime_checkable
class DropsUploads(Protocol):
    """A sink that can clean up after an upload of an earlier process."""

    async def drop_upload(self, ticket: str) -> None:
        """Forget the upload. One that is gone already is fine. Raises TicketRefused for a ticket of
        another store."""
        ...


@runtime_checkable
class ForeseesUploads(DropsUploads, Protocol):
    """A sink that may begin an upload of which this process never hears: it was killed before the answer
    came, or the answer got lost."""

    def foresee_upload(
        self, path: str, like: Entry, options: WriteOptions, part_size: int
    ) -> str | None:
        """A ticket for whatever `upload` begins now and does not live to tell; None where that is nothing.
        Written down before `upload` is called. Raises NameRefused."""
        ...

    async def find_foreseen(self, ticket: str, others: Sequence[str]) -> list[str]:
        """The tickets, for `drop_upload`, of what a foreseen one came to; any other ticket is its own.

        `others` are tickets to the same path of whoever may be at work on them. Nothing that may be
        somebody else's is among the answers. Raises Conflict while that cannot be told.
        """
        ...


class FoundUpload(NamedTuple):
    """An upload that was begun and not ended, by whoever it was, and its ticket for `drop_upload`."""

    path: str
    ticket: str
    began_ns: int


@runtime_checkable
class FindsUploads(DropsUploads, Protocol):
    """A sink that can tell which uploads are unfinished; not whose they are."""

    def find_uploads(self, known: Sequence[str]) -> AsyncIterator[list[FoundUpload]]:
        """All at and below the location but those of the `known` tickets, in no order. A ticket that is not
        understood stands for nothing. Raises NotFound, Unsupported, PermissionRefused."""
        ...


class Leftover(NamedTuple):
    """A temporary file, as its own name and mode tell: by which process it was made, and whether that one
    can still be at it. "elsewhere" is what cannot be told from here."""

    path: str
    size: int
    made_ns: int
    state: Literal["running", "gone", "elsewhere"]
    pid: int


@runtime_checkable
class FindsLeftovers(Protocol):
    """A sink whose temporary files can be found by their names, for `Sink.delete`."""

    def find_leftovers(self) -> AsyncIterator[list[Leftover]]:
        """All at and below the location, in no order. Directories that cannot be read are passed over.
        Raises NotFound."""
        ...


@runtime_checkable
class ReadsIntoMemory(Protocol):
    """A download that can put a range where it is wanted, with no copy of it on the way."""

    async def read_into_memory(
        self, start: int, stop: int, memory: memoryview, progress: Progress
    ) -> None:
        """Put the bytes [start, stop) into `memory`, which is as long. Raises as `Source.read` does."""
        ...


@runtime_checkable
class ChecksInOrder(Protocol):
    """A download that can check bytes which stay in no file, if it is shown them once more, in order."""

    def begin_in_order(self) -> bool:
        """Called before the first byte is read. True when there is a digest to be checked: all bytes of the
        file then go through `add_next`, before `verify` is called."""
        ...

    def add_next(self, piece: memoryview) -> None:
        """The next bytes of the file, from the first one on. May be called in a thread."""
        ...


@runtime_checkable
class Validated(Protocol):
    """A download that can tell its version from every other one, in a later process too. What its parts
    report has arrived in order, from where each begins."""

    @property
    def validator(self) -> str | None:
        """Equal ones, of one place and size, mean equal bytes: a strong ETag, say. No secret; None where
        nothing can tell."""
        ...


@runtime_checkable
class Leavable(LeavesTraces, Protocol):
    """An upload that can be left as it is, for `ResumesUploads.resume_upload` of a later process."""

    async def leave(self) -> None:
        """Let go of it; what was written stays, under the `ticket`. Idempotent."""
        ...


@runtime_checkable
class Rechecks(Upload, Protocol):
    """An upload taken up again that finds out by itself, part by part, what need not be sent: it is
    written as a new one is, in parts of this size. `write_from_file` tells of no progress of these."""

    @property
    def part_size(self) -> int: ...

    async def has(self, start: int, data: Buffer) -> bool:
        """Whether the part that begins there came with these bytes already: then it counts as written."""
        ...


@runtime_checkable
class ResumesUploads(DropsUploads, Protocol):
    """A sink that takes up again what an upload with `WriteOptions.resumable` left behind."""

    async def resume_upload(
        self,
        ticket: str,
        path: str,
        like: Entry,
        options: WriteOptions,
        covered: Sequence[tuple[int, int]],
    ) -> Upload | None:
        """The upload of that ticket, in which the ranges `covered` count as written; None when it is
        not there as it was left."""
        ...


@runtime_checkable
class CopiesRanges(Upload, Protocol):
    """An upload of what the store copies by itself, part by part."""

    async def copy_range(self, start: int, stop: int, progress: Progress) -> None:
        """Take the bytes [start, stop) of the version that it is a copy of. Raises as `Source.read` does."""
        ...


@runtime_checkable
class CopiesParts(CopiesWithin, ForeseesUploads, Protocol):
    """A sink that copies by itself, and large files in parts: by an upload each, which a killed process
    leaves behind. `copy_from` is not asked for those."""

    def copy_part_size(self, source: Source, entry: Entry) -> int | None:
        """How large the parts of that copy are; None for what `copy_from` copies."""
        ...

    async def upload_copy(
        self, source: Source, job: CopyJob, options: WriteOptions, part_size: int
    ) -> CopiesRanges:
        """Begin a copy; see `Sink.upload`. Raises Changed, Vanished."""
        ...

    async def resume_copy(
        self, ticket: str, source: Source, job: CopyJob, options: WriteOptions, part_size: int
    ) -> CopiesRanges | None:
        """The upload of that ticket, which knows by itself what of it is there; None when it is not there
        as it was left, or of a copy of something else."""
        ...


@runtime_checkable
class CreatesPlaces(Protocol):
    """A store whose location has to be made by a call of its own (a bucket)."""

    async def create_place(self) -> None:
        """Make it. Raises Conflict when it exists, UsageError where that cannot be asked."""
        ...


@runtime_checkable
class Describes(Protocol):
    """A store that knows more of a file than an entry says."""

    async def describe(self, entry: Entry) -> Mapping[str, str]:
        """All of it, by names a person understands (content type, storage class, metadata ...)."""
        ...


class ListedVersion(NamedTuple):
    """One version of a file: its identity, whether it is the current one, and whether it only says that
    the file was deleted."""

    entry: Entry
    version_id: str
    is_latest: bool
    is_delete_marker: bool


@runtime_checkable
class KeepsVersions(Protocol):
    """A store that keeps what was overwritten or deleted."""

    def scan_versions(self, options: ScanOptions) -> AsyncIterator[list[ListedVersion]]:
        """Every version of everything below the location (of the object itself, if it is one), in byte
        order of the paths, the newest first."""
        ...


@runtime_checkable
class SignsLinks(Protocol):
    """A store that can let somebody without credentials in, for a while."""

    async def presign(self, path: str, expires_s: int, method: str = "GET") -> str:
        """A URL that does `method` on `path` until it expires. It is a secret."""
        ...


class PinnedFile(Protocol):
    """A local file held open at the version that was listed."""

    def fileno(self) -> int: ...

    def verify(self) -> None:
        """Raises Changed when the file was written to since it was opened."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class LocalFiles(Protocol):
    """A source whose files can be opened by this process."""

    async def open_file(self, entry: Entry) -> PinnedFile:
        """Raises Changed when the file is no longer the one that was listed."""
        ...


class Backend(Protocol):
    """A protocol: what the registry finds behind a URL scheme. Made once per run, closed at its end."""

    def __init__(self) -> None: ...

    async def connect(self, location: Location, options: StoreOptions) -> Source:
        """Open a store at `location`, which need not exist yet. Raises AccessRefused, UsageError."""
        ...

    async def aclose(self) -> None:
        """Release connections and helper processes. Idempotent."""
        ...


_Item = TypeVar("_Item")


@contextlib.asynccontextmanager
async def closing(items: AsyncIterator[_Item]) -> AsyncIterator[AsyncIterator[_Item]]:
    """A listing or a read that lets go of what it holds at the end of the block, not when somebody
    collects garbage. Generators have aclose; other iterators need nothing."""
    try:
        yield items
    finally:
        aclose = getattr(items, "aclose", None)
        if aclose is not None:
            await aclose()


_Ability = TypeVar("_Ability")
_offered: dict[tuple[type, type], bool] = {}


def offers(store: object, ability: type[_Ability]) -> TypeGuard[_Ability]:
    """``isinstance`` for abilities, remembered per class: looking at every method of a protocol takes
    7 us, and the engine asks for every file."""
    key = (type(store), ability)
    answer = _offered.get(key)
    if answer is None:
        answer = _offered[key] = isinstance(store, ability)
    return answer


async def reads_ranges(source: Source, entry: Entry) -> bool:
    """Whether this file can be read from the middle, and so in parts. May ask the store."""
    if not source.limits.seekable_reads:
        return False
    return not offers(source, SeeksSome) or await source.is_seekable(entry)
