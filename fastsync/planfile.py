"""Plans as files: what a sync would do, one action on each line, to be read, kept, filtered and run.

`run_plan` writes what a dry run finds; `run_planned` carries it out and refuses each line of which the
source or the destination is not as planned. Every line stands for itself, so that lines can be taken out
and files put together. docs/PLANS.md has the schema. A plan is hostile input: all of it is checked before
the first line runs, and every name again by the store that it goes to.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import io
import json
import os
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any, Final, NamedTuple

from fastsync.backend import Entry, KeepsDirectories, Kind, Owner, Sink, Source
from fastsync.copying import run_sync
from fastsync.engine import Work
from fastsync.errors import (
    Changed,
    Conflict,
    FastsyncError,
    NameRefused,
    NotFound,
    UsageError,
    Vanished,
    from_os_error,
)
from fastsync.events import Operation
from fastsync.location import LOCAL_SCHEME, Location, parse
from fastsync.names import safe_parts
from fastsync.plan import Action, DeleteGate, PlanPage, Step
from fastsync.session import Place, Request, Session
from fastsync.tally import Summary
from fastsync.workers import run_all
from fastsync.works import engine_for, refuse_overlap, write_options

VERSION: Final = 1
# A path, a link's text and two places, all of them as long as systems allow, and their bytes again.
LONGEST_LINE: Final = 256 << 10
# Pairs of places in one file; each costs a pass over it.
MOST_PAIRS: Final = 100
# Files that go by another name; they stay in memory.
MOST_RENAMES: Final = 100_000
_PAGE: Final = 1000
_KINDS: Final = ("file", "dir", "link", "special")
_STEPS: Final[dict[str, Step]] = {
    "copy": "copy",
    "mkdir": "mkdir",
    "link": "link",
    "attributes": "attributes",
}
_encode = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Shard:
    """The lines of which the number leaves the rest `index` - 1 when divided by `count`. What has to wait
    for the copies (deletions and what follows them) is all in the last one."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``I/N``. Raises UsageError."""
        index, slash, count = text.partition("/")
        if slash and (index + count).isascii() and index.isdigit() and count.isdigit():
            if len(count) < 7 and 1 <= int(index or 0) <= int(count):
                return cls(int(index), int(count))
        raise UsageError(f"--shard {text}: not a part of a whole", hint="the second of four is 2/4")

    def has(self, number: int, line: Line) -> bool:
        if line.operation == "delete" or line.late:
            return self.index == self.count
        return number % self.count == self.index - 1


class Line(NamedTuple):
    """One line, checked. `entry` is None for a deletion; `read_from` and `to` are paths below the two
    places, where they are not `path`."""

    operation: str
    source: str
    destination: str
    path: str
    read_from: str
    to: str | None
    entry: Entry | None
    old: Entry | None
    reason: str
    late: bool


# -- writing -----------------------------------------------------------------------------------------


async def run_plan(
    source: Place,
    destination: Place,
    request: Request,
    output: str | os.PathLike[str] | None = None,
) -> Summary:
    """Write what a sync would do to the file `output`; None and "-" are standard output. A file is there
    when it is whole; what is none, such as a pipe, is written to as it is.

    Raises what `run_sync` raises, and UsageError for places that cannot be written down and an output
    that cannot be written.
    """
    if output is None or os.fspath(output) == "-":
        with open(1, "w", encoding="ascii", closefd=False) as out:  # noqa: ASYNC230 - as all output
            return await _write_plan(source, destination, request, out.write)
    target = os.path.realpath(output)  # noqa: ASYNC240 - once
    try:
        # Not beside the target yet: that may be in the tree that is planned.
        with tempfile.TemporaryFile() as file:
            out = io.TextIOWrapper(file, encoding="ascii")
            summary = await _write_plan(source, destination, request, out.write)
            out.flush()
            file.seek(0)
            _put_in_place(file, target)
    except OSError as error:
        told = from_os_error(error)
        raise UsageError(
            f"the plan cannot be written: {told.message}", where=os.fspath(output)
        ) from error
    return summary


def _put_in_place(file: IO[bytes], target: str) -> None:
    """Raises OSError."""
    if os.path.exists(target) and not os.path.isfile(target):
        with open(target, "wb") as out:
            shutil.copyfileobj(file, out, 1 << 20)
        return
    unfinished = f"{target}.{os.getpid()}.unfinished"
    try:
        with open(unfinished, "xb") as out:
            shutil.copyfileobj(file, out, 1 << 20)
        os.replace(unfinished, target)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)


async def _write_plan(
    source: Place, destination: Place, request: Request, write: Callable[[str], object]
) -> Summary:
    settings = dataclasses.replace(request.settings, dry_run=True)
    request = dataclasses.replace(request, settings=settings)
    places: dict[int, dict[str, Any]] = {}

    def record(
        work: Work,
        operation: Operation,
        path: str,
        entry: Entry | None,
        old: Entry | None,
        reason: str,
        *,
        late: bool,
    ) -> None:
        line: dict[str, Any] = {"plan": VERSION, "operation": operation}
        if (known := places.get(id(work))) is None:
            known = places[id(work)] = {}
            _put(known, "source", _written(work.source.location))
            _put(known, "destination", _written(work.sink.location))
        line.update(known)
        _put(line, "path", path)
        if work.rename is not None:
            _put(line, "to", work.target(path))
        if entry is not None and entry.path != path:
            _put(line, "read_from", entry.path)
        seen = entry or old
        if seen is not None and seen.kind == "file" and seen.size is not None:
            line["size"] = seen.size
        line["reason"] = reason
        if late:
            line["late"] = True
        if entry is not None:
            line["source_entry"] = _state(entry)
        if old is not None:
            line["destination_entry"] = _state(old)
        write(_encode(line) + "\n")

    return await run_sync(source, destination, request, record=record)


def _written(location: Location) -> str:
    """A place as another process finds it. Raises UsageError for one that has a secret in it."""
    _refuse_secrets(location)
    if location.scheme == LOCAL_SCHEME:
        return os.path.join(os.getcwd(), location.path)
    return str(location)


def _refuse_secrets(location: Location) -> None:
    # The user of a web address is shown as *** because it may be a token.
    if location.password is not None or location.query or "://***@" in str(location):
        raise UsageError(
            "a plan cannot hold a place with a secret in it",
            where=str(location),
            hint="put the secret into the configuration or the environment",
        )


def _put(line: dict[str, Any], name: str, text: str) -> None:
    """A text, with its exact bytes beside it where it is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        line[name] = os.fsencode(text).decode(errors="replace")
        line[f"{name}_bytes"] = base64.b64encode(os.fsencode(text)).decode("ascii")
    else:
        line[name] = text


def _state(entry: Entry) -> dict[str, Any]:
    state: dict[str, Any] = {"kind": entry.kind}
    for name in ("size", "mtime_ns", "mode", "version", "stored_ns"):
        value = getattr(entry, name)
        if value is not None:
            state[name] = value
    if entry.target is not None:
        _put(state, "target", entry.target)
    if entry.owner is not None:
        state["owner"] = list(entry.owner)
    return state


# -- reading -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def held(place: str | os.PathLike[str]) -> Iterator[tuple[IO[bytes], str]]:
    """A file to be run, which can be read twice, and its name; "-" is standard input. Raises UsageError
    if it cannot be read."""
    where = os.fspath(place)
    name = "standard input" if where == "-" else where
    try:
        with contextlib.ExitStack() as stack:
            given = stack.enter_context(
                open(0 if where == "-" else where, "rb", closefd=where != "-")
            )
            file: IO[bytes] = given
            if where == "-" or not stat.S_ISREG(os.fstat(given.fileno()).st_mode):
                file = stack.enter_context(tempfile.TemporaryFile(prefix="fastsync-"))
                shutil.copyfileobj(given, file, 1 << 20)
            # What is wrong further down is no longer about this file.
            stack_of_file = stack.pop_all()
    except OSError as error:
        raise UsageError(from_os_error(error).message, where=name) from error
    with stack_of_file:
        yield file, name


def is_plan(file: IO[bytes]) -> bool:
    """True for a plan, false for a batch, by the first line that has something in it."""
    file.seek(0)
    while line := file.readline(LONGEST_LINE):
        if not line.isspace():
            return line.lstrip().startswith(b"{")
    return True


class _Wrong(Exception):
    """What is wrong with a line, in words for a person."""


def read_lines(file: IO[bytes], name: str) -> Iterator[tuple[int, Line]]:
    """The lines from the beginning, with their numbers from 1. Raises UsageError."""
    file.seek(0)
    number = 0
    while text := file.readline(LONGEST_LINE + 1):
        number += 1
        try:
            if len(text) > LONGEST_LINE:
                raise _Wrong("the line is too long")
            if text.isspace():
                continue
            line = _parsed(text)
        except _Wrong as error:
            raise UsageError(
                str(error), where=f"{name}:{number}", hint="nothing was done"
            ) from error
        yield number, line


def _parsed(text: bytes) -> Line:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        whole = text.endswith(b"\n")
        raise _Wrong("no JSON" if whole else "the line is cut off, or no JSON") from error
    if not isinstance(found, dict):
        raise _Wrong("not a JSON object")
    version = found.get("plan")
    if version != VERSION or isinstance(version, bool):
        known = f"this is fastsync for plans of version {VERSION}"
        raise _Wrong(
            f"no line of a plan; {known}"
            if version is None
            else f"a plan of version {str(version)[:20]}; {known}"
        )
    operation, late = found.get("operation"), found.get("late", False)
    if not isinstance(operation, str) or (operation not in _STEPS and operation != "delete"):
        raise _Wrong("'operation' is none of copy, mkdir, link, attributes, delete")
    if not isinstance(late, bool):
        raise _Wrong("'late' is neither true nor false")
    path = _text(found, "path")
    read_from, to = _text(found, "read_from", path), None
    if "to" in found:
        to = _text(found, "to")
    entry = old = None
    if operation != "delete":
        entry = _entry(found, "source_entry", read_from)
        wanted = {"copy": "file", "mkdir": "dir", "link": "link"}.get(operation, entry.kind)
        if entry.kind != wanted:
            raise _Wrong(f"{operation} is not for what is a {entry.kind}")
        if operation == "link" and not entry.target:
            raise _Wrong("a link without a 'target'")
    if "destination_entry" in found:
        old = _entry(found, "destination_entry", path if to is None else to)
    if operation == "delete" and (old is None or to is not None):
        raise _Wrong("delete needs a 'destination_entry', and no 'to'")
    return Line(
        operation,
        _text(found, "source"),
        _text(found, "destination"),
        path,
        read_from,
        to,
        entry,
        old,
        _text(found, "reason", "planned"),
        late,
    )


def _text(found: dict[str, Any], name: str, default: str | None = None) -> str:
    value = found.get(name)
    if isinstance(value, str) and not _is_unicode(value):
        raise _Wrong(f"'{name}' is no text")
    value = default if value is None else value
    if f"{name}_bytes" in found:
        try:
            value = os.fsdecode(base64.b64decode(found[f"{name}_bytes"], validate=True))
        except (TypeError, ValueError, binascii.Error) as error:
            raise _Wrong(f"'{name}_bytes' is no base64") from error
    if not isinstance(value, str) or "\0" in value:
        raise _Wrong(f"'{name}' is missing" if value is None else f"'{name}' is no text")
    return value


def _is_unicode(text: str) -> bool:
    """False for halves of characters, as JSON can write them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _version(state: dict[str, Any]) -> str:
    version = _text(state, "version")
    if not version.isprintable():
        raise _Wrong("'version' is none")
    return version


def _number(
    found: dict[str, Any], name: str, least: int = 0, most: int = (1 << 63) - 1
) -> int | None:
    value = found.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise _Wrong(f"'{name}' is no such number")
    return value


def _entry(found: dict[str, Any], name: str, path: str) -> Entry:
    state = found.get(name)
    if not isinstance(state, dict):
        raise _Wrong(f"'{name}' is missing" if state is None else f"'{name}' is no object")
    kind: Kind = state.get("kind", "")
    if kind not in _KINDS:
        raise _Wrong(f"'{name}' has no 'kind' of {', '.join(_KINDS)}")
    owner = None
    if "owner" in state:
        match state["owner"]:
            case [int(uid), int(gid)] if 0 <= uid < 1 << 32 and 0 <= gid < 1 << 32:
                owner = Owner(uid, gid)
            case _:
                raise _Wrong("'owner' is no pair of numbers")
    least = -(1 << 63)
    return Entry(
        path,
        kind,
        _number(state, "size"),
        _number(state, "mtime_ns", least),
        _number(state, "mode", most=0o7777),
        _text(state, "target") if "target" in state else None,
        _version(state) if "version" in state else None,
        owner,
        _number(state, "stored_ns", least),
    )


# -- running -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Pair:
    """Two places that lines of a plan are about."""

    source: Source
    sink: Sink
    renames: dict[str, str] = field(default_factory=dict)
    is_named: bool = False  # single files, whose directories may be anywhere
    root: Entry | None = None

    def check(self, line: Line) -> None:
        """Raises _Wrong for a name that cannot be used between these stores."""
        if self.source.limits.raw_names and self.sink.limits.raw_names:
            return
        if not (line.path or line.read_from) and line.operation == "attributes" and line.to is None:
            if line.entry is not None and line.entry.kind == "dir":
                return  # the root
        try:
            for path in (line.path, line.read_from or line.path, line.to or line.path):
                safe_parts(path)
        except NameRefused as error:
            raise _Wrong(error.message) from error


async def run_planned(
    file: IO[bytes], name: str, request: Request, shard: Shard | None = None
) -> Summary:
    """Carry out the plan in `file`, which can be read twice and is called `name`. Raises UsageError before
    anything is touched. What changed since it was planned is a failure of the kind Changed."""
    async with Session(request) as session:
        pairs: dict[tuple[str, str], _Pair] = {}
        renames = 0
        for number, line in read_lines(file, name):
            key = (line.source, line.destination)
            try:
                if key not in pairs:
                    if len(pairs) >= MOST_PAIRS:
                        raise _Wrong(f"more than {MOST_PAIRS} pairs of places in one file")
                    pairs[key] = await _opened(session, *key)
                pair = pairs[key]
                pair.check(line)
                if line.to is not None:
                    pair.is_named = True
                    renames += 1
                    if pair.renames.setdefault(line.path, line.to) != line.to:
                        raise _Wrong("the file has got two names in this plan")
                    if renames > MOST_RENAMES:
                        raise _Wrong(f"more than {MOST_RENAMES} files with new names in one file")
                elif line.operation == "attributes" and not line.path:
                    pair.root = line.entry
            except _Wrong as error:
                raise UsageError(
                    str(error), where=f"{name}:{number}", hint="nothing was done"
                ) from error
            except UsageError as error:
                told = f"{error.where}: {error.message}" if error.where else error.message
                raise UsageError(told, where=f"{name}:{number}", hint=error.hint) from error
        for pair in pairs.values():
            if not pair.is_named:
                refuse_overlap(pair.source, pair.sink)
        return await engine_for(session).run(_works(session, file, name, pairs, shard))


async def _opened(session: Session, source: str, destination: str) -> _Pair:
    locations = parse(source), parse(destination)
    for location in locations:
        if location.is_stream:
            raise _Wrong("standard input and output have no place in a plan")
        _refuse_secrets(location)
    sink = await session.open_sink(locations[1])
    write_options(session.request.settings, sink)  # refused now rather than half way
    # Followed: a link that somebody named is a file in a plan; the validators say which.
    return _Pair(await session.open(locations[0], follow=True), sink)


async def _works(
    session: Session,
    file: IO[bytes],
    name: str,
    pairs: dict[tuple[str, str], _Pair],
    shard: Shard | None,
) -> AsyncIterator[Work]:
    settings = session.request.settings
    for key, pair in pairs.items():
        write = write_options(settings, pair.sink)
        if pair.sink.limits.conditional_writes:
            write = dataclasses.replace(write, guarded=True)
        if (
            pair.root is not None
            and not settings.dry_run
            and isinstance(pair.sink, KeepsDirectories)
        ):
            for error in await pair.sink.make_directories([pair.root], write):
                if error is not None:
                    raise error
        yield Work(
            pair.source,
            pair.sink,
            _pages(read_lines(file, name), key, shard),
            write,
            gate=DeleteGate(percent=100.0, allow_empty_source=True),
            rename=partial(_renamed, pair.renames) if pair.renames else None,
            root=pair.root,
            directory_times=settings.dir_times,
            protects=shard is not None and shard.count > 1,
            vet=_Vet(pair, settings.jobs, is_dry=settings.dry_run),
        )


async def _pages(
    lines: Iterator[tuple[int, Line]], key: tuple[str, str], shard: Shard | None
) -> AsyncIterator[PlanPage]:
    page, count = PlanPage(), 0
    for number, line in lines:
        if (line.source, line.destination) != key:
            continue
        if shard is not None and not shard.has(number, line):
            continue
        if line.operation == "delete":
            assert line.old is not None
            page.deletes.append(line.old)
        elif line.path:  # the root is the work's
            assert line.entry is not None
            action = Action(_STEPS[line.operation], line.path, line.entry, line.old, line.reason)
            if line.operation == "attributes" and line.entry.kind == "dir":
                page.finish.append(action)
            elif line.late:
                page.later.append(action)
            else:
                page.now.append(action)
        count += 1
        if count % _PAGE == 0:
            page.scanned = _PAGE
            yield page
            page = PlanPage()
    page.scanned = count % _PAGE
    yield page


def _renamed(renames: dict[str, str], path: str) -> str:
    return renames.get(path, path)


class _Vet:
    """Says whether what a line is about is still what it was; see `Work.vet`."""

    def __init__(self, pair: _Pair, jobs: int, *, is_dry: bool) -> None:
        self._pair = pair
        self._jobs = jobs
        self._is_dry = is_dry

    async def __call__(self, items: Sequence[Action | Entry]) -> list[FastsyncError | None]:
        answers: list[FastsyncError | None] = [None] * len(items)

        async def look(index: int) -> None:
            try:
                await self._look(items[index])
            except FastsyncError as error:
                answers[index] = error

        await run_all(self._jobs, (look(index) for index in range(len(items))))
        return answers

    async def _look(self, item: Action | Entry) -> None:
        if isinstance(item, Entry):
            await self._destination(item.path, item, may_be_gone=True)
            return
        entry = item.entry
        if item.step != "copy" or self._is_dry:
            # A read is bound to the version that is planned, by the store itself.
            await self._source(entry)
        to = self._pair.renames.get(item.path, item.path)
        if item.old is not None:
            # What was of another kind is deleted by now.
            await self._destination(to, item.old, may_be_gone=item.old.kind != entry.kind)
            return
        try:
            now = await self._pair.sink.stat(to)
        except (NotFound, Conflict):
            return
        if item.step != "mkdir" or now.kind != "dir":
            raise Changed(
                "there is something now, and there was nothing when it was planned",
                where=str(self._pair.sink.location.child(to)),
            )

    async def _source(self, entry: Entry) -> None:
        store = self._pair.source
        where = str(store.location.child(entry.path))
        try:
            now = await store.stat(entry.path, follow=entry.kind != "link")
        except NotFound as error:
            raise Vanished("the source is gone since it was planned", where=where) from error
        if not _same(entry, now):
            raise Changed("the source changed since it was planned", where=where)

    async def _destination(self, path: str, old: Entry, *, may_be_gone: bool) -> None:
        store = self._pair.sink
        where = str(store.location.child(path))
        try:
            now = await store.stat(path)
        except NotFound as error:
            if may_be_gone:
                return
            raise Changed("the destination is gone since it was planned", where=where) from error
        if not _same(old, now):
            raise Changed("the destination changed since it was planned", where=where)


def _same(planned: Entry, now: Entry) -> bool:
    """True when an entry is, as far as both looks at it can tell, what it was."""
    if planned.kind != now.kind:
        return False
    if planned.kind == "dir":
        return True
    if planned.kind == "link":
        return planned.target == now.target
    if planned.version is not None and now.version is not None:
        return planned.version == now.version
    return all(
        ours is None or theirs is None or ours == theirs
        for ours, theirs in ((planned.size, now.size), (planned.mtime_ns, now.mtime_ns))
    )
