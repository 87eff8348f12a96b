"""The programs in examples/ that need no Erlang."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from programs import PATIENCE_S, ask

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
