"""The servers that are compared: how each is started, found ready, and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

__all__ = ["PEERS", "REACTORS", "REFERENCE", "ROOT", "TMP", "Peer", "Server", "binary"]

ROOT = Path(__file__).resolve().parent.parent
TMP = ROOT / "bench" / "results" / "tmp"

START_SECONDS = 60.0
STOP_SECONDS = 10.0
REST_SECONDS = 2.0
REST_LIMIT_SECONDS = 15.0


def binary(name: str) -> str:
    """The compiled program `name` of this benchmark; CARGO_TARGET_DIR is respected."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return str(target / "release" / name)


@dataclass(frozen=True, slots=True)
class Peer:
    """One server.

    command: what is executed; its process is the measured one.
    needs: a file without which it cannot run; a peer that lacks it is skipped, visibly.
    """

    name: str
    title: str
    command: tuple[str, ...]
    needs: Path | None = None

    def missing(self) -> str | None:
        """Why this peer cannot run, or None."""
        if self.needs is None or self.needs.exists():
            return None
        return f"not built: {self.needs.relative_to(ROOT)} is missing"


_SERVERS = ROOT / "bench" / "servers"
_PY_REACTOR = ROOT / "_build" / "default" / "lib" / "py_reactor" / "ebin" / "py_reactor.app"


def _reactor(protocol: str) -> tuple[str, ...]:
    return ("escript", str(_SERVERS / "reactor_echo.escript"), protocol)


REFERENCE = "uvloop"
REACTORS = ("inherited", "letter")

PEERS = (
    Peer("inherited", "py_reactor, inherited write_ready", _reactor("inherited"), _PY_REACTOR),
    Peer("letter", "py_reactor, letter by letter", _reactor("letter"), _PY_REACTOR),
    Peer(REFERENCE, "uvloop, Protocol", (sys.executable, str(_SERVERS / "uvloop_echo.py"))),
    Peer("asyncio", "asyncio, Protocol", (sys.executable, str(_SERVERS / "asyncio_echo.py"))),
    Peer("gen_tcp", "gen_tcp, passive", ("escript", str(_SERVERS / "gen_tcp_echo.escript"))),
    Peer("epoll", "epoll in Rust (the limit)", (binary("epoll_echo"),)),
)


class Server:
    """A running peer. What it prints beside its first line goes to a log in TMP."""

    __slots__ = ("_log", "_process", "peer", "port")

    def __init__(self, peer: Peer) -> None:
        """Starts `peer` and waits until it listens; raises RuntimeError when it does not."""
        self.peer = peer
        self._log = TMP / f"{peer.name}.log"
        out = TMP / f"{peer.name}.out"
        with out.open("wb") as stdout, self._log.open("ab") as stderr:
            self._process = subprocess.Popen(
                peer.command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=TMP
            )
        try:
            self.port = self._wait_until_listening(out)
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def wait_until_memory_rests(self) -> None:
        """Returns when resident memory has stopped shrinking.

        A BEAM gives back megabytes in the first seconds after its start; in the middle of a
        measurement of memory they would hide what grows meanwhile.
        """
        rollup = Path(f"/proc/{self.pid}/smaps_rollup")
        deadline = time.monotonic() + REST_LIMIT_SECONDS
        least, since = 1 << 62, time.monotonic()
        while (now := time.monotonic()) < deadline and now - since < REST_SECONDS:
            lines = rollup.read_text().splitlines()
            found = next((int(line.split()[1]) for line in lines if line.startswith("Rss:")), least)
            if found < least:
                least, since = found, now
            time.sleep(0.1)

    def stop(self) -> None:
        """Ends the process, by force when it does not go; says so when it ends badly."""
        self._process.terminate()
        try:
            status = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        # The BEAM answers SIGTERM with an orderly end, the others die of it.
        if status not in (0, -signal.SIGTERM):
            print(f"{self.peer.name} ended with status {status}, see {self._log.name}", flush=True)

    def _wait_until_listening(self, out: Path) -> int:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.alive():
            line = out.read_text()
            if line.startswith("listening ") and line.endswith("\n"):
                return int(line.split()[1])
            time.sleep(0.02)
        last_words = self._log.read_text(errors="replace")[-2000:].strip()
        raise RuntimeError(f"{self.peer.name} does not listen: {last_words}")

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
