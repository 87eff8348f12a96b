"""Protocols that misbehave on purpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bad_values import BAD_ACTIONS, EXCEPTIONS, HostileStr
from reactor_case import Counted

import erlang.reactor as reactor


class Careful(Counted):
    """Does nothing wrong: after data it writes nothing and reads on."""

    def data_received(self, _data: bytes) -> Any:
        return "write_pending"

    def write_ready(self) -> Any:
        return "read_pending"


def _misbehaving(callback: str, misbehave: Callable[[], Any]) -> type[reactor.Protocol]:
    """A class that misbehaves in one callback only."""

    def method(self: Any, *_args: object) -> Any:
        if callback == "connection_lost":
            Counted.connection_lost(self)
        return misbehave()

    return type("Misbehaving", (Careful,), {callback: method, "__module__": __name__})


def answer(callback: str, name: str) -> None:
    """From now on a callback of new protocols answers with a value that is no action."""
    reactor.set_protocol_factory(_misbehaving(callback, BAD_ACTIONS[name]))


def throw(callback: str, name: str) -> None:
    """From now on a callback of new protocols, their `__init__` or the factory raises."""
    misbehave = EXCEPTIONS[name]
    if callback == "factory":
        reactor.set_protocol_factory(misbehave)
    else:
        reactor.set_protocol_factory(_misbehaving(callback, misbehave))


class Repeater(Careful):
    """Answers with what it was sent, in a str that resists."""

    def data_received(self, data: bytes) -> Any:
        return HostileStr(data.decode())
