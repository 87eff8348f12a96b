"""The worlds that the rules hold in, as the suite sees them: processes that serve protocols.

A world is told what to do, and tells what its protocols are told, over a Unix socket of its own;
what clients see goes through other sockets. So nothing that is looked at has come through the
reactor.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

__all__ = ["PATIENCE_S", "Event", "Failure", "Journal", "World", "wait_until"]

HERE = Path(__file__).parent
PATIENCE_S = 20.0
"""How long a fact is waited for: what is not there by then never comes."""
STOP_S = 20.0


def wait_until(what: str, ask: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
    """Waits for a fact; returns what `ask` says when that is true."""
    deadline = time.monotonic() + seconds
    while not (found := ask()):
        if time.monotonic() > deadline:
            raise AssertionError(f"never: {what}")
        time.sleep(0.005)
    return found


class Failure(Exception):
    """A request failed in the world."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.text = text


class Event:
    """Something that happened to a protocol."""

    __slots__ = ("more", "of", "thread", "what")

    def __init__(self, message: dict[str, Any]) -> None:
        self.what: str = message["what"]
        self.of: int | None = message["of"]
        self.thread: int = message["thread"]
        self.more: dict[str, Any] = message["more"]

    def __repr__(self) -> str:
        return f"<{self.of}: {self.what} {self.more}>"

    def __getitem__(self, name: str) -> Any:
        return self.more[name]


class Journal:
    """What a world tells, in the order in which it happened."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ended = False
        self._answers: dict[int, dict[str, Any]] = {}
        self.events: list[Event] = []

    def read(self, lines: Any) -> None:
        """Takes note until the world ends."""
        for line in lines:
            message = json.loads(line)
            with self._changed:
                if "answer" in message:
                    self._answers[message["answer"]] = message
                else:
                    self.events.append(Event(message))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait(self, what: str, found: Callable[[], Any]) -> Any:
        """Waits until what `found` says is not None; returns that."""

        deadline = time.monotonic() + PATIENCE_S
        with self._changed:
            while (value := found()) is None:
                if self._ended:
                    raise AssertionError(f"the world has ended without {what}: {self.events[-30:]}")
                if not self._changed.wait(deadline - time.monotonic()):
                    raise AssertionError(f"never: {what}; there was {self.events[-30:]}")
        return value

    def answer(self, number: int) -> Any:
        """Waits for the answer to a request."""
        message = self.wait("an answer", lambda: self._answers.pop(number, None))
        if "error" in message:
            raise Failure(message["error"], message["text"])
        return message["value"]

    def forget(self) -> None:
        with self._changed:
            self.events.clear()


Name = Literal["plain", "beam", "beam-parked"]


class World:
    """A process that serves protocols."""

    def __init__(self, name: Name, folder: Path) -> None:
        self.name = name
        self.journal = Journal()
        self._requests = 0
        self._writing = threading.Lock()
        self._log = folder / "log"
        path = folder / "suite"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            listener.settimeout(PATIENCE_S)
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    _command(name, path), stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=folder
                )
            try:
                self._link, _ = listener.accept()
            except TimeoutError:
                self._process.kill()
                raise AssertionError(f"{name} does not start: {self.said()}") from None
        self._reader = threading.Thread(
            target=self.journal.read, args=(self._link.makefile("rb"),), daemon=True
        )
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, function: str, *arguments: Any) -> Any:
        """What a function says that runs in the world; raises `Failure` if it raises."""
        return self.begin(function, *arguments)()

    def begin(self, function: str, *arguments: Any) -> Callable[[], Any]:
        """Has a function run in the world; what is returned waits for its end."""
        with self._writing:
            self._requests += 1
            number = self._requests
            request = {"id": number, "function": function, "arguments": arguments}
            self._link.sendall(json.dumps(request).encode() + b"\n")
        return lambda: self.journal.answer(number)

    def said(self) -> str:
        """What was logged since the world began."""
        return self._log.read_text(errors="replace")

    def descriptors(self) -> dict[str, str]:
        """What is open in the process, by number."""
        return _each(f"/proc/{self.pid}/fd", os.readlink)

    def threads(self) -> dict[str, str]:
        """The names of the threads, by number. The courier of the BEAM is left out: the library
        makes it for itself when it first needs it."""
        threads = _each(f"/proc/{self.pid}/task", lambda task: Path(task, "comm").read_text())
        return {task: name.strip() for task, name in threads.items() if name != "py courier\n"}

    def cpu_seconds(self) -> float:
        """The time for which all threads have been at work."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> int:
        """Ends the world in good order, by force when it does not go; returns its status."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            return self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            self._link.close()


def _command(name: Name, path: Path) -> list[str]:
    match name:
        case "beam":
            return ["escript", str(HERE / "node.escript"), str(path), "20"]
        case "beam-parked":
            return ["escript", str(HERE / "node.escript"), str(path), "0"]
        case "plain":
            return [sys.executable, "-W", "error", str(HERE / "inside" / "plain.py"), str(path)]


def _each(folder: str, ask: Callable[[str], str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in os.listdir(folder):
        try:
            found[entry] = ask(os.path.join(folder, entry))
        except (FileNotFoundError, ProcessLookupError):
            continue  # It has ended since.
    return found
