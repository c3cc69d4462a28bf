"""``fastsync plan``: write down what sync would do."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from fastsync.cli.options import (
    TRANSFER,
    RuledCommand,
    request_for,
    resolved,
    rules_of,
    with_options,
)

# What shows a run that happens, and what a plan does not say.
_NOT_HERE = (
    "recursive",
    "dry_run",
    "json",
    "explain",
    "interactive",
    "summarize",
    "human_readable",
    "manifest",
    "backup_dir",
    "hard_links",
    "xattrs",
)

_EXAMPLES = """\b
Examples:
  fastsync plan docs /backup/docs                    look at it
  fastsync plan --delete docs /backup/docs -o plan.jsonl
  fastsync run plan.jsonl                            do it
  fastsync plan docs /backup | grep -v '"delete"' | fastsync run -
"""


@click.command(cls=RuledCommand, epilog=_EXAMPLES)
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.option("-o", "--output", metavar="FILE", help="write the plan there; standard output else")
@with_options([name for name in TRANSFER if name not in _NOT_HERE])
@click.pass_context
def plan(
    context: click.Context,
    /,
    source: str,
    destination: str,
    output: str | None,
    **values: Any,
) -> int:
    """Write what `sync SRC DST` would do, as one line of JSON for each action, for `run`.

    Nothing is changed. Each line says what stands on both sides, so that `run` refuses what is out of
    date. docs/PLANS.md describes the lines.
    """
    settled = resolved(values)
    rules = rules_of(context, values)

    from fastsync.api import run_plan
    from fastsync.cli.logs import observer_for
    from fastsync.cli.render import Console
    from fastsync.cli.run import Interrupted, run

    console = Console(dataclasses.replace(settled.settings, progress=False))
    for note in settled.notes:
        console.note(note)
    with observer_for(settled.settings, console) as observer:
        request = request_for(settled, rules, observer)
        try:
            summary = run(run_plan(source, destination, request, output), console.interrupted)
        except Interrupted as interrupted:
            return interrupted.exit_code
    return summary.exit_code
