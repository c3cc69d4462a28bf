"""From a URL scheme to the class that serves it, by the entry points of installed distributions.

A protocol is an entry point in the group ``fastsync.protocols``: its name is the scheme, its value the
class. The ones that come with fastsync are found in the same way. Looking imports no protocol; `load`
imports the one asked for. A fault in one protocol, or a quarrel over one scheme, is told to whoever asks
for that scheme and is in nobody else's way.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from fastsync.backend import Backend
from fastsync.errors import UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "fastsync.protocols"


class Claim(NamedTuple):
    """A distribution's word that `value` ("module:Class") serves the scheme `name`."""

    name: str
    value: str
    distribution: str = ""

    def load(self) -> object:
        """Raises whatever a stranger's module does when it is imported."""
        module, _, path = self.value.partition("[")[0].strip().partition(":")
        found: object = importlib.import_module(module)
        for name in filter(None, path.split(".")):
            found = getattr(found, name)
        return found

    def __str__(self) -> str:
        return f"{self.value} of {self.distribution or 'an unnamed distribution'}"


class Registry:
    """The schemes that some `claims` speak for."""

    def __init__(self, claims: Iterable[Claim | EntryPoint]) -> None:
        self._claims: dict[str, list[Claim]] = {}
        for claim in claims:
            if not isinstance(claim, Claim):
                dist = claim.dist
                claim = Claim(claim.name, claim.value, dist.name if dist is not None else "")
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
        # A distribution can be met twice, as a wheel and as an editable install: the same claim.
        candidates = list(dict.fromkeys(self._claims.get(scheme, [])))
        if not candidates:
            raise UsageError(
                f"no protocol for this scheme; there is {', '.join(self.schemes()) or 'none'}",
                where=where,
                hint=self._advice(scheme),
            )
        if len(candidates) > 1:
            raise UsageError(
                f"the scheme is claimed by {' and '.join(map(str, candidates))}",
                where=where,
                hint="uninstall all but one of them",
            )
        (claim,) = candidates
        try:
            found = claim.load()
        except Exception as error:
            raise UsageError(
                f"{claim} cannot be loaded: {type(error).__name__}: {error}",
                where=where,
                hint="install it again, or uninstall it",
            ) from error
        missing = [name for name in ("connect", "aclose") if not hasattr(found, name)]
        if missing or not isinstance(found, type):
            lack = f"has no {' and no '.join(missing)}" if missing else "is not a class"
            raise UsageError(f"{claim} is no protocol: it {lack}", where=where)
        backend: type[Backend] = found
        return backend

    def _advice(self, scheme: str) -> str:
        import difflib  # only for a request that failed

        near = difflib.get_close_matches(scheme, self.schemes(), n=1)
        meant = f"did you mean {near[0]}://? " if near else ""
        return f"{meant}a local path with :// in it is written ./{scheme}://..."


# -- what is installed -------------------------------------------------------------------------------


@functools.cache
def _installed() -> tuple[Claim | EntryPoint, ...]:
    """Every claim, looked up once per process.

    The library's own look-up takes 17 ms with its import, a fifth of a small copy (benches/startup.py);
    reading the same files here takes one. The library is asked where distributions may be in other
    places than folders.
    """
    if _are_all_in_folders():
        return tuple(_in_folders())
    from importlib.metadata import entry_points

    return tuple(entry_points(group=GROUP))


def _are_all_in_folders() -> bool:
    """False with a zip file on the path, or a finder of somebody's own that knows distributions."""
    from importlib.machinery import PathFinder

    own = (finder for finder in sys.meta_path if finder is not PathFinder)
    return not any(hasattr(finder, "find_distributions") for finder in own) and not any(
        os.path.isfile(path) for path in sys.path
    )


def _in_folders() -> Iterator[Claim]:
    seen: set[str] = set()
    for folder in sys.path:
        try:
            names = sorted(os.listdir(folder or "."))
        except OSError:
            continue
        for name in names:
            stem, dot, kind = name.rpartition(".")
            if not dot or kind not in ("dist-info", "egg-info"):
                continue
            # The file name grammar of wheels: name-version, "-" in names written "_".
            distribution = stem.partition("-")[0].replace("_", "-").lower()
            if distribution not in seen:  # the first on the path hides the others
                seen.add(distribution)
                yield from _claims_in(os.path.join(folder, name, "entry_points.txt"), distribution)


def _claims_in(path: str, distribution: str) -> Iterator[Claim]:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, ValueError):
        return  # most have no such file
    section = ""
    for line in text.splitlines() if GROUP in text else ():
        line = line.strip()
        if line.startswith("["):
            section = line.strip("[] ")
        elif section == GROUP and "=" in line and line[0] not in "#;":
            name, _, value = line.partition("=")
            yield Claim(name.strip(), value.strip(), distribution)
