"""Protocols (not streams) of asyncio, under its own loop or another one.

    asyncio_server.py asyncio|uvloop|rloop echo|flow|http|h11

Prints `listening PORT`. README.md tells what the protocols do.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Callable
from typing import cast

__all__ = ["LOOPS", "PROTOCOLS", "serve"]

BACKLOG = 1024
BLOCK = bytes(range(256)) * 1024


class Protocol(asyncio.Protocol):
    """What all have. asyncio sets TCP_NODELAY on every TCP transport itself, the others too."""

    __slots__ = ("_transport",)

    _transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # The transports of other loops have the methods, but not the class.
        self._transport = cast(asyncio.Transport, transport)


class Echo(Protocol):
    """Sends back what arrives."""

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


class Flow(Protocol):
    """Counts what comes, or sends without end."""

    __slots__ = ("_bytes", "_downloads", "_full")

    def __init__(self) -> None:
        self._bytes = 0
        self._downloads = False
        self._full = False

    def data_received(self, data: bytes) -> None:
        if not self._bytes and data[:1] == b"D":
            self._downloads = True
            self.resume_writing()
        self._bytes += len(data)

    def eof_received(self) -> None:
        if not self._downloads:
            self._transport.write(self._bytes.to_bytes(8, "big"))

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        while self._downloads and not self._full and not self._transport.is_closing():
            self._transport.write(BLOCK)


class OneRequest(Protocol):
    """HTTP/1.0: one answer, then the end, as in examples/simple_http.py."""

    __slots__ = ("_received",)

    def __init__(self) -> None:
        self._received = bytearray()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if b"\r\n\r\n" not in self._received:
            return
        path = self._received.split(b" ", 2)[1].decode("latin-1")
        body = f"Hello! You requested {path}".encode("latin-1")
        head = f"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode("latin-1") + body)
        self._transport.close()


class H11(Protocol):
    """HTTP/1.1 by the library h11."""

    __slots__ = ("_conversation",)

    def __init__(self) -> None:
        from http_answers import Conversation

        self._conversation = Conversation()

    def data_received(self, data: bytes) -> None:
        self._transport.write(self._conversation.answers(data))
        if self._conversation.over:
            self._transport.close()


PROTOCOLS: dict[str, type[Protocol]] = {
    "echo": Echo,
    "flow": Flow,
    "http": OneRequest,
    "h11": H11,
}
LOOPS = ("asyncio", "uvloop", "rloop")


async def serve(protocol: Callable[[], asyncio.Protocol]) -> None:
    """Serves until the process is ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", 0, backlog=BACKLOG, reuse_address=True)
    print("listening", server.sockets[0].getsockname()[1], flush=True)
    # Not serve_forever: rloop 0.5 then closes a socket that listens already.
    await loop.create_future()


def main() -> None:
    loop, protocol = sys.argv[1:]
    if loop not in LOOPS or protocol not in PROTOCOLS:
        sys.exit(__doc__)
    # Not plain imports: this file is type-checked where the other loops are not installed.
    with asyncio.Runner(loop_factory=importlib.import_module(loop).new_event_loop) as runner:
        runner.run(serve(PROTOCOLS[protocol]))


if __name__ == "__main__":
    main()
