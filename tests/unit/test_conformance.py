"""The conformance suite is worth its name: a store that breaks a promise fails the test of that promise.

Each mutant is a store that keeps all promises, with a broken method in the place of a whole one. Its
test passes for the whole store, and fails for the broken one. docs/CONTRACT.md has the test of each promise.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from broken import Broken
from mutants import MUTANTS, OF_SERVERS, Mutant

from fastsync.backend import Backend, Source, StoreOptions
from fastsync.errors import UsageError
from fastsync.location import Location, parse
from fastsync.testing import (
    BareMemoryBackend,
    MemoryBackend,
    ObjectMemoryBackend,
    StoreConformance,
)
from fastsync_local.backend import LocalBackend

CONTRACT = Path(__file__).parents[2] / "docs" / "CONTRACT.md"
numbers = itertools.count()


def breaking(thing: Any, broken: Mapping[str, Any]) -> None:
    """Give `thing` a class of its own, in which some methods are broken, and some properties others."""
    members: dict[str, Any] = {}

    def method(name: str, act: Broken) -> Broken:
        def stand_in(self: Any, *args: Any, **named: Any) -> Any:
            return act(getattr(super(made, self), name), *args, **named)

        return stand_in

    for name, act in broken.items():
        members[name] = method(name, act) if callable(act) else _always(act)
    made: type = type(f"Broken{type(thing).__name__}", (type(thing),), members)
    thing.__class__ = made


def _always(value: object) -> property:
    return property(lambda _: value)


class Breaks:
    """The backend of a mutant."""

    def __init__(self, inner: Backend, mutant: Mutant | None) -> None:
        self._inner, self._mutant = inner, mutant

    async def connect(self, location: Location, options: StoreOptions) -> Source:
        store = await self._inner.connect(location, options)
        if self._mutant is not None:
            mutant = self._mutant
            made: dict[str, Broken] = {}
            for name, broken in (("upload", mutant.upload), ("open_download", mutant.download)):
                if broken:
                    made[name] = _then_breaking(broken)
            breaking(store, {**made, **mutant.store})
        return store

    async def aclose(self) -> None:
        await self._inner.aclose()


def _then_breaking(broken: Mapping[str, Any]) -> Broken:
    async def make(whole: Broken, *args: Any, **named: Any) -> Any:
        upload = await whole(*args, **named)
        breaking(upload, broken)
        return upload

    return make


def made(kind: str, tmp_path: Path) -> tuple[Backend, Location]:
    number = next(numbers)
    if kind == "local":
        root = tmp_path / f"root-{number}"
        root.mkdir()
        return LocalBackend(), parse(str(root))
    backends = {"memory": MemoryBackend, "bare": BareMemoryBackend, "objects": ObjectMemoryBackend}
    return backends[kind](), parse(f"mem://mutant-{number}/")


async def outcome(mutant: Mutant, tmp_path: Path, *, is_broken: bool) -> BaseException | None:
    """What the test says, in the first of its cases that fails; None if all pass that are not skipped."""
    test = getattr(StoreConformance, mutant.test)
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    names = [[name.strip() for name in _names(mark.args[0])] for mark in marks]
    passed = 0
    for values in itertools.product(*(mark.args[1] for mark in marks)):
        case: dict[str, Any] = {}
        for keys, value in zip(names, values, strict=True):
            case |= dict(zip(keys, value if len(keys) > 1 else (value,), strict=True))
        try:
            await _run(mutant, case, tmp_path, is_broken=is_broken)
            passed += 1
        except pytest.skip.Exception:
            continue
        except (Exception, pytest.fail.Exception) as error:
            return error
    assert passed, "all of it was skipped"
    return None


def _names(told: str | Sequence[str]) -> Sequence[str]:
    return told.split(",") if isinstance(told, str) else told


async def _run(mutant: Mutant, case: dict[str, Any], tmp_path: Path, *, is_broken: bool) -> None:
    class Suite(StoreConformance):
        many = 1100

        async def make_root(self, tmp_path: Path) -> tuple[Backend, Location]:
            inner, location = made(mutant.kind, tmp_path)
            return Breaks(inner, mutant if is_broken else None), location

    suite = Suite()
    backend, location = await suite.make_root(tmp_path)
    store = await backend.connect(location, StoreOptions())
    scratch = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR)
    known = {"source": store, "sink": store, "root": (backend, location), "scratch": scratch}
    test = getattr(suite, mutant.test)
    wanted = inspect.signature(test).parameters
    try:
        await asyncio.wait_for(test(**{name: {**known, **case}[name] for name in wanted}), 20)
    finally:
        os.close(scratch)
        for closed in (store, backend):
            try:
                await closed.aclose()
            except UsageError:
                assert is_broken


@pytest.fixture(autouse=True)
def _forget_boxes() -> Iterator[None]:
    yield
    for backend in (MemoryBackend, BareMemoryBackend, ObjectMemoryBackend):
        for name in [name for name in backend._boxes if name.startswith("mutant-")]:
            del backend._boxes[name]


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
async def test_a_broken_store_is_found_out(mutant: Mutant, tmp_path: Path) -> None:
    assert await outcome(mutant, tmp_path, is_broken=False) is None
    assert await outcome(mutant, tmp_path, is_broken=True) is not None


def suite() -> set[str]:
    return {name for name in dir(StoreConformance) if name.startswith("test_")}


def test_every_test_has_something_to_find() -> None:
    assert suite() == {mutant.test for mutant in MUTANTS} | OF_SERVERS


def test_the_page_names_every_test() -> None:
    table = CONTRACT.read_text().split("## Which test holds which promise")[1].split("\n## ")[0]
    assert set(re.findall(r"`(test_\w+)`", table)) == suite()
