"""What of a file is sent when its holes are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastsync_sftp.upload import data_in

MEG = 1 << 20


@pytest.mark.parametrize(
    ("data", "size", "wanted"),
    [
        ([], 4 * MEG, [(4 * MEG - 1, 4 * MEG)]),
        ([(0, 4 * MEG)], 4 * MEG, [(0, 4 * MEG)]),
        ([(MEG, 2 * MEG)], 4 * MEG, [(MEG, 2 * MEG), (4 * MEG - 1, 4 * MEG)]),
        ([(4096, MEG), (MEG + 8192, 2 * MEG), (3 * MEG, 4 * MEG)], 4 * MEG,
         [(0, 2 * MEG), (3 * MEG, 4 * MEG)]),
        ([(0, 1)], 1, [(0, 1)]),
    ],
)  # fmt: skip
def test_pieces(
    tmp_path: Path, data: list[tuple[int, int]], size: int, wanted: list[tuple[int, int]]
) -> None:
    with (tmp_path / "file").open("w+b") as file:
        fd = file.fileno()
        os.ftruncate(fd, size)
        for start, stop in data:
            os.pwrite(fd, b"x" * (stop - start), start)
        if data and size > 1 and os.lseek(fd, 0, os.SEEK_HOLE) == size != data[0][1]:
            pytest.skip("the file system has no holes")
        if not data and os.lseek(fd, 0, os.SEEK_HOLE) != 0:
            pytest.skip("the file system has no holes")
        assert data_in(fd, 0, size) == wanted
        assert data_in(fd, 0, size + 1) == [(0, size + 1)], "it became shorter"
