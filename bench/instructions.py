"""Counts the instructions of a request and compares them with baseline.json. See README.md.

Called by bench/instructions, which prepares what is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers import ROOT, TMP, binary

BASELINE = ROOT / "bench" / "baseline.json"

# Two runs of one build differ by a thousandth: this is for what another build of the same versions
# places elsewhere, and for changes too small to argue about.
TOLERANCE = 0.05

SKIPPED = 77


@dataclass(frozen=True, slots=True)
class Case:
    """Fixed work: so many connections and bytes a message.

    protocol: that of the echo, by the names of reactor_protocols.py; None: the engine alone.
    """

    name: str
    protocol: str | None
    connections: int
    size: int

    def command(self, messages: int) -> list[str]:
        words = [str(self.connections), str(self.size), str(messages)]
        if self.protocol is None:
            return [binary("fixed_work"), *words]
        program = str(ROOT / "bench" / "servers" / "fixed_work.py")
        return [sys.executable, "-X", "frozen_modules=on", program, self.protocol, *words]


CASES = (
    Case("rust 1x64B", None, 1, 64),
    Case("rust 50x64B", None, 50, 64),
    Case("rust 50x10KiB", None, 50, 10240),
    Case("plain inherited 1x64B", "inherited", 1, 64),
    Case("plain inherited 50x64B", "inherited", 50, 64),
    Case("plain inherited 50x10KiB", "inherited", 50, 10240),
    Case("plain letter 50x64B", "letter", 50, 64),
)

# What is counted is the difference: what a start costs is no part of a request. Both long enough
# for every cache and every adaptive instruction of Python to have settled.
MESSAGES = (2000, 6000)


def counted(case: Case) -> float:
    """Instructions a request; both ends of the connection are in it.

    Raises RuntimeError when the work is not done.
    """
    few, many = MESSAGES
    return (_instructions(case, many) - _instructions(case, few)) / (many - few)


def _instructions(case: Case, messages: int) -> int:
    out = TMP / "callgrind.out"
    paths = (TMP / "plain", ROOT / "examples", ROOT / "bench" / "servers")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"]
    done = subprocess.run(
        [*command, *case.command(messages)], capture_output=True, text=True, env=environment
    )
    out.unlink(missing_ok=True)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode != 0 or not found:
        raise RuntimeError(f"{case.name}: {done.stderr.strip()[-2000:]}")
    return int(found[1])


def versions() -> dict[str, str]:
    """What has to be the same for figures to be compared."""
    rustc = subprocess.run(["rustc", "--version"], capture_output=True, text=True, check=True)
    # By these glibc chooses how it copies memory, also under valgrind.
    cpu = Path("/proc/cpuinfo").read_text().split()
    vectors = [flag for flag in ("avx2", "avx512f", "erms") if flag in cpu]
    return {
        "rustc": rustc.stdout.strip(),
        "python": f"{platform.python_version()}, {platform.python_compiler()}",
        "libc": " ".join(platform.libc_ver()),
        "machine": " ".join([platform.machine(), *vectors]),
    }


def differences(kept: dict[str, str], now: dict[str, str]) -> list[str]:
    """What is not the same, in words."""
    return [
        f"{what} is {now.get(what)}, and was {kept.get(what)}"
        for what in sorted(kept.keys() | now.keys())
        if kept.get(what) != now.get(what)
    ]


def comparable(case: Case, other: list[str]) -> bool:
    """Whether what differs has nothing to do with this case: the engine alone has no Python."""
    return all(case.protocol is None and said.startswith("python ") for said in other)


def judged(name: str, kept: float | None, now: float) -> tuple[bool, str]:
    """Whether a figure is within the tolerance, and the line that says so."""
    if kept is None:
        return False, f"not ok: {name}: {now:,.0f} instructions, and none in the baseline"
    ratio = now / kept
    holds = abs(ratio - 1) <= TOLERANCE
    mark = "ok" if holds else "not ok"
    more = f"{100 * (ratio - 1):+.1f} %, at most {100 * TOLERANCE:g} % more or less"
    return holds, f"{mark}: {name}: {now:,.0f} instructions, {kept:,.0f} in the baseline ({more})"


def renew() -> None:
    found: dict[str, Any] = {"versions": versions(), "instructions_a_request": {}}
    for case in CASES:
        figure = round(counted(case), 1)
        found["instructions_a_request"][case.name] = figure
        print(f"{case.name}: {figure:,.0f} instructions", flush=True)
    BASELINE.write_text(json.dumps(found, indent=1) + "\n")
    print(f"wrote {BASELINE.relative_to(ROOT)}")


def compare(kept: dict[str, Any]) -> int:
    other = differences(kept["versions"], versions())
    cases = [case for case in CASES if comparable(case, other)]
    failed = 0
    for case in cases:
        figure = counted(case)
        holds, line = judged(case.name, kept["instructions_a_request"].get(case.name), figure)
        failed += not holds
        print(line, flush=True)
    if len(cases) < len(CASES):
        left_out = f"{len(CASES) - len(cases)} of {len(CASES)} figures cannot be compared"
        print(f"{left_out} with bench/baseline.json: {'; '.join(other)}")
    if failed:
        print(f"{failed} of {len(cases)} are too far from bench/baseline.json. If that is meant:")
        print("script/bench --baseline, and a commit that says why")
        return 1
    return 0 if cases else SKIPPED


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench/instructions", description=__doc__.splitlines()[0])
    parser.add_argument("--renew", action="store_true", help="write bench/baseline.json anew")
    parsed = parser.parse_args()
    TMP.mkdir(parents=True, exist_ok=True)
    if parsed.renew:
        renew()
        return 0
    return compare(json.loads(BASELINE.read_text()))


if __name__ == "__main__":
    sys.exit(main())
