"""`fastsync cat` and streams from the web: in order, in bounded memory, at the reader's pace."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from web import Answer, Asked, ScriptedServer, WebServer, make_tls, running_nginx, serve_bytes

from fastsync.testing.vocabulary import noise

if TYPE_CHECKING:
    from tests.conftest import Fastsync

CONTENT = noise(3_000_001)
MIB = 1 << 20
CHUNKS = ("-c", "16", "--chunk-size", "128K")


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WebServer, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("tls")
    tls = make_tls(folder)
    with running_nginx(folder, tls=tls) as server:
        (server.root / "f").write_bytes(CONTENT)
        (server.root / "g").write_bytes(b"second")
        yield server, {"SSL_CERT_FILE": str(tls.authority)}


def run(
    fastsync: Fastsync, line: str, env: dict[str, str], stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """A line of shell; `fastsync` in it is the command."""
    command = " ".join(map(str, fastsync.command()))
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line.replace("fastsync", command)],
        check=False,
        cwd=fastsync.cwd,
        env={**fastsync.environ, **env},
        input=stdin,
        capture_output=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("fastsync cat -c 16 --chunk-size 128K URL/f | cat", CONTENT),
        ("fastsync cat -c 16 --chunk-size 128K URL/f > out; cat out", CONTENT),
        ("fastsync cat -c 1 --chunk-size 1M URL/f", CONTENT),
        ("fastsync cat -c 4 --chunk-size 64K URL/f URL/g URL/f", CONTENT + b"second" + CONTENT),
        (
            "fastsync cat -c 4 --chunk-size 64K --offset 1M --count 300K URL/f",
            CONTENT[MIB:][:307200],
        ),
        ("fastsync cat --offset 5 URL/g URL/f", b"d" + CONTENT[5:]),
        ("fastsync cp URL/f -", CONTENT),
        ("fastsync cp -p 16 --chunk-size 128K URL/f -", CONTENT),
        ("fastsync cat 'URL/*'", CONTENT + b"second"),
        ("fastsync cat -q -P URL/g", b"second"),
    ],
)
def test_in_order(
    fastsync: Fastsync, nginx: tuple[WebServer, dict[str, str]], line: str, wanted: bytes
) -> None:
    server, env = nginx
    done = run(fastsync, line.replace("URL", server.url), env)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == wanted


def test_progress_is_on_stderr(fastsync: Fastsync, nginx: tuple[WebServer, dict[str, str]]) -> None:
    server, env = nginx
    done = run(fastsync, f"fastsync cat -P {server.url}/f", env)
    assert done.stdout == CONTENT
    assert b"1 file copied" in done.stderr


def test_a_reader_that_has_seen_enough(
    fastsync: Fastsync, nginx: tuple[WebServer, dict[str, str]]
) -> None:
    server, env = nginx
    line = "fastsync cat -c 4 --chunk-size 64K URL/f | head -c 10; echo -n ${PIPESTATUS[0]}"
    done = run(fastsync, line.replace("URL", server.url), env)
    assert (done.stdout, done.stderr) == (CONTENT[:10] + b"141", b"")


def test_nothing_is_written_if_a_place_is_wrong(
    fastsync: Fastsync, nginx: tuple[WebServer, dict[str, str]]
) -> None:
    server, env = nginx
    done = run(fastsync, f"fastsync cat {server.url}/f {server.url}/nope", env)
    assert (done.returncode, done.stdout) == (3, b"")
    assert re.fullmatch(rb"fastsync: error: https://[^ ]*/nope: [^\n]*\n", done.stderr)


async def test_a_part_that_is_cut_is_fetched_on(fastsync: Fastsync) -> None:
    good = serve_bytes(CONTENT)
    cut: set[str] = set()

    def script(asked: Asked) -> Answer:
        answer, wanted = good(asked), asked.headers.get("range", "").rpartition("-")[2]
        if wanted not in cut and len(answer.body) > 1000:
            cut.add(wanted)
            told = {**answer.headers, "Content-Length": str(len(answer.body))}
            return Answer(answer.status, told, answer.body[:1000], cuts=True)
        return answer

    async with ScriptedServer(script) as server:
        done = await asyncio.to_thread(
            run, fastsync, f"fastsync cat {' '.join(CHUNKS)} {server.url}/f", {}
        )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == CONTENT
    assert len(cut) >= len(CONTENT) // (128 << 10)


@pytest.mark.parametrize("to", ["| cat", "> out; code=$?; cat out; exit $code"])
@pytest.mark.parametrize("who", ["user", "server"])
@pytest.mark.parametrize("is_right", [True, False])
async def test_a_digest_is_of_what_is_written(
    fastsync: Fastsync, to: str, who: str, is_right: bool
) -> None:
    """Ranges that come side by side are added up in order, into a pipe and into a file."""
    digest = hashlib.sha256(CONTENT if is_right else b"another")
    told = base64.b64encode(digest.digest()).decode()
    headers = {"Repr-Digest": f"sha-256=:{told}:"} if who == "server" else {}
    known = f"--checksum-of sha256:{digest.hexdigest()}" if who == "user" else ""
    async with ScriptedServer(serve_bytes(CONTENT, headers)) as server:
        line = f"fastsync cat {' '.join(CHUNKS)} {known} {server.url}/f {to}"
        done = await asyncio.to_thread(run, fastsync, line, {})
    if is_right:
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout == CONTENT
    else:
        assert done.returncode == 4
        assert CONTENT.startswith(done.stdout)
        assert len(done.stdout) < len(CONTENT)


async def test_a_slow_reader_holds_the_network_back(
    fastsync: Fastsync, started: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """Nobody reads: no more is asked for than may be held, and no more memory is used."""
    content = bytes(64 * MIB)
    async with ScriptedServer(serve_bytes(content)) as server:
        process = started("cat", "-c", "4", "--chunk-size", "1M", f"{server.url}/f")
        asked, deadline = -1, time.monotonic() + 20
        while asked < 5 or asked != len(server.asked):
            assert time.monotonic() < deadline
            asked = len(server.asked)
            await asyncio.sleep(0.7)
        # The look, eight pieces in memory, and what a pipe of 1 MiB takes.
        assert asked <= 1 + 8 + 2
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert peak is not None
        assert int(peak[1]) < 80_000
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), True)
        read = await asyncio.to_thread(process.stdout.read)
        assert read == content
        assert process.wait(10) == 0
