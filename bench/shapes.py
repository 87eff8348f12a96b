"""The shapes of load, and the parts about memory and the start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "ALONE",
    "BESIDE_IDLE",
    "CHURN",
    "CONNECTIONS",
    "DOWNLOAD",
    "GRID",
    "PARTS",
    "PINNED",
    "SHAPES",
    "SIZES",
    "UPLOAD",
    "Shape",
    "grid",
]


@dataclass(frozen=True, slots=True)
class Shape:
    """One kind of load.

    options: those of the load client, or of wrk where the protocol is HTTP.
    protocol: what the servers speak meanwhile.
    unit: what is counted.
    cores: "one" for server and client on the same core, "two" for one each; None: anywhere.
    quick: whether a quick run has it.
    """

    name: str
    title: str
    options: tuple[str, ...]
    protocol: Literal["echo", "echo-2-contexts", "echo-4-contexts", "flow", "http", "h11"] = "echo"
    unit: str = "request"
    cores: Literal["one", "two"] | None = None
    quick: bool = False

    @property
    def is_http(self) -> bool:
        return self.protocol in ("http", "h11")


CONNECTIONS = (1, 50, 500, 5000)
SIZES = {64: "64 B", 1024: "1 KiB", 10240: "10 KiB", 102400: "100 KiB"}
_QUICK = {(1, 64), (50, 64), (50, 10240), (500, 64), (500, 10240)}


def grid(connections: int, size: int) -> Shape:
    """So many busy connections with messages of this size."""
    return Shape(
        f"{connections}x{SIZES[size].replace(' ', '')}",
        f"{connections:,} connection{'s' if connections > 1 else ''} x {SIZES[size]}",
        ("--connections", str(connections), "--size", str(size)),
        quick=(connections, size) in _QUICK,
    )


GRID = tuple(grid(connections, size) for connections in CONNECTIONS for size in SIZES)
_ONE = GRID[0]
PINNED = (
    Shape("1x64B-one-core", "the same, all on one core", _ONE.options, cores="one"),
    Shape("1x64B-two-cores", "the same, a core each", _ONE.options, cores="two"),
)
ALONE = Shape("20x64B", "20 connections x 64 B", ("--connections", "20", "--size", "64"))
BESIDE_IDLE = Shape(
    "20+5000idle", "20 busy x 64 B beside 5,000 idle", (*ALONE.options, "--idle", "5000")
)
PIPELINED = Shape(
    "pipelined",
    "50 connections x 64 B, 16 under way on each",
    ("--pipeline", "16", "--connections", "50", "--size", "64"),
    quick=True,
)
_FIFTY = grid(50, 64).options
CONTEXTS = (
    Shape("50x64B-2-contexts", "50 x 64 B on two contexts", _FIFTY, protocol="echo-2-contexts"),
    Shape("50x64B-4-contexts", "50 x 64 B on four contexts", _FIFTY, protocol="echo-4-contexts"),
)
UPLOAD = Shape(
    "upload",
    "upload over 4 connections",
    ("--upload", "--connections", "4"),
    protocol="flow",
    unit="MiB",
    quick=True,
)
DOWNLOAD = Shape(
    "download",
    "download over 4 connections",
    ("--download", "--connections", "4"),
    protocol="flow",
    unit="MiB",
    quick=True,
)
CHURN = Shape(
    "churn",
    "connections opened and closed, 20 at a time, one echo each",
    ("--churn", "--connections", "20", "--size", "64"),
    unit="connection",
    quick=True,
)
HTTP = (
    Shape(
        "http1.0",
        "HTTP/1.0 by hand, a connection a request, 50 at a time, wrk",
        ("-c50",),
        protocol="http",
        quick=True,
    ),
    Shape(
        "http1.1-h11",
        "HTTP/1.1 with h11, 50 connections that stay, wrk",
        ("-c50",),
        protocol="h11",
        quick=True,
    ),
)
SHAPES = (
    _ONE,
    *PINNED,
    *GRID[1:],
    ALONE,
    BESIDE_IDLE,
    PIPELINED,
    *CONTEXTS,
    UPLOAD,
    DOWNLOAD,
    CHURN,
    *HTTP,
)

PARTS = ("first-byte", "idle-memory", "leak")
