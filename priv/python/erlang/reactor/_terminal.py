"""What the command line writes to standard error: log lines, and on a terminal a status line."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

_ERASE = "\r\x1b[2K"

STATUS_EVERY_S = 1.0


def has_status_line() -> bool:
    """Whether somebody watches."""
    return _is_terminal() and os.environ.get("TERM", "dumb") != "dumb"


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except ValueError:
        return False


def start_logging(level: str, several: bool = False) -> None:
    """Send records to standard error, unless somebody has set up `logging` already.

    :param several: other processes write there, too.
    """
    erase = _ERASE if has_status_line() else ""
    process = " %(process)d" if several else ""
    form = f"{erase}%(asctime)s{process} %(levelname)s %(message)s"
    logging.basicConfig(level=level.upper(), format=form)


def say(text: str) -> None:
    """Write a line to standard error; if nobody is left to read it, that is no reason to stop."""
    with suppress(OSError, ValueError):
        erase = _ERASE if has_status_line() else ""
        sys.stderr.write(f"{erase}{text}\n")
        sys.stderr.flush()


class StatusLine:
    """One line that is written again and again. Others who write begin at its start."""

    def __init__(self) -> None:
        self._before: Mapping[str, Any] = {}
        self._then = time.monotonic()

    def is_due(self, now: float) -> bool:
        """Whether it is old.

        :param now: of `time.monotonic`.
        """
        return now - self._then >= STATUS_EVERY_S

    def draw(self, stats: Mapping[str, Any], suffix: str = "") -> None:
        """Write it anew.

        :param stats: counters, those of several processes added up.
        """
        now = time.monotonic()
        seconds = max(now - self._then, 0.001)
        rates = [
            max(0, stats.get(name, 0) - self._before.get(name, 0)) / seconds
            for name in ("reads", "bytes_in", "bytes_out")
        ]
        self._before, self._then = dict(stats), now
        parts = [
            f"{stats.get('active', 0):,} open",
            f"{rates[0]:,.0f} reads/s",
            f"in {_size(rates[1])}/s",
            f"out {_size(rates[2])}/s",
            f"{stats.get('exceptions', 0):,} exceptions",
        ]
        text = " | ".join([*parts, suffix] if suffix else parts)
        with suppress(OSError, ValueError):
            # A terminal that does not know its width says 0.
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            sys.stderr.write(f"{_ERASE}{text[: max(width - 1, 10)]}\r")
            sys.stderr.flush()

    def erase(self) -> None:
        """Take it away."""
        with suppress(OSError, ValueError):
            sys.stderr.write(_ERASE)
            sys.stderr.flush()


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
