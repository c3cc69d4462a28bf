"""CPU time and memory of the planner: a million entries on each side through twenty rules, one file of a
hundred changed: ``python benches/plan.py [ENTRIES]``. What making the entries takes is not counted."""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from collections.abc import AsyncIterator

from fastsync.backend import Entry, Page
from fastsync.filters import Filter, parse_rule
from fastsync.plan import Rules, plan

FILES_PER_DIRECTORY = 1000
THEN = 1_000_000_000 * 10**9

RULES = (
    "- *.tmp|- cache/|- /build/|+ keep*.o|- *.o|- *.pyc|- **/x/**|- *.{jpg,png}|- node_modules/|- *~|"
    "- .git/|- *.swp|- /a/b/c|+ *.log|- foo*bar|- [0-9]*.bak|- *.class|- /out/**|- tmp/|- *.iso"
)


class Side:
    """The listing of one side, made page by page; `made_s` is what that took."""

    def __init__(self, entries: int, later_ns: int) -> None:
        self._directories = max(1, entries // FILES_PER_DIRECTORY)
        self._later_ns = later_ns
        self.made_s = 0.0

    async def pages(self) -> AsyncIterator[Page]:
        for number in range(self._directories):
            started = time.process_time()
            name = f"d{number:06}"
            page = [Entry(name, "dir", None, None, 0o755)]
            for file in range(FILES_PER_DIRECTORY):
                mtime_ns = THEN + (self._later_ns if file % 100 == 0 else 0)
                page.append(Entry(f"{name}/f{file:05}.dat", "file", 100, mtime_ns, 0o644))
            self.made_s += time.process_time() - started
            yield Page(page)


async def main(entries: int) -> None:
    chosen = Filter([parse_rule(line) for line in RULES.split("|")])
    now = time.time_ns()
    recent_ns = (now - 2 * 10**9, now + 2 * 10**9)
    rules = Rules(chosen, mode_mask=0o777, delete=True, recent_ns=recent_ns)
    ours, theirs = Side(entries, 0), Side(entries, 5 * 10**9)
    started = time.process_time()
    copies = 0
    async for page in plan(ours.pages(), theirs.pages(), rules):
        copies += len(page.now)
    spent_s = time.process_time() - started - ours.made_s - theirs.made_s
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(
        f"{entries:,} entries a side, {copies:,} to copy: {spent_s:.2f} s CPU, "
        f"{entries / spent_s:,.0f} entries/s, peak {peak} MiB"
    )


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000))
