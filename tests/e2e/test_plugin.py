"""A stranger's protocol, the one in docs/CONTRACT.md: packed as a wheel, installed, and used.

Nothing of fastsync knows its scheme; it is found by its entry point alone.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

CONTRACT = Path(__file__).parents[2] / "docs" / "CONTRACT.md"


def fenced(language: str) -> list[str]:
    """The blocks of code in one language, in the order of the page."""
    return re.findall(
        rf"^```{language}\n(.*?)^```$", CONTRACT.read_text(), re.MULTILINE | re.DOTALL
    )


def pack(directory: Path) -> Path:
    """The page's protocol as a wheel (PyPA binary distribution format), by hand and without a network."""
    protocol, *_ = fenced("python")
    (metadata,) = (tomllib.loads(text)["project"] for text in fenced("toml"))
    ((group, claims),) = metadata["entry-points"].items()
    ((scheme, value),) = claims.items()
    name, version = metadata["name"].replace("-", "_"), metadata["version"]
    info = f"{name}-{version}.dist-info"
    files = {
        f"{value.partition(':')[0]}.py": protocol,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[{group}]\n{scheme} = {value}\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    wheel = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory into which the wheel was installed: what ``pip install --target`` makes of it."""
    directory = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(pack(tmp_path_factory.mktemp("wheel"))) as archive:
        archive.extractall(directory)
    return directory


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "sub" / "deep").mkdir(parents=True)
    (tree / "a.txt").write_bytes(b"one")
    (tree / "sub" / "empty").write_bytes(b"")
    (tree / "sub" / "deep" / "with space \u00e9").write_bytes(os.urandom(3_000_000))
    for number, path in enumerate(sorted(tree.rglob("*"))):
        os.utime(path, ns=(0, 1_600_000_000_123_456_789 + number))
    return tree


def python(*arguments: str, installed: Path | None, home: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in `home`, with the protocol installed or not."""
    environment = {**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home / "config")}
    environment.pop("PYTHONPATH", None)
    if installed is not None:
        environment["PYTHONPATH"] = str(installed)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def contents(tree: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(tree)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in tree.rglob("*")
        if path.is_file()
    }


def test_the_command_finds_the_protocol(installed: Path, tree: Path, tmp_path: Path) -> None:
    command = ("-m", "fastsync", "cp", "-R", "--summarize", str(tree), "mem2://x/")
    done = python(*command, installed=installed, home=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Copied: 3 files" in done.stdout


def test_without_it_the_scheme_is_unknown(tree: Path, tmp_path: Path) -> None:
    command = ("-m", "fastsync", "cp", "-R", str(tree), "mem2://x/")
    done = python(*command, installed=None, home=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "mem2://: no protocol for this scheme; there is file" in done.stderr
    assert "./mem2://..." in done.stderr


THERE_AND_BACK = """
import sys
from pathlib import Path
import fastsync

tree, back = sys.argv[1:]

def listed(place):
    return [(entry.path, entry.kind) for entry in fastsync.ls(place)]

fastsync.cp(tree, "mem2://box/", recursive=True)
assert listed("mem2://box/") == [("tree", "dir")], listed("mem2://box/")
assert listed("mem2://box/tree") == [("a.txt", "file"), ("sub", "dir")], listed("mem2://box/tree")
fastsync.cp("mem2://box/tree/", back, recursive=True)

fastsync.sync(tree, "mem2://mirror")
Path(tree, "a.txt").unlink()
fastsync.sync(tree, "mem2://mirror", delete=True)
assert listed("mem2://mirror") == [("sub", "dir")], listed("mem2://mirror")
"""


def test_there_and_back_again(installed: Path, tree: Path, tmp_path: Path) -> None:
    before = contents(tree)
    back = tmp_path / "back"
    done = python(
        "-W", "error", "-c", THERE_AND_BACK, str(tree), str(back), installed=installed, home=tmp_path
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert contents(back) == before


def test_the_protocol_keeps_the_contract(installed: Path, tmp_path: Path) -> None:
    """Tested as its author would test it, with the tests that the page shows."""
    _, tests, trouble = fenced("python")
    (tmp_path / "test_mem2.py").write_text(tests + trouble)
    (settings,) = fenced("ini")
    (tmp_path / "pytest.ini").write_text(settings)
    done = python(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mem2.py",
        installed=installed, home=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 100
