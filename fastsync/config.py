"""Which value of a setting counts: the one place where flags, environment, profile and file meet.

    flag  >  FASTSYNC_<OPTION>  >  profile  >  [global]  >  built-in

`fastsync.settings` has the table of what can be set. Nothing is read from the current directory, and
nothing from a file that others may write. Resolving without a file or a profile loads neither pydantic
nor a TOML parser: those come with `fastsync.userfile`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastsync.errors import ConfigError, UsageError
from fastsync.location import Location, parse
from fastsync.settings import SETTINGS, Setting, Settings, Side
from fastsync.values import (
    MaxDelete,
    meant,
    nearest,
    parse_duration,
    parse_max_delete,
    parse_size,
    size_text,
)

if TYPE_CHECKING:
    from pathlib import Path  # 4 ms, for runs that have a file or a profile to read

    from fastsync.userfile import UserFile

__all__ = [
    "SETTINGS",
    "MaxDelete",
    "Resolved",
    "Setting",
    "Settings",
    "find_config",
    "from_options",
    "parse_duration",
    "parse_max_delete",
    "parse_size",
    "presets",
    "read_config",
    "resolve",
    "resolve_options",
    "state_folder",
]

BUILT_IN: Final = "built-in"

# Variables that are no settings.
_OTHER_VARIABLES: Final = (
    "FASTSYNC_CONFIG",
    "FASTSYNC_PROFILE",
    "FASTSYNC_STATE",
    "FASTSYNC_PYTHON",
    "FASTSYNC_TRACEBACK",
    "FASTSYNC_HEADER",
    "FASTSYNC_BEARER_TOKEN",
)
_LINK_FLAGS: Final = {"keep": "--links", "follow": "--copy-links", "skip": "--skip-links"}

_EXCLUSIVE: Final = (
    ("checksum", "size_only"),
    ("checksum", "ignore_times"),
    ("size_only", "ignore_times"),
    ("update", "ignore_times"),
    ("quiet", "verbose"),
)
_ORDERED: Final = (("min_size", "max_size"), ("min_age", "max_age"))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Resolved:
    """What `resolve` found: the settings, and by name of the setting where its value comes from.

    `places` are the tables of the file, by place as written there. `config_file` is the file that was
    read, None without one. `notes` are worth a line each on stderr. `given` has the names of settings
    that come from flags.
    """

    settings: Settings
    origins: Mapping[str, str]
    places: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    profile: str | None = None
    config_file: Path | None = None
    notes: tuple[str, ...] = ()
    given: frozenset[str] = frozenset()

    def place_settings(self, place: Location, side: Side = "source") -> dict[str, str]:
        """What the store at `place` should know, by its keys. A flag counts first, then the table of the
        place, then whatever else says something; what is said for one side counts before what is said
        for both."""
        flags: dict[str, str] = {}
        others: dict[str, str] = {}
        known = [each for each in SETTINGS.values() if each.place and each.side in (None, side)]
        for setting in sorted(known, key=lambda each: each.side is not None):
            value = getattr(self.settings, setting.name)
            if value is not None and self.origins[setting.name] != BUILT_IN:
                chosen = flags if setting.name in self.given else others
                chosen[setting.place or ""] = _as_text(value)
        return {**others, **self.place_for(place), **flags}

    @property
    def given_places(self) -> frozenset[str]:
        """The keys of places that flags name, switches that are off aside."""
        keys = (SETTINGS[name].place for name in self.given if getattr(self.settings, name))
        return frozenset(key for key in keys if key)

    def place_for(self, place: Location | str) -> dict[str, str]:
        """The table of the longest place in the file that holds `place`; {} when none does.

        Scheme, host and port must be the same, and the path must end or go on with a "/": what is said
        of ``s3://logs`` or ``https://example.org`` is not told to ``s3://logs-of-others`` or
        ``https://example.org.evil.example``. A place without a user is for every user.
        """
        wanted = parse(place) if isinstance(place, str) else place
        holding = [place for place in self.places if _holds(parse(place), wanted)]
        return dict(self.places[max(holding, key=_specificity)]) if holding else {}


def _as_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _holds(place: Location, wanted: Location) -> bool:
    return (
        (place.scheme, place.host.lower(), place.port)
        == (wanted.scheme, wanted.host.lower(), wanted.port)
        and place.user in (None, wanted.user)
        and (wanted.path.rstrip("/") + "/").startswith(place.path.rstrip("/") + "/")
    )


def _specificity(place: str) -> tuple[int, bool]:
    location = parse(place)
    return len(location.path.rstrip("/")), location.user is not None


class _Pick(NamedTuple):
    """A value, where it comes from, and the rank of that source: 0 is the strongest."""

    value: Any
    origin: str
    rank: int


_Layer = dict[str, tuple[object, str]]


def resolve(
    flags: Mapping[str, object],
    *,
    profile: str | None = None,
    config_file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    defaults: Mapping[str, object] = MappingProxyType({}),
) -> Resolved:
    """The effective settings of a run, from all sources.

    `defaults` are a verb's own, in the place of what is built in.

    `flags` go by name of the setting; None means "not given", text is read as the command line writes
    it, any other value is the effective value itself (bytes, seconds). Of two settings that exclude each
    other the one from the stronger source stays. Raises UsageError, and ConfigError for what files and
    variables say.
    """
    file = read_config(config_file, environ)
    layers = [_from_flags(flags), _from_environment(environ)]

    chosen, chosen_by = profile, "--profile"
    if chosen is None:
        chosen, chosen_by = environ.get("FASTSYNC_PROFILE") or None, "FASTSYNC_PROFILE"
    if chosen is None and file is not None:
        chosen, chosen_by = file.profile, f"{file.path}: [global] profile"
    if chosen is not None:
        layers += _from_profile(chosen, chosen_by, file)
    if file is not None:
        layers.append({k: (v, f"[global] of {file.path}") for k, v in file.settings.items()})

    picks = _pick(layers, defaults)
    return Resolved(
        _settings(picks),
        {name: pick.origin for name, pick in picks.items()},
        places=file.places if file else {},
        profile=chosen,
        config_file=file.path if file else None,
        notes=(*_unread_variables(environ), *(file.notes if file else ())),
        given=frozenset(layers[0]),
    )


def from_options(options: Mapping[str, object]) -> Settings:
    """Settings from nothing but `options`: what a program passes, free of files and environment.

    Raises UsageError.
    """
    return resolve_options(options).settings


def resolve_options(
    options: Mapping[str, object], defaults: Mapping[str, object] = MappingProxyType({})
) -> Resolved:
    """The same, and what of it places should know; `defaults` as in `resolve`. Raises UsageError."""
    flags = _from_flags(options)
    picks = _pick([flags], defaults)
    origins = {name: pick.origin for name, pick in picks.items()}
    return Resolved(_settings(picks), origins, given=frozenset(flags))


def _pick(layers: Sequence[_Layer], defaults: Mapping[str, object]) -> dict[str, _Pick]:
    picks = {
        name: _Pick(defaults.get(name, each.default), BUILT_IN, len(layers))
        for name, each in SETTINGS.items()
    }
    for rank in reversed(range(len(layers))):
        for name, (value, origin) in layers[rank].items():
            picks[name] = _Pick(value, origin, rank)
    _apply_archive(picks)
    _part_exclusive(picks)
    _refuse_nonsense(picks)
    _fit_chunk(picks, built_in=len(layers))
    return picks


def _settings(picks: Mapping[str, _Pick]) -> Settings:
    values: dict[str, Any] = {name: pick.value for name, pick in picks.items()}
    return Settings(**values)


def _from_flags(flags: Mapping[str, object]) -> _Layer:
    layer: _Layer = {}
    for name, given in flags.items():
        if given is None:
            continue
        setting = SETTINGS.get(name)
        if setting is None:
            raise UsageError(f"there is no setting '{name}'{meant(name, SETTINGS)}")
        try:
            value = setting.kind.from_caller(given)
        except UsageError as error:
            raise error.at(setting.flag or name) from None
        layer[name] = (value, _flag_origin(setting, value))
    return layer


def _flag_origin(setting: Setting, value: object) -> str:
    if setting.flag is None:
        return f"argument {setting.name}"
    if setting.name == "links":
        return f"flag {_LINK_FLAGS[str(value)]}"
    return f"flag {setting.flag.replace('--', '--no-', 1) if value is False else setting.flag}"


def _from_environment(environ: Mapping[str, str]) -> _Layer:
    layer: _Layer = {}
    for setting in SETTINGS.values():
        for variable in setting.variables:
            text = environ.get(variable)
            if text:  # set but empty means not set, as everywhere else
                try:
                    value = setting.kind.from_text(text)
                except UsageError as error:
                    raise ConfigError(error.message, where=variable, hint=error.hint) from None
                layer[setting.name] = (value, f"environment {variable}")
                break
    return layer


def _from_profile(name: str, chosen_by: str, file: UserFile | None) -> list[_Layer]:
    """The user's table, then the preset of the same name, which it changes key by key."""
    from fastsync import userfile

    users = file.profiles if file is not None else {}
    shipped = presets()
    if name not in users and name not in shipped:
        known = sorted({*users, *shipped})
        raise ConfigError(
            f"there is no profile '{name}'{meant(name, known, cutoff=0.5)}",
            where=chosen_by,
            hint=f"there is {', '.join(known)}",
        )
    layers: list[_Layer] = []
    if file is not None and name in users:
        layers.append({k: (v, f"profile {name} ({file.path})") for k, v in users[name].items()})
    if name in shipped:
        path = shipped[name]
        preset = userfile.read_preset(path)
        layers.append({k: (v, f"profile {name} ({path})") for k, v in preset.items()})
    return layers


def _apply_archive(picks: dict[str, _Pick]) -> None:
    """Set what --archive stands for, unless a source as strong as its own says otherwise."""
    archive = picks["archive"]
    if archive.value:
        for name, value in (("recursive", True), ("links", "keep")):
            if archive.rank < picks[name].rank:
                picks[name] = _Pick(value, f"archive ({archive.origin})", archive.rank)


def _part_exclusive(picks: dict[str, _Pick]) -> None:
    for pair in _EXCLUSIVE:
        winner, loser = sorted(pair, key=lambda name: picks[name].rank)
        if not (picks[winner].value and picks[loser].value):
            continue
        if picks[winner].rank == picks[loser].rank:
            raise UsageError(
                f"{_told(picks, pair[0])} and {_told(picks, pair[1])} exclude each other"
            )
        origin = f"built-in, as {_told(picks, winner)} excludes it"
        picks[loser] = _Pick(SETTINGS[loser].default, origin, picks[winner].rank)


def _refuse_nonsense(picks: dict[str, _Pick]) -> None:
    for low, high in _ORDERED:
        least, most = picks[low].value, picks[high].value
        if least is not None and most is not None and least > most:
            raise UsageError(
                f"{_told(picks, low)} is above {_told(picks, high)}: nothing would be copied"
            )
    excluded = picks["delete_excluded"]
    # In a file it only says how to delete, if at all; on the command line it was meant to do something.
    if excluded.value and excluded.rank == 0 and not picks["delete"].value:
        raise UsageError("--delete-excluded does nothing without --delete", hint="give both")


def _fit_chunk(picks: dict[str, _Pick], *, built_in: int) -> None:
    """A chunk has to fit the buffer. There are three cases when it does not:

    1. Nobody set the buffer. Larger chunks were wanted, so the buffer grows to hold one.
    2. The buffer comes from a stronger source. Less memory was wanted, so the chunk shrinks.
    3. Both were set, and the chunk by a source at least as strong: a contradiction to be told.
    """
    chunk, buffer = picks["chunk_size"], picks["buffer_size"]
    if chunk.value <= buffer.value:
        return
    if buffer.rank == built_in:
        origin = f"built-in, raised for {_told(picks, 'chunk_size')}"
        picks["buffer_size"] = _Pick(chunk.value, origin, chunk.rank)
    elif buffer.rank < chunk.rank:
        origin = f"{chunk.origin}, lowered for {_told(picks, 'buffer_size')}"
        picks["chunk_size"] = _Pick(buffer.value, origin, chunk.rank)
    else:
        raise UsageError(
            f"{_told(picks, 'chunk_size')} is {size_text(chunk.value)}, more than the "
            f"{size_text(buffer.value)} of {_told(picks, 'buffer_size')}",
            hint="lower the one or raise the other",
        )


def _told(picks: Mapping[str, _Pick], name: str) -> str:
    """A setting and its source, short where the source says the name."""
    kind, _, source = picks[name].origin.partition(" ")
    return source if kind in ("flag", "environment") else f"{name} ({picks[name].origin})"


def _unread_variables(environ: Mapping[str, str]) -> list[str]:
    """Notes on variables that look like a slip of the pen; others may be a wrapper's own."""
    known = {name for setting in SETTINGS.values() for name in setting.variables}
    known.update(_OTHER_VARIABLES)
    # All share the prefix, so only the rest can tell near from far.
    options = {name.removeprefix("FASTSYNC_"): name for name in known}
    notes = []
    for name in sorted(environ):
        if name.startswith("FASTSYNC_") and name not in known:
            near = nearest(name.removeprefix("FASTSYNC_"), options)
            if near:
                notes.append(
                    f"{name} in the environment is not read, did you mean {options[near]}?"
                )
    return notes


def presets() -> dict[str, Path]:
    """The profiles that come with fastsync, by name."""
    from pathlib import Path

    here = Path(__file__).resolve().parent
    for folder in (here / "profiles", here.parent / "profiles"):  # in a wheel, in a checkout
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return {}


def find_config(
    named: Path | None = None, environ: Mapping[str, str] = os.environ
) -> tuple[Path, str]:
    """Where the configuration is, and who said so: "" for the usual place, where there need be none."""
    from pathlib import Path

    path, named_by = _find_config(named, environ)
    return Path(path), named_by


def _find_config(named: Path | None, environ: Mapping[str, str]) -> tuple[str, str]:
    if named is not None:
        return os.fspath(named), "--config"
    if environ.get("FASTSYNC_CONFIG"):
        return environ["FASTSYNC_CONFIG"], "FASTSYNC_CONFIG"
    # XDG base directory specification: a relative path is invalid and to be ignored.
    base = environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(base):
        base = os.path.join(_home(environ), ".config")
    return os.path.join(base, "fastsync", "config.toml"), ""


def _home(environ: Mapping[str, str]) -> str:
    home = environ.get("HOME", "")
    if not os.path.isabs(home):
        home = os.path.expanduser("~")
    # Never a folder of that name in whatever directory this is: others may have made it.
    return home if os.path.isabs(home) else "/"


def state_folder(environ: Mapping[str, str] = os.environ) -> str:
    """Where runs keep what the next one can use. Whoever writes there makes it, with mode 0700."""
    if environ.get("FASTSYNC_STATE"):
        return os.path.abspath(environ["FASTSYNC_STATE"])
    base = environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.join(_home(environ), ".local", "state")
    return os.path.join(base, "fastsync")


def read_config(
    named: Path | None = None, environ: Mapping[str, str] = os.environ
) -> UserFile | None:
    """The user's file; None when nobody named one and there is none. Raises ConfigError."""
    path, named_by = _find_config(named, environ)
    if not named_by:
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:
            pass  # reading it will say what is wrong
    from pathlib import Path

    from fastsync import userfile

    return userfile.read(Path(path))
