"""Where requests go: addresses from places, names of listings and redirects, and what may follow what."""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Final, NamedTuple
from urllib.parse import quote, unquote_to_bytes, urljoin, urlsplit

from fastsync.errors import PermissionRefused, UsageError
from fastsync.location import Location
from fastsync.wire import Origin

MAX_REDIRECTS: Final = 10
REDIRECTS: Final = (301, 302, 303, 307, 308)
_MAX_ADDRESS: Final = 16 << 10
# What a path may hold besides letters and digits (RFC 3986, 3.3); "%" is looked at by itself.
_PATH: Final = "/%!$&'()*+,;=:@~-._"
_QUERY: Final = _PATH + "?"
_STRAY: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_NO_HOST: Final = r"(?i)(?:[a-z][a-z0-9+.-]*:)?//(?:[/?#]|$)"
_CONTROL: Final = r"[\x00-\x1f\x7f]"


class Target(NamedTuple):
    """An address: `path` is absolute, percent-encoded and without the query. At the user's `own` origin
    the user's secrets are sent along, at no other."""

    origin: Origin
    path: str
    query: str
    own: bool

    @property
    def request(self) -> str:
        """What stands in the request line. May hold secrets."""
        return f"{self.path}?{self.query}" if self.query else self.path

    @property
    def url(self) -> str:
        """The whole address. May hold secrets."""
        return f"{self.origin}{self.request}"

    def __str__(self) -> str:
        return f"{self.origin}{self.path}{'?***' if self.query else ''}"

    def below(self, path: str) -> Target:
        """The address of `path`, as listings give it, below this directory."""
        above = self.path if self.path.endswith("/") else self.path + "/"
        return Target(self.origin, above + quote_name(path), "", self.own)

    def as_directory(self) -> Target:
        """The same with a slash at its end, and no query."""
        path = self.path if self.path.endswith("/") else self.path + "/"
        return self._replace(path=path, query="")


def quote_name(path: str) -> str:
    """A decoded path for an address: everything that is not plain is encoded, "/" alone stays."""
    return quote(os.fsencode(path))


def unquote_name(text: str) -> str:
    """The name that a percent-encoded one stands for; bytes that are not UTF-8 are surrogate escapes."""
    return os.fsdecode(unquote_to_bytes(os.fsencode(text))) if "%" in text else text


def _quote_again(text: str, safe: str) -> str:
    """Keep what is encoded already, and encode the rest."""
    return quote(_STRAY.sub("%25", text), safe=safe, errors="surrogateescape")


def target_of(location: Location) -> Target:
    """The address of a place. Raises UsageError for a host that is none."""
    try:
        # RFC 3986 wants letters beyond ASCII as IDNA.
        host = location.host if location.host.isascii() else location.host.encode("idna").decode()
    except UnicodeError as error:
        raise UsageError("the host is not understood", where=str(location)) from error
    if not host:
        raise UsageError("an address without a host", where=str(location))
    # An interface of an IPv6 address is written %25eth0 in a URL (RFC 6874).
    host = host.replace("%25", "%") if ":" in host else host
    port = location.port or (443 if location.scheme == "https" else 80)
    path = _quote_again(location.path, _PATH)
    if not path.startswith("/"):
        path = "/" + path
    return Target(
        Origin(location.scheme, host.lower(), port),
        path,
        _quote_again(location.query, _QUERY),
        True,
    )


def redirected(target: Target, told: str | None) -> Target:
    """Where a redirect from `target` leads. Raises PermissionRefused for where none may lead."""
    where = str(target)
    if not told or len(told) > _MAX_ADDRESS or re.search(_CONTROL, told):
        raise PermissionRefused("the server redirects to no address", where=where)
    # Header bytes beyond ASCII arrive as Latin-1; what they are meant as is UTF-8.
    text = told.encode("latin-1", "replace").decode("utf-8", "surrogateescape")
    if re.match(_NO_HOST, text):  # urljoin() would take it for a path here
        raise PermissionRefused("the server redirects to no address", where=where)
    try:
        parts = urlsplit(urljoin(target.url, text))
        port = parts.port
        host = parts.hostname or ""
        host = host if host.isascii() else host.encode("idna").decode()
        if " " in parts.netloc:  # servers forget to quote it in a path, and there alone
            raise ValueError("a space in a host")
    except ValueError as error:
        raise PermissionRefused("the server redirects to no address", where=where) from error
    scheme = parts.scheme.lower()
    if scheme not in ("http", "https") or not host:
        raise PermissionRefused(
            "the server redirects to what is no web address",
            where=where,
            hint="nothing but http and https is followed",
        )
    if target.origin.scheme == "https" and scheme == "http":
        raise PermissionRefused(
            f"the server redirects to http://{host}, without TLS",
            where=where,
            hint="if that is meant, name the http:// address",
        )
    origin = Origin(scheme, host, port or (443 if scheme == "https" else 80))
    return Target(
        origin,
        _quote_again(parts.path, _PATH) or "/",
        _quote_again(parts.query, _QUERY),
        target.own and origin == target.origin,
    )


def is_public(address: str) -> bool:
    """True for an IP address that is reached over the Internet."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        return found.ipv4_mapped.is_global
    return found.is_global
