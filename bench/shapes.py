"""The shapes of load, and the two parts about memory."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ALONE", "BESIDE_IDLE", "CHURN", "CROWD", "GRID", "PARTS", "SHAPES", "Shape"]


@dataclass(frozen=True, slots=True)
class Shape:
    """One kind of load; options are those of the load client."""

    name: str
    title: str
    options: tuple[str, ...]


def _busy(connections: int, size: int, size_title: str) -> Shape:
    return Shape(
        f"{connections}x{size_title.replace(' ', '')}",
        f"{connections:,} connections x {size_title}",
        ("--connections", str(connections), "--size", str(size)),
    )


GRID = tuple(
    _busy(connections, size, title)
    for connections in (20, 50, 500)
    for size, title in ((64, "64 B"), (10240, "10 KiB"))
)
ALONE = GRID[0]
BESIDE_IDLE = Shape(
    "20+4000idle", "20 busy x 64 B beside 4,000 idle", (*ALONE.options, "--idle", "4000")
)
CROWD = _busy(3000, 64, "64 B")
CHURN = Shape(
    "churn",
    "connections opened and closed, 20 at a time, one echo each",
    ("--churn", "--connections", "20", "--size", "64"),
)
SHAPES = (ALONE, BESIDE_IDLE, *GRID[1:], CROWD, CHURN)

PARTS = ("idle-memory", "leak")
