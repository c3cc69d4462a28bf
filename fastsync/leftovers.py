"""What earlier runs left behind at stores: what is known of it, and the end of it."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping

from fastsync.backend import DropsUploads
from fastsync.errors import FastsyncError, NotFound, Unsupported, UsageError
from fastsync.journal import Journal, Record
from fastsync.location import Location, parse
from fastsync.session import Request, Session
from fastsync.settings import Side
from fastsync.tally import Summary, Tally


def leftovers(request: Request) -> list[Record]:
    """The uploads that are written down, those in hand among them."""
    with contextlib.closing(Journal(_folder(request))) as journal:
        return journal.records()


def _folder(request: Request) -> str:
    if request.state_folder is None:
        raise UsageError("there is no journal without a state folder")
    return request.state_folder


async def run_clean(request: Request, *, everything: bool = False) -> Summary:
    """Drop the uploads of processes that are gone, with `everything` those of other machines too; what is
    in hand here stays. What cannot be dropped is in the summary, and stays written down."""
    started = time.monotonic()
    tally = Tally(request.observer)
    with contextlib.closing(Journal(_folder(request))) as journal:
        for record in journal.records():
            state = record.process.state()
            if state == "running" or (state == "elsewhere" and not everything):
                continue
            place = parse(record.place)
            target = place.child(record.path)
            try:
                if not request.settings.dry_run:
                    await _drop(request, place, record)
                    journal.forget(record.id)
                tally.done("delete", record.path, (None, target), None, "unfinished upload")
            except FastsyncError as error:
                tally.failed("delete", record.path, None, target, error)
    return tally.summary(time.monotonic() - started)


async def _drop(request: Request, place: Location, record: Record) -> None:
    """Open the store as it was opened then, with the secrets of today."""
    settings_of = request.place_settings

    def place_settings(location: Location, side: Side) -> Mapping[str, str]:
        return {**settings_of(location, side), **record.settings}

    asked = dataclasses.replace(request, place_settings=place_settings, state_folder=None)
    async with Session(asked) as session:
        store = await session.open_sink(place)
        if not isinstance(store, DropsUploads):
            raise Unsupported("unfinished uploads cannot be dropped there", where=str(place))
        with contextlib.suppress(NotFound):  # nothing is left in a place that is gone
            await store.drop_upload(record.ticket)
