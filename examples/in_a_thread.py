"""A server beside the rest of a program, which asks it something; `python in_a_thread.py`."""

import socket

from my_protocols import MyProtocol

from erlang.reactor.server import Server


def main() -> None:
    with Server(MyProtocol) as server, socket.create_connection(server.address) as client:
        client.sendall(b"hello")
        print(client.recv(100).decode(), "from port", server.address[1])
        print(server.stats()["accepted"], "connection")


if __name__ == "__main__":
    main()
