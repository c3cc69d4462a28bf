"""--log-file: the events of a run, kept in a file while the console shows them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastsync.cli.render import Console, item_json, shown
from fastsync.errors import UsageError
from fastsync.events import Item, Observer, Totals
from fastsync.names import printable
from fastsync.redaction import redacted
from fastsync.settings import Settings

if TYPE_CHECKING:
    import logging


class Logged:
    """Tells the console and a logger."""

    def __init__(self, console: Console, logger: logging.Logger, *, as_json: bool) -> None:
        self._console = console
        self._logger = logger
        self._as_json = as_json
        self.wants_items = console.wants_items or logger.isEnabledFor(20)
        self.wants_skips = console.wants_skips or logger.isEnabledFor(10)

    def item(self, item: Item) -> None:
        level = 40 if item.error is not None else 10 if item.operation == "skip" else 20
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s", item_json(item) if self._as_json else _line(item))
        if item.error is not None or (
            self._console.wants_skips if item.operation == "skip" else self._console.wants_items
        ):
            self._console.item(item)

    def note(self, text: str) -> None:
        text = redacted(text)
        import json

        note = json.dumps({"note": text}) if self._as_json else printable(text)
        self._logger.warning("%s", note)
        self._console.note(text)

    def progress(self, totals: Totals) -> None:
        self._console.progress(totals)


def _line(item: Item) -> str:
    places = " -> ".join(printable(place) for place in (item.source, item.destination) if place)
    why = shown(item.error) if item.error is not None else item.reason
    return f"{item.operation} {places}: {why}"


@contextlib.contextmanager
def observer_for(settings: Settings, console: Console) -> Iterator[Observer]:
    """The console, joined by a log where the settings ask for one. Raises UsageError."""
    if settings.log_file is None:
        yield console
        return
    import logging

    try:
        handler = logging.FileHandler(
            settings.log_file, encoding="utf-8", errors="backslashreplace"
        )
    except OSError as error:
        raise UsageError(
            f"the log cannot be written: {error.strerror}", where=settings.log_file
        ) from error
    as_json = settings.log_format == "json"
    # Events bring their own JSON; the rest of the object is written around it.
    form = '{"time": "%(asctime)s", "level": "%(levelname)s", "event": %(message)s}'
    formatter = logging.Formatter(form if as_json else "%(asctime)s %(levelname)s %(message)s")
    formatter.converter = time.gmtime
    formatter.default_time_format = "%Y-%m-%dT%H:%M:%S"
    formatter.default_msec_format = "%s.%03dZ"
    handler.setFormatter(formatter)
    logger = logging.getLogger("fastsync.run")
    logger.propagate = False
    logger.setLevel(settings.log_level.upper())
    logger.addHandler(handler)
    try:
        yield Logged(console, logger, as_json=as_json)
    finally:
        logger.removeHandler(handler)
        handler.close()
