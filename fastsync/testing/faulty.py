"""Any backend, with a script of trouble between it and whoever uses it.

`FaultyBackend` has the abilities of what it wraps, and no others: a store, an upload or a download of it has
the same public methods, each of which first meets what `Faults` has in store for it. So the errors, delays
and lost answers that a protocol may give can be tried on a run over any protocol, a plug-in too.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final

from fastsync.backend import Backend, Source, StoreOptions, Upload
from fastsync.errors import FastsyncError
from fastsync.location import Location
from fastsync.testing.trouble import After, Faults, Short, Trouble

# Calls with an answer for each item: what is scripted for a path is that item's answer.
_BATCHES: Final = frozenset(
    {
        "complete", "copy_from", "delete", "file_ids", "link_identities", "make_directories",
        "make_hard_links", "make_links", "move_from", "read_whole", "read_xattrs", "set_attributes",
        "write_whole", "write_xattrs",
    }
)  # fmt: skip
# Calls whose answer has methods of its own that may fail.
_MAKES: Final = frozenset({"upload", "resume_upload", "open_download"})
# Of these an error is no answer, whatever the script says: None is.
_ANSWERS_WITHOUT_ERRORS: Final = frozenset({"file_ids", "link_identities"})


class FaultyBackend:
    """`inner`, of which every call meets `faults` first; "connect" and "aclose" of the backend among them.

    Scripts name a method of the contract, of a store, an upload or a download, and may name a path. What is
    asked for in batches is scripted item by item. `After` lets the call do its work, and then fails; `Short`
    ends what a read, or a listing, yields.
    """

    def __init__(self, inner: Backend, faults: Faults | None = None) -> None:
        self.inner = inner
        self.faults = faults or Faults()

    async def connect(self, location: Location, options: StoreOptions) -> Source:
        async def act() -> Source:
            return await self.inner.connect(location, options)

        store = await _call(self.faults, "connect", "", act)
        wrapped: Source = _wrap(store, self.faults, "")
        return wrapped

    async def aclose(self) -> None:
        await _call(self.faults, "aclose", "", self.inner.aclose)


class _Wrapped:
    """What all wrappers are: of `inner`, for `path` if it is about a single file."""

    def __init__(self, inner: Any, faults: Faults, path: str) -> None:
        self.inner, self.faults, self.path = inner, faults, path


def _wrap(inner: Any, faults: Faults, path: str) -> Any:
    return _class_for(type(inner))(inner, faults, path)


_classes: dict[type, type[_Wrapped]] = {}


def _class_for(kind: type) -> type[_Wrapped]:
    """A class with the public methods and properties of `kind`: abilities are asked for of classes."""
    if kind in _classes:
        return _classes[kind]
    members: dict[str, object] = {}
    for name in dir(kind):
        if not name.startswith("_"):
            members[name] = _member(name, inspect.getattr_static(kind, name))
    # What instances alone have, such as `location` and `limits`.
    members["__getattr__"] = lambda self, name: getattr(self.inner, name)
    for name in ("location", "limits"):
        members.setdefault(name, _property(name))
    made = _classes[kind] = type(f"Faulty{kind.__name__}", (_Wrapped,), members)
    return made


def _member(name: str, found: object) -> object:
    if inspect.isasyncgenfunction(found):
        return _generator(name)
    if inspect.iscoroutinefunction(found):
        if name in _BATCHES:
            return _batch(name)
        return _coroutine(name)
    if inspect.isfunction(found):
        # One that gives an iterator, as `read` may, or that asks nothing of the store.
        return _generator(name) if name in ("scan", "read", "read_back") else _plain(name)
    return _property(name)


def _property(name: str) -> property:
    return property(lambda self: getattr(self.inner, name))


def _plain(name: str) -> Callable[..., Any]:
    def method(self: _Wrapped, *args: Any, **named: Any) -> Any:
        return getattr(self.inner, name)(*_bare(args), **named)

    return method


def _coroutine(name: str) -> Callable[..., Any]:
    async def method(self: _Wrapped, *args: Any, **named: Any) -> Any:
        async def act() -> Any:
            return await getattr(self.inner, name)(*_bare(args), **named)

        path = self.path or _path_of(args)
        made = await _call(self.faults, name, path, act)
        if name in _MAKES and made is not None:
            return _wrap(made, self.faults, path or _path_of(args[1:]))
        return made

    return method


def _generator(name: str) -> Callable[..., Any]:
    async def method(self: _Wrapped, *args: Any, **named: Any) -> AsyncIterator[Any]:
        path = self.path or (_path_of(args) if name == "read" else "")
        end: Short | None = None
        passed = 0
        inner = getattr(self.inner, name)(*_bare(args), **named)
        try:
            while True:
                met = self.faults.take(name, path)
                if isinstance(met, Short):
                    end = met
                elif isinstance(met, After):
                    raise met.error
                else:
                    await self.faults.bear(met)
                try:
                    piece = await anext(inner)
                except StopAsyncIteration:
                    return
                size = len(piece) if isinstance(piece, bytes | bytearray | memoryview) else 1
                if end is not None and passed + size > end.after:
                    if isinstance(piece, bytes | bytearray | memoryview) and end.after > passed:
                        yield piece[: end.after - passed]
                    if end.error is not None:
                        raise end.error
                    return
                passed += size
                yield piece
        finally:
            aclose = getattr(inner, "aclose", None)
            if aclose is not None:
                await aclose()

    return method


def _batch(name: str) -> Callable[..., Any]:
    async def method(self: _Wrapped, *args: Any, **named: Any) -> list[Any]:
        where = next(i for i, each in enumerate(args) if isinstance(each, Sequence))
        items = list(args[where])
        answers: dict[int, FastsyncError | None] = {}
        late: dict[int, FastsyncError | None] = {}
        for number, item in enumerate(items):
            met = self.faults.take(name, _path_of((item,)))
            try:
                if isinstance(met, After | Short):
                    raise met.error or FastsyncError("cut short")
                await self.faults.bear(met)
            except FastsyncError as error:
                answer = None if name in _ANSWERS_WITHOUT_ERRORS else error
                (late if isinstance(met, After) else answers)[number] = answer
        passed = [item for number, item in enumerate(items) if number not in answers]
        changed = (*args[:where], passed, *args[where + 1 :])
        made = iter(await getattr(self.inner, name)(*_bare(changed), **named) if passed else ())
        every = [answers[n] if n in answers else next(made) for n in range(len(items))]
        return [late.get(number, answer) for number, answer in enumerate(every)]

    return method


async def _call(faults: Faults, method: str, path: str, act: Callable[[], Awaitable[Any]]) -> Any:
    met: Trouble = faults.take(method, path)
    if isinstance(met, After):
        made = await act()
        if isinstance(made, Upload):
            await made.abort()  # as a store does with one that nobody will hear of
        raise met.error
    if isinstance(met, Short):
        raise met.error or FastsyncError("cut short")
    await faults.bear(met)
    return await act()


def _bare(args: Sequence[Any]) -> list[Any]:
    """A store that is given to another one is recognized by what it is."""
    return [each.inner if isinstance(each, _Wrapped) else each for each in args]


def _path_of(args: Sequence[Any]) -> str:
    """Of an entry, a job, a pair or a name."""
    for each in args[:1]:
        if isinstance(each, str):
            return each
        if isinstance(path := getattr(each, "path", None), str):
            return path
        if isinstance(each, tuple) and each and isinstance(each[-1], str):
            return each[-1]
    return ""
