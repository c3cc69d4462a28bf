"""The configuration file and the presets: read with care, checked against the table of settings.

A file that others may write is refused. Whatever is wrong with the rest is told at once, each with its
line, and where a name is not known with the nearest that is.

The checks run in pydantic's core, fed from the table. Going through pydantic's models would check no
more and take 120 ms instead of 30, in every run that has a configuration file.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic_core import PydanticCustomError, SchemaValidator, ValidationError
from pydantic_core import core_schema as schema

from fastsync.errors import ConfigError, UsageError
from fastsync.location import LOCAL_SCHEME, parse
from fastsync.settings import SETTINGS, is_secret
from fastsync.trust import mistrust
from fastsync.values import MIB, TEXT, meant, size_text, toml_name

_LARGEST_FILE: Final = MIB
_USERINFO = re.compile(r"://.*@", re.DOTALL)
_FILTERS: Final = ("include", "exclude", "filter", "files_from", "include_from", "exclude_from")


@dataclass(frozen=True, slots=True)
class UserFile:
    """A configuration file, read and checked; settings have their effective values.

    `settings` and `profile` are what [global] says.
    """

    path: Path
    settings: Mapping[str, object]
    profile: str | None
    profiles: Mapping[str, Mapping[str, object]]
    places: Mapping[str, Mapping[str, str]] = field(repr=False)
    notes: tuple[str, ...] = ()


def read(path: Path) -> UserFile:
    """The user's configuration at `path`. Raises ConfigError."""
    text, others_can_read = _read_own(path)
    content = _check(path, text, _user_file())
    settings: dict[str, Any] = content.get("global", {})
    places: dict[str, dict[str, str]] = content.get("places", {})
    notes: tuple[str, ...] = ()
    if others_can_read and any(is_secret(key) for place in places.values() for key in place):
        notes = (f"{path} holds secrets and others can read it (chmod go-r {path})",)
    profile = settings.pop("profile", None)
    return UserFile(path, settings, profile, content.get("profiles", {}), places, notes)


def read_preset(path: Path) -> dict[str, object]:
    """What a preset sets: a file of settings without a table around them. Raises ConfigError."""
    return _check(path, _decode(path, path.read_bytes()), _settings())


def _read_own(path: Path) -> tuple[str, bool]:
    """The text of a file that nobody else can write, and whether others can read it."""
    try:
        with open(path, "rb") as stream:
            # Judge what was opened: the name may mean another file by now.
            status = os.fstat(stream.fileno())
            if (wrong := mistrust(str(path), stream.fileno())) is not None:
                raise ConfigError(f"the configuration: {wrong[0]}", where=str(path), hint=wrong[1])
            data = stream.read(_LARGEST_FILE + 1)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        reason = "no such file" if missing else (error.strerror or str(error)).lower()
        raise ConfigError(f"cannot read the configuration: {reason}", where=str(path)) from error
    if len(data) > _LARGEST_FILE:
        raise ConfigError(
            f"a configuration is not larger than {size_text(_LARGEST_FILE)}", where=str(path)
        )
    return _decode(path, data), bool(status.st_mode & (stat.S_IRGRP | stat.S_IROTH))


def _decode(path: Path, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"line {line} is not UTF-8", where=str(path)) from error


def _check(path: Path, text: str, validator: SchemaValidator) -> dict[str, Any]:
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number or a list beyond all measure
        raise ConfigError(f"not TOML: {_uncapitalized(str(error))}", where=str(path)) from error
    try:
        checked: dict[str, Any] = validator.validate_python(content)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        told = [_explain(text, fault["type"], fault["loc"], fault["msg"]) for fault in faults]
        told.sort(key=lambda fault: fault.line or 0)
        # Not `from error`: its text quotes the values, and some of them may be secrets.
        told.sort(key=lambda fault: fault.line or 0)
        raise ConfigError("; ".join(map(str, told)), where=str(path)) from None
    return checked


def _uncapitalized(text: str) -> str:
    return text[:1].lower() + text[1:]


# -- what a file may say ------------------------------------------------------------------------------


def _checked(read: Callable[[Any], object]) -> Callable[[Any], object]:
    """`read`, with its error in the form that pydantic gathers."""

    def check(value: Any) -> object:
        try:
            return read(value)
        except UsageError as error:
            raise PydanticCustomError("value", "{reason}", {"reason": str(error)}) from None

    return check


def _value(read: Callable[[Any], object]) -> schema.CoreSchema:
    return schema.no_info_plain_validator_function(_checked(read))


def _table(columns: Mapping[str, schema.CoreSchema]) -> schema.CoreSchema:
    """A table in which every key is one of `columns` and none is required."""
    return schema.typed_dict_schema(
        {name: schema.typed_dict_field(each, required=False) for name, each in columns.items()},
        extra_behavior="forbid",
        strict=True,
    )


def _setting_columns() -> dict[str, schema.CoreSchema]:
    return {name: _value(setting.kind.from_toml) for name, setting in SETTINGS.items()}


def _settings() -> SchemaValidator:
    return SchemaValidator(_table(_setting_columns()))


def _user_file() -> SchemaValidator:
    columns = _setting_columns()
    place = schema.dict_schema(schema.str_schema(), _value(_place_value), strict=True)
    tables = {
        "global": _table({**columns, "profile": _value(TEXT.from_toml)}),
        "profiles": schema.dict_schema(schema.str_schema(), _table(columns), strict=True),
        "places": schema.dict_schema(_value(_place_key), place, strict=True),
    }
    return SchemaValidator(_table(tables))


def _place_key(key: str) -> str:
    location = parse(key)
    if location.password is not None:
        raise UsageError("a password does not belong in a name", hint="make it a key of the table")
    if location.is_stream or (
        location.scheme == LOCAL_SCHEME and not location.path.startswith("/")
    ):
        raise UsageError("this is neither a URL nor an absolute path")
    return key


def _place_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise UsageError(f"{toml_name(value)} is not text, a number, true or false")


# -- what is wrong with it ----------------------------------------------------------------------------


class _Fault(NamedTuple):
    line: int | None
    text: str

    def __str__(self) -> str:
        return self.text if self.line is None else f"line {self.line}: {self.text}"


def _explain(text: str, fault: str, loc: tuple[int | str, ...], message: str) -> _Fault:
    """One fault in one phrase. `loc` is the path of keys, with "[key]" behind a faulty key."""
    keys = [str(part) for part in loc if part != "[key]"]
    table, name = keys[:-1], keys[-1]
    inside = f"[{'.'.join(_shown(part) for part in table)}] " if table else ""
    what = inside + _shown(name)
    if fault == "extra_forbidden":
        told = f"{what} {_unknown(table, name)}"
    elif fault in ("dict_type", "typed_dict_type"):
        told = f"{what} must be a table"
    else:
        told = f"{what}: {message}"
    return _Fault(_line_of(text, keys), told)


def _shown(key: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_-]+", key):
        return key
    return f'"{_USERINFO.sub("://***@", key)}"'


def _unknown(table: list[str], name: str) -> str:
    if not table and name in SETTINGS:
        return "must stand below [global]"
    if not table:
        tables = ("global", "profiles", "places")
        return (
            f"is not known{meant(name, tables)} (there is [global], [profiles.NAME], [places.URL])"
        )
    plain = name.replace("-", "_")
    if plain in _FILTERS:
        return "is for the command line only, where the order of filters counts"
    for setting in SETTINGS.values():
        if plain in (setting.name, (setting.flag or "").removeprefix("--").replace("-", "_")):
            return f"is not a setting, did you mean {setting.name}?"
    known = (*SETTINGS, "profile") if table == ["global"] else SETTINGS
    return f"is not a setting{meant(plain, known) or '; `fastsync config show` lists them'}"


def _line_of(text: str, keys: list[str]) -> int | None:
    """The line on which `keys` are set, as far as it shows line by line; None when it does not."""
    table: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        path = _keys_of(line)
        if path is None:
            continue
        if line.lstrip().startswith("["):
            table = path
            path = []
        if [*table, *path][: len(keys)] == keys:
            return number
    return None


def _keys_of(line: str) -> list[str] | None:
    """The path of keys that a line alone sets, the first of an inline table; None when it is not one."""
    left, equals, _ = line.partition("=")
    header = line.lstrip().startswith("[")
    try:
        content: Any = tomllib.loads(line if header else f"{left}= 0") if header or equals else None
    except tomllib.TOMLDecodeError:
        return None
    path: list[str] = []
    while isinstance(content, dict) and content:
        key, content = next(iter(content.items()))
        path.append(key)
    return path or None
