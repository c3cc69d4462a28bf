"""Names of which a destination makes one: ``A`` and ``a``, or an accent as one character and as two.

Most stores keep all names apart. Where one does not, what stands there is listed first, and of two entries of
the source that would be one, or one that would be another that stands there, the second is refused, with all
that is below it: in a plan as in a run, and the same in every run.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from unicodedata import normalize

from fastsync.backend import Entry, Fault, Page, ScanOptions, Sink, closing
from fastsync.errors import NameRefused


def folded(path: str) -> str:
    """Equal for paths that some disk takes for one. Rather too often equal than too seldom."""
    return (
        path.casefold() if path.isascii() else normalize("NFC", normalize("NFC", path).casefold())
    )


async def told_apart(
    pages: AsyncIterator[Page], sink: Sink, keeps: Callable[[Entry], bool]
) -> AsyncIterator[Page]:
    """The source's listing, for a sink that folds names, with faults for entries that it would take for
    others; those that nobody `keeps` have no part in it."""
    there: dict[str, str] = {}
    async with closing(sink.scan(ScanOptions(missing_ok=True))) as listed:
        async for page in listed:
            there.update((folded(entry.path), entry.path) for entry in page.entries)
    refused = "\0"
    async with closing(pages) as ours:
        async for page in ours:
            entries: list[Entry] = []
            faults = list(page.faults)
            for entry in page.entries:
                if entry.path.startswith(refused):
                    continue
                other = entry.path
                if keeps(entry):
                    other = there.setdefault(folded(entry.path), entry.path)
                if other == entry.path:
                    entries.append(entry)
                    continue
                faults.append(Fault(entry.path, _taken(sink, entry.path, other)))
                if entry.kind == "dir":
                    refused = entry.path + "/"
            if entries or faults:
                yield Page(entries, faults)


def _taken(sink: Sink, path: str, other: str) -> NameRefused:
    return NameRefused(
        f"the destination takes it for {other.rpartition('/')[2]!r}, and keeps one of the two",
        where=str(sink.location.child(path)),
        hint="give one of them another name",
    )
