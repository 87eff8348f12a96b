"""The functions that drive a descriptor by hand, on every kind of descriptor."""

from __future__ import annotations

import errno
import functools
import gc
import os
import socket
import struct
import tty
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import erlang.reactor as reactor

Event = tuple[object, ...]


class Noting(reactor.Protocol):
    """Notes its callbacks, and answers what it is told to."""

    answer: reactor.Action | None = "continue"

    def __init__(self) -> None:
        self.events: list[Event] = []

    def connection_made(self, fd: int, client_info: dict[str, Any]) -> None:
        self.events.append(("made", fd, client_info))

    def data_received(self, data: bytes) -> reactor.Action | None:
        self.events.append(("data", data))
        return self.answer

    def eof_received(self) -> reactor.Action | None:
        self.events.append(("eof",))
        return self.answer

    def connection_lost(self) -> None:
        self.events.append(("lost", self.close_reason))


class NotingDatagrams(Noting):
    def datagram_received(self, data: bytes, addr: reactor.Address | None) -> reactor.Action | None:
        self.events.append(("datagram", data, addr))
        assert addr == self.peer
        return self.answer


class Drive:
    """Makes protocols, and ends those that a test leaves."""

    def __init__(self) -> None:
        self._fds: list[int] = []

    def __call__(self, fd: int, factory: type[Noting] = Noting) -> Noting:
        reactor.set_protocol_factory(factory)
        protocol = reactor.init_connection(fd, {})
        assert isinstance(protocol, Noting)
        self._fds.append(fd)
        return protocol

    def end(self) -> None:
        for fd in self._fds:
            if reactor.get_protocol(fd) is not None:
                reactor.close_connection(fd)


@pytest.fixture
def drive() -> Iterator[Drive]:
    drive = Drive()
    yield drive
    drive.end()


@pytest.fixture
def stream() -> Iterator[tuple[socket.socket, socket.socket]]:
    yield from _pair(socket.SOCK_STREAM)


@pytest.fixture
def datagrams() -> Iterator[tuple[socket.socket, socket.socket]]:
    yield from _pair(socket.SOCK_DGRAM)


def _pair(kind: socket.SocketKind) -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair(socket.AF_UNIX, kind)
    far.settimeout(10)
    with near, far:
        yield near, far


@pytest.fixture
def tcp() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    far.settimeout(10)
    with near, far:
        yield near, far


def test_a_connection_goes_its_way(
    drive: Drive, stream: tuple[socket.socket, socket.socket]
) -> None:
    near, far = stream
    protocol = drive(near.fileno())
    assert protocol.events == [("made", near.fileno(), {"type": "unix"})]
    assert reactor.get_protocol(near.fileno()) is protocol
    assert protocol.client_info == {"type": "unix"}
    far.sendall(b"hello")
    assert reactor.on_read_ready(near.fileno()) == "continue"
    far.shutdown(socket.SHUT_WR)
    assert reactor.on_read_ready(near.fileno()) == "continue"
    reactor.close_connection(near.fileno())
    assert protocol.events[1:] == [("data", b"hello"), ("eof",), ("lost", "closed")]
    assert protocol.closed


@pytest.mark.parametrize(
    ("answer", "buffered", "action"),
    [
        ("continue", b"", "continue"),
        ("continue", b"x", "continue"),
        ("read_pending", b"x", "read_pending"),
        ("write_pending", b"", "write_pending"),
        ("close", b"", "close"),
        ("abort", b"x", "abort"),
        ("pause", b"", "pause"),
        (None, b"", "read_pending"),
        (None, b"x", "write_pending"),
    ],
)
def test_answers_become_actions(
    drive: Drive,
    stream: tuple[socket.socket, socket.socket],
    answer: reactor.Action | None,
    buffered: bytes,
    action: reactor.Action,
) -> None:
    near, far = stream
    protocol = drive(near.fileno())
    protocol.answer = answer
    protocol.write_buffer += buffered
    far.sendall(b"x")
    assert reactor.on_read_ready(near.fileno()) == action
    far.shutdown(socket.SHUT_WR)
    assert reactor.on_read_ready(near.fileno()) == action


def test_a_word_made_at_run_time_is_the_same_action(
    drive: Drive, stream: tuple[socket.socket, socket.socket]
) -> None:
    near, far = stream
    protocol = drive(near.fileno())
    protocol.answer = "".join(["read_", "pending"])  # type: ignore[assignment]
    far.sendall(b"x")
    assert reactor.on_read_ready(near.fileno()) == "read_pending"


def test_tcp_has_a_peer(drive: Drive, tcp: tuple[socket.socket, socket.socket]) -> None:
    near, far = tcp
    protocol = drive(near.fileno())
    assert protocol.peer == far.getsockname()
    assert protocol.client_info == {"type": "tcp"}


def test_info_stays_what_it_was_given(stream: tuple[socket.socket, socket.socket]) -> None:
    reactor.set_protocol_factory(Noting)
    info = {"addr": "somewhere", "type": "other"}
    protocol = reactor.init_connection(stream[0].fileno(), info)
    try:
        assert protocol.client_info == info
        protocol.client_info["more"] = 1
        assert "more" not in info
    finally:
        reactor.close_connection(stream[0].fileno())


def test_a_reset_ends_reading(drive: Drive, tcp: tuple[socket.socket, socket.socket]) -> None:
    near, far = tcp
    protocol = drive(near.fileno())
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    assert protocol.read(10) == b""
    with pytest.raises(BrokenPipeError) as raised:
        protocol.write(b"x")
    assert raised.value.errno == errno.EPIPE


def test_a_write_to_nobody_takes_nothing_once(
    drive: Drive, stream: tuple[socket.socket, socket.socket]
) -> None:
    near, far = stream
    protocol = drive(near.fileno())
    far.close()
    assert protocol.write(b"x") == 0
    with pytest.raises(BrokenPipeError):
        protocol.write(b"x")


def test_the_inherited_write_ready_waits_for_a_slow_reader(
    drive: Drive, stream: tuple[socket.socket, socket.socket]
) -> None:
    near, far = stream
    protocol = drive(near.fileno())
    data = os.urandom(2_000_000)
    protocol.write_buffer += data
    received = bytearray()
    while reactor.on_write_ready(near.fileno()) == "continue":
        received += far.recv(100_000)
    assert not protocol.write_buffer
    while len(received) < len(data):
        received += far.recv(100_000)
    assert received == data


def test_datagrams_keep_their_bounds(
    drive: Drive, datagrams: tuple[socket.socket, socket.socket]
) -> None:
    near, far = datagrams
    protocol = drive(near.fileno())
    for data in b"one", b"", b"two":
        far.send(data)
    # The inherited datagram_received hands on what is not empty.
    for _ in range(3):
        assert reactor.on_read_ready(near.fileno()) == "continue"
    assert protocol.events[1:] == [("data", b"one"), ("data", b"two")]
    assert reactor.on_read_ready(near.fileno()) == "continue"
    assert len(protocol.events) == 3


def test_datagrams_come_with_their_sender(drive: Drive) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as first,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as second,
    ):
        for each in near, first, second:
            each.bind(("127.0.0.1", 0))
            each.settimeout(10)
        protocol = drive(near.fileno(), NotingDatagrams)
        for sender, data in (first, b"one"), (second, b""), (first, b"two"):
            sender.sendto(data, near.getsockname())
            assert reactor.on_read_ready(near.fileno()) == "continue"
            assert protocol.events[-1] == ("datagram", data, sender.getsockname())
            assert protocol.peer == sender.getsockname()
            assert protocol.write(b"answer") == 6
            assert sender.recvfrom(100) == (b"answer", near.getsockname())
        with pytest.raises(OSError, match=r"[Mm]essage too long"):
            protocol.write(bytes(70_000))
        assert protocol.write(b"") == 0


def test_a_blocking_datagram_socket_is_not_waited_for(
    drive: Drive, datagrams: tuple[socket.socket, socket.socket]
) -> None:
    near, _far = datagrams
    drive(near.fileno())
    near.setblocking(True)
    assert reactor.on_read_ready(near.fileno()) == "continue"


def test_a_pipe_has_two_ends(drive: Drive) -> None:
    reading, writing = os.pipe()
    reader, writer = drive(reading), drive(writing)
    assert reader.client_info == writer.client_info == {"type": "pipe"}
    assert reader.peer is None
    assert writer.write(b"hello") == 5
    assert reactor.on_read_ready(reading) == "continue"
    with pytest.raises(BlockingIOError):
        writer.read(1)
    reactor.close_connection(writing)
    os.close(writing)
    assert reactor.on_read_ready(reading) == "continue"
    assert reader.events[1:] == [("data", b"hello"), ("eof",)]
    reactor.close_connection(reading)
    os.close(reading)


def test_a_terminal_is_read_and_written(drive: Drive) -> None:
    near, far = os.openpty()
    tty.setraw(far)
    try:
        protocol = drive(near)
        assert protocol.client_info == {"type": "tty"}
        os.write(far, b"typed")
        assert reactor.on_read_ready(near) == "continue"
        assert protocol.events[-1] == ("data", b"typed")
        assert protocol.write(b"shown") == 5
        assert os.read(far, 100) == b"shown"
        reactor.close_connection(near)
    finally:
        os.close(near)
        os.close(far)


def test_the_descriptor_is_duplicated(
    drive: Drive, stream: tuple[socket.socket, socket.socket]
) -> None:
    near, far = stream
    fd = near.fileno()
    protocol = drive(fd)
    near.close()
    assert protocol.write(b"still open") == 10
    assert far.recv(100) == b"still open"
    reactor.close_connection(fd)
    assert far.recv(100) == b""


def test_what_ended_is_let_go(stream: tuple[socket.socket, socket.socket]) -> None:
    reactor.set_protocol_factory(Noting)
    fd = stream[0].fileno()
    protocol = weakref.ref(reactor.init_connection(fd, {}))
    reactor.close_connection(fd)
    gc.collect()
    assert protocol() is None


def test_a_protocol_that_outlives_its_end_is_harmless(
    drive: Drive, stream: tuple[socket.socket, socket.socket]
) -> None:
    protocol = drive(stream[0].fileno())
    reactor.close_connection(stream[0].fileno())
    assert protocol.read(10) == b""
    with pytest.raises(BrokenPipeError):
        protocol.write(b"x")
    protocol.write_buffer += b"x"
    with pytest.raises(BrokenPipeError):
        protocol.write_ready()
    assert reactor.resume(protocol) is False


def test_what_is_driven_by_hand_cannot_be_resumed(
    drive: Drive, stream: tuple[socket.socket, socket.socket]
) -> None:
    with pytest.raises(ValueError, match="by hand"):
        reactor.resume(drive(stream[0].fileno()))


@pytest.mark.parametrize("function", [reactor.on_read_ready, reactor.on_write_ready])
def test_driving_needs_a_connection(function: Any) -> None:
    with pytest.raises(ValueError, match="not driven by hand"):
        function(12345)


def test_a_descriptor_that_is_not_open_is_an_os_error() -> None:
    reactor.set_protocol_factory(Noting)
    for fd in -1, 98765:
        with pytest.raises(OSError, match=r"[Bb]ad file"):
            reactor.init_connection(fd, {})
        assert reactor.get_protocol(fd) is None


def test_a_descriptor_of_another_kind_is_a_value_error(tmp_path: Path) -> None:
    reactor.set_protocol_factory(Noting)
    with (tmp_path / "file").open("wb") as file, pytest.raises(ValueError, match="regular"):
        reactor.init_connection(file.fileno(), {})
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        pytest.raises(ValueError, match="listener"),
    ):
        reactor.init_connection(listener.fileno(), {})


@pytest.mark.parametrize(
    "factory",
    [Noting, lambda: Noting(), functools.partial(Noting)],
    ids=["class", "function", "partial"],
)
def test_any_callable_is_a_factory(
    factory: reactor.ProtocolFactory, stream: tuple[socket.socket, socket.socket]
) -> None:
    reactor.set_protocol_factory(factory)
    protocol = reactor.init_connection(stream[0].fileno(), {})
    reactor.close_connection(stream[0].fileno())
    assert isinstance(protocol, Noting)


def test_a_subclass_may_leave_out_super() -> None:
    class Bare(reactor.Protocol):
        def __init__(self) -> None:
            self.mine = 1

    protocol = Bare()
    assert (protocol.fd, protocol.client_info, protocol.closed) == (-1, {}, False)
    assert (protocol.peer, protocol.close_reason) == (None, None)
    assert protocol.write_buffer == bytearray()
    assert protocol.write_buffer is not Bare().write_buffer


def test_the_inherited_callbacks_answer_what_is_documented() -> None:
    protocol = reactor.Protocol()
    assert protocol.connection_made(1, {}) is None
    assert protocol.data_received(b"x") is None
    assert protocol.eof_received() == "close"
    assert protocol.datagram_received(b"", None) == "continue"
    assert protocol.datagram_received(b"x", None) is None


def test_all_public_names_are_there() -> None:
    assert all(hasattr(reactor, name) for name in reactor.__all__)
    assert sorted(reactor.__all__) == reactor.__all__
