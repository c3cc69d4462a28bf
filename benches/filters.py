"""CPU time of a million entries through twenty rules: ``python benches/filters.py [ENTRIES]``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

from fastsync.backend import Entry
from fastsync.filters import Filter, parse_rule

PAGE = 1000
FILES_PER_DIRECTORY = 50

RULES = {
    "no rule": "",
    "20 endings": "- *.o|- *.a|- *.so|- *.pyc|- *.tmp|- *.bak|- *.swp|- *~|- *.log|- *.orig|- *.rej|"
    "- *.class|- *.jar|- *.obj|- *.exe|- *.dll|- *.lib|- *.gch|- *.d|- *.lo",
    "20 rules, signs mixed": "+ keep*.log|- *.log|+ *.[ch]|- *.o|+ Makefile|- core|+ a*b*c|- *.t?p|"
    "+ *.{jpg,png,gif}|- *cache*|+ readme*|- .*|+ *.txt|- *~|+ x|- y|+ [A-M]*|- #*#|+ *.md|- *.bak",
    "20 rules with paths": "- /proj3/**|+ proj1/sub*/*.dat|- sub2/*.dat|- node_modules/|- .git/|"
    "+ /proj5/***|- **/build/**|- a**b|- /x/y/z|- dist/|- target/*.o|- *.pyc|+ docs/**|- *.tmp|"
    "- sub7/file1*|- venv/|- **/cache/*|- /proj4/sub1/|- s*b*/*7.dat|- *.gz",
    "20 includes only": "|".join(f"+ *.{ending}" for ending in "abcdefghijklmnopqrs") + "|+ *.dat",
}


def entries(count: int) -> Iterator[list[Entry]]:
    page: list[Entry] = []
    for number in range(count):
        directory = number // FILES_PER_DIRECTORY
        path = f"proj{directory % 7}/sub{directory}/some_file_{number:07d}.dat"
        page.append(Entry(path, "file", number, number))
        if len(page) == PAGE:
            yield page
            page = []
    yield page


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    for title, text in RULES.items():
        rules = Filter([parse_rule(line) for line in text.split("|") if line])
        kept, spent_s = 0, 0.0
        for page in entries(count):
            start = time.process_time()
            kept += len(rules.select(page))
            spent_s += time.process_time() - start
        rate = count / max(spent_s, 1e-9)
        print(f"{title:24} {spent_s:6.2f} s CPU {rate:12,.0f} entries/s {kept:9,d} kept")


if __name__ == "__main__":
    main()
