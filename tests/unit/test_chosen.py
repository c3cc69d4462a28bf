"""Lists of files, rule files, and .gitignore as git itself reads it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastsync.backend import Entry
from fastsync.chosen import FileList, Ignores, lines_of, rules_from
from fastsync.errors import UsageError
from fastsync.filters import Filter, Rule


def entry(path: str) -> Entry:
    """A directory if it ends in a slash."""
    return Entry(path.removesuffix("/"), "dir" if path.endswith("/") else "file", 0, 0)


def chosen(files: FileList, *paths: str) -> list[str]:
    kept = Filter(choosers=[files]).select([entry(path) for path in paths])
    return [one.path + "/" * (one.kind == "dir") for one in kept]


def test_a_list_takes_what_it_names_and_the_way_there() -> None:
    files = FileList(enumerate(["a", "d/b", "./tree/", "/x//y/./z"], 1), "list")
    paths = ["a", "ab", "d/", "d/a", "d/b", "d/b/", "d/b/c", "tree/", "tree/x/", "tree/x/y", "x/"]
    paths += ["x/y/", "x/y/z", "x/z", "d", "tree"]
    taken = ["a", "d/", "d/b", "d/b/", "d/b/c", "tree/", "tree/x/", "tree/x/y", "x/", "x/y/"]
    assert chosen(files, *paths) == [*taken, "x/y/z", "tree"]
    assert [path for path in ("d", "d/b", "e", "tree/x", "x/y") if files.enters(path)] == [
        "d",
        "d/b",
        "tree/x",
        "x/y",
    ]
    assert chosen(FileList(enumerate(["."], 1), "list"), "a", "d/", "d/b") == ["a", "d/", "d/b"]
    assert chosen(FileList(enumerate([], 1), "list"), "a", "d/") == []


def test_only_what_is_below_a_listed_directory_of_the_source_may_go() -> None:
    files = FileList(enumerate(["a", "d/b", "tree", "gone"], 1), "list")
    files.meet([entry("tree/x")])  # a store that lists no directories
    chooser = Filter(choosers=[files])
    kept = ["a", "d/", "d/b", "d/c", "tree/", "gone/x", "other"]
    for excluded in (False, True):
        assert not any(chooser.may_delete(entry(path), excluded=excluded) for path in kept)
        assert chooser.may_delete(entry("tree/old"), excluded=excluded)


def test_what_is_too_deep_never_goes() -> None:
    chooser = Filter([Rule(False, "*.tmp")], max_depth=2)
    assert not chooser.may_delete(entry("a/b/c"), excluded=True)
    assert chooser.may_delete(entry("a/b.tmp"), excluded=True)
    assert not chooser.may_delete(entry("a/b.tmp"))
    assert chooser.prune_scope("a/b")
    assert not chooser.prune_scope("a")


def test_rules_and_lists_both_have_to_agree() -> None:
    chooser = Filter([Rule(False, "*.tmp")], choosers=[FileList(enumerate(["d"], 1), "list")])
    assert not chooser.keep(entry("d/a.tmp"))
    assert chooser.explain(entry("d/a.tmp")) == "excluded by --exclude '*.tmp'"
    assert chooser.explain(entry("e")) == "excluded: --files-from list does not name it"


def test_list_files(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_bytes(b"# comment\n\n; another\na\r\n b \nc\xff\n")
    assert list(lines_of(str(path))) == [(4, "a"), (5, " b "), (6, "c\udcff")]
    path.write_bytes(b"#a\0b\nc\0\0")
    assert list(lines_of(str(path), null=True)) == [(1, "#a"), (2, "b\nc")]
    with pytest.raises(UsageError, match="-0 is for such a list"):
        list(lines_of(str(path)))
    with pytest.raises(UsageError, match="No such file"):
        list(lines_of(str(tmp_path / "missing")))
    with pytest.raises(UsageError, match="leads out of the source"):
        FileList(enumerate(["a/../b"], 1), "list")


def test_rule_files_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "rules"
    path.write_text("+ *.c\n# no\n- a[\n")
    with pytest.raises(UsageError, match="rules:3: "):
        rules_from(str(path))
    path.write_text("+ *.c\n- /d/\n")
    assert rules_from(str(path)) == [Rule(True, "*.c"), Rule(False, "/d/")]


# -- .gitignore ------------------------------------------------------------------------------------

NAMES = ["a", "b", "ab", "a.o", "b.o"]
LINES = ["a", "*.o", "/b", "a/", "!a.o", "!b", "a/*", "!a/b", "**/ab", "b/**", "!a/", "?", "[ab]b"]
PATHS = [f"{x}/{y}/{z}" for x in ("a", "b") for y in NAMES[:3] for z in NAMES]
PATHS += [f"{x}/{y}" for x in ("a", "ab") for y in ("a.o", "b.o")] + ["a.o", "b.o"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    for path in PATHS:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(*[st.lists(st.sampled_from(LINES), max_size=4) for _ in range(3)])
def test_same_as_git(repository: Path, top: list[str], middle: list[str], deep: list[str]) -> None:
    ignores = Ignores()
    for directory, lines in (("", top), ("a", middle), ("a/b", deep)):
        (repository / directory / ".gitignore").write_text("\n".join(lines))
        ignores.add(directory, "\n".join(lines))
    asked = ["git", "-C", str(repository), "-c", "core.excludesFile=/dev/null"]
    listed = subprocess.run(
        [*asked, "ls-files", "-o", "-z", "--exclude-standard"], check=True, capture_output=True
    ).stdout
    wanted = set(listed.decode().split("\0")) & set(PATHS)
    chooser = Filter(choosers=[ignores])
    assert {path for path in PATHS if chooser.keep(entry(path))} == wanted
    # A store that is walked comes to the same.
    walked = {
        path
        for path in PATHS
        if chooser.keep(entry(path)) and not any(map(chooser.prune, _above(path)))
    }
    assert walked == wanted


def _above(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]
