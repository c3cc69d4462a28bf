"""--backup-dir: what a run is about to overwrite or delete is copied to another place first."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fastsync.backend import (
    CopiesWithin,
    CopyJob,
    Entry,
    KeepsLinks,
    Sink,
    WriteOptions,
    offers,
)
from fastsync.errors import FastsyncError, Unsupported
from fastsync.stitching import copies_in_parts, copy_in_parts
from fastsync.transfer import Lanes, copies_within, transfer
from fastsync.workers import run_all


def _silent(_nbytes: int, /) -> None:
    """Copies of this kind are no part of what a run has to move."""


async def save(
    sink: Sink,
    backup: Sink,
    entries: Sequence[Entry],
    write: WriteOptions,
    lanes: Lanes,
) -> list[FastsyncError | None]:
    """Copy files and links of `sink` to the same paths of `backup`; the answer has one item per entry,
    directories need nothing."""
    write = dataclasses.replace(write, guarded=False, resumable=False)
    answers: dict[str, FastsyncError | None] = {}
    links = [CopyJob(entry, entry.path) for entry in entries if entry.kind == "link"]
    files = [CopyJob(entry, entry.path) for entry in entries if entry.kind == "file"]
    for entry in entries:
        if entry.kind == "special":
            answers[entry.path] = Unsupported("a device, a pipe or a socket cannot be backed up")
    if links and not offers(backup, KeepsLinks):
        error = Unsupported("a link cannot be backed up there")
        answers |= {job.path: error for job in links}
    elif links and isinstance(backup, KeepsLinks):
        made = await backup.make_links(links, write)
        answers |= {job.path: answer for job, answer in zip(links, made, strict=True)}

    is_within = copies_within(sink, backup)

    async def copy(job: CopyJob) -> None:
        try:
            if is_within:
                await copy_in_parts(sink, backup, job, write, lanes, _silent)
            else:
                await transfer(sink, backup, job.entry, job.path, write, lanes, _silent)
        except FastsyncError as error:
            answers[job.path] = error

    alone: list[CopyJob] = []
    together: list[CopyJob] = []
    for job in files:
        is_one_of_many = is_within and not copies_in_parts(sink, backup, job.entry)
        (together if is_one_of_many else alone).append(job)
    if together:
        assert isinstance(backup, CopiesWithin)
        done = await backup.copy_from(sink, together, write, _silent)
        answers |= {job.path: answer for job, answer in zip(together, done, strict=True)}
    if alone:
        await run_all(min(lanes.streams.limit, len(alone)), (copy(job) for job in alone))
    return [answers.get(entry.path) for entry in entries]
