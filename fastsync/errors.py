"""The one tree of errors, what each means for a run, and the map from operating-system errors.

Every error that leaves a protocol, the engine or the library is one of these, raised with ``from`` at
the border where the foreign error was met:

    FastsyncError                     1  one item failed
    |-- UsageError                    2  the request itself is wrong; nothing was touched
    |   |-- ConfigError               2  a configuration file, profile or environment variable is wrong
    |   `-- TicketRefused             2  what is written down of an upload does not tell the store which one
    |-- ListingError                  3  a source or listing is missing or cannot be trusted
    |   `-- Missing                   3  nothing is where a source was named, and that is certain
    |-- IntegrityError                4  bytes are not what they were said to be
    |-- AccessRefused                 5  authentication, host key or TLS refused
    |-- SafetyStop                    6  the delete gate or the empty-source guard said no
    |-- DestinationFull               7  no space, over quota, read-only: no further write can succeed
    |-- Changed                       8  the source is no longer the version that was listed
    |   `-- Vanished                  8  the source is gone since it was listed
    |-- NotFound                      1  the item does not exist
    |-- PermissionRefused             1  the item may not be read or written
    |-- Conflict                      1  something of another kind stands where the item should go
    |   `-- Overtaken                 1  somebody else wrote there since it was listed
    |-- NameRefused                   1  the name cannot be used there, or would leave the destination
    |-- Unsupported                   1  the store cannot do what was asked
    `-- Transient                     1  worth another try: a cut connection, a busy server
        |-- Throttled                 1  the server asked for patience
        `-- Stalled                   1  no progress within the stall timeout

The numbers are the exit codes of the command (docs/CLI.md); `worst_exit` ranks them.
"""

from __future__ import annotations

import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import ClassVar

EXIT_OK = 0
EXIT_SIGINT = 130
EXIT_SIGTERM = 143

_EXIT_RANK = (EXIT_SIGINT, EXIT_SIGTERM, 2, 5, 7, 6, 3, 4, 1, 8)


class FastsyncError(Exception):
    """An error with a place and, where there is one, advice on what to do next.

    `message` says what happened; `where` is the place as a person would write it, without secrets;
    `hint` says what to do. ``str()`` puts them into one line, unescaped: whoever prints it escapes it.
    """

    exit_code: ClassVar[int] = 1
    transient: ClassVar[bool] = False

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint
        # Whoever raised it has tried again already, as often as the run allows.
        self.is_final = False

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text} ({self.hint})" if self.hint else text

    def at(self, where: str) -> FastsyncError:
        """Fill in the place, if the code that raised could not know it."""
        if self.where is None:
            self.where = where
        return self


class UsageError(FastsyncError):
    exit_code = 2


class ConfigError(UsageError):
    pass


class TicketRefused(UsageError):
    pass


class ListingError(FastsyncError):
    exit_code = 3


class Missing(ListingError):
    pass


class IntegrityError(FastsyncError):
    exit_code = 4


class AccessRefused(FastsyncError):
    exit_code = 5


class SafetyStop(FastsyncError):
    exit_code = 6


class DestinationFull(FastsyncError):
    exit_code = 7


class Changed(FastsyncError):
    exit_code = 8


class Vanished(Changed):
    pass


class NotFound(FastsyncError):
    pass


class PermissionRefused(FastsyncError):
    pass


class Conflict(FastsyncError):
    pass


class Overtaken(Conflict):
    pass


class NameRefused(FastsyncError):
    pass


class Unsupported(FastsyncError):
    pass


class Transient(FastsyncError):
    transient = True

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        hint: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.retry_after_s = retry_after_s


class Throttled(Transient):
    pass


class Stalled(Transient):
    pass


# errno(3). ENOTDIR and ELOOP come from O_NOFOLLOW walks: a component is not the directory it was.
_BY_ERRNO: dict[int, type[FastsyncError]] = {
    errno.ENOENT: NotFound,
    errno.EACCES: PermissionRefused,
    errno.EPERM: PermissionRefused,
    errno.ENOSPC: DestinationFull,
    errno.EDQUOT: DestinationFull,
    errno.EROFS: DestinationFull,
    errno.EFBIG: DestinationFull,
    errno.EEXIST: Conflict,
    errno.EISDIR: Conflict,
    errno.ENOTEMPTY: Conflict,
    errno.ENOTDIR: Conflict,
    errno.ELOOP: NameRefused,
    errno.ENAMETOOLONG: NameRefused,
    errno.EILSEQ: NameRefused,
    errno.EMFILE: Transient,
    errno.ENFILE: Transient,
    errno.EAGAIN: Transient,
    errno.ESTALE: Transient,
    errno.ECONNRESET: Transient,
    errno.ECONNABORTED: Transient,
    errno.ECONNREFUSED: Transient,
    errno.EPIPE: Transient,
    errno.ETIMEDOUT: Transient,
    errno.EHOSTUNREACH: Transient,
    errno.ENETUNREACH: Transient,
    errno.ENETDOWN: Transient,
}

_HINTS = {
    errno.ENOSPC: "free some space and run the same command again",
    errno.EDQUOT: "raise the quota or free some space and run the same command again",
    errno.EROFS: "find out why it may not be written to, and run the same command again",
    errno.EMFILE: "raise `ulimit -n` or lower --jobs",
    errno.ELOOP: "a symbolic link stands where a directory or file should be",
}


def from_os_error(error: OSError, where: str | None = None) -> FastsyncError:
    """The error of ours for an operating-system error; the caller raises it ``from error``."""
    number = error.errno or 0
    # Libraries make some of these by hand, without a number.
    is_of_the_line = isinstance(error, ConnectionError | TimeoutError)
    kind = _BY_ERRNO.get(number, Transient if is_of_the_line else FastsyncError)
    text = (error.strerror or str(error) or type(error).__name__).lower()
    return kind(text, where=where, hint=_HINTS.get(number))


def caused(ours: FastsyncError, error: BaseException) -> BaseException | None:
    """For ``raise ours from ...``: `error`, unless that is `ours` itself, for whoever follows causes to their
    end."""
    return ours.__cause__ if ours is error else error


def worst_exit(codes: Iterable[int]) -> int:
    """The one exit code for a run in which all of `codes` apply; 0 when there are none."""
    met = set(codes) - {EXIT_OK}
    return next((code for code in _EXIT_RANK if code in met), 1 if met else EXIT_OK)
