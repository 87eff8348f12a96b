"""The programs in examples/ that need no Erlang."""

from __future__ import annotations

import hashlib
import signal
import socket
import subprocess
import sys
from pathlib import Path

from programs import PATIENCE_S, Client, Program, ask

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_standalone_serves() -> None:
    command = [sys.executable, "standalone.py", "0"]
    with subprocess.Popen(command, cwd=EXAMPLES, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            *_, port = server.stdout.readline().split()
            assert ask(("127.0.0.1", int(port)), b"hello") == b"hello"
            server.send_signal(signal.SIGINT)
            assert server.wait(PATIENCE_S) == 0
        finally:
            server.kill()


def test_in_a_thread_asks_itself() -> None:
    command = [sys.executable, "in_a_thread.py"]
    result = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("hello from port ")
    assert result.stdout.endswith("1 connection\n")
    assert result.stderr == ""


def test_digests_come_from_other_threads(programs: list[Program]) -> None:
    serve = ("-m", "erlang.reactor", "serve", "digests:Digests", "--port", "0")
    started = Program(*serve, cwd=EXAMPLES)
    programs.append(started)
    with Client(started.address()) as client:
        for word in (b"one", b"two"):
            digest = hashlib.scrypt(word, salt=b"salt", n=2**14, r=8, p=1)
            client.says(word)
            assert client.socket.recv(len(digest), socket.MSG_WAITALL) == digest
