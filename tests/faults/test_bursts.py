"""A third of all requests is refused for a while: all of it arrives, in few attempts each, with fewer at a
time until it goes better."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import hostile_s3 as faults
import pytest
from hostile_s3 import Honest, HostileS3
from http_exchange import Request, Response
from web import Answer, Asked, ScriptedServer, serve_bytes

from fastsync.copying import run_cp
from fastsync.session import Request as Asking
from fastsync.settings import Settings
from fastsync.testing.vocabulary import noise

PART = 64 << 10
STREAMS = 16
BURST_S = float(os.environ.get("FASTSYNC_BURST_S", "1"))  # scripts/torture has more patience
TAKES_S = 0.1
# Requests of the long form: more than can be done while it lasts.
MORE = int(500 * (BURST_S - 1))
REQUESTS = 320 + MORE
# Of ten thousand requests some are refused nine times in a row by chance alone.
MOST_ATTEMPTS = 8 if BURST_S <= 1 else 14


class Burst:
    """Refuses a third of what is asked, for `BURST_S` from the first question on."""

    def __init__(self) -> None:
        self.began: float | None = None
        self.refused_at: float | None = None
        self.refusals = 0
        self._dice = random.Random(13)

    @property
    def age_s(self) -> float:
        now = time.monotonic()
        if self.began is None:
            self.began = now
        return now - self.began

    def refuses(self) -> bool:
        if self.age_s >= BURST_S or self._dice.random() >= 0.3:
            return False
        self.refusals += 1
        self.refused_at = self.refused_at or time.monotonic()
        return True


def settings(**more: object) -> Settings:
    defaults: dict[str, object] = {
        "chunk_size": PART,
        "parallel_streams": STREAMS,
        "jobs": STREAMS,
        "small_file_threshold": 0,
    }
    return Settings(**{**defaults, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("way", ["parts", "small files up"])
async def test_s3(hostile_s3: HostileS3, tmp_path: Path, way: str) -> None:
    burst = Burst()
    after_it: list[int] = []
    at_the_end: list[int] = []

    def answer(request: Request, honest: Honest) -> Response:
        is_refused = burst.refuses()
        if (
            burst.refused_at is not None
            and 1.5 < (time.monotonic() - burst.refused_at) / TAKES_S < 3
        ):
            after_it.append(hostile_s3.in_flight)
        if burst.age_s > BURST_S + 0.2:
            at_the_end.append(hostile_s3.in_flight)
        made = faults.slow_down()(request, honest) if is_refused else honest(request)
        return made if is_refused else replace(made, stall_at=0, stall_s=TAKES_S)

    hostile_s3.make_bucket("bucket")
    operation = "GetObject" if way == "parts" else "PutObject"
    hostile_s3.on(operation, answer, times=None)
    server = hostile_s3.server
    place = {
        "endpoint_url": hostile_s3.endpoint,
        "access_key_id": server.access_key,
        "secret_access_key": server.secret_key,
        "region": "us-east-1",
    }

    def asking(**more: object) -> Asking:
        return Asking(
            settings(**more),
            place_settings=lambda location, _side: place if location.scheme == "s3" else {},
        )

    if way == "parts":
        content = b"".join(noise(PART, seed=number) for number in range(REQUESTS))
        hostile_s3.put("bucket", "file", content)
        summary = await run_cp("s3://bucket/file", str(tmp_path / "file"), asking())
        assert (tmp_path / "file").read_bytes() == content
    else:
        (tmp_path / "many").mkdir()
        for number in range(REQUESTS):
            (tmp_path / f"many/{number}").write_bytes(noise(100 + number))
        made = asking(small_file_threshold=PART, recursive=True)
        summary = await run_cp(f"{tmp_path}/many/", "s3://bucket/", made)
        for number in range(REQUESTS):
            assert hostile_s3.data("bucket", f"{number}") == noise(100 + number)
    assert (summary.exit_code, summary.failures) == (0, [])
    assert burst.refusals > 5
    asked = Counter((seen.key, seen.headers.get("range")) for seen in hostile_s3.seen(operation))
    assert max(asked.values()) <= MOST_ATTEMPTS
    if BURST_S <= 1:  # with thousands of files the moments shift, by how busy the machine is
        assert min(after_it) <= STREAMS * 5 // 8
        assert max(at_the_end) >= STREAMS * 3 // 4
        assert min(at_the_end[:-STREAMS]) > 2  # to the end, but for the very last ones


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("headers", [{}, {"Retry-After": "0"}], ids=["", "retry-after"])
async def test_http(tmp_path: Path, status: int, headers: dict[str, str]) -> None:
    burst, parts = Burst(), range(60 + MORE)
    content = b"".join(noise(PART, seed=number) for number in parts)
    asked: Counter[str] = Counter()
    good: Callable[[Asked], Answer] = serve_bytes(content)

    def script(request: Asked) -> Answer:
        asked[request.headers.get("range", "")] += 1
        return Answer(status, headers) if burst.refuses() else good(request)

    async with ScriptedServer(script) as server:
        summary = await run_cp(f"{server.url}/file", str(tmp_path / "file"), Asking(settings()))
    assert (summary.exit_code, summary.failures) == (0, [])
    assert (tmp_path / "file").read_bytes() == content
    assert burst.refusals > 5
    assert max(asked.values()) <= MOST_ATTEMPTS
