import gc
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator

import click
import pytest

from fastsync import __version__
from fastsync.cli import group
from fastsync.cli.main import main
from fastsync.errors import ConfigError, IntegrityError, SafetyStop, UsageError

Verb = Callable[[], object]
Run = Callable[[Verb], int]


@pytest.fixture(autouse=True)
def _collector() -> Iterator[None]:
    """`main` tunes the collector of a process that is its own; here it is not."""
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `main` with a verb that does what is given."""

    def run(does: Verb) -> int:
        module = types.ModuleType("fastsync_test_verb")
        module.probe = click.command("probe")(does)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(group.VERBS, "probe", (module.__name__, "Does what it is told."))
        return main(["probe"])

    return run


def raising(error: BaseException) -> Verb:
    def does() -> object:
        raise error

    return does


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (3, 3), (143, 143), ("x", 0)])
def test_what_a_verb_returns_is_the_exit_code(returned: object, status: int, run: Run) -> None:
    assert run(lambda: returned) == status


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (UsageError("no", where="x", hint="do y"), 2, "x: no (do y)"),
        (ConfigError("bad"), 2, "bad"),
        (SafetyStop("too many"), 6, "too many"),
        (IntegrityError("torn", where="a\x1b[31m\nb\udcff"), 4, r"a\x1b[31m\nb\xff: torn"),
        (
            click.UsageError("Nothing like it."),
            2,
            "nothing like it (`fastsync probe --help` tells more)",
        ),
        (click.ClickException("Odd\n\tthing."), 1, "odd thing"),
        (FileNotFoundError(2, "No such file", "/x"), 1, "/x: no such file"),
        (OSError(28, "No space left on device"), 7, "no space left on device (free some space"),
    ],
)
def test_an_error_is_one_escaped_line_and_a_code(
    error: Exception, status: int, told: str, run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    kept = os.dup(1)
    try:
        assert run(raising(error)) == status
    finally:
        os.dup2(kept, 1)
        os.close(kept)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"fastsync: error: {told}")
    assert err.count("\n") == 1


def test_a_bug_is_told_without_a_traceback(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(ValueError("odd\x1b[0m"))) == 1
    err = capsys.readouterr().err
    assert err.startswith(
        r"fastsync: error: this is a bug: ValueError: odd\x1b[0m (run it with FASTSYNC_"
    )
    assert err.count("\n") == 1


def test_a_traceback_for_who_asks(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTSYNC_TRACEBACK", "1")
    assert run(raising(ValueError("odd\x1b[0m"))) == 1
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert "in does" in err
    assert "\x1b" not in err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
        (click.exceptions.Exit(5), 5),
    ],
)
def test_other_ends_are_quiet(
    error: BaseException, status: int, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raising(error)) == status
    assert capsys.readouterr() == ("", "")


def test_a_verb_that_exits_by_itself_does(run: Run) -> None:
    with pytest.raises(SystemExit) as caught:
        run(raising(SystemExit(9)))
    assert caught.value.code == 9


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["snyc"], "there is no verb 'snyc'; did you mean sync?"),
        (
            ["frobnicate"],
            "there is no verb 'frobnicate'; there is cp, sync, mv, rm, check, ls",
        ),
        (["a\x1b[31mb"], r"there is no verb 'a\x1b[31mb'"),
        (["--frob"], "no such option '--frob'"),
        (["config", "shwo"], "no such command 'shwo'"),
        (["completion", "csh"], "'csh' is not one of 'bash', 'zsh', 'fish'"),
        (["completion"], "missing argument"),
    ],
)
def test_usage_errors(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastsync: error: ")
    assert told in err
    assert err.endswith(" --help` tells more)\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_every_verb(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for verb, (_, summary) in group.VERBS.items():
        assert f"  {verb} " in out
        assert summary in out


def test_no_verb_at_all_shows_the_help_as_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Usage: fastsync")


@pytest.mark.parametrize("arguments", [["--version"], ["-h", "--version"], ["--version", "sync"]])
def test_version(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out == f"fastsync {__version__}\n" or out.startswith("Usage:")


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_import_next_to_nothing(flag: str) -> None:
    code = (
        "import sys; from fastsync.cli.main import main\n"
        f"status = main([{flag!r}])\n"
        "heavy = {'asyncio', 'rich', 'pydantic', 'pydantic_core', 'importlib.metadata', 'tomllib',\n"
        "         'asyncssh', 'aiobotocore', 'aiohttp', 'httpx', 'logging'}\n"
        "ours = {name for name in sys.modules if name.startswith('fastsync')}\n"
        "ours -= {'fastsync', 'fastsync.cli', 'fastsync.cli.main', 'fastsync.cli.group',\n"
        "         'fastsync.errors', 'fastsync.names'}\n"
        "print(*ours | heavy & set(sys.modules), file=sys.stderr)\n"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""
