"""Echo: every byte comes back."""

from __future__ import annotations

import erlang.reactor as reactor


class EchoProtocol(reactor.Protocol):
    def data_received(self, data: bytes) -> reactor.Action:
        if not data:
            return "close"
        self.write_buffer.extend(data)
        return "write_pending"

    def write_ready(self) -> reactor.Action:
        if not self.write_buffer:
            return "read_pending"
        written = self.write(bytes(self.write_buffer))
        del self.write_buffer[:written]
        return "continue" if self.write_buffer else "read_pending"
