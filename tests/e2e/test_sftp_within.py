"""What one server does by itself, counted in bytes on the wire, and what it cannot do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fault_proxy import FaultProxy
from sshd import SFTP_SERVERS, Sshd, running_sshd

if TYPE_CHECKING:
    from tests.conftest import Fastsync, Picture, Plant

SIZE = 6_000_000


@pytest.fixture(scope="module", params=["copies", "cannot copy"])
def sshd(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sshd]:
    """One server with copy-data, and one without."""
    subsystem = next((each for each in SFTP_SERVERS if os.access(each, os.X_OK)), None)
    if subsystem is None:
        pytest.skip("no sftp-server is installed")
    if request.param == "cannot copy":
        subsystem += " -P copy-data"
    with running_sshd(tmp_path_factory.mktemp("sshd"), subsystem=subsystem) as server:
        yield server


@pytest.fixture
def wire(sshd: Sshd, tmp_path: Path) -> Iterator[FaultProxy]:
    with FaultProxy(sshd.port) as proxy:
        yield proxy


@pytest.fixture
def flags(sshd: Sshd, wire: FaultProxy, tmp_path: Path) -> list[str]:
    known = tmp_path / "known"
    text = sshd.known_hosts.read_text()
    known.write_text(text.replace(f"]:{sshd.port} ", f"]:{wire.port} "))
    return [
        *("--identity", str(sshd.identity), "--known-hosts", str(known)),
        *("--ssh-config", str(sshd.config), "--ssh-transport", "asyncssh"),
    ]


@pytest.fixture
def passed(wire: FaultProxy, request: pytest.FixtureRequest) -> Callable[[int], bool]:
    """Whether as many bytes passed as have to: `most` twice where the server cannot copy, nothing else."""
    can = "cannot" not in request.node.callspec.id

    def passed(most: int) -> bool:
        return wire.passed < 200_000 if can else 2 * most < wire.passed

    return passed


@pytest.mark.parametrize("verb", ["cp", "sync", "mv"])
def test_no_bytes_on_the_wire(
    fastsync: Fastsync,
    plant: Plant,
    picture: Callable[..., Picture],
    sshd: Sshd,
    wire: FaultProxy,
    flags: list[str],
    passed: Callable[[int], bool],
    tmp_path: Path,
    verb: str,
) -> None:
    top = f"sftp://{sshd.user}@127.0.0.1:{wire.port}{tmp_path}"
    plant(tmp_path / "there", {"large": os.urandom(SIZE), "dir/small": b"small"})
    before = picture(tmp_path / "there")
    arguments = {
        "cp": ("cp", "-R", *flags, f"{top}/there", f"{top}/copy"),
        "sync": ("sync", *flags, f"{top}/there", f"{top}/copy"),
        # A directory that is there already: no mere renaming.
        "mv": ("mv", *flags, f"{top}/there/", f"{top}/copy"),
    }[verb]
    done = fastsync(*arguments)
    assert done == (0, "", ""), done
    assert passed(SIZE)
    now = picture(tmp_path / "copy")
    times = {name: shot.mtime_ns // 10**9 for name, shot in now.items() if shot.kind == "file"}
    wanted = {name: shot.mtime_ns // 10**9 for name, shot in before.items() if shot.kind == "file"}
    assert times == wanted
    assert {name: shot.content for name, shot in now.items()} == {
        name: shot.content for name, shot in before.items()
    }


def test_hard_links_stay_together(
    fastsync: Fastsync, sshd: Sshd, wire: FaultProxy, flags: list[str], tmp_path: Path
) -> None:
    """From a disk to a server; the second name of a file costs no second upload."""
    source, there = tmp_path / "src", tmp_path / "there"
    source.mkdir()
    (source / "one").write_bytes(os.urandom(SIZE))
    os.utime(source / "one", (1e9, 1e9))  # one of this moment would be compared by content
    os.link(source / "one", source / "two")
    url = f"sftp://{sshd.user}@127.0.0.1:{wire.port}{there}"
    for _ in range(2):
        assert fastsync("sync", "--hard-links", *flags, "src", url) == (0, "", "")
        assert (there / "one").samefile(there / "two")
    assert wire.passed < 2 * SIZE
    assert (there / "two").read_bytes() == (source / "one").read_bytes()
    assert len(list(there.iterdir())) == 2


def test_holes_are_not_sent(
    fastsync: Fastsync, sshd: Sshd, wire: FaultProxy, flags: list[str], tmp_path: Path
) -> None:
    """Nor made up for on the server's disk; and the file is never short, though it ends in a hole."""
    with (tmp_path / "src").open("wb") as file:
        os.pwrite(file.fileno(), b"begin", 0)
        os.pwrite(file.fileno(), os.urandom(100_000), 20_000_000)
        os.ftruncate(file.fileno(), size := 48_000_001)
    there = tmp_path / "there"
    url = f"sftp://{sshd.user}@127.0.0.1:{wire.port}{there}"
    assert fastsync("cp", "--sparse", "--chunk-size", "7M", *flags, "src", url) == (0, "", "")
    assert wire.passed < 2_000_000
    assert there.read_bytes() == (tmp_path / "src").read_bytes()
    assert there.stat().st_size == size
    assert there.stat().st_blocks * 512 < size // 4
