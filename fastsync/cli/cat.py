"""``fastsync cat``: write files to standard output, many ranges at once, in order."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from fastsync.cli.options import (
    LOG,
    MORE_NAMES,
    PLACES,
    WIRE,
    GroupedCommand,
    request_for,
    resolved,
    with_options,
)
from fastsync.cli.places import PLACE
from fastsync.errors import UsageError

if TYPE_CHECKING:
    from fastsync.tally import Summary

_NAMES = {
    **MORE_NAMES,
    "parallel_streams": ("-c", "--concurrency", "-p"),
    "chunk_size": ("--part-size",),
}

_EXAMPLES = """\b
Examples:
  fastsync cat notes.txt more.txt
  fastsync cat -c 16 s3://bucket/backup.tar | tar x
  fastsync cat 's3://bucket/logs/*.gz' | zcat
  fastsync cat --offset 1M --count 4K https://example.org/disk.img
"""


@click.command(cls=GroupedCommand, epilog=_EXAMPLES)
@click.argument("places", type=PLACE, nargs=-1, required=True, metavar="PLACE...")
@with_options(
    (
        "parallel_streams",
        "chunk_size",
        "bwlimit",
        *WIRE,
        "raw",
        "progress",
        "quiet",
        "verbose",
        *LOG,
        *PLACES,
    ),
    rules=False,
    more=_NAMES,
)
@click.option("--offset", metavar="SIZE", default="0", help="begin so far into each file")
@click.option("--count", metavar="SIZE", help="at the most so much of each file")
def cat(places: tuple[str, ...], offset: str, count: str | None, **values: Any) -> int:
    """Write files to standard output, one after the other, and nothing else.

    Their ranges are fetched many at a time and written in order; memory stays within a bound, and a slow
    reader slows the fetching down.
    """
    start = _bytes("--offset", offset)
    length = None if count is None else _bytes("--count", count)
    return write_out(places, values, offset=start, count=length)


def _bytes(option: str, text: str) -> int:
    from fastsync.values import parse_size

    try:
        return parse_size(text)
    except UsageError as error:
        raise UsageError(f"{option}: {error.message}", hint=error.hint) from error


def write_out(
    places: Sequence[str], values: Mapping[str, Any], *, offset: int = 0, count: int | None = None
) -> int:
    """Do it, for parameters of any verb; the exit code."""
    from dataclasses import replace

    from fastsync.cli.logs import observer_for
    from fastsync.cli.render import Console
    from fastsync.cli.run import Interrupted, run
    from fastsync.ordered import CAT_DEFAULTS, cat_settings, run_cat

    settled = resolved(values, CAT_DEFAULTS)
    # Standard output is taken, and a display in the middle of a text helps nobody.
    settings = replace(cat_settings(settled), json=False, summarize=False, dry_run=False)
    if settings.progress is None and sys.stdout.isatty():
        settings = replace(settings, progress=False)
    console = Console(settings)
    for note in settled.notes:
        console.note(note)
    sys.stdout.flush()
    summary: Summary | None = None
    with observer_for(settings, console) as observer:
        request = replace(request_for(settled, (), observer), settings=settings)
        work = run_cat(places, request, sys.stdout.fileno(), offset=offset, count=count)
        try:
            summary = run(work, console.interrupted)
        except Interrupted as interrupted:
            return interrupted.exit_code
        finally:
            console.close(summary)
    return summary.exit_code
