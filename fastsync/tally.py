"""What a run has done so far: the counts, the failures, and telling the observer of both."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Final

from fastsync.errors import Changed, FastsyncError, Vanished, worst_exit
from fastsync.events import Item, Observer, Operation, Totals
from fastsync.location import LOCAL_SCHEME, Location

# How many failures a summary keeps; the observer hears of all of them.
KEPT_FAILURES: Final = 1000


@dataclass(slots=True)
class Summary:
    """What a run did. `exit_code` follows docs/CLI.md; `kept` says why nothing was deleted, if asked;
    `comparison` names how entries were compared."""

    totals: Totals
    duration_s: float = 0.0
    exit_code: int = 0
    failures: list[Item] = field(default_factory=list)
    kept: str | None = None
    comparison: str = ""


def _naming(error: FastsyncError, places: list[Location]) -> FastsyncError:
    """The same, with the item's place where it names no more than the server ("http://host:port"); by
    itself that does not tell which of many files it was."""
    host = (error.where or "").partition("://")[2]
    remote = [str(place) for place in places if place.scheme != LOCAL_SCHEME]
    if not host or "/" in host or not remote:
        return error
    known = next((place for place in remote if place.startswith(f"{error.where}/")), None)
    named = copy.copy(error)  # the same error may have ended other files, too
    named.where = known or f"{remote[-1]}: {error.where}"
    named.__cause__ = error
    return named


class Tally:
    """Counts and tells. Every method is cheap: one may be called per small file."""

    def __init__(self, observer: Observer) -> None:
        self.totals = Totals()
        self.kept: str | None = None
        self._observer = observer
        self._failures: list[Item] = []
        self._exit_codes: set[int] = set()

    @property
    def wants_items(self) -> bool:
        return self._observer.wants_items

    @property
    def wants_skips(self) -> bool:
        return self._observer.wants_skips

    def moved(self, nbytes: int, /) -> None:
        """Bytes have moved; whatever becomes of their file."""
        self.totals.bytes_done += nbytes

    def resumed(self, nbytes: int, /) -> None:
        """Bytes of a planned file are there from an earlier run: they need not move."""
        self.totals.planned_bytes -= nbytes

    def planned(self, files: int, size: int) -> None:
        """So many files, with so many bytes as far as that is known, are to be copied."""
        self.totals.planned_files += files
        self.totals.planned_bytes += size

    def copied(self, files: int, size: int, verified: int) -> None:
        """A batch is copied, and nobody wants to hear of its items."""
        self.totals.files_copied += files
        self.totals.files_verified += verified
        self.totals.bytes_copied += size

    def done(
        self,
        operation: Operation,
        path: str,
        places: tuple[Location | None, Location] | None,
        size: int | None,
        reason: str,
        duration_s: float = 0.0,
        *,
        is_verified: bool = False,
    ) -> None:
        """An item is finished (or, under dry-run, would be). `places` may be None if `wants_items` is
        false."""
        totals = self.totals
        if operation == "copy":
            totals.files_copied += 1
            totals.files_verified += is_verified
            totals.bytes_copied += size or 0
        elif operation == "mkdir":
            totals.directories_made += 1
        elif operation == "link":
            totals.links_made += 1
        elif operation == "attributes":
            totals.attributes_set += 1
        elif operation == "delete":
            totals.deleted += 1
        if places is not None and self._observer.wants_items:
            source, destination = "" if places[0] is None else str(places[0]), str(places[1])
            self._observer.item(
                Item(operation, path, source, destination, size, reason, duration_s)
            )

    def removed_directory(self, path: str, destination: Location, reason: str) -> None:
        """Told, but not counted: what counts is files."""
        if self._observer.wants_items:
            self._observer.item(Item("delete", path + "/", "", str(destination), None, reason))

    def unchanged(self, size: int | None) -> None:
        """A closer look found a file that needs nothing."""
        self.totals.files_skipped += 1
        self.totals.bytes_skipped += size or 0

    def same(self, size: int | None) -> None:
        """A file that was to be copied turned out to have the same content."""
        totals = self.totals
        totals.files_skipped += 1
        totals.bytes_skipped += size or 0
        totals.planned_files -= 1
        totals.planned_bytes -= size or 0

    def skipped(self, path: str, source: Location, destination: Location, reason: str) -> None:
        if self._observer.wants_skips:
            self._observer.item(Item("skip", path, str(source), str(destination), None, reason))

    def failed(
        self,
        operation: Operation,
        path: str,
        source: Location | None,
        destination: Location | None,
        error: FastsyncError,
    ) -> None:
        """An item failed: counted, kept for the summary, and told at once."""
        self.totals.failed += 1
        self._exit_codes.add(error.exit_code)
        if source is not None and error.where and path.startswith(error.where):
            error.where = str(source)  # the gate of names knows no more than the name
        about_source = isinstance(error, (Changed, Vanished))
        error.at(str((source if about_source else destination) or destination or source or path))
        error = _naming(error, [place for place in (source, destination) if place is not None])
        places = ("" if source is None else str(source), str(destination or ""))
        item = Item(operation, path, *places, None, "", error=error)
        if len(self._failures) < KEPT_FAILURES:
            self._failures.append(item)
        self._observer.item(item)

    def keep(self, reason: FastsyncError, *, is_stop: bool) -> None:
        """Nothing will be deleted, for this reason; `is_stop` when that is news for the exit code."""
        text = str(reason)
        self.kept = text if text.startswith("not deleting") else f"not deleting: {text}"
        self._observer.note(self.kept)
        if is_stop:
            self._exit_codes.add(reason.exit_code)

    def note(self, text: str) -> None:
        self._observer.note(text)

    def tell(self) -> None:
        """Let the observer show the counts."""
        self._observer.progress(self.totals)

    def summary(self, duration_s: float) -> Summary:
        return Summary(
            self.totals,
            duration_s=duration_s,
            exit_code=worst_exit(self._exit_codes),
            failures=self._failures,
            kept=self.kept,
        )
