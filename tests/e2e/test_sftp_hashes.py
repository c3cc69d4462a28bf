"""Files are compared by digests that the server computes, and by reading them where it does not."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fault_proxy import FaultProxy
from sshd import Sshd, running_sshd

if TYPE_CHECKING:
    from tests.conftest import Fastsync, Plant

SIZE = 5_000_000
NASTY = 'a\' "$(touch oops)" `touch oops`\\ ;&\n-n x'


@pytest.fixture(scope="module", params=["shell", "no shell"])
def sshd(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sshd]:
    options = ["ForceCommand internal-sftp"] if request.param == "no shell" else []
    with running_sshd(tmp_path_factory.mktemp("sshd"), options=options) as server:
        yield server


@pytest.fixture
def wire(sshd: Sshd) -> Iterator[FaultProxy]:
    with FaultProxy(sshd.port) as proxy:
        yield proxy


@pytest.fixture(params=["asyncssh", "openssh"])
def flags(
    sshd: Sshd, wire: FaultProxy, tmp_path: Path, request: pytest.FixtureRequest
) -> list[str]:
    known = tmp_path / "known"
    text = sshd.known_hosts.read_text()
    known.write_text(text.replace(f"]:{sshd.port} ", f"]:{wire.port} "))
    return [
        *("--identity", str(sshd.identity), "--known-hosts", str(known)),
        *("--ssh-config", str(sshd.config), "--ssh-transport", request.param),
    ]


@pytest.fixture
def has_shell(sshd: Sshd, request: pytest.FixtureRequest) -> bool:
    return "no shell" not in request.node.callspec.id


def test_content_is_compared_where_it_is(
    fastsync: Fastsync,
    plant: Plant,
    sshd: Sshd,
    wire: FaultProxy,
    flags: list[str],
    tmp_path: Path,
    has_shell: bool,
) -> None:
    spec = {NASTY: os.urandom(SIZE), "dir/large": os.urandom(SIZE), "small": b"small"}
    plant(tmp_path / "src", spec)
    plant(tmp_path / "there", spec)
    for path in (tmp_path / "there").rglob("*"):
        os.utime(path, (1_500_000_000, 1_500_000_000))
    url = f"sftp://{sshd.user}@127.0.0.1:{wire.port}{tmp_path}/there"
    done = fastsync("check", "--checksum", *flags, "src", url)
    assert done.stdout.count("only the time differs") == len(spec), done
    assert (wire.passed < SIZE) is has_shell
    noted = "no digests can be computed there"
    (tmp_path / "there/dir/large").write_bytes(os.urandom(SIZE))
    done = fastsync("sync", "--checksum", *flags, "src", url)
    assert done.code == 0, done
    assert done.stderr.count("\n") == (not has_shell), done.stderr
    assert (noted in done.stderr) is not has_shell
    for name, content in spec.items():
        assert (tmp_path / "there" / name).read_bytes() == content
    assert not list(tmp_path.rglob("oops"))


@pytest.mark.parametrize("transport", ["asyncssh", "openssh"])
def test_a_server_that_never_tells_a_digest(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, transport: str
) -> None:
    """As on a disk that hangs below it: the files are read, and what the run has begun there is ended."""
    spec = {f"{number}": os.urandom(SIZE) for number in range(6)}
    plant(tmp_path / "src", spec)
    plant(tmp_path / "there", spec)
    (tmp_path / "there/3").write_bytes(os.urandom(SIZE))
    tools = tmp_path / "tools"
    plant(tools, dict.fromkeys(("sha256sum", "shasum", "md5sum"), "#!/bin/sh\nexec sleep 30\n"))
    for tool in tools.iterdir():
        tool.chmod(0o755)
    (tmp_path / "sshd").mkdir()
    with running_sshd(tmp_path / "sshd", options=[f"SetEnv PATH={tools}:{os.defpath}"]) as server:
        place = [f"--{key.replace('_', '-')}={value}" for key, value in server.place.items()]
        place += ["--ssh-transport", transport, "--stall-timeout", "2"]
        url = server.url(tmp_path / "there")
        began = time.monotonic()
        done = fastsync("sync", "--checksum", *place, "src", url)
    assert done.code == 0, done
    assert time.monotonic() - began < 20
    assert done.stderr.count("its shell answers no more") == 1
    for name, content in spec.items():
        assert (tmp_path / "there" / name).read_bytes() == content


def test_a_manifest_is_checked_there(
    fastsync: Fastsync,
    plant: Plant,
    sshd: Sshd,
    wire: FaultProxy,
    flags: list[str],
    tmp_path: Path,
    has_shell: bool,
) -> None:
    content = os.urandom(SIZE)
    plant(tmp_path / "there", {"large": content})
    (tmp_path / "list").write_text(f"{hashlib.sha256(content).hexdigest()}  large\n")
    url = f"sftp://{sshd.user}@127.0.0.1:{wire.port}{tmp_path}/there"
    assert fastsync("check", "--manifest", "list", *flags, url).code == 0
    assert (wire.passed < SIZE) is has_shell
    (tmp_path / "there/large").write_bytes(content[:-1] + b"?")
    assert fastsync("check", "--manifest", "list", *flags, url).code == 4
