"""How values are written and read: sizes, times, limits, switches, choices and text."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, TypeAlias, cast

from fastsync.errors import UsageError

Plain: TypeAlias = bool | int | float | str

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

# Compiled when they are first used: most runs need none of them.
_NUMBER = r"([0-9]{1,19}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})"
_SIZE: Final = r"(?i)" + _NUMBER + r"\s*(?:(B)|([KMGTP])(i?B)?)?"
_DURATION: Final = r"(?i)" + _NUMBER + r"\s*(ms|[smhdw])?"
_LIMIT: Final = _NUMBER + r"\s*(%?)"
_SECONDS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_LARGEST: Final = (1 << 63) - 1  # what a file offset can be


def parse_size(text: str, bare: int = 1) -> int:
    """Bytes of ``8M`` = ``8MiB`` = 8388608, ``8MB`` = 8000000, ``8B`` = 8; a bare number counts `bare`.

    Units are K, M, G, T and P, in either case. Raises UsageError.
    """
    match = re.fullmatch(_SIZE, text.strip())
    if match is None:
        raise UsageError(
            f"'{text}' is not a size",
            hint="write a number and B, K, M, G, T or P: 8M or 8MiB is 8388608 bytes, 8MB is 8000000",
        )
    number, is_bytes, prefix, suffix = match.groups()
    if prefix:
        base = 1000 if (suffix or "").upper() == "B" else 1024
        unit: int = base ** ("KMGTP".index(prefix.upper()) + 1)
    else:
        unit = 1 if is_bytes else bare
    # A float would round the last digits of a large whole number.
    size = int(number) * unit if number.isdecimal() else round(float(number) * unit)
    if size > _LARGEST:
        raise UsageError(f"'{text}' is larger than any file")
    return size


def parse_duration(text: str) -> float:
    """Seconds of ``90``, ``1.5m``, ``3h``, ``500ms``, ``2d``, ``1w``. Raises UsageError."""
    match = re.fullmatch(_DURATION, text.strip())
    if match is None:
        raise UsageError(
            f"'{text}' is not a time",
            hint="write a number and ms, s, m, h, d or w: 500ms, 90 (seconds), 1.5m, 3h",
        )
    return float(match[1]) * _SECONDS[(match[2] or "s").lower()]


class MaxDelete(NamedTuple):
    """The most that one run may delete: a number of files, or per cent of those in scope."""

    files: int | None = None
    percent: float | None = None

    def __str__(self) -> str:
        return str(self.files) if self.percent is None else f"{self.percent:.15g}%"


def parse_max_delete(text: str) -> MaxDelete:
    """``100`` files, or ``50%`` of the destination's files in scope. Raises UsageError."""
    match = re.fullmatch(_LIMIT, text.strip())
    if match is not None and match[2] and float(match[1]) <= 100:
        return MaxDelete(percent=float(match[1]))
    if match is not None and not match[2] and match[1].isdecimal():
        return MaxDelete(files=int(match[1]))
    raise UsageError(
        f"'{text}' is not a limit of deletions",
        hint="write a number of files such as 100, or 0% to 100%",
    )


# Bytes per second up and down, None without a limit.
Rates: TypeAlias = tuple[float | None, float | None]
_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_CLOCK: Final = r"(?:([A-Za-z]{3})[A-Za-z]*-)?([01]?[0-9]|2[0-3]):([0-5][0-9])"


class Timetable(NamedTuple):
    """How fast bytes may move, by the minute of the week (Monday 0:00 is 0) from which on it holds; `text`
    is how it was written."""

    text: str
    steps: tuple[tuple[int, Rates], ...]

    def at(self, minute: int) -> Rates:
        """The rates in force at a minute of the week; before the first step, last week's last one."""
        return max(
            ((start, rates) for start, rates in self.steps if start <= minute),
            default=self.steps[-1],
            key=lambda step: step[0],
        )[1]

    def __str__(self) -> str:
        return self.text


def parse_bwlimit(text: str) -> Timetable:
    """``10M``, ``10M:512K`` (up and down), ``off``, or a timetable such as ``08:00,512k Sat-00:00,off``.
    Raises UsageError."""
    entries = text.split()
    if len(entries) == 1 and "," not in text:
        return Timetable(text.strip(), ((0, _rates(text)),))
    steps: dict[int, Rates] = {}
    for entry in entries:
        clock, comma, rate = entry.partition(",")
        found = re.fullmatch(_CLOCK, clock)
        day = (found[1] or "").lower() if found else ""
        if found is None or not comma or (day and day not in _DAYS):
            raise UsageError(
                f"'{entry}' is no entry of a timetable",
                hint="write the time from which a rate holds, and the rate: 08:00,512k Sat-00:00,off",
            )
        minute = int(found[2]) * 60 + int(found[3])
        for number in [_DAYS.index(day)] if day else range(7):
            steps[number * 1440 + minute] = _rates(rate)
    if not steps:
        raise UsageError("a rate is missing", hint="write 10M, 10M:512k or off")
    return Timetable(text.strip(), tuple(sorted(steps.items())))


def _rates(text: str) -> Rates:
    up, colon, down = text.strip().partition(":")
    return _rate(up), _rate(down if colon else up)


def _rate(text: str) -> float | None:
    word = text.strip().lower().removesuffix("/s")
    if word == "off":
        return None
    try:
        rate = parse_size(word)
    except UsageError:
        raise UsageError(
            f"'{text}' is not a rate", hint="write 10M or 10MB/s, 10M:512k for up and down, or off"
        ) from None
    if rate < 1024:
        raise UsageError(f"'{text}' is less than 1K a second", hint="off means no limit")
    return float(rate)


def size_text(size: int) -> str:
    """`size` as `parse_size` reads it, exactly, in the largest unit that allows it."""
    for unit, letter in ((1 << 50, "P"), (1 << 40, "T"), (GIB, "G"), (MIB, "M"), (KIB, "K")):
        if size and size % unit == 0:
            return f"{size // unit}{letter}"
    return f"{size}B"


def duration_text(seconds: float) -> str:
    """`seconds` as `parse_duration` reads it."""
    for unit in ("d", "h", "m"):
        if seconds and seconds % _SECONDS[unit] == 0:
            return f"{seconds / _SECONDS[unit]:.0f}{unit}"
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"


def nearest(word: str, known: Iterable[str], cutoff: float = 0.7) -> str | None:
    """What of the `known` was perhaps meant by `word`."""
    import difflib  # only for what went wrong

    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), None)


def meant(word: str, known: Iterable[str], cutoff: float = 0.7) -> str:
    """The end of an error about `word`: a question after the nearest of the `known`, or nothing."""
    near = nearest(word, known, cutoff)
    return f", did you mean {near}?" if near else ""


class Kind(NamedTuple):
    """A kind of value: how it is read from text, from TOML and from a caller, and written back.

    `told` says what is allowed, for errors and documentation. `types` are those of an effective value,
    `toml` those a file may use. `plain` gives the value as a file would write it.
    """

    told: str
    parse: Callable[[str], Any]
    types: tuple[type, ...]
    toml: tuple[type, ...]
    plain: Callable[[Any], Plain] = lambda value: cast("Plain", value)
    least: float = 0
    most: float = _LARGEST

    def from_text(self, text: str) -> object:
        """The value that a flag or a variable means by `text`. Raises UsageError."""
        return self._within(self.parse(text))

    def from_toml(self, value: object) -> object:
        """The value that a file means. Raises UsageError."""
        if type(value) not in self.toml:
            raise UsageError(f"{toml_name(value)} is not {self.told}")
        return value if isinstance(value, bool) else self.from_text(str(value))

    def from_caller(self, value: object) -> object:
        """The value of a parsed flag or an argument: the value itself, or whatever a file may say for it."""
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if isinstance(value, str):
            return self.from_text(value)
        if type(value) not in self.types:
            if type(value) in self.toml:
                return self.from_toml(value)
            raise UsageError(f"{value!r} is not {self.told}")
        return self._within(value)

    def _within(self, value: Any) -> object:
        # Written so that NaN, of which every comparison is false, is refused.
        if isinstance(value, int | float) and not self.least <= value <= self.most:
            raise UsageError(f"{self.plain(value)} is not {self.told}")
        return value


def toml_name(value: object) -> str:
    """A TOML value as an error should name it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    return f"'{value}'" if isinstance(value, str) else str(value)


def whole(least: int) -> Kind:
    def read(text: str) -> int:
        if re.fullmatch(r"[0-9]{1,9}", text.strip()) is None:
            raise UsageError(f"'{text}' is not {told}")
        return int(text)

    told = f"a whole number, {least} or more"
    return Kind(told, read, (int,), (int,), least=least)


def size(least: int = 0, most: int = _LARGEST, bare: int = 1) -> Kind:
    def read(text: str) -> int:
        return parse_size(text, bare)

    told = "a size such as 16M or 1.5GiB"
    if least:
        told += f", at least {size_text(least)}"
    if most < _LARGEST:
        told += f", at most {size_text(most)}"
    if bare == MIB:
        told += " (a bare number counts MiB, bytes are written 65536B)"
    return Kind(told, read, (int,), (int, str), size_text, least, most)


def duration(least: float = 0) -> Kind:
    told = "a time such as 500ms, 90 (seconds), 1.5m, 3h or 2d"
    if least:
        told += f", at least {duration_text(least)}"
    return Kind(told, parse_duration, (int, float), (int, float, str), duration_text, least)


def choice(*names: str) -> Kind:
    by_word = {name.lower(): name for name in names}

    def read(text: str) -> str:
        word = text.strip().lower()
        if word not in by_word:
            raise UsageError(f"'{text}' is not {told}{meant(word, names)}")
        return by_word[word]

    told = f"one of {', '.join(names)}"
    return Kind(told, read, (str,), (str,))


def _read_rate(text: str) -> int:
    word = text.strip()
    return parse_size(word[:-2] if word.lower().endswith("/s") else word)


def _read_switch(text: str) -> bool:
    word = text.strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise UsageError(f"'{text}' is neither true nor false", hint="write 1 or 0, true or false")


def _read_text(text: str) -> str:
    if not text or "\0" in text:
        raise UsageError(f"'{text}' is not {TEXT.told}")
    return text


def _read_pairs(text: str) -> str:
    for line in text.split("\n"):
        key, equals, _ = line.partition("=")
        if not (key.strip() and equals) or re.search(r"[\0\r]", line):
            raise UsageError(f"'{line}' is not {PAIRS.told}", hint="write it as colour=blue")
    return text


TEXT: Final = Kind("text that is not empty", _read_text, (str,), (str,))
FILE: Final = TEXT._replace(told="the name of a file")
URL: Final = TEXT._replace(told="a URL")
PAIRS: Final = Kind("key=value, one on each line", _read_pairs, (str,), (str,))
SWITCH: Final = Kind("true or false", _read_switch, (bool,), (bool,))
MAX_DELETE: Final = Kind(
    "a number of files such as 100, or per cent such as 50%",
    parse_max_delete,
    (MaxDelete,),
    (int, str),
    str,
)
BWLIMIT: Final = Kind(
    "a rate such as 10M, 10M:512k or off, or a timetable such as 08:00,512k 19:00,off",
    parse_bwlimit,
    (Timetable,),
    (int, str),
    str,
)
# A part below 4K costs more than its bytes; no store takes one above 5G (S3's limit for UploadPart).
CHUNK: Final = size(4 * KIB, 5 * GIB, bare=MIB)
SOCKET: Final = size(4 * KIB, GIB)
RATE: Final = size(0, GIB)._replace(told="a rate such as 1K or 1KB/s, or 0", parse=_read_rate)
