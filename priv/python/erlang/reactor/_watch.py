"""Which files of a program have changed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import TypeAlias

WATCH_EVERY_S = 0.25
"""Between two looks."""

_Mark: TypeAlias = tuple[int, int, int] | None
"""Time of change, size and inode of a file; None: it is not there."""


class Watch:
    """Looks at files now and then. An editor writes one in steps, and a checkout many: a change is
    told when a look has found nothing new any more."""

    def __init__(self) -> None:
        self._marks: dict[str, _Mark] = {}
        self._more: set[str] = set()
        self._changed: str | None = None
        self._since = time.time_ns()
        self._next_at = 0.0

    def add(self, files: Iterable[str]) -> None:
        """Look at these, too, until the next change: those of a program that did not come up."""
        self._more.update(files)

    def changed(self, files: Iterable[str], now: float) -> str | None:
        """One that has changed, if it is time to look and the change is over.

        :param files: what the program is made of.
        :param now: of `time.monotonic`.
        """
        if now < self._next_at:
            return None
        self._next_at = now + WATCH_EVERY_S
        looked_at = time.time_ns()
        marks = {file: _mark(file) for file in {*files, *self._more, *self._marks}}
        news = [file for file, mark in marks.items() if self._is_news(file, mark, looked_at)]
        self._marks = marks
        if news:
            self._changed = news[0]
            return None
        told, self._changed = self._changed, None
        if told is not None:
            self._since = looked_at
            self._more.clear()
            self._marks.clear()
        return told

    def _is_news(self, file: str, mark: _Mark, now: int) -> bool:
        if file in self._marks:
            return mark != self._marks[file]
        # Not seen before: it may have changed after the program read it. A time that is still to
        # come says nothing.
        return mark is not None and self._since < mark[0] <= now


def _mark(file: str) -> _Mark:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
