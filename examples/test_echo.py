"""How a protocol of one's own is tested: the echo of echo.py, without sockets."""

from __future__ import annotations

from echo import EchoProtocol
from hypothesis import given, settings
from hypothesis import strategies as st

from erlang.reactor import testing
from erlang.reactor.pytest_plugin import StartDrive


def test_every_byte_comes_back(drive: StartDrive) -> None:
    wire = drive(EchoProtocol)
    wire.send(b"hel", b"lo")
    assert wire.received == b"hello"
    wire.half_close()
    assert wire.reason == "eof"


def test_a_slow_peer_gets_every_byte_in_the_end(drive: StartDrive) -> None:
    wire = drive(EchoProtocol)
    wire.accept(3)
    wire.send(b"hello")
    assert wire.received == b"hel"
    assert wire.calls[-1] == ("write_ready", (), "continue")
    wire.unblock()
    assert wire.received == b"hello"


@given(fragments=st.lists(st.binary()), sizes=st.lists(st.integers(1, 100)))
@settings(deadline=None)
def test_it_is_an_echo_on_every_network(fragments: list[bytes], sizes: list[int]) -> None:
    with testing.drive(EchoProtocol) as wire:
        wire.block()
        wire.send(*fragments)
        for size in sizes:
            wire.accept(size)
        wire.unblock()
        assert wire.received == b"".join(fragments)
