"""The faults of the scoreboard: what is planted, what goes wrong, and what may come of it."""

import os
import random
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hostile_s3 as faults
from hostile_s3 import Fault, HostileS3

Files = dict[str, bytes]
SMALL = 200_000
LARGE = 56 << 20  # more than one part by the defaults of every tool that fetches parts
BUCKET = "bucket"


@dataclass(frozen=True)
class Case:
    """One fault. A bucket or a directory with `source` goes to a destination that holds `old`.

    `script` makes the server hostile; `meddle` does something to the local places of a run before it starts.
    `delete` runs the tool's sync with deletion; `keeps` says that what the source lacks must stay all the
    same, for nobody can know that it lacks it. `also` has the contents that are as right as the source's.
    `kill_at_files`: it is killed once so many files are at the destination.
    """

    name: str
    about: str
    source: Files
    old: Files = field(default_factory=lambda: {"file": b"the old one", "extra": b"only here"})
    script: Callable[[HostileS3, HostileS3], object] | None = None
    meddle: Callable[["Places"], object] | None = None
    undo: Callable[["Places"], object] | None = None
    also: Mapping[str, bytes] = field(default_factory=dict)
    delete: bool = False
    keeps: bool = True
    upload: bool = False
    refused: tuple[str, ...] = ()  # names in the source that no tool should write
    kill_at_files: int | None = None
    under: tuple[str, ...] = ()


@dataclass(frozen=True)
class Places:
    """Where one run happens: `dest` and what lies around it."""

    root: Path

    @property
    def source(self) -> Path:
        return self.root / "source"

    @property
    def dest(self) -> Path:
        return self.root / "dest"


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def every(seed: int) -> list[Case]:
    """All of them; the same for the same seed."""
    return [*_listings(seed), *_bodies(seed), *_uploads(seed), *_local(seed)]


def _on(operation: str, fault: Fault, **how: object) -> Callable[[HostileS3, HostileS3], object]:
    return lambda server, _trap: server.on(operation, fault, **how)  # type: ignore[arg-type]


def _listings(seed: int) -> list[Case]:
    few = {"file": noise(SMALL, seed), "dir/other": noise(300, seed + 1)}
    many = {f"{number:04}": b"x" for number in range(1300)} | {"file": b"new"}
    old_many = dict.fromkeys(list(many)[1100:1110], b"x") | {"extra": b"only here"}
    always: dict[str, Any] = {"times": None}

    def listing(
        name: str,
        about: str,
        fault: Fault,
        *,
        pages: bool = False,
        skip: int = 0,
        keeps: bool = True,
    ) -> Case:
        script = _on("ListObjects*", fault, skip=skip, **always)
        source, old = (many, old_many) if pages else (few, {"file": b"old", "extra": b"only here"})
        return Case(name, about, source, old, script, delete=True, keeps=keeps)

    command = "\x1b]0;title\x07\x1b[2J"
    escapes = {"../outside": b"escaped", "a/../../outside": b"escaped", "..": b"escaped"}
    return [
        listing("list-html", "a page for people, 200, in place of the listing", faults.html),
        listing("list-empty", "an empty body, 200, in place of the listing", faults.body(lambda _: b"")),
        listing("list-cut", "half of the listing's XML", faults.truncated_xml()),
        listing("list-bucket", "a listing that names another bucket", faults.wrong_bucket(), keeps=False),
        listing("list-403", "no permission to list", faults.refuse(403, "AccessDenied")),
        listing(
            "list-page-500", "every page but the first fails",
            faults.refuse(500, "InternalError"), pages=True, skip=1,
        ),
        listing("list-token", "more pages, and no token for them", faults.missing_token(), pages=True),
        listing("list-again", "the first page for ever", faults.same_page, pages=True),
        Case(
            "names", "keys that lead out of the destination", few | escapes,
            refused=tuple(escapes),
        ),
        Case(
            "escapes", "keys with commands for the terminal", few | {command: b"x"},
            script=_on("GetObject", faults.refuse(403, "AccessDenied"), key=command, **always),
        ),
    ]  # fmt: skip


def _bodies(seed: int) -> list[Case]:
    few = {"file": noise(SMALL, seed), "dir/other": noise(300, seed + 1)}
    large = {"file": noise(LARGE, seed), "dir/other": noise(300, seed + 1)}
    other = noise(LARGE, seed + 2)
    always: dict[str, Any] = {"times": None}

    def body(name: str, about: str, fault: Fault, source: Files = few, **how: int | None) -> Case:
        return Case(name, about, source, script=_on("GetObject", fault, key="file", **how))

    def changing(server: HostileS3, _trap: HostileS3) -> None:
        swap = faults.first(lambda: server.put(BUCKET, "file", other))
        server.on("GetObject", swap, key="file", skip=1, times=1)

    def led_away(server: HostileS3, trap: HostileS3) -> None:
        trap.put(BUCKET, "file", b"not the object")
        server.on("GetObject", faults.redirect(trap.endpoint), key="file", times=None)

    plain = ("x-amz-checksum-mode",)
    return [
        body("flip", "one bit of the body", faults.flip(1000), **always),
        body("short", "fewer bytes, and a length that agrees", faults.shorter(1000), **always),
        body("long", "more bytes, and a length that agrees", faults.longer(1000), **always),
        body("chunked", "no length, and a clean end too early", faults.chunked(1000), **always),
        body("cut-once", "the connection ends in the middle, once", faults.cut(5000)),
        body("reset-always", "reset in the middle, always", faults.cut(5000, reset=True), **always),
        body("stall", "no byte for an hour, in the middle, once", faults.stall(5000)),
        body("slow-down", "503 SlowDown, ten times", faults.slow_down(), times=10),
        body("slow-down-always", "503 SlowDown, always", faults.slow_down(), **always),
        body("gone", "404 for what was listed", faults.refuse(404, "NoSuchKey"), **always),
        body("no-ranges", "ranges are ignored", faults.ignore_range, large, **always),
        body(
            "other-range", "another range than was asked for, and its name",
            faults.header(content_range=f"bytes 0-9/{LARGE}"), large, skip=1, **always,
        ),
        Case(
            "changed", "another object after the first range", large, script=changing,
            also={"file": other},
        ),
        Case("redirect", "307 to another host", few, script=led_away),
        body("flip-checksums", "one bit, of a server without checksums",
             lambda request, honest: faults.flip(1000)(request.without(*plain), honest), **always),
    ]  # fmt: skip


def _uploads(seed: int) -> list[Case]:
    few = {"file": noise(SMALL, seed), "dir/other": noise(300, seed + 1)}
    large = {"file": noise(LARGE, seed), "dir/other": noise(300, seed + 1)}

    def upload(
        name: str, about: str, operation: str, fault: Fault, source: Files, **how: object
    ) -> Case:
        return Case(name, about, source, {}, _on(operation, fault, **how), upload=True)

    return [
        upload("put-lost", "the reply to a PUT is lost", "PutObject", faults.lost_reply(), few),
        upload("part-lost", "the reply to a part is lost", "UploadPart", faults.lost_reply(), large),
        upload(
            "complete-lost", "the reply to a completion is lost",
            "CompleteMultipartUpload", faults.lost_reply(), large,
        ),
        upload(
            "complete-error", "200 with an error for a completion",
            "CompleteMultipartUpload", faults.error_body(), large,
        ),
        upload("put-503", "503 for each PUT, five times", "Put*", faults.slow_down(), few, times=5),
    ]  # fmt: skip


def _local(seed: int) -> list[Case]:
    few = {"file": noise(SMALL, seed), "dir/other": noise(300, seed + 1)}
    large = {"file": noise(12 << 20, seed), "other": noise(300, seed + 1)}
    many = {f"{number:04}": noise(40_000, seed + number) for number in range(1500)}

    def planted(places: Places) -> None:
        (places.root / "outside").mkdir()
        (places.root / "outside/other").write_bytes(b"theirs")
        (places.dest / "dir").symlink_to(places.root / "outside")

    def mount(places: Places) -> None:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(places.dest)], check=True
        )

    def umount(places: Places) -> None:
        subprocess.run(["umount", str(places.dest)], check=True)

    def closed(places: Places) -> None:
        (places.source / "dir").chmod(0)

    def opened(places: Places) -> None:
        (places.source / "dir").chmod(0o755)

    powerless = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()
    old = {"file": b"the old one", "extra": b"only here", "dir/other": b"old", "dir/extra": b"x"}
    return [
        Case(
            "full", "a full disk below an old file", large, {"file": b"old", "extra": b"only here"},
            meddle=mount, undo=umount, delete=True,
        ),
        Case(
            "closed-dir", "a directory of the source that cannot be read", few, old,
            meddle=closed, undo=opened, delete=True, under=powerless,
        ),
        Case("planted", "a link out, where a directory should be", few, {}, meddle=planted, delete=True),
        Case(
            "missing", "a source that does not exist", few, delete=True,
            meddle=lambda places: places.source.rename(places.root / "moved"),
            undo=lambda places: (places.root / "moved").rename(places.source),
        ),
        Case(
            "killed", "kill -9 in the middle", many, {"0700": b"the old one"}, kill_at_files=100
        ),
    ]  # fmt: skip
