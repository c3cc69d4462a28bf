"""The memory that a transfer takes is that of its settings, not that of its objects."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from measured import peak
from s3_servers import S3Server

if TYPE_CHECKING:
    from tests.conftest import Fastsync

MIB: Final = 1 << 20
SIZE: Final = 300 * MIB
MOST: Final = 150 * MIB


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux alone"
)
def test_a_large_object_up_and_down(
    fastsync: Fastsync, versitygw: S3Server, tmp_path: Path
) -> None:
    fastsync.environ |= versitygw.environ
    place = f"s3://{versitygw.new_bucket()}"
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.write(os.urandom(MIB))
        file.truncate(SIZE)
    low = ("--profile", "low_memory")
    peaks = {
        "up": peak(fastsync, "cp", *low, "large", f"{place}/a"),
        "pipe": peak(fastsync, "pipe", *low, f"{place}/b", stdin=large),
        "down": peak(fastsync, "cp", *low, f"{place}/a", "back"),
        "cat": peak(fastsync, "cat", "-c", "4", "--chunk-size", "1M", f"{place}/b"),
    }
    assert subprocess.run(["cmp", large, tmp_path / "back"], check=False).returncode == 0
    assert {name: size >> 20 for name, size in peaks.items() if size > MOST} == {}, peaks
