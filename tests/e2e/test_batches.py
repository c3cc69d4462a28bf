"""`fastsync run` with a batch file: all lines are read first, then run at once; failures name their line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from hostile_s3 import HostileS3

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
    (tmp_path / "link").symlink_to("dir")
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
    (tree / "batch").write_text(BATCH + "cp -n b to/b\n")
    before = sorted(tree.rglob("*"))
    assert fastsync("run", "-n", "batch").stdout.count("would ") >= 5
    assert sorted(tree.rglob("*")) == before


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("run batch", "'run' cannot be in a batch"),
        ("frobnicate a b", "'frobnicate'"),
        ("cp a", "missing argument 'DST'"),
        ("cp", "missing argument 'SRC...'"),
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
        ("cp -n a to/a", "-n cannot be in a batch"),
        ("cp a a", "same place"),
        ("cp a .", "same place"),
        ("cp dir/c dir/", "same place"),
        ("cp dir/c link", "same place"),
        ("cp -R dir dir/x/", "the destination is inside the source"),
        ("sync dir link", "same place"),
        ("sync dir dir/x", "the destination is inside the source"),
        ("sync dir .", "the source is inside the destination"),
        ("mv dir dir/x", "the destination is inside the source"),
        ("cp a b a", "several sources need a directory"),
        ("cp --checksum --size-only a to/a", "exclude each other"),
        ("cp --fail-on-conflict a to/a", "--fail-on-conflict"),
        ("cp --backup-dir to a to/", "the backup overlaps"),
        ("cp -R --exclude [ dir to/dir", "unclosed ["),
        ("sync --files-from nosuch dir to/", "nosuch"),
        ("sync --files-from - dir to/", "--files-from - cannot be in a batch"),
        ("sync --delete --exclude-from - dir to/", "--exclude-from - cannot be in a batch"),
        ("cp a http://localhost/a", "can only be read"),
        ("mv http://localhost/a to/a", "can only be read"),
        ("rm http://localhost/a", "can only be read"),
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


def test_files_of_one_directory_travel_together(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    """Those that are none, or have other places to go, by themselves; each is told by its line."""
    plant(tmp_path, {f"from/{number:02}": str(number) for number in range(40)})
    plant(tmp_path, {"to/07/x": "", "to/08": "old", "from/dir/x": "", "to/09": "9"})
    for path in ("from/09", "to/09"):
        os.utime(tmp_path / path, (1e9, 1e9))
    lines = [f"cp from/{number:02} to/{number:02}" for number in range(40)]
    lines += ["cp from/01 to/again", "cp from/gone to/gone", "cp from/dir to/dir", "cp from/02 to/"]
    (tmp_path / "batch").write_text("".join(f"{line}\n" for line in lines))
    done = fastsync("run", "--json", "-vv", "batch")
    *items, summary = map(json.loads, done.stdout.splitlines())
    assert done.code == 1
    failed = {item["line"]: item for item in items if not item["success"]}
    assert set(failed) == {42, 43}
    assert failed[42]["error"] == "batch:42: from/gone: no such file or directory"
    assert failed[43]["error"].startswith("batch:43: from/dir: it is a directory")
    assert {item["line"] for item in items} == set(range(1, 45))
    assert [item["line"] for item in items if item["operation"] == "skip"][:1] == [10]
    assert (tmp_path / "to/07/07").read_text() == "7"
    assert (tmp_path / "to/08").read_text() == "8"
    assert (tmp_path / "to/again").read_text() == "1"
    assert len(list((tmp_path / "to").iterdir())) == 41
    assert (summary["failed"], summary["exit_code"]) == (2, 1)


def test_a_hash_inside_a_word_is_no_comment(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    plant(tmp_path, {"a": "not this", "a#1": "this", "a b": "c"})
    (tmp_path / "batch").write_text("rm a#1 # gone\ncp a\\ b \"a'\"c'#'\n#rm a\n")
    assert fastsync("run", "batch") == (0, "", "")
    assert sorted(os.listdir(tmp_path)) == ["a", "a b", "a'c#", "batch"]


def test_objects_of_many_prefixes_travel_together(
    fastsync: Fastsync, tmp_path: Path, hostile_s3: HostileS3
) -> None:
    """Two listings tell of all of them; what is a prefix is one, and an object goes onto itself nowhere."""
    for number in range(40):
        hostile_s3.put("bucket", f"from/{number:02}/k", b"%d" % number)
    hostile_s3.put("bucket", "to/05/k/x", b"a prefix")
    hostile_s3.put("bucket", "to/06/k", b"older")
    hostile_s3.make_bucket("other")
    fastsync.environ |= hostile_s3.environ
    lines = [f"cp s3://bucket/from/{n:02}/k s3://bucket/to/{n:02}/k" for n in range(40)]
    lines += [
        "cp s3://bucket/from/01/k s3://other/from/01/k",
        "cp s3://bucket/gone s3://other/gone",
    ]
    (tmp_path / "batch").write_text("\n".join(lines))
    done = fastsync("run", "batch")
    assert done.code == 1
    assert done.stderr == "fastsync: error: batch:42: s3://bucket/gone: no such object or prefix\n"
    assert [hostile_s3.data("bucket", f"to/{n:02}/k") for n in (0, 6, 39)] == [b"0", b"6", b"39"]
    assert hostile_s3.data("bucket", "to/05/k/k") == b"5"
    assert hostile_s3.keys("other") == ["from/01/k"]
    counts = hostile_s3.counts()
    assert counts["CopyObject"] == 41
    lists = sum(count for name, count in counts.items() if name.startswith("ListObjects"))
    assert lists + counts["HeadObject"] < 80
    for line in (
        "s3://bucket/from/01/k s3://bucket/from/01",
        "s3://bucket/from/01/k s3://bucket/from/01/k",
    ):
        (tmp_path / "batch").write_text(f"{lines[0]}\ncp {line}\n")
        done = fastsync("run", "batch")
        assert (done.code, "batch:2: " in done.stderr, "same place" in done.stderr) == (
            2,
            True,
            True,
        )


def test_files_of_many_directories_travel_together_to_a_bucket(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, hostile_s3: HostileS3
) -> None:
    plant(tmp_path, {f"from/{number:02}/f": str(number) for number in range(40)})
    (tmp_path / "from" / "link").symlink_to("07")
    hostile_s3.put("bucket", "to/05/k/x", b"a prefix")
    fastsync.environ |= hostile_s3.environ
    lines = [f"cp from/{number:02}/f s3://bucket/to/{number:02}/k" for number in range(40)]
    lines += ["cp from/link/f s3://bucket/linked", "cp from/../from/08/f s3://bucket/up"]
    (tmp_path / "batch").write_text("\n".join([*lines, "cp from/09 s3://bucket/tree"]))
    done = fastsync("run", "batch")
    assert done == (
        1,
        "",
        "fastsync: error: batch:43: from/09: it is a directory (-R copies directories)\n",
    )
    assert [hostile_s3.data("bucket", f"to/{n:02}/k") for n in (0, 39)] == [b"0", b"39"]
    assert hostile_s3.data("bucket", "to/05/k/f") == b"5"
    assert hostile_s3.data("bucket", "linked") == b"7"
    assert hostile_s3.data("bucket", "up") == b"8"
    counts = hostile_s3.counts()
    assert counts["PutObject"] == 42
    assert counts["ListObjectsV2"] + counts["HeadObject"] < 20


def test_rules_of_a_line_are_about_the_name_it_copies(
    fastsync: Fastsync, tmp_path: Path, hostile_s3: HostileS3
) -> None:
    """Whatever lines travel together: as if each were a command of its own."""
    hostile_s3.put("bucket", "d/f", b"f")
    fastsync.environ |= hostile_s3.environ
    for number, option in enumerate(("--exclude d/", "--max-depth 1", "--exclude /f")):
        (tmp_path / "batch").write_text(f"cp {option} s3://bucket/d/f s3://bucket/to/{number}\n")
        assert fastsync("run", "batch").code == 0
    assert [key for key in hostile_s3.keys("bucket") if key.startswith("to/")] == ["to/0", "to/1"]
