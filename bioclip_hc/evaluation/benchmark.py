"""A system on labelled photographs.

# N images, T taxa, R ranks
"""

from __future__ import annotations

import numpy as np

from bioclip_hc.data.photographs import Photographs
from bioclip_hc.evaluation.images import contents_of, embed_photographs
from bioclip_hc.evaluation.outcome import Outcome, outcome
from bioclip_hc.evaluation.systems import System
from bioclip_hc.taxonomy import Taxonomy


def truth_of(photographs: Photographs, taxonomy: Taxonomy) -> np.ndarray:
    """(N, R) taxon ids of all photographs, -1 where a rank is unnamed or not in the taxonomy."""
    return taxonomy.encode_many(photographs.lineages)[photographs.lineage_index]


def known_truth(photographs: Photographs, taxonomy: Taxonomy) -> np.ndarray:
    """`truth_of`, of which something is known.

    Raises:
        ValueError: no photograph has a label that the taxonomy knows.
    """
    truth = truth_of(photographs, taxonomy)
    if not (truth >= 0).any():
        first = next((name for lineage in photographs.lineages for name in lineage if name), "")
        raise ValueError(f"no sample's labels are in the taxonomy ({first!r} is not); is it the right table?")
    return truth


def evaluate(
    system: System,
    photographs: Photographs,
    taxonomy: Taxonomy,
    *,
    candidates: np.ndarray | None = None,
    workers: int = 0,
) -> Outcome:
    """Predict every readable photograph under every protocol.

    Args:
        taxonomy: the taxa that may be predicted, unless `candidates` (T,) bool names fewer.
        workers: processes that decode; 0: none but this.

    Raises:
        ValueError: no photograph has an embedding, or none has a label that the taxonomy knows.
    """
    truth = known_truth(photographs, taxonomy)
    embedded = embed_photographs(system, photographs, contents_of(photographs), workers=workers)
    assert embedded is not None  # this process is the first
    text = system.embed_taxa(taxonomy)
    return outcome(
        embedded.indices,
        embedded.vectors,
        truth[embedded.indices],
        text,
        taxonomy,
        candidates,
        **system.space,
    )
