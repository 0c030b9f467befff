"""How far a score would move with other images: bootstrap intervals.

# N images, G groups of images that are alike, B resamples
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bioclip_hc.evaluation.hierarchy import Parts

BLOCK = 1 << 21  # counts of one block of resamples: 16 MiB

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Intervals:
    """Percentile intervals of the measures; None where nothing could be measured.

    `measures` holds one interval for a measure that is one number, and one per column (rank; bin of the first
    error, as shares) for the others. "average" is of the mean accuracy over ranks.
    """

    level: float
    resamples: int
    seed: int
    measures: Mapping[str, Interval | tuple[Interval, ...]]


def bootstrap(
    parts: Mapping[str, Parts], *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Intervals:
    """Percentile bootstrap over images (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 13).

    A resample draws N images with replacement. Images whose numerators and denominators are all alike are a group,
    and how often a resample draws each group is multinomial: the same distribution as drawing one image at a time,
    for G draws instead of N, and the result does not depend on the order of images. A rank that no image of
    a resample knows stays out of it. Memory is that of the columns and of `BLOCK` counts, whatever B.

    The interval is of the images only: candidates, model and training seed stay as they are, and photographs of one
    individual count as if they were independent.

    Args:
        parts: as `metrics.score_parts` gives.
        level: the share of resamples inside.
        resamples: B.
        seed: the same seed, the same interval.

    Raises:
        ValueError: a level outside (0, 1), or fewer than 2 resamples.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    if resamples < 2:
        raise ValueError(f"resamples must be at least 2, got {resamples}")
    columns = np.column_stack([x for pair in parts.values() for x in pair]).astype(np.float64)
    drawn = _resampled_sums(columns, resamples, np.random.default_rng(seed))

    measures: dict[str, Interval | tuple[Interval, ...]] = {}
    start = 0
    for name, (part, _) in parts.items():
        width = 1 if part.ndim == 1 else part.shape[1]
        sums, start = drawn[:, start : start + 2 * width], start + 2 * width
        whole = sums[:, width:]
        value = np.divide(sums[:, :width], whole, out=np.full_like(whole, np.nan), where=whole > 0)
        found = tuple(_percentiles(column, level) for column in value.T)
        measures[name] = found if part.ndim == 2 else found[0]
        if name == "accuracy":
            present = np.isfinite(value)
            mean = np.where(present, value, 0).sum(axis=1) / np.maximum(present.sum(axis=1), 1)
            measures["average"] = _percentiles(np.where(present.any(axis=1), mean, np.nan), level)
    return Intervals(level, resamples, seed, measures)


def _resampled_sums(columns: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """(B, columns): the sums of each resample of the rows of `columns`."""
    if not len(columns):
        return np.zeros((resamples, columns.shape[1]))
    rows, count = _alike(columns)
    share = count / count.sum()
    step = max(1, BLOCK // len(rows))
    blocks = [min(step, resamples - start) for start in range(0, resamples, step)]
    return np.concatenate([rng.multinomial(len(columns), share, size=size) @ rows for size in blocks])


def _alike(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows in the order of their bytes, and how many rows are each."""
    packed = np.ascontiguousarray(columns).view(np.dtype((np.void, columns.shape[1] * columns.itemsize)))[:, 0]
    _, first, count = np.unique(packed, return_index=True, return_counts=True)
    return columns[first], count


def _percentiles(values: np.ndarray, level: float) -> Interval:
    """Of the finite values."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
