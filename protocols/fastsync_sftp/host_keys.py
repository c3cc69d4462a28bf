"""Whether a server is the one it should be: files of known hosts, read as OpenSSH reads them.

asyncssh reads them, too, but takes an address for a name, forgets what was revoked for a port, trusts
everybody where a configuration says ``UserKnownHostsFile none``, and fails where one of several files is
missing. So it is told what we have found, and asks us about every key that it does not find there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from fastsync.errors import AccessRefused

if TYPE_CHECKING:
    import asyncssh
    from asyncssh.known_hosts import SSHKnownHosts

_MINE: Final = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
_EVERYBODYS: Final = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
_PORT: Final = 22
_PLAIN: Final = "ssh-ed25519,ecdsa-sha2-nistp???,rsa-sha2-???,ssh-rsa"


class Found(NamedTuple):
    """What the files have under one name: keys, keys of authorities, keys that were revoked."""

    keys: Sequence[asyncssh.SSHKey]
    authorities: Sequence[asyncssh.SSHKey]
    revoked: Sequence[asyncssh.SSHKey]


class KnownHosts:
    """The files that count for one place; the first is the one that is written to. `only` (--known-hosts)
    stands for all others, then what a configuration says of `mine` and `everybodys` files."""

    def __init__(
        self,
        only: str | None = None,
        mine: Sequence[str] | None = None,
        everybodys: Sequence[str] | None = None,
    ) -> None:
        names = [only]
        if only is None:
            mine = _MINE if mine is None else mine
            names = [*mine, *(_EVERYBODYS if everybodys is None else everybodys)]
        self._files = [Path(name).expanduser() for name in names if name]
        self.file = self._files[0] if only is not None or mine else None
        self._known: SSHKnownHosts | None = None

    def find(self, name: str) -> Found:
        """What is known under exactly this name, patterns and hashes included."""
        keys, authorities, revoked, *_ = self._read().match(name, "", None)
        return Found(keys, authorities, revoked)

    def _read(self) -> SSHKnownHosts:
        from asyncssh.known_hosts import SSHKnownHosts

        if self._known is None:
            self._known = known = SSHKnownHosts()
            for file in self._files:
                try:
                    text = file.read_text("utf-8", "replace")
                except OSError:
                    continue  # as if it were empty, as for ssh
                for line in text.splitlines():
                    try:
                        known.load(line)
                    except ValueError:
                        continue  # a line that nobody understands says nothing
        return self._known

    def add(self, line: str) -> None:
        """Remember one more line. Raises OSError."""
        assert self.file is not None
        self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.file.open("a+b") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            gap = b"" if file.read(1) in (b"", b"\n") else b"\n"
            if end == 0:
                os.chmod(file.fileno(), 0o600)
            file.write(gap + line.encode() + b"\n")
        self._read().load(line)


class HostKeys:
    """Decides on the keys of one host, and says why one was refused. `place` is how the user calls it,
    `alias` what a configuration does (HostKeyAlias)."""

    def __init__(
        self,
        known: KnownHosts,
        place: str,
        host: str,
        port: int,
        alias: str | None,
        *,
        accept_new: bool,
    ) -> None:
        self._known = known
        self._place = place
        self._name = alias or (host if port == _PORT else f"[{host}]:{port}")
        # Without the port, a key counts that is the same; one that differs means nothing.
        self._also = None if alias or port == _PORT else host
        self._accept_new = accept_new
        self.refusal: AccessRefused | None = None
        self.is_certified_by_others = False  # the host, than by who is known to

    def find(self) -> Found:
        """What is known of the host."""
        found = self._known.find(self._name)
        if self._also is None:
            return found
        more = self._known.find(self._also)
        return Found(*([*ours, *theirs] for ours, theirs in zip(found, more, strict=True)))

    def algorithms(self, *, plain: bool) -> str:
        """What to ask the server for, in asyncssh's words: kinds of keys that are known first, and the
        others all the same, so that a key of another kind is seen and not only missed. Certificates only
        where an authority is known, and unless only plain keys are wanted: without one, those count."""
        found = self.find()
        if found.authorities and not plain:
            return f"+{_PLAIN}"
        known = [kind.decode() for key in found.keys for kind in key.sig_algorithms]
        return ",".join([*known, _PLAIN])

    def is_trusted(self, key: asyncssh.SSHKey) -> bool:
        """True when the key of a host that is met for the first time may be remembered, and now is. Asked
        of keys that `find` does not have; those that were revoked are not asked about."""
        fingerprint = key.get_fingerprint("sha256")
        kind = key.get_algorithm().removeprefix("ssh-").upper()
        found = self._known.find(self._name)
        if found.keys:
            file = self._known.file
            self._refuse(
                f"the host key has changed, it is now {kind} {fingerprint}: somebody may listen in",
                f"if you know why, remove the old key with: ssh-keygen -R '{self._name}'"
                + ("" if file is None else f" -f {file}"),
            )
        elif not self._accept_new:
            self._refuse(
                f"the host key is not known: {kind} {fingerprint}",
                "if that is the server's, accept it with --accept-new-host-key",
            )
        elif self._known.file is None:
            self._refuse("there is no file to remember the host key in", "--known-hosts FILE")
        else:
            try:
                self._known.add(f"{self._name} {key.export_public_key('openssh').decode().strip()}")
                return True
            except OSError as error:
                said = (error.strerror or str(error)).lower()
                self._refuse(f"the host key cannot be written to {self._known.file}: {said}")
        return False

    def _refuse(self, message: str, hint: str | None = None) -> None:
        self.refusal = AccessRefused(message, where=self._place, hint=hint)
