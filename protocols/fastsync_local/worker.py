"""The helper process: copies batches and walks trees for the main one, on another processor.

It speaks frames on its standard input and output: four bytes of length, then a marshalled tuple. It
leaves Ctrl-C and the end of the terminal to its parent, stops after the file in hand on SIGTERM, and ends
when its input does; so a parent that is killed leaves a helper that finishes its batch and goes.
"""

from __future__ import annotations

import marshal
import os
import resource
import signal
import time

from fastsync_local.advance import Advance
from fastsync_local.copying import Copier, Rules
from fastsync_local.held import open_root
from fastsync_local.walk import Walk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fastsync_local.copying import Problem

_stopped: list[int] = []  # the signals that asked us to stop


def read_frame(fd: int) -> Any:
    """The next frame, or None at the end of the stream. Raises OSError."""
    header = _read_exactly(fd, 4)
    if header is None:
        return None
    body = _read_exactly(fd, int.from_bytes(header, "big"))
    return None if body is None else marshal.loads(body)


def write_frame(fd: int, value: Any) -> None:
    """Send one frame. Raises OSError (BrokenPipeError when the other side is gone)."""
    body = marshal.dumps(value)
    view = memoryview(len(body).to_bytes(4, "big") + body)
    while view:
        view = view[os.write(fd, view) :]


def _read_exactly(fd: int, count: int) -> bytes | None:
    chunks = []
    while count:
        chunk = os.read(fd, count)
        if not chunk:
            return None
        chunks.append(chunk)
        count -= len(chunk)
    return b"".join(chunks)


def open_same_root(path: str, identity: tuple[int, int]) -> int:
    """Open a root by the path the parent opened it by, and make sure it is the same directory."""
    fd = open_root(path)
    status = os.fstat(fd)
    if (status.st_dev, status.st_ino) != identity:
        os.close(fd)
        raise OSError(f"{path} was replaced during the run")
    return fd


def _copy(
    copiers: dict[Any, Copier],
    advance: Advance,
    source: Any,
    target: Any,
    rules: Any,
    jobs: Any,
) -> Any:
    key = (source, target)
    copier = copiers.get(key)
    if copier is None:
        for old in copiers.values():
            old.close()
        copiers.clear()
        copier = copiers[key] = Copier(
            open_same_root(*source),
            open_same_root(*target),
            Rules(**rules),
            stopped=lambda: bool(_stopped),
            moved=advance.moved,
        )
    advance.take()  # the time since the last batch is none without news
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    results: list[Problem | None] = copier.run(jobs)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # Giving up the processor of one's own accord is waiting for a disk; being put off it is not.
    waits = after.ru_nvcsw - before.ru_nvcsw
    waited = cpu < (time.monotonic() - started) / 2 and waits >= len(jobs)
    return results, waited, advance.take()


def main() -> None:
    """Serve until the input ends."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _frame: _stopped.append(number))
    requests = os.dup(0)
    replies = os.dup(1)
    copiers: dict[Any, Copier] = {}

    def tell(count: int) -> None:
        try:
            write_frame(replies, ("moved", count))
        except BrokenPipeError:
            pass  # nobody is left to be told; the batch is finished all the same

    advance = Advance(tell)
    while (request := read_frame(requests)) is not None:
        verb, *arguments = request
        try:
            if verb == "copy":
                write_frame(replies, ("done", *_copy(copiers, advance, *arguments)))
            else:
                root, options, after = arguments
                for page in Walk(open_same_root(*root), after=after, **options):
                    if _stopped:
                        os._exit(0)
                    write_frame(replies, ("page", *page))
                write_frame(replies, ("done",))
        except BrokenPipeError:
            break
        except OSError as error:
            write_frame(replies, ("failed", error.errno or 0, error.strerror or str(error)))
    # Nothing is left to be saved, and the interpreter's own farewell takes longer than a batch.
    os._exit(0)
