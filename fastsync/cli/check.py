"""``fastsync check``: what differs, without changing anything."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from fastsync.cli.options import (
    LOG,
    PLACES,
    WIRE,
    RuledCommand,
    request_for,
    resolved,
    rules_of,
    with_options,
)
from fastsync.cli.places import PLACE

if TYPE_CHECKING:
    from fastsync.checking import Checked, Finding

_OPTIONS = (
    "parallel_streams",
    "jobs",
    *WIRE,
    "checksum",
    "size_only",
    "modify_window",
    "raw",
    "files_from",
    "from0",
    "gitignore",
    "min_size",
    "max_size",
    "min_age",
    "max_age",
    "max_depth",
    "archive",
    "links",
    "verbose",
    "quiet",
    "json",
    "summarize",
    "manifest",
    *LOG,
    *PLACES,
    "source_region",
    "destination_region",
)

_EXAMPLES = """\b
Examples:
  fastsync check photos backup                 by size and time
  fastsync check --checksum photos s3://b/p    by digests, if any
  fastsync check --download photos s3://b/p    by reading both
  fastsync check --combined report.txt a b     every file with its mark
  fastsync sync --manifest list photos /mnt/photos
  fastsync check --manifest list /mnt/photos   without the source

Marks: = the same, + only in SRC, - only in DST, * different, ! error.
"""


@click.command(cls=RuledCommand, epilog=_EXAMPLES)
@click.argument("places", type=PLACE, nargs=-1, required=True, metavar="SRC DST")
@click.option("--download", is_flag=True, help="compare content by reading both sides")
@click.option("--combined", metavar="FILE", help="write every path with its mark to this file")
@with_options(_OPTIONS)
@click.pass_context
def check(
    context: click.Context,
    /,
    places: tuple[str, ...],
    download: bool,
    combined: str | None,
    **values: Any,
) -> int:
    """Compare SRC and DST as sync would, and tell what differs; with --manifest FILE compare the one
    place that is named with what the manifest says.

    Ends with 1 if something differs, with 4 if a file is not what its manifest says.
    """
    settled = resolved(values)
    rules = rules_of(context, values)
    settings = settled.settings

    from fastsync.checking import run_check, run_check_manifest
    from fastsync.cli.logs import logging_to
    from fastsync.cli.run import Interrupted, run
    from fastsync.errors import UsageError

    if len(places) != (1 if settings.manifest else 2):
        wanted = "one place with --manifest" if settings.manifest else "two places"
        raise UsageError(f"check compares {wanted}, not {len(places)}")
    with _output(combined) as report:
        teller = _Teller(report, as_json=settings.json, verbosity=settings.verbose)
        request = request_for(settled, rules)
        tells_same = combined is not None or settings.json or settings.verbose > 0
        if settings.manifest:
            work = run_check_manifest(
                settings.manifest, places[0], request, teller.tell, tells_same=tells_same
            )
        else:
            work = run_check(
                places[0], places[1], request, teller.tell, tells_same=tells_same, download=download
            )
        try:
            with contextlib.closing(work), logging_to(settings):
                checked = run(work, lambda: None)
        except Interrupted as interrupted:
            return interrupted.exit_code
    teller.finish(checked, summarize=settings.summarize)
    return checked.exit_code


@contextlib.contextmanager
def _output(combined: str | None) -> Iterator[int | None]:
    """The descriptor that --combined means."""
    if combined is None or combined == "-":
        yield None if combined is None else 1
        return
    from fastsync.errors import UsageError

    try:
        file = open(combined, "wb", buffering=0)  # noqa: SIM115 (closed below)
    except OSError as error:
        raise UsageError(f"it cannot be written: {error.strerror}", where=combined) from error
    with file:
        yield file.fileno()


class _Teller:
    def __init__(self, report: int | None, *, as_json: bool, verbosity: int) -> None:
        self._report = report
        self._json = as_json
        self._verbose = verbosity > 0

    def tell(self, finding: Finding) -> None:
        from fastsync.cli.render import json_line, shown, write_error
        from fastsync.names import printable
        from fastsync.redaction import redacted

        if self._report is not None:
            # Escaped: else a name with a newline in it could say that all is well with another.
            line = f"{finding.mark} {printable(finding.path)}\n"
            os.write(self._report, line.encode(errors="backslashreplace"))
        if self._json:
            sys.stdout.write(
                json_line(
                    operation="check",
                    success=finding.mark == "=",
                    mark=finding.mark,
                    path=finding.path,
                    reason=redacted(finding.reason),
                )
                + "\n"
            )
        elif finding.error is not None:
            write_error(f"fastsync: error: {shown(finding.error)}")
        elif self._report != 1 and (self._verbose or finding.mark != "="):
            line = f"{finding.mark} {printable(finding.path)} ({finding.reason})"
            sys.stdout.write(line + "\n")

    def finish(self, checked: Checked, *, summarize: bool) -> None:
        from fastsync.cli.render import json_line

        counts = checked.counts
        if self._json:
            told = json_line(
                operation="summary",
                success=checked.exit_code == 0,
                same=counts["="],
                only_in_source=counts["+"],
                only_in_destination=counts["-"],
                different=counts["*"],
                errors=counts["!"],
                comparison=checked.comparison,
                duration=f"{checked.duration_s:.3f}s",
                exit_code=checked.exit_code,
            )
            sys.stdout.write(told + "\n")
        elif summarize:
            sys.stdout.write(
                f"Same: {counts['=']} files\n"
                f"Only in the source: {counts['+']}\n"
                f"Only in the destination: {counts['-']}\n"
                f"Different: {counts['*']}\n"
                f"Errors: {counts['!']}\n"
                f"Total time: {checked.duration_s:.2f} s\n"
                f"Compared by: {checked.comparison}\n"
            )
