"""``fastsync ls``: list places."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Any

import click

from fastsync.cli.options import (
    LIST,
    RuledCommand,
    request_for,
    resolved,
    rules_of,
    with_options,
)
from fastsync.cli.places import PLACE

if TYPE_CHECKING:
    from fastsync.backend import Entry, ListedVersion
    from fastsync.session import Request

_EXAMPLES = """\b
Examples:
  fastsync ls                            the current directory
  fastsync ls -lH photos                 with sizes and times
  fastsync ls -R --summarize src         everything below, and the total
  fastsync ls -R -0 src | xargs -0 ...   names that may contain anything
  fastsync ls 's3://bucket/logs/*.gz'    what wildcards mean
  fastsync ls --all-versions s3://bucket/report.pdf
"""

_TYPES = {"file": stat.S_IFREG, "dir": stat.S_IFDIR, "link": stat.S_IFLNK, "special": 0}


@click.command(cls=RuledCommand, epilog=_EXAMPLES)
@click.argument("places", type=PLACE, nargs=-1, metavar="[PLACE...]")
@with_options(LIST)
@click.option("-L", "--copy-links", "links", flag_value="follow", help="list what links lead to")
@click.option("-l", "--long", "long", is_flag=True, help="mode, size and time too")
@click.option("-0", "--print0", "print0", is_flag=True, help="end names with NUL, unescaped")
@click.option("-d", "--directory", is_flag=True, help="the place itself, not what is in it")
@click.option("-e", "--etag", is_flag=True, help="the store's mark of each version too")
@click.option("--all-versions", is_flag=True, help="old and deleted versions too, where kept")
@click.pass_context
def ls(
    context: click.Context,
    /,
    places: tuple[str, ...],
    long: bool,
    print0: bool,
    directory: bool,
    etag: bool,
    all_versions: bool,
    **values: Any,
) -> int:
    """List files and directories, one per line, in byte order of their paths."""
    settled = resolved(values)
    rules = rules_of(context, values)

    from fastsync.cli.render import open_output
    from fastsync.cli.run import run_to_exit

    listing = Listing(
        request_for(settled, rules), long=long, print0=print0, directory=directory, etag=etag
    )
    open_output()
    return run_to_exit(listing.print_all(places or (".",), versions=all_versions), settled.settings)


class Listing:
    """Prints entries in the form that was asked for, and counts them."""

    def __init__(
        self, request: Request, *, long: bool, print0: bool, directory: bool, etag: bool
    ) -> None:
        self._request = request
        self._settings = request.settings
        self._long = long
        self._print0 = print0
        self._directory = directory
        self._etag = etag
        self._modes = False  # a place whose first entries have none has no column for them
        self._files = 0
        self._bytes = 0
        self._exit_codes: set[int] = set()

    async def print_all(self, places: tuple[str, ...], *, versions: bool) -> int:
        """List every place; one that cannot be listed does not keep the others from being."""
        from fastsync.cli.render import tell, write_text
        from fastsync.errors import FastsyncError, worst_exit
        from fastsync.location import as_shown
        from fastsync.names import printable

        several = len(places) > 1 and not self._settings.json and not self._print0
        for index, place in enumerate(places):
            if several:
                shown = printable(as_shown(place))
                write_text(f"{'' if index == 0 else chr(10)}{shown}:\n")
            try:
                await (self._print_versions(place) if versions else self._print(place))
            except FastsyncError as error:
                self._exit_codes.add(tell(error, as_json=self._settings.json))
        if self._settings.summarize:
            self._print_total()
        return worst_exit(self._exit_codes)

    async def _print(self, place: str) -> None:
        from fastsync.cli.render import tell, write_text
        from fastsync.listing import run_ls
        from fastsync.location import as_shown

        recursive = self._settings.recursive
        shown = as_shown(place)
        is_first = True
        async for page in run_ls(
            place, self._request, recursive=recursive, directory=self._directory
        ):
            if is_first:
                self._modes = any(entry.mode is not None for entry in page.entries)
                is_first = False
            lines = [self._line(shown, entry) for entry in page.entries]
            self._count(page.entries)
            write_text("".join(lines))
            for fault in page.faults:
                self._exit_codes.add(tell(fault.error, as_json=self._settings.json))

    async def _print_versions(self, place: str) -> None:
        from fastsync.cli.render import write_text
        from fastsync.listing import run_versions
        from fastsync.location import as_shown

        recursive = self._settings.recursive
        async for page in run_versions(place, self._request, recursive=recursive):
            self._count([each.entry for each in page])
            write_text("".join(self._version_line(as_shown(place), each) for each in page))

    def _count(self, entries: list[Entry]) -> None:
        files = [entry for entry in entries if entry.kind == "file"]
        self._files += len(files)
        self._bytes += sum(entry.size or 0 for entry in files)

    def _line(self, place: str, entry: Entry) -> str:
        from fastsync.cli.render import local_time
        from fastsync.names import printable

        if self._settings.json:
            return self._json(place, entry)
        name = entry.path + "/" if entry.kind == "dir" else entry.path
        if self._print0:
            return name + "\0"
        columns = []
        if self._long:
            if self._modes:
                mode = "-" * 10
                if entry.mode is not None:
                    mode = stat.filemode(entry.mode | _TYPES[entry.kind])
                columns.append(mode)
            time_ns = entry.stored_ns if entry.mtime_ns is None else entry.mtime_ns
            columns += [f"{self._size(entry.size):>12}", f"{local_time(time_ns):>19}"]
        if self._etag:
            columns.append(f"{printable(entry.version or '-'):<34}")
        columns.append(printable(name))
        if self._long and entry.target is not None:
            columns.append(f"-> {printable(entry.target)}")
        return " ".join(columns) + "\n"

    def _version_line(self, place: str, listed: ListedVersion) -> str:
        from fastsync.cli.render import local_time
        from fastsync.names import printable

        entry = listed.entry
        if self._settings.json:
            return self._json(
                place,
                entry,
                version_id=listed.version_id,
                is_latest=listed.is_latest,
                is_delete_marker=listed.is_delete_marker,
            )
        if self._print0:
            return entry.path + "\0"
        time_ns = entry.stored_ns if entry.mtime_ns is None else entry.mtime_ns
        size = "deleted" if listed.is_delete_marker else self._size(entry.size)
        columns = [
            f"{size:>12}",
            f"{local_time(time_ns):>19}",
            "latest" if listed.is_latest else "older ",
            f"{printable(listed.version_id):<32}",
        ]
        if self._etag:
            columns.append(f"{printable(entry.version or '-'):<34}")
        return " ".join([*columns, printable(entry.path)]) + "\n"

    def _json(self, place: str, entry: Entry, **more: object) -> str:
        from fastsync.cli.render import json_line, rfc3339

        line = json_line(
            operation="ls",
            success=True,
            source=place,
            path=entry.path,
            kind=entry.kind,
            size=entry.size,
            mtime=None if entry.mtime_ns is None else rfc3339(entry.mtime_ns),
            stored=None if entry.stored_ns is None else rfc3339(entry.stored_ns),
            mode=None if entry.mode is None else f"{entry.mode:04o}",
            target=entry.target,
            etag=entry.version,
            **more,
        )
        return line + "\n"

    def _size(self, size: int | None) -> str:
        from fastsync.cli.render import human_size

        if size is None:
            return "-"
        return human_size(size) if self._settings.human_readable else str(size)

    def _print_total(self) -> None:
        from fastsync.cli.render import json_line, write_text

        if self._settings.json:
            line = json_line(
                operation="summary",
                success=not self._exit_codes,
                files=self._files,
                size=self._bytes,
            )
            write_text(line + "\n")
            return
        size = self._size(self._bytes) + ("" if self._settings.human_readable else " bytes")
        write_text(f"Total: {self._files} files, {size}\n")
