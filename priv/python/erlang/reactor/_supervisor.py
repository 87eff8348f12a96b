"""Keeps worker processes running that share a port: replaces those that die, and all of them when
the program changes.

The supervisor imports nothing of the user's. Workers that were started together are a generation.
When a file changes a new generation starts beside the present one. When all of it listens the
present one may end; when one of it cannot, the new generation goes and the present one stays.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, replace
from types import FrameType
from typing import Any

import _erlang
from erlang.reactor import Address
from erlang.reactor._control import Lines, send
from erlang.reactor._serve import Settings, announce, reason
from erlang.reactor._terminal import STATUS_EVERY_S, StatusLine, has_status_line, say
from erlang.reactor._watch import WATCH_EVERY_S, Watch
from erlang.reactor._worker import END_S
from erlang.reactor.server import SAME_SIGNAL_S, reserve

BACK_OFF_S = (0.0, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
"""So long after the first, second, ... death in a row a worker is replaced."""

LONG_LIFE_S = 10.0
"""A worker that has lived for so long did not die of what it is."""

AT_ONCE_S = 1.0
"""What a worker has to close everything."""


class Supervisor:
    """Runs workers until a signal says that it is enough."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._shutdown_s = settings.shutdown
        self._processes: list[_Process] = []
        self._last_generation = self._generation = 1
        self._serving = 0
        self._deaths = 0
        self._replace_at: float | None = None
        self._signals: list[str] = []
        self._ending = False
        self._asked_at = 0.0
        self._status = 0
        self._gone: Counter[str] = Counter()
        self._line = StatusLine() if has_status_line() else None
        self._watch = Watch() if settings.reload else None
        self._listening: int | None = None

    def run(self) -> int:
        """Serve; returns the exit status."""
        settings = self._settings
        try:
            held: Any
            if settings.unix is not None:
                # Workers take over the socket, as Unix sockets know no SO_REUSEPORT.
                held = _erlang.Listener(settings.unix, 1024)
                self._listening = held.fileno()
                address: Address = (settings.unix,)
            else:
                held = reserve(settings.host, settings.port)
                address = held.getsockname()
                self._settings = replace(settings, port=address[1])
        except (OSError, ValueError) as error:
            say(f"error: {reason(error)}")
            return 1
        self._address = address
        try:
            return self._supervise()
        except OSError as error:
            say(f"error: {reason(error)}")
            return 1
        finally:
            held.close()

    def _supervise(self) -> int:
        bell, ringer = socket.socketpair()
        with bell, ringer, selectors.DefaultSelector() as self._selector:
            for end in (bell, ringer):
                end.setblocking(False)
            self._selector.register(bell, selectors.EVENT_READ)
            signal.set_wakeup_fd(ringer.fileno(), warn_on_full_buffer=False)
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, self._note_signal)
            # With a handler, whatever it does, the death of a worker rings too.
            signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
            self._replenish()
            try:
                while not (self._ending and not self._processes):
                    self._turn(bell)
            finally:
                # Also after a mistake of ours nobody is left behind.
                for process in self._processes:
                    process.popen.kill()
        if self._line is not None:
            self._line.erase()
        return self._status

    def _note_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(signal.Signals(number).name)

    def _turn(self, bell: socket.socket) -> None:
        for key, _ in self._selector.select(self._until_next()):
            if key.fileobj is bell:
                bell.recv(4096)
            else:
                self._hear(key.data)
        for process in [process for process in self._processes if process.has_ended()]:
            self._bury(process)
        while self._signals:
            self._end(self._signals.pop(0))
        now = time.monotonic()
        for process in self._processes:
            if process.kill_at is not None and process.kill_at <= now:
                say(f"worker {process.popen.pid} does not end: killed")
                process.popen.kill()
                process.kill_at = None
        if self._replace_at is not None and self._replace_at <= now:
            self._replenish()
        self._tick(now)

    def _until_next(self) -> float | None:
        now = time.monotonic()
        moments = [process.kill_at for process in self._processes]
        moments.append(self._replace_at)
        seconds = [moment - now for moment in moments if moment is not None]
        if self._watch is not None:
            seconds.append(WATCH_EVERY_S)
        if self._line is not None:
            seconds.append(STATUS_EVERY_S)
        return max(min(seconds), 0.001) if seconds else None

    # Workers come and go.

    def _replenish(self) -> None:
        """Start the workers that are missing."""
        self._replace_at = None
        if self._ending:
            return
        present = [p for p in self._of(self._generation) if not p.is_stopping]
        try:
            for _ in range(self._settings.workers - len(present)):
                process = _Process(self._generation, self._settings, self._listening)
                self._processes.append(process)
                self._selector.register(process.control, selectors.EVENT_READ, process)
        except OSError as error:
            if self._serving == 0:
                self._give_up(f"no worker can be started: {reason(error)}", 1)
            else:
                self._replace_later(f"no worker can be started: {reason(error)}")

    def _of(self, generation: int) -> list[_Process]:
        return [process for process in self._processes if process.generation == generation]

    def _hear(self, process: _Process) -> None:
        messages = process.receive()
        if messages is None:
            self._selector.unregister(process.control)
            process.is_deaf()
            return
        for message in messages:
            process.files = message.get("files", process.files)
            if "stats" in message:
                process.stats = message["stats"]
                process.was_asked = False
            if "failed" in message:
                process.failed = message["failed"], message["status"]
            if message.get("listening"):
                process.listens = True
                self._look_whether_complete(process.generation)

    def _look_whether_complete(self, generation: int) -> None:
        listening = [process for process in self._of(generation) if process.listens]
        if generation != self._generation or len(listening) < self._settings.workers:
            return
        if generation == self._serving:
            return
        first, self._serving = self._serving == 0, generation
        others = [process for process in self._processes if process.generation != generation]
        self._stop(others, self._shutdown_s)
        if first:
            count = self._settings.workers
            suffix = f", {count} workers" if count > 1 else ", reloading when it changes"
            announce(self._settings, self._address, suffix)
        else:
            say("reloaded")

    def _bury(self, process: _Process) -> None:
        if not process.is_deaf_already:
            # What it said last.
            self._hear(process)
        if not process.is_deaf_already:
            self._selector.unregister(process.control)
        process.control.close()
        self._processes.remove(process)
        if self._watch is not None:
            self._watch.add(process.files)
        self._gone.update(process.lasting_stats())
        if process.is_stopping or self._ending:
            return
        if process.failed is not None:
            text, status = process.failed
        else:
            text, status = f"worker {process.popen.pid} ended: {_how(process.popen.returncode)}", 1
        if self._serving == 0:
            self._give_up(text, status)
        elif process.generation != self._serving:
            self._take_back(text)
        else:
            if time.monotonic() - process.born_at > LONG_LIFE_S:
                self._deaths = 0
            self._replace_later(text)

    def _give_up(self, text: str, status: int) -> None:
        say(f"error: {text}")
        self._status = status
        self._ending = True
        self._stop(self._processes, 0)

    def _take_back(self, text: str) -> None:
        """A new generation does not come up."""
        say(f"not reloaded: {text}")
        self._stop(self._of(self._generation), 0)
        self._generation = self._serving
        self._replenish()

    def _replace_later(self, text: str) -> None:
        delay_s = BACK_OFF_S[min(self._deaths, len(BACK_OFF_S) - 1)]
        self._deaths += 1
        say(f"{text}; another one in {delay_s:g} s" if delay_s else f"{text}; replaced")
        self._replace_at = time.monotonic() + delay_s

    def _reload(self, file: str) -> None:
        say(f"{os.path.relpath(file)} has changed: reloading")
        if self._generation != self._serving:
            self._stop(self._of(self._generation), 0)
        self._last_generation += 1
        self._generation = self._last_generation
        self._deaths = 0
        self._replenish()

    def _end(self, name: str) -> None:
        now = time.monotonic()
        if not self._ending:
            self._ending = True
            self._asked_at = now
            say(f"{name}: no more connections; those that are open may end")
            self._stop(self._processes, self._shutdown_s)
        elif now - self._asked_at >= SAME_SIGNAL_S:
            say(f"{name} again: closing all connections")
            self._stop(self._processes, 0)

    def _stop(self, processes: Iterable[_Process], within_s: float) -> None:
        for process in processes:
            process.stop(within_s)

    def _tick(self, now: float) -> None:
        if self._ending:
            return
        if self._watch is not None:
            files = {file for process in self._processes for file in process.files}
            if changed := self._watch.changed(files, now):
                self._reload(changed)
        if self._line is not None or self._watch is not None:
            for process in self._processes:
                process.ask(now)
        if self._line is not None and self._line.is_due(now):
            stats = Counter(self._gone)
            for process in self._processes:
                stats.update(process.lasting_stats())
                stats["active"] += process.stats.get("active", 0)
            count = sum(process.listens for process in self._processes)
            self._line.draw(stats, f"{count} worker{'s'[: count != 1]}")


class _Process:
    """A worker, seen from here."""

    def __init__(self, generation: int, settings: Settings, listening: int | None) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            inherited = (number,) if listening is None else (number, listening)
            command = [*_this_program(), "worker", settings.protocol, "--control", str(number)]
            # One worker may be debugged; of several, each would take what is for the others.
            stdin = None if settings.workers == 1 else subprocess.DEVNULL
            self.popen = subprocess.Popen(command, pass_fds=inherited, stdin=stdin)
        self.control = ours
        self.generation = generation
        self.born_at = self._asked_at = time.monotonic()
        self.listens = False
        self.was_asked = False
        self.is_stopping = False
        self.is_deaf_already = False
        self.kill_at: float | None = None
        self.failed: tuple[str, int] | None = None
        self.files: list[str] = []
        self.stats: dict[str, Any] = {}
        self._lines = Lines()
        # It fits into the socket's buffer, as does all that is sent later.
        send(ours, {**asdict(settings), "listening": listening})
        ours.setblocking(False)

    def receive(self) -> list[dict[str, Any]] | None:
        """What it says now; None: it will say no more."""
        try:
            data = self.control.recv(65536)
        except BlockingIOError:
            return []
        except ConnectionError:
            return None
        try:
            return self._lines.feed(data) if data else None
        except ValueError:
            # Somebody in there writes to what is not his: no word of it counts any more.
            return None

    def is_deaf(self) -> None:
        """Its end is closed: it is ending, or somebody in there closes what is not his."""
        self.is_deaf_already = True
        if self.kill_at is None:
            self.kill_at = time.monotonic() + END_S

    def has_ended(self) -> bool:
        return self.popen.poll() is not None

    def ask(self, now: float) -> None:
        """Have it tell its counters, now and then."""
        if self.listens and not self.was_asked and now - self._asked_at >= STATUS_EVERY_S:
            self._asked_at = now
            self.was_asked = True
            send(self.control, {"stats": True})

    def stop(self, within_s: float) -> None:
        """Have it end: by itself, else by force."""
        self.is_stopping = True
        send(self.control, {"stop": within_s})
        patience_s = within_s + END_S + AT_ONCE_S if within_s else AT_ONCE_S
        kill_at = time.monotonic() + patience_s
        self.kill_at = kill_at if self.kill_at is None else min(self.kill_at, kill_at)

    def lasting_stats(self) -> dict[str, int]:
        """Its counters that only grow."""
        names = ("accepted", "reads", "bytes_in", "bytes_out", "exceptions")
        return {name: self.stats.get(name, 0) for name in names}


def _this_program() -> list[str]:
    """The same Python with the same options."""
    mine = len(sys.orig_argv) - len(sys.argv) + 1
    options = sys.orig_argv[1:mine]
    if options[-2:] != ["-m", "erlang.reactor"]:
        options = ["-m", "erlang.reactor"]
    return [sys.executable, *options]


def _how(code: int) -> str:
    """How a process ended."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
