"""The servers that a pair of places needs, honest ones with a fault proxy before each, and two fresh ends."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fault_proxy import FaultProxy
from hostile_s3 import HostileS3
from sides import Disk, Objects, Side
from sshd import running_sshd
from web import running_nginx

PAIRS = (
    "local to local", "local to S3", "S3 to local", "local to SFTP", "SFTP to local", "HTTP to local",
    "S3 to itself", "S3 to another", "SFTP to S3", "S3 to SFTP", "SFTP to itself",
)  # fmt: skip


@dataclass
class Rig:
    """The servers of a pair, and how to make two fresh ends. `step_ns` is how precisely their times can be
    compared; `proxies` are between us and the servers."""

    name: str
    make: Callable[[Path], tuple[Side, Side]]
    step_ns: int = 1
    proxies: list[FaultProxy] = field(default_factory=list)
    servers: list[HostileS3] = field(default_factory=list)
    keeps_modes: bool = True

    def passed(self) -> int:
        return sum(proxy.passed for proxy in self.proxies)

    def behave(self) -> None:
        for proxy in self.proxies:
            proxy.forget()
        for server in self.servers:
            server.behave()


@contextlib.contextmanager
def rigs(folder: Path) -> Iterator[Callable[[str], Rig]]:
    """Rigs by the names of `PAIRS`; servers are started when the first one asks for them."""
    with contextlib.ExitStack() as stack:
        numbers = itertools.count()
        kept: dict[str, Any] = {}

        def once(name: str, make: Callable[[], Any]) -> Any:
            if name not in kept:
                kept[name] = make()
            return kept[name]

        def proxied(port: int) -> FaultProxy:
            return stack.enter_context(FaultProxy(port))

        def s3(name: str) -> tuple[HostileS3, FaultProxy]:
            server = stack.enter_context(HostileS3())
            return server, proxied(server.server.port)

        def sshd() -> tuple[Any, FaultProxy]:
            (folder / "sshd").mkdir()
            server = stack.enter_context(running_sshd(folder / "sshd"))
            proxy = proxied(server.port)
            known = server.known_hosts.read_text().replace(f":{server.port}", f":{proxy.port}")
            (folder / "sshd" / "known").write_text(known)
            return server, proxy

        def web() -> tuple[Any, FaultProxy]:
            (folder / "nginx").mkdir()
            server = stack.enter_context(running_nginx(folder / "nginx"))
            return server, proxied(int(server.url.rpartition(":")[2]))

        def end(kind: str, rig: Rig, name: str) -> Callable[[Path], Side]:
            if kind == "local":
                return lambda root: Disk(root / name, str(root / name))
            if kind.startswith("S3"):
                server, proxy = once(kind, lambda: s3(kind))
                rig.proxies.append(proxy)
                rig.servers.append(server)
                place = {
                    "endpoint_url": f"http://127.0.0.1:{proxy.port}",
                    "access_key_id": server.server.access_key,
                    "secret_access_key": server.server.secret_key,
                    "region": "us-east-1",
                }
                return lambda _root: Objects(server, f"{name}-{next(numbers)}", place)
            if kind == "SFTP":
                server, proxy = once(kind, sshd)
                rig.proxies.append(proxy)
                rig.step_ns = 10**9
                place = {**server.place, "known_hosts": str(folder / "sshd" / "known")}
                start = f"sftp://{server.user}@127.0.0.1:{proxy.port}"
                return lambda root: Disk(root / name, f"{start}{root / name}", place)
            server, proxy = once(kind, web)
            rig.proxies.append(proxy)
            rig.step_ns, rig.keeps_modes = 60 * 10**9, False

            def served(_root: Path) -> Disk:
                under = f"{name}-{next(numbers)}"
                url = f"http://127.0.0.1:{proxy.port}/{under}/"
                return Disk(server.root / under, url, has_links=False)

            return served

        def rig(name: str) -> Rig:
            one, _, other = name.partition(" to ")
            made = Rig(name, lambda root: (source(root), dest(root)))
            other = {"itself": one, "another": f"{one} elsewhere"}.get(other, other)
            source, dest = end(one, made, "source"), end(other, made, "dest")
            return made

        yield rig
