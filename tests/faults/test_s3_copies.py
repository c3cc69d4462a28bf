"""Copies in parts that a bucket makes by itself: killed on the way, they are gone on with, or dropped."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import hostile_s3 as faults
import pytest
from hostile_s3 import HostileS3

from fastsync.testing.vocabulary import noise

if TYPE_CHECKING:
    from tests.conftest import Fastsync

MIB = 1 << 20
BIG = noise(MIB) * 26 + b"the end"
# Files over 5 GiB are copied in parts of 512 MiB; here they are smaller.
SMALLER = (
    "from fastsync_s3 import copying; from fastsync.cli.main import main;"
    f"copying.LARGEST_COPY = {MIB}; copying.COPY_PART = {5 * MIB}; main()"
)
Eventually = Callable[[Callable[[], object]], None]
Run = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def server(hostile_s3: HostileS3, fastsync: Fastsync) -> HostileS3:
    hostile_s3.put("bucket", "from/big", BIG, {"x-amz-meta-colour": "green"})
    fastsync.environ |= hostile_s3.environ
    return hostile_s3


@pytest.fixture
def run(fastsync: Fastsync) -> Iterator[Run]:
    """The command, for which small files are large ones."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [sys.executable, "-c", SMALLER, *arguments], env=fastsync.environ, cwd=fastsync.cwd
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        yield start


def jobs(command: Fastsync) -> list[dict[str, object]]:
    done = command("jobs", "list", "--json")
    assert (done.code, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


SYNC = ("sync", "--stall-timeout", "30", "s3://bucket/from/", "s3://bucket/to/")


def cut_off(server: HostileS3, run: Run, eventually: Eventually, *more: str) -> None:
    """A run that is killed when the server has made three parts, and told of two."""
    server.on("UploadPartCopy", faults.silence(), skip=2, times=None)
    process = run(*SYNC, *more)
    eventually(lambda: server.count("UploadPartCopy") >= 3)
    process.kill()
    process.wait(10)
    server.behave()
    assert server.open_uploads == ["to/big"]


def test_a_copy_goes_on_where_it_was_cut_off(
    server: HostileS3, fastsync: Fastsync, run: Run, eventually: Eventually
) -> None:
    cut_off(server, run, eventually)
    (job,) = jobs(fastsync)
    assert (job["destination"], job["state"]) == ("s3://bucket/to/big", "gone")
    (upload,) = server.objects.uploads.values()
    missing = [str(number) for number in range(1, 7) if number not in upload.parts]
    server.requests.clear()
    assert run(*SYNC).wait(30) == 0
    assert server.data("bucket", "to/big") == BIG
    assert server.headers("bucket", "to/big")["x-amz-meta-colour"] == "green"
    assert sorted(s.query["partNumber"] for s in server.seen("UploadPartCopy")) == missing
    assert len(missing) < 6
    assert server.count("CreateMultipartUpload") == 0
    assert (server.open_uploads, jobs(fastsync)) == ([], [])


@pytest.mark.parametrize("change", ["another object", "another header", "--no-resume", "gone"])
def test_a_copy_of_something_else_is_begun_anew(
    server: HostileS3, fastsync: Fastsync, run: Run, eventually: Eventually, change: str
) -> None:
    """And what was left is dropped."""
    cut_off(server, run, eventually)
    content, more = BIG, []
    if change == "another object":
        content = b"x" + BIG[1:]
        server.put("bucket", "from/big", content)
    elif change == "another header":
        more = ["--storage-class", "STANDARD_IA"]
    elif change == "gone":
        server.objects.uploads.clear()
    else:
        more = [change]
    assert run(*SYNC, *more).wait(30) == 0
    assert server.data("bucket", "to/big") == content
    assert (server.open_uploads, jobs(fastsync)) == ([], [])


def test_a_copy_that_nobody_heard_of_is_dropped(
    server: HostileS3, fastsync: Fastsync, run: Run, eventually: Eventually
) -> None:
    server.on("CreateMultipartUpload", faults.silence())
    process = run(*SYNC)
    eventually(lambda: server.open_uploads)
    process.kill()
    process.wait(10)
    assert fastsync("jobs", "clean").code == 0
    assert (server.open_uploads, jobs(fastsync)) == ([], [])


def test_an_object_that_changes_on_the_way_is_no_mix(
    server: HostileS3, fastsync: Fastsync, run: Run, eventually: Eventually
) -> None:
    """Each part is of the version that was listed; the second try is of the new one."""
    server.on("UploadPartCopy", faults.silence(), skip=2, times=4)
    process = run(*SYNC, "--request-timeout", "1")
    eventually(lambda: server.count("UploadPartCopy") >= 3)
    server.put("bucket", "from/big", BIG[::-1])
    assert process.wait(40) == 0
    assert server.data("bucket", "to/big") == BIG[::-1]
    assert (server.open_uploads, jobs(fastsync)) == ([], [])


def test_what_is_backed_up_is_dropped_too(
    server: HostileS3, fastsync: Fastsync, run: Run, eventually: Eventually
) -> None:
    server.put("bucket", "to/big", BIG[::-1])
    server.on("UploadPartCopy", faults.silence(), key="old/big", skip=1, times=None)
    process = run(*SYNC, "-I", "--backup-dir", "s3://bucket/old/", "--stall-timeout", "30")
    eventually(lambda: server.count("UploadPartCopy") >= 2)
    process.kill()
    process.wait(10)
    assert server.open_uploads == ["old/big"]
    assert fastsync("jobs", "clean").code == 0
    assert (server.open_uploads, jobs(fastsync)) == ([], [])
    assert server.data("bucket", "to/big") == BIG[::-1]
