"""Digests of objects: computing them, joining those of parts, and what a server's headers promise.

A CRC64NVME costs next to nothing where the processor multiplies without carries (70 GiB/s from cache; an
MD5 0.6), and those of parts join into that of the whole: it is what uploads send. All of them let go of the
interpreter's lock while they read a large buffer.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html
"""

from __future__ import annotations

import functools
import hashlib
import re
import zlib
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fastsync.backend import Buffer

Algorithm: TypeAlias = Literal["CRC64NVME", "CRC32C", "CRC32", "SHA256", "SHA1", "MD5"]

# Lengths in bytes, in the order of preference: what can be joined from parts, and the faster, first.
_LENGTHS: Final[dict[Algorithm, int]] = {
    "CRC64NVME": 8,
    "CRC32C": 4,
    "CRC32": 4,
    "SHA256": 32,
    "SHA1": 20,
    "MD5": 16,
}
_COMBINABLE: Final = frozenset({"CRC64NVME", "CRC32C", "CRC32"})
_HEADERS: Final = tuple(
    (name, f"x-amz-checksum-{name.lower()}") for name in _LENGTHS if name != "MD5"
)
_MD5_ETAG: Final = re.compile(r"[0-9a-f]{32}")
_MULTIPART_ETAG: Final = re.compile(r"[0-9a-f]{32}-([1-9][0-9]{0,4})")

_MAX_PARTS: Final = 10_000
_MIB: Final = 1 << 20
_LEAST_PART: Final = 5 * _MIB
# The part sizes that common tools use: AWS 8 MiB, rclone 5, s3cmd 15, s5cmd 50, powers of two, and what
# people write as "50MB".
_USUAL_PARTS: Final = tuple(
    size * unit
    for unit in (_MIB, 1_000_000)
    for size in (8, 5, 16, 15, 50, 64, 10, 25, 32, 100, 128, 256, 512, 1024)
)


class Lookup(Protocol):
    """Headers of a response, by lower-case name."""

    def get(self, name: str, /) -> str | None: ...


class Hasher(Protocol):
    """A digest in the making, called with one buffer after the other."""

    def __call__(self, data: memoryview, /) -> None: ...

    def digest(self) -> bytes: ...

    def value(self) -> str:
        """The digest as S3 writes it: MD5 in hexadecimal, as in an ETag; others in base64."""
        ...


def new_hasher(algorithm: Algorithm) -> Hasher:
    return _Crc(algorithm) if algorithm in _COMBINABLE else _Hash(algorithm)


def _written(algorithm: Algorithm, digest: bytes) -> str:
    return digest.hex() if algorithm == "MD5" else b64encode(digest).decode()


class _Hash:
    __slots__ = ("_algorithm", "_hash")

    def __init__(self, algorithm: Algorithm) -> None:
        self._algorithm: Algorithm = algorithm
        self._hash = hashlib.new(algorithm.lower(), usedforsecurity=False)

    def __call__(self, data: memoryview) -> None:
        self._hash.update(data)

    def digest(self) -> bytes:
        return self._hash.digest()

    def value(self) -> str:
        return _written(self._algorithm, self.digest())


class _Crc:
    __slots__ = ("_algorithm", "crc")

    def __init__(self, algorithm: Algorithm, crc: int = 0) -> None:
        self._algorithm: Algorithm = algorithm
        self.crc = crc

    def __call__(self, data: memoryview) -> None:
        # Looked up with the first bytes, in a thread: by then others have been asked for.
        self.crc = _crc(self._algorithm)(data, self.crc)

    def digest(self) -> bytes:
        return self.crc.to_bytes(_LENGTHS[self._algorithm], "big")

    def value(self) -> str:
        return _written(self._algorithm, self.digest())


class PartsHasher:
    """The digest of the digests of parts of these lengths (the last may be shorter): what a multipart
    ETag is (MD5), and a COMPOSITE checksum. Ends in "-" and the number of parts."""

    def __init__(self, algorithm: Algorithm, lengths: Iterable[int]) -> None:
        self._algorithm: Algorithm = algorithm
        self._lengths = iter(lengths)
        self._left = next(self._lengths)
        self._part = new_hasher(algorithm)
        self._digests: list[bytes] = []

    def __call__(self, data: memoryview) -> None:
        while data:
            if not self._left:
                self._digests.append(self._part.digest())
                self._part, self._left = new_hasher(self._algorithm), next(self._lengths, 1 << 62)
            piece = data[: self._left]
            self._part(piece)
            self._left -= len(piece)
            data = data[len(piece) :]

    def digest(self) -> bytes:
        whole = new_hasher(self._algorithm)
        whole(memoryview(b"".join([*self._digests, self._part.digest()])))
        return whole.digest()

    def value(self) -> str:
        return f"{_written(self._algorithm, self.digest())}-{len(self._digests) + 1}"


# -- CRC ------------------------------------------------------------------------------------------------


# awscrt takes 40 ms to import: whoever needs none of it does not pay.
@functools.cache
def _crc(algorithm: Algorithm) -> Callable[[Buffer, int], int]:
    if algorithm == "CRC32":
        return zlib.crc32  # twice as fast as awscrt's
    function: Callable[[Buffer, int], int] = _awscrt(algorithm.lower())
    return function


@functools.cache
def _combine(algorithm: Algorithm) -> Callable[[int, int, int], int]:
    function: Callable[[int, int, int], int] = _awscrt(f"combine_{algorithm.lower()}")
    return function


def _awscrt(name: str) -> Any:
    from awscrt import checksums  # type: ignore[import-untyped]

    return getattr(checksums, name)


def crc64nvme(data: Buffer, crc: int = 0) -> int:
    """The CRC64NVME of what `crc` is of, followed by `data`."""
    return _crc("CRC64NVME")(data, crc)


def combine_crc64nvme(first: int, second: int, second_length: int) -> int:
    """The CRC64NVME of two pieces of data, one after the other, from theirs. 0.2 us."""
    return _combine("CRC64NVME")(first, second, second_length)


def wire_crc64nvme(crc: int) -> str:
    """A CRC64NVME as headers and documents have it."""
    return _Crc("CRC64NVME", crc).value()


# -- What a server promises -----------------------------------------------------------------------------


class Expected(NamedTuple):
    """What the bytes of a whole object add up to, written as S3 does (`Hasher.value`)."""

    algorithm: Algorithm
    value: str

    @property
    def is_combinable(self) -> bool:
        """Whether parts may be hashed in any order and joined; else all bytes go in order."""
        return self.algorithm in _COMBINABLE

    def hasher(self) -> Hasher:
        return new_hasher(self.algorithm)

    def join(self, parts: Iterable[tuple[Hasher, int]]) -> str:
        """The value of the whole from hashers of its parts in order, with their lengths in bytes.

        Raises ValueError for more than one part of what is not combinable.
        """
        (whole, _), *rest = parts
        if not rest:
            return whole.value()
        if not isinstance(whole, _Crc):
            raise ValueError(f"{self.algorithm} of parts cannot be joined")
        combine = _combine(self.algorithm)
        crc = whole.crc
        for hasher, length in rest:
            crc = combine(crc, int.from_bytes(hasher.digest(), "big"), length)
        return _Crc(self.algorithm, crc).value()


def expected_of(headers: Lookup, *, etag_is_md5: bool = True) -> Expected | None:
    """What the response to a HEAD, or a GET of a whole object, promises of its bytes; None if nothing
    that can be computed without knowing how it was uploaded.

    A checksum goes before the ETag, which is an MD5 only of what was uploaded in one request and is
    encrypted with S3's own key or not at all, and never in a directory bucket (`etag_is_md5` false).
    """
    is_composite = (headers.get("x-amz-checksum-type") or "").upper() == "COMPOSITE"
    for algorithm, header in _HEADERS:
        value = headers.get(header)
        if value is not None and not is_composite and _is_digest(value, _LENGTHS[algorithm]):
            return Expected(algorithm, value)
    etag = (headers.get("etag") or "").strip('"')
    if not etag_is_md5 or not _tells_md5(headers):
        return None
    return Expected("MD5", etag) if _MD5_ETAG.fullmatch(etag) else None


class ExpectedParts(NamedTuple):
    """What the bytes of parts of these lengths add up to: a multipart ETag."""

    lengths: tuple[int, ...]
    value: str

    @property
    def algorithm(self) -> str:
        return f"MD5 of parts of {self.lengths}"

    def hasher(self) -> Hasher:
        return PartsHasher("MD5", self.lengths)


def remembered_md5(headers: Lookup) -> Expected | None:
    """The MD5 that rclone writes down for what it uploads in parts, in base64."""
    told = headers.get("x-amz-meta-md5chksum") or ""
    return Expected("MD5", b64decode(told).hex()) if _is_digest(told, _LENGTHS["MD5"]) else None


def _tells_md5(headers: Lookup) -> bool:
    """Whether an ETag can be of MD5s: not where the object is encrypted with anybody's key but S3's."""
    customer_key = headers.get("x-amz-server-side-encryption-customer-algorithm")
    return headers.get("x-amz-server-side-encryption") in (None, "AES256") and customer_key is None


def hashed_parts(headers: Lookup) -> int | None:
    """How many parts an object was uploaded in, if its ETag is made of their MD5s; else None."""
    return part_count(headers.get("etag") or "") if _tells_md5(headers) else None


def _is_digest(value: str, length: int) -> bool:
    """Whether it is base64 of so many bytes; that of a composite ends in its number of parts."""
    try:
        return len(b64decode(value, validate=True)) == length
    except ValueError:
        return False


# -- Multipart ETags ------------------------------------------------------------------------------------


def part_count(etag: str) -> int | None:
    """How many parts an object with this ETag was uploaded in; None if it was in one piece."""
    match = _MULTIPART_ETAG.fullmatch(etag.strip('"'))
    return None if match is None else int(match[1])


def multipart_etag(part_etags: Iterable[str]) -> str:
    """The ETag of an object whose parts have these, in order; "" if they are no MD5s."""
    etags = [etag.strip('"') for etag in part_etags]
    if not etags or not all(map(_MD5_ETAG.fullmatch, etags)):
        return ""
    digest = hashlib.md5(bytes.fromhex("".join(etags)), usedforsecurity=False)
    return f"{digest.hexdigest()}-{len(etags)}"


def part_size_candidates(size: int, count: int) -> list[int]:
    """The part sizes that `size` bytes in `count` parts may have been uploaded with, likely ones first.

    None of them may be right: an ETag computed with one proves the bytes if it is equal, and nothing
    if it is not. Asking for a part (``partNumber=1``) tells, where a server can.
    """
    if count == 1:
        return [size]
    even = -(-size // count)
    guesses = [
        *_USUAL_PARTS,
        *(8 * _MIB << shift for shift in range(1, 10)),  # AWS doubles until 10 000 parts are enough
        -(-size // _MAX_PARTS),
        -(-even // _MIB) * _MIB,
        even,
    ]
    return [
        guess
        for guess in dict.fromkeys(guesses)
        if guess >= _LEAST_PART and -(-size // guess) == count
    ]
