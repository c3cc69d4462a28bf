"""Operations on local files told to `fastsync.log`, one line for each file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from fastsync import log
from fastsync.errors import FastsyncError


def tell_files(
    method: str,
    where: Callable[[str], str],
    files: Iterable[tuple[str, int | None]],
    answers: Sequence[object],
    began: float,
) -> None:
    """What became of each of `files`, paths with their sizes, which were one call: an error or anything else
    stands in `answers`. Times are the call's."""
    duration_s = log.since(began)
    batch = len(answers)
    for (path, size), answer in zip(files, answers, strict=False):
        failed = isinstance(answer, FastsyncError)
        log.tell(
            log.TRACE,
            "request",
            protocol="local",
            method=method,
            place=where(path),
            status="failed" if failed else "ok",
            bytes=None if failed else size,
            duration_s=duration_s,
            batch=batch,
            attempt=log.attempt(),
            reason=answer.message if isinstance(answer, FastsyncError) else None,
        )
