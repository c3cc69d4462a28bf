"""Where the system's ssh may log in first, and how near a server is by what TCP says."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastsync import nearness
from fastsync.backend import StoreOptions
from fastsync.location import parse
from fastsync_sftp import by_openssh
from fastsync_sftp.agreeing import agree
from fastsync_sftp.place import place_of


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    kinds = {"open": ("-N", ""), "locked": ("-N", "secret"), "old": ("-N", "secret", "-m", "PEM")}
    for name, options in kinds.items():
        command = ["ssh-keygen", "-q", "-t", "ecdsa", *options, "-f", str(folder / name)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return folder


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user with another home than the system says, and without an agent."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


def _agree(url: str = "sftp://me@host/", **settings: str) -> bool:
    options = StoreOptions(place=settings)
    return agree(place_of(parse(url), options), options)


def test_a_key_and_a_list_of_hosts_are_enough(keys: Path) -> None:
    key = {"identity": str(keys / "open"), "known_hosts": str(keys / "known")}
    assert _agree(**key)
    assert not _agree("sftp://me:password@host/", **key)
    assert not _agree(**key, accept_new_host_key="true")


def test_a_key_with_a_passphrase_takes_an_agent(
    keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("locked", "old", "missing"):
        assert not _agree(identity=str(keys / name), known_hosts=str(keys / "known"))
    monkeypatch.setenv("SSH_AUTH_SOCK", "/agent")
    assert _agree(identity=str(keys / "locked"), known_hosts=str(keys / "known"))


def test_ssh_would_look_into_another_home(keys: Path) -> None:
    assert not _agree(identity=str(keys / "open"))
    assert not _agree(known_hosts=str(keys / "known"))


@pytest.mark.parametrize(
    ("more", "is_same"),
    [
        ("# ProxyJump is not used\n\nHost a *.b !c\n\tHostName d\n Port = 22\n", True),
        ('"ProxyJump" other\n', False),
        ("Compression yes\nStrictHostKeyChecking no\n", True),
        ("Include more\n", False),
        ("proxycommand=nc %h %p\n", False),
        ("Match host a\n", False),
        ("HostKeyAlgorithms ssh-rsa\n", False),
        ("IdentityFile ~/key\n", False),
        ("IdentityFile %d/key\n", False),
    ],
)
def test_a_configuration(keys: Path, tmp_path: Path, more: str, is_same: bool) -> None:
    config = tmp_path / "config"
    hosts = f"UserKnownHostsFile {keys}/known\nIdentityFile {keys}/open\n"
    config.write_text(hosts + more)
    assert _agree(ssh_config=str(config)) == is_same
    usual = tmp_path / ".ssh/config"
    usual.parent.mkdir()
    usual.write_text(hosts + more)
    assert _agree() == is_same


def test_a_configuration_that_cannot_be_read(keys: Path, tmp_path: Path) -> None:
    key = {"identity": str(keys / "open"), "known_hosts": str(keys / "known")}
    (tmp_path / "config").write_bytes(b"Host \xff\n")
    assert not _agree(**key, ssh_config=str(tmp_path / "config"))
    assert not _agree(**key, ssh_config=str(tmp_path / "missing"))


def test_options_that_ssh_cannot_set(keys: Path) -> None:
    key = {"identity": str(keys / "open"), "known_hosts": str(keys / "known")}
    options = StoreOptions(place=key, congestion_control="bbr")
    assert not agree(place_of(parse("sftp://me@host/"), options), options)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_system_knows_how_near_a_server_is(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip("no such address here")
    script = (
        "import socket, sys; s = socket.create_connection((sys.argv[1], int(sys.argv[2])));"
        "s.sendall(b'x'); s.recv(1); print('', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, host, str(listener.getsockname()[1])]
    pipe = subprocess.PIPE
    with listener, subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        peer, _ = listener.accept()
        with peer:
            peer.sendall(peer.recv(1))
            assert process.stdout is not None
            process.stdout.readline()
            assert 0 < nearness.of_socket(peer) < math.inf
            found = nearness.of_process(process.pid)
            process.communicate()
    if found == math.inf:
        pytest.skip("the system does not tell of other processes")
    assert 0 < found < 10


def test_nothing_is_known_of_who_has_no_connection() -> None:
    assert nearness.of_process(os.getpid()) == math.inf
    assert nearness.of_process(2**22 + 1) == math.inf


async def test_a_process_that_goes_while_it_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end may be noticed between the last look and the signal."""

    class Late:
        asked = 0

        async def wait(self) -> int:
            self.asked += 1
            if self.asked == 1:
                await asyncio.sleep(60)
            return 255

        def kill(self) -> None:
            raise ProcessLookupError

    class Silent:
        def close(self) -> None: ...

    monkeypatch.setattr(by_openssh, "_END_S", 0.001)
    late: Any = Late()
    silent: Any = Silent()
    place: Any = None
    await by_openssh.OpensshProcess(place, late, silent).end()
    assert late.asked == 2
