"""Images by how often their taxon was photographed in training.

# N images, M training images, R ranks, T taxa

A model may be right because it has seen a species a thousand times; head, tail and unseen are scored apart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from bioclip_hc.evaluation.metrics import checked_taxa
from bioclip_hc.taxonomy import Taxonomy

HEAD = 20  # training images from which a taxon is of the head: below is "few-shot" in Liu et al., CVPR 2019
STRATA = ("head", "tail", "unseen")


def training_counts(taxa: ArrayLike, taxonomy: Taxonomy) -> np.ndarray:
    """(T,) int64: the training images of each taxon, those of its descendants included.

    Args:
        taxa: (M, R) int64 taxon ids of the training images, -1 = unknown. An image known down to its genus counts
            for its genus and all above, and for no species.

    Raises:
        ValueError: another shape, an id out of range or of another rank.
    """
    ids = checked_taxa("taxa", taxa, taxonomy)
    return np.bincount(ids[ids >= 0], minlength=taxonomy.size)


def strata(truth: ArrayLike, counts: ArrayLike, taxonomy: Taxonomy, head: int = HEAD) -> dict[str, np.ndarray]:
    """Which images are of the head, the tail, and unseen.

    An image stands where its deepest known taxon stands, with n training images: head n >= `head`, tail
    1 <= n < `head`, unseen n = 0. So an image of an unseen species of a well-known genus is unseen as a whole, and
    its accuracy at the genus says how well the model places what it never saw. The default of 20 separates few-shot
    from medium and many-shot classes in Liu et al., "Large-Scale Long-Tailed Recognition in an Open World", CVPR
    2019. An image of which nothing is known is in none.

    Args:
        truth: (N, R) int64 taxon ids, -1 = unknown or left out.
        counts: (T,) int, as `training_counts` gives.
        head: at least 1.

    Returns:
        name -> (N,) bool.

    Raises:
        ValueError: a truth that is no taxon of its rank, counts that are not one number >= 0 per taxon, or a `head`
            below 1.
    """
    true = checked_taxa("truth", truth, taxonomy)
    seen = np.asarray(counts)
    if seen.shape != (taxonomy.size,) or not np.issubdtype(seen.dtype, np.integer) or (seen < 0).any():
        raise ValueError(
            f"counts must be {taxonomy.size} integers >= 0, one per taxon, got {seen.dtype} of shape {seen.shape}"
            + (f" with a least value of {seen.min()}" if seen.size else "")
        )
    if head < 1:
        raise ValueError(f"head must be at least 1, got {head}")
    deepest = true.max(axis=1, initial=-1)  # ids are rank-major: the deepest has the largest
    labelled = deepest >= 0
    times = np.where(labelled, seen[deepest], -1)
    return dict(zip(STRATA, (times >= head, (times >= 1) & (times < head), times == 0), strict=True))
