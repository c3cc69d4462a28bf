"""`fastsync cat`, `pipe` and `cp` with `-`: streams through the real command."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Fastsync

CONTENT = random.Random(3).randbytes(3_000_000)


def run(fastsync: Fastsync, line: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """A line of shell; `fastsync` in it is the command."""
    command = " ".join(map(str, fastsync.command()))
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line.replace("fastsync", command)],
        check=False,
        cwd=fastsync.cwd,
        env=fastsync.environ,
        input=stdin,
        capture_output=True,
        timeout=60,
    )


def test_files_one_after_the_other(fastsync: Fastsync, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    (tmp_path / "b").write_bytes(b"second")
    done = run(fastsync, "fastsync cat a b")
    assert (done.returncode, done.stdout, done.stderr) == (0, CONTENT + b"second", b"")


@pytest.mark.parametrize(
    ("line", "way"),
    [
        ("fastsync cat a | cat", "a pipe"),
        ("fastsync cat a > out && cat out", "a file"),
        ("echo -n x > out; fastsync cat a >> out && tail -c +2 out", "appended"),
        ("fastsync cp a -", "cp"),
        ("fastsync cp --json --summarize a -", "nothing else"),
        ("cat a | fastsync cat -", "standard input"),
        ("fastsync cat - < a", "redirected"),
    ],
)
def test_ways_out(fastsync: Fastsync, tmp_path: Path, line: str, way: str) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    done = run(fastsync, line)
    assert (done.returncode, done.stderr) == (0, b""), way
    assert done.stdout == CONTENT


def test_a_part(fastsync: Fastsync, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    done = run(fastsync, "fastsync cat --offset 1K --count 2K -c 3 --chunk-size 4K a")
    assert (done.returncode, done.stdout) == (0, CONTENT[1024 : 3 * 1024])


def test_a_reader_that_has_seen_enough(fastsync: Fastsync, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    done = run(fastsync, "fastsync cat a | head -c 10; echo -n ${PIPESTATUS[0]}")
    assert (done.stdout, done.stderr) == (CONTENT[:10] + b"141", b"")


@pytest.mark.parametrize("part", ["--offset 1", "--count 0"])
def test_a_digest_of_the_whole_says_nothing_of_a_part(fastsync: Fastsync, part: str) -> None:
    wanted = f"--checksum-of sha256:{'0' * 64}"
    done = run(fastsync, f"fastsync cat {wanted} {part} http://127.0.0.1:1/a")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"--checksum-of is about whole files" in done.stderr


def test_nothing_is_written_if_a_place_is_wrong(fastsync: Fastsync, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    done = run(fastsync, "fastsync cat a nope")
    assert (done.returncode, done.stdout) == (3, b"")
    assert done.stderr == b"fastsync: error: nope: no such file or directory\n"
    assert run(fastsync, "fastsync cat .").returncode == 2
    assert run(fastsync, "fastsync cat --count 1Q a").returncode == 2


def test_output_that_is_full(fastsync: Fastsync, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    done = run(fastsync, "fastsync cat a > /dev/full")
    assert done.returncode == 7
    assert b"no space" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_nobody_reads(
    fastsync: Fastsync,
    tmp_path: Path,
    started: Callable[..., subprocess.Popen[bytes]],
    number: signal.Signals,
) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    process = started("cat", "a")
    assert process.stdout is not None
    process.stdout.read(1)
    time.sleep(0.3)  # by now the pipe is full
    begun = time.monotonic()
    process.send_signal(number)
    assert process.wait(10) == 128 + number
    assert time.monotonic() - begun < 3


def test_progress_goes_to_stderr_alone(fastsync: Fastsync, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    done = run(fastsync, "fastsync cat -P a")
    assert done.stdout == CONTENT
    assert b"1 file copied" in done.stderr
    quiet = run(fastsync, "fastsync cat -q a")
    assert (quiet.stdout, quiet.stderr) == (CONTENT, b"")


# -- pipe --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["fastsync pipe to/f", "fastsync cp - to/f"])
@pytest.mark.parametrize("content", [b"", b"x", CONTENT], ids=len)
def test_standard_input_to_a_file(
    fastsync: Fastsync, tmp_path: Path, line: str, content: bytes
) -> None:
    done = run(fastsync, f"{line} --chunk-size 256K", content)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert (tmp_path / "to/f").read_bytes() == content
    assert os.listdir(tmp_path / "to") == ["f"]


@pytest.mark.parametrize(
    "line",
    [
        "fastsync pipe .",
        "fastsync pipe to/",
        "fastsync cp - .",
        "fastsync cp - a to",
        "fastsync pipe -",
        "fastsync sync - to",
        "fastsync mv - to",
        "fastsync rm -",
        "fastsync ls -",
    ],
)
def test_where_a_stream_cannot_go(fastsync: Fastsync, tmp_path: Path, line: str) -> None:
    done = run(fastsync, line, b"content")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, b"", 1)
    assert not (tmp_path / "to").exists()


def test_nothing_appears_when_the_run_is_ended(
    fastsync: Fastsync,
    tmp_path: Path,
    debris: Callable[[Path], list[Path]],
) -> None:
    command = fastsync.command("pipe", "f")
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=fastsync.environ,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(CONTENT)
    process.stdin.flush()
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 143
    process.communicate()
    assert not (tmp_path / "f").exists()
    assert debris(tmp_path) == []
