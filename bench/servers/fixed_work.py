"""Fixed work for the counting of instructions: `fixed_work.py PROTOCOL CONNECTIONS BYTES MESSAGES`.

As src/bin/fixed_work.rs, in plain CPython: one reactor serves both ends of each connection, the
client's with a protocol, too, and all happens on one thread, in the same order every time.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable

from reactor_protocols import named

import erlang.reactor as reactor
from erlang.reactor.server import Reactor


class Work:
    """What is left to do. Not attributes of a class: to set one makes Python forget what it knows
    of the class, and look up everything anew."""

    __slots__ = ("left", "message", "reactor")

    reactor: Reactor

    def __init__(self, messages: int, size: int) -> None:
        self.left = messages
        self.message = bytes(size)


class Client(reactor.Protocol):
    """Sends its next message when the last one is back."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.back = 0

    def connection_made(self, fd: int, client_info: dict[str, object]) -> reactor.Action:
        return self.send()

    def data_received(self, data: bytes) -> reactor.Action:
        self.back += len(data)
        return self.send() if self.back == len(self.work.message) else "read_pending"

    def send(self) -> reactor.Action:
        self.back = 0
        if self.work.left == 0:
            self.work.reactor.stop()
            return "read_pending"
        self.work.left -= 1
        self.write_buffer += self.work.message
        return "write_pending"


def main() -> None:
    echo = named(sys.argv[1])
    connections, size, messages = map(int, sys.argv[2:])
    if connections < 1 or size < 1 or messages < 0:
        sys.exit("without connections and bytes there is no work")
    work = Work(messages, size)
    ends: list[Callable[[], reactor.Protocol]] = [echo, lambda: Client(work)]
    makers = ends * connections
    work.reactor = Reactor(lambda: makers.pop()())
    for _ in range(connections):
        for end in socket.socketpair():
            work.reactor.handoff(end)
    work.reactor.run()
    if work.left:
        sys.exit("it ended too early")


if __name__ == "__main__":
    main()
