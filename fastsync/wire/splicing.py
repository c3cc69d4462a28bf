"""From a socket to a file without passing through us: splice(2), by way of a pipe."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
from typing import Final

CAN_SPLICE: Final = sys.platform == "linux"
# Linux's default limit for users, 16 times what a pipe has at first (pipe(7)).
_PIPE: Final = 1 << 20


class Splice:
    """A pipe; `take` into it, then `give` all of that away. A context manager."""

    def __init__(self) -> None:
        self._reads, self._writes = os.pipe2(os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # the user has as many as are allowed
            fcntl.fcntl(self._writes, fcntl.F_SETPIPE_SZ, _PIPE)
        self._by_kernel = True

    def __enter__(self) -> Splice:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._reads)
        os.close(self._writes)

    def take(self, source: int, most: int) -> int:
        """What has come from a socket, as much as fits; 0 at the end. Raises OSError."""
        return os.splice(source, self._writes, min(most, _PIPE))

    def give(self, target: int, position: int, count: int) -> None:
        """Write what was taken to a file. Raises OSError."""
        end = position + count
        while position < end:
            if self._by_kernel:
                try:
                    position += os.splice(self._reads, target, end - position, offset_dst=position)
                    continue
                except OSError as error:
                    if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                        raise
                    self._by_kernel = False  # the file system cannot
            data = memoryview(os.read(self._reads, end - position))
            while data:
                written = os.pwrite(target, data, position)
                data, position = data[written:], position + written
