"""The real command, which kills itself at a given step of its work: ``python killed.py N VERB ...``

A step is a call by which something changes, or may be seen from outside: a file that is opened for writing,
renamed, deleted, given attributes, a connection that is made. N counts from 1; with fewer steps it just ends.
"""

from __future__ import annotations

import os
import signal
import sys

STEPS = frozenset(
    {
        "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate",
        "os.chmod", "os.utime", "socket.connect", "sqlite3.connect",
    }
)  # fmt: skip


def main() -> int:
    left = int(sys.argv.pop(1))
    from fastsync.cli.main import main as command

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        flags = arguments[2] if event == "open" and len(arguments) > 2 else 0
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
        if event in STEPS or (event == "open" and writes):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    return command()


if __name__ == "__main__":
    sys.exit(main())
