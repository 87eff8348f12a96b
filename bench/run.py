"""Runs the load client against every server in turn and writes tables and plots. See README.md.

Called by script/bench, which prepares what is needed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import plot
import tables
from http_load import http_load, wrk_missing
from machine import circumstances
from peers import PEERS, REACTORS, REFERENCE, ROOT, TMP, Peer, Server, binary, object_bytes
from progress import Progress
from shapes import PARTS, SHAPES, Shape

RESULTS = ROOT / "bench" / "results"

# A run during which other programs took more of a core than this is repeated, and the quietest is
# kept: what is compared are servers, not moments.
DISTURBED_PERCENT = 15.0
REPEATS = 2

# What one run costs beside its own seconds: processes, connections, draining.
OVERHEAD_SECONDS = 0.35


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. Times in seconds; of all runs `repeated_share` may be repeated."""

    rounds: int
    seconds: float
    warmup: float
    starts: int
    idle_seconds: float
    leak_warmup: int
    leak_count: int
    leak_batches: int
    repeated_share: float


# 20,000 connections are what is asked about; three times, since memory moves by itself.
FULL = Plan(5, 1.5, 0.5, 9, 5.0, 5000, 20000, 3, 0.2)
QUICK = Plan(1, 0.5, 0.2, 1, 1.0, 2000, 5000, 1, 0.0)


def load(
    server: Server, options: Sequence[str], cores: tuple[set[int], set[int]] | None = None
) -> dict[str, Any]:
    """One run of the load client. A failed one gives {"error": what it said}.

    cores: those that server and client may run on.
    """
    command = [binary("load"), "--address", f"127.0.0.1:{server.port}", "--pid", str(server.pid)]
    everywhere = os.sched_getaffinity(0)
    theirs, ours = cores or (everywhere, everywhere)
    server.run_on(theirs)
    # The child inherits them.
    os.sched_setaffinity(0, ours)
    try:
        done = subprocess.run([*command, "--json", *options], capture_output=True, text=True)
    finally:
        os.sched_setaffinity(0, everywhere)
        server.run_on(everywhere)
    if done.returncode != 0:
        said = done.stderr.strip() or f"load client ended with {done.returncode}"
        return {"error": said if server.alive() else f"{said} (the server has died)"}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def start(peer: Peer, protocol: str) -> Server:
    """Starts `peer` and brings it into its stride.

    The first seconds of a process are not like the others: asyncio reads into a fresh block of
    256 KiB each time, and until glibc has learnt to keep it that is a system call and a page fault
    a message. A little of both sizes, uncounted, makes the order of the shapes matter less.
    """
    server = Server(peer, protocol)
    if protocol.startswith("echo"):
        for size in ("10240", "64"):
            load(server, ["--size", size, "--seconds", "0.2", "--warmup", "0"])
    return server


def run_shape(server: Server, shape: Shape, plan: Plan) -> dict[str, Any]:
    """One run of one load."""
    if shape.is_http:
        return http_load(server, shape.options, plan.seconds, plan.warmup)
    cores = None
    if shape.cores is not None:
        # The first and the last are the least likely to be two threads of one core.
        there = sorted(os.sched_getaffinity(0))
        theirs, ours = {there[0]}, {there[-1]}
        cores = (ours, ours) if shape.cores == "one" else (theirs, ours)
    window = ("--seconds", str(plan.seconds), "--warmup", str(plan.warmup))
    return load(server, [*shape.options, *window], cores)


class Servers:
    """One process a peer, protocol and round.

    Servers stay up for all shapes of a round, as a server in use does, so that what one shape
    leaves behind is part of what the next one meets; and every round begins with new processes, so
    that the luck of one address layout is averaged over the rounds.
    """

    __slots__ = ("_broken", "_plan", "_running")

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._running: dict[tuple[str, str], Server] = {}
        self._broken: dict[tuple[str, str], str] = {}

    def load(self, peer: Peer, shape: Shape) -> dict[str, Any]:
        """One run. After a failed one the server is ended, so that the next meets a new one; one
        that does not even start is not tried again in this round."""
        key = peer.name, shape.protocol
        if key in self._broken:
            return {"error": self._broken[key]}
        try:
            if key not in self._running:
                self._running[key] = start(peer, shape.protocol)
        except RuntimeError as error:
            self._broken[key] = str(error)
            return {"error": str(error)}
        found = run_shape(self._running[key], shape, self._plan)
        if "error" in found:
            self._running.pop(key).stop()
        return found

    def stop(self) -> None:
        while self._running:
            self._running.popitem()[1].stop()


def serve(peers: Sequence[Peer], shape: Shape) -> list[Peer]:
    """Those that speak the protocol of the load."""
    return [peer for peer in peers if shape.protocol in peer.protocols]


def measure_shapes(
    plan: Plan, peers: Sequence[Peer], shapes: Sequence[Shape], progress: Progress
) -> list[dict[str, Any]]:
    """Every peer under every shape, round after round; a list of single runs."""
    runs = []
    repeats_left = round(plan.repeated_share * number_of_runs(plan, peers, shapes))
    for number in range(plan.rounds):
        # Peers of one shape run seconds apart; who goes first changes with the round.
        turn = number % len(peers)
        order = [*peers[turn:], *peers[:turn]]
        servers = Servers(plan)
        try:
            for shape in shapes:
                for peer in serve(order, shape):
                    repeats = min(REPEATS, repeats_left)
                    found = quietest(servers, peer, shape, repeats)
                    repeats_left -= found["repeats"]
                    runs.append({"round": number, "shape": shape.name, "peer": peer.name, **found})
                    label = f"round {number + 1}/{plan.rounds}  {shape.name:15} {peer.name:12}"
                    progress.line(run_cost(plan), f"{label} {brief(found)}")
        finally:
            servers.stop()
    return runs


def number_of_runs(plan: Plan, peers: Sequence[Peer], shapes: Sequence[Shape]) -> int:
    return plan.rounds * sum(len(serve(peers, shape)) for shape in shapes)


def quietest(servers: Servers, peer: Peer, shape: Shape, repeats: int) -> dict[str, Any]:
    """One run, repeated while other programs disturb it; a failure is never repeated."""
    best = servers.load(peer, shape)
    done = 0
    while done < repeats and best.get("others_core_percent", 0.0) > DISTURBED_PERCENT:
        done += 1
        found = servers.load(peer, shape)
        if "error" in found or found["others_core_percent"] < best["others_core_percent"]:
            best = found
        if "error" in found:
            break
    return best | {"repeats": done}


def measure_first_byte(plan: Plan, peer: Peer) -> dict[str, Any]:
    """From the start of the process to the first byte that comes back, again and again.

    What the BEAM runs here is a script, which it compiles first.
    """
    took = []
    for _ in range(plan.starts):
        began = time.monotonic()
        with Server(peer) as server:
            with socket.create_connection(("127.0.0.1", server.port), 10) as client:
                client.sendall(b"x")
                answer = client.recv(1)
            took.append((time.monotonic() - began) * 1000)
            if answer != b"x":
                return {"error": f"{answer!r} came back"}
    return {"ms": took, "median_ms": median(took)}


def measure_idle_memory(plan: Plan, peer: Peer) -> dict[str, Any]:
    """1,000 connections that have spoken once and fallen silent: memory of each, and CPU.

    Others come and go first, twenty at a time: what a server needs for its very first connection is
    not what it needs for each. The CPU of the same time without any connection is the comparison.
    """
    idle = ["--connections", "0", "--warmup", "0.5", "--seconds", str(plan.idle_seconds)]
    with Server(peer) as server:
        first = load(server, ["--churn", "--connections", "20", "--count", "2000"])
        server.wait_until_memory_rests()
        nobody = load(server, idle)
        many = load(server, [*idle, "--idle", "1000", "--greet"])
    for found in (first, nobody, many):
        if "error" in found:
            return found
    grown = many["resident_open"] - many["resident_before"]
    own = {"object_bytes": object_bytes()} if peer.name in REACTORS else {}
    return own | {
        "bytes_per_connection": grown / 1000,
        "cpu_ms": many["cpu_ms"],
        "cpu_ms_without": nobody["cpu_ms"],
        "seconds": plan.idle_seconds,
    }


def measure_leak(plan: Plan, peer: Peer) -> dict[str, Any]:
    """Connections opened and closed in four ways: descriptors and memory afterwards."""
    options = ["--mixed-close", "--connections", "50", "--count"]
    with Server(peer) as server:
        counts = [plan.leak_warmup] + [plan.leak_count] * plan.leak_batches
        batches = [load(server, [*options, str(counts[0])])]
        server.wait_until_memory_rests()
        batches += [load(server, [*options, str(count)]) for count in counts[1:]]
    for found in batches:
        if "error" in found:
            return found
    return {
        "connections": plan.leak_count,
        "warmup": plan.leak_warmup,
        "bytes_per_connection": [
            (found["resident_after"] - found["resident_before"]) / plan.leak_count
            for found in batches[1:]
        ],
        # The first connection may open descriptors that stay, so the warm-up's end is the measure.
        "descriptors_before": batches[0]["descriptors_after"],
        "descriptors_after": batches[-1]["descriptors_after"],
    }


def brief(found: dict[str, Any]) -> str:
    if "error" in found:
        return f"FAILED: {last_line(found['error'])}"
    others = found["others_core_percent"]
    disturbed = f"  (others: {others:.0f} % of a core)" if others > DISTURBED_PERCENT else ""
    return f"{found['per_second']:9,.0f} /s  {found['cpu_us']:6.1f} us CPU each{disturbed}"


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["nothing was said"])[-1]


def run_cost(plan: Plan) -> float:
    return plan.seconds + plan.warmup + OVERHEAD_SECONDS


def start_cost(plan: Plan) -> float:
    return plan.starts * 1.0


def idle_cost(plan: Plan) -> float:
    return 2 * (plan.idle_seconds + 0.5) + 5.0


def leak_cost(plan: Plan) -> float:
    return 5.0 + (plan.leak_warmup + plan.leak_batches * plan.leak_count) / 20000


def arguments() -> tuple[Plan, list[Peer], list[Shape], list[str], Path]:
    """What the command line asks for: plan, peers, shapes, parts about memory, and the folder of
    the results, which for a part of all is not that of the whole."""
    parser = argparse.ArgumentParser(
        prog="script/bench",
        description=__doc__.splitlines()[0],
        epilog="script/bench --costs counts instructions, system calls and context switches; "
        "script/bench --baseline counts instructions and writes bench/baseline.json.",
    )
    parser.add_argument("--quick", action="store_true", help="one short round of some loads")
    parser.add_argument("--rounds", type=int, help=f"default {FULL.rounds}")
    parser.add_argument("--seconds", type=float, help=f"of each run, default {FULL.seconds}")
    peer_names = [peer.name for peer in PEERS]
    shape_names = [shape.name for shape in SHAPES]
    names = [*peer_names, *shape_names, *PARTS]
    parser.add_argument(
        "--only",
        metavar="NAME[,NAME]",
        help=f"these servers (uvloop is always there) and these loads: {', '.join(names)}",
    )
    parser.add_argument(
        "--check", action="store_true", help="measure nothing, only look at the other options"
    )
    parsed = parser.parse_args()
    only = parsed.only.split(",") if parsed.only else []
    for unknown in set(only) - set(names):
        parser.error(f"--only: no {unknown!r}; there are {', '.join(names)}")
    base = QUICK if parsed.quick else FULL
    changed = {
        "rounds": base.rounds if parsed.rounds is None else parsed.rounds,
        "seconds": base.seconds if parsed.seconds is None else parsed.seconds,
    }
    if changed["rounds"] < 1 or not 0 < changed["seconds"] < math.inf:
        parser.error("--rounds and --seconds must be positive")
    if parsed.check:
        parser.exit()
    some_peers = set(only) & set(peer_names)
    some_loads = set(only) & {*shape_names, *PARTS}
    peers = [
        peer
        for peer in PEERS
        if not some_peers or peer.name in some_peers or peer.name == REFERENCE
    ]
    shapes = [
        shape
        for shape in SHAPES
        if shape.name in some_loads or not (some_loads or (parsed.quick and not shape.quick))
    ]
    parts = [part for part in PARTS if not some_loads or part in some_loads]
    folder = TMP / "part" if only or parsed.quick else RESULTS
    return Plan(**(asdict(base) | changed)), peers, shapes, parts, folder


def main() -> int:
    plan, wanted, shapes, parts, folder = arguments()
    for needed in (TMP, folder):
        needed.mkdir(parents=True, exist_ok=True)
    for log in TMP.glob("*.log"):
        log.unlink()
    skipped = {peer.name: why for peer in wanted if (why := peer.missing()) is not None}
    peers = [peer for peer in wanted if peer.name not in skipped]
    if (why := wrk_missing()) is not None:
        skipped |= {shape.name: why for shape in shapes if shape.is_http}
        shapes = [shape for shape in shapes if shape.name not in skipped]
    for name, why in skipped.items():
        print(f"SKIPPED {name}: {why}", flush=True)

    results = circumstances() | {"plan": asdict(plan)}
    measures = {
        "first-byte": (measure_first_byte, start_cost),
        "idle-memory": (measure_idle_memory, idle_cost),
        "leak": (measure_leak, leak_cost),
    }
    total = number_of_runs(plan, peers, shapes) * run_cost(plan)
    total += len(peers) * sum(measures[part][1](plan) for part in parts)
    progress = Progress(total)
    begin = time.monotonic()
    memory: dict[str, dict[str, Any]] = {part: {} for part in parts}
    for part in parts:
        measure, cost = measures[part]
        for peer in peers:
            if part in peer.cannot:
                skipped[f"{peer.name}, {part}"] = peer.cannot[part]
                continue
            try:
                found = measure(plan, peer)
            except (RuntimeError, OSError) as error:
                found = {"error": str(error)}
            memory[part][peer.name] = found
            said = f"FAILED: {last_line(found['error'])}" if "error" in found else "done"
            progress.line(cost(plan), f"{part} {peer.name} {said}")
    runs = measure_shapes(plan, peers, shapes, progress)
    progress.end()

    results |= {
        "load_average_after": os.getloadavg()[0],
        "took_seconds": round(time.monotonic() - begin),
        "skipped": skipped,
        "memory": memory,
        "runs": runs,
    }
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "results.md").write_text(tables.render(results))
    drawn = plot.draw(results, folder)
    failed = [found for found in [*runs, *memory_runs(memory)] if "error" in found]
    names = ", ".join(["results.md", "results.json", *drawn])
    print(f"wrote in {folder.relative_to(ROOT)}: {names}")
    disturbed = sum(found.get("others_core_percent", 0.0) > DISTURBED_PERCENT for found in runs)
    told = f"{len(failed)} failed, {len(skipped)} skipped, {disturbed} disturbed by other programs"
    print(f"{len(runs)} runs, {told}")
    return 1 if failed else 0


def memory_runs(memory: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [found for part in memory.values() for found in part.values()]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; nothing was written")
