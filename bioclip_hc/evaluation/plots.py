"""The report's figures of results and of training, as SVG text."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from bioclip_hc.evaluation.figures import as_svg, axes_of, legend, short
from bioclip_hc.evaluation.intervals import Interval
from bioclip_hc.evaluation.theme import FAINT, INK, PAPER, PLACEHOLDER, RANK_COLORS, SERIES
from bioclip_hc.taxonomy import RANKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEGEND_LINE = 0.19  # inches, by which a figure grows with each name in its legend
BINS = 300  # points of one training curve
THRESHOLD_MARKERS = "D^sv*P"


@dataclass(frozen=True)
class Style:
    """How one system is drawn in every figure."""

    color: str
    marker: str
    dash: str = "-"


def styles(systems: Sequence[str], baselines: Sequence[str] = ()) -> dict[str, Style]:
    """A style per name: systems differ in colour and marker, baselines are dashed lines in ink."""
    markers, dashes = "os^Dv*", ("--", ":", "-.")
    drawn = {
        name: Style(PLACEHOLDER[f"series-{i % len(SERIES)}"], markers[i % len(markers)])
        for i, name in enumerate(systems)
    }
    return drawn | {name: Style(INK, "x+"[i % 2], dashes[i % len(dashes)]) for i, name in enumerate(baselines)}


def rank_styles() -> dict[str, Style]:
    """The ranks' own colours, for figures with a line per rank."""
    return {rank: Style(color, "o") for rank, color in zip(RANKS, RANK_COLORS, strict=True)}


# -- results ----------------------------------------------------------------------------------------------


@as_svg
def accuracy_by_rank(
    accuracy: Mapping[str, Sequence[float | None]],
    style: Mapping[str, Style],
    intervals: Mapping[str, Sequence[Interval]] | None = None,
    ranks: Sequence[str] = RANKS,
) -> Figure:
    """Dots of accuracy (0 to 1) over the ranks with their intervals, a line for each system.

    Args:
        intervals: name -> one per rank; baselines have none.
    """
    figure, axes = axes_of(height=2.55 + LEGEND_LINE * len(accuracy))
    known = [r for r in range(len(ranks)) if any(values[r] is not None for values in accuracy.values())]
    beside = min(0.09, 0.5 / max(len(accuracy), 1))  # systems stand side by side, or their intervals would merge
    for i, (name, values) in enumerate(accuracy.items()):
        x = [place + (i - (len(accuracy) - 1) / 2) * beside for place in range(len(known))]
        y, look = [_percent(values[r]) for r in known], style[name]
        axes.plot(x, y, look.dash, color=look.color, marker=look.marker, markersize=3.5, linewidth=1)
        around = (intervals or {}).get(name)
        if around:
            ends = [around[r] or (math.nan, math.nan) for r in known]
            axes.vlines(x, *zip(*((100 * low, 100 * high) for low, high in ends), strict=True), color=look.color)
    axes.set(ylim=(0, 103), ylabel="top-1 accuracy (%)")
    axes.set_xticks(range(len(known)), [ranks[r] for r in known], rotation=30)
    legend(figure, axes, list(accuracy))
    return figure


def _percent(value: float | None) -> float:
    return math.nan if value is None else 100 * value


@as_svg
def first_errors(counts: Mapping[str, Sequence[float]], ranks: Sequence[str] = RANKS) -> Figure:
    """Stacked bars, one per system: the share of images whose first error is at each rank, or that have none."""
    figure, axes = axes_of(height=0.95 + 0.42 * len(counts))
    share = np.array([np.asarray(c, float) / max(sum(c), 1) for c in counts.values()]) * 100
    left = np.zeros(len(counts))
    for column, color, label in zip(share.T, (*RANK_COLORS, FAINT), (*ranks, "all right"), strict=True):
        if column.any():
            axes.barh(
                range(len(counts)), column, 0.5, left, color=color, edgecolor=PAPER, linewidth=0.6, label=label
            )
        left += column
    for i, name in enumerate(counts):
        axes.annotate(short(name, 44), (0, i - 0.32), fontsize=8.5, va="bottom")
    axes.set(xlim=(0, 100), ylim=(len(counts) - 0.6, -0.85), xlabel="images (%)", yticks=[])
    axes.spines["left"].set_visible(False)
    axes.grid(False)
    figure.legend(loc="outside upper left", ncols=4, handlelength=1, columnspacing=1)
    return figure


@as_svg
def reliability(
    diagrams: Mapping[str, tuple[Sequence[float | None], Sequence[float | None]]], look: Mapping[str, Style]
) -> Figure:
    """How often answers are right against how probable they are said to be, as (stated, right) of each bin."""
    figure, axes = axes_of(height=2.6 + LEGEND_LINE * _lines(diagrams))
    for name, (stated, right) in diagrams.items():
        points = [(100 * p, 100 * a) for p, a in zip(stated, right, strict=True) if p is not None and a is not None]
        x, y = zip(*points, strict=True) if points else ((), ())
        drawn = look[name]
        axes.plot(x, y, color=drawn.color, marker=drawn.marker, markersize=3, linewidth=1.2)
    axes.set(xlim=(0, 101), ylim=(0, 101), xlabel="stated probability (%)", ylabel="right (%)")
    legend(figure, axes, list(diagrams), columns=_columns(diagrams))
    axes.plot([0, 100], [0, 100], ":", color=INK, linewidth=1)
    return figure


@as_svg
def risk_coverage(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    marks: Mapping[str, Sequence[tuple[str, float, float]]],
    look: Mapping[str, Style],
) -> Figure:
    """The share of wrong answers among those given, over the share given.

    Args:
        curves: name -> (coverage, risk); marks: name -> (label of a threshold, coverage, risk).
    """
    from matplotlib.lines import Line2D

    labels = list(dict.fromkeys(label for found in marks.values() for label, _, _ in found))
    figure, axes = axes_of(height=2.6 + LEGEND_LINE * _lines([*curves, *labels]))
    for name, (coverage, risk) in curves.items():
        axes.plot([100 * c for c in coverage], [100 * r for r in risk], color=look[name].color, linewidth=1.3)
    for name, found in marks.items():
        for label, named, wrong in found:
            shape = THRESHOLD_MARKERS[labels.index(label) % len(THRESHOLD_MARKERS)]
            axes.plot(100 * named, 100 * wrong, shape, color=look[name].color, markersize=5, markeredgecolor=INK)
    top = max([100 * r for _, risk in curves.values() for r in risk], default=0)
    axes.set(xlim=(0, 102), ylim=(0, min(103, max(5, 1.08 * top))), xlabel="named (%)", ylabel="wrong of those (%)")
    lines = axes.get_lines()[: len(curves)]
    shapes = [
        Line2D([], [], color=INK, marker=THRESHOLD_MARKERS[i % len(THRESHOLD_MARKERS)], linestyle="", markersize=5)
        for i in range(len(labels))
    ]
    names = [short(name, 44) for name in (*curves, *labels)]
    figure.legend([*lines, *shapes], names, loc="outside upper left", ncols=_columns(curves), columnspacing=1)
    return figure


def _columns(names: Iterable[str]) -> int:
    """Ranks are short, systems long."""
    return 3 if set(RANKS) & set(names) else 1


def _lines(names: Collection[str]) -> int:
    """Of the legend."""
    return -(-len(names) // _columns(names))


# -- training ---------------------------------------------------------------------------------------------


@as_svg
def loss_by_rank(
    step: ArrayLike, total: ArrayLike, per_rank: Mapping[str, ArrayLike], ranks: Sequence[str] = RANKS
) -> Figure:
    """The training loss over the steps: each rank's, and their total where the run has no ranks."""
    figure, axes = axes_of(height=2.7)
    for name, values in per_rank.items():
        axes.plot(*binned_means(step, values), color=RANK_COLORS[ranks.index(name)], linewidth=1.2)
    if not per_rank:
        axes.plot(*binned_means(step, total), color=INK, linewidth=1.2)
    axes.set(xlabel="step", ylabel="loss (nats)")
    axes.set_ylim(bottom=0)
    legend(figure, axes, list(per_rank) or ["total"], columns=4)
    return figure


@as_svg
def learning_rates(runs: Mapping[str, tuple[ArrayLike, ArrayLike]], style: Mapping[str, Style]) -> Figure:
    """The learning rate over the steps of each run, given as (step, rate)."""
    figure, axes = axes_of(height=2.3)
    for i, (name, (step, rate)) in enumerate(runs.items()):
        # equal schedules hide each other: later runs are thinner, so that both show
        axes.plot(*binned_means(step, rate), color=style[name].color, linewidth=max(1.0, 3.2 - 1.4 * i))
    axes.set(xlabel="step", ylabel="learning rate")
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    legend(figure, axes, list(runs))
    return figure


def binned_means(step: ArrayLike, value: ArrayLike, bins: int = BINS) -> tuple[np.ndarray, np.ndarray]:
    """Means of `step` and `value` over at most `bins` runs of records, those without a value left out."""
    x, y = np.asarray(step, float), np.asarray(value, float)
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if len(x) <= bins:
        return x, y
    start = np.linspace(0, len(x), bins, endpoint=False).astype(int)
    size = np.diff([*start, len(x)])
    return np.add.reduceat(x, start) / size, np.add.reduceat(y, start) / size
