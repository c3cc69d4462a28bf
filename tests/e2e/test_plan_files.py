"""`fastsync plan` and `fastsync run`: what was planned is done, what is out of date is not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
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
    assert said == "inside" or "plan.jsonl:3" in done.stderr
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
