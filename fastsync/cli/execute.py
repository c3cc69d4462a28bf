"""``fastsync run``: carry out a plan or a batch."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import IO, TYPE_CHECKING, Any

import click

from fastsync.cli.options import OUTPUT, WIRE, GroupedCommand, with_options
from fastsync.cli.transfer import run_transfer
from fastsync.errors import UsageError, from_os_error
from fastsync.settings import SETTINGS

if TYPE_CHECKING:
    from fastsync.session import Request
    from fastsync.tally import Summary

_OPTIONS = (
    "parallel_streams",
    "jobs",
    "chunk_size",
    "bwlimit",
    *WIRE,
    "archive",
    "preserve_special",
    "sparse",
    "inplace",
    "resume",
    "durable",
    "xattrs",
    "backup_dir",
    "verify",
    "progress",
    "color",
    *OUTPUT,
    *(name for name, setting in SETTINGS.items() if setting.place == name),
)

_EXAMPLES = """\b
Examples:
  fastsync run plan.jsonl              carry out what `fastsync plan` wrote
  fastsync run -n plan.jsonl           show what that does, for people
  fastsync run --shard 1/2 plan.jsonl  every second line
  fastsync run copies.txt --retry-failed rest.txt
"""


@click.command(cls=GroupedCommand, epilog=_EXAMPLES)
@click.argument("file", metavar="FILE|-")
@click.option("--shard", metavar="I/N", help="only part I of N of a plan")
@click.option("--retry-failed", metavar="FILE", help="write the lines of a batch that failed there")
@with_options(_OPTIONS, rules=False)
@click.pass_context
def run(
    context: click.Context,
    /,
    file: str,
    shard: str | None,
    retry_failed: str | None,
    **values: Any,
) -> int:
    """Carry out the plan, or the batch, in FILE or on standard input.

    All of it is checked before anything is touched. A line of a plan is refused, and the rest goes on, if
    its source or destination changed since the plan was made (exit 8). A batch has one `cp`, `sync`, `mv`
    or `rm` on each line, as in a shell; lines run at once, in no order (exit 1 if only some went well).
    """
    from fastsync.planfile import held, is_plan

    with held(file) as (opened, name):
        if is_plan(opened):
            if retry_failed is not None:
                raise UsageError("--retry-failed is for batches", hint="make a new plan")
            from fastsync.planfile import Shard
            from fastsync.replaying import run_planned

            part = None if shard is None else Shard.parse(shard)
            return run_transfer(
                context, values, lambda request: run_planned(opened, name, request, part)
            )
        if shard is not None:
            raise UsageError("--shard is for plans", hint="split takes batches apart")
        return run_transfer(
            context, values, lambda request: _batch(opened, name, values, request, retry_failed)
        )


async def _batch(
    file: IO[bytes], name: str, values: dict[str, Any], request: Request, retry_failed: str | None
) -> Summary:
    from fastsync.batch import run_batch
    from fastsync.cli.lines import read_batch

    tasks = read_batch(file, name, values, request)
    with contextlib.ExitStack() as stack:
        rest = None
        if retry_failed is not None:
            try:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
                # Lines may hold what only their author should know.
                fd = os.open(retry_failed, flags, 0o600)
                rest = stack.enter_context(open(fd, "ab"))  # noqa: ASYNC230 - a list
                if not stat.S_ISREG(os.fstat(rest.fileno()).st_mode):
                    raise UsageError("--retry-failed: not a regular file", where=retry_failed)
            except OSError as error:
                told = from_os_error(error).message
                raise UsageError(f"--retry-failed: {told}", where=retry_failed) from error
        summary, failed = await run_batch(tasks, name, request)
        if rest is not None:
            rest.truncate(0)
            for task in failed:
                rest.write(os.fsencode(task.text) + b"\n")
    return summary
