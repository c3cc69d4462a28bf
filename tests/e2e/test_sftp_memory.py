"""From store to store bytes pass through the memory that the settings grant, whatever the file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from measured import peak
from s3_servers import S3Server
from sshd import SFTP_SERVERS, running_sshd

if TYPE_CHECKING:
    from tests.conftest import Fastsync

MIB: Final = 1 << 20
SIZE: Final = 128 * MIB
MOST: Final = 115 * MIB


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux alone"
)
def test_a_large_file_from_store_to_store(
    fastsync: Fastsync,
    versitygw: S3Server,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """SFTP to S3, back, and SFTP to SFTP by a server that does not copy by itself."""
    server = next((each for each in SFTP_SERVERS if os.access(each, os.X_OK)), None)
    if server is None:
        pytest.skip("no sftp-server is installed")
    fastsync.environ |= versitygw.environ
    bucket = f"s3://{versitygw.new_bucket()}"
    with (tmp_path / "large").open("wb") as file:
        file.write(os.urandom(MIB))
        file.truncate(SIZE)
    folder = tmp_path_factory.mktemp("sshd")
    with running_sshd(folder, subsystem=f"{server} -P copy-data") as sshd:
        low = [f"--{key.replace('_', '-')}={value}" for key, value in sshd.place.items()]
        low += ["--profile", "low_memory"]
        there = sshd.url(tmp_path)
        peaks = {
            "SFTP to SFTP": peak(fastsync, "cp", *low, f"{there}/large", f"{there}/copy"),
            "SFTP to S3": peak(fastsync, "cp", *low, f"{there}/copy", f"{bucket}/a"),
            "S3 to SFTP": peak(fastsync, "cp", *low, f"{bucket}/a", f"{there}/back"),
        }
    same = subprocess.run(["cmp", tmp_path / "large", tmp_path / "back"], check=False)
    assert same.returncode == 0
    assert {name: size >> 20 for name, size in peaks.items() if size > MOST} == {}, peaks
