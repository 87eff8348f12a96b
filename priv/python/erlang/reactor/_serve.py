"""``python -m erlang.reactor serve``: one process that serves, or a supervisor of several."""

from __future__ import annotations

import argparse
import os
import resource
import socket
import sys
import threading
from dataclasses import dataclass
from typing import Any

from erlang.reactor._load import LoadError, load
from erlang.reactor._terminal import (
    STATUS_EVERY_S,
    StatusLine,
    has_status_line,
    say,
    start_logging,
)
from erlang.reactor.server import Server

SPARE_DESCRIPTORS = 64
"""What a process needs besides its connections."""


@dataclass(frozen=True)
class Settings:
    """What the command line says. Times are in seconds."""

    protocol: str
    host: str
    port: int
    unix: str | None
    max_connections: int | None
    idle_timeout: float | None
    handshake_timeout: float | None
    write_timeout: float | None
    shutdown: float
    workers: int
    reload: bool
    log_level: str

    @classmethod
    def of(cls, chosen: argparse.Namespace) -> Settings:
        """Those of parsed arguments."""
        named = {name: getattr(chosen, name) for name in cls.__dataclass_fields__}
        unix = named["unix"]
        if unix is not None and unix.startswith("@"):
            # As socat, ss and systemd write abstract names.
            named["unix"] = "\0" + unix[1:]
        named["host"] = named["host"] or "127.0.0.1"
        named["port"] = 8000 if named["port"] is None else named["port"]
        return cls(**named)

    def server(self, *, reuseport: bool = False, listening: int | None = None) -> Server:
        """Listen, or accept from a descriptor that listens already.

        :raises LoadError: there is no such protocol.
        :raises OSError: it cannot listen there.
        """
        factory = load(self.protocol)
        sock = None if listening is None else socket.socket(fileno=listening)
        return Server(
            factory,
            self.host,
            self.port,
            unix=self.unix,
            sock=sock,
            reuseport=reuseport,
            max_connections=self.max_connections,
            idle_timeout=self.idle_timeout,
            handshake_timeout=self.handshake_timeout,
            write_timeout=self.write_timeout,
            shutdown=self.shutdown,
        )


def serve(chosen: argparse.Namespace) -> int:
    """Serve until a signal says that it is enough; returns the exit status."""
    settings = Settings.of(chosen)
    start_logging(settings.log_level)
    raise_descriptor_limit(settings.max_connections)
    if settings.workers > 1 or settings.reload:
        from erlang.reactor._supervisor import Supervisor

        return Supervisor(settings).run()
    return _serve_alone(settings)


def _serve_alone(settings: Settings) -> int:
    try:
        server = settings.server()
    except LoadError as error:
        say(f"error: {error}")
        return 2
    except (OSError, ValueError) as error:
        say(f"error: {reason(error)}")
        return 1
    announce(settings, server.address)
    ended = threading.Event()
    if has_status_line():
        threading.Thread(target=_show_status, args=(server, ended), daemon=True).start()
    try:
        server.run()
    except OSError as error:
        say(f"error: {reason(error)}")
        return 1
    finally:
        ended.set()
    return 0


def _show_status(server: Server, ended: threading.Event) -> None:
    line = StatusLine()
    while not ended.wait(STATUS_EVERY_S):
        line.draw(server.stats())
    line.erase()


def announce(settings: Settings, address: tuple[Any, ...], suffix: str = "") -> None:
    """Say where it serves."""
    if len(address) == 1:
        where = os.fsdecode(address[0])
        where = "@" + where[1:] if where.startswith("\0") else where
    else:
        where = (
            f"[{address[0]}]:{address[1]}" if len(address) == 4 else f"{address[0]}:{address[1]}"
        )
    say(f"serving {settings.protocol} on {where}, process {os.getpid()}{suffix}")


def reason(error: OSError | ValueError) -> str:
    """What went wrong, without its number."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def raise_descriptor_limit(max_connections: int | None) -> None:
    """Have as many descriptors as the process may, and say so if they will not do."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and (hard == resource.RLIM_INFINITY or soft < hard):
        wanted = hard
        if hard == resource.RLIM_INFINITY:
            wanted = max(soft, 1 << 20)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError):
            pass  # As macOS does for what it calls unlimited: it stays as it is.
    enough = SPARE_DESCRIPTORS + (max_connections or 1000)
    if soft != resource.RLIM_INFINITY and soft < enough and sys.stderr is not None:
        say(f"warning: {soft} descriptors at most (ulimit -n), so there is room for fewer clients")
