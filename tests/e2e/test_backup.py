"""`--backup-dir` and `--interactive`: what is lost by a run, and who agreed to it."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from s3_servers import S3Server

if TYPE_CHECKING:
    from tests.conftest import Fastsync, Plant

NEW = {"same": "s", "changed": "new", "d/changed": "new", "becomes": "a file"}
OLD = {"same": "s", "changed": "before", "d/changed": "before", "gone": "g", "becomes/x": "x"}
SAVED = {"changed": "before", "d/changed": "before", "gone": "g", "becomes/x": "x"}


def content(root: Path) -> dict[str, str]:
    found = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_text() for path in found}


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_what_goes_is_kept_elsewhere(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    plant(tmp_path / "src", NEW)
    plant(tmp_path / "dest", OLD)
    target, backup, bucket = "dest", "saved", ""
    if kind == "s3":
        server: S3Server = request.getfixturevalue("moto")
        fastsync.environ.update(server.environ)
        bucket = server.new_bucket()
        target, backup = f"s3://{bucket}/dest", f"s3://{bucket}/saved"
        assert fastsync("sync", "dest", target).code == 0
    options = ("--checksum", "--delete", "--backup-dir", backup)
    assert fastsync("sync", "-n", *options, "src", target).code == 0
    assert not (tmp_path / "saved").exists()
    assert fastsync("sync", *options, "src", target) == (0, "", "")
    if kind == "s3":
        for name in ("dest", "saved"):
            assert fastsync("sync", "--delete", f"s3://{bucket}/{name}", name).code == 0
    assert content(tmp_path / "dest") == NEW
    assert content(tmp_path / "saved") == SAVED


def test_links_and_single_files(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path / "src", {"f": "new", "d/l": Path("new")})
    plant(tmp_path / "dest", {"f": "before", "src/d/l": Path("before")})
    assert fastsync("cp", "--backup-dir", "saved", "src/f", "dest/f").code == 0
    assert fastsync("cp", "-R", "--backup-dir", "saved", "src", "dest").code == 0
    assert content(tmp_path / "saved") == {"f": "before"}
    assert os.readlink(tmp_path / "saved/src/d/l") == "before"


def test_what_cannot_be_kept_stays(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path / "src", {"changed": "new"})
    plant(tmp_path / "dest", {"changed": "before", "gone": "g"})
    plant(tmp_path / "saved", {"changed/in the way": "", "gone/in the way": ""})
    options = ("--delete", "--backup-dir", "saved")
    done = fastsync("sync", *options, "src", "dest")
    assert done.code == 1
    assert "it stays, for it could not be backed up" in done.stderr
    assert content(tmp_path / "dest") == {"changed": "before", "gone": "g"}
    (tmp_path / "dest/changed").unlink()
    assert fastsync("sync", *options, "src", "dest").code == 1
    assert content(tmp_path / "dest") == {"changed": "new", "gone": "g"}


@pytest.mark.parametrize("place", ["dest/old", "src", ".", "-"])
def test_no_backup_in_the_way(fastsync: Fastsync, plant: Plant, tmp_path: Path, place: str) -> None:
    plant(tmp_path / "src", NEW)
    plant(tmp_path / "dest", OLD)
    assert fastsync("sync", "--backup-dir", place, "src", "dest").code == 2
    assert content(tmp_path / "dest") == OLD


@pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, NEW), ("n", 6, OLD), ("", 6, OLD)])
def test_asked_at_a_terminal(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, answer: str, code: int, left: dict[str, str]
) -> None:
    plant(tmp_path / "src", NEW)
    plant(tmp_path / "dest", OLD)
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    done = subprocess.run(
        fastsync.command("sync", "--interactive", "--delete", "src", "dest"),
        check=False,
        env=fastsync.environ,
        cwd=tmp_path,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        timeout=60,
    )
    os.close(theirs)
    told = os.read(ours, 65536).decode()
    os.close(ours)
    assert done.returncode == code, told
    assert "This would copy 3 files (12 B), delete 2." in told
    assert content(tmp_path / "dest") == left


def at_a_terminal(fastsync: Fastsync, where: Path, *arguments: str) -> tuple[int, str]:
    """Where nobody answers."""
    ours, theirs = pty.openpty()
    os.write(ours, b"\x04")
    done = subprocess.run(
        fastsync.command(*arguments),
        check=False,
        env=fastsync.environ,
        cwd=where,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        timeout=60,
    )
    os.write(theirs, b".")
    os.close(theirs)
    told = os.read(ours, 65536).decode()
    os.close(ours)
    return done.returncode, told


def test_nothing_to_ask_about(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path / "src", NEW)
    assert fastsync("sync", "src", "dest").code == 0
    code, told = at_a_terminal(fastsync, tmp_path, "sync", "--interactive", "src", "dest")
    assert code == 0
    assert "Do it?" not in told


def test_directories_alone_are_asked_about(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    plant(tmp_path / "d", {"empty/": "", "other/": ""})
    code, told = at_a_terminal(fastsync, tmp_path, "rm", "-R", "--interactive", "d")
    assert code == 6
    assert "This would delete 3 directories." in told
    assert (tmp_path / "d/empty").is_dir()


def test_nobody_to_ask(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path / "src", NEW)
    done = fastsync("sync", "--interactive", "src", "dest")
    assert done.code == 2
    assert "needs a terminal" in done.stderr
