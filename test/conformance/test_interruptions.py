"""Signals interrupt system calls, and nothing else."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from clients import Serve
from worlds import World

ECHO = """
    def data_received(self, data):
        self.write_buffer += data

    def timeout_expired(self):
        return "close"
    """


@contextmanager
def again_and_again(interrupt: Callable[[], None]) -> Iterator[None]:
    """Interrupts until the block ends, at least once."""
    ended = threading.Event()

    def work() -> None:
        interrupt()
        while not ended.is_set():
            interrupt()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def stop_and_go(world: World) -> None:
    """epoll_wait(2) fails with EINTR when the process goes on after a stop, handlers or not."""
    os.kill(world.pid, signal.SIGSTOP)
    os.kill(world.pid, signal.SIGCONT)


def signal_to_its_thread(world: World, thread: int) -> None:
    world.ask(
        "evaluate",
        f"[signal.pthread_kill({thread}, signal.SIGUSR2) for _ in range(20)] and None",
        None,
    )


@pytest.mark.parametrize("kind", ["stop", "signal"])
def test_signals_interrupt_no_connection(serve: Serve, world: World, kind: str) -> None:
    server = serve(ECHO)
    clients = [server.connect() for _ in range(10)]
    thread = clients[0].events[0].thread

    def interrupt() -> None:
        if kind == "stop":
            stop_and_go(world)
        else:
            signal_to_its_thread(world, thread)

    with again_and_again(interrupt):
        for number in range(8):
            for client in clients:
                client.send(b"%d" % number * 50_000)
            for client in clients:
                assert client.receive(50_000 * len(b"%d" % number)) == b"%d" % number * 50_000
            # And new ones come in, and time passes.
            with server.connect() as passing:
                passing.evaluate("self.set_timeout(0.001)")
                assert passing.rest() == b""
                assert passing.skip_to("connection_lost")["reason"] == "timeout"
    for client in clients:
        client.echoes(b"still here")


@pytest.mark.parametrize("kind", ["stop", "signal"])
def test_signals_do_not_wake_who_has_nothing_to_do_for_good(
    serve: Serve, world: World, kind: str
) -> None:
    server = serve(ECHO)
    client = server.connect()
    thread = client.events[0].thread
    for _ in range(50):
        if kind == "stop":
            stop_and_go(world)
        else:
            signal_to_its_thread(world, thread)
    client.nothing()
    client.echoes(b"awake")


def test_a_stop_goes_on_under_signals(serve: Serve, world: World) -> None:
    server = serve(ECHO)
    clients = [server.connect() for _ in range(10)]
    for client in clients:
        client.echoes(b"hello")
    with again_and_again(lambda: stop_and_go(world)):
        server.stop(60_000)
    for client in clients:
        assert client.rest() == b""
        assert client.skip_to("connection_lost")["reason"] == "drained"
