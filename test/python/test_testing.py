"""Protocols driven without sockets: what a test can do to them, and what it sees."""

from __future__ import annotations

import errno
import gc
import os
import threading
import time
import weakref
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import erlang.reactor as reactor
from erlang.reactor import testing
from erlang.reactor.pytest_plugin import StartDrive
from erlang.reactor.testing import Call, NotPushed, Simulation


class Echo(reactor.Protocol):
    def data_received(self, data: bytes) -> None:
        self.write_buffer += data


class OwnEcho(Echo):
    """Writes by itself."""

    def write_ready(self) -> reactor.Action:
        written = self.write(self.write_buffer)
        del self.write_buffer[:written]
        return "continue" if self.write_buffer else "read_pending"


ECHOES = pytest.mark.parametrize("echo", [Echo, OwnEcho])


@ECHOES
def test_what_is_sent_comes_back(drive: StartDrive, echo: type[Echo]) -> None:
    wire = drive(echo)
    wire.send(b"hel", b"lo")
    assert wire.received == b"hello"
    assert wire.pieces == [b"hel", b"lo"]
    assert not wire.closed
    assert wire.reason is None


def test_a_connection_is_a_tcp_one_with_a_peer(drive: StartDrive) -> None:
    wire = drive(Echo)
    assert wire.protocol.peer == ("192.0.2.1", 50_000)
    info = {"type": "tcp", "addr": "192.0.2.1", "port": 50_000}
    assert wire.protocol.client_info == info
    assert wire.calls == [Call("connection_made", (wire.protocol.fd, info), "read_pending")]
    assert reactor.get_protocol(wire.protocol.fd) is wire.protocol


def test_who_connects_can_be_said(drive: StartDrive) -> None:
    wire = drive(Echo, peer=("2001:db8::1", 80), info={"listener": "web"})
    assert wire.protocol.peer == ("2001:db8::1", 80, 0, 0)
    assert wire.protocol.client_info["listener"] == "web"
    wire = drive(Echo, type="unix")
    assert wire.protocol.client_info == {"type": "unix"}
    assert wire.protocol.peer is None


def test_calls_tell_what_the_engine_got(drive: StartDrive) -> None:
    class Sparing(reactor.Protocol):
        def data_received(self, data: bytes) -> reactor.Action | None:
            self.write_buffer += data
            return None if data == b"a" else "".join(["clo", "se"])  # type: ignore[return-value]

    wire = drive(Sparing)
    wire.send(b"a", b"b")
    assert wire.calls[1:] == [
        Call("data_received", (b"a",), "write_pending"),
        Call("data_received", (b"b",), "close"),
        Call("connection_lost", (), None),
    ]
    assert wire.actions == ["read_pending", "write_pending", "close", None]
    assert wire.received == b"ab"
    assert (wire.closed, wire.reason) == (True, "closed")


@ECHOES
def test_a_write_comes_short(drive: StartDrive, echo: type[Echo]) -> None:
    wire = drive(echo)
    wire.accept(3)
    wire.accept(1)
    wire.send(b"hello")
    assert wire.take() == b"hell"
    wire.accept(1)
    assert wire.take() == b"o"
    wire.send(b"more")
    assert wire.take() == b""
    wire.unblock()
    assert wire.take() == b"more"
    assert wire.received == b"hellomore"


def test_a_blocked_writer_is_called_again_when_there_is_room(drive: StartDrive) -> None:
    wire = drive(OwnEcho)
    wire.block()
    wire.send(b"hello")
    assert wire.calls[-1] == Call("write_ready", (), "continue")
    count = len(wire.calls)
    wire.run()
    assert len(wire.calls) == count
    wire.unblock()
    assert wire.calls[count:] == [Call("write_ready", (), "read_pending")]


def test_a_peer_that_ends_its_stream_is_answered(drive: StartDrive) -> None:
    wire = drive(Echo)
    wire.block()
    wire.send(b"hello")
    wire.half_close()
    with pytest.raises(ValueError, match="after the end"):
        wire.send(b"more")
    assert not wire.closed
    wire.unblock()
    assert wire.received == b"hello"
    assert wire.reason == "eof"


def test_a_reset_ends_what_is_left(drive: StartDrive) -> None:
    class Talkative(Echo):
        def connection_lost(self) -> None:
            with pytest.raises(BrokenPipeError):
                self.write(b"too late")

    wire = drive(Talkative)
    wire.block()
    wire.send(b"hello")
    wire.reset()
    assert wire.reason == "reset"
    assert wire.received == b""
    wire = drive(Echo)
    wire.reset(errno.ETIMEDOUT)
    assert wire.reason == f"failed: ETIMEDOUT: {os.strerror(errno.ETIMEDOUT)}"
    with pytest.raises(ValueError, match="no errno"):
        drive(Echo).reset(-5)


def test_reading_by_hand_finds_nothing(drive: StartDrive) -> None:
    class Impatient(reactor.Protocol):
        def data_received(self, data: bytes) -> None:
            with pytest.raises(BlockingIOError):
                self.read(1)
            self.write_buffer += data

    wire = drive(Impatient)
    wire.send(b"x")
    assert wire.received == b"x"
    wire.reset()
    assert wire.protocol.read(1) == b""


def test_time_moves_when_it_is_moved(drive: StartDrive) -> None:
    class Clockwork(reactor.Protocol):
        def connection_made(self, fd: int, client_info: dict[str, Any]) -> None:
            self.ticks = 0
            self.set_timeout(60)

        def timeout_expired(self) -> reactor.Action:
            self.ticks += 1
            self.set_timeout(60)
            return "continue"

    wire = drive(Clockwork)
    clockwork = wire.protocol
    assert isinstance(clockwork, Clockwork)
    began = time.monotonic()
    wire.advance(59.999)
    assert clockwork.ticks == 0
    wire.advance(0.001)
    assert clockwork.ticks == 1
    wire.advance(24 * 3600)
    assert clockwork.ticks == 24 * 60 + 1
    assert time.monotonic() - began < 3600
    for seconds in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="number of seconds"):
            wire.advance(seconds)


@pytest.mark.parametrize(
    ("limit", "before"),
    [("idle_timeout", b""), ("handshake_timeout", b""), ("write_timeout", b"stuck")],
)
def test_limits_are_those_of_a_listener(drive: StartDrive, limit: str, before: bytes) -> None:
    wire = drive(Echo, **{limit: 1.5})
    wire.block()
    if before:
        wire.send(before)
    wire.advance(1.499)
    assert not wire.closed
    wire.advance(0.001)
    assert wire.reason == limit


def test_a_flooded_protocol_is_not_read(drive: StartDrive) -> None:
    wire = drive(Echo, high_water=10, low_water=5)
    wire.block()
    wire.send(b"123456", b"123456", b"123456")
    assert len(wire.protocol.write_buffer) == 12
    wire.unblock()
    assert wire.received == b"123456" * 3


@pytest.mark.parametrize(
    "options",
    [
        {"idle_timeout": 0},
        {"write_timeout": -1},
        {"high_water": 10, "low_water": 10},
        {"low_water": -1},
        {"slow_consumer": "shrug"},
        {"slow_consumer": ("buffer", 0)},
        {"slow_consumer": ("drop_old", 5)},
        {"type": "pipe"},
        {"peer": ("nowhere", 1)},
    ],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        testing.drive(Echo, **options)


def test_messages_come_as_from_erlang(drive: StartDrive) -> None:
    class Receiver(reactor.Protocol):
        def message_received(self, message: object) -> reactor.Action:
            self.message = message
            return "close"

    wire = drive(Receiver)
    wire.message(("said", [1, b"bytes", "text", None]))
    assert wire.calls[1] == Call(
        "message_received", (("said", [1, b"bytes", "text", None]),), "close"
    )
    with pytest.raises(RuntimeError):
        wire.message("too late")
    with pytest.raises(TypeError):
        drive(Receiver).message(object())


def test_pushed_bytes_go_past_the_protocol(drive: StartDrive) -> None:
    wire = drive(Echo, slow_consumer="drop_new")
    wire.push(b"news")
    assert wire.received == b"news"
    assert len(wire.calls) == 1
    wire.block()
    wire.push(bytes(40_000))
    for data, reason in ((bytes(40_000), "dropped"), (bytes(100_000), "too_large")):
        with pytest.raises(NotPushed, match=reason):
            wire.push(data)
    wire.reset()
    with pytest.raises(NotPushed) as raised:
        wire.push(b"x")
    assert raised.value.reason == "closed"


def test_a_slow_peer_may_be_cut_off(drive: StartDrive) -> None:
    wire = drive(Echo, slow_consumer=("buffer", 2))
    wire.block()
    wire.push(b"x")
    wire.push(b"x")
    with pytest.raises(NotPushed, match="closed"):
        wire.push(b"x")
    assert wire.reason == "slow_consumer"


def test_erlang_may_close_drain_and_stop(drive: StartDrive) -> None:
    wire = drive(Echo)
    wire.block()
    wire.send(b"x")
    wire.close()
    assert not wire.closed
    wire.unblock()
    assert (wire.received, wire.reason) == (b"x", "closed")
    wire.close()

    wire = drive(Echo)
    wire.send(b"x")
    wire.drain()
    assert wire.reason == "drained"
    assert [call.callback for call in wire.calls[-2:]] == ["draining", "connection_lost"]

    wire = drive(Echo)
    wire.block()
    wire.send(b"x")
    wire.stop()
    assert wire.reason == "stopped"


def test_an_action_from_outside_waits_for_a_run(drive: StartDrive) -> None:
    class Pausing(Echo):
        def data_received(self, data: bytes) -> reactor.Action:  # type: ignore[override]
            super().data_received(data)
            return "pause"

    wire = drive(Pausing)
    wire.send(b"one", b"two")
    assert wire.received == b""
    reactor.resume(wire.protocol, "write_pending")
    wire.run()
    assert wire.received == b"one"
    other = threading.Thread(target=reactor.resume, args=(wire.protocol, "close"))
    other.start()
    other.join()
    wire.run()
    assert (wire.received, wire.reason) == (b"onetwo", "closed")


def test_datagrams_keep_their_bounds_and_senders(drive: StartDrive) -> None:
    class Noting(reactor.Protocol):
        def datagram_received(self, data: bytes, addr: reactor.Address | None) -> None:
            assert addr == self.peer
            self.write(data * 2)

    wire = drive(Noting, type="udp")
    wire.send(b"a", b"")
    wire.send(b"b", sender=("198.51.100.7", 7))
    assert wire.pieces == [b"aa", b"", b"bb"]
    assert [call.arguments for call in wire.calls[1:]] == [
        (b"a", ("192.0.2.1", 50_000)),
        (b"", ("192.0.2.1", 50_000)),
        (b"b", ("198.51.100.7", 7)),
    ]
    with pytest.raises(OSError, match=r"[Mm]essage too long"):
        wire.protocol.write(bytes(70_000))


def test_connections_may_share_an_engine(drive: StartDrive) -> None:
    class Relay(reactor.Protocol):
        others: list[Relay]

        def data_received(self, data: bytes) -> reactor.Action:
            for other in self.others:
                other.write_buffer += data
                reactor.resume(other, "write_pending")
            return "continue"

    first = drive(Relay)
    second = first.simulation.connect(peer=("192.0.2.2", 2))
    first.protocol.others = [second.protocol]  # type: ignore[attr-defined]
    first.send(b"hello")
    assert second.received == b"hello"
    assert first.received == b""
    assert first.protocol.fd != second.protocol.fd
    assert [call.callback for call in second.calls] == ["connection_made"]


def test_a_failure_is_told_unless_it_was_expected() -> None:
    class Broken(reactor.Protocol):
        def data_received(self, data: bytes) -> None:
            raise LookupError("oops")

    def leave_it() -> None:
        with testing.drive(Broken) as wire:
            wire.send(b"x")
            assert wire.closed

    with pytest.raises(LookupError, match="oops") as raised:
        leave_it()
    assert raised.traceback[-1].name == "data_received"
    with testing.drive(Broken) as wire:
        wire.send(b"x")
        assert wire.reason == "exception"
    with testing.drive(Broken) as wire:
        wire.send(b"x")
        assert [type(error) for error in wire.errors] == [LookupError]
        assert wire.calls[1] == Call("data_received", (b"x",), None)

    def fail_otherwise() -> None:
        with testing.drive(Broken) as wire:
            wire.send(b"x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_otherwise()


def test_what_is_no_action_is_a_failure() -> None:
    class Wrong(reactor.Protocol):
        def data_received(self, data: bytes) -> reactor.Action:
            return "clse"  # type: ignore[return-value]

    with pytest.raises(TypeError, match="which is no action"), testing.drive(Wrong) as wire:
        wire.send(b"x")


def test_a_protocol_that_cannot_be_made_is_told_at_once() -> None:
    def fail() -> reactor.Protocol:
        raise LookupError("no protocol today")

    with pytest.raises(LookupError, match="today"):
        testing.drive(fail)
    with pytest.raises(TypeError, match="not a Protocol"):
        testing.drive(lambda: object())  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match="must be callable"):
        testing.drive(None)  # type: ignore[arg-type]


def test_a_failing_connection_made_ends_the_connection(drive: StartDrive) -> None:
    class Unborn(reactor.Protocol):
        def connection_made(self, fd: int, client_info: dict[str, Any]) -> None:
            raise LookupError("oops")

    wire = drive(Unborn)
    assert (wire.closed, wire.reason) == (True, "exception")
    assert [call.callback for call in wire.calls] == ["connection_made", "connection_lost"]


def test_a_busy_loop_is_found_out(drive: StartDrive) -> None:
    class Spinning(reactor.Protocol):
        def data_received(self, data: bytes) -> reactor.Action:
            return "write_pending"

        def write_ready(self) -> reactor.Action:
            return "continue"

    wire = drive(Spinning)
    with pytest.raises(RuntimeError, match="busy with nothing"):
        wire.send(b"x")


def test_a_callback_cannot_drive_its_own_simulation(drive: StartDrive) -> None:
    class Meddling(reactor.Protocol):
        wire: testing.Drive

        def data_received(self, data: bytes) -> None:
            self.wire.send(b"more")

    wire = drive(Meddling)
    wire.protocol.wire = wire  # type: ignore[attr-defined]
    wire.send(b"x")
    (error,) = wire.errors
    assert isinstance(error, RuntimeError)
    assert "a callback cannot drive it" in str(error)


def test_a_callback_may_drive_another_simulation(drive: StartDrive) -> None:
    class Outer(reactor.Protocol):
        def data_received(self, data: bytes) -> None:
            with testing.drive(Echo) as inner:
                inner.send(data)
                self.write_buffer += inner.received * 2

    wire = drive(Outer)
    wire.send(b"x")
    assert wire.received == b"xx"


def test_another_thread_cannot_drive_it(drive: StartDrive) -> None:
    wire = drive(Echo)
    failures: list[Exception] = []

    def intrude() -> None:
        try:
            wire.send(b"x")
        except RuntimeError as error:
            failures.append(error)

    thread = threading.Thread(target=intrude)
    thread.start()
    thread.join()
    assert "the thread that began it" in str(failures[0])
    wire.send(b"still fine")
    assert wire.received == b"still fine"


def test_what_was_received_and_called_outlives_the_end() -> None:
    with testing.drive(Echo) as wire:
        wire.send(b"x")
        wire.block()
        wire.send(b"y")
        wire.unblock()
    assert (wire.received, wire.closed, wire.reason) == (b"xy", True, "stopped")
    assert wire.calls[-1].callback == "connection_lost"
    wire.simulation.close()
    with pytest.raises(RuntimeError, match="is over"):
        wire.send(b"x")


def test_a_simulation_that_nobody_ended_ends_with_its_last_reference() -> None:
    lost: list[str | None] = []

    class Noting(reactor.Protocol):
        def connection_lost(self) -> None:
            lost.append(self.close_reason)

    wire = testing.drive(Noting)
    fd, protocol = wire.protocol.fd, weakref.ref(wire.protocol)
    simulation = weakref.ref(wire.simulation)
    del wire
    gc.collect()
    assert simulation() is None
    assert lost == ["stopped"]
    assert reactor.get_protocol(fd) is None
    assert protocol() is None


def test_a_simulation_may_be_forgotten_while_an_exception_is_on_its_way() -> None:
    def forget() -> None:
        wire = testing.drive(Echo)
        wire.send(b"x")
        raise LookupError("this one")

    with pytest.raises(LookupError, match="this one"):
        forget()
    gc.collect()


def test_nothing_is_left_open() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    with testing.drive(Echo):
        pass
    before = descriptors()
    for _ in range(100):
        with testing.drive(Echo) as wire:
            wire.send(b"x")
    assert descriptors() <= before


def test_a_simulation_serves_many_factories_at_once() -> None:
    made = iter([Echo, OwnEcho])
    with Simulation(lambda: next(made)()) as simulation:
        wires = [simulation.connect(), simulation.connect()]
        for wire in wires:
            wire.send(b"x")
        assert [type(wire.protocol) for wire in wires] == [Echo, OwnEcho]
        assert [wire.received for wire in wires] == [b"x", b"x"]


def test_what_is_no_simulation_is_refused() -> None:
    import _erlang

    with pytest.raises(TypeError, match="not a simulation"):
        _erlang.simulation_run(None)  # type: ignore[arg-type]
    with testing.drive(Echo) as wire:
        with pytest.raises(TypeError, match="not a simulation"):
            _erlang.simulation_run(wire.protocol._handle)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="no such connection"):
            _erlang.simulation_half_close(wire.simulation._native, 0)


SCRIPT = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.lists(st.binary(max_size=50), max_size=5)),
        st.tuples(st.just("accept"), st.integers(1, 60)),
        st.tuples(st.sampled_from(["block", "unblock", "run"]), st.none()),
        st.tuples(st.just("advance"), st.floats(0, 30)),
    )
)


def play(echo: type[Echo], script: list[tuple[str, Any]]) -> tuple[bytes, testing.Drive]:
    sent = b""
    with testing.drive(echo, write_timeout=None) as wire:
        for step, argument in script:
            match step:
                case "send":
                    sent += b"".join(argument)
                    wire.send(*argument)
                case "block" | "unblock" | "run":
                    getattr(wire, step)()
                case _:
                    getattr(wire, step)(argument)
        wire.unblock()
        wire.half_close()
        assert wire.reason == "eof"
    return sent, wire


@ECHOES
@given(script=SCRIPT)
@settings(max_examples=300, deadline=None)
def test_an_echo_is_one_whatever_happens(echo: type[Echo], script: list[tuple[str, Any]]) -> None:
    sent, wire = play(echo, script)
    assert wire.received == sent


@given(script=SCRIPT)
@settings(max_examples=100, deadline=None)
def test_the_same_script_is_the_same_story(script: list[tuple[str, Any]]) -> None:
    assert play(OwnEcho, script)[1].calls == play(OwnEcho, script)[1].calls


def test_all_public_names_are_there() -> None:
    assert all(hasattr(testing, name) for name in testing.__all__)
    assert sorted(testing.__all__) == testing.__all__


def test_who_may_not_end_a_simulation_does_not(drive: StartDrive) -> None:
    class Closing(Echo):
        simulation: Simulation

        def data_received(self, data: bytes) -> None:
            with pytest.raises(RuntimeError, match="a callback cannot drive it"):
                self.simulation.close()
            super().data_received(data)

    def close_elsewhere() -> None:
        with pytest.raises(RuntimeError, match="by the thread that began it"):
            simulation.close()
        refused.append(True)

    refused: list[bool] = []
    with Simulation(Closing) as simulation:
        wire = simulation.connect()
        Closing.simulation = simulation
        wire.send(b"x")
        assert (wire.received, wire.closed) == (b"x", False)
        other = threading.Thread(target=close_elsewhere)
        other.start()
        other.join()
        assert refused == [True]
        wire.send(b"y")
        assert (wire.received, wire.closed) == (b"xy", False)
    del Closing.simulation
    assert wire.reason == "stopped"
