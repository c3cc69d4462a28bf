"""What a run counts, and how it names what failed."""

from __future__ import annotations

import pytest

from fastsync.errors import Changed, FastsyncError, NotFound, Throttled, Transient
from fastsync.events import Silent
from fastsync.location import parse
from fastsync.tally import Tally


@pytest.mark.parametrize(
    ("error", "source", "destination", "told"),
    [
        (
            Transient("reset", where="http://127.0.0.1:9000"),
            "here/f",
            "s3://bucket/f",
            "s3://bucket/f: http://127.0.0.1:9000: reset",
        ),
        (
            Throttled("patience", where="http://127.0.0.1:9000", hint="later"),
            "s3://bucket/f",
            "there/f",
            "s3://bucket/f: http://127.0.0.1:9000: patience (later)",
        ),
        (Transient("gone", where="sftp://h:22"), "f", "sftp://h:22/f", "sftp://h:22/f: gone"),
        (NotFound("no", where="http://h/f"), "http://h/f", "f", "http://h/f: no"),
        (NotFound("no", where="there"), "s3://bucket/f", "there/f", "there: no"),
        (Changed("written to"), "here/f", "s3://bucket/f", "here/f: written to"),
        (FastsyncError("refused"), "here/f", "s3://bucket/f", "s3://bucket/f: refused"),
    ],
)
def test_an_error_names_the_file(
    error: FastsyncError, source: str, destination: str, told: str
) -> None:
    tally = Tally(Silent())
    tally.failed("copy", "f", parse(source), parse(destination), error)
    assert [str(item.error) for item in tally.summary(0).failures] == [told]


def test_an_error_of_several_files_names_each() -> None:
    tally, error = Tally(Silent()), Transient("reset", where="http://h:1")
    for name in "ab":
        tally.failed("copy", name, parse(name), parse(f"s3://bucket/{name}"), error)
    errors = [str(item.error) for item in tally.summary(0).failures]
    assert errors == [f"s3://bucket/{name}: http://h:1: reset" for name in "ab"]
