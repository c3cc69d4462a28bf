"""What copies keep beyond content: extended attributes, ACLs, hard links, owners, times of directories."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from s3_servers import S3Server
from sshd import Sshd, running_sshd

if TYPE_CHECKING:
    from tests.conftest import Fastsync, Plant, Spec

TREE: Spec = {"a": "a", "d/b": "b", "d/large": b"l" * 3_000_000, "locked": "x"}


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


def flags(sshd: Sshd) -> list[str]:
    return [
        *("--identity", str(sshd.identity), "--known-hosts", str(sshd.known_hosts)),
        *("--ssh-config", str(sshd.config)),
    ]


def give(path: Path, name: str, value: bytes) -> None:
    try:
        os.setxattr(path, name, value)
    except OSError:
        pytest.skip("this file system keeps no extended attributes")


def attributes(path: Path) -> dict[str, bytes]:
    return {
        name: os.getxattr(path, name)
        for name in os.listxattr(path)
        if name.startswith(("user.", "system.posix_acl"))
    }


def test_extended_attributes(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, unprivileged: list[str]
) -> None:
    source, copy = plant(tmp_path / "a", TREE), tmp_path / "b"
    for name in TREE:
        give(source / name, "user.colour", name.encode())
    give(source / "d", "user.kind", b"\x00\xff")
    (source / "locked").chmod(0o444)
    before = (source / "d").stat().st_mtime_ns
    assert fastsync("sync", "-aX", "a", "b", under=unprivileged) == (0, "", "")
    for name in (*TREE, "d"):
        assert attributes(copy / name) == attributes(source / name) != {}
    assert (copy / "locked").stat().st_mode & 0o777 == 0o444
    assert (copy / "d").stat().st_mtime_ns == before
    # What only there has changed is brought up to date, and what is too much goes.
    os.setxattr(source / "a", "user.colour", b"new")
    os.setxattr(copy / "d/b", "user.more", b"more")
    assert fastsync("sync", "-a", "a", "b").code == 0
    assert attributes(copy / "d/b") != attributes(source / "d/b")
    assert fastsync("sync", "-a", "--xattrs", "a", "b") == (0, "", "")
    for name in (*TREE, "d"):
        assert attributes(copy / name) == attributes(source / name)


def test_access_control_lists(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    source = plant(tmp_path / "a", TREE)
    # acl(5) as the kernel keeps it: the owner, user 1, the group, the mask, others.
    rights = [(1, 6, -1), (2, 4, 1), (4, 4, -1), (16, 4, -1), (32, 4, -1)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *one) for one in rights)
    give(source / "a", "system.posix_acl_access", acl)
    assert fastsync("sync", "-X", "a", "b").code == 0
    assert attributes(tmp_path / "b/a") == {"system.posix_acl_access": acl}


@pytest.mark.parametrize("far", [False, True])
def test_hard_links(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, sshd: Sshd, far: bool
) -> None:
    source, copy = plant(tmp_path / "a", {**TREE, "z/other": "o"}), tmp_path / "b"
    os.link(source / "a", source / "d/a2")
    os.link(source / "a", source / "z/a3")
    os.link(source / "d/large", source / "z/large")
    target = sshd.url(copy) if far else "b"
    options = ["--hard-links", *flags(sshd)]
    assert fastsync("sync", *options, "a", target) == (0, "", "")
    assert (copy / "z/a3").samefile(copy / "a")
    assert (copy / "d/a2").samefile(copy / "a")
    assert (copy / "z/large").samefile(copy / "d/large")
    assert (copy / "a").stat().st_nlink == 3
    # One more name for what is there, and one that becomes a name.
    os.link(source / "a", source / "z/a4")
    (source / "z/other").unlink()
    os.link(source / "d/large", source / "z/other")
    assert fastsync("sync", *options, "a", target) == (0, "", "")
    assert (copy / "z/a4").samefile(copy / "a")
    assert (copy / "z/other").samefile(copy / "d/large")
    assert not list(copy.rglob(".fs-*"))


def test_without_the_option_names_are_files(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    source = plant(tmp_path / "a", TREE)
    os.link(source / "a", source / "d/a2")
    assert fastsync("sync", "-a", "a", "b").code == 0
    assert (tmp_path / "b/a").stat().st_nlink == 1


def test_stores_that_know_no_such_thing(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, moto: S3Server
) -> None:
    plant(tmp_path / "a", TREE)
    fastsync.environ.update(moto.environ)
    place = f"s3://{moto.new_bucket()}/a"
    done = fastsync("sync", "-aX", "--hard-links", "a", place)
    assert done.code == 0
    assert done.stderr == (
        "fastsync: s3:// keeps no extended attributes\nfastsync: s3:// makes no hard links\n"
    )
    # Owners that a listing does not tell are no reason to do anything.
    done = fastsync("sync", "-a", "--json", "a", place)
    assert '"attributes": 0' in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("store", ["local", "sftp"])
def test_an_archive_keeps_owners_and_times(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, sshd: Sshd, store: str
) -> None:
    source, copy = plant(tmp_path / "a", {**TREE, "link": Path("d/b")}), tmp_path / "b"
    for number, path in enumerate(sorted(source.rglob("*"))):
        os.chown(path, 1000 + number, 2000 + number, follow_symlinks=False)
    for path in (source / "d", source):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    target = sshd.url(copy) if store == "sftp" else "b"
    assert fastsync("sync", "-a", *flags(sshd), "a", target) == (0, "", "")
    back = sshd.url(copy) if store == "sftp" else "b"
    assert fastsync("sync", "-a", *flags(sshd), back, "c") == (0, "", "")
    for path in sorted(source.rglob("*")):
        for root in (copy, tmp_path / "c"):
            ours, theirs = path.lstat(), (root / path.relative_to(source)).lstat()
            if not path.is_symlink():
                assert (ours.st_uid, ours.st_gid) == (theirs.st_uid, theirs.st_gid), path
                assert int(ours.st_mtime) == int(theirs.st_mtime), path
    assert int((tmp_path / "c").stat().st_mtime) == 1_000_000_000


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_an_archive_in_a_bucket_and_back(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, moto: S3Server
) -> None:
    source = plant(tmp_path / "a", {**TREE, "d/parts": b"p" * 20_000_000})
    files = [path for path in sorted(source.rglob("*")) if path.is_file()]
    for number, path in enumerate(files):
        os.chown(path, 1000 + number, 2000 + number)
        path.chmod(0o640)
    fastsync.environ.update(moto.environ)
    bucket = moto.new_bucket()
    assert fastsync("sync", "-a", "a", f"s3://{bucket}/a") == (0, "", "")
    head = moto.client.head_object(Bucket=bucket, Key="a/a")
    assert (head["Metadata"]["uid"], head["Metadata"]["gid"]) == ("1000", "2000")
    assert fastsync("sync", "-a", f"s3://{bucket}/a", "b") == (0, "", "")
    for path in files:
        ours, theirs = path.stat(), (tmp_path / "b" / path.relative_to(source)).stat()
        assert (ours.st_uid, ours.st_gid, ours.st_mode, ours.st_mtime_ns) == (
            theirs.st_uid,
            theirs.st_gid,
            theirs.st_mode,
            theirs.st_mtime_ns,
        )
    # Without -a nobody's file becomes somebody else's.
    assert fastsync("sync", f"s3://{bucket}/a", "c") == (0, "", "")
    assert (tmp_path / "c/a").stat().st_uid == 0
