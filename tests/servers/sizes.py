"""One large file, and many in one directory, under a tight limit of memory: how long, and in how much."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ADDRESS_SPACE_KIB = 400 << 10
# Reads the figures of the largest process under it, and ends as it did; a minute for a gigabyte is plenty.
_MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


class Figures(NamedTuple):
    """Of one run of the command; `peak` is the resident memory of its largest process, in bytes."""

    what: str
    took_s: float
    peak: int

    def __str__(self) -> str:
        return f"{self.what}: {self.took_s:.1f} s, {self.peak / 2**20:.0f} MiB at most"


def run(what: str, environ: Mapping[str, str], *arguments: str | Path) -> Figures:
    """The command, with the profile low_memory and 400 MB of addresses. Raises AssertionError if it fails."""
    limited = ["sh", "-c", f'ulimit -v {ADDRESS_SPACE_KIB} && exec "$@"', "sh"]
    command = [*limited, sys.executable, "-m", "fastsync", *arguments, "--profile", "low_memory"]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *command],
        check=False,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    took_s = time.monotonic() - began
    *said, kilobytes = done.stderr.splitlines()
    assert (done.returncode, said) == (0, []), (what, done.returncode, said[-5:])
    return Figures(what, took_s, int(kilobytes) << 10)


def one_large_file(folder: Path, environ: Mapping[str, str], nbytes: int) -> list[Figures]:
    """A file that is mostly hole, so that it costs no room; its copy has every byte written."""
    (folder / "large").mkdir()
    source, copy = folder / "large/source", folder / "large/copy"
    with open(source, "wb") as file:
        for start in range(0, nbytes, max(nbytes // 8, 1)):
            file.seek(start)
            file.write(b"here")
        file.truncate(nbytes)
    sync = ("cp", "--bwlimit", "100G", source, copy)  # by a limit it is read and written in parts
    try:
        figures = [run("a large file, by the kernel", environ, "cp", source, copy)]
        os.unlink(copy)
        figures.append(run("a large file, in parts", environ, *sync))
        assert copy.stat().st_size == nbytes
        assert copy.stat().st_blocks * 512 >= nbytes * 0.9, "it was not written"
        assert subprocess.run(["cmp", source, copy], check=False).returncode == 0
    finally:
        shutil.rmtree(folder / "large")
    return figures


def many_files(folder: Path, environ: Mapping[str, str], count: int) -> list[Figures]:
    """All in one directory, empty; copied, found unchanged, and deleted."""
    (folder / "many/source").mkdir(parents=True)
    source, copy = folder / "many/source", folder / "many/copy"
    directory = os.open(source, os.O_RDONLY)
    try:
        for number in range(count):
            os.close(os.open(f"{number:07}.txt", os.O_WRONLY | os.O_CREAT, dir_fd=directory))
        figures = [run(f"{count:,} files in a directory", environ, "sync", source, copy)]
        assert len(os.listdir(copy)) == count
        figures.append(run("once more, with nothing to do", environ, "sync", source, copy))
        for number in range(1, count):
            os.unlink(f"{number:07}.txt", dir_fd=directory)
        delete = ("sync", "--delete", "--max-delete", "100%", source, copy)
        figures.append(run("all but one deleted", environ, *delete))
        assert os.listdir(copy) == ["0000000.txt"]
    finally:
        os.close(directory)
        shutil.rmtree(folder / "many")
    return figures
