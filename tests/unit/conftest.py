"""Stores in memory for tests of the library: one with every ability, and one that is like a bucket."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastsync.registry import Claim, Registry
from fastsync.testing import BareMemoryBackend, MemoryBackend

CLAIMS = [
    Claim("file", "fastsync_local.backend:LocalBackend"),
    Claim("mem", "fastsync.testing:MemoryBackend"),
    Claim("bucket", "fastsync.testing:BareMemoryBackend"),
]


@pytest.fixture
def memory_stores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have ``mem://`` and ``bucket://`` beside the disk, empty before and after."""
    monkeypatch.setattr(Registry, "from_entry_points", lambda: Registry(CLAIMS))
    MemoryBackend.reset()
    BareMemoryBackend.reset()
    yield
    MemoryBackend.reset()
    BareMemoryBackend.reset()
