"""Networks in trouble, between us and honest servers of three protocols: whatever happens to a few
connections, the copy is right or nothing is, and it takes a bounded number of attempts."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fault_proxy import FaultProxy, Trouble
from hostile_s3 import HostileS3
from sshd import Sshd, running_sshd
from web import WebServer, running_nginx

from fastsync.copying import run_cp, run_sync
from fastsync.session import Request
from fastsync.settings import Settings
from fastsync.tally import Summary
from fastsync.testing.vocabulary import noise

MIB = 1 << 20
CONTENT = noise(3 * MIB + 11)
SMALL = {f"small/{number}": noise(2000 + number) for number in range(12)}


@dataclass
class Rig:
    """A server behind a proxy. `files` and `there` are the folder or bucket that the copies use."""

    proxy: FaultProxy
    url: str
    place: dict[str, str]
    put: Callable[[str, bytes], object]
    get: Callable[[str], bytes]
    handshake: int = 0  # bytes in each direction before there is a session

    def request(self, **settings: int) -> Request:
        defaults = {
            "chunk_size": 5 * MIB if self.url.startswith("s3") else MIB,
            "parallel_streams": 3,
        }
        patience = {
            "retry_count": 5,
            "stall_timeout": 2 if self.handshake else 1,
            "request_timeout": 3,
        }
        return Request(
            Settings(**{**defaults, **patience, "small_file_threshold": 64 << 10, **settings}),  # type: ignore[arg-type]
            place_settings=lambda location, _side: {} if location.scheme == "file" else self.place,
        )


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    with running_nginx(tmp_path_factory.mktemp("nginx")) as server:
        yield server


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def over_s3(hostile_s3: HostileS3) -> Iterator[Rig]:
    hostile_s3.make_bucket("bucket")
    server = hostile_s3.server
    with FaultProxy(server.port) as proxy:
        place = {
            "endpoint_url": f"http://127.0.0.1:{proxy.port}",
            "access_key_id": server.access_key,
            "secret_access_key": server.secret_key,
            "region": "us-east-1",
        }
        yield Rig(
            proxy, "s3://bucket/", place,
            put=lambda name, data: hostile_s3.put("bucket", name, data),
            get=lambda name: hostile_s3.data("bucket", name),
        )  # fmt: skip


@pytest.fixture
def over_http(nginx: WebServer) -> Iterator[Rig]:
    with FaultProxy(int(nginx.url.rpartition(":")[2])) as proxy:

        def put(name: str, data: bytes) -> None:
            (nginx.root / name).parent.mkdir(parents=True, exist_ok=True)
            (nginx.root / name).write_bytes(data)

        url = f"http://127.0.0.1:{proxy.port}/"
        yield Rig(proxy, url, {}, put, lambda name: (nginx.root / name).read_bytes())


@pytest.fixture
def over_sftp(sshd: Sshd, tmp_path: Path) -> Iterator[Rig]:
    root = tmp_path / "server"
    root.mkdir()
    with FaultProxy(sshd.port) as proxy:
        known = tmp_path / "known_hosts"
        known.write_text(sshd.known_hosts.read_text().replace(f":{sshd.port}", f":{proxy.port}"))

        def put(name: str, data: bytes) -> None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)

        url = f"sftp://{sshd.user}@127.0.0.1:{proxy.port}{root}/"
        place = {**sshd.place, "known_hosts": str(known)}
        yield Rig(proxy, url, place, put, lambda name: (root / name).read_bytes(), handshake=6000)


@pytest.fixture(params=["over_s3", "over_http", "over_sftp"])
def rig(request: pytest.FixtureRequest) -> Rig:
    made: Rig = request.getfixturevalue(request.param)
    return made


@pytest.fixture(params=["over_s3", "over_sftp"])
def writable(request: pytest.FixtureRequest) -> Rig:
    made: Rig = request.getfixturevalue(request.param)
    return made


AT = random.Random(7)
# Where: in the first answer, and in the middle of the bytes.
PLACES = [AT.randrange(1, 4000), AT.randrange(4000, 2 * MIB)]
TROUBLES = {
    "reset": lambda at: Trouble(cut_after=at, reset=True),
    "end": lambda at: Trouble(cut_after=at),
    "stall": lambda at: Trouble(stall_after=at),
    "half close": lambda at: Trouble(half_close_after=at),
}


def check(summary: Summary, rig: Rig, debris: list[Path]) -> None:
    assert (summary.exit_code, summary.failures) == (0, [])
    assert debris == []
    assert rig.proxy.connections < 40


@pytest.mark.parametrize("kind", TROUBLES)
@pytest.mark.parametrize("at", PLACES)
async def test_downloads(
    rig: Rig, tmp_path: Path, debris: Callable[[Path], list[Path]], kind: str, at: int
) -> None:
    """The first connections fail; what they brought is not fetched into the wrong place."""
    rig.put("file", CONTENT)
    where = (at,) if kind == "stall" else (at, at // 2 + 1)  # a stall takes its time
    rig.proxy.next(*[TROUBLES[kind](rig.handshake + one) for one in where])
    summary = await run_cp(f"{rig.url}file", str(tmp_path / "copy"), rig.request())
    check(summary, rig, debris(tmp_path))
    assert (tmp_path / "copy").read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["reset", "end", "stall"])
@pytest.mark.parametrize("at", PLACES)
async def test_uploads(
    writable: Rig, tmp_path: Path, debris: Callable[[Path], list[Path]], kind: str, at: int
) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    made = TROUBLES[kind](writable.handshake + at)
    upwards = Trouble(**{**vars(made), "upwards": True})
    writable.proxy.next(upwards, *[upwards] * (kind != "stall"))
    summary = await run_cp(str(tmp_path / "file"), f"{writable.url}file", writable.request())
    check(summary, writable, debris(tmp_path))
    assert writable.get("file") == CONTENT


@pytest.mark.parametrize("after", [1, 5000])
async def test_lost_replies(writable: Rig, tmp_path: Path, after: int) -> None:
    """The server did it, and nobody said so: it is not done twice into something else."""
    for name, data in SMALL.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    after += writable.handshake
    writable.proxy.next(*[Trouble(lose_reply_after=after, reset=True)] * 3)
    summary = await run_sync(str(tmp_path / "small"), f"{writable.url}small/", writable.request())
    check(summary, writable, [])
    assert {name: writable.get(name) for name in SMALL} == SMALL


@pytest.mark.parametrize("kind", ["reset", "stall"])
async def test_many_small_files(
    over_s3: Rig, tmp_path: Path, debris: Callable[[Path], list[Path]], kind: str
) -> None:
    for name, data in SMALL.items():
        over_s3.put(name, data)
    over_s3.proxy.next(*[TROUBLES[kind](at) for at in (100, 3000, 5000)])
    summary = await run_sync(f"{over_s3.url}small/", str(tmp_path / "small"), over_s3.request())
    check(summary, over_s3, debris(tmp_path))
    for name, data in SMALL.items():
        assert (tmp_path / name).read_bytes() == data


async def test_slices_and_a_slow_line(rig: Rig, tmp_path: Path) -> None:
    """Slow is not stalled, and what comes in pieces comes whole."""
    rig.put("file", CONTENT[:200_000])
    rig.proxy.always(Trouble(slice=700, rate=600_000))
    summary = await run_cp(f"{rig.url}file", str(tmp_path / "copy"), rig.request())
    assert (summary.exit_code, summary.failures) == (0, [])
    assert (tmp_path / "copy").read_bytes() == CONTENT[:200_000]


@pytest.mark.parametrize(
    "trouble", [Trouble(refuse=True, reset=True), Trouble(stall_after=1)], ids=str
)
async def test_for_ever(
    rig: Rig, tmp_path: Path, debris: Callable[[Path], list[Path]], trouble: Trouble
) -> None:
    """It ends, with the old file in its place, after no more attempts than were granted."""
    rig.put("file", CONTENT)
    (tmp_path / "copy").write_text("the old one")
    rig.proxy.always(trouble)
    begun = time.monotonic()
    try:
        summary = await run_cp(
            f"{rig.url}file", str(tmp_path / "copy"), rig.request(retry_count=2, request_timeout=1)
        )
        assert summary.exit_code != 0
    except Exception as error:  # the place cannot even be opened
        assert getattr(error, "exit_code", 0) != 0  # noqa: PT017
    assert time.monotonic() - begun < 25
    assert rig.proxy.connections <= 20
    assert (tmp_path / "copy").read_text() == "the old one"
    assert debris(tmp_path) == []


BORDER = 4 << 10
BORDERED = noise(3 * BORDER + 11)
WAYS = [
    Trouble(reset=True),
    Trouble(),
    Trouble(half_close_after=0),
    Trouble(lose_reply_after=0),
]


def at(way: Trouble, offset: int, *, upwards: bool) -> Trouble:
    """That trouble after so many bytes."""
    if way.lose_reply_after is not None and upwards:
        return replace(way, lose_reply_after=offset)
    if way.half_close_after is not None and not upwards:
        return replace(way, half_close_after=offset)
    return Trouble(cut_after=offset, reset=way.reset, upwards=upwards)


def borders(recorded: bytes) -> list[int]:
    """Where heads and parts of BORDERED begin and end in what went over a line, and a byte on either side."""
    found = set()
    for start in range(0, len(BORDERED), BORDER):
        piece = BORDERED[start : start + BORDER]
        if (begin := recorded.find(piece)) >= 0:
            found |= {begin, begin + len(piece)}
    places = {place + off for place in found for off in (-1, 0, 1)} | {1}
    return sorted(place for place in places if 0 < place < len(recorded))


@pytest.mark.parametrize(
    ("over", "upwards"), [("over_s3", False), ("over_s3", True), ("over_http", False)]
)
async def test_at_each_border(
    request: pytest.FixtureRequest, tmp_path: Path, debris: Callable[[Path], list[Path]], over: str,
    upwards: bool,
) -> None:  # fmt: skip
    """Whatever the last byte was: of a head, of a part, of the file, or the one before or after."""
    rig: Rig = request.getfixturevalue(over)
    rig.put("file", BORDERED)
    (tmp_path / "file").write_bytes(BORDERED)
    # Nothing stalls here.
    patient = {"stall_timeout": 20, "request_timeout": 20, "small_file_threshold": 0}
    more = {"chunk_size": 5 << 20 if upwards else BORDER, "parallel_streams": 1, **patient}

    async def run(name: str) -> None:
        asking = rig.request(**more)
        if upwards:
            summary = await run_cp(str(tmp_path / "file"), f"{rig.url}{name}", asking)
        else:
            summary = await run_cp(f"{rig.url}file", str(tmp_path / name), asking)
        assert (summary.exit_code, summary.failures) == (0, [])
        assert (rig.get(name) if upwards else (tmp_path / name).read_bytes()) == BORDERED

    rig.proxy.record()
    await run("honest")
    assert rig.proxy.recorded is not None
    recorded = bytes(rig.proxy.recorded[upwards])
    for number, offset in enumerate(places := borders(recorded)):
        before = rig.proxy.connections
        rig.proxy.next(at(WAYS[number % len(WAYS)], offset, upwards=upwards))
        await run(f"copy{number}")
        assert rig.proxy.connections - before < 8
    assert len(places) > 6
    assert rig.proxy.troubled == len(places)
    assert debris(tmp_path) == []


async def test_a_byte_at_a_time(rig: Rig, tmp_path: Path) -> None:
    rig.put("file", BORDERED[: BORDER + 1])
    rig.proxy.always(Trouble(slice=1))
    patient = {"stall_timeout": 20, "request_timeout": 20}
    asking = rig.request(chunk_size=BORDER, small_file_threshold=0, **patient)
    summary = await run_cp(f"{rig.url}file", str(tmp_path / "copy"), asking)
    assert (summary.exit_code, summary.failures) == (0, [])
    assert (tmp_path / "copy").read_bytes() == BORDERED[: BORDER + 1]
