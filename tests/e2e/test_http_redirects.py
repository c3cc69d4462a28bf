"""A redirect leads where it leads a client that others wrote: httpx is the oracle."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from web import Answer, Asked, ScriptedServer

import fastsync

# References of RFC 3986, 5.4, and of servers that do not write them as they should.
LOCATIONS = [
    "/plain",
    "sibling",
    "./here",
    "../up",
    "../../../above/all",
    "deeper/and/deeper",
    "//127.0.0.1:PORT/by-authority",
    "http://127.0.0.1:PORT/whole",
    "HTTP://127.0.0.1:PORT/upper",
    "http://127.0.0.1:PORT",
    "?only=query",
    "/with?query=1&and=2",
    "/with?a=b?c=/d",
    "#only-a-fragment",
    "/with#a-fragment",
    "/spa%20ce",
    "/sp ace",
    "/per%cent",
    "/upper%2Flower%2f",
    "/caf%C3%A9",
    "/semi;colon=1",
    "/plus+and:colon@at",
    "/double//slash",
    "/dots/./a/../b",
    "/trailing/",
]


@pytest.mark.parametrize("location", LOCATIONS)
async def test_redirects_lead_where_they_lead_others(location: str, tmp_path: Path) -> None:
    def script(asked: Asked) -> Answer:
        if asked.path == "/a/b/start" and len(server.asked) == 1:
            told = location.replace("PORT", str(server.port))
            return Answer(302, {"Location": told})
        return Answer(200, {"ETag": '"one"'}, b"there")

    async with ScriptedServer(script) as server:
        start = f"{server.url}/a/b/start"
        async with httpx.AsyncClient(trust_env=False, follow_redirects=True) as client:
            assert (await client.get(start)).content == b"there"
        theirs = [asked.path for asked in server.asked]
        server.asked.clear()
        summary = await fastsync.async_cp(start, tmp_path / "out")
        assert summary.exit_code == 0
        assert (tmp_path / "out").read_bytes() == b"there"
        ours = [asked.path for asked in server.asked]
    assert ours[:2] == theirs
