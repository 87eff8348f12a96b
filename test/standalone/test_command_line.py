"""``python -m erlang.reactor``: one process."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from erlang.reactor.server import Server
from programs import PATIENCE_S, SERVE, Client, Program, ask, outlasts_a_shortage

COMMAND = ("-m", "erlang.reactor")


def start(programs: list[Program], folder: Path, *arguments: str, **options: Any) -> Program:
    if not {"--unix", "--port"} & set(arguments):
        arguments = (*arguments, "--port", "0")
    started = Program(*SERVE, *arguments, cwd=folder, **options)
    programs.append(started)
    return started


def run(folder: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *COMMAND, *arguments]
    options = {"capture_output": True, **options}
    return subprocess.run(
        command, cwd=folder, text=True, timeout=PATIENCE_S, check=False, **options
    )


def test_it_serves_until_it_is_told_to_end(programs: list[Program], folder: Path) -> None:
    started = start(programs, folder, "protocols:Echo")
    address = started.address()
    with Client(address) as client:
        assert client.asks(b"hello") == b"hello"
        started.interrupt_group()
        assert client.hears() == b""
    assert started.ends() == 0
    assert "SIGINT: no more connections" in started.text()
    assert "Traceback" not in started.text()


def test_ctrl_c_twice(programs: list[Program], folder: Path) -> None:
    started = start(programs, folder, "protocols:Stubborn")
    with Client(started.address()) as client:
        assert client.asks(b"hello") == b"hello"
        started.interrupt_group()
        started.says("asked to end")
        started.insist(signal.SIGINT)
        assert client.hears() == b""
    assert started.ends() == 0


@pytest.mark.parametrize("name", ["socket", "@py_reactor-{}"])
def test_unix_sockets(programs: list[Program], folder: Path, name: str) -> None:
    name = name.format(os.getpid())
    started = start(programs, folder, "protocols:Echo", "--unix", name)
    assert started.says(r"on (\S+), process")[1] == name
    where = "\0" + name[1:] if name.startswith("@") else str(folder / name)
    assert ask(where, b"hello") == b"hello"
    again = run(folder, *SERVE[2:], "protocols:Echo", "--unix", name)
    assert (again.returncode, again.stderr) == (1, f"error: {name}: Address already in use\n")
    started.signal(signal.SIGTERM)
    assert started.ends() == 0
    assert not (folder / name).exists()


def test_a_file_that_is_no_socket_is_left_alone(folder: Path) -> None:
    (folder / "file").write_text("precious")
    result = run(folder, "serve", "protocols:Echo", "--unix", "file")
    assert (result.returncode, result.stderr) == (1, "error: file: Address already in use\n")
    assert (folder / "file").read_text() == "precious"


def test_ipv6(programs: list[Program], folder: Path) -> None:
    started = start(programs, folder, "protocols:Echo", "--host", "::1")
    assert ask(started.address(), b"hello") == b"hello"


def test_a_port_in_use(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        for more in ((), ("--workers", "2"), ("--reload",)):
            result = run(folder, "serve", "protocols:Echo", "--port", port, *more)
            sentence = f"error: 127.0.0.1:{port}: Address already in use\n"
            assert (result.returncode, result.stderr) == (1, sentence)


def test_a_class_that_cannot_be_made_is_logged(programs: list[Program], folder: Path) -> None:
    started = start(programs, folder, "protocols:Unmakable")
    address = started.address()
    assert ask(address, b"hello") == b""
    started.says("ERROR protocols.Unmakable.factory of 127.0.0.1:[0-9]+: RuntimeError: no, thanks")
    started.says("Traceback")


BROKEN = {
    "syntax.py": "x = (",
    "raises.py": "raise ValueError('in\\nthe module')",
    "imports.py": "import no_such_module",
    "leaves.py": "import sys; sys.exit('no')",
    "deep.py": "def f():\n    return 1 / 0\nf()",
    "plain.py": "import protocols\nx = 3\nclass A(protocols.Echo): ...\nclass B: ...",
}


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        ("protocols", "name the protocol as MODULE:CLASS, not 'protocols'"),
        ("protocols:", "name the protocol as MODULE:CLASS, not 'protocols:'"),
        (":Echo", "name the protocol as MODULE:CLASS, not ':Echo'"),
        (".protocols:Echo", "name the protocol as MODULE:CLASS, not '.protocols:Echo'"),
        ("no_such:Echo", "there is no module 'no_such'"),
        ("no.such:Echo", "there is no module 'no'"),
        ("plain.such:Echo", "there is no module 'plain.such'"),
        ("plain:C", "plain has no 'C'; it has A"),
        ("plain:A.b", "plain has no 'A.b'; it has A"),
        (
            "plain:x",
            "plain:x is no protocol: a protocol factory must be callable, not int",
        ),
        ("plain:B", "plain:B is no protocol: B is no subclass of Protocol"),
        (
            "syntax:A",
            "syntax cannot be imported: SyntaxError: '(' was never closed "
            "(FOLDER/syntax.py, line 1)",
        ),
        (
            "raises:A",
            "raises cannot be imported: ValueError: in the module (FOLDER/raises.py, line 1)",
        ),
        (
            "imports:A",
            "imports cannot be imported: ModuleNotFoundError: No module named 'no_such_module' "
            "(FOLDER/imports.py, line 1)",
        ),
        ("leaves:A", "leaves cannot be imported: SystemExit: no (FOLDER/leaves.py, line 1)"),
        (
            "deep:A",
            "deep cannot be imported: ZeroDivisionError: division by zero (FOLDER/deep.py, line 2)",
        ),
    ],
)
@pytest.mark.parametrize("more", [(), ("--workers", "2", "--port", "0")])
def test_what_cannot_be_imported(
    folder: Path, named: str, sentence: str, more: tuple[str, ...]
) -> None:
    for name, text in BROKEN.items():
        (folder / name).write_text(text)
    result = run(folder, "serve", named, *more)
    wanted = "error: " + sentence.replace("FOLDER", str(folder)) + "\n"
    assert (result.stderr, result.returncode, result.stdout) == (wanted, 2, "")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("dance",),
        ("serve",),
        ("serve", "protocols:Echo", "--port", "65536"),
        ("serve", "protocols:Echo", "--port", "http"),
        ("serve", "protocols:Echo", "--workers", "0"),
        ("serve", "protocols:Echo", "--idle-timeout", "1h"),
        ("serve", "protocols:Echo", "--idle-timeout", "0"),
        ("serve", "protocols:Echo", "--max-connections", "-1"),
        ("serve", "protocols:Echo", "--colour", "blue"),
        ("bench",),
        ("bench", "localhost"),
        ("bench", "localhost", "0"),
        ("bench", "localhost", "80", "--unix", "socket"),
        ("bench", "localhost", "80", "--connections", "0"),
    ],
)
def test_mistakes_cost_one_line(folder: Path, arguments: tuple[str, ...]) -> None:
    result = run(folder, *arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert re.fullmatch(r".*error: .+ \(see --help\)\n", result.stderr)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--help",), "serve a protocol class"),
        (("serve", "--help"), "--max-connections"),
        (("bench", "--help"), "--connections"),
        (("--version",), "py_reactor "),
    ],
)
def test_help(folder: Path, arguments: tuple[str, ...], text: str) -> None:
    result = run(folder, *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert text in result.stdout
    assert "worker " not in result.stdout


def test_limits_reach_the_server(programs: list[Program], folder: Path) -> None:
    started = start(
        programs, folder, "protocols:Echo", "--idle-timeout", "10ms", "--max-connections", "1"
    )
    address = started.address()
    with Client(address) as first, Client(address) as second:
        second.says(b"hello")
        assert first.hears() == b""
        started.says("lost: idle_timeout")
        assert second.hears() == b"hello"


@pytest.mark.parametrize("closed", [(1,), (0, 1), (0, 1, 2)])
def test_closed_standard_streams_do_no_harm(
    programs: list[Program], folder: Path, closed: tuple[int, ...]
) -> None:
    """Neither a socket nor an epoll may get their numbers: somebody prints there."""
    (folder / "prints.py").write_text(
        "import os, sys\n"
        "import protocols\n"
        "class Prints(protocols.Echo):\n"
        "    def data_received(self, data):\n"
        "        print('to nobody')\n"
        "        for number in (1, 2):\n"
        "            os.write(number, b'to nobody')\n"
        "        return super().data_received(data)\n"
    )
    command = " ".join(f"{number}>&-" for number in closed)
    name = f"\0py_reactor-{os.getpid()}-{len(closed)}"
    shell = f'exec "$@" {command}'
    arguments = [sys.executable, *SERVE, "prints:Prints", "--unix", "@" + name[1:]]
    with subprocess.Popen(
        ["sh", "-c", shell, "sh", *arguments], cwd=folder, stderr=subprocess.DEVNULL
    ) as server:
        try:
            with client_when_it_listens(name) as client:
                assert client.asks(b"hello") == b"hello"
                assert client.asks(b"again") == b"again"
            server.terminate()
            assert server.wait(PATIENCE_S) == 0
        finally:
            server.kill()


def client_when_it_listens(name: str) -> Client:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return Client(name)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_reader_that_goes_away_stops_nothing(programs: list[Program], folder: Path) -> None:
    name = f"\0py_reactor-{os.getpid()}-reader"
    near, far = os.pipe()
    arguments = [sys.executable, *SERVE, "protocols:Echo", "--unix", "@" + name[1:]]
    os.close(near)
    with subprocess.Popen(arguments, cwd=folder, stdout=far, stderr=far) as server:
        os.close(far)
        try:
            with client_when_it_listens(name) as client:
                assert client.asks(b"hello") == b"hello"
                assert client.asks(b"raise") == b""
            with client_when_it_listens(name) as client:
                assert client.asks(b"hello") == b"hello"
            server.terminate()
            assert server.wait(PATIENCE_S) == 0
        finally:
            server.kill()


def on_terminal(folder: Path, *arguments: str) -> tuple[subprocess.Popen[bytes], int]:
    near, far = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    command = [sys.executable, *SERVE, *arguments]
    started = subprocess.Popen(
        command, cwd=folder, stdin=far, stdout=far, stderr=far, env=environment
    )
    os.close(far)
    return started, near


def read_until(near: int, pattern: str, seen: str = "") -> str:
    deadline = time.monotonic() + PATIENCE_S
    while not re.search(pattern, seen):
        ready, _, _ = select.select([near], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"no {pattern!r} in {seen!r}"
        seen += os.read(near, 65536).decode()
    return seen


@pytest.mark.parametrize("more", [(), ("--workers", "2")])
def test_a_terminal_has_a_status_line(folder: Path, more: tuple[str, ...]) -> None:
    started, near = on_terminal(folder, "protocols:Echo", "--port", "0", *more)
    try:
        seen = read_until(near, r"serving \S+ on 127.0.0.1:(\d+), process")
        found = re.search(r":(\d+), process", seen)
        assert found is not None
        with Client(("127.0.0.1", int(found[1]))) as client:
            assert client.asks(b"hello") == b"hello"
            read_until(near, r"\x1b\[2K1 open \| [\d,]+ reads/s \| in ")
        started.send_signal(signal.SIGINT)
        read_until(near, "SIGINT: no more connections")
        assert started.wait(PATIENCE_S) == 0
    finally:
        started.kill()
        started.wait()
        os.close(near)


def test_few_descriptors_are_told_and_borne(programs: list[Program], folder: Path) -> None:
    limit = (40, 40)
    started = start(
        programs,
        folder,
        "protocols:Echo",
        "--max-connections",
        "100",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limit),
    )
    started.says("warning: 40 descriptors at most")
    address = started.address()
    outlasts_a_shortage(started, address, 60)


def test_more_descriptors_are_taken_where_there_are(programs: list[Program], folder: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    started = start(
        programs,
        folder,
        "protocols:Echo",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard)),
    )
    started.address()
    limits = Path(f"/proc/{started.popen.pid}/limits").read_text()
    soft = re.search(r"Max open files\s+(\d+)", limits)
    assert soft is not None
    assert int(soft[1]) > 64
    assert "warning" not in started.text()


def test_the_bench_says_how_fast_an_echo_is(folder: Path) -> None:
    from protocols import Echo

    with Server(Echo) as server:
        where = (server.address[0], str(server.address[1]))
        for size in ("64", "100000"):
            arguments = ("--connections", "3", "--size", size, "--duration", "100ms")
            result = run(folder, "bench", *where, *arguments, "--json")
            assert (result.returncode, result.stderr) == (0, "")
            figures = json.loads(result.stdout)
            assert figures["requests"] > 0
            assert figures["latency_us"]["p50"] <= figures["latency_us"]["max"]
            told = run(folder, "bench", *where, *arguments)
            assert re.search(r"requests/s +[\d,]+\nlatency us  p50 ", told.stdout)


def test_the_bench_over_a_unix_socket(folder: Path) -> None:
    from protocols import Echo

    with Server(Echo, unix=folder / "socket"):
        result = run(folder, "bench", "--unix", "socket", "--duration", "50ms")
        assert result.returncode == 0
        assert "socket: 50 connections, 64 bytes" in result.stdout


def test_the_bench_wants_an_echo(folder: Path) -> None:
    from protocols import Reverse, Unmakable

    for factory, sentence in (
        (Reverse, "what came back is not what was sent"),
        (Unmakable, "a connection ended: "),
    ):
        with Server(factory) as server:
            result = run(folder, "bench", server.address[0], str(server.address[1]))
        assert result.returncode == 1
        assert result.stderr.startswith(f"error: {sentence}")
        assert result.stdout == ""


def test_the_bench_wants_a_server(folder: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = str(nobody.getsockname()[1])
        result = run(folder, "bench", "127.0.0.1", port)
    assert (result.returncode, result.stderr) == (
        1,
        f"error: 127.0.0.1:{port}: Connection refused\n",
    )
