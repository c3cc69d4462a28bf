"""SSH by the system's own ``ssh``: a process per connection, its crypto in C on a processor of its own."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import shutil
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from fastsync import nearness
from fastsync.backend import Buffer
from fastsync.errors import (
    AccessRefused,
    FastsyncError,
    Throttled,
    Transient,
    Unsupported,
    UsageError,
)
from fastsync_sftp.agreeing import config_of
from fastsync_sftp.hashes import COMMAND
from fastsync_sftp.place import Place
from fastsync_sftp.session import Known, Session

# What the pipe between us and ssh holds; the system may give less.
_PIPE: Final = 4 << 20
_READ: Final = 512 << 10
# sendmsg takes 1024 buffers (IOV_MAX) on Linux, 16 are guaranteed.
_BUFFERS: Final = 512
_END_S: Final = 1.0
# What is kept of the beginning and of the end of what a process says.
_SAID: Final = 32 << 10
_FIRST_LOOK_S: Final = 0.02


def find_ssh() -> str | None:
    """Where the system's ssh is, if it has one."""
    return shutil.which("ssh")


class _Pipe:
    """The byte stream of a process, over one end of a pair of sockets."""

    def __init__(self, session: Session, ours: socket.socket, process: OpensshProcess) -> None:
        self._loop = asyncio.get_running_loop()
        self._session = session
        self._socket = ours
        self._process = process
        self._waiting: deque[memoryview] = deque()
        self._is_writing = False
        self._is_open = True
        self.unsent = 0
        ours.setblocking(False)
        self._loop.add_reader(ours.fileno(), self._read)

    @property
    def arrived(self) -> int | None:
        return self._process.arrived

    def write(self, data: list[Buffer]) -> None:
        if not self._is_open:
            return
        for part in data:
            view = memoryview(part)
            self._waiting.append(view)
            self.unsent += len(view)
        if not self._is_writing:
            self._send()

    def _send(self) -> None:
        waiting = self._waiting
        while waiting:
            some = [waiting[index] for index in range(min(len(waiting), _BUFFERS))]
            try:
                sent = self._socket.sendmsg(some)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                self._end()
                return
            self.unsent -= sent
            while waiting and sent >= len(waiting[0]):
                sent -= len(waiting.popleft())
            if sent:
                waiting[0] = waiting[0][sent:]
        if bool(waiting) != self._is_writing:
            self._is_writing = bool(waiting)
            if self._is_writing:
                self._loop.add_writer(self._socket.fileno(), self._send)
            else:
                self._loop.remove_writer(self._socket.fileno())

    def _read(self) -> None:
        try:
            data = self._socket.recv(_READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            self._session.feed(data)
        else:
            self._end()

    def _end(self) -> None:
        """The process has hung up."""
        self._session.lose(self._process.why_ended())

    def close(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        self._loop.remove_reader(self._socket.fileno())
        if self._is_writing:
            self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        self._waiting.clear()
        self.unsent = 0


class _Said:
    """What a process says on stderr, where the server has its say, too: the beginning and the end of it."""

    def __init__(self) -> None:
        self._read_end, self.write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._read_end, self._read)
        self._head = b""
        self._tail = b""

    def _read(self) -> None:
        try:
            data = os.read(self._read_end, _SAID)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._read_end)
        more = _SAID - len(self._head)
        self._head += data[:more]
        self._tail = (self._tail + data[more:])[-_SAID:]

    def begun(self) -> None:
        """The process has its own end now."""
        os.close(self.write_end)

    def text(self) -> str:
        """All that is there by now."""
        for _ in range(4):  # more than a pipe holds; a process that goes on must not hold us up
            self._read()
        return (self._head + self._tail).decode("utf-8", "replace")

    def close(self) -> None:
        self._loop.remove_reader(self._read_end)
        os.close(self._read_end)


class OpensshProcess:
    """One ``ssh -s HOST sftp``. What it says on stderr is kept, to tell why it ended."""

    def __init__(self, place: Place, process: asyncio.subprocess.Process, said: _Said) -> None:
        self._place = place
        self._process = process
        self._said = said

    @property
    def arrived(self) -> int | None:
        """What TCP has brought to the server, by way of this process."""
        sent = nearness.sent_by_process(self._process.pid)
        return None if sent is None else sent.arrived

    def why_ended(self) -> FastsyncError:
        """The error for a process that hung up, from what it said."""
        return error_of(self._said.text(), str(self._place))

    async def end(self) -> None:
        """Wait for it to go, now that the pipe is closed, and make it go if it does not."""
        await _gone(self._process)
        self._said.close()


class _Shell:
    """See `hashes.Shell`."""

    def __init__(
        self, process: asyncio.subprocess.Process, transport: asyncio.SubprocessTransport
    ) -> None:
        self._process = process
        self._transport = transport

    def write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)

    async def readline(self) -> bytes:
        assert self._process.stdout is not None
        try:
            return await self._process.stdout.readline()
        except (OSError, ValueError):
            return b""

    def close(self) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    async def end(self) -> None:
        """Close it, and wait until it is gone."""
        self.close()
        await _gone(self._process)
        self._transport.close()
        await asyncio.sleep(0)  # its pipes close then


async def _gone(process: asyncio.subprocess.Process) -> None:
    """Wait for a process to go, and make it go if it does not; not for whoever else holds its output, as
    asyncio would."""
    for _ in range(2):
        try:
            await asyncio.wait_for(process.wait(), _END_S)
            return
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):  # it has just gone
                process.kill()


class OpensshDialer:
    """Starts processes for connections to one place."""

    name = "openssh"

    def __init__(
        self,
        place: Place,
        ssh: str,
        connect_timeout_s: float,
        first: asyncio.Future[None] | None = None,
    ) -> None:
        self._place = place
        self._connect_timeout_s = connect_timeout_s
        self._command = partial(command, place, ssh, connect_timeout_s)
        self._processes: dict[Session, OpensshProcess] = {}
        self._shells: list[_Shell] = []
        self._first = first  # told how the first login went, for whoever waits with theirs

    async def dial(self, session: Session, known: Known, reached: Callable[[float], None]) -> None:
        """Begin `session` over a new connection. `reached` hears how long a round trip to the server is,
        once ssh has got through, where the system tells.

        Raises AccessRefused, UsageError, Transient.
        """
        try:
            await self._dial(session, reached)
        except FastsyncError as error:
            if (
                self._first is not None
                and not self._first.done()
                and not isinstance(error, Throttled)
            ):
                self._first.set_exception(error)
            raise
        if self._first is not None and not self._first.done():
            self._first.set_result(None)

    async def _dial(self, session: Session, reached: Callable[[float], None]) -> None:
        ours, theirs = socket.socketpair()
        said = _Said()
        try:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PIPE)
            # A session of its own: an interrupt is for us to handle, and ssh must live until we have.
            process = await asyncio.create_subprocess_exec(
                *self._command(),
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=said.write_end,
                start_new_session=True,
                env=_environ(),
            )
        except BaseException as error:
            ours.close()
            said.close()
            if isinstance(error, OSError):
                raise UsageError(f"ssh cannot be started: {error.strerror}") from error
            raise
        finally:
            theirs.close()
            said.begun()
        run = OpensshProcess(self._place, process, said)
        self._processes[session] = run
        stream = _Pipe(session, ours, run)
        looking = asyncio.create_task(_look(process.pid, reached))
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await session.begin(stream)
            session.rtt_s = min(session.rtt_s, nearness.of_process(process.pid))
        except BaseException as error:
            session.close()
            await asyncio.shield(self.hang_up(session))
            if isinstance(error, TimeoutError):
                raise Transient(
                    f"no connection within {self._connect_timeout_s:g} seconds",
                    where=str(self._place),
                ) from error
            if type(error) is Transient and _UNREACHED.search(error.message) is None:
                raise Throttled(error.message, where=error.where) from error
            raise
        finally:
            looking.cancel()

    async def shell(self) -> _Shell:
        """See `Dialer.shell`: a process more."""
        *argv, _, dashes, host, _ = self._command()
        loop = asyncio.get_running_loop()
        try:
            # As create_subprocess_exec does, which keeps the transport to itself.
            transport, protocol = await loop.subprocess_exec(
                partial(asyncio.subprocess.SubprocessStreamProtocol, limit=1 << 16, loop=loop),
                *argv, dashes, host, COMMAND,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
                env=_environ(),
            )  # fmt: skip
        except OSError as error:
            raise Unsupported(f"ssh cannot be started: {error.strerror}") from error
        shell = _Shell(asyncio.subprocess.Process(transport, protocol, loop), transport)
        self._shells.append(shell)
        return shell

    async def hang_up(self, session: Session) -> None:
        """End a session's process, the session being closed."""
        run = self._processes.pop(session, None)
        if run is not None:
            await run.end()

    async def aclose(self) -> None:
        """End the shells; the processes of sessions go with them."""
        shells, self._shells = self._shells, []
        for shell in shells:
            await shell.end()


async def _look(pid: int, reached: Callable[[float], None]) -> None:
    """Tell once ssh has got through."""
    pause_s = _FIRST_LOOK_S
    while True:
        await asyncio.sleep(pause_s)
        rtt_s = nearness.of_process(pid)
        if rtt_s < math.inf:
            reached(rtt_s)
            return
        pause_s *= 1.5


def _environ() -> dict[str, str]:
    """That of ssh: what is ours (header lines, a bearer token) is nobody else's, least of all a server's that
    SendEnv sends it to."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FASTSYNC_")}


def command(place: Place, ssh: str, connect_timeout_s: float) -> list[str]:
    """The command line, without anything secret. Nobody is there to answer a question: BatchMode."""
    options = {
        "BatchMode": "yes",
        "Compression": "no",
        "ClearAllForwardings": "yes",
        "ForwardX11": "no",
        "ForwardAgent": "no",
        "PermitLocalCommand": "no",
        # A connection of our own each time: over a shared one all would be as fast as one.
        "ControlMaster": "no",
        "ControlPath": "none",
        "StrictHostKeyChecking": "accept-new" if place.accept_new else "yes",
        # After ours.
        "ConnectTimeout": str(1 + math.ceil(connect_timeout_s)),
        # For routers in between. That no answer comes is no reason to end: the question may wait behind
        # megabytes on a slow link, and the session notices what is dead.
        "ServerAliveInterval": "15",
        "ServerAliveCountMax": "1000000",
        # Else it does not tell the key of a host that it refuses; and QUIET would tell nothing.
        "LogLevel": "DEBUG",
        "Ciphers": "^aes128-gcm@openssh.com,aes256-gcm@openssh.com",
    }
    argv = [ssh, "-x", "-a", "-T"]
    if place.transport == "auto":
        # What asyncssh would read, believe and offer, and nothing beside it.
        argv += ["-F", config_of(place) or "none"]
        options |= {
            "UpdateHostKeys": "no",
            "PreferredAuthentications": "publickey",
        }
    elif place.config is not None:
        argv += ["-F", place.config]
    if place.identity is not None:
        argv += ["-i", place.identity, "-o", "IdentitiesOnly=yes"]
    if place.known_hosts is not None:
        argv += ["-o", f"UserKnownHostsFile={_quoted(place.known_hosts)}"]
        argv += ["-o", "GlobalKnownHostsFile=none"]
    for name, value in options.items():
        argv += ["-o", f"{name}={value}"]
    if place.port is not None:
        argv += ["-p", str(place.port)]
    if place.user is not None:
        argv += ["-l", place.user]
    return [*argv, "-s", "--", place.host, "sftp"]


def _quoted(path: str) -> str:
    """A file name as a value of an option, which may be a list."""
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'


_FINGERPRINT = re.compile(
    r"Server host (?:key|certificate): (?:ssh-)?(\S+?)(?:-cert-\S+)? (SHA256:[A-Za-z0-9+/]{43})"
)
_REMOVE: Final = re.compile(r"ssh-keygen -f .* -R .*")
_CHANGED: Final = "the host key has changed, it is now {}: somebody may listen in"
_UNKNOWN: Final = "the host key is not known: {}"
_HOST_KEY: Final = (
    ("REVOKED HOST KEY", "the host key was revoked: {}"),
    ("HOST IDENTIFICATION HAS CHANGED", _CHANGED),
    ("host key is known for", _UNKNOWN),
    ("Host key verification failed", _UNKNOWN),
)
_REFUSED: Final = (
    ("Permission denied", "the server let nobody in"),
    ("Too many authentication failures", "the server let nobody in"),
    ("no matching", "we and the server have no common way to encrypt"),
    ("subsystem request failed", "the server offers no SFTP"),
)
# What a server does that has too many logins under way (MaxStartups).
_TURNED_AWAY: Final = "kex_exchange_identification"
# What ssh says when it did not even get a connection; any other end before a session is worth a new one.
_UNREACHED: Final = re.compile("connect to host .*: (?!Connection reset)")
_USAGE: Final = (
    "bad configuration option",
    "Bad configuration option",
    "Could not resolve hostname",
    "Can't open user config",
)


def error_of(said: str, where: str) -> FastsyncError:
    """The error for what ssh said before it ended."""
    key = _FINGERPRINT.search(said)
    said = "".join(line for line in said.splitlines(True) if not line.startswith("debug1:"))
    for text, message in _HOST_KEY:
        if text in said:
            # The last key is not ours to tell of where it was a host on the way (ProxyJump).
            shown = f"{key[1].upper()} {key[2]}" if key else "its own key was not seen"
            hint = None
            if message is _UNKNOWN:
                hint = "if that is the server's, accept it with --accept-new-host-key"
                if key is None:
                    hint = "if it is one on the way, log in there once with ssh"
            elif remove := _REMOVE.search(said):
                hint = f"if you know why, remove the old key with: {remove[0].strip()}"
            return AccessRefused(message.format(shown), where=where, hint=hint)
    for text, message in _REFUSED:
        if text in said:
            return AccessRefused(message, where=where, hint=_last(said))
    for text in _USAGE:
        if text in said:
            return UsageError(_last(said) or "ssh failed", where=where)
    if _TURNED_AWAY in said:
        return Throttled(_last(said) or "the server hung up", where=where)
    return Transient(_last(said) or "the connection was closed", where=where)


def _last(said: str) -> str | None:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][:300] if lines else None
