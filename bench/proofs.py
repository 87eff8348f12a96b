"""What is promised, one program each: a real node with a real listener, and real clients.

A program asks the questions, `Proof` notes the answers. Counts must hold always. Times are judged
in a full run only: a quick one is part of the tests, which may not depend on how busy a machine is.
"""

from __future__ import annotations

import random
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

from node import Client, Node, wait_until
from peers import PEERS, REFERENCE, Peer, Server

__all__ = ["PROGRAMS", "Answer", "Program", "Proof"]

KIB = 1024
MIB = 1024 * KIB

UVLOOP, PLAIN = (next(p for p in PEERS if p.name == name) for name in (REFERENCE, "epoll"))


@dataclass(frozen=True, slots=True)
class Answer:
    """One thing that was measured, its bound, and whether it holds; None: not judged. `timed` says
    that it depends on how busy the machine is."""

    what: str
    measured: str
    bound: str
    holds: bool | None
    timed: bool = False

    def line(self) -> str:
        mark = {True: "ok", False: "not ok", None: "--"}[self.holds]
        return f"{mark}: {self.what}: {self.measured}" + (f" ({self.bound})" if self.bound else "")


@dataclass(slots=True)
class Proof:
    """The answers of one program."""

    name: str
    quick: bool
    answers: list[Answer] = field(default_factory=list)
    where: str = ""

    def contexts(self, *numbers: int) -> Iterator[str]:
        """The settings of nodes with so many contexts, one after the other. With one context its
        worker accepts by itself while clients come, with more of them the acceptors do."""
        for number in numbers:
            self.where = f"contexts {number}: "
            yield f"#{{contexts => {number}}}"
        self.where = ""

    def is_(self, what: str, measured: object, wanted: object) -> None:
        self._answer(what, f"{measured}", f"must be {wanted}", measured == wanted)

    def count(self, what: str, measured: int, most: int) -> None:
        self._answer(what, f"{measured:,}", f"at most {most:,}", measured <= most)

    def at_least(self, what: str, measured: int, least: int) -> None:
        self._answer(what, f"{measured:,}", f"at least {least:,}", measured >= least)

    def nothing_left(self, node: Node, before: dict[str, int]) -> None:
        self.is_("left over on the node", node.left_over(before), {})

    def time(self, what: str, milliseconds: float, most: float) -> None:
        self.full_only(
            what, f"{milliseconds:.1f} ms", f"at most {most:,g} ms", milliseconds <= most
        )

    def full_only(self, what: str, measured: str, bound: str, holds: bool) -> None:
        """A figure that depends on the machine."""
        self._answer(what, measured, bound, None if self.quick else holds, timed=True)

    def note(self, what: str, measured: object) -> None:
        self._answer(what, f"{measured}", "", None)

    def _answer(
        self, what: str, measured: str, bound: str, holds: bool | None, timed: bool = False
    ) -> None:
        answer = Answer(f"{self.name}: {self.where}{what}", measured, bound, holds, timed)
        print(answer.line(), flush=True)
        self.answers.append(answer)


@contextmanager
def proof_node(
    proof: Proof, protocol: str, options: str = "#{}", settings: str = "#{}"
) -> Iterator[tuple[Node, dict[str, int]]]:
    """A node with a listener that has served once, and its counts after that."""
    with Node(proof.name, settings) as node:
        node.listen(protocol, options)
        with Client(node, "--crowd", "--connections", 20) as client:
            client.result()
        wait_until(lambda: node.info()["active"] == 0)
        yield node, settled(node)


def settled(node: Node) -> dict[str, int]:
    """The counts once they stay the same."""
    found = node.counts()
    while (now := node.counts()) != found:
        found = now
        time.sleep(0.05)
    return found


def many(proof: Proof) -> None:
    """10,000 open connections, each of which speaks three times."""
    number = 1000 if proof.quick else 10000
    rounds = ("--rounds", 3, "--connections", number, "--size", 1, "--interval", 0.5, "--window")
    with proof_node(proof, "Echo", "#{max_connections => 12000}") as (node, before):
        with Client(node, *rounds, 100) as client:
            wait_until(lambda: node.info()["active"] == number or not client.running())
            proof.is_("open at once", node.info()["active"], number)
            found = client.result()
        proof.is_("echoes", found["echo_count"], 3 * number)
        proof.time("p99 of an echo, 100 at a time", found["echo_p99_ms"], 50)
        proof.note("longest", f"{found['echo_max_ms']:.1f} ms")
        proof.nothing_left(node, before)

        # That many messages in one instant are a matter of how many the machine can do a second.
        with Client(node, *rounds, number) as client:
            found = client.result()
        proof.is_("echoes, all at once", found["echo_count"], 3 * number)
        proof.note("p99 of an echo, all at once", f"{found['echo_p99_ms']:.1f} ms")
        proof.nothing_left(node, before)
    if not proof.quick:
        with Server(PLAIN) as server, Client(server, *rounds, number) as client:
            proof.note("the same with epoll in Rust", f"{client.result()['echo_p99_ms']:.1f} ms")


def crowd(proof: Proof) -> None:
    """300 clients where there are 100 places."""
    for settings in proof.contexts(1, 2):
        crowd_at(proof, settings)


def crowd_at(proof: Proof, settings: str) -> None:
    with proof_node(proof, "Crowd", "#{max_connections => 100}", settings) as (node, before):
        most = 0
        with Client(node, "--crowd", "--connections", 300, "--hold", 0.2) as client:
            while client.running():
                most = max(most, node.info()["active"])
                time.sleep(0.005)
            found = client.result()
        proof.is_("served in the end", found["served"], 300)
        proof.count("active at once, as the listener tells", most, 100)
        proof.count("protocols at once", node.python("Crowd.most"), 100)
        proof.note("longest wait", f"{found['echo_max_ms']:.0f} ms")

        with Client(node, "--crowd", "--connections", 300, "--hold-all") as client:
            full = wait_until(lambda: node.info()["active"] == 100)
            proof.is_("100 of those who stay are served", full and client.running(), True)
            proof.count(
                "reductions of the acceptor in 1 s, while 200 wait", reductions(node), 20000
            )
            node.ask("py_reactor:set_max_connections(proof, 300)")
            proof.is_("served once the limit is raised", client.result()["served"], 300)
        proof.nothing_left(node, before)


def reductions(node: Node) -> int:
    """What the acceptors do in a second: one that spins does a hundred thousand things and more."""
    ask = "proof_node:reductions(py_reactor_acceptor)"
    before: int = node.ask(ask)
    time.sleep(1.0)
    done: int = node.ask(ask) - before
    return done


def dribble(proof: Proof) -> None:
    """1,000 clients that send a byte now and then and never finish."""
    number, timeout, interval = (100, 0.5, 0.2) if proof.quick else (1000, 5.0, 2.0)
    options = f"#{{handshake_timeout => {round(timeout * 1000)}, max_connections => 2000}}"
    with proof_node(proof, "Whole", options) as (node, before):
        slow = ("--dribble", "--connections", number, "--interval", interval)
        with (
            Client(node, "--probe", "--until-told") as probe,
            Client(node, *slow, "--seconds", timeout + 20) as dribblers,
        ):
            found = dribblers.result()
            beside = probe.result()
        proof.is_("gone", found["gone"], number)
        proof.is_("answered", found["answered"], 0)
        closed = node.info()["closed_by"]["handshake_timeout"]
        proof.is_("closed by handshake_timeout", closed, number)
        longest = 1000 * found["longest_life_s"]
        proof.time("longest life", longest, 1000 * timeout + 5000)
        proof.note("shortest life", f"{1000 * found['shortest_life_s']:.0f} ms")
        proof.is_("failed visits of the probe", beside["failed"], 0)
        proof.time("longest visit of the probe", beside["visit_max_ms"], 1000)
        proof.nothing_left(node, before)


def storm(proof: Proof) -> None:
    """Resets, half-opens and abandoned writes at full speed."""
    seconds = 2.0 if proof.quick else 60.0
    with proof_node(proof, "Echo") as (node, before):
        # What the first seconds leave behind is what the node needs for such clients at all.
        with Client(node, "--storm", "--seconds", seconds / 4) as client:
            client.result()
        wait_until(lambda: node.info()["active"] == 0)
        resident = node.resident_bytes()
        with (
            Client(node, "--probe", "--until-told") as probe,
            Client(node, "--storm", "--seconds", seconds) as client,
        ):
            found = client.result()
            beside = probe.result()
        proof.note("connections", f"{found['opened']:,}, {found['per_second']:,} a second")
        proof.is_("not opened", found["not_opened"], 0)
        proof.is_("failed visits of the probe", beside["failed"], 0)
        proof.time("p99 of a visit of the probe", beside["visit_p99_ms"], 100)
        proof.time("p99 of an echo of the probe", beside["echo_p99_ms"], 100)
        proof.note("longest visit", f"{beside['visit_max_ms']:.1f} ms")
        proof.nothing_left(node, before)
        info = node.info()
        proof.is_("accepted, less closed", info["accepted"] - info["closed"], 0)
        grown = node.resident_bytes() - resident
        each = grown / max(1, found["opened"])
        proof.full_only("memory more a connection", f"{each:.1f} B", "at most 64 B", each <= 64)
        proof.note("callbacks that raised", info["exceptions"])
        proof.note("closed by", {k: n for k, n in sorted(info["closed_by"].items()) if n})


def hoard(proof: Proof) -> None:
    """Five clients that send 24 MB and leave the answer unread."""
    hold, total = (0.5, 24 * MIB) if proof.quick else (10.0, 24 * MIB)
    high, low = 256 * KIB, 64 * KIB
    options = f"#{{high_water => {high}, low_water => {low}}}"
    with proof_node(proof, "Bulk", options) as (node, before):
        regulars = ("--reconnect", "--connections", 50, "--interval", 0.02, "--until-told")
        with Client(node, *regulars) as client:
            time.sleep(hold / 5)
            resident = node.resident_bytes()
            most = 0
            greedy = ("--hoard", "--connections", 5, "--total", total, "--hold", hold)
            with Client(node, *greedy) as hoarders:
                deadline = time.monotonic() + hold
                while time.monotonic() < deadline:
                    most = max(most, node.resident_bytes() - resident)
                    time.sleep(0.05)
                found = hoarders.result()
            beside = client.result()
        proof.is_("hoarders who got all in the end", found["hoarders"], 5)
        proof.note("taken while they did not read", f"{found['bytes_taken_unread'] / MIB:.1f} MiB")
        # What was read in one go comes on top of the mark.
        waiting = node.python("Bulk.most")
        proof.count("bytes in the largest write_buffer", waiting, high + 120 * KIB)
        bound = 5 * (high + 120 * KIB) + 16 * MIB
        proof.full_only(
            "memory more meanwhile",
            f"{most / MIB:.1f} MiB",
            f"at most {bound / MIB:.1f} MiB",
            most <= bound,
        )
        proof.is_("failures of the others", beside["failed"], 0)
        proof.time("p99 of an echo of the others", beside["echo_p99_ms"], 100)
        proof.nothing_left(node, before)


def laggards(proof: Proof) -> None:
    """24 MiB are pushed to each of five subscribers that read nothing, under each policy."""
    pieces, size = 24 * MIB // (4 * KIB), 4 * KIB
    for policy, survive in (
        ("drop_old", True),
        ("drop_new", True),
        ("{buffer, 16}", False),
        ("disconnect", False),
    ):
        with Node(proof.name) as node, ExitStack() as stack:
            node.listen("Subscriber", f"#{{slow_consumer => {policy}}}")
            before = settled(node)
            regulars = ("--reconnect", "--connections", 50, "--interval", 0.02, "--until-told")
            client = stack.enter_context(Client(node, *regulars))
            node.ask("length(proof_node:subscribers(50))")
            sockets = [
                stack.enter_context(socket.create_connection(("127.0.0.1", node.port), 30))
                for _ in range(5)
            ]
            resident = node.resident_bytes()
            pushed = node.ask(f"proof_node:flood(5, {pieces}, {size})")
            grown = node.resident_bytes() - resident
            proof.note(f"{policy}: answers of push", pushed)
            bound = 5 * (64 + 64) * KIB + 16 * MIB
            proof.full_only(
                f"{policy}: memory more",
                f"{grown / MIB:.1f} MiB",
                f"at most {bound / MIB:.1f} MiB",
                grown <= bound,
            )
            got = [taken(one, size, survive) for one in sockets]
            bad, arrived = sum(bad for bad, _ in got), sum(len(numbers) for _, numbers in got)
            proof.is_(f"{policy}: pieces torn, doubled or out of order", bad, 0)
            closed = node.info()["closed_by"]
            if survive:
                missing = 5 * pieces - arrived - node.info()["drops"]
                proof.is_(f"{policy}: pieces, less arrived and dropped", missing, 0)
            if policy == "drop_old":
                newest = [numbers[-1] for _, numbers in got]
                proof.is_(f"{policy}: the newest piece has arrived", newest, [pieces] * 5)
            proof.note(f"{policy}: pieces arrived", f"{arrived:,} of {5 * pieces:,}")
            ended = {why: closed[why] for why in ("eof", "slow_consumer")}
            proof.is_(
                f"{policy}: how they ended",
                ended,
                {"eof": 5 * survive, "slow_consumer": 5 * (not survive)},
            )
            for one in sockets:
                one.close()
            beside = client.result()
            proof.is_(f"{policy}: failures of the others", beside["failed"], 0)
            proof.time(f"{policy}: p99 of an echo of the others", beside["echo_p99_ms"], 100)
            proof.nothing_left(node, before)


def taken(one: socket.socket, size: int, survive: bool) -> tuple[int, list[int]]:
    """Reads what was pushed: how many pieces are wrong, and the numbers of all whole ones. One
    that survives says that it has finished, and gets all that waits for it; the stream of another
    ends, maybe within a piece."""
    data = bytearray()
    if survive:
        one.shutdown(socket.SHUT_WR)
    with suppress(ConnectionResetError):
        while more := one.recv(MIB):
            data += more
    places = range(0, len(data) - size + 1, size)
    numbers = [int.from_bytes(data[place : place + 8], "big") for place in places]
    torn = survive and len(data) % size > 0
    wrong = [
        place
        for place, number in zip(places, numbers, strict=True)
        if data[place + 8 : place + size] != bytes([number % 256]) * (size - 8)
    ]
    disorder = [pair for pair in pairwise(numbers) if pair[0] >= pair[1]]
    return torn + len(wrong) + len(disorder), numbers


def kills(proof: Proof) -> None:
    """A random process of the listener or context is killed every 100 ms, under 500 clients."""
    for settings in proof.contexts(1, 4):
        kills_at(proof, settings)


def kills_at(proof: Proof, settings: str) -> None:
    number, deaths = (50, 20) if proof.quick else (500, 300)
    with proof_node(proof, "Echo", "#{num_acceptors => 4}", settings) as (node, before):
        victims = dict.fromkeys(
            ("py_reactor_context", "py_reactor_acceptor", "py_reactor_listener"), 0
        )
        first = {pid: stats["closed"] for pid, stats in node.ask("proof_node:contexts()")}
        lost = strangers = 0
        regulars = ("--reconnect", "--connections", number, "--interval", 0.05)
        with Client(node, *regulars, "--until-told") as client:
            wait_until(lambda: node.info()["active"] == number)
            begin = time.monotonic()
            for death in range(deaths):
                kind = random.choice(list(victims))
                counted = node.ask(f"proof_node:kill({kind})")
                if counted != "none":
                    victims[kind] += 1
                if kind == "py_reactor_context" and counted != "none":
                    # Clients never close by themselves: whatever a context has closed before its
                    # own death fell with another one.
                    lost += sum(stats["active"] for died, _, stats in counted if died)
                    strangers += sum(
                        stats["closed"] - first.get(pid, 0) for _, pid, stats in counted
                    )
                time.sleep(max(0.0, begin + 0.1 * (death + 1) - time.monotonic()))
            proof.note("killed", victims)
            found = client.result()
        proof.is_("the node is alive", node.alive(), True)
        proof.is_("closed by contexts that lived", strangers, 0)
        proof.note("connections of those killed, just before", lost)
        # One may be on its way from the acceptor when something dies.
        proof.count("failures that the clients saw", found["failed"], lost + deaths)
        proof.is_("refused", found["refused"], 0)
        proof.is_("clients without an echo at the end", found["without_echo_at_the_end"], 0)
        if found["reconnect_count"]:
            proof.time("longest way back to an echo", found["reconnect_max_ms"], 1000)
            proof.note(
                "p50 and p99 of it",
                f"{found['reconnect_p50_ms']:.1f}, {found['reconnect_p99_ms']:.1f} ms",
            )
        back = "[length(proof_node:running(Kind)) || Kind <- [{}]]".format(", ".join(victims))
        wanted = [len(first), 4, 1]
        wait_until(lambda: node.ask(back) == wanted)
        proof.is_("processes of each kind", node.ask(back), wanted)
        proof.nothing_left(node, before)


def descriptors(proof: Proof) -> None:
    """No descriptor is left, under load; then there are some again."""
    for settings in proof.contexts(1, 2):
        descriptors_at(proof, settings)


def descriptors_at(proof: Proof, settings: str) -> None:
    old, new, free = (20, 100, 40) if proof.quick else (100, 500, 200)
    seconds = 2.0 if proof.quick else 10.0
    with proof_node(proof, "Echo", settings=settings) as (node, before):
        limit_to(node, before["descriptors"] + old + free)
        regulars = ("--reconnect", "--connections", old, "--interval", 0.02, "--until-told")
        with Client(node, *regulars) as client:
            wait_until(lambda: node.info()["active"] == old)
            node.logged()
            visitors = ("--crowd", "--connections", new, "--hold-all", "--patience", 60)
            with Client(node, *visitors) as waiting:
                reached = wait_until(lambda: any("file" in line[2] for line in node.logged()))
                proof.is_("the limit is reached and logged", reached, True)
                node.logged()
                begin = time.monotonic()
                busy = node.core_share(seconds)
                lines = node.logged()
                passed = time.monotonic() - begin
                proof.count(f"log lines in {passed:.1f} s", len(lines), int(passed) + 1)
                proof.at_least("connections of the listener meanwhile", node.info()["active"], old)
                beside = client.result()
                proof.is_("failures of the old ones", beside["failed"], 0)
                proof.time("p99 of an echo of the old ones", beside["echo_p99_ms"], 100)
                proof.note("CPU under load", f"{100 * busy:.0f} % of a core")
                # The old ones are gone, and their places taken: still some wait, and nobody speaks.
                time.sleep(1.0)
                idle = node.core_share(seconds / 2)
                proof.is_("some still wait", waiting.running(), True)
                proof.count("reductions of the acceptor in 1 s", reductions(node), 20000)
                proof.full_only(
                    "CPU when nobody speaks",
                    f"{100 * idle:.1f} % of a core",
                    "at most 10 %",
                    idle <= 0.1,
                )
                node.python("__import__('resource').setrlimit(7, limits)")
                proof.is_("served once there are some again", waiting.result()["served"], new)
        proof.nothing_left(node, before)


def limit_to(node: Node, number: int) -> None:
    """Lowers the limit of descriptors; `limits` on the node are those from before."""
    node.python("globals().update(limits=__import__('resource').getrlimit(7))")
    node.python(f"__import__('resource').setrlimit(7, ({number}, limits[1]))")


def churn(proof: Proof) -> None:
    """Connections opened, one echo, closed: how many a second, beside uvloop."""
    rounds, seconds = (1, 0.5) if proof.quick else (5, 2.5)
    others: list[Peer] = [] if proof.quick else [UVLOOP, PLAIN]
    options = ("--churn", "--connections", 20, "--size", 64, "--seconds", seconds, "--warmup", 0.5)
    runs: dict[str, list[dict[str, float]]] = {}
    for number in range(rounds):
        with ExitStack() as stack:
            node, before = stack.enter_context(proof_node(proof, "Echo"))
            turns: list[tuple[str, Node | Server]] = [("listener", node)]
            turns += [(peer.name, stack.enter_context(Server(peer))) for peer in others]
            first = number % len(turns)
            for name, server in turns[first:] + turns[:first]:
                with Client(server, *options, "--pid", server.pid) as client:
                    runs.setdefault(name, []).append(client.result())
            if number == 0:
                proof.at_least("connections, each with its echo", node.info()["accepted"], 1)
                proof.nothing_left(node, before)
    for name, found in runs.items():
        proof.note(f"a second, {name}", spread([run["per_second"] for run in found], ",.0f"))
        proof.note(f"CPU us each, {name}", spread([run["cpu_us"] for run in found], ".1f"))
    for peer in others:
        pairs = list(zip(runs["listener"], runs[peer.name], strict=True))
        ratios = [ours["per_second"] / theirs["per_second"] for ours, theirs in pairs]
        if peer is UVLOOP:
            holds = round(median(ratios), 2) >= 1.0
            proof.full_only("ratio to uvloop", spread(ratios, ".2f"), "at least 1.00", holds)
        else:
            proof.note(f"ratio to {peer.title}", spread(ratios, ".2f"))
        cpu = [ours["cpu_us"] / theirs["cpu_us"] for ours, theirs in pairs]
        proof.note(f"CPU, ratio to {peer.name}", spread(cpu, ".2f"))


def spread(values: list[float], form: str) -> str:
    return f"{median(values):{form}} ({min(values):{form}}..{max(values):{form}})"


def drain(proof: Proof) -> None:
    """A listener is drained while wrk asks over connections that it keeps."""
    connections, times = (20, 2) if proof.quick else (100, 10)
    still_open, requests, answers = 0, 0, 0
    failed = dict.fromkeys(("read", "timeout", "status"), 0)
    ends: dict[str, int] = {}
    for _ in range(times):
        with Node(proof.name) as node:
            node.listen("unused", HTTP)
            before = settled(node)
            with wrk(node, connections) as asked:
                wait_until(lambda: node.info()["active"] >= connections)
                time.sleep(0.5 + random.random())
                still_open += node.ask("py_reactor:drain_listener(proof, 5000)")[1]
                got = asked()
            requests += got["requests"]
            answers += node.python("__import__('keep_alive_http').answered")
            # Write errors are those of clients who came when nobody listened any more.
            failed = {what: count + got[what] for what, count in failed.items()}
            for why, count in node.info()["closed_by"].items():
                ends[why] = ends.get(why, 0) + count
            proof.nothing_left(node, before)
    proof.note("drains", times)
    proof.is_("still open at the deadline", still_open, 0)
    proof.is_("answers sent, less those that wrk got", answers - requests, 0)
    proof.note("answers", f"{answers:,}")
    proof.is_("errors", failed, dict.fromkeys(failed, 0))
    # wrk opens one connection only to see whether it can: that one ends by itself.
    others = {why: count for why, count in ends.items() if count and why not in ("closed", "eof")}
    proof.is_("connections that ended without a farewell", others, {})


def handover(proof: Proof) -> None:
    """Under wrk, one listener after the other is drained, and the next takes its place."""
    connections, times = (20, 2) if proof.quick else (100, 8)
    with Node(proof.name) as node:
        node.listen("unused", HTTP)
        with wrk(node, connections, times + 2) as asked:
            wait_until(lambda: node.info()["active"] >= connections)
            still_open = hand_over(node, HTTP, times)
            got = asked()
        failed = {what: got[what] for what in (*WRK_ERRORS, "status")}
        proof.note("handovers, requests", f"{times}, {got['requests']:,}")
        proof.is_("still open at the deadline", still_open, 0)
        proof.is_("errors", failed, dict.fromkeys(failed, 0))
        # Those under way when wrk ended were answered for nobody.
        under_way = node.python("__import__('keep_alive_http').answered") - got["requests"]
        proof.count("answers sent, less those that wrk got", under_way, connections)
    with Node(proof.name) as node:
        # Who comes while a socket is closed may be reset by the kernel, which tells nobody before.
        node.listen("Patient", "#{reuseport => true}")
        visits = ("--probe", "--visits-only", "--interval", 0.0005, "--until-told")
        with Client(node, *visits) as client:
            hand_over(node, "#{reuseport => true, protocol => {proof_protocols, 'Patient'}}", times)
            found = client.result()
        proof.note("visits meanwhile, reset", f"{found['visit_count']:,}, {found['failed']}")


def hand_over(node: Node, options: str, times: int) -> int:
    """Puts a listener in the place of `proof`, and another in its place, and so on; returns how
    many connections were still open at the deadlines."""
    still_open = 0
    names = ["proof", *(f"proof{number}" for number in range(times))]
    options = options.replace("#{", f"#{{ip => {{127, 0, 0, 1}}, port => {node.port}, ")
    for old, new in pairwise(names):
        node.ask(f"{{ok, _}} = py_reactor:start_listener({new}, {options})")
        still_open += node.ask(f"py_reactor:drain_listener({old}, 5000)")[1]
        node.ask(f"ok = py_reactor:stop_listener({old})")
        time.sleep(0.5)
    return still_open


HTTP = "#{reuseport => true, protocol => {keep_alive_http, 'KeepAliveHTTP'}}"


@contextmanager
def wrk(node: Node, connections: int, seconds: int = 3) -> Iterator[Callable[[], dict[str, int]]]:
    """Runs wrk; what is yielded waits for its end and returns what it counted."""
    command = ["wrk", "-t", "1", "-c", str(connections), "-d", str(seconds)]
    process = subprocess.Popen(
        [*command, f"http://127.0.0.1:{node.port}/"], stdout=subprocess.PIPE, text=True
    )

    def counted() -> dict[str, int]:
        said = process.communicate()[0]
        patterns = {"requests": r"(\d+) requests in", "status": r"Non-2xx.*: (\d+)"}
        patterns |= {what: rf"Socket errors.* {what} (\d+)" for what in WRK_ERRORS}
        found = {what: re.search(pattern, said) for what, pattern in patterns.items()}
        return {what: int(match[1]) if match else 0 for what, match in found.items()}

    try:
        yield counted
    finally:
        process.kill()
        process.wait()


WRK_ERRORS = ("connect", "read", "write", "timeout")


def restarts(proof: Proof) -> None:
    """A listener starts and stops again and again on one port."""
    times = 30 if proof.quick else 1000
    with proof_node(proof, "Echo") as (node, _):
        node.ask("py_reactor:stop_listener(proof)")
        before = settled(node)
        echoes = 0
        for _ in range(times):
            node.listen("Echo", f"#{{port => {node.port}}}")
            with socket.create_connection(("127.0.0.1", node.port), 10) as client:
                client.sendall(b"x")
                echoes += client.recv(10) == b"x"
                # The server closes first, so its port is the one that rests.
                node.ask("py_reactor:stop_listener(proof)")
        proof.is_("starts, each with an echo", echoes, times)
        proof.is_("listeners", node.ask("py_reactor:which_listeners()"), [])
        proof.nothing_left(node, before)


Program = Callable[[Proof], None]
PROGRAMS: dict[str, Program] = {
    "many": many,
    "crowd": crowd,
    "dribble": dribble,
    "storm": storm,
    "hoard": hoard,
    "laggards": laggards,
    "kills": kills,
    "descriptors": descriptors,
    "churn": churn,
    "drain": drain,
    "handover": handover,
    "restarts": restarts,
}
