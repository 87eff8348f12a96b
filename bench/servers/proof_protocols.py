"""The protocols that script/prove serves, and what can be counted of them."""

from __future__ import annotations

import gc

import erlang
import erlang.reactor as reactor

__all__ = ["Bulk", "Crowd", "Echo", "Patient", "Subscriber", "Whole", "living"]


class Echo(reactor.Protocol):
    """Every byte comes back."""

    def data_received(self, data: bytes) -> None:
        self.write_buffer += data


class Crowd(Echo):
    """Echo that knows how many of its kind there were at once."""

    now = 0
    most = 0

    def connection_made(self, fd: int, client_info: dict[str, object]) -> None:
        Crowd.now += 1
        Crowd.most = max(Crowd.most, Crowd.now)

    def connection_lost(self) -> None:
        Crowd.now -= 1


class Patient(Echo):
    """Echo that stays until its client goes."""

    def draining(self) -> reactor.Action:
        return "continue"


class Whole(reactor.Protocol):
    """Echoes messages of 64 bytes, and says nothing before it has a whole one."""

    size = 64

    def __init__(self) -> None:
        self.received = bytearray()

    def data_received(self, data: bytes) -> reactor.Action:
        self.received += data
        whole = len(self.received) // self.size * self.size
        if not whole:
            return "continue"
        self.write_buffer += self.received[:whole]
        del self.received[:whole]
        return "write_pending"


class Bulk(Echo):
    """Echo that knows how much was waiting to be sent at once."""

    most = 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        Bulk.most = max(Bulk.most, len(self.write_buffer))


class Subscriber(Echo):
    """Tells the node that it is there, which pushes to it."""

    def connection_made(self, fd: int, client_info: dict[str, object]) -> None:
        erlang.send("proof", ("here", self.connection))


def living() -> int:
    """Protocol objects that are there."""
    gc.collect()
    return sum(issubclass(type(found), reactor.Protocol) for found in gc.get_objects())
