"""Standard input to a file: of unknown length, and there whole or not at all."""

from __future__ import annotations

import asyncio
import dataclasses
import time

from fastsync.budget import Budget
from fastsync.errors import FastsyncError, UsageError
from fastsync.session import Place, Request, Session, located
from fastsync.streams import StandardInput
from fastsync.tally import Summary, Tally
from fastsync.transfer import Lanes, transfer
from fastsync.works import is_directory, standing_for_file, write_options

TICK_S = 0.125


async def run_pipe(place: Place, request: Request, fd: int = 0) -> Summary:
    """Write what the descriptor `fd` gives, to its end, to the file at `place`.
    Raises UsageError for a place that is no file's."""
    target = located(place)
    if target.is_stream:
        raise UsageError("source and destination are the same stream", where="-")
    settings = request.settings
    tally = Tally(request.observer)
    started = time.monotonic()
    source = StandardInput(fd)
    async with Session(request) as session:
        if target.is_directory_like or await is_directory(session, target):
            raise UsageError(
                "standard input has no name", where=str(target), hint="write the file's name too"
            )
        sink = await session.open_sink(target.parent())
        # What comes in has no time and no mode of its own.
        write = dataclasses.replace(write_options(settings, sink), mtime=False, mode=False)
        standing = await standing_for_file(sink, target.name, None, settings)
        places = (source.location, target)
        if standing is not None and settings.ignore_existing:
            tally.totals.files_skipped += 1
            tally.skipped(target.name, *places, "exists")
            return tally.summary(time.monotonic() - started)
        if settings.dry_run:
            tally.done("copy", target.name, places, None, "standard input")
            return tally.summary(time.monotonic() - started)

        def may_retry(attempt: int) -> bool:
            if attempt >= settings.retry_count:
                return False
            tally.totals.retries += 1
            return True

        pace = session.pace
        lanes = Lanes(
            streams=Budget(settings.parallel_streams),
            memory=Budget(settings.buffer_size),
            chunk_size=max(1, min(settings.chunk_size, settings.buffer_size // 2)),
            may_retry=may_retry,
            log=session.uploads,
            pace=pace,
        )
        tally.planned(1, 0)
        tally.totals.current[target.name] = 0

        async def tick() -> None:
            while True:
                await asyncio.sleep(TICK_S)
                tally.tell()

        ticker = asyncio.create_task(tick())
        try:
            made, is_verified = await transfer(
                source, sink, source.entry, target.name, write, lanes, tally.moved, standing
            )
            tally.done(
                "copy",
                target.name,
                places,
                made.size,
                "standard input",
                time.monotonic() - started,
                is_verified=is_verified,
            )
        except FastsyncError as error:
            tally.failed("copy", target.name, *places, error)
        finally:
            ticker.cancel()
            await asyncio.wait([ticker])
            await source.aclose()
        tally.totals.scanning = False
        tally.tell()
        return tally.summary(time.monotonic() - started)
