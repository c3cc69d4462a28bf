"""Short runs of the machines in pairs.py and model.py; ``scripts/torture`` runs them for long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.stateful import run_state_machine_as_test
from model import Script, backends, files, run_in_trouble, scripts, verbs
from pairs import Pair
from rigs import PAIRS, Rig, rigs

SHORT = settings(
    max_examples=2,
    stateful_step_count=7,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking is for torture
)


# For scripts/torture alone.
LONG = ("S3 to SFTP", "SFTP to S3", "SFTP to itself", "S3 to another")


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Rig]]:
    with rigs(tmp_path_factory.mktemp("rigs")) as made:
        yield made


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair not in LONG])
def test_pairs(pair: str, rig: Callable[[str], Rig]) -> None:
    made = rig(pair)
    # Every run of SFTP logs in anew.
    how = settings(SHORT, max_examples=1, stateful_step_count=4) if "SFTP" in pair else SHORT
    run_state_machine_as_test(lambda: Pair(made), settings=how)  # type: ignore[arg-type]


@settings(SHORT, max_examples=100)
@given(verb=verbs, source=backends, dest=backends, ours=files, theirs=files, script=scripts)
def test_stores_in_trouble(
    verb: str,
    source: type,
    dest: type,
    ours: dict[str, bytes],
    theirs: dict[str, bytes],
    script: Script,
) -> None:
    asyncio.run(run_in_trouble(verb, source, dest, ours, theirs, script))
