"""`fastsync cp`: where things land, what is copied of them, what is left alone."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Fastsync, Picture, Plant, Spec

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may do this")

ODD_NAMES = [
    b"new\nline",
    b"esc\x1b[31mred",
    b"bad\xff\xfeutf8",
    b"half\xc3",
    b"n" * 255,
    b"-rf",
    b"--help",
    b" spaces  ",
    "ünï ☃ 日本 \u202egnp".encode(),
    b"tab\tand\rreturn",
    b"back\\slash\\n",
    b"quote'\"",
    b"*?[x]{y}",
    b"...",
    b"..x",
    b"a:b",
    b"s3:",
    b"\x7f\x01",
]


# -- where things land -------------------------------------------------------------------------------


def test_a_file_under_a_new_name(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path, {"a": "content"})
    assert fastsync("cp", "a", "b") == (0, "", "")
    assert (tmp_path / "b").read_text() == "content"
    assert (tmp_path / "b").stat().st_mtime_ns == (tmp_path / "a").stat().st_mtime_ns


def test_a_file_over_another(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path, {"a": "new content", "b": "old"})
    assert fastsync("cp", "a", "b").code == 0
    assert (tmp_path / "b").read_text() == "new content"


@pytest.mark.parametrize("target", ["dir", "dir/", "./dir", "dir/.", "dir/../dir", "link"])
def test_a_file_into_a_directory(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, target: str
) -> None:
    plant(tmp_path, {"a": "content", "dir/old": "old", "link": Path("dir")})
    assert fastsync("cp", "a", target) == (0, "", "")
    assert (tmp_path / "dir/a").read_text() == "content"
    assert (tmp_path / "dir/old").read_text() == "old"
    assert (tmp_path / "link").is_symlink()


def test_a_slash_makes_the_directory(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path, {"a": "content"})
    assert fastsync("cp", "a", "new/deeper/").code == 0
    assert (tmp_path / "new/deeper/a").read_text() == "content"


def test_missing_parents_are_made(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path, {"a": "content"})
    assert fastsync("cp", "a", "new/deeper/b").code == 0
    assert (tmp_path / "new/deeper/b").read_text() == "content"


@pytest.mark.parametrize(
    ("source", "target", "place"),
    [
        ("dir", "dest", "dest"),  # dest is not there yet: that name
        ("dir", "dest/", "dest/dir"),
        ("dir/", "dest", "dest"),
        ("dir/", "dest/", "dest"),
        ("dir/.", "dest", "dest"),
        ("dir", "there", "there/dir"),
        ("dir", "there/", "there/dir"),
        ("dir/", "there", "there"),
        ("./dir", "there", "there/dir"),
        ("dir/../dir", "there", "there/dir"),
        ("dir", "new/deep/", "new/deep/dir"),
    ],
)
def test_a_directory(
    fastsync: Fastsync,
    plant: Plant,
    picture: Callable[..., Picture],
    tmp_path: Path,
    source: str,
    target: str,
    place: str,
) -> None:
    plant(tmp_path, {"dir/a": "a", "dir/sub/b": "b", "dir/empty/": "", "there/": ""})
    assert fastsync("cp", "-R", source, target) == (0, "", "")
    assert picture(tmp_path / place) == picture(tmp_path / "dir")


def test_the_current_directory(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path / "here", {"a": "a", "sub/b": "b"})
    assert fastsync("cp", "-R", ".", "../there/", cwd=tmp_path / "here").code == 0
    assert sorted(os.listdir(tmp_path / "there")) == ["a", "sub"]
    (tmp_path / "elsewhere").mkdir()
    assert fastsync("cp", "../here/a", ".", cwd=tmp_path / "elsewhere").code == 0
    assert os.listdir(tmp_path / "elsewhere") == ["a"]


def test_several_sources(
    fastsync: Fastsync, plant: Plant, picture: Callable[..., Picture], tmp_path: Path
) -> None:
    plant(tmp_path, {"a": "a", "deep/b": "b", "dir/c": "c", "contents/d": "d"})
    done = fastsync("cp", "-R", "--summarize", "a", "deep/b", "dir", "contents/", "dest/")
    assert done.code == 0
    assert "Copied: 4 files, 4 bytes" in done.stdout
    assert set(picture(tmp_path / "dest")) == {"a", "b", "dir", "dir/c", "d"}


def test_several_sources_need_a_directory(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path, {"a": "a", "b": "b", "file": "old"})
    for target in ("new", "file"):
        done = fastsync("cp", "a", "b", target)
        assert done.code == 2
        assert "several sources need a directory" in done.stderr
    assert (tmp_path / "file").read_text() == "old"
    assert not (tmp_path / "new").exists()


def test_more_sources_than_descriptors(
    fastsync: Fastsync,
    plant: Plant,
    under_limit: Callable[[str], list[str]],
    picture: Callable[..., Picture],
    tmp_path: Path,
) -> None:
    names = [f"f{index:03}" for index in range(300)]
    plant(tmp_path / "src", {name: name for name in names})
    sources = [f"src/{name}" for name in names]
    done = fastsync("cp", *sources, "dest/", under=under_limit("-n 64"))
    assert (done.code, done.stderr) == (0, "")
    assert picture(tmp_path / "dest") == picture(tmp_path / "src")
    done = fastsync("cp", "--summarize", *sources, "dest/")
    assert "Skipped: 300 files" in done.stdout


def test_the_same_source_twice_is_copied_once(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    plant(tmp_path, {"a": "a"})
    assert fastsync("cp", "a", "./a", "dest/").code == 0
    assert (tmp_path / "dest/a").read_text() == "a"


def test_two_sources_of_one_name(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path, {"one/a": "first", "two/a": "second"})
    done = fastsync("cp", "one/a", "two/a", "dest/")
    assert done.code == 2
    assert not (tmp_path / "dest").exists()


def test_directories_that_are_merged(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    """Contents of several directories into one: where they collide, the last one stays."""
    plant(tmp_path, {f"{place}/{name}": place for place in "xyz" for name in ("same", place)})
    assert fastsync("cp", "-R", "x/", "y/", "z/", "dest/").code == 0
    assert sorted(os.listdir(tmp_path / "dest")) == ["same", "x", "y", "z"]
    assert (tmp_path / "dest/same").read_text() == "z"


def test_a_file_url(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path, {"a b": "content"})
    done = fastsync("cp", f"file://{tmp_path}/a%20b", f"file://{tmp_path}/dest/")
    assert done.code == 0
    assert (tmp_path / "dest/a b").read_text() == "content"


# -- what is refused ---------------------------------------------------------------------------------


def test_a_missing_source(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path, {"a": "a", "b": "b"})
    done = fastsync("cp", "a", "missing", "b", "dest/")
    assert done.code == 3
    assert done.stderr == "fastsync: error: missing: no such file or directory\n"
    assert sorted(os.listdir(tmp_path / "dest")) == ["a", "b"]
    done = fastsync("cp", "--ignore-missing-args", "a", "missing", "other/")
    assert done.code == 0
    assert os.listdir(tmp_path / "other") == ["a"]


@pytest.mark.parametrize(
    ("missing", "code"), [("a/x", 3), ("a/", 3), ("dir/missing", 3), ("n" * 300, 1), ("loop", 1)]
)
def test_a_source_that_cannot_be(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, missing: str, code: int
) -> None:
    plant(tmp_path, {"a": "a", "b": "b", "dir/c": "c", "loop": Path("loop")})
    done = fastsync("cp", missing, "b", "dest/")
    assert done.code == code
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path / "dest") == ["b"]


def test_a_directory_needs_recursion(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path, {"a": "a", "dir/b": "b"})
    done = fastsync("cp", "a", "dir", "dest/")
    assert done.code == 2
    assert done.stderr == "fastsync: error: dir: it is a directory (-R copies directories)\n"
    assert not (tmp_path / "dest").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("a", "a"),
        ("a", "."),
        ("a", "./"),
        ("dir/b", "dir"),
        ("dir/b", "link"),
        ("-R", "dir", "dir"),
        ("-R", "dir", "dir/sub"),
        ("-R", "dir", "dir/new/deep"),
        ("-R", "dir", "link/new"),
        ("-R", "dir/sub", "dir"),
        ("-R", "dir/sub/", "dir"),
        ("-R", ".", "dir"),
        ("-R", "dir/", "."),
        # Nothing of the first one is copied either.
        ("-R", "other", ".", "new/"),
        ("-R", "other", "dir", "dir"),
    ],
)
def test_a_place_into_itself(
    fastsync: Fastsync,
    plant: Plant,
    picture: Callable[..., Picture],
    tmp_path: Path,
    arguments: tuple[str, ...],
) -> None:
    plant(
        tmp_path,
        {"a": "a", "dir/b": "b", "dir/sub/c": "c", "other/d": "d", "link": Path("dir")},
    )
    before = picture(tmp_path)
    done = fastsync("cp", *arguments)
    assert (done.code, done.stderr.count("\n")) == (2, 1)
    assert picture(tmp_path) == before


def test_a_file_where_the_directory_should_go(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    plant(tmp_path, {"dir/a": "a", "file": "precious", "there/dir": "precious"})
    for target in ("file", "there"):
        done = fastsync("cp", "-R", "dir", target)
        assert done.code == 2
        assert "a file stands where the directory should go" in done.stderr
    done = fastsync("cp", "dir/a", "file/")
    assert (done.code, done.stderr.count("\n")) == (2, 1)
    assert (tmp_path / "file").read_text() == "precious"
    assert (tmp_path / "there/dir").read_text() == "precious"


def test_a_directory_where_the_file_should_go(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    plant(tmp_path, {"a": "a", "there/a/precious": "precious"})
    done = fastsync("cp", "a", "there")
    assert (done.code, done.stderr.count("\n")) == (1, 1)
    assert (tmp_path / "there/a/precious").read_text() == "precious"


def test_a_source_that_cannot_be_read(
    fastsync: Fastsync, plant: Plant, unprivileged: list[str], tmp_path: Path
) -> None:
    plant(tmp_path, {"locked/a": "a", "b": "b", "c": "c", "dir/d": "d"})
    (tmp_path / "locked").chmod(0)
    (tmp_path / "b").chmod(0)
    # A source in a closed directory, a closed file, a closed directory: the others are copied.
    for number, closed in enumerate(("locked/a", "b", "locked", "locked/")):
        done = fastsync("cp", "-R", closed, "c", "dir", f"to{number}/", under=unprivileged)
        # A directory that cannot be listed, or looked into, hides who knows what.
        assert done.code == (1 if closed == "b" else 3)
        assert f"{closed}: permission denied" in done.stderr
        assert (tmp_path / f"to{number}/c").read_text() == "c"
        assert (tmp_path / f"to{number}/dir/d").read_text() == "d"
    (tmp_path / "locked").chmod(0o700)


def test_a_device_or_a_pipe_where_the_file_should_go(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    """A file in the place of /dev/null or /dev/stdout would be the end of a good day."""
    plant(tmp_path, {"a": "a", "b": "b", "link": Path("pipe"), "dest/": ""})
    pipes = [tmp_path / "pipe", tmp_path / "dest/b"]
    for pipe in pipes:
        os.mkfifo(pipe)
    for arguments in (("a", "pipe"), ("a", "link"), ("a", "b", "dest"), ("a", "dest/b")):
        done = fastsync("cp", *arguments)
        assert (done.code, done.stderr.count("\n")) == (2, 1)
        assert "a device, a pipe or a socket stands there" in done.stderr
    assert fastsync("sync", "a", "pipe").code == 2
    assert fastsync("cp", "--inplace", "a", "pipe").code == 2
    assert all(stat.S_ISFIFO(pipe.lstat().st_mode) for pipe in pipes)
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "dest") == ["b"]


@needs_root
def test_a_device_is_not_replaced(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path, {"a": "a", "dev/stdout": Path("null")})
    os.mknod(tmp_path / "dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    for target in ("dev/null", "dev/stdout"):
        assert fastsync("cp", "a", target).code == 2
    assert stat.S_ISCHR((tmp_path / "dev/null").lstat().st_mode)
    assert os.readlink(tmp_path / "dev/stdout") == "null"


def test_a_link_where_the_directory_should_go(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    """A link that the user names is entered, one that only happens to stand there is not."""
    plant(tmp_path, {"dir/a": "new", "outside/a": "old", "there/dir": Path("../outside")})
    done = fastsync("cp", "-R", "dir", "there")
    assert (done.code, done.stderr.count("\n")) == (2, 1)
    assert "there/dir: a link stands where the directory should go" in done.stderr
    assert (tmp_path / "outside/a").read_text() == "old"
    assert fastsync("cp", "-R", "dir/", "there/dir").code == 0
    assert (tmp_path / "outside/a").read_text() == "new"


# -- links -------------------------------------------------------------------------------------------

LINKED: Spec = {
    "dir/a": "content",
    "dir/to-file": Path("a"),
    "dir/to-dir": Path("../other"),
    "other/b": "b",
}


def test_links_are_kept(
    fastsync: Fastsync, plant: Plant, picture: Callable[..., Picture], tmp_path: Path
) -> None:
    more = {"dir/dangling": Path("no/such"), "dir/absolute": Path("/etc"), "dir/loop": Path("loop")}
    plant(tmp_path, {**LINKED, **more, "dir/up": Path("..")})
    assert fastsync("cp", "-R", "dir", "dest") == (0, "", "")
    assert picture(tmp_path / "dest") == picture(tmp_path / "dir")
    assert fastsync("cp", "-R", "-l", "dir", "explicit").code == 0
    assert picture(tmp_path / "explicit") == picture(tmp_path / "dir")


def test_links_are_followed(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path, LINKED)
    assert fastsync("cp", "-RL", "dir", "dest") == (0, "", "")
    assert not (tmp_path / "dest/to-file").is_symlink()
    assert not (tmp_path / "dest/to-dir").is_symlink()
    assert (tmp_path / "dest/to-file").read_text() == "content"
    assert (tmp_path / "dest/to-dir/b").read_text() == "b"


def test_links_that_lead_nowhere_or_back(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path, {"dir/a": "a", "dir/dangling": Path("no/such"), "dir/sub/up": Path("..")})
    done = fastsync("cp", "-RL", "dir", "dest")
    assert done.code == 1
    assert "dir/dangling: no such file or directory" in done.stderr
    assert "dir/sub/up: a symbolic link leads back" in done.stderr
    assert (tmp_path / "dest/a").read_text() == "a"


def test_links_are_left_out(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path, LINKED)
    done = fastsync("cp", "-R", "--skip-links", "--summarize", "dir", "dest")
    assert done.code == 0
    assert os.listdir(tmp_path / "dest") == ["a"]
    assert "Left out: 2 links" in done.stdout


def test_a_link_that_is_named_is_followed(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path, {**LINKED, "name": Path("dir/a"), "name-dir": Path("dir")})
    assert fastsync("cp", "name", "copy").code == 0
    assert not (tmp_path / "copy").is_symlink()
    assert (tmp_path / "copy").read_text() == "content"
    assert fastsync("cp", "-R", "name-dir", "copy-dir").code == 0
    assert not (tmp_path / "copy-dir").is_symlink()
    assert (tmp_path / "copy-dir/to-file").is_symlink()


def test_a_link_at_the_destination_is_replaced_not_followed(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    plant(tmp_path, {"a": "new", "precious": "old", "dest/a": Path("../precious")})
    assert fastsync("cp", "a", "dest").code == 0
    assert not (tmp_path / "dest/a").is_symlink()
    assert (tmp_path / "dest/a").read_text() == "new"
    assert (tmp_path / "precious").read_text() == "old"


def test_a_link_out_of_the_destination_is_not_entered(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    plant(tmp_path, {"dir/sub/a": "new", "outside/a": "old", "dest/sub": Path("../outside")})
    done = fastsync("cp", "-R", "dir/", "dest")
    assert done.code == 1
    assert (tmp_path / "outside/a").read_text() == "old"
    assert (tmp_path / "dest/sub").is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give links away")
@pytest.mark.parametrize(
    "words",
    [
        ["cp", "-R", "dir/", "shared/link/"],
        ["cp", "dir/a", "shared/link"],
        ["sync", "-n", "dir", "shared/link/sub"],
        ["run", "batch"],
    ],
)
def test_a_destination_that_others_have_led_elsewhere(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, words: list[str]
) -> None:
    plant(tmp_path, {"dir/a": "new", "ours/b": "old", "shared/link": Path("../ours")})
    (tmp_path / "batch").write_text("cp dir/a shared/link/\n")
    (tmp_path / "shared").chmod(0o1777)
    os.lchown(tmp_path / "shared/link", 12345, -1)
    done = fastsync(*words)
    assert done.code == 2
    assert "a link of another user leads to the destination" in done.stderr
    assert f"name where it leads: {tmp_path}/ours" in done.stderr
    assert os.listdir(tmp_path / "ours") == ["b"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give links away")
def test_a_source_that_others_lead_to(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    """They may: what they could lead us to, we would only read."""
    plant(tmp_path, {"theirs/a": "new", "shared/link": Path("../theirs")})
    (tmp_path / "shared").chmod(0o777)
    os.lchown(tmp_path / "shared/link", 12345, -1)
    (tmp_path / "batch").write_text("sync shared/link to\ncp shared/link/a shared/b\n")
    assert fastsync("run", "batch") == (0, "", "")
    assert (tmp_path / "to/a").read_text() == (tmp_path / "shared/b").read_text() == "new"


# -- attributes --------------------------------------------------------------------------------------


def test_permission_bits(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    modes = [0o400, 0o444, 0o600, 0o640, 0o666, 0o755, 0o777, 0o111, 0o000]
    src = plant(tmp_path / "src", {f"{mode:o}": "x" for mode in modes} | {"d": Path(".")})
    for mode in modes:
        (src / f"{mode:o}").chmod(mode)
    for umask in (0, 0o077):
        dest = tmp_path / f"dest{umask}"
        readable = ["--exclude", "111", "--exclude", "0"] if os.geteuid() != 0 else []
        assert fastsync("cp", "-R", *readable, "src/", dest, umask=umask).code == 0
        for mode in modes[: 7 if readable else None]:
            assert stat.S_IMODE((dest / f"{mode:o}").stat().st_mode) == mode


def test_permission_bits_of_directories(
    fastsync: Fastsync,
    plant: Plant,
    picture: Callable[..., Picture],
    remove_at_end: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    remove_at_end(tmp_path)
    src = plant(tmp_path / "src", {f"{mode:o}/a": "a" for mode in (0o555, 0o700, 0o777, 0o711)})
    for name in os.listdir(src):
        (src / name).chmod(int(name, 8))
    src.chmod(0o750)
    assert fastsync("cp", "-R", "src", "dest", umask=0o077).code == 0
    assert picture(tmp_path / "dest") == picture(src)
    assert stat.S_IMODE((tmp_path / "dest").stat().st_mode) == 0o750


def test_a_mode_alone_that_changed(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path, {"src/a": "a"})
    fastsync("cp", "-R", "src/", "dest")
    inode = (tmp_path / "dest/a").stat().st_ino
    (tmp_path / "src/a").chmod(0o711)
    done = fastsync("cp", "-R", "--json", "src/", "dest")
    assert '"operation": "attributes"' in done.stdout
    assert stat.S_IMODE((tmp_path / "dest/a").stat().st_mode) == 0o711
    assert (tmp_path / "dest/a").stat().st_ino == inode


@pytest.mark.parametrize(
    "mtime_ns",
    [0, 1, -1, -86_400_000_000_001, 1_234_567_890_987_654_321, 4_102_444_800_000_000_007],
)
def test_times_to_the_nanosecond(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, mtime_ns: int
) -> None:
    plant(tmp_path, {"a": "content"})
    os.utime(tmp_path / "a", ns=(mtime_ns, mtime_ns))
    assert (tmp_path / "a").stat().st_mtime_ns == mtime_ns
    assert fastsync("cp", "a", "b").code == 0
    assert (tmp_path / "b").stat().st_mtime_ns == mtime_ns
    assert "Skipped: 1 " in fastsync("cp", "--summarize", "a", "b").stdout


def test_special_bits(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    src = plant(tmp_path / "src", {"setuid": "x", "setgid": "x", "dir/": ""})
    (src / "setuid").chmod(0o4755)
    (src / "setgid").chmod(0o2711)
    (src / "dir").chmod(0o1777)

    def modes(place: str) -> list[int]:
        names = ("setuid", "setgid", "dir")
        return [stat.S_IMODE((tmp_path / place / name).stat().st_mode) for name in names]

    assert fastsync("cp", "-R", "src/", "plain").code == 0
    assert modes("plain") == [0o755, 0o711, 0o777]
    assert fastsync("cp", "-R", "--preserve-special", "src/", "kept").code == 0
    assert modes("kept") == [0o4755, 0o2711, 0o1777]
    # Asked for later, they are set without another copy.
    inode = (tmp_path / "plain/setuid").stat().st_ino
    assert fastsync("cp", "-R", "--preserve-special", "src/", "plain").code == 0
    assert modes("plain") == [0o4755, 0o2711, 0o1777]
    assert (tmp_path / "plain/setuid").stat().st_ino == inode


def test_archive_keeps_the_times_of_directories(
    fastsync: Fastsync, plant: Plant, picture: Callable[..., Picture], tmp_path: Path
) -> None:
    plant(tmp_path, {"src/a": "a", "src/sub/b": "b", "src/sub/deep/c": "c", "src/empty/": ""})
    assert fastsync("cp", "-a", "src", "dest") == (0, "", "")
    assert picture(tmp_path / "dest", directory_times=True) == picture(
        tmp_path / "src", directory_times=True
    )
    assert (tmp_path / "dest").stat().st_mtime_ns == (tmp_path / "src").stat().st_mtime_ns


@needs_root
def test_archive_keeps_owners(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    names = ("file", "dir", "dir/inner", "link")
    src = plant(tmp_path / "src", {"file": "x", "dir/inner": "y", "link": Path("file")})
    for index, name in enumerate(names):
        os.chown(src / name, 1000 + index, 2000 + index, follow_symlinks=False)
    (src / "file").chmod(0o4755)
    os.chown(src, 77, 78)

    def owners(place: str) -> list[tuple[int, int]]:
        found = [(tmp_path / place / name).lstat() for name in (*names, ".")]
        return [(status.st_uid, status.st_gid) for status in found]

    assert fastsync("cp", "-a", "--preserve-special", "src", "dest").code == 0
    assert owners("dest") == [*((1000 + i, 2000 + i) for i in range(4)), (77, 78)]
    assert stat.S_IMODE((tmp_path / "dest/file").stat().st_mode) == 0o4755
    # Without -a they are ours.
    assert fastsync("cp", "-R", "src", "plain").code == 0
    assert set(owners("plain")) == {(os.geteuid(), os.getegid())}
    # An owner alone that changed is set without another copy.
    inode = (tmp_path / "dest/file").stat().st_ino
    os.chown(src / "file", 4242, 4242)
    (src / "file").chmod(0o4755)
    assert fastsync("cp", "-a", "--preserve-special", "src/", "dest").code == 0
    assert owners("dest")[0] == (4242, 4242)
    assert (tmp_path / "dest/file").stat().st_ino == inode


def test_archive_without_privileges(
    fastsync: Fastsync,
    plant: Plant,
    unprivileged: list[str],
    picture: Callable[..., Picture],
    tmp_path: Path,
) -> None:
    src = plant(tmp_path / "src", {"a": "a", "dir/b": "b", "link": Path("a")})
    if os.geteuid() == 0:
        for name in ("a", "dir", "link"):
            os.chown(src / name, 1234, 1234, follow_symlinks=False)
        (src / "a").chmod(0o644)
    assert fastsync("cp", "-a", "src", "dest", under=unprivileged) == (0, "", "")
    assert picture(tmp_path / "dest", directory_times=True) == picture(src, directory_times=True)


def test_sparse_files_keep_their_holes(fastsync: Fastsync, tmp_path: Path) -> None:
    with open(tmp_path / "holes", "wb") as file:
        file.seek(5 << 20)
        file.write(b"data" * 1000)
        file.truncate(32 << 20)
    (tmp_path / "hole").touch()
    os.truncate(tmp_path / "hole", 8 << 20)
    if (tmp_path / "holes").stat().st_blocks * 512 > 1 << 20:
        pytest.skip("this filesystem has no holes")
    assert fastsync("cp", "--sparse", "holes", "hole", "dest/").code == 0
    for name in ("holes", "hole"):
        assert (tmp_path / "dest" / name).read_bytes() == (tmp_path / name).read_bytes()
        assert (tmp_path / "dest" / name).stat().st_blocks * 512 < 1 << 20
    # Over a file full of data, in place.
    (tmp_path / "full").write_bytes(b"x" * (33 << 20))
    assert fastsync("cp", "-S", "--inplace", "holes", "full").code == 0
    assert (tmp_path / "full").read_bytes() == (tmp_path / "holes").read_bytes()
    assert (tmp_path / "full").stat().st_blocks * 512 < 1 << 20


# -- how it is written -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 10, 200_000])
def test_in_place_keeps_the_inode(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, size: int
) -> None:
    plant(tmp_path, {"a": b"n" * size, "b": b"o" * 100_000})
    os.link(tmp_path / "b", tmp_path / "other-name")
    inode = (tmp_path / "b").stat().st_ino
    assert fastsync("cp", "--inplace", "a", "b").code == 0
    assert (tmp_path / "b").stat().st_ino == inode
    assert (tmp_path / "b").read_bytes() == b"n" * size
    assert (tmp_path / "other-name").read_bytes() == b"n" * size
    assert "Skipped: 1 " in fastsync("cp", "--inplace", "--summarize", "a", "b").stdout


def test_otherwise_other_names_of_a_file_are_left_alone(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    plant(tmp_path, {"a": "new", "b": "old"})
    os.link(tmp_path / "b", tmp_path / "other-name")
    assert fastsync("cp", "a", "b").code == 0
    assert (tmp_path / "other-name").read_text() == "old"


def test_in_place_does_not_write_into_a_pipe_or_through_a_link(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    plant(tmp_path, {"src/pipe": "new", "src/link": "new", "dest/link": Path("../precious")})
    (tmp_path / "precious").write_text("old")
    os.mkfifo(tmp_path / "dest/pipe")
    done = fastsync("cp", "-R", "--inplace", "src/", "dest")
    assert (done.code, done.stderr.count("\n")) == (1, 2)
    assert (tmp_path / "precious").read_text() == "old"
    assert stat.S_ISFIFO((tmp_path / "dest/pipe").lstat().st_mode)


def test_durable(
    fastsync: Fastsync, plant: Plant, picture: Callable[..., Picture], tmp_path: Path
) -> None:
    plant(
        tmp_path,
        {f"src/{place}/{name}": name for place in "abc" for name in "xyz"}
        | {"src/link": Path("a"), "src/empty/": "", "src/large": b"l" * 300_000},
    )
    assert fastsync("cp", "-R", "--durable", "src", "dest") == (0, "", "")
    assert picture(tmp_path / "dest") == picture(tmp_path / "src")


# -- which files -------------------------------------------------------------------------------------


def counts(done: tuple[int, str, str]) -> tuple[int, int]:
    """How many files were copied, and skipped."""
    code, out, err = done
    assert (code, err) == (0, "")
    found = re.search(r"^Copied: (\d+) files.*\nSkipped: (\d+) files", out, re.MULTILINE)
    assert found
    return int(found[1]), int(found[2])


@pytest.fixture
def differing(plant: Plant, tmp_path: Path) -> Path:
    """Pairs of files that differ in one way each."""
    plant(
        tmp_path / "src",
        {
            "content": "AAAA",
            "newer": "here",
            "older": "here",
            "same": "same",
            "size": "longer",
            "new": "n",
        },
    )
    plant(
        tmp_path / "dest",
        {"content": "BBBB", "newer": "ther", "older": "ther", "same": "same", "size": "short"},
    )
    for name in ("content", "newer", "older", "same", "size"):
        status = (tmp_path / "src" / name).stat()
        late = {"newer": -1, "older": 1}.get(name, 0) * 1_500_000_000
        when = status.st_mtime_ns + late
        os.utime(tmp_path / "dest" / name, ns=(when, when))
    return tmp_path


@pytest.mark.parametrize(
    ("options", "copied"),
    [
        ((), {"new", "size", "newer", "older"}),
        (("--checksum",), {"new", "size", "newer", "older", "content"}),
        (("--size-only",), {"new", "size"}),
        (("--if-size-differ",), {"new", "size"}),
        (("-u",), {"new", "size", "newer"}),
        (("--if-source-newer",), {"new", "size", "newer"}),
        (("-I",), {"new", "size", "newer", "older", "content", "same"}),
        (("--existing",), {"size", "newer", "older"}),
        (("--ignore-existing",), {"new"}),
        (("--no-clobber",), {"new"}),
        (("--existing", "--ignore-existing"), set()),
        (("--modify-window", "1500ms"), {"new", "size"}),
        (("--modify-window", "1.499"), {"new", "size", "newer", "older"}),
        (("-u", "--modify-window", "2s"), {"new", "size"}),
    ],
)
def test_what_counts_as_different(
    fastsync: Fastsync, differing: Path, options: tuple[str, ...], copied: set[str]
) -> None:
    src, dest = differing / "src", differing / "dest"
    before = {name: (dest / name).stat().st_ino for name in os.listdir(dest)}
    done = fastsync("cp", "-R", "--summarize", *options, "src/", "dest")
    skipped = len(os.listdir(src)) - len(copied)
    assert counts(done) == (len(copied), skipped)
    for name in os.listdir(dest):
        assert (before.get(name) != (dest / name).stat().st_ino) == (name in copied), name
        if name in copied:
            assert (dest / name).read_bytes() == (src / name).read_bytes()
            assert (dest / name).stat().st_mtime_ns == (src / name).stat().st_mtime_ns


def test_checksum_mends_a_time_without_a_copy(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    plant(tmp_path, {"src/a": "same", "dest/a": "same"})
    inode = (tmp_path / "dest/a").stat().st_ino
    assert (tmp_path / "dest/a").stat().st_mtime_ns != (tmp_path / "src/a").stat().st_mtime_ns
    assert counts(fastsync("cp", "-R", "--checksum", "--summarize", "src/", "dest")) == (0, 1)
    assert (tmp_path / "dest/a").stat().st_ino == inode
    assert (tmp_path / "dest/a").stat().st_mtime_ns == (tmp_path / "src/a").stat().st_mtime_ns


def test_dry_run(
    fastsync: Fastsync,
    differing: Path,
    states: Callable[[Path], dict[str, tuple[int, int]]],
    tmp_path: Path,
) -> None:
    (tmp_path / "src/dir").mkdir()
    (tmp_path / "src/link").symlink_to("same")
    before = states(tmp_path)
    done = fastsync("cp", "-R", "-n", "src/", "dest")
    assert (done.code, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == [
        "would copy src/new -> dest/new (new, 1 B)",
        "would copy src/newer -> dest/newer (time differs, 4 B)",
        "would copy src/older -> dest/older (time differs, 4 B)",
        "would copy src/size -> dest/size (size differs, 6 B)",
        "would link src/link -> dest/link (new)",
        "would make dest/dir (new)",
    ]
    done = fastsync("cp", "-R", "-n", "--summarize", "src", "nowhere/")
    assert "Copied: 6 files" in done.stdout
    assert states(tmp_path) == before


def test_filters_in_their_order(
    fastsync: Fastsync, plant: Plant, picture: Callable[..., Picture], tmp_path: Path
) -> None:
    plant(
        tmp_path / "src",
        {
            "a.txt": "",
            "b.log": "",
            "keep.log": "",
            "sub/c.txt": "",
            "sub/d.log": "",
            "tmp/e.txt": "",
        },
    )

    def kept(name: str, *rules: str) -> set[str]:
        assert fastsync("cp", "-R", *rules, "src/", name).code == 0
        return {path for path, shot in picture(tmp_path / name).items() if shot.kind == "file"}

    assert kept("one", "--exclude", "*.log") == {"a.txt", "sub/c.txt", "tmp/e.txt"}
    assert kept("two", "--include", "keep.log", "--exclude", "*.log", "--exclude=tmp/") == {
        "a.txt",
        "keep.log",
        "sub/c.txt",
    }
    assert kept("three", "--exclude", "*.log", "--include", "keep.log") == {
        "a.txt",
        "sub/c.txt",
        "tmp/e.txt",
    }
    assert kept("four", "--include", "*.log") == {"b.log", "keep.log", "sub/d.log"}
    assert kept("five", "--exclude", "/sub") == {"a.txt", "b.log", "keep.log", "tmp/e.txt"}
    assert kept("six", "--max-depth", "1") == {"a.txt", "b.log", "keep.log"}


def test_sizes_and_ages(
    fastsync: Fastsync, plant: Plant, picture: Callable[..., Picture], tmp_path: Path
) -> None:
    plant(tmp_path / "src", {"old": "x" * 10, "small": "x" * 10, "large": "x" * 5000})
    for name in ("small", "large"):
        os.utime(tmp_path / "src" / name)

    def kept(name: str, *options: str) -> set[str]:
        assert fastsync("cp", "-R", *options, "src/", name).code == 0
        return set(picture(tmp_path / name))

    assert kept("one", "--min-size", "1K") == {"large"}
    assert kept("two", "--max-size", "10") == {"old", "small"}
    assert kept("three", "--max-age", "1d") == {"small", "large"}
    assert kept("four", "--min-age", "1d") == {"old"}
    assert kept("five", "--min-size", "10", "--max-size", "10", "--max-age", "2h") == {"small"}


# -- names, and trees of all shapes ------------------------------------------------------------------


def test_odd_names(
    fastsync: Fastsync, plant: Plant, picture: Callable[..., Picture], tmp_path: Path
) -> None:
    spec: dict[str, str | bytes | Path] = {}
    for name in map(os.fsdecode, ODD_NAMES):
        spec[f"files/{name}"] = os.fsencode(name)
        spec[f"dirs/{name}/{name}"] = os.fsencode(name)
        spec[f"links/{name}"] = Path(f"to/{name}")
    plant(tmp_path / "src", spec)
    done = fastsync("cp", "-R", "-v", "src", "dest")
    assert done.code == 0
    assert picture(tmp_path / "dest") == picture(tmp_path / "src")
    for shown in (r"new\nline", r"esc\x1b[31mred", r"bad\xff\xfeutf8", r"\u202egnp", r"\x7f\x01"):
        assert shown in done.stderr
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", done.stderr)
    assert counts(fastsync("cp", "-R", "--summarize", "src/", "dest")) == (0, 2 * len(ODD_NAMES))


def test_odd_names_that_are_named(fastsync: Fastsync, tmp_path: Path) -> None:
    for name in ODD_NAMES:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(name)
    assert fastsync("cp", "--", *ODD_NAMES, "all/") == (0, "", "")
    assert sorted(os.listdir(os.fsencode(tmp_path / "all"))) == sorted(ODD_NAMES)
    for name in ODD_NAMES:
        with open(os.path.join(os.fsencode(tmp_path), b"all", name), "rb") as file:
            assert file.read() == name
    for name in (b"-rf", b"new\nline", b"bad\xff\xfeutf8", b"n" * 255):
        assert fastsync("cp", "--", name, "one") == (0, "", "")
        assert (tmp_path / "one").read_bytes() == name
        assert fastsync("cp", "--", "all/-rf", name) == (0, "", "")
        with open(os.path.join(os.fsencode(tmp_path), name), "rb") as file:
            assert file.read() == b"-rf"


def test_empty_files_and_directories(
    fastsync: Fastsync, plant: Plant, picture: Callable[..., Picture], tmp_path: Path
) -> None:
    plant(tmp_path, {"src/empty": "", "src/dir/": "", "src/deep/deeper/deepest/": "", "none/": ""})
    assert fastsync("cp", "-R", "src", "dest").code == 0
    assert picture(tmp_path / "dest") == picture(tmp_path / "src")
    assert fastsync("cp", "-R", "none", "dest-of-none") == (0, "", "")
    assert os.listdir(tmp_path / "dest-of-none") == []


def plant_deep(root: Path, levels: int) -> None:
    """Directories in directories, deeper than any path may be long, with files before and after."""
    root.mkdir()
    at = os.open(root, os.O_RDONLY)
    for level in range(levels):
        for name in ("a", "z"):
            os.close(os.open(f"{name}{level}", os.O_CREAT | os.O_WRONLY, dir_fd=at))
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)


def depth(root: Path) -> int:
    """How deep it goes, with both files on every level."""
    at = os.open(root, os.O_RDONLY)
    level = 0
    while (names := set(os.listdir(at))) != set():
        assert names == {"d", f"a{level}", f"z{level}"}
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
        level += 1
    os.close(at)
    return level


def test_a_deep_tree(
    fastsync: Fastsync,
    under_limit: Callable[[str], list[str]],
    remove_at_end: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    """Deeper than a path may be long, with descriptors for a fraction of it."""
    levels = 3000
    under = under_limit("-n 64")
    plant_deep(remove_at_end(tmp_path / "src"), levels)
    remove_at_end(tmp_path / "dest")
    done = fastsync("cp", "-R", "--summarize", "src", "dest", under=under)
    assert counts(done) == (2 * levels, 0)
    assert depth(tmp_path / "dest") == levels
    done = fastsync("sync", "--delete", "--summarize", "src", "dest", under=under)
    assert counts(done) == (0, 2 * levels)
    done = fastsync("ls", "-R", "src", under=under)
    assert (done.code, done.stdout.count("\n")) == (0, 3 * levels)
    (tmp_path / "src/d").rename(tmp_path / "src/e")
    done = fastsync("sync", "--delete", "--max-delete", "100%", "src", "dest", under=under)
    assert (done.code, done.stderr) == (0, "")
    assert sorted(os.listdir(tmp_path / "dest")) == ["a0", "e", "z0"]


def test_many_files_in_one_directory(
    fastsync: Fastsync,
    plant: Plant,
    picture: Callable[..., Picture],
    under_limit: Callable[[str], list[str]],
    tmp_path: Path,
) -> None:
    """With more streams asked for than there are descriptors."""
    plant(tmp_path / "src", {f"file {index}": str(index) for index in range(5000)})
    command = ("cp", "-R", "--summarize", "-p", "64", "-j", "64", "src", "dest")
    assert counts(fastsync(*command, under=under_limit("-n 64"))) == (5000, 0)
    assert picture(tmp_path / "dest") == picture(tmp_path / "src")


def test_what_is_no_file_is_left_out_and_counted(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    src = plant(tmp_path / "src", {"a": "a"})
    os.mkfifo(src / "pipe")
    expected = 2
    with socket.socket(socket.AF_UNIX) as listening:
        # The path of a socket has to be short, so it is bound where it is.
        directory = os.open(src, os.O_RDONLY)
        listening.bind(f"/proc/self/fd/{directory}/socket")
        os.close(directory)
        if os.geteuid() == 0:
            os.mknod(src / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
            expected = 3
        done = fastsync("cp", "-R", "--summarize", "src", "dest")
    assert counts(done) == (1, 0)
    assert f"Left out: {expected} " in done.stdout
    assert os.listdir(tmp_path / "dest") == ["a"]
    done = fastsync("cp", "-R", "--json", "src/", "dest")
    assert f'"specials_skipped": {expected}' in done.stdout


def test_a_pipe_that_is_named(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    """Who names a pipe wants it copied; that it was not is no success."""
    plant(tmp_path, {"a": "a"})
    os.mkfifo(tmp_path / "pipe")
    done = fastsync("cp", "pipe", "a", "dest/")
    assert done.code == 1
    assert "pipe" in done.stderr
    assert os.listdir(tmp_path / "dest") == ["a"]


def test_read_only_directories_are_copied_and_updated(
    fastsync: Fastsync,
    plant: Plant,
    unprivileged: list[str],
    picture: Callable[..., Picture],
    remove_at_end: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    remove_at_end(tmp_path)
    src = plant(tmp_path / "src", {"dir/a": "a", "dir/sub/b": "b", "dir/gone": "g"})
    for mode in (0o755, 0o555):
        for directory in ("dir/sub", "dir", "."):
            (src / directory).chmod(mode)
    for options in ((), ("-a",)):
        dest = tmp_path / f"dest{''.join(options)}"
        assert fastsync("sync", *options, "src", dest, under=unprivileged) == (0, "", "")
        assert picture(dest, directory_times=bool(options)) == picture(
            src, directory_times=bool(options)
        )
        assert stat.S_IMODE(dest.stat().st_mode) == 0o555
        assert fastsync("sync", *options, "src", dest, under=unprivileged) == (0, "", "")
    # What changed inside them changes there.
    for directory in ("dir", "dir/sub"):
        (src / directory).chmod(0o755)
    (src / "dir/sub/b").write_text("changed")
    (src / "dir/gone").unlink()
    (src / "dir/sub/new").mkdir()
    (src / "dir/sub/new/c").write_text("c")
    (src / "dir/sub/new").chmod(0o555)
    for directory in ("dir/sub", "dir"):
        (src / directory).chmod(0o555)
    for options in ((), ("-a",)):
        dest = tmp_path / f"dest{''.join(options)}"
        done = fastsync("sync", "--delete", *options, "src", dest, under=unprivileged)
        assert done == (0, "", "")
        assert picture(dest, directory_times=bool(options)) == picture(
            src, directory_times=bool(options)
        )


def test_temporary_files_of_others_are_neither_copied_nor_deleted(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    name = ".fs-0123456789abcdef.part"
    almost = ".fs-0123456789abcdeX.part"
    plant(tmp_path, {f"src/{name}": "x", "src/a": "a", f"src/{almost}": "y", f"dest/{name}": "z"})
    assert fastsync("sync", "--delete", "src", "dest").code == 0
    assert sorted(os.listdir(tmp_path / "dest")) == sorted([name, almost, "a"])
    assert (tmp_path / "dest" / name).read_text() == "z"
    assert fastsync("ls", "-R", "src").stdout == f"{almost}\na\n"


def test_a_dash_is_a_stream_and_not_a_name(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    plant(tmp_path, {"a": "a", "-": "a file with a bad name"})
    assert fastsync("cp", "a", "-") == (0, "a", "")
    assert fastsync("cp", "./-", "-") == (0, "a file with a bad name", "")
    assert fastsync("cp", "-", "b").code == 0
    assert (tmp_path / "b").read_text() == ""
    assert fastsync("cp", "./-", "b").code == 0
    assert (tmp_path / "b").read_text() == "a file with a bad name"


def test_everything_is_as_rsync_would_have_it(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    """Another program's word on a tree with a bit of all."""
    plant(
        tmp_path / "src",
        {"a": "a", "b/c": b"c" * 200_000, "b/link": Path("../a"), "d/e/f": "", "empty/": ""},
    )
    (tmp_path / "src/a").chmod(0o604)
    assert fastsync("cp", "-a", "src/", "dest").code == 0
    try:
        left = subprocess.run(
            ["rsync", "-ain", "--delete", "--checksum", "src/", "dest"],
            cwd=tmp_path,
            capture_output=True,
            check=True,
            text=True,
        )
    except FileNotFoundError:
        pytest.skip("there is no rsync")
    assert left.stdout == ""
