"""A sanity baseline that looks at pixels only.

# N training images, M test images, P pixels (values, all channels), R ranks, C classes of one rank
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from bioclip_hc.evaluation.metrics import checked_taxa
from bioclip_hc.taxonomy import RANKS, Taxonomy


def pixel_probe(
    train_pixels: ArrayLike,
    train_taxa: ArrayLike,
    test_pixels: ArrayLike,
    taxonomy: Taxonomy,
    *,
    ridge: float = 1e-2,
) -> np.ndarray:
    """One linear classifier per rank on standardised pixels: ridge regression onto one-hot classes.

    Closed form in float64. Only taxa of the training images can be predicted.

    Args:
        train_pixels: (N, P) images as flat vectors.
        train_taxa: (N, R) int64 taxon ids, -1 = unknown (the image is left out at that rank).
        test_pixels: (M, P).
        taxonomy: what the ids mean.
        ridge: penalty as a share of the pixels' total variance; directions below it are shrunk away.

    Returns:
        (M, R) int64 taxon ids, -1 at a rank that no training image knows.

    Raises:
        ValueError: shapes that do not fit, ids out of range, or a ridge that is not positive.
    """
    x, z = np.asarray(train_pixels, dtype=np.float64), np.asarray(test_pixels, dtype=np.float64)
    taxa = checked_taxa("train_taxa", train_taxa, taxonomy)
    if x.ndim != 2 or z.ndim != 2 or x.shape[1] != z.shape[1] or len(x) != len(taxa):
        raise ValueError(
            "train_pixels, train_taxa and test_pixels must be (N, P), (N, R) and (M, P), "
            f"got {x.shape}, {taxa.shape} and {z.shape}"
        )
    if not ridge > 0:
        raise ValueError(f"ridge must be positive, got {ridge}")

    predictions = np.full((len(z), len(RANKS)), -1, dtype=np.int64)
    for r in range(len(RANKS)):
        rows = taxa[:, r] >= 0
        if rows.any():
            classes, label = np.unique(taxa[rows, r], return_inverse=True)
            predictions[:, r] = classes[_ridge_scores(x[rows], label, z, ridge).argmax(axis=1)]
    return predictions


def _ridge_scores(x: np.ndarray, label: np.ndarray, z: np.ndarray, ridge: float) -> np.ndarray:
    """(M, C) scores of the test rows z, from the normal equations in the smaller of N and P dimensions."""
    mean, spread = x.mean(axis=0), x.std(axis=0)
    unit = np.where(spread > 0, spread, 1.0) * np.sqrt(len(x) * x.shape[1])  # total variance = 1
    x, z = (x - mean) / unit, (z - mean) / unit
    target = np.eye(label.max() + 1)[label]
    share = target.mean(axis=0)  # the intercept: what the classes score at the mean image

    if len(x) <= x.shape[1]:
        weight = x.T @ np.linalg.solve(x @ x.T + ridge * np.eye(len(x)), target - share)
    else:
        weight = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ (target - share))
    return z @ weight + share
