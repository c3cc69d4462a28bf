"""Exchanges told to `fastsync.log`: what was asked of whom, and how it went. Headers are never told, nor
the values of a query, unless they are known to be none of the user's (`WireOptions.tells_query`)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from fastsync import log
from fastsync.errors import FastsyncError
from fastsync.wire.messages import Outgoing, Reply

if TYPE_CHECKING:
    from fastsync.wire.client import Wire
    from fastsync.wire.connection import Connection

_VALUE: Final = re.compile(r"=[^&]*")


def tell_exchange(
    wire: Wire,
    request: Outgoing,
    connection: Connection,
    outcome: Reply | BaseException,
    began: float,
    *,
    sent: int | None = None,
    received: int | None = None,
    attempt: int | None = None,
) -> None:
    """One request and what it came to; `began` is of `time.monotonic`."""
    line = request.head.partition(b"\r\n")[0].decode("utf-8", "surrogateescape")
    method, _, target = line.partition(" ")
    target = target.rpartition(" ")[0]
    path, mark, query = target.partition("?")
    if mark and not wire.options.tells_query:
        query = _VALUE.sub("=***", query) if "=" in query else "***"
    # A proxy is asked for whole URLs.
    place = path if "://" in path else f"{wire.origin}{path}"
    status = reason = None
    if isinstance(outcome, Reply):
        status = outcome.status
        received = len(outcome.body) if received is None else received
    elif isinstance(outcome, FastsyncError):
        reason = outcome.message
    else:
        reason = type(outcome).__name__
    log.tell(
        log.TRACE,
        "request",
        protocol=wire.options.protocol,
        method=method,
        place=f"{place}{mark}{query}",
        status=status,
        sent=len(request.body) if sent is None else sent,
        received=received,
        duration_s=log.since(began),
        attempt=log.attempt() if attempt is None else attempt,
        connection=connection.number,
        reason=reason,
    )


def tell_connection(wire: Wire, connection: Connection, began: float) -> None:
    """A connection was made."""
    log.tell(
        log.DEBUG,
        "connect",
        protocol=wire.options.protocol,
        place=str(wire.origin),
        duration_s=log.since(began),
        connection=connection.number,
        open=wire.count,
    )
