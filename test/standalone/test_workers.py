"""``serve --workers N`` and ``serve --reload``: a supervisor and its workers."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from programs import PATIENCE_S, SERVE, Client, Program, ask, is_gone


def start(programs: list[Program], folder: Path, *arguments: str, **options: Any) -> Program:
    if "--unix" not in arguments:
        arguments = (*arguments, "--port", "0")
    started = Program(*SERVE, "protocols:Echo", *arguments, cwd=folder, **options)
    programs.append(started)
    return started


def until(what: str, fact: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not fact():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.005)


def pids(address: Any, count: int) -> set[int]:
    """The processes of all workers: connections are spread by chance."""
    found: set[int] = set()

    def all_have_answered() -> bool:
        found.add(int(ask(address, b"pid")))
        return len(found) == count

    until(f"{count} workers", all_have_answered)
    return found


@pytest.mark.parametrize("where", [(), ("--unix", "socket"), ("--host", "::1")])
def test_workers_share_an_address(
    programs: list[Program], folder: Path, where: tuple[str, ...]
) -> None:
    started = start(programs, folder, "--workers", "3", *where)
    if "--unix" in where:
        started.says("serving protocols:Echo on socket, process [0-9]+, 3 workers")
        address: Any = str(folder / "socket")
    else:
        address = started.address()
    workers = pids(address, 3)
    assert started.popen.pid not in workers
    assert int(ask(address, b"parent")) == started.popen.pid
    started.signal(signal.SIGTERM)
    assert started.ends() == 0
    until("their end", lambda: all(is_gone(worker) for worker in workers))
    assert not (folder / "socket").exists()


@pytest.mark.parametrize("end", ["kill", "terminate", b"die", b"leave"])
def test_a_worker_that_ends_is_replaced(
    programs: list[Program], folder: Path, end: str | bytes
) -> None:
    started = start(programs, folder, "--workers", "2")
    address = started.address()
    workers = pids(address, 2)
    if isinstance(end, bytes):
        with Client(address) as client:
            dead = int(client.asks(b"pid"))
            client.says(end)
            assert client.hears() == b""
    else:
        dead = min(workers)
        os.kill(dead, signal.SIGKILL if end == "kill" else signal.SIGTERM)
    how = {"kill": "SIGKILL", "terminate": "exit status 0", b"die": "SIGABRT"}
    started.says(f"worker {dead} ended: {how.get(end, 'exit status 7')}; replaced")
    until("another one", lambda: len(pids(address, 2) - workers) == 1)
    assert dead not in pids(address, 2)
    started.signal(signal.SIGTERM)
    assert started.ends() == 0


def test_workers_that_go_on_dying_are_replaced_later_and_later(
    programs: list[Program], folder: Path
) -> None:
    started = start(programs, folder, "--workers", "1", "--reload")
    address = started.address()
    for pause in ("replaced", "another one in 0.25 s", "another one in 0.5 s"):
        until("an answer", lambda: refused_or(lambda: ask(address, b"leave") == b""))
        started.says(f"exit status 7; {pause}")
    until("a worker", lambda: refused_or(lambda: ask(address, b"hello") == b"hello"))


def refused_or(fact: Callable[[], bool]) -> bool:
    try:
        return fact()
    except ConnectionRefusedError:
        return False


@pytest.mark.parametrize("word", [b"hello", b"spin", b"sleep"])
def test_workers_end_with_their_supervisor(
    programs: list[Program], folder: Path, word: bytes
) -> None:
    started = start(programs, folder, "--workers", "2", "--shutdown", "50ms")
    address = started.address()
    workers = pids(address, 2)
    with Client(address) as client:
        client.says(word)
        if word == b"hello":
            assert client.hears() == b"hello"
        else:
            started.says("ing$")
        started.signal(signal.SIGKILL)
        assert client.hears() == b""
    until("their end", lambda: all(is_gone(worker) for worker in workers))


def test_workers_end_with_a_supervisor_that_dies_while_they_start(
    programs: list[Program], folder: Path
) -> None:
    (folder / "slow.py").write_text(
        "import os, time\n"
        # In one piece: both write to the same pipe.
        "os.write(2, b'importing %d\\n' % os.getpid())\n"
        "time.sleep(3600)\n"
    )
    started = Program(*SERVE, "slow:X", "--workers", "2", "--port", "0", cwd=folder)
    programs.append(started)
    workers = [int(started.says(r"importing (\d+)")[1]) for _ in range(2)]
    started.signal(signal.SIGKILL)
    until("their end", lambda: all(is_gone(worker) for worker in workers))


def test_ctrl_c_once_lets_connections_end_and_twice_closes_them(
    programs: list[Program], folder: Path
) -> None:
    (folder / "protocols.py").write_text(
        (folder / "protocols.py").read_text() + "\nEcho = Stubborn\n"
    )
    started = start(programs, folder, "--workers", "2")
    with Client(started.address()) as client:
        assert client.asks(b"hello") == b"hello"
        started.interrupt_group()
        started.says("SIGINT: no more connections")
        started.says("asked to end")
        assert client.asks(b"still here") == b"still here"
        started.insist(signal.SIGINT)
        started.says("SIGINT again")
        assert client.hears() == b""
    assert started.ends() == 0


@pytest.mark.parametrize("word", [b"spin", b"sleep"])
def test_a_worker_that_does_not_end_is_made_to(
    programs: list[Program], folder: Path, word: bytes
) -> None:
    started = start(programs, folder, "--workers", "2")
    with Client(started.address()) as client:
        assert int(client.asks(b"pid"))
        client.says(word)
        started.says("ing$")
        started.signal(signal.SIGTERM)
        started.says("SIGTERM: ")
        started.insist(signal.SIGTERM, group=False)
        assert client.hears() == b""
    assert started.ends() == 0


def test_a_child_of_a_worker_hides_no_death(programs: list[Program], folder: Path) -> None:
    """It has the worker's descriptors, also the one by which the supervisor hears of its end."""
    (folder / "protocols.py").write_text(
        (folder / "protocols.py").read_text()
        + "\nclass Echo(Echo):\n"
        + "    def fork(self):\n"
        + "        if os.fork() == 0:\n"
        + "            time.sleep(3600)\n"
        + "        return b'forked'\n"
    )
    started = start(programs, folder, "--workers", "1", "--reload")
    address = started.address()
    first = int(ask(address, b"pid"))
    assert ask(address, b"fork") == b"forked"
    os.kill(first, signal.SIGKILL)
    started.says(f"worker {first} ended: SIGKILL; replaced")


# Reloading.

VERSION = """
from erlang.reactor import Protocol
from helper import number

class Echo(Protocol):
    def data_received(self, data):
        self.write_buffer.extend(b"VERSION %d" % number)
        return "write_pending"

    def draining(self):
        self.write_buffer.extend(b"draining")
        return "write_pending"
"""


def write(folder: Path, version: str, helper: str = "number = 1") -> None:
    (folder / "protocols.py").write_text(VERSION.replace("VERSION", version))
    (folder / "helper.py").write_text(helper)


def reloading(programs: list[Program], folder: Path, *more: str) -> tuple[Program, Any]:
    write(folder, "first")
    started = start(programs, folder, "--reload", *more)
    if "--unix" in more:
        started.says("serving")
        return started, str(folder / "socket")
    return started, started.address()


def serves(address: Any, version: bytes) -> None:
    """The old workers have been told to listen no more, and do so in a moment. Whoever connects to
    one of them in that very moment is reset: the kernel does not hand it on."""

    def answers() -> bool:
        try:
            return ask(address, b"?") == version
        except ConnectionResetError:
            return False

    until("the new version", answers)


@pytest.mark.parametrize("more", [(), ("--unix", "socket"), ("--workers", "2")])
def test_a_change_brings_new_workers_and_lets_the_old_ones_end(
    programs: list[Program], folder: Path, more: tuple[str, ...]
) -> None:
    started, address = reloading(programs, folder, *more)
    with Client(address) as old:
        assert old.asks(b"?") == b"first 1"
        write(folder, "second")
        started.says(r"\.py has changed: reloading")
        started.says(r"^reloaded$")
        assert old.hears() == b"draining"
        # It lives on until the deadline, and is served by what it began with.
        assert old.asks(b"?") == b"first 1"
        serves(address, b"second 1")
        old.socket.close()
    write(folder, "second", "number = 2")
    started.says(r"\.py has changed: reloading")
    started.says(r"^reloaded$")
    serves(address, b"second 2")
    started.signal(signal.SIGTERM)
    assert started.ends() == 0


def test_nobody_is_turned_away_meanwhile(programs: list[Program], folder: Path) -> None:
    started, address = reloading(programs, folder, "--unix", "socket")
    write(folder, "second")
    answers = set()

    def is_new() -> bool:
        answers.add(ask(address, b"?"))
        return b"second 1" in answers

    until("the new version", is_new)
    assert answers <= {b"first 1", b"second 1", b"first 1draining"}
    started.says("^reloaded$")


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ("def f(:\n", r"protocols cannot be imported: SyntaxError: .* \(\S+protocols.py, line 1\)"),
        ("import no_such\n", "protocols cannot be imported: ModuleNotFoundError: "),
        ("Other = 3\n", "protocols has no 'Echo'"),
        ("import os; os.abort()\n", r"worker \d+ ended: SIGABRT"),
    ],
)
def test_what_does_not_import_leaves_the_old_one_serving(
    programs: list[Program], folder: Path, broken: str, sentence: str
) -> None:
    started, address = reloading(programs, folder)
    worker = re.findall(
        r"\d+", Path(f"/proc/{started.popen.pid}/task/{started.popen.pid}/children").read_text()
    )
    (folder / "protocols.py").write_text(broken)
    started.says("not reloaded: " + sentence)
    assert ask(address, b"?") == b"first 1"
    assert not is_gone(int(worker[0]))
    write(folder, "mended")
    started.says("^reloaded$")
    serves(address, b"mended 1")


def test_a_file_that_only_the_broken_version_has_is_watched_too(
    programs: list[Program], folder: Path
) -> None:
    started, address = reloading(programs, folder)
    (folder / "third.py").write_text("def f(:\n")
    (folder / "protocols.py").write_text("import third\n" + VERSION.replace("VERSION", "third"))
    started.says(r"not reloaded: protocols cannot be imported: SyntaxError: .*third.py, line 1")
    (folder / "third.py").write_text("mended = True\n")
    started.says("third.py has changed: reloading")
    started.says("^reloaded$")
    serves(address, b"third 1")


def test_a_file_that_is_imported_later_is_watched_too(
    programs: list[Program], folder: Path
) -> None:
    write(folder, "first")
    (folder / "protocols.py").write_text(
        (folder / "protocols.py").read_text().replace("self.write", "import later; self.write")
    )
    (folder / "later.py").write_text("x = 1\n")
    started = start(programs, folder, "--reload")
    address = started.address()
    assert ask(address, b"?") == b"first 1"
    # The worker says now and then what it is made of.
    (folder / "later.py").write_text("x = 2\n")
    started.says("later.py has changed: reloading")
    started.says("^reloaded$")


@pytest.mark.parametrize("said", [r"b'junk\n'", r"b'[1]\n'", r"b'\xff\n'"])
def test_a_worker_that_says_nonsense_ends_nobody_else(
    programs: list[Program], folder: Path, said: str
) -> None:
    # It closes what is not its own, and the next one to write to the number means another.
    module = folder / "protocols.py"
    text = f"""
def say():
    import os, sys
    number = int(sys.argv[sys.argv.index("--control") + 1])
    os.write(number, {said})
"""
    module.write_text(
        module.read_text() + text + "\nclass Nonsense(Echo):\n"
        "    def data_received(self, data):\n"
        "        if data == b'say':\n            say()\n"
        "        return super().data_received(data)\n"
    )
    started = Program(*SERVE, "protocols:Nonsense", "--workers", "2", "--port", "0", cwd=folder)
    programs.append(started)
    address = started.address()
    workers = pids(address, 2)
    with Client(address) as client:
        mad = int(client.asks(b"pid"))
        client.says(b"say")
        started.says(f"worker {mad} ended")
    assert len(pids(address, 2) & workers) == 1
    started.signal(signal.SIGTERM)
    assert started.ends() == 0


def test_a_worker_ends_that_loses_its_supervisor_before_it_runs(
    programs: list[Program], folder: Path
) -> None:
    text = """
import socket, sys, time
from dataclasses import asdict
from erlang.reactor import _worker
from erlang.reactor.__main__ import _parser
from erlang.reactor._serve import Settings

class Worker(_worker._Worker):
    def _tell(self, message, *files):
        super()._tell(message, *files)
        theirs.close()
        time.sleep(0.5)

chosen = _parser().parse_args(["serve", "protocols:Echo", "--port", "0", "--shutdown", "1s"])
ours, theirs = socket.socketpair()
_worker.send(theirs, {**asdict(Settings.of(chosen)), "listening": None})
print("status", Worker(ours).run(), file=sys.stderr, flush=True)
"""
    (folder / "main.py").write_text(text)
    started = Program("main.py", cwd=folder)
    programs.append(started)
    started.says("status 0")
    assert started.ends() == 0
