"""The protocols in examples/ and of script/prove, driven without sockets."""

from __future__ import annotations

import gc
from itertools import pairwise

import proof_protocols
import pytest
from chat_protocol import MAX_BEHIND, MAX_LINE, ChatProtocol
from echo import EchoProtocol
from hypothesis import given, settings
from hypothesis import strategies as st
from keep_alive_http import MAX_HEAD, KeepAliveHTTP
from my_protocols import MyProtocol
from simple_http import SimpleHTTP

import erlang
import erlang.reactor as reactor
from erlang.reactor import testing
from erlang.reactor.pytest_plugin import StartDrive
from erlang.reactor.testing import NotPushed

ECHOES = [EchoProtocol, MyProtocol, proof_protocols.Echo, proof_protocols.Bulk]

Sent = list[tuple[object, object]]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """What goes to Erlang instead of an Erlang process."""
    sent: Sent = []
    monkeypatch.setattr(erlang, "send", lambda to, term: sent.append((to, term)))
    return sent


def torn(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[i:j] for i, j in pairwise(places)]


CUTS = st.lists(st.integers(0, 1000), max_size=10)
SIZES = st.lists(st.integers(1, 200), max_size=10)


@pytest.mark.parametrize("echo", ECHOES)
@given(data=st.binary(max_size=500), cuts=CUTS, sizes=SIZES)
@settings(deadline=None)
def test_every_byte_comes_back(
    echo: type[reactor.Protocol], data: bytes, cuts: list[int], sizes: list[int]
) -> None:
    with testing.drive(echo) as wire:
        wire.block()
        wire.send(*torn(data, cuts))
        for size in sizes:
            wire.accept(size)
        assert wire.received == data[: sum(sizes)]
        wire.unblock()
        wire.half_close()
        assert (wire.received, wire.reason) == (data, "eof")


def test_an_echo_that_nobody_reads_stops_reading(drive: StartDrive) -> None:
    wire = drive(MyProtocol)
    wire.block()
    wire.send(*[bytes(60_000)] * 3)
    assert len(wire.protocol.write_buffer) == 120_000
    wire.advance(60)
    assert wire.reason == "write_timeout"


def test_whole_messages_come_back_whole(drive: StartDrive) -> None:
    wire = drive(proof_protocols.Whole, handshake_timeout=1)
    wire.send(bytes(63))
    assert wire.actions[-1] == "continue"
    wire.send(bytes(66))
    assert wire.received == bytes(128)
    wire.advance(2)
    assert not wire.closed
    slow = drive(proof_protocols.Whole, handshake_timeout=1)
    slow.send(bytes(63))
    slow.advance(1)
    assert slow.reason == "handshake_timeout"


def test_a_crowd_counts_itself(drive: StartDrive) -> None:
    before = proof_protocols.Crowd.now
    crowd = [drive(proof_protocols.Crowd) for _ in range(3)]
    assert proof_protocols.Crowd.now == before + 3
    crowd[0].reset()
    crowd[1].half_close()
    assert proof_protocols.Crowd.now == before + 1
    assert proof_protocols.Crowd.most >= before + 3


def test_the_patient_one_stays_until_the_deadline(drive: StartDrive) -> None:
    patient, other = drive(proof_protocols.Patient), drive(proof_protocols.Echo)
    for wire in patient, other:
        wire.send(b"x")
        wire.drain()
    assert (patient.closed, other.reason) == (False, "drained")
    patient.stop()
    assert patient.reason == "stopped"


def test_a_subscriber_says_where_it_is(drive: StartDrive, sent: Sent) -> None:
    wire = drive(proof_protocols.Subscriber)
    assert sent == [("proof", ("here", wire.protocol.connection))]
    wire.push(b"news")
    assert wire.received == b"news"


def test_ended_protocols_are_gone() -> None:
    gc.collect()
    before = proof_protocols.living()
    for _ in range(10):
        with testing.drive(EchoProtocol) as wire:
            wire.send(b"x")
    del wire
    assert proof_protocols.living() == before


def test_simple_http_answers_and_closes(drive: StartDrive) -> None:
    wire = drive(SimpleHTTP)
    wire.send(b"GET /some/pa", b"th HTTP/1.0\r\n", b"\r\n")
    assert wire.received.endswith(b"\r\n\r\nHello! You requested /some/path")
    assert wire.reason == "closed"
    assert wire.actions == [
        "read_pending",
        "continue",
        "continue",
        "write_pending",
        "close",
        None,
    ]


@given(cuts=CUTS, sizes=SIZES)
@settings(deadline=None)
def test_simple_http_answers_however_the_network_is(cuts: list[int], sizes: list[int]) -> None:
    with testing.drive(SimpleHTTP) as wire:
        wire.block()
        wire.send(*torn(b"GET / HTTP/1.0\r\nA: b\r\n\r\n", cuts))
        for size in sizes:
            wire.accept(size)
        wire.unblock()
        assert wire.received.startswith(b"HTTP/1.0 200 OK\r\n")
        assert wire.received.endswith(b"Hello! You requested /")
        assert wire.reason == "closed"


GET = b"GET %s HTTP/1.1\r\nHost: h\r\n\r\n"


def answers(data: bytes) -> list[tuple[bytes, bool, bytes]]:
    """Status, whether the connection stays open, and body of each answer."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        line, *fields = head.split(b"\r\n")
        headers = dict(field.split(b": ") for field in fields)
        length = int(headers[b"Content-Length"])
        keep = headers[b"Connection"] == b"keep-alive"
        found.append((line.split(b" ", 1)[1], keep, data[:length]))
        data = data[length:]
    return found


@given(
    paths=st.lists(st.from_regex(rb"/[a-z]{0,8}", fullmatch=True), min_size=1, max_size=5),
    cuts=CUTS,
    sizes=SIZES,
)
@settings(deadline=None)
def test_requests_are_answered_in_order_however_the_network_is(
    paths: list[bytes], cuts: list[int], sizes: list[int]
) -> None:
    with testing.drive(KeepAliveHTTP) as wire:
        wire.block()
        wire.send(*torn(b"".join(GET % path for path in paths), cuts))
        for size in sizes:
            wire.accept(size)
        wire.unblock()
        expected = [(b"200 OK", True, b"Hello! You requested " + path) for path in paths]
        assert answers(wire.received) == expected
        assert not wire.closed


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", b"200 OK"),
        (b"GET / HTTP/1.0\r\n\r\n", b"200 OK"),
        (b"POST / HTTP/1.1\r\n\r\n", b"501 Not Implemented"),
        (b"GET / HTTP/1.1\r\nContent-Length: 3\r\n\r\n", b"501 Not Implemented"),
        (b"nonsense\r\n\r\n", b"400 Bad Request"),
        (b"x" * (MAX_HEAD + 1), b"431 Request Header Fields Too Large"),
    ],
)
def test_some_requests_are_the_last(drive: StartDrive, request_: bytes, status: bytes) -> None:
    wire = drive(KeepAliveHTTP)
    wire.send(request_, GET % b"/unheard")
    assert [answer[:2] for answer in answers(wire.received)] == [(status, False)]
    assert wire.reason == "closed"


def test_a_drained_server_answers_what_is_on_its_way(drive: StartDrive) -> None:
    wire = drive(KeepAliveHTTP)
    wire.send(GET % b"/one")
    wire.drain()
    wire.send(GET % b"/two")
    assert [keep for _, keep, _ in answers(wire.received)] == [True, False]
    assert wire.reason == "closed"
    idle = drive(KeepAliveHTTP)
    idle.send(GET % b"/one")
    idle.drain()
    idle.advance(0.999)
    assert not idle.closed
    idle.advance(0.001)
    assert idle.reason == "timeout"


ROOM = erlang.Pid(bytes(12))


@pytest.fixture
def member(drive: StartDrive, sent: Sent) -> testing.Drive:
    """Somebody who has joined a room."""
    wire = drive(ChatProtocol)
    wire.send(b"/nick ann\n/join python\n")
    assert sent.pop() == ("chat", ("join", "python", wire.protocol.connection, "ann"))
    wire.message(("joined", ROOM, "python"))
    assert wire.take().decode().splitlines()[1:] == ["* you are ann", "* you are in python"]
    return wire


def test_what_a_member_says_goes_to_its_room(member: testing.Drive, sent: Sent) -> None:
    member.send("grüß di".encode(), b"ch\n\n/nick eve\n", b"/nonsense\n")
    assert sent == [(ROOM, ("said", member.protocol.connection, "grüß dich"))]
    assert member.take().decode().splitlines() == [
        "! too late: they know you already",
        "! there are /nick NAME, /join ROOM and /bye",
    ]
    member.push(b"bob: hello\n")
    assert member.take() == b"bob: hello\n"
    member.send(b"/bye\nunheard\n")
    assert (member.take(), member.reason) == (b"* bye\n", "closed")


def test_who_joins_is_not_heard_before_the_room_has_answered(drive: StartDrive, sent: Sent) -> None:
    wire = drive(ChatProtocol)
    wire.send(b"hello\n/join python\n/nick ann\n/join python\nhello\n")
    wire.send(b"again\n")
    assert [to for to, _ in sent] == ["chat"]
    wire.message(("refused", "it is full"))
    assert wire.received.decode().splitlines()[1:] == [
        "! nobody hears you: /join ROOM",
        "! first say who you are: /nick NAME",
        "* you are ann",
        "! it is full",
        "! nobody hears you: /join ROOM",
        "! nobody hears you: /join ROOM",
    ]


def test_a_member_that_changes_rooms_leaves_the_first(member: testing.Drive, sent: Sent) -> None:
    member.send(b"/join erlang\n")
    connection = member.protocol.connection
    assert sent == [(ROOM, ("left", connection)), ("chat", ("join", "erlang", connection, "ann"))]


def test_a_line_has_an_end(drive: StartDrive) -> None:
    wire = drive(ChatProtocol)
    wire.take()
    wire.send(b"x" * MAX_LINE, b"y")
    assert wire.take() == b"! a line has at most 500 bytes\n"
    assert wire.reason == "closed"


def test_a_member_that_does_not_listen_is_cut_off(member: testing.Drive) -> None:
    member.block()
    for _ in range(MAX_BEHIND):
        member.push(b"x\n")
    with pytest.raises(NotPushed, match="closed"):
        member.push(b"x\n")
    assert member.reason == "slow_consumer"


@given(lines=st.lists(st.text(max_size=40), max_size=5), cuts=CUTS)
@settings(deadline=None)
def test_no_line_breaks_a_chat(lines: list[str], cuts: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(erlang, "send", lambda to, term: None)
        with testing.drive(ChatProtocol) as wire:
            wire.send(*torn("\n".join(lines).encode("utf-8", "surrogatepass"), cuts))
            assert wire.reason in (None, "closed")
