"""A manifest: the digest of every file of a copy, so that it can be checked when the source is gone.

The format is that of ``sha256sum``, which can check it as well: ``HEX  PATH`` on each line; a line that
begins with a backslash has backslash, newline and carriage return in its name written as ``\\\\``, ``\\n``
and ``\\r``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
from collections.abc import AsyncIterator
from typing import Final

from fastsync.backend import Entry, Hashes, LocalFiles, Source, closing, offers
from fastsync.errors import FastsyncError, Unsupported, UsageError, from_os_error
from fastsync.location import Location
from fastsync.plan import PlanPage
from fastsync.spool import Spool
from fastsync.work import Work

ALGORITHM: Final = "sha256"
_LINE = re.compile(r"(\\?)([0-9a-f]{64}) [ *](.+)", re.DOTALL)
_SAME: Final = ("unchanged", "same checksum", "same content")
_AT_ONCE: Final = 8


async def digest_of(store: Source, entry: Entry) -> str:
    """The SHA-256 of exactly this version, told by the store or found by reading. Raises what it raises."""
    if offers(store, Hashes) and ALGORITHM in store.algorithms:
        with contextlib.suppress(Unsupported):  # of this very file
            return await store.digest(entry, ALGORITHM)
    sums = hashlib.sha256()
    async with closing(store.read(entry, 0, None)) as buffers:
        async for buffer in buffers:
            sums.update(buffer)
    return sums.hexdigest()


def read_manifest(name: str) -> dict[str, str]:
    """The digests in a file, by path. Raises UsageError, with the line."""
    try:
        with open(name, "rb") as file:
            lines = file.read().decode("utf-8", "surrogateescape").split("\n")
    except OSError as error:
        raise UsageError(f"it cannot be read: {error.strerror}", where=name) from error
    digests: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise UsageError("it is no line of a manifest", where=f"{name}:{number}")
        path = found[3]
        if found[1]:
            path = re.sub(r"\\(.)", lambda one: {"n": "\n", "r": "\r"}.get(one[1], one[1]), path)
        digests[path] = found[2]
    return digests


def _line(digest: str, path: str) -> str:
    escaped = path.replace("\\", r"\\").replace("\n", r"\n").replace("\r", r"\r")
    mark = "\\" if escaped != path else ""
    return f"{mark}{digest}  {escaped}\n"


class Manifest:
    """Writes down what a run has copied, or found to be there already: by name below `root`, and by the
    digest of the source's bytes. Local files are read once more for it, whichever side they are on."""

    def __init__(self, name: str, root: Location) -> None:
        self._name = name
        self._root = root
        self._works: list[tuple[Work, Spool[Entry]]] = []
        try:
            # Beside the old one, which stays until the new one is complete.
            self._file = open(f"{name}.part", "wb")  # noqa: SIM115 (closed by `write` or `close`)
        except OSError as error:
            raise UsageError(f"it cannot be written: {error.strerror}", where=name) from error

    def watch(self, work: Work) -> Work:
        """Remember the files of a work as they are planned."""
        spool: Spool[Entry] = Spool()
        self._works.append((work, spool))
        work.pages = _watched(work.pages, spool)
        return work

    async def write(self) -> None:
        """Write it all down. Raises what reading the files raises."""
        try:
            for work, spool in self._works:
                above = self._above(work)
                for page in spool.pages():
                    for start in range(0, len(page), _AT_ONCE):
                        some = page[start : start + _AT_ONCE]
                        digests = await asyncio.gather(*(_digest(work, each) for each in some))
                        for entry, digest in zip(some, digests, strict=True):
                            line = _line(digest, above + work.target(entry.path))
                            self._file.write(os.fsencode(line))
            self._file.close()
            os.replace(f"{self._name}.part", self._name)
        except OSError as error:
            raise from_os_error(error, self._name) from error

    def _above(self, work: Work) -> str:
        place, root = work.sink.location.path.rstrip("/"), self._root.path.rstrip("/")
        return place[len(root) + 1 :] + "/" if place.startswith(root + "/") else ""

    def close(self) -> None:
        """Let go of what was not written. Idempotent."""
        for _, spool in self._works:
            spool.close()
        self._file.close()
        with contextlib.suppress(OSError):
            os.unlink(f"{self._name}.part")


async def _digest(work: Work, entry: Entry) -> str:
    source, sink = work.source, work.sink
    if offers(sink, LocalFiles) and not offers(work.source, LocalFiles):
        # Its bytes came from there, and were checked.
        with contextlib.suppress(FastsyncError):  # its copy failed
            copy = await work.sink.stat(work.target(entry.path), follow=True)
            return await digest_of(work.sink, copy)
    return await digest_of(source, entry)


async def _watched(pages: AsyncIterator[PlanPage], spool: Spool[Entry]) -> AsyncIterator[PlanPage]:
    async with closing(pages) as planned:
        async for page in planned:
            actions = [*page.now, *page.later]
            actions += [action for action in page.skips if action.reason in _SAME]
            spool.extend([action.entry for action in actions if action.entry.kind == "file"])
            yield page
