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
from typing import Any

from machine import circumstances
from peers import ROOT, TMP
from proofs import PROGRAMS, Proof

RESULTS = ROOT / "bench" / "results"


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
    """Runs one program. One that cannot do its work has failed."""
    print(f"\n{name}: {PROGRAMS[name].__doc__}", flush=True)
    proof = Proof(name, quick)
    began, load = time.monotonic(), os.getloadavg()[0]
    try:
        PROGRAMS[name](proof)
    except (RuntimeError, OSError) as error:
        proof.is_("error", " ".join(str(error).split())[:1000], "none")
    return {
        "name": name,
        "title": PROGRAMS[name].__doc__,
        "took_seconds": round(time.monotonic() - began),
        "load_average_before": load,
        "load_average_after": os.getloadavg()[0],
        "answers": [asdict(answer) for answer in proof.answers],
    }


def render(results: dict[str, Any]) -> str:
    """proof.md."""
    parts = [
        "# What is promised, and what was measured\n",
        f"- {results['date']}, revision {results['revision']}",
        f"- {results['machine']}; {results['kernel']}",
        f"- Python {results['python']}, OTP {results['otp']}, {results['rustc']}",
        "- client and server share the machine, over loopback; the load average beside each "
        "program is that before and after it\n",
    ]
    for program in results["programs"]:
        loads = f"{program['load_average_before']:.1f}, {program['load_average_after']:.1f}"
        parts.append(f"## {program['title']}\n")
        parts.append(
            f"`script/prove {program['name']}`, {program['took_seconds']} s, load {loads}\n"
        )
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
