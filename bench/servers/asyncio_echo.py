"""Echo as an asyncio Protocol (not streams). Prints `listening PORT`; under uvloop, see there."""

from __future__ import annotations

import asyncio
from typing import cast

__all__ = ["Echo", "serve"]

BACKLOG = 1024


class Echo(asyncio.Protocol):
    """Sends back what arrives. asyncio sets TCP_NODELAY on every TCP transport itself."""

    __slots__ = ("_transport",)

    _transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods, but not the class.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


async def serve() -> None:
    """Serves until the process is ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, "127.0.0.1", 0, backlog=BACKLOG, reuse_address=True)
    print("listening", server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve())
