"""Lean HTTP/1.1 for bodies and small objects: raw sockets, no object per chunk, no task per request.

Three ways to move bytes, by what is measured to be cheapest (benches/wire.py):

- small exchanges (`Wire.ask`, `Wire.ask_all`) are a state machine per connection, driven by callbacks of
  the event loop: nothing is awaited per item;
- bodies to and from files run in threads over blocking sockets, a large buffer or ``sendfile`` at a time,
  with the interpreter's lock released;
- a body in order (`Wire.receive`) is read by such a thread, one buffer ahead of its reader.

What comes from a server is bounded and checked: lengths that contradict each other, heads that go on and
bytes that nobody asked for end the connection.
"""

from fastsync.wire.client import Wire
from fastsync.wire.messages import (
    MAX_BODY,
    Headers,
    Memory,
    Origin,
    Outgoing,
    Reply,
    WireOptions,
)

__all__ = [
    "MAX_BODY",
    "Headers",
    "Memory",
    "Origin",
    "Outgoing",
    "Reply",
    "Wire",
    "WireOptions",
]
