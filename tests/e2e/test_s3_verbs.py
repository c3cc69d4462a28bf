"""The other verbs on a real S3 server: ls, du, stat, cat, rm, mkdir, presign, jobs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from s3_servers import S3Server

if TYPE_CHECKING:
    from tests.conftest import Done, Fastsync

MIB = 1 << 20


@pytest.fixture
def bucket(s3: S3Server) -> str:
    """a (2000 bytes), d/b (1), d/e/c (2), and d.txt (3), which sorts between."""
    bucket = s3.new_bucket()
    for key, size in (("a", 2000), ("d/b", 1), ("d/e/c", 2), ("d.txt", 3)):
        s3.client.put_object(Bucket=bucket, Key=key, Body=b"x" * size)
    return bucket


def lines(done: Done) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


# -- ls, du, stat ------------------------------------------------------------------------------------


def test_ls(fastsync: Fastsync, bucket: str) -> None:
    place = f"s3://{bucket}"
    assert fastsync("ls", place) == (0, "a\nd.txt\nd/\n", "")
    assert fastsync("ls", f"{place}/d") == fastsync("ls", f"{place}/d/") == (0, "b\ne/\n", "")
    assert fastsync("ls", "-R", place).stdout == "a\nd.txt\nd/b\nd/e/c\n"
    assert fastsync("ls", f"{place}/a").stdout == "a\n"
    assert fastsync("ls", f"{place}/d*").stdout.split() == ["d.txt", "d/"]
    assert fastsync("ls", "-R", "-0", place).stdout == "a\0d.txt\0d/b\0d/e/c\0"
    summary = fastsync("ls", "-R", "-l", "-H", "--summarize", place).stdout.splitlines()
    assert re.fullmatch(r" +1\.95 KiB \d{4}-\d\d-\d\d \d\d:\d\d:\d\d a", summary[0])
    assert summary[-1] == "Total: 4 files, 1.96 KiB"
    assert fastsync("ls", f"{place}/nothing") == (
        3,
        "",
        f"fastsync: error: {place}/nothing: no such object or prefix\n",
    )


def test_ls_of_buckets(fastsync: Fastsync, bucket: str) -> None:
    assert f"{bucket}/\n" in fastsync("ls", "s3://").stdout
    slip = fastsync("ls", f"s3:///{bucket}")
    assert (slip.code, slip.stdout) == (2, "")
    assert "the bucket is missing" in slip.stderr
    told = [line for line in lines(fastsync("ls", "--json", "s3://")) if line["path"] == bucket]
    assert (told[0]["kind"], told[0]["success"]) == ("dir", True)


def test_ls_tells_etags(fastsync: Fastsync, s3: S3Server, bucket: str) -> None:
    etag = s3.client.head_object(Bucket=bucket, Key="a")["ETag"].strip('"')
    assert fastsync("ls", "--etag", f"s3://{bucket}/a").stdout.split() == [etag, "a"]
    (told,) = lines(fastsync("ls", "--json", f"s3://{bucket}/a"))
    assert (told["size"], told["etag"]) == (2000, etag)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", told["stored"])


def test_versions(fastsync: Fastsync, s3: S3Server, tmp_path: Path) -> None:
    """Listed, with the deleted one; read, copied and removed by their id."""
    bucket = s3.new_bucket()
    s3.client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    place = f"s3://{bucket}/k"
    for text in ("one", "second"):
        (tmp_path / "f").write_text(text)
        assert fastsync("cp", "-I", "f", place) == (0, "", "")
    assert fastsync("rm", place) == (0, "", "")
    assert fastsync("ls", f"s3://{bucket}").stdout == ""
    told = lines(fastsync("ls", "--json", "--all-versions", place))
    assert [line.get("size") for line in told if not line["is_delete_marker"]] == [6, 3]
    assert [line["is_delete_marker"] for line in told].count(True) == 1
    assert "delete" in fastsync("ls", "--all-versions", place).stdout
    first = next(line["version_id"] for line in told if line.get("size") == 3)
    assert fastsync("cat", "--version-id", first, place) == (0, "one", "")
    assert fastsync("cp", "--version-id", first, place, "old") == (0, "", "")
    assert (tmp_path / "old").read_text() == "one"
    assert fastsync("rm", "--version-id", first, place) == (0, "", "")
    left = lines(fastsync("ls", "--json", "--all-versions", place))
    assert first not in [line["version_id"] for line in left]
    assert fastsync("cat", "--version-id", "nonsense", place).code == 1


def test_du(fastsync: Fastsync, bucket: str) -> None:
    assert fastsync("du", f"s3://{bucket}/").stdout.split() == [
        "2006",
        "4",
        "files",
        f"s3://{bucket}/",
    ]
    levels = fastsync("du", "--max-depth", "1", f"s3://{bucket}").stdout.splitlines()
    assert [line.split()[:2] for line in levels] == [["3", "2"], ["2006", "4"]]


def test_stat(fastsync: Fastsync, s3: S3Server, bucket: str) -> None:
    s3.client.put_object(
        Bucket=bucket,
        Key="s",
        Body=b"12345",
        ContentType="text/x-y",
        Metadata={"mtime": "1600000000.123456789", "mode": "33188", "colour": "blue"},
    )
    (told,) = lines(fastsync("stat", "--json", f"s3://{bucket}/s"))
    assert (told["kind"], told["size"], told["mode"]) == ("file", 5, "0644")
    assert told["mtime"] == "2020-09-13T12:26:40.123456789Z"
    assert told["more"]["content-type"] == "text/x-y"
    assert told["more"]["x-amz-meta-colour"] == "blue"
    (wild,) = lines(fastsync("stat", "--json", f"s3://{bucket}/s*"))
    assert (wild["mtime"], wild["mode"]) == (told["mtime"], told["mode"])
    assert (
        "  modified: 2020-09-13T12:26:40.123456789Z\n"
        in fastsync("stat", f"s3://{bucket}/s").stdout
    )
    assert fastsync("stat", f"s3://{bucket}/d").stdout.startswith(f"s3://{bucket}/d\n  kind: dir\n")
    assert fastsync("stat", f"s3://{bucket}/nope").code == 3


# -- cat ---------------------------------------------------------------------------------------------


def test_cat(fastsync: Fastsync, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    content = os.urandom(5 * MIB // 2 + 7)
    s3.client.put_object(Bucket=bucket, Key="big", Body=content)
    place = f"s3://{bucket}/big"

    def cat(*arguments: str) -> bytes:
        command = fastsync.command("cat", *arguments)
        return subprocess.run(
            command, env=fastsync.environ, check=True, capture_output=True, timeout=60
        ).stdout

    assert cat(place) == content
    assert cat("-c", "4", "--chunk-size", "64K", place) == content
    assert cat("-c", "4", "--chunk-size", "64K", f"s3://{bucket}/d/b", place) == b"x" + content
    assert cat("--offset", "1M", "--count", "1M", place) == content[MIB : 2 * MIB]
    assert cat("--offset", "2M", place) == content[2 * MIB :]
    done = fastsync("cat", place, f"s3://{bucket}/nope")
    assert (done.code, done.stdout) == (3, "")
    # What goes to a file waits in memory, not in pages for a pipe.
    with (tmp_path / "out").open("wb") as out:
        command = fastsync.command("cat", "-c", "4", "--chunk-size", "64K", place)
        subprocess.run(command, env=fastsync.environ, check=True, stdout=out, timeout=60)
    assert (tmp_path / "out").read_bytes() == content


# -- rm ----------------------------------------------------------------------------------------------


def test_rm(fastsync: Fastsync, s3: S3Server, bucket: str) -> None:
    assert fastsync("rm", f"s3://{bucket}/d").code == 2
    done = fastsync("rm", f"s3://{bucket}/a", f"s3://{bucket}/nope")
    assert (done.code, done.stderr.count("\n")) == (3, 1)
    assert s3.keys(bucket) == ["d.txt", "d/b", "d/e/c"]
    assert fastsync("rm", f"s3://{bucket}/*.txt") == (0, "", "")
    assert fastsync("rm", "-R", "--exclude", "e/", f"s3://{bucket}/d") == (0, "", "")
    assert s3.keys(bucket) == ["d/e/c"]
    assert fastsync("rm", "-R", f"s3://{bucket}") == (0, "", "")
    assert s3.keys(bucket) == []
    assert fastsync("ls", f"s3://{bucket}") == (0, "", "")
    assert fastsync("rm", "-R", "s3://").code == 2


def test_rm_of_more_keys_than_one_call_takes(
    fastsync: Fastsync, s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    assert s3.root is not None
    (s3.root / bucket / "many").mkdir()
    for number in range(2100):
        (s3.root / bucket / f"many/{number:04} &<>é").touch()
    summary = lines(fastsync("rm", "-R", "--json", f"s3://{bucket}/many/"))[-1]
    assert (summary["deleted"], summary["failed"], summary["exit_code"]) == (2100, 0, 0)
    assert s3.keys(bucket) == ["a", "d.txt", "d/b", "d/e/c"]


# -- mkdir, presign ----------------------------------------------------------------------------------


def test_mkdir_makes_buckets(fastsync: Fastsync, s3: S3Server, bucket: str) -> None:
    name = f"made-for-{bucket}"
    for _ in range(2):  # one that is there is fine
        assert fastsync("mkdir", f"s3://{name}") == (0, "", "")
    assert s3.keys(name) == []
    assert fastsync("mkdir", f"s3://{bucket}/prefix").code != 0
    assert fastsync("mkdir", "s3://x").code == 2
    assert fastsync("mkdir", "s3://Not_A_Bucket!").code == 2


def test_presigned_links_work_without_credentials(
    fastsync: Fastsync, s3: S3Server, bucket: str
) -> None:
    s3.client.put_object(Bucket=bucket, Key="d/ü +&=?", Body=b"hello")
    done = fastsync("presign", "--expires-in", "90", f"s3://{bucket}/d/ü +&=?")
    link = done.stdout.strip()
    assert "X-Amz-Expires=90&" in link
    with urllib.request.urlopen(link) as reply:
        assert reply.read() == b"hello"
    link = fastsync("presign", "--method", "PUT", f"s3://{bucket}/new").stdout.strip()
    with urllib.request.urlopen(urllib.request.Request(link, b"sent", method="PUT")):
        pass
    assert fastsync("cat", f"s3://{bucket}/new").stdout == "sent"
    assert fastsync("presign", "--no-sign-request", f"s3://{bucket}/a").code == 2
    assert s3.secret_key not in link


# -- jobs --------------------------------------------------------------------------------------------


def uploads(server: S3Server, bucket: str) -> list[str]:
    answer = server.client.list_multipart_uploads(Bucket=bucket)
    return [one["Key"] for one in answer.get("Uploads", [])]


def test_an_upload_whose_process_was_killed_is_found_and_aborted(
    fastsync: Fastsync,
    s3: S3Server,
    bucket: str,
    tmp_path: Path,
    eventually: Callable[[Callable[[], object]], None],
) -> None:
    process = subprocess.Popen(
        fastsync.command("pipe", "-c", "5M", f"s3://{bucket}/left"),
        env=fastsync.environ,
        stdin=subprocess.PIPE,
    )
    try:
        assert process.stdin is not None
        process.stdin.write(os.urandom(11 * MIB))
        process.stdin.flush()
        eventually(lambda: uploads(s3, bucket) == ["left"])
        (running,) = lines(fastsync("jobs", "list", "--json"))
        assert (running["state"], running["pid"]) == ("running", process.pid)
        assert fastsync("jobs", "clean", "--all").code == 0
        assert uploads(s3, bucket) == ["left"]  # for somebody is at it
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    (left,) = lines(fastsync("jobs", "list", "--json"))
    assert (left["state"], left["destination"]) == ("gone", f"s3://{bucket}/left")
    assert fastsync("jobs", "clean", "-n").code == 0
    assert uploads(s3, bucket) == ["left"]
    assert fastsync("jobs", "clean") == (0, "", "")
    assert uploads(s3, bucket) == []
    assert fastsync("jobs", "list") == (0, "", "")
    assert "left" not in s3.keys(bucket)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_upload_that_is_interrupted_leaves_nothing(
    fastsync: Fastsync,
    s3: S3Server,
    bucket: str,
    number: int,
    eventually: Callable[[Callable[[], object]], None],
) -> None:
    process = subprocess.Popen(
        fastsync.command("pipe", "-c", "5M", f"s3://{bucket}/left"),
        env=fastsync.environ,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(os.urandom(11 * MIB))
    process.stdin.flush()
    eventually(lambda: uploads(s3, bucket) == ["left"])
    process.send_signal(number)
    # Its end of the pipe stays open: the signal alone has to end it.
    assert process.wait(10) == 128 + number
    process.communicate()
    assert uploads(s3, bucket) == []
    assert fastsync("jobs", "list") == (0, "", "")
