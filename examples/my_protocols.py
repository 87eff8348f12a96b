"""The protocol that echo.erl and echo.exs serve: every byte comes back."""

import erlang.reactor as reactor


class MyProtocol(reactor.Protocol):
    def data_received(self, data: bytes) -> reactor.Action:
        self.write_buffer.extend(data)
        return "write_pending"
