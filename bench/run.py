"""Runs the load client against every server in turn and writes bench/results. See README.md.

Called by script/bench, which prepares what is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import plot
import tables
from machine import circumstances
from peers import PEERS, REFERENCE, ROOT, TMP, Peer, Server, binary
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
    idle_seconds: float
    leak_warmup: int
    leak_count: int
    leak_batches: int
    repeated_share: float


# 20,000 connections are what is asked about; three times, since memory moves by itself.
FULL = Plan(5, 2.5, 0.7, 5.0, 5000, 20000, 3, 0.25)
QUICK = Plan(1, 0.8, 0.3, 1.0, 5000, 20000, 1, 0.0)


class Progress:
    """One line for each thing done, with the time left."""

    __slots__ = ("_begin", "_done", "_total")

    def __init__(self, total: float) -> None:
        """total: expected cost of everything, in seconds."""
        self._begin = time.monotonic()
        self._done = 0.0
        self._total = total

    def line(self, cost: float, text: str) -> None:
        """Reports something done that was expected to take `cost` seconds."""
        self._done += cost
        pace = (time.monotonic() - self._begin) / self._done
        left = max(0, round(pace * (self._total - self._done)))
        share = 100 * self._done / self._total
        print(f"[{share:3.0f} %, {left // 60}:{left % 60:02} left] {text}", flush=True)


def load(server: Server, options: Sequence[str]) -> dict[str, Any]:
    """One run of the load client. A failed one gives {"error": what it said}."""
    command = [binary("load"), "--address", f"127.0.0.1:{server.port}", "--pid", str(server.pid)]
    done = subprocess.run([*command, "--json", *options], capture_output=True, text=True)
    if done.returncode != 0:
        said = done.stderr.strip() or f"load client ended with {done.returncode}"
        return {"error": said if server.alive() else f"{said} (the server has died)"}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def start(peer: Peer) -> Server:
    """Starts `peer` and brings it into its stride.

    The first seconds of a process are not like the others: asyncio reads into a fresh block of
    256 KiB each time, and until glibc has learnt to keep it that is a system call and a page fault
    a message. A little of both sizes, uncounted, makes the order of the shapes matter less.
    """
    server = Server(peer)
    for size in ("10240", "64"):
        load(server, ["--size", size, "--seconds", "0.2", "--warmup", "0"])
    return server


class Servers:
    """One process a peer and round.

    Servers stay up for all shapes of a round, as a server in use does, so that what one shape
    leaves behind is part of what the next one meets; and every round begins with new processes, so
    that the luck of one address layout is averaged over the rounds.
    """

    __slots__ = ("_broken", "_running")

    def __init__(self) -> None:
        self._running: dict[str, Server] = {}
        self._broken: dict[str, str] = {}

    def load(self, peer: Peer, options: Sequence[str]) -> dict[str, Any]:
        """One run. After a failed one the server is ended, so that the next meets a new one; one
        that does not even start is not tried again in this round."""
        if peer.name in self._broken:
            return {"error": self._broken[peer.name]}
        try:
            if peer.name not in self._running:
                self._running[peer.name] = start(peer)
        except RuntimeError as error:
            self._broken[peer.name] = str(error)
            return {"error": str(error)}
        found = load(self._running[peer.name], options)
        if "error" in found:
            self._running.pop(peer.name).stop()
        return found

    def stop(self) -> None:
        while self._running:
            self._running.popitem()[1].stop()


def measure_shapes(
    plan: Plan, peers: Sequence[Peer], shapes: Sequence[Shape], progress: Progress
) -> list[dict[str, Any]]:
    """Every peer under every shape, round after round; a list of single runs."""
    runs = []
    repeats_left = round(plan.repeated_share * plan.rounds * len(shapes) * len(peers))
    window = ("--seconds", str(plan.seconds), "--warmup", str(plan.warmup))
    for number in range(plan.rounds):
        # Peers of one shape run seconds apart; who goes first changes with the round.
        turn = number % len(peers)
        order = [*peers[turn:], *peers[:turn]]
        servers = Servers()
        try:
            for shape in shapes:
                for peer in order:
                    repeats = min(REPEATS, repeats_left)
                    found = quietest(servers, peer, [*shape.options, *window], repeats)
                    repeats_left -= found["repeats"]
                    runs.append({"round": number, "shape": shape.name, "peer": peer.name, **found})
                    label = f"round {number + 1}/{plan.rounds}  {shape.name:12} {peer.name:10}"
                    progress.line(run_cost(plan), f"{label} {brief(found)}")
        finally:
            servers.stop()
    return runs


def quietest(servers: Servers, peer: Peer, options: Sequence[str], repeats: int) -> dict[str, Any]:
    """One run, repeated while other programs disturb it; a failure is never repeated."""
    best = servers.load(peer, options)
    done = 0
    while done < repeats and best.get("others_core_percent", 0.0) > DISTURBED_PERCENT:
        done += 1
        found = servers.load(peer, options)
        if "error" in found or found["others_core_percent"] < best["others_core_percent"]:
            best = found
        if "error" in found:
            break
    return best | {"repeats": done}


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
    return {
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
        return f"FAILED: {found['error']}"
    others = found["others_core_percent"]
    disturbed = f"  (others: {others:.0f} % of a core)" if others > DISTURBED_PERCENT else ""
    return f"{found['per_second']:9,.0f} /s  {found['cpu_us']:6.1f} us CPU each{disturbed}"


def run_cost(plan: Plan) -> float:
    return plan.seconds + plan.warmup + OVERHEAD_SECONDS


def idle_cost(plan: Plan) -> float:
    return 2 * (plan.idle_seconds + 0.5) + 5.0


def leak_cost(plan: Plan) -> float:
    return 5.0 + (plan.leak_warmup + plan.leak_batches * plan.leak_count) / 20000


def arguments() -> tuple[Plan, list[Peer], list[Shape], list[str]]:
    """What the command line asks for: plan, peers, shapes, parts about memory."""
    parser = argparse.ArgumentParser(prog="script/bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short round")
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
    parsed = parser.parse_args()
    only = parsed.only.split(",") if parsed.only else []
    for unknown in set(only) - set(names):
        parser.error(f"--only: no {unknown!r}; there are {', '.join(names)}")
    base = QUICK if parsed.quick else FULL
    changed = {
        "rounds": base.rounds if parsed.rounds is None else parsed.rounds,
        "seconds": base.seconds if parsed.seconds is None else parsed.seconds,
    }
    if changed["rounds"] < 1 or changed["seconds"] <= 0:
        parser.error("--rounds and --seconds must be positive")
    some_peers = set(only) & set(peer_names)
    some_loads = set(only) & {*shape_names, *PARTS}
    peers = [
        peer
        for peer in PEERS
        if not some_peers or peer.name in some_peers or peer.name == REFERENCE
    ]
    shapes = [shape for shape in SHAPES if not some_loads or shape.name in some_loads]
    parts = [part for part in PARTS if not some_loads or part in some_loads]
    return Plan(**(asdict(base) | changed)), peers, shapes, parts


def main() -> int:
    plan, wanted, shapes, parts = arguments()
    TMP.mkdir(parents=True, exist_ok=True)
    for log in TMP.glob("*.log"):
        log.unlink()
    skipped = {peer.name: why for peer in wanted if (why := peer.missing()) is not None}
    peers = [peer for peer in wanted if peer.name not in skipped]
    for name, why in skipped.items():
        print(f"SKIPPED {name}: {why}", flush=True)

    results = circumstances() | {"plan": asdict(plan)}
    total = plan.rounds * len(shapes) * run_cost(plan) + ("idle-memory" in parts) * idle_cost(plan)
    total = len(peers) * (total + ("leak" in parts) * leak_cost(plan))
    progress = Progress(total)
    begin = time.monotonic()
    memory: dict[str, dict[str, Any]] = {part: {} for part in parts}
    measures = {"idle-memory": (measure_idle_memory, idle_cost), "leak": (measure_leak, leak_cost)}
    for part in parts:
        measure, cost = measures[part]
        for peer in peers:
            try:
                found = measure(plan, peer)
            except (RuntimeError, OSError) as error:
                found = {"error": str(error)}
            memory[part][peer.name] = found
            said = f"FAILED: {found['error']}" if "error" in found else "done"
            progress.line(cost(plan), f"{part} {peer.name} {said}")
    runs = measure_shapes(plan, peers, shapes, progress)

    results |= {
        "load_average_after": os.getloadavg()[0],
        "took_seconds": round(time.monotonic() - begin),
        "skipped": skipped,
        "memory": memory,
        "runs": runs,
    }
    (RESULTS / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "results.md").write_text(tables.render(results))
    plot.draw(results, RESULTS)
    failed = [found for found in [*runs, *memory_runs(memory)] if "error" in found]
    print(f"wrote {RESULTS.relative_to(ROOT)}/results.md, results.json, echo.svg, echo.png")
    print(f"{len(runs)} runs, {len(failed)} failed, {len(skipped)} servers skipped")
    return 1 if failed else 0


def memory_runs(memory: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [found for part in memory.values() for found in part.values()]


if __name__ == "__main__":
    sys.exit(main())
