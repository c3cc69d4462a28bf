"""What web servers do to a download: wrong ranges, other versions, bodies without end or cut short,
redirects that lead astray, pages that lie."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from web import Answer, Asked, Script, ScriptedServer, serve_bytes

from fastsync.backend import ScanOptions, StoreOptions
from fastsync.copying import run_cp, run_sync
from fastsync.errors import (
    Changed,
    FastsyncError,
    IntegrityError,
    ListingError,
    NameRefused,
    NotFound,
    PermissionRefused,
    Throttled,
)
from fastsync.location import parse
from fastsync.session import Request
from fastsync.settings import Settings
from fastsync.tally import Summary
from fastsync.testing.vocabulary import collect, listing_and_faults, noise
from fastsync_http.backend import HttpBackend
from fastsync_http.client import Client
from fastsync_http.store import HttpStore

PART = 64 << 10
CONTENT = noise(5 * PART + 7)
DATED = "Tue, 14 Nov 2023 22:13:20 GMT"


async def cp(url: str, target: Path, *, place: dict[str, str] | None = None) -> Summary:
    settings = Settings(
        chunk_size=PART, small_file_threshold=0, retry_count=3, stall_timeout=1, request_timeout=1
    )
    request = Request(settings, place_settings=lambda _location, _side: place or {})
    return await run_cp(url, str(target), request)


async def download(script: Script, tmp_path: Path) -> tuple[Summary, ScriptedServer]:
    async with ScriptedServer(script) as server:
        return await cp(f"{server.url}/file", tmp_path / "file"), server


def failure(summary: Summary) -> FastsyncError:
    (failed,) = summary.failures
    assert failed.error is not None
    return failed.error


def changing(
    script: Callable[[Asked], Answer],
    when: Callable[[Asked], bool],
    answer: Callable[[Answer], Answer],
) -> Script:
    """`script`, but what it answers `when` is made worse."""

    def changed(asked: Asked) -> Answer:
        made = script(asked)
        return answer(made) if when(asked) else made

    return changed


def is_part(asked: Asked) -> bool:
    return asked.headers.get("range", "bytes=0-0") != "bytes=0-0"


# -- ranges ------------------------------------------------------------------------------------------------


async def test_parts_are_asked_for_by_their_version(tmp_path: Path) -> None:
    """Every range but the first look is bound to the strong ETag that the look told."""
    summary, server = await download(serve_bytes(CONTENT), tmp_path)
    assert summary.exit_code == 0
    assert (tmp_path / "file").read_bytes() == CONTENT
    parts = [asked for asked in server.asked if is_part(asked)]
    assert len(parts) == 6
    assert {asked.headers.get("if-range") for asked in parts} == {'"one"'}
    assert {asked.headers.get("accept-encoding") for asked in server.asked} == {"identity"}


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ({"ETag": 'W/"one"'}, "a weak ETag"),
        ({"ETag": "", "Last-Modified": ""}, "no version at all"),
        ({"ETag": "", "Last-Modified": "soon"}, "a date that is none"),
    ],
)
async def test_what_cannot_be_told_apart_is_not_put_together(
    tmp_path: Path, headers: dict[str, str], why: str
) -> None:
    summary, server = await download(serve_bytes(CONTENT, headers), tmp_path)
    assert summary.exit_code == 0
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert not any(map(is_part, server.asked)), why


async def test_a_date_is_enough(tmp_path: Path) -> None:
    summary, server = await download(serve_bytes(CONTENT, {"ETag": ""}), tmp_path)
    assert summary.exit_code == 0
    parts = [asked for asked in server.asked if is_part(asked)]
    assert {asked.headers.get("if-range") for asked in parts} == {DATED}


async def test_no_ranges_is_one_request(tmp_path: Path) -> None:
    def script(_asked: Asked) -> Answer:
        return Answer(200, {"ETag": '"one"'}, CONTENT)

    summary, server = await download(script, tmp_path)
    assert summary.exit_code == 0
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert len(server.asked) == 2


async def test_ranges_that_stop_being_ranges(tmp_path: Path) -> None:
    """200 to a range: the file is read again, in one piece."""
    whole = Answer(200, {"ETag": '"one"', "Last-Modified": DATED}, CONTENT)
    script = changing(serve_bytes(CONTENT), is_part, lambda _made: whole)
    summary, _ = await download(script, tmp_path)
    assert summary.exit_code == 0
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ("bytes 0-65535/327687", IntegrityError),  # another place
        ("bytes 65536-131070/327687", IntegrityError),  # shorter
        ("bytes 65536-131071/*", None),  # the whole size need not be told
        ("bytes 65536-131071/999999", Changed),
        ("bytes 131071-65536/327687", IntegrityError),
        ("nonsense", IntegrityError),
        ("", IntegrityError),
    ],
)
async def test_wrong_ranges(tmp_path: Path, told: str, kind: type[FastsyncError] | None) -> None:
    def is_second(asked: Asked) -> bool:
        return asked.headers.get("range") == "bytes=65536-131071"

    def wrong(made: Answer) -> Answer:
        made.headers["Content-Range"] = told
        return made

    summary, _ = await download(changing(serve_bytes(CONTENT), is_second, wrong), tmp_path)
    if kind is None or kind is Changed:
        # A change is looked at again, and then read in one piece.
        assert (tmp_path / "file").read_bytes() == CONTENT
    else:
        assert isinstance(failure(summary), kind)
        assert list(tmp_path.iterdir()) == []


async def test_mirrors_that_differ(tmp_path: Path) -> None:
    """Every other answer has another ETag: what agrees with itself is read in one piece."""
    turns = 0

    def script(asked: Asked) -> Answer:
        nonlocal turns
        turns += 1
        return serve_bytes(CONTENT, {"ETag": f'"mirror-{turns % 2}"'})(asked)

    summary, _ = await download(script, tmp_path)
    assert summary.exit_code == 0
    assert (tmp_path / "file").read_bytes() == CONTENT


async def test_mirrors_of_another_date_differ(tmp_path: Path) -> None:
    """An ETag may be the server's own; a date is of the content, and what is listed is what is copied."""
    turns = 0

    def script(asked: Asked) -> Answer:
        nonlocal turns
        turns += 1
        told = {"ETag": f'"{turns}"', "Last-Modified": f"Tue, 14 Nov 2023 22:13:2{turns % 10} GMT"}
        return serve_bytes(CONTENT, told)(asked)

    summary, _ = await download(script, tmp_path)
    assert isinstance(failure(summary), Changed)
    assert list(tmp_path.iterdir()) == []


async def test_a_change_half_way(tmp_path: Path) -> None:
    """Another version with another ETag: what is there is that version, whole."""
    new = noise(5 * PART + 7, seed=2)
    count = 0

    def script(asked: Asked) -> Answer:
        nonlocal count
        count += is_part(asked)
        return (serve_bytes(CONTENT) if count < 3 else serve_bytes(new, {"ETag": '"two"'}))(asked)

    summary, _ = await download(script, tmp_path)
    assert summary.exit_code == 0
    assert (tmp_path / "file").read_bytes() == new


# -- bodies ------------------------------------------------------------------------------------------------


async def test_a_part_that_is_cut_goes_on_where_it_was(tmp_path: Path) -> None:
    cut: list[str] = []

    def script(asked: Asked) -> Answer:
        made = serve_bytes(CONTENT)(asked)
        if is_part(asked) and not cut:
            cut.append(asked.headers["range"])
            made.headers["Content-Length"] = str(len(made.body))
            made.body, made.cuts = made.body[:30_000], True
        return made

    summary, server = await download(script, tmp_path)
    assert summary.exit_code == 0
    assert (tmp_path / "file").read_bytes() == CONTENT
    start, _, last = cut[0].removeprefix("bytes=").partition("-")
    assert f"bytes={int(start) + 30_000}-{last}" in [
        asked.headers.get("range") for asked in server.asked
    ]


@pytest.mark.parametrize(("after", "is_enough"), [(1 << 20, True), (1000, False)])
async def test_a_server_that_ends_every_connection(
    tmp_path: Path, after: int, is_enough: bool
) -> None:
    """A part that gets on has not used up its tries; one that hardly does has."""
    content = noise(9 << 20)

    def script(asked: Asked) -> Answer:
        made = serve_bytes(content)(asked)
        if len(made.body) > after:
            made.headers["Content-Length"] = str(len(made.body))
            made.body, made.cuts = made.body[:after], True
        return made

    async with ScriptedServer(script) as server:
        settings = Settings(chunk_size=5 << 20, small_file_threshold=0, retry_count=1, resume=False)
        summary = await run_cp(f"{server.url}/file", str(tmp_path / "file"), Request(settings))
    if is_enough:
        assert summary.exit_code == 0
        assert (tmp_path / "file").read_bytes() == content
    else:
        assert summary.exit_code == 1
        assert list(tmp_path.iterdir()) == []


async def test_a_body_that_stops(tmp_path: Path) -> None:
    """No byte, no end: another connection, after the time for that."""
    stalled: list[str] = []

    async def script(asked: Asked) -> Answer:
        made = serve_bytes(CONTENT)(asked)
        if is_part(asked) and not stalled:
            stalled.append(asked.path)
            made.headers["Content-Length"] = str(len(made.body))
            made.pieces, made.body, made.pause_s = [b""], made.body[:1000], 3
        return made

    started = time.monotonic()
    summary, _ = await download(script, tmp_path)
    assert summary.exit_code == 0
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("more", [b"!", b"!" * 1_000_000])
async def test_more_than_announced(tmp_path: Path, more: bytes) -> None:
    """A body of chunks is longer than the file was said to be."""

    def script(asked: Asked) -> Answer:
        headers = {"ETag": '"one"', "Transfer-Encoding": "chunked"}
        if asked.headers.get("range") == "bytes=0-0":
            return Answer(200, {"ETag": '"one"'}, CONTENT)
        body = CONTENT + more
        return Answer(200, headers, b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body), framed=False)

    summary, _ = await download(script, tmp_path)
    assert summary.exit_code == 4
    assert isinstance(failure(summary), IntegrityError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ends", ["chunked", "chunked and cut", "close"])
async def test_without_a_length(tmp_path: Path, ends: str) -> None:
    """One stream, to a clean end or not at all."""

    def script(_asked: Asked) -> Answer:
        if ends == "close":
            return Answer(200, {"Connection": "close"}, CONTENT, framed=False)
        tail = b"" if ends == "chunked and cut" else b"0\r\n\r\n"
        body = b"%x\r\n%b\r\n%b" % (len(CONTENT), CONTENT, tail)
        return Answer(200, {"Transfer-Encoding": "chunked"}, body, framed=False)

    summary, _ = await download(script, tmp_path)
    if ends == "chunked and cut":
        assert summary.exit_code == 1
        assert list(tmp_path.iterdir()) == []
    else:
        assert summary.exit_code == 0
        assert (tmp_path / "file").read_bytes() == CONTENT


async def test_an_encoding_that_nobody_asked_for_is_kept_as_it_is(tmp_path: Path) -> None:
    def script(_asked: Asked) -> Answer:
        return Answer(200, {"Content-Encoding": "gzip", "ETag": '"one"'}, CONTENT)

    summary, server = await download(script, tmp_path)
    assert summary.exit_code == 0
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert not any(map(is_part, server.asked))


async def test_a_flood_of_headers() -> None:
    flood = {f"X-{number}": "x" * 1000 for number in range(150)}

    def script(_asked: Asked) -> Answer:
        return Answer(200, flood, CONTENT)

    async with ScriptedServer(script) as server:
        backend = HttpBackend()
        store = await backend.connect(parse(f"{server.url}/file"), StoreOptions())
        with pytest.raises(IntegrityError):
            await store.stat("")
        await backend.aclose()


async def test_throttling_is_patience(tmp_path: Path) -> None:
    refused: list[str] = []

    def script(asked: Asked) -> Answer:
        if is_part(asked) and len(refused) < 3:
            refused.append(asked.path)
            return Answer(429, {"Retry-After": "0"})
        return serve_bytes(CONTENT)(asked)

    summary, _ = await download(script, tmp_path)
    assert summary.exit_code == 0
    assert (tmp_path / "file").read_bytes() == CONTENT


async def test_throttling_without_end(tmp_path: Path) -> None:
    def script(asked: Asked) -> Answer:
        return Answer(503, {"Retry-After": "0"}) if is_part(asked) else serve_bytes(CONTENT)(asked)

    summary, server = await download(script, tmp_path)
    assert isinstance(failure(summary), Throttled)
    assert len(server.asked) < 200  # 20 times on each of several streams


async def test_small_files_of_a_server_with_a_limit(tmp_path: Path) -> None:
    """Fifty requests in a second get through, never two at once; there are far more files than tries."""
    names = [f"f{number:02}" for number in range(10)]
    good = tree({"/d/": page(*names)}, serve_bytes(b"content"))
    passed = 0.0

    def script(asked: Asked) -> Answer:
        nonlocal passed
        now = time.monotonic()
        # One is refused for ever, and stops nobody else.
        if asked.path == "/d/f00" or (asked.path != "/d/" and now - passed < 0.02):
            return Answer(503)
        passed = now
        made = good(asked)
        assert isinstance(made, Answer)
        return made

    async with ScriptedServer(script) as server:
        request = Request(Settings(retry_count=2))
        summary = await run_sync(f"{server.url}/d/", str(tmp_path), request)
    assert summary.exit_code == 3  # one of them could not be looked at
    assert sorted(path.name for path in tmp_path.iterdir()) == names[1:]


# -- digests -----------------------------------------------------------------------------------------------


def _digest(algorithm: str) -> str:
    import base64

    return base64.b64encode(hashlib.new(algorithm, CONTENT).digest()).decode()


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("is_right", [True, False])
@pytest.mark.parametrize(
    ("header", "algorithm", "form"),
    [
        ("Repr-Digest", "sha256", "sha-256=:{}:"),
        ("Digest", "sha512", "MD5=AAAA,SHA-512={}"),
        ("Content-MD5", "md5", "{}"),
    ],
)
async def test_digests_of_the_server(
    tmp_path: Path, header: str, algorithm: str, form: str, is_right: bool, ranges: bool
) -> None:
    """A digest that comes with the file is kept to; Content-MD5 is about what came whole."""
    value = form.format(_digest(algorithm))
    served = CONTENT if is_right else CONTENT[:-1] + b"?"
    script = serve_bytes(served, {header: value})
    if not ranges:
        whole = script

        def script(asked: Asked) -> Answer:
            asked.headers.pop("range", None)
            return whole(asked)

    summary, _ = await download(script, tmp_path)
    if is_right or (header == "Content-MD5" and ranges):
        assert summary.exit_code == 0
    else:
        assert summary.exit_code == 4
        assert list(tmp_path.iterdir()) == []


async def test_wrong_bytes_are_fetched_once_more(tmp_path: Path) -> None:
    """Of the same version: a second try that is wrong as well is the last one."""
    honest = serve_bytes(CONTENT, {"Repr-Digest": f"sha-256=:{_digest('sha256')}:"})
    bad: list[bool] = []

    def script(asked: Asked) -> Answer:
        answer = honest(asked)
        if asked.method == "GET" and bad and bad.pop():
            answer.body = answer.body[:-1] + b"?"
        return answer

    for times, code in ((10_000, 4), (1, 0)):
        bad[:] = [True] * times
        summary, server = await download(script, tmp_path)
        assert summary.exit_code == code
        assert (tmp_path / "file").exists() == (code == 0)
        assert len(server.asked) < 60


@pytest.mark.parametrize("is_right", [True, False])
@pytest.mark.parametrize("size", [0, 10, len(CONTENT)])
async def test_a_digest_that_the_user_knows(tmp_path: Path, is_right: bool, size: int) -> None:
    content = CONTENT[:size]
    known = hashlib.sha256(content if is_right else b"another").hexdigest()
    async with ScriptedServer(serve_bytes(content)) as server:
        summary = await cp(
            f"{server.url}/file", tmp_path / "file", place={"checksum_of": f"sha256:{known}"}
        )
    if is_right:
        assert summary.exit_code == 0
        assert (tmp_path / "file").read_bytes() == content
    else:
        assert summary.exit_code == 4
        assert list(tmp_path.iterdir()) == []


# -- redirects ---------------------------------------------------------------------------------------------


async def _redirecting(
    tmp_path: Path, place: dict[str, str] | None = None
) -> tuple[Summary, ScriptedServer, ScriptedServer]:
    """A server that sends us to another one, which counts as another origin by its port."""
    async with ScriptedServer(serve_bytes(CONTENT)) as other:

        def script(_asked: Asked) -> Answer:
            return Answer(302, {"Location": f"{other.url}/elsewhere?signed=yes"})

        async with ScriptedServer(script) as first:
            url = f"http://somebody:password@127.0.0.1:{first.port}/file?token=mine"
            return await cp(url, tmp_path / "file", place=place), first, other


async def test_secrets_stay_at_their_origin(tmp_path: Path) -> None:
    headers = tmp_path / "headers"
    headers.write_text("X-Token: secret\nCookie: session=secret\n")
    headers.chmod(0o600)
    summary, first, other = await _redirecting(tmp_path, {"header_file": str(headers)})
    assert summary.exit_code == 0
    assert (tmp_path / "file").read_bytes() == CONTENT
    for asked in first.asked:
        assert asked.path == "/file?token=mine"
        assert asked.headers["authorization"].startswith("Basic ")
        assert asked.headers["x-token"] == "secret"
    assert other.asked
    for asked in other.asked:
        assert asked.path == "/elsewhere?signed=yes"
        assert not {"authorization", "cookie", "x-token", "referer"} & set(asked.headers)


async def test_redirects_do_not_go_on_for_ever(tmp_path: Path) -> None:
    def script(asked: Asked) -> Answer:
        return Answer(302, {"Location": f"{asked.path}x"})

    summary, server = await download(script, tmp_path)
    assert isinstance(failure(summary), PermissionRefused)
    assert len(server.asked) == 11


async def test_from_the_internet_into_our_network(monkeypatch: pytest.MonkeyPatch) -> None:
    async def is_public(_client: Client, host: str) -> bool:
        return host == "127.0.0.1"  # what we can reach plays the Internet

    def script(_asked: Asked) -> Answer:
        return Answer(302, {"Location": "http://169.254.169.254/latest/meta-data/"})

    monkeypatch.setattr(Client, "_is_public", is_public)
    async with ScriptedServer(script) as server:
        backend = HttpBackend()
        store = await backend.connect(parse(f"{server.url}/file"), StoreOptions())
        with pytest.raises(PermissionRefused, match="private address"):
            await store.stat("")
        await backend.aclose()


async def test_an_address_that_expires_is_asked_for_again(tmp_path: Path) -> None:
    signed = 0
    served = 0
    async with ScriptedServer(lambda _asked: Answer(404)) as other:

        def sign(_asked: Asked) -> Answer:
            nonlocal signed
            signed += 1
            return Answer(307, {"Location": f"{other.url}/file?signature={signed}"})

        def serve(asked: Asked) -> Answer:
            nonlocal served
            served += is_part(asked)
            if served >= 3 and asked.path.endswith("=1"):
                return Answer(403)
            return serve_bytes(CONTENT)(asked)

        other.script = serve
        async with ScriptedServer(sign) as first:
            summary = await cp(f"{first.url}/file", tmp_path / "file")
    assert summary.exit_code == 0
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert signed == 2  # once more, for all the parts that found out


# -- index pages -------------------------------------------------------------------------------------------


def page(*names: str) -> Answer:
    links = "".join(f'<a href="{name}">x</a>\n' for name in names)
    return Answer(
        200, {"Content-Type": "text/html"}, f"<title>Index of /d/</title>{links}".encode()
    )


def tree(pages: dict[str, Answer], files: Script) -> Script:
    def script(asked: Asked) -> Answer:
        made = pages.get(asked.path) or files(asked)
        assert isinstance(made, Answer)
        return made

    return script


async def test_a_head_that_fails_forbids_deletes(tmp_path: Path) -> None:
    """A file that is listed and cannot be looked at is a gap in the listing, and no file that is gone."""

    def files(asked: Asked) -> Answer:
        return Answer(500) if asked.path == "/d/bad" else serve_bytes(b"good")(asked)

    target = tmp_path / "target"
    target.mkdir()
    (target / "bad").write_bytes(b"kept")
    (target / "stray").write_bytes(b"kept too")
    async with ScriptedServer(tree({"/d/": page("good", "bad")}, files)) as server:
        settings = Settings(delete=True, retry_count=0)
        summary = await run_sync(f"{server.url}/d/", str(target), Request(settings))
    assert summary.exit_code == 3
    assert sorted(path.name for path in target.iterdir()) == ["bad", "good", "stray"]


async def _listed(script: Script) -> tuple[list[str], list[tuple[str, type]]]:
    async with ScriptedServer(script) as server:
        backend = HttpBackend()
        try:
            options = StoreOptions(retries=0)
            store = await backend.connect(parse(f"{server.url}/d/"), options)
            assert isinstance(store, HttpStore)
            entries, faults = await listing_and_faults(store, ScanOptions())
            return (
                [entry.path for entry in entries],
                [(fault.path, type(fault.error)) for fault in faults],
            )
        finally:
            await backend.aclose()


async def test_names_that_lead_elsewhere() -> None:
    """Only names one level below on the same server are entries; one that would leave is a fault."""
    links = (
        "../up", "/other", "//evil.example/x", "http://evil.example/d/x", "a/b", "?C=N", "x?y=1",
        "javascript:alert(1)", "mailto:x@y", "#top", "", "./", "/d/", "/d/plain", "plain",
        "%2e%2e%2fescape", "%2e%2e/", "nul%00", ".fs-0123456789abcdef.part",
    )  # fmt: skip
    paths, faults = await _listed(tree({"/d/": page(*links)}, serve_bytes(b"content")))
    assert paths == ["plain"]
    assert sorted(faults) == sorted(
        [("../escape", NameRefused), ("..", NameRefused), ("nul\0", NameRefused)]
    )


async def test_a_directory_that_cannot_be_listed() -> None:
    pages = {"/d/": page("bad/", "good/"), "/d/good/": page("file"), "/d/bad/": Answer(403)}
    paths, faults = await _listed(tree(pages, serve_bytes(b"content")))
    assert paths == ["bad", "good", "good/file"]
    assert faults == [("bad", ListingError)]


async def test_a_directory_in_itself() -> None:
    def script(asked: Asked) -> Answer:
        return page("again/")

    paths, faults = await _listed(script)
    assert len(paths) == 129
    assert [kind for _, kind in faults] == [ListingError]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(404), NotFound),
        (Answer(403), ListingError),
        (Answer(200, {"Content-Type": "text/html"}, b"<h1>Please log in</h1>"), ListingError),
        (Answer(200, {"Content-Type": "text/html"}, b""), ListingError),
        (
            Answer(
                200,
                {"Content-Type": "text/html"},
                b"<html><h1>Index of /d/</h1><pre><a href='name'>name</a>",
            ),
            ListingError,
        ),
        (Answer(200, {"Content-Type": "application/json"}, b'{"a": 1}'), ListingError),
        (Answer(200, {"Content-Type": "application/json"}, b"[" * 100_000), ListingError),
        (Answer(200, {"Content-Type": "application/pdf"}, b"%PDF"), ListingError),
        (Answer(200, {"Content-Length": str(1 << 40)}, b"", framed=False), ListingError),
        (Answer(302, {"Location": "/d/"}), PermissionRefused),
    ],
)
async def test_what_is_no_listing(answer: Answer, kind: type[FastsyncError]) -> None:
    with pytest.raises(kind):
        await _listed(lambda _asked: answer)


async def test_a_head_that_lies(tmp_path: Path) -> None:
    """HEAD says nothing of the length, or something else: what counts is what GET says."""

    def files(asked: Asked) -> Answer:
        if asked.method == "HEAD":
            return Answer(200, {"Content-Length": "1"} if asked.path == "/d/short" else {}, b"")
        return serve_bytes(CONTENT)(asked)

    async with ScriptedServer(tree({"/d/": page("short", "empty")}, files)) as server:
        settings = Settings(retry_count=0)
        summary = await run_sync(f"{server.url}/d/", str(tmp_path), Request(settings))
    assert summary.exit_code == 0
    assert (tmp_path / "short").read_bytes() == CONTENT
    assert (tmp_path / "empty").read_bytes() == CONTENT


@pytest.mark.parametrize("status", [403, 405, 501])
async def test_head_refused(tmp_path: Path, status: int) -> None:
    def files(asked: Asked) -> Answer:
        return Answer(status) if asked.method == "HEAD" else serve_bytes(CONTENT)(asked)

    async with ScriptedServer(tree({"/d/": page("a", "b")}, files)) as server:
        summary = await run_sync(f"{server.url}/d/", str(tmp_path), Request(Settings()))
    assert summary.exit_code == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == CONTENT


async def test_a_file_that_comes_from_somewhere_else(tmp_path: Path) -> None:
    """Files of an index may be on mirrors, small ones and large ones."""
    async with ScriptedServer(serve_bytes(CONTENT)) as mirror:

        def files(asked: Asked) -> Answer:
            return Answer(302, {"Location": mirror.url + asked.path})

        async with ScriptedServer(tree({"/d/": page("a", "b")}, files)) as server:
            for number, chunk in enumerate((PART, 1 << 20)):
                settings = Settings(chunk_size=chunk)
                target = tmp_path / str(number)
                summary = await run_sync(f"{server.url}/d/", str(target), Request(settings))
                assert summary.exit_code == 0
                assert (target / "a").read_bytes() == (target / "b").read_bytes() == CONTENT


async def test_a_read_that_is_left() -> None:
    """What is left early costs its connection, and nothing else."""
    async with ScriptedServer(serve_bytes(CONTENT)) as server:
        backend = HttpBackend()
        store = await backend.connect(parse(f"{server.url}/file"), StoreOptions(streams=1))
        entry = await store.stat("")
        for _ in range(3):
            reading = store.read(entry, 0, None)
            await anext(reading)
            await reading.aclose()  # type: ignore[attr-defined]
        assert await collect(store.read(entry, 5, 10)) == CONTENT[5:10]
        await backend.aclose()
