from __future__ import annotations

import os
import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastsync.errors import NameRefused
from fastsync.names import path_key, printable, safe_parts

# Any text, with bytes that are not UTF-8, and often with what is dangerous in a path.
BYTES = st.binary(max_size=8).map(os.fsdecode)
PIECES = st.sampled_from(["..", ".", "", "a", "..a", "\0", "~", "\\..\\", "\ud800"]) | st.text(
    max_size=4
)
PATHS = st.lists(PIECES | BYTES, max_size=6).map("/".join)


@pytest.mark.parametrize(
    "name", ["a", "a/b/c", "..a", "a..b", "...", " ", "a\\b", "a\nb", "\udcff"]
)
def test_safe_names(name: str) -> None:
    assert safe_parts(name) == tuple(name.split("/"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        ("/a", "empty segment"),
        ("a//b", "empty segment"),
        ("a/", "empty segment"),
        ("a/../b", "could leave"),
        ("./a", "could leave"),
        ("a\0", "NUL"),
        ("a/\ud800", "written as bytes"),
    ],
)
def test_refused_names(name: str, reason: str) -> None:
    with pytest.raises(NameRefused, match=reason) as caught:
        safe_parts(name)
    assert caught.value.where == name


@given(PATHS)
@example("..")
@example("../../etc/passwd")
def test_a_safe_name_stays_below_the_root(path: str) -> None:
    try:
        parts = safe_parts(path)
    except NameRefused:
        return
    root = "/some/root"
    joined = os.path.join(root, *parts)
    assert os.path.normpath(joined) == joined
    assert joined.startswith(root + "/")
    assert "/".join(parts) == path
    assert b"\0" not in os.fsencode(joined)


@given(st.lists(BYTES.filter(lambda name: "\0" not in name)))
def test_the_order_of_listings_is_that_of_bytes(names: list[str]) -> None:
    assert [os.fsencode(name) for name in sorted(names, key=path_key)] == sorted(
        os.fsencode(name) for name in names
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain name.txt", "plain name.txt"),
        ("caf\u00e9 \U0001f600", "caf\u00e9 \U0001f600"),
        ("back\\slash", "back\\slash"),
        ("C:\\new", "C:\\\\new"),
        ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\\\n", "a\\\\\\n"),
        ("\udcff\udc80", "\\xff\\x80"),
        ("\x80", "\\u0080"),
        ("\u202etxt.exe", "\\u202etxt.exe"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters()) | BYTES)
def test_nothing_that_is_shown_can_act(text: str) -> None:
    shown = printable(text)
    shown.encode()  # no lone surrogates are left
    for char in shown:
        assert unicodedata.category(char) not in ("Cc", "Cs", "Zl", "Zp")
        assert unicodedata.bidirectional(char) not in (
            "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI",
        )  # fmt: skip


ESCAPES = re.compile(r"\\(?:([\\nrt])|x(..)|u(....)|U(.{8}))")


@given(st.text(st.characters()) | BYTES | st.text("\\nrtxuU0a8\n\x80\udc80"))
@example("\\x01")
@example("\x01")
def test_no_two_texts_are_shown_alike(text: str) -> None:
    shown = printable(text)
    assert (read_back(shown) if shown != text else text) == text
    if ESCAPES.search(shown) is None:
        assert shown == text
    else:
        assert shown != text


def read_back(shown: str) -> str:
    def one(match: re.Match[str]) -> str:
        letter, byte, four, eight = match.groups()
        if letter:
            return {"n": "\n", "r": "\r", "t": "\t"}.get(letter, letter)
        if byte and int(byte, 16) >= 0x80:
            return chr(0xDC00 + int(byte, 16))
        return chr(int(byte or four or eight, 16))

    return ESCAPES.sub(one, shown)
