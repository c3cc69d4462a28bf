"""``fastsync ls``: list places."""

from __future__ import annotations

import stat
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from fastsync.cli.options import LIST, RuledCommand, resolved, rules_of, with_options

if TYPE_CHECKING:
    from fastsync.api import Request
    from fastsync.backend import Entry

_EXAMPLES = """\b
Examples:
  fastsync ls                      the current directory
  fastsync ls -lH photos           with sizes and times
  fastsync ls -R --summarize src   everything below, and the total
  fastsync ls -R -0 src | xargs -0 names that may contain anything
"""

_TYPES = {"file": stat.S_IFREG, "dir": stat.S_IFDIR, "link": stat.S_IFLNK, "special": 0}


@click.command(cls=RuledCommand, epilog=_EXAMPLES)
@click.argument("places", nargs=-1, metavar="[PLACE...]")
@with_options(LIST)
@click.option("-L", "--copy-links", "links", flag_value="follow", help="list what links lead to")
@click.option("-l", "--long", "long", is_flag=True, help="mode, size and time too")
@click.option("-0", "--print0", "print0", is_flag=True, help="end names with NUL, unescaped")
@click.option("-d", "--directory", is_flag=True, help="the place itself, not what is in it")
@click.pass_context
def ls(
    context: click.Context,
    /,
    places: tuple[str, ...],
    long: bool,
    print0: bool,
    directory: bool,
    **values: Any,
) -> int:
    """List files and directories, one per line, in byte order of their paths."""
    settled = resolved(values)
    rules = rules_of(context, values)

    from fastsync.api import Request
    from fastsync.cli.render import open_output
    from fastsync.cli.run import Interrupted, run

    listing = Listing(
        Request(settled.settings, rules, place_settings=settled.place_for),
        long=long,
        print0=print0,
        directory=directory,
    )
    open_output()
    try:
        return run(listing.print_all(places or (".",)), lambda: None)
    except Interrupted as interrupted:
        return interrupted.exit_code


class Listing:
    """Prints entries in the form that was asked for, and counts them."""

    def __init__(self, request: Request, *, long: bool, print0: bool, directory: bool) -> None:
        self._request = request
        self._settings = request.settings
        self._long = long
        self._print0 = print0
        self._directory = directory
        self._files = 0
        self._bytes = 0
        self._exit_codes: set[int] = set()

    async def print_all(self, places: tuple[str, ...]) -> int:
        """List every place; one that cannot be listed does not keep the others from being."""
        from fastsync.errors import FastsyncError, worst_exit
        from fastsync.names import printable

        several = len(places) > 1 and not self._settings.json and not self._print0
        for index, place in enumerate(places):
            if several:
                _write(f"{'' if index == 0 else chr(10)}{printable(place)}:\n")
            try:
                await self._print(place)
            except FastsyncError as error:
                self._tell(error)
        if self._settings.summarize:
            self._print_total()
        return worst_exit(self._exit_codes)

    def _tell(self, error: Any) -> None:
        from fastsync.cli.render import write_error
        from fastsync.names import printable

        self._exit_codes.add(error.exit_code)
        sys.stdout.flush()
        write_error(f"fastsync: error: {printable(str(error))}")

    async def _print(self, place: str) -> None:
        from fastsync.api import run_ls

        recursive = self._settings.recursive
        async for page in run_ls(
            place, self._request, recursive=recursive, directory=self._directory
        ):
            lines = [self._line(place, entry) for entry in page.entries]
            files = [entry for entry in page.entries if entry.kind == "file"]
            self._files += len(files)
            self._bytes += sum(entry.size or 0 for entry in files)
            _write("".join(lines))
            for fault in page.faults:
                self._tell(fault.error)

    def _line(self, place: str, entry: Entry) -> str:
        from fastsync.cli.render import json_line
        from fastsync.names import printable

        if self._settings.json:
            return (
                json_line(
                    operation="ls",
                    success=True,
                    source=place,
                    path=entry.path,
                    kind=entry.kind,
                    size=entry.size,
                    mtime=None if entry.mtime_ns is None else _rfc3339(entry.mtime_ns),
                    mode=None if entry.mode is None else f"{entry.mode:04o}",
                    target=entry.target,
                    etag=entry.version,
                )
                + "\n"
            )
        name = entry.path + "/" if entry.kind == "dir" else entry.path
        if self._print0:
            return name + "\0"
        name = printable(name)
        if not self._long:
            return name + "\n"
        if entry.target is not None:
            name += f" -> {printable(entry.target)}"
        mode = "-" * 10 if entry.mode is None else stat.filemode(entry.mode | _TYPES[entry.kind])
        when = "-" if entry.mtime_ns is None else _local_time(entry.mtime_ns)
        return f"{mode} {self._size(entry.size):>12} {when:>19} {name}\n"

    def _size(self, size: int | None) -> str:
        from fastsync.cli.render import human_size

        if size is None:
            return "-"
        return human_size(size) if self._settings.human_readable else str(size)

    def _print_total(self) -> None:
        from fastsync.cli.render import json_line

        if self._settings.json:
            line = json_line(
                operation="summary",
                success=not self._exit_codes,
                files=self._files,
                size=self._bytes,
            )
            _write(line + "\n")
            return
        size = self._size(self._bytes) + ("" if self._settings.human_readable else " bytes")
        _write(f"Total: {self._files} files, {size}\n")


def _write(text: str) -> None:
    """Names go out with the bytes they came with, in UTF-8 whatever the locale."""
    sys.stdout.flush()
    out = sys.stdout.buffer
    out.write(text.encode("utf-8", "surrogateescape"))
    out.flush()


def _rfc3339(mtime_ns: int) -> str:
    seconds, fraction = divmod(mtime_ns, 1_000_000_000)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{stamp}.{fraction:09d}Z" if fraction else f"{stamp}Z"


def _local_time(mtime_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(mtime_ns // 1_000_000_000))
