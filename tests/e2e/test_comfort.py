"""What a shell and a reader get: completion of remote places, examples in every help, a man page."""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from s3_servers import S3Server

from fastsync.cli.group import VERBS
from fastsync.cli.group import fastsync as root
from fastsync.cli.manual import manual

if TYPE_CHECKING:
    from tests.conftest import Fastsync


def contexts(
    command: click.Command, parent: click.Context | None = None
) -> Iterator[click.Context]:
    # With the settings of the group: click keeps the first help option a command was asked for.
    context = click.Context(
        command, info_name=command.name, parent=parent, **command.context_settings
    )
    yield context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from contexts(below, context)


@pytest.mark.parametrize("context", list(contexts(root)), ids=lambda context: context.command_path)
def test_every_help_has_examples(context: click.Context) -> None:
    text = context.get_help()
    assert re.search(r"^  -h, --help ", text, flags=re.MULTILINE)
    examples = text.partition("Examples")[2]
    assert "fastsync " in examples or 'eval "$(fastsync' in examples
    assert max(map(len, text.splitlines())) <= 80


def test_the_man_page_leaves_the_help_option_as_it_was() -> None:
    code = "from fastsync.cli import main, manual; manual.manual(); main.main(['-h'])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("Usage: fastsync ")


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_the_man_page_is_sound_and_whole() -> None:
    done = subprocess.run(
        ["groff", "-man", "-Tascii", "-ww", "-P-cbou"],
        check=True,
        input=manual(),
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    for verb in VERBS:
        assert f"   {verb}\n" in done.stdout
    assert "--backup-dir" in done.stdout
    assert "fastsync cp -R photos backup/" in done.stdout


# -- completion ------------------------------------------------------------------------------------


@pytest.fixture
def complete(fastsync: Fastsync, tmp_path: Path) -> Callable[[str], list[str]]:
    """What bash would offer behind a line."""
    shim = tmp_path / "bin" / "fastsync"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m fastsync "$@"\n')
    shim.chmod(0o755)
    fastsync.environ["PATH"] = f"{shim.parent}:{fastsync.environ['PATH']}"
    script = fastsync("completion", "bash").stdout

    def offered(line: str) -> list[str]:
        told = (
            f"compopt() {{ :; }}\n{script}\nCOMP_LINE={shlex.quote(line)} COMP_POINT={len(line)}\n"
            '_fastsync_completion fastsync; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "-c", told],
            check=True,
            env=fastsync.environ,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.stderr == ""
        return done.stdout.splitlines() if done.stdout.strip() else []

    return offered


def test_verbs_and_options(complete: Callable[[str], list[str]]) -> None:
    assert complete("fastsync che") == ["check"]
    assert complete("fastsync sync --backup") == ["--backup-dir"]
    assert complete("fastsync sync some/local/pa") == []


def test_remote_places(
    complete: Callable[[str], list[str]], fastsync: Fastsync, moto: S3Server
) -> None:
    fastsync.environ.update(moto.environ)
    bucket = moto.new_bucket()
    for key in ("photos/a", "photos/b/c", "phones"):
        moto.client.put_object(Bucket=bucket, Key=key, Body=b"")
    # bash has split the word at its colon, and puts in what comes behind that.
    assert complete(f"fastsync ls s3://{bucket}/pho") == [
        f"//{bucket}/phones",
        f"//{bucket}/photos/",
    ]
    wanted = [f"//{bucket}/photos/a", f"//{bucket}/photos/b/"]
    assert complete(f"fastsync cp -R s3://{bucket}/photos/") == wanted
    # For a minute nobody asks again.
    moto.client.delete_object(Bucket=bucket, Key="phones")
    assert len(complete(f"fastsync ls s3://{bucket}/pho")) == 2
    assert complete("fastsync ls s3://no-such-bucket-here/x") == []


def test_names_are_offered_as_a_line_has_them(
    complete: Callable[[str], list[str]], fastsync: Fastsync, moto: S3Server
) -> None:
    """Quoted, and from the last character on at which bash has split the word."""
    fastsync.environ.update(moto.environ)
    bucket = moto.new_bucket()
    for key in ("a $b.txt", "a c.txt", "day=1/time:2"):
        moto.client.put_object(Bucket=bucket, Key=key, Body=b"")
    assert complete(f"fastsync ls s3://{bucket}/a") == [
        rf"//{bucket}/a\ \$b.txt",
        rf"//{bucket}/a\ c.txt",
    ]
    assert complete(f"fastsync ls s3://{bucket}/a\\ c") == [rf"//{bucket}/a\ c.txt"]
    assert complete(f'fastsync ls "s3://{bucket}/a c') == [f"s3://{bucket}/a c.txt"]
    assert complete(f"fastsync ls s3://{bucket}/day=1/") == ["1/time:2"]
    for key in ("q$(touch pwned)", "q`touch pwned`", 'q"; touch pwned; "', "q'; touch pwned; '"):
        moto.client.put_object(Bucket=bucket, Key=f"in/{key}", Body=b"")
    assert complete(f'fastsync ls "s3://{bucket}/in/q') == [f"s3://{bucket}/in/q'; touch pwned; '"]
    assert len(complete(f"fastsync ls 's3://{bucket}/in/q")) == 3
    for offered in complete(f"fastsync ls s3://{bucket}/in/q"):
        assert shlex.split(offered) == [shlex.split(offered)[0]], "one word, whatever is in it"


def test_values_of_options(complete: Callable[[str], list[str]]) -> None:
    assert complete("fastsync sync --verify ") == ["digest", "reread"]
    assert complete("fastsync sync --profile low") == ["low_memory"]


def test_a_server_that_is_silent(
    complete: Callable[[str], list[str]], fastsync: Fastsync, moto: S3Server
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        fastsync.environ.update(moto.environ)
        fastsync.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        assert complete("fastsync ls s3://bucket/x") == []
        assert time.monotonic() - started < 4  # one second, and that of a slow machine's start
