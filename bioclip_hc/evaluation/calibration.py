"""Whether a stated probability is how often the prediction is right.

# N images, R ranks, M bins
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from bioclip_hc.evaluation.metrics import checked_taxa
from bioclip_hc.taxonomy import RANKS, Taxonomy

BINS = 15  # as Guo et al. 2017


@dataclass(frozen=True)
class Calibration:
    """The reliability diagram of each rank. Bin m of M holds the probabilities in (m / M, (m + 1) / M], the first
    one 0 as well; an empty bin has mean probability and accuracy None."""

    error: tuple[float | None, ...]
    """(R,) expected calibration error: the mean over images of their bin's |accuracy - mean probability|."""
    count: tuple[tuple[int, ...], ...]
    """(R, M) images."""
    probability: tuple[tuple[float | None, ...], ...]
    """(R, M) mean probability."""
    accuracy: tuple[tuple[float | None, ...], ...]
    """(R, M) share right."""


def calibration(
    probability: ArrayLike, predictions: ArrayLike, truth: ArrayLike, taxonomy: Taxonomy, bins: int = BINS
) -> Calibration:
    """Expected calibration error of each rank, with bins of equal width (Naeini, Cooper and Hauskrecht, AAAI 2015;
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017).

    An image counts at a rank where its truth is known and something is predicted.

    Args:
        probability: (N, R) float, what the system says of its predictions; read only where it predicts.
        predictions: (N, R) int64 taxon ids, -1 = none.
        truth: (N, R) int64 taxon ids, -1 = unknown or left out.
        bins: M.

    Raises:
        ValueError: shapes that differ, an id out of range or of another rank, a probability outside [0, 1] or not
            finite, or no bin.
    """
    predicted = checked_taxa("predictions", predictions, taxonomy)
    true = checked_taxa("truth", truth, taxonomy)
    stated = np.asarray(probability, np.float64)
    if not predicted.shape == true.shape == stated.shape:
        raise ValueError(
            "probability, predictions and truth must have one row per image, "
            f"got {stated.shape}, {predicted.shape} and {true.shape}"
        )
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    counted = (true >= 0) & (predicted >= 0)
    wrong = counted & ~((stated >= 0) & (stated <= 1))  # NaN too
    if wrong.any():
        i, r = np.argwhere(wrong)[0]
        raise ValueError(f"probability[{i}, {r}] must be in [0, 1], got {stated[i, r]}")

    _, rank = np.nonzero(counted)
    stated, right = stated[counted], (predicted == true)[counted]
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    cell = rank * bins + np.searchsorted(edges, stated)  # an edge belongs to the bin below it
    shape = (len(RANKS), bins)
    count, said, hit = (
        np.bincount(cell, weights, minlength=len(RANKS) * bins).reshape(shape) for weights in (None, stated, right)
    )
    images = count.sum(axis=1)
    gap = np.abs(said - hit).sum(axis=1)
    return Calibration(
        error=tuple(float(g / n) if n else None for g, n in zip(gap, images, strict=True)),
        count=tuple(tuple(row) for row in count.astype(int).tolist()),
        probability=_means(said, count),
        accuracy=_means(hit, count),
    )


def _means(total: np.ndarray, count: np.ndarray) -> tuple[tuple[float | None, ...], ...]:
    return tuple(
        tuple(float(t / n) if n else None for t, n in zip(totals, counts, strict=True))
        for totals, counts in zip(total, count, strict=True)
    )
