"""What a run tells its observer: frozen events for items, one set of absolute counts for progress.

Counts are absolute and never run backwards. Nothing here is called per chunk; per-item events are built
only for an observer that wants them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Final, Literal, NamedTuple, Protocol, TypeAlias

from fastsync.errors import FastsyncError

Operation: TypeAlias = Literal["copy", "mkdir", "link", "attributes", "delete", "skip", "scan"]

# The reason of a copy that was none: what was moved has another name.
RENAMED: Final = "renamed"
# The reasons of a "delete" of what was cut off: what has the name that is told stays as it is.
UNFINISHED_UPLOAD: Final = "unfinished upload"
UNFINISHED_DOWNLOAD: Final = "unfinished download"


class Item(NamedTuple):
    """One finished (or failed, or under dry-run intended) action.

    `source` and `destination` are printable places ("" where there is none); `size` is in bytes;
    `duration_s` is 0.0 for items that were part of a batch; `reason` says why the plan wanted it; `line` is
    the number of the line of a batch file.
    """

    operation: Operation
    path: str
    source: str
    destination: str
    size: int | None
    reason: str
    duration_s: float = 0.0
    error: FastsyncError | None = None
    line: int | None = None


@dataclass(slots=True)
class Totals:
    """Absolute counts of a run, updated in place by the engine and read by whoever shows them.

    Bytes are file content. `bytes_done` counts bytes that moved, whatever became of their file, and is
    corrected downwards only by `bytes_retried` being counted apart, so it never runs backwards.
    `planned_*` grow while scanning and are final once `scanning` is false. `files_verified` are those of
    `files_copied` of which a digest of all bytes was compared, or the copy itself.
    """

    scanning: bool = True
    scanned: int = 0
    planned_files: int = 0
    planned_bytes: int = 0
    files_copied: int = 0
    files_verified: int = 0
    bytes_copied: int = 0
    bytes_done: int = 0
    bytes_skipped: int = 0
    files_skipped: int = 0
    attributes_set: int = 0
    directories_made: int = 0
    links_made: int = 0
    deleted: int = 0
    failed: int = 0
    specials_skipped: int = 0
    retries: int = 0
    current: dict[str, int] = field(default_factory=dict)

    @property
    def files_unverified(self) -> int:
        """Copied files of which only the length was compared."""
        return self.files_copied - self.files_verified

    def add(self, more: Totals) -> None:
        """Count what another run did, too."""
        for each in fields(self):
            if each.name not in ("scanning", "current"):
                setattr(self, each.name, getattr(self, each.name) + getattr(more, each.name))


class Observer(Protocol):
    """Receives a run's events on the thread that runs it. Must not block for long nor raise."""

    @property
    def wants_items(self) -> bool:
        """False spares the engine building an `Item` per file; failures come all the same."""
        ...

    @property
    def wants_skips(self) -> bool:
        """True to see an `Item` for every entry that needed nothing."""
        ...

    def item(self, item: Item) -> None: ...

    def note(self, text: str) -> None:
        """Something worth one line that is no error of an item ("not deleting: ...")."""
        ...

    def progress(self, totals: Totals) -> None:
        """Called a few times a second, and once at the end."""
        ...


class Silent:
    """An observer that wants nothing."""

    wants_items = False
    wants_skips = False

    def item(self, item: Item) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""

    def progress(self, totals: Totals) -> None:
        """Ignore."""
