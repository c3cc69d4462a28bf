"""The works of the S3 bench: what each tool runs against a server on this machine, and the goals.

A work takes a bench, a gateway and a place, makes its own trees there, and yields its results. It raises
`NoPlace` if it has no room. The tools get the parallelism that suits many small files, not their defaults,
where those are for a slow link.
"""

import filecmp
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from measure import Command, Contender, Measurement, WrongResult, interleave, run
from peers import Tool
from places import Place, remove
from report import Goal, Result, say
from s3_gateway import ACCESS_KEY, BUCKET, REGION, SECRET_KEY, Gateway
from trees import fingerprint, make_big_file

SMALL_SIZE = 4096
_INODE = 2500  # bytes of memory that an object on tmpfs takes beside its data: file and attributes
_BUSY = (
    0.9  # the server is the limit if it has this much of the processors that the client leaves it
)
_FILES_PER_DIRECTORY = 100
_RCLONE_MANY = ("--transfers", "32", "--checkers", "32", "--fast-list", "--s3-no-check-bucket")
# An old and whole second: what a listing says of an object is later, and nothing is lost by rounding.
_MTIME_S = 1_600_000_000


@dataclass(frozen=True, slots=True)
class Sizes:
    """How big the works are."""

    small_objects: int = 10_000
    big_size: int = 1 << 30
    listed_keys: int = 200_000
    noop_objects: int = 100_000
    batch_objects: int = 5_000
    memory_size: int = 5 << 30
    memory_keys: int = 1_000_000

    def scaled(self, factor: float) -> "Sizes":
        return Sizes(
            small_objects=max(1, int(self.small_objects * factor)),
            big_size=max(1 << 20, int(self.big_size * factor)),
            listed_keys=max(1, int(self.listed_keys * factor)),
            noop_objects=max(1, int(self.noop_objects * factor)),
            batch_objects=max(1, int(self.batch_objects * factor)),
            memory_size=max(1 << 20, int(self.memory_size * factor)),
            memory_keys=max(1, int(self.memory_keys * factor)),
        )


@dataclass(slots=True)
class S3Result:
    """A result, with the CPU seconds of the server for each timed run of each command."""

    result: Result
    server_cpu_s: dict[str, list[float]]

    def server_s(self, measurement: Measurement) -> float | None:
        used = self.server_cpu_s.get(measurement.name, [])
        return median(used) if used else None

    def server_is_the_limit(self, measurement: Measurement) -> bool:
        """Whether it had all that the client left of the processors."""
        used = self.server_s(measurement)
        if used is None:
            return False
        processors = len(os.sched_getaffinity(0)) * measurement.seconds
        return used > measurement.cpu_s and used >= _BUSY * (processors - measurement.cpu_s)

    def best_cpu_s(self) -> float | None:
        return _least(self._peers(), lambda peer: peer.cpu_s)

    def best_seconds(self) -> float | None:
        return _least(self._peers(), lambda peer: peer.seconds)

    def _peers(self) -> list[Measurement]:
        others = [m for m in self.result.measurements if m.name not in ("fastsync", "curl")]
        return [m for m in others if m.complete]


@dataclass(frozen=True, slots=True)
class Bench:
    """What all works share."""

    tools: Mapping[str, Tool]
    environment: Mapping[str, str]
    options: tuple[str, ...]
    sizes: Sizes
    rounds: int
    timeout_s: float
    results: list[S3Result] = field(default_factory=list)

    def command(self, gateway: Gateway, name: str, *arguments: str | Path) -> Command:
        argv = (self.tools[name].path, *map(str, arguments))
        return Command(name, argv, {**self.environment, **gateway.environment})

    def copy_tree(self, gateway: Gateway, name: str, source: str, target: str) -> Command:
        """A tree up or down; the two are paths, or keys behind ``s3://``, each with a "/" at its end."""
        if name == "fastsync":
            return self.command(gateway, name, "cp", "-q", *self.options, "-R", source, target)
        if name == "s5cmd":
            wild = f"{source}*" if source.startswith("s3://") else source
            return self.command(gateway, name, "--log", "error", "cp", wild, target)
        if name == "rclone":
            ends = (_remote(source), _remote(target))
            return self.command(gateway, name, "copy", *_RCLONE_MANY, *ends)
        more = ("--recursive", "--only-show-errors")
        return self.command(gateway, name, "s3", "cp", *more, source, target)

    def copy_file(self, gateway: Gateway, name: str, source: str, target: str) -> Command:
        """One object up or down; both names are in full."""
        if name == "fastsync":
            return self.command(gateway, name, "cp", "-q", *self.options, source, target)
        if name == "s5cmd":
            return self.command(gateway, name, "--log", "error", "cp", source, target)
        if name == "rclone":
            command = ("copyto", "--s3-no-check-bucket", _remote(source), _remote(target))
            return self.command(gateway, name, *command)
        if name == "curl":
            return self._curl(gateway, source, target)
        return self.command(gateway, name, "s3", "cp", "--only-show-errors", source, target)

    def _curl(self, gateway: Gateway, source: str, target: str) -> Command:
        up = target.startswith("s3://")
        key = (target if up else source).removeprefix("s3://")
        signed = ("--aws-sigv4", f"aws:amz:{REGION}:s3", "--user", f"{ACCESS_KEY}:{SECRET_KEY}")
        body = ("-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD", "-H", "Expect:")
        way: tuple[str, ...] = ("-T", source) if up else ("-o", target)
        trust = () if gateway.authority is None else ("--cacert", str(gateway.authority))
        url = f"{gateway.endpoint}/{key}"
        return self.command(gateway, "curl", "-sSf", *signed, *body, *trust, *way, url)

    def list_keys(self, gateway: Gateway, name: str, place: str) -> Command:
        if name == "fastsync":
            return self.command(gateway, name, "ls", *self.options, "-R", place)
        if name == "s5cmd":
            return self.command(gateway, name, "ls", f"{place}*")
        if name == "rclone":
            return self.command(gateway, name, "lsf", "-R", "--fast-list", _remote(place))
        return self.command(gateway, name, "s3", "ls", "--recursive", place)

    def sync_tree(self, gateway: Gateway, name: str, source: str, target: str) -> Command:
        if name == "fastsync":
            return self.command(gateway, name, "sync", "-q", *self.options, source, target)
        if name == "s5cmd":
            return self.command(gateway, name, "--log", "error", "sync", source, target)
        if name == "rclone":
            ends = (_remote(source), _remote(target))
            return self.command(gateway, name, "sync", *_RCLONE_MANY, *ends)
        return self.command(gateway, name, "s3", "sync", "--only-show-errors", source, target)

    def race(
        self,
        work: str,
        gateway: Gateway,
        at: Place,
        contenders: Sequence[Contender],
        rounds: int | None = None,
    ) -> S3Result:
        """Run them; the caller fills in how much they did and the goals."""
        place = f"{at.title}, {gateway.name}{', TLS' if gateway.tls else ''}"
        rounds = self.rounds if rounds is None else rounds
        used: dict[str, list[float]] = {}
        measurements = interleave(
            [_watched(contender, gateway, used) for contender in contenders],
            runs=rounds,
            timeout_s=self.timeout_s,
            settle=at.settle,
            say=lambda text: say(f"{work} on {place}: {text}"),
        )
        # The first was the warm-up and the last was for memory.
        timed = {name: seconds[1 : rounds + 1] for name, seconds in used.items()}
        raced = S3Result(Result(work, place, 0, 0, measurements, []), timed)
        self.results.append(raced)
        return raced


def small(bench: Bench, gateway: Gateway, at: Place) -> Iterator[Result]:
    """Many small objects, up into an empty prefix and down into an empty directory."""
    objects = bench.sizes.small_objects
    at.require(3 * objects * (SMALL_SIZE + _INODE), 3 * objects)
    with at.directory("small") as here, _prefix(gateway, "small") as source_prefix:
        source, target, prefix = here / "source", here / "target", gateway.bucket / "up"
        source.mkdir()
        say(f"small: making {objects} objects, twice")
        _make_objects(source, objects, SMALL_SIZE)
        _make_objects(source_prefix, objects, SMALL_SIZE)
        gateway.adopt(source_prefix)
        up = [
            _copying(
                bench.copy_tree(gateway, name, f"{source}/", f"s3://{BUCKET}/up/"),
                source,
                prefix,
            )
            for name in _trees(bench)
        ]
        uploaded = bench.race("small up", gateway, at, up)
        remove(prefix)
        down = [
            _copying(
                bench.copy_tree(gateway, name, f"s3://{BUCKET}/small/", f"{target}/"),
                source,
                target,
                make=True,
            )
            for name in _trees(bench)
        ]
        downloaded = bench.race("small down", gateway, at, down)
    for raced in (uploaded, downloaded):
        raced.result.files, raced.result.size = objects, objects * SMALL_SIZE
        raced.result.goals = [
            _cpu_goal(raced, "s5cmd", 0.6, None),
            _goal("CPU / the best peer's", 1.0, 0.6, _cpu(raced), raced.best_cpu_s()),
            _time_goal(raced, "s5cmd", 1 / 1.2, None),
            _goal("time / the best peer's", 1.0, None, _seconds(raced), raced.best_seconds()),
        ]
        yield raced.result


def big(bench: Bench, gateway: Gateway, at: Place) -> Iterator[Result]:
    """One big object, up and down: as our own tool sends it, with a checksum that every part adds to, and
    as one that has nothing but an MD5, which takes longer to check than to fetch here."""
    size = bench.sizes.big_size
    # A server that assembles parts holds them twice for a moment.
    at.require(4 * size, 100)
    with at.directory("big") as here, _prefix(gateway, "big") as source_prefix:
        source, target, prefix = here / "source", here / "target", gateway.bucket / "up"
        source.mkdir()
        say(f"big: making an object of {size >> 20} MiB")
        make_big_file(source / "big.bin", size)
        raced = []
        up = [
            _copying(
                bench.copy_file(gateway, name, f"{source}/big.bin", f"s3://{BUCKET}/up/big.bin"),
                source,
                prefix,
            )
            for name in bench.tools
        ]
        raced.append(bench.race("big up", gateway, at, up))
        down = [
            _copying(
                bench.copy_file(gateway, name, f"s3://{BUCKET}/big/big.bin", f"{target}/big.bin"),
                source,
                target,
                make=True,
            )
            for name in bench.tools
        ]
        remove(prefix)
        sent = (f"{source}/big.bin", f"s3://{BUCKET}/big/big.bin")
        run(bench.copy_file(gateway, "fastsync", *sent), timeout_s=bench.timeout_s)
        raced.append(bench.race("big down", gateway, at, down))
        (source_prefix / "big.bin").unlink()
        os.link(source / "big.bin", source_prefix / "big.bin")
        gateway.adopt(source_prefix)
        bare = bench.race("big down, MD5", gateway, at, down)
    for one in raced:
        one.result.goals = [
            _time_goal(one, "s5cmd", 1.0, 1 / 1.5),
            _cpu_goal(one, "curl", None, 1.0),
        ]
    for one in (*raced, bare):
        one.result.files, one.result.size = 1, size
        yield one.result


def listing(bench: Bench, gateway: Gateway, at: Place) -> Iterator[Result]:
    """Every key below a prefix."""
    keys = bench.sizes.listed_keys
    at.require(keys * _INODE, 2 * keys)
    with _prefix(gateway, "keys") as prefix:
        say(f"ls: making {keys} keys")
        _make_objects(prefix, keys, 0)
        gateway.adopt(prefix)
        contenders = [
            Contender(bench.list_keys(gateway, name, f"s3://{BUCKET}/keys/"), _nothing, _nothing)
            for name in _trees(bench)
        ]
        raced = bench.race("ls -R", gateway, at, contenders)
    raced.result.files = keys
    raced.result.goals = [_time_goal(raced, "s5cmd", 1 / 2, 1 / 5)]
    yield raced.result


def noop(bench: Bench, gateway: Gateway, at: Place) -> Iterator[Result]:
    """Sync with nothing to do, towards the bucket."""
    objects = bench.sizes.noop_objects
    at.require(2 * objects * _INODE, 3 * objects)
    with at.directory("noop") as here, _prefix(gateway, "noop") as prefix:
        say(f"noop: making {objects} objects, twice")
        for root in (here / "source", prefix):
            _make_objects(root, objects, 8)
        gateway.adopt(prefix)
        before = ""

        def prepare() -> None:
            nonlocal before
            before = fingerprint(prefix)

        def check() -> None:
            if fingerprint(prefix) != before:
                raise WrongResult("objects were sent though there was nothing to do")

        contenders = [
            Contender(
                bench.sync_tree(gateway, name, f"{here / 'source'}/", f"s3://{BUCKET}/noop/"),
                prepare,
                check,
            )
            for name in _trees(bench)
        ]
        raced = bench.race("noop sync", gateway, at, contenders)
    raced.result.files = objects
    raced.result.goals = [
        _time_goal(raced, "s5cmd", 1.0, 0.5),
        _time_goal(raced, "rclone", 1.0, 0.5),
    ]
    yield raced.result


def batch(bench: Bench, gateway: Gateway, at: Place) -> Iterator[Result]:
    """A batch of copies of one small object on each line, within the bucket and up, beside `cp -R`."""
    if "fastsync" not in bench.tools:
        return
    objects = bench.sizes.batch_objects
    at.require(4 * objects * (SMALL_SIZE + _INODE), 4 * objects)
    with at.directory("batch") as here, _prefix(gateway, "batch") as source_prefix:
        source, prefix = here / "source", gateway.bucket / "made"
        for root in (source, source_prefix):
            root.mkdir(exist_ok=True)
            _make_objects(root, objects, SMALL_SIZE)
        gateway.adopt(source_prefix)
        raced = []
        for work, start in (("within", f"s3://{BUCKET}/batch/"), ("up", f"{source}/")):
            lines = here / f"{work}.txt"
            target = f"s3://{BUCKET}/made/"
            names = sorted(_files_below(source))
            lines.write_text("".join(f"cp '{start}{name}' '{target}{name}'\n" for name in names))
            tree = bench.copy_tree(gateway, "fastsync", start, target)
            commands = [
                bench.command(gateway, "fastsync", "run", "-q", *bench.options, lines),
                Command("fastsync cp -R", tree.argv, tree.environment),
            ]
            if "s5cmd" in bench.tools:
                commands.append(bench.command(gateway, "s5cmd", "--log", "error", "run", lines))
            contenders = [_copying(command, source, prefix) for command in commands]
            raced.append(bench.race(f"batch {work}", gateway, at, contenders))
            remove(prefix)
    for one in raced:
        one.result.files, one.result.size = objects, objects * SMALL_SIZE
        one.result.goals = [
            _cpu_goal(one, "s5cmd", 0.5, None),
            _time_goal(one, "fastsync cp -R", 1 / 0.8, 1.0),
        ]
        yield one.result


def memory(bench: Bench, gateway: Gateway, at: Place) -> Iterator[Result]:
    """Memory with the profile low_memory: an object up and down, then a long listing; one round each."""
    if "fastsync" not in bench.tools:
        return
    size, keys = bench.sizes.memory_size, bench.sizes.memory_keys
    low = ("-q", "--profile", "low_memory", *bench.options)
    raced = []
    at.require(2 * size, 100)
    with at.directory("memory") as here, _prefix(gateway, "memory") as prefix:
        source, target = here / "source", here / "target"
        source.mkdir()
        with (source / "hollow.bin").open("wb") as file:
            file.truncate(size)
        up = bench.command(
            gateway, "fastsync", "cp", *low, source / "hollow.bin", f"s3://{BUCKET}/memory/hollow"
        )
        raced.append(bench.race("memory up", gateway, at, [_clearing(up, prefix)], rounds=1))
        remove(prefix)
        prefix.mkdir()
        os.link(source / "hollow.bin", prefix / "hollow")
        gateway.adopt(prefix)
        down = bench.command(
            gateway, "fastsync", "cp", *low, f"s3://{BUCKET}/memory/hollow", f"{target}/hollow"
        )
        raced.append(bench.race("memory down", gateway, at, [_clearing(down, target)], rounds=1))
        for one in raced:
            one.result.files, one.result.size = 1, size
    at.require(keys * _INODE, 2 * keys)
    with at.directory("memory") as here, _prefix(gateway, "keys") as prefix:
        say(f"memory: making {keys} keys")
        _make_objects(prefix, keys, 0)
        gateway.adopt(prefix)
        listed = bench.command(
            gateway, "fastsync", "sync", "--dry-run", *low, f"s3://{BUCKET}/keys/", here / "target"
        )
        contender = Contender(listed, _nothing, _nothing)
        raced.append(bench.race("memory keys", gateway, at, [contender], rounds=1))
        raced[-1].result.files = keys
    for one in raced:
        ours = one.result.measurement("fastsync")
        rss = ours.tree_rss if ours else None
        one.result.goals = [
            Goal("peak RSS, whole tree", "MB", 150, 100, None if rss is None else rss / 1e6)
        ]
        yield one.result


# -- trees ------------------------------------------------------------------------------------------------


def _make_objects(root: Path, objects: int, size: int) -> None:
    """Objects of one size, a multiple of eight, each with other contents."""
    for index in range(objects):
        directory = root / f"d{index // _FILES_PER_DIRECTORY:05}"
        if index % _FILES_PER_DIRECTORY == 0:
            directory.mkdir(parents=True)
        path = directory / f"object-{index:07}"
        path.write_bytes(index.to_bytes(8, "big") * (size // 8))
        os.utime(path, (_MTIME_S, _MTIME_S))


@contextmanager
def _prefix(gateway: Gateway, name: str) -> Iterator[Path]:
    """A folder of the bucket, removed at the end with all that came to lie beside it."""
    path = gateway.bucket / name
    path.mkdir()
    try:
        yield path
    finally:
        for beside in gateway.bucket.iterdir():
            remove(beside)


def _check_same(source: Path, target: Path) -> None:
    ours, theirs = _files_below(source), _files_below(target)
    if ours != theirs:
        odd = sorted(ours ^ theirs)
        raise WrongResult(f"{len(odd)} names are on one side only, as {odd[0]!r}")
    filecmp.clear_cache()
    for name in ours:
        if not filecmp.cmp(source / name, target / name, shallow=False):
            raise WrongResult(f"{name!r} has other contents")


def _files_below(root: Path) -> set[str]:
    return {
        os.path.relpath(os.path.join(directory, name), root)
        for directory, _directories, files in os.walk(root)
        for name in files
    }


# -- contenders -------------------------------------------------------------------------------------------


def _trees(bench: Bench) -> list[str]:
    """The tools that know of trees."""
    return [name for name in bench.tools if name != "curl"]


def _copying(command: Command, source: Path, target: Path, *, make: bool = False) -> Contender:
    def prepare() -> None:
        remove(target)
        if make:
            target.mkdir()

    def check() -> None:
        _check_same(source, target)

    return Contender(command, prepare, check)


def _clearing(command: Command, target: Path) -> Contender:
    """For what is so large that its size has to do as a check."""

    def prepare() -> None:
        remove(target)
        target.mkdir()

    def check() -> None:
        if not any(path.stat().st_size for path in target.iterdir()):
            raise WrongResult("nothing was copied")

    return Contender(command, prepare, check)


def _watched(contender: Contender, gateway: Gateway, used: dict[str, list[float]]) -> Contender:
    """The same, with the server's CPU seconds of each run noted."""
    before = 0.0

    def prepare() -> None:
        nonlocal before
        contender.prepare()
        before = gateway.cpu_s()

    def check() -> None:
        used.setdefault(contender.command.name, []).append(gateway.cpu_s() - before)
        contender.check()

    return Contender(contender.command, prepare, check)


def _remote(place: str) -> str:
    return place.replace("s3://", "place:", 1) if place.startswith("s3://") else place


# -- goals ------------------------------------------------------------------------------------------------


def _cpu(raced: S3Result) -> float | None:
    ours = raced.result.measurement("fastsync")
    return ours.cpu_s if ours else None


def _seconds(raced: S3Result) -> float | None:
    ours = raced.result.measurement("fastsync")
    return ours.seconds if ours else None


def _cpu_goal(raced: S3Result, peer: str, must: float | None, aim: float | None) -> Goal:
    theirs = raced.result.measurement(peer)
    return _goal(f"CPU / {peer}'s", must, aim, _cpu(raced), theirs.cpu_s if theirs else None)


def _time_goal(raced: S3Result, peer: str, must: float | None, aim: float | None) -> Goal:
    theirs = raced.result.measurement(peer)
    seconds = theirs.seconds if theirs else None
    return _goal(f"time / {peer}'s", must, aim, _seconds(raced), seconds)


def _goal(
    subject: str, must: float | None, aim: float | None, ours: float | None, theirs: float | None
) -> Goal:
    ratio = ours / theirs if ours is not None and theirs else None
    return Goal(subject, "x", must, aim, ratio)


def _least(
    measurements: Sequence[Measurement], figure: Callable[[Measurement], float]
) -> float | None:
    return min(map(figure, measurements), default=None)


def _nothing() -> None:
    pass
