"""echo.svg and echo.png: requests a second and CPU per request as ratios to uvloop."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from peers import PEERS, REFERENCE
from shapes import SHAPES
from tables import ratios

__all__ = ["draw"]

PANELS = (
    ("per_second", f"requests (or connections) a second, {REFERENCE} = 1; more is better"),
    ("cpu_us", f"CPU of the server per request, {REFERENCE} = 1, doubling scale; less is better"),
)
# Whoever needs ten times the CPU would otherwise press all others flat.
DOUBLING = "cpu_us"
COLOURS = {
    "inherited": "#0b6e4f",
    "letter": "#6bbf59",
    "asyncio": "#3b6fb6",
    "gen_tcp": "#a23b72",
    "epoll": "#8a8a8a",
}


def draw(results: dict[str, Any], folder: Path) -> None:
    """Writes both files; bars are medians over the rounds, whiskers the least and the most."""
    # Not plain imports: this file is type-checked where matplotlib is not installed.
    importlib.import_module("matplotlib").use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    pyplot.rcParams["svg.hashsalt"] = "echo"
    figure, axes = pyplot.subplots(len(PANELS), 1, figsize=(13, 8), layout="constrained")
    for axis, (figure_name, title) in zip(axes, PANELS, strict=True):
        _panel(axis, results, figure_name)
        axis.set_title(title, fontsize=10, loc="left")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.suptitle(
        f"Echo beside {REFERENCE} in the same round; {results['plan']['rounds']} round(s); "
        f"{results['machine']}; revision {results['revision']}",
        fontsize=9,
    )
    figure.savefig(folder / "echo.svg", metadata={"Date": None, "Creator": None})
    figure.savefig(folder / "echo.png", dpi=110)
    pyplot.close(figure)


def _panel(axis: Any, results: dict[str, Any], figure_name: str) -> None:
    measured = {run["shape"] for run in results["runs"]}
    shapes = [shape.name for shape in SHAPES if shape.name in measured]
    peers = [peer for peer in PEERS if peer.name in COLOURS]
    width = 0.8 / len(peers)
    for index, peer in enumerate(peers):
        label: str | None = peer.title
        for place, shape in enumerate(shapes):
            found = ratios(results, shape, peer.name, figure_name)
            if not found:
                continue
            middle = found.median
            axis.bar(
                place + (index - (len(peers) - 1) / 2) * width,
                middle,
                width,
                yerr=[[middle - found.least], [found.most - middle]],
                error_kw={"elinewidth": 0.8},
                color=COLOURS[peer.name],
                label=label,
            )
            label = None
    axis.axhline(1.0, color="black", linewidth=1)
    axis.set_xticks(range(len(shapes)), shapes, fontsize=8)
    if figure_name == DOUBLING:
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter("{x:g}")
    axis.margins(y=0.1)
    axis.grid(axis="y", alpha=0.3)
