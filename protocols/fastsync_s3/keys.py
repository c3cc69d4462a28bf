"""Keys of objects: which can be written, and how they map to paths below a prefix.

A key is a string of UTF-8, up to 1024 bytes, and nothing in it has a meaning to S3: ``//``, ``..`` and a
"/" in front are ordinary characters. So keys stay as they are between buckets; whether one can be a file
on a disk is decided by `fastsync.names.safe_parts` at the destination.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
"""

from __future__ import annotations

import re
from itertools import islice
from operator import lt
from typing import Final

from fastsync.errors import NameRefused
from fastsync.names import path_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_KEY: Final = 1024  # bytes of UTF-8
DELIMITER: Final = "/"

# What XML 1.0 cannot express, not even as a character reference (production 2, "Char").
_NOT_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def check_key(key: str) -> str:
    """`key`, or NameRefused: the one gate of every key that is written."""
    if key.isascii():
        size = len(key)
    else:
        try:
            size = len(key.encode())
        except UnicodeEncodeError as error:
            raise NameRefused("the name is not UTF-8, which S3 requires", where=key) from error
    if not size:
        raise NameRefused("an object needs a name", where=key)
    if size > MAX_KEY:
        raise NameRefused(f"the key has {size} bytes, S3 takes {MAX_KEY}", where=key)
    return key


def is_ascending(keys: Sequence[str]) -> bool:
    """Whether `keys` ascend strictly in byte order, S3's own. 40 us for a page of 1000.

    Strings compare by code point, which is the order of their UTF-8; only surrogates, which stand for
    bytes that are not UTF-8, are elsewhere.
    """
    try:
        "".join(keys).encode()
    except UnicodeEncodeError:
        ordered = [path_key(key) for key in keys]
        return all(map(lt, ordered, islice(ordered, 1, None)))
    return all(map(lt, keys, islice(keys, 1, None)))


def is_marker(key: str, size: int) -> bool:
    """Whether the object stands for a directory: its key ends in "/", and it is empty."""
    return size == 0 and key.endswith(DELIMITER)


def is_xml_safe(key: str) -> bool:
    """Whether a request in XML can name `key`; others are deleted one by one."""
    return _NOT_XML.search(key) is None
