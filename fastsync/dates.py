"""Dates as HTTP writes them, in Unix nanoseconds."""

from __future__ import annotations

import datetime
import functools
import re
from typing import Final

SECOND_NS: Final = 1_000_000_000
_EPOCH: Final = datetime.date(1970, 1, 1).toordinal()
_MONTHS: Final = {
    name: number
    for number, name in enumerate(
        ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"), 1
    )
}
_DATE: Final = re.compile(
    r"[A-Z][a-z]{2}, ([0-9]{2}) ([A-Z][a-z]{2}) ([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) GMT"
)


def http_time(text: str | None) -> int | None:
    """Nanoseconds of an HTTP date (RFC 9110, 5.6.7), None for what is none."""
    return None if text is None or len(text) > 64 else _http_time(text)


@functools.lru_cache(256)
def _http_time(text: str) -> int | None:
    match = _DATE.fullmatch(text)
    if match is None:
        return _old_time(text)
    day, month, year, hour, minute, second = match.groups()
    if month not in _MONTHS:
        return None
    return utc_ns(int(year), _MONTHS[month], int(day), int(hour), int(minute), int(second))


def utc_ns(year: int, month: int, day: int, hour: int, minute: int, second: int) -> int | None:
    """Nanoseconds of a moment in UTC; None for one that never was."""
    if not (year >= 1970 and 1 <= month <= 12 and 1 <= day <= 31):
        return None
    if hour > 23 or minute > 59 or second > 60:
        return None
    days = datetime.date(year, month, 1).toordinal() - _EPOCH + day - 1
    return (days * 86_400 + hour * 3600 + minute * 60 + second) * SECOND_NS


def _old_time(text: str) -> int | None:
    """The two older forms, which a client has to understand."""
    import email.utils

    try:
        parsed = email.utils.parsedate_tz(text[:64])
        return None if parsed is None else int(email.utils.mktime_tz(parsed)) * SECOND_NS
    except (ValueError, OverflowError, TypeError):
        return None
