"""Being interrupted: quickly gone, the right exit code, no debris, and nothing that is half a file."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

if TYPE_CHECKING:
    from tests.conftest import Fastsync

Start: TypeAlias = Callable[..., "subprocess.Popen[bytes]"]
Wait: TypeAlias = Callable[[Callable[[], object]], None]

CLEANING_UP = b"fastsync: interrupted, cleaning up (once more to stop at once)\n"
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
FILES = 15_000


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Path]:
    """A source that takes longer to copy than anybody waits: mostly a hole, which is copied as zeros."""
    (tmp_path / "src").mkdir()
    (tmp_path / "dest").mkdir()
    with open(tmp_path / "src/large", "wb") as file:
        file.truncate(200 << 30)
    (tmp_path / "src/small").write_text("small")
    (tmp_path / "dest/large").write_text("the old one")
    yield tmp_path
    shutil.rmtree(tmp_path / "dest")  # what was written by then is much


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Enough small files to need helper processes, each with its path as content."""
    src = tmp_path_factory.mktemp("many") / "src"
    for first in range(0, FILES, 100):
        directory = src / f"{first:05}"
        directory.mkdir(parents=True)
        for number in range(first, first + 100):
            (directory / str(number)).write_text(f"{directory.name}/{number}")
    yield src
    shutil.rmtree(src)


def is_writing(place: Path) -> bool:
    """True when a temporary file there has some megabytes."""
    sizes = []
    for path in place.glob(".fs-*.part"):
        try:
            sizes.append(path.stat().st_blocks * 512)
        except FileNotFoundError:
            pass
    return any(size > 4 << 20 for size in sizes)


def skip_if_done(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        assert process.communicate() == (b"", b"")
        pytest.skip("this filesystem shares blocks: there is no middle")


def helpers(process: subprocess.Popen[bytes]) -> set[int]:
    """The processes that a process has started."""
    found: set[int] = set()
    for listed in Path(f"/proc/{process.pid}/task").glob("*/children"):
        try:
            found.update(map(int, listed.read_text().split()))
        except OSError:
            pass
    return found


def is_running(number: int) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def count_whole(dest: Path) -> int:
    """How many files are there, each of which is whole."""
    files = [path for path in dest.rglob("*") if path.is_file()]
    for path in files:
        assert path.read_text() == str(path.relative_to(dest)), path
    return len(files)


@pytest.mark.parametrize("number", CODES, ids=lambda number: signal.Signals(number).name)
def test_in_the_middle_of_a_large_file(
    started: Start,
    eventually: Wait,
    debris: Callable[[Path], list[Path]],
    large: Path,
    number: signal.Signals,
) -> None:
    process = started("sync", "src", "dest")
    eventually(lambda: is_writing(large / "dest") or process.poll() is not None)
    skip_if_done(process)
    children = helpers(process)
    begun = time.monotonic()
    process.send_signal(number)
    output, errors = process.communicate(timeout=20)
    assert time.monotonic() - begun < 5
    assert (process.returncode, output, errors) == (CODES[number], b"", CLEANING_UP)
    assert debris(large) == []
    assert (large / "dest/large").read_text() == "the old one"
    assert not any(map(is_running, children))


def test_while_a_call_blocks_the_event_loop(
    started: Start, eventually: Wait, tmp_path: Path
) -> None:
    """A list that is a pipe to which nobody writes: the loop gets no turn, and the run ends all the same."""
    os.mkfifo(tmp_path / "list")
    process = started("cp", "--files-from", "list", "src", "dest")
    # The thread stands in the call that opens it (fifo(7)).
    waits = Path(f"/proc/{process.pid}/wchan")
    if not os.access(waits, os.R_OK) or waits.read_text() == "0":
        time.sleep(2)
    else:
        eventually(lambda: "fifo" in waits.read_text())
    process.terminate()
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (CODES[signal.SIGTERM], b"", b"")


@pytest.mark.parametrize("options", [("--inplace",), ("--durable",), ("--checksum",)])
def test_in_other_ways_of_copying(
    fastsync: Fastsync,
    started: Start,
    eventually: Wait,
    debris: Callable[[Path], list[Path]],
    large: Path,
    options: tuple[str, ...],
) -> None:
    if "--checksum" in options:
        os.truncate(large / "dest/large", 200 << 30)
    process = started("sync", *options, "src", "dest")
    # The small file is copied beside the large one.
    eventually(lambda: (large / "dest/small").exists() or process.poll() is not None)
    time.sleep(0.2)
    skip_if_done(process)
    process.terminate()
    assert process.wait(timeout=5) == 143
    assert debris(large) == []


@pytest.mark.parametrize("whom", ["process", "group"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_the_middle_of_many_files(
    fastsync: Fastsync,
    started: Start,
    eventually: Wait,
    debris: Callable[[Path], list[Path]],
    many: Path,
    tmp_path: Path,
    whom: str,
    number: signal.Signals,
) -> None:
    """With helper processes; Ctrl-C on a terminal goes to all of them."""
    dest = tmp_path / "dest"
    process = started("cp", "-R", many, dest)
    seen: set[int] = set()

    def is_busy() -> bool:
        seen.update(helpers(process))
        return bool(seen) and (dest / "00200/200").exists()

    eventually(lambda: is_busy() or process.poll() is not None)
    assert process.poll() is None, "the whole copy took no time at all"
    begun = time.monotonic()
    if whom == "group":
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    output, errors = process.communicate(timeout=20)
    assert time.monotonic() - begun < 5
    assert (process.returncode, output, errors) == (CODES[number], b"", CLEANING_UP)
    assert debris(tmp_path) == []
    assert not any(map(is_running, seen))
    assert 0 < count_whole(dest) < FILES
    # The same command again does what was left.
    assert fastsync("cp", "-R", f"{many}/", dest) == (0, "", "")
    assert count_whole(dest) == FILES


def test_in_the_middle_of_a_listing(
    started: Start, eventually: Wait, many: Path, tmp_path: Path
) -> None:
    process = started("ls", "-R", many)
    assert process.stdout is not None
    process.stdout.read(10)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == 130


def test_at_any_moment(
    started: Start,
    debris: Callable[[Path], list[Path]],
    many: Path,
    tmp_path: Path,
) -> None:
    """From before there is anything to clean up until everything is done."""
    for step in range(9):
        dest = tmp_path / f"dest{step}"
        process = started("cp", "-R", many, dest)
        time.sleep(step * 0.08)
        process.terminate()
        process.communicate(timeout=10)
        assert process.returncode in (143, -signal.SIGTERM, 0)
        assert debris(tmp_path) == []
        if step % 4 == 0 and dest.exists():
            count_whole(dest)


def test_a_second_signal_ends_it_at_once(started: Start, eventually: Wait, large: Path) -> None:
    process = started("sync", "src", "dest")
    eventually(lambda: is_writing(large / "dest") or process.poll() is not None)
    skip_if_done(process)
    process.send_signal(signal.SIGSTOP)  # so that both arrive in the same moment
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=5) in (130, 143)
    assert time.monotonic() - begun < 1
    assert (large / "dest/large").read_text() == "the old one"


@pytest.mark.parametrize("ignored", ["INT", "HUP"])
def test_a_signal_that_is_ignored_stays_ignored(
    fastsync: Fastsync, started: Start, eventually: Wait, large: Path, ignored: str
) -> None:
    """As under nohup, or in a shell's background."""
    process = started(
        "sync", "src", "dest", under=["sh", "-c", f'trap "" {ignored}; exec "$@"', "sh"]
    )
    eventually(lambda: is_writing(large / "dest") or process.poll() is not None)
    skip_if_done(process)
    process.send_signal(getattr(signal, f"SIG{ignored}"))
    time.sleep(0.3)
    assert process.poll() is None
    process.terminate()
    assert process.wait(timeout=5) == 143


def test_a_parent_that_is_killed_leaves_no_helpers(
    started: Start, eventually: Wait, many: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "dest"
    process = started("cp", "-R", many, dest)
    seen: set[int] = set()

    def is_busy() -> bool:
        seen.update(helpers(process))
        return bool(seen) and (dest / "00200/200").exists()

    eventually(lambda: is_busy() or process.poll() is not None)
    process.kill()
    process.wait()
    eventually(lambda: not any(map(is_running, seen)))
    for path in dest.rglob("*"):
        if path.is_file() and not path.name.startswith(".fs-"):
            assert path.read_text() == str(path.relative_to(dest))
