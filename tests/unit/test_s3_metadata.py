"""Each tool's own way to write a time and a mode."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsync_s3.metadata import (
    MODE_HEADER,
    MTIME_HEADER,
    Attributes,
    format_mode,
    format_mtime,
    read_attributes,
)

S = 1_000_000_000
MC = "atime:1599878236#794570223/gid:1000/gname:x/mode:33188/mtime:1599878475#769739459/uid:1000"
S3CMD = (
    "atime:1/ctime:1/gid:0/gname:g/md5:d41d8cd98f00b204e9800998ecf8427e/mode:33261/mtime:1354040105"
)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"mtime": "1354040105.123456789"}, Attributes(1354040105_123456789, None)),  # rclone
        ({"mtime": "1354040105.5"}, Attributes(1354040105_500000000, None)),
        ({"mtime": "1354040105"}, Attributes(1354040105 * S, None)),
        ({"mtime": "-1.5", "mode": "100600"}, Attributes(-1_500000000, 0o600)),
        ({"mtime": "1.000000005", "mode": "33188"}, Attributes(1_000000005, 0o644)),  # s3fs
        ({"mtime": "1", "mode": "16877"}, Attributes(S, 0o755)),
        ({"mtime": "1", "mode": "41471"}, Attributes(S, None)),  # a symbolic link
        ({"mode": "420"}, Attributes(None, 0o644)),
        ({"mode": "0644"}, Attributes(None, 0o644)),
        ({"mode": "0100664"}, Attributes(None, 0o664)),
        ({"mode": "35309"}, Attributes(None, 0o4755)),
        ({"mc-attrs": MC}, Attributes(1599878475_769739459, 0o644)),
        ({"mc-attrs": "mode:33188/mtime:12#5"}, Attributes(12 * S + 5, 0o644)),
        ({"s3cmd-attrs": S3CMD}, Attributes(1354040105 * S, 0o755)),
        (
            {"goog-reserved-file-mtime": "1354040105", "goog-reserved-posix-mode": "640"},
            Attributes(1354040105 * S, 0o640),
        ),
        ({"goog-reserved-file-mtime": "-1"}, Attributes(None, None)),
        (
            {"modtime": "1354040105123456789", "permissions": "33188"},  # azcopy
            Attributes(1354040105_123456789, 0o644),
        ),
        ({"mtime": "nonsense", "mc-attrs": MC}, Attributes(1599878475_769739459, 0o644)),
        ({"mtime": "7", "mc-attrs": MC}, Attributes(7 * S, 0o644)),
        ({}, Attributes(None, None)),
    ],
)
def test_reads_every_tool(headers: dict[str, str], expected: Attributes) -> None:
    known = read_attributes({f"x-amz-meta-{name}": text for name, text in headers.items()})
    assert known[:2] == expected[:2]


NONSENSE = ["", " ", "nan", "inf", "1e9", "0x10", "1_0", "+1", "1.", ".5", "--1", "1.5.5", "1\n"]
NONSENSE += ["9" * 400, "99999999999", "٣", "é", "\0", "=?UTF-8?Q?1?=", "1#1000000000"]
NONSENSE += ["2017-09-24 19:53:52.000000000 +0000"]


@pytest.mark.parametrize("text", NONSENSE)
def test_nonsense_is_no_time(text: str) -> None:
    for name in (MTIME_HEADER, "x-amz-meta-modtime", "x-amz-meta-goog-reserved-file-mtime"):
        if (name, text) == ("x-amz-meta-modtime", "99999999999"):
            continue  # nanoseconds: a minute after 1970
        assert read_attributes({name: text}).mtime_ns is None
    assert read_attributes({"x-amz-meta-mc-attrs": f"mtime:{text}"}).mtime_ns is None


@pytest.mark.parametrize(
    "text",
    ["", "-1", "8", "99", "0o", "0x1ff", "9" * 400, "200000", "7777777", "rwx", "٣", "24576"],
)
def test_nonsense_is_no_mode(text: str) -> None:
    mode = read_attributes({MODE_HEADER: text}).mode
    assert mode is None or text in ("8", "99")  # odd, but decimal


@given(
    st.text(),
    st.sampled_from(["mtime", "mode", "mc-attrs", "s3cmd-attrs", "modtime", "permissions"]),
)
def test_hostile_values_are_harmless(text: str, name: str) -> None:
    found = read_attributes({f"x-amz-meta-{name}": text})
    assert found.mtime_ns is None or abs(found.mtime_ns) < 1 << 63
    assert found.mode is None or 0 <= found.mode <= 0o7777


@given(st.integers(-(1 << 62), 1 << 62))
def test_times_come_back(mtime_ns: int) -> None:
    text = format_mtime(mtime_ns)
    assert re.fullmatch(r"-?[0-9]+(\.[0-9]{9})?", text)
    assert text.endswith(".000000000") is False
    assert read_attributes({MTIME_HEADER: text}).mtime_ns == mtime_ns


@pytest.mark.parametrize(
    ("mtime_ns", "text"),
    [
        (0, "0"),
        (S, "1"),
        (1_500000000, "1.500000000"),
        (5, "0.000000005"),
        (-5, "-0.000000005"),
        (-1_500000000, "-1.500000000"),
        (-2 * S, "-2"),
    ],
)
def test_times_have_nine_decimals_or_none(mtime_ns: int, text: str) -> None:
    assert format_mtime(mtime_ns) == text


@given(st.integers(0, 0o7777))
def test_modes_come_back(mode: int) -> None:
    assert format_mode(mode) == str(0o100000 | mode)
    assert read_attributes({MODE_HEADER: format_mode(mode)}).mode == mode


@pytest.mark.parametrize(
    ("headers", "owner"),
    [
        ({"x-amz-meta-uid": "0", "x-amz-meta-gid": "100"}, (0, 100)),
        ({"x-amz-meta-mc-attrs": "atime:1/gid:7/uid:1000"}, (1000, 7)),
        ({"x-amz-meta-s3cmd-attrs": "gid:5/gname:g/uid:6/uname:u"}, (6, 5)),
        ({"x-amz-meta-uid": "-1", "x-amz-meta-gid": "4294967295"}, (None, None)),
        ({"x-amz-meta-uid": "root", "x-amz-meta-gid": "0x1"}, (None, None)),
        ({}, (None, None)),
    ],
)
def test_owners(headers: dict[str, str], owner: tuple[int | None, int | None]) -> None:
    known = read_attributes(headers)
    assert (known.uid, known.gid) == owner
