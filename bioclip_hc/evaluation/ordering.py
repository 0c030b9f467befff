"""Whether general names lie nearer to the root than special ones.

# T taxa, R ranks
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from bioclip_hc.taxonomy import Taxonomy


def root_order(distance: ArrayLike, taxonomy: Taxonomy) -> float | None:
    """Kendall's tau between rank and distance from the root along a lineage, averaged over lineages.

    For each taxon without children, its lineage's pairs of taxa: tau is the share in which the deeper taxon is
    farther from the root less the share in which it is nearer; a tie is neither (tau-a). 1 is a perfect order, 0
    none, -1 the reverse. This is d_corr of HierarCaps (Alper and Averbuch-Elor, "Emergent Visual-Semantic
    Hierarchies in Image-Text Representations", ECCV 2024), with which RCME is evaluated (arXiv 2506.21476), on the
    lineages of a taxonomy. Ranks that a lineage lacks make no pairs; lineages of one taxon are left out.

    Args:
        distance: (T,) of each taxon's text embedding from the root: the norm of its tangent vector in hyperbolic
            space, the distance from the root text's embedding in a Euclidean one.

    Returns:
        None where no lineage has two taxa.

    Raises:
        ValueError: not one finite number per taxon.
    """
    far = np.asarray(distance, np.float64)
    if far.shape != (taxonomy.size,) or not np.isfinite(far).all():
        raise ValueError(f"distance must be {taxonomy.size} finite numbers, one per taxon, got shape {far.shape}")
    leaf = np.ones(taxonomy.size, dtype=bool)
    leaf[taxonomy.parent[taxonomy.parent >= 0]] = False
    path = taxonomy.lineages[leaf]
    known, far = path >= 0, np.append(far, 0.0)[path]

    agreement, pairs = (np.zeros(len(path), np.int64) for _ in range(2))
    for upper in range(path.shape[1]):
        for lower in range(upper + 1, path.shape[1]):
            both = known[:, upper] & known[:, lower]
            pairs += both
            agreement += both * np.sign(far[:, lower] - far[:, upper]).astype(np.int64)
    some = pairs > 0
    return float((agreement[some] / pairs[some]).mean()) if some.any() else None
