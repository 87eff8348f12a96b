"""Protocols that misbehave on purpose."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

from bad_values import (
    BAD_ACTIONS,
    EXCEPTIONS,
    Hostile,
    HostileBytearray,  # noqa: F401 for what puppets are sent
    HostileStr,
    Nameless,
    closed_coroutine,
    throw_it,
)
from reactor_case import Counted, Echo

import erlang
import erlang.reactor as reactor


class Careful(Counted):
    """Does nothing wrong: after data it writes nothing and reads on."""

    def data_received(self, _data: bytes) -> Any:
        return "write_pending"

    def write_ready(self) -> Any:
        return "read_pending"


def _misbehaving(callback: str, misbehave: Callable[[], Any]) -> type[reactor.Protocol]:
    """A class that misbehaves in one callback only."""

    def method(self: Any, *_args: object) -> Any:
        if callback == "connection_lost":
            Counted.connection_lost(self)
        return misbehave()

    return type("Misbehaving", (Careful,), {callback: method, "__module__": __name__})


def answer(callback: str, name: str) -> None:
    """From now on a callback of new protocols answers with a value that is no action."""
    reactor.set_protocol_factory(_misbehaving(callback, BAD_ACTIONS[name]))


def throw(callback: str, name: str) -> None:
    """From now on a callback of new protocols, their `__init__` or the factory raises."""
    misbehave = EXCEPTIONS[name]
    if callback == "factory":
        reactor.set_protocol_factory(misbehave)
    else:
        reactor.set_protocol_factory(_misbehaving(callback, misbehave))


class Repeater(Careful):
    """Answers with what it was sent, in a str that resists."""

    def data_received(self, data: bytes) -> Any:
        return HostileStr(data.decode())


class Puppet(Counted):
    """Runs what it is sent, with `self` and `answer`, and answers with `answer`."""

    made: ClassVar[list[Puppet]] = []

    def __init__(self) -> None:
        Puppet.made.append(self)

    def data_received(self, data: bytes) -> Any:
        scope = {"self": self, "answer": "read_pending"}
        exec(data, globals() | scope, scope)
        return scope["answer"]

    def connection_lost(self) -> None:
        super().connection_lost()
        Puppet.made.remove(self)


def puppet(serial: int) -> Puppet:
    """The puppet with that serial number."""
    return next(puppet for puppet in Puppet.made if puppet.serial == serial)


class Meddler(Careful):
    """Calls the functions for driving by hand, and resume, on itself in its callbacks."""

    calls: ClassVar[list[tuple[str, str, str]]] = []

    def meddle(self, callback: str, *names: str) -> None:
        functions: dict[str, Callable[[], Any]] = {
            "read": lambda: reactor.on_read_ready(self.fd),
            "write": lambda: reactor.on_write_ready(self.fd),
            "init": lambda: reactor.init_connection(self.fd, {}),
            "get": lambda: reactor.get_protocol(self.fd) is self,
            "resume": lambda: reactor.resume(self, "continue"),
            "close": lambda: reactor.close_connection(self.fd),
        }
        for name in names:
            try:
                result = repr(functions[name]())
            except Exception as error:
                result = type(error).__name__
            Meddler.calls.append((callback, name, result))

    def __init__(self) -> None:
        self.meddle("__init__", "read", "write", "init", "get", "resume", "close")

    def connection_made(self, _fd: int, _client_info: dict[str, Any]) -> Any:
        self.meddle("connection_made", "read", "write", "init", "get", "resume")

    def data_received(self, _data: bytes) -> Any:
        self.meddle("data_received", "read", "write", "init", "get", "resume")
        return "write_pending"

    def write_ready(self) -> Any:
        self.meddle("write_ready", "read", "write", "init", "get", "resume", "close")
        return "read_pending"

    def connection_lost(self) -> None:
        self.meddle("connection_lost", "read", "write", "get", "resume", "close")
        super().connection_lost()


class Unassignable(Careful):
    """Its attributes cannot be set."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in ("serial", "losses") and hasattr(self, "serial"):
            raise AttributeError(f"{name} is not for you")
        super().__setattr__(name, value)


class FixedNumber(Careful):
    """Its number is a property."""

    @property
    def fd(self) -> int:  # type: ignore[override]
        return 5

    @fd.setter
    def fd(self, value: int) -> None:
        if value != -1:
            raise AttributeError("fd is fixed")


class Uncallable(Careful):
    """What should be a method is none."""

    data_received = None  # type: ignore[assignment]


class Wanting(Careful):
    """Cannot be made without arguments."""

    def __init__(self, wanted: object) -> None:
        self.wanted = wanted


class LastWords(Careful):
    """Raises once more when it is deleted."""

    def __del__(self) -> None:
        raise RuntimeError("last words")


class _Liar:
    @property
    def __class__(self) -> Any:  # type: ignore[override]
        return reactor.Protocol


_one_for_all: list[reactor.Protocol] = []


def one_for_all() -> reactor.Protocol:
    """A factory that returns the same protocol each time."""
    if not _one_for_all:
        _one_for_all.append(Echo())
    return _one_for_all[0]


def forget_one_for_all() -> None:
    """Let the protocol of `one_for_all` go."""
    _one_for_all.clear()


NO_PROTOCOLS: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "int": lambda: 5,
    "str": lambda: "protocol",
    "class": lambda: Echo,
    "base class": lambda: reactor.Protocol,
    "module": lambda: reactor,
    "hostile": Hostile,
    "liar": _Liar,
    "nameless": Nameless,
    "wants arguments": Wanting,
    "coroutine": lambda: closed_coroutine(),
    "used by another": lambda: next(iter(reactor._registry.protocols.values())),
}
"""What a factory should not return."""

NO_FACTORIES: dict[str, Any] = {
    "None": None,
    "int": 5,
    "str": "Echo",
    "int class": int,
    "object class": object,
    "object": object(),
    "protocol": reactor.Protocol(),
}
"""What is no factory."""


def sham(name: str) -> None:
    """From now on the factory returns something that is no new protocol."""
    reactor.set_protocol_factory(lambda: NO_PROTOCOLS[name]())


def refused_factories() -> list[str]:
    """The names of what `set_protocol_factory` refuses, of all that it should refuse."""
    refused = []
    for name, factory in NO_FACTORIES.items():
        try:
            reactor.set_protocol_factory(factory)
        except TypeError:
            refused.append(name)
    return refused


def close_newest_echo() -> None:
    """Close the descriptor of the connection that was made last, under the reactor."""
    echoes = [p for p in list(reactor._registry.protocols.values()) if isinstance(p, Echo)]
    os.close(max(echoes, key=lambda echo: echo.serial).fd)


def abort_puppets() -> None:
    """End every puppet that is left."""
    for puppet in list(Puppet.made):
        reactor.resume(puppet, "abort")


_taken: list[tuple[int, str]] = []


def take_number(puppet: Puppet, path: str) -> None:
    """Close the descriptor of a puppet, and open a file that gets its number."""
    with open(path, "w") as file:
        file.write("mine")
    others = []
    os.close(puppet.fd)
    while (number := os.open(path, os.O_RDWR)) != puppet.fd:
        others.append(number)
    for other in others:
        os.close(other)
    _taken.append((number, path))


def file_of_taken_number() -> str:
    """What the file of `take_number` holds, read through its number, which is then closed."""
    number, path = _taken.pop()
    assert os.path.samestat(os.fstat(number), os.stat(path))
    content = os.pread(number, 100, 0).decode()
    assert os.lseek(number, 0, os.SEEK_CUR) == 0
    os.close(number)
    return content


_replaced: list[int] = []


def replace(puppet: Puppet) -> None:
    """Put another file in the place of a puppet's descriptor."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, puppet.fd)
    os.close(null)
    _replaced.append(puppet.fd)


def close_replacement() -> str:
    """Close what `replace` put there; returns what it is."""
    number = _replaced.pop()
    path = os.readlink(f"/proc/self/fd/{number}")
    os.close(number)
    return path


_open: list[Any] = []


def _keep(*keepers: Any) -> int:
    """The number of the first; all are closed by `close_no_connection`."""
    _open.extend(keepers)
    first = keepers[0]
    return first if isinstance(first, int) else first.fileno()


def _listening(family: int, kind: int = socket.SOCK_STREAM) -> int:
    server = socket.socket(family, kind)
    server.bind(("127.0.0.1", 0) if family == socket.AF_INET else "")
    server.listen()
    return _keep(server)


NO_CONNECTIONS: dict[str, tuple[str, Callable[[], int]]] = {
    "regular file": ("regular", lambda: _keep(tempfile.TemporaryFile())),  # noqa: SIM115  # noqa: SIM115
    "file in proc": ("regular", lambda: _keep(os.open("/proc/self/stat", os.O_RDONLY))),
    "file in memory": ("regular", lambda: _keep(os.memfd_create("memory"))),
    "folder": ("directory", lambda: _keep(os.open("/", os.O_RDONLY))),
    "path only": ("directory", lambda: _keep(os.open("/", os.O_PATH))),
    "/dev/null": ("character_device", lambda: _keep(os.open("/dev/null", os.O_RDWR))),
    "/dev/zero": ("character_device", lambda: _keep(os.open("/dev/zero", os.O_RDWR))),
    "epoll": ("epoll", lambda: _keep(select.epoll())),
    "eventfd": ("anonymous", lambda: _keep(os.eventfd(0))),
    "pidfd": ("anonymous", lambda: _keep(os.pidfd_open(os.getpid()))),
    "listener": ("listener", lambda: _listening(socket.AF_INET)),
    "Unix listener": ("listener", lambda: _listening(socket.AF_UNIX)),
    "seqpacket": (
        "seqpacket",
        lambda: _keep(*socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)),
    ),
    "seqpacket listener": (
        "seqpacket",
        lambda: _listening(socket.AF_UNIX, socket.SOCK_SEQPACKET),
    ),
    "netlink": ("socket", lambda: _keep(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))),
}
"""What can be open but not served: the kind that a refusal names, and how to open it."""


def open_no_connection(kind: str) -> int:
    """Open one of `NO_CONNECTIONS`."""
    return NO_CONNECTIONS[kind][1]()


def close_no_connection() -> None:
    """Close what `open_no_connection` opened; it must still be open."""
    while _open:
        keeper = _open.pop()
        if isinstance(keeper, int):
            os.close(keeper)
        else:
            assert keeper.fileno() >= 0
            keeper.close()


def fill_below(number: int) -> None:
    """Take all free numbers below this one, until `close_no_connection`."""
    while (taken := os.open(os.devnull, os.O_RDWR)) < number:
        _keep(taken)
    os.close(taken)


_pair: list[socket.socket] = []


def open_pair() -> int:
    """Open a pair of sockets; returns the number of one of them."""
    _pair.extend(socket.socketpair())
    return _pair[0].fileno()


def pair_echoes() -> bool:
    """Whether what goes into the pair comes back from whoever serves its other end."""
    _pair[1].settimeout(10)
    _pair[1].sendall(b"data")
    return _pair[1].recv(100) == b"data"


def close_pair() -> None:
    """Close both ends."""
    while _pair:
        _pair.pop().close()


class Falsy(Puppet):
    """Has a length, which is 0."""

    def __len__(self) -> int:
        return 0


class Unready(Counted):
    """By hand: `connection_made` raises."""

    def connection_made(self, _fd: int, _client_info: dict[str, Any]) -> Any:
        raise ValueError("not ready")


class Hasty(Counted):
    """By hand: `connection_made` closes its own connection, and then raises."""

    def connection_made(self, fd: int, _client_info: dict[str, Any]) -> Any:
        reactor.close_connection(fd)
        raise ValueError("too late")


class ByHand(Counted):
    """By hand: answers with what the test has put there."""

    answer: Any = None

    def data_received(self, _data: bytes) -> Any:
        return self.answer


def _outcome(function: Callable[..., Any], *arguments: Any) -> str:
    try:
        return str(function(*arguments))
    except BaseException as error:
        return type(error).__name__


def _init(factory: Any, number: Any, info: Any = None) -> str:
    before = reactor._registry.factory
    reactor._registry.factory = factory
    try:
        return _outcome(reactor.init_connection, number, {} if info is None else info)
    finally:
        reactor._registry.factory = before


def drive_by_hand_badly() -> dict[str, str]:
    """What the functions for driving by hand say to bad input."""
    open_pair()
    number = _pair[0].fileno()
    bystander = next(iter(reactor._registry.protocols.values()))
    told = {
        "nothing": _outcome(reactor.init_connection, -1, {}),
        "served": _outcome(reactor.init_connection, bystander.fd, {}),
        "listener": _init(Counted, open_no_connection("listener")),
        "not ready": _init(Unready, number),
        "hasty": _init(Hasty, number),
        "no dict": _init(Counted, number, 5),
        "no number": _init(Counted, "five"),
        "used": _init(lambda: bystander, number),
        "no factory": _init(None, number),
        "None": _init(lambda: None, number),
        "raises": _init(EXCEPTIONS["SystemExit"], number),
        "close nothing": _outcome(reactor.close_connection, number),
        "read nothing": _outcome(reactor.on_read_ready, number),
        "write nothing": _outcome(reactor.on_write_ready, number),
    }
    close_no_connection()
    close_pair()
    return told


def answer_by_hand() -> list[str]:
    """What `on_read_ready` says to each wrong answer."""
    open_pair()
    number = _pair[0].fileno()
    before = reactor._registry.factory
    reactor._registry.factory = ByHand
    protocol = reactor.init_connection(number, {})
    reactor._registry.factory = before
    assert isinstance(protocol, ByHand)
    outcomes = []
    # The others say what they like when they are printed.
    for name in ("zero", "bytes", "list", "dict", "lone_surrogate", "upper_case", "object"):
        protocol.answer = BAD_ACTIONS[name]()
        _pair[1].send(b"x")
        outcomes.append(_outcome(reactor.on_read_ready, number))
    protocol.answer = HostileStr("close")
    _pair[1].send(b"x")
    outcomes.append(_outcome(reactor.on_read_ready, number))
    reactor.close_connection(number)
    outcomes.append(_outcome(reactor.close_connection, number))
    close_pair()
    return outcomes


def spin() -> NoReturn:
    """Never return."""
    while True:
        pass


class _Spinning:
    """Never returns from being printed."""

    def __repr__(self) -> str:
        spin()


class _SpinningError(Exception):
    def __str__(self) -> str:
        spin()


class SpinningBuffer(Counted):
    """Its `write_buffer` never returns."""

    @property
    def write_buffer(self) -> Any:  # type: ignore[override]
        return spin() if getattr(self, "spins", False) else bytearray()

    @write_buffer.setter
    def write_buffer(self, _value: object) -> None:
        pass

    def data_received(self, _data: bytes) -> Any:
        self.spins = True
        return "write_pending"

    def connection_lost(self) -> None:
        self.spins = False
        super().connection_lost()


def spinning(where: str) -> None:
    """From now on new protocols never return from a callback, or from something around it."""
    spins: dict[str, type[reactor.Protocol]] = {
        "repr": _misbehaving("data_received", _Spinning),
        "str": _misbehaving("data_received", lambda: throw_it(_SpinningError())),
        "write_buffer": SpinningBuffer,
    }
    reactor.set_protocol_factory(spins.get(where) or _misbehaving(where, spin))


stubborn = False
"""Whether a `Stubborn` goes on."""


def _spin_while_stubborn() -> None:
    while stubborn:
        pass


class Stubborn(Counted):
    """Takes no interrupt."""

    def data_received(self, _data: bytes) -> Any:
        while stubborn:
            # In a function of its own: CPython 3.13 does not count the jump at the end of a loop
            # to what is around it, and there an interrupt arrives.
            with contextlib.suppress(BaseException):
                _spin_while_stubborn()


class Sleeper(Counted):
    """Sleeps for as many seconds as it is told, and echoes."""

    def data_received(self, data: bytes) -> Any:
        time.sleep(float(data))
        self.write_buffer += data


class Idle(Counted):
    """Asks for writing and writes nothing."""

    def data_received(self, _data: bytes) -> Any:
        return "write_pending"

    def write_ready(self) -> Any:
        return "continue"


class Flood(Counted):
    """Sends many bytes when it is asked to; the pattern has a length that divides nothing."""

    pattern = bytes(range(251))

    def data_received(self, data: bytes) -> Any:
        self.write_buffer += self.pattern * (int(data) // len(self.pattern))


class Letters(Flood):
    """The same with a `write_ready` of its own."""

    def write_ready(self) -> Any:
        if not self.write_buffer:
            return "read_pending"
        written = self.write(memoryview(self.write_buffer)[:1_000_000].tobytes())
        del self.write_buffer[:written]
        return "continue" if self.write_buffer else "read_pending"


class Direct(Counted):
    """Hands 200 MB to the kernel at once, in every way, and tells how much it took."""

    def data_received(self, data: bytes) -> Any:
        kind = {b"bytes": bytes, b"bytearray": bytearray}.get(data)
        big = bytes(200_000_000)
        taken = self.write(memoryview(big) if kind is None else kind(big))
        self.client_info["taken"] = taken


class Writers(Counted):
    """Threads write, resize the buffer and resume as long as the connection lives."""

    running: ClassVar[int] = 0

    def connection_made(self, _fd: int, _client_info: dict[str, Any]) -> Any:
        for work in (self.write_on, self.fill_on, self.resume_on):
            Writers.running += 1
            threading.Thread(target=self.work_on, args=(work,)).start()

    def work_on(self, work: Callable[[], None]) -> None:
        try:
            while not self.closed:
                work()
        except BrokenPipeError:
            pass
        finally:
            Writers.running -= 1

    def write_on(self) -> None:
        self.write(b"w" * 1000)

    def fill_on(self) -> None:
        if len(self.write_buffer) < 100_000:
            self.write_buffer += b"b" * 1000
        del self.write_buffer[:10]

    def resume_on(self) -> None:
        try:
            reactor.resume(self, "write_pending")
        except RuntimeError:
            time.sleep(0.001)

    def write_ready(self) -> Any:
        try:
            return super().write_ready()
        except BufferError:
            return "continue"

    def data_received(self, data: bytes) -> Any:
        return data.decode()


interrupted = 0
"""How often `until_interrupted` was interrupted."""


def until_interrupted() -> None:
    """Return when an interrupt comes."""
    global interrupted
    try:
        spin()
    except erlang.Interrupted:
        interrupted += 1


def bad_arguments(protocol: Any) -> list[str]:
    """Calls that should have raised and did not, or that raised something strange."""
    released = memoryview(b"released")
    released.release()
    handle = protocol._handle
    native = __import__("_erlang")
    calls: list[Callable[[], Any]] = [
        *(
            lambda data=data: protocol.write(data)
            for data in ("text", None, 5, [1, 2], released, Hostile(), protocol, memoryview)
        ),
        *(lambda size=size: protocol.read(size) for size in (0, -1, 2**70, None, "5", 1.5, b"5")),
        *(
            lambda action=action: reactor.resume(protocol, action)
            for action in ("", "Close", 5, b"close", "\ud800", "x" * 1_000_000, Hostile())
        ),
        *(lambda other=other: reactor.resume(other) for other in (None, 5, Hostile(), Echo)),
        *(lambda other=other: reactor.send(other, 1) for other in (None, 5, Hostile(), Echo)),
        *(
            lambda number=number: (reactor.get_protocol(number) and None) or [][0]
            for number in (-1, 2**70, None, "5", 1.5)
        ),
        *(
            lambda number=number: reactor.close_connection(number)
            for number in (-1, 2**70, None, "5", 1.5)
        ),
        lambda: native.connection_flush(handle, b"bytes"),
        lambda: native.connection_flush(None, bytearray()),
        lambda: native.connection_read(handle),
        lambda: native.connection_write(5, b"data"),
        lambda: native.connection_open(2**40),
        lambda: native.connection_open("5"),
        lambda: native.connection_close(None),
    ]
    strange = []
    for number, call in enumerate(calls):
        try:
            strange.append(f"{number}: {call()!r}")
        except (TypeError, ValueError, OverflowError, AttributeError, IndexError, BufferError):
            pass
        except BaseException as error:
            strange.append(f"{number}: {type(error).__name__}")
    return strange
