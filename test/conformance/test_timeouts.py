"""The timeout of a protocol, and the limits of a server.

That something has not happened yet is seen by something else that takes longer and has.
"""

from __future__ import annotations

import time

import pytest
from clients import Serve

NEVER_MS = 3_600_000


def test_a_timeout_expires_once_for_each_time_it_is_set(serve: Serve) -> None:
    server = serve("""
        def timeout_expired(self):
            return "continue"
    """)
    client, later = server.connect(), server.connect()
    for _ in range(3):
        client.evaluate("self.set_timeout(0.01)")
        client.next("timeout_expired")
    later.evaluate("self.set_timeout(0.05)")
    later.next("timeout_expired")
    client.nothing()


def test_a_timeout_closes_unless_the_protocol_says_otherwise(serve: Serve) -> None:
    server = serve("""
        def connection_made(self, fd, info):
            self.write_buffer += b"good night"
            self.set_timeout(0.01)
            return "continue"
    """)
    client = server.connect()
    client.next("timeout_expired")
    assert client.rest() == b"good night"
    assert client.lost() == "timeout"


def test_a_later_timeout_takes_the_place_of_an_earlier_one(serve: Serve) -> None:
    server = serve("def timeout_expired(self): return 'continue'")
    put_off, drawn_near, other = (server.connect() for _ in range(3))
    put_off.evaluate("(self.set_timeout(0.02), self.set_timeout(3600))[0]")
    drawn_near.evaluate("(self.set_timeout(3600), self.set_timeout(0.02))[0]")
    drawn_near.next("timeout_expired")
    other.evaluate("self.set_timeout(0.05)")
    other.next("timeout_expired")
    put_off.nothing()
    drawn_near.nothing()


def test_none_takes_a_timeout_back(serve: Serve) -> None:
    server = serve("def timeout_expired(self): return 'continue'")
    client, other = server.connect(), server.connect()
    client.evaluate("(self.set_timeout(0.02), self.set_timeout(None))[0]")
    other.evaluate("self.set_timeout(0.05)")
    other.next("timeout_expired")
    client.nothing()


def test_data_does_not_put_off_a_timeout(serve: Serve) -> None:
    server = serve("""
        def data_received(self, data):
            self.write_buffer += data

        def timeout_expired(self):
            self.write_buffer += b"!"
    """)
    client = server.connect()
    client.evaluate("self.set_timeout(0.1)")
    # Talks until then.
    while True:
        client.send(b".")
        if client.receive(1) == b"!":
            break
    client.skip_to("timeout_expired")


def test_a_timeout_of_zero_comes_after_the_callback_that_set_it(serve: Serve) -> None:
    server = serve("""
        def data_received(self, data):
            self.set_timeout(0)
            self.tell("set")

        def timeout_expired(self):
            self.tell("over")
    """)
    client = server.connect()
    client.send(b"x")
    for what in ["data_received", "set", "timeout_expired", "over"]:
        client.next(what)


def test_a_timeout_may_be_set_again_when_it_expires(serve: Serve) -> None:
    server = serve("""
        left = 5

        def connection_made(self, fd, info):
            self.set_timeout(0.001)

        def timeout_expired(self):
            self.left -= 1
            if not self.left:
                return "close"
            self.set_timeout(0.001)
            return "continue"
    """)
    client = server.connect()
    for _ in range(5):
        client.next("timeout_expired")
    assert client.lost() == "timeout"


@pytest.mark.parametrize("seconds", ["1e-9", "0.0", "0.001"])
def test_the_smallest_timeouts_are_timeouts(serve: Serve, seconds: str) -> None:
    client = serve().connect()
    client.evaluate(f"self.set_timeout({seconds})")
    client.next("timeout_expired")
    assert client.lost() == "timeout"


def test_a_timeout_of_a_thousand_years_does_no_harm(serve: Serve) -> None:
    server = serve()
    client = server.connect()
    for seconds in ["3.2e10", "1e300"]:
        client.evaluate(f"self.set_timeout({seconds})")
        client.nothing()


STATES = {
    "reading": "pass",
    "paused": "return 'pause'",
    "reading is paused": "self.pause_reading()",
    "ended": "return 'read_pending'",
    "writing": "self.fill(); self.write_buffer += b'x'; return 'write_pending'",
}


@pytest.mark.parametrize("state", STATES)
def test_a_timeout_expires_whatever_the_connection_does(serve: Serve, state: str) -> None:
    server = serve(f"""
        def data_received(self, data):
            {STATES[state]}

        def eof_received(self):
            return "read_pending"

        def timeout_expired(self):
            return "abort"
    """)
    client = server.connect(receive_bytes=4096)
    client.send(b"x")
    client.next("data_received")
    if state == "ended":
        client.half_close()
        client.next("eof_received")
    server.fence()
    client.evaluate("self.set_timeout(0.02)")
    client.next("timeout_expired")
    assert client.lost() == "aborted"


def test_each_of_many_connections_has_a_timeout_of_its_own(serve: Serve) -> None:
    server = serve()
    clients = [server.connect() for _ in range(100)]
    for number, client in enumerate(clients):
        client.evaluate(f"self.set_timeout({(100 - number) / 1000})")
    for client in clients:
        client.next("timeout_expired")
        assert client.lost() == "timeout"


def test_timeouts_expire_in_the_order_of_their_times(serve: Serve) -> None:
    server = serve("""
        def data_received(self, data):
            mine = [other for other in _living.values() if isinstance(other, type(self))]
            for seconds, other in enumerate(sorted(mine, key=lambda other: other.serial)):
                # From one callback, so that all of them are counted from the same time.
                other.set_timeout((len(mine) - seconds) / 100)
    """)
    clients = [server.connect() for _ in range(5)]
    clients[0].send(b"go")
    for client in clients:
        client.skip_to("connection_lost")
    events = server.world.journal.events
    told = [event.of or 0 for event in events if event.what == "timeout_expired"]
    assert told == sorted(told, reverse=True)


def test_a_silent_connection_ends_with_the_idle_timeout(serve: Serve) -> None:
    server = serve(idle_timeout=100)
    silent, held = server.connect(), server.connect()
    held.evaluate("self.pause_reading()")
    for client in (silent, held):
        assert client.rest() == b""
        assert client.lost() == "idle_timeout"
    counted = server.wait_for(active=0)
    assert counted["closed_by"]["idle_timeout"] == 2
    assert counted["timeouts"] == 2


def test_a_connection_that_talks_does_not_end_with_the_idle_timeout(serve: Serve) -> None:
    server = serve("def data_received(self, data): self.write_buffer += data", idle_timeout=1000)
    silent = server.connect()
    talking = server.connect()
    silent.socket.settimeout(0.01)
    while True:
        talking.echoes(b"x")
        try:
            assert silent.socket.recv(1) == b""
            break
        except TimeoutError:
            continue
    assert silent.lost() == "idle_timeout"
    talking.echoes(b"still here")


def test_a_connection_that_its_protocol_paused_is_not_idle(serve: Serve) -> None:
    server = serve("def data_received(self, data): return 'pause'", idle_timeout=100)
    paused = server.connect()
    paused.send(b"x")
    paused.next("data_received")
    silent = server.connect()
    assert silent.lost() == "idle_timeout"
    # Paused for longer than the other one was silent.
    assert "connection_lost" not in [event.what for event in paused.events]
    assert paused.evaluate("reactor.resume(self)")
    assert paused.lost() == "idle_timeout"


def test_a_peer_that_says_nothing_of_use_ends_with_the_handshake_timeout(serve: Serve) -> None:
    server = serve(
        """
        def data_received(self, data):
            return {b"hello": "read_pending", b"he": "continue"}.get(data)
        """,
        handshake_timeout=300,
    )
    silent, dribbling, unanswered, greeting = (server.connect() for _ in range(4))
    for client, data in [(greeting, b"hello"), (dribbling, b"he"), (unanswered, b"hm")]:
        client.send(data)
        client.next("data_received")
    for client in (silent, dribbling, unanswered):
        assert client.rest() == b""
        assert client.lost() == "handshake_timeout"
    greeting.send(b"hello")
    greeting.next("data_received")
    assert server.info()["closed_by"]["handshake_timeout"] == 3


def test_an_answer_that_is_written_ends_the_handshake(serve: Serve) -> None:
    server = serve(
        "def data_received(self, data): self.write_buffer += data", handshake_timeout=300
    )
    greeting, silent = server.connect(), server.connect()
    greeting.echoes(b"hello")
    assert silent.lost() == "handshake_timeout"
    greeting.echoes(b"again")


def test_what_connection_made_says_is_no_handshake(serve: Serve) -> None:
    server = serve(
        """
        def connection_made(self, fd, info):
            self.write_buffer += b"220 ready"
            return "write_pending"
        """,
        handshake_timeout=100,
    )
    client = server.connect()
    assert client.rest() == b"220 ready"
    assert client.lost() == "handshake_timeout"


FLOOD = """
    def data_received(self, data):
        self.write_buffer += data * 1_000_000
        return {answer!r}
    """
OWN_WRITE_READY = """
    def write_ready(self):
        del self.write_buffer[:self.write(self.write_buffer)]
        return "continue" if self.write_buffer else "read_pending"
    """


@pytest.mark.parametrize("answer", ["write_pending", "close"])
@pytest.mark.parametrize("write_ready", ["", OWN_WRITE_READY], ids=["inherited", "own"])
def test_a_peer_that_takes_nothing_ends_with_the_write_timeout(
    serve: Serve, answer: str, write_ready: str
) -> None:
    server = serve(FLOOD.format(answer=answer) + write_ready, write_timeout=100)
    client = server.connect(receive_bytes=4096)
    client.send(b"0123456789")
    assert client.skip_to("connection_lost")["reason"] == "write_timeout"
    assert len(client.rest()) < 10_000_000
    assert server.wait_for(active=0)["closed_by"]["write_timeout"] == 1


def test_a_peer_that_takes_a_little_now_and_then_does_not_end(serve: Serve) -> None:
    server = serve(FLOOD.format(answer="write_pending"), write_timeout=500)
    slow = server.connect(receive_bytes=4096)
    slow.send(b"0123456789")
    slow.next("data_received")
    stuck = server.connect(receive_bytes=4096)
    stuck.send(b"0123456789")
    stuck.next("data_received")
    # It takes a little now and then, until the other one has ended, which takes nothing.
    taken = 0
    while "connection_lost" not in [event.what for event in stuck.events]:
        taken += len(slow.receive(50_000))
        assert taken < 9_000_000, "too fast to be slow"
        time.sleep(0.01)
    assert stuck.lost() == "write_timeout"
    assert taken + len(slow.receive(10_000_000 - taken)) == 10_000_000


def test_a_timeout_of_the_protocol_and_a_limit_do_not_disturb_each_other(serve: Serve) -> None:
    server = serve(
        "def timeout_expired(self): return 'continue'",
        idle_timeout=200,
        handshake_timeout=NEVER_MS,
    )
    client = server.connect()
    client.evaluate("self.set_timeout(0.001)")
    client.next("timeout_expired")
    client.evaluate("self.set_timeout(3600)")
    assert client.lost() == "idle_timeout"
