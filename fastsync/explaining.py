"""--explain: why one path is copied, skipped, deleted or left alone, found by a run that does nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from fastsync.backend import Entry, Source
from fastsync.errors import FastsyncError, UsageError
from fastsync.events import Item, Totals
from fastsync.session import Place, Request, Session, all_located, located
from fastsync.tally import Summary
from fastsync.works import chosen_for, into, is_directory

_WOULD: Final = {
    "copy": "would be copied",
    "mkdir": "would be made",
    "link": "would be linked",
    "attributes": "would get its attributes set",
    "delete": "would be deleted",
    "skip": "skipped",
    "scan": "could not be listed",
}


class Explanation(NamedTuple):
    """What would become of a path, and why; `exit_code` is that of the run."""

    path: str
    decision: str
    reason: str
    exit_code: int

    def __str__(self) -> str:
        return f"{self.path}: {self.decision}: {self.reason}"


class _Recorder:
    """An observer that remembers what it was told about one path."""

    wants_items = True
    wants_skips = True

    def __init__(self, path: str) -> None:
        self.path = path
        self.found: Item | None = None

    def item(self, item: Item) -> None:
        if item.path.rstrip("/") != self.path:
            return
        # What makes way is told first, and what comes in its place later.
        if self.found is None or self.found.operation == "delete" or item.error is not None:
            self.found = item

    def note(self, text: str) -> None:
        """Ignore."""

    def progress(self, totals: Totals) -> None:
        """Ignore."""


async def run_explain(
    path: str,
    sources: Sequence[Place],
    destination: Place,
    request: Request,
    run: Callable[[Request], Awaitable[Summary]],
) -> Explanation:
    """What `run` would do about `path`, relative to the source, without doing anything.

    Raises UsageError for the source itself, and what the run raises.
    """
    path = path.removeprefix("./").strip("/")
    if path in ("", "."):
        raise UsageError("--explain is about one path below the source", hint="name it")
    recorder = _Recorder(path)
    settings = dataclasses.replace(request.settings, dry_run=True)
    request = dataclasses.replace(request, settings=settings, observer=recorder)
    summary = await run(request)
    found = recorder.found
    if found is not None:
        reason = found.reason if found.error is None else found.error.message
        if found.reason == "unchanged":
            reason += f" (compared by {summary.comparison})"
        decision = _WOULD[found.operation] if found.error is None else "would fail"
        return Explanation(path, decision, reason, summary.exit_code)
    async with Session(request, light=True) as session:
        decision, reason = await _silence(session, path, sources, destination, summary)
    return Explanation(path, decision, reason, summary.exit_code)


async def _silence(
    session: Session, path: str, sources: Sequence[Place], destination: Place, summary: Summary
) -> tuple[str, str]:
    """Why a run has nothing to say of a path."""
    settings = session.request.settings
    target = located(destination)
    source = all_located(sources)[0]
    ours = await session.open(source, follow=settings.links == "follow")
    if settings.recursive and (target.is_directory_like or await is_directory(session, target)):
        target = into(target, source)
    theirs = await session.open(target, side="destination")
    chosen = await chosen_for(session, ours)
    entry, old = await _standing(ours, path), await _standing(theirs, path)
    seen = entry or old
    if seen is None:
        return "is not there", "neither the source nor the destination has it below what was named"
    if session.files is not None and entry is not None:
        session.files.meet([entry])
    if not chosen.is_empty:
        why = chosen.explain(seen)
        if why.startswith("excluded"):
            protects = old is not None and settings.delete and not settings.delete_excluded
            return "protected" if protects and entry is None else "left out", why
    if entry is None:
        if not settings.delete:
            return "stays", "the source does not have it, and --delete is not given"
        if summary.kept is not None:
            return "stays", summary.kept
        return "stays", "no rule lets it be deleted"
    if entry.kind == "special":
        return "left out", "it is a device, a pipe or a socket"
    if entry.kind == "link":
        return "left out", "links are not copied here"
    if entry.kind == "dir":
        what = "it is there already" if old is not None else "directories are not kept there"
        return "nothing to do", what
    return "skipped", "unchanged"


async def _standing(store: Source, path: str) -> Entry | None:
    try:
        return await store.stat(path)
    except FastsyncError:
        return None  # what it may be, the run could not tell either
