"""test/chat_members.py PORT [MEMBERS]: a crowd in the rooms of examples/chat.erl.

Everybody must see each line once and in the order in which the others see it, and a member that
never reads may cost only itself. Says `ok: ...` or fails with what it missed.
"""

from __future__ import annotations

import asyncio
import socket
import sys

PATIENCE_SECONDS = 60.0
SPEAKERS = 20
LINES = 10


class Member(asyncio.Protocol):
    """One member; `received` is all that it has been told."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.news = asyncio.Event()
        self.ended = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.news.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = True
        self.news.set()

    def say(self, *lines: str) -> None:
        self.transport.write("".join(f"{line}\n" for line in lines).encode())

    async def hears(self, text: str) -> None:
        """Waits for a piece of text."""
        wanted, looked_at = text.encode(), 0
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.received.find(wanted, looked_at) < 0:
                if self.ended:
                    raise EOFError(f"{text!r} never came, but {bytes(self.received[-500:])!r}")
                looked_at = max(0, len(self.received) - len(wanted))
                self.news.clear()
                await self.news.wait()

    def said_by_members(self) -> list[str]:
        """The lines of members, without those of the room."""
        lines = self.received.decode().splitlines()
        return [line for line in lines if not line.startswith(("* ", "! "))]


async def enter(port: int, nick: str, room: str) -> Member:
    """A new member of a room."""
    loop = asyncio.get_running_loop()
    _, member = await loop.create_connection(Member, "127.0.0.1", port)
    # The lines behind the /join wait until the room has answered.
    member.say(f"/nick {nick}", f"/join {room}")
    await member.hears(f"* you are in {room}\n")
    return member


async def everybody_sees_each_line_once_and_in_order(port: int, number: int) -> None:
    members: list[Member] = []
    for first in range(0, number, 50):
        nicks = [f"member{n}" for n in range(first, min(first + 50, number))]
        members += await asyncio.gather(*(enter(port, nick, "agora") for nick in nicks))
    speakers = members[:SPEAKERS]
    for line in range(LINES):
        for speaker in speakers:
            speaker.say(f"line {line}")
        await asyncio.sleep(0)
    for speaker in speakers:
        speaker.say("the last word")
    for n in range(len(speakers)):
        await asyncio.gather(*(one.hears(f"member{n}: the last word\n") for one in members))
    seen = members[0].said_by_members()
    for n in range(len(speakers)):
        own = [line.partition(": ")[2] for line in seen if line.startswith(f"member{n}: ")]
        assert own == [*(f"line {line}" for line in range(LINES)), "the last word"], own
    for member in members:
        assert member.said_by_members() == seen
    for member in members:
        member.say("/bye")
    await asyncio.gather(*(member.hears("* bye\n") for member in members))
    print(f"ok: {number} members see each of {len(seen)} lines once and in order", flush=True)


async def who_never_reads_costs_only_itself(port: int) -> None:
    mute = socket.socket()
    mute.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    mute.connect(("127.0.0.1", port))
    mute.sendall(b"/nick mute\n/join corner\n")
    members = [await enter(port, f"talker{n}", "corner") for n in range(10)]
    speaker = members[0]
    gone = "* mute is gone: slow_consumer\n"
    said = 0
    async with asyncio.timeout(PATIENCE_SECONDS):
        while gone.encode() not in speaker.received:
            speaker.say(*(f"{said + n} " + "." * 400 for n in range(100)))
            said += 100
            await speaker.hears(f"talker0: {said - 1} ")
    for member in members:
        await member.hears(f"talker0: {said - 1} ")
        await member.hears(gone)
        numbers = [int(line.split()[1]) for line in member.said_by_members()]
        assert numbers == list(range(said)), "a line is missing, or came twice"
        member.transport.close()
    mute.close()
    print(f"ok: {said} lines reach all but the one who does not read, who is sent away", flush=True)


async def mistakes_are_explained(port: int) -> None:
    first = await enter(port, "Ada", "café")
    loop = asyncio.get_running_loop()
    _, second = await loop.create_connection(Member, "127.0.0.1", port)
    second.say("hello?", "/join café", "/dance", "/nick Ada", "/join café", "still nobody")
    for answer in ("nobody hears you", "first say who", "there are /nick", "Ada is taken in café"):
        await second.hears(f"! {answer}")
    second.say("/nick Bob", "/join café", "here I am")
    await first.hears("Bob: here I am\n")
    second.say("." * 1000)
    await second.hears("! a line has at most")
    await first.hears("* Bob is gone: closed\n")
    first.say("/join elsewhere", "/bye")
    await first.hears("* bye\n")
    print("ok: mistakes are explained", flush=True)


async def main(port: int, number: int) -> None:
    await mistakes_are_explained(port)
    await everybody_sees_each_line_once_and_in_order(port, number)
    await who_never_reads_costs_only_itself(port)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1000))
