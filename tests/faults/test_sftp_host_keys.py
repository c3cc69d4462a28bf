"""Host keys that are unknown, changed, revoked or known by another name; files that are not there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import pytest
import pytest_asyncio
from sshd import OurServer

from fastsync.backend import StoreOptions
from fastsync.errors import AccessRefused, UsageError
from fastsync.location import parse
from fastsync_sftp.backend import SftpBackend


@pytest_asyncio.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OurServer]:
    """With a home of its own, in which the server is known."""
    one = OurServer(tmp_path / "server")
    await one.start()
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh/known_hosts").write_text((tmp_path / "server/known_hosts").read_text())
    monkeypatch.setenv("HOME", str(home))
    yield one
    await one.stop()


@pytest.fixture
def key(server: OurServer, tmp_path: Path) -> str:
    kind, data, *_ = (tmp_path / "server/host_key.pub").read_text().split()
    return f"{kind} {data}"


def _other(kind: str = "ssh-ed25519") -> str:
    return asyncssh.generate_private_key(kind).export_public_key().decode().strip()


async def _connect(server: OurServer, tmp_path: Path, *, host: str = "", **place: str) -> None:
    url = server.url(tmp_path)
    backend = SftpBackend()
    try:
        location = parse(f"sftp://{host}{tmp_path}" if host else url)
        await backend.connect(location, StoreOptions(place=server.place | place))
    finally:
        await backend.aclose()


@pytest.mark.parametrize("accept", ["true", "false"])
@pytest.mark.parametrize("more", ["", "[127.0.0.1]:{port} {key}\n"])
async def test_a_revoked_key(
    server: OurServer, tmp_path: Path, key: str, accept: str, more: str
) -> None:
    """It is refused, also where it is all that is known of the host, and where it is known, too."""
    known = tmp_path / "known"
    text = f"@revoked [127.0.0.1]:{server.port} {key}\n" + more.format(port=server.port, key=key)
    known.write_text(text)
    with pytest.raises(AccessRefused, match="revoked"):
        await _connect(server, tmp_path, known_hosts=str(known), accept_new_host_key=accept)
    assert known.read_text() == text


async def test_files_that_know_nobody(server: OurServer, tmp_path: Path) -> None:
    """Neither a file that is not there nor a configuration that names none stands for trust."""
    with pytest.raises(AccessRefused, match="not known"):
        await _connect(server, tmp_path, known_hosts=str(tmp_path / "none"))
    for names in ("none", "/dev/null"):
        (tmp_path / "config").write_text(f"Host *\n    UserKnownHostsFile {names}\n")
        with pytest.raises(AccessRefused, match="not known"):
            await _connect(server, tmp_path, known_hosts="", ssh_config=str(tmp_path / "config"))


async def test_a_key_of_another_kind_has_changed(server: OurServer, tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.write_text(f"[127.0.0.1]:{server.port} {_other('ecdsa-sha2-nistp256')}\n")
    with pytest.raises(AccessRefused, match=r"changed.*SHA256:.*ssh-keygen -R"):
        await _connect(server, tmp_path, known_hosts=str(known), accept_new_host_key="true")


async def test_what_is_known_without_the_port(server: OurServer, tmp_path: Path, key: str) -> None:
    """The same key is known; another one belongs to another server of that host, and means nothing."""
    known = tmp_path / "known"
    known.write_text(f"127.0.0.1 {key}")
    await _connect(server, tmp_path, known_hosts=str(known))
    known.write_text(text := f"127.0.0.1 {_other()}")  # no end of line
    with pytest.raises(AccessRefused, match="not known"):
        await _connect(server, tmp_path, known_hosts=str(known))
    await _connect(server, tmp_path, known_hosts=str(known), accept_new_host_key="true")
    assert known.read_text() == f"{text}\n[127.0.0.1]:{server.port} {key}\n"


async def test_a_configuration_with_files_that_are_not_there(
    server: OurServer, tmp_path: Path
) -> None:
    """They are passed over, as ssh does; a key or a configuration that was asked for is an error."""
    (tmp_path / "config").write_text(
        f"Host alias\n    HostName 127.0.0.1\n    Port {server.port}\n    User somebody\n"
        f"    IdentityFile {tmp_path}/none\n    IdentityFile {server.place['identity']}\n"
        f"    CertificateFile {tmp_path}/none.pub\n    HostKeyAlias alias\n"
        f"    UserKnownHostsFile {tmp_path}/known {server.place['known_hosts']}\n"
    )
    place = {"ssh_config": str(tmp_path / "config"), "identity": "", "known_hosts": ""}
    with pytest.raises(AccessRefused, match="not known"):
        await _connect(server, tmp_path, host="alias", **place)
    await _connect(server, tmp_path, host="alias", accept_new_host_key="true", **place)
    assert (tmp_path / "known").read_text().startswith("alias ssh-ed25519 ")
    await _connect(server, tmp_path, host="alias", **place)
    for setting in ("identity", "ssh_config"):
        with pytest.raises(UsageError, match=r"cannot be read: .*/none"):
            await _connect(server, tmp_path, host="alias", **{setting: f"{tmp_path}/none"})
