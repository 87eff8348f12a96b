"""Fixed work for the counting of instructions: `fixed_work.py PROTOCOL CONNECTIONS BYTES MESSAGES`.

As src/bin/fixed_work.rs, in plain CPython: one reactor serves both ends of each connection, the
client's with a protocol, too, and all happens on one thread, in the same order every time.
"""

from __future__ import annotations

import socket
import sys

from reactor_protocols import named

import erlang.reactor as reactor
from erlang.reactor.server import Reactor


class Client(reactor.Protocol):
    """Sends its next message when the last one is back."""

    home: Reactor
    message: bytes
    left: int

    def __init__(self) -> None:
        self.back = 0

    def connection_made(self, fd: int, client_info: dict[str, object]) -> reactor.Action:
        return self.send()

    def data_received(self, data: bytes) -> reactor.Action:
        self.back += len(data)
        return self.send() if self.back == len(self.message) else "read_pending"

    def send(self) -> reactor.Action:
        self.back = 0
        if Client.left == 0:
            self.home.stop()
            return "read_pending"
        Client.left -= 1
        self.write_buffer += self.message
        return "write_pending"


def main() -> None:
    echo = named(sys.argv[1])
    connections, size, Client.left = map(int, sys.argv[2:])
    Client.message = bytes(size)
    makers = [echo, Client] * connections
    Client.home = Reactor(lambda: makers.pop()())
    for _ in range(connections):
        for end in socket.socketpair():
            Client.home.handoff(end)
    Client.home.run()
    if Client.left:
        sys.exit("it ended too early")


if __name__ == "__main__":
    main()
