"""What a run looks like: lines and a summary for people, JSON lines for programs, a progress display.

Results go to stdout, everything else to stderr. Every name is escaped (`printable`); JSON escapes by
itself and keeps names that are not UTF-8 in a ``_bytes`` twin (base64).
"""

from __future__ import annotations

import binascii
import os
import sys
import time
from typing import Any, Final, TextIO

from fastsync import log
from fastsync.errors import FastsyncError
from fastsync.events import RENAMED, UNFINISHED_DOWNLOAD, UNFINISHED_UPLOAD, Item, Totals
from fastsync.names import printable
from fastsync.redaction import redacted
from fastsync.settings import Settings
from fastsync.tally import Summary

_COMPARISONS: Final = {
    "mtime": "size and time",
    "checksum": "checksum",
    "size": "size only",
    "newer": "size, and newer than the copy (a side keeps no times)",
}
_DONE: Final = {
    "copy": "copied",
    "mkdir": "made",
    "link": "linked",
    "attributes": "set attributes of",
    "delete": "deleted",
    "skip": "skipped",
    "scan": "listed",
}


def human_size(size: float) -> str:
    """``1.2 MiB``: three significant digits at the most, IEC units."""
    if size < 1024:
        return f"{size:.0f} B"
    unit = 0
    while size >= 999.5 and unit < 5:
        size /= 1024
        unit += 1
    digits = 2 if size < 9.995 else 1 if size < 99.95 else 0
    return f"{size:.{digits}f} {' KMGTP'[unit]}iB"


def human_time(seconds: float) -> str:
    """``3.2 s``, ``4:05``, ``1:02:03``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def json_line(**fields: Any) -> str:
    """One JSON object; text that is not UTF-8 is escaped, with its exact bytes in a twin field."""
    import json  # 2 ms

    line: dict[str, Any] = {}
    for name, value in fields.items():
        if value is None:
            continue
        if isinstance(value, str) and not _is_utf8(value):
            line[name] = os.fsencode(value).decode(errors="replace")
            line[f"{name}_bytes"] = binascii.b2a_base64(os.fsencode(value), newline=False).decode()
        else:
            line[name] = value
    return json.dumps(line, ensure_ascii=True)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(error: FastsyncError) -> str:
    """An error as a terminal or a log may have it."""
    return printable(redacted(str(error)))


def item_json(item: Item) -> str:
    """The line of one item; see docs/OUTPUT.md."""
    return json_line(
        operation=item.operation,
        success=item.error is None,
        source=item.source or None,
        destination=item.destination or None,
        size=item.size,
        duration=f"{item.duration_s:.3f}s",
        reason=item.reason or None,
        error=shown(item.error) if item.error is not None else None,
        line=item.line,
    )


def summary_json(summary: Summary) -> str:
    """The last line of a run; see docs/OUTPUT.md."""
    totals = summary.totals
    return json_line(
        operation="summary",
        success=summary.exit_code == 0,
        copied=totals.files_copied,
        verified=totals.files_verified,
        unverified=totals.files_unverified,
        skipped=totals.files_skipped,
        deleted=totals.deleted,
        failed=totals.failed,
        size=totals.bytes_copied,
        bytes_sent=totals.bytes_done,
        bytes_full_copy=totals.bytes_copied + totals.bytes_skipped,
        directories=totals.directories_made,
        links=totals.links_made,
        attributes=totals.attributes_set,
        specials_skipped=totals.specials_skipped,
        retries=totals.retries,
        duration=f"{summary.duration_s:.3f}s",
        comparison=summary.comparison or None,
        kept=summary.kept,
        exit_code=summary.exit_code,
    )


def summary_lines(summary: Summary, *, human: bool, is_dry: bool) -> list[str]:
    """What --summarize prints."""
    totals = summary.totals

    def size(value: int) -> str:
        return human_size(value) if human else f"{value} bytes"

    speed = totals.bytes_copied / 1e6 / summary.duration_s if summary.duration_s else 0.0
    if is_dry:
        speed = 0.0
    lines = [
        f"Copied: {totals.files_copied} files, {size(totals.bytes_copied)}",
        f"Skipped: {totals.files_skipped} files (already exist)",
        f"Deleted: {totals.deleted} files",
        f"Failed: {totals.failed} files",
        f"Verified: {totals.files_verified} files, unverified: {totals.files_unverified} files",
        f"Total time: {summary.duration_s:.2f} s",
        f"Average speed: {speed:.2f} MB/s",
    ]
    if summary.comparison:
        lines.append(f"Compared by: {_COMPARISONS.get(summary.comparison, summary.comparison)}")
    full = totals.bytes_copied + totals.bytes_skipped
    lines.append(f"Bytes sent: {size(totals.bytes_done)} of {size(full)} for a full copy")
    if totals.specials_skipped:
        lines.append(f"Left out: {totals.specials_skipped} links, devices, pipes or sockets")
    return lines


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def intentions(summary: Summary) -> str | None:
    """What a dry run found to do, in a line; None for nothing."""
    totals = summary.totals
    made = totals.directories_made + totals.links_made
    parts = [
        (
            totals.files_copied,
            f"copy {_counted(totals.files_copied, 'file')} ({human_size(totals.bytes_copied)})",
        ),
        (made, f"make {made:,} directories and links"),
        (totals.attributes_set, f"set attributes of {totals.attributes_set:,}"),
        (totals.deleted, f"delete {totals.deleted:,}"),
    ]
    told = ", ".join(text for count, text in parts if count)
    return f"This would {told}." if told else None


class Console:
    """The observer of a command: see `fastsync.events.Observer`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._json = settings.json
        self.wants_items = settings.json or settings.dry_run or settings.verbose > 0
        self.wants_skips = settings.verbose > 1
        self._display = _display(settings)

    def item(self, item: Item) -> None:
        if self._json:
            self._out(item_json(item))
        elif item.error is not None:
            self.error(item.error)
        elif self._settings.dry_run:
            self._out(f"would {_intent(item)}")
        elif self._settings.verbose:
            self.say(_told(item))

    def prints(self, item: Item) -> bool:
        """True if the item's line goes to stdout."""
        return self._json or (self._settings.dry_run and item.error is None)

    def note(self, text: str) -> None:
        if not self._settings.quiet or text.startswith("not deleting"):
            self.say(f"fastsync: {printable(redacted(text))}")

    def error(self, error: FastsyncError) -> None:
        self.say(f"fastsync: error: {shown(error)}")

    def progress(self, totals: Totals) -> None:
        if self._display is not None:
            self._display.show(totals)

    def interrupted(self) -> None:
        """A signal came: say so before the clean-up."""
        self.close()
        self.say("fastsync: interrupted, cleaning up (once more to stop at once)")

    def finish(self, summary: Summary) -> None:
        """The end of a run that was not interrupted."""
        self.close(summary)
        if self._json:
            self._out(summary_json(summary))
        elif self._settings.summarize:
            settings = self._settings
            human, is_dry = settings.human_readable, settings.dry_run
            for line in summary_lines(summary, human=human, is_dry=is_dry):
                self._out(line)

    def close(self, summary: Summary | None = None) -> None:
        """Take the display away. Idempotent."""
        display, self._display = self._display, None
        if display is not None:
            display.close(summary)

    def _out(self, line: str) -> None:
        if self._display is not None and sys.stdout.isatty():
            self._display.clear()
        sys.stdout.write(line + "\n")

    def say(self, line: str) -> None:
        """One line on stderr, with the display out of its way."""
        if self._display is not None:
            self._display.clear()
        write_error(line)


def write_error(line: str) -> None:
    """One line on stderr; a closed stderr is nobody's problem."""
    try:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    except (OSError, AttributeError, ValueError):
        pass


def tell(error: FastsyncError, *, as_json: bool = False) -> int:
    """Say what went wrong with one of several places; its exit code."""
    if as_json:
        write_text(error_json(str(error), error.exit_code) + "\n")
    elif sys.stdout is not None:
        sys.stdout.flush()
    log.tell(log.ERROR, "error", said=str(error), exit_code=error.exit_code)
    write_error(f"fastsync: error: {shown(error)}")
    return error.exit_code


def error_json(told: str, exit_code: int) -> str:
    """Why a command, or one of its places, could not be carried out, for programs."""
    error = redacted(told)
    return json_line(operation="error", success=False, error=error, exit_code=exit_code)


def write_text(text: str) -> None:
    """Names go out with the bytes they came with, in UTF-8 whatever the locale."""
    sys.stdout.flush()
    out = sys.stdout.buffer
    out.write(text.encode("utf-8", "surrogateescape"))
    out.flush()


def rfc3339(time_ns: int) -> str:
    """A moment in UTC, with a fraction if it has one."""
    seconds, fraction = divmod(time_ns, 1_000_000_000)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{stamp}.{fraction:09d}Z" if fraction else f"{stamp}Z"


def local_time(time_ns: int | None) -> str:
    """A moment as people here write it, "-" for an unknown one."""
    if time_ns is None:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_ns // 1_000_000_000))


_UNFINISHED: Final = frozenset({UNFINISHED_DOWNLOAD, UNFINISHED_UPLOAD})


def _told(item: Item) -> str:
    name = item.destination or item.source
    if item.reason == RENAMED:
        return f"renamed {printable(name)}"
    if item.reason in _UNFINISHED:
        return f"dropped {printable(name)} ({item.reason})"  # what has that name itself stays
    size = f" ({human_size(item.size)})" if item.operation == "copy" and item.size else ""
    reason = f": {item.reason}" if item.operation == "skip" else ""
    return f"{_DONE[item.operation]} {printable(name)}{size}{reason}"


def _intent(item: Item) -> str:
    if item.reason == RENAMED:
        return f"rename {printable(item.source)} -> {printable(item.destination)}"
    if item.reason in _UNFINISHED:
        return f"drop {printable(item.destination)} ({item.reason})"
    verb = {"mkdir": "make", "attributes": "set attributes of"}.get(item.operation, item.operation)
    arrow = f"{printable(item.source)} -> " if item.operation in ("copy", "link") else ""
    size = (
        f", {human_size(item.size)}" if item.operation == "copy" and item.size is not None else ""
    )
    return f"{verb} {arrow}{printable(item.destination)} ({item.reason}{size})"


def _display(settings: Settings) -> Display | Lines | None:
    wanted = settings.progress
    if settings.quiet or wanted is False or (wanted is None and settings.json):
        return None
    try:
        terminal = sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
    except (AttributeError, ValueError):
        return None
    if terminal:
        return Display(settings)
    return Lines() if wanted else None


class _Rate:
    """Bytes per second over the last seconds."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, int]] = [(time.monotonic(), 0)]

    def add(self, done: int) -> float:
        now = time.monotonic()
        self._samples.append((now, done))
        while len(self._samples) > 2 and self._samples[1][0] < now - 5:
            self._samples.pop(0)
        then, before = self._samples[0]
        return (done - before) / (now - then) if now > then else 0.0


def status(totals: Totals, rate: float) -> str:
    """The line of numbers: how far, how fast, how long still; a total only once it is known."""
    done = f"{totals.files_copied:,}"
    if totals.scanning:
        return (
            f"scanning: {totals.scanned:,} entries  copied {done} files, "
            f"{human_size(totals.bytes_done)}  {human_size(rate)}/s"
        )
    moved = min(totals.bytes_done, totals.planned_bytes)
    left = totals.planned_bytes - moved
    percent = 100 * moved // totals.planned_bytes if totals.planned_bytes else 100
    eta = f"  ETA {human_time(left / rate)}" if left and rate > 0 else ""
    failed = f"  {totals.failed:,} failed" if totals.failed else ""
    return (
        f"{percent:3d}%  {human_size(moved)} of {human_size(totals.planned_bytes)}  "
        f"{done} of {totals.planned_files:,} files  {human_size(rate)}/s{eta}{failed}"
    )


def _closing(summary: Summary) -> str:
    totals = summary.totals
    files = "file" if totals.files_copied == 1 else "files"
    parts = [f"{totals.files_copied:,} {files} copied, {human_size(totals.bytes_copied)}"]
    if totals.files_skipped:
        parts.append(f"{totals.files_skipped:,} up to date")
    if totals.deleted:
        parts.append(f"{totals.deleted:,} deleted")
    if totals.failed:
        parts.append(f"{totals.failed:,} failed")
    speed = totals.bytes_copied / summary.duration_s if summary.duration_s else 0.0
    rate = f" ({human_size(speed)}/s)" if totals.bytes_copied else ""
    return f"{', '.join(parts)} in {human_time(summary.duration_s)}{rate}"


class Lines:
    """Progress off the terminal: a plain line every few seconds."""

    EVERY_S: Final = 5.0

    def __init__(self) -> None:
        self._rate = _Rate()
        self._next = time.monotonic() + self.EVERY_S

    def show(self, totals: Totals) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self.EVERY_S
            write_error(status(totals, self._rate.add(totals.bytes_done)))

    def clear(self) -> None:
        """Nothing is in the way of other lines."""

    def close(self, summary: Summary | None) -> None:
        if summary is not None:
            write_error(_closing(summary))


class Display:
    """Progress on a terminal: numbers, a bar, and the large files under way; redrawn 8 times a second.

    rich is imported when there is something to show for longer than a moment.
    """

    SHOWN_FILES: Final = 8
    AFTER_S: Final = 0.3

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._rate = _Rate()
        self._started = time.monotonic()
        self._live: Any = None
        self._console: Any = None

    def show(self, totals: Totals) -> None:
        rate = self._rate.add(totals.bytes_done)
        if time.monotonic() - self._started < self.AFTER_S:
            return
        if self._live is None:
            self._start()
        self._live.update(self._draw(totals, rate), refresh=True)

    def _start(self) -> None:
        from rich.console import Console as RichConsole
        from rich.live import Live

        color = self._settings.color
        self._console = RichConsole(
            stderr=True,
            markup=False,
            highlight=False,
            no_color={"never": True, "always": False}.get(color),  # else NO_COLOR decides
            force_terminal=True if color == "always" else None,
        )
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def _draw(self, totals: Totals, rate: float) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        rows: list[Any] = [Text(status(totals, rate), no_wrap=True, overflow="ellipsis")]
        width = min(self._console.width, 100)
        if totals.scanning:
            rows.append(ProgressBar(total=None, width=width, pulse=True))
        else:
            done = min(totals.bytes_done, totals.planned_bytes)
            total = max(1, totals.planned_bytes)
            rows.append(
                ProgressBar(total=total, completed=done or total * (not total), width=width)
            )
        # Other tasks change the table while it is drawn only between awaits: this is one moment.
        for path, size in list(totals.current.items())[: self.SHOWN_FILES]:
            line = f"  {human_size(size):>9}  {printable(path)}"
            rows.append(Text(line, style="dim", no_wrap=True, overflow="ellipsis"))
        grid = Table.grid()
        for row in rows:
            grid.add_row(row)
        return grid

    def clear(self) -> None:
        """Make room for a line; the next tick draws again."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def close(self, summary: Summary | None) -> None:
        self.clear()
        if summary is not None and self._settings.progress is not False:
            write_error(_closing(summary))


def open_output() -> TextIO:
    """Standard output, set up for names that are no UTF-8."""
    out = sys.stdout
    if hasattr(out, "reconfigure"):
        out.reconfigure(errors="backslashreplace")
    return out
