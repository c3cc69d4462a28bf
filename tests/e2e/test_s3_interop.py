"""What fastsync writes, rclone and s5cmd read, and the reverse: content, and times where they keep them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from s3_servers import find

if TYPE_CHECKING:
    from tests.conftest import Fastsync, Picture, Plant, Spec

TREE: Spec = {
    "a": "a",
    "zero": "",
    "dir/b +%&#.txt": "b",
    "dir/sub/\N{LATIN SMALL LETTER U WITH DIAERESIS}": "c",
    "dir/two parts": b"0123456789abcdef" * ((6 << 20) // 16),
}


@pytest.fixture
def peer(fastsync: Fastsync, tmp_path: Path) -> Callable[..., str]:
    """Runs another tool where fastsync would run; it must succeed."""

    def run(program: str, *arguments: str) -> str:
        found = find(program) or pytest.skip(f"{program} is not installed")
        done = subprocess.run(
            [found, *arguments],
            check=False,
            env=fastsync.environ,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def files(shots: Picture) -> dict[str, tuple[int, bytes]]:
    return {
        name: (shot.mtime_ns, shot.content) for name, shot in shots.items() if shot.kind == "file"
    }


def sync(fastsync: Fastsync, *arguments: str) -> int:
    """Sync, and how many files that copied."""
    done = fastsync("sync", "--json", "-c", "5M", *arguments)
    assert (done.code, done.stderr) == (0, "")
    copied: int = json.loads(done.stdout.splitlines()[-1])["copied"]
    return copied


def test_rclone_reads_what_we_wrote(
    fastsync: Fastsync,
    bucket: str,
    peer: Callable[..., str],
    plant: Plant,
    picture: Callable[..., Picture],
    tmp_path: Path,
) -> None:
    src = plant(tmp_path / "src", TREE)
    assert sync(fastsync, "src", f"s3://{bucket}/p") == len(TREE)
    peer("rclone", "copy", f"place:{bucket}/p", "back")
    assert files(picture(tmp_path / "back")) == files(picture(src))
    # To rclone nothing is left to do either, by time and by checksum.
    for option in ("--size-only=false", "--checksum"):
        said = peer("rclone", "sync", option, "--dry-run", "-v", "src", f"place:{bucket}/p")
        assert "Copied" not in said


def test_we_read_what_rclone_wrote(
    fastsync: Fastsync,
    bucket: str,
    peer: Callable[..., str],
    plant: Plant,
    picture: Callable[..., Picture],
    tmp_path: Path,
) -> None:
    src = plant(tmp_path / "src", TREE)
    peer("rclone", "copy", "--s3-upload-cutoff", "5M", "src", f"place:{bucket}/p")
    assert sync(fastsync, f"s3://{bucket}/p", "back") == len(TREE)
    assert files(picture(tmp_path / "back")) == files(picture(src))
    assert sync(fastsync, f"s3://{bucket}/p", "back") == 0
    assert sync(fastsync, "src", f"s3://{bucket}/p") == 0


def test_s5cmd_reads_what_we_wrote(
    fastsync: Fastsync,
    bucket: str,
    peer: Callable[..., str],
    plant: Plant,
    picture: Callable[..., Picture],
    tmp_path: Path,
) -> None:
    src = plant(tmp_path / "src", TREE)
    assert sync(fastsync, "src", f"s3://{bucket}/p") == len(TREE)
    peer("s5cmd", "cp", f"s3://{bucket}/p/*", "back/")
    found = files(picture(tmp_path / "back"))
    assert {name: content for name, (_, content) in found.items()} == {
        name: content for name, (_, content) in files(picture(src)).items()
    }


def test_what_s5cmd_wrote_settles(
    fastsync: Fastsync,
    bucket: str,
    peer: Callable[..., str],
    plant: Plant,
    picture: Callable[..., Picture],
    tmp_path: Path,
) -> None:
    """It keeps no times. Down and up again converges: a second run in each direction does nothing."""
    src = plant(tmp_path / "src", TREE)
    peer("s5cmd", "cp", "--part-size", "5", "src/", f"s3://{bucket}/p/")
    assert sync(fastsync, f"s3://{bucket}/p", "back") == len(TREE)
    contents = {name: content for name, (_, content) in files(picture(src)).items()}
    assert {
        name: content for name, (_, content) in files(picture(tmp_path / "back")).items()
    } == contents
    assert sync(fastsync, f"s3://{bucket}/p", "back") == 0
    assert sync(fastsync, "back", f"s3://{bucket}/p") == 0
    assert sync(fastsync, f"s3://{bucket}/p", "back") == 0
    assert os.listdir(tmp_path / "back")
