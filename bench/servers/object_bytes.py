"""Prints how many bytes the Python object of one connection has: the protocol, its buffer, and what
it was told of its client."""

from __future__ import annotations

import gc
import tracemalloc

from reactor_protocols import named

NUMBER = 1000


def told(port: int) -> tuple[dict[str, object], tuple[str, int]]:
    """As the engine tells it: nothing of it is shared between two connections."""
    host = ".".join(["127", "0", "0", str(port % 256)])
    return {"type": "tcp", "addr": host, "port": port}, (host, port)


def main() -> None:
    protocol = named("inherited")
    protocol()
    gc.collect()
    tracemalloc.start()
    living = []
    before = tracemalloc.get_traced_memory()[0]
    for number in range(NUMBER):
        made = protocol()
        made.client_info, made.peer = told(50_000 + number)
        living.append(made)
    grown = tracemalloc.get_traced_memory()[0] - before
    print(round(grown / len(living)))


if __name__ == "__main__":
    main()
