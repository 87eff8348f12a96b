"""What a protocol is told of its connection, and what it can read and write."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest
from clients import Client, Serve, Server

ECHO = """
    def data_received(self, data):
        self.write_buffer += data
    """


@pytest.fixture(params=["tcp", "unix"])
def echo(request: pytest.FixtureRequest, serve: Serve, tmp_path: Path) -> Server:
    """A server that echoes, on a socket of each kind."""
    if request.param == "tcp":
        return serve(ECHO)
    return serve(ECHO, unix=str(tmp_path / "echo"))


@pytest.mark.parametrize("size", [1, 2, 64, 122_879, 122_880, 122_881, 300_000])
def test_every_byte_is_echoed(echo: Server, size: int) -> None:
    client = echo.connect()
    data = os.urandom(size)
    thread = threading.Thread(target=client.send, args=(data,))
    thread.start()
    assert client.receive(size) == data
    thread.join()
    client.half_close()
    assert client.rest() == b""
    assert client.skip_to("connection_lost")["reason"] == "eof"


def test_many_echo_at_once(echo: Server) -> None:
    clients = [echo.connect() for _ in range(100)]
    for number in range(5):
        for client in clients:
            client.send(b"%d" % number)
        for client in clients:
            assert client.receive(1) == b"%d" % number


def test_data_comes_in_order_and_in_pieces_that_fit(serve: Serve) -> None:
    server = serve("""
        def connection_made(self, fd, info):
            import hashlib
            self.hash = hashlib.sha256()

        def data_received(self, data):
            self.hash.update(data)

        def eof_received(self):
            self.write_buffer += self.hash.digest()
            return "close"
    """)
    client = server.connect()
    data = os.urandom(3_000_000)
    client.send(data)
    client.half_close()
    assert client.rest() == hashlib.sha256(data).digest()


def test_attributes_tell_of_the_connection(serve: Serve) -> None:
    server = serve("""
        def __init__(self):
            self.before = (self.fd, self.client_info, self.closed, self.peer, self.close_reason,
                           type(self.write_buffer).__name__)

        def connection_made(self, fd, info):
            self.tell("made", before=self.before, same=(fd == self.fd and info is self.client_info),
                      closed=self.closed, info=info, open=os.fstat(fd) is not None)

        def connection_lost(self):
            self.tell("lost", closed=self.closed, peer=self.peer,
                      open=os.fstat(self.fd) is not None)
    """)
    client = server.connect()
    made = client.next("made")
    assert made["before"] == [-1, {}, False, None, None, "bytearray"]
    assert made["same"]
    assert made["open"]
    assert made["closed"] is False
    assert made["info"] == {"addr": "127.0.0.1", "port": client.peer[1], "type": "tcp"}
    client.close()
    client.next("eof_received")
    lost = client.next("lost")
    assert lost["closed"]
    assert lost["open"]
    assert lost["peer"] == client.peer
    assert client.lost() == "eof"


def test_a_unix_client_has_the_type_unix(serve: Serve, tmp_path: Path) -> None:
    server = serve(unix=str(tmp_path / "u"))
    client = server.knock()
    assert client.next("connection_made")["info"]["type"] == "unix"


def test_sockets_do_not_block_and_end_with_exec(serve: Serve) -> None:
    client = serve().connect()
    assert client.evaluate("os.get_blocking(self.fd)") is False
    assert client.evaluate("os.get_inheritable(self.fd)") is False


def test_small_messages_are_not_collected(serve: Serve) -> None:
    client = serve().connect()
    nodelay = "socket.fromfd(self.fd, socket.AF_INET, socket.SOCK_STREAM).getsockopt(6, 1)"
    assert client.evaluate(nodelay) == 1


def test_connection_made_may_write_first(serve: Serve) -> None:
    server = serve("""
        def connection_made(self, fd, info):
            self.write_buffer += b"220 ready"
    """)
    assert server.connect().receive(9) == b"220 ready"


def test_connection_made_may_write_by_itself(serve: Serve) -> None:
    server = serve("""
        def connection_made(self, fd, info):
            self.write(b"220 ready")
            return "continue"
    """)
    assert server.connect().receive(9) == b"220 ready"


def test_read_gets_what_is_there_already(serve: Serve) -> None:
    server = serve("""
        def connection_made(self, fd, info):
            self.hold()
            while True:
                try:
                    data = self.read(3)
                except BlockingIOError:
                    self.tell("nothing")
                    return
                self.tell("read", data=data.decode())
                if not data:
                    return
    """)
    client = server.connect()
    client.next("held")
    client.send(b"hello")
    client.release()
    assert client.next("read")["data"] == "hel"
    assert client.next("read")["data"] == "lo"
    client.next("nothing")
    client = server.connect()
    client.next("held")
    client.send(b"bye")
    client.half_close()
    client.release()
    assert client.next("read")["data"] == "bye"
    assert client.next("read")["data"] == ""
    client.next("eof_received")
    assert client.lost() == "eof"


@pytest.mark.parametrize(
    ("expression", "error"),
    [
        ("self.read(0)", "ValueError"),
        ("self.read(-1)", "OverflowError"),
        ("self.write('text')", "TypeError"),
        ("self.set_timeout(-1)", "ValueError"),
        ("self.set_timeout(float('nan'))", "ValueError"),
        ("self.set_timeout('soon')", "TypeError"),
        ("reactor.Protocol().write(b'x')", "ValueError"),
        ("reactor.Protocol().read(1)", "ValueError"),
        ("reactor.Protocol().set_timeout(1)", "ValueError"),
        ("reactor.Protocol().pause_reading()", "ValueError"),
        ("reactor.resume(reactor.Protocol())", "ValueError"),
        ("reactor.Protocol().connection", "ValueError"),
        ("self.set_slow_consumer('nonsense')", "ValueError"),
        ("self.set_slow_consumer('buffer')", "ValueError"),
        ("self.set_slow_consumer('buffer', 0)", "ValueError"),
        ("self.set_slow_consumer('drop_old', 1)", "ValueError"),
        ("reactor.set_protocol_factory(1)", "TypeError"),
        ("reactor.set_protocol_factory(int)", "TypeError"),
    ],
)
def test_bad_arguments_raise_and_change_nothing(serve: Serve, expression: str, error: str) -> None:
    server = serve(f"""
        def data_received(self, data):
            try:
                {expression}
            except Exception as error:
                self.tell("raised", error=type(error).__name__)
            self.write_buffer += data
    """)
    client = server.connect()
    client.echoes(b"x")
    client.next("data_received")
    assert client.next("raised")["error"] == error
    client.echoes(b"y")


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "memoryview"])
def test_write_takes_anything_like_bytes(serve: Serve, kind: str) -> None:
    server = serve(f"""
        def data_received(self, data):
            self.tell("took", bytes=self.write({kind}(data)))
    """)
    client = server.connect()
    client.echoes(b"hello")
    client.next("data_received")
    assert client.next("took")["bytes"] == 5


def test_another_thread_may_write(serve: Serve) -> None:
    client = serve().connect()
    assert client.evaluate("self.write(b'from another thread')") == 19
    assert client.receive(19) == b"from another thread"


def test_a_write_buffer_may_be_replaced(serve: Serve) -> None:
    server = serve("""
        def data_received(self, data):
            self.write_buffer = bytearray(b"another")
    """)
    client = server.connect()
    client.send(b"x")
    assert client.receive(7) == b"another"


def test_a_busy_client_leaves_room_for_others(serve: Serve) -> None:
    server = serve("def data_received(self, data): pass")
    neighbour = server.neighbour
    busy = server.connect()
    stop = threading.Event()

    def send(client: Client) -> None:
        while not stop.is_set():
            client.send(bytes(65536))

    thread = threading.Thread(target=send, args=(busy,))
    thread.start()
    for number in range(100):
        neighbour.echoes(b"%d" % number)
    stop.set()
    thread.join()
