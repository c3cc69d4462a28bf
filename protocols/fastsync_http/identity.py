"""What a server is told about who asks: header lines of a file or the environment, tokens, passwords.

All of it is for the origin that the user named, and for no other. Secrets are in no ``repr``.
"""

from __future__ import annotations

import base64
import netrc
import os
import re
import stat
from collections.abc import Iterable, Mapping
from typing import Final

from fastsync.errors import ConfigError, UsageError
from fastsync.location import Location
from fastsync.redaction import conceal
from fastsync.trust import OTHERS_USE, mistrust

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_MAX_FILE: Final = 64 << 10
# What makes a request what it is; another value would break it, or smuggle in a second one.
_OURS: Final = frozenset(
    (
        "accept-encoding", "connection", "content-length", "expect", "host", "if-match",
        "if-modified-since", "if-none-match", "if-range", "if-unmodified-since", "keep-alive",
        "proxy-authorization", "proxy-connection", "range", "te", "trailer", "transfer-encoding",
        "upgrade",
    )
)  # fmt: skip
# Header lines that hold no secret, and words that messages may need.
_PLAIN: Final = frozenset(("accept", "accept-language", "origin", "referer", "user-agent"))


class Identity:
    """Header lines for the user's own origin."""

    __slots__ = ("headers",)

    def __init__(self, headers: Iterable[tuple[str, str]]) -> None:
        self.headers = tuple(headers)

    def __repr__(self) -> str:
        return f"<headers {', '.join(name for name, _ in self.headers)}>"


def identify(
    location: Location, place: Mapping[str, str], environ: Mapping[str, str] = os.environ
) -> Identity:
    """What the user said about who asks at `location`. Raises UsageError, ConfigError."""
    lines: list[tuple[str, str]] = []
    if (path := place.get("header_file")) is not None:
        lines += parse_lines(_read_private(path), path)
    if environ.get("FASTSYNC_HEADER"):
        lines += parse_lines(environ["FASTSYNC_HEADER"], "FASTSYNC_HEADER")
    if not any(name.lower() == "authorization" for name, _ in lines):
        value = _authorization(location, environ)
        if value is not None:
            lines.append(("Authorization", value))
    conceal(*(value for name, value in lines if name.lower() not in _PLAIN))
    return Identity(lines)


def _authorization(location: Location, environ: Mapping[str, str]) -> str | None:
    if location.user is not None and location.password is not None:
        return _basic(location.user, location.password)
    token = environ.get("FASTSYNC_BEARER_TOKEN")
    if token and location.user is None:
        if not re.fullmatch(r"[A-Za-z0-9._~+/=-]+", token):  # RFC 6750, 2.1
            raise ConfigError("FASTSYNC_BEARER_TOKEN is no bearer token")
        conceal(token)
        return f"Bearer {token}"
    found = _from_netrc(location, environ)
    if found is not None:
        return _basic(*found)
    return None if location.user is None else _basic(location.user, "")


def _basic(user: str, password: str) -> str:
    pair = f"{user}:{password}".encode("utf-8", "surrogateescape")
    return f"Basic {base64.b64encode(pair).decode()}"


def _from_netrc(location: Location, environ: Mapping[str, str]) -> tuple[str, str] | None:
    path = environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        with open(path, "rb") as file:
            wrong = mistrust(path, file.fileno())
        if wrong is not None:
            raise ConfigError(wrong[0], where=path, hint=wrong[1])
        found = netrc.netrc(path).authenticators(location.host)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeError) as error:
        raise ConfigError("it cannot be read", where=path) from error
    except netrc.NetrcParseError as error:
        # Its text is not repeated: it quotes the file.
        raise ConfigError(
            "it is not understood, or others may read it",
            where=f"{path}, line {error.lineno}",
            hint="chmod 600 it",
        ) from None
    if found is None or (location.user is not None and found[0] != location.user):
        return None
    conceal(found[2])
    return found[0], found[2] or ""


def _read_private(path: str) -> str:
    """The text of a file of secrets. Raises ConfigError for one that others can read or write."""
    try:
        fd = os.open(os.path.expanduser(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError(
            f"the header file cannot be read: {error.strerror}", where=path
        ) from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):  # open() takes no directories
        os.close(fd)
        raise ConfigError("the header file is no regular file", where=path)
    with open(fd, "rb") as file:
        if (wrong := mistrust(os.path.expanduser(path), fd, OTHERS_USE)) is not None:
            raise ConfigError(f"the header file: {wrong[0]}", where=path, hint=wrong[1])
        data = file.read(_MAX_FILE + 1)
    if len(data) > _MAX_FILE:
        raise ConfigError("the header file is too long", where=path)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError("the header file is not UTF-8", where=path) from error


def parse_lines(text: str, where: str) -> list[tuple[str, str]]:
    """Lines ``Name: value``; empty ones and those with "#" in front are skipped. Raises ConfigError,
    without showing a value."""
    lines: list[tuple[str, str]] = []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, value = line.partition(":")
        value = value.strip(" \t")
        try:
            is_value = _VALUE.fullmatch(value.encode().decode("latin-1")) is not None
        except UnicodeEncodeError:
            is_value = False
        if not colon or not _TOKEN.fullmatch(name) or not is_value:
            raise ConfigError(f"line {number} is no header line", where=where, hint="Name: value")
        if name.lower() in _OURS:
            raise UsageError(f"line {number}: {name} is set by fastsync itself", where=where)
        lines.append((name, value))
    return lines
