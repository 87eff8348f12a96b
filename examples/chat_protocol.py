"""What a member of a chat room and the server say to each other: lines of UTF-8."""

from __future__ import annotations

import erlang
import erlang.reactor as reactor

MAX_LINE = 500
"""Bytes of one line."""

MAX_BEHIND = 1000
"""Lines that a member may be behind the others before it is disconnected."""


class ChatProtocol(reactor.Protocol):
    def __init__(self) -> None:
        self.received = bytearray()
        self.nick = ""
        self.room: erlang.Pid | None = None
        self.joining = False

    def connection_made(self, fd: int, client_info: dict[str, object]) -> None:
        self.set_slow_consumer("buffer", messages=MAX_BEHIND)
        self.say("* welcome: /nick NAME, then /join ROOM; /bye ends")

    def data_received(self, data: bytes) -> reactor.Action | None:
        self.received += data
        return self.take_lines()

    def take_lines(self) -> reactor.Action | None:
        # What follows a /join waits until the room has answered.
        while not self.joining and (end := self.received.find(b"\n", 0, MAX_LINE + 1)) >= 0:
            line = self.received[:end].decode("utf-8", "replace")
            del self.received[: end + 1]
            if not self.line_received("".join(filter(str.isprintable, line)).strip()):
                return "close"
        if not self.joining and len(self.received) > MAX_LINE:
            self.say(f"! a line has at most {MAX_LINE} bytes")
            return "close"
        return None

    def line_received(self, line: str) -> bool:
        """Does what one line asks for; says whether more of them are welcome."""
        match line.split(maxsplit=1):
            case []:
                pass
            case ["/bye", *_]:
                self.say("* bye")
                return False
            case ["/nick", nick] if self.room is None and len(nick.split()) == 1:
                self.nick = nick
                self.say(f"* you are {nick}")
            case ["/nick", _] if self.room is not None:
                self.say("! too late: they know you already")
            case ["/join", room] if self.nick:
                self.leave()
                self.joining = True
                self.pause_reading()
                erlang.send("chat", ("join", room, self.connection, self.nick))
            case ["/join", _]:
                self.say("! first say who you are: /nick NAME")
            case [word, *_] if word.startswith("/"):
                self.say("! there are /nick NAME, /join ROOM and /bye")
            case _ if self.room is None:
                self.say("! nobody hears you: /join ROOM")
            case _:
                erlang.send(self.room, ("said", self.connection, line))
        return True

    def message_received(self, message: object) -> reactor.Action | None:
        """What the room answers to a /join."""
        match message:
            case ("joined", erlang.Pid() as room, name):
                self.room = room
                self.say(f"* you are in {name}")
            case ("refused", why):
                self.say(f"! {why}")
        self.joining = False
        self.resume_reading()
        return self.take_lines()

    def leave(self) -> None:
        if self.room is not None:
            erlang.send(self.room, ("left", self.connection))
            self.room = None

    def say(self, line: str) -> None:
        self.write_buffer += f"{line}\n".encode()
