"""A listing that is refused is one that fails: exit code 3 whatever the protocol and the verb, nothing
deleted, and what can be listed is dealt with."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest
from hostile_s3 import HostileS3, refuse
from sshd import OurServer
from web import Answer, Asked, ScriptedServer

import fastsync as library

if TYPE_CHECKING:
    from tests.conftest import Fastsync, Plant

VERBS = (
    ("sync", "--delete", "PLACE", "to"),
    ("sync", "--delete", "to", "PLACE"),
    ("cp", "-R", "PLACE", "other"),
    (
        "mv",
        "--size-only",
        "PLACE",
        "moved",
    ),  # else it has another name, and nobody needs to list it
    ("rm", "-R", "PLACE"),
    ("ls", "PLACE"),
    ("ls", "-R", "PLACE"),
    ("du", "PLACE"),
    ("plan", "PLACE", "to"),
    ("check", "PLACE", "to"),
)


@pytest.fixture
def closed(plant: Plant, tmp_path: Path) -> Iterator[Path]:
    """A directory that nobody but root can list, beside one that has such a one in it."""
    plant(tmp_path, {"closed/f": "f", "outer/a": "a", "outer/inner/f": "f", "to/keep": "keep"})
    for path in (tmp_path / "closed", tmp_path / "outer/inner"):
        path.chmod(0)
    yield tmp_path / "closed"
    for path in (tmp_path / "closed", tmp_path / "outer/inner"):
        path.chmod(0o700)


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_a_disk(
    fastsync: Fastsync, closed: Path, unprivileged: list[str], verb: tuple[str, ...]
) -> None:
    arguments = [str(closed) if word == "PLACE" else word for word in verb]
    done = fastsync(*arguments, under=unprivileged)
    assert (done.code, "permission denied" in done.stderr) == (3, True), done
    assert (closed.parent / "to/keep").read_text() == "keep"


def test_a_part_of_a_disk(fastsync: Fastsync, closed: Path, unprivileged: list[str]) -> None:
    """The rest is copied, and nothing deleted."""
    done = fastsync("sync", "--delete", "outer", "to", under=unprivileged)
    assert (done.code, "not deleting: " in done.stderr) == (3, True)
    assert sorted(os.listdir(closed.parent / "to")) == ["a", "inner", "keep"]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_a_bucket(
    fastsync: Fastsync,
    hostile_s3: HostileS3,
    plant: Plant,
    tmp_path: Path,
    verb: tuple[str, ...],
) -> None:
    bucket = hostile_s3.make_bucket("bucket")
    hostile_s3.put(bucket, "p/a", b"a")
    hostile_s3.on("ListObjects*", refuse(403, "AccessDenied"), times=None)
    fastsync.environ |= hostile_s3.environ
    plant(tmp_path, {"to/keep": "keep"})
    arguments = [f"s3://{bucket}/p/" if word == "PLACE" else word for word in verb]
    done = fastsync(*arguments)
    assert (done.code, "access denied" in done.stderr) == (3, True), done
    assert (tmp_path / "to/keep").read_text() == "keep"
    assert hostile_s3.keys(bucket) == ["p/a"]


class Closed(asyncssh.SFTPServer):
    """Lets nobody look into "closed"."""

    def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        if path.endswith(b"/closed"):
            raise asyncssh.SFTPPermissionDenied("no")
        return super().scandir(path)


@pytest.mark.parametrize("call", ["sync", "sync to it", "cp", "mv", "rm", "ls", "du"])
@pytest.mark.parametrize("place", ["closed", "outer"])
async def test_a_server_of_files(tmp_path: Path, plant: Plant, call: str, place: str) -> None:
    """The place itself, or a directory in it: then the rest is copied."""
    names = {"far/closed/f": "f", "far/outer/a": "a", "far/outer/closed/f": "f", "to/keep": "keep"}
    plant(tmp_path, names)
    here = tmp_path / "to"
    server = OurServer(tmp_path / "server", Closed)
    await server.start()
    try:
        url = server.url(tmp_path / "far" / place)
        calls: dict[str, Callable[..., Any]] = {
            "sync": lambda **how: library.async_sync(url, here, delete=True, **how),
            "sync to it": lambda **how: library.async_sync(here, url, delete=True, **how),
            "cp": lambda **how: library.async_cp(url, here / "new", recursive=True, **how),
            "mv": lambda **how: library.async_mv(url, here / "new", **how),
            "rm": lambda **how: library.async_rm(url, recursive=True, **how),
            "ls": lambda **how: library.async_ls(url, recursive=True, **how),
            "du": lambda **how: library.async_du(url, **how),
        }
        try:
            code = (await calls[call](**server.place)).exit_code
        except library.FastsyncError as error:
            code = error.exit_code
    finally:
        await server.stop()
    assert code == 3
    assert (here / "keep").read_text() == "keep"
    assert (tmp_path / "far/closed/f").exists()
    assert (tmp_path / "far/outer/closed/f").exists()
    if call == "sync" and place == "outer":
        assert (here / "a").exists()


@pytest.mark.parametrize("call", ["sync", "cp", "ls", "du"])
async def test_the_web(tmp_path: Path, call: str) -> None:
    def script(_asked: Asked) -> Answer:
        return Answer(403)

    (tmp_path / "keep").write_text("keep")
    async with ScriptedServer(script) as server:
        url = f"http://127.0.0.1:{server.port}/d/"
        calls: dict[str, Callable[[], object]] = {
            "sync": lambda: library.async_sync(url, tmp_path, delete=True),
            "cp": lambda: library.async_cp(url, tmp_path, recursive=True),
            "ls": lambda: library.async_ls(url),
            "du": lambda: library.async_du(url),
        }
        try:
            code = (await calls[call]()).exit_code  # type: ignore[misc]
        except library.FastsyncError as error:
            code = error.exit_code
    assert code == 3
    assert (tmp_path / "keep").read_text() == "keep"
