"""SSH by asyncssh, in this process: always there, and able to ask for a password."""

from __future__ import annotations

import asyncio
import math
import os
import select
import socket
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from fastsync import nearness
from fastsync.backend import Buffer, StoreOptions
from fastsync.errors import (
    AccessRefused,
    FastsyncError,
    Throttled,
    Transient,
    Unsupported,
    UsageError,
)
from fastsync.redaction import conceal
from fastsync_sftp.configuration import Configured, read_configuration
from fastsync_sftp.hashes import COMMAND
from fastsync_sftp.host_keys import HostKeys
from fastsync_sftp.place import Place
from fastsync_sftp.session import Known, Server, Session

if TYPE_CHECKING:
    import asyncssh

# A window is what may be on its way to us: 1 Gbit/s over 500 ms. Never filled by more than was asked for.
_WINDOW: Final = 64 << 20
# OpenSSH sends up to 32 KiB in a packet whatever we allow; others may send more.
_PACKET: Final = 128 << 10
# So that no router in between forgets the connection. That nobody answers is no reason to end it: the
# question may wait behind megabytes on a slow link. TCP and the session notice what is dead.
_KEEPALIVE_S: Final = 15.0
_NO_END: Final = 1 << 30
# How soon a question is taken back, when somebody else ends the run.
_GLANCE_S: Final = 0.1
# By then a server that gives a shell has given one.
_SHELL_S: Final = 10.0
# AES-GCM first: with AES in the processor several times as fast as what asyncssh puts first. The rest
# stays as it is.
_CIPHERS: Final = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"


class _Channel:
    """The byte stream of one SSH channel."""

    def __init__(
        self,
        channel: asyncssh.SSHClientChannel[bytes],
        connection: asyncssh.SSHClientConnection,
    ) -> None:
        self._channel = channel
        self._connection = connection

    def write(self, data: list[Buffer]) -> None:
        try:
            self._channel.write(data[0] if len(data) == 1 else b"".join(data))
        except OSError:
            return  # it is closed, and whoever waits is told by connection_lost

    @property
    def unsent(self) -> int:
        return self._channel.get_write_buffer_size()

    @property
    def arrived(self) -> int | None:
        sock = _own_socket(self._connection)
        sent = None if sock is None else nearness.sent(sock)
        return None if sent is None else sent.arrived

    def close(self) -> None:
        self._connection.abort()


class Prompts:
    """Asks on the terminal, each question once per run; answers are kept for further connections."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._known: dict[str, str | None] = {}
        self._turn = asyncio.Lock()
        self.is_dead_end = False

    async def ask(self, question: str) -> str | None:
        """The answer, None if nobody can be asked."""
        async with self._turn:
            if question not in self._known:
                self._known[question] = await _ask(question)
                conceal(self._known[question])
            answer = self._known[question]
            self.is_dead_end = self.is_dead_end or answer is None
            return answer

    async def password(self) -> str | None:
        if self._place.password is not None:
            return self._place.password
        return await self.ask(f"Password for {str(self._place).removeprefix('sftp://')}: ")

    async def passphrase(self, file: object) -> str | None:
        return await self.ask(f"Passphrase for {os.fsdecode(str(file))}: ")


async def _ask(question: str) -> str | None:
    stop = threading.Event()
    asking = asyncio.ensure_future(asyncio.to_thread(_read_hidden, question, stop))
    try:
        return await asyncio.shield(asking)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([asking])
        raise


def _read_hidden(question: str, stop: threading.Event) -> str | None:
    """A line from the terminal, which shows again what is typed when this returns; None where there is no
    terminal. getpass would wait on after an interrupt, and where there is no terminal read standard input."""
    try:
        import termios

        fd = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except (ImportError, OSError):
        return None
    try:
        usual = termios.tcgetattr(fd)
        hidden = [*usual[:3], usual[3] & ~termios.ECHO, *usual[4:]]
        line = b""
        try:
            termios.tcsetattr(fd, termios.TCSAFLUSH, hidden)
            os.write(fd, question.encode("utf-8", "replace"))
            while not line.endswith(b"\n"):
                if stop.is_set():
                    return None
                if select.select([fd], [], [], _GLANCE_S)[0]:
                    data = os.read(fd, 4096)
                    if not data:
                        return None
                    line += data
        finally:
            termios.tcsetattr(fd, termios.TCSAFLUSH, usual)
            os.write(fd, b"\n")
        return os.fsdecode(line.rstrip(b"\r\n"))
    except (termios.error, OSError):
        return None
    finally:
        os.close(fd)


class _Shell:
    """See `hashes.Shell`."""

    def __init__(self, process: asyncssh.SSHClientProcess[bytes]) -> None:
        self._process = process

    def write(self, data: bytes) -> None:
        try:
            self._process.stdin.write(data)
        except OSError:
            return  # it is closed, and there will be no answer

    async def readline(self) -> bytes:
        import asyncssh

        try:
            return await self._process.stdout.readline()
        except (asyncssh.Error, OSError):
            return b""

    def close(self) -> None:
        self._process.close()


# Called with the seconds that a round trip takes, or at least no less: what it took to get through.
Reached: TypeAlias = Callable[[float], None]


class AsyncsshDialer:
    """Makes connections to one place, with one session on each."""

    name = "asyncssh"

    def __init__(
        self, place: Place, options: StoreOptions, first: asyncio.Future[None] | None = None
    ) -> None:
        self._place = place
        self._options = options
        self._prompts = Prompts(place)
        self._connections: dict[Session, asyncssh.SSHClientConnection] = {}
        self._configured: asyncio.Task[Configured] | None = None
        self._is_plain = False  # certificates of hosts lead nowhere
        # There from when the first one begins: its result is whether others may log in. That one may be
        # somebody else's.
        self.first = first

    async def dial(self, session: Session, known: Known, reached: Reached) -> None:
        """Begin `session` over a new connection; `reached` hears how long a round trip to the server is,
        once it has got through. Others may be dialed from then on: they wait with their login for the
        first one's success, so that a key or password that is refused is refused once.

        Raises AccessRefused, UsageError, Transient.
        """
        leads = self.first is None or (self.first.done() and self.first.exception() is not None)
        if leads:
            self.first = asyncio.get_running_loop().create_future()
            self.first.add_done_callback(notice)
        try:
            await self._dial(session, known, reached if leads else None)
        except BaseException as error:
            if leads and self.first is not None and not self.first.done():
                self.first.set_exception(
                    error if isinstance(error, FastsyncError) else Transient("not connected")
                )
                self.first = None
            raise

    async def _dial(self, session: Session, known: Known, reached: Reached | None) -> None:
        import asyncssh

        options = self._options
        keys: HostKeys | None = None
        started = asyncio.get_running_loop().time()

        def made(connection: asyncssh.SSHClientConnection) -> None:
            if reached is not None:
                took_s = asyncio.get_running_loop().time() - started
                reached(min(took_s, round_trip_s(connection)))

        connection: asyncssh.SSHClientConnection | None = None
        try:
            async with asyncio.timeout(options.request_timeout_s):
                configured = await self._configuration()
                keys = self._host_keys(configured)
                client = partial(
                    _client, keys, self._prompts, made, None if reached else self.first
                )
                connection = await asyncssh.connect(
                    self._place.host, client_factory=client, **self._arguments(configured, keys)
                )
                self._tune(connection)
                if self.first is not None and not self.first.done():
                    self.first.set_result(None)
                self._connections[session] = connection
                await self._open(connection, session, known())
                session.rtt_s = min(session.rtt_s, round_trip_s(connection))
        except BaseException as error:
            self._connections.pop(session, None)
            if connection is not None:
                connection.abort()
            session.close()
            mapped = self._error(error, keys)
            if mapped is None:
                raise
            raise mapped from error

    async def _open(
        self, connection: asyncssh.SSHClientConnection, session: Session, known: Server | None
    ) -> None:
        """Begin the session on a channel of its own, without waiting for the subsystem to answer. With a
        server that is known this is over when the channel is there."""
        opened: asyncio.Future[_Channel] = asyncio.get_running_loop().create_future()

        def begin(channel: asyncssh.SSHClientChannel[bytes]) -> None:
            stream = _Channel(channel, connection)
            if known is not None and session.alive:
                session.begin_with(stream, known)
            if not opened.done():
                opened.set_result(stream)

        creating = asyncio.ensure_future(
            connection.create_session(
                lambda: _receiver(session, begin),
                subsystem="sftp",
                encoding=None,
                window=_WINDOW,
                max_pktsize=_PACKET,
            )
        )
        creating.add_done_callback(lambda task: self._created(session, task, opened))
        stream = await opened
        if known is not None:
            return
        try:
            await session.begin(stream, is_in=True)
        except FastsyncError:
            await creating  # which says more, if it is the subsystem that is missing
            raise

    def _created(
        self, session: Session, creating: asyncio.Future[Any], opened: asyncio.Future[_Channel]
    ) -> None:
        """The channel has its subsystem, or there is none; `opened` may still be waited for."""
        error = None if creating.cancelled() else creating.exception()
        if error is not None:
            session.lose(Transient(f"no session on a new connection: {error}"))
            if not opened.done():
                opened.set_exception(error)

    async def _configuration(self) -> Configured:
        """Read once, for all connections."""
        if self._configured is None or self._configured.cancelled():
            self._configured = asyncio.create_task(read_configuration(self._place))
            self._configured.add_done_callback(notice)
        return await asyncio.shield(self._configured)

    def _host_keys(self, configured: Configured) -> HostKeys:
        return HostKeys(
            configured.known,
            str(self._place),
            configured.host,
            configured.port,
            configured.alias,
            accept_new=self._place.accept_new,
        )

    def _arguments(self, configured: Configured, keys: HostKeys) -> dict[str, Any]:
        arguments = {
            **configured.arguments,
            "known_hosts": lambda _host, _addr, _port: keys.find(),
            "encryption_algs": _CIPHERS,
            "compression_algs": None,
            "keepalive_interval": _KEEPALIVE_S,
            "keepalive_count_max": _NO_END,
            "login_timeout": self._options.request_timeout_s,
            "passphrase": self._prompts.passphrase,
            "agent_forwarding": False,
        }
        if self._is_plain or not configured.has_key_kinds:
            arguments["server_host_key_algs"] = keys.algorithms(plain=self._is_plain)
        return arguments

    def _tune(self, connection: asyncssh.SSHClientConnection) -> None:
        """Set what the profile says of the socket, where there is one (no ProxyCommand)."""
        sock = connection.get_extra_info("socket")
        if sock is None:
            return
        options = self._options
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            patience_ms = int(options.stall_timeout_s * 1000)
            _try_to_set(sock, socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience_ms)
        for level, name, value in (
            (socket.SOL_SOCKET, socket.SO_SNDBUF, options.tcp_send_buffer),
            (socket.SOL_SOCKET, socket.SO_RCVBUF, options.tcp_recv_buffer),
        ):
            if value is not None:
                _try_to_set(sock, level, name, value)
        if options.congestion_control is not None and hasattr(socket, "TCP_CONGESTION"):
            algorithm = options.congestion_control.encode()
            _try_to_set(sock, socket.IPPROTO_TCP, socket.TCP_CONGESTION, algorithm)

    def _error(self, error: BaseException, keys: HostKeys | None) -> FastsyncError | None:
        """The error of ours for one of asyncssh's; None for what is not an error of the connection."""
        import asyncssh
        from asyncssh.packet import PacketDecodeError

        where = str(self._place)
        if type(error) is Transient:  # the session was cut before it began
            return Throttled(error.message, where=where)
        if isinstance(error, FastsyncError):
            return error.at(where)
        if keys is not None and keys.refusal is not None:
            return keys.refusal
        if keys is not None and keys.is_certified_by_others and not self._is_plain:
            # As for ssh, the certificate counts for nothing then: once more, with the plain key.
            self._is_plain = True
            return Throttled("the host's certificate is of an unknown authority", where=where)
        if isinstance(error, TimeoutError):
            return Transient(
                f"no connection within {self._options.request_timeout_s:g} seconds", where=where
            )
        if isinstance(error, asyncssh.PermissionDenied):
            hint = "log in with a key that the server knows (--identity, or an agent)"
            if self._prompts.is_dead_end:
                hint += "; there is no terminal to ask for a password or passphrase"
            return AccessRefused(
                f"the server let nobody in: {error.reason}", where=where, hint=hint
            )
        if isinstance(error, asyncssh.HostKeyNotVerifiable):
            # Unless it was revoked, it is of a host on the way (ProxyJump): of ours we would know more.
            is_revoked = "revoked" in error.reason
            how = None if is_revoked else "log in there once with ssh, and accept its key"
            return AccessRefused(error.reason, where=where, hint=how)
        if isinstance(error, asyncssh.KeyExchangeFailed):
            return AccessRefused(
                f"no way to talk to the server: {error.reason}",
                where=where,
                hint="if its host key changed, remove the old one with ssh-keygen -R",
            )
        if isinstance(error, asyncssh.ChannelOpenError):
            if error.code == asyncssh.OPEN_CONNECT_FAILED:  # asyncssh's own word for a cut
                return Throttled(self._cut(), where=where)
            return AccessRefused(
                f"the server offers no SFTP: {error.reason}",
                where=where,
                hint="the line `Subsystem sftp internal-sftp` in its sshd_config switches it on",
            )
        if isinstance(error, asyncssh.ConnectionLost):
            return Throttled(self._cut(), where=where)
        if isinstance(error, asyncssh.DisconnectError):
            return Transient(f"the server hung up: {error.reason}", where=where)
        if isinstance(error, (asyncssh.KeyImportError, asyncssh.KeyEncryptionError)):
            return UsageError(f"a key cannot be read: {error}", where=where)
        if isinstance(error, asyncssh.ConfigParseError):
            return UsageError(f"the SSH configuration cannot be read: {error}", where=where)
        if isinstance(error, socket.gaierror):
            return UsageError(f"the host is not known: {error.strerror}", where=where)
        if isinstance(error, OSError):
            # A server that has too many logins under way (MaxStartups) hangs up without a word.
            cut = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)
            kind = Throttled if isinstance(error, cut) else Transient
            if error.filename is not None:
                return UsageError(f"{error.filename}: {_said(error)}", where=where)
            return kind(self._cut() if kind is Throttled else _said(error), where=where)
        if isinstance(error, PacketDecodeError):
            return FastsyncError("what the server says is no SSH", where=where)
        if isinstance(error, ValueError):
            return UsageError(str(error), where=where)
        return None

    def _cut(self) -> str:
        task = self._configured
        is_read = task is not None and task.done() and not task.cancelled()
        if is_read and task is not None and not task.exception() and task.result().is_proxied:
            return "the server, or what leads there (ProxyCommand), hung up before we were in"
        return "the server hung up before we were in"

    async def shell(self) -> _Shell:
        """See `Dialer.shell`: a channel of a connection that is there."""
        import asyncssh

        for connection in self._connections.values():
            try:
                async with asyncio.timeout(_SHELL_S):
                    return _Shell(
                        await connection.create_process(
                            COMMAND, stderr=asyncssh.DEVNULL, encoding=None
                        )
                    )
            except TimeoutError as error:
                raise Unsupported(f"the server gave no shell in {_SHELL_S:.0f} seconds") from error
            except (asyncssh.Error, OSError) as error:
                raise Unsupported(f"the server gives no shell: {error}") from error
        raise Transient("the connection was cut", where=str(self._place))

    async def hang_up(self, session: Session) -> None:
        """End a session's connection, the session being closed."""
        connection = self._connections.pop(session, None)
        if connection is not None:
            connection.abort()
            await connection.wait_closed()

    async def aclose(self) -> None:
        """Idempotent; connections go with their sessions."""
        if self._configured is not None:
            self._configured.cancel()
            await asyncio.wait([self._configured])


def notice(future: asyncio.Future[Any]) -> None:
    """See an exception that perhaps nobody waits for."""
    if not future.cancelled():
        future.exception()


def _said(error: OSError) -> str:
    # asyncio has words of its own for what failed, and the reason only as a number.
    said = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
    return (said or type(error).__name__).lower()


def round_trip_s(connection: asyncssh.SSHClientConnection) -> float:
    """The shortest round trip that TCP has seen, infinite where it does not tell."""
    sock = _own_socket(connection)
    return math.inf if sock is None else nearness.of_socket(sock)


def _own_socket(connection: asyncssh.SSHClientConnection) -> Any:
    """The socket to the server; None where it is reached over another connection (ProxyJump), whose socket
    goes to the first host alone, or by a command."""
    if connection.get_extra_info("connection") is not None:
        return None
    return connection.get_extra_info("socket")


def _try_to_set(sock: Any, level: int, name: int, value: int | bytes) -> None:
    try:
        sock.setsockopt(level, name, value)
    except OSError:
        return  # a kernel without it keeps its default


def _client(
    keys: HostKeys,
    prompts: Prompts,
    made: Callable[[asyncssh.SSHClientConnection], None],
    first: asyncio.Future[None] | None,
) -> asyncssh.SSHClient:
    """What asyncssh asks while it logs in; it does not log in before `first` has."""
    import asyncssh

    class Client(asyncssh.SSHClient):
        def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
            made(conn)
            if first is not None and not first.done():
                # The one step of a login that is asked for and may wait. It comes first, as keys do.
                ask = conn.public_key_auth_requested

                async def ask_later() -> asyncssh.SSHKeyPair | None:
                    await asyncio.shield(first)
                    return await ask()

                conn.public_key_auth_requested = ask_later  # type: ignore[method-assign]

        def validate_host_public_key(
            self, host: str, addr: str, port: int, key: asyncssh.SSHKey
        ) -> bool:
            return keys.is_trusted(key)

        def validate_host_ca_key(
            self, host: str, addr: str, port: int, key: asyncssh.SSHKey
        ) -> bool:
            keys.is_certified_by_others = True
            return False

        async def password_auth_requested(self) -> str | None:
            return await self._answer_once()

        async def kbdint_auth_requested(self) -> str:
            return ""

        async def kbdint_challenge_received(
            self, name: str, instructions: str, lang: str, questions: Sequence[tuple[str, bool]]
        ) -> list[str] | None:
            answers = []
            for text, _ in questions:
                is_password = "password" in text.lower()
                answer = await (self._answer_once() if is_password else prompts.ask(_plain(text)))
                if answer is None:
                    return None
                answers.append(answer)
            return answers

        _is_answered = False

        async def _answer_once(self) -> str | None:
            # The same wrong password again would only count as one more attempt.
            if self._is_answered:
                return None
            self._is_answered = True
            return await prompts.password()

    return Client()


def _plain(text: str) -> str:
    """A server's question without anything a terminal would act on."""
    return "".join(char for char in text if char.isprintable())[:200] + " "


def _receiver(
    session: Session, begin: Callable[[asyncssh.SSHClientChannel[bytes]], None]
) -> asyncssh.SSHClientSession[bytes]:
    """Where asyncssh delivers what arrives on the channel."""
    import asyncssh

    class Receiver(asyncssh.SSHClientSession[bytes]):
        def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
            # After this turn, in which the subsystem is asked for.
            asyncio.get_running_loop().call_soon(begin, chan)

        def data_received(self, data: bytes, datatype: int | None) -> None:
            if datatype is None:  # what a server says on stderr is no SFTP
                session.feed(data)

        def connection_lost(self, exc: Exception | None) -> None:
            session.lose(Transient("the connection was cut"))

    return Receiver()
