"""A server of SFTP that means no good, in the place of ``ssh``: what it does is the user's name (``-l``).

Run as a program, with a folder before the arguments of ssh, in which it counts how often it was called.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from typing import NoReturn

VERSION, CLOSE, STATUS, HANDLE, DATA, NAME, ATTRS = 2, 4, 101, 102, 103, 104, 105
OPEN, READ, FSTAT, LSTAT, STAT, OPENDIR, READDIR, REALPATH = 3, 5, 8, 7, 17, 11, 12, 16
DIRECTORY = struct.pack(">IIII", 12, 0o40755, 1, 1)
FILE = struct.pack(">IQIII", 13, 100_000, 0o100644, 1, 1)
OK, NOT_SUPPORTED, EOF = 0, 8, 1
PAUSE_S = 0.05


def put(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


def for_ever(data: bytes, pause_s: float = PAUSE_S) -> NoReturn:
    while True:
        put(data)
        time.sleep(pause_s)


def get(count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = os.read(0, count - len(data))
        if not more:
            sys.exit(0)
        data += more
    return data


def text(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def message(kind: int, body: bytes) -> bytes:
    return struct.pack(">IB", len(body) + 1, kind) + body


def status(number: bytes, code: int) -> bytes:
    return message(STATUS, number + struct.pack(">I", code) + text(b"") + text(b""))


def ask() -> tuple[int, bytes]:
    (length,) = struct.unpack(">I", get(4))
    body = get(length)
    return body[0], body[1:5]


def name_of(what: bytes, attributes: bytes) -> bytes:
    return struct.pack(">I", 1) + text(what) + text(b"") + attributes


def before_the_first_question(name: str) -> None:
    if name == "deaf":
        time.sleep(3600)
    if name == "banner":
        for_ever(b"Welcome to the machine!\r\n" * 100, 0)
    if name == "drops":
        put(struct.pack(">IBI", 100_000, VERSION, 3))
        for_ever(b"x")
    ask()
    put(message(VERSION, struct.pack(">I", 3)))
    if name == "greeting":
        time.sleep(3600)
    if name == "status-for-nobody":
        for_ever(status(b"\xff\xff\xff\xff", OK))
    if name == "answer-without-end":
        put(struct.pack(">IB", 1_000_000, DATA))
        for_ever(b"x")


def answer(name: str, kind: int, number: bytes) -> bytes:
    if kind in (OPEN, OPENDIR):
        return message(HANDLE, number + text(b"h"))
    if kind in (LSTAT, STAT, FSTAT):
        is_file = kind == FSTAT or name in (
            "nothing-read",
            "byte-read",
            "read-by-drops",
            "no-block",
        )
        return message(ATTRS, number + (FILE if is_file else DIRECTORY))
    if kind == REALPATH:
        return message(NAME, number + name_of(b"/file", DIRECTORY))
    if kind == CLOSE:
        return status(number, OK)
    if kind == READDIR:
        pages = {
            "no-names": message(NAME, number + struct.pack(">I", 0)),
            "same-names": message(NAME, number + name_of(b"f", FILE)),
            "no-page": b"",
        }
        return pages.get(name, status(number, EOF))
    if kind == READ:
        if name == "read-by-drops":
            put(struct.pack(">IB", 40_000, DATA) + number)
            for_ever(b"x")
        blocks = {
            "nothing-read": message(DATA, number + text(b"")),
            "byte-read": message(DATA, number + text(b"x")),
            "no-block": b"",
        }
        return blocks.get(name, status(number, EOF))
    return status(number, NOT_SUPPORTED)


def main(folder: str, *arguments: str) -> None:
    name = arguments[arguments.index("-l") + 1]
    with open(f"{folder}/calls-{name}", "a", encoding="ascii") as calls:
        calls.write("x")
    before_the_first_question(name)
    while True:
        put(answer(name, *ask()))


if __name__ == "__main__":
    main(*sys.argv[1:])
