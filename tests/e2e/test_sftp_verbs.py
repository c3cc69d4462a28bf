"""Every verb by the real command against a real sshd."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sshd import SFTP_SERVERS, Sshd, running_sshd

from fastsync.journal import Journal

if TYPE_CHECKING:
    from tests.conftest import Fastsync, Picture, Plant, Spec

TREE: Spec = {"a": "a", "dir/b": "bb", "dir/sub/c": b"c" * 300_000, "link": Path("a")}


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def there(plant: Plant, tmp_path: Path) -> Path:
    """A tree at the server."""
    return plant(tmp_path / "there", TREE)


@pytest.fixture
def flags(sshd: Sshd) -> list[str]:
    return [
        *("--identity", str(sshd.identity), "--known-hosts", str(sshd.known_hosts)),
        *("--ssh-config", str(sshd.config)),
    ]


def test_ls(fastsync: Fastsync, there: Path, sshd: Sshd, flags: list[str]) -> None:
    done = fastsync("ls", "-R", *flags, sshd.url(there))
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout.split() == ["a", "dir/", "dir/b", "dir/sub/", "dir/sub/c", "link"]
    assert fastsync("ls", *flags, sshd.url(f"{there}/d*/b")).stdout.split() == ["dir/b"]
    assert fastsync("ls", *flags, sshd.url(there / "nothing")).code == 3


def test_one_login_is_enough_to_look(
    fastsync: Fastsync, there: Path, sshd: Sshd, flags: list[str], tmp_path: Path
) -> None:
    before = sshd.logins()
    more = [*flags, "--ssh-transport", "asyncssh"]
    assert fastsync("ls", "-R", *more, sshd.url(there)).code == 0
    assert fastsync("rm", "-R", *more, sshd.url(there)).code == 0
    assert sshd.logins() == before + 2


def test_stat_and_du(fastsync: Fastsync, there: Path, sshd: Sshd, flags: list[str]) -> None:
    done = fastsync("stat", "--json", *flags, sshd.url(there / "dir/sub/c"))
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[0])["size"] == 300_000
    done = fastsync("du", *flags, sshd.url(there))
    assert done.code == 0
    assert "300003" in done.stdout


def test_cat_and_pipe(
    fastsync: Fastsync, there: Path, sshd: Sshd, flags: list[str], tmp_path: Path
) -> None:
    done = subprocess.run(
        fastsync.command("cat", *flags, sshd.url(there / "dir/sub/c"), sshd.url(there / "a")),
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"c" * 300_000 + b"a"
    content = bytes(range(256)) * 50_000
    target = sshd.url(there / "new/piped")
    subprocess.run(fastsync.command("pipe", *flags, target), input=content, check=True)
    assert (there / "new/piped").read_bytes() == content


def test_cp(fastsync: Fastsync, there: Path, sshd: Sshd, flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    assert fastsync("cp", *flags, "file", sshd.url(f"{there}/dir/")) == (0, "", "")
    assert (there / "dir/file").read_text() == "content"
    assert fastsync("cp", *flags, "file", sshd.url(there / "new/name")) == (0, "", "")
    assert (there / "new/name").read_text() == "content"
    assert fastsync("cp", *flags, sshd.url(there / "link"), "back") == (0, "", "")
    assert (tmp_path / "back").read_text() == "a"
    assert fastsync("cp", "-R", *flags, sshd.url(there / "dir"), "here/") == (0, "", "")
    assert (tmp_path / "here/dir/sub/c").stat().st_size == 300_000
    assert fastsync("cp", *flags, sshd.url(there / "gone"), "back").code == 3


def test_mv(fastsync: Fastsync, there: Path, sshd: Sshd, flags: list[str], tmp_path: Path) -> None:
    assert fastsync("mv", *flags, sshd.url(there / "a"), sshd.url(there / "dir/moved")).code == 0
    assert (there / "dir/moved").read_text() == "a"
    assert not (there / "a").exists()
    assert fastsync("mv", *flags, sshd.url(there / "dir"), "mine") == (0, "", "")
    assert (tmp_path / "mine/sub/c").exists()
    assert not (there / "dir").exists()


def test_mv_within_is_another_name(
    fastsync: Fastsync, there: Path, sshd: Sshd, flags: list[str], plant: Plant
) -> None:
    """One file, several, one over another, and a tree: the same files as before; a dry run says so."""
    before = {path.name: path.lstat().st_ino for path in there.rglob("*")}
    plant(there, {"old": "old"})
    to = sshd.url(there)
    for pair in ((f"{to}/a", f"{to}/old"), (f"{to}/dir", f"{to}/x/y")):
        told = fastsync("mv", "-n", *flags, *pair)
        assert told == (0, f"would rename {pair[0]} -> {pair[1]}\n", ""), told
    assert fastsync("mv", *flags, f"{to}/a", f"{to}/old") == (0, "", "")
    assert (there / "old").stat().st_ino == before["a"]
    assert fastsync("mv", *flags, f"{to}/old", f"{to}/dir/b", f"{to}/new/").code == 0
    assert (there / "new/old").stat().st_ino == before["a"]
    assert (there / "new/b").stat().st_ino == before["b"]
    done = fastsync("mv", "--json", *flags, f"{to}/dir", f"{to}/x/y/dir2")
    assert done.code == 0, done
    assert (there / "x/y/dir2").stat().st_ino == before["dir"]
    assert json.loads(done.stdout.splitlines()[-1])["copied"] == 1
    assert sorted(path.name for path in there.iterdir()) == ["link", "new", "x"]


def test_mv_within_that_is_more_than_another_name(
    fastsync: Fastsync, there: Path, sshd: Sshd, flags: list[str], plant: Plant
) -> None:
    """Where a directory stands already, or rules leave something behind, it is copied."""
    plant(there, {"other/dir/sub/d": "d", "other/dir/b": "older"})
    to = sshd.url(there)
    assert fastsync("mv", "--exclude", "*/c", *flags, f"{to}/dir", f"{to}/excluding").code == 0
    assert [path.name for path in (there / "dir").rglob("*")] == ["sub", "c"]
    assert (there / "excluding/b").read_text() == "bb"
    assert fastsync("mv", *flags, f"{to}/excluding", f"{to}/dir") == (0, "", "")
    done = fastsync("mv", *flags, f"{to}/dir/excluding/b", f"{to}/dir/b")
    assert done == (0, "", "")
    assert fastsync("mv", *flags, f"{to}/dir", f"{to}/other/") == (0, "", "")
    assert (there / "other/dir/b").read_text() == "bb"
    assert (there / "other/dir/sub/d").read_text() == "d"
    assert (there / "other/dir/sub/c").stat().st_size == 300_000
    assert not (there / "dir").exists()
    assert fastsync("mv", *flags, f"{to}/other", f"{to}/other/dir/x").code == 2


def test_rm_and_mkdir(fastsync: Fastsync, there: Path, sshd: Sshd, flags: list[str]) -> None:
    assert fastsync("mkdir", *flags, sshd.url(there / "one/two")).code == 0
    assert (there / "one/two").is_dir()
    assert fastsync("rm", *flags, sshd.url(there / "link")) == (0, "", "")
    assert (there / "a").exists()
    assert not (there / "link").is_symlink()
    assert fastsync("rm", *flags, sshd.url(there / "dir")).code != 0
    assert (there / "dir/b").exists()
    assert fastsync("rm", "-R", *flags, sshd.url(there / "dir")) == (0, "", "")
    assert not (there / "dir").exists()


def test_sync_with_delete(
    fastsync: Fastsync,
    plant: Plant,
    picture: Callable[..., Picture],
    there: Path,
    sshd: Sshd,
    flags: list[str],
    tmp_path: Path,
) -> None:
    plant(tmp_path / "src", {"a": "newer", "extra/x": "x"})
    dry = fastsync("sync", "--delete", "--dry-run", *flags, "src", sshd.url(there))
    assert dry.code == 0
    assert (there / "dir/b").exists()
    assert fastsync("sync", "--delete", *flags, "src", sshd.url(there)) == (0, "", "")
    assert sorted(picture(there)) == sorted(picture(tmp_path / "src"))
    assert fastsync("sync", "--delete", *flags, "nothing", sshd.url(there)).code == 3
    assert (there / "extra/x").exists()


def test_a_server_that_sets_no_attributes(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The bytes arrive, and one line says what does not."""
    plant(tmp_path / "src", {f"{number:02}": f"{number}" for number in range(30)})
    (tmp_path / "src/large").write_bytes(b"large" * 5_000_000)
    server = next((each for each in SFTP_SERVERS if os.access(each, os.X_OK)), None)
    if server is None:
        pytest.skip("no sftp-server is installed")
    folder = tmp_path_factory.mktemp("stubborn")
    with running_sshd(folder, subsystem=f"{server} -P setstat,fsetstat") as sshd:
        flags = ["--identity", str(sshd.identity), "--known-hosts", str(sshd.known_hosts)]
        flags += ["--ssh-config", str(sshd.config)]
        done = fastsync("sync", *flags, "src", sshd.url(tmp_path / "there"))
    assert done.code == 0
    assert done.stderr.count("\n") == 1
    assert "sets no times and modes" in done.stderr
    assert (tmp_path / "there/29").read_text() == "29"
    assert (tmp_path / "there/large").stat().st_size == 25_000_000


Started = Callable[..., "subprocess.Popen[bytes]"]
Eventually = Callable[[Callable[[], object]], None]


@pytest.fixture
def cut_off(
    fastsync: Fastsync, started: Started, eventually: Eventually, flags: list[str], sshd: Sshd
) -> Callable[[Path, Path, int], tuple[str, ...]]:
    """Begins an upload, ends the process when it is under way, and tells its arguments."""

    def cut_off(source: Path, target: Path, number: int) -> tuple[str, ...]:
        source.write_bytes(os.urandom(4 << 20))
        os.utime(source, (1_000_000_000, 1_000_000_000))
        target.parent.mkdir()
        arguments = ("cp", *flags, "--chunk-size", "256K", "-p", "2", str(source), sshd.url(target))
        process = started(*arguments, "--bwlimit", "400K")
        journal = Path(fastsync.environ["HOME"]) / ".local/state/fastsync"

        def has_begun() -> bool:
            with contextlib.closing(Journal(str(journal))) as noted:
                return any(record.ranges for record in noted.records())

        eventually(has_begun)
        process.send_signal(number)
        process.wait(20)
        return arguments

    return cut_off


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_upload_goes_on_in_a_later_run(
    fastsync: Fastsync,
    cut_off: Callable[[Path, Path, int], tuple[str, ...]],
    tmp_path: Path,
    number: int,
) -> None:
    """What is there is not sent again, though blocks arrive in any order: the same file is finished."""
    source, target = tmp_path / "large", tmp_path / "there/large"
    arguments = cut_off(source, target, number)
    (left,) = target.parent.iterdir()
    inode = left.stat().st_ino
    assert fastsync(*arguments) == (0, "", "")
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_ino == inode
    assert [target] == list(target.parent.iterdir())


def test_another_version_is_not_gone_on_with(
    fastsync: Fastsync, cut_off: Callable[[Path, Path, int], tuple[str, ...]], tmp_path: Path
) -> None:
    source, target = tmp_path / "large", tmp_path / "there/large"
    arguments = cut_off(source, target, signal.SIGKILL)
    source.write_bytes(os.urandom(4 << 20))
    assert fastsync(*arguments) == (0, "", "")
    assert target.read_bytes() == source.read_bytes()


def test_what_is_no_longer_there_is_not_gone_on_with(
    fastsync: Fastsync, cut_off: Callable[[Path, Path, int], tuple[str, ...]], tmp_path: Path
) -> None:
    """As after a crash of the server, that has the length and not the bytes."""
    source, target = tmp_path / "large", tmp_path / "there/large"
    arguments = cut_off(source, target, signal.SIGKILL)
    (left,) = target.parent.iterdir()
    left.write_bytes(bytes(left.stat().st_size))
    assert fastsync(*arguments) == (0, "", "")
    assert target.read_bytes() == source.read_bytes()
    assert [target] == list(target.parent.iterdir())


def test_what_an_upload_left_is_dropped(
    fastsync: Fastsync, cut_off: Callable[[Path, Path, int], tuple[str, ...]], tmp_path: Path
) -> None:
    cut_off(tmp_path / "large", tmp_path / "there/large", signal.SIGKILL)
    assert fastsync("jobs", "clean").code == 0
    assert list((tmp_path / "there").iterdir()) == []


@pytest.fixture
def cut_download(
    fastsync: Fastsync, started: Started, eventually: Eventually, flags: list[str], sshd: Sshd
) -> Callable[[Path, Path], tuple[str, ...]]:
    """Begins a download, kills the process when it is under way, and tells its arguments."""

    def cut(source: Path, target: Path) -> tuple[str, ...]:
        source.write_bytes(os.urandom(4 << 20))
        os.utime(source, (1_000_000_000, 1_000_000_000))
        target.parent.mkdir()
        arguments = ("cp", *flags, "--chunk-size", "256K", "-p", "2", sshd.url(source), str(target))
        process = started(*arguments, "--bwlimit", "400K")
        journal = Path(fastsync.environ["HOME"]) / ".local/state/fastsync"

        def has_begun() -> bool:
            with contextlib.closing(Journal(str(journal))) as noted:
                return any(record.ranges for record in noted.records())

        eventually(has_begun)
        process.kill()
        process.wait(20)
        return arguments

    return cut


CutDownload = Callable[[Path, Path], tuple[str, ...]]


def test_a_download_goes_on_in_a_later_run(
    fastsync: Fastsync, cut_download: CutDownload, tmp_path: Path
) -> None:
    """What is there is not fetched again: the same file is finished."""
    source, target = tmp_path / "large", tmp_path / "here/large"
    arguments = cut_download(source, target)
    (left,) = target.parent.iterdir()
    inode = left.stat().st_ino
    done = fastsync(*arguments, "--json")
    assert done.code == 0, done
    assert json.loads(done.stdout.splitlines()[-1])["bytes_sent"] < 4 << 20
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_ino == inode
    assert [target] == list(target.parent.iterdir())


@pytest.mark.parametrize("when", [1_000_000_001, 1_000_000_000])
def test_another_version_is_not_gone_on_with_either(
    fastsync: Fastsync, cut_download: CutDownload, tmp_path: Path, when: int
) -> None:
    """Also where size and time do not tell that it is another one."""
    source, target = tmp_path / "large", tmp_path / "here/large"
    arguments = cut_download(source, target)
    source.write_bytes(os.urandom(4 << 20))
    os.utime(source, (when, when))
    assert fastsync(*arguments) == (0, "", "")
    assert target.read_bytes() == source.read_bytes()
    assert [target] == list(target.parent.iterdir())
