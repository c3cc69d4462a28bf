"""Faults of S3 servers, for the scoreboard: listings, bodies and answers that are not what they should be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hostile_s3 as faults
from hostile_s3 import Fault, HostileS3
from scoreboard_run import LARGE, OLD_S, SECRET, SMALL, Case, Files, Scene, noise, plant

TOOLS = ("fastsync", "rclone", "s5cmd", "aws")
SAYS = {
    "fastsync": "`fastsync sync [--delete]`",
    "rclone": "`rclone copy`, or `rclone sync` to delete, with `list_version = 2`, as it has it for AWS",
    "s5cmd": "`s5cmd sync [--delete]`",
    "aws": "`aws s3 sync [--delete]`",
}
BUCKET = "bucket"
OLD = {"file": b"the old one", "extra": b"only here"}
Script = Callable[[HostileS3, HostileS3], object]


@dataclass(frozen=True)
class S3Case(Case):
    """`script` makes the server hostile; its second server is where nobody should be led."""

    script: Script | None = None
    upload: bool = False

    def scene(self, root: Path) -> Scene:
        return _Bucket(self, root)


class _Bucket(Scene):
    def __init__(self, case: S3Case, root: Path) -> None:
        super().__init__(root)
        self._case = case

    def open(self) -> None:
        case = self._case
        self._server, self._trap = (self.stack.enter_context(HostileS3()) for _ in range(2))
        self._server.make_bucket(BUCKET)
        self._trap.make_bucket(BUCKET)
        plant(self.source, case.source if case.upload else {})
        if not case.upload:
            plant(self.dest, case.old, OLD_S)
        for name, content in (case.old if case.upload else case.source).items():
            self._server.put(BUCKET, name, content)
        if case.script is not None:
            case.script(self._server, self._trap)

    def command(self, tool: str, path: str) -> list[str] | None:
        there = f"s3://{BUCKET}/"
        here = f"{self.source if self._case.upload else self.dest}/"
        delete = ["--delete"] if self._case.delete else []
        if tool == "fastsync":
            start = [path, "sync", *delete]
        elif tool == "rclone":
            start = [path, "sync" if delete else "copy"]
            there = f"place:{BUCKET}"
        elif tool == "s5cmd":
            start = [path, "sync", *delete]
            there += "" if self._case.upload else "*"
        else:
            start = [path, "s3", "sync", *delete]
        return [*start, here, there] if self._case.upload else [*start, there, here]

    @property
    def environ(self) -> dict[str, str]:
        return {
            **super().environ,
            "AWS_EC2_METADATA_DISABLED": "true",
            **self._server.environ,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_SESSION_TOKEN": f"{SECRET}-token",
            "RCLONE_CONFIG_PLACE_LIST_VERSION": "2",
            "RCLONE_CONFIG_PLACE_SECRET_ACCESS_KEY": SECRET,
            "RCLONE_CONFIG_PLACE_SESSION_TOKEN": f"{SECRET}-token",
        }

    def heal(self) -> None:
        self._server.behave()

    def there(self) -> Files:
        if not self._case.upload:
            return super().there()
        return {name: self._server.data(BUCKET, name) for name in self._server.keys(BUCKET)}

    def has_begun(self) -> bool:
        data = ("PutObject", "UploadPart") if self._case.upload else ("GetObject",)
        return any(self._server.count(operation) for operation in data)

    @property
    def requests(self) -> int:
        return len(self._server.requests)

    def carried_away(self) -> bool:
        values = (value for each in self._trap.requests for value in each.headers.values())
        return any("CANARY" in value for value in values)

    def unfinished(self) -> list[str]:
        return [f"unfinished upload of {key}" for key in self._server.open_uploads]


def cases(seed: int) -> list[S3Case]:
    """All of them; the same for the same seed."""
    return [*_listings(seed), *_bodies(seed), *_uploads(seed), *_kills(seed)]


def _on(operation: str, fault: Fault, **how: object) -> Script:
    return lambda server, _trap: server.on(operation, fault, **how)  # type: ignore[arg-type]


def _few(seed: int) -> Files:
    return {"file": noise(SMALL, seed), "dir/other": noise(300, seed + 1)}


def _listings(seed: int) -> list[S3Case]:
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
    ) -> S3Case:
        return S3Case(
            name, about, many if pages else _few(seed), old_many if pages else OLD, (3,),
            delete=True, keeps=keeps, script=_on("ListObjects*", fault, skip=skip, **always),
        )  # fmt: skip

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
        S3Case(
            "names", "keys that lead out of the destination", _few(seed) | escapes, OLD, (1,),
            refused=tuple(escapes),
        ),
        S3Case(
            "escapes", "keys with commands for the terminal, which cannot be read",
            _few(seed) | {command: b"x"}, OLD, (1,),
            script=_on("GetObject", faults.refuse(403, "AccessDenied"), key=command, **always),
        ),
    ]  # fmt: skip


def _bodies(seed: int) -> list[S3Case]:
    large = {"file": noise(LARGE, seed), "dir/other": noise(300, seed + 1)}
    other = noise(LARGE, seed + 2)
    always: dict[str, Any] = {"times": None}

    def body(
        name: str,
        about: str,
        code: int,
        fault: Fault,
        source: Files | None = None,
        **how: int | None,
    ) -> S3Case:
        script = _on("GetObject", fault, key="file", **how)
        return S3Case(name, about, source or _few(seed), OLD, (code,), script=script)

    def changing(server: HostileS3, _trap: HostileS3) -> None:
        swap = faults.first(lambda: server.put(BUCKET, "file", other))
        server.on("GetObject", swap, key="file", skip=1, times=1)

    def led_away(server: HostileS3, trap: HostileS3) -> None:
        trap.put(BUCKET, "file", b"not the object")
        server.on("GetObject", faults.redirect(trap.endpoint), key="file", times=None)

    plain = ("x-amz-checksum-mode",)
    return [
        body("flip", "one bit of the body", 4, faults.flip(1000), **always),
        body("short", "fewer bytes, and a length that agrees", 4, faults.shorter(1000), **always),
        body("long", "more bytes, and a length that agrees", 4, faults.longer(1000), **always),
        body("chunked", "no length, and a clean end too early", 4, faults.chunked(1000), **always),
        body("cut-once", "the connection ends in the middle, once", 0, faults.cut(5000)),
        body("reset-always", "reset in the middle, always", 1, faults.cut(5000, reset=True), **always),
        body("stall", "no byte for an hour, in the middle, once", 0, faults.stall(5000)),
        body("slow-down", "503 SlowDown, ten times", 0, faults.slow_down(), times=10),
        body("slow-down-always", "503 SlowDown, always", 1, faults.slow_down(), **always),
        body("gone", "404 for what was listed", 8, faults.refuse(404, "NoSuchKey"), **always),
        body("no-ranges", "ranges are ignored", 4, faults.ignore_range, large, **always),
        body(
            "other-range", "another range than was asked for, and its name", 4,
            faults.header(content_range=f"bytes 0-9/{LARGE}"), large, skip=1, **always,
        ),
        S3Case(
            "changed", "another object after the first range", large, OLD,
            script=changing, also={"file": [other]},
        ),
        S3Case("redirect", "307 to another host", _few(seed), OLD, (5,), script=led_away),
        body("flip-checksums", "one bit, of a server without checksums", 4,
             lambda request, honest: faults.flip(1000)(request.without(*plain), honest), **always),
    ]  # fmt: skip


def _uploads(seed: int) -> list[S3Case]:
    few, large = _few(seed), {"file": noise(LARGE, seed), "dir/other": noise(300, seed + 1)}

    def upload(
        name: str, about: str, operation: str, fault: Fault, source: Files, **how: object
    ) -> S3Case:
        return S3Case(name, about, source, script=_on(operation, fault, **how), upload=True)

    complete = "CompleteMultipartUpload"
    return [
        upload("put-lost", "the reply to a PUT is lost", "PutObject", faults.lost_reply(), few),
        upload("part-lost", "the reply to a part is lost", "UploadPart", faults.lost_reply(), large),
        upload("complete-lost", "the reply to a completion is lost", complete, faults.lost_reply(), large),
        upload("complete-error", "200 with an error for a completion", complete, faults.error_body(), large),
        upload("put-503", "503 for each PUT, five times", "Put*", faults.slow_down(), few, times=5),
    ]  # fmt: skip


def _kills(seed: int) -> list[S3Case]:
    tree = {f"{number:03}": noise(4000, seed + number) for number in range(150)}
    tree["file"] = noise(LARGE, seed)
    old = dict.fromkeys((*list(tree)[::10], "file"), b"the old one")
    return [
        S3Case("killed", "kill -9 in the middle of a download", tree, old, kills=True),
        S3Case(
            "up-killed", "kill -9 in the middle of an upload", tree, old, upload=True, kills=True
        ),
    ]
