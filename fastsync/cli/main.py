"""The process `fastsync`: runs a verb and turns whatever it ends with into one line and an exit code.

No error shows a traceback, unless FASTSYNC_TRACEBACK is set. All text from outside is escaped.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from fastsync import __version__
from fastsync.errors import EXIT_OK, EXIT_SIGINT, FastsyncError, UsageError, from_os_error
from fastsync.names import printable

PROGRAM: Final = "fastsync"
COMPLETE_VARIABLE: Final = "_FASTSYNC_COMPLETE"
_STRAITENED: Final = "raise `ulimit -v` and `-u`, or lower --jobs, --parallel and --chunk-size"
EXIT_SIGPIPE: Final = 141  # what a shell reports of a program that died of writing to a closed pipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `arguments` (by default those of the process) and return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # The process is ours, and it makes millions of objects that are in no cycle. With Python's own
    # threshold of 700 the collector would look through them again and again.
    gc.set_threshold(50_000, 20, 20)
    _fill_standard_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal's encoding does not have is shown as an escape, not as a bug.
        sys.stdout.reconfigure(errors="backslashreplace")
    as_json = "--json" in given
    try:
        status = _run(given)
        if sys.stdout is not None:  # closed by whoever started us
            sys.stdout.flush()
    except KeyboardInterrupt:
        status = EXIT_SIGINT
    except BrokenPipeError:  # the reader has seen enough; every other pipe is mapped at its border
        _drop_output()
        status = EXIT_SIGPIPE
    except FastsyncError as error:
        status = _fail(error, str(error), error.exit_code, as_json=as_json)
    except OSError as error:  # in practice, standard output is a full disk
        _drop_output()
        ours = from_os_error(error, error.filename if isinstance(error.filename, str) else None)
        status = _fail(error, str(ours), ours.exit_code)
    except MemoryError as error:
        status = _fail(error, f"out of memory ({_STRAITENED})", 1)
    except Exception as error:
        if isinstance(error, RuntimeError) and "start new thread" in str(error):
            return _fail(error, f"the system allows no further thread ({_STRAITENED})", 1)
        told = f"this is a bug: {type(error).__name__}: {error}"
        status = _fail(
            error, f"{told} (run it with FASTSYNC_TRACEBACK=1 and report what it says)", 1
        )
    # Spares the interpreter a last look for cycles on its way out.
    gc.freeze()
    return status


def run() -> NoReturn:
    """The process. Everything is closed and flushed when `main` returns; what the interpreter still tidies
    up takes 6 ms, a fifth of what is ours of a small copy."""
    status = main()
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
    os._exit(status)


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["--version"]:  # ahead of the 30 ms that click takes
        print(PROGRAM, __version__)  # noqa: T201
        return EXIT_OK

    import click

    from fastsync.cli.group import fastsync

    if COMPLETE_VARIABLE in os.environ:
        # click's own `main` answers the shell and exits.
        fastsync.main(arguments, prog_name=PROGRAM, complete_var=COMPLETE_VARIABLE)
    try:
        # Not click's `main`, which has its own opinions on interrupts and closed pipes.
        with fastsync.make_context(PROGRAM, arguments) as context:
            status = fastsync.invoke(context)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return UsageError.exit_code
    except click.UsageError as error:
        program = error.ctx.command_path if error.ctx is not None else PROGRAM
        told = f"{_one_line(error)} (`{program} --help` tells more)"
        told += _taken_for_a_key(error, arguments)
        return _fail(error, told, UsageError.exit_code, as_json="--json" in arguments)
    except click.ClickException as error:
        return _fail(error, _one_line(error), error.exit_code)
    except click.Abort:
        return EXIT_SIGINT
    return status if isinstance(status, int) else EXIT_OK


def _one_line(error: Exception) -> str:
    """click's sentence in the form of our own errors."""
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    text = re.sub(r"\s*\n\s*", " ", text).removesuffix(".")
    return text[:1].lower() + text[1:]


def _taken_for_a_key(error: Exception, arguments: list[str]) -> str:
    """What to say of a place that is missing because -i took it, as it asks in other programs."""
    from click import MissingParameter

    if isinstance(error, MissingParameter) and "-i" in arguments:
        return "; -i names a key to log in with, --interactive asks"
    return ""


def _fail(error: BaseException, told: str, status: int, *, as_json: bool = False) -> int:
    """Say why it ended, also to a program that reads --json; the exit code."""
    from fastsync.redaction import redacted

    if as_json and sys.stdout is not None:
        from fastsync.cli.render import error_json, write_text

        write_text(error_json(told, status) + "\n")
    if os.environ.get("FASTSYNC_TRACEBACK"):
        import traceback

        told = "".join(traceback.format_exception(error)) + told
        told = "\n".join(map(printable, redacted(told).splitlines()))
    else:
        told = printable(redacted(told))
    try:
        if sys.stderr is not None:
            sys.stderr.write(f"{PROGRAM}: error: {told}\n")
            sys.stderr.flush()
    except OSError:
        pass  # nobody is left to be told; the exit code still says it
    return status


def _fill_standard_streams() -> None:
    """Open what we were started without: else a file of ours would get its number, and a message would
    end up in somebody's copy. What is said then is lost; but reading nothing is not reading an empty file,
    so that fails."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # It takes the lowest number that is free.
            os.open(os.devnull, os.O_WRONLY if number == 0 else os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def _drop_output() -> None:
    """Send what is still buffered nowhere: the interpreter would fail over it once more at its end."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
    except OSError:
        pass
