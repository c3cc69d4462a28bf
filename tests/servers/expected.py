"""What the options of a sync make of two trees, and what may be there in the end, however it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from rigs import Rig
from sides import Picture, Side

Options: TypeAlias = dict[str, Any]


@dataclass
class Expected:
    """What `options` make of a destination that was `before`, for a source that is `source`."""

    options: Options
    source: Picture
    before: Picture
    rig: Rig
    into: Side
    about: str = ""  # for what fails

    def __post_init__(self) -> None:
        keepable = {"file"} | ({"dir"} if self.into.has_directories else set())
        keepable |= {"link"} if self.into.has_links else set()
        self.selected = {
            path: shot
            for path, shot in self.source.items()
            if shot.kind in keepable and not self.is_left_out(path)
        }
        # Of "a" and "a/b", which are both files of a bucket, a disk can have one.
        self.torn = {
            path
            for path in self.selected
            if self.into.has_directories
            and any(
                self.source[above].kind == "file" for above in parents(path) if above in self.source
            )
        }
        self.selected = {
            path: shot for path, shot in self.selected.items() if path not in self.torn
        }
        self.chosen = {path for path, shot in self.selected.items() if self.is_in_bounds(path)}
        # Directories that are there because something is in them.
        self.implied = {
            above for path in self.chosen for above in parents(path) if above not in self.selected
        }

    def is_left_out(self, path: str) -> bool:
        """By a filter, at either end."""
        pattern = self.options.get("exclude")
        parts = path.split("/")
        if pattern == "b":
            return "b" in parts
        if pattern == "/a":
            return parts[0] == "a"
        if pattern == "d/":
            shot = self.source.get(path) or self.before.get(path)
            is_directory = shot is None or shot.kind == "dir"
            return "d" in parts[:-1] or (parts[-1] == "d" and is_directory)
        return False

    def is_in_bounds(self, path: str) -> bool:
        shot, told = self.source[path], self.options
        if len(path.split("/")) > told.get("max_depth", 1000):
            return False
        size = len(shot.content)
        return shot.kind != "file" or told.get("min_size", 0) <= size <= told.get("max_size", 1e9)

    @property
    def is_bounded(self) -> bool:
        return any(name in self.options for name in ("min_size", "max_size", "max_depth"))

    def clashes(self, path: str) -> bool:
        """Something of another kind stands at the path, above or below it."""
        if not self.into.has_directories:
            return False
        old = self.before.get(path)
        shot = self.source.get(path)
        kind = "dir" if shot is None else shot.kind
        if old is not None and (old.kind == "dir") != (kind == "dir"):
            return True
        return any(
            self.before[above].kind != "dir" for above in parents(path) if above in self.before
        )

    def allowed(self, path: str) -> list[tuple[str, bytes] | None]:
        """What a chosen path, file or link, may have when all went well; None is nothing."""
        new, old = self.source[path], self.before.get(path)
        told = self.options
        if self.clashes(path):
            return [new[:2], None if old is None else old[:2]]
        if old is None:
            return [None] if told.get("existing") else [new[:2]]
        if told.get("ignore_existing"):
            return [old[:2]]
        if new.kind == "link" or old.kind == "link":
            return [new[:2]]
        both: list[tuple[str, bytes] | None] = [new[:2], old[:2]]
        if told.get("update"):
            if new.mtime_ns is None or old.mtime_ns is None:
                return both
            if old.mtime_ns > new.mtime_ns - self.rig.step_ns:
                return both
        if told.get("ignore_times") or len(new.content) != len(old.content):
            return [new[:2]]
        if told.get("size_only"):
            return [old[:2]]
        if told.get("checksum"):
            return [new[:2]]
        if new.mtime_ns is None or old.mtime_ns is None:
            return both
        is_close = abs(new.mtime_ns - old.mtime_ns) < self.rig.step_ns
        return both if is_close else [new[:2]]

    def is_done(self, path: str, now: Picture) -> bool:
        """The path has what it may have in the end."""
        there = now.get(path)
        return (None if there is None else there[:2]) in self.allowed(path)

    # -- what may be there -----------------------------------------------------------------------------

    def check(self, now: Picture, code: int, *, is_troubled: bool) -> None:
        """Raises AssertionError if the destination is not what a run of that exit code may leave."""
        self.about = f"{self.about} exit {code}, {self.options}"
        in_place = self.options.get("inplace") and is_troubled and self.into.has_directories
        for path, shot in now.items():
            ours, theirs = self.before.get(path), self.selected.get(path)
            if shot.kind == "dir":
                is_known = (ours is not None and ours.kind == "dir") or path in self.implied
                is_known |= theirs is not None
                is_known |= any(other.startswith(path + "/") for other in self.selected)
                assert is_known, f"{path!r} comes from nowhere: {self.about}"
            elif not (in_place and path in self.chosen):
                new = theirs[:2] if path in self.chosen and theirs is not None else None
                old = None if ours is None else ours[:2]
                assert shot[:2] in (new, old), f"{path!r} is neither old nor new: {self.about}"
        self._check_losses(now, code)
        if code == 0:
            self._check_success(now)
        elif not is_troubled:
            clashes = [path for path in self.selected if self.clashes(path)]
            is_gated = code == 6 and self.options.get("delete")
            assert is_gated or (code == 1 and (clashes or self.torn)), self.about

    def _check_losses(self, now: Picture, code: int) -> None:
        told, before = self.options, self.before
        gone = {path for path in before if path not in now}
        turned = {
            path
            for path, shot in before.items()
            if path in now and (shot.kind == "dir") != (now[path].kind == "dir")
        }
        if not gone and not turned:
            return
        assert told.get("delete"), f"{sorted(gone | turned)}: {self.about}"
        for path in gone | turned:
            at = f"{path!r} is gone: {self.about}"
            assert told.get("delete_excluded") or not self.is_left_out(path), at
            assert path in turned or path not in self.chosen or self.clashes(path), at
        assert self.source or told.get("allow_empty_source"), f"an empty source: {self.about}"
        assert code not in (2, 3, 6), f"{sorted(gone)}: {self.about}"
        lost_files = [path for path in gone if before[path].kind == "file"]
        if "max_delete" in told and told["max_delete"] != "100%":
            assert len(lost_files) <= told["max_delete"], self.about
        # Rule D: with the first deletion every copy is done, save for those it makes room for.
        for path in self.chosen:
            if self.source[path].kind != "dir" and not self.clashes(path):
                assert self.is_done(path, now), f"{path!r} is not done: {self.about}"

    def _check_success(self, now: Picture) -> None:
        told = self.options
        may_be_whole = self.is_bounded or "exclude" in told or told.get("existing")
        assert may_be_whole or not self.torn, f"not a word of {self.torn}: {self.about}"
        for path in self.chosen:
            at, shot = f"{path!r}: {self.about}", self.source[path]
            if shot.kind == "dir":
                if not told.get("existing") and not told.get("ignore_existing"):
                    assert now[path].kind == "dir", at
                    if self.rig.keeps_modes and not self.is_bounded:
                        assert now[path].mode == shot.mode, at
                continue
            assert self.is_done(path, now), at
            old = self.before.get(path)
            is_copied = path in now and (old is None or old[:2] != now[path][:2])
            if is_copied and shot.kind == "file":
                there = now[path]
                if shot.mtime_ns is not None and there.mtime_ns is not None:
                    assert abs(shot.mtime_ns - there.mtime_ns) < self.rig.step_ns, at
                if shot.mode is not None and self.rig.keeps_modes:
                    assert there.mode == shot.mode, at
        if told.get("delete") and not self.is_bounded and not told.get("ignore_existing"):
            for path, shot in now.items():
                # What cannot be stored there keeps its name all the same.
                is_meant = path in self.source or path in self.implied
                holds = any(other.startswith(path + "/") for other in now)
                is_kept = self.is_left_out(path) or (shot.kind == "dir" and holds)
                assert is_meant or is_kept, f"{path!r} is still there: {self.about}"

    def check_backup(self, now: Picture, kept: Picture) -> None:
        """Whatever file is replaced or gone is in the backup, as it was."""
        for path, shot in self.before.items():
            there = now.get(path)
            if shot.kind == "file" and (there is None or there[:2] != shot[:2]):
                saved = kept.get(path)
                at = f"{path!r} is not in the backup: {self.about}"
                assert saved is not None, at
                assert saved.content == shot.content, at


def parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]
