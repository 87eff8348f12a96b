"""results.md: medians of ratios to uvloop of the same round and shape, with their spread."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any

from peers import LIMIT, PEERS, REACTORS, REFERENCE
from shapes import (
    ALONE,
    BESIDE_IDLE,
    CHURN,
    CONNECTIONS,
    DOWNLOAD,
    PINNED,
    SHAPES,
    SIZES,
    UPLOAD,
    Shape,
    grid,
)

__all__ = ["Ratios", "figures", "ratios", "render"]

Results = dict[str, Any]

# What the project wants to reach, as ratios to uvloop and to the limit: least requests a second and
# most CPU a request, with 50 and 500 connections, from 64 B to 10 KiB. None: no aim.
Aim = tuple[float | None, float | None]
GRID_AIMS: dict[str, tuple[Aim, Aim]] = {
    "inherited": ((1.0, 0.95), (0.93, 1.10)),
    "plain": ((1.0, None), (None, None)),
    "letter": ((0.95, 1.05), (None, None)),
}
AIMED = tuple(
    grid(connections, size) for connections in (50, 500) for size in SIZES if size <= 10240
)
# One connection: the median latency, pinned, and the CPU.
ONE_P50_AIM = 1.1
ONE_CPU_AIM = 1.3
P99_AIM = 1.25
BESIDE_IDLE_AIM = 0.95
FLOW_AIM = 0.9
CHURN_AIM = 0.9
LEAK_AIM_BYTES = 64
# Beside its Python object.
IDLE_AIM_BYTES = 1024
# "No CPU" as far as it can be measured: a thousandth of a core more than without connections.
IDLE_AIM_CORE_SHARE = 0.001


class Ratios:
    """Ratios of one figure over the rounds; empty when no round had both sides."""

    __slots__ = ("values",)

    def __init__(self, values: Iterable[float]) -> None:
        self.values = sorted(values)

    def __bool__(self) -> bool:
        return bool(self.values)

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def least(self) -> float:
        return self.values[0]

    @property
    def most(self) -> float:
        return self.values[-1]

    def __str__(self) -> str:
        if not self:
            return "-"
        return f"{self.median:.2f} ({self.least:.2f}..{self.most:.2f})"


def _good(results: Results, shape: str, peer: str) -> dict[int, dict[str, Any]]:
    """The runs without error of one peer under one shape, by round."""
    return {
        run["round"]: run
        for run in results["runs"]
        if run["shape"] == shape and run["peer"] == peer and "error" not in run
    }


def _compare(
    upper: dict[int, dict[str, Any]], lower: dict[int, dict[str, Any]], figure: str
) -> Ratios:
    return Ratios(
        upper[number][figure] / lower[number][figure]
        for number in upper.keys() & lower.keys()
        if figure in upper[number] and lower[number].get(figure, 0) > 0
    )


def ratios(results: Results, shape: str, peer: str, figure: str, to: str = REFERENCE) -> Ratios:
    """`figure` of `peer` over that of `to`, for each round where both succeeded."""
    return _compare(_good(results, shape, peer), _good(results, shape, to), figure)


def figures(results: Results, shape: str, peer: str, figure: str) -> Ratios:
    """`figure` itself, in each round."""
    found = _good(results, shape, peer).values()
    return Ratios(run[figure] for run in found if figure in run)


def render(results: Results) -> str:
    """The whole of results.md."""
    parts = [
        "# Echo under load\n",
        _header(results),
        _failures(results),
        _aims(results),
        *(_shape(results, shape) for shape in SHAPES),
        _beside_idle(results),
        _first_byte(results),
        _idle_memory(results),
        _leak(results),
    ]
    return "\n".join(part for part in parts if part)


def _header(results: Results) -> str:
    plan = results["plan"]
    repeats = sum(run["repeats"] for run in results["runs"])
    lines = [
        f"- {results['date']}, revision {results['revision']}",
        f"- {results['machine']}; {results['kernel']}",
        f"- Python {results['python']}, uvloop {results['uvloop']}, rloop {results['rloop']}, "
        f"OTP {results['otp']}, {results['rustc']}, cc {results['cc']}",
        "- closed loop over loopback, one client thread, every byte checked, but not by wrk; "
        f"{plan['rounds']} round(s) of {plan['seconds']} s a run after {plan['warmup']} s of the "
        f"same load; took {results['took_seconds']} s; load average "
        f"{results['load_average_before']:.1f} before, {results['load_average_after']:.1f} after",
        f"- figures are medians over the rounds; ratios are to {REFERENCE} in the same round and "
        "shape, median (min..max); CPU is that of all threads of the server, a request; "
        "`client` is the share of one core that the load client used: near 100 % it is the limit; "
        "latency is `-` where nobody tells it, or a connection got no answer within the run; "
        "`others` is what other programs took of a core in the worst round: much of it, and that "
        f"round was disturbed ({repeats} runs were repeated for that reason)",
    ]
    return "\n".join(lines) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _failures(results: Results) -> str:
    lines = [f"- skipped: {name}: {why}" for name, why in results["skipped"].items()]
    for run in results["runs"]:
        if "error" in run:
            where = f"{run['peer']}, {run['shape']}, round {run['round'] + 1}"
            lines.append(f"- failed: {where}: {_one_line(run['error'])}")
    for part, peers in results["memory"].items():
        for peer, found in peers.items():
            if "error" in found:
                lines.append(f"- failed: {peer}, {part}: {_one_line(found['error'])}")
    return "## Skipped and failed\n\n" + "\n".join(lines) + "\n" if lines else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def _shape(results: Results, shape: Shape) -> str:
    if not any(run["shape"] == shape.name for run in results["runs"]):
        return ""
    each, rows = shape.unit, []
    for peer in PEERS:
        good = _good(results, shape.name, peer.name)
        if not good:
            continue
        rows.append(
            [
                peer.title,
                f"{_middle(good, 'per_second'):,.0f}",
                str(ratios(results, shape.name, peer.name, "per_second")),
                f"{_middle(good, 'cpu_us'):.2f}",
                str(ratios(results, shape.name, peer.name, "cpu_us")),
                *(_latency(good, figure) for figure in ("p50_us", "p99_us", "p999_us")),
                f"{_middle(good, 'client_core_percent'):.0f} %",
                f"{max(run['others_core_percent'] for run in good.values()):.0f} %",
            ]
        )
    head = ["server", f"{_plural(each)}/s", "ratio", f"CPU us/{each}", "ratio"]
    head += ["p50 us", "p99 us", "p99.9 us", "client", "others"]
    return f"## {shape.title}\n\n" + _table(head, rows)


def _middle(runs: dict[int, dict[str, Any]], figure: str) -> float:
    return median(float(run[figure]) for run in runs.values())


def _plural(unit: str) -> str:
    return unit if unit == "MiB" else f"{unit}s"


def _latency(runs: dict[int, dict[str, Any]], figure: str) -> str:
    """wrk tells no p99.9, and a flow has no latency. Nor is there one that is worth something where
    a connection got no answer within the run: only the quick ones are counted."""
    there = all(run.get(figure, 0) > 0 and not _starved(run) for run in runs.values())
    return f"{_middle(runs, figure):,.0f}" if there else "-"


def _starved(run: dict[str, Any]) -> bool:
    return run.get("mode") == "steady" and run["fewest_per_connection"] == 0


def _beside(results: Results, peer: str, figure: str) -> Ratios:
    beside = _good(results, BESIDE_IDLE.name, peer)
    return _compare(beside, _good(results, ALONE.name, peer), figure)


def _beside_idle(results: Results) -> str:
    rows = []
    for peer in PEERS:
        per_second = _beside(results, peer.name, "per_second")
        if per_second:
            cpu = _beside(results, peer.name, "cpu_us")
            rows.append([peer.title, str(per_second), str(cpu)])
    if not rows:
        return ""
    head = ["server", "requests/s", "CPU/request"]
    title = "20 busy beside 5,000 idle, as a ratio to the same server with 20 alone"
    return f"## {title}\n\n" + _table(head, rows)


def _memory(results: Results, part: str) -> list[tuple[str, dict[str, Any]]]:
    """Title and result of each peer that has one, in the order of PEERS."""
    found = results["memory"].get(part, {})
    return [
        (peer.title, found[peer.name])
        for peer in PEERS
        if peer.name in found and "error" not in found[peer.name]
    ]


def _first_byte(results: Results) -> str:
    rows = [
        [title, f"{found['median_ms']:,.0f}", f"{min(found['ms']):,.0f}..{max(found['ms']):,.0f}"]
        for title, found in _memory(results, "first-byte")
    ]
    if not rows:
        return ""
    head = ["server", "ms", "least..most"]
    return "## From the start of the process to the first byte\n\n" + _table(head, rows)


def _idle_memory(results: Results) -> str:
    rows = [
        [
            title,
            f"{found['bytes_per_connection']:,.0f}",
            f"{found['object_bytes']:,}" if "object_bytes" in found else "-",
            f"{found['cpu_ms']:.1f}",
            f"{found['cpu_ms_without']:.1f}",
        ]
        for title, found in _memory(results, "idle-memory")
    ]
    if not rows:
        return ""
    seconds = results["plan"]["idle_seconds"]
    head = [
        "server",
        "resident bytes/connection",
        "its Python object",
        f"CPU ms in {seconds:g} s",
        "the same without",
    ]
    return "## 1,000 idle connections that have spoken once\n\n" + _table(head, rows)


def _leak(results: Results) -> str:
    rows = [
        [
            title,
            f"{found['descriptors_before']}, {found['descriptors_after']}",
            ", ".join(f"{grown:.1f}" for grown in found["bytes_per_connection"]),
        ]
        for title, found in _memory(results, "leak")
    ]
    if not rows:
        return ""
    plan = results["plan"]
    times = f"{plan['leak_batches']} x " if plan["leak_batches"] > 1 else ""
    head = ["server", "descriptors before, after", "resident bytes more a connection, each time"]
    title = f"{times}{plan['leak_count']:,} connections opened and closed in four ways"
    return f"## {title}, after {plan['leak_warmup']:,} of the same\n\n" + _table(head, rows)


def _aims(results: Results) -> str:
    rows = [*_grid_aims(results), *_other_aims(results), *_memory_aims(results)]
    if not rows:
        return ""
    return "## Aims\n\n" + _table(["aim", "server", "measured", "reached"], rows)


def _row(aim: str, peer: str, measured: str, reached: bool) -> list[str]:
    return [aim, peer, measured, "yes" if reached else "**no**"]


# Ratios are compared as they are printed: 0.999 reads 1.00 and is one.
def _at_least(least: float, aim: str, peer: str, found: Ratios) -> list[str]:
    return _row(aim.format(least), peer, str(found), round(found.median, 2) >= least)


def _at_most(most: float, aim: str, peer: str, found: Ratios) -> list[str]:
    return _row(aim.format(most), peer, str(found), round(found.median, 2) <= most)


def _ratio_aims(
    results: Results, shape: Shape, peer: str, to: str, least: float | None, most: float | None
) -> Iterable[list[str]]:
    per_second = ratios(results, shape.name, peer, "per_second", to)
    if per_second and least is not None:
        aim = f"{shape.name}: {_plural(shape.unit)}/s at least {{}} of {to}"
        yield _at_least(least, aim, peer, per_second)
    cpu = ratios(results, shape.name, peer, "cpu_us", to)
    if cpu and most is not None:
        yield _at_most(most, f"{shape.name}: CPU/{shape.unit} at most {{}} of {to}", peer, cpu)


def _grid_aims(results: Results) -> Iterable[list[str]]:
    for peer, aims in GRID_AIMS.items():
        for shape in AIMED:
            for to, (least, most) in zip((REFERENCE, LIMIT), aims, strict=True):
                yield from _ratio_aims(results, shape, peer, to, least, most)


def _other_aims(results: Results) -> Iterable[list[str]]:
    for peer in REACTORS:
        for shape in PINNED:
            p50 = ratios(results, shape.name, peer, "p50_us")
            if p50:
                aim = f"{shape.name}: p50 at most {{}} of {REFERENCE}"
                yield _at_most(ONE_P50_AIM, aim, peer, p50)
            yield from _ratio_aims(results, shape, peer, REFERENCE, None, ONE_CPU_AIM)
        for shape in (grid(connections, size) for connections in CONNECTIONS for size in SIZES):
            p99 = ratios(results, shape.name, peer, "p99_us")
            if p99 and peer != "letter":
                aim = f"{shape.name}: p99 at most {{}} of {REFERENCE}"
                yield _at_most(P99_AIM, aim, peer, p99)
        beside = _beside(results, peer, "per_second")
        if beside:
            aim = f"{BESIDE_IDLE.name}: requests/s at least {{}} of 20 alone"
            yield _at_least(BESIDE_IDLE_AIM, aim, peer, beside)
        for shape in (UPLOAD, DOWNLOAD):
            yield from _ratio_aims(results, shape, peer, LIMIT, FLOW_AIM, None)
    yield from _ratio_aims(results, CHURN, "listener", LIMIT, CHURN_AIM, None)


def _memory_aims(results: Results) -> Iterable[list[str]]:
    for peer in REACTORS:
        idle = results["memory"].get("idle-memory", {}).get(peer, {"error": ""})
        if "error" not in idle:
            beside = idle["bytes_per_connection"] - idle["object_bytes"]
            aim = f"idle: at most {IDLE_AIM_BYTES:,} bytes/connection beside its Python object"
            yield _row(aim, peer, f"{beside:,.0f}", beside <= IDLE_AIM_BYTES)
            more = idle["cpu_ms"] - idle["cpu_ms_without"]
            most = IDLE_AIM_CORE_SHARE * idle["seconds"] * 1000
            aim = f"idle: no CPU (at most {most:g} ms more in {idle['seconds']:g} s)"
            yield _row(aim, peer, f"{more:.1f} ms", more <= most)
        leak = results["memory"].get("leak", {}).get(peer, {"error": ""})
        if "error" not in leak:
            grown = median(leak["bytes_per_connection"])
            aim = f"leak: under {LEAK_AIM_BYTES} bytes more a connection"
            yield _row(aim, peer, f"{grown:.1f}", grown < LEAK_AIM_BYTES)
            before, after = leak["descriptors_before"], leak["descriptors_after"]
            aim = "leak: descriptors back to where they were"
            yield _row(aim, peer, f"{before} before, {after} after", after <= before)
