"""Faults of local disks and trees, for the scoreboard. Most need root, for mounts; some need FUSE too."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from faulty_disk import mounted
from scoreboard_run import OLD_S, SMALL, CannotRun, Case, Files, Scene, found, noise, plant

TOOLS = ("fastsync", "rclone", "rsync", "cp")
SAYS = {
    "fastsync": "`fastsync sync [--delete]`",
    "rclone": "`rclone copy`, or `rclone sync` to delete",
    "rsync": "`rsync -a [--delete]`",
    "cp": "`cp -a`, which does not delete",
}
OLD = {"file": b"the old one", "extra": b"only here"}
# What is only here may go as soon as the source has been listed; below dir/, once that has been.
OLD_DEEP = {"file": b"the old one", "dir/other": b"old", "dir/extra": b"only here"}
# Exchanges two names for ever, with renameat2(2): AT_FDCWD twice, RENAME_EXCHANGE.
_FLIP = """
import ctypes, os, sys, time
one, other = map(os.fsencode, sys.argv[1:])
exchange = ctypes.CDLL(None).renameat2
while True:
    exchange(-100, one, -100, other, 2)
    time.sleep(0.00005)
"""


@dataclass(frozen=True)
class LocalCase(Case):
    """`disk` are faults of the destination's disk, `read_disk` of the source's (see faulty_disk.py).
    `small_disk` has the destination on one of so many bytes, mounted with `mount_options`. `meddle` does
    something before the run, `undo` takes it back. `flips`: dest/dir and a link that leads out are exchanged
    all the time. `under` goes before the command."""

    disk: Mapping[str, Any] = field(default_factory=dict)
    read_disk: Mapping[str, Any] = field(default_factory=dict)
    small_disk: int | None = None
    read_only: bool = False
    meddle: Callable[[Scene], object] | None = None
    undo: Callable[[Scene], object] | None = None
    flips: bool = False
    under: tuple[str, ...] = ()

    def scene(self, root: Path) -> Scene:
        return _Trees(self, root)


class _Trees(Scene):
    def __init__(self, case: LocalCase, root: Path) -> None:
        super().__init__(root)
        self._case = case
        self._healed = False

    def open(self) -> None:
        case = self._case
        if case.small_disk is not None:
            _mount("-t", "tmpfs", "-o", f"size={case.small_disk}", "tmpfs", str(self.dest))
            self.stack.callback(self._umount)
        real_source = self.root / "read" if case.read_disk else self.source
        plant(real_source, case.source)
        plant(self.root / "written" if case.disk else self.dest, case.old, OLD_S)
        try:
            if case.read_disk:
                told = {k: _told(v, self.root) for k, v in case.read_disk.items()}
                plant(self.root / "other", {"file": case.also["file"][0]} if case.also else {})
                self.stack.enter_context(mounted(real_source, self.source, **told))
            if case.disk:
                self.dest.rmdir()
                self.stack.enter_context(mounted(self.root / "written", self.dest, **case.disk))
        except pytest.skip.Exception as exc:
            raise CannotRun(str(exc)) from exc
        if case.read_only:
            _mount("-o", "remount,ro", str(self.dest))
        if case.flips:
            plant(self.place / "outside", {"theirs": b"theirs"})
            (self.place / "aside").symlink_to(self.place / "outside")
        if case.meddle is not None:
            case.meddle(self)
        self.stack.callback(self._undo)

    def command(self, tool: str, path: str) -> list[str] | None:
        delete = ["--delete"] if self._case.delete else []
        source, dest = f"{self.source}/", f"{self.dest}/"
        under = self._case.under
        if tool == "fastsync":
            return [*under, path, "sync", *delete, source, dest]
        if tool == "rclone":
            return [*under, path, "sync" if delete else "copy", source, dest]
        if tool == "rsync":
            return [*under, path, "-a", *delete, source, dest]
        return [*under, path, "-a", f"{source}.", dest]

    @contextmanager
    def meanwhile(self) -> Iterator[None]:
        if not self._case.flips:
            yield
            return
        directory, aside = self.dest / "dir", self.place / "aside"
        flipping = subprocess.Popen([sys.executable, "-c", _FLIP, directory, aside])
        try:
            yield
        finally:
            flipping.kill()
            flipping.wait()
        # The directory is to be in its place again, whichever of the two names is the link's.
        if aside.is_symlink():
            aside.unlink()
            return
        if directory.is_symlink():
            directory.unlink()
        else:  # somebody has made another directory in the link's place
            shutil.copytree(directory, aside, dirs_exist_ok=True)
            shutil.rmtree(directory)
        aside.rename(directory)

    def heal(self) -> None:
        """What a disk holds that goes away stays, with its times."""
        case = self._case
        self._undo()
        for is_there, at, real in (
            (case.read_disk, self.source, "read"), (case.disk, self.dest, "written"),
        ):  # fmt: skip
            if is_there:
                subprocess.run(["umount", "-l", str(at)], check=True)
                at.rmdir()
                (self.root / real).rename(at)
        if case.small_disk is not None:
            shutil.copytree(self.dest, self.root / "kept", symlinks=True)
            self._umount()
            self.dest.rmdir()
            (self.root / "kept").rename(self.dest)

    def there(self) -> Files:
        """What lies below a disk that fails is seen past it."""
        below = self.root / "written"
        return found(below if below.is_dir() else self.dest)

    def has_begun(self) -> bool:
        return any(each.stat().st_mtime != OLD_S for each in os.scandir(self.dest))

    def _undo(self) -> None:
        if not self._healed and self._case.undo is not None:
            self._case.undo(self)
        self._healed = True

    def _umount(self) -> None:
        if os.path.ismount(self.dest):
            subprocess.run(["umount", "-l", str(self.dest)], check=True)


def _told(fault: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """A fault as the disk reads it: names of files in what it runs are in the scene."""
    return {
        key: [each.replace("ROOT", str(root)) for each in value] if key == "runs" else value
        for key, value in fault.items()
    }


def _mount(*arguments: str) -> None:
    if os.geteuid() != 0:
        raise CannotRun("it takes root to mount a disk")
    done = subprocess.run(["mount", *arguments], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise CannotRun(done.stderr.strip())


# -- the cases ---------------------------------------------------------------------------------------------


def cases(seed: int) -> list[LocalCase]:
    return [*_disks(seed), *_changes(seed), *_trees(seed)]


def _disks(seed: int) -> list[LocalCase]:
    few = {"file": noise(SMALL, seed), "dir/other": noise(300, seed + 1)}
    large = {"file": noise(12 << 20, seed), "other": noise(300, seed + 1)}
    after = {"ending": "file", "after": 100_000}
    eio = {"errno": errno.EIO}

    def reading(
        name: str, about: str, code: int, faults: dict[str, Any], *, keeps: bool = False
    ) -> LocalCase:
        return LocalCase(
            name, about, few, OLD_DEEP, (code,), delete=True, keeps=keeps, read_disk=faults
        )

    def writing(name: str, about: str, codes: tuple[int, ...], faults: dict[str, Any]) -> LocalCase:
        # A temporary file has any name, but is as long as what it is for: by offset alone.
        return LocalCase(name, about, few, OLD, codes, delete=True, keeps=False, disk=faults)

    return [
        LocalCase("full", "a full disk below an old file", large, OLD, (7,), delete=True, keeps=False,
                  small_disk=8 << 20),
        writing("quota", "a quota that is used up", (7,),
                {"write": {"errno": errno.EDQUOT, "after": 100_000}}),
        LocalCase("read-only", "a disk that is read-only", few, OLD, (7,), delete=True, keeps=False,
                  small_disk=8 << 20, read_only=True),
        reading("eio-read", "a block that cannot be read", 1, {"read": after | eio}),
        reading("eio-list", "a directory that cannot be read to its end", 3,
                {"readdir": {"ending": "dir", **eio}}, keeps=True),
        writing("eio-write", "a block that cannot be written", (1, 7), {"write": {"after": 100_000, **eio}}),
        writing("eio-close", "writes that fail when the file is closed", (1, 7), {"flush": eio}),
        writing("eio-rename", "renames fail", (1, 7), {"rename": eio}),
        LocalCase("folds", "a disk that takes two names for one", {"name": b"one", "Name": b"other"},
                  {"extra": b"only here"}, (1,), disk={"folds": True}),
    ]  # fmt: skip


def _changes(seed: int) -> list[LocalCase]:
    size = 6 << 20
    content = {"file": noise(size, seed), "other": noise(300, seed + 1)}
    other = noise(size, seed + 2)

    def changing(name: str, about: str, new: bytes) -> LocalCase:
        # In place, so that who has it open sees it; once somebody has come to the middle.
        runs = ["cp", "ROOT/other/file", "ROOT/read/file"]
        return LocalCase(
            name, about, content, OLD, (0, 8), {"file": [new]}, delete=True, keeps=False,
            read_disk={"read": {"ending": "file", "after": size // 2, "times": 1, "runs": runs}},
        )  # fmt: skip

    return [
        changing("rewritten", "a source that is written over while it is read", other),
        changing("shrinks", "a source that is cut short while it is read", other[: size // 3]),
        changing("grows", "a source that grows while it is read", content["file"] + other[:50_000]),
    ]


def _trees(seed: int) -> list[LocalCase]:
    few = {"file": noise(SMALL, seed), "dir/other": noise(300, seed + 1)}
    many = {f"new{number:04}": noise(20_000, seed + number) for number in range(2000)}
    many["new"] = noise(32 << 20, seed)
    deep = {f"dir/{number % 5}/{number}": noise(100, number) for number in range(3000)}
    powerless = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()

    def planted(scene: Scene) -> None:
        plant(scene.place / "outside", {"other": b"theirs"})
        (scene.dest / "dir").symlink_to(scene.place / "outside")

    def unplant(scene: Scene) -> None:
        if (scene.dest / "dir").is_symlink():
            (scene.dest / "dir").unlink()

    return [
        LocalCase(
            "closed-dir", "a directory of the source that may not be read", few, OLD_DEEP, (3,),
            delete=True, under=powerless,
            meddle=lambda scene: (scene.source / "dir").chmod(0),
            undo=lambda scene: (scene.source / "dir").chmod(0o755),
        ),
        LocalCase(
            "closed-file", "a file of the source that may not be read", few, OLD_DEEP, (1,),
            delete=True, keeps=False, under=powerless,
            meddle=lambda scene: (scene.source / "file").chmod(0),
            undo=lambda scene: (scene.source / "file").chmod(0o644),
        ),
        LocalCase(
            "missing", "a source that does not exist", few, OLD, (3,), delete=True,
            meddle=lambda scene: scene.source.rename(scene.root / "moved"),
            undo=lambda scene: (scene.root / "moved").rename(scene.source),
        ),
        LocalCase("planted", "a link out, where a directory should be", few, OLD, delete=True, keeps=False,
                  meddle=planted, undo=unplant),
        LocalCase("flips", "a directory that is exchanged for a link out, all the time", deep,
                  {"dir/0/extra": b"x"}, (0, 1, 3, 6, 8), flips=True),
        LocalCase("twice", "two runs into one place at once", many, {"new": b"old"}, twice=True),
        LocalCase("killed", "kill -9 in the middle", many, dict.fromkeys([*list(many)[::20], "new"], b"old"),
                  kills=True),
    ]  # fmt: skip
