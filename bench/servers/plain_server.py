"""py_reactor in plain CPython, without Erlang: `plain_server.py PROTOCOL`, by the names of
reactor_protocols.py. Prints `listening PORT`."""

from __future__ import annotations

import sys

from reactor_protocols import named

from erlang.reactor.server import Server

if __name__ == "__main__":
    server = Server(named(sys.argv[1]))
    print("listening", server.address[1], flush=True)
    server.run()
