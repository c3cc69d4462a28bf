"""The scoreboard of faults runs, and says what fastsync made of a cheap one of each kind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_fault_of_each_kind(tmp_path: Path) -> None:
    wanted = {("local", "missing"), ("s3", "list-html"), ("sftp", "size-less"), ("http", "digest")}
    only = [word for _, name in sorted(wanted) for word in ("--only", name)]
    seen = tmp_path / "seen.json"
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benches/scoreboard.py"), *only),
            *("--tools", "fastsync", "--jobs", "2", "--json", str(seen)),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    runs = json.loads(seen.read_text())["runs"]
    assert {(run["place"], run["case"]) for run in runs} == wanted
    assert all(run["survived"] and run["recovery_s"] is not None for run in runs)
    assert "| faults tried | 4 |" in done.stdout
    assert "| list-html | a page for people, 200, in place of the listing | exit 3 |" in done.stdout


def test_what_is_no_fault_or_tool() -> None:
    for options in (["--places", "local", "--only", "sunshine"], ["--tools", "telepathy"]):
        done = subprocess.run(
            [sys.executable, ROOT / "benches/scoreboard.py", *options],
            check=False,
            capture_output=True,
        )
        assert done.returncode == 2, options
