"""The planner, held against a model: random trees, whose actions are carried out in the engine's order."""

from __future__ import annotations

import dataclasses
import itertools
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias, TypeVar

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from fastsync.backend import Entry, Fault, Kind, Owner, Page
from fastsync.errors import (
    AccessRefused,
    Changed,
    Conflict,
    DestinationFull,
    FastsyncError,
    IntegrityError,
    ListingError,
    PermissionRefused,
    SafetyStop,
    Transient,
    Vanished,
)
from fastsync.filters import Filter, Rule
from fastsync.names import path_key
from fastsync.plan import (
    Action,
    DeleteGate,
    PlanPage,
    Rules,
    before,
    forbid_deletes,
    order,
    plan,
)

T = TypeVar("T")

NOW = 10**18  # the time of whatever a run itself touches
ALL = 0o7777


class Node(NamedTuple):
    """What stands at a path of a model tree."""

    kind: Kind
    size: int | None = None
    mtime_ns: int = 0
    mode: int = 0o644
    target: str | None = None


Tree: TypeAlias = dict[str, Node]


# -- running a planner without an event loop: nothing in these tests really waits ---------------------


def now(work: Coroutine[Any, Any, T]) -> T:
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("it waited")


def planned(pages: AsyncIterator[PlanPage]) -> Iterator[PlanPage]:
    while True:
        try:
            yield now(pages.__anext__())  # type: ignore[arg-type]
        except StopAsyncIteration:
            return


async def in_pages(entries: list[Entry], cuts: Iterable[int] = ()) -> AsyncIterator[Page]:
    start = 0
    for stop in sorted({*(cut for cut in cuts if 0 < cut < len(entries)), len(entries)}):
        if entries[start:stop]:
            yield Page(entries[start:stop])
        start = stop


class Planned(NamedTuple):
    """Everything a plan said, its pages put together."""

    now: list[Action]
    deletes: list[Entry]
    later: list[Action]
    finish: list[Action]
    skips: list[Action]
    faults: list[tuple[str, str]]
    counts: tuple[int, ...]


def run_plan(
    source: list[Entry],
    destination: list[Entry],
    rules: Rules,
    cuts: tuple[list[int], list[int]] = ([], []),
) -> Planned:
    pages = list(planned(plan(in_pages(source, cuts[0]), in_pages(destination, cuts[1]), rules)))
    lists = {
        name: [item for page in pages for item in getattr(page, name)]
        for name in Planned._fields[:-1]
    }
    numbers = (
        "scanned", "source_files", "destination_files", "skipped_files", "skipped_bytes", "specials",
    )  # fmt: skip
    counts = tuple(sum(getattr(page, name) for page in pages) for name in numbers)
    told = Planned(**lists, counts=counts)
    return told._replace(faults=[(path, str(error)) for path, error in told.faults])


# -- trees and what they look like in a listing -------------------------------------------------------


def listing(tree: Tree) -> list[Entry]:
    entries = [
        Entry(path, node.kind, node.size, node.mtime_ns, node.mode, node.target)
        for path, node in tree.items()
    ]
    return sorted(entries, key=lambda entry: path_key(order(entry)))


def parent(path: str) -> str:
    return path.rpartition("/")[0]


def ancestors(path: str) -> Iterator[str]:
    while path := parent(path):
        yield path


# Names around "/" in byte order, and where string order and byte order differ.
NAMES = (
    "a", "a-b", "b", "a.txt", "\u00e9", "a0", "\udc80", "a ", "ab", "b!", "\uffee", "\U0001f600",
    "a\udcff", "\n",
)  # fmt: skip
DEEP = NAMES[:7]
PATHS = (
    st.sampled_from(NAMES)
    | st.sampled_from([f"{one}/{two}" for one in DEEP for two in NAMES])
    | st.sampled_from([f"{one}/{two}/{three}" for one in DEEP for two in DEEP for three in DEEP])
)
FILES = [
    Node("file", size, mtime_ns, mode)
    for size, mtime_ns, mode in itertools.product((0, 1), (0, 5, 10**9), (0o600, 0o644, 0o4755))
]
LINKS = [Node("link", None, 0, 0o777, target) for target in ("x", "y/z")]
SPECIALS = [Node("special", None, mtime_ns) for mtime_ns in (0, 5)]
DIRECTORIES = [
    Node("dir", None, mtime_ns, mode)
    for mtime_ns, mode in itertools.product((0, 5), (0o755, 0o700, 0o555, 0o1777, 0))
]
NODES = st.sampled_from(FILES) | st.sampled_from(DIRECTORIES + LINKS + SPECIALS)


def grown(wanted: Tree) -> Tree:
    """A tree as a disk can hold it: nothing below what is no directory, and all directories there."""
    tree: Tree = {}
    for path, node in sorted(wanted.items()):
        if all(tree.get(up, node).kind == "dir" or up not in tree for up in ancestors(path)):
            for number, up in enumerate(ancestors(path)):
                tree.setdefault(up, DIRECTORIES[(len(path) + number) % len(DIRECTORIES)])
            tree[path] = node
    return tree


TREES = st.dictionaries(PATHS, NODES, max_size=12)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tree, Tree]:
    """Two trees that share some of what is in them."""
    ours, theirs, shares = draw(TREES), draw(TREES), draw(st.integers(0, 2**12 - 1))
    shared = {
        path: node for number, (path, node) in enumerate(ours.items()) if shares >> number & 1
    }
    return grown(ours), grown({**theirs, **shared})


CUTS = st.tuples(*[st.lists(st.integers(0, 30), max_size=6)] * 2)
PATTERNS = (
    "a",
    "/a",
    "a/",
    "*.txt",
    "/a/**",
    "a*",
    "b/a",
    "[!a]*",
    "/\u00e9/*",
    "**/a0",
    "a-b/",
    "*",
)
EACH_RULE = [Rule(include, pattern) for include in (False, True) for pattern in PATTERNS]
FILTERS = st.builds(
    Filter,
    st.lists(st.sampled_from(EACH_RULE), max_size=3),
    min_size=st.none() | st.just(1),
    max_depth=st.none() | st.integers(1, 3),
)
RULES = st.builds(
    Rules,
    filter=st.just(Filter()) | FILTERS,
    comparison=st.sampled_from(["mtime", "checksum", "size", "newer"]),
    window_ns=st.sampled_from([0, 5]),
    mode_mask=st.sampled_from([0, 0o777, ALL]),
    directory_times=st.booleans(),
    links=st.booleans(),
    update=st.booleans(),
    ignore_times=st.booleans(),
    ignore_existing=st.booleans(),
    existing=st.booleans(),
    delete=st.booleans(),
    show_skips=st.booleans(),
)


# -- carrying a plan out, as strictly as a disk would -------------------------------------------------


class Model:
    """A destination. Refuses what a disk would refuse, and ages directories as a disk does."""

    def __init__(self, tree: Tree) -> None:
        self.tree = dict(tree)
        self.refused: list[str] = []

    def carry_out(self, done: Planned, *, directory_times: bool) -> Tree:
        for action in done.now:
            self.do(action)
        for entry in reversed(done.deletes):
            self.delete(entry)
        for action in done.later:
            self.do(action)
        for action in reversed(done.finish):
            assert action.step == "attributes"
            self.dress(action, times=directory_times)
        return self.tree

    def do(self, action: Action) -> None:
        if action.step == "attributes":
            self.dress(action, times=True)
            return
        path, old = action.path, self.tree.get(action.path)
        above = parent(path)
        if above and (above not in self.tree or self.tree[above].kind != "dir"):
            assert above in self.refused, f"{action}: there is no directory {above!r}"
            self.refused.append(path)
            return
        if action.step == "mkdir":
            assert action.entry.kind == "dir"
            if old is not None:
                self.refused.append(path)
                return
            mode = (action.entry.mode or 0) | 0o700
            self.put(path, Node("dir", None, NOW, mode))
            return
        assert (action.step == "link") == (action.entry.kind == "link")
        assert action.step in ("link", "copy", "verify")
        if old is not None and old.kind == "dir":
            self.refused.append(path)
            return
        entry = action.entry
        assert entry.mtime_ns is not None
        assert entry.mode is not None
        self.put(path, Node(entry.kind, entry.size, entry.mtime_ns, entry.mode, entry.target))

    def put(self, path: str, node: Node) -> None:
        self.tree[path] = node
        self.age(path)

    def make_parents(self, path: str) -> None:
        for above in reversed(list(ancestors(path))):
            assert self.tree.setdefault(above, Node("dir", None, NOW, 0o755)).kind == "dir"

    def age(self, path: str) -> None:
        if above := parent(path):
            self.tree[above] = self.tree[above]._replace(mtime_ns=NOW)

    def delete(self, entry: Entry) -> None:
        assert self.tree[entry.path].kind == entry.kind
        if any(path.startswith(entry.path + "/") for path in self.tree):
            self.refused.append(entry.path)
        else:
            del self.tree[entry.path]
            self.age(entry.path)

    def dress(self, action: Action, *, times: bool) -> None:
        node = self.tree[action.path]
        assert node.kind == action.entry.kind, f"{action} meets a {node.kind}"
        assert action.entry.mode is not None
        assert action.entry.mtime_ns is not None
        self.tree[action.path] = node._replace(
            mode=action.entry.mode, mtime_ns=action.entry.mtime_ns if times else node.mtime_ns
        )


def seen(node: Node | None, *, times: bool) -> object:
    """What of a node a sync promises: a link's text, a file's everything, a directory's mode and time."""
    if node is None or node.kind == "link":
        return node and (node.kind, node.target)
    if node.kind == "dir" and not times:
        return node.kind, node.mode
    return node


def crossed(source: Tree, destination: Tree) -> set[str]:
    """Where one side has a directory and the other something else, topmost only."""
    found = {
        path
        for path in source.keys() & destination.keys()
        if (source[path].kind == "dir") != (destination[path].kind == "dir")
    }
    return {path for path in found if not found.intersection(ancestors(path))}


FULL = Rules(filter=Filter(), mode_mask=ALL, directory_times=True, delete=True)


@settings(max_examples=200)
@given(trees=pairs(), cuts=CUTS, times=st.booleans())
@example(  # a file that waits for a directory of its name, and directories entered meanwhile
    trees=(
        {
            "d": Node("dir", mode=0o755),
            "d/a": Node("file", 1),
            "d/a-b": Node("file", 1),
            "e": Node("dir", mode=0o755),
            "e/x": Node("file", 1),
        },
        {
            "d": Node("dir", mode=0o755),
            "d/a-b": Node("file", 1),
            "e": Node("dir", mode=0o755),
        },
    ),
    cuts=([], []),
    times=True,
)
def test_mirror(trees: tuple[Tree, Tree], cuts: tuple[list[int], list[int]], times: bool) -> None:
    """With delete the destination becomes the source, and then there is nothing left to do."""
    source, destination = trees
    rules = dataclasses.replace(FULL, directory_times=times)
    done = run_plan(listing(source), listing(destination), rules, cuts)
    assert done.faults == []
    model = Model(destination)
    result = model.carry_out(done, directory_times=times)
    assert model.refused == []
    wanted = {path: node for path, node in source.items() if node.kind != "special"}
    for path, node in source.items():
        # A special file is not copied, and what stands in its place, file or link, is nobody's business.
        if node.kind == "special" and path in destination and destination[path].kind != "dir":
            wanted[path] = destination[path]
    assert result.keys() == wanted.keys()
    for path in wanted:
        assert seen(result[path], times=times) == seen(wanted[path], times=times), path
    again = run_plan(listing(source), listing(result), rules)
    assert (again.now, again.deletes, again.later, again.finish) == ([], [], [], [])
    assert again.counts[3] == sum(1 for node in source.values() if node.kind == "file")


@settings(max_examples=120)
@given(trees=pairs(), cuts=CUTS, times=st.booleans())
def test_update(trees: tuple[Tree, Tree], cuts: tuple[list[int], list[int]], times: bool) -> None:
    """Without delete nothing goes, what can be copied is right, and the rest is said."""
    source, destination = trees
    rules = dataclasses.replace(FULL, delete=False, directory_times=times)
    done = run_plan(listing(source), listing(destination), rules, cuts)
    assert (done.deletes, done.later) == ([], [])
    model = Model(destination)
    result = model.carry_out(done, directory_times=times)
    assert model.refused == []
    conflicts = {path for path in crossed(source, destination) if source[path].kind != "special"}
    assert {path for path, _ in done.faults} == conflicts
    for path, node in destination.items():
        assert path in result
        if path not in source:
            assert seen(result[path], times=False) == seen(node, times=False)
    for path, node in source.items():
        if node.kind != "special" and not conflicts.intersection([path, *ancestors(path)]):
            # A directory that keeps more than the source has a time of its own only if it changed.
            assert seen(result.get(path), times=False) == seen(node, times=False)
    again = run_plan(listing(source), listing(result), rules)
    assert (again.now, again.finish) == ([], [])


@settings(max_examples=200)
@given(trees=pairs(), rules=RULES, cuts=CUTS)
@example(  # a directory that may not be made where a file stands
    trees=({"a": Node("dir"), "a/a": Node("file", 1)}, {"a": Node("file", 1)}),
    rules=dataclasses.replace(FULL, existing=True),
    cuts=([], []),
)
@example(  # versions out of bounds, on either side
    trees=(
        {"a": Node("file", 0), "b": Node("file", 1)},
        {"a": Node("file", 1), "b": Node("file", 0)},
    ),
    rules=dataclasses.replace(FULL, filter=Filter(min_size=1)),
    cuts=([], []),
)
def test_any_rules(
    trees: tuple[Tree, Tree], rules: Rules, cuts: tuple[list[int], list[int]]
) -> None:
    """Whatever the rules are, what they protect stays as it is."""
    source, destination = trees
    ours, theirs = listing(source), listing(destination)
    done = run_plan(ours, theirs, rules, cuts)
    model = Model(destination)
    result = model.carry_out(done, directory_times=rules.directory_times)
    chosen = {entry.path for entry in rules.filter.select(ours)}
    in_scope = {entry.path for entry in rules.filter.select(theirs)}
    matched = {
        path
        for path in chosen & destination.keys()
        if (source[path].kind == "dir") == (destination[path].kind == "dir")
    }
    protected = destination.keys() - in_scope - matched

    actions = [*done.now, *done.later, *done.finish]
    assert all(action.path in chosen for action in actions)
    assert all(action.entry == entry_of(source, action.path) for action in actions)
    for path in protected:
        # A directory's time changes with what happens inside it.
        assert seen(result[path], times=False) == seen(destination[path], times=False)

    doomed = {entry.path for entry in done.deletes}
    assert doomed <= in_scope - matched
    assert rules.delete or not doomed
    for path in doomed & source.keys():
        # What the source has is not deleted, whether it is to be copied or not, save for a directory
        # that has to become something else, or the reverse.
        assert (source[path].kind == "dir") != (destination[path].kind == "dir")
    for path in destination.keys() - doomed:
        assert path in result
    for path in model.refused:
        # Only a directory that protects something may refuse to make way.
        assert any(
            hidden.startswith(up + "/") for hidden in protected for up in (path, *ancestors(path))
        )

    conflicts = crossed({path: source[path] for path in chosen}, destination)
    for action in done.later:
        assert conflicts.intersection([action.path, *ancestors(action.path)])
    if rules.existing:
        assert result.keys() <= destination.keys()
    if rules.ignore_existing:
        for path in destination.keys() - doomed:
            if destination[path].kind != "dir":
                assert result[path] == destination[path]
    if not rules.links:
        assert all(action.entry.kind != "link" for action in actions)
    assert all(action.entry.kind != "special" for action in actions)

    if rules.directory_times:
        dressed = {action.path for action in done.finish}
        assert len(dressed) == len(done.finish)
        for path, node in result.items():
            if node.kind == "dir" and node.mtime_ns == NOW:
                assert path not in chosen or path in model.refused
    else:
        assert len({action.path for action in done.finish}) == len(done.finish)


def entry_of(tree: Tree, path: str) -> Entry:
    (entry,) = listing({path: tree[path]})
    return entry


@given(trees=pairs(), rules=RULES, cuts=CUTS)
def test_pages_do_not_matter(
    trees: tuple[Tree, Tree], rules: Rules, cuts: tuple[list[int], list[int]]
) -> None:
    """However the listings are cut, and whether skips are shown or not, the plan is the same."""
    ours, theirs = listing(trees[0]), listing(trees[1])
    one = run_plan(ours, theirs, dataclasses.replace(rules, show_skips=True))
    other = run_plan(ours, theirs, dataclasses.replace(rules, show_skips=False), cuts)
    assert other.skips == []
    assert one._replace(skips=[]) == other
    each = run_plan(ours, theirs, rules, (list(range(len(ours))), list(range(len(theirs)))))
    assert each._replace(skips=[]) == other


@given(trees=pairs(), cuts=CUTS, least=st.none() | st.just(1))
def test_delete_excluded(
    trees: tuple[Tree, Tree], cuts: tuple[list[int], list[int]], least: int | None
) -> None:
    """With delete_excluded the destination becomes what the filter leaves of the source."""
    source, destination = trees
    chosen = Filter([Rule(False, "a*"), Rule(False, "/b/")], min_size=least)
    rules = dataclasses.replace(FULL, filter=chosen, delete_excluded=True)
    done = run_plan(listing(source), listing(destination), rules, cuts)
    model = Model(destination)
    result = model.carry_out(done, directory_times=True)
    kept = {entry.path for entry in chosen.select(listing(source))}
    for path, node in result.items():
        assert path in kept
        if source[path].kind != "special":
            assert seen(node, times=True) == seen(source[path], times=True)
    assert {path for path in kept if source[path].kind != "special"} <= result.keys()


# -- stores without directories -----------------------------------------------------------------------


@st.composite
def flat_pairs(draw: st.DrawFn) -> tuple[Tree, Tree]:
    """A tree with directories, and files in a store that has none: "a" may stand beside "a/b"."""
    files = st.dictionaries(PATHS, st.sampled_from(FILES), max_size=10)
    ours = st.dictionaries(PATHS, st.sampled_from(FILES + DIRECTORIES), max_size=10)
    return grown(draw(ours)), draw(files)


@given(trees=flat_pairs(), cuts=CUTS, existing=st.booleans())
@example(
    trees=({"d": Node("dir"), "d/a": Node("file", 1)}, {"d/a": Node("file", 2)}),
    cuts=([], []),
    existing=True,
)
def test_to_a_store_without_directories(
    trees: tuple[Tree, Tree], cuts: tuple[list[int], list[int]], existing: bool
) -> None:
    """Only files count; a directory is neither made nor missed."""
    source, destination = trees
    rules = dataclasses.replace(
        FULL, mode_mask=0, directories=False, directory_times=False, existing=existing
    )
    done = run_plan(listing(source), listing(destination), rules, cuts)
    assert {action.step for action in done.now} <= {"copy"}
    assert (done.later, done.finish, done.faults) == ([], [], [])
    result = dict(destination)
    for entry in done.deletes:
        del result[entry.path]
    for action in done.now:
        result[action.path] = source[action.path]
    wanted = {path: node for path, node in source.items() if node.kind == "file"}
    if existing:
        wanted = {path: node for path, node in wanted.items() if path in destination}
    assert result.keys() == wanted.keys()
    for path, node in wanted.items():
        assert (result[path].size, result[path].mtime_ns) == (node.size, node.mtime_ns)


def beside_itself(tree: Tree) -> bool:
    """Whether a file's path is also that of a directory, which no disk could hold."""
    return any(up in tree and tree[up].kind != "dir" for path in tree for up in ancestors(path))


@given(trees=flat_pairs(), cuts=CUTS, delete=st.booleans())
@example(
    trees=({"a": Node("file", 1), "a-b": Node("file", 1)}, {"a/b": Node("file", 1)}),
    cuts=([], []),
    delete=True,
)
@example(
    trees=({"d": Node("dir"), "d/e": Node("dir"), "d/e/f": Node("file", 1)}, {"d/a": Node("file")}),
    cuts=([], []),
    delete=True,
)
def test_from_a_store_without_directories(
    trees: tuple[Tree, Tree], cuts: tuple[list[int], list[int]], delete: bool
) -> None:
    """A directory that the source has, although it lists none, is kept, and made where it is missing."""
    destination, source = trees
    assume(not beside_itself(source))
    rules = dataclasses.replace(FULL, directory_times=False, delete=delete)
    done = run_plan(listing(source), listing(destination), rules, cuts)
    implied = {up: Node("dir") for path in source for up in ancestors(path)}
    conflicts = crossed({**source, **implied}, destination)
    assert {path for path, _ in done.faults} == (set() if delete else conflicts)
    model = Model(destination)
    for action in [*done.now, *done.later]:
        assert action.step in ("copy", "attributes")
    assert done.finish == []
    for action in done.now:
        model.make_parents(action.path)
        model.do(action)
    for entry in reversed(done.deletes):
        model.delete(entry)
    for action in done.later:
        model.make_parents(action.path)
        model.do(action)
    assert model.refused == []
    for path, node in source.items():
        if delete or not conflicts.intersection([path, *ancestors(path)]):
            assert model.tree[path] == node
    if delete:
        assert model.tree.keys() == source.keys() | implied.keys()
    else:
        assert model.tree.keys() >= destination.keys()


# -- truth tables -------------------------------------------------------------------------------------


def file(
    path: str = "f", *, size: int | None = 1, mtime_ns: int | None = 0, mode: int | None = 0o644
) -> Entry:
    return Entry(path, "file", size, mtime_ns, mode)


def directory(path: str, *, mtime_ns: int = 0, mode: int = 0o755) -> Entry:
    return Entry(path, "dir", None, mtime_ns, mode)


def link(path: str = "f", target: str = "x") -> Entry:
    return Entry(path, "link", None, 0, 0o777, target)


def verdict(source: list[Entry], destination: list[Entry], **rules: Any) -> str:
    """What becomes of the one entry: its action as it prints, or "conflict", or "special"."""
    rules = {"filter": Filter(), "show_skips": True, **rules}
    done = run_plan(source, destination, Rules(**rules))
    said = [str(action) for action in [*done.now, *done.later, *done.skips]]
    said += ["conflict" for _ in done.faults] + ["special"] * done.counts[-1]
    quiet = run_plan(source, destination, Rules(**{**rules, "show_skips": False}))
    assert done._replace(skips=[]) == quiet
    return "; ".join(said)


COPY_SIZE, COPY_TIME, COPY_NEW = "copy f (size differs)", "copy f (time differs)", "copy f (new)"
SAME, SET = "skip f (unchanged)", "attributes f (attributes differ)"
EXISTS, MISSING = "skip f (exists)", "skip f (does not exist there)"
NEWER = "skip f (destination is newer)"


@pytest.mark.parametrize(
    ("rules", "entry", "old", "expected"),
    [
        # by size and time
        ({}, file(), None, COPY_NEW),
        ({}, file(), file(), SAME),
        ({}, file(size=0), file(size=0), SAME),
        ({}, file(size=2), file(), COPY_SIZE),
        ({}, file(mtime_ns=5), file(), COPY_TIME),
        ({}, file(), file(mtime_ns=5), COPY_TIME),
        ({}, file(mtime_ns=None), file(), COPY_TIME),
        ({}, file(), file(mtime_ns=None), COPY_TIME),
        ({}, file(size=None), file(), "copy f (size is unknown)"),
        ({}, file(), file(size=None), "copy f (size is unknown)"),
        # within a window
        ({"window_ns": 5}, file(mtime_ns=5), file(), SAME),
        ({"window_ns": 5}, file(), file(mtime_ns=5), SAME),
        ({"window_ns": 5}, file(mtime_ns=6), file(), COPY_TIME),
        ({"window_ns": 5}, file(), file(mtime_ns=6), COPY_TIME),
        ({"window_ns": 5}, file(size=2), file(), COPY_SIZE),
        # by size alone
        ({"comparison": "size"}, file(mtime_ns=5), file(), SAME),
        ({"comparison": "size"}, file(mtime_ns=None), file(mtime_ns=None), SAME),
        ({"comparison": "size"}, file(size=2), file(), COPY_SIZE),
        ({"comparison": "size"}, file(size=None), file(), "copy f (size is unknown)"),
        # newer than the copy
        ({"comparison": "newer"}, file(mtime_ns=5), file(mtime_ns=5), SAME),
        ({"comparison": "newer"}, file(mtime_ns=5), file(mtime_ns=9), SAME),
        ({"comparison": "newer"}, file(mtime_ns=5), file(mtime_ns=4), COPY_TIME),
        ({"comparison": "newer", "window_ns": 1}, file(mtime_ns=5), file(mtime_ns=4), SAME),
        ({"comparison": "newer"}, file(mtime_ns=None), file(mtime_ns=9), COPY_TIME),
        ({"comparison": "newer"}, file(mtime_ns=5), file(mtime_ns=9, size=2), COPY_SIZE),
        # by content
        ({"comparison": "checksum"}, file(), file(), "verify f (checksum)"),
        ({"comparison": "checksum"}, file(mtime_ns=5), file(), "verify f (checksum)"),
        ({"comparison": "checksum"}, file(size=2), file(), COPY_SIZE),
        ({"comparison": "checksum"}, file(), None, COPY_NEW),
        # --update
        ({"update": True}, file(mtime_ns=4), file(mtime_ns=5), NEWER),
        ({"update": True}, file(mtime_ns=4, size=2), file(mtime_ns=5), NEWER),
        ({"update": True}, file(mtime_ns=5, size=2), file(mtime_ns=5), COPY_SIZE),
        ({"update": True}, file(mtime_ns=6), file(mtime_ns=5), COPY_TIME),
        ({"update": True, "window_ns": 1}, file(mtime_ns=4, size=2), file(mtime_ns=5), COPY_SIZE),
        ({"update": True, "window_ns": 1}, file(mtime_ns=4), file(mtime_ns=6), NEWER),
        ({"update": True}, file(mtime_ns=None), file(mtime_ns=5), COPY_TIME),
        ({"update": True}, file(), None, COPY_NEW),
        ({"update": True, "comparison": "size"}, file(mtime_ns=4), file(mtime_ns=5), NEWER),
        ({"update": True, "comparison": "checksum"}, file(mtime_ns=4), file(mtime_ns=5), NEWER),
        # --ignore-times
        ({"ignore_times": True}, file(), file(), "copy f (times are ignored)"),
        ({"ignore_times": True, "comparison": "size"}, file(), file(), "copy f (times are ignored)"),
        ({"ignore_times": True, "update": True}, file(), file(mtime_ns=5), NEWER),
        # --ignore-existing and --existing
        ({"ignore_existing": True}, file(size=2), file(), EXISTS),
        ({"ignore_existing": True}, file(mode=0), file(), EXISTS),
        ({"ignore_existing": True}, file(), link(), EXISTS),
        ({"ignore_existing": True}, link(), link(target="y"), EXISTS),
        ({"ignore_existing": True}, file(), None, COPY_NEW),
        ({"existing": True}, file(), None, MISSING),
        ({"existing": True}, link(), None, MISSING),
        ({"existing": True}, file(size=2), file(), COPY_SIZE),
        ({"existing": True, "ignore_existing": True}, file(size=2), file(), EXISTS),
        ({"existing": True, "ignore_existing": True}, file(), None, MISSING),
        # attributes
        ({"mode_mask": 0o777}, file(mode=0o600), file(), SET),
        ({"mode_mask": 0o777}, file(mode=0o4644), file(), SAME),
        ({"mode_mask": ALL}, file(mode=0o4644), file(), SET),
        ({"mode_mask": 0}, file(mode=0o600), file(), SAME),
        ({"mode_mask": ALL}, file(mode=None), file(), SAME),
        ({"mode_mask": ALL}, file(), file(mode=None), SAME),
        ({"mode_mask": ALL, "comparison": "size"}, file(mode=0o600), file(mtime_ns=5), SET),
        ({"mode_mask": ALL, "comparison": "newer"}, file(mode=0o600), file(mtime_ns=5), SET),
        ({"mode_mask": ALL}, file(mode=0o600, mtime_ns=5), file(), COPY_TIME),
        ({"owner": True}, file()._replace(owner=Owner(1, 2)), file()._replace(owner=Owner(1, 3)), SET),
        ({"owner": False}, file()._replace(owner=Owner(1, 2)), file(), SAME),
        ({"owner": True}, file()._replace(owner=Owner(1, 2)), file(), SAME),
        ({"owner": True}, file(), file()._replace(owner=Owner(1, 2)), SAME),
        # links
        ({}, link(), None, "link f (new)"),
        ({}, link(), link(), "skip f (same target)"),
        ({}, link(), link()._replace(mtime_ns=5), "skip f (same target)"),
        ({}, link(target="y"), link(), "link f (target differs)"),
        ({}, link(), file(), "link f (was a file)"),
        ({}, file(), link(), "copy f (was no regular file)"),
        ({"links": False}, link(), None, "special"),
        ({"links": False}, link(), link(), "special"),
        ({"links": False}, link(), file(), "special"),
        # special files
        ({}, Entry("f", "special", None, 0, 0o644), None, "special"),
        ({}, Entry("f", "special", None, 0, 0o644), file(), "special"),
        ({}, file(), Entry("f", "special", None, 0, 0o644), "copy f (was no regular file)"),
        # directories
        ({}, directory("f"), None, "mkdir f/ (new)"),
        ({}, directory("f", mode=0o700, mtime_ns=5), directory("f"), ""),
        ({"directories": False}, directory("f"), None, ""),
        ({"existing": True}, directory("f"), None, "skip f/ (does not exist there)"),
        # one kind in another's place
        ({}, directory("f"), file(), "conflict"),
        ({}, directory("f"), link(), "conflict"),
        ({}, file(), directory("f"), "conflict"),
        ({}, link(), directory("f"), "conflict"),
        ({"delete": True}, directory("f"), file(), "mkdir f/ (replaces a file)"),
        ({"delete": True}, file(), directory("f"), "copy f (replaces a directory)"),
        ({"delete": True}, link(), directory("f"), "link f (replaces a directory)"),
    ],
)  # fmt: skip
def test_verdicts(rules: dict[str, Any], entry: Entry, old: Entry | None, expected: str) -> None:
    assert verdict([entry], [old] if old else [], **rules) == expected


@pytest.mark.parametrize(
    ("rules", "entry", "old", "dressed"),
    [
        ({}, directory("d"), directory("d", mode=0o700), False),
        ({"mode_mask": ALL}, directory("d"), directory("d", mode=0o700), True),
        ({"mode_mask": ALL}, directory("d"), directory("d", mtime_ns=5), False),
        ({"directory_times": True}, directory("d"), directory("d", mtime_ns=5), True),
        ({"directory_times": True, "window_ns": 5}, directory("d"), directory("d", mtime_ns=5), False),
        ({"directory_times": True}, directory("d"), directory("d"), False),
        # What no source can tell is no reason to set it, run after run.
        ({"directory_times": True}, directory("d")._replace(mtime_ns=None), directory("d"), False),
        (
            {"owner": True},
            directory("d")._replace(owner=Owner(1, 2)),
            directory("d")._replace(owner=Owner(0, 2)),
            True,
        ),
        ({}, directory("d"), None, False),
        ({"directory_times": True}, directory("d"), None, True),
        # Made writable for us, a new directory gets the rest of its mode at the end.
        ({}, directory("d", mode=0o555), None, True),
        ({}, directory("d", mode=0), None, True),
        ({}, directory("d")._replace(mode=None), None, False),
    ],
)  # fmt: skip
def test_attributes_of_directories(
    rules: dict[str, Any], entry: Entry, old: Entry | None, dressed: bool
) -> None:
    done = run_plan([entry], [old] if old else [], Rules(filter=Filter(), **rules))
    assert [(action.step, action.path) for action in done.finish] == (
        [("attributes", "d")] if dressed else []
    )


def test_counts() -> None:
    """What is in scope is counted, whatever becomes of it; so is what needs nothing."""
    ours = [directory("d"), file("d/a"), file("d/b", size=7), link("l"), file("skipped")]
    theirs = [file("d/a", size=2), file("d/b", size=7), link("gone"), file("skipped")]
    rules = Rules(filter=Filter([Rule(False, "skipped")]), delete=True)
    pages = list(planned(plan(in_pages(ours, [2]), in_pages(theirs), rules)))
    total = {
        name: sum(getattr(page, name) for page in pages)
        for name in ("scanned", "source_files", "skipped_files", "skipped_bytes", "specials")
    }
    assert total == {
        "scanned": 4, "source_files": 2, "skipped_files": 1, "skipped_bytes": 7, "specials": 0,
    }  # fmt: skip
    # The gate's share counts alike what stands there and what would go: all but directories.
    assert sum(page.destination_files for page in pages) == 3


# -- listings that cannot be trusted -------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        [file("b"), file("a")],
        [file("a"), file("a")],
        [directory("a"), file("a-b")],  # as the names alone would have it
        [directory("a"), directory("a")],
        [file("\udc80"), file("\u00e9"), file("a")],
        [file("\u00e9"), file("\udc80")],  # as strings would have it
        [file("a/b"), directory("a")],
        [file("")],
    ],
)
@pytest.mark.parametrize("delete", [True, False])
def test_out_of_order(wrong: list[Entry], delete: bool) -> None:
    """Either listing, wherever its pages end."""
    rules = dataclasses.replace(FULL, delete=delete)
    for cuts in ([], [1]):
        for others in ([], [file("0")], [file("zz")]):
            with pytest.raises(ListingError):
                run_plan(wrong, others, rules, (cuts, []))
            with pytest.raises(ListingError):
                run_plan(others, wrong, rules, ([], cuts))


@settings(max_examples=150)
@given(trees=pairs(), data=st.data(), directory_times=st.booleans())
def test_disorder_never_deletes(
    trees: tuple[Tree, Tree], data: st.DataObject, directory_times: bool
) -> None:
    """However wrong both listings are, nothing is planned for deletion that the source has."""
    ours, theirs = (
        data.draw(st.permutations(listing(tree))) for tree in (trees[0], {**trees[1], **trees[0]})
    )
    rules = dataclasses.replace(FULL, directory_times=directory_times)
    try:
        done = run_plan(ours, theirs, rules)
    except ListingError:
        return
    assert not {order(entry) for entry in ours}.intersection(map(order, done.deletes))


def test_both_in_the_same_disorder() -> None:
    """Equal entries, too, have to be in order: here "q" would be deleted, and the source has it."""
    q, z, a = file("q"), file("z"), file("a")
    with pytest.raises(ListingError):
        run_plan([z, a, q], [q, z, a], FULL)


def test_faults_and_failures_are_passed_on() -> None:
    hidden = Fault("d", PermissionRefused("no"))
    broken = ListingError("the server went away")

    async def listing_with_a_fault() -> AsyncIterator[Page]:
        yield Page([], [hidden])
        yield Page([file("a")])
        yield Page([], [hidden])

    async def broken_listing() -> AsyncIterator[Page]:
        yield Page([file("a")])
        raise broken

    for ours, theirs in (
        (listing_with_a_fault(), in_pages([])),
        (in_pages([]), listing_with_a_fault()),
    ):
        pages = list(planned(plan(ours, theirs, FULL)))
        assert [fault for page in pages for fault in page.faults] == [hidden] * 2
    for ours, theirs in (
        (broken_listing(), in_pages([])),
        (in_pages([]), broken_listing()),
    ):
        with pytest.raises(ListingError) as met:
            list(planned(plan(ours, theirs, FULL)))
        assert met.value is broken


@given(st.lists(st.text(st.characters(codec=None), max_size=4), min_size=2, max_size=2))
def test_before_is_the_order_of_bytes(names: list[str]) -> None:
    try:
        keys = [path_key(name) for name in names]
    except UnicodeEncodeError:
        return
    assert before(*names) == (keys[0] < keys[1])


# -- memory -------------------------------------------------------------------------------------------

MANY = 12_000
PAGE = 500


def many(name: Callable[[int], str], kind: Kind = "file", size: int = 0) -> AsyncIterator[Page]:
    """A listing of many entries, made as they are asked for."""

    async def pages() -> AsyncIterator[Page]:
        for start in range(0, MANY, PAGE):
            yield Page(
                [Entry(name(i), kind, size, start, 0o644) for i in range(start, start + PAGE)]
            )

    return pages()


def plain(number: int) -> str:
    return f"{number:09}"


@pytest.mark.parametrize(
    "sides",
    [
        pytest.param(lambda: (many(plain), many(plain)), id="equal"),
        pytest.param(lambda: (many(plain), many(plain, size=1)), id="different"),
        pytest.param(lambda: (many(plain), in_pages([])), id="new"),
        pytest.param(lambda: (in_pages([]), many(plain)), id="gone"),
        pytest.param(lambda: (in_pages([file("a")]), many(plain)), id="gone before a file"),
        pytest.param(lambda: (many(plain, "dir"), many(plain, "dir")), id="directories"),
        pytest.param(lambda: (many(plain, "dir"), in_pages([])), id="new directories"),
        pytest.param(lambda: (many(plain), many(plain, "dir")), id="conflicts"),
        pytest.param(lambda: (many(plain, "dir"), many(plain)), id="opposite conflicts"),
        pytest.param(lambda: (many(lambda i: f"{i:09}a"), many(plain)), id="interleaved"),
        pytest.param(
            lambda: (many(lambda i: f"{i // 2:09}{'-' * (i % 2)}"), many(plain, "dir")),
            id="waiting",
        ),
    ],
)
def test_memory_does_not_grow(
    sides: Callable[[], tuple[AsyncIterator[Page], AsyncIterator[Page]]],
) -> None:
    """What the planner holds besides what it has handed out is some pages, whatever the trees are."""
    pages = planned(plan(*sides(), FULL))
    held: list[int] = []
    tracemalloc.start()
    try:
        for _ in pages:
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert len(held) > 10
    third = len(held) // 3
    assert max(held[-third:]) < max(held[:third]) + 200_000


# -- rule D -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gate", "doomed", "total", "allowed"),
    [
        # By default many *and* most.
        (DeleteGate(), 0, 0, True),
        (DeleteGate(), 100, 100, True),
        (DeleteGate(), 101, 101, False),
        (DeleteGate(), 101, 201, False),
        (DeleteGate(), 101, 202, True),
        (DeleteGate(), 10**6, 10**7, True),
        # --max-delete N
        (DeleteGate(files=0), 0, 10, True),
        (DeleteGate(files=0), 1, 10**6, False),
        (DeleteGate(files=5), 5, 5, True),
        (DeleteGate(files=5), 6, 10**6, False),
        (DeleteGate(files=10**6), 1000, 1000, True),
        # --max-delete P%
        (DeleteGate(percent=50), 1, 2, True),
        (DeleteGate(percent=50), 2, 3, False),
        (DeleteGate(percent=0), 0, 0, True),
        (DeleteGate(percent=0), 1, 10**6, False),
        (DeleteGate(percent=100), 10**6, 10**6, True),
        (DeleteGate(percent=0.1), 1, 1000, True),
        (DeleteGate(percent=0.1), 2, 1000, False),
        # --allow-empty-source is about something else
        (DeleteGate(allow_empty_source=True), 101, 101, False),
    ],
)
def test_gate(gate: DeleteGate, doomed: int, total: int, allowed: bool) -> None:
    reason = gate.refuses(doomed, total)
    assert (reason is None) == allowed
    if reason is not None:
        assert f"{doomed} of {total} files" in reason
        assert "--max-delete" in reason


OPEN = DeleteGate(percent=100)


def forbidden(
    gate: DeleteGate = OPEN,
    *,
    doomed: int = 1,
    total: int = 1,
    entries: int = 1,
    faults: Iterable[FastsyncError] = (),
    copy_errors: Iterable[FastsyncError] = (),
) -> FastsyncError | None:
    return forbid_deletes(
        gate,
        doomed_files=doomed,
        destination_files=total,
        source_entries=entries,
        faults=faults,
        copy_errors=copy_errors,
    )


def test_deletes_are_allowed() -> None:
    assert forbidden() is None
    assert forbidden(DeleteGate(allow_empty_source=True), entries=0) is None


@pytest.mark.parametrize(
    "error", [PermissionRefused("no"), Conflict("no"), Changed("no"), Vanished("no")]
)
def test_any_fault_forbids(error: FastsyncError) -> None:
    """A fault of a scan hides something, whatever kind of error it is."""
    refusal = forbidden(faults=[error])
    assert isinstance(refusal, ListingError)
    assert "not deleting" in str(refusal)
    assert str(error) in str(refusal)


@pytest.mark.parametrize(
    "error",
    [
        Conflict("no"),
        PermissionRefused("no"),
        Transient("no"),
        IntegrityError("no"),
        AccessRefused("no"),
        DestinationFull("no"),
    ],
)
def test_a_failed_copy_forbids(error: FastsyncError) -> None:
    refusal = forbidden(copy_errors=[Vanished("gone"), error])
    assert isinstance(refusal, SafetyStop)
    assert str(error) in str(refusal)


def test_what_is_gone_or_changing_hides_nothing() -> None:
    assert forbidden(copy_errors=[Vanished("gone"), Changed("changing")]) is None


def test_an_empty_source_forbids() -> None:
    refusal = forbidden(entries=0)
    assert isinstance(refusal, SafetyStop)
    assert "empty" in str(refusal)
    assert "--allow-empty-source" in str(refusal)


def test_the_gate_forbids() -> None:
    refusal = forbidden(DeleteGate(files=1), doomed=2, total=9)
    assert isinstance(refusal, SafetyStop)
    assert "2 of 9 files" in str(refusal)


def test_faults_come_before_the_rest() -> None:
    """One reason is told: the one that explains the others."""
    refusal = forbidden(
        DeleteGate(files=0), entries=0, faults=[Conflict("first")], copy_errors=[Conflict("second")]
    )
    assert isinstance(refusal, ListingError)
    assert "first" in str(refusal)


async def test_names_that_need_a_file_to_be_a_directory() -> None:
    """Of a flat source, the file is kept and what is below it refused, whatever comes in between, on
    whatever page; and such a listing deletes nothing."""

    async def pages() -> AsyncIterator[Page]:
        names = ["a", "a!", "a!/x", "a-b", "a/b", "a/c/d", "a0", "b/c", "b/c/d", "bc"]
        for name in names:
            yield Page([Entry(name, "file", 1, 0)])

    async def nothing() -> AsyncIterator[Page]:
        return
        yield

    planned = [page async for page in plan(pages(), nothing(), Rules(Filter(), flat=True))]
    copies = [action.path for page in planned for action in page.now]
    faults = [fault.path for page in planned for fault in page.faults]
    assert copies == ["a", "a!", "a-b", "a0", "b/c", "bc"]
    assert faults == ["a!/x", "a/b", "a/c/d", "b/c/d"]
