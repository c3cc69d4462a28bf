"""The ways into a server: what an SSH configuration says, jumps, certificates, questions on a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import asyncssh
import pytest
from sshd import OurServer, Sshd, running_sshd

if TYPE_CHECKING:
    from tests.conftest import Fastsync

TRANSPORTS = ["asyncssh", "openssh", "auto"]


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


def _host(name: str, sshd: Sshd, *more: str) -> str:
    lines = (
        f"Host {name}",
        "HostName 127.0.0.1",
        f"Port {sshd.port}",
        f"User {sshd.user}",
        f"IdentityFile {sshd.identity}",
        "IdentitiesOnly yes",
        f"UserKnownHostsFile {sshd.known_hosts}",
        *more,
    )
    return "\n    ".join(lines) + "\n"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").write_text("content")
    return tmp_path / "there"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_configuration_with_include_and_match(
    fastsync: Fastsync, sshd: Sshd, there: Path, tmp_path: Path, transport: str
) -> None:
    (tmp_path / "more").write_text(_host("alias", sshd).replace(f"Port {sshd.port}\n", "\n"))
    (tmp_path / "config").write_text(
        f"Include {tmp_path}/more\nMatch host 127.0.0.1\n    Port {sshd.port}\nHost *\n    Port 1\n"
    )
    way = ("--ssh-config", str(tmp_path / "config"), "--ssh-transport", transport)
    done = fastsync("ls", *way, f"sftp://alias{there}")
    assert done == (0, "file\n", ""), done


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_jump(
    fastsync: Fastsync,
    sshd: Sshd,
    there: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    transport: str,
) -> None:
    with running_sshd(tmp_path_factory.mktemp("jump")) as jump:
        config = _host("jump", jump) + _host("target", sshd, "ProxyJump jump")
        (tmp_path / "config").write_text(config)
        way = ("--ssh-config", str(tmp_path / "config"), "--ssh-transport", transport)
        before = sshd.logins()
        done = fastsync("cp", *way, f"sftp://target{there}/file", "copy")
        assert done == (0, "", ""), done
        assert jump.logins() > 0
        assert sshd.logins() > before
    assert (tmp_path / "copy").read_text() == "content"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_certificate(
    fastsync: Fastsync,
    there: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    transport: str,
) -> None:
    """The server knows no key of ours, only who has signed it."""
    keys = tmp_path_factory.mktemp("keys")
    for name in ("ca", "mine"):
        _keygen("-t", "ed25519", "-N", "", "-f", str(keys / name))
    folder = tmp_path_factory.mktemp("certified")
    options = [f"TrustedUserCAKeys {keys}/ca.pub", "AuthorizedKeysFile none"]
    with running_sshd(folder, options=options) as sshd:
        way = [*("--ssh-transport", transport), *("--known-hosts", str(sshd.known_hosts))]
        way += ["--ssh-config", str(sshd.config), "--identity", str(keys / "mine")]
        assert fastsync("ls", *way, sshd.url(there)).code == 5
        _keygen("-s", str(keys / "ca"), "-I", "me", "-n", sshd.user, str(keys / "mine.pub"))
        assert fastsync("ls", *way, sshd.url(there)) == (0, "file\n", "")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_host_with_a_certificate(
    fastsync: Fastsync,
    there: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    transport: str,
) -> None:
    """Of an authority that is not known: then the plain key counts, and is shown and accepted."""
    keys = tmp_path_factory.mktemp("keys")
    for name in ("ca", "key"):
        _keygen("-t", "ed25519", "-N", "", "-f", str(keys / name))
    _keygen("-s", str(keys / "ca"), "-I", "host", "-h", "-n", "127.0.0.1", str(keys / "key.pub"))
    fingerprint = asyncssh.read_public_key(keys / "key.pub").get_fingerprint()
    options = [f"HostKey {keys}/key", f"HostCertificate {keys}/key-cert.pub"]
    with running_sshd(tmp_path_factory.mktemp("certified"), options=options) as sshd:
        known = tmp_path / "known"
        way = ["--ssh-transport", transport, "--ssh-config", str(sshd.config)]
        way += ["--known-hosts", str(known), "--identity", str(sshd.identity), sshd.url(there)]
        refused = fastsync("ls", *way)
        assert refused.code == 5, refused
        assert f"the host key is not known: ED25519 {fingerprint}" in refused.stderr
        assert "--accept-new-host-key" in refused.stderr
        assert fastsync("ls", "--accept-new-host-key", *way).stdout == "file\n"
        known.write_text(f"@cert-authority [127.0.0.1]:* {(keys / 'ca.pub').read_text()}")
        assert fastsync("ls", *way) == (0, "file\n", "")
        # Another authority counts for nothing, and the plain key goes on to.
        other = f"@cert-authority * {sshd.identity.with_suffix('.pub').read_text()}"
        known.write_text(other + f"* {(keys / 'key.pub').read_text()}")
        assert fastsync("ls", *way) == (0, "file\n", "")
        known.write_text(other)
        refused = fastsync("ls", *way)
        assert (refused.code, fingerprint in refused.stderr) == (5, True), refused
        known.write_text(f"@revoked * {' '.join((keys / 'key.pub').read_text().split()[:2])}\n")
        refused = fastsync("ls", "--accept-new-host-key", *way)
        assert refused.code == 5, refused
        assert "revoked" in refused.stderr


def test_a_key_that_nobody_knows(
    fastsync: Fastsync, sshd: Sshd, there: Path, tmp_path: Path
) -> None:
    """The system's ssh tries first, asyncssh says how it went, and that is all."""
    _keygen("-t", "ed25519", "-N", "", "-f", str(tmp_path / "stranger"))
    way = ["--known-hosts", str(sshd.known_hosts), "--ssh-config", str(sshd.config)]
    before = sshd.log.read_text()
    done = fastsync("cp", *way, "--identity", "stranger", sshd.url(there / "file"), "copy")
    assert done.code == 5
    assert "log in with a key that the server knows" in done.stderr
    said = sshd.log.read_text().removeprefix(before)
    # Whoever only looked whether sshd was up may be told of as late as now.
    assert 1 <= said.count("by authenticating user") <= 2, said


@pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh is installed")
def test_nearby_the_system_s_ssh_does_it_all(
    fastsync: Fastsync, sshd: Sshd, there: Path, tmp_path: Path
) -> None:
    (there / "large").write_bytes(content := bytes(range(256)) * (96 << 10))
    script = (
        "import sys; from fastsync.cli.main import main\n"
        "try: sys.exit(main(sys.argv[1:]))\n"
        "finally: print(sorted({'asyncssh', 'cryptography'} & set(sys.modules)))"
    )
    way = ["--identity", str(sshd.identity), "--known-hosts", str(sshd.known_hosts)]
    command = [sys.executable, "-c", script, "cp", *way, "--ssh-config", str(sshd.config)]
    for source, copy in (
        (there / "large", sshd.url(there / "up")),
        (sshd.url(there / "up"), "down"),
    ):
        done = subprocess.run(
            [*command, source, copy],
            env=fastsync.environ,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
    assert (tmp_path / "down").read_bytes() == content


def _keygen(*arguments: str) -> None:
    quiet = subprocess.DEVNULL
    subprocess.run(["ssh-keygen", "-q", *arguments], check=True, stdin=quiet, stdout=quiet)


def _names(directory: str) -> list[str]:
    with os.scandir(directory) as found:
        return [each.name + "/" * each.is_dir(follow_symlinks=False) for each in found]


def test_the_home_of_a_user(fastsync: Fastsync, sshd: Sshd) -> None:
    way = ["--identity", str(sshd.identity), "--known-hosts", str(sshd.known_hosts)]
    way += ["--ssh-config", str(sshd.config)]
    home = os.path.realpath(os.path.expanduser(f"~{sshd.user}"))
    ours = fastsync("ls", *way, sshd.url(f"/~{sshd.user}/"))
    assert ours.code == 0, ours
    assert sorted(ours.stdout.split("\n")) == sorted(["", *_names(home)])
    missing = fastsync("ls", *way, sshd.url("/~nobody-of-that-name/"))
    assert missing.code == 2, missing
    assert "knows no home of nobody-of-that-name" in missing.stderr


# -- questions -----------------------------------------------------------------------------------------


_INTERRUPT = "\x03"


def on_terminal(fastsync: Fastsync, arguments: list[str], answers: list[str]) -> tuple[int, str]:
    """Run the command on a terminal of its own, and answer what it asks there; its code, and all that
    the terminal showed."""
    pid, fd = pty.fork()
    if pid == 0:
        with contextlib.suppress(OSError):
            os.chdir(fastsync.cwd)
            command = [os.fsdecode(each) for each in fastsync.command(*arguments)]
            os.execve(command[0], command, fastsync.environ)
        os._exit(127)
    shown = b""
    waiting = list(answers)
    seen = 0
    end = time.monotonic() + 60
    try:
        while time.monotonic() < end:
            if not select.select([fd], [], [], 1)[0]:
                continue
            try:
                data = os.read(fd, 4096)
            except OSError:  # EIO: the other side is closed (pty(7))
                break
            if not data:
                break
            shown += data
            if shown[seen:].rstrip().endswith(b":") and waiting:
                seen = len(shown)
                answer = waiting.pop(0)
                os.write(fd, answer.encode() + b"\n" * (answer != _INTERRUPT))
    finally:
        with contextlib.suppress(ProcessLookupError):
            if time.monotonic() >= end:
                os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert termios.tcgetattr(fd)[3] & termios.ECHO, "the terminal shows nothing any more"
        os.close(fd)
    return os.waitstatus_to_exitcode(status), shown.decode("utf-8", "replace")


@pytest.mark.parametrize(("answer", "code"), [("open sesame", 0), ("shut sesame", 5)])
def test_a_passphrase(
    fastsync: Fastsync, sshd: Sshd, there: Path, tmp_path: Path, answer: str, code: int
) -> None:
    """It is asked for once, and not shown."""
    key = tmp_path / "key"
    shutil.copy(sshd.identity, key)
    shutil.copy(f"{sshd.identity}.pub", f"{key}.pub")
    _keygen("-p", "-P", "", "-N", "open sesame", "-f", str(key))
    way = ["--identity", str(key), "--known-hosts", str(sshd.known_hosts)]
    way += ["--ssh-config", str(sshd.config)]
    arguments = ["cp", *way, sshd.url(there / "file"), "copy"]
    done, shown = on_terminal(fastsync, arguments, [answer])
    assert done == code, shown
    assert shown.count("Passphrase for") == 1
    assert answer not in shown
    assert (tmp_path / "copy").exists() == (code == 0)


class _Guarded(asyncssh.SSHServer):
    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return (username, password) == ("somebody", "open sesame")


@pytest.mark.parametrize(
    ("answer", "code"), [("open sesame", 0), ("not this", 5), (_INTERRUPT, 130)]
)
async def test_a_password(
    fastsync: Fastsync, there: Path, tmp_path: Path, answer: str, code: int
) -> None:
    server = OurServer(tmp_path / "server", login=_Guarded)
    await server.start()
    try:
        place = server.place
        way = ["--known-hosts", place["known_hosts"], "--ssh-config", place["ssh_config"]]
        arguments = ["cp", *way, server.url(there / "file"), "copy"]
        done, shown = await asyncio.to_thread(on_terminal, fastsync, arguments, [answer])
    finally:
        await server.stop()
    assert done == code, shown
    assert shown.count("Password for somebody@127.0.0.1") == 1
    assert answer not in shown
    assert (tmp_path / "copy").exists() == (code == 0)
