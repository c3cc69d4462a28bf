"""`fastsync jobs resume`: what was cut off goes on, wherever it came from, and from any directory."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hostile_s3 as faults
import pytest
from hostile_s3 import HostileS3
from sshd import running_sshd

from fastsync.journal import Journal, Record
from fastsync.testing.vocabulary import noise

if TYPE_CHECKING:
    from tests.conftest import Fastsync

MIB = 1 << 20
CONTENT = noise(MIB) * 16 + b"the end"
Start = Callable[..., "subprocess.Popen[bytes]"]
Wait = Callable[[Callable[[], object]], None]
WAYS = ("into a bucket", "from the web", "to a server", "from a server")


@pytest.fixture
def ways(
    fastsync: Fastsync, hostile_s3: HostileS3, tmp_path: Path
) -> Iterator[dict[str, tuple[list[str], Callable[[], bytes]]]]:
    """What to copy, and what has come of it."""
    fastsync.environ |= hostile_s3.environ
    (tmp_path / "big").write_bytes(CONTENT)
    os.utime(tmp_path / "big", (10**9, 10**9))  # one of today could be written to again unseen
    for name in ("to", "elsewhere"):
        (tmp_path / name).mkdir()
    hostile_s3.put("bucket", "there", CONTENT)
    to = tmp_path / "to/big"
    with ExitStack() as stack:
        (tmp_path / "sshd").mkdir()
        sshd = stack.enter_context(running_sshd(tmp_path / "sshd"))
        ssh = [f"--{key.replace('_', '-')}={value}" for key, value in sshd.place.items()]
        web = f"{hostile_s3.endpoint}/bucket/there"
        yield {
            "into a bucket": (
                ["big", "s3://bucket/a/big"],
                lambda: hostile_s3.data("bucket", "a/big"),
            ),
            "into a bucket, by content": (
                ["--checksum", "big", "s3://bucket/a/big"],
                lambda: hostile_s3.data("bucket", "a/big"),
            ),
            "from the web": ([web, "to/big"], to.read_bytes),
            "to a server": ([*ssh, "big", sshd.url(to)], to.read_bytes),
            "from a server": ([*ssh, sshd.url(tmp_path / "big"), "to/big"], to.read_bytes),
        }


def jobs(command: Fastsync, *more: str) -> list[dict[str, Any]]:
    done = command("jobs", "list", "--json", *more)
    assert (done.code, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def records(tmp_path: Path) -> list[Record]:
    with closing(Journal(str(tmp_path / "home/.local/state/fastsync"))) as journal:
        return journal.records()


@pytest.fixture
def half_way(
    way: str,
    ways: dict[str, tuple[list[str], Callable[[], bytes]]],
    started: Start,
    eventually: Wait,
    tmp_path: Path,
) -> tuple[list[str], Callable[[], bytes]]:
    """A copy that was killed half-way: what is copied, and what has come of it."""
    arguments, content = ways[way]
    process = started("cp", "-c", "5M", "--bwlimit", "4M", *arguments)
    eventually(lambda: any(record.ranges for record in records(tmp_path)))
    process.kill()
    process.wait(10)
    return arguments, content


@pytest.mark.parametrize("way", WAYS)
def test_it_goes_on_from_anywhere(
    fastsync: Fastsync,
    half_way: tuple[list[str], Callable[[], bytes]],
    hostile_s3: HostileS3,
    tmp_path: Path,
    way: str,
) -> None:
    """What the ways of SSH need to be asked for is remembered, too."""
    arguments, content = half_way
    (job,) = jobs(fastsync)
    assert job["state"] == "gone"
    assert 0 < job["done"] < job["size"] == len(CONTENT)
    assert job["source"].endswith(arguments[-2].rpartition("/")[2])
    told = fastsync("jobs", "list").stdout
    assert f"of 16.0 MiB  {job['source']} -> {job['destination']}\n" in told
    elsewhere = tmp_path / "elsewhere"
    would = fastsync("jobs", "resume", "-n", cwd=elsewhere)
    assert (would.code, would.stdout.startswith("would copy ")) == (0, True)
    assert jobs(fastsync) == [job]
    hostile_s3.requests.clear()
    done = fastsync("jobs", "resume", "--json", cwd=elsewhere)
    assert (done.code, done.stderr) == (0, "")
    copied, summary = map(json.loads, done.stdout.splitlines())
    assert (copied["operation"], copied["size"]) == ("copy", len(CONTENT))
    assert (summary["copied"], summary["exit_code"]) == (1, 0)
    assert content() == CONTENT
    assert jobs(fastsync) == []
    assert list((tmp_path / "to").glob(".fs-*")) == []
    if way == "into a bucket":
        assert hostile_s3.count("CreateMultipartUpload") == 0
        assert hostile_s3.count("UploadPart") < 4
    else:
        assert summary["bytes_sent"] < len(CONTENT)


@pytest.mark.parametrize("newer", [b"newer", bytes(len(CONTENT))], ids=["short", "as long"])
@pytest.mark.parametrize("way", ["into a bucket", "into a bucket, by content", "from the web"])
def test_what_somebody_has_written_meanwhile_stays(
    fastsync: Fastsync,
    half_way: tuple[list[str], Callable[[], bytes]],
    hostile_s3: HostileS3,
    tmp_path: Path,
    way: str,
    newer: bytes,
) -> None:
    """Who goes on with all that was cut off does not look at each file, as who names it again does. One as
    long as the source's would be told from it by a digest, and be replaced then."""
    arguments, content = half_way
    later = (records(tmp_path)[0].noted_ns // 10**9) + 60
    if way != "from the web":
        hostile_s3.put("bucket", "a/big", newer, {"x-amz-meta-mtime": f"{later}.000000000"})
        hostile_s3.objects.buckets["bucket"]["a/big"].modified_s = later
    else:
        (tmp_path / "to/big").write_bytes(newer)
        os.utime(tmp_path / "to/big", (later, later))
    done = fastsync("jobs", "resume")
    assert (done.code, "something newer stands there" in done.stderr) == (8, True)
    assert content() == newer
    assert len(jobs(fastsync)) == 1
    assert fastsync("cp", "-c", "5M", *arguments).code == 0
    assert content() == CONTENT
    assert jobs(fastsync) == []


@pytest.fixture
def cut_off(
    fastsync: Fastsync, hostile_s3: HostileS3, started: Start, eventually: Wait, tmp_path: Path
) -> Callable[..., None]:
    """Uploads of which the server has a part each, and that were killed."""
    fastsync.environ |= hostile_s3.environ
    hostile_s3.make_bucket("bucket")
    (tmp_path / "from").mkdir()
    for name in ("a", "b"):
        (tmp_path / "from" / name).write_bytes(CONTENT)

    def cut(*arguments: str) -> None:
        before = hostile_s3.count("UploadPart")
        hostile_s3.on("UploadPart", faults.silence(), skip=1, times=None)
        process = started(*arguments)
        eventually(lambda: hostile_s3.count("UploadPart") >= before + 3)
        process.kill()
        process.wait(10)
        hostile_s3.behave()
        hostile_s3.requests.clear()

    return cut


def test_a_tree_with_what_was_asked_for(
    fastsync: Fastsync, hostile_s3: HostileS3, cut_off: Callable[..., None], tmp_path: Path
) -> None:
    """Each file by itself, with its options; below a place alone, where one is named."""
    cut_off("sync", "-c", "6M", "--storage-class", "STANDARD_IA", "from", "s3://bucket/to")
    assert hostile_s3.open_uploads == ["to/a", "to/b"]
    assert fastsync("jobs", "resume", "s3://bucket/another") == (0, "", "")
    done = fastsync("jobs", "resume", "-v", "s3://bucket/to")
    assert (done.code, done.stderr.count("copied s3://bucket/to/")) == (0, 2)
    for name in ("a", "b"):
        assert hostile_s3.data("bucket", f"to/{name}") == CONTENT
        headers = hostile_s3.headers("bucket", f"to/{name}")
        assert headers["x-amz-storage-class"] == "STANDARD_IA"
    assert hostile_s3.count("CreateMultipartUpload") == 0
    assert (hostile_s3.open_uploads, jobs(fastsync)) == ([], [])


def test_sources_that_are_not_there_any_more(
    fastsync: Fastsync, hostile_s3: HostileS3, cut_off: Callable[..., None], tmp_path: Path
) -> None:
    """One is gone, one is another file, and one is a directory now: said, and the rest is done."""
    cut_off("sync", "-c", "5M", "from", "s3://bucket/to")
    (tmp_path / "from/a").unlink()
    (tmp_path / "from/b").write_bytes(b"another")
    done = fastsync("jobs", "resume")
    assert done.code == 3
    assert f"{tmp_path}/from/a: no such file or directory" in done.stderr
    assert hostile_s3.data("bucket", "to/b") == b"another"
    assert hostile_s3.open_uploads == ["to/a"]
    (tmp_path / "from/a").mkdir()
    done = fastsync("jobs", "resume")
    assert (done.code, "a directory stands where the file was" in done.stderr) == (3, True)
    (job,) = jobs(fastsync)
    assert job["destination"] == "s3://bucket/to/a"
    assert fastsync("jobs", "clean").code == 0
    assert hostile_s3.open_uploads == []


def test_what_is_there_by_now_is_dropped(
    fastsync: Fastsync, hostile_s3: HostileS3, cut_off: Callable[..., None], tmp_path: Path
) -> None:
    """Somebody else has finished it."""
    cut_off("cp", "-c", "5M", "from/a", "s3://bucket/a")
    state = {"FASTSYNC_STATE": str(tmp_path / "another")}
    assert fastsync("cp", "from/a", "s3://bucket/a", env=state).code == 0
    hostile_s3.objects.buckets["bucket"]["a"].modified_s += 60  # newer, and the same
    hostile_s3.requests.clear()
    assert fastsync("jobs", "resume").code == 0
    assert hostile_s3.count("UploadPart") == 0
    assert (hostile_s3.open_uploads, jobs(fastsync)) == ([], [])


def test_a_secret_cannot_be_asked_for_again(
    fastsync: Fastsync, hostile_s3: HostileS3, started: Start, eventually: Wait, tmp_path: Path
) -> None:
    """A link that is a secret: said, kept, and the secret is written down nowhere."""
    fastsync.environ |= hostile_s3.environ
    hostile_s3.make_bucket("bucket")
    hostile_s3.put("bucket", "there", CONTENT)
    hostile_s3.on("GetObject", faults.stall(MIB), times=None)
    link = f"{hostile_s3.endpoint}/bucket/there?token=c4n4ry"
    process = started("cp", "-c", "5M", link, "s3://bucket/copy")
    eventually(lambda: hostile_s3.open_uploads)
    eventually(lambda: records(tmp_path))
    process.kill()
    process.wait(10)
    hostile_s3.behave()
    (job,) = jobs(fastsync)
    assert job["source"] == f"{hostile_s3.endpoint}/bucket/there?***"
    done = fastsync("jobs", "resume")
    assert (done.code, "secrets and backups of the run are not written down" in done.stderr) == (
        1,
        True,
    )
    state = tmp_path / "home/.local/state/fastsync"
    assert b"c4n4ry" not in b"".join(
        path.read_bytes() for path in state.rglob("*") if path.is_file()
    )
    assert fastsync("jobs", "clean").code == 0


def test_standard_input_cannot_be_asked_for_again(
    fastsync: Fastsync, hostile_s3: HostileS3, eventually: Wait
) -> None:
    fastsync.environ |= hostile_s3.environ
    hostile_s3.make_bucket("bucket")
    command = fastsync.command("pipe", "-c", "5M", "s3://bucket/piped")
    with subprocess.Popen(command, env=fastsync.environ, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(CONTENT[: 6 * MIB])
        process.stdin.flush()
        eventually(lambda: hostile_s3.count("UploadPart"))
        process.kill()
    done = fastsync("jobs", "resume")
    assert (done.code, "standard input cannot be read again" in done.stderr) == (1, True)
    (job,) = jobs(fastsync)
    assert (job["source"], job["destination"]) == ("-", "s3://bucket/piped")
    assert fastsync("jobs", "clean").code == 0
    assert hostile_s3.open_uploads == []
