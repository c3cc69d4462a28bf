"""Wildcards in a place: which part of it is a directory to list, and which of its entries are meant.

The wildcards of local paths are the shell's business; these are for the places that it knows nothing of.
``*``, ``?`` and ``[ ]`` stop at "/", ``**`` crosses it, and a backslash makes any of them an ordinary
character. The structure below the directory of the first wildcard is kept.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import AsyncIterator
from typing import NamedTuple

from fastsync.backend import Entry, Fault, Page, ScanOptions, Source, closing
from fastsync.errors import ListingError, NameRefused, Unsupported
from fastsync.filters import Glob
from fastsync.location import LOCAL_SCHEME, Location

_WILD = re.compile(r"\\.|[*?\[]", re.DOTALL)
# What is below a path that matches matches, too.
_OPEN_END = r"(?s)(?:\\.|[^\\])*?\*\*"


class Wildcard(NamedTuple):
    """A place with wildcards: the directory `base` without any, and the `pattern` of paths below it, which
    all begin with `prefix`."""

    base: Location
    pattern: str
    prefix: str
    glob: Glob

    def means(self, path: str, recursive: bool = True) -> bool:
        """True for a path that matches, or with `recursive` lies below a directory that does."""
        if self.glob.matches(path):
            return True
        return recursive and any(map(self.glob.matches, _above(path)))

    def reaches(self, path: str) -> bool:
        """True when `path`, a directory below the base, is meant or has entries that are."""
        return self.glob.leads(path) or self.means(path)

    async def scan(
        self, store: Source, options: ScanOptions, *, needs_recursion: bool = False
    ) -> AsyncIterator[Page]:
        """What the store lists below its location, as far as it is meant.

        A directory that is meant stands for all that is in it if ``options.recursive``; else it is one
        entry, or with `needs_recursion` a fault. Where all that is in it matches by itself (``**`` at the
        end) it is entered, too, and with `needs_recursion` no entry.
        """
        enters = options.recursive or re.fullmatch(_OPEN_END, self.pattern) is not None
        inside: dict[str, bool] = {"": False}  # directories, by whether all in them is meant

        def is_inside(directory: str) -> bool:
            known = inside.get(directory)
            if known is None:
                if len(inside) > 4096:
                    inside.clear()
                    inside[""] = False
                above = is_inside(directory.rpartition("/")[0])
                known = inside[directory] = above or self.glob.matches(directory)
            return known

        def prune(path: str) -> bool:
            if is_inside(path):
                closed = not enters
            else:
                closed = not self.glob.leads(path)
            return closed or (options.prune is not None and options.prune(path))

        walked = dataclasses.replace(
            options, recursive=True, prune=prune, starting_with=self.prefix
        )
        async with closing(store.scan(walked)) as pages:
            async for entries, faults in pages:
                kept: list[Entry] = []
                # What has no name below the base is not meant.
                missed = [
                    fault
                    for fault in faults
                    if fault.path or not isinstance(fault.error, NameRefused)
                ]
                for entry in entries:
                    path = entry.path
                    if not (is_inside(path.rpartition("/")[0]) or self.glob.matches(path)):
                        continue
                    if entry.kind == "dir" and needs_recursion and not options.recursive:
                        if not enters:
                            missed.append(Fault(path, _needs_recursion(store.location.child(path))))
                    else:
                        kept.append(entry)
                if kept or missed:
                    yield Page(kept, missed)


def _above(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def _needs_recursion(location: Location) -> Unsupported:
    return Unsupported("it is a directory", where=str(location), hint="-R takes directories too")


async def something(pages: AsyncIterator[Page], where: str) -> AsyncIterator[Page]:
    """The same pages. Raises ListingError in the place of none at all."""
    is_empty = True
    async with closing(pages) as listed:
        async for page in listed:
            is_empty = False
            yield page
    if is_empty:
        raise ListingError("nothing matches", where=where, hint="--raw takes it for a name")


def find(location: Location) -> Wildcard | None:
    """The wildcards of a place, None without any. Raises UsageError for a pattern that is malformed."""
    if location.scheme == LOCAL_SCHEME or location.is_stream:
        return None
    path = location.path
    first = next((found for found in _WILD.finditer(path) if found[0][0] != "\\"), None)
    if first is None:
        return None
    cut = path.rfind("/", 0, first.start()) + 1
    pattern = path[cut:]
    # A directory is meant either way.
    glob = Glob(pattern.rstrip("/"))
    prefix = re.sub(r"\\(.)", r"\1", pattern[: first.start() - cut], flags=re.DOTALL)
    base = re.sub(r"\\(.)", r"\1", path[:cut], flags=re.DOTALL)
    return Wildcard(dataclasses.replace(location, path=base), pattern, prefix, glob)
