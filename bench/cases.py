"""How many tests of a protocol a second: a simulated connection, an echo, its end.

Needs the distribution for plain CPython: ``pip install .`` at the root.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from erlang.reactor import Protocol
from erlang.reactor.testing import Drive, drive

ROUNDS = 9
CASES = 2000


class Echo(Protocol):
    def data_received(self, data: bytes) -> None:
        self.write_buffer += data


def case() -> None:
    """What a test does."""
    with drive(Echo) as wire:
        wire.send(b"hello")
        assert wire.received == b"hello"
        wire.half_close()
        assert wire.reason == "eof"


def message(wire: Drive) -> None:
    """One more message over a connection that is there."""
    wire.send(b"hello")
    assert wire.take() == b"hello"


def rates(work: Callable[[], object]) -> list[float]:
    """Times a second, in each round."""
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(CASES):
            work()
        found.append(CASES / (time.perf_counter() - began))
    return found


def tell(what: str, found: list[float]) -> None:
    median = statistics.median(found)
    print(f"{what}: {median:,.0f} a second ({min(found):,.0f} to {max(found):,.0f})")


def main() -> None:
    tell("cases", rates(case))
    with drive(Echo) as wire:
        tell("messages", rates(lambda: message(wire)))


if __name__ == "__main__":
    main()
