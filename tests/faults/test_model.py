"""Short runs of the machines in model.py; ``scripts/torture`` runs them for as long as one likes."""

from __future__ import annotations

import asyncio

from hypothesis import HealthCheck, Phase, given, settings
from model import LocalTrees, Script, backends, files, scripts, sync_in_trouble

from fastsync.testing import MemoryBackend

SHORT = settings(
    max_examples=12,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking is for torture
)

TestLocalTrees = LocalTrees.TestCase
TestLocalTrees.settings = SHORT


@settings(SHORT, max_examples=150)
@given(source=backends, dest=backends, ours=files, theirs=files, script=scripts)
def test_stores_in_trouble(
    source: type[MemoryBackend],
    dest: type[MemoryBackend],
    ours: dict[str, bytes],
    theirs: dict[str, bytes],
    script: Script,
) -> None:
    asyncio.run(sync_in_trouble(source, dest, ours, theirs, script))
