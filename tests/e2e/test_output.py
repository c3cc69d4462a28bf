"""What cp and sync print, and where: results on stdout, everything else on stderr, nothing unasked."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Fastsync, Plant, Spec

BAD = os.fsdecode(b"bad\xff")
TREE: Spec = {
    "a": "a" * 1000,
    "same": "same",
    "dir/b": "b" * 2000,
    "link": Path("a"),
    "empty/": "",
    "esc\x1b[2J\nline": "e",
    BAD: "xyz",
}

SUMMARY = re.compile(
    r"""Copied: (?P<copied>\d+) files, (?P<size>[\d.]+ \w+)
Skipped: (?P<skipped>\d+) files \(already exist\)
Deleted: (?P<deleted>\d+) files
Failed: (?P<failed>\d+) files
Verified: (?P<verified>\d+) files, unverified: (?P<unverified>\d+) files
Total time: (?P<time>[\d.]+) s
Average speed: (?P<speed>[\d.]+) MB/s
Compared by: (?P<comparison>[^\n]+)
Bytes sent: (?P<sent>[\d.]+ \w+) of (?P<full>[\d.]+ \w+) for a full copy
(?:Left out: (?P<left>\d+) links, devices, pipes or sockets
)?"""
)

ITEM = {
    "operation": str,
    "success": bool,
    "source": str,
    "source_bytes": str,
    "destination": str,
    "destination_bytes": str,
    "size": int,
    "duration": str,
    "reason": str,
    "error": str,
}
TOTALS = {
    "operation": str,
    "success": bool,
    "copied": int,
    "verified": int,
    "unverified": int,
    "skipped": int,
    "deleted": int,
    "failed": int,
    "size": int,
    "bytes_sent": int,
    "bytes_full_copy": int,
    "directories": int,
    "links": int,
    "attributes": int,
    "specials_skipped": int,
    "retries": int,
    "duration": str,
    "comparison": str,
    "kept": str,
    "exit_code": int,
}


@pytest.fixture
def work(plant: Plant, tmp_path: Path) -> Path:
    """A source, and a destination that has one file of it and one more."""
    plant(tmp_path / "src", TREE)
    plant(tmp_path / "dest", {"extra": "x"})
    shutil.copy2(tmp_path / "src/same", tmp_path / "dest/same")
    return tmp_path


# -- for people --------------------------------------------------------------------------------------


def test_silence(fastsync: Fastsync, work: Path) -> None:
    assert fastsync("sync", "--delete", "src", "dest") == (0, "", "")
    assert fastsync("cp", "-R", "-q", "src", "elsewhere") == (0, "", "")


def test_the_summary(fastsync: Fastsync, work: Path) -> None:
    done = fastsync("sync", "--delete", "--summarize", "src", "dest")
    assert (done.code, done.stderr) == (0, "")
    found = SUMMARY.fullmatch(done.stdout)
    assert found, done.stdout
    numbers = ("copied", "size", "skipped", "deleted", "failed", "sent", "full", "left")
    assert found.group(*numbers) == (
        *("4", "3004 bytes", "1", "1", "0", "3004 bytes", "3008 bytes"),
        None,
    )
    assert found["comparison"] == "size and time"
    assert 0 < float(found["time"]) < 30 or found["time"] == "0.00"
    assert float(found["speed"]) >= 0
    # Again, with its other name and sizes for people.
    found = SUMMARY.fullmatch(fastsync("sync", "--stat", "-H", "--checksum", "src", "dest").stdout)
    assert found
    assert found.group("copied", "size", "skipped", "sent", "full", "comparison") == (
        *("0", "0 B", "5", "0 B", "2.94 KiB", "checksum"),
    )


def test_the_summary_of_failures(fastsync: Fastsync, work: Path, unprivileged: list[str]) -> None:
    (work / "src/a").chmod(0)
    done = fastsync("sync", "--summarize", "src", "dest", under=unprivileged)
    found = SUMMARY.fullmatch(done.stdout)
    assert found
    assert (done.code, found["copied"], found["failed"]) == (1, "3", "1")
    assert done.stderr == "fastsync: error: src/a: permission denied\n"


def test_verbose(fastsync: Fastsync, work: Path) -> None:
    done = fastsync("sync", "--delete", "-v", "src", "dest")
    assert (done.code, done.stdout) == (0, "")
    assert sorted(done.stderr.splitlines()) == [
        "copied dest/a (1000 B)",
        "copied dest/bad\\xff (3 B)",
        "copied dest/dir/b (1.95 KiB)",
        "copied dest/esc\\x1b[2J\\nline (1 B)",
        "deleted dest/extra",
        "linked dest/link",
        "made dest/dir",
        "made dest/empty",
    ]
    (work / "src/a").chmod(0o600)
    assert fastsync("sync", "-v", "src", "dest").stderr == "set attributes of dest/a\n"
    lines = fastsync("sync", "-vv", "src", "dest").stderr.splitlines()
    assert "skipped dest/same: unchanged" in lines
    assert "skipped dest/link: same target" in lines
    assert len(lines) == 6


def test_a_refusal_is_told_even_when_quiet(fastsync: Fastsync, work: Path) -> None:
    done = fastsync("sync", "--delete", "-q", "--max-delete", "0", "src", "dest")
    assert (done.code, done.stdout) == (6, "")
    assert done.stderr.startswith("fastsync: not deleting: 1 of 2 files")
    assert done.stderr.count("\n") == 1
    done = fastsync("cp", "-q", "missing", "dest/")
    assert (done.code, done.stderr.count("\n")) == (3, 1)


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8"])
@pytest.mark.parametrize("utf8", ["", "0"])
def test_locales(fastsync: Fastsync, plant: Plant, tmp_path: Path, locale: str, utf8: str) -> None:
    """Names are bytes: a locale without UTF-8 changes how they are shown, never what they are."""
    names = ["ünï ☃", BAD, "\u202e", "plain"]
    plant(tmp_path / "src", dict.fromkeys(names, "content"))
    env = {"LC_ALL": locale, **({"PYTHONUTF8": utf8} if utf8 else {})}
    done = fastsync("cp", "-Rv", "--json", "src", "dest", env=env)
    assert done.code == 0
    assert sorted(os.listdir(tmp_path / "dest")) == sorted(names)
    assert all(json.loads(line)["success"] for line in done.stdout.splitlines())
    done = fastsync("cp", "-R", "-n", "src", "other", env=env)
    assert done.code == 0
    assert "\u202e" not in done.stdout
    assert done.stdout.count("would copy") == 4


# -- for programs ------------------------------------------------------------------------------------


def parsed(stdout: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The items and the summary, checked against the schema of docs/OUTPUT.md."""
    *items, summary = [json.loads(line) for line in stdout.splitlines()]
    for item in items:
        assert item["operation"] in [
            "copy",
            "mkdir",
            "link",
            "attributes",
            "delete",
            "skip",
            "scan",
        ]
        assert {"operation", "success", "duration"} <= item.keys()
        assert all(type(value) is ITEM[key] for key, value in item.items())
        assert re.fullmatch(r"\d+\.\d{3}s", item["duration"])
        assert item["success"] is ("error" not in item)
    optional = {"comparison", "kept"}
    assert TOTALS.keys() - optional <= summary.keys() <= TOTALS.keys()
    assert all(type(value) is TOTALS[key] for key, value in summary.items())
    assert summary["operation"] == "summary"
    assert re.fullmatch(r"\d+\.\d{3}s", summary["duration"])
    return items, summary


def test_json(fastsync: Fastsync, work: Path) -> None:
    done = fastsync("sync", "--delete", "--json", "src", "dest")
    assert (done.code, done.stderr) == (0, "")
    items, summary = parsed(done.stdout)
    by_place = {
        (item["operation"], item["destination"]): (item.get("size"), item["reason"])
        for item in items
    }
    assert by_place == {
        ("copy", "dest/a"): (1000, "new"),
        ("copy", "dest/bad\ufffd"): (3, "new"),
        ("copy", "dest/dir/b"): (2000, "new"),
        ("copy", "dest/esc\x1b[2J\nline"): (1, "new"),
        ("link", "dest/link"): (None, "new"),
        ("mkdir", "dest/dir"): (None, "new"),
        ("mkdir", "dest/empty"): (None, "new"),
        ("delete", "dest/extra"): (1, "not in the source"),
    }
    (odd,) = (item for item in items if "destination_bytes" in item)
    assert base64.b64decode(odd["destination_bytes"]) == b"dest/bad\xff"
    assert base64.b64decode(odd["source_bytes"]) == b"src/bad\xff"
    assert summary | {"duration": ""} == {
        "operation": "summary",
        "success": True,
        "copied": 4,
        "verified": 0,
        "unverified": 4,
        "skipped": 1,
        "deleted": 1,
        "failed": 0,
        "size": 3004,
        "bytes_sent": 3004,
        "bytes_full_copy": 3008,
        "directories": 2,
        "links": 1,
        "attributes": 0,
        "specials_skipped": 0,
        "retries": 0,
        "duration": "",
        "comparison": "mtime",
        "exit_code": 0,
    }
    items, summary = parsed(fastsync("sync", "--json", "-vv", "src", "dest").stdout)
    assert {item["operation"] for item in items} == {"skip"}


def test_json_of_failures(fastsync: Fastsync, work: Path, unprivileged: list[str]) -> None:
    (work / "src/a").chmod(0)
    done = fastsync("sync", "--delete", "--json", "src", "dest", under=unprivileged)
    assert done.code == 1
    items, summary = parsed(done.stdout)
    (failed,) = (item for item in items if not item["success"])
    assert failed["error"] == "src/a: permission denied"
    assert (failed["operation"], failed["source"]) == ("copy", "src/a")
    assert (summary["success"], summary["failed"], summary["exit_code"]) == (False, 1, 1)
    assert summary["kept"] == "not deleting: a copy failed (src/a: permission denied)"
    # What is asked for wrongly has no items: one line each, for programs and for people.
    done = fastsync("sync", "--json", "src", "src")
    assert (done.code, done.stderr.count("\n")) == (2, 1)
    told = json.loads(done.stdout)
    assert (told["operation"], told["exit_code"]) == ("error", 2)


@pytest.mark.parametrize("options", [("--json",), ("-n",)])
def test_a_reader_that_goes_away(
    fastsync: Fastsync,
    plant: Plant,
    debris: Callable[[Path], list[Path]],
    tmp_path: Path,
    options: tuple[str, ...],
) -> None:
    plant(tmp_path / "src", {f"{'long name ' * 10}{index}": "" for index in range(2000)})
    copying = subprocess.Popen(
        fastsync.command("cp", "-R", *options, "src", "dest"),
        cwd=tmp_path,
        env=fastsync.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert copying.stdout is not None
    assert copying.stderr is not None
    with copying:
        copying.stdout.close()
        assert copying.stderr.read() == b""
    assert copying.returncode == 141
    assert debris(tmp_path) == []


def test_closed_streams_are_nobodys_problem(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    plant(tmp_path, {"src/a": "a"})
    closed = ["sh", "-c", 'exec "$@" >&- 2>&- <&-', "sh"]
    assert fastsync("cp", "-Rv", "src", "dest", under=closed) == (0, "", "")
    assert fastsync("sync", "--json", "src", "other", under=closed).code == 0
    assert (tmp_path / "dest/a").read_text() == "a"
    assert (tmp_path / "other/a").read_text() == "a"
    assert os.listdir(tmp_path / "dest") == ["a"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('"$@" cat src/a >&-', "standard output is closed"),
        ('"$@" cp src/a - >&-', "standard output is closed"),
        ('"$@" pipe out <&-', "standard input: bad file descriptor"),
        ('"$@" cp - out <&-', "standard input: bad file descriptor"),
        ('"$@" run - <&-', "standard input: bad file descriptor"),
        ('"$@" cp -R --files-from - src out <&-', "-: it cannot be read"),
    ],
)
def test_no_stream_is_not_an_empty_one(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, line: str, told: str
) -> None:
    plant(tmp_path, {"src/a": "a"})
    command = ["sh", "-c", line, "sh", *fastsync.command()]
    done = subprocess.run(
        command, check=False, cwd=tmp_path, env=fastsync.environ, capture_output=True, text=True
    )
    assert done.returncode in (1, 2)
    assert told in done.stderr
    assert os.listdir(tmp_path) == ["src"]


# -- logs --------------------------------------------------------------------------------------------

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def test_a_log(fastsync: Fastsync, work: Path, unprivileged: list[str]) -> None:
    (work / "src/a").chmod(0)
    arguments = ("sync", "--delete", "--log-file", "log", "src", "dest")
    done = fastsync(*arguments, under=unprivileged)
    assert (done.code, done.stdout, done.stderr.count("\n")) == (1, "", 2)
    lines = (work / "log").read_text().splitlines()
    assert all(re.match(rf"{STAMP} (INFO|WARNING|ERROR) ", line) for line in lines)
    told = sorted(line.partition(" ")[2] for line in lines)
    assert told == [
        "ERROR copy src/a -> dest/a: src/a: permission denied",
        "INFO copy src/bad\\xff -> dest/bad\\xff: new",
        "INFO copy src/dir/b -> dest/dir/b: new",
        "INFO copy src/esc\\x1b[2J\\nline -> dest/esc\\x1b[2J\\nline: new",
        "INFO link src/link -> dest/link: new",
        "INFO mkdir src/dir -> dest/dir: new",
        "INFO mkdir src/empty -> dest/empty: new",
        "WARNING not deleting: a copy failed (src/a: permission denied)",
    ]
    # It is written on, and only what its level asks for.
    (work / "src/a").chmod(0o644)
    fastsync(*arguments, "--log-level", "error")
    assert len((work / "log").read_text().splitlines()) == len(lines)
    fastsync(*arguments, "--log-level", "debug")
    assert (work / "log").read_text().count(" DEBUG skip ") == 6


def test_a_log_in_json(fastsync: Fastsync, work: Path) -> None:
    done = fastsync(
        *("sync", "--delete", "--max-delete", "0", "src", "dest"),
        *("--log-file", "log", "--log-format", "json", "--log-level", "debug"),
    )
    assert done.code == 6
    lines = [json.loads(line) for line in (work / "log").read_text().splitlines()]
    assert all(re.fullmatch(STAMP, line["time"]) for line in lines)
    assert {line["level"] for line in lines} == {"INFO", "DEBUG", "WARNING"}
    events = [line["event"] for line in lines]
    (odd,) = (event for event in events if "destination_bytes" in event)
    assert base64.b64decode(odd["destination_bytes"]) == b"dest/bad\xff"
    assert events[-1]["note"].startswith("not deleting: 1 of 2 files")


# -- progress ----------------------------------------------------------------------------------------


def test_progress_off_the_terminal(fastsync: Fastsync, work: Path) -> None:
    done = fastsync("sync", "--delete", "-P", "src", "dest", env={"TERM": "xterm-256color"})
    assert (done.code, done.stdout) == (0, "")
    assert re.fullmatch(
        r"4 files copied, 2\.93 KiB, 1 up to date, 1 deleted in [\d.]+ s \([\d.]+ [KMG]?i?B/s\)\n",
        done.stderr,
    )
    assert fastsync("sync", "-P", "-q", "src", "dest").stderr == ""
    assert fastsync("sync", "--no-progress", "src", "dest").stderr == ""


class Terminal:
    """A terminal of a size, by tmux."""

    def __init__(self, directory: Path, columns: int) -> None:
        self._directory = directory
        self._columns = columns
        self._tmux = ["tmux", "-f", "/dev/null", "-S", str(directory / "tmux")]

    def run(self, command: Sequence[str | bytes | Path], environ: Mapping[str, str]) -> None:
        """Run a command, and say at its end that it has ended."""
        # The shell must outlive a Ctrl-C to tell us.
        line = "trap : INT; " + shlex.join(os.fsdecode(part) for part in command)
        size = ["-x", str(self._columns), "-y", "24"]
        subprocess.run(
            [*self._tmux, "new-session", "-d", *size, f"{line}; echo ended with $?; sleep 60"],
            env={**environ, "SHELL": "/bin/sh", "TERM": "xterm-256color"},
            cwd=self._directory,
            check=True,
        )

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        subprocess.run([*self._tmux, "send-keys", "C-c"], check=True)

    def screen(self, *, colors: bool = False, history: bool = False) -> str:
        """What can be seen, with ``colors`` as escapes, with ``history`` what could be before, too."""
        capture = ["capture-pane", "-pJ", *(["-e"] if colors else [])]
        if history:
            capture += ["-S", "-"]
        done = subprocess.run([*self._tmux, *capture], capture_output=True, text=True, check=True)
        return done.stdout

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], check=False, capture_output=True)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[[int], Terminal]]:
    if shutil.which("tmux") is None:
        pytest.skip("there is no tmux")
    opened: list[Terminal] = []

    def open_terminal(columns: int) -> Terminal:
        (tmp_path / "terminal").mkdir(exist_ok=True)
        opened.append(Terminal(tmp_path / "terminal", columns))
        return opened[-1]

    yield open_terminal
    for each in opened:
        each.close()


def watch(terminal: Terminal) -> list[str]:
    """The screens until the command has ended, each as often as it changes."""
    screens: list[str] = []
    end = time.monotonic() + 30
    while "ended with" not in (screen := terminal.screen()):
        assert time.monotonic() < end, screen
        if not screens or screens[-1] != screen:
            screens.append(screen)
        time.sleep(0.02)
    return [*screens, screen]


@pytest.mark.parametrize("columns", [80, 200])
def test_progress_on_a_terminal(
    fastsync: Fastsync,
    plant: Plant,
    terminal: Callable[[int], Terminal],
    remove_at_end: Callable[[Path], Path],
    tmp_path: Path,
    columns: int,
) -> None:
    """A display while there is something to see, one line when it is over, and no trace of it else."""
    names = {f"dir{i}/{'name ' * 40}{j}": "x" * 99 for i in range(8) for j in range(99)}
    plant(tmp_path / "src", names)
    with open(tmp_path / "src/large \x1b[31m name", "wb") as large:
        large.truncate(768 << 20)
    window = terminal(columns)
    command = fastsync.command("cp", "-R", tmp_path / "src", remove_at_end(tmp_path / "to"))
    window.run(command, fastsync.environ)
    *during, last = watch(window)
    assert re.fullmatch(
        r"793 files copied, 768 MiB in [\d.:]+( s)? \([\d.]+ [MG]iB/s\)\nended with 0\n+", last
    ), last
    shown = [screen for screen in during if "files" in screen and "copied, " not in screen]
    if not shown:
        pytest.skip("this disk is too fast for a display")
    for screen in shown:
        lines = screen.rstrip("\n").split("\n")
        # One line of numbers, one bar, the files under way: it is never drawn twice.
        assert len(lines) <= 2 + 8
        assert re.match(r"scanning: [\d,]+ entries|[ \d]{3}%  ", lines[0])
        assert sum("files" in line for line in lines) == 1
        assert all("\\x1b[31m" in line for line in lines if "large" in line)
    assert any("large \\x1b[31m name" in screen for screen in shown)
    percents = [int(found[1]) for screen in shown if (found := re.match(r" *(\d+)%", screen))]
    assert percents == sorted(percents)
    assert not re.search(r"scanning", "".join(screen for screen in shown if "%" in screen))


def test_lines_and_a_display_share_a_terminal(
    fastsync: Fastsync,
    plant: Plant,
    terminal: Callable[[int], Terminal],
    remove_at_end: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    names = [f"d/{index:04}" for index in range(900)]
    src = plant(tmp_path / "src", dict.fromkeys(names, "x"))
    for name in ("a-large", "z-large"):
        with open(src / name, "wb") as large:
            large.truncate(256 << 20)
    window = terminal(200)
    to = remove_at_end(tmp_path / "to")
    # The results go to the terminal, too.
    window.run(fastsync.command("cp", "-Rv", "--summarize", src, to), fastsync.environ)
    watch(window)
    lines = window.screen(history=True).rstrip("\n").split("\n")
    told = [line for line in lines if line.startswith("copied ")]
    assert sorted(told) == sorted(
        [f"copied {to}/{name} (1 B)" for name in names]
        + [f"copied {to}/{name}-large (256 MiB)" for name in "az"]
    )
    rest = [line for line in lines if line not in told]
    assert rest[0] == f"made {to}/d"
    assert rest[1].startswith("902 files copied, 512 MiB in ")
    assert SUMMARY.fullmatch("\n".join([*rest[2:-1], ""]))
    assert rest[-1] == "ended with 0"


@pytest.mark.parametrize(
    ("options", "environ", "colored"),
    [
        ((), {}, True),
        ((), {"NO_COLOR": "1"}, False),
        (("--color", "never"), {}, False),
        (("--color", "always"), {"NO_COLOR": "1"}, True),
    ],
)
def test_colors(
    fastsync: Fastsync,
    terminal: Callable[[int], Terminal],
    remove_at_end: Callable[[Path], Path],
    eventually: Callable[[Callable[[], object]], None],
    tmp_path: Path,
    options: tuple[str, ...],
    environ: dict[str, str],
    colored: bool,
) -> None:
    with open(tmp_path / "large", "wb") as large:
        large.truncate(4 << 30)
    window = terminal(80)
    copy = remove_at_end(tmp_path / "copy")
    command = fastsync.command("cp", *options, tmp_path / "large", copy)
    window.run(command, {**fastsync.environ, **environ})
    seen: list[str] = []

    def is_over() -> bool:
        screen = window.screen(colors=True)
        if "GiB" in screen and "ended with" not in screen:
            seen.append(screen)
        return len(seen) > 5 or "ended with" in screen

    eventually(is_over)
    window.interrupt()
    eventually(lambda: "ended with" in window.screen())
    if len(seen) < 5:
        pytest.skip("this disk is too fast for a display")
    shown = "".join(seen)
    # 38;5;N and 3N are colours; bold and dim are none.
    assert bool(re.search(r"\x1b\[(?:\d+;)*(?:3[0-7]|38|9[0-7])[;m]", shown)) == colored


def test_a_dumb_terminal_shows_no_display(
    fastsync: Fastsync, plant: Plant, terminal: Callable[[int], Terminal], tmp_path: Path
) -> None:
    plant(tmp_path, {"src/a": "a"})
    window = terminal(80)
    command = fastsync.command("cp", "-R", tmp_path / "src", tmp_path / "to")
    window.run(["env", "TERM=dumb", *command], fastsync.environ)
    assert watch(window)[-1] == "ended with 0" + "\n" * 24
