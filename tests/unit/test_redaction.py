"""Texts without secrets: known ones, and those that show by where they stand."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsync import redaction
from fastsync.location import parse
from fastsync.redaction import conceal, redacted


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_known", set())


def test_known_secrets_in_every_form() -> None:
    conceal("p/ss wörd", None, "")
    for written in ("p/ss wörd", "p%2Fss%20w%C3%B6rd", "p/ss%20w%C3%B6rd", "p%2Fss+w%C3%B6rd"):
        assert redacted(f"<{written}>") == "<***>"


def test_the_longer_of_two_goes_first() -> None:
    conceal("secret", "secret-and-more")
    assert redacted("secret-and-more, secret") == "***, ***"


def test_short_ones_are_words() -> None:
    conceal("the")
    assert redacted("the file is gone") == "the file is gone"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET http://me:pw@host/x failed", "GET http://me:***@host/x failed"),
        ("sftp://me@host/x", "sftp://me@host/x"),
        ("at host:80/x, a@b", "at host:80/x, a@b"),
        ("http://h/x?a=1&X-Amz-Signature=abc&b=2", "http://h/x?a=1&X-Amz-Signature=***&b=2"),
        ("?token=abc", "?token=***"),
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("{'Authorization': 'Basic abc='}", "{'Authorization': '***'}"),
        ("(b'x-amz-security-token', b'abc')", "(b'x-amz-security-token', b'***')"),
        ("authorization=AWS4-HMAC-SHA256 Credential=x", "authorization=***"),
        ("no authorization was given", "no authorization was given"),
    ],
)
def test_secrets_by_place(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_places_are_known_from_when_they_are_read() -> None:
    parse("sftp://me:pass%2Fword@host/")
    parse("https://my-token@host/?X-Amz-Credential=aaaabbbbccccdddd/2024&partNumber=3")
    text = "pass/word pass%2Fword my-token aaaabbbbccccdddd/2024 3"
    assert redacted(text) == "*** *** *** *** 3"


@given(st.text(min_size=6), st.text(), st.text())
def test_no_known_secret_passes(secret: str, before: str, after: str) -> None:
    redaction._known.clear()
    conceal(secret)
    assert secret not in redacted(before + secret + after).replace("***", "") or set(secret) <= {
        "*"
    }


@pytest.mark.parametrize("shown", [repr, ascii, json.dumps, lambda text: repr(text.encode())])
@pytest.mark.parametrize("secret", ["pa'ss\\word", 'pa"ss\nword', "pässwörd", "pa'ss\"word"])
def test_a_secret_that_was_quoted(shown: Callable[[str], str], secret: str) -> None:
    """As libraries and tracebacks quote what they were given."""
    conceal(secret)
    assert "ss" not in redacted(shown(secret))
