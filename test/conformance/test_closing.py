"""How connections end, and what protocols are told of it."""

from __future__ import annotations

import threading

import pytest
from clients import Client, Serve
from worlds import Failure, World, wait_until

LARGE = 8_000_000

# fmt: off
FAILURES = [
    "raise ValueError('mine')", "raise SystemExit", "raise KeyboardInterrupt", "return 'nonsense'",
    "return ''", "return 1", "return b'close'", "return ['close']",
]
# fmt: on
CALLBACKS = ["connection_made", "data_received", "eof_received", "write_ready", "timeout_expired"]


@pytest.mark.parametrize("statement", FAILURES)
@pytest.mark.parametrize("callback", CALLBACKS)
def test_a_callback_that_fails_costs_its_connection_only(
    serve: Serve, callback: str, statement: str
) -> None:
    steps = {"data_received": "write_pending", "connection_made": "continue"}
    others = "".join(
        f"""
        def {other}(self, *arguments):
            if {callback!r} == 'timeout_expired' and {other!r} == 'connection_made':
                self.set_timeout(0)
            return {step!r}
        """
        for other, step in steps.items()
        if other != callback
    )
    server = serve(f"{others}\n        def {callback}(self, *arguments): {statement}")
    neighbour = server.neighbour
    client = server.knock()
    if callback in ("data_received", "write_ready"):
        client.send(b"x")
    elif callback == "eof_received":
        client.half_close()
    assert client.rest() == b""
    assert client.skip_to("connection_lost")["reason"] == "exception"
    neighbour.echoes(b"still here")


def test_an_exception_is_logged_with_its_traceback_class_and_peer(serve: Serve) -> None:
    server = serve("""
        def data_received(self, data):
            raise LookupError("nobody knows where " + data.decode())
    """)
    client = server.connect()
    client.send(b"it is")
    assert client.rest() == b""
    client.next("data_received")
    assert client.lost() == "exception"
    wait_until("it is logged", lambda: "nobody knows where it is" in server.world.said())
    said = server.world.said()
    assert "Traceback (most recent call last)" in said
    assert "LookupError: nobody knows where it is" in said
    assert str(client.peer[1]) in said


def test_a_write_buffer_that_is_none_costs_its_connection_only(serve: Serve) -> None:
    server = serve("""
        def data_received(self, data):
            self.write_buffer = "text"
    """)
    client = server.connect()
    client.send(b"x")
    client.next("data_received")
    assert client.lost() == "exception"
    server.fence()


def test_an_exception_in_connection_lost_costs_nothing_more(serve: Serve) -> None:
    server = serve("""
        def connection_lost(self):
            raise LookupError("too late to matter")
    """)
    client = server.connect()
    client.close()
    client.next("eof_received")
    assert client.lost() == "eof"
    wait_until("it is logged", lambda: "too late to matter" in server.world.said())
    server.fence()


@pytest.mark.parametrize("text", ["raise LookupError('not born')", "return None"])
def test_a_protocol_that_cannot_be_made_costs_its_connection_only(serve: Serve, text: str) -> None:
    """`__init__` may not return anything but None, so the second one is made, and served."""
    server = serve(f"""
        def __init__(self):
            {text}
    """)
    client = server.knock()
    if "raise" in text:
        assert client.rest() == b""
        wait_until("it is logged", lambda: "not born" in server.world.said())
    else:
        client.next("connection_made")
    server.fence()


def test_data_comes_before_the_hang_up(serve: Serve) -> None:
    server = serve()
    for _ in range(50):
        with server.knock() as client:
            client.send(b"last words")
    for client in server.clients[:50]:
        client.next("connection_made")
        assert client.next("data_received")["data"] == "last words"
        client.next("eof_received")
        assert client.lost() == "eof"


def test_data_comes_before_the_hang_up_when_both_came_during_a_callback(serve: Serve) -> None:
    server = serve("""
        received = b""

        def connection_made(self, fd, info):
            self.hold()

        def data_received(self, data):
            self.received += data

        def eof_received(self):
            self.tell("all", length=len(self.received))
            return "close"
    """)
    client = server.knock()
    client.next("connection_made")
    client.next("held")
    # As much as needs several reads.
    client.send(b"x" * 200_000)
    client.close()
    client.release()
    assert client.skip_to("all")["length"] == 200_000
    assert client.lost() == "eof"


@pytest.mark.parametrize("answer", ["close", None])
def test_the_end_of_the_stream_closes_after_sending(serve: Serve, answer: str | None) -> None:
    """None goes on: there may be more to write."""
    server = serve(f"""
        def eof_received(self):
            self.write_buffer += b"x" * {LARGE}
            return {answer!r}
    """)
    client = server.connect()
    client.half_close()
    assert client.receive(LARGE) == b"x" * LARGE
    client.next("eof_received")
    if answer is None:
        client.nothing()
        client.evaluate("reactor.resume(self, 'close')")
    assert client.rest() == b""
    assert client.lost() == "eof"


def test_what_is_pending_is_sent_after_the_half_close(serve: Serve) -> None:
    server = serve(f"""
        def data_received(self, data):
            self.write_buffer += data * {LARGE // 10}
    """)
    client = server.connect()
    client.send(b"0123456789")
    client.half_close()
    assert client.rest() == b"0123456789" * (LARGE // 10)
    client.next("data_received")
    client.next("eof_received")
    assert client.lost() == "eof"


def test_the_end_of_the_stream_is_told_once(serve: Serve) -> None:
    server = serve("""
        def eof_received(self):
            return "continue"
    """)
    client = server.connect()
    client.half_close()
    client.next("eof_received")
    for action in ["read_pending", "write_pending", "continue", "pause", "read_pending"]:
        assert client.evaluate(f"reactor.resume(self, {action!r})")
        client.nothing()
    assert client.evaluate("self.write(b'too')") == 3
    assert client.receive(3) == b"too"
    assert client.evaluate("reactor.resume(self, 'close')")
    assert client.rest() == b""
    assert client.lost() == "eof"


def test_close_delivers_a_large_buffer_to_a_slow_reader(serve: Serve) -> None:
    server = serve(f"""
        def data_received(self, data):
            self.write_buffer += b"x" * {LARGE}
            return "close"
    """)
    client = server.connect(receive_bytes=4096)
    client.send(b"go")
    client.next("data_received")
    client.nothing()
    assert client.rest() == b"x" * LARGE
    assert client.lost() == "closed"


def test_a_connection_that_closes_is_told_nothing_more(serve: Serve) -> None:
    server = serve(f"""
        def data_received(self, data):
            self.write_buffer += b"x" * {LARGE}
            self.set_timeout(0)
            return "close"
    """)
    client = server.connect(receive_bytes=4096)
    client.send(b"go")
    client.next("data_received")
    client.send(b"more")
    client.evaluate("self.set_timeout(0)")
    for action in ["read_pending", "write_pending", "continue", "pause"]:
        client.evaluate(f"reactor.resume(self, {action!r})")
    client.nothing()
    assert len(client.rest()) == LARGE
    assert client.lost() == "closed"


def test_abort_throws_a_large_buffer_away(serve: Serve) -> None:
    server = serve(f"""
        def data_received(self, data):
            self.write_buffer += b"x" * {LARGE}
            return "abort" if data == b"now" else "write_pending"
    """)
    client = server.connect(receive_bytes=4096)
    client.send(b"go")
    client.next("data_received")
    server.fence()
    client.evaluate("reactor.resume(self, 'abort')")
    assert client.lost() == "aborted"
    assert len(client.rest()) < LARGE


def test_unread_input_does_not_destroy_the_last_output(serve: Serve) -> None:
    server = serve("""
        def data_received(self, data):
            self.hold()
            self.write_buffer += b"enough" * 10_000
            return "close"
    """)
    client = server.connect()
    client.send(b"go")
    client.next("data_received")
    client.next("held")
    client.send(b"x" * 100_000)
    client.release()
    assert client.rest() == b"enough" * 10_000
    assert client.lost() == "closed"


def test_a_reset_is_one_loss(serve: Serve) -> None:
    client = serve().connect()
    client.reset()
    assert client.lost() == "reset"


BLOCKED = f"""
    def data_received(self, data):
        self.write_buffer += b"x" * {LARGE}
        self.fill()
        self.tell("blocked")
        return "write_pending"
    """
BY_ITSELF = """
    def write_ready(self):
        del self.write_buffer[:self.write(self.write_buffer)]
        return "continue" if self.write_buffer else "read_pending"
    """


@pytest.mark.parametrize("write_ready", ["", BY_ITSELF], ids=["inherited", "own"])
def test_a_reset_while_a_write_waits_is_one_loss(serve: Serve, write_ready: str) -> None:
    server = serve(BLOCKED + write_ready)
    client = server.connect(receive_bytes=4096)
    client.send(b"x")
    client.skip_to("blocked")
    server.fence()
    client.reset()
    assert client.skip_to("connection_lost")["reason"] == "reset"


def test_a_reset_while_it_closes_is_one_loss(serve: Serve) -> None:
    server = serve(BLOCKED.replace("write_pending", "close"))
    client = server.connect(receive_bytes=4096)
    client.send(b"x")
    client.skip_to("blocked")
    server.fence()
    client.reset()
    assert client.skip_to("connection_lost")["reason"] == "reset"


@pytest.mark.parametrize("how", ["return 'pause'", "self.pause_reading()"])
def test_a_reset_while_it_is_paused_is_one_loss(serve: Serve, how: str) -> None:
    server = serve(f"def data_received(self, data): {how}")
    client = server.connect()
    client.send(b"x")
    client.next("data_received")
    server.fence()
    client.reset()
    assert client.lost() == "peer_gone"


def test_a_reset_after_the_half_close_is_noticed(serve: Serve) -> None:
    server = serve("def eof_received(self): return 'continue'")
    client = server.connect()
    client.half_close()
    client.next("eof_received")
    server.fence()
    client.reset()
    assert client.lost() == "peer_gone"


def test_a_reset_during_a_callback_is_one_loss(serve: Serve) -> None:
    server = serve("""
        def data_received(self, data):
            self.hold()
            self.write_buffer += b"nobody reads this"
    """)
    client = server.connect()
    client.send(b"x")
    client.next("data_received")
    client.next("held")
    client.reset()
    client.release()
    assert client.lost() == "reset"


def test_a_descriptor_that_somebody_closed_is_gone(serve: Serve) -> None:
    server = serve("""
        def data_received(self, data):
            os.close(self.fd)
    """)
    client = server.connect()
    client.send(b"x")
    client.next("data_received")
    # The kernel tells nobody: at the latest it is found out when the number comes back.
    assert client.rest() == b""
    number = client.events[0]["fd"]
    while server.connect().evaluate("self.fd") != number:
        assert len(server.clients) < 50
    assert client.lost() == "descriptor_gone"


def test_a_failed_write_closes_whatever_the_callback_says(serve: Serve) -> None:
    server = serve("""
        def data_received(self, data):
            with socket.socket(fileno=os.dup(self.fd)) as ours:
                ours.shutdown(socket.SHUT_WR)
            self.tell("first", took=self.write(b"first"))
            try:
                self.write(b"second")
            except BrokenPipeError:
                self.tell("second")
            return "continue"
    """)
    client = server.connect()
    client.send(b"x")
    client.next("data_received")
    assert client.next("first")["took"] == 0
    client.next("second")
    assert client.lost() == "reset"
    assert client.rest() == b""


def test_after_the_end_nothing_can_be_done(serve: Serve) -> None:
    server = serve("""
        def connection_lost(self):
            threading.Thread(target=self.try_all).start()

        def try_all(self):
            self.gate.wait()
            try:
                self.write(b"hello?")
            except BrokenPipeError:
                self.tell("broken")
            self.tell("tried", resumed=reactor.resume(self), read=self.read(1).decode())
    """)
    client = server.connect()
    client.close()
    client.next("eof_received")
    assert client.lost() == "eof"
    client.release()
    client.next("broken")
    tried = client.next("tried")
    assert tried["resumed"] is False
    assert tried["read"] == ""


@pytest.mark.parametrize("action", ["close", "abort", "write_pending", "pause"])
def test_a_connection_that_is_being_lost_cannot_be_resumed(serve: Serve, action: str) -> None:
    server = serve(f"""
        def connection_lost(self):
            self.tell("resumed", answer=reactor.resume(self, {action!r}))
    """)
    client = server.connect()
    client.close()
    client.next("eof_received")
    assert client.next("resumed")["answer"] is False
    assert client.lost() == "eof"


def test_close_connection_closes_one_that_is_served(serve: Serve) -> None:
    server = serve("""
        def connection_made(self, fd, info):
            self.write_buffer += b"held back"
            return "continue"
    """)
    client = server.connect()
    client.evaluate("reactor.close_connection(self.fd)")
    assert client.rest() == b"held back"
    assert client.lost() == "closed"
    with pytest.raises(Failure, match="ValueError: no protocol serves"):
        server.world.ask("evaluate", "reactor.close_connection(10**6)", None)


def test_get_protocol_finds_those_that_are_served(serve: Serve) -> None:
    server = serve("""
        def connection_lost(self):
            self.tell("served", still=reactor.get_protocol(self.fd) is self)
    """)
    client = server.connect()
    assert client.evaluate("reactor.get_protocol(self.fd) is self")
    client.close()
    client.next("eof_received")
    assert client.next("served")["still"] is False
    assert client.lost() == "eof"


def storm(client: Client) -> None:
    """Ends a connection in all ways at once."""
    ways = [
        lambda: client.evaluate("reactor.resume(self, 'close')"),
        lambda: client.evaluate("reactor.resume(self, 'abort')"),
        lambda: client.evaluate("self.set_timeout(0)"),
        lambda: client.evaluate("reactor.close_connection(self.fd)"),
        client.reset,
    ]

    def end(way: object) -> None:
        try:
            way()  # type: ignore[operator]
        except Failure as failure:
            # It was over already: there is no protocol any more.
            assert failure.kind in ("KeyError", "ValueError"), failure  # noqa: PT017

    threads = [threading.Thread(target=end, args=(way,)) for way in ways]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_connection_that_ends_in_many_ways_at_once_is_lost_once(
    serve: Serve, world: World
) -> None:
    server = serve(f"""
        def data_received(self, data):
            self.write_buffer += b"x" * {LARGE}
    """)
    clients = [server.connect(receive_bytes=4096) for _ in range(30)]
    for client in clients[::2]:
        client.send(b"x")
    for client in clients:
        storm(client)
    for client in clients:
        client.skip_to("connection_lost")
    # That each was lost once, and told nothing afterwards, is looked at after every test.
    server.fence()
