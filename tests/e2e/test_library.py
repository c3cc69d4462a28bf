"""The library as a stranger's program sees it: typed names alone, under ``mypy --strict``, and running."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

PROGRAM: Final = """
import asyncio
import os
from pathlib import Path

import fastsync

Path("a/d").mkdir(parents=True)
Path("a/d/x").write_text("x")
Path("a/y.tmp").write_text("y")

seen: list[fastsync.Item] = []
rules = [fastsync.Rule(False, "*.tmp")]
summary: fastsync.Summary = fastsync.sync(
    "a", Path("b"), delete=True, rules=rules, on_event=seen.append
)
assert summary.exit_code == 0
assert [item.path for item in seen if item.operation == "copy"] == ["d/x"]
totals: fastsync.Totals = summary.totals
assert totals.files_copied == 1


async def main() -> None:
    results = await asyncio.gather(
        fastsync.async_cp(["a/d/x"], "c/"), fastsync.async_cp("a/y.tmp", "e/")
    )
    assert [one.totals.files_copied for one in results] == [1, 1]
    entries: list[fastsync.Entry] = await fastsync.async_ls("b", recursive=True)
    assert [entry.path for entry in entries] == ["d", "d/x"]
    usage: fastsync.Usage = await fastsync.async_du("b")
    assert (usage.files, usage.size) == (1, 1)
    await fastsync.async_mkdir("f/g")
    await fastsync.async_mv("c/x", "f/g/")
    assert (await fastsync.async_stat("f/g/x")).size == 1
    await fastsync.async_rm("e", recursive=True)


asyncio.run(main())


async def in_a_loop() -> None:
    try:
        fastsync.sync("a", "b")
    except fastsync.FastsyncError as error:
        assert "await fastsync.async_sync()" in str(error)
    else:
        raise AssertionError


asyncio.run(in_a_loop())

found: list[fastsync.Finding] = []
checked: fastsync.Checked = fastsync.check("a", "b", on_finding=found.append, checksum=True)
assert checked.exit_code == 1
assert [(one.mark, one.path) for one in found] == [("+", "y.tmp")]
read, write = os.pipe()
fastsync.cat("b/d/x", write)
os.close(write)
fastsync.pipe("piped", source=read)
assert fastsync.stat("piped").size == 1
assert fastsync.du("b").files == 1
assert [entry.kind for entry in fastsync.ls("b")] == ["dir"]
fastsync.mkdir("h")
fastsync.mv("piped", "h/")
fastsync.rm("h", recursive=True)
try:
    fastsync.cp("nowhere", "b", max_size="8Q")
except fastsync.FastsyncError as error:
    code: int = error.exit_code
    assert code == 2
print(fastsync.__version__)
"""


def test_names_that_do_not_exist_are_found_by_mypy(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import fastsync\n\nfastsync.snyc('a', 'b')\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "program.py"],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert 'Module has no attribute "snyc"' in done.stdout


def test_a_strangers_program(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    for command in (["-m", "mypy", "--strict", "program.py"], ["-W", "error", "program.py"]):
        done = subprocess.run(
            [sys.executable, *command],
            check=False,
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
