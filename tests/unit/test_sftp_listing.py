"""The order of a listing, whatever the server's, without keeping others waiting."""

from __future__ import annotations

import gc
import random
import stat
import time
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsync.backend import ScanOptions
from fastsync.names import path_key
from fastsync_sftp import listing
from fastsync_sftp.listing import Listing, in_order
from fastsync_sftp.packets import Attributes
from fastsync_sftp.scripts import Script

MANY = 200_000
# A tenth of what people notice; a million names in one go took over a second.
LONGEST_S = 0.05


class Seen:
    """In the place of what is known of directories."""

    def seen(self, path: str) -> None:
        assert path == ""


def result_of(script: Script[Any]) -> Any:
    while True:
        try:
            assert next(script) == []
        except StopIteration as end:
            return end.value


@given(
    st.sets(st.text("ab\x00é\uff46\U0001f600\udc80", max_size=6), max_size=300), st.integers(2, 40)
)
def test_the_order_of_bytes(names: set[str], size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "_SORTED", 64 * size)
        assert result_of(in_order(list(names))) == sorted(names, key=path_key)


@pytest.mark.parametrize("suffix", ["", "é"])
def test_parts_that_are_put_together(suffix: str) -> None:
    names = [f"{number:06}{suffix}" for number in range(70_000)]
    for mix in (random.Random(1).shuffle, list.reverse, lambda _names: None):
        mixed = list(names)
        mix(mixed)
        assert result_of(in_order(mixed)) == names


def test_a_large_directory_keeps_nobody_waiting() -> None:
    numbers = random.Random(1).sample(range(MANY), MANY)
    modes = [stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755]
    names = [(b"%032d" % number, Attributes(0, 0, 0, modes[not number % 50])) for number in numbers]
    scan = Listing(cast("Any", None), b"/", cast("Any", Seen()), ScanOptions(recursive=True), str)
    top = listing._Directory("", None)
    script = scan._entries(top, names)
    longest, steps, found = 0.0, 0, None
    gc.disable()  # its times depend on what else there is in this process
    try:
        while found is None:
            began = time.thread_time()
            try:
                next(script)
            except StopIteration as end:
                found = end.value
            longest = max(longest, time.thread_time() - began)
            steps += 1
    finally:
        gc.enable()
    assert [key for key, _ in found.entries] == sorted(key for key, _ in found.entries)
    assert (len(found.entries), len(top.children)) == (MANY, MANY // 50)
    assert steps > 100
    assert longest < LONGEST_S
