"""Who does the work of a run: helper processes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fastsync_local import crew as crews
from fastsync_local.copying import Rules
from fastsync_local.crew import Crew
from fastsync_local.held import Root, let_go
from fastsync_local.lanes import Lane


@pytest.fixture
async def crew(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Crew]:
    monkeypatch.setattr(crews, "LANES_FROM", 0)
    crew = Crew()
    crew.allow(2, 1)
    yield crew
    await crew.aclose()


@pytest.fixture
def lanes(monkeypatch: pytest.MonkeyPatch) -> list[Lane]:
    """Those that were started."""
    started: list[Lane] = []

    class Told(Lane):
        def __init__(self) -> None:
            super().__init__()
            started.append(self)

    monkeypatch.setattr(crews, "Lane", Told)
    return started


@pytest.mark.parametrize("is_replaced", [False, True])
async def test_a_place_that_cannot_be_used_takes_no_helper_process_each_time(
    crew: Crew, lanes: list[Lane], tmp_path: Path, *, is_replaced: bool
) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from/a").write_text("a")
    target = Root(str(tmp_path / "to"))
    if is_replaced:
        let_go(target.descriptor(create=True))
        os.rename(tmp_path / "to", tmp_path / "moved")
    (tmp_path / "to").write_text("")
    for _ in range(3):
        with pytest.raises(OSError, match="to"):
            await crew.copy(
                Root(str(tmp_path / "from")),
                target,
                [("a", "a", 1, 0, 0o644, None)],
                Rules(),
                lambda _count: None,
            )
    assert len(lanes) == int(is_replaced)
