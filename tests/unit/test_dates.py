"""Dates of HTTP, in all the forms that a client has to understand."""

from __future__ import annotations

import pytest

from fastsync.dates import http_time


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Tue, 14 Nov 2023 22:13:20 GMT", 1_700_000_000),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 784_111_777),  # RFC 850
        ("Sun Nov  6 08:49:37 1994", 784_111_777),  # asctime
        ("Tue, 14 Foo 2023 22:13:20 GMT", None),
        ("Tue, 14 Nov 2023 25:13:20 GMT", None),
        ("0", None),
        ("", None),
        ("soon", None),
        ("Tue, 99 Nov 99999999999999 22:13:20 GMT", None),
        (None, None),
    ],
)
def test_times(text: str | None, seconds: int | None) -> None:
    assert http_time(text) == (None if seconds is None else seconds * 1_000_000_000)
