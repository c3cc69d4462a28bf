"""Two entries of which a destination makes one: told in the plan, whatever the protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from fastsync.backend import Entry, Page, ScanOptions
from fastsync.errors import NameRefused
from fastsync.location import parse
from fastsync.spelling import folded, told_apart
from fastsync_sftp import packets
from fastsync_sftp.spelling import are_one, spellings


def entries(names: str) -> list[Entry]:
    return [
        Entry(name.rstrip("/"), "dir" if name.endswith("/") else "file", 1, 1)
        for name in names.split()
    ]


class Disk:
    """A sink as far as this goes."""

    location = parse("mem://disk/")

    def __init__(self, names: str) -> None:
        self.names = names

    async def scan(self, _options: ScanOptions) -> AsyncIterator[Page]:
        yield Page(entries(self.names))


async def listed(source: str, there: str) -> tuple[str, list[str]]:
    """What is left of a source, and the refused paths."""

    async def pages() -> AsyncIterator[Page]:
        for entry in entries(source):
            yield Page([entry])

    kept, refused = [], []
    keeps = lambda entry: entry.path != "EXCLUDED"  # noqa: E731
    async for page in told_apart(pages(), Disk(there), keeps):  # type: ignore[arg-type]
        kept += [entry.path for entry in page.entries]
        for path, error in page.faults:
            assert isinstance(error, NameRefused)
            refused.append(path)
    return " ".join(kept), refused


@pytest.mark.parametrize(
    ("source", "there", "kept", "refused"),
    [
        ("A a b", "", "A b", ["a"]),
        ("a b", "A b", "b", ["a"]),
        ("A a", "a", "a", ["A"]),
        ("Dir/ Dir/x dir/ dir/x dir/y e", "", "Dir Dir/x e", ["dir"]),
        ("dir/ dir/x dirt", "DIR/", "dirt", ["dir"]),
        ("Dir/A dir/b x/A y/a", "", "Dir/A dir/b x/A y/a", []),
        ("EXCLUDED excluded", "", "EXCLUDED excluded", []),
        ("STRASSE stra\xdfe", "", "STRASSE", ["stra\xdfe"]),
        ("u\u0308 \xfc \xdc", "", "u\u0308", ["\xfc", "\xdc"]),
        ("\udcff \udcfe", "", "\udcff \udcfe", []),
    ],
)
async def test_the_first_of_each(source: str, there: str, kept: str, refused: list[str]) -> None:
    assert await listed(source, there) == (kept, refused)


def test_folded() -> None:
    assert folded("Dir/A") == folded("dir/a") != folded("dir/b")


def test_the_way_up_of_a_server() -> None:
    assert spellings(b"/home/Me/1/d") == [
        (b"/home/Me/1/d", b"/home/Me/1/D"),
        (b"/home/Me", b"/home/mE"),
        (b"/home", b"/HOME"),
    ]
    assert spellings(b"/") == spellings(b"/1/2") == []


def replies(*sizes: int | None) -> Iterator[packets.Reply]:
    """Attributes of files of these sizes, None for no such file."""
    for size in sizes:
        if size is None:
            status = packets.NO_SUCH_FILE.to_bytes(4, "big") + packets.string(b"") * 2
            yield packets.STATUS, status
        else:
            yield packets.ATTRS, packets.attributes(size=size)


@pytest.mark.parametrize(
    ("sizes", "answer"),
    [
        ((1, 1, 2, None), True),
        ((1, None, 2, 2), False),
        ((1, 2), False),
        ((None, None, 2, 2), True),
        ((None, None), False),
        ((), False),
    ],
)
def test_what_a_server_says(sizes: tuple[int | None, ...], *, answer: bool) -> None:
    assert are_one(list(replies(*sizes))) is answer
