"""Faults of SSH servers and of the line to them, for the scoreboard."""

from __future__ import annotations

import asyncio
import os
import shlex
import threading
from collections.abc import AsyncIterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import asyncssh
import pytest
from fault_proxy import FaultProxy, Trouble
from scoreboard_run import NEW_S, OLD_S, CannotRun, Case, Files, Scene, found, noise, plant
from sshd import SFTP_SERVERS, OurServer, running_sshd

TOOLS = ("fastsync", "rsync", "scp", "rclone")
SAYS = {
    "fastsync": "`fastsync sync [--delete] --identity FILE --known-hosts FILE`",
    "rsync": "`rsync -a [--delete]` by `ssh -o BatchMode=yes`; not with servers that speak SFTP alone",
    "scp": "`scp -rp -o BatchMode=yes`, which does not delete",
    "rclone": "`rclone copy`, or `rclone sync` to delete, with `known_hosts_file` but for the keys of hosts",
}
AFTER = 2 << 20


@dataclass(frozen=True)
class SftpCase(Case):
    """`trouble` is that of the next connection, or with `always` of every one. `lies` are those of a server
    of our own (see `_Liar`). `key` is a host key that is unknown, or another than is known: somebody else
    answers then, with other files. `denied` is a directory of the source that the server may not read.
    """

    down: bool = True
    trouble: Trouble | None = None
    always: bool = False
    lies: dict[str, Any] = field(default_factory=dict)
    key: Literal["unknown", "changed"] | None = None
    denied: str | None = None

    def scene(self, root: Path) -> Scene:
        return _Ends(self, root)


class _Ends(Scene):
    def __init__(self, case: SftpCase, root: Path) -> None:
        super().__init__(root)
        self._case = case
        self._server = root / "server"
        # What is at the server's end is not around what is at ours.
        self._far = root / "far/there"
        self._known_hosts = root / "known"
        self._powerless = "setpriv --bounding-set=-all --inh-caps=-all" if os.geteuid() == 0 else ""

    def open(self) -> None:
        case = self._case
        near, far = (case.old, case.source) if case.down else (case.source, case.old)
        if case.key is not None:
            far = {name: noise(len(body), "impostor") for name, body in far.items()}
        plant(self.dest if case.down else self.source, near, OLD_S if case.down else NEW_S)
        times = OLD_S if case.key is not None or not case.down else NEW_S
        plant(self._far, far, times)
        if case.lies:
            plant(self._far.parent, {"outside": b"escaped"})
            self._user = "somebody"
            port = self.stack.enter_context(_lying(self._server, {**case.lies, "at": self.place}))
        else:
            self._server.mkdir()
            try:
                server = self.stack.enter_context(
                    running_sshd(self._server, subsystem=self._subsystem())
                )
            except pytest.skip.Exception as exc:
                raise CannotRun(str(exc)) from exc
            self._user, port = server.user, server.port
        self._proxy = self.stack.enter_context(FaultProxy(port))
        if case.trouble is not None and case.always:
            self._proxy.always(case.trouble)
        elif case.trouble is not None:
            self._proxy.next(case.trouble)
        if case.denied is not None:
            (self._far / case.denied).chmod(0)
            self.stack.callback(self._allow)
        known = {None: self._known, "unknown": lambda: "", "changed": self._another}[case.key]
        self._known_hosts.write_text(known())

    def _subsystem(self) -> str | None:
        if self._case.denied is None:
            return None
        server = next((path for path in SFTP_SERVERS if os.access(path, os.X_OK)), None)
        if server is None:
            raise CannotRun("there is no sftp-server")
        return f"{self._powerless} {server}".strip()

    def _known(self) -> str:
        return f"[127.0.0.1]:{self._proxy.port} {(self._server / 'host_key.pub').read_text()}"

    def _another(self) -> str:
        key = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
        return f"[127.0.0.1]:{self._proxy.port} {key}"

    def command(self, tool: str, path: str) -> list[str] | None:
        case, port = self._case, str(self._proxy.port)
        identity = str(self._server / "identity")
        delete = ["--delete"] if case.delete else []
        ssh = [
            *("-F", "/dev/null", "-i", identity, "-o", f"UserKnownHostsFile={self._known_hosts}"),
            *("-o", "GlobalKnownHostsFile=/dev/null", "-o", "BatchMode=yes"),
        ]
        host = f"{self._user}@127.0.0.1"
        near, far = f"{self.dest if case.down else self.source}/", f"{self._far}/"
        if tool == "fastsync":
            keys = ["--identity", identity, "--known-hosts", str(self._known_hosts)]
            start = [path, "sync", *delete, *keys, "--ssh-config", "/dev/null"]
            far = f"sftp://{host}:{port}{far}"
        elif tool == "rsync":
            if case.lies:
                return None
            start = [path, "-a", *delete, "-e", shlex.join(["ssh", "-p", port, *ssh])]
            if case.denied is not None:
                start += ["--rsync-path", f"{self._powerless} rsync".strip()]
            far = f"{host}:{far}"
        elif tool == "scp":
            start = [path, "-rpq", "-P", port, *ssh]
            far = f"{host}:{far}."
            near += "" if case.down else "."
        else:
            told = {"host": "127.0.0.1", "port": port, "user": self._user, "key_file": identity}
            if case.key is None:
                told["known_hosts_file"] = str(self._known_hosts)
            settings = ",".join(f"{key}={value}" for key, value in told.items())
            start = [path, "sync" if delete else "copy"]
            far = f":sftp,{settings}:{self._far}"
        return [*start, far, near] if case.down else [*start, near, far]

    def heal(self) -> None:
        self._proxy.always(None)
        _Liar.lies[self._server] = {}
        self._known_hosts.write_text(self._known())
        if self._case.key is not None:
            plant(self._far, self._case.source if self._case.down else self._case.old)
        self._allow()

    def _allow(self) -> None:
        if self._case.denied is not None:
            (self._far / self._case.denied).chmod(0o755)

    def there(self) -> Files:
        return found(self.dest if self._case.down else self._far)

    def has_begun(self) -> bool:
        return self._proxy.passed > 64 << 10

    @property
    def requests(self) -> int:
        return self._proxy.connections


# -- a server that lies ------------------------------------------------------------------------------------


class _Nothing(bytes):
    """No bytes, and yet not the end: asyncssh takes what is false for the end of the file."""

    def __bool__(self) -> bool:
        return True


class _Liar(asyncssh.SFTPServer):
    """Lies as its folder's script says: `names` are more names in each directory, `size` is added to sizes,
    `empty_from` is the offset from which on reads give nothing, `link` a name that is a link to `at` at
    first, and a directory then; `full_after` the offset from which on writes fail."""

    lies: ClassVar[dict[Path, dict[str, Any]]] = {}
    folder: ClassVar[Path]

    @property
    def told(self) -> dict[str, Any]:
        return _Liar.lies.get(self.folder, {})

    def read(self, file_obj: object, offset: int, size: int) -> Any:
        if self.told.get("empty_from", 1 << 60) <= offset:
            return _Nothing()
        data = super().read(file_obj, offset, size)
        assert isinstance(data, bytes)
        return data[: max(0, self.told.get("empty_from", 1 << 60) - offset)]

    def write(self, file_obj: object, offset: int, data: bytes) -> int:
        if 0 <= self.told.get("full_after", -1) < offset + len(data):
            raise asyncssh.SFTPFailure("No space left on device")
        count = super().write(file_obj, offset, data)
        assert isinstance(count, int)
        return count

    def stat(self, path: bytes) -> Any:
        return self._lie(super().stat(path))

    def lstat(self, path: bytes) -> Any:
        return self._lie(super().lstat(path))

    def fstat(self, file_obj: object) -> Any:
        return self._lie(super().fstat(file_obj))

    def readlink(self, path: bytes) -> bytes:
        if os.fsencode(self.told.get("link", "/")) == os.path.basename(path):
            return os.fsencode(self.told["at"])
        return super().readlink(path)  # type: ignore[return-value]

    def _lie(self, found: object) -> asyncssh.SFTPAttrs:
        assert isinstance(found, os.stat_result)
        attrs = asyncssh.SFTPAttrs.from_local(found)
        if attrs.type == asyncssh.FILEXFER_TYPE_REGULAR and (attrs.size or 0) > 1000:
            attrs.size = (attrs.size or 0) + self.told.get("size", 0)
        return attrs

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        link = os.fsencode(self.told.get("link", "/"))
        for name in sorted(os.listdir(path)):
            if name == link:
                yield asyncssh.SFTPName(name, b"", asyncssh.SFTPAttrs(permissions=0o120777))
            found = os.lstat(os.path.join(path, name))
            yield asyncssh.SFTPName(name, b"", self._lie(found))
        for extra in self.told.get("names", ()):
            attrs = asyncssh.SFTPAttrs(size=7, permissions=0o100644, atime=1, mtime=1)
            yield asyncssh.SFTPName(os.fsencode(extra), b"", attrs)


@contextmanager
def _lying(folder: Path, lies: dict[str, Any]) -> Any:
    """The port of such a server, which runs in a thread."""
    _Liar.lies[folder] = lies
    server = OurServer(folder, type("Liar", (_Liar,), {"folder": folder}))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(20)
        yield server.port
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        del _Liar.lies[folder]


# -- the cases ---------------------------------------------------------------------------------------------


def cases(seed: int) -> list[SftpCase]:
    return [*_lines(seed), *_servers(seed)]


def _lines(seed: int) -> list[SftpCase]:
    def line(
        name: str, about: str, trouble: Trouble, codes: tuple[int, ...] = (0,), **how: Any
    ) -> SftpCase:
        seeds = f"{seed} {name}"
        new = {f"d/{number}": noise(3000, f"{seeds} {number}") for number in range(20)}
        new |= {"large": noise(6 << 20, seeds), "middle": noise(2 << 20, seeds)}
        old = {each: noise(1000, f"{seeds} old") for each in ("large", "d/3", "keep")}
        return SftpCase(name, about, new, old, codes, trouble=trouble, **how)

    up: dict[str, Any] = {"down": False}
    cut, reset = "the connection ends in the middle", "reset in the middle"
    slow = Trouble(rate=8 << 20)
    return [
        line("up-cut", f"{cut}, once", Trouble(cut_after=AFTER, upwards=True), **up),
        line("up-reset", f"{reset}, once", Trouble(cut_after=AFTER, upwards=True, reset=True), **up),
        line("up-stall", "nothing more is taken, once", Trouble(stall_after=AFTER, upwards=True), **up),
        line("up-lost-reply", "the answers are lost, once", Trouble(lose_reply_after=AFTER), **up),
        line("up-always", f"{reset}, always", Trouble(cut_after=AFTER, upwards=True, reset=True), (0, 1),
             always=True, **up),
        line("up-refused", "the first connection is refused", Trouble(refuse=True, reset=True), **up),
        line("up-killed", "kill -9 in the middle of an upload", Trouble(rate=8 << 20, upwards=True),
             always=True, kills=True, **up),
        line("down-cut", f"{cut}, once", Trouble(cut_after=AFTER)),
        line("down-reset", f"{reset}, once", Trouble(cut_after=AFTER, reset=True)),
        line("down-stall", "no byte for an hour, once", Trouble(stall_after=AFTER)),
        line("down-half", "closed to the client alone, once", Trouble(half_close_after=AFTER)),
        line("down-always", f"{reset}, always", Trouble(cut_after=AFTER, reset=True), (0, 1), always=True),
        line("down-sliced", "a few bytes at a time", Trouble(slice=700), always=True),
        line("down-killed", "kill -9 in the middle of a download", slow, always=True, kills=True),
    ]  # fmt: skip


def _servers(seed: int) -> list[SftpCase]:
    files = {"file": noise(400_000, seed), "dir/other": noise(300, seed + 1)}
    old = {"file": b"the old one", "dir/other": b"old"}
    names = ("../outside", "a/../../outside", "..", "/outside")

    def lying(name: str, about: str, codes: tuple[int, ...], **lies: object) -> SftpCase:
        return SftpCase(name, about, files, old, codes, lies=lies)

    return [
        lying("names", "names that lead out of the destination", (1,), names=names),
        lying("size-more", "files that are said to be longer than they are", (4, 8), size=100_000),
        lying("size-less", "files that are said to be shorter than they are", (4, 8), size=-100_000),
        lying("empty-reads", "reads that give nothing, and no end", (1, 4, 8), empty_from=100_000),
        lying("link-and-dir", "a name that is a link out, and a directory, too", (3,), link="dir"),
        SftpCase("full", "no space at the server", files, old, (7,), down=False,
                 lies={"full_after": 100_000}),
        SftpCase("unknown-key", "somebody answers whose host key is not known", files, old, (5,),
                 key="unknown"),
        SftpCase("changed-key", "somebody answers whose host key is another than is known", files, old, (5,),
                 key="changed"),
        SftpCase("denied", "a directory that the server may not read", files,
                 old | {"dir/extra": b"only here"}, (3,), delete=True, denied="dir"),
    ]  # fmt: skip
