"""What is done, and how long the rest will take."""

from __future__ import annotations

import shutil
import sys
import time

__all__ = ["Progress"]

_BAR = 30


class Progress:
    """A line for each thing done; on a terminal a bar below them, elsewhere the share on each."""

    __slots__ = ("_begin", "_done", "_terminal", "_total")

    def __init__(self, total: float) -> None:
        """total: expected cost of everything, in seconds."""
        self._begin = time.monotonic()
        self._done = 0.0
        self._total = total
        self._terminal = sys.stdout.isatty()

    def line(self, cost: float, text: str) -> None:
        """Reports something done that was expected to take `cost` seconds."""
        self._done += cost
        pace = (time.monotonic() - self._begin) / self._done
        left = max(0, round(pace * (self._total - self._done)))
        share = min(1.0, self._done / self._total)
        told = f"{100 * share:3.0f} %, {left // 60}:{left % 60:02} left"
        if not self._terminal:
            print(f"[{told}] {text}", flush=True)
            return
        full = round(_BAR * share)
        width = shutil.get_terminal_size().columns
        bar = f"[{'#' * full}{'.' * (_BAR - full)}] {told}"
        print(f"\r\x1b[K{text[: width - 1]}\n{bar[: width - 1]}", end="", flush=True)

    def end(self) -> None:
        """Nothing more is to be done."""
        if self._terminal:
            print(flush=True)
