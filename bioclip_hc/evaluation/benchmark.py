"""A system on labelled photographs.

# N images, T taxa, R ranks
"""

from __future__ import annotations

import numpy as np

from bioclip_hc.data.photographs import Photographs
from bioclip_hc.evaluation.embeddings import embed_photographs
from bioclip_hc.evaluation.outcome import Outcome, outcome
from bioclip_hc.evaluation.systems import System
from bioclip_hc.taxonomy import Taxonomy


def truth_of(photographs: Photographs, taxonomy: Taxonomy) -> np.ndarray:
    """(N, R) taxon ids of all photographs, -1 where a rank is unnamed or not in the taxonomy."""
    return taxonomy.encode_many(photographs.lineages)[photographs.lineage_index]


def evaluate(
    system: System,
    photographs: Photographs,
    taxonomy: Taxonomy,
    *,
    candidates: np.ndarray | None = None,
    batch_size: int = 256,
    workers: int = 0,
) -> Outcome:
    """Predict every readable photograph under every protocol.

    Args:
        taxonomy: the taxa that may be predicted, unless `candidates` (T,) bool names fewer.

    Raises:
        ValueError: no photograph can be read, or none has a label that the taxonomy knows.
    """
    truth = truth_of(photographs, taxonomy)
    if not (truth >= 0).any():
        first = next(name for lineage in photographs.lineages for name in lineage if name)
        raise ValueError(f"no sample's labels are in the taxonomy ({first!r} is not); is it the right table?")
    indices, image = embed_photographs(system.model, photographs, system.preprocess, batch_size, workers)
    if not len(indices):
        raise ValueError(f"none of the {len(photographs)} images could be read")
    text = system.embed_taxa(taxonomy)
    return outcome(indices, image, truth[indices], text, taxonomy, candidates, **system.space)
