"""Counts instructions, system calls and context switches of an echo of 64 bytes. See README.md.

Called by script/bench --costs, which prepares what is needed. A count is the difference of two runs
of fixed work: what a start and a connection cost is no part of a request.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from machine import circumstances
from peers import PEERS, ROOT, TMP, Peer, Server, binary

CONNECTIONS = (1, 50, 500)

# Echoes of each connection in the shorter run, and how many more are in the longer one: long
# enough for every cache and every adaptive instruction of Python to have settled.
ROUNDS = {1: (400, 2000), 50: (20, 100), 500: (4, 12)}

SWITCHES_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Row:
    """One server, and how it is called in the table."""

    title: str
    peer: Peer


def rows() -> tuple[Row, ...]:
    """What is compared. No BEAM: valgrind cannot run it."""
    peers = {peer.name: peer for peer in PEERS}
    plain = peers["plain"]
    return (
        Row("py_reactor, plain CPython, inherited `write_ready`", plain),
        Row("the same, `write_ready` in Python", replace(plain, protocols={"echo": "letter"})),
        Row("`reactor::Server` in Rust", peers["rust"]),
        Row("uvloop, `Protocol` and `transport.write`", peers["uvloop"]),
        Row("asyncio, the same", peers["asyncio"]),
        Row("an epoll loop in C", peers["epoll"]),
    )


def per_request(count: Sequence[float], connections: int) -> float:
    """From the counts of the shorter run and of the longer one."""
    few, many = count
    return (many - few) / (connections * ROUNDS[connections][1])


def echoes(server: Server, connections: int, rounds: int) -> None:
    """Has every connection echo so many times, all of them at once; raises RuntimeError."""
    command = [binary("load"), "--address", f"127.0.0.1:{server.port}", "--size", "64"]
    work = ["--connections", str(connections), "--window", str(connections)]
    done = subprocess.run(
        [*command, *work, "--rounds", str(rounds), "--interval", "0.0001", "--patience", "60"],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{server.peer.name}: {done.stderr.strip()}")


def instructions(peer: Peer, connections: int) -> float:
    """Of a request, outside of the kernel."""
    out = TMP / "callgrind.out"
    log = TMP / "callgrind.log"
    valgrind = ("valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", f"--log-file={log}")
    found = []
    few, more = ROUNDS[connections]
    for rounds in (few, few + more):
        with Server(replace(peer, command=(*valgrind, *peer.command))) as server:
            echoes(server, connections, rounds)
        counted = re.search(r"Collected : (\d+)", log.read_text())
        if not counted:
            raise RuntimeError(f"{peer.name}: {log.read_text()[-500:]}")
        found.append(float(counted[1]))
    out.unlink(missing_ok=True)
    return per_request(found, connections)


def system_calls(server: Server, connections: int) -> float:
    """Of a request."""
    found = []
    few, more = ROUNDS[connections]
    for rounds in (few, few + more):
        command = ["strace", "-f", "-c", "-p", str(server.pid)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
            assert strace.stderr is not None
            # It says when it is there.
            strace.stderr.readline()
            try:
                echoes(server, connections, rounds)
            finally:
                strace.send_signal(signal.SIGINT)
                said = strace.stderr.read()
        total = re.search(r"^100\.00\s+\S+\s+\S+\s+(\d+).*total", said, re.MULTILINE)
        if not total:
            raise RuntimeError(f"{server.peer.name}: strace counted nothing")
        found.append(float(total[1]))
    return per_request(found, connections)


def switches(server: Server, connections: int) -> float:
    """Of a request: times that a thread of the server began to wait, or had to."""

    def switched() -> int:
        lines = [
            line
            for task in Path(f"/proc/{server.pid}/task").iterdir()
            for line in (task / "status").read_text().splitlines()
        ]
        return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)

    command = [binary("load"), "--address", f"127.0.0.1:{server.port}", "--json", "--warmup", "0"]
    load = ["--connections", str(connections), "--seconds", str(SWITCHES_SECONDS)]
    before = switched()
    done = subprocess.run([*command, *load], capture_output=True, text=True, check=True)
    count: int = json.loads(done.stdout)["count"]
    return (switched() - before) / count


def table(title: str, found: dict[str, list[str]]) -> list[str]:
    """A row for each server."""
    head = f"| {title} | " + " | ".join(f"{number:,}" for number in CONNECTIONS) + " |"
    body = [f"| {name} | " + " | ".join(cells) + " |" for name, cells in found.items()]
    return [head, "|---" * (1 + len(CONNECTIONS)) + "|", *body, ""]


def main() -> None:
    calls: dict[str, list[str]] = {}
    waits: dict[str, list[str]] = {}
    counts: dict[str, list[str]] = {}
    for row in rows():
        print(row.title, flush=True)
        with Server(row.peer) as server:
            calls[row.title] = [f"{system_calls(server, number):.2f}" for number in CONNECTIONS]
            waits[row.title] = [f"{switches(server, number):.2f}" for number in CONNECTIONS]
        counts[row.title] = [f"{instructions(row.peer, number):,.0f}" for number in CONNECTIONS]
    about = circumstances()
    lines = [
        "# What an echo of 64 bytes costs",
        "",
        "Counted by `script/bench --costs`, a request, by connections; "
        f"revision {about['revision']}, Python {about['python']}, uvloop {about['uvloop']}, "
        f"{about['rustc']}, cc {about['cc']}.",
        "",
        *table("instructions outside of the kernel", counts),
        *table("system calls", calls),
        *table("context switches of the server", waits),
    ]
    target = ROOT / "bench" / "results" / "costs.md"
    target.write_text("\n".join(lines[:-1]) + "\n")
    print(f"wrote {target.relative_to(ROOT)}")


if __name__ == "__main__":
    try:
        main()
    except RuntimeError as error:
        sys.exit(f"script/bench: {error}")
