"""`fastsync sync` to and from buckets: what is copied, what is asked, what is never deleted."""

from __future__ import annotations

import json
import os
import re
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from s3_servers import S3Server

if TYPE_CHECKING:
    from hostile_s3 import HostileS3

    from tests.conftest import Fastsync, Picture, Plant, Spec

TREE: Spec = {
    "a": "a",
    "zero": "",
    "dir/b": "b",
    "dir/sub/c": "c" * 2000,
    "dir-beside/d": "d",
    "dir.txt": "sorts between dir and what is in it",
}


def total(fastsync: Fastsync, *arguments: str) -> dict[str, Any]:
    done = fastsync("sync", "--json", *arguments)
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert summary["exit_code"] == done.code
    return summary


def counts(summary: dict[str, Any]) -> tuple[int, int, int, int]:
    copied, deleted, failed = (summary[name] for name in ("copied", "deleted", "failed"))
    return copied, deleted, failed, summary["exit_code"]


# -- what is asked of the server ---------------------------------------------------------------------

_HEAD: Final = re.compile(rb"(?:^|\r\n)([A-Z]+) (\S+) HTTP/1\.1\r\n")


class Relay(socketserver.ThreadingTCPServer):
    """Passes bytes on to a server, and keeps the method and target of each request.

    Signatures cover the Host header, so it is sent as it came: the server does not compare it.
    """

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Relayed)
        self.target = port
        self.requests: list[str] = []
        self.arrived: list[tuple[float, int]] = []  # when bytes came, and how many

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Relayed(socketserver.BaseRequestHandler):
    server: Relay

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.target)) as onward:
            back = threading.Thread(target=_pump, args=(onward, self.request, None))
            back.start()
            _pump(self.request, onward, self.server)
            back.join()


def _pump(here: socket.socket, there: socket.socket, relay: Relay | None) -> None:
    try:
        while data := here.recv(1 << 16):
            if relay is not None:
                relay.requests += [b" ".join(found).decode() for found in _HEAD.findall(data)]
                relay.arrived.append((time.monotonic(), len(data)))
            there.sendall(data)
        there.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # one of them went away, and the other learns it by itself


@pytest.fixture
def relay(fastsync: Fastsync, s3: S3Server) -> Iterator[Relay]:
    with Relay(s3.port) as relay:
        thread = threading.Thread(target=relay.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        fastsync.environ["AWS_ENDPOINT_URL_S3"] = relay.endpoint
        yield relay
        relay.shutdown()
        thread.join()


@pytest.mark.skipif(
    sys.platform != "linux", reason="the kernel holds back what is sent, where it can"
)
def test_what_is_sent_keeps_to_the_rate_within_a_part(
    fastsync: Fastsync, bucket: str, relay: Relay, tmp_path: Path
) -> None:
    """Parts of a bucket are at least 5 MiB, seconds of a slow line."""
    (tmp_path / "a").write_bytes(bytes(6 << 20))
    assert fastsync("cp", "--bwlimit", "3M", "a", f"s3://{bucket}/a").code == 0
    arrived = relay.arrived
    most = max(
        sum(length for at, length in arrived if start <= at < start + 0.5) for start, _ in arrived
    )
    assert most < 3 << 20  # half of that, as a rule


def test_nothing_to_do_costs_a_listing(
    fastsync: Fastsync, bucket: str, relay: Relay, plant: Plant, tmp_path: Path
) -> None:
    """What was uploaded is known, what was downloaded is known: no object is asked about again."""
    plant(tmp_path / "src", TREE)
    place = f"s3://{bucket}/p"
    assert counts(total(fastsync, "src", place)) == (len(TREE), 0, 0, 0)
    assert sum(request.startswith("PUT ") for request in relay.requests) == len(TREE)
    assert f"HEAD /{bucket}/p/a" not in relay.requests
    for arguments in (("src", place), ("src", place), ("--delete", "src", place)):
        relay.requests.clear()
        assert counts(total(fastsync, *arguments)) == (0, 0, 0, 0)
        asked = {request.split("?")[0] for request in relay.requests}
        assert asked <= {f"GET /{bucket}", f"HEAD /{bucket}/p"}, asked
    assert counts(total(fastsync, place, "back")) == (len(TREE), 0, 0, 0)
    relay.requests.clear()
    assert counts(total(fastsync, place, "back")) == (0, 0, 0, 0)
    asked = {request.split("?")[0] for request in relay.requests}
    assert asked <= {f"GET /{bucket}", f"HEAD /{bucket}/p"}, asked


def test_without_its_memory_it_asks_once(
    fastsync: Fastsync, bucket: str, relay: Relay, plant: Plant, tmp_path: Path
) -> None:
    """The state folder may go at any time: an object more is asked for each, and then none."""
    plant(tmp_path / "src", TREE)
    place = f"s3://{bucket}/p"
    assert counts(total(fastsync, "src", place))[0] == len(TREE)
    fastsync.environ["FASTSYNC_STATE"] = str(tmp_path / "another state")
    relay.requests.clear()
    assert counts(total(fastsync, "src", place)) == (0, 0, 0, 0)
    assert len([one for one in relay.requests if one.startswith(f"HEAD /{bucket}/p/")]) == len(TREE)
    relay.requests.clear()
    assert counts(total(fastsync, "src", place)) == (0, 0, 0, 0)
    assert not [one for one in relay.requests if one.startswith(f"HEAD /{bucket}/p/")]


def test_what_somebody_else_wrote_is_seen(
    fastsync: Fastsync, s3: S3Server, bucket: str, plant: Plant, tmp_path: Path
) -> None:
    """The memory holds for one version: the same bytes written again have no time, or another."""
    plant(tmp_path / "src", {"a": "a", "b": "b"})
    place = f"s3://{bucket}/p"
    assert counts(total(fastsync, "src", place))[0] == 2
    time.sleep(3.1)  # what was written within two seconds of us with our ETag has our content
    s3.client.put_object(Bucket=bucket, Key="p/a", Body=b"a", Metadata={"mtime": "1000000000"})
    assert counts(total(fastsync, place, "src")) == (1, 0, 0, 0)
    assert (tmp_path / "src/a").stat().st_mtime_ns == 1_000_000_000 * 10**9


# -- changes -----------------------------------------------------------------------------------------


def test_changes_arrive_in_both_directions(
    fastsync: Fastsync,
    s3: S3Server,
    bucket: str,
    plant: Plant,
    picture: Callable[..., Picture],
    tmp_path: Path,
) -> None:
    src = plant(tmp_path / "src", TREE)
    place = f"s3://{bucket}/p"
    steps: list[Callable[[], object]] = [
        lambda: None,
        lambda: (src / "a").write_text("longer"),
        lambda: (src / "a").write_text("LONGER"),  # of the same size, at another time
        lambda: os.utime(src / "dir/b"),
        lambda: (src / "new").write_text("new"),
        (src / "dir/b").unlink,
        lambda: (src / "dir/sub/c").chmod(0o640),
    ]
    for number, change in enumerate(steps):
        change()
        for arguments in (("src", place), (place, "back")):
            summary = total(fastsync, "--delete", *arguments)
            assert summary["exit_code"] == 0, (number, summary)
            assert counts(total(fastsync, "--delete", *arguments)) == (0, 0, 0, 0), number
        files = {n: s for n, s in picture(src).items() if s.kind == "file"}
        assert {n: s for n, s in picture(tmp_path / "back").items() if s.kind == "file"} == files
        assert s3.keys(bucket) == sorted(f"p/{name}" for name in files)


# -- deletes -----------------------------------------------------------------------------------------


def test_deletes_pass_the_gate_or_none_is_made(
    fastsync: Fastsync, s3: S3Server, bucket: str, plant: Plant, tmp_path: Path
) -> None:
    plant(tmp_path / "src", {f"f{number}": "x" for number in range(5)})
    place = f"s3://{bucket}/p"
    s3.client.put_object(Bucket=bucket, Key="pq", Body=b"beside")
    assert total(fastsync, "src", place)["copied"] == 5
    for number in range(3):
        (tmp_path / f"src/f{number}").unlink()
    refused = total(fastsync, "--delete", "--max-delete", "2", "src", place)
    assert counts(refused) == (0, 0, 0, 6)
    assert len(s3.keys(bucket)) == 6
    dry = fastsync("sync", "-n", "--delete", "src", place)
    assert dry.stdout.count("would delete") == 3
    assert len(s3.keys(bucket)) == 6
    assert counts(total(fastsync, "--delete", "src", place)) == (0, 3, 0, 0)
    assert s3.keys(bucket) == ["p/f3", "p/f4", "pq"]
    (tmp_path / "src/f3").unlink()
    (tmp_path / "src/f4").unlink()
    assert counts(total(fastsync, "--delete", "src", place))[1:] == (0, 0, 6)
    assert s3.keys(bucket) == ["p/f3", "p/f4", "pq"]


def test_a_source_that_is_missing_deletes_nothing(
    fastsync: Fastsync, s3: S3Server, bucket: str, plant: Plant, tmp_path: Path
) -> None:
    dest = plant(tmp_path / "dest", {"keep": "me"})
    s3.client.put_object(Bucket=bucket, Key="keep/me", Body=b"x")
    for source in ("s3://there-is-no-such-bucket", f"s3://{bucket}/no-such-prefix"):
        for target in (str(dest), f"s3://{bucket}/keep"):
            done = fastsync("sync", "--delete", source, target)
            assert (done.code, "not exist" in done.stderr) == (3, True), done
    assert fastsync("sync", "--delete", "dest", "s3://there-is-no-such-bucket/x").code == 3
    assert os.listdir(dest) == ["keep"]
    assert s3.keys(bucket) == ["keep/me"]


@pytest.mark.parametrize(
    "environ",
    [
        {"AWS_SECRET_ACCESS_KEY": "wrong"},
        {"AWS_ACCESS_KEY_ID": "NOBODY"},  # which this server answers with 404
        {"FASTSYNC_NO_SIGN_REQUEST": "1"},
    ],
    ids=lambda environ: next(iter(environ)),
)
def test_a_source_that_is_refused_deletes_nothing(
    fastsync: Fastsync,
    s3: S3Server,
    bucket: str,
    plant: Plant,
    tmp_path: Path,
    environ: dict[str, str],
) -> None:
    dest = plant(tmp_path / "dest", {"keep": "me"})
    s3.client.put_object(Bucket=bucket, Key="p/x", Body=b"x")
    for source in (f"s3://{bucket}/p", f"s3://{bucket}/p/", f"s3://{bucket}"):
        done = fastsync("sync", "--delete", source, "dest", env=environ)
        assert done.code == (3 if "FASTSYNC_NO_SIGN_REQUEST" in environ else 5), done
        assert "wrong" not in done.stderr + done.stdout
    assert os.listdir(dest) == ["keep"]
    # The same for a destination: nothing is known about what is there.
    done = fastsync("sync", "--delete", "dest", f"s3://{bucket}/p", env=environ)
    assert done.code in (3, 5)
    assert s3.keys(bucket) == ["p/x"]


def test_filters_hold_for_keys(
    fastsync: Fastsync, s3: S3Server, bucket: str, plant: Plant, tmp_path: Path
) -> None:
    plant(tmp_path / "src", {"a.txt": "a", "b.tmp": "b", "cache/c.txt": "c"})
    place = f"s3://{bucket}"
    assert total(fastsync, "--exclude", "*.tmp", "--exclude", "cache/", "src", place)["copied"] == 1
    s3.client.put_object(Bucket=bucket, Key="cache/kept", Body=b"x")
    s3.client.put_object(Bucket=bucket, Key="gone", Body=b"x")
    summary = total(fastsync, "--delete", "--exclude", "cache/", "src", place)
    assert counts(summary) == (1, 1, 0, 0)
    assert s3.keys(bucket) == ["a.txt", "b.tmp", "cache/kept"]


def test_links_that_are_left_out_are_told_of(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, hostile_s3: HostileS3
) -> None:
    plant(tmp_path / "src", {"a": "a", "d/link": Path("../a"), "link": Path("a")})
    hostile_s3.make_bucket("bucket")
    fastsync.environ |= hostile_s3.environ
    told = "fastsync: 2 links left out: s3:// keeps none (-L copies what they lead to)\n"
    for _ in range(2):
        assert fastsync("sync", "src", "s3://bucket/x") == (0, "", told)
    assert fastsync("sync", "--skip-links", "src", "s3://bucket/x") == (0, "", "")
    assert fastsync("sync", "-q", "src", "s3://bucket/x") == (0, "", "")
    assert fastsync("sync", "-L", "src", "s3://bucket/x") == (0, "", "")
    assert hostile_s3.data("bucket", "x/d/link") == b"a"
