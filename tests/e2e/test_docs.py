"""The documentation holds: its commands and code run, its links lead somewhere, nothing is left out.

The examples of docs/CONTRACT.md run in test_plugin.py.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import click
import pytest
from s3_servers import S3Server, reset_moto
from web import running_nginx

from fastsync.cli.group import VERBS, Verbs
from fastsync.cli.options import resolved
from fastsync.settings import SETTINGS

if TYPE_CHECKING:
    from tests.conftest import Fastsync, Plant

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OPTION_PAGES: Final = ("CLI.md", "FILTERS.md", "OUTPUT.md", "CONFIGURATION.md")

# What the examples take for granted. Places below /tmp and /mnt are meant below the sandbox.
SANDBOX: Final[Mapping[str, str | bytes | Path]] = {
    "a.txt": "one",
    "b.txt": "two",
    "report.pdf": b"%PDF-1.7\n" + bytes(70_000),
    "backup/old.txt": "there before",
    "big.iso": bytes(300_000),
    "big/disk.img": bytes(300_000),
    "docs/CLI.md": "# The command",
    "docs/deeper/notes.txt": "notes",
    "logs/today.log": "a line",
    "logs/empty.log": "",
    "photos/beach.jpg": b"\xff\xd8 sand",
    "photos/2024/hill.jpg": b"\xff\xd8 grass",
    "photos/2024/odd name.png": b"\x89PNG",
    "photos/scratch.tmp": "left out by a filter",
    "photos/cache/thumbnail": "so is this",
    "project/main.c": "int main(void) { return 0; }",
    "project/README": "no source",
    "src/main.py": "pass",
    "mnt/far/": "",
    "mnt/slow/": "",
    "tmp/photos/gone.jpg": "not in photos any more",
}
# The same, of s3:// places.
BUCKETS: Final[Mapping[str, Mapping[str, bytes]]] = {
    "bucket": {
        "backup.tar": bytes(10_240),  # the end of an archive with nothing in it
        "in/a.csv": b"1,2",
        "logs.tar": bytes(10_240),
        "logs/2024-05/may.gz": b"may",
        "logs/2024/may.gz": b"may",
        "logs/may.gz": b"may",
        "photos/gone.jpg": b"not in photos any more",
        "report.pdf": b"%PDF-1.7",
        "what?.txt": b"what",
    },
    "here": {"x1": b"x"},
    "there": {},
}
VERSION: Final = "3HL4kqtJlcpXr"  # of s3://bucket/report.pdf
WEBSITE: Final = {
    "big.iso": bytes(3_000_000),
    "data.tar": bytes(10_240),
    "disk.img": bytes(2_000_000),
    "pub/a.gz": b"a",
    "pub/b.txt": b"b",
    "x": b"test",
}
# Programs of examples, and what does for them.
OTHERS: Final = {"pg_dump": "echo dump of $1", "zstd": "cat"}


class Block(NamedTuple):
    """A fenced block; `line` is the number of the first line in it."""

    page: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def fenced(page: Path, *languages: str) -> Iterator[Block]:
    content = page.read_text()
    fence = rf"^```(?:{'|'.join(languages)})\n(.*?)^```$"
    for found in re.finditer(fence, content, re.MULTILINE | re.DOTALL):
        yield Block(page, content.count("\n", 0, found.start(1)) + 1, found[1])


def commands(page: Path) -> Iterator[Block]:
    """Every line that runs the command, without the prompt."""
    for block in fenced(page, "sh", "console"):
        for number, line in enumerate(block.text.splitlines(), block.line):
            line = line.removeprefix("$ ")
            if re.match(r"(\w+=\S* )*(scripts/)?fastsync |.*\| fastsync ", line):
                yield Block(page, number, line)


@pytest.fixture
def sandbox(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> Path:
    """A directory that has what the examples need; `fastsync` is on the PATH of its commands."""
    shim = tmp_path / "bin" / "fastsync"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m fastsync "$@"\n')
    shim.chmod(0o755)
    fastsync.environ["PATH"] = f"{shim.parent}:{fastsync.environ['PATH']}"
    return plant(tmp_path / "sandbox", SANDBOX)


def run(fastsync: Fastsync, sandbox: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        check=False,
        cwd=sandbox,
        env=fastsync.environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )


def moved_into(sandbox: Path, text: str) -> str:
    return re.sub(r"(?<![\w./~-])/(?=(?:tmp|mnt)/)", f"{sandbox}/", text)


# -- examples ----------------------------------------------------------------------------------------


LINES: Final = [line for page in PAGES for line in commands(page)]
_REMOTE: Final = re.compile(r"(?<![\w.])(?:s3|sftp|https?)://")
_BUCKET: Final = re.compile(r"(?<![\w.])s3://")
_WEB: Final = re.compile(r"(?<![\w.])https://(?:host|example\.org)(?=/)")
_ELSEWHERE: Final = re.compile(r"(?<![\w.])(?:sftp|https?)://")
S3_LINES: Final = [
    line for line in LINES if _BUCKET.search(line.text) and not _ELSEWHERE.search(line.text)
]


@pytest.mark.parametrize(
    "shown", [line for line in LINES if not _REMOTE.search(line.text)], ids=str
)
def test_a_command_that_is_shown_runs(fastsync: Fastsync, sandbox: Path, shown: Block) -> None:
    line = moved_into(sandbox, shown.text).replace("scripts/fastsync", "fastsync")
    outside = [
        word
        for word in shlex.split(line, comments=True)
        if word.startswith("/") and word != "/dev/null" and not Path(word).is_relative_to(sandbox)
    ]
    assert not outside, "examples use places below /tmp and /mnt, which this test can redirect"
    announced = re.search(r"#.*\bexit (\d+)", line)
    done = run(fastsync, sandbox, "bash", "-o", "pipefail", "-c", line)
    assert done.returncode == (int(announced[1]) if announced else 0), done.stdout
    assert not list(sandbox.rglob(".fs-*"))


@pytest.fixture
def buckets(fastsync: Fastsync, sandbox: Path, moto: S3Server) -> str:
    """A server that has what the examples need; the version that is there of what they name one of."""
    reset_moto(moto)
    client = moto.client
    for bucket, objects in BUCKETS.items():
        client.create_bucket(Bucket=bucket)
        enabled = {"Status": "Enabled"}
        client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration=enabled)
        for key, content in objects.items():
            client.put_object(Bucket=bucket, Key=key, Body=content)
    for name, line in OTHERS.items():
        shim = sandbox.parent / "bin" / name
        shim.write_text(f"#!/bin/sh\n{line}\n")
        shim.chmod(0o755)
    fastsync.environ |= moto.environ
    version: str = client.head_object(Bucket="bucket", Key="report.pdf")["VersionId"]
    return version


@pytest.mark.parametrize("shown", S3_LINES, ids=str)
def test_a_command_for_s3_that_is_shown_runs(
    fastsync: Fastsync, sandbox: Path, buckets: str, shown: Block
) -> None:
    line = moved_into(sandbox, shown.text).replace(VERSION, buckets)
    done = run(fastsync, sandbox, "bash", "-o", "pipefail", "-c", line)
    assert done.returncode == 0, done.stdout
    assert not list(sandbox.rglob(".fs-*"))


@pytest.fixture(scope="module")
def website(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that has what the examples need."""
    with running_nginx(tmp_path_factory.mktemp("website")) as server:
        for name, content in WEBSITE.items():
            path = server.root / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        yield server.url


@pytest.mark.parametrize("shown", [line for line in LINES if _WEB.search(line.text)], ids=str)
def test_a_command_for_the_web_that_is_shown_runs(
    fastsync: Fastsync, sandbox: Path, website: str, shown: Block
) -> None:
    line = moved_into(sandbox, _WEB.sub(website, shown.text))
    done = run(fastsync, sandbox, "bash", "-o", "pipefail", "-c", line)
    assert done.returncode == 0, done.stdout
    assert not list(sandbox.rglob(".fs-*"))


@pytest.mark.parametrize("shown", [line for line in LINES if _ELSEWHERE.search(line.text)], ids=str)
def test_a_command_for_a_server_is_understood(shown: Block) -> None:
    words = shlex.shlex(shown.text, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    ours = list(words)
    ours = ours[ours.index("fastsync") + 1 :]
    verb, *arguments = takewhile(lambda word: word not in ("|", ">", "<"), ours)
    command = Verbs().get_command(click.Context(click.Command("fastsync")), verb)
    assert command is not None
    # Names, values and places are right; nobody is asked whether they are there.
    with command.make_context(verb, arguments) as context:
        values = {name: value for name, value in context.params.items() if name in SETTINGS}
        resolved(values)


def test_commands_are_found_at_all() -> None:
    pages = {line.page.name for page in PAGES for line in commands(page)}
    assert pages >= {"README.md", "CLI.md", "CONFIGURATION.md", "FILTERS.md"}
    assert {line.page.name for line in S3_LINES} >= {"README.md", "CLI.md", "S3.md"}
    assert {line.page.name for line in LINES if _WEB.search(line.text)} >= {"CLI.md", "HTTP.md"}


@pytest.mark.parametrize(
    "shown",
    [
        block
        for page in (ROOT / "README.md", ROOT / "docs" / "LIBRARY.md")
        for block in fenced(page, "python")
    ],
    ids=str,
)
def test_python_that_is_shown_runs(fastsync: Fastsync, sandbox: Path, shown: Block) -> None:
    code = moved_into(sandbox, shown.text)
    done = run(fastsync, sandbox, sys.executable, "-W", "error", "-c", code)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("shown", list(fenced(ROOT / "docs" / "CONFIGURATION.md", "toml")), ids=str)
def test_configuration_that_is_shown_is_read(
    fastsync: Fastsync, tmp_path: Path, shown: Block
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(shown.text)
    file.chmod(0o600)
    done = fastsync("config", "show", "--config", file)
    assert (done.code, done.stderr) == (0, "")


# -- completeness ------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("config", "completion")])
def test_every_spelling_of_every_option_is_documented(fastsync: Fastsync, verb: str) -> None:
    # An option's line begins with two spaces and a dash; two more spaces end the names.
    lines = re.findall(r"^  (-.*?)(?:  |$)", fastsync(verb, "--help").stdout, re.MULTILINE)
    spellings = {name for line in lines for name in re.findall(r"(?<![\w-])--?\w[\w-]*", line)}
    assert "--help" in spellings
    text = "".join((ROOT / "docs" / page).read_text() for page in OPTION_PAGES)
    assert spellings <= set(re.findall(r"(?<![\w-])--?\w[\w-]*", text))


@pytest.mark.parametrize(
    "page",
    [*PAGES, ROOT / "CHANGELOG.md", ROOT / "benches" / "README.md"],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_relative_links_lead_to_something(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose)
    paths = [target for target in targets if "://" not in target]
    assert [path for path in paths if not (page.parent / path).exists()] == []


@pytest.mark.parametrize(
    ("heading", "folder"),
    [("The house", "fastsync"), ("The local protocol", "protocols/fastsync_local")],
)
def test_the_architecture_names_every_module(heading: str, folder: str) -> None:
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    first_cells = "".join(re.findall(r"^\|.*?\|", section, re.MULTILINE))
    named = re.findall(r"`(?:\w+/)*(\w+(?:\.py|/))`", first_cells)
    place = ROOT / folder
    modules = {path.name for path in place.glob("*.py") if not path.name.startswith("__")}
    packages = {f"{path.parent.name}/" for path in place.glob("*/__init__.py")}
    missing = (modules | packages) - set(named)
    gone = {name for name in named if name.endswith(".py")} - modules
    assert (missing, gone) == (set(), set())


def test_the_changelog_has_a_place_for_what_comes_next() -> None:
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[:1] == ["Unreleased"]
