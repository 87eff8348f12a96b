"""What a supervisor and a worker say to each other: JSON, a line each, over a pair of sockets.

A worker gets the settings first, then ``{"stop": seconds}`` and ``{"stats": true}``. It says first
``{"listening": true}`` or ``{"failed": text, "status": number}``, and ``{"stats": counters}`` when
it is asked; with each of them, when they have changed, ``files``.

Whoever finds the other end closed knows that the other process has ended.
"""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from typing import Any

_MAX_LINE_BYTES = 1 << 20
"""A worker with ten thousand modules has less to say."""


class Lines:
    """Takes apart what comes in pieces."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that are complete now.

        :raises ValueError: that is no message.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            raise ValueError("a line without an end")
        messages = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("a message is an object")
        return messages


def send(to: socket.socket, message: dict[str, Any]) -> None:
    """Send a message; if the other process has ended, that is found out elsewhere."""
    with suppress(OSError):
        to.sendall(json.dumps(message).encode() + b"\n")
