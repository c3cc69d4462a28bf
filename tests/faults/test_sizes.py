"""Little memory, by the profile made for it: what `scripts/torture --sizes` does at length, in short."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sizes import many_files, one_large_file

if TYPE_CHECKING:
    from tests.conftest import Fastsync

MIB = 1 << 20


def test_a_large_file(fastsync: Fastsync, tmp_path: Path) -> None:
    for figures in one_large_file(tmp_path, fastsync.environ, 120 * MIB):
        assert figures.peak < 80 * MIB, figures


def test_many_files(fastsync: Fastsync, tmp_path: Path) -> None:
    for figures in many_files(tmp_path, fastsync.environ, 3000):
        assert figures.peak < 80 * MIB, figures
