"""Requests of an SFTP conversation told to `fastsync.log`, one line when each is answered."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final

from fastsync import log
from fastsync.errors import FastsyncError
from fastsync_sftp import packets
from fastsync_sftp.packets import (
    CLOSE,
    DATA,
    EXTENDED,
    FSETSTAT,
    FSTAT,
    HANDLE,
    LOST,
    READ,
    READDIR,
    STATUS,
    WRITE,
    Request,
)

if TYPE_CHECKING:
    from fastsync_sftp.session import Answered, Session

_NAMES: Final = {
    value: name.lower()
    for name, value in vars(packets).items()
    if isinstance(value, int) and name.isupper() and packets.INIT < value <= EXTENDED
}
_LONGEST: Final = 8192
_BY_HANDLE: Final = (CLOSE, READ, WRITE, FSTAT, FSETSTAT, READDIR)


def telling(session: Session, request: Request, answered: Answered) -> Answered:
    """`answered`, which tells of the request first."""
    began = time.monotonic()
    kind, parts = request
    # Heads and data are buffers of their own; the first ones hold what is asked of whom.
    head = b"".join(bytes(part[:_LONGEST]) for part in parts[:3])
    name, place, offset, asked = _described(session, kind, head)
    sent = len(parts[3]) if kind == WRITE else None
    attempt = log.attempt()

    def told(answer: int, body: Any) -> None:
        status = received = reason = None
        if answer == STATUS:
            status = int.from_bytes(bytes(body[:4]), "big")
        elif answer == LOST and isinstance(body, FastsyncError):
            reason = body.message
        elif answer == DATA:
            received = sum(map(len, body))
        elif answer == HANDLE and place is not None:
            session.opened[_text(bytes(body))[0]] = place
        log.tell(
            log.TRACE,
            "request",
            protocol="sftp",
            method=name,
            place=place,
            offset=offset,
            asked=asked,
            status=status,
            sent=sent,
            received=received,
            duration_s=log.since(began),
            attempt=attempt,
            connection=session.number,
            reason=reason,
        )
        if kind == CLOSE:
            session.opened.pop(_text(head)[0], None)
        answered(answer, body)

    return told


def _described(
    session: Session, kind: int, head: bytes
) -> tuple[str, str | None, int | None, int | None]:
    """Name, place, offset and length of a request."""
    first, rest = _text(head)
    if kind == EXTENDED:
        path = _text(rest)[0]
        return first.decode("ascii", "replace"), os.fsdecode(path) or None, None, None
    if kind not in _BY_HANDLE:
        return _NAMES.get(kind, str(kind)), os.fsdecode(first), None, None
    place = session.opened.get(first) or first.hex()
    if kind not in (READ, WRITE):
        return _NAMES[kind], place, None, None
    offset = int.from_bytes(rest[:8], "big")
    asked = int.from_bytes(rest[8:12], "big") if len(rest) >= 12 else None
    return _NAMES[kind], place, offset, asked


def _text(data: bytes) -> tuple[bytes, bytes]:
    """The first string in `data`, and what follows it."""
    stop = 4 + int.from_bytes(data[:4], "big")
    return data[4:stop], data[stop:]
