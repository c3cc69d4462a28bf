"""Directories of a server that somebody there exchanges for links while a run is on: that is noticed, if not
in the moment between a look and what follows it, of which nothing is promised."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from sshd import Sshd, running_sshd

from fastsync.backend import CopyJob, Entry, StoreOptions, WholeJob, WriteOptions
from fastsync.errors import Changed, FastsyncError, NameRefused
from fastsync.location import parse
from fastsync.testing.vocabulary import LATER, collect, directory, like, link, listing, write
from fastsync_sftp import directories
from fastsync_sftp.backend import SftpBackend
from fastsync_sftp.store import SftpStore


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path in ("root/d", "outside"):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "victim").write_bytes(path.encode())
    return tmp_path / "root"


@pytest_asyncio.fixture
async def store(sshd: Sshd, root: Path) -> AsyncIterator[SftpStore]:
    backend = SftpBackend()
    store = await backend.connect(parse(sshd.url(root)), StoreOptions(place=sshd.place))
    yield store
    await store.aclose()
    await backend.aclose()


def exchange(root: Path) -> None:
    (root / "d").rename(root / "kept")
    (root / "d").symlink_to("../outside")


def outside(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root.parent / "outside").iterdir()}


async def test_what_was_listed_long_ago_is_looked_at_again(
    store: SftpStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every way of writing refuses a directory that has become a link since."""
    await listing(store)
    await write(store, "d/first", b"content")
    entry = await store.stat("d/victim")
    exchange(root)
    monkeypatch.setattr(directories, "_FRESH_S", 0.0)
    with pytest.raises(NameRefused):
        await write(store, "d/intruder", b"content")
    file = Entry("a", "file", 7, LATER)
    job = CopyJob(like("d/victim", mtime_ns=LATER, mode=0o600), "d/victim")
    before = os.stat(root.parent / "outside" / "victim")
    answers: list[object] = [
        *await store.write_whole([WholeJob(file, "d/intruder", b"content")], WriteOptions()),
        *await store.make_directories([directory("d/new")], WriteOptions()),
        *await store.make_links([link("d/link", "x")], WriteOptions()),
        *await store.make_hard_links([("kept/victim", "d/hard")]),
        *await store.set_attributes([job], WriteOptions()),
        *await store.delete([entry]),
    ]
    assert [type(answer) for answer in answers] == [NameRefused] * len(answers)
    with pytest.raises(FastsyncError):
        await collect(store.read(entry, 0, None))
    assert outside(root) == {"victim": b"outside"}
    after = os.stat(root.parent / "outside" / "victim")
    assert (after.st_mtime_ns, after.st_mode) == (before.st_mtime_ns, before.st_mode)


async def test_no_look_is_old_enough_to_delete_by(store: SftpStore, root: Path) -> None:
    """Deletes look anew, however short ago the listing was."""
    entries = {entry.path: entry for entry in await listing(store)}
    exchange(root)
    (answer,) = await store.delete([entries["d/victim"]])
    assert isinstance(answer, NameRefused)
    assert outside(root) == {"victim": b"outside"}


async def test_another_file_behind_a_link_is_not_the_one_that_was_listed(
    store: SftpStore, root: Path
) -> None:
    """Even within the moment in which a look is believed: it has another size or time."""
    (root.parent / "outside" / "victim").write_bytes(b"a secret, longer than it")
    entries = {entry.path: entry for entry in await listing(store)}
    exchange(root)
    with pytest.raises(Changed):
        await collect(store.read(entries["d/victim"], 0, None))


async def test_an_upload_is_renamed_where_it_was_begun_or_not_at_all(
    store: SftpStore, root: Path
) -> None:
    """Its temporary file is in the directory that was looked at, and so in no other."""
    upload = await store.upload("d/victim", like("a"), WriteOptions(), 1 << 20)
    await upload.write(0, b"content")
    exchange(root)
    with pytest.raises(FastsyncError):
        await upload.commit(7)
    await upload.abort()
    assert outside(root) == {"victim": b"outside"}
    assert (root / "kept" / "victim").read_bytes() == b"root/d"
