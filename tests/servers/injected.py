"""The command with system calls that fail on demand: strace attaches to it once it is warm.

Python itself calls the kernel thousands of times while it starts, so that the first `close` of a process is
never the one that a test is about. Here one process imports everything, and forks for each run; the child
waits until strace holds it. Counts (``when=2``) are of that child alone, and of each of its threads.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest


class Injected(NamedTuple):
    """How a run ended, and how many calls were made to fail."""

    code: int
    hits: int
    stderr: str


class Nursery:
    """The process that is warm, and the place that its children write to."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._folder = folder

    def run(self, faults: Sequence[str], *arguments: str | Path) -> Injected:
        """Run the command with these faults, each as strace's ``inject=`` takes it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        told = self._folder / "stderr"
        request = {"arguments": list(map(str, arguments)), "stderr": str(told)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        if not faults:
            os.kill(pid, signal.SIGUSR1)
            return Injected(int(self._process.stdout.readline()), 0, told.read_text())
        calls = ",".join(fault.partition(":")[0] for fault in faults)
        injects = [f"--inject={fault}" for fault in faults]
        trace = self._folder / "trace"
        tracer, _ = _attach(pid, "-f", f"--trace={calls}", "-o", str(trace), *injects)
        os.kill(pid, signal.SIGUSR1)
        code = int(self._process.stdout.readline())
        tracer.communicate(timeout=60)
        hits = trace.read_text(errors="replace").count("(INJECTED)")
        return Injected(code, hits, told.read_text(errors="surrogateescape"))


def _attach(pid: int, *options: str) -> tuple[subprocess.Popen[str], str]:
    """strace at work on a process, and what it said of that."""
    command = ["strace", "-p", str(pid), *options]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    return tracer, tracer.stderr.readline()


@contextlib.contextmanager
def nursery(folder: Path) -> Iterator[Nursery]:
    """Skips where strace may not attach to a process."""
    if shutil.which("strace") is None:
        pytest.skip("there is no strace")
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        tracer, said = _attach(sleeper.pid, "--trace=none", "-o/dev/null")
    finally:
        sleeper.kill()
        sleeper.wait()
    tracer.communicate()
    if "attached" not in said:
        pytest.skip(f"strace may not attach here: {said.strip()}")
    environ = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_STATE_HOME": str(folder / "state"),
        "LC_ALL": "C.UTF-8",
    }
    process = subprocess.Popen(
        [sys.executable, __file__, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
        cwd=folder,
    )
    try:
        yield Nursery(process, folder)
    finally:
        process.communicate(timeout=60)


def serve(folder: str) -> None:
    """Read requests, one a line; answer each with the child's number and then with its exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    _warm_up(folder)
    for line in sys.stdin:
        request = json.loads(line)
        ready, is_ready = os.pipe()
        child = os.fork()
        if child == 0:
            _become(request, is_ready)
        os.close(is_ready)
        os.read(ready, 1)  # from here on all that it calls is the command's
        os.close(ready)
        print(child, flush=True)  # noqa: T201
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201


def _become(request: dict[str, object], is_ready: int) -> None:
    from fastsync.cli import main

    nothing = os.open(os.devnull, os.O_RDWR)
    told = os.open(str(request["stderr"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.dup2(told, 2)
    sys.argv = ["fastsync", *request["arguments"]]  # type: ignore[misc]
    os.write(is_ready, b".")
    os.close(is_ready)
    signal.sigwait({signal.SIGUSR1})
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    main.run()


def _warm_up(folder: str) -> None:
    """Import what a run imports, as a child that ends has found out; a run here would leave threads."""
    from fastsync import registry

    code = (
        "import sys; from fastsync.cli.main import main; sys.argv[0] = 'fastsync'; main();"
        "print(*(name for name in sys.modules if name != '__main__'))"
    )
    warm = os.path.join(folder, "warm")
    os.makedirs(warm)
    Path(warm, "file").touch()
    command = [sys.executable, "-c", code, "sync", "--durable", "--summarize", warm, warm + "-copy"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    for name in done.stdout.splitlines()[-1].split():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # What is installed is read once; a fault there is another matter.
    registry.Registry.from_entry_points().load("file")


if __name__ == "__main__":
    serve(sys.argv[1])
