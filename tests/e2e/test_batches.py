"""`fastsync run` with a batch file: all lines are read first, then run at once; failures name their line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Fastsync, Plant

BATCH = """\
# files
cp --if-size-differ --part-size 50MB a 'to/a file'

cp nothing to/nothing   # is missing
sync dir to/dir
rm -R old
mv b to/
"""


@pytest.fixture
def tree(plant: Plant, tmp_path: Path) -> Path:
    plant(tmp_path, {"a": "a", "b": "b", "dir/c": "c", "old/d": "d", "to/": ""})
    (tmp_path / "batch").write_text(BATCH)
    return tmp_path


def test_lines_are_run_and_failures_name_theirs(fastsync: Fastsync, tree: Path) -> None:
    done = fastsync("run", "batch", "--retry-failed", "rest")
    assert done.code == 1
    assert done.stderr.splitlines() == [
        "fastsync: error: batch:4: nothing: no such file or directory"
    ]
    made = sorted(str(path.relative_to(tree / "to")) for path in (tree / "to").rglob("*"))
    assert made == ["a file", "b", "dir", "dir/c"]
    assert not (tree / "old").exists()
    assert not (tree / "b").exists()
    assert (tree / "rest").read_text() == "cp nothing to/nothing   # is missing\n"
    (tree / "nothing").write_text("there by now")
    assert fastsync("run", "rest", "--retry-failed", "rest") == (0, "", "")
    assert (tree / "rest").read_text() == ""
    assert (tree / "to/nothing").read_text() == "there by now"


def test_json_has_the_line(fastsync: Fastsync, tree: Path) -> None:
    done = fastsync("run", "--json", "batch")
    *items, summary = map(json.loads, done.stdout.splitlines())
    assert {item["line"]: item["success"] for item in items} == {
        2: True,
        4: False,
        5: True,
        6: True,
        7: True,
    }
    assert (summary["copied"], summary["failed"], summary["exit_code"]) == (3, 1, 1)


def test_a_dry_run_of_a_batch_changes_nothing(fastsync: Fastsync, tree: Path) -> None:
    before = sorted(tree.rglob("*"))
    assert fastsync("run", "-n", "batch").stdout.count("would ") >= 4
    assert sorted(tree.rglob("*")) == before


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("run batch", "'run' cannot be in a batch"),
        ("frobnicate a b", "'frobnicate'"),
        ("cp a", "missing argument"),
        ("cp", "missing argument"),
        ("cp --frob a to/a", "no such option '--frob'"),
        ("cp --help", "no such option '--help'"),
        ("cp -c 8Q a to/a", "'8Q'"),
        ("cp -j -3 a to/a", "jobs"),
        ("cp --profile nosuch a to/a", "'nosuch'"),
        ("cp --exclude-from nosuch -R dir to/dir", "nosuch"),
        ("cp 'a to/a", "quotation"),
        ("cp - to/a", "standard"),
        ("cp a nosuch://a/b", "nosuch"),
        ("cp --interactive a to/a", "--interactive"),
        ("cp a " + "x" * 300_000, "too long"),
    ],
    ids=lambda value: value[:16],
)
def test_a_bad_line_touches_nothing(fastsync: Fastsync, tree: Path, line: str, said: str) -> None:
    (tree / "batch").write_text(f"cp a to/a\n\n{line}\ncp a to/b\n")
    done = fastsync("run", "batch")
    assert (done.code, done.stdout) == (2, "")
    assert "batch:3: " in done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list((tree / "to").iterdir())


@pytest.mark.parametrize("option", [("--shard", "1/2"), ("--retry-failed", "no/such/folder")])
def test_options_that_do_not_fit(fastsync: Fastsync, tree: Path, option: tuple[str, str]) -> None:
    done = fastsync("run", *option, "batch")
    assert done.code == 2
    assert option[0] in done.stderr
    assert not list((tree / "to").iterdir())
