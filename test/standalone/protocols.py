"""Protocols for the programs under test. Small words make them do what goes wrong in life."""

from __future__ import annotations

import os
import sys
import time

import erlang.reactor as reactor


def tell(text: str) -> None:
    """In one piece: several processes write there."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class Echo(reactor.Protocol):
    """Sends back what comes, and obeys a few words."""

    def data_received(self, data: bytes) -> reactor.Action:
        answer = self.obey(data)
        self.write_buffer.extend(answer)
        return "write_pending"

    def obey(self, data: bytes) -> bytes:
        match data:
            case b"pid":
                return str(os.getpid()).encode()
            case b"parent":
                return str(os.getppid()).encode()
            case b"spin":
                tell("spinning")
                while True:
                    pass
            case b"sleep":
                tell("sleeping")
                time.sleep(3600)
            case b"raise":
                raise ValueError("as it was told")
            case b"die":
                os.abort()
            case b"leave":
                os._exit(7)
            case b"fork":
                return self.fork()
        return data

    def fork(self) -> bytes:
        child = os.fork()
        if child == 0:
            # It must not go on serving, whatever it says.
            tell("child")
            return b"from the child"
        _, status = os.waitpid(child, 0)
        return b"child ended: %d" % status

    def connection_lost(self) -> None:
        tell(f"lost: {self.close_reason}")


class Stubborn(Echo):
    """Does not end when it is asked to."""

    def draining(self) -> reactor.Action:
        tell("asked to end")
        return "continue"


class Unmakable(reactor.Protocol):
    """Cannot be made."""

    def __init__(self) -> None:
        raise RuntimeError("no, thanks")


class Reverse(reactor.Protocol):
    """No echo."""

    def data_received(self, data: bytes) -> reactor.Action:
        self.write_buffer.extend(data[::-1])
        return "write_pending"


NUMBER = 3
