"""What each action does, from each callback and from outside."""

from __future__ import annotations

import pytest
from clients import Client, Serve

ACTIONS = ["continue", "read_pending", "write_pending", "pause", "close", "abort", None]
CALLBACKS = ["connection_made", "data_received", "eof_received", "timeout_expired", "write_ready"]


def acting(callback: str, action: str | None) -> str:
    """A protocol which has something to send in this callback, and says this."""
    return f"""
        acted = False

        def connection_made(self, fd, info):
            if {callback!r} == 'timeout_expired':
                self.set_timeout(0)
            return self.act({callback!r} == 'connection_made')

        def data_received(self, data):
            if {callback!r} == 'write_ready' and not self.acted:
                return 'write_pending'
            return self.act({callback!r} == 'data_received')

        def eof_received(self):
            return self.act({callback!r} == 'eof_received')

        def timeout_expired(self):
            return self.act({callback!r} == 'timeout_expired')

        def act(self, here):
            if not here or self.acted:
                return 'continue'
            self.acted = True
            self.write_buffer += b'output'
            return {action!r}
        """


WRITING_BY_ITSELF = """
        def write_ready(self):
            if not self.acted:
                return self.act(True)
            del self.write_buffer[:self.write(self.write_buffer)]
            return 'continue' if self.write_buffer else 'read_pending'
        """


def after(serve: Serve, callback: str, action: str | None) -> Client:
    """A client whose protocol has just said this in that callback."""
    body = acting(callback, action)
    client = serve(body + WRITING_BY_ITSELF if callback == "write_ready" else body).connect()
    if callback in ("data_received", "write_ready"):
        client.send(b"go")
        client.next("data_received")
    elif callback == "eof_received":
        client.half_close()
    if callback not in ("connection_made", "data_received"):
        client.next(callback)
    return client


def reads_on(client: Client) -> None:
    """It is read, and told so. Where the stream has ended nothing comes any more."""
    if "eof_received" not in [event.what for event in client.events]:
        client.send(b"more")
        assert client.skip_to("data_received")["data"] == "more"


def is_silent(client: Client) -> None:
    client.server.fence()
    assert client.evaluate("bytes(self.write_buffer)") == "output"


@pytest.mark.parametrize("callback", CALLBACKS)
def test_close_sends_what_is_buffered_and_ends(serve: Serve, callback: str) -> None:
    client = after(serve, callback, "close")
    assert client.rest() == b"output"
    reasons = {"eof_received": "eof", "timeout_expired": "timeout"}
    assert client.skip_to("connection_lost")["reason"] == reasons.get(callback, "closed")


@pytest.mark.parametrize("callback", CALLBACKS)
def test_abort_ends_without_sending(serve: Serve, callback: str) -> None:
    client = after(serve, callback, "abort")
    assert client.rest() == b""
    assert client.lost() == "aborted"


@pytest.mark.parametrize("callback", CALLBACKS)
def test_write_pending_sends_and_reads_on(serve: Serve, callback: str) -> None:
    client = after(serve, callback, "write_pending")
    assert client.receive(6) == b"output"
    reads_on(client)


@pytest.mark.parametrize("callback", CALLBACKS)
def test_none_sends_what_is_buffered_and_reads_on(serve: Serve, callback: str) -> None:
    client = after(serve, callback, None)
    assert client.receive(6) == b"output"
    reads_on(client)


@pytest.mark.parametrize("callback", CALLBACKS)
def test_read_pending_reads_on_without_sending(serve: Serve, callback: str) -> None:
    client = after(serve, callback, "read_pending")
    is_silent(client)
    reads_on(client)
    is_silent(client)


@pytest.mark.parametrize("callback", CALLBACKS)
def test_continue_goes_on_as_before(serve: Serve, callback: str) -> None:
    client = after(serve, callback, "continue")
    if callback == "write_ready":
        assert client.receive(6) == b"output"
    else:
        is_silent(client)
    reads_on(client)


@pytest.mark.parametrize("callback", CALLBACKS)
def test_pause_neither_reads_nor_sends_until_it_is_resumed(serve: Serve, callback: str) -> None:
    client = after(serve, callback, "pause")
    if callback != "eof_received":
        client.send(b"more")
    client.nothing()
    is_silent(client)
    assert client.evaluate("reactor.resume(self, 'write_pending')") is True
    assert client.receive(6) == b"output"
    if callback != "eof_received":
        assert client.skip_to("data_received")["data"] == "more"


@pytest.mark.parametrize("state", ["continue", "read_pending", "pause"])
@pytest.mark.parametrize("action", ACTIONS[:-1])
def test_resume_takes_every_action(serve: Serve, state: str, action: str) -> None:
    client = after(serve, "data_received", state)
    is_silent(client)
    assert client.evaluate(f"reactor.resume(self, {action!r})") is True
    match action:
        case "close":
            assert client.rest() == b"output"
            assert client.lost() == "closed"
        case "abort":
            assert client.rest() == b""
            assert client.lost() == "aborted"
        case "write_pending":
            assert client.receive(6) == b"output"
            reads_on(client)
        case "read_pending":
            reads_on(client)
            is_silent(client)
        case "continue" if state != "pause":
            reads_on(client)
            is_silent(client)
        case _:
            client.send(b"more")
            client.nothing()
            is_silent(client)


@pytest.mark.parametrize("word", ["", "nonsense", "CLOSE", "close "])
def test_resume_refuses_what_is_no_action(serve: Serve, word: str) -> None:
    server = serve("""
        def data_received(self, data):
            try:
                reactor.resume(self, data.decode()[1:])
            except ValueError as error:
                self.tell("refused", text=str(error))
    """)
    client = server.connect()
    client.send(b"!" + word.encode())
    client.next("data_received")
    assert "is no action" in client.next("refused")["text"]
    client.send(b"!continue")
    client.next("data_received")


def test_a_pause_may_be_ended_by_another_thread_at_once(serve: Serve) -> None:
    server = serve("""
        def data_received(self, data):
            threading.Thread(target=self.work, args=(data,)).start()
            return "pause"

        def work(self, data):
            self.write_buffer.extend(data.upper())
            reactor.resume(self, "write_pending")
    """)
    client = server.connect()
    for _ in range(100):
        client.send(b"work")
        assert client.receive(4) == b"WORK"


def test_both_ways_to_pause_have_to_be_undone(serve: Serve) -> None:
    server = serve("""
        def data_received(self, data):
            self.pause_reading()
            return "pause"
    """)
    client = server.connect()
    client.send(b"one")
    client.next("data_received")
    client.send(b"two")
    client.nothing()
    client.evaluate("self.resume_reading()")
    client.nothing()
    client.evaluate("reactor.resume(self)")
    assert client.next("data_received")["data"] == "two"
    client.send(b"three")
    client.nothing()
    client.evaluate("reactor.resume(self)")
    client.nothing()
    client.evaluate("self.resume_reading()")
    assert client.next("data_received")["data"] == "three"


@pytest.mark.parametrize(
    "callback", ["connection_made", "data_received", "timeout_expired", "write_ready"]
)
def test_reading_can_be_paused_in_every_callback(serve: Serve, callback: str) -> None:
    body = acting(callback, "write_pending").replace(
        "self.acted = True", "self.acted = True; self.pause_reading()"
    )
    server = serve(body + WRITING_BY_ITSELF if callback == "write_ready" else body)
    client = server.connect()
    if callback in ("data_received", "write_ready"):
        client.send(b"go")
    if callback != "connection_made":
        client.next("data_received" if callback in ("data_received", "write_ready") else callback)
    # Output goes on.
    assert client.receive(6) == b"output"
    server.fence()
    seen = len(client.events)
    client.send(b"more")
    server.fence()
    assert "data_received" not in [event.what for event in client.events[seen:]]
    client.evaluate("self.resume_reading()")
    while client.skip_to("data_received")["data"] != "more":
        pass


def test_what_comes_while_reading_is_paused_waits_and_loses_nothing(serve: Serve) -> None:
    server = serve("""
        received = b""

        def connection_made(self, fd, info):
            self.pause_reading()

        def data_received(self, data):
            self.received += data
            self.tell("so far", length=len(self.received))
    """)
    client = server.connect()
    client.send(b"abc" * 1000)
    client.half_close()
    client.nothing()
    client.evaluate("self.resume_reading()")
    while client.skip_to("so far")["length"] < 3000:
        pass
    client.next("eof_received")
    assert client.lost() == "eof"


def test_threads_that_pause_and_resume_without_end_lose_nothing(serve: Serve) -> None:
    server = serve("""
        stopped = False

        def connection_made(self, fd, info):
            self.thread = threading.Thread(target=self.play)
            self.thread.start()

        def play(self):
            while not self.stopped:
                self.pause_reading()
                self.resume_reading()
            self.tell("played")

        def data_received(self, data):
            self.write_buffer += data

        def eof_received(self):
            self.stopped = True
            return "close"
    """)
    client = server.connect()
    for number in range(200):
        client.echoes(b"%d" % number)
    client.half_close()
    assert client.rest() == b""
    server.world.journal.wait(
        "played", lambda: next((e for e in client.events if e.what == "played"), None)
    )
