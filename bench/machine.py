"""Everything one has to know of a machine to compare its figures with others."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from peers import ROOT

__all__ = ["circumstances"]


def circumstances() -> dict[str, Any]:
    """Date, revision, machine, versions, and how busy it is before the run."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "revision": revision(),
        "machine": machine(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "uvloop": metadata.version("uvloop"),
        "rloop": metadata.version("rloop"),
        "cc": said_by("cc", "-dumpfullversion"),
        "otp": otp_version(),
        "rustc": said_by("rustc", "--version"),
        "load_average_before": os.getloadavg()[0],
    }


def said_by(*command: str) -> str:
    """What a program prints, one line; it is an error when it cannot run."""
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return " ".join(done.stdout.split())


def otp_version() -> str:
    release = said_by(
        "erl", "-noinput", "-eval", "io:put_chars(erlang:system_info(otp_release)), halt()."
    )
    erts = said_by("erl", "-noinput", "-eval", "io:put_chars(erlang:system_info(version)), halt().")
    return f"{release} (erts {erts})"


def machine() -> str:
    cpu = Path("/proc/cpuinfo").read_text()
    models = [line.split(":")[1].strip() for line in cpu.splitlines() if "model name" in line]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    model = models[0] if models else platform.machine()
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB"


def revision() -> str:
    """The commit, marked when files differ from it; the results of earlier runs do not count."""
    changed = said_by("git", "status", "--porcelain", "-uno", "--", ".", ":!bench/results")
    return said_by("git", "rev-parse", "--short=10", "HEAD") + ("-dirty" if changed else "")
