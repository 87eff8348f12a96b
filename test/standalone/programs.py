"""Starts programs and waits for what they say on standard error."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from signal import Signals
from typing import Any

from erlang.reactor.server import SAME_SIGNAL_S

PATIENCE_S = 30.0

SERVE = ("-m", "erlang.reactor", "serve")


class Program:
    """A Python program that runs."""

    def __init__(self, *arguments: str, cwd: Path, **options: Any) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=cwd,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONFAULTHANDLER": "1"},
            # A group of its own: a test sends it what Ctrl-C does.
            process_group=0,
            **options,
        )
        self._lines: list[str] = []
        self._read = 0
        self._closed = False
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._listen)
        self._reader.start()

    def _listen(self) -> None:
        assert self.popen.stderr is not None
        with self.popen.stderr as stderr:
            for line in stderr:
                with self._news:
                    self._lines.append(line.decode(errors="replace").rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._closed = True
            self._news.notify_all()

    def says(self, pattern: str) -> re.Match[str]:
        """Wait for the next line, after those that were waited for, with the pattern in it."""
        with self._news:
            while True:
                while self._read < len(self._lines):
                    self._read += 1
                    if found := re.search(pattern, self._lines[self._read - 1]):
                        return found
                if self._closed or not self._news.wait(PATIENCE_S):
                    raise AssertionError(f"no {pattern!r} in {self.text()}")

    def text(self) -> str:
        """All that it has said."""
        return "\n".join(self._lines)

    def address(self) -> tuple[str, int]:
        """Where it serves."""
        found = self.says(r"serving \S+ on \[?([^\]]+?)\]?:(\d+), process (\d+)")
        return found[1], int(found[2])

    def signal(self, number: Signals) -> None:
        self.popen.send_signal(number)

    def insist(self, number: Signals, group: bool = True) -> None:
        """Send a second signal, as a rule to the whole group, to a program that has heard the
        first: one that comes again at once would be taken for the same."""
        time.sleep(2 * SAME_SIGNAL_S)
        if group:
            os.killpg(self.popen.pid, number)
        else:
            self.popen.send_signal(number)

    def interrupt_group(self) -> None:
        """As Ctrl-C on a terminal does."""
        os.killpg(self.popen.pid, signal.SIGINT)

    def ends(self) -> int:
        """Wait for its end; returns its exit status."""
        status = self.popen.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return status

    def kill(self) -> None:
        """End it if it runs, and whoever it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.ends()


class Client:
    """A connection to a server."""

    def __init__(self, address: Any) -> None:
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(PATIENCE_S)
            try:
                self.socket.connect(address)
            except OSError:
                self.socket.close()
                raise
        else:
            self.socket = socket.create_connection(address[:2], PATIENCE_S)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def says(self, data: bytes) -> None:
        self.socket.sendall(data)

    def hears(self) -> bytes:
        """What comes next; nothing at the end of the stream, also of one that is reset."""
        try:
            return self.socket.recv(65536)
        except ConnectionResetError:
            return b""

    def asks(self, data: bytes) -> bytes:
        self.says(data)
        return self.hears()


def ask(address: Any, data: bytes) -> bytes:
    """Ask on a connection of its own."""
    with Client(address) as client:
        return client.asks(data)


def is_gone(pid: int) -> bool:
    """Whether a process has ended; a zombie has."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def outlasts_a_shortage(started: Program, address: Any, count: int) -> None:
    """More clients come than there are descriptors for: that is said, and all are served."""
    clients = [Client(address) for _ in range(count)]
    try:
        for client in clients:
            client.says(b"hello")
        started.says("cannot accept clients: Too many open files")
        for client in clients:
            assert client.hears() == b"hello"
            client.socket.close()
    finally:
        for client in clients:
            client.socket.close()
