"""The report's figures, as SVG text.

# T taxa, D embed, R ranks

Figures are drawn once and read on light and dark pages: what is drawn in a placeholder colour becomes a CSS
variable of the page (`THEME` gives both palettes, which stay apart for colour-blind readers). Text stays text,
the background is transparent, and a figure is as wide as a telephone, so that letters keep their size there.
Names come from data: none is read as mathematics or markup.
"""

from __future__ import annotations

import functools
import io
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np
from numpy.typing import ArrayLike

from bioclip_hc.taxonomy import RANKS, Taxonomy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")

WIDTH = 3.75  # inches, 360 CSS pixels
ARC_POINTS = 12  # straight pieces of one drawn geodesic, plus one
BINS = 300  # points of one training curve
MAX_DRAWN = 4000  # taxa in one disk; more would be a blot, and megabytes of SVG

# variable: (light page, dark page). Okabe and Ito's hues, darkened or lightened; ranks run along viridis.
_SERIES = [
    ("#0072b2", "#56b4e9"),
    ("#c25400", "#f5a05a"),
    ("#00805e", "#2fc79b"),
    ("#a8437f", "#e59cc6"),
    ("#806600", "#f0e442"),
    ("#5450a8", "#b3b0f5"),
]
_RANKS = list(
    zip(
        ["#440154", "#472c7a", "#3b518b", "#2d718e", "#218f8d", "#25ac82", "#58c765"],
        ["#355f8d", "#287c8e", "#1f988b", "#2fb47c", "#67cc5c", "#b2dd2d", "#fde725"],
        strict=True,
    )
)
THEME: dict[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#15171a"),
    "soft": ("#f3f4f6", "#22252a"),
    "ink": ("#1c1f23", "#e6e6e3"),
    "faint": ("#b9bdc3", "#565b63"),
    **{f"series-{i}": pair for i, pair in enumerate(_SERIES)},
    **{f"rank-{i}": pair for i, pair in enumerate(_RANKS)},
}
_PLACEHOLDER = {name: f"#0000{i + 1:02x}" for i, name in enumerate(THEME)}

PAPER, INK, FAINT = (_PLACEHOLDER[name] for name in ("paper", "ink", "faint"))
RANK_COLORS = tuple(_PLACEHOLDER[f"rank-{i}"] for i in range(len(RANKS)))

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bioclip_hc",
    "font.family": "sans-serif",
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


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
        name: Style(_PLACEHOLDER[f"series-{i % len(_SERIES)}"], markers[i % len(markers)])
        for i, name in enumerate(systems)
    }
    return drawn | {name: Style(INK, "x+"[i % 2], dashes[i % len(dashes)]) for i, name in enumerate(baselines)}


def theme_css() -> str:
    """The colours as CSS variables, for both colour schemes."""
    light, dark = (";".join(f"--{name}:{pair[i]}" for name, pair in THEME.items()) for i in (0, 1))
    return f":root{{{light}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def as_svg(draw: Callable[P, Figure]) -> Callable[P, str]:
    """Let a function that draws a Figure return it as SVG text instead."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> str:
        try:
            import matplotlib
        except ImportError:
            raise ImportError("the report's figures need matplotlib: pip install bioclip_hc[report]") from None
        buffer = io.StringIO()
        with matplotlib.rc_context(_STYLE):
            draw(*args, **kwargs).savefig(
                buffer,
                format="svg",
                transparent=True,
                metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
            )
        return _inline(buffer.getvalue())

    return drawn


def _inline(svg: str) -> str:
    """An SVG document made fit to stand in a page: no prologue, own ids, themed colours, no fixed size."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\s(width|height)="[^"]*pt"', "", svg, count=2)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>f{zlib.crc32(svg.encode()):08x}-", svg)
    for name, placeholder in _PLACEHOLDER.items():
        svg = svg.replace(placeholder, f"var(--{name},{THEME[name][0]})")
    return svg.strip()


# -- results ----------------------------------------------------------------------------------------------


@as_svg
def accuracy_by_rank(
    accuracy: Mapping[str, Sequence[float | None]], style: Mapping[str, Style], ranks: Sequence[str] = RANKS
) -> Figure:
    """Lines of accuracy (0 to 1) over the ranks, one per system."""
    figure, axes = _axes(height=3.2)
    for name, values in accuracy.items():
        percent = [math.nan if v is None else 100 * v for v in values]
        look = style[name]
        axes.plot(percent, look.dash, color=look.color, marker=look.marker, markersize=4, linewidth=1.4)
    axes.set(ylim=(0, 103), ylabel="top-1 accuracy (%)")
    axes.set_xticks(range(len(ranks)), ranks, rotation=30)
    _legend(figure, axes, list(accuracy))
    return figure


@as_svg
def first_errors(counts: Mapping[str, Sequence[float]], ranks: Sequence[str] = RANKS) -> Figure:
    """Stacked bars, one per system: the share of images whose first error is at each rank, or that have none."""
    figure, axes = _axes(height=0.95 + 0.42 * len(counts))
    share = np.array([np.asarray(c, float) / max(sum(c), 1) for c in counts.values()]) * 100
    left = np.zeros(len(counts))
    for column, color, label in zip(share.T, (*RANK_COLORS, FAINT), (*ranks, "all right"), strict=True):
        if column.any():
            axes.barh(
                range(len(counts)), column, 0.5, left, color=color, edgecolor=PAPER, linewidth=0.6, label=label
            )
        left += column
    for i, name in enumerate(counts):
        axes.annotate(_short(name, 44), (0, i - 0.32), fontsize=8.5, va="bottom")
    axes.set(xlim=(0, 100), ylim=(len(counts) - 0.6, -0.85), xlabel="images (%)", yticks=[])
    axes.spines["left"].set_visible(False)
    axes.grid(False)
    figure.legend(loc="outside upper left", ncols=4, handlelength=1, columnspacing=1)
    return figure


# -- training ---------------------------------------------------------------------------------------------


@as_svg
def loss_by_rank(
    step: ArrayLike, total: ArrayLike, per_rank: Mapping[str, ArrayLike], ranks: Sequence[str] = RANKS
) -> Figure:
    """The training loss over the steps: each rank's, and their total where the run has no ranks."""
    figure, axes = _axes(height=2.7)
    for name, values in per_rank.items():
        axes.plot(*binned_means(step, values), color=RANK_COLORS[ranks.index(name)], linewidth=1.2)
    if not per_rank:
        axes.plot(*binned_means(step, total), color=INK, linewidth=1.2)
    axes.set(xlabel="step", ylabel="loss (nats)")
    axes.set_ylim(bottom=0)
    _legend(figure, axes, list(per_rank) or ["total"], columns=4)
    return figure


@as_svg
def learning_rates(runs: Mapping[str, tuple[ArrayLike, ArrayLike]], style: Mapping[str, Style]) -> Figure:
    """The learning rate over the steps of each run, given as (step, rate)."""
    figure, axes = _axes(height=2.3)
    for i, (name, (step, rate)) in enumerate(runs.items()):
        # equal schedules hide each other: later runs are thinner, so that both show
        axes.plot(*binned_means(step, rate), color=style[name].color, linewidth=max(1.0, 3.2 - 1.4 * i))
    axes.set(xlabel="step", ylabel="learning rate")
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    _legend(figure, axes, list(runs))
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


# -- embedding --------------------------------------------------------------------------------------------


def poincare_coordinates(tangent: ArrayLike, curv: float = 1.0) -> np.ndarray:
    """Where tangent vectors at the origin fall in a picture of the Poincare disk.

    The radius is exact: |exp_map0(v)| in the ball of curvature -c is tanh(sqrt(c) |v| / 2) in units of the
    ball's radius 1/sqrt(c). The angle is that of the first two principal components of the directions v/|v|
    (centred, so that a common direction of all embeddings does not swallow the first); the sign of each
    component is fixed by its largest entry.

    Args:
        tangent: (T, D) tangent vectors.
        curv: c > 0.

    Returns:
        (T, 2) float64 coordinates in the unit disk.
    """
    v = np.asarray(tangent, dtype=np.float64)
    if v.ndim != 2 or v.shape[1] < 2 or not np.isfinite(v).all():
        raise ValueError(f"tangent must be a finite (T, D) array with D >= 2, got shape {v.shape}")
    if not curv > 0:
        raise ValueError(f"curv must be positive, got {curv}")
    length = np.linalg.norm(v, axis=1, keepdims=True)
    unit = v / np.where(length > 0, length, 1.0)
    unit = unit - unit.mean(axis=0)
    _, vectors = np.linalg.eigh(unit.T @ unit)
    plane = vectors[:, :-3:-1]  # eigenvalues ascend
    plane = plane * np.sign(plane[np.abs(plane).argmax(axis=0), [0, 1]])
    x, y = (unit @ plane).T
    angle = np.arctan2(y, x)
    return np.tanh(math.sqrt(curv) * length / 2) * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def geodesics(start: np.ndarray, end: np.ndarray, points: int = ARC_POINTS + 1) -> np.ndarray:
    """(E, points, 2): arcs of the disk's geodesics between pairs of points (E, 2).

    A Moebius transformation takes each start to the centre, where geodesics are straight; its inverse takes
    the straight line back.
    """
    a, b = (p[:, :1] + 1j * p[:, 1:] for p in (start, end))
    a, b = (z / np.maximum(1, np.abs(z) / (1 - 1e-9)) for z in (a, b))  # the boundary is infinitely far
    w = (b - a) / (1 - a.conj() * b)
    radius = np.abs(w)
    along = np.tanh(np.linspace(0, 1, points) * np.arctanh(np.minimum(radius, 1 - 1e-12)))
    line = along * w / np.where(radius > 0, radius, 1)
    arc = (line + a) / (1 + a.conj() * line)
    return np.stack([arc.real, arc.imag], axis=-1)


def drawn_taxa(taxonomy: Taxonomy) -> np.ndarray:
    """(T,) bool: the taxa of the upper ranks that together are at most MAX_DRAWN (the topmost in any case)."""
    below = np.cumsum(np.bincount(taxonomy.rank, minlength=len(RANKS)))[taxonomy.rank]
    return (below <= MAX_DRAWN) | (taxonomy.rank == taxonomy.rank.min(initial=0))


@as_svg
def poincare_disk(coordinates: np.ndarray, taxonomy: Taxonomy, *, curv: float = 1.0, reach: float = 1.0) -> Figure:
    """The tree on its embedding: taxa as points coloured by rank, parents and children joined by geodesics.

    Args:
        coordinates: (T, 2) from `poincare_coordinates`.
        taxonomy: the T taxa.
        curv: c > 0, for the labels of the distance rings.
        reach: radius of the part shown; 1 = the whole disk.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Circle

    figure, axes = _axes(height=WIDTH + 0.35)
    axes.set_axis_off()
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    _distance_rings(axes, curv, reach)
    if reach >= 1:
        axes.add_patch(Circle((0, 0), 1, fill=False, edgecolor=INK, linewidth=1, clip_on=False))

    shown = drawn_taxa(taxonomy)
    child = np.flatnonzero(shown & (taxonomy.parent >= 0))
    arcs = geodesics(coordinates[taxonomy.parent[child]], coordinates[child])
    width = 1.3 - 0.15 * taxonomy.rank[child]
    axes.add_collection(LineCollection(list(arcs), colors=INK, linewidths=width.tolist(), alpha=0.35))
    for r in reversed(range(len(RANKS))):  # the upper ranks, fewer and larger, on top
        at = coordinates[shown & (taxonomy.rank == r)]
        if len(at):
            axes.scatter(
                at[:, 0],
                at[:, 1],
                s=46 - 6 * r,
                color=RANK_COLORS[r],
                edgecolors=INK,
                linewidths=0.4,
                zorder=9 - r,
                label=RANKS[r],
            )
    axes.plot(0, 0, "+", color=INK, markersize=9, zorder=10)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles[::-1], labels[::-1], loc="outside upper left", ncols=4, handletextpad=0.1, columnspacing=0.8
    )
    return figure


def _distance_rings(axes: Axes, curv: float, reach: float) -> None:
    """Faint circles at round distances from the origin, labelled, so that a radius can be read."""
    from matplotlib.patches import Circle
    from matplotlib.ticker import MaxNLocator

    farthest = 2 * math.atanh(0.9 * min(reach, 1)) / math.sqrt(curv)
    last = 0.0
    for distance in MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(0, farthest):
        radius = math.tanh(math.sqrt(curv) * distance / 2)
        if radius - last < 0.08 * reach or radius > 0.95 * reach:
            continue  # its label would cover its neighbour's, or the boundary
        last = radius
        axes.add_patch(Circle((0, 0), radius, fill=False, edgecolor=FAINT, linewidth=0.7, linestyle=":"))
        plate = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.6, "alpha": 0.75}
        axes.annotate(f"{distance:g}", (0, radius), fontsize=7.5, ha="center", va="center", zorder=11, bbox=plate)


@as_svg
def distance_by_rank(tangent: ArrayLike, taxonomy: Taxonomy) -> Figure:
    """Boxes per rank of the distance from the origin, |v|: quartiles, median, whiskers to the extremes."""
    distance = np.linalg.norm(np.asarray(tangent, dtype=np.float64), axis=1)
    present = [r for r in range(len(RANKS)) if (taxonomy.rank == r).any()]
    figure, axes = _axes(height=2.9)
    boxes = axes.boxplot(
        [distance[taxonomy.rank == r] for r in present], whis=(0, 100), widths=0.6, patch_artist=True
    )
    for r, box, median in zip(present, boxes["boxes"], boxes["medians"], strict=True):
        box.set(facecolor=(RANK_COLORS[r], 0.5), edgecolor=INK)  # pale, so that the median shows on all
        median.set(color=INK, linewidth=1.6)
    for line in (*boxes["whiskers"], *boxes["caps"]):
        line.set(color=INK)
    axes.set(ylabel="distance from the origin")
    axes.set_ylim(bottom=0)
    axes.set_xticks(range(1, len(present) + 1), [RANKS[r] for r in present], rotation=30)
    return figure


# -- shared -----------------------------------------------------------------------------------------------


def _axes(height: float) -> tuple[Figure, Axes]:
    """A figure that no global state knows, with one pair of axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _legend(figure: Figure, axes: Axes, names: Sequence[str], columns: int = 1) -> None:
    labels = [_short(name, 48) for name in names]
    figure.legend(axes.get_lines(), labels, loc="outside upper left", ncols=columns, columnspacing=1)


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
