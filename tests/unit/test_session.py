"""What a place is told: flags, tables of the file, and the side it is on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

import fastsync
from fastsync.backend import Limits, StoreOptions
from fastsync.config import resolve, state_folder
from fastsync.errors import Conflict, UsageError
from fastsync.location import Location, parse
from fastsync.session import Request, Session
from fastsync.settings import Settings, Side
from fastsync.testing import BareMemoryBackend, MemoryBackend
from fastsync.testing.memory import BareMemoryStore
from tests.unit.test_removal import Watcher

pytestmark = pytest.mark.usefixtures("memory_stores")

FILE = """
[global]
aws_profile = "everybody"
region = "global"
[profiles.p]
no_sign_request = true
[places."s3://a/"]
region = "table-a"
endpoint_url = "https://a"
[places."s3://b/"]
region = "table-b"
"""


def told(tmp_path: Path, place: str, side: Side = "source", **flags: object) -> Mapping[str, str]:
    file = tmp_path / "config.toml"
    file.write_text(FILE)
    file.chmod(0o600)
    found = resolve(flags, config_file=file, environ={"FASTSYNC_REQUEST_PAYER": "requester"})
    return found.place_settings(parse(place), side)


def test_a_flag_counts_before_the_table_and_the_table_before_the_rest(tmp_path: Path) -> None:
    everybody = {"aws_profile": "everybody", "request_payer": "requester"}
    assert told(tmp_path, "s3://a/x") == {
        **everybody,
        "region": "table-a",
        "endpoint_url": "https://a",
    }
    assert told(tmp_path, "s3://c/x") == {**everybody, "region": "global"}
    assert told(tmp_path, "s3://a/x", region="flag")["region"] == "flag"


def test_one_side_counts_before_both(tmp_path: Path) -> None:
    flags = {"region": "both", "source_region": "one"}
    assert told(tmp_path, "s3://a/x", "source", **flags)["region"] == "one"
    assert told(tmp_path, "s3://a/x", "destination", **flags)["region"] == "both"
    assert told(tmp_path, "s3://b/", "destination", destination_region="x")["region"] == "x"
    assert told(tmp_path, "s3://b/", "source", destination_region="x")["region"] == "table-b"


def test_what_is_for_one_side_alone(tmp_path: Path) -> None:
    flags = {"version_id": "v", "storage_class": "GLACIER", "accept_new_host_key": True}
    source, sink = (told(tmp_path, "s3://c/", side, **flags) for side in ("source", "destination"))
    assert source["version_id"] == "v"
    assert "storage_class" not in source
    assert sink["storage_class"] == "GLACIER"
    assert "version_id" not in sink
    assert source["accept_new_host_key"] == sink["accept_new_host_key"] == "true"


def test_switches_that_nobody_touched_are_not_told() -> None:
    assert resolve({}, environ={"HOME": "/nowhere"}).place_settings(parse("s3://a")) == {}


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"sse": "aes256"}, None),
        ({"sse": "rot13"}, "one of"),
        ({"metadata": "a=1\nb=x=y"}, None),
        ({"metadata": "nonsense"}, "key=value"),
        ({"metadata": "=x"}, "key=value"),
        ({"metadata": "a=b\rc"}, "key=value"),
        ({"request_payer": "me"}, "requester"),
        ({"region": ""}, "empty"),
    ],
)
def test_values_are_checked(options: Mapping[str, object], wrong: str | None) -> None:
    if wrong is None:
        assert resolve(options, environ={"HOME": "/nowhere"}).given == set(options)
        return
    with pytest.raises(UsageError, match=wrong):
        resolve(options, environ={"HOME": "/nowhere"})


class TellingBackend(BareMemoryBackend):
    """Remembers what it was told."""

    told: ClassVar[list[tuple[str, StoreOptions]]] = []

    async def connect(self, location: Location, options: StoreOptions) -> BareMemoryStore:
        self.told.append((str(location), options))
        options.place.get("region")
        return await super().connect(location, options)


@pytest.fixture
def telling(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, StoreOptions]]:
    monkeypatch.setattr("fastsync.testing.BareMemoryBackend", TellingBackend)
    monkeypatch.setattr(TellingBackend, "told", [])
    BareMemoryBackend.box("b").put("f", b"content")
    return TellingBackend.told


def test_each_side_hears_its_own(telling: list[tuple[str, StoreOptions]]) -> None:
    fastsync.cp(
        "bucket://b/f",
        "bucket://b/to/g",
        source_region="here",
        destination_region="there",
        tcp_send_buffer="1M",
        congestion_control="bbr",
        retry_count=9,
    )
    regions = {place: options.place["region"] for place, options in telling}
    assert regions == {
        "bucket://b/f": "here",
        "bucket://b/": "here",
        "bucket://b/to/g": "there",
        "bucket://b/to/": "there",
    }
    for _, options in telling:
        assert (options.tcp_send_buffer, options.congestion_control) == (1 << 20, "bbr")
        assert (options.state_folder, options.retries) == (None, 9)
        assert "here" not in repr(options)  # some values are secrets


@pytest.mark.parametrize(("verbose", "notes"), [(0, []), (1, ["--acl"])])
def test_what_no_place_looks_at_is_worth_a_note(
    telling: list[tuple[str, StoreOptions]], verbose: int, notes: list[str]
) -> None:
    watcher = Watcher()
    options: dict[str, Any] = {"verbose": verbose, "region": "x", "acl": "private"}
    fastsync.cp("bucket://b/f", "bucket://b/g", observer=watcher, **options)
    assert [note.rpartition(" ")[2] for note in watcher.notes] == notes


def test_where_state_is_kept() -> None:
    assert state_folder({"HOME": "/home/me"}) == "/home/me/.local/state/fastsync"
    assert state_folder({"HOME": "/h", "XDG_STATE_HOME": "/x"}) == "/x/fastsync"
    assert state_folder({"HOME": "/h", "XDG_STATE_HOME": "relative"}) == "/h/.local/state/fastsync"
    assert state_folder({"HOME": "/h", "FASTSYNC_STATE": "/s"}) == "/s"


# -- guarded writes ----------------------------------------------------------------------------------


def test_conflicts_can_be_failures_only_where_they_can_be_seen() -> None:
    box = BareMemoryBackend.box("b")
    box.put("f", b"content")
    with pytest.raises(UsageError, match="fail-on-conflict"):
        fastsync.cp("bucket://b/f", "mem://m/", fail_on_conflict=True)
    with pytest.raises(UsageError, match="fail-on-conflict"):
        fastsync.sync("bucket://b/", "mem://m/", fail_on_conflict=True)
    assert not MemoryBackend.box("m").files()
    BareMemoryBackend.box("to").limits = Limits(conditional_writes=True)
    assert fastsync.cp("bucket://b/f", "bucket://to/", fail_on_conflict=True).exit_code == 0


@pytest.mark.parametrize(("conditional", "guarded"), [(True, True), (False, False)])
async def test_what_exists_is_guarded_by_the_store_where_it_can(
    conditional: bool, guarded: bool
) -> None:
    from fastsync.works import write_options

    BareMemoryBackend.box("to").limits = Limits(conditional_writes=conditional)
    async with Session(Request()) as session:
        sink = await session.open_sink(parse("bucket://to/"))
        assert write_options(Settings(ignore_existing=True), sink).guarded is guarded
        assert write_options(Settings(), sink).guarded is False


# -- directories, buckets, links ---------------------------------------------------------------------


def test_directories_are_made(tmp_path: Path) -> None:
    fastsync.mkdir([f"{tmp_path}/a/b/c", "mem://m/x/y"])
    assert (tmp_path / "a/b/c").is_dir()
    assert fastsync.stat("mem://m/x/y").kind == "dir"
    fastsync.mkdir(f"{tmp_path}/a")  # one that is there is fine
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Conflict):
        fastsync.mkdir(f"{tmp_path}/file")
    with pytest.raises(UsageError, match="something in them"):
        fastsync.mkdir("bucket://b/dir/")


class CreatingStore(BareMemoryStore):
    created: ClassVar[list[str]] = []

    async def create_place(self) -> None:
        if self.location.host in self.created:
            raise Conflict("it exists", where=str(self.location))
        self.created.append(self.location.host)

    async def presign(self, path: str, expires_s: int, method: str = "GET") -> str:
        return f"https://{self.location.host}/{path}?{method}&{expires_s}"


def test_places_are_created_and_links_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BareMemoryBackend, "_store", CreatingStore)
    monkeypatch.setattr(CreatingStore, "created", [])
    fastsync.mkdir(["bucket://new", "bucket://new/"])  # ours already is fine
    assert CreatingStore.created == ["new"]
    assert fastsync.presign("bucket://b/dir/f") == "https://b/f?GET&10800"
    assert fastsync.presign("bucket://b/f", expires_in=60, method="PUT") == "https://b/f?PUT&60"
    with pytest.raises(UsageError):
        fastsync.presign("bucket://b/dir/")
    with pytest.raises(UsageError, match="signed"):
        fastsync.presign("mem://b/f")


class Slow(BareMemoryStore):
    """Closing it takes some turns of the loop, and may fail."""

    closed: ClassVar[list[str]] = []

    async def aclose(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        self.closed.append(self.location.host)
        if self.location.host == "bad":
            raise Conflict("it does not close")


async def open_and_close(*places: str) -> None:
    async with Session(Request()) as session:
        for place in places:
            await session.open(parse(place))


@pytest.mark.parametrize("turns", range(8))
async def test_all_is_closed_though_the_run_is_cancelled_meanwhile(
    turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryBackend, "_store", Slow)
    monkeypatch.setattr(Slow, "closed", [])

    task = asyncio.create_task(open_and_close("mem://one", "mem://two"))
    await asyncio.sleep(0)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert Slow.closed == ["one", "two"]


async def test_one_that_does_not_close_keeps_no_other_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MemoryBackend, "_store", Slow)
    monkeypatch.setattr(Slow, "closed", [])
    with pytest.raises(Conflict):
        await open_and_close("mem://bad", "mem://two")
    assert Slow.closed == ["bad", "two"]
