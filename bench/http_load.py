"""HTTP under wrk, with the figures of the load client."""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from peers import Server

__all__ = ["http_load", "parsed", "wrk_missing"]

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


def wrk_missing() -> str | None:
    """Why there will be no HTTP, or None."""
    return None if shutil.which("wrk") else "wrk is not installed"


def http_load(
    server: Server, options: tuple[str, ...], seconds: float, warmup: float
) -> dict[str, Any]:
    """One run of wrk, after one that is not counted; {"error": ...} when something failed."""
    _wrk(server, options, max(1, round(warmup)))
    cpu, machine, began = server.cpu_seconds(), _machine_seconds(), time.monotonic()
    # wrk knows whole seconds only.
    said, own = _wrk(server, options, max(1, round(seconds)))
    took = time.monotonic() - began
    cpu, machine = server.cpu_seconds() - cpu, _machine_seconds() - machine
    try:
        found = parsed(said)
    except ValueError as error:
        return {"error": str(error)}
    return found | {
        "cpu_us": cpu / found["count"] * 1e6,
        "client_core_percent": 100 * own / took,
        "others_core_percent": max(0.0, 100 * (machine - cpu - own) / took),
    }


def parsed(said: str) -> dict[str, Any]:
    """What wrk --latency printed; raises ValueError when a request failed."""
    failed = re.search(r"Socket errors:.*|Non-2xx or 3xx responses:.*", said)
    done = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m),", said)
    if failed or not done or done[1] == "0":
        raise ValueError(failed[0] if failed else f"wrk said {said!r}")
    count, seconds = int(done[1]), float(done[2]) * _SECONDS[done[3]]
    found: dict[str, Any] = {"count": count, "seconds": seconds, "per_second": count / seconds}
    for name, share in (("p50_us", "50"), ("p99_us", "99")):
        at = re.search(rf"^ *{share}% +([\d.]+)(us|ms|s|m)$", said, re.MULTILINE)
        if at:
            found[name] = float(at[1]) * _SECONDS[at[2]] * 1e6
    return found


def _wrk(server: Server, options: tuple[str, ...], seconds: int) -> tuple[str, float]:
    """What it said, and the CPU that it used."""
    url = f"http://127.0.0.1:{server.port}/"
    command = ["wrk", "-t1", f"-d{seconds}s", "--latency", *options, url]
    before = _children_seconds()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr, _children_seconds() - before


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _machine_seconds() -> float:
    """CPU time of the whole machine, as process.rs of the load client has it."""
    user, nice, system, _, _, irq, softirq, steal, *_ = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    )
    return (user + nice + system + irq + softirq + steal) / 100
