"""Writes that mind what stands there: by the server's own conditions, or, where it has none, by a look
right before the write, which a faster writer can still overtake.

Servers that know no conditions mostly ignore them, and say nothing. So one that is not AWS is put to the
test, once a run and only when a guarded write is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from fastsync.backend import Entry, WriteOptions
from fastsync.errors import FastsyncError, NotFound, Overtaken, Unsupported
from fastsync.patience import up_to
from fastsync_s3.objects import etag_of
from fastsync_s3.plane import Call

if TYPE_CHECKING:
    from fastsync_s3.plane import Plane


# How often the end of a probe is tried again.
_TRIES: Final = 5


async def guards(plane: Plane, prefix: str) -> bool:
    """True when the server checks conditions of writes. Asked of it by writing below `prefix`."""
    if plane.guards is None:
        async with plane.probing:
            if plane.guards is None:
                plane.guards = plane.endpoint.is_aws or await _probe(plane, prefix)
    return plane.guards


async def _probe(plane: Plane, prefix: str) -> bool:
    """Write an object twice, on the condition that there is none."""
    call = Call("PUT", f"{prefix}.fs-{os.urandom(8).hex()}.probe", (), {"if-none-match": "*"})
    try:
        # The first one, too, may find its object there: nobody else has the name, its answer got lost.
        await plane.ask(call)
        await plane.ask(call)
    except Overtaken:
        return True
    except Unsupported:
        return False
    finally:
        # Nobody else would make this request again, and the object would stay for ever.
        await plane.ask(Call("DELETE", call.key), may_retry=up_to(_TRIES))
    return False


def conditions(old: Entry | None) -> dict[str, str]:
    """The headers that let a write appear only over what was listed."""
    if old is None:
        return {"if-none-match": "*"}
    return {"if-match": f'"{old.version}"'}


async def guard(
    plane: Plane,
    prefix: str,
    writes: Sequence[tuple[str, Entry | None]],
    options: WriteOptions,
) -> list[Mapping[str, str] | FastsyncError]:
    """What each write of a key over what was listed needs: headers to send, or why it must not be."""
    if not options.guarded:
        return [{} for _ in writes]
    if await guards(plane, prefix):
        return [conditions(old) for _, old in writes]
    answers: list[Mapping[str, str] | FastsyncError] = []
    heads = await plane.ask_all([Call("HEAD", key) for key, _ in writes])
    for (key, old), head in zip(writes, heads, strict=True):
        if isinstance(head, NotFound):
            same = old is None
        elif isinstance(head, FastsyncError):
            answers.append(head)
            continue
        else:
            same = old is not None and etag_of(head.headers) == old.version
        answers.append(
            {}
            if same
            else Overtaken("somebody else wrote there since it was listed", where=plane.where(key))
        )
    return answers
