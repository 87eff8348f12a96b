"""The dashboard's protocol, driven without sockets; the test plays the keeper of the figures."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import erlang
from erlang._dashboard import Dashboard
from erlang._http import MAX_HEAD_BYTES
from erlang.reactor import testing
from erlang.reactor.pytest_plugin import StartDrive

GET = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"

Asked = list[tuple[Any, ...]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What the keeper of the figures is asked."""
    asked: Asked = []

    def note(to: object, term: tuple[Any, ...]) -> None:
        assert to == "py_reactor_dashboard"
        asked.append(term)

    monkeypatch.setattr(erlang, "send", note)
    return asked


def status(answer: bytes) -> int:
    version, code, _ = answer.split(b" ", 2)
    assert version == b"HTTP/1.1"
    return int(code)


def test_the_page_comes_at_once(drive: StartDrive) -> None:
    wire = drive(Dashboard)
    wire.send(GET % b"/")
    assert status(wire.received) == 200
    assert wire.take().endswith(b"</html>\n")
    wire.send(GET % b"/nowhere")
    assert status(wire.take()) == 404
    wire.send(b"HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert wire.take().endswith(b"\r\n\r\n")
    assert wire.reason == "closed"


def test_figures_come_from_the_keeper(drive: StartDrive, asked: Asked) -> None:
    wire = drive(Dashboard)
    wire.send(GET % b"/metrics", GET % b"/data?run=7&since=3")
    connection = wire.protocol.connection
    assert asked == [("metrics", 1, connection)]
    assert wire.actions[-1] == "pause"
    wire.message((99, b"of somebody else"))
    assert wire.received == b""
    wire.message((1, b"figures"))
    assert status(wire.received) == 200
    assert wire.take().endswith(b"\r\n\r\nfigures")
    assert asked[1:] == [(("data", 7, 3), 2, connection)]
    wire.message((2, b"{}"))
    assert wire.take().endswith(b"\r\n\r\n{}")
    assert not wire.closed


def test_the_keeper_has_five_seconds(drive: StartDrive, asked: Asked) -> None:
    wire = drive(Dashboard)
    wire.send(GET % b"/metrics")
    wire.advance(4.999)
    assert wire.received == b""
    wire.advance(0.001)
    assert (status(wire.received), wire.reason) == (503, "timeout")


def test_without_a_keeper_there_are_no_figures(
    drive: StartDrive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(to: object, term: object) -> None:
        raise LookupError

    monkeypatch.setattr(erlang, "send", nobody)
    wire = drive(Dashboard)
    wire.send(GET % b"/metrics")
    assert (status(wire.received), wire.reason) == (503, "closed")


def test_a_request_has_ten_seconds(drive: StartDrive) -> None:
    wire = drive(Dashboard)
    wire.advance(5)
    wire.send(b"G")
    wire.advance(4)
    wire.send(b"E")
    wire.advance(0.999)
    assert not wire.closed
    wire.advance(0.001)
    assert (status(wire.received), wire.reason) == (408, "timeout")


def test_nobody_stays_for_nothing(drive: StartDrive) -> None:
    mute = drive(Dashboard)
    mute.advance(10)
    assert (mute.received, mute.reason) == (b"", "timeout")
    silent = drive(Dashboard)
    silent.send(GET % b"/")
    silent.advance(59.999)
    assert not silent.closed
    silent.advance(0.001)
    assert silent.reason == "timeout"


@pytest.mark.parametrize(
    ("options", "host", "expected"),
    [
        ({}, b"localhost", 200),
        ({}, b"[::1]:80", 200),
        ({}, b"a.localhost", 200),
        ({}, b"evil.example", 403),
        ({}, b"10.0.0.1", 403),
        ({"any_address": True}, b"10.0.0.1", 200),
        ({"any_address": True}, b"[fe80::1]", 200),
        ({"any_address": True}, b"evil.example", 403),
        ({"hosts": ["good.example"]}, b"good.example", 200),
    ],
)
def test_only_known_hosts_are_served(
    drive: StartDrive, options: dict[str, Any], host: bytes, expected: int
) -> None:
    wire = drive(lambda: Dashboard(**options))
    wire.send(b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n" % host)
    assert status(wire.received) == expected


def test_a_client_that_ends_its_stream_gets_its_answers(drive: StartDrive, asked: Asked) -> None:
    wire = drive(Dashboard)
    wire.send(GET % b"/metrics" + GET % b"/nowhere")
    wire.half_close()
    assert not wire.closed
    wire.message((1, b"figures"))
    assert wire.received.count(b"HTTP/1.1 ") == 2
    assert wire.closed


def test_what_follows_a_refused_request_is_not_looked_at(drive: StartDrive) -> None:
    wire = drive(Dashboard)
    wire.send(b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n" + GET % b"/")
    assert (status(wire.received), wire.received.count(b"HTTP/1.1 ")) == (405, 1)
    wire = drive(Dashboard)
    wire.send(b"GET /" + b"x" * MAX_HEAD_BYTES)
    assert (status(wire.received), wire.reason) == (431, "closed")


@given(
    garbage=st.lists(st.binary(max_size=60), max_size=6),
    size=st.integers(1, 500),
    seconds=st.floats(0, 100),
)
@settings(deadline=None)
def test_no_client_breaks_it(garbage: list[bytes], size: int, seconds: float) -> None:
    with testing.drive(Dashboard, write_timeout=1) as wire:
        wire.accept(size)
        wire.send(GET % b"/nowhere", *garbage, GET % b"/")
        wire.advance(seconds)
        wire.half_close()
        wire.unblock()
        first = b"HTTP/1.1 404 Not Found\r\n"
        assert first.startswith(wire.received[: len(first)])
        assert wire.reason not in (None, "exception")
