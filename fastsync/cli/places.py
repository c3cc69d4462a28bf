"""Places as arguments, and how a shell completes them: local ones by itself, remote ones from listings.

A listing is remembered for a minute, and one that takes longer than a second is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

LIMIT_S: Final = 1.0
REMEMBERED_S: Final = 60.0
_MOST: Final = 1000


class PlaceType(click.ParamType[str]):
    """Text, which the library understands; only completion knows more."""

    name = "place"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return value

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        if "://" not in incomplete:
            return [CompletionItem(incomplete, type="file")]
        directory = incomplete[: incomplete.rindex("/") + 1]
        names = _listed(directory, ctx.params)
        return [CompletionItem(place) for place in names if place.startswith(incomplete)]


PLACE: Final = PlaceType()


class Sources(click.Argument):
    """Some sources, in front of a destination: a place that is alone is a source."""

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        given = opts.get(str(self.name))
        if isinstance(opts.get("destination"), str) and not (isinstance(given, tuple) and given):
            (destination,) = (one for one in ctx.command.params if one.name == "destination")
            raise click.MissingParameter(ctx=ctx, param=destination)
        return super().handle_parse_result(ctx, opts, args)


def _listed(directory: str, values: dict[str, Any]) -> list[str]:
    """What is in a remote directory; [] when nobody can tell in time."""
    import json
    import os
    import signal
    import sys
    import time
    from hashlib import sha256
    from pathlib import Path

    from fastsync.cli.options import resolved

    # Whatever hangs, and wherever: nobody waits longer than this at a prompt.
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    given = {name: value for name, value in values.items() if isinstance(value, str | bool)}
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    told = [directory, *sorted(f"{name}={value}" for name, value in given.items())]
    told += [os.environ.get(name, "") for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL")]
    name = sha256("\0".join(told).encode("utf-8", "surrogateescape")).hexdigest()
    kept = Path(home, "fastsync", "completion", f"{name}.json")
    try:
        if time.time() - kept.stat().st_mtime < REMEMBERED_S:
            return [str(place) for place in json.loads(kept.read_text())]
    except (OSError, ValueError):
        pass
    try:
        settled = resolved(given)
        names = _names(directory, settled)
    except Exception:
        if os.environ.get("FASTSYNC_TRACEBACK"):
            raise
        sys.stderr.flush()
        return []  # an error would only spoil the line that is being written
    try:
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(names))
        partial.replace(kept)
    except OSError:
        pass
    return names


def _names(directory: str, settled: Any) -> list[str]:
    import asyncio
    import dataclasses

    from fastsync.cli.options import request_for
    from fastsync.listing import run_ls

    request = request_for(settled)
    settings = dataclasses.replace(request.settings, raw=True, retry_count=0, recursive=False)
    request = dataclasses.replace(request, settings=settings)

    async def collect() -> list[str]:
        names: list[str] = []
        async for entries, _ in run_ls(directory, request):
            for entry in entries:
                if entry.path.isprintable():
                    names.append(directory + entry.path + "/" * (entry.kind == "dir"))
            if len(names) >= _MOST:
                break
        return names[:_MOST]

    return asyncio.run(collect())
