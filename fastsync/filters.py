"""Which entries take part in a run: ordered rules, sizes, ages and depth, compiled once. Pure.

The language is in docs/FILTERS.md. The promises: the first rule that matches decides; what lies below
an excluded directory is excluded, whether the store was walked with `Filter.prune` or listed flat and
put through `Filter.select` alone; a pattern that could match nothing is an error, not a rule.

How it is fast: the last "/" of a pattern parts a test of the directory from a test of the name. The
first is made once per directory; what is left for the names in it is one regular expression, shared by
all directories in which the same rules are left.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final, NamedTuple, Protocol, TypeAlias

from fastsync.backend import Entry
from fastsync.errors import UsageError

# A pattern without its braces: each element is one literal character or a longer piece of regex.
_Glob: TypeAlias = tuple[str, ...]
_Match: TypeAlias = Callable[[str], "re.Match[str] | None"]

_ANY: Final = "[^/]"
_STAR: Final = "[^/]*"
_DEEP: Final = ".*"
_TREE: Final = (
    "(?:.*)"  # rsync's ***; as _DEEP, but at the end of a pattern the directory itself too
)

_TOKEN: Final = (
    r"(?s)\\(?P<escaped>.)"
    r"|(?P<stars>\*+)"
    r"|(?P<any>\?)"
    r"|\[(?P<negated>[!^]?+)(?P<members>\]?+(?:\\.|\[:\w*:\]|[^\]\\])*+)\]"
    r"|(?P<brace>[{},])"
    r"|(?P<literal>[^\\\[\]])"
)
_MEMBER: Final = r"(?s)\[:(?P<named>\w*):\]|\\?(?P<low>.)(?:-\\?(?P<high>.))?"
_NAMED_CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": r" \t",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r" \t-\r",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}

_MAX_ALTERNATIVES: Final = 1000
# Listings are sorted, so a directory that was forgotten is seldom asked for again.
_DIRECTORIES_REMEMBERED: Final = 4096
_MATCHERS_REMEMBERED: Final = 256


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the ordered list, and the file and line it is from, if any. Raises UsageError for a
    pattern that is malformed or futile."""

    include: bool
    pattern: str
    origin: str = field(default="", compare=False, kw_only=True)
    _globs: tuple[_Glob, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_globs", tuple(_expand(self.pattern)))

    def __str__(self) -> str:
        if self.origin:
            return f"'{'+' if self.include else '-'} {self.pattern}' ({self.origin})"
        import shlex

        return f"--{'include' if self.include else 'exclude'} {shlex.quote(self.pattern)}"


def parse_rule(text: str) -> Rule:
    """Read ``+ PATTERN`` or ``- PATTERN``: a sign, one space, and all the rest is the pattern."""
    sign, pattern = text[:2], text[2:]
    if sign not in ("+ ", "- "):
        raise UsageError(
            f"'{text}' is no filter rule",
            hint="write '+ PATTERN' to include, '- PATTERN' to exclude",
        )
    return Rule(sign == "+ ", pattern)


class Glob:
    """One anchored pattern by itself: ``*`` ``?`` ``[ ]`` within a name, ``**`` across. Braces and commas
    are ordinary characters. Raises UsageError for a pattern that is malformed or futile."""

    def __init__(self, pattern: str) -> None:
        plain = re.sub(r"(\\\\.)|([{}])", lambda found: found[1] or "\\" + found[2], pattern)
        (glob,) = _expand("/" + plain)
        # "**/" is any number of directories, none among them.
        pieces = [
            "(?:.*/)?" if segment == (_DEEP,) else _regex(segment) + "/"
            for segment in _split(glob[1:], "/")
        ]
        last = _regex(_split(glob, "/")[-1])
        self._whole = re.compile("".join(pieces[:-1]) + last, re.DOTALL).fullmatch
        # What may stand above a match: each beginning of the pattern, up to the first "**".
        ways: list[str] = []
        for depth, segment in enumerate(_split(glob[1:], "/")):
            if _DEEP in segment:
                ways.append("".join(pieces[:depth]) + ".*")
                break
            if depth + 1 < len(pieces):
                ways.append("".join(pieces[: depth + 1]).removesuffix("/"))
        self._way = re.compile("|".join(ways), re.DOTALL).fullmatch if ways else None

    def matches(self, path: str) -> bool:
        """True when the pattern is of this whole path."""
        return self._whole(path) is not None

    def leads(self, directory: str) -> bool:
        """True when something below `directory` could match."""
        return self._way is not None and self._way(directory) is not None


class Chooser(Protocol):
    """A choice of paths besides the rules; what it leaves out stays out, whatever they say."""

    @property
    def is_scope(self) -> bool:
        """True when what is left out is no part of the run, so that nothing may delete it."""
        ...

    def takes(self, path: str, is_dir: bool) -> bool: ...

    def enters(self, path: str) -> bool:
        """False when nothing below the directory at `path` is taken."""
        ...

    def may_delete(self, path: str) -> bool:
        """True when what is taken, and not in the source, may go."""
        ...

    def reason(self, path: str, is_dir: bool) -> str:
        """Why `path` is left out."""
        ...


class Filter:
    """The rules and bounds of a run, for both listings. Threads may share one.

    Where no rule matches, an entry is included; but when every rule is an include, only directories are
    (they are walked to find what was asked for), and a rule with a trailing "/" takes the whole tree.

    Sizes (bytes) and times (Unix nanoseconds) are bounds on files alone, both ends included. A file
    whose size or time is unknown passes: what cannot be judged is not silently left behind.
    `max_depth` 1 is the entries of the root itself.
    """

    def __init__(
        self,
        rules: Sequence[Rule] = (),
        *,
        min_size: int | None = None,
        max_size: int | None = None,
        newer_than_ns: int | None = None,
        older_than_ns: int | None = None,
        max_depth: int | None = None,
        choosers: Sequence[Chooser] = (),
    ) -> None:
        _check_bounds(min_size, max_size, newer_than_ns, older_than_ns, max_depth)
        self._min_size = min_size
        self._max_size = max_size
        self._newer_than_ns = newer_than_ns
        self._older_than_ns = older_than_ns
        self._max_depth = max_depth
        self._choosers = choosers
        bounds = (min_size, max_size, newer_than_ns, older_than_ns)
        self._bounded = any(bound is not None for bound in bounds)
        self._branches = _compile(rules)
        # Where each branch has to be thought of: everywhere, in one directory, or where its test says.
        self._everywhere: list[int] = []
        self._only_in: dict[str, list[int]] = {}
        self._tested: list[tuple[int, _Match]] = []
        for index, branch in enumerate(self._branches):
            if branch.parent is None:
                self._everywhere.append(index)
            elif isinstance(branch.parent, str):
                self._only_in.setdefault(branch.parent, []).append(index)
            else:
                self._tested.append((index, branch.parent.fullmatch))
        self._matchers: dict[tuple[int, ...], tuple[_Match | None, _Match | None]] = {}
        self._directories: dict[str, _Directory] = {}
        self._root = _Directory(0, True, *self._matchers_for(self._active("")))

    @property
    def is_empty(self) -> bool:
        """True when everything is kept, so that a caller may skip the question."""
        return not (
            self._branches or self._bounded or self._max_depth is not None or self._choosers
        )

    @property
    def is_bounded(self) -> bool:
        """True when sizes or ages matter: bounds judge a version, where rules judge a path."""
        return self._bounded

    def within_bounds(self, entry: Entry) -> bool:
        """True unless its size or age keeps `entry` out."""
        return self._out_of_bounds(entry) is None

    def keep(self, entry: Entry) -> bool:
        """True when `entry` takes part: neither it nor a directory above it is excluded."""
        return bool(self.select([entry]))

    def prune(self, path: str) -> bool:
        """True when the directory at `path` need not be entered: nothing below it can be kept."""
        if not self._directory(path).entered:
            return True
        return not all(chooser.enters(path) for chooser in self._choosers)

    def prune_scope(self, path: str) -> bool:
        """The same for what is no part of the run, with or without excluded entries."""
        if self._max_depth is not None and path.count("/") + 1 >= self._max_depth:
            return True
        return any(each.is_scope and not each.enters(path) for each in self._choosers)

    def may_delete(self, entry: Entry, *, excluded: bool = False) -> bool:
        """True when `entry`, which the source does not have, may go; `excluded` if what the filters
        leave out may go as well. What lies too deep, or on no list, never may."""
        path = entry.path
        if self._max_depth is not None and path.count("/") >= self._max_depth:
            return False
        if not all(each.may_delete(path) for each in self._choosers if each.is_scope):
            return False
        return excluded or self.keep(entry)

    def select(self, entries: list[Entry], *, bounds: bool = True) -> list[Entry]:
        """The entries to keep, in their order, also those out of bounds if `bounds` is false. Runs of
        entries of one directory are cheapest."""
        if self.is_empty:
            return entries
        kept: list[Entry] = []
        here: str | None = None
        _, entered, match_file, match_dir = self._root
        for entry in entries:
            parent, _, name = entry[0].rpartition("/")
            if parent != here:
                here = parent
                _, entered, match_file, match_dir = self._directory(parent)
            if not entered:
                continue
            match = match_dir if entry[1] == "dir" else match_file
            if match is not None:
                found = match(name)
                if found is not None and found.lastindex is None:
                    continue
            kept.append(entry)
        for chooser in self._choosers:
            kept = [entry for entry in kept if chooser.takes(entry[0], entry[1] == "dir")]
        if self._bounded and bounds:
            return [entry for entry in kept if self._out_of_bounds(entry) is None]
        return kept

    def explain(self, entry: Entry) -> str:
        """Which rule or bound decided about `entry`: "excluded by --exclude '*.tmp'"."""
        slash = entry.path.find("/")
        while slash >= 0:
            directory = entry.path[:slash]
            included, reason = self._decision(directory, is_dir=True)
            if not included:
                return f"excluded: {directory}/ is {reason}"
            slash = entry.path.find("/", slash + 1)
        is_dir = entry.kind == "dir"
        included, reason = self._decision(entry.path, is_dir=is_dir)
        if included:
            for chooser in self._choosers:
                if not chooser.takes(entry.path, is_dir):
                    return chooser.reason(entry.path, is_dir)
        bound = self._out_of_bounds(entry) if included else None
        return f"excluded by {bound}" if bound else reason

    def _decision(self, path: str, *, is_dir: bool) -> tuple[bool, str]:
        """What the rules and the depth say about `path`, given that its parent was entered."""
        parent, slash, name = path.rpartition("/")
        if self._max_depth is not None and path.count("/") >= self._max_depth:
            return False, f"excluded by --max-depth {self._max_depth}"
        for index in self._active(parent + slash):
            branch = self._branches[index]
            applies = branch.on_dirs if is_dir else branch.on_files
            if applies and re.fullmatch(branch.name, name, re.DOTALL):
                if branch.rule is None:
                    return False, "excluded: no --include matches"
                verb = "included" if branch.include else "excluded"
                return branch.include, f"{verb} by {branch.rule}"
        return True, "included: no rule matches"

    def _out_of_bounds(self, entry: Entry) -> str | None:
        """The option that keeps this file out."""
        if entry.kind != "file":
            return None
        size, mtime_ns = entry.size, entry.mtime_ns
        if size is not None:
            if self._min_size is not None and size < self._min_size:
                return f"--min-size {self._min_size}"
            if self._max_size is not None and size > self._max_size:
                return f"--max-size {self._max_size}"
        if mtime_ns is not None:
            if self._newer_than_ns is not None and mtime_ns < self._newer_than_ns:
                return "--max-age"
            if self._older_than_ns is not None and mtime_ns > self._older_than_ns:
                return "--min-age"
        return None

    def _directory(self, path: str) -> _Directory:
        """What holds for the entries of the directory at `path`, from its nearest known ancestor down."""
        known = self._directories
        unknown: list[str] = []
        found = None
        while path and (found := known.get(path)) is None:
            unknown.append(path)
            path = path.rpartition("/")[0]
        directory = self._root if found is None else found
        if len(known) > _DIRECTORIES_REMEMBERED:
            known.clear()
        for below in reversed(unknown):
            directory = known[below] = self._enter(directory, below)
        return directory

    def _enter(self, above: _Directory, path: str) -> _Directory:
        """The directory at `path`, an entry of `above`."""
        depth = above.depth + 1
        if not above.entered or (self._max_depth is not None and depth >= self._max_depth):
            return _CLOSED
        if above.match_dir is not None:
            found = above.match_dir(path.rpartition("/")[2])
            if found is not None and found.lastindex is None:
                return _CLOSED
        return _Directory(depth, True, *self._matchers_for(self._active(path + "/")))

    def _active(self, directory: str) -> tuple[int, ...]:
        """The branches whose test of the directory ("" or "a/b/") holds, in the order of the rules."""
        if not self._only_in and not self._tested:
            return tuple(self._everywhere)
        here = self._only_in.get(directory, ())
        tested = [index for index, match in self._tested if match(directory)]
        return tuple(sorted((*self._everywhere, *here, *tested)))

    def _matchers_for(self, active: tuple[int, ...]) -> tuple[_Match | None, _Match | None]:
        """Matchers of names for files and for directories, where these branches are in force."""
        matchers = self._matchers.get(active)
        if matchers is None:
            branches = [self._branches[index] for index in active]
            matchers = (
                _matcher([branch for branch in branches if branch.on_files]),
                _matcher([branch for branch in branches if branch.on_dirs]),
            )
            if len(self._matchers) > _MATCHERS_REMEMBERED:
                self._matchers.clear()
            self._matchers[active] = matchers
        return matchers


class _Directory(NamedTuple):
    """What holds for the entries of one directory; no matcher means that all of them are included."""

    depth: int
    entered: bool
    match_file: _Match | None
    match_dir: _Match | None


_CLOSED: Final = _Directory(0, False, None, None)


class _Branch(NamedTuple):
    """One way in which a rule can match: where the directory passes a test and the name another.

    `parent` is None for any directory, a string for that directory alone ("" or "a/b/"), else a test.
    `rule` is None for the exclude that a list of includes implies.
    """

    rule: Rule | None
    include: bool
    parent: str | re.Pattern[str] | None
    name: str
    on_files: bool = True
    on_dirs: bool = True


def _compile(rules: Sequence[Rule]) -> list[_Branch]:
    branches: list[_Branch] = []
    only_includes = bool(rules) and all(rule.include for rule in rules)
    for rule in rules:
        for glob in rule._globs:
            branches += _branches(rule, glob)
            if only_includes and glob[-1] == "/":
                branches += _branches(rule, (*glob, _DEEP))
    if only_includes:
        branches.append(_Branch(None, False, None, _STAR, on_dirs=False))
    return branches


def _branches(rule: Rule, glob: _Glob) -> Iterator[_Branch]:
    anchored = glob[0] == "/"
    on_files = glob[-1] != "/"
    if glob[-1] == _TREE:
        if len(glob) > 2:
            yield from _branches(rule, glob[:-1])
        glob = (*glob[:-1], _DEEP)
    glob = glob[1 if anchored else 0 : None if on_files else -1]
    if not anchored and glob[:2] == (_DEEP, "/"):
        glob = glob[2:]  # a leading "**/" is what no leading "/" means anyway
    *above, last = _split(glob, "/")
    head = tuple(token for segment in above for token in (*segment, "/"))
    # "**" in the last segment either stays within the name or crosses into it at the last slash:
    # "a**b" is "a*b" and "a**/*b".
    cuts = [(head, last)]
    for at, token in enumerate(last):
        if token == _DEEP:
            cuts.append(((*head, *last[:at], _DEEP, "/"), (_STAR, *last[at + 1 :])))
    for before, name in cuts:
        name = tuple(_STAR if token == _DEEP else token for token in name)
        yield _Branch(rule, rule.include, _parent_test(before, anchored), _regex(name), on_files)


def _parent_test(head: _Glob, anchored: bool) -> str | re.Pattern[str] | None:
    if anchored and all(len(token) == 1 for token in head):
        return "".join(head)
    if not anchored and not head:
        return None
    start = "" if anchored or head[0] == _DEEP else "(?:.*/)?"
    return re.compile(start + "/".join(map(_regex, _split(head, "/"))), re.DOTALL)


def _regex(segment: _Glob) -> str:
    """A regular expression for one path segment, in time linear in the name where "**" is absent.

    Of several stars only the last one has to back-track: what follows an earlier one is best taken where
    it first occurs, for good. Without this, "*a*a*a*a*a*b" takes hours on a long name.
    """
    if _DEEP in segment:
        return "".join(map(_piece, segment))
    chunks = ["".join(map(_piece, chunk)) for chunk in _split(segment, _STAR)]
    if len(chunks) == 1:
        return chunks[0]
    first, *middle, last = chunks
    return first + "".join(f"(?>{_STAR}?{chunk})" for chunk in middle) + _STAR + last


def _piece(token: str) -> str:
    return re.escape(token) if len(token) == 1 else token


def _matcher(branches: list[_Branch]) -> _Match | None:
    """One matcher for the names under these branches: a match without a group is an exclusion.

    Neighbours of one sign are one alternative, in which the order is free; the includes are groups.
    """
    runs: list[str] = []
    for include, run in groupby(branches, key=lambda branch: branch.include):
        names = dict.fromkeys(branch.name for branch in run)
        whole = [name for name in names if not name.startswith(_STAR)]
        # One scan for all of "*.o", "*.tmp" ...: much cheaper than one each.
        ends = [name.removeprefix(_STAR) for name in names if name.startswith(_STAR)]
        if ends:
            whole.append(f"{_STAR}(?:{'|'.join(ends)})")
        runs.append(f"{'(' if include else '(?:'}{'|'.join(whole)})")
    if branches and branches[-1].include:
        runs.pop()  # what comes last includes what would be included anyway
    return re.compile("|".join(runs), re.DOTALL).fullmatch if runs else None


def _split(glob: _Glob, separator: str) -> list[_Glob]:
    parts: list[list[str]] = [[]]
    for token in glob:
        if token == separator:
            parts.append([])
        else:
            parts[-1].append(token)
    return [tuple(part) for part in parts]


def _expand(pattern: str) -> list[_Glob]:
    """The globs that `pattern` stands for: ``a{b,c}`` is ``ab`` and ``ac``."""
    # For each open brace: its position, the globs before it, its finished alternatives.
    opened: list[tuple[int, list[_Glob], list[_Glob]]] = []
    globs: list[_Glob] = [()]
    at = 0
    matcher = re.compile(_TOKEN)
    while at < len(pattern):
        found = matcher.match(pattern, at)
        if found is None:
            problem = {"[": "an unclosed [", "]": "a ] without a [", "\\": "a \\ at its end"}
            raise _bad_pattern(pattern, problem[pattern[at]], at)
        brace = found["brace"]
        if brace == "{":
            if pattern.startswith("{{", at):
                raise _bad_pattern(pattern, "a {{regular expression}}, which is not supported,", at)
            opened.append((at, globs, []))
            globs = [()]
        elif brace == "," and opened:
            opened[-1][2].extend(globs)
            globs = [()]
        elif brace == "}":
            if not opened:
                raise _bad_pattern(pattern, "a } without a {", at)
            _, before, alternatives = opened.pop()
            alternatives += globs
            if len(before) * len(alternatives) > _MAX_ALTERNATIVES:
                raise _bad_pattern(pattern, f"over {_MAX_ALTERNATIVES} alternatives", at)
            globs = [start + end for start in before for end in alternatives]
        else:
            token = _token(pattern, found)
            globs = [(*glob, token) for glob in globs]
        at = found.end()
    if opened:
        raise _bad_pattern(pattern, "an unclosed {", opened[-1][0])
    for glob in globs:
        _check_segments(pattern, glob)
    return globs


def _token(pattern: str, found: re.Match[str]) -> str:
    if found["stars"]:
        if len(found["stars"]) > 3:
            raise _bad_pattern(pattern, "too many *", found.start())
        return (_STAR, _DEEP, _TREE)[len(found["stars"]) - 1]
    if found["any"]:
        return _ANY
    if found["members"] is None:
        return found["escaped"] or found["literal"] or ","
    members = []
    for member in re.finditer(_MEMBER, found["members"]):
        named, low, high = member.group("named", "low", "high")
        if named is not None:
            if named not in _NAMED_CLASSES:
                raise _bad_pattern(pattern, f"an unknown class [:{named}:]", found.start())
            members.append(_NAMED_CLASSES[named])
        elif high is None:
            members.append(re.escape(low))
        elif low > high:
            raise _bad_pattern(pattern, f"a backward range {low}-{high}", found.start())
        else:
            members.append(f"{re.escape(low)}-{re.escape(high)}")
    return f"(?!/)[{'^' if found['negated'] else ''}{''.join(members)}]"


def _check_segments(pattern: str, glob: _Glob) -> None:
    """Refuse "***" out of place, and segments no path has: such a pattern would never match."""
    if _TREE in glob and (glob.index(_TREE) != len(glob) - 1 or glob[-2:-1] != ("/",)):
        raise UsageError(
            f"the pattern '{pattern}' has *** where ** is meant",
            hint="*** only ends a pattern: dir/*** is the directory and everything below it",
        )
    inner = glob[1 if glob[:1] == ("/",) else 0 :]
    inner = inner[:-1] if inner[-1:] == ("/",) else inner
    if not inner:
        raise UsageError(
            f"the pattern '{pattern}' names nothing", hint="write /** for everything below the root"
        )
    for segment in map("".join, _split(inner, "/")):
        if segment in ("", ".", ".."):
            raise UsageError(
                f"the pattern '{pattern}' has a '{segment}' segment and can match nothing",
                hint="patterns are relative to the root of the transfer: write /dir, not ./dir",
            )


def _bad_pattern(pattern: str, problem: str, at: int) -> UsageError:
    return UsageError(
        f"the pattern '{pattern}' has {problem} at character {at + 1}",
        hint="a \\ before * ? [ ] { } , \\ makes it an ordinary character",
    )


def _check_bounds(
    min_size: int | None,
    max_size: int | None,
    newer_than_ns: int | None,
    older_than_ns: int | None,
    max_depth: int | None,
) -> None:
    for name, size in (("--min-size", min_size), ("--max-size", max_size)):
        if size is not None and size < 0:
            raise UsageError(f"{name} cannot be negative")
    if min_size is not None and max_size is not None and min_size > max_size:
        raise UsageError("--min-size is above --max-size: no file could pass")
    if newer_than_ns is not None and older_than_ns is not None and newer_than_ns > older_than_ns:
        raise UsageError("--min-age is above --max-age: no file could pass")
    if max_depth is not None and max_depth < 1:
        raise UsageError("--max-depth must be at least 1")
