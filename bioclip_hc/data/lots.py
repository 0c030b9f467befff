"""Samples drawn by lot: by a hash of what they are, so that a draw depends on no order and no random state.

# N samples
"""

from __future__ import annotations

import hashlib

import numpy as np


def choose_share(taxon: np.ndarray, lot: np.ndarray, fraction: float) -> np.ndarray:
    """(N,) bool: of the n items of each taxon, the ceil(fraction * n) with the lowest lots; equal lots go together.

    Args:
        taxon: (N,) int64, any numbers.
        lot: (N,) uint64, from `draw_lot`.
    """
    order = np.lexsort((lot, taxon))
    _, start, count = np.unique(taxon[order], return_index=True, return_counts=True)
    take = np.ceil(fraction * count).astype(np.int64)
    last = lot[order[start + np.maximum(take, 1) - 1]]
    chosen = np.empty(len(order), bool)
    chosen[order] = (np.repeat(take, count) > 0) & (lot[order] <= np.repeat(last, count))
    return chosen


def draw_lot(*parts: object) -> int:
    """A number in [0, 2^64) that depends on the parts alone."""
    return int.from_bytes(
        hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest()[:8], "big"
    )
