"""What py_reactor serves in the benchmark beside the protocols of examples/."""

from __future__ import annotations

import erlang.reactor as reactor

__all__ = ["H11", "Flow", "named"]

BLOCK = memoryview(bytes(range(256)) * 1024)


class Flow(reactor.Protocol):
    """Counts what comes, or sends without end."""

    def __init__(self) -> None:
        self.bytes = 0
        self.sent = 0

    def data_received(self, data: bytes) -> reactor.Action:
        if not self.bytes and data[:1] == b"D":
            return "write_pending"
        self.bytes += len(data)
        return "continue"

    def write_ready(self) -> reactor.Action:
        self.sent += self.write(BLOCK[self.sent % len(BLOCK) :])
        return "continue"

    def eof_received(self) -> reactor.Action:
        self.write_buffer += self.bytes.to_bytes(8, "big")
        return "close"


class H11(reactor.Protocol):
    """HTTP/1.1 by the library h11."""

    def __init__(self) -> None:
        from http_answers import Conversation

        self.conversation = Conversation()

    def data_received(self, data: bytes) -> reactor.Action | None:
        self.write_buffer += self.conversation.answers(data)
        return "close" if self.conversation.over else None


def named(name: str) -> type[reactor.Protocol]:
    """The protocol that README.md calls so: `inherited`, `letter`, `flow`, `http`, `h11`."""
    from echo import EchoProtocol
    from my_protocols import MyProtocol
    from simple_http import SimpleHTTP

    return {
        "inherited": MyProtocol,
        "letter": EchoProtocol,
        "flow": Flow,
        "http": SimpleHTTP,
        "h11": H11,
    }[name]
