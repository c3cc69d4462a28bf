"""Two sorted listings in, typed actions out: what a run would do, decided without doing anything.

`plan` merges the pages of both sides. Memory does not grow with the trees: it holds one page of each
side and the few entries whose fate hangs on what comes next (a file here, a directory of that name there).
Actions are data; `PlanPage` sorts them by when they may run:

    now       directories, links, copies, attributes: in this order, as they come
    deletes   only after everything else, and only if rule D allows (`forbid_deletes`)
    later     copies into the place of something that has to be deleted first
    finish    attributes of directories, after the last change inside them
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, TypeAlias

from fastsync.backend import Entry, Fault, Kind, Page, closing
from fastsync.errors import Conflict, FastsyncError, ListingError, SafetyStop
from fastsync.filters import Filter

Comparison: TypeAlias = Literal["mtime", "checksum", "size", "newer"]
Step: TypeAlias = Literal["mkdir", "link", "copy", "settle", "verify", "attributes", "skip"]

# Why entries are deleted, unless another reason is told.
NOT_IN_SOURCE: Final = "not in the source"

# How what is not there yet is made.
_STEPS: Final[dict[Kind, Step]] = {"dir": "mkdir", "link": "link", "file": "copy"}


class Action(NamedTuple):
    """One step: do `step` at `path` of the destination, because of `reason`.

    `entry` is the source's, `old` what stands at the destination (None: nothing). "verify" means copy
    unless the digests agree; "settle" that a store's listing left out what `Rules.decide` needs to know.
    """

    step: Step
    path: str
    entry: Entry
    old: Entry | None
    reason: str

    def __str__(self) -> str:
        name = self.path + "/" if self.entry.kind == "dir" else self.path
        return f"{self.step} {name} ({self.reason})"


@dataclass(slots=True, eq=False, repr=False)
class PlanPage:
    """The next actions, and what was counted on the way to them."""

    now: list[Action] = field(default_factory=list)
    deletes: list[Entry] = field(default_factory=list)
    # Why an entry goes, where it is not for the ordinary reason (`NOT_IN_SOURCE`), by its path.
    reasons: dict[str, str] = field(default_factory=dict)
    later: list[Action] = field(default_factory=list)
    finish: list[Action] = field(default_factory=list)
    skips: list[Action] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    scanned: int = 0
    source_files: int = 0
    destination_files: int = 0
    skipped_files: int = 0
    skipped_bytes: int = 0
    specials: int = 0
    links_left_out: int = 0  # some of them


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Rules:
    """How to compare and what to keep; all about the two stores that the planner needs to know.

    `window_ns` is the largest difference between modification times that means "same"; `mode_mask` the
    permission bits that both sides keep and the run preserves. `show_skips` asks for an action for every
    entry that needs nothing. `completes` says whether the source's and the destination's missing times
    can be asked for; `same_versions` that equal versions mean equal content; `flat` that the source has no
    directories and the destination has, so that "a" and "a/b" cannot both be there. `digests` says that
    both sides can tell digests, so that a file with another time, but the same size, may turn out to be
    the same. A file of equal size and time that was written `recent_ns` (from, to) may have been written to
    once more within the same moment, and its content is compared.
    """

    filter: Filter
    comparison: Comparison = "mtime"
    window_ns: int = 0
    mode_mask: int = 0
    owner: bool = False
    directories: bool = True
    directory_times: bool = False
    links: bool = True
    update: bool = False
    ignore_times: bool = False
    ignore_existing: bool = False
    existing: bool = False
    delete: bool = False
    delete_excluded: bool = False
    show_skips: bool = False
    conflict_hint: str | None = "--delete lets it be replaced"
    completes: tuple[bool, bool] = (False, False)
    same_versions: bool = False
    flat: bool = False
    digests: bool = False
    recent_ns: tuple[int, int] | None = None

    def same_time(self, entry: Entry, old: Entry) -> bool:
        """True when the copy `old` is not older than the file, as far as both sides' times can tell."""
        ours = entry.stored_ns if entry.mtime_ns is None else entry.mtime_ns
        if ours is None:
            return False
        if old.mtime_ns is None:
            # When it was written: later than the source means up to date.
            return old.stored_ns is not None and ours <= old.stored_ns + self.window_ns
        if self.comparison == "newer":
            return ours <= old.mtime_ns + self.window_ns
        return abs(ours - old.mtime_ns) <= self.window_ns

    def decide(self, entry: Entry, old: Entry, *, is_settled: bool = False) -> tuple[Step, str]:
        """What a file needs where a file stands already, and why. `is_settled` when all that the stores
        can tell of both is there."""
        if not is_settled and self._is_open(entry, old):
            return "settle", "times are not listed"
        if self.update and self._is_newer(old, entry):
            return "skip", "destination is newer"
        if self.ignore_times:
            return "copy", "times are ignored"
        if entry.size is None or old.size is None:
            return "copy", "size is unknown"
        if entry.size != old.size:
            return "copy", "size differs"
        if self.comparison == "checksum":
            return "verify", "checksum"
        if (
            self.comparison == "size"
            or (self.same_versions and entry.version is not None and entry.version == old.version)
            or self.same_time(entry, old)
        ):
            if self.is_recent(entry) and self.comparison == "mtime":
                return "verify", "just written"
            if self.attributes_differ(entry, old, times=False):
                return "attributes", "attributes differ"
            return "skip", "unchanged"
        return "verify" if self.digests else "copy", "time differs"

    def is_recent(self, entry: Entry) -> bool:
        """True for a file whose time was taken so shortly before the run that it proves little."""
        bounds, mtime_ns = self.recent_ns, entry.mtime_ns
        return bounds is not None and mtime_ns is not None and bounds[0] <= mtime_ns <= bounds[1]

    def _is_newer(self, old: Entry, entry: Entry) -> bool:
        theirs = old.stored_ns if old.mtime_ns is None else old.mtime_ns
        ours = entry.stored_ns if entry.mtime_ns is None else entry.mtime_ns
        return theirs is not None and ours is not None and theirs > ours + self.window_ns

    def _is_open(self, entry: Entry, old: Entry) -> bool:
        """True when a store should be asked for times that would decide."""
        if not (
            (self.completes[0] and entry.mtime_ns is None)
            or (self.completes[1] and old.mtime_ns is None)
        ):
            return False
        if self.update:
            return True
        if self.ignore_times or self.comparison == "size":
            return False
        if self.comparison == "checksum":
            return entry.size is not None and entry.size == old.size
        if self.same_versions and entry.version is not None and entry.version == old.version:
            return False
        return entry.size is not None and entry.size == old.size

    def attributes_differ(self, entry: Entry, old: Entry, times: bool) -> bool:
        """True when what the run keeps of a file, besides its content, is not what stands there."""
        if entry.mode is not None and old.mode is not None:
            if (entry.mode ^ old.mode) & self.mode_mask:
                return True
        if self.owner and None not in (entry.owner, old.owner) and entry.owner != old.owner:
            return True
        return times and entry.mtime_ns is not None and not self.same_time(entry, old)


def order(entry: Entry) -> str:
    """The key of listings: the full path, "name/" for a directory."""
    return entry.path + "/" if entry.kind == "dir" else entry.path


def before(one: str, other: str) -> bool:
    """True when key `one` comes before `other` in byte order.

    Code points keep the order of UTF-8 bytes except for surrogate escapes, which only non-ASCII text has.
    """
    if one.isascii() and other.isascii():
        return one < other
    return os.fsencode(one) < os.fsencode(other)


class _Above:
    """Finds names of which one is a file and the other, by its path, needs it to be a directory."""

    def __init__(self) -> None:
        # "path/" of files below which more may come, the last one on top.
        self._files: list[str] = []

    def sift(self, entries: list[Entry], faults: list[Fault]) -> list[Entry]:
        """The entries that can be on a disk together with those before them; the rest are faults."""
        files = self._files
        kept: list[Entry] = []
        for entry in entries:
            key = order(entry)
            while files and not key.startswith(files[-1]) and before(files[-1], key):
                files.pop()
            if files and key.startswith(files[-1]):
                error = Conflict("there is a file of the name that its directory should have")
                faults.append(Fault(entry.path, error))
                continue
            kept.append(entry)
            if entry.kind == "file":
                files.append(key + "/")
        return kept


class _Side:
    """One listing, a filtered page at a time."""

    def __init__(
        self, pages: AsyncIterator[Page], chosen: Filter | None, *, flat: bool = False
    ) -> None:
        self._pages = pages
        self._chosen = chosen
        self._above = _Above() if flat else None
        self.entries: list[Entry] = []
        self.index = 0
        self.done = False

    async def fill(self, page: PlanPage, *, is_source: bool) -> None:
        """Make sure there is a current entry, or that the side is done."""
        while self.index >= len(self.entries) and not self.done:
            try:
                entries, faults = await anext(self._pages)
            except StopAsyncIteration:
                self.done = True
                return
            page.faults.extend(faults)
            if self._above is not None:
                entries = self._above.sift(entries, page.faults)
            chosen = entries if self._chosen is None else self._chosen.select(entries)
            if is_source and self._chosen is not None:
                # A version out of bounds is not copied, but it is there: its counterpart stays.
                bounded = self._chosen.is_bounded
                entries = self._chosen.select(entries, bounds=False) if bounded else chosen
            # By index: a page has thousands of entries, and the attribute costs three times as much.
            kinds = [entry[1] for entry in chosen]
            if is_source:
                page.source_files += kinds.count("file")
                page.scanned += len(kinds)
            else:
                # What a deletion counts: links and special files too, as far as filters let it see them.
                page.destination_files += len(kinds) - kinds.count("dir")
            self.entries, self.index = entries, 0


async def plan(
    source: AsyncIterator[Page], destination: AsyncIterator[Page], rules: Rules
) -> AsyncIterator[PlanPage]:
    """Merge two listings into actions. Raises ListingError when a listing is not in order, and whatever
    the listings raise."""
    async with closing(source), closing(destination):
        planner = _Planner(rules)
        select = None if rules.filter.is_empty else rules.filter
        ours = _Side(source, select, flat=rules.flat)
        # The destination is not filtered: what is there counts for its counterpart, whatever its size or
        # age. Filters only keep it from being deleted.
        theirs = _Side(destination, select if rules.delete and not rules.delete_excluded else None)
        while True:
            page = planner.page
            if ours.index >= len(ours.entries):
                await ours.fill(page, is_source=True)
            if theirs.index >= len(theirs.entries):
                await theirs.fill(page, is_source=False)
            if ours.done and theirs.done:
                break
            planner.merge(ours, theirs)
            yield planner.turn()
        planner.end()
        yield planner.turn()


def _past_equal(a: list[Entry], i: int, b: list[Entry], j: int) -> tuple[int, int]:
    """Where two pages stop being equal. Slices of tuples compare without the interpreter; they grow, so
    that a page with nothing to do takes a few, and one full of changes copies little in vain."""
    step = 16
    while i < len(a) and j < len(b):
        step = min(step, len(a) - i, len(b) - j)
        if a[i : i + step] != b[j : j + step]:
            while a[i] == b[j]:
                i += 1
                j += 1
            break
        i += step
        j += step
        step *= 4
    return i, j


class _Planner:
    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.page = PlanPage()
        self._chosen = None if rules.filter.is_empty else rules.filter
        self._bounds = rules.filter if rules.filter.is_bounded else None
        # Equal entries need nothing, unless the rules distrust equal times.
        self._trusts_equal = not (
            rules.ignore_times
            or rules.show_skips
            or rules.comparison == "checksum"
            or rules.filter.is_bounded
        )
        # Source entries without a counterpart, for which a directory of that name may yet be listed.
        self._waiting: list[Entry] = []
        # Destination entries without a counterpart, for which a source directory may yet be listed;
        # each one's path begins with that of the one before. What becomes of them is open until then.
        self._in_the_way: list[Entry] = []
        # "path/" of a destination directory that stays, with all that is in it.
        self._sheltered: str | None = None
        # "path/" of a source directory that cannot be made now, and whether it can be made later.
        self._blocked: str | None = None
        self._postponed = False
        self._above: list[Entry] = []  # source directories on the way to the current entry
        self._touched: set[str] = set()
        self._last_ours = self._last_theirs = ""

    def turn(self) -> PlanPage:
        page, self.page = self.page, PlanPage()
        return page

    def merge(self, ours: _Side, theirs: _Side) -> None:
        """Take entries off both sides until one needs its next page."""
        a, b = ours.entries, theirs.entries
        i, j = ours.index, theirs.index
        while True:
            if i < len(a) and j < len(b):
                if self._trusts_equal and a[i] == b[j] and not self._waiting:
                    first = i
                    i, j = _past_equal(a, i, b, j)
                    self._unchanged(a[first:i])
                    continue
                key, other = order(a[i]), order(b[j])
                if key == other:
                    self._ascending(key, other)
                    self.release(other)
                    self._both(a[i], b[j])
                    i += 1
                    j += 1
                elif before(key, other):
                    self._ascending(key, None)
                    self._only_source(a[i], other)
                    i += 1
                else:
                    self._ascending(None, other)
                    self._only_destination(b[j], other, key)
                    j += 1
            elif i < len(a) and theirs.done:
                self._rest_of_source(a[i:])
                i = len(a)
            elif j < len(b) and ours.done:
                key = order(b[j])
                self._ascending(None, key)
                self._only_destination(b[j], key, None)
                j += 1
            else:
                break
        ours.index, theirs.index = i, j

    def _ascending(self, ours: str | None, theirs: str | None) -> None:
        """A listing out of order could hide entries, and then delete their counterparts."""
        if ours is not None:
            if not before(self._last_ours, ours):
                raise ListingError("the source's listing is not in order", where=ours)
            self._last_ours = ours
        if theirs is not None:
            if not before(self._last_theirs, theirs):
                raise ListingError("the destination's listing is not in order", where=theirs)
            self._last_theirs = theirs

    def _rest_of_source(self, entries: list[Entry]) -> None:
        """What comes behind the destination's end: in a first copy everything, so files come quickly."""
        self.release(None)
        rules = self.rules
        plain = not (rules.existing or rules.directory_times or rules.filter.is_bounded)
        now = self.page.now
        last = self._last_ours
        for entry in entries:
            path = entry.path
            # Plain order is right but for names that are not UTF-8; those `before` judges.
            unhindered = plain and self._blocked is None and not self._in_the_way
            if unhindered and entry.kind == "file" and last < path:
                now.append(Action("copy", path, entry, None, "new"))
                last = path
            else:
                self._last_ours = last
                self._ascending(order(entry), None)
                self._only_source(entry, None)
                last = self._last_ours
        self._last_ours = last

    # -- the cases -----------------------------------------------------------------------------------

    def _unchanged(self, entries: list[Entry]) -> None:
        first = order(entries[0])
        self._ascending(first, first)
        if self.rules.delete:
            # Between equal entries, too, one in the wrong place could hide another.
            keys = [entry[0] + "/" if entry[1] == "dir" else entry[0] for entry in entries]
            plain = "".join(keys).isascii()
            if keys != sorted(keys, key=None if plain else os.fsencode):
                raise ListingError("the listings are not in order", where=first)
        page = self.page
        if (recent := self.rules.recent_ns) is not None:
            since, until = recent
            just = [
                entry
                for entry in entries
                if (time := entry[3]) is not None and since <= time <= until and entry[1] == "file"
            ]
            if just:
                page.now += [Action("verify", e.path, e, e, "just written") for e in just]
                page.skipped_files -= len(just)
                page.skipped_bytes -= sum(entry.size or 0 for entry in just)
        sizes = [entry[2] for entry in entries if entry[1] == "file"]
        page.skipped_files += len(sizes)
        page.skipped_bytes += sum(filter(None, sizes))
        if len(sizes) < len(entries):
            for entry in entries:
                if entry.kind == "dir":
                    self._enter(entry)
                elif entry.kind == "special" or (entry.kind == "link" and not self.rules.links):
                    self._leave_out(entry)
        self._last_ours = self._last_theirs = order(entries[-1])

    def _both(self, entry: Entry, old: Entry) -> None:
        if entry.kind == "dir":
            self._enter(entry)
            if self.rules.attributes_differ(entry, old, times=self.rules.directory_times):
                self._finish(entry, old, "attributes differ")
            return
        if self._is_blocked(entry):
            return
        if self._bounds is not None and not self._bounds.within_bounds(entry):
            if self.rules.delete_excluded:
                self._delete(old)
            return
        if entry.kind == "special":
            self._leave_out(entry)
            return
        if entry.kind == "link":
            if not self.rules.links:
                self._leave_out(entry)
            elif old.kind == "link" and old.target == entry.target:
                self._skip(entry, old, "same target")
            elif self.rules.ignore_existing:
                self._skip(entry, old, "exists")
            else:
                self._do(
                    "link", entry, old, "target differs" if old.kind == "link" else "was a file"
                )
            return
        if self.rules.ignore_existing:
            self._skip(entry, old, "exists")
        elif old.kind != "file":
            self._do("copy", entry, old, "was no regular file")
        else:
            self._compare(entry, old)

    def _compare(self, entry: Entry, old: Entry) -> None:
        step, reason = self.rules.decide(entry, old)
        if step == "skip":
            self._skip(entry, old, reason)
        else:
            self._do(step, entry, old, reason)

    def _only_source(self, entry: Entry, other: str | None) -> None:
        """`other` is the key of the destination's next entry, None at its end."""
        self.release(other)
        if self._bounds is not None and not self._bounds.within_bounds(entry):
            return
        if entry.kind == "dir":
            self._enter(entry)
        elif self._in_the_way and self.rules.directories and not self.rules.existing:
            self._imply(entry)
        if self._is_blocked(entry):
            return
        if entry.kind == "dir":
            self._new_directory(entry)
        elif entry.kind == "special" or (entry.kind == "link" and not self.rules.links):
            self._leave_out(entry)
        elif other is not None and other.startswith(entry.path) and before(other, entry.path + "/"):
            self._waiting.append(entry)
        elif other == entry.path + "/":
            self._waiting.append(entry)  # `_only_destination` is about to meet the directory
        else:
            self._new(entry)

    def _new_directory(self, entry: Entry) -> None:
        rules = self.rules
        if not rules.directories:
            if rules.existing:
                self._skip(entry, None, "does not exist there")
            return
        self._pass(entry.path + "/")
        if not self._in_the_way or self._in_the_way[-1].path != entry.path:
            if rules.existing:
                self._block(entry, for_now=False)  # nothing below it can exist either
                self._skip(entry, None, "does not exist there")
            else:
                self._do("mkdir", entry, None, "new")
                self._finish_new(entry)
            return
        old = self._in_the_way.pop()
        if rules.ignore_existing:
            self._block(entry, for_now=False)
            self._skip(entry, old, "exists")
        elif self._may_delete(old):
            self._displace(old, "directory")
            # Nothing that is in it exists there.
            self._block(entry, for_now=not rules.existing)
            self._touch(entry)
            self.page.later.append(Action("mkdir", entry.path, entry, old, "replaces a file"))
            self._finish_new(entry)
        else:
            self._block(entry, for_now=False)
            self._conflict(entry, "a file stands where the directory should go")

    def _imply(self, entry: Entry) -> None:
        """A source that lists no directories may have one all the same where something else stands."""
        self._pass(entry.path)
        if self._in_the_way and entry.path.startswith(self._in_the_way[-1].path + "/"):
            old = self._in_the_way.pop()
            if self.rules.ignore_existing:
                self._block(old, for_now=False)
                self._skip(old._replace(kind="dir"), old, "exists")
            elif self._block(old, for_now=self._may_delete(old)):
                self._displace(old, "directory")
            else:
                self._conflict(old, "a file stands where the directory should go")

    def _finish_new(self, entry: Entry) -> None:
        """Until the end a new directory is open to us, and its time changes with what comes in."""
        if self.rules.directory_times or (entry.mode is not None and entry.mode & 0o700 != 0o700):
            self._finish(entry, None, "new")

    def _new(self, entry: Entry) -> None:
        if self.rules.existing:
            self._skip(entry, None, "does not exist there")
        else:
            self._do(_STEPS[entry.kind], entry, None, "new")

    def _only_destination(self, old: Entry, key: str, ours: str | None) -> None:
        """`ours` is the key of the source's next entry, None at its end."""
        self.release(key)
        if self._sheltered is not None:
            if key.startswith(self._sheltered):
                return
            self._sheltered = None
        if old.kind == "dir":
            if ours is not None and ours.startswith(key):
                return  # the source has it, too, but lists no directories
            for entry in self._waiting:
                if entry.path == old.path:
                    self._waiting.remove(entry)
                    self._replace_directory(entry, old)
                    return
            self._delete(old)
        else:
            self._pass(key)
            self._in_the_way.append(old)

    def _replace_directory(self, entry: Entry, old: Entry) -> None:
        if self.rules.ignore_existing:
            self._sheltered = old.path + "/"
            self._skip(entry, old, "exists")
        elif self._may_delete(old):
            self._displace(old, entry.kind)
            self._touch(entry)
            step, reason = _STEPS[entry.kind], "replaces a directory"
            self.page.later.append(Action(step, entry.path, entry, old, reason))
        else:
            self._conflict(entry, "a directory stands where the file should go")

    def _may_delete(self, old: Entry) -> bool:
        rules = self.rules
        return rules.delete and (
            self._chosen is None or self._chosen.may_delete(old, excluded=rules.delete_excluded)
        )

    def _delete(self, old: Entry) -> None:
        if self._may_delete(old):
            self._touch(old)
            self.page.deletes.append(old)

    def _displace(self, old: Entry, what: str) -> None:
        self.page.reasons[old.path] = f"makes way for a {what}"
        self._delete(old)

    def _pass(self, key: str) -> None:
        """Forget what stands in the way of directories that can no longer come: both sides are at
        `key`, or past it."""
        while self._in_the_way:
            directory = self._in_the_way[-1].path + "/"
            if key.startswith(directory) or not before(directory, key):
                break
            self._delete(self._in_the_way.pop())

    def release(self, other: str | None) -> None:
        """Let go of waiting entries whose directory can no longer come: the destination is past it."""
        if self._waiting:
            kept = []
            for entry in self._waiting:
                if other is not None and not before(entry.path + "/", other):
                    kept.append(entry)
                else:
                    self._new(entry)
            self._waiting = kept

    def end(self) -> None:
        """Both listings are at their end."""
        self.release(None)
        while self._in_the_way:
            self._delete(self._in_the_way.pop())

    # -- what comes of them --------------------------------------------------------------------------

    def _do(self, step: Step, entry: Entry, old: Entry | None, reason: str) -> None:
        if step != "attributes":
            self._touch(entry)
        self.page.now.append(Action(step, entry.path, entry, old, reason))

    def _skip(self, entry: Entry, old: Entry | None, reason: str) -> None:
        if entry.kind == "file":
            self.page.skipped_files += 1
            self.page.skipped_bytes += entry.size or 0
        if self.rules.show_skips:
            self.page.skips.append(Action("skip", entry.path, entry, old, reason))

    def _leave_out(self, entry: Entry) -> None:
        self.page.specials += 1
        self.page.links_left_out += entry.kind == "link"

    def _conflict(self, entry: Entry, what: str) -> None:
        hint = "a filter protects it" if self.rules.delete else self.rules.conflict_hint
        error = Conflict(what, hint=hint)
        self.page.faults.append(Fault(entry.path, error))

    def _block(self, directory: Entry, *, for_now: bool) -> bool:
        """Let nothing happen below a directory, or not before the end; `for_now` again."""
        self._blocked = directory.path + "/"
        self._postponed = for_now
        return for_now

    def _is_blocked(self, entry: Entry) -> bool:
        """True below a directory that is not there yet or cannot be made; such copies come later."""
        if self._blocked is None:
            return False
        if not entry.path.startswith(self._blocked):
            self._blocked = None
            return False
        if self._postponed:
            if entry.kind == "special" or (entry.kind == "link" and not self.rules.links):
                self._leave_out(entry)
                return True
            if entry.kind == "dir":
                self._finish_new(entry)
            self.page.later.append(Action(_STEPS[entry.kind], entry.path, entry, None, "new"))
        return True

    def _enter(self, entry: Entry) -> None:
        if self.rules.directory_times:
            self._pass(entry.path + "/")  # what it deletes touches directories that are left now
            self._leave(entry.path)
            self._above.append(entry)

    def _leave(self, path: str) -> None:
        while self._above and not path.startswith(self._above[-1].path + "/"):
            self._touched.discard(self._above.pop().path)

    def _touch(self, entry: Entry) -> None:
        """Changing an entry changes its directory's time, which must be set again at the end."""
        if self.rules.directory_times:
            parent = entry.path.rpartition("/")[0]
            for directory in reversed(self._above):
                if directory.path == parent and directory.mtime_ns is not None:
                    self._finish(directory, None, "changed inside")
                    break

    def _finish(self, entry: Entry, old: Entry | None, reason: str) -> None:
        if self.rules.directory_times:
            if entry.path in self._touched:
                return
            self._touched.add(entry.path)
        self.page.finish.append(Action("attributes", entry.path, entry, old, reason))


class DeleteGate(NamedTuple):
    """What the user allows: at most `files` or `percent` of the destination's files, None for no limit.

    By default only a run that deletes many *and* most is stopped, so small trees are never in the way.
    """

    files: int | None = None
    percent: float | None = None
    allow_empty_source: bool = False

    def refuses(self, doomed: int, total: int) -> str | None:
        """The reason to delete nothing of `total` files when `doomed` would go, or None."""
        share = 100 * doomed / total if total else 0.0
        described = f"{doomed} of {total} files ({share:.0f} %) would be deleted"
        if self.files is not None and doomed > self.files:
            return f"{described}, --max-delete allows {self.files}"
        if self.percent is not None and share > self.percent:
            return f"{described}, --max-delete allows {self.percent:g} %"
        if self.files is None and self.percent is None and doomed > 100 and share > 50:
            return f"{described}; --max-delete 100% allows it"
        return None


def forbid_deletes(
    gate: DeleteGate,
    *,
    doomed_files: int,
    destination_files: int,
    source_entries: int,
    faults: Iterable[FastsyncError],
    copy_errors: Iterable[FastsyncError],
) -> FastsyncError | None:
    """Rule D: why nothing may be deleted in this run, or None.

    Vanished and changing sources do not count: what is gone cannot be hidden by an error.
    """
    for error in faults:
        return ListingError(f"not deleting: a listing is incomplete ({error})")
    for error in copy_errors:
        if error.exit_code != 8:
            return SafetyStop(f"not deleting: a copy failed ({error})")
    if source_entries == 0 and not gate.allow_empty_source:
        return SafetyStop(
            "not deleting: the source is empty", hint="--allow-empty-source if that is right"
        )
    reason = gate.refuses(doomed_files, destination_files)
    return SafetyStop(f"not deleting: {reason}") if reason else None
