"""How clients come in: in batches, below the limits, and when there is no descriptor left."""

from __future__ import annotations

import re
import resource
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from clients import Serve
from worlds import Failure, World, wait_until

ECHO = "def data_received(self, data): self.write_buffer += data"
HOLD = """
    def data_received(self, data):
        if data == b"hold":
            self.hold()
        self.write_buffer += data
    """


@contextmanager
def descriptors(world: World, spare: int) -> Iterator[None]:
    """Leaves the world so many free descriptors."""
    before = resource.prlimit(world.pid, resource.RLIMIT_NOFILE)
    open_now = sorted(map(int, world.descriptors()))
    free = (number for number in range(1 << 20) if number not in open_now)
    # The limit is one on numbers: those below it that are free are the ones that are left.
    limit = [next(free) for _ in range(spare + 1)][-1]
    resource.prlimit(world.pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(world.pid, resource.RLIMIT_NOFILE, before)


def test_many_clients_that_come_at_once_are_all_served(serve: Serve) -> None:
    server = serve(ECHO)
    clients = [server.knock() for _ in range(500)]
    for number, client in enumerate(clients):
        client.send(b"%d" % number)
    for number, client in enumerate(clients):
        answer = b"%d" % number
        assert client.receive(len(answer)) == answer
    assert server.wait_for(active=500)["accepted"] == 500


def test_those_that_are_there_are_served_between_batches_of_new_ones(serve: Serve) -> None:
    server = serve(HOLD, backlog=1024)
    old, holder = server.connect(), server.connect()
    holder.send(b"hold")
    holder.next("data_received")
    holder.next("held")
    new = [server.knock() for _ in range(600)]
    old.send(b"me too")
    holder.release()
    assert old.receive(6) == b"me too"
    for client in new:
        client.next("connection_made")
    order = [(event.what, event.of) for event in server.world.journal.events]
    served = order.index(("data_received", old.serial))
    last = max(n for n, (what, _) in enumerate(order) if what == "connection_made")
    assert served < last


def test_there_are_never_more_connections_than_may_be(serve: Serve) -> None:
    server = serve(ECHO, max_connections=3)
    inside = [server.connect() for _ in range(3)]
    waiting = [server.knock() for _ in range(3)]
    for client in waiting:
        client.send(b"hello")
    for number in range(20):
        for client in inside:
            client.echoes(b"%d" % number)
    info = server.info()
    assert (info["active"], info["accepted"]) == (3, 3)
    # Who leaves makes room for the one that has waited longest.
    for leaving, coming in zip(inside, waiting, strict=True):
        leaving.close()
        assert coming.receive(5) == b"hello"
        assert server.info()["active"] <= 3
    assert server.wait_for(active=3)["accepted"] == 6


def test_one_place_is_enough_for_many_that_come_one_after_the_other(serve: Serve) -> None:
    server = serve(ECHO, max_connections=1)
    for number in range(50):
        with server.knock() as client:
            client.echoes(b"%d" % number)
    assert server.wait_for(active=0)["closed"] == 50


def test_without_places_nobody_gets_in(serve: Serve) -> None:
    server = serve(ECHO, max_connections=0)
    waiting = server.knock()
    waiting.send(b"x")
    assert server.info()["accepted"] == 0
    waiting.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        waiting.socket.recv(1)


def test_clients_that_leave_before_they_are_accepted_harm_nobody(serve: Serve) -> None:
    server = serve(HOLD)
    holder = server.connect()
    holder.send(b"hold")
    holder.next("data_received")
    holder.next("held")
    for _ in range(50):
        server.knock().reset()
    after = server.knock()
    holder.release()
    after.echoes(b"hello")
    server.wait_for(active=2)


def test_without_a_free_descriptor_clients_wait_and_the_others_are_served(
    serve: Serve, world: World
) -> None:
    server = serve(ECHO)
    old = server.connect()
    old.echoes(b"before")
    with descriptors(world, 5):
        clients = [server.knock() for _ in range(20)]
        for client in clients:
            client.send(b"hello")
        wait_until("some have come in", lambda: server.info()["active"] > 1)
        for number in range(100):
            old.echoes(b"%d" % number)
        assert server.info()["active"] <= 1 + 5
    for client in clients:
        assert client.receive(5) == b"hello"
    assert server.wait_for(active=21)["accepted"] == 21


def test_a_shortage_of_descriptors_is_said_once_a_second_and_is_no_work(
    serve: Serve, world: World
) -> None:
    """Who waits in the backlog makes the socket ready all the time: trying again at once would be a
    loop that never sleeps."""
    server = serve(ECHO)
    old = server.connect()
    with descriptors(world, 2):
        clients = [server.knock() for _ in range(10)]
        wait_until("some have come in", lambda: server.info()["active"] > 1)
        began, worked, said = time.monotonic(), world.cpu_seconds(), len(world.said())
        wait_until("it is said again", lambda: shortages(world, said) > 1)
        times, seconds = shortages(world, said), time.monotonic() - began
        assert times <= seconds + 1
        assert world.cpu_seconds() - worked < seconds / 2
        old.echoes(b"hello")
    for client in clients:
        client.echoes(b"hello")


def shortages(world: World, since: int) -> int:
    """How often the log says that there is no descriptor left."""
    return len(re.findall("emfile|too many open files", world.said()[since:], re.IGNORECASE))


def test_a_place_that_becomes_free_is_taken_although_descriptors_were_short(
    serve: Serve, world: World
) -> None:
    server = serve(ECHO)
    old = server.connect()
    with descriptors(world, 0):
        new = server.knock()
        new.send(b"hello")
        old.echoes(b"before")
        old.close()
        assert new.receive(5) == b"hello"


def test_a_unix_socket_comes_and_goes_with_its_server(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = serve(ECHO, unix=str(path))
    assert stat.S_ISSOCK(path.stat().st_mode)
    server.connect().echoes(b"hello")
    server.stop(0)
    assert not path.exists()
    server.restart()
    server.connect().echoes(b"hello again")


def test_an_abandoned_unix_socket_is_replaced_and_a_living_one_is_not(
    serve: Serve, tmp_path: Path
) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(path)
    server = serve(ECHO, unix=path)
    with pytest.raises(Failure, match=r"eaddrinuse|Address already in use"):
        serve(ECHO, unix=path)
    server.connect().echoes(b"hello")


def test_another_kind_of_file_is_left_alone(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(Failure, match=r"eaddrinuse|Address already in use"):
        serve(unix=str(path))
    assert path.read_text() == "precious"


def test_a_port_that_is_taken_is_an_error(serve: Serve) -> None:
    first = serve(ECHO)
    with pytest.raises(Failure, match=r"eaddrinuse|Address already in use"):
        serve(port=first.address)
    with_reuseport = serve(ECHO, reuseport=True)
    again = serve(ECHO, reuseport=True, port=with_reuseport.address)
    assert again.address == with_reuseport.address


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_connections", -1),
        ("idle_timeout", -1),
        ("idle_timeout", "1"),
        ("handshake_timeout", -1),
        ("write_timeout", "soon"),
        ("high_water", 0),
        ("low_water", 65536),
        ("low_water", -1),
        ("backlog", 0),
        ("port", 65536),
        ("port", -1),
        ("nonsense", 1),
    ],
)
def test_a_bad_option_is_an_error_that_names_it(serve: Serve, option: str, value: object) -> None:
    with pytest.raises(Failure, match=option):
        serve(**{option: value})


def test_the_least_values_of_options_are_taken(serve: Serve) -> None:
    server = serve(
        ECHO, idle_timeout=1, handshake_timeout=1, write_timeout=1, high_water=1, backlog=1
    )
    client = server.knock()
    client.next("connection_made")
    assert client.skip_to("connection_lost")["reason"] in ("idle_timeout", "handshake_timeout")


def test_what_is_told_of_the_client_has_what_the_server_adds(serve: Serve) -> None:
    server = serve(ECHO, info={"tenant": "blue"})
    client = server.knock()
    info = client.next("connection_made")["info"]
    assert info == {"addr": "127.0.0.1", "port": client.peer[1], "type": "tcp", "tenant": "blue"}


def test_nodelay_may_be_left_out(serve: Serve) -> None:
    client = serve(nodelay=False).connect()
    assert (
        client.evaluate(
            "socket.fromfd(self.fd, socket.AF_INET, socket.SOCK_STREAM).getsockopt(6, 1)"
        )
        == 0
    )
