"""kill -9 at named steps: at the moment a server is asked for something, or has just done it. Nothing half is
there, and the same command brings everything to its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import asyncssh
import pytest
import pytest_asyncio
from hostile_s3 import Honest, HostileS3
from http_exchange import Request, Response
from sshd import OurServer, Sshd, running_sshd

from fastsync.testing.vocabulary import noise

if TYPE_CHECKING:
    from tests.conftest import Fastsync

MIB = 1 << 20
BIG = noise(MIB) * 11
TREE = {"a/big": BIG, "a/small": b"small", "small": b"another"}
Start = Callable[..., "subprocess.Popen[bytes]"]
Plant = Callable[[Path, Any], Path]
When = Literal["before", "after"]


class Strike:
    """Kills a process the `nth` time that something is about to happen, or has happened."""

    def __init__(self, when: When, nth: int) -> None:
        self._when = when
        self._left = nth
        self.process: subprocess.Popen[bytes] | None = None

    def at(self, when: When) -> None:
        if when == self._when and self.process is not None:
            self._left -= 1
            if self._left == 0:
                self.process.kill()
                self.process.wait()

    def through(self, request: Request, honest: Honest) -> Response:
        """A fault of a server of S3, which does its work all the same."""
        self.at("before")
        answer = honest(request)
        self.at("after")
        return answer


@pytest.mark.parametrize(
    ("operation", "when", "nth"),
    [
        ("UploadPart", "after", 2),
        ("CompleteMultipartUpload", "before", 1),
        ("CompleteMultipartUpload", "after", 1),
    ],
)
def test_into_a_bucket(
    fastsync: Fastsync,
    hostile_s3: HostileS3,
    plant: Plant,
    started: Start,
    tmp_path: Path,
    operation: str,
    when: When,
    nth: int,
) -> None:
    fastsync.environ |= hostile_s3.environ
    plant(tmp_path / "from", TREE)
    hostile_s3.put("bucket", "to/old", b"old")
    command = ("sync", "--delete", "-c", "5M", "from", "s3://bucket/to/")
    strike = Strike(when, nth)
    hostile_s3.on(operation, strike.through, times=None)
    strike.process = started(*command)
    assert strike.process.wait(30) == -9
    hostile_s3.behave()
    there = {key: hostile_s3.data("bucket", key) for key in hostile_s3.keys("bucket")}
    assert there.pop("to/old") == b"old", "deletes come last"
    assert there.items() <= {f"to/{name}": data for name, data in TREE.items()}.items()
    assert fastsync(*command).code == 0
    there = {key: hostile_s3.data("bucket", key) for key in hostile_s3.keys("bucket")}
    assert there == {f"to/{name}": data for name, data in TREE.items()}
    assert fastsync("jobs", "clean").code == 0
    assert hostile_s3.open_uploads == []
    assert fastsync("jobs", "list").stdout == ""


@pytest.mark.parametrize("source", ["a bucket", "the web"])
def test_from(
    fastsync: Fastsync,
    hostile_s3: HostileS3,
    started: Start,
    tmp_path: Path,
    debris: Callable[[Path], list[Path]],
    source: str,
) -> None:
    """When the last part is asked for."""
    fastsync.environ |= hostile_s3.environ
    hostile_s3.put("bucket", "big", BIG)
    url = "s3://bucket/big" if source == "a bucket" else f"{hostile_s3.endpoint}/bucket/big"
    (tmp_path / "big").write_bytes(b"old")
    os.utime(tmp_path / "big", (10**9, 10**9))
    command = ("cp", "-c", "5M", "-p", "2", url, "big")
    strike = Strike("before", 3)
    hostile_s3.on("GetObject", strike.through, times=None)
    strike.process = started(*command)
    assert strike.process.wait(30) == -9
    assert (tmp_path / "big").read_bytes() == b"old"
    hostile_s3.behave()
    assert fastsync(*command).code == 0
    assert (tmp_path / "big").read_bytes() == BIG
    assert fastsync("jobs", "list").stdout == ""
    assert debris(tmp_path) == []


# -- SFTP ------------------------------------------------------------------------------------------------


class Struck(asyncssh.SFTPServer):
    """Carries out what it is asked for, and lets a process be killed at it."""

    operation = ""
    strike: Strike

    def _at(self, operation: str, when: When) -> None:
        if operation == self.operation:
            self.strike.at(when)

    def write(self, file_obj: object, offset: int, data: bytes) -> int:
        self._at("write", "before")
        count = super().write(file_obj, offset, data)
        assert isinstance(count, int)
        return count

    def posix_rename(self, oldpath: bytes, newpath: bytes) -> None:
        self._at("rename", "before")
        super().posix_rename(oldpath, newpath)
        self._at("rename", "after")


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[OurServer]:
    one = OurServer(tmp_path / "server", Struck)
    await one.start()
    yield one
    await one.stop()


@pytest.mark.parametrize(
    ("operation", "when", "nth"),
    [("write", "before", 3), ("rename", "after", 2)],
)
async def test_to_a_server_of_files(
    fastsync: Fastsync,
    server: OurServer,
    plant: Plant,
    started: Start,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    debris: Callable[[Path], list[Path]],
    operation: str,
    when: When,
    nth: int,
) -> None:
    plant(tmp_path / "from", TREE)
    to = plant(tmp_path / "to", {"old": b"old", "a/big": b"old"})
    options = [f"--{key.replace('_', '-')}={value}" for key, value in server.place.items()]
    command = ("sync", "--delete", "-c", "5M", *options, str(tmp_path / "from"), server.url(to))

    def there() -> dict[str, bytes]:
        paths = (path for path in to.rglob("*") if path.is_file() and path.name[:4] != ".fs-")
        return {str(path.relative_to(to)): path.read_bytes() for path in paths}

    strike = Strike(when, nth)
    monkeypatch.setattr(Struck, "operation", operation)
    monkeypatch.setattr(Struck, "strike", strike, raising=False)
    strike.process = started(*command)
    assert await asyncio.to_thread(strike.process.wait, 30) == -9
    monkeypatch.setattr(Struck, "operation", "")
    found = there()
    assert found.pop("old") == b"old", "deletes come last"
    assert found.items() <= {*TREE.items(), ("a/big", b"old")}
    done = await asyncio.to_thread(fastsync, *command)
    assert (done.code, done.stderr) == (0, "")
    assert there() == TREE
    assert debris(to) == []
    assert (await asyncio.to_thread(fastsync, "jobs", "list")).stdout == ""


# -- helper processes ------------------------------------------------------------------------------------


def kill_children(process: subprocess.Popen[bytes]) -> int:
    """Kill the helpers of a process, save for those that have just begun; how many."""
    killed = 0
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread, or a helper, that ends by itself
            for child in map(int, (task / "children").read_text().split()):
                os.kill(child, signal.SIGKILL)
                killed += 1
    return killed


def has_files(place: Path, count: int) -> bool:
    return sum(len(files) for _, _, files in os.walk(place)) >= count


def test_the_helpers_of_a_local_copy(
    fastsync: Fastsync,
    plant: Plant,
    picture: Callable[[Path], object],
    debris: Callable[[Path], list[Path]],
    started: Start,
    eventually: Callable[[Callable[[], object]], None],
    tmp_path: Path,
) -> None:
    """What they had in hand is done here, and what they left is removed by the same run."""
    source = plant(tmp_path / "from", {f"{n // 50}/{n}": b"x" * n for n in range(2000)})
    (tmp_path / "to").mkdir()
    process = started("sync", "--delete", str(source), "to")
    killed = 0
    for count in (400, 1000):
        eventually(partial(has_files, tmp_path / "to", count))
        killed += kill_children(process)
    assert process.wait(60) == 0
    assert picture(tmp_path / "to") == picture(source)
    assert debris(tmp_path) == []
    assert killed


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as one:
        yield one


def test_the_ssh_of_a_transfer(
    fastsync: Fastsync,
    sshd: Sshd,
    debris: Callable[[Path], list[Path]],
    started: Start,
    eventually: Callable[[Callable[[], object]], None],
    tmp_path: Path,
) -> None:
    """Another is started, and the file goes on."""
    (tmp_path / "big").write_bytes(BIG)
    (tmp_path / "to").mkdir()
    options = [f"--{key.replace('_', '-')}={value}" for key, value in sshd.place.items()]
    options += ["--ssh-transport", "openssh", "-c", "5M", "--bwlimit", "12M"]
    process = started("cp", *options, "big", sshd.url(tmp_path / "to/big"))
    eventually(lambda: debris(tmp_path / "to"))
    assert kill_children(process)
    assert process.wait(60) == 0
    assert (tmp_path / "to/big").read_bytes() == BIG
    assert debris(tmp_path) == []
