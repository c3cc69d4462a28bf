"""The two ends of a sync as a test sees and changes them: a tree on a disk, which may be behind a server, and
the objects of a bucket."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

from hostile_s3 import HostileS3


class Shot(NamedTuple):
    """An entry as it is: `content` of a file or target of a link; permission bits and time are None where
    there are none, a directory has no time here."""

    kind: str
    content: bytes
    mode: int | None = None
    mtime_ns: int | None = None


Picture: TypeAlias = dict[str, Shot]


class Side(Protocol):
    """A place, empty at first. Whatever is in the way of a change goes."""

    url: str
    place: Mapping[str, str]  # what a location's settings have to be
    has_directories: bool
    has_links: bool

    def picture(self) -> Picture: ...
    def debris(self) -> list[str]: ...
    def write(self, path: str, content: bytes, mtime_ns: int | None) -> None: ...
    def make_directory(self, path: str) -> None: ...
    def make_link(self, path: str, target: str) -> None: ...
    def delete(self, path: str) -> None: ...
    def rename(self, path: str, new: str) -> None: ...
    def touch(self, path: str, mtime_ns: int) -> None: ...
    def chmod(self, path: str, mode: int) -> None: ...
    def beside(self, name: str) -> Side: ...


class Disk:
    """A tree below `root`, which the command calls `url`."""

    has_directories = True

    def __init__(
        self,
        root: Path,
        url: str,
        place: Mapping[str, str] | None = None,
        *,
        has_links: bool = True,
    ) -> None:
        self.root, self.url, self.place, self.has_links = root, url, place or {}, has_links
        root.mkdir()

    def picture(self) -> Picture:
        shots: Picture = {}
        for directory, directories, files in os.walk(self.root):
            for name in (*directories, *files):
                path = Path(directory, name)
                status = path.lstat()
                at, mode = str(path.relative_to(self.root)), status.st_mode & 0o777
                if path.is_symlink():
                    shots[at] = Shot("link", os.fsencode(os.readlink(path)))
                elif path.is_dir():
                    shots[at] = Shot("dir", b"", mode)
                elif not name.startswith(".fs-"):
                    shots[at] = Shot("file", path.read_bytes(), mode, status.st_mtime_ns)
        return shots

    def debris(self) -> list[str]:
        return [str(path.relative_to(self.root)) for path in self.root.rglob(".fs-*")]

    def _room(self, path: str) -> Path:
        place = self.root / path
        for above in reversed(place.relative_to(self.root).parents):
            there = self.root / above
            if there.is_symlink() or (there.exists() and not there.is_dir()):
                there.unlink()
            there.mkdir(exist_ok=True)
        self.delete(path)
        return place

    def write(self, path: str, content: bytes, mtime_ns: int | None) -> None:
        place = self._room(path)
        place.write_bytes(content)
        if mtime_ns is not None:
            os.utime(place, ns=(mtime_ns, mtime_ns))

    def make_directory(self, path: str) -> None:
        self._room(path).mkdir()

    def make_link(self, path: str, target: str) -> None:
        self._room(path).symlink_to(target)

    def delete(self, path: str) -> None:
        place = self.root / path
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)

    def rename(self, path: str, new: str) -> None:
        aside = self.root.with_name(f"{self.root.name}-aside")
        (self.root / path).rename(aside)
        aside.rename(self._room(new))

    def touch(self, path: str, mtime_ns: int) -> None:
        os.utime(self.root / path, ns=(mtime_ns, mtime_ns), follow_symlinks=False)

    def chmod(self, path: str, mode: int) -> None:
        place = self.root / path
        if not place.is_symlink():
            place.chmod(mode | (0o700 if place.is_dir() else 0))

    def beside(self, name: str) -> Disk:
        url = self.url.rstrip("/").rpartition("/")[0]
        return Disk(self.root.with_name(name), f"{url}/{name}", self.place)


class Objects:
    """What is in a bucket. Times and modes are metadata, as rclone and s3fs have them."""

    has_directories = False
    has_links = False

    def __init__(self, s3: HostileS3, bucket: str, place: Mapping[str, str]) -> None:
        self._s3, self._bucket, self.place = s3, bucket, place
        self.url = f"s3://{bucket}/"
        s3.make_bucket(bucket)

    def picture(self) -> Picture:
        shots: Picture = {}
        for key in self._s3.keys(self._bucket):
            headers = self._s3.headers(self._bucket, key)
            mode, mtime = headers.get("x-amz-meta-mode"), headers.get("x-amz-meta-mtime")
            seconds, _, rest = (mtime or "").partition(".")
            shots[key] = Shot(
                "file",
                self._s3.data(self._bucket, key),
                None if mode is None else int(mode) & 0o777,
                None if mtime is None else int(seconds) * 10**9 + int(rest.ljust(9, "0")),
            )
        return shots

    def debris(self) -> list[str]:
        uploads = self._s3.objects.uploads.values()
        return [upload.key for upload in uploads if upload.bucket == self._bucket]

    def _put(self, key: str, shot: Shot) -> None:
        headers = {}
        if shot.mode is not None:
            headers["x-amz-meta-mode"] = str(0o100000 | shot.mode)
        if shot.mtime_ns is not None:
            seconds, rest = divmod(shot.mtime_ns, 10**9)
            headers["x-amz-meta-mtime"] = f"{seconds}.{rest:09d}"
        self._s3.put(self._bucket, key, shot.content, headers)

    def write(self, path: str, content: bytes, mtime_ns: int | None) -> None:
        self.delete(path)
        parts = path.split("/")
        for depth in range(1, len(parts)):
            self._s3.objects.buckets[self._bucket].remove("/".join(parts[:depth]))
        self._put(path, Shot("file", content, None, mtime_ns))

    def make_directory(self, path: str) -> None:
        """There are none."""

    def make_link(self, path: str, target: str) -> None:
        """There are none."""

    def delete(self, path: str) -> None:
        bucket = self._s3.objects.buckets[self._bucket]
        for key in [key for key in bucket.keys if key == path or key.startswith(path + "/")]:
            bucket.remove(key)

    def write_under(self, path: str, content: bytes, mtime_ns: int) -> None:
        """Whatever the names say: to a bucket "a" and "a/b" are two objects."""
        self._put(path, Shot("file", content, None, mtime_ns))

    def rename(self, path: str, new: str) -> None:
        shot = self.picture()[path]
        self.delete(path)
        self.write(new, shot.content, shot.mtime_ns)

    def touch(self, path: str, mtime_ns: int) -> None:
        self._put(path, self.picture()[path]._replace(mtime_ns=mtime_ns))

    def chmod(self, path: str, mode: int) -> None:
        self._put(path, self.picture()[path]._replace(mode=mode))

    def beside(self, name: str) -> Objects:
        return Objects(self._s3, f"{self._bucket}-{name}", self.place)
