"""What else than a connection of a listener can be served, when it is handed in."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from clients import Open
from worlds import PATIENCE_S, Failure, World

ECHO = "def data_received(self, data): self.write_buffer += data"


def numbers(world: World, expression: str) -> list[int]:
    """Descriptors that are opened in the world."""
    opened: list[int] = world.ask("evaluate", expression, None)
    return opened


@pytest.fixture
def sender() -> Iterator[socket.socket]:
    """A client for datagrams."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        udp.settimeout(PATIENCE_S)
        yield udp


def bound(world: World) -> tuple[int, tuple[str, int]]:
    """A UDP socket of the world, and its address."""
    number = numbers(
        world,
        "[s.bind(('127.0.0.1', 0)) or s.detach()"
        " for s in [socket.socket(socket.AF_INET, socket.SOCK_DGRAM)]]",
    )[0]
    address = world.ask(
        "evaluate", f"[s.getsockname() for s in [socket.socket(fileno=os.dup({number}))]][0]", None
    )
    return number, (address[0], address[1])


def test_datagrams_are_told_with_their_senders_and_answered(
    world: World, open_reactor: Open, sender: socket.socket
) -> None:
    number, address = bound(world)
    served = open_reactor("""
        def datagram_received(self, data, addr):
            self.tell("sender is the peer", same=self.peer == addr)
            self.write(data.upper())
    """).hand_in(number)
    made = served.next("connection_made")
    assert made["info"]["type"] == "udp"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        other.settimeout(PATIENCE_S)
        for client, data in [(sender, b"one"), (other, b"two"), (sender, b""), (sender, b"three")]:
            client.sendto(data, address)
            told = served.next("datagram_received")
            assert told["data"] == data.decode()
            assert told["sender"] == list(client.getsockname())
            assert served.next("sender is the peer")["same"]
            assert client.recv(100) == data.upper()


def test_what_is_buffered_goes_out_as_one_datagram(
    world: World, open_reactor: Open, sender: socket.socket
) -> None:
    number, address = bound(world)
    served = open_reactor("""
        def data_received(self, data):
            self.write_buffer += data
            self.write_buffer += b" and more"
    """).hand_in(number)
    sender.sendto(b"this", address)
    served.skip_to("data_received")
    assert sender.recv(100) == b"this and more"
    # An empty one is no data.
    sender.sendto(b"", address)
    sender.sendto(b"x", address)
    assert sender.recv(100) == b"x and more"
    served.next("datagram_received")


def test_a_datagram_that_cannot_be_sent_is_lost_alone(
    world: World, open_reactor: Open, sender: socket.socket
) -> None:
    number, address = bound(world)
    served = open_reactor("""
        def data_received(self, data):
            try:
                self.write(bytes(100_000))
            except OSError as error:
                self.tell("refused", errno=error.errno)
            self.write_buffer += data
    """).hand_in(number)
    for data in (b"one", b"two"):
        sender.sendto(data, address)
        assert served.skip_to("refused")["errno"] == 90
        assert sender.recv(100) == data


@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM"])
def test_a_pair_of_unix_sockets_is_served(world: World, open_reactor: Open, kind: str) -> None:
    ours, theirs = numbers(
        world, f"[s.detach() for s in socket.socketpair(socket.AF_UNIX, socket.{kind})]"
    )
    served = open_reactor(ECHO).hand_in(ours)
    made = served.next("connection_made")
    assert made["info"]["type"] == {"SOCK_STREAM": "unix", "SOCK_DGRAM": "unix_dgram"}[kind]
    for _ in range(3):
        world.ask("evaluate", f"os.write({theirs}, b'hello')", None)
        served.skip_to("data_received")
        assert world.ask("evaluate", f"os.read({theirs}, 9)", None) == "hello"
    world.ask("evaluate", f"os.close({theirs})", None)
    if kind == "SOCK_STREAM":
        assert served.skip_to("connection_lost")["reason"] == "eof"


def test_a_pipe_is_read_to_its_end(world: World, open_reactor: Open) -> None:
    reading, writing = numbers(world, "os.pipe()")
    served = open_reactor("pass").hand_in(reading)
    assert served.next("connection_made")["info"]["type"] == "pipe"
    world.ask("evaluate", f"os.write({writing}, b'hello')", None)
    assert served.next("data_received")["data"] == "hello"
    world.ask("evaluate", f"os.close({writing})", None)
    served.next("eof_received")
    assert served.lost() == "eof"


def test_a_pipe_is_written_until_nobody_reads_it(world: World, open_reactor: Open) -> None:
    reading, writing = numbers(world, "os.pipe()")
    served = open_reactor("""
        def connection_made(self, fd, info):
            self.write_buffer += b"hello"
            return "write_pending"
    """).hand_in(writing)
    served.next("connection_made")
    assert world.ask("evaluate", f"os.read({reading}, 9)", None) == "hello"
    world.ask("evaluate", f"os.close({reading})", None)
    assert served.skip_to("connection_lost")["reason"] in ("reset", "peer_gone", "eof")


def test_a_terminal_is_served(world: World, open_reactor: Open) -> None:
    ours, theirs = numbers(world, "__import__('pty').openpty()")
    served = open_reactor(ECHO).hand_in(ours)
    assert served.next("connection_made")["info"]["type"] == "tty"
    served.evaluate("self.write(b'hello')")
    world.ask("evaluate", f"os.close({theirs})", None)
    served.skip_to("connection_lost")


@pytest.mark.parametrize(
    "expression",
    [
        "[os.open('/etc/passwd', os.O_RDONLY)]",
        "[os.open('/', os.O_RDONLY)]",
        "[os.open('/dev/null', os.O_RDWR)]",
        "[s.listen() or s.detach() for s in [socket.socket()]]",
        "[__import__('select').epoll().__reduce__ and os.eventfd(0)]",
        "[s.detach() for s in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)[:1]]",
    ],
    ids=["file", "folder", "device", "listener", "eventfd", "seqpacket"],
)
def test_what_cannot_be_served_is_refused_and_closed(
    world: World, open_reactor: Open, expression: str
) -> None:
    reactor = open_reactor("pass")
    number = numbers(world, expression)[0]
    with pytest.raises(Failure, match=r"unsupported_fd|cannot serve"):
        world.ask("hand_in", reactor.name, number)
    assert str(number) not in world.descriptors()


@pytest.mark.parametrize("number", [-1, 1_000_000])
def test_a_number_of_nothing_is_refused(world: World, open_reactor: Open, number: int) -> None:
    reactor = open_reactor("pass")
    with pytest.raises(Failure, match=r"badf|Bad file descriptor|not an open descriptor"):
        world.ask("hand_in", reactor.name, number)


@pytest.mark.parametrize(
    "body",
    ["def __init__(self): raise LookupError('not born')", "def connection_made(self, *_): 1/0"],
)
def test_what_cannot_be_begun_is_closed(world: World, open_reactor: Open, body: str) -> None:
    reactor = open_reactor(body)
    ours, theirs = numbers(world, "[s.detach() for s in socket.socketpair()]")
    try:
        world.ask("hand_in", reactor.name, ours)
    except Failure as failure:
        # Erlang waits for what becomes of it.
        assert "protocol" in failure.text  # noqa: PT017
    assert world.ask("evaluate", f"os.read({theirs}, 9)", None) == ""
    world.ask("evaluate", f"os.close({theirs})", None)
