"""The options that verbs share, made from the table of settings, and what they add up to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import click

from fastsync.errors import UsageError
from fastsync.settings import SETTINGS, Setting

if TYPE_CHECKING:
    from typing import TypeAlias

    from click.shell_completion import CompletionItem

    from fastsync.config import Resolved
    from fastsync.events import Observer
    from fastsync.filters import Rule
    from fastsync.session import Request

    Offer: TypeAlias = Callable[
        [click.Context, click.Parameter, str], list[CompletionItem] | list[str]
    ]

# Short names, and the names that users of s5cmd and rsync know.
MORE_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "parallel_streams": ("-p",),
    "jobs": ("-j", "--numworkers"),
    "bwlimit": ("--rate-limit",),
    "chunk_size": ("-c", "--part-size"),
    "size_only": ("--if-size-differ",),
    "update": ("-u", "--if-source-newer"),
    "ignore_times": ("-I",),
    "from0": ("-0",),
    "ignore_existing": ("--no-clobber",),
    "recursive": ("-R",),
    "archive": ("-a",),
    "sparse": ("-S",),
    "xattrs": ("-X",),
    "resume": ("-r",),
    "progress": ("-P",),
    "dry_run": ("-n",),
    "verbose": ("-v",),
    "quiet": ("-q",),
    "summarize": ("--stat",),
    "human_readable": ("-H",),
    "destination_region": ("--dest-region",),
    "identity": ("-i",),
}
# Switches that can be turned off where the configuration turned them on are written in pairs.
_PAIRED: Final = ("resume", "progress")
_METAVARS: Final = {
    "a size": "SIZE",
    "a rate": "RATE",
    "a time": "TIME",
    "a whole": "N",
    "a number": "N|P%",
    "the name of a file": "FILE",
    "a URL": "URL",
    "key=value": "K=V",
}
_METAVARS_BY_NAME: Final = {"backup_dir": "PLACE", "explain": "PATH", "log_file": "FILE"}
# One line of text each, gathered from options that may be given several times.
_REPEATED: Final = ("metadata",)

TRANSFER: Final = tuple(name for name, setting in SETTINGS.items() if setting.flag is not None)
# What a place that is looked at, or changed by itself, may need.
PLACES: Final = tuple(
    name
    for name, setting in SETTINGS.items()
    if setting.place == name and setting.side != "destination"
)
# What is written down, whatever the verb.
LOG: Final = ("log_file", "log_level", "log_format")
LIST: Final = (
    "recursive",
    "raw",
    "json",
    "summarize",
    "human_readable",
    "quiet",
    "color",
    "min_size",
    "max_size",
    "min_age",
    "max_age",
    "max_depth",
    *LOG,
    *PLACES,
)
# What a run shows and writes down.
OUTPUT: Final = (
    "dry_run",
    "verbose",
    "quiet",
    "json",
    "summarize",
    "human_readable",
    *LOG,
)
# How a store is talked to, whatever the verb.
WIRE: Final = ("retry_count", "stall_timeout", "min_rate", "request_timeout")
# What makes the ordered list of rules, with what its values are.
_RULES: Final = {
    "include": ("PATTERN", "include what matches; the first of all rules that matches decides"),
    "exclude": ("PATTERN", "exclude what matches"),
    "filter": ("RULE", "the same, written '+ PATTERN' or '- PATTERN'"),
    "include_from": ("FILE", "patterns to include, one on each line"),
    "exclude_from": ("FILE", "patterns to exclude, one on each line"),
    "filter_from": ("FILE", "rules '+ PATTERN' or '- PATTERN', one on each line"),
}
_ORDER: Final = "fastsync.rule_order"


class GroupedCommand(click.Command):
    """A command whose options are shown in the groups of the table of settings, its own ones first."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                groups.setdefault(_group_of(param), []).append(record)
        for title, records in groups.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def make_parser(self, ctx: click.Context) -> Any:
        """A parser that finds `-q` where it looks first: else it makes an error of each such option, and
        imports a module for what might have been meant (4 ms)."""
        parser = super().make_parser(ctx)
        long, short = (getattr(parser, name, None) for name in ("_long_opt", "_short_opt"))
        if isinstance(long, dict) and isinstance(short, dict):
            long |= short
        return parser


class RuledCommand(GroupedCommand):
    """A command that remembers the order of its rules: the first match wins."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if any(arg.startswith(("--include", "--exclude", "--filter")) for arg in args):
            _, _, order = self.make_parser(ctx).parse_args(list(args))
            ctx.meta[_ORDER] = [each.name for each in order if each.name in _RULES]
        return super().parse_args(ctx, args)


def _group_of(param: click.Parameter) -> str:
    if param.name in _RULES:
        return "Filter"
    if param.name in ("profile", "config"):
        return "Engine"
    if param.name in ("copy_links", "skip_links"):
        return "Metadata"
    if param.name == "delete_missing_args":
        return "Delete"
    group = "Options"
    for setting in SETTINGS.values():
        group = setting.group or group
        if setting.name == param.name:
            return group
    return "Options"


def with_options(
    names: Sequence[str], *, rules: bool = True, more: Mapping[str, tuple[str, ...]] = MORE_NAMES
) -> Callable[[Any], Any]:
    """Add the options of these settings to a command; unset ones arrive as None. `more` has the other
    names of options, for a verb that has names of its own."""

    def decorate(function: Any) -> Any:
        made: list[Callable[[Any], Any]] = []
        for name in names:
            made.extend(_options_of(SETTINGS[name], more.get(name, ())))
        if rules:
            for rule, (metavar, about) in _RULES.items():
                flag = "--" + rule.replace("_", "-")
                made.append(
                    click.option(
                        flag,
                        rule,
                        multiple=True,
                        metavar=metavar,
                        help=about,
                        shell_complete=_offer_files if metavar == "FILE" else None,
                    )
                )
        made.append(
            click.option(
                "--profile",
                metavar="NAME",
                help="settings for a kind of link: wan, lan ...",
                shell_complete=_offering(_profile_names),
            )
        )
        made.append(
            click.option(
                "--config",
                metavar="FILE",
                help="configuration file to use instead",
                shell_complete=_offer_files,
            )
        )
        for add in reversed(made):
            function = add(function)
        return function

    return decorate


def _options_of(setting: Setting, more: tuple[str, ...]) -> list[Callable[[Any], Any]]:
    name, flag = setting.name, setting.flag or ""
    if name == "links":
        return [
            click.option("-l", "--links", "links", flag_value="keep", help="copy links (default)"),
            click.option("-L", "--copy-links", "links", flag_value="follow", help="follow links"),
            click.option("--skip-links", "links", flag_value="skip", help="leave links out"),
        ]
    if name == "verbose":
        about = "tell what is done; twice: also what is skipped"
        return [click.option("-v", flag, name, count=True, help=about)]
    if bool in setting.kind.types:
        names = [*more, flag]
        if name in _PAIRED:
            names = [f"{'/'.join((flag, '--no-' + flag[2:]))}", *more]
        made = [click.option(*names, name, is_flag=True, default=None, help=setting.help)]
        if name == "delete":
            made.append(
                click.option(
                    "--delete-missing-args",
                    is_flag=True,
                    help="a missing source deletes nothing (always so)",
                )
            )
        return made
    told = setting.kind.told
    metavar = next((mark for start, mark in _METAVARS.items() if told.startswith(start)), "TEXT")
    metavar = _METAVARS_BY_NAME.get(name, metavar)
    offered: Offer | None = _offer_files if metavar == "FILE" else None
    if told.startswith("one of "):
        choices = told.removeprefix("one of ").split(", ")
        metavar = "|".join(choices)
        offered = _offering(lambda: choices)
    several = name in _REPEATED
    about = f"{setting.help} (repeatable)" if several else setting.help
    return [
        click.option(
            *more,
            flag,
            name,
            metavar=metavar,
            multiple=several,
            help=about,
            shell_complete=offered,
        )
    ]


def _offering(names: Callable[[], Sequence[str]]) -> Offer:
    """What a shell may offer as the value of an option."""

    def offer(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        return [name for name in names() if name.startswith(incomplete)]

    return offer


def _offer_files(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def _profile_names() -> Sequence[str]:
    from fastsync.config import presets, read_config

    try:
        file = read_config(None)
    except UsageError:  # the command says what is wrong with it
        file = None
    return sorted({*presets(), *(file.profiles if file is not None else ())})


def resolved(
    values: Mapping[str, Any], defaults: Mapping[str, object] = MappingProxyType({})
) -> Resolved:
    """The effective settings for a command's parameters; `defaults` are the verb's own. Raises
    UsageError."""
    from fastsync.config import resolve

    flags = {
        name: "\n".join(value) if name in _REPEATED else value
        for name, value in values.items()
        if name in SETTINGS and value is not None and value != ()
    }
    if not flags.get("verbose"):
        flags.pop("verbose", None)
    config_file = None
    if values.get("config"):
        from pathlib import Path

        config_file = Path(values["config"])
    return resolve(flags, profile=values.get("profile"), config_file=config_file, defaults=defaults)


def request_for(
    settled: Resolved, rules: Sequence[Rule] = (), observer: Observer | None = None
) -> Request:
    """What a verb asks the library for."""
    from fastsync.config import state_folder
    from fastsync.events import Silent
    from fastsync.session import Request

    return Request(
        settled.settings,
        rules,
        observer or Silent(),
        settled.place_settings,
        settled.given_places,
        state_folder(),
    )


def read_from_stdin(values: Mapping[str, Any]) -> list[str]:
    """The options of a line that read standard input, each as often as it does."""
    found = []
    for name in ("files_from", "include_from", "exclude_from", "filter_from"):
        given = values.get(name) or ()
        files = [given] if isinstance(given, str) else given
        found += ["--" + name.replace("_", "-") for file in files if file == "-"]
    return found


def rules_of(context: click.Context, values: Mapping[str, Any]) -> list[Rule]:
    """The rules in the order of the command line, those of files included. Raises UsageError."""
    order: Sequence[str] = context.meta.get(_ORDER, ())
    if len(read_from_stdin(values)) > 1:
        raise UsageError(
            f"{' and '.join(read_from_stdin(values))} cannot both read standard input",
            hint="write one of them to a file",
        )
    if not order:
        return []
    from functools import partial

    from fastsync.chosen import rules_from
    from fastsync.filters import Rule, parse_rule

    given = {name: iter(values.get(name, ())) for name in _RULES}
    rules: list[Rule] = []
    for name in order:
        value = next(given[name])
        kind, _, is_file = name.partition("_")
        read = parse_rule if kind == "filter" else partial(Rule, kind == "include")
        rules += rules_from(value, read) if is_file else [read(value)]
    return rules
