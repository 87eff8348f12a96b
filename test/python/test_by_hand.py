"""Protocols driven by hand, over socket pairs: what a test of one's own protocol looks like."""

from __future__ import annotations

import array
import mmap
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

import erlang
import erlang.reactor as reactor

if TYPE_CHECKING:
    from typing_extensions import Buffer

Drive = Callable[[reactor.ProtocolFactory], tuple[reactor.Protocol, socket.socket]]


class Echo(reactor.Protocol):
    """The letter-by-letter echo, which also notes what happens to it."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def connection_made(self, fd: int, client_info: dict[str, object]) -> None:
        self.events.append(f"made {client_info['type']}")

    def data_received(self, data: bytes) -> reactor.Action:
        self.write_buffer.extend(data)
        return "write_pending"

    def write_ready(self) -> reactor.Action:
        if not self.write_buffer:
            return "read_pending"
        written = self.write(bytes(self.write_buffer))
        del self.write_buffer[:written]
        return "continue" if self.write_buffer else "read_pending"

    def connection_lost(self) -> None:
        self.events.append("lost")


@pytest.fixture
def drive() -> Iterator[Drive]:
    """Make a protocol on one end of a socket pair, answer it and the other end."""
    theirs: list[socket.socket] = []
    driven: list[int] = []

    def start(factory: reactor.ProtocolFactory) -> tuple[reactor.Protocol, socket.socket]:
        reactor.set_protocol_factory(factory)
        near, far = socket.socketpair()
        theirs.extend((near, far))
        far.settimeout(5)
        protocol = reactor.init_connection(near.fileno(), {"addr": "test"})
        driven.append(near.fileno())
        return protocol, far

    yield start
    for fd in driven:
        if reactor.get_protocol(fd) is not None:
            reactor.close_connection(fd)
    for each in theirs:
        each.close()


def test_what_comes_goes_back(drive: Drive) -> None:
    protocol, far = drive(Echo)
    far.sendall(b"hello")
    assert reactor.on_read_ready(protocol.fd) == "write_pending"
    assert reactor.on_write_ready(protocol.fd) == "read_pending"
    assert far.recv(100) == b"hello"


def test_the_inherited_write_ready_sends_the_buffer(drive: Drive) -> None:
    protocol, far = drive(reactor.Protocol)
    protocol.write_buffer.extend(b"hello")
    assert reactor.on_write_ready(protocol.fd) == "read_pending"
    assert protocol.write_buffer == b""
    assert far.recv(100) == b"hello"


def test_read_raises_while_nothing_is_there(drive: Drive) -> None:
    protocol, far = drive(reactor.Protocol)
    with pytest.raises(BlockingIOError):
        protocol.read(100)
    far.sendall(b"x")
    assert protocol.read(100) == b"x"
    far.close()
    assert protocol.read(100) == b""


def shared(data: bytes) -> mmap.mmap:
    memory = mmap.mmap(-1, len(data))
    memory[:] = data
    return memory


@pytest.mark.parametrize(
    "buffer",
    [
        b"234",
        bytearray(b"234"),
        memoryview(b"1234")[1:],
        memoryview(bytearray(b"12345"))[1:4],
        memoryview(memoryview(b"1234")[1:]),
        memoryview(b"2x3x4x")[::2],
        array.array("B", b"234"),
        memoryview(array.array("B", b"1234"))[1:],
        memoryview(shared(b"1234"))[1:],
    ],
    ids=lambda buffer: type(getattr(buffer, "obj", buffer)).__name__,
)
def test_write_takes_every_kind_of_buffer(drive: Drive, buffer: Buffer) -> None:
    protocol, far = drive(Echo)
    assert protocol.write(buffer) == 3
    assert far.recv(9) == b"234"


def test_write_takes_an_empty_view(drive: Drive) -> None:
    protocol, _ = drive(Echo)
    assert protocol.write(memoryview(b"1234")[4:]) == 0


def test_write_takes_no_view_that_was_released(drive: Drive) -> None:
    protocol, _ = drive(Echo)
    view = memoryview(b"1234")
    view.release()
    with pytest.raises(ValueError, match="released"):
        protocol.write(view)


def test_a_bytearray_that_was_written_through_a_view_can_grow_again(drive: Drive) -> None:
    protocol, _ = drive(Echo)
    data = bytearray(b"1234")
    view = memoryview(data)
    assert protocol.write(view) == 4
    view.release()
    data += b"5"


def test_write_takes_nothing_when_the_kernel_is_full(drive: Drive) -> None:
    protocol, _far = drive(reactor.Protocol)
    while protocol.write(bytes(65536)):
        pass
    assert protocol.write(b"x") == 0
    assert not protocol.closed


def test_the_end_of_the_stream_closes(drive: Drive) -> None:
    protocol, far = drive(Echo)
    far.shutdown(socket.SHUT_WR)
    assert reactor.on_read_ready(protocol.fd) == "close"


def test_nothing_to_read_changes_nothing(drive: Drive) -> None:
    protocol, _far = drive(Echo)
    assert reactor.on_read_ready(protocol.fd) == "continue"


def test_close_calls_connection_lost_once(drive: Drive) -> None:
    protocol, _far = drive(Echo)
    assert isinstance(protocol, Echo)
    fd = protocol.fd
    reactor.close_connection(fd)
    assert protocol.events == ["made unix", "lost"]
    assert protocol.closed
    assert reactor.get_protocol(fd) is None
    with pytest.raises(ValueError, match="no protocol serves"):
        reactor.close_connection(fd)


def test_a_descriptor_is_served_once(drive: Drive) -> None:
    protocol, _far = drive(Echo)
    with pytest.raises(ValueError, match="served already"):
        reactor.init_connection(protocol.fd, {})


@pytest.mark.parametrize("word", ["", "contine", 7, b"close", "x" * 1_000_000, "\ud800"])
def test_what_is_no_action_is_an_error(drive: Drive, word: object) -> None:
    class Odd(reactor.Protocol):
        def data_received(self, data: bytes) -> reactor.Action:
            return word  # type: ignore[return-value]

    protocol, far = drive(Odd)
    far.sendall(b"x")
    with pytest.raises(ValueError, match="is no action"):
        reactor.on_read_ready(protocol.fd)


@pytest.mark.parametrize("factory", [None, 7, "Echo", object])
def test_a_factory_makes_protocols(factory: object) -> None:
    with pytest.raises(TypeError):
        reactor.set_protocol_factory(factory)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "ask",
    [
        lambda protocol: protocol.set_timeout(1),
        lambda protocol: protocol.pause_reading(),
        lambda protocol: protocol.resume_reading(),
        lambda protocol: protocol.set_slow_consumer("drop_old"),
        lambda protocol: protocol.draining(),
        lambda protocol: reactor.resume(protocol),
    ],
)
def test_what_only_an_engine_can_do_is_an_error(
    drive: Drive, ask: Callable[[reactor.Protocol], object]
) -> None:
    with pytest.raises(ValueError, match="no connection yet"):
        ask(reactor.Protocol())
    protocol, _far = drive(Echo)
    with pytest.raises(ValueError, match="driven by hand"):
        ask(protocol)


def test_a_connection_is_the_same_each_time(drive: Drive) -> None:
    with pytest.raises(ValueError, match="no connection yet"):
        _ = reactor.Protocol().connection
    one, other = drive(Echo)[0], drive(Echo)[0]
    assert isinstance(one.connection, erlang.Connection)
    assert one.connection == one.connection
    assert hash(one.connection) == hash(one.connection)
    assert one.connection != other.connection
    assert {one.connection: "one", other.connection: "other"}[one.connection] == "one"
    assert repr(one.connection).startswith("<erlang.Connection ")
    kept = one.connection
    reactor.close_connection(one.fd)
    assert kept == one.connection


def test_a_timeout_that_a_test_calls_itself_closes(drive: Drive) -> None:
    protocol, _far = drive(Echo)
    assert protocol.timeout_expired() == "close"
    assert protocol.message_received("hello") == "continue"
