"""Places: how they are written and printed, never with their secrets."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from fastsync.errors import UsageError
from fastsync.redaction import conceal

LOCAL_SCHEME: Final = "file"
STREAM: Final = "-"

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_DELIMITERS = re.compile(r"[%:/?#@\[\]]")
_WEB: Final = ("http", "https")


@dataclass(frozen=True, slots=True)
class Location:
    """A parsed place. `path` is as written (percent-encoding is the protocol's business).

    `host` is the server or bucket, "" for local files. `password` and `query` never print, nor does
    the `user` of a web address, which is where people put tokens.
    """

    scheme: str
    path: str
    host: str = ""
    port: int | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    query: str = field(default="", repr=False)

    @property
    def is_stream(self) -> bool:
        """True for ``-``: standard input or output."""
        return self.scheme == STREAM

    @property
    def hides(self) -> bool:
        """True when there is more to it than is printed: a password, a query, or who asks the web."""
        is_token = self.user is not None and self.scheme in _WEB
        return self.password is not None or bool(self.query) or is_token

    @property
    def is_directory_like(self) -> bool:
        """True when the place is written as a directory: it ends in "/" (or is "." or "..")."""
        return self.path.endswith("/") or self.path.rpartition("/")[2] in ("", ".", "..")

    @property
    def stands_alone(self) -> bool:
        """True where a file is only known by its whole address, not as a name in the directory above: on
        the web, for the query, and for what redirects make of it."""
        return self.scheme in _WEB and not self.is_directory_like

    @property
    def name(self) -> str:
        """The last component, "" for a place written with a trailing slash. Of a web address it is
        decoded, unless that would make more than one name of it."""
        name = self.path.rpartition("/")[2]
        if self.scheme not in _WEB or "%" not in name:
            return name
        decoded = _unquote(name, errors="surrogateescape")
        return name if "/" in decoded or "\0" in decoded or decoded in (".", "..") else decoded

    def child(self, relative: str) -> Location:
        """The place of `relative`, a path as listings give it, below this one."""
        if not relative:
            return self
        path = self.path if not self.path or self.path.endswith("/") else self.path + "/"
        if not path and relative.startswith("/") and self.scheme != LOCAL_SCHEME:
            path = "/"  # a key "/x" of a bucket is not its key "x"
        return self._with_path(path + relative)

    def parent(self) -> Location:
        """The directory that holds this place; `name` is the rest."""
        head, slash, _ = self.path.rpartition("/")
        if self.scheme == LOCAL_SCHEME:
            return self._with_path((head or slash) if slash else ".")
        return self._with_path(head + slash)

    def _with_path(self, path: str) -> Location:
        return Location(self.scheme, path, self.host, self.port, self.user, self.password)

    def __str__(self) -> str:
        if self.is_stream:
            return STREAM
        if self.scheme == LOCAL_SCHEME:
            return self.path
        user = f"{self._shown_user()}@" if self.user else ""
        port = f":{self.port}" if self.port is not None else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        slash = "" if self.path.startswith("/") or not self.path else "/"
        # There is no telling which parameter of a signed URL is the secret one.
        query = "?***" if self.query else ""
        return f"{self.scheme}://{user}{host}{port}{slash}{self.path}{query}"

    def _shown_user(self) -> str:
        if self.scheme in _WEB:
            return "***"
        user = _DELIMITERS.sub(lambda match: f"%{ord(match[0]):02X}", self.user or "")
        return user if self.password is None else f"{user}:***"


def as_shown(text: str) -> str:
    """A place as a person wrote it, without its secrets. Raises UsageError as `parse` does."""
    return str(parse(text)) if "://" in text else text


# A value of a query that is no mere word.
_LONG: Final = 16


def parse(text: str) -> Location:
    """Read a place as a person writes it.

    ``scheme://...`` is a URL, ``-`` a stream, anything else (``a:b``, ``C:x``, ``./s3://x``) a local path.
    Whether the scheme is known is for the registry to say. Raises UsageError for what is neither.
    """
    if text == STREAM:
        return Location(STREAM, "")
    if not text:
        raise UsageError("an empty place", hint="write . for the current directory")
    if "\0" in text:
        raise UsageError("a place cannot contain a NUL character")
    match = _URL.fullmatch(text)
    if match is None:
        return Location(LOCAL_SCHEME, text)
    scheme, rest = match[1].lower(), match[2]
    if scheme == LOCAL_SCHEME:
        host, slash, encoded = rest.partition("/")
        path = "/" + _unquote(encoded, errors="surrogateescape")
        if host not in ("", "localhost") or not slash or "\0" in path:
            raise UsageError(
                "a file:// place must be file:///absolute/path", hint="or write the path itself"
            )
        return Location(LOCAL_SCHEME, path)
    return _parse_url(scheme, rest)


def _unquote(text: str, errors: str = "replace") -> str:
    from urllib.parse import unquote  # local paths, the common case, need none of it

    return unquote(text, errors=errors)


def _parse_url(scheme: str, rest: str) -> Location:
    rest, _, query = rest.partition("?") if scheme in _WEB else (rest, "", "")
    authority, slash, path = rest.partition("/")
    userinfo, at, hostport = authority.rpartition("@")
    user, colon, password = userinfo.partition(":")
    # An IPv6 address may name an interface: fe80::1%25eth0 (RFC 6874).
    bracketed = re.fullmatch(
        r"\[([0-9A-Fa-f:.]+(?:%[0-9A-Za-z%._~-]+)?)\](?::([0-9]{1,5}))?", hostport
    )
    plain = re.fullmatch(r"([^:\[\]]*)(?::([0-9]{1,5}))?", hostport)
    match = bracketed or plain
    port = int(match[2]) if match and match[2] else None
    if match is None or not (port is None or 0 < port < 65536):
        # What follows the host is not shown: after a slash in a password it is half of the password.
        raise UsageError(
            "the host or port is not understood",
            where=f"{scheme}://{hostport.partition(':')[0]}",
            hint="in a user name or password, write / as %2F, : as %3A, @ as %40, ? as %3F",
        )
    secret = _unquote(password) if colon else None
    # The user of a web address may be a token.
    conceal(secret, query, user if scheme in _WEB else None)
    conceal(*(value for value in re.findall(r"=([^&]*)", query) if len(value) >= _LONG))
    return Location(
        scheme,
        slash + path,
        host=match[1],
        port=port,
        user=_unquote(user) if at else None,
        password=secret,
        query=query,
    )
