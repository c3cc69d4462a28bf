"""What an engine is to carry out: a plan between two open stores, and how much it may use for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

from fastsync.backend import CopyJob, Entry, Sink, Source, WriteOptions
from fastsync.budget import Budget
from fastsync.errors import FastsyncError
from fastsync.events import Operation
from fastsync.location import Location
from fastsync.pace import Pace
from fastsync.plan import Action, DeleteGate, PlanPage, Step

Item = TypeVar("Item", "Action", "Entry")

# One answer per action, or per entry that is to be deleted.
Vet: TypeAlias = Callable[["Sequence[Action | Entry]"], Awaitable[Sequence[FastsyncError | None]]]


class Record(Protocol):
    """Writes down what a dry run would do, in the order of doing it. `entry` is the source's, None for a
    deletion; `late` marks what waits until deletions are done."""

    def __call__(
        self,
        work: Work,
        operation: Operation,
        path: str,
        entry: Entry | None,
        old: Entry | None,
        reason: str,
        *,
        late: bool,
    ) -> None: ...


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Budgets:
    """What a run may use: streams in flight, files at once, bytes per part and in memory, retries; files
    up to `small` bytes travel whole, and all of them at the `pace`. Streams and memory may be `shared` with
    other runs."""

    streams: int = 8
    jobs: int = 8
    chunk_size: int = 16 << 20
    memory: int = 64 << 20
    retries: int = 5
    small: int = 1 << 20
    pace: Pace | None = None
    shared: tuple[Budget, Budget] | None = None


@dataclass(slots=True, eq=False, repr=False)
class Work:
    """One plan to carry out, between two open stores.

    `rename` gives the destination path of a source path where they differ (a single file under a new
    name). `root` is the source directory itself, given when its attributes go along. `protects` says
    that filters hide entries of the destination, which may keep their directories alive. `differ` tells
    whether attributes have to be set (the entry, what stands there, whether times count); `decide` what a
    file needs once both sides have told all they know of it. `yields` means that a file that somebody
    else wrote meanwhile is one to skip. A work that is `last` in its place waits for the works before it,
    so that what it brings stays. `reads_content` compares by reading, whatever the stores can tell.
    What would be overwritten or deleted is copied to `backup` first, if there is one. `xattrs` keeps
    extended attributes, `hard_links` names of one file together, both of stores that know of them.
    `wants_links` says that links were not left out because somebody asked for that.

    `vet` is asked, right before anything is done, about each action and each entry to be deleted, and
    answers with what speaks against it. With `vet` a work is a plan made earlier: what changed since is
    a failure and gets no fresh look, and what waits for the end comes in the order in which it is to run.
    """

    source: Source
    sink: Sink
    pages: AsyncIterator[PlanPage]
    write: WriteOptions
    gate: DeleteGate | None = None
    rename: Callable[[str], str] | None = None
    root: Entry | None = None
    directory_times: bool = False
    protects: bool = False
    differ: Callable[[Entry, Entry, bool], bool] = lambda _entry, _old, _times: True
    decide: Callable[[Entry, Entry], tuple[Step, str]] = lambda _entry, _old: ("copy", "unsettled")
    yields: bool = False
    last: bool = False
    vet: Vet | None = None
    reads_content: bool = False
    backup: Sink | None = None
    xattrs: bool = False
    hard_links: bool = False
    wants_links: bool = False

    def target(self, path: str) -> str:
        """The path at the destination of a source's path."""
        return self.rename(path) if self.rename is not None else path

    def aimed(self, actions: Sequence[Action]) -> Sequence[Action]:
        """The same actions with what stands at the destination by its name there."""
        if self.rename is None:
            return actions
        return [
            action
            if action.old is None
            else action._replace(old=action.old._replace(path=self.rename(action.path)))
            for action in actions
        ]

    def jobs(self, actions: Sequence[Action]) -> list[CopyJob]:
        return [CopyJob(action.entry, self.target(action.path), action.old) for action in actions]

    def places(self, action: Action) -> tuple[Location, Location]:
        """Where an action reads and writes."""
        source = self.source.location.child(action.entry.path)
        return source, self.sink.location.child(self.target(action.path))


async def vetted(
    work: Work, items: Sequence[Item], failed: Callable[[Item, FastsyncError], None]
) -> Sequence[Item]:
    """Those of the items that nothing speaks against; of the others, `failed` hears."""
    if work.vet is None:
        return items
    answers = await work.vet(items)
    for item, error in zip(items, answers, strict=True):
        if error is not None:
            failed(item, error)
    return [item for item, error in zip(items, answers, strict=True) if error is None]
