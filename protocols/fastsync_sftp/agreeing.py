"""Where the system's ssh may log in first: where asyncssh would reach the same server, trust the same host
keys and offer the same keys, and ssh has nobody to ask.

Both are given one configuration file. Only keywords count that mean the same to both, or that our own options
override (`by_openssh.command`); with any other it is asyncssh that logs in.
"""

from __future__ import annotations

import base64
import os
import re
import sys
from typing import Final

from fastsync.backend import StoreOptions
from fastsync_sftp.place import Place

# What ssh tries without being told to (ssh_config(5), IdentityFile).
_IDENTITIES: Final = ("id_rsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk")
_SAME: Final = frozenset(
    """batchmode compression connecttimeout controlmaster controlpath controlpersist forwardagent
    forwardx11 globalknownhostsfile hashknownhosts host hostkeyalias hostname identitiesonly
    identityfile permitlocalcommand port sendenv serveralivecountmax serveraliveinterval setenv
    stricthostkeychecking tcpkeepalive updatehostkeys user userknownhostsfile""".split()  # noqa: SIM905 - a list is longer
)
_MOST: Final = 256 << 10
# How a private key in OpenSSH's format begins (its file PROTOCOL.key); the name of its cipher follows.
_OPEN_KEY: Final = b"openssh-key-v1\0\0\0\0\4none"


def config_of(place: Place) -> str | None:
    """The configuration file, None where there is none."""
    if place.config is not None:
        return place.config
    usual = _at_home("config")
    return usual if os.access(usual, os.R_OK) else None


def agree(place: Place, options: StoreOptions) -> bool:
    """True when ssh may log in first."""
    # ssh goes on where a new key cannot be written.
    if place.password is not None or place.accept_new:
        return False
    if options.tcp_send_buffer or options.tcp_recv_buffer or options.congestion_control:
        return False  # not in its power
    try:
        config = _read(config_of(place))
    except (OSError, ValueError):
        return False
    lines = [line.strip() for line in config.splitlines()]
    words = {
        line.replace("=", " ").split()[0].lower()
        for line in lines
        if line.strip("=") and line[0] != "#"
    }
    if not words <= _SAME:
        return False
    has_hosts = place.known_hosts is not None or "userknownhostsfile" in words
    has_keys = place.identity is not None or "identityfile" in words
    if not (has_hosts and has_keys and not re.search("[~%$]", config)) and not _is_home_plain():
        return False
    return _has_key(place, "identityfile" in words)


def _at_home(name: str) -> str:
    return os.path.join(os.path.expanduser("~"), ".ssh", name)


def _read(file: str | None) -> str:
    if file is None:
        return ""
    with open(file, "rb") as source:
        data = source.read(_MOST + 1)
    if len(data) > _MOST:
        raise ValueError(file)
    return data.decode()


def _is_home_plain() -> bool:
    """True when the home directory is the same to both."""
    if sys.platform == "win32":
        return False
    import pwd

    try:
        home = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return False
    return os.path.expanduser("~") == home


def _has_key(place: Place, is_configured: bool) -> bool:
    """True when there may be a key that nobody has to be asked for."""
    if os.environ.get("SSH_AUTH_SOCK"):
        return True
    if place.identity is not None:
        return _is_open(place.identity)
    return is_configured or any(_is_open(_at_home(name)) for name in _IDENTITIES)


def _is_open(file: str) -> bool:
    """True for a private key without a passphrase."""
    try:
        with open(os.path.expanduser(file), "rb") as source:
            lines = source.read(_MOST).splitlines()
        if lines and lines[0].strip() == b"-----BEGIN OPENSSH PRIVATE KEY-----":
            return base64.b64decode(lines[1][:32]).startswith(_OPEN_KEY)
    except (OSError, ValueError, IndexError):
        return False
    return (
        bool(lines)
        and b"PRIVATE KEY" in lines[0]
        and not any(b"ENCRYPTED" in each for each in lines)
    )
