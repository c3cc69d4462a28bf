"""What TCP knows of the way to a server: how long it is, for on a busy machine an answer takes many times as
long, for want of a processor; and how much of what was sent has arrived.

Linux tells; elsewhere nothing is known, which is infinitely far. See struct tcp_info in its
include/uapi/linux/tcp.h and, for sockets of other processes, sock_diag(7).
"""

from __future__ import annotations

import math
import os
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

# Where tcp_info has tcpi_min_rtt, in microseconds: since Linux 4.6.
_MIN_RTT_AT: Final = 148
# tcpi_unacked, in packets; tcpi_bytes_acked; tcpi_notsent_bytes, since 4.6, too.
_UNACKED_AT: Final = 24
_ACKED_AT: Final = 120
_NOT_SENT_AT: Final = 144
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST_DUMP: Final = 0x301
_INET_DIAG_INFO: Final = 2
_ESTABLISHED: Final = 1
_header = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_request = struct.Struct("=BBBxI48x")  # family, protocol, extensions, states, any socket
_INODE_AT: Final = 68
_ATTRIBUTES_AT: Final = 72
_attribute = struct.Struct("=HH")  # length, type


def of_socket(sock: Any) -> float:
    """The shortest round trip of a connection, in seconds."""
    return _shortest(_told(sock))


class Sent(NamedTuple):
    """How many bytes have arrived at the other side, and whether others are on their way, or wait."""

    arrived: int
    is_waiting: bool


def sent(sock: Any) -> Sent | None:
    """What became of what was given to a connection; None where that is not known."""
    return _sent(_told(sock))


def sent_by_process(pid: int) -> Sent | None:
    """The same of the one connection that a process of ours has."""
    return _sent(_told_of(pid))


def _sent(info: bytes) -> Sent | None:
    if len(info) < _NOT_SENT_AT + 4:
        return None
    (unacked,) = struct.unpack_from("=I", info, _UNACKED_AT)
    (arrived,) = struct.unpack_from("=Q", info, _ACKED_AT)
    (not_sent,) = struct.unpack_from("=I", info, _NOT_SENT_AT)
    return Sent(arrived, bool(unacked or not_sent))


def _told(sock: Any) -> bytes:
    if not sys.platform.startswith("linux"):
        return b""
    try:
        info: bytes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _MIN_RTT_AT + 4)
    except OSError:
        return b""
    return info


def of_process(pid: int) -> float:
    """The shortest round trip of the one connection that a process of ours has, in seconds."""
    return _shortest(_told_of(pid))


def _told_of(pid: int) -> bytes:
    if not sys.platform.startswith("linux"):
        return b""
    try:
        inodes = set(_sockets(pid))
        found = [
            info
            for family in (socket.AF_INET, socket.AF_INET6)
            for inode, info in _connections(family)
            if inode in inodes
        ]
    except (OSError, struct.error):
        return b""
    return found[0] if len(found) == 1 else b""


def _shortest(info: bytes) -> float:
    if len(info) < _MIN_RTT_AT + 4:
        return math.inf
    (microseconds,) = struct.unpack_from("=I", info, _MIN_RTT_AT)
    # All bits are set before the first one was measured.
    return math.inf if microseconds in (0, 0xFFFFFFFF) else microseconds / 1e6


def _sockets(pid: int) -> Iterator[int]:
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        try:
            target = os.readlink(f"{folder}/{name}")
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            yield int(target[8:-1])


def _connections(family: int) -> Iterator[tuple[int, bytes]]:
    """Inodes and tcp_info of all TCP connections of this machine."""
    body = _request.pack(family, socket.IPPROTO_TCP, 1 << (_INET_DIAG_INFO - 1), 1 << _ESTABLISHED)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as diag:
        diag.settimeout(1)
        head = _header.pack(_header.size + len(body), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0)
        diag.send(head + body)
        while True:
            data = diag.recv(64 << 10)
            position = 0
            while position + _header.size <= len(data):
                length, kind, _, _, _ = _header.unpack_from(data, position)
                if kind != _SOCK_DIAG_BY_FAMILY or length < _header.size:
                    return  # the end, or an error
                yield _connection(data[position + _header.size : position + length])
                position += (length + 3) & ~3


def _connection(message: bytes) -> tuple[int, bytes]:
    (inode,) = struct.unpack_from("=I", message, _INODE_AT)
    position = _ATTRIBUTES_AT
    while position + _attribute.size <= len(message):
        length, kind = _attribute.unpack_from(message, position)
        if length < _attribute.size:
            break
        if kind == _INET_DIAG_INFO:
            return inode, message[position + _attribute.size : position + length]
        position += (length + 3) & ~3
    return inode, b""
