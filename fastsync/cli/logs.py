"""The log of a run, in a file or on stderr: its items, and what it tells as it does them (`fastsync.log`).

Every line goes through one filter: secrets are taken out and whatever could act on a terminal is escaped.
What libraries log goes the same way, so that none of it reaches stderr by a way of its own.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from fastsync import log
from fastsync.cli.render import item_json, json_line, shown, write_error
from fastsync.errors import FastsyncError, UsageError, from_os_error
from fastsync.events import Item, Observer, Totals
from fastsync.names import printable
from fastsync.redaction import redacted
from fastsync.settings import Settings

if TYPE_CHECKING:
    import logging

    from fastsync.cli.render import Console
    from fastsync.log import Fact

_LEVELS: Final = {
    "error": log.ERROR,
    "warning": log.WARNING,
    "info": log.INFO,
    "debug": log.DEBUG,
    "trace": log.TRACE,
}
_NAMES: Final = {number: name.upper() for name, number in _LEVELS.items()}
# asyncssh tells of logins and channels, and nothing secret up to its first level; what the others say below a
# warning is signatures in the making.
_TALKATIVE: Final = "asyncssh"
_QUOTED: Final = frozenset(" \t\"'=")


class Log:
    """Where lines go: `put` gets each one, without its end."""

    def __init__(self, put: Callable[[str], None], level: int, *, as_json: bool) -> None:
        self._put = put
        self.level = level
        self._as_json = as_json
        self._lock = threading.Lock()
        self._is_broken = False

    def item(self, item: Item) -> None:
        level = log.ERROR if item.error is not None else log.INFO
        if item.operation == "skip":
            level = log.DEBUG
        if level >= self.level:
            self._write(level, item_json(item) if self._as_json else _line(item))

    def note(self, text: str, level: int = log.WARNING) -> None:
        """A line of text."""
        if level >= self.level:
            text = redacted(text)
            self._write(level, json_line(note=text) if self._as_json else printable(text))

    def fact(self, level: int, what: str, facts: dict[str, Fact]) -> None:
        """See `fastsync.log.Sink`."""
        told = {
            name: redacted(fact) if isinstance(fact, str) else fact
            for name, fact in facts.items()
            if fact is not None
        }
        if self._as_json:
            self._write(level, json_line(operation=what, **told))
        else:
            words = (f"{name}={_word(fact)}" for name, fact in told.items())
            self._write(level, " ".join((what, *words)))

    def _write(self, level: int, text: str) -> None:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        stamp = f"{stamp}.{int(now % 1 * 1000):03d}Z"
        name = _NAMES.get(level, "INFO")
        if self._as_json:
            # Events are JSON already; the rest of the object is written around them.
            line = f'{{"time": "{stamp}", "level": "{name}", "event": {text}}}'
        else:
            line = f"{stamp} {name} {text}"
        with self._lock:
            if self._is_broken:
                return
            try:
                self._put(line)
            except OSError as error:  # a log is no reason not to copy
                self._is_broken = True
                told = from_os_error(error).message
                write_error(f"fastsync: the log cannot be written on: {told}")


class Logged:
    """Tells a log, and the observer that shows a run. What that one would put on stderr is not said twice
    where the log is there (`replaces`)."""

    def __init__(self, observer: Observer, kept: Log, replaces: Console | None) -> None:
        self._observer = observer
        self._log = kept
        self._replaces = replaces
        self.wants_items = observer.wants_items or kept.level <= log.INFO
        self.wants_skips = observer.wants_skips or kept.level <= log.DEBUG

    def item(self, item: Item) -> None:
        self._log.item(item)
        wants = (
            self._observer.wants_skips if item.operation == "skip" else self._observer.wants_items
        )
        if self._replaces is not None and not self._replaces.prints(item):
            return
        if item.error is not None or wants:
            self._observer.item(item)

    def note(self, text: str) -> None:
        self._log.note(text)
        if self._replaces is None or self._log.level > log.WARNING:
            self._observer.note(text)

    def progress(self, totals: Totals) -> None:
        self._observer.progress(totals)


def _line(item: Item) -> str:
    places = " -> ".join(printable(place) for place in (item.source, item.destination) if place)
    why = shown(item.error) if item.error is not None else item.reason
    return f"{item.operation} {places}: {why}"


def _word(fact: Fact) -> str:
    """A value, in quotes if it would not be one word else."""
    if isinstance(fact, float):
        return f"{fact:.6f}".rstrip("0").rstrip(".")
    text = printable(str(fact))
    if not text or not _QUOTED.isdisjoint(text):
        return '"' + text.replace('"', r"\"") + '"'
    return text


@contextlib.contextmanager
def observer_for(settings: Settings, console: Console) -> Iterator[Observer]:
    """The console, joined by a log where the settings ask for one. Raises UsageError."""
    with logging_to(settings, console.say) as kept:
        if kept is None:
            yield console
        else:
            yield Logged(console, kept, console if settings.log_file is None else None)


@contextlib.contextmanager
def logging_to(
    settings: Settings, say: Callable[[str], None] = write_error
) -> Iterator[Log | None]:
    """Open the log that the settings ask for, if they do, and have everybody tell it; without a file, `say`
    gets its lines. Raises UsageError."""
    if settings.log_file is None and settings.log_level is None:
        yield None
        return
    level = _LEVELS[settings.log_level or "info"]
    with contextlib.ExitStack() as stack:
        if settings.log_file is not None:
            say = stack.enter_context(_appending(settings.log_file))
        kept = Log(say, level, as_json=settings.log_format == "json")
        log.listen(level, kept.fact)
        stack.callback(log.hush)
        try:
            yield kept
        except BaseException as error:
            ours = isinstance(error, FastsyncError)
            kept.note(str(error) if ours else f"{type(error).__name__}: {error}", log.ERROR)
            raise


@contextlib.contextmanager
def _appending(path: str) -> Iterator[Callable[[str], None]]:
    """Append lines to a file, each in one piece, so that several processes may do so."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    try:
        # A pipe that nobody reads would hold up the run before it begins.
        fd = os.open(path, flags | os.O_NONBLOCK, 0o666)
        os.set_blocking(fd, True)
    except OSError as error:
        raise UsageError(
            f"the log cannot be written: {from_os_error(error).message}", where=path
        ) from error

    def put(line: str) -> None:
        left = memoryview((line + "\n").encode("utf-8", "backslashreplace"))
        while left:
            left = left[os.write(fd, left) :]

    try:
        yield put
    finally:
        os.close(fd)


@contextlib.contextmanager
def libraries_filtered() -> Iterator[None]:
    """Have libraries say what they log, warnings and worse, through the filter: to the log, if there is one,
    else to stderr; and what nobody catches in a thread or a destructor. Only for a process that is ours, and
    imports `logging` anyway."""
    import logging

    class Filtered(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with contextlib.suppress(Exception):  # a line of a log is no reason to fail
                text = self.format(record) if _shows_tracebacks() else _brief(record)
                _tell_library(record.name, record.levelno, text)

    root, talkative = logging.getLogger(), logging.getLogger(_TALKATIVE)
    before = root.level, talkative.level
    hooks = threading.excepthook, sys.unraisablehook
    threading.excepthook = sys.unraisablehook = _tell_uncaught
    handler = Filtered()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    talkative.setLevel(logging.DEBUG if log.level <= log.TRACE else logging.WARNING)
    try:
        yield
    finally:
        root.removeHandler(handler)
        threading.excepthook, sys.unraisablehook = hooks
        root.setLevel(before[0])
        talkative.setLevel(before[1])


def _tell_library(name: str, level: int, text: str) -> None:
    if log.level <= log.ERROR:  # somebody listens
        at = log.TRACE if level < log.WARNING else log.WARNING
        log.tell(at, "library", name=name, said=text)
    else:
        for line in redacted(text).splitlines():
            write_error(f"fastsync: {name}: {printable(line)}")


def _tell_uncaught(uncaught: threading.ExceptHookArgs | sys.UnraisableHookArgs) -> None:
    text = f"{uncaught.exc_type.__name__}: {uncaught.exc_value}"
    if _shows_tracebacks() and uncaught.exc_value is not None:
        import traceback

        text = "".join(traceback.format_exception(uncaught.exc_value))
    _tell_library("uncaught", log.ERROR, text)


def _shows_tracebacks() -> bool:
    return bool(os.environ.get("FASTSYNC_TRACEBACK"))


def _brief(record: logging.LogRecord) -> str:
    """What was said, and the error that it was about, without its traceback."""
    text = record.getMessage()
    error = record.exc_info[1] if record.exc_info else None
    return text if error is None else f"{text} ({type(error).__name__}: {error})"
