"""A download that ended before its time goes on in a later process, if the file is still the same."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from web import Answer, Asked, ScriptedServer, serve_bytes

from fastsync.journal import Journal
from fastsync.testing.vocabulary import noise

if TYPE_CHECKING:
    from tests.conftest import Fastsync

PART = 64 << 10
CONTENT = noise(6 * PART + 7)
ARGUMENTS = ("-p", "2", "--chunk-size", "64K")

Started = Callable[..., "subprocess.Popen[bytes]"]


class SlowAfter:
    """Answers well until `parts` ranges were sent, then not at all, until `quick`."""

    def __init__(self, parts: int, *, tag: str = '"one"', content: bytes = CONTENT) -> None:
        self._serve = serve_bytes(content, {"ETag": tag})
        self._left = parts
        self.quick = False

    async def __call__(self, asked: Asked) -> Answer:
        if asked.headers.get("range", "bytes=0-0") != "bytes=0-0":
            self._left -= 1
            if self._left < 0 and not self.quick:
                await asyncio.sleep(60)
        return self._serve(asked)


def ranges_in(fastsync: Fastsync) -> list[tuple[int, int]]:
    journal = Journal(str(Path(fastsync.environ["HOME"]) / ".local/state/fastsync"))
    try:
        return [one for record in journal.records() for one in record.ranges]
    finally:
        journal.close()


async def cut_off(
    fastsync: Fastsync, started: Started, url: str, number: int, *more: str, target: str = "."
) -> None:
    """Begin a download, and end the process when it is under way."""
    process = started("cp", *ARGUMENTS, *more, url, target)
    deadline = time.monotonic() + 20
    while not ranges_in(fastsync):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    process.send_signal(number)
    assert await asyncio.to_thread(process.wait, 10) in (-number, 128 + number)


def asked_for(server: ScriptedServer) -> int:
    """How many bytes of content were asked for, the look at the address aside."""
    total = 0
    for asked in server.asked:
        if (wanted := asked.headers.get("range", "bytes=0-0")) != "bytes=0-0":
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            total += int(last) + 1 - int(first)
    return total


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_only_what_is_missing_is_fetched(
    fastsync: Fastsync,
    started: Started,
    tmp_path: Path,
    debris: Callable[[Path], list[Path]],
    number: int,
) -> None:
    script = SlowAfter(3)
    async with ScriptedServer(script) as server:
        url = f"{server.url}/a%20file?token=hunter2"
        await cut_off(fastsync, started, url, number)
        assert not (tmp_path / "a file").exists()
        assert len(debris(tmp_path)) == 1
        listed = fastsync("jobs", "list").stdout
        assert "cut off" in listed
        assert listed.endswith("/a file\n")
        for path in (tmp_path / "home").rglob("*"):
            assert path.is_dir() or b"hunter2" not in path.read_bytes()
        script.quick = True
        server.asked.clear()
        # From another directory, by another name of the same one.
        done = await asyncio.to_thread(
            fastsync, "cp", *ARGUMENTS, "--summarize", url, "../a file", cwd=tmp_path / "home"
        )
        assert (done.code, done.stderr) == (0, "")
        assert (tmp_path / "a file").read_bytes() == CONTENT
        assert asked_for(server) == len(CONTENT) - 3 * PART
        assert f"Bytes sent: {len(CONTENT) - 3 * PART} bytes of {len(CONTENT)}" in done.stdout
        assert all("if-range" in asked.headers for asked in server.asked[1:])
    assert debris(tmp_path) == []
    assert fastsync("jobs", "list").stdout == ""


@pytest.mark.parametrize(
    ("tag", "content"), [('"two"', CONTENT), ('"one"', CONTENT + b"longer")], ids=["tag", "size"]
)
async def test_another_version_begins_anew(
    fastsync: Fastsync,
    started: Started,
    tmp_path: Path,
    debris: Callable[[Path], list[Path]],
    tag: str,
    content: bytes,
) -> None:
    async with ScriptedServer(SlowAfter(3)) as server:
        await cut_off(fastsync, started, f"{server.url}/f", signal.SIGKILL)
        server.script = SlowAfter(99, tag=tag, content=content)
        server.asked.clear()
        done = await asyncio.to_thread(fastsync, "cp", *ARGUMENTS, f"{server.url}/f", ".")
        assert (done.code, done.stderr) == (0, "")
        assert (tmp_path / "f").read_bytes() == content
        assert asked_for(server) == len(content)
    assert debris(tmp_path) == []


async def test_a_digest_is_of_all_of_it(
    fastsync: Fastsync, started: Started, tmp_path: Path, debris: Callable[[Path], list[Path]]
) -> None:
    script = SlowAfter(3)
    async with ScriptedServer(script) as server:
        await cut_off(fastsync, started, f"{server.url}/f", signal.SIGKILL)
        (part,) = debris(tmp_path)
        with part.open("r+b") as file:  # somebody with our rights
            file.write(b"\0\0\0\0")
        script.quick = True
        told = ("--checksum-of", "sha256:" + "ab" * 32)
        done = await asyncio.to_thread(fastsync, "cp", *ARGUMENTS, *told, f"{server.url}/f", ".")
        assert done.code == 4
    assert debris(tmp_path) == []
    assert not (tmp_path / "f").exists()


async def test_unless_it_is_not_wanted(
    fastsync: Fastsync, started: Started, tmp_path: Path, debris: Callable[[Path], list[Path]]
) -> None:
    async with ScriptedServer(SlowAfter(3)) as server:
        process = started("cp", *ARGUMENTS, "--no-resume", f"{server.url}/f", ".")
        deadline = time.monotonic() + 20
        while len(server.asked) < 5:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 10) == 143
    assert debris(tmp_path) == []
    assert ranges_in(fastsync) == []


async def test_what_is_left_can_be_dropped(
    fastsync: Fastsync, started: Started, tmp_path: Path, debris: Callable[[Path], list[Path]]
) -> None:
    async with ScriptedServer(SlowAfter(3)) as server:
        await cut_off(fastsync, started, f"{server.url}/f", signal.SIGKILL)
    assert len(debris(tmp_path)) == 1
    done = await asyncio.to_thread(fastsync, "jobs", "clean")
    assert (done.code, done.stderr) == (0, "")
    assert debris(tmp_path) == []
    assert fastsync("jobs", "list").stdout == ""
