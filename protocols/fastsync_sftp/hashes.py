"""Digests computed by the server, where a shell can be had there: nothing needs it, and it is asked for once.

The shell is a plain ``sh`` that is told on its standard input what to do, one line per file and one line
for an answer, so that no login shell gets to read a name. That it sees the files that SFTP sees is not
certain (a server may show another root to either): a file that is not there, or of another length, has no
digest.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Protocol

from fastsync import log
from fastsync.errors import FastsyncError, Transient, Unsupported

COMMAND: Final = "exec sh"
# What makes a digest of its standard input, by algorithm: GNU and BusyBox, Perl (macOS), the BSDs.
_TOOLS: Final = {
    "sha256": ("sha256sum", "shasum -a 256", "sha256 -q"),
    "md5": ("md5sum", "md5 -q"),
}
_LENGTHS: Final = {"sha256": 64, "md5": 32}
# Files that are read at once there.
_SHELLS: Final = 4
_ANSWER_S: Final = 10.0
# While it reads a file the server says nothing. Bytes per second of a disk that is slow, and asked by four.
_SLOWEST: Final = 4 << 20
# Lines that a shell may greet with before it answers.
_GREETING: Final = 100


class Shell(Protocol):
    """A ``sh`` at the server."""

    def write(self, data: bytes) -> None: ...

    async def readline(self) -> bytes:
        """The next line, empty at the end."""
        ...

    def close(self) -> None: ...


class RemoteHashes:
    """The shells at one server. `open_shell` raises errors of ours; one that says nothing is given
    `stall_timeout_s`, and the time to read what it was asked about."""

    def __init__(
        self,
        open_shell: Callable[[], Awaitable[Shell]],
        stall_timeout_s: float,
        lacks: Callable[[str], None],
    ) -> None:
        self._open_shell = open_shell
        self._stall_timeout_s = stall_timeout_s
        self._lacks = lacks
        self._tools: dict[str, str] = {}
        self._idle: list[Shell] = []
        self._slots = asyncio.Semaphore(_SHELLS)
        self._finding: asyncio.Task[None] | None = None

    @property
    def algorithms(self) -> tuple[str, ...]:
        """What can be had, none before `find` was called."""
        return tuple(self._tools)

    async def find(self) -> None:
        """Find out, once, what the server can do."""
        if self._finding is None:
            self._finding = asyncio.create_task(self._find())
        await asyncio.shield(self._finding)

    async def _find(self) -> None:
        names = [name for tools in _TOOLS.values() for name in tools]
        asked = " ".join(name.partition(" ")[0] for name in names)
        script = f"for t in {asked}; do command -v $t >/dev/null 2>&1 && printf '%s ' $t; done"
        try:
            async with self._shell() as shell, asyncio.timeout(_ANSWER_S):
                shell.write(f"printf 'fastsync '; {script}; echo .\n".encode())
                line = await shell.readline()
                greeted = 0
                while line and not line.startswith(b"fastsync ") and greeted < _GREETING:
                    line = await shell.readline()
                    greeted += 1
                found = line.decode("ascii", "replace").split()
        except (FastsyncError, TimeoutError):
            found = []
        for algorithm, tools in _TOOLS.items():
            tool = next((each for each in tools if each.partition(" ")[0] in found[1:-1]), None)
            if tool is not None:
                self._tools[algorithm] = tool
        if not self._tools:
            self._lacks("no digests can be computed there; what is compared by content is read")

    async def digest(self, path: bytes, size: int, algorithm: str) -> str:
        """The digest of a file as it is now. Raises Unsupported where none can be had, Transient."""
        name = shlex.quote(path.decode("utf-8", "surrogateescape")).encode(
            "utf-8", "surrogateescape"
        )
        began = time.monotonic()
        patience_s = self._stall_timeout_s + size / _SLOWEST
        async with self._slots:
            tool = self._tools.get(algorithm)  # it may have gone while this one waited
            if tool is None:
                raise Unsupported(f"the server has no {algorithm}")
            try:
                async with self._shell() as shell, asyncio.timeout(patience_s):
                    shell.write(
                        b"f=%s; { wc -c <\"$f\" && %s <\"$f\"; } 2>/dev/null | tr '\\n' ' '; echo\n"
                        % (name, tool.encode())
                    )
                    line = await shell.readline()
            except TimeoutError as error:
                self._tools.clear()  # once is enough
                self._lacks("its shell answers no more; what is compared by content is read")
                raise Unsupported(
                    f"the server told no digest within {patience_s:.0f} seconds"
                ) from error
        if log.level <= log.TRACE:
            log.tell(
                log.TRACE,
                "request",
                protocol="sftp",
                method=tool,
                place=os.fsdecode(path),
                received=len(line),
                duration_s=log.since(began),
            )
        if not line.endswith(b"\n"):
            raise Transient("the connection was cut")
        answer = re.fullmatch(
            rf"\s*(\d+)\s+\\?([0-9a-f]{{{_LENGTHS[algorithm]}}})\b.*\s*",
            line.decode("ascii", "replace"),
        )
        if answer is None or int(answer[1]) != size:
            raise Unsupported("the server's shell does not tell a digest of this file")
        return answer[2]

    @contextlib.asynccontextmanager
    async def _shell(self) -> AsyncIterator[Shell]:
        """A shell that is at the beginning of a line, and comes back only if it is there again."""
        shell = self._idle.pop() if self._idle else await self._open_shell()
        try:
            yield shell
        except BaseException:
            shell.close()
            raise
        self._idle.append(shell)

    async def aclose(self) -> None:
        """Idempotent."""
        if self._finding is not None:
            self._finding.cancel()
            await asyncio.wait([self._finding])
        while self._idle:
            self._idle.pop().close()
