"""Disks that take two names for one. There is none at hand, so the calls are made to behave as on one."""

from __future__ import annotations

import errno
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fastsync as library
from fastsync.errors import NameRefused
from fastsync_local.spelling import refuse_other_spelling


def folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


@pytest.fixture
def folding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A directory in which neither case nor composition makes a difference, and the first spelling stays."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def spelled(name: Any, directory: int | None) -> Any:
        if directory is None or not isinstance(name, str) or "/" in name:
            return name
        if not os.readlink(f"/proc/self/fd/{directory}").startswith(str(disk)):
            return name
        there = (each for each in os.listdir(directory) if folded(each) == folded(name))
        return next(there, name)

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(name: Any, *arguments: Any, dir_fd: int | None = None, **more: Any) -> Any:
            if call is mkdir and spelled(name, dir_fd) in os.listdir(dir_fd or "."):
                raise FileExistsError(errno.EEXIST, "file exists")
            return call(spelled(name, dir_fd), *arguments, dir_fd=dir_fd, **more)

        return wrapped

    mkdir = os.mkdir
    for name in ("open", "lstat", "stat", "unlink", "rmdir", "mkdir"):
        monkeypatch.setattr(os, name, wrap(getattr(os, name)))
    rename = os.rename

    def renamed(old: str, new: str, *, src_dir_fd: Any = None, dst_dir_fd: Any = None) -> None:
        rename(old, spelled(new, dst_dir_fd), src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "rename", renamed)
    return disk


PAIRS = [
    ("A", "a"),
    ("cafe\N{COMBINING ACUTE ACCENT}", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"),
    ("Dir/x", "dir/x"),
    ("Dir/y", "dir/x"),
]


@pytest.mark.parametrize(("one", "other"), PAIRS)
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("foreseen", [False, True])
def test_the_second_of_two_is_refused(
    folding: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one: str,
    other: str,
    *,
    inplace: bool,
    foreseen: bool,
) -> None:
    """The first stays as it is, run after run, and what was there before is not deleted."""
    if not foreseen:
        monkeypatch.setattr("fastsync_local.store.folds_below", lambda _path: False)
    for name in (one, other, "plain"):
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / name).write_text(f"content of {name!r}")
    (folding / "extra").write_text("x")
    for _ in range(2):
        summary = library.sync(tmp_path / "src", folding, delete=True, inplace=inplace)
        assert summary.exit_code == 1
        assert all("takes it for" in str(item.error) for item in summary.failures)
        assert summary.failures
        assert (folding / one).read_text() == f"content of {one!r}"
        assert (folding / "plain").exists()
        assert (folding / "extra").exists()
    assert sum(path.is_file() for path in folding.rglob("*")) == 3


def test_another_spelling_at_the_destination(folding: Path, tmp_path: Path) -> None:
    """Copying "a" over "A", then deleting "A", would leave nothing."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a").write_text("new")
    (folding / "A").write_text("old")
    assert library.sync(tmp_path / "src", folding, delete=True).exit_code == 1
    assert (folding / "A").read_text() == "old"


def test_two_names_of_one_file_are_no_conflict(tmp_path: Path) -> None:
    (tmp_path / "A").touch()
    os.link(tmp_path / "A", tmp_path / "a")
    directory = os.open(tmp_path, os.O_RDONLY)
    for name in ("A", "a", "new"):
        refuse_other_spelling(directory, name)
    os.close(directory)


def test_it_is_refused(folding: Path) -> None:
    (folding / "Name").touch()
    directory = os.open(folding, os.O_RDONLY)
    with pytest.raises(NameRefused, match="'Name'"):
        refuse_other_spelling(directory, "name")
    refuse_other_spelling(directory, "Name")
    os.close(directory)
