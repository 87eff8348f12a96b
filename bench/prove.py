"""Runs the programs of proofs.py and says which bounds hold. See README.md.

Called by script/prove, which prepares what is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from machine import circumstances
from peers import ROOT, TMP
from proofs import PROGRAMS, Proof

RESULTS = ROOT / "bench" / "results"

# As in run.py: more of a core than this, and what was missed may be the fault of other programs.
DISTURBED_PERCENT = 15
REPEATS = 2


def arguments() -> tuple[bool, list[str]]:
    """Whether it has to be quick, and which programs."""
    names = ", ".join(PROGRAMS)
    parser = argparse.ArgumentParser(prog="script/prove", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="seconds instead of minutes; judges counts, not times"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default all: {names}")
    parsed = parser.parse_args()
    for unknown in set(parsed.names) - set(PROGRAMS):
        parser.error(f"no {unknown!r}; there are {names}")
    return parsed.quick, parsed.names or list(PROGRAMS)


def prove(name: str, quick: bool) -> dict[str, Any]:
    """Runs one program; again, twice at most, when nothing but times were missed while others were
    busy."""
    for attempt in range(REPEATS + 1):
        found = run(name, quick)
        missed = [answer for answer in found["answers"] if answer["holds"] is False]
        only_times = missed and all(answer["timed"] for answer in missed)
        if not only_times or found["others_core_percent"] <= DISTURBED_PERCENT:
            break
        if attempt < REPEATS:
            print("others were busy: once more", flush=True)
    return found | {"repeats": attempt}


def run(name: str, quick: bool) -> dict[str, Any]:
    """Runs one program. One that cannot do its work has failed."""
    print(f"\n{name}: {PROGRAMS[name].__doc__}", flush=True)
    proof = Proof(name, quick)
    began, ours, all_cpu = time.monotonic(), our_cpu(), machine_cpu()
    try:
        PROGRAMS[name](proof)
    except (RuntimeError, OSError) as error:
        proof.is_("error", " ".join(str(error).split())[:1000], "none")
    took = time.monotonic() - began
    others = (machine_cpu() - all_cpu) - (our_cpu() - ours)
    return {
        "name": name,
        "title": PROGRAMS[name].__doc__,
        "took_seconds": round(took),
        "others_core_percent": round(100 * others / took),
        "answers": [asdict(answer) for answer in proof.answers],
    }


def our_cpu() -> float:
    """CPU seconds of this process and of all that it has started, which have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def machine_cpu() -> float:
    """CPU seconds of the whole machine; guest time is in user already."""
    user, nice, system, _, _, *rest = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    return sum(map(int, (user, nice, system, *rest))) / os.sysconf("SC_CLK_TCK")


def render(results: dict[str, Any]) -> str:
    """proof.md."""
    parts = [
        "# What is promised, and what was measured\n",
        f"- {results['date']}, revision {results['revision']}",
        f"- {results['machine']}; {results['kernel']}",
        f"- Python {results['python']}, OTP {results['otp']}, {results['rustc']}",
        "- client and server share the machine, over loopback; `others` is what other programs "
        "took of a core meanwhile: times from a busy machine are worth little, and a program that "
        "missed nothing but times was run again, twice at most\n",
    ]
    for program in results["programs"]:
        parts.append(f"## {program['title']}\n")
        others = f"others {program['others_core_percent']} %, {program['repeats']} repeats"
        parts.append(f"`script/prove {program['name']}`, {program['took_seconds']} s, {others}\n")
        parts.append("| what | measured | bound | holds |\n| --- | --- | --- | --- |")
        for answer in program["answers"]:
            what = answer["what"].partition(": ")[2]
            holds = {True: "yes", False: "**no**", None: ""}[answer["holds"]]
            parts.append(f"| {what} | {answer['measured']} | {answer['bound']} | {holds} |")
        parts.append("")
    return "\n".join(parts)


def main() -> int:
    quick, names = arguments()
    TMP.mkdir(parents=True, exist_ok=True)
    results = {} if quick else circumstances()
    programs = [prove(name, quick) for name in names]
    judged = [answer["holds"] for program in programs for answer in program["answers"]]
    if not quick and names == list(PROGRAMS):
        results["programs"] = programs
        (RESULTS / "proof.json").write_text(json.dumps(results, indent=1) + "\n")
        (RESULTS / "proof.md").write_text(render(results))
        print("wrote bench/results/proof.md, proof.json")
    print(
        f"\n{judged.count(True)} hold, {judged.count(False)} do not, {judged.count(None)} told only"
    )
    return 1 if False in judged else 0


if __name__ == "__main__":
    sys.exit(main())
