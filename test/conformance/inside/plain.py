"""Servers in plain CPython: `erlang.reactor.server`.

    plain.py SOCKET

obeys the suite, which listens at that Unix socket, until the end of stdin.
"""

from __future__ import annotations

import logging
import signal
import sys
from typing import Any

import channel
import told

from erlang.reactor.server import Reactor, Server

_servers: dict[str, Reactor] = {}


def serve(name: str, options: dict[str, Any]) -> Any:
    """Where a new server listens: a port on the loopback address, or a path.

    :param options: as Erlang has them, which counts milliseconds.
    """
    times = {
        option: value / 1000
        for option, value in options.items()
        if option.endswith("_timeout") and isinstance(value, int)
    }
    server = Server(getattr(told, name), **{**options, **times})
    _servers[name] = server
    server.start()
    return server.address[0] if "unix" in options else server.address[1]


def stop(name: str, within_ms: int) -> None:
    """Takes no more, lets connections end for so long, then closes."""
    _servers[name].stop(within_ms / 1000)


def restart(name: str) -> None:
    _servers[name].start()


def remove(name: str) -> None:
    _servers.pop(name).stop(0)


def info(name: str) -> dict[str, Any]:
    return _servers[name].stats()


def open_reactor(name: str) -> None:
    """Begins to serve what is handed in."""
    _servers[name] = Reactor(getattr(told, name))
    _servers[name].start()


def remove_reactor(name: str) -> None:
    _servers.pop(name).stop(0)


def hand_in(name: str, number: int) -> None:
    _servers[name].handoff(number)


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    # Interrupts system calls, and nothing else.
    signal.signal(signal.SIGUSR2, lambda number, frame: None)
    functions = (serve, stop, restart, remove, info, open_reactor, remove_reactor, hand_in)
    channel.serve_requests(
        sys.argv[1],
        {**told.FUNCTIONS, **{function.__name__: function for function in functions}},
    )
    sys.stdin.read()


if __name__ == "__main__":
    main()
