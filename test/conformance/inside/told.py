"""Protocols that tell the suite what happens to them.

A test gives the body of a class derived from `Told`; all that it may name is imported here. Each
callback is told when it begins, `connection_lost` when it has ended: nothing comes after it.
"""

from __future__ import annotations

import gc
import itertools
import os
import signal
import socket
import textwrap
import threading
import weakref
from collections.abc import Callable
from typing import Any

from channel import tell

import erlang.reactor as reactor

__all__ = ["FUNCTIONS", "Told"]

# Longer than the suite waits for anything: a callback that is held ends by itself, but not before.
_HOLD_SECONDS = 60.0
_TOLD_BYTES = 256

_serials = itertools.count(1)
_living: weakref.WeakValueDictionary[int, Told] = weakref.WeakValueDictionary()


class Told(reactor.Protocol):
    """What every protocol of a test can do."""

    serial: int
    gate: threading.Event

    def __new__(cls, *arguments: object, **keywords: object) -> Told:
        self = super().__new__(cls, *arguments, **keywords)
        self.serial = next(_serials)
        self.gate = threading.Event()
        _living[self.serial] = self
        return self

    def tell(self, what: str, **more: Any) -> None:
        """Says something else than that a callback was called."""
        tell(what, self.serial, **more)

    def hold(self) -> None:
        """Keeps the reactor in this callback until the suite has it go on."""
        self.tell("held")
        self.gate.wait(_HOLD_SECONDS)
        self.gate.clear()

    def fill(self) -> None:
        """Writes until the kernel takes no more."""
        while self.write(bytes(65536)):
            pass


class Neighbour(Told):
    """Echoes, whatever the others do."""

    def data_received(self, data: bytes) -> None:
        self.write_buffer += data


class Factory:
    """Makes the protocols of one server."""

    def __init__(self, cls: type[Told]) -> None:
        self.cls = cls
        self.neighbours = 0

    def __call__(self) -> Told:
        if self.neighbours:
            self.neighbours -= 1
            return _telling(Neighbour)()
        return self.cls()


def define(name: str, body: str) -> None:
    """Makes the factory `name` of protocols whose class has this body."""
    scope = dict(globals())
    exec(f"class P(Told):\n    pass\n{textwrap.indent(textwrap.dedent(body), '    ')}", scope)
    globals()[name] = Factory(_telling(scope["P"]))


def forget(name: str) -> None:
    """Undoes `define`."""
    del globals()[name]


def expect_neighbour(name: str) -> None:
    """Has a factory make the next protocol a `Neighbour`."""
    globals()[name].neighbours += 1


def evaluate(expression: str, serial: int | None) -> Any:
    """The value of an expression about `self`, the protocol with this number."""
    scope = dict(globals())
    if serial is not None:
        scope["self"] = _living[serial]
    value = eval(expression, scope)
    return value.decode("latin-1") if isinstance(value, (bytes, bytearray)) else value


def release(serial: int) -> None:
    """Has a protocol go on that holds the reactor."""
    _living[serial].gate.set()


def living() -> int:
    """How many protocols there are."""
    gc.collect()
    return len(_living)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (define, forget, expect_neighbour, evaluate, release, living)
}

_CALLBACKS: dict[str, Callable[..., dict[str, Any]]] = {
    "connection_made": lambda self, fd, info: {"fd": fd, "info": info, "peer": self.peer},
    "data_received": lambda self, data: {
        "data": data[:_TOLD_BYTES].decode("latin-1"),
        "length": len(data),
    },
    "datagram_received": lambda self, data, sender: {"data": data.decode(), "sender": sender},
    "eof_received": lambda self: {},
    "timeout_expired": lambda self: {},
    "draining": lambda self: {},
    "message_received": lambda self, message: {"message": message},
    "write_ready": lambda self: {},
}


def _telling(cls: type[Told]) -> type[Told]:
    """A class derived from `cls` whose callbacks are told."""
    # The reactor sees whether there is a `write_ready` of its own, and treats it otherwise.
    names = set(_CALLBACKS)
    if cls.write_ready is reactor.Protocol.write_ready:
        names.remove("write_ready")
    members: dict[str, Any] = {name: _told(name, getattr(cls, name)) for name in names}
    members["connection_lost"] = _told_at_last(cls.connection_lost)
    return type(cls.__name__, (cls,), members)


def _told(name: str, callback: Callable[..., Any]) -> Callable[..., Any]:
    def called(self: Told, *arguments: Any) -> Any:
        self.tell(name, **_CALLBACKS[name](self, *arguments))
        return callback(self, *arguments)

    return called


def _told_at_last(callback: Callable[..., Any]) -> Callable[..., Any]:
    def called(self: Told) -> Any:
        try:
            return callback(self)
        finally:
            self.tell("connection_lost", reason=self.close_reason, closed=self.closed)

    return called


# For the bodies that tests give.
_ = (os, signal, socket)
