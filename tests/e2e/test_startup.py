"""A process that has little to do starts quickly: it imports no library that it does not need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastsync import __version__

if TYPE_CHECKING:
    from tests.conftest import Fastsync, Plant

HEAVY = {
    "aiobotocore",
    "aiohttp",
    "asyncssh",
    "botocore",
    "cryptography",
    "email",
    "http",
    "httpx",
    "importlib.metadata",
    "inspect",
    "pydantic",
    "pydantic_core",
    "requests",
    "rich",
    "ssl",
    "tomllib",
    "urllib3",
    "zoneinfo",
}


def imported(fastsync: Fastsync, *arguments: str) -> set[str]:
    """The modules that a run imports, and the packages they are in."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "fastsync", *arguments],
        cwd=fastsync.cwd,
        env=fastsync.environ,
        capture_output=True,
        text=True,
        check=True,
    )
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "fastsync" in names
    return names | {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("cp", "--help")])
def test_help_imports_little(fastsync: Fastsync, arguments: tuple[str, ...]) -> None:
    names = imported(fastsync, *arguments)
    assert names & (HEAVY - {"inspect"}) == set()
    assert not {"asyncio", "logging", "fastsync.log"} & names
    if arguments == ("--version",):
        assert "click" not in names


def test_a_local_copy_imports_no_other_protocol(
    fastsync: Fastsync, plant: Plant, tmp_path: Path
) -> None:
    plant(tmp_path, {"src/a": "a"})
    names = imported(fastsync, "cp", "-R", "src", "dest")
    assert names & (HEAVY - {"inspect", "ssl"}) == set()  # asyncio cannot do without these
    assert not {name for name in names if "telling" in name} - {"fastsync_local.telling"}
    assert not {name for name in names if name.startswith("fastsync_")} - {
        name for name in names if name.startswith("fastsync_local")
    }
    assert (tmp_path / "dest/a").exists()


def test_version_and_help(fastsync: Fastsync) -> None:
    assert fastsync("--version") == (0, f"fastsync {__version__}\n", "")
    for arguments in (["--help"], ["-h"], ["cp", "-h"], ["sync", "--help"], ["ls", "-h"]):
        done = fastsync(*arguments)
        assert (done.code, done.stderr) == (0, "")
        assert done.stdout.startswith("Usage: fastsync ")
    # Every line fits the narrowest terminal that people use.
    assert max(map(len, fastsync("sync", "--help").stdout.splitlines())) <= 80
