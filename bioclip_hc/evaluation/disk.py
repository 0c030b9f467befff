"""The tree of life on a model's embedding of its names.

# T taxa, D embed, R ranks, E edges
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from bioclip_hc.evaluation.figures import WIDTH, as_svg, axes_of
from bioclip_hc.evaluation.theme import FAINT, INK, PAPER, RANK_COLORS
from bioclip_hc.taxonomy import RANKS, Taxonomy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ARC_POINTS = 12  # straight pieces of one drawn geodesic, plus one
MAX_DRAWN = 4000  # taxa in one disk; more would be a blot, and megabytes of SVG


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
    from matplotlib.patches import Circle

    figure, axes = axes_of(height=WIDTH + 0.35)
    axes.set_axis_off()
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    _distance_rings(axes, curv, reach)
    if reach >= 1:
        axes.add_patch(Circle((0, 0), 1, fill=False, edgecolor=INK, linewidth=1, clip_on=False))

    _draw_tree(figure, axes, coordinates, taxonomy, geodesics)
    axes.plot(0, 0, "+", color=INK, markersize=9, zorder=10)
    return figure


def plane_coordinates(vectors: ArrayLike) -> np.ndarray:
    """(T, 2): the first two principal components of embeddings (T, D), the farthest from their mean at distance 1.

    Raises:
        ValueError: not a finite (T, D) array with D >= 2.
    """
    v = np.asarray(vectors, dtype=np.float64)
    if v.ndim != 2 or v.shape[1] < 2 or not np.isfinite(v).all():
        raise ValueError(f"vectors must be a finite (T, D) array with D >= 2, got shape {v.shape}")
    v = v - v.mean(axis=0)
    _, components = np.linalg.eigh(v.T @ v)
    plane = components[:, :-3:-1]  # eigenvalues ascend
    plane = plane * np.sign(plane[np.abs(plane).argmax(axis=0), [0, 1]])
    xy = v @ plane
    return xy / max(np.linalg.norm(xy, axis=1).max(initial=0), 1e-300)


@as_svg
def tree_plane(coordinates: np.ndarray, taxonomy: Taxonomy) -> Figure:
    """The tree on a flat embedding: as `poincare_disk`, from `plane_coordinates`, with straight lines."""
    figure, axes = axes_of(height=WIDTH + 0.35)
    axes.set_axis_off()
    axes.set(xlim=(-1.03, 1.03), ylim=(-1.03, 1.03), aspect="equal")
    _draw_tree(figure, axes, coordinates, taxonomy, lambda start, end: np.stack([start, end], axis=1))
    return figure


def _draw_tree(
    figure: Figure,
    axes: Axes,
    coordinates: np.ndarray,
    taxonomy: Taxonomy,
    lines: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> None:
    """Taxa as points and, from parents to children, `lines` of (E, 2) starts and ends."""
    from matplotlib.collections import LineCollection

    shown = drawn_taxa(taxonomy)
    child = np.flatnonzero(shown & (taxonomy.parent >= 0))
    arcs = lines(coordinates[taxonomy.parent[child]], coordinates[child])
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
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles[::-1], labels[::-1], loc="outside upper left", ncols=4, handletextpad=0.1, columnspacing=0.8
    )


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
    figure, axes = axes_of(height=2.9)
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
