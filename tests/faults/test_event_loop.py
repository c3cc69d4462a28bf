"""Nothing holds the event loop for long: interrupts are heard, stalls noticed, connections kept busy.

What counts is the processor time of the loop's own thread in one callback, which others on a busy machine do
not add to. The servers run in threads and processes of their own.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile_s3 import HostileS3
from sshd import running_sshd
from web import running_nginx

import fastsync
from fastsync.cli.main import main

# A quarter of a second is what people notice; what is watched here is not as large as it may be.
LONGEST_S = 0.1
MANY = 20_000


class Watch:
    """The longest callback so far, and how many there were."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self.what = ""
        self.count = 0


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    seen, ours = Watch(), threading.get_ident()
    really = asyncio.Handle._run

    def run(self: asyncio.Handle) -> None:
        what = repr(self)
        began = time.thread_time()
        really(self)
        took = time.thread_time() - began
        if threading.get_ident() != ours:  # a server's
            return
        seen.count += 1
        if took > seen.longest_s:
            seen.longest_s, seen.what = took, what

    monkeypatch.setattr(asyncio.Handle, "_run", run)
    return seen


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of many files with nothing in them."""
    folder = tmp_path_factory.mktemp("flat")
    for number in range(MANY):
        os.close(os.open(folder / f"{number:06}", os.O_CREAT | os.O_WRONLY))
    return folder


def was_short(watch: Watch) -> None:
    assert watch.count > 50
    assert watch.longest_s < LONGEST_S, watch.what


@pytest.mark.parametrize("verb", ["dry-copy", "dry-delete"])
def test_many_local_files(
    watch: Watch,
    flat: Path,
    tmp_path: Path,
    verb: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    there = str(tmp_path / "there")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a").touch()
    everything = ("--delete", "--max-delete", "100%")
    arguments = {
        "dry-copy": ["sync", "-n", "--json", str(flat), there],
        "dry-delete": ["sync", "-n", *everything, str(tmp_path / "other"), str(flat)],
    }
    assert main(arguments[verb]) == 0
    assert capfd.readouterr().out.count("\n") >= MANY
    was_short(watch)


def test_a_long_plan_that_is_checked(
    watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To its last line, which is wrong."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Path("from").mkdir()
    Path("from/a").touch()
    assert main(["plan", "from", "to", "-o", "plan"]) == 0
    *head, line = Path("plan").read_text().splitlines()
    Path("plan").write_text("\n".join([*head, *[line] * MANY, "x"]))
    assert main(["run", "plan"]) == 2
    was_short(watch)


def test_many_names_at_a_web_server(watch: Watch, flat: Path, tmp_path: Path) -> None:
    with running_nginx(tmp_path) as server:
        (server.root / "flat").symlink_to(flat)
        summary = fastsync.sync(f"{server.url}/flat/", tmp_path / "there", dry_run=True)
    assert summary.totals.files_copied == MANY
    was_short(watch)


def test_many_names_at_an_sftp_server(watch: Watch, flat: Path, tmp_path: Path) -> None:
    with running_sshd(tmp_path) as server:
        options: dict[str, Any] = {**server.place, "dry_run": True}
        summary = fastsync.sync(server.url(flat), tmp_path / "there", **options)
    assert summary.totals.files_copied == MANY
    was_short(watch)


def test_many_objects(
    watch: Watch, hostile_s3: HostileS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(MANY):
        hostile_s3.put("bucket", f"{number:06}", b"")
    for name, value in hostile_s3.environ.items():
        monkeypatch.setenv(name, value)
    summary = fastsync.sync("s3://bucket", tmp_path / "there", dry_run=True)
    assert summary.totals.files_copied == MANY
    was_short(watch)


@pytest.mark.parametrize("way", ["up", "down", "digest"])
def test_large_files(
    watch: Watch,
    hostile_s3: HostileS3,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    """Hashed, sent and received by threads."""
    data = os.urandom(1 << 20) * 96
    for name, value in hostile_s3.environ.items():
        monkeypatch.setenv(name, value)
    hostile_s3.put("bucket", "there", data)
    here = tmp_path / "here"
    here.write_bytes(data)
    run: dict[str, Callable[[], fastsync.Summary]] = {
        "up": lambda: fastsync.cp(here, "s3://bucket/copy", chunk_size="16M"),
        "down": lambda: fastsync.cp("s3://bucket/there", tmp_path / "down", chunk_size="16M"),
        "digest": lambda: fastsync.cp(here, tmp_path / "down", checksum=True, manifest="m"),
    }
    monkeypatch.chdir(tmp_path)
    assert run[way]().exit_code == 0
    was_short(watch)
