"""fastsync: copy and sync files between local disks and, by protocols found as plug-ins, elsewhere.

The public names are those in ``__all__``; they are imported when first used, so that the command's
start-up and the helper processes pay for nothing they do not need.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastsync.api import (
        async_cat,
        async_check,
        async_cp,
        async_du,
        async_ls,
        async_make_plan,
        async_mkdir,
        async_mv,
        async_pipe,
        async_presign,
        async_rm,
        async_run,
        async_stat,
        async_sync,
        cat,
        check,
        cp,
        du,
        ls,
        make_plan,
        mkdir,
        mv,
        pipe,
        presign,
        rm,
        run,
        stat,
        sync,
    )
    from fastsync.backend import Entry
    from fastsync.checking import Checked, Finding
    from fastsync.errors import FastsyncError
    from fastsync.events import Item, Observer, Totals
    from fastsync.filters import Rule
    from fastsync.listing import Usage
    from fastsync.tally import Summary

__version__ = "0.1.0"

__all__ = [
    "Checked",
    "Entry",
    "FastsyncError",
    "Finding",
    "Item",
    "Observer",
    "Rule",
    "Summary",
    "Totals",
    "Usage",
    "__version__",
    "async_cat",
    "async_check",
    "async_cp",
    "async_du",
    "async_ls",
    "async_make_plan",
    "async_mkdir",
    "async_mv",
    "async_pipe",
    "async_presign",
    "async_rm",
    "async_run",
    "async_stat",
    "async_sync",
    "cat",
    "check",
    "cp",
    "du",
    "ls",
    "make_plan",
    "mkdir",
    "mv",
    "pipe",
    "presign",
    "rm",
    "run",
    "stat",
    "sync",
]

_HOMES = {
    "run": "api",
    "make_plan": "api",
    "async_run": "api",
    "async_make_plan": "api",
    "Checked": "checking",
    "Entry": "backend",
    "FastsyncError": "errors",
    "Finding": "checking",
    "Item": "events",
    "Observer": "events",
    "Rule": "filters",
    "Summary": "tally",
    "Totals": "events",
    "Usage": "listing",
    "async_cat": "api",
    "async_check": "api",
    "async_cp": "api",
    "async_du": "api",
    "async_ls": "api",
    "async_mkdir": "api",
    "async_mv": "api",
    "async_pipe": "api",
    "async_presign": "api",
    "async_rm": "api",
    "async_stat": "api",
    "async_sync": "api",
    "cat": "api",
    "check": "api",
    "cp": "api",
    "du": "api",
    "ls": "api",
    "mkdir": "api",
    "mv": "api",
    "pipe": "api",
    "presign": "api",
    "rm": "api",
    "stat": "api",
    "sync": "api",
}


if not TYPE_CHECKING:  # which would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        found: object = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted(__all__)
