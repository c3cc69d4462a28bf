import json
import os
import re
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from fastsync import __version__
from fastsync.config import SETTINGS, presets

Done = subprocess.CompletedProcess[str]
Command = Callable[..., Done]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def environ(home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if "FASTSYNC" not in key}
    kept.pop("XDG_CONFIG_HOME", None)
    return {**kept, "HOME": str(home)}


@pytest.fixture
def fastsync(environ: dict[str, str], tmp_path: Path) -> Command:
    def run(*arguments: str | Path, **more: str) -> Done:
        return subprocess.run(
            [sys.executable, "-m", "fastsync", *arguments],
            check=False,
            env={**environ, **more},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
def file(home: Path) -> Path:
    """The usual place of the file, whose directory is there."""
    path = home / ".config" / "fastsync" / "config.toml"
    path.parent.mkdir(parents=True)
    return path


def write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)


def test_version(fastsync: Command) -> None:
    done = fastsync("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"fastsync {__version__}\n", "")


def test_path(fastsync: Command, home: Path) -> None:
    assert fastsync("config", "path").stdout == f"{home}/.config/fastsync/config.toml\n"
    assert fastsync("config", "path", XDG_CONFIG_HOME="/x").stdout == "/x/fastsync/config.toml\n"
    assert fastsync("config", "path", FASTSYNC_CONFIG="/y.toml").stdout == "/y.toml\n"
    assert fastsync("config", "path", "--config", "z\n.toml").stdout == "z\\n.toml\n"


def test_a_name_that_the_encoding_lacks(fastsync: Command) -> None:
    done = fastsync("config", "path", "--config", "\u2603.toml", PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\u2603.toml\n", "")


def test_init_makes_a_private_file_that_is_valid(fastsync: Command, home: Path) -> None:
    home.mkdir()
    done = fastsync("config", "init")
    path = home / ".config" / "fastsync" / "config.toml"
    assert (done.returncode, done.stdout) == (0, f"wrote {path}\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for directory in (path.parent, path.parent.parent):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["config.toml"]
    assert tomllib.loads(path.read_text()) == {"global": {}}
    assert fastsync("config", "show").returncode == 0
    path.write_text(re.sub(r"(?m)^#(?=[a-z\[])", "", path.read_text()))
    done = fastsync("config", "show")
    assert (done.returncode, done.stderr) == (0, "")


def test_init_replaces_nothing_unless_forced(fastsync: Command, file: Path) -> None:
    write(file, "# mine\n")
    done = fastsync("config", "init")
    assert done.returncode == 2
    assert (
        done.stderr == f"fastsync: error: {file}: there is a file already (--force replaces it)\n"
    )
    assert file.read_text() == "# mine\n"
    assert fastsync("config", "init", "--force").returncode == 0
    assert "parallel_streams" in file.read_text()


def test_init_follows_a_link_to_where_the_file_is_kept(
    fastsync: Command, file: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "dotfiles.toml"
    file.symlink_to(kept)
    assert fastsync("config", "init").returncode == 0
    assert file.is_symlink()
    assert "parallel_streams" in kept.read_text()


def test_init_where_it_cannot_be(fastsync: Command, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    done = fastsync("config", "init", "--config", "plain/config.toml")
    assert done.returncode == 1
    assert done.stderr.startswith(f"fastsync: error: {tmp_path}/plain/config.toml: not a directory")


def test_show_tells_every_value_and_its_source(fastsync: Command, file: Path) -> None:
    write(file, '[global]\nprofile = "wan"\nretry_count = 9\n[profiles.wan]\njobs = 3\n')
    done = fastsync("config", "show", FASTSYNC_STALL_TIMEOUT="90")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"# file: {file}\n# profile: wan\n[global]\n")

    def line(name: str) -> str:
        found = re.search(rf"(?m)^(?:# )?{name} .*$", done.stdout)
        assert found is not None
        return re.sub(" {2,}", "  ", found[0])

    assert all(line(name) for name in SETTINGS)
    assert line("retry_count") == f"retry_count = 9  # [global] of {file}"
    assert line("jobs") == f"jobs = 3  # profile wan ({file})"
    assert line("chunk_size") == f'chunk_size = "4M"  # profile wan ({presets()["wan"]})'
    assert line("stall_timeout") == 'stall_timeout = "90s"  # environment FASTSYNC_STALL_TIMEOUT'
    assert line("durable") == "durable = false  # built-in"
    assert line("max_delete") == "# max_delete is not set  # built-in"


def test_what_show_prints_is_a_configuration(fastsync: Command, tmp_path: Path) -> None:
    first = fastsync(
        "config", "show", "--profile", "max_throughput", FASTSYNC_LOG_FILE='a\\b"\x1b\x7f'
    )
    assert "\x1b" not in first.stdout
    assert "\x7f" not in first.stdout
    write(tmp_path / "again.toml", first.stdout)
    second = fastsync("config", "show", "--config", "again.toml")
    values = [re.findall(r"(?m)^(\w+ = .*?) *#", done.stdout) for done in (first, second)]
    assert len(values[0]) > 30
    assert values[0] == values[1]


def test_show_as_json(fastsync: Command, file: Path) -> None:
    write(file, "[global]\nmax_delete = '50%'\n")
    done = fastsync("config", "show", "--json", "--profile", "low_memory")
    found = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert (found["config_file"], found["profile"]) == (str(file), "low_memory")
    assert set(found["settings"]) == set(SETTINGS)
    assert found["settings"]["max_delete"] == {"value": "50%", "origin": f"[global] of {file}"}
    assert found["settings"]["min_size"] == {"value": None, "origin": "built-in"}


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_show_masks_secrets(options: list[str], fastsync: Command, file: Path) -> None:
    keys = [
        "password",
        "passphrase",
        "aws_secret_access_key",
        "session_token",
        "Api-Key",
        "Authorization",
    ]
    lines = "".join(f'{key} = "hunter2"\n' for key in keys)
    write(
        file,
        f'[places."s3://b/"]\n{lines}endpoint_url = "http://me:hunter2@h:9000"\nregion = "eu"\n'
        '[places."https://hunter2@h/?sig=hunter2"]\nproxy = "me:hunter2@h:3128"\nodd = "http://me:hunter2/@[?hunter2"\n',
    )
    done = fastsync("config", "show", *options)
    assert done.returncode == 0
    assert "hunter2" not in done.stdout + done.stderr
    for key in (*keys, "endpoint_url", "s3://b/"):
        assert key in done.stdout
    assert "eu" in done.stdout


def test_show_notes_what_may_be_a_slip(fastsync: Command) -> None:
    done = fastsync("config", "show", FASTSYNC_CHUNKSIZE="8M")
    assert done.returncode == 0
    assert done.stderr.startswith(
        "fastsync: note: FASTSYNC_CHUNKSIZE in the environment is not read"
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "[global]\nchunk_sizes = 1\n",
            "line 2: [global] chunk_sizes is not a setting, did you mean",
        ),
        ("[global]\njobs = '\x1b[31m'\n", "not TOML: found invalid character"),
        ("[global]\njobs = 'x\u202ey'\n", r"is not a whole number"),
        ('[global]\nprofile = "wann"\n', "there is no profile 'wann', did you mean wan?"),
    ],
)
def test_a_wrong_file_is_one_line_and_exit_2(
    text: str, told: str, fastsync: Command, file: Path
) -> None:
    write(file, text)
    for verb in (["show"], ["show", "--json"]):
        done = fastsync("config", *verb)
        assert done.returncode == 2
        assert (done.stdout == "") is (verb == ["show"])
        assert done.stderr.startswith(f"fastsync: error: {file}: ")
        assert told in done.stderr
        assert done.stderr.count("\n") == 1
        assert "\u202e" not in done.stderr


def test_profiles_lists_the_presets_and_the_users(fastsync: Command, file: Path) -> None:
    write(file, "[profiles.wan]\njobs = 3\n[profiles.office]\ndurable = true\n")
    done = fastsync("config", "profiles")
    assert (done.returncode, done.stderr) == (0, "")
    blocks = dict(re.findall(r"(?m)^(\w+): .*\n((?: {4}.*\n)*)", done.stdout))
    assert set(blocks) == {*presets(), "office"}
    assert blocks["office"] == "    durable = true\n"
    assert "    jobs = 3  # yours\n" in blocks["wan"]
    assert '    chunk_size = "4M"\n' in blocks["wan"]
    assert blocks["lan"] == '    parallel_streams = 32\n    jobs = 16\n    chunk_size = "16M"\n'


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str, fastsync: Command) -> None:
    done = fastsync("completion", shell, PATH="")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"_FASTSYNC_COMPLETE={shell}_complete" in done.stdout


def test_completion_completes(fastsync: Command) -> None:
    words = {"_FASTSYNC_COMPLETE": "bash_complete", "COMP_CWORD": "1"}
    assert fastsync(COMP_WORDS="fastsync co", **words).stdout == "plain,config\nplain,completion\n"
    words["COMP_CWORD"] = "2"
    assert fastsync(COMP_WORDS="fastsync config pr", **words).stdout == "plain,profiles\n"


def test_a_reader_who_has_seen_enough(environ: dict[str, str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "fastsync", "config", "show"],
        check=False,
        env=environ,
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["config", "show"]])
def test_output_that_cannot_be_written_is_an_error(
    arguments: list[str], environ: dict[str, str]
) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fastsync", *arguments],
            check=False,
            env=environ,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.returncode == 7
    assert done.stderr.startswith("fastsync: error: no space left on device")
    assert done.stderr.count("\n") == 1


def test_standard_streams_that_are_closed(environ: dict[str, str]) -> None:
    command = f"{sys.executable} -m fastsync config path >&- 2>&-"
    done = subprocess.run(["sh", "-c", command], check=False, env=environ, timeout=60)
    assert done.returncode == 0
