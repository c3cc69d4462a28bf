"""For whoever writes a protocol, or tests what uses one: the promises as tests, and stores in memory.

`StoreConformance` states every promise of `fastsync.backend` as a test (`SourceConformance` those of a
store that is only read), docs/CONTRACT.md shows how to apply it. `MemoryBackend` and `BareMemoryBackend`
keep all of them, with `Faults` and `Gauge` to make trouble and see what it does; `FaultyBackend` makes the
trouble of any other backend.

Needs pytest and pytest-asyncio.
"""

import pytest

pytest.register_assert_rewrite(
    "fastsync.testing.abilities",
    "fastsync.testing.reading",
    "fastsync.testing.batches",
    "fastsync.testing.keeping",
    "fastsync.testing.listing",
    "fastsync.testing.vocabulary",
    "fastsync.testing.writing",
)

from fastsync.testing.abilities import StoreConformance  # noqa: E402
from fastsync.testing.box import Box  # noqa: E402
from fastsync.testing.faulty import FaultyBackend  # noqa: E402
from fastsync.testing.memory import (  # noqa: E402
    BareMemoryBackend,
    MemoryBackend,
    ObjectMemoryBackend,
)
from fastsync.testing.reading import SourceConformance  # noqa: E402
from fastsync.testing.trouble import After, Faults, Gauge, Short, Trouble  # noqa: E402

__all__ = [
    "After",
    "BareMemoryBackend",
    "Box",
    "Faults",
    "FaultyBackend",
    "Gauge",
    "MemoryBackend",
    "ObjectMemoryBackend",
    "Short",
    "SourceConformance",
    "StoreConformance",
    "Trouble",
]
