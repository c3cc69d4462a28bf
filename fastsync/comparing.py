"""Do two files have the same content? By digests where both stores can tell one, else by reading both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from fastsync.backend import (
    READ_BUFFER,
    Buffer,
    CopyJob,
    Entry,
    FindsHashes,
    Hashes,
    Loaded,
    Proof,
    ProvesContent,
    ReadsWhole,
    Source,
    closing,
    offers,
)
from fastsync.errors import Changed, FastsyncError, IntegrityError, Unsupported, Vanished
from fastsync.patience import persistently
from fastsync.transfer import Lanes
from fastsync.workers import run_all


def common_algorithm(source: Source, sink: Source) -> str | None:
    """A digest that both stores can tell, the source's favourite."""
    if offers(source, Hashes) and offers(sink, Hashes):
        return next((one for one in source.algorithms if one in sink.algorithms), None)
    return None


async def find_hashes(*stores: Source) -> None:
    """Have the stores find out what digests they can tell, before any is asked for."""
    for store in stores:
        if offers(store, FindsHashes):
            await store.find_hashes()


async def same_digest(
    source: Source, entry: Entry, sink: Source, old: Entry, lanes: Lanes
) -> bool | None:
    """Whether the stores tell the same digest of both files, or one of them knows what the other's bytes
    have to add up to; None where they cannot tell.

    Raises what the stores raise: Changed, Vanished, and the like.
    """
    same = await _same_proof(source, entry, sink, old, lanes)
    if same is not None:
        return same
    algorithm = common_algorithm(source, sink)
    if algorithm is None or not (offers(source, Hashes) and offers(sink, Hashes)):
        return None
    digests: set[str] = set()

    async def add(store: Hashes, one: Entry) -> None:
        digests.add(await store.digest(one, algorithm))

    sides: list[tuple[Hashes, Entry]] = [(source, entry), (sink, old)]
    async with lanes.streams.spend(1), lanes.memory.spend(2 * READ_BUFFER):
        try:
            await run_all(2, (add(*side) for side in sides))
        except Unsupported:
            return None
    return len(digests) == 1


async def _same_proof(
    source: Source, entry: Entry, sink: Source, old: Entry, lanes: Lanes
) -> bool | None:
    ours = await source.proof(entry) if offers(source, ProvesContent) else None
    theirs = await sink.proof(old) if offers(sink, ProvesContent) else None
    if ours is not None and theirs is not None and ours.algorithm == theirs.algorithm:
        return ours.value == theirs.value
    if ours is not None and not offers(sink, ProvesContent):
        return await _adds_up(sink, old, ours, lanes)
    if theirs is not None and not offers(source, ProvesContent):
        return await _adds_up(source, entry, theirs, lanes)
    return None


async def _adds_up(store: Source, entry: Entry, proof: Proof, lanes: Lanes) -> bool:
    hasher = proof.hasher()
    async with (
        lanes.streams.spend(1),
        lanes.memory.spend(READ_BUFFER),
        closing(store.read(entry, 0, None)) as buffers,
    ):
        async for buffer in buffers:
            await asyncio.to_thread(hasher, memoryview(buffer))
    return hasher.value() == proof.value


async def same_bytes(source: Source, entry: Entry, sink: Source, old: Entry, lanes: Lanes) -> bool:
    """Whether both files, read side by side, have the same bytes. Raises what reads raise."""
    async with (
        lanes.streams.spend(1),
        lanes.memory.spend(2 * READ_BUFFER),
        closing(source.read(entry, 0, None)) as ours,
        closing(sink.read(old, 0, None)) as theirs,
    ):
        return await _equal(ours, theirs)


async def _equal(ours: AsyncIterator[Buffer], theirs: AsyncIterator[Buffer]) -> bool:
    a = b = memoryview(b"")
    while True:
        if not a:
            a = memoryview(await anext(ours, b""))
        if not b:
            b = memoryview(await anext(theirs, b""))
        if not (a and b):
            return not (a or b)
        length = min(len(a), len(b))
        # Of two views every byte would be made an object.
        if not bytes(a[:length]).startswith(b[:length]):
            return False
        a, b = a[length:], b[length:]


async def reread(
    source: Source,
    sink: Source,
    jobs: Sequence[CopyJob],
    answers: Sequence[FastsyncError | None],
    lanes: Lanes,
) -> list[FastsyncError | None]:
    """Compare what a sink says it has copied by itself with the source; the answers, corrected."""
    found = list(answers)

    async def look(index: int, job: CopyJob) -> None:
        try:
            made = await persistently(lambda: sink.stat(job.path), lanes.may_retry)
            same = await same_digest(source, job.entry, sink, made, lanes)
            if same is None:
                same = await same_bytes(source, job.entry, sink, made, lanes)
            if not same:
                where = str(sink.location.child(job.path))
                found[index] = IntegrityError(
                    "the copy has other bytes than its source", where=where
                )
        except FastsyncError as error:
            found[index] = error

    made = [index for index, answer in enumerate(answers) if answer is None]
    if made:
        await run_all(min(lanes.streams.limit, len(made)), (look(i, jobs[i]) for i in made))
    return found


async def same_small(
    source: ReadsWhole, sink: ReadsWhole, jobs: Sequence[CopyJob], lanes: Lanes
) -> list[bool | FastsyncError]:
    """The same for many small files at once; the answer has one item per job. What changed at the
    destination meanwhile is not the same."""
    entries = [job.entry for job in jobs]
    olds = [job.old for job in jobs if job.old is not None]
    assert len(entries) == len(olds)
    async with lanes.streams.spend(1), lanes.memory.spend(2 * sum(e.size or 0 for e in entries)):
        ours = await source.read_whole(entries)
        theirs = await sink.read_whole(olds)
        return [_same(one, other) for one, other in zip(ours, theirs, strict=True)]


def _same(one: Loaded | FastsyncError, other: Loaded | FastsyncError) -> bool | FastsyncError:
    if isinstance(one, FastsyncError):
        return one
    if isinstance(other, FastsyncError):
        return False if isinstance(other, (Changed, Vanished)) else other
    return bool(one.data == other.data)
