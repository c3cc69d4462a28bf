"""Batch files: one `cp`, `sync`, `mv` or `rm` on each line, as they are written in a shell."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import IO, TYPE_CHECKING, Any, Final

import click

from fastsync.batch import Task
from fastsync.cli.options import read_from_stdin, request_for, resolved, rules_of
from fastsync.copying import run_cp, run_sync
from fastsync.errors import FastsyncError, UsageError
from fastsync.location import Location
from fastsync.registry import Registry
from fastsync.session import Request, located

if TYPE_CHECKING:
    from fastsync.tally import Summary

_LONGEST: Final = 256 << 10
# Words and their pieces as the shell has them (POSIX.1-2017, Shell Command Language, 2.2).
_BLANK: Final = " \t\r\n"
_PIECE: Final = re.compile(r"""[^ \t\r\n'"\\]++|\\.|'[^']*+'|"(?:[^"\\]|\\.)*+\"""", re.DOTALL)
_QUOTES: Final = frozenset("'\"\\")
_WORD: Final = re.compile(rf"[{_BLANK}]*+(?!#)((?:{_PIECE.pattern})++)", re.DOTALL)
_VERBS: Final = ("cp", "sync", "mv", "rm")
_PLACES: Final = ("sources", "source", "places", "destination")
# What is shown, and how, is for the whole batch.
_WHOLE: Final = (
    "dry_run",
    "verbose",
    "quiet",
    "json",
    "summarize",
    "human_readable",
    "color",
    "progress",
    "log_file",
    "log_level",
    "log_format",
)
_REFUSED: Final = ("explain", "interactive", "config")


def read_batch(file: IO[bytes], name: str, values: Mapping[str, Any], whole: Request) -> list[Task]:
    """The lines of a batch called `name`; `values` are the options that all of them have, `whole` is what
    was asked of the batch. Raises UsageError for the first line that is wrong."""
    file.seek(0)
    tasks: list[Task] = []
    reader = _Reader(values, whole)
    number = 0
    while line := file.readline(_LONGEST + 1):
        number += 1
        try:
            task = reader.task(number, line)
        except (FastsyncError, click.UsageError) as error:
            told = error.format_message() if isinstance(error, click.UsageError) else str(error)
            told = " ".join(told.split()).removesuffix(".")
            raise UsageError(
                told[:1].lower() + told[1:], where=f"{name}:{number}", hint="nothing was done"
            ) from error
        if task is not None:
            tasks.append(task)
    return tasks


class _Reader:
    def __init__(self, values: Mapping[str, Any], whole: Request) -> None:
        self._values = {name: value for name, value in values.items() if value not in (None, ())}
        self._whole = whole
        self._parsers: dict[str, tuple[click.Command, Any]] = {}
        self._requests: dict[tuple[str, str], Request] = {}
        self._known: dict[tuple[str, ...], Request] = {}  # by the words before the places
        self._registry = Registry.from_entry_points()
        self._schemes: set[str] = set()

    def task(self, number: int, line: bytes) -> Task | None:
        """What a line asks for; None for one without words. Raises UsageError, click's or ours."""
        if len(line) > _LONGEST:
            raise UsageError("the line is too long")
        text = line.decode("utf-8", "surrogateescape").rstrip("\r\n")
        if "\0" in text:
            raise UsageError("a NUL character in a line")
        words = split(text)
        if not words:
            return None
        verb, *arguments = words
        if verb not in _VERBS:
            raise UsageError(f"'{verb[:40]}' cannot be in a batch", hint=f"{', '.join(_VERBS)} can")
        request, places, destination = self._understood(verb, arguments)
        sources = [self._located(place) for place in places]
        target = None if destination is None else self._located(destination)
        start: Callable[[Request], Awaitable[Summary]]
        if target is None:
            from fastsync.removal import run_rm

            start = partial(run_rm, sources)
        elif verb == "sync":
            start = partial(run_sync, sources[0], target)
        elif verb == "mv":
            from fastsync.moving import run_mv

            start = partial(run_mv, sources, target)
        else:
            start = partial(run_cp, sources, target)
        return Task(number, text, verb, request, sources, target, start)

    def _understood(
        self, verb: str, arguments: list[str]
    ) -> tuple[Request, Sequence[str], str | None]:
        """The request, the sources and the destination of a line. Most lines of a batch have the options of
        the line before, and click takes long to see that."""
        count = 1 if verb == "rm" else 2
        places = arguments[-count:]
        key = (verb, *arguments[:-count])
        if len(places) == count and not any(place.startswith("-") for place in places):
            if (request := self._known.get(key)) is not None:
                return request, places[:1], None if verb == "rm" else places[1]
        command, parser = self._parser(verb)
        options, _, order = parser.parse_args(list(arguments))
        named = {key: options.pop(key) for key in _PLACES if key in options}
        signature = (verb, repr((sorted(options.items()), [each.name for each in order])))
        request = self._requests.get(signature)
        if request is None or _lacks_place(named):
            request = self._requests[signature] = self._request(command, verb, arguments)
        sources, destination = _named(named)
        if [*sources, *([] if destination is None else [destination])] == places:
            self._known[key] = request
        return request, sources, destination

    def _located(self, place: str) -> Location:
        location = located(place)
        if location.is_stream:
            raise UsageError("standard input and output cannot be in a batch")
        if location.scheme not in self._schemes:
            self._registry.load(location.scheme)  # raises UsageError for one that nobody serves
            self._schemes.add(location.scheme)
        return location

    def _parser(self, verb: str) -> tuple[click.Command, Any]:
        known = self._parsers.get(verb)
        if known is None:
            command: click.Command = getattr(importlib.import_module(f"fastsync.cli.{verb}"), verb)
            context = click.Context(command, info_name=verb, help_option_names=[])
            known = self._parsers[verb] = command, command.make_parser(context)
        return known

    def _request(self, command: click.Command, verb: str, arguments: list[str]) -> Request:
        with command.make_context(verb, list(arguments), help_option_names=[]) as context:
            values = context.params
            for name in _REFUSED:
                if values.get(name):
                    raise UsageError(f"--{name} cannot be in a batch")
            if values.get("dry_run") and not self._whole.settings.dry_run:
                # Its copies would be told, and counted, as done.
                raise UsageError(
                    "-n cannot be in a batch that is carried out", hint="run -n makes all of it dry"
                )
            for option in read_from_stdin(values):
                # The first line would get it, and the others nothing.
                raise UsageError(f"{option} - cannot be in a batch", hint="name a file")
            given = {name: value for name, value in values.items() if value not in (None, ())}
            settled = resolved({**values, **self._values, **given})
            request = request_for(settled, rules_of(context, values))
        asked = self._whole.settings
        kept = {name: getattr(asked, name) for name in _WHOLE}
        settings = dataclasses.replace(request.settings, **kept)
        return dataclasses.replace(request, settings=settings)


def _lacks_place(places: Mapping[str, Any]) -> bool:
    """True when a parse in full will say what is missing."""
    return not all(place and isinstance(place, str | tuple | list) for place in places.values())


def _named(places: Mapping[str, Any]) -> tuple[Sequence[str], str | None]:
    sources = places.get("sources") or places.get("places") or (places["source"],)
    return list(sources), places.get("destination")


def split(text: str) -> list[str]:
    """The words of a line with the quoting of a POSIX shell, where a comment begins with a word that begins
    with "#" (`shlex` takes "a#b" for a word and a comment). Raises UsageError."""
    words: list[str] = []
    position = 0
    while (match := _WORD.match(text, position)) is not None:
        word, position = match[1], match.end()
        if word[0] == word[-1] == "'" and word.count("'") == 2:
            word = word[1:-1]
        elif not _QUOTES.isdisjoint(word):
            word = "".join(map(_unquoted, _PIECE.finditer(word)))
        words.append(word)
    rest = text[position:].lstrip(_BLANK)
    if rest and not rest.startswith("#"):
        raise UsageError(
            "the quoting is wrong: no end of a quotation, or nothing after a backslash"
        )
    return words


def _unquoted(piece: re.Match[str]) -> str:
    text = piece[0]
    if text[0] == "'":
        return text[1:-1]
    if text[0] == '"':
        return re.sub(r'\\(["\\$`])', r"\1", text[1:-1])
    return text[1:] if text[0] == "\\" else text
