"""The resident memory of a command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.conftest import Fastsync

# Runs a command and says on descriptor 2 what its resident memory was at most.
_MEASURED: Final = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def peak(fastsync: Fastsync, *arguments: str, stdin: Path | None = None) -> int:
    """Bytes; the command has to succeed."""
    with open(stdin or os.devnull, "rb") as given:
        done = subprocess.run(
            [sys.executable, "-c", _MEASURED, *fastsync.command(*arguments)],
            check=False,
            env=fastsync.environ,
            cwd=fastsync.cwd,
            stdin=given,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=120,
        )
    *said, kilobytes = done.stderr.decode().splitlines()
    assert (done.returncode, said) == (0, [])
    return int(kilobytes) * 1024
