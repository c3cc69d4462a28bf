"""From a URL scheme to the class that serves it, by the entry points of installed distributions.

A protocol is an entry point in the group ``fastsync.protocols``: its name is the scheme, its value the
class. The ones that come with fastsync are found in the same way. Looking imports no protocol; `load`
imports the one asked for. A fault in one protocol, or a quarrel over one scheme, is told to whoever asks
for that scheme and is in nobody else's way.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING

from fastsync.backend import Backend
from fastsync.errors import UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "fastsync.protocols"


class Registry:
    """The schemes that some `claims` speak for."""

    def __init__(self, claims: Iterable[EntryPoint]) -> None:
        self._claims: dict[str, list[EntryPoint]] = {}
        for claim in claims:
            self._claims.setdefault(claim.name.lower(), []).append(claim)

    @classmethod
    def from_entry_points(cls) -> Registry:
        """The protocols installed in this interpreter, looked up once per process."""
        return cls(_installed())

    def schemes(self) -> tuple[str, ...]:
        """Every scheme that somebody claims, in order."""
        return tuple(sorted(self._claims))

    def load(self, scheme: str) -> type[Backend]:
        """The class behind `scheme`, imported now.

        Raises UsageError for a scheme that nobody claims, that two claim, or whose class cannot be
        imported or is no `Backend`.
        """
        where = f"{scheme}://"
        candidates = _distinct(self._claims.get(scheme, []))
        if not candidates:
            raise UsageError(
                f"no protocol for this scheme; there is {', '.join(self.schemes()) or 'none'}",
                where=where,
                hint=self._advice(scheme),
            )
        if len(candidates) > 1:
            claims = " and ".join(_told(claim) for claim in candidates)
            raise UsageError(
                f"the scheme is claimed by {claims}",
                where=where,
                hint="uninstall all but one of them",
            )
        (claim,) = candidates
        try:
            found = claim.load()
        except Exception as error:  # whatever a stranger's module does when it is imported
            raise UsageError(
                f"{_told(claim)} cannot be loaded: {type(error).__name__}: {error}",
                where=where,
                hint="install it again, or uninstall it",
            ) from error
        missing = [name for name in ("connect", "aclose") if not hasattr(found, name)]
        if missing or not isinstance(found, type):
            lack = f"has no {' and no '.join(missing)}" if missing else "is not a class"
            raise UsageError(f"{_told(claim)} is no protocol: it {lack}", where=where)
        backend: type[Backend] = found
        return backend

    def _advice(self, scheme: str) -> str:
        import difflib  # only for a request that failed

        near = difflib.get_close_matches(scheme, self.schemes(), n=1)
        meant = f"did you mean {near[0]}://? " if near else ""
        return f"{meant}a local path with :// in it is written ./{scheme}://..."


@functools.cache
def _installed() -> tuple[EntryPoint, ...]:
    # Importing importlib.metadata costs 15 ms, reading the entry points of 90 distributions 5 ms.
    from importlib.metadata import entry_points

    return tuple(entry_points(group=GROUP))


def _distinct(claims: list[EntryPoint]) -> list[EntryPoint]:
    """`claims` without repetitions.

    A distribution can be met twice, as a wheel and as an editable install: the same name and the same
    class are the same claim. A single claim is not asked for its name, which costs reading a file.
    """
    if len(claims) < 2:
        return claims
    return list({(_distribution(claim), claim.value): claim for claim in claims}.values())


def _distribution(claim: EntryPoint) -> str:
    """The name of the distribution that makes the claim, "" for one that was made by hand."""
    return claim.dist.name if claim.dist is not None else ""


def _told(claim: EntryPoint) -> str:
    return f"{claim.value} of {_distribution(claim) or 'an unnamed distribution'}"
