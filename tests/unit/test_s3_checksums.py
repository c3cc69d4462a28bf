from __future__ import annotations

import base64
import hashlib
import zlib
from itertools import repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsync_s3.checksums import (
    Algorithm,
    Expected,
    PartsHasher,
    combine_crc64nvme,
    crc64nvme,
    expected_of,
    multipart_etag,
    new_hasher,
    part_count,
    part_size_candidates,
    wire_crc64nvme,
)

MIB = 1 << 20
CHECK = b"123456789"
# The check values of the CRC catalogue (reveng.sourceforge.io/crc-catalogue), and RFC 1321 and FIPS 180.
KNOWN: dict[Algorithm, str] = {
    "CRC64NVME": base64.b64encode(bytes.fromhex("ae8b14860a799888")).decode(),
    "CRC32C": base64.b64encode(bytes.fromhex("e3069283")).decode(),
    "CRC32": base64.b64encode(bytes.fromhex("cbf43926")).decode(),
    "SHA1": base64.b64encode(hashlib.sha1(CHECK).digest()).decode(),
    "SHA256": base64.b64encode(hashlib.sha256(CHECK).digest()).decode(),
    "MD5": "25f9e794323b453885f5181f1b624d0b",
}
COMBINABLE: tuple[Algorithm, ...] = ("CRC64NVME", "CRC32C", "CRC32")
PIECES = st.lists(st.binary(max_size=40), min_size=1, max_size=6)


@pytest.mark.parametrize("algorithm", KNOWN)
def test_known_values_in_pieces(algorithm: Algorithm) -> None:
    hasher = new_hasher(algorithm)
    for start in range(0, len(CHECK), 2):
        hasher(memoryview(bytearray(CHECK))[start : start + 2])
    assert hasher.value() == KNOWN[algorithm]


@pytest.mark.parametrize("algorithm", COMBINABLE)
@given(PIECES)
def test_parts_join_into_the_whole(algorithm: Algorithm, pieces: list[bytes]) -> None:
    whole = new_hasher(algorithm)
    whole(memoryview(b"".join(pieces)))
    parts = []
    for piece in pieces:
        hasher = new_hasher(algorithm)
        hasher(memoryview(piece))
        parts.append((hasher, len(piece)))
    expected = Expected(algorithm, "")
    assert expected.is_combinable
    assert expected.join(parts) == whole.value()


@given(st.binary(), st.binary())
def test_crc64nvme_goes_on_and_combines(first: bytes, second: bytes) -> None:
    whole = crc64nvme(first + second)
    assert crc64nvme(second, crc64nvme(first)) == whole
    assert combine_crc64nvme(crc64nvme(first), crc64nvme(second), len(second)) == whole


def test_crc64nvme_on_the_wire() -> None:
    assert wire_crc64nvme(crc64nvme(CHECK)) == KNOWN["CRC64NVME"]
    assert wire_crc64nvme(1) == "AAAAAAAAAAE="


def test_what_is_not_combinable_is_joined_of_one_part_only() -> None:
    expected = Expected("SHA256", "")
    assert not expected.is_combinable
    hasher = expected.hasher()
    hasher(memoryview(CHECK))
    assert expected.join([(hasher, 9)]) == KNOWN["SHA256"]
    with pytest.raises(ValueError, match="joined"):
        expected.join([(hasher, 9), (expected.hasher(), 0)])


@given(st.binary(min_size=1), st.integers(1, 20), st.integers(1, 30))
def test_multipart_etags_whatever_the_buffers(data: bytes, part_size: int, step: int) -> None:
    hasher = PartsHasher("MD5", repeat(part_size))
    for start in range(0, len(data), step):
        hasher(memoryview(data)[start : start + step])
    parts = [data[start : start + part_size] for start in range(0, len(data), part_size)]
    md5s = [hashlib.md5(part) for part in parts]
    etag = hashlib.md5(b"".join(md5.digest() for md5 in md5s)).hexdigest() + f"-{len(parts)}"
    assert hasher.value() == etag
    assert multipart_etag([f'"{md5.hexdigest()}"' for md5 in md5s]) == etag
    assert part_count(f'"{etag}"') == len(parts)


def test_composite_checksums() -> None:
    hasher = PartsHasher("CRC32", repeat(4))
    hasher(memoryview(CHECK))
    parts = b"".join(zlib.crc32(part).to_bytes(4, "big") for part in (b"1234", b"5678", b"9"))
    assert hasher.value() == base64.b64encode(zlib.crc32(parts).to_bytes(4, "big")).decode() + "-3"


@pytest.mark.parametrize("etags", [[], ["x"], ["0" * 31 + "g"], ["0" * 32 + "-2"], ["é" * 32]])
def test_parts_without_md5s_have_no_multipart_etag(etags: list[str]) -> None:
    assert multipart_etag(etags) == ""


MD5 = "25f9e794323b453885f5181f1b624d0b"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"etag": f'"{MD5}"'}, Expected("MD5", MD5)),
        ({"etag": f'"{MD5}"', "x-amz-server-side-encryption": "AES256"}, Expected("MD5", MD5)),
        ({"etag": f'"{MD5}"', "x-amz-server-side-encryption": "aws:kms"}, None),
        ({"etag": f'"{MD5}"', "x-amz-server-side-encryption": "aws:kms:dsse"}, None),
        ({"etag": f'"{MD5}"', "x-amz-server-side-encryption-customer-algorithm": "AES256"}, None),
        ({"etag": f'"{MD5}-2"'}, None),
        ({"etag": f'"{MD5.upper()}"'}, None),
        ({"etag": '"abc"'}, None),
        ({}, None),
        (
            {"etag": f'"{MD5}"', "x-amz-checksum-sha256": KNOWN["SHA256"]},
            Expected("SHA256", KNOWN["SHA256"]),
        ),
        (  # what joins goes first
            {
                "x-amz-checksum-sha256": KNOWN["SHA256"],
                "x-amz-checksum-crc32": KNOWN["CRC32"],
                "x-amz-checksum-type": "FULL_OBJECT",
            },
            Expected("CRC32", KNOWN["CRC32"]),
        ),
        (
            {"etag": f'"{MD5}-3"', "x-amz-checksum-crc64nvme": KNOWN["CRC64NVME"]},
            Expected("CRC64NVME", KNOWN["CRC64NVME"]),
        ),
        ({"x-amz-checksum-crc32": KNOWN["CRC32"] + "-3"}, None),
        ({"x-amz-checksum-crc32": KNOWN["CRC32"], "x-amz-checksum-type": "COMPOSITE"}, None),
        ({"x-amz-checksum-crc32": KNOWN["CRC64NVME"]}, None),
        ({"x-amz-checksum-crc32": "not base64"}, None),
        ({"x-amz-checksum-crc32": "éééééé=="}, None),
        ({"x-amz-checksum-crc32": "", "etag": MD5}, Expected("MD5", MD5)),
    ],
)
def test_what_headers_promise(headers: dict[str, str], expected: Expected | None) -> None:
    assert expected_of(headers) == expected


def test_etags_of_directory_buckets_are_no_digests() -> None:
    assert expected_of({"etag": f'"{MD5}"'}, etag_is_md5=False) is None


@pytest.mark.parametrize("etag", [MD5, f"{MD5}-0", f"{MD5}-", f"{MD5}-1000000", "x-2", f"{MD5}-٣"])
def test_other_etags_count_no_parts(etag: str) -> None:
    assert part_count(etag) is None


@pytest.mark.parametrize(
    ("size", "part_size", "first"),
    [
        (100 * MIB, 8 * MIB, True),
        (100 * MIB, 5 * MIB, True),
        (100 * MIB + 1, 15 * MIB, False),
        (1 << 30, 50_000_000, False),
        (1 << 30, 64 * MIB, True),
        (200 << 30, 32 * MIB, False),  # AWS: 8 MiB doubled
        (300 << 30, -(-(300 << 30) // 10_000), False),
        (100 * MIB, 34 * MIB, False),
    ],
)
def test_part_sizes_that_may_have_been(size: int, part_size: int, *, first: bool) -> None:
    count = -(-size // part_size)
    candidates = part_size_candidates(size, count)
    assert part_size in candidates
    assert not first or candidates[0] == part_size
    assert all(-(-size // candidate) == count for candidate in candidates)
    assert len(set(candidates)) == len(candidates)


def test_one_part_is_the_whole() -> None:
    assert part_size_candidates(123, 1) == [123]
    assert part_size_candidates(0, 1) == [0]
    assert part_size_candidates(10 * MIB, 4) == []  # no part but the last is below 5 MiB
