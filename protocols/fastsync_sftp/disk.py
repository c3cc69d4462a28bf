"""Local files read and written off the event loop, block by block, without a future for each."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from fastsync.backend import Buffer

# Enough to have one copy bytes while another waits for the disk.
_THREADS: Final = 2

Outcome: TypeAlias = Callable[[Any], None]


class Disk:
    """A few threads that take blocks in order; outcomes are told on the event loop, many at once."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[tuple[Callable[[], object], Outcome] | None] = (
            queue.SimpleQueue()
        )
        self._outcomes: deque[tuple[Outcome, object]] = deque()
        self._is_told = False
        self._threads: list[threading.Thread] = []

    def read(self, fd: int, start: int, length: int, outcome: Outcome) -> None:
        """Read [start, start + length); the outcome is bytes, short at the end of the file, or OSError."""
        self._put(lambda: os.pread(fd, length, start), outcome)

    def write(self, fd: int, start: int, pieces: Sequence[Buffer], outcome: Outcome) -> None:
        """Write all pieces from `start` on; the outcome is None or OSError."""
        self._put(lambda: _write_all(fd, start, pieces), outcome)

    def close(self) -> None:
        """End the threads when the blocks in hand are done."""
        threads, self._threads = self._threads, []
        for _ in threads:
            self._jobs.put(None)
        for thread in threads:
            thread.join()

    def _put(self, work: Callable[[], object], outcome: Outcome) -> None:
        if not self._threads:
            for number in range(_THREADS):
                name = f"fastsync-sftp-disk-{number}"
                self._threads.append(threading.Thread(target=self._run, name=name, daemon=True))
                self._threads[-1].start()
        self._jobs.put((work, outcome))

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, outcome = job
            try:
                result = work()
            except OSError as error:
                result = error
            self._outcomes.append((outcome, result))
            if not self._is_told:
                self._is_told = True
                try:
                    self._loop.call_soon_threadsafe(self._tell)
                except RuntimeError:
                    return  # the loop is gone, and with it whoever wanted to know

    def _tell(self) -> None:
        # Before the deque is emptied: what comes after this is told by another call.
        self._is_told = False
        while self._outcomes:
            outcome, result = self._outcomes.popleft()
            outcome(result)


def _write_all(fd: int, start: int, pieces: Sequence[Buffer]) -> None:
    done = os.pwritev(fd, pieces, start)
    if done < sum(map(len, pieces)):
        view = memoryview(b"".join(pieces))
        while done < len(view):
            done += os.pwrite(fd, view[done:], start + done)
