"""The echo server without Erlang. First `pip install` the folder of py_reactor, then, in this one:

python standalone.py 8000
"""

import sys

from my_protocols import MyProtocol

from erlang.reactor.server import Server


def main(port: int) -> None:
    server = Server(MyProtocol, "127.0.0.1", port, max_connections=10_000, idle_timeout=60)
    print("serving on", *server.address, flush=True)
    server.run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
