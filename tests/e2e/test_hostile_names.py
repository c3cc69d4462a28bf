"""Names that would act on a terminal, or on a shell: no verb shows them as they are, none runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Done, Fastsync

NAMES = [
    "esc\x1b[2J\x1b]0;title\x07",
    "c1\x9b2J",
    "line\nfastsync: error: forged",
    "return\rforged",
    "bidi\u202etxt.exe\u2066",
    "bad\udcff",
    "[red]markup",
    "$(touch pwned)",
    "`touch pwned`",
    "a; touch pwned #",
    "-rf",
    "%s%n{0}",
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_text("x")
    return folder


def is_harmless(done: Done) -> None:
    for text in (done.stdout, done.stderr):
        for line in text.splitlines():
            assert line.isprintable(), repr(line)
            assert not line.startswith(("forged", "fastsync: error: forged"))


def test_no_verb_shows_them_as_they_are(fastsync: Fastsync, tree: Path, tmp_path: Path) -> None:
    first = tree / NAMES[0]
    trace = ("--log-level", "trace")
    (tmp_path / "batch").write_bytes(b"cp 'src/\x1b[2J' dest\n")
    done = fastsync("plan", *trace, "src", "planned", "-o", "plan")
    is_harmless(done)
    commands: list[list[str | Path]] = [
        ["sync", "-vv", *trace, "src", "one"],
        ["sync", "-n", "src", "two"],
        ["sync", "--explain", NAMES[0], "src", "three"],
        ["sync", "-P", "--log-format", "json", *trace, "src", "four"],
        ["ls", "-l", *trace, "src"],
        ["ls", first, tree / NAMES[2]],
        ["stat", *[tree / name for name in NAMES]],
        ["du", "--max-depth", "1", "src", first],
        ["check", "-v", "src", "nothing-there"],
        ["check", "--combined", "-", "src", "src"],
        ["run", "-n", *trace, "plan"],
        ["run", "batch"],
        ["cat", tree / "no\x1b[2J"],
        ["cp", first, "dest/\x1b[2J/"],
        ["mv", "-v", *trace, tree / "no\x1b[2J", "dest/"],
        ["mkdir", *trace, f"{first}/x"],
        ["rm", "-n", "-v", first],
        ["presign", f"s3://bucket/{NAMES[0]}", "--no-sign-request"],
        ["config", "show", "--config", "no\x1b[2J"],
    ]
    with ThreadPoolExecutor(3) as pool:
        for done in pool.map(lambda command: fastsync(*command), commands):
            is_harmless(done)
    assert sorted(os.listdir(tmp_path / "one")) == sorted(NAMES)


def test_nothing_in_a_batch_is_expanded(fastsync: Fastsync, tree: Path, tmp_path: Path) -> None:
    """Nor run: quotes are all that there is of a shell."""
    lines = [
        "cp 'src/$(touch pwned)' 'out/$(touch pwned)'",
        'cp "src/`touch pwned`" "out/`touch pwned`"',
        "cp 'src/a; touch pwned #' out/",
        "cp src/%s%n{0} out/{0,1}",
    ]
    (tmp_path / "batch").write_text("\n".join(lines) + "\n")
    done = fastsync("run", "batch")
    assert (done.code, done.stderr) == (0, "")
    assert sorted(os.listdir(tmp_path / "out")) == sorted(
        ["$(touch pwned)", "`touch pwned`", "a; touch pwned #", "{0,1}"]
    )
    assert not (tmp_path / "pwned").exists()


def test_a_package_in_the_current_directory_is_no_plug_in(
    fastsync: Fastsync, tmp_path: Path
) -> None:
    """What claims a scheme has to be installed where the program is."""
    info = tmp_path / "evil-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[fastsync.protocols]\nevil = evil:Backend\n")
    (tmp_path / "evil.py").write_text("open('pwned', 'w')\n")
    program = Path(sys.executable).parent / "fastsync"
    done = subprocess.run(
        [program, "ls", "evil://x/"],
        check=False,
        cwd=tmp_path,
        env=fastsync.environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "no protocol for this scheme" in done.stderr
    assert not (tmp_path / "pwned").exists()
