"""``python -m erlang.reactor bench``: echo load, with this engine as the client."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from contextlib import suppress
from typing import Any

from erlang.reactor import Action, Protocol
from erlang.reactor._serve import raise_descriptor_limit, reason
from erlang.reactor._terminal import say
from erlang.reactor.server import Reactor

WARM_UP_S = 0.5
"""Until connections, caches and clocks of the processor have found their pace."""

CONNECT_S = 10.0


class _Load:
    """What all connections share."""

    def __init__(self, size: int) -> None:
        # No two halves of it are alike, so that what is lost or doubled is noticed.
        self.message = bytes(n * 167 % 251 for n in range(size))
        self.took: dict[int, int] = {}
        self.wrong: str | None = None


class _Caller(Protocol):
    """Sends the message, waits for all of it to come back, and so on."""

    __slots__ = ("_began", "_heard", "_load")

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._heard = bytearray()
        self._began = 0

    def connection_made(self, fd: int, client_info: dict[str, Any]) -> Action:
        return self._call()

    def data_received(self, data: bytes) -> Action:
        load = self._load
        if self._heard or data != load.message:
            self._heard += data
            if len(self._heard) < len(load.message):
                return "read_pending"
            if self._heard != load.message:
                load.wrong = "what came back is not what was sent"
                return "abort"
            self._heard.clear()
        took_us = (time.perf_counter_ns() - self._began) // 1000
        load.took[took_us] = load.took.get(took_us, 0) + 1
        return self._call()

    def _call(self) -> Action:
        self.write_buffer += self._load.message
        self._began = time.perf_counter_ns()
        return "write_pending"

    def connection_lost(self) -> None:
        if self._load.wrong is None and self.close_reason != "stopped":
            self._load.wrong = f"a connection ended: {self.close_reason}"


def bench(chosen: argparse.Namespace) -> int:
    """Load a server; returns the exit status."""
    if (chosen.unix is None) == (chosen.port is None):
        say("error: name HOST and PORT, or --unix PATH (see --help)")
        return 2
    raise_descriptor_limit(chosen.connections)
    load = _Load(chosen.size)
    try:
        clients = _connect(chosen)
        elapsed_s = _run(load, clients, chosen.duration)
    except OSError as error:
        say(f"error: {reason(error)}")
        return 1
    if load.wrong is None and not load.took:
        load.wrong = "nothing came back in time"
    if load.wrong is not None:
        say(f"error: {load.wrong}")
        return 1
    result = _result(chosen, load, elapsed_s)
    try:
        print(json.dumps(result) if chosen.json else _text(result), flush=True)
    except BrokenPipeError:
        # Who read it has enough; nothing may be flushed into the pipe at the end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _connect(chosen: argparse.Namespace) -> list[socket.socket]:
    clients: list[socket.socket] = []
    try:
        while len(clients) < chosen.connections:
            clients.append(_client(chosen))
    except OSError as error:
        for client in clients:
            client.close()
        raise OSError(error.errno, f"{_target(chosen)}: {reason(error)}") from None
    return clients


def _client(chosen: argparse.Namespace) -> socket.socket:
    if chosen.unix is None:
        client = socket.create_connection((chosen.host, chosen.port), CONNECT_S)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client
    path = chosen.unix
    client = socket.socket(socket.AF_UNIX)
    try:
        client.settimeout(CONNECT_S)
        client.connect("\0" + path[1:] if path.startswith("@") else path)
    except OSError:
        client.close()
        raise
    return client


def _target(chosen: argparse.Namespace) -> str:
    return chosen.unix if chosen.unix is not None else f"{chosen.host}:{chosen.port}"


def _run(load: _Load, clients: list[socket.socket], duration_s: float) -> float:
    """Have the clients call; returns for how many seconds was measured."""
    with Reactor(lambda: _Caller(load), name="bench") as reactor:
        for client in clients:
            reactor.handoff(client)
        began = time.perf_counter()
        # Ctrl-C: what there is will do.
        with suppress(KeyboardInterrupt):
            _sleep(load, WARM_UP_S)
            load.took.clear()
            began = time.perf_counter()
            _sleep(load, duration_s)
        elapsed_s = time.perf_counter() - began
        load.took = dict(load.took)
        wrong = load.wrong
    load.wrong = wrong
    return elapsed_s


def _sleep(load: _Load, seconds: float) -> None:
    """Until it is over, or something goes wrong."""
    end = time.perf_counter() + seconds
    while load.wrong is None and (left := end - time.perf_counter()) > 0:
        time.sleep(min(left, 0.1))


def _result(chosen: argparse.Namespace, load: _Load, elapsed_s: float) -> dict[str, Any]:
    requests = sum(load.took.values())
    return {
        "target": _target(chosen),
        "connections": chosen.connections,
        "size": chosen.size,
        "seconds": round(elapsed_s, 3),
        "requests": requests,
        "requests_per_s": round(requests / elapsed_s),
        "latency_us": {
            "p50": _percentile(load.took, requests, 0.5),
            "p99": _percentile(load.took, requests, 0.99),
            "p99.9": _percentile(load.took, requests, 0.999),
            "max": max(load.took),
        },
    }


def _percentile(took: dict[int, int], total: int, part: float) -> int:
    """The shortest time within which that part of all requests was answered."""
    seen = 0
    for time_us in sorted(took):
        seen += took[time_us]
        if seen >= total * part:
            return time_us
    return max(took)


def _text(result: dict[str, Any]) -> str:
    latency = "  ".join(f"{name} {value:,}" for name, value in result["latency_us"].items())
    return (
        f"{result['target']}: {result['connections']:,} connections, {result['size']:,} bytes, "
        f"{result['seconds']} s\n"
        f"requests/s  {result['requests_per_s']:,}\n"
        f"latency us  {latency}"
    )
