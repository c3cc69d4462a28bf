"""Directories below the root of a store: made when needed, and known not to be links.

SFTP cannot open a path without following the links in it, and can hold no directory open to work below it.
So each one is looked at (LSTAT) before anything below it is touched, and that is believed for a few seconds;
what we change ourselves is forgotten. Somebody who may write there can exchange a directory for a link in
between: no protocol of files by their paths can prevent that, but it does not stay unnoticed for a run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from fastsync.errors import Conflict, FastsyncError, NameRefused, NotFound
from fastsync_sftp import packets
from fastsync_sftp.names import above, join
from fastsync_sftp.packets import LSTAT, MKDIR, OK, STAT, Reply
from fastsync_sftp.placing import explain
from fastsync_sftp.pool import Pool
from fastsync_sftp.scripts import Script
from fastsync_sftp.session import Session

# Directories remembered; beyond that all are looked at anew.
_MOST: Final = 100_000
# For how long a look is believed.
_FRESH_S: Final = 5.0


class Directories:
    """What is known of the directories of one store; "" is its root, which may be a link."""

    def __init__(self, pool: Pool, root: bytes, where: Callable[[str], str]) -> None:
        self._pool = pool
        self._root = root
        self._where = where
        self._real: dict[
            str, float
        ] = {}  # when it was looked at, in seconds by the monotonic clock

    def seen(self, directory: str) -> None:
        """A listing has found it to be one."""
        if len(self._real) >= _MOST:
            self._real.clear()
        self._real[directory] = time.monotonic()

    def forget(self, path: str) -> None:
        """Something else may stand there now."""
        if path in self._real:
            self._real = {
                each: since
                for each, since in self._real.items()
                if each != path and not each.startswith(path + "/")
            }

    async def check(
        self,
        wanted: Iterable[str],
        *,
        create: bool,
        modes: Mapping[str, int | None] | None = None,
        anew: bool = False,
    ) -> dict[str, FastsyncError]:
        """Look at directories that are not known, and at all above them, and make what is missing; `modes`
        for some of those made. `anew` believes no earlier look. The answer has those that cannot be used.

        A link in the way is NameRefused, a file Conflict; without `create` what is missing is NotFound.
        """
        wanted = list(dict.fromkeys(wanted))
        since = time.monotonic() - (0 if anew else _FRESH_S)
        real = self._real
        unknown = list(
            dict.fromkeys(
                each
                for directory in wanted
                for each in ("", *above(directory))
                if real.get(each, -math.inf) < since
            )
        )
        if not unknown:
            return {}
        bad = await self._pool.run(
            lambda session: self._settle(session, unknown, create, modes or {})
        )
        return {directory: bad[directory] for directory in wanted if directory in bad}

    def _settle(
        self, session: Session, unknown: list[str], create: bool, modes: Mapping[str, int | None]
    ) -> Script[dict[str, FastsyncError]]:
        looks = [
            packets.on_path(LSTAT if each else STAT, join(self._root, each)) for each in unknown
        ]
        bad: dict[str, FastsyncError] = {}
        missing: list[str] = []
        replies = yield looks
        for each, reply in zip(unknown, replies, strict=True):
            parent = each.rpartition("/")[0]
            if each and parent in bad:
                bad[each] = bad[parent]
                continue
            error = self._judge(each, reply)
            if error is None:
                self.seen(each)
                continue
            self.forget(each)
            if isinstance(error, NotFound) and create:
                missing.append(each)
            else:
                bad[each] = error
        if not missing:
            return bad
        if missing[0] == "":
            yield from self._make_root(session)
        makes = [
            packets.on_path(MKDIR, join(self._root, each), _made(modes.get(each)))
            for each in missing
            if each
        ]
        if not makes:
            self.seen("")
            return bad
        replies = yield makes
        failed = []
        for each, reply in zip(filter(None, missing), replies, strict=True):
            if packets.status_of(reply) == OK:
                self.seen(each)
            else:
                failed.append((each, reply))
        if missing[0] == "":
            self.seen("")
        if failed:
            # Somebody else may have made it in the same moment.
            again = yield [packets.on_path(LSTAT, join(self._root, each)) for each, _ in failed]
            for (each, reply), look in zip(failed, again, strict=True):
                error = self._judge(each, look)
                if error is None:
                    self.seen(each)
                elif isinstance(error, NotFound):
                    path = join(self._root, each)
                    better = yield from explain(session, packets.error_of(reply), path)
                    bad[each] = better.at(self._where(each))
                else:
                    bad[each] = error
        return bad

    def _judge(self, directory: str, look: Reply) -> FastsyncError | None:
        """None for what is a directory."""
        where = self._where(directory)
        try:
            kind = packets.must_be_attributes(look).kind
        except FastsyncError as error:
            return error.at(where)
        if kind == "dir":
            return None
        if kind == "link":
            return NameRefused("the path passes through a symbolic link", where=where)
        return Conflict("not a directory", where=where)

    def _make_root(self, session: Session) -> Script[None]:
        """Make the root and what is missing above it. Raises the error of what cannot be made."""
        missing = [self._root.rstrip(b"/") or b"/"]
        while True:
            parent = missing[-1].rpartition(b"/")[0]
            if not parent:
                break
            (reply,) = yield [packets.on_path(STAT, parent)]
            if packets.status_of(reply) != packets.NO_SUCH_FILE:
                break
            missing.append(parent)
        replies = yield [
            packets.on_path(MKDIR, path, packets.attributes()) for path in reversed(missing)
        ]
        if packets.status_of(replies[-1]) != OK:
            (reply,) = yield [packets.on_path(STAT, self._root)]
            try:
                is_there = packets.must_be_attributes(reply).kind == "dir"
            except FastsyncError:
                is_there = False
            if not is_there:
                error = yield from explain(session, packets.error_of(replies[0]), missing[-1])
                raise error.at(self._where(""))


def _made(mode: int | None) -> bytes:
    """The attributes of a new directory: ours to write in until the run ends."""
    return packets.attributes(mode=None if mode is None else (mode | 0o700) & 0o777)
