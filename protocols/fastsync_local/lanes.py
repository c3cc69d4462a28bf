"""Helper processes for local work: started when there is enough of it, gone with the run.

Python runs one thread at a time; a directory listing or a small file is mostly interpreter. So a second
processor needs a second process. Lanes are started lazily (20 ms each, on the other processor).
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from typing import Any, Final

from fastsync import errors
from fastsync_local.worker import read_frame, write_frame

_BOOT = "import sys; sys.path[:0] = sys.argv[1:]; from fastsync_local.worker import main; main()"


# A file in hand is small; one that takes longer sits on a disk that does not answer.
CLOSE_WITHIN_S: Final = 3.0


PIPE_SIZE: Final = 1 << 20


class LaneFailed(Exception):
    """The helper process could not be started, or ended in the middle; the work can be done here."""


class Lane:
    """One helper process. Blocking: to be used from a thread, one request at a time."""

    def __init__(self) -> None:
        roots = {
            os.path.dirname(os.path.dirname(os.path.abspath(each)))
            for each in (__file__, errors.__file__)
        }
        if not sys.executable:
            raise LaneFailed("this interpreter does not know its own program")
        try:
            self._process = subprocess.Popen(
                # -S and -I: no site-packages, no environment; the two roots are all it needs.
                [sys.executable, "-I", "-S", "-c", _BOOT, *sorted(roots)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                pipesize=PIPE_SIZE,  # so that a walk runs ahead by some pages
            )
        except OSError as error:
            raise LaneFailed(str(error)) from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests = self._process.stdin.fileno()
        self._replies = self._process.stdout.fileno()

    def send(self, request: tuple[Any, ...]) -> None:
        """Raises LaneFailed."""
        try:
            write_frame(self._requests, request)
        except OSError as error:
            raise LaneFailed(str(error)) from error

    def receive(self) -> tuple[Any, ...]:
        """The next reply. Raises LaneFailed when the process is gone, OSError for what it reports."""
        try:
            reply = read_frame(self._replies)
        except OSError as error:
            raise LaneFailed(str(error)) from error
        if reply is None:
            raise LaneFailed("a helper process ended in the middle of its work")
        if reply[0] == "failed":
            raise OSError(reply[1], reply[2])
        return tuple(reply)

    def terminate(self) -> None:
        """Ask it to stop after the file in hand. Safe from any thread."""
        self._process.terminate()

    def hang_up(self) -> None:
        """Say that no more requests come, which ends it. Idempotent."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def close(self) -> None:
        """End it: it finishes the file in hand and goes. Blocks until it has. Idempotent."""
        self.hang_up()
        replies = self._process.stdout
        if replies is not None and not replies.closed:
            # Its end of the pipe closes as it exits: waiting for that needs no polling.
            ends_by = time.monotonic() + CLOSE_WITHIN_S
            while (left := ends_by - time.monotonic()) > 0:
                if not select.select([replies], [], [], left)[0]:
                    self._process.kill()
                    break
                if not os.read(self._replies, 1 << 16):
                    break
            else:
                self._process.kill()
            replies.close()
        self._process.wait()


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
