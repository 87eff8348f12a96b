"""The protocol that echo.erl and echo.exs serve."""

from __future__ import annotations

from echo import EchoProtocol as MyProtocol

__all__ = ["MyProtocol"]
