import grp
import os
import pwd
import re
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsync.cli.config import sample
from fastsync.config import (
    SETTINGS,
    MaxDelete,
    Resolved,
    Settings,
    find_config,
    from_options,
    parse_duration,
    parse_max_delete,
    parse_size,
    presets,
    read_config,
    resolve,
    state_folder,
)
from fastsync.errors import ConfigError, UsageError
from fastsync.values import duration_text, size_text

K, M, G = 1 << 10, 1 << 20, 1 << 30
DOCUMENT = Path(__file__).parents[2] / "docs" / "CONFIGURATION.md"

WriteConfig = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where HOME is not given to `resolve`, the tester's own configuration must not count."""
    monkeypatch.setenv("HOME", "/nonexistent")


@pytest.fixture
def write(tmp_path: Path) -> WriteConfig:
    """Writes a configuration file that passes as private."""

    def write(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
        return path

    return write


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve({}, config_file=path, environ={})
    assert str(path) in str(caught.value)
    return str(caught.value)


# -- how values are written ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8M", 8 * M),
        ("8MiB", 8 * M),
        ("8mib", 8 * M),
        ("8MB", 8_000_000),
        ("8m", 8 * M),
        ("8K", 8 * K),
        ("1.5G", 3 * G // 2),
        (".5k", 512),
        ("1T", 1 << 40),
        ("1P", 1 << 50),
        ("123", 123),
        ("123B", 123),
        ("0", 0),
        (" 8 M ", 8 * M),
        ("9223372036854775807", (1 << 63) - 1),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8Q",
        "-1",
        "-8M",
        "nan",
        "inf",
        "1e5",
        "0x10",
        "8iB",
        "M",
        "8MM",
        "1,5M",
        "\uff18M",
        "1_000",
    ],
)
def test_what_is_no_size_is_told_what_is(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not a size \(write a number and B, K, M") as caught:
        parse_size(text)
    assert f"'{text}'" in str(caught.value)


@pytest.mark.parametrize("text", ["9223372036854775808", "8192P", "9999999999999999999P"])
def test_no_size_is_beyond_a_file_offset(text: str) -> None:
    with pytest.raises(UsageError, match="larger than any file"):
        parse_size(text)


def test_the_unit_of_a_bare_number() -> None:
    assert parse_size("16", bare=M) == 16 * M
    assert parse_size("1.5", bare=M) == 3 * M // 2
    assert parse_size("16B", bare=M) == 16
    assert parse_size("16K", bare=M) == 16 * K


@given(st.integers(0, (1 << 63) - 1))
def test_a_size_comes_back_as_it_was(size: int) -> None:
    assert parse_size(size_text(size), bare=M) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("1.5m", 90),
        ("3h", 10800),
        ("500ms", 0.5),
        ("2d", 172800),
        ("1w", 604800),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "-1", "nan", "inf", "1y", "1h30", "s", "1e3"])
def test_what_is_no_duration_is_told_what_is(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not a time \(write a number and ms, s, m"):
        parse_duration(text)


@given(st.integers(0, 10**9).map(lambda milliseconds: milliseconds / 1000))
def test_a_duration_comes_back_as_it_was(seconds: float) -> None:
    assert parse_duration(duration_text(seconds)) == pytest.approx(seconds, abs=1e-9)


def test_limits_of_deletions() -> None:
    assert parse_max_delete("100") == MaxDelete(files=100)
    assert parse_max_delete("50%") == MaxDelete(percent=50)
    assert parse_max_delete("0.5 %") == MaxDelete(percent=0.5)
    assert [str(parse_max_delete(text)) for text in ("0", "100%", "0.5%")] == ["0", "100%", "0.5%"]


@pytest.mark.parametrize("text", ["", "-1", "101%", "1.5", "nan%", "all", "10k"])
def test_what_is_no_limit_of_deletions_is_told_what_is(text: str) -> None:
    with pytest.raises(UsageError, match="a number of files such as 100, or 0% to 100%"):
        parse_max_delete(text)


# -- which value counts -------------------------------------------------------------------------------


def test_without_sources_all_is_built_in() -> None:
    found = resolve({}, environ={"HOME": "/nonexistent"})
    assert asdict(found.settings) == asdict(Settings())
    assert set(found.origins) == set(SETTINGS)
    assert set(found.origins.values()) == {"built-in"}
    assert (found.profile, found.config_file, found.places, found.notes) == (None, None, {}, ())


def test_the_defaults_are_what_their_kinds_allow() -> None:
    for setting in SETTINGS.values():
        if setting.default is None:
            setting.kind.from_toml(setting.example)
        else:
            assert setting.kind.from_toml(setting.plain(setting.default)) == setting.default


def test_the_stronger_source_counts(write: WriteConfig) -> None:
    path = write(
        """
        [global]
        jobs = 1
        retry_count = 1
        parallel_streams = 1
        stall_timeout = 1
        [profiles.mine]
        jobs = 2
        retry_count = 2
        parallel_streams = 2
        """
    )
    environ = {"FASTSYNC_JOBS": "3", "FASTSYNC_RETRY_COUNT": "3"}
    found = resolve({"jobs": 4, "update": None}, profile="mine", config_file=path, environ=environ)
    settings = found.settings
    assert (settings.jobs, settings.retry_count) == (4, 3)
    assert (settings.parallel_streams, settings.stall_timeout, settings.durable) == (2, 1, False)
    assert found.origins["jobs"] == "flag --jobs"
    assert found.origins["retry_count"] == "environment FASTSYNC_RETRY_COUNT"
    assert found.origins["parallel_streams"] == f"profile mine ({path})"
    assert found.origins["stall_timeout"] == f"[global] of {path}"
    assert found.origins["durable"] == "built-in"
    assert (found.profile, found.config_file) == ("mine", path)


def test_flags_are_text_or_effective_values() -> None:
    values = {"chunk_size": "16", "min_size": 10, "stall_timeout": "1m", "log_file": Path("/tmp/x")}
    settings = resolve({**values, "max_delete": "5%"}, environ={}).settings
    assert settings.chunk_size == 16 * M
    assert settings.min_size == 10
    assert settings.stall_timeout == 60
    assert settings.log_file == "/tmp/x"
    assert settings.max_delete == MaxDelete(percent=5)
    assert resolve({"chunk_size": 16 * K}, environ={}).settings.chunk_size == 16 * K
    assert resolve({"max_delete": 5}, environ={}).settings.max_delete == MaxDelete(files=5)


def test_flags_are_named_as_they_were_written() -> None:
    flags = {"parallel_streams": 2, "resume": False, "links": "follow", "buffer_size": "128M"}
    origins = resolve(flags, environ={}).origins
    assert origins["parallel_streams"] == "flag --parallel"
    assert origins["resume"] == "flag --no-resume"
    assert origins["links"] == "flag --copy-links"
    assert origins["buffer_size"] == "argument buffer_size"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("chunk_size", "8Q", "--chunk-size: '8Q' is not a size"),
        ("chunk_size", "1B", "--chunk-size: 1B is not a size such as 16M or 1.5GiB, at least 4K"),
        ("chunk_size", "8388608", "a bare number counts MiB"),
        ("jobs", 0, "--jobs: 0 is not a whole number, 1 or more"),
        ("jobs", "-3", "--jobs: '-3' is not a whole number"),
        ("jobs", True, "--jobs: True is not a whole number"),
        ("stall_timeout", float("nan"), "--stall-timeout: nans is not a time"),
        ("stall_timeout", 0, "--stall-timeout: 0s is not a time"),
        ("links", "folow", "is not one of keep, follow, skip, did you mean follow?"),
        ("checksum", 1, "--checksum: 1 is not true or false"),
        ("log_file", "", "--log-file: '' is not text"),
        ("chunksize", "1M", "there is no setting 'chunksize', did you mean chunk_size?"),
    ],
)
def test_a_wrong_flag_is_told(name: str, value: object, told: str) -> None:
    with pytest.raises(UsageError, match=re.escape(told)):
        resolve({name: value}, environ={})


def test_options_of_a_program_know_no_file_and_no_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTSYNC_JOBS", "3")
    monkeypatch.setenv("FASTSYNC_CONFIG", str(tmp_path / "none.toml"))
    assert asdict(from_options({})) == asdict(Settings())
    assert from_options({"archive": True}).recursive
    with pytest.raises(UsageError, match="exclude each other"):
        from_options({"checksum": True, "size_only": True})


def test_the_environment() -> None:
    environ = {
        "FASTSYNC_CHUNK_SIZE": "16",
        "FASTSYNC_PARALLEL": "3",
        "FASTSYNC_CHECKSUM": "yes",
        "FASTSYNC_RESUME": "off",
        "FASTSYNC_PROGRESS": "1",
        "FASTSYNC_JOBS": "",
    }
    found = resolve({}, environ=environ)
    settings = found.settings
    assert (settings.chunk_size, settings.parallel_streams, settings.jobs) == (16 * M, 3, 8)
    assert (settings.checksum, settings.resume, settings.progress) == (True, False, True)
    assert found.origins["parallel_streams"] == "environment FASTSYNC_PARALLEL"
    assert found.origins["jobs"] == "built-in"
    assert found.notes == ()
    both = {**environ, "FASTSYNC_PARALLEL_STREAMS": "4"}
    assert resolve({}, environ=both).settings.parallel_streams == 4


def test_a_wrong_variable_is_told() -> None:
    with pytest.raises(ConfigError, match="FASTSYNC_DURABLE: 'maybe' is neither true nor false"):
        resolve({}, environ={"FASTSYNC_DURABLE": "maybe"})


def test_a_variable_with_a_slip_is_noted_and_never_shown() -> None:
    environ = {
        "FASTSYNC_CHUNKSIZE": "hunter2",
        "FASTSYNC_WRAPPER_HOME": "/",
        "FASTSYNC_PYTHON": "x",
    }
    (note,) = resolve({}, environ=environ).notes
    assert "FASTSYNC_CHUNKSIZE" in note
    assert "did you mean FASTSYNC_CHUNK_SIZE?" in note
    assert "hunter2" not in note


def test_archive_stands_for_more_unless_told_otherwise(write: WriteConfig) -> None:
    plain = resolve({}, environ={}).settings
    assert not any((plain.recursive, plain.dir_times, plain.owner))
    found = resolve({"archive": True}, environ={"FASTSYNC_LINKS": "follow"})
    assert found.settings.recursive
    assert found.settings.dir_times
    assert found.settings.owner
    assert found.settings.links == "keep"
    assert found.origins["recursive"] == "archive (flag --archive)"
    assert resolve({"archive": True, "links": "follow"}, environ={}).settings.links == "follow"
    path = write("[global]\narchive = true\n")
    found = resolve({"recursive": False, "links": "skip"}, config_file=path, environ={})
    assert (found.settings.recursive, found.settings.links) == (False, "skip")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("checksum", "size_only"),
        ("checksum", "ignore_times"),
        ("size_only", "ignore_times"),
        ("update", "ignore_times"),
    ],
)
def test_what_excludes_each_other(first: str, second: str, write: WriteConfig) -> None:
    flags = [f"--{name.replace('_', '-')}" for name in (first, second)]
    with pytest.raises(UsageError, match=f"{flags[0]} and {flags[1]} exclude each other"):
        resolve({first: True, second: True}, environ={})
    path = write(f"[global]\n{first} = true\n")
    found = resolve({second: True}, config_file=path, environ={})
    assert getattr(found.settings, second) is True
    assert getattr(found.settings, first) is False
    assert found.origins[first] == f"built-in, as {flags[1]} excludes it"


def test_what_goes_together() -> None:
    flags = {"existing": True, "ignore_existing": True, "update": True, "checksum": True}
    assert resolve(flags, environ={}).settings.existing


def test_quiet_beats_a_weaker_verbose() -> None:
    assert resolve({"quiet": True}, environ={"FASTSYNC_VERBOSE": "2"}).settings.verbose == 0
    with pytest.raises(UsageError, match="exclude each other"):
        resolve({"quiet": True, "verbose": 1}, environ={})


@pytest.mark.parametrize(("low", "high"), [("min_size", "max_size"), ("min_age", "max_age")])
def test_bounds_that_let_nothing_through(low: str, high: str) -> None:
    assert getattr(resolve({low: "2", high: "2"}, environ={}).settings, low) == 2
    with pytest.raises(
        UsageError, match=f"{low.replace('_', '-')} is above.*nothing would be copied"
    ):
        resolve({low: "3", high: "2"}, environ={})


def test_delete_excluded_needs_delete_where_it_was_meant(write: WriteConfig) -> None:
    assert resolve({"delete": True, "delete_excluded": True}, environ={}).settings.delete_excluded
    with pytest.raises(UsageError, match="--delete"):
        resolve({"delete_excluded": True}, environ={})
    path = write("[global]\ndelete_excluded = true\n")
    assert not resolve({}, config_file=path, environ={}).settings.delete


def test_a_larger_chunk_makes_room_for_itself() -> None:
    found = resolve({"chunk_size": "128M"}, environ={})
    assert (found.settings.chunk_size, found.settings.buffer_size) == (128 * M, 128 * M)
    assert found.origins["buffer_size"] == "built-in, raised for --chunk-size"


def test_a_smaller_buffer_makes_chunks_smaller(write: WriteConfig) -> None:
    found = resolve({"buffer_size": "2M"}, environ={})
    assert (found.settings.chunk_size, found.settings.buffer_size) == (2 * M, 2 * M)
    assert found.origins["chunk_size"] == "built-in, lowered for buffer_size (argument buffer_size)"
    path = write('[profiles.lan]\nbuffer_size = "8M"\n')
    assert resolve({}, profile="lan", config_file=path, environ={}).settings.chunk_size == 8 * M


def test_a_chunk_that_contradicts_the_buffer_is_told() -> None:
    with pytest.raises(UsageError, match=r"--chunk-size is 8M, more than the 4M of buffer_size \("):
        resolve({"chunk_size": "8M"}, profile="low_memory", environ={})
    with pytest.raises(UsageError, match="lower the one or raise the other"):
        resolve({"chunk_size": "8M", "buffer_size": "4M"}, environ={})


# -- profiles -----------------------------------------------------------------------------------------


def test_the_presets() -> None:
    def preset(name: str) -> Settings:
        return resolve({}, profile=name, environ={}).settings

    assert set(presets()) == {"lan", "low_memory", "max_throughput", "small_files", "wan"}
    lan, wan, low = preset("lan"), preset("wan"), preset("low_memory")
    small, most = preset("small_files"), preset("max_throughput")
    assert (lan.chunk_size, lan.parallel_streams) == (16 * M, 32)
    assert (wan.chunk_size, wan.parallel_streams, wan.congestion_control) == (4 * M, 8, "bbr")
    assert (wan.tcp_send_buffer, wan.tcp_recv_buffer) == (16 * M, 16 * M)
    assert (small.small_file_threshold, small.parallel_streams) == (10 * M, 64)
    assert (low.chunk_size, low.parallel_streams, low.buffer_size) == (M, 4, 4 * M)
    assert (most.chunk_size, most.parallel_streams, most.buffer_size) == (32 * M, 64, 256 * M)


@pytest.mark.parametrize("name", sorted(presets()))
def test_a_preset_sets_what_it_says_and_opens_with_what_it_is_for(name: str) -> None:
    path = presets()[name]
    found = resolve({}, profile=name, environ={})
    set_by_it = {
        key for key, origin in found.origins.items() if origin == f"profile {name} ({path})"
    }
    text = path.read_text(encoding="utf-8")
    assert set_by_it == set(tomllib.loads(text))
    assert re.match(r"# [A-Z].*\.\n", text)


def test_who_chooses_the_profile(write: WriteConfig) -> None:
    path = write('[global]\nprofile = "wan"\n')
    assert resolve({}, config_file=path, environ={}).profile == "wan"
    environ = {"FASTSYNC_PROFILE": "lan"}
    assert resolve({}, config_file=path, environ=environ).profile == "lan"
    assert (
        resolve({}, profile="low_memory", config_file=path, environ=environ).profile == "low_memory"
    )


def test_a_users_profile_changes_the_preset_key_by_key(write: WriteConfig) -> None:
    path = write("[profiles.wan]\nparallel_streams = 16\n")
    found = resolve({}, profile="wan", config_file=path, environ={})
    assert (found.settings.parallel_streams, found.settings.chunk_size) == (16, 4 * M)
    assert found.origins["parallel_streams"] == f"profile wan ({path})"
    assert found.origins["chunk_size"] == f"profile wan ({presets()['wan']})"


def test_an_unknown_profile_names_who_asked_and_what_there_is(write: WriteConfig) -> None:
    with pytest.raises(
        ConfigError, match="--profile: there is no profile 'wann', did you mean wan"
    ):
        resolve({}, profile="wann", environ={})
    with pytest.raises(ConfigError, match=r"FASTSYNC_PROFILE: .*there is lan, low_memory"):
        resolve({}, environ={"FASTSYNC_PROFILE": "../../etc/x"})
    told = refusal(write('[global]\nprofile = "ofice"\n[profiles.office]\n'))
    assert "[global] profile: there is no profile 'ofice', did you mean office?" in told


# -- the file -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "\n[global]\nchunk_sizes = 1",
            "line 3: [global] chunk_sizes is not a setting, did you mean",
        ),
        (
            "[global]\nchunk-size = 1",
            "line 2: [global] chunk-size is not a setting, did you mean chunk_s",
        ),
        ("[global]\nparallel = 1", "did you mean parallel_streams?"),
        ("[global]\nprofil = 'x'", "did you mean profile?"),
        ("[global]\nhurry = '1M'", "`fastsync config show` lists them"),
        ("[global]\nexclude = ['x']", "[global] exclude is for the command line only"),
        ("[profiles.a]\nprofile = 'x'", "line 2: [profiles.a] profile is not a setting"),
        ("jobs = 1", "line 1: jobs must stand below [global]"),
        ("[globl]\njobs = 1", "line 1: globl is not known, did you mean global?"),
        ("global = 1", "line 1: global must be a table"),
        ("[profiles]\nwan = 1", "line 2: [profiles] wan must be a table"),
        ("[places]\n's3://x' = 1", 'line 2: [places] "s3://x" must be a table'),
        ("[[profiles.a]]\njobs = 1", "[profiles] a must be a table"),
        ("[global]\njobs = '4'", "line 2: [global] jobs: '4' is not a whole number, 1 or more"),
        ("[global]\njobs = 4.0", "4.0 is not a whole number"),
        ("[global]\njobs = true", "true is not a whole number"),
        ("[global]\njobs = -1", "is not a whole number"),
        ("[global]\nchecksum = 1", "[global] checksum: 1 is not true or false"),
        ("[global]\nchecksum = 'yes'", "'yes' is not true or false"),
        ("[global]\nchunk_size = '8Q'", "'8Q' is not a size (write a number and B, K, M"),
        ("[global]\nchunk_size = 8388608", "a bare number counts MiB"),
        ("[global]\nstall_timeout = nan", "'nan' is not a time"),
        ("[global]\nstall_timeout = 07:32:00", "07:32:00 is not a time"),
        ("[global]\nlinks = 'kepe'", "did you mean keep?"),
        ("[global]\ncongestion_control = ''", "is not text that is not empty"),
        ("[global]\nlog_file = ['x']", "a list is not text"),
        (
            "[places.'s3://x']\nregion = []",
            'line 2: [places."s3://x"] region: a list is not text, a numb',
        ),
        (
            "[places.docs]\nregion = 'x'",
            "line 1: [places] docs: this is neither a URL nor an absolute",
        ),
        ("[places.'-']\nregion = 'x'", "this is neither a URL nor an absolute path"),
        ("[global]\njobs = 1\njobs = 2", "not TOML: cannot overwrite a value (at "),
        ("[global\n", "not TOML: expected ']'"),
        ("x = [" * 5000, "not TOML"),
        (f"x = {'1' * 5000}", "not TOML"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(text: str, told: str, write: WriteConfig) -> None:
    assert told in refusal(write(text))


def test_all_faults_are_told_at_once_in_order(write: WriteConfig) -> None:
    told = refusal(write("[profiles.a]\njobs = 0\n[global]\njobz = 1\n[profiles.b]\njobs = 0\n"))
    assert re.search(r"line 2: \[profiles.a\].*; line 4: .*did you mean jobs.*; line 6: ", told)


def test_a_fault_that_shows_on_no_line_is_told_all_the_same(write: WriteConfig) -> None:
    assert "[profiles.a] jobz is not a setting" in refusal(write("profiles = {a = {jobz = 1}}\n"))


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(b"[global]\n# caf\xe9\n")
    path.chmod(0o600)
    assert "line 2 is not UTF-8" in refusal(path)


def test_values_of_places_never_show_in_errors_or_representations(write: WriteConfig) -> None:
    told = refusal(write("[places.'s3://x']\nsecret_key = ['hunter2']\n"))
    assert "hunter2" not in told
    told = refusal(write("[places.'sftp://u:hunter2@h/']\nidentity = 'x'\n"))
    assert "a password does not belong in a name" in told
    assert "hunter2" not in told
    path = write("[places.'s3://x']\nsecret_key = 'hunter2'\n")
    assert "hunter2" not in repr(resolve({}, config_file=path, environ={}))
    assert "hunter2" not in repr(read_config(path))


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_is_refused(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[global]\n")
    path.chmod(mode)
    assert f"the configuration: others can write it (to stop that: chmod go-w {path})" in refusal(
        path
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_refused(write: WriteConfig) -> None:
    path = write("[global]\n")
    os.chown(path, 12345, -1)
    assert "belongs to another user" in refusal(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give links away")
def test_a_link_of_another_user_is_refused(write: WriteConfig, tmp_path: Path) -> None:
    path = tmp_path / "link"
    path.symlink_to(write("[global]\n"))
    assert resolve({}, config_file=path, environ={}).notes == ()
    os.chown(path, 12345, -1, follow_symlinks=False)
    assert "a link of another user leads there" in refusal(path)


@pytest.mark.parametrize("mode", [0o777, 0o772, 0o1777])
def test_a_directory_that_others_can_write(mode: int, tmp_path: Path) -> None:
    """Others can put another file in the place of one in it, but where it is sticky."""
    (tmp_path / "a/b").mkdir(parents=True)
    path = tmp_path / "a/b/c.toml"
    path.write_text("[global]\n")
    path.chmod(0o600)
    (tmp_path / "link").symlink_to("a/b/c.toml")
    (tmp_path / "a").chmod(mode)
    if mode & stat.S_ISVTX:
        assert resolve({}, config_file=path, environ={}).notes == ()
    else:
        told = (
            f"others can write its directory {tmp_path}/a (to stop that: chmod go-w {tmp_path}/a)"
        )
        assert told in refusal(path)
        assert told in refusal(tmp_path / "link")


def test_what_is_above_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is for the system to keep, as sshd has it."""
    (tmp_path / "a/home").mkdir(parents=True)
    (tmp_path / "a").chmod(0o777)
    monkeypatch.setenv("HOME", str(tmp_path / "a/home"))
    path = tmp_path / "a/home/c.toml"
    path.write_text("[global]\n")
    path.chmod(0o600)
    assert resolve({}, config_file=path, environ={}).notes == ()
    (tmp_path / "a/home").chmod(0o777)
    assert "others can write its directory" in refusal(path)


def test_a_home_directory_that_a_link_leads_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As automounters have it: what is above the link does not count either."""
    (tmp_path / "homes").mkdir()
    (tmp_path / "net/us").mkdir(parents=True)
    (tmp_path / "homes/us").symlink_to("../net/us")
    (tmp_path / "homes").chmod(0o777)
    (tmp_path / "net").chmod(0o777)
    monkeypatch.setenv("HOME", str(tmp_path / "homes/us"))
    path = tmp_path / "homes/us/c.toml"
    path.write_text("[global]\n")
    path.chmod(0o600)
    assert resolve({}, config_file=path, environ={}).notes == ()


def test_a_directory_that_nobody_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ConfigMaps of Kubernetes have mode 0777, on a file system that is read-only."""
    (tmp_path / "a").mkdir()
    path = tmp_path / "a/c.toml"
    path.write_text("[global]\n")
    path.chmod(0o600)
    (tmp_path / "a").chmod(0o777)
    mounted = os.statvfs_result((*os.statvfs(tmp_path)[:8], os.ST_RDONLY, 255))
    monkeypatch.setattr(os, "statvfs", lambda _path: mounted)
    assert resolve({}, config_file=path, environ={}).notes == ()


def test_a_current_directory_that_is_gone(
    write: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("[global]\n")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert resolve({}, config_file=path, environ={}).notes == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories away")
def test_a_directory_of_another_user(write: WriteConfig, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    path = write("[global]\n").rename(tmp_path / "a/c.toml")
    os.chown(tmp_path / "a", 12345, -1)
    assert f"its directory {tmp_path}/a belongs to another user" in refusal(path)


@pytest.mark.parametrize(
    ("user", "group", "members", "is_ours"),
    [
        ("us", "us", [], True),
        ("us", "us", ["us"], True),
        ("us", "us", ["us", "them"], False),
        ("us", "staff", [], False),
    ],
)
def test_a_group_of_our_own(
    user: str,
    group: str,
    members: list[str],
    is_ours: bool,
    tmp_path: Path,
    write: WriteConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With umask 002, each user has one."""
    (tmp_path / "a").mkdir()
    path = write("[global]\n").rename(tmp_path / "a/c.toml")
    (tmp_path / "a").chmod(0o775)
    gid = (tmp_path / "a").stat().st_gid
    ours = pwd.struct_passwd((user, "x", os.geteuid(), gid, "", "/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: ours)
    named = grp.struct_group((group, "x", gid, members))
    monkeypatch.setattr(grp, "getgrgid", lambda gid: named)
    if is_ours:
        assert resolve({}, config_file=path, environ={}).notes == ()
    else:
        assert "others can write its directory" in refusal(path)


def test_a_readable_file_with_secrets_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[places.'s3://x']\nsecret_access_key = 'x'\n")
    path.chmod(0o644)
    (note,) = resolve({}, config_file=path, environ={}).notes
    assert "chmod go-r" in note
    path.chmod(0o600)
    assert resolve({}, config_file=path, environ={}).notes == ()


def test_a_named_file_must_be_there_and_the_usual_one_need_not(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="no such file"):
        resolve({}, environ={"FASTSYNC_CONFIG": str(tmp_path / "none.toml")})
    assert resolve({}, environ={"HOME": str(tmp_path)}).config_file is None
    (tmp_path / "file").touch()
    assert resolve({}, environ={"XDG_CONFIG_HOME": str(tmp_path / "file")}).config_file is None


def test_what_is_no_file_is_told_and_dev_null_is_an_empty_one(tmp_path: Path) -> None:
    assert "is a directory" in refusal(tmp_path)
    found = resolve({}, config_file=Path("/dev/null"), environ={})
    assert asdict(found.settings) == asdict(Settings())
    large = tmp_path / "large.toml"
    large.write_text("#" * (M + 1))
    large.chmod(0o600)
    assert "not larger than 1M" in refusal(large)


def test_where_the_file_is(tmp_path: Path) -> None:
    environ = {"HOME": "/home/me"}
    usual = Path("/home/me/.config/fastsync/config.toml")
    assert find_config(None, environ) == (usual, "")
    assert find_config(None, {**environ, "XDG_CONFIG_HOME": "relative"}) == (usual, "")
    assert find_config(None, {**environ, "XDG_CONFIG_HOME": "/x"})[0] == Path(
        "/x/fastsync/config.toml"
    )
    environ["FASTSYNC_CONFIG"] = "/y.toml"
    assert find_config(None, environ) == (Path("/y.toml"), "FASTSYNC_CONFIG")
    assert find_config(Path("z.toml"), environ) == (Path("z.toml"), "--config")


def test_nothing_is_read_from_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "config.toml",
        "fastsync.toml",
        ".fastsync.toml",
        "fastsync/config.toml",
        "wan.toml",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("[global]\njobs = 99\n")
    monkeypatch.chdir(tmp_path)
    for environ in ({"HOME": ""}, {"HOME": "."}, {"XDG_CONFIG_HOME": "", "HOME": "/nonexistent"}):
        assert resolve({}, environ=environ).settings.jobs != 99
    assert resolve({}, profile="wan", environ={}).settings.jobs == 8


# -- places -------------------------------------------------------------------------------------------


@pytest.fixture
def places(write: WriteConfig) -> Resolved:
    path = write(
        """
        [places."s3://logs"]
        region = "a"
        requester_pays = true
        [places."s3://logs/deep/er/"]
        region = "b"
        retries = 3
        [places."https://example.org/"]
        timeout = 1.5
        [places."sftp://host/srv"]
        identity = "everyone's"
        [places."sftp://me@host/srv"]
        identity = "mine"
        [places."/mnt/nas"]
        speed = "slow"
        """
    )
    return resolve({}, config_file=path, environ={})


@pytest.mark.parametrize(
    ("url", "table"),
    [
        ("s3://logs", {"region": "a", "requester_pays": "true"}),
        ("s3://logs/x", {"region": "a", "requester_pays": "true"}),
        ("S3://logs/deep/er", {"region": "b", "retries": "3"}),
        ("s3://logs/deep/er/x", {"region": "b", "retries": "3"}),
        ("s3://logs/deep/erx", {"region": "a", "requester_pays": "true"}),
        ("s3://logs-of-others/x", {}),
        ("gs://logs/x", {}),
        ("https://example.org", {"timeout": "1.5"}),
        ("https://EXAMPLE.org/a?b=c", {"timeout": "1.5"}),
        ("https://example.org.evil.example/", {}),
        ("https://example.org:8443/", {}),
        ("https://example.org@evil.example/", {}),
        ("sftp://host/srv/x", {"identity": "everyone's"}),
        ("sftp://you@host/srv/x", {"identity": "everyone's"}),
        ("sftp://me@host/srv/x", {"identity": "mine"}),
        ("sftp://me@host/", {}),
        ("/mnt/nas/x", {"speed": "slow"}),
        ("file:///mnt/nas/x", {"speed": "slow"}),
        ("/mnt/nasty", {}),
        ("mnt/nas", {}),
        ("-", {}),
    ],
)
def test_the_longest_place_that_holds(url: str, table: dict[str, str], places: Resolved) -> None:
    assert places.place_for(url) == table


# -- one table ----------------------------------------------------------------------------------------


def test_flags_and_environment_alone_load_no_library() -> None:
    code = (
        "import sys, fastsync.config as c\n"
        "c.resolve({'chunk_size': '4M'}, environ={'FASTSYNC_JOBS': '3', 'HOME': '/nonexistent'})\n"
        "heavy = {'pydantic', 'pydantic_core', 'tomllib', 'difflib', 'click', 'asyncio', 'rich'}\n"
        "print(*heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def uncommented(text: str) -> str:
    return re.sub(r"(?m)^#(?=[a-z\[])", "", text)


def test_the_sample_is_valid_as_it_is_and_without_its_comments(write: WriteConfig) -> None:
    found = resolve({}, config_file=write(sample()), environ={})
    assert asdict(found.settings) == asdict(Settings())
    content = tomllib.loads(uncommented(sample()))
    assert set(content["global"]) == {"profile", *SETTINGS}
    found = resolve({}, config_file=write(uncommented(sample())), environ={})
    for setting in SETTINGS.values():
        if setting.default is not None:
            assert getattr(found.settings, setting.name) == setting.default or (
                found.origins[setting.name].startswith("profile")
            )
    assert found.place_for("s3://example-bucket/x")


def test_the_document_names_every_setting_with_its_default_and_flag() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for setting in SETTINGS.values():
        plain = setting.plain(setting.default)
        default = "-" if plain is None else f"`{str(plain).lower()}`"
        if isinstance(plain, str):
            default = f"`{plain}`"
        flag = f"`{setting.flag}`" if setting.flag else "-"
        assert f"| `{setting.name}` | {default} | {setting.help} | {flag} |" in text
    assert set(re.findall(r"(?m)^\| `(\w+)` \|.*\| (?:`--[a-z0-9-]+`|-) \|$", text)) == set(
        SETTINGS
    )


def test_the_document_names_every_preset_and_its_examples_are_valid(write: WriteConfig) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in presets():
        assert f"| `{name}` |" in text
    examples = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        assert resolve({}, config_file=write(example), environ={}).config_file


def test_no_home_is_no_folder_of_that_name_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever made a directory called "~" in the current one has no say in what we keep and believe."""
    monkeypatch.setenv("HOME", "~")
    for environ in ({}, {"HOME": ""}, {"HOME": "here"}, {"HOME": "~", "XDG_STATE_HOME": "x"}):
        assert state_folder(environ) == "/.local/state/fastsync"
        assert str(find_config(None, environ)[0]) == "/.config/fastsync/config.toml"
