"""Servers that can less than usual: all of it works, and one line says what is missing where that matters."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from s3_servers import find
from sshd import SFTP_SERVERS, free_port, running_sshd

if TYPE_CHECKING:
    from tests.conftest import Fastsync, Picture, Plant


@dataclass(frozen=True)
class Odd:
    """`top` is the folder here that is `place` there; `notes` is what a run with uploads has to say."""

    top: Path
    place: str
    flags: list[str]
    notes: int
    keeps_attributes: bool = True
    keeps_links: bool = True


@contextlib.contextmanager
def chrooted(folder: Path) -> Iterator[Odd]:
    """sshd's internal-sftp in a chroot, with no shell and nothing around it."""
    if os.geteuid() != 0:
        pytest.skip("only root can change the root")
    # Every directory above has to be root's alone, which /tmp is not (sshd_config(5), ChrootDirectory).
    root = Path(tempfile.mkdtemp(prefix="fastsync-test-", dir="/run"))
    try:
        root.chmod(0o755)
        (root / "data").mkdir()
        options = ["ForceCommand internal-sftp", f"ChrootDirectory {root}"]
        with running_sshd(folder, subsystem="internal-sftp", options=options) as sshd:
            yield Odd(root / "data", sshd.url("/data"), _flags(sshd.place), 0)
    finally:
        shutil.rmtree(root)


@contextlib.contextmanager
def bare(folder: Path) -> Iterator[Odd]:
    """sshd with nothing but what version 3 has, less the setting of attributes."""
    server = next((each for each in SFTP_SERVERS if os.access(each, os.X_OK)), None)
    if server is None:
        pytest.skip("no sftp-server is installed")
    missing = "limits,posix-rename,statvfs,fstatvfs,hardlink,fsync,lsetstat,expand-path,copy-data"
    subsystem = f"{server} -P {missing},users-groups-by-id,home-directory,setstat,fsetstat"
    (folder / "data").mkdir()
    with running_sshd(folder, subsystem=subsystem) as sshd:
        # Attributes; and once something is replaced, that it takes two steps.
        yield Odd(folder / "data", sshd.url(folder / "data"), _flags(sshd.place), 1, False)


@contextlib.contextmanager
def rclone(folder: Path) -> Iterator[Odd]:
    """``rclone serve sftp``: another implementation (Go), without links, and commands of its own; what it
    was given is on its disk a little later."""
    program = find("rclone") or pytest.skip("rclone is not installed")
    for name in ("host_key", "identity"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    (folder / "data").mkdir()
    port = free_port()
    host_key = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
    (folder / "config").write_text("")
    command = [
        program, "serve", "sftp", str(folder / "data"), "--addr", f"127.0.0.1:{port}",
        "--authorized-keys", str(folder / "identity.pub"), "--key", str(folder / "host_key"),
        "--user", "somebody", "--vfs-cache-mode", "writes", "--vfs-write-back", "100ms",
        "--cache-dir", str(folder / "cache"),
        "--config", str(folder / "none.conf"),
    ]  # fmt: skip
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.05)
            place = {
                "identity": str(folder / "identity"),
                "known_hosts": str(folder / "known_hosts"),
                "ssh_config": str(folder / "config"),
            }
            url = f"sftp://somebody@127.0.0.1:{port}/"
            yield Odd(folder / "data", url.rstrip("/"), _flags(place), 0, keeps_links=False)
        finally:
            process.terminate()


def _flags(place: dict[str, str]) -> list[str]:
    return [f"--{key.replace('_', '-')}={value}" for key, value in place.items()]


@pytest.fixture(scope="module", params=[chrooted, bare, rclone], ids=lambda each: each.__name__)
def odd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Odd]:
    folder = tmp_path_factory.mktemp(request.param.__name__)
    with request.param(folder) as server:
        yield server


def test_all_that_there_is_to_do(
    fastsync: Fastsync,
    plant: Plant,
    picture: Callable[..., Picture],
    odd: Odd,
    eventually: Callable[[Callable[[], object]], None],
    tmp_path: Path,
) -> None:
    spec: dict[str, str | bytes | Path] = {f"many/{number:02}": f"{number}" for number in range(40)}
    spec |= {"large": os.urandom(5_000_000), "dir/sub/a": "a", "empty/": ""}
    if odd.keeps_links:
        spec["link"] = Path("dir/sub/a")
    plant(tmp_path / "src", spec)

    def contents(root: Path) -> dict[str, tuple[str, bytes]]:
        try:
            return {name: (shot.kind, shot.content) for name, shot in picture(root).items()}
        except FileNotFoundError:
            return {}  # something is still being put in its place

    def times(root: Path) -> dict[str, int]:
        shots = picture(root).items()
        return {name: shot.mtime_ns // 10**9 for name, shot in shots if shot.kind == "file"}

    there = odd.top / "tree"
    url = f"{odd.place}/tree"
    done = fastsync("sync", "--chunk-size", "1M", *odd.flags, "src", url)
    assert done.code == 0, done
    assert done.stderr.count("\n") == odd.notes, done.stderr
    eventually(lambda: contents(there) == contents(tmp_path / "src"))
    if odd.keeps_attributes:
        eventually(lambda: times(there) == times(tmp_path / "src"))
        done = fastsync("sync", "--json", *odd.flags, "src", url)
        assert '"copied":0' in done.stdout.replace(" ", ""), done
    # What stands there is replaced, deleted, renamed, listed, and comes back.
    (tmp_path / "src/large").write_bytes(os.urandom(3_000_000))
    (tmp_path / "src/dir/sub/a").write_text("another")
    (tmp_path / "src/many/00").unlink()
    done = fastsync("sync", "--delete", *odd.flags, "src", url)
    assert done.code == 0, done
    eventually(lambda: contents(there) == contents(tmp_path / "src"))
    done = fastsync("check", "--checksum", *odd.flags, "src", url)
    assert done.code == (not odd.keeps_attributes), done
    assert "content differs" not in done.stdout
    assert fastsync("mv", *odd.flags, f"{url}/many", f"{url}/some").code == 0
    done = fastsync("sync", *odd.flags, url, "back")
    assert done.code == 0, done
    names = {
        name.replace("many", "some"): each for name, each in contents(tmp_path / "src").items()
    }
    assert contents(tmp_path / "back") == names
    eventually(lambda: not list(odd.top.rglob(".fs-*")))
