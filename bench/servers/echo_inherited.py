"""Echo with the inherited, native write_ready."""

from __future__ import annotations

import erlang.reactor as reactor

__all__ = ["Echo"]


class Echo(reactor.Protocol):
    """Sends back what arrives."""

    def data_received(self, data: bytes) -> reactor.Action:
        self.write_buffer.extend(data)
        return "write_pending"
