"""Which files of SSH's are trusted, as ssh does itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastsync.backend import StoreOptions
from fastsync.errors import ConfigError
from fastsync.location import parse
from fastsync_sftp.configuration import read_configuration
from fastsync_sftp.place import Place, place_of


def place(tmp_path: Path, **options: Path) -> Place:
    settings = {name: str(path) for name, path in options.items()}
    return place_of(parse("sftp://host/x"), StoreOptions(place=settings))


@pytest.mark.parametrize(
    ("name", "mode", "said"),
    [
        ("ssh_config", 0o646, "the SSH configuration: others can write it"),
        ("identity", 0o644, "the key: others can read it"),
        ("identity", 0o620, "the key: others can write it"),
    ],
)
async def test_files_that_others_can_use(tmp_path: Path, name: str, mode: int, said: str) -> None:
    path = tmp_path / name
    path.write_text("")
    path.chmod(mode)
    with pytest.raises(ConfigError, match=said):
        await read_configuration(place(tmp_path, **{name: path}))


async def test_the_usual_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".ssh/config"
    path.parent.mkdir()
    path.write_text("User somebody\n")
    assert (await read_configuration(place(tmp_path))).host == "host"
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="others can write it"):
        await read_configuration(place(tmp_path))
