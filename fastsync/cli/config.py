"""``fastsync config``: where the configuration is, what is in force and why, a sample, the profiles."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import click

from fastsync.config import SETTINGS, Resolved, find_config, presets, read_config, resolve
from fastsync.errors import UsageError, from_os_error
from fastsync.location import parse
from fastsync.names import printable
from fastsync.redaction import redacted
from fastsync.settings import is_secret
from fastsync.userfile import read_preset
from fastsync.values import Plain

_MASK = "***"

_config_option = click.option(
    "--config",
    "config_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Another file than the usual one.",
)


_EXAMPLES = """\b
Examples:
  fastsync config show                 what counts, and where it comes from
  fastsync config show --profile wan   with a preset
  fastsync config init                 a commented file to start with
  fastsync config path                 where that is
  fastsync config profiles             the presets, and yours
"""


@click.group(epilog=_EXAMPLES)
def config() -> None:
    """Show and start the configuration."""


@config.command(epilog=_EXAMPLES)
@_config_option
def path(config_file: Path | None) -> None:
    """Print where the configuration is read from, whether it is there or not."""
    click.echo(printable(str(find_config(config_file)[0])))


@config.command(epilog=_EXAMPLES)
@_config_option
@click.option("--profile", metavar="NAME", help="As if this profile were in use.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(config_file: Path | None, profile: str | None, as_json: bool) -> None:
    """Print each setting in force and where it comes from."""
    found = resolve({}, profile=profile, config_file=config_file)
    for note in found.notes:
        click.echo(printable(redacted(f"fastsync: note: {note}")), err=True)
    click.echo(json.dumps(_as_json(found)) if as_json else "\n".join(_as_toml(found)))


def _as_json(found: Resolved) -> dict[str, object]:
    return {
        "operation": "config",
        "success": True,
        "config_file": str(found.config_file) if found.config_file else None,
        "profile": found.profile,
        "settings": {
            name: {
                "value": _shown_plain(setting.plain(getattr(found.settings, name))),
                "origin": found.origins[name],
            }
            for name, setting in SETTINGS.items()
        },
        "places": _shown_places(found),
    }


def _as_toml(found: Resolved) -> Iterator[str]:
    yield printable(f"# file: {found.config_file or 'none'}")
    yield printable(f"# profile: {found.profile or 'none'}")
    yield "[global]"
    rows = []
    for name, setting in SETTINGS.items():
        value = _shown_plain(setting.plain(getattr(found.settings, name)))
        line = f"# {name} is not set" if value is None else f"{name} = {_toml(value)}"
        rows.append((line, found.origins[name]))
    width = min(40, max(len(line) for line, _ in rows))
    for line, origin in rows:
        yield f"{line:{width}}  # {printable(origin)}"
    for place, table in _shown_places(found).items():
        yield ""
        yield f"[places.{_toml(place)}]"
        for key, value in table.items():
            yield f"{_toml_key(key)} = {_toml(value)}"


def _shown_places(found: Resolved) -> dict[str, dict[str, str]]:
    return {
        str(parse(place)): {key: _shown_value(key, value) for key, value in table.items()}
        for place, table in found.places.items()
    }


def _shown_value(key: str, value: str) -> str:
    """`value` without what may be a secret: all of it, the user of an address, a signed query."""
    return _MASK if is_secret(key) else _shown_address(value)


def _shown_plain(value: Plain | None) -> Plain | None:
    return _shown_address(value) if isinstance(value, str) and "://" in value else value


def _shown_address(value: str) -> str:
    _, at, host = value.rpartition("@")
    address, mark, _ = (f"{_MASK}@{host}" if at else value).partition("?")
    return f"{address}?{_MASK}" if mark else address


@config.command(epilog=_EXAMPLES)
@_config_option
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def init(config_file: Path | None, force: bool) -> None:
    """Write a sample configuration, with everything in it commented out."""
    target = Path(os.path.realpath(find_config(config_file)[0]))  # a link stays a link
    if not force and os.path.lexists(target):
        raise UsageError("there is a file already", where=str(target), hint="--force replaces it")
    try:
        _make_private(target.parent)
        _write_private(target, sample())
    except OSError as error:
        raise from_os_error(error, str(target)) from error
    click.echo(printable(f"wrote {target}"))


def _make_private(directory: Path) -> None:
    """Make `directory` and what is missing above it, for us alone, as the XDG specification asks."""
    if not directory.exists():
        _make_private(directory.parent)
        directory.mkdir(mode=0o700)


def _write_private(target: Path, text: str) -> None:
    number, name = tempfile.mkstemp(prefix=".config-", dir=target.parent)  # mode 0600
    try:
        with open(number, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def sample() -> str:
    """A configuration with every setting at its default or an example, all of it commented out."""
    return "\n".join(_sample_lines()) + "\n"


def _sample_lines() -> Iterator[str]:
    yield "# Configuration of fastsync."
    yield "#"
    yield "# A flag counts first, then a variable FASTSYNC_<SETTING>, then the profile, then [global]."
    yield "# Take away the # in front of a setting to change it; what stands there is the default,"
    yield "# or an example where there is none. `fastsync config show` tells what is in force and why."
    yield ""
    yield "[global]"
    yield "# the profile to use when no other is asked for (`fastsync config profiles` lists them)"
    yield f'#profile = "{next(iter(presets()), "wan")}"'
    for setting in SETTINGS.values():
        if setting.group:
            yield f"\n# -- {setting.group}"
        flag = f" ({setting.flag})" if setting.flag else ""
        yield f"# {setting.help}{flag}"
        default = setting.plain(setting.default)
        yield f"#{setting.name} = {_toml(setting.example if default is None else default)}"
    yield ""
    yield "# A profile has any of the settings above. One with the name of a preset changes that."
    yield "#[profiles.office]"
    yield '#chunk_size = "8M"'
    yield "#jobs = 4"
    yield ""
    yield "# Settings for one place and all below it; the longest that fits counts."
    yield '#[places."s3://example-bucket/"]'
    yield '#region = "eu-central-1"'


@config.command(epilog=_EXAMPLES)
@_config_option
def profiles(config_file: Path | None) -> None:
    """List the profiles and what they set."""
    file = read_config(config_file)
    users = file.profiles if file is not None else {}
    shipped = presets()
    for name in sorted({*shipped, *users}):
        preset = read_preset(shipped[name]) if name in shipped else {}
        about = _about(shipped[name]) if name in shipped else "Yours."
        click.echo(printable(f"{name}: {about}"))
        for key, value in _merged(preset, users.get(name, {})):
            setting = SETTINGS[key]
            mark = "  # yours" if name in shipped and key in users.get(name, {}) else ""
            click.echo(f"    {key} = {_toml(setting.plain(value))}{mark}")


def _merged(
    preset: Mapping[str, object], users: Mapping[str, object]
) -> Iterator[tuple[str, object]]:
    effective = {**preset, **users}
    return ((name, effective[name]) for name in SETTINGS if name in effective)


def _about(preset: Path) -> str:
    """The first line of a preset, which is a comment that says what it is for."""
    return preset.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def _toml(value: object) -> str:
    """A value as TOML: its strings are JSON's. What a terminal could act on is written as an escape."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else _escape(ord(char)) for char in text)


def _escape(code: int) -> str:
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)
