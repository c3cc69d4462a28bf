import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fastsync.backend import Entry, Kind
from fastsync.errors import UsageError
from fastsync.filters import Filter, Rule, parse_rule

RCLONE = shutil.which("rclone", path=os.path.dirname(sys.executable))


def entry(path: str, size: int | None = 0, mtime_ns: int | None = 0, kind: Kind = "file") -> Entry:
    """An entry of the kind that a trailing slash tells."""
    return Entry(path.removesuffix("/"), "dir" if path.endswith("/") else kind, size, mtime_ns)


def rules(text: str) -> list[Rule]:
    return [parse_rule(line.strip()) for line in text.splitlines() if line.strip()]


def matches(pattern: str, path: str) -> bool:
    """Whether `pattern`, as the only exclude, keeps `path` or a directory above it out."""
    return not Filter([Rule(False, pattern)]).keep(entry(path))


# What rsync(1), "PATTERN MATCHING RULES", and rclone's filtering page say, with their own examples.
@pytest.mark.parametrize(
    ("pattern", "matched", "unmatched"),
    [
        # rsync
        ("*.o", "a.o d/a.o d/e/.o", "a.oo a.o.c"),
        ("/foo", "foo foo/", "d/foo"),
        ("foo/", "foo/ d/foo/", "foo d/foo"),
        ("foo", "foo d/foo d/foo/", "food xfoo d/xfoo"),
        ("foo/bar", "foo/bar d/foo/bar d/foo/bar/", "xfoo/bar foo/d/bar bar"),
        ("foo/*/bar", "foo/d/bar d/foo/e/bar/", "foo/bar foo/d/e/bar"),
        ("/foo/**/bar", "foo/d/bar foo/d/e/bar/", "foo/bar d/foo/d/bar"),
        ("/foo/**", "foo/d foo/d/e", "foo foo/ d/foo/d"),
        ("dir_name/***", "dir_name/ dir_name/x d/dir_name/x/y", "dir_name xdir_name/"),
        ("a?c", "abc a\nc d/aéc", "ac a/c abbc"),
        ("a**c", "ac abc a/c ab/d/bc d/a/c", "ca d/xa/b xa/c"),
        ("**foo", "foo xfoo d/xfoo", "foox"),
        ("**/foo", "foo d/foo d/e/foo", "xfoo"),
        ("/**/foo", "d/foo d/e/foo", "foo xfoo"),
        ("**/", "d/ d/e/ d/e", "d"),
        ("**", "a a/b d/", ""),
        ("/***", "a a/b d/", ""),
        ("[[:alpha:]]x", "ax Zx", "1x éx /x"),
        ("[]a]", "] a", "b"),
        # rclone
        ("file.jpg", "file.jpg directory/file.jpg", "afile.jpg directory/afile.jpg"),
        ("/*.jpg", "file.jpg file2.jpg", "file.png dir/file.jpg"),
        ("*.{jpg,png}", "file.jpg dir/file.png", "file.gif dir/file.gif"),
        ("dir/**", "dir/anyfile subdir/dir/subsubdir/anyfile", "file.png subdir/file.png"),
        ("*.t?t", "file.txt dir/file.tzt", "file.qxt dir/file.png"),
        ("*.[a-z]", "file.a dir/file.b", "file.0 dir/file.1"),
        (r"*.\?\?\?", "file.??? dir/file.???", "file.abc dir/file.def"),
        ("potato,sausage", "potato,sausage", "potato"),
        ("a{b,c,d}e", "abe ace ade", "ae abce"),
        ("{A,B}/**", "A/x d/B/x/y", "A C/x"),
        ("/a/{b,c/d}/", "a/b/ a/c/d/", "a/b a/c/ d/a/b/"),
        ("'.' '+' '(' ')' '|' '^' '$'", "", "x '.'"),
        ("*[{JP,KR}]*", "xJ, R", "A x"),
        ("??[^[:punct:]]*", "abc abcd", "ab. ab a/bc"),
        # either, and the corners of both
        ("{a,b{c,d}}x", "ax bcx bdx", "bx abcx"),
        ("{/a,b/}", "a b/ d/b/", "d/a b"),
        ("a{,.bak}", "a a.bak", "a.b"),
        ("{a}", "a", "{a}"),
        (r"\{a\}\,\\\*", r"{a},\*", r"a,\x"),
        ("[!ab]x", "cx \nx", "ax /x x"),
        ("x[^a]y", "xby", "xay x/y"),
        ("[.-0]x", ".x 0x", "/x d/x"),
        (r"[\]\-\\a-c]", "] - \\ b", "d"),
        ("[a-]", "a -", "b"),
        ("[!]a]", "b", "] a"),
        ("[*?{,]", "* ? { ,", "a"),
        (r"a\/b", "a/b d/a/b", "ab"),
        ("*{*,x}a", "a xa axa", "x xab"),
        ("*a*b", "ab xaxb aab d/axb", "ba axbx ax/b"),
        ("a*b*c/*d*e", "abc/de aXbXc/XdXe r/abc/de", "abc/d/e ab/c/de"),
        (".*", ".git d/.x", "x.git"),
        ("...", "... d/...", ".. abc"),
        ("é[à-ü]", "éé", "ée e"),
        (" a ", "", "a"),
        ("#a", "#a", "a"),
        ("!a", "!a", "a"),
    ],
)
def test_pattern(pattern: str, matched: str, unmatched: str) -> None:
    for path in matched.split(" ") if matched else ():
        assert matches(pattern, path), path
    for path in unmatched.split(" ") if unmatched else ():
        assert not matches(pattern, path), path


def test_names_are_matched_whole_whatever_they_contain() -> None:
    assert matches("a*b", "a\n\r\t b")
    assert not matches("a", "a\n")
    assert matches("*", "\udcff\udc80")
    assert matches("?\udcff", "x\udcff")
    assert matches("[\udc80-\udcff]", "\udce9")
    assert not matches("é", "\udcc3\udca9")
    assert matches("a**b", "a\n/\n/x\nb")
    for char in ".^$+()|# &~-'\"":
        assert matches(f"x{char}", f"x{char}")
        assert not matches(f"x{char}", "xy")


def test_many_stars_end_in_time() -> None:
    """Back-tracking over seven stars in a name of 255 characters takes days."""
    assert not matches("*a*a*a*a*a*a*ab", "a" * 255)
    assert not matches("*a*a*a*a*a*a*ab/x", "a" * 255 + "/x")
    assert matches("*a*a*a*a*a*a*ab", "a" * 254 + "b")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("", "'' names nothing"),
        ("/", "'/' names nothing"),
        ("a{b", "'a{b' has an unclosed { at character 2"),
        ("{a,{b}", "'{a,{b}' has an unclosed { at character 1"),
        ("ab}c", "a } without a { at character 3"),
        ("ab]c", "a ] without a [ at character 3"),
        ("ab[c", "an unclosed [ at character 3"),
        ("x[]", "an unclosed [ at character 2"),
        ("x[!]", "an unclosed [ at character 2"),
        ("[a\\]", "an unclosed [ at character 1"),
        ("a\\", "a \\ at its end at character 2"),
        ("[z-a]", "a backward range z-a at character 1"),
        ("[[:letter:]]", "an unknown class [:letter:] at character 1"),
        ("*.{{jpe?g}}", "not supported, at character 3"),
        ("{a,b}" * 10, "over 1000 alternatives at character 50"),
        ("./a", "a '.' segment and can match nothing"),
        ("a/../b", "a '..' segment"),
        ("a//b", "a '' segment"),
        ("a/****", "has too many * at character 3"),
        ("***", "has *** where ** is meant"),
        ("a***", "has *** where ** is meant"),
        ("a/***/", "has *** where ** is meant"),
        ("a/{***,b}/c", "has *** where ** is meant"),
        ("//", "'//' names nothing"),
        ("//a", "a '' segment"),
        ("{,a}", "names nothing"),
        ("{.,a}/b", "a '.' segment"),
    ],
)
def test_bad_pattern(pattern: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Rule(False, pattern)
    assert message in str(caught.value)
    assert pattern in str(caught.value)


def test_parse_rule() -> None:
    assert parse_rule("+ *.c") == Rule(True, "*.c")
    assert parse_rule("-  a ") == Rule(False, " a ")
    for text in ("", "+", "+*.c", "-\t*.c", "*.c", "! x", "P x", "merge x", "# x"):
        with pytest.raises(UsageError, match="no filter rule"):
            parse_rule(text)
    with pytest.raises(UsageError, match="names nothing"):
        parse_rule("+ ")


def test_rules_compare_and_print() -> None:
    assert str(Rule(True, "*.c")) == "--include '*.c'"
    assert str(Rule(False, "dir/")) == "--exclude dir/"
    assert len({Rule(True, "a"), Rule(True, "a"), Rule(False, "a")}) == 2


TREE = """
    a.c a.o src/ src/main.c src/main.o src/deep/ src/deep/x.c doc/ doc/main.c doc/x.txt Makefile
"""


def chosen(text: str, tree: str = TREE) -> str:
    """The kept paths of a tree that is listed flat, directories with a trailing slash."""
    kept = Filter(rules(text)).select([entry(path) for path in tree.split()])
    return " ".join(path_of(one) for one in kept)


def path_of(one: Entry) -> str:
    return one.path + ("/" if one.kind == "dir" else "")


# rsync(1): "+ */", "+ *.c", "- *" ... ; rclone: an include implies "- **".
@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("", TREE),
        ("- *.o", "a.c src/ src/main.c src/deep/ src/deep/x.c doc/ doc/main.c doc/x.txt Makefile"),
        ("+ */\n+ *.c\n- *", "a.c src/ src/main.c src/deep/ src/deep/x.c doc/ doc/main.c"),
        ("+ src/\n+ src/main.c\n- *", "src/ src/main.c"),
        ("+ *.c\n- *", "a.c"),
        ("- *\n+ *.c", ""),
        ("- src/\n+ *.c", "a.c a.o doc/ doc/main.c doc/x.txt Makefile"),
        ("+ src/main.*\n- src/*\n- doc/", "a.c a.o src/ src/main.c src/main.o Makefile"),
        ("+ /src/***\n- *", "src/ src/main.c src/main.o src/deep/ src/deep/x.c"),
        # Includes alone: other files are left out, directories are walked.
        ("+ *.c", "a.c src/ src/main.c src/deep/ src/deep/x.c doc/ doc/main.c"),
        ("+ /*.c", "a.c src/ src/deep/ doc/"),
        ("+ *.txt\n+ Make*", "src/ src/deep/ doc/ doc/x.txt Makefile"),
        ("+ /src/", "src/ src/main.c src/main.o src/deep/ src/deep/x.c doc/"),
        ("+ {src/deep/,*.txt}", "src/ src/deep/ src/deep/x.c doc/ doc/x.txt"),
        ("+ src", "src/ src/deep/ doc/"),
    ],
)
def test_ordered_rules(text: str, kept: str) -> None:
    assert chosen(text).split() == kept.split()


def test_a_link_is_no_directory() -> None:
    link = entry("src", kind="link")
    assert Filter(rules("- src/")).keep(link)
    assert not Filter(rules("- src")).keep(link)
    assert not Filter(rules("+ x")).keep(link)
    assert not Filter(rules("+ x")).keep(entry("pipe", kind="special"))


def test_sizes_and_ages_are_for_files_only_and_include_their_ends() -> None:
    sizes = Filter(min_size=10, max_size=20)
    files = [entry("f", size=size) for size in (9, 10, 20, 21, None)]
    assert [one.size for one in sizes.select(files)] == [10, 20, None]
    ages = Filter(newer_than_ns=10, older_than_ns=20)
    files = [entry("f", mtime_ns=mtime) for mtime in (9, 10, 20, 21, None)]
    assert [one.mtime_ns for one in ages.select(files)] == [10, 20, None]
    for other in (entry("d/", 0, 0), entry("l", 0, 0, "link")):
        assert sizes.keep(other)
        assert ages.keep(other)
    assert not sizes.prune("d")


def test_zero_is_a_bound() -> None:
    assert not Filter(max_size=0).keep(entry("f", size=1))
    assert not Filter(newer_than_ns=0).keep(entry("f", mtime_ns=-1))
    assert not Filter(older_than_ns=0).keep(entry("f", mtime_ns=1))


def test_max_depth() -> None:
    shallow = Filter(max_depth=2)
    tree = [entry(path) for path in ("a", "d/", "d/a", "d/e/", "d/e/a", "d/e/f/", "d/e/f/a")]
    assert shallow.select(tree) == tree[:4]
    assert [path for path in ("", "d", "d/e", "d/e/f") if shallow.prune(path)] == ["d/e", "d/e/f"]
    assert Filter(max_depth=1).prune("d")


@pytest.mark.parametrize(
    "bounds",
    [
        {"min_size": -1},
        {"max_size": -1},
        {"min_size": 2, "max_size": 1},
        {"newer_than_ns": 2, "older_than_ns": 1},
        {"max_depth": 0},
        {"max_depth": -1},
    ],
)
def test_bounds_that_nothing_could_pass(bounds: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Filter(**bounds)


def test_is_empty() -> None:
    nothing = Filter()
    assert nothing.is_empty
    page = [entry("a"), entry("b/")]
    assert nothing.select(page) is page
    assert not nothing.prune("b")
    assert not Filter(rules("- x")).is_empty
    assert not Filter(rules("+ x")).is_empty
    assert not Filter(min_size=0).is_empty
    assert not Filter(older_than_ns=0).is_empty
    assert not Filter(max_depth=1).is_empty


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("a.tmp", "excluded by --exclude '*.tmp'"),
        ("d/keep.tmp", "included by --include 'keep*'"),
        ("a.c", "included: no rule matches"),
        ("cache/x/keep", "excluded: cache/ is excluded by --exclude cache/"),
        ("1/2/3/keep", "excluded by --max-depth 3"),
        ("1/2/3/4/x", "excluded: 1/2/3/4/ is excluded by --max-depth 3"),
        ("small", "excluded by --min-size 10"),
        ("big", "excluded by --max-size 20"),
        ("old", "excluded by --max-age"),
        ("new", "excluded by --min-age"),
    ],
)
def test_explain(path: str, why: str) -> None:
    chooser = Filter(
        rules("+ keep*\n- *.tmp\n- cache/"),
        min_size=10,
        max_size=20,
        newer_than_ns=100,
        older_than_ns=200,
        max_depth=3,
    )
    size = {"small": 9, "big": 21}.get(path, 15)
    mtime_ns = {"old": 99, "new": 201}.get(path, 150)
    assert chooser.explain(entry(path, size, mtime_ns)) == why


def test_explain_includes_alone() -> None:
    chooser = Filter(rules("+ *.c"))
    assert chooser.explain(entry("d/a.c")) == "included by --include '*.c'"
    assert chooser.explain(entry("d/a.o")) == "excluded: no --include matches"
    assert chooser.explain(entry("d/")) == "included: no rule matches"


def test_more_directories_and_rule_sets_than_are_remembered() -> None:
    lines = [f"- /d{number}/x" for number in range(600)]
    chooser = Filter([*map(parse_rule, lines), Rule(False, "closed/")])
    for _ in range(2):
        for number in range(6000):
            assert chooser.keep(entry(f"d{number}/x")) == (number >= 600)
            assert not chooser.keep(entry(f"d{number}/closed/y/z"))


def test_no_limit_of_depth() -> None:
    chooser = Filter(rules("- x/y/x\n- **/z*z/**"))
    deep = "a/" * 3000
    assert chooser.keep(entry(deep + "x"))
    assert not chooser.keep(entry(deep + "x/y/x/b"))
    assert not chooser.keep(entry(deep + "zz/b/c"))


# -- A slow second opinion ------------------------------------------------------------------------
# It reads patterns character by character and paths from the root down, with no compiled
# rules, no caches and no cleverness.


def braces(pattern: str) -> Iterable[str]:
    start = pattern.find("{")
    if start < 0:
        return [pattern]
    depth, commas = 0, [start]
    for at in range(start, len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[at], 0)
        if depth == 1 and pattern[at] == ",":
            commas.append(at)
        if depth == 0:
            commas.append(at)
            parts = [pattern[a + 1 : b] for a, b in pairwise(commas)]
            end = pattern[at + 1 :]
            return [one for part in parts for one in braces(pattern[:start] + part + end)]
    raise AssertionError(pattern)


def glob(pattern: str, text: str) -> bool:
    if not pattern:
        return not text
    if pattern.startswith("**"):
        rest = pattern.lstrip("*")
        return any(glob(rest, text[at:]) for at in range(len(text) + 1))
    if pattern[0] == "*":
        span = (text + "/").index("/")
        return any(glob(pattern[1:], text[at:]) for at in range(span + 1))
    if not text:
        return False
    if pattern[0] == "?":
        return text[0] != "/" and glob(pattern[1:], text[1:])
    if pattern[0] == "[":
        members, rest = pattern[1:].split("]", 1)
        negated = members[0] in "!^"
        inside = text[0] in members.lstrip("!^")
        return text[0] != "/" and inside != negated and glob(rest, text[1:])
    if pattern[0] == "\\":
        pattern = pattern[1:]
    return pattern[0] == text[0] and glob(pattern[1:], text[1:])


def oracle_matches(pattern: str, path: str, is_dir: bool) -> bool:
    for one in braces(pattern):
        if one.endswith("/***") and len(one) > 4:
            if any(oracle_matches(tree, path, is_dir) for tree in (one[:-3], one[:-1])):
                return True
            continue
        if one.endswith("/") and not is_dir:
            continue
        body = one.removesuffix("/")
        if body.startswith("/"):
            tails = [path]
            body = body[1:]
        else:
            parts = path.split("/")
            tails = ["/".join(parts[at:]) for at in range(len(parts))]
            if body.startswith("**/"):
                tails.append("/" + path)
        if any(glob(body, tail) for tail in tails):
            return True
    return False


def oracle_keeps(ordered: Sequence[Rule], path: str, is_dir: bool, max_depth: int | None) -> bool:
    parts = path.split("/")
    if max_depth is not None and len(parts) > max_depth:
        return False
    only_includes = bool(ordered) and all(rule.include for rule in ordered)
    for length in range(1, len(parts) + 1):
        here = "/".join(parts[:length])
        here_is_dir = is_dir or length < len(parts)
        included = here_is_dir or not only_includes
        for rule in ordered:
            patterns = set(braces(rule.pattern))
            if only_includes:
                patterns |= {one + "**" for one in patterns if one.endswith("/")}
            if any(oracle_matches(pattern, here, here_is_dir) for pattern in patterns):
                included = rule.include
                break
        if not included:
            return False
    return True


PIECES = ["a", "b", ".", "*", "?", "**", "/", "[ab]", "[!a]", "[^b.]", "\\*", "{a,b}", "{a/,b*a}"]
PIECES += ["{a/b,a**b}", "/***", "{a*b,{a,.}/b}", "a*b", "*a", "*.a", "a**b", "/**/"]
RSYNC_PIECES = [piece for piece in PIECES if not set("{\\") & set(piece)]


def rule_lists(pieces: list[str]) -> st.SearchStrategy[list[Rule]]:
    parts = st.lists(st.sampled_from(pieces), min_size=1, max_size=5)
    return st.lists(st.builds(rule_or_none, st.booleans(), parts.map("".join)), max_size=6).map(
        lambda found: [rule for rule in found if rule is not None]
    )


def rule_or_none(include: bool, pattern: str) -> Rule | None:
    try:
        return Rule(include, pattern)
    except UsageError:
        return None


@st.composite
def trees(draw: st.DrawFn) -> list[Entry]:
    """A tree in the order of listings, with all its directories."""
    name = st.sampled_from(["a", "b", "aa", "ab", "bab", "b.a", ".a", "a.", "...", "*", "a*b"])
    paths = draw(st.lists(st.lists(name, min_size=1, max_size=4), min_size=1, max_size=8))
    dirs = {tuple(path[:length]) for path in paths for length in range(1, len(path))}
    dirs |= {tuple(path) for path in paths if draw(st.integers(0, 3)) == 0}
    files = {tuple(path) for path in paths} - dirs
    found = [entry("/".join(path) + "/") for path in dirs]
    found += [entry("/".join(path)) for path in files]
    return sorted(found, key=lambda one: os.fsencode(path_of(one)))


DEPTHS = st.none() | st.integers(1, 4)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rule_lists(PIECES), trees(), DEPTHS)
def test_same_as_the_oracle(ordered: list[Rule], tree: list[Entry], depth: int | None) -> None:
    chooser = Filter(ordered, max_depth=depth)
    wanted = [one for one in tree if oracle_keeps(ordered, one.path, one.kind == "dir", depth)]
    assert chooser.select(tree) == wanted
    assert [one for one in tree if chooser.keep(one)] == wanted
    assert [one for one in tree if chooser.explain(one).startswith("included")] == wanted


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rule_lists(PIECES), trees(), DEPTHS)
def test_walked_or_listed_flat_is_the_same(
    ordered: list[Rule], tree: list[Entry], depth: int | None
) -> None:
    flat = Filter(ordered, max_depth=depth).select(tree)
    walker = Filter(ordered, max_depth=depth)
    closed: list[str] = []
    walked = []
    for one in tree:
        if one.path.startswith(tuple(closed)):
            continue
        walked += walker.select([one])
        if one.kind == "dir" and walker.prune(one.path):
            closed.append(one.path + "/")
    assert walked == flat


@settings(max_examples=300, deadline=None)
@given(st.text("ab/*?[]{},\\!^-:.", max_size=12), st.text("ab*?[]{},\\!^-:.", max_size=12))
def test_any_text_is_a_rule_or_a_usage_error(pattern: str, name: str) -> None:
    rule = rule_or_none(False, pattern)
    if rule is None:
        return
    chooser = Filter([rule])
    for one in (entry(name), entry(name + "/"), entry("a/b/" + name)):
        assert chooser.keep(one) == chooser.explain(one).startswith("included")


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=8))
def test_an_escaped_name_matches_that_name_alone(name: str) -> None:
    assume(name not in (".", ".."))
    pattern = "".join("\\" + char for char in name)
    assert matches(pattern, name)
    assert matches(pattern, "d/" + name)
    assert not matches(pattern, name + "x")


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rule_lists(RSYNC_PIECES), trees())
def test_same_as_rsync(ordered: list[Rule], tree: list[Entry]) -> None:
    # A last rule that matches nothing here, because rsync does not know lists of includes alone.
    ordered = [*ordered, Rule(False, "/nothing")]
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory, "source")
        root.mkdir()
        for one in tree:
            if one.kind == "dir":
                (root / one.path).mkdir()
            else:
                (root / one.path).touch()
        signed = [f"--filter={'+' if rule.include else '-'} {rule.pattern}" for rule in ordered]
        listing = subprocess.run(
            ["rsync", "-rn", "--out-format=%n", *signed, f"{root}/", f"{directory}/target/"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    wanted = sorted(set(listing.splitlines()) - {"./"})
    assert sorted(map(path_of, Filter(ordered).select(tree))) == wanted


# rclone judges whole paths of files: where no rule can mean a directory, both languages are one.
# (Its [^b] matches a slash, and its include of a**b misses directories on the way.)
RCLONE_PIECES = ["a", "b", ".", "*", "?", "/", "[ab]", "{a,b}", "a*", "*b"]


@pytest.mark.skipif(RCLONE is None, reason="rclone is not installed")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rule_lists(RCLONE_PIECES), trees(), st.booleans())
def test_same_as_rclone(ordered: list[Rule], tree: list[Entry], only_includes: bool) -> None:
    suffixed = []
    for rule in ordered:
        if not rule.pattern.endswith("/") and "**" not in rule.pattern:
            suffixed.append(Rule(rule.include or only_includes, rule.pattern + ".x"))
    ordered = suffixed
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        found = []
        for one in tree:
            if one.kind == "dir":
                (root / one.path).mkdir()
                found.append(one)
            else:
                for name in (one.path, one.path + ".x"):
                    (root / name).touch()
                    found.append(entry(name))
        kind = "include" if only_includes else "filter"
        signed = [
            f"--{kind}={rule.pattern}"
            if only_includes
            else f"--filter={'+' if rule.include else '-'} {rule.pattern}"
            for rule in ordered
        ]
        command = [str(RCLONE), "--config=", "lsf", "-R", "--files-only", *signed, directory]
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if not only_includes:
        ordered = [*ordered, Rule(False, "/nothing")]
    kept = [one.path for one in Filter(ordered).select(found) if one.kind == "file"]
    assert sorted(kept) == sorted(listing.splitlines())
