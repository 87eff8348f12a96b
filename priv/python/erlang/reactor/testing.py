"""Drive protocols without sockets: a test says what the peer does, and sees what comes of it.

It is the engine that serves real sockets, with all its rules; only the kernel and the clock are
simulated. Nothing waits, and nothing depends on anything but the test::

    with drive(EchoProtocol) as wire:
        wire.accept(3)
        wire.send(b"hel", b"lo")
        assert wire.received == b"hel"
        wire.unblock()
        assert wire.received == b"hello"

Whatever a test does to a connection is served before the call returns, with all the callbacks
that follow from it. The time stands until `Drive.advance` moves it.

The fixture ``drive`` of `erlang.reactor.pytest_plugin` does the same and ends what a test leaves.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from traceback import format_exception
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeAlias

import _erlang
from erlang.reactor import Action, Protocol, ProtocolFactory
from erlang.reactor.server import SlowConsumerPolicy, limits

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc has it from Python 3.12

__all__ = ["Call", "Drive", "NotPushed", "Simulation", "drive"]

Kind: TypeAlias = Literal["tcp", "udp", "unix", "unix_dgram"]
"""What ``client_info["type"]`` says."""

Refusal: TypeAlias = Literal["closed", "full", "dropped", "too_large"]
"""Why bytes are not taken to be pushed."""

PEER = ("192.0.2.1", 50_000)
"""Who connects if nobody is named: an address that is for documentation (RFC 5737)."""


class Call(NamedTuple):
    """A call of a callback, and what came of it."""

    callback: str
    """Its name."""
    arguments: tuple[Any, ...]
    """What it was called with, besides ``self``."""
    action: Action | None
    """What the engine understood: never None for an answer of None, but what that means. None if
    the callback failed, and for ``connection_lost``, whose answer counts for nothing."""


class NotPushed(Exception):
    """Bytes were not taken to be pushed."""

    reason: Refusal
    """What ``py_reactor:push/2`` answers with ``{error, Reason}``."""

    def __init__(self, reason: Refusal) -> None:
        super().__init__(reason)
        self.reason = reason


class Simulation:
    """An engine with a clock of its own, for connections that are to be together there.

    One that only serves one connection is made by `drive`. Each is used by the thread that made
    it, and from outside of callbacks.

    Args:
        factory: what makes the protocols.
        idle_timeout: seconds, as all of these are; None for ever. The limits are those of a
            listener, with its defaults.
        handshake_timeout: the longest time until a callback says more than ``continue``.
        write_timeout: the longest time in which the peer takes nothing.
        high_water: bytes.
        low_water: bytes; None for the listener's default.
        slow_consumer: what becomes of pushed messages that the peer does not take.

    Raises:
        ValueError: a limit is out of its range.
    """

    def __init__(
        self,
        factory: ProtocolFactory,
        *,
        idle_timeout: float | None = None,
        handshake_timeout: float | None = None,
        write_timeout: float | None = 60.0,
        high_water: int = 65_536,
        low_water: int | None = None,
        slow_consumer: SlowConsumerPolicy = ("buffer", 1024),
    ) -> None:
        self._calls: list[tuple[int, str, tuple[Any, ...], Action | None]] = []
        self._errors: list[BaseException] = []
        self._known = 0  # errors that somebody has asked for
        # Of each connection, what its peer received.
        self._pieces: dict[int, list[bytes]] = {}
        # The last protocol that was made. Neither this list nor what is above refers to the
        # simulation, so that it ends with the last reference to it.
        self._made: list[object] = []
        self._native = _erlang.simulation_open(
            _keeping(factory, self._made),
            self._calls,
            self._errors,
            **limits(
                idle_timeout, handshake_timeout, write_timeout, high_water, low_water, slow_consumer
            ),
        )
        self._over = False

    def connect(
        self,
        *,
        type: Kind = "tcp",
        peer: tuple[str, int] | None = PEER,
        info: Mapping[str, Any] | None = None,
    ) -> Drive:
        """Make a connection and its protocol.

        Args:
            type: what it is for the protocol.
            peer: the address of the other end, or the sender of datagrams; Unix sockets have none.
            info: more for ``client_info``, as an acceptor may say it.

        Raises:
            Exception: what the factory raised.
            TypeError: it made no protocol.
            RuntimeError: there are a hundred connections.
        """
        self._made.clear()
        called = len(self._calls)
        origin = peer if type == "tcp" else None
        number = _erlang.simulation_connect(self._native, type, origin, dict(info or {}))
        protocol = self._made.pop() if self._made else None
        if len(self._calls) == called:
            # It did not come to `connection_made`: there is nothing to drive.
            raise self._errors.pop()
        assert isinstance(protocol, Protocol), "the engine has seen to that"
        self._collect(number)
        sender = peer if type == "udp" else None
        return Drive(self, number, protocol, sender)

    def run(self) -> None:
        """Let the engine do what is asked of it elsewhere: by `erlang.reactor.resume`, by another
        thread, or by one connection of another.

        Raises:
            RuntimeError: a protocol keeps the engine busy with nothing, which would cost a whole
                core: it answers ``continue`` to `write_ready` and writes nothing, for instance.
                Whatever else lets the engine work may raise it too.
        """
        _erlang.simulation_run(self._native)

    def advance(self, seconds: float) -> None:
        """Move the time forward. Each deadline on the way is met, at its very moment.

        Raises:
            ValueError: `seconds` is negative or no number.
        """
        _erlang.simulation_advance(self._native, seconds)

    def drain(self) -> None:
        """Ask the connections to end, as ``py_reactor:drain_listener/2`` does."""
        _erlang.simulation_drain(self._native)

    def stop(self) -> None:
        """End the connections, as at the deadline of a listener: what is buffered and can be sent
        at once is sent."""
        _erlang.simulation_stop(self._native)

    @property
    def errors(self) -> list[BaseException]:
        """What callbacks raised, the oldest first; also what they returned that is no action. Who
        asks for them knows of them: otherwise leaving a ``with`` block raises them."""
        self._known = len(self._errors)
        return list(self._errors)

    def close(self) -> None:
        """End everything. What was received and called can still be asked for."""
        if self._over:
            return
        try:
            _erlang.simulation_stop(self._native)
            for number in self._pieces:
                self._collect(number)
        finally:
            # Refused to a callback and to another thread: then it goes on.
            _erlang.simulation_close(self._native)
            self._over = True

    def _collect(self, number: int) -> list[bytes]:
        pieces = self._pieces.setdefault(number, [])
        if not self._over:
            pieces += _erlang.simulation_take(self._native, number)
        return pieces

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        unknown = self._errors[self._known :]
        self._known = len(self._errors)
        if exc is not None:
            # Most often it is the reason why what a test expects is not so.
            for error in unknown:
                text = "".join(format_exception(error)).rstrip()
                exc.add_note(f"A callback had failed:\n{text}")
        elif unknown:
            # What followed from the first failure is told with it.
            for error in unknown[1:]:
                unknown[0].add_note(f"afterwards: {type(error).__qualname__}: {error}")
            raise unknown[0]


def _keeping(factory: ProtocolFactory, made: list[object]) -> ProtocolFactory:
    if not callable(factory):
        raise TypeError(f"a protocol factory must be callable, not {type(factory).__name__}")

    def make() -> Protocol:
        protocol = factory()
        made.append(protocol)
        return protocol

    return make


class Drive:
    """One simulated connection: what its peer does, and what it sees. Made by `drive` and
    `Simulation.connect`."""

    protocol: Protocol
    """The protocol that serves it."""
    simulation: Simulation
    """Where it is served; a second connection to the same is made there."""

    def __init__(
        self,
        simulation: Simulation,
        number: int,
        protocol: Protocol,
        sender: tuple[str, int] | None,
    ) -> None:
        self.simulation = simulation
        self.protocol = protocol
        self._number = number
        self._sender = sender
        self._taken = 0
        self._ended = False

    # What the peer does.

    def send(self, *fragments: Buffer, sender: tuple[str, int] | None = None) -> None:
        """Send fragments of a stream, or datagrams.

        Each fragment comes in by itself, as if the network had torn the stream there; one of
        more than 122,880 bytes in pieces of that size. An empty one is nothing, but an empty
        datagram is one.

        Args:
            sender: whose the datagrams are; the connection's own peer if nobody is named.

        Raises:
            ValueError: the stream was ended before.
        """
        if self._ended:
            raise ValueError("nothing is sent after the end of the stream")
        pieces = [bytes(fragment) for fragment in fragments]
        _erlang.simulation_feed(
            self.simulation._native, self._number, pieces, sender or self._sender
        )

    def half_close(self) -> None:
        """End the stream towards the protocol, which may go on writing. (For a datagram socket,
        which has no end, nothing.)"""
        self._ended = True
        _erlang.simulation_half_close(self.simulation._native, self._number)

    def reset(self, error: int = errno.ECONNRESET) -> None:
        """Break the connection. What was sent before is still read.

        Args:
            error: the error number of the next call.
        """
        self._ended = True
        _erlang.simulation_fail(self.simulation._native, self._number, error)

    def accept(self, size: int) -> None:
        """Take so many bytes more and then none: what is written beyond them comes short or not at
        all. Before the first such call, or `block`, as many are taken as come.

        Raises:
            ValueError: `size` is less than 1.
        """
        if size < 1:
            raise ValueError(f"a peer accepts 1 byte or more, not {size}")
        _erlang.simulation_room(self.simulation._native, self._number, size)

    def block(self) -> None:
        """Take nothing any more, so that the kernel's buffer is full."""
        _erlang.simulation_room(self.simulation._native, self._number, 0)

    def unblock(self) -> None:
        """Take as many bytes as come."""
        _erlang.simulation_room(self.simulation._native, self._number, None)

    # What the world around does.

    def message(self, message: object) -> None:
        """Send a message, as ``py_reactor:send/2`` does.

        Args:
            message: what becomes a term and back again, by the table of conversions.

        Raises:
            TypeError, ValueError: it cannot become a term.
            RuntimeError: the connection is over.
        """
        _erlang.simulation_message(self.simulation._native, self._number, message)

    def push(self, data: Buffer) -> None:
        """Push bytes to the peer past the protocol, as ``py_reactor:push/2`` does.

        Raises:
            NotPushed: they were not taken.
        """
        reason = _erlang.simulation_push(self.simulation._native, self._number, bytes(data))
        if reason is not None:
            raise NotPushed(reason)

    def close(self) -> None:
        """Close the connection, as ``py_reactor:close/1`` does."""
        _erlang.simulation_end(self.simulation._native, self._number)

    def run(self) -> None:
        """See `Simulation.run`."""
        self.simulation.run()

    def advance(self, seconds: float) -> None:
        """See `Simulation.advance`."""
        self.simulation.advance(seconds)

    def drain(self) -> None:
        """See `Simulation.drain`."""
        self.simulation.drain()

    def stop(self) -> None:
        """See `Simulation.stop`."""
        self.simulation.stop()

    # What came of it.

    @property
    def received(self) -> bytes:
        """All that the peer received."""
        return b"".join(self.pieces)

    @property
    def pieces(self) -> list[bytes]:
        """The same, as it was written: by the call, and so datagram by datagram."""
        return list(self.simulation._collect(self._number))

    def take(self) -> bytes:
        """What the peer received since this was last called."""
        pieces = self.simulation._collect(self._number)[self._taken :]
        self._taken += len(pieces)
        return b"".join(pieces)

    @property
    def calls(self) -> list[Call]:
        """The callbacks that were called, in order. An inherited ``write_ready`` is not called: the
        engine sends `write_buffer` by itself."""
        return [
            Call(callback, arguments, action)
            for number, callback, arguments, action in self.simulation._calls
            if number == self._number
        ]

    @property
    def actions(self) -> list[Action | None]:
        """The actions of `calls`."""
        return [call.action for call in self.calls]

    @property
    def closed(self) -> bool:
        """Whether the connection is over."""
        simulation = self.simulation
        return simulation._over or not _erlang.simulation_is_open(simulation._native, self._number)

    @property
    def reason(self) -> str | None:
        """Why it is over, as `Protocol.close_reason` has it; None if it is not. Who asks knows of
        an ``exception``."""
        reason = self.protocol.close_reason
        if reason == "exception":
            self.simulation._known = len(self.simulation._errors)
        return reason

    @property
    def errors(self) -> list[BaseException]:
        """See `Simulation.errors`."""
        return self.simulation.errors

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.simulation.__exit__(exc_type, exc, traceback)


def drive(
    factory: ProtocolFactory,
    *,
    type: Kind = "tcp",
    peer: tuple[str, int] | None = PEER,
    info: Mapping[str, Any] | None = None,
    idle_timeout: float | None = None,
    handshake_timeout: float | None = None,
    write_timeout: float | None = 60.0,
    high_water: int = 65_536,
    low_water: int | None = None,
    slow_consumer: SlowConsumerPolicy = ("buffer", 1024),
) -> Drive:
    """Make a protocol with a simulated connection.

    Used in a ``with`` statement it is ended there, and what a callback raised is raised if the
    test has asked neither for `Drive.errors` nor for `Drive.reason`.

    Args:
        factory: a subclass of `Protocol`, or anything that returns a new protocol when it is
            called.
        type: see `Simulation.connect`, as for ``peer`` and ``info``.
        idle_timeout: see `Simulation`, as for the other limits.
    """
    simulation = Simulation(
        factory,
        idle_timeout=idle_timeout,
        handshake_timeout=handshake_timeout,
        write_timeout=write_timeout,
        high_water=high_water,
        low_water=low_water,
        slow_consumer=slow_consumer,
    )
    try:
        return simulation.connect(type=type, peer=peer, info=info)
    except BaseException:
        simulation.close()
        raise
