"""Names that a disk takes for one: ``A`` and ``a``, or an accent as one character and as two.

On most disks of Linux no two names are one. Where they are, a second file would silently replace the first
one, so it is refused instead. Looked for where something is about to be written, since it is a fact of the
directory there: not even all directories of one disk need be alike (ext4's casefold).
"""

from __future__ import annotations

import itertools
import os

from fastsync.errors import NameRefused

# So many names are looked at for one with letters.
_ASKED = 64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def refuse_other_spelling(directory: int, name: str) -> None:
    """Raise NameRefused if what stands at `name` is there under another spelling. Raises OSError."""
    try:
        there = os.lstat(name, dir_fd=directory)
    except FileNotFoundError:
        return
    for spelling in _spellings(name):
        try:
            other = os.lstat(spelling, dir_fd=directory)
        except OSError:  # not there, or no name at all
            continue
        if (other.st_dev, other.st_ino) == (there.st_dev, there.st_ino):
            # The directory decides: two names of one file (hard links) are no conflict.
            names = os.listdir(directory)
            if name not in names:
                shown = next((each for each in names if _same(directory, each, there)), spelling)
                raise NameRefused(f"this disk takes it for {shown!r}, which stands there")
            return


def _same(directory: int, name: str, there: os.stat_result) -> bool:
    try:
        status = os.lstat(name, dir_fd=directory)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == (there.st_dev, there.st_ino)


def _spellings(name: str) -> Iterator[str]:
    """How else a disk might write it."""
    swapped = name.swapcase()
    if swapped != name:
        yield swapped
    if not name.isascii():
        from unicodedata import normalize

        for form in ("NFC", "NFD"):
            other = normalize(form, name)
            if other != name:
                yield other


def folds(directory: int, name: str) -> bool:
    """True when `name`, an ASCII name that is there, is there in capital letters, too."""
    try:
        os.lstat(name.upper(), dir_fd=directory)
    except OSError:
        return False
    return True


def folds_below(path: str) -> bool:
    """True when names in the directory at `path` are there in the other case, too; for one without names,
    or that is still to be made, the one above answers. Writes nothing."""
    while True:
        try:
            directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            directory = -1
        except OSError:
            return False
        if directory >= 0:
            try:
                if (answer := _told_by_names(directory)) is not None:
                    return answer
            except OSError:
                return False
            finally:
                os.close(directory)
        above, _, name = path.rstrip("/").rpartition("/")
        if not name:
            return False
        path = above or ("/" if path.startswith("/") else ".")


def _told_by_names(directory: int) -> bool | None:
    with os.scandir(directory) as entries:
        for entry in itertools.islice(entries, _ASKED):
            name = entry.name
            swapped = name.swapcase()
            if swapped == name:
                continue
            there = os.lstat(name, dir_fd=directory)
            # Of two names of one file (hard links) both are listed.
            return _same(directory, swapped, there) and swapped not in os.listdir(directory)
    return None
