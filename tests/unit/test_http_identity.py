"""Who asks: header files, the environment, netrc and user names in addresses."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from fastsync.errors import ConfigError, FastsyncError, UsageError
from fastsync.location import parse
from fastsync_http.identity import identify, parse_lines

HOME = {"NETRC": "/nonexistent"}


def basic(pair: str) -> str:
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def lines(
    place: str, settings: dict[str, str] | None = None, environ: dict[str, str] | None = None
) -> dict[str, str]:
    return dict(identify(parse(place), settings or {}, {**HOME, **(environ or {})}).headers)


def private(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def test_nobody() -> None:
    assert lines("http://host/") == {}


def test_the_sources_in_their_order(tmp_path: Path) -> None:
    """A header file says it all; then what is in the address, a token, and netrc."""
    netrc = private(tmp_path / "netrc", "machine host login n password p")
    file = private(tmp_path / "headers", "# mine\n\nX-One: 1\nAuthorization: Own scheme\n")
    environ = {"NETRC": netrc, "FASTSYNC_BEARER_TOKEN": "abc", "FASTSYNC_HEADER": "X-Two: 2"}
    assert lines("http://u:p@host/", {"header_file": file}, environ) == {
        "X-One": "1",
        "X-Two": "2",
        "Authorization": "Own scheme",
    }
    assert lines("http://u:p@host/", {}, environ)["Authorization"] == basic("u:p")
    assert lines("http://host/", {}, environ)["Authorization"] == "Bearer abc"
    del environ["FASTSYNC_BEARER_TOKEN"]
    assert lines("http://host/", {}, environ)["Authorization"] == basic("n:p")
    assert lines("http://n@host/", {}, environ)["Authorization"] == basic("n:p")
    assert lines("http://other@host/", {}, environ)["Authorization"] == basic("other:")
    assert "Authorization" not in lines("http://elsewhere/", {}, environ)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_file_that_others_can_use(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "headers"
    path.write_text("X: secret")
    path.chmod(mode)
    with pytest.raises(ConfigError, match="others can") as caught:
        lines("http://host/", {"header_file": str(path)})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff", b"X: " + b"x" * 70_000])
def test_a_file_that_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "headers"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError):
        lines("http://host/", {"header_file": str(path)})
    for other in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ConfigError):
            lines("http://host/", {"header_file": str(other)})


@pytest.mark.parametrize(
    "text",
    [
        "secret", "Bad Name: secret", "X: secret\x00", "X: secret\rY: z", ": secret", "Host: secret",
        "range: bytes=0-", "Content-Length: 5", "Transfer-Encoding: chunked", "If-Range: secret",
    ],
)  # fmt: skip
def test_lines_that_are_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_lines(f"Fine: yes\n{text}", "the test")
    assert "line 2" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"FASTSYNC_BEARER_TOKEN": "two words\r\nX: y"}, "two words"),
        ({"FASTSYNC_HEADER": "no colon secret"}, "secret"),
    ],
)
def test_an_environment_that_makes_no_sense(environ: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        lines("http://host/", {}, environ)
    assert text not in str(caught.value)


def test_a_netrc_that_makes_no_sense(tmp_path: Path) -> None:
    netrc = private(tmp_path / "netrc", "machine host login n secret")
    with pytest.raises(ConfigError) as caught:
        lines("http://host/", {}, {"NETRC": netrc})
    assert "secret" not in str(caught.value)
    chain: FastsyncError | BaseException | None = caught.value
    assert chain is not None
    assert chain.__cause__ is None


def test_secrets_are_in_no_repr() -> None:
    made = identify(parse("http://u:password@host/"), {}, {**HOME, "FASTSYNC_HEADER": "X: secret"})
    assert "password" not in repr(made)
    assert "secret" not in repr(made)


def test_a_netrc_that_others_can_write(tmp_path: Path) -> None:
    path = tmp_path / "netrc"
    path.write_text("machine host login n password secret\n")
    path.chmod(0o602)
    with pytest.raises(ConfigError, match="others can write it") as caught:
        lines("http://host/", {}, {"NETRC": str(path)})
    assert "secret" not in str(caught.value)
