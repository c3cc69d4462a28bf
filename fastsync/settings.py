"""What can be set: the one table of settings, and how each kind of value is written.

A line in `Settings` gives a setting its name, type, default and help, and with them its environment
variable, its key in the configuration file, its check, and its line in ``config show`` and
``config init``. Which of several values counts is for `fastsync.config` to say.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar, cast

from fastsync.errors import UsageError

T = TypeVar("T")
Plain: TypeAlias = bool | int | float | str

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

_NUMBER = r"([0-9]{1,19}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})"
_SIZE = re.compile(_NUMBER + r"\s*(?:(B)|([KMGTP])(i?B)?)?", re.IGNORECASE)
_DURATION = re.compile(_NUMBER + r"\s*(ms|[smhdw])?", re.IGNORECASE)
_MAX_DELETE = re.compile(_NUMBER + r"\s*(%?)")
_SECONDS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_LARGEST: Final = (1 << 63) - 1  # what a file offset can be


def parse_size(text: str, bare: int = 1) -> int:
    """Bytes of ``8M`` = ``8MiB`` = 8388608, ``8MB`` = 8000000, ``8B`` = 8; a bare number counts `bare`.

    Units are K, M, G, T and P, in either case. Raises UsageError.
    """
    match = _SIZE.fullmatch(text.strip())
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
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"'{text}' is not a time",
            hint="write a number and ms, s, m, h, d or w: 500ms, 90 (seconds), 1.5m, 3h",
        )
    return float(match[1]) * _SECONDS[(match[2] or "s").lower()]


@dataclass(frozen=True, slots=True)
class MaxDelete:
    """The most that one run may delete: a number of files, or per cent of those in scope."""

    files: int | None = None
    percent: float | None = None

    def __str__(self) -> str:
        return str(self.files) if self.percent is None else f"{self.percent:.15g}%"


def parse_max_delete(text: str) -> MaxDelete:
    """``100`` files, or ``50%`` of the destination's files in scope. Raises UsageError."""
    match = _MAX_DELETE.fullmatch(text.strip())
    if match is not None and match[2] and float(match[1]) <= 100:
        return MaxDelete(percent=float(match[1]))
    if match is not None and not match[2] and match[1].isdecimal():
        return MaxDelete(files=int(match[1]))
    raise UsageError(
        f"'{text}' is not a limit of deletions",
        hint="write a number of files such as 100, or 0% to 100%",
    )


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
        """The value of a parsed flag: text is read as such, anything else is the value itself."""
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if isinstance(value, str):
            return self.from_text(value)
        if type(value) not in self.types:
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


def _whole(least: int) -> Kind:
    def read(text: str) -> int:
        if re.fullmatch(r"[0-9]{1,9}", text.strip()) is None:
            raise UsageError(f"'{text}' is not {told}")
        return int(text)

    told = f"a whole number, {least} or more"
    return Kind(told, read, (int,), (int,), least=least)


def _size(least: int = 0, most: int = _LARGEST, bare: int = 1) -> Kind:
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


def _duration(least: float = 0) -> Kind:
    told = "a time such as 500ms, 90 (seconds), 1.5m, 3h or 2d"
    if least:
        told += f", at least {duration_text(least)}"
    return Kind(told, parse_duration, (int, float), (int, float, str), duration_text, least)


def _choice(*names: str) -> Kind:
    def read(text: str) -> str:
        word = text.strip().lower()
        if word not in names:
            raise UsageError(f"'{text}' is not {told}{meant(word, names)}")
        return word

    told = f"one of {', '.join(names)}"
    return Kind(told, read, (str,), (str,))


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


TEXT: Final = Kind("text that is not empty", _read_text, (str,), (str,))
_SWITCH: Final = Kind("true or false", _read_switch, (bool,), (bool,))
_MAX_DELETE_KIND: Final = Kind(
    "a number of files such as 100, or per cent such as 50%",
    parse_max_delete,
    (MaxDelete,),
    (int, str),
    str,
)
# A part below 4K costs more than its bytes; no store takes one above 5G (S3's limit for UploadPart).
_CHUNK: Final = _size(4 * KIB, 5 * GIB, bare=MIB)
_SOCKET: Final = _size(4 * KIB, GIB)


def _setting(
    default: T,
    kind: Kind,
    help_: str,
    *,
    flag: str | None = "",
    example: Plain | None = None,
    group: str = "",
) -> T:
    """A line of the table. `flag` is None for what has none, "" for the name with dashes; `example`
    is for what has no default; `group` opens a group of settings."""
    more = {"kind": kind, "help": help_, "flag": flag, "example": example, "group": group}
    return field(default=default, metadata=more)


@dataclass(frozen=True, slots=True)
class Settings:
    """The effective settings of a run. Sizes are bytes, times seconds; None means "not set"."""

    parallel_streams: int = _setting(
        8,
        _whole(1),
        "streams in flight, parts and files together",
        flag="--parallel",
        group="Engine",
    )
    jobs: int = _setting(8, _whole(1), "files at once")
    chunk_size: int = _setting(16 * MIB, _CHUNK, "size of a part of a large file")
    # The least holds a read (`backend.READ_BUFFER`) and a part that it fills.
    buffer_size: int = _setting(
        64 * MIB, _size(2 * MIB), "file data held in memory at once, never more", flag=None
    )
    tcp_send_buffer: int | None = _setting(
        None,
        _SOCKET,
        "socket send buffer; by default the system's choice",
        flag=None,
        example="16M",
    )
    tcp_recv_buffer: int | None = _setting(
        None,
        _SOCKET,
        "socket receive buffer; by default the system's choice",
        flag=None,
        example="16M",
    )
    congestion_control: str | None = _setting(
        None, TEXT, "TCP congestion control, where the kernel has it", flag=None, example="bbr"
    )
    small_file_threshold: int = _setting(
        MIB, _size(), "files up to this size are moved whole and in batches", flag=None
    )
    retry_count: int = _setting(5, _whole(0), "further attempts after a passing error")
    stall_timeout: float = _setting(60.0, _duration(0.001), "give up on a stream that stands still")
    request_timeout: float = _setting(60.0, _duration(0.001), "give up on a server that is silent")

    checksum: bool = _setting(False, _SWITCH, "compare content, not size and time", group="Choose")
    size_only: bool = _setting(False, _SWITCH, "compare sizes only")
    update: bool = _setting(False, _SWITCH, "skip files that are newer at the destination")
    ignore_times: bool = _setting(False, _SWITCH, "copy even what looks the same")
    ignore_existing: bool = _setting(False, _SWITCH, "skip files that exist at the destination")
    existing: bool = _setting(False, _SWITCH, "skip files that do not exist at the destination")
    modify_window: float | None = _setting(
        None,
        _duration(),
        "times this close are equal; by default the stores' precision",
        example="2s",
    )
    min_size: int | None = _setting(None, _size(), "skip smaller files", example="1K")
    max_size: int | None = _setting(None, _size(), "skip larger files", example="10G")
    min_age: float | None = _setting(None, _duration(), "skip younger files", example="1m")
    max_age: float | None = _setting(None, _duration(), "skip older files", example="30d")
    max_depth: int | None = _setting(
        None, _whole(1), "levels to descend, 1 is the place itself; by default all", example=3
    )

    delete: bool = _setting(
        False, _SWITCH, "sync: delete what the source does not have", group="Delete"
    )
    delete_excluded: bool = _setting(False, _SWITCH, "with delete: excluded files too")
    max_delete: MaxDelete | None = _setting(  # noqa: RUF009 (frozen, so shared safely)
        None,
        _MAX_DELETE_KIND,
        "refuse to delete more; by default more than 100 files that are more than 50%",
        example="50%",
    )
    allow_empty_source: bool = _setting(False, _SWITCH, "let an empty source delete everything")
    ignore_missing_args: bool = _setting(False, _SWITCH, "skip sources that do not exist")

    recursive: bool = _setting(False, _SWITCH, "cp, ls: directories too", group="Metadata")
    archive: bool = _setting(
        False, _SWITCH, "recursive, links as links, directory times, owner and group where allowed"
    )
    links: Literal["keep", "follow", "skip"] = _setting(
        "keep",
        _choice("keep", "follow", "skip"),
        "symbolic links: copy them, what they point to, or neither",
    )
    sparse: bool = _setting(False, _SWITCH, "keep holes in files")
    preserve_special: bool = _setting(False, _SWITCH, "keep setuid, setgid and sticky bits")

    inplace: bool = _setting(
        False,
        _SWITCH,
        "write over the old file, not beside it with a rename at the end",
        group="Write",
    )
    resume: bool = _setting(True, _SWITCH, "go on where an interrupted copy of a large file ended")
    durable: bool = _setting(False, _SWITCH, "a finished file survives a power cut (fsync)")

    progress: bool | None = _setting(
        None, _SWITCH, "show progress; by default on a terminal", example=True, group="Output"
    )
    dry_run: bool = _setting(False, _SWITCH, "say what would be done, and do nothing")
    verbose: int = _setting(0, _whole(0), "how much to tell: 0, 1 or 2")
    quiet: bool = _setting(False, _SWITCH, "tell errors only")
    json: bool = _setting(False, _SWITCH, "one JSON object per line")
    summarize: bool = _setting(False, _SWITCH, "totals at the end")
    human_readable: bool = _setting(False, _SWITCH, "sizes with units")
    color: Literal["auto", "always", "never"] = _setting(
        "auto", _choice("auto", "always", "never"), "colours on the terminal"
    )
    log_file: str | None = _setting(
        None, TEXT, "write a log to this file", example="/var/log/fastsync.log"
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "info", _choice("debug", "info", "warning", "error"), "how much goes to the log"
    )
    log_format: Literal["text", "json"] = _setting(
        "text", _choice("text", "json"), "form of the log"
    )

    @property
    def dir_times(self) -> bool:
        """Keep the modification times of directories."""
        return self.archive

    @property
    def owner(self) -> bool:
        """Keep owner and group, as far as the system lets us."""
        return self.archive


class Setting(NamedTuple):
    """A line of the table, read. `flag` is None for what has none; `group` is "" within a group."""

    name: str
    default: object
    kind: Kind
    help: str
    flag: str | None
    example: Plain | None
    group: str

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables that give it: by its key, then by its flag if that differs."""
        by_flag = (self.flag or "").removeprefix("--").replace("-", "_")
        names = (self.name, by_flag) if by_flag not in ("", self.name) else (self.name,)
        return tuple(f"FASTSYNC_{name.upper()}" for name in names)

    def plain(self, value: object) -> Plain | None:
        """`value` as a configuration file would write it, None when it is not set."""
        return None if value is None else self.kind.plain(value)


def _table() -> Iterator[Setting]:
    for item in fields(Settings):
        more = dict(item.metadata)
        if more["flag"] == "":
            more["flag"] = "--" + item.name.replace("_", "-")
        yield Setting(name=item.name, default=item.default, **more)


SETTINGS: Final[Mapping[str, Setting]] = {setting.name: setting for setting in _table()}
