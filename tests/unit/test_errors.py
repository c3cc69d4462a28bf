from __future__ import annotations

import copy
import errno
import inspect
import os
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsync import errors
from fastsync.errors import (
    EXIT_SIGINT,
    EXIT_SIGTERM,
    Changed,
    Conflict,
    DestinationFull,
    FastsyncError,
    NameRefused,
    NotFound,
    PermissionRefused,
    Throttled,
    Transient,
    UsageError,
    Vanished,
    from_os_error,
    worst_exit,
)

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, FastsyncError)
]
CODES = sorted({kind.exit_code for kind in KINDS} | {EXIT_SIGINT, EXIT_SIGTERM})


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    # The part with the names and codes: "|-- Name   code  meaning".
    drawn = re.findall(r"^    [|` -]*([A-Z]\w+) +(\d+)  \S", errors.__doc__ or "", re.MULTILINE)
    assert {name: int(code) for name, code in drawn} == {
        kind.__name__: kind.exit_code for kind in KINDS
    }


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_in_one_line(kind: type[FastsyncError]) -> None:
    assert str(kind("it broke")) == "it broke"
    assert str(kind("it broke", where="a/b")) == "a/b: it broke"
    assert str(kind("it broke", hint="mend it")) == "it broke (mend it)"
    assert str(kind("it broke", where="a/b", hint="mend it")) == "a/b: it broke (mend it)"


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_crosses_to_another_process(kind: type[FastsyncError]) -> None:
    error = kind("it broke", where="a/b", hint="mend it")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is kind
        assert (twin.message, twin.where, twin.hint) == ("it broke", "a/b", "mend it")
        assert str(twin) == str(error)


def test_patience_crosses_too() -> None:
    error = Throttled("busy", retry_after_s=1.5)
    assert pickle.loads(pickle.dumps(error)).retry_after_s == 1.5
    assert Transient("cut").retry_after_s is None


def test_the_place_is_filled_in_once() -> None:
    error = NotFound("gone")
    assert error.at("a") is error
    assert error.at("b").where == "a"


def test_only_some_errors_are_worth_another_try() -> None:
    transient = {kind.__name__ for kind in KINDS if kind.transient}
    assert transient == {"Transient", "Throttled", "Stalled"}
    assert issubclass(Vanished, Changed)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, NotFound),
        (errno.EACCES, PermissionRefused),
        (errno.EPERM, PermissionRefused),
        (errno.ENOSPC, DestinationFull),
        (errno.EROFS, DestinationFull),
        (errno.EISDIR, Conflict),
        (errno.ENOTEMPTY, Conflict),
        (errno.ELOOP, NameRefused),
        (errno.ENAMETOOLONG, NameRefused),
        (errno.EMFILE, Transient),
        (errno.EIO, FastsyncError),
    ],
)
def test_errors_of_the_operating_system(number: int, kind: type[FastsyncError]) -> None:
    error = from_os_error(OSError(number, os.strerror(number)), "a/b")
    assert type(error) is kind
    assert str(error).startswith(f"a/b: {os.strerror(number).lower()}")


@given(st.one_of(st.none(), st.integers(-5, 200)), st.one_of(st.none(), st.text()))
def test_every_os_error_becomes_one_of_ours(number: int | None, text: str | None) -> None:
    foreign = OSError() if number is None else OSError(number, text)
    error = from_os_error(foreign, "a/b")
    assert isinstance(error, FastsyncError)
    assert error.message
    assert type(from_os_error(OSError("only text"))) is FastsyncError
    assert str(from_os_error(TimeoutError())) == "timeouterror"
    assert type(from_os_error(ConnectionResetError("made by hand"))) is Transient


@given(st.lists(st.sampled_from([0, *CODES])))
def test_the_worst_exit_code(codes: list[int]) -> None:
    worst = worst_exit(codes)
    assert worst == worst_exit(reversed(codes))
    assert worst in codes or (worst == 0 and not codes)
    assert (worst == 0) == (set(codes) <= {0})
    # It stays the worst whatever else of the same is met, and nothing that is met makes it milder.
    assert worst_exit([*codes, worst]) == worst
    for code in codes:
        assert worst_exit([worst, code]) == worst


def test_the_rank_of_exit_codes() -> None:
    rank = (130, 143, 2, 5, 7, 6, 3, 4, 1, 8, 0)
    assert sorted([0, *CODES]) == sorted(rank)
    for place, code in enumerate(rank):
        assert worst_exit(rank[place:]) == code
    assert worst_exit([99]) == 1


def test_usage_errors_are_told_apart() -> None:
    assert UsageError("x").exit_code == 2
    assert FastsyncError("x").exit_code == 1
