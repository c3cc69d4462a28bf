"""What is wrong is told in one line, with what was probably meant, before anything is touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Fastsync, Picture, Plant


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["cpy", "a", "b"], "there is no verb 'cpy'; did you mean cp?"),
        (["frobnicate"], "there is no verb 'frobnicate'; there is cp, sync, mv, rm, check, ls"),
        (["--verison"], "Did you mean '--version'?"),
        (["cp", "a"], "missing argument 'DST'"),
        (["cp"], "missing argument 'SRC...'"),
        (["mv", "a"], "missing argument 'DST'"),
        (["sync", "a"], "missing argument 'DST'"),
        (["sync", "a", "b", "c"], "unexpected extra argument"),
        (["cp", "--recursve", "a", "b"], "'--recursive'"),
        (["sync", "--delet", "a", "b"], "'--delete'"),
        (["sync", "--jobs", "a", "a", "b"], "'a' is not a whole number"),
        (["cp", "-c", "12x", "a", "b"], "--chunk-size: '12x' is not a size"),
        (["cp", "-c", "0", "a", "b"], "at least 4K"),
        (["cp", "--max-size", "-3", "a", "b"], "--max-size: '-3' is not a size"),
        (["cp", "--min-size", "2K", "--max-size", "1K", "a", "b"], "--min-size"),
        (["cp", "--max-age", "yesterday", "a", "b"], "--max-age: 'yesterday' is not a time"),
        (["cp", "-j", "many", "a", "b"], "--jobs: 'many' is not a whole number"),
        (["cp", "-p", "0", "a", "b"], "--parallel: 0 is not a whole number, 1 or more"),
        (["sync", "--max-delete", "200%", "a", "b"], "'200%' is not a limit"),
        (["sync", "--checksum", "--size-only", "a", "b"], "exclude each other"),
        (["cp", "--color", "alwys", "a", "b"], "did you mean always?"),
        (["cp", "--profile", "wann", "a", "b"], "there is no profile 'wann', did you mean wan?"),
        (["cp", "--include", "[", "a", "b"], "the pattern '[' has an unclosed [ at character 1"),
        (["cp", "--exclude", "./x", "a", "b"], "can match nothing"),
        (["cp", "", "b"], "an empty place"),
        (["cp", "a", ""], "an empty place"),
        (["cp", "flie:///a", "b"], "flie://: no protocol for this scheme"),
        (["sync", "a", "s4://bucket/key"], "s4://: no protocol for this scheme"),
        (["cp", "file://host/a", "b"], "file:///absolute/path"),
        (["ls", "nope://x"], "nope://: no protocol for this scheme"),
        (["cp", "--log-file", "no/such/log", "a", "b"], "no/such/log: the log cannot be written"),
        (["cp", "--config", "no.toml", "a", "b"], "no.toml: cannot read the configuration"),
        (["completion", "tcsh"], "tcsh"),
        (["sync", ".", "."], "the same place"),
        (["sync", ".", "d"], "the destination is inside the source"),
        (["sync", "d", "."], "the source is inside the destination"),
        (["cp", "a", "a"], "the same file"),
        (["mv", "a", "."], "the same file"),
        (["sync", "--backup-dir", "b/x", "d", "b"], "the backup overlaps with the destination"),
        (["sync", "--exclude-from", "no", "d", "b"], "no: it cannot be read"),
        (["sync", "--filter-from", "rules", "d", "b"], "rules:2: '* x' is no filter rule"),
        (["sync", "--exclude-from", "patterns", "d", "b"], "patterns:3: the pattern '['"),
        (["sync", "--files-from", "no", "d", "b"], "no: it cannot be read"),
        (["sync", "--files-from", "-", "--exclude-from", "-", "d", "b"], "cannot both read"),
        (["sync", "--include-from", "-", "--include-from", "-", "d", "b"], "cannot both read"),
        (["sync", "--files-from", "names", "d", "b"], "names:2: '../x' leads out"),
        (["run", "no"], "no: no such file"),
        (["run", "--profile", "wann", "rules"], "there is no profile 'wann'"),
        (["run", "newer"], "newer:1: a plan of version 2"),
        (["run", "cut"], "cut:1: the line is cut off"),
        (["run", "rules"], "rules:1: '-' cannot be in a batch"),
        (["run", "nested"], "nested:2: 'run' cannot be in a batch"),
        (["run", "--shard", "3/2", "newer"], "--shard 3/2"),
        (["sync", "--max-delete", "-1", "d", "b"], "--max-delete: '-1'"),
        (["sync", "--max-depth", "-1", "d", "b"], "--max-depth: '-1'"),
        (["sync", "--bwlimit", "-1", "d", "b"], "--bwlimit: '-1'"),
        (["sync", "--bwlimit", "8Q", "d", "b"], "--bwlimit: '8Q'"),
        (["sync", "--max-age", "-1", "d", "b"], "--max-age: '-1'"),
        (["cat", "--offset", "-1", "a"], "--offset: '-1'"),
        (["cat", "--count", "8Q", "a"], "--count: '8Q'"),
        (["sync", "-u", "-I", "d", "b"], "--update and --ignore-times exclude each other"),
        (["sync", "-q", "-v", "d", "b"], "--quiet and --verbose exclude each other"),
        (["sync", "--delete-excluded", "d", "b"], "--delete-excluded does nothing without"),
        (["sync", "--min-age", "2h", "--max-age", "1h", "d", "b"], "--min-age is above"),
    ],
)
def test_a_request_that_is_wrong(
    fastsync: Fastsync,
    plant: Plant,
    picture: Callable[..., Picture],
    tmp_path: Path,
    arguments: list[str],
    told: str,
) -> None:
    plant(tmp_path, {"a": "a", "d/x": "x", "rules": "- ok\n* x\n", "patterns": "a\n\n[\n"})
    plant(tmp_path, {"names": "x\n../x\n", "newer": '{"plan": 2}\n', "cut": '{"plan": 1, "op'})
    plant(tmp_path, {"nested": "cp a b\nrun rules\n"})
    before = picture(tmp_path)
    done = fastsync(*arguments)
    assert done.code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("fastsync: error: ")
    assert done.stderr.count("\n") == 1
    assert told in done.stderr
    assert picture(tmp_path) == before


def test_no_verb_is_helped(fastsync: Fastsync) -> None:
    done = fastsync()
    assert (done.code, done.stdout) == (2, "")
    assert "Usage: fastsync" in done.stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[global]\nchunksize = 1\n", "line 2: [global] chunksize is not a setting, did you mean"),
        ("[profile.x]\n", "profile"),
        ("[profiles.x]\njobs = 'many'\n", "jobs"),
        ("[global]\njobs = true\n", "jobs"),
        ("[global\n", "line 1"),
        ("[global]\nprofile = 'nope'\n", "nope"),
    ],
)
def test_a_configuration_that_is_wrong(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, text: str, told: str
) -> None:
    config = tmp_path / "home/config/fastsync/config.toml"
    plant(tmp_path, {"a": "a"})
    config.parent.mkdir(parents=True)
    config.write_text(text)
    config.chmod(0o600)
    done = fastsync("cp", "a", "b")
    assert done.code == 2
    assert done.stderr.startswith(f"fastsync: error: {config}: ")
    assert done.stderr.count("\n") == 1
    assert told in done.stderr
    assert not (tmp_path / "b").exists()


def test_an_environment_that_is_wrong(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path, {"a": "a"})
    done = fastsync("cp", "a", "b", env={"FASTSYNC_JOBS": "many"})
    assert (done.code, done.stderr.count("\n")) == (2, 1)
    assert "FASTSYNC_JOBS: 'many' is not a whole number" in done.stderr
    done = fastsync("cp", "a", "b", env={"FASTSYNC_JOB": "3"})
    assert done.code == 0
    assert "did you mean FASTSYNC_JOBS?" in done.stderr


def test_hostile_text_is_escaped_in_errors(fastsync: Fastsync) -> None:
    for arguments in (
        ["cp", "\x1b[31mred\nline", "b"],
        ["cp", "--profile", "\x1b]0;x\x07", "a", "b"],
    ):
        done = fastsync(*arguments)
        assert done.code in (2, 3)
        assert "\x1b" not in done.stderr
        assert r"\x1b" in done.stderr
        assert done.stderr.count("\n") == 1
