"""Every line of every verb's --json is valid by docs/output.schema.json, and has no other fields."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import jsonschema  # type: ignore[import-untyped]
import pytest
from s3_servers import S3Server

from fastsync.cli.group import VERBS

if TYPE_CHECKING:
    from tests.conftest import Done, Fastsync, Plant

SCHEMA: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "docs" / "output.schema.json").read_text()
)
# What others read may grow; what we write is what is written down.
for definition in SCHEMA["$defs"].values():
    definition["additionalProperties"] = False
# Verbs without lines: bytes, settings, scripts; and what is tested where it is at home.
SILENT: Final = {"cat", "config", "completion", "jobs", "plan", "run"}


def lines(done: Done) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(done: Done) -> set[str]:
    """The operations of the lines. Raises if one is not valid."""
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for line in lines(done):
        validator.validate(line)
    return {line["operation"] for line in lines(done)}


@pytest.mark.parametrize(
    ("command", "operations"),
    [
        ("sync -vv --delete src dest", {"copy", "mkdir", "link", "delete", "skip", "summary"}),
        ("sync -a src attributes", {"copy", "mkdir", "link", "attributes", "summary"}),
        ("sync --explain a src dest", {"explain"}),
        ("cp src/a missing new/", {"copy", "scan", "summary"}),
        ("mv src moved", {"copy", "summary"}),
        ("mv --size-only src moved", {"copy", "mkdir", "link", "delete", "summary"}),
        ("rm -R src", {"delete", "summary"}),
        ("pipe new", {"copy", "summary"}),
        ("check -v src dest", {"check", "summary"}),
        ("ls -R --summarize src", {"ls", "summary"}),
        ("du --max-depth 1 src", {"du"}),
        ("stat src/a src/link src/d", {"stat"}),
        ("mkdir x/y z", {"mkdir"}),
    ],
)
def test_local(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, command: str, operations: set[str]
) -> None:
    plant(tmp_path / "src", {"a": "a", "d/b": "b", "link": Path("a"), "same": "s", "\udcff": "o"})
    plant(tmp_path / "dest", {"gone": "g", "same": "s"})
    for name in ("src/same", "dest/same"):
        os.utime(tmp_path / name, (1, 1))
    verb, *rest = command.split()
    assert check(fastsync(verb, "--json", *rest)) == operations


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("ls --json missing", 3),
        ("stat --json missing", 3),
        ("sync --json missing dest", 3),
        ("cp --json src/a src/a", 2),
        ("cp --json --no-such-option a b", 2),
        ("du --json missing", 3),
        ("run --json missing", 2),
    ],
)
def test_why_it_could_not_be_done(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, command: str, code: int
) -> None:
    plant(tmp_path / "src", {"a": "a"})
    done = fastsync(*command.split())
    assert done.code == code
    assert check(done) == {"error"}
    (told,) = lines(done)
    assert told["exit_code"] == code
    assert told["error"] in done.stderr


def test_what_was_made_before_an_error(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path, {"file": ""})
    done = fastsync("mkdir", "--json", "new", "file", "other")
    assert done.code == 1
    assert [line["operation"] for line in lines(done)] == ["mkdir", "error"]


def test_config(fastsync: Fastsync) -> None:
    assert check(fastsync("config", "show", "--json")) == {"config"}


def test_run(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path, {"src/a": "a", "src/link": Path("a"), "dest/gone": "g"})
    fastsync("plan", "--delete", "src", "dest", "-o", "plan")
    (tmp_path / "batch").write_text("cp src/a one\ncp missing two\nrm -R dest\n")
    operations = {"copy", "link", "delete", "summary"}
    assert check(fastsync("run", "--json", "plan")) == operations
    assert check(fastsync("run", "--json", "batch")) == {"copy", "scan", "delete", "summary"}


def test_s3(fastsync: Fastsync, plant: Plant, tmp_path: Path, moto: S3Server) -> None:
    plant(tmp_path / "src", {"a": "a", "d/b": "b"})
    fastsync.environ.update(moto.environ)
    place = f"s3://{moto.new_bucket()}"
    assert check(fastsync("sync", "--json", "-v", "src", place)) == {"copy", "summary"}
    assert check(fastsync("ls", "--json", "-R", place)) == {"ls"}
    assert check(fastsync("ls", "--json", "--all-versions", f"{place}/a")) == {"ls"}
    assert check(fastsync("stat", "--json", f"{place}/a")) == {"stat"}
    assert check(fastsync("presign", "--json", f"{place}/a")) == {"presign"}
    assert check(fastsync("rm", "--json", "-R", f"{place}/d")) == {"delete", "summary"}


def test_every_verb_is_looked_at() -> None:
    parameters = test_local.pytestmark[0].args[1]  # type: ignore[attr-defined]
    looked_at = {command.split()[0] for command, _ in parameters} | {"presign"}
    assert set(VERBS) - SILENT == looked_at
