"""What a killed run leaves at an SFTP server, and who removes it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from sshd import OurServer

from fastsync import processes
from fastsync.backend import Entry, ScanOptions, StoreOptions
from fastsync.location import parse
from fastsync.testing.vocabulary import write
from fastsync_sftp import temporary
from fastsync_sftp.backend import SftpBackend
from fastsync_sftp.packets import Attributes
from fastsync_sftp.store import SftpStore
from fastsync_sftp.temporary import ASIDE, KEPT, SOON, is_abandoned, temporary_name

MAKE = """
import sys
from fastsync_sftp.temporary import temporary_name
print(*(temporary_name(purpose).decode() for purpose in (0, 1, 2)), flush=True)
sys.stdin.read()
"""
# No process has the highest number there is (pid_max counts from 0).
NOBODY = (1 << 22) - 1
NOW = 1_700_000_000
FRESH = Attributes(1, mtime=NOW, atime=NOW)


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastsync_sftp.temporary.time.time", lambda: NOW + 60)


def test_those_of_a_process_go_with_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", MAKE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        soon, kept, aside = process.stdout.readline().split()
        assert not is_abandoned(soon, FRESH)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_abandoned(soon, FRESH)
    assert not is_abandoned(kept, FRESH)
    assert is_abandoned(kept, FRESH._replace(size=0)), "not even written down"
    assert is_abandoned(kept, FRESH._replace(mtime=5, atime=NOW - 86_400))
    assert not is_abandoned(aside, Attributes(1, mtime=5, atime=5))
    assert not is_abandoned(temporary_name(), Attributes(0, mtime=5, atime=5)), "ours"


def test_a_process_with_the_number_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    name = temporary_name()
    began = processes.started(os.getpid())
    assert began is not None
    monkeypatch.setattr(temporary, "started", lambda _pid: began + 1)
    assert is_abandoned(name, FRESH)


def test_those_of_another_machine_may_be_a_day_old(monkeypatch: pytest.MonkeyPatch) -> None:
    name = temporary_name()
    here = temporary._machine()
    monkeypatch.setattr(temporary, "_machine", lambda: here ^ 1)
    # A file that is about to get its name has the time of its source already.
    assert not is_abandoned(name, FRESH._replace(mtime=5))
    assert is_abandoned(name, FRESH._replace(mtime=5, atime=NOW - 86_400))
    assert not is_abandoned(name, Attributes())


def test_names_do_not_repeat() -> None:
    assert len(
        {temporary_name(purpose) for purpose in (SOON, KEPT, ASIDE) for _ in range(5000)}
    ) == (15_000)


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[OurServer]:
    one = OurServer(tmp_path / "server")
    await one.start()
    yield one
    await one.stop()


@pytest.fixture
def plant_debris(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], set[str]]:
    """Names of a process that is gone, two to remove and one to keep; tells which stays."""

    def plant(directory: Path) -> set[str]:
        directory.mkdir(exist_ok=True)
        with monkeypatch.context() as patch:
            patch.setattr("os.getpid", lambda: NOBODY)
            names = [os.fsdecode(temporary_name(each)) for each in (SOON, SOON, ASIDE)]
        for name in names:
            (directory / name).write_text("half")
        (directory / names[0]).unlink()
        (directory / names[0]).symlink_to("nowhere")
        return {names[2]}

    return plant


@pytest_asyncio.fixture
async def store(server: OurServer, tmp_path: Path) -> AsyncIterator[SftpStore]:
    backend = SftpBackend()
    location = parse(server.url(tmp_path / "root"))
    yield await backend.connect(location, StoreOptions(place=server.place))
    await backend.aclose()


def hidden(root: Path) -> set[str]:
    return {path.name for path in root.rglob(".fs-*")}


@pytest.mark.parametrize("sweep", [True, False])
async def test_a_listing_of_what_is_about_to_be_written_removes_them(
    store: SftpStore,
    tmp_path: Path,
    plant_debris: Callable[[Path], set[str]],
    sweep: bool,
) -> None:
    stays = plant_debris(tmp_path / "root") | plant_debris(tmp_path / "root/dir")
    before = hidden(tmp_path / "root")
    pages = [page async for page in store.scan(ScanOptions(sweep=sweep))]
    assert [entry.path for page in pages for entry in page.entries] == ["dir"]
    assert hidden(tmp_path / "root") == (stays if sweep else before)


async def test_a_write_where_nothing_was_listed_removes_them(
    store: SftpStore,
    tmp_path: Path,
    plant_debris: Callable[[Path], set[str]],
) -> None:
    stays = plant_debris(tmp_path / "root")
    await write(store, "file", b"content")
    await store.aclose()
    assert hidden(tmp_path / "root") == stays
    assert (tmp_path / "root/file").read_bytes() == b"content"


async def test_a_directory_with_nothing_else_in_it_is_empty(
    store: SftpStore,
    tmp_path: Path,
    plant_debris: Callable[[Path], set[str]],
) -> None:
    (tmp_path / "root").mkdir()
    (stays,) = plant_debris(tmp_path / "root/dir")
    (tmp_path / "root/dir" / stays).unlink()
    assert await store.delete([Entry("dir", "dir", None, None)]) == [None]
    assert not (tmp_path / "root/dir").exists()
