from __future__ import annotations

import os
import urllib.parse

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastsync.errors import UsageError
from fastsync.location import Location, parse

SCHEMES = st.sampled_from(["sftp", "s3", "http", "https", "mem2", "x+y.z-1"])
HOSTS = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,12}", fullmatch=True) | st.just("::1")
PORTS = st.none() | st.integers(1, 65535)
# No lone surrogates: they cannot be written in a URL.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1)
SECRET = "s3cr3t-Pa55"


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a:b",
        "C:x",
        "./s3://bucket",
        "/abs/file",
        "dir/",
        "..",
        "user@host:path",
        "a b",
        "://x",
    ],
)
def test_whatever_is_no_url_is_a_local_path(text: str) -> None:
    assert parse(text) == Location("file", text)
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "location"),
    [
        ("file:///a/b", Location("file", "/a/b")),
        ("file:///", Location("file", "/")),
        ("file://localhost/a%20b", Location("file", "/a b")),
        ("FILE:///a%FF", Location("file", "/a\udcff")),
        ("s3://bucket", Location("s3", "", "bucket")),
        ("s3://bucket/", Location("s3", "/", "bucket")),
        ("s3://bucket/a%20b?c#d", Location("s3", "/a%20b?c#d", "bucket")),
        ("SFTP://host/~/x", Location("sftp", "/~/x", "host")),
        ("sftp://me@host:2222/x", Location("sftp", "/x", "host", 2222, "me")),
        ("sftp://me:pw@[fe80::1%25eth0]:22/x",
         Location("sftp", "/x", "fe80::1%25eth0", 22, "me", "pw")),
        ("sftp://a%40b:p%2Fw@host/x", Location("sftp", "/x", "host", None, "a@b", "p/w")),
        ("http://host/x?a=1&b=2", Location("http", "/x", "host", query="a=1&b=2")),
        ("http://host?a=1/2", Location("http", "", "host", query="a=1/2")),
        ("http://host/x?", Location("http", "/x", "host")),
        ("-", Location("-", "")),
    ],
)  # fmt: skip
def test_places(text: str, location: Location) -> None:
    assert parse(text) == location


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty place"),
        ("a\0b", "NUL"),
        ("file://host/x", "file:///absolute/path"),
        ("file:relative", ""),
        ("file://", "file:///absolute/path"),
        ("file:///a%00b", "file:///absolute/path"),
        ("sftp://host:0/x", "port"),
        ("sftp://host:65536/x", "port"),
        ("sftp://host:" + "9" * 5000, "port"),
        ("sftp://host:port/x", "port"),
        ("sftp://[::1/x", "host"),
        ("sftp://::1/x", "host"),
    ],
)
def test_what_is_no_place(text: str, message: str) -> None:
    if not message:  # "file:relative" has no "//": a file of that name
        assert parse(text).scheme == "file"
        return
    with pytest.raises(UsageError, match=message):
        parse(text)


@given(st.text())
@example("http://[")
@example("sftp://h:٣/")
def test_anything_is_a_place_or_a_usage_error(text: str) -> None:
    try:
        location = parse(text)
    except UsageError:
        return
    str(location)
    repr(location)


@given(
    SCHEMES, TEXT, HOSTS, PORTS, TEXT, st.sampled_from(["", "?a=b", "?X-Amz-Signature=" + SECRET])
)
def test_a_password_never_comes_out(
    scheme: str, user: str, host: str, port: int | None, path: str, query: str
) -> None:
    quoted = urllib.parse.quote(user, safe="")
    shown_host = f"[{host}]" if ":" in host else host
    authority = f"{quoted}:{SECRET}@{shown_host}{'' if port is None else f':{port}'}"
    query = query if scheme in ("http", "https") else ""
    location = parse(f"{scheme}://{authority}/{urllib.parse.quote(path)}{query}")
    assert location.password == SECRET
    assert location.user == user
    for place in (location, location.child("below"), location.parent()):
        assert SECRET not in str(place)
        assert SECRET not in repr(place)
        assert place.password == SECRET


@pytest.mark.parametrize("scheme", ["sftp", "http", "file", "x"])
@pytest.mark.parametrize(
    "rest",
    [
        "me:{}/more@host/x", "me:1{}@2@host:port/x", "me:{}@host:99999/x", "me:{}@[::1/x",
        "me:/{}@host:x/", "host:22:{}/x", ":{}@ho[st/",
    ],
)  # fmt: skip
def test_a_password_is_not_in_the_error_either(scheme: str, rest: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(f"{scheme}://{rest.format(SECRET)}")
    assert SECRET not in str(caught.value)


def test_what_a_web_address_does_not_show() -> None:
    url = "https://ghp_token@host/x?sig=secret&key=other"
    assert str(parse(url)) == "https://***@host/x?***"
    assert str(parse("https://me:pw@host/x")) == "https://***@host/x"
    assert "secret" not in repr(parse(url))


@given(st.sampled_from(["sftp", "s3", "mem2"]), TEXT, HOSTS, PORTS, TEXT)
@example("sftp", "a:b@c/d%20", "host", None, "")
def test_a_place_without_secrets_is_read_as_it_is_written(
    scheme: str, user: str, host: str, port: int | None, path: str
) -> None:
    user = user.replace("\0", "")
    location = Location(scheme, "/" + path.replace("\0", ""), host, port, user or None)
    assert parse(str(location)) == location


@given(st.lists(NAMES, min_size=1, max_size=4), st.sampled_from(["", "/", "/a", "a", ".", "../b/"]))
def test_children_and_parents_of_local_paths(names: list[str], top: str) -> None:
    place = Location("file", top or ".")
    child = place.child("/".join(names))
    assert child.path.endswith("/".join(names))
    assert os.path.join(place.path, *names) == child.path
    assert child.name == names[-1]
    again = child.parent().child(child.name)
    assert os.path.normpath(again.path) == os.path.normpath(child.path)


@given(st.lists(NAMES, min_size=1, max_size=4), st.sampled_from(["", "/", "/a", "/a/"]))
def test_children_and_parents_elsewhere(names: list[str], top: str) -> None:
    place = Location("s3", top, "bucket", 9000, "me", SECRET, "")
    child = place.child("/".join(names))
    assert child.parent().child(child.name) == child
    assert child.name == names[-1]
    assert child.parent().is_directory_like or child.parent().path == ""
    assert (child.host, child.port, child.user, child.password) == ("bucket", 9000, "me", SECRET)


@pytest.mark.parametrize("top", ["s3://bucket", "s3://bucket/"])
def test_a_child_whose_name_begins_with_a_slash_is_not_the_one_without(top: str) -> None:
    assert str(parse(top).child("/x")) == "s3://bucket//x"
    assert str(parse(top).child("x")) == "s3://bucket/x"


def test_the_child_of_nothing_is_the_place_itself() -> None:
    place = parse("http://host/x?token")
    assert place.child("") is place


def test_the_question_of_a_url_is_not_that_of_its_children() -> None:
    place = parse("http://host/x?token")
    assert (place.child("y").query, place.parent().query) == ("", "")


@pytest.mark.parametrize(
    ("path", "parent", "name"),
    [
        ("a", ".", "a"),
        ("a/b", "a", "b"),
        ("a/b/", "a/b", ""),
        ("/a", "/", "a"),
        ("/", "/", ""),
    ],
)
def test_parents_of_local_paths(path: str, parent: str, name: str) -> None:
    place = Location("file", path)
    assert (place.parent().path, place.name) == (parent, name)


@pytest.mark.parametrize("path", ["a/", "/", ".", "..", "a/..", "a/."])
def test_written_as_a_directory(path: str) -> None:
    assert Location("file", path).is_directory_like


@pytest.mark.parametrize("path", ["a", "a/b", "/a", "...", "a/..b", ".hidden"])
def test_not_written_as_a_directory(path: str) -> None:
    assert not Location("file", path).is_directory_like


def test_a_stream() -> None:
    assert parse("-").is_stream
    assert str(parse("-")) == "-"
    assert not parse("./-").is_stream
