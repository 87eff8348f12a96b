"""Writing until the kernel takes no more, and peers that do not read."""

from __future__ import annotations

import os
import threading
from itertools import pairwise

import pytest
from clients import Client, Serve
from worlds import wait_until

OWN_WRITE_READY = """
    def write_ready(self):
        while self.write_buffer and (took := self.write(self.write_buffer)):
            del self.write_buffer[:took]
        return "continue" if self.write_buffer else "read_pending"
    """
WRITERS = pytest.mark.parametrize("write_ready", ["", OWN_WRITE_READY], ids=["inherited", "own"])

# What is held before and after each read.
WEIGHED_ECHO = """
    def connection_made(self, fd, info):
        self.held = []

    def data_received(self, data):
        before = len(self.write_buffer)
        self.write_buffer += data
        self.held.append((before, len(self.write_buffer)))
        return "write_pending"
    """


def echoes_a_flood(client: Client, more_than: int) -> list[list[int]]:
    """Has a client send and read nothing, until its protocol holds more than this; then it reads.
    Returns what was held before and after each read."""
    data = os.urandom(32_000_000)
    sender = threading.Thread(target=client.send, args=(data,))
    sender.start()
    wait_until("it holds as much", lambda: client.evaluate("len(self.write_buffer)") > more_than)
    assert client.receive(len(data)) == data
    sender.join()
    held: list[list[int]] = client.evaluate("self.held")
    return held


def obeys_marks(held: list[list[int]], high: int, low: int) -> bool:
    """With more than the high-water mark nothing is read, until it is less than the low one. Where
    nothing was held before, the kernel may take enough of it at once."""
    for (before, full), (then, _) in pairwise(held):
        if full > high + 122_880 or (before and full > high and then >= low):
            return False
    return any(full > high for _, full in held)


@WRITERS
@pytest.mark.parametrize("receive_bytes", [None, 4096])
def test_a_large_write_arrives_whole(
    serve: Serve, write_ready: str, receive_bytes: int | None
) -> None:
    server = serve(f"""
    def data_received(self, data):
        self.write_buffer += bytes(range(256)) * 40_000
        return "write_pending"
    {write_ready}""")
    client = server.connect(receive_bytes=receive_bytes)
    client.send(b"x")
    assert client.receive(256 * 40_000) == bytes(range(256)) * 40_000
    client.skip_to("data_received")
    server.fence()
    assert client.evaluate("len(self.write_buffer)") == 0


def test_write_ready_is_called_until_the_kernel_takes_no_more_and_when_it_does_again(
    serve: Serve,
) -> None:
    server = serve("""
        left = 200
        calls = 0
        refused = False

        def data_received(self, data):
            return "write_pending"

        def write_ready(self):
            self.calls += 1
            took = self.write(bytes(100_000))
            self.refused = took < 100_000
            self.left -= 1
            return "continue" if self.left else "close"
    """)
    client = server.connect(receive_bytes=4096)
    client.send(b"x")
    client.next("data_received")
    # It writes until it is refused, then waits.
    wait_until("it is refused", lambda: client.evaluate("self.refused"))
    calls = client.evaluate("self.calls")
    assert calls < 200
    server.fence()
    assert client.evaluate("self.calls") == calls
    # Who reads gets more.
    client.rest()
    assert client.skip_to("connection_lost")["reason"] == "closed"


def test_what_a_protocol_wrote_is_not_asked_for_again_once_it_is_written(serve: Serve) -> None:
    server = serve("""
        def data_received(self, data):
            self.write_buffer += data
            return "write_pending"

        def write_ready(self):
            del self.write_buffer[:self.write(self.write_buffer)]
            return "read_pending"
    """)
    client = server.connect()
    client.echoes(b"once")
    client.next("data_received")
    client.next("write_ready")
    client.nothing()


def test_a_peer_that_does_not_read_is_not_read_without_end(serve: Serve) -> None:
    client = serve(WEIGHED_ECHO).connect(receive_bytes=4096)
    assert obeys_marks(echoes_a_flood(client, 65536), 65536, 16384)


def test_a_server_has_marks_of_its_own(serve: Serve) -> None:
    server = serve(WEIGHED_ECHO, high_water=1_000_000, low_water=500_000)
    client = server.connect(receive_bytes=4096)
    assert obeys_marks(echoes_a_flood(client, 1_000_000), 1_000_000, 500_000)


def test_a_protocol_with_its_own_write_ready_is_not_read_while_it_writes(serve: Serve) -> None:
    client = serve(WEIGHED_ECHO + OWN_WRITE_READY).connect(receive_bytes=4096)
    assert {before for before, _ in echoes_a_flood(client, 0)} == {0}


FULL_KERNEL = """
    def data_received(self, data):
        if data == b"fill":
            self.fill()
            self.write_buffer += b"rest"
            self.tell("full")
            return "write_pending"
        self.tell("held", held=self.write_buffer.decode())
    """


def take_rest(client: Client) -> None:
    """Reads until what was in the buffer has come."""
    tail = b""
    while not tail.endswith(b"rest"):
        data = client.socket.recv(1 << 20)
        assert data
        tail = (tail + data)[-4:]


@pytest.mark.parametrize("answer", ["None", "'continue'", "'read_pending'", "'write_pending'"])
@WRITERS
def test_a_request_is_answered_while_earlier_output_is_pending(
    serve: Serve, answer: str, write_ready: str
) -> None:
    """And none of these answers gives up what is being written."""
    server = serve(f"{FULL_KERNEL.rstrip()}\n        return {answer}\n{write_ready}")
    client = server.connect(receive_bytes=4096)
    client.send(b"fill")
    client.skip_to("full")
    client.send(b"next")
    if write_ready:
        # It is not read while it writes.
        server.fence()
        assert [e.what for e in client.events].count("data_received") == 1
        take_rest(client)
        assert client.skip_to("held")["held"] == ""
    else:
        client.next("data_received")
        assert client.next("held")["held"] == "rest"
        take_rest(client)


@WRITERS
def test_the_end_of_the_stream_during_a_write_does_not_lose_it(
    serve: Serve, write_ready: str
) -> None:
    server = serve(f"""{FULL_KERNEL}
    def eof_received(self):
        return "read_pending"
    {write_ready}""")
    client = server.connect(receive_bytes=4096)
    client.send(b"fill")
    client.skip_to("full")
    client.half_close()
    take_rest(client)
    client.skip_to("eof_received")
    client.evaluate("reactor.resume(self, 'close')")
    assert client.rest() == b""
    assert client.skip_to("connection_lost")["reason"] == "eof"


@WRITERS
def test_a_pause_during_a_write_does_not_lose_it(serve: Serve, write_ready: str) -> None:
    server = serve(FULL_KERNEL + write_ready)
    client = server.connect(receive_bytes=4096)
    client.send(b"fill")
    client.skip_to("full")
    client.evaluate("reactor.resume(self, 'pause')")
    server.fence()
    assert client.evaluate("bytes(self.write_buffer)") == "rest"
    client.evaluate("reactor.resume(self, 'read_pending')")
    take_rest(client)


@WRITERS
def test_a_timeout_during_a_write_does_not_lose_it(serve: Serve, write_ready: str) -> None:
    server = serve(f"""{FULL_KERNEL}
    def timeout_expired(self):
        return "read_pending"
    {write_ready}""")
    client = server.connect(receive_bytes=4096)
    client.send(b"fill")
    client.skip_to("full")
    client.evaluate("self.set_timeout(0)")
    client.skip_to("timeout_expired")
    take_rest(client)


def test_another_thread_may_have_something_written(serve: Serve) -> None:
    client = serve().connect()
    client.evaluate("self.write_buffer.extend(b'late news')")
    client.nothing()
    client.evaluate("reactor.resume(self, 'write_pending')")
    assert client.receive(9) == b"late news"


def test_many_threads_may_write_at_once(serve: Serve) -> None:
    server = serve("""
        def connection_made(self, fd, info):
            for number in range(8):
                threading.Thread(target=self.work, args=(number,)).start()

        def work(self, number):
            for _ in range(200):
                data = memoryview(bytes([65 + number]) * 100)
                while data:
                    data = data[self.write(data):]
    """)
    client = server.connect()
    received = client.receive(8 * 200 * 100)
    assert {letter: received.count(letter) for letter in b"ABCDEFGH"} == dict.fromkeys(
        b"ABCDEFGH", 20_000
    )


def test_a_slow_reader_disturbs_nobody_else(serve: Serve) -> None:
    server = serve("def data_received(self, data): self.write_buffer += bytes(8_000_000)")
    neighbour = server.neighbour
    slow = [server.connect(receive_bytes=4096) for _ in range(10)]
    for client in slow:
        client.send(b"x")
    for client in slow:
        client.next("data_received")
    for number in range(100):
        neighbour.echoes(b"%d" % number)
    readers = [threading.Thread(target=client.receive, args=(8_000_000,)) for client in slow]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
