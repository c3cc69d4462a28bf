"""What counts as verified in the summary, and `--verify reread`."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hostile_s3 import HostileS3, flip, lost_reply, slow_down
from sshd import Sshd, running_sshd
from web import ScriptedServer, serve_bytes

import fastsync as library
from fastsync.testing.vocabulary import noise
from fastsync_local import copying

if TYPE_CHECKING:
    from tests.conftest import Done, Fastsync, Plant, Spec

MIB = 1 << 20
LARGE = noise(9 * MIB + 5)
TREE: Spec = {"small": "small", "empty": "", "dir/large": LARGE}


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def src(plant: Plant, tmp_path: Path) -> Path:
    return plant(tmp_path / "src", TREE)


def counts(done: Done) -> tuple[int, int, int]:
    """Copied, verified, unverified."""
    assert done.code == 0, done
    total = json.loads(done.stdout.splitlines()[-1])
    return total["copied"], total["verified"], total["unverified"]


def contents(root: Path) -> dict[str, bytes]:
    paths = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


@pytest.mark.usefixtures("src")
@pytest.mark.parametrize("output", [(), ("-v",)], ids=["batches", "items"])
def test_local(fastsync: Fastsync, tmp_path: Path, output: tuple[str, ...]) -> None:
    """Copies inside the kernel compare nothing, unless content is to count."""
    copy = ("cp", "-R", "--json", *output)
    assert counts(fastsync(*copy, "src/", "plain")) == (3, 0, 3)
    assert counts(fastsync(*copy, "--checksum", "src/", "sums")) == (3, 3, 0)
    assert counts(fastsync(*copy, "--checksum", "src/", "sums")) == (0, 0, 0)
    assert counts(fastsync(*copy, "--verify", "reread", "--durable", "src/", "again")) == (3, 3, 0)
    for name in ("plain", "sums", "again"):
        assert contents(tmp_path / name) == contents(tmp_path / "src")
    done = fastsync("cp", "--summarize", "src/small", "other")
    assert "\nVerified: 0 files, unverified: 1 files\n" in done.stdout


def test_a_dry_run_and_links_verify_nothing(fastsync: Fastsync, src: Path) -> None:
    os.link(src / "small", src / "twin")
    assert counts(fastsync("cp", "-R", "-n", "--json", "--checksum", "src/", "to")) == (4, 0, 4)
    done = fastsync("cp", "-R", "--json", "--hard-links", "--checksum", "src/", "to")
    assert counts(done) == (4, 3, 1)  # the other name was not compared


@pytest.mark.usefixtures("src")
def test_bucket(fastsync: Fastsync, hostile_s3: HostileS3, tmp_path: Path) -> None:
    """Digests go with what is sent, and come with what is fetched; a try that failed counts nothing."""
    bucket = hostile_s3.make_bucket("bucket")
    fastsync.environ |= hostile_s3.environ
    hostile_s3.on("PutObject", slow_down(), key="one/small")
    hostile_s3.on("UploadPart", lost_reply(), key="one/dir/large")
    copy = ("cp", "-R", "--json", "-c", "5M")
    top = f"s3://{bucket}"
    assert counts(fastsync(*copy, "src/", f"{top}/one")) == (3, 3, 0)
    hostile_s3.on("GetObject", slow_down(), key="one/small")
    assert counts(fastsync(*copy, f"{top}/one/", "back")) == (3, 3, 0)
    assert contents(tmp_path / "back") == contents(tmp_path / "src")
    assert counts(fastsync(*copy, f"{top}/one/", f"{top}/two")) == (3, 0, 3)
    again = (*copy, "--verify", "reread")
    assert counts(fastsync(*again, f"{top}/two/", f"{top}/three")) == (3, 3, 0)
    assert counts(fastsync(*again, "src/", f"{top}/four")) == (3, 3, 0)
    assert counts(fastsync(*again, f"{top}/four/", "four")) == (3, 3, 0)
    assert contents(tmp_path / "four") == contents(tmp_path / "src")


@pytest.mark.usefixtures("src")
def test_a_bucket_that_keeps_other_bytes(fastsync: Fastsync, hostile_s3: HostileS3) -> None:
    """Nothing shows before the end there: the object is read right after."""
    bucket = hostile_s3.make_bucket("bucket")
    fastsync.environ |= hostile_s3.environ
    hostile_s3.on("GetObject", flip(3), key="small", times=None)
    done = fastsync("cp", "--verify", "reread", "src/small", f"s3://{bucket}/small")
    assert (done.code, "what was written is not what was read" in done.stderr) == (4, True), done


@pytest.mark.usefixtures("src")
def test_sftp(fastsync: Fastsync, sshd: Sshd, tmp_path: Path) -> None:
    more = (
        *("--identity", str(sshd.identity), "--known-hosts", str(sshd.known_hosts)),
        *("--ssh-config", str(sshd.config)),
    )
    copy = ("cp", "-R", "--json", "-c", "4M", *more)
    assert counts(fastsync(*copy, "src/", sshd.url(tmp_path / "up"))) == (3, 0, 3)
    again = (*copy, "--verify", "reread")
    assert counts(fastsync(*again, "src/", sshd.url(tmp_path / "again"))) == (3, 3, 0)
    assert counts(fastsync(*again, sshd.url(tmp_path / "again") + "/", "down")) == (3, 3, 0)
    for name in ("up", "again", "down"):
        assert contents(tmp_path / name) == contents(tmp_path / "src")


@pytest.mark.parametrize("told", [True, False])
async def test_web(tmp_path: Path, told: bool) -> None:
    """By a digest, if the server tells one; read back by what came, which is fetched once."""
    digest = base64.b64encode(hashlib.sha256(LARGE).digest()).decode()
    headers = {"Repr-Digest": f"sha-256=:{digest}:"} if told else {}
    async with ScriptedServer(serve_bytes(LARGE, headers)) as server:
        url = f"http://127.0.0.1:{server.port}/f"
        for verify, expected in (("digest", int(told)), ("reread", 1)):
            server.asked.clear()
            summary = await library.async_cp(
                url, str(tmp_path / verify), verify=verify, chunk_size="2M", checksum=False
            )
            assert (summary.exit_code, summary.totals.files_verified) == (0, expected)
            assert (tmp_path / verify).read_bytes() == LARGE
            ranges = [asked.headers.get("range") for asked in server.asked if asked.method == "GET"]
            assert len(ranges) == len(set(ranges))


# -- what is written wrongly -----------------------------------------------------------------------


def spoil(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    """Let every write of that module go wrong by a bit."""
    honest = copying.write_all

    def write(fd: int, data: memoryview, position: int) -> None:
        wrong = bytearray(data)
        wrong[len(wrong) // 2] ^= 1
        honest(fd, memoryview(wrong), position)

    monkeypatch.setattr(module, "write_all", write)


@pytest.mark.parametrize("size", [0, 1000, 5 * MIB])
def test_a_disk_that_keeps_other_bytes(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    debris: Callable[[Path], list[Path]],
    size: int,
) -> None:
    """The old file stays, and nothing is left behind; without a second look nobody would know."""
    (tmp_path / "source").write_bytes(noise(size))
    spoil(monkeypatch, copying)
    # Neither a clone nor a call that copies in the kernel.
    monkeypatch.setattr(copying, "BUFFER", 64)
    monkeypatch.setattr(copying.Ladder, "clone", lambda *_: False)
    for rung in ("_by_copy_file_range", "_by_sendfile"):
        monkeypatch.setattr(copying.Ladder, rung, lambda _self, _a, _b, position, _stop: position)
    for verify, code in (("reread", 4 if size else 0), ("digest", 0)):
        (tmp_path / "target").write_bytes(b"old")
        summary = library.cp(tmp_path / "source", tmp_path / "target", verify=verify)
        assert summary.exit_code == code
        assert summary.totals.files_verified == (verify == "reread" and not size)
        assert debris(tmp_path) == []
        if code:
            assert (tmp_path / "target").read_bytes() == b"old"
            assert "not what was read" in str(summary.failures[0].error)


async def test_a_download_that_is_written_wrongly(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, debris: Callable[[Path], list[Path]]
) -> None:
    from fastsync_local import files

    spoil(monkeypatch, files)
    (tmp_path / "target").write_bytes(b"old")
    async with ScriptedServer(serve_bytes(LARGE)) as server:
        url = f"http://127.0.0.1:{server.port}/f"
        summary = await library.async_cp(
            url, str(tmp_path / "target"), verify="reread", resume=False
        )
    assert summary.exit_code == 4
    assert (tmp_path / "target").read_bytes() == b"old"
    assert debris(tmp_path) == []
