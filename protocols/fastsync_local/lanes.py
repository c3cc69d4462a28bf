"""Helper processes for local work: started when there is enough of it, gone with the run.

Python runs one thread at a time; a directory listing or a small file is mostly interpreter. So a second
processor needs a second process. Lanes are started lazily (20 ms each, on the other processor).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fastsync
from fastsync_local.worker import read_frame, write_frame

_BOOT = "import sys; sys.path[:0] = sys.argv[1:]; from fastsync_local.worker import main; main()"


class LaneFailed(Exception):
    """The helper process could not be started, or ended in the middle; the work can be done here."""


class Lane:
    """One helper process. Blocking: to be used from a thread, one request at a time."""

    def __init__(self) -> None:
        roots = {str(Path(module).parent.parent) for module in (__file__, fastsync.__file__)}
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

    def close(self) -> None:
        """End it: it finishes the file in hand and goes. Blocks until it has. Idempotent."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None and not stream.closed:
                stream.close()
        self._process.terminate()
        try:
            self._process.wait(timeout=4)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
