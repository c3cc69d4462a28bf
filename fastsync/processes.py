"""What tells one process from all others: this start of the machine, and the moment it began.

Imports are few on purpose: the helper processes of a protocol may need it.
"""

from __future__ import annotations

import os


def boot_id() -> str:
    """This start of this machine (proc_sys_kernel(5)); "" where the system does not number them."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def pid_space() -> str:
    """What gives a process number its meaning: this start of this machine, and the container, if any
    (pid_namespaces(7))."""
    container = pid_container()
    return (boot_id() or os.uname().nodename) + container if container else os.uname().nodename


def pid_container() -> str:
    """Within which processes are numbered, and see each other; "" where there is but one such space."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def started(pid: int) -> int | None:
    """When a process began, in clock ticks (proc_pid_stat(5), field 22); None when there is none, 0 where
    that cannot be known."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in parentheses, may hold anything. A zombie is only waiting to be asked for.
            state, *fields = file.read().rpartition(b")")[2].split()
            return None if state in (b"Z", b"X") else int(fields[18])
    except OSError:
        pass
    if os.path.isdir("/proc/self"):
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass  # somebody else's
    return 0
