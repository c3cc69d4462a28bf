from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsync.errors import NameRefused
from fastsync.names import path_key
from fastsync_s3.keys import check_key, is_ascending, is_marker, is_xml_safe


@pytest.mark.parametrize(
    "key", ["a", "//", "/a/../b", "dir/", "a\0b", "\r", "é" * 512, "x" * 1024, "\U0001f600" * 256]
)
def test_keys_that_can_be_written(key: str) -> None:
    assert check_key(key) == key


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("", "needs a name"),
        ("x" * 1025, "1025 bytes"),
        ("é" * 512 + "x", "1025 bytes"),
        ("a\udcff", "not UTF-8"),
        ("\ud800", "not UTF-8"),
    ],
)
def test_keys_that_cannot(key: str, reason: str) -> None:
    with pytest.raises(NameRefused, match=reason) as caught:
        check_key(key)
    assert caught.value.where == key


# Bytes that are not UTF-8 included, as listings give them.
NAMES = st.binary(max_size=5).map(lambda name: name.decode("utf-8", "surrogateescape")) | st.text(
    st.characters(codec="utf-8"), max_size=4
)


@given(st.lists(NAMES, max_size=8))
def test_ascending_is_byte_order(names: list[str]) -> None:
    ordered = sorted(set(names), key=path_key)
    assert is_ascending(ordered)
    assert is_ascending(names) == (names == ordered)


def test_order_beyond_the_basic_plane_and_of_broken_names() -> None:
    assert is_ascending(["\uffff", "\U00010000"])  # not the order of UTF-16
    assert is_ascending(["\udc80", "\ue000"])
    assert is_ascending(["\ue000", "\udcff"])
    assert not is_ascending(["a", "a"])


@pytest.mark.parametrize(
    ("key", "size", "expected"),
    [("d/", 0, True), ("d/", 1, False), ("d", 0, False), ("/", 0, True)],
)
def test_markers(key: str, size: int, *, expected: bool) -> None:
    assert is_marker(key, size) is expected


@pytest.mark.parametrize(
    "key", ["a", "\t\n\r", "é", "\ufffd", "\U0001f600", "]]>", "&<>\"'", "\x7f"]
)
def test_what_xml_carries(key: str) -> None:
    assert is_xml_safe(key)


@pytest.mark.parametrize("key", ["\0", "a\x01", "\x1b[0m", "\x0b", "\ufffe", "\uffff", "\udc80"])
def test_what_xml_does_not_carry(key: str) -> None:
    assert not is_xml_safe(key)
