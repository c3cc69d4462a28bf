"""Held directories: reached name by name, never through a planted link, and all closed in the end."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsync.errors import NameRefused, UsageError, from_os_error
from fastsync_local.held import MAX_HELD, HeldDirectories, Root, open_root

# More levels than are held, several times over.
DEEP = 3 * MAX_HELD + 7


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def path_of(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


@pytest.fixture(autouse=True)
def _closes_all() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


@contextlib.contextmanager
def holding(root: Path, *, follow: bool = False) -> Iterator[HeldDirectories]:
    held = HeldDirectories(open_root(str(root)), follow=follow)
    try:
        yield held
    finally:
        held.close()


def level(depth: int) -> str:
    """The path of a directory so many levels down."""
    return "/".join(f"level{number}" for number in range(depth))


# -- going where one is told to -----------------------------------------------------------------------


def test_the_root(tmp_path: Path) -> None:
    with holding(tmp_path) as held:
        assert path_of(held.get("")) == str(tmp_path)


def test_any_way_through_a_tree(tmp_path: Path) -> None:
    """Down, up, sideways and again: always the directory that was asked for."""
    paths = [
        "a",
        "a/b",
        "a/b/c",
        "a/d",
        "e",
        "e/f/g/h",
        "a/b",
        "",
        "e/f",
        "e/f/g/h",
        "a/b/c/x",
        "a",
    ]
    with holding(tmp_path) as held:
        for path in [*paths, *reversed(paths)]:
            assert path_of(held.get(path, create=True)) == str(tmp_path / path).rstrip("/")
            assert path_of(held.get(path)) == str(tmp_path / path).rstrip("/")


SEGMENTS = st.sampled_from(["a", "b", "a-b", "\u00e9", "\udcff", "a b", "..a", "...", "\n"])
GOOD = st.lists(SEGMENTS, max_size=DEEP // 3).map("/".join)


@settings(max_examples=40, deadline=None)
@given(ways=st.lists(GOOD, min_size=1, max_size=12))
def test_any_names(ways: list[str]) -> None:
    with tempfile.TemporaryDirectory() as top, holding(Path(top)) as held:
        for path in ways:
            fd = held.get(path, create=True)
            assert os.path.samestat(os.fstat(fd), os.stat(os.path.join(top, path)))


# Paths that mean to get out, or have no meaning below a root.
BAD = st.lists(SEGMENTS | st.sampled_from(["..", ".", "", "x\0", "\ud800"]), max_size=6).map(
    "/".join
)


@settings(max_examples=150, deadline=None)
@given(path=BAD | BAD.map("/{}".format) | st.text(max_size=6), create=st.booleans())
def test_no_name_leaves_the_root(path: str, create: bool) -> None:
    """Whatever is asked for is inside, or refused; the neighbours of the root never change."""
    with tempfile.TemporaryDirectory() as top:
        root = Path(top, "root")
        root.mkdir()
        with holding(root) as held:
            try:
                fd = held.get(path, create=create)
            except (NameRefused, FileNotFoundError):
                pass
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
            else:
                assert (path_of(fd) + "/").startswith(f"{root}/")
        assert os.listdir(top) == ["root"]


@pytest.mark.parametrize(
    "path", ["..", "../x", "a/..", "a/../b", ".", "./a", "a//b", "/a", "a/", "a\0", "\ud800"]
)
def test_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "a").mkdir()
    with holding(tmp_path) as held:
        held.get("a")
        with pytest.raises(NameRefused):
            held.get(path, create=True)
        assert path_of(held.get("a")) == str(tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]


def test_missing(tmp_path: Path) -> None:
    """Without `create` nothing is made; a failure on the way leaves the chain usable."""
    (tmp_path / "a/b").mkdir(parents=True)
    with holding(tmp_path) as held:
        for path in ("x", "a/x", "a/b/x/y", "a/x/b"):
            with pytest.raises(FileNotFoundError):
                held.get(path)
            assert path_of(held.get("a/b")) == str(tmp_path / "a/b")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["a", "a/b"]


def test_made_by_somebody_else_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = os.mkdir

    def late(name: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        mkdir(name, mode, dir_fd=dir_fd)
        mkdir(name, mode, dir_fd=dir_fd)  # as if the other one had been faster: raises

    monkeypatch.setattr(os, "mkdir", late)
    with holding(tmp_path) as held:
        assert path_of(held.get("a/b", create=True)) == str(tmp_path / "a/b")


# -- links --------------------------------------------------------------------------------------------


def is_refusal(error: OSError) -> bool:
    """What a component that is no directory of ours looks like, and that the borders know it."""
    assert from_os_error(error).exit_code == 1
    return error.errno in (errno.ELOOP, errno.ENOTDIR)


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("target", ["outside", "inside", ".", "missing", "file"])
@pytest.mark.parametrize("path", ["door", "door/x", "deep/door", "deep/door/x/y"])
def test_a_planted_link(tmp_path: Path, path: str, target: str, create: bool) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for directory in (root / "deep", root / "inside", outside / "x"):
        directory.mkdir(parents=True)
    (outside / "file").touch()
    goals = {"outside": outside, "inside": root / "inside", "file": outside / "file"}
    for at in (root / "door", root / "deep/door"):
        at.symlink_to(goals.get(target, target))
    before = sorted(tmp_path.rglob("*"))
    with holding(root) as held:
        held.get("deep")
        with pytest.raises(OSError, match=r".") as met:
            held.get(path, create=create)
        assert is_refusal(met.value)
        assert path_of(held.get("inside")) == str(root / "inside")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with holding(tmp_path) as held, pytest.raises(NotADirectoryError):
        held.get("file/x", create=True)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_link_swapped_in_between_two_calls(tmp_path: Path, depth: int) -> None:
    """What is held stays what it was; what has to be opened again is not reached through the link."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "a/b/c").mkdir(parents=True)
    (outside / "b/c").mkdir(parents=True)
    (outside / "c").mkdir()
    path = "/".join("abc"[:depth])
    with holding(root) as held:
        inside = os.fstat(held.get("a/b/c"))
        os.rename(root / path, tmp_path / "moved")
        (root / path).symlink_to(outside)
        # Still the same call: the directory we hold, wherever it was moved.
        assert os.path.samestat(os.fstat(held.get("a/b/c")), inside)
        held.get("")
        with pytest.raises(OSError, match=r".") as met:
            held.get("a/b/c", create=True)
        assert is_refusal(met.value)
    assert sorted(path.name for path in outside.rglob("*")) == ["b", "c", "c"]


@pytest.mark.parametrize("swapped", [0, 1, MAX_HELD - 1, MAX_HELD, MAX_HELD + 1, DEEP - 2])
def test_a_link_swapped_in_far_above(tmp_path: Path, swapped: int) -> None:
    """On the way back up, levels that were let go are not looked for under their old name alone."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    os.makedirs(root / level(DEEP))
    os.makedirs(outside / level(DEEP))
    with holding(root) as held:
        held.get(level(DEEP))
        victim = root / level(swapped + 1)
        os.rename(victim, tmp_path / "moved")
        victim.symlink_to(outside)
        for depth in range(DEEP - 1, -1, -1):
            try:
                fd = held.get(f"{level(depth)}/new".lstrip("/"), create=True)
            except OSError as error:
                if not is_refusal(error):
                    raise
            else:
                assert not path_of(fd).startswith(str(outside))
    assert not any(path.name == "new" for path in outside.rglob("*"))


@settings(max_examples=25, deadline=None)
@given(
    ways=st.lists(
        st.tuples(st.lists(st.sampled_from("abc"), max_size=8), st.integers(0, 8)),
        min_size=1,
        max_size=12,
    )
)
def test_swapping_all_the_time(ways: list[tuple[list[str], int]]) -> None:
    """Between any two calls a directory on the way becomes a link out, and back again."""
    with tempfile.TemporaryDirectory() as top:
        root, outside = Path(top, "root"), Path(top, "outside")
        root.mkdir()
        outside.mkdir()
        with holding(root) as held:
            for names, cut in ways:
                door = root.joinpath(*names[: cut % (len(names) + 1)])
                planted = door != root and door.is_dir() and not door.is_symlink()
                if planted:
                    os.rename(door, Path(top, "aside"))
                    door.symlink_to(outside)
                with contextlib.suppress(OSError):
                    held.get("/".join(names), create=True)
                if planted:
                    door.unlink()
                    os.rename(Path(top, "aside"), door)
                assert os.listdir(outside) == []


def test_follow(tmp_path: Path) -> None:
    """For a source whose links the user asked to follow they are doors like any other."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    (outside / "b").mkdir(parents=True)
    root.mkdir()
    (root / "door").symlink_to(outside)
    with holding(root, follow=True) as held:
        assert path_of(held.get("door/b")) == str(outside / "b")
        with pytest.raises(NameRefused):
            held.get("door/../outside")


# -- descriptors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("follow", [True, False])
def test_deep(tmp_path: Path, follow: bool) -> None:
    """However deep, few descriptors are held, and every level can be reached on the way back."""
    before = descriptors()
    with holding(tmp_path, follow=follow) as held:
        for depth in [*range(DEEP + 1), *range(DEEP, -1, -1), DEEP, 0, DEEP // 2]:
            fd = held.get(level(depth), create=True)
            assert path_of(fd) == str(tmp_path / level(depth)).rstrip("/")
            assert descriptors() - before <= MAX_HELD + 3
            beside = held.get(f"{level(depth)}/beside".lstrip("/"), create=True)
            assert path_of(beside) == str(tmp_path / level(depth) / "beside")


def test_deeper_than_any_path_may_be_long(tmp_path: Path) -> None:
    """Names are opened one by one, so PATH_MAX is no limit."""
    name = "n" * 200
    depth = 40
    assert depth * len(name) > os.pathconf(tmp_path, "PC_PATH_MAX")
    with holding(tmp_path) as held:
        inside = os.stat(held.get("/".join([name] * depth), create=True))
        assert not os.path.samestat(inside, os.stat(held.get("/".join([name] * (depth - 1)))))
        assert os.path.samestat(inside, os.stat(held.get("/".join([name] * depth))))


def test_close_twice(tmp_path: Path) -> None:
    held = HeldDirectories(open_root(str(tmp_path)))
    held.get("a/b/c", create=True)
    held.close()
    held.close()


# -- the root -----------------------------------------------------------------------------------------


def test_a_root_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    fd = open_root(str(tmp_path / "link"))
    assert path_of(fd) == str(tmp_path / "real")
    os.close(fd)


THEM = 12345
gives_away = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give links away")


@gives_away
@pytest.mark.parametrize(
    ("mode", "directory", "is_fine"),
    [
        (0o1777, 0, False),
        (0o777, 0, False),
        (0o775, 0, False),
        (0o755, 0, True),  # we put it there, or root
        (0o1777, THEM, True),  # in their directory
    ],
)
@pytest.mark.parametrize("place", ["link", "link/sub", "by/sub"])
def test_a_link_of_somebody_else(
    tmp_path: Path, mode: int, directory: int, is_fine: bool, place: str
) -> None:
    """What they lay for us to write to, wherever on the way it stands, is not gone through."""
    (tmp_path / "ours").mkdir()
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/link").symlink_to("../ours")
    (tmp_path / "shared/by").symlink_to("link")
    os.lchown(tmp_path / "shared/link", THEM, -1)
    os.chown(tmp_path / "shared", directory, THEM)
    (tmp_path / "shared").chmod(mode)
    root = Root(f"{tmp_path}/shared/{place}")
    if is_fine:
        os.close(root.descriptor(create=True))
    else:
        for _ in range(2):
            with pytest.raises(
                UsageError, match="a link of another user leads to the dest"
            ) as error:
                root.descriptor(create=True)
            assert error.value.where == f"{tmp_path}/shared/link"
        assert os.listdir(tmp_path / "ours") == []
    root.close()


@gives_away
def test_a_link_of_somebody_else_that_was_read_before(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "link").symlink_to("ours")
    os.lchown(tmp_path / "link", THEM, -1)
    tmp_path.chmod(0o1777)
    root = Root(str(tmp_path / "link"))
    os.close(root.descriptor())
    with pytest.raises(UsageError):
        root.descriptor(target=True)
    with pytest.raises(UsageError):
        root.identity(target=True)
    root.close()


def test_a_root_that_is_exchanged_while_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "other").mkdir()
    real = open_root

    def swapped(path: str) -> int:
        os.rename(path, tmp_path / "moved")
        os.symlink("other", path)
        return real(path)

    monkeypatch.setattr("fastsync_local.held.open_root", swapped)
    root = Root(str(tmp_path / "root"))
    with pytest.raises(UsageError, match="replaced"):
        root.descriptor(create=True)
    root.close()


def test_a_root_stays_what_it_was(tmp_path: Path) -> None:
    """Opened once: whoever replaces it later does not send our work elsewhere."""
    (tmp_path / "root").mkdir()
    root = Root(str(tmp_path / "root"))
    first = root.descriptor()
    os.rename(tmp_path / "root", tmp_path / "moved")
    (tmp_path / "root").symlink_to(tmp_path)
    second = root.descriptor()
    assert path_of(first) == path_of(second) == str(tmp_path / "moved")
    os.close(first)
    os.close(second)
    root.close()
    root.close()


def test_a_root_that_has_to_be_made(tmp_path: Path) -> None:
    root = Root(str(tmp_path / "a/b"))
    with pytest.raises(FileNotFoundError):
        root.descriptor()
    assert os.listdir(tmp_path) == []
    fd = root.descriptor(create=True)
    assert path_of(fd) == str(tmp_path / "a/b")
    path, identity = root.identity(target=True)
    status = os.fstat(fd)
    assert (path, identity) == (str(tmp_path / "a/b"), (status.st_dev, status.st_ino))
    os.close(fd)
    root.close()


def test_listings_of_one_root_do_not_share_a_position(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).touch()
    root = Root(str(tmp_path))
    one, other = root.descriptor(), root.descriptor()
    with os.scandir(one) as first, os.scandir(other) as second:
        assert len(list(first)) == len(list(second)) == 3
    os.close(one)
    os.close(other)
    root.close()


def test_durable_directories_are_on_the_disk_before_they_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root").mkdir()
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    held = HeldDirectories(open_root(str(tmp_path / "root")), durable=True)
    held.get("a/b", create=True)
    held.close()
    top = str(tmp_path / "root")
    assert synced == [top, f"{top}/a"]
    root = Root(str(tmp_path / "x/y/z"))
    for durable in (False, True, True):
        os.close(root.descriptor(create=True, durable=durable))
    root.close()
    assert synced[2:] == [str(tmp_path), f"{tmp_path}/x", f"{tmp_path}/x/y"]
