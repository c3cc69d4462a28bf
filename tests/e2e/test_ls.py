"""`fastsync ls`: what it prints, in which order and form."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Fastsync, Plant, Spec

TREE: Spec = {
    "a": "a" * 2000,
    "b/c": "c",
    "b/d/e": "",
    "b-": "sorts before b/",
    "b0": "sorts after b/",
    "link": Path("b/c"),
    "empty/": "",
}


def test_one_level(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path / "src", TREE)
    listed = "a\nb-\nb/\nb0\nempty/\nlink\n"
    assert fastsync("ls", "src") == (0, listed, "")
    assert fastsync("ls", "src/") == (0, listed, "")
    assert fastsync("ls", cwd=tmp_path / "src") == (0, listed, "")
    assert fastsync("ls", f"file://{tmp_path}/src") == (0, listed, "")
    assert fastsync("ls", "src/empty") == (0, "", "")


def test_all_levels_in_byte_order(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path / "src", TREE)
    assert fastsync("ls", "-R", "src") == (
        0,
        "a\nb-\nb/\nb/c\nb/d/\nb/d/e\nb0\nempty/\nlink\n",
        "",
    )
    assert fastsync("ls", "-R", "--max-depth", "2", "src").stdout == (
        "a\nb-\nb/\nb/c\nb/d/\nb0\nempty/\nlink\n"
    )
    assert fastsync("ls", "-R", "--exclude", "b/", "--exclude", "*k", "src").stdout == (
        "a\nb-\nb0\nempty/\n"
    )


def test_a_file_and_the_place_itself(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path / "src", TREE)
    assert fastsync("ls", "src/a") == (0, "a\n", "")
    assert fastsync("ls", "-d", "src") == (0, "src/\n", "")


def test_several_places(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path, {"one/a": "", "two/b": ""})
    done = fastsync("ls", "one", "missing", "two")
    assert done.code == 3
    assert done.stdout == "one:\na\n\nmissing:\n\ntwo:\nb\n"
    assert done.stderr == "fastsync: error: missing: no such file or directory\n"


def test_long(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    src = plant(tmp_path / "src", TREE)
    (src / "a").chmod(0o4640)
    os.utime(src / "a", ns=(0, 1_600_000_000_999_999_999))
    os.mkfifo(src / "pipe")
    out = fastsync("ls", "-l", "src").stdout.splitlines()
    assert out[0] == "-rwSr-----         2000 2020-09-13 12:26:40 a"
    assert re.fullmatch(r"drwxr-xr-x +- 20\d\d-\S+ \S+ b/", out[2])
    assert re.fullmatch(r"lrwxrwxrwx +- 20\d\d-\S+ \S+ link -> b/c", out[5])
    assert re.fullmatch(r"\?rw-r--r-- +- 20\d\d-\S+ \S+ pipe", out[6])
    assert "    1.95 KiB " in fastsync("ls", "-lH", "src").stdout


def test_totals(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path / "src", TREE)
    assert fastsync("ls", "-R", "--summarize", "src").stdout.endswith(
        "\nTotal: 5 files, 2030 bytes\n"
    )
    assert fastsync("ls", "-RH", "--stat", "src").stdout.endswith("\nTotal: 5 files, 1.98 KiB\n")


def test_links_followed(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path, {"src/dir/a": "aa", "src/link": Path("dir"), "src/gone": Path("no")})
    done = fastsync("ls", "-RL", "src")
    assert done.stdout == "dir/\ndir/a\nlink/\nlink/a\n"
    assert (done.code, done.stderr.count("\n")) == (1, 1)


def test_odd_names(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    names = ["new\nline", "esc\x1b[2J", os.fsdecode(b"bad\xff"), "\u202egnp.exe", "ünï", "a\\nb"]
    plant(tmp_path / "src", dict.fromkeys(names, ""))
    shown = ["new\\nline", "esc\\x1b[2J", "bad\\xff", "\\u202egnp.exe", "ünï", "a\\\\nb"]
    assert sorted(fastsync("ls", "src").stdout.splitlines()) == sorted(shown)
    for locale in ("C", "POSIX", "C.UTF-8"):
        done = fastsync("ls", "src", env={"LC_ALL": locale})
        assert done.code == 0
        assert done.stdout == fastsync("ls", "src").stdout
    # With -0 they are as they are.
    in_order = sorted(map(os.fsencode, names))
    assert os.fsencode(fastsync("ls", "-0", "src").stdout) == b"".join(
        name + b"\0" for name in in_order
    )


def test_json(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    bad = os.fsdecode(b"bad\xff")
    src = plant(tmp_path / "src", {"a": "content", "dir/": "", "link": Path("a"), bad: "xy"})
    os.utime(src / "a", ns=(0, 1_600_000_000_000_000_001))
    os.utime(src / bad, ns=(0, -1_000_000_000))
    done = fastsync("ls", "--json", "--summarize", "src")
    assert done.code == 0
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line.pop("operation") for line in lines] == ["ls", "ls", "ls", "ls", "summary"]
    assert all(line.pop("success") is True for line in lines)
    assert all(line.pop("source") == "src" for line in lines[:-1])
    assert lines[0] == {
        "path": "a",
        "kind": "file",
        "size": 7,
        "mtime": "2020-09-13T12:26:40.000000001Z",
        "mode": "0644",
    }
    assert base64.b64decode(lines[1].pop("path_bytes")) == b"bad\xff"
    assert (lines[1]["size"], lines[1]["mtime"]) == (2, "1969-12-31T23:59:59Z")
    assert (lines[2]["path"], lines[2]["kind"]) == ("dir", "dir")
    assert (lines[3]["kind"], lines[3]["target"]) == ("link", "a")
    assert lines[4] == {"files": 2, "size": 9}


def test_what_cannot_be_listed(
    fastsync: Fastsync, plant: Plant, unprivileged: list[str], tmp_path: Path
) -> None:
    plant(tmp_path, {"src/a": "", "src/locked/b": "", "src/z": ""})
    (tmp_path / "src/locked").chmod(0)
    done = fastsync("ls", "-R", "src", under=unprivileged)
    (tmp_path / "src/locked").chmod(0o700)
    assert done == (
        3,
        "a\nlocked/\nz\n",
        "fastsync: error: src/locked: permission denied, so its listing is incomplete\n",
    )


@pytest.mark.parametrize("options", [(), ("--json",), ("-l",), ("-0",)])
def test_a_reader_that_goes_away(
    fastsync: Fastsync, plant: Plant, tmp_path: Path, options: tuple[str, ...]
) -> None:
    plant(tmp_path / "src", {f"{'long name ' * 10}{index}": "" for index in range(3000)})
    listing = subprocess.Popen(
        fastsync.command("ls", "-R", *options, "src"),
        cwd=tmp_path,
        env=fastsync.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert listing.stdout is not None
    assert listing.stderr is not None
    with listing:
        assert listing.stdout.read(100)
        listing.stdout.close()
        assert listing.stderr.read() == b""
    assert listing.returncode == 141


def test_a_full_disk_behind_the_output(fastsync: Fastsync, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path / "src", TREE)
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            fastsync.command("ls", "src"),
            cwd=tmp_path,
            env=fastsync.environ,
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 7
    assert done.stderr.startswith(b"fastsync: error: no space left on device")
    assert done.stderr.count(b"\n") == 1
