"""Draw a results file: python benchmarks/plot.py benchmarks/results/kernels-<GPU>.json or cpu-<CPU>-<threads>t.json

Of a GPU's kernels: time, time over ours and peak memory against the number of images, a column of panels for each
objective, as PNG and SVG beside the file. Of a CPU: the loss's time and peak memory against N with the exponents
fitted to them, one PNG each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from compare_kernels import median
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from records import OURS, Record, Row, read
from scaling import curves, fit

Value = Callable[[dict[str, Any], dict[str, Any]], float | None]  # of a row and of ours beside it
PANELS = [(mode, geometry) for geometry in ("euclidean", "lorentz") for mode in ("dense", "sorted", "all_ranks")]


def _ratio(row: dict[str, Any], ours: dict[str, Any]) -> float | None:
    theirs, own = median(row), median(ours)
    return None if theirs is None or own is None else theirs / own


FIGURES: dict[str, tuple[str, Value]] = {
    "time": ("forward + backward, ms", lambda row, ours: median(row)),
    "ratio": (f"time over {OURS}'s", _ratio),
    "memory": ("peak memory beyond inputs and gradients, MiB", lambda row, ours: row.get("peak_mib")),
}


def draw(content: dict[str, Any], label: str, value: Value, dtype: str = "fp16") -> Figure:
    """One figure: `value` of every way against the number of images, logarithmic, a panel for each objective."""
    rows = [
        row
        for row in content["rows"]
        if (row["op"], row["steps"], row["dtype"]) == ("level_infonce", "forward_backward", dtype)
    ]
    names = list(dict.fromkeys(row["way"] for row in rows))
    figure, axes = plt.subplots(2, 3, figsize=(14, 8), sharex=True, squeeze=False)
    for axis, (mode, geometry) in zip(axes.flat, PANELS, strict=True):
        here = [row for row in rows if (row["mode"], row["geometry"]) == (mode, geometry)]
        ours = {row["images"]: row for row in here if row["way"] == OURS}
        for way in (OURS, *(name for name in names if name != OURS)):
            points = [(row["images"], value(row, ours.get(row["images"], {}))) for row in here if row["way"] == way]
            points = sorted((n, y) for n, y in points if y)  # a logarithm has no 0
            if points:
                style = {"linewidth": 2.5, "color": "black"} if way == OURS else {"color": f"C{names.index(way)}"}
                axis.plot(*zip(*points, strict=True), marker="o", label=way, **style)
        axis.set_title(f"{mode.replace('_', ' ')}, {geometry}")
    _dress(axes, "images", label, "small")
    card = content["card"]
    smoke = "SMOKE RUN, TIMES MEAN NOTHING: " if content["smoke"] else ""
    figure.suptitle(
        f"{smoke}{card['gpu']}, {dtype}, torch {card['torch']}, triton {card['triton']}, {card['date']}"
    )
    figure.tight_layout()
    return figure


def draw_all(path: Path, dtype: str = "fp16") -> list[Path]:
    """Every figure of a results file, as PNG and SVG beside it; returns their paths."""
    content = json.loads(path.read_text(encoding="utf-8"))
    paths = []
    for name, (label, value) in FIGURES.items():
        figure = draw(content, label, value, dtype)
        for suffix in ("png", "svg"):
            paths.append(path.with_name(f"{path.stem}-{name}.{suffix}"))
            figure.savefig(paths[-1], dpi=120)
        plt.close(figure)
    return paths


def _dress(axes: Any, x: str, y: str, legend: str) -> None:
    """Logarithmic scales, a grid and a legend for each panel; names along the figure's edges."""
    for axis in axes.flat:
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=legend)
    for axis in axes[-1]:
        axis.set_xlabel(x)
    for axis in axes[:, 0]:
        axis.set_ylabel(y)


# -- the loss on a CPU ----------------------------------------------------------------------------------------

CPU_FIGURES: dict[str, tuple[str, Callable[[Row], float | None]]] = {
    "time": ("loss and gradients, s", lambda row: row.median),
    "memory": ("peak memory beyond inputs and gradients, MiB", lambda row: row.peak_mib),
}


def draw_against_n(record: Record, label: str, value: Callable[[Row], float | None]) -> Figure:
    """`value` of every way of the loss with its gradients against N, logarithmic, with the exponent of its fit."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 9), sharex=True, sharey=True)
    panels = [(title, mode) for title in ("CLIP", "Lorentz") for mode in ("dense", "sorted")]
    for axis, (title, mode) in zip(axes.flat, panels, strict=True):
        for i, (way, points) in enumerate(curves(record, title, mode, "forward + backward", value).items()):
            found = fit(points)
            power = "" if found is None else f": N^{found.exponent:.2f}"
            style = {"linewidth": 2.5, "color": "black"} if way == OURS else {"color": f"C{i}"}
            axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=way + power, **style)
        axis.set_title(f"{title}, {mode}")
    _dress(axes, "N", label, "x-small")
    card = record.card
    versions = f"torch {card['versions']['torch']}, {card['date']}"
    figure.suptitle(f"{card['cpu']}, {card['threads']} threads, fp32, D = 512, {versions}")
    figure.tight_layout()
    return figure


def draw_record(path: Path) -> list[Path]:
    """Both figures of a CPU's results file, as PNG beside it; returns their paths."""
    record = read(path)
    paths = []
    for name, (label, value) in CPU_FIGURES.items():
        figure = draw_against_n(record, label, value)
        paths.append(path.with_name(f"{path.stem}-{name}.png"))
        figure.savefig(paths[-1], dpi=90)
        plt.close(figure)
    return paths


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--dtype", default="fp16")
    options = parser.parse_args()
    of_a_cpu = options.file.name.startswith("cpu-")
    for drawn in draw_record(options.file) if of_a_cpu else draw_all(options.file, options.dtype):
        print(drawn)
