"""Protocols for the programs under test. Small words make them do what goes wrong in life."""

from __future__ import annotations

import os
import sys
import time

import erlang.reactor as reactor


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
                print("spinning", file=sys.stderr, flush=True)
                while True:
                    pass
            case b"sleep":
                print("sleeping", file=sys.stderr, flush=True)
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
            print("child", file=sys.stderr, flush=True)
            return b"from the child"
        _, status = os.waitpid(child, 0)
        return b"child ended: %d" % status

    def connection_lost(self) -> None:
        print(f"lost: {self.close_reason}", file=sys.stderr, flush=True)


class Stubborn(Echo):
    """Does not end when it is asked to."""

    def draining(self) -> reactor.Action:
        print("asked to end", file=sys.stderr, flush=True)
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
