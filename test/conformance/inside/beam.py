"""Servers in the BEAM: listeners of py_reactor, which the node has registered functions for."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import channel
import told

import erlang
import erlang.reactor as reactor

__all__ = ["open_channel"]


def open_channel(path: str) -> None:
    """Obeys the suite, which listens at `path`."""
    functions = {name: _call(name) for name in ("serve", "stop", "restart", "remove", "info")}
    channel.serve_requests(
        path,
        {
            **told.FUNCTIONS,
            **functions,
            "open_reactor": open_reactor,
            "remove_reactor": lambda name: None,
            "hand_in": hand_in,
        },
    )


def open_reactor(name: str) -> None:
    """Begins to serve what is handed in: the context does."""
    reactor.set_protocol_factory(getattr(told, name))


def hand_in(name: str, number: int) -> None:
    """Hands a descriptor in, and closes it, as Erlang leaves open what none of its ports has."""
    try:
        erlang.call("hand_in", number, timeout=None)
    finally:
        with suppress(OSError):
            os.close(number)


def _call(name: str) -> Any:
    def call(*arguments: Any) -> Any:
        return erlang.call(name, *arguments, timeout=None)

    return call
