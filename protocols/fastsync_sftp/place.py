"""What a location and its settings say of the server to reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from fastsync.backend import StoreOptions
from fastsync.errors import UsageError
from fastsync.location import Location

Transport: TypeAlias = Literal["auto", "asyncssh", "openssh"]

_TRANSPORTS: Final[Mapping[str, Transport]] = {
    "": "auto",
    "auto": "auto",
    "asyncssh": "asyncssh",
    "openssh": "openssh",
}


@dataclass(frozen=True, slots=True)
class Place:
    """A server and how to log in there: what connections can be shared by. `user` and `port` None are
    for the SSH configuration to say."""

    host: str
    port: int | None
    user: str | None
    password: str | None = field(repr=False)
    transport: Transport
    config: str | None
    identity: str | None
    known_hosts: str | None
    accept_new: bool

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"sftp://{user}{host}{'' if self.port is None else f':{self.port}'}"


def place_of(location: Location, options: StoreOptions) -> Place:
    """The server of a location. Raises UsageError."""
    # A leading dash would be an option to the system's ssh, and is no host name anyway.
    if not location.host or location.host.startswith("-"):
        raise UsageError("a host is missing", where=str(location), hint="write sftp://host/path")
    if (location.user or "").startswith("-") or any(
        ord(char) <= 32 or ord(char) == 127 for char in location.host + (location.user or "")
    ):
        raise UsageError("no user or host is called like that", where=str(location))
    settings = options.place
    transport = _TRANSPORTS.get(settings.get("ssh_transport", ""))
    if transport is None:
        raise UsageError("--ssh-transport is asyncssh, openssh or auto", where=str(location))
    if transport == "openssh" and location.password is not None:
        raise UsageError(
            "the system's ssh takes no password from us",
            where=str(location),
            hint="leave it out of the URL and log in with a key, or use --ssh-transport asyncssh",
        )
    return Place(
        host=location.host,
        port=location.port,
        user=location.user or None,
        password=location.password,
        transport=transport,
        config=settings.get("ssh_config") or None,
        identity=settings.get("identity") or None,
        known_hosts=settings.get("known_hosts") or None,
        accept_new=settings.get("accept_new_host_key") == "true",
    )
