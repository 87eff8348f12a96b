"""A server for plain CPython: protocols without Erlang.

The same engine, protocols, limits and rules as behind a listener of Erlang's::

    from erlang.reactor.server import Server

    with Server(MyProtocol, "127.0.0.1", 0) as server:
        print(server.address)
        ...

One server is one thread: `Server.run` serves on the thread that calls it, `Server.start` on one
of its own. A `Reactor` is the same without a listening socket. Inside the Erlang VM there are
listeners and contexts instead: ``py_reactor:start_listener/2``, ``py_reactor_context:handoff/2``.
"""

from __future__ import annotations

import _thread
import atexit
import logging
import math
import os
import signal
import socket
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Literal, Self, TypeAlias

import _erlang
from erlang._terms import Interrupted
from erlang.reactor import Address, ProtocolFactory, _checked
from erlang.reactor._report import report, report_shortage

__all__ = ["Reactor", "Server", "SlowConsumerPolicy"]

SlowConsumerPolicy: TypeAlias = (
    Literal["drop_old", "drop_new", "disconnect"] | tuple[Literal["buffer"], int]
)
"""What becomes of pushed messages that the peer does not take."""

_log = logging.getLogger("erlang.reactor")

_INTERRUPT_AFTER_S = 1.0
"""So long after the time to drain a callback has that keeps the server from its end."""

_LOG_S = 1.0
"""So long the end of a run waits for a log line that does not get through."""

_MOST_S = 0x7FFFFFFF // 1000
"""The longest time of an option: 24 days, as in Erlang's options."""

SAME_SIGNAL_S = 0.1
"""A signal that comes again so soon is the same one: ``timeout`` and others send it to a process
and to the group that this is in."""

_AT_EXIT_S = 5.0
"""So long the end of the program waits for a callback that does not come back."""


class Reactor:
    """Serves descriptors that are handed to it, each with a protocol.

    Args:
        factory: a subclass of `Protocol`, or a callable without arguments that returns one.
        name: by which reports call it.

    Raises:
        TypeError: `factory` makes no protocols.
        OSError: no descriptor is left.
        RuntimeError: this is the Python inside the Erlang VM.
    """

    def __init__(self, factory: ProtocolFactory, *, name: str = "") -> None:
        self._set_up(factory, _options(name=name), _NOWHERE, 0.0)

    def _set_up(
        self,
        factory: ProtocolFactory,
        options: dict[str, Any],
        where: _Where,
        shutdown_s: float,
    ) -> None:
        if not hasattr(_erlang, "Server"):
            raise RuntimeError(
                "inside the Erlang VM its listeners serve: see py_reactor:start_listener/2"
            )
        self._factory = _checked(factory)
        self._options = options
        self._where = where
        self._shutdown_s = shutdown_s
        self._lock = threading.Lock()
        self._run: _Run | None = None
        self._last_stats: dict[str, Any] = {}
        self._bell = -1
        self._native: _erlang.Server | None = self._open()

    def _open(self) -> _erlang.Server:
        try:
            return _erlang.Server(
                address=self._where.address,
                unix=self._where.path,
                listening=self._where.fd(),
                **self._options,
            )
        except OSError as error:
            raise OSError(error.errno, f"{self._where.text}: {error.strerror}") from None

    def handoff(
        self, descriptor: socket.socket | int, info: Mapping[str, Any] | None = None
    ) -> None:
        """Serve a socket, pipe or terminal that is open already. Any thread may call it.

        Args:
            descriptor: a socket object, or the number of a descriptor. It is the reactor's from
                here on: closed, whatever comes.
            info: what the protocol is told; ``type``, ``addr`` and ``port`` are filled in.

        Raises:
            OSError: it is not open.
            ValueError: it cannot be served, or is served already; or `info` cannot be told.
            RuntimeError: the reactor has stopped, or too many wait for it already.
        """
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        try:
            native = self._native
            if native is None:
                raise RuntimeError("the reactor has stopped")
            native.hand_in(number, dict(info or {}))
        finally:
            if not isinstance(descriptor, int):
                descriptor.close()
            elif number >= 0:
                with suppress(OSError):
                    os.close(number)

    def run(self) -> None:
        """Serve on this thread until it is stopped.

        On the main thread SIGINT and SIGTERM stop it: the first lets the connections end, for
        the `shutdown` time of a server, the second ends them at once and raises
        `erlang.Interrupted` in the callback that is running. One that comes again within a tenth
        of a second is no second one. Signals that were ignored stay so;
        other handlers are called, and what they raise ends the run and is raised here.

        Raises:
            RuntimeError: it runs already, or was made before this process was forked.
            OSError: it was stopped before and cannot listen again.
        """
        run = self._begin()
        try:
            if threading.current_thread() is threading.main_thread():
                with self._signals(run):
                    run.serve(signals=True)
            else:
                run.serve(signals=False)
        finally:
            # Also of one that never began: no descriptor was left for the signals, or one came.
            run.ended.set()

    def start(self) -> None:
        """Serve on a thread of its own, until `stop`, or until the program ends.

        Raises:
            RuntimeError: it runs already, or was made before this process was forked.
            OSError: it was stopped before and cannot listen again.
        """
        run = self._begin()
        thread = threading.Thread(
            target=run.serve_in_thread, name=f"reactor {self._where.text}".strip(), daemon=True
        )
        try:
            thread.start()
        except BaseException:
            run.ended.set()
            raise
        run.started.wait()
        if run.failure is not None and not run.has_run:
            raise run.failure

    def stop(self, timeout: float | None = None) -> None:
        """End the run: a server listens no more, lets its connections end, and then closes those
        that are left. Waits until that is done, unless a callback calls it.

        Args:
            timeout: seconds that the connections have, ``math.inf`` for as long as it takes. By
                default the option `shutdown` of a server; a reactor closes at once.

        Raises:
            ValueError: `timeout` is negative or no number.

        A callback that still runs a second after that time gets an `erlang.Interrupted`. What does
        not run closes its listening socket; in a forked child nothing happens.
        """
        within_s = self._shutdown_s if timeout is None else timeout
        if not within_s >= 0:
            raise ValueError(f"a timeout is a number of seconds, 0 or more, not {timeout}")
        if within_s > _MOST_S:
            within_s = math.inf
        with self._lock:
            native, run = self._native, self._run
            if native is None or not native.is_ours():
                return
            if run is None:
                self._last_stats = native.stats()
                self._native = None
                return
            if run.ended.is_set():
                return
        run.stop(within_s)
        run.wait(within_s)

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop it."""
        self.stop()

    def stats(self) -> dict[str, Any]:
        """What is counted, in all runs together: the counters of a context. ``shortage`` says what
        is missing to accept clients, if something is."""
        native = self._native
        return self._last_stats if native is None else native.stats()

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__qualname__} {self._where.text}>"

    def _begin(self) -> _Run:
        with self._lock:
            if self._run is not None and not self._run.ended.is_set():
                raise RuntimeError(f"{self!r} runs already")
            if self._native is None:
                self._native = self._open()
                self._bell = -1
            self._run = _Run(self._native, self._factory)
            return self._run

    @contextmanager
    def _signals(self, run: _Run) -> Iterator[None]:
        if self._bell == -1:
            near, far = socket.socketpair()
            with far:
                run.native.wake_on(far.fileno())
            near.setblocking(False)
            self._bell = near.detach()
            weakref.finalize(self, os.close, self._bell)
        handlers = {
            number: signal.getsignal(number) or signal.SIG_DFL
            for number in (signal.SIGINT, signal.SIGTERM)
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        wakeup_fd = signal.set_wakeup_fd(self._bell, warn_on_full_buffer=False)
        asked = _AskedBySignal(run, self._shutdown_s)
        try:
            for number in handlers:
                signal.signal(number, asked)
            yield
        finally:
            signal.set_wakeup_fd(wakeup_fd)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            asked.wait()


class Server(Reactor):
    """Accepts connections and serves each with a protocol. It listens as soon as it is made.

    Args:
        factory: a subclass of `Protocol`, or a callable without arguments that returns one.
        host: an IP address, or a name, of which the first address is taken. ``""`` is any IPv4
            address, ``"::"`` any at all.
        port: 0 for one that the kernel chooses; see `address`.
        unix: the path of a Unix socket, in place of host and port. On Linux a name that begins with
            a NUL is no file.
        sock: a socket that listens already, in place of host and port. Other processes may accept
            from it too; it is yours to close, when the server is no longer needed.
        backlog: connections that wait in the kernel until they are accepted.
        reuseport: share the port with other sockets that say so too.
        nodelay: send small messages at once (TCP_NODELAY).
        max_connections: open at one time, the rest waits in the backlog; None for no limit.
        idle_timeout: seconds without a byte in either direction; None for ever.
        handshake_timeout: seconds until a callback says another action than ``"continue"``.
        write_timeout: seconds in which the peer takes nothing of what is to be sent.
        high_water: with more bytes to be sent nothing is read,
        low_water: with less it goes on; by default 16384, or half of a smaller high water mark.
        slow_consumer: ``"drop_old"``, ``"drop_new"``, ``"disconnect"`` or ``("buffer", messages)``.
        info: merged into the `client_info` of each protocol; with str as keys, and values that
            Erlang has, too: numbers, str, bytes, lists, dicts. Other objects come by the factory.
        shutdown: seconds that the connections have to end when the server stops; None for as
            long as it takes.
        name: by which reports call it.

    Raises:
        TypeError: `factory` makes no protocols, or an argument is of the wrong type.
        ValueError: an argument is out of its range.
        OSError: the address is in use, is not of this host, or cannot be resolved; or no
            descriptor is left.
        RuntimeError: this is the Python inside the Erlang VM.
    """

    def __init__(
        self,
        factory: ProtocolFactory,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        unix: str | bytes | os.PathLike[str] | None = None,
        sock: socket.socket | None = None,
        backlog: int = 1024,
        reuseport: bool = False,
        nodelay: bool = True,
        max_connections: int | None = None,
        idle_timeout: float | None = None,
        handshake_timeout: float | None = None,
        write_timeout: float | None = 60.0,
        high_water: int = 65_536,
        low_water: int | None = None,
        slow_consumer: SlowConsumerPolicy = ("buffer", 1024),
        info: Mapping[str, Any] | None = None,
        shutdown: float | None = 5.0,
        name: str = "",
    ) -> None:
        options = _options(
            name=name,
            backlog=backlog,
            reuseport=reuseport,
            nodelay=nodelay,
            max_connections=max_connections,
            idle_timeout=idle_timeout,
            handshake_timeout=handshake_timeout,
            write_timeout=write_timeout,
            high_water=high_water,
            low_water=low_water,
            slow_consumer=slow_consumer,
            info=info,
        )
        shutdown_s = math.inf if shutdown is None else _seconds("shutdown", shutdown)
        if sock is not None:
            where = _Where(None, None, "a socket that listens", sock)
        elif unix is not None:
            where = _on_path(os.fspath(unix))
        else:
            where = _on_host(host, port)
        self._set_up(factory, options, where, shutdown_s)
        assert self._native is not None
        self._address = self._native.address()
        # When it starts again it listens there again.
        self._where = where.at(self._address)

    @property
    def address(self) -> Address:
        """Where it listens: ``(host, port)``, ``(host, port, flowinfo, scope_id)`` for IPv6,
        ``(path,)`` for a Unix socket. It stays the same when the server is started again."""
        return self._address


def reserve(host: str, port: int) -> socket.socket:
    """Bind to an address that others will share by SO_REUSEPORT; it does not listen.

    :raises OSError: somebody has it, is not of this host, or cannot be resolved.
    """
    where = _on_host(host, port)
    assert where.address is not None
    ip = where.address[0]
    address = where.address if ":" in ip else where.address[:2]
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    try:
        # With SO_REUSEPORT alone another server of the same user would not be noticed.
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            address = probe.getsockname()
        reserved = socket.socket(family)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(address)
    except OSError as error:
        raise OSError(error.errno, f"{where.text}: {error.strerror}") from None
    return reserved


class _AskedBySignal:
    """The handler of the signals that end a run."""

    def __init__(self, run: _Run, shutdown_s: float) -> None:
        self._run = run
        self._shutdown_s = shutdown_s
        self._asked_at: float | None = None
        self._written: list[_thread.LockType] = []

    def __call__(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
            self._tell("%s: no more connections; those that are open may end", name)
            self._run.stop(self._shutdown_s)
            # Whoever sends one signal, as systemd does, expects an end of it.
            _thread.start_new_thread(self._run.wait, (self._shutdown_s,))
            return
        if now - self._asked_at < SAME_SIGNAL_S:
            return
        self._tell("%s again: closing all connections", name)
        self._run.stop(0)
        if self._run.native.is_busy():
            raise Interrupted(name)

    def _tell(self, message: str, name: str) -> None:
        """Log it on another thread: what the signal interrupts may be somebody who logs, or writes
        where the log goes, and neither can be entered twice. Not by `threading`, for the same
        reason."""
        written = _thread.allocate_lock()
        written.acquire()
        self._written.append(written)

        def tell() -> None:
            try:
                _log.info(message, name)
            finally:
                written.release()

        _thread.start_new_thread(tell, ())

    def wait(self) -> None:
        """Wait until all is logged."""
        for written in self._written:
            written.acquire(timeout=_LOG_S)


class _Run:
    """One run: from the call of `run` or `start` to its end."""

    __slots__ = (
        "_factory",
        "_thread",
        "_within_s",
        "ended",
        "failure",
        "has_run",
        "native",
        "started",
    )

    def __init__(self, native: _erlang.Server, factory: ProtocolFactory) -> None:
        self.native = native
        self._factory = factory
        self._thread: int | None = None
        self._within_s: float | None = None
        self.has_run = False
        self.started = threading.Event()
        self.ended = threading.Event()
        self.failure: BaseException | None = None

    def serve(self, *, signals: bool) -> None:
        self._thread = threading.get_ident()
        _running.add(self)
        try:
            self.native.serve(self._factory, report, report_shortage, self._has_started, signals)
        except BaseException as error:
            self.failure = error
            raise
        finally:
            _running.discard(self)
            self.ended.set()
            self.started.set()

    def serve_in_thread(self) -> None:
        try:
            self.serve(signals=False)
        except BaseException:
            # What keeps it from starting is raised where it was started.
            if self.has_run:
                _log.critical("the server has ended", exc_info=True)

    def _has_started(self) -> None:
        self.has_run = True
        self.started.set()
        # The native part knows of no stop that came between two runs.
        if self._within_s is not None:
            self.stop(self._within_s)

    def stop(self, within_s: float) -> None:
        self._within_s = within_s
        self.native.stop(None if math.isinf(within_s) else within_s)

    def wait(self, within_s: float, at_most_s: float = math.inf) -> None:
        """Wait for its end, and interrupt a callback that keeps it from that."""
        if self._thread == threading.get_ident():
            return
        patience_s = None if math.isinf(within_s) else within_s + _INTERRUPT_AFTER_S
        if self.ended.wait(patience_s):
            return
        waited_s = 0.0
        while waited_s < at_most_s:
            self.native.interrupt(Interrupted)
            if self.ended.wait(_INTERRUPT_AFTER_S):
                return
            waited_s += _INTERRUPT_AFTER_S

    def end_with_program(self) -> None:
        if self.native.is_ours():
            self.stop(0)
            self.wait(0, _AT_EXIT_S)


_running: set[_Run] = set()
"""The runs that go on now."""


@atexit.register
def _end_all() -> None:
    """Python ends, and will give the GIL to no thread but the main one."""
    for run in list(_running):
        run.end_with_program()


def _options(
    *,
    name: str,
    backlog: int = 1024,
    reuseport: bool = False,
    nodelay: bool = True,
    max_connections: int | None = None,
    idle_timeout: float | None = None,
    handshake_timeout: float | None = None,
    write_timeout: float | None = None,
    high_water: int = 65_536,
    low_water: int | None = None,
    slow_consumer: SlowConsumerPolicy = ("buffer", 1024),
    info: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The options for the native code, checked."""
    for key in info or {}:
        if not isinstance(key, str):
            raise TypeError(f"the keys of info are str, not {type(key).__name__}")
    return {
        "name": name,
        "backlog": _within("backlog", backlog, 1),
        "reuseport": bool(reuseport),
        "nodelay": bool(nodelay),
        "max_connections": _or_none("max_connections", max_connections, 0),
        "info": dict(info or {}),
        **limits(
            idle_timeout, handshake_timeout, write_timeout, high_water, low_water, slow_consumer
        ),
    }


def limits(
    idle_timeout: float | None,
    handshake_timeout: float | None,
    write_timeout: float | None,
    high_water: int,
    low_water: int | None,
    slow_consumer: SlowConsumerPolicy,
) -> dict[str, Any]:
    """What connections may do, for the native code. Times are rounded up to milliseconds: early
    would be a surprise.

    :raises TypeError, ValueError: a limit is none, or out of its range.
    """
    _within("high_water", high_water, 1)
    if low_water is None:
        low_water = min(16_384, high_water // 2)
    if _within("low_water", low_water, 0) >= high_water:
        raise ValueError(f"low_water is less than high_water, not {low_water}")
    return {
        "idle_timeout": _milliseconds("idle_timeout", idle_timeout),
        "handshake_timeout": _milliseconds("handshake_timeout", handshake_timeout),
        "write_timeout": _milliseconds("write_timeout", write_timeout),
        "high_water": high_water,
        "low_water": low_water,
        "slow_consumer": _policy(slow_consumer),
    }


def _within(name: str, value: int, least: int, most: int = 0x7FFFFFFF) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is an int, not {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"{name} is {least} to {most}, not {value}")
    return value


def _or_none(name: str, value: int | None, least: int) -> int | None:
    return None if value is None else _within(name, value, least)


def _seconds(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is a number of seconds, not {type(value).__name__}")
    if not 0 <= value <= _MOST_S:
        raise ValueError(f"{name} is 0 to {_MOST_S} seconds, not {value}")
    return value


def _milliseconds(name: str, seconds: float | None) -> int | None:
    if seconds is None:
        return None
    if _seconds(name, seconds) == 0:
        raise ValueError(f"{name} is more than 0 seconds; None is for ever")
    return math.ceil(seconds * 1000)


def _policy(policy: SlowConsumerPolicy) -> tuple[str, int | None]:
    match policy:
        case "drop_old" | "drop_new" | "disconnect":
            return policy, None
        case ("buffer", int(messages)):
            return "buffer", _within("slow_consumer", messages, 1)
    raise ValueError(f"no policy for slow consumers: {policy!r}")


@dataclass(frozen=True)
class _Where:
    """An IP address, a path, or a socket that listens, and how to call it."""

    address: tuple[str, int, int, int] | None
    path: str | bytes | None
    text: str
    sock: socket.socket | None = None

    def fd(self) -> int | None:
        """The number of a socket that listens already."""
        return None if self.sock is None else self.sock.fileno()

    def at(self, address: Address) -> _Where:
        """The same, with the port that the kernel chose."""
        if self.address is None:
            return self
        ip, _, flow, scope = self.address
        return _on_ip(ip, address[1], flow, scope)


_NOWHERE = _Where(None, None, "")


def _on_host(host: str, port: int) -> _Where:
    if not isinstance(host, str):
        raise TypeError(f"host is a str, not {type(host).__name__}")
    _within("port", port, 0, 65535)
    try:
        found = socket.getaddrinfo(
            host or "0.0.0.0", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise OSError(error.errno, f"{host}: {error.strerror}") from None
    except UnicodeError as error:
        raise ValueError(f"host is no name: {error}") from None
    ip, _, *rest = found[0][4]
    flow, scope = (int(part) for part in rest) if rest else (0, 0)
    # The scope of fe80::1%eth0 comes as a number beside it.
    return _on_ip(str(ip).partition("%")[0], port, flow, scope)


def _on_ip(ip: str, port: int, flow: int, scope: int) -> _Where:
    text = f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
    return _Where((ip, port, flow, scope), None, text)


def _on_path(path: str | bytes) -> _Where:
    if not path:
        raise ValueError("the path of a Unix socket is not empty")
    text = os.fsdecode(path)
    # An abstract name, as Linux itself shows it.
    return _Where(None, path, "@" + text[1:] if text.startswith("\0") else text)
