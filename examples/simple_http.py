"""Simple HTTP/1.0: answers each request with the path that was asked for, then closes."""

from __future__ import annotations

import erlang.reactor as reactor


class SimpleHTTP(reactor.Protocol):
    def __init__(self) -> None:
        super().__init__()
        self.request_buffer = bytearray()

    def data_received(self, data: bytes) -> reactor.Action:
        self.request_buffer.extend(data)
        if b"\r\n\r\n" not in self.request_buffer:
            return "continue"
        path = self.request_buffer.split(b" ", 2)[1].decode("latin-1")
        body = f"Hello! You requested {path}".encode("latin-1")
        head = f"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n"
        self.write_buffer.extend(head.encode("latin-1") + body)
        return "write_pending"

    def write_ready(self) -> reactor.Action:
        written = self.write(self.write_buffer)
        del self.write_buffer[:written]
        return "continue" if self.write_buffer else "close"
