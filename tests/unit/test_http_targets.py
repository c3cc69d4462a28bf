"""Addresses of web places: quoting, redirects and what they may lead to."""

from __future__ import annotations

import pytest

from fastsync.errors import PermissionRefused, UsageError
from fastsync.location import parse
from fastsync_http.targets import is_public, quote_name, redirected, target_of, unquote_name


def url(text: str) -> str:
    return target_of(parse(text)).url


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("http://host", "http://host/"),
        ("http://HOST:80/a", "http://host/a"),
        ("https://host:8443/a", "https://host:8443/a"),
        ("http://host/a%20b", "http://host/a%20b"),  # what is encoded stays as it is
        ("http://host/a b", "http://host/a%20b"),
        ("http://host/100%", "http://host/100%25"),
        ("http://host/%2e%2F", "http://host/%2e%2F"),
        ("http://host/\u00e9", "http://host/%C3%A9"),
        ("http://host/a?x=1&y=%20z?", "http://host/a?x=1&y=%20z?"),
        ("http://host/a\r\nHost: evil", "http://host/a%0D%0AHost:%20evil"),
        ("http://host/a?b c", "http://host/a?b%20c"),
        ("http://[::1]:8080/a", "http://[::1]:8080/a"),
        ("http://b\u00fccher.example/", "http://xn--bcher-kva.example/"),
    ],
)
def test_what_is_asked_for(written: str, asked: str) -> None:
    assert url(written) == asked


def test_no_host() -> None:
    with pytest.raises(UsageError):
        url("http:///path")


@pytest.mark.parametrize(
    "name", ["a b", "100%", "%2F", "a?b#c", "\u00e9", "\udcff\udc80", "+", "~"]
)
def test_names_there_and_back(name: str) -> None:
    encoded = quote_name(f"d/{name}")
    assert encoded.isascii()
    assert not set(encoded) & set(" ?#")
    assert unquote_name(encoded) == f"d/{name}"


def test_a_name_below() -> None:
    top = target_of(parse("http://host/pub?secret"))
    assert top.below("a?b/c d").url == "http://host/pub/a%3Fb/c%20d"


def test_the_query_is_not_shown() -> None:
    assert str(target_of(parse("http://host/a?secret"))) == "http://host/a?***"


@pytest.mark.parametrize(
    ("told", "leads_to", "own"),
    [
        ("/b", "https://host/b", True),
        ("b?c#d", "https://host/a/b?c", True),
        ("//host/b", "https://host/b", True),
        ("https://HOST:443/b", "https://host/b", True),
        ("https://host:444/b", "https://host:444/b", False),
        ("https://other/b", "https://other/b", False),
        ("https://user:secret@other/b", "https://other/b", False),
        ("/\u00c3\u00a9", "https://host/%C3%A9", True),  # UTF-8 that arrived as Latin-1
        ("?x", "https://host/a/?x", True),
        ("/b c?d e", "https://host/b%20c?d%20e", True),
    ],
)
def test_redirects(told: str, leads_to: str, own: bool) -> None:
    made = redirected(target_of(parse("https://host/a/")), told)
    assert (made.url, made.own) == (leads_to, own)


def test_what_has_left_does_not_come_home() -> None:
    """From there on, another server says what is asked for in the user's name."""
    away = redirected(target_of(parse("https://host/")), "https://other/")
    assert not redirected(away, "https://host/").own


@pytest.mark.parametrize(
    "told",
    [
        None, "", "http://host/", "ftp://host/", "file:///etc/passwd", "https:///x", "https://h:x/",
        "https://h/a\r\nX: y", "javascript:alert(1)", "https://h/" + "x" * 20_000, "https://h:99999/",
        "https://h x/", "//h x/",
    ],
)  # fmt: skip
def test_redirects_that_are_not_followed(told: str | None) -> None:
    with pytest.raises(PermissionRefused):
        redirected(target_of(parse("https://host/")), told)


def test_more_safety_may_be_followed() -> None:
    made = redirected(target_of(parse("http://host/")), "https://host/")
    assert (made.url, made.own) == ("https://host/", False)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2001:4860:4860::8888", True), ("127.0.0.1", False), ("10.1.2.3", False),
        ("169.254.169.254", False), ("::1", False), ("fe80::1%eth0", False), ("fd00::1", False),
        ("::ffff:10.0.0.1", False), ("0.0.0.0", False), ("100.64.0.1", False),
    ],
)  # fmt: skip
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public
