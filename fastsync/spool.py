"""A list that may grow past memory: what has to wait until the end of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Final, Generic, TypeVar

T = TypeVar("T")

PAGE: Final = 8192


class Spool(Generic[T]):
    """Append now, read later, forwards or backwards, in pages; full pages wait in an unnamed file.

    The file is private to this process (unlinked on creation), so what is unpickled is what we wrote.
    """

    def __init__(self) -> None:
        self._page: list[T] = []
        self._offsets: list[int] = []
        self._file: IO[bytes] | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def extend(self, items: list[T]) -> None:
        self._count += len(items)
        self._page.extend(items)
        if len(self._page) >= PAGE:
            import pickle  # few runs get here
            import tempfile

            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="fastsync-")  # noqa: SIM115 - closed in close()
            self._offsets.append(self._file.seek(0, 2))
            pickle.dump(self._page, self._file, protocol=pickle.HIGHEST_PROTOCOL)
            self._page = []

    def pages(self) -> Iterator[list[T]]:
        """In the order of appending."""
        for offset in self._offsets:
            yield self._load(offset)
        if self._page:
            yield list(self._page)

    def pages_backwards(self) -> Iterator[list[T]]:
        """Last item first: children before their directories."""
        if self._page:
            yield self._page[::-1]
        for offset in reversed(self._offsets):
            yield self._load(offset)[::-1]

    def _load(self, offset: int) -> list[T]:
        import pickle

        assert self._file is not None
        self._file.seek(offset)
        page: list[T] = pickle.load(self._file)  # noqa: S301 - our own unnamed file
        return page

    def close(self) -> None:
        """Forget everything. Idempotent."""
        self._page = []
        self._offsets = []
        self._count = 0
        if self._file is not None:
            self._file.close()
            self._file = None
