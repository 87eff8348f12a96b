"""What every test of the wheel has: no descriptor, thread or child is left behind."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from programs import Program

PATIENCE_S = 30.0


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _children() -> list[str]:
    found: list[str] = []
    for task in Path("/proc/self/task").iterdir():
        # A thread may end meanwhile; its children are then those of another one.
        with suppress(FileNotFoundError, ProcessLookupError):
            found += (task / "children").read_text().split()
    return found


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = _descriptors(), threading.active_count(), _children()
    yield
    deadline = time.monotonic() + PATIENCE_S
    while (now := (_descriptors(), threading.active_count(), _children())) != before:
        # A Server that nobody refers to closes what it has; a thread may be on its last step.
        gc.collect()
        assert time.monotonic() < deadline, f"descriptors, threads, children: {before}, then {now}"
        time.sleep(0.01)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with protocols to serve."""
    (tmp_path / "protocols.py").write_text((Path(__file__).parent / "protocols.py").read_text())
    return tmp_path


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    """Programs that are started with `programs.start` and end with the test."""
    started: list[Program] = []
    yield started
    for program in started:
        program.kill()
