"""HTTP/1.1 with the library h11, whoever brings the bytes."""

from __future__ import annotations

import importlib

__all__ = ["Conversation"]

# Not a plain import: this file is type-checked where h11 is not installed.
h11 = importlib.import_module("h11")

TEXT = [("Content-Type", "text/plain")]


class Conversation:
    """One connection's HTTP/1.1: h11 on the server's side."""

    __slots__ = ("_connection", "over")

    def __init__(self) -> None:
        self._connection = h11.Connection(h11.SERVER)
        self.over = False

    def answers(self, data: bytes) -> bytes:
        """What is to be sent in return for these bytes."""
        connection = self._connection
        connection.receive_data(data)
        out = []
        while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.Request):
                body = b"Hello! You requested " + event.target
                headers = [*TEXT, ("Content-Length", str(len(body)))]
                out.append(connection.send(h11.Response(status_code=200, headers=headers)))
                out.append(connection.send(h11.Data(data=body)))
                out.append(connection.send(h11.EndOfMessage()))
            elif isinstance(event, h11.ConnectionClosed):
                self.over = True
                break
            if connection.our_state is h11.MUST_CLOSE:
                self.over = True
                break
            if connection.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
                connection.start_next_cycle()
        return b"".join(out)
