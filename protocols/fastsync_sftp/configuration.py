"""What an SSH configuration says of a place, as far as asyncssh needs to be told otherwise.

ssh passes over files that a configuration names and that are not there; asyncssh fails. So the
configuration is read once before, and what is left of those files becomes arguments.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, NamedTuple

from fastsync.errors import ConfigError, UsageError
from fastsync.trust import OTHERS_USE, OTHERS_WRITE, mistrust
from fastsync_sftp.host_keys import KnownHosts
from fastsync_sftp.place import Place

_USUAL: Final = "~/.ssh/config"


class Configured(NamedTuple):
    """The host that is really meant, by which name its key is known, and arguments for asyncssh."""

    host: str
    port: int
    alias: str | None
    is_proxied: bool
    has_key_kinds: bool
    known: KnownHosts
    arguments: dict[str, Any]


async def read_configuration(place: Place) -> Configured:
    """Read it. Raises UsageError, and asyncssh's own errors."""
    import asyncssh

    arguments: dict[str, Any] = {"config": ()}  # asyncssh's word for the usual one
    if place.port is not None:
        arguments["port"] = place.port
    if place.user is not None:
        arguments["username"] = place.user
    if place.config is not None:
        arguments["config"] = [_must_be_readable(place.config, place, "the SSH configuration")]
    elif _readable([_USUAL]):
        _must_be_readable(_USUAL, place, "the SSH configuration")
    # Without keys and known hosts: those are the files in question.
    options = await asyncssh.SSHClientConnectionOptions.construct(
        host=place.host, client_keys=None, known_hosts=b"", **arguments
    )
    config = options.config
    if place.identity is not None:
        arguments["client_keys"] = [_must_be_readable(place.identity, place, "the key", OTHERS_USE)]
    elif names := config.get("IdentityFile"):
        keys = _readable(names)
        arguments["client_keys"] = keys or (None if config.get("IdentitiesOnly") else [])
        arguments["ignore_encrypted"] = True  # if there is no public key to offer first
    if certificates := config.get("CertificateFile"):
        arguments["client_certs"] = _readable(certificates)
    known = KnownHosts(
        place.known_hosts, config.get("UserKnownHostsFile"), config.get("GlobalKnownHostsFile")
    )
    return Configured(
        options.host,
        options.port,
        options.host_key_alias,
        bool(options.proxy_command or options.tunnel),
        config.get("HostKeyAlgorithms") is not None,
        known,
        arguments,
    )


def _readable(names: list[str]) -> list[str]:
    return [name for name in names if os.access(Path(name).expanduser(), os.R_OK)]


def _must_be_readable(name: str, place: Place, what: str, forbidden: int = OTHERS_WRITE) -> str:
    """The path of a file that we can read and, as ssh wants it, nobody else can write, or use."""
    path = str(Path(name).expanduser())
    try:
        with open(path, "rb") as file:
            wrong = mistrust(path, file.fileno(), forbidden)
    except OSError as error:
        said = (error.strerror or str(error)).lower()
        raise UsageError(f"{what} cannot be read: {path}: {said}", where=str(place)) from error
    if wrong is not None:
        raise ConfigError(f"{what}: {wrong[0]}", where=path, hint=wrong[1])
    return path
