"""What the stores in memory keep their files in, open to a test's eyes and hands."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fastsync.backend import Kind, Limits, Owner
from fastsync.errors import NameRefused
from fastsync.names import safe_parts
from fastsync.testing.trouble import Faults, Gauge

MAX_HOPS = 40  # links followed for one path, as on Linux

_versions = itertools.count(1)


@dataclass(slots=True)
class Node:
    """A file, directory or link. `content` is never changed, only replaced: a reader keeps its own."""

    kind: Kind
    mtime_ns: int
    mode: int
    content: bytes = b""
    target: str | None = None
    owner: Owner | None = None
    version: int = field(default_factory=_versions.__next__)
    stored_ns: int = field(default_factory=time.time_ns)
    children: dict[str, Node] = field(default_factory=dict)


def directory() -> Node:
    return Node("dir", time.time_ns(), 0o755)


class Box:
    """What one name holds. `limits` may be replaced by a test before it connects.

    `held` counts bytes that readers have not given back and that are inside writes, `streams` the reads
    and writes under way, `uploads` those neither committed nor aborted.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.faults = Faults()
        self.held = Gauge()
        self.streams = Gauge()
        self.uploads = Gauge()
        self.root = directory()

    def put(self, path: str, content: bytes, *, mtime_ns: int = 0, mode: int = 0o644) -> None:
        """Have a file at `path`, from the top of the box, without asking any store."""
        *above, name = safe_parts(path)
        parent = self.root
        for part in above:
            parent = parent.children.setdefault(part, directory())
        parent.children[name] = Node("file", mtime_ns, mode, content)

    def files(self) -> dict[str, bytes]:
        """Every file, by its path from the top of the box."""
        return {path: node.content for path, node in _files(self.root, "")}

    def find(self, names: Sequence[str], *, follow: bool) -> Node | None:
        """The node `names` lead to from the top, through links only if `follow`.

        Raises NameRefused when links lead in a circle.
        """
        todo = list(reversed(names))
        chain = [self.root]
        hops = 0
        while todo:
            name = todo.pop()
            if name in ("", "."):
                continue
            if name == "..":
                chain = chain[:-1] or chain
                continue
            node = chain[-1].children.get(name)
            if node is None:
                return None
            if node.kind == "link" and follow:
                hops += 1
                if hops > MAX_HOPS:
                    raise NameRefused("symbolic links lead in a circle")
                target = node.target or ""
                chain = chain[:1] if target.startswith("/") else chain
                todo.extend(reversed(target.split("/")))
            else:
                chain.append(node)
        return chain[-1]


def _files(parent: Node, prefix: str) -> Iterator[tuple[str, Node]]:
    for name, node in parent.children.items():
        if node.kind == "file":
            yield prefix + name, node
        yield from _files(node, f"{prefix}{name}/")
