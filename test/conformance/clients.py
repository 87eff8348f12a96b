"""Servers of a world and their clients, with what the protocols at the other end are told."""

from __future__ import annotations

import itertools
import os
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self, cast

from worlds import PATIENCE_S, Event, World, wait_until

__all__ = ["Client", "HandedIn", "Open", "Reactor", "Serve", "Served", "Server"]

Address = int | str
"""A port of the loopback address, or the path of a Unix socket."""

_numbers = itertools.count(1)


class Served(ABC):
    """A protocol of the world, as one client's end of a connection knows it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._seen = 0

    @abstractmethod
    def is_made_by(self, event: Event) -> bool:
        """Whether this `connection_made` is that of its protocol."""

    @property
    def serial(self) -> int:
        """The number of its protocol, once it is made."""

        def made() -> Event | None:
            events = (e for e in self.world.journal.events if e.what == "connection_made")
            return next(filter(self.is_made_by, events), None)

        event = self.world.journal.wait(f"connection_made for {self}", made)
        assert isinstance(event.of, int)
        return event.of

    @property
    def events(self) -> list[Event]:
        """All that its protocol was told so far."""
        serial = self.serial
        return [event for event in self.world.journal.events if event.of == serial]

    def next(self, what: str) -> Event:
        """The next that its protocol is told, which is this."""
        event = self._find(what, lambda event: True)
        assert event.what == what, f"{event} instead of {what}"
        return event

    def skip_to(self, what: str) -> Event:
        """The next of this kind that its protocol is told, whatever comes before."""
        return self._find(what, lambda event: event.what == what)

    def _find(self, what: str, is_wanted: Callable[[Event], bool]) -> Event:
        serial, seen = self.serial, self._seen
        events = self.world.journal.events

        def found() -> tuple[int, Event] | None:
            told = (event for event in events if event.of == serial)
            wanted = ((n, e) for n, e in enumerate(told) if n >= seen and is_wanted(e))
            return next(wanted, None)

        number, event = self.world.journal.wait(f"{what} of {serial}", found)
        self._seen = number + 1
        return cast(Event, event)

    def lost(self) -> str:
        """Why its connection is over, as the protocol is told; that is the next that it is told."""
        reason: str = self.next("connection_lost")["reason"]
        return reason

    def evaluate(self, expression: str) -> Any:
        """The value of a Python expression about `self`, its protocol, on another thread."""
        return self.world.ask("evaluate", expression, self.serial)

    def release(self) -> None:
        """Has its protocol go on that holds the reactor."""
        self.world.ask("release", self.serial)


class Client(Served):
    """A socket, and the protocol that serves it."""

    def __init__(self, server: Server, *, receive_bytes: int | None = None) -> None:
        """Connects.

        Args:
            receive_bytes: how much the kernel is to keep for a client that does not read.
        """
        super().__init__(server.world)
        self.server = server
        family = socket.AF_INET if isinstance(server.address, int) else socket.AF_UNIX
        self.socket = socket.socket(family)
        self.socket.settimeout(PATIENCE_S)
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        if isinstance(server.address, int):
            self.socket.connect(("127.0.0.1", server.address))
            self.peer = list(self.socket.getsockname())
        else:
            # A name of its own, by which it is known at the other end.
            name = f"\0conformance {os.getpid()} {next(_numbers)}"
            self.socket.bind(name)
            self.socket.connect(server.address)
            self.peer = [name]
        server.clients.append(self)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self, size: int) -> bytes:
        """As many bytes as that, or fewer if that is the end."""
        received = bytearray()
        while len(received) < size and (
            data := self.socket.recv(min(size - len(received), 1 << 20))
        ):
            received += data
        return bytes(received)

    def rest(self) -> bytes:
        """All that comes before the end of the stream, or before a reset."""
        received = bytearray()
        try:
            while data := self.socket.recv(1 << 20):
                received += data
        except ConnectionResetError:
            pass
        return bytes(received)

    def echoes(self, data: bytes) -> None:
        """Sends, and wants the same back."""
        self.send(data)
        assert self.receive(len(data)) == data

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Closes without a farewell: the other end gets RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def is_made_by(self, event: Event) -> bool:
        return bool(event["peer"] == self.peer)

    def nothing(self) -> None:
        """Its protocol was told nothing more, although its reactor has been awake since."""
        self.server.fence()
        assert self.events[self._seen :] == []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Server:
    """Listens for clients, and serves each with a protocol of one class."""

    def __init__(self, world: World, body: str, **options: Any) -> None:
        """Starts to listen.

        Args:
            body: that of the class of its protocols.
            options: those of a listener, by the names that both worlds have for them.
        """
        self.world = world
        self.clients: list[Client] = []
        self.name = f"Protocol{next(_numbers)}"
        self._neighbour: Client | None = None
        world.ask("define", self.name, body)
        self.address: Address = world.ask("serve", self.name, options)

    def connect(self, **options: Any) -> Client:
        """A client whose protocol has been told of it."""
        client = Client(self, **options)
        client.next("connection_made")
        return client

    def knock(self, **options: Any) -> Client:
        """A client that may have to wait for its protocol."""
        return Client(self, **options)

    @property
    def neighbour(self) -> Client:
        """A client of the same reactor which gets an echo, whatever its protocols do."""
        if self._neighbour is None:
            self.world.ask("expect_neighbour", self.name)
            self._neighbour = self.connect()
        return self._neighbour

    def fence(self) -> None:
        """Returns when the reactor has looked at all that was there before, and all that it told is
        known here."""
        for _ in range(3):
            self.neighbour.echoes(b"fence")
            self.neighbour.next("data_received")

    def info(self) -> dict[str, Any]:
        """What it counts."""
        counters: dict[str, Any] = self.world.ask("info", self.name)
        return counters

    def wait_for(self, **counters: int) -> dict[str, Any]:
        """Waits until it has counted this; returns all that it counts."""
        found: dict[str, Any] = {}

        def counted() -> bool:
            nonlocal found
            found = self.info()
            return all(found[name] == value for name, value in counters.items())

        wait_until(f"{counters}", counted)
        return found

    def begin_stop(self, within_ms: int) -> Callable[[], None]:
        """Begins to stop; what is returned waits until that is done."""
        return self.world.begin("stop", self.name, within_ms)

    def stop(self, within_ms: int) -> None:
        """Takes no more clients, lets the connections end for so long, then closes."""
        self.begin_stop(within_ms)()

    def restart(self) -> None:
        """Listens again, after a stop, at the same address."""
        self.world.ask("restart", self.name)

    def remove(self) -> None:
        """Stops for good."""
        for client in self.clients:
            client.close()
        self.world.ask("remove", self.name)
        self.world.ask("forget", self.name)


class HandedIn(Served):
    """What was handed in, and the protocol that serves it."""

    def __init__(self, reactor: Reactor, number: int) -> None:
        super().__init__(reactor.world)
        self._earlier = [e.of for e in self.world.journal.events if e.what == "connection_made"]
        self.world.ask("hand_in", reactor.name, number)

    def is_made_by(self, event: Event) -> bool:
        return event.of not in self._earlier


class Reactor:
    """Serves what is handed to it. The descriptors are the world's, and numbers here."""

    def __init__(self, world: World, body: str) -> None:
        self.world = world
        self.name = f"Protocol{next(_numbers)}"
        world.ask("define", self.name, body)
        world.ask("open_reactor", self.name)

    def hand_in(self, number: int) -> HandedIn:
        """Hands a descriptor in, whose number is consumed."""
        return HandedIn(self, number)

    def remove(self) -> None:
        """Ends all that it serves."""
        ended = {e.of for e in self.world.journal.events if e.what == "connection_lost"}
        made = {e.of for e in self.world.journal.events if e.what == "connection_made"}
        for serial in made - ended:
            self.world.ask("evaluate", "reactor.resume(self, 'abort')", serial)
        self.world.ask("remove_reactor", self.name)
        self.world.ask("forget", self.name)


Serve = Callable[..., Server]
"""What the fixture `serve` gives: starts a server that ends with the test."""

Open = Callable[[str], Reactor]
"""What the fixture `open_reactor` gives: starts a reactor that ends with the test."""
