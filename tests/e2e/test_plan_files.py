"""`fastsync plan` and `fastsync run`: what was planned is done, what is out of date is not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from hostile_s3 import HostileS3

    from tests.conftest import Fastsync, Picture, Plant, Spec

OURS: Spec = {
    "a": "a",
    "dir/b": "b",
    "dir/sub/large": b"large" * 100_000,
    "link": Path("dir/b"),
    "becomes-a-file": "now a file",
    "becomes-a-dir/x": "x",
    "none/": "",
    os.fsdecode(b"not-\xff-utf8"): "bytes",
}
THEIRS: Spec = {
    "a": "an older a",
    "extra": "only here",
    "old/deep/file": "only here",
    "becomes-a-file/x": "x",
    "becomes-a-dir": "a file",
}


def lines_of(plan: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in plan.read_text().splitlines()]


@pytest.fixture
def trees(plant: Plant, tmp_path: Path) -> tuple[Path, Path]:
    return plant(tmp_path / "ours", OURS), plant(tmp_path / "theirs", THEIRS)


@pytest.mark.parametrize("is_new", [True, False])
def test_a_plan_that_is_run_is_a_sync(
    fastsync: Fastsync,
    trees: tuple[Path, Path],
    picture: Callable[..., Picture],
    tmp_path: Path,
    is_new: bool,
) -> None:
    ours, theirs = trees
    target = tmp_path / "new" if is_new else theirs
    before = picture(theirs)
    planned = fastsync("plan", "-a", "--delete", "ours", target.name, "-o", "plan.jsonl")
    assert planned == (0, "", "")
    assert picture(theirs) == before
    assert fastsync("run", "-n", "plan.jsonl").stdout.count("would ") >= len(OURS)
    assert picture(theirs) == before
    # From elsewhere: the places in it are absolute.
    plan = tmp_path / "plan.jsonl"
    assert fastsync("run", "-a", plan, cwd=ours) == (0, "", "")
    assert picture(target) == picture(ours)
    assert fastsync("plan", "-a", "--delete", "ours", target.name).stdout == ""


def test_directories_stay_that_hold_what_is_excluded(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    plant(tmp_path / "ours", {"a": "a"})
    plant(tmp_path / "theirs", {"old/keep.tmp": "", "old/sub/goes": ""})
    options = ("--delete", "--exclude", "*.tmp", "ours", "theirs")
    assert "theirs/old (not in the source, unless something in it stays)" in (
        fastsync("sync", "-n", *options).stdout
    )
    assert fastsync("plan", *options, "-o", "plan.jsonl").code == 0
    assert fastsync("run", "plan.jsonl") == (0, "", "")
    assert [path.name for path in sorted((tmp_path / "theirs/old").iterdir())] == ["keep.tmp"]


def test_a_plan_that_went_through_a_program_with_floating_point_numbers(
    fastsync: Fastsync, trees: tuple[Path, Path], tmp_path: Path
) -> None:
    """As jq 1.6 has them: whole numbers above 2^53 come out as others (RFC 8259, 6)."""
    _, theirs = trees
    assert fastsync("plan", "-a", "--delete", "ours", "theirs", "-o", "plan.jsonl").code == 0
    plan = tmp_path / "plan.jsonl"
    texts = plan.read_text().splitlines()
    lines = [json.loads(text, parse_int=lambda digits: int(float(digits))) for text in texts]
    plan.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert fastsync("run", "-a", "plan.jsonl") == (0, "", "")
    assert (theirs / "a").read_text() == "a"


def test_what_is_out_of_date_is_left_out_and_the_rest_is_done(
    fastsync: Fastsync, trees: tuple[Path, Path], tmp_path: Path
) -> None:
    ours, theirs = trees
    assert fastsync("plan", "--delete", "ours", "theirs", "-o", "plan.jsonl").code == 0
    (ours / "dir/b").write_text("another b")
    (theirs / "a").write_text("somebody's a, written meanwhile")
    (theirs / "extra").write_text("somebody's extra, written meanwhile")
    (theirs / "link").write_text("somebody's link")
    done = fastsync("run", "plan.jsonl")
    assert done.code == 8, done.stderr
    for name in ("dir/b", "theirs/a", "theirs/extra", "theirs/link"):
        assert done.stderr.count(f"{name}: ") == 1, name
    assert (theirs / "a").read_text() == "somebody's a, written meanwhile"
    assert (theirs / "extra").read_text() == "somebody's extra, written meanwhile"
    assert (theirs / "link").read_text() == "somebody's link"
    assert not (theirs / "dir/b").exists()
    assert (theirs / "dir/sub/large").read_bytes() == (ours / "dir/sub/large").read_bytes()
    assert not (theirs / "old").exists()


def test_lines_can_be_taken_out_and_piped(
    fastsync: Fastsync, trees: tuple[Path, Path], tmp_path: Path
) -> None:
    _, theirs = trees
    assert fastsync("plan", "--delete", "ours", "theirs", "-o", "plan.jsonl").code == 0
    plan = tmp_path / "plan.jsonl"
    kept = [line for line in lines_of(plan) if line["path"] == "extra"]
    plan.write_text(json.dumps(kept[0] | {"more": "is ignored"}))
    script = 'cat plan.jsonl | "$@" run --json -'
    done = fastsync(under=["sh", "-c", script, "sh"])
    assert done.code == 0, done.stderr
    assert [json.loads(line)["operation"] for line in done.stdout.splitlines()] == [
        "delete",
        "summary",
    ]
    assert not (theirs / "extra").exists()
    assert (theirs / "old/deep/file").exists()


def test_shards_are_the_whole(
    fastsync: Fastsync, trees: tuple[Path, Path], picture: Callable[..., Picture]
) -> None:
    ours, theirs = trees
    assert fastsync("plan", "-a", "--delete", "ours", "theirs", "-o", "plan.jsonl").code == 0
    for shard in ("1/3", "2/3"):
        assert fastsync("run", "-a", "--shard", shard, "plan.jsonl").code == 0
        assert (theirs / "extra").exists()
    assert fastsync("run", "-a", "--shard", "3/3", "plan.jsonl").code == 0
    assert picture(theirs) == picture(ours)


def test_one_file_under_another_name(fastsync: Fastsync, trees: tuple[Path, Path]) -> None:
    assert fastsync("plan", "ours/a", "theirs/other", "-o", "plan.jsonl").code == 0
    assert fastsync("run", "plan.jsonl") == (0, "", "")
    assert (trees[1] / "other").read_text() == "a"


def test_the_last_shard_waits_for_the_others(
    fastsync: Fastsync, trees: tuple[Path, Path], picture: Callable[..., Picture]
) -> None:
    """It deletes nothing, and replaces nothing of another kind, as long as their lines are not done."""
    ours, theirs = trees
    assert fastsync("plan", "-a", "--delete", "ours", "theirs", "-o", "plan.jsonl").code == 0
    done = fastsync("run", "-a", "--shard", "2/2", "plan.jsonl")
    assert done.code == 6, done.stderr
    assert "not done that other shards have" in done.stderr
    assert (theirs / "extra").exists()
    assert (theirs / "becomes-a-file/x").exists()
    assert fastsync("run", "-a", "--shard", "1/2", "plan.jsonl").code == 0
    # What this one did itself before is out of date by now, and no reason to keep anything.
    assert fastsync("run", "-a", "--shard", "2/2", "plan.jsonl").code in (0, 8)
    assert not (theirs / "extra").exists()
    assert picture(theirs) == picture(ours)


def test_another_file_of_the_same_size_and_time_is_refused(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    """On either side, whether it is to be copied, replaced or deleted."""
    plant(tmp_path, {f"ours/{name}": f"new {name}" for name in "abc"})
    plant(tmp_path, {f"theirs/{name}": "older" for name in "abde"})
    assert fastsync("plan", "--delete", "ours", "theirs", "-o", "plan.jsonl").code == 0
    for path in ("ours/a", "theirs/b", "theirs/d"):
        now = (tmp_path / path).stat()
        (tmp_path / "other").write_text("x" * now.st_size)
        os.utime(tmp_path / "other", ns=(now.st_atime_ns, now.st_mtime_ns))
        (tmp_path / "other").replace(tmp_path / path)
    done = fastsync("run", "plan.jsonl")
    assert done.code == 8, done.stderr
    assert done.stderr.count("another file stands there") == 3
    left = {path.name: path.read_text() for path in (tmp_path / "theirs").iterdir()}
    assert left == {"a": "older", "b": "xxxxx", "c": "new c", "d": "xxxxx"}


def test_a_plan_to_a_bucket_costs_a_request_for_each_line(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, hostile_s3: HostileS3
) -> None:
    """What stands there is for the write to ask, and one listing tells of what is to be deleted."""
    plant(tmp_path, {f"ours/{number:02}": str(number) for number in range(40)})
    for number in range(20, 80):
        hostile_s3.put("bucket", f"to/{number:02}", b"older")
    fastsync.environ |= hostile_s3.environ
    plan = (
        "plan",
        "--delete",
        "--max-delete",
        "100%",
        "ours",
        "s3://bucket/to",
        "-o",
        "plan.jsonl",
    )
    assert fastsync(*plan).code == 0
    hostile_s3.put("bucket", "to/07", b"somebody's")
    hostile_s3.put("bucket", "to/30", b"somebody's")
    hostile_s3.put("bucket", "to/70", b"somebody's")
    hostile_s3.requests.clear()
    done = fastsync("run", "plan.jsonl")
    assert done.stderr.count("changed since it was planned") == 3
    counts = hostile_s3.counts()
    assert counts["PutObject"] <= 40 + 2  # two find out whether the server minds conditions
    assert counts["HeadObject"] <= 1
    assert sum(count for name, count in counts.items() if name.startswith("ListObjects")) <= 2
    kept = {key: hostile_s3.data("bucket", f"to/{key}") for key in ("07", "30", "70")}
    assert set(kept.values()) == {b"somebody's"}
    assert hostile_s3.data("bucket", "to/39") == b"39"
    assert "to/79" not in hostile_s3.keys("bucket")


def test_what_is_replaced_and_deleted_goes_to_the_backup(
    fastsync: Fastsync, trees: tuple[Path, Path], tmp_path: Path
) -> None:
    assert fastsync("plan", "--delete", "ours", "theirs", "-o", "plan.jsonl").code == 0
    assert fastsync("run", "--backup-dir", "theirs/old", "plan.jsonl").code == 2
    assert fastsync("run", "--backup-dir", "kept", "plan.jsonl").code == 0
    kept = sorted(
        str(path.relative_to(tmp_path / "kept"))
        for path in (tmp_path / "kept").rglob("*")
        if path.is_file()
    )
    assert kept == ["a", "becomes-a-dir", "becomes-a-file/x", "extra", "old/deep/file"]
    assert (tmp_path / "kept/a").read_text() == "an older a"


def test_extended_attributes_of_what_is_copied(
    fastsync: Fastsync, trees: tuple[Path, Path]
) -> None:
    ours, theirs = trees
    try:
        os.setxattr(ours / "a", "user.colour", b"red")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    assert fastsync("plan", "ours", "theirs", "-o", "plan.jsonl").code == 1
    fastsync("run", "-X", "plan.jsonl")
    assert os.getxattr(theirs / "a", "user.colour") == b"red"


LINE: dict[str, Any] = {
    "plan": 1,
    "operation": "copy",
    "source": "ours",
    "destination": "theirs",
    "path": "a",
    "source_entry": {"kind": "file", "size": 1},
}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ('{"plan":1,"operation":"co', "cut off"),
        ("null\n", "not a JSON object"),
        ("[" * 100_000, "cut off, or no JSON"),
        ("x" * 300_000, "too long"),
        (LINE | {"plan": 2}, "version 2"),
        (LINE | {"plan": True}, "version"),
        (LINE | {"operation": "run"}, "'operation'"),
        (LINE | {"path": "../a"}, "'..' segment"),
        (LINE | {"path": "/etc/passwd"}, "empty segment"),
        (LINE | {"to": "b/../../a"}, "'..' segment"),
        (LINE | {"read_from": "../a"}, "'..' segment"),
        (LINE | {"path": "", "operation": "delete", "destination_entry": {"kind": "dir"}}, "empty"),
        (LINE | {"path_bytes": "%"}, "base64"),
        (LINE | {"source_entry": {"kind": "file", "size": -1}}, "'size'"),
        (LINE | {"source_entry": {"kind": "dir"}}, "not for what is a dir"),
        (LINE | {"source_entry": None}, "'source_entry' is missing"),
        (LINE | {"destination": "ours/dir"}, "inside"),
        (LINE | {"destination": "ours", "to": "a"}, "the same file"),
        (LINE | {"destination": "theirs/../ours", "read_from": "a", "to": "a"}, "the same file"),
        (LINE | {"destination": "-"}, "standard"),
        (LINE | {"destination": "sftp://u:hunter2@host/x"}, "secret"),
        (LINE | {"destination": "nosuch://x/y"}, "nosuch"),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else None,
)
def test_a_bad_plan_touches_nothing(
    fastsync: Fastsync,
    trees: tuple[Path, Path],
    picture: Callable[..., Picture],
    tmp_path: Path,
    bad: dict[str, Any] | str,
    said: str,
) -> None:
    before = picture(trees[1])
    text = bad if isinstance(bad, str) else json.dumps(bad)
    (tmp_path / "plan.jsonl").write_text(json.dumps(LINE) + "\n\n" + text)
    done = fastsync("run", "plan.jsonl")
    assert (done.code, done.stdout) == (2, "")
    assert said in done.stderr
    assert "plan.jsonl:3" in done.stderr
    assert done.stderr.count("\n") == 1
    assert len(done.stderr) < 500
    assert "hunter2" not in done.stderr
    assert picture(trees[1]) == before


def test_a_plan_that_cannot_be_made_leaves_none(
    fastsync: Fastsync, tmp_path: Path, trees: tuple[Path, Path]
) -> None:
    (tmp_path / "plan.jsonl").write_text("an older plan")
    assert fastsync("plan", "nothing", "theirs", "-o", "plan.jsonl").code == 3
    assert (tmp_path / "plan.jsonl").read_text() == "an older plan"
    assert fastsync("plan", "ours", "theirs", "-o", "no/plan.jsonl").code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "plan.jsonl", "theirs"]


def test_a_store_without_times_is_bound_by_versions(
    fastsync: Fastsync, moto: Any, trees: tuple[Path, Path]
) -> None:
    client = moto.client
    client.create_bucket(Bucket="plans")
    for key in ("a", "b"):
        client.put_object(Bucket="plans", Key=key, Body=b"one")
    fastsync.environ |= moto.environ
    assert fastsync("plan", "s3://plans/", "down", "-o", "plan.jsonl").code == 0
    client.put_object(Bucket="plans", Key="a", Body=b"two")
    done = fastsync("run", "plan.jsonl")
    assert done.code == 8, done.stderr
    assert sorted(path.name for path in (fastsync.cwd / "down").iterdir()) == ["b"]
    assert fastsync("plan", "ours/dir", "s3://plans/dir", "-o", "plan.jsonl").code == 0
    client.put_object(Bucket="plans", Key="dir/b", Body=b"somebody's")
    done = fastsync("run", "plan.jsonl")
    assert done.code == 8, done.stderr
    assert client.get_object(Bucket="plans", Key="dir/b")["Body"].read() == b"somebody's"
    assert client.head_object(Bucket="plans", Key="dir/sub/large")["ContentLength"] == 500_000


def test_a_plan_goes_through_a_pipe_and_never_in_the_place_of_one(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    plant(tmp_path, {"src/a": "a"})
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert fastsync("plan", "src", "dest", "-o", "pipe").code == 0
        assert b'"path":"a"' in os.read(reader, 65536)
    finally:
        os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
    # In the tree that is planned, the plan is not planned.
    assert fastsync("plan", ".", "../dest", "-o", "plan.jsonl", cwd=tmp_path / "src").code == 0
    lines = (tmp_path / "src/plan.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines if '"copy"' in line] == ["a"]
    assert '"path":"a"' in fastsync("plan", "src", "dest", "-o", "-").stdout
    assert not (tmp_path / "-").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"operation": []},
        {"operation": {}},
        {"source": "\ud800"},
        {"source_entry": {"kind": "file", "version": "a\r\nb"}},
        {"operation": "attributes", "path": "", "read_from": "../evil"},
        {"operation": "attributes", "path": "", "source_entry": {"kind": "file"}},
    ],
)
def test_lines_that_nobody_would_plan(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, change: dict[str, object]
) -> None:
    plant(tmp_path, {"src/a": "a", "dest/": ""})
    assert fastsync("plan", "src", "dest", "-o", "plan.jsonl").code == 0
    lines = map(json.loads, (tmp_path / "plan.jsonl").read_text().splitlines())
    line = next(line for line in lines if line["operation"] == "copy")
    (tmp_path / "plan.jsonl").write_text(json.dumps({**line, **change}) + "\n")
    done = fastsync("run", "plan.jsonl")
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr.startswith("fastsync: error: plan.jsonl:1: ")
    assert list((tmp_path / "dest").iterdir()) == []
