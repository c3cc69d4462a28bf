"""Small files in memory: many read or written in one call, for stores at the other end of a wire."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final

from fastsync.backend import Entry, Loaded, WholeJob, WriteOptions
from fastsync.errors import Changed, FastsyncError, Vanished, from_os_error
from fastsync_local.copying import (
    Rules,
    SourceChanged,
    SourceVanished,
    Target,
    open_source,
    same_state,
    split,
    write_all,
)
from fastsync_local.files import rules_for, write_error
from fastsync_local.held import HeldDirectories, let_go
from fastsync_local.temporary import Names

Where = Callable[[str], str]

# Written at once without a thread: so many files, or the one that makes it so many bytes.
_FILES_AT_ONCE: Final = 16
_BYTES_AT_ONCE: Final = 512 << 10
# What a page cache takes them in, however busy the machine; a disk that is waited for takes longer.
_QUICK_FILE_S: Final = 0.0003
_QUICK_BYTE_S: Final = 1 / (256 << 20)
# A file system may be slow so often before threads do all of it.
_PATIENCE: Final = 3


def read_files(
    held: HeldDirectories,
    entries: Sequence[Entry],
    where: Where,
    stopped: Callable[[], bool],
    *,
    follow: bool,
) -> list[Loaded | FastsyncError]:
    """The listed files, each whole or an error; an empty answer for what was left when stopped."""
    answers: list[Loaded | FastsyncError] = []
    for entry in entries:
        if stopped():
            break
        try:
            answers.append(Loaded(entry, _read(held, entry, follow)))
        except SourceChanged as error:
            answers.append(Changed(str(error), where=where(entry.path)))
        except (SourceVanished, FileNotFoundError):
            answers.append(
                Vanished("the file is gone since it was listed", where=where(entry.path))
            )
        except FastsyncError as error:
            answers.append(error.at(where(entry.path)))
        except OSError as error:
            answers.append(from_os_error(error, where(entry.path)))
    return answers


def _read(held: HeldDirectories, entry: Entry, follow: bool) -> bytes:
    directory, name = split(entry.path)
    size = entry.size or 0
    fd, before = open_source(held.get(directory), name, size, entry.mtime_ns or 0, follow=follow)
    try:
        # One byte more than the file has, so that one that grew is noticed here.
        data = os.read(fd, size + 1)
        if len(data) != size or not same_state(before, os.fstat(fd)):
            raise SourceChanged("the file changed while it was read")
        return data
    finally:
        let_go(fd)


def write_files(
    held: HeldDirectories,
    jobs: Sequence[WholeJob],
    options: WriteOptions,
    where: Where,
    stopped: Callable[[], bool],
) -> list[FastsyncError | None]:
    """Let each file appear whole, or not at all; an empty answer for what was left when stopped."""
    answers: list[FastsyncError | None] = []
    names = Names()
    kept: dict[tuple[bool, bool], Rules] = {}
    touched: dict[str, list[int]] = {}  # directories whose renames have yet to reach the disk
    for index, job in enumerate(jobs):
        if stopped():
            break
        entry = job.entry
        knows = (entry.mtime_ns is None, entry.mode is None)
        rules = kept.get(knows)
        if rules is None:
            rules = kept[knows] = rules_for(options)
            rules.mtime = options.mtime and entry.mtime_ns is not None
            rules.mode = options.mode and entry.mode is not None
        try:
            directory, name = split(job.path)
            _write(held.get(directory, create=True), name, job, names, rules)
        except FastsyncError as error:
            answers.append(error.at(where(job.path)))
        except OSError as error:
            directory_fd = held.get("")
            answers.append(write_error(error, where(job.path), directory_fd, len(job.data)))
        else:
            answers.append(None)
            if options.durable:
                touched.setdefault(directory, []).append(index)
    for directory, written in touched.items():
        try:
            os.fsync(held.get(directory))
        except OSError as error:
            for index in written:
                answers[index] = from_os_error(error, where(jobs[index].path))
    return answers


class PageCache:
    """Writes small files in the caller's own thread as long as that takes no time to speak of.

    Two threads that share an interpreter hand it to each other at every system call: beside an event loop
    that receives 5000 files, writing them in a thread took twice as long in all as both one after the other.
    """

    def __init__(self) -> None:
        self._patience = _PATIENCE

    def is_quick(self) -> bool:
        return self._patience > 0

    def write(
        self, held: HeldDirectories, jobs: Sequence[WholeJob], options: WriteOptions, where: Where
    ) -> list[FastsyncError | None]:
        """The first few of `jobs`; an answer for each of those."""
        count = nbytes = 0
        while count < min(len(jobs), _FILES_AT_ONCE) and nbytes < _BYTES_AT_ONCE:
            nbytes += len(jobs[count].data)
            count += 1
        started = monotonic()
        answers = write_files(held, jobs[:count], options, where, lambda: False)
        if monotonic() - started > count * _QUICK_FILE_S + nbytes * _QUICK_BYTE_S:
            self._patience -= 1
        return answers


def _write(directory: int, name: str, job: WholeJob, names: Names, rules: Rules) -> None:
    entry, data = job.entry, memoryview(job.data)
    target = Target(directory, name, names, rules)
    try:
        write_all(target.fd, data, 0)
        target.finish(len(data), entry.mtime_ns or 0, entry.mode or 0, entry.owner)
    except BaseException as error:
        target.drop(error)
        raise
