"""Who does the blocking work of a run: threads for what the kernel does, helper processes for what is
mostly interpreter."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

from fastsync.backend import Progress
from fastsync.errors import NameRefused
from fastsync.threads import in_thread
from fastsync_local.advance import Advance, Onwards
from fastsync_local.copying import Copier, Rules
from fastsync_local.held import HeldDirectories, Root
from fastsync_local.lanes import Lane, LaneFailed, processors
from fastsync_local.parallel import idle_processors
from fastsync_local.temporary import sweep

if TYPE_CHECKING:
    from fastsync_local.copying import Job, Problem

    Place: TypeAlias = tuple[str, tuple[int, int]]  # see `Root.identity`

T = TypeVar("T")

# Below this many files, starting helper processes costs more than they bring.
LANES_FROM: Final = 256


def _sweep(target: Root, jobs: list[Job]) -> None:
    """Remove what a helper process that is gone has left where it was to write."""
    with contextlib.suppress(OSError):
        held = HeldDirectories(target.descriptor())
        try:
            for directory in sorted({job[1].rpartition("/")[0] for job in jobs}):
                # It is not made yet, or none that a copy would go into either.
                with contextlib.suppress(OSError, NameRefused):
                    sweep(held.get(directory))
        finally:
            held.close()


class _Threads(ThreadPoolExecutor):
    """Makes do with the threads it has where the system refuses another: their turn comes."""

    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()
        except RuntimeError:  # "can't start new thread"
            if not self._threads:
                raise


class Crew:
    """Threads and helper processes, started when there is work for them and gone with the run."""

    def __init__(self) -> None:
        self._threads: _Threads | None = None
        self._idle_lanes: list[Lane] = []
        self._lanes: list[Lane] = []
        self._free: asyncio.Semaphore | None = None
        self._limit = 0
        self._files_seen = 0
        self._walks = 0
        self._jobs = 1
        self._streams = 1

    def allow(self, jobs: int, streams: int) -> None:
        """So many files at once may be worked on, one by up to so many threads."""
        self._jobs = max(self._jobs, jobs)
        self._streams = max(self._streams, streams)

    async def aclose(self) -> None:
        """End threads and helper processes, the files in hand finished or dropped."""
        lanes, self._lanes = self._lanes, []
        self._idle_lanes.clear()
        threads, self._threads = self._threads, None
        if threads is None:
            return
        for lane in lanes:
            lane.hang_up()
            lane.terminate()
        with contextlib.ExitStack() as stack:
            stack.callback(threads.shutdown)
            for lane in lanes:
                stack.callback(lane.close)

    async def in_thread(
        self,
        work: Callable[[], T],
        on_cancel: Callable[[], object] | None = None,
        undo: Callable[[T], object] | None = None,
    ) -> T:
        """Run blocking work; see `fastsync.threads.in_thread`."""
        if self._threads is None:
            self._threads = _Threads(self._jobs + 4, "fastsync-local")
        return await in_thread(self._threads, work, on_cancel, undo)

    # -- walks ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def walking(self) -> Iterator[None]:
        """Counts the walks that run in this process."""
        self._walks += 1
        try:
            yield
        finally:
            self._walks -= 1

    @property
    def walks_compete(self) -> bool:
        """True when a second walk in this process waits for the interpreter."""
        return self._walks > 1 and processors() > 1

    async def start_lane(self) -> Lane | None:
        """A new helper process, or None where there can be none."""
        try:
            lane = await self.in_thread(Lane, undo=Lane.close)
        except LaneFailed:
            return None
        self._lanes.append(lane)
        return lane

    async def end_lane(self, lane: Lane) -> None:
        if lane in self._lanes:
            self._lanes.remove(lane)
            await self.in_thread(lane.close)

    # -- copies --------------------------------------------------------------------------------------

    async def copy(
        self,
        source: Root,
        target: Root,
        jobs: list[Job],
        rules: Rules,
        progress: Progress,
    ) -> list[Problem | None]:
        """Copy a batch on a lane of its own: a helper process once there are enough files, else a thread.

        As many lanes as processors, and more, up to the jobs allowed, while they mostly wait for a disk.
        """
        if self._free is None:
            self._limit = min(processors(), self._jobs)
            self._free = asyncio.Semaphore(self._limit)
        self._files_seen += len(jobs)
        onwards = Onwards(progress)
        async with self._free:
            if self._files_seen > LANES_FROM:
                # Waits for a disk, and fails before a helper process is started for it.
                places = await self.in_thread(
                    lambda: (source.identity(), target.identity(target=True))
                )
                lane = self._idle_lanes.pop() if self._idle_lanes else await self.start_lane()
                if lane is not None:
                    try:
                        return await self._copy_on_lane(lane, places, jobs, rules, onwards)
                    except LaneFailed:
                        # Somebody killed it, perhaps for the memory it took.
                        await self.in_thread(lambda: _sweep(target, jobs))
                        onwards.again()
            return await self.copy_in_thread(source, target, jobs, rules, onwards)

    async def _copy_on_lane(
        self,
        lane: Lane,
        places: tuple[Place, Place],
        jobs: list[Job],
        rules: Rules,
        progress: Progress,
    ) -> list[Problem | None]:
        request = ("copy", *places, rules.as_dict(), jobs)
        loop = asyncio.get_running_loop()

        def exchange() -> tuple[list[Problem | None], bool, int]:
            lane.send(request)
            while (reply := lane.receive())[0] == "moved":
                loop.call_soon_threadsafe(progress, reply[1])
            _, results, waited, untold = reply
            return results, waited, untold

        try:
            results, waited, untold = await self.in_thread(exchange, lane.terminate)
        except LaneFailed:
            await self.end_lane(lane)
            raise
        except OSError:  # one of the roots; it waits for the next
            self._idle_lanes.append(lane)
            raise
        self._idle_lanes.append(lane)
        progress(untold)
        if waited and self._limit < self._jobs and self._free is not None:
            self._limit += 1
            self._free.release()
        return results

    async def copy_in_thread(
        self,
        source: Root,
        target: Root,
        jobs: list[Job],
        rules: Rules,
        progress: Progress,
    ) -> list[Problem | None]:
        stop = threading.Event()
        loop = asyncio.get_running_loop()
        advance = Advance(lambda count: loop.call_soon_threadsafe(progress, count))

        def work() -> list[Problem | None]:
            copier = Copier(
                source.descriptor(),
                target.descriptor(create=True),
                rules,
                stopped=stop.is_set,
                moved=advance.moved,
                threads=min(2, idle_processors(processors()), self._streams),
            )
            try:
                return copier.run(jobs)
            finally:
                copier.close()

        results = await self.in_thread(work, stop.set)
        progress(advance.take())
        return results
