"""Stop: the listening socket first, then the connections are asked to end, then they are closed."""

from __future__ import annotations

import socket

import pytest
from clients import Client, Serve, Server
from worlds import wait_until

FOREVER_MS = 60_000
ECHO = """
    def data_received(self, data):
        self.write_buffer += data
    """
STAYS = (
    ECHO
    + """
    def draining(self):
        return "continue"
    """
)


def refuses(server: Server) -> bool:
    """Whether nobody listens at its address any more."""
    assert isinstance(server.address, int)
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", server.address)) != 0


def test_it_refuses_clients_first_and_serves_on_until_the_connections_have_ended(
    serve: Serve,
) -> None:
    server = serve(STAYS)
    clients = [server.connect() for _ in range(3)]
    stopped = server.begin_stop(FOREVER_MS)
    for client in clients:
        client.next("draining")
    wait_until("clients are refused", lambda: refuses(server))
    for client in clients:
        client.echoes(b"in flight")
        client.close()
    stopped()
    for client in clients:
        assert client.skip_to("connection_lost")["reason"] == "eof"


def test_what_does_nothing_ends_at_once(serve: Serve) -> None:
    server = serve(ECHO)
    clients = [server.connect() for _ in range(20)]
    for client in clients:
        client.echoes(b"keep me")
        client.next("data_received")
    server.stop(FOREVER_MS)
    for client in clients:
        assert client.rest() == b""
        client.next("draining")
        assert client.lost() == "drained"
    assert refuses(server)


def test_what_is_left_at_the_deadline_is_closed(serve: Serve) -> None:
    server = serve(STAYS)
    clients = [server.connect() for _ in range(5)]
    server.stop(50)
    for client in clients:
        assert client.rest() == b""
        client.next("draining")
        assert client.lost() == "stopped"


def test_a_stop_without_time_closes_at_once(serve: Serve) -> None:
    server = serve(STAYS)
    clients = [server.connect() for _ in range(5)]
    server.stop(0)
    for client in clients:
        assert client.rest() == b""
        assert client.skip_to("connection_lost")["reason"] in ("stopped", "drained")


def test_a_protocol_may_finish_what_it_does(serve: Serve) -> None:
    server = serve("""
        def data_received(self, data):
            return "pause"

        def draining(self):
            return "continue"
    """)
    client = server.connect()
    client.send(b"x")
    client.next("data_received")
    stopped = server.begin_stop(FOREVER_MS)
    # A paused one hears of it, too.
    client.next("draining")
    client.evaluate("self.write_buffer.extend(b'finished')")
    client.evaluate("reactor.resume(self, 'close')")
    assert client.rest() == b"finished"
    assert client.lost() == "closed"
    stopped()


def test_what_is_being_written_is_written(serve: Serve) -> None:
    server = serve("def data_received(self, data): self.write_buffer += data * 1_000_000")
    client = server.connect(receive_bytes=4096)
    client.send(b"0123456789")
    client.next("data_received")
    stopped = server.begin_stop(FOREVER_MS)
    client.next("draining")
    assert client.rest() == b"0123456789" * 1_000_000
    assert client.lost() == "drained"
    stopped()


def test_what_was_sent_before_is_read_and_answered(serve: Serve) -> None:
    server = serve("""
        def data_received(self, data):
            if data == b"hold":
                self.hold()
            else:
                self.write_buffer += data
    """)
    client, holder = server.connect(), server.connect()
    client.echoes(b"hello")
    holder.send(b"hold")
    holder.next("data_received")
    holder.next("held")
    client.send(b"one more")
    stopped = server.begin_stop(FOREVER_MS)
    wait_until("clients are refused", lambda: refuses(server))
    holder.release()
    assert client.rest() == b"one more"
    assert holder.rest() == b""
    stopped()


STATES = {
    "reading": "pass",
    "paused": "return 'pause'",
    "reading paused": "self.pause_reading()",
    "writing": "self.fill(); self.write_buffer += b'x'; return 'write_pending'",
    "closing": "self.fill(); self.write_buffer += b'x'; return 'close'",
    "waiting for time": "self.set_timeout(3600)",
}


@pytest.mark.parametrize("state", STATES)
def test_it_ends_connections_in_every_state(serve: Serve, state: str) -> None:
    server = serve(f"""
        def data_received(self, data):
            {STATES[state]}

        def draining(self):
            return "continue"
    """)
    client = server.connect(receive_bytes=4096)
    client.send(b"x")
    client.next("data_received")
    server.stop(20)
    assert client.skip_to("connection_lost")["reason"] == "stopped"
    client.rest()


@pytest.mark.parametrize(
    "action", ["close", "abort", "pause", "read_pending", "write_pending", None]
)
def test_draining_may_answer_every_action(serve: Serve, action: str | None) -> None:
    server = serve(f"""
        def data_received(self, data):
            return "continue"

        def draining(self):
            self.write_buffer += b"good bye"
            return {action!r}
    """)
    client = server.connect()
    server.stop(FOREVER_MS if action in ("close", "abort") else 50)
    client.next("draining")
    # At the end what is buffered is sent, unless that is what nobody wants.
    assert client.rest() == (b"" if action == "abort" else b"good bye")
    reason = {"close": "drained", "abort": "aborted"}.get(str(action), "stopped")
    assert client.lost() == reason


def test_draining_that_fails_costs_its_connection_only(serve: Serve) -> None:
    server = serve("""
        def draining(self):
            raise LookupError("no way out")
    """)
    client = server.connect()
    server.stop(FOREVER_MS)
    client.next("draining")
    assert client.lost() == "exception"
    assert client.rest() == b""


def test_a_restart_is_at_the_same_address(serve: Serve) -> None:
    server = serve(ECHO)
    for number in range(10):
        with server.connect() as client:
            client.echoes(b"%d" % number)
            server.stop(FOREVER_MS)
            assert client.rest() == b""
            assert refuses(server)
        server.restart()
    server.connect().echoes(b"still the same")


def test_connections_of_another_run_do_not_come_back(serve: Serve) -> None:
    server = serve(STAYS)
    old = server.connect()
    server.stop(0)
    assert old.skip_to("connection_lost")["reason"] == "stopped"
    server.restart()
    new = server.connect()
    new.echoes(b"hello")
    assert server.wait_for(active=1)["accepted"] == 2
    assert old.serial != new.serial


def test_what_waits_in_the_backlog_is_not_forgotten(serve: Serve) -> None:
    """Who could connect is served, also when the reactor is held up as the stop comes."""
    server = serve("""
        def data_received(self, data):
            if data == b"hold":
                self.hold()
            self.write_buffer += data
    """)
    holder = server.connect()
    holder.send(b"hold")
    holder.next("data_received")
    holder.next("held")
    waiting = [server.knock() for _ in range(20)]
    for client in waiting:
        client.send(b"hello")
    stopped = server.begin_stop(FOREVER_MS)
    wait_until("clients are refused", lambda: refuses(server))
    holder.release()
    for client in waiting:
        assert client.rest() == b"hello"
    stopped()


def test_a_stop_while_a_callback_runs_waits_for_it(serve: Serve) -> None:
    server = serve("""
        def data_received(self, data):
            self.hold()
            self.write_buffer += data
    """)
    client = server.connect()
    client.send(b"x")
    client.next("data_received")
    client.next("held")
    stopped = server.begin_stop(FOREVER_MS)
    # Nobody waits for a server that has other things to do.
    wait_until("clients are refused", lambda: refuses(server))
    client.release()
    assert client.rest() == b"x"
    stopped()
    assert client.skip_to("connection_lost")["reason"] == "drained"


def test_two_that_stop_it_at_once_are_both_answered(serve: Serve) -> None:
    server = serve(STAYS)
    client = server.connect()
    patient = server.begin_stop(FOREVER_MS)
    client.next("draining")
    hasty = server.begin_stop(0)
    hasty()
    patient()
    assert client.lost() == "stopped"


def test_one_server_is_stopped_and_another_goes_on(serve: Serve) -> None:
    stopped, other = serve(ECHO), serve(ECHO)
    clients: list[Client] = [stopped.connect() for _ in range(5)]
    neighbour = other.connect()
    stopped.stop(0)
    for client in clients:
        client.rest()
    neighbour.echoes(b"not disturbed")
