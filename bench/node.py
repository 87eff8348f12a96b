"""A node that does what it is told, and the clients of the load program beside it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from peers import ROOT, TMP, binary

__all__ = ["Client", "Node", "wait_until"]

ANSWER_SECONDS = 60.0
STOP_SECONDS = 30.0
SETTLE_SECONDS = 20.0
_TICKS = os.sysconf("SC_CLK_TCK")


def wait_until(ask: Callable[[], bool], seconds: float = SETTLE_SECONDS) -> bool:
    """Waits for a fact; False if it has not come true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not ask():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class Node:
    """servers/node.escript. What the node logs goes to a file in TMP."""

    port: int

    __slots__ = ("_log", "_process", "port")

    def __init__(self, name: str, settings: str = "#{}") -> None:
        """Starts a node, and py_reactor with `settings`, an Erlang map."""
        self._log = TMP / f"{name}.log"
        self.port = 0
        with self._log.open("wb") as stderr:
            self._process = subprocess.Popen(
                ["escript", str(ROOT / "bench" / "servers" / "node.escript")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=TMP,
                text=True,
            )
        try:
            self.ask(f"proof_node:start({settings})")
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, expression: str) -> Any:
        """The value of an Erlang expression; raises RuntimeError when it has none."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(" ".join(expression.split()) + ".\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._dead() from None
        for line in self._process.stdout:
            if line.startswith("= "):
                return json.loads(line[2:])
            if line.startswith("! "):
                raise RuntimeError(f"{expression}: {line[2:].strip()}")
        raise self._dead()

    def python(self, expression: str) -> Any:
        """The value of a Python expression on the node, in the module proof_protocols."""
        code = f"eval({expression!r}, vars(__import__('proof_protocols')))"
        tag, value = self.ask(f"py:eval({json.dumps(code)})")
        if tag != "ok":
            raise RuntimeError(f"{expression}: {value}")
        return value

    def listen(self, protocol: str, options: str = "#{}") -> None:
        """Opens the listener `proof`, whose port becomes `port`."""
        self.port = self.ask(f"proof_node:listen('{protocol}', {options})")

    def info(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("py_reactor:listener_info(proof)")
        return found

    def counts(self) -> dict[str, int]:
        """Descriptors, ports, processes, threads and protocol objects."""
        found: dict[str, int] = self.ask("proof_node:counts()")
        return found

    def left_over(self, before: dict[str, int]) -> dict[str, int]:
        """What there is more of than before, once it has had time to go."""
        left: dict[str, int] = {}

        def nothing() -> bool:
            nonlocal left
            now = self.counts()
            left = {what: now[what] - before[what] for what in now if now[what] > before[what]}
            return not left

        wait_until(nothing)
        return left

    def logged(self) -> list[tuple[int, str, str]]:
        """Milliseconds, level and text of what was logged since the last time."""
        return [(line[0], line[1], line[2]) for line in self.ask("proof_node:logged()")]

    def resident_bytes(self) -> int:
        lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss:"))

    def cpu_seconds(self) -> float:
        """CPU time of all threads, those that have ended among them."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def core_share(self, seconds: float) -> float:
        """How much of a core the node uses in the next seconds."""
        before = self.cpu_seconds()
        time.sleep(seconds)
        return (self.cpu_seconds() - before) / seconds

    def stop(self) -> int:
        """Ends the node in good order, by force when it does not go; returns its status."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _dead(self) -> RuntimeError:
        status = self._process.wait(STOP_SECONDS)
        last_words = self._log.read_text(errors="replace")[-2000:].strip()
        return RuntimeError(f"the node has ended with status {status}: {last_words}")

    def __enter__(self) -> Node:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        status = self.stop()
        if status != 0 and kind is None:
            raise RuntimeError(f"the node has ended with status {status}, see {self._log.name}")


class Listening(Protocol):
    """What clients can talk to: a node, or another server."""

    @property
    def port(self) -> int: ...


class Client:
    """One run of the load client, beside others."""

    __slots__ = ("_process",)

    def __init__(self, server: Listening, *options: object) -> None:
        command = [binary("load"), "--address", f"127.0.0.1:{server.port}", "--json"]
        self._process = subprocess.Popen(
            [*command, *map(str, options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def running(self) -> bool:
        return self._process.poll() is None

    def result(self) -> dict[str, Any]:
        """Tells it to end, if it waits for that, and returns what it found."""
        out, said = self._process.communicate()
        if self._process.returncode != 0:
            raise RuntimeError(said.strip() or f"the client ended with {self._process.returncode}")
        found: dict[str, Any] = json.loads(out)
        return found

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.running():
            self._process.kill()
        self._process.communicate()
