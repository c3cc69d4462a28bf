"""From a socket to a file by the kernel alone."""

import errno
import os
import socket
import threading
from pathlib import Path

import pytest

from fastsync.wire.splicing import Splice


@pytest.fixture(params=[True, False], ids=["splice", "a file system without it"])
def by_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        return
    real = os.splice

    def splice(src: int, dst: int, count: int, **more: int) -> int:
        if "offset_dst" in more:
            raise OSError(errno.EINVAL, "not here")
        return real(src, dst, count, **more)

    monkeypatch.setattr(os, "splice", splice)


@pytest.mark.usefixtures("by_kernel")
def test_what_comes_lands_where_it_should(tmp_path: Path) -> None:
    content = os.urandom(3_000_001)
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs:
            theirs.sendall(content)

    thread = threading.Thread(target=serve)
    thread.start()
    with (tmp_path / "file").open("w+b") as file, ours, Splice() as splice:
        position = 7
        while count := splice.take(ours.fileno(), len(content)):
            splice.give(file.fileno(), position, count)
            position += count
        thread.join()
        assert file.read() == bytes(7) + content
