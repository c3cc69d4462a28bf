"""`fastsync cp`, `mv` and `pipe` between a disk and real S3 servers."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from s3_servers import S3Server

if TYPE_CHECKING:
    from tests.conftest import Done, Fastsync, Picture, Plant, Spec

MIB = 1 << 20
TREE: Spec = {
    "a": "a",
    "zero": "",
    "dir/b": "b",
    "dir/sub/two parts": b"0123456789abcdef" * (6 * MIB // 16),
    "dir.txt": "sorts between dir and what is in it",
    "dir/Ünïcode ↔ +%&#?=;'\"*[x].txt": "odd",
    "nfd/u\N{COMBINING DIAERESIS}": "two letters",
    "nfc/\N{LATIN SMALL LETTER U WITH DIAERESIS}": "one letter",
}


@pytest.fixture(params=["versitygw", "moto", "rclone_s3", "versitygw_tls"])
def any_s3(request: pytest.FixtureRequest, fastsync: Fastsync) -> S3Server:
    server: S3Server = request.getfixturevalue(request.param)
    fastsync.environ |= server.environ
    return server


def body(server: S3Server, bucket: str, key: str) -> bytes:
    content: bytes = server.client.get_object(Bucket=bucket, Key=key)["Body"].read()
    return content


def lines(done: Done) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


# -- there and back --------------------------------------------------------------------------------


def test_a_tree_goes_up_and_comes_back(
    fastsync: Fastsync,
    any_s3: S3Server,
    plant: Plant,
    picture: Callable[..., Picture],
    tmp_path: Path,
) -> None:
    """Content, times to the nanosecond and modes; by single requests and by parts; on every server."""
    bucket = any_s3.new_bucket()
    src = plant(tmp_path / "src", TREE)
    (src / "a").chmod(0o600)
    (src / "dir/b").chmod(0o755)
    options = ("-R", "-c", "5M", "--summarize")
    done = fastsync("cp", *options, "src/", f"s3://{bucket}/p")
    assert (done.code, done.stderr) == (0, "")
    assert "Copied: 8 files, 6291517 bytes\n" in done.stdout
    assert sorted(any_s3.keys(bucket)) == sorted(f"p/{name}" for name in TREE)
    done = fastsync("cp", *options, f"s3://{bucket}/p", "back")
    assert (done.code, done.stderr) == (0, "")
    assert "Copied: 8 files, 6291517 bytes\n" in done.stdout
    shots = picture(tmp_path / "back")
    assert {name: shot for name, shot in shots.items() if shot.kind == "file"} == {
        name: shot for name, shot in picture(src).items() if shot.kind == "file"
    }


def test_where_things_go(
    fastsync: Fastsync, s3: S3Server, bucket: str, plant: Plant, tmp_path: Path
) -> None:
    """A slash at the end means into; a name is a name, even of what others would call a directory."""
    plant(tmp_path, {"f": "f", "g": "g", "d/x": "x", "d/e/y": "y"})
    to = f"s3://{bucket}"
    for arguments in (
        ("f", f"{to}/exact"),
        ("f", f"{to}/into/"),
        ("f", to),
        ("f", "g", f"{to}/several/"),
        ("-R", "d", f"{to}/named"),
        ("-R", "d/", f"{to}/contents"),
        ("-R", "d", "f", f"{to}/both/"),
    ):
        assert fastsync("cp", *arguments) == (0, "", ""), arguments
    assert fastsync("cp", "f", "g", f"{to}/no-prefix-yet").code == 2
    assert s3.keys(bucket) == sorted(
        [
            "exact",
            "into/f",
            "f",
            "several/f",
            "several/g",
            "named/x",
            "named/e/y",
            "contents/x",
            "contents/e/y",
            "both/d/x",
            "both/d/e/y",
            "both/f",
        ]
    )
    back = tmp_path / "back"
    back.mkdir()
    assert fastsync("cp", f"{to}/exact", "back/renamed") == (0, "", "")
    assert fastsync("cp", f"{to}/exact", f"{to}/into/f", "back") == (0, "", "")
    assert fastsync("cp", "-R", f"{to}/named", "back") == (0, "", "")
    assert fastsync("cp", "-R", f"{to}/contents/", "back/c") == (0, "", "")
    found = {str(path.relative_to(back)) for path in back.rglob("*") if path.is_file()}
    assert found == {"renamed", "exact", "f", "named/x", "named/e/y", "c/x", "c/e/y"}


def test_a_prefix_needs_recursive(fastsync: Fastsync, s3: S3Server, bucket: str) -> None:
    s3.client.put_object(Bucket=bucket, Key="d/x", Body=b"x")
    done = fastsync("cp", f"s3://{bucket}/d", "here")
    assert (done.code, "-R" in done.stderr) == (2, True)


def test_links_and_empty_directories_are_left_out(
    fastsync: Fastsync, s3: S3Server, bucket: str, plant: Plant, tmp_path: Path
) -> None:
    """Links are counted; empty directories have nothing that could be an object."""
    plant(tmp_path / "src", {"a": "a", "link": Path("a"), "empty/": ""})
    done = fastsync("cp", "-R", "--summarize", "src/", f"s3://{bucket}")
    assert done.code == 0
    assert "Left out: 1 links" in done.stdout
    assert s3.keys(bucket) == ["a"]
    assert fastsync("cp", "-R", "-L", "src/", f"s3://{bucket}/L").code == 0
    assert s3.keys(bucket) == ["L/a", "L/link", "a"]


def test_what_is_the_same_is_skipped(
    fastsync: Fastsync, s3: S3Server, bucket: str, plant: Plant, tmp_path: Path
) -> None:
    plant(tmp_path, {"a": "one"})
    again = ("cp", "--summarize", "a", f"s3://{bucket}/")
    assert "Copied: 1 files, 3 bytes" in fastsync(*again).stdout
    assert "Copied: 0 files, 0 bytes\nSkipped: 1 files" in fastsync(*again).stdout
    assert "Copied: 1 files, 3 bytes" in fastsync(*again, "-I").stdout
    (tmp_path / "a").write_text("two")  # of the same size
    assert "Copied: 1 files, 3 bytes" in fastsync(*again).stdout
    assert "Copied: 0 files, 0 bytes\nSkipped: 1 files" in fastsync(*again, "--size-only").stdout
    assert body(s3, bucket, "a") == b"two"


def test_a_large_file_goes_in_parts_and_is_verified(
    fastsync: Fastsync, s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    content = os.urandom(12 * MIB + 1)
    (tmp_path / "big").write_bytes(content)
    assert fastsync("cp", "-c", "5M", "big", f"s3://{bucket}/") == (0, "", "")
    head = s3.client.head_object(Bucket=bucket, Key="big", ChecksumMode="ENABLED")
    assert head["ETag"].endswith('-3"')
    assert (head["ChecksumType"], len(head["ChecksumCRC64NVME"])) == ("FULL_OBJECT", 12)
    assert body(s3, bucket, "big") == content
    for number, size in enumerate(("1M", "3M", "64M")):  # other parts than those of the upload
        assert fastsync("cp", "-c", size, f"s3://{bucket}/big", f"b{number}") == (0, "", "")
        assert (tmp_path / f"b{number}").read_bytes() == content


@pytest.mark.parametrize("size", [0, 10])
def test_bytes_that_rotted_at_the_server_do_not_arrive(
    fastsync: Fastsync, s3: S3Server, bucket: str, tmp_path: Path, size: int
) -> None:
    """What the object should add up to is asked, whether it was uploaded in parts or not."""
    assert s3.root is not None
    (tmp_path / "f").write_bytes(os.urandom(size * MIB + 3))
    (tmp_path / "old").write_text("old")
    assert fastsync("cp", "-c", "5M", "f", f"s3://{bucket}/f").code == 0
    with (s3.root / bucket / "f").open("r+b") as stored:
        first = stored.read(1)
        stored.seek(0)
        stored.write(bytes([first[0] ^ 1]))
    done = fastsync("cp", f"s3://{bucket}/f", "old", "--retry-count", "0")
    assert (done.code, "not the object's" in done.stderr) == (4, True)
    assert (tmp_path / "old").read_text() == "old"
    assert not list(tmp_path.glob(".fs-*"))


def test_dry_run_touches_nothing(
    fastsync: Fastsync, s3: S3Server, bucket: str, plant: Plant, tmp_path: Path
) -> None:
    plant(tmp_path / "src", {"a": "a", "d/b": "b"})
    done = fastsync("cp", "-n", "-R", "src", f"s3://{bucket}/x")
    assert done.code == 0
    assert f"would copy src/a -> s3://{bucket}/x/a (new, 1 B)\n" in done.stdout
    assert s3.keys(bucket) == []
    s3.client.put_object(Bucket=bucket, Key="k", Body=b"k")
    assert fastsync("cp", "-n", f"s3://{bucket}/k", "k").code == 0
    assert fastsync("mv", "-n", f"s3://{bucket}/k", f"s3://{bucket}/l").code == 0
    assert fastsync("rm", "-n", f"s3://{bucket}/k").code == 0
    assert s3.keys(bucket) == ["k"]
    assert {"k", "l"}.isdisjoint(os.listdir(tmp_path))


def test_json_tells_what_happened(
    fastsync: Fastsync, s3: S3Server, bucket: str, plant: Plant, tmp_path: Path
) -> None:
    plant(tmp_path / "src", {"a": "aaa", "d/b": b"b" * 6 * MIB})
    told = lines(fastsync("cp", "-R", "--json", "-c", "5M", "src/", f"s3://{bucket}/p"))
    copies = {line["destination"]: line for line in told[:-1]}
    assert set(copies) == {f"s3://{bucket}/p/a", f"s3://{bucket}/p/d/b"}
    assert all(line["operation"] == "copy" and line["success"] for line in copies.values())
    assert copies[f"s3://{bucket}/p/a"]["size"] == 3
    total = told[-1]
    assert (total["operation"], total["copied"], total["exit_code"]) == ("summary", 2, 0)
    assert total["size"] == total["bytes_sent"] == total["bytes_full_copy"] == 6 * MIB + 3


# -- what must not be overwritten --------------------------------------------------------------------


def test_ignore_existing_leaves_what_is_there(
    fastsync: Fastsync, s3: S3Server, bucket: str, plant: Plant, tmp_path: Path
) -> None:
    plant(tmp_path / "src", {"a": "mine", "b": "mine"})
    s3.client.put_object(Bucket=bucket, Key="a", Body=b"theirs")
    assert fastsync("cp", "-R", "--ignore-existing", "src/", f"s3://{bucket}") == (0, "", "")
    assert (body(s3, bucket, "a"), body(s3, bucket, "b")) == (b"theirs", b"mine")
    assert s3.keys(bucket) == ["a", "b"]  # and nothing of the question whether the server can


def test_an_object_that_appears_meanwhile_is_not_overwritten(
    fastsync: Fastsync, s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    """It is listed as missing, and there when the write comes to its end: a pipe lets us choose when."""
    for option in ("--ignore-existing", "--fail-on-conflict"):
        key = f"k{option}"
        process = subprocess.Popen(
            fastsync.command("cp", option, "-", f"s3://{bucket}/{key}"),
            env=fastsync.environ,
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(bytes(12 * MIB))  # more than it takes without having looked there
        process.stdin.flush()
        s3.client.put_object(Bucket=bucket, Key=key, Body=b"theirs")
        _, said = process.communicate(b"end", timeout=30)
        assert (process.returncode, body(s3, bucket, key)) == (1, b"theirs"), said
    assert "Uploads" not in s3.client.list_multipart_uploads(Bucket=bucket)


# -- within the service ------------------------------------------------------------------------------


def test_copies_within_the_service_keep_everything(
    fastsync: Fastsync, moto: S3Server, tmp_path: Path
) -> None:
    fastsync.environ |= moto.environ
    one, two = moto.new_bucket(), moto.new_bucket()
    moto.client.put_object(
        Bucket=one,
        Key="d/x",
        Body=b"x",
        ContentType="text/x-y",
        CacheControl="max-age=7",
        StorageClass="STANDARD_IA",
        Metadata={"mtime": "1600000000.5", "colour": "blue"},
        Tagging="team=red",
    )
    assert fastsync("cp", "-R", f"s3://{one}/d", f"s3://{two}/e") == (0, "", "")
    head = moto.client.head_object(Bucket=two, Key="e/x")
    assert head["Metadata"] == {"mtime": "1600000000.5", "colour": "blue"}
    assert (head["ContentType"], head["CacheControl"]) == ("text/x-y", "max-age=7")
    assert head["StorageClass"] == "STANDARD_IA"
    tags = moto.client.get_object_tagging(Bucket=two, Key="e/x")["TagSet"]
    assert tags == [{"Key": "team", "Value": "red"}]
    options = ("--metadata", "colour=red", "--storage-class", "STANDARD")
    assert fastsync("cp", "-I", *options, f"s3://{one}/d/x", f"s3://{two}/e/x") == (0, "", "")
    head = moto.client.head_object(Bucket=two, Key="e/x")
    assert head["Metadata"] == {"mtime": "1600000000.5", "colour": "red"}
    assert (head["ContentType"], head.get("StorageClass", "STANDARD")) == ("text/x-y", "STANDARD")


def test_between_two_services(
    fastsync: Fastsync, s3: S3Server, bucket: str, moto: S3Server, plant: Plant, tmp_path: Path
) -> None:
    """Each has an endpoint and credentials of its own; the bytes come through here, and are verified."""
    plant(tmp_path / "src", {"a": "a", "d/two parts": os.urandom(6 * MIB)})
    assert fastsync("sync", "src", f"s3://{bucket}/p").code == 0
    far = "far-" + moto.new_bucket()
    moto.client.create_bucket(Bucket=far)
    config = tmp_path / "config.toml"
    config.write_text(
        f'[places."s3://{far}/"]\n'
        f'endpoint_url = "{moto.endpoint}"\n'
        'access_key_id = "another"\nsecret_access_key = "of-another"\n'
    )
    config.chmod(0o600)
    move = ("sync", "-c", "5M", "--config", config)
    assert fastsync(*move, f"s3://{bucket}/p", f"s3://{far}/q") == (0, "", "")
    assert moto.keys(far) == ["q/a", "q/d/two parts"]
    again = fastsync(*move, "--summarize", f"s3://{bucket}/p", f"s3://{far}/q")
    assert "Copied: 0 files" in again.stdout
    assert fastsync(*move, f"s3://{far}/q", "back") == (0, "", "")
    for name in ("a", "d/two parts"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "src" / name).read_bytes()
        there, here = (tmp_path / "back" / name).stat(), (tmp_path / "src" / name).stat()
        assert there.st_mtime_ns == here.st_mtime_ns


# -- mv ----------------------------------------------------------------------------------------------


def test_mv_up_within_and_down(
    fastsync: Fastsync, s3: S3Server, bucket: str, plant: Plant, tmp_path: Path
) -> None:
    plant(tmp_path / "src", {"a": "a", "d/b": "b"})
    assert fastsync("mv", "src", f"s3://{bucket}/one") == (0, "", "")
    assert not (tmp_path / "src").exists()
    assert s3.keys(bucket) == ["one/a", "one/d/b"]
    told = lines(fastsync("mv", "--json", f"s3://{bucket}/one", f"s3://{bucket}/two"))
    assert [line["operation"] for line in told].count("delete") == 2
    assert (told[-1]["copied"], told[-1]["deleted"]) == (2, 2)
    assert s3.keys(bucket) == ["two/a", "two/d/b"]
    assert fastsync("mv", f"s3://{bucket}/two/*", "here/") == (0, "", "")
    assert s3.keys(bucket) == []
    assert (tmp_path / "here/d/b").read_text() == "b"


# -- streams -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 6 * MIB, 23 * MIB])
@pytest.mark.parametrize("verb", [("pipe",), ("cp", "-")])
def test_a_stream_of_unknown_length(
    fastsync: Fastsync, s3: S3Server, bucket: str, size: int, verb: tuple[str, ...]
) -> None:
    content = os.urandom(size)
    done = subprocess.run(
        fastsync.command(*verb, "--profile", "low_memory", f"s3://{bucket}/k"),
        check=False,
        input=content,
        env=fastsync.environ,
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert body(s3, bucket, "k") == content
    assert "Uploads" not in s3.client.list_multipart_uploads(Bucket=bucket)
