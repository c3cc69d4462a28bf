"""The calls that can copy a file, beside each other: ``python benches/ladder.py [--help]``.

Three decisions of protocols/fastsync_local/copying.py rest on these figures:

- ``BUFFER`` is 128 KiB: a larger one gains next to nothing, neither in the last rung nor for the small
  files that are one read and one write.
- A file is copied by one thread. In copy_file_range and sendfile a second one waits for the target's
  inode lock. With preadv/pwrite it reads while the other writes, which gains as long as a second
  processor has nothing else to do; in a tree of files it has.
- The target is not mapped. Its page faults cost more than the second copy that they save.

All copies of a round take turns, and each round starts with the next one. The first round warms up
and checks the copies. A target is always new; making and closing it belongs to the time, what goes on
before (removing the last one, sync on a disk) does not. The source is in the page cache.
"""

import argparse
import filecmp
import hashlib
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from statistics import median

from measure import Measurement, Sample, WrongResult
from places import NoPlace, Place, place
from report import say

KIB, MIB = 1 << 10, 1 << 20
STEP = 32 * MIB  # as in copying.py
LARGE_BUFFERS = (64 * KIB, 128 * KIB, 256 * KIB, 512 * KIB, MIB)
SMALL_BUFFERS = (4 * KIB, 16 * KIB, 64 * KIB, 128 * KIB, 256 * KIB, MIB)
SMALL_SIZES = (4 * KIB, 16 * KIB, 64 * KIB, 128 * KIB, 256 * KIB, MIB)
MOST_SMALL_FILES = 1000

# Copies a range between two descriptors: source, target, start, stop.
Rung = Callable[[int, int, int, int], None]
# Copies everything, whatever that is.
Work = Callable[[], None]


# -- the rungs ---------------------------------------------------------------------------------------


def by_copy_file_range(source: int, target: int, start: int, stop: int) -> None:
    while start < stop:
        start += os.copy_file_range(source, target, min(STEP, stop - start), start, start)


def by_sendfile(source: int, target: int, start: int, stop: int) -> None:
    os.lseek(target, start, os.SEEK_SET)
    while start < stop:
        start += os.sendfile(target, source, start, min(STEP, stop - start))


def by_buffer(buffer: memoryview, source: int, target: int, start: int, stop: int) -> None:
    while start < stop:
        count = os.preadv(source, [buffer[: stop - start]], start)
        start += os.pwrite(target, buffer[:count], start)


def by_new_buffer(size: int, source: int, target: int, start: int, stop: int) -> None:
    """Each thread needs one of its own."""
    by_buffer(memoryview(bytearray(size)), source, target, start, stop)


def by_map(source: int, target: int, start: int, stop: int) -> None:
    """Read into the mapped target, so that the kernel copies once and not twice."""
    os.pwrite(target, b"\0", stop - 1)  # grows it, and never shrinks what another thread has grown
    with mmap.mmap(target, stop - start, offset=start) as mapped, memoryview(mapped) as view:
        done = 0
        while done < stop - start:
            done += os.preadv(source, [view[done : done + STEP]], start + done)


LARGE_RUNGS: Mapping[str, Rung] = {
    "copy_file_range": by_copy_file_range,
    "sendfile": by_sendfile,
    **{f"preadv/pwrite {size // KIB}K": partial(by_new_buffer, size) for size in LARGE_BUFFERS},
    "preadv into a mapped target": by_map,
}
SMALL_RUNGS: Mapping[str, Rung] = {
    **{
        f"{size // KIB}K": partial(by_buffer, memoryview(bytearray(size))) for size in SMALL_BUFFERS
    },
    "copy_file_range": by_copy_file_range,
    "sendfile": by_sendfile,
}


def copy(source: Path, target: Path, rung: Rung, threads: int) -> None:
    """One file. Each thread has its own descriptors and a range that starts at a whole page."""
    size = source.stat().st_size
    target.touch()
    share = -(-size // threads) + mmap.ALLOCATIONGRANULARITY - 1
    share -= share % mmap.ALLOCATIONGRANULARITY

    def copy_range(start: int) -> None:
        here = os.open(source, os.O_RDONLY)
        there = os.open(target, os.O_RDWR)
        try:
            rung(here, there, start, min(start + share, size))
        finally:
            os.close(here)
            os.close(there)

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(copy_range, range(0, size, share)):
            pass


def copy_all(sources: Iterable[Path], target: Path, rung: Rung) -> None:
    """Many files, as little around each as a copy can have."""
    for source in sources:
        here = os.open(source, os.O_RDONLY)
        there = os.open(target / source.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        rung(here, there, 0, os.fstat(here).st_size)
        os.close(here)
        os.close(there)


# -- in turn -----------------------------------------------------------------------------------------


def take_turns(
    works: Mapping[str, Work], at: Place, sources: Sequence[Path], target: Path, runs: int
) -> list[Measurement]:
    """Time each of the `works`, which copy the `sources` into the directory `target`."""
    names = list(works)
    measurements = {name: Measurement(name) for name in names}
    for number in range(runs + 1):
        for turn in range(len(names)):
            name = names[(number + turn) % len(names)]
            for old in target.iterdir():
                old.unlink()
            at.settle()
            sample = timed(works[name])
            if number > 0:
                measurements[name].samples.append(sample)
            elif not all(filecmp.cmp(one, target / one.name, shallow=False) for one in sources):
                raise WrongResult(f"{name} made a wrong copy")
    return list(measurements.values())


def timed(work: Work) -> Sample:
    before, started = getrusage(RUSAGE_SELF), time.perf_counter()
    work()
    seconds, after = time.perf_counter() - started, getrusage(RUSAGE_SELF)
    return Sample(seconds, after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime, None)


def speed_of_two() -> float:
    """How much faster two threads compute than one: 2 if a second processor is free, 1 if none is."""
    block = bytes(32 * MIB)

    def seconds(threads: int) -> float:
        started = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(
                hashlib.sha256, [block] * threads
            ):  # it releases the interpreter's lock
                pass
        return time.perf_counter() - started

    return 2 * seconds(1) / seconds(2)


def large(at: Place, size: int, runs: int) -> None:
    at.require(2 * size, 2)
    with at.directory("source") as here, at.directory("target") as there:
        source = here / "large"
        block = os.urandom(MIB)
        with source.open("wb") as file:
            for _ in range(size // MIB):
                file.write(block)
        works = {
            f"{name} | {threads}": partial(copy, source, there / source.name, rung, threads)
            for name, rung in LARGE_RUNGS.items()
            for threads in (1, 2)
        }
        free = [speed_of_two() for _ in range(5)]
        results = take_turns(works, at, [source], there, runs)
        free += [speed_of_two() for _ in range(5)]
    print(f"\n## One file of {size // MIB} MiB on {at.title}\n")
    print(f"Two threads of plain computation were {median(free):.1f} times as fast as one.\n")
    print(
        "| call | threads | median MiB/s | fastest MiB/s | CPU s |\n| --- | --: | --: | --: | --: |"
    )
    for result in results:
        rates = f"{size / MIB / result.seconds:.0f} | {size / MIB / result.fastest:.0f}"
        print(f"| {result.name} | {rates} | {result.cpu_s:.2f} |")


def small(at: Place, total: int, runs: int) -> None:
    print(f"\n## Files of one size on {at.title}, median (fastest) MiB/s\n")
    print("By read and write with a buffer of so many bytes, or by one call.\n")
    print("| size |", " | ".join(SMALL_RUNGS), "|")
    print("| --: |", " --: |" * len(SMALL_RUNGS))
    for size in SMALL_SIZES:
        count = min(MOST_SMALL_FILES, total // size)
        at.require(2 * count * size, 2 * count)
        with at.directory("source") as here, at.directory("target") as there:
            sources = [here / f"{number:06}" for number in range(count)]
            for source in sources:
                source.write_bytes(os.urandom(size))
            works = {
                name: partial(copy_all, sources, there, rung) for name, rung in SMALL_RUNGS.items()
            }
            results = take_turns(works, at, sources, there, runs)
        amount = count * size / MIB
        cells = [
            f"{amount / result.seconds:.0f} ({amount / result.fastest:.0f})" for result in results
        ]
        print(f"| {size // KIB}K |", " | ".join(cells), "|", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--runs", type=int, default=7, metavar="N", help="timed rounds (default: %(default)s)")
    add(
        "--large",
        type=int,
        default=512,
        metavar="MIB",
        help="size of the large file (default: 512)",
    )
    add(
        "--small",
        type=int,
        default=64,
        metavar="MIB",
        help="all small files together (default: 64)",
    )
    add("--places", default="tmpfs,disk", help="default: %(default)s")
    add("--disk-dir", type=Path, default=Path(tempfile.gettempdir()), metavar="DIR")
    options = parser.parse_args()
    for name in options.places.split(","):
        try:
            with place(name, options.disk_dir) as at:
                say(f"{at.title}: {options.runs} rounds")
                large(at, options.large * MIB, options.runs)
                small(at, options.small * MIB, options.runs)
        except NoPlace as exc:
            say(f"{name} is skipped: {exc}")
        except WrongResult as exc:
            say(str(exc))
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
