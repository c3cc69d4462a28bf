"""Choices of paths besides the rules: a list of files to take, and the .gitignore files of the source."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from fastsync.backend import Entry, Fault, Page, ScanOptions, Source, closing
from fastsync.errors import FastsyncError, ListingError, Missing, NotFound, UsageError
from fastsync.filters import Rule, parse_rule

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

IGNORE_FILE: Final = ".gitignore"
# A .gitignore of this size is none.
_IGNORE_FILE_MAX: Final = 1 << 20
_REMEMBERED: Final = 4096


def lines_of(name: str, *, null: bool = False) -> Iterator[tuple[int, str]]:
    """The numbered lines of a file ("-" is standard input), comments (# and ;) and empty ones left out;
    with `null` items that end in NUL, as they are. Raises UsageError."""
    try:
        if name == "-":
            given: int | str = 0
        else:
            given = name
        with open(given, "rb", closefd=given != 0) as file:
            data = file.read()
    except OSError as error:
        raise UsageError(f"it cannot be read: {error.strerror}", where=name) from error
    if not null and b"\0" in data:
        raise UsageError("it has NUL bytes in it", where=name, hint="-0 is for such a list")
    items = data.decode("utf-8", "surrogateescape").split("\0" if null else "\n")
    for number, item in enumerate(items, 1):
        if not null:
            item = item.removesuffix("\r")
        if item and (null or (item.strip() and item[0] not in "#;")):
            yield number, item


def rules_from(name: str, read: Callable[[str], Rule] = parse_rule) -> list[Rule]:
    """A file with one rule on each line, as `read` understands it. Raises UsageError, with the line."""
    rules = []
    for number, line in lines_of(name):
        try:
            rules.append(dataclasses.replace(read(line), origin=f"{name}:{number}"))
        except UsageError as error:
            raise error.at(f"{name}:{number}") from None
    return rules


class FileList:
    """Names to take, relative to the source: files, and directories with all that is in them.

    What is not on the list is out of the run: never copied, and never deleted. `met` remembers which of
    the names the source has.
    """

    is_scope = True

    def __init__(self, names: Iterable[tuple[int, str]], where: str) -> None:
        self.where = where
        self._names: set[str] = set()
        self._met: set[str] = set()
        for number, name in names:
            parts = [part for part in name.split("/") if part not in ("", ".")]
            if ".." in parts:
                raise UsageError(
                    f"'{name}' leads out of the source",
                    where=f"{where}:{number}",
                    hint="name what is in it",
                )
            self._names.add("/".join(parts))
        self._above = {
            name[:at] for name in self._names for at, letter in enumerate(name) if letter == "/"
        }
        self._known: dict[str, str | None] = {}

    @classmethod
    def read(cls, name: str, *, null: bool) -> FileList:
        """The list in a file. Raises UsageError."""
        return cls(lines_of(name, null=null), name)

    def _cover(self, directory: str) -> str | None:
        """The name on the list that takes what is in `directory`."""
        if directory in self._names:
            return directory
        if not directory:
            return None
        if directory not in self._known:
            if len(self._known) > _REMEMBERED:
                self._known.clear()
            self._known[directory] = self._cover(directory.rpartition("/")[0])
        return self._known[directory]

    def takes(self, path: str, is_dir: bool) -> bool:
        return (
            path in self._names
            or (is_dir and path in self._above)
            or self._cover(path.rpartition("/")[0]) is not None
        )

    def enters(self, path: str) -> bool:
        return path in self._above or self._cover(path) is not None

    def may_delete(self, path: str) -> bool:
        cover = self._cover(path.rpartition("/")[0])
        return cover is not None and cover in self._met

    def reason(self, path: str, is_dir: bool) -> str:
        return f"excluded: --files-from {self.where} does not name it"

    def meet(self, entries: Iterable[Entry]) -> None:
        """The source has these."""
        here: str | None = None
        for entry in entries:
            path = entry[0]
            if path in self._names:
                self._met.add(path)
            parent = path.rpartition("/")[0]
            if parent != here:
                here = parent
                if (cover := self._cover(parent)) is not None:
                    self._met.add(cover)

    async def met(
        self, pages: AsyncIterator[Page], source: Source, missing: Callable[[str], None] | None
    ) -> AsyncIterator[Page]:
        """The listing of the source, and a fault for each name that it does not have; `missing` is told
        of them instead, if there is one."""
        self._met = {""} & self._names
        async with closing(pages) as listed:
            async for page in listed:
                self.meet(page.entries)
                yield page
        faults: list[Fault] = []
        for name in sorted(self._names - self._met):
            try:
                await source.stat(name)  # a rule may have kept it out of the listing
                continue
            except NotFound:
                error: FastsyncError = Missing(
                    f"{self.where} names it, and it is not there", where=name
                )
            except FastsyncError as other:
                error = other
            if missing is not None and isinstance(error, Missing):
                missing(f"skipped, it does not exist: {source.location.child(name)}")
            else:
                faults.append(Fault(name, error))
        if faults:
            yield Page([], faults)


class Ignores:
    """What the .gitignore files of a source leave out, as git understands them: the last pattern that
    matches decides, deeper files come before those above, and nothing comes back out of a directory that
    is left out."""

    is_scope = False

    def __init__(self) -> None:
        self._specs: dict[str, GitIgnoreSpec] = {}
        self._known: dict[str, bool] = {"": False}

    def add(self, directory: str, content: str) -> None:
        """The .gitignore of one directory. Raises UsageError."""
        from pathspec import GitIgnoreSpec  # 20 ms, for those who ask for it

        try:
            self._specs[directory] = GitIgnoreSpec.from_lines(content.splitlines())
        except ValueError as error:
            where = f"{directory}/{IGNORE_FILE}".lstrip("/")
            raise UsageError(f"a pattern is malformed: {error}", where=where) from error
        self._known = {"": False}

    def _matched(self, path: str, is_dir: bool) -> bool:
        """What the files say of `path` itself: the deepest one that has a pattern for it."""
        directory = path
        while directory:
            directory = directory.rpartition("/")[0]
            spec = self._specs.get(directory)
            if spec is not None:
                below = path[len(directory) + 1 if directory else 0 :] + "/" * is_dir
                for pattern in reversed(spec.patterns):
                    if pattern.regex is not None and _is_of(pattern.regex, below):
                        return bool(pattern.include)
        return False

    def _is_out(self, directory: str) -> bool:
        known = self._known.get(directory)
        if known is None:
            if len(self._known) > _REMEMBERED:
                self._known = {"": False}
            known = self._is_out(directory.rpartition("/")[0]) or self._matched(directory, True)
            self._known[directory] = known
        return known

    def takes(self, path: str, is_dir: bool) -> bool:
        if is_dir:
            return not self._is_out(path)
        return not (self._is_out(path.rpartition("/")[0]) or self._matched(path, False))

    def enters(self, path: str) -> bool:
        return not self._is_out(path)

    def may_delete(self, path: str) -> bool:
        return True

    def reason(self, path: str, is_dir: bool) -> str:
        return f"excluded by {IGNORE_FILE}"


def _is_of(regex: re.Pattern[str], path: str) -> bool:
    """True when a pattern is of `path` itself, "a/b/" for a directory. pathspec lets patterns match what is
    below a directory, too, which is wrong as soon as one pattern takes back what another said."""
    if "ps_d" in regex.groupindex:  # the slash behind what it matches
        return regex.fullmatch(path) is not None
    found = regex.match(path)
    # "a/**" is not the directory itself.
    return found is not None and (found.end() < len(path) or not path.endswith("/"))


async def ignores_of(source: Source, options: ScanOptions, prune: Callable[[str], bool]) -> Ignores:
    """Read the .gitignore files of a source. Raises UsageError, ListingError for one that cannot be read."""
    ignores = Ignores()

    def left_out(path: str) -> bool:
        return prune(path) or not ignores.enters(path)

    walked = ScanOptions(links=options.links, prune=left_out)
    top = await _ignore_file(source, IGNORE_FILE)
    if top is not None:
        ignores.add("", top)
    async with closing(source.scan(walked)) as pages:
        async for entries, _ in pages:
            for entry in entries:
                directory, slash, name = entry.path.rpartition("/")
                if name == IGNORE_FILE and slash and entry.kind == "file":
                    content = await _ignore_file(source, entry.path)
                    if content is not None and ignores.enters(directory):
                        ignores.add(directory, content)
    return ignores


async def _ignore_file(source: Source, path: str) -> str | None:
    where = str(source.location.child(path))
    try:
        entry = await source.stat(path)
    except NotFound:
        return None
    if entry.kind != "file":
        return None
    if entry.size is None or entry.size > _IGNORE_FILE_MAX:
        raise UsageError("it is too large for a .gitignore", where=where)
    data = bytearray()
    try:
        async with closing(source.read(entry, 0, None)) as buffers:
            async for buffer in buffers:
                data += buffer
    except FastsyncError as error:
        # Without it, files would be copied, or deleted, that it leaves out.
        raise ListingError(f"it cannot be read: {error.message}", where=where) from error
    return data.decode("utf-8", "surrogateescape")
