"""The real command against a real sshd: trees go there and back unchanged, and host keys are checked."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sshd import Sshd, running_sshd

if TYPE_CHECKING:
    from tests.conftest import Fastsync, Picture, Plant, Spec

TREE: Spec = {
    "a": "a",
    "empty": "",
    "dir/b": "b",
    "dir/sub/large": b"large" * 1_000_000,
    "dir-beside/c": "c",
    "dir.txt": "sorts between dir and what is in it",
    "na\u00efve; $(x) 'quoted'": "a name that a shell would read",
    "link": Path("dir/b"),
    "link-to-dir": Path("dir"),
    "none/": "",
    **{f"many/{number:03}": f"{number}" for number in range(300)},
}


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


def whole_seconds(shots: Picture) -> Picture:
    """What SFTP keeps of times."""
    return {
        name: shot._replace(mtime_ns=shot.mtime_ns // 10**9 * 10**9) for name, shot in shots.items()
    }


def flags(sshd: Sshd, transport: str) -> list[str]:
    return [
        *("--identity", str(sshd.identity), "--known-hosts", str(sshd.known_hosts)),
        *("--ssh-config", str(sshd.config), "--ssh-transport", transport),
    ]


@pytest.mark.parametrize("transport", ["auto", "asyncssh", "openssh"])
def test_there_and_back(
    fastsync: Fastsync,
    plant: Plant,
    picture: Callable[..., Picture],
    debris: Callable[[Path], list[Path]],
    tmp_path: Path,
    sshd: Sshd,
    transport: str,
) -> None:
    plant(tmp_path / "src", TREE)
    (tmp_path / "src/a").chmod(0o640)
    there, back = tmp_path / "there", tmp_path / "back"
    more = flags(sshd, transport)
    for _ in range(2):
        assert fastsync("sync", *more, "src", sshd.url(there)) == (0, "", "")
        assert whole_seconds(picture(there)) == whole_seconds(picture(tmp_path / "src"))
    assert fastsync("sync", *more, sshd.url(there), "back") == (0, "", "")
    assert picture(back) == picture(there)
    (there / "a").write_text("newer")
    (there / "stranger").write_text("goes")
    assert fastsync("sync", "--delete", *more, "src", sshd.url(there)).code == 0
    assert whole_seconds(picture(there)) == whole_seconds(picture(tmp_path / "src"))
    assert debris(tmp_path) == []


def test_like_rsync(
    fastsync: Fastsync,
    plant: Plant,
    picture: Callable[..., Picture],
    tmp_path: Path,
    sshd: Sshd,
) -> None:
    """Modes, times and links are those that rsync makes, over plain SSH."""
    rsync = shutil.which("rsync")
    if rsync is None:
        pytest.skip("rsync is not installed")
    plant(tmp_path / "src", TREE)
    there, theirs = tmp_path / "there", tmp_path / "theirs"
    url = sshd.url(there)
    assert fastsync("sync", "-a", *flags(sshd, "auto"), "src", url) == (0, "", "")
    subprocess.run([rsync, "-a", f"{tmp_path}/src/", str(theirs)], check=True)
    assert whole_seconds(picture(there)) == whole_seconds(picture(theirs))


def test_from_the_server_to_the_server(
    fastsync: Fastsync,
    plant: Plant,
    picture: Callable[..., Picture],
    tmp_path: Path,
    sshd: Sshd,
) -> None:
    plant(tmp_path / "src", TREE)
    more = flags(sshd, "auto")
    source, target = sshd.url(tmp_path / "src"), sshd.url(tmp_path / "copy")
    assert fastsync("sync", *more, source, target) == (0, "", "")
    assert whole_seconds(picture(tmp_path / "copy")) == whole_seconds(picture(tmp_path / "src"))


def test_a_host_that_nobody_knows(fastsync: Fastsync, tmp_path: Path, sshd: Sshd) -> None:
    """Exit code 5, the fingerprint, and the flag that accepts it."""
    (tmp_path / "file").write_text("content")
    unknown = ["--identity", str(sshd.identity), "--known-hosts", str(tmp_path / "known")]
    unknown += ["--ssh-config", str(sshd.config)]
    done = fastsync("cp", *unknown, "file", sshd.url(tmp_path / "copy"))
    assert done.code == 5
    assert "SHA256:" in done.stderr
    assert "--accept-new-host-key" in done.stderr
    assert not (tmp_path / "copy").exists()
    done = fastsync("cp", *unknown, "--accept-new-host-key", "file", sshd.url(tmp_path / "copy"))
    assert done == (0, "", "")
    assert (tmp_path / "copy").read_text() == "content"


def test_a_place_in_the_home_directory(fastsync: Fastsync, tmp_path: Path, sshd: Sshd) -> None:
    done = fastsync("ls", *flags(sshd, "asyncssh"), sshd.url("/~/no-such-place-of-this-test"))
    assert done.code == 3 or done.code == 1
    assert "no such" in done.stderr
    assert fastsync("ls", *flags(sshd, "asyncssh"), sshd.url("/~/")).code == 0


def test_the_usual_limit_of_logins(
    fastsync: Fastsync, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """sshd's own MaxStartups turns connections away; the work is done by those that get in."""
    (tmp_path / "large").write_bytes(content := b"0123456789abcdef" * (2 << 20))
    folder = tmp_path_factory.mktemp("strict")
    with running_sshd(folder, options=["MaxStartups 2:50:4"]) as sshd:
        more = [*flags(sshd, "asyncssh"), "--parallel", "16", "--chunk-size", "1M"]
        done = fastsync("cp", *more, "large", sshd.url(tmp_path / "copy"))
    assert done == (0, "", "")
    assert (tmp_path / "copy").read_bytes() == content


@pytest.mark.parametrize("transport", ["asyncssh", "openssh"])
def test_a_rate_is_kept_both_ways(
    fastsync: Fastsync, tmp_path: Path, sshd: Sshd, transport: str
) -> None:
    (tmp_path / "a").write_bytes(bytes(2_000_000))
    far = sshd.url(tmp_path / "far")
    for source, destination in (("a", far), (far, "back")):
        options = ("--bwlimit", "2MB", "--json", *flags(sshd, transport))
        done = fastsync("cp", *options, source, destination)
        assert done.code == 0, done
        summary = json.loads(done.stdout.splitlines()[-1])
        assert 0.9 < float(summary["duration"].rstrip("s")) < 3
