"""HTTP/1.1 with connections that stay open, and a farewell that loses no request.

When its listener is drained, a connection is not closed at once, as its next request may be on the
way already: that one is answered with `Connection: close`. Who asks nothing for a second goes.
"""

from __future__ import annotations

import erlang.reactor as reactor

MAX_HEAD = 8192
"""Bytes of a request up to its empty line."""

FAREWELL_SECONDS = 1.0

answered = 0
"""Requests that were answered in this interpreter."""


class KeepAliveHTTP(reactor.Protocol):
    """Answers GET and HEAD with the path that was asked for; knows no bodies of requests."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.leaving = False

    def data_received(self, data: bytes) -> reactor.Action:
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            request = self.received[:end].decode("latin-1")
            del self.received[: end + 4]
            if not self.answer(request):
                return "close"
        if len(self.received) > MAX_HEAD:
            self.respond("431 Request Header Fields Too Large", "too long", keep=False)
            return "close"
        # A head that is not complete yet does not end the time for the handshake.
        return "write_pending" if self.write_buffer else "continue"

    def draining(self) -> reactor.Action:
        self.leaving = True
        self.set_timeout(FAREWELL_SECONDS)
        return "continue"

    def answer(self, request: str) -> bool:
        """Answers one request; says whether there may be another one."""
        global answered
        answered += 1
        line, *fields = request.split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)
        }
        try:
            method, path, version = line.split(" ")
        except ValueError:
            return self.respond("400 Bad Request", "bad request", keep=False)
        if method not in ("GET", "HEAD") or headers.keys() & {
            "content-length",
            "transfer-encoding",
        }:
            return self.respond("501 Not Implemented", "GET and HEAD only", keep=False)
        # The last one that is here already is the last one that we answer.
        leaving = self.leaving and b"\r\n\r\n" not in self.received
        asked = "close" not in headers.get("connection", "").lower()
        keep = asked and version == "HTTP/1.1" and not leaving
        return self.respond("200 OK", f"Hello! You requested {path}", keep, method == "HEAD")

    def respond(self, status: str, text: str, keep: bool, head_only: bool = False) -> bool:
        body = text.encode("latin-1")
        self.write_buffer += (
            f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
            f"Connection: {'keep-alive' if keep else 'close'}\r\n\r\n"
        ).encode("latin-1")
        if not head_only:
            self.write_buffer += body
        return keep
