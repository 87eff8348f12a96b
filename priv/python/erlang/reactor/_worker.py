"""One process of several that serve: it does what its supervisor says, and ends when that ends."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from functools import partial
from typing import Any

from erlang.reactor._control import Lines, send
from erlang.reactor._load import LoadError, files
from erlang.reactor._serve import Settings, reason
from erlang.reactor._terminal import say, start_logging
from erlang.reactor.server import Server

END_S = 5.0
"""So long after its time a worker ends by force, whatever its callbacks do."""

STOP_AGAIN_S = 0.05
"""Between two tries to stop a server that may be about to run."""


def work(control_fd: int) -> int:
    """Serve; returns the exit status.

    :param control_fd: one of a pair of sockets, the other of which the supervisor has.
    """
    control = socket.socket(fileno=control_fd)
    control.set_inheritable(False)
    # Ctrl-C reaches the whole group of processes. The supervisor has heard of it, and decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return _Worker(control).run()


class _Worker:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._lines = Lines()
        self._server: Server | None = None
        self._shutdown_s = 0.0
        self._told: list[str] = []

    def run(self) -> int:
        first = self._receive()
        if not first:
            return 0
        said = first.pop(0)
        listening: int | None = said.pop("listening")
        settings = Settings(**said)
        self._shutdown_s = settings.shutdown
        start_logging(settings.log_level, several=settings.workers > 1)
        threading.Thread(target=self._obey, args=(first,), daemon=True).start()
        try:
            server = settings.server(reuseport=True, listening=listening)
        except LoadError as error:
            self._tell({"failed": str(error), "status": 2}, error.file)
            return 2
        except (OSError, ValueError) as error:
            self._tell({"failed": reason(error), "status": 1})
            return 1
        self._server = server
        self._tell({"listening": True})
        server.run()
        return 0

    def _receive(self) -> list[dict[str, Any]]:
        """Wait for messages; none: the supervisor has ended."""
        while True:
            try:
                data = self._control.recv(65536)
            except ConnectionError:
                return []
            if not data:
                return []
            if messages := self._lines.feed(data):
                return messages

    def _obey(self, messages: list[dict[str, Any]]) -> None:
        """Runs on a thread of its own, as a callback may hold up the other one."""
        while True:
            for message in messages:
                if "stop" in message:
                    self._end(message["stop"])
                elif self._server is not None:
                    self._tell({"stats": self._server.stats()})
            messages = self._receive()
            if not messages:
                self._end(self._shutdown_s)
                return

    def _end(self, within_s: float) -> None:
        if self._server is None:
            os._exit(0)
        forced = threading.Timer(within_s + END_S, _end_by_force)
        forced.daemon = True
        forced.start()
        stop = partial(self._stop, self._server, within_s)
        threading.Thread(target=stop, daemon=True).start()

    def _stop(self, server: Server, within_s: float) -> None:
        while True:
            # What has yet to run is only closed by it, and listens again when it runs.
            server.stop(within_s)
            time.sleep(STOP_AGAIN_S)

    def _tell(self, message: dict[str, Any], *more_files: str | None) -> None:
        present = sorted({*files(), *filter(None, more_files)})
        if present != self._told:
            message["files"] = self._told = present
        send(self._control, message)


def _end_by_force() -> None:
    say(f"worker {os.getpid()} ends by force: a callback does not come back")
    os._exit(1)
