"""A listing that lies, breaks off or never ends: exit 3 within a few requests, and nothing is deleted."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hostile_s3 as faults
import pytest
from hostile_s3 import Fault, Honest, HostileS3
from http_exchange import Request, Response

import fastsync
from fastsync import patience
from fastsync.errors import FastsyncError, ListingError

if TYPE_CHECKING:
    from tests.conftest import Fastsync

KEYS = tuple(f"p/{name}" for name in ("a", "b", "c", "d/e", "f"))
# Answers are immediate here, and a second try is as good as six.
QUICK: dict[str, Any] = {"retry_count": 1, "stall_timeout": 1.0, "request_timeout": 1.0}
# Of every page: two tries, a look whether the key is an object, and guesses at what lies ahead.
MOST_REQUESTS = 12


@pytest.fixture
def server(hostile_s3: HostileS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HostileS3:
    for name, value in {**hostile_s3.environ, "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(patience, "THROTTLED_S", 0.5)  # of a server that is busy, not a minute
    for key in KEYS:
        hostile_s3.put("bucket", key, key.encode())
    return hostile_s3


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A tree of which sync --delete would take something away, in either direction."""
    disk = tmp_path / "disk"
    (disk / "d").mkdir(parents=True)
    (disk / "a").write_text("another a")
    (disk / "d/mine").write_text("mine")
    (disk / "mine").write_text("mine")
    return disk


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def failure(call: Callable[[], Any]) -> int:
    """The exit code of what failed, whether it was raised or summed up."""
    try:
        return int(call().exit_code)
    except FastsyncError as error:
        return error.exit_code


def paged(fault: Fault | None = None, *, after: int = 0, size: int = 2) -> Fault:
    """Pages of two keys; the fault strikes in those behind the first `after`."""

    def paging(request: Request, honest: Honest) -> Response:
        nonlocal after

        def short(request: Request) -> Response:
            return honest(request.asking(max_keys=str(size)))

        if fault is None or after > 0:
            after -= 1
            return short(request)
        return fault(request, short)

    return paging


def twice(data: bytes) -> bytes:
    return re.sub(rb"(<Contents>.*?</Contents>)", rb"\1\1", data, flags=re.DOTALL)


def in_front(text: bytes) -> Fault:
    return faults.body(lambda data: data.replace(b"<ListBucketResult", text + b"<ListBucketResult"))


def empty_pages(request: Request, honest: Honest) -> Response:
    """No keys, always more to come, a new token every time."""
    token = request.query.get("continuation-token", "") + "x"
    edit = faults.edited(
        "<Contents>.*</Contents>|<NextContinuationToken>.*?</NextContinuationToken>"
        "|<IsTruncated>.*?</IsTruncated>",
        "",
    )
    answer = edit(request.asking(continuation_token=None), honest)
    told = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>"
    at_end = b"</ListBucketResult>"
    return replace(answer, body=answer.body.replace(at_end, told.encode() + at_end))


# What a page may be instead of one.
LIES: dict[str, Fault] = {
    "html": faults.html,
    "nothing": faults.body(lambda _data: b""),
    "blank": faults.body(lambda _data: b" \n"),
    "half": faults.truncated_xml(),
    "all but the last byte": faults.body(lambda data: data[:-1]),
    "half, chunked": faults.chunked(200),
    "another bucket": faults.wrong_bucket(),
    "no bucket": faults.edited("<Name>.*?</Name>", ""),
    "an error": faults.error_body("InternalError"),
    "another document": faults.edited("ListBucketResult", "ListAllMyBucketsResult"),
    "two documents": faults.body(lambda data: data + data[data.index(b"<List") :]),
    "no end told": faults.edited("<IsTruncated>.*?</IsTruncated>", ""),
    "an end half told": faults.edited("<IsTruncated>.*?</IsTruncated>", "<IsTruncated>1</IsTruncated>"),
    "more without a token": faults.edited(
        "<IsTruncated>.*?</IsTruncated>", "<IsTruncated>true</IsTruncated>"
    ),
    "falling": faults.unsorted,
    "twice": faults.body(twice),
    "outside the prefix": faults.edited("<Key>p/", "<Key>q/"),
    "one outside the prefix": faults.edited("<Key>p/f<", "<Key>q/f<"),
    "sizes below zero": faults.edited("<Size>.*?</Size>", "<Size>-1</Size>"),
    "sizes that are none": faults.edited("<Size>.*?</Size>", "<Size>big</Size>"),
    "no sizes": faults.edited("<Size>.*?</Size>", ""),
    "no keys": faults.edited("<Key>.*?</Key>", ""),
    "times that are none": faults.edited(
        "<LastModified>.*?</LastModified>", "<LastModified>now</LastModified>"
    ),
    "a DTD": in_front(b'<!DOCTYPE x [<!ENTITY e "p/a">]>'),
    "an entity bomb": in_front(
        b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    ),
    "not UTF-8": faults.body(lambda data: data.replace(b"<Key>p/a<", b"<Key>p/\xff<")),
    "deep": in_front(b"<x>" * 10_000),
    "huge": faults.body(lambda data: data + b" " * (17 << 20)),
    "prefixes unasked": faults.edited(
        "</ListBucketResult>",
        "<CommonPrefixes><Prefix>p/g/</Prefix></CommonPrefixes></ListBucketResult>",
    ),
    "empty for ever": empty_pages,
    "a gzip": faults.body(gzip.compress),
    "longer than said": faults.header(content_length="20"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
@pytest.mark.parametrize("way", ["down", "up"])
def test_no_listing_is_no_reason_to_write_or_delete(
    server: HostileS3, disk: Path, name: str, way: str
) -> None:
    before, keys = files(disk), server.keys("bucket")
    server.on("ListObjects*", LIES[name], times=None)
    ends = ("s3://bucket/p/", disk) if way == "down" else (disk, "s3://bucket/p/")
    with pytest.raises(ListingError):
        fastsync.sync(*ends, delete=True, max_delete="100%", **QUICK)
    assert files(disk) == before
    assert server.keys("bucket") == keys
    assert server.count("Put*") == server.count("Delete*") == 0
    assert server.count() <= MOST_REQUESTS + 40 * (name == "empty for ever")


# What may come behind a good first page. What that said may be copied by then, but nothing goes.
BREAKS: dict[str, tuple[Fault, int]] = {
    "no token": (faults.missing_token(), 3),
    "the same page": (faults.same_page, 3),
    "html": (faults.html, 3),
    "half": (faults.truncated_xml(), 3),
    "empty for ever": (empty_pages, 3),
    "the first page again": (
        lambda request, honest: honest(request.asking(continuation_token=None)),
        3,
    ),
    "failure": (faults.refuse(500, "InternalError"), 3),
    "forbidden": (faults.refuse(403, "AccessDenied"), 3),
    "gone": (faults.refuse(404, "NoSuchBucket"), 3),
    "busy": (faults.slow_down(), 3),
    "cut": (faults.cut(100), 3),
    "reset": (faults.cut(100, reset=True), 3),
    "hung up": (faults.hang_up(), 3),
    "silent": (faults.no_answer(), 3),
    "stalled": (faults.stall(100), 3),
}


@pytest.mark.parametrize("name", BREAKS)
@pytest.mark.parametrize("way", ["down", "up"])
def test_half_a_listing_deletes_nothing(server: HostileS3, disk: Path, name: str, way: str) -> None:
    before, keys = files(disk), server.keys("bucket")
    fault, code = BREAKS[name]
    server.on("ListObjects*", paged(fault, after=1), times=None)
    ends = ("s3://bucket/p/", disk) if way == "down" else (disk, "s3://bucket/p/")
    got = failure(lambda: fastsync.sync(*ends, delete=True, max_delete="100%", **QUICK))
    assert got == code
    assert files(disk).keys() >= before.keys()
    assert server.keys("bucket") >= keys
    assert server.count("Delete*") == 0
    assert server.count() <= MOST_REQUESTS + 60 * (name == "empty for ever")
    there = files(disk)
    if way == "down":  # whole files, or the old ones
        for key in KEYS:
            name = key.removeprefix("p/")
            assert there.get(name) in (None, before.get(name), key.encode())


def test_pages_are_what_the_other_tests_think(server: HostileS3, disk: Path) -> None:
    """The tests above fail for what they break, not for the pages."""
    server.on("ListObjects*", paged(), times=None)
    summary = fastsync.sync("s3://bucket/p/", disk, delete=True, max_delete="100%", **QUICK)
    assert summary.exit_code == 0
    assert files(disk) == {key.removeprefix("p/"): key.encode() for key in KEYS}


@pytest.mark.parametrize(
    "call",
    [
        lambda disk, **how: fastsync.sync("s3://bucket/none", str(disk), **how),
        lambda disk, **how: fastsync.cp("s3://bucket/none", str(disk), recursive=True, **how),
        lambda disk, **how: fastsync.mv("s3://bucket/none", str(disk), **how),
        lambda disk, **how: fastsync.rm("s3://bucket/none", recursive=True, **how),
    ],
    ids=["sync", "cp", "mv", "rm"],
)
def test_what_cannot_be_told_is_not_passed_over_as_missing(
    server: HostileS3, disk: Path, call: Callable[..., Any]
) -> None:
    """--ignore-missing-args is about what is not there, and a page for people says nothing of that."""
    assert call(disk, ignore_missing_args=True, **QUICK).exit_code == 0
    server.on("ListObjects*", faults.html, times=None)
    assert failure(lambda: call(disk, ignore_missing_args=True, **QUICK)) == 3


@pytest.mark.parametrize("fault", [faults.unsorted, faults.html], ids=["unsorted", "html"])
def test_a_listing_that_is_not_trusted_says_which_and_why(
    server: HostileS3, disk: Path, fault: Fault
) -> None:
    server.on("ListObjects*", fault, times=None)
    with pytest.raises(ListingError, match="cannot be trusted") as raised:
        fastsync.sync("s3://bucket", str(disk), delete=True, **QUICK)
    assert (raised.value.where or "").startswith("s3://bucket")


@pytest.fixture(name="command")
def _command(fastsync: Fastsync, hostile_s3: HostileS3) -> Fastsync:
    fastsync.environ |= hostile_s3.environ
    return fastsync


@pytest.mark.parametrize(
    ("size", "code"), [(5 << 40, 0), (10**18 - 1, 0), (2**63, 3), (10**30, 3), (0, 0), (1, 0)]
)
def test_a_size_that_is_a_lie_costs_no_memory(
    hostile_s3: HostileS3,
    command: Fastsync,
    under_limit: Callable[[str], list[str]],
    tmp_path: Path,
    size: int,
    code: int,
) -> None:
    """Parts of a file that long are more than there is room for; the object is looked at again."""
    hostile_s3.put("lies", "key", b"tiny")
    lie = b"<Size>%d</Size>" % size
    lies = faults.body(lambda page: page.replace(b"<Size>4</Size>", lie))
    hostile_s3.on("ListObjects*", lies, times=None)
    done = command("sync", "s3://lies/", "dest", under=under_limit("-v 2000000"))
    assert (done.code, "Traceback" in done.stderr) == (code, False), done
    assert [path.read_bytes() for path in (tmp_path / "dest").glob("*")] == [b"tiny"][code:]
