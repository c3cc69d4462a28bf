"""`check`: what differs between two places, or between a place and a manifest; nothing is changed."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Callable
from typing import Final, Literal, NamedTuple, TypeAlias

from fastsync.backend import Entry, ScanOptions, closing
from fastsync.comparing import find_hashes
from fastsync.copying import run_sync
from fastsync.errors import FastsyncError, UsageError, worst_exit
from fastsync.events import Item, Totals
from fastsync.manifest import ALGORITHM, digest_of, read_manifest
from fastsync.plan import NOT_IN_SOURCE
from fastsync.session import Place, Request, Session, located, named, whole
from fastsync.values import MaxDelete

# As rclone's --combined: the same, only in the source, only in the destination, different, an error.
Mark: TypeAlias = Literal["=", "+", "-", "*", "!"]
_AT_ONCE: Final = 8


class Finding(NamedTuple):
    """What there is to say of a path; `error` with "!"."""

    mark: Mark
    path: str
    reason: str
    error: FastsyncError | None = None


Tell: TypeAlias = Callable[[Finding], None]


@dataclasses.dataclass(slots=True)
class Checked:
    """How often each mark was set on a file, and the exit code: 0 if all is the same."""

    comparison: str = ""
    duration_s: float = 0.0
    exit_code: int = 0
    counts: dict[Mark, int] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(("=", "+", "-", "*", "!"), 0)
    )


class _Judge:
    """An observer of a dry run: what would be done is what differs."""

    wants_items = True

    def __init__(self, tell: Tell, checked: Checked, *, tells_same: bool) -> None:
        self.wants_skips = tells_same
        self._tell = tell
        self._checked = checked

    def item(self, item: Item) -> None:
        path = item.path
        if item.error is not None:
            finding = Finding("!", path, item.error.message, item.error)
        elif item.operation == "skip":
            if item.reason == "same content":
                return  # its time differs, which is told next
            self._tell(Finding("=", path, item.reason))
            return  # counted by the run itself
        elif item.operation == "delete":
            if not item.reason.startswith(NOT_IN_SOURCE):
                return  # what comes in its place is told later
            finding = Finding("-", path, "only in the destination")
        elif item.reason == "new":
            name = path + "/" * (item.operation == "mkdir")
            finding = Finding("+", name, "only in the source")
        elif item.operation == "attributes" and item.reason == "same content":
            finding = Finding("*", path, "only the time differs")
        else:
            reason = (
                "content differs" if item.reason in ("checksum", "just written") else item.reason
            )
            finding = Finding("*", path, reason)
        self._checked.counts[finding.mark] += 1
        self._tell(finding)

    def note(self, text: str) -> None:
        """Ignore."""

    def progress(self, totals: Totals) -> None:
        """Ignore."""


async def run_check(
    source: Place,
    destination: Place,
    request: Request,
    tell: Tell = lambda _finding: None,
    *,
    tells_same: bool = False,
    download: bool = False,
) -> Checked:
    """Compare two places as `sync` would: by size and time, or by content with ``checksum``; `download`
    reads both whatever digests the stores could tell. `tell` hears of what is the same if `tells_same`.

    Raises UsageError, ListingError when the source does not exist or a listing cannot be trusted.
    """
    checked = Checked()
    settings = dataclasses.replace(
        request.settings,
        dry_run=True,
        delete=True,
        allow_empty_source=True,
        max_delete=MaxDelete(percent=100.0),
        manifest=None,
        checksum=request.settings.checksum or download,
        ignore_missing_args=False,
    )
    judge = _Judge(tell, checked, tells_same=tells_same)
    request = dataclasses.replace(request, settings=settings, observer=judge)
    summary = await run_sync(source, destination, request, reads_content=download)
    checked.counts["="] = summary.totals.files_skipped
    checked.comparison = "content" if download else summary.comparison
    checked.duration_s = summary.duration_s
    differs = any(checked.counts[mark] for mark in ("+", "-", "*"))
    checked.exit_code = worst_exit([summary.exit_code, int(differs)])
    return checked


async def run_check_manifest(
    manifest: str,
    place: Place,
    request: Request,
    tell: Tell = lambda _finding: None,
    *,
    tells_same: bool = False,
) -> Checked:
    """Compare a place with a manifest that `cp` or `sync` wrote; every file is read, the source is not
    needed. Exit code 4 when content differs, 1 when files are missing or too many.

    Raises UsageError for a manifest that cannot be read, ListingError for a place that is not there.
    """
    started = time.monotonic()
    location = located(place)
    expected = read_manifest(manifest)
    checked = Checked(comparison=ALGORITHM)
    codes: set[int] = set()

    def found(finding: Finding) -> None:
        checked.counts[finding.mark] += 1
        if finding.error is not None:
            codes.add(finding.error.exit_code)
        elif finding.mark != "=":
            codes.add(4 if finding.mark == "*" else 1)
        if finding.mark != "=" or tells_same:
            tell(finding)

    async with Session(request) as session:
        store = await session.open(location)
        standing = await named(session, store)
        await find_hashes(store)
        chosen = request.filter()
        slots = asyncio.Semaphore(_AT_ONCE)

        async def judge(path: str, entry: Entry) -> Finding:
            wanted = expected.pop(path, None)
            if wanted is None:
                return Finding("-", path, "not in the manifest")
            try:
                async with slots:
                    same = await digest_of(store, entry) == wanted
            except FastsyncError as error:
                return Finding("!", path, error.message, error)
            return (
                Finding("=", path, "same checksum")
                if same
                else Finding("*", path, "content differs")
            )

        if standing.kind != "dir":
            if len(expected) != 1:
                raise UsageError("the manifest is of a directory", where=str(location))
            store, name = await session.reach(location)
            entry = await store.stat(name, follow=True)
            found(await judge(next(iter(expected)), entry))
        else:
            options = ScanOptions(prune=None if chosen.is_empty else chosen.prune)
            async with closing(whole(store.scan(options), store)) as pages:
                async for entries, faults in pages:
                    for fault in faults:
                        found(Finding("!", fault.path, fault.error.message, fault.error))
                    files = [e for e in chosen.select(entries) if e.kind == "file"]
                    for finding in await asyncio.gather(*(judge(e.path, e) for e in files)):
                        found(finding)
            for path in sorted(expected, key=os.fsencode):
                if chosen.is_empty or chosen.keep(Entry(path, "file", None, None)):
                    found(Finding("+", path, "only in the manifest"))
    checked.duration_s = time.monotonic() - started
    checked.exit_code = worst_exit(codes)
    return checked
