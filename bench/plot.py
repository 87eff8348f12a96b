"""The plots: against message size, against connections, and the loads of other kinds."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from peers import PEERS, REFERENCE, Peer
from shapes import CONNECTIONS, GRID, SHAPES, SIZES, Shape, grid
from tables import figures, ratios

__all__ = ["draw"]

Results = dict[str, Any]

FIGURES = (
    ("per_second", "requests a second"),
    ("cpu_us", "CPU, µs a request"),
    ("p50_us", "p50, µs"),
    ("p99_us", "p99, µs"),
    ("p999_us", "p99.9, µs"),
)
BARS = (
    ("per_second", f"requests, connections or MiB a second, {REFERENCE} = 1; more is better"),
    ("cpu_us", f"CPU of the server for each, {REFERENCE} = 1; less is better"),
)
# A tenth more or less is to be seen: bars of gen_tcp leave the picture.
NEAR = (0.5, 2.0)
LINE_TICKS = {"subs": (1, 2, 5), "numticks": 20}
BAR_TICKS = {"base": 2, "subs": (1, 1.25, 1.5), "numticks": 20}
# Ours in greens, those they are compared with in other colours, the limit in grey.
COLOURS = {
    "listener": "#00441b",
    "inherited": "#1b8a4b",
    "letter": "#8fd08f",
    "plain": "#00a3a3",
    "rust": "#b7410e",
    "uvloop": "#d4a017",
    "asyncio": "#3b6fb6",
    "rloop": "#7f7fff",
    "gen_tcp": "#a23b72",
    "gen_tcp_once": "#e08dc0",
    "epoll": "#707070",
}


def draw(results: Results, folder: Path) -> list[str]:
    """Draws what was measured, as SVG and PNG, and returns the names of the files. Lines and bars
    are medians over the rounds; whiskers and bands the least and the most."""
    # Not plain imports: this file is type-checked where matplotlib is not installed.
    importlib.import_module("matplotlib").use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    ticks = importlib.import_module("matplotlib.ticker").LogLocator
    pyplot.rcParams["svg.hashsalt"] = "echo"
    measured = {run["shape"] for run in results["runs"]}
    drawn = []
    sizes = [[grid(connections, size) for size in SIZES] for connections in CONNECTIONS]
    connections = [[grid(number, size) for number in CONNECTIONS] for size in SIZES]
    whole = [shape for shape in GRID if shape.name in measured]
    others = [shape for shape in SHAPES if shape not in GRID and shape.name in measured]
    pictures = {
        "by-size": _lines(pyplot, results, sizes, SIZES, "size of a message"),
        "by-connections": _lines(
            pyplot, results, connections, {n: f"{n:,}" for n in CONNECTIONS}, "connections"
        ),
        "ratios": _bars(pyplot, results, whole, NEAR) if whole else None,
        "others": _bars(pyplot, results, others) if others else None,
    }
    for name, figure in pictures.items():
        if figure is None:
            # That of an earlier run would stand beside the tables of this one.
            for ending in ("svg", "png"):
                (folder / f"{name}.{ending}").unlink(missing_ok=True)
            continue
        bars = name in ("ratios", "others")
        for axis in figure.axes:
            # With tens alone there may be one or none, and most differences are smaller.
            axis.yaxis.set_major_locator(ticks(**(BAR_TICKS if bars else LINE_TICKS)))
            axis.yaxis.set_major_formatter("{x:g}" if bars else "{x:,.0f}")
        figure.suptitle(
            f"median, least and most of {results['plan']['rounds']} round(s); "
            f"{results['machine']}; revision {results['revision']}",
            fontsize=9,
        )
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
        figure.savefig(folder / f"{name}.png", dpi=80)
        pyplot.close(figure)
        drawn += [f"{name}.svg", f"{name}.png"]
    return drawn


def _lines(
    pyplot: Any, results: Results, columns: list[list[Shape]], places: dict[int, str], across: str
) -> Any:
    """A column for each list of loads, a row for each figure; None when there is nothing."""
    measured = {run["shape"] for run in results["runs"]}
    columns = [column for column in columns if sum(shape.name in measured for shape in column) > 1]
    if not columns:
        return None
    size = (4.2 * len(columns), 3.0 * len(FIGURES))
    figure, axes = pyplot.subplots(
        len(FIGURES), len(columns), figsize=size, layout="constrained", squeeze=False, sharey="row"
    )
    for row, (name, title) in enumerate(FIGURES):
        for axis, column in zip(axes[row], columns, strict=True):
            for peer in PEERS:
                _line(axis, results, column, list(places), peer, name)
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_xticks(list(places), list(places.values()), fontsize=8)
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            axis.tick_params("y", labelsize=7)
        axes[row][0].set_ylabel(title, fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel(across, fontsize=9)
    for axis, column in zip(axes[0], columns, strict=True):
        first, last = column[0].title, column[-1].title
        axis.set_title(_common(first, last), fontsize=10, loc="left")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    return figure


def _common(first: str, last: str) -> str:
    """What two loads have in common: the connections or the size."""
    for one, other in zip(first.split(" x "), last.split(" x "), strict=True):
        if one == other:
            return one
    return ""


def _line(
    axis: Any, results: Results, column: list[Shape], places: list[int], peer: Peer, name: str
) -> None:
    points = [
        (place, found)
        for place, shape in zip(places, column, strict=True)
        if (found := figures(results, shape.name, peer.name, name))
    ]
    if points:
        at = [place for place, _ in points]
        axis.plot(
            at,
            [found.median for _, found in points],
            color=COLOURS[peer.name],
            marker="o",
            markersize=3,
            linewidth=1.2,
            label=peer.title,
        )
        least = [found.least for _, found in points]
        axis.fill_between(
            at, least, [found.most for _, found in points], color=COLOURS[peer.name], alpha=0.12
        )


def _bars(
    pyplot: Any, results: Results, shapes: list[Shape], limits: tuple[float, float] | None = None
) -> Any:
    """Loads as ratios, cut off at the limits."""
    figure, axes = pyplot.subplots(len(BARS), 1, figsize=(14, 8), layout="constrained")
    for axis, (name, title) in zip(axes, BARS, strict=True):
        _panel(axis, results, shapes, name)
        axis.set_title(title, fontsize=10, loc="left")
        if limits is not None:
            axis.set_ylim(limits)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    return figure


def _panel(axis: Any, results: Results, shapes: list[Shape], name: str) -> None:
    width = 0.8 / len(PEERS)
    for index, peer in enumerate(PEERS):
        label: str | None = peer.title
        for place, shape in enumerate(shapes):
            found = ratios(results, shape.name, peer.name, name)
            if not found:
                continue
            middle = found.median
            axis.bar(
                place + (index - (len(PEERS) - 1) / 2) * width,
                middle,
                width,
                yerr=[[middle - found.least], [found.most - middle]],
                error_kw={"elinewidth": 0.8},
                color=COLOURS[peer.name],
                label=label,
            )
            label = None
    axis.axhline(1.0, color="black", linewidth=1)
    axis.set_xticks(range(len(shapes)), [shape.name for shape in shapes], fontsize=8)
    # Whoever needs ten times as much would otherwise press all others flat.
    axis.set_yscale("log", base=2)
    axis.tick_params("y", labelsize=7)
    axis.grid(axis="y", alpha=0.3)
