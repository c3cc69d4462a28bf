"""What a log tells whoever debugs a transfer: each request, why it was tried again, what was decided."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hostile_s3 import HostileS3, refuse
from sshd import running_sshd

from fastsync import log, redaction
from fastsync.cli.logs import Log, libraries_filtered

if TYPE_CHECKING:
    from tests.conftest import Fastsync, Plant

TRACE = ("--log-level", "trace", "--log-file", "log", "--log-format", "json")


@pytest.fixture
def events(tmp_path: Path) -> Callable[[str], list[dict[str, Any]]]:
    """The events of one kind in the log."""

    def read(operation: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
        found = [line["event"] for line in lines]
        return [event for event in found if event.get("operation") == operation]

    return read


def test_requests_to_s3(
    fastsync: Fastsync,
    plant: Plant,
    tmp_path: Path,
    hostile_s3: HostileS3,
    events: Callable[[str], list[dict[str, Any]]],
) -> None:
    """Each with its status, bytes, try and connection; a failure with what became of it."""
    plant(tmp_path, {"src/a": "content", "src/big": b"b" * 9_000_000})
    hostile_s3.make_bucket("bucket")
    hostile_s3.on("PutObject", refuse(503, "SlowDown", "slow down"), times=1)
    fastsync.environ |= hostile_s3.environ
    done = fastsync("cp", "-R", "-c", "8M", *TRACE, "src", "s3://bucket/to/")
    assert done.code == 0
    puts = [each for each in events("request") if each["method"] == "PUT"]
    assert {each["protocol"] for each in puts} == {"s3"}
    small = [each for each in puts if each["place"].endswith("/to/src/a")]
    assert [(each["status"], each["sent"], each["attempt"]) for each in small] == [
        (503, 7, 1),
        (200, 7, 2),
    ]
    parts = [each for each in puts if "partNumber=" in each["place"]]
    assert sum(each["sent"] for each in parts) == 9_000_000
    made = {each["connection"] for each in events("connect")}
    assert made
    assert {each["connection"] for each in puts} <= made
    assert all(each["duration_s"] > 0 for each in puts)
    (again,) = events("retry")
    assert (again["kind"], again["attempt"]) == ("Throttled", 1)
    assert [each["before"] > each["requests"] for each in events("pace")][:1] == [True]
    planned = {each["path"]: each["reason"] for each in events("plan")}
    assert planned == {"a": "new", "big": "new"}
    assert [each["route"] for each in events("route")] == ["parts"]


def test_requests_to_a_web_server(
    fastsync: Fastsync,
    hostile_s3: HostileS3,
    events: Callable[[str], list[dict[str, Any]]],
) -> None:
    """Of a query the names alone: its values may be what lets one in."""
    hostile_s3.put("bucket", "file", b"content")
    url = f"{hostile_s3.endpoint}/bucket/file"
    assert fastsync("cp", *TRACE, f"{url}?key=abc&n=1", "down").code == 0
    asked = events("request")
    places = {each["place"] for each in asked if each["protocol"] == "http"}
    assert places == {f"{url}?key=***&n=***"}
    assert sum(each["received"] for each in asked if each["status"] in (200, 206)) >= 7


@pytest.mark.parametrize("transport", ["openssh", "asyncssh"])
def test_requests_to_an_sftp_server(
    fastsync: Fastsync,
    plant: Plant,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    events: Callable[[str], list[dict[str, Any]]],
    transport: str,
) -> None:
    plant(tmp_path, {"src/a": "content", "src/big": b"b" * 3_000_000})
    with running_sshd(tmp_path_factory.mktemp("sshd")) as sshd:
        done = fastsync(
            *("cp", "-R", *TRACE, "--ssh-transport", transport, "-i", sshd.identity),
            *("--known-hosts", sshd.known_hosts, "--ssh-config", sshd.config),
            *("src", sshd.url(tmp_path / "there/")),
        )
    assert done.code == 0, done.stderr
    asked = events("request")
    written = [each for each in asked if each["method"] == "write"]
    assert sum(each["sent"] for each in written) == 3_000_007
    assert {each["status"] for each in written} == {0}
    assert all("/there/.fs-" in each["place"] for each in written), (
        "handles are told as their paths"
    )
    assert {each["connection"] for each in written} <= {
        each["connection"] for each in events("connect")
    }
    said = [each for each in events("library") if each["name"].startswith("asyncssh")]
    assert bool(said) == (transport == "asyncssh")


def test_without_a_file_it_goes_to_stderr(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    """And nothing is said twice there."""
    plant(tmp_path, {"src/a": "a", "src/x": "x"})
    plant(tmp_path, {"dest/a/": ""})
    done = fastsync("sync", "-v", "--json", "--log-level", "info", "src", "dest")
    assert done.code == 1
    lines = done.stderr.splitlines()
    assert sorted(line.split()[1] for line in lines) == ["ERROR", "INFO"]
    assert len(done.stdout.splitlines()) == 3
    trace = fastsync("ls", "--log-level", "trace", "src")
    assert " TRACE list protocol=local place=src" in trace.stderr
    assert trace.stdout == "a\nx\n"


def test_what_ends_a_run_is_in_the_log(fastsync: Fastsync, tmp_path: Path) -> None:
    for verb in (("cp", "none", "dest"), ("check", "none", "dest"), ("mkdir", "ftp://x/y")):
        assert fastsync(*verb, "--log-file", "log").code in (2, 3)
        assert " ERROR " in (tmp_path / "log").read_text()
        (tmp_path / "log").unlink()
    for verb in (("ls", "none"), ("check", "none", "dest"), ("cp", "none", "dest")):
        done = fastsync(*verb, "--log-file", "nowhere/log")
        told = "nowhere/log: the log cannot be written: no such file or directory"
        assert (done.code, done.stderr) == (2, f"fastsync: error: {told}\n")


def test_a_log_on_a_full_disk_is_no_reason_to_fail(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    plant(tmp_path, {"src/a": "a", "src/b": "b"})
    done = fastsync("cp", "-R", "src", "dest", "--log-file", "/dev/full", "--log-level", "trace")
    assert done.code == 0
    assert done.stderr.count("the log cannot be written on: no space left on device") == 1
    assert (tmp_path / "dest/b").read_text() == "b"


def test_a_log_that_is_a_pipe_without_a_reader(fastsync: Fastsync, tmp_path: Path) -> None:
    """It is said: to wait for one would look like a copy that hangs."""
    os.mkfifo(tmp_path / "log")
    (tmp_path / "a").write_text("a")
    done = fastsync("cp", "a", "b", "--log-file", "log")
    told = "log: the log cannot be written: no such device or address"
    assert (done.code, done.stderr) == (2, f"fastsync: error: {told}\n")


# -- the filter --------------------------------------------------------------------------------------


def test_no_fact_can_act_or_tell_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_known", {"pass\x1bword\u202e"})
    lines: list[str] = []
    for as_json in (False, True):
        kept = Log(lines.append, log.TRACE, as_json=as_json)
        kept.fact(log.TRACE, "request", {"place": "a\x1b[2J\n\u202eb pass\x1bword\u202e", "n": 1})
        kept.note("Authorization: Bearer abc\r\n2026-01-01T00:00:00.000Z INFO forged")
    assert len(lines) == 4
    for line in lines:
        assert line.isprintable()
        assert "word" not in line
        assert "abc" not in line
    event = json.loads(lines[2])["event"]
    assert event == {"operation": "request", "place": "a\x1b[2J\n\u202eb ***", "n": 1}


def test_what_libraries_log(capsys: pytest.CaptureFixture[str]) -> None:
    """Goes through the filter, too, and leaves nothing of ours behind in `logging`."""
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    with libraries_filtered():
        logging.getLogger("botocore").debug("X-Amz-Signature=abcdef")
        logging.getLogger("asyncssh").warning("\x1b[2J Authorization: %s", "Bearer abc")
        thread = threading.Thread(target=int, args=("Authorization: Bearer\x1b",))
        thread.start()
        thread.join()
    assert (root.level, list(root.handlers)) == before
    told = capsys.readouterr().err.splitlines()
    assert told[0] == r"fastsync: asyncssh: \x1b[2J Authorization: ***"
    assert told[1].startswith("fastsync: uncaught: ValueError: invalid literal for int()")
    assert "***" in told[1]
