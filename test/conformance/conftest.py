"""Every test runs in each world, and leaves it as it was."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from clients import Open, Reactor, Serve, Server
from worlds import Event, World, wait_until

WORLDS = ["plain", "beam", "beam-parked"]


@pytest.fixture(scope="session", params=WORLDS)
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """A world, for all tests in turn."""
    world = World(request.param, tmp_path_factory.mktemp(request.param))
    # What is made when it is first needed is no leak of the first test.
    warm_up = Server(world, "pass")
    warm_up.fence()
    warm_up.remove()
    yield world
    status = world.stop()
    assert status == 0, world.said()


@pytest.fixture
def world(running: World) -> Iterator[World]:
    """A world, in which nothing is left over when the test has ended."""
    before = _counts(running)
    running.journal.forget()
    yield running
    _nothing_is_left_over(running, before)


@pytest.fixture
def serve(world: World) -> Iterator[Serve]:
    """Starts a server: `serve(body, **options)`; see `Server`. It ends with the test, and each of
    its protocols has then had one life."""
    servers: list[Server] = []

    def serve(body: str = "pass", **options: Any) -> Server:
        server = Server(world, body, **options)
        servers.append(server)
        return server

    yield serve
    for server in servers:
        server.remove()
    _every_protocol_had_one_life(world.journal.events)


@pytest.fixture
def open_reactor(world: World) -> Iterator[Open]:
    """Starts a reactor that serves what is handed to it: `open_reactor(body)`; see `Reactor`."""
    reactors: list[Reactor] = []

    def open_reactor(body: str) -> Reactor:
        reactor = Reactor(world, body)
        reactors.append(reactor)
        return reactor

    yield open_reactor
    for reactor in reactors:
        reactor.remove()
    world.journal.wait("the end of all", lambda: _all_have_ended(world.journal.events) or None)
    _every_protocol_had_one_life(world.journal.events)


def _all_have_ended(events: list[Event]) -> bool:
    whats = [event.what for event in events]
    return whats.count("connection_made") == whats.count("connection_lost")


def _every_protocol_had_one_life(events: list[Event]) -> None:
    """`connection_made` came first and once, `connection_lost` last and once, and each callback on
    the same thread. What a test's own code told is not looked at."""
    lives: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        if event.of is not None and event.what in CALLBACKS:
            lives[event.of].append(event)
    for life in lives.values():
        whats = [event.what for event in life]
        assert whats[0] == "connection_made", life
        assert whats[-1] == "connection_lost", life
        assert whats.count("connection_made") == whats.count("connection_lost") == 1, life
        assert whats.count("eof_received") <= 1, life
        assert whats.count("draining") <= 1, life
        assert len({event.thread for event in life}) == 1, life
        assert life[-1]["closed"], life
        assert all(1 <= e["length"] <= 122_880 for e in life if e.what == "data_received"), life


CALLBACKS = {
    "connection_made",
    "data_received",
    "datagram_received",
    "eof_received",
    "timeout_expired",
    "draining",
    "message_received",
    "write_ready",
    "connection_lost",
}


def _counts(world: World) -> dict[str, int]:
    return {
        "descriptors": len(world.descriptors()),
        "threads": len(world.threads()),
        "protocols": world.ask("living"),
    }


def _nothing_is_left_over(world: World, before: dict[str, int]) -> None:
    now: dict[str, int] = {}

    def gone() -> bool:
        nonlocal now
        now = _counts(world)
        return all(now[what] <= before[what] for what in before)

    try:
        wait_until("what a test began has ended", gone)
    except AssertionError:
        left = {**now, "fds": world.descriptors(), "tasks": world.threads()}
        pytest.fail(f"left over: {left}, where there was {before}")
