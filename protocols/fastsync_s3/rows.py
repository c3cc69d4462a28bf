"""The rows of a listing's page, in columns: the fast way, and the way for everything else.

Rows that have the shape of a page's first one are cut out by a regular expression made for that shape.
What is left before, between and after them, to the last character, is read by expat with one mark where the
rows were. If there are rows in that, or the mark is not where rows belong, expat reads the whole page: no
row is ever passed over, and none is seen where there is none.
"""

from __future__ import annotations

import functools
import re
from typing import Final, NamedTuple, TypeAlias

from fastsync_s3.elements import MAX_BODY, Element, Malformed, parse, unquoted

# By the name of the element, the text of each row.
Columns: TypeAlias = dict[str, list[str]]

_NEEDED: Final = ("Key", "Size", "LastModified")
_WANTED: Final = (*_NEEDED, "ETag", "StorageClass")
# Passed over: nothing here needs them, and not every row of a page has them.
_PASSED: Final = ("ChecksumAlgorithm", "ChecksumType", "Type", "Generation", "MetaGeneration")
_MARK: Final = "fastsync-rows"

_FIRST_ROW: Final = re.compile(r"<Contents>(.*?)</Contents>", re.DOTALL)
_TAGS: Final = re.compile(f"<({'|'.join((*_WANTED, *_PASSED, 'Owner'))})>")
_QUOTE: Final = re.compile(r'<ETag>(&quot;|&#34;|"|)')  # the ways there are to write one
_BLANKS: Final = r"[ \t\r\n]*"
_TEXT: Final = "[^<>&\x00-\x1f\ufffe\uffff]*"
_TAG_TEXT: Final = "[!#-%'-;=?-~]*"  # printable ASCII without what needs an escape


class _Shape(NamedTuple):
    """The wanted elements of a row in order, where among them others may stand (by the index of the
    next one), what ETags are quoted with, and whether there are blanks between elements."""

    fields: tuple[str, ...]
    passed: frozenset[int]
    quote: str
    is_pretty: bool


def _shape_of(row: str) -> _Shape | None:
    """The shape of a row, as far as it is known; None if it lacks what it needs."""
    fields: list[str] = []
    passed: set[int] = set()
    for name in _TAGS.findall(row):
        if name in _WANTED:
            fields.append(name)
        else:
            passed.add(len(fields))
    if len(set(fields)) != len(fields) or not set(fields).issuperset(_NEEDED):
        return None
    quote = _QUOTE.search(row)
    return _Shape(tuple(fields), frozenset(passed), quote[1] if quote else "", row[:1].isspace())


@functools.lru_cache(maxsize=64)
def _row_pattern(shape: _Shape) -> re.Pattern[str]:
    """What matches a whole row, one group for each wanted element."""
    blanks = _BLANKS if shape.is_pretty else ""

    def one_of(*names: str) -> str:
        return "|".join(f"{blanks}<{name}>{_TEXT}</{name}>" for name in names)

    owner = f"{blanks}<Owner>(?:{one_of('ID', 'DisplayName')})*{blanks}</Owner>"
    pattern = [f"{blanks}<Contents>"]
    for index, name in enumerate((*shape.fields, "")):
        if index in shape.passed:
            pattern.append(f"(?:{one_of(*_PASSED)}|{owner})*")
        if name == "ETag":
            pattern.append(f"{blanks}<ETag>{shape.quote}({_TAG_TEXT}){shape.quote}</ETag>")
        elif name:  # what the text may be is seen later: "[^<]" is by far the fastest set
            pattern.append(f"{blanks}<{name}>([^<]*)</{name}>")
    pattern.append(f"{blanks}</Contents>")
    return re.compile("".join(pattern))


def _cut(text: str) -> tuple[str, Columns] | None:
    """The document with a mark in place of its rows, and their columns.

    None unless all rows have the shape of the first, follow one another without a character between
    them, and say what they mean: no references, no control characters.
    """
    first = _FIRST_ROW.search(text)
    shape = None if first is None else _shape_of(first[1])
    if shape is None:
        return None
    width = len(shape.fields) + 1
    pieces = _row_pattern(shape).split(text)
    if not _are_adjacent(pieces[::width]):  # other rows may have what the first one lacks
        anywhere = shape._replace(passed=frozenset(range(width)))
        pieces = _row_pattern(anywhere).split(text)
        if not _are_adjacent(pieces[::width]):
            return None
    columns = {name: pieces[index::width] for index, name in enumerate(shape.fields, 1)}
    if not shape.quote and "ETag" in columns:
        columns["ETag"] = list(map(unquoted, columns["ETag"]))
    loose = "".join(columns["Key"]) + "".join(set(columns.get("StorageClass", ())))
    if "&" in loose or "]]>" in loose or not loose.isprintable():
        return None
    return f"{pieces[0]}<{_MARK}/>{pieces[-1]}", columns


def _are_adjacent(between: list[str]) -> bool:
    """Whether rows matched, and what is before, between and after them has no others."""
    if len(between) < 2:
        return False
    before, *inner, after = between
    return not any(inner) and "<Contents>" not in before and "<Contents>" not in after


def read_rows(body: bytes) -> tuple[Element, Columns]:
    """The root of a listing, whatever it is, and the columns of its rows; ETags come without quotes.

    A column is missing if no row has it, and has "" for rows that lack it. Raises Malformed.
    """
    try:
        cut = _cut(body.decode()) if len(body) <= MAX_BODY else None
    except UnicodeDecodeError as error:
        raise Malformed("it is not UTF-8") from error
    if cut is not None:
        rest, columns = cut
        root = parse(rest.encode())
        names = [child.name for child in root.children]
        # In the root itself: a comment, a CDATA section or another element has no rows to offer.
        if names.count(_MARK) == 1 and "Contents" not in names:
            return root, columns
    root = parse(body)
    return root, _one_by_one(root)


def _one_by_one(root: Element) -> Columns:
    columns: Columns = {name: [] for name in (*_NEEDED, "ETag", "StorageClass")}
    for row in root.all("Contents"):
        for name in _NEEDED:
            columns[name].append(row.need(name))
        columns["ETag"].append(unquoted(row.get("ETag") or ""))
        columns["StorageClass"].append(row.get("StorageClass") or "")
    return columns
