"""What happens in one turn of the reactor, and which connection it happens to.

A callback that holds the reactor makes the turn: what came meanwhile is dealt with in the next.
"""

from __future__ import annotations

import pytest
from clients import Client, Open, Serve, Server
from worlds import Failure, World, wait_until

HOLDER = """
    def data_received(self, data):
        if data == b"hold":
            self.hold()
        elif data != b"warm up":
            self.serve(data)
    """


def held(server: Server) -> Client:
    """A client whose protocol holds the reactor."""
    holder = server.connect()
    holder.send(b"hold")
    holder.next("data_received")
    holder.next("held")
    return holder


@pytest.mark.parametrize(
    "way", ["resume(other, 'abort')", "resume(other, 'close')", "close_connection(other.fd)"]
)
def test_one_that_another_ended_in_the_same_turn_is_not_called_any_more(
    serve: Serve, way: str
) -> None:
    server = serve(f"""
    {HOLDER}
    def serve(self, data):
        self.tell("first")
        for other in list(_living.values()):
            if other is not self and type(other) is type(self) and other.name == "victim":
                reactor.{way}

    name = "holder"
    """)
    victims = [server.connect() for _ in range(20)]
    for victim in victims:
        victim.evaluate("setattr(self, 'name', 'victim')")
    holder = held(server)
    for victim in victims:
        victim.send(b"x")
    holder.release()
    # Whoever came first has ended all others, and nobody but the first was called.
    wait_until(
        "all others have ended",
        lambda: sum(e.what == "connection_lost" for e in server.world.journal.events) == 19,
    )
    assert sum(e.what == "first" for e in server.world.journal.events) == 1
    called = [victim for victim in victims if victim.events[1].what == "data_received"]
    assert len(called) == 1
    server.fence()


@pytest.mark.parametrize("what", ["eof", "reset", "timeout"])
def test_one_that_was_ended_is_not_told_of_anything_else(serve: Serve, what: str) -> None:
    """An end that was asked for before the reactor looks comes before all that waits there."""
    server = serve(HOLDER)
    victim = server.connect()
    holder = held(server)
    victim.send(b"x")
    match what:
        case "eof":
            victim.half_close()
        case "reset":
            victim.reset()
        case "timeout":
            victim.evaluate("self.set_timeout(0)")
    victim.evaluate("reactor.resume(self, 'abort')")
    holder.release()
    assert victim.lost() == "aborted"


def test_an_end_from_within_its_own_callback_comes_with_the_end_of_the_callback(
    serve: Serve,
) -> None:
    server = serve("""
        def data_received(self, data):
            reactor.resume(self, "close")
            self.write_buffer += b"said after that"
            self.tell("still here")
            return "continue"
    """)
    client = server.connect()
    client.send(b"x")
    client.next("data_received")
    client.next("still here")
    assert client.rest() == b"said after that"
    assert client.lost() == "closed"


def test_a_number_that_is_served_cannot_be_driven_by_hand(serve: Serve) -> None:
    server = serve("def data_received(self, data): self.write_buffer += data")
    client = server.connect()
    with pytest.raises(Failure, match=r"ValueError: descriptor [0-9]+ is served already"):
        client.evaluate(
            "reactor.set_protocol_factory(Told) or reactor.init_connection(self.fd, {})"
        )
    client.echoes(b"not disturbed")


@pytest.mark.parametrize("way", ["init_connection", "hand_in"])
def test_a_duplicate_of_what_is_served_is_not_served_as_well(
    serve: Serve, world: World, open_reactor: Open, way: str
) -> None:
    """Of two readers each would get a part of the stream."""
    reactor = open_reactor("pass")
    client = serve("def data_received(self, data): self.write_buffer += data").connect()
    duplicate = client.evaluate("os.dup(self.fd)")
    requests = {
        "init_connection": ("evaluate", f"reactor.init_connection({duplicate}, {{}})", None),
        "hand_in": ("hand_in", reactor.name, duplicate),
    }
    with pytest.raises(Failure, match=r"already.served|served already"):
        world.ask(*requests[way])
    if way == "init_connection":
        world.ask("evaluate", f"os.close({duplicate})", None)
    client.echoes(b"not disturbed")


def test_what_is_handed_in_twice_is_an_error_and_served_once(
    world: World, open_reactor: Open
) -> None:
    reactor = open_reactor("def data_received(self, data): self.write_buffer += data")
    ours, theirs = world.ask("evaluate", "[s.detach() for s in socket.socketpair()]", None)
    # Each is another number of the same socket.
    again = [world.ask("evaluate", f"os.dup({ours})", None) for _ in range(3)]
    served = reactor.hand_in(ours)
    served.next("connection_made")
    for number in again:
        with pytest.raises(Failure, match=r"already.served|served already"):
            world.ask("hand_in", reactor.name, number)
    world.ask("evaluate", f"os.write({theirs}, b'hello')", None)
    served.next("data_received")
    assert world.ask("evaluate", f"os.read({theirs}, 9)", None) == "hello"
    world.ask("evaluate", f"os.close({theirs})", None)
    served.next("eof_received")
    assert served.lost() == "eof"
    # That there was one protocol only is seen by the lives that every test looks at.
    assert sum(event.what == "connection_made" for event in world.journal.events) == 1


def test_a_number_used_again_never_reaches_the_old_protocol(serve: Serve) -> None:
    server = serve("""
        def data_received(self, data):
            self.write_buffer += data + b" for %d" % self.serial
    """)
    numbers: dict[int, int] = {}
    reused = 0
    for round_ in range(50):
        client = server.connect()
        fd = client.evaluate("self.fd")
        reused += fd in numbers
        assert numbers.get(fd) != client.serial
        numbers[fd] = client.serial
        data = b"%d" % round_
        client.send(data)
        answer = data + b" for %d" % client.serial
        assert client.receive(len(answer)) == answer
        client.close()
        client.skip_to("connection_lost")
        server.fence()
    assert reused > 40


def test_a_number_used_again_in_the_same_turn_is_another_connection(serve: Serve) -> None:
    """The old one ends, the new one comes, with the same number, before the reactor looks again."""
    server = serve("""
        def data_received(self, data):
            if data == b"hold":
                self.hold()
            self.tell("got", data=data.decode())
    """)
    old = [server.connect() for _ in range(10)]
    holder = server.connect()
    holder.send(b"hold")
    holder.next("data_received")
    holder.next("held")
    for client in old:
        client.send(b"old")
        client.close()
    new = [server.knock() for _ in range(10)]
    for client in new:
        client.send(b"new")
    holder.release()
    for client in old:
        assert client.skip_to("got")["data"] == "old"
        client.next("eof_received")
        assert client.lost() == "eof"
    for client in new:
        client.next("connection_made")
        client.next("data_received")
        assert client.next("got")["data"] == "new"
        client.nothing()


def test_a_number_that_was_closed_behind_its_back_is_not_mixed_up(serve: Serve) -> None:
    server = serve("""
        def data_received(self, data):
            if data == b"close":
                os.close(self.fd)
                return "continue"
            self.write_buffer += data
    """)
    old = server.connect()
    fd = old.evaluate("self.fd")
    old.send(b"close")
    old.next("data_received")
    # The number comes back with one of the next connections.
    clients = []
    while True:
        client = server.connect()
        clients.append(client)
        if client.evaluate("self.fd") == fd:
            break
        assert len(clients) < 50
    assert old.lost() == "descriptor_gone"
    for client in clients:
        client.echoes(b"mine")


def test_who_has_something_to_do_waits_for_all_others_first(serve: Serve) -> None:
    """One that writes without end is called as often as the others, not before them."""
    server = serve("""
        def data_received(self, data):
            if data == b"greedy":
                return "write_pending"
            self.write_buffer += data

        def write_ready(self):
            if self.write_buffer:
                del self.write_buffer[:self.write(self.write_buffer)]
                return "read_pending"
            return "continue"
    """)
    greedy = server.connect()
    greedy.send(b"greedy")
    greedy.next("data_received")
    other = server.connect()
    for number in range(20):
        other.echoes(b"%d" % number)
    # For ever would be a long time for this test.
    greedy.evaluate("reactor.resume(self, 'abort')")
    assert greedy.skip_to("connection_lost")["reason"] == "aborted"
