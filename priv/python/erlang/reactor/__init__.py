"""Protocols for sockets that Erlang accepted.

Erlang accepts a connection and hands its descriptor over; the protocol factory set here
makes a `Protocol` for it, whose callbacks are called when there is something to do. What
a callback returns says what happens next:

================  ================================================================
``continue``      keep the present interest
``write_pending`` there is something to write: `write_ready` is called now, then
                  whenever the kernel takes more
``read_pending``  wait for data
``close``         send what is in `write_buffer`, then close
``abort``         close now
``pause``         neither read nor write until `resume`; a vanished peer is noticed
None              ``write_pending`` if `write_buffer` holds something, else
                  ``read_pending``
================  ================================================================

While the kernel takes nothing, a protocol with the inherited `write_ready` is read on until
its `write_buffer` holds more than the high-water mark, and again when that holds less than
the low-water mark; one with a `write_ready` of its own is not read meanwhile.

Anything else, or an exception, costs that one connection: it is logged with its
traceback, and the connection is closed. All callbacks of one connection come from the
same thread; while a callback runs, the other connections of its context wait.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import _erlang
from erlang._terms import Connection

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc has it from Python 3.12

__all__ = [
    "Action",
    "Address",
    "Protocol",
    "ProtocolFactory",
    "SlowConsumer",
    "close_connection",
    "get_protocol",
    "init_connection",
    "on_read_ready",
    "on_write_ready",
    "resume",
    "send",
    "set_protocol_factory",
]

Action: TypeAlias = Literal["continue", "write_pending", "read_pending", "close", "abort", "pause"]
"""What a callback may ask for."""

Address: TypeAlias = tuple[Any, ...]
"""``(host, port)`` for IPv4, ``(host, port, flowinfo, scope_id)`` for IPv6 as in the
`socket` module, ``(path,)`` for a bound Unix socket."""

SlowConsumer: TypeAlias = Literal["drop_old", "drop_new", "buffer", "disconnect"]
"""What becomes of messages that Erlang pushes and the peer does not take."""

_log = logging.getLogger(__name__)

_ACTIONS: tuple[Action, ...] = (
    "continue",
    "write_pending",
    "read_pending",
    "close",
    "abort",
    "pause",
)

_DATAGRAM_KINDS = ("udp", "unix_dgram")

_MAX_READ = 122_880
"""The most bytes that one `Protocol.data_received` gets."""


class Protocol:
    """One connection. Override the callbacks; calling `super()` is never needed."""

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_handle",
        "client_info",
        "close_reason",
        "closed",
        "fd",
        "peer",
        "write_buffer",
    )

    fd: int
    """The number of the descriptor, for logs. -1 before `connection_made`."""
    client_info: dict[str, Any]
    """What the acceptor said of the client; at least ``type``, and for sockets with a
    peer ``addr`` and ``port``."""
    write_buffer: bytearray
    """Bytes to send. The inherited `write_ready` and the action ``close`` send them."""
    closed: bool
    """Whether the connection is over."""
    peer: Address | None
    """The address of the other end; for datagrams the sender of the last one."""
    close_reason: str | None
    """Why the connection ended: ``closed``, ``aborted``, ``eof``, ``reset``,
    ``peer_gone``, ``exception``, ``descriptor_gone``, ``stopped``, ``drained``, ``timeout``,
    ``idle_timeout``, ``handshake_timeout``, ``write_timeout``, ``slow_consumer``, or
    ``failed: ...`` with the text of a system error. None before that."""

    # In __new__, so that a subclass may write an __init__ without calling super().
    def __new__(cls, *_args: object, **_kwargs: object) -> Self:
        self = super().__new__(cls)
        self._handle = None
        self.fd = -1
        self.client_info = {}
        self.write_buffer = bytearray()
        self.closed = False
        self.peer = None
        self.close_reason = None
        return self

    _handle: _erlang.Connection | None

    def connection_made(self, fd: int, client_info: dict[str, Any]) -> Action | None:
        """The connection is open. Called once, before anything else.

        Args:
            fd: the number of the descriptor, the same as `self.fd`.
            client_info: the same as `self.client_info`.
        """

    def data_received(self, data: bytes) -> Action | None:
        """The peer sent something.

        Args:
            data: 1 to 122,880 bytes of a stream, or one datagram. Never empty: the end
                of a stream is `eof_received`.
        """

    def datagram_received(self, data: bytes, addr: Address | None) -> Action | None:
        """A datagram came in (datagram sockets only).

        The default calls `data_received`, unless the datagram is empty. `self.peer` is
        its sender already, to whom `write` answers.

        Args:
            data: the whole datagram, which may be empty.
            addr: its sender; None for an unbound Unix socket.
        """
        return self.data_received(data) if data else "continue"

    def eof_received(self) -> Action | None:
        """The peer ended its stream; it may still read. Called once at most.

        The default closes, after sending what is in `write_buffer`.
        """
        return "close"

    def write_ready(self) -> Action | None:
        """The kernel takes bytes. Called after ``write_pending``, at once and then as
        often as it takes more.

        The default sends `write_buffer` without copying it (the engine does the same by
        itself when this method is not overridden), then waits for data.
        """
        done = _erlang.connection_flush(self._handle, self.write_buffer)
        return "read_pending" if done else "continue"

    def timeout_expired(self) -> Action | None:
        """The time set with `set_timeout` is over. Called once for each time that was set.

        The default closes, after sending what is in `write_buffer`.
        """
        return "close"

    def message_received(self, message: object) -> Action | None:
        """Erlang sent a message with ``py_reactor:send(Conn, Term)``, or Python with `send`.

        The default logs it and leaves it at that.

        Args:
            message: the term, as the table of conversions has it; from Python the object itself.
        """
        cls = type(self)
        _log.warning(
            "%s.%s of %s takes no messages, but got a %s",
            cls.__module__,
            cls.__qualname__,
            self.peer,
            type(message).__qualname__,
        )
        return "continue"

    def draining(self) -> Action | None:
        """The listener takes no more connections and wants this one to end. Called once at
        most; at the listener's deadline the connection is closed.

        The default closes as soon as there is nothing to read and nothing to write; a peer that
        has never spoken has a second to do so. A protocol that knows better when its peer
        expects an answer overrides this: HTTP, for instance, says ``Connection:
        close`` with the next response.
        """
        _erlang.connection_close_when_idle(self._handle)
        return "continue"

    def connection_lost(self) -> None:
        """The connection is over; `close_reason` says why. Called exactly once for every
        protocol that was made, as the last callback. Its result is ignored."""

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes, and never more than 122,880, without waiting.

        Returns:
            At least one byte; ``b""`` only at the end of the stream or after a fatal
            error. One datagram, cut to `size`, on a datagram socket.

        Raises:
            BlockingIOError: nothing is there yet.
            ValueError: `size` is 0, or there is no connection yet.
            OverflowError: `size` is negative.
        """
        return _erlang.connection_read(self._handle, size)

    def write(self, data: Buffer) -> int:
        """Hand `data` to the kernel, without waiting. Any thread may call it.

        Returns:
            How many bytes the kernel took from the start of `data`: 0 when it takes none
            now. After a fatal error of a stream also 0, and the connection is closed
            whatever the callback returns.

        Raises:
            BrokenPipeError: the connection is over.
            OSError: the datagram cannot be sent (too long, no receiver).
            ValueError: there is no connection yet.
        """
        return _erlang.connection_write(self._handle, data)

    @property
    def connection(self) -> Connection:
        """The connection, for Erlang: to be sent there with `erlang.send`, and used with
        ``py_reactor:send/2``, ``push/2``, ``close/1`` and ``monitor/1``.

        Raises:
            ValueError: there is no connection yet.
        """
        if self._handle is None:
            raise ValueError("the protocol has no connection yet")
        return Connection(self._handle)

    def set_timeout(self, seconds: float | None) -> None:
        """Have `timeout_expired` called once, so many seconds from now. Any thread may call it.

        There is one timeout: this takes the place of one that was set before.

        Args:
            seconds: a number that is not negative; None for no timeout.

        Raises:
            ValueError: `seconds` is negative or no number, or there is no connection yet, or
                it is driven by hand.
        """
        _erlang.connection_set_timeout(self._handle, seconds)

    def pause_reading(self) -> None:
        """Read nothing more until `resume_reading`. What was received already is still handed
        over; a peer that vanishes is noticed. Any thread may call it.

        Raises:
            ValueError: there is no connection yet, or it is driven by hand.
        """
        _erlang.connection_hold_reading(self._handle, True)

    def resume_reading(self) -> None:
        """Go on reading. Any thread may call it.

        Raises:
            ValueError: there is no connection yet, or it is driven by hand.
        """
        _erlang.connection_hold_reading(self._handle, False)

    def set_slow_consumer(self, policy: SlowConsumer, messages: int | None = None) -> None:
        """Set what becomes of messages that Erlang pushes and the peer does not take in time.
        More than the listener's high-water mark never waits.

        Args:
            policy: ``drop_old`` (the oldest make room for the newest), ``drop_new`` (the
                newest is not taken), ``buffer`` (so many wait, with the next the connection
                ends) or ``disconnect`` (none waits: what the kernel does not take at once
                ends the connection).
            messages: for ``buffer`` only: how many, 1 or more.

        Raises:
            ValueError: no such policy, a number that does not fit, no connection yet, or one
                driven by hand.
        """
        _erlang.connection_set_slow_consumer(self._handle, policy, messages)


ProtocolFactory: TypeAlias = Callable[[], Protocol]
"""A subclass of `Protocol`, or anything that returns a new protocol when it is called."""


class _Registry:
    """What belongs to this interpreter; native code reads and writes it too."""

    __slots__ = ("by_hand", "datagrams_by_hand", "factory", "protocols")

    def __init__(self) -> None:
        self.factory: ProtocolFactory | None = None
        self.protocols: dict[int, Protocol] = {}
        self.by_hand: dict[int, Protocol] = {}
        self.datagrams_by_hand: set[int] = set()


_registry = _Registry()


def set_protocol_factory(factory: ProtocolFactory) -> None:
    """Set what makes the protocols of connections that are handed over from now on.

    Args:
        factory: a subclass of `Protocol`, or a callable without arguments that returns a
            protocol. It is called once for each connection.

    Raises:
        TypeError: `factory` cannot be called, or is a class but no `Protocol`.
    """
    _registry.factory = _checked(factory)


def _checked(factory: object) -> ProtocolFactory:
    if not callable(factory):
        raise TypeError(f"a protocol factory must be callable, not {type(factory).__name__}")
    if isinstance(factory, type) and not issubclass(factory, Protocol):
        raise TypeError(f"{factory.__qualname__} is no subclass of Protocol")
    return factory


def _protocol_named(module: str, name: str) -> ProtocolFactory:
    """What a listener's option ``protocol`` names: something in a module that is imported."""
    target: object = importlib.import_module(module)
    for part in name.split("."):
        target = getattr(target, part)
    return _checked(target)


def _check_protocol(module: str, name: str) -> None:
    """Raise what keeps `_protocol_named` from its result."""
    _protocol_named(module, name)


def get_protocol(fd: int) -> Protocol | None:
    """The protocol that serves descriptor `fd` now, if there is one."""
    protocol = _registry.protocols.get(fd)
    return _registry.by_hand.get(fd) if protocol is None else protocol


def resume(protocol: Protocol, action: Action | None = None) -> bool:
    """Give a connection an action from outside its callbacks. Any thread may call it.

    It ends a ``pause``, and works on a connection that is not paused too: for instance after
    another thread put something into `write_buffer`.

    Args:
        action: None means the same as from a callback: ``write_pending`` if `write_buffer` holds
            something, else ``read_pending``.

    Returns:
        False if the connection is over.

    Raises:
        ValueError: `action` is no action, or the protocol has no connection yet or is
            driven by hand.
        RuntimeError: the context is flooded with requests.
    """
    if action is None:
        action = "write_pending" if protocol.write_buffer else "read_pending"
    return _erlang.connection_resume(protocol._handle, action)


def send(protocol: Protocol, message: object) -> bool:
    """Have `Protocol.message_received` called with a message, on the thread of the connection: the
    way back for what another thread has done. Any thread may call it; messages of one thread
    arrive in order, also while the connection is paused.

    Args:
        message: any object, handed over as it is.

    Returns:
        False if the connection is over. One that ends before its turn gets no message any more.

    Raises:
        ValueError: the protocol has no connection yet or is driven by hand.
        RuntimeError: as many messages wait as may, some thousands: the thread of the connection is
            held up. Nothing was kept.
    """
    return _erlang.connection_send(protocol._handle, message)


# Driving one descriptor by hand: the engine does not know of it, and nothing happens by
# itself. For tests, and for loops of one's own.


def init_connection(fd: int, client_info: dict[str, Any]) -> Protocol:
    """Make the protocol for a descriptor and call its `connection_made`, whose answer is
    left out. If that raises, the connection is over and the exception goes on.

    The descriptor is duplicated: whoever opened `fd` still has to close it.

    Args:
        fd: a socket, pipe or terminal that the reactor does not serve.
        client_info: what the protocol is told; ``type`` is filled in.

    Raises:
        RuntimeError: there is no protocol factory.
        ValueError: `fd` is served already, or of a kind that cannot be served.
        OSError: `fd` is not open.
        TypeError: the factory returned no protocol, or one that has a connection already.
    """
    if _registry.factory is None:
        raise RuntimeError("no protocol factory: call set_protocol_factory first")
    if get_protocol(fd) is not None:
        raise ValueError(f"descriptor {fd} is served already")
    handle, kind = _erlang.connection_open(fd)
    info = {"type": kind, **client_info}
    protocol = _registry.factory()
    if not isinstance(protocol, Protocol):
        raise TypeError(f"the protocol factory returned {type(protocol).__qualname__}")
    if protocol._handle is not None:
        raise TypeError("the protocol factory returned a protocol that has a connection already")
    _registry.by_hand[fd] = protocol
    if kind in _DATAGRAM_KINDS:
        _registry.datagrams_by_hand.add(fd)
    try:
        protocol._handle = handle
        protocol.fd = fd
        protocol.peer = _erlang.connection_peer(handle)
        protocol.client_info = info
        protocol.connection_made(fd, info)
    except BaseException:
        _end_by_hand(fd, protocol, handle, "exception")
        raise
    return protocol


def on_read_ready(fd: int) -> Action:
    """Read once and call the callback that fits. A datagram is cut to 122,880 bytes.

    Returns:
        What the callback asks for; ``continue`` if nothing was there to read.

    Raises:
        ValueError: `fd` is not driven by hand, or the callback returned no action.
    """
    protocol = _driven(fd)
    try:
        data = protocol.read(_MAX_READ)
    except BlockingIOError:
        return "continue"
    if fd in _registry.datagrams_by_hand:
        protocol.peer = _erlang.connection_peer(protocol._handle)
        return _action(protocol, protocol.datagram_received(data, protocol.peer))
    if data:
        return _action(protocol, protocol.data_received(data))
    return _action(protocol, protocol.eof_received())


def on_write_ready(fd: int) -> Action:
    """Call `Protocol.write_ready`.

    Returns:
        What it asks for.

    Raises:
        ValueError: `fd` is not driven by hand, or the callback returned no action.
    """
    protocol = _driven(fd)
    return _action(protocol, protocol.write_ready())


def close_connection(fd: int) -> None:
    """End a connection: one driven by hand at once, with its `connection_lost`; one that
    the reactor serves as if a callback had returned ``close``.

    Raises:
        ValueError: no protocol serves `fd`.
    """
    protocol = _registry.by_hand.get(fd)
    if protocol is not None:
        _end_by_hand(fd, protocol, protocol._handle, "closed")
        return
    served = _registry.protocols.get(fd)
    if served is None:
        raise ValueError(f"no protocol serves descriptor {fd}")
    resume(served, "close")


def _end_by_hand(
    fd: int, protocol: Protocol, handle: _erlang.Connection | None, reason: str
) -> None:
    if _registry.by_hand.get(fd) is not protocol:
        return  # It has ended already: `connection_made` itself may close it.
    del _registry.by_hand[fd]
    _registry.datagrams_by_hand.discard(fd)
    _erlang.connection_close(handle)
    protocol.closed = True
    protocol.close_reason = reason
    protocol.connection_lost()


def _driven(fd: int) -> Protocol:
    protocol = _registry.by_hand.get(fd)
    if protocol is None:
        raise ValueError(f"descriptor {fd} is not driven by hand")
    return protocol


def _action(protocol: Protocol, word: Action | None) -> Action:
    if word is None:
        return "write_pending" if protocol.write_buffer else "read_pending"
    # By its letters: a value may refuse to be compared or hashed.
    for action in _ACTIONS:
        if isinstance(word, str) and str.__eq__(action, word):
            return action
    raise ValueError(f"{word!r} is no action")


# Contexts that run know the class and the registry of the first import. A later one, by
# `importlib.reload` or after a deletion in `sys.modules`, has them too.
_first: dict[str, object] = {"Protocol": Protocol, "_registry": _registry}
globals().update(vars(_erlang).setdefault("reactor", _first))
