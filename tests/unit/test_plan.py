"""The planner, held against a model: random trees, whose actions are carried out in the engine's order."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias, TypeVar

import pytest
from hypothesis import example, given, settings
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
    Comparison,
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
    faults: list[Fault]
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
    return Planned(**lists, counts=counts)


# -- trees and what they look like in a listing -------------------------------------------------------


def key(entry: Entry) -> bytes:
    return path_key(entry.path + "/" if entry.kind == "dir" else entry.path)


def listing(tree: Tree) -> list[Entry]:
    entries = [
        Entry(path, node.kind, node.size, node.mtime_ns, node.mode, node.target)
        for path, node in tree.items()
    ]
    return sorted(entries, key=key)


def parent(path: str) -> str:
    return path.rpartition("/")[0]


def above(path: str) -> Iterator[str]:
    while path := parent(path):
        yield path


# Names around "/" in byte order, and where string order and byte order differ.
NAMES = st.sampled_from(
    ["a", "a ", "a-b", "a.txt", "a0", "ab", "b", "b!", "\u00e9", "\uffee", "\U0001f600", "\udc80",
     "a\udcff", "\n"]
)  # fmt: skip
TIMES = st.sampled_from([0, 5, 10**9])
MODES = st.sampled_from([0o600, 0o644, 0o4755])
TEXTS = st.sampled_from(["x", "y/z"])
FILES = st.builds(Node, st.just("file"), st.integers(0, 2), TIMES, MODES, st.none())
LINKS = st.builds(Node, st.just("link"), st.none(), TIMES, st.just(0o777), TEXTS)
SPECIALS = st.builds(Node, st.just("special"), st.none(), TIMES, MODES, st.none())
LEAVES = FILES | FILES | LINKS | SPECIALS
DIRECTORIES = st.builds(
    Node,
    st.just("dir"),
    st.none(),
    TIMES,
    st.sampled_from([0o755, 0o700, 0o555, 0o1777, 0]),
    st.none(),
)


def flatten(nested: dict[str, Any], prefix: str = "") -> Tree:
    tree: Tree = {}
    for name, (node, inside) in nested.items():
        tree[prefix + name] = node
        tree.update(flatten(inside, f"{prefix}{name}/"))
    return tree


def nests(leaves: st.SearchStrategy[Node], depth: int) -> st.SearchStrategy[dict[str, Any]]:
    children: st.SearchStrategy[Any] = st.tuples(leaves, st.just({}))
    if depth:
        children |= st.tuples(DIRECTORIES, st.deferred(lambda: nests(leaves, depth - 1)))
    return st.dictionaries(NAMES, children, max_size=5)


TREES = nests(LEAVES, 3)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tree, Tree]:
    """Two trees that share some of their branches."""
    ours, theirs = draw(TREES), draw(TREES)
    shared = draw(st.sets(NAMES, max_size=6))
    theirs = {**theirs, **{name: ours[name] for name in shared if name in ours}}
    return flatten(ours), flatten(theirs)


CUTS = st.tuples(*[st.lists(st.integers(0, 30), max_size=6)] * 2)
PATTERNS = st.sampled_from(
    ["a", "/a", "a/", "*.txt", "/a/**", "a*", "b/a", "[!a]*", "/\u00e9/*", "**/a0", "a-b/", "*"]
)
FILTERS = st.builds(
    Filter,
    st.lists(st.builds(Rule, st.booleans(), PATTERNS), max_size=3),
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
    return {path for path in found if not found.intersection(above(path))}


FULL = Rules(filter=Filter(), mode_mask=ALL, directory_times=True, delete=True)


@settings(max_examples=400)
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
def test_mirror(
    trees: tuple[Tree, Tree], cuts: tuple[list[int], list[int]], times: bool
) -> None:
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


@settings(max_examples=300)
@given(trees=pairs(), cuts=CUTS, times=st.booleans())
def test_update(
    trees: tuple[Tree, Tree], cuts: tuple[list[int], list[int]], times: bool
) -> None:
    """Without delete nothing goes, what can be copied is right, and the rest is said."""
    source, destination = trees
    rules = dataclasses.replace(FULL, delete=False, directory_times=times)
    done = run_plan(listing(source), listing(destination), rules, cuts)
    assert done.deletes == done.later == []
    model = Model(destination)
    result = model.carry_out(done, directory_times=times)
    assert model.refused == []
    conflicts = {
        path for path in crossed(source, destination) if source[path].kind != "special"
    }
    assert {fault.path for fault in done.faults} == conflicts
    assert all(isinstance(fault.error, Conflict) for fault in done.faults)
    for path, node in destination.items():
        assert path in result
        if path not in source:
            assert seen(result[path], times=False) == seen(node, times=False)
    for path, node in source.items():
        if node.kind != "special" and not conflicts.intersection([path, *above(path)]):
            # A directory that keeps more than the source has a time of its own only if it changed.
            assert seen(result.get(path), times=False) == seen(node, times=False)
    again = run_plan(listing(source), listing(result), rules)
    assert (again.now, again.finish) == ([], [])


@settings(max_examples=500)
@given(trees=pairs(), rules=RULES, cuts=CUTS)
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
    protected = destination.keys() - in_scope

    actions = [*done.now, *done.later, *done.finish]
    assert all(action.path in chosen for action in actions)
    assert all(action.entry == entry_of(source, action.path) for action in actions)
    for path in protected:
        # A directory's time changes with what happens inside it.
        assert seen(result[path], times=False) == seen(destination[path], times=False)

    doomed = {entry.path for entry in done.deletes}
    assert doomed <= in_scope
    for path in doomed:
        assert rules.delete
        ours_too = path in chosen and (
            (source[path].kind == "dir") == (destination[path].kind == "dir")
        )
        assert not ours_too, "what the source has is not deleted"
    for path in in_scope - doomed:
        assert path in result
    for path in model.refused:
        # Only a directory that protects something may refuse to make way.
        assert any(
            hidden.startswith(up + "/") for hidden in protected for up in (path, *above(path))
        )

    conflicts = crossed(
        {path: source[path] for path in chosen}, {path: destination[path] for path in in_scope}
    )
    for action in done.later:
        assert conflicts.intersection([action.path, *above(action.path)])
    if rules.existing:
        assert result.keys() <= destination.keys()
    if rules.ignore_existing:
        for path in in_scope - doomed:
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


@given(trees=pairs(), cuts=CUTS)
def test_delete_excluded(
    trees: tuple[Tree, Tree], cuts: tuple[list[int], list[int]]
) -> None:
    """With delete_excluded the destination becomes what the filter leaves of the source."""
    source, destination = trees
    chosen = Filter([Rule(False, "a*"), Rule(False, "/b/")])
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
    paths = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
    return flatten(draw(nests(FILES, 3))), draw(st.dictionaries(paths, FILES, max_size=10))


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
    assert done.later == done.finish == done.faults == []
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
