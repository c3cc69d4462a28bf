"""Index pages of web servers: the names on them, and sizes and times where they are exact.

Written against pages of nginx (HTML and JSON), Apache, lighttpd, Caddy, Python's http.server and rclone.
A page that does not look like an index is refused: its links would be taken for a directory's files, and
what is not among them for deleted. All patterns are bounded, for pages are written by strangers.
"""

from __future__ import annotations

import html
import json
import re
from typing import Final, NamedTuple
from urllib.parse import urljoin, urlsplit

from fastsync.backend import Fault, Kind
from fastsync.dates import http_time, utc_ns
from fastsync.errors import FastsyncError, ListingError, NameRefused
from fastsync.names import safe_parts
from fastsync_http.targets import Target, unquote_name

MAX_PAGE: Final = 64 << 20
_MAX_ROW: Final = 4096
_HEAD: Final = 64 << 10

_HIDDEN: Final = re.compile(r"<!--|<(script|style)\b", re.IGNORECASE)
_ANCHOR: Final = re.compile(
    # The first href, and no second thoughts: a page of beginnings would take minutes.
    r"""<a\s(?>[^<>]{0,1024}?href\s*=\s*)"""
    r"""(?:"([^"]{0,8192}+)"|'([^']{0,8192}+)'|([^\s"'>]{1,8192}+))[^<>]{0,1024}+>""",
    re.IGNORECASE,
)
_TAG: Final = re.compile(r"<[^<>]{0,1024}>")
_HEADING: Final = re.compile(r"<(?:title|h1)\b[^>]{0,256}>([^<]{0,8192})<", re.IGNORECASE)
_INDEX: Final = re.compile(r"\b(?:index|listing|contents) (?:of|for)\b", re.IGNORECASE)
# Every server that begins a document ends it, too; what a proxy cut short has lost the names at its end.
_BEGIN: Final = re.compile(r"<html\b", re.IGNORECASE)
_END: Final = re.compile(r"</html\b", re.IGNORECASE)
_UP: Final = re.compile(r"\.\.|parent", re.IGNORECASE)
# nginx and Apache, in rows that hold nothing else: the size is in bytes if there is no letter behind it.
# Their times are to the minute, and in whatever zone the server likes.
_DATE_AND_SIZE: Final = re.compile(
    r"\s*(?:[0-9]{2}-[A-Z][a-z]{2}-[0-9]{4}|[0-9]{4}-[0-9]{2}-[0-9]{2}) [0-9]{2}:[0-9]{2}"
    r"\s+([0-9]{1,18})\s*"
)
# Caddy and rclone: bytes, and a time in UTC.
_ORDER: Final = re.compile(r'\bdata-order="([0-9]{1,18})"')
_UTC: Final = re.compile(
    r'\bdatetime="\s*([0-9]{4})-([0-9]{2})-([0-9]{2})[T ]([0-9]{2}):([0-9]{2}):([0-9]{2})'
    r'(?:\.[0-9]{1,9})?(?:Z| (?:\+|&\#43;)0000 UTC)"'
)
# Caddy tells the time, and in some versions the size, of a link itself and not of what it leads to.
_LINKED: Final = re.compile(r"shortcut|symlink")
# What we write into before it has its name, should the server's folder be a place of ours.
_TEMPORARY: Final = re.compile(r"\.fs-[0-9a-f]{16}\.part")


class Row(NamedTuple):
    """One name on a page. Of a file, `size` and `mtime_ns` are None where the page is not exact."""

    name: str
    kind: Kind
    size: int | None = None
    mtime_ns: int | None = None


class Index(NamedTuple):
    """A page, read: its rows, each name once, and names that cannot be used."""

    rows: list[Row]
    faults: list[Fault]


def parse(body: bytes, media_type: str, base: Target) -> Index:
    """The names on the page at `base`. Raises ListingError for what is no index page."""
    text = body.decode("utf-8", "surrogateescape")
    kind = media_type.partition(";")[0].strip().lower()
    if kind == "application/json":
        return _parse_json(text, str(base))
    if kind not in ("text/html", "application/xhtml+xml"):
        raise ListingError(
            "the server does not list this directory: it sends something else",
            where=str(base),
            hint="leave out the slash if it is a file",
        )
    return _parse_html(text, base)


def _parse_json(text: str, where: str) -> Index:
    """What nginx makes of a directory with ``autoindex_format json``."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ListingError("the listing is not understood", where=where) from error
    rows: dict[str, Row] = {}
    faults: list[Fault] = []
    for item in found if isinstance(found, list) else [{}]:
        item = item if isinstance(item, dict) else {}
        name, kind = item.get("name"), item.get("type")
        if not isinstance(name, str) or not isinstance(kind, str):
            raise ListingError("the listing is not understood", where=where)
        mtime = item.get("mtime")
        mtime_ns = http_time(mtime) if isinstance(mtime, str) else None
        if _TEMPORARY.fullmatch(name):
            continue
        size = item.get("size")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 60:
            size = None
        if (refusal := _refusal(name)) is not None:
            faults.append(Fault(name, refusal))
        elif kind == "directory":
            rows[name + "/"] = Row(name, "dir", None, mtime_ns)
        else:
            rows[name] = Row(name, "file" if kind == "file" else "special", size, mtime_ns)
    return Index(list(rows.values()), faults)


def _parse_html(text: str, base: Target) -> Index:
    text = _visible(text)
    anchors = list(_ANCHOR.finditer(text))
    links = [html.unescape(next(filter(None, match.groups()), "")) for match in anchors]
    names = [_name_below(link, base) for link in links]
    if not _is_index(text, base, anchors, links):
        raise ListingError(
            "the page is no index of a directory that is understood",
            where=str(base),
            hint="name a file instead",
        )
    if _BEGIN.search(text, 0, _HEAD) and not _END.search(text):
        raise ListingError("the page ends in the middle", where=str(base), hint="try again")
    kept = [number for number, name in enumerate(names) if name]
    ends = [*(anchors[number].start() for number in kept), len(text)][1:]
    rows: dict[str, Row] = {}
    faults: dict[str, Fault] = {}
    for number, end in zip(kept, ends, strict=True):
        encoded = names[number] or ""
        name = unquote_name(encoded.removesuffix("/"))
        if _TEMPORARY.fullmatch(name):
            continue
        if (error := _refusal(name)) is not None:
            faults[name] = Fault(name, error)
            continue
        begin = anchors[number].end()
        row = _row(name, encoded.endswith("/"), text[begin : min(end, begin + _MAX_ROW)])
        key = name + "/" if row.kind == "dir" else name
        # An icon may be a link too, ahead of the name with its columns.
        if key not in rows or rows[key].size is None:
            rows[key] = row
    return Index(list(rows.values()), list(faults.values()))


def _visible(text: str) -> str:
    """Without comments, scripts and styles; one that does not end hides the rest."""
    pieces: list[str] = []
    position = 0
    while (match := _HIDDEN.search(text, position)) is not None:
        pieces.append(text[position : match.start()])
        end = (
            text.find("-->", match.end())
            if match[1] is None
            else _find_end(text, match[1], match.end())
        )
        if end < 0:
            position = len(text)
            break
        position = end
    pieces.append(text[position:])
    return "".join(pieces)


def _find_end(text: str, tag: str, position: int) -> int:
    match = re.compile(f"</{tag}", re.IGNORECASE).search(text, position)
    return -1 if match is None else match.start()


def _is_index(text: str, base: Target, anchors: list[re.Match[str]], links: list[str]) -> bool:
    """By its title ("Index of" or the like; rclone has the path there and Caddy the end of it), or by a
    link that leads up and says so."""
    own = unquote_name(base.path).rstrip("/")
    titles = (own or "/", own.rpartition("/")[2] or "/")
    for match in _HEADING.finditer(text, 0, _HEAD):
        title = html.unescape(match[1]).strip()
        if _INDEX.search(title) or title in titles or title == own + "/":
            return True
    parent = base.path.rstrip("/").rpartition("/")[0] + "/"
    for match, link in zip(anchors[:64], links[:64], strict=True):
        if link in ("../", "..", parent) and base.path != "/":
            if _UP.search(text, match.end(), match.end() + 256):
                return True
    return False


def _name_below(link: str, base: Target) -> str | None:
    """The percent-encoded name of a link one level below, with its slash; None for any other link."""
    if not link or "?" in link:
        return None
    link = link.partition("#")[0]
    first = link.partition("/")[0]
    if link.startswith("/") or ":" in first:
        try:
            parts = urlsplit(urljoin(base.url, link))
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            return None
        if (parts.scheme, parts.hostname, port) != tuple(base.origin):
            return None
        own = unquote_name(base.path)
        path = parts.path
        # The server may write its own path in another way than we do.
        slashes = own.count("/")
        cut = path.split("/", slashes)
        if len(cut) <= slashes or unquote_name("/".join(cut[:-1])) + "/" != own:
            return None
        link = cut[-1]
    while link.startswith("./"):
        link = link[2:]
    name = link.removesuffix("/")
    if "/" in name or name in ("", ".", ".."):
        return None
    return link


def _refusal(name: str) -> FastsyncError | None:
    """Why a name from a page cannot be used."""
    try:
        if len(safe_parts(name)) != 1:
            return NameRefused("the server lists a name with a slash in it", where=name)
    except NameRefused as error:
        return error
    return None


def _row(name: str, is_directory: bool, columns: str) -> Row:
    # Looked for as text first: nginx and Apache have neither, and it is most of what a row takes.
    order = _ORDER.search(columns) if "data-order=" in columns else None
    moment = _UTC.search(columns) if "datetime=" in columns else None
    mtime_ns = None if moment is None else utc_ns(*map(int, moment.groups()))
    if is_directory:
        return Row(name, "dir", None, mtime_ns)
    if order is not None:
        if _LINKED.search(columns):
            return Row(name, "file")
        return Row(name, "file", int(order[1]), mtime_ns)
    if (end := columns.find("</a>")) >= 0:
        plain = html.unescape(_TAG.sub(" ", columns[end:]))
        match = _DATE_AND_SIZE.fullmatch(plain)
        if match is not None:
            return Row(name, "file", int(match[1]))
    return Row(name, "file")
