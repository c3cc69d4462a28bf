from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import Distribution, EntryPoint, PathDistribution
from pathlib import Path

import pytest

from fastsync import registry
from fastsync.errors import UsageError
from fastsync.registry import GROUP, Registry
from fastsync.testing import MemoryBackend

Install = Callable[..., EntryPoint]


def claim(scheme: str, value: str = "fastsync.testing:MemoryBackend") -> EntryPoint:
    return EntryPoint(scheme, value, GROUP)


@pytest.fixture
def install(tmp_path: Path) -> Install:
    """Install a distribution with one protocol, in a directory of its own."""
    count = 0

    def make(distribution: str, scheme: str, value: str) -> EntryPoint:
        nonlocal count
        count += 1
        info = tmp_path / str(count) / f"{distribution}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
        )
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{scheme} = {value}\n")
        found: Distribution = PathDistribution(info)
        (entry_point,) = found.entry_points
        return entry_point

    return make


@pytest.fixture
def _fresh_look() -> Iterator[None]:
    registry._installed.cache_clear()
    yield
    registry._installed.cache_clear()


def test_the_class_behind_a_scheme() -> None:
    assert Registry([claim("mem")]).load("mem") is MemoryBackend


def test_schemes_are_in_order_and_lower_case() -> None:
    assert Registry([claim("s3"), claim("FILE"), claim("http")]).schemes() == ("file", "http", "s3")
    assert Registry([]).schemes() == ()


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    claims = [claim("broken", "no_such_module:Backend"), claim("mem")]
    assert Registry(claims).load("mem") is MemoryBackend
    assert "no_such_module" not in sys.modules


@pytest.mark.usefixtures("_fresh_look")
def test_what_is_installed_is_found(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("stranger", "mem", "fastsync.testing:MemoryBackend")
    monkeypatch.syspath_prepend(str(tmp_path / "1"))
    found = Registry.from_entry_points()
    assert {"file", "mem"} <= set(found.schemes())
    assert found.load("mem") is MemoryBackend


@pytest.mark.usefixtures("_fresh_look")
def test_installed_distributions_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Registry.from_entry_points().schemes()
    monkeypatch.setattr(sys, "path", [])
    assert Registry.from_entry_points().schemes() == before


def test_an_unknown_scheme_names_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        Registry([claim("file"), claim("sftp"), claim("s3")]).load("stfp")
    assert str(caught.value) == (
        "stfp://: no protocol for this scheme; there is file, s3, sftp "
        "(did you mean sftp://? a local path with :// in it is written ./stfp://...)"
    )


def test_an_unknown_scheme_that_is_like_no_other() -> None:
    with pytest.raises(UsageError) as caught:
        Registry([]).load("gopher")
    assert str(caught.value) == (
        "gopher://: no protocol for this scheme; there is none "
        "(a local path with :// in it is written ./gopher://...)"
    )


def test_two_claims_to_one_scheme_name_both(install: Install) -> None:
    claims = [install("one", "box", "one_box:Backend"), install("two", "box", "two:Box")]
    with pytest.raises(UsageError) as caught:
        Registry([*claims, claim("mem")]).load("box")
    assert str(caught.value) == (
        "box://: the scheme is claimed by one_box:Backend of one and two:Box of two "
        "(uninstall all but one of them)"
    )
    # Nobody else is disturbed.
    assert Registry([*claims, claim("mem")]).load("mem") is MemoryBackend


@pytest.mark.usefixtures("_fresh_look")
@pytest.mark.parametrize("scheme", ["s3", "S3"])
def test_what_comes_with_fastsync_is_not_overridden(
    scheme: str, install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the stranger stands on the path, and nothing of his is imported."""
    install("stranger", scheme, "no_such_module:Backend")
    path = sys.path
    for places in ([str(tmp_path / "1"), *path], [*path, str(tmp_path / "1")]):
        registry._installed.cache_clear()
        monkeypatch.setattr(sys, "path", places)
        told = r"s3://: the scheme is claimed by .*no_such_module:Backend of stranger"
        with pytest.raises(UsageError, match=told):
            Registry.from_entry_points().load("s3")


def test_two_claims_of_one_distribution_with_two_classes_are_a_conflict(install: Install) -> None:
    claims = [install("one", "box", "old:Backend"), install("one", "box", "new:Backend")]
    with pytest.raises(UsageError, match="old:Backend of one and new:Backend of one"):
        Registry(claims).load("box")


def test_a_distribution_that_is_met_twice_makes_one_claim(install: Install) -> None:
    value = "fastsync.testing:MemoryBackend"
    twice = [install("one", "mem", value), install("one", "mem", value)]
    assert Registry(twice).load("mem") is MemoryBackend


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no_such_module:Backend", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("fastsync.testing:NoSuchClass", "AttributeError: .*NoSuchClass"),
        ("no class at all", "AttributeError|TypeError|ValueError|ModuleNotFoundError"),
    ],
)
def test_a_class_that_cannot_be_loaded(install: Install, value: str, reason: str) -> None:
    with pytest.raises(UsageError, match=f"of stranger cannot be loaded: ({reason})") as caught:
        Registry([install("stranger", "box", value)]).load("box")
    assert caught.value.__cause__ is not None


def test_a_module_that_fails_in_its_own_way(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sulking_protocol.py").write_text("raise RuntimeError('no libfoo here')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        UsageError, match="of stranger cannot be loaded: RuntimeError: no libfoo here"
    ):
        Registry([install("stranger", "box", "sulking_protocol:Backend")]).load("box")


@pytest.mark.parametrize(
    ("value", "lack"),
    [
        ("fastsync.errors:UsageError", "it has no connect and no aclose"),
        ("fastsync.testing.memory:BareMemoryStore", "it has no connect"),
        ("fastsync.testing.memory", "it has no connect and no aclose"),
    ],
)
def test_a_class_that_is_no_backend(install: Install, value: str, lack: str) -> None:
    with pytest.raises(UsageError) as caught:
        Registry([install("stranger", "box", value)]).load("box")
    assert str(caught.value) == f"box://: {value} of stranger is no protocol: {lack}"
