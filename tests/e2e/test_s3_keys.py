"""Keys that no disk would have: byte for byte between buckets, refused one by one towards a disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from s3_servers import S3Server

if TYPE_CHECKING:
    from tests.conftest import Fastsync, Picture

# Refused by a disk, each for itself.
UNSAFE: Final = (
    "p//double",
    "p/./dot",
    "p/../dotdot",
    "p/../dotdot2",
    "p/d/../../up",
    "p//",
    "p/trail/../",
    "p/a/b",  # for "a" is a file
    "p/" + "n" * 300,
)
SAFE: Final = (
    "p/a",
    "p/plus+ %20 %2F #?&=;:@$,'\"!*()[]{}|\\^`~<>",
    "p/tab\t",
    "p/N\N{LATIN SMALL LETTER U WITH DIAERESIS}",
    "p/Nu\N{COMBINING DIAERESIS}",
    "p/\N{GRINNING FACE}/\N{RIGHT-TO-LEFT OVERRIDE}x",
    "p/..x",
    "p/.hidden/.x",
)


@pytest.fixture
def bucket(fastsync: Fastsync, moto: S3Server) -> str:
    fastsync.environ |= moto.environ
    return moto.new_bucket()


def fill(server: S3Server, bucket: str, names: tuple[str, ...]) -> None:
    for name in names:
        server.client.put_object(Bucket=bucket, Key=name, Body=name.encode())


def test_between_buckets_keys_stay_as_they_are(
    fastsync: Fastsync, moto: S3Server, bucket: str
) -> None:
    names = (*UNSAFE, *SAFE, "p/marker/")
    fill(moto, bucket, names)
    other = moto.new_bucket()
    done = fastsync("sync", f"s3://{bucket}/p", f"s3://{other}/p")
    assert (done.code, done.stderr) == (0, "")
    assert sorted(moto.keys(other)) == sorted(names)
    for name in names:
        assert moto.client.get_object(Bucket=other, Key=name)["Body"].read() == name.encode()
    again = fastsync("sync", "--delete", "--json", f"s3://{bucket}/p", f"s3://{other}/p")
    total = json.loads(again.stdout.splitlines()[-1])
    assert (total["copied"], total["deleted"], total["exit_code"]) == (0, 0, 0)


def test_a_whole_bucket_with_keys_that_begin_with_a_slash(
    fastsync: Fastsync, moto: S3Server, bucket: str, tmp_path: Path
) -> None:
    fill(moto, bucket, ("/lead", "//two", "plain"))
    other = moto.new_bucket()
    assert fastsync("sync", f"s3://{bucket}", f"s3://{other}") == (0, "", "")
    assert sorted(moto.keys(other)) == ["//two", "/lead", "plain"]
    done = fastsync("sync", "--summarize", f"s3://{bucket}", "here")
    assert done.code == 1
    assert "Copied: 1 files" in done.stdout
    assert "Failed: 2 files" in done.stdout
    assert os.listdir(tmp_path / "here") == ["plain"]


def test_towards_a_disk_each_is_refused_and_counted(
    fastsync: Fastsync,
    moto: S3Server,
    bucket: str,
    picture: Callable[..., Picture],
    tmp_path: Path,
) -> None:
    fill(moto, bucket, (*UNSAFE, *SAFE))
    inner = tmp_path / "outer/inner"
    inner.mkdir(parents=True)
    for delete in ((), ("--delete",)):
        done = fastsync("sync", "--json", *delete, f"s3://{bucket}/p", inner)
        *lines, total = map(json.loads, done.stdout.splitlines())
        assert (done.code, total["failed"]) == (1, len(UNSAFE)), done.stdout
        for line in lines:  # each says where: the key, or the file that the disk refused
            where = (f"s3://{bucket}/p/", str(inner))
            assert line["success"] or line["error"].startswith(where), line
        files = {name for name, shot in picture(inner).items() if shot.kind == "file"}
        assert files == {key.removeprefix("p/") for key in SAFE}
        assert os.listdir(tmp_path / "outer") == ["inner"]


def test_markers_of_directories(
    fastsync: Fastsync, moto: S3Server, bucket: str, tmp_path: Path
) -> None:
    """An empty object whose key ends in "/" is a directory on a disk; one with content is refused."""
    moto.client.put_object(Bucket=bucket, Key="p/empty/", Body=b"")
    moto.client.put_object(Bucket=bucket, Key="p/", Body=b"")
    moto.client.put_object(Bucket=bucket, Key="p/x", Body=b"x")
    assert fastsync("sync", f"s3://{bucket}/p", "here") == (0, "", "")
    assert sorted(os.listdir(tmp_path / "here")) == ["empty", "x"]
    assert (tmp_path / "here/empty").is_dir()
    # Up again: the marker stays, and nothing is to do.
    again = fastsync("sync", "--delete", "--json", "here", f"s3://{bucket}/p")
    total = json.loads(again.stdout.splitlines()[-1])
    assert (total["copied"], total["deleted"]) == (0, 0)
    assert moto.keys(bucket) == ["p/", "p/empty/", "p/x"]
    moto.client.put_object(Bucket=bucket, Key="p/full/", Body=b"content")
    assert fastsync("sync", f"s3://{bucket}/p", "here").code == 1
    assert sorted(os.listdir(tmp_path / "here")) == ["empty", "x"]
    assert fastsync("rm", "-R", f"s3://{bucket}/p/") == (0, "", "")
    assert moto.keys(bucket) == []


def test_keys_of_a_thousand_bytes(
    fastsync: Fastsync, moto: S3Server, bucket: str, tmp_path: Path
) -> None:
    longest = "/".join(["d" * 200] * 5) + "/" + "x" * 19
    assert len(longest) == 1024
    (tmp_path / "x").write_text("x")
    assert fastsync("cp", "x", f"s3://{bucket}/{longest}") == (0, "", "")
    assert fastsync("cp", "-R", f"s3://{bucket}", "here") == (0, "", "")
    assert (tmp_path / "here" / longest).read_text() == "x"
    done = fastsync("cp", "x", f"s3://{bucket}/{longest}y")
    assert (done.code, "1024" in done.stderr) == (1, True)


def test_names_that_are_not_utf8_do_not_go_up(
    fastsync: Fastsync, moto: S3Server, bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "src").mkdir()
    for name in (b"latin\xfc", b"ok"):
        Path(os.fsdecode(os.fsencode(tmp_path / "src") + b"/" + name)).write_bytes(name)
    done = fastsync("sync", "src", f"s3://{bucket}")
    assert (done.code, "UTF-8" in done.stderr) == (1, True)
    assert moto.keys(bucket) == ["ok"]


@pytest.mark.parametrize("verb", ["mv", "sync", "cp"])
def test_content_that_only_a_prefix_names_is_never_lost(
    fastsync: Fastsync, moto: S3Server, bucket: str, verb: str
) -> None:
    """A key "dir/" that has content is no file below "dir": told, counted, and still there."""
    fill(moto, bucket, ("dir/", "dir/a", "alone/"))
    options = ["-R"] if verb == "cp" else []
    for name in ("dir", "alone"):
        done = fastsync(verb, *options, f"s3://{bucket}/{name}", f"{name}-copy")
        assert done.code == 1, done
        assert f"s3://{bucket}/{name}/: this object has content" in done.stderr
    assert (fastsync.cwd / "dir-copy/a").read_text() == "dir/a"
    assert moto.keys(bucket) == ["alone/", "dir/", *(["dir/a"] if verb != "mv" else [])]
    # To remove what begins with it, or to write there, is none of its business.
    (fastsync.cwd / "tree").mkdir()
    (fastsync.cwd / "tree/b").write_text("b")
    assert fastsync("sync", "tree", f"s3://{bucket}/dir").code == 0
    assert fastsync("rm", "-R", f"s3://{bucket}/dir/", f"s3://{bucket}/alone").code == 0
    assert moto.keys(bucket) == []


def test_a_wildcard_does_not_mean_what_it_is_below(
    fastsync: Fastsync, moto: S3Server, bucket: str
) -> None:
    fill(moto, bucket, ("dir/", "dir/a"))
    assert fastsync("mv", f"s3://{bucket}/dir/*", "copy/").code == 0
    assert moto.keys(bucket) == ["dir/"]
