"""Servers for tests of SFTP: a private sshd, and one in this process that can be made to fail."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncssh
import asyncssh.sftp
import pytest

SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server")


@dataclass(frozen=True)
class Sshd:
    """Where it listens, and the files to log in with."""

    port: int
    user: str
    identity: Path
    known_hosts: Path
    config: Path  # of a client: nothing that a person has configured
    pid: int
    log: Path

    @property
    def place(self) -> dict[str, str]:
        """The settings of a location at this server."""
        return {
            "identity": str(self.identity),
            "known_hosts": str(self.known_hosts),
            "ssh_config": str(self.config),
        }

    def logins(self) -> int:
        """How many there have been."""
        return self.log.read_text("utf-8", "replace").count("Accepted publickey")

    def url(self, path: str | Path) -> str:
        return f"sftp://{self.user}@127.0.0.1:{self.port}{path}"


def find_sshd() -> str:
    """The server's path, which has to be absolute for it to start itself again."""
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip("no sshd is installed")
    return found


@contextlib.contextmanager
def running_sshd(
    folder: Path, *, subsystem: str | None = None, options: Sequence[str] = ()
) -> Iterator[Sshd]:
    """Start one, and end it with all of its children's connections."""
    sshd = find_sshd()
    for name in ("host_key", "identity"):
        _key(folder / name)
    public = (folder / "identity.pub").read_text()
    (folder / "authorized_keys").write_text(public)
    if subsystem is None:
        servers = [path for path in SFTP_SERVERS if os.access(path, os.X_OK)]
        subsystem = servers[0] if servers else "internal-sftp"
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    port = free_port()
    config = folder / "sshd_config"
    config.write_text(
        "\n".join(
            (
                *options,  # the first value of an option counts
                f"Port {port}",
                "ListenAddress 127.0.0.1",
                f"HostKey {folder / 'host_key'}",
                f"AuthorizedKeysFile {folder / 'authorized_keys'}",
                f"PidFile {folder / 'pid'}",
                "StrictModes no",
                "UsePAM no",
                "PasswordAuthentication no",
                "KbdInteractiveAuthentication no",
                "PermitRootLogin yes",
                "MaxStartups 100",
                f"Subsystem sftp {subsystem}",
                "",
            )
        )
    )
    host_key = (folder / "host_key.pub").read_text()
    known_hosts = folder / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{port} {host_key}")
    client = folder / "ssh_config"
    client.write_text("")
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen([sshd, "-D", "-e", "-f", str(config)], stdout=log, stderr=log)
        try:
            _wait(port, process, folder / "sshd.log")
            user = getpass.getuser()
            log_file = folder / "sshd.log"
            yield Sshd(port, user, folder / "identity", known_hosts, client, process.pid, log_file)
        finally:
            process.terminate()
            process.wait(10)


def _key(path: Path) -> None:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"sshd did not start: {log.read_text()}")


class OurServer:
    """A server in this process, by asyncssh, that can do as little or behave as badly as a test wants."""

    def __init__(
        self,
        folder: Path,
        server: type[asyncssh.SFTPServer] = asyncssh.SFTPServer,
        login: type[asyncssh.SSHServer] = asyncssh.SSHServer,
    ) -> None:
        self._login = login
        self._folder = folder
        self._server = server
        self._listener: asyncssh.SSHAcceptor | None = None
        self.connections: list[asyncssh.SSHServerConnection] = []
        self.port = 0

    async def start(self) -> None:
        folder, keep = self._folder, self.connections
        folder.mkdir()
        for name in ("host_key", "identity"):
            key = asyncssh.generate_private_key("ssh-ed25519")
            key.write_private_key(folder / name)
            key.write_public_key(folder / f"{name}.pub")
            (folder / name).chmod(0o600)  # else the system's ssh does not take it

        class Login(self._login):  # type: ignore[misc, name-defined]
            def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
                keep.append(conn)

        self._listener = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=Login,
            server_host_keys=[folder / "host_key"],
            authorized_client_keys=str(folder / "identity.pub"),
            sftp_factory=self._make,
        )
        self.port = self._listener.get_port()
        host_key = (folder / "host_key.pub").read_text()
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {host_key}")
        (folder / "ssh_config").write_text("")

    def _make(self, channel: asyncssh.SSHServerChannel[bytes]) -> asyncssh.SFTPServer:
        return self._server(channel)

    @property
    def place(self) -> dict[str, str]:
        """The settings of a location at this server."""
        return {
            "identity": str(self._folder / "identity"),
            "known_hosts": str(self._folder / "known_hosts"),
            "ssh_config": str(self._folder / "ssh_config"),
            "ssh_transport": "asyncssh",
        }

    def url(self, path: str | Path) -> str:
        return f"sftp://somebody@127.0.0.1:{self.port}{path}"

    def cut(self) -> None:
        """Cut all connections, as a network does."""
        for connection in self.connections:
            connection.abort()
        self.connections.clear()

    async def stop(self) -> None:
        self.cut()
        assert self._listener is not None
        self._listener.close()
        await self._listener.wait_closed()


@contextlib.contextmanager
def no_extensions() -> Iterator[None]:
    """Servers of asyncssh speak plain version 3 meanwhile."""
    handler = asyncssh.sftp.SFTPServerHandler
    kept = handler._extensions
    handler._extensions = []
    try:
        yield
    finally:
        handler._extensions = kept
