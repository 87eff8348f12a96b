"""The servers that are compared: how each is started, found ready, and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

__all__ = [
    "LIMIT",
    "PEERS",
    "REACTORS",
    "REFERENCE",
    "ROOT",
    "TMP",
    "Peer",
    "Server",
    "binary",
    "object_bytes",
]

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
    protocols: the last words of the command for each protocol of shapes.py that it serves, which
        may be none.
    needs: a file without which it cannot run; a peer that lacks it is skipped, visibly.
    environment: variables beside those of this process.
    cannot: the parts of shapes.py that it cannot take part in, and why.
    """

    name: str
    title: str
    command: tuple[str, ...]
    protocols: Mapping[str, str]
    needs: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    cannot: Mapping[str, str] = field(default_factory=dict)

    def missing(self) -> str | None:
        """Why this peer cannot run, or None."""
        if self.needs is None or self.needs.exists():
            return None
        return f"not built: {self.needs} is missing"

    def serving(self, protocol: str) -> tuple[str, ...]:
        """The command with which it serves `protocol`."""
        return (*self.command, *self.protocols[protocol].split())


REFERENCE = "uvloop"

_SERVERS = ROOT / "bench" / "servers"
_PY_REACTOR = ROOT / "_build" / "default" / "lib" / "py_reactor" / "ebin" / "py_reactor.app"
_PLAIN = TMP / "plain"
_CONTEXTS = {"echo-2-contexts": "inherited 2", "echo-4-contexts": "inherited 4"}
# The embedded Python is that of the throw-away environment, which has h11.
_BEAM = {"VIRTUAL_ENV": sys.prefix, "PY_REACTOR_PYTHON": sys.executable}
_PYTHON_PATH = os.pathsep.join(str(path) for path in (_PLAIN, ROOT / "examples", _SERVERS))


def _escript(name: str, *words: str) -> tuple[str, ...]:
    return ("escript", str(_SERVERS / f"{name}.escript"), *words)


def _reactor(name: str, title: str, how: str, echo: str, **more: str) -> Peer:
    protocols = {"echo": echo, **more}
    command = _escript("reactor_server", how)
    return Peer(name, f"py_reactor, {title}", command, protocols, _PY_REACTOR, _BEAM)


def _loop(name: str, cannot: Mapping[str, str] | None = None) -> Peer:
    command = (sys.executable, str(_SERVERS / "asyncio_server.py"), name)
    protocols = {protocol: protocol for protocol in ("echo", "flow", "http", "h11")}
    if name == REFERENCE:
        protocols |= dict.fromkeys(_CONTEXTS, "echo")
    return Peer(name, f"{name}, Protocol", command, protocols, cannot=cannot or {})


def object_bytes() -> int:
    """Bytes of the Python object of a connection of ours; raises OSError when nobody knows."""
    program = str(_SERVERS / "object_bytes.py")
    environment = os.environ | {"PYTHONPATH": _PYTHON_PATH}
    done = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, env=environment
    )
    if done.returncode != 0:
        raise OSError(done.stderr.strip())
    return int(done.stdout)


LIMIT = "epoll"
REACTORS = ("listener", "inherited", "letter", "plain")
BOTH = {"echo": "echo", "flow": "flow"}

PEERS = (
    _reactor(
        "listener",
        "listener",
        "listener",
        "inherited",
        **{protocol: protocol for protocol in ("flow", "http", "h11")},
        **_CONTEXTS,
    ),
    _reactor("inherited", "handoff, inherited write_ready", "handoff", "inherited"),
    _reactor("letter", "handoff, letter by letter", "handoff", "letter"),
    Peer(
        "plain",
        "py_reactor, plain CPython",
        (sys.executable, str(_SERVERS / "plain_server.py")),
        {"echo": "inherited", "flow": "flow", "http": "http", "h11": "h11"},
        _PLAIN / "_erlang" / "_native.so",
        {"PYTHONPATH": _PYTHON_PATH},
    ),
    Peer("rust", "reactor::Server, Rust", (binary("examples/echo"),), {"echo": ""}),
    _loop(REFERENCE),
    _loop("asyncio"),
    # Version 0.5 does not end a connection whose client has half-closed it.
    _loop("rloop", cannot={"leak": "leaves connections open that their client half-closed"}),
    Peer("gen_tcp", "gen_tcp, passive", _escript("gen_tcp_server", "passive"), BOTH),
    Peer("gen_tcp_once", "gen_tcp, active once", _escript("gen_tcp_server", "once"), BOTH),
    Peer(LIMIT, "epoll in C (the limit)", (binary("epoll_server"),), BOTH),
)


class Server:
    """A running peer. What it prints beside its first line goes to a log in TMP."""

    __slots__ = ("_log", "_process", "peer", "port")

    def __init__(self, peer: Peer, protocol: str = "echo") -> None:
        """Starts `peer` and waits until it listens; raises RuntimeError when it does not."""
        self.peer = peer
        self._log = TMP / f"{peer.name}.log"
        out = TMP / f"{peer.name}.out"
        with out.open("wb") as stdout, self._log.open("ab") as stderr:
            self._process = subprocess.Popen(
                peer.serving(protocol),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=TMP,
                env=os.environ | peer.environment,
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

    def run_on(self, cores: set[int]) -> None:
        """Lets all threads of the server run on these cores only."""
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            # A thread may end meanwhile.
            with suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), cores)

    def cpu_seconds(self) -> float:
        """CPU time of all living threads."""
        nanos = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with suppress(FileNotFoundError):
                nanos += int((task / "schedstat").read_text().split()[0])
        return nanos / 1e9

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
        # The BEAM and our own answer SIGTERM with an orderly end, the others die of it.
        if status not in (0, -signal.SIGTERM):
            print(f"{self.peer.name} ended with status {status}, see {self._log.name}", flush=True)

    def _wait_until_listening(self, out: Path) -> int:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.alive():
            line = out.read_text()
            if line.startswith("listening ") and line.endswith("\n"):
                return int(line.split()[1].rpartition(":")[2])
            time.sleep(0.001)
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
