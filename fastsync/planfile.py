"""Plans as files: what a sync would do, one action on each line, to be read, kept, filtered and run.

`run_plan` writes what a dry run finds, `read_lines` reads and checks it; `fastsync.replaying` carries it out.
Every line stands for itself, so that lines can be taken out and files put together. docs/PLANS.md has the
schema. A plan is hostile input: all of it is checked before the first line runs, and every name again by the
store that it goes to.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final, NamedTuple

from fastsync.backend import (
    CompletesEntries,
    Entry,
    Kind,
    Owner,
    Source,
    TellsFileIds,
    closing,
    offers,
)
from fastsync.copying import run_sync
from fastsync.errors import (
    UsageError,
    from_os_error,
)
from fastsync.events import Operation
from fastsync.location import LOCAL_SCHEME, Location
from fastsync.plan import PlanPage
from fastsync.session import Place, Request
from fastsync.tally import Summary
from fastsync.work import Work

VERSION: Final = 1
# A path, a link's text and two places, all of them as long as systems allow, and their bytes again.
LONGEST_LINE: Final = 256 << 10
_KINDS: Final = ("file", "dir", "link", "special")
_OPERATIONS: Final = ("copy", "mkdir", "link", "attributes", "delete")
_DIGITS: Final = re.compile("-?[0-9]{1,19}")
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
        if waits_for_copies(line):
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


def waits_for_copies(line: Line) -> bool:
    """True for deletions, and what follows them."""
    return line.operation == "delete" or line.late


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

    return await run_sync(source, destination, request, record=record, watch=_identified)


def _identified(work: Work) -> Work:
    """The same, with the identities of files where a store has no versions of its own."""
    work.pages = _with_identities(work, work.pages)
    return work


async def _with_identities(work: Work, pages: AsyncIterator[PlanPage]) -> AsyncIterator[PlanPage]:
    source, sink = work.source, work.sink
    async with closing(pages) as planned:
        async for page in planned:
            for actions in (page.now, page.later):
                entries = await _complete(source, [each.entry for each in actions])
                entries = await _versioned(source, entries)
                places = [
                    each.old and each.old._replace(path=work.target(each.path)) for each in actions
                ]
                olds = iter(await _versioned(sink, [old for old in places if old is not None]))
                actions[:] = [
                    action._replace(
                        entry=entry,
                        old=action.old and action.old._replace(version=next(olds).version),
                    )
                    for action, entry in zip(actions, entries, strict=True)
                ]
            page.deletes = await _versioned(sink, page.deletes)
            yield page


async def _complete(store: Source, entries: list[Entry]) -> list[Entry]:
    """The same, with what tells versions of a file apart where the listing had nothing of the kind."""
    bare = [
        entry
        for entry in entries
        if entry.kind == "file" and entry.version is None and entry.mtime_ns is None
    ]
    if not bare or not offers(store, CompletesEntries):
        return entries
    # One that failed is told of when its line is run.
    answers = await store.complete(bare)
    known = {answer.path: answer for answer in answers if isinstance(answer, Entry)}
    return [known.get(entry.path, entry) for entry in entries]


async def _versioned(store: Source, entries: list[Entry]) -> list[Entry]:
    ids = await identities(store, entries)
    return [
        entry if found is None else entry._replace(version=found)
        for entry, found in zip(entries, ids, strict=True)
    ]


async def identities(store: Source, entries: Sequence[Entry]) -> Sequence[str | None]:
    """What stands for a version in a plan, None where the store has versions of its own or cannot tell."""
    if not entries or not offers(store, TellsFileIds):
        return [None] * len(entries)
    return await store.file_ids(entries)


def _written(location: Location) -> str:
    """A place as another process finds it. Raises UsageError for one that has a secret in it."""
    refuse_secrets(location)
    if location.scheme == LOCAL_SCHEME:
        return os.path.join(os.getcwd(), location.path)
    return str(location)


def refuse_secrets(location: Location) -> None:
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
    for name in ("size", "mode", "version"):
        value = getattr(entry, name)
        if value is not None:
            state[name] = value
    # As text: a program with floating point numbers alone would write another time (RFC 8259, 6).
    for name in ("mtime_ns", "stored_ns"):
        value = getattr(entry, name)
        if value is not None:
            state[name] = str(value)
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


class Wrong(Exception):
    """What is wrong with a line, in words for a person."""


def read_lines(file: IO[bytes], name: str) -> Iterator[tuple[int, Line]]:
    """The lines from the beginning, with their numbers from 1. Raises UsageError."""
    file.seek(0)
    number = 0
    while text := file.readline(LONGEST_LINE + 1):
        number += 1
        try:
            if len(text) > LONGEST_LINE:
                raise Wrong("the line is too long")
            if text.isspace():
                continue
            line = _parsed(text)
        except Wrong as error:
            raise UsageError(
                str(error), where=f"{name}:{number}", hint="nothing was done"
            ) from error
        yield number, line


def _parsed(text: bytes) -> Line:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        whole = text.endswith(b"\n")
        raise Wrong("no JSON" if whole else "the line is cut off, or no JSON") from error
    if not isinstance(found, dict):
        raise Wrong("not a JSON object")
    version = found.get("plan")
    if version != VERSION or isinstance(version, bool):
        known = f"this is fastsync for plans of version {VERSION}"
        raise Wrong(
            f"no line of a plan; {known}"
            if version is None
            else f"a plan of version {str(version)[:20]}; {known}"
        )
    operation, late = found.get("operation"), found.get("late", False)
    if operation not in _OPERATIONS:
        raise Wrong(f"'operation' is none of {', '.join(_OPERATIONS)}")
    if not isinstance(late, bool):
        raise Wrong("'late' is neither true nor false")
    path = _text(found, "path")
    read_from, to = _text(found, "read_from", path), None
    if "to" in found:
        to = _text(found, "to")
    entry = old = None
    if operation != "delete":
        entry = _entry(found, "source_entry", read_from)
        wanted = {"copy": "file", "mkdir": "dir", "link": "link"}.get(operation, entry.kind)
        if entry.kind != wanted:
            raise Wrong(f"{operation} is not for what is a {entry.kind}")
        if operation == "link" and not entry.target:
            raise Wrong("a link without a 'target'")
    if "destination_entry" in found:
        old = _entry(found, "destination_entry", path if to is None else to)
    if operation == "delete" and (old is None or to is not None):
        raise Wrong("delete needs a 'destination_entry', and no 'to'")
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
        raise Wrong(f"'{name}' is no text")
    value = default if value is None else value
    if f"{name}_bytes" in found:
        try:
            value = os.fsdecode(base64.b64decode(found[f"{name}_bytes"], validate=True))
        except (TypeError, ValueError, binascii.Error) as error:
            raise Wrong(f"'{name}_bytes' is no base64") from error
    if not isinstance(value, str) or "\0" in value:
        raise Wrong(f"'{name}' is missing" if value is None else f"'{name}' is no text")
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
        raise Wrong("'version' is none")
    return version


def _number(
    found: dict[str, Any], name: str, least: int = 0, most: int = (1 << 63) - 1
) -> int | None:
    value = found.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise Wrong(f"'{name}' is no such number")
    return value


def _time(state: dict[str, Any], name: str) -> int | None:
    value = state.get(name)
    if isinstance(value, str):
        if _DIGITS.fullmatch(value) is None:
            raise Wrong(f"'{name}' is no such number")
        state = {name: int(value)}
    return _number(state, name, -(1 << 63))


def _entry(found: dict[str, Any], name: str, path: str) -> Entry:
    state = found.get(name)
    if not isinstance(state, dict):
        raise Wrong(f"'{name}' is missing" if state is None else f"'{name}' is no object")
    kind: Kind = state.get("kind", "")
    if kind not in _KINDS:
        raise Wrong(f"'{name}' has no 'kind' of {', '.join(_KINDS)}")
    owner = None
    if "owner" in state:
        match state["owner"]:
            case [int(uid), int(gid)] if 0 <= uid < 1 << 32 and 0 <= gid < 1 << 32:
                owner = Owner(uid, gid)
            case _:
                raise Wrong("'owner' is no pair of numbers")
    return Entry(
        path,
        kind,
        _number(state, "size"),
        _time(state, "mtime_ns"),
        _number(state, "mode", most=0o7777),
        _text(state, "target") if "target" in state else None,
        _version(state) if "version" in state else None,
        owner,
        _time(state, "stored_ns"),
    )
