"""Temporary names: whose they are, and what may be removed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastsync import processes
from fastsync_local import temporary
from fastsync_local.temporary import Names, is_abandoned, sweep

MAKE = """
import os, sys
from fastsync_local.temporary import Names
names = Names()
for _ in range(2):
    open(os.path.join(sys.argv[1], names.new()), "w").close()
os.symlink("x", os.path.join(sys.argv[1], names.new()))
print("made", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_those_of_a_process_go_with_it(tmp_path: Path, directory: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", MAKE, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (tmp_path / Names().new()).write_text("ours")
        (tmp_path / "file").write_text("file")
        assert len(os.listdir(tmp_path)) == 5
        sweep(directory)
        assert len(os.listdir(tmp_path)) == 5, "both processes are alive"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet buried
        sweep(directory)
    left = [name for name in os.listdir(tmp_path) if name != "file"]
    assert [(tmp_path / name).read_text() for name in left] == ["ours"]


def test_a_process_with_the_number_of_another(
    tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = Names().new()
    (tmp_path / name).touch()
    assert not is_abandoned(directory, name)
    started = processes.started(os.getpid())
    assert started is not None
    monkeypatch.setattr(temporary, "started", lambda _pid: started + 1)
    assert is_abandoned(directory, name)


def test_those_of_another_machine_may_be_a_day_old(
    tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = Names().new()
    (tmp_path / name).touch()
    os.utime(tmp_path / name, ns=(0, 0))  # the source's time says nothing
    here = temporary._machine()
    monkeypatch.setattr(temporary, "_machine", lambda: here ^ 1)
    assert not is_abandoned(directory, name)
    changed = (tmp_path / name).stat().st_ctime
    monkeypatch.setattr("time.time", lambda: changed + 25 * 3600)
    assert is_abandoned(directory, name)


def test_those_that_may_be_taken_up_again_may_be_a_day_old(
    tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = Names().new()
    (tmp_path / name).write_bytes(b"begun")
    (tmp_path / name).chmod(temporary.KEPT_MODE)
    monkeypatch.setattr(temporary, "started", lambda _pid: None)
    assert not is_abandoned(directory, name)
    changed = (tmp_path / name).stat().st_ctime
    monkeypatch.setattr("time.time", lambda: changed + 25 * 3600)
    assert is_abandoned(directory, name)


def test_an_empty_one_is_not_worth_taking_up(
    tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the journal knew of it: nothing would ever ask for it again."""
    name = Names().new()
    (tmp_path / name).touch(temporary.KEPT_MODE)
    assert not is_abandoned(directory, name), "its process is at work"
    monkeypatch.setattr(temporary, "started", lambda _pid: None)
    assert is_abandoned(directory, name)


def test_what_is_no_temporary_file_stays(
    tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory of that name, a second name of a file, a file of somebody else."""
    names = [Names().new() for _ in range(3)]
    (tmp_path / names[0]).mkdir()
    (tmp_path / names[1]).touch()
    os.link(tmp_path / names[1], tmp_path / "other")
    monkeypatch.setattr(temporary, "started", lambda _pid: None)
    (tmp_path / names[2]).touch()
    if os.geteuid() == 0:
        os.chown(tmp_path / names[2], 12345, -1)
    else:
        (tmp_path / names[2]).unlink()
    before = sorted(os.listdir(tmp_path))
    sweep(directory)
    assert sorted(os.listdir(tmp_path)) == before


FORK = """
import os
from fastsync_local.temporary import Names
print(Names().new()[4:17], flush=True)
if os.fork() == 0:
    print(Names().new()[4:17], flush=True)
    os._exit(0)
os.wait()
"""


def test_a_forked_process_is_another() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, check=True)
    ours, others = done.stdout.split()
    assert ours != others
