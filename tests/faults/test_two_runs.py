"""Two runs into one place: while one is in the middle of a file, another does all there is, and cleans up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hostile_s3 import HostileS3
from sshd import running_sshd

from fastsync.testing.vocabulary import noise

if TYPE_CHECKING:
    from tests.conftest import Fastsync

MIB = 1 << 20
BIG = noise(MIB) * 7
Start = Callable[..., "subprocess.Popen[bytes]"]
Wait = Callable[[Callable[[], object]], None]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "from").mkdir()
    (tmp_path / "from/big").write_bytes(BIG)
    (tmp_path / "from/small").write_bytes(b"small")
    return tmp_path / "from"


@contextmanager
def stopped(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """As it is at this moment, for a while."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def states(command: Fastsync, *place: str) -> list[str]:
    done = command("jobs", "list", "--json", *place)
    assert done.code == 0
    return [json.loads(line)["state"] for line in done.stdout.splitlines()]


def test_a_bucket(
    fastsync: Fastsync,
    hostile_s3: HostileS3,
    source: Path,
    started: Start,
    eventually: Wait,
    tmp_path: Path,
) -> None:
    """With a state folder of its own, as another user's; and with the same."""
    fastsync.environ |= hostile_s3.environ
    hostile_s3.put("bucket", "to/old", b"old")
    command = ("sync", "--delete", "-c", "5M", str(source), "s3://bucket/to/")
    first = started(*command, "--bwlimit", "4M")
    eventually(lambda: hostile_s3.count("UploadPart"))
    with stopped(first):
        other = {"FASTSYNC_STATE": str(tmp_path / "another")}
        assert fastsync(*command, env=other).code == 0
        assert hostile_s3.keys("bucket") == ["to/big", "to/small"]
        assert hostile_s3.data("bucket", "to/big") == BIG
        assert fastsync("jobs", "clean", "--all").code == 0
        assert fastsync("jobs", "resume").code == 0
        assert hostile_s3.open_uploads == ["to/big"], "somebody is at it"
        assert states(fastsync) == ["running"]
    assert first.wait(30) == 0
    assert hostile_s3.keys("bucket") == ["to/big", "to/small"]
    assert hostile_s3.data("bucket", "to/big") == BIG
    assert (hostile_s3.open_uploads, states(fastsync)) == ([], [])


def test_a_server_of_files(
    fastsync: Fastsync, source: Path, started: Start, eventually: Wait, tmp_path: Path
) -> None:
    to = tmp_path / "to"
    to.mkdir()
    (to / "old").write_bytes(b"old")
    (tmp_path / "sshd").mkdir()

    def temporaries() -> list[str]:
        return [name for name in os.listdir(to) if name.startswith(".fs-")]

    with running_sshd(tmp_path / "sshd") as sshd:
        ssh = [f"--{key.replace('_', '-')}={value}" for key, value in sshd.place.items()]
        command = ("sync", "--delete", "-c", "5M", *ssh, str(source), sshd.url(to))
        first = started(*command, "--bwlimit", "4M")
        eventually(lambda: (to / "small").exists() and temporaries())
        with stopped(first):
            (left,) = temporaries()
            other = {"FASTSYNC_STATE": str(tmp_path / "another")}
            assert fastsync(*command, env=other).code == 0
            assert sorted(os.listdir(to)) == sorted([left, "big", "small"])
            assert (to / "big").read_bytes() == BIG
            assert fastsync("jobs", "clean", "--all", *ssh, sshd.url(to), env=other).code == 0
            assert fastsync("jobs", "clean", "--all").code == 0
            assert temporaries() == [left], "somebody is at it"
        assert first.wait(30) == 0
    assert sorted(os.listdir(to)) == ["big", "small"]
    assert (to / "big").read_bytes() == BIG
