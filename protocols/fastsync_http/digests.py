"""What a file must add up to: digests that a server announces, and one that the user knows."""

from __future__ import annotations

import binascii
import re
from typing import Final, NamedTuple, Protocol

from fastsync.errors import IntegrityError, UsageError

# The strongest first. RFC 9530 names in Repr-Digest, RFC 3230 ones in Digest.
_BY_STRENGTH: Final = (
    ("sha-512", "sha512"),
    ("sha-256", "sha256"),
    ("sha", "sha1"),
    ("md5", "md5"),
)
_MEMBER: Final = re.compile(r"\s*([A-Za-z0-9-]{1,20})=:?([A-Za-z0-9+/=]{1,200}):?\s*")


class Hasher(Protocol):
    @property
    def digest_size(self) -> int: ...
    def update(self, data: memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


def _new(algorithm: str) -> Hasher:
    """Raises ValueError."""
    import hashlib  # with OpenSSL it takes 2 ms, and most files come without a digest

    return hashlib.new(algorithm, usedforsecurity=False)


class Expected(NamedTuple):
    """A digest by its name in `hashlib`, in lower-case hex, and who said so."""

    algorithm: str
    value: str
    source: str

    def hasher(self) -> Hasher:
        return _new(self.algorithm)

    def check(self, found: str, where: str) -> None:
        """Raises IntegrityError."""
        if found != self.value:
            raise IntegrityError(
                f"the bytes that came have {self.algorithm} {found}, {self.source} says {self.value}",
                where=where,
            )


class _HeaderLines(Protocol):
    def get(self, name: str, /) -> str | None: ...


def announced(headers: _HeaderLines, *, is_whole: bool) -> Expected | None:
    """The strongest digest of the whole file that an answer announces. Content-MD5 is about the body,
    and so about the file only in an answer that is all of it (RFC 1864)."""
    for name in ("repr-digest", "digest"):
        told = headers.get(name)
        if told is None:
            continue
        members = {
            match[1].lower(): match[2]
            for match in map(_MEMBER.fullmatch, told[:4096].split(","))
            if match is not None
        }
        for theirs, ours in _BY_STRENGTH:
            if theirs in members and (value := _hex(members[theirs], ours)) is not None:
                return Expected(ours, value, f"the server ({name})")
    told = headers.get("content-md5")
    if told is not None and is_whole:
        value = _hex(told.strip(), "md5")
        if value is not None:
            return Expected("md5", value, "the server (content-md5)")
    return None


def _hex(text: str, algorithm: str) -> str | None:
    """A base64 digest as hex, None for what is none of that length."""
    try:
        raw = binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError):
        return None
    size = _new(algorithm).digest_size
    return raw.hex() if len(raw) == size else None


def wanted(text: str) -> Expected:
    """The digest that a user wrote as ALGO:HEX. Raises UsageError."""
    name, _, value = text.partition(":")
    algorithm = name.strip().lower().replace("sha-", "sha")
    value = value.strip().lower()
    try:
        size = _new(algorithm).digest_size
    except ValueError as error:
        raise UsageError(
            f"--checksum-of: {name!r} is no digest that is known here",
            hint="sha256, sha512, sha1, md5, blake2b ...",
        ) from error
    if not size or not re.fullmatch(r"[0-9a-f]*", value) or len(value) != 2 * size:
        raise UsageError(
            f"--checksum-of: {algorithm} is {2 * size} hexadecimal digits", hint="ALGO:HEX"
        )
    return Expected(algorithm, value, "--checksum-of")
