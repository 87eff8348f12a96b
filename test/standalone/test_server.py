"""`erlang.reactor.server` in plain CPython."""

from __future__ import annotations

import errno
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import erlang
import erlang.reactor as reactor
from erlang.reactor.server import Reactor, Server
from programs import PATIENCE_S, Client, Program, ask, outlasts_a_shortage
from protocols import Echo, Stubborn, Unmakable


def until(fact: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_it_serves_from_start_to_stop() -> None:
    server = Server(Echo)
    server.start()
    assert ask(server.address, b"hello") == b"hello"
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        ask(server.address, b"hello")


def test_it_starts_again_on_the_same_address() -> None:
    server = Server(Echo)
    address = server.address
    for _ in range(20):
        with server:
            assert server.address == address
            assert ask(address, b"hello") == b"hello"
    assert server.stats()["accepted"] == 20


def test_it_listens_as_soon_as_it_is_made() -> None:
    server = Server(Echo)
    with Client(server.address) as early:
        early.says(b"hello")
        with server:
            assert early.hears() == b"hello"


def test_stop_before_start_closes_the_listening_socket() -> None:
    server = Server(Echo)
    server.stop()
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        ask(server.address, b"hello")
    with server:
        assert ask(server.address, b"hello") == b"hello"


def test_one_that_runs_cannot_be_run() -> None:
    with Server(Echo) as server:
        with pytest.raises(RuntimeError, match="runs already"):
            server.start()
        with pytest.raises(RuntimeError, match="runs already"):
            server.run()
        assert ask(server.address, b"hello") == b"hello"


def test_run_serves_on_a_thread_of_ones_own() -> None:
    server = Server(Echo)
    thread = threading.Thread(target=server.run)
    thread.start()
    assert ask(server.address, b"hello") == b"hello"
    server.stop()
    thread.join(PATIENCE_S)


def test_no_stop_is_lost_between_the_beginning_of_a_run_and_its_first_turn() -> None:
    server = Server(Echo)
    for _ in range(200):
        thread = threading.Thread(target=server.run)
        thread.start()
        until(lambda: server._run is not None and not server._run.ended.is_set())
        server.stop()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("host", "family"),
    [
        ("127.0.0.1", socket.AF_INET),
        # A name that needs no list of hosts: a bare container has none.
        ("127.1", socket.AF_INET),
        ("", socket.AF_INET),
        ("::1", socket.AF_INET6),
    ],
)
def test_hosts(host: str, family: socket.AddressFamily | None) -> None:
    with Server(Echo, host) as server:
        assert len(server.address) == (4 if family is socket.AF_INET6 else len(server.address))
        assert ask(server.address, b"hello") == b"hello"
        with pytest.raises(OSError, match="Address already in use") as caught:
            Server(Echo, host, server.address[1])
        assert caught.value.errno == errno.EADDRINUSE


def test_ports_can_be_shared() -> None:
    with Server(Echo, reuseport=True) as one:
        with Server(Echo, port=one.address[1], reuseport=True) as other:
            assert other.address == one.address
        assert ask(one.address, b"hello") == b"hello"


def test_a_unix_socket_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with Server(Echo, unix=path) as server:
        assert server.address == (str(path),)
        assert ask(str(path), b"hello") == b"hello"
        with pytest.raises(OSError, match="already in use"):
            Server(Echo, unix=path)
        assert ask(str(path), b"hello") == b"hello"
    assert not path.exists()


def test_the_file_of_a_dead_server_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with Server(Echo, unix=path):
        assert ask(path, b"hello") == b"hello"


def test_abstract_names() -> None:
    name = f"\0py_reactor-{os.getpid()}"
    with Server(Echo, unix=name) as server:
        assert server.address == (name,)
        assert "@py_reactor" in repr(server)
        assert ask(name, b"hello") == b"hello"


def test_a_socket_that_listens_can_be_brought_along() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = Server(Echo, sock=listening)
        for _ in range(3):
            with server:
                assert server.address == listening.getsockname()
                assert ask(server.address, b"hello") == b"hello"
        # It is not shut: whoever has it may accept.
        with Client(listening.getsockname()), listening.accept()[0]:
            pass


def test_one_that_does_not_listen_cannot() -> None:
    with socket.socket() as idle, pytest.raises((OSError, RuntimeError), match="does not listen"):
        Server(Echo, sock=idle)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (TypeError, {"factory": int}),
        (TypeError, {"factory": 3}),
        (TypeError, {"factory": None}),
        (TypeError, {"port": "80"}),
        (TypeError, {"port": True}),
        (TypeError, {"host": None}),
        (TypeError, {"host": b"127.0.0.1"}),
        (ValueError, {"port": 65536}),
        (ValueError, {"port": -1}),
        (ValueError, {"host": "a..b"}),
        (OSError, {"host": "no-such-host.invalid"}),
        (OSError, {"host": "203.0.113.1"}),
        (ValueError, {"unix": ""}),
        (OSError, {"unix": "/no/such/folder/socket"}),
        (OSError, {"unix": "/tmp/" + "x" * 200}),
        (ValueError, {"backlog": 0}),
        (ValueError, {"max_connections": -1}),
        (TypeError, {"max_connections": 1.5}),
        (ValueError, {"idle_timeout": 0}),
        (TypeError, {"idle_timeout": "1"}),
        (TypeError, {"idle_timeout": True}),
        (ValueError, {"idle_timeout": float("nan")}),
        (ValueError, {"handshake_timeout": 0}),
        (ValueError, {"write_timeout": 1 << 31}),
        (ValueError, {"write_timeout": float("inf")}),
        (ValueError, {"high_water": 0}),
        (ValueError, {"high_water": 10, "low_water": 10}),
        (ValueError, {"slow_consumer": "wait"}),
        (ValueError, {"slow_consumer": ("buffer", 0)}),
        (TypeError, {"info": {"key": object()}}),
        (ValueError, {"shutdown": -1}),
        (TypeError, {"name": 3}),
    ],
)
def test_mistakes_are_told(kind: type[Exception], arguments: dict[str, Any]) -> None:
    with pytest.raises(kind):
        Server(**{"factory": Echo, **arguments})


@pytest.mark.parametrize("timeout", [-1, math.nan])
def test_no_time_is_less_than_none(timeout: float) -> None:
    with Server(Echo) as server, pytest.raises(ValueError, match="timeout"):
        server.stop(timeout)


def test_a_factory_is_any_callable() -> None:
    made: list[Echo] = []

    def factory() -> Echo:
        made.append(Echo())
        return made[-1]

    with Server(factory) as server:
        assert ask(server.address, b"hello") == b"hello"
    assert [protocol.close_reason for protocol in made] == ["eof"]


def test_servers_have_factories_of_their_own() -> None:
    class Other(reactor.Protocol):
        def connection_made(self, fd: int, client_info: dict[str, Any]) -> reactor.Action:
            self.write_buffer += b"other"
            return "close"

    with Server(Echo) as one, Server(Other) as two:
        assert ask(one.address, b"hello") == b"hello"
        with Client(two.address) as client:
            assert client.hears() == b"other"


def test_what_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with Server(Echo, name="web") as server, Client(server.address) as client:
        assert client.asks(b"raise") == b""
        peer = "{}:{}".format(*client.socket.getsockname())
        until(lambda: caplog.records)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.name == "erlang.reactor"
    assert record.getMessage() == (
        f"protocols.Echo.data_received of {peer}: ValueError: as it was told"
    )
    assert "Traceback" in caplog.text
    assert 'raise ValueError("as it was told")' in caplog.text
    about = ("callback", "protocol", "peer", "listener")
    assert [getattr(record, name) for name in about] == [
        "data_received",
        "protocols.Echo",
        peer,
        "web",
    ]


def test_a_protocol_that_cannot_be_made_costs_its_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Server(Unmakable) as server:
        for _ in range(3):
            assert ask(server.address, b"") == b""
    assert caplog.text.count("RuntimeError: no, thanks") >= 3
    assert server.stats()["exceptions"] == 3


def test_a_logging_handler_that_fails_stops_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)

    def fail(_: object) -> bool:
        raise RuntimeError("cannot log")

    log = logging.getLogger("erlang.reactor")
    log.addFilter(fail)
    try:
        with Server(Echo) as server:
            assert ask(server.address, b"raise") == b""
            assert ask(server.address, b"hello") == b"hello"
    finally:
        log.removeFilter(fail)
    assert [str(each.exc_value) for each in unraisable] == ["cannot log"]


def test_limits_are_those_of_listeners() -> None:
    with Server(Echo, idle_timeout=0.001) as server, Client(server.address) as client:
        assert client.hears() == b""
        until(lambda: server.stats()["closed_by"]["idle_timeout"] == 1)


def test_the_rest_waits_in_the_backlog() -> None:
    with Server(Echo, max_connections=1) as server, Client(server.address) as first:
        assert first.asks(b"hello") == b"hello"
        with Client(server.address) as second:
            second.says(b"me too")
            assert first.asks(b"still here") == b"still here"
            assert server.stats()["accepted"] == 1
            first.socket.close()
            assert second.hears() == b"me too"


def test_info_reaches_the_protocol() -> None:
    class Told(reactor.Protocol):
        def connection_made(self, fd: int, client_info: dict[str, Any]) -> reactor.Action:
            self.write_buffer += repr(client_info["realm"]).encode()
            return "close"

    with Server(Told, info={"realm": ["a", 1]}) as server, Client(server.address) as client:
        assert client.hears() == b"['a', 1]"


def test_a_callback_that_spins_is_interrupted(caplog: pytest.LogCaptureFixture) -> None:
    with Server(Echo) as server, Client(server.address) as client:
        client.says(b"spin")
        until(lambda: server._run is not None and server._run.native.is_busy())
        server.stop(0)
        assert client.hears() == b""
    assert "erlang.Interrupted" in caplog.text


def test_who_does_not_end_is_closed_at_the_deadline() -> None:
    with Server(Stubborn) as server, Client(server.address) as client:
        assert client.asks(b"hello") == b"hello"
        server.stop(0.05)
        assert client.hears() == b""
    assert server.stats()["closed_by"]["stopped"] == 1


def test_who_has_all_the_time_is_waited_for() -> None:
    with Server(Stubborn) as server, Client(server.address) as client:
        assert client.asks(b"hello") == b"hello"
        stopping = threading.Thread(target=server.stop, args=(math.inf,))
        stopping.start()
        assert client.asks(b"more") == b"more"
        client.socket.shutdown(socket.SHUT_WR)
        stopping.join(PATIENCE_S)
        assert not stopping.is_alive()
    assert server.stats()["closed_by"]["eof"] == 1


def test_a_callback_may_stop_the_server() -> None:
    class Last(reactor.Protocol):
        def data_received(self, data: bytes) -> reactor.Action:
            server.stop()
            self.write_buffer += data
            return "write_pending"

    server = Server(Last)
    server.start()
    with Client(server.address) as client:
        assert client.asks(b"enough") == b"enough"
    assert server._run is not None
    assert server._run.ended.wait(PATIENCE_S)


def test_sockets_can_be_handed_over() -> None:
    with Reactor(Echo) as loop:
        ours, theirs = socket.socketpair()
        with ours:
            loop.handoff(theirs, {"greeting": "hello"})
            assert theirs.fileno() == -1
            ours.sendall(b"hello")
            assert ours.recv(100) == b"hello"
        until(lambda: loop.stats()["closed"] == 1)


def test_what_cannot_be_served_is_closed_and_told(tmp_path: Path) -> None:
    with Reactor(Echo) as loop:
        number = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
        with pytest.raises(ValueError, match="regular"):
            loop.handoff(number)
        for bad in (number, -1, 999_999):
            with pytest.raises(OSError, match="Bad file descriptor"):
                loop.handoff(bad)
    ours, theirs = socket.socketpair()
    with ours, pytest.raises(RuntimeError, match="stopped"):
        loop.handoff(theirs)


def test_there_is_no_node() -> None:
    sentence = "there is no Erlang node"
    for call in (
        lambda: erlang.send("nobody", "hello"),
        lambda: erlang.whereis("nobody"),
        lambda: erlang.call("function", 1, timeout=2),
        lambda: erlang.Function("function")(1),
    ):
        with pytest.raises(OSError, match=sentence):
            call()
    assert erlang.Atom("any").name == "any"
    assert not hasattr(erlang, "any_function")


# What belongs to a process: signals, forks, its end.


def program(programs: list[Program], folder: Path, text: str, **options: Any) -> Program:
    before = "import os, signal, socket, sys, threading, time\nimport erlang\n"
    before += "from erlang.reactor.server import Reactor, Server\nfrom protocols import *\n"
    (folder / "main.py").write_text(before + text)
    started = Program("main.py", cwd=folder, **options)
    programs.append(started)
    return started


SAY = "print('port', server.address[1], file=sys.stderr, flush=True)\n"


def port(started: Program) -> tuple[str, int]:
    return "127.0.0.1", int(started.says(r"port (\d+)")[1])


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_lets_connections_end(programs: list[Program], folder: Path, name: str) -> None:
    text = f"server = Server(Echo)\n{SAY}server.run()\nprint('over', file=sys.stderr)\n"
    started = program(programs, folder, text)
    with Client(port(started)) as client:
        assert client.asks(b"hello") == b"hello"
        started.signal(signal.Signals[name])
        assert client.hears() == b""
    started.says("lost: drained")
    started.says("over")
    assert started.ends() == 0


def test_the_second_signal_ends_it_at_once(programs: list[Program], folder: Path) -> None:
    text = f"server = Server(Stubborn, shutdown=None)\n{SAY}server.run()\n"
    started = program(programs, folder, text)
    with Client(port(started)) as client:
        assert client.asks(b"hello") == b"hello"
        started.signal(signal.SIGTERM)
        started.says("asked to end")
        assert client.asks(b"still here") == b"still here"
        started.insist(signal.SIGINT)
        assert client.hears() == b""
    started.says("lost: stopped")
    assert started.ends() == 0


def test_a_signal_that_comes_twice_at_once_is_one(programs: list[Program], folder: Path) -> None:
    text = f"""
server = Server(Stubborn, shutdown=None)
{SAY}
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
def twice():
    until_read()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGTERM])
def until_read():
    while not server.stats()["reads"]:
        time.sleep(0.001)
threading.Thread(target=twice).start()
server.run()
"""
    started = program(programs, folder, text)
    with Client(port(started)) as client:
        assert client.asks(b"hello") == b"hello"
        started.says("asked to end")
        assert client.asks(b"still here") == b"still here"
    assert started.ends() == 0


@pytest.mark.parametrize("word", [b"spin", b"sleep"])
def test_the_second_signal_interrupts_a_callback(
    programs: list[Program], folder: Path, word: bytes
) -> None:
    text = (
        f"import logging\nlogging.basicConfig(level='INFO')\nserver = Server(Echo)\n{SAY}"
        "server.run()\n"
    )
    started = program(programs, folder, text)
    with Client(port(started)) as client:
        assert client.asks(b"hello") == b"hello"
        client.says(word)
        started.says("ing$")
        started.signal(signal.SIGINT)
        started.says("SIGINT: no more connections")
        started.insist(signal.SIGINT)
        started.says("erlang.Interrupted: SIGINT")
        assert client.hears() == b""
    assert started.ends() == 0


def test_a_signal_in_the_middle_of_a_log_line_is_logged_after_it(
    programs: list[Program], folder: Path
) -> None:
    text = f"""
import logging
class OneAtATime(logging.Handler):
    writer = None
    def emit(self, record):
        assert self.writer != threading.get_ident(), "entered twice"
        self.writer = threading.get_ident()
        if record.getMessage() == "half":
            signal.raise_signal(signal.SIGTERM)
            print("a whole line", file=sys.stderr, flush=True)
        else:
            print(record.getMessage(), file=sys.stderr, flush=True)
        self.writer = None
logging.basicConfig(level="INFO", handlers=[OneAtATime()])
class Logs(reactor.Protocol):
    def data_received(self, data):
        logging.info("half")
        return "close"
server = Server(Logs)
{SAY}
server.run()
"""
    started = program(programs, folder, text)
    with Client(port(started)) as client:
        client.says(b"!")
        started.says("a whole line")
        started.says("SIGTERM: no more connections")
        assert client.hears() == b""
    assert started.ends() == 0


def test_handlers_are_put_back_and_others_go_on(programs: list[Program], folder: Path) -> None:
    text = f"""
def mine(number, frame):
    print("mine", number, file=sys.stderr, flush=True)

def fail(number, frame):
    raise LookupError("from a handler")

signal.signal(signal.SIGUSR1, mine)
signal.signal(signal.SIGUSR2, fail)
before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
server = Server(Echo)
{SAY}
try:
    server.run()
except LookupError as error:
    print("raised:", error, file=sys.stderr, flush=True)
assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
assert signal.set_wakeup_fd(-1) == -1
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupt", file=sys.stderr, flush=True)
with server:
    pass
"""
    started = program(programs, folder, text)
    with Client(port(started)) as client:
        assert client.asks(b"hello") == b"hello"
        started.signal(signal.SIGUSR1)
        started.says(f"mine {int(signal.SIGUSR1)}")
        assert client.asks(b"still here") == b"still here"
        started.signal(signal.SIGUSR2)
        assert client.hears() == b""
    started.says("raised: from a handler")
    started.says("interrupt")
    assert started.ends() == 0


def test_a_signal_that_is_ignored_stays_so(programs: list[Program], folder: Path) -> None:
    text = (
        f"signal.signal(signal.SIGINT, signal.SIG_IGN)\nserver = Server(Echo)\n{SAY}server.run()\n"
    )
    started = program(programs, folder, text)
    address = port(started)
    assert ask(address, b"hello") == b"hello"
    started.signal(signal.SIGINT)
    assert ask(address, b"hello") == b"hello"
    started.signal(signal.SIGTERM)
    assert started.ends() == 0


def test_a_forked_child_never_comes_back_into_the_loop(
    programs: list[Program], folder: Path
) -> None:
    text = f"server = Server(Echo)\n{SAY}server.run()\n"
    started = program(programs, folder, text)
    address = port(started)
    with Client(address) as client:
        assert client.asks(b"fork") == b"child ended: 0"
        started.says("child")
        assert client.asks(b"hello") == b"hello"
    assert ask(address, b"hello") == b"hello"
    started.signal(signal.SIGTERM)
    assert started.ends() == 0


def test_a_forked_child_leaves_the_server_alone(programs: list[Program], folder: Path) -> None:
    text = """
server = Server(Echo, unix="socket")
server.start()
child = os.fork()
if child == 0:
    for call in (server.start, server.run, server.stats):
        try:
            call()
        except RuntimeError as error:
            pass
        else:
            os._exit(1)
    server.stop()
    # One of its own is another matter.
    with Server(Echo) as own, socket.create_connection(own.address) as client:
        client.sendall(b"hello")
        if client.recv(9) != b"hello":
            os._exit(2)
    del server
    sys.exit(5)
assert os.waitpid(child, 0)[1] == 5 << 8
with socket.socket(socket.AF_UNIX) as client:
    client.connect("socket")
    client.sendall(b"hello")
    assert client.recv(9) == b"hello"
server.stop()
assert not os.path.exists("socket")
"""
    started = program(programs, folder, text)
    assert started.ends() == 0, started.text()


def test_a_program_that_ends_closes_its_connections(programs: list[Program], folder: Path) -> None:
    text = f"""
server = Server(Echo)
server.start()
{SAY}
while not server.stats()["reads"]:
    time.sleep(0.001)
"""
    started = program(programs, folder, text)
    with Client(port(started)) as client:
        assert client.asks(b"hello") == b"hello"
        assert client.hears() == b""
    # As it has nothing to do it may go on its own accord.
    started.says("lost: (drained|stopped)")
    assert started.ends() == 0


def test_a_program_ends_in_spite_of_a_callback_that_spins(
    programs: list[Program], folder: Path
) -> None:
    text = f"""
server = Server(Echo)
server.start()
{SAY}
while not server._run.native.is_busy():
    pass
"""
    started = program(programs, folder, text)
    with Client(port(started)) as client:
        client.says(b"spin")
        assert client.hears() == b""
    started.says("Interrupted")
    assert started.ends() == 0


def test_without_descriptors_clients_wait(programs: list[Program], folder: Path) -> None:
    text = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
server = Server(Echo)
{SAY}
server.run()
"""
    started = program(programs, folder, text)
    address = port(started)
    outlasts_a_shortage(started, address, 40)
    started.signal(signal.SIGTERM)
    assert started.ends() == 0


def test_a_run_that_cannot_begin_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_descriptor() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    server = Server(Echo)
    with monkeypatch.context() as patch:
        # What the signals need; without a descriptor left it fails like this.
        patch.setattr(socket, "socketpair", no_descriptor)
        with pytest.raises(OSError, match="Too many open files"):
            server.run()
    stopping = threading.Thread(target=server.stop, daemon=True)
    stopping.start()
    stopping.join(PATIENCE_S)
    assert not stopping.is_alive()
    with server:
        assert ask(server.address, b"hello") == b"hello"


def test_a_child_that_a_signal_handler_forks_never_comes_back_into_the_loop(
    programs: list[Program], folder: Path
) -> None:
    text = f"""
def fork(*_):
    if os.fork():
        print("forked", file=sys.stderr, flush=True)

signal.signal(signal.SIGUSR1, fork)
server = Server(Echo)
{SAY}
server.run()
"""
    started = program(programs, folder, text)
    with Client(port(started)) as client:
        assert client.asks(b"hello") == b"hello"
        for _ in range(20):
            started.signal(signal.SIGUSR1)
            started.says("forked")
            assert client.asks(b"hello") == b"hello"
            assert client.asks(b"pid") == str(started.popen.pid).encode()
    started.signal(signal.SIGTERM)
    assert started.ends() == 0


@pytest.mark.parametrize("seconds", [1e9, 1e10, 1e300])
def test_any_number_of_seconds_is_a_time_to_stop(seconds: float) -> None:
    server = Server(Stubborn)
    server.start()
    stopping = threading.Thread(target=server.stop, args=(seconds,))
    with Client(server.address):
        until(lambda: server.stats()["active"])
        stopping.start()
        until(lambda: not is_listening(server))
        assert stopping.is_alive()
    stopping.join(PATIENCE_S)
    assert not stopping.is_alive()
    server.stop()


def is_listening(server: Server) -> bool:
    try:
        socket.create_connection(server.address).close()
    except ConnectionRefusedError:
        return False
    return True


def test_callbacks_take_no_longer_than_the_time_that_goes_by() -> None:
    class Busy(reactor.Protocol):
        made = 0

        def connection_made(self, fd: int, client_info: dict[str, Any]) -> None:
            if Busy.made:
                time.sleep(0.3)
            Busy.made += 1

        @classmethod
        def is_made(cls, number: int) -> bool:
            return cls.made == number

        def data_received(self, data: bytes) -> reactor.Action:
            return "write_pending"

        def write_ready(self) -> reactor.Action:
            # As one does that has more to write than there is room for.
            return "continue" if Busy.made < 3 else "read_pending"

    with Server(Busy) as server, Client(server.address) as busy:
        began = time.monotonic()
        busy.says(b"x")
        for number in (2, 3):
            with Client(server.address):
                until(partial(Busy.is_made, number))
        until(lambda: not server.stats()["busy_ms"])
        elapsed = time.monotonic() - began
        assert server.stats()["callback_us"] / 1e6 <= elapsed
